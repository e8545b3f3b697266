//! The index file, in the format of ZODB's `fsIndex`, so that either server starts quickly on what
//! the other has saved: a pickle of the position up to which the index is complete; then, for every
//! six leading bytes of an oid that occur, a pickle of the pair of them and of a bucket (the two
//! trailing bytes of each oid, sorted, and behind them all the positions, six bytes each); at the
//! end a pickled `None`. ZODB of Python 2 writes the two byte strings as `str`, later ones as
//! `bytes`.
//!
//! Reading and writing take the memory of one bucket, which is half a megabyte at most. A bucket is
//! read as a whole: where oids are dense its positions are those of 64 chunks as they are in
//! memory, so that a million objects take some four milliseconds.

use std::fmt;
use std::io;
use std::path::Path;

use byteorder::{BigEndian, ByteOrder, LittleEndian};

use super::super::disk::{Disk, OpenMode, with_suffix};
use super::super::format::{FIRST_TXN_POS, POS_END, TXN_HEADER_LEN};
use super::super::output::Output;
use super::super::window::Window;
use super::{CHUNK_BITS, Index, Pos48, pack, unpack};
use crate::pickle_opcode::{
    BINBYTES, BININT, BININT1, BININT2, BINSTRING, LONG1, NONE, PROTO, SHORT_BINBYTES,
    SHORT_BINSTRING, STOP, TUPLE2,
};

impl Index {
    /// Writes the index file; `pos` is the end of the last transaction that the index knows, which
    /// must be on stable storage: an index newer than its data would be believed. There is the old
    /// file or the new one after a crash.
    ///
    /// # Errors
    ///
    /// It cannot be written. Nothing is left of it then.
    pub fn save(&self, pos: u64, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let new = with_suffix(path, ".new");
        disk.discard(&new)?;
        let written = self
            .write(pos, disk, &new)
            .and_then(|()| disk.rename(&new, path));
        if let Err(error) = written {
            // What is left of it would only take the space that may have been missing.
            let _ = disk.discard(&new);
            return Err(error);
        }
        disk.sync_directory_of(path)
    }

    fn write(&self, pos: u64, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let mut out = Output::new(disk.open(path, OpenMode::CreateNew)?, SYNC_LEN);
        put_pos(&mut out, pos)?;
        let mut bucket = Bucket::default();
        for (oid, pos) in self.iter() {
            if oid.0 >> 16 != bucket.prefix {
                bucket.put(&mut out)?;
                bucket.start(oid.0 >> 16);
            }
            bucket.slots.extend_from_slice(&oid.to_bytes()[6..]);
            bucket.positions.extend_from_slice(&pack(pos));
        }
        bucket.put(&mut out)?;
        out.put(&[PROTO, PROTOCOL, NONE, STOP])?;
        // Before the rename: else a crash could leave the name on a file without contents.
        out.sync()
    }

    /// Reads an index file, and the position up to which it is complete. Whatever is wrong with
    /// it only costs a scan of the data file. Whether it fits the data file is for the caller to
    /// find out.
    ///
    /// # Errors
    ///
    /// See [`UnusableIndex`].
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<(Self, u64), UnusableIndex> {
        let file = disk.open(path, OpenMode::Read)?;
        let mut input = Input {
            window: Window::with_len(file, WINDOW_LEN),
            pos: 0,
        };
        let end = input.position()?;
        let mut index = Self::new();
        let mut next = 0;
        while let Some((prefix, bucket)) = input.bucket()? {
            if prefix < next || !index.insert_bucket(prefix, bucket, end) {
                return Err(input.malformed());
            }
            next = prefix + 1;
        }
        Ok((index, end))
    }

    /// Enters a bucket from the file, whose length is a multiple of eight. `false` if it is not in
    /// order, or leads to where no record can be.
    fn insert_bucket(&mut self, prefix: u64, bucket: &[u8], end: u64) -> bool {
        let (slots, positions) = bucket.split_at(bucket.len() / 4);
        let (slots, _) = slots.as_chunks::<2>();
        let (positions, _) = positions.as_chunks::<6>();
        let records = FIRST_RECORD_POS..end;
        if !slots.is_sorted_by(|one, next| one < next)
            || !positions.iter().all(|pos| records.contains(&unpack(*pos)))
        {
            return false;
        }
        let chunk_of = |slot: &[u8; 2]| u16::from_be_bytes(*slot) >> CHUNK_BITS;
        let mut positions = positions;
        for slots in slots.chunk_by(|one, next| chunk_of(one) == chunk_of(next)) {
            let (here, behind) = positions.split_at(slots.len());
            let key = prefix << (16 - CHUNK_BITS) | u64::from(chunk_of(&slots[0]));
            self.insert_chunk(key, slots, here);
            positions = behind;
        }
        true
    }
}

/// The protocol that ZODB uses, on Python 2 as well.
const PROTOCOL: u8 = 3;

/// Bytes of a bucket in which every suffix occurs.
const BUCKET_LEN_MAX: usize = 8 << 16;

/// Bytes read at once: a whole bucket, and what stands around it.
const WINDOW_LEN: usize = BUCKET_LEN_MAX + 4096;

/// Bytes written without a sync: commits may have to wait for that long.
const SYNC_LEN: u64 = 4 << 20;

/// Leading bytes of the oids of a bucket.
const PREFIX_LEN: usize = size_of::<Pos48>();

/// What stands behind a bucket.
const BUCKET_END: [u8; 2] = [TUPLE2, STOP];

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

    fn put(&self, out: &mut Output) -> io::Result<()> {
        if self.slots.is_empty() {
            return Ok(());
        }
        out.put(&[PROTO, PROTOCOL])?;
        put_bytes(out, &[&pack(self.prefix)])?;
        put_bytes(out, &[&self.slots, &self.positions])?;
        out.put(&[TUPLE2, STOP])
    }
}

fn put_pos(out: &mut Output, pos: u64) -> io::Result<()> {
    out.put(&[PROTO, PROTOCOL])?;
    if let Ok(short) = i32::try_from(pos) {
        out.put(&[BININT])?;
        out.put(&short.to_le_bytes())?;
    } else {
        // Seven bytes hold any position, and their sign is plus.
        out.put(&[LONG1, 7])?;
        out.put(&pos.to_le_bytes()[..7])?;
    }
    out.put(&[STOP])
}

fn put_bytes(out: &mut Output, pieces: &[&[u8]]) -> io::Result<()> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    debug_assert!(len <= BUCKET_LEN_MAX);
    if let Ok(len) = u8::try_from(len) {
        out.put(&[SHORT_BINBYTES, len])?;
    } else {
        out.put(&[BINBYTES])?;
        out.put(&(len as u32).to_le_bytes())?;
    }
    pieces.iter().try_for_each(|piece| out.put(piece))
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

    /// The prefix and the entries, whose length is a multiple of eight; `None` at the end.
    fn bucket(&mut self) -> Result<Option<(u64, &[u8])>, UnusableIndex> {
        self.expect(PROTO)?;
        self.expect(PROTOCOL)?;
        let prefix = match self.u8()? {
            NONE => {
                self.expect(STOP)?;
                return Ok(None);
            }
            opcode if self.string_len(opcode)? == PREFIX_LEN => {
                BigEndian::read_u48(self.take(PREFIX_LEN)?)
            }
            _ => return Err(self.malformed()),
        };
        let opcode = self.u8()?;
        let len = self.string_len(opcode)?;
        let pos = self.pos;
        let taken = self.take(len + BUCKET_END.len())?;
        match taken.split_at(len) {
            (bucket, end) if len > 0 && len.is_multiple_of(8) && end == BUCKET_END => {
                Ok(Some((prefix, bucket)))
            }
            _ => Err(UnusableIndex::Malformed { pos }),
        }
    }

    fn string_len(&mut self, opcode: u8) -> Result<usize, UnusableIndex> {
        let len = match opcode {
            SHORT_BINBYTES | SHORT_BINSTRING => usize::from(self.u8()?),
            BINBYTES | BINSTRING => LittleEndian::read_u32(self.take(4)?) as usize,
            _ => return Err(self.malformed()),
        };
        if len > BUCKET_LEN_MAX {
            return Err(self.malformed());
        }
        Ok(len)
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
    use super::super::tests::mixed;
    use super::*;
    use crate::ids::Oid;
    use crate::storage::disk::OsDisk;
    use crate::storage::testing::TestDir;

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
    fn an_index_that_is_not_in_order_is_refused() {
        let bucket = |prefix: u8, slots: &[u8]| {
            let count = slots.len() as u8;
            let mut bytes = b"\x80\x03C\x06\0\0\0\0\0".to_vec();
            bytes.extend([prefix, b'C', 8 * count]);
            bytes.extend(slots.iter().flat_map(|slot| [0, *slot]));
            bytes.extend(slots.iter().flat_map(|_| [0, 0, 0, 0, 0, 100]));
            bytes.extend(b"\x86.");
            bytes
        };
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let path = dir.path("Data.fs.index");
        for (buckets, is_right) in [
            ([bucket(0, &[1, 2]), bucket(1, &[1, 2])], true),
            ([bucket(0, &[2, 1]), bucket(1, &[1, 2])], false),
            ([bucket(0, &[1, 1]), bucket(1, &[1, 2])], false),
            ([bucket(1, &[1, 2]), bucket(1, &[3, 4])], false),
            ([bucket(1, &[1, 2]), bucket(0, &[1, 2])], false),
        ] {
            let [first, second] = &buckets;
            let (head, tail) = (b"\x80\x03M\xd2\x04.", b"\x80\x03N.");
            disk.replace(&path, &[head, first, second, tail]).unwrap();
            let loaded = Index::load(&disk, &path);
            assert_eq!(loaded.is_ok(), is_right, "{buckets:?}");
            assert!(loaded.is_err() || loaded.is_ok_and(|(index, _)| index.len() == 4));
        }
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
