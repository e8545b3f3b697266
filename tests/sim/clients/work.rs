//! What a client's application does: transactions that increment counters, create objects, or read
//! several objects of one snapshot, each tried three times, as `transaction.attempts(3)` does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::client::{Client, ClientOut, Fact, Mode, WAIT_TIMEOUT};
use super::message::{Attempt, ClientMessage, Record, Refused, Revision, ServerMessage, Value};
use crate::ids::{Oid, Tid};

/// The root refers to so many counters.
const COUNTERS: usize = 4;

/// A counter refers to so many objects, the newest ones.
const REFS_MAX: usize = 3;

const TRIES: u32 = 3;

const ROOT: Oid = Oid::ZERO;

/// What goes wrong with a client at a point of its next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// Has voted, and does nothing more.
    Stick,
    /// Has voted, and is gone without a word.
    VanishVoted,
    /// Has sent its finish, and is gone.
    VanishFinishing,
}

/// Where the application is.
#[derive(Default)]
pub(crate) struct Work {
    step: Step,
    /// The step's call waits for a connection, until then.
    waiting: Option<Instant>,
    plan: Plan,
    operation: u32,
    number: u32,
    tries: u32,
    snapshot: Tid,
    generation: usize,
    got: BTreeMap<Oid, Option<(Tid, Value)>>,
    records: Vec<Record>,
    pub(crate) mishap: Option<Mishap>,
    /// Transactions that were committed.
    pub(crate) committed: u64,
    /// Those that have only read.
    pub(crate) read: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Down,
    /// Until then; and then what it has tried before?
    Thinking {
        until: Instant,
        again: bool,
    },
    Syncing,
    /// What is to be read, and what was asked for.
    Reading {
        wanted: Vec<Oid>,
    },
    Allocating,
    Voting,
    Finishing,
    Aborting,
    Stuck,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Plan {
    #[default]
    Read,
    /// So many counters at once.
    Increment(usize),
    /// So many objects.
    Create(usize),
    /// Root and counters.
    Found,
}

// Between the connections and the application.
impl Client {
    pub(crate) fn start_work(&mut self, now: Instant, _: &mut ClientOut) {
        self.think(now, false);
    }

    /// The process dies.
    pub(crate) fn stop_work(&mut self, out: &mut ClientOut) {
        if self.work.step == Step::Finishing {
            out.facts.push(Fact::Unknown(self.attempt()));
        }
        self.work.step = Step::Down;
        self.work.waiting = None;
        self.work.mishap = None;
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.work.step == Step::Stuck
    }

    pub(crate) fn work_timer(&self) -> Option<Instant> {
        match self.work.step {
            Step::Thinking { until, .. } => Some(until),
            _ => self.work.waiting,
        }
    }

    pub(crate) fn on_work_timer(&mut self, now: Instant, out: &mut ClientOut) {
        if self.work_timer().is_none_or(|at| at > now) {
            return;
        }
        if let Step::Thinking { again, .. } = self.work.step {
            if !again {
                self.work.operation += 1;
                self.work.tries = 0;
                self.work.plan = self.choose();
            }
            self.begin(now, out);
        } else {
            out.facts.push(Fact::TimedOut);
            self.think(now, false);
        }
    }

    pub(crate) fn on_operational(&mut self, now: Instant, out: &mut ClientOut) {
        if self.work.waiting.take().is_some() {
            self.proceed(now, out);
        }
    }

    /// All calls that are not answered fail with ClientDisconnected.
    pub(crate) fn on_disconnected(&mut self, now: Instant, out: &mut ClientOut) {
        let is_idle = matches!(self.work.step, Step::Down | Step::Thinking { .. });
        if is_idle || self.work.waiting.is_some() {
            return;
        }
        if self.work.step == Step::Finishing {
            out.facts.push(Fact::Unknown(self.attempt()));
        }
        self.try_again(now);
    }

    pub(crate) fn on_reply(&mut self, message: ServerMessage, now: Instant, out: &mut ClientOut) {
        match (message, &self.work.step) {
            (ServerMessage::Pong(true), Step::Syncing) => {
                out.facts.push(Fact::Pong);
                self.take_snapshot(now, out);
            }
            (ServerMessage::Pong(false), Step::Syncing) => self.try_again(now),
            (
                ServerMessage::Loaded {
                    oid,
                    before,
                    revision,
                },
                step,
            ) => {
                let is_reading = matches!(step, Step::Reading { .. });
                if let Some(revision) = &revision {
                    self.cache.store(oid, revision);
                }
                if is_reading && before == self.work.snapshot.next() {
                    let found = revision.map(|revision| (revision.serial, revision.value));
                    self.got(oid, found, out);
                    self.proceed(now, out);
                }
            }
            (ServerMessage::Oids(oids), Step::Allocating) => {
                out.facts.push(Fact::OidsGot(oids.clone()));
                self.oids.extend(oids.iter().rev());
                self.proceed(now, out);
            }
            (ServerMessage::Voted(result), Step::Voting) => self.on_voted(result, out),
            (ServerMessage::Finished(result), Step::Finishing) => {
                self.on_finished(result, now, out);
            }
            (ServerMessage::Aborted, Step::Aborting) => self.try_again(now),
            _ => {}
        }
    }
}

// One transaction.
impl Client {
    fn attempt(&self) -> Attempt {
        Attempt {
            client: self.id,
            operation: self.work.operation,
            number: self.work.number,
        }
    }

    fn choose(&mut self) -> Plan {
        if self.setup.mode == Mode::Reader {
            return Plan::Read;
        }
        match self.random.below(10) {
            0..=2 => Plan::Read,
            3..=7 => Plan::Increment(1 + self.random.below(2)),
            _ => Plan::Create(1 + self.random.below(2)),
        }
    }

    fn think(&mut self, now: Instant, again: bool) {
        let max = if again {
            Duration::from_millis(20)
        } else {
            self.setup.pause_max
        };
        let micros = u64::try_from(max.as_micros()).expect("it is short").max(1);
        let until = now + Duration::from_micros(self.random.next() % micros);
        self.work.step = Step::Thinking { until, again };
        self.work.waiting = None;
    }

    fn try_again(&mut self, now: Instant) {
        self.think(now, self.work.tries < TRIES);
    }

    fn begin(&mut self, now: Instant, out: &mut ClientOut) {
        self.work.tries += 1;
        self.work.number += 1;
        self.cache.evict(self.setup.cache_len_max);
        if self.setup.server_sync {
            self.work.step = Step::Syncing;
            self.proceed(now, out);
        } else {
            self.take_snapshot(now, out);
        }
    }

    fn take_snapshot(&mut self, now: Instant, out: &mut ClientOut) {
        if self.work.plan == Plan::Found {
            self.work.plan = Plan::Increment(1);
        }
        self.work.snapshot = self.cache.last();
        self.work.generation = self.generation;
        self.work.got.clear();
        self.work.step = Step::Reading { wanted: vec![ROOT] };
        self.proceed(now, out);
    }

    /// The step's call is made, or waits for a connection.
    fn proceed(&mut self, now: Instant, out: &mut ClientOut) {
        let call = match &self.work.step {
            Step::Syncing => ClientMessage::Ping,
            Step::Allocating if !self.oids.is_empty() => return self.store(now, out),
            Step::Allocating => ClientMessage::NewOids,
            Step::Reading { .. } => match self.read_on(out) {
                Some(oid) => ClientMessage::LoadBefore {
                    oid,
                    tid: self.work.snapshot.next(),
                },
                None => return self.after_reading(now, out),
            },
            _ => return,
        };
        if !self.is_operational() {
            self.work.waiting = Some(now + WAIT_TIMEOUT);
            return;
        }
        if self.work.step == Step::Allocating && !self.is_content() {
            self.cannot_write(now, out);
            return;
        }
        if call == ClientMessage::Ping {
            out.facts.push(Fact::PingSent);
        }
        self.call(call, out);
    }

    /// Takes what the cache has; the first object that it has not, if any.
    fn read_on(&mut self, out: &mut ClientOut) -> Option<Oid> {
        let Step::Reading { wanted } = self.work.step.clone() else {
            return None;
        };
        for oid in wanted {
            if self.work.got.contains_key(&oid) {
                continue;
            }
            let before = self.work.snapshot.next();
            let found = self.cache.load_before(oid, before);
            if found.is_none() {
                return Some(oid);
            }
            self.got(oid, found, out);
        }
        None
    }

    fn got(&mut self, oid: Oid, found: Option<(Tid, Value)>, out: &mut ClientOut) {
        out.facts.push(Fact::Read {
            tid: self.work.snapshot,
            generation: self.work.generation,
            oid,
            found: found.clone(),
        });
        self.work.got.insert(oid, found);
    }

    fn after_reading(&mut self, now: Instant, out: &mut ClientOut) {
        let root = self.work.got.get(&ROOT).cloned().flatten();
        let Some((_, root)) = root else {
            if self.work.plan == Plan::Read {
                self.end_reading(now, out);
            } else {
                self.work.plan = Plan::Found;
                self.work.step = Step::Allocating;
                self.proceed(now, out);
            }
            return;
        };
        // First the root, then counters, then what these refer to.
        let more = match self.work.got.len() {
            1 => self.some_of(&root.refs),
            _ if self.work.plan == Plan::Read => self.referred(),
            _ => Vec::new(),
        };
        if !more.is_empty() {
            self.work.step = Step::Reading { wanted: more };
            self.proceed(now, out);
            return;
        }
        match self.work.plan {
            Plan::Read => self.end_reading(now, out),
            Plan::Create(_) => {
                self.work.step = Step::Allocating;
                self.proceed(now, out);
            }
            Plan::Increment(_) | Plan::Found => self.store(now, out),
        }
    }

    fn some_of(&mut self, refs: &[Oid]) -> Vec<Oid> {
        let count = match self.work.plan {
            Plan::Read => 3,
            Plan::Increment(count) => count,
            Plan::Create(_) | Plan::Found => 1,
        };
        let first = self.random.below(refs.len().max(1));
        let circle = refs.iter().cycle().skip(first);
        circle.take(count.min(refs.len())).copied().collect()
    }

    /// What was read refers to, and was not read.
    fn referred(&self) -> Vec<Oid> {
        let read = self.work.got.iter().filter(|(oid, _)| **oid != ROOT);
        let values = read.filter_map(|(_, found)| found.as_ref());
        let refs = values.flat_map(|(_, value)| value.refs.iter().copied());
        let unread = refs.filter(|oid| !self.work.got.contains_key(oid));
        unread.take(REFS_MAX).collect()
    }

    /// ReadOnlyError, by the client itself: nothing is sent.
    fn cannot_write(&mut self, now: Instant, out: &mut ClientOut) {
        out.facts.push(Fact::ReadOnly);
        self.think(now, false);
    }

    fn end_reading(&mut self, now: Instant, out: &mut ClientOut) {
        self.work.read += 1;
        out.facts.push(Fact::ReadAll);
        self.think(now, false);
    }

    /// Begin, stores and vote go out at once, as they do when a transaction is small.
    fn store(&mut self, now: Instant, out: &mut ClientOut) {
        let needed = match self.work.plan {
            Plan::Create(count) => count,
            Plan::Found => COUNTERS,
            Plan::Read | Plan::Increment(_) => 0,
        };
        if self.oids.len() < needed {
            self.oids.clear();
            self.work.step = Step::Allocating;
            self.proceed(now, out);
            return;
        }
        if !self.is_operational() {
            // tpc_begin does not wait.
            self.try_again(now);
            return;
        }
        if !self.is_content() {
            self.cannot_write(now, out);
            return;
        }
        let new = self.oids.split_off(self.oids.len() - needed);
        self.work.records = self.records(&new);
        let attempt = self.attempt();
        let id = u64::from(attempt.number);
        self.call(ClientMessage::Begin { id }, out);
        for record in self.work.records.clone() {
            self.call(ClientMessage::Store { id, record }, out);
        }
        self.call(ClientMessage::Vote { id, attempt }, out);
        self.work.step = Step::Voting;
    }

    fn records(&self, new: &[Oid]) -> Vec<Record> {
        let record = |oid: Oid, serial: Tid, count: u64, refs: Vec<Oid>| Record {
            oid,
            serial,
            value: Value { count, refs },
        };
        let is_founding = self.work.plan == Plan::Found;
        let created = new.iter().map(|oid| record(*oid, Tid::ZERO, 1, Vec::new()));
        let mut records: Vec<Record> = created.collect();
        for (oid, found) in &self.work.got {
            if is_founding || *oid == ROOT {
                continue;
            }
            // A counter that is not there is the business of the checks.
            let (serial, value) = found.clone().unwrap_or_default();
            let refs: Vec<Oid> = value.refs.iter().chain(new).copied().collect();
            let kept = refs[refs.len().saturating_sub(REFS_MAX)..].to_vec();
            records.push(record(*oid, serial, value.count + 1, kept));
        }
        if is_founding {
            records.push(record(ROOT, Tid::ZERO, 1, new.to_vec()));
        }
        records
    }

    fn on_voted(&mut self, result: Result<(), Refused>, out: &mut ClientOut) {
        let id = u64::from(self.work.number);
        if let Err(refused) = result {
            if let Refused::Conflict(oid) = refused {
                self.cache.invalidate(oid, None);
            }
            out.facts.push(Fact::Conflict);
            self.work.step = Step::Aborting;
            self.call(ClientMessage::Abort { id }, out);
            return;
        }
        let mishap = self.work.mishap.take();
        if matches!(mishap, Some(Mishap::Stick | Mishap::VanishVoted)) {
            self.work.step = Step::Stuck;
        } else {
            self.work.step = Step::Finishing;
            self.call(ClientMessage::Finish { id }, out);
        }
        if matches!(mishap, Some(Mishap::VanishVoted | Mishap::VanishFinishing)) {
            out.facts.push(Fact::Vanish);
        }
    }

    fn on_finished(&mut self, result: Result<Tid, Refused>, now: Instant, out: &mut ClientOut) {
        out.facts.push(Fact::Answered(self.attempt(), result));
        let Ok(tid) = result else {
            self.try_again(now);
            self.drop_connection(now, out);
            return;
        };
        for record in std::mem::take(&mut self.work.records) {
            self.cache.invalidate(record.oid, Some(tid));
            let revision = Revision {
                value: record.value,
                serial: tid,
                next: None,
            };
            self.cache.store(record.oid, &revision);
        }
        self.set_last(tid, out);
        self.work.committed += 1;
        self.think(now, false);
    }
}
