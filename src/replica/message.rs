//! What replicas say to each other.

use std::time::Duration;

use super::members::{Members, Voter};
use crate::entry::Entry;
use crate::group::{Lane, ViewId};
use crate::ids::{DiskId, Epoch, HistoryId, NodeId, Seq, Tid};

/// A place in a log as nodes compare them. Of two logs the one with the greater end is the *newer*.
/// Where two logs have the same position they are the same up to there, as an epoch has one
/// primary, which does not take back what it proposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The epoch of the entry
    pub epoch: Epoch,
    /// Its number
    pub seq: Seq,
}

/// A message through the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub sender: Sender,
    /// What
    pub content: Content,
}

/// Who says something. All of it, in each message: the daemon may give a member's name to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The lineage of its data. What comes of another one is not heeded.
    pub history: HistoryId,
    /// Its name
    pub node: NodeId,
    /// Its disk
    pub disk: DiskId,
}

impl Sender {
    /// As it is counted, if it is.
    pub const fn voter(&self) -> Voter {
        Voter {
            node: self.node,
            disk: self.disk,
        }
    }
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// How things are with the sender; to all, in each view and when something changes.
    State(Box<State>),
    /// The sender has said its state and knows its part in this view.
    Unblock {
        /// This one.
        view: ViewId,
    },
    /// The sender wants to be primary of this epoch, which it has promised to itself.
    Claim {
        /// This one.
        epoch: Epoch,
        /// The epoch that the sender's claim follows by the will of its primary.
        handover: Option<Epoch>,
    },
    /// The sender, to a candidate: will never acknowledge anything of lower epochs.
    Promise {
        /// The epoch that is promised.
        epoch: Epoch,
        /// Where the sender's log ends.
        last: Position,
        /// Of an arbiter: what it has on record.
        record: Option<Record>,
    },
    /// A new entry of the primary's log. Its epoch is that of the entry.
    Propose {
        /// The epoch of the entry before.
        previous: Epoch,
        /// All up to this is committed.
        committed: Seq,
        /// It
        entry: Entry,
    },
    /// To the primary: synced, and known to be the same in its log, up to this.
    Ack {
        /// The epoch that the sender has promised.
        epoch: Epoch,
        /// All up to this one; zero if nothing is known to be the same.
        seq: Seq,
        /// Applied up to this one.
        applied: Seq,
        /// The last [`Content::Commit`] that the sender has had in this epoch.
        beat: u64,
    },
    /// The primary's commit mark, and sign of life.
    Commit {
        /// Its epoch
        epoch: Epoch,
        /// All up to this is committed.
        committed: Seq,
        /// Where its log ends.
        last: Position,
        /// Counts these in an epoch.
        beat: u64,
        /// Its time of day.
        wall: Duration,
    },
    /// The primary asks a node to claim the next epoch.
    Handover {
        /// Its epoch
        epoch: Epoch,
        /// To whom
        to: NodeId,
    },
    /// To the primary: what is committed? To be answered when it is sure that it is in office.
    Ask {
        /// Its epoch
        epoch: Epoch,
        /// Comes back.
        id: u64,
    },
    /// The answer.
    Told {
        /// The epoch of the primary
        epoch: Epoch,
        /// The question's
        id: u64,
        /// All up to this was committed when it was asked, or later.
        committed: Seq,
    },
    /// To an arbiter: a change of who is in sync, to be put on record.
    Record(Record),
    /// The arbiter has this on record.
    Recorded(Position),
    /// To the primary: the sender wants to pack, or packs, or has packed.
    Packing {
        /// Its epoch
        epoch: Epoch,
        /// How far it is.
        stage: PackStage,
    },
    /// The primary: the sender of a [`Content::Packing`] may begin.
    Pack {
        /// The epoch of the primary
        epoch: Epoch,
        /// Who
        node: NodeId,
    },
}

/// How far a node is with a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackStage {
    /// It wants a turn.
    Wanted,
    /// It packs.
    Begun,
    /// It is done.
    Done,
}

/// Who is in sync, by the entry at this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The place of the entry.
    pub position: Position,
    /// The members as of it.
    pub members: Members,
}

/// How things are with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The view that this is said in.
    pub view: ViewId,
    /// The highest epoch that it has promised.
    pub promised: Epoch,
    /// Where its log ends.
    pub last: Position,
    /// What it knows to be committed.
    pub committed: Seq,
    /// What it has applied.
    pub applied: Seq,
    /// What it does.
    pub role: Role,
    /// The epoch whose primary it has heard of within a lease; of a primary, its own, if it has
    /// heard of a quorum.
    pub hears: Option<Epoch>,
    /// What it is for.
    pub kind: NodeKind,
    /// Where it is.
    pub site: String,
    /// Where the primary is to be, as of the end of its log.
    pub home: String,
    /// Who is counted, as of the end of its log.
    pub members: Members,
    /// Who has more is preferred as primary; who has none never takes over by itself. It may lead
    /// again if it was given the office, and nobody has led since nor could do so now.
    pub priority: u32,
    /// It knows nothing of transactions before this one, if not zero.
    pub history_from: Tid,
    /// Its time of day.
    pub wall: Duration,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a primary, if there is one.
    #[default]
    Replica,
    /// Has claimed an epoch.
    Candidate,
    /// Is in office.
    Primary,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeKind {
    /// Has the data, and is counted if the members say so.
    #[default]
    Data,
    /// Has the data, and is never primary and never to be a voter.
    Observer,
    /// Has no data.
    Arbiter,
}

impl Content {
    /// The lane that it is sent in.
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Propose { .. } | Self::Ack { .. } | Self::Commit { .. } => Lane::Commit,
            _ => Lane::Control,
        }
    }
}

/// A node asks another one for entries, directly, and not through the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Who asks.
    pub sender: Sender,
    /// Comes back; larger for each request.
    pub id: u64,
    /// The epoch that the sender has promised. If who is asked has not, it refuses.
    pub epoch: Epoch,
    /// A candidate takes all that the other has; else only what is known to be the same as the
    /// primary's log is of use.
    pub is_claim: bool,
    /// Ends of epochs in the sender's log, the newest first, down to what is committed, and at most
    /// [`FETCH_ENDS_MAX`](crate::limits::FETCH_ENDS_MAX). The entries behind the first that the
    /// other log has, too, are wanted.
    pub ends: Vec<Position>,
}

/// The answer to a [`Fetch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Who answers.
    pub sender: Sender,
    /// The request's
    pub id: u64,
    /// The request's, unless refused: then what the sender has promised.
    pub epoch: Epoch,
    /// What there is.
    pub what: Supply,
}

/// What there is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supply {
    /// Entries one behind the other. None if there are no more.
    Entries {
        /// What they are behind of.
        after: Position,
        /// They
        entries: Vec<Entry>,
    },
    /// The entries that would be next are not in the journal any more, which begins behind this
    /// one. A copy is needed.
    Released {
        /// It is committed.
        before: Seq,
    },
    /// What the other has committed is not in this log, and should be.
    Apart,
    /// Not in this epoch, or not now.
    Refused,
}
