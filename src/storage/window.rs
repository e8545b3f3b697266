//! A file read from front to back in large pieces: for opening, iterating and the index file.

use std::io;
use std::sync::Arc;

use super::disk::File;

/// Bytes read at once. A disk is at full speed with this much, and skipping over the data of
/// large objects still saves reading most of them.
const WINDOW_LEN: usize = 512 * 1024;

/// The piece of the file that was read last.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn File>,
    /// `buf[..filled]` are the bytes from `pos` on.
    buf: Vec<u8>,
    /// `filled <= buf.len()`
    filled: usize,
    pos: u64,
    /// Bytes read at once, at least.
    len: usize,
}

impl Window {
    pub(super) const fn new(file: Arc<dyn File>) -> Self {
        Self::with_len(file, WINDOW_LEN)
    }

    /// One that reads `len` bytes at once.
    pub(super) const fn with_len(file: Arc<dyn File>, len: usize) -> Self {
        Self {
            file,
            buf: Vec::new(),
            filled: 0,
            pos: 0,
            len,
        }
    }

    pub(super) fn file(&self) -> &dyn File {
        &*self.file
    }

    /// The `len` bytes at `pos`; fewer only where the file ends. The caller bounds `len`: that
    /// much memory is used.
    pub(super) fn bytes(&mut self, pos: u64, len: usize) -> io::Result<&[u8]> {
        let from = match self.held_from(pos) {
            Some(from) if self.filled - from >= len => from,
            _ => {
                self.fill(pos, len.max(self.len))?;
                0
            }
        };
        Ok(&self.buf[from..self.filled.min(from + len)])
    }

    /// As [`Self::bytes`], into memory of its own. Long values are read straight into it.
    pub(super) fn copy(&mut self, pos: u64, len: usize) -> io::Result<Vec<u8>> {
        if len < self.len {
            return Ok(self.bytes(pos, len)?.to_vec());
        }
        let mut copy = vec![0; len];
        let filled = self.file.read_at(&mut copy, pos)?;
        copy.truncate(filled);
        Ok(copy)
    }

    /// Position behind what it holds.
    pub(super) const fn end(&self) -> u64 {
        self.pos + self.filled as u64
    }

    /// Forgets what it holds, which may have changed.
    pub(super) const fn forget(&mut self) {
        self.filled = 0;
    }

    fn held_from(&self, pos: u64) -> Option<usize> {
        let from = usize::try_from(pos.checked_sub(self.pos)?).ok()?;
        (from <= self.filled).then_some(from)
    }

    fn fill(&mut self, pos: u64, len: usize) -> io::Result<()> {
        if self.buf.len() < len {
            self.buf = vec![0; len];
        }
        // Nothing is held if the read fails.
        self.filled = 0;
        self.pos = pos;
        self.filled = self.file.read_at(&mut self.buf, pos)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{Disk, OpenMode, OsDisk};
    use crate::storage::testing::TestDir;

    #[test]
    fn a_window_shows_what_the_file_holds() {
        let dir = TestDir::new();
        let path = dir.path("file");
        let contents: Vec<u8> = (0..2 * WINDOW_LEN + 100).map(|n| (n / 3) as u8).collect();
        OsDisk::default().replace(&path, &[&contents]).unwrap();
        let file = OsDisk::default().open(&path, OpenMode::Read).unwrap();
        let mut window = Window::new(file);
        let end = contents.len();
        for (pos, len) in [
            (0, 10),
            (5, 3),
            (WINDOW_LEN - 2, 10),
            (1, 2 * WINDOW_LEN),
            (end - 4, 10),
            (end, 1),
            (end + 1, 1),
            (0, 1),
        ] {
            let expected = &contents[pos.min(end)..(pos + len).min(end)];
            assert_eq!(window.bytes(pos as u64, len).unwrap(), expected);
            assert_eq!(window.copy(pos as u64, len).unwrap(), expected);
        }
    }
}
