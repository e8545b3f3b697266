//! Entries of the log of a replicated storage: what one node proposes and all keep. Each tells by
//! its digest all that is before it.

use std::fmt;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use crate::cursor::Cursor;
use crate::ids::{Digest, Epoch, HistoryId, NodeId, Seq, Tid};
use crate::limits::JOURNAL_BODY_LEN_MAX;

/// Bytes of an epoch: counter, node, and zeros.
pub(crate) const EPOCH_LEN: usize = 8 + NodeId::LEN_MAX + 6;

/// A place in the log: an entry, and by its digest all that is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Epoch of the entry.
    pub epoch: Epoch,
    /// Its number.
    pub seq: Seq,
    /// Its digest.
    pub digest: Digest,
}

impl Point {
    /// Before the first entry of a history. Its digest is that of the history's id, so that no
    /// entry of one history ever continues another one.
    pub fn start(history: HistoryId) -> Self {
        Self {
            epoch: Epoch::ZERO,
            seq: Seq::ZERO,
            digest: sha256(&[b"standby history ", &history.0]),
        }
    }
}

/// What stands in front of the body of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// What the body is; opaque here.
    pub kind: u8,
    /// Bytes of the body.
    pub body_len: u64,
    /// Its number in the log.
    pub seq: Seq,
    /// All up to this one was on stable storage before this one was written. It is about this disk,
    /// and so no part of the digest.
    pub synced: Seq,
    /// The epoch in which it was proposed.
    pub epoch: Epoch,
    /// Of the transaction; zero if it is none.
    pub tid: Tid,
    /// Digest of the entry before.
    pub previous: Digest,
    /// See [`digest_of`].
    pub digest: Digest,
}

impl EntryHeader {
    /// Where the log is with this entry.
    pub const fn point(&self) -> Point {
        Point {
            epoch: self.epoch,
            seq: self.seq,
            digest: self.digest,
        }
    }

    /// A digest in the making, of this entry: the body follows, in pieces.
    pub fn hasher(&self) -> Hasher {
        Hasher {
            header: *self,
            body: Context::new(&SHA256),
        }
    }

    fn digest_with(&self, body: &Digest) -> Digest {
        let fields = [
            &self.previous.0[..],
            &[self.kind],
            &self.body_len.to_be_bytes(),
            &self.seq.0.to_be_bytes(),
            &encode_epoch(self.epoch),
            &self.tid.to_bytes(),
            &body.0,
        ];
        sha256(&fields)
    }
}

/// SHA-256 of the digest before, of the header's fields that are the same on all nodes, and of the
/// SHA-256 of the body. That of the body by itself, since it is there long before the rest is known.
pub fn digest_of(header: &EntryHeader, body: &[Bytes]) -> Digest {
    let mut hasher = header.hasher();
    body.iter().for_each(|piece| hasher.update(piece));
    hasher.finish()
}

/// See [`EntryHeader::hasher`].
#[derive(Clone)]
pub struct Hasher {
    header: EntryHeader,
    body: Context,
}

impl Hasher {
    /// The piece that is next.
    pub fn update(&mut self, piece: &[u8]) {
        self.body.update(piece);
    }

    /// The digest of it all.
    pub fn finish(self) -> Digest {
        self.header.digest_with(&to_digest(self.body))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

/// What an entry carries: bytes in pieces, and their digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    pieces: Vec<Bytes>,
    len: u64,
    digest: Digest,
}

impl Default for Body {
    /// Nothing.
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            len: 0,
            digest: sha256(&[]),
        }
    }
}

impl Body {
    /// Reads it all once. `None` if it is longer than [`JOURNAL_BODY_LEN_MAX`].
    pub fn new(pieces: Vec<Bytes>) -> Option<Self> {
        let len = len_of(&pieces)?;
        let mut context = Context::new(&SHA256);
        pieces.iter().for_each(|piece| context.update(piece));
        Some(Self {
            pieces,
            len,
            digest: to_digest(context),
        })
    }

    /// Its length in bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its bytes, in pieces.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }
}

/// SHA-256 of pieces.
pub(crate) fn sha256(pieces: &[&[u8]]) -> Digest {
    let mut context = Context::new(&SHA256);
    pieces.iter().for_each(|piece| context.update(piece));
    to_digest(context)
}

fn to_digest(context: Context) -> Digest {
    let mut bytes = [0; Digest::LEN];
    bytes.copy_from_slice(context.finish().as_ref());
    Digest(bytes)
}

pub(crate) fn encode_epoch(epoch: Epoch) -> [u8; EPOCH_LEN] {
    let mut bytes = [0; EPOCH_LEN];
    bytes[..8].copy_from_slice(&epoch.counter.to_be_bytes());
    bytes[8..8 + NodeId::LEN_MAX].copy_from_slice(&epoch.node.to_bytes());
    bytes
}

pub(crate) fn decode_epoch(cursor: &mut Cursor<'_>) -> Option<Epoch> {
    let counter = cursor.u64_be().ok()?;
    let node = NodeId::from_bytes(cursor.array().ok()?)?;
    let zeros = cursor.array::<6>().ok()?;
    (zeros == [0; 6]).then_some(Epoch { counter, node })
}

/// An entry of the log. Its body is what it was made of, in pieces, and is never copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `synced` is zero: that is for the journal to say.
    header: EntryHeader,
    body: Vec<Bytes>,
}

impl Entry {
    /// The entry that follows `after`: a primary proposes it. `None` if the body is longer than
    /// [`JOURNAL_BODY_LEN_MAX`].
    pub fn new(after: &Point, epoch: Epoch, kind: u8, tid: Tid, body: Vec<Bytes>) -> Option<Self> {
        Body::new(body).map(|body| Self::with_body(after, epoch, kind, tid, body))
    }

    /// As [`Self::new`], without reading the body.
    pub fn with_body(after: &Point, epoch: Epoch, kind: u8, tid: Tid, body: Body) -> Self {
        let mut header = EntryHeader {
            kind,
            body_len: body.len,
            seq: after.seq.next(),
            synced: Seq::ZERO,
            epoch,
            tid,
            previous: after.digest,
            digest: after.digest,
        };
        header.digest = header.digest_with(&body.digest);
        Self {
            header,
            body: body.pieces,
        }
    }

    /// An entry as it came from another node, or from a file. `None` if header and body are not
    /// those of its digest, or the body is too long.
    pub fn from_parts(header: EntryHeader, body: Vec<Bytes>) -> Option<Self> {
        let is_whole =
            len_of(&body)? == header.body_len && digest_of(&header, &body) == header.digest;
        let header = EntryHeader {
            synced: Seq::ZERO,
            ..header
        };
        is_whole.then_some(Self { header, body })
    }

    /// What it says of itself.
    pub const fn header(&self) -> &EntryHeader {
        &self.header
    }

    /// Its body.
    pub fn body(&self) -> &[Bytes] {
        &self.body
    }

    /// Where the log is with it.
    pub const fn point(&self) -> Point {
        self.header.point()
    }
}

fn len_of(body: &[Bytes]) -> Option<u64> {
    let len = body.iter().map(|piece| piece.len() as u64).sum();
    (len <= JOURNAL_BODY_LEN_MAX).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{HistoryId, NodeId};

    #[test]
    fn an_entry_is_taken_from_others_only_with_the_digest_of_all_that_it_says() {
        let after = Point::start(HistoryId([1; 16]));
        let node = NodeId::new("n1").unwrap();
        let epoch = Epoch { counter: 3, node };
        let body = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
        let entry = Entry::new(&after, epoch, 5, Tid(9), body).unwrap();
        let header = *entry.header();
        assert_eq!(header.previous, after.digest);
        assert_eq!(header.seq, Seq(1));
        // How the body is cut is of no importance.
        let body = || vec![Bytes::from_static(b"abc")];
        let same = Entry::from_parts(header, body()).unwrap();
        assert_eq!(same.header(), &header);
        let changes: [fn(&mut EntryHeader); 7] = [
            |header| header.kind += 1,
            |header| header.seq = Seq(2),
            |header| header.epoch.counter += 1,
            |header| header.epoch.node = NodeId::NONE,
            |header| header.tid = Tid(8),
            |header| header.previous.0[31] ^= 1,
            |header| header.digest.0[0] ^= 1,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut changed = header;
            change(&mut changed);
            assert_eq!(Entry::from_parts(changed, body()), None, "{number}");
        }
        for other in [&b"abd"[..], b"ab", b"abcd"] {
            let body = vec![Bytes::from_static(other)];
            assert_eq!(Entry::from_parts(header, body), None);
        }
    }

    #[test]
    fn a_body_that_is_too_long_makes_no_entry() {
        let after = Point::start(HistoryId([1; 16]));
        // The same megabyte again and again.
        let piece = Bytes::from(vec![1; 1 << 20]);
        let count = usize::try_from(JOURNAL_BODY_LEN_MAX >> 20).unwrap() + 1;
        assert_eq!(
            Entry::new(&after, Epoch::ZERO, 0, Tid::ZERO, vec![piece; count]),
            None
        );
    }
}
