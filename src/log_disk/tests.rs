use bytes::Bytes;

use super::*;
use crate::entry::sha256;
use crate::ids::{DiskId, HistoryId, NodeId};
use crate::limits::APPLIED_TOLD_MAX;
use crate::replica::event::{LogStart, Start};
use crate::replica::lineage::Lineage;
use crate::replica::members::Voter;
use crate::storage::apply;
use crate::storage::disk::{OpenMode, with_suffix};
use crate::storage::journal::Fault;
use crate::storage::memory::MemoryDisk;
use crate::storage::recover::Access;
use crate::storage::transfer::{BlobName, Record as TxnRecord};

pub(super) const OPTIONS: Options = Options {
    segment_len: 4096,
    window_len: 4096,
    checkpoint_len: 1 << 20,
};

pub(super) fn directories(storages: &[&str]) -> Directories {
    let storages = storages.iter().map(|name| {
        let paths = StoragePaths {
            data: PathBuf::from(format!("{name}.fs")),
            blobs: Some(PathBuf::from(format!("{name}-blobs"))),
        };
        ((*name).to_owned(), paths)
    });
    Directories {
        journal: PathBuf::from("journal"),
        storages: storages.collect(),
    }
}

pub(super) fn identity(history: u8) -> Identity {
    Identity {
        history: HistoryId([history; 16]),
        node: NodeId::new("n1").unwrap(),
        disk: DiskId([history + 100; 16]),
    }
}

pub(super) fn epoch(counter: u64) -> Epoch {
    let node = NodeId::new("n1").unwrap();
    Epoch { counter, node }
}

/// A node, and the end of its log.
pub(super) struct Node {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directories: Directories,
    pub(super) log: LogDisk,
    pub(super) start: Start,
    pub(super) last: Point,
    pub(super) epoch: Epoch,
}

impl Node {
    pub(super) fn found(storages: &[&str]) -> Self {
        Self::found_on(disk(), storages)
    }

    pub(super) fn found_on(disk: Arc<dyn Disk>, storages: &[&str]) -> Self {
        let directories = directories(storages);
        let found = Found {
            identity: identity(1),
            settings: Settings::default(),
        };
        LogDisk::found(disk.clone(), &directories, &OPTIONS, &found).unwrap();
        Self::open(disk, directories).unwrap()
    }

    pub(super) fn found_as(storage: &str, history: u8) -> Self {
        let (disk, directories) = (disk(), directories(&[storage]));
        let found = Found {
            identity: identity(history),
            settings: Settings::default(),
        };
        LogDisk::found(disk.clone(), &directories, &OPTIONS, &found).unwrap();
        Self::open(disk, directories).unwrap()
    }

    pub(super) fn open(
        disk: Arc<dyn Disk>,
        directories: Directories,
    ) -> Result<Self, LogDiskError> {
        let (log, start) = LogDisk::open(disk.clone(), &directories, &OPTIONS)?;
        Ok(Self {
            disk,
            directories,
            last: start.log.last,
            epoch: start.promised.max(epoch(1)),
            log,
            start,
        })
    }

    /// The process is killed, and started again.
    pub(super) fn restart(self) -> Result<Self, LogDiskError> {
        let Self {
            disk, directories, ..
        } = self;
        drop(self.log);
        Self::open(disk, directories)
    }

    pub(super) fn entry(&mut self, kind: Kind, tid: u64, body: Vec<Bytes>) -> Entry {
        let entry = Entry::new(&self.last, self.epoch, kind.number(), Tid(tid), body);
        let entry = entry.unwrap();
        self.last = entry.point();
        entry
    }

    pub(super) fn append(&mut self, kind: Kind, tid: u64, body: Vec<Bytes>) {
        let entry = self.entry(kind, tid, body);
        let event = self.log.run(DiskAction::Append(vec![entry])).unwrap();
        let through = self.last.seq;
        assert_eq!(event, Some(Event::Synced { through }));
    }

    pub(super) fn store(&mut self, storage: &str, tid: u64, data: &[u8]) {
        let body = transfer(storage, data, &[]);
        self.append(Kind::Transaction, tid, body);
    }

    pub(super) fn change(&mut self, tid: u64, change: &Change) {
        self.append(change.kind(), tid, change.encode());
    }

    pub(super) fn apply(&mut self) {
        let through = self.last.seq;
        let event = self.log.run(DiskAction::Apply { through }).unwrap();
        assert_eq!(event, Some(Event::Applied { through }));
    }

    fn adopt(&mut self, source: &dyn CopySource) -> Result<LogStart, LogDiskError> {
        let beside = copy(&self.disk, &self.directories, source)?;
        self.log.adopt(beside)
    }

    pub(super) fn data(&self, storage: &str) -> Option<Bytes> {
        match self.log.load(storage, Oid(1), Tid::MAX).unwrap()? {
            Loaded::Revision { data, .. } => Some(data),
            _ => None,
        }
    }
}

pub(super) fn copy(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    source: &dyn CopySource,
) -> Result<Beside, LogDiskError> {
    copy_beside(disk, directories, source, &mut |_, _| true)
}

pub(super) fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::new())
}

pub(super) fn transfer(storage: &str, data: &[u8], blobs: &[BlobName]) -> Vec<Bytes> {
    let transfer = Transfer {
        storage: storage.to_owned(),
        status: b' ',
        user: Bytes::new(),
        description: Bytes::new(),
        extension: Bytes::new(),
        records: vec![TxnRecord {
            oid: Oid(1),
            data: Some(Bytes::copy_from_slice(data)),
            same_as: None,
        }],
        blobs: blobs.to_vec(),
    };
    transfer.encode().unwrap()
}

pub(super) fn blob(content: &'static [u8]) -> (BlobName, [Bytes; 1]) {
    let name = BlobName {
        oid: Oid(1),
        len: content.len() as u64,
        digest: sha256(&[content]),
    };
    (name, [Bytes::from_static(content)])
}

#[test]
fn what_was_applied_and_not_settled_is_applied_again_after_a_crash() {
    let mut node = Node::found(&["main", "other"]);
    node.store("main", 10, b"a");
    node.store("other", 11, b"b");
    node.apply();
    assert_eq!(node.log.checkpoint().unwrap(), Seq(2));
    node.store("main", 12, b"c");
    node.apply();
    assert_eq!(node.data("main").unwrap(), "c");
    let mut node = node.restart().unwrap();
    let log = &node.start.log;
    assert_eq!(
        (log.applied, log.settled, log.last.seq),
        (Seq(2), Seq(2), Seq(3))
    );
    assert_eq!(log.last_tid, Tid(12));
    assert_eq!(node.data("main").unwrap(), "a");
    node.apply();
    assert_eq!(node.data("main").unwrap(), "c");
    assert_eq!(node.data("other").unwrap(), "b");
    let applied = node.log.take_news();
    assert_eq!(applied.applied.len(), 1);
    assert_eq!(applied.applied[0].seq, Seq(3));
    assert_eq!(applied.applied[0].epoch, epoch(1));
    let transaction = &applied.applied[0].transaction;
    // What they tell is what a reader's index needs.
    let followed = &node.log.follow()["main"];
    let pos = followed.index.get(Oid(1)).unwrap();
    assert_eq!(transaction.positions, [(Oid(1), pos)]);
    assert_eq!(
        (transaction.end, transaction.tid),
        (followed.tail, followed.last_tid)
    );
    assert_eq!(node.log.take_news(), News::default());
}

#[test]
fn a_log_starts_with_the_settings_of_its_last_checkpoint_and_what_changed_since() {
    let mut node = Node::found(&["main"]);
    let ceiling = |oid| Change::Ceiling {
        storage: "main".to_owned(),
        oid: Oid(oid),
    };
    node.change(0, &ceiling(100));
    node.store("main", 10, b"a");
    node.apply();
    node.log.checkpoint().unwrap();
    node.change(0, &ceiling(200));
    let node = node.restart().unwrap();
    let log = &node.start.log;
    assert_eq!(log.settings.ceilings["main"], Oid(100));
    assert_eq!(log.changes, [(Seq(3), ceiling(200))]);
    assert_eq!(log.ends.len(), 1);
    assert_eq!(log.ends[0].seq, Seq(3));
    // Who serves the file alone some day hands out none of these again.
    let noted = crate::storage::oids::load(&*node.disk, Path::new("main.fs")).unwrap();
    assert_eq!(noted, Some(Oid(100)));
}

pub(super) fn order(node: &mut Node) {
    let storage = "main".to_owned();
    let tid = Tid::MAX;
    node.change(0, &Change::Pack { storage, tid });
}

#[test]
fn a_pack_that_was_done_is_known_after_a_restart_and_to_who_gets_a_copy() {
    let (mut donor, mut node) = two(5);
    order(&mut donor);
    donor.apply();
    let ordered = [("main".to_owned(), Seq(11))].into();
    // What the donor has yet to pack is to be packed by the other one, too.
    let log = node.adopt(&donor.log.snapshot().unwrap()).unwrap();
    assert!(log.packed.is_empty() && donor.start.log.packed.is_empty());
    assert_eq!(node.log.pack_orders(), donor.log.pack_orders());
    assert!(!node.log.pack_orders()["main"].is_done);
    donor.log.note_packed("main", Seq(11)).unwrap();
    donor.log.note_packed("main", Seq(5)).unwrap();
    donor.store("main", 12, b"later");
    donor.apply();
    donor.log.checkpoint().unwrap();
    let log = node.adopt(&donor.log.snapshot().unwrap()).unwrap();
    assert_eq!(log.packed, ordered);
    assert!(node.log.pack_orders()["main"].is_done);
    assert_eq!(donor.restart().unwrap().start.log.packed, ordered);
}

#[test]
fn what_was_in_front_of_the_order_of_a_pack_is_known_after_any_crash() {
    // After how many of the entries there is a checkpoint, and up to which is applied.
    for settled in 0..5 {
        for applied in settled..=5 {
            let mut node = Node::found(&["main", "other"]);
            for entry in 0..5 {
                if entry == settled {
                    node.apply();
                    node.log.checkpoint().unwrap();
                }
                match entry {
                    0 => node.store("main", 10, b"a"),
                    1 => node.store("other", 11, b"b"),
                    2 => order(&mut node),
                    3 => node.store("main", 13, b"c"),
                    _ => node.store("other", 14, b"d"),
                }
            }
            let through = Seq(applied);
            node.log.run(DiskAction::Apply { through }).unwrap();
            if applied == 5 {
                // Of two data files one may have kept more than the other.
                let main = node.log.appliers.get_mut("main").unwrap();
                main.checkpoint().unwrap();
            }
            let mut node = node.restart().unwrap();
            node.apply();
            let order = PackOrder {
                at: Seq(3),
                until: Tid(10),
                is_done: false,
            };
            let expected = [("main".to_owned(), order)].into();
            assert_eq!(node.log.pack_orders(), expected, "{settled} {applied}");
        }
    }
}

#[test]
fn a_data_file_that_is_not_that_of_the_log_is_refused() {
    let mut node = Node::found(&["main"]);
    node.store("main", 10, b"a");
    node.apply();
    let path = node.directories.storages["main"].data.clone();
    node.log.checkpoint().unwrap();
    let old = node.disk.read(&path).unwrap();
    node.store("main", 12, b"c");
    node.apply();
    node.log.checkpoint().unwrap();
    let new = node.disk.read(&path).unwrap();
    let Node {
        disk, directories, ..
    } = node;
    drop(node.log);
    let open = || Node::open(disk.clone(), directories.clone());

    disk.replace(&path, &[&old]).unwrap();
    let error = open().err().unwrap();
    assert!(matches!(error, LogDiskError::Behind { .. }), "{error}");

    disk.replace(&path, &[&new]).unwrap();
    let body = Transfer::decode(&transfer("main", b"stranger", &[])).unwrap();
    for tid in [Tid(13), Tid(20)] {
        let mut applier =
            apply::Applier::open(disk.clone(), &path, None, Access::Applied, &mut |_| ()).unwrap();
        applier.apply(tid, &body, Path::new("")).unwrap();
        applier.close().unwrap();
        let error = open().err().unwrap();
        assert!(matches!(error, LogDiskError::Ahead { .. }), "{error}");
    }
}

#[test]
fn a_storage_of_the_log_that_is_not_configured_is_missed() {
    let mut node = Node::found(&["main", "other"]);
    node.store("other", 10, b"a");
    node.directories.storages.remove("other");
    let error = node.restart().err().unwrap();
    assert!(matches!(error, LogDiskError::Unknown(name) if name == "other"));
}

#[test]
fn an_entry_waits_for_its_blobs_which_go_when_they_are_settled() {
    let mut node = Node::found(&["main"]);
    let (name, content) = blob(b"content");
    let body = transfer("main", b"a", &[name]);
    let before = node.last;
    let entry = node.entry(Kind::Transaction, 10, body);
    let append = DiskAction::Append(vec![entry.clone()]);
    let event = node.log.run(append.clone()).unwrap();
    assert!(matches!(event, Some(Event::NoRoom { .. })), "{event:?}");
    assert_eq!(
        node.log
            .missing_blobs(std::slice::from_ref(&entry))
            .unwrap(),
        [NamedBlob {
            seq: Seq(1),
            tid: Tid(10),
            storage: "main".to_owned(),
            name
        }]
    );
    assert_eq!(node.log.positions().last, before);

    let wrong = node.log.put_blob(name, &[Bytes::from_static(b"CONTENT")]);
    assert!(matches!(wrong, Err(LogDiskError::WrongBlob { .. })));
    node.log.put_blob(name, &content).unwrap();
    assert_eq!(node.log.missing_blobs(&[entry]).unwrap(), []);
    node.log.run(append).unwrap();
    // A blob that came for an entry that did not.
    let (unused, content) = blob(b"unused");
    node.log.put_blob(unused, &content).unwrap();
    let mut node = node.restart().unwrap();
    let staged = |node: &Node| node.disk.names(Path::new("journal/blobs")).unwrap();
    assert_eq!(staged(&node), [name.digest.to_string().as_str()]);
    node.apply();
    assert_eq!(staged(&node).len(), 1);
    node.log.checkpoint().unwrap();
    assert_eq!(staged(&node), [""; 0]);
    let place = node.log.appliers["main"]
        .blobs()
        .unwrap()
        .file(Oid(1), Tid(10));
    assert_eq!(node.disk.read(&place).unwrap(), b"content");
}

#[test]
fn blobs_of_entries_that_are_cut_are_kept_beside_them() {
    let mut node = Node::found(&["main"]);
    let (name, content) = blob(b"content");
    node.log.put_blob(name, &content).unwrap();
    let body = transfer("main", b"a", &[name]);
    // Named by two, of which one stays.
    node.append(Kind::Transaction, 10, body.clone());
    node.append(Kind::Transaction, 11, body);
    let (name, content) = blob(b"other");
    node.log.put_blob(name, &content).unwrap();
    node.append(Kind::Transaction, 12, transfer("main", b"b", &[name]));
    let cut = DiskAction::Cut {
        after: Seq(1),
        committed: Seq(0),
    };
    let event = node.log.run(cut).unwrap().unwrap();
    assert!(
        matches!(event, Event::Cut { last, last_tid } if last.seq == Seq(1) && last_tid == Tid(10))
    );
    let names = |path: &str| node.disk.names(Path::new(path)).unwrap();
    assert_eq!(names("journal/blobs").len(), 1);
    assert_eq!(
        names("journal/diverged-blobs"),
        [name.digest.to_string().as_str()]
    );
}

#[test]
fn what_is_applied_is_not_cut() {
    let mut node = Node::found(&["main"]);
    node.store("main", 10, b"a");
    node.apply();
    let cut = DiskAction::Cut {
        after: Seq(0),
        committed: Seq(0),
    };
    let error = node.log.run(cut).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert_eq!(node.log.positions().last, node.last);
}

#[test]
fn entries_are_supplied_as_long_as_they_are_there() {
    let mut node = Node::found(&["main"]);
    for tid in 1..=30 {
        node.store("main", tid, &[1; 500]);
    }
    node.apply();
    node.log.checkpoint().unwrap();
    let first = node.log.positions().first;
    assert!(first > Seq(1));
    let entries = |from, to, len| node.log.entries(Seq(from), Seq(to), len).unwrap();
    assert_eq!(entries(1, 30, 1000), None);
    assert_eq!(
        entries(first.0, 30, u64::MAX).unwrap().len() as u64,
        31 - first.0
    );
    assert_eq!(entries(29, 29, u64::MAX).unwrap().len(), 1);
    assert_eq!(entries(28, 30, 1).unwrap().len(), 1);
    assert_eq!(entries(31, 40, 1000), Some(Vec::new()));
    let before = node.log.positions().first.0 - 1;
    let node = node.restart().unwrap();
    assert_eq!(node.start.log.before.seq, Seq(before));
}

#[test]
fn appends_that_follow_each_other_become_one() {
    let mut node = Node::found(&["main"]);
    let mut entry = |tid| {
        let body = transfer("main", b"a", &[]);
        DiskAction::Append(vec![node.entry(Kind::Transaction, tid, body)])
    };
    let mut first = entry(1);
    first.join(entry(2)).unwrap();
    let promise = DiskAction::Promise(epoch(9));
    assert_eq!(first.join(promise.clone()), Err(promise));
    let through = Seq(2);
    assert_eq!(
        node.log.run(first).unwrap(),
        Some(Event::Synced { through })
    );
}

#[test]
fn the_news_are_bounded_and_tell_of_their_gap() {
    let mut node = Node::found(&["main"]);
    let count = APPLIED_TOLD_MAX as u64 + 1;
    for from in (1..=count).step_by(1000) {
        let tids = from..(from + 1000).min(count + 1);
        let entries =
            tids.map(|tid| node.entry(Kind::Transaction, tid, transfer("main", b"a", &[])));
        let append = DiskAction::Append(entries.collect());
        node.log.run(append).unwrap();
    }
    node.apply();
    let news = node.log.take_news();
    assert!(news.has_gap);
    assert_eq!(news.applied.len(), APPLIED_TOLD_MAX);
    assert_eq!(news.applied.back().unwrap().transaction.tid, Tid(count));
}

#[test]
fn an_arbiter_begins_with_its_record_and_has_no_log() {
    let mut node = Node::found(&[]);
    assert_eq!(node.start.log.last, Point::start(identity(1).history));
    node.log.run(DiskAction::Promise(epoch(4))).unwrap();
    let position = Position {
        epoch: epoch(3),
        seq: Seq(8),
    };
    let voter = Voter {
        node: NodeId::new("n2").unwrap(),
        disk: DiskId([2; 16]),
    };
    let members = Members {
        voters: [voter].into(),
        arbiter: None,
    };
    let record = DiskAction::Record(position, members.clone());
    let event = node.log.run(record).unwrap();
    assert_eq!(event, Some(Event::Recorded(position)));
    let Start { promised, log, .. } = node.restart().unwrap().start;
    assert_eq!(promised, epoch(4));
    assert_eq!((log.before, log.last.seq), (position, Seq(8)));
    assert_eq!(log.last.epoch, epoch(3));
    assert_eq!(log.settings.members, members);
    assert_eq!((log.committed, log.ends), (Seq(8), Vec::new()));
}

/// Two nodes with the same log, of which the second has so many entries fewer.
fn two(less: u64) -> (Node, Node) {
    let (mut one, mut other) = (Node::found(&["main"]), Node::found(&["main"]));
    for tid in 1..=10 {
        one.store("main", tid, &[tid as u8; 600]);
        if tid <= 10 - less {
            other.store("main", tid, &[tid as u8; 600]);
        }
    }
    one.apply();
    (one, other)
}

#[test]
fn a_copy_takes_the_place_of_what_a_node_has_and_promises_stay() {
    let (mut donor, mut node) = two(5);
    let (name, content) = blob(b"content");
    donor.log.put_blob(name, &content).unwrap();
    donor.append(Kind::Transaction, 11, transfer("main", b"new", &[name]));
    donor.apply();
    let snapshot = donor.log.snapshot().unwrap();
    donor.store("main", 12, b"later");
    donor.apply();

    node.log.run(DiskAction::Apply { through: Seq(3) }).unwrap();
    // So that there is an index, which is not that of the copy.
    node.log.close().unwrap();
    let index = with_suffix(Path::new("main.fs"), ".index");
    assert!(node.disk.identify(&index).is_ok());
    let mut node = Node::open(node.disk, node.directories).unwrap();
    // Of another epoch than what the donor has.
    node.epoch = epoch(2);
    node.store("main", 106, b"diverged");
    node.log.run(DiskAction::Promise(epoch(7))).unwrap();
    let log = node.adopt(&snapshot).unwrap();
    // The index is that of the copy now, so that opening it takes no longer.
    let (_, end) = crate::storage::index::Index::load(&*node.disk, &index).unwrap();
    assert_eq!(end, snapshot.manifest().len());
    assert_eq!(log.last, snapshot.point());
    assert_eq!((log.applied, log.committed), (Seq(11), Seq(11)));
    assert_eq!((log.last_tid, log.ends.len()), (Tid(11), 0));
    assert_eq!(node.data("main").unwrap(), "new");
    let blobs = node.log.appliers["main"].blobs().unwrap();
    assert_eq!(
        node.disk.read(&blobs.file(Oid(1), Tid(11))).unwrap(),
        b"content"
    );
    let names = node.disk.names(Path::new("journal")).unwrap();
    let kept = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("diverged-n1-2-6");
    assert_eq!(names.iter().filter(kept).count(), 1);
    // It goes on behind it, and so it does after a restart.
    let entry = donor.log.entries(Seq(12), Seq(12), 1000).unwrap().unwrap();
    node.log.run(DiskAction::Append(entry)).unwrap();
    node.last = node.log.positions().last;
    node.apply();
    let node = node.restart().unwrap();
    assert_eq!(node.start.promised, epoch(7));
    assert_eq!(node.start.log.last, donor.last);
}

#[test]
fn a_copy_may_be_without_old_revisions() {
    let (mut donor, mut node) = two(5);
    let (name, content) = blob(b"old");
    donor.log.put_blob(name, &content).unwrap();
    donor.append(Kind::Transaction, 11, transfer("main", b"old", &[name]));
    let (name, content) = blob(b"new");
    donor.log.put_blob(name, &content).unwrap();
    donor.append(Kind::Transaction, 12, transfer("main", b"new", &[name]));
    donor.apply();
    let snapshot = donor.log.snapshot().unwrap().newest_only().unwrap();
    let log = node.adopt(&snapshot).unwrap();
    assert_eq!(log.history_from, Tid(12));
    assert_eq!(node.data("main").unwrap(), "new");
    assert_eq!(
        node.log.load("main", Oid(1), Tid(12)).unwrap(),
        Some(Loaded::NoneBefore)
    );
    let blobs = node.log.appliers["main"].blobs().unwrap();
    let read = |tid| node.disk.read(&blobs.file(Oid(1), Tid(tid)));
    assert_eq!(read(12).unwrap(), b"new");
    assert!(read(11).is_err());
    let mut node = node.restart().unwrap();
    assert_eq!(node.start.log.history_from, Tid(12));
    // It stays so, whatever comes.
    node.store("main", 13, b"later");
    node.apply();
    node.log.checkpoint().unwrap();
    assert_eq!(node.restart().unwrap().start.log.history_from, Tid(12));
}

#[test]
fn a_copy_that_is_no_step_forward_is_refused_and_changes_nothing() {
    let (mut donor, mut node) = two(5);
    let snapshot = donor.log.snapshot().unwrap();
    // The same log, further on.
    for tid in 6..=12 {
        node.store("main", tid, &[tid as u8; 600]);
    }
    let last = node.last;
    let refused = |node: &mut Node, snapshot: &Snapshot| {
        let error = node.adopt(snapshot).unwrap_err();
        assert!(matches!(error, LogDiskError::Useless(_)), "{error}");
        assert_eq!(node.log.positions().last, last);
        // Nothing is left of it.
        for name in ["main.fs.copy", "main.fs.copy.index", "journal/copy"] {
            assert!(node.disk.identify(Path::new(name)).is_err(), "{name}");
        }
    };
    refused(&mut node, &snapshot);
    // All of it is applied.
    node.log
        .run(DiskAction::Apply { through: Seq(11) })
        .unwrap();
    refused(&mut node, &snapshot);
    // It has not what is committed here.
    let mut stranger = Node::found(&["main"]);
    stranger.epoch = epoch(9);
    for tid in 1..=20 {
        stranger.store("main", tid, b"other");
    }
    stranger.apply();
    refused(&mut node, &stranger.log.snapshot().unwrap());
    let mut others = Node::found(&["main", "other"]);
    refused(&mut node, &others.log.snapshot().unwrap());
}

#[test]
fn a_new_node_is_made_of_a_copy() {
    let (mut donor, _) = two(0);
    let snapshot = donor.log.snapshot().unwrap();
    let (disk, directories) = (disk(), directories(&["main"]));
    let identity = Identity {
        disk: DiskId([77; 16]),
        ..identity(1)
    };
    let seed = || {
        let beside = copy(&disk, &directories, &snapshot).unwrap();
        LogDisk::seed(disk.clone(), &directories, &OPTIONS, &identity, beside)
    };
    seed().unwrap();
    let error = seed().unwrap_err();
    assert!(matches!(error, LogDiskError::Exists { .. }), "{error}");
    let node = Node::open(disk.clone(), directories.clone()).unwrap();
    assert_eq!(node.start.me.disk, identity.disk);
    assert_eq!(node.start.log.last, donor.last);
    assert_eq!(node.start.promised, donor.last.epoch);
    assert_eq!(node.data("main").unwrap(), [10; 600][..]);
    // The same tids are known to be of this history.
    assert_eq!(node.log.journal.epochs(), donor.log.journal.epochs());
}

#[test]
fn damaged_settings_are_named_and_a_copy_that_was_not_completed_is_removed() {
    let node = Node::found(&["main"]);
    let Node {
        disk, directories, ..
    } = node;
    drop(node.log);
    let copy = with_suffix(Path::new("main.fs"), found::COPY);
    disk.open(&copy, OpenMode::CreateNew).unwrap();
    drop(Node::open(disk.clone(), directories.clone()).unwrap());
    assert!(disk.identify(&copy).is_err());
    let path = directories.journal.join("settings");
    let mut text = disk.read(&path).unwrap();
    text[40] ^= 1;
    disk.replace(&path, &[&text]).unwrap();
    let error = Node::open(disk, directories).err().unwrap();
    let LogDiskError::Journal(JournalError::Damaged {
        path: named, fault, ..
    }) = &error
    else {
        panic!("{error}");
    };
    assert_eq!((named, fault), (&path, &Fault::State));
}

#[test]
fn appends_are_joined_only_if_one_continues_the_other() {
    let entry = |after: &Point| Entry::new(after, Epoch::ZERO, 2, Tid(1), Vec::new()).unwrap();
    let start = Point::start(HistoryId([1; 16]));
    let first = entry(&start);
    let second = entry(&first.point());
    let mut action = DiskAction::Append(vec![first.clone()]);
    assert_eq!(
        action.join(DiskAction::Append(vec![second.clone()])),
        Ok(())
    );
    assert_eq!(action, DiskAction::Append(vec![first, second.clone()]));
    let again = DiskAction::Append(vec![second]);
    assert_eq!(action.join(again.clone()), Err(again));
}

#[test]
fn an_entry_that_nobody_understands_stops_the_node() {
    let mut node = Node::found(&["main"]);
    let body = vec![Bytes::from_static(
        b"\x01nonsense, and longer than the head of one",
    )];
    let entry = node.entry(Kind::Transaction, 10, body);
    let error = node.log.run(DiskAction::Append(vec![entry])).unwrap_err();
    assert!(matches!(error, LogDiskError::Transaction { .. }), "{error}");
    let error = node.log.run(DiskAction::Promise(epoch(5))).unwrap_err();
    assert!(matches!(error, LogDiskError::Failed { .. }), "{error}");
}

/// A data file that another server has served alone, with one object.
fn served_alone(disk: &Arc<dyn Disk>, path: &Path, tid: u64, blobs: Option<&Path>) {
    let access = Access::ReadWrite;
    let mut applier = apply::Applier::open(disk.clone(), path, blobs, access, &mut |_| ()).unwrap();
    let body = Transfer::decode(&transfer("main", b"before", &[])).unwrap();
    applier.apply(Tid(tid), &body, Path::new("")).unwrap();
    applier.close().unwrap();
}

#[test]
fn a_cluster_may_begin_with_what_a_server_alone_has_left() {
    let (disk, directories) = (disk(), directories(&["main", "other", "new"]));
    for (name, tid) in [("main", 40), ("other", 50)] {
        let paths = &directories.storages[name];
        served_alone(&disk, &paths.data, tid, paths.blobs.as_deref());
    }
    crate::storage::oids::save(&*disk, Path::new("other.fs"), Oid(7000)).unwrap();
    let blob = Path::new("main-blobs/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x01/0x28.blob");
    disk.replace(blob, &[b"kept"]).unwrap();
    let found = Found {
        identity: identity(1),
        settings: Settings::default(),
    };
    LogDisk::found(disk.clone(), &directories, &OPTIONS, &found).unwrap();
    let mut node = Node::open(disk.clone(), directories).unwrap();
    let log = &node.start.log;
    assert_eq!((log.last.seq, log.last_tid), (Seq(0), Tid(50)));
    assert_eq!(log.ends, []);
    // One beyond what is there, and what may have been handed out in front of that.
    let reserve = crate::limits::OID_RESERVE;
    let ceilings = [("main", 2 + reserve), ("other", 7000)];
    let ceilings = ceilings.map(|(name, oid)| (name.to_owned(), Oid(oid)));
    assert_eq!(log.settings.ceilings, ceilings.into());
    assert_eq!(disk.read(blob).unwrap(), b"kept");
    assert_eq!(node.data("main").unwrap(), "before");
    // What clients have seen of it stays good, here and where a copy goes to.
    node.store("main", 70, b"a");
    node.apply();
    let snapshot = node.log.snapshot().unwrap();
    let (copied, to) = (self::disk(), node.directories.clone());
    let other = Identity {
        disk: DiskId([77; 16]),
        ..identity(1)
    };
    let beside = copy(&copied, &to, &snapshot).unwrap();
    LogDisk::seed(copied.clone(), &to, &OPTIONS, &other, beside).unwrap();
    let mut copied = Node::open(copied, to).unwrap();
    copied.store("main", 75, b"b");
    copied.apply();
    for tid in [1, 40, 50, 70, 72, 75] {
        assert!(copied.log.lineage().contains(Tid(tid)), "{tid}");
    }
    for tid in [51, 69, 76] {
        assert!(!copied.log.lineage().contains(Tid(tid)), "{tid}");
    }
}

#[test]
fn data_that_another_server_has_are_refused_and_nothing_is_begun() {
    let (disk, directories) = (disk(), directories(&["main"]));
    let path = &directories.storages["main"].data;
    served_alone(&disk, path, 40, None);
    let access = Access::ReadWrite;
    let other = apply::Applier::open(disk.clone(), path, None, access, &mut |_| ()).unwrap();
    let found = Found {
        identity: identity(1),
        settings: Settings::default(),
    };
    let found = || LogDisk::found(disk.clone(), &directories, &OPTIONS, &found);
    let error = found().unwrap_err();
    assert!(error.to_string().contains("main.fs"), "{error}");
    assert!(disk.identify(Path::new("journal/next")).is_err());
    let journal = LogDisk::open(disk.clone(), &directories, &OPTIONS).err();
    let missing = Some(LogDiskError::Journal(JournalError::Missing {
        path: "journal".into(),
    }));
    assert_eq!(format!("{journal:?}"), format!("{missing:?}"));
    drop(other);
    found().unwrap();
}

#[test]
fn the_lineage_is_what_was_applied_and_goes_on_with_the_news() {
    let mut node = Node::found(&["main"]);
    node.store("main", 10, b"a");
    node.store("main", 12, b"b");
    node.apply();
    node.epoch = epoch(2);
    node.store("main", 20, b"c");
    // Nobody knows yet whether it stays.
    let mut lineage = node.log.lineage();
    let known = |lineage: &Lineage| -> Vec<u64> {
        (0..40).filter(|tid| lineage.contains(Tid(*tid))).collect()
    };
    assert_eq!(known(&lineage), [10, 11, 12]);
    node.log.take_news();
    node.apply();
    node.epoch = epoch(4);
    node.change(30, &Change::Barrier(Settings::default()));
    node.apply();
    for applied in node.log.take_news().applied {
        lineage.extend(applied.epoch, applied.transaction.tid);
    }
    assert_eq!(known(&lineage), [10, 11, 12, 20, 30]);
    assert_eq!(node.log.lineage(), lineage);
    node.log.checkpoint().unwrap();
    assert_eq!(node.restart().unwrap().log.lineage(), lineage);
}

#[test]
fn the_news_are_bounded_by_the_objects_in_them_too() {
    let mut news = News::default();
    let applied = |seq: u64, count: u64| Applied {
        seq: Seq(seq),
        epoch: epoch(1),
        storage: "main".to_owned(),
        transaction: apply::Applied::for_tests(
            Tid(seq),
            (0..count).map(|oid| (Oid(oid), 4)).collect(),
            100,
        ),
    };
    let most = crate::limits::APPLIED_POSITIONS_TOLD_MAX as u64;
    news.add(applied(1, 3));
    news.add(applied(2, most - 3));
    assert!(!news.has_gap);
    news.add(applied(3, 3));
    let seqs = |news: &News| -> Vec<u64> { news.applied.iter().map(|it| it.seq.0).collect() };
    assert_eq!((news.has_gap, seqs(&news)), (true, vec![2, 3]));
    // One alone may be longer.
    news.add(applied(4, most + 1));
    assert_eq!(seqs(&news), [4]);
}
