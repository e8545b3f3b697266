//! Visits every state that can be reached, each once, the nearest first.

use std::num::NonZero;
use std::thread;

use crate::protocol::{Next, Step};
use crate::rules::{Mark, Property, Rules};
use crate::state::State;

/// States that threads take at a time; what they find is held until it is put into the table.
const BLOCK: usize = 1 << 15;

/// What a run has found.
pub(crate) struct Report {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// Steps to the farthest state.
    pub(crate) depth: usize,
    /// The most that the table and the states that wait have taken.
    pub(crate) bytes: usize,
    pub(crate) marks: u16,
    pub(crate) broken: Option<Broken>,
}

impl Report {
    pub(crate) fn missing(&self) -> Vec<Mark> {
        let mut marks = Mark::ALL.to_vec();
        marks.retain(|mark| self.marks & mark.bit() == 0);
        marks
    }
}

/// A property that does not hold, and the shortest way to where it does not.
pub(crate) struct Broken {
    pub(crate) property: Property,
    pub(crate) trace: Vec<(Step, State)>,
}

/// What is looked at in each state, beside what the steps check.
pub(crate) type Check = fn(&State, &Rules) -> Option<Property>;

/// Nothing but that.
pub(crate) fn no_check(_: &State, _: &Rules) -> Option<Property> {
    None
}

/// Explores, and stops at the first property that is broken.
pub(crate) fn explore(rules: &Rules, check: Check) -> Report {
    let mut table = Table::new();
    let start = State::new(rules.crashes).representative();
    table.insert(start.fingerprint(), 0);
    let mut layer = vec![start];
    let mut report = Report {
        states: 1,
        steps: 0,
        depth: 0,
        bytes: 0,
        marks: 0,
        broken: None,
    };
    loop {
        let mut next_layer = Vec::new();
        for block in layer.chunks(BLOCK) {
            for found in expand(block, rules, check, &table) {
                report.steps += found.steps;
                report.marks |= found.marks;
                if let Some((state, step, property)) = found.broken {
                    let trace = trace(rules, &table, &state, step);
                    report.broken = Some(Broken { property, trace });
                    return report;
                }
                for (state, fingerprint, parent) in found.states {
                    if table.insert(fingerprint, parent) {
                        next_layer.push(state);
                    }
                }
            }
        }
        let waiting = layer.capacity() + next_layer.capacity();
        report.bytes = report
            .bytes
            .max(table.bytes() + waiting * size_of::<State>());
        report.states += next_layer.len();
        if next_layer.is_empty() {
            return report;
        }
        report.depth += 1;
        layer = next_layer;
    }
}

/// What a thread has found in its part of a block.
#[derive(Default)]
struct Found {
    steps: usize,
    marks: u16,
    /// With fingerprint and parent's fingerprint; not in the table before the block.
    states: Vec<(State, u64, u64)>,
    /// The state before, the step (if it is not that state itself), and what it broke.
    broken: Option<(State, Option<Step>, Property)>,
}

fn expand(block: &[State], rules: &Rules, check: Check, table: &Table) -> Vec<Found> {
    let threads = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(8);
    let part = block.len().div_ceil(threads);
    if block.len() < 1000 {
        return vec![expand_part(block, rules, check, table)];
    }
    thread::scope(|scope| {
        let parts = block.chunks(part);
        let running: Vec<_> = parts
            .map(|states| scope.spawn(move || expand_part(states, rules, check, table)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn expand_part(states: &[State], rules: &Rules, check: Check, table: &Table) -> Found {
    let mut found = Found::default();
    for state in states {
        if let Some(property) = check(state, rules) {
            found.broken = Some((*state, None, property));
            return found;
        }
        let parent = state.fingerprint();
        state.steps(rules, |step, next: Next| {
            found.steps += 1;
            found.marks |= next.marks;
            if let (Some(property), None) = (next.broken, &found.broken) {
                found.broken = Some((*state, Some(step), property));
            }
            let state = next.state.representative();
            let fingerprint = state.fingerprint();
            if !table.contains(fingerprint) {
                found.states.push((state, fingerprint, parent));
            }
        });
        if found.broken.is_some() {
            return found;
        }
    }
    found
}

/// The steps that led to a state, and one more; voters keep their places in it.
fn trace(rules: &Rules, table: &Table, last: &State, step: Option<Step>) -> Vec<(Step, State)> {
    let mut way = Vec::new();
    let mut fingerprint = last.fingerprint();
    while let Some(parent) = table.parent(fingerprint).filter(|parent| *parent != 0) {
        way.push(fingerprint);
        fingerprint = parent;
    }
    let mut state = State::new(rules.crashes);
    let mut trace = Vec::new();
    for fingerprint in way.into_iter().rev() {
        let mut taken = None;
        state.steps(rules, |step, next| {
            if next.state.representative().fingerprint() == fingerprint {
                taken = taken.or(Some((step, next.state)));
            }
        });
        let (step, next) = taken.expect("a state in the table was reached by a step");
        trace.push((step, next));
        state = next;
    }
    // The last step is named by places in the sorted state; find the one that breaks from here.
    if step.is_some() {
        let mut taken = None;
        state.steps(rules, |step, next| {
            if next.broken.is_some() {
                taken = taken.or(Some((step, next.state)));
            }
        });
        trace.extend(taken);
    }
    trace
}

/// Fingerprints of the states that were seen, each with that of the state before it.
struct Table {
    slots: Vec<(u64, u64)>,
    used: usize,
}

impl Table {
    fn new() -> Self {
        Self {
            slots: vec![(0, 0); 1 << 16],
            used: 0,
        }
    }

    fn bytes(&self) -> usize {
        self.slots.len() * size_of::<(u64, u64)>()
    }

    /// The place of a fingerprint, or the free one where it belongs.
    fn place(&self, fingerprint: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut place = fingerprint as usize & mask;
        while self.slots[place].0 != 0 && self.slots[place].0 != fingerprint {
            place = (place + 1) & mask;
        }
        place
    }

    fn contains(&self, fingerprint: u64) -> bool {
        self.slots[self.place(fingerprint)].0 != 0
    }

    fn parent(&self, fingerprint: u64) -> Option<u64> {
        let (found, parent) = self.slots[self.place(fingerprint)];
        (found != 0).then_some(parent)
    }

    fn insert(&mut self, fingerprint: u64, parent: u64) -> bool {
        let place = self.place(fingerprint);
        if self.slots[place].0 != 0 {
            return false;
        }
        self.slots[place] = (fingerprint, parent);
        self.used += 1;
        if self.used * 4 > self.slots.len() * 3 {
            let larger = vec![(0, 0); self.slots.len() * 2];
            let slots = std::mem::replace(&mut self.slots, larger);
            for (fingerprint, parent) in slots.into_iter().filter(|slot| slot.0 != 0) {
                let place = self.place(fingerprint);
                self.slots[place] = (fingerprint, parent);
            }
        }
        true
    }
}
