//! What workers do for blobs.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::ids::Oid;
use crate::limits::{BLOB_READ_LEN, BLOB_WRITE_LEN};
use crate::storage::disk::{Disk, File, OpenMode};
use crate::storage::staging::TxnId;

/// The right to make directories for blobs, which whoever makes some keeps until their names are
/// durable. So to one who has it a directory that is there is one that stays; without it a pack
/// could remove an empty one that a vote relies on, and another transaction make it again, and the
/// finish would take that for the durable one. Removing needs the right, too: else a directory
/// could vanish while one is made in it, or between that and the rename, and a finish that fails
/// takes the storage with it.
#[derive(Clone, Debug, Default)]
pub struct DirectoryMaker(Arc<Right>);

#[derive(Debug, Default)]
struct Right {
    held: Mutex<()>,
    /// Held by who is the next. Without it a long vote would take the right again and again before
    /// a finish that waits has woken up.
    next: Mutex<()>,
}

impl DirectoryMaker {
    pub(in crate::storage) fn lock(&self) -> MutexGuard<'_, ()> {
        // They guard nothing in memory.
        let _next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody waits for it.
    #[cfg(test)]
    pub(in crate::storage) fn is_awaited(&self) -> bool {
        self.0.next.try_lock().is_err()
    }
}

/// Objects whose directories are made at a time: a finish may have to wait that long.
const DIRECTORIES_AT_ONCE: usize = 64;

/// Work on the files of a transaction's blobs, until it is finished.
#[derive(Debug)]
pub struct BlobJob {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) maker: DirectoryMaker,
    pub(super) txn: TxnId,
    pub(super) task: Task,
}

#[derive(Debug)]
pub(super) enum Task {
    /// Write what has come of a blob; with the first of it the file is created.
    Write {
        path: PathBuf,
        file: Option<Arc<dyn File>>,
        pos: u64,
        chunks: Vec<Bytes>,
        /// A long file is synced now and then, so that no sync at its end takes long, its own or
        /// that of somebody who shares the file system's journal.
        sync: bool,
    },
    /// The same with the last of it; then make the file what a committed one is, but for its name.
    Complete {
        path: PathBuf,
        file: Option<Arc<dyn File>>,
        pos: u64,
        chunks: Vec<Bytes>,
        oid: Oid,
        /// The blob directory, whose readers may read it.
        base: PathBuf,
    },
    /// Take over a file that a client has put into the object's directory itself.
    TakeOver {
        from: PathBuf,
        path: PathBuf,
        oid: Oid,
        base: PathBuf,
    },
    /// Make directories, and their names durable.
    Prepare {
        /// The objects', each with those above it.
        directories: Vec<Vec<PathBuf>>,
        /// Where the files come from.
        temporary: PathBuf,
    },
    /// Make copies of committed blobs for transactions that were undone.
    CopyBack {
        copies: Vec<CopyBack>,
        base: PathBuf,
        temporary: PathBuf,
    },
    /// Remove files that nobody wants any more.
    Discard(Vec<PathBuf>),
}

/// A committed blob that is to become that of a new revision, too.
#[derive(Debug)]
pub(super) struct CopyBack {
    pub(super) oid: Oid,
    pub(super) from: PathBuf,
    /// The copy, until its transaction is finished.
    pub(super) path: PathBuf,
    /// The object's, with those above it.
    pub(super) directories: Vec<PathBuf>,
}

/// What became of a [`BlobJob`].
#[derive(Debug)]
pub struct BlobDone {
    pub(super) txn: TxnId,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Written {
        path: PathBuf,
        result: io::Result<Arc<dyn File>>,
    },
    /// It is complete and on stable storage.
    Staged {
        path: PathBuf,
        oid: Oid,
        result: io::Result<()>,
    },
    Prepared(io::Result<()>),
    CopiedBack {
        files: Vec<(Oid, PathBuf)>,
        result: io::Result<()>,
    },
    Discarded,
}

impl Outcome {
    /// The files that there may be.
    pub(super) fn into_files(self) -> Vec<PathBuf> {
        match self {
            Self::Written { path, .. } | Self::Staged { path, .. } => vec![path],
            Self::CopiedBack { files, .. } => files.into_iter().map(|(_, path)| path).collect(),
            Self::Prepared(_) | Self::Discarded => Vec::new(),
        }
    }
}

impl BlobJob {
    pub(crate) fn run(self) -> BlobDone {
        let Self {
            disk,
            maker,
            txn,
            task,
        } = self;
        let outcome = match task {
            Task::Write {
                path,
                file,
                pos,
                chunks,
                sync,
            } => {
                let result = write(&*disk, &path, file, pos, &chunks).and_then(|file| {
                    if sync {
                        file.sync()?;
                    }
                    Ok(file)
                });
                Outcome::Written { path, result }
            }
            Task::Complete {
                path,
                file,
                pos,
                chunks,
                oid,
                base,
            } => {
                let result = write(&*disk, &path, file, pos, &chunks).and_then(|file| {
                    disk.set_read_only(&path, &base)?;
                    file.sync()
                });
                Outcome::Staged { path, oid, result }
            }
            Task::TakeOver {
                from,
                path,
                oid,
                base,
            } => {
                let result = take_over(&*disk, &from, &path, &base);
                Outcome::Staged { path, oid, result }
            }
            Task::Prepare {
                directories,
                temporary,
            } => Outcome::Prepared(prepare(&*disk, &maker, &directories, &temporary)),
            Task::CopyBack {
                copies,
                base,
                temporary,
            } => {
                let result = copies
                    .iter()
                    .try_for_each(|it| copy_back(&*disk, it, &base));
                let directories: Vec<_> = copies.iter().map(|it| it.directories.clone()).collect();
                let result =
                    result.and_then(|()| prepare(&*disk, &maker, &directories, &temporary));
                let files = copies.into_iter().map(|it| (it.oid, it.path)).collect();
                Outcome::CopiedBack { files, result }
            }
            Task::Discard(paths) => {
                for path in paths {
                    if let Err(error) = disk.discard(&path) {
                        log::warn!("{}: not removed ({error})", path.display());
                    }
                }
                Outcome::Discarded
            }
        };
        BlobDone { txn, outcome }
    }
}

fn write(
    disk: &dyn Disk,
    path: &Path,
    file: Option<Arc<dyn File>>,
    pos: u64,
    chunks: &[Bytes],
) -> io::Result<Arc<dyn File>> {
    let file = match file {
        Some(file) => file,
        None => disk.open(path, OpenMode::CreateNew)?,
    };
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    file.write_at(&mut slices, pos)?;
    Ok(file)
}

/// The file is moved away from where its client can reach it by the name that it has told, looked
/// at, and synced: a client has no reason to have done that.
fn take_over(disk: &dyn Disk, from: &Path, path: &Path, base: &Path) -> io::Result<()> {
    // Before it is moved: what is no file of a client's should stay where it is.
    drop(disk.open(from, OpenMode::ReadRegular)?);
    disk.rename(from, path)?;
    let file = disk.open(path, OpenMode::ReadRegular)?;
    disk.set_read_only(path, base)?;
    file.sync()
}

/// A second name for the same file if the file system has such: a committed blob is never written.
fn copy_back(disk: &dyn Disk, copy: &CopyBack, base: &Path) -> io::Result<()> {
    let CopyBack { from, path, .. } = copy;
    let named = |error: io::Error| {
        let text = format!("{}: {error}", from.display());
        io::Error::new(error.kind(), text)
    };
    match disk.link(from, path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(named(error)),
        Err(_) => {}
    }
    let source = disk.open(from, OpenMode::ReadRegular).map_err(named)?;
    let file = disk.open(path, OpenMode::CreateNew)?;
    let mut piece = vec![0; BLOB_WRITE_LEN];
    let mut pos = 0;
    loop {
        let len = source.read_at(&mut piece, pos).map_err(named)?;
        if len == 0 {
            break;
        }
        file.write_at(&mut [IoSlice::new(&piece[..len])], pos)?;
        pos += len as u64;
    }
    disk.set_read_only(path, base)?;
    file.sync()
}

/// What could keep a file from its place is found now: when its transaction is finished it is too
/// late to refuse that one alone.
fn prepare(
    disk: &dyn Disk,
    maker: &DirectoryMaker,
    directories: &[Vec<PathBuf>],
    temporary: &Path,
) -> io::Result<()> {
    let device = disk.identify(temporary)?.device;
    for some in directories.chunks(DIRECTORIES_AT_ONCE) {
        let _right = maker.lock();
        for directory in some.iter().filter_map(|all| all.first()) {
            let named = |error: io::Error| {
                let text = format!("{}: {error}", directory.display());
                io::Error::new(error.kind(), text)
            };
            disk.create_directories(directory).map_err(named)?;
            if disk.identify(directory).map_err(named)?.device != device {
                return Err(named(io::ErrorKind::CrossesDevices.into()));
            }
        }
        // Also of those that were there: whoever made them, a client, or a process that was killed,
        // may not have synced them.
        sync_parents(disk, some.iter().flatten())?;
    }
    Ok(())
}

/// Makes the names of all these durable; each directory is synced once.
fn sync_parents<'a>(disk: &dyn Disk, paths: impl Iterator<Item = &'a PathBuf>) -> io::Result<()> {
    let mut synced: BTreeSet<Option<&Path>> = BTreeSet::new();
    for path in paths {
        if synced.insert(path.parent()) {
            disk.sync_directory_of(path)?;
        }
    }
    Ok(())
}

/// Gives files of finished transactions their names as blobs, and makes these durable.
pub(in crate::storage) fn move_in(
    disk: &dyn Disk,
    maker: &DirectoryMaker,
    moves: &[(PathBuf, PathBuf)],
) -> io::Result<()> {
    if moves.is_empty() {
        return Ok(());
    }
    let _right = maker.lock();
    let mut created = Vec::new();
    for (from, to) in moves {
        let result = disk.rename(from, to);
        match (result, to.parent()) {
            // A pack found the directory empty, and removed it.
            (Err(error), Some(directory)) if error.kind() == io::ErrorKind::NotFound => {
                created.append(&mut disk.create_directories(directory)?);
                disk.rename(from, to)?;
            }
            (result, _) => result?,
        }
    }
    sync_parents(disk, moves.iter().map(|(_, to)| to).chain(&created))
}

/// A committed blob that is read piece by piece.
#[derive(Debug)]
pub struct BlobReader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) file: Option<Arc<dyn File>>,
    pub(super) pos: u64,
    /// Known when it is open.
    pub(super) len: u64,
}

impl BlobReader {
    /// Whether all of it was read. Not before the first piece: there may be no such file.
    pub fn is_at_end(&self) -> bool {
        self.file.is_some() && self.pos >= self.len
    }

    /// The next piece, [`BLOB_READ_LEN`] bytes unless it is the last. Blocks.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such blob; otherwise the disk does not read it, or it has become
    /// shorter.
    pub fn read(mut self) -> io::Result<(Self, Bytes)> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = self.disk.open(&self.path, OpenMode::ReadRegular)?;
                self.len = file.len()?;
                file
            }
        };
        let left = usize::try_from(self.len.saturating_sub(self.pos)).unwrap_or(usize::MAX);
        let mut piece = vec![0; left.min(BLOB_READ_LEN)];
        if file.read_at(&mut piece, self.pos)? != piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pos += piece.len() as u64;
        self.file = Some(file);
        Ok((self, Bytes::from(piece)))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_waits_for_the_right_gets_it_before_who_has_just_had_it() {
        let maker = DirectoryMaker::default();
        for _ in 0..20 {
            let order = Mutex::new(Vec::new());
            thread::scope(|scope| {
                let right = maker.lock();
                let other = scope.spawn(|| {
                    let _right = maker.lock();
                    order.lock().unwrap().push("finish");
                });
                while !maker.is_awaited() {
                    assert!(!other.is_finished());
                    thread::yield_now();
                }
                drop(right);
                let _right = maker.lock();
                order.lock().unwrap().push("vote");
            });
            assert_eq!(order.into_inner().unwrap(), ["finish", "vote"]);
        }
    }
}
