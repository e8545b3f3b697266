//! A pack as the storage sees it: who has it, and when the files are switched.
//!
//! ```text
//!   pack ──► Working ──level──► Waiting ──lock──► Switching ──► the new file is served
//!               ▲  │               │                  │
//!               │  └─ given up ────┴──────────────────┴──► as before
//!               └───── more has been committed than is copied under the lock
//! ```
//!
//! *Waiting* is for a place in the queue of the commit lock, and then for its turn there, like that
//! of a vote, for the storage as a whole; and beyond that for what is on its way to the disk.
//! *Switching* is done by the thread that appends, so that whatever was sent to it before is over:
//! nothing that speaks of positions in the old file comes back later. Reads that were sent out
//! before may; they say which file they are of.

use std::time::{Duration, Instant};

use super::super::commit_lock::{Claim, Ticket};
use super::super::disk::with_suffix;
use super::super::format::FIRST_TXN_POS;
use super::super::job::Job;
use super::super::references::references;
use super::super::{Event, FileStorage, LockScope};
use super::{Assignment, NEW_SUFFIX, Order, PackError, Packer, Step, Switched};
use crate::ids::Tid;

/// Bytes that are left to be copied under the commit lock; that takes a few milliseconds.
const LAST_LEN: u64 = 512 * 1024;

/// How often more than that may have been committed while the rest was copied. After that more is
/// copied under the lock: where much is written at all times there would be no end.
const ROUNDS_MAX: u32 = 32;

/// Bytes that are left to be copied under the commit lock then; some tens of milliseconds.
const LAST_LEN_MAX: u64 = 8 << 20;

/// How long a pack waits for a moment in which nobody has the lock, if transactions only exclude
/// those that write the same objects: all would have to wait behind it for the slowest of those
/// that have it. After that it takes its place in the queue: the moment may never come.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often the lock is given back because more than that was committed while it was waited for. A
/// storage with transactions of that size has longer waits anyway.
const LOCKED_IN_VAIN_MAX: u32 = 3;

/// A pack in progress.
#[derive(Debug)]
pub(in super::super) struct Pack {
    state: State,
    begun: Instant,
    /// Length of the file when it began.
    len: u64,
    locked_in_vain: u32,
    /// How often all was copied that was committed before.
    rounds: u32,
    /// Nobody wants it any more.
    given_up: bool,
}

#[derive(Debug)]
enum State {
    /// A worker has it.
    Working,
    /// It waits for the commit lock, and for what is on its way to the disk.
    Waiting {
        packer: Box<Packer>,
        /// Its place in the queue, if it has one.
        ticket: Option<Ticket>,
        /// Up to here all is copied.
        pos: u64,
        since: Instant,
    },
    /// A worker switches the files.
    Switching { ticket: Ticket, since: Instant },
    /// The new file is served; a worker removes blobs.
    Sweeping { locked: Duration },
}

/// Why a pack was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackRefused {
    /// The storage is read-only.
    ReadOnly,
    /// There is one already.
    Already,
    /// Only a log writes to the file, and says when it is packed.
    Fed,
}

/// What a pack has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Whether there is a new file: there may have been nothing to be dropped.
    pub switched: bool,
    /// Length of the file when the pack began, in bytes,
    pub len_before: u64,
    /// and now.
    pub len: u64,
    /// From the call to the switch.
    pub took: Duration,
    /// How long commits had to wait for the switch.
    pub locked: Duration,
}

impl Pack {
    const fn is_sweeping(&self) -> bool {
        matches!(self.state, State::Sweeping { .. })
    }
}

impl FileStorage {
    /// Begins to pack to a time; [`Event::Packed`] tells the end of it.
    ///
    /// # Errors
    ///
    /// See [`PackRefused`].
    pub fn pack(&mut self, until: Tid, now: Instant) -> Result<(), PackRefused> {
        if self.options.read_only {
            return Err(PackRefused::ReadOnly);
        }
        if self.is_fed() {
            return Err(PackRefused::Fed);
        }
        if self.pack.is_some() {
            return Err(PackRefused::Already);
        }
        if self.index.is_empty() {
            let packed = Packed {
                switched: false,
                len_before: self.tail,
                len: self.tail,
                took: Duration::ZERO,
                locked: Duration::ZERO,
            };
            self.events.push_back(Event::Packed(Ok(packed)));
            return Ok(());
        }
        log::info!("{}: pack begins (to {until})", self.name());
        self.pack = Some(Pack {
            state: State::Working,
            begun: now,
            len: self.tail,
            locked_in_vain: 0,
            rounds: 0,
            given_up: false,
        });
        let packer = Packer::new(Assignment {
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: self.file.clone(),
            file_id: self.file_id,
            until,
            through: None,
            options: self.options.pack,
            references,
            blobs: self.blob_directory().cloned(),
            directory_maker: self.directory_maker(),
        });
        self.send_packer(packer, Order::Slice { tail: self.tail });
        Ok(())
    }

    /// Whether a pack is in progress.
    pub const fn is_packing(&self) -> bool {
        self.pack.is_some()
    }

    /// Gives a pack up, unless it switches the files already. It ends with the slice that a worker
    /// has in hands.
    pub fn give_up_pack(&mut self, now: Instant) {
        if let Some(pack) = &mut self.pack {
            pack.given_up = true;
            self.drive_pack(now);
        }
    }

    /// Whether the file is just being replaced: its positions are no good for anything that lasts.
    pub(in super::super) fn is_switching(&self) -> bool {
        let state = self.pack.as_ref().map(|pack| &pack.state);
        matches!(state, Some(State::Switching { .. }))
    }

    /// Whether the file is being replaced, or will be as soon as nobody has the commit lock.
    pub(in super::super) fn is_about_to_switch(&self) -> bool {
        let state = self.pack.as_ref().map(|pack| &pack.state);
        matches!(state, Some(State::Waiting { .. } | State::Switching { .. }))
    }

    /// Looks whether a pack that waits can go on. To be called whenever something has ended that
    /// it may have waited for.
    pub(in super::super) fn drive_pack(&mut self, now: Instant) {
        let Some(pack) = &self.pack else { return };
        let State::Waiting {
            ticket, pos, since, ..
        } = pack.state
        else {
            return;
        };
        let left = self.tail - pos;
        let last_len = match pack.rounds {
            ..ROUNDS_MAX => LAST_LEN,
            _ => LAST_LEN_MAX,
        };
        let order = match ticket {
            _ if pack.given_up || self.failed.is_some() => Order::GiveUp,
            None if left > last_len => Order::Slice { tail: self.tail },
            // That of a large index takes seconds.
            None if self.index_saving => return,
            None => {
                let by_object = self.options.lock_scope == LockScope::Objects;
                if by_object && !self.lock.is_idle() && now < since + PATIENCE {
                    return;
                }
                let (taken, _) = self.lock.enqueue(Vec::new(), Claim::Alone);
                if let Some(pack) = &mut self.pack
                    && let State::Waiting { ticket, .. } = &mut pack.state
                {
                    *ticket = Some(taken);
                }
                return self.drive_pack(now);
            }
            Some(ticket) => {
                if !self.lock.is_held(ticket) || self.is_writing() || self.index_saving {
                    return;
                }
                match left > LAST_LEN_MAX && pack.locked_in_vain < LOCKED_IN_VAIN_MAX {
                    true => Order::Slice { tail: self.tail },
                    false => return self.begin_switch(ticket, now),
                }
            }
        };
        self.stop_waiting(order, now);
    }

    /// The commit lock is held, and nothing is on its way to the disk.
    fn begin_switch(&mut self, ticket: Ticket, now: Instant) {
        let Some(pack) = &mut self.pack else { return };
        let switching = State::Switching { ticket, since: now };
        if let State::Waiting { packer, .. } = std::mem::replace(&mut pack.state, switching) {
            self.send_packer(packer, Order::Switch { tail: self.tail });
        }
    }

    /// The lock is given back, or not asked for any more.
    fn stop_waiting(&mut self, order: Order, now: Instant) {
        let Some(pack) = &mut self.pack else { return };
        let waiting = std::mem::replace(&mut pack.state, State::Working);
        let State::Waiting { packer, ticket, .. } = waiting else {
            return;
        };
        pack.locked_in_vain += u32::from(ticket.is_some());
        self.send_packer(packer, order);
        if let Some(ticket) = ticket {
            let held = self.lock.release(ticket);
            self.go_on(held, now);
        }
    }

    /// A worker gives the pack back.
    pub(in super::super) fn on_packed(
        &mut self,
        packer: Box<Packer>,
        result: Result<Step, PackError>,
        now: Instant,
    ) {
        let Some(pack) = &mut self.pack else { return };
        let given_up = pack.given_up || self.failed.is_some();
        match result {
            Ok(Step::Switched(switched)) => self.on_switched(switched, packer, now),
            Ok(Step::More) if pack.is_sweeping() && !given_up => {
                self.send_packer(packer, Order::Sweep);
            }
            Ok(Step::Swept) => self.end_pack(Ok(()), now),
            Ok(Step::More) if !given_up => {
                self.send_packer(packer, Order::Slice { tail: self.tail });
            }
            Ok(Step::Level { pos }) if !given_up => {
                pack.rounds += 1;
                pack.state = State::Waiting {
                    packer,
                    ticket: None,
                    pos,
                    since: now,
                };
                self.drive_pack(now);
            }
            Ok(Step::More | Step::Level { .. }) => self.send_packer(packer, Order::GiveUp),
            Ok(Step::Nothing) => self.end_pack(Ok(()), now),
            Ok(Step::GivenUp) => {
                let error = match &self.failed {
                    Some(reason) => PackError::Failed(reason.clone()),
                    None => PackError::Stopped,
                };
                self.end_pack(Err(error), now);
            }
            Err(error) => {
                let switching = match &pack.state {
                    State::Switching { ticket, .. } => Some(*ticket),
                    _ => None,
                };
                self.end_pack(Err(error), now);
                if let Some(ticket) = switching {
                    // The index file may be gone.
                    self.index_saved = FIRST_TXN_POS;
                    let held = self.lock.release(ticket);
                    self.go_on(held, now);
                }
            }
        }
    }

    /// The new file has the name: from now on it is served.
    fn on_switched(&mut self, switched: Switched, packer: Box<Packer>, now: Instant) {
        let Some(pack) = &mut self.pack else { return };
        let State::Switching { ticket, since } = pack.state else {
            return;
        };
        pack.state = State::Sweeping {
            locked: now.saturating_duration_since(since),
        };
        let Switched {
            file,
            id,
            index,
            tail,
            synced,
        } = switched;
        let old = std::mem::replace(&mut self.file, file);
        self.events.push_back(Event::Run(Job::Close(old)));
        self.file_id = id;
        self.generation += 1;
        self.index = index;
        self.tail = tail;
        self.assigned_end = tail;
        self.end_tid = None;
        // The witness is of the old file.
        self.cancel_witness();
        // Without a change if this file system cannot reserve space.
        self.allocated_end = match self.allocated_end {
            u64::MAX => u64::MAX,
            _ => tail,
        };
        self.index_saved = FIRST_TXN_POS;
        for txn in self.txns.values_mut() {
            // These are by position.
            txn.serials_read.clear();
        }
        let ended = synced.map_err(|error| {
            // After a crash the old file may be there, without what would be written to the new.
            self.fail(&error);
            PackError::Failed(format!("the new name of the file is not durable: {error}"))
        });
        match ended {
            Ok(()) if packer.has_to_sweep() => self.send_packer(packer, Order::Sweep),
            ended => self.end_pack(ended, now),
        }
        self.save_index();
        let held = self.lock.release(ticket);
        self.go_on(held, now);
    }

    fn end_pack(&mut self, ended: Result<(), PackError>, now: Instant) {
        let Some(pack) = self.pack.take() else { return };
        let locked = match pack.state {
            State::Sweeping { locked } => Some(locked),
            _ => None,
        };
        let packed = Packed {
            switched: locked.is_some(),
            len_before: pack.len,
            len: self.tail,
            took: now.saturating_duration_since(pack.begun),
            locked: locked.unwrap_or_default(),
        };
        match &ended {
            Ok(()) => log::info!(
                "{}: pack ended after {:?} ({} bytes, were {}; commits waited {:?})",
                self.name(),
                packed.took,
                packed.len,
                packed.len_before,
                packed.locked
            ),
            Err(error) => log::error!("{}: pack failed: {error}", self.name()),
        }
        let ended = ended.map(|()| packed);
        self.events.push_back(Event::Packed(ended));
    }

    /// Removes what a pack has made that ended without us: the process stops.
    pub(in super::super) fn forget_pack(&self) {
        if self.pack.is_some() {
            let path = with_suffix(&self.path, NEW_SUFFIX);
            if let Err(error) = self.disk.remove(&path) {
                log::warn!("{}: cannot be removed: {error}", path.display());
            }
        }
    }

    fn send_packer(&mut self, mut packer: Box<Packer>, order: Order) {
        packer.order = order;
        self.events.push_back(Event::Run(Job::Pack(packer)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::ids::Oid;
    use crate::storage::disk::{Disk, OpenMode};
    use crate::storage::format::Status;
    use crate::storage::iterate::Transactions;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::testing::Content::{self, Back, Data};
    use crate::storage::testing::{DataFile, object};
    use crate::storage::witness::Witness;
    use crate::storage::{Answer, Lookup, Metadata, Options, PackOptions, TxnId, Unanswered, Vote};

    const PATH: &str = "Data.fs";

    type Contents = (u64, u8, Vec<(u64, bool, Option<usize>)>);

    /// A storage with the data file given, whose jobs are run when the test says so.
    struct Rig {
        disk: Arc<MemoryDisk>,
        storage: FileStorage,
        jobs: Vec<Job>,
        events: Vec<Event>,
        now: Instant,
        wall: Duration,
    }

    impl Rig {
        fn new(file: &DataFile) -> Self {
            Self::with(file, PackOptions::default())
        }

        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had in no other way"
        )]
        fn with(file: &DataFile, pack: PackOptions) -> Self {
            let disk = Arc::new(MemoryDisk::new());
            disk.replace(Path::new(PATH), &[&file.bytes]).unwrap();
            let options = Options {
                name: "1".to_owned(),
                read_only: false,
                create: false,
                quota: None,
                client_resolves: true,
                lock_scope: LockScope::Objects,
                pack,
                blob_dir: None,
            };
            let storage =
                FileStorage::open(disk.clone(), Path::new(PATH), options, &mut |_| ()).unwrap();
            Self {
                disk,
                storage,
                jobs: Vec::new(),
                events: Vec::new(),
                now: Instant::now(),
                wall: Duration::from_secs(1_800_000_000),
            }
        }

        fn collect(&mut self) {
            self.storage.flush();
            while let Some(event) = self.storage.poll_event() {
                match event {
                    Event::Run(job) => self.jobs.push(job),
                    event => self.events.push(event),
                }
            }
        }

        fn run(&mut self, job: Job) {
            self.storage.on_done(job.run(), self.now);
            self.collect();
        }

        fn settle(&mut self) -> Vec<Event> {
            self.collect();
            while !self.jobs.is_empty() {
                let job = self.jobs.remove(0);
                self.run(job);
            }
            std::mem::take(&mut self.events)
        }

        fn run_all_but_the_pack(&mut self) {
            self.collect();
            let other = |jobs: &[Job]| jobs.iter().position(|job| !matches!(job, Job::Pack(_)));
            while let Some(at) = other(&self.jobs) {
                let job = self.jobs.remove(at);
                self.run(job);
            }
        }

        /// Runs jobs until the one that switches the files is next, and takes that.
        fn until_switch(&mut self) -> Job {
            self.collect();
            loop {
                let job = self.jobs.remove(0);
                match &job {
                    Job::Pack(packer) if packer.is_switching() => return job,
                    _ => self.run(job),
                }
            }
        }

        fn begin(&mut self, oid: u64, serial: u64) -> TxnId {
            let id = self.storage.begin(Metadata {
                user: Bytes::new(),
                description: Bytes::new(),
                extension: Bytes::new(),
                tid: None,
                status: b' ',
            });
            let data = Bytes::from(object(&[]));
            assert!(self.storage.store(id, Oid(oid), Some(Tid(serial)), data));
            id
        }

        fn vote(&mut self, id: TxnId) {
            assert!(self.storage.vote(id, self.now));
            self.collect();
        }

        fn finish(&mut self, id: TxnId) {
            assert!(self.storage.finish(id, self.wall, self.now));
            self.collect();
        }

        fn pack(&mut self, until: u64) -> Result<Packed, PackError> {
            self.storage.pack(Tid(until), self.now).unwrap();
            match self.settle().pop() {
                Some(Event::Packed(ended)) => ended,
                event => panic!("{event:?}"),
            }
        }

        fn names(&self) -> Vec<&'static str> {
            [
                "Data.fs",
                "Data.fs.index",
                "Data.fs.old",
                "Data.fs.old.new",
                "Data.fs.pack",
            ]
            .into_iter()
            .filter(|name| self.disk.identify(Path::new(name)).is_ok())
            .collect()
        }

        /// Each transaction: tid, status, and its records with oid, whether they have a previous
        /// one, and the number of the record that a back pointer leads to.
        fn contents(&self) -> Vec<Contents> {
            let file = self.disk.open(Path::new(PATH), OpenMode::Read).unwrap();
            let tail = self.storage.file_len();
            let mut txns = Transactions::from_pos(file, FIRST_TXN_POS, tail);
            let mut found = Vec::new();
            let mut positions = vec![0];
            while let Some(txn) = txns.next() {
                let txn = txn.unwrap();
                let mut records = Vec::new();
                for record in txns.records(&txn) {
                    let record = record.unwrap();
                    positions.push(record.pos);
                    let back = record.back.map(|back| {
                        let at = positions.iter().position(|pos| *pos == back);
                        at.expect("a back pointer to a record")
                    });
                    records.push((record.header.oid.0, record.header.prev != 0, back));
                }
                let status = txn.header.status.to_byte();
                found.push((txn.header.tid.0, status, records));
            }
            found
        }

        fn current(&self, oid: u64) -> Option<u64> {
            match self.storage.look_up(Lookup::Before(Oid(oid), Tid::MAX)) {
                Ok(Answer::Revision { serial, .. }) => Some(serial.0),
                Ok(Answer::Missing) => None,
                answer => panic!("{answer:?}"),
            }
        }
    }

    /// An object that refers to these.
    fn txn(file: &mut DataFile, tid: u64, records: &[(u64, Content<'_>)]) -> Vec<u64> {
        file.txn(tid, Status::Finished, "user", records)
    }

    /// The root refers to 1, and 1 to 2; 3 is garbage; 2 and 3 were changed.
    fn small() -> DataFile {
        let mut file = DataFile::new();
        let objects = [object(&[1]), object(&[2]), object(&[])];
        txn(
            &mut file,
            10,
            &[(0, Data(&objects[0])), (1, Data(&objects[1]))],
        );
        txn(
            &mut file,
            20,
            &[(2, Data(&objects[2])), (3, Data(&objects[2]))],
        );
        txn(&mut file, 30, &[(2, Data(&objects[2]))]);
        txn(&mut file, 40, &[(3, Data(&objects[2]))]);
        txn(
            &mut file,
            50,
            &[(1, Data(&objects[1])), (3, Data(&objects[2]))],
        );
        file
    }

    #[test]
    fn what_is_not_current_or_not_reached_at_pack_time_is_dropped() {
        let mut rig = Rig::new(&small());
        let before = rig.storage.file_len();
        let packed = rig.pack(40).unwrap();
        assert_eq!(
            (packed.len_before, packed.len),
            (before, rig.storage.file_len())
        );
        let first = (10, b'p', vec![(0, false, None), (1, false, None)]);
        let second = (30, b'p', vec![(2, false, None)]);
        // What nothing leads to, but was written later, begins there.
        let third = (50, b' ', vec![(1, true, None), (3, false, None)]);
        assert_eq!(rig.contents(), [first, second, third]);
        let current = [0, 1, 2, 3].map(|oid| rig.current(oid));
        assert_eq!(current, [Some(10), Some(50), Some(30), Some(50)]);
        assert_eq!(rig.storage.object_count(), 4);
        assert_eq!(rig.names(), ["Data.fs", "Data.fs.index", "Data.fs.old"]);
        let old = rig.disk.read(Path::new("Data.fs.old")).unwrap();
        assert_eq!(old, small().bytes);
        // What was saved fits.
        let Rig { disk, storage, .. } = rig;
        let index: Vec<_> = storage.index.iter().collect();
        let options = storage.options.clone();
        storage.close().unwrap();
        let storage = FileStorage::open(disk, Path::new(PATH), options, &mut |_| ()).unwrap();
        assert_eq!(storage.index_saved, storage.tail);
        assert_eq!(storage.index.iter().collect::<Vec<_>>(), index);
    }

    #[test]
    fn the_witness_is_of_the_new_file_even_if_the_last_transaction_is_gone() {
        let mut file = small();
        txn(&mut file, 60, &[(3, Back(0))]);
        let mut rig = Rig::new(&file);
        rig.pack(60).unwrap();
        assert_eq!(rig.contents().last().unwrap().0, 50);
        let load = |rig: &Rig| Witness::load(&*rig.disk, Path::new(PATH)).unwrap().unwrap();
        assert!(!load(&rig).is_of(&*rig.storage.file));
        rig.storage.on_timer(rig.now);
        rig.settle();
        let witness = load(&rig);
        assert_eq!((witness.pos, witness.tid), (rig.storage.tail, Tid(50)));
        assert!(witness.is_of(&*rig.storage.file));
    }

    #[test]
    fn without_collection_each_object_stays() {
        let options = PackOptions {
            gc: false,
            keep_old: false,
        };
        let mut rig = Rig::with(&small(), options);
        rig.disk
            .replace(Path::new("Data.fs.old"), &[b"of an earlier pack"])
            .unwrap();
        rig.pack(40).unwrap();
        let tids: Vec<u64> = rig.contents().iter().map(|(tid, ..)| *tid).collect();
        assert_eq!(tids, [10, 30, 40, 50]);
        assert_eq!(rig.names(), ["Data.fs", "Data.fs.index"]);
    }

    #[test]
    fn a_pack_that_would_drop_nothing_leaves_the_file_alone() {
        let mut rig = Rig::new(&small());
        let before = rig.disk.read(Path::new(PATH)).unwrap();
        rig.pack(5).unwrap();
        assert_eq!(rig.disk.read(Path::new(PATH)).unwrap(), before);
        rig.pack(50).unwrap();
        let once = rig.contents();
        let id = rig.disk.identify(Path::new(PATH)).unwrap();
        // To the same time, to a later one with nothing new, and to an earlier one.
        for until in [50, 60, 40] {
            rig.pack(until).unwrap();
            assert_eq!(rig.disk.identify(Path::new(PATH)).unwrap(), id);
        }
        assert_eq!(rig.contents(), once);
        let mut empty = Rig::new(&DataFile::new());
        assert_eq!(empty.pack(50).unwrap().len, FIRST_TXN_POS);
        assert_eq!(empty.names(), ["Data.fs"]);
    }

    #[test]
    fn what_later_records_lead_back_to_is_kept_with_what_it_refers_to() {
        let mut file = DataFile::new();
        let [to_1, to_2, to_3, leaf] = [&[1][..], &[2], &[3], &[]].map(object);
        let first = txn(
            &mut file,
            10,
            &[
                (0, Data(&to_1)),
                (1, Data(&to_2)),
                (2, Data(&to_3)),
                (3, Data(&leaf)),
            ],
        );
        // The root lets go of all; 1 and 2 are changed with it.
        txn(
            &mut file,
            20,
            &[(0, Data(&leaf)), (1, Data(&leaf)), (2, Data(&leaf))],
        );
        // That is undone after the pack time, for 2 in two steps.
        let undone = txn(
            &mut file,
            30,
            &[
                (0, Back(first[0])),
                (1, Back(first[1])),
                (2, Back(first[2])),
            ],
        );
        let last = [(2, Back(undone[2])), (1, Back(0)), (0, Data(&to_2))];
        txn(&mut file, 40, &last);
        let mut rig = Rig::new(&file);
        rig.pack(25).unwrap();
        let kept = [
            (
                10,
                b'p',
                [0, 1, 2, 3].map(|oid| (oid, false, None)).to_vec(),
            ),
            (20, b'p', vec![(0, false, None)]),
            (
                30,
                b' ',
                vec![(0, true, Some(1)), (1, true, Some(2)), (2, true, Some(3))],
            ),
            (
                40,
                b' ',
                vec![(2, true, Some(8)), (1, true, Some(0)), (0, true, None)],
            ),
        ];
        assert_eq!(rig.contents(), kept);
        assert_eq!(rig.current(3), Some(10));
        assert_eq!(rig.current(1), None);
        // And once more, with nothing behind it: the data come to those that lead to them.
        rig.pack(40).unwrap();
        let records = rig.contents();
        let all = records.iter().flat_map(|(tid, _, records)| {
            records.iter().map(move |record| (*tid, record.0, record.2))
        });
        let all: Vec<_> = all.collect();
        assert_eq!(all, [(10, 3, None), (40, 2, None), (40, 0, None)]);
        assert_eq!(rig.current(2), Some(40));
    }

    #[test]
    fn an_old_revision_may_refer_to_what_was_gone_at_pack_time() {
        let mut file = DataFile::new();
        let [to_1, to_9, leaf] = [&[1][..], &[9], &[]].map(object);
        let first = txn(&mut file, 10, &[(0, Data(&to_1)), (1, Data(&to_9))]);
        txn(&mut file, 20, &[(0, Data(&leaf)), (1, Data(&leaf))]);
        txn(&mut file, 30, &[(0, Back(first[0])), (1, Back(first[1]))]);
        let mut rig = Rig::new(&file);
        rig.pack(20).unwrap();
        assert_eq!([0, 1].map(|oid| rig.current(oid)), [Some(30), Some(30)]);
    }

    #[test]
    fn deleted_objects_go_and_come_back_when_written() {
        let mut file = DataFile::new();
        let leaf = object(&[]);
        txn(&mut file, 10, &[(0, Data(&leaf)), (1, Data(&leaf))]);
        txn(&mut file, 20, &[(1, Back(0))]);
        txn(&mut file, 30, &[(2, Data(&leaf)), (2, Data(&object(&[])))]);
        for gc in [true, false] {
            let mut rig = Rig::with(
                &file,
                PackOptions {
                    gc,
                    keep_old: false,
                },
            );
            rig.pack(25).unwrap();
            let tids: Vec<u64> = rig.contents().iter().map(|(tid, ..)| *tid).collect();
            assert_eq!(tids, [10, 30], "{gc}");
            assert_eq!(rig.storage.object_count(), 2);
            assert_eq!(rig.current(1), None);
        }
    }

    #[test]
    fn what_is_committed_meanwhile_is_in_the_new_file() {
        let mut rig = Rig::new(&small());
        rig.storage.pack(Tid(50), rig.now).unwrap();
        assert_eq!(
            rig.storage.pack(Tid(50), rig.now),
            Err(PackRefused::Already)
        );
        rig.collect();
        let mut serial = 50;
        for _ in 0..2 {
            let id = rig.begin(1, serial);
            rig.vote(id);
            // A slice of the pack, or what the transaction needs.
            while rig.events.is_empty() {
                let job = rig.jobs.remove(0);
                rig.run(job);
            }
            assert!(
                matches!(rig.events[..], [Event::Voted(_, Vote::Granted)]),
                "{:?}",
                rig.events
            );
            rig.events.clear();
            rig.finish(id);
            while rig.storage.is_writing() {
                let job = rig.jobs.remove(0);
                rig.run(job);
            }
            match rig.events.remove(0) {
                Event::Committed(commit) => serial = commit.tid.0,
                event => panic!("{event:?}"),
            }
        }
        assert!(matches!(rig.settle()[..], [Event::Packed(Ok(_))]));
        assert_eq!(rig.current(1), Some(serial));
        assert_eq!(rig.contents().last().unwrap().0, serial);
        assert!(
            rig.contents().last().unwrap().2[0].1,
            "it has a previous one"
        );
        let id = rig.begin(1, serial);
        rig.vote(id);
        assert!(matches!(rig.settle()[..], [Event::Voted(_, Vote::Granted)]));
    }

    #[test]
    fn a_pack_ends_though_much_is_committed_all_the_time() {
        let mut rig = Rig::new(&small());
        rig.storage.pack(Tid(50), rig.now).unwrap();
        rig.collect();
        let mut slices = 0;
        while !matches!(&rig.jobs[0], Job::Pack(packer) if packer.is_switching()) {
            let slice = rig.jobs.remove(0);
            // While this is in the hands of a worker.
            let id = rig.begin(1000 + slices, 0);
            let long = Bytes::from(vec![b'x'; LAST_LEN as usize + 1]);
            assert!(rig.storage.store(id, Oid(1000 + slices), None, long));
            rig.vote(id);
            rig.run_all_but_the_pack();
            rig.finish(id);
            rig.run_all_but_the_pack();
            rig.run(slice);
            slices += 1;
            assert!(slices < 100, "it goes on and on");
        }
        assert!(matches!(rig.settle().last(), Some(Event::Packed(Ok(_)))));
        assert_eq!(rig.storage.object_count(), 3 + slices);
    }

    #[test]
    fn the_files_are_switched_between_transactions_and_votes_wait_for_it() {
        let mut rig = Rig::new(&small());
        let voted = rig.begin(1, 50);
        rig.vote(voted);
        assert!(matches!(rig.settle()[..], [Event::Voted(_, Vote::Granted)]));
        rig.storage.pack(Tid(50), rig.now).unwrap();
        assert!(rig.settle().is_empty(), "the pack waits for the voted one");
        let other = rig.begin(3, 50);
        rig.vote(other);
        assert!(matches!(rig.settle()[..], [Event::Voted(_, Vote::Granted)]));
        rig.storage.abort(other, rig.now);
        // It has waited long enough, and takes its place in the queue.
        rig.now += PATIENCE;
        rig.storage.drive_pack(rig.now);
        let late = rig.begin(2, 30);
        rig.vote(late);
        assert!(rig.settle().is_empty(), "and this one for the pack");
        rig.finish(voted);
        let switch = rig.until_switch();
        let [Event::Committed(commit)] = &rig.events[..] else {
            panic!("{:?}", rig.events);
        };
        let serial = commit.tid.0;
        // Who reads meanwhile gets the old file, and its answer is looked at again.
        assert_eq!(rig.current(1), Some(serial));
        rig.events.clear();
        rig.run(switch);
        let events = rig.settle();
        let [Event::Packed(Ok(_)), Event::Voted(id, Vote::Granted)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(*id, late);
        rig.finish(late);
        assert!(matches!(rig.settle()[..], [Event::Committed(_)]));
        let tids: Vec<u64> = rig.contents().iter().map(|(tid, ..)| *tid).collect();
        assert_eq!(tids[..4], [10, 30, 50, serial]);
        assert_eq!(tids.len(), 5);
    }

    #[test]
    fn no_index_is_saved_while_the_commit_lock_is_taken_for_a_pack() {
        let mut rig = Rig::new(&small());
        rig.storage.save_index();
        rig.collect();
        let saving = rig.jobs.remove(0);
        rig.storage.pack(Tid(50), rig.now).unwrap();
        assert!(rig.settle().is_empty(), "the pack waits");
        // Without the lock, and without a place in its queue.
        let id = rig.begin(1, 50);
        rig.vote(id);
        assert!(matches!(rig.settle()[..], [Event::Voted(_, Vote::Granted)]));
        rig.run(saving);
        rig.now += PATIENCE;
        rig.storage.drive_pack(rig.now);
        // It is in the queue now, and nothing is begun that it would have to wait for.
        rig.storage.save_index();
        rig.collect();
        assert!(rig.jobs.is_empty());
        rig.storage.abort(id, rig.now);
        assert!(matches!(rig.settle()[..], [Event::Packed(Ok(_))]));
        assert_eq!(rig.names(), ["Data.fs", "Data.fs.index", "Data.fs.old"]);
    }

    #[test]
    fn large_files_are_not_freed_while_commits_wait_nor_by_who_drives_the_storage() {
        for keep_old in [true, false] {
            let mut rig = Rig::with(&small(), PackOptions { gc: true, keep_old });
            rig.disk
                .replace(Path::new("Data.fs.old"), &[b"of an earlier pack"])
                .unwrap();
            rig.storage.pack(Tid(50), rig.now).unwrap();
            let switch = rig.until_switch();
            assert_eq!(rig.names(), ["Data.fs", "Data.fs.pack"]);
            let done = switch.run();
            // The pack, which may go on with blobs, has let go of it.
            assert_eq!(Arc::strong_count(&rig.storage.file), 1);
            rig.storage.on_done(done, rig.now);
            rig.collect();
            let closes = rig.jobs.iter().filter_map(|job| match job {
                Job::Close(file) => Some(Arc::strong_count(file)),
                _ => None,
            });
            assert_eq!(closes.collect::<Vec<_>>(), [1]);
        }
    }

    #[test]
    fn no_index_of_the_old_file_is_left_for_the_new_one() {
        let mut rig = Rig::new(&small());
        rig.storage.save_index();
        assert!(rig.settle().is_empty());
        assert_eq!(rig.names(), ["Data.fs", "Data.fs.index"]);
        // One that is being saved is waited for.
        rig.storage.save_index();
        rig.collect();
        let saving = rig.jobs.remove(0);
        rig.storage.pack(Tid(50), rig.now).unwrap();
        assert!(rig.settle().is_empty(), "the pack waits");
        rig.run(saving);
        let switch = rig.until_switch();
        // None is begun from here on.
        rig.storage.save_index();
        rig.collect();
        assert!(rig.jobs.is_empty());
        let done = switch.run();
        assert_eq!(rig.names(), ["Data.fs", "Data.fs.old"]);
        rig.storage.on_done(done, rig.now);
        assert!(matches!(rig.settle()[..], [Event::Packed(Ok(_))]));
        assert_eq!(rig.names(), ["Data.fs", "Data.fs.index", "Data.fs.old"]);
    }

    #[test]
    fn a_back_pointer_leads_to_the_record_that_it_led_to() {
        // A transaction with two records of an object, as two undos at once write them; ZODB would
        // take the first for the one that is meant.
        let leaf = object(&[]);
        let long = object(&[0]);
        let mut file = DataFile::new();
        let first = txn(&mut file, 10, &[(0, Data(&leaf))]);
        let second = txn(&mut file, 20, &[(0, Data(&long))]);
        let both = [(0, Back(second[0])), (0, Back(first[0]))];
        let third = txn(&mut file, 30, &both);
        txn(&mut file, 40, &[(0, Data(&long)), (1, Data(&leaf))]);
        txn(&mut file, 50, &[(0, Back(third[1]))]);
        for until in [20, 30, 40] {
            let mut rig = Rig::new(&file);
            rig.pack(until).unwrap();
            let answer = rig.storage.look_up(Lookup::Before(Oid(0), Tid::MAX));
            let Ok(Answer::Revision { data, serial, .. }) = answer else {
                panic!("{answer:?}");
            };
            assert_eq!((serial, &data[..]), (Tid(50), &leaf[..]), "{until}");
        }
    }

    #[test]
    fn an_answer_from_the_old_file_is_not_taken_for_one_from_the_new() {
        let mut rig = Rig::new(&small());
        let lookup = Lookup::Before(Oid(0), Tid::MAX);
        let place = rig.storage.place(rig.storage.position(Oid(0)).unwrap());
        rig.pack(50).unwrap();
        // The root has not moved.
        assert_eq!(rig.storage.position(Oid(0)), Some(place.pos));
        let wrong = Answer::Revision {
            data: Bytes::from_static(b"of another file"),
            serial: Tid(10),
            end: None,
        };
        let settled = rig.storage.settle(lookup, place, Ok(wrong.clone()));
        assert!(matches!(settled, Ok(answer) if answer != wrong));
        let damaged = PackError::Replaced.to_string();
        let error = crate::storage::error::ReadError::Io(std::io::Error::other(damaged));
        let settled = rig.storage.settle(lookup, place, Err(error));
        assert!(!matches!(settled, Err(Unanswered::Failed(_))));
    }

    #[test]
    fn an_iteration_goes_on_in_the_file_in_which_it_began() {
        let mut rig = Rig::new(&small());
        let view = rig.storage.view();
        rig.pack(50).unwrap();
        let query = || {
            let from = crate::storage::history::From::Tid(Tid(20));
            crate::storage::history::Query::Transaction(from)
        };
        for (view, tid) in [(view, 20), (rig.storage.view(), 30)] {
            let crate::storage::Done::Browsed(Ok(past)) = view.browse(query()).run() else {
                panic!("an answer");
            };
            let past = format!("{past:?}");
            assert!(past.contains(&format!("tid: {}", Tid(tid))), "{past}");
        }
    }

    #[test]
    fn what_cannot_be_told_ends_the_pack_and_changes_nothing() {
        let leaf = object(&[]);
        let with_objects = |objects: &[(u64, &[u8])]| {
            let mut file = DataFile::new();
            let records: Vec<_> = objects.iter().map(|(oid, it)| (*oid, Data(it))).collect();
            txn(&mut file, 10, &records);
            txn(&mut file, 20, &records);
            file
        };
        let mut unordered = small();
        txn(&mut unordered, 50, &[(0, Data(&leaf))]);
        let mut strange = small();
        strange.txn(60, Status::Other(b'x'), "", &[(0, Data(&leaf))]);
        let mut ahead = small();
        let end = ahead.end();
        ahead.txn(70, Status::Finished, "", &[(0, Back(end + 1000))]);
        for (file, expected) in [
            (with_objects(&[(1, &leaf)]), "no root object"),
            (
                with_objects(&[(0, &object(&[7]))]),
                "0000000000000000 refers to 0000000000000007",
            ),
            (
                with_objects(&[(0, b"no pickle")]),
                "references of object 0000000000000000 (record",
            ),
            (unordered, "not newer than"),
            (strange, "status 'x'"),
            (ahead, "pointer to an earlier record"),
        ] {
            let mut rig = Rig::new(&file);
            let error = rig.pack(30).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(rig.disk.read(Path::new(PATH)).unwrap(), file.bytes);
            assert_eq!(rig.names(), ["Data.fs"]);
            assert!(!rig.storage.is_packing());
        }
    }

    #[test]
    fn a_pack_is_given_up_at_any_time_but_the_switch() {
        // How many jobs there are before the switch.
        let mut rig = Rig::new(&small());
        rig.storage.pack(Tid(50), rig.now).unwrap();
        rig.collect();
        let mut count = 0;
        while !matches!(&rig.jobs[0], Job::Pack(packer) if packer.is_switching()) {
            let job = rig.jobs.remove(0);
            rig.run(job);
            count += 1;
        }
        assert!(count >= 5, "{count}");
        for before in 0..=count {
            let mut rig = Rig::new(&small());
            rig.storage.pack(Tid(50), rig.now).unwrap();
            rig.collect();
            for _ in 0..before {
                let job = rig.jobs.remove(0);
                rig.run(job);
            }
            rig.storage.give_up_pack(rig.now);
            let events = rig.settle();
            let [Event::Packed(ended)] = &events[..] else {
                panic!("{events:?}");
            };
            assert_eq!(ended.is_ok(), before == count);
            if before < count {
                assert!(matches!(ended, Err(PackError::Stopped)));
                assert_eq!(rig.names(), ["Data.fs"]);
                // The lock is free.
                let id = rig.begin(1, 50);
                rig.vote(id);
                assert!(matches!(rig.settle()[..], [Event::Voted(_, Vote::Granted)]));
            }
        }
    }

    #[test]
    fn what_is_undone_while_it_is_packed_leads_to_what_was_kept() {
        let mut file = DataFile::new();
        let objects = [object(&[1]), object(&[]), object(&[0])];
        let root = (0, Data(&objects[0]));
        txn(&mut file, 10, &[root, (1, Data(&objects[2]))]);
        txn(&mut file, 20, &[(1, Data(&objects[1]))]);
        txn(&mut file, 30, &[(1, Data(&objects[2]))]);
        // The undo of the last one leads to a record that is kept, or to one that is not.
        for (until, is_kept) in [(20, true), (30, false)] {
            let mut rig = Rig::new(&file);
            rig.storage.pack(Tid(until), rig.now).unwrap();
            rig.collect();
            // When this is there it has been decided what is kept.
            while rig.disk.identify(Path::new("Data.fs.pack")).is_err() {
                let job = rig.jobs.remove(0);
                rig.run(job);
            }
            let id = rig.begin(3, 0);
            assert!(rig.storage.undo(id, Some(Tid(30))));
            rig.vote(id);
            rig.run_all_but_the_pack();
            rig.finish(id);
            rig.run_all_but_the_pack();
            let events = rig.settle();
            let [
                Event::Voted(_, Vote::Granted),
                Event::Committed(_),
                Event::Packed(ended),
            ] = &events[..]
            else {
                panic!("{events:?}");
            };
            match ended {
                Ok(_) => assert!(is_kept),
                Err(PackError::Undone { oid }) => assert!(*oid == Oid(1) && !is_kept),
                Err(error) => panic!("{error}"),
            }
            let answer = rig.storage.look_up(Lookup::Before(Oid(1), Tid::MAX));
            let Ok(Answer::Revision { data, .. }) = answer else {
                panic!("{answer:?}");
            };
            assert_eq!(&data[..], &objects[1][..]);
        }
    }

    #[test]
    fn a_storage_that_is_closed_while_it_is_packed_leaves_nothing() {
        let mut rig = Rig::new(&small());
        rig.storage.pack(Tid(50), rig.now).unwrap();
        rig.collect();
        while rig.disk.identify(Path::new("Data.fs.pack")).is_err() {
            let job = rig.jobs.remove(0);
            rig.run(job);
        }
        let Rig { disk, storage, .. } = rig;
        storage.close().unwrap();
        assert!(disk.identify(Path::new("Data.fs.pack")).is_err());
    }

    #[test]
    fn a_file_that_was_replaced_is_not_replaced_once_more() {
        let mut rig = Rig::new(&small());
        rig.storage.pack(Tid(50), rig.now).unwrap();
        let switch = rig.until_switch();
        rig.disk
            .replace(Path::new(PATH), &[b"of somebody else"])
            .unwrap();
        rig.run(switch);
        let events = rig.settle();
        assert!(
            matches!(events[..], [Event::Packed(Err(PackError::Replaced))]),
            "{events:?}"
        );
        assert_eq!(rig.disk.read(Path::new(PATH)).unwrap(), b"of somebody else");
        assert_eq!(rig.names(), ["Data.fs"]);
    }
}
