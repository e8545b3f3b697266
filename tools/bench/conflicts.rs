//! Writers of the same few objects: each reads one, and writes it with one more counted. Who is
//! told of a conflict aborts, reads again and tries again, as an application does.
//!
//! An update that is lost shows: its version is counted twice, which the ledger notices.

use std::time::Instant;

use standby::ids::Tid;
use standby::zeo::load_form::Loaded;

use crate::bench::{Bench, Event, Workload};
use crate::failure::Failure;
use crate::fleet::now;
use crate::meter::SeriesId;
use crate::random::Random;
use crate::record::{self, Stamp};
use crate::txn::{Step, Store, Txn};

/// Writers of the same objects, which are the first of the catalogue.
#[derive(Debug)]
pub(crate) struct Conflicts {
    hot: usize,
    size: usize,
    random: Random,
    links: Vec<Attempt>,
    commits: SeriesId,
    begun: usize,
    is_stopping: bool,
}

/// What a connection is at.
#[derive(Debug)]
struct Attempt {
    number: usize,
    /// When the first try began.
    began: Instant,
    /// What the object must be as new as.
    floor: Tid,
    txn: Option<Txn>,
}

impl Conflicts {
    /// For connections that are open, and a ledger with objects.
    pub(crate) fn new(
        bench: &mut Bench,
        hot: usize,
        size: usize,
        seed: u64,
    ) -> Result<Self, Failure> {
        let objects = bench.ledger.object_count();
        if objects < hot {
            return Err(Failure::Usage(format!(
                "{hot} hot objects, and {objects} are prepared"
            )));
        }
        Ok(Self {
            hot,
            size,
            random: Random::new(seed),
            links: Vec::new(),
            commits: bench.meter.add("commits"),
            begun: 0,
            is_stopping: false,
        })
    }

    /// Begins on each connection.
    pub(crate) fn start(&mut self, bench: &mut Bench) -> Result<(), Failure> {
        for link in 0..bench.fleet.len() {
            self.links.push(Attempt {
                number: 0,
                began: now(),
                floor: Tid::ZERO,
                txn: None,
            });
            self.begin(bench, link, now())?;
        }
        Ok(())
    }

    /// Begins no more.
    pub(crate) const fn stop(&mut self) {
        self.is_stopping = true;
    }

    fn begin(&mut self, bench: &mut Bench, link: usize, now: Instant) -> Result<(), Failure> {
        if self.is_stopping {
            return Ok(());
        }
        self.begun += 1;
        self.links[link].number = self.random.below(self.hot);
        self.links[link].began = now;
        self.read(bench, link, now)
    }

    fn read(&mut self, bench: &mut Bench, link: usize, now: Instant) -> Result<(), Failure> {
        let attempt = &mut self.links[link];
        attempt.floor = bench.ledger.serial(attempt.number);
        let oid = bench.ledger.oid(attempt.number);
        bench.fleet.load(link, oid, Tid::MAX, now)
    }

    fn write(
        &mut self,
        bench: &mut Bench,
        link: usize,
        loaded: &Loaded,
        now: Instant,
    ) -> Result<(), Failure> {
        let attempt = &mut self.links[link];
        let counter = bench
            .ledger
            .on_loaded(attempt.number, loaded, attempt.floor)?
            + 1;
        let oid = loaded.oid;
        let store = Store {
            oid,
            serial: loaded.serial,
            counter,
            data: record::object(Stamp { oid, counter }, self.size),
        };
        attempt.txn = Some(Txn::begin(bench, link, vec![store], now)?);
        Ok(())
    }
}

impl Workload for Conflicts {
    fn on_event(
        &mut self,
        bench: &mut Bench,
        link: usize,
        event: Event,
        now: Instant,
    ) -> Result<(), Failure> {
        match event {
            Event::Loaded(loaded) => self.write(bench, link, &loaded, now),
            Event::Missing { oid, .. } => Err(Failure::Wrong(format!("object {oid} is missing"))),
            Event::Answer { msgid, result } => {
                let Some(mut txn) = self.links[link].txn.take() else {
                    return Ok(());
                };
                match txn.on_answer(bench, link, msgid, &result, now)? {
                    Step::Waiting => {
                        self.links[link].txn = Some(txn);
                        Ok(())
                    }
                    Step::Conflict => {
                        bench.meter.count("conflicts");
                        self.read(bench, link, now)
                    }
                    Step::Finished(_) => {
                        let began = self.links[link].began;
                        let latency = now.saturating_duration_since(began);
                        bench.meter.record(self.commits, latency);
                        self.begun -= 1;
                        self.begin(bench, link, now)
                    }
                }
            }
            Event::Invalidated { tid, oids } => {
                let attempt = &mut self.links[link];
                if attempt.txn.is_none() && oids.contains(&bench.ledger.oid(attempt.number)) {
                    attempt.floor = attempt.floor.max(tid);
                }
                Ok(())
            }
            Event::Greeted | Event::Registered => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        self.is_stopping && self.begun == 0
    }
}
