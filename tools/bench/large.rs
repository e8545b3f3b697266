//! One large object, stored and loaded again and again.

use standby::ids::{Oid, Tid};

use crate::bench::{Bench, Until};
use crate::catalogue;
use crate::failure::Failure;
use crate::fleet::now;
use crate::meter::SeriesId;
use crate::record::{self, Stamp};
use crate::txn::{Store, commit};

/// An object that nothing refers to: the next pack takes it away.
#[derive(Debug)]
pub(crate) struct Large {
    oid: Oid,
    number: usize,
    counter: u64,
    size: usize,
    stores: SeriesId,
    loads: SeriesId,
}

impl Large {
    /// Of so many bytes.
    pub(crate) fn new(bench: &mut Bench, size: usize) -> Result<Self, Failure> {
        let oids = catalogue::new_oids(bench, 1)?;
        let oid = *oids.first().ok_or_else(|| Failure::answer("new_oids"))?;
        bench.ledger.adopt(&[oid]);
        Ok(Self {
            oid,
            number: bench.ledger.object_count() - 1,
            counter: 0,
            size,
            stores: bench.meter.add("stores"),
            loads: bench.meter.add_part("loads"),
        })
    }

    /// Stores and loads until that is enough, and once at least.
    pub(crate) fn run(&mut self, bench: &mut Bench, until: Until) -> Result<(), Failure> {
        loop {
            self.counter += 1;
            let stamp = Stamp {
                oid: self.oid,
                counter: self.counter,
            };
            let store = Store {
                oid: self.oid,
                serial: bench.ledger.serial(self.number),
                counter: self.counter,
                data: record::object(stamp, self.size),
            };
            let start = now();
            commit(bench, 0, vec![store])?;
            let stored = now();
            let loaded = bench.load_all(0, &[(self.oid, Tid::MAX)])?.pop().flatten();
            let end = now();
            let missing = || Failure::Wrong(format!("object {} is missing", self.oid));
            let floor = bench.ledger.serial(self.number);
            bench
                .ledger
                .on_loaded(self.number, &loaded.ok_or_else(missing)?, floor)?;
            bench
                .meter
                .record(self.stores, stored.saturating_duration_since(start));
            bench
                .meter
                .record(self.loads, end.saturating_duration_since(stored));
            if until.has_come(bench, end) {
                return Ok(());
            }
        }
    }
}
