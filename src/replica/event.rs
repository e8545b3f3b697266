//! What a replica is told, and what it wants done.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::members::{Members, Voter};
use super::message::{Fetch, Fetched, Message, NodeKind, Position};
use super::settings::{Change, Settings, StorageName};
use crate::entry::{Body, Entry, Point};
use crate::group::{MemberId, ViewId};
use crate::ids::{Epoch, HistoryId, NodeId, Oid, Seq, Tid};
use crate::limits::PACE_MAX;

/// The time, as it is given with each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Never goes back: for waiting.
    pub instant: Instant,
    /// Since 1970, as the machine's clock shows it: for tids. It may be wrong, and jump.
    pub wall: Duration,
}

/// What a node is, by its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What it is for.
    pub kind: NodeKind,
    /// Where it is.
    pub site: String,
    /// See [`State::priority`](super::message::State::priority).
    pub priority: u32,
    /// If it needs a copy of the database, the newest revisions are enough. It lacks the old ones
    /// then, and so does not undo, and is no primary, unless:
    pub copies_newest_only: bool,
    /// It may be primary though it lacks old revisions.
    pub leads_without_history: bool,
    /// How long a primary is believed to be there without a sign of life, and how long it serves
    /// without one of a quorum, while it is in the view.
    pub lease: Duration,
}

impl Options {
    /// The unit of all that is waited for but the lease.
    pub(super) fn pace(&self) -> Duration {
        self.lease.min(PACE_MAX)
    }
}

/// Where a node is when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The lineage of its data.
    pub history: HistoryId,
    /// Itself.
    pub me: Voter,
    /// The highest epoch that it has promised.
    pub promised: Epoch,
    /// Its log and what is made of it.
    pub log: LogStart,
}

/// A log, all of which is on stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// What is in front of the first entry that can be read.
    pub before: Position,
    /// Where it ends.
    pub last: Point,
    /// The tid of the last transaction in it, or in front of it.
    pub last_tid: Tid,
    /// The last entry of each epoch behind `before`, oldest first, the last being `last`.
    pub ends: Vec<Position>,
    /// What is known to be committed.
    pub committed: Seq,
    /// What has been applied.
    pub applied: Seq,
    /// What is settled as of this entry, which is committed.
    pub settled: Seq,
    /// See `settled`.
    pub settings: Settings,
    /// The changes behind `settled`, in order.
    pub changes: Vec<(Seq, Change)>,
    /// The data begin with this transaction, if not zero: older revisions are not there.
    pub history_from: Tid,
    /// Of each storage: the entry that ordered the last pack that was done, or was known not to be
    /// needed.
    pub packed: BTreeMap<StorageName, Seq>,
}

/// Names something that the replica was asked for, in the answer. Given by who asks; none is given
/// twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a replica is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The deadline has come, or may have.
    Deadline,

    // Of the group.
    /// The group has these members from now on.
    View {
        /// Its name
        id: ViewId,
        /// All, us included.
        members: Vec<MemberId>,
        /// Us
        me: MemberId,
    },
    /// We are a member of nothing.
    Lost,
    /// A message has come through the group; our own come, too.
    Message {
        /// From whom
        from: MemberId,
        /// It
        message: Message,
    },
    /// Somebody asks for entries.
    Requested {
        /// Who
        from: MemberId,
        /// What
        fetch: Fetch,
    },
    /// What we have asked for with [`Action::Fetch`].
    Fetched(Fetched),
    /// An [`Action::Fetch`] or [`Action::Copy`] came to nothing: nobody answers, or the disk of
    /// the other has failed.
    FetchFailed {
        /// The request's
        id: u64,
    },
    /// An [`Action::Copy`] has been made; the journal begins anew behind it.
    Copied {
        /// The request's
        id: u64,
        /// As it is now
        log: Box<LogStart>,
    },
    /// A copy was made that nobody here has asked for; the log is the same.
    Replaced {
        /// See [`LogStart::history_from`].
        history_from: Tid,
    },

    // Of the disk, in the order that it was asked for in.
    /// All up to this entry is on stable storage, with the blobs that it names.
    Synced {
        /// This one
        through: Seq,
    },
    /// [`Action::Promise`] is done.
    Promised(Epoch),
    /// [`Action::Cut`] is done.
    Cut {
        /// The log ends here now.
        last: Point,
        /// The tid of the last transaction up to there.
        last_tid: Tid,
    },
    /// [`Action::Apply`] is done, up to here.
    Applied {
        /// This one
        through: Seq,
    },
    /// [`Action::Record`] is done.
    Recorded(Position),
    /// There was no room for an [`Action::Append`], nor for those that followed: the log ends here,
    /// all of it on stable storage.
    NoRoom {
        /// Its end
        last: Point,
        /// The tid of the last transaction up to there.
        last_tid: Tid,
    },

    // Of the server.
    /// A transaction is to be committed. Answered by [`Action::Reply`].
    Finish {
        /// Comes back.
        token: Token,
        /// The transaction
        body: Body,
        /// The tid that it must get, for copies of other databases.
        tid: Option<Tid>,
        /// Of each storage that it stores into: the largest oid that it stores.
        oids: Vec<(StorageName, Oid)>,
    },
    /// Oids are needed. Answered by [`Action::Oids`].
    AllocateOids {
        /// Comes back.
        token: Token,
        /// For this storage
        storage: StorageName,
        /// So many
        count: u64,
    },
    /// What is committed by now has to be known. Answered by [`Action::Confirmed`].
    Confirm {
        /// Comes back.
        token: Token,
    },
    /// No transaction is voted and not finished; after [`Writers::Draining`].
    Drained,
    /// The storage was packed as [`Action::Pack`] wanted it, or will not be.
    Packed,

    // Of the administrator. Answered by [`Action::Answer`].
    /// Another node is to be primary.
    Swap {
        /// Comes back.
        token: Token,
        /// Which one
        to: NodeId,
    },
    /// This node is to be primary, whatever its site and its priority are, if nobody is.
    TakeOffice {
        /// Comes back.
        token: Token,
    },
    /// This node takes an office by itself only if nobody else can, or does as ever again; a start
    /// ends it. It goes on voting, and leaves no office. Not answered.
    StandAside(bool),
    /// This node cannot do the work of a primary for now: if it is in office, it leaves it. What
    /// is committed and was not answered its clients have to find out. Not answered.
    Resign,
    /// The members are to be changed.
    ChangeMembers {
        /// Comes back.
        token: Token,
        /// How
        change: MemberChange,
    },
    /// A storage is to be packed on all nodes.
    OrderPack {
        /// Comes back.
        token: Token,
        /// Which
        storage: StorageName,
        /// As of when
        tid: Tid,
    },
}

/// How the members are to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A node is to be counted; it must be level with the primary.
    Add(NodeId),
    /// A node is no longer to be counted; not the primary.
    Remove(NodeId),
    /// A node is to be the arbiter of the two voters that there are.
    AddArbiter(NodeId),
    /// There is to be no arbiter; both voters must be in sync.
    RemoveArbiter,
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    // With the group.
    /// To all members; it comes back to us as an event. In the lane of its content.
    SendAll(Message),
    /// To one member.
    SendOne(MemberId, Message),
    /// To one member, directly. Answered by [`Event::Fetched`] or [`Event::FetchFailed`].
    Fetch {
        /// To whom
        to: MemberId,
        /// What
        fetch: Fetch,
    },
    /// Send entries of our journal, or that there are none, in answer to a request.
    Supply {
        /// To whom
        to: MemberId,
        /// The answer without its entries.
        answer: Box<Fetched>,
        /// The entries from the first of these to the second, as many as fit.
        entries: Option<(Seq, Seq)>,
    },
    /// Copy the database of this member, all of it or the newest revisions only, and begin the
    /// journal anew behind it. What has been promised stays. Nothing else is asked of the journal
    /// until [`Event::Copied`] or [`Event::FetchFailed`], but promises.
    Copy {
        /// Names the request.
        id: u64,
        /// From whom
        from: MemberId,
        /// It must hold at least this entry. What this node has behind the end of the copy, or
        /// that is not in it, is cut and kept when the copy is complete, and not before.
        at_least: Seq,
        /// Old revisions are not wanted: [`LogStart::history_from`].
        newest_only: bool,
    },

    // With the disk, one after the other.
    /// Append to the journal and sync: [`Event::Synced`]. Several may share a sync.
    Append(Vec<Entry>),
    /// Bring a promise to stable storage: [`Event::Promised`].
    Promise(Epoch),
    /// Cut the journal behind this entry, and keep what is cut: [`Event::Cut`].
    Cut {
        /// This one stays.
        after: Seq,
        /// What is committed.
        committed: Seq,
    },
    /// Apply what is in the journal up to this entry to the data: [`Event::Applied`]. It is
    /// committed, and on stable storage in the journal.
    Apply {
        /// This one
        through: Seq,
    },
    /// Bring a record of an arbiter to stable storage: [`Event::Recorded`].
    Record(Position, Members),

    // For the server.
    /// The answer to [`Event::Finish`].
    Reply {
        /// Its token
        token: Token,
        /// How it ended
        outcome: Outcome,
    },
    /// The answer to [`Event::AllocateOids`].
    Oids {
        /// Its token
        token: Token,
        /// These. None if this node is not, or no longer, in office.
        oids: Option<Range<u64>>,
    },
    /// The answer to [`Event::Confirm`].
    Confirmed {
        /// Its token
        token: Token,
        /// All that was committed when it was asked has been applied. If not, nobody knows.
        is_sure: bool,
    },
    /// What clients may do from now on.
    Serve(Serving),
    /// Pack a storage now, and say [`Event::Packed`].
    Pack {
        /// Which
        storage: StorageName,
        /// As of when, and up to which entry references are looked for.
        pack: super::settings::Pack,
    },

    // For the administrator.
    /// The answer to what was asked.
    Answer {
        /// Its token
        token: Token,
        /// Done, or why not.
        result: Result<(), Refusal>,
    },
    /// Something that an administrator should know.
    Tell(Notice),
    /// The node must not go on. Nothing else follows.
    Stop(Fatal),
}

/// How a finish ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed, and applied here.
    Committed {
        /// Its entry
        seq: Seq,
        /// Its tid
        tid: Tid,
    },
    /// It is not committed, and never will be.
    Lost,
    /// Nobody can tell: the connection ends without an answer.
    Unknown,
}

/// What clients may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Those who write
    pub writers: Writers,
    /// Those who only read
    pub readers: Readers,
}

/// What clients may do that want to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// Nothing: who is connected is disconnected, but for those with a finish whose end is not
    /// known; new ones wait for their greeting.
    #[default]
    Closed,
    /// New ones wait for their greeting; votes wait, finishes are taken.
    Frozen,
    /// As `Frozen`; when all who have voted have finished, [`Event::Drained`] is wanted.
    Draining,
    /// All.
    Open,
}

/// What clients may do that only read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readers {
    /// Nothing: there is nothing to read, or it is being replaced.
    #[default]
    Closed,
    /// Those who are registered go on; new ones wait, since they may have seen more elsewhere.
    Kept,
    /// All.
    Open,
}

/// Why the administrator's wish is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This node is not in office.
    NotPrimary,
    /// The members are being changed, or the primary is.
    Busy,
    /// There is no such node here.
    NoSuchNode(NodeId),
    /// That is so already.
    Already,
    /// That is no node that could be it.
    NotEligible(NodeId),
    /// The node lacks this many entries.
    Behind(NodeId, u64),
    /// There would be too many voters, or none, or not two beside an arbiter.
    VoterCount,
    /// Of the members as they would be there is no quorum here.
    NoQuorum,
    /// It took too long.
    TimedOut,
}

/// Something to be told once, and shown in the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This node is in office, and open for writers.
    Promoted(Epoch),
    /// This node is in office no more.
    Demoted(Epoch),
    /// Entries were replaced from here on to here by those of another epoch.
    Rewound {
        /// The first that was cut
        first: Seq,
        /// The last one
        last: Seq,
    },
    /// A member has data of another lineage.
    OtherHistory(NodeId, HistoryId),
    /// Two members go by this name.
    Namesakes(NodeId),
    /// A voter's name with a disk that is not the voter's: it is not counted.
    OtherDisk(Voter),
    /// This node's clock differs by so much from that of most. With more than half a minute it will
    /// not be primary.
    ClockOff(Duration),
    /// A copy of the database is being made, as the journals of the others do not go back that far.
    Copying,
    /// There is no room for the journal: this node follows nobody.
    NoRoom,
}

/// Why a node must not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// What is committed here is not in the log of the primary: a promise was broken somewhere, or
    /// disks of two clusters were mixed up.
    BelowCommit {
        /// The log would have to be cut behind this.
        after: Seq,
        /// What is committed
        committed: Seq,
        /// Whose log says so.
        epoch: Epoch,
    },
    /// Two entries at the same place of the same epoch differ.
    Forked {
        /// Where
        position: Position,
    },
    /// The body of an entry cannot be read, though its digest is right.
    Unreadable(Seq),
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BelowCommit {
                after,
                committed,
                epoch,
            } => write!(
                f,
                "the primary of epoch {epoch} has another entry {} than this node, \
                 where {committed} is committed",
                after.next()
            ),
            Self::Forked { position } => write!(
                f,
                "there are two entries {} of epoch {}",
                position.seq, position.epoch
            ),
            Self::Unreadable(seq) => write!(f, "entry {seq} cannot be understood"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPrimary => f.write_str("this node is not the primary"),
            Self::Busy => f.write_str("another change is being made"),
            Self::NoSuchNode(node) => write!(f, "{node} is not here"),
            Self::Already => f.write_str("that is so already"),
            Self::NotEligible(node) => write!(f, "{node} cannot be that"),
            Self::Behind(node, count) => write!(f, "{node} lacks {count} entries"),
            Self::VoterCount => f.write_str("not with so many voters"),
            Self::NoQuorum => f.write_str("a quorum of those members is not here"),
            Self::TimedOut => f.write_str("it took too long"),
        }
    }
}
