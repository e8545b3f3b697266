//! The headers of FileStorage's file format: encode and decode, nothing else. The whole file is
//! drawn in `manual/data_file.md`; what a position may point to is checked by those who follow it.

use byteorder::{BigEndian, ByteOrder};

use super::error::Fault;
use crate::ids::{Oid, Tid};

/// The first four bytes of a data file that we create, as ZODB on Python 3 writes and expects
/// them.
pub const MAGIC: [u8; 4] = *b"FS30";

/// The same for ZODB on Python 2. All that follows has the same form; the magic says which Python's
/// pickles the objects are, and each refuses the other's. We do not look into objects, serve
/// either, and never change the magic of a file.
pub const MAGIC_PYTHON2: [u8; 4] = *b"FS21";

/// Position of the first transaction, and the length of a file without any.
pub const FIRST_TXN_POS: u64 = MAGIC.len() as u64;

// Transaction header, all numbers big-endian; user name, description and extension follow it:
//
//      0        8        16 17    19    21    23
//      +--------+--------+--+-----+-----+-----+
//      | tid    | len    |st|user |descr|ext  |
//      +--------+--------+--+-----+-----+-----+

/// Bytes of a transaction header before its texts.
pub const TXN_HEADER_LEN: usize = 23;

/// Where the status stands in the header: the byte that finishes a transaction.
pub const STATUS_POS: u64 = 16;

// Data record header, all numbers big-endian; the data follow it, or, if their length is 0, the
// position of the record that has them:
//
//      0        8        16       24       32   34       42
//      +--------+--------+--------+--------+----+--------+
//      | oid    | tid    | prev   | tloc   | 0  | len    |
//      +--------+--------+--------+--------+----+--------+

/// Bytes of a data record before its data.
pub const DATA_HEADER_LEN: usize = 42;

/// Bytes of a back pointer, and of the length behind a transaction.
pub const POINTER_LEN: usize = 8;

/// Positions are below this: they take 6 bytes in the index, in memory as in its file.
pub const POS_END: u64 = 1 << 48;

const _: () = assert!(MAGIC.len() == MAGIC_PYTHON2.len());
const _: () = assert!(TXN_HEADER_LEN == 8 + 8 + 1 + 3 * 2);
const _: () = assert!(STATUS_POS == 8 + 8);
const _: () = assert!(DATA_HEADER_LEN == 4 * 8 + 2 + 8);

/// How far a transaction got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `' '`: finished.
    Finished,
    /// `'p'`: finished, and has been through a pack.
    Packed,
    /// `'c'`: voted by ZODB, which overwrites it with `' '` at the finish. Only at the end.
    Voted,
    /// `'u'`: undone by a method that no longer exists. Its records do not count.
    Undone,
    /// None of these. ZODB warns and takes it for finished.
    Other(u8),
}

impl Status {
    /// From the byte in the file.
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            b' ' => Self::Finished,
            b'p' => Self::Packed,
            b'c' => Self::Voted,
            b'u' => Self::Undone,
            other => Self::Other(other),
        }
    }

    /// The same, of a transaction in front of the tail: one that is voted there has been committed,
    /// and gets its status with the next checkpoint (`apply`), or would if the file were not opened
    /// read-only.
    pub const fn of_committed(self) -> Self {
        match self {
            Self::Voted => Self::Finished,
            status => status,
        }
    }

    /// The byte in the file.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Finished => b' ',
            Self::Packed => b'p',
            Self::Voted => b'c',
            Self::Undone => b'u',
            Self::Other(other) => other,
        }
    }
}

/// The start of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnHeader {
    /// Its id, and its time.
    pub tid: Tid,
    /// Bytes from the start of the header to the redundant length, which repeats this number.
    pub len: u64,
    /// How far it got.
    pub status: Status,
    /// Bytes of the user name.
    pub user_len: u16,
    /// Bytes of the description.
    pub descr_len: u16,
    /// Bytes of the extension, a pickle.
    pub ext_len: u16,
}

impl TxnHeader {
    /// Any bytes decode to some header.
    pub fn decode(bytes: &[u8; TXN_HEADER_LEN]) -> Self {
        Self {
            tid: Tid(BigEndian::read_u64(&bytes[0..8])),
            len: BigEndian::read_u64(&bytes[8..16]),
            status: Status::from_byte(bytes[16]),
            user_len: BigEndian::read_u16(&bytes[17..19]),
            descr_len: BigEndian::read_u16(&bytes[19..21]),
            ext_len: BigEndian::read_u16(&bytes[21..23]),
        }
    }

    /// The bytes in the file.
    pub fn encode(&self) -> [u8; TXN_HEADER_LEN] {
        let mut bytes = [0; TXN_HEADER_LEN];
        BigEndian::write_u64(&mut bytes[0..8], self.tid.0);
        BigEndian::write_u64(&mut bytes[8..16], self.len);
        bytes[16] = self.status.to_byte();
        BigEndian::write_u16(&mut bytes[17..19], self.user_len);
        BigEndian::write_u16(&mut bytes[19..21], self.descr_len);
        BigEndian::write_u16(&mut bytes[21..23], self.ext_len);
        bytes
    }

    /// Bytes of user name, description and extension together.
    pub fn texts_len(&self) -> usize {
        usize::from(self.user_len) + usize::from(self.descr_len) + usize::from(self.ext_len)
    }

    /// Bytes before the first data record.
    pub fn header_len(&self) -> u64 {
        (TXN_HEADER_LEN + self.texts_len()) as u64
    }
}

/// The start of a data record: one revision of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The object.
    pub oid: Oid,
    /// The tid of the transaction, which is the revision's serial.
    pub tid: Tid,
    /// Position of the object's previous record, 0 if there is none.
    pub prev: u64,
    /// Position of the transaction that the record belongs to.
    pub tloc: u64,
    /// Bytes of data; 0 if a back pointer stands in their place.
    pub data_len: u64,
}

impl DataHeader {
    /// Fails only at a version, which the format had room for until ZODB 3.9.
    pub fn decode(bytes: &[u8; DATA_HEADER_LEN]) -> Result<Self, Fault> {
        let version_len = BigEndian::read_u16(&bytes[32..34]);
        if version_len != 0 {
            return Err(Fault::Version { found: version_len });
        }
        Ok(Self {
            oid: Oid(BigEndian::read_u64(&bytes[0..8])),
            tid: Tid(BigEndian::read_u64(&bytes[8..16])),
            prev: BigEndian::read_u64(&bytes[16..24]),
            tloc: BigEndian::read_u64(&bytes[24..32]),
            data_len: BigEndian::read_u64(&bytes[34..42]),
        })
    }

    /// The bytes in the file.
    pub fn encode(&self) -> [u8; DATA_HEADER_LEN] {
        let mut bytes = [0; DATA_HEADER_LEN];
        BigEndian::write_u64(&mut bytes[0..8], self.oid.0);
        BigEndian::write_u64(&mut bytes[8..16], self.tid.0);
        BigEndian::write_u64(&mut bytes[16..24], self.prev);
        BigEndian::write_u64(&mut bytes[24..32], self.tloc);
        BigEndian::write_u64(&mut bytes[34..42], self.data_len);
        bytes
    }

    /// Bytes of the record with its data or back pointer. A damaged length may say anything, so
    /// that the sum saturates: it is then beyond every end that it is compared with.
    pub const fn record_len(&self) -> u64 {
        let content_len = match self.data_len {
            0 => POINTER_LEN as u64,
            len => len,
        };
        content_len.saturating_add(DATA_HEADER_LEN as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_header_has_the_bytes_of_python_struct() {
        // struct.pack(">8sQcHHH", b"\3abcdefg", 300, b"p", 1, 2, 515)
        let bytes = *b"\x03abcdefg\0\0\0\0\0\0\x01\x2cp\0\x01\0\x02\x02\x03";
        let header = TxnHeader::decode(&bytes);
        assert_eq!(
            header,
            TxnHeader {
                tid: Tid::from_bytes(*b"\x03abcdefg"),
                len: 300,
                status: Status::Packed,
                user_len: 1,
                descr_len: 2,
                ext_len: 515,
            }
        );
        assert_eq!(header.header_len(), 23 + 518);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn a_data_header_has_the_bytes_of_python_struct() {
        // struct.pack(">8s8sQQHQ", p64(7), b"\3abcdefg", 4, 258, 0, 9)
        let bytes = *b"\0\0\0\0\0\0\0\x07\x03abcdefg\0\0\0\0\0\0\0\x04\
            \0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\0\0\x09";
        let header = DataHeader::decode(&bytes).unwrap();
        assert_eq!(
            header,
            DataHeader {
                oid: Oid(7),
                tid: Tid::from_bytes(*b"\x03abcdefg"),
                prev: 4,
                tloc: 258,
                data_len: 9,
            }
        );
        assert_eq!(header.record_len(), 51);
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn a_version_is_refused() {
        let mut bytes = [0; DATA_HEADER_LEN];
        bytes[33] = 3;
        assert_eq!(DataHeader::decode(&bytes), Err(Fault::Version { found: 3 }));
    }

    #[test]
    fn every_status_byte_survives() {
        for byte in 0..=255 {
            assert_eq!(Status::from_byte(byte).to_byte(), byte);
        }
    }

    #[test]
    fn an_absurd_length_does_not_wrap() {
        let mut bytes = [0; DATA_HEADER_LEN];
        bytes[34..].fill(0xff);
        assert_eq!(DataHeader::decode(&bytes).unwrap().record_len(), u64::MAX);
    }
}
