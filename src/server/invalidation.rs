//! The changes of the last transactions, for clients that come back with a cache.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::ids::{Oid, Tid};

/// The last transactions of a storage with the objects that they changed.
#[derive(Debug)]
pub(super) struct InvalidationQueue {
    /// Oldest first, tids ascending.
    entries: VecDeque<(Tid, Arc<Vec<Oid>>)>,
    /// How many are kept however old they are.
    count: usize,
    /// How long they are kept however many they are.
    age: Duration,
}

impl InvalidationQueue {
    /// With the last transactions of the file.
    pub(super) fn new(count: usize, age: Duration, entries: Vec<(Tid, Vec<Oid>)>) -> Self {
        let entries = entries.into_iter();
        Self {
            entries: entries.map(|(tid, oids)| (tid, Arc::new(oids))).collect(),
            count,
            age,
        }
    }

    /// A transaction was committed.
    pub(super) fn push(&mut self, tid: Tid, oids: Arc<Vec<Oid>>) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last < tid));
        self.entries.push_back((tid, oids));
        self.trim(tid.unix_time());
    }

    /// What changed after `since`, the last tid that a client knows: the last tid, and each object
    /// once. `None` if that cannot be told: `since` is too old, or it is a tid that this history
    /// does not have. The client then drops its cache, which may hold what never was here.
    pub(super) fn since(&mut self, since: Tid, now: Duration) -> Option<(Tid, Vec<Oid>)> {
        self.trim(now);
        let at = self
            .entries
            .binary_search_by_key(&since, |(tid, _)| *tid)
            .ok()?;
        let (last, _) = self.entries.back()?;
        let entries = self.entries.range(at + 1..);
        let mut changed: Vec<Oid> = entries.flat_map(|(_, oids)| &**oids).copied().collect();
        changed.sort_unstable();
        changed.dedup();
        Some((*last, changed))
    }

    /// Forgets what is neither among the last nor young. `now` counts from 1970.
    fn trim(&mut self, now: Duration) {
        let old = Tid::from_unix_time(now.saturating_sub(self.age));
        while self.entries.len() > self.count
            && self.entries.front().is_some_and(|(tid, _)| *tid < old)
        {
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    /// The tid of so many seconds ago.
    fn ago(secs: u64) -> Tid {
        Tid::from_unix_time(NOW - Duration::from_secs(secs))
    }

    fn queue(age: u64) -> InvalidationQueue {
        let first = vec![(ago(40), vec![Oid(1)])];
        let mut queue = InvalidationQueue::new(3, Duration::from_secs(age), first);
        queue.push(ago(30), Arc::new(vec![Oid(2), Oid(3)]));
        queue.push(ago(20), Arc::new(vec![]));
        queue.push(ago(10), Arc::new(vec![Oid(2)]));
        queue
    }

    #[test]
    fn each_changed_object_is_named_once() {
        let mut queue = queue(0);
        assert_eq!(queue.since(ago(30), NOW), Some((ago(10), vec![Oid(2)])));
        assert_eq!(queue.since(ago(10), NOW), Some((ago(10), vec![])));
    }

    #[test]
    fn a_tid_that_is_too_old_or_of_another_history_gets_no_list() {
        for tid in [ago(40), ago(25), ago(5), Tid::ZERO] {
            assert_eq!(queue(0).since(tid, NOW), None);
        }
        let mut empty = InvalidationQueue::new(3, Duration::ZERO, vec![]);
        assert_eq!(empty.since(Tid::ZERO, NOW), None);
    }

    #[test]
    fn young_entries_are_kept_beyond_the_count() {
        let all = Some((ago(10), vec![Oid(2), Oid(3)]));
        assert_eq!(queue(60).since(ago(40), NOW), all);
        let later = NOW + Duration::from_secs(30);
        assert_eq!(queue(60).since(ago(40), later), None);
        assert!(queue(60).since(ago(30), later).is_some());
    }
}
