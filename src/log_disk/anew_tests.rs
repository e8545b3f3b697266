//! Data that are damaged, and a copy of another node's in their place.

use std::io::IoSlice;

use super::tests::{Node, blob, transfer};
use super::*;
use crate::storage::disk::OpenMode;
use crate::storage::memory::MemoryDisk;
use crate::storage::transfer::BlobName;

/// The number that blobs are expected by.
const NUMBER: u64 = 99;

/// Two nodes with the same log, all of which is applied.
struct Two {
    donor: Node,
    node: Node,
}

impl Two {
    fn new() -> Self {
        Self::with(Arc::new(MemoryDisk::new()))
    }

    fn with(disk: Arc<MemoryDisk>) -> Self {
        let storages = ["main", "other"];
        let mut two = Self {
            donor: Node::found(&storages),
            node: Node::found_on(disk, &storages),
        };
        for tid in 1..=6 {
            let storage = if tid % 3 == 0 { "other" } else { "main" };
            two.store(storage, tid, &[tid as u8; 100]);
        }
        two
    }

    fn both(&mut self, what: impl Fn(&mut Node)) {
        for node in [&mut self.donor, &mut self.node] {
            what(node);
            node.apply();
        }
    }

    fn store(&mut self, storage: &str, tid: u64, data: &[u8]) {
        self.both(|node| node.store(storage, tid, data));
    }

    fn store_blob(&mut self, tid: u64, content: &'static [u8]) -> BlobName {
        let (name, content) = blob(content);
        self.both(|node| {
            node.log.put_blob(name, &content).unwrap();
            node.append(Kind::Transaction, tid, transfer("main", b"b", &[name]));
        });
        name
    }

    fn order_pack(&mut self) {
        let change = Change::Pack {
            storage: "main".to_owned(),
            tid: Tid::MAX,
        };
        self.both(|node| node.append(change.kind(), 0, change.encode()));
    }

    /// The copy of what the donor has by now.
    fn copy(&mut self) -> Beside {
        let snapshot = self.donor.log.snapshot().unwrap();
        let Node {
            disk, directories, ..
        } = &self.node;
        copy_anew(disk, directories, &snapshot, &mut |_, _| true).unwrap()
    }

    /// Nothing is left of a copy, nor to be done.
    fn check_clean(&self) {
        for name in [
            "main.fs.copy",
            "main.fs.copy.index",
            "journal/copy",
            "journal/next",
        ] {
            let found = self.node.disk.identify(Path::new(name));
            assert!(found.is_err(), "{name}");
        }
    }

    fn assert_same(&mut self) {
        for storage in ["main", "other"] {
            let data = |node: &Node| {
                let (file, end) = node.log.data_file(storage).unwrap();
                let mut bytes = vec![0; end as usize];
                file.read_at(&mut bytes, 0).unwrap();
                bytes
            };
            self.donor.log.checkpoint().unwrap();
            self.node.log.checkpoint().unwrap();
            assert_eq!(data(&self.donor), data(&self.node), "{storage}");
        }
    }
}

fn flip(node: &Node, path: &str, pos: u64) {
    let file = node.disk.open(Path::new(path), OpenMode::Write).unwrap();
    let mut byte = [0];
    file.read_at(&mut byte, pos).unwrap();
    file.write_at(&mut [IoSlice::new(&[byte[0] ^ 1])], pos)
        .unwrap();
}

fn place(node: &Node, tid: u64) -> PathBuf {
    let blobs = node.log.appliers["main"].blobs().unwrap();
    blobs.file(Oid(1), Tid(tid))
}

fn staged(name: &BlobName) -> PathBuf {
    Path::new("journal/blobs").join(name.digest.to_string())
}

#[test]
fn a_copy_that_is_older_takes_the_place_of_damaged_data_and_the_log_stays() {
    let mut two = Two::new();
    let beside = two.copy();
    let point = beside.manifest().point().seq;
    two.store("main", 7, b"seven");
    two.order_pack();
    two.store("other", 9, b"nine");
    two.node.log.checkpoint().unwrap();
    // Within the data of the first transaction.
    flip(&two.node, "main.fs", 4 + 23 + 42 + 50);
    let node = &mut two.node;
    let applied = node.log.applied();
    node.store("main", 10, b"acknowledged, and not known to be committed");
    let promised = Epoch {
        counter: 7,
        ..node.epoch
    };
    node.log.run(DiskAction::Promise(promised)).unwrap();
    node.log.take_news();
    let before = (node.log.settings().clone(), node.log.pack_orders());
    let replaced = node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);

    assert!(point < applied);
    assert_eq!(node.log.applied(), applied);
    let positions = node.log.positions();
    assert_eq!((positions.last, positions.promised), (node.last, promised));
    assert!(positions.committed >= applied);
    let after = (node.log.settings().clone(), node.log.pack_orders());
    assert_eq!(before, after);
    // Who follows is told that anything may have changed, and not of each transaction.
    let news = node.log.take_news();
    assert!(news.has_gap && news.applied.is_empty());
    assert_eq!(node.log.lineage(), two.donor.log.lineage());
    two.check_clean();
    two.assert_same();

    // It goes on, and does so after a start.
    let mut node = two.node.restart().unwrap();
    let log = &node.start.log;
    assert_eq!((log.applied, log.last), (applied, positions.last));
    assert_eq!(node.start.promised, promised);
    node.apply();
    two.donor
        .store("main", 10, b"acknowledged, and not known to be committed");
    two.donor.apply();
    two.node = node;
    two.assert_same();
}

#[test]
fn a_replacement_that_is_interrupted_is_completed_by_the_next_start() {
    let mut two = Two::new();
    let manifest = two.copy().manifest().clone();
    two.store("main", 7, b"seven");
    two.node.log.checkpoint().unwrap();
    flip(&two.node, "main.fs", 4 + 23 + 42 + 50);
    let (applied, last) = (two.node.log.applied(), two.node.last);
    two.node.log.journal.note_committed(applied).unwrap();
    let next = files::Next {
        identity: *two.node.log.identity(),
        promised: two.node.log.positions().promised,
        is_retiring: false,
        keeps_log: true,
        epochs: Vec::new(),
        settled: manifest.settled.clone(),
    };
    let directory = &two.node.directories.journal;
    next.save(&*two.node.disk, directory, next.identity.disk)
        .unwrap();
    two.node = two.node.restart().unwrap();
    let log = &two.node.start.log;
    assert_eq!(log.last, last);
    // What readers have seen is committed, also if it has to be applied again.
    assert_eq!(
        (log.applied, log.committed),
        (manifest.point().seq, applied)
    );
    two.check_clean();
    two.node.apply();
    two.assert_same();
}

#[test]
fn blobs_of_what_is_applied_again_come_from_their_places() {
    let mut two = Two::new();
    two.store_blob(7, b"in the copy");
    let beside = two.copy();
    let name = two.store_blob(8, b"behind it");
    two.node.log.checkpoint().unwrap();
    let node = &mut two.node;
    assert!(node.disk.identify(&staged(&name)).is_err());
    // Readers may be at it.
    let before = node.disk.identify(&place(node, 8)).unwrap();
    let replaced = node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);
    assert_eq!(node.disk.read(&place(node, 7)).unwrap(), b"in the copy");
    assert_eq!(node.disk.identify(&place(node, 8)).unwrap(), before);
    assert_eq!(node.disk.identify(&staged(&name)).unwrap(), before);
    let blobs = node.log.appliers["main"].blobs().unwrap();
    let left = node.disk.names(&blobs.temporary()).unwrap();
    assert_eq!(left.len(), 0, "{left:?}");
    node.log.expect_no_more(NUMBER).unwrap();
    assert!(node.disk.identify(&staged(&name)).is_err());
    two.assert_same();
}

#[test]
fn blobs_that_are_damaged_have_to_be_fetched_first() {
    let mut two = Two::new();
    let beside = two.copy();
    let names = [two.store_blob(7, b"one"), two.store_blob(8, b"two")];
    two.node.log.checkpoint().unwrap();
    flip(&two.node, place(&two.node, 8).to_str().unwrap(), 1);
    let node = &mut two.node;
    let replaced = node.log.replace_data(&beside, NUMBER).unwrap();
    let lacks = vec![NamedBlob {
        seq: Seq(8),
        tid: Tid(8),
        storage: "main".to_owned(),
        name: names[1],
    }];
    assert_eq!(replaced, Replacement::Lacks(lacks));
    // What was put there for it stays.
    node.log.put_blob(names[1], &blob(b"two").1).unwrap();
    node.store("other", 20, b"later");
    node.apply();
    node.log.checkpoint().unwrap();
    for name in &names {
        assert!(node.disk.identify(&staged(name)).is_ok());
    }
    let replaced = node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);
    assert_eq!(node.disk.read(&place(node, 8)).unwrap(), b"two");
    assert_eq!(node.data("other").unwrap(), "later");
    node.log.expect_no_more(NUMBER).unwrap();
    let names = node.disk.names(Path::new("journal/blobs")).unwrap();
    assert_eq!(names.len(), 0, "{names:?}");
}

#[test]
fn a_blob_that_differs_is_replaced() {
    let mut two = Two::new();
    two.store_blob(7, b"one");
    two.store_blob(8, b"two");
    two.node.log.checkpoint().unwrap();
    flip(&two.node, place(&two.node, 7).to_str().unwrap(), 1);
    let snapshot = two.donor.log.snapshot().unwrap();
    let (disk, directories) = (&two.node.disk, &two.node.directories);
    // It has its length.
    copy_beside(disk, directories, &snapshot, &mut |_, _| true).unwrap();
    assert_ne!(two.node.disk.read(&place(&two.node, 7)).unwrap(), b"one");
    let beside = two.copy();
    for (tid, content) in [(7, b"one"), (8, b"two")] {
        let found = two.node.disk.read(&place(&two.node, tid)).unwrap();
        assert_eq!(found, content);
    }
    let replaced = two.node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);
    two.assert_same();
}

#[test]
fn blobs_that_cannot_be_read_are_copied_and_fetched() {
    let disk = Arc::new(MemoryDisk::new());
    let mut two = Two::with(disk.clone());
    two.store_blob(7, b"in the copy");
    two.node.log.checkpoint().unwrap();
    disk.spoil(&place(&two.node, 7));
    let beside = two.copy();
    let copied = two.node.disk.read(&place(&two.node, 7)).unwrap();
    assert_eq!(copied, b"in the copy");
    let name = two.store_blob(8, b"behind it");
    two.node.log.checkpoint().unwrap();
    disk.spoil(&place(&two.node, 8));
    let replaced = two.node.log.replace_data(&beside, NUMBER).unwrap();
    assert!(matches!(replaced, Replacement::Lacks(_)), "{replaced:?}");
    two.node.log.put_blob(name, &blob(b"behind it").1).unwrap();
    let replaced = two.node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);
    for tid in [7, 8] {
        let file = two.node.disk.open(&place(&two.node, tid), OpenMode::Read);
        assert_eq!(file.unwrap().read_at(&mut [0; 2], 0).unwrap(), 2, "{tid}");
    }
    two.assert_same();
}

#[test]
fn a_copy_that_the_journal_does_not_reach_back_to_is_too_old_and_goes_on_later() {
    let mut two = Two::new();
    let beside = two.copy();
    for tid in 7..=40 {
        two.store("main", tid, &[tid as u8; 600]);
    }
    two.node.log.checkpoint().unwrap();
    assert!(two.node.log.positions().first > beside.manifest().point().seq.next());
    let replaced = two.node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::TooOld);
    assert!(two.node.disk.identify(Path::new("main.fs.copy")).is_ok());
    let beside = two.copy();
    let replaced = two.node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);
    two.check_clean();
    two.assert_same();
}

#[test]
fn a_copy_that_is_not_of_this_log_or_has_less_is_of_no_use() {
    let mut two = Two::new();
    let (applied, last) = (two.node.log.applied(), two.node.last);
    let refused = |node: &mut Node, snapshot: &Snapshot, why: &str| {
        let (disk, directories) = (&node.disk, &node.directories);
        let beside = copy_anew(disk, directories, snapshot, &mut |_, _| true).unwrap();
        let error = node.log.replace_data(&beside, NUMBER).unwrap_err();
        assert!(
            error.is_refusal() && error.to_string().contains(why),
            "{error}"
        );
        assert_eq!(node.log.positions().last, last);
        assert_eq!(node.log.applied(), applied);
        for name in ["main.fs.copy", "main.fs.copy.index", "journal/copy"] {
            assert!(node.disk.identify(Path::new(name)).is_err(), "{name}");
        }
    };
    let node = &mut two.node;
    // Other entries at the same places.
    let mut other = Node::found(&["main", "other"]);
    for tid in 1..=6 {
        other.store("main", tid, b"another");
    }
    other.apply();
    refused(node, &other.log.snapshot().unwrap(), "another one");
    // It has no old revisions, as this one has.
    let newest = two.donor.log.snapshot().unwrap().newest_only().unwrap();
    refused(node, &newest, "lacks old revisions");
    // A pack was done here.
    node.log.note_packed("main", Seq(3)).unwrap();
    let snapshot = two.donor.log.snapshot().unwrap();
    refused(node, &snapshot, "yet to be done there");
    two.donor.log.note_packed("main", Seq(3)).unwrap();
    // What was not applied here may be cut yet.
    two.donor.store("main", 7, b"ahead");
    two.donor.apply();
    refused(node, &two.donor.log.snapshot().unwrap(), "is ahead");
}

#[test]
fn a_copy_of_another_history_is_of_no_use() {
    let mut node = Node::found(&["main"]);
    node.store("main", 1, b"a");
    node.apply();
    let mut other = Node::found_as("main", 2);
    other.store("main", 1, b"a");
    other.apply();
    let snapshot = other.log.snapshot().unwrap();
    let (disk, directories) = (&node.disk, &node.directories);
    let beside = copy_anew(disk, directories, &snapshot, &mut |_, _| true).unwrap();
    let error = node.log.replace_data(&beside, NUMBER).unwrap_err();
    assert!(error.to_string().contains("another history"), "{error}");
}

#[test]
fn a_replacement_whose_blobs_have_no_room_leaves_all_as_it_was() {
    let disk = Arc::new(MemoryDisk::new());
    let mut two = Two::with(disk.clone());
    let beside = two.copy();
    let name = two.store_blob(7, b"behind it");
    two.node.log.checkpoint().unwrap();
    // The blobs are on another file system.
    disk.leave_room("journal".as_ref(), 5, std::io::ErrorKind::StorageFull);
    let error = two.node.log.replace_data(&beside, NUMBER).unwrap_err();
    assert!(error.is_for_lack_of_room() && error.is_refusal(), "{error}");
    assert!(disk.identify(&staged(&name)).is_err());
    disk.make_room();
    let replaced = two.node.log.replace_data(&beside, NUMBER).unwrap();
    assert_eq!(replaced, Replacement::Done);
    two.check_clean();
    two.assert_same();
}
