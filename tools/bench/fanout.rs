//! One connection commits, the others wait for the invalidation: how long until the last has it?

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use standby::ids::Tid;

use crate::bench::{Bench, Event, Workload};
use crate::failure::Failure;
use crate::fleet::now;
use crate::meter::SeriesId;
use crate::record::{self, Stamp};
use crate::txn::{Step, Store, Txn};

/// The connection that commits.
const COMMITTER: usize = 0;

/// A committer and its audience.
#[derive(Debug)]
pub(crate) struct Fanout {
    batch: usize,
    size: usize,
    /// How long an invalidation may take.
    patience: Duration,
    txn: Option<Txn>,
    /// The transaction whose invalidations have not all come, when its finish was sent, and when
    /// that was answered.
    finished: Option<(Tid, Instant, Instant)>,
    /// How many were told of a transaction, and when the last was. It may be told of before it is
    /// answered.
    told: BTreeMap<Tid, (usize, Instant)>,
    began: Instant,
    subscribers: usize,
    from_finish: SeriesId,
    from_answer: SeriesId,
    commits: SeriesId,
    is_stopping: bool,
}

impl Fanout {
    /// For connections that are open, one of which commits, and a ledger with objects.
    pub(crate) fn new(
        bench: &mut Bench,
        batch: usize,
        size: usize,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let objects = bench.ledger.object_count();
        if objects < batch {
            return Err(Failure::Usage(format!(
                "{batch} objects a commit, and {objects} are prepared"
            )));
        }
        let wanted: Vec<_> = (0..batch)
            .map(|n| (bench.ledger.oid(n), Tid::MAX))
            .collect();
        for (number, loaded) in bench.load_all(COMMITTER, &wanted)?.iter().enumerate() {
            let missing = || Failure::Wrong(format!("object {} is missing", wanted[number].0));
            let loaded = loaded.as_ref().ok_or_else(missing)?;
            bench.ledger.on_loaded(number, loaded, Tid::ZERO)?;
        }
        Ok(Self {
            batch,
            size,
            patience,
            txn: None,
            finished: None,
            told: BTreeMap::new(),
            began: now(),
            subscribers: bench.fleet.len() - 1,
            from_finish: bench.meter.add_part("fanout"),
            from_answer: bench.meter.add_part("fanout_after_reply"),
            commits: bench.meter.add("commits"),
            is_stopping: false,
        })
    }

    /// Commits, or stops.
    pub(crate) fn begin(&mut self, bench: &mut Bench, now: Instant) -> Result<(), Failure> {
        if self.is_stopping {
            return Ok(());
        }
        let mut stores = Vec::with_capacity(self.batch);
        for number in 0..self.batch {
            let oid = bench.ledger.oid(number);
            let counter = bench.ledger.counter(number).ok_or_else(|| {
                Failure::Server(format!("object {oid} was changed by somebody else"))
            })? + 1;
            stores.push(Store {
                oid,
                serial: bench.ledger.serial(number),
                counter,
                data: record::object(Stamp { oid, counter }, self.size),
            });
        }
        self.began = now;
        self.told.clear();
        self.txn = Some(Txn::begin(bench, COMMITTER, stores, now)?);
        Ok(())
    }

    /// Begins no more.
    pub(crate) const fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Has the last one been told?
    fn advance(&mut self, bench: &mut Bench, now: Instant) -> Result<(), Failure> {
        let Some((tid, sent, answered)) = self.finished else {
            return Ok(());
        };
        let last = match self.told.get(&tid) {
            Some((count, last)) if *count == self.subscribers => *last,
            _ if self.subscribers == 0 => answered,
            _ => return Ok(()),
        };
        self.finished = None;
        let meter = &mut bench.meter;
        meter.record(self.from_finish, last.saturating_duration_since(sent));
        meter.record(self.from_answer, last.saturating_duration_since(answered));
        self.begin(bench, now)
    }
}

impl Workload for Fanout {
    fn on_event(
        &mut self,
        bench: &mut Bench,
        link: usize,
        event: Event,
        now: Instant,
    ) -> Result<(), Failure> {
        match event {
            Event::Invalidated { tid, .. } if link != COMMITTER => {
                let told = self.told.entry(tid).or_insert((0, now));
                *told = (told.0 + 1, now);
                self.advance(bench, now)
            }
            Event::Answer { msgid, result } if link == COMMITTER => {
                let Some(mut txn) = self.txn.take() else {
                    return Ok(());
                };
                match txn.on_answer(bench, link, msgid, &result, now)? {
                    Step::Waiting => {
                        self.txn = Some(txn);
                        Ok(())
                    }
                    Step::Conflict => Err(Failure::Server(
                        "a conflict in an object that no other connection of this run writes: \
                         is there another writer?"
                            .to_owned(),
                    )),
                    Step::Finished(tid) => {
                        let latency = now.saturating_duration_since(self.began);
                        bench.meter.record(self.commits, latency);
                        self.finished = Some((tid, txn.finish_sent.unwrap_or(now), now));
                        self.advance(bench, now)
                    }
                }
            }
            _ => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        self.is_stopping && self.txn.is_none() && self.finished.is_none()
    }

    fn check(&self, now: Instant) -> Result<(), Failure> {
        let Some((tid, _, answered)) = self.finished else {
            return Ok(());
        };
        if now.saturating_duration_since(answered) <= self.patience {
            return Ok(());
        }
        let count = self.told.get(&tid).map_or(0, |(count, _)| *count);
        Err(Failure::Wrong(format!(
            "transaction {tid} was acknowledged {} s ago, and {count} of {} connections have been \
             told of it",
            self.patience.as_secs_f64(),
            self.subscribers
        )))
    }
}
