//! The group-communication daemon, as the rest of the server sees it.
//!
//! A daemon tells processes on several machines who of them is there, and carries messages between
//! them. Safety rests on neither (see the replication rules): its views are a failure detector,
//! and its multicast is a pipe.
//!
//! ```text
//!   messages   channel    a pickled (method, arguments), in fragments, by lanes, few in flight
//!   bodies     Group      spread, corosync or loopback: membership, and bodies up to a length
//!   bytes      reactor    one descriptor
//! ```
//!
//! What we rely on, which every daemon gives: bodies of one sender are delivered in the order that
//! they were sent in, at most once, to us as to others; a view lists us; between two views of ours
//! everything comes from members of the first, or of the second. What we do not rely on: that a
//! body that we got was got by anybody else, that it was sent in the view it is delivered in, or
//! that two members see the same views.

pub mod channel;
pub mod corosync;
mod credit;
pub mod fragment;
pub mod loopback;
pub mod message;
pub mod spread;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

/// A member of the group: one process at one daemon. What it is called there, `#alpha#host1` or
/// `3:4711`; no two have the same name at a time, but a process that comes back may have it again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(Arc<str>);

impl MemberId {
    /// From the daemon's name for it.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The daemon's name for it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a view among those that are current somewhere. To be compared for equality only, and not
/// for ever: a group that everybody has left may begin with the same one again. Spread's group id
/// or corosync's ring id with what tells its views apart, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ViewId(pub [u8; 20]);

impl fmt::Display for ViewId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self
            .0
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(1, |last| last + 1);
        self.0[..end]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a body is for, which decides what goes first. It travels beside the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// What the channel says of itself: signs of life, and what it has had.
    Signal,
    /// Who is who, elections and recovery.
    Control,
    /// The stream of transactions.
    Commit,
    /// What may wait.
    Bulk,
}

impl Lane {
    /// All, in the order that they are served in.
    pub const ALL: [Self; 4] = [Self::Signal, Self::Control, Self::Commit, Self::Bulk];

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Commit => 2,
            Self::Bulk => 3,
            Self::Signal => 4,
        }
    }

    /// The lane of a number on the wire.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.number() == number)
    }
}

/// For whom a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// All members, the sender included.
    All,
    /// One member. The sender gets it, too, so that it sees it pass; [`Event::Passed`].
    One,
}

/// What the daemon has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The view is about to change. What comes from here on to the next view may be unknown to
    /// those who are not in that. May come twice, or not at all.
    Transitional,
    /// From here on these are the members.
    View(View),
    /// A body.
    Body(Body),
    /// A body that we sent to somebody else has gone through the daemon.
    Passed {
        /// The lane that it was sent in.
        lane: Lane,
        /// Its length
        len: usize,
    },
    /// The daemon is gone, or does not want us: we are a member of nothing, and what we sent may
    /// have got anywhere. The group connects again, and joins again, by itself.
    Lost(String),
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its name
    pub id: ViewId,
    /// All members, us included, in an order that is the same for all of them.
    pub members: Vec<MemberId>,
    /// Those who came from our last view together with us, us included; they have seen what we
    /// have seen. A hint: nothing may depend on it.
    pub together: Vec<MemberId>,
    /// What has changed, in the daemon's words, for people.
    pub cause: &'static str,
}

/// A body that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Who sent it. It need not be a member.
    pub from: MemberId,
    /// The lane that it was sent in.
    pub lane: Lane,
    /// Whether others have it, too.
    pub audience: Audience,
    /// What it is
    pub data: Bytes,
}

/// Why a body was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// We are not a member (yet). What was to be said is to be said anew in the next view.
    NotJoined,
    /// The daemon takes no more now. To be tried again after the next event or deadline.
    Busy,
    /// It is longer than [`Group::body_len_max`]; a longer one may crash a daemon.
    TooLong,
    /// That is no name of a member.
    NoSuchMember,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotJoined => "not a member of the group",
            Self::Busy => "the daemon takes no more now",
            Self::TooLong => "longer than the daemon allows",
            Self::NoSuchMember => "no such member",
        })
    }
}

impl std::error::Error for SendError {}

/// A group that we are a member of, or will be when its daemon is there. No implementation knows
/// what is said in it.
///
/// Call [`Self::poll_event`] until it has no more after any other call, and after the reactor has
/// served the descriptor.
pub trait Group {
    /// Wants to be a member from now on, whenever there is a daemon.
    fn join(&mut self, now: Instant);

    /// Wants to be no member any more. There is no event for it.
    fn leave(&mut self, now: Instant);

    /// The name that others see us under, while we have one.
    fn me(&self) -> Option<&MemberId>;

    /// Bytes of a body at most.
    fn body_len_max(&self) -> usize;

    /// Sends a body, which is `parts` one behind the other, to all members; it comes back to us as
    /// [`Event::Body`]. They are not copied where that can be avoided.
    fn send_all(&mut self, lane: Lane, parts: &[Bytes]) -> Result<(), SendError>;

    /// Sends a body to one member. It comes back as [`Event::Passed`]; or as [`Event::Body`] if
    /// that is us. If there is no such member any more, nobody gets it.
    fn send_one(&mut self, to: &MemberId, lane: Lane, parts: &[Bytes]) -> Result<(), SendError>;

    /// What has happened.
    fn poll_event(&mut self) -> Option<Event>;

    /// When to call [`Self::on_deadline`], whatever else happens.
    fn deadline(&self) -> Option<Instant>;

    /// The deadline has come, or may have.
    fn on_deadline(&mut self, now: Instant);

    /// Gives the daemon up, which does not do what it should, and begins anew;
    /// [`Event::Lost`] follows.
    fn reset(&mut self, why: &str, now: Instant);

    /// The daemon and what is known of it, in one line for people.
    fn describe(&self) -> String;
}
