//! A group at corosync: closed process groups (CPG), through its library.
//!
//! ```text
//!   session      Group: joining, sending, events; when to try again
//!   membership   two streams of changes, from CPG and from the quorum service, to one of views
//!   envelope     what stands in front of a body: lane, number, addressee
//!   Library      the calls of libcpg and libquorum that are made; `ffi` makes them
//! ```
//!
//! corosync is spoken to through shared memory, by a library that is loaded when the group is
//! joined: neither building nor starting the server needs it. All but `ffi` is safe code that knows
//! a [`Library`] and can be tested with one that is made up.
//!
//! # For the reactor
//!
//! * [`Session::descriptor`] is one descriptor that stays the same as long as the session lives,
//!   whatever becomes of the daemon: an epoll of its own, to which the library's descriptors are
//!   added and from which they are removed. Readable, to be registered once; edge-triggered is
//!   enough, because [`Session::on_ready`] says whether there is more.
//! * Connecting and leaving are calls that wait for the daemon, and a stopped daemon never answers.
//!   So the session does not make them: [`Session::take_job`] hands them out, to be run by another
//!   thread, and [`Session::on_done`] takes the result. No more than one is out at a time.
//! * Nothing else waits. Taking events does not. Sending puts a body into shared memory; what could
//!   wait there does so from about 275 bodies on that the daemon has not taken, and no more than
//!   [`CPG_UNCONFIRMED_MAX`](crate::limits::CPG_UNCONFIRMED_MAX) are ever under way.
//! * `cpg_dispatch` and `quorum_dispatch` have a buffer of 1 MiB on the stack, so a session is for
//!   a thread whose stack is 2 MiB or more: the main thread, where the reactor runs, has 8 MiB. The
//!   jobs need no more than any thread has.

pub mod envelope;
mod ffi;
mod membership;
mod session;
#[cfg(test)]
mod testing;

use std::fmt;
use std::os::fd::RawFd;

use bytes::Bytes;

pub use self::ffi::System;
pub use self::session::{Done, Job, Session};
use super::MemberId;

/// A process at a node: what corosync knows a member by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The node's number in `corosync.conf`; never 0.
    pub node: u32,
    /// The process at that node, as it calls itself.
    pub pid: u32,
}

impl Address {
    /// The name that others see it under.
    pub fn member_id(self) -> MemberId {
        MemberId::new(&self.to_string())
    }

    /// The address of a name, if that is one.
    pub fn from_member_id(id: &MemberId) -> Option<Self> {
        let (node, pid) = id.as_str().split_once(':')?;
        let address = Self {
            node: node.parse().ok()?,
            pid: pid.parse().ok()?,
        };
        // One name for each: no sign, no zeros in front.
        (address.to_string() == id.as_str()).then_some(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.pid)
    }
}

/// Names a ring: the nodes that pass the token among them since the last of them came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingId {
    /// Grows with each ring.
    pub seq: u64,
    /// The node that made it.
    pub node: u32,
}

impl fmt::Display for RingId {
    /// As corosync's own tools write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.node, self.seq)
    }
}

/// Why a process came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It joined.
    Join,
    /// It left.
    Leave,
    /// Its node is gone.
    NodeDown,
    /// Its node has come.
    NodeUp,
    /// It ended without leaving.
    ProcessDown,
    /// None of those that we know.
    Unknown(u32),
}

/// What CPG has to say. The order is that in which it happened, and the same for all members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpgEvent {
    /// A body.
    Body(Incoming),
    /// Something without an envelope of ours.
    Garbage {
        /// Who sent it
        from: Address,
        /// Its length
        len: usize,
    },
    /// Processes came or went. If nodes did, the ring follows.
    Members {
        /// All that are in the group now.
        members: Vec<Address>,
        /// Who went, and why.
        left: Vec<(Address, Reason)>,
        /// Who came, and why.
        joined: Vec<(Address, Reason)>,
    },
    /// There is another ring, and all about who came and went with it has been said.
    Ring {
        /// Its name
        ring: RingId,
        /// The nodes in it.
        nodes: Vec<u32>,
    },
}

/// A body as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Who sent it
    pub from: Address,
    /// What stands in front of it.
    pub envelope: envelope::Envelope,
    /// Its length, without the envelope.
    pub len: usize,
    /// What it is, if it is for us; else nothing, so that it need not be copied.
    pub data: Bytes,
}

/// What the quorum service has to say. Its order tells nothing about that of [`CpgEvent`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuorumEvent {
    /// There is another ring.
    Nodes {
        /// Its name
        ring: RingId,
        /// The nodes in it.
        nodes: Vec<u32>,
    },
    /// Whether the nodes of a ring are a majority, by corosync's configuration. For a ring that
    /// was followed by another one at once this may not come at all.
    Quorate {
        /// The ring
        ring: RingId,
        /// Whether they are.
        is_quorate: bool,
    },
}

/// What is known of the quorum service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// It tells of each ring whether it is quorate.
    Tracked,
    /// The daemon has no quorum provider.
    NoProvider,
    /// It cannot be asked; why.
    Unknown(String),
}

/// Loads the library, and connects. One for a session.
pub trait Library: fmt::Debug + Send + Sync {
    /// Connects to the daemon, and joins the group. Waits for the daemon.
    fn open(&self, group: &str) -> Result<Opened, OpenError>;

    /// Readable when a connection has something to say. The same for ever.
    fn descriptor(&self) -> Option<RawFd>;
}

/// A connection that has just been made. The join is asked for, and will be an event.
#[derive(Debug)]
pub struct Opened {
    /// The connection
    pub connection: Box<dyn Connection>,
    /// Who we are.
    pub me: Address,
    /// Bytes that the daemon takes as a whole, envelope included.
    pub len_max: usize,
    /// Whether there will be [`QuorumEvent`]s.
    pub quorum: Quorum,
}

/// A connection to the daemon. After a [`Failure`] it only fails. Dropping it ends it as the end of
/// the process would, and does not wait.
pub trait Connection: fmt::Debug + Send {
    /// The next event of the quorum service, if there is one now.
    fn poll_quorum(&mut self) -> Result<Option<QuorumEvent>, Failure>;

    /// The next event of CPG, if there is one now.
    fn poll_cpg(&mut self) -> Result<Option<CpgEvent>, Failure>;

    /// Sends what `parts` are one behind the other, all of it or nothing. `false` if the daemon
    /// takes no more now.
    fn multicast(&mut self, parts: &[&[u8]]) -> Result<bool, Failure>;

    /// Takes no more part in [`Library::descriptor`].
    fn mute(&mut self);

    /// Leaves the group, so that others see that it was meant. Waits for the daemon.
    fn leave(self: Box<Self>);
}

/// A call that failed: the daemon is gone, most likely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The function of the library
    pub call: &'static str,
    /// What it returned, a `cs_error_t`.
    pub code: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The names are those of corosync's header; operators find them in its documents.
        let name = match self.code {
            2 => "CS_ERR_LIBRARY: the daemon is not there",
            5 => "CS_ERR_TIMEOUT",
            6 => "CS_ERR_TRY_AGAIN: the daemon is busy",
            8 => "CS_ERR_NO_MEMORY",
            9 => "CS_ERR_BAD_HANDLE",
            11 => {
                "CS_ERR_ACCESS: the daemon lets in root and those named in /etc/corosync/uidgid.d"
            }
            14 => "CS_ERR_EXIST: this process is in the group already",
            18 => "CS_ERR_NO_RESOURCES",
            19 => "CS_ERR_NOT_SUPPORTED",
            100 => "CS_ERR_SECURITY",
            code => return write!(f, "{}: error {code} of corosync", self.call),
        };
        write!(f, "{}: {name}", self.call)
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The library is not there.
    NotInstalled {
        /// Its file
        library: &'static str,
        /// Debian's package with it
        package: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// The library lacks a function: it is too old, or something else.
    WrongLibrary {
        /// Its file
        library: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// A call failed.
    Failed(Failure),
    /// The library's descriptors cannot be watched.
    Descriptor(String),
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled {
                library,
                package,
                reason,
            } => write!(
                f,
                "{library} is not installed (Debian: {package}; {reason})"
            ),
            Self::WrongLibrary { library, reason } => {
                write!(f, "{library} is not what it should be ({reason})")
            }
            Self::Failed(failure) => failure.fmt(f),
            Self::Descriptor(reason) => write!(f, "its descriptors cannot be watched ({reason})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_name() {
        let address = Address { node: 3, pid: 4711 };
        assert_eq!(address.member_id().as_str(), "3:4711");
        let of = |name: &str| Address::from_member_id(&MemberId::new(name));
        assert_eq!(of("3:4711"), Some(address));
        for name in [
            "",
            "3",
            "3:",
            ":1",
            "+3:4711",
            "03:4711",
            "3:4711 ",
            "3:4294967296",
            "a:b",
        ] {
            assert_eq!(of(name), None, "{name:?}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let missing = OpenError::NotInstalled {
            library: "libcpg.so.4",
            package: "libcpg4",
            reason: "no such file".to_owned(),
        };
        let text = "libcpg.so.4 is not installed (Debian: libcpg4; no such file)";
        assert_eq!(missing.to_string(), text);
        let failure = |code| {
            Failure {
                call: "cpg_join",
                code,
            }
            .to_string()
        };
        assert!(failure(11).contains("uidgid.d"));
        assert_eq!(failure(77), "cpg_join: error 77 of corosync");
    }
}
