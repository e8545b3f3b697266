//! Three nodes with one log, which is right by construction. It stands for the replicas: what it
//! does to fronts is what they may do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use standby::entry::Body;
use standby::ids::{Epoch, HistoryId, NodeId, Seq, Tid};
use standby::replica::event::{Action, Event, Outcome, Readers, Serving, Token, Writers};
use standby::replica::settings::Kind;

use crate::clients::front::FrontMutant;
use crate::clients::message::Applied;
use crate::clients::{Crowd, Setup};

const TURBULENCE: Duration = Duration::from_secs(20);

/// Faults have ended; after this all must be well.
const CALM: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Faults {
    All,
    /// Nobody fails; the primary changes, with or without a plan.
    Demotions,
    /// With a plan.
    Swaps,
}

struct Node {
    is_up: bool,
    /// So much of the log is in its data.
    applied: usize,
    /// Of finishes that were not answered: whether, and as what, they are committed.
    open: Vec<(Token, Option<usize>)>,
    serving: Serving,
    /// Pings: so much must be applied, or it is too late.
    asked: Vec<(Token, usize, Instant)>,
}

struct Proposal {
    node: usize,
    token: Token,
    body: Body,
}

pub(crate) struct Run {
    pub(crate) crowd: Crowd,
    pub(crate) swaps: u64,
    marks: BTreeMap<&'static str, u64>,
    faults: Faults,
    seed: u64,
    random: u64,
    start: Instant,
    now: Instant,
    names: Vec<NodeId>,
    nodes: Vec<Node>,
    history: HistoryId,
    epoch: Epoch,
    log: Vec<Applied>,
    proposals: VecDeque<Proposal>,
    primary: Option<usize>,
    /// The next primary.
    draining_for: Option<usize>,
    oid_next: u64,
    elect_at: Option<Instant>,
    turns: BTreeMap<Instant, Turn>,
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    /// The log moves on.
    Work,
    Fault,
    Restart(usize),
    Thaw,
}

impl Run {
    pub(crate) fn new(seed: u64, faults: Faults, mutant: Option<FrontMutant>) -> Self {
        // Only differences of it count.
        #[expect(
            clippy::disallowed_methods,
            reason = "there is no other way to get one"
        )]
        let start = Instant::now();
        let names = ["n1", "n2", "n3"].map(|name| NodeId::new(name).unwrap());
        let setup = Setup {
            mutant,
            ..Setup::random(seed, &names)
        };
        let mut run = Self {
            crowd: Crowd::new(setup, start),
            swaps: 0,
            marks: BTreeMap::new(),
            faults,
            seed,
            random: seed,
            start,
            now: start,
            nodes: (0..3).map(|_| Node::new()).collect(),
            names: names.to_vec(),
            history: HistoryId([1; 16]),
            epoch: Epoch::ZERO,
            log: Vec::new(),
            proposals: VecDeque::new(),
            primary: None,
            draining_for: None,
            oid_next: 1,
            elect_at: Some(start + Duration::from_millis(300)),
            turns: BTreeMap::new(),
        };
        for node in 0..3 {
            run.start_node(node);
        }
        run.plan(Turn::Work, 1);
        run.plan(Turn::Fault, 1000);
        run
    }

    pub(crate) fn result(mut self) -> Result<BTreeMap<&'static str, u64>, String> {
        self.go()?;
        let mut marks = self.marks;
        marks.extend(self.crowd.marks());
        Ok(marks)
    }

    pub(crate) fn go(&mut self) -> Result<(), String> {
        let is_long = self.faults == Faults::All && self.seed.is_multiple_of(10);
        let turbulent = self.start + TURBULENCE * if is_long { 4 } else { 1 };
        self.run_until(turbulent, false)?;
        self.turns.retain(|_, turn| !matches!(turn, Turn::Fault));
        self.crowd.calm(self.now);
        for node in 0..3 {
            self.start_node(node);
        }
        if self.faults == Faults::All && self.seed % 4 == 1 {
            // One of them will not come back.
            let dead = self.primary.unwrap_or(0);
            self.stop_node(dead);
            self.turns
                .retain(|_, turn| !matches!(turn, Turn::Restart(node) if *node == dead));
        }
        self.run_until(turbulent + CALM, true)?;
        self.crowd.well()?;
        self.crowd.finish()
    }

    fn run_until(&mut self, end: Instant, is_calm: bool) -> Result<(), String> {
        while self.now < end && !(is_calm && self.crowd.well().is_ok()) {
            let turn = self.turns.keys().next().copied();
            let next = self.crowd.deadline().into_iter().chain(turn).min();
            self.now = next.unwrap_or(end).max(self.now);
            self.crowd.run(self.now);
            self.take_events();
            if let Some(entry) = self.turns.first_entry()
                && *entry.key() <= self.now
            {
                let turn = entry.remove();
                self.turn(turn);
            }
            let at = self.now - self.start;
            self.crowd
                .check()
                .map_err(|what| format!("{at:?}: {what}"))?;
        }
        Ok(())
    }

    fn plan(&mut self, turn: Turn, millis_max: u64) {
        let mut at = self.now + Duration::from_micros(1 + self.below(millis_max * 1000));
        while self.turns.contains_key(&at) {
            at += Duration::from_nanos(1);
        }
        self.turns.insert(at, turn);
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    fn take_events(&mut self) {
        for (name, event) in self.crowd.take_events() {
            let node = self.names.iter().position(|of| *of == name).unwrap();
            match event {
                Event::Finish { token, body, .. } => self.on_finish(node, token, body),
                Event::AllocateOids { token, count, .. } => {
                    let is_primary = self.primary == Some(node);
                    let oids = is_primary.then(|| self.oid_next..self.oid_next + count);
                    self.oid_next += count;
                    self.act(node, &Action::Oids { token, oids });
                }
                Event::Confirm { token } => {
                    let until = self.now + Duration::from_secs(2);
                    let through = self.log.len();
                    self.nodes[node].asked.push((token, through, until));
                }
                Event::Drained => self.on_drained(node),
                other => panic!("a front has no business with {other:?}"),
            }
        }
    }

    fn act(&mut self, node: usize, action: &Action) {
        self.crowd.on_action(self.names[node], action, self.now);
    }

    fn serve(&mut self, node: usize, writers: Writers, readers: Readers) {
        let serving = Serving { writers, readers };
        if self.nodes[node].is_up && self.nodes[node].serving != serving {
            self.nodes[node].serving = serving;
            self.act(node, &Action::Serve(serving));
        }
    }

    fn on_finish(&mut self, node: usize, token: Token, body: Body) {
        if self.primary == Some(node) {
            self.nodes[node].open.push((token, None));
            self.proposals.push_back(Proposal { node, token, body });
        } else {
            let outcome = Outcome::Lost;
            self.act(node, &Action::Reply { token, outcome });
        }
    }

    fn on_drained(&mut self, node: usize) {
        if let Some(next) = self.draining_for.take()
            && self.primary == Some(node)
        {
            while !self.proposals.is_empty() {
                self.commit_one();
            }
            self.apply(node, self.log.len());
            self.swaps += 1;
            self.mark("swap");
            self.serve(node, Writers::Closed, Readers::Open);
            self.take_office(next);
        }
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Work => {
                self.work();
                self.plan(Turn::Work, 6);
            }
            Turn::Fault => {
                self.fault();
                self.plan(Turn::Fault, 1500);
            }
            Turn::Restart(node) => self.start_node(node),
            Turn::Thaw => {
                if let Some(node) = self.primary
                    && self.draining_for.is_none()
                {
                    self.serve(node, Writers::Open, Readers::Open);
                }
            }
        }
    }

    /// Something is committed, and something is applied here and there.
    fn work(&mut self) {
        if self.elect_at.is_some_and(|at| at <= self.now) {
            let up: Vec<usize> = (0..3).filter(|node| self.nodes[*node].is_up).collect();
            if !up.is_empty() {
                let at = self.below(up.len() as u64) as usize;
                self.take_office(up[at]);
            }
        }
        if self.primary.is_some() {
            for _ in 0..self.below(4) {
                self.commit_one();
            }
        }
        for node in 0..3 {
            let through = self.log.len();
            if Some(node) == self.primary || self.below(10) == 0 {
                self.apply(node, through);
            }
            let is_level = self.nodes[node].applied == through && self.primary.is_some();
            if is_level && self.nodes[node].serving.readers != Readers::Open {
                self.serve(node, self.nodes[node].serving.writers, Readers::Open);
            }
            let applied = self.nodes[node].applied;
            let asked = std::mem::take(&mut self.nodes[node].asked);
            for (token, through, until) in asked {
                let is_sure = applied >= through && self.primary.is_some();
                if is_sure || until <= self.now {
                    self.act(node, &Action::Confirmed { token, is_sure });
                } else {
                    self.nodes[node].asked.push((token, through, until));
                }
            }
        }
    }

    fn commit_one(&mut self) {
        let Some(proposal) = self.proposals.pop_front() else {
            return;
        };
        let last = self.log.iter().map(|entry| entry.tid).max();
        let clock = Tid::from_unix_time(Duration::from_secs(1_800_000_000) + self.since_start());
        let tid = clock.max(last.unwrap_or_default().next());
        self.append(Kind::Transaction, tid, proposal.body.pieces().to_vec());
        let at = self.log.len();
        let open = &mut self.nodes[proposal.node].open;
        for (token, place) in open {
            if *token == proposal.token {
                *place = Some(at);
            }
        }
    }

    fn since_start(&self) -> Duration {
        self.now - self.start
    }

    fn append(&mut self, kind: Kind, tid: Tid, body: Vec<bytes::Bytes>) {
        let entry = Applied {
            seq: Seq(self.log.len() as u64 + 1),
            epoch: self.epoch,
            kind: kind.number(),
            tid,
            body,
        };
        self.crowd.on_committed(self.history, &entry);
        self.log.push(entry);
    }

    /// And answers, behind all that was applied at once.
    fn apply(&mut self, node: usize, through: usize) {
        if !self.nodes[node].is_up {
            return;
        }
        let from = self.nodes[node].applied;
        for at in from..through {
            self.crowd
                .on_applied(self.names[node], &self.log[at], self.now);
        }
        self.nodes[node].applied = through.max(from);
        let open = std::mem::take(&mut self.nodes[node].open);
        for (token, place) in open {
            match place {
                Some(at) if at <= self.nodes[node].applied => {
                    let Applied { seq, tid, .. } = self.log[at - 1];
                    let outcome = Outcome::Committed { seq, tid };
                    self.act(node, &Action::Reply { token, outcome });
                }
                _ => self.nodes[node].open.push((token, place)),
            }
        }
    }

    fn take_office(&mut self, node: usize) {
        self.elect_at = None;
        // Some of what the one before has proposed survives; who lives still hears of it.
        let kept = self.below(self.proposals.len() as u64 + 1);
        for _ in 0..kept {
            self.commit_one();
        }
        let lost: BTreeSet<Token> = self.proposals.drain(..).map(|lost| lost.token).collect();
        for of in 0..3 {
            let open = std::mem::take(&mut self.nodes[of].open);
            for (token, place) in open {
                if lost.contains(&token) {
                    let outcome = Outcome::Lost;
                    self.act(of, &Action::Reply { token, outcome });
                } else {
                    self.nodes[of].open.push((token, place));
                }
            }
        }
        self.epoch = Epoch {
            counter: self.epoch.counter + 1,
            node: self.names[node],
        };
        self.append(Kind::Barrier, Tid::ZERO, Vec::new());
        self.apply(node, self.log.len());
        self.primary = Some(node);
        self.oid_next = self.oid_next.next_multiple_of(1000) + 1;
        self.serve(node, Writers::Open, Readers::Open);
    }

    fn leave_office(&mut self) {
        self.primary = None;
        self.draining_for = None;
        for node in 0..3 {
            if self.nodes[node].serving.readers == Readers::Open {
                self.serve(node, self.nodes[node].serving.writers, Readers::Kept);
            }
        }
        // Now and then for longer than a client waits for a connection.
        let wait = match self.below(30) {
            0 => 35_000,
            _ => self.below(1500),
        };
        self.elect_at = Some(self.now + Duration::from_millis(wait));
    }

    fn start_node(&mut self, node: usize) {
        if self.nodes[node].is_up {
            return;
        }
        self.nodes[node].is_up = true;
        // What was applied last may not have been synced.
        let lost = self.below(4) as usize;
        let applied = self.nodes[node].applied.saturating_sub(lost);
        self.nodes[node].applied = applied;
        let name = self.names[node];
        self.crowd
            .start_front(name, self.history, &self.log[..applied]);
    }

    fn stop_node(&mut self, node: usize) {
        self.nodes[node].is_up = false;
        self.nodes[node].open.clear();
        self.nodes[node].asked.clear();
        self.nodes[node].serving = Serving::default();
        self.crowd.stop_front(self.names[node], self.now);
        if self.primary == Some(node) {
            self.leave_office();
        }
    }

    fn fault(&mut self) {
        if self.faults == Faults::All && self.below(3) > 0 {
            self.crowd.inject(self.now);
            return;
        }
        let kind = match self.faults {
            Faults::All => self.below(8),
            Faults::Demotions => self.below(3),
            Faults::Swaps => self.below(2) * 2,
        };
        let node = self.below(3) as usize;
        match (kind, self.primary) {
            (0, Some(primary)) if primary != node && self.nodes[node].is_up => {
                self.draining_for = Some(node);
                self.serve(primary, Writers::Draining, Readers::Open);
                self.take_events();
                // A client that does not finish shall not stop it for ever.
                self.plan(Turn::Thaw, 9000);
            }
            (1, Some(primary)) => {
                self.mark("demotion");
                self.serve(primary, Writers::Closed, Readers::Open);
                self.leave_office();
            }
            (2, Some(primary)) => {
                self.serve(primary, Writers::Frozen, Readers::Open);
                self.plan(Turn::Thaw, 500);
            }
            (3 | 4, Some(primary)) => {
                self.mark("primary crashed");
                self.stop_node(primary);
                self.plan(Turn::Restart(primary), 3000);
            }
            (5, _) if self.nodes[node].is_up => {
                self.stop_node(node);
                self.plan(Turn::Restart(node), 3000);
            }
            (6, _) => self.force(),
            (7, _) => {
                let is_isolated = self.below(2) == 0;
                self.crowd.isolate(self.names[node], is_isolated, self.now);
            }
            _ => {}
        }
    }

    /// The last entries are lost with the disks that had them.
    fn force(&mut self) {
        if self.seed.is_multiple_of(2) {
            return;
        }
        for node in 0..3 {
            self.stop_node(node);
        }
        let lost = self.below(4).min(self.log.len() as u64) as usize;
        let largest = self
            .log
            .iter()
            .map(|entry| entry.tid)
            .max()
            .unwrap_or_default();
        self.log.truncate(self.log.len() - lost);
        let old = self.history;
        self.history.0[0] += 1;
        let after = Seq(self.log.len() as u64);
        self.crowd.on_forced(old, self.history, after);
        self.epoch.counter += 1;
        self.proposals.clear();
        let jump = largest.unix_time() + Duration::from_secs(1200);
        self.append(Kind::Barrier, Tid::from_unix_time(jump), Vec::new());
        for node in 0..3 {
            self.nodes[node].applied = self.nodes[node].applied.min(after.0 as usize);
            self.start_node(node);
        }
    }
}

impl Node {
    fn new() -> Self {
        Self {
            is_up: false,
            applied: 0,
            open: Vec::new(),
            serving: Serving::default(),
            asked: Vec::new(),
        }
    }
}
