//! Which transactions belong to this history: whether the cache of a client that comes back may
//! be kept.
//!
//! A cache that has seen a transaction which was lost must be cleared. It names the last one that
//! it has seen. The tids of one epoch have nothing between them that was lost; those between two
//! epochs were given to nobody, or are lost.

use std::collections::VecDeque;

use crate::ids::{Epoch, Tid};
use crate::limits::JOURNAL_EPOCHS_MAX;

/// Intervals of tids, one for each epoch, and one for what was there before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Epochs, first and last tid; oldest first. No two overlap.
    intervals: VecDeque<(Epoch, Tid, Tid)>,
}

impl Lineage {
    /// Whether a transaction with this tid may be one of this history. If not, it is none.
    pub fn contains(&self, tid: Tid) -> bool {
        let at = self.intervals.partition_point(|(_, _, last)| *last < tid);
        let interval = self.intervals.get(at);
        interval.is_some_and(|(_, first, _)| *first <= tid)
    }

    /// Whether a tid is not behind what was there before the first epoch: of such only those that
    /// there are, one by one, are ours, as the data file may have been another one before.
    pub fn is_of_base(&self, tid: Tid) -> bool {
        let base = self.intervals.front();
        base.is_some_and(|(epoch, _, last)| *epoch == Epoch::ZERO && tid <= *last)
    }

    /// Adds what an epoch has, from one transaction to another. The next one, or more of the last
    /// one; what is known already is no change. Of too many epochs the oldest is forgotten: caches
    /// from then are cleared without need.
    pub fn add(&mut self, epoch: Epoch, first: Tid, last: Tid) {
        match self.intervals.back_mut() {
            Some((known, _, end)) if *known == epoch => *end = last.max(*end),
            Some((_, _, end)) if last <= *end => {}
            _ => {
                if self.intervals.len() == JOURNAL_EPOCHS_MAX {
                    self.intervals.pop_front();
                }
                self.intervals.push_back((epoch, first, last));
            }
        }
    }

    /// A transaction of this epoch was applied.
    pub fn extend(&mut self, epoch: Epoch, tid: Tid) {
        self.add(epoch, tid, tid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;

    fn epoch(counter: u64) -> Epoch {
        let node = NodeId::new("n1").unwrap();
        Epoch { counter, node }
    }

    #[test]
    fn what_lies_between_two_epochs_is_of_none() {
        let mut lineage = Lineage::default();
        assert!(!lineage.contains(Tid::ZERO));
        lineage.add(Epoch::ZERO, Tid::ZERO, Tid(10));
        lineage.extend(epoch(1), Tid(20));
        lineage.extend(epoch(1), Tid(25));
        lineage.extend(epoch(3), Tid(40));
        for tid in 0..50 {
            let is_ours = tid <= 10 || (20..=25).contains(&tid) || tid == 40;
            assert_eq!(lineage.contains(Tid(tid)), is_ours, "{tid}");
        }
    }

    #[test]
    fn what_is_known_is_no_change() {
        let mut lineage = Lineage::default();
        lineage.add(epoch(1), Tid(5), Tid(10));
        lineage.add(epoch(2), Tid(20), Tid(30));
        let before = lineage.clone();
        // A jump is applied to each storage, and news may be told twice.
        lineage.extend(epoch(2), Tid(30));
        lineage.extend(epoch(1), Tid(10));
        assert_eq!(lineage, before);
    }

    #[test]
    fn of_too_many_epochs_the_oldest_is_forgotten() {
        let mut lineage = Lineage::default();
        for counter in 0..=JOURNAL_EPOCHS_MAX as u64 {
            lineage.extend(epoch(counter), Tid(counter));
        }
        assert!(!lineage.contains(Tid(0)));
        assert!(lineage.contains(Tid(1)));
        assert!(lineage.contains(Tid(JOURNAL_EPOCHS_MAX as u64)));
    }
}
