//! What one node gets of another directly, and not through the group: entries of the log, blobs,
//! copies of the database. Sans-I/O: bytes and the time in; bytes, events and the next deadline
//! out.
//!
//! Who connects asks, and who is connected to answers; a node that wants something of the other in
//! turn connects to it. So what is long only ever comes to who has asked for it.
//!
//! # The stream
//!
//! All numbers are big-endian. Each side begins with a preface and a hello:
//!
//! ```text
//!  0                          8           10
//!  │ "stdbpeer"               │ version u16│                                    preface
//!
//!  0        4       5         13                                                end
//!  │ len u32│ kind u8│ id u64 │ payload                          │ tag, 16 bytes │  frame
//! ```
//!
//! `len` counts what is behind it. Frames behind the handshake have a tag if there is a key.
//!
//! ```text
//!  who connects                           who is connected to
//!  preface, hello           ──►
//!                           ◄──           preface, hello; with a key: proof
//!  with a key: proof        ──►
//!  requests                 ──►
//!                           ◄──           answers, in any order; alive
//! ```
//!
//! | kind | | payload |
//! |---|---|---|
//! | 1 | hello | seal u8 (0 none, 1 key), node 10 bytes, length u8 and group, 32 random bytes |
//! | 2 | proof | 32 bytes: see below |
//! | 3 | goodbye | why u8: see [`Reason`]; instead of what would be next in the handshake |
//! | 4 | alive | nothing: who answers is still at it |
//! | 16 | fetch | a pickle: [`replica::message::Fetch`](Fetch) |
//! | 17 | blob | tid u64, oid u64, length u64, SHA-256, pos u64, len u32, length u8 and storage |
//! | 18 | snapshot | newest only u8, at least seq u64 |
//! | 19 | read | snapshot u64, file u32, pos u64, len u32 |
//! | 20 | list blobs | snapshot u64, storage u32, count u32; behind a place: oid u64, tid u64 |
//! | 21 | read blob | snapshot u64, storage u32, oid u64, tid u64, pos u64, len u32 |
//! | 22 | end snapshot | snapshot u64 |
//! | 23 | digest | snapshot u64, storage u32, from tid u64, to tid u64, length u64 |
//! | 24 | ping | nothing |
//! | 25 | digest of a blob | snapshot u64, storage u32, oid u64, tid u64, pos u64, length u64 |
//! | 26 | beat | role u8, epoch u64 and 10 bytes, members of the view u16; there may be more |
//! | 64 | fetched | a pickle: [`replica::message::Fetched`](Fetched) |
//! | 65 | piece | bytes; fewer than asked for where the file ends |
//! | 66 | snapshot | its manifest |
//! | 67 | blobs | for each: oid u64, tid u64, length u64 |
//! | 68 | done | nothing |
//! | 69 | refused | why u16, text |
//! | 70 | digest | count u64, next tid u64, SHA-256 of the objects, SHA-256 of the content |
//! | 71 | digest of a blob | length u64, SHA-256 |
//! | 72 | beat | as 26: of who answers |
//!
//! Numbers of requests rise. An answer has the number of its request. A request of a kind that is
//! not known is refused and does no harm: a later version may know it.
//!
//! # The key
//!
//! `proof` is HMAC-SHA-256 of a name for the side ("connects" or "answers") and of all bytes that
//! both sides have sent up to their hellos, those of who connects first. The tag of a frame is the
//! first 16 bytes of the HMAC-SHA-256 of the frame's number in its direction (u64, from zero) and
//! of the frame. The keys are made of the group's: `HMAC(key, "standby peers 1")` for proofs, and
//! with that one `HMAC(.., "frames of who connects")` or `HMAC(.., "frames of who answers")`, each
//! over both hellos, too, for the frames of that side.
//!
//! So nobody without the key gets or supplies anything, and nothing can be changed, repeated, left
//! out or sent back on its way. It can be read on its way.

mod blame;
mod codec;
mod frame;
mod handshake;
mod paths;
mod session;
#[cfg(test)]
mod tests;
mod throttle;

use std::fmt;

use bytes::Bytes;

use crate::ids::{Digest, NodeId, Oid, Seq, Tid};
use crate::replica::codec::CodecError;
use crate::replica::message::{Fetch, Fetched};
use crate::replica::settings::StorageName;
pub use crate::storage::digest::RangeDigest;
pub use crate::storage::transfer::BlobAt;
use crate::storage::transfer::BlobName;

pub use self::blame::Witnessed;
pub use self::handshake::{Key, Nonce, Options, Reason};
pub use self::paths::{Beat, Failure, FailureKind, Heard, Paths, Shown};
pub use self::session::{Event, Session};
pub use self::throttle::Throttle;

/// What a node asks another one for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Entries of the log. Answered by [`Answer::Fetched`].
    Fetch(Fetch),
    /// A piece of a blob's file that belongs to an entry. Answered by [`Answer::Piece`].
    Blob {
        /// The name of its storage: 1 to 255 bytes.
        storage: StorageName,
        /// The tid of the entry.
        tid: Tid,
        /// What is in it, and of which object.
        name: BlobName,
        /// From here on
        pos: u64,
        /// So many bytes, [`PEER_PIECE_LEN_MAX`](crate::limits::PEER_PIECE_LEN_MAX) at most.
        len: u32,
    },
    /// The other shall keep the state of its database for a copy. Answered by [`Answer::Snapshot`].
    Snapshot {
        /// Only the newest revision of each object.
        newest_only: bool,
        /// It must have applied this.
        at_least: Seq,
    },
    /// A piece of a file of the copy. Answered by [`Answer::Piece`].
    Read {
        /// Which copy, as its manifest says.
        snapshot: u64,
        /// Number of the file in the manifest.
        file: u32,
        /// From here on
        pos: u64,
        /// So many bytes, as of [`Request::Blob`].
        len: u32,
    },
    /// The next blobs of the copy. Answered by [`Answer::Blobs`].
    ListBlobs {
        /// Which copy
        snapshot: u64,
        /// Number of the storage in the manifest.
        storage: u32,
        /// Those behind this one; all, if there is none.
        after: Option<(Oid, Tid)>,
        /// So many, [`PEER_BLOBS_MAX`](crate::limits::PEER_BLOBS_MAX) at most.
        count: u32,
    },
    /// A piece of a blob of the copy. Answered by [`Answer::Piece`].
    ReadBlob {
        /// Which copy
        snapshot: u64,
        /// Number of the storage in the manifest.
        storage: u32,
        /// Which blob
        oid: Oid,
        /// Which revision
        tid: Tid,
        /// From here on
        pos: u64,
        /// So many bytes, as of [`Request::Blob`].
        len: u32,
    },
    /// What of the transactions in a copy, as far as they fit into a length, is the same as
    /// elsewhere. Answered by [`Answer::Digest`].
    Digest {
        /// Which copy
        snapshot: u64,
        /// Number of the storage in the manifest.
        storage: u32,
        /// The first tid
        from: Tid,
        /// Behind the last one
        to: Tid,
        /// So many bytes of them, or one transaction.
        len: u64,
    },
    /// The same of a piece of a blob. Answered by [`Answer::BlobDigest`].
    DigestBlob {
        /// Which copy
        snapshot: u64,
        /// Number of the storage in the manifest.
        storage: u32,
        /// Which blob
        oid: Oid,
        /// Which revision
        tid: Tid,
        /// From here on
        pos: u64,
        /// So many bytes
        len: u64,
    },
    /// The copy is done, or given up. Answered by [`Answer::Done`].
    EndSnapshot {
        /// Which copy
        snapshot: u64,
    },
    /// Whether the other is there. The session answers it by itself, by [`Answer::Done`].
    Ping,
    /// The same, with how things are with who asks. Answered by [`Answer::Beat`].
    Beat(Beat),
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Entries, or why there are none.
    Fetched(Fetched),
    /// Bytes of a file: fewer than asked for, or none, where it ends.
    Piece(Bytes),
    /// The manifest of a copy, which is not looked at here;
    /// [`PEER_MANIFEST_LEN_MAX`](crate::limits::PEER_MANIFEST_LEN_MAX) bytes at most.
    Snapshot(Bytes),
    /// Blobs, in order; none if there are no more.
    Blobs(Vec<BlobAt>),
    /// What the transactions of a range are.
    Digest(RangeDigest),
    /// How many bytes of a blob there are, and what they are.
    BlobDigest(u64, Digest),
    /// It is done.
    Done,
    /// How things are with who answers.
    Beat(Beat),
    /// It cannot be done.
    Refused(Refusal),
}

/// Why a request cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What to do about it.
    pub kind: RefusalKind,
    /// For people; cut at [`PEER_REFUSAL_LEN_MAX`](crate::limits::PEER_REFUSAL_LEN_MAX) bytes.
    pub text: String,
}

/// What kind of refusal it is: numbers of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusalKind {
    /// It failed, and may do so again.
    Failed = 0,
    /// There is no such blob, or no such copy any more.
    NotThere = 1,
    /// Not now: to be tried again later.
    Busy = 2,
    /// Never: this node does not do that.
    Unsupported = 3,
}

impl Refusal {
    /// For a reason.
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { kind, text }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerError {
    /// Who is there does not begin as a node does.
    NoPeer,
    /// It speaks TLS, and we do not.
    Encrypted,
    /// It speaks another version of the protocol.
    Version(u16),
    /// It has a key, and we have none.
    Keyed,
    /// It has no key, and we have one.
    Plain,
    /// It is of another group.
    Group(String),
    /// It has our name.
    Namesake(NodeId),
    /// Its key is another one, or it has none and pretends to.
    WrongKey,
    /// It has refused us.
    Refused(Reason),
    /// A frame is too long.
    TooLong {
        /// What it is
        kind: u8,
        /// Its bytes
        len: usize,
        /// What it may have
        len_max: usize,
    },
    /// A frame is too short to be one.
    TooShort(usize),
    /// A frame that does not belong there.
    Kind(u8),
    /// A frame is not as it was sent, or is not the next one.
    Digest,
    /// A part of a frame makes no sense.
    Malformed {
        /// What it should be.
        of: &'static str,
        /// What is wrong
        why: &'static str,
    },
    /// What a replica says makes no sense.
    Codec(CodecError),
    /// It asks in the name of another node.
    Sender(NodeId),
    /// The number of a request does not rise, or a hello has one.
    Number(u64),
    /// An answer that nobody has asked for.
    Unasked(u64),
    /// It did not say who it is in time.
    Late,
    /// Nothing came for too long, though something was asked for.
    Silent,
    /// It takes nothing of what it has asked for.
    Stuck,
    /// Nothing was asked for.
    Idle,
}

impl From<CodecError> for PeerError {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeer => f.write_str("it is no node of a group"),
            Self::Encrypted => f.write_str("it speaks TLS, and <standby> has no <ssl> here"),
            Self::Version(found) => write!(f, "version {found} of the protocol is unknown"),
            Self::Keyed => f.write_str("it has a key, and there is no key-file here"),
            Self::Plain => f.write_str("it has no key, and there is a key-file here"),
            Self::Group(name) => write!(f, "it is of another group ({name:?})"),
            Self::Namesake(node) => write!(f, "it is called as this node is, {node}"),
            Self::WrongKey => f.write_str("its key is another one"),
            Self::Refused(reason) => write!(f, "it refuses us: {reason}"),
            Self::TooLong { kind, len, len_max } => write!(
                f,
                "a frame of kind {kind} of {len} bytes, where {len_max} are allowed"
            ),
            Self::TooShort(len) => write!(f, "a frame of {len} bytes"),
            Self::Kind(kind) => write!(f, "a frame of kind {kind}, which does not belong there"),
            Self::Digest => f.write_str("a frame is not as it was sent"),
            Self::Malformed { of, why } => write!(f, "{of}: {why}"),
            Self::Codec(error) => write!(f, "{error}"),
            Self::Sender(node) => write!(f, "it asks as if it were {node}"),
            Self::Number(id) => write!(f, "the number {id} does not belong there"),
            Self::Unasked(id) => write!(f, "an answer to {id}, which was not asked"),
            Self::Late => f.write_str("it does not say in time who it is"),
            Self::Silent => f.write_str("it does not answer any more"),
            Self::Stuck => f.write_str("it takes nothing of what it asks for"),
            Self::Idle => f.write_str("nothing was asked for"),
        }
    }
}

impl std::error::Error for PeerError {}
