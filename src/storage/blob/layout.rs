//! Where the file of a blob stands: `<directory of the oid>/<tid>.blob`, as in ZODB's
//! `blob.FilesystemHelper` (the layouts `bushy` and `lawn`).

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use crate::ids::{Oid, Tid};
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;

/// The file that names the layout.
const MARKER: &str = ".layout";

/// Where files are until their transaction is finished. Clients that share the directory, and ZODB
/// itself, keep theirs there, too.
const TEMPORARY: &str = "tmp";

/// What the names of our files there begin with, so that those of others are left alone.
const OURS: &str = "standby-";

/// How the directories of objects are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A level for each byte of the oid: `0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01`.
    Bushy,
    /// One level: `0x01`. Of old directories; too many names in one directory if there are many.
    Lawn,
}

impl Layout {
    /// Its name in the marker.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bushy => "bushy",
            Self::Lawn => "lawn",
        }
    }

    /// The directory of an object, below the blob directory.
    pub fn directory_of(self, oid: Oid) -> PathBuf {
        match self {
            Self::Bushy => oid
                .to_bytes()
                .iter()
                .map(|byte| format!("0x{byte:02x}"))
                .collect(),
            Self::Lawn => PathBuf::from(short_hex(oid.0)),
        }
    }
}

/// A directory of blobs, and what is where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobDirectory {
    base: PathBuf,
    layout: Layout,
}

impl BlobDirectory {
    /// A directory with a layout that is known.
    pub const fn new(base: PathBuf, layout: Layout) -> Self {
        Self { base, layout }
    }

    /// Finds out the layout of a directory, and, if it may be written, creates what is missing and
    /// removes what unfinished transactions of an earlier process have left. Blocks.
    ///
    /// # Errors
    ///
    /// The marker names a layout that we do not know, temporary files would be on another file
    /// system (they could not become blobs in one step), or the system refuses.
    pub fn open(disk: &dyn Disk, base: &Path, writable: bool) -> Result<Self, StorageError> {
        let layout = choose(disk, base)?;
        let directory = Self::new(base.to_owned(), layout);
        if layout == Layout::Lawn {
            log::warn!(
                "{}: the lawn layout is slow on some file systems, and deprecated by ZODB",
                base.display()
            );
        }
        if writable {
            directory.prepare(disk)?;
        }
        Ok(directory)
    }

    fn prepare(&self, disk: &dyn Disk) -> Result<(), StorageError> {
        let temporary = self.temporary();
        create(disk, &self.base)?;
        let marker = self.base.join(MARKER);
        if is_missing(disk, &marker)? {
            disk.replace(&marker, &[self.layout.name().as_bytes()])
                .map_err(StorageError::io("write", &marker))?;
        }
        // Only now: a directory with something in it and no marker would be taken for a lawn.
        create(disk, &temporary)?;
        let device = |path: &Path| match disk.identify(path) {
            Ok(id) => Ok(id.device),
            Err(error) => Err(StorageError::io("identify", path)(error)),
        };
        if device(&temporary)? != device(&self.base)? {
            return Err(StorageError::BlobsApart { path: temporary });
        }
        let names = disk
            .names(&temporary)
            .map_err(StorageError::io("list", &temporary))?;
        for name in names.iter().filter(|name| is_ours(name)) {
            let path = temporary.join(name);
            disk.discard(&path)
                .map_err(StorageError::io("remove", &path))?;
            log::info!("{}: removed (of an unfinished blob)", path.display());
        }
        Ok(())
    }

    /// The blob directory itself.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// How it is arranged.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Where files are until their transaction is finished.
    pub fn temporary(&self) -> PathBuf {
        self.base.join(TEMPORARY)
    }

    /// A name for a file of ours there.
    pub(super) fn temporary_file(&self, number: u64) -> PathBuf {
        self.temporary().join(format!("{OURS}{number}.tmp"))
    }

    /// The directory of an object. It may not be there.
    pub fn directory_of(&self, oid: Oid) -> PathBuf {
        self.base.join(self.layout.directory_of(oid))
    }

    /// The file of a committed blob. It may not be there.
    pub fn file(&self, oid: Oid, tid: Tid) -> PathBuf {
        self.directory_of(oid)
            .join(format!("{}.blob", short_hex(tid.0)))
    }

    /// All committed blobs, in any order: whose they are, of which transactions, and where. What
    /// has no such name is passed over.
    pub fn walk<'a>(
        &'a self,
        disk: &'a dyn Disk,
    ) -> impl Iterator<Item = io::Result<(Oid, Tid, PathBuf)>> + 'a {
        let mut directories = vec![self.base.clone()];
        let mut found = Vec::new();
        std::iter::from_fn(move || {
            loop {
                if let Some(blob) = found.pop() {
                    return Some(Ok(blob));
                }
                let directory = directories.pop()?;
                let names = match disk.names(&directory) {
                    Ok(names) => names,
                    // A pack has removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Some(Err(error)),
                };
                for path in names.iter().map(|name| directory.join(name)) {
                    match self.parse(&path) {
                        Some((oid, tid)) => found.push((oid, tid, path)),
                        None if self.may_be_on_the_way(&path) => directories.push(path),
                        None => {}
                    }
                }
            }
        })
    }

    /// Committed blobs in the order of oids and tids, behind `after`; so many at most.
    ///
    /// # Errors
    ///
    /// A directory cannot be read.
    pub fn list(
        &self,
        disk: &dyn Disk,
        after: Option<(Oid, Tid)>,
        count: usize,
    ) -> io::Result<Vec<(Oid, Tid)>> {
        let mut listing = Listing {
            disk,
            from: after.map_or(0, |(oid, _)| oid.0),
            after,
            count,
            found: Vec::new(),
        };
        match self.layout {
            Layout::Bushy => listing.descend(self, &self.base, 0, 0)?,
            Layout::Lawn => {
                for number in listing.numbers(&self.base, "")? {
                    listing.add(self, Oid(number))?;
                }
            }
        }
        Ok(listing.found)
    }

    /// Whose blob a file is, by its name.
    fn parse(&self, path: &Path) -> Option<(Oid, Tid)> {
        let name = path.file_name()?.to_str()?;
        let tid = parse_hex(name.strip_suffix(".blob")?)?;
        let directory = path.parent()?.strip_prefix(&self.base).ok()?;
        let mut oid = 0;
        for part in directory.iter() {
            let number = parse_hex(part.to_str()?)?;
            oid = match self.layout {
                Layout::Bushy => oid << 8 | number,
                Layout::Lawn => number,
            };
        }
        // Which also tells that it is not too deep, and written in the one right way.
        (self.file(Oid(oid), Tid(tid)) == path).then_some((Oid(oid), Tid(tid)))
    }

    /// Whether a directory has the form of one with blobs in it, or in others below it.
    fn may_be_on_the_way(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.base) else {
            return false;
        };
        let depth_max = match self.layout {
            Layout::Bushy => 8,
            Layout::Lawn => 1,
        };
        let is_hex = |part: &OsStr| part.to_str().and_then(parse_hex).is_some();
        below.iter().count() <= depth_max && below.iter().all(is_hex)
    }

    /// The directory of an object and those above it that are below the blob directory, which is
    /// what has to be durable before the name of a file in the first can be.
    pub(in crate::storage) fn directories_of(&self, oid: Oid) -> Vec<PathBuf> {
        let directory = self.directory_of(oid);
        let below = |path: &&Path| **path != self.base;
        let all = directory.ancestors().take_while(below);
        all.map(Path::to_owned).collect()
    }
}

/// What [`BlobDirectory::list`] goes through.
struct Listing<'a> {
    disk: &'a dyn Disk,
    /// No oid below this.
    from: u64,
    after: Option<(Oid, Tid)>,
    count: usize,
    found: Vec<(Oid, Tid)>,
}

impl Listing<'_> {
    /// The numbers that names in a directory stand for, in order.
    fn numbers(&self, directory: &Path, suffix: &str) -> io::Result<Vec<u64>> {
        let names = match self.disk.names(directory) {
            Ok(names) => names,
            // A pack has removed it, or there was never one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            // A file that is nobody's.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let number = |name: &OsString| parse_hex(name.to_str()?.strip_suffix(suffix)?);
        let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// A directory of the bushy layout, so many levels below the first, where oids begin with these
    /// bytes.
    fn descend(
        &mut self,
        blobs: &BlobDirectory,
        directory: &Path,
        depth: u32,
        bytes: u64,
    ) -> io::Result<()> {
        if depth == 8 {
            return self.add(blobs, Oid(bytes));
        }
        for byte in self.numbers(directory, "")? {
            let below = bytes << 8 | byte;
            let last = (u128::from(below) + 1) << (8 * (7 - depth));
            if byte > 0xff || last <= u128::from(self.from) {
                continue;
            }
            if self.found.len() >= self.count {
                break;
            }
            let path = directory.join(format!("0x{byte:02x}"));
            self.descend(blobs, &path, depth + 1, below)?;
        }
        Ok(())
    }

    /// The blobs of an object.
    fn add(&mut self, blobs: &BlobDirectory, oid: Oid) -> io::Result<()> {
        if oid.0 < self.from || self.found.len() >= self.count {
            return Ok(());
        }
        let tids = self.numbers(&blobs.directory_of(oid), ".blob")?;
        let all = tids.into_iter().map(|tid| (oid, Tid(tid)));
        let left = self.count - self.found.len();
        let behind = all.filter(|at| self.after.is_none_or(|after| *at > after));
        self.found.extend(behind.take(left));
        Ok(())
    }
}

/// `ZODB.utils.oid_repr`: hexadecimal without leading zero bytes.
fn short_hex(number: u64) -> String {
    let digits = format!("{number:x}");
    let padding = if digits.len() % 2 == 1 { "0" } else { "" };
    format!("0x{padding}{digits}")
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The layout that the marker names; without one that of a directory that is in use without a
/// marker (`lawn`), or of a new one (`bushy`).
fn choose(disk: &dyn Disk, base: &Path) -> Result<Layout, StorageError> {
    let marker = base.join(MARKER);
    match disk.read(&marker) {
        Ok(text) => match text.trim_ascii() {
            b"bushy" => Ok(Layout::Bushy),
            b"lawn" => Ok(Layout::Lawn),
            found => Err(StorageError::BlobLayout {
                path: marker,
                found: found.to_vec(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = match disk.names(base) {
                Ok(names) => names,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(StorageError::io("list", base)(error)),
            };
            let is_hidden = |name: &OsStr| name.as_encoded_bytes().starts_with(b".");
            match names.iter().all(|name| is_hidden(name)) {
                true => Ok(Layout::Bushy),
                false => Ok(Layout::Lawn),
            }
        }
        Err(error) => Err(StorageError::io("read", &marker)(error)),
    }
}

/// Makes a directory durable, with those above it that were not there.
fn create(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    let created = disk
        .create_directories(path)
        .map_err(StorageError::io("create", path))?;
    for path in &created {
        disk.sync_directory_of(path)
            .map_err(StorageError::io("sync the directory of", path))?;
    }
    Ok(())
}

fn is_missing(disk: &dyn Disk, path: &Path) -> Result<bool, StorageError> {
    match disk.identify(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(StorageError::io("identify", path)(error)),
    }
}

fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(OURS.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::{OpenMode, OsDisk};
    use crate::storage::testing::TestDir;

    #[test]
    fn names_are_those_of_zodb() {
        let bushy = BlobDirectory::new("blobs".into(), Layout::Bushy);
        assert_eq!(
            bushy.file(Oid(1), Tid(0x040d_2746_2eea_6211)),
            Path::new("blobs/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x040d27462eea6211.blob")
        );
        let lawn = BlobDirectory::new("blobs".into(), Layout::Lawn);
        for (oid, name) in [(0, "0x00"), (1, "0x01"), (0x10, "0x10"), (0xabc, "0x0abc")] {
            assert_eq!(
                lawn.directory_of(Oid(oid)),
                Path::new("blobs").join(name),
                "{oid}"
            );
        }
        assert_eq!(lawn.directories_of(Oid(1)), [Path::new("blobs/0x01")]);
        let all = bushy.directories_of(Oid(0x1_0002));
        assert_eq!(all.len(), 8);
        assert_eq!(all[7], Path::new("blobs/0x00"));
        assert_eq!(all[0], bushy.directory_of(Oid(0x1_0002)));
    }

    #[test]
    fn a_new_directory_is_bushy_and_says_so() {
        let dir = TestDir::new();
        let base = dir.path("deep/blobs");
        let opened = BlobDirectory::open(&OsDisk::default(), &base, true).unwrap();
        assert_eq!(opened.layout(), Layout::Bushy);
        assert_eq!(std::fs::read(base.join(".layout")).unwrap(), b"bushy");
        assert!(base.join("tmp").is_dir());
    }

    #[test]
    fn nothing_is_created_before_the_marker_can_be_written() {
        let dir = TestDir::new();
        let base = dir.path("blobs");
        // In the way of a new marker.
        std::fs::create_dir_all(base.join(".layout.new")).unwrap();
        BlobDirectory::open(&OsDisk::default(), &base, true).unwrap_err();
        assert!(!base.join("tmp").exists());
        std::fs::remove_dir(base.join(".layout.new")).unwrap();
        let opened = BlobDirectory::open(&OsDisk::default(), &base, true).unwrap();
        assert_eq!(opened.layout(), Layout::Bushy);
    }

    #[test]
    fn an_old_directory_keeps_its_layout() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let base = dir.path("used");
        std::fs::create_dir_all(base.join("0x01")).unwrap();
        let opened = BlobDirectory::open(&disk, &base, true).unwrap();
        assert_eq!(opened.layout(), Layout::Lawn);
        for (text, layout) in [("bushy\n", Layout::Bushy), ("lawn", Layout::Lawn)] {
            std::fs::write(base.join(".layout"), text).unwrap();
            let opened = BlobDirectory::open(&disk, &base, true).unwrap();
            assert_eq!(opened.layout(), layout);
            assert_eq!(
                std::fs::read(base.join(".layout")).unwrap(),
                text.as_bytes()
            );
        }
        std::fs::write(base.join(".layout"), "zeocache").unwrap();
        let error = BlobDirectory::open(&disk, &base, true).unwrap_err();
        assert!(error.to_string().contains("\"zeocache\""), "{error}");
    }

    #[test]
    fn read_only_nothing_is_created() {
        let dir = TestDir::new();
        let base = dir.path("blobs");
        let opened = BlobDirectory::open(&OsDisk::default(), &base, false).unwrap();
        assert_eq!(opened.layout(), Layout::Bushy);
        assert!(!base.exists());
    }

    #[test]
    fn blobs_are_listed_in_order_in_parts_of_any_length() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        for layout in [Layout::Bushy, Layout::Lawn] {
            let blobs = BlobDirectory::new(dir.path(layout.name()), layout);
            assert_eq!(blobs.list(&disk, None, 9).unwrap(), []);
            let oids = [
                0,
                1,
                0xff,
                0x100,
                0x1_0000,
                0x0123_4567_89ab_cdef,
                u64::MAX >> 1,
            ];
            let mut all = Vec::new();
            for oid in oids {
                std::fs::create_dir_all(blobs.directory_of(Oid(oid))).unwrap();
                for tid in [1, 0x2f, 0x100] {
                    all.push((Oid(oid), Tid(tid)));
                    std::fs::write(blobs.file(Oid(oid), Tid(tid)), b"").unwrap();
                }
            }
            for other in ["tmp", "0x00/0x100", "0x00/elsewhere"] {
                std::fs::create_dir_all(blobs.base().join(other)).unwrap();
            }
            std::fs::write(blobs.base().join("0x77"), b"").unwrap();
            for count in [1, 2, 5, all.len(), 100] {
                let (mut found, mut after) = (Vec::new(), None);
                while let Some(last) = {
                    let part = blobs.list(&disk, after, count).unwrap();
                    assert!(part.len() <= count);
                    found.extend(part.iter().copied());
                    part.last().copied()
                } {
                    after = Some(last);
                }
                assert_eq!(found, all, "{layout:?} {count}");
            }
            // Behind one that is gone.
            let behind = blobs.list(&disk, Some((Oid(1), Tid(0x30))), 1).unwrap();
            assert_eq!(behind, [(Oid(1), Tid(0x100))]);
        }
    }

    #[test]
    fn only_our_own_leftovers_are_removed() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let base = dir.path("blobs");
        let opened = BlobDirectory::open(&disk, &base, true).unwrap();
        let ours = opened.temporary_file(7);
        for path in [&ours, &base.join("tmp/BUCsomething")] {
            disk.open(path, OpenMode::CreateNew).unwrap();
        }
        BlobDirectory::open(&disk, &base, false).unwrap();
        assert!(ours.exists());
        BlobDirectory::open(&disk, &base, true).unwrap();
        let left: Vec<_> = disk.names(&base.join("tmp")).unwrap();
        assert_eq!(left, ["BUCsomething"]);
    }
}
