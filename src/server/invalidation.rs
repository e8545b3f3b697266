//! The changes of the last transactions, for clients that come back with a cache.

use std::collections::VecDeque;
use std::time::Duration;

use crate::ids::{Oid, Tid};
use crate::storage::Changed;

/// The last transactions of a storage with the objects that they changed.
#[derive(Debug)]
pub(super) struct InvalidationQueue {
    /// Oldest first, tids ascending.
    entries: VecDeque<(Tid, Changed)>,
    /// Whether those that the file had at the start are among them, or never will be.
    has_past: bool,
    /// How many are kept however old they are.
    count: usize,
    /// How long they are kept however many they are.
    age: Duration,
}

impl InvalidationQueue {
    /// Without what was before.
    pub(super) const fn new(count: usize, age: Duration) -> Self {
        Self {
            entries: VecDeque::new(),
            has_past: false,
            count,
            age,
        }
    }

    /// The last transactions of the file, as it was at the start.
    pub(super) fn begin_with(&mut self, past: Vec<(Tid, Changed)>) {
        for entry in past.into_iter().rev() {
            debug_assert!(
                self.entries
                    .front()
                    .is_none_or(|(first, _)| *first > entry.0)
            );
            self.entries.push_front(entry);
        }
        self.has_past = true;
    }

    /// Whether [`Self::begin_with`] was called.
    pub(super) const fn has_past(&self) -> bool {
        self.has_past
    }

    /// A transaction was committed.
    pub(super) fn push(&mut self, tid: Tid, changed: Changed) {
        debug_assert!(self.entries.back().is_none_or(|(last, _)| *last < tid));
        self.entries.push_back((tid, changed));
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
        Some((*last, self.changed_from(at + 1)))
    }

    /// The same for a tid that is known to be of this history, though no transaction may have it
    /// any more.
    pub(super) fn since_any(&mut self, since: Tid, now: Duration) -> Option<(Tid, Vec<Oid>)> {
        self.trim(now);
        let (first, _) = self.entries.front()?;
        let (last, _) = self.entries.back()?;
        if since < *first || since > *last {
            return None;
        }
        let at = self.entries.partition_point(|(tid, _)| *tid <= since);
        Some((*last, self.changed_from(at)))
    }

    /// Each object once that the entries from this place on have changed.
    fn changed_from(&self, at: usize) -> Vec<Oid> {
        let entries = self.entries.range(at..);
        let mut oids: Vec<Oid> = entries.flat_map(|(_, changed)| changed.iter()).collect();
        oids.sort_unstable();
        oids.dedup();
        oids
    }

    /// Forgets what is neither among the last nor young. `now` counts from 1970.
    fn trim(&mut self, now: Duration) {
        // Without the past nobody is answered; and there must be no gap behind it.
        if !self.has_past {
            return;
        }
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
        let mut queue = InvalidationQueue::new(3, Duration::from_secs(age));
        queue.push(ago(20), Changed::new(vec![]));
        let past = [(ago(40), vec![Oid(1)]), (ago(30), vec![Oid(3), Oid(2)])];
        assert!(!queue.has_past());
        queue.begin_with(past.map(|(tid, oids)| (tid, Changed::new(oids))).into());
        assert!(queue.has_past());
        queue.push(ago(10), Changed::new(vec![Oid(2)]));
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
        let mut empty = InvalidationQueue::new(3, Duration::ZERO);
        assert_eq!(empty.since(Tid::ZERO, NOW), None);
    }

    #[test]
    fn a_tid_of_this_history_need_not_be_there_any_more_but_between_those_that_are() {
        let mut queue = queue(0);
        assert_eq!(queue.since_any(ago(25), NOW), Some((ago(10), vec![Oid(2)])));
        assert_eq!(queue.since_any(ago(10), NOW), Some((ago(10), vec![])));
        for tid in [ago(40), ago(31), ago(9), Tid::ZERO] {
            assert_eq!(queue.since_any(tid, NOW), None);
        }
    }

    #[test]
    fn nothing_is_forgotten_between_the_past_and_what_came_while_it_was_read() {
        let mut queue = InvalidationQueue::new(3, Duration::from_secs(5));
        for secs in 10..20 {
            queue.push(ago(30 - secs), Changed::new(vec![Oid(secs)]));
        }
        queue.begin_with(vec![(ago(40), Changed::new(vec![Oid(1)]))]);
        // The clock was put back.
        let now = NOW - Duration::from_secs(38);
        let all = (10..20).map(Oid).collect();
        assert_eq!(queue.since(ago(40), now), Some((ago(11), all)));
        assert_eq!(queue.since(ago(40), NOW), None);
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
