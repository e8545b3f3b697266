//! A copy of a data file as of a transaction: its beginning. What is behind it changes nothing in
//! front of it, so the copy is what the file was then, unless it was packed since.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::disk::File;
use super::error::ReadError;
use super::format::Status;
use super::iterate::{Backwards, Transactions};
use crate::ids::Tid;

/// Where a copy ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its length in bytes.
    pub len: u64,
    /// Its last transaction; zero if it has none.
    pub last: Tid,
    /// The file was packed as of a later time: what was deleted or changed in between is not in it.
    pub is_packed: bool,
}

/// Finds where the copy as of `tid` ends, of a file that ends at `tail`.
///
/// # Errors
///
/// The file cannot be read there, or contradicts itself.
pub fn find(file: &Arc<dyn File>, tid: Tid, tail: u64) -> Result<Prefix, ReadError> {
    let mut txns = Transactions::from_tid(file.clone(), tid.next(), tail)?;
    let len = txns.pos();
    let next = txns.next().transpose()?;
    let last = Backwards::new(&**file, len).next().transpose()?;
    Ok(Prefix {
        len,
        last: last.map_or(Tid::ZERO, |txn| txn.header.tid),
        // A pack marks all that it goes through, up to its time.
        is_packed: next.is_some_and(|txn| txn.header.status == Status::Packed),
    })
}

/// Copies the first `len` bytes. `pace` is told how many more there are, waits if that is too fast,
/// and says whether to go on; `false` if it did not. Nothing is synced.
///
/// # Errors
///
/// `from` cannot be read, or ends before that, or `to` cannot be written.
pub fn copy(
    from: &dyn File,
    to: &dyn File,
    len: u64,
    pace: &mut dyn FnMut(u64) -> bool,
) -> io::Result<bool> {
    let mut piece = vec![0; PIECE_LEN];
    let mut pos = 0;
    while pos < len {
        let some = usize::try_from(len - pos).map_or(PIECE_LEN, |left| left.min(PIECE_LEN));
        if from.read_at(&mut piece[..some], pos)? < some {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_at(&mut [IoSlice::new(&piece[..some])], pos)?;
        pos += some as u64;
        if !pace(some as u64) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Bytes that are in memory at a time.
const PIECE_LEN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::disk::{Disk, OpenMode};
    use crate::storage::memory::MemoryDisk;
    use crate::storage::testing::Content::Data;
    use crate::storage::testing::{DataFile, TestDir};

    #[test]
    fn a_copy_ends_behind_the_last_transaction_that_is_not_later() {
        let mut file = DataFile::new();
        let mut ends = vec![(0, 4)];
        for tid in [10, 20, 30] {
            file.txn(tid, Status::Finished, "", &[(1, Data(b"a"))]);
            ends.push((tid, file.end()));
        }
        let directory = TestDir::new();
        let saved = file.save(&directory.path("Data.fs"));
        for tid in 0..40 {
            let (last, len) = *ends.iter().rfind(|(last, _)| *last <= tid).unwrap();
            let found = find(&saved, Tid(tid), file.end()).unwrap();
            let expected = Prefix {
                len,
                last: Tid(last),
                is_packed: false,
            };
            assert_eq!(found, expected, "{tid}");
        }
        let disk = MemoryDisk::new();
        let path = Path::new("copy");
        let to = disk.open(path, OpenMode::CreateNew).unwrap();
        let len = file.end() - 3;
        assert!(!copy(&*saved, &*to, len, &mut |_| false).unwrap());
        assert!(copy(&*saved, &*to, len, &mut |more| more == len).unwrap());
        assert_eq!(disk.read(path).unwrap(), file.bytes[..file.bytes.len() - 3]);
        let error = copy(&*saved, &*to, file.end() + 1, &mut |_| true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn how_it_was_before_a_pack_is_not_there() {
        let mut file = DataFile::new();
        for (tid, status) in [
            (10, Status::Packed),
            (20, Status::Packed),
            (30, Status::Finished),
        ] {
            file.txn(tid, status, "", &[(1, Data(b"a"))]);
        }
        let directory = TestDir::new();
        let saved = file.save(&directory.path("Data.fs"));
        let is_packed = |tid| find(&saved, Tid(tid), file.end()).unwrap().is_packed;
        assert_eq!(
            [5, 10, 15, 20, 25, 30].map(is_packed),
            [true, true, true, false, false, false]
        );
    }
}
