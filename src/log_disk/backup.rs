//! A copy of a storage as of a transaction, as files that stock ZODB opens: for keeping.
//!
//! The data file is written beside its name, synced, and only then gets it; an empty file has the
//! name meanwhile, so that nobody takes it for another. Blobs get second names where the file
//! system lets them have some, since nobody changes them, and are copied where not. What is not
//! complete is removed, unless the process dies: then the file of that name is empty.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::copy::{CopySource, Snapshot};
use crate::ids::{Oid, Tid};
use crate::limits::COPY_BLOBS_LISTED;
use crate::storage::blob::layout::BlobDirectory;
use crate::storage::disk::{Disk, File, OpenMode, with_suffix};
use crate::storage::error::{ReadError, StorageError};
use crate::storage::prefix::{self, Prefix};

/// What a backup has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackedUp {
    /// Its last transaction.
    pub last: Tid,
    /// Bytes of the data file.
    pub len: u64,
    /// Files of blobs
    pub blobs: u64,
}

/// Why there is no backup.
#[derive(Debug)]
pub enum BackupError {
    /// There is such a file already.
    Exists(PathBuf),
    /// A later transaction was packed: what was deleted or changed before it is not there any more.
    Packed(Tid),
    /// There are no blobs to back up.
    NoBlobs,
    /// The files of blobs were packed away meanwhile.
    Replaced,
    /// There is less room than the file needs.
    NoRoom {
        /// Bytes that are needed
        needed: u64,
        /// Bytes that are free
        free: u64,
    },
    /// The data file cannot be read.
    Read(ReadError),
    /// The system refused.
    Io {
        /// What was tried
        action: &'static str,
        /// With what
        path: PathBuf,
        /// Its answer
        source: io::Error,
    },
    /// The directory of blobs cannot be made.
    Storage(StorageError),
}

impl BackupError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists(path) => write!(f, "{} is there already", path.display()),
            Self::Packed(tid) => write!(
                f,
                "the database was packed as of a later time than {tid}: how it was then is lost"
            ),
            Self::NoBlobs => f.write_str("this storage keeps no blobs"),
            Self::Replaced => f.write_str("it was packed meanwhile, with blobs; do it again"),
            Self::NoRoom { needed, free } => {
                write!(f, "{needed} bytes are needed, and {free} are free")
            }
            Self::Read(error) => write!(f, "the data file: {error}"),
            Self::Io {
                action,
                path,
                source,
            } => write!(f, "cannot {action} {}: {source}", path.display()),
            Self::Storage(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for BackupError {}

/// What the name of a file has behind it that is being written.
const PART: &str = ".part";

impl Snapshot {
    /// Writes a storage as of `tid` to the file `to`, and its blobs to the directory `blobs`;
    /// neither may be there. `pace` is told how many more bytes were written, waits if that is too
    /// fast, and says whether to go on. `None` if it did not; then nothing is left.
    ///
    /// # Errors
    ///
    /// See [`BackupError`]; nothing is left.
    pub fn back_up(
        &self,
        storage: u32,
        tid: Tid,
        to: &Path,
        blobs: Option<&Path>,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<BackedUp>, BackupError> {
        let subject = self.subject(storage);
        let subject = subject.map_err(BackupError::io("find the storage for", to))?;
        let prefix = prefix::find(subject.file, tid, subject.tail).map_err(BackupError::Read)?;
        let newest_only = self.manifest().is_newest_only();
        if prefix.is_packed || tid < self.thinned(storage) || newest_only {
            return Err(BackupError::Packed(tid));
        }
        let disk = self.disk();
        if let Some(free) = disk.free_len(to).filter(|free| *free < prefix.len) {
            let needed = prefix.len;
            return Err(BackupError::NoRoom { needed, free });
        }
        let blobs = match (blobs, subject.blobs) {
            (None, _) => None,
            (Some(_), None) => return Err(BackupError::NoBlobs),
            (Some(to), Some((from, _))) => Some((from, to)),
        };
        claim(disk, to)?;
        let mut written = write(disk, &**subject.file, &prefix, to, pace);
        let mut count = 0;
        if let (Ok(true), Some((from, to))) = (&written, blobs) {
            let mut on_the_way = OnTheWay {
                snapshot: self,
                storage,
                last: prefix.last,
                from,
                count: 0,
            };
            written = on_the_way.copy(to, pace);
            count = on_the_way.count;
        }
        if matches!(written, Ok(true)) {
            // Only now: before it is complete nobody shall take it for a backup.
            let part = with_suffix(to, PART);
            let named = disk.rename(&part, to);
            let named = named.and_then(|()| disk.sync_directory_of(to));
            written = named.map(|()| true).map_err(BackupError::io("name", to));
        }
        if !matches!(written, Ok(true)) {
            self.give_up(to);
        }
        Ok(written?.then_some(BackedUp {
            last: prefix.last,
            len: prefix.len,
            blobs: count,
        }))
    }

    fn give_up(&self, to: &Path) {
        for path in [&with_suffix(to, PART), to] {
            if let Err(error) = self.disk().discard(path) {
                log::error!("{}: not removed ({error})", path.display());
            }
        }
    }

    /// How far packs have gone, or what was not copied.
    fn thinned(&self, storage: u32) -> Tid {
        let number = usize::try_from(storage).unwrap_or(usize::MAX);
        let name = self.manifest().storages().nth(number);
        name.map_or(Tid::ZERO, |name| self.manifest().thinned_through(name))
    }
}

/// Takes a name that is free.
fn claim(disk: &dyn Disk, to: &Path) -> Result<(), BackupError> {
    match disk.open(to, OpenMode::CreateNew) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(BackupError::Exists(to.to_owned()))
        }
        Err(error) => Err(BackupError::io("create", to)(error)),
    }
}

fn write(
    disk: &dyn Disk,
    from: &dyn File,
    prefix: &Prefix,
    to: &Path,
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<bool, BackupError> {
    let part = with_suffix(to, PART);
    // Of a process that has died.
    let discarded = disk.discard(&part);
    discarded.map_err(BackupError::io("remove", &part))?;
    let file = disk.open(&part, OpenMode::CreateNew);
    let file = file.map_err(BackupError::io("create", &part))?;
    let copied = prefix::copy(from, &*file, prefix.len, pace);
    if !copied.map_err(BackupError::io("write", &part))? {
        return Ok(false);
    }
    file.sync().map_err(BackupError::io("sync", &part))?;
    Ok(true)
}

/// Blobs that are copied.
struct OnTheWay<'a> {
    snapshot: &'a Snapshot,
    storage: u32,
    last: Tid,
    from: &'a BlobDirectory,
    count: u64,
}

impl OnTheWay<'_> {
    fn copy(&mut self, to: &Path, pace: &mut dyn FnMut(u64) -> bool) -> Result<bool, BackupError> {
        let disk = self.snapshot.disk();
        let made = disk.create_directories(to);
        let made = made.map_err(BackupError::io("create", to))?;
        if made.is_empty() {
            return Err(BackupError::Exists(to.to_owned()));
        }
        let copied = self.copy_all(to, pace);
        if !matches!(copied, Ok(true))
            && let Err(error) = disk.remove_tree(to)
        {
            log::error!("{}: not removed ({error})", to.display());
        }
        copied
    }

    fn copy_all(
        &mut self,
        to: &Path,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, BackupError> {
        let disk = self.snapshot.disk();
        // A new directory gets the layout that all new ones have.
        let directory = BlobDirectory::open(disk, to, true).map_err(BackupError::Storage)?;
        let mut after = None;
        loop {
            let listed = self.snapshot.blobs(self.storage, after, COPY_BLOBS_LISTED);
            let listed = listed.map_err(BackupError::io("list blobs for", to))?;
            let Some(last) = listed.last() else {
                // What is listed from the directory that others pack may be short of some.
                return match self.snapshot.is_replaced(self.storage) {
                    true => Err(BackupError::Replaced),
                    false => Ok(true),
                };
            };
            after = Some((last.oid, last.tid));
            for blob in listed.iter().filter(|blob| blob.tid <= self.last) {
                let path = directory.file(blob.oid, blob.tid);
                self.copy_one((blob.oid, blob.tid), &path)?;
                self.count += 1;
                if !pace(blob.len) {
                    return Ok(false);
                }
            }
        }
    }

    fn copy_one(&self, (oid, tid): (Oid, Tid), to: &Path) -> Result<(), BackupError> {
        let disk = self.snapshot.disk();
        let from = self.from.file(oid, tid);
        let parent = to.parent().unwrap_or(to);
        let made = disk.create_directories(parent);
        for path in &made.map_err(BackupError::io("create", parent))? {
            let synced = disk.sync_directory_of(path);
            synced.map_err(BackupError::io("sync the directory of", path))?;
        }
        if disk.link(&from, to).is_err() {
            // On another file system, or on one without second names.
            self.copy_bytes(&from, to)?;
        }
        let synced = disk.sync_directory_of(to);
        synced.map_err(BackupError::io("sync the directory of", to))
    }

    fn copy_bytes(&self, from: &Path, to: &Path) -> Result<(), BackupError> {
        let disk = self.snapshot.disk();
        let source = disk.open(from, OpenMode::ReadRegular).map_err(|error| {
            match error.kind() == io::ErrorKind::NotFound {
                true => BackupError::Replaced,
                false => BackupError::io("open", from)(error),
            }
        })?;
        let file = disk.open(to, OpenMode::CreateNew);
        let file = file.map_err(BackupError::io("create", to))?;
        let len = source.len().map_err(BackupError::io("read", from))?;
        let copied = prefix::copy(&*source, &*file, len, &mut |_| true);
        copied.map_err(BackupError::io("copy", from))?;
        file.sync().map_err(BackupError::io("sync", to))?;
        disk.set_read_only(to, to.parent().unwrap_or(to))
            .map_err(BackupError::io("protect", to))
    }
}
