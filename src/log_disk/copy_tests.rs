//! Copies from a source that is slow to believe in: it fails, lies, and comes back.

use std::cell::{Cell, RefCell};
use std::io;

use super::manifest::{Manifest, Partial};
use super::tests::{Node, OPTIONS, blob, copy, directories, disk, identity, transfer};
use super::*;
use crate::ids::DiskId;
use crate::storage::disk::{OpenMode, with_suffix};
use crate::storage::journal::state::State as _;
use crate::storage::transfer::BlobAt;

const fn other_threads_may_have_it<T: Send + Sync>() {}

const _: () = other_threads_may_have_it::<Snapshot>();
const _: () = other_threads_may_have_it::<Beside>();

/// A copy as another node gives it: piece by piece, and with failures.
struct Remote {
    snapshot: Snapshot,
    manifest: Manifest,
    /// Bytes that are given at once.
    piece_len: usize,
    /// So many calls are answered.
    calls_left: Cell<usize>,
    /// Of each file: where its bytes were asked for.
    asked: RefCell<BTreeMap<u32, Vec<u64>>>,
    blobs_asked: RefCell<Vec<Tid>>,
    /// A byte of a file that comes wrong.
    wrong: Cell<Option<u64>>,
    is_wrong_blob: bool,
}

impl Remote {
    fn new(snapshot: Snapshot) -> Self {
        // As it is when it has travelled.
        let manifest = Manifest::decode(&snapshot.manifest().encode()).unwrap();
        assert_eq!(&manifest, snapshot.manifest());
        Self {
            snapshot,
            manifest,
            piece_len: 700,
            calls_left: Cell::new(usize::MAX),
            asked: RefCell::default(),
            blobs_asked: RefCell::default(),
            wrong: Cell::new(None),
            is_wrong_blob: false,
        }
    }

    fn call(&self) -> io::Result<()> {
        let left = self.calls_left.get().checked_sub(1);
        let left = left.ok_or(io::ErrorKind::TimedOut)?;
        self.calls_left.set(left);
        Ok(())
    }

    fn asked_of(&self, file: u32) -> Vec<u64> {
        self.asked.borrow().get(&file).cloned().unwrap_or_default()
    }
}

impl CopySource for Remote {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn read(&self, file: u32, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.call()?;
        self.asked.borrow_mut().entry(file).or_default().push(pos);
        let len = buf.len().min(self.piece_len);
        let read = self.snapshot.read(file, pos, &mut buf[..len])?;
        if let Some(at) = self.wrong.get().and_then(|wrong| wrong.checked_sub(pos))
            && (at as usize) < read
        {
            buf[at as usize] ^= 1;
        }
        Ok(read)
    }

    fn blobs(
        &self,
        storage: u32,
        after: Option<(Oid, Tid)>,
        count: usize,
    ) -> io::Result<Vec<BlobAt>> {
        self.call()?;
        self.snapshot.blobs(storage, after, count.min(2))
    }

    fn read_blob(
        &self,
        storage: u32,
        at: (Oid, Tid),
        pos: u64,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        self.call()?;
        self.blobs_asked.borrow_mut().push(at.1);
        let len = buf.len().min(self.piece_len);
        let read = self.snapshot.read_blob(storage, at, pos, &mut buf[..len])?;
        buf[0] ^= u8::from(self.is_wrong_blob);
        Ok(read)
    }
}

/// A node with two storages, and blobs in the second.
fn donor() -> Node {
    let mut node = Node::found(&["main", "other"]);
    for tid in 1..=5 {
        node.store("main", tid, &[tid as u8; 600]);
    }
    for (tid, content) in [(6, b"one"), (7, b"two"), (8, b"tri")] {
        let (name, content) = blob(content);
        node.log.put_blob(name, &content).unwrap();
        let body = transfer("other", b"a", &[name]);
        node.append(Kind::Transaction, tid, body);
    }
    node.apply();
    node
}

fn seeded(disk: &Arc<dyn Disk>, beside: Beside) -> Node {
    let other = Identity {
        disk: DiskId([77; 16]),
        ..identity(1)
    };
    let directories = directories(&["main", "other"]);
    LogDisk::seed(disk.clone(), &directories, &OPTIONS, &other, beside).unwrap();
    Node::open(disk.clone(), directories).unwrap()
}

#[test]
fn a_copy_goes_on_where_it_was_interrupted() {
    let (disk, directories) = (disk(), directories(&["main", "other"]));
    let mut node = donor();
    let source = Remote::new(node.log.snapshot().unwrap());
    let mut calls = 0;
    // One answer more each time.
    let beside = loop {
        source.calls_left.set(calls);
        match copy(&disk, &directories, &source) {
            Ok(beside) => break beside,
            Err(LogDiskError::Uncopied(_)) => calls += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(calls < 100);
    };
    // What was complete was not asked for again, but for its digest: its last piece came once.
    let len = source.manifest.files["main"].len;
    let mut main = source.asked_of(0);
    main.retain(|pos| *pos < len);
    let last = main.iter().max().unwrap();
    assert!(main.len() > 3, "{main:?}");
    assert_eq!(main.iter().filter(|pos| *pos == last).count(), 1);
    let tids = source.blobs_asked.borrow();
    assert_eq!(*tids, [Tid(6), Tid(7), Tid(8)]);
    drop(tids);

    // A later copy of the same disk has the same beginning.
    node.store("main", 20, b"later");
    node.apply();
    let later = Remote::new(node.log.snapshot().unwrap());
    drop(beside);
    let beside = copy(&disk, &directories, &later).unwrap();
    assert_eq!(later.asked_of(0), [len]);
    assert_eq!(later.asked_of(1), [source.manifest.files["other"].len]);
    assert!(later.blobs_asked.borrow().is_empty());
    let copied = seeded(&disk, beside);
    assert_eq!(copied.data("main").unwrap(), "later");
    assert_eq!(copied.start.log.last, node.last);
    let blobs = copied.log.follow()["other"].blobs.clone().unwrap();
    let read = |tid| disk.read(&blobs.file(Oid(1), Tid(tid))).unwrap();
    assert_eq!([read(6), read(7), read(8)], [b"one", b"two", b"tri"]);
}

#[test]
fn the_copy_of_another_disk_and_one_without_old_revisions_begin_anew() {
    let (disk, directories) = (disk(), directories(&["main", "other"]));
    let (mut node, mut other) = (donor(), donor());
    let first = Remote::new(node.log.snapshot().unwrap());
    copy(&disk, &directories, &first).unwrap();
    let mut source = Remote::new(other.log.snapshot().unwrap());
    source.manifest.of = DiskId([55; 16]);
    copy(&disk, &directories, &source).unwrap();
    assert_eq!(source.asked_of(0)[0], 0);
    for snapshot in [&mut node, &mut other].map(|it| it.log.snapshot().unwrap()) {
        let source = Remote::new(snapshot.newest_only().unwrap());
        copy(&disk, &directories, &source).unwrap();
        assert_eq!(source.asked_of(0)[0], 0);
        // It is in one node what it is in another, and so is not copied twice.
        let again = Remote::new(source.snapshot);
        copy(&disk, &directories, &again).unwrap();
        assert_eq!(again.asked_of(0), [again.manifest.files["main"].len]);
        let whole = Remote::new(node.log.snapshot().unwrap());
        copy(&disk, &directories, &whole).unwrap();
        assert_eq!(whole.asked_of(0)[0], 0);
    }
    // The current revisions only.
    let source = Remote::new(node.log.snapshot().unwrap().newest_only().unwrap());
    copy(&disk, &directories, &source).unwrap();
    assert_eq!(source.blobs(1, None, 9).unwrap().len(), 1);
}

#[test]
fn a_copy_that_came_damaged_is_not_taken() {
    let mut node = donor();
    let source = Remote::new(node.log.snapshot().unwrap());
    let directories = directories(&["main", "other"]);
    // The magic, a length, an oid, data.
    for wrong in [1, 4 + 8 + 7, 4 + 23 + 7, 4 + 23 + 42 + 100] {
        let disk = disk();
        source.wrong.set(Some(wrong));
        let error = copy(&disk, &directories, &source).unwrap_err();
        assert!(error.to_string().contains("garbled"), "{error}");
        assert!(error.is_refusal());
        // It is not believed when it is tried again.
        source.wrong.set(None);
        copy(&disk, &directories, &source).unwrap();
    }
    // A blob.
    let source = Remote {
        is_wrong_blob: true,
        ..source
    };
    let error = copy(&disk(), &directories, &source).unwrap_err();
    assert!(error.to_string().contains("0x06.blob: garbled"), "{error}");
}

#[test]
fn a_copy_of_what_is_damaged_is_not_taken() {
    let mut node = donor();
    let snapshot = node.log.snapshot().unwrap();
    let directories = directories(&["main", "other"]);
    let file = node
        .disk
        .open(Path::new("main.fs"), OpenMode::Write)
        .unwrap();
    let len = snapshot.manifest().files["main"].len;
    for (pos, bytes) in [(4 + 8 + 7, 0xff), (len - 1, 0xff)] {
        let mut byte = [0];
        file.read_at(&mut byte, pos).unwrap();
        file.write_at(&mut [io::IoSlice::new(&[bytes])], pos)
            .unwrap();
        let to = disk();
        let fresh = node.log.snapshot().unwrap();
        let error = copy(&to, &directories, &fresh).unwrap_err();
        assert!(error.to_string().contains("main.fs.copy: "), "{error}");
        assert!(to.identify(Path::new("main.fs.copy")).is_err());
        file.write_at(&mut [io::IoSlice::new(&byte)], pos).unwrap();
    }
    copy(&disk(), &directories, &node.log.snapshot().unwrap()).unwrap();
}

#[test]
fn a_copy_ends_when_it_is_not_to_go_on_and_tells_how_far_it_has_come() {
    let mut node = donor();
    let source = Remote::new(node.log.snapshot().unwrap());
    let (disk, directories) = (disk(), directories(&["main", "other"]));
    let mut told = Vec::new();
    let mut progress = |done, total| {
        told.push((done, total));
        told.len() < 4
    };
    let error = copy_beside(&disk, &directories, &source, &mut progress).unwrap_err();
    assert!(error.to_string().contains("given up"), "{error}");
    assert_eq!(told.len(), 4);
    told.clear();
    let mut progress = |done, total| {
        told.push((done, total));
        true
    };
    copy_beside(&disk, &directories, &source, &mut progress).unwrap();
    let (done, total) = *told.last().unwrap();
    assert_eq!((done, total), (source.manifest.len() + 9, done));
    assert!(told.is_sorted());
}

#[test]
fn a_copy_in_the_making_is_kept_while_it_may_be_of_use() {
    let mut other = donor();
    let Node {
        disk, directories, ..
    } = Node::found(&["main", "other"]);
    let source = Remote::new(other.log.snapshot().unwrap());
    source.calls_left.set(6);
    copy(&disk, &directories, &source).unwrap_err();
    let part = with_suffix(Path::new("main.fs"), found::COPY);
    let mut node = Node::open(disk.clone(), directories.clone()).unwrap();
    assert!(disk.identify(&part).is_ok());
    // The entries came after all.
    let entries = other.log.entries(Seq(1), Seq(5), u64::MAX).unwrap();
    node.log.run(DiskAction::Append(entries.unwrap())).unwrap();
    for tid in 6..=8 {
        node.last = node.log.positions().last;
        node.store("main", tid, b"a");
    }
    drop(node.log);
    Node::open(disk.clone(), directories).unwrap();
    assert!(disk.identify(&part).is_err());
    assert!(disk.identify(Path::new("journal/copy")).is_err());
}

#[test]
fn a_node_goes_on_while_a_copy_is_made() {
    let mut other = donor();
    let mut node = Node::found(&["main", "other"]);
    node.store("main", 1, &[1; 600]);
    let source = Remote::new(other.log.snapshot().unwrap());
    let (disk, directories) = (node.disk.clone(), node.directories.clone());
    // A client has a blob on its way.
    let staged = Path::new("other-blobs/tmp/standby-7.tmp");
    disk.replace(staged, &[b"staged"]).unwrap();
    let promised = crate::ids::Epoch {
        counter: 9,
        ..node.epoch
    };
    let mut is_first = true;
    let mut progress = |_, _| {
        if std::mem::take(&mut is_first) {
            node.log.run(DiskAction::Promise(promised)).unwrap();
            node.log.run(DiskAction::Apply { through: Seq(1) }).unwrap();
            node.log.checkpoint().unwrap();
        }
        true
    };
    let beside = copy_beside(&disk, &directories, &source, &mut progress).unwrap();
    assert_eq!(disk.read(staged).unwrap(), b"staged");
    let log = node.log.adopt(beside).unwrap();
    assert_eq!(log.last, other.last);
    for name in ["main.fs.copy", "main.fs.copy.index", "journal/copy"] {
        assert!(disk.identify(Path::new(name)).is_err(), "{name}");
    }
    assert_eq!(node.restart().unwrap().start.promised, promised);
}

#[test]
fn a_manifest_is_read_as_it_was_written_or_not_at_all() {
    let mut node = donor();
    let whole = node.log.snapshot().unwrap();
    let mut other = whole.manifest().clone();
    assert_eq!(other.id(), whole.manifest().id());
    other.newest_only = true;
    assert_ne!(other.id(), whole.manifest().id());
    let text = whole.manifest().encode();
    for at in 0..text.len() {
        assert!(Manifest::decode(&text[..at]).is_none(), "{at}");
        let mut bad = text.clone();
        bad[at] ^= 4;
        // A digit of the checksum may come to be written in another way.
        let found = Manifest::decode(&bad);
        assert!(found.is_none_or(|found| found == *whole.manifest()), "{at}");
    }
    let partial = Partial::begin(&other);
    let text = partial.encode(partial.of).into_bytes();
    assert_eq!(Partial::decode(&text).unwrap().0, partial);
    // A list that is of other storages than the rest is no manifest, whatever its checksum.
    other.files.remove("main");
    assert!(Manifest::decode(&other.encode()).is_none());
}
