//! What has been applied, for those who read the data files beside the one that writes them.

use std::collections::{BTreeMap, VecDeque};

use super::LogDisk;
use super::found::clip;
use crate::ids::{Epoch, Seq, Tid};
use crate::limits::{APPLIED_POSITIONS_TOLD_MAX, APPLIED_TOLD_MAX};
use crate::replica::lineage::Lineage;
use crate::replica::settings::StorageName;
use crate::storage::apply::{self, Applier};
use crate::storage::follow::Followed;

/// A transaction that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its entry. That of a jump is applied to all storages.
    pub seq: Seq,
    /// The epoch of that: with the tid, what a [lineage](crate::replica::lineage::Lineage) goes on
    /// with.
    pub epoch: Epoch,
    /// Whose
    pub storage: StorageName,
    /// Its tid, and where its records are.
    pub transaction: apply::Applied,
}

/// What has been applied since it was asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// In order; the last ones, as there is a bound.
    pub applied: VecDeque<Applied>,
    /// There was more before these, or the data were replaced: anything may have changed. What
    /// follows the data begins anew, with [`LogDisk::follow`] and [`LogDisk::lineage`].
    pub has_gap: bool,
    /// Positions in `applied`.
    position_count: usize,
}

impl News {
    pub(super) fn add(&mut self, applied: Applied) {
        self.position_count += applied.transaction.positions.len();
        self.applied.push_back(applied);
        while self.applied.len() > APPLIED_TOLD_MAX
            || (self.position_count > APPLIED_POSITIONS_TOLD_MAX && self.applied.len() > 1)
        {
            self.has_gap = true;
            if let Some(first) = self.applied.pop_front() {
                self.position_count -= first.transaction.positions.len();
            }
        }
    }

    /// The data were replaced.
    pub(super) fn break_off(&mut self) {
        *self = Self {
            has_gap: true,
            ..Self::default()
        };
    }
}

impl LogDisk {
    /// What was applied since this was asked last.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// The data files as they are now, for who reads them beside this. All that was applied is in
    /// them, told of or not: what [`Self::take_news`] has when this is asked has to be dropped, or
    /// entered before. Costs a pointer for each thousand objects. Asked after a checkpoint, it lets
    /// reader and writer share the memory of their indexes again.
    pub fn follow(&self) -> BTreeMap<StorageName, Followed> {
        let appliers = self.appliers.iter();
        let followed = appliers.map(|(name, applier)| (name.clone(), Applier::follow(applier)));
        followed.collect()
    }

    /// Which transactions are of this history, as of what has been applied. What is applied later
    /// extends it, as the news tell it.
    pub fn lineage(&self) -> Lineage {
        let mut rows = self.journal.epochs().rows().to_vec();
        // Of what is behind nobody knows whether it is committed.
        clip(&mut rows, self.last_applied_tid());
        let mut lineage = Lineage::default();
        for row in rows {
            if let Some((first, last)) = row.tids {
                lineage.add(row.epoch, first, last);
            }
        }
        lineage
    }

    /// The tid of the last transaction in any of the data files.
    pub(super) fn last_applied_tid(&self) -> Tid {
        self.tids().into_values().max().unwrap_or_default()
    }
}
