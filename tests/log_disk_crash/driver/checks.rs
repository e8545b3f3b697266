//! Holds what is on the disk against the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use standby::entry::Entry;
use standby::ids::{Digest, Oid, Seq, Tid};
use standby::log_disk::PackOrder;
use standby::replica::event::{LogStart, Start};
use standby::replica::settings::Kind;
use standby::storage::disk::{Disk, File};
use standby::storage::error::ReadError;
use standby::storage::format::Status;
use standby::storage::iterate::Transactions;
use standby::storage::read::Found as Loaded;
use standby::storage::recover::{self, Access};
use standby::storage::transfer::Transfer;

use super::{Driver, STORAGES, Stop, data_path, wrong};
use crate::ledger::{
    Maybe, Pack, State, Txn, begin, contents, expected_txns, fold, history, index, packed,
};
use crate::reader;

impl Driver {
    pub(super) fn check(&self, state: &State, start: &Start) -> Result<(), String> {
        let LogStart {
            before,
            last,
            ends,
            committed,
            applied,
            settled,
            settings,
            changes,
            ..
        } = &start.log;
        let entries = self.ledger.entries_of(state);
        let (len, applied, before) = (index(last.seq), index(*applied), index(before.seq));
        if start.history != history(state.history) {
            return Err("another history".to_owned());
        }
        if ![state.promised, state.may_promise].contains(&start.promised) {
            return Err("another promise".to_owned());
        }
        if !(state.must..=state.may.len()).contains(&len) {
            return Err("entries are missing, or too many".to_owned());
        }
        if !(state.settled..=state.applied.max(state.settled)).contains(&applied) {
            return Err("too little or too much is applied".to_owned());
        }
        if index(*committed) < state.committed {
            return Err("what was committed is not known any more".to_owned());
        }
        if index(*settled) > applied || applied > index(*committed) || before > index(*settled) {
            return Err("marks in the wrong order".to_owned());
        }
        let expected = match len.checked_sub(1) {
            Some(at) if len > state.begins_behind => entries[at].point(),
            _ => begin(state, &entries[..len]),
        };
        if *last != expected {
            return Err("another last entry".to_owned());
        }
        let log = self.log.as_ref().expect("it is open");
        let read = log.entries(Seq(before as u64 + 1), Seq(u64::MAX), u64::MAX);
        let read = read.map_err(|error| error.to_string())?;
        if read.as_deref() != Some(&entries[before..len]) {
            return Err("other entries".to_owned());
        }
        if ends.last().map(|end| end.seq) != (len > before).then_some(last.seq) {
            return Err(format!("epochs end at {ends:?}"));
        }
        let folded = fold(&entries[..index(*settled)], state);
        let mut found = settings.clone();
        if *settings != folded {
            return Err(format!("settings {settings:?}, expected {folded:?}"));
        }
        for (seq, change) in changes {
            found = found.changed(change, *seq);
        }
        if found != fold(&entries[..len], state) {
            return Err("other changes".to_owned());
        }
        if *log.settings() != fold(&entries[..applied], state) {
            return Err("other settings as of what is applied".to_owned());
        }
        let missing = log.missing_blobs(&entries[applied.max(before)..len]);
        let missing = missing.map_err(|error| error.to_string())?;
        if !missing.is_empty() {
            return Err(format!("{missing:?} are not there"));
        }
        self.check_data(state, &entries, applied)
    }

    /// What is in the data files, if so many of the entries are applied.
    pub(super) fn check_data(
        &self,
        state: &State,
        entries: &[Entry],
        applied: usize,
    ) -> Result<(), String> {
        for (number, (storage, has_blobs)) in STORAGES.into_iter().enumerate() {
            let (way, txns) = self.packs_found(state, number, entries, applied)?;
            self.check_loads(storage, &txns)?;
            if has_blobs {
                self.check_blobs(storage, &way, &entries[..applied])?;
            }
        }
        self.check_orders(state, &entries[..applied])
    }

    /// Which packs an open data file has had, and what is in it.
    pub(super) fn packs_found(
        &self,
        state: &State,
        number: usize,
        entries: &[Entry],
        applied: usize,
    ) -> Result<(Vec<Pack>, Vec<Txn>), String> {
        let log = self.log.as_ref().expect("it is open");
        let (storage, _) = STORAGES[number];
        let (file, tail) = log.data_file(storage).expect("it is configured");
        let found = read(file, tail)?;
        match way_to(
            &found,
            |txn| txn,
            entries,
            [applied, state.applied],
            number,
            state,
        ) {
            Some(way) => Ok((way, found)),
            None => {
                let ways = state.packs_of(number);
                let of_way = |way: &Vec<Pack>| show(&contents(&entries[..applied], storage, way));
                let ways: Vec<String> = ways.iter().map(of_way).collect();
                let found = show(&found);
                Err(format!(
                    "{storage}: found {found}, expected one of {ways:?}"
                ))
            }
        }
    }

    /// Each revision that is in a data file is found, whenever it is asked for.
    fn check_loads(&self, storage: &str, txns: &[Txn]) -> Result<(), String> {
        let log = self.log.as_ref().expect("it is open");
        let mut revisions: BTreeMap<Oid, Vec<(Tid, Option<Bytes>)>> = BTreeMap::new();
        for txn in txns {
            for (oid, data) in &txn.records {
                let of_it = revisions.entry(*oid).or_default();
                of_it.push((txn.tid, data.clone()));
            }
        }
        for (oid, all) in revisions {
            for (at, (tid, data)) in all.iter().enumerate() {
                let end = all.get(at + 1).map(|(tid, _)| *tid);
                let expected = match data {
                    Some(data) => Loaded::Revision {
                        data: data.clone(),
                        serial: *tid,
                        end,
                    },
                    None => Loaded::Deleted,
                };
                // As soon as it is there, and as long as it is.
                for before in [tid.next(), end.unwrap_or(Tid::MAX)] {
                    let found = log.load(storage, oid, before);
                    if found.map_err(|error| error.to_string())? != Some(expected.clone()) {
                        return Err(format!("{storage}: another {oid} before {before}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Blobs of what is in the data file are in their places. Those of what was dropped are not,
    /// once that has been seen to; until then they may be.
    fn check_blobs(&self, storage: &str, way: &[Pack], entries: &[Entry]) -> Result<(), String> {
        let dropped = dropped(entries, storage, way);
        for (oid, tid, sha) in blobs(entries, storage) {
            let place = blob_place(oid, tid);
            let pack = dropped.iter().find(|it| (it.0, it.1) == (oid, tid));
            match (self.disk.read(Path::new(&place)), pack) {
                (Ok(_), Some((.., pack))) if pack.is_swept => {
                    return Err(format!("{place} is there, though it was packed away"));
                }
                (Ok(found), _) if digest(&SHA256, &found).as_ref() != sha.0 => {
                    return Err(format!("{place}: another content"));
                }
                (Err(error), None) => return Err(format!("{place}: {error}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Packs that were ordered are known, and whether they are done.
    fn check_orders(&self, state: &State, applied: &[Entry]) -> Result<(), String> {
        let log = self.log.as_ref().expect("it is open");
        let mut found = log.pack_orders();
        for (storage, pack) in fold(applied, state).packs {
            let before = expected_txns(&applied[..index(pack.at) - 1], &storage);
            let through = before.last().map_or(Tid::ZERO, |txn| txn.tid);
            let of_it = |it: &&Pack| STORAGES[it.storage].0 == storage && it.at == pack.at;
            let is_noted = state.packs.iter().find(of_it).map(|it| it.is_noted);
            let order = found.remove(&storage);
            let is_done = order.is_some_and(|order| order.is_done);
            let expected = PackOrder {
                at: pack.at,
                until: pack.tid.min(through),
                is_done: match is_noted {
                    Some(Maybe::Yes) => true,
                    Some(Maybe::Perhaps) => is_done,
                    Some(Maybe::No) | None => false,
                },
            };
            if order != Some(expected) {
                return Err(format!("{storage}: {order:?}, expected {expected:?}"));
            }
        }
        match found.is_empty() {
            true => Ok(()),
            false => Err(format!("nobody has ordered {found:?}")),
        }
    }

    /// Whoever opens a data file by itself finds whole transactions, all that are settled and none
    /// that is not committed.
    pub(super) fn check_data_files(&self) -> Result<(), Stop> {
        let current = &self.ledger.current;
        let states: Vec<&State> = [Some(current), current.or.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        for (number, (storage, _)) in STORAGES.into_iter().enumerate() {
            let path = data_path(storage);
            let Ok(bytes) = self.disk.read(&path) else {
                if current.is_founded {
                    return wrong(format!("{storage}: there is no data file"));
                }
                continue;
            };
            let as_zodb = reader::tids(&bytes).map_err(Stop::Wrong)?;
            let opened = recover::open(&self.disk, &path, Access::ReadOnly, &mut |_| ());
            let opened = opened.map_err(|error| Stop::Wrong(format!("{storage}: {error}")))?;
            let ours = read(opened.file, opened.tail).map_err(Stop::Wrong)?;
            let is_here = |state: &&State| {
                let all = self.ledger.entries_of(state);
                let upto = [state.settled, state.applied];
                way_to(&ours, |txn| txn, &all, upto, number, state).is_some()
                    && way_to(&as_zodb, |txn| txn.tid, &all, upto, number, state).is_some()
            };
            if !states.iter().any(is_here) {
                let found = show(&ours);
                return wrong(format!("{storage}: {found}; {as_zodb:?} ({current:?})"));
            }
        }
        Ok(())
    }
}

/// The packs that have made of the entries what was found; `None` if it cannot have become that.
/// At least so many of them were applied, and at most so many.
fn way_to<T: PartialEq>(
    found: &[T],
    of_txn: impl Fn(Txn) -> T,
    entries: &[Entry],
    [least, most]: [usize; 2],
    number: usize,
    state: &State,
) -> Option<Vec<Pack>> {
    let (storage, _) = STORAGES[number];
    let after = |count: usize, way: &[Pack]| -> Vec<T> {
        let txns = contents(&entries[..count], storage, way);
        txns.into_iter().map(&of_txn).collect()
    };
    let is_it = |way: &Vec<Pack>| {
        // Nothing is packed before all is on stable storage that has a say in it.
        let least = least.max(way.last().map_or(0, |pack| index(pack.at)));
        found.starts_with(&after(least, way)) && after(most.max(least), way).starts_with(found)
    };
    state.packs_of(number).into_iter().find(is_it)
}

/// All transactions of a data file, with what stands in their records.
fn read(file: Arc<dyn File>, tail: u64) -> Result<Vec<Txn>, String> {
    let damaged = |error: ReadError| error.to_string();
    let mut txns = Transactions::from_pos(file, 4, tail);
    let mut found = Vec::new();
    while let Some(txn) = txns.next().transpose().map_err(damaged)? {
        let is_packed = match txn.header.status {
            // What was not settled may be shown.
            Status::Finished | Status::Voted => false,
            Status::Packed => true,
            status => return Err(format!("status {status:?} at {}", txn.pos)),
        };
        let mut records = txns.records(&txn);
        let mut contents = Vec::new();
        while let Some(record) = records.next().transpose().map_err(damaged)? {
            let data = records.data(&record).map_err(damaged)?;
            contents.push((record.header.oid, data));
        }
        found.push(Txn {
            tid: txn.header.tid,
            is_packed,
            records: contents,
        });
    }
    Ok(found)
}

/// The blobs of a storage that these entries have brought.
pub(super) fn blobs(entries: &[Entry], storage: &str) -> Vec<(Oid, Tid, Digest)> {
    let mut found = Vec::new();
    for entry in entries {
        let header = entry.header();
        if header.kind == Kind::Transaction.number() {
            let transfer = Transfer::decode(entry.body()).unwrap();
            let blobs = transfer.blobs.iter();
            let blobs = blobs.filter(|_| transfer.storage == storage);
            found.extend(blobs.map(|blob| (blob.oid, header.tid, blob.digest)));
        }
    }
    found
}

/// The revisions that packs have dropped, and which of the packs.
pub(super) fn dropped(entries: &[Entry], storage: &str, way: &[Pack]) -> Vec<(Oid, Tid, Pack)> {
    let mut txns = expected_txns(entries, storage);
    let mut dropped = Vec::new();
    for pack in way {
        let before = revisions(&txns);
        txns = packed(txns, pack);
        let gone = &before - &revisions(&txns);
        dropped.extend(gone.into_iter().map(|(oid, tid)| (oid, tid, *pack)));
    }
    dropped
}

fn revisions(txns: &[Txn]) -> BTreeSet<(Oid, Tid)> {
    let of_txn = |txn: &Txn| {
        let tid = txn.tid;
        txn.records
            .clone()
            .into_iter()
            .map(move |(oid, _)| (oid, tid))
    };
    txns.iter().flat_map(of_txn).collect()
}

fn blob_place(oid: Oid, tid: Tid) -> String {
    format!(
        "blobs/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x{:02x}/0x{:04x}.blob",
        oid.0, tid.0
    )
}

fn show(txns: &[Txn]) -> String {
    let txns = txns.iter().map(|txn| {
        let oids = txn.records.iter().map(|(oid, _)| oid.0.to_string());
        let oids: Vec<String> = oids.collect();
        let status = if txn.is_packed { "p" } else { "" };
        format!("{:x}{status}({})", txn.tid.0, oids.join(" "))
    });
    txns.collect::<Vec<_>>().join(" ")
}
