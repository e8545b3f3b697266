//! Where each object's current record is.
//!
//! [`Index`] holds it in memory, about six bytes an object where oids are dense, as ZODB hands them
//! out. Oids that lie far apart take some 140 bytes each. Its file (`Data.fs.index`) is a matter
//! of `file`.

mod change;
mod file;

use std::collections::BTreeMap;
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder};

pub(super) use self::change::Change;
pub use self::file::UnusableIndex;
use super::format::POS_END;
use crate::ids::Oid;

/// Oids of one chunk, as a power of two.
const CHUNK_BITS: u32 = 10;
const CHUNK_LEN: usize = 1 << CHUNK_BITS;

/// Entries from which on a chunk is dense. The sparse form is 8 bytes an entry and moves half of
/// them at an insertion; the dense one is 6 KB.
const SPARSE_LEN_MAX: usize = CHUNK_LEN / 2;

/// A position in six bytes, big-endian. All zero is "none": no record stands there.
type Pos48 = [u8; 6];
const NO_POS: Pos48 = [0; 6];

/// Oid to position of the object's current record, ordered by oid.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// By the leading bits of the oid. Shared with snapshots until one of them changes.
    chunks: BTreeMap<u64, Chunk>,
    /// Entries of all chunks.
    len: usize,
}

/// No chunk of an index is empty.
#[derive(Clone, Debug)]
enum Chunk {
    /// Sorted by the trailing bits of the oid.
    Sparse(Arc<Vec<(u16, Pos48)>>),
    Dense(Arc<[Pos48; CHUNK_LEN]>),
}

impl Index {
    /// Without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of objects, deleted ones included, as in ZODB.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no object.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Position of the object's current record.
    pub fn get(&self, oid: Oid) -> Option<u64> {
        let (key, slot) = split(oid);
        let pos = self.chunks.get(&key)?.get(slot)?;
        Some(unpack(pos))
    }

    /// Enters or moves an object; its position so far.
    ///
    /// # Panics
    ///
    /// If `pos` is zero or not below [`POS_END`]. Opening refuses longer files, and so must
    /// whoever makes them grow.
    pub fn insert(&mut self, oid: Oid, pos: u64) -> Option<u64> {
        Self::check(pos);
        let (key, slot) = split(oid);
        let chunk = self.chunks.entry(key).or_insert_with(Chunk::new);
        let before = chunk.insert(slot, pack(pos));
        if before.is_none() {
            self.len += 1;
        }
        before.map(unpack)
    }

    fn check(pos: u64) {
        assert!(0 < pos && pos < POS_END, "position {pos} of a record");
    }

    /// Forgets an object; its position so far.
    pub fn remove(&mut self, oid: Oid) -> Option<u64> {
        let (key, slot) = split(oid);
        let chunk = self.chunks.get_mut(&key)?;
        chunk.get(slot)?;
        let before = chunk.remove(slot);
        self.len -= 1;
        if chunk.entries(0).next().is_none() {
            self.chunks.remove(&key);
        }
        before.map(unpack)
    }

    /// The largest oid.
    pub fn max_oid(&self) -> Option<Oid> {
        let (key, chunk) = self.chunks.last_key_value()?;
        let (slot, _) = chunk.entries(0).last()?;
        Some(join(*key, slot))
    }

    /// The first oid that is not below `from`.
    pub fn next_oid(&self, from: Oid) -> Option<Oid> {
        let (key, slot) = split(from);
        if let Some((slot, _)) = self.chunks.get(&key).and_then(|c| c.entries(slot).next()) {
            return Some(join(key, slot));
        }
        let (key, chunk) = self.chunks.range(key.checked_add(1)?..).next()?;
        let (slot, _) = chunk.entries(0).next()?;
        Some(join(*key, slot))
    }

    /// All objects with their positions, by oid.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, u64)> {
        self.chunks.iter().flat_map(|(key, chunk)| {
            chunk
                .entries(0)
                .map(|(slot, pos)| (join(*key, slot), unpack(pos)))
        })
    }

    /// The index as it is now, to be read elsewhere while this one goes on changing. Costs a
    /// pointer for each chunk, and later a copy of each chunk that changes.
    pub fn snapshot(&self) -> Self {
        self.clone()
    }

    /// Enters a whole chunk that was not there: entries for its slots, sorted, each of which occurs
    /// once.
    fn insert_chunk(&mut self, key: u64, slots: &[[u8; 2]], positions: &[Pos48]) {
        debug_assert!(slots.len() == positions.len() && !slots.is_empty());
        self.len += slots.len();
        let in_chunk = |slot: &[u8; 2]| split(Oid(u64::from(u16::from_be_bytes(*slot)))).1;
        let chunk = if let Ok(all) = <&[Pos48; CHUNK_LEN]>::try_from(positions) {
            Chunk::Dense(Arc::new(*all))
        } else {
            let entries = slots.iter().map(in_chunk).zip(positions.iter().copied());
            match slots.len() {
                ..=SPARSE_LEN_MAX => Chunk::Sparse(Arc::new(entries.collect())),
                _ => Chunk::dense(entries),
            }
        };
        self.chunks.insert(key, chunk);
    }
}

impl Chunk {
    /// Whether it is not only equal, but the very same.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sparse(one), Self::Sparse(other)) => Arc::ptr_eq(one, other),
            (Self::Dense(one), Self::Dense(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    fn new() -> Self {
        Self::Sparse(Arc::default())
    }

    fn get(&self, slot: u16) -> Option<Pos48> {
        match self {
            Self::Sparse(entries) => {
                let at = entries.binary_search_by_key(&slot, |entry| entry.0).ok()?;
                Some(entries[at].1)
            }
            Self::Dense(positions) => {
                Some(positions[usize::from(slot)]).filter(|pos| *pos != NO_POS)
            }
        }
    }

    fn insert(&mut self, slot: u16, pos: Pos48) -> Option<Pos48> {
        if let Self::Sparse(entries) = self {
            match entries.binary_search_by_key(&slot, |entry| entry.0) {
                Ok(at) => {
                    let entry = &mut Arc::make_mut(entries)[at];
                    return Some(std::mem::replace(&mut entry.1, pos));
                }
                Err(at) if entries.len() < SPARSE_LEN_MAX => {
                    Arc::make_mut(entries).insert(at, (slot, pos));
                    return None;
                }
                Err(_) => *self = Self::dense(entries.iter().copied()),
            }
        }
        let Self::Dense(positions) = self else {
            unreachable!("a full sparse chunk was just made dense");
        };
        let at = &mut Arc::make_mut(positions)[usize::from(slot)];
        let before = std::mem::replace(at, pos);
        Some(before).filter(|pos| *pos != NO_POS)
    }

    fn remove(&mut self, slot: u16) -> Option<Pos48> {
        match self {
            Self::Sparse(entries) => {
                let at = entries.binary_search_by_key(&slot, |entry| entry.0).ok()?;
                Some(Arc::make_mut(entries).remove(at).1)
            }
            Self::Dense(positions) => {
                let at = &mut Arc::make_mut(positions)[usize::from(slot)];
                let before = std::mem::replace(at, NO_POS);
                Some(before).filter(|pos| *pos != NO_POS)
            }
        }
    }

    fn dense(entries: impl Iterator<Item = (u16, Pos48)>) -> Self {
        let mut positions = [NO_POS; CHUNK_LEN];
        for (slot, pos) in entries {
            positions[usize::from(slot)] = pos;
        }
        Self::Dense(Arc::new(positions))
    }

    /// The entries from `slot` on, in order.
    fn entries(&self, slot: u16) -> Entries<'_> {
        match self {
            Self::Sparse(entries) => {
                let from = entries.partition_point(|entry| entry.0 < slot);
                Entries::Sparse(entries[from..].iter())
            }
            Self::Dense(positions) => Entries::Dense { slot, positions },
        }
    }
}

/// Entries of a chunk, in order.
enum Entries<'a> {
    Sparse(std::slice::Iter<'a, (u16, Pos48)>),
    Dense {
        /// The next one, if there is anything there.
        slot: u16,
        positions: &'a [Pos48; CHUNK_LEN],
    },
}

impl Iterator for Entries<'_> {
    type Item = (u16, Pos48);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sparse(entries) => entries.next().copied(),
            Self::Dense { slot, positions } => loop {
                let here = (*slot, *positions.get(usize::from(*slot))?);
                *slot += 1;
                if here.1 != NO_POS {
                    return Some(here);
                }
            },
        }
    }
}

/// Key of the chunk, and place in it.
const fn split(oid: Oid) -> (u64, u16) {
    (oid.0 >> CHUNK_BITS, (oid.0 % CHUNK_LEN as u64) as u16)
}

const fn join(key: u64, slot: u16) -> Oid {
    Oid(key << CHUNK_BITS | slot as u64)
}

fn pack(pos: u64) -> Pos48 {
    let mut packed = NO_POS;
    BigEndian::write_u48(&mut packed, pos);
    packed
}

fn unpack(pos: Pos48) -> u64 {
    BigEndian::read_u48(&pos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dense, sparse and lonely oids.
    pub(super) fn mixed() -> (Index, BTreeMap<Oid, u64>) {
        // The first ones out of order, as in a file.
        let oids = (0..3000)
            .map(|n| n * 7919 % 3000)
            .chain((10_000..90_000).step_by(7))
            .chain([1 << 40, u64::MAX - 1, u64::MAX]);
        let (mut index, mut model) = (Index::new(), BTreeMap::new());
        for (n, oid) in oids.enumerate() {
            let pos = 1000 + n as u64 * 1_000_003;
            assert_eq!(index.insert(Oid(oid), pos), model.insert(Oid(oid), pos));
        }
        (index, model)
    }

    #[test]
    fn an_index_behaves_like_a_map() {
        let (mut index, mut model) = mixed();
        for oid in [Oid(5), Oid(10_000), Oid(u64::MAX)] {
            assert_eq!(index.insert(oid, 77), model.insert(oid, 77));
        }
        let gone = [Oid(7), Oid(17), Oid(10_007), Oid(1 << 40), Oid(8)];
        for oid in gone.into_iter().chain((1024..2048).map(Oid)) {
            assert_eq!(index.remove(oid), model.remove(&oid));
            assert_eq!(index.remove(oid), None);
        }
        assert_eq!(index.len(), model.len());
        assert!(index.iter().eq(model.iter().map(|(oid, pos)| (*oid, *pos))));
        assert_eq!(index.max_oid(), Some(Oid(u64::MAX)));
        for from in (0..100_000).chain([1 << 40, (1 << 40) + 1, u64::MAX]) {
            let from = Oid(from);
            assert_eq!(index.get(from), model.get(&from).copied());
            let next = model.range(from..).next().map(|(oid, _)| *oid);
            assert_eq!(index.next_oid(from), next, "{from}");
        }
    }

    #[test]
    fn an_empty_index_has_no_oid() {
        let index = Index::new();
        assert!(index.is_empty());
        assert_eq!(index.max_oid(), None);
        assert_eq!(index.next_oid(Oid::ZERO), None);
        assert_eq!(index.next_oid(Oid(u64::MAX)), None);
    }

    #[test]
    fn a_snapshot_does_not_see_later_changes() {
        let (mut index, model) = mixed();
        let snapshot = index.snapshot();
        index.insert(Oid(3), 4711);
        index.insert(Oid(95_000), 4711);
        assert!(snapshot.iter().eq(model.into_iter()));
        assert_eq!(index.get(Oid(3)), Some(4711));
    }

    #[test]
    fn a_dense_object_takes_less_than_seven_bytes() {
        let mut index = Index::new();
        let count = 100_000;
        for oid in 0..count {
            index.insert(Oid(oid), 4 + oid);
        }
        let chunk_len = |chunk: &Chunk| match chunk {
            Chunk::Sparse(entries) => entries.capacity() * size_of::<(u16, Pos48)>(),
            Chunk::Dense(_) => CHUNK_LEN * size_of::<Pos48>(),
        };
        // Counters of the `Arc`, and a word of the allocator; key and chunk in a tree that is half
        // full.
        let fixed_len = 24 + 2 * (8 + size_of::<Chunk>());
        let len: usize = index
            .chunks
            .values()
            .map(|chunk| chunk_len(chunk) + fixed_len)
            .sum();
        assert!(len < 7 * count as usize, "{len}");
    }
}
