//! The changes of the last transactions, for clients that come back with a cache.

use std::collections::{BTreeSet, VecDeque};

use crate::ids::{Oid, Tid};

/// The last transactions of a storage with the objects that they changed.
#[derive(Debug)]
pub(super) struct InvalidationQueue {
    /// Oldest first, tids ascending.
    entries: VecDeque<(Tid, Vec<Oid>)>,
    count_max: usize,
}

impl InvalidationQueue {
    /// With what the file says; of more than `count_max` entries the last are kept.
    pub(super) fn new(count_max: usize, entries: Vec<(Tid, Vec<Oid>)>) -> Self {
        let mut queue = Self {
            entries: entries.into(),
            count_max,
        };
        queue.trim();
        queue
    }

    /// A transaction was committed.
    pub(super) fn push(&mut self, tid: Tid, oids: Vec<Oid>) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last < tid));
        self.entries.push_back((tid, oids));
        self.trim();
    }

    /// What changed after `since`, the last tid that a client knows: the last tid, and each object
    /// once. `None` if that cannot be told: `since` is too old, or it is a tid that this history
    /// does not have. The client then drops its cache, which may hold what never was here.
    pub(super) fn since(&self, since: Tid) -> Option<(Tid, Vec<Oid>)> {
        let at = self
            .entries
            .binary_search_by_key(&since, |(tid, _)| *tid)
            .ok()?;
        let (last, _) = self.entries.back()?;
        let changed: BTreeSet<Oid> = self
            .entries
            .range(at + 1..)
            .flat_map(|(_, oids)| oids)
            .copied()
            .collect();
        Some((*last, changed.into_iter().collect()))
    }

    fn trim(&mut self) {
        let excess = self.entries.len().saturating_sub(self.count_max);
        self.entries.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> InvalidationQueue {
        let mut queue = InvalidationQueue::new(3, vec![(Tid(10), vec![Oid(1)])]);
        queue.push(Tid(20), vec![Oid(2), Oid(3)]);
        queue.push(Tid(30), vec![]);
        queue.push(Tid(40), vec![Oid(2)]);
        queue
    }

    #[test]
    fn each_changed_object_is_named_once() {
        assert_eq!(queue().since(Tid(20)), Some((Tid(40), vec![Oid(2)])));
        assert_eq!(queue().since(Tid(40)), Some((Tid(40), vec![])));
    }

    #[test]
    fn a_tid_that_is_too_old_or_of_another_history_gets_no_list() {
        for tid in [10, 25, 50, 0] {
            assert_eq!(queue().since(Tid(tid)), None);
        }
        assert_eq!(InvalidationQueue::new(3, vec![]).since(Tid::ZERO), None);
    }
}
