//! What is stored: records that ZODB can read and that say what they are.
//!
//! A record is two pickles, class and state, of a `PersistentMapping`, of which every ZODB has the
//! class. There are two kinds:
//!
//! ```text
//!   object   {'data': {'zeobench': b'<oid: 8> <counter: 8> <filling> <digest: 8>'}}
//!   node     {'data': {'oids': b'<oid: 8> ...', 'refs': [<reference to it>, ...]}}
//! ```
//!
//! An object tells whether it is the one that was asked for, which of its versions it is, and
//! whether it is whole. Nodes keep the objects reachable, so that a pack does not take them for
//! garbage; the oids stand in them once more, so that finding them takes no reading of pickles.

use bytes::Bytes;

use standby::ids::Oid;

/// What an object says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Whose state it is.
    pub oid: Oid,
    /// How often it was written, from 1. Each writer counts on from what it has read.
    pub counter: u64,
}

/// Why a record is not one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordError {
    /// It begins or ends otherwise.
    Foreign,
    /// Its digest is that of other bytes.
    Digest,
}

const CLASS: &[u8] = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.";
/// `{'data': {'zeobench': b'...` with the length to be filled in.
const OBJECT_HEAD: &[u8] = b"\x80\x03}X\x04\0\0\0data}X\x08\0\0\0zeobenchB";
const OBJECT_TAIL: &[u8] = b"ss.";
const NODE_HEAD: &[u8] = b"\x80\x03}X\x04\0\0\0data}(X\x04\0\0\0oidsB";
const NODE_REFS: &[u8] = b"X\x04\0\0\0refs](";
const NODE_TAIL: &[u8] = b"eus.";

/// Oid, counter and digest.
const PAYLOAD_LEN_MIN: usize = 24;

/// Bytes of an object beside its payload.
const OBJECT_OVERHEAD: usize = CLASS.len() + OBJECT_HEAD.len() + 4 + OBJECT_TAIL.len();

/// The shortest object.
pub(crate) const OBJECT_LEN_MIN: usize = OBJECT_OVERHEAD + PAYLOAD_LEN_MIN;

/// An object of `len` bytes, or of [`OBJECT_LEN_MIN`] if that is more.
pub(crate) fn object(stamp: Stamp, len: usize) -> Bytes {
    let payload_len = len.max(OBJECT_LEN_MIN) - OBJECT_OVERHEAD;
    let mut record = Vec::with_capacity(OBJECT_OVERHEAD + payload_len);
    record.extend_from_slice(CLASS);
    record.extend_from_slice(OBJECT_HEAD);
    record.extend_from_slice(&pickle_len(payload_len));
    let start = record.len();
    record.extend_from_slice(&stamp.oid.to_bytes());
    record.extend_from_slice(&stamp.counter.to_be_bytes());
    let end = start + payload_len - DIGEST_LEN;
    let mut word = stamp.oid.0 ^ stamp.counter.rotate_left(32);
    while record.len() < end {
        // Something that compresses as badly as the figures of a worst case should.
        word = word
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let left = (end - record.len()).min(8);
        record.extend_from_slice(&word.to_be_bytes()[..left]);
    }
    let digest = digest(&record[start..]);
    record.extend_from_slice(&digest.to_be_bytes());
    record.extend_from_slice(OBJECT_TAIL);
    Bytes::from(record)
}

/// What an object says of itself, if it is whole.
pub(crate) fn read_object(record: &[u8]) -> Result<Stamp, RecordError> {
    let payload = payload(record).ok_or(RecordError::Foreign)?;
    let (content, expected) = payload
        .split_last_chunk::<DIGEST_LEN>()
        .ok_or(RecordError::Foreign)?;
    if digest(content) != u64::from_be_bytes(*expected) {
        return Err(RecordError::Digest);
    }
    let (oid, rest) = content.split_first_chunk().ok_or(RecordError::Foreign)?;
    let counter = rest.first_chunk().ok_or(RecordError::Foreign)?;
    Ok(Stamp {
        oid: Oid::from_bytes(*oid),
        counter: u64::from_be_bytes(*counter),
    })
}

fn payload(record: &[u8]) -> Option<&[u8]> {
    let rest = record.strip_prefix(CLASS)?.strip_prefix(OBJECT_HEAD)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let payload = rest.strip_suffix(OBJECT_TAIL)?;
    (payload.len() == u32::from_le_bytes(*len) as usize && payload.len() >= PAYLOAD_LEN_MIN)
        .then_some(payload)
}

/// A record that refers to `oids`.
pub(crate) fn node(oids: &[Oid]) -> Bytes {
    let mut record = [CLASS, NODE_HEAD].concat();
    record.extend_from_slice(&pickle_len(8 * oids.len()));
    for oid in oids {
        record.extend_from_slice(&oid.to_bytes());
    }
    record.extend_from_slice(NODE_REFS);
    for (n, oid) in oids.iter().enumerate() {
        record.extend_from_slice(b"C\x08");
        record.extend_from_slice(&oid.to_bytes());
        // The class is written once, and fetched from the memo after that.
        let class: &[u8] = match n {
            0 => b"cpersistent.mapping\nPersistentMapping\nq\x01",
            _ => b"h\x01",
        };
        record.extend_from_slice(class);
        // TUPLE2, BINPERSID
        record.extend_from_slice(b"\x86Q");
    }
    record.extend_from_slice(NODE_TAIL);
    Bytes::from(record)
}

/// What a node refers to, `None` if it is none.
pub(crate) fn read_node(record: &[u8]) -> Option<Vec<Oid>> {
    let rest = record.strip_prefix(CLASS)?.strip_prefix(NODE_HEAD)?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let oids = rest.get(..u32::from_le_bytes(*len) as usize)?;
    let (oids, rest) = oids.as_chunks::<8>();
    rest.is_empty()
        .then(|| oids.iter().map(|oid| Oid::from_bytes(*oid)).collect())
}

/// The key in the root object under which the catalogue is.
const KEY: &[u8] = b"zeobench";

/// The root object of a new database, with the catalogue in it.
pub(crate) fn root(catalogue: Oid) -> Bytes {
    let empty = [CLASS, b"\x80\x03}X\x04\0\0\0data}s."].concat();
    with_catalogue(&empty, catalogue).expect("our own root has the form that we know")
}

/// The root object of some database with the catalogue added, `None` if the root is of another
/// class than ZODB gives it.
///
/// The state of a `PersistentMapping` is `{'data': {...}}`, a dict of one item, so that its pickle
/// ends in SETITEM and STOP: before these there is the inner dict on the stack, to which the new
/// item is added. A second item of this key wins over the first.
pub(crate) fn with_catalogue(root: &[u8], catalogue: Oid) -> Option<Bytes> {
    let state_pos = root
        .windows(4)
        .position(|window| matches!(window, [b'.', 0x80, 0..=5, b'}']))?
        + 1;
    let class = &root[..state_pos];
    let names: [&[u8]; 2] = [b"persistent.mapping", b"PersistentMapping"];
    if !names.iter().all(|name| contains(class, name)) {
        return None;
    }
    // The outer dict may have been memoised, and is not opened by a MARK, as for several items.
    let state = &root[state_pos + 3..];
    let state = match state {
        [b'q', _, rest @ ..] | [b'r', _, _, _, _, rest @ ..] | rest => rest,
    };
    let data: [&[u8]; 2] = [b"X\x04\0\0\0data", b"U\x04data"];
    if !data.iter().any(|data| state.starts_with(data)) {
        return None;
    }
    let before = root.strip_suffix(b"s.")?;
    let item = [
        &b"X\x08\0\0\0"[..],
        KEY,
        b"C\x08",
        &catalogue.to_bytes(),
        b"cpersistent.mapping\nPersistentMapping\n\x86Qs",
    ]
    .concat();
    Some(Bytes::from([before, &item, b"s."].concat()))
}

/// The catalogue that a root object names.
pub(crate) fn catalogue_of(root: &[u8]) -> Option<Oid> {
    let pos = root.windows(KEY.len()).rposition(|window| window == KEY)? + KEY.len();
    // Python writes memo opcodes between key and oid.
    let rest = &root[pos..];
    let near = &rest[..rest.len().min(20)];
    let pos = near
        .windows(2)
        .position(|window| matches!(window, [b'C' | b'U', 8]))?;
    Oid::from_slice(rest.get(pos + 2..pos + 10)?)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn pickle_len(len: usize) -> [u8; 4] {
    u32::try_from(len)
        .expect("sizes are checked where they come in")
        .to_le_bytes()
}

const DIGEST_LEN: usize = 8;

/// Tells damage and mixed-up bytes, not malice; four lanes, so that it costs less than the copy of
/// the bytes out of the socket.
fn digest(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes = [1_u64, 2, 3, 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = (*lane ^ u64::from_le_bytes(*word))
                .wrapping_mul(FACTOR)
                .rotate_left(29);
        }
    }
    let mut sum = bytes.len() as u64;
    for lane in lanes {
        sum = (sum ^ lane).wrapping_mul(FACTOR).rotate_left(29);
    }
    for byte in rest {
        sum = (sum ^ u64::from(*byte))
            .wrapping_mul(FACTOR)
            .rotate_left(29);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        oid: Oid(0x0102),
        counter: 3,
    };

    #[test]
    fn an_object_has_the_length_that_was_asked_for_and_says_what_it_is() {
        for len in [0, OBJECT_LEN_MIN, 300, 1024, 70_000] {
            let record = object(STAMP, len);
            assert_eq!(record.len(), len.max(OBJECT_LEN_MIN));
            assert_eq!(read_object(&record), Ok(STAMP));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let record = object(STAMP, 300);
        for pos in 0..record.len() {
            let mut changed = record.to_vec();
            changed[pos] ^= 0x10;
            assert!(read_object(&changed).is_err(), "byte {pos}");
        }
        assert!(read_object(&record[1..]).is_err());
        assert!(read_object(b"").is_err());
    }

    #[test]
    fn a_node_gives_its_oids_back() {
        for count in [0, 1, 2, 1000] {
            let oids: Vec<Oid> = (0..count).map(|n| Oid(n * 3)).collect();
            assert_eq!(read_node(&node(&oids)), Some(oids));
        }
        assert_eq!(read_node(&object(STAMP, 300)), None);
    }

    #[test]
    fn a_root_keeps_what_it_has() {
        // What ZODB writes for a new database, and for one with an item.
        let new = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\
            \x80\x03}q\x01X\x04\0\0\0dataq\x02}q\x03s.";
        let used = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\
            \x80\x03}q\x01X\x04\0\0\0dataq\x02}q\x03X\x01\0\0\0aq\x04K\x01ss.";
        for root in [&new[..], used] {
            let changed = with_catalogue(root, Oid(77)).unwrap();
            assert!(changed.starts_with(&root[..root.len() - 2]));
            assert_eq!(catalogue_of(&changed), Some(Oid(77)));
            let again = with_catalogue(&changed, Oid(78)).unwrap();
            assert_eq!(catalogue_of(&again), Some(Oid(78)));
            assert_eq!(catalogue_of(root), None);
        }
        assert_eq!(catalogue_of(&root(Oid(5))), Some(Oid(5)));
    }

    #[test]
    fn a_root_of_another_form_is_left_alone() {
        for root in [
            &b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\
                \x80\x03}q\x01(X\x04\0\0\0dataq\x02}q\x03X\x01\0\0\0xK\x01u."[..],
            b"\x80\x03cBTrees.OOBTree\nOOBTree\nq\x00.\x80\x03N.",
            b"",
        ] {
            assert_eq!(with_catalogue(root, Oid(77)), None);
        }
    }
}
