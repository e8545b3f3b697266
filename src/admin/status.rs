//! How things are with a node, as far as it knows: what `/status` says in JSON.
//!
//! Numbers are numbers of entries of the log, bytes, or seconds, as each says. What is not known is
//! `null`. Fields may be added in later versions; a reader takes what is missing for nothing.

use serde::{Deserialize, Serialize};

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The name of this node
    pub node: String,
    /// The group that it is a member of
    pub group: String,
    /// Of the program
    pub version: String,
    /// What this node does now.
    pub role: MemberRole,
    /// The same in words, with what it waits for.
    pub state: String,
    /// The lineage of its data, 32 hexadecimal digits; empty if it has none.
    pub history: String,
    /// The epoch that it has promised: a number, and who claimed it.
    pub epoch: String,
    /// The view that it is in, if it is in one.
    pub view: Option<String>,
    /// Where this node is.
    pub site: String,
    /// The site whose nodes take over by themselves; empty if there was no primary yet.
    pub home: String,
    /// Who is in office, if anybody is heard of.
    pub primary: Option<String>,
    /// All nodes that are counted or here, ordered by name.
    pub members: Vec<MemberStatus>,
    /// Nodes that have the data and are counted.
    pub voters: Vec<String>,
    /// The node that decides between two voters, if there is one.
    pub arbiter: Option<String>,
    /// Beside an arbiter: the voters whose acknowledgements are needed.
    pub in_sync: Vec<String>,
    /// What clients may do that want to write.
    pub writers: Openness,
    /// What clients may do that only read.
    pub readers: Openness,
    /// An administrator wants no new clients here.
    pub draining: bool,
    /// The end of this node's log
    pub last: u64,
    /// What is known to be committed.
    pub committed: u64,
    /// What is in the data files.
    pub applied: u64,
    /// The last transaction that was applied, 16 hexadecimal digits.
    pub last_tid: String,
    /// Its time, in seconds since 1970.
    pub last_time: Option<f64>,
    /// In the order of the configuration
    pub storages: Vec<StorageStatus>,
    /// Connections
    pub clients: ClientCounts,
    /// The daemon that carries the group, and how things are with it.
    pub daemon: String,
    /// None for a node without one.
    pub journal: Option<JournalStatus>,
    /// What an operator should know, as long as it is so.
    pub warnings: Vec<String>,
    /// What was told lately, the oldest first.
    pub notices: Vec<NoticeStatus>,
    /// What is wrong now with the ways to other nodes, and who is to blame; each a line.
    pub troubles: Vec<String>,
    /// No other node and no witness is heard.
    pub isolated: bool,
    /// In the order of the configuration
    pub witnesses: Vec<WitnessStatus>,
    /// Why this node cannot go on, if it cannot.
    pub failed: Option<String>,
    /// The packs that this node has to do, or is at, if there are any.
    pub pack: Option<String>,
    /// The last pack of each storage that was ordered.
    pub packs: Vec<PackStatus>,
    /// The copy of the database that is being made, if one is.
    pub copy: Option<CopyStatus>,
    /// Commands that take long, and how far they have come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskStatus>,
    /// Since the process was started, in seconds
    pub uptime: u64,
}

/// The last pack of a storage that was ordered, as far as this node is concerned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PackStatus {
    /// Which storage
    pub storage: String,
    /// The entry that has ordered it.
    pub entry: u64,
    /// How far it is.
    pub state: PackState,
    /// Bytes of the data file before it, if it was done since the start and has dropped anything,
    pub bytes_before: Option<u64>,
    /// and behind it.
    pub bytes: Option<u64>,
    /// Why it has come to nothing.
    pub error: Option<String>,
}

/// How far a pack is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackState {
    /// It is another node's turn.
    #[default]
    Waiting,
    /// It is being done.
    Packing,
    /// It was done, perhaps long ago.
    Done,
    /// It has come to nothing.
    Failed,
}

/// A command that takes long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStatus {
    /// Its name
    pub command: String,
    /// What is being done.
    pub what: String,
    /// Bytes of it that are done
    pub done: u64,
    /// Bytes in all; zero if that is not known.
    pub total: u64,
}

/// A node, as this one knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberStatus {
    /// Its name
    pub node: String,
    /// The disk that its promises are on, 32 hexadecimal digits; empty if it is not known.
    pub disk: String,
    /// Where it is.
    pub site: String,
    /// Its priority
    pub priority: u32,
    /// What it does.
    pub role: MemberRole,
    /// It has the data and is counted.
    pub voter: bool,
    /// It is a member of the view.
    pub here: bool,
    /// Of its program; empty if it is not known.
    pub version: String,
    /// The end of its log
    pub last: Option<u64>,
    /// What it knows to be committed.
    pub committed: Option<u64>,
    /// What is in its data files.
    pub applied: Option<u64>,
    /// Entries that it has to apply until it is where the primary is
    pub lag: Option<u64>,
    /// Their bytes
    pub lag_bytes: Option<u64>,
    /// The age of the oldest of them, in seconds
    pub lag_seconds: Option<f64>,
    /// Where other nodes connect to it.
    pub address: Option<String>,
    /// Seconds since it was heard of, by another way than the daemon
    pub heard: Option<f64>,
    /// What is wrong with the ways to it, in a word: `daemon`, `path`, `hung`, `stopped`, `gone` or
    /// `stranger`.
    pub trouble: Option<String>,
    /// What it says of itself by that other way.
    pub direct: Option<DirectStatus>,
}

/// What another node says of itself, beside the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectStatus {
    /// What it does.
    pub role: MemberRole,
    /// The epoch that it has promised.
    pub epoch: String,
    /// Members of the view that it is in; zero if it is in none.
    pub members: u64,
    /// How long it took to answer, in seconds
    pub round_trip: Option<f64>,
}

/// An address that tells whether this node is cut off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WitnessStatus {
    /// Host and port
    pub address: String,
    /// Whether it answers; not known until it was asked.
    pub answers: Option<bool>,
    /// Seconds since it has answered
    pub heard: Option<f64>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Not known.
    #[default]
    Unknown,
    /// Is in office.
    Primary,
    /// Follows a primary, if there is one.
    Replica,
    /// Has claimed an epoch.
    Candidate,
    /// Has the data, and is never counted.
    Observer,
    /// Has no data, and decides between two.
    Arbiter,
}

/// Whether clients are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Openness {
    /// No.
    #[default]
    Closed,
    /// Those who read go on; new ones wait.
    Kept,
    /// Votes wait, finishes are taken; new ones wait.
    Frozen,
    /// As `Frozen`, until who has voted has finished.
    Draining,
    /// Yes.
    Open,
}

/// A storage of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageStatus {
    /// What clients call it.
    pub name: String,
    /// Its last transaction, 16 hexadecimal digits
    pub tid: String,
    /// Objects in it
    pub objects: u64,
    /// Bytes of its data file
    pub bytes: u64,
    /// Its data file
    pub path: String,
    /// Clients that are registered with it
    pub clients: u64,
    /// Votes that wait for another transaction to end, or for writers to be let in
    pub waiting_votes: u64,
    /// Transactions before this one are not there, if not all are; 16 hexadecimal digits.
    pub history_from: Option<String>,
}

/// Connections of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientCounts {
    /// All
    pub connected: u64,
    /// Those that wait for their greeting
    pub parked: u64,
}

/// The journal of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStatus {
    /// The first entry that is there
    pub first: u64,
    /// The last one
    pub last: u64,
    /// Their bytes
    pub bytes: u64,
}

/// Something that was told once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoticeStatus {
    /// When, for people
    pub when: String,
    /// What
    pub text: String,
}

/// A copy of the database that is being made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyStatus {
    /// From which node
    pub from: String,
    /// Bytes that are here
    pub done: u64,
    /// Bytes in all, as far as that is known
    pub total: u64,
}

impl Status {
    /// Whether this node is in office and takes writers.
    pub fn is_primary(&self) -> bool {
        self.role == MemberRole::Primary && self.writers == Openness::Open && !self.draining
    }

    /// Whether this node serves readers, and is not in office.
    pub fn is_replica(&self) -> bool {
        self.role != MemberRole::Primary && self.serves_readers()
    }

    /// Whether a client that comes now is served, be it for reading only.
    pub fn is_ready(&self) -> bool {
        self.is_primary() || self.serves_readers()
    }

    fn serves_readers(&self) -> bool {
        self.readers == Openness::Open && !self.draining
    }
}

impl MemberRole {
    /// As it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Candidate => "candidate",
            Self::Observer => "observer",
            Self::Arbiter => "arbiter",
        }
    }
}

impl Openness {
    /// As it is written in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Kept => "kept",
            Self::Frozen => "frozen",
            Self::Draining => "draining",
            Self::Open => "open",
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A primary of three, with something in each place.
    pub(in super::super) fn example() -> Status {
        serde_json::from_str(include_str!("../../tests/data/admin/status.json")).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::example;
    use super::*;

    #[test]
    fn the_status_in_json_stays_as_it_is() {
        let golden = include_str!("../../tests/data/admin/status.json");
        let written = serde_json::to_string_pretty(&example()).unwrap();
        assert_eq!(written + "\n", golden);
    }

    #[test]
    fn what_another_version_adds_or_leaves_out_is_no_error() {
        let status: Status = serde_json::from_str(r#"{"node": "alpha", "banana": [1]}"#).unwrap();
        let expected = Status {
            node: "alpha".to_owned(),
            ..Status::default()
        };
        assert_eq!(status, expected);
    }

    #[test]
    fn roles_are_written_as_they_are_named() {
        for role in [
            MemberRole::Unknown,
            MemberRole::Primary,
            MemberRole::Replica,
            MemberRole::Candidate,
            MemberRole::Observer,
            MemberRole::Arbiter,
        ] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
        for openness in [
            Openness::Closed,
            Openness::Kept,
            Openness::Frozen,
            Openness::Draining,
            Openness::Open,
        ] {
            assert_eq!(serde_json::to_value(openness).unwrap(), openness.name());
        }
    }

    #[test]
    fn a_load_balancer_finds_who_serves_what() {
        let of = |role, writers, readers| Status {
            role,
            writers,
            readers,
            ..Status::default()
        };
        let shown = |status: Status| [status.is_primary(), status.is_replica(), status.is_ready()];
        use MemberRole::{Observer, Primary, Replica};
        use Openness::{Closed, Frozen, Kept, Open};
        assert_eq!(shown(of(Primary, Open, Open)), [true, false, true]);
        assert_eq!(shown(of(Primary, Frozen, Kept)), [false; 3]);
        assert_eq!(shown(of(Replica, Closed, Open)), [false, true, true]);
        assert_eq!(shown(of(Observer, Closed, Open)), [false, true, true]);
        assert_eq!(shown(of(Replica, Closed, Closed)), [false; 3]);
        let draining = Status {
            draining: true,
            ..of(Primary, Open, Open)
        };
        assert_eq!(shown(draining), [false; 3]);
    }
}
