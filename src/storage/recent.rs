//! What the last transactions changed, for clients that come back with a cache.
//!
//! Found while clients are served already: a hundred transactions may be gigabytes, and a start has
//! no time for that.

use std::sync::Arc;

use super::disk::File;
use super::error::ReadError;
use super::format::Status;
use super::iterate::{Backwards, Transactions};
use crate::ids::{Oid, Tid};

/// Transactions that are counted in one slice; each is three short reads.
const COUNTED_PER_SLICE: usize = 1000;

/// Bytes whose records are looked at in one slice, which takes some milliseconds. Whoever stops
/// waits for that long.
const SLICE_LEN: u64 = 8 << 20;

/// Bytes read at once: little, since a reader's memory is not given back to the system.
const WINDOW_LEN: usize = 64 * 1024;

/// The objects that a transaction changed, in a byte or two each where oids are dense: of a hundred
/// transactions with ten thousand each a million would have to be remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Differences of the sorted oids, seven bits a byte, the lowest first; all bytes of one but
    /// its last have their highest bit set.
    differences: Box<[u8]>,
}

impl Changed {
    /// These objects; each counts once.
    pub fn new(mut oids: Vec<Oid>) -> Self {
        oids.sort_unstable();
        oids.dedup();
        let mut differences = Vec::with_capacity(oids.len() + 8);
        let mut last = 0;
        for oid in oids {
            let mut difference = oid.0 - last;
            last = oid.0;
            while difference >= 0x80 {
                differences.push(difference as u8 | 0x80);
                difference >>= 7;
            }
            differences.push(difference as u8);
        }
        Self {
            differences: differences.into(),
        }
    }

    /// The objects, sorted.
    pub fn iter(&self) -> impl Iterator<Item = Oid> {
        let mut bytes = self.differences.iter();
        let mut last = 0;
        std::iter::from_fn(move || {
            let mut difference = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes.next()?;
                difference |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            last += difference;
            Some(Oid(last))
        })
    }
}

/// Reads, in slices, what the last transactions of a file changed.
#[derive(Debug)]
pub struct RecentReader {
    file: Arc<dyn File>,
    tail: u64,
    /// So many are wanted however old they are,
    count: usize,
    /// and all from this one on however many they are.
    oldest: Tid,
    stage: Stage,
    /// Oldest first.
    found: Vec<(Tid, Changed)>,
}

/// How far it has come.
#[derive(Debug)]
enum Stage {
    /// So many were counted, back to `pos`.
    Count { counted: usize, pos: u64 },
    /// Those before `pos` are known.
    Read { pos: u64 },
}

/// What a slice came to.
#[derive(Debug)]
pub enum Recent {
    /// There is more to do.
    More(Box<RecentReader>),
    /// The transactions, oldest first.
    Found(Vec<(Tid, Changed)>),
}

impl RecentReader {
    /// For the last `count` transactions before `tail`, and all from the tid `oldest` on.
    pub fn new(file: Arc<dyn File>, tail: u64, count: usize, oldest: Tid) -> Self {
        Self {
            file,
            tail,
            count,
            oldest,
            stage: Stage::Count {
                counted: 0,
                pos: tail,
            },
            found: Vec::new(),
        }
    }

    /// Does one slice.
    ///
    /// # Errors
    ///
    /// The file is damaged or cannot be read there.
    pub fn slice(mut self: Box<Self>) -> Result<Recent, ReadError> {
        match self.stage {
            Stage::Count { counted, pos } => self.count(counted, pos)?,
            Stage::Read { pos } => self.read(pos)?,
        }
        match self.stage {
            Stage::Read { pos } if pos >= self.tail => Ok(Recent::Found(self.found)),
            _ => Ok(Recent::More(self)),
        }
    }

    fn count(&mut self, mut counted: usize, mut pos: u64) -> Result<(), ReadError> {
        let file = self.file.clone();
        let mut txns = Backwards::new(&*file, pos);
        for _ in 0..COUNTED_PER_SLICE {
            match txns.next().transpose()? {
                Some(txn) if counted < self.count || txn.header.tid >= self.oldest => {
                    pos = txn.pos;
                    counted += 1;
                }
                _ => {
                    self.stage = Stage::Read { pos };
                    return Ok(());
                }
            }
        }
        self.stage = Stage::Count { counted, pos };
        Ok(())
    }

    fn read(&mut self, mut pos: u64) -> Result<(), ReadError> {
        let end = pos + SLICE_LEN;
        let mut txns = Transactions::with_window(self.file.clone(), pos, self.tail, WINDOW_LEN);
        while pos < end
            && let Some(txn) = txns.next().transpose()?
        {
            pos = txn.end();
            if txn.header.status != Status::Undone {
                let records = txns.records(&txn);
                let oids: Result<_, ReadError> =
                    records.map(|record| Ok(record?.header.oid)).collect();
                self.found.push((txn.header.tid, Changed::new(oids?)));
            }
        }
        self.stage = Stage::Read { pos };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::Content::Data;
    use crate::storage::testing::{DataFile, TestDir};

    fn changed(oids: &[u64]) -> Changed {
        Changed::new(oids.iter().copied().map(Oid).collect())
    }

    fn read(file: &Arc<dyn File>, end: u64, count: usize, oldest: u64) -> Vec<(u64, Changed)> {
        let reader = RecentReader::new(file.clone(), end, count, Tid(oldest));
        let mut recent = Recent::More(Box::new(reader));
        loop {
            match recent {
                Recent::More(reader) => recent = reader.slice().unwrap(),
                Recent::Found(found) => {
                    return found.into_iter().map(|(tid, it)| (tid.0, it)).collect();
                }
            }
        }
    }

    #[test]
    fn changed_objects_are_remembered_once_and_in_order() {
        let oids = [7, 0, u64::MAX, 1 << 40, 7, 8, 135, 136, 1 << 14];
        let sorted = [0, 7, 8, 135, 136, 1 << 14, 1 << 40, u64::MAX].map(Oid);
        assert!(changed(&oids).iter().eq(sorted));
        assert_eq!(changed(&[]).iter().next(), None);
        let dense: Vec<u64> = (5_000_000..5_010_000).collect();
        assert_eq!(changed(&dense).differences.len(), 10_003);
    }

    #[test]
    fn the_last_changes_leave_out_what_was_undone_in_place() {
        let dir = TestDir::new();
        let mut data_file = DataFile::new();
        for (tid, status) in [(10, ' '), (20, 'u'), (30, 'p'), (40, ' ')] {
            let status = Status::from_byte(status as u8);
            data_file.txn(tid, status, "", &[(tid, Data(b"x")), (1, Data(b"y"))]);
        }
        let file = data_file.save(&dir.path("Data.fs"));
        let changes = |count, oldest| read(&file, data_file.end(), count, oldest);
        let of = |tid| (tid, changed(&[1, tid]));
        assert_eq!(changes(0, u64::MAX), []);
        assert_eq!(changes(2, u64::MAX), [of(30), of(40)]);
        assert_eq!(changes(99, u64::MAX), [of(10), of(30), of(40)]);
        assert_eq!(changes(1, 30), [of(30), of(40)]);
    }

    #[test]
    fn many_transactions_are_read_in_slices() {
        let dir = TestDir::new();
        let mut data_file = DataFile::new();
        let long = vec![7; 100_000];
        let count = 2 * COUNTED_PER_SLICE as u64 + 3;
        for tid in 1..=count {
            let data = if tid.is_multiple_of(10) {
                &long[..]
            } else {
                b"short"
            };
            data_file.txn(tid, Status::Finished, "", &[(tid, Data(data))]);
        }
        let file = data_file.save(&dir.path("Data.fs"));
        assert!(data_file.end() > 2 * SLICE_LEN);
        let found = read(&file, data_file.end(), usize::MAX, u64::MAX);
        assert!(
            found
                .into_iter()
                .eq((1..=count).map(|tid| (tid, changed(&[tid]))))
        );
    }
}
