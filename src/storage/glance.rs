//! The short way to a current revision: one read into a buffer that is there already.
//!
//! Nearly every load is of an object's current revision, which is short and in memory. That can be
//! seen by a glance; whatever else may be the case (an older revision is wanted, the data are
//! another record's, they are long, not in memory, damaged) is left to [`read`](super::read),
//! which has the last word on what a load means.

use super::disk::File;
use super::format::{DATA_HEADER_LEN, DataHeader, POINTER_LEN};
use crate::ids::{Oid, Tid};
use crate::limits::GLANCED_LEN_MAX;

/// A revision that a glance has shown. It is the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse<'a> {
    /// The object's state, as long as nothing else is looked at.
    pub data: &'a [u8],
    /// The revision.
    pub serial: Tid,
}

/// The buffer, and how much of it one read should fill.
#[derive(Debug)]
pub(super) struct Glance {
    /// [`GLANCED_LEN_MAX`] bytes.
    buf: Box<[u8]>,
    /// How much is read at once: few records are longer. Reading one in two steps takes nearly
    /// twice as long; reading too much takes memory bandwidth, and may touch a page that is not in
    /// memory. `LEN_MIN <= usual_len <= buf.len()`
    usual_len: usize,
}

/// The shortest read.
const LEN_MIN: usize = 256;

/// How fast the usual length follows the records: up by so many bytes at one that is longer,
const STEP_UP: usize = 256;

/// and down by so many at one that is shorter by more than that step: where lengths vary, one
/// record in seventeen is longer; where they do not, none.
const STEP_DOWN: usize = STEP_UP / 16;

impl Glance {
    pub(super) fn new() -> Self {
        Self {
            buf: vec![0; GLANCED_LEN_MAX].into(),
            usual_len: LEN_MIN,
        }
    }

    /// The revision of `oid` that was current just before `before`, if it is the one whose record
    /// is at `pos`. `tail` is the end of what may be seen.
    pub(super) fn look(
        &mut self,
        file: &dyn File,
        tail: u64,
        pos: u64,
        oid: Oid,
        before: Tid,
    ) -> Option<Glimpse<'_>> {
        let left = tail.checked_sub(pos)?;
        let wanted = usize::try_from(left).map_or(self.usual_len, |left| left.min(self.usual_len));
        let held = file.read_at_once(&mut self.buf[..wanted], pos).ok()?;
        let head = self.buf[..held].first_chunk::<DATA_HEADER_LEN>()?;
        let header = DataHeader::decode(head).ok()?;
        // Behind the last record of all there is still the length of its transaction.
        let fits = header.record_len() <= left.checked_sub(POINTER_LEN as u64)?;
        if header.oid != oid || header.tid >= before || header.data_len == 0 || !fits {
            return None;
        }
        let len = usize::try_from(header.record_len()).ok()?;
        self.learn(len);
        if len > held {
            let rest = self.buf.get_mut(held..len)?;
            let read = file.read_at_once(rest, pos + held as u64).ok()?;
            if read < rest.len() {
                return None;
            }
        }
        Some(Glimpse {
            data: &self.buf[DATA_HEADER_LEN..len],
            serial: header.tid,
        })
    }

    /// Takes the length of a record into account.
    fn learn(&mut self, len: usize) {
        if len > self.usual_len {
            self.usual_len = (self.usual_len + STEP_UP).min(self.buf.len());
        } else if self.usual_len > LEN_MIN.max(len) + STEP_UP {
            self.usual_len -= STEP_DOWN;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::storage::disk::FileId;
    use crate::storage::format::Status;
    use crate::storage::read::{Found, Reader, Wait};
    use crate::storage::testing::Content::{Back, Data};
    use crate::storage::testing::{DataFile, TestDir};

    /// A file of which a look shows a part, or nothing, as `parts` says; and counts the looks.
    #[derive(Debug)]
    struct Patchy {
        file: Arc<dyn File>,
        parts: fn(u64) -> Option<usize>,
        looks: AtomicU64,
    }

    impl Patchy {
        fn new(file: Arc<dyn File>, parts: fn(u64) -> Option<usize>) -> Self {
            let looks = AtomicU64::new(0);
            Self { file, parts, looks }
        }

        fn whole(file: Arc<dyn File>) -> Self {
            Self::new(file, |_| Some(usize::MAX))
        }
    }

    impl File for Patchy {
        fn read_at_once(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
            let look = self.looks.fetch_add(1, Ordering::Relaxed);
            match (self.parts)(look) {
                None => Err(io::ErrorKind::WouldBlock.into()),
                Some(len) => {
                    let len = len.min(buf.len());
                    self.file.read_at(&mut buf[..len], pos)
                }
            }
        }

        fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
            self.file.read_at(buf, pos)
        }

        fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
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

    const OBJECTS: u64 = 12;
    const TXNS: u64 = 40;

    /// Objects of all lengths that matter, changed, brought back and deleted; the last transaction
    /// ends where the file does.
    fn histories() -> (DataFile, Vec<Vec<u64>>) {
        let longest = GLANCED_LEN_MAX - DATA_HEADER_LEN;
        let lens = [
            1,
            8,
            LEN_MIN - DATA_HEADER_LEN,
            LEN_MIN,
            1000,
            longest,
            longest + 1,
            20_000,
        ];
        let data = [b'x'; 20_000];
        let mut file = DataFile::new();
        let mut positions: Vec<Vec<u64>> = vec![Vec::new(); OBJECTS as usize];
        for txn in 0..TXNS {
            let oids = (0..OBJECTS).filter(|oid| (oid * 7 + txn * 5) % 4 == 0);
            let records: Vec<_> = oids
                .map(|oid| {
                    let earlier = &positions[oid as usize];
                    let content = match ((oid + txn) % 9, earlier.first()) {
                        (0, Some(_)) => Back(0),
                        (1, Some(first)) => Back(*first),
                        _ => Data(&data[..lens[((oid * 3 + txn) % lens.len() as u64) as usize]]),
                    };
                    (oid, content)
                })
                .collect();
            let places = file.txn(100 + txn * 10, Status::Finished, "", &records);
            for ((oid, _), pos) in records.iter().zip(places) {
                positions[*oid as usize].push(pos);
            }
        }
        (file, positions)
    }

    /// Looks at every object, and at some before all their tids; how often a glance was enough.
    fn compare(file: &dyn File, tail: u64, positions: &[Vec<u64>]) -> usize {
        let reader = Reader {
            file,
            wait: Wait::Yes,
            tail,
        };
        let mut glance = Glance::new();
        let mut enough = 0;
        for round in 0..60 {
            let before = Tid(if round < 50 {
                95 + round * 9
            } else {
                Tid::MAX.0
            });
            for (oid, positions) in positions.iter().enumerate() {
                let oid = Oid(oid as u64);
                let pos = *positions.last().unwrap();
                let Some(shown) = glance.look(file, tail, pos, oid, before) else {
                    continue;
                };
                enough += 1;
                match reader.load_before(pos, oid, before) {
                    Ok(Found::Revision {
                        data,
                        serial,
                        end: None,
                    }) => {
                        assert_eq!((&data[..], serial), (shown.data, shown.serial));
                    }
                    found => panic!("{shown:?} instead of {found:?}"),
                }
            }
        }
        enough
    }

    #[test]
    fn what_a_glance_shows_is_what_a_load_finds() {
        let (data_file, positions) = histories();
        let dir = TestDir::new();
        let file = data_file.save(&dir.path("Data.fs"));
        let whole = compare(&Patchy::whole(file.clone()), data_file.end(), &positions);
        // The ten looks at the end show all but what is deleted, brought back, or too long.
        assert!(whole > 50, "{whole}");
        let parts: [fn(u64) -> Option<usize>; 4] = [
            |_| None,
            |look| (look % 2 == 0).then_some(300),
            |look| Some([1, 41, 42, 43, 500, 8000][(look % 6) as usize]),
            |look| (look % 3 > 0).then_some(10_000),
        ];
        for (n, parts) in parts.into_iter().enumerate() {
            let file = Patchy::new(file.clone(), parts);
            let enough = compare(&file, data_file.end(), &positions);
            assert!(
                enough <= whole && (n == 0) == (enough == 0),
                "{n}: {enough} of {whole}"
            );
        }
    }

    #[test]
    fn what_is_damaged_is_left_to_who_can_tell() {
        let (data_file, positions) = histories();
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let all: Vec<u64> = positions
            .iter()
            .map(|of_one| *of_one.last().unwrap())
            .collect();
        for at in (0..DATA_HEADER_LEN).chain([DATA_HEADER_LEN + 7]) {
            for bits in [1, 0x80, 0xff] {
                let mut damaged = DataFile {
                    bytes: data_file.bytes.clone(),
                    current: data_file.current.clone(),
                };
                for pos in &all {
                    damaged.bytes[*pos as usize + at] ^= bits;
                }
                compare(&*damaged.save(&path), data_file.end(), &positions);
            }
        }
        // A file that ends too early, and positions behind the end.
        let file = data_file.save(&path);
        let last = *all.iter().max().unwrap();
        for tail in [0, 4, last, last + 1, last + 50, data_file.end() - 1] {
            compare(&*file, tail, &positions);
        }
    }

    #[test]
    fn records_of_like_length_take_one_read_each() {
        let mut data_file = DataFile::new();
        let (long, short) = ([b'x'; 3000], [b'y'; 500]);
        let records: Vec<_> = (0..100).map(|oid| (oid, Data(&long))).collect();
        let at_long = data_file.txn(10, Status::Finished, "", &records);
        let records: Vec<_> = (100..200).map(|oid| (oid, Data(&short))).collect();
        let at_short = data_file.txn(20, Status::Finished, "", &records);
        let dir = TestDir::new();
        let file = Patchy::whole(data_file.save(&dir.path("Data.fs")));
        let mut glance = Glance::new();
        let mut looks = |positions: &[u64], first: u64| {
            let before = file.looks.load(Ordering::Relaxed);
            for (oid, pos) in (first..).zip(positions) {
                let shown = glance.look(&file, data_file.end(), *pos, Oid(oid), Tid::MAX);
                assert!(shown.is_some());
            }
            file.looks.load(Ordering::Relaxed) - before
        };
        // It takes a dozen to get used to them.
        assert_eq!(looks(&at_long, 0), 100 + 11);
        assert_eq!(looks(&at_long, 0), 100);
        assert_eq!(looks(&at_short, 100), 100);
        // By then it is used to what is shorter.
        assert_eq!(looks(&at_long[..1], 0), 2);
        assert!(glance.usual_len < 2000);
    }
}
