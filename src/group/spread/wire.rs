//! Spread's client protocol in bytes, as the 4.4.0 daemon speaks it, in both directions.
//!
//! A stream is a *handshake* and then *frames*, all of one form ([`ClientStream`],
//! [`DaemonStream`]). Nothing is aligned or padded beyond what is said here.
//!
//! # Handshake
//!
//! ```text
//!   client                                            daemon
//!     |-- Connect: 5 + n bytes, in one write ----------->|
//!     |<- AuthList: length, and as many bytes; or -------|
//!     |   a Reject: one negative byte                    |
//!     |-- AuthChoice: 90 bytes, in one write ----------->|
//!     |<- Accept: 1, version (3), length, name; or ------|
//!     |   a Reject                                       |
//! ```
//!
//! | [`Connect`] | bytes | |
//! |---|---|---|
//! | 0 | 3 | version of the client's library: major, minor, patch |
//! | 3 | 1 | bit 0: wants membership messages; high nibble: priority |
//! | 4 | 1 | n, 0..10 |
//! | 5 | n | user name; the daemon invents one if there is none |
//!
//! The daemon reads each of the client's two messages with one `read`, and takes what that gives
//! for the whole. Clients older than 3.16 have no choice of authentication, those older than 3.15
//! no patch version: [`Dialect`].
//!
//! # Frames
//!
//! | [`Header`] | bytes | |
//! |---|---|---|
//! | 0 | 4 | [`MessageType`], with 0x80000080 if the writer is little-endian |
//! | 4 | 32 | the sender; in membership messages of the daemon the group |
//! | 36 | 4 | number of names |
//! | 40 | 4 | [`Hint`]: the application's type of message, in an order of its own |
//! | 44 | 4 | length of the data |
//!
//! Then, only in a REJECT of the daemon's, 4 bytes that no length counts: the type of what was
//! refused. Then the names, 32 bytes each ([`Name`]), and the data. (A client may forge the bit of
//! REJECT in a message; the daemon then sends it to its user's name, without those bytes.)
//!
//! From a client a frame is a multicast (one of the six service types), JOIN, LEAVE or KILL:
//! [`Request`]. From a daemon it is what [`Delivery`] lists. The data of a membership message are a
//! [`Membership`]:
//!
//! | [`Membership`] | bytes | |
//! |---|---|---|
//! | 0 | 12 | [`GroupId`], three numbers |
//! | 12 | 4 | number of sets |
//! | 16 | 4 | where the receiver's own set begins, counted from 20 |
//! | 20 | .. | the sets: number of names (4), names (32 each) |
//!
//! The data of a transitional signal are a [`GroupId`]. Numbers in data are in the byte order of
//! their header.

mod frame;
mod handshake;
mod membership;
mod stream;

use std::fmt;

pub use frame::{
    Delivery, Frame, Header, Hint, MessageType, Request, RequestError, multicast_head,
};
pub use handshake::{
    Accept, AuthChoice, AuthList, Connect, Dialect, METHOD_IP, METHOD_NULL, Reject, Version,
};
pub use membership::{GroupId, Membership};
pub use stream::{ClientItem, ClientStream, DaemonItem, DaemonStream, Item, Pending, StreamError};

use crate::limits;

/// Bytes of a header.
pub const HEADER_LEN: usize = 48;

/// Bytes of the field of a name.
pub const NAME_LEN: usize = 32;

/// Bytes of a name that others may rely on: the field, less a NUL.
pub const NAME_LEN_MAX: usize = NAME_LEN - 1;

/// Bytes of the name that a client chooses for itself.
pub const USER_LEN_MAX: usize = 10;

/// Bytes of the name of a daemon.
pub const DAEMON_LEN_MAX: usize = 19;

/// Names that a multicast may be addressed to. The daemon takes 100 but loses messages to more
/// than 43, whose names do not fit into its first fragment.
pub const GROUPS_MAX: usize = 43;

/// Names that the daemon takes in a request, whatever it then does with them.
pub const GROUPS_TAKEN_MAX: usize = 100;

/// Names and data of a multicast in bytes. One byte more and the 4.4.0 daemon writes beyond its
/// memory; with two more it aborts, and all its clients are cut off.
pub const SENT_LEN_MAX: usize = 143_151;

/// Names and data that the daemon takes in a request, though it may crash of it.
pub const TAKEN_LEN_MAX: usize = 144_000 - HEADER_LEN;

/// A frame that we take, in bytes: what the C library allows, and what a REJECT adds.
pub const FRAME_LEN_MAX: usize = HEADER_LEN + OLD_TYPE_LEN + 144_000;

/// The port and the Unix socket's name if nobody chose another.
pub const PORT_DEFAULT: u16 = 4803;

/// Bytes in a REJECT frame that neither of its lengths counts.
const OLD_TYPE_LEN: usize = 4;

/// What says the byte order of the type, and of a hint. It reads the same in both orders.
const ENDIAN_FLAG: u32 = 0x8000_0080;

const _: () = assert!(HEADER_LEN == 4 + NAME_LEN + 4 + 4 + 4);
const _: () = assert!(HEADER_LEN + GROUPS_MAX * NAME_LEN <= 1472 - 40);
const _: () = assert!(SENT_LEN_MAX < TAKEN_LEN_MAX && TAKEN_LEN_MAX < FRAME_LEN_MAX);
const _: () = assert!(FRAME_LEN_MAX <= limits::WHOLE_FRAME_LEN_MAX);

/// The order that a writer has the bytes of its numbers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// The least significant byte first: what we write.
    Little,
    /// The most significant byte first.
    Big,
}

impl Endian {
    /// The order of a word that carries the flag: the type, or a hint. `None` if only one of the
    /// flag's bits is set, which nobody writes.
    fn of_word(word: [u8; 4]) -> Option<Self> {
        match (word[0] & 0x80 != 0, word[3] & 0x80 != 0) {
            (true, true) => Some(Self::Little),
            (false, false) => Some(Self::Big),
            _ => None,
        }
    }

    /// The flag as this order writes it.
    const fn flag(self) -> u32 {
        match self {
            Self::Little => ENDIAN_FLAG,
            Self::Big => 0,
        }
    }

    const fn to_bytes(self, number: u32) -> [u8; 4] {
        match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        }
    }

    const fn number(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }
}

impl fmt::Display for Endian {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Little => "little",
            Self::Big => "big",
        })
    }
}

/// The name of a group, or of a session (`#user#daemon`, also called its private group).
///
/// It ends at its first NUL, or fills the field. What follows the NUL may be anything, is kept, and
/// does not count. It need be no text.
#[derive(Clone, Copy)]
pub struct Name([u8; NAME_LEN]);

impl Name {
    /// With NULs behind it; `None` if it is longer than [`NAME_LEN_MAX`] or has a NUL.
    pub fn new(name: &[u8]) -> Option<Self> {
        if name.len() > NAME_LEN_MAX || name.contains(&0) {
            return None;
        }
        let mut field = [0; NAME_LEN];
        field[..name.len()].copy_from_slice(name);
        Some(Self(field))
    }

    /// The name of a session; `None` if that is too long.
    pub fn private(user: &[u8], daemon: &[u8]) -> Option<Self> {
        Self::new(&[b"#", user, b"#", daemon].concat())
    }

    /// The field as it came.
    pub const fn from_field(field: [u8; NAME_LEN]) -> Self {
        Self(field)
    }

    /// The field, with what is behind the name.
    pub const fn field(&self) -> &[u8; NAME_LEN] {
        &self.0
    }

    /// The name alone.
    pub fn as_bytes(&self) -> &[u8] {
        let len = self.0.iter().position(|byte| *byte == 0);
        &self.0[..len.unwrap_or(NAME_LEN)]
    }

    /// User and daemon, if this is the name of a session.
    pub fn parts(&self) -> Option<(&[u8], &[u8])> {
        let rest = self.as_bytes().strip_prefix(b"#")?;
        let split = rest.iter().position(|byte| *byte == b'#')?;
        let (user, daemon) = (&rest[..split], &rest[split + 1..]);
        (!user.is_empty() && !daemon.is_empty()).then_some((user, daemon))
    }

    /// Whether it may be sent as the name of a group: what the C library allows, which protects the
    /// daemon.
    pub fn is_legal_group(&self) -> bool {
        let name = self.as_bytes();
        !name.is_empty() && name.len() <= NAME_LEN_MAX && name.iter().all(is_legal)
    }
}

/// Whether a byte may stand in a name of a group or a user: `$` to `~`.
fn is_legal(byte: &u8) -> bool {
    (0x24..=0x7e).contains(byte)
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().escape_ascii().fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// What is wrong with bytes that a peer sent. The connection is lost: where the next frame begins
/// is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// In place of an answer to the handshake this byte came: neither accepted nor refused.
    Answer(i8),
    /// The name that the daemon gives us has this length.
    PrivateNameLen(u8),
    /// The daemon refused us and went on talking.
    AfterReject,
    /// The type says two byte orders at a time.
    Endian([u8; 4]),
    /// A number of names below zero.
    NegativeCount(i32),
    /// A length of data below zero.
    NegativeLen(i32),
    /// A frame longer than [`FRAME_LEN_MAX`].
    TooLong(u64),
    /// The data of a membership message of this length are none, for this reason.
    Membership(usize, &'static str),
    /// A transitional signal with data of this length.
    TransitionLen(usize),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(byte) => write!(f, "{byte} in place of an answer to the handshake"),
            Self::PrivateNameLen(len) => write!(f, "a private name of {len} bytes"),
            Self::AfterReject => f.write_str("bytes behind the refusal of the connection"),
            Self::Endian(word) => write!(f, "the type {word:02x?} has no byte order"),
            Self::NegativeCount(count) => write!(f, "a frame with {count} names"),
            Self::NegativeLen(len) => write!(f, "a frame with {len} bytes of data"),
            Self::TooLong(len) => write!(
                f,
                "a frame of {len} bytes where {FRAME_LEN_MAX} are allowed"
            ),
            Self::Membership(len, reason) => {
                write!(f, "a membership message of {len} bytes: {reason}")
            }
            Self::TransitionLen(len) => write!(f, "a transitional signal of {len} bytes"),
        }
    }
}

impl std::error::Error for WireError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_at_its_first_nul_and_the_rest_does_not_count() {
        let mut field = *Name::new(b"room").unwrap().field();
        field[7] = b'x';
        let name = Name::from_field(field);
        assert_eq!(name, Name::new(b"room").unwrap());
        assert_eq!(name.as_bytes(), b"room");
        assert_eq!(name.field()[7], b'x');
        assert_eq!(Name::from_field([b'y'; 32]).as_bytes().len(), 32);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(Name::new(&[b'a'; 31]).is_some());
        assert!(Name::new(&[b'a'; 32]).is_none());
        assert!(Name::new(b"a\0b").is_none());
        assert!(Name::private(&[b'u'; 10], &[b'd'; 19]).is_some());
        assert!(Name::private(&[b'u'; 10], &[b'd'; 20]).is_none());
    }

    #[test]
    fn a_private_name_has_a_user_and_a_daemon() {
        let parts = |name: &[u8]| {
            let name = Name::new(name)?;
            let (user, daemon) = name.parts()?;
            Some((user.to_vec(), daemon.to_vec()))
        };
        let expected = (b"alice".to_vec(), b"host#1".to_vec());
        assert_eq!(parts(b"#alice#host#1"), Some(expected));
        for name in [&b"room"[..], b"#alice", b"#alice#", b"##host", b"", b"#"] {
            assert_eq!(parts(name), None);
        }
    }

    #[test]
    fn only_visible_names_without_a_hash_are_sent_as_groups() {
        let is_legal = |name: &[u8]| Name::from_field_of(name).is_legal_group();
        assert!(is_legal(b"$~plone"));
        for name in [&b""[..], b"a b", b"#a#b", b"\x7f", b"\xc3\xa9", &[b'a'; 32]] {
            assert!(!is_legal(name));
        }
    }

    impl Name {
        fn from_field_of(name: &[u8]) -> Self {
            let mut field = [0; NAME_LEN];
            field[..name.len()].copy_from_slice(name);
            Self(field)
        }
    }
}
