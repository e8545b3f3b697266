//! What a node has applied, as its server knows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::{Applied, Revision, Value};
use crate::ids::{Epoch, Oid, Tid};

/// Objects, epochs, and the last transactions.
pub(crate) struct Database {
    objects: BTreeMap<Oid, Vec<(Tid, Value)>>,
    last: Tid,
    /// The first and the last tid of each epoch.
    epochs: BTreeMap<Epoch, (Tid, Tid)>,
    /// The last transactions, the newest behind.
    queue: VecDeque<(Tid, Vec<Oid>)>,
    queue_len_max: usize,
}

impl Database {
    pub(crate) fn new(applied: &[Applied], queue_len_max: usize) -> Self {
        let mut database = Self {
            objects: BTreeMap::new(),
            last: Tid::ZERO,
            epochs: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_len_max,
        };
        for entry in applied {
            database.apply(entry);
        }
        database
    }

    pub(crate) fn last(&self) -> Tid {
        self.last
    }

    /// The oids to be forgotten; `None` if it is no transaction, not even an empty one.
    pub(crate) fn apply(&mut self, entry: &Applied) -> Option<Vec<Oid>> {
        if entry.tid == Tid::ZERO {
            return None;
        }
        let records = entry.transaction().map(|transaction| transaction.records);
        let mut oids = Vec::new();
        for record in records.unwrap_or_default() {
            oids.push(record.oid);
            let revisions = self.objects.entry(record.oid).or_default();
            revisions.push((entry.tid, record.value));
        }
        self.last = entry.tid;
        let interval = self
            .epochs
            .entry(entry.epoch)
            .or_insert((entry.tid, entry.tid));
        interval.1 = entry.tid;
        self.queue.push_back((entry.tid, oids.clone()));
        if self.queue.len() > self.queue_len_max {
            self.queue.pop_front();
        }
        Some(oids)
    }

    /// Property (c)2: a tid is of this history if it lies within the tids of an epoch.
    pub(crate) fn is_ours(&self, tid: Tid) -> bool {
        let mut epochs = self.epochs.values();
        epochs.any(|(first, last)| (*first..=*last).contains(&tid))
    }

    /// What was stored behind `tid`, if the queue goes back that far.
    pub(crate) fn since(&self, tid: Tid) -> Option<(Tid, Vec<Oid>)> {
        let (oldest, _) = self.queue.front()?;
        if *oldest > tid {
            return None;
        }
        let newer = self.queue.iter().filter(|(of, _)| *of > tid);
        let oids: BTreeSet<Oid> = newer.flat_map(|(_, oids)| oids).copied().collect();
        Some((self.last, oids.into_iter().collect()))
    }

    pub(crate) fn serial(&self, oid: Oid) -> Tid {
        let last = self.objects.get(&oid).and_then(|all| all.last());
        last.map_or(Tid::ZERO, |(serial, _)| *serial)
    }

    pub(crate) fn load_before(&self, oid: Oid, tid: Tid) -> Option<Revision> {
        let revisions = self.objects.get(&oid)?;
        let next = revisions.partition_point(|(serial, _)| *serial < tid);
        let (serial, value) = revisions.get(next.checked_sub(1)?)?;
        Some(Revision {
            value: value.clone(),
            serial: *serial,
            next: revisions.get(next).map(|(serial, _)| *serial),
        })
    }

    pub(crate) fn oid_max(&self) -> Oid {
        self.objects.keys().next_back().copied().unwrap_or_default()
    }
}
