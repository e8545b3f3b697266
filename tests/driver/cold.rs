//! A disk of which a part is not in memory: what is read there has to be waited for.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use standby::storage::disk::{Disk, File, FileId, OpenMode};
use standby::storage::memory::MemoryDisk;

/// The disk.
#[derive(Debug)]
pub(crate) struct PartlyCold {
    disk: MemoryDisk,
    /// From this position on no file is in memory.
    cold_from: Arc<AtomicU64>,
}

#[derive(Debug)]
struct ColdFile {
    file: Arc<dyn File>,
    cold_from: Arc<AtomicU64>,
}

impl PartlyCold {
    /// One that is all in memory yet.
    pub(crate) fn new() -> Self {
        Self {
            disk: MemoryDisk::new(),
            cold_from: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// From now on what stands at `pos` or behind it has to be waited for.
    pub(crate) fn cool_from(&self, pos: u64) {
        self.cold_from.store(pos, Ordering::Relaxed);
    }

    fn cold(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        let cold_from = self.cold_from.clone();
        Arc::new(ColdFile { file, cold_from })
    }
}

impl Disk for PartlyCold {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(self.cold(self.disk.open(path, mode)?))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.disk.read(path)
    }

    fn replace(&self, path: &Path, contents: &[&[u8]]) -> io::Result<()> {
        self.disk.replace(path, contents)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn identify(&self, path: &Path) -> io::Result<FileId> {
        self.disk.identify(path)
    }

    fn sync_directory_of(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_directory_of(path)
    }

    fn open_unnamed(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.open_unnamed(path)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.disk.names(directory)
    }

    fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.create_directories(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        self.disk.discard(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_tree(path)
    }

    fn set_read_only(&self, path: &Path, directory: &Path) -> io::Result<()> {
        self.disk.set_read_only(path, directory)
    }
}

impl File for ColdFile {
    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        if pos + buf.len() as u64 > self.cold_from.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.file.read_at(buf, pos)
    }

    fn read_at_once(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let left = self.cold_from.load(Ordering::Relaxed).saturating_sub(pos);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match len {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            len => self.file.read_at(&mut buf[..len], pos),
        }
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.file.read_at(buf, pos)
    }

    fn id(&self) -> io::Result<FileId> {
        self.file.id()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()> {
        self.file.write_at(bufs, pos)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        self.file.allocate(pos, len)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }
}
