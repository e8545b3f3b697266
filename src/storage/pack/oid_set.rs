//! A set of oids, at about a bit each where they are dense.

use std::collections::BTreeMap;

use crate::ids::Oid;

/// Oids of one chunk, as a power of two.
const CHUNK_BITS: u32 = 10;
const CHUNK_WORDS: usize = (1 << CHUNK_BITS) / 64;

/// Entries up to which a chunk is a list: as long as the bitmap then.
const FEW_MAX: usize = CHUNK_WORDS * 4;

/// A set of oids.
#[derive(Clone, Debug, Default)]
pub(super) struct OidSet {
    /// By the leading bits of the oid. No chunk is empty.
    chunks: BTreeMap<u64, Chunk>,
}

#[derive(Clone, Debug)]
enum Chunk {
    /// Trailing bits of oids, sorted.
    Few(Vec<u16>),
    Many(Box<[u64; CHUNK_WORDS]>),
}

impl OidSet {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn contains(&self, oid: Oid) -> bool {
        let (key, slot) = split(oid);
        self.chunks
            .get(&key)
            .is_some_and(|chunk| chunk.contains(slot))
    }

    /// Whether it was not there yet.
    pub(super) fn insert(&mut self, oid: Oid) -> bool {
        let (key, slot) = split(oid);
        self.chunks
            .entry(key)
            .or_insert_with(|| Chunk::Few(Vec::new()))
            .insert(slot)
    }

    /// Takes out oids in order, from about `from` on and then from the start, until `taken` has
    /// `count` of them or a few more.
    pub(super) fn take(&mut self, from: Oid, count: usize, taken: &mut Vec<Oid>) {
        let mut key = split(from).0;
        while taken.len() < count && !self.chunks.is_empty() {
            let Some((found, _)) = self.chunks.range(key..).next() else {
                key = 0;
                continue;
            };
            key = *found;
            if let Some(chunk) = self.chunks.remove(&key) {
                chunk.each(|slot| taken.push(Oid(key << CHUNK_BITS | u64::from(slot))));
            }
        }
    }
}

impl Chunk {
    fn contains(&self, slot: u16) -> bool {
        match self {
            Self::Few(slots) => slots.binary_search(&slot).is_ok(),
            Self::Many(words) => words[word(slot)] & bit(slot) != 0,
        }
    }

    fn insert(&mut self, slot: u16) -> bool {
        if let Self::Few(slots) = self {
            let Err(at) = slots.binary_search(&slot) else {
                return false;
            };
            if slots.len() < FEW_MAX {
                slots.insert(at, slot);
                return true;
            }
            let mut words = Box::new([0; CHUNK_WORDS]);
            for slot in slots {
                words[word(*slot)] |= bit(*slot);
            }
            *self = Self::Many(words);
        }
        let Self::Many(words) = self else {
            unreachable!("a full list was just made a bitmap");
        };
        let word = &mut words[word(slot)];
        let is_new = *word & bit(slot) == 0;
        *word |= bit(slot);
        is_new
    }

    fn each(&self, mut take: impl FnMut(u16)) {
        match self {
            Self::Few(slots) => slots.iter().copied().for_each(take),
            Self::Many(words) => {
                let slots = 0..1u16 << CHUNK_BITS;
                slots
                    .filter(|slot| words[word(*slot)] & bit(*slot) != 0)
                    .for_each(&mut take);
            }
        }
    }
}

/// Key of the chunk, and place in it.
const fn split(oid: Oid) -> (u64, u16) {
    (
        oid.0 >> CHUNK_BITS,
        (oid.0 & ((1 << CHUNK_BITS) - 1)) as u16,
    )
}

const fn word(slot: u16) -> usize {
    slot as usize / 64
}

const fn bit(slot: u16) -> u64 {
    1 << (slot % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_set_has_what_was_put_into_it_and_gives_it_back_once() {
        // Dense, sparse and lonely ones; in no order.
        let oids: BTreeSet<u64> = (0..3000u64)
            .map(|n| n * 7919 % 3000)
            .chain((0..500).map(|n| 10_000 + n * 97))
            .chain([u64::MAX, 1 << 40])
            .collect();
        let mut set = OidSet::default();
        for oid in oids.iter().rev() {
            assert!(!set.contains(Oid(*oid)));
            assert!(set.insert(Oid(*oid)));
            assert!(!set.insert(Oid(*oid)));
            assert!(set.contains(Oid(*oid)));
        }
        assert!(!set.contains(Oid(9999)));
        let mut taken = Vec::new();
        set.take(Oid(2500), 10, &mut taken);
        assert_eq!((taken[0], taken.len()), (Oid(2048), 952));
        assert!(!set.contains(Oid(2048)) && set.contains(Oid(2047)));
        set.take(Oid(1 << 40), usize::MAX, &mut taken);
        assert_eq!(taken[952], Oid(1 << 40));
        assert_eq!(taken.len(), oids.len());
        let taken: BTreeSet<u64> = taken.into_iter().map(|oid| oid.0).collect();
        assert_eq!(taken, oids);
    }
}
