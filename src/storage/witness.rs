//! Transactions that need one sync only: each sector of theirs shows whether it was written.
//!
//! Before a sync a disk may have kept any sectors of what was written, and those that it has not
//! kept read as zeros where the file has grown. The usual remedy is a second sync, for a status
//! that says that all is there (`batch`). It is not needed if no sector of a transaction is all
//! zeros: then what is missing can be seen. That holds for nearly all transactions. Those for which
//! it was found to hold, before they were written, are *witnessed*, and opening has to tell them
//! from all others, which may have empty sectors and be whole:
//!
//! - Their tids say so: the last ten bits of a tid, which as a time are 14 µs, are eight bits made
//!   of the others, and two of which batch it is (`Mark`). Other transactions of ours have no
//!   such tids.
//! - A small file beside the data file, the *witness*, says from which position on that is to be
//!   believed, and in which file: tids of other servers are of any kind. It is there while a
//!   server of ours has the data file open, and after a crash.
//!
//! Which file that is tell its inode and the tid of the transaction in front of the position: where
//! a file is put in the place of another it often gets the inode of that. Not the number of the
//! device, which may be another one after the next start of the machine. And if another server has
//! written to the file since, what it holds from there on is not ours: `Data.fs.lock` says who was
//! the last (see `recover`).
//!
//! ```text
//! standby-witness 1 from 0000000000001f40 after 040a3c5e11d2f7a9 of 000000000004c1d2
//! inverted fbb5e7ea0d1c0d84
//! ```

use std::io;
use std::path::Path;

use super::disk::{Disk, File, with_suffix};
use super::error::{ReadError, StorageError};
use super::iterate::Backwards;
use crate::ids::Tid;

/// What is appended to the name of the data file.
pub const SUFFIX: &str = ".witness";

/// What a disk writes whole or not at all, at least, in bytes.
const SECTOR_LEN: u64 = 512;

const MARK_BITS: u32 = 2;
const TAG_BITS: u32 = 8 + MARK_BITS;

/// What the tid of a witnessed transaction tells of its batch, in two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Number of the batch, of which only the last bit is kept.
    pub(super) batch: u64,
    /// It is the first of its batch: all before it was on stable storage when it was written.
    pub(super) is_first: bool,
}

/// From where on in which file witnessed transactions are to be believed to be such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witness {
    /// The file.
    pub inode: u64,
    /// The position.
    pub pos: u64,
    /// Tid of the transaction that ends there; zero if there is none.
    pub tid: Tid,
}

impl Witness {
    /// What stands beside the data file at `data_path`; `None` if there is nothing, or nothing that
    /// is understood.
    pub fn load(disk: &dyn Disk, data_path: &Path) -> Result<Option<Self>, StorageError> {
        let path = with_suffix(data_path, SUFFIX);
        match disk.read(&path) {
            Ok(text) => Ok(Self::decode(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io("read", &path)(error)),
        }
    }

    fn decode(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        let rest = text.strip_prefix("standby-witness 1 from ")?;
        let mut words = rest.split_ascii_whitespace();
        let pos = number(words.next()?)?;
        let tid = Tid(number(words.nth(1)?)?);
        let inode = number(words.nth(1)?)?;
        let witness = Self { inode, pos, tid };
        // Which also checks the second line, and that nothing follows.
        (witness.encode() == text).then_some(witness)
    }

    /// Whether it is of this file, as far as that shows: an error says no, since it comes up
    /// again when the file is scanned.
    pub(super) fn is_of(&self, file: &dyn File) -> bool {
        let is_inode = file.id().is_ok_and(|id| id.inode == self.inode);
        let is_within = file.len().is_ok_and(|len| self.pos <= len);
        is_inode && is_within && tid_before(file, self.pos).is_ok_and(|tid| tid == self.tid)
    }

    /// Writes it; it is on stable storage when this returns.
    pub fn save(&self, disk: &dyn Disk, data_path: &Path) -> Result<(), StorageError> {
        let path = with_suffix(data_path, SUFFIX);
        disk.replace(&path, &[self.encode().as_bytes()])
            .map_err(StorageError::io("write", &path))
    }

    fn encode(&self) -> String {
        let Self { inode, pos, tid } = self;
        let inverted = !(pos ^ tid.0.rotate_left(16) ^ inode.rotate_left(32));
        format!(
            "standby-witness 1 from {pos:016x} after {tid} of {inode:016x}\n\
             inverted {inverted:016x}\n"
        )
    }
}

fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Tid of the transaction that ends at `pos`; zero if that is the beginning of the file.
pub(super) fn tid_before(file: &dyn File, pos: u64) -> Result<Tid, ReadError> {
    let last = Backwards::new(file, pos).next().transpose()?;
    Ok(last.map_or(Tid::ZERO, |txn| txn.header.tid))
}

/// What the tid of a witnessed transaction says; `None` if it is no such tid.
pub(super) const fn mark_of(tid: Tid) -> Option<Mark> {
    let tag = tid.0 & ((1 << TAG_BITS) - 1);
    if tag >> MARK_BITS != hash(tid.0 >> TAG_BITS) {
        return None;
    }
    Some(Mark {
        batch: tag >> 1 & 1,
        is_first: tag & 1 == 1,
    })
}

/// The first tid from `tid` on for a witnessed transaction with this mark.
pub(super) const fn witnessed_from(tid: Tid, mark: Mark) -> Tid {
    let mark = (mark.batch & 1) << 1 | mark.is_first as u64;
    let mut base = tid.0 >> TAG_BITS;
    loop {
        let candidate = base << TAG_BITS | hash(base) << MARK_BITS | mark;
        if candidate >= tid.0 {
            return Tid(candidate);
        }
        base += 1;
    }
}

/// The first tid from `tid` on for another transaction.
pub(super) const fn unwitnessed_from(mut tid: Tid) -> Tid {
    while mark_of(tid).is_some() {
        tid = Tid(tid.0 + 1);
    }
    tid
}

/// Eight bits of all (Knuth, TAOCP 6.4: multiplicative hashing).
const fn hash(base: u64) -> u64 {
    base.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56
}

/// Looks for sectors of which nothing was written: the part that is asked for is all zeros.
#[derive(Debug)]
pub(super) struct Sectors {
    pos: u64,
    /// Of the sector that `pos` is in, what has been looked at is empty.
    is_empty: bool,
    found: bool,
}

impl Sectors {
    /// From this position of the file on.
    pub(super) const fn from(pos: u64) -> Self {
        Self {
            pos,
            is_empty: true,
            found: false,
        }
    }

    /// Bytes from `pos` to the end of its sector.
    pub(super) const fn room_at(pos: u64) -> usize {
        (SECTOR_LEN - pos % SECTOR_LEN) as usize
    }

    /// The bytes that are next.
    pub(super) fn look_at(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.found {
            let len = bytes.len().min(Self::room_at(self.pos));
            let (sector, rest) = bytes.split_at(len);
            self.is_empty &= sector.iter().all(|byte| *byte == 0);
            self.pos += len as u64;
            if self.pos.is_multiple_of(SECTOR_LEN) {
                self.found = self.is_empty;
                self.is_empty = true;
            }
            bytes = rest;
        }
    }

    /// Whether there was one, when all has been looked at.
    pub(super) const fn found(self) -> bool {
        self.found || self.is_empty && !self.pos.is_multiple_of(SECTOR_LEN)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::storage::memory::MemoryDisk;

    #[test]
    fn a_tid_tells_whether_its_transaction_is_witnessed_and_in_which_batch() {
        let mut tid = Tid::from_unix_time(Duration::from_secs(1_800_000_000));
        let start = tid;
        for number in 0..2000 {
            let batch = number % 2;
            let is_first = number % 3 == 0;
            let mark = Mark { batch, is_first };
            let next = witnessed_from(tid, mark);
            assert!(next >= tid && next.0 - tid.0 < 2 << TAG_BITS);
            assert_eq!(mark_of(next), Some(mark));
            assert_eq!(witnessed_from(next, mark), next);
            let other = unwitnessed_from(next);
            assert!(other > next && other.0 - next.0 <= 4);
            assert_eq!(mark_of(other), None);
            assert_eq!(unwitnessed_from(other), other);
            tid = next.next();
        }
        // Not more than one in 256 by chance.
        let by_chance = (0..100_000).filter(|at| mark_of(Tid(start.0 + at * 977)).is_some());
        assert!((200..600).contains(&by_chance.count()));
    }

    #[test]
    fn a_sector_of_which_nothing_was_written_is_found() {
        let found = |pos, bytes: &[u8]| {
            let mut sectors = Sectors::from(pos);
            for piece in bytes.chunks(7) {
                sectors.look_at(piece);
            }
            sectors.found()
        };
        let mut bytes = vec![1; 2000];
        assert!(!found(100, &bytes));
        assert!(!found(0, &[]));
        // Of 100 to 512 all but one, all, and one of the next sector.
        bytes[1..412].fill(0);
        assert!(!found(100, &bytes));
        bytes[0] = 0;
        assert!(found(100, &bytes));
        assert!(!found(99, &bytes));
        bytes[0..412].fill(1);
        bytes[412..924].fill(0);
        assert!(found(100, &bytes));
        assert!(!found(99, &bytes) && !found(101, &bytes));
        bytes[412..924].fill(1);
        // The last sector, of which there are 52 bytes.
        bytes[1948..].fill(0);
        assert!(found(100, &bytes));
        bytes[1999] = 1;
        assert!(!found(100, &bytes));
    }

    #[test]
    fn a_witness_is_read_as_it_was_written_or_not_at_all() {
        let disk = MemoryDisk::new();
        let path = Path::new("Data.fs");
        assert_eq!(Witness::load(&disk, path).unwrap(), None);
        let witness = Witness {
            inode: u64::MAX,
            pos: 8000,
            tid: Tid(0x040a_3c5e_11d2_f7a9),
        };
        witness.save(&disk, path).unwrap();
        assert_eq!(Witness::load(&disk, path).unwrap(), Some(witness));
        let text = witness.encode().into_bytes();
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            disk.replace(Path::new("Data.fs.witness"), &[&damaged])
                .unwrap();
            assert_eq!(Witness::load(&disk, path).unwrap(), None, "{at}");
            disk.replace(Path::new("Data.fs.witness"), &[&text[..at]])
                .unwrap();
            assert_eq!(Witness::load(&disk, path).unwrap(), None, "{at}");
        }
    }
}
