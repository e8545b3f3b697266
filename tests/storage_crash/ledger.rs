//! What a storage has promised, and whether a data file keeps it. Knows what a client may expect,
//! and nothing of batches, seals or syncs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use standby::ids::{Oid, Tid};
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
    pub(crate) records: Vec<(Oid, Bytes)>,
}

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

    /// The current revision of each object.
    pub(crate) fn current(&self) -> BTreeMap<Oid, Tid> {
        let txns = self.committed();
        txns.flat_map(|txn| txn.records.iter().map(|(oid, _)| (*oid, txn.tid)))
            .collect()
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
        match found.iter().zip(&all).find(|(found, txn)| found != txn) {
            Some((found, txn)) => Err(format!("{} instead of {}", sketch(found), sketch(txn))),
            None => Ok(found.len() + dropped),
        }
    }

    /// Whether all that was committed, and nothing else, can be read.
    pub(crate) fn check_reads(&self, storage: &FileStorage) -> Result<(), String> {
        let look_up = |lookup| match storage.look_up(lookup) {
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("{lookup:?}: {error:?}")),
        };
        let current = self.current();
        if storage.object_count() != current.len() as u64 {
            let count = storage.object_count();
            return Err(format!("{count} objects instead of {}", current.len()));
        }
        let last_tid = self.committed().last().map_or(Tid::ZERO, |txn| txn.tid);
        if storage.last_tid() != last_tid {
            let found = storage.last_tid();
            return Err(format!("last tid {found} instead of {last_tid}"));
        }
        let committed = self.committed().count();
        let done = self.packs.iter().filter(|pack| pack.done.is_some()).count();
        let read_all = |packs: usize| {
            for txn in packed(&self.entries[..committed], &self.packs[..packs]) {
                for (oid, data) in &txn.records {
                    let lookup = Lookup::Serial(*oid, txn.tid);
                    if look_up(lookup)? != Answer::Data(data.clone()) {
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
            let expected = current.get(&oid);
            let expected = expected.map_or(Answer::Missing, |tid| Answer::Serial(*tid));
            let answer = look_up(Lookup::Current(oid))?;
            if answer != expected {
                return Err(format!("{oid}: {answer:?} instead of {expected:?}"));
            }
        }
        Ok(())
    }
}

/// All transactions of a data file up to `tail`, each with the right pointers.
pub(crate) fn read(disk: &dyn Disk, path: &Path, tail: u64) -> Result<Vec<Txn>, String> {
    let file = disk
        .open(path, OpenMode::Read)
        .map_err(|error| error.to_string())?;
    let damaged = |error: ReadError| error.to_string();
    let mut positions: BTreeMap<Oid, u64> = BTreeMap::new();
    let mut found = Vec::new();
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
            let data = records.data(&record).map_err(damaged)?;
            contents.push((header.oid, data.unwrap_or_default()));
        }
        found.push(Txn {
            tid: txn.header.tid,
            texts: [txn.user(), txn.descr(), txn.ext()].map(Bytes::copy_from_slice),
            records: contents,
        });
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
                txn.records
                    .retain(|(oid, _)| current.get(oid) == Some(&tid));
            }
            tid > pack.until || !txn.records.is_empty()
        });
    }
    txns
}

fn sketch(txn: &Txn) -> String {
    let records = txn.records.iter();
    let records: Vec<_> = records.map(|(oid, data)| (oid.0, data.len())).collect();
    format!("{} with {records:?} (oid, length)", txn.tid)
}
