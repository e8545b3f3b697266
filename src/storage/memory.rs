//! A disk in memory: what `<mappingstorage>` is kept on. It is gone with the process.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::disk::{Disk, File, FileId, OpenMode};

/// Files in memory, by name.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
    /// Those that were created. Files need none to be in.
    directories: Mutex<BTreeSet<PathBuf>>,
    /// A directory that is a file system of its own, with little room.
    #[cfg(test)]
    room: Mutex<Option<(PathBuf, Arc<Room>)>>,
    /// No directory can be synced.
    #[cfg(test)]
    forgets_names: AtomicBool,
}

/// What is left of a file system: no more than this is written to what is created in it. What was
/// there before has all the room that it needs.
#[cfg(test)]
#[derive(Debug)]
struct Room {
    len: Mutex<u64>,
    /// The system's answer if it is not enough.
    kind: io::ErrorKind,
}

#[cfg(test)]
impl Room {
    fn has(&self, len: u64) -> io::Result<()> {
        let left = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        (*left >= len).then_some(()).ok_or_else(|| self.kind.into())
    }

    fn take(&self, len: usize) -> io::Result<()> {
        let mut left = self.len.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.checked_sub(len as u64).ok_or(self.kind)?;
        Ok(())
    }
}

/// A file in memory.
#[derive(Debug)]
struct MemoryFile {
    inode: u64,
    contents: RwLock<Vec<u8>>,
    locked: AtomicBool,
    /// It cannot be read: where a disk is damaged.
    #[cfg(test)]
    spoiled: AtomicBool,
}

/// A handle: what holds a lock.
#[derive(Debug)]
struct Handle {
    file: Arc<MemoryFile>,
    holds_lock: AtomicBool,
    /// What is written with it takes of this.
    #[cfg(test)]
    room: Option<Arc<Room>>,
}

/// An empty file that has no name.
pub(super) fn nothing() -> Arc<dyn File> {
    let file = Arc::new(MemoryFile::new(0, Vec::new()));
    Arc::new(Handle {
        file,
        holds_lock: AtomicBool::new(false),
        #[cfg(test)]
        room: None,
    })
}

impl MemoryFile {
    const fn new(inode: u64, contents: Vec<u8>) -> Self {
        Self {
            inode,
            contents: RwLock::new(contents),
            locked: AtomicBool::new(false),
            #[cfg(test)]
            spoiled: AtomicBool::new(false),
        }
    }
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<MemoryFile>>> {
        // No code of ours panics with the lock held and the map half changed.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directories(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn create(files: &mut BTreeMap<PathBuf, Arc<MemoryFile>>, path: &Path, contents: Vec<u8>) {
        let inode = files.values().map(|file| file.inode).max().unwrap_or(0) + 1;
        files.insert(path.to_owned(), Arc::new(MemoryFile::new(inode, contents)));
    }

    /// From now on all reads of a file fail.
    #[cfg(test)]
    pub(crate) fn spoil(&self, path: &Path) {
        self.files()[path].spoiled.store(true, Ordering::Relaxed);
    }

    /// From now on a directory is a file system of its own, to which no file is moved from
    /// elsewhere, and which has room for so many bytes. An empty file takes one.
    #[cfg(test)]
    pub(crate) fn leave_room(&self, directory: &Path, len: u64, kind: io::ErrorKind) {
        let len = Mutex::new(len);
        let room = Some((directory.to_owned(), Arc::new(Room { len, kind })));
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }

    /// Whether a sync of a directory fails from now on.
    #[cfg(test)]
    pub(crate) fn forget_names(&self, forgets: bool) {
        self.forgets_names.store(forgets, Ordering::Relaxed);
    }

    /// There is room again.
    #[cfg(test)]
    pub(crate) fn make_room(&self) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    #[cfg(test)]
    fn room_at(&self, path: &Path) -> Option<Arc<Room>> {
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let room = room.as_ref().filter(|it| path.starts_with(&it.0));
        room.map(|it| it.1.clone())
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        #[cfg(test)]
        let room = self.room_at(path).filter(|_| mode == OpenMode::CreateNew);
        let mut files = self.files();
        if mode == OpenMode::CreateNew {
            if files.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            #[cfg(test)]
            room.as_ref().map_or(Ok(()), |room| room.take(1))?;
            Self::create(&mut files, path, Vec::new());
        }
        let file = files.get(path).ok_or(io::ErrorKind::NotFound)?.clone();
        Ok(Arc::new(Handle {
            file,
            holds_lock: AtomicBool::new(false),
            #[cfg(test)]
            room,
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self
            .files()
            .get(path)
            .ok_or(io::ErrorKind::NotFound)?
            .clone();
        Ok(file
            .contents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    fn replace(&self, path: &Path, contents: &[&[u8]]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(room) = self.room_at(path) {
            room.take(contents.concat().len())?;
        }
        Self::create(&mut self.files(), path, contents.concat());
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files().remove(path);
        Ok(())
    }

    fn identify(&self, path: &Path) -> io::Result<FileId> {
        let files = self.files();
        let inode = match files.get(path) {
            Some(file) => file.inode,
            None if self.directories().contains(path) => 0,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(FileId { device: 0, inode })
    }

    fn sync_directory_of(&self, _path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.forgets_names.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn open_unnamed(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(nothing())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let (files, directories) = (self.files(), self.directories());
        if !directories.contains(directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = files.keys().chain(directories.iter());
        let within = all.filter(|path| path.parent() == Some(directory));
        let names = within.filter_map(|path| path.file_name());
        Ok(names.map(OsString::from).collect())
    }

    fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut directories = self.directories();
        let ancestors = path.ancestors().filter(|path| *path != Path::new(""));
        let missing: Vec<PathBuf> = ancestors
            .take_while(|path| !directories.contains(*path))
            .map(Path::to_owned)
            .collect();
        directories.extend(missing.iter().cloned());
        Ok(missing)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.room_at(to).is_some() && self.room_at(from).is_none() {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        let mut files = self.files();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(test)]
        if let Some(room) = self.room_at(to) {
            if self.room_at(from).is_none() {
                return Err(io::ErrorKind::CrossesDevices.into());
            }
            room.take(1)?;
        }
        let mut files = self.files();
        if files.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = files.get(from).ok_or(io::ErrorKind::NotFound)?.clone();
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        self.files().remove(path);
        Ok(())
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.directories().retain(|name| !name.starts_with(path));
        self.files().retain(|name, _| !name.starts_with(path));
        Ok(())
    }

    fn set_read_only(&self, _path: &Path, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl File for Handle {
    fn id(&self) -> io::Result<FileId> {
        Ok(FileId {
            device: 0,
            inode: self.file.inode,
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self
            .file
            .contents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        #[cfg(test)]
        if self.file.spoiled.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let contents = self.file.contents.read();
        Ok(read(
            &contents.unwrap_or_else(PoisonError::into_inner),
            buf,
            pos,
        ))
    }

    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        match self.file.contents.try_read() {
            Ok(contents) => Ok(read(&contents, buf, pos)),
            // A worker writes, which for a large file may take a while.
            Err(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(room) = &self.room {
            room.take(bufs.iter().map(|buf| buf.len()).sum())?;
        }
        let mut contents = self
            .file
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut pos = usize::try_from(pos).map_err(|_| io::ErrorKind::FileTooLarge)?;
        for buf in bufs {
            let end = pos
                .checked_add(buf.len())
                .ok_or(io::ErrorKind::FileTooLarge)?;
            if contents.len() < end {
                contents.resize(end, 0);
            }
            contents[pos..end].copy_from_slice(buf);
            pos = end;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.file
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .resize(len, 0);
        Ok(())
    }

    fn allocate(&self, _pos: u64, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(room) = &self.room {
            // It is taken when something is written there.
            room.has(len)?;
        }
        #[cfg(not(test))]
        let _ = len;
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let taken = !self.file.locked.swap(true, Ordering::AcqRel);
        if taken {
            self.holds_lock.store(true, Ordering::Release);
        }
        Ok(taken)
    }

    fn unlock(&self) -> io::Result<()> {
        if self.holds_lock.swap(false, Ordering::AcqRel) {
            self.file.locked.store(false, Ordering::Release);
        }
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if *self.holds_lock.get_mut() {
            self.file.locked.store(false, Ordering::Release);
        }
    }
}

fn read(contents: &[u8], buf: &mut [u8], pos: u64) -> usize {
    let pos = usize::try_from(pos)
        .unwrap_or(usize::MAX)
        .min(contents.len());
    let len = buf.len().min(contents.len() - pos);
    buf[..len].copy_from_slice(&contents[pos..pos + len]);
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_what_is_written_and_its_lock_ends_with_its_handle() {
        let disk = MemoryDisk::new();
        let path = Path::new("file");
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        file.write_at(&mut [IoSlice::new(b"ab"), IoSlice::new(b"cd")], 1)
            .unwrap();
        assert_eq!(disk.read(path).unwrap(), b"\0abcd");
        let mut buf = [0; 9];
        assert_eq!(file.read_at(&mut buf, 3).unwrap(), 2);
        assert_eq!(file.read_at(&mut buf, 99).unwrap(), 0);
        assert!(file.try_lock().unwrap());
        assert!(
            !disk
                .open(path, OpenMode::Write)
                .unwrap()
                .try_lock()
                .unwrap()
        );
        drop(file);
        assert!(
            disk.open(path, OpenMode::Write)
                .unwrap()
                .try_lock()
                .unwrap()
        );
    }
}
