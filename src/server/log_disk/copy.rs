//! A copy of the database: taken from one node, and put in the place of what another one has.
//!
//! Data files never change in front of their end, but for statuses, so a copy of them is made while
//! the node goes on. It is made beside the old data; when it is complete and on stable storage,
//! `next` is written, and from then on it counts. What the node has promised stays.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::{Next, Settled};
use super::found::{COPY, begin_behind, common, complete, settle, switch_data};
use super::start::{Scan, open_data};
use super::{Directories, LogDisk, LogDiskError, Options, create_directory};
use crate::entry::Point;
use crate::ids::{HistoryId, Tid};
use crate::replica::event::LogStart;
use crate::replica::settings::StorageName;
use crate::storage::blob::layout::BlobDirectory;
use crate::storage::disk::{Disk, File, OpenMode, with_suffix};
use crate::storage::journal::state::State as _;
use crate::storage::journal::{EpochRow, Identity};

/// Bytes that are copied at once.
const PIECE_LEN: usize = 1 << 20;

/// The database of a node as of one of its checkpoints.
#[derive(Debug)]
pub struct Snapshot {
    disk: Arc<dyn Disk>,
    history: HistoryId,
    epochs: Vec<EpochRow>,
    settled: Settled,
    storages: BTreeMap<StorageName, Data>,
}

#[derive(Debug)]
struct Data {
    file: Arc<dyn File>,
    len: u64,
    blobs: Option<BlobDirectory>,
}

impl Snapshot {
    /// The lineage of the data.
    pub const fn history(&self) -> HistoryId {
        self.history
    }

    /// The last entry that is in it.
    pub const fn point(&self) -> Point {
        self.settled.point
    }

    /// Bytes of its data files.
    pub fn len(&self) -> u64 {
        self.storages.values().map(|data| data.len).sum()
    }

    /// Whether there are no data files: it is that of an arbiter.
    pub fn is_empty(&self) -> bool {
        self.storages.is_empty()
    }
}

impl LogDisk {
    /// The database as it is now. It can be copied while this node goes on.
    ///
    /// # Errors
    ///
    /// The node must not go on.
    pub fn snapshot(&mut self) -> Result<Snapshot, LogDiskError> {
        // So that no status in it changes any more.
        self.checkpoint()?;
        let point = self.settled.point;
        let last_tid = self.settled.tids.values().copied().max();
        let mut epochs = self.journal.epochs().rows().to_vec();
        epochs.retain(|row| row.first <= point.seq);
        if let Some(row) = epochs.last_mut() {
            // It goes on behind the copy.
            let last_tid = last_tid.unwrap_or_default();
            let within = |(first, last): (Tid, Tid)| {
                (first <= last_tid).then(|| (first, last.min(last_tid)))
            };
            row.tids = row.tids.and_then(within);
        }
        let storages = self.appliers.iter().map(|(name, applier)| {
            let (file, len) = applier.data_file();
            let blobs = applier.blobs().cloned();
            (name.clone(), Data { file, len, blobs })
        });
        Ok(Snapshot {
            disk: self.disk.clone(),
            history: self.identity().history,
            epochs,
            settled: self.settled.clone(),
            storages: storages.collect(),
        })
    }

    /// Puts a copy in the place of the data; the journal begins behind it. Where the log is then.
    /// Takes as long as copying all of it.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::Useless`] and [`LogDiskError::Uncopied`]: all is as it was. After any other
    /// the node must not go on; opening finds the old state or the new one.
    pub fn adopt(&mut self, snapshot: &Snapshot) -> Result<LogStart, LogDiskError> {
        self.check()?;
        self.check_use(snapshot)?;
        copy_all(&*self.disk, &self.directories, snapshot)
            .map_err(|error| LogDiskError::Uncopied(Box::new(error)))?;
        let replaced = self.replace(snapshot);
        self.latch(replaced)
    }

    /// Whether a copy has more than there is here, and all that is committed here.
    fn check_use(&self, snapshot: &Snapshot) -> Result<(), LogDiskError> {
        let useless = |why| Err(LogDiskError::Useless(why));
        if snapshot.history != self.identity().history {
            return useless("it is of another history");
        }
        if !snapshot
            .storages
            .keys()
            .eq(self.directories.storages.keys())
        {
            return useless("it has other storages");
        }
        let point = snapshot.point();
        let positions = self.journal.positions();
        if point.seq <= self.applied {
            return useless("all of it has been applied");
        }
        if point.seq <= positions.last.seq
            && self
                .journal
                .point_at(point.seq)?
                .is_none_or(|ours| ours == point)
        {
            return useless("the log goes further");
        }
        let committed = positions.committed.max(self.applied);
        if common(&self.journal, &snapshot.epochs, point.seq) < committed {
            return useless("it has not what is committed here");
        }
        Ok(())
    }

    fn replace(&mut self, snapshot: &Snapshot) -> Result<LogStart, LogDiskError> {
        let next = Next {
            identity: *self.identity(),
            promised: self.journal.positions().promised,
            epochs: snapshot.epochs.clone(),
            settled: snapshot.settled.clone(),
        };
        let after = common(&self.journal, &next.epochs, next.settled.point.seq);
        self.keep_blobs_behind(after)?;
        next.save(&*self.disk, &self.directories.journal, next.identity.disk)?;
        // From here on opening does the rest.
        self.appliers.clear();
        switch_data(&*self.disk, &self.directories)?;
        begin_behind(&mut self.journal, &next)?;
        self.appliers = open_data(&self.disk, &self.directories)?;
        self.settled = settle(&*self.disk, &self.directories, next, self.tids())?;
        self.applied = self.settled.point.seq;
        self.settings = self.settled.settings.clone();
        self.staged.clear();
        self.clean_blobs()?;
        self.news.applied.clear();
        self.news.has_gap = true;
        self.has_no_room = false;
        self.log_start(Scan::empty())
    }

    /// Makes a node out of a copy: a new one, or one whose disk was lost. What stands in the place of
    /// its data files is replaced.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::Exists`]: there is a journal already. Otherwise the disk has failed; as long
    /// as there is no journal then, it has to be done again.
    pub fn seed(
        disk: Arc<dyn Disk>,
        directories: &Directories,
        options: &Options,
        identity: &Identity,
        snapshot: &Snapshot,
    ) -> Result<(), LogDiskError> {
        let path = &directories.journal;
        create_directory(&*disk, path)?;
        complete(&disk, directories, options)?;
        if let Some((old, _)) = Identity::load(&*disk, path, None)? {
            let (path, history) = (path.clone(), old.history);
            return Err(LogDiskError::Exists { path, history });
        }
        if snapshot.history != identity.history
            || !snapshot.storages.keys().eq(directories.storages.keys())
        {
            return Err(LogDiskError::Useless(
                "it is of another history, or has other storages",
            ));
        }
        copy_all(&*disk, directories, snapshot)?;
        let next = Next {
            identity: *identity,
            promised: snapshot.point().epoch,
            epochs: snapshot.epochs.clone(),
            settled: snapshot.settled.clone(),
        };
        next.save(&*disk, path, identity.disk)?;
        complete(&disk, directories, options)
    }
}

/// Copies all of it: data files beside those that there are, blobs to their places. All of it is on
/// stable storage when this returns.
fn copy_all(
    disk: &dyn Disk,
    directories: &Directories,
    snapshot: &Snapshot,
) -> Result<(), LogDiskError> {
    for (name, data) in &snapshot.storages {
        let Some(paths) = directories.storages.get(name) else {
            return Err(LogDiskError::Unknown(name.clone()));
        };
        // Blobs first: what has been copied is not copied again when the rest fails.
        match (&data.blobs, &paths.blobs) {
            (Some(from), Some(to)) => {
                let last = snapshot.settled.tids.get(name).copied();
                let to = BlobDirectory::open(disk, to, true)?;
                copy_blobs(&*snapshot.disk, from, disk, &to, last.unwrap_or_default())?;
            }
            (Some(_), None) => return Err(LogDiskError::Useless("blobs are not kept here")),
            (None, _) => {}
        }
        if let Some(directory) = paths.data.parent().filter(|it| *it != Path::new("")) {
            create_directory(disk, directory)?;
        }
        let path = with_suffix(&paths.data, COPY);
        disk.discard(&path)
            .map_err(LogDiskError::io("remove", &path))?;
        copy_file(&*data.file, data.len, disk, &path)?;
        disk.sync_directory_of(&path)
            .map_err(LogDiskError::io("sync the directory of", &path))?;
    }
    Ok(())
}

fn copy_file(from: &dyn File, len: u64, disk: &dyn Disk, to: &Path) -> Result<(), LogDiskError> {
    let io = |action| LogDiskError::io(action, to);
    let file = disk.open(to, OpenMode::CreateNew).map_err(io("create"))?;
    let mut piece = vec![0; PIECE_LEN];
    let mut pos = 0;
    while pos < len {
        let want = usize::try_from(len - pos).map_or(PIECE_LEN, |left| left.min(PIECE_LEN));
        let piece = &mut piece[..want];
        if from.read_at(piece, pos).map_err(io("read for"))? < want {
            let path = to.to_owned();
            return Err(LogDiskError::Short { path });
        }
        file.write_at(&mut [IoSlice::new(piece)], pos)
            .map_err(io("write"))?;
        pos += want as u64;
    }
    file.sync().map_err(io("sync"))
}

/// Copies the blobs that are not there yet, up to the transaction `last`. A blob never changes.
fn copy_blobs(
    from_disk: &dyn Disk,
    from: &BlobDirectory,
    disk: &dyn Disk,
    to: &BlobDirectory,
    last: Tid,
) -> Result<(), LogDiskError> {
    let new = to.temporary().join("standby-copy.tmp");
    for found in from.walk(from_disk) {
        let (oid, tid, path) = found.map_err(LogDiskError::io("list", from.base()))?;
        if tid > last {
            continue;
        }
        let source = match from_disk.open(&path, OpenMode::ReadRegular) {
            // It was packed away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            source => source.map_err(LogDiskError::io("open", &path))?,
        };
        let len = source.len().map_err(LogDiskError::io("read", &path))?;
        let place = to.file(oid, tid);
        let there = disk.open(&place, OpenMode::ReadRegular);
        if there.is_ok_and(|it| it.len().is_ok_and(|there| there == len)) {
            sync_names(disk, to, &place)?;
            continue;
        }
        disk.discard(&new)
            .map_err(LogDiskError::io("remove", &new))?;
        copy_file(&*source, len, disk, &new)?;
        disk.set_read_only(&new, to.base())
            .map_err(LogDiskError::io("protect", &new))?;
        let directory = to.directory_of(oid);
        disk.create_directories(&directory)
            .map_err(LogDiskError::io("create", &directory))?;
        disk.rename(&new, &place)
            .map_err(LogDiskError::io("rename", &place))?;
        sync_names(disk, to, &place)?;
    }
    Ok(())
}

/// Makes the name of a blob durable, and those of the directories that it is in.
fn sync_names(disk: &dyn Disk, to: &BlobDirectory, place: &Path) -> Result<(), LogDiskError> {
    let names: Vec<PathBuf> = place
        .ancestors()
        .take_while(|path| *path != to.base())
        .map(Path::to_owned)
        .collect();
    for path in names {
        disk.sync_directory_of(&path)
            .map_err(LogDiskError::io("sync the directory of", &path))?;
    }
    Ok(())
}
