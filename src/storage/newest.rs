//! A data file with the newest revision of each object and nothing else: for a node that needs one
//! soon. Its transactions have the tids that they had, and status `'p'`, as behind a pack: they
//! cannot be undone. Objects that were deleted are not in it.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use super::disk::File;
use super::error::StorageError;
use super::format::{
    DATA_HEADER_LEN, DataHeader, FIRST_TXN_POS, Status, TXN_HEADER_LEN, TxnHeader,
};
use super::index::Index;
use super::iterate::{Transaction, Transactions};
use super::job;
use super::read::{Reader, Source, Wait};
use crate::ids::Oid;

/// Bytes that are written at once.
const WRITE_LEN: usize = 1 << 20;

/// Data from here on are copied past the buffer.
const LONG_LEN: u64 = 64 << 10;

/// Writes what `index` knows of the transactions of `from` in front of `tail` to `to`, an empty
/// file. The last transaction is in it, be it without records: whoever opens it finds the last tid.
/// Nothing is synced.
///
/// # Errors
///
/// `from` is damaged or cannot be read, or `to` cannot be written; both go by `path`.
pub fn copy(
    from: &Arc<dyn File>,
    tail: u64,
    index: &Index,
    to: &dyn File,
    path: &Path,
) -> Result<(), StorageError> {
    let io = |action| StorageError::io(action, path);
    let mut magic = [0; FIRST_TXN_POS as usize];
    from.read_at(&mut magic, 0).map_err(io("read for"))?;
    let mut out = Out {
        file: to,
        pos: 0,
        buf: magic.to_vec(),
    };
    let reader = Reader {
        file: &**from,
        wait: Wait::Yes,
        tail,
    };
    let mut txns = Transactions::from_pos(from.clone(), FIRST_TXN_POS, tail);
    while let Some(txn) = txns.next() {
        let txn = txn.map_err(StorageError::reading(path))?;
        let mut newest = Vec::new();
        for record in txns.records(&txn) {
            let record = record.map_err(StorageError::reading(path))?;
            let oid = record.header.oid;
            if index.get(oid) == Some(record.pos) && txn.header.status != Status::Undone {
                let source = reader.source(record.pos, oid);
                let source = source.map_err(StorageError::reading(path))?;
                newest.extend(source.map(|source| (oid, source)));
            }
        }
        if !newest.is_empty() || txn.end() >= tail {
            out.write(&txn, &newest, &**from).map_err(io("write"))?;
        }
    }
    out.flush().map_err(io("write"))
}

struct Out<'a> {
    file: &'a dyn File,
    /// Where `buf` goes.
    pos: u64,
    buf: Vec<u8>,
}

impl Out<'_> {
    fn write(
        &mut self,
        txn: &Transaction,
        newest: &[(Oid, Source)],
        from: &dyn File,
    ) -> io::Result<()> {
        let texts_len = txn.texts().len();
        let records = newest.iter().map(|(_, source)| source.data_len);
        let records_len: u64 = records.map(|len| DATA_HEADER_LEN as u64 + len).sum();
        let header = TxnHeader {
            len: (TXN_HEADER_LEN + texts_len) as u64 + records_len,
            status: Status::Packed,
            ..txn.header
        };
        let tloc = self.pos + self.buf.len() as u64;
        self.buf.extend_from_slice(&header.encode());
        self.buf.extend_from_slice(txn.texts());
        for (oid, source) in newest {
            let data_header = DataHeader {
                oid: *oid,
                tid: header.tid,
                prev: 0,
                tloc,
                data_len: source.data_len,
            };
            self.buf.extend_from_slice(&data_header.encode());
            self.copy(from, source)?;
        }
        self.buf.extend_from_slice(&header.len.to_be_bytes());
        Ok(())
    }

    fn copy(&mut self, from: &dyn File, source: &Source) -> io::Result<()> {
        let len = usize::try_from(source.data_len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if source.data_len >= LONG_LEN || self.buf.len() >= WRITE_LEN {
            self.flush()?;
        }
        if source.data_len >= LONG_LEN {
            job::copy(from, source.data_pos, len, self.file, self.pos)?;
            self.pos += source.data_len;
            return Ok(());
        }
        let at = self.buf.len();
        self.buf.resize(at + len, 0);
        match from.read_at(&mut self.buf[at..], source.data_pos)? {
            read if read == len => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file
            .write_at(&mut [IoSlice::new(&self.buf)], self.pos)?;
        self.pos += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Tid;
    use crate::storage::disk::{Disk, OpenMode};
    use crate::storage::memory::MemoryDisk;
    use crate::storage::read::Found;
    use crate::storage::recover::{self, Access};
    use crate::storage::testing::Content::{Back, Data};
    use crate::storage::testing::DataFile;

    #[test]
    fn each_object_has_its_newest_revision_and_the_tid_of_that() {
        let mut file = DataFile::new();
        let long = vec![7; 200_000];
        let first = file.txn(
            10,
            Status::Finished,
            "one",
            &[(1, Data(b"a")), (2, Data(&long))],
        );
        file.txn(
            11,
            Status::Finished,
            "two",
            &[(1, Data(b"b")), (3, Data(b"c"))],
        );
        // 1 is as it was at first, and 3 does not exist any more.
        file.txn(
            12,
            Status::Voted,
            "three",
            &[(1, Back(first[0])), (3, Back(0))],
        );
        file.txn(13, Status::Finished, "four", &[]);
        let disk = MemoryDisk::new();
        let path = Path::new("Data.fs");
        disk.replace(path, &[&file.bytes]).unwrap();
        let from = disk.open(path, OpenMode::Read).unwrap();
        let mut index = Index::new();
        for (oid, pos) in &file.current {
            index.insert(Oid(*oid), *pos);
        }
        let copied = Path::new("copy");
        let to = disk.open(copied, OpenMode::CreateNew).unwrap();
        copy(&from, file.end(), &index, &*to, copied).unwrap();

        let opened = recover::open(&disk, copied, Access::ReadWrite, &mut |_| ()).unwrap();
        assert_eq!(opened.last_tid, Tid(13));
        assert_eq!(opened.index.len(), 2);
        let reader = Reader {
            file: &*opened.file,
            wait: Wait::Yes,
            tail: opened.tail,
        };
        for (oid, tid, expected) in [(1, 12, &b"a"[..]), (2, 10, &long)] {
            let pos = opened.index.get(Oid(oid)).unwrap();
            let found = reader.load_before(pos, Oid(oid), Tid::MAX).unwrap();
            let Found::Revision { data, serial, .. } = found else {
                panic!("{found:?}");
            };
            assert_eq!((&data[..], serial), (expected, Tid(tid)));
        }
        let txns = Transactions::from_pos(opened.file, FIRST_TXN_POS, opened.tail);
        let txns: Vec<_> = txns.map(Result::unwrap).collect();
        let users: Vec<_> = txns.iter().map(|txn| txn.user().to_vec()).collect();
        assert_eq!(users, [&b"one"[..], b"three", b"four"]);
        assert!(txns.iter().all(|txn| txn.header.status == Status::Packed));
    }
}
