//! A change of many objects at once, prepared elsewhere while the index goes on being used.
//!
//! A worker makes new chunks from a snapshot; entering the change then takes a pointer for each
//! chunk, so that nobody ever sees a part of it, and nobody waits for a million insertions.

use super::{Chunk, Index, NO_POS, join, pack, split, unpack};
use crate::ids::Oid;

/// New positions of objects.
#[derive(Debug)]
pub(in crate::storage) struct Change {
    chunks: Vec<ChangedChunk>,
}

#[derive(Debug)]
struct ChangedChunk {
    key: u64,
    /// What it was made from. Held, so that no other chunk can be taken for it.
    before: Option<Chunk>,
    after: Chunk,
    /// Entries of `after` that are not in `before`.
    added: usize,
}

impl Index {
    /// Prepares a change. `entries` are sorted by oid.
    ///
    /// # Panics
    ///
    /// As [`Index::insert`].
    pub(in crate::storage) fn prepare(&self, entries: &[(Oid, u64)]) -> Change {
        let of_one_chunk = entries.chunk_by(|(one, _), (next, _)| split(*one).0 == split(*next).0);
        let chunks = of_one_chunk.map(|entries| self.changed_chunk(entries));
        Change {
            chunks: chunks.collect(),
        }
    }

    fn changed_chunk(&self, entries: &[(Oid, u64)]) -> ChangedChunk {
        let (key, _) = split(entries[0].0);
        let before = self.chunks.get(&key).cloned();
        let mut chunk = before.clone().unwrap_or_else(Chunk::new);
        let mut added = 0;
        for (oid, pos) in entries {
            Self::check(*pos);
            added += usize::from(chunk.insert(split(*oid).1, pack(*pos)).is_none());
        }
        ChangedChunk {
            key,
            before,
            after: chunk,
            added,
        }
    }

    /// Enters a change that was prepared from an index with the very same objects at the very same
    /// positions, and takes its chunks over: both share them again.
    pub(in crate::storage) fn enter_all(&mut self, change: &Change) {
        for chunk in &change.chunks {
            self.chunks.insert(chunk.key, chunk.after.clone());
            self.len += chunk.added;
        }
    }

    /// Enters a change that was prepared from a snapshot of this index. No object that it names
    /// may have been changed since; others may.
    pub(in crate::storage) fn enter(&mut self, change: &Change) {
        for chunk in &change.chunks {
            let current = self.chunks.get_mut(&chunk.key);
            match (current, &chunk.before) {
                (None, None) => {
                    self.chunks.insert(chunk.key, chunk.after.clone());
                    self.len += chunk.added;
                }
                (Some(current), Some(before)) if current.is_same(before) => {
                    *current = chunk.after.clone();
                    self.len += chunk.added;
                }
                // Other objects of the chunk were changed meanwhile, or all of them removed.
                _ => {
                    for (slot, pos) in chunk.after.entries(0) {
                        let before = chunk.before.as_ref().and_then(|before| before.get(slot));
                        if before.unwrap_or(NO_POS) != pos {
                            self.insert(join(chunk.key, slot), unpack(pos));
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: impl IntoIterator<Item = (u64, u64)>) -> Index {
        let mut index = Index::new();
        for (oid, pos) in entries {
            index.insert(Oid(oid), pos);
        }
        index
    }

    fn change(index: &Index, entries: impl IntoIterator<Item = (u64, u64)>) -> Change {
        let entries = entries.into_iter().map(|(oid, pos)| (Oid(oid), pos));
        index.prepare(&entries.collect::<Vec<_>>())
    }

    fn assert_same(index: &Index, expected: &Index) {
        assert!(index.iter().eq(expected.iter()));
        assert_eq!(index.len(), expected.len());
        assert_eq!(index.iter().count(), index.len());
    }

    /// Sparse chunks, dense ones, and some that become dense by the change.
    fn many(pos: u64) -> impl Iterator<Item = (u64, u64)> {
        let dense = (3000..6000).map(move |oid| (oid, pos + oid));
        let sparse = (100..120).map(move |n| (n * 1000, pos + n));
        dense.chain(sparse)
    }

    #[test]
    fn a_change_is_what_its_insertions_are() {
        for before in [Vec::new(), vec![(1, 7), (3500, 8), (110_000, 9)]] {
            let mut changed = index(before.iter().copied());
            changed.enter(&change(&changed.snapshot(), many(1000)));
            assert_same(&changed, &index(before.into_iter().chain(many(1000))));
            changed.enter(&change(&changed.snapshot(), many(2000)));
            assert_eq!(changed.get(Oid(5999)), Some(7999));
        }
    }

    #[test]
    fn what_others_changed_meanwhile_stays() {
        let before = || many(1000).filter(|(oid, _)| oid % 2 == 0);
        let mut changed = index(before());
        let prepared = change(
            &changed.snapshot(),
            many(9000).filter(|(oid, _)| oid % 3 == 0),
        );
        // One chunk that is in the change, one that is new there and here, one that is not.
        let others = [(3001, 5), (4000, 6), (7001, 7), (101_001, 8), (200_000, 9)];
        for (oid, pos) in others {
            changed.insert(Oid(oid), pos);
        }
        changed.enter(&prepared);
        let all = before().chain(others);
        assert_same(
            &changed,
            &index(all.chain(many(9000).filter(|(oid, _)| oid % 3 == 0))),
        );
    }

    #[test]
    fn an_index_that_follows_another_has_the_same_and_in_the_same_place() {
        let mut leader = index(many(1000));
        let mut follower = leader.snapshot();
        for round in 2..20 {
            let some = many(round * 1000).skip(round as usize * 100);
            let prepared = change(&leader, some);
            leader.enter(&prepared);
            follower.enter_all(&prepared);
            assert_same(&follower, &leader);
        }
        let mut chunks = leader.chunks.iter().zip(&follower.chunks);
        assert!(chunks.all(|((_, one), (_, other))| one.is_same(other)));
    }

    #[test]
    fn a_snapshot_does_not_change() {
        let mut changed = index(many(1000));
        let snapshot = changed.snapshot();
        changed.enter(&change(&snapshot, many(2000)));
        assert_same(&snapshot, &index(many(1000)));
    }
}
