//! Drives a [`FileStorage`] without threads, as the reactor does with them, and keeps the ledger.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::ids::{Oid, Tid};
use standby::limits::{BLOB_WRITE_LEN, INDEX_SAVE_INTERVAL};
use standby::storage::disk::{Disk, OpenMode};
use standby::storage::format::{DATA_HEADER_LEN, DataHeader, Status, TXN_HEADER_LEN, TxnHeader};
use standby::storage::{
    Commit, Event, FileStorage, Job, LockScope, Metadata, Options, PackError, PackOptions, Packed,
    Refusal, TxnId, Vote,
};

use crate::disk::SimDisk;
use crate::ledger::{self, Ledger, Txn};
use crate::random::Random;

pub(crate) const DATA_PATH: &str = "Data.fs";
pub(crate) const BLOB_DIR: &str = "blobs";

/// How the record of a blob begins.
const BLOB_RECORD: &[u8] = b"\x80\x03cZODB.blob\nBlob\nq\x00.";

/// Why a run ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The storage cannot be opened, or closed. What a failing disk may do.
    Disk(String),
    /// Something is wrong.
    Wrong(String),
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

/// How often something happened, so that a test can tell that it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Batches of several transactions.
    pub(crate) shared_batches: usize,
    /// Finishes while the disk was busy.
    pub(crate) overlapping: usize,
    pub(crate) conflicts: usize,
    pub(crate) aborts: usize,
    pub(crate) indexes: usize,
    pub(crate) ceilings: usize,
    /// Transactions undone, and undos that had to be refused.
    pub(crate) undos: usize,
    pub(crate) impossible_undos: usize,
    /// Revisions restored, and objects deleted.
    pub(crate) restored: usize,
    pub(crate) deleted: usize,
    /// Votes refused because of the disk.
    pub(crate) refusals: usize,
    pub(crate) packs: usize,
    pub(crate) packs_failed: usize,
    /// Transactions committed while a pack was on its way.
    pub(crate) beside_packs: usize,
    pub(crate) blobs: usize,
    pub(crate) blobs_undone: usize,
    /// Objects with empty sectors.
    pub(crate) sparse: usize,
    /// Transactions with a header in two sectors.
    pub(crate) straddling: usize,
}

/// Clients, reactor and workers in one.
pub(crate) struct Driver {
    pub(crate) disk: SimDisk,
    pub(crate) ledger: Ledger,
    pub(crate) random: Random,
    pub(crate) seen: Seen,
    /// Tells clients too early: when their transactions are written, not when they are sealed.
    pub(crate) hasty: bool,
    storage: Option<FileStorage>,
    /// In the hands of the workers.
    jobs: VecDeque<Job>,
    votes: BTreeMap<TxnId, Vote>,
    /// Finished and not answered, with their places in the ledger.
    in_flight: VecDeque<(TxnId, usize)>,
    /// A finish has failed since the storage was opened.
    lost: bool,
    now: Instant,
    wall: Duration,
    lock_scope: LockScope,
    pack: PackOptions,
}

impl Driver {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    pub(crate) fn new(disk: SimDisk, ledger: Ledger, random: Random) -> Self {
        let last = ledger.entries.last();
        let wall = last.map_or(Duration::from_secs(1_800_000_000), |entry| {
            entry.txn.tid.unix_time() + Duration::from_secs(1)
        });
        Self {
            disk,
            ledger,
            seen: Seen::default(),
            hasty: false,
            storage: None,
            jobs: VecDeque::new(),
            votes: BTreeMap::new(),
            in_flight: VecDeque::new(),
            lost: false,
            now: Instant::now(),
            wall,
            lock_scope: match { random.clone() }.below(2) {
                0 => LockScope::Storage,
                _ => LockScope::Objects,
            },
            // Its objects are no pickles, and have no references.
            pack: PackOptions {
                gc: false,
                keep_old: { random.clone() }.below(4) < 2,
            },
            random,
        }
    }

    /// Opens the storage and holds what is there against the ledger.
    pub(crate) fn open(&mut self) -> Result<(), Stop> {
        let options = Options {
            name: "1".to_owned(),
            read_only: false,
            create: false,
            quota: None,
            client_resolves: true,
            lock_scope: self.lock_scope,
            pack: self.pack,
            blob_dir: Some(BLOB_DIR.into()),
        };
        let disk = Arc::new(self.disk.clone());
        let path = Path::new(DATA_PATH);
        let storage = FileStorage::open(disk, path, options, &mut |_| ())
            .map_err(|error| Stop::Disk(format!("cannot be opened: {error}")))?;
        let (found, ends) = ledger::read(&self.disk, path, storage.file_len())?;
        let is_straddling = |end: &&u64| (490..512).contains(&(**end % 512));
        self.seen.straddling += ends.iter().filter(is_straddling).count();
        let left = ["Data.fs.pack", "Data.fs.old.new"].map(|name| self.disk.exists(name));
        if left.contains(&true) {
            return Err(Stop::Wrong("something is left of a pack".to_owned()));
        }
        self.ledger.settle(&found, self.disk.step_count())?;
        self.ledger.check_reads(&storage)?;
        self.ledger.check_blobs(&self.disk, Path::new(BLOB_DIR))?;
        self.storage = Some(storage);
        Ok(())
    }

    /// The process dies, and another server has the file: it takes what is whole for committed,
    /// writes a transaction, and dies, too.
    pub(crate) fn have_another_server(&mut self) -> Result<(), Stop> {
        self.settle()?;
        self.kill();
        let disk = |error| Stop::Disk(format!("another server: {error}"));
        let open = |name| self.disk.open(Path::new(name), OpenMode::Write);
        // As `zc.lockfile` does it, but that leaves the sync to the system.
        let (lock, pid) = (open("Data.fs.lock").map_err(disk)?, b" 77\n");
        let pid_len = pid.len() as u64;
        { lock.write_at(&mut [IoSlice::new(pid)], 0) }.map_err(disk)?;
        { lock.set_len(pid_len) }
            .and_then(|()| lock.sync())
            .map_err(disk)?;
        let file = open(DATA_PATH).map_err(disk)?;
        let pos = file.len().map_err(disk)?;
        self.wall += Duration::from_secs(1);
        // Its tid is as those of ours are, which happens now and then, and there are empty sectors.
        let data = Bytes::from(vec![0; 1500]);
        let oid = Oid(0);
        let tid = marked_from(Tid::from_unix_time(self.wall));
        let current = ledger::position(&self.disk, Path::new(DATA_PATH), pos, oid)?;
        let header = TxnHeader {
            tid,
            len: (TXN_HEADER_LEN + DATA_HEADER_LEN + data.len()) as u64,
            status: Status::Finished,
            user_len: 0,
            descr_len: 0,
            ext_len: 0,
        };
        let record = DataHeader {
            oid,
            tid,
            prev: current,
            tloc: pos,
            data_len: data.len() as u64,
        };
        let len = header.len.to_be_bytes();
        let bytes = [&header.encode()[..], &record.encode(), &data, &len].concat();
        { file.write_at(&mut [IoSlice::new(&bytes)], pos) }.map_err(disk)?;
        let finished = self.disk.step_count();
        file.sync().map_err(disk)?;
        let committed = Some(self.disk.step_count());
        let txn = Txn {
            tid,
            texts: Default::default(),
            records: vec![(oid, Some(data))],
            blobs: Vec::new(),
        };
        self.ledger.entries.push(ledger::Entry {
            txn,
            finished,
            committed,
        });
        Ok(())
    }

    /// Waits for all that is in flight and closes the storage in good order.
    pub(crate) fn close(&mut self) -> Result<(), Stop> {
        self.settle()?;
        self.check_serving()?;
        let storage = self.storage.take().expect("open");
        let closed = storage.close();
        self.kill();
        closed.map_err(|error| Stop::Disk(format!("cannot be closed: {error}")))
    }

    /// The process dies.
    pub(crate) fn kill(&mut self) {
        self.storage = None;
        self.jobs.clear();
        self.votes.clear();
        self.in_flight.clear();
        self.lost = false;
    }

    pub(crate) fn storage(&mut self) -> &mut FileStorage {
        self.storage.as_mut().expect("open")
    }

    /// What was committed can be read whatever happened; after a failed write nothing is written.
    pub(crate) fn check_serving(&mut self) -> Result<(), Stop> {
        let storage = self.storage.as_ref().expect("open");
        self.ledger.check_reads(storage)?;
        if self.lost {
            let (id, _) = self.begin(&[(Oid(0), 10)]);
            if !matches!(self.vote(id)?, Vote::Refused(Refusal::Disk(_))) {
                return Err(Stop::Wrong(
                    "a vote was granted after a failed write".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// Ends a turn of the reactor.
    pub(crate) fn turn(&mut self) -> Result<(), Stop> {
        self.storage().flush();
        while let Some(event) = self.storage().poll_event() {
            match event {
                Event::Run(job) => {
                    match job {
                        Job::SaveIndex { .. } => self.seen.indexes += 1,
                        Job::RaiseOids { .. } => self.seen.ceilings += 1,
                        _ => {}
                    }
                    self.jobs.push_back(job);
                }
                Event::Voted(id, vote) => {
                    self.votes.insert(id, vote);
                }
                Event::Committed(commit) => self.on_committed(commit)?,
                Event::Lost(id) => {
                    self.lost = true;
                    self.in_flight.retain(|(lost, _)| *lost != id);
                }
                Event::OidsRaised { .. } | Event::Spilled(_) => {}
                Event::Packed(ended) => self.on_packed(ended)?,
                Event::Propose(_)
                | Event::Offer(..)
                | Event::Withdraw(_)
                | Event::OidsWanted { .. } => {
                    return Err(Stop::Wrong("there is no log".to_owned()));
                }
            }
        }
        Ok(())
    }

    fn on_committed(&mut self, commit: Commit) -> Result<(), Stop> {
        let step = self.disk.step_count();
        let Some((id, place)) = self.in_flight.pop_front() else {
            return Err(Stop::Wrong(format!("{} was not in flight", commit.tid)));
        };
        let entry = &mut self.ledger.entries[place];
        if (commit.txn, commit.tid) != (Some(id), entry.txn.tid) {
            let expected = entry.txn.tid;
            return Err(Stop::Wrong(format!("{commit:?}, but {expected} was next")));
        }
        entry.committed.get_or_insert(step);
        self.seen.beside_packs += usize::from(self.storage().is_packing());
        Ok(())
    }

    fn on_packed(&mut self, ended: Result<Packed, PackError>) -> Result<(), Stop> {
        let step = self.disk.step_count();
        let Some(pack) = self.ledger.packs.last_mut() else {
            return Err(Stop::Wrong("nobody had asked for a pack".to_owned()));
        };
        match ended {
            Ok(packed) if packed.switched => {
                pack.done.get_or_insert(step);
                self.seen.packs += 1;
                let directory = Path::new(BLOB_DIR);
                // What a failed removal has left is left for good.
                let all_well = self.seen.packs_failed == 0;
                if all_well && self.ledger.has_dropped_blob(&self.disk, directory) {
                    return Err(Stop::Wrong("a blob was not packed away".to_owned()));
                }
            }
            // There was nothing to be dropped.
            Ok(_) => {
                self.ledger.packs.pop();
            }
            Err(PackError::BlobsLeft(_)) => {
                pack.done.get_or_insert(step);
                self.seen.packs_failed += 1;
            }
            // The storage takes no more writes, and one of the two files is there.
            Err(PackError::Failed(_)) => self.seen.packs_failed += 1,
            // The file is as it was.
            Err(_) => {
                self.ledger.packs.pop();
                self.seen.packs_failed += 1;
            }
        }
        Ok(())
    }

    /// Begins to pack to the time of an earlier transaction.
    pub(crate) fn pack(&mut self) -> Result<(), Stop> {
        let txns: Vec<&Txn> = self.ledger.committed().collect();
        let mut place = txns.len() * 2 / 3;
        // Not behind the second deletion of an object, nor between a transaction and its undo: the
        // revision before both would be kept for the back pointer, which the ledger does not know.
        let leads_back = |place: usize| {
            let (past, future) = txns.split_at(place + 1);
            let past: Vec<_> = past.iter().flat_map(|txn| &txn.records).collect();
            let is_old = |record: &(Oid, ledger::State)| {
                let mut of_it = past.iter().rev().filter(|(oid, _)| *oid == record.0);
                // The last one is kept anyway, unless it is a deletion.
                let last = of_it.next();
                last == Some(&record) && record.1.is_none() || of_it.any(|it| *it == record)
            };
            // What leads back to an earlier deletion is kept, too.
            let is_second = |(at, record): (usize, &&(Oid, ledger::State))| {
                let is_last = past[at + 1..].iter().all(|(oid, _)| *oid != record.0);
                record.1.is_none() && is_last && past[..at].contains(record)
            };
            let is_second = past.iter().enumerate().any(is_second);
            is_second || future.iter().flat_map(|txn| &txn.records).any(is_old)
        };
        while leads_back(place) {
            place -= 1;
        }
        let until = txns[place].tid;
        let begun = self.disk.step_count();
        let done = None;
        self.ledger.packs.push(ledger::Pack { until, begun, done });
        let now = self.now;
        match self.storage().pack(until, now) {
            Ok(()) => self.turn(),
            Err(refused) => Err(Stop::Wrong(format!("{refused:?}"))),
        }
    }

    /// A worker does the first job that waits. `false` if there is none.
    pub(crate) fn run_job(&mut self) -> Result<bool, Stop> {
        let Some(job) = self.jobs.pop_front() else {
            return Ok(false);
        };
        let appended = matches!(job, Job::Append(_));
        let done = job.run();
        if self.hasty && appended {
            let step = self.disk.step_count();
            for (_, place) in &self.in_flight {
                self.ledger.entries[*place].committed.get_or_insert(step);
            }
        }
        let now = self.now;
        self.storage().on_done(done, now);
        self.turn()?;
        Ok(true)
    }

    /// Until nothing is left to be done.
    pub(crate) fn settle(&mut self) -> Result<(), Stop> {
        self.turn()?;
        while self.run_job()? {}
        Ok(())
    }

    /// Begins a transaction that stores so many bytes in each of these objects, whose current
    /// revisions it has seen.
    pub(crate) fn begin(&mut self, stores: &[(Oid, usize)]) -> (TxnId, Txn) {
        let texts = [30, 30, 0].map(|len| {
            let len = self.random.below(len + 1);
            self.bytes(len)
        });
        let [user, description, extension] = texts.clone();
        let id = self.storage().begin(Metadata {
            user,
            description,
            extension,
            tid: None,
            status: b' ',
        });
        let current = self.ledger.current();
        let mut records = Vec::new();
        for (oid, len) in stores {
            let is_long = *len > 500;
            let data = match self.random.below(if is_long { 2 } else { 6 }) {
                0 => self.sparse_bytes(*len),
                _ => self.bytes(*len),
            };
            let serial = current.get(oid).map_or(Tid::ZERO, |(tid, _)| *tid);
            let added = self.storage().store(id, *oid, Some(serial), data.clone());
            assert!(added, "the transaction is still being staged");
            records.push((*oid, Some(data)));
        }
        let tid = Tid::ZERO;
        let blobs = Vec::new();
        (
            id,
            Txn {
                tid,
                texts,
                records,
                blobs,
            },
        )
    }

    /// As [`Self::begin`], with blobs of these lengths for objects of their own.
    pub(crate) fn begin_with_blobs(
        &mut self,
        stores: &[(Oid, usize)],
        blobs: &[(Oid, usize)],
    ) -> Result<(TxnId, Txn), Stop> {
        let (id, mut txn) = self.begin(stores);
        for (oid, len) in blobs {
            let data: Bytes = [BLOB_RECORD, &self.bytes(8)].concat().into();
            let content = self.bytes(*len);
            let current = self.ledger.current();
            let serial = current.get(oid).map_or(Tid::ZERO, |(tid, _)| *tid);
            let mistake = |mistake| Stop::Wrong(format!("a blob was refused: {mistake}"));
            self.storage().begin_blob(id).map_err(mistake)?;
            let pieces: Vec<_> = content.chunks(BLOB_WRITE_LEN).collect();
            for piece in pieces {
                let piece = Bytes::copy_from_slice(piece);
                self.storage().add_to_blob(id, piece).map_err(mistake)?;
            }
            let end = self
                .storage()
                .end_blob(id, *oid, Some(serial), data.clone());
            end.map_err(mistake)?;
            self.turn()?;
            txn.records.push((*oid, Some(data)));
            txn.blobs.push((*oid, content));
            self.seen.blobs += 1;
        }
        Ok((id, txn))
    }

    /// Votes, and waits for the answer.
    pub(crate) fn vote(&mut self, id: TxnId) -> Result<Vote, Stop> {
        let now = self.now;
        if !self.storage().vote(id, now) {
            return Err(Stop::Wrong("a vote was not taken".to_owned()));
        }
        self.turn()?;
        loop {
            if let Some(vote) = self.votes.remove(&id) {
                match vote {
                    Vote::Refused(Refusal::Disk(_)) => self.seen.refusals += 1,
                    Vote::Conflicts(_) => self.seen.conflicts += 1,
                    _ => {}
                }
                return Ok(vote);
            }
            if !self.run_job()? {
                return Err(Stop::Wrong("a vote is not answered".to_owned()));
            }
        }
    }

    /// Votes and finishes a transaction, without ending the turn. Not if the disk fails: the vote
    /// is refused then.
    pub(crate) fn finish(&mut self, (id, txn): (TxnId, Txn)) -> Result<(), Stop> {
        match self.vote(id)? {
            Vote::Granted => {}
            Vote::Refused(Refusal::Disk(_)) => return Ok(()),
            Vote::Refused(refusal) => return Err(Stop::Wrong(format!("refused: {refusal:?}"))),
            Vote::Conflicts(conflicts) => {
                let oid = conflicts[0].oid;
                return Err(Stop::Wrong(format!(
                    "a conflict on {oid}, which nobody wrote"
                )));
            }
        }
        if self.random.below(2) == 0 {
            // The client is slow: what was on its way to the disk gets there before it comes.
            self.run_job()?;
        }
        self.finish_voted((id, txn))
    }

    fn finish_voted(&mut self, (id, mut txn): (TxnId, Txn)) -> Result<(), Stop> {
        self.wall += Duration::from_millis(10);
        let last = self.ledger.entries.last();
        let after_last = last.map_or(Tid::ZERO, |entry| entry.txn.tid.next());
        let (wall, now) = (self.wall, self.now);
        self.storage().finish(id, wall, now);
        // Which is not quite what the clock says. There is none if the storage has failed.
        let assigned = self.storage().assigned_tid(id);
        txn.tid = assigned.unwrap_or(Tid::from_unix_time(wall).max(after_last));
        if txn.tid < after_last {
            return Err(Stop::Wrong(format!("{} after {after_last}", txn.tid)));
        }
        self.seen.overlapping += usize::from(!self.in_flight.is_empty());
        self.in_flight.push_back((id, self.ledger.entries.len()));
        self.ledger.entries.push(ledger::Entry {
            txn,
            finished: self.disk.step_count(),
            committed: None,
        });
        Ok(())
    }

    /// A transaction that is voted first and finished last, if the lock allows such.
    pub(crate) fn overtake(&mut self) -> Result<(), Stop> {
        if self.lock_scope == LockScope::Storage {
            return Ok(());
        }
        self.settle()?;
        let len = 1 + self.random.below(1500);
        let oids: Vec<_> = self.allocate(2)?.map(Oid).collect();
        let slow = self.begin(&[(oids[0], 700)]);
        let fast = self.begin(&[(oids[1], len)]);
        for id in [slow.0, fast.0] {
            if !matches!(self.vote(id)?, Vote::Granted) {
                return Ok(());
            }
            if self.random.below(2) == 0 {
                self.run_job()?;
            }
        }
        self.finish_voted(fast)?;
        if self.random.below(2) == 0 {
            self.settle()?;
        }
        self.finish_voted(slow)?;
        self.turn()
    }

    /// A whole transaction.
    pub(crate) fn commit(&mut self, stores: &[(Oid, usize)]) -> Result<(), Stop> {
        let txn = self.begin(stores);
        self.finish(txn)?;
        self.settle()
    }

    /// So many transactions that finish in one turn.
    pub(crate) fn finish_together(&mut self, count: usize) -> Result<(), Stop> {
        for _ in 0..count {
            let mut oids = Vec::new();
            // Some are empty.
            let records = self.random.below(6) as u64;
            if records > 0 {
                oids.extend(self.allocate(records)?);
                oids.extend(self.free_oid());
            }
            let mut stores = Vec::new();
            for oid in oids {
                let len = match self.random.below(8) {
                    0 => 1 + self.random.below(1500),
                    _ => 1 + self.random.below(150),
                };
                stores.push((Oid(oid), len));
            }
            let txn = self.begin(&stores);
            self.finish(txn)?;
        }
        self.seen.shared_batches += usize::from(count > 1);
        self.turn()
    }

    /// Undoes one of the last transactions.
    pub(crate) fn undo(&mut self) -> Result<(), Stop> {
        let count = self.ledger.entries.len();
        let place = count - 1 - self.random.below(count.min(6));
        self.undo_at(place)
    }

    /// Undoes the transaction at this place in the ledger, and stores an object beside. What is in
    /// flight is waited for by the vote.
    pub(crate) fn undo_at(&mut self, place: usize) -> Result<(), Stop> {
        if !self.ledger.is_foreseen(place) {
            return Ok(());
        }
        let new = Oid(self.allocate(1)?.start);
        let (id, mut txn) = self.begin(&[(new, 80)]);
        let tid = self.ledger.entries[place].txn.tid;
        assert!(self.storage().undo(id, Some(tid)));
        let Some(undone) = self.ledger.undone(place) else {
            self.seen.impossible_undos += 1;
            return match self.vote(id)? {
                Vote::Refused(Refusal::Undo(_) | Refusal::Disk(_)) => Ok(()),
                vote => Err(Stop::Wrong(format!("an impossible undo: {vote:?}"))),
            };
        };
        self.seen.undos += 1;
        // Where a record is a blob's, that comes back, too.
        let blobs = undone.iter().filter_map(|(oid, state)| {
            let content = self.ledger.blob_of(*oid, state.as_ref()?)?;
            Some((*oid, content))
        });
        txn.blobs.extend(blobs);
        self.seen.blobs_undone += txn.blobs.len();
        txn.records.extend(undone);
        self.finish((id, txn))?;
        self.turn()
    }

    /// Restores a revision of an object that nobody else writes just now: an older one, one that
    /// is new here, or that it does not exist.
    pub(crate) fn restore(&mut self) -> Result<(), Stop> {
        let Some(oid) = self.free_oid().map(Oid) else {
            return Ok(());
        };
        let txns = self.ledger.committed();
        let revisions = txns.flat_map(|txn| txn.records.iter().map(|it| (txn.tid, it)));
        let mut older: Vec<(Tid, Bytes)> = revisions
            .filter(|(_, (other, _))| *other == oid)
            .filter_map(|(tid, (_, state))| Some((tid, state.clone()?)))
            // Over ZEO no blob comes with it.
            .filter(|(_, state)| !state.starts_with(BLOB_RECORD))
            .collect();
        let (state, hint) = match self.random.below(4) {
            0 => (None, None),
            1 => (Some(self.bytes(90)), older.pop().map(|(tid, _)| tid)),
            _ if older.is_empty() => (Some(self.bytes(90)), None),
            _ => {
                let (tid, data) = older.swap_remove(self.random.below(older.len()));
                (Some(data), Some(tid))
            }
        };
        let (id, mut txn) = self.begin(&[]);
        assert!(self.storage().restore(id, oid, state.clone(), hint));
        txn.records.push((oid, state));
        self.seen.restored += 1;
        self.finish((id, txn))?;
        self.turn()
    }

    /// Deletes an object that nobody else writes just now.
    pub(crate) fn delete(&mut self) -> Result<(), Stop> {
        let Some(oid) = self.free_oid().map(Oid) else {
            return Ok(());
        };
        let (serial, _) = self.ledger.current()[&oid];
        let (id, mut txn) = self.begin(&[]);
        assert!(self.storage().delete(id, oid, serial));
        txn.records.push((oid, None));
        self.seen.deleted += 1;
        self.finish((id, txn))?;
        self.turn()
    }

    /// An object that no transaction in flight writes.
    fn free_oid(&mut self) -> Option<u64> {
        let mut current = self.ledger.current();
        for (_, place) in &self.in_flight {
            for (oid, _) in &self.ledger.entries[*place].txn.records {
                current.remove(oid);
            }
        }
        let place = self.random.below(current.len().max(1));
        current.into_keys().nth(place).map(|oid| oid.0)
    }

    /// A transaction that conflicts, and one that changes its mind after its vote.
    pub(crate) fn roll_back(&mut self) -> Result<(), Stop> {
        self.settle()?;
        let (late, _) = self.begin(&[(Oid(0), 50)]);
        self.commit(&[(Oid(0), 60)])?;
        let _: Vote = self.vote(late)?;
        let now = self.now;
        self.storage().abort(late, now);
        let (fickle, _) = self.begin(&[(Oid(0), 70)]);
        let _: Vote = self.vote(fickle)?;
        self.storage().abort(fickle, now);
        self.seen.aborts += 1;
        self.settle()
    }

    /// New oids, once the disk has a ceiling above them. None if it does not take it.
    pub(crate) fn allocate(&mut self, count: u64) -> Result<Range<u64>, Stop> {
        let mut allocated = self.storage().allocate_oids(count);
        self.turn()?;
        while allocated.is_none() && self.run_job()? {
            allocated = self.storage().allocate_oids(count);
        }
        let Some(range) = allocated else {
            return Err(Stop::Disk("no oids".to_owned()));
        };
        self.ledger.check_new(&range)?;
        let step = self.disk.step_count();
        self.ledger.oids.push((step, range.clone()));
        Ok(range)
    }

    /// It is time to save the index.
    pub(crate) fn wait(&mut self) -> Result<(), Stop> {
        for _ in 0..2 {
            self.now += INDEX_SAVE_INTERVAL;
            let now = self.now;
            self.storage().on_timer(now);
        }
        self.turn()
    }

    /// The clock of the machine is set back.
    pub(crate) fn set_clock_back(&mut self) {
        self.wall -= Duration::from_secs(3600);
    }

    /// A whole transaction with blobs.
    pub(crate) fn commit_blobs(
        &mut self,
        stores: &[(Oid, usize)],
        blobs: &[(Oid, usize)],
    ) -> Result<(), Stop> {
        let txn = self.begin_with_blobs(stores, blobs)?;
        self.finish(txn)?;
        self.settle()
    }

    /// Zeros, but for what makes them different from others.
    fn sparse_bytes(&mut self, len: usize) -> Bytes {
        self.seen.sparse += usize::from(len > 1050);
        let mut bytes = self.bytes(len).to_vec();
        let (from, to) = (len.min(8), len - self.random.below(2).min(len));
        bytes[from.min(to)..to].fill(0);
        bytes.into()
    }

    fn bytes(&mut self, len: usize) -> Bytes {
        (0..len)
            .map(|_| self.random.next().to_be_bytes()[0])
            .collect()
    }
}

/// The next tid that looks like that of a witnessed transaction which begins a batch
/// (`storage::witness`).
fn marked_from(tid: Tid) -> Tid {
    let base = (tid.0 >> 10) + 1;
    let hash = base.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    Tid(base << 10 | hash << 2 | 1)
}
