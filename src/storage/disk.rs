//! What storage needs of a disk. [`OsDisk`] is the only place of the crate that uses `std::fs`;
//! tests put a disk under the storage that loses power.

use std::ffi::OsString;
use std::fmt::{self, Debug};
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Access, FallocateFlags, OFlags, access};
use rustix::io::{Errno, ReadWriteFlags};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
    /// For reading; it must be a regular file itself, and no link to one: what stands there may be
    /// the work of somebody else: [`io::ErrorKind::InvalidInput`]. Never waits for the other end of
    /// a pipe.
    ReadRegular,
    /// For reading and writing; it must exist.
    Write,
    /// For reading and writing; it must not exist yet.
    CreateNew,
}

/// Device and inode: the same file under whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

/// Files by name. Methods may block; [`File::read_at_nowait`] is the one call that never does.
pub trait Disk: Debug + Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// The whole contents of a (small) file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Replaces a file as a whole: a new file is written beside it and synced, takes its name, and
    /// the directory is synced. After a crash there is the old file or the new one.
    fn replace(&self, path: &Path, contents: &[&[u8]]) -> io::Result<()>;
    /// Removes a file and syncs the directory; that there is none is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Bytes that are free for files in the directory of `path`; `None` if nobody knows.
    fn free_len(&self, _path: &Path) -> Option<u64> {
        None
    }
    /// What stands under a name, without opening it.
    fn identify(&self, path: &Path) -> io::Result<FileId>;
    /// Syncs the directory of `path`, so that a file just created in it keeps its name.
    fn sync_directory_of(&self, path: &Path) -> io::Result<()>;
    /// An unnamed file for staging that vanishes with its handle, in the directory of `path`.
    fn open_unnamed(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    // For directories of files (blobs). Nothing here is durable until `sync_directory_of` says so.

    /// The names in a directory, in any order.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;
    /// Creates a directory and those above it; the ones that were not there. An error if no file
    /// may be put into it.
    fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Gives a file another name, in one step. What had that name before is gone.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; that there is none is no error.
    fn discard(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with all that is in it; that there is none is no error.
    fn remove_tree(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory if nothing is in it; whether it did.
    fn remove_if_empty(&self, _path: &Path) -> io::Result<bool> {
        Ok(false)
    }
    /// Gives a file the permissions that another one has.
    fn copy_permissions(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Ok(())
    }
    /// Takes everybody's permission to write a file, and lets all read it who may read `directory`.
    fn set_read_only(&self, path: &Path, directory: &Path) -> io::Result<()>;
}

/// An open file. Positions and lengths are in bytes.
#[expect(clippy::len_without_is_empty, reason = "a file is no collection")]
pub trait File: Debug + Send + Sync {
    /// Device and inode.
    fn id(&self) -> io::Result<FileId>;
    /// The length.
    fn len(&self) -> io::Result<u64>;
    /// Reads until `buf` is full or the file ends; the number of bytes read.
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize>;
    /// As [`Self::read_at`], if that needs no wait for the disk. `WouldBlock` if *anything* of it
    /// is not in memory, or if the system cannot tell.
    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize>;
    /// As [`Self::read_at_nowait`], but what can be had by one look is enough: the number of bytes
    /// read may be less than the file has. `WouldBlock` if it would be none.
    fn read_at_once(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.read_at_nowait(buf, pos)
    }
    /// Writes all the slices, one behind the other, from `pos` on.
    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()>;
    /// Returns when data and length are on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space for `len` bytes from `pos` on, without a change of the file's length.
    /// `Unsupported` where the file system cannot; [a lack of room](is_lack_of_room) where there is
    /// no space.
    fn allocate(&self, pos: u64, len: u64) -> io::Result<()>;
    /// Takes an exclusive lock on the file (by inode, `flock`), which ends with the handle. `false`
    /// if another process, or another handle, has it.
    fn try_lock(&self) -> io::Result<bool>;
    /// Gives the lock back, though the handle lives on.
    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a change came to nothing as there was no room for it: on the disk, or of what a user may
/// have of it. It may be tried again, which other failures of a disk may not.
pub fn is_lack_of_room(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

/// `path` with something appended to its name, as in `Data.fs.lock`.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The disk of the operating system.
#[derive(Debug, Default)]
pub struct OsDisk {
    /// Distinguishes the unnamed files of one directory while they still have their names.
    unnamed_count: AtomicU64,
}

impl Disk for OsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options
            .read(true)
            .write(matches!(mode, OpenMode::Write | OpenMode::CreateNew))
            .create_new(mode == OpenMode::CreateNew);
        if mode == OpenMode::ReadRegular {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
            options.custom_flags(flags.bits().cast_signed());
        }
        let not_regular = || {
            let what = "it is not a regular file";
            io::Error::new(io::ErrorKind::InvalidInput, what)
        };
        let is_socket =
            |error: &io::Error| error.raw_os_error() == Some(Errno::NXIO.raw_os_error());
        let file = options.open(path).map_err(|error| match mode {
            OpenMode::ReadRegular if is_socket(&error) => not_regular(),
            _ => error,
        })?;
        if mode == OpenMode::ReadRegular && !file.metadata()?.is_file() {
            return Err(not_regular());
        }
        Ok(Arc::new(Latched::new(OsFile(file))))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn replace(&self, path: &Path, contents: &[&[u8]]) -> io::Result<()> {
        let new = with_suffix(path, ".new");
        let written = (|| {
            let file = OsFile(fs::File::create(&new)?);
            let mut bufs: Vec<_> = contents.iter().map(|buf| IoSlice::new(buf)).collect();
            file.write_at(&mut bufs, 0)?;
            // Before the rename: else a crash could leave the name on a file without contents.
            file.sync()?;
            fs::rename(&new, path)
        })();
        if let Err(error) = written {
            // What is left of it would only take the space that may have been missing.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        self.sync_directory_of(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_directory_of(path),
        }
    }

    fn free_len(&self, path: &Path) -> Option<u64> {
        let stat = rustix::fs::statvfs(directory_of(path)).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }

    fn identify(&self, path: &Path) -> io::Result<FileId> {
        Ok(file_id(&fs::metadata(path)?))
    }

    fn sync_directory_of(&self, path: &Path) -> io::Result<()> {
        fs::File::open(directory_of(path))?.sync_all()
    }

    /// Created with a name and unlinked at once: `O_TMPFILE` is not known to every file system. A
    /// name that a crash between the two left behind is used again.
    fn open_unnamed(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let number = self.unnamed_count.fetch_add(1, Ordering::Relaxed);
        let path = with_suffix(path, &format!(".staging{number}"));
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        fs::remove_file(&path)?;
        Ok(Arc::new(Latched::new(OsFile(file))))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut missing = Vec::new();
        for path in path.ancestors().filter(|path| *path != Path::new("")) {
            if path.is_dir() {
                break;
            }
            missing.push(path);
        }
        let mut created = Vec::new();
        for path in missing.into_iter().rev() {
            match fs::create_dir(path) {
                Ok(()) => created.push(path.to_owned()),
                // Somebody else was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        access(path, Access::WRITE_OK | Access::EXEC_OK)?;
        Ok(created)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn copy_permissions(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::set_permissions(to, fs::metadata(from)?.permissions())
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn remove_if_empty(&self, path: &Path) -> io::Result<bool> {
        use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
        match fs::remove_dir(path) {
            Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotADirectory | NotFound) => {
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    fn set_read_only(&self, path: &Path, directory: &Path) -> io::Result<()> {
        let mode = fs::symlink_metadata(path)?.mode();
        let wanted = mode & !0o222 | fs::metadata(directory)?.mode() & 0o444;
        if wanted == mode {
            return Ok(());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(wanted & 0o7777))
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

/// Slices given to one `pwritev`: what Linux takes at most (`IOV_MAX`).
const SLICES_PER_WRITE_MAX: usize = 1024;

/// A file of the operating system, without a memory for failures: see [`Latched`].
#[derive(Debug)]
struct OsFile(fs::File);

impl File for OsFile {
    fn id(&self) -> io::Result<FileId> {
        Ok(file_id(&self.0.metadata()?))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        fill(buf, pos, |buf, pos| self.0.read_at(buf, pos))
    }

    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        fill(buf, pos, |buf, pos| self.read_at_once(buf, pos))
    }

    fn read_at_once(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let bufs = &mut [IoSliceMut::new(buf)];
        match rustix::io::preadv2(&self.0, bufs, pos, ReadWriteFlags::NOWAIT) {
            // File systems, and kernels, that cannot tell what is in memory.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::WouldBlock.into()),
            result => Ok(result?),
        }
    }

    fn write_at(&self, mut bufs: &mut [IoSlice<'_>], mut pos: u64) -> io::Result<()> {
        // Empty slices at the front are dropped, so that "nothing written" means just that.
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            let count = bufs.len().min(SLICES_PER_WRITE_MAX);
            match rustix::io::pwritev(&self.0, &bufs[..count], pos) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut bufs, written);
                    pos += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // `fdatasync` writes the length too, as the data could not be found again without it.
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, pos, len) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Calls `read` until `buf` is full or the file ends.
fn fill(
    buf: &mut [u8],
    pos: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match read(&mut buf[filled..], pos + filled as u64) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A file that takes no more writes after one has failed.
///
/// After a failed write nobody knows what the file holds; after a failed sync the kernel may have
/// dropped what it could not write and report success the next time. Only opening anew, which
/// looks at what is there, may go on. A failed [`File::allocate`] has changed nothing and is
/// forgiven: that is how a full disk costs a transaction and not the server.
#[derive(Debug)]
pub struct Latched<F> {
    file: F,
    first_failure: OnceLock<EarlierFailure>,
}

impl<F> Latched<F> {
    /// A file that nothing has gone wrong with yet.
    pub const fn new(file: F) -> Self {
        Self {
            file,
            first_failure: OnceLock::new(),
        }
    }

    fn guard(
        &self,
        action: &'static str,
        change: impl FnOnce(&F) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(failure) = self.first_failure.get() {
            return Err(io::Error::other(failure.clone()));
        }
        change(&self.file).inspect_err(|error| {
            // Another thread may have been first; its failure is as good.
            let _ = self.first_failure.set(EarlierFailure {
                action,
                message: error.to_string(),
            });
        })
    }
}

impl<F: File> File for Latched<F> {
    fn id(&self) -> io::Result<FileId> {
        self.file.id()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.file.read_at(buf, pos)
    }

    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.file.read_at_nowait(buf, pos)
    }

    fn read_at_once(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.file.read_at_once(buf, pos)
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()> {
        self.guard("write", |file| file.write_at(bufs, pos))
    }

    fn sync(&self) -> io::Result<()> {
        self.guard("sync", F::sync)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.guard("cut", |file| file.set_len(len))
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        self.file.allocate(pos, len)
    }

    fn unlock(&self) -> io::Result<()> {
        self.file.unlock()
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}

/// Why a [`Latched`] file refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EarlierFailure {
    action: &'static str,
    message: String,
}

impl fmt::Display for EarlierFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "refused after an earlier failure (cannot {}: {})",
            self.action, self.message
        )
    }
}

impl std::error::Error for EarlierFailure {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::TestDir;

    /// Fails every change while `failing`.
    #[derive(Debug)]
    struct Moody {
        failing: AtomicU64,
    }

    impl Moody {
        fn change(&self) -> io::Result<()> {
            match self.failing.load(Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }
    }

    impl File for Moody {
        fn id(&self) -> io::Result<FileId> {
            unreachable!("not used here")
        }
        fn len(&self) -> io::Result<u64> {
            Ok(7)
        }
        fn read_at(&self, _buf: &mut [u8], _pos: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn read_at_nowait(&self, _buf: &mut [u8], _pos: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn write_at(&self, _bufs: &mut [IoSlice<'_>], _pos: u64) -> io::Result<()> {
            self.change()
        }
        fn sync(&self) -> io::Result<()> {
            self.change()
        }
        fn set_len(&self, _len: u64) -> io::Result<()> {
            self.change()
        }
        fn allocate(&self, _pos: u64, _len: u64) -> io::Result<()> {
            self.change()
        }
        fn try_lock(&self) -> io::Result<bool> {
            Ok(true)
        }
    }

    fn moody(failing: u64) -> Latched<Moody> {
        Latched::new(Moody {
            failing: AtomicU64::new(failing),
        })
    }

    #[test]
    fn after_a_failed_write_or_sync_nothing_is_written_any_more() {
        type Change = fn(&Latched<Moody>) -> io::Result<()>;
        let failures: [Change; 3] = [
            |file| file.write_at(&mut [IoSlice::new(b"x")], 0),
            |file| file.sync(),
            |file| file.set_len(0),
        ];
        for (fail, action) in failures.iter().zip(["write", "sync", "cut"]) {
            let file = moody(1);
            assert_eq!(fail(&file).unwrap_err().kind(), io::ErrorKind::StorageFull);
            file.file.failing.store(0, Ordering::Relaxed);
            for refused in failures {
                let error = refused(&file).unwrap_err().to_string();
                assert!(error.contains(&format!("cannot {action}")), "{error}");
            }
            assert_eq!(file.len().unwrap(), 7);
        }
    }

    #[test]
    fn a_failed_allocation_is_forgiven() {
        let file = moody(1);
        file.allocate(0, 1).unwrap_err();
        file.file.failing.store(0, Ordering::Relaxed);
        file.sync().unwrap();
    }

    #[test]
    fn many_slices_are_written_one_behind_the_other() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("file");
        let file = disk.open(&path, OpenMode::CreateNew).unwrap();
        let pieces: Vec<Vec<u8>> = (0..3000u32).map(|n| n.to_be_bytes().to_vec()).collect();
        let mut bufs: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        bufs.insert(0, IoSlice::new(b""));
        file.write_at(&mut bufs, 5).unwrap();
        file.write_at(&mut [], 5).unwrap();
        assert_eq!(disk.read(&path).unwrap()[5..], pieces.concat());
        let mut buf = [0; 8];
        assert_eq!(file.read_at(&mut buf, 5 + 4 * 2999).unwrap(), 4);
        assert_eq!(buf[..4], 2999u32.to_be_bytes());
    }

    #[test]
    fn a_read_without_waiting_agrees_with_one_that_waits() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let file = disk.open(&dir.path("file"), OpenMode::CreateNew).unwrap();
        file.write_at(&mut [IoSlice::new(&[9; 5000])], 0).unwrap();
        let mut buf = [0; 4096];
        match file.read_at_nowait(&mut buf, 4000) {
            Ok(len) => assert_eq!((len, buf[999]), (1000, 9)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("file");
        disk.replace(&path, &[b"old and long"]).unwrap();
        disk.replace(&path, &[b"n", b"", b"ew"]).unwrap();
        assert_eq!(disk.read(&path).unwrap(), b"new");
        disk.open_unnamed(&path).unwrap().sync().unwrap();
        assert_eq!(dir.names(), ["file"]);
        disk.remove(&path).unwrap();
        disk.remove(&path).unwrap();
        assert_eq!(dir.names(), [""; 0]);
    }

    #[test]
    fn space_is_reserved_without_a_change_of_length() {
        let dir = TestDir::new();
        let file = OsDisk::default()
            .open(&dir.path("file"), OpenMode::CreateNew)
            .unwrap();
        match file.allocate(0, 1 << 20) {
            Ok(()) => assert_eq!(file.len().unwrap(), 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
    }

    #[test]
    fn a_lock_excludes_another_handle_until_it_ends() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("file");
        let first = disk.open(&path, OpenMode::CreateNew).unwrap();
        let second = disk.open(&path, OpenMode::Write).unwrap();
        assert!(first.try_lock().unwrap());
        assert!(!second.try_lock().unwrap());
        assert_eq!(first.id().unwrap(), disk.identify(&path).unwrap());
        drop(first);
        assert!(second.try_lock().unwrap());
    }
}
