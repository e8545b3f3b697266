//! Blobs of a transaction, from the first call to the file in its place.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{BlobMistake, is_blob_record, shared_name};
use crate::ids::{Oid, Tid};
use crate::limits::{BLOB_JOBS_MAX, BLOB_READ_LEN, BLOB_SYNC_LEN, BLOB_WRITE_LEN};
use crate::storage::disk::{Disk, OsDisk};
use crate::storage::testing::{Rig, TestDir, options};
use crate::storage::{Event, Job, Options, Refusal, TxnId, Vote};

const RECORD: &[u8] = b"\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.";

/// A storage with blobs on a real disk.
fn rig(dir: &TestDir) -> Rig {
    let options = Options {
        blob_dir: Some(dir.path("blobs")),
        ..options()
    };
    Rig::at(Arc::new(OsDisk::default()), &dir.path("Data.fs"), options)
}

impl Rig {
    fn put(&mut self, id: TxnId, oid: u64, serial: u64, content: &[u8]) {
        let storage = &mut self.storage;
        storage.begin_blob(id).unwrap();
        let content = Bytes::copy_from_slice(content);
        storage.add_to_blob(id, content).unwrap();
        let data = Bytes::from_static(RECORD);
        let serial = Some(Tid(serial));
        storage.end_blob(id, Oid(oid), serial, data).unwrap();
    }

    fn share(&mut self, id: TxnId, oid: u64, name: &str) -> Result<(), BlobMistake> {
        let data = Bytes::from_static(RECORD);
        let serial = Some(Tid::ZERO);
        let name = name.as_bytes();
        self.storage.take_blob(id, Oid(oid), serial, data, name)
    }

    fn path(&self, oid: u64, tid: Tid) -> PathBuf {
        self.storage.blob_directory().unwrap().file(Oid(oid), tid)
    }

    /// All of a committed blob.
    fn blob(&self, oid: u64, tid: Tid) -> io::Result<Vec<u8>> {
        let mut reader = self.storage.read_blob(Oid(oid), tid).unwrap();
        let mut content = Vec::new();
        loop {
            let (rest, piece) = reader.read()?;
            assert!(piece.len() <= BLOB_READ_LEN);
            content.extend_from_slice(&piece);
            if rest.is_at_end() {
                return Ok(content);
            }
            reader = rest;
        }
    }

    fn temporary(&self) -> Vec<std::ffi::OsString> {
        let directory = self.storage.blob_directory().unwrap().temporary();
        OsDisk::default().names(&directory).unwrap()
    }

    fn refusal(&mut self, id: TxnId) -> String {
        match self.vote(id).pop() {
            Some(Event::Voted(_, Vote::Refused(Refusal::Blob(text) | Refusal::Disk(text)))) => text,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_blob_is_there_when_its_transaction_is() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let long: Vec<u8> = (0..3 * BLOB_READ_LEN + 5).map(|n| n as u8).collect();
    let contents: [&[u8]; 3] = [b"small", b"", &long];
    for (oid, content) in (1..).zip(contents) {
        let id = rig.begin(&[]);
        rig.put(id, oid, 0, content);
        let tid = rig.end(id);
        assert_eq!(rig.blob(oid, tid).unwrap(), content);
        assert_eq!(rig.current(oid), Some((Bytes::from_static(RECORD), tid)));
        let metadata = std::fs::metadata(rig.path(oid, tid)).unwrap();
        assert!(metadata.permissions().readonly());
        assert!(rig.temporary().is_empty());
    }
    let error = rig.blob(1, Tid(7)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn of_two_blobs_of_an_object_the_last_counts() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let id = rig.begin(&[]);
    rig.put(id, 1, 0, b"first");
    rig.settle();
    rig.put(id, 1, 0, b"second");
    rig.put(id, 1, 0, b"third");
    let tid = rig.end(id);
    assert_eq!(rig.blob(1, tid).unwrap(), b"third");
    assert!(rig.temporary().is_empty());
}

#[test]
fn a_vote_waits_for_its_blobs_and_not_for_those_of_others() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let slow = rig.begin(&[]);
    rig.put(slow, 1, 0, b"slow");
    rig.collect();
    let held: Vec<Job> = std::mem::take(&mut rig.jobs);
    assert!(rig.storage.vote(slow, rig.now));
    assert!(!rig.storage.store(slow, Oid(9), None, Bytes::from_static(b"x")));
    // Its blob is not on stable storage yet, so that it must not have the lock either.
    let quick = rig.begin(&[(2, 0, "quick")]);
    rig.end(quick);
    for job in held {
        rig.storage.on_done(job.run(), rig.now);
    }
    let events = rig.settle();
    let granted = |event: &Event| matches!(event, Event::Voted(id, Vote::Granted) if *id == slow);
    assert!(events.iter().any(granted), "{events:?}");
}

#[test]
fn what_is_not_written_yet_is_bounded() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let id = rig.begin(&[]);
    rig.storage.begin_blob(id).unwrap();
    let piece = Bytes::from(vec![7; BLOB_WRITE_LEN]);
    let mut taken = 0;
    while !rig.storage.is_busy(id) {
        rig.storage.add_to_blob(id, piece.clone()).unwrap();
        taken += 1;
    }
    assert_eq!(taken, 3);
    rig.settle();
    assert!(!rig.storage.is_busy(id));
    // One after the other, however many there are, and synced now and then.
    let pieces = 2 * BLOB_SYNC_LEN / BLOB_WRITE_LEN as u64;
    for _ in 0..pieces {
        rig.storage.add_to_blob(id, piece.clone()).unwrap();
        rig.collect();
        assert_eq!(rig.jobs.len(), 1);
        rig.settle();
    }
    rig.storage
        .end_blob(id, Oid(1), None, Bytes::from_static(RECORD))
        .unwrap();
    let mut blobs = 0;
    while !rig.storage.is_busy(id) {
        rig.put(id, 2 + blobs, 0, b"short");
        blobs += 1;
    }
    assert_eq!(blobs as usize, BLOB_JOBS_MAX - 1);
    let tid = rig.end(id);
    let len = (taken + pieces) * BLOB_WRITE_LEN as u64;
    assert_eq!(rig.blob(1, tid).unwrap().len() as u64, len);
}

#[test]
fn what_is_rolled_back_leaves_nothing() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    for settled in [false, true] {
        // In the middle of a blob, after it, and after the vote.
        let id = rig.begin(&[]);
        rig.put(id, 1, 0, b"whole");
        rig.storage.begin_blob(id).unwrap();
        let half = Bytes::from(vec![7; BLOB_WRITE_LEN]);
        rig.storage.add_to_blob(id, half).unwrap();
        if settled {
            rig.settle();
            assert_eq!(rig.temporary().len(), 2);
        }
        rig.storage.abort(id, rig.now);
        rig.settle();
        assert!(rig.temporary().is_empty());

        let id = rig.begin(&[]);
        rig.put(id, 1, 0, b"whole");
        assert!(rig.storage.vote(id, rig.now));
        if settled {
            rig.settle();
        }
        rig.storage.abort(id, rig.now);
        rig.settle();
        assert!(rig.temporary().is_empty());
    }
    let id = rig.begin(&[]);
    rig.put(id, 1, 0, b"whole");
    rig.settle();
    let Rig { storage, .. } = rig;
    storage.close().unwrap();
    assert_eq!(std::fs::read_dir(dir.path("blobs/tmp")).unwrap().count(), 0);
}

#[test]
fn blobs_survive_a_conflict_of_another_object() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let old = rig.commit(&[(2, 0, "old")]);
    let new = rig.commit(&[(2, old.0, "new")]);
    let id = rig.begin(&[(2, old.0, "mine")]);
    rig.put(id, 1, 0, b"precious");
    let events = rig.vote(id);
    assert!(
        matches!(events.last(), Some(Event::Voted(_, Vote::Conflicts(_)))),
        "{events:?}"
    );
    let resolved = Bytes::from_static(b"resolved");
    assert!(rig.storage.store(id, Oid(2), Some(new), resolved));
    let tid = rig.end(id);
    assert_eq!(rig.blob(1, tid).unwrap(), b"precious");
}

#[test]
fn a_blob_that_is_missing_or_not_whole_is_an_error() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let record = Bytes::from_static(RECORD);
    let id = rig.begin(&[]);
    assert!(rig.storage.store(id, Oid(1), None, record.clone()));
    assert!(rig.refusal(id).contains("without its blob"));
    let id = rig.begin(&[]);
    rig.storage.begin_blob(id).unwrap();
    assert_eq!(rig.storage.begin_blob(id), Err(BlobMistake::NotEnded));
    assert!(rig.refusal(id).contains("not ended"));
    let id = rig.begin(&[]);
    let chunk = Bytes::from_static(b"chunk");
    assert_eq!(
        rig.storage.add_to_blob(id, chunk),
        Err(BlobMistake::NotBegun)
    );
    assert_eq!(
        rig.storage.end_blob(id, Oid(1), None, record.clone()),
        Err(BlobMistake::NotBegun)
    );
    // A copy of a database that has lost it says so in the log, and goes on.
    let id = rig.begin(&[]);
    assert!(rig.storage.restore(id, Oid(1), Some(record), None));
    rig.end(id);
}

#[test]
fn a_full_disk_costs_the_transaction() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let id = rig.begin(&[]);
    // Nothing can be created where a file stands in the place of the directory.
    let temporary = dir.path("blobs/tmp");
    std::fs::remove_dir(&temporary).unwrap();
    std::fs::write(&temporary, "").unwrap();
    rig.storage.begin_blob(id).unwrap();
    let piece = Bytes::from(vec![7; BLOB_WRITE_LEN]);
    rig.storage.add_to_blob(id, piece.clone()).unwrap();
    rig.settle();
    std::fs::remove_file(&temporary).unwrap();
    std::fs::create_dir(&temporary).unwrap();
    // The rest of it is taken, and goes nowhere.
    for _ in 0..9 {
        rig.storage.add_to_blob(id, piece.clone()).unwrap();
        assert!(!rig.storage.is_busy(id));
    }
    let record = Bytes::from_static(RECORD);
    rig.storage.end_blob(id, Oid(1), None, record).unwrap();
    assert!(rig.refusal(id).contains("a blob cannot be kept"));
    assert!(rig.temporary().is_empty());
    let id = rig.begin(&[]);
    rig.put(id, 1, 0, b"later");
    let tid = rig.end(id);
    assert_eq!(rig.blob(1, tid).unwrap(), b"later");
}

#[test]
fn a_shared_file_is_taken_over() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let directory = rig.storage.blob_directory().unwrap().directory_of(Oid(1));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("0x01abc.tmp-"), "shared").unwrap();
    let id = rig.begin(&[]);
    rig.share(id, 1, "0x01abc.tmp-").unwrap();
    let tid = rig.end(id);
    assert_eq!(rig.blob(1, tid).unwrap(), b"shared");
    assert_eq!(OsDisk::default().names(&directory).unwrap().len(), 1);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    for name in [
        "../x.tmp", "/x.tmp", "a/x.tmp", "..", ".", "", "x", "x.tmp\0", ".x.tmp", "x.tmpab",
    ] {
        let id = rig.begin(&[]);
        assert_eq!(rig.share(id, 1, name), Err(BlobMistake::BadName), "{name}");
        rig.storage.abort(id, rig.now);
    }
    assert_eq!(shared_name(b"\xff.tmp"), None);
    assert_eq!(shared_name("0x00l5600mfd.tmp-".as_bytes()).map(str::len), Some(17));
    assert_eq!(shared_name("é.tmpé".as_bytes()).map(str::len), Some(8));
    assert_eq!(shared_name(format!("{}.tmp", "x".repeat(252)).as_bytes()), None);
}

#[test]
fn what_is_no_regular_file_is_refused_and_stays() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let directory = rig.storage.blob_directory().unwrap().directory_of(Oid(1));
    std::fs::create_dir_all(directory.join("directory.tmp")).unwrap();
    let secret = dir.path("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, directory.join("link.tmp")).unwrap();
    let fifo = directory.join("fifo.tmp");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for name in ["directory.tmp", "link.tmp", "fifo.tmp", "missing.tmp"] {
        let id = rig.begin(&[]);
        rig.share(id, 1, name).unwrap();
        assert!(rig.refusal(id).contains("a blob cannot be kept"), "{name}");
        assert!(rig.temporary().is_empty());
        let stays = std::fs::symlink_metadata(directory.join(name)).is_ok();
        assert_eq!(stays, name != "missing.tmp", "{name}");
    }
    // Nor is a blob read through a link that somebody has put in its place.
    let path = rig.path(1, Tid(5));
    std::os::unix::fs::symlink(&secret, &path).unwrap();
    assert!(rig.blob(1, Tid(5)).is_err());
}

#[test]
fn a_directory_that_vanishes_is_made_again() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let id = rig.begin(&[]);
    rig.put(id, 1, 0, b"blob");
    rig.vote(id);
    // As a pack does that finds it empty.
    std::fs::remove_dir_all(dir.path("blobs/0x00")).unwrap();
    rig.finish(id);
    let events = rig.settle();
    let [Event::Committed(commit)] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(rig.blob(1, commit.tid).unwrap(), b"blob");
}

#[test]
fn an_undone_object_gets_its_blob_back() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let mut put = |rig: &mut Rig, serial: Tid, content: &[u8]| {
        let id = rig.begin(&[]);
        rig.put(id, 1, serial.0, content);
        rig.end(id)
    };
    let one = put(&mut rig, Tid::ZERO, b"one");
    let two = put(&mut rig, one, b"two");
    let undo = |rig: &mut Rig, tid: Tid| {
        let id = rig.begin(&[]);
        assert!(rig.storage.undo(id, Some(tid)));
        rig.end(id)
    };
    let undone = undo(&mut rig, two);
    assert_eq!(rig.blob(1, undone).unwrap(), b"one");
    let redone = undo(&mut rig, undone);
    assert_eq!(rig.blob(1, redone).unwrap(), b"two");
    let uncreated = undo(&mut rig, redone);
    let uncreated = undo(&mut rig, { undo(&mut rig, uncreated); two });
    let _ = uncreated;
}

#[test]
fn undo_without_the_file_of_the_blob_fails() {
    let dir = TestDir::new();
    let mut rig = rig(&dir);
    let id = rig.begin(&[]);
    rig.put(id, 1, 0, b"one");
    let one = rig.end(id);
    let id = rig.begin(&[]);
    rig.put(id, 1, one.0, b"two");
    let two = rig.end(id);
    std::fs::remove_file(rig.path(1, one)).unwrap();
    let id = rig.begin(&[]);
    assert!(rig.storage.undo(id, Some(two)));
    let refusal = rig.refusal(id);
    assert!(refusal.contains(".blob: "), "{refusal}");
    assert!(rig.temporary().is_empty());
    let id = rig.begin(&[]);
    rig.put(id, 1, two.0, b"three");
    rig.end(id);
}

#[test]
fn records_of_blobs_are_known_in_every_protocol() {
    for record in [
        &b"cZODB.blob\nBlob\np0\n."[..],
        b"cZODB.blob\nBlob\nq\x01.",
        b"\x80\x02cZODB.blob\nBlob\nq\x00.",
        b"\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.",
        b"\x80\x04\x95\x1b\0\0\0\0\0\0\0\x8c\x09ZODB.blob\x94\x8c\x04Blob\x94\x93\x94.",
        b"\x80\x05\x8c\x09ZODB.blob\x8c\x04Blob\x93.",
    ] {
        assert!(is_blob_record(record), "{}", record.escape_ascii());
    }
    for record in [
        &b""[..],
        b"\x80",
        b"\x80\x04\x95\x1b",
        b"\x80\x03cZODB.blob\nBlobs\nq\x00.",
        b"\x80\x03X\x10\0\0\0cZODB.blob\nBlob\n.",
        b"\x80\x04\x8c\x09ZODB.blob\x94\x8c\x04Blob",
    ] {
        assert!(!is_blob_record(record), "{}", record.escape_ascii());
    }
}

#[test]
fn a_storage_without_a_directory_takes_no_blobs() {
    let mut rig = Rig::new(options());
    let id = rig.begin(&[]);
    assert_eq!(rig.storage.begin_blob(id), Err(BlobMistake::NotSupported));
    assert_eq!(rig.share(id, 1, "x.tmp"), Err(BlobMistake::NotSupported));
    assert!(rig.storage.read_blob(Oid(1), Tid(1)).is_none());
    // Whoever copies a database may bring such records.
    let record = Bytes::from_static(RECORD);
    assert!(rig.storage.store(id, Oid(1), None, record));
    rig.end(id);
    assert_eq!(rig.storage.path(), Path::new("Data.fs"));
}

#[test]
fn create_forgets_the_blobs_of_the_file_before() {
    let dir = TestDir::new();
    let mut first = rig(&dir);
    let id = first.begin(&[]);
    first.put(id, 1, 0, b"old");
    let tid = first.end(id);
    let path = first.path(1, tid);
    drop(first);
    let options = Options {
        blob_dir: Some(dir.path("blobs")),
        create: true,
        ..options()
    };
    Rig::at(Arc::new(OsDisk::default()), &dir.path("Data.fs"), options);
    assert!(!path.exists());
    assert!(dir.path("blobs/tmp").is_dir());
}
