//! What a storage has promised, and whether a data file keeps it. Knows what a client may expect,
//! and nothing of batches, seals or syncs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use standby::ids::{Oid, Tid};
use standby::storage::blob::layout::{BlobDirectory, Layout};
use standby::storage::disk::{Disk, OpenMode};
use standby::storage::error::ReadError;
use standby::storage::format::Status;
use standby::storage::iterate::Transactions;
use standby::storage::{Answer, FileStorage, Lookup};

/// A transaction as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) tid: Tid,
    pub(crate) texts: [Bytes; 3],
    pub(crate) records: Vec<(Oid, State)>,
    /// What is in its files, which the data file does not know.
    pub(crate) blobs: Vec<(Oid, Bytes)>,
}

impl Txn {
    /// Whether the data file says the same of both.
    fn is_like(&self, other: &Self) -> bool {
        let in_file = |txn: &Self| (txn.tid, txn.texts.clone(), txn.records.clone());
        in_file(self) == in_file(other)
    }
}

/// What an object is as of a transaction; `None` if it does not exist.
pub(crate) type State = Option<Bytes>;

/// A transaction that was finished, and the steps of the disk (see `disk`) around it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) txn: Txn,
    /// Steps before the finish.
    pub(crate) finished: usize,
    /// Steps before its client was told, or before it was seen in the file.
    pub(crate) committed: Option<usize>,
}

/// A pack that keeps all objects, and the steps of the disk around it.
#[derive(Clone, Debug)]
pub(crate) struct Pack {
    pub(crate) until: Tid,
    /// Steps before it began.
    pub(crate) begun: usize,
    /// Steps before somebody was told that it is done, or before that was seen in the file.
    pub(crate) done: Option<usize>,
}

/// All that was promised, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// As they were before any pack.
    pub(crate) entries: Vec<Entry>,
    pub(crate) packs: Vec<Pack>,
    /// Oids that were handed out, each after so many steps.
    pub(crate) oids: Vec<(usize, Range<u64>)>,
}

impl Ledger {
    /// What had been promised when `step` was made: the start of another ledger.
    pub(crate) fn at(&self, step: usize) -> Self {
        let entries = self.entries.iter().filter(|entry| entry.finished <= step);
        let oids = self.oids.iter().filter(|(after, _)| *after <= step);
        let packs = self.packs.iter().filter(|pack| pack.begun <= step);
        Self {
            packs: packs
                .map(|pack| Pack {
                    until: pack.until,
                    begun: 0,
                    done: pack.done.filter(|after| *after <= step).map(|_| 0),
                })
                .collect(),
            entries: entries
                .map(|entry| Entry {
                    txn: entry.txn.clone(),
                    finished: 0,
                    committed: entry.committed.filter(|after| *after <= step).map(|_| 0),
                })
                .collect(),
            oids: oids.map(|(_, range)| (0, range.clone())).collect(),
        }
    }

    /// What clients have been told of.
    pub(crate) fn committed(&self) -> impl Iterator<Item = &Txn> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| entry.committed.is_some())
            .map(|entry| &entry.txn)
    }

    /// The current revision of each object, be it that it does not exist.
    pub(crate) fn current(&self) -> BTreeMap<Oid, (Tid, State)> {
        let txns = self.committed();
        txns.flat_map(|txn| {
            txn.records
                .iter()
                .map(|(oid, state)| (*oid, (txn.tid, state.clone())))
        })
        .collect()
    }

    /// What undoing the transaction at this place would write, if it is possible, and nobody
    /// finishes before. A transaction whose objects are as it has left them can be undone.
    pub(crate) fn undone(&self, place: usize) -> Option<Vec<(Oid, State)>> {
        let last = |entries: &[Entry], oid: Oid| {
            let records = entries.iter().flat_map(|entry| &entry.txn.records);
            records.rev().find(|(other, _)| *other == oid).cloned()
        };
        let records = self.entries[place].txn.records.iter();
        let undone = records.map(|(oid, state)| {
            let later = &self.entries[place + 1..];
            let is_current =
                last(later, *oid).is_none_or(|(_, current)| current.is_some() && current == *state);
            let before = last(&self.entries[..place], *oid).and_then(|(_, before)| before);
            is_current.then_some((*oid, before))
        });
        undone.collect()
    }

    /// Whether what is to be known of an undo of this is known here: nothing in it does not exist
    /// now as it did not exist then, for which where the pointers lead makes a difference.
    pub(crate) fn is_foreseen(&self, place: usize) -> bool {
        let later = self.entries[place + 1..].iter();
        let gone = |records: &[(Oid, State)], oid| records.contains(&(oid, None));
        let later: Vec<_> = later.map(|entry| &entry.txn.records).collect();
        let records = self.entries[place].txn.records.iter();
        { records }
            .all(|(oid, state)| state.is_some() || !later.iter().any(|records| gone(records, *oid)))
    }

    /// Whether nobody has any of these yet.
    pub(crate) fn check_new(&self, oids: &Range<u64>) -> Result<(), String> {
        let earlier = self.oids.iter().map(|(_, range)| range);
        match { earlier }.find(|range| range.start < oids.end && oids.start < range.end) {
            Some(earlier) => Err(format!("oids {oids:?} were handed out before: {earlier:?}")),
            None => Ok(()),
        }
    }

    /// Compares with a file that was just opened: what was committed is there, and of what was in
    /// flight a prefix; packs that are done have been made, and those that had begun may have.
    /// Whatever is there counts as committed, or done, from now on.
    pub(crate) fn settle(&mut self, found: &[Txn], step: usize) -> Result<(), String> {
        let done = self.packs.iter().filter(|pack| pack.done.is_some()).count();
        let mut wrong = String::new();
        for packs in done..=self.packs.len() {
            match self.settle_packed(found, packs) {
                Ok(count) => {
                    self.entries.truncate(count);
                    for entry in &mut self.entries {
                        entry.committed.get_or_insert(step);
                    }
                    self.packs.truncate(packs);
                    for pack in &mut self.packs {
                        pack.done.get_or_insert(step);
                    }
                    return Ok(());
                }
                Err(what) => wrong = format!("{wrong}({packs} packs) {what} "),
            }
        }
        Err(wrong)
    }

    /// How many entries there are in a file that had so many packs.
    fn settle_packed(&self, found: &[Txn], packs: usize) -> Result<usize, String> {
        let all = packed(&self.entries, &self.packs[..packs]);
        let dropped = self.entries.len() - all.len();
        let committed = self.committed().count() - dropped;
        if !(committed..=all.len()).contains(&found.len()) {
            return Err(format!(
                "{} transactions; {committed} were committed and {} finished",
                found.len(),
                all.len()
            ));
        }
        match found
            .iter()
            .zip(&all)
            .find(|(found, txn)| !found.is_like(txn))
        {
            Some((found, txn)) => Err(format!("{} instead of {}", sketch(found), sketch(txn))),
            None => Ok(found.len() + dropped),
        }
    }

    /// What is in the blob of the revision with these data, if it has one.
    pub(crate) fn blob_of(&self, oid: Oid, data: &Bytes) -> Option<Bytes> {
        let is_it = |(other, state): &(Oid, State)| *other == oid && state.as_ref() == Some(data);
        let mut txns = self.entries.iter().map(|entry| &entry.txn);
        let txn = txns.find(|txn| txn.records.iter().any(is_it))?;
        let (_, content) = txn.blobs.iter().find(|(other, _)| *other == oid)?;
        Some(content.clone())
    }

    /// Whether each committed transaction has its blobs, and none is left in the making.
    pub(crate) fn check_blobs(&self, disk: &dyn Disk, directory: &Path) -> Result<(), String> {
        let directory = BlobDirectory::new(directory.to_owned(), Layout::Bushy);
        for txn in self.left() {
            for (oid, content) in &txn.blobs {
                let path = directory.file(*oid, txn.tid);
                match disk.read(&path) {
                    Ok(found) if found == *content => {}
                    Ok(_) => return Err(format!("blob {} has other bytes", path.display())),
                    Err(error) => return Err(format!("blob {}: {error}", path.display())),
                }
            }
        }
        match disk.names(&directory.temporary()) {
            Ok(names) if names.is_empty() => Ok(()),
            other => Err(format!("temporary files of blobs: {other:?}")),
        }
    }

    /// What is left of the committed transactions when all packs are done that had begun.
    fn left(&self) -> Vec<Txn> {
        let committed = self.committed().count();
        packed(&self.entries[..committed], &self.packs)
    }

    /// Whether a blob that has been packed away is still there.
    pub(crate) fn has_dropped_blob(&self, disk: &dyn Disk, directory: &Path) -> bool {
        let directory = BlobDirectory::new(directory.to_owned(), Layout::Bushy);
        let left = self.left();
        let is_left = |oid: Oid, tid: Tid| {
            let has = |(left, _): &(Oid, Bytes)| *left == oid;
            left.iter()
                .any(|txn| txn.tid == tid && txn.blobs.iter().any(has))
        };
        self.committed()
            .flat_map(|txn| txn.blobs.iter().map(|(oid, _)| (*oid, txn.tid)))
            .filter(|(oid, tid)| !is_left(*oid, *tid))
            .any(|(oid, tid)| disk.read(&directory.file(oid, tid)).is_ok())
    }

    /// Whether all that was committed, and nothing else, can be read.
    pub(crate) fn check_reads(&self, storage: &FileStorage) -> Result<(), String> {
        let look_up = |lookup| match storage.look_up(lookup) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("{lookup:?}: {error:?}")),
        };
        let current = self.current();
        let last_tid = self.committed().last().map_or(Tid::ZERO, |txn| txn.tid);
        if storage.last_tid() != last_tid {
            let found = storage.last_tid();
            return Err(format!("last tid {found} instead of {last_tid}"));
        }
        let committed = self.committed().count();
        let done = self.packs.iter().filter(|pack| pack.done.is_some()).count();
        let read_all = |packs: usize| {
            let txns = packed(&self.entries[..committed], &self.packs[..packs]);
            let records = txns.iter().flat_map(|txn| &txn.records);
            let oids: BTreeSet<Oid> = records.map(|(oid, _)| *oid).collect();
            let count = storage.object_count();
            if count != oids.len() as u64 {
                return Err(format!("{count} objects instead of {}", oids.len()));
            }
            for txn in txns {
                for (oid, state) in &txn.records {
                    let lookup = Lookup::Serial(*oid, txn.tid);
                    let expected = state.clone().map_or(Answer::Missing, Answer::Data);
                    if look_up(lookup)? != expected {
                        return Err(format!("{lookup:?} gives other data"));
                    }
                }
            }
            Ok(())
        };
        let mut found = read_all(done);
        for packs in done + 1..=self.packs.len() {
            found = found.or_else(|_| read_all(packs));
        }
        found?;
        let all = self.entries.iter().flat_map(|entry| &entry.txn.records);
        let all: BTreeSet<Oid> = all.map(|(oid, _)| *oid).collect();
        for oid in all {
            let expected = match current.get(&oid) {
                // As in ZODB it is not looked whether what a back pointer leads to exists.
                Some((tid, None)) if look_up(Lookup::Current(oid))? != Answer::Missing => {
                    Answer::Serial(*tid)
                }
                Some((tid, Some(_))) => Answer::Serial(*tid),
                Some((_, None)) | None => Answer::Missing,
            };
            let answer = look_up(Lookup::Current(oid))?;
            if answer != expected {
                return Err(format!("{oid}: {answer:?} instead of {expected:?}"));
            }
        }
        Ok(())
    }
}

/// All transactions of a data file up to `tail`, each with the right pointers, and with the states
/// to which those lead; and where they end.
pub(crate) fn read(
    disk: &dyn Disk,
    path: &Path,
    tail: u64,
) -> Result<(Vec<Txn>, Vec<u64>), String> {
    let file = disk
        .open(path, OpenMode::Read)
        .map_err(|error| error.to_string())?;
    let damaged = |error: ReadError| error.to_string();
    let mut positions: BTreeMap<Oid, u64> = BTreeMap::new();
    let mut states: BTreeMap<(Oid, u64), State> = BTreeMap::new();
    let (mut found, mut ends) = (Vec::new(), Vec::new());
    let mut txns = Transactions::from_pos(Arc::clone(&file), 4, tail);
    let mut records_of = Transactions::from_pos(file, 4, tail);
    for txn in &mut txns {
        let txn = txn.map_err(damaged)?;
        let is_packed = match txn.header.status {
            Status::Finished => false,
            Status::Packed => true,
            status => return Err(format!("status {status:?} at {}", txn.pos)),
        };
        let mut records = records_of.records(&txn);
        let mut contents = Vec::new();
        while let Some(record) = records.next().transpose().map_err(damaged)? {
            let header = record.header;
            let prev = positions.insert(header.oid, record.pos);
            let prev = prev.filter(|_| !is_packed).unwrap_or(0);
            if (header.tid, header.prev) != (txn.header.tid, prev) {
                return Err(format!("record at {}: {header:?}", record.pos));
            }
            let state = match record.back {
                None => records.data(&record).map_err(damaged)?,
                Some(0) => None,
                Some(back) => match states.get(&(header.oid, back)) {
                    Some(state) => state.clone(),
                    None => return Err(format!("record at {}: back to {back}", record.pos)),
                },
            };
            states.insert((header.oid, record.pos), state.clone());
            contents.push((header.oid, state));
        }
        ends.push(txn.end());
        found.push(Txn {
            tid: txn.header.tid,
            texts: [txn.user(), txn.descr(), txn.ext()].map(Bytes::copy_from_slice),
            records: contents,
            blobs: Vec::new(),
        });
    }
    Ok((found, ends))
}

/// Where the last record of an object is in a file of transactions up to `tail`; zero if there is
/// none.
pub(crate) fn position(disk: &dyn Disk, path: &Path, tail: u64, oid: Oid) -> Result<u64, String> {
    let file = { disk.open(path, OpenMode::Read) }.map_err(|error| error.to_string())?;
    let mut txns = Transactions::from_pos(file, 4, tail);
    let mut found = 0;
    while let Some(txn) = txns.next() {
        let txn = txn.map_err(|error| error.to_string())?;
        let records = txns.records(&txn).flatten();
        found = { records.filter(|record| record.header.oid == oid) }
            .last()
            .map_or(found, |record| record.pos);
    }
    Ok(found)
}

/// What is left of these after packs that keep all objects.
fn packed(entries: &[Entry], packs: &[Pack]) -> Vec<Txn> {
    let mut txns: Vec<Txn> = entries.iter().map(|entry| entry.txn.clone()).collect();
    for pack in packs {
        let past = |txn: &&Txn| txn.tid <= pack.until;
        let current: BTreeMap<Oid, Tid> = { txns.iter().filter(past) }
            .flat_map(|txn| txn.records.iter().map(|(oid, _)| (*oid, txn.tid)))
            .collect();
        txns.retain_mut(|txn| {
            let tid = txn.tid;
            if tid <= pack.until {
                // A deletion says nothing any more when all before it is gone.
                let stays =
                    |oid: &Oid, state: &State| current.get(oid) == Some(&tid) && state.is_some();
                txn.records.retain(|(oid, state)| stays(oid, state));
                let records = &txn.records;
                let has = |oid: &Oid| records.iter().any(|(other, _)| other == oid);
                txn.blobs.retain(|(oid, _)| has(oid));
            }
            tid > pack.until || !txn.records.is_empty()
        });
    }
    txns
}

fn sketch(txn: &Txn) -> String {
    let records = txn.records.iter();
    let len = |state: &State| state.as_ref().map(Bytes::len);
    let records: Vec<_> = records.map(|(oid, state)| (oid.0, len(state))).collect();
    format!("{} with {records:?} (oid, length)", txn.tid)
}
