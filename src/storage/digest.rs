//! What two copies of a data file have in common, as digests of its transactions: to find the first
//! one that differs without sending either.
//!
//! A digest is of what a transaction means, and not of where it stands. Data that a record has by a
//! back pointer count as if they stood in it, and a transaction that has been through a pack as if
//! it had not: files of the same content may differ in both.

use std::io;
use std::sync::Arc;

use ring::digest::{Context, SHA256};

use super::disk::File;
use super::error::{Damage, Fault, ReadError};
use super::format::{DATA_HEADER_LEN, FIRST_TXN_POS, Status};
use super::iterate::{Record, Transaction, Transactions};
use super::read::{Reader, Wait};
use crate::ids::{Digest, Tid};

/// Transactions of a range of tids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeDigest {
    /// How many there are.
    pub count: u64,
    /// The first tid that does not belong to the range any more.
    pub next: Tid,
    /// Of the tids, and of which objects each transaction has.
    pub shape: Digest,
    /// Of all that is in them, the files of blobs apart.
    pub content: Digest,
}

impl RangeDigest {
    /// Whether the transactions are the same.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.count, self.shape, self.content) == (other.count, other.shape, other.content)
    }
}

/// Positions of some transactions, so that ranges that follow each other, or are parts of each
/// other, are found without reading what is in front of them.
#[derive(Debug, Default)]
pub struct Places {
    /// Of the first transaction that is not below the tid; the newest last.
    known: Vec<(Tid, u64)>,
}

/// Positions that are remembered: one for each halving of a range, and some more.
const PLACES_MAX: usize = 128;

impl Places {
    fn note(&mut self, tid: Tid, pos: u64) {
        self.known.retain(|(known, _)| *known != tid);
        if self.known.len() >= PLACES_MAX {
            self.known.remove(0);
        }
        self.known.push((tid, pos));
    }

    /// Where to begin to look for a tid.
    fn before(&self, tid: Tid) -> u64 {
        let known = self.known.iter().filter(|(known, _)| *known <= tid);
        known.max().map_or(FIRST_TXN_POS, |(_, pos)| *pos)
    }
}

/// The digest of the transactions from `from` to in front of `to`, of a file that ends at `tail`;
/// or of the first ones of these, if together they are longer than `len_max` bytes, but of one at
/// least if there is one. Blocks, for as long as reading that takes.
///
/// # Errors
///
/// The file cannot be read there, or contradicts itself.
pub fn range(
    file: &Arc<dyn File>,
    places: &mut Places,
    (from, to): (Tid, Tid),
    tail: u64,
    len_max: u64,
) -> Result<RangeDigest, ReadError> {
    let mut txns = Transactions::from_pos(file.clone(), places.before(from), tail);
    let (mut shape, mut content) = (Context::new(&SHA256), Context::new(&SHA256));
    let mut last = None;
    let (mut count, mut len) = (0_u64, 0);
    let mut next = to;
    loop {
        let pos = txns.pos();
        let Some(txn) = txns.next().transpose()? else {
            break;
        };
        let tid = txn.header.tid;
        if let Some(last) = last.replace(tid).filter(|last| tid <= *last) {
            let fault = Fault::TidOrder { found: tid, last };
            return Err(Damage { pos, fault }.into());
        }
        if tid < from {
            continue;
        }
        if count == 0 {
            places.note(from, pos);
        }
        if tid >= to || count > 0 && len >= len_max {
            next = tid.min(to);
            places.note(next, pos);
            break;
        }
        count += 1;
        len += txn.end() - pos;
        add(&mut txns, &txn, (&mut shape, &mut content), tail)?;
    }
    Ok(RangeDigest {
        count,
        next,
        shape: finish(shape),
        content: finish(content),
    })
}

fn finish(context: Context) -> Digest {
    let mut digest = Digest([0; Digest::LEN]);
    digest.0.copy_from_slice(context.finish().as_ref());
    digest
}

fn add(
    txns: &mut Transactions,
    txn: &Transaction,
    (shape, content): (&mut Context, &mut Context),
    tail: u64,
) -> Result<(), ReadError> {
    let header = &txn.header;
    let tid = header.tid.to_bytes();
    shape.update(&tid);
    content.update(&tid);
    let status = match header.status.of_committed() {
        Status::Packed => Status::Finished,
        status => status,
    };
    content.update(&[status.to_byte()]);
    for len in [header.user_len, header.descr_len, header.ext_len] {
        content.update(&len.to_be_bytes());
    }
    content.update(txn.texts());
    let mut pos = txn.records_pos();
    while let Some(record) = txns.record(txn, pos) {
        let record = record?;
        pos = record.end();
        let oid = record.header.oid.to_bytes();
        shape.update(&oid);
        content.update(&oid);
        content.update(&record.header.tid.to_bytes());
        add_data(txns, &record, content, tail)?;
    }
    // What follows is another transaction, and not another object of this one.
    shape.update(&END);
    content.update(&END);
    Ok(())
}

/// No oid.
const END: [u8; 8] = [0xff; 8];

/// Its length in eight bytes, which is zero if the object does not exist any more, and the data.
fn add_data(
    txns: &mut Transactions,
    record: &Record,
    content: &mut Context,
    tail: u64,
) -> Result<(), ReadError> {
    let (mut pos, len) = match record.back {
        None => {
            let pos = record.pos + DATA_HEADER_LEN as u64;
            (pos, record.header.data_len)
        }
        Some(_) => {
            let reader = Reader {
                file: txns.file(),
                wait: Wait::Yes,
                tail,
            };
            let source = reader.source(record.pos, record.header.oid)?;
            source.map_or((0, 0), |source| (source.data_pos, source.data_len))
        }
    };
    content.update(&len.to_be_bytes());
    let mut left = len;
    while left > 0 {
        let some = usize::try_from(left).map_or(PIECE_LEN, |left| left.min(PIECE_LEN));
        if record.back.is_none() {
            content.update(txns.bytes(pos, some)?);
        } else {
            let mut piece = vec![0; some];
            if txns.file().read_at(&mut piece, pos)? < some {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            content.update(&piece);
        }
        pos += some as u64;
        left -= some as u64;
    }
    Ok(())
}

/// Bytes of data in memory at a time.
const PIECE_LEN: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::Content::{Back, Data};
    use crate::storage::testing::{DataFile, TestDir};

    fn digest(file: &DataFile, places: &mut Places, from: u64, to: u64, len: u64) -> RangeDigest {
        let directory = TestDir::new();
        let saved = file.save(&directory.path("Data.fs"));
        range(&saved, places, (Tid(from), Tid(to)), file.end(), len).unwrap()
    }

    fn whole(file: &DataFile) -> RangeDigest {
        digest(file, &mut Places::default(), 0, u64::MAX, u64::MAX)
    }

    fn two(status: Status, user: &str, data: &[u8]) -> DataFile {
        let mut file = DataFile::new();
        file.txn(10, status, user, &[(1, Data(data)), (2, Data(b"b"))]);
        file.txn(20, Status::Finished, "", &[(1, Data(b"c"))]);
        file
    }

    #[test]
    fn what_a_pack_or_a_checkpoint_writes_elsewhere_makes_no_difference() {
        let plain = whole(&two(Status::Finished, "u", b"a"));
        assert_eq!(plain.count, 2);
        for status in [Status::Packed, Status::Voted] {
            assert!(whole(&two(status, "u", b"a")).is_same(&plain));
        }
        // Data that are pointed to count as if they were there, and positions do not count.
        let back = |first: &[(u64, u64)], is_pointer: bool| {
            let mut file = DataFile::new();
            for (tid, oid) in first {
                file.txn(*tid, Status::Finished, "", &[(*oid, Data(b"x"))]);
            }
            let a = file.txn(30, Status::Finished, "", &[(1, Data(b"a"))]);
            let content = if is_pointer { Back(a[0]) } else { Data(b"a") };
            file.txn(40, Status::Finished, "", &[(1, content), (3, Back(0))]);
            digest(&file, &mut Places::default(), 30, 50, u64::MAX)
        };
        assert_eq!(back(&[(5, 7)], true), back(&[], false));
        assert_eq!(back(&[], true).count, 2);
    }

    #[test]
    fn what_a_client_could_see_makes_a_difference() {
        let plain = whole(&two(Status::Finished, "u", b"a"));
        for (other, has_same_objects) in [
            (two(Status::Finished, "v", b"a"), true),
            (two(Status::Finished, "u", b"b"), true),
            (two(Status::Finished, "u", b"ab"), true),
            (two(Status::Undone, "u", b"a"), true),
            (
                {
                    let mut file = two(Status::Finished, "u", b"a");
                    file.txn(30, Status::Finished, "", &[]);
                    file
                },
                false,
            ),
            (
                {
                    let mut file = DataFile::new();
                    file.txn(10, Status::Finished, "u", &[(1, Data(b"a"))]);
                    file.txn(
                        20,
                        Status::Finished,
                        "",
                        &[(2, Data(b"b")), (1, Data(b"c"))],
                    );
                    file
                },
                false,
            ),
        ] {
            let other = whole(&other);
            assert!(!other.is_same(&plain));
            assert_eq!(other.shape == plain.shape, has_same_objects);
        }
        // The tid of a record is what clients see.
        let mut file = two(Status::Finished, "u", b"a");
        let at = usize::try_from(file.current[&1]).unwrap() + 15;
        file.bytes[at] ^= 1;
        assert!(!whole(&file).is_same(&plain));
    }

    #[test]
    fn ranges_are_found_in_any_order_and_end_where_they_are_long_enough() {
        let mut file = DataFile::new();
        for tid in 1..=20_u64 {
            let data = vec![tid as u8; 100];
            file.txn(tid * 10, Status::Finished, "", &[(tid, Data(&data))]);
        }
        let mut places = Places::default();
        let first = digest(&file, &mut places, 0, 1000, 400);
        assert_eq!((first.count, first.next), (3, Tid(40)));
        let rest = digest(&file, &mut places, 40, 1000, u64::MAX);
        assert_eq!((rest.count, rest.next), (17, Tid(1000)));
        // One is given however long it is.
        let one = digest(&file, &mut places, 0, 1000, 0);
        assert_eq!((one.count, one.next), (1, Tid(20)));
        for (from, to, count) in [
            (10, 11, 1),
            (11, 20, 0),
            (95, 141, 5),
            (0, 10, 0),
            (150, 300, 6),
        ] {
            let found = digest(&file, &mut places, from, to, u64::MAX);
            let fresh = digest(&file, &mut Places::default(), from, to, u64::MAX);
            assert_eq!((found, found.count), (fresh, count), "{from} {to}");
            assert_eq!(found.next, Tid(to));
        }
        for _ in 0..3 * PLACES_MAX as u64 {
            places.note(Tid(places.known.len() as u64 + 1000), 4);
        }
        assert!(places.known.len() <= PLACES_MAX);
    }

    #[test]
    fn damage_is_an_error_and_no_digest() {
        let mut file = two(Status::Finished, "u", b"a");
        let end = file.bytes.len() - 1;
        file.bytes[end] ^= 1;
        let directory = TestDir::new();
        let saved = file.save(&directory.path("Data.fs"));
        let all = (Tid::ZERO, Tid::MAX);
        let found = range(&saved, &mut Places::default(), all, file.end(), u64::MAX);
        assert!(matches!(found, Err(ReadError::Damaged(_))), "{found:?}");
        let mut file = two(Status::Finished, "u", b"a");
        file.txn(15, Status::Finished, "", &[]);
        let saved = file.save(&directory.path("Data.fs"));
        let found = range(&saved, &mut Places::default(), all, file.end(), u64::MAX);
        assert!(matches!(found, Err(ReadError::Damaged(_))), "{found:?}");
    }
}
