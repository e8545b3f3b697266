//! The way of finished transactions to the disk.
//!
//! *Finish* fixes tid and position. Transactions that finish while the disk is busy form the next
//! *batch*. Only when it is finished on stable storage is it published, in tid order: index,
//! `last_tid`, then the events by which clients hear of it.
//!
//! A disk that loses power may keep any part of what was not synced. So opening must be able to
//! tell what is whole, and there are two ways to see to that:
//!
//! - *Witnessed* transactions show by themselves whether all of them is there (`witness`). A batch
//!   of such goes to the disk as it shall be, and waits for one sync.
//! - Others take two. The first brings their bytes, with status `'c'`: unfinished; the second their
//!   statuses as they shall be, one byte each. Before the first is done opening finds `'c'`, or no
//!   header at all, and cuts the batch (`recover`), as ZODB does; when a single status has reached
//!   the disk, all bytes are there. The second sync of a batch is the first of the next, if there
//!   is a next one.
//!
//! ```text
//!               ┌─ whole ────────────────────────┐
//!   finishing ──┤                                ├─► published
//!               └─ writing ─► written ─► sealing ┘
//! ```

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::commit_lock::Ticket;
use super::error::StorageError;
use super::format::{DataHeader, STATUS_POS, Status, TxnHeader};
use super::index::Index;
use super::job::{Append, Job, Part};
use super::layout::{LaidOut, Layout};
use super::staging::{Data, Rest, TXN_TRAILER_LEN, Txn, TxnId, TxnState};
use super::witness::{self, Mark, Sectors};
use super::{Changed, Event, FileStorage};
use crate::ids::{Oid, Tid};
use crate::limits::{SHARED_DATA_LEN_MIN, WITNESSED_LEN_MAX};

/// A transaction on its way to the disk.
#[derive(Debug)]
pub(super) struct Finishing {
    txn: TxnId,
    ticket: Ticket,
    header: TxnHeader,
    start: u64,
    /// Behind its last byte.
    end: u64,
    changes: Changes,
    parts: Vec<Part>,
    /// One sync is enough for it.
    is_witnessed: bool,
    /// Files of its blobs: where they are, and where they shall be.
    blobs: Vec<(PathBuf, PathBuf)>,
    /// To be dropped when it is over.
    rest: Rest,
}

/// Where the objects of a transaction are in the file.
#[derive(Debug)]
enum Changes {
    /// At these positions.
    Listed(Vec<(Oid, u64)>),
    /// The worker that writes the transaction finds that out.
    Prepared(Arc<Layout>),
}

/// What a worker has in hands.
#[derive(Debug, Default)]
pub(super) struct Appending {
    /// These get their status.
    sealing: Vec<Finishing>,
    /// These are written as they shall be.
    whole: Vec<Finishing>,
    /// The bytes of these are written.
    writing: Vec<Finishing>,
}

/// Whether transactions can be witnessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Witnessing {
    /// The witness is not there, or not of this file.
    Off,
    /// It is being written.
    Beginning,
    /// The same, but it is of no use any more.
    Cancelled,
    On,
}

/// A committed transaction, as it is published.
#[derive(Debug)]
pub struct Commit {
    /// Whose, if it is of this process.
    pub txn: Option<TxnId>,
    /// Its tid.
    pub tid: Tid,
    /// The objects that it changed, in the order of their records.
    pub oids: Arc<Vec<Oid>>,
    /// The same, as they are remembered.
    pub changed: Changed,
    /// Objects in the storage afterwards.
    pub object_count: u64,
    /// Length of the file afterwards, in bytes.
    pub len: u64,
}

impl FileStorage {
    /// Gives a voted transaction its tid and its place in the file. It is committed when the
    /// [`Event::Committed`] comes. `false` if it was not voted. If a log writes to the file, both
    /// are up to that: the transaction is proposed.
    pub fn finish(&mut self, id: TxnId, wall: Duration, now: Instant) -> bool {
        if self.feed.is_some() {
            return self.propose(id, now);
        }
        let Some(txn) = self.txns.get_mut(&id) else {
            return false;
        };
        let TxnState::Voted { ticket, len, .. } = txn.state else {
            return false;
        };
        if self.failed.is_some() {
            self.roll_back(id, now);
            self.events.push_back(Event::Lost(id));
            return true;
        }
        txn.state = TxnState::Finishing { ticket };
        let mut finishing = self.assign(id, ticket, wall);
        assert_eq!(
            (finishing.start, finishing.end - finishing.start),
            (self.assigned_end, len),
            "a transaction has another place or length"
        );
        if let Some(txn) = self.txns.get_mut(&id) {
            // They are in `finishing` now.
            finishing.rest = txn.take_rest();
            let staged = txn.blobs.take();
            finishing.blobs = self.blob_moves(staged, finishing.header.tid);
        }
        self.voted_len -= len;
        self.assigned_tid = finishing.header.tid;
        self.assigned_end = finishing.end;
        self.end_tid = Some(finishing.header.tid);
        self.finishing.push(finishing);
        let held = self.lock.downgrade(ticket);
        self.go_on(held, now);
        true
    }

    /// A transaction with the next tid and at the next place.
    fn assign(&mut self, id: TxnId, ticket: Ticket, wall: Duration) -> Finishing {
        let start = self.assigned_end;
        let txn = self.txns.get_mut(&id).expect("the caller has it");
        let given = txn.metadata.tid;
        let least = given.unwrap_or(Tid::from_unix_time(wall).max(self.assigned_tid.next()));
        assert!(
            least > self.assigned_tid,
            "a vote for a tid that is not above the last was granted"
        );
        let is_small = !txn.is_large() && txn.staging_file.is_none();
        let can_be_witnessed = is_small
            && given.is_none()
            && self.witnessing == Witnessing::On
            && txn.blobs.is_empty()
            && txn.metadata.status == Status::Finished.to_byte()
            && txn.len_in_file() <= WITNESSED_LEN_MAX;
        let current = |oid| self.index.get(oid);
        if can_be_witnessed {
            // What opening may find incomplete is a batch: no longer than it looks back.
            let end = start + txn.len_in_file();
            let room = |from: &u64| end - from <= WITNESSED_LEN_MAX;
            let from = self.batch_start.filter(room);
            let is_full = self.batch_start.is_some() && from.is_none();
            let batch = self.batch_number + u64::from(is_full);
            let is_first = from.is_none();
            let tid = witness::witnessed_from(least, Mark { batch, is_first });
            let mut finishing = lay_out(id, ticket, txn, tid, start, current);
            finishing.is_witnessed = true;
            finishing.set_status(Status::Finished);
            // At the end of time there are no such tids.
            if tid < Tid::END && !finishing.has_empty_sector() {
                self.batch_number = batch;
                self.batch_start = from.or(Some(start));
                return finishing;
            }
        }
        let tid = given.unwrap_or(witness::unwitnessed_from(least));
        let finishing = match txn.is_large() {
            true => lay_out_later(id, ticket, txn, tid, start, &self.index),
            false => lay_out(id, ticket, txn, tid, start, current),
        };
        // It must not be taken for a witnessed one: it may have empty sectors, and whoever gave it
        // the tid could make it look like one of any batch.
        if witness::mark_of(tid).is_some() {
            self.cancel_witness();
            self.ends_witness = true;
        }
        finishing
    }

    /// The tid that a transaction has got by [`Self::finish`], until it is committed.
    pub fn assigned_tid(&self, id: TxnId) -> Option<Tid> {
        let mut finishing = self.on_their_way();
        finishing
            .find(|one| one.txn == id)
            .map(|one| one.header.tid)
    }

    pub(super) fn on_their_way(&self) -> impl Iterator<Item = &Finishing> {
        let in_hands = self.appending.iter();
        let in_hands =
            in_hands.flat_map(|one| one.sealing.iter().chain(&one.whole).chain(&one.writing));
        in_hands.chain(&self.written).chain(&self.finishing)
    }

    /// Sends to the disk what is there to be sent, unless it is busy. To be called at the end of a
    /// turn, so that those who finish in the same turn share their syncs.
    pub fn flush(&mut self) {
        let wanted = !self.written.is_empty() || !self.finishing.is_empty();
        if self.appending.is_some() || !wanted || self.failed.is_some() {
            return;
        }
        let sealing = std::mem::take(&mut self.written);
        let mut batch = std::mem::take(&mut self.finishing);
        let first = batch.first();
        let pos = first.map_or(self.assigned_end, |first| first.start);
        if batch.iter().all(|one| one.is_witnessed) {
            // Up to where the next batch begins, if there was too much for one.
            let mark = |one: &Finishing| witness::mark_of(one.header.tid);
            let is_next = |one: &Finishing| mark(one).is_some_and(|mark| mark.is_first);
            let next = batch.iter().skip(1).position(is_next);
            self.finishing = next.map_or(Vec::new(), |next| batch.split_off(next + 1));
        } else {
            for one in &mut batch {
                one.set_status(Status::Voted);
                one.is_witnessed = false;
            }
        }
        if self.finishing.is_empty() {
            self.batch_number += 1;
            self.batch_start = None;
        }
        let (mut parts, mut blobs) = (Vec::new(), Vec::new());
        for one in &mut batch {
            parts.append(&mut one.parts);
            blobs.append(&mut one.blobs);
        }
        let seals = sealing.iter();
        let append = Append {
            parts,
            blobs,
            directory_maker: self.directory_maker(),
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: self.file.clone(),
            id: self.file_id,
            seals: seals.map(|one| (one.start, one.header.status)).collect(),
            pos,
            ends_witness: std::mem::take(&mut self.ends_witness),
        };
        let (whole, writing) = batch.into_iter().partition(|one| one.is_witnessed);
        self.appending = Some(Appending {
            sealing,
            whole,
            writing,
        });
        self.events
            .push_back(Event::Run(Job::Append(Box::new(append))));
    }

    /// Sees to it that transactions can be witnessed again, after a pack or a copied transaction.
    pub(super) fn begin_witness(&mut self) {
        if self.witnessing != Witnessing::Off || self.ends_witness || self.failed.is_some() {
            return;
        }
        self.witnessing = Witnessing::Beginning;
        self.events.push_back(Event::Run(Job::Witness {
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: self.file.clone(),
            inode: self.file_id.inode,
            pos: self.assigned_end,
            tid: self.end_tid,
        }));
    }

    /// From now on no transaction is witnessed.
    pub(super) fn cancel_witness(&mut self) {
        self.witnessing = match self.witnessing {
            Witnessing::Beginning | Witnessing::Cancelled => Witnessing::Cancelled,
            Witnessing::Off | Witnessing::On => Witnessing::Off,
        };
    }

    pub(super) fn on_witness(&mut self, result: Result<(), StorageError>) {
        let is_cancelled = self.witnessing == Witnessing::Cancelled;
        self.witnessing = match &result {
            Ok(()) if !is_cancelled => Witnessing::On,
            _ => Witnessing::Off,
        };
        match result {
            Ok(()) => self.witness_failed = false,
            // It is tried again every few seconds.
            Err(_) if std::mem::replace(&mut self.witness_failed, true) => {}
            Err(error) => log::warn!("{}: commits take two syncs each: {error}", self.name()),
        }
    }

    pub(super) fn on_appended(&mut self, result: io::Result<()>, now: Instant) {
        let Appending {
            sealing,
            whole,
            writing,
        } = self.appending.take().unwrap_or_default();
        let sealing = sealing.into_iter().chain(whole);
        self.written = writing;
        if let Err(error) = result {
            self.fail(&error);
            let later = std::mem::take(&mut self.finishing);
            let written = std::mem::take(&mut self.written);
            for finishing in sealing.chain(written).chain(later) {
                self.roll_back(finishing.txn, now);
                self.events.push_back(Event::Lost(finishing.txn));
            }
            return;
        }
        let mut held = Vec::new();
        for mut finishing in sealing {
            // Publishing before the sync would show a transaction that a power cut takes back.
            let (oids, changed) = self.publish(finishing.changes, &mut finishing.rest);
            self.tail = finishing.end;
            self.last_tid = finishing.header.tid;
            self.txns.remove(&finishing.txn);
            self.tickets.remove(&finishing.ticket);
            self.events.push_back(Event::Committed(Commit {
                txn: Some(finishing.txn),
                tid: finishing.header.tid,
                oids,
                changed,
                object_count: self.object_count(),
                len: self.tail,
            }));
            held.append(&mut self.lock.release(finishing.ticket));
            self.discard_rest(finishing.rest);
        }
        self.save_index_if_due();
        self.go_on(held, now);
    }

    /// Enters the new positions into the index; the objects that have them.
    fn publish(&mut self, changes: Changes, rest: &mut Rest) -> (Arc<Vec<Oid>>, Changed) {
        match changes {
            Changes::Listed(positions) => {
                for (oid, pos) in &positions {
                    self.index.insert(*oid, *pos);
                    self.oids.stored(*oid);
                }
                let oids: Vec<Oid> = positions.into_iter().map(|(oid, _)| oid).collect();
                (Arc::new(oids.clone()), Changed::new(oids))
            }
            Changes::Prepared(layout) => {
                let laid_out = layout.laid_out.get();
                let LaidOut {
                    change,
                    oids,
                    changed,
                    max_oid,
                } = laid_out.expect("who wrote it has laid it out");
                self.index.enter(change);
                if let Some(oid) = max_oid {
                    self.oids.stored(*oid);
                }
                let changes = (oids.clone(), changed.clone());
                rest.layout = Some(layout);
                changes
            }
        }
    }

    /// After this the file takes no more writes in this process: what the kernel has of it and
    /// what the disk has may differ.
    pub(super) fn fail(&mut self, error: &io::Error) {
        let reason = format!(
            "{}: a write failed, no more are taken: {error}",
            self.name()
        );
        log::error!("{reason}");
        self.failed = Some(reason);
    }
}

impl Finishing {
    /// Changes the status in its bytes, not in what it shall be.
    fn set_status(&mut self, status: Status) {
        // A large one is written with 'c' in any case.
        let Some(Part::Memory(first)) = self.parts.first_mut() else {
            return;
        };
        let mut bytes: BytesMut = std::mem::take(first).into();
        bytes[STATUS_POS as usize] = status.to_byte();
        *first = bytes.freeze();
    }

    fn has_empty_sector(&self) -> bool {
        let mut sectors = Sectors::from(self.start);
        for part in &self.parts {
            if let Part::Memory(bytes) = part {
                sectors.look_at(bytes);
            }
        }
        sectors.found()
    }
}

fn header(txn: &Txn, tid: Tid) -> TxnHeader {
    let metadata = &txn.metadata;
    let text_len = |text: &Bytes| u16::try_from(text.len()).expect("checked by the vote");
    TxnHeader {
        tid,
        // The length fields do not count the trailing one.
        len: txn.len_in_file() - TXN_TRAILER_LEN as u64,
        status: Status::from_byte(metadata.status),
        user_len: text_len(&metadata.user),
        descr_len: text_len(&metadata.description),
        ext_len: text_len(&metadata.extension),
    }
}

/// A large transaction, which the worker that writes it will lay out. Takes its records.
fn lay_out_later(
    id: TxnId,
    ticket: Ticket,
    txn: &mut Txn,
    tid: Tid,
    start: u64,
    index: &Index,
) -> Finishing {
    let header = header(txn, tid);
    let layout = Arc::new(Layout {
        header,
        metadata: txn.metadata.clone(),
        staging_file: txn.staging_file.clone(),
        records: std::mem::take(&mut txn.records),
        index: index.snapshot(),
        start,
        laid_out: OnceLock::new(),
    });
    Finishing {
        txn: id,
        ticket,
        header,
        start,
        end: start + txn.len_in_file(),
        changes: Changes::Prepared(layout.clone()),
        parts: vec![Part::Layout(layout)],
        is_witnessed: false,
        blobs: Vec::new(),
        rest: Rest::default(),
    }
}

/// The bytes of a transaction at its place in the file. Long data stay where they are; the rest is
/// gathered around them.
fn lay_out(
    id: TxnId,
    ticket: Ticket,
    txn: &Txn,
    tid: Tid,
    start: u64,
    current: impl Fn(Oid) -> Option<u64>,
) -> Finishing {
    let metadata = &txn.metadata;
    let header = header(txn, tid);
    let unfinished = TxnHeader {
        status: Status::Voted,
        ..header
    };
    let mut parts = Vec::new();
    let mut head = BytesMut::new();
    head.put_slice(&unfinished.encode());
    head.put_slice(&metadata.user);
    head.put_slice(&metadata.description);
    head.put_slice(&metadata.extension);
    let mut pos = start + header.header_len();
    let mut positions = Vec::with_capacity(txn.records.len());
    for record in &txn.records {
        let data = &record.data;
        let prev = current(record.oid).unwrap_or(0);
        let data_header = DataHeader {
            oid: record.oid,
            tid,
            prev,
            tloc: start,
            data_len: data.len() as u64,
        };
        head.put_slice(&data_header.encode());
        match data {
            Data::Memory(data) if data.len() < SHARED_DATA_LEN_MIN => head.put_slice(data),
            Data::Memory(data) => {
                parts.push(Part::Memory(head.split().freeze()));
                parts.push(Part::Memory(data.clone()));
            }
            Data::Staged { pos, len } => {
                if let Some(file) = &txn.staging_file {
                    parts.push(Part::Memory(head.split().freeze()));
                    parts.push(Part::Staged {
                        file: file.clone(),
                        pos: *pos,
                        len: *len,
                    });
                }
            }
            Data::Back(back) => head.put_u64(*back),
            Data::Gone => head.put_u64(0),
        }
        positions.push((record.oid, pos));
        pos += record.len_in_file();
    }
    head.put_u64(header.len);
    parts.push(Part::Memory(head.freeze()));
    Finishing {
        txn: id,
        ticket,
        header,
        start,
        end: pos + TXN_TRAILER_LEN as u64,
        changes: Changes::Listed(positions),
        parts,
        is_witnessed: false,
        blobs: Vec::new(),
        rest: Rest::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::disk::{Disk, File, OpenMode};
    use crate::storage::memory::MemoryDisk;
    use crate::storage::staging::{Base, LARGE_COUNT_MIN, Record};
    use crate::storage::testing::{Rig, metadata, options};
    use crate::storage::witness::Witness;
    use crate::storage::{LockScope, Lookup, Metadata, Options, Vote};

    /// Data of every kind and length, in memory and staged, of new objects and of others.
    fn txn(staging_file: Arc<dyn File>) -> Txn {
        let mut txn = Txn::new(metadata());
        let lens = [
            1,
            100,
            1023,
            1024,
            5000,
            65_535,
            65_536,
            70_000,
            1 << 20,
            3_000_000,
        ];
        let mut staged_len = 0;
        for (oid, len) in (0..).step_by(3).zip(lens.into_iter().cycle().take(30)) {
            let bytes: Vec<u8> = (0..len as u64).map(|n| (n * 31 / 7 + oid) as u8).collect();
            let data = match oid % 4 {
                0 | 1 => Data::Memory(bytes.into()),
                2 => Data::Back(1000 + oid),
                _ if oid % 8 == 3 => Data::Gone,
                _ => {
                    let pos = staged_len;
                    staged_len += len as u64;
                    let mut slices = [io::IoSlice::new(&bytes)];
                    staging_file.write_at(&mut slices, pos).unwrap();
                    Data::Staged { pos, len }
                }
            };
            txn.store(Record {
                oid: Oid(99 - oid),
                base: Base::Replaced(None),
                data,
                undos_before: 0,
            });
        }
        txn.on_spilled(staging_file);
        txn
    }

    fn contents(disk: &MemoryDisk, file: &str, finishing: &Finishing) -> Vec<u8> {
        let path = Path::new(file);
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        let mut pos = finishing.start;
        for part in &finishing.parts {
            pos += part.write(&*file, pos).unwrap();
        }
        assert_eq!(pos, finishing.end);
        disk.read(path).unwrap()
    }

    #[test]
    fn a_transaction_is_the_same_whoever_lays_it_out() {
        let mut index = Index::new();
        for oid in (0..99).step_by(2) {
            index.insert(Oid(oid), 7 + oid);
        }
        let disk = MemoryDisk::new();
        let mut txn = txn(disk.open_unnamed(Path::new("Data.fs")).unwrap());
        let (id, ticket) = (TxnId(1), Ticket::default());
        let at_once = lay_out(id, ticket, &txn, Tid(5), 4, |oid| index.get(oid));
        let later = lay_out_later(id, ticket, &mut txn, Tid(5), 4, &index);
        let expected = contents(&disk, "one", &at_once);
        assert!(contents(&disk, "other", &later) == expected);

        let mut rig = Rig::new(options());
        assert_eq!(rig.storage.allocate_oids(1), None);
        rig.settle();
        let mut publish = |changes| {
            rig.storage.index = index.snapshot();
            let oids = rig.storage.publish(changes, &mut Rest::default());
            let entries: Vec<_> = rig.storage.index.iter().collect();
            (oids, entries, rig.storage.oids.allocate(1))
        };
        // The second time the oids are those behind the ones that were handed out.
        let (oids, entries, next) = publish(at_once.changes);
        let (oids_later, entries_later, next_later) = publish(later.changes);
        assert_eq!((oids_later, entries_later), (oids, entries));
        assert_eq!(next, Some(100..101));
        assert_eq!(next_later, Some(101..102));
    }

    /// The appends that wait for a worker.
    fn appends(rig: &mut Rig) -> Vec<&Append> {
        rig.storage.flush();
        rig.collect();
        let appends = rig.jobs.iter().filter_map(|job| match job {
            Job::Append(append) => Some(&**append),
            _ => None,
        });
        appends.collect()
    }

    fn run_jobs(rig: &mut Rig) -> usize {
        for job in std::mem::take(&mut rig.jobs) {
            rig.storage.on_done(job.run(), rig.now);
        }
        rig.collect();
        let committed = |event: &Event| matches!(event, Event::Committed(_));
        let events = std::mem::take(&mut rig.events);
        events.into_iter().filter(committed).count()
    }

    fn finished(rig: &mut Rig, stores: &[(u64, u64, &'static str)]) -> TxnId {
        let id = rig.begin(stores);
        assert!(rig.storage.vote(id, rig.now));
        rig.storage.finish(id, rig.wall, rig.now);
        id
    }

    fn status_of(append: &Append) -> u8 {
        match &append.parts[0] {
            Part::Memory(bytes) => bytes[STATUS_POS as usize],
            part => panic!("{part:?}"),
        }
    }

    fn zeros() -> &'static str {
        Box::leak("\0".repeat(1100).into_boxed_str())
    }

    #[test]
    fn one_sync_is_enough_for_what_shows_whether_it_is_whole() {
        let mut rig = Rig::new(options());
        rig.commit(&[(1, 0, "one")]);
        let id = finished(&mut rig, &[(2, 0, "two")]);
        let tid = rig.storage.assigned_tid(id).unwrap();
        assert!(witness::mark_of(tid).is_some());
        let [append] = appends(&mut rig)[..] else {
            panic!("not one append");
        };
        assert_eq!((append.seals.len(), status_of(append)), (0, b' '));
        assert_eq!(run_jobs(&mut rig), 1);
        assert!(appends(&mut rig).is_empty());
        assert!(!rig.storage.is_writing());
        assert_eq!(rig.storage.last_tid(), tid);
    }

    #[test]
    fn an_empty_sector_makes_all_of_a_batch_wait_for_two_syncs() {
        let mut rig = Rig::new(options());
        rig.commit(&[(1, 0, "one")]);
        let ids = ["two", zeros(), "four"].map(|data| {
            let oid = 10 + rig.storage.txns_begun;
            finished(&mut rig, &[(oid, 0, data)])
        });
        let tids = ids.map(|id| rig.storage.assigned_tid(id).unwrap());
        assert!(tids.is_sorted());
        let marks = tids.map(|tid| witness::mark_of(tid).is_some());
        assert_eq!(marks, [true, false, true]);
        let [append] = appends(&mut rig)[..] else {
            panic!("not one append");
        };
        assert_eq!((append.seals.len(), status_of(append)), (0, b'c'));
        assert_eq!(run_jobs(&mut rig), 0);
        let [append] = appends(&mut rig)[..] else {
            panic!("not one append");
        };
        assert_eq!(append.seals.len(), 3);
        assert_eq!(run_jobs(&mut rig), 3);
        // And the next one needs one sync again, and begins a batch.
        let id = finished(&mut rig, &[(20, 0, "next")]);
        let tid = rig.storage.assigned_tid(id).unwrap();
        assert!(witness::mark_of(tid).unwrap().is_first);
        appends(&mut rig);
        assert_eq!(run_jobs(&mut rig), 1);
    }

    #[test]
    fn a_transaction_of_many_objects_is_visible_as_a_whole() {
        let mut rig = Rig::new(options());
        let oids = || 1..=3 * LARGE_COUNT_MIN as u64;
        let stores: Vec<_> = oids().map(|oid| (oid, 0, "one")).collect();
        let first = rig.commit(&stores);
        let stores: Vec<_> = oids().map(|oid| (oid + 1000, first.0, "two")).collect();
        let id = rig.begin(&stores);
        rig.vote(id);
        rig.finish(id);
        // An object that shares a chunk of the index with it is committed meanwhile.
        let other = rig.begin(&[(1, first.0, "other")]);
        rig.vote_and_leave(other);
        rig.finish(other);
        let seen = |rig: &Rig| {
            let serials = oids().map(|oid| rig.look_up(Lookup::Current(Oid(oid + 1000))));
            let mut serials: Vec<_> = serials.map(|serial| format!("{serial:?}")).collect();
            serials.dedup();
            (serials.len(), rig.storage.object_count())
        };
        let before = seen(&rig);
        assert_eq!(before, (2, 3 * LARGE_COUNT_MIN as u64));
        rig.storage.flush();
        rig.collect();
        while !rig.jobs.is_empty() {
            let done = rig.jobs.remove(0).run();
            rig.storage.on_done(done, rig.now);
            let now = seen(&rig);
            assert!(now == before || now == (1, before.1 + 1000), "{now:?}");
            rig.storage.flush();
            rig.collect();
        }
        assert_eq!(seen(&rig), (1, before.1 + 1000));
        let [Event::Committed(one), Event::Committed(two)] = &rig.events[..] else {
            panic!("{:?}", rig.events);
        };
        assert_eq!((one.txn, two.txn), (Some(id), Some(other)));
        let changed: Vec<Oid> = stores.iter().map(|(oid, ..)| Oid(*oid)).collect();
        assert_eq!(*one.oids, changed);
        assert_eq!(rig.current(1).unwrap().0, "other");
        assert_eq!(rig.current(2000).unwrap().0, "two");
        assert!(rig.storage.txns.is_empty());
    }

    #[test]
    fn a_large_transaction_with_a_conflict_is_told_of_it_and_goes_on() {
        let mut rig = Rig::new(options());
        let tid = rig.commit(&[(7, 0, "first")]);
        let stores: Vec<_> = (1..=3000).map(|oid| (oid, 0, "data")).collect();
        let id = rig.begin(&stores);
        let events = rig.vote(id);
        let [Event::Voted(_, Vote::Conflicts(conflicts))] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!((conflicts.len(), conflicts[0].oid), (1, Oid(7)));
        assert_eq!(conflicts[0].data, "data");
        let data = Bytes::from_static(b"resolved");
        assert!(rig.storage.store(id, Oid(7), Some(tid), data));
        assert!(rig.end(id) > tid);
        assert_eq!(rig.current(7).unwrap().0, "resolved");
        assert_eq!(rig.current(3000).unwrap().0, "data");
    }

    #[test]
    fn a_large_transaction_that_is_given_up_while_it_is_compared_is_forgotten() {
        let mut rig = Rig::new(options());
        let stores: Vec<_> = (1..=3000).map(|oid| (oid, 0, "data")).collect();
        let id = rig.begin(&stores);
        assert!(rig.storage.vote(id, rig.now));
        rig.storage.abort(id, rig.now);
        assert!(rig.settle().is_empty());
        rig.commit(&[(7, 0, "next")]);
        assert_eq!(rig.storage.object_count(), 1);
    }

    /// A transaction that is to be finished, with an object of so many bytes.
    fn voted(rig: &mut Rig, oid: u64, len: usize, tid: Option<Tid>) -> TxnId {
        let metadata = Metadata { tid, ..metadata() };
        let id = rig.storage.begin(metadata);
        let data = Bytes::from(vec![b'x'; len]);
        assert!(rig.storage.store(id, Oid(oid), None, data));
        rig.vote(id);
        id
    }

    fn tids(rig: &mut Rig) -> Vec<Tid> {
        let commits = rig.settle().into_iter().map(|event| match event {
            Event::Committed(commit) => commit.tid,
            event => panic!("{event:?}"),
        });
        commits.collect()
    }

    fn witness(rig: &Rig) -> Option<Witness> {
        Witness::load(&*rig.storage.disk, &rig.storage.path).unwrap()
    }

    #[test]
    fn a_witnessed_batch_is_no_longer_than_opening_looks_back() {
        let mut rig = Rig::new(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let ids: Vec<TxnId> = (0..8)
            .map(|oid| voted(&mut rig, oid, 300_000, None))
            .collect();
        let (ids, late) = ids.split_at(7);
        for id in ids {
            rig.finish(*id);
        }
        let mut batches = Vec::new();
        rig.storage.flush();
        rig.finish(late[0]);
        while let Some(appending) = &rig.storage.appending {
            assert!(appending.writing.is_empty() && appending.sealing.is_empty());
            let whole = &appending.whole;
            let len = whole[whole.len() - 1].end - whole[0].start;
            assert!(len <= WITNESSED_LEN_MAX);
            let marks = whole.iter().map(|one| witness::mark_of(one.header.tid));
            let marks: Vec<Mark> = marks.map(Option::unwrap).collect();
            batches.push(marks);
            rig.collect();
            let done = rig.jobs.remove(0).run();
            rig.storage.on_done(done, rig.now);
            rig.storage.flush();
        }
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2]);
        for (number, batch) in (0..).zip(&batches) {
            for (at, mark) in batch.iter().enumerate() {
                let is_first = at == 0;
                assert_eq!((mark.batch, mark.is_first), (number % 2, is_first));
            }
        }
        assert_eq!(rig.storage.object_count(), 8);
    }

    #[test]
    fn a_given_tid_that_looks_like_a_witnessed_one_ends_the_witness() {
        let mut rig = Rig::new(options());
        let first = rig.commit(&[(1, 0, "one")]);
        assert!(witness::mark_of(first).is_some() && witness(&rig).is_some());
        let (batch, is_first) = (0, false);
        let given = witness::witnessed_from(first.next(), Mark { batch, is_first });
        let id = voted(&mut rig, 2, 100, Some(given));
        rig.finish(id);
        rig.storage.flush();
        rig.collect();
        // Before anything of it is written.
        let Some(Job::Append(append)) = rig.jobs.first() else {
            panic!("{:?}", rig.jobs);
        };
        assert!(append.ends_witness);
        assert_eq!(tids(&mut rig), [given]);
        assert_eq!(witness(&rig), None);
        let unwitnessed = rig.commit(&[(3, 0, "three")]);
        assert_eq!(witness::mark_of(unwitnessed), None);
        rig.storage.on_timer(rig.now);
        rig.settle();
        let witness = witness(&rig).unwrap();
        assert_eq!(
            (witness.pos, witness.tid),
            (rig.storage.tail, rig.storage.last_tid)
        );
        assert!(witness.is_of(&*rig.storage.file));
        let tid = rig.commit(&[(4, 0, "four")]);
        assert!(witness::mark_of(tid).is_some());
        // Others do not.
        let given = witness::unwitnessed_from(Tid(tid.0 + 7));
        let id = voted(&mut rig, 5, 100, Some(given));
        rig.finish(id);
        assert_eq!(tids(&mut rig), [given]);
        let tid = rig.commit(&[(6, 0, "six")]);
        assert!(witness::mark_of(tid).is_some());
        let disk = rig.storage.disk.clone();
        rig.storage.close().unwrap();
        let left = Witness::load(&*disk, Path::new("Data.fs")).unwrap();
        assert_eq!(left, None);
    }

    #[test]
    fn a_witness_that_is_cancelled_while_it_is_written_is_never_relied_on() {
        let mut rig = Rig::new(options());
        rig.storage.witnessing = Witnessing::Off;
        rig.storage.on_timer(rig.now);
        rig.collect();
        let begun = rig.jobs.remove(0);
        let (batch, is_first) = (0, false);
        let given = witness::witnessed_from(Tid(1 << 58), Mark { batch, is_first });
        let id = voted(&mut rig, 2, 100, Some(given));
        rig.finish(id);
        rig.storage.flush();
        rig.collect();
        // Before that is told of.
        let begun = begun.run();
        rig.storage.on_timer(rig.now);
        rig.storage.on_done(begun, rig.now);
        assert_eq!(rig.storage.witnessing, Witnessing::Off);
        assert_eq!(tids(&mut rig), [given]);
        assert_eq!(witness(&rig), None);
        rig.storage.on_timer(rig.now);
        rig.settle();
        assert_eq!(rig.storage.witnessing, Witnessing::On);
    }
}
