//! One entry of the log, whose digest is right by construction.

use bytes::Bytes;

use super::format::{EntryHeader, Point, digest_of};
use crate::ids::{Epoch, Seq, Tid};
use crate::limits::JOURNAL_BODY_LEN_MAX;

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
        let mut header = EntryHeader {
            kind,
            body_len: len_of(&body)?,
            seq: after.seq.next(),
            synced: Seq::ZERO,
            epoch,
            tid,
            previous: after.digest,
            digest: after.digest,
        };
        header.digest = digest_of(&header, &body);
        Some(Self { header, body })
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
