//! Two voters with data and an arbiter without (R28). A model by itself: what is counted differs
//! from what three voters count.
//!
//! Messages are never taken away. A crash leaves the log as it was at the last sync, or any longer
//! part that it begins with; that a crash may undo a cut is left to the model of three voters.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::hash::{Hash, Hasher};

/// The nodes: two with data, and the arbiter.
const DATA: usize = 2;
const ARBITER: usize = 2;
const EPOCHS: usize = 3;
const BOTH: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// The arbiter is counted as one that has synced everything.
    ArbiterAcknowledges,
    /// Who is in sync is changed without the arbiter, or the other one, knowing.
    NotOnRecord,
    /// A candidate with two promises leads, whoever was in sync.
    AnybodyLeads,
    /// A candidate believes its own log, and not what the arbiter has on record.
    RecordNotHeeded,
    /// The arbiter takes what a primary that is over wants on record.
    RecordOfAnyEpoch,
    /// The arbiter is told of a change before those who are in sync by it have synced it.
    RecordedEarly,
}

/// Entries of five bits: two for the epoch, three for what it is. 1 to 3: a barrier entry, or a
/// change, after which these are in sync, a bit for each; 4: a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Log(u32);

const TRANSACTION: u8 = 4;

/// Epoch and number of an entry; the greater one is the newer.
type Place = (u8, u8);

impl Log {
    fn len(self) -> u8 {
        (36 - self.0.leading_zeros() as u8) / 5
    }

    fn entry(self, seq: u8) -> (u8, u8) {
        let bits = (self.0 >> (5 * (seq - 1))) as u8 & 31;
        (bits & 3, bits >> 2)
    }

    fn push(self, epoch: u8, what: u8) -> Self {
        assert!(self.len() < 6, "a log of the model has up to six entries");
        Self(self.0 | u32::from(epoch | what << 2) << (5 * self.len()))
    }

    fn cut(self, len: u8) -> Self {
        Self(self.0 & ((1 << (5 * len)) - 1))
    }

    /// How many entries two logs begin with alike. An epoch has one primary.
    fn common(self, other: Self) -> u8 {
        let shorter = self.len().min(other.len());
        let same = |seq: &u8| self.entry(*seq) == other.entry(*seq);
        (1..=shorter).take_while(same).count() as u8
    }

    fn swapped(self) -> Self {
        (1..=self.len()).fold(Self::default(), |log, seq| {
            let (epoch, what) = self.entry(seq);
            log.push(epoch, swapped_mask(what))
        })
    }

    fn last(self) -> Place {
        match self.len() {
            0 => (0, 0),
            len => (self.entry(len).0, len),
        }
    }

    /// Who is in sync, and by which entry: at first, both.
    fn record(self, upto: u8) -> (Place, u8) {
        let mut seqs = (1..=upto).rev();
        let found = seqs.find(|seq| self.entry(*seq).1 != TRANSACTION);
        found.map_or(((0, 0), BOTH), |seq| {
            let (epoch, mask) = self.entry(seq);
            ((epoch, seq), mask)
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Node {
    log: Log,
    synced: u8,
    promised: u8,
    /// The epoch that it has claimed, and whether it is in office.
    office: (u8, bool),
    committed: u8,
    crashes: u8,
}

/// What was promised: where the log ended, and the record.
type Promise = Option<(Place, (Place, u8))>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Epoch {
    claimed: bool,
    promises: [Promise; 3],
    proposed: Log,
    acked: [u8; DATA],
    /// What the primary has asked the arbiter to put on record, a bit for each.
    asked: u8,
    recorded: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; DATA],
    arbiter_promised: u8,
    record: (Place, u8),
    epochs: [Epoch; EPOCHS],
    committed: Log,
    transactions: u8,
    changes: u8,
}

impl State {
    /// The two with data are equal: states that differ in their order are one.
    fn representative(self) -> Self {
        let other = self.swapped();
        match other.key() < self.key() {
            true => other,
            false => self,
        }
    }

    fn key(&self) -> [(u32, u8, u8); DATA] {
        let key = |node: &Node| (node.log.0, node.promised, node.office.0);
        [key(&self.nodes[0]), key(&self.nodes[1])]
    }

    fn swapped(mut self) -> Self {
        self.nodes.swap(0, 1);
        self.record.1 = swapped_mask(self.record.1);
        self.committed = self.committed.swapped();
        for node in &mut self.nodes {
            node.log = node.log.swapped();
        }
        for epoch in &mut self.epochs {
            epoch.promises.swap(0, 1);
            for promise in epoch.promises.iter_mut().flatten() {
                promise.1.1 = swapped_mask(promise.1.1);
            }
            epoch.proposed = epoch.proposed.swapped();
            epoch.acked.swap(0, 1);
        }
        self
    }

    /// Of 10^7 states two have the same with a probability of 0.000003.
    fn fingerprint(&self) -> u64 {
        let mut hasher = Fold(0x9e37_79b9_7f4a_7c15);
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// A folded multiplication for each word: each bit of it changes about half of the result.
#[derive(Clone, Copy)]
struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0xa076_1d64_78bd_642f) * 0xe703_7ed1_a0b4_28db;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn swapped_mask(mask: u8) -> u8 {
    match mask {
        1 => 2,
        2 => 1,
        other => other,
    }
}

#[derive(Clone, Copy)]
struct Size {
    transactions: u8,
    changes: u8,
    crashes: u8,
}

struct Explorer {
    size: Size,
    mutant: Option<Mutant>,
    /// By their fingerprints, with those that they came from.
    seen: BTreeMap<u64, u64>,
    waiting: VecDeque<State>,
    broken: Option<(State, State)>,
    /// One committed without the other; and the other led later.
    marks: (bool, bool),
}

impl Explorer {
    fn new(size: Size, mutant: Option<Mutant>) -> Self {
        let mut start = State::default();
        start.record.1 = BOTH;
        for node in &mut start.nodes {
            node.crashes = size.crashes;
        }
        Self {
            size,
            mutant,
            seen: BTreeMap::from([(start.fingerprint(), 0)]),
            waiting: [start].into(),
            broken: None,
            marks: (false, false),
        }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn run(mut self) -> Self {
        while let Some(state) = self.waiting.pop_front() {
            if self.broken.is_some() {
                break;
            }
            self.expand(&state);
        }
        self
    }

    fn expand(&mut self, state: &State) {
        for at in 0..DATA {
            self.claim(state, at);
            self.fetch(state, at);
            self.take_office(state, at);
            self.propose(state, at);
            self.ask_for_record(state, at);
            self.append(state, at);
            self.sync(state, at);
            self.advance(state, at);
            self.crash(state, at);
        }
        self.promise(state);
        self.put_on_record(state);
    }

    fn offer(&mut self, from: &State, mut next: State) {
        if self.size.crashes == 0 {
            // To sync late is to acknowledge late, which is to be heard late.
            next.nodes
                .iter_mut()
                .for_each(|node| node.synced = node.log.len());
        }
        // Acknowledgements are said as soon as they may be.
        for (at, node) in next.nodes.iter().enumerate() {
            let epoch = usize::from(node.promised);
            if let Some(epoch) = epoch.checked_sub(1).map(|at| &mut next.epochs[at])
                && node.office.0 != node.promised
            {
                let matched = node.log.common(epoch.proposed);
                epoch.acked[at] = epoch.acked[at].max(matched.min(node.synced));
            }
        }
        let next = next.representative();
        let fingerprint = next.fingerprint();
        if let Entry::Vacant(place) = self.seen.entry(fingerprint) {
            place.insert(from.fingerprint());
            self.waiting.push_back(next);
        }
    }

    fn claim(&mut self, state: &State, at: usize) {
        let Some(free) = state.epochs.iter().position(|epoch| !epoch.claimed) else {
            return;
        };
        let mut next = *state;
        let epoch = free as u8 + 1;
        next.epochs[free].claimed = true;
        next.nodes[at].promised = epoch;
        next.nodes[at].office = (epoch, false);
        self.offer(state, next);
    }

    fn promise(&mut self, state: &State) {
        for epoch in 1..=EPOCHS as u8 {
            let said = &state.epochs[usize::from(epoch) - 1];
            if !said.claimed {
                continue;
            }
            for at in 0..=ARBITER {
                let mut next = *state;
                let promises = &mut next.epochs[usize::from(epoch) - 1].promises;
                if at == ARBITER {
                    if epoch <= state.arbiter_promised {
                        continue;
                    }
                    promises[at] = Some(((0, 0), state.record));
                    next.arbiter_promised = epoch;
                } else {
                    let node = &mut next.nodes[at];
                    if epoch <= node.promised {
                        continue;
                    }
                    promises[at] = Some((node.log.last(), node.log.record(node.log.len())));
                    node.promised = epoch;
                    node.office = (0, false);
                }
                self.offer(state, next);
            }
        }
    }

    fn fetch(&mut self, state: &State, at: usize) {
        let (me, other) = (&state.nodes[at], &state.nodes[1 - at]);
        let (epoch, in_office) = me.office;
        let is_promised = epoch > 0 && other.promised == epoch;
        if in_office || !is_promised || other.log.last() <= me.log.last() {
            return;
        }
        let mut next = *state;
        let common = me.log.common(other.log);
        next.nodes[at].log = other.log;
        next.nodes[at].synced = me.synced.min(common);
        self.offer(state, next);
    }

    fn take_office(&mut self, state: &State, at: usize) {
        let me = &state.nodes[at];
        let (epoch, in_office) = me.office;
        if epoch == 0 || in_office {
            return;
        }
        let promises = &state.epochs[usize::from(epoch) - 1].promises;
        let mut counted: u8 = 1 << at;
        let mut record = me.log.record(me.log.len());
        for (who, promise) in promises.iter().enumerate() {
            let Some((last, theirs)) = promise else {
                continue;
            };
            if *last > me.log.last() {
                continue;
            }
            counted |= 1 << who;
            if theirs.0 > record.0 && !self.is(Mutant::RecordNotHeeded) {
                record = *theirs;
            }
        }
        let knows = counted & record.1 & BOTH != 0 || self.is(Mutant::AnybodyLeads);
        if counted.count_ones() < 2 || !knows {
            return;
        }
        let mut next = *state;
        let node = &mut next.nodes[at];
        node.office.1 = true;
        let in_sync = node.log.record(node.log.len()).1;
        node.log = node.log.push(epoch, in_sync);
        next.epochs[usize::from(epoch) - 1].proposed = node.log;
        let others = state.committed.len() > 0
            && (1..=state.committed.len()).any(|seq| {
                let proposer = state.committed.entry(seq).0;
                let led = &state.nodes[1 - at];
                led.log.len() >= seq && proposer != 0 && proposer < epoch
            });
        self.marks.1 |= self.marks.0 && others;
        self.offer(state, next);
    }

    fn propose(&mut self, state: &State, at: usize) {
        let me = &state.nodes[at];
        let (epoch, in_office) = me.office;
        if !in_office || me.log.len() >= 6 {
            return;
        }
        let mut whats = Vec::new();
        if state.transactions < self.size.transactions {
            whats.push(TRANSACTION);
        }
        let in_sync = me.log.record(me.log.len()).1;
        if state.changes < self.size.changes {
            whats.extend([1 << at, BOTH].iter().filter(|what| **what != in_sync));
        }
        for what in whats {
            let mut next = *state;
            match what {
                TRANSACTION => next.transactions += 1,
                _ => next.changes += 1,
            }
            next.nodes[at].log = me.log.push(epoch, what);
            next.epochs[usize::from(epoch) - 1].proposed = next.nodes[at].log;
            self.offer(state, next);
        }
    }

    /// Those who are in sync by a change have synced it: the arbiter may know.
    fn ask_for_record(&mut self, state: &State, at: usize) {
        let me = &state.nodes[at];
        let (number, in_office) = me.office;
        if !in_office {
            return;
        }
        let epoch = &state.epochs[usize::from(number) - 1];
        for seq in 1..=me.log.len() {
            let (of, what) = me.log.entry(seq);
            let has = |who: usize| match who == at {
                true => me.synced >= seq,
                false => epoch.acked[who] >= seq,
            };
            let all = (0..DATA).all(|who| what & 1 << who == 0 || has(who));
            let is_change = of == number && what != TRANSACTION;
            if is_change && epoch.asked & 1 << seq == 0 && (all || self.is(Mutant::RecordedEarly)) {
                let mut next = *state;
                next.epochs[usize::from(number) - 1].asked |= 1 << seq;
                self.offer(state, next);
            }
        }
    }

    fn append(&mut self, state: &State, at: usize) {
        let me = &state.nodes[at];
        if me.promised == 0 || me.office.0 == me.promised {
            return;
        }
        let proposed = state.epochs[usize::from(me.promised) - 1].proposed;
        let common = me.log.common(proposed);
        for len in common + 1..=proposed.len() {
            let mut next = *state;
            next.nodes[at].log = proposed.cut(len);
            next.nodes[at].synced = me.synced.min(common);
            self.offer(state, next);
        }
    }

    fn sync(&mut self, state: &State, at: usize) {
        if state.nodes[at].synced < state.nodes[at].log.len() {
            let mut next = *state;
            next.nodes[at].synced = state.nodes[at].log.len();
            self.offer(state, next);
        }
    }

    fn put_on_record(&mut self, state: &State) {
        for (at, epoch) in state.epochs.iter().enumerate() {
            let number = at as u8 + 1;
            let is_over = number < state.arbiter_promised && !self.is(Mutant::RecordOfAnyEpoch);
            if is_over {
                continue;
            }
            for seq in 1..=epoch.proposed.len() {
                let (of, what) = epoch.proposed.entry(seq);
                let place = (of, seq);
                let is_later = place > state.record.0 || self.is(Mutant::RecordOfAnyEpoch);
                if epoch.asked & 1 << seq == 0 || !is_later || place == state.record.0 {
                    continue;
                }
                let mut next = *state;
                next.arbiter_promised = number.max(state.arbiter_promised);
                next.record = (place, what);
                next.epochs[at].recorded = seq.max(epoch.recorded);
                self.offer(state, next);
            }
        }
    }

    fn advance(&mut self, state: &State, at: usize) {
        let me = &state.nodes[at];
        let (number, in_office) = me.office;
        if !in_office {
            return;
        }
        let epoch = &state.epochs[usize::from(number) - 1];
        let synced = |who: usize| match who == at {
            true => me.synced,
            false => epoch.acked[who],
        };
        for seq in me.committed + 1..=me.log.len() {
            if me.log.entry(seq).0 != number {
                continue;
            }
            let (place, in_sync) = me.log.record(seq);
            let mut all: Vec<u8> = (0..DATA)
                .filter(|who| in_sync & 1 << who != 0)
                .map(synced)
                .collect();
            if self.is(Mutant::ArbiterAcknowledges) {
                all = vec![(0..DATA).map(synced).max().unwrap()];
            }
            let knows = (0..DATA).filter(|who| synced(*who) >= place.1).count()
                + usize::from(epoch.recorded >= place.1);
            let is_on_record =
                place.1 <= me.committed || knows >= 2 || self.is(Mutant::NotOnRecord);
            if all.iter().any(|synced| *synced < seq) || !is_on_record {
                continue;
            }
            let log = me.log.cut(seq);
            let agreed = log.common(state.committed) == seq.min(state.committed.len());
            let mut next = *state;
            next.nodes[at].committed = seq;
            if seq > state.committed.len() {
                next.committed = log;
            }
            self.marks.0 |= synced(1 - at) < seq;
            if !agreed {
                self.broken = Some((*state, next));
                return;
            }
            self.offer(state, next);
        }
    }

    fn crash(&mut self, state: &State, at: usize) {
        let me = &state.nodes[at];
        if me.crashes == 0 {
            return;
        }
        for len in me.synced..=me.log.len() {
            let mut next = *state;
            let node = &mut next.nodes[at];
            node.log = me.log.cut(len);
            node.synced = len;
            node.office = (0, false);
            node.committed = 0;
            node.crashes -= 1;
            self.offer(state, next);
        }
    }

    /// The way to what is broken: the states are made again, as only their names were kept.
    fn story(&self) -> String {
        let mut text = String::new();
        let Some((state, last)) = self.broken else {
            return text;
        };
        let mut names = vec![state.fingerprint()];
        while let Some(before) = self
            .seen
            .get(&names[names.len() - 1])
            .filter(|it| **it != 0)
        {
            names.push(*before);
        }
        let mut again = Self::new(self.size, self.mutant);
        let mut way = Vec::new();
        for name in names.iter().rev() {
            let found = again
                .waiting
                .iter()
                .find(|state| state.fingerprint() == *name);
            let Some(found) = found.copied() else {
                break;
            };
            way.push(found);
            again.waiting = [found].into();
            again.seen.clear();
            again.expand(&found);
        }
        way.push(last);
        for state in way {
            let logs = state.nodes.map(|node| {
                let entries = (1..=node.log.len()).map(|seq| node.log.entry(seq));
                entries.collect::<Vec<_>>()
            });
            writeln!(text, "  {logs:?} {:?} {:?}", state.nodes, state.record).unwrap();
        }
        text
    }
}

const SMALL: Size = Size {
    transactions: 1,
    changes: 2,
    crashes: 0,
};

/// Entries that change who is in sync are committed, and lost, as all others are.
const CRASHES: Size = Size {
    transactions: 0,
    changes: 1,
    crashes: 1,
};

const TINY: Size = Size {
    transactions: 0,
    changes: 2,
    crashes: 0,
};

#[test]
fn what_is_committed_with_an_arbiter_stays() {
    let sizes = match std::env::var_os("STANDBY_LONG").is_some() {
        true => vec![TINY, CRASHES, SMALL],
        false => vec![TINY],
    };
    for size in sizes {
        let run = Explorer::new(size, None).run();
        println!(
            "arbiter: {} transactions, {} changes, {} crashes each: {} states",
            size.transactions,
            size.changes,
            size.crashes,
            run.seen.len()
        );
        assert!(run.broken.is_none(), "\n{}", run.story());
        assert_eq!(run.marks, (true, true));
    }
}

#[test]
fn every_mutant_of_the_arbiter_is_found() {
    for mutant in [
        Mutant::ArbiterAcknowledges,
        Mutant::NotOnRecord,
        Mutant::AnybodyLeads,
        Mutant::RecordNotHeeded,
        Mutant::RecordOfAnyEpoch,
        Mutant::RecordedEarly,
    ] {
        let run = Explorer::new(SMALL, Some(mutant)).run();
        println!(
            "arbiter, {mutant:?}: {} states, found: {}",
            run.seen.len(),
            run.broken.is_some()
        );
        assert!(run.broken.is_some(), "{mutant:?} is not found");
    }
}
