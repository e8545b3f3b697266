//! What a replica wants of its disk, done: the journal, the data files that its entries are applied
//! to, and the settings as of what was applied.
//!
//! ```text
//!  Append ─► journal, synced ─► Apply ─► data files (written, shown) ─► checkpoint ─► release
//!            blobs are there                                     synced; `settings` saved
//! ```
//!
//! Everything here waits for the disk, and is done one after the other: it is for a thread of its
//! own, or for a simulator. After a failed write or sync nothing more is done; only opening anew
//! finds out what is there. What a crash leaves at each step: [`journal`](crate::manual::journal).
//!
//! | part | for |
//! |---|---|
//! | `start` | opening: where the data files are in the log |
//! | `found` | a journal for a new node, or a new history |
//! | `copy` | a copy of the database for another node |
//! | `blobs` | files of blobs, from before their entry is acknowledged until it is applied |
//! | `files` | the files beside the journal |

mod blobs;
mod copy;
mod error;
mod files;
mod found;
mod start;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::entry::{Entry, EntryHeader, Point};
use crate::ids::{Digest, Epoch, Oid, Seq, Tid};
use crate::limits::{APPLIED_LEN_DEFAULT, APPLIED_TOLD_MAX, FETCHED_ENTRIES_MAX};
use crate::replica::event::{Action, Event};
use crate::replica::members::Members;
use crate::replica::message::Position;
use crate::replica::settings::{Change, Kind, Settings, StorageName};
use crate::storage::apply::Applier;
use crate::storage::disk::{Disk, File};
use crate::storage::journal::state::State as _;
use crate::storage::journal::{self, Identity, Journal, JournalError, Positions, Refusal};
use crate::storage::read::Found as Loaded;
use crate::storage::transfer::Transfer;

pub use copy::Snapshot;
pub use error::LogDiskError;
pub use found::Found;

use files::{Record, Settled};

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// The journal's.
    pub journal: PathBuf,
    /// The data files. An arbiter has none.
    pub storages: BTreeMap<StorageName, StoragePaths>,
}

/// Where a storage is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoragePaths {
    /// Its data file.
    pub data: PathBuf,
    /// The directory of its blobs, if it has one. Files get their places there by a second name if
    /// the journal is on the same file system, and are copied if not.
    pub blobs: Option<PathBuf>,
}

/// What an operator may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes after which another segment of the journal is begun.
    pub segment_len: u64,
    /// Bytes of the journal that are kept for other nodes.
    pub window_len: u64,
    /// Bytes that are applied before a checkpoint is made without being asked for.
    pub checkpoint_len: u64,
}

impl Default for Options {
    fn default() -> Self {
        let journal = journal::Options::default();
        Self {
            segment_len: journal.segment_len,
            window_len: journal.window_len,
            checkpoint_len: APPLIED_LEN_DEFAULT,
        }
    }
}

/// Something that a replica wants of its disk; see [`Action`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskAction {
    /// [`Action::Append`]
    Append(Vec<Entry>),
    /// [`Action::Promise`]
    Promise(Epoch),
    /// [`Action::Cut`]
    Cut {
        /// See there.
        after: Seq,
        /// See there.
        committed: Seq,
    },
    /// [`Action::Apply`]
    Apply {
        /// See there.
        through: Seq,
    },
    /// [`Action::Record`]
    Record(Position, Members),
}

impl DiskAction {
    /// What an action wants of the disk.
    ///
    /// # Errors
    ///
    /// The action itself, if it wants nothing of it that is done here.
    pub fn of(action: Action) -> Result<Self, Box<Action>> {
        Ok(match action {
            Action::Append(entries) => Self::Append(entries),
            Action::Promise(epoch) => Self::Promise(epoch),
            Action::Cut { after, committed } => Self::Cut { after, committed },
            Action::Apply { through } => Self::Apply { through },
            Action::Record(position, members) => Self::Record(position, members),
            other => return Err(Box::new(other)),
        })
    }

    /// Makes one of two appends that follow each other, so that they share a sync. One that does
    /// not continue the other is left alone: the first may be dropped, as there was no room for
    /// what was in front of it, and the next is what the replica has made of that.
    ///
    /// # Errors
    ///
    /// The next action, if they are not that.
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        match (self, next) {
            (Self::Append(entries), Self::Append(mut more))
                if more.first().map(|entry| entry.header().previous)
                    == entries.last().map(|entry| entry.header().digest) =>
            {
                entries.append(&mut more);
                Ok(())
            }
            (_, next) => Err(next),
        }
    }
}

/// A transaction that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its entry
    pub seq: Seq,
    /// Its tid
    pub tid: Tid,
    /// Whose
    pub storage: StorageName,
    /// The objects that it changed.
    pub oids: Vec<Oid>,
}

/// What has been applied since it was asked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// In order; the last [`APPLIED_TOLD_MAX`] at most.
    pub applied: VecDeque<Applied>,
    /// There were more before these: anything may have changed.
    pub has_gap: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct LogDisk {
    disk: Arc<dyn Disk>,
    directories: Directories,
    options: Options,
    journal: Journal,
    appliers: BTreeMap<StorageName, Applier>,
    /// As of the last checkpoint. `settled.point.seq <= applied <= the end of the journal`
    settled: Settled,
    /// All up to this is in the data files.
    applied: Seq,
    /// As of `applied`.
    settings: Settings,
    /// Of an arbiter.
    record: Record,
    /// Blobs that wait to be applied, with the entries that name them.
    staged: BTreeSet<(Digest, Seq)>,
    news: News,
    /// What does not follow the log's end was asked for before it was known that there is no room.
    has_no_room: bool,
    failed: Option<String>,
}

impl LogDisk {
    /// Does it; what to tell the replica. Nothing is to be told of entries that were to be appended
    /// before the replica knew that there was no room for others.
    ///
    /// # Errors
    ///
    /// The node must not go on, unless it [is a refusal](LogDiskError::is_refusal).
    pub fn run(&mut self, action: DiskAction) -> Result<Option<Event>, LogDiskError> {
        self.check()?;
        let done = match action {
            DiskAction::Append(entries) => self.append(&entries),
            DiskAction::Promise(epoch) => self.promise(epoch).map(Some),
            DiskAction::Cut { after, committed } => self.cut(after, committed).map(Some),
            DiskAction::Apply { through } => self.apply(through).map(Some),
            DiskAction::Record(position, members) => {
                self.put_on_record(position, members).map(Some)
            }
        };
        self.latch(done)
    }

    fn check(&self) -> Result<(), LogDiskError> {
        self.failed.as_ref().map_or(Ok(()), |first| {
            let first = first.clone();
            Err(LogDiskError::Failed { first })
        })
    }

    fn latch<T>(&mut self, result: Result<T, LogDiskError>) -> Result<T, LogDiskError> {
        result.inspect_err(|error| {
            if !error.is_refusal() {
                self.failed.get_or_insert(error.to_string());
            }
        })
    }

    fn append(&mut self, entries: &[Entry]) -> Result<Option<Event>, LogDiskError> {
        let last = self.journal.positions().last;
        let is_next = |entry: &Entry| entry.header().previous == last.digest;
        if self.has_no_room && !entries.first().is_some_and(is_next) {
            return Ok(None);
        }
        // Before anything is written: an entry counts as synced with its blobs, or not at all.
        let staged = self.blobs_that_are_here(entries)?;
        match self.journal.append(entries) {
            Err(JournalError::NoSpace { .. }) => {
                self.journal.sync()?;
                self.has_no_room = true;
                let last_tid = self.last_tid();
                return Ok(Some(Event::NoRoom { last, last_tid }));
            }
            result => result?,
        }
        self.has_no_room = false;
        self.staged.extend(staged);
        self.journal.sync()?;
        let through = self.journal.positions().synced;
        Ok(Some(Event::Synced { through }))
    }

    fn promise(&mut self, epoch: Epoch) -> Result<Event, LogDiskError> {
        self.journal.promise(epoch)?;
        Ok(Event::Promised(epoch))
    }

    fn cut(&mut self, after: Seq, committed: Seq) -> Result<Event, LogDiskError> {
        if after < committed.max(self.applied) {
            let committed = committed.max(self.applied);
            return Err(JournalError::from(Refusal::BelowCommit { after, committed }).into());
        }
        self.keep_blobs_behind(after)?;
        self.journal.cut_after(after, committed)?;
        self.forget_blobs_behind(after)?;
        self.has_no_room = false;
        Ok(Event::Cut {
            last: self.journal.positions().last,
            last_tid: self.last_tid(),
        })
    }

    fn put_on_record(
        &mut self,
        position: Position,
        members: Members,
    ) -> Result<Event, LogDiskError> {
        self.record = Record { position, members };
        let of = self.journal.identity().disk;
        self.record
            .save(&*self.disk, &self.directories.journal, of)?;
        Ok(Event::Recorded(position))
    }

    fn apply(&mut self, through: Seq) -> Result<Event, LogDiskError> {
        let mut entries = self.journal.reader().read(self.applied.next(), u64::MAX);
        while self.applied < through {
            let missing = LogDiskError::NoEntry(self.applied.next());
            let entry = entries.next().ok_or(missing)??;
            self.apply_entry(&entry)?;
            let appliers = self.appliers.values();
            if appliers.map(Applier::unsealed_len).sum::<u64>() >= self.options.checkpoint_len {
                self.settle()?;
            }
        }
        Ok(Event::Applied {
            through: self.applied,
        })
    }

    fn apply_entry(&mut self, entry: &Entry) -> Result<(), LogDiskError> {
        let header = entry.header();
        match content(entry)? {
            Content::Transaction(transfer) => self.apply_transaction(header, &transfer)?,
            Content::Change(change) => {
                if matches!(change, Change::Barrier(_)) && header.tid != Tid::ZERO {
                    for storage in self.directories.storages.clone().into_keys() {
                        self.apply_transaction(header, &jump(storage, header.epoch))?;
                    }
                }
                self.settings = self.settings.changed(&change, header.seq);
            }
        }
        self.applied = header.seq;
        Ok(())
    }

    fn apply_transaction(
        &mut self,
        header: &EntryHeader,
        transfer: &Transfer,
    ) -> Result<(), LogDiskError> {
        let (seq, tid) = (header.seq, header.tid);
        let staged = blobs::directory(&self.directories);
        let Some(applier) = self.appliers.get_mut(&transfer.storage) else {
            return Err(LogDiskError::Unknown(transfer.storage.clone()));
        };
        // Of several data files one may have kept more than another in a crash.
        if tid <= applier.last_tid() {
            return Ok(());
        }
        let applied = applier.apply(tid, transfer, &staged)?;
        if self.news.applied.len() >= APPLIED_TOLD_MAX {
            self.news.applied.pop_front();
            self.news.has_gap = true;
        }
        self.news.applied.push_back(Applied {
            seq,
            tid,
            storage: transfer.storage.clone(),
            oids: applied.positions.into_iter().map(|(oid, _)| oid).collect(),
        });
        Ok(())
    }

    /// Brings all that was applied to stable storage in the data files, and lets go of what the
    /// journal need not keep. To be called now and then; nothing is lost without it, but starting
    /// takes longer. Up to which entry.
    ///
    /// # Errors
    ///
    /// The node must not go on.
    pub fn checkpoint(&mut self) -> Result<Seq, LogDiskError> {
        self.check()?;
        let done = self.settle();
        self.latch(done)?;
        Ok(self.settled.point.seq)
    }

    fn settle(&mut self) -> Result<(), LogDiskError> {
        if self.appliers.is_empty() || self.applied == self.settled.point.seq {
            return Ok(());
        }
        for (name, applier) in &mut self.appliers {
            applier.checkpoint()?;
            if let Some(ceiling) = self.settings.ceilings.get(name) {
                applier.note_ceiling(*ceiling)?;
            }
        }
        let point = self.journal.point_at(self.applied)?;
        let settled = Settled {
            point: point.ok_or(LogDiskError::NoEntry(self.applied))?,
            history_from: self.settled.history_from,
            tids: self.tids(),
            packed: self.settled.packed.clone(),
            settings: self.settings.clone(),
        };
        let of = self.journal.identity().disk;
        settled.save(&*self.disk, &self.directories.journal, of)?;
        self.settled = settled;
        self.journal.note_committed(self.applied)?;
        // Only now: opening begins at what the settings are about.
        self.journal.release(self.applied)?;
        self.discard_applied_blobs()
    }

    /// A storage was packed as the entry `seq` had ordered it, or that is not needed. On stable
    /// storage when this returns: then [`Event::Packed`] may be told.
    ///
    /// # Errors
    ///
    /// The node must not go on.
    pub fn note_packed(&mut self, storage: &str, seq: Seq) -> Result<(), LogDiskError> {
        self.check()?;
        let packed = self.settled.packed.entry(storage.to_owned()).or_default();
        *packed = seq.max(*packed);
        let of = self.journal.identity().disk;
        let saved = self
            .settled
            .save(&*self.disk, &self.directories.journal, of);
        self.latch(saved.map_err(LogDiskError::from))
    }

    fn tids(&self) -> BTreeMap<StorageName, Tid> {
        let appliers = self.appliers.iter();
        let tids = appliers.map(|(name, applier)| (name.clone(), applier.last_tid()));
        tids.collect()
    }

    /// The tid of the last transaction in the log, or in front of it.
    fn last_tid(&self) -> Tid {
        let epochs = self.journal.epochs();
        let mut rows = epochs.rows().iter().rev();
        let in_log = rows.find_map(|row| row.tids).map(|(_, last)| last);
        let settled = self.settled.tids.values().copied().max();
        in_log.max(settled).unwrap_or_default()
    }

    /// Ends in good order, so that the next start has nothing to find out.
    ///
    /// # Errors
    ///
    /// The disk has failed; all that was told of is there.
    pub fn close(mut self) -> Result<(), LogDiskError> {
        self.checkpoint()?;
        for applier in self.appliers.into_values() {
            applier.close()?;
        }
        Ok(self.journal.close()?)
    }

    /// Entries of the journal, from `from` to `to`, as far as they are there: those whose bodies
    /// have `len_max` bytes together, but one at least. `None` if the first is not there any more.
    ///
    /// # Errors
    ///
    /// The journal cannot be read, or is damaged there.
    pub fn entries(
        &self,
        from: Seq,
        to: Seq,
        len_max: u64,
    ) -> Result<Option<Vec<Entry>>, LogDiskError> {
        let entries = self.journal.reader().read(from, len_max);
        let wanted = entries.take_while(|entry| match entry {
            Ok(entry) => entry.header().seq <= to,
            Err(_) => true,
        });
        match wanted.take(FETCHED_ENTRIES_MAX).collect() {
            Ok(entries) => Ok(Some(entries)),
            Err(JournalError::Refused(Refusal::Released { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What was applied since this was asked last.
    pub fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// Whose journal it is.
    pub const fn identity(&self) -> &Identity {
        self.journal.identity()
    }

    /// Where the journal is.
    pub fn positions(&self) -> Positions {
        self.journal.positions()
    }

    /// All up to this entry is in the data files.
    pub const fn applied(&self) -> Seq {
        self.applied
    }

    /// The settings as of [`Self::applied`].
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The tid of the last transaction that a storage has; `None` if there is no such storage.
    pub fn last_tid_of(&self, storage: &str) -> Option<Tid> {
        self.appliers.get(storage).map(Applier::last_tid)
    }

    /// The revision of an object that was current just before `before`; `None` if there is no such
    /// object or storage.
    ///
    /// # Errors
    ///
    /// The data file is damaged or cannot be read there.
    pub fn load(
        &self,
        storage: &str,
        oid: Oid,
        before: Tid,
    ) -> Result<Option<Loaded>, LogDiskError> {
        let applier = self.appliers.get(storage);
        Ok(match applier {
            Some(applier) => applier.load(oid, before)?,
            None => None,
        })
    }

    /// A data file, and the end of what was applied to it.
    pub fn data_file(&self, storage: &str) -> Option<(Arc<dyn File>, u64)> {
        self.appliers.get(storage).map(Applier::data_file)
    }
}

/// What an entry is about.
enum Content {
    Transaction(Transfer),
    Change(Change),
}

fn content(entry: &Entry) -> Result<Content, LogDiskError> {
    let EntryHeader { seq, kind, .. } = *entry.header();
    let body = entry.body();
    match Kind::from_number(kind) {
        None => Err(LogDiskError::Kind { seq, kind }),
        Some(Kind::Transaction) => match Transfer::decode(body) {
            Ok(transfer) => Ok(Content::Transaction(transfer)),
            Err(error) => Err(LogDiskError::Transaction { seq, error }),
        },
        Some(kind) => match Change::decode(kind, body) {
            Ok(change) => Ok(Content::Change(change)),
            Err(error) => Err(LogDiskError::Change { seq, error }),
        },
    }
}

/// The empty transaction of a barrier entry with a tid, the same on all nodes.
fn jump(storage: StorageName, epoch: Epoch) -> Transfer {
    let description = format!("standby: epoch {epoch} begins later, as transactions may be lost");
    Transfer {
        storage,
        status: b' ',
        user: bytes::Bytes::new(),
        description: description.into(),
        extension: bytes::Bytes::new(),
        records: Vec::new(),
        blobs: Vec::new(),
    }
}

/// Where a place is, without what is before it.
const fn position(point: &Point) -> Position {
    Position {
        epoch: point.epoch,
        seq: point.seq,
    }
}

/// Makes a directory durable, with those above it that were not there.
fn create_directory(disk: &dyn Disk, path: &Path) -> Result<(), LogDiskError> {
    let created = disk.create_directories(path);
    let created = created.map_err(LogDiskError::io("create", path))?;
    // Also if it was there: a process that was killed may have made it.
    for path in created.iter().map(PathBuf::as_path).chain([path]) {
        disk.sync_directory_of(path)
            .map_err(LogDiskError::io("sync the directory of", path))?;
    }
    Ok(())
}
