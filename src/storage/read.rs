//! Reading revisions of one object, from its current record backwards.
//!
//! An object's records are linked by `prev`, newest first. A record without data has a back
//! pointer to the record that holds them (or to one with a further back pointer): so an undo
//! brings back old data without a copy. A back pointer of zero says that the object does not exist
//! as of this record: its creation was undone, or it was deleted.
//!
//! Every pointer must lead towards the start of the file, so that no damage can make a loop.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::File;
use super::error::{Damage, Fault, ReadError};
use super::format::{DATA_HEADER_LEN, DataHeader, FIRST_TXN_POS, POINTER_LEN};
use super::history::{Revision, RevisionData};
use super::pieces::LongData;
use crate::ids::{Oid, Tid};
use crate::limits::{FRAME_LEN_MAX, WHOLE_LOAD_LEN_MAX};

/// Bytes read along with a header, as most objects are not longer.
const GUESS_LEN: usize = 4096;

/// Older revisions that are looked at where waiting is not allowed.
const STEPS_NOWAIT_MAX: usize = 32;

/// Bytes that tell all but the data.
const HEAD_LEN: usize = DATA_HEADER_LEN + POINTER_LEN;

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may not: [`ReadError::WouldBlock`] if something is not in memory.
    No,
    /// It may.
    Yes,
}

/// The answer to a load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<D = Bytes> {
    /// The revision that was current at the time asked for.
    Revision {
        /// The object's pickle.
        data: D,
        /// Tid of the transaction that wrote the revision.
        serial: Tid,
        /// Tid of the next revision, if there is one.
        end: Option<Tid>,
    },
    /// All revisions are newer. ZODB answers with `None`.
    NoneBefore,
    /// The object did not exist at the time asked for, though it had existed before. ZODB raises
    /// `POSKeyError`.
    Deleted,
}

/// Data that may be too long to be read at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data(Bytes),
    /// So many bytes from there on.
    Long {
        pos: u64,
        len: u64,
    },
}

/// Where data stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// The transaction that wrote them.
    pub(super) tid: Tid,
    pub(super) data_pos: u64,
    /// Not 0.
    pub(super) data_len: u64,
}

/// Reads records of a data file up to `tail`, the end of the last transaction that may be seen.
/// In all calls `pos` is the position of the object's current record, from the index.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The data file.
    pub file: &'a dyn File,
    /// Whether its calls may wait.
    pub wait: Wait,
    /// No record may reach over this.
    pub tail: u64,
}

impl Reader<'_> {
    /// The revision that was current just before the tid `before`.
    pub fn load_before(&self, pos: u64, oid: Oid, before: Tid) -> Result<Found, ReadError> {
        self.find_before(pos, oid, before, Self::data)
    }

    /// As [`Self::load_before`], but long data are not read.
    pub(super) fn content_before(
        &self,
        pos: u64,
        oid: Oid,
        before: Tid,
    ) -> Result<Found<Content>, ReadError> {
        self.find_before(pos, oid, before, Self::content)
    }

    fn find_before<D>(
        &self,
        pos: u64,
        oid: Oid,
        before: Tid,
        data: impl Fn(&Self, Record) -> Result<Option<D>, ReadError>,
    ) -> Result<Found<D>, ReadError> {
        let (record, newer) = self.walk(pos, oid, |tid| tid < before)?;
        let Some(record) = record else {
            return Ok(Found::NoneBefore);
        };
        let serial = record.header.tid;
        Ok(match data(self, record)? {
            Some(data) => Found::Revision {
                data,
                serial,
                end: newer,
            },
            None => Found::Deleted,
        })
    }

    /// The revision that the transaction `serial` wrote; `None` (`POSKeyError`) if it wrote none,
    /// or undid the object's creation.
    pub fn load_serial(&self, pos: u64, oid: Oid, serial: Tid) -> Result<Option<Bytes>, ReadError> {
        match self.walk(pos, oid, |tid| tid <= serial)? {
            (Some(record), _) if record.header.tid == serial => self.data(record),
            _ => Ok(None),
        }
    }

    /// As [`Self::load_serial`], but long data are not read.
    pub(super) fn content_of_serial(
        &self,
        pos: u64,
        oid: Oid,
        serial: Tid,
    ) -> Result<Option<Content>, ReadError> {
        match self.walk(pos, oid, |tid| tid <= serial)? {
            (Some(record), _) if record.header.tid == serial => self.content(record),
            _ => Ok(None),
        }
    }

    /// The newest record that is `old_enough`, and the tid of the one after it.
    fn walk(
        &self,
        pos: u64,
        oid: Oid,
        old_enough: impl Fn(Tid) -> bool,
    ) -> Result<(Option<Record>, Option<Tid>), ReadError> {
        let mut record = self.record(pos, oid, GUESS_LEN)?;
        let mut newer = None;
        let mut steps = 0;
        while !old_enough(record.header.tid) {
            newer = Some(record.header.tid);
            steps += 1;
            // Even without a wait for the disk a long history takes its time.
            if self.wait == Wait::No && steps > STEPS_NOWAIT_MAX {
                return Err(ReadError::WouldBlock);
            }
            match record.prev()? {
                Some(prev) => record = self.record(prev, oid, GUESS_LEN)?,
                None => return Ok((None, newer)),
            }
        }
        Ok((Some(record), newer))
    }

    /// The serial of the current revision; `None` (`POSKeyError`) if the object does not exist any
    /// more. As in ZODB only the current record itself is looked at.
    pub fn current_tid(&self, pos: u64, oid: Oid) -> Result<Option<Tid>, ReadError> {
        let record = self.record(pos, oid, HEAD_LEN)?;
        let exists = record.header.data_len != 0 || record.back()?.is_some();
        Ok(exists.then_some(record.header.tid))
    }

    /// The tid of the current record, be it a deletion: what a store's serial is compared with.
    pub fn record_tid(&self, pos: u64, oid: Oid) -> Result<Tid, ReadError> {
        Ok(self.record(pos, oid, HEAD_LEN)?.header.tid)
    }

    /// The header of an object's record.
    pub(super) fn header(&self, pos: u64, oid: Oid) -> Result<DataHeader, ReadError> {
        Ok(self.record(pos, oid, HEAD_LEN)?.header)
    }

    /// The data that the record at `pos` has or leads to; `None` if the object does not exist as of
    /// it.
    pub(super) fn data_at(&self, pos: u64, oid: Oid) -> Result<Option<Bytes>, ReadError> {
        self.data(self.record(pos, oid, GUESS_LEN)?)
    }

    /// The record that the transaction `tid` wrote of the object.
    pub(super) fn find(&self, pos: u64, oid: Oid, tid: Tid) -> Result<Option<u64>, ReadError> {
        let (found, _) = self.walk(pos, oid, |found| found <= tid)?;
        let found = found.filter(|record| record.header.tid == tid);
        Ok(found.map(|record| record.pos))
    }

    /// The record that the one at `pos` has its data from: itself, or the one that its back pointer
    /// leads to, without going on from there. `None` if it has a back pointer of zero.
    pub(super) fn nearest_source(&self, pos: u64, oid: Oid) -> Result<Option<u64>, ReadError> {
        let record = self.record(pos, oid, HEAD_LEN)?;
        match record.header.data_len {
            0 => Ok(record.back()?),
            _ => Ok(Some(pos)),
        }
    }

    /// The record that holds the data of the one at `pos`, however many back pointers lead there;
    /// `None` if the object does not exist as of that one.
    pub(super) fn source(&self, pos: u64, oid: Oid) -> Result<Option<Source>, ReadError> {
        let mut record = self.record(pos, oid, HEAD_LEN)?;
        while record.header.data_len == 0 {
            match record.back()? {
                Some(back) => record = self.record(back, oid, HEAD_LEN)?,
                None => return Ok(None),
            }
        }
        Ok(Some(Source {
            tid: record.header.tid,
            data_pos: record.pos + DATA_HEADER_LEN as u64,
            data_len: record.header.data_len,
        }))
    }

    /// The record at `pos`, of whatever object. Its data are those of another transaction if it has
    /// a back pointer. `file` is the reader's.
    pub(super) fn revision(&self, pos: u64, file: &Arc<dyn File>) -> Result<Revision, ReadError> {
        let mut bytes = [0; DATA_HEADER_LEN];
        self.fill(&mut bytes, pos)?;
        let header = DataHeader::decode(&bytes).map_err(|fault| Damage { pos, fault })?;
        let record = self.record(pos, header.oid, GUESS_LEN)?;
        let data_tid = match header.data_len {
            0 => match record.back()? {
                Some(back) => Some(self.record_tid(back, header.oid)?),
                None => None,
            },
            _ => None,
        };
        Ok(Revision {
            oid: header.oid,
            tid: header.tid,
            data: self.content(record)?.map(|content| match content {
                Content::Data(data) => RevisionData::Whole(data),
                Content::Long { pos, len } => {
                    RevisionData::Long(LongData::new(file.clone(), pos, len))
                }
            }),
            data_tid,
            next: pos + header.record_len(),
        })
    }

    /// The data of a record, wherever they are; `None` if the object does not exist as of it.
    fn data(&self, record: Record) -> Result<Option<Bytes>, ReadError> {
        let holder = self.holder(record)?;
        holder.map(|record| self.own_data(record)).transpose()
    }

    /// The same, but long data are not read.
    fn content(&self, record: Record) -> Result<Option<Content>, ReadError> {
        let Some(record) = self.holder(record)? else {
            return Ok(None);
        };
        let len = record.header.data_len;
        Ok(Some(
            match len > WHOLE_LOAD_LEN_MAX as u64 && len <= FRAME_LEN_MAX as u64 {
                true => Content::Long {
                    pos: record.pos + DATA_HEADER_LEN as u64,
                    len,
                },
                false => Content::Data(self.own_data(record)?),
            },
        ))
    }

    /// The record that holds the data of this one.
    fn holder(&self, mut record: Record) -> Result<Option<Record>, ReadError> {
        let mut steps = 0;
        while record.header.data_len == 0 {
            steps += 1;
            // Each undo of an undo makes the way longer.
            if self.wait == Wait::No && steps > STEPS_NOWAIT_MAX {
                return Err(ReadError::WouldBlock);
            }
            match record.back()? {
                Some(back) => record = self.record(back, record.header.oid, GUESS_LEN)?,
                None => return Ok(None),
            }
        }
        Ok(Some(record))
    }

    /// The data that stand in the record itself.
    fn own_data(&self, record: Record) -> Result<Bytes, ReadError> {
        let Record { pos, header, start } = record;
        let max = FRAME_LEN_MAX as u64;
        let fault = Fault::DataLength {
            found: header.data_len,
            max,
        };
        let Some(len) = usize::try_from(header.data_len)
            .ok()
            .filter(|len| *len <= FRAME_LEN_MAX)
        else {
            return Err(Damage { pos, fault }.into());
        };
        let held = start.len() - DATA_HEADER_LEN;
        // Copying takes its time, too.
        if self.wait == Wait::No && len > WHOLE_LOAD_LEN_MAX {
            return Err(ReadError::WouldBlock);
        }
        if held >= len {
            return Ok(start.slice(DATA_HEADER_LEN..DATA_HEADER_LEN + len));
        }
        let mut data = vec![0; len];
        data[..held].copy_from_slice(&start[DATA_HEADER_LEN..]);
        self.fill(&mut data[held..], pos + start.len() as u64)?;
        Ok(data.into())
    }

    /// Header of the record at `pos` and what follows it, up to `len` bytes.
    fn record(&self, pos: u64, oid: Oid, len: usize) -> Result<Record, ReadError> {
        let left = self.tail.saturating_sub(pos);
        // Before anything else: the position may come from a damaged pointer.
        if left < HEAD_LEN as u64 {
            let fault = Fault::Short {
                needed: HEAD_LEN as u64,
                found: left,
            };
            return Err(Damage { pos, fault }.into());
        }
        let mut start = vec![0; len.min(usize::try_from(left).unwrap_or(usize::MAX))];
        self.fill(&mut start, pos)?;
        let mut bytes = [0; DATA_HEADER_LEN];
        bytes.copy_from_slice(&start[..DATA_HEADER_LEN]);
        let header = DataHeader::decode(&bytes).map_err(|fault| Damage { pos, fault })?;
        // Behind the last record of all there is still the length of its transaction.
        let max = left - POINTER_LEN as u64;
        if header.oid != oid {
            let fault = Fault::WrongOid {
                found: header.oid,
                expected: oid,
            };
            return Err(Damage { pos, fault }.into());
        }
        if header.record_len() > max {
            let fault = Fault::RecordLength {
                found: header.record_len(),
                max,
            };
            return Err(Damage { pos, fault }.into());
        }
        Ok(Record {
            pos,
            header,
            start: start.into(),
        })
    }

    fn fill(&self, buf: &mut [u8], pos: u64) -> Result<(), ReadError> {
        let filled = match self.wait {
            Wait::No => self.file.read_at_nowait(buf, pos)?,
            Wait::Yes => self.file.read_at(buf, pos)?,
        };
        if filled < buf.len() {
            let fault = Fault::Short {
                needed: buf.len() as u64,
                found: filled as u64,
            };
            return Err(Damage { pos, fault }.into());
        }
        Ok(())
    }
}

/// A record that has been read in part.
struct Record {
    pos: u64,
    header: DataHeader,
    /// The bytes from `pos` on: [`HEAD_LEN`] of them at least.
    start: Bytes,
}

impl Record {
    /// Position of the object's previous record.
    fn prev(&self) -> Result<Option<u64>, Damage> {
        self.earlier(self.header.prev)
    }

    /// Where the data are, for a record without any of its own.
    fn back(&self) -> Result<Option<u64>, Damage> {
        let mut pointer = [0; POINTER_LEN];
        pointer.copy_from_slice(&self.start[DATA_HEADER_LEN..HEAD_LEN]);
        self.earlier(u64::from_be_bytes(pointer))
    }

    fn earlier(&self, found: u64) -> Result<Option<u64>, Damage> {
        match found {
            0 => Ok(None),
            FIRST_TXN_POS.. if found < self.pos => Ok(Some(found)),
            _ => Err(Damage {
                pos: self.pos,
                fault: Fault::Pointer { found },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::format::Status;
    use crate::storage::testing::Content::{Back, Data};
    use crate::storage::testing::{DataFile, TestDir};

    const OID: Oid = Oid(7);

    /// Created at 10, changed at 20, undone at 30 (data of 10), changed at 40 to something long,
    /// deleted at 50.
    fn history() -> (DataFile, Vec<u64>) {
        let long = [b'x'; 10_000];
        let mut file = DataFile::new();
        let mut positions = Vec::new();
        for (tid, content) in [(10, Data(b"first")), (20, Data(b"second"))] {
            positions.extend(file.txn(tid, Status::Finished, "", &[(7, content)]));
        }
        let undone = Back(positions[0]);
        for (tid, content) in [(30, undone), (40, Data(&long)), (50, Back(0))] {
            positions.extend(file.txn(tid, Status::Finished, "", &[(7, content)]));
        }
        (file, positions)
    }

    fn revision(data: &[u8], serial: u64, end: Option<u64>) -> Found {
        Found::Revision {
            data: Bytes::copy_from_slice(data),
            serial: Tid(serial),
            end: end.map(Tid),
        }
    }

    fn with_reader<T>(data_file: &DataFile, check: impl FnOnce(Reader<'_>) -> T) -> T {
        let dir = TestDir::new();
        let file = data_file.save(&dir.path("Data.fs"));
        check(Reader {
            file: &*file,
            wait: Wait::Yes,
            tail: data_file.end(),
        })
    }

    #[test]
    fn each_revision_is_found_by_time() {
        let (file, positions) = history();
        let current = positions[4];
        with_reader(&file, |reader| {
            let load = |before| reader.load_before(current, OID, Tid(before)).unwrap();
            assert_eq!(load(10), Found::NoneBefore);
            assert_eq!(load(11), revision(b"first", 10, Some(20)));
            assert_eq!(load(20), revision(b"first", 10, Some(20)));
            assert_eq!(load(30), revision(b"second", 20, Some(30)));
            assert_eq!(load(40), revision(b"first", 30, Some(40)));
            assert_eq!(load(50), revision(&[b'x'; 10_000], 40, Some(50)));
            assert_eq!(load(51), Found::Deleted);
            assert_eq!(load(Tid::MAX.0), Found::Deleted);
            assert_eq!(
                reader.load_before(positions[1], OID, Tid::MAX).unwrap(),
                revision(b"second", 20, None)
            );
        });
    }

    #[test]
    fn each_revision_is_found_by_serial() {
        let (file, positions) = history();
        with_reader(&file, |reader| {
            let load = |serial| reader.load_serial(positions[4], OID, Tid(serial)).unwrap();
            assert_eq!(load(10).unwrap(), b"first"[..]);
            assert_eq!(load(30).unwrap(), b"first"[..]);
            assert_eq!(load(40).unwrap(), [b'x'; 10_000][..]);
            for serial in [9, 15, 50, 51] {
                assert_eq!(load(serial), None);
            }
        });
    }

    #[test]
    fn a_deleted_object_has_no_current_tid_but_its_record_has() {
        let (file, positions) = history();
        with_reader(&file, |reader| {
            let current = |n: usize| reader.current_tid(positions[n], OID).unwrap();
            assert_eq!(current(2), Some(Tid(30)));
            assert_eq!(current(3), Some(Tid(40)));
            assert_eq!(current(4), None);
            assert_eq!(reader.record_tid(positions[4], OID).unwrap(), Tid(50));
        });
    }

    #[test]
    fn a_revision_is_read_without_waiting_or_not_at_all() {
        let (file, positions) = history();
        with_reader(&file, |mut reader| {
            reader.wait = Wait::No;
            match reader.load_before(positions[4], OID, Tid(50)) {
                Ok(found) => assert_eq!(found, revision(&[b'x'; 10_000], 40, Some(50))),
                Err(error) => assert!(matches!(error, ReadError::WouldBlock), "{error}"),
            }
        });
    }

    #[test]
    fn damage_is_named_and_never_followed() {
        let (file, positions) = history();
        let (first, undone) = (positions[0], positions[2]);
        let fault = |at: u64, value: u64, pos: u64| {
            let mut file = DataFile {
                bytes: file.bytes.clone(),
                current: file.current.clone(),
            };
            let at = usize::try_from(at).unwrap();
            file.bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
            with_reader(&file, |reader| {
                match reader.load_before(pos, OID, Tid(40)).unwrap_err() {
                    ReadError::Damaged(damage) => damage.fault,
                    error => panic!("{error}"),
                }
            })
        };
        // A pointer to itself, and one forward.
        for found in [undone, undone + 1, u64::MAX, 1] {
            assert_eq!(fault(undone + 42, found, undone), Fault::Pointer { found });
        }
        assert_eq!(
            fault(first, 8, undone),
            Fault::WrongOid {
                found: Oid(8),
                expected: OID
            }
        );
        assert_eq!(
            fault(first + 34, u64::MAX, undone),
            Fault::RecordLength {
                found: u64::MAX,
                max: file.end() - first - 8
            }
        );
        assert!(matches!(
            fault(0, 0, file.end() - 10),
            Fault::Short { found: 10, .. }
        ));
        assert!(matches!(
            fault(0, 0, u64::MAX),
            Fault::Short { found: 0, .. }
        ));
    }
}
