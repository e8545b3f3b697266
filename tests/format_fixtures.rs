//! Data files written by real ZODB (see `tests/data/fs/make.py`): read, compared with what ZODB
//! says is in them, written back byte for byte, and damaged.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use standby::ids::Tid;
use standby::storage::disk::{Disk, File, FileId, OpenMode, OsDisk};
use standby::storage::error::ReadError;
use standby::storage::format::{FIRST_TXN_POS, MAGIC, MAGIC_PYTHON2};
use standby::storage::index::Index;
use standby::storage::iterate::{Backwards, Transactions};
use standby::storage::read::{Found, Reader, Wait};
use standby::storage::recover::{self, Access, Opened};
use standby::storage::{Recent, RecentReader};

#[test]
fn files_of_real_zodb_are_read_as_zodb_reads_them() {
    for fixture in Fixture::all() {
        for with_index in [true, false] {
            let dir = fixture.copy(with_index);
            let opened = open(&dir.data_path(), Access::ReadWrite);
            assert_eq!(opened.index_pos > FIRST_TXN_POS, with_index);
            assert_eq!(facts(&opened), fixture.facts, "{}", fixture.name);
        }
    }
}

#[test]
fn an_unfinished_transaction_of_zodb_is_cut_and_kept() {
    let mut count = 0;
    for fixture in Fixture::all().filter(|fixture| fixture.name.ends_with("voted")) {
        let dir = fixture.copy(true);
        let whole = fs::read(dir.data_path()).unwrap();
        let opened = open(&dir.data_path(), Access::ReadWrite);
        let mut parts = fs::read(dir.data_path()).unwrap();
        assert_eq!(parts.len() as u64, opened.tail);
        parts.extend(fs::read(dir.path("Data.fs.tr0")).unwrap());
        assert!(parts == whole);
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn every_transaction_is_written_back_byte_for_byte() {
    for fixture in Fixture::all() {
        let dir = fixture.copy(true);
        let opened = open(&dir.data_path(), Access::ReadWrite);
        let python2 = fixture.name.starts_with("py27");
        let mut written = if python2 { MAGIC_PYTHON2 } else { MAGIC }.to_vec();
        let mut txns = transactions(&opened);
        while let Some(txn) = txns.next().transpose().unwrap() {
            written.extend(txn.header.encode());
            for text in [txn.user(), txn.descr(), txn.ext()] {
                written.extend(text);
            }
            let mut records = txns.records(&txn);
            while let Some(record) = records.next().transpose().unwrap() {
                written.extend(record.header.encode());
                match records.data(&record).unwrap() {
                    Some(data) => written.extend(&data),
                    None => written.extend(record.back.unwrap().to_be_bytes()),
                }
            }
            written.extend(txn.header.len.to_be_bytes());
        }
        assert!(
            written == fs::read(dir.data_path()).unwrap(),
            "{}",
            fixture.name
        );
    }
}

#[test]
fn an_index_of_zodb_is_saved_as_zodb_saved_it() {
    for fixture in Fixture::all() {
        let dir = fixture.copy(true);
        let path = dir.path("Data.fs.index");
        let load = || Index::load(&OsDisk::default(), &path).unwrap();
        let saved = fs::read(&path).unwrap();
        let (index, pos) = load();
        index.save(pos, &OsDisk::default(), &path).unwrap();
        let again = fs::read(&path).unwrap();
        let (loaded, loaded_pos) = load();
        assert!(loaded.iter().eq(index.iter()) && loaded_pos == pos);
        if !fixture.name.starts_with("py27") {
            // The position is two bytes long there and four here.
            assert_eq!(again[8..], saved[6..], "{}", fixture.name);
        }
    }
}

#[test]
fn both_directions_meet_the_same_transactions() {
    for fixture in Fixture::all() {
        let dir = fixture.copy(true);
        let opened = open(&dir.data_path(), Access::ReadWrite);
        let forwards: Vec<_> = transactions(&opened).map(Result::unwrap).collect();
        let mut backwards: Vec<_> = Backwards::new(&*opened.file, opened.tail)
            .map(Result::unwrap)
            .collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        let reader = RecentReader::new(Arc::clone(&opened.file), opened.tail, 3, Tid::MAX);
        let mut recent = Recent::More(Box::new(reader));
        let changes = loop {
            match recent {
                Recent::More(reader) => recent = reader.slice().unwrap(),
                Recent::Found(changes) => break changes,
            }
        };
        let tids: Vec<_> = changes.iter().map(|(tid, _)| *tid).collect();
        let last: Vec<_> = forwards.iter().map(|txn| txn.header.tid).collect();
        assert_eq!(tids, last[last.len() - 3..]);
    }
}

/// A damaged file is opened, iterated and read, or refused; nothing panics, and no read is larger
/// than the file gives reason for.
#[test]
fn damaged_files_end_in_errors_or_values() {
    const DAMAGED_PER_FIXTURE: u64 = 300;

    let mut refused = 0;
    for fixture in Fixture::all() {
        let good_index = fs::read(fixture.path("fs.index")).unwrap();
        for seed in 0..DAMAGED_PER_FIXTURE {
            let mut random = Random(seed);
            let mut data = fixture.data.clone();
            let mut index = good_index.clone();
            random.damage(&mut data);
            match random.below(3) {
                0 => random.damage(&mut index),
                1 => index.clear(),
                _ => {}
            }
            let disk = Memory::new([("Data.fs", data), ("Data.fs.index", index)]);
            let path = Path::new("Data.fs");
            match recover::open(&disk, path, Access::ReadOnly, &mut |_| ()) {
                Ok(opened) => read_everything(&opened),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 0);
}

fn read_everything(opened: &Opened) {
    let reader = Reader {
        file: &*opened.file,
        wait: Wait::Yes,
        tail: opened.tail,
    };
    let mut txns = transactions(opened);
    while let Some(Ok(txn)) = txns.next() {
        let mut records = txns.records(&txn);
        while let Some(Ok(record)) = records.next() {
            let _ = records.data(&record);
        }
    }
    let _ = Backwards::new(reader.file, opened.tail).count();
    for tid in [Tid(0), opened.last_tid, Tid::MAX] {
        let _ = Transactions::from_tid(Arc::clone(&opened.file), tid, opened.tail);
        for (oid, pos) in opened.index.iter() {
            let _ = reader.load_before(pos, oid, tid);
            let _ = reader.load_serial(pos, oid, tid);
            let _ = reader.current_tid(pos, oid);
        }
    }
}

fn open(path: &Path, access: Access) -> Opened {
    recover::open(&OsDisk::default(), path, access, &mut |_| ()).unwrap()
}

fn transactions(opened: &Opened) -> Transactions {
    Transactions::from_pos(Arc::clone(&opened.file), FIRST_TXN_POS, opened.tail)
}

/// The same lines that `make.py` writes, from our own reading.
fn facts(opened: &Opened) -> Vec<String> {
    let reader = Reader {
        file: &*opened.file,
        wait: Wait::Yes,
        tail: opened.tail,
    };
    let mut facts = vec![format!("end {} {}", opened.tail, opened.last_tid)];
    let mut tids = Vec::new();
    let mut txns = transactions(opened);
    while let Some(txn) = txns.next().transpose().unwrap() {
        let tid = txn.header.tid;
        tids.push(tid);
        let status = txn.header.status.to_byte();
        let [user, descr, ext] = [txn.user(), txn.descr(), txn.ext()].map(hexed);
        facts.push(format!(
            "txn {} {tid} {status} {user} {descr} {ext}",
            txn.pos
        ));
        let mut records = txns.records(&txn);
        while let Some(record) = records.next().transpose().unwrap() {
            let (pos, oid, tid) = (record.pos, record.header.oid, record.header.tid);
            let own = records.data(&record).unwrap();
            let loaded = reader.load_serial(pos, oid, tid).unwrap();
            if own.is_some() {
                assert_eq!(own, loaded);
            }
            let data = loaded.map_or("none".to_owned(), |data| summary(&data));
            facts.push(format!("rec {pos} {oid} {tid} {data}"));
        }
    }
    let last_tid = *tids.last().unwrap();
    tids.extend([last_tid.next(), Tid::MAX]);
    for (oid, pos) in opened.index.iter() {
        facts.push(format!("index {oid} {pos}"));
        for tid in &tids {
            let found = match reader.load_before(pos, oid, *tid).unwrap() {
                Found::Revision { data, serial, end } => {
                    let end = end.map_or("-".to_owned(), |end| end.to_string());
                    format!("{serial} {end} {}", summary(&data))
                }
                Found::NoneBefore => "none".to_owned(),
                Found::Deleted => "error".to_owned(),
            };
            facts.push(format!("before {oid} {tid} {found}"));
            let found: Result<Option<Bytes>, ReadError> = reader.load_serial(pos, oid, *tid);
            let found = found
                .unwrap()
                .map_or("error".to_owned(), |data| summary(&data));
            facts.push(format!("serial {oid} {tid} {found}"));
        }
        let current = reader.current_tid(pos, oid).unwrap();
        let current = current.map_or("error".to_owned(), |tid| tid.to_string());
        facts.push(format!("tid {oid} {current}"));
    }
    facts
}

fn hexed(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn summary(data: &[u8]) -> String {
    format!("{}:{:08x}", data.len(), crc32(data))
}

/// CRC-32 as in zlib.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

/// One data file with its index and ZODB's word on it.
struct Fixture {
    name: String,
    data: Vec<u8>,
    facts: Vec<String>,
}

impl Fixture {
    fn all() -> impl Iterator<Item = Self> {
        ["py27-zodb58", "py37-zodb56", "py311-zodb64"]
            .into_iter()
            .flat_map(|zodb| ["plain", "packed", "voted"].map(|variant| Self::new(zodb, variant)))
    }

    fn new(zodb: &str, variant: &str) -> Self {
        let mut fixture = Self {
            name: format!("{zodb}-{variant}"),
            data: Vec::new(),
            facts: Vec::new(),
        };
        fixture.data = fs::read(fixture.path("fs")).unwrap();
        let text = fs::read_to_string(fixture.path("txt")).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        fixture.facts = lines.map(str::to_owned).collect();
        fixture
    }

    fn path(&self, suffix: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/fs")
            .join(format!("{}.{suffix}", self.name))
    }

    /// The file as `Data.fs` in a directory of its own.
    fn copy(&self, with_index: bool) -> TestDir {
        let dir = TestDir::new();
        fs::write(dir.data_path(), &self.data).unwrap();
        if with_index {
            fs::copy(self.path("fs.index"), dir.path("Data.fs.index")).unwrap();
        }
        dir
    }
}

/// A directory that is removed with its contents when the test ends.
struct TestDir(PathBuf);

impl TestDir {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("standby-fixtures-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn data_path(&self) -> PathBuf {
        self.path("Data.fs")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// SplitMix64: the same damage for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// Changes bits, overwrites numbers with extreme ones, moves pieces, cuts the end.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        const EXTREMES: [u64; 8] = [0, 1, 4, 23, 1 << 31, 1 << 48, 1 << 63, u64::MAX];

        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 => bytes.truncate(at.max(1)),
                1 => {
                    let from = self.below(bytes.len());
                    let len = self.below(100).min(bytes.len() - at.max(from));
                    bytes.copy_within(from..from + len, at);
                }
                2 | 3 => {
                    let number = EXTREMES[self.below(EXTREMES.len())].to_be_bytes();
                    let len = number.len().min(bytes.len() - at);
                    bytes[at..at + len].copy_from_slice(&number[..len]);
                }
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
    }
}

/// Files in memory, for reading.
#[derive(Debug)]
struct Memory(BTreeMap<PathBuf, Arc<MemoryFile>>);

impl Memory {
    fn new<const N: usize>(files: [(&str, Vec<u8>); N]) -> Self {
        let files = files.map(|(path, bytes)| (path.into(), Arc::new(MemoryFile(bytes))));
        Self(files.into())
    }
}

impl Disk for Memory {
    fn open(&self, path: &Path, _mode: OpenMode) -> io::Result<Arc<dyn File>> {
        match self.0.get(path) {
            Some(file) => Ok(Arc::clone(file) as Arc<dyn File>),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
    fn read(&self, _path: &Path) -> io::Result<Vec<u8>> {
        read_only()
    }
    fn replace(&self, _path: &Path, _contents: &[&[u8]]) -> io::Result<()> {
        read_only()
    }
    fn remove(&self, _path: &Path) -> io::Result<()> {
        read_only()
    }
    fn identify(&self, _path: &Path) -> io::Result<FileId> {
        read_only()
    }
    fn sync_directory_of(&self, _path: &Path) -> io::Result<()> {
        read_only()
    }
    fn open_unnamed(&self, _path: &Path) -> io::Result<Arc<dyn File>> {
        read_only()
    }
    fn names(&self, _directory: &Path) -> io::Result<Vec<OsString>> {
        read_only()
    }
    fn create_directories(&self, _path: &Path) -> io::Result<Vec<PathBuf>> {
        read_only()
    }
    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        read_only()
    }
    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        read_only()
    }
    fn discard(&self, _path: &Path) -> io::Result<()> {
        read_only()
    }
    fn remove_tree(&self, _path: &Path) -> io::Result<()> {
        read_only()
    }
    fn set_read_only(&self, _path: &Path, _directory: &Path) -> io::Result<()> {
        read_only()
    }
}

#[derive(Debug)]
struct MemoryFile(Vec<u8>);

impl File for MemoryFile {
    fn id(&self) -> io::Result<FileId> {
        read_only()
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        // What is read ahead at most, and no length from the file above that.
        assert!(buf.len() <= self.0.len().max(516 * 1024), "{}", buf.len());
        let Some(rest) = usize::try_from(pos).ok().and_then(|pos| self.0.get(pos..)) else {
            return Ok(0);
        };
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.read_at(buf, pos)
    }
    fn write_at(&self, _bufs: &mut [IoSlice<'_>], _pos: u64) -> io::Result<()> {
        read_only()
    }
    fn sync(&self) -> io::Result<()> {
        read_only()
    }
    fn set_len(&self, _len: u64) -> io::Result<()> {
        read_only()
    }
    fn allocate(&self, _pos: u64, _len: u64) -> io::Result<()> {
        read_only()
    }
    fn try_lock(&self) -> io::Result<bool> {
        read_only()
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}
