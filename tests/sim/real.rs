//! The disk of a node as the server uses it: journal, data file, settings.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use standby::log_disk::{
    Directories, DiskAction, Found, LogDisk, LogDiskError, Options, Snapshot, StoragePaths,
    copy_beside,
};
use standby::storage::disk::Disk;
use standby::storage::iterate::Transactions;
use standby::storage::journal::Identity;

use crate::disk::SimDisk;
use crate::entry::{Entry, Point};
use crate::ids::{Digest, Epoch, Seq, Tid};
use crate::replica::event::{Event, LogStart, Start};
use crate::replica::settings::Settings;
use crate::store::{JOURNAL, Job, Sizes, Written, blobs_of};

/// Where the data file is.
const DATA: &str = "data/Data.fs";

/// Where its blobs are.
const BLOBS: &str = "data/blobs";

/// A node's disk in use.
pub(crate) struct RealStore {
    files: Arc<dyn Disk>,
    disk: LogDisk,
    taken: Seq,
}

fn directories(has_data: bool) -> Directories {
    let paths = StoragePaths {
        data: PathBuf::from(DATA),
        blobs: Some(PathBuf::from(BLOBS)),
    };
    Directories {
        journal: PathBuf::from(JOURNAL),
        storages: has_data
            .then(|| ("1".to_owned(), paths))
            .into_iter()
            .collect(),
    }
}

fn options(sizes: Sizes) -> Options {
    let Sizes {
        segment_len,
        window_len,
    } = sizes;
    Options {
        segment_len,
        window_len,
        checkpoint_len: 32 * 1024,
    }
}

fn text(error: LogDiskError) -> String {
    error.to_string()
}

fn make_directory(disk: &SimDisk) -> Result<(), String> {
    let path = Path::new(DATA);
    let made = disk.create_directories(Path::new("data"));
    made.map_err(|error| error.to_string())?;
    disk.sync_directory_of(Path::new("data"))
        .map_err(|error| error.to_string())?;
    disk.sync_directory_of(path)
        .map_err(|error| error.to_string())
}

impl RealStore {
    pub(crate) fn found(
        disk: &SimDisk,
        identity: Identity,
        settings: Settings,
        has_data: bool,
        sizes: Sizes,
    ) -> Result<(), String> {
        make_directory(disk)?;
        let found = Found { identity, settings };
        let disk = Arc::new(disk.clone());
        LogDisk::found(disk, &directories(has_data), &options(sizes), &found).map_err(text)
    }

    pub(crate) fn seed(
        disk: &SimDisk,
        identity: Identity,
        snapshot: &Snapshot,
        sizes: Sizes,
    ) -> Result<(), String> {
        make_directory(disk)?;
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let directories = directories(true);
        let beside = copy_beside(&disk, &directories, snapshot, &mut |_, _| true).map_err(text)?;
        LogDisk::seed(disk, &directories, &options(sizes), &identity, beside).map_err(text)
    }

    pub(crate) fn open(
        disk: &SimDisk,
        has_data: bool,
        sizes: Sizes,
    ) -> Result<(Self, Start), String> {
        let files: Arc<dyn Disk> = Arc::new(disk.clone());
        let opened = LogDisk::open(files.clone(), &directories(has_data), &options(sizes));
        let (disk, start) = opened.map_err(text)?;
        let taken = disk.applied();
        Ok((Self { files, disk, taken }, start))
    }

    pub(crate) fn run(&mut self, job: Job) -> Result<Option<Event>, String> {
        let action = match job {
            Job::Append(entries) => {
                self.bring_blobs(&entries)?;
                DiskAction::Append(entries)
            }
            Job::Promise(epoch) => DiskAction::Promise(epoch),
            Job::Cut { after, committed } => DiskAction::Cut { after, committed },
            Job::Apply { through } => DiskAction::Apply { through },
            Job::Record(position, members) => DiskAction::Record(position, members),
            Job::Adopt { id, copy } => {
                let Some(snapshot) = copy.real() else {
                    return Err("no copy".to_owned());
                };
                return match self.adopt(snapshot) {
                    Ok(log) => {
                        self.taken = self.disk.applied();
                        Ok(Some(Event::Copied {
                            id,
                            log: Box::new(log),
                        }))
                    }
                    Err(error) if error.is_refusal() => Ok(Some(Event::FetchFailed { id })),
                    Err(error) => Err(text(error)),
                };
            }
        };
        self.disk.run(action).map_err(text)
    }

    fn adopt(&mut self, snapshot: &Snapshot) -> Result<LogStart, LogDiskError> {
        let directories = directories(true);
        let beside = copy_beside(&self.files, &directories, snapshot, &mut |_, _| true)?;
        self.disk.adopt(beside)
    }

    /// What entries name has to be there before they are.
    fn bring_blobs(&self, entries: &[Entry]) -> Result<(), String> {
        let missing = self.disk.missing_blobs(entries).map_err(text)?;
        for (name, content) in entries.iter().filter_map(blobs_of) {
            if missing.iter().any(|it| it.name == name) {
                self.disk.put_blob(name, &[content]).map_err(text)?;
            }
        }
        Ok(())
    }

    pub(crate) const fn is_held(&self) -> bool {
        self.disk.hold().is_some()
    }

    /// Blobs that were found to be damaged are there again.
    pub(crate) fn mend(&self) -> Result<Vec<Digest>, String> {
        let lost = self.disk.lost_blobs().map_err(text)?;
        for blob in &lost {
            let entries = self.entries(blob.seq, blob.seq, 1).unwrap_or_default();
            for (name, content) in entries.iter().filter_map(blobs_of) {
                self.disk.put_blob(name, &[content]).map_err(text)?;
            }
        }
        Ok(lost.into_iter().map(|blob| blob.name.digest).collect())
    }

    /// I14: the blobs of all that is on this disk are there, as a whole, but for those that have
    /// rotted before they were applied.
    pub(crate) fn check_blobs(
        &self,
        disk: &SimDisk,
        rotten: &BTreeSet<Digest>,
    ) -> Result<u64, String> {
        let (first, last) = self.ends();
        let entries = self.entries(first, last.seq, u64::MAX).unwrap_or_default();
        let applied = self.disk.applied();
        let mut count = 0;
        for (entry, (name, content)) in entries
            .iter()
            .filter_map(|entry| Some((entry, blobs_of(entry)?)))
        {
            count += 1;
            if entry.header().seq > applied {
                let missing = self.disk.missing_blobs(std::slice::from_ref(entry));
                let mut missing = missing.map_err(text)?;
                missing.retain(|blob| !rotten.contains(&blob.name.digest));
                if !missing.is_empty() {
                    return Err(format!(
                        "I14: the blob of {} is not here",
                        entry.header().seq
                    ));
                }
                continue;
            }
            let oid = name.oid.to_bytes().map(|byte| format!("0x{byte:02x}"));
            let file = format!("0x{}.blob", entry.header().tid);
            let path = Path::new(BLOBS).join(oid.join("/")).join(file);
            let found = disk.read(&path);
            if found.map_err(|error| format!("I14: {}: {error}", path.display()))? != content {
                return Err(format!("I14: {} is another one", path.display()));
            }
        }
        Ok(count)
    }

    pub(crate) fn note_packed(&mut self, storage: &str, at: Seq) -> Result<(), String> {
        self.disk.note_packed(storage, at).map_err(text)
    }

    pub(crate) fn checkpoint(&mut self) -> Result<(), String> {
        self.disk.checkpoint().map(|_| ()).map_err(text)
    }

    pub(crate) fn entries(&self, from: Seq, to: Seq, len_max: u64) -> Option<Vec<Entry>> {
        self.disk.entries(from, to, len_max).ok().flatten()
    }

    pub(crate) fn take_applied(&mut self) -> Vec<Entry> {
        let applied = self.disk.applied();
        let taken = std::mem::replace(&mut self.taken, applied);
        let _ = self.disk.take_news();
        if taken >= applied {
            return Vec::new();
        }
        self.entries(taken.next(), applied, u64::MAX)
            .unwrap_or_default()
    }

    pub(crate) fn applied(&self) -> Seq {
        self.disk.applied()
    }

    pub(crate) fn ends(&self) -> (Seq, Point) {
        let positions = self.disk.positions();
        (positions.first, positions.last)
    }

    /// In front of the first entry that can be read; of its epoch nothing is known.
    pub(crate) fn base(&self) -> Point {
        let (first, last) = self.ends();
        if first > last.seq {
            return last;
        }
        let entries = self.entries(first, first, 0).unwrap_or_default();
        entries.first().map_or(last, |entry| Point {
            epoch: Epoch::ZERO,
            seq: Seq(first.0 - 1),
            digest: entry.header().previous,
        })
    }

    pub(crate) fn snapshot(&mut self) -> Result<Snapshot, String> {
        self.disk.snapshot().map_err(text)
    }

    /// The transactions in the data file, as any tool reads it.
    pub(crate) fn written(&self) -> Result<Vec<Written>, String> {
        let Some((file, tail)) = self.disk.data_file("1") else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        let mut transactions = Transactions::from_pos(file, 4, tail);
        while let Some(transaction) = transactions.next() {
            let transaction = transaction.map_err(|error| error.to_string())?;
            let mut data: Vec<Bytes> = Vec::new();
            let mut records = transactions.records(&transaction);
            while let Some(record) = records.next() {
                let record = record.map_err(|error| error.to_string())?;
                data.extend(records.data(&record).map_err(|error| error.to_string())?);
            }
            let tid: Tid = transaction.header.tid;
            all.push(Written { tid, data });
        }
        Ok(all)
    }
}
