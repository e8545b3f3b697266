//! A transaction on its way to other nodes, and through their journals: the body of an entry.
//!
//! It names no position, so that its bytes are the same on all nodes, whatever their files are
//! like. All data are in it: also those of an undo, which a data file may hold already. Where these
//! are is told by a tid, and each node sees for itself whether it has them there.
//!
//! The manual has the format: [`journal`](crate::manual::journal).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::format::Status;
use crate::cursor::Cursor;
use crate::ids::{Digest, Oid, Tid};
use crate::limits::{METADATA_LEN_MAX, SHARED_DATA_LEN_MIN};

/// The first byte of a body.
const VERSION: u8 = 1;

/// Bytes in front of the texts.
const HEAD_LEN: usize = 20;

/// Bytes of a record in front of the data.
const RECORD_LEN: usize = 8 + 8 + 8;

/// Bytes of the name of a blob.
const BLOB_LEN: usize = 8 + 8 + Digest::LEN;

/// A transaction without a place and without a tid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The storage that it is of, as clients name it: 1 to 255 bytes.
    pub storage: String,
    /// The status byte that it shall have in the file; normally a blank.
    pub status: u8,
    /// User name, as in the file: 65,535 bytes at most, as the next two.
    pub user: Bytes,
    /// Description, as in the file.
    pub description: Bytes,
    /// The pickled extension dict, or nothing.
    pub extension: Bytes,
    /// One for each object.
    pub records: Vec<Record>,
    /// The files that belong to records.
    pub blobs: Vec<BlobName>,
}

/// A new revision of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The object.
    pub oid: Oid,
    /// Its data, which are not empty. `None` if it does not exist any more.
    pub data: Option<Bytes>,
    /// The tid of the revision of the object that has the same data, or as of which it does not
    /// exist either: a record that points there is written where that is so, and else the data.
    pub same_as: Option<Tid>,
}

/// The file of a blob, by what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlobName {
    /// The object that it is of.
    pub oid: Oid,
    /// Its length in bytes.
    pub len: u64,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// A blob of a transaction that is in a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlobAt {
    /// The object that it is of.
    pub oid: Oid,
    /// Its transaction.
    pub tid: Tid,
    /// Its length in bytes.
    pub len: u64,
}

impl Transfer {
    /// The body. Long data stay where they are; the rest is gathered around them.
    ///
    /// # Errors
    ///
    /// Something in it cannot be, or is too long.
    pub fn encode(&self) -> Result<Vec<Bytes>, TransferError> {
        self.check()?;
        let count = |count: usize| u32::try_from(count).map_err(|_| TransferError::Count(count));
        let texts = [&self.user, &self.description, &self.extension];
        let mut head = BytesMut::new();
        head.put_slice(&[VERSION, self.storage.len() as u8, self.status, 0]);
        for text in texts {
            let len = u16::try_from(text.len());
            head.put_u16(len.map_err(|_| TransferError::TextTooLong(text.len()))?);
        }
        head.put_u16(0);
        head.put_u32(count(self.records.len())?);
        head.put_u32(count(self.blobs.len())?);
        head.put_slice(self.storage.as_bytes());
        texts.iter().for_each(|text| head.put_slice(text));
        for record in &self.records {
            head.put_u64(record.oid.0);
            head.put_u64(record.same_as.unwrap_or_default().0);
            head.put_u64(record.data.as_ref().map_or(0, |data| data.len() as u64));
        }
        for BlobName { oid, len, digest } in &self.blobs {
            head.put_u64(oid.0);
            head.put_u64(*len);
            head.put_slice(&digest.0);
        }
        let mut pieces = Vec::new();
        for data in self
            .records
            .iter()
            .filter_map(|record| record.data.as_ref())
        {
            if data.len() < SHARED_DATA_LEN_MIN {
                head.put_slice(data);
            } else {
                if !head.is_empty() {
                    pieces.push(head.split().freeze());
                }
                pieces.push(data.clone());
            }
        }
        if !head.is_empty() {
            pieces.push(head.freeze());
        }
        Ok(pieces)
    }

    /// The transaction of a body, however that is cut into pieces. Its data are parts of those,
    /// and copied only where they reach over the end of one.
    ///
    /// # Errors
    ///
    /// It is not what [`Self::encode`] makes of any transaction.
    pub fn decode(body: &[Bytes]) -> Result<Self, TransferError> {
        let mut pieces = Pieces::new(body);
        let head = Head::read(&mut pieces)?;
        let storage = head.storage(&mut pieces)?;
        let [user, description, extension] = head.text_lens;
        let user = pieces.take(user.into())?;
        let description = pieces.take(description.into())?;
        let extension = pieces.take(extension.into())?;
        let records = pieces.take(len_of(head.record_count, RECORD_LEN))?;
        let blobs = pieces.take(len_of(head.blob_count, BLOB_LEN))?;
        let records = records.chunks_exact(RECORD_LEN);
        let records = records.map(|bytes| read_record(bytes, &mut pieces));
        let transfer = Self {
            storage,
            status: head.status,
            user,
            description,
            extension,
            records: records.collect::<Result<_, _>>()?,
            blobs: blobs
                .chunks_exact(BLOB_LEN)
                .map(read_blob)
                .collect::<Result<_, _>>()?,
        };
        if pieces.left > 0 {
            return Err(TransferError::Trailing(pieces.left));
        }
        transfer.check()?;
        Ok(transfer)
    }

    /// The storage that the transaction of a body is of, without reading the rest.
    ///
    /// # Errors
    ///
    /// The body does not begin as one does.
    pub fn storage_of(body: &[Bytes]) -> Result<String, TransferError> {
        let mut pieces = Pieces::new(body);
        Head::read(&mut pieces)?.storage(&mut pieces)
    }

    /// The blobs that the transaction of a body names. The rest is read only if there are any.
    ///
    /// # Errors
    ///
    /// As of [`Self::decode`], as far as it is read.
    pub fn blobs_of(body: &[Bytes]) -> Result<Vec<BlobName>, TransferError> {
        match Head::read(&mut Pieces::new(body))?.blob_count {
            0 => Ok(Vec::new()),
            _ => Self::decode(body).map(|transfer| transfer.blobs),
        }
    }

    fn check(&self) -> Result<(), TransferError> {
        if !(1..=usize::from(u8::MAX)).contains(&self.storage.len()) {
            return Err(TransferError::Name);
        }
        // These would be cut, or not be counted, when the data file is opened.
        match Status::from_byte(self.status) {
            Status::Voted | Status::Undone | Status::Other(0) => {
                return Err(TransferError::Status(self.status));
            }
            Status::Finished | Status::Packed | Status::Other(_) => {}
        }
        for text in [&self.user, &self.description, &self.extension] {
            if text.len() > METADATA_LEN_MAX {
                return Err(TransferError::TextTooLong(text.len()));
            }
        }
        for Record { oid, data, same_as } in &self.records {
            let is_empty = data.as_ref().is_some_and(Bytes::is_empty);
            if is_empty || *same_as == Some(Tid::ZERO) {
                return Err(TransferError::NoData(*oid));
            }
        }
        let oids = sorted(self.records.iter().map(|record| record.oid));
        if let Some(oid) = twice(&oids) {
            return Err(TransferError::Twice(oid));
        }
        let with_blobs = sorted(self.blobs.iter().map(|blob| blob.oid));
        let mut alone = with_blobs
            .iter()
            .filter(|oid| oids.binary_search(oid).is_err());
        if let Some(oid) = alone.next().copied().or(twice(&with_blobs)) {
            return Err(TransferError::Blob(oid));
        }
        Ok(())
    }
}

fn sorted(oids: impl Iterator<Item = Oid>) -> Vec<Oid> {
    let mut oids: Vec<Oid> = oids.collect();
    oids.sort_unstable();
    oids
}

fn twice(sorted: &[Oid]) -> Option<Oid> {
    let mut neighbours = sorted.windows(2);
    neighbours.find(|two| two[0] == two[1]).map(|two| two[0])
}

/// What a body begins with.
struct Head {
    storage_len: u8,
    status: u8,
    text_lens: [u16; 3],
    record_count: u32,
    blob_count: u32,
}

impl Head {
    fn read(pieces: &mut Pieces<'_>) -> Result<Self, TransferError> {
        let bytes = pieces.take(HEAD_LEN as u64)?;
        let mut cursor = Cursor::new(&bytes);
        let mut read = || -> Result<_, crate::cursor::UnexpectedEnd> {
            let [version, storage_len, status, zero] = cursor.array()?;
            let mut text_len = || cursor.array().map(u16::from_be_bytes);
            let text_lens = [text_len()?, text_len()?, text_len()?];
            let zeros = text_len()?;
            let head = Self {
                storage_len,
                status,
                text_lens,
                record_count: u32::from_be_bytes(cursor.array()?),
                blob_count: u32::from_be_bytes(cursor.array()?),
            };
            Ok((version, u16::from(zero) | zeros, head))
        };
        let short = |_| TransferError::Short {
            needed: HEAD_LEN as u64,
            left: bytes.len() as u64,
        };
        match read().map_err(short)? {
            (VERSION, 0, head) => Ok(head),
            (VERSION, ..) => Err(TransferError::NotZero),
            (version, ..) => Err(TransferError::Version(version)),
        }
    }

    fn storage(&self, pieces: &mut Pieces<'_>) -> Result<String, TransferError> {
        let name = pieces.take(self.storage_len.into())?;
        let name = str::from_utf8(&name).map_err(|_| TransferError::Name)?;
        Ok(name.to_owned())
    }
}

fn len_of(count: u32, len: usize) -> u64 {
    u64::from(count) * len as u64
}

fn read_record(bytes: &[u8], pieces: &mut Pieces<'_>) -> Result<Record, TransferError> {
    let mut numbers = bytes.chunks_exact(8).filter_map(|it| it.try_into().ok());
    let mut number = || numbers.next().map_or(0, u64::from_be_bytes);
    let (oid, same_as, len) = (Oid(number()), Tid(number()), number());
    let data = match len {
        0 => None,
        len => Some(pieces.take(len)?),
    };
    let same_as = (same_as != Tid::ZERO).then_some(same_as);
    Ok(Record { oid, data, same_as })
}

fn read_blob(bytes: &[u8]) -> Result<BlobName, TransferError> {
    let mut cursor = Cursor::new(bytes);
    let mut read = || -> Result<_, crate::cursor::UnexpectedEnd> {
        Ok(BlobName {
            oid: Oid(cursor.u64_be()?),
            len: cursor.u64_be()?,
            digest: Digest(cursor.array()?),
        })
    };
    read().map_err(|_| TransferError::Short {
        needed: BLOB_LEN as u64,
        left: bytes.len() as u64,
    })
}

/// Reads on through pieces of bytes.
struct Pieces<'a> {
    pieces: std::slice::Iter<'a, Bytes>,
    /// What is left of the piece that it is in.
    here: Bytes,
    /// Bytes left, those of `here` included.
    left: u64,
}

impl<'a> Pieces<'a> {
    fn new(pieces: &'a [Bytes]) -> Self {
        Self {
            pieces: pieces.iter(),
            here: Bytes::new(),
            left: pieces.iter().map(|piece| piece.len() as u64).sum(),
        }
    }

    /// The next bytes. Nothing is reserved for more than there are.
    fn take(&mut self, needed: u64) -> Result<Bytes, TransferError> {
        let left = self.left;
        let short = TransferError::Short { needed, left };
        let Some(len) = usize::try_from(needed).ok().filter(|_| needed <= left) else {
            return Err(short);
        };
        self.left -= needed;
        self.go_on();
        if self.here.len() >= len {
            return Ok(self.here.split_to(len));
        }
        let mut taken = BytesMut::with_capacity(len);
        while taken.len() < len {
            self.go_on();
            let some = self.here.len().min(len - taken.len());
            if some == 0 {
                return Err(short);
            }
            taken.put_slice(&self.here.split_to(some));
        }
        Ok(taken.freeze())
    }

    /// To the piece that has the next byte.
    fn go_on(&mut self) {
        while self.here.is_empty()
            && let Some(next) = self.pieces.next()
        {
            self.here = next.clone();
        }
    }
}

/// Why something is no transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// It ends too early.
    Short {
        /// Bytes that are needed,
        needed: u64,
        /// and that there are.
        left: u64,
    },
    /// So many bytes are behind its end.
    Trailing(u64),
    /// It is of a version that is not known.
    Version(u8),
    /// What should be zero is not.
    NotZero,
    /// The name of the storage is none.
    Name,
    /// No finished transaction has this status.
    Status(u8),
    /// User name, description or extension have so many bytes.
    TextTooLong(usize),
    /// So many records, or blobs.
    Count(usize),
    /// There are two records of this object.
    Twice(Oid),
    /// The record of this object has no data where it should have some.
    NoData(Oid),
    /// There is a blob of this object and no record, or there are two.
    Blob(Oid),
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("transaction: ")?;
        match self {
            Self::Short { needed, left } => {
                write!(f, "ends after {left} bytes where {needed} are needed")
            }
            Self::Trailing(len) => write!(f, "{len} bytes are behind its end"),
            Self::Version(found) => write!(f, "version {found} (expected {VERSION})"),
            Self::NotZero => f.write_str("a byte that must be zero is not"),
            Self::Name => f.write_str("the name of the storage is none"),
            Self::Status(found) => write!(f, "status {:?}", char::from(*found)),
            Self::TextTooLong(len) => {
                write!(f, "a text of {len} bytes (at most {METADATA_LEN_MAX})")
            }
            Self::Count(count) => write!(f, "{count} records"),
            Self::Twice(oid) => write!(f, "two records of {oid}"),
            Self::NoData(oid) => write!(f, "the record of {oid} has no data"),
            Self::Blob(oid) => write!(f, "a blob of {oid} without a record of its own"),
        }
    }
}

impl std::error::Error for TransferError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(oid: u64, data: &[u8], same_as: Option<u64>) -> Record {
        Record {
            oid: Oid(oid),
            data: Some(Bytes::copy_from_slice(data)),
            same_as: same_as.map(Tid),
        }
    }

    fn transfer() -> Transfer {
        Transfer {
            storage: "main".to_owned(),
            status: b' ',
            user: Bytes::from_static(b"me"),
            description: Bytes::from_static(b"what"),
            extension: Bytes::from_static(b"}."),
            records: vec![
                record(1, b"a", None),
                record(2, &[7; 5000], Some(9)),
                Record {
                    oid: Oid(3),
                    data: None,
                    same_as: None,
                },
                record(u64::MAX, &[8; SHARED_DATA_LEN_MIN - 1], None),
            ],
            blobs: vec![BlobName {
                oid: Oid(2),
                len: u64::MAX,
                digest: Digest([3; Digest::LEN]),
            }],
        }
    }

    fn bytes(transfer: &Transfer) -> Vec<u8> {
        transfer.encode().unwrap().concat()
    }

    fn decode(bytes: &[u8]) -> Result<Transfer, TransferError> {
        Transfer::decode(&[Bytes::copy_from_slice(bytes)])
    }

    #[test]
    fn it_is_read_as_it_was_written_however_it_is_cut() {
        let transfer = transfer();
        let bytes = bytes(&transfer);
        for len in [1, 2, 7, 100, 4999, bytes.len()] {
            let pieces: Vec<Bytes> = bytes.chunks(len).map(Bytes::copy_from_slice).collect();
            assert_eq!(Transfer::decode(&pieces).unwrap(), transfer, "{len}");
            assert_eq!(Transfer::storage_of(&pieces).unwrap(), "main");
        }
        let empty = Transfer {
            records: Vec::new(),
            blobs: Vec::new(),
            ..transfer
        };
        let bytes = empty.encode().unwrap().concat();
        assert_eq!(decode(&bytes).unwrap(), empty);
    }

    #[test]
    fn long_data_are_not_copied_on_the_way() {
        let long = Bytes::from(vec![1; 10_000]);
        let transfer = Transfer {
            records: vec![record(1, b"short", None), record(2, &long, None)],
            blobs: Vec::new(),
            ..transfer()
        };
        let pieces = transfer.encode().unwrap();
        assert_eq!(pieces.len(), 2);
        let data = transfer.records[1].data.as_ref().unwrap();
        assert_eq!(pieces[1].as_ptr(), data.as_ptr());
        let decoded = Transfer::decode(&pieces).unwrap();
        let decoded = decoded.records[1].data.as_ref().unwrap();
        assert_eq!(decoded.as_ptr(), data.as_ptr());
    }

    #[test]
    fn the_bytes_are_those_of_the_manual() {
        let transfer = Transfer {
            storage: "1".to_owned(),
            user: Bytes::from_static(b"u"),
            description: Bytes::from_static(b"de"),
            extension: Bytes::new(),
            records: vec![record(0x0a, b"xyz", Some(5))],
            blobs: vec![BlobName {
                oid: Oid(0x0a),
                len: 7,
                digest: Digest([0xdd; 32]),
            }],
            status: b'p',
        };
        let mut expected = b"\x01\x01p\0\0\x01\0\x02\0\0\0\0\0\0\0\x01\0\0\0\x01".to_vec();
        expected.extend_from_slice(b"1ude");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x03");
        expected.extend_from_slice(b"\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x07");
        expected.extend_from_slice(&[0xdd; 32]);
        expected.extend_from_slice(b"xyz");
        assert_eq!(bytes(&transfer), expected);
    }

    #[test]
    fn what_no_transaction_has_is_refused() {
        type Change = fn(&mut Transfer);
        let oid = Oid(1);
        let changes: [(Change, TransferError); 10] = [
            (|it| it.storage.clear(), TransferError::Name),
            (|it| it.storage = "x".repeat(256), TransferError::Name),
            (|it| it.status = b'c', TransferError::Status(b'c')),
            (|it| it.status = b'u', TransferError::Status(b'u')),
            (|it| it.status = 0, TransferError::Status(0)),
            (
                |it| it.user = vec![0; 65_536].into(),
                TransferError::TextTooLong(65_536),
            ),
            (
                |it| it.records.push(it.records[0].clone()),
                TransferError::Twice(oid),
            ),
            (
                |it| it.records[0].data = Some(Bytes::new()),
                TransferError::NoData(oid),
            ),
            (
                |it| it.records[0].same_as = Some(Tid::ZERO),
                TransferError::NoData(oid),
            ),
            (|it| it.blobs.push(it.blobs[0]), TransferError::Blob(Oid(2))),
        ];
        for (change, error) in changes {
            let mut wrong = transfer();
            change(&mut wrong);
            assert_eq!(wrong.encode(), Err(error));
        }
    }

    #[test]
    fn an_object_may_be_gone_as_it_was_before() {
        let mut gone = transfer();
        gone.records[2].same_as = Some(Tid(1));
        assert_eq!(decode(&bytes(&gone)).unwrap(), gone);
    }

    #[test]
    fn a_body_that_is_cut_or_goes_on_is_refused() {
        let bytes = bytes(&transfer());
        for len in (0..200).chain([bytes.len() - 1]) {
            let error = decode(&bytes[..len]).unwrap_err();
            assert!(matches!(error, TransferError::Short { .. }), "{len}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(decode(&longer), Err(TransferError::Trailing(1)));
        let mut other = bytes.clone();
        other[0] = 2;
        assert_eq!(decode(&other), Err(TransferError::Version(2)));
        for zero in [3, 10, 11] {
            let mut other = bytes.clone();
            other[zero] = 1;
            assert_eq!(decode(&other), Err(TransferError::NotZero));
        }
    }
}
