//! The transactions of a data file in order, and their records: for opening, catch-up, `undoLog`,
//! tools and tests. What is inconsistent is reported and ends the iteration; what is written on
//! the file is never taken for granted.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::File;
use super::error::{Damage, Fault, ReadError};
use super::format::{
    DATA_HEADER_LEN, DataHeader, FIRST_TXN_POS, POINTER_LEN, TXN_HEADER_LEN, TxnHeader,
};
use super::window::Window;
use crate::ids::Tid;

/// A transaction, whose length has been found right at both of its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Position of its header.
    pub pos: u64,
    /// Its header.
    pub header: TxnHeader,
    /// User name, description and extension, one behind the other.
    texts: Bytes,
}

impl Transaction {
    /// The user name; UTF-8 if ZODB wrote it.
    pub fn user(&self) -> &[u8] {
        &self.texts[..usize::from(self.header.user_len)]
    }

    /// The description; UTF-8 if ZODB wrote it.
    pub fn descr(&self) -> &[u8] {
        let from = usize::from(self.header.user_len);
        &self.texts[from..from + usize::from(self.header.descr_len)]
    }

    /// The extension: a pickled dict, or nothing.
    pub fn ext(&self) -> &[u8] {
        &self.texts[self.texts.len() - usize::from(self.header.ext_len)..]
    }

    /// User name, description and extension, one behind the other.
    pub(super) fn texts(&self) -> &[u8] {
        &self.texts
    }

    /// Position of the first record.
    pub fn records_pos(&self) -> u64 {
        self.pos + self.header.header_len()
    }

    /// Position behind the last record, where the length is repeated.
    pub const fn records_end(&self) -> u64 {
        self.pos + self.header.len
    }

    /// Position of the next transaction.
    pub const fn end(&self) -> u64 {
        self.records_end() + POINTER_LEN as u64
    }
}

/// Transactions, oldest first. Those with [`Status::Undone`] and, if `tail` is beyond them, those
/// with [`Status::Voted`] are among them.
///
/// [`Status::Undone`]: super::format::Status::Undone
/// [`Status::Voted`]: super::format::Status::Voted
#[derive(Debug)]
pub struct Transactions {
    window: Window,
    /// Position of the transaction that comes next.
    pos: u64,
    tail: u64,
}

impl Transactions {
    /// From the one at `pos` to the one that ends at `tail`.
    pub fn from_pos(file: Arc<dyn File>, pos: u64, tail: u64) -> Self {
        let window = Window::new(file);
        Self { window, pos, tail }
    }

    /// As [`Self::from_pos`], reading `len` bytes at once.
    pub(super) const fn with_window(file: Arc<dyn File>, pos: u64, tail: u64, len: usize) -> Self {
        let window = Window::with_len(file, len);
        Self { window, pos, tail }
    }

    /// From the first one whose tid is not below `tid`. Looks for it from the nearer end.
    pub fn from_tid(file: Arc<dyn File>, tid: Tid, tail: u64) -> Result<Self, ReadError> {
        let mut found = Self::from_pos(Arc::clone(&file), FIRST_TXN_POS, tail);
        let Some(first) = found.next().transpose()? else {
            return Ok(found);
        };
        let mut backwards = Backwards::new(&*file, tail);
        let last = backwards.next().transpose()?;
        let last_tid = last.map_or(first.header.tid, |txn| txn.header.tid);
        let from_start = tid.0.saturating_sub(first.header.tid.0);
        if from_start <= last_tid.0.saturating_sub(tid.0) {
            found.pos = FIRST_TXN_POS;
            while let Some(txn) = found.next().transpose()? {
                if txn.header.tid >= tid {
                    found.pos = txn.pos;
                    break;
                }
            }
        } else {
            found.pos = tail;
            for txn in Backwards::new(&*file, tail) {
                let txn = txn?;
                if txn.header.tid < tid {
                    break;
                }
                found.pos = txn.pos;
            }
        }
        Ok(found)
    }

    /// The records of a transaction that this iterator gave.
    pub fn records(&mut self, txn: &Transaction) -> Records<'_> {
        Records {
            window: &mut self.window,
            pos: txn.records_pos(),
            end: txn.records_end(),
            tloc: txn.pos,
        }
    }

    /// The record at `pos` of a transaction that this iterator gave; `None` behind the last one.
    pub(super) fn record(
        &mut self,
        txn: &Transaction,
        pos: u64,
    ) -> Option<Result<Record, ReadError>> {
        let mut records = self.records(txn);
        records.pos = pos;
        records.next()
    }

    /// The file that they are read from.
    pub(super) fn file(&self) -> &dyn File {
        self.window.file()
    }

    /// Bytes of the file, of which there must be so many; not more than a few at a time.
    pub(super) fn bytes(&mut self, pos: u64, len: usize) -> Result<&[u8], ReadError> {
        let bytes = self.window.bytes(pos, len)?;
        check_len(pos, bytes, len)?;
        Ok(bytes)
    }

    /// More has been committed: goes on to this `tail`. What was read behind the old one is read
    /// again, since it was not finished then.
    pub(super) fn extend(&mut self, tail: u64) {
        if tail != self.tail && self.window.end() > self.tail {
            self.window.forget();
        }
        self.tail = tail;
    }

    /// Goes on with the transaction at `pos`.
    pub(super) const fn seek(&mut self, pos: u64) {
        self.pos = pos;
    }

    /// Position of the transaction that comes next.
    pub const fn pos(&self) -> u64 {
        self.pos
    }

    /// The header at `pos`, of which nothing has been checked; `None` if the file ends before or
    /// within it.
    pub(super) fn peek(&mut self) -> Result<Option<TxnHeader>, ReadError> {
        let bytes = self.window.bytes(self.pos, TXN_HEADER_LEN)?;
        Ok(bytes.try_into().ok().map(TxnHeader::decode))
    }

    fn read(&mut self) -> Result<Transaction, ReadError> {
        let pos = self.pos;
        let header = read_array(&mut self.window, pos)?;
        let header = check_header(pos, TxnHeader::decode(&header), self.tail)?;
        let texts_pos = pos + TXN_HEADER_LEN as u64;
        let texts = self.window.bytes(texts_pos, header.texts_len())?;
        let texts = Bytes::copy_from_slice(texts);
        check_len(texts_pos, &texts, header.texts_len())?;
        let txn = Transaction { pos, header, texts };
        let again = u64::from_be_bytes(read_array(&mut self.window, txn.records_end())?);
        if again != header.len {
            let fault = Fault::RedundantLength {
                found: again,
                expected: header.len,
            };
            let pos = txn.records_end();
            return Err(Damage { pos, fault }.into());
        }
        Ok(txn)
    }
}

impl Iterator for Transactions {
    type Item = Result<Transaction, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pos >= self.tail {
            return None;
        }
        let txn = self.read();
        self.pos = match &txn {
            Ok(txn) => txn.end(),
            Err(_) => self.tail,
        };
        Some(txn)
    }
}

/// A data record, which has been found to fit into its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position of its header.
    pub pos: u64,
    /// Its header.
    pub header: DataHeader,
    /// The back pointer that stands in the place of data. Zero means that the object does not
    /// exist as of this record. Not checked.
    pub back: Option<u64>,
}

impl Record {
    /// Position of the next record.
    pub const fn end(&self) -> u64 {
        self.pos + self.header.record_len()
    }
}

/// The records of a transaction.
#[derive(Debug)]
pub struct Records<'a> {
    window: &'a mut Window,
    pos: u64,
    /// `pos <= end`
    end: u64,
    tloc: u64,
}

impl Records<'_> {
    /// The data of a record that this iterator gave; `None` if it has a back pointer.
    pub fn data(&mut self, record: &Record) -> Result<Option<Bytes>, ReadError> {
        if record.back.is_some() {
            return Ok(None);
        }
        let pos = record.pos + DATA_HEADER_LEN as u64;
        // Where this does not fit there is no memory for such an object either.
        let len = usize::try_from(record.header.data_len).unwrap_or(usize::MAX);
        let data = self.window.copy(pos, len)?;
        check_len(pos, &data, len)?;
        Ok(Some(data.into()))
    }

    fn read(&mut self) -> Result<Record, ReadError> {
        let pos = self.pos;
        let header = read_array(self.window, pos)?;
        let header = DataHeader::decode(&header).map_err(|fault| Damage { pos, fault })?;
        let max = self.end - pos;
        if header.record_len() > max {
            let fault = Fault::RecordLength {
                found: header.record_len(),
                max,
            };
            return Err(Damage { pos, fault }.into());
        }
        if header.tloc != self.tloc {
            let fault = Fault::TxnPosition {
                found: header.tloc,
                expected: self.tloc,
            };
            return Err(Damage { pos, fault }.into());
        }
        let back = match header.data_len {
            0 => {
                let pointer = read_array(self.window, pos + DATA_HEADER_LEN as u64)?;
                Some(u64::from_be_bytes(pointer))
            }
            _ => None,
        };
        Ok(Record { pos, header, back })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pos >= self.end {
            return None;
        }
        let record = self.read();
        self.pos = match &record {
            Ok(record) => record.end(),
            Err(_) => self.end,
        };
        Some(record)
    }
}

/// Transactions, newest first, found by the length behind each.
#[derive(Debug)]
pub struct Backwards<'a> {
    file: &'a dyn File,
    end: u64,
}

impl<'a> Backwards<'a> {
    /// From the one that ends at `tail` to the first of the file.
    pub const fn new(file: &'a dyn File, tail: u64) -> Self {
        Self { file, end: tail }
    }

    fn read(&self) -> Result<Transaction, ReadError> {
        let end = self.end;
        let room = (end - FIRST_TXN_POS).saturating_sub(POINTER_LEN as u64);
        let again_pos = end.saturating_sub(POINTER_LEN as u64);
        let mut again = [0; POINTER_LEN];
        self.fill(&mut again, again_pos)?;
        let again = u64::from_be_bytes(again);
        if again > room {
            let fault = Fault::BackwardLength {
                found: again,
                max: room,
            };
            let pos = again_pos;
            return Err(Damage { pos, fault }.into());
        }
        let pos = again_pos - again;
        let mut header = [0; TXN_HEADER_LEN];
        self.fill(&mut header, pos)?;
        let header = check_header(pos, TxnHeader::decode(&header), end)?;
        if header.len != again {
            let fault = Fault::RedundantLength {
                found: again,
                expected: header.len,
            };
            let pos = again_pos;
            return Err(Damage { pos, fault }.into());
        }
        let mut texts = vec![0; header.texts_len()];
        self.fill(&mut texts, pos + TXN_HEADER_LEN as u64)?;
        let texts = texts.into();
        Ok(Transaction { pos, header, texts })
    }

    fn fill(&self, buf: &mut [u8], pos: u64) -> Result<(), ReadError> {
        let filled = self.file.read_at(buf, pos)?;
        Ok(check_len(pos, &buf[..filled], buf.len())?)
    }
}

impl Iterator for Backwards<'_> {
    type Item = Result<Transaction, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.end <= FIRST_TXN_POS {
            return None;
        }
        let txn = self.read();
        self.end = match &txn {
            Ok(txn) => txn.pos,
            Err(_) => 0,
        };
        Some(txn)
    }
}

/// Whether a transaction with this header has room for itself between `pos` and `tail`.
fn check_header(pos: u64, header: TxnHeader, tail: u64) -> Result<TxnHeader, Damage> {
    let min = header.header_len();
    let max = tail.saturating_sub(pos).saturating_sub(POINTER_LEN as u64);
    if (min..=max).contains(&header.len) {
        return Ok(header);
    }
    let found = header.len;
    let fault = Fault::TxnLength { found, min, max };
    Err(Damage { pos, fault })
}

fn read_array<const N: usize>(window: &mut Window, pos: u64) -> Result<[u8; N], ReadError> {
    let bytes = window.bytes(pos, N)?;
    check_len(pos, bytes, N)?;
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    Ok(array)
}

fn check_len(pos: u64, bytes: &[u8], needed: usize) -> Result<(), Damage> {
    if bytes.len() == needed {
        return Ok(());
    }
    let fault = Fault::Short {
        needed: needed as u64,
        found: bytes.len() as u64,
    };
    Err(Damage { pos, fault })
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::storage::disk::{Disk, OpenMode, OsDisk};
    use crate::storage::format::Status;
    use crate::storage::testing::Content::{Back, Data};
    use crate::storage::testing::{DataFile, TestDir};

    /// A hundred transactions with tids 10, 20, ... and sizes that cross the window's end.
    fn hundred() -> DataFile {
        let mut file = DataFile::new();
        for n in 1..=100 {
            let data = vec![n as u8; 200 * n as usize * n as usize];
            let records = [(0, Data(&data)), (n, Data(b"new"))];
            file.txn(10 * n, Status::Finished, "alice", &records);
        }
        file
    }

    fn tids(txns: impl Iterator<Item = Result<Transaction, ReadError>>) -> Vec<u64> {
        txns.map(|txn| txn.unwrap().header.tid.0).collect()
    }

    #[test]
    fn all_transactions_are_met_in_both_directions() {
        let dir = TestDir::new();
        let data_file = hundred();
        let file = data_file.save(&dir.path("Data.fs"));
        let forwards = Transactions::from_pos(file.clone(), FIRST_TXN_POS, data_file.end());
        let expected: Vec<u64> = (1..=100).map(|n| 10 * n).collect();
        assert_eq!(tids(forwards), expected);
        let mut backwards = tids(Backwards::new(&*file, data_file.end()));
        backwards.reverse();
        assert_eq!(backwards, expected);
    }

    #[test]
    fn a_tid_is_found_from_either_end() {
        let dir = TestDir::new();
        let data_file = hundred();
        let file = data_file.save(&dir.path("Data.fs"));
        for tid in [0, 9, 10, 11, 199, 200, 201, 855, 990, 999, 1000, 1001] {
            let found = Transactions::from_tid(file.clone(), Tid(tid), data_file.end()).unwrap();
            let first = tid.div_ceil(10).max(1);
            let expected: Vec<u64> = (first..=100).map(|n| 10 * n).collect();
            assert_eq!(tids(found), expected, "{tid}");
        }
        let empty = DataFile::new().save(&dir.path("empty"));
        let found = Transactions::from_tid(empty, Tid(5), FIRST_TXN_POS).unwrap();
        assert_eq!(tids(found), [0; 0]);
    }

    #[test]
    fn records_have_data_or_a_back_pointer() {
        let dir = TestDir::new();
        let mut data_file = DataFile::new();
        let created = data_file.txn(10, Status::Packed, "alice", &[(1, Data(b"first"))]);
        let records = [(1, Back(created[0])), (2, Back(0)), (3, Data(b"third"))];
        data_file.txn(20, Status::Finished, "", &records);
        let file = data_file.save(&dir.path("Data.fs"));
        let mut txns = Transactions::from_pos(file, FIRST_TXN_POS, data_file.end());
        let first = txns.next().unwrap().unwrap();
        assert_eq!(
            (first.user(), first.descr(), first.ext()),
            (&b"alice"[..], &b""[..], &b""[..])
        );
        let second = txns.next().unwrap().unwrap();
        let mut records = txns.records(&second);
        let mut found = Vec::new();
        while let Some(record) = records.next() {
            let record = record.unwrap();
            let data = records.data(&record).unwrap();
            found.push((record.header.oid.0, record.back, data));
        }
        let third = Some(Bytes::from_static(b"third"));
        assert_eq!(
            found,
            [
                (1, Some(created[0]), None),
                (2, Some(0), None),
                (3, None, third)
            ]
        );
    }

    #[test]
    fn what_was_read_before_it_was_committed_is_read_again() {
        let dir = TestDir::new();
        let mut data_file = DataFile::new();
        data_file.txn(10, Status::Finished, "", &[(1, Data(b"one"))]);
        let tail = data_file.end();
        let mut unfinished = DataFile::new();
        unfinished.bytes.clone_from(&data_file.bytes);
        unfinished.txn(20, Status::Voted, "", &[(1, Data(b"never"))]);
        data_file.txn(
            20,
            Status::Finished,
            "",
            &[(1, Data(b"two")), (2, Data(b"2"))],
        );

        let file = unfinished.save(&dir.path("Data.fs"));
        let mut txns = Transactions::from_pos(file.clone(), FIRST_TXN_POS, tail);
        assert_eq!(txns.next().unwrap().unwrap().header.tid, Tid(10));
        assert!(txns.next().is_none());
        OsDisk::default()
            .open(&dir.path("Data.fs"), OpenMode::Write)
            .unwrap()
            .write_at(&mut [IoSlice::new(&data_file.bytes)], 0)
            .unwrap();
        txns.extend(data_file.end());
        let txn = txns.next().unwrap().unwrap();
        assert_eq!(txn.header.status, Status::Finished);
        assert_eq!(txns.records(&txn).count(), 2);
    }

    #[test]
    fn damage_ends_the_iteration() {
        let dir = TestDir::new();
        let mut data_file = hundred();
        let end = data_file.bytes.len();
        data_file.bytes[end - 1] ^= 1;
        let file = data_file.save(&dir.path("Data.fs"));
        let mut txns = Transactions::from_pos(file.clone(), FIRST_TXN_POS, data_file.end());
        assert_eq!(txns.by_ref().filter(Result::is_ok).count(), 99);
        assert!(txns.next().is_none());
        let mut backwards = Backwards::new(&*file, data_file.end());
        assert!(matches!(backwards.next(), Some(Err(ReadError::Damaged(_)))));
        assert!(backwards.next().is_none());
    }
}
