//! Stock clients as users of the cluster.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::checker::Checked;
use crate::clients::message::Applied;
use crate::clients::{Crowd, Setup};
use crate::ids::{HistoryId, NodeId, Seq};
use crate::marks::Marks;
use crate::replica::event::{Action, Event, Outcome};
use crate::users::Users;

/// The clients, and the names of the nodes that they go to.
pub(crate) struct Stock {
    crowd: Crowd,
    names: Vec<NodeId>,
    /// Bodies of finishes that have no answer, by token.
    asked: std::collections::BTreeMap<u64, (usize, Vec<Bytes>)>,
    lost: Vec<Vec<Bytes>>,
}

impl Stock {
    /// Some of them have data.
    pub(crate) fn new(setup: Setup, names: Vec<NodeId>) -> Self {
        let crowd = Crowd::new(setup, crate::base());
        let (asked, lost) = Default::default();
        Self { crowd, names, asked, lost }
    }

    fn node(&self, name: NodeId) -> Option<usize> {
        self.names.iter().position(|it| *it == name)
    }
}

fn instant(now: Duration) -> Instant {
    crate::base() + now
}

impl Users for Stock {
    fn start(&mut self, node: usize, history: HistoryId, all: Vec<Applied>, _: Duration) {
        self.crowd.start_front(self.names[node], history, &all);
    }

    fn stop(&mut self, node: usize, now: Duration) {
        self.asked.retain(|_, (asked, _)| *asked != node);
        self.crowd.stop_front(self.names[node], instant(now));
    }

    fn copied(&mut self, node: usize, history: HistoryId, all: Vec<Applied>, _: Duration) {
        self.crowd.on_copied(self.names[node], history, &all);
    }

    fn pause(&mut self, node: usize, is_paused: bool, now: Duration) {
        self.crowd.set_paused(self.names[node], is_paused, instant(now));
    }

    fn isolate(&mut self, node: usize, is_isolated: bool, now: Duration) {
        self.crowd.isolate(self.names[node], is_isolated, instant(now));
    }

    fn on_action(&mut self, node: usize, action: &Action, now: Duration) {
        if let Action::Reply { token, outcome } = action
            && let Some((_, body)) = self.asked.remove(&token.0)
            && *outcome == Outcome::Lost
        {
            self.lost.push(body);
        }
        self.crowd.on_action(self.names[node], action, instant(now));
    }

    fn on_applied(&mut self, node: usize, entry: &Applied, now: Duration) {
        self.crowd.on_applied(self.names[node], entry, instant(now));
    }

    fn on_committed(&mut self, history: HistoryId, entry: &Applied) {
        self.crowd.on_committed(history, entry);
    }

    fn on_forced(&mut self, old: HistoryId, new: HistoryId, after: Seq) {
        self.crowd.on_forced(old, new, after);
    }

    fn deadline(&self) -> Option<Duration> {
        let deadline = self.crowd.deadline()?;
        Some(deadline.saturating_duration_since(crate::base()))
    }

    fn run(&mut self, now: Duration) {
        self.crowd.run(instant(now));
    }

    fn take_events(&mut self) -> Vec<(usize, Event)> {
        let events = self.crowd.take_events();
        let mut taken = Vec::new();
        for (name, event) in events {
            let Some(node) = self.node(name) else { continue };
            if let Event::Finish { token, body, .. } = &event {
                self.asked.insert(token.0, (node, body.pieces().to_vec()));
            }
            taken.push((node, event));
        }
        taken
    }

    fn inject(&mut self, now: Duration) {
        self.crowd.inject(instant(now));
    }

    fn calm(&mut self, now: Duration) {
        self.crowd.calm(instant(now));
    }

    fn well(&mut self, _: Duration) -> Checked {
        self.crowd.well()
    }

    fn check(&mut self) -> Checked {
        self.crowd.check()
    }

    fn finish(&mut self) -> Checked {
        self.crowd.finish()
    }

    fn marks(&self) -> Marks {
        let mut marks = Marks::default();
        for (mark, count) in self.crowd.marks() {
            marks.add(mark, *count);
        }
        marks
    }

    fn take_lost(&mut self) -> Vec<Vec<Bytes>> {
        std::mem::take(&mut self.lost)
    }
}
