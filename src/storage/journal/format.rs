//! What stands in a segment: headers, and the chain of digests. Encodes and decodes only; knows no
//! files and no [`Journal`](super::Journal).
//!
//! ```text
//! 0            512                                   a multiple of 8
//! +------------+--------------+--------------+---+--------------+-- --+
//! | header of  | header of    | body         | 0 | header of    | ... |
//! | segment    | entry (160)  |              |   | entry        |     |
//! +------------+--------------+--------------+---+--------------+-- --+
//! ```
//!
//! All numbers are big-endian. The manual has the fields: [`journal`](crate::manual::journal).

use bytes::Bytes;

use crate::cursor::Cursor;
use crate::entry::{EPOCH_LEN, decode_epoch, encode_epoch, sha256};
use crate::ids::{Digest, DiskId, HistoryId, Seq, Tid};
use crate::limits::JOURNAL_BODY_LEN_MAX;

pub use crate::entry::{EntryHeader, Hasher, Point, digest_of};

/// What a segment begins with. The last byte is the version of the format.
pub const SEGMENT_MAGIC: [u8; 8] = *b"SbyJrnl\x01";

/// What the header of an entry begins with.
pub const ENTRY_MAGIC: [u8; 4] = *b"SbyE";

/// Bytes of a segment's header: a sector of its own, which no later write touches.
pub const SEGMENT_HEADER_LEN: usize = 512;

/// Bytes of an entry's header.
pub const ENTRY_HEADER_LEN: usize = 160;

/// Entries begin at multiples of this.
pub const ALIGNMENT: u64 = 8;

/// Bytes of a segment's header in front of its checksum.
const SEGMENT_FIELDS_LEN: usize = 8 + 16 + 16 + 8 + EPOCH_LEN + Digest::LEN;

/// Bytes of an entry's header in front of its checksum.
const ENTRY_FIELDS_LEN: usize = ENTRY_HEADER_LEN - Digest::LEN;

const _: () = assert!(SEGMENT_FIELDS_LEN + Digest::LEN <= SEGMENT_HEADER_LEN);
const _: () = assert!(ENTRY_FIELDS_LEN == 4 + 1 + 3 + 8 + 8 + 8 + EPOCH_LEN + 8 + 2 * Digest::LEN);
const _: () = assert!((ENTRY_HEADER_LEN as u64).is_multiple_of(ALIGNMENT));
const _: () = assert!((SEGMENT_HEADER_LEN as u64).is_multiple_of(ALIGNMENT));

/// What one segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The lineage that its entries belong to.
    pub history: HistoryId,
    /// The disk that it was written on.
    pub disk: DiskId,
    /// What its first entry follows.
    pub before: Point,
}

impl SegmentHeader {
    /// Number of its first entry.
    pub const fn first(&self) -> Seq {
        self.before.seq.next()
    }

    /// The sector that a segment begins with.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut fields = Vec::with_capacity(SEGMENT_HEADER_LEN);
        fields.extend_from_slice(&SEGMENT_MAGIC);
        fields.extend_from_slice(&self.history.0);
        fields.extend_from_slice(&self.disk.0);
        fields.extend_from_slice(&self.first().0.to_be_bytes());
        fields.extend_from_slice(&encode_epoch(self.before.epoch));
        fields.extend_from_slice(&self.before.digest.0);
        let check = sha256(&[&fields]);
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        bytes[..SEGMENT_FIELDS_LEN].copy_from_slice(&fields);
        bytes[SEGMENT_FIELDS_LEN..][..Digest::LEN].copy_from_slice(&check.0);
        bytes
    }

    /// `None` if this is not such a sector, as a whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let header = Self::decode_fields(bytes)?;
        // Which also checks the checksum, and the zeros.
        (bytes.get(..SEGMENT_HEADER_LEN)? == header.encode()).then_some(header)
    }

    fn decode_fields(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.array::<8>().ok()? != SEGMENT_MAGIC {
            return None;
        }
        let history = HistoryId(cursor.array().ok()?);
        let disk = DiskId(cursor.array().ok()?);
        let seq = Seq(cursor.u64_be().ok()?.checked_sub(1)?);
        let epoch = decode_epoch(&mut cursor)?;
        let digest = Digest(cursor.array().ok()?);
        Some(Self {
            history,
            disk,
            before: Point { epoch, seq, digest },
        })
    }
}

/// Where an entry stands. What its header is checked with, so that bytes that only look like a
/// header, in a body or at another place, are never taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The disk of its segment.
    pub disk: DiskId,
    /// The first entry of its segment.
    pub first: Seq,
    /// Its position in the segment, in bytes.
    pub pos: u64,
}

impl EntryHeader {
    /// The bytes of it at this place.
    pub fn encode(&self, place: &Place) -> [u8; ENTRY_HEADER_LEN] {
        let mut fields = Vec::with_capacity(ENTRY_FIELDS_LEN);
        fields.extend_from_slice(&ENTRY_MAGIC);
        fields.extend_from_slice(&[self.kind, 0, 0, 0]);
        fields.extend_from_slice(&self.body_len.to_be_bytes());
        fields.extend_from_slice(&self.seq.0.to_be_bytes());
        fields.extend_from_slice(&self.synced.0.to_be_bytes());
        fields.extend_from_slice(&encode_epoch(self.epoch));
        fields.extend_from_slice(&self.tid.to_bytes());
        fields.extend_from_slice(&self.previous.0);
        fields.extend_from_slice(&self.digest.0);
        let check = check_of(place, &fields);
        let mut bytes = [0; ENTRY_HEADER_LEN];
        bytes[..ENTRY_FIELDS_LEN].copy_from_slice(&fields);
        bytes[ENTRY_FIELDS_LEN..].copy_from_slice(&check.0);
        bytes
    }

    /// `None` if this is not the header of an entry at this place.
    pub fn decode(bytes: &[u8], place: &Place) -> Option<Self> {
        let header = Self::decode_unchecked(bytes)?;
        (bytes.get(..ENTRY_HEADER_LEN)? == header.encode(place)).then_some(header)
    }

    /// As [`Self::decode`], where the place is unknown: fields that make sense are believed, and
    /// what they say has to be held against the digest.
    pub fn decode_unchecked(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes.get(..ENTRY_HEADER_LEN)?);
        if cursor.array::<4>().ok()? != ENTRY_MAGIC {
            return None;
        }
        let [kind, 0, 0, 0] = cursor.array().ok()? else {
            return None;
        };
        let header = Self {
            kind,
            body_len: cursor.u64_be().ok()?,
            seq: Seq(cursor.u64_be().ok()?),
            synced: Seq(cursor.u64_be().ok()?),
            epoch: decode_epoch(&mut cursor)?,
            tid: Tid::from_bytes(cursor.array().ok()?),
            previous: Digest(cursor.array().ok()?),
            digest: Digest(cursor.array().ok()?),
        };
        let makes_sense = header.body_len <= JOURNAL_BODY_LEN_MAX && header.synced < header.seq;
        makes_sense.then_some(header)
    }

    /// Bytes from the start of the header to the start of the next one.
    pub const fn len_in_segment(&self) -> u64 {
        (ENTRY_HEADER_LEN as u64 + self.body_len).next_multiple_of(ALIGNMENT)
    }
}

fn check_of(place: &Place, fields: &[u8]) -> Digest {
    let (first, pos) = (place.first.0.to_be_bytes(), place.pos.to_be_bytes());
    sha256(&[&place.disk.0, &first, &pos, fields])
}

/// What a [`Decoder`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The header of the segment, at its start.
    Segment(SegmentHeader),
    /// The header of an entry; its body follows.
    Entry {
        /// Where it stands.
        pos: u64,
        /// What it says.
        header: EntryHeader,
        /// It was held against its place. Not so in a segment whose own header is damaged.
        is_checked: bool,
    },
    /// The next piece of the body.
    Body(Bytes),
    /// The body has ended.
    End {
        /// Header and body are those of the digest.
        is_whole: bool,
    },
    /// Nothing was ever written here, or it is the padding behind an entry.
    Zeros {
        /// From here on.
        pos: u64,
        /// So many bytes.
        len: u64,
    },
    /// What cannot be understood.
    Garbage {
        /// From here on.
        pos: u64,
        /// So many bytes.
        len: u64,
    },
}

/// Takes a segment apart that is fed to it from its start, in pieces, whatever it holds: for tools.
/// It keeps no more in memory than it was fed and has not given out yet.
#[derive(Debug, Default)]
pub struct Decoder {
    buf: Vec<u8>,
    /// `buf[at..]` is what is left of it.
    at: usize,
    /// Position of `buf[at]`.
    pos: u64,
    place: Option<(DiskId, Seq)>,
    /// The entry that it is in: bytes left of its body, the digest so far and as it should be.
    body: Option<(u64, Hasher, Digest)>,
    /// Bytes in front of `pos` that are nothing, and whether they are zeros.
    run: Option<(u64, bool)>,
    is_ended: bool,
    /// It begins with an entry.
    is_headless: bool,
}

impl Decoder {
    /// At the start of a segment.
    pub fn new() -> Self {
        Self::default()
    }

    /// At an entry of some segment, with the rest of that: what is kept of a torn end.
    pub fn within_segment() -> Self {
        Self {
            is_headless: true,
            ..Self::default()
        }
    }

    /// The bytes that are next.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buf.drain(..self.at);
        self.at = 0;
        self.buf.extend_from_slice(bytes);
    }

    /// There are no more bytes: what is left is given out as it is.
    pub const fn end(&mut self) {
        self.is_ended = true;
    }

    /// What was found next; `None` if more bytes are needed, or there are no more.
    pub fn poll(&mut self) -> Option<Item> {
        loop {
            if self.body.is_some() {
                return self.poll_body();
            }
            let left = self.buf.len() - self.at;
            let needed = match self.is_at_segment() {
                true => SEGMENT_HEADER_LEN,
                false => ENTRY_HEADER_LEN,
            };
            if left < needed && !self.is_ended || left == 0 {
                return if self.is_ended { self.take_run() } else { None };
            }
            let header = self.header_here();
            if header.is_none() {
                if let Some(item) = self.skip(left.min(8)) {
                    return Some(item);
                }
                continue;
            }
            // What was in front of it is told first.
            return self.take_run().or_else(|| self.take_header(header));
        }
    }

    const fn is_at_segment(&self) -> bool {
        self.pos == 0 && !self.is_headless
    }

    fn header_here(&self) -> Option<Item> {
        let rest = &self.buf[self.at..];
        let pos = self.pos;
        if self.is_at_segment() {
            return SegmentHeader::decode(rest).map(Item::Segment);
        }
        let header = match self.place {
            Some((disk, first)) => EntryHeader::decode(rest, &Place { disk, first, pos }),
            None => EntryHeader::decode_unchecked(rest),
        };
        header.map(|header| Item::Entry {
            pos,
            header,
            is_checked: self.place.is_some(),
        })
    }

    fn take_header(&mut self, found: Option<Item>) -> Option<Item> {
        match &found {
            Some(Item::Segment(header)) => {
                self.place = Some((header.disk, header.first()));
                self.advance(SEGMENT_HEADER_LEN);
            }
            Some(Item::Entry { header, .. }) => {
                self.body = Some((header.body_len, header.hasher(), header.digest));
                self.advance(ENTRY_HEADER_LEN);
            }
            _ => {}
        }
        found
    }

    fn poll_body(&mut self) -> Option<Item> {
        let (left, hasher, _) = self.body.as_mut()?;
        let rest = &self.buf[self.at..];
        if *left > 0 && !rest.is_empty() {
            let len = rest.len().min(usize::try_from(*left).unwrap_or(rest.len()));
            let piece = Bytes::copy_from_slice(&rest[..len]);
            hasher.update(&piece);
            *left -= len as u64;
            self.advance(len);
            return Some(Item::Body(piece));
        }
        if *left > 0 && !self.is_ended {
            return None;
        }
        let (left, hasher, digest) = self.body.take()?;
        let is_whole = left == 0 && hasher.finish() == digest;
        Some(Item::End { is_whole })
    }

    /// Passes over what is no header; what was found if that ends a run of the other kind. Entries
    /// begin at multiples of eight, so that is where it stops.
    fn skip(&mut self, len: usize) -> Option<Item> {
        let to_alignment = usize::try_from(ALIGNMENT - self.pos % ALIGNMENT).unwrap_or(1);
        let len = len.min(to_alignment);
        let is_zero = self.buf[self.at..self.at + len]
            .iter()
            .all(|byte| *byte == 0);
        let ended = match self.run {
            Some((_, was_zero)) if was_zero != is_zero => self.take_run(),
            _ => None,
        };
        let (run_len, _) = self.run.unwrap_or((0, is_zero));
        self.run = Some((run_len + len as u64, is_zero));
        self.advance(len);
        ended
    }

    fn take_run(&mut self) -> Option<Item> {
        let (len, is_zero) = self.run.take()?;
        let pos = self.pos - len;
        Some(match is_zero {
            true => Item::Zeros { pos, len },
            false => Item::Garbage { pos, len },
        })
    }

    const fn advance(&mut self, len: usize) {
        self.at += len;
        self.pos += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, NodeId};

    const NODE: &str = "n1";

    fn segment_header() -> SegmentHeader {
        let node = NodeId::new(NODE).unwrap();
        SegmentHeader {
            history: HistoryId([0xaa; 16]),
            disk: DiskId([0xbb; 16]),
            before: Point {
                epoch: Epoch { counter: 2, node },
                seq: Seq(6),
                digest: Digest([0xcc; 32]),
            },
        }
    }

    /// Entries behind such a header, as they stand in a segment.
    fn segment(bodies: &[&[u8]]) -> (Vec<u8>, Vec<EntryHeader>) {
        let segment = segment_header();
        let mut bytes = segment.encode().to_vec();
        let (mut last, mut headers) = (segment.before, Vec::new());
        for body in bodies {
            let mut header = EntryHeader {
                kind: 4,
                body_len: body.len() as u64,
                seq: last.seq.next(),
                synced: Seq(5),
                epoch: last.epoch,
                tid: Tid(0x0102_0304_0506_0708),
                previous: last.digest,
                digest: last.digest,
            };
            header.digest = digest_of(&header, &[Bytes::copy_from_slice(body)]);
            bytes.extend_from_slice(&header.encode(&place(bytes.len())));
            bytes.extend_from_slice(body);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            last = header.point();
            headers.push(header);
        }
        (bytes, headers)
    }

    fn place(pos: usize) -> Place {
        Place {
            disk: segment_header().disk,
            first: segment_header().first(),
            pos: pos as u64,
        }
    }

    fn decode(bytes: &[u8], piece_len: usize) -> Vec<Item> {
        let mut decoder = Decoder::new();
        let mut items: Vec<Item> = Vec::new();
        for piece in bytes.chunks(piece_len) {
            decoder.feed(piece);
            items.extend(std::iter::from_fn(|| decoder.poll()));
        }
        decoder.end();
        items.extend(std::iter::from_fn(|| decoder.poll()));
        // However a body came, it is one.
        let mut joined: Vec<Item> = Vec::new();
        for item in items {
            match (joined.last_mut(), item) {
                (Some(Item::Body(all)), Item::Body(piece)) => {
                    *all = [&all[..], &piece].concat().into();
                }
                (_, item) => joined.push(item),
            }
        }
        joined
    }

    #[test]
    fn fields_are_where_the_manual_says() {
        let (bytes, _) = segment(&[b"body"]);
        assert_eq!(&bytes[..8], b"SbyJrnl\x01");
        assert_eq!(bytes[8..24], [0xaa; 16]);
        assert_eq!(bytes[24..40], [0xbb; 16]);
        assert_eq!(bytes[40..48], 7_u64.to_be_bytes());
        assert_eq!(bytes[48..56], 2_u64.to_be_bytes());
        assert_eq!(&bytes[56..72], b"n1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytes[72..104], [0xcc; 32]);
        assert_eq!(bytes[104..136], sha256(&[&bytes[..104]]).0);
        assert_eq!(bytes[136..512], [0; 376]);
        let entry = &bytes[512..];
        assert_eq!(&entry[..8], b"SbyE\x04\0\0\0");
        assert_eq!(entry[8..16], 4_u64.to_be_bytes());
        assert_eq!(entry[16..24], 7_u64.to_be_bytes());
        assert_eq!(entry[24..32], 5_u64.to_be_bytes());
        assert_eq!(entry[32..56], bytes[48..72]);
        assert_eq!(entry[56..64], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(entry[64..96], [0xcc; 32]);
        let body = sha256(&[b"body"]).0;
        let digested = [&entry[64..96], &[4], &entry[8..24], &entry[32..64], &body];
        assert_eq!(entry[96..128], sha256(&digested).0);
        let check = sha256(&[&bytes[24..48], &512_u64.to_be_bytes(), &entry[..128]]);
        assert_eq!(entry[128..160], check.0);
        assert_eq!(&entry[160..], b"body\0\0\0\0");
    }

    #[test]
    fn a_header_is_one_only_as_it_was_written_and_where_it_was_written() {
        let (bytes, headers) = segment(&[b"body"]);
        let entry = &bytes[512..];
        assert_eq!(EntryHeader::decode(entry, &place(512)), Some(headers[0]));
        assert_eq!(EntryHeader::decode(entry, &place(520)), None);
        for change in [
            |place: &mut Place| place.disk.0[0] ^= 1,
            |place: &mut Place| place.first = Seq(8),
        ] {
            let mut elsewhere = place(512);
            change(&mut elsewhere);
            assert_eq!(EntryHeader::decode(entry, &elsewhere), None);
        }
        for bit in 0..8 * ENTRY_HEADER_LEN {
            let mut bad = entry.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(EntryHeader::decode(&bad, &place(512)), None, "{bit}");
            assert_eq!(EntryHeader::decode(&entry[..bit / 8], &place(512)), None);
        }
        assert_eq!(SegmentHeader::decode(&bytes), Some(segment_header()));
        for bit in 0..8 * SEGMENT_HEADER_LEN {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None, "{bit}");
            assert_eq!(SegmentHeader::decode(&bytes[..bit / 8]), None);
        }
    }

    #[test]
    fn a_segment_is_taken_apart_however_it_comes() {
        let (bytes, headers) = segment(&[b"body", b"", b"12345678"]);
        let entry = |at: usize, pos| {
            let header = headers[at];
            let is_checked = true;
            Item::Entry {
                pos,
                header,
                is_checked,
            }
        };
        let end = || Item::End { is_whole: true };
        let expected = [
            Item::Segment(segment_header()),
            entry(0, 512),
            Item::Body(Bytes::from_static(b"body")),
            end(),
            Item::Zeros { pos: 676, len: 4 },
            entry(1, 680),
            end(),
            entry(2, 840),
            Item::Body(Bytes::from_static(b"12345678")),
            end(),
        ];
        for piece_len in [1, 7, 100, 512, 10_000] {
            assert_eq!(decode(&bytes, piece_len), expected, "{piece_len}");
        }
    }

    #[test]
    fn what_is_damaged_hides_nothing_behind_it() {
        let (bytes, headers) = segment(&[b"body", b"more"]);
        let mut bad = bytes.clone();
        bad[512] = 0;
        let items = decode(&bad, 64);
        let is_second =
            |item: &Item| matches!(item, Item::Entry { header, .. } if *header == headers[1]);
        assert!(items.iter().any(is_second), "{items:?}");
        assert!(
            items
                .iter()
                .any(|item| matches!(item, Item::Garbage { .. }))
        );
        // A wrong body is told.
        let mut bad = bytes.clone();
        bad[512 + ENTRY_HEADER_LEN] ^= 1;
        assert!(decode(&bad, 64).contains(&Item::End { is_whole: false }));
        let cut = decode(&bytes[..512 + ENTRY_HEADER_LEN + 2], 64);
        assert_eq!(cut.last(), Some(&Item::End { is_whole: false }));
        // Without the header of the segment entries are found all the same.
        let mut bad = bytes;
        bad[0] ^= 1;
        let items = decode(&bad, 64);
        let unchecked = items.iter().filter(|item| {
            matches!(
                item,
                Item::Entry {
                    is_checked: false,
                    ..
                }
            )
        });
        assert_eq!(unchecked.count(), 2);
        assert!(!items.contains(&Item::End { is_whole: false }));
    }

    #[test]
    fn histories_begin_with_different_digests() {
        let [one, other] = [1, 2].map(|byte| Point::start(HistoryId([byte; 16])));
        assert_ne!(one.digest, other.digest);
        assert_eq!(one.seq, Seq::ZERO);
    }
}
