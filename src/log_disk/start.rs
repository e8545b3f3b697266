//! Opening: what a crash has interrupted is completed, and the data files are found in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::files::{Ordered, Record, Settled};
use super::{
    Blobs, Content, Directories, LogDisk, LogDiskError, News, Options, blobs, content, found,
    position,
};
use crate::entry::Point;
use crate::ids::{Seq, Tid};
use crate::replica::event::{LogStart, Start};
use crate::replica::members::Voter;
use crate::replica::message::Position;
use crate::replica::settings::{Change, Settings, StorageName};
use crate::storage::apply::Applier;
use crate::storage::disk::Disk;
use crate::storage::journal::state::State as _;
use crate::storage::journal::{self, Journal};
use crate::storage::recover::{Access, Progress};

impl LogDisk {
    /// Opens what is there. Where the node is then.
    ///
    /// # Errors
    ///
    /// There is no journal, or something is damaged, or the data files are not those of the log.
    pub fn open(
        disk: Arc<dyn Disk>,
        directories: &Directories,
        options: &Options,
    ) -> Result<(Self, Start), LogDiskError> {
        found::complete(&disk, directories, options)?;
        let (log_disk, start) = Self::open_complete(disk, directories, options)?;
        log_disk.discard_old_copy()?;
        Ok((log_disk, start))
    }

    /// The same, where nothing is to be completed.
    pub(super) fn open_complete(
        disk: Arc<dyn Disk>,
        directories: &Directories,
        options: &Options,
    ) -> Result<(Self, Start), LogDiskError> {
        let journal_options = journal::Options {
            create: None,
            segment_len: options.segment_len,
            window_len: options.window_len,
        };
        let directory = &directories.journal;
        let (journal, recovered) = Journal::open(disk.clone(), directory, journal_options)?;
        let of = recovered.identity.disk;
        let settled = Settled::load_existing(&*disk, directory, of)?;
        let record = Record::load(&*disk, directory, Some(of))?;
        let appliers = open_data(&disk, directories, Access::Applied)?;
        let mut log_disk = Self {
            applied: settled.point.seq,
            settings: settled.settings.clone(),
            ends: BTreeMap::new(),
            ordered: settled.ordered.clone(),
            has_new_orders: false,
            blobs: Blobs::new(disk.clone(), directories, &appliers),
            disk,
            directories: directories.clone(),
            options: *options,
            journal,
            appliers,
            settled,
            record: record.map(|(record, _)| record).unwrap_or_default(),
            staged: BTreeSet::new(),
            hold: None,
            news: News::default(),
            has_no_room: false,
            failed: None,
        };
        let scan = log_disk.find_applied()?;
        log_disk.clean_blobs()?;
        log_disk.check_blobs()?;
        let identity = log_disk.identity();
        let start = Start {
            history: identity.history,
            me: Voter {
                node: identity.node,
                disk: identity.disk,
            },
            promised: recovered.promised,
            log: log_disk.log_start(scan)?,
        };
        Ok((log_disk, start))
    }

    /// Finds out how far the data files have come, from the last checkpoint on.
    pub(super) fn find_applied(&mut self) -> Result<Scan, LogDiskError> {
        let point = self.settled.point;
        if self.journal.point_at(point.seq)? != Some(point) {
            return Err(LogDiskError::OutsideLog(point));
        }
        let mut scan = Scan::new(&self.settled, &self.appliers)?;
        for entry in self.journal.reader().read(point.seq.next(), u64::MAX) {
            let entry = entry?;
            let header = entry.header();
            self.staged.extend(blobs::named_by(&entry)?);
            match content(&entry)? {
                Content::Transaction(transfer) => {
                    let storages = std::iter::once(&transfer.storage);
                    scan.transaction(header.seq, header.tid, storages)?;
                }
                Content::Change(change) => {
                    if matches!(change, Change::Barrier(_)) && header.tid != Tid::ZERO {
                        let storages = self.directories.storages.keys();
                        scan.transaction(header.seq, header.tid, storages)?;
                    }
                    if let Change::Pack { storage, .. } = &change {
                        scan.pack(header.seq, storage);
                    }
                    scan.changes.push((header.seq, change));
                }
            }
        }
        scan.check(&self.appliers)?;
        self.applied = scan.applied(point.seq);
        for (seq, change) in &scan.changes {
            if *seq <= self.applied {
                self.settings = self.settings.changed(change, *seq);
            }
        }
        self.ends.clone_from(&scan.applied_tids);
        for (storage, ordered) in &scan.ordered {
            if ordered.at <= self.applied {
                self.ordered.insert(storage.clone(), *ordered);
            }
        }
        Ok(scan)
    }

    /// Where the log is, all of it on stable storage.
    pub(super) fn log_start(&self, scan: Scan) -> Result<LogStart, LogDiskError> {
        if self.directories.storages.is_empty() {
            return Ok(self.arbiter_start());
        }
        let positions = self.journal.positions();
        let before = Seq(positions.first.0.saturating_sub(1));
        let before = self.journal.point_at(before)?;
        let before = position(&before.ok_or(LogDiskError::NoEntry(positions.first))?);
        let rows = self.journal.epochs();
        let rows = rows.rows();
        let mut ends = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let next = rows.get(at + 1).map(|next| Seq(next.first.0 - 1));
            let end = Position {
                epoch: row.epoch,
                seq: next.unwrap_or(positions.last.seq),
            };
            if end.seq > before.seq {
                ends.push(end);
            }
        }
        let committed = positions.committed.max(self.applied).max(scan.seen);
        Ok(LogStart {
            before,
            last: positions.last,
            last_tid: self.last_tid(),
            ends,
            committed,
            applied: self.applied,
            settled: self.settled.point.seq,
            settings: self.settled.settings.clone(),
            changes: scan.changes,
            history_from: self.settled.history_from,
            packed: self.settled.packed.clone(),
        })
    }

    /// An arbiter has no log. It begins with the entry whose members it has on record.
    fn arbiter_start(&self) -> LogStart {
        let Record { position, members } = &self.record;
        let digest = Point::start(self.identity().history).digest;
        let Position { epoch, seq } = *position;
        LogStart {
            before: *position,
            last: Point { epoch, seq, digest },
            last_tid: Tid::ZERO,
            ends: Vec::new(),
            committed: seq,
            applied: seq,
            settled: seq,
            settings: Settings {
                members: members.clone(),
                ..self.settled.settings.clone()
            },
            changes: Vec::new(),
            history_from: Tid::ZERO,
            packed: BTreeMap::new(),
        }
    }
}

/// Opens the data files.
pub(super) fn open_data(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    access: Access,
) -> Result<BTreeMap<StorageName, Applier>, LogDiskError> {
    let mut appliers = BTreeMap::new();
    for (name, paths) in &directories.storages {
        let (data, blobs) = (&paths.data, paths.blobs.as_deref());
        let mut told = 0;
        let mut progress = |progress: Progress| {
            let percent = progress.done * 100 / progress.total.max(1);
            if percent >= told + 10 {
                told = percent;
                log::info!("{}: {percent} % read", data.display());
            }
        };
        let applier = Applier::open(disk.clone(), data, blobs, access, &mut progress)?;
        appliers.insert(name.clone(), applier);
    }
    Ok(appliers)
}

/// The entries behind the last checkpoint, held against the data files.
pub(super) struct Scan {
    /// Of each storage: the last transaction in its data file, and whether it was met.
    ends: BTreeMap<StorageName, (Tid, bool)>,
    /// The last entry of a transaction that is in a data file.
    seen: Seq,
    /// The last one with all before it.
    complete: Seq,
    /// A transaction that is in no data file was met.
    is_missing: bool,
    /// The entries that are no transactions.
    changes: Vec<(Seq, Change)>,
    /// Of each storage: the last transaction up to `complete`.
    applied_tids: BTreeMap<StorageName, Tid>,
    /// The packs that were ordered before a transaction was missing.
    ordered: Vec<(StorageName, Ordered)>,
}

impl Scan {
    /// Of no entries.
    pub(super) const fn empty() -> Self {
        Self {
            ends: BTreeMap::new(),
            seen: Seq::ZERO,
            complete: Seq::ZERO,
            is_missing: false,
            changes: Vec::new(),
            applied_tids: BTreeMap::new(),
            ordered: Vec::new(),
        }
    }

    fn new(
        settled: &Settled,
        appliers: &BTreeMap<StorageName, Applier>,
    ) -> Result<Self, LogDiskError> {
        let mut scan = Self::empty();
        for name in settled.tids.keys() {
            if !appliers.contains_key(name) {
                return Err(LogDiskError::Unknown(name.clone()));
            }
        }
        for (name, applier) in appliers {
            let found = applier.last_tid();
            // One that was configured later, and has been empty so far.
            let expected = settled.tids.get(name).copied().unwrap_or_default();
            if found < expected {
                let path = applier.path().to_owned();
                return Err(LogDiskError::Behind {
                    path,
                    found,
                    expected,
                });
            }
            scan.ends.insert(name.clone(), (found, found == expected));
            scan.applied_tids.insert(name.clone(), expected);
        }
        Ok(scan)
    }

    /// The entry of a transaction that is of these storages.
    fn transaction<'a>(
        &mut self,
        seq: Seq,
        tid: Tid,
        storages: impl Iterator<Item = &'a StorageName>,
    ) -> Result<(), LogDiskError> {
        let mut applied = Vec::new();
        for storage in storages {
            let Some((last, is_met)) = self.ends.get_mut(storage) else {
                return Err(LogDiskError::Unknown(storage.clone()));
            };
            if tid <= *last {
                *is_met |= tid == *last;
                self.seen = seq;
            } else {
                self.is_missing = true;
            }
            applied.push(storage);
        }
        if !self.is_missing {
            self.complete = seq;
            for storage in applied {
                self.applied_tids.insert(storage.clone(), tid);
            }
        }
        Ok(())
    }

    /// An entry that orders a pack.
    fn pack(&mut self, at: Seq, storage: &StorageName) {
        if !self.is_missing {
            let through = self.applied_tids.get(storage).copied().unwrap_or_default();
            self.ordered
                .push((storage.clone(), Ordered { at, through }));
        }
    }

    /// Whether each data file ends where the log was.
    fn check(&self, appliers: &BTreeMap<StorageName, Applier>) -> Result<(), LogDiskError> {
        for (name, applier) in appliers {
            let end = self.ends.get(name);
            if let Some((tid, false)) = end.copied() {
                let path = applier.path().to_owned();
                return Err(LogDiskError::Ahead { path, tid });
            }
        }
        Ok(())
    }

    fn applied(&self, settled: Seq) -> Seq {
        self.complete.max(settled)
    }
}
