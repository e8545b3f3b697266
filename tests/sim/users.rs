//! Who uses the cluster: for runs without clients, finishes are given to the replicas by hand.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::checker::Checked;
use crate::clients::message::Applied;
use crate::entry::Body;
use crate::ids::{HistoryId, Oid, Seq};
use crate::marks::Marks;
use crate::plan::{Load, millis};
use crate::random::Random;
use crate::replica::event::{Action, Event, Outcome, Token, Writers};

/// What the world tells those who use the cluster, and asks them for.
pub(crate) trait Users {
    /// A process serves: with all that its data hold.
    fn start(&mut self, node: usize, history: HistoryId, applied: Vec<Applied>, now: Duration);
    fn stop(&mut self, node: usize, now: Duration);
    fn copied(&mut self, node: usize, history: HistoryId, applied: Vec<Applied>, now: Duration);
    fn pause(&mut self, node: usize, is_paused: bool, now: Duration);
    fn isolate(&mut self, node: usize, is_isolated: bool, now: Duration);
    fn on_action(&mut self, node: usize, action: &Action, now: Duration);
    fn on_applied(&mut self, node: usize, entry: &Applied, now: Duration);
    fn on_committed(&mut self, history: HistoryId, entry: &Applied);
    fn on_forced(&mut self, old: HistoryId, new: HistoryId, after: Seq);
    fn deadline(&self) -> Option<Duration>;
    fn run(&mut self, now: Duration);
    fn take_events(&mut self) -> Vec<(usize, Event)>;
    /// One of their own faults.
    fn inject(&mut self, now: Duration);
    fn calm(&mut self, now: Duration);
    /// Whether all of them are served.
    fn well(&mut self, now: Duration) -> Checked;
    fn check(&mut self) -> Checked;
    fn finish(&mut self) -> Checked;
    fn marks(&self) -> Marks;
    /// Bodies of finishes that were said to be lost since it was asked last.
    fn take_lost(&mut self) -> Vec<Vec<Bytes>>;
}

/// Gives finishes to replicas that want them.
pub(crate) struct Hand {
    random: Random,
    load: Load,
    next: Duration,
    serving: Vec<Writers>,
    asked: BTreeMap<u64, Asked>,
    tokens: u64,
    events: Vec<(usize, Event)>,
    /// Oids that were handed out, by where they begin.
    oids: BTreeMap<u64, u64>,
    oid_max: u64,
    lost: Vec<Vec<Bytes>>,
    calm: Option<Duration>,
    is_served: bool,
    marks: Marks,
    problem: Option<String>,
    voted: u32,
}

struct Asked {
    node: usize,
    body: Option<Vec<Bytes>>,
    at: Duration,
}

impl Hand {
    pub(crate) fn new(load: Load, nodes: usize, random: Random) -> Self {
        Self {
            random,
            load,
            next: Duration::from_millis(500),
            serving: vec![Writers::Closed; nodes],
            asked: BTreeMap::new(),
            tokens: 1 << 32,
            events: Vec::new(),
            oids: BTreeMap::new(),
            oid_max: 0,
            lost: Vec::new(),
            calm: None,
            is_served: false,
            marks: Marks::default(),
            problem: None,
            voted: 0,
        }
    }

    fn ask(&mut self, node: usize, body: Option<Vec<Bytes>>, at: Duration) -> Token {
        self.tokens += 1;
        self.asked.insert(self.tokens, Asked { node, body, at });
        Token(self.tokens)
    }

    fn answered(&mut self, node: usize, token: Token) -> Option<Asked> {
        let asked = self.asked.remove(&token.0);
        if asked.as_ref().is_none_or(|asked| asked.node != node) {
            self.fail(format!("I13: {token:?} is answered twice, or was never asked"));
        }
        asked
    }

    fn fail(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    fn finish_at(&mut self, node: usize, now: Duration) {
        let len = 8 + self.random.below(self.load.body_len_max);
        // No two are the same, and there are no zeros at the end.
        let mut body = vec![0xb5; len];
        body[..8].copy_from_slice(&(self.tokens + 1).to_be_bytes());
        let body = vec![Bytes::from(body)];
        let token = self.ask(node, Some(body.clone()), now);
        let Some(body) = Body::new(body) else { return };
        let oid = self.random.next() % (self.oid_max + 1);
        let oids = vec![("1".to_owned(), Oid(oid))];
        self.events.push((node, Event::Finish { token, body, tid: None, oids }));
    }

    fn hand_out(&mut self, range: &std::ops::Range<u64>) {
        let before = self.oids.range(..range.end).next_back();
        if before.is_some_and(|(_, end)| *end > range.start) {
            self.fail(format!("I8: oids {range:?} are handed out again"));
        }
        self.oids.insert(range.start, range.end);
        self.oid_max = self.oid_max.max(range.end);
    }
}

impl Users for Hand {
    fn start(&mut self, node: usize, _: HistoryId, _: Vec<Applied>, _: Duration) {
        self.serving[node] = Writers::Closed;
    }

    fn stop(&mut self, node: usize, _: Duration) {
        self.serving[node] = Writers::Closed;
        self.asked.retain(|_, asked| asked.node != node);
        self.events.retain(|(to, _)| *to != node);
    }

    fn copied(&mut self, _: usize, _: HistoryId, _: Vec<Applied>, _: Duration) {}

    fn pause(&mut self, _: usize, _: bool, _: Duration) {}

    fn isolate(&mut self, _: usize, _: bool, _: Duration) {}

    fn on_action(&mut self, node: usize, action: &Action, now: Duration) {
        match action {
            Action::Serve(serving) => {
                self.serving[node] = serving.writers;
                if serving.writers == Writers::Draining {
                    self.events.push((node, Event::Drained));
                }
            }
            Action::Reply { token, outcome } => {
                let Some(asked) = self.answered(node, *token) else { return };
                match outcome {
                    Outcome::Committed { .. } => {
                        self.marks.hit("finish committed");
                        if self.calm.is_some_and(|calm| asked.at > calm) {
                            self.is_served = true;
                        }
                    }
                    Outcome::Lost => {
                        self.marks.hit("finish lost");
                        self.lost.extend(asked.body);
                    }
                    Outcome::Unknown => self.marks.hit("finish unknown"),
                }
            }
            Action::Oids { token, oids } => {
                self.answered(node, *token);
                match oids {
                    Some(range) => self.hand_out(range),
                    None => self.marks.hit("oids refused"),
                }
            }
            Action::Confirmed { token, .. } => {
                self.answered(node, *token);
            }
            _ => {}
        }
        let _ = now;
    }

    fn on_applied(&mut self, _: usize, _: &Applied, _: Duration) {}

    fn on_committed(&mut self, _: HistoryId, _: &Applied) {}

    fn on_forced(&mut self, _: HistoryId, _: HistoryId, _: Seq) {}

    fn deadline(&self) -> Option<Duration> {
        Some(self.next)
    }

    fn run(&mut self, now: Duration) {
        if now < self.next {
            return;
        }
        let most = 2 * self.load.finish_every.as_millis() as u64;
        self.next = now + millis(&mut self.random, 1, most.max(2));
        // Once all is well, there shall be an end of it.
        if self.is_served {
            return;
        }
        for node in 0..self.serving.len() {
            let is_open = self.serving[node] == Writers::Open;
            if is_open {
                for _ in 0..=self.random.below(3) {
                    self.finish_at(node, now);
                    self.voted += 1;
                }
                if self.random.percent(20) {
                    let token = self.ask(node, None, now);
                    let (storage, count) = ("1".to_owned(), 100);
                    self.events.push((node, Event::AllocateOids { token, storage, count }));
                }
            }
            if self.random.percent(5) {
                let token = self.ask(node, None, now);
                self.events.push((node, Event::Confirm { token }));
            }
        }
    }

    fn take_events(&mut self) -> Vec<(usize, Event)> {
        std::mem::take(&mut self.events)
    }

    fn inject(&mut self, _: Duration) {}

    fn calm(&mut self, now: Duration) {
        self.calm = Some(now);
        self.load.finish_every = Duration::from_millis(100);
    }

    fn well(&mut self, _: Duration) -> Checked {
        if self.is_served { Ok(()) } else { Err("no finish was committed".to_owned()) }
    }

    fn check(&mut self) -> Checked {
        self.problem.take().map_or(Ok(()), Err)
    }

    fn finish(&mut self) -> Checked {
        Ok(())
    }

    fn marks(&self) -> Marks {
        self.marks.clone()
    }

    fn take_lost(&mut self) -> Vec<Vec<Bytes>> {
        std::mem::take(&mut self.lost)
    }
}
