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
//! | `copy` | a copy of the database, where it is taken from |
//! | `manifest` | what it consists of |
//! | `backup` | a copy of it for keeping |
//! | `compare` | whether two nodes have the same |
//! | `beside` | where it comes to, and takes the place of what there is |
//! | `anew` | the same of a node whose log goes further: only its data are replaced |
//! | `blobs` | files of blobs, from before their entry is acknowledged until it is applied |
//! | `pack` | packs that the log orders |
//! | `news` | what was applied, for those who read beside this |
//! | `files` | the files beside the journal |

mod anew;
#[cfg(test)]
mod anew_tests;
mod backup;
mod beside;
#[cfg(test)]
mod blob_tests;
mod blobs;
mod compare;
mod copy;
#[cfg(test)]
mod copy_tests;
mod error;
mod files;
mod found;
#[cfg(test)]
mod found_tests;
mod manifest;
mod news;
mod pack;
#[cfg(test)]
mod room_tests;
mod start;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::entry::{Entry, EntryHeader, Point};
use crate::ids::{Digest, Epoch, HistoryId, Oid, Seq, Tid};
use crate::limits::{APPLIED_LEN_DEFAULT, FETCHED_ENTRIES_MAX};
use crate::replica::event::{Action, Event};
use crate::replica::members::Members;
use crate::replica::message::Position;
use crate::replica::settings::{Change, Kind, Settings, StorageName};
use crate::storage::apply::Applier;
use crate::storage::disk::{Disk, File};
use crate::storage::error::StorageError;
use crate::storage::journal::state::State as _;
use crate::storage::journal::{self, Identity, Journal, JournalError, Positions, Refusal};
use crate::storage::read::Found as Loaded;
use crate::storage::transfer::Transfer;

pub use anew::{Replacement, copy_anew};
pub use backup::{BackedUp, BackupError};
pub use beside::{Beside, CopyProgress, copy_beside, discard_copy};
pub use blobs::{Blobs, IncomingBlob, NamedBlob};
pub use compare::{BlobDigest, Comparison, Difference, DigestSource, compare};
pub use copy::{CopySource, Snapshot};
pub use error::LogDiskError;
pub use found::Found;
pub use manifest::Manifest;
pub use news::{Applied, News};
pub use pack::{PackBegun, PackOrder, PackTurn, Packing};

use files::{Ordered, Record, Settled};

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

/// Why less was applied than was to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// There is no room on the disk of a data file: the system's words.
    NoSpace(String),
    /// The file of a blob was damaged, and is to be fetched from a peer.
    Blob(NamedBlob),
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSpace(error) => f.write_str(error),
            Self::Blob(NamedBlob { storage, name, .. }) => write!(
                f,
                "the file of the blob of {} in storage \"{storage}\" was damaged ({})",
                name.oid, name.digest
            ),
        }
    }
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
    /// Of each storage: the tid of the last transaction up to `applied`, which may be in front of
    /// the end of the data file as long as another one lags behind it.
    ends: BTreeMap<StorageName, Tid>,
    /// Of each storage: the last pack that was ordered.
    ordered: BTreeMap<StorageName, Ordered>,
    /// They have changed, and nobody was told.
    has_new_orders: bool,
    /// Of an arbiter.
    record: Record,
    /// Blobs that wait to be applied, with the entries that name them.
    staged: BTreeSet<(Digest, Seq)>,
    blobs: Blobs,
    /// Why less was applied than was to be.
    hold: Option<Hold>,
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
        let staged = match self.blobs_that_are_here(entries) {
            // They were, when this was asked for, and a copy was adopted meanwhile.
            Err(error @ LogDiskError::NoBlob { .. }) => {
                log::warn!("an entry is not appended: {error}");
                return self.no_room(last).map(Some);
            }
            staged => staged?,
        };
        match self.journal.append(entries) {
            Err(JournalError::NoSpace { .. }) => return self.no_room(last).map(Some),
            result => result?,
        }
        self.has_no_room = false;
        self.note_appended(staged);
        self.journal.sync()?;
        let through = self.journal.positions().synced;
        Ok(Some(Event::Synced { through }))
    }

    /// Entries cannot be appended, nor can those that follow them.
    fn no_room(&mut self, last: Point) -> Result<Event, LogDiskError> {
        self.journal.sync()?;
        self.has_no_room = true;
        let last_tid = self.last_tid();
        Ok(Event::NoRoom { last, last_tid })
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
        let record = Record { position, members };
        let of = self.journal.identity().disk;
        let saved = record.save(&*self.disk, &self.directories.journal, of);
        // The old file is there, and the same can be tried again.
        saved.map_err(JournalError::full)?;
        self.record = record;
        Ok(Event::Recorded(position))
    }

    fn apply(&mut self, through: Seq) -> Result<Event, LogDiskError> {
        self.hold = None;
        let mut entries = self.journal.reader().read(self.applied.next(), u64::MAX);
        while self.applied < through && self.hold.is_none() {
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

    /// Why less was applied than was to be: it has to be asked for again, when that is over.
    pub const fn hold(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// Whether the disk of the data files is full.
    pub const fn is_full(&self) -> bool {
        matches!(self.hold, Some(Hold::NoSpace(_)))
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
                if self.hold.is_none() {
                    self.settings = self.settings.changed(&change, header.seq);
                    if let Change::Pack { storage, .. } = &change {
                        self.note_order(storage, header.seq);
                    }
                }
            }
        }
        if self.hold.is_none() {
            self.applied = header.seq;
        }
        Ok(())
    }

    /// Applies it, unless there is no room, or a blob is not here: then it is held.
    fn apply_transaction(
        &mut self,
        header: &EntryHeader,
        transfer: &Transfer,
    ) -> Result<(), LogDiskError> {
        let (seq, tid) = (header.seq, header.tid);
        let staged = blobs::directory(&self.directories);
        let lost = self.lost_blob_of(transfer)?;
        let Some(applier) = self.appliers.get_mut(&transfer.storage) else {
            return Err(LogDiskError::Unknown(transfer.storage.clone()));
        };
        // Of several data files one may have kept more than another in a crash.
        if tid <= applier.last_tid() {
            self.ends.insert(transfer.storage.clone(), tid);
            return Ok(());
        }
        let storage = transfer.storage.clone();
        if let Some(name) = lost {
            self.hold = Some(Hold::Blob(NamedBlob {
                seq,
                tid,
                storage,
                name,
            }));
            return Ok(());
        }
        let applied = match applier.apply(tid, transfer, &staged) {
            Err(full @ StorageError::NoSpace { .. }) => {
                self.hold = Some(Hold::NoSpace(full.to_string()));
                return Ok(());
            }
            applied => applied?,
        };
        self.ends.insert(storage.clone(), tid);
        self.news.add(Applied {
            seq,
            epoch: header.epoch,
            storage,
            transaction: applied,
        });
        Ok(())
    }

    /// Brings all that was applied to stable storage in the data files, and lets go of what the
    /// journal need not keep. To be called now and then; nothing is lost without it, but starting
    /// takes longer. Up to which entry: an earlier one if there is no room to note it.
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
        for applier in self.appliers.values_mut() {
            applier.checkpoint()?;
        }
        let point = self.journal.point_at(self.applied)?;
        let settled = Settled {
            point: point.ok_or(LogDiskError::NoEntry(self.applied))?,
            history_from: self.settled.history_from,
            tids: self.tids(),
            packed: self.settled.packed.clone(),
            ordered: self.ordered.clone(),
            past: self.settled.past.clone(),
            settings: self.settings.clone(),
        };
        match self.save_settled(&settled) {
            // The old file stays: opening has more to read, and the journal is longer. It is tried
            // again at the next checkpoint.
            Err(error) if error.is_disk_full() => {
                log::warn!("no checkpoint: {error}");
                return Ok(());
            }
            saved => saved?,
        }
        self.settled = settled;
        // Only now: opening begins at what the settings are about.
        match self.release_applied() {
            // The same is tried again at the next checkpoint.
            Err(full @ JournalError::NoSpace { .. }) => log::warn!("nothing is released: {full}"),
            released => released?,
        }
        self.discard_applied_blobs()
    }

    fn release_applied(&mut self) -> Result<(), JournalError> {
        self.journal.note_committed(self.applied)?;
        self.journal.release(self.applied)?;
        Ok(())
    }

    fn save_settled(&mut self, settled: &Settled) -> Result<(), LogDiskError> {
        for (name, applier) in &mut self.appliers {
            if let Some(ceiling) = settled.settings.ceilings.get(name) {
                applier.note_ceiling(*ceiling)?;
            }
        }
        let of = self.journal.identity().disk;
        Ok(settled.save(&*self.disk, &self.directories.journal, of)?)
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

    /// Whose journal it is.
    pub const fn identity(&self) -> &Identity {
        self.journal.identity()
    }

    /// The histories that this one is the future of, as losses were accepted, the oldest first: by
    /// what was done here, or at the node that this one was copied from.
    pub fn past(&self) -> &[HistoryId] {
        &self.settled.past
    }

    /// For other threads: how much of the journal there is, and what it has.
    pub fn reader(&self) -> journal::Reader {
        self.journal.reader()
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
pub(crate) fn create_directory(disk: &dyn Disk, path: &Path) -> Result<(), LogDiskError> {
    let created = disk.create_directories(path);
    let created = created.map_err(LogDiskError::io("create", path))?;
    // Also if it was there: a process that was killed may have made it.
    for path in created.iter().map(PathBuf::as_path).chain([path]) {
        disk.sync_directory_of(path)
            .map_err(LogDiskError::io("sync the directory of", path))?;
    }
    Ok(())
}
