//! Loads and commits in any proportion: the workloads `loads`, `commits` and `mixed`.
//!
//! Each connection has a number of operations on their way, its depth. When one is done the next
//! one begins, a load of any object, or a commit of some of the connection's own. ZEO knows one
//! transaction a connection: an operation that wants to commit waits for the one before.

use std::time::Instant;

use standby::ids::{Oid, Tid};
use standby::zeo::load_form::Loaded;

use crate::bench::{Bench, Event, Workload};
use crate::failure::Failure;
use crate::fleet::now;
use crate::meter::SeriesId;
use crate::random::{Chooser, Distribution, Random};
use crate::record::{self, Stamp};
use crate::txn::{Step, Store, Txn};

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Operations on their way on each connection.
    pub depth: usize,
    /// The share of commits, 0 to 1.
    pub writes: f64,
    /// Objects in a commit.
    pub batch: usize,
    /// Bytes of each object that is stored, in turn.
    pub sizes: Vec<usize>,
    /// How the objects to load are chosen.
    pub distribution: Distribution,
    /// What the choices follow from.
    pub seed: u64,
}

/// Loads and commits.
#[derive(Debug)]
pub(crate) struct Mix {
    plan: Plan,
    chooser: Chooser,
    random: Random,
    links: Vec<LinkWork>,
    loads: Option<SeriesId>,
    commits: Option<SeriesId>,
    /// Counts what is stored, to take the sizes in turn.
    stored: usize,
    /// Operations that were begun and are not done.
    begun: usize,
    is_stopping: bool,
}

/// What one connection is at.
#[derive(Debug, Default)]
struct LinkWork {
    loads: Vec<PendingLoad>,
    txn: Option<(Txn, Instant)>,
    /// Operations that wait for the transaction, each with the time when it wanted to begin.
    waiting: Vec<Instant>,
    /// Objects that only this connection writes.
    own: Vec<usize>,
    /// Which of them is next.
    next: usize,
}

/// A load without its answer.
#[derive(Clone, Copy, Debug)]
struct PendingLoad {
    number: usize,
    oid: Oid,
    /// The answer must be at least this new.
    floor: Tid,
    sent: Instant,
}

/// Transactions' worth of objects that each connection writes in turn.
const OWN_BATCHES: usize = 8;

impl Mix {
    /// For connections that are open, and a ledger with objects.
    pub(crate) fn new(bench: &mut Bench, plan: Plan) -> Result<Self, Failure> {
        let (links, objects) = (bench.fleet.len(), bench.ledger.object_count());
        let mut mix = Self {
            chooser: Chooser::new(plan.distribution, objects),
            random: Random::new(plan.seed),
            links: (0..links).map(|_| LinkWork::default()).collect(),
            loads: (plan.writes < 1.0).then(|| bench.meter.add("loads")),
            commits: (plan.writes > 0.0).then(|| bench.meter.add("commits")),
            stored: 0,
            begun: 0,
            is_stopping: false,
            plan,
        };
        if mix.commits.is_some() {
            mix.share_out(bench)?;
        }
        Ok(mix)
    }

    /// Gives each connection objects of its own, and finds out what is in them.
    fn share_out(&mut self, bench: &mut Bench) -> Result<(), Failure> {
        let (links, objects) = (self.links.len(), bench.ledger.object_count());
        let share = objects / links;
        if share < self.plan.batch {
            return Err(Failure::Usage(format!(
                "{links} connections that commit {} objects each need {} objects, and {objects} \
                 are prepared",
                self.plan.batch,
                links * self.plan.batch
            )));
        }
        let count = share.min(self.plan.batch * OWN_BATCHES);
        let mut wanted = Vec::new();
        for (link, work) in self.links.iter_mut().enumerate() {
            // Scattered over the link's part of the file, as the objects of a user are.
            let part = link * share;
            work.own = (0..count).map(|n| part + n * share / count).collect();
            for number in &work.own {
                wanted.push((bench.ledger.oid(*number), Tid::MAX));
            }
        }
        for (loaded, (oid, _)) in bench.load_all(0, &wanted)?.iter().zip(&wanted) {
            let number = bench.ledger.number(*oid);
            let (Some(loaded), Some(number)) = (loaded, number) else {
                return Err(Failure::Wrong(format!("object {oid} is missing")));
            };
            bench.ledger.on_loaded(number, loaded, Tid::ZERO)?;
        }
        Ok(())
    }

    /// Begins as many operations as are to be on their way.
    pub(crate) fn start(&mut self, bench: &mut Bench) -> Result<(), Failure> {
        for link in 0..self.links.len() {
            for _ in 0..self.plan.depth {
                self.begin(bench, link, now())?;
            }
        }
        Ok(())
    }

    /// Begins no more.
    pub(crate) fn stop(&mut self) {
        self.is_stopping = true;
        for work in &mut self.links {
            self.begun -= work.waiting.len();
            work.waiting.clear();
        }
    }

    fn begin(&mut self, bench: &mut Bench, link: usize, now: Instant) -> Result<(), Failure> {
        if self.is_stopping {
            return Ok(());
        }
        self.begun += 1;
        let wants_commit = self.plan.writes >= 1.0
            || self.plan.writes > 0.0 && self.random.fraction() < self.plan.writes;
        if !wants_commit {
            return self.begin_load(bench, link, now);
        }
        if self.links[link].txn.is_some() {
            self.links[link].waiting.push(now);
            return Ok(());
        }
        self.begin_commit(bench, link, now, now)
    }

    fn begin_load(&mut self, bench: &mut Bench, link: usize, now: Instant) -> Result<(), Failure> {
        let number = self.chooser.choose(&mut self.random);
        let oid = bench.ledger.oid(number);
        self.links[link].loads.push(PendingLoad {
            number,
            oid,
            floor: bench.ledger.serial(number),
            sent: now,
        });
        bench.fleet.load(link, oid, Tid::MAX, now)
    }

    fn begin_commit(
        &mut self,
        bench: &mut Bench,
        link: usize,
        wanted: Instant,
        now: Instant,
    ) -> Result<(), Failure> {
        let mut stores = Vec::with_capacity(self.plan.batch);
        for _ in 0..self.plan.batch {
            let work = &mut self.links[link];
            let number = work.own[work.next];
            work.next = (work.next + 1) % work.own.len();
            let oid = bench.ledger.oid(number);
            let counter = bench.ledger.counter(number).ok_or_else(|| {
                Failure::Server(format!("object {oid} was changed by somebody else"))
            })? + 1;
            let size = self.plan.sizes[self.stored % self.plan.sizes.len()];
            self.stored += 1;
            stores.push(Store {
                oid,
                serial: bench.ledger.serial(number),
                counter,
                data: record::object(Stamp { oid, counter }, size),
            });
        }
        let txn = Txn::begin(bench, link, stores, now)?;
        self.links[link].txn = Some((txn, wanted));
        Ok(())
    }

    fn on_loaded(
        &mut self,
        bench: &mut Bench,
        link: usize,
        loaded: &Loaded,
        now: Instant,
    ) -> Result<(), Failure> {
        // Answers come in order mostly, and then it is the first.
        let loads = &mut self.links[link].loads;
        let place = loads.iter().position(|load| load.oid == loaded.oid);
        let Some(place) = place else {
            return Err(Failure::Wrong(format!(
                "connection {link} got object {}, for which it has not asked",
                loaded.oid
            )));
        };
        let load = loads.remove(place);
        bench.ledger.on_loaded(load.number, loaded, load.floor)?;
        if let Some(id) = self.loads {
            bench
                .meter
                .record(id, now.saturating_duration_since(load.sent));
        }
        self.begun -= 1;
        self.begin(bench, link, now)
    }

    fn on_committed(
        &mut self,
        bench: &mut Bench,
        link: usize,
        wanted: Instant,
        now: Instant,
    ) -> Result<(), Failure> {
        if let Some(id) = self.commits {
            bench
                .meter
                .record(id, now.saturating_duration_since(wanted));
        }
        self.begun -= 1;
        if !self.links[link].waiting.is_empty() {
            let wanted = self.links[link].waiting.remove(0);
            self.begin_commit(bench, link, wanted, now)?;
        }
        self.begin(bench, link, now)
    }
}

impl Workload for Mix {
    fn on_event(
        &mut self,
        bench: &mut Bench,
        link: usize,
        event: Event,
        now: Instant,
    ) -> Result<(), Failure> {
        match event {
            Event::Loaded(loaded) => self.on_loaded(bench, link, &loaded, now),
            Event::Missing { oid, raised: None } => {
                Err(Failure::Wrong(format!("object {oid} is missing")))
            }
            Event::Missing {
                raised: Some(raised),
                ..
            } => Err(Failure::raised("loadBefore", &raised)),
            Event::Invalidated { tid, oids } => {
                // What is asked and not answered must be as new as what was just told.
                for load in &mut self.links[link].loads {
                    if oids.contains(&load.oid) {
                        load.floor = load.floor.max(tid);
                    }
                }
                Ok(())
            }
            Event::Answer { msgid, result } => {
                let Some((mut txn, wanted)) = self.links[link].txn.take() else {
                    return Ok(());
                };
                match txn.on_answer(bench, link, msgid, &result, now)? {
                    Step::Waiting => {
                        self.links[link].txn = Some((txn, wanted));
                        Ok(())
                    }
                    Step::Finished(_) => self.on_committed(bench, link, wanted, now),
                    Step::Conflict => Err(Failure::Server(
                        "a conflict in an object that no other connection of this run writes: \
                         is there another writer?"
                            .to_owned(),
                    )),
                }
            }
            Event::Greeted | Event::Registered => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        self.is_stopping && self.begun == 0
    }
}
