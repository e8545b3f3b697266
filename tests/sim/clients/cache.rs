//! The cache of a stock client, as `ZEO.cache` keeps it.

use std::collections::BTreeMap;

use super::message::{Revision, Value};
use crate::ids::{Oid, Tid};

/// What is in it, and as of when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    last: Tid,
    current: BTreeMap<Oid, (Tid, Value)>,
    /// By object and serial: until when it was current, and what it was.
    old: BTreeMap<(Oid, Tid), (Tid, Value)>,
}

impl Cache {
    pub(crate) fn last(&self) -> Tid {
        self.last
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.current.is_empty() && self.old.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether it may be done. Only with nothing in it does the last tid go back.
    pub(crate) fn set_last(&mut self, tid: Tid) -> bool {
        let is_allowed = tid >= self.last || self.is_empty();
        if is_allowed && tid != Tid::ZERO {
            self.last = tid;
        }
        is_allowed
    }

    /// `None`: all that is known of the object's current revision is forgotten.
    pub(crate) fn invalidate(&mut self, oid: Oid, tid: Option<Tid>) {
        let Some((serial, _)) = self.current.get(&oid) else {
            return;
        };
        match tid {
            // It came with a load before its invalidation.
            Some(tid) if tid == *serial => {}
            Some(tid) => {
                if let Some((serial, value)) = self.current.remove(&oid) {
                    self.old.insert((oid, serial), (tid, value));
                }
            }
            None => {
                self.current.remove(&oid);
            }
        }
    }

    pub(crate) fn store(&mut self, oid: Oid, revision: &Revision) {
        let Revision {
            value,
            serial,
            next,
        } = revision.clone();
        match next {
            Some(next) => {
                self.old.entry((oid, serial)).or_insert((next, value));
            }
            // What is there already stays, as in ZEO.
            None => {
                self.current.entry(oid).or_insert((serial, value));
            }
        }
    }

    pub(crate) fn load_before(&self, oid: Oid, before: Tid) -> Option<(Tid, Value)> {
        let current = self.current.get(&oid);
        let found = current.filter(|(serial, _)| *serial < before).cloned();
        found.or_else(|| {
            let older = self.old.range((oid, Tid::ZERO)..(oid, before));
            let (&(_, serial), (end, value)) = older.last()?;
            (*end >= before).then(|| (serial, value.clone()))
        })
    }

    /// Makes room, as a small cache has to.
    pub(crate) fn evict(&mut self, len_max: usize) {
        while self.old.len() > len_max {
            self.old.pop_first();
        }
        while self.current.len() > len_max {
            self.current.pop_last();
        }
    }

    pub(crate) fn current(&self) -> impl Iterator<Item = (Oid, Tid, &Value)> {
        let all = self.current.iter();
        all.map(|(oid, (serial, value))| (*oid, *serial, value))
    }

    /// Object, serial, when it was replaced, value.
    pub(crate) fn old(&self) -> impl Iterator<Item = (Oid, Tid, Tid, &Value)> {
        let all = self.old.iter();
        all.map(|(&(oid, serial), (end, value))| (oid, serial, *end, value))
    }
}
