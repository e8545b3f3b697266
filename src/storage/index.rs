//! Where each object's current record is.
//!
//! [`Index`] holds it in memory, about six bytes an object. Its file (`Data.fs.index`) has the
//! format of ZODB's `fsIndex`, so that either server starts quickly on what the other has saved: a
//! pickle of the position up to which the index is complete; then, for every six leading bytes of
//! an oid that occur, a pickle of the pair of them and of a bucket (the two trailing bytes of each
//! oid, sorted, and behind them all the positions, six bytes each); at the end a pickled `None`.
//! ZODB of Python 2 writes the two byte strings as `str`, later ones as `bytes`.

mod change;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use byteorder::{BigEndian, ByteOrder, LittleEndian};

pub(super) use self::change::Change;
use super::disk::{Disk, OpenMode};
use super::format::{FIRST_TXN_POS, POS_END, TXN_HEADER_LEN};
use super::window::Window;
use crate::ids::Oid;
use crate::pickle_opcode::{
    BINBYTES, BININT, BININT1, BININT2, BINSTRING, LONG1, NONE, PROTO, SHORT_BINBYTES,
    SHORT_BINSTRING, STOP, TUPLE2,
};

/// Oids of one chunk, as a power of two.
const CHUNK_BITS: u32 = 10;
const CHUNK_LEN: usize = 1 << CHUNK_BITS;

/// Entries from which on a chunk is dense. The sparse form is 8 bytes an entry and moves half of
/// them at an insertion; the dense one is 6 KB.
const SPARSE_LEN_MAX: usize = CHUNK_LEN / 2;

/// A position in six bytes, big-endian. All zero is "none": no record stands there.
type Pos48 = [u8; 6];
const NO_POS: Pos48 = [0; 6];

/// Oid to position of the object's current record, ordered by oid.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// By the leading bits of the oid. Shared with snapshots until one of them changes.
    chunks: BTreeMap<u64, Arc<Chunk>>,
    /// Entries of all chunks.
    len: usize,
}

#[derive(Clone, Debug)]
enum Chunk {
    /// Sorted by the trailing bits of the oid.
    Sparse(Vec<(u16, Pos48)>),
    Dense(Box<[Pos48; CHUNK_LEN]>),
}

impl Index {
    /// Without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of objects, deleted ones included, as in ZODB.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no object.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Position of the object's current record.
    pub fn get(&self, oid: Oid) -> Option<u64> {
        let (key, slot) = split(oid);
        let pos = self.chunks.get(&key)?.get(slot)?;
        Some(unpack(pos))
    }

    /// Enters or moves an object; its position so far.
    ///
    /// # Panics
    ///
    /// If `pos` is zero or not below [`POS_END`]. Opening refuses longer files, and so must
    /// whoever makes them grow.
    pub fn insert(&mut self, oid: Oid, pos: u64) -> Option<u64> {
        Self::check(pos);
        let (key, slot) = split(oid);
        let chunk = self
            .chunks
            .entry(key)
            .or_insert_with(|| Arc::new(Chunk::Sparse(Vec::new())));
        let before = Arc::make_mut(chunk).insert(slot, pack(pos));
        if before.is_none() {
            self.len += 1;
        }
        before.map(unpack)
    }

    fn check(pos: u64) {
        assert!(0 < pos && pos < POS_END, "position {pos} of a record");
    }

    /// Forgets an object; its position so far.
    pub fn remove(&mut self, oid: Oid) -> Option<u64> {
        let (key, slot) = split(oid);
        let chunk = self.chunks.get_mut(&key)?;
        chunk.get(slot)?;
        let chunk = Arc::make_mut(chunk);
        let before = chunk.remove(slot);
        self.len -= 1;
        if chunk.entries(0).next().is_none() {
            self.chunks.remove(&key);
        }
        before.map(unpack)
    }

    /// The largest oid.
    pub fn max_oid(&self) -> Option<Oid> {
        let (key, chunk) = self.chunks.last_key_value()?;
        let (slot, _) = chunk.entries(0).last()?;
        Some(join(*key, slot))
    }

    /// The first oid that is not below `from`.
    pub fn next_oid(&self, from: Oid) -> Option<Oid> {
        let (key, slot) = split(from);
        if let Some((slot, _)) = self.chunks.get(&key).and_then(|c| c.entries(slot).next()) {
            return Some(join(key, slot));
        }
        let (key, chunk) = self.chunks.range(key.checked_add(1)?..).next()?;
        let (slot, _) = chunk.entries(0).next()?;
        Some(join(*key, slot))
    }

    /// All objects with their positions, by oid.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, u64)> {
        self.chunks.iter().flat_map(|(key, chunk)| {
            chunk
                .entries(0)
                .map(|(slot, pos)| (join(*key, slot), unpack(pos)))
        })
    }

    /// The index as it is now, to be read elsewhere while this one goes on changing. Costs a
    /// pointer for each chunk, and later a copy of each chunk that changes.
    pub fn snapshot(&self) -> Self {
        self.clone()
    }

    /// Writes the index file; `pos` is the end of the last transaction that the index knows, which
    /// must be on stable storage: an index newer than its data would be believed.
    pub fn save(&self, pos: u64, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let mut out = Vec::with_capacity(64 + self.len * 8);
        put_pos(&mut out, pos);
        let mut bucket = Bucket::default();
        for (oid, pos) in self.iter() {
            if oid.0 >> 16 != bucket.prefix {
                bucket.put(&mut out);
                bucket.start(oid.0 >> 16);
            }
            bucket.slots.extend_from_slice(&oid.to_bytes()[6..]);
            bucket.positions.extend_from_slice(&pack(pos));
        }
        bucket.put(&mut out);
        out.extend_from_slice(&[PROTO, PROTOCOL, NONE, STOP]);
        disk.replace(path, &[&out])
    }

    /// Reads an index file, and the position up to which it is complete. Whatever is wrong with
    /// it only costs a scan of the data file. Whether it fits the data file is for the caller to
    /// find out.
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<(Self, u64), UnusableIndex> {
        let file = disk.open(path, OpenMode::Read)?;
        let mut input = Input {
            window: Window::new(file),
            pos: 0,
        };
        let end = input.position()?;
        let mut index = Self::new();
        let mut next = Some(Oid::ZERO);
        while let Some((prefix, bucket)) = input.bucket()? {
            for (oid, pos) in entries_of(prefix, &bucket) {
                let in_order = next.is_some_and(|next| oid >= next);
                if !in_order || !(FIRST_RECORD_POS..end).contains(&pos) {
                    return Err(input.malformed());
                }
                index.insert(oid, pos);
                next = oid.0.checked_add(1).map(Oid);
            }
        }
        Ok((index, end))
    }
}

impl Chunk {
    fn get(&self, slot: u16) -> Option<Pos48> {
        match self {
            Self::Sparse(entries) => {
                let at = entries.binary_search_by_key(&slot, |entry| entry.0).ok()?;
                Some(entries[at].1)
            }
            Self::Dense(positions) => {
                Some(positions[usize::from(slot)]).filter(|pos| *pos != NO_POS)
            }
        }
    }

    fn insert(&mut self, slot: u16, pos: Pos48) -> Option<Pos48> {
        if let Self::Sparse(entries) = self {
            match entries.binary_search_by_key(&slot, |entry| entry.0) {
                Ok(at) => return Some(std::mem::replace(&mut entries[at].1, pos)),
                Err(at) if entries.len() < SPARSE_LEN_MAX => {
                    entries.insert(at, (slot, pos));
                    return None;
                }
                Err(_) => *self = Self::dense(entries),
            }
        }
        let Self::Dense(positions) = self else {
            unreachable!("a full sparse chunk was just made dense");
        };
        let before = std::mem::replace(&mut positions[usize::from(slot)], pos);
        Some(before).filter(|pos| *pos != NO_POS)
    }

    fn remove(&mut self, slot: u16) -> Option<Pos48> {
        match self {
            Self::Sparse(entries) => {
                let at = entries.binary_search_by_key(&slot, |entry| entry.0).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Dense(positions) => {
                let before = std::mem::replace(&mut positions[usize::from(slot)], NO_POS);
                Some(before).filter(|pos| *pos != NO_POS)
            }
        }
    }

    fn dense(entries: &[(u16, Pos48)]) -> Self {
        let mut positions = Box::new([NO_POS; CHUNK_LEN]);
        for (slot, pos) in entries {
            positions[usize::from(*slot)] = *pos;
        }
        Self::Dense(positions)
    }

    /// The entries from `slot` on, in order.
    fn entries(&self, slot: u16) -> Box<dyn Iterator<Item = (u16, Pos48)> + '_> {
        match self {
            Self::Sparse(entries) => {
                let from = entries.partition_point(|entry| entry.0 < slot);
                Box::new(entries[from..].iter().copied())
            }
            Self::Dense(positions) => Box::new(
                (slot..)
                    .zip(&positions[usize::from(slot)..])
                    .map(|(slot, pos)| (slot, *pos))
                    .filter(|(_, pos)| *pos != NO_POS),
            ),
        }
    }
}

/// Key of the chunk, and place in it.
const fn split(oid: Oid) -> (u64, u16) {
    (oid.0 >> CHUNK_BITS, (oid.0 % CHUNK_LEN as u64) as u16)
}

const fn join(key: u64, slot: u16) -> Oid {
    Oid(key << CHUNK_BITS | slot as u64)
}

fn pack(pos: u64) -> Pos48 {
    let mut packed = NO_POS;
    BigEndian::write_u48(&mut packed, pos);
    packed
}

fn unpack(pos: Pos48) -> u64 {
    BigEndian::read_u48(&pos)
}

/// The protocol that ZODB uses, on Python 2 as well.
const PROTOCOL: u8 = 3;

/// Bytes of a bucket in which every suffix occurs.
const BUCKET_LEN_MAX: usize = 8 << 16;

/// Behind the magic and the shortest transaction header.
const FIRST_RECORD_POS: u64 = FIRST_TXN_POS + TXN_HEADER_LEN as u64;

/// Objects whose oids have the same first six bytes, for the index file.
#[derive(Default)]
struct Bucket {
    prefix: u64,
    slots: Vec<u8>,
    positions: Vec<u8>,
}

impl Bucket {
    fn start(&mut self, prefix: u64) {
        self.prefix = prefix;
        self.slots.clear();
        self.positions.clear();
    }

    fn put(&self, out: &mut Vec<u8>) {
        if self.slots.is_empty() {
            return;
        }
        out.extend_from_slice(&[PROTO, PROTOCOL]);
        put_bytes(out, &[&pack(self.prefix)]);
        put_bytes(out, &[&self.slots, &self.positions]);
        out.extend_from_slice(&[TUPLE2, STOP]);
    }
}

fn put_pos(out: &mut Vec<u8>, pos: u64) {
    out.extend_from_slice(&[PROTO, PROTOCOL]);
    if let Ok(short) = i32::try_from(pos) {
        out.push(BININT);
        out.extend_from_slice(&short.to_le_bytes());
    } else {
        // Seven bytes hold any position, and their sign is plus.
        out.extend_from_slice(&[LONG1, 7]);
        out.extend_from_slice(&pos.to_le_bytes()[..7]);
    }
    out.push(STOP);
}

fn put_bytes(out: &mut Vec<u8>, pieces: &[&[u8]]) {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    debug_assert!(len <= BUCKET_LEN_MAX);
    if let Ok(len) = u8::try_from(len) {
        out.extend_from_slice(&[SHORT_BINBYTES, len]);
    } else {
        out.push(BINBYTES);
        out.extend_from_slice(&(len as u32).to_le_bytes());
    }
    for piece in pieces {
        out.extend_from_slice(piece);
    }
}

/// The entries of a bucket from the file, whose length is a multiple of eight.
fn entries_of(prefix: u64, bucket: &[u8]) -> impl Iterator<Item = (Oid, u64)> {
    let (slots, positions) = bucket.split_at(bucket.len() / 4);
    let oids = slots
        .chunks_exact(2)
        .map(move |slot| Oid(prefix << 16 | u64::from(BigEndian::read_u16(slot))));
    oids.zip(positions.chunks_exact(6).map(BigEndian::read_u48))
}

/// An index file, read from front to back.
struct Input {
    window: Window,
    pos: u64,
}

impl Input {
    fn position(&mut self) -> Result<u64, UnusableIndex> {
        self.expect(PROTO)?;
        self.expect(PROTOCOL)?;
        let len = match self.u8()? {
            BININT1 => 1,
            BININT2 => 2,
            BININT => 4,
            LONG1 => usize::from(self.u8()?),
            _ => return Err(self.malformed()),
        };
        if !(1..=7).contains(&len) {
            return Err(self.malformed());
        }
        let pos = LittleEndian::read_uint(self.take(len)?, len);
        self.expect(STOP)?;
        if pos > POS_END {
            return Err(self.malformed());
        }
        Ok(pos)
    }

    /// `None` at the end.
    fn bucket(&mut self) -> Result<Option<(u64, Vec<u8>)>, UnusableIndex> {
        self.expect(PROTO)?;
        self.expect(PROTOCOL)?;
        let prefix = match self.u8()? {
            NONE => {
                self.expect(STOP)?;
                return Ok(None);
            }
            opcode => self.byte_string(opcode)?,
        };
        let opcode = self.u8()?;
        let bucket = self.byte_string(opcode)?;
        self.expect(TUPLE2)?;
        self.expect(STOP)?;
        if prefix.len() != 6 || bucket.is_empty() || bucket.len() % 8 != 0 {
            return Err(self.malformed());
        }
        Ok(Some((BigEndian::read_u48(&prefix), bucket)))
    }

    fn byte_string(&mut self, opcode: u8) -> Result<Vec<u8>, UnusableIndex> {
        let len = match opcode {
            SHORT_BINBYTES | SHORT_BINSTRING => usize::from(self.u8()?),
            BINBYTES | BINSTRING => LittleEndian::read_u32(self.take(4)?) as usize,
            _ => return Err(self.malformed()),
        };
        if len > BUCKET_LEN_MAX {
            return Err(self.malformed());
        }
        Ok(self.take(len)?.to_vec())
    }

    fn expect(&mut self, byte: u8) -> Result<(), UnusableIndex> {
        if self.u8()? == byte {
            Ok(())
        } else {
            Err(self.malformed())
        }
    }

    fn u8(&mut self) -> Result<u8, UnusableIndex> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, len: usize) -> Result<&[u8], UnusableIndex> {
        let pos = self.pos;
        let taken = self.window.bytes(pos, len)?;
        if taken.len() < len {
            return Err(UnusableIndex::Malformed { pos });
        }
        self.pos += len as u64;
        Ok(taken)
    }

    const fn malformed(&self) -> UnusableIndex {
        UnusableIndex::Malformed { pos: self.pos }
    }
}

/// Why the index has to be made from the data file.
#[derive(Debug)]
pub enum UnusableIndex {
    /// There is none.
    Missing,
    /// It cannot be read.
    Io(io::Error),
    /// Something before `pos` is not as ZODB and we write it.
    Malformed {
        /// Position in the index file.
        pos: u64,
    },
}

impl From<io::Error> for UnusableIndex {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for UnusableIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Io(error) => error.fmt(f),
            Self::Malformed { pos } => write!(f, "malformed at byte {pos}"),
        }
    }
}

impl std::error::Error for UnusableIndex {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::OsDisk;
    use crate::storage::testing::TestDir;

    /// Dense, sparse and lonely oids.
    fn mixed() -> (Index, BTreeMap<Oid, u64>) {
        // The first ones out of order, as in a file.
        let oids = (0..3000)
            .map(|n| n * 7919 % 3000)
            .chain((10_000..90_000).step_by(7))
            .chain([1 << 40, u64::MAX - 1, u64::MAX]);
        let (mut index, mut model) = (Index::new(), BTreeMap::new());
        for (n, oid) in oids.enumerate() {
            let pos = 1000 + n as u64 * 1_000_003;
            assert_eq!(index.insert(Oid(oid), pos), model.insert(Oid(oid), pos));
        }
        (index, model)
    }

    #[test]
    fn an_index_behaves_like_a_map() {
        let (mut index, mut model) = mixed();
        for oid in [Oid(5), Oid(10_000), Oid(u64::MAX)] {
            assert_eq!(index.insert(oid, 77), model.insert(oid, 77));
        }
        let gone = [Oid(7), Oid(17), Oid(10_007), Oid(1 << 40), Oid(8)];
        for oid in gone.into_iter().chain((1024..2048).map(Oid)) {
            assert_eq!(index.remove(oid), model.remove(&oid));
            assert_eq!(index.remove(oid), None);
        }
        assert_eq!(index.len(), model.len());
        assert!(index.iter().eq(model.iter().map(|(oid, pos)| (*oid, *pos))));
        assert_eq!(index.max_oid(), Some(Oid(u64::MAX)));
        for from in (0..100_000).chain([1 << 40, (1 << 40) + 1, u64::MAX]) {
            let from = Oid(from);
            assert_eq!(index.get(from), model.get(&from).copied());
            let next = model.range(from..).next().map(|(oid, _)| *oid);
            assert_eq!(index.next_oid(from), next, "{from}");
        }
    }

    #[test]
    fn an_empty_index_has_no_oid() {
        let index = Index::new();
        assert!(index.is_empty());
        assert_eq!(index.max_oid(), None);
        assert_eq!(index.next_oid(Oid::ZERO), None);
        assert_eq!(index.next_oid(Oid(u64::MAX)), None);
    }

    #[test]
    fn a_snapshot_does_not_see_later_changes() {
        let (mut index, model) = mixed();
        let snapshot = index.snapshot();
        index.insert(Oid(3), 4711);
        index.insert(Oid(95_000), 4711);
        assert!(snapshot.iter().eq(model.into_iter()));
        assert_eq!(index.get(Oid(3)), Some(4711));
    }

    #[test]
    fn a_dense_object_takes_less_than_seven_bytes() {
        let mut index = Index::new();
        let count = 100_000;
        for oid in 0..count {
            index.insert(Oid(oid), 4 + oid);
        }
        let chunk_len = |chunk: &Chunk| match chunk {
            Chunk::Sparse(entries) => entries.capacity() * size_of::<(u16, Pos48)>(),
            Chunk::Dense(_) => CHUNK_LEN * size_of::<Pos48>(),
        };
        // Counters of the `Arc`, the chunk itself; key and pointer in a tree that is half full.
        let fixed_len = 16 + size_of::<Chunk>() + 2 * 16;
        let len: usize = index
            .chunks
            .values()
            .map(|chunk| chunk_len(chunk) + fixed_len)
            .sum();
        assert!(len < 7 * count as usize, "{len}");
    }

    #[test]
    fn a_saved_index_is_loaded_as_it_was() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("Data.fs.index");
        for end in [POS_END, 1 << 37] {
            let (index, model) = mixed();
            index.save(end, &disk, &path).unwrap();
            let (loaded, loaded_end) = Index::load(&disk, &path).unwrap();
            assert!(loaded.iter().eq(model.into_iter()));
            assert_eq!(loaded_end, end);
        }
        Index::new().save(300, &disk, &path).unwrap();
        let (loaded, end) = Index::load(&disk, &path).unwrap();
        assert_eq!((loaded.len(), end), (0, 300));
    }

    #[test]
    fn the_files_of_both_pythons_are_understood() {
        // fsIndex with p64(0): 4 + 23, p64(1): 54, p64(70000): 1 << 20, saved at 1234567
        let python3 = b"\x80\x03J\x87\xd6\x12\0.\
            \x80\x03C\x06\0\0\0\0\0\0C\x10\0\0\0\x01\0\0\0\0\0\x1b\0\0\0\0\x006\x86.\
            \x80\x03C\x06\0\0\0\0\0\x01C\x08\x11p\0\0\0\x10\0\0\x86.\x80\x03N.";
        let python2 = python3.map(|byte| if byte == b'C' { b'U' } else { byte });
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("Data.fs.index");
        for contents in [python3, &python2] {
            disk.replace(&path, &[contents]).unwrap();
            let (index, end) = Index::load(&disk, &path).unwrap();
            let entries: Vec<_> = index.iter().map(|(oid, pos)| (oid.0, pos)).collect();
            assert_eq!(entries, [(0, 27), (1, 54), (70_000, 1 << 20)]);
            assert_eq!(end, 1_234_567);
        }
        let (index, end) = Index::load(&disk, &path).unwrap();
        index.save(end, &disk, &path).unwrap();
        assert_eq!(disk.read(&path).unwrap(), python3);
    }

    #[test]
    fn a_damaged_index_is_refused_or_still_points_into_the_file() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("Data.fs.index");
        assert!(matches!(
            Index::load(&disk, &path),
            Err(UnusableIndex::Missing)
        ));
        let mut index = Index::new();
        for oid in [0, 1, 2, 70_000, 70_001] {
            index.insert(Oid(oid), 100 + oid);
        }
        index.save(90_000, &disk, &path).unwrap();
        let good = disk.read(&path).unwrap();
        for at in 0..good.len() {
            disk.replace(&path, &[&good[..at]]).unwrap();
            assert!(Index::load(&disk, &path).is_err(), "cut at {at}");
            for bits in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= bits;
                disk.replace(&path, &[&bad]).unwrap();
                if let Ok((index, end)) = Index::load(&disk, &path) {
                    assert!(index.iter().all(|(_, pos)| pos < end));
                }
            }
        }
    }
}
