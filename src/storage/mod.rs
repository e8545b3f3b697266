//! Data.fs: FileStorage's file format FS21, and the transactions that go into it.
//!
//! [`FileStorage`] decides; it does no I/O that can wait. What has to wait for the disk leaves as
//! [`Event::Run`] with a [`Job`], is run on a worker thread, and comes back through
//! [`FileStorage::on_done`]. Clients, sockets and encodings are unknown here.
//!
//! | part | for |
//! |---|---|
//! | `disk` | files and directories as the storage needs them; the only user of `std::fs` |
//! | `format` | headers of transactions and records |
//! | `index` | object to position; the `.index` file |
//! | `output` | new files that replace others |
//! | `recover` | opening: locks, index, tail |
//! | `read` | following an object's revisions |
//! | `glance` | the short way to a current revision |
//! | `iterate` | transactions in order, and backwards |
//! | `history` | what clients ask about the past |
//! | `recent` | what the last transactions changed |
//! | `oids` | object ids, never handed out twice |
//! | `references` | which objects a record refers to |
//! | `staging`, `commit_lock`, `commit`, `batch` | a transaction from begin to published |
//! | `compare` | what a vote compares |
//! | `pieces` | large objects that come in pieces |
//! | `layout` | a large one on its way into the file |
//! | `blob` | files of blobs, from their first byte to their place |
//! | `undo` | transactions that are undone, objects that are restored or deleted |
//! | `pack`, `references` | dropping what nobody can ask for any more |
//! | `compose` | from a staged transaction to what is proposed to a log |
//! | `job` | what workers do |
//! | `journal` | what is proposed and not committed yet |
//! | `apply` | a data file that only a log writes to |
//! | `follow` | the same, served |
//! | `newest` | a copy without old revisions |
//! | `prefix` | a copy as of a transaction |
//! | `verify`, `digest` | whether a data file is sound, and the same as another one |
//! | `transfer` | a transaction as other nodes get it |

pub mod apply;
mod batch;
pub mod blob;
mod commit;
mod commit_lock;
mod compare;
mod compose;
pub mod digest;
pub mod disk;
pub mod error;
pub mod follow;
pub mod format;
mod glance;
pub mod history;
pub mod index;
pub mod iterate;
mod job;
pub mod journal;
mod layout;
pub mod memory;
pub mod newest;
pub mod oids;
mod output;
mod pack;
mod pieces;
pub mod prefix;
pub mod read;
mod recent;
pub mod recover;
pub mod references;
mod staging;
#[cfg(test)]
mod testing;
pub mod transfer;
mod undo;
pub mod verify;
mod window;
pub mod witness;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use batch::Commit;
pub use blob::{BlobJob, BlobMistake, BlobReader, is_blob_record};
pub use commit::{Conflict, Refusal, Vote};
pub use commit_lock::LockScope;
pub use compose::Proposal;
pub use glance::Glimpse;
pub use job::{Answer, Append, Done, Job, Lane, Lookup};
pub use pack::fed as pack_fed;
pub use pack::{PackError, PackOptions, PackRefused, Packed, Packer, Step as PackStep};
pub use pieces::LongData;
pub use recent::{Changed, Recent, RecentReader};
pub use staging::{Metadata, TxnId};
pub use undo::{Backs, LookBack, Undone};

use batch::{Appending, Finishing, Witnessing};
use blob::Blobs;
use blob::layout::BlobDirectory;
use commit_lock::{CommitLock, Ticket};
use disk::{Disk, File, FileId, with_suffix};
use error::{ReadError, StorageError};
use follow::Feed;
use glance::Glance;
use history::Query;
use index::Index;
use oids::OidAllocator;
use pack::Pack;
use read::{Reader, Wait};
use recover::{Access, Progress};
use staging::Txn;
use transfer::BlobName;

use crate::ids::{Oid, Tid};
use witness::Witness;

use crate::limits::{INDEX_SAVE_INTERVAL, INDEX_SAVE_LEN};

/// How a storage is opened and kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it is called in logs and by clients.
    pub name: String,
    /// Serve what is there, and write nothing.
    pub read_only: bool,
    /// Begin with an empty file even if there is one.
    pub create: bool,
    /// Refuse to grow beyond this many bytes.
    pub quota: Option<u64>,
    /// Conflicts go back to the client, which may resolve them.
    pub client_resolves: bool,
    /// What a vote excludes.
    pub lock_scope: LockScope,
    /// How it is packed.
    pub pack: PackOptions,
    /// Where blobs are kept; without it there are none.
    pub blob_dir: Option<PathBuf>,
}

/// What the storage wants done or known.
#[derive(Debug)]
pub enum Event {
    /// Run this on a worker and bring the [`Done`] back.
    Run(Job),
    /// The answer to [`FileStorage::vote`].
    Voted(TxnId, Vote),
    /// A transaction is on stable storage and visible.
    Committed(Commit),
    /// A finish failed in the disk, or in the log: nobody can know whether the transaction is in
    /// the file, but who has said so to [`FileStorage::on_lost`].
    Lost(TxnId),
    /// The log is to commit this; then [`FileStorage::on_applied`] or [`FileStorage::on_lost`]
    /// follows.
    Propose(Box<Proposal>),
    /// Other nodes may fetch these blobs of a transaction, whose files are complete and synced. Its
    /// vote goes on with [`FileStorage::on_offered`].
    Offer(TxnId, Vec<(BlobName, PathBuf)>),
    /// A transaction that was offered has ended, in whatever way.
    Withdraw(TxnId),
    /// Oids are needed that nobody else hands out: [`FileStorage::on_oids`].
    OidsWanted {
        /// So many in a row.
        count: u64,
    },
    /// A transaction that was too much for the memory, or waited for its blobs, can go on.
    Spilled(TxnId),
    /// [`FileStorage::allocate_oids`] can go on; or it cannot, because the disk fails.
    OidsRaised {
        /// Whether the ceiling is higher now.
        raised: bool,
    },
    /// A pack has ended, and how.
    Packed(Result<Packed, PackError>),
}

/// Why a lookup has no answer yet, or none at all.
#[derive(Debug)]
pub enum Unanswered {
    /// It has to wait for the disk: run this and ask [`FileStorage::settle`].
    Reading(Box<Job>),
    /// The file is damaged or cannot be read there.
    Failed(ReadError),
}

/// A position in the data file, which a pack may have replaced since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    generation: u64,
    pos: u64,
}

/// The data file as it was at some time, whatever is committed or packed away later.
#[derive(Clone, Debug)]
pub struct View {
    file: Arc<dyn File>,
    tail: u64,
}

impl View {
    /// A job that answers a question about the past.
    pub fn browse(&self, query: Query) -> Job {
        Job::Browse {
            query,
            file: self.file.clone(),
            tail: self.tail,
        }
    }

    /// A job that finds what the last `count` transactions changed, and all from the tid `oldest`
    /// on.
    pub fn recent(&self, count: usize, oldest: Tid) -> Job {
        let reader = RecentReader::new(self.file.clone(), self.tail, count, oldest);
        Job::Recent(Box::new(reader))
    }
}

/// One data file with its transactions in progress.
#[derive(Debug)]
pub struct FileStorage {
    options: Options,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<dyn File>,
    /// What stands under `path` as long as nobody replaces it.
    file_id: FileId,
    /// How often a pack has replaced it: positions are of one generation.
    generation: u64,
    /// Kept open for the lock that it holds; there is none when read-only.
    _lock: Option<Arc<dyn File>>,

    // What is committed: synced and published.
    index: Index,
    glance: Glance,
    /// Behind the last committed transaction. `tail <= assigned_end`
    tail: u64,
    /// The last committed tid. `last_tid <= assigned_tid`
    last_tid: Tid,

    // What has its place, but is not on stable storage yet.
    assigned_end: u64,
    assigned_tid: Tid,
    /// Tid of the transaction that ends at `assigned_end`; `None` if only the file knows, as a pack
    /// may have dropped the last one.
    end_tid: Option<Tid>,
    // The stations of a batch on its way to the disk, last one first (see `batch`).
    /// In the worker's hands.
    appending: Option<Appending>,
    /// All its bytes are on stable storage.
    written: Vec<Finishing>,
    /// It is still growing.
    finishing: Vec<Finishing>,
    /// Of the batch that is growing.
    batch_number: u64,
    /// Where that begins, if there are witnessed transactions in it.
    batch_start: Option<u64>,
    witnessing: Witnessing,
    /// The last attempt to write the witness has failed, and that was said.
    witness_failed: bool,
    /// The next append has to remove the witness.
    ends_witness: bool,

    // What is voted: its space is reserved.
    voted_len: u64,
    allocated_end: u64,

    txns: BTreeMap<TxnId, Txn>,
    txns_begun: u64,
    lock: CommitLock,
    tickets: BTreeMap<Ticket, TxnId>,
    /// Tickets that got the lock and whose votes are to be checked.
    to_check: VecDeque<Ticket>,
    is_checking: bool,
    /// Where files of blobs are kept, if they are.
    blobs: Option<Blobs>,
    oids: OidAllocator,
    /// A higher ceiling is on its way to the disk.
    oids_raising: bool,

    /// Why no more writes are taken.
    failed: Option<String>,
    /// If only a log writes to the file.
    feed: Option<Feed>,
    pack: Option<Pack>,
    /// Behind what the saved index covers.
    index_saved: u64,
    index_saving: bool,
    index_looked_at: Option<Instant>,
    events: VecDeque<Event>,
}

/// A data file that is there, and what is known of it.
struct Origin {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<dyn File>,
    file_id: FileId,
    lock: Option<Arc<dyn File>>,
    index: Index,
    index_saved: u64,
    tail: u64,
    last_tid: Tid,
    ceiling: Option<Oid>,
    blobs: Option<Blobs>,
}

impl FileStorage {
    /// Opens or creates a data file. Blocks until that is done, which for a large file without an
    /// index takes as long as reading it once.
    ///
    /// # Errors
    ///
    /// The file is locked, damaged, of another format, or cannot be read.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        options: Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StorageError> {
        let access = match (options.read_only, options.create) {
            (true, _) => Access::ReadOnly,
            (false, true) => Access::Create,
            (false, false) => Access::ReadWrite,
        };
        let opened = recover::open(&*disk, path, access, progress)?;
        if !options.read_only && opened.last_tid >= Tid::MAX {
            return Err(StorageError::TidTooHigh {
                path: path.to_owned(),
                tid: opened.last_tid,
            });
        }
        let ceiling = oids::load(&*disk, path)?;
        let blobs = open_blobs(&*disk, &options)?;
        let file_id = { opened.file.id() }.map_err(StorageError::io("identify", path))?;
        let witness = Witness {
            inode: file_id.inode,
            pos: opened.tail,
            tid: opened.last_tid,
        };
        let mut witnessing = Witnessing::Off;
        if !options.read_only {
            match witness.save(&*disk, path) {
                Ok(()) => witnessing = Witnessing::On,
                Err(error) => log::warn!("commits take two syncs each: {error}"),
            }
        }
        let origin = Origin {
            disk,
            path: path.to_owned(),
            file: opened.file,
            file_id,
            lock: opened.lock,
            index: opened.index,
            index_saved: opened.index_pos,
            tail: opened.tail,
            last_tid: opened.last_tid,
            ceiling,
            blobs,
        };
        Ok(Self::new(options, origin, witnessing))
    }

    fn new(options: Options, origin: Origin, witnessing: Witnessing) -> Self {
        let Origin {
            disk,
            path,
            file,
            file_id,
            lock,
            index,
            index_saved,
            tail,
            last_tid,
            ceiling,
            blobs,
        } = origin;
        Self {
            file_id,
            lock: CommitLock::new(options.lock_scope),
            options,
            disk,
            path,
            file,
            _lock: lock,
            generation: 0,
            oids: OidAllocator::new(index.max_oid(), ceiling),
            oids_raising: false,
            blobs,
            index,
            glance: Glance::new(),
            tail,
            last_tid,
            assigned_end: tail,
            assigned_tid: last_tid,
            end_tid: Some(last_tid),
            appending: None,
            written: Vec::new(),
            finishing: Vec::new(),
            batch_number: 0,
            batch_start: None,
            witness_failed: witnessing == Witnessing::Off,
            witnessing,
            ends_witness: false,
            voted_len: 0,
            allocated_end: tail,
            txns: BTreeMap::new(),
            txns_begun: 0,
            tickets: BTreeMap::new(),
            to_check: VecDeque::new(),
            is_checking: false,
            failed: None,
            feed: None,
            pack: None,
            index_saved,
            index_saving: false,
            index_looked_at: None,
            events: VecDeque::new(),
        }
    }

    /// What it is called in logs and by clients.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The data file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it can be written at all.
    pub const fn is_read_only(&self) -> bool {
        self.options.read_only
    }

    /// Whether it takes blobs.
    pub const fn has_blobs(&self) -> bool {
        self.blobs.is_some()
    }

    /// The last committed tid; zero for an empty storage.
    pub const fn last_tid(&self) -> Tid {
        self.last_tid
    }

    /// How many objects it has. Deleted ones count until they are packed away.
    pub fn object_count(&self) -> u64 {
        self.index.len() as u64
    }

    /// Length of the committed part of the file, in bytes.
    pub const fn file_len(&self) -> u64 {
        self.tail
    }

    /// Looks something up, if that needs no wait for the disk.
    ///
    /// # Errors
    ///
    /// See [`Unanswered`].
    pub fn look_up(&self, lookup: Lookup) -> Result<Answer, Unanswered> {
        let Some(pos) = self.index.get(lookup.oid()) else {
            return Ok(Answer::Missing);
        };
        match lookup.follow(&self.reader(), &self.file, pos) {
            Ok(answer) => Ok(answer),
            Err(ReadError::WouldBlock) => {
                let (file, tail) = (self.file.clone(), self.tail);
                Err(Unanswered::Reading(Box::new(Job::Lookup {
                    lookup,
                    file,
                    place: self.place(pos),
                    tail,
                })))
            }
            Err(error) => Err(Unanswered::Failed(error)),
        }
    }

    /// The revision that was current just before `before`, if a glance shows it: the answer to
    /// nearly every load. `None` leaves it to [`Self::look_up`], which also says what it means.
    pub fn glance(&mut self, oid: Oid, before: Tid) -> Option<Glimpse<'_>> {
        let pos = self.index.get(oid)?;
        self.glance.look(&*self.file, self.tail, pos, oid, before)
    }

    /// Turns what a [`Job::Lookup`] found into an answer that is right now: if the object has got
    /// a new revision meanwhile, what was read as current no longer is, and the client would keep
    /// it for ever.
    ///
    /// # Errors
    ///
    /// See [`Unanswered`].
    pub fn settle(
        &self,
        lookup: Lookup,
        place: Place,
        result: Result<Answer, ReadError>,
    ) -> Result<Answer, Unanswered> {
        // What is older than the current revision stays as it is.
        let is_past = matches!(
            &result,
            Ok(Answer::Revision { end: Some(_), .. }
                | Answer::LongRevision { end: Some(_), .. }
                | Answer::NoneBefore
                | Answer::Data(_)
                | Answer::LongData(_))
        );
        let current = self.index.get(lookup.oid()).map(|pos| self.place(pos));
        if !is_past && current != Some(place) {
            return self.look_up(lookup);
        }
        result.map_err(Unanswered::Failed)
    }

    /// The file as it is now, for questions about the past.
    pub fn view(&self) -> View {
        View {
            file: self.file.clone(),
            tail: self.tail,
        }
    }

    /// Where the current record of an object is; what [`Query::History`] wants to know.
    pub fn position(&self, oid: Oid) -> Option<u64> {
        self.index.get(oid)
    }

    /// The first object whose oid is not below `from`.
    pub fn next_oid(&self, from: Oid) -> Option<Oid> {
        self.index.next_oid(from)
    }

    /// Hands out `count` new oids in a row; `None` until an [`Event::OidsRaised`].
    pub fn allocate_oids(&mut self, count: u64) -> Option<std::ops::Range<u64>> {
        if self.feed.is_some() {
            return self.take_oids(count);
        }
        let range = self.oids.allocate(count);
        if !self.oids.is_low() || self.oids_raising {
            return range;
        }
        if self.failed.is_none() && self.oids.can_raise() {
            self.oids_raising = true;
            self.events.push_back(Event::Run(Job::RaiseOids {
                disk: self.disk.clone(),
                path: self.path.clone(),
                ceiling: self.oids.raise(),
            }));
        } else if range.is_none() {
            self.events.push_back(Event::OidsRaised { raised: false });
        }
        range
    }

    /// Sees to it that so many oids are left out at the next start, half of them at least: another
    /// server hands them out. To be called again when something was stored. Nothing is handed out
    /// here.
    pub fn keep_oids_clear(&mut self, count: u64) {
        let may = self.feed.is_none() && !self.oids_raising && self.failed.is_none();
        if let Some(ceiling) = self.oids.clear(count).filter(|_| may) {
            self.oids_raising = true;
            self.events.push_back(Event::Run(Job::RaiseOids {
                disk: self.disk.clone(),
                path: self.path.clone(),
                ceiling,
            }));
        }
    }

    /// The next thing that the storage wants done or known. To be drained after every call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A job has ended. Those of [`Job::Lookup`] go to [`Self::settle`] instead.
    pub fn on_done(&mut self, done: Done, now: Instant) {
        match done {
            Done::Appended(result) => self.on_appended(result, now),
            Done::Allocated { txn, end, result } => self.on_allocated(txn, end, result, now),
            Done::Fetched { txn, result } => self.on_fetched(txn, result, now),
            Done::Compared(compared) => self.on_large_compared(compared, now),
            Done::LookedBack { txn, result } => self.on_looked_back(txn, result, now),
            Done::Spilled { txn, result } => self.on_spilled(txn, result),
            Done::IndexSaved { tail, result } => self.on_index_saved(tail, result),
            Done::Witnessed(result) => self.on_witness(result),
            Done::OidsRaised { ceiling, result } => self.on_oids_raised(ceiling, result),
            Done::Packed(packer, result) => self.on_packed(packer, result, now),
            Done::Blob(done) => self.on_blob_done(done, now),
            Done::Composed { txn, result } => self.on_composed(txn, result, now),
            Done::Closed => {}
            Done::Looked { .. }
            | Done::Browsed(_)
            | Done::Recent(_)
            | Done::LongRead(_)
            | Done::BlobRead(_) => {
                debug_assert!(false, "these are for who asked");
            }
        }
        self.drive_pack(now);
    }

    /// Saves the index if it is time, and sees to it that transactions can be witnessed. To be
    /// called now and then.
    pub fn on_timer(&mut self, now: Instant) {
        if self.feed.is_some() {
            return;
        }
        let due = self
            .index_looked_at
            .is_none_or(|last| now >= last + INDEX_SAVE_INTERVAL);
        if due {
            let first = self.index_looked_at.replace(now).is_none();
            if !first && self.tail > self.index_saved {
                self.save_index();
            }
        }
        if !self.options.read_only {
            self.begin_witness();
        }
    }

    /// Whether transactions are on their way to the disk, or through the log, or a packed file on
    /// its way to its name.
    pub fn is_writing(&self) -> bool {
        self.on_their_way().next().is_some() || self.is_switching() || self.has_proposed()
    }

    /// Ends in good order: saves the index. Blocks. Transactions that are not finished are gone,
    /// and so is a pack; what has to be waited for tells [`Self::is_writing`].
    pub fn close(self) -> io::Result<()> {
        self.forget_pack();
        if let Some(reason) = self.failed {
            return Err(io::Error::other(reason));
        }
        if self.options.read_only {
            return Ok(());
        }
        self.discard_all_blobs();
        if self.feed.is_some() {
            return Ok(());
        }
        if self.allocated_end > self.tail {
            // Gives back the space that was reserved ahead.
            self.file.set_len(self.tail)?;
        }
        if self.tail > self.index_saved {
            self.index
                .save(self.tail, &*self.disk, &with_suffix(&self.path, ".index"))?;
        }
        // All is whole, and who writes next may be another server.
        self.disk.remove(&with_suffix(&self.path, witness::SUFFIX))
    }

    const fn place(&self, pos: u64) -> Place {
        Place {
            generation: self.generation,
            pos,
        }
    }

    /// Reads what is committed, if that needs no wait.
    fn reader(&self) -> Reader<'_> {
        Reader {
            file: &*self.file,
            wait: Wait::No,
            tail: self.tail,
        }
    }

    pub(super) fn save_index_if_due(&mut self) {
        // A large index is written less often, so that it does not cost more than the data.
        let index_len = self.object_count() * 8;
        if self.tail - self.index_saved >= INDEX_SAVE_LEN.max(index_len) {
            self.save_index();
        }
    }

    fn save_index(&mut self) {
        let of_no_use = self.options.read_only || self.failed.is_some();
        // A pack removes the file soon, and must not wait for it with the commit lock in hands.
        if of_no_use || self.index_saving || self.is_about_to_switch() {
            return;
        }
        self.index_saving = true;
        self.events.push_back(Event::Run(Job::SaveIndex {
            disk: self.disk.clone(),
            path: with_suffix(&self.path, ".index"),
            index: self.index.snapshot(),
            tail: self.tail,
        }));
    }

    fn on_index_saved(&mut self, tail: u64, result: io::Result<()>) {
        self.index_saving = false;
        match result {
            Ok(()) => self.index_saved = tail,
            // The data are safe without it; opening will take longer.
            Err(error) => log::warn!("{}: index not saved ({error})", self.name()),
        }
    }

    fn on_oids_raised(&mut self, ceiling: Oid, result: Result<(), StorageError>) {
        self.oids_raising = false;
        let raised = result.is_ok();
        match result {
            Ok(()) => self.oids.raised(ceiling),
            Err(error) => log::error!("{}: new oids cannot be reserved: {error}", self.name()),
        }
        self.events.push_back(Event::OidsRaised { raised });
    }
}

/// The directory of the blobs. Only called with the data file locked: it is that file's.
fn open_blobs(disk: &dyn Disk, options: &Options) -> Result<Option<Blobs>, StorageError> {
    let Some(path) = &options.blob_dir else {
        return Ok(None);
    };
    let writable = !options.read_only;
    if writable && options.create {
        // They are of the data file that was there before.
        disk.remove_tree(path)
            .map_err(StorageError::io("remove", path))?;
    }
    Ok(Some(Blobs::new(BlobDirectory::open(disk, path, writable)?)))
}
