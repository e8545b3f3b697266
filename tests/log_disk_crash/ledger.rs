//! What a log's disk was told to keep, and what is in its data files by that.

use std::collections::BTreeMap;

use bytes::Bytes;
use standby::entry::Entry;
use standby::ids::{DiskId, Epoch, HistoryId, NodeId, Oid, Seq, Tid};
use standby::replica::members::{Members, Voter};
use standby::replica::settings::{Change, Kind, Settings};
use standby::storage::journal::{Identity, Point};
use standby::storage::transfer::Transfer;

/// What must be there, and what may.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct State {
    /// Whether there is something to be opened for sure.
    pub(crate) is_founded: bool,
    pub(crate) history: u8,
    /// The entries that were appended, or were about to be, by their numbers in `Ledger::entries`.
    pub(crate) may: Vec<usize>,
    /// The digest that the log begins with, behind so many entries.
    pub(crate) begins_behind: usize,
    /// So many must be there.
    pub(crate) must: usize,
    pub(crate) promised: Epoch,
    /// One more that may have been promised.
    pub(crate) may_promise: Epoch,
    /// At least so many are in the data files, on stable storage,
    pub(crate) settled: usize,
    /// and at most so many.
    pub(crate) applied: usize,
    /// At least so many are known to be committed.
    pub(crate) committed: usize,
    /// The packs that were begun, the oldest first.
    pub(crate) packs: Vec<Pack>,
    /// What all this may have become, if something was under way.
    pub(crate) or: Option<Box<Self>>,
}

/// States, and from which step on each holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) states: Vec<(usize, State)>,
    pub(crate) current: State,
    /// All that ever was.
    pub(crate) entries: Vec<Entry>,
    /// The steps in front of this one are as in other workloads.
    pub(crate) from: usize,
    pub(crate) seen: Seen,
}

/// What a run has had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) no_room: usize,
    pub(crate) refused: usize,
    pub(crate) released: u64,
    pub(crate) blobs: usize,
    pub(crate) replaced: usize,
    /// Data files that were packed,
    pub(crate) packs: usize,
    /// and that were looked at once more.
    pub(crate) packs_again: usize,
    pub(crate) packs_needless: usize,
    pub(crate) packs_given_up: usize,
    /// Steps of packs that failed.
    pub(crate) packs_failed: usize,
    /// Entries that were applied while a pack was under way,
    pub(crate) beside_packs: usize,
    /// and blobs of them.
    pub(crate) blobs_beside: usize,
    /// Blobs that were packed away.
    pub(crate) blobs_packed: usize,
}

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Maybe {
    No,
    /// It was under way.
    Perhaps,
    Yes,
}

/// A pack that was begun.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Pack {
    /// By its place among the storages.
    pub(crate) storage: usize,
    /// The entry that has ordered it.
    pub(crate) at: Seq,
    /// The last transaction in front of that.
    pub(crate) through: Tid,
    /// What is not later is packed.
    pub(crate) until: Tid,
    /// The data file is the new one.
    pub(crate) is_packed: Maybe,
    /// It counts as done: then the data file is packed, unless a step has failed.
    pub(crate) is_noted: Maybe,
    /// Blobs of what was dropped are removed, and no power cut has brought one back.
    pub(crate) is_swept: bool,
}

/// A transaction as it must be in a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) tid: Tid,
    /// It was looked at by a pack.
    pub(crate) is_packed: bool,
    pub(crate) records: Vec<(Oid, Option<Bytes>)>,
}

impl Txn {
    const fn new(tid: Tid, records: Vec<(Oid, Option<Bytes>)>) -> Self {
        Self {
            tid,
            is_packed: false,
            records,
        }
    }
}

impl Ledger {
    /// As it was at a step.
    pub(crate) fn at(&self, step: usize) -> Self {
        let holds = self.states.partition_point(|(from, _)| *from <= step);
        let current = match holds.checked_sub(1) {
            Some(at) => self.states[at].1.clone(),
            None => State::default(),
        };
        Self {
            states: Vec::new(),
            current,
            entries: self.entries.clone(),
            from: 0,
            seen: Seen::default(),
        }
    }

    /// The entries that may be in the log.
    pub(crate) fn entries_of(&self, state: &State) -> Vec<Entry> {
        let all = state.may.iter().map(|at| self.entries[*at].clone());
        all.collect()
    }

    /// When the power has gone: names that were removed may be there again.
    pub(crate) fn without_power(&self) -> Self {
        let mut ledger = self.clone();
        let state = &mut ledger.current;
        let or = state.or.iter_mut().flat_map(|or| &mut or.packs);
        for pack in state.packs.iter_mut().chain(or) {
            pack.is_swept = false;
        }
        ledger
    }
}

impl State {
    /// The packs that a data file may have had, in each way in which that may be.
    pub(crate) fn packs_of(&self, storage: usize) -> Vec<Vec<Pack>> {
        let mut ways = vec![Vec::new()];
        for pack in self.packs.iter().filter(|pack| pack.storage == storage) {
            let without = ways.clone();
            ways.iter_mut().for_each(|way| way.push(*pack));
            match pack.is_packed {
                Maybe::No => ways = without,
                Maybe::Perhaps => ways.extend(without),
                Maybe::Yes => {}
            }
        }
        ways
    }
}

pub(crate) fn history(number: u8) -> HistoryId {
    HistoryId([number + 1; 16])
}

pub(crate) fn identity(number: u8) -> Identity {
    Identity {
        history: history(number),
        node: NodeId::new("n1").unwrap(),
        disk: DiskId([0x10 + number; 16]),
    }
}

pub(crate) fn settings() -> Settings {
    let identity = identity(0);
    let voter = Voter {
        node: identity.node,
        disk: identity.disk,
    };
    Settings {
        members: Members {
            voters: [voter].into(),
            arbiter: None,
        },
        ..Settings::default()
    }
}

/// What a log begins with.
pub(crate) fn begin(state: &State, before: &[Entry]) -> Point {
    let start = Point::start(history(state.history));
    match before.last() {
        Some(last) => Point {
            digest: start.digest,
            ..last.point()
        },
        None => start,
    }
}

/// The settings as of the last of these entries. A new history begins with new ones.
pub(crate) fn fold(entries: &[Entry], state: &State) -> Settings {
    let mut folded = settings();
    for (at, entry) in entries.iter().enumerate() {
        let header = entry.header();
        let kind = Kind::from_number(header.kind).unwrap();
        if at >= state.begins_behind && kind != Kind::Transaction {
            let change = Change::decode(kind, entry.body()).unwrap();
            folded = folded.changed(&change, header.seq);
        }
    }
    folded
}

pub(crate) fn expected_txns(entries: &[Entry], storage: &str) -> Vec<Txn> {
    let mut txns = Vec::new();
    for entry in entries {
        let header = entry.header();
        match Kind::from_number(header.kind).unwrap() {
            Kind::Transaction => {
                let transfer = Transfer::decode(entry.body()).unwrap();
                if transfer.storage == storage {
                    let records = transfer.records.into_iter();
                    let records = records.map(|record| (record.oid, record.data));
                    txns.push(Txn::new(header.tid, records.collect()));
                }
            }
            _ if header.tid != Tid::ZERO => txns.push(Txn::new(header.tid, Vec::new())),
            _ => {}
        }
    }
    txns
}

pub(crate) fn index(seq: Seq) -> usize {
    usize::try_from(seq.0).expect("few entries")
}

/// What a pack that keeps all objects leaves of these.
pub(crate) fn packed(mut txns: Vec<Txn>, pack: &Pack) -> Vec<Txn> {
    let rest = txns.split_off(txns.partition_point(|txn| txn.tid <= pack.until));
    let mut current = BTreeMap::new();
    for txn in &txns {
        for (oid, data) in &txn.records {
            current.insert(*oid, data.as_ref().map(|_| txn.tid));
        }
    }
    let mut kept = Vec::new();
    for txn in &txns {
        let mut records = txn.records.clone();
        records.retain(|(oid, _)| current[oid] == Some(txn.tid));
        if !records.is_empty() || txn.tid == pack.through {
            kept.push(Txn {
                is_packed: true,
                records,
                ..*txn
            });
        }
    }
    let count = |txns: &[Txn]| txns.iter().map(|txn| 1 + txn.records.len()).sum::<usize>();
    let is_new = |txn: Option<&Txn>| txn.is_some_and(|txn| !txn.is_packed);
    let next = rest.first().filter(|txn| txn.tid <= pack.through);
    let was_packed = txns.iter().all(|txn| txn.is_packed) && !is_new(next);
    // The file stays as it is if nothing is to be dropped.
    let mut left = match was_packed || count(&kept) == count(&txns) {
        true => txns,
        false => kept,
    };
    left.extend(rest);
    left
}

/// What is in a data file to which these entries were applied, and that had these packs.
pub(crate) fn contents(entries: &[Entry], storage: &str, packs: &[Pack]) -> Vec<Txn> {
    let txns = expected_txns(entries, storage);
    packs.iter().fold(txns, packed)
}
