//! What storage needs of a disk. [`OsDisk`] is the only place of the crate that uses `std::fs`;
//! tests put a disk under the storage that loses power.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; it must exist.
    Read,
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
    /// What stands under a name, without opening it.
    fn identify(&self, path: &Path) -> io::Result<FileId>;
    /// Syncs the directory of `path`, so that a file just created in it keeps its name.
    fn sync_directory_of(&self, path: &Path) -> io::Result<()>;
    /// An unnamed file for staging that vanishes with its handle, in the directory of `path`.
    fn open_unnamed(&self, path: &Path) -> io::Result<Arc<dyn File>>;
}

/// An open file. Positions and lengths are in bytes.
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
    /// Writes all the slices, one behind the other, from `pos` on.
    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()>;
    /// Returns when data and length are on stable storage.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space for `len` bytes from `pos` on, without a change of the file's length.
    /// `Unsupported` where the file system cannot; `StorageFull` where there is no space.
    fn allocate(&self, pos: u64, len: u64) -> io::Result<()>;
    /// Takes an exclusive lock on the file (by inode, `flock`), which ends with the handle. `false`
    /// if another process, or another handle, has it.
    fn try_lock(&self) -> io::Result<bool>;
}
