//! A new file that is written from front to back, beside the one that it shall replace.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::disk::File;

/// Bytes written at once, and so the least that a sync has to bring to the disk.
pub(super) const WRITE_LEN: usize = 1 << 20;

/// The new file in the making. It is synced as it grows: what others' syncs may have to wait for,
/// since a file system has one journal and a disk one queue, is never more than `sync_len`.
#[derive(Debug)]
pub(super) struct Output {
    file: Arc<dyn File>,
    /// Bytes in the file; those in `buf` follow.
    written: u64,
    unsynced: u64,
    sync_len: u64,
    buf: Vec<u8>,
}

impl Output {
    /// `file` is empty.
    pub(super) fn new(file: Arc<dyn File>, sync_len: u64) -> Self {
        Self {
            file,
            written: 0,
            unsynced: 0,
            sync_len,
            buf: Vec::with_capacity(2 * WRITE_LEN),
        }
    }

    /// Length of the file with all that was put.
    pub(super) fn end(&self) -> u64 {
        self.written + self.buf.len() as u64
    }

    /// Appends.
    pub(super) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buf.extend_from_slice(bytes);
        self.write_if_much()
    }

    /// Appends `len` bytes that `fill` writes; it says how many it had, and these are what is
    /// appended.
    pub(super) fn put_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let from = self.buf.len();
        self.buf.resize(from + len, 0);
        let filled = fill(&mut self.buf[from..]);
        let len = *filled.as_ref().unwrap_or(&0);
        self.buf.truncate(from + len);
        filled?;
        self.write_if_much()?;
        Ok(len)
    }

    /// Changes a number that was put before.
    pub(super) fn patch(&mut self, pos: u64, number: u64) -> io::Result<()> {
        let bytes = number.to_be_bytes();
        let at = pos.checked_sub(self.written);
        if let Some(at) = at.and_then(|at| usize::try_from(at).ok()) {
            self.buf[at..at + bytes.len()].copy_from_slice(&bytes);
            return Ok(());
        }
        self.write()?;
        self.file.write_at(&mut [IoSlice::new(&bytes)], pos)
    }

    /// Hands all that was put to the system, so that it can be read; up to where it can.
    pub(super) fn write(&mut self) -> io::Result<u64> {
        if !self.buf.is_empty() {
            self.file
                .write_at(&mut [IoSlice::new(&self.buf)], self.written)?;
            self.unsynced += self.buf.len() as u64;
            self.written = self.end();
            self.buf.clear();
        }
        Ok(self.written)
    }

    /// Returns when all that was put is on stable storage.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.write()?;
        self.file.sync()?;
        self.unsynced = 0;
        Ok(())
    }

    /// The file.
    pub(super) const fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    fn write_if_much(&mut self) -> io::Result<()> {
        if self.buf.len() < WRITE_LEN {
            return Ok(());
        }
        self.write()?;
        if self.unsynced >= self.sync_len {
            self.sync()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Disk, OpenMode};
    use crate::storage::memory::MemoryDisk;

    #[test]
    fn what_is_put_is_what_the_file_holds() {
        let disk = MemoryDisk::new();
        let path = std::path::Path::new("file");
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        let mut output = Output::new(file, 2 * WRITE_LEN as u64);
        let mut model = Vec::new();
        for n in 0..5u64 {
            let piece = vec![n as u8; WRITE_LEN / 2 + 1];
            output.put(&piece).unwrap();
            model.extend(piece);
            let len = output.put_with(100, |buf| {
                buf[..40].fill(99);
                Ok(40)
            });
            assert_eq!(len.unwrap(), 40);
            model.extend([99; 40]);
            output
                .put_with(100, |_| Err(io::ErrorKind::Other.into()))
                .unwrap_err();
            // One that is in the file by now, one across what is, and one that is not.
            for pos in [7, model.len() - 44, model.len() - 8] {
                output.patch(pos as u64, n).unwrap();
                model[pos..pos + 8].copy_from_slice(&n.to_be_bytes());
            }
            assert_eq!(output.end(), model.len() as u64);
        }
        assert!(output.unsynced < 2 * WRITE_LEN as u64 + WRITE_LEN as u64);
        assert_eq!(output.write().unwrap(), model.len() as u64);
        assert_eq!(disk.read(path).unwrap(), model);
        output.sync().unwrap();
        assert_eq!(output.unsynced, 0);
    }
}
