//! Blobs: files beside the data file, one for each revision of an object that has one.
//!
//! ```text
//!  storeBlobStart, Chunk ...  ──►  tmp/standby-7.tmp     written, and synced now and then
//!  storeBlobEnd               ──►      "                 complete: read-only, synced
//!  vote                       ──►                        the object's directory made and synced
//!  finish                     ──►  0x00/.../0x01/0x040d27462eea6211.blob   renamed, synced
//!                                  then the status of the transaction (see `batch`)
//! ```
//!
//! Up to the vote all of it happens on threads of its own ([`Lane::Blob`](super::Lane::Blob)) and
//! without the commit lock, so that a long blob keeps nobody waiting but its own client. The vote
//! itself waits until that is done, and only then asks for the lock.
//!
//! A crash leaves files in `tmp`, which opening removes, or, between the rename and the status, a
//! blob of a transaction that is not there. That one takes space and does no harm: nobody has its
//! serial, and a transaction that should get the same tid replaces it.

pub mod layout;
mod staging;
mod work;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;

use self::layout::BlobDirectory;
pub(super) use self::staging::TxnBlobs;
pub(super) use self::work::move_in;
pub use self::work::{BlobDone, BlobJob, BlobReader, DirectoryMaker};
use self::work::{CopyBack, Outcome, Task};
use super::commit::Refusal;
use super::staging::{Txn, TxnId};
use super::{Event, FileStorage, Job};
use crate::ids::{Oid, Tid};

/// The blobs of a storage.
#[derive(Debug)]
pub(super) struct Blobs {
    directory: BlobDirectory,
    /// Temporary files so far: their names.
    files_begun: u64,
    maker: DirectoryMaker,
}

impl Blobs {
    pub(super) fn new(directory: BlobDirectory) -> Self {
        Self {
            directory,
            files_begun: 0,
            maker: DirectoryMaker::default(),
        }
    }

    /// The blobs are elsewhere now.
    pub(super) fn move_to(&mut self, directory: BlobDirectory) {
        self.directory = directory;
    }

    fn temporary_file(&mut self) -> PathBuf {
        self.files_begun += 1;
        self.directory.temporary_file(self.files_begun)
    }
}

/// What the record of a blob must come with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// The blob.
    Blob,
    /// Nothing: it is copied from another database, which may have lost the blob. It is logged.
    Nothing,
}

/// Why something about a blob cannot be done. All are mistakes of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobMistake {
    /// The storage has no directory for blobs.
    NotSupported,
    /// The transaction was voted: see `FileStorage::store`.
    Voted,
    /// Another blob is still being sent.
    NotEnded,
    /// No blob is being sent.
    NotBegun,
    /// The name is not one that a client may give to a file of its own.
    BadName,
}

impl fmt::Display for BlobMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSupported => "this storage keeps no blobs",
            Self::Voted => "the transaction was voted already",
            Self::NotEnded => "another blob was begun, and not ended",
            Self::NotBegun => "no blob was begun",
            Self::BadName => "the file name is not one that ZODB gives to temporary files",
        })
    }
}

impl FileStorage {
    /// The directory of blobs, if the storage has one.
    pub fn blob_directory(&self) -> Option<&BlobDirectory> {
        self.blobs.as_ref().map(|blobs| &blobs.directory)
    }

    /// Begins to receive a blob, of which object is told at its end.
    ///
    /// # Errors
    ///
    /// See [`BlobMistake`].
    pub fn begin_blob(&mut self, txn: TxnId) -> Result<(), BlobMistake> {
        let Self { blobs, txns, .. } = self;
        let blobs = blobs.as_mut().ok_or(BlobMistake::NotSupported)?;
        let txn = txns.get_mut(&txn).filter(|txn| txn.takes_records());
        let staged = &mut txn.ok_or(BlobMistake::Voted)?.blobs;
        staged.begin(blobs.temporary_file())
    }

    /// Adds to the blob that was begun. When [`Self::is_busy`] says so, no more should follow
    /// until an [`Event::Spilled`].
    ///
    /// # Errors
    ///
    /// See [`BlobMistake`].
    pub fn add_to_blob(&mut self, id: TxnId, chunk: Bytes) -> Result<(), BlobMistake> {
        let txn = self.txns.get_mut(&id).filter(|txn| txn.takes_records());
        let txn = txn.ok_or(BlobMistake::Voted)?;
        let is_broken = txn.broken.is_some();
        txn.blobs.add(chunk, is_broken)?;
        self.continue_blob(id);
        Ok(())
    }

    /// The blob that was begun is complete: stores a new revision of an object with it (see
    /// [`Self::store`]).
    ///
    /// # Errors
    ///
    /// See [`BlobMistake`].
    pub fn end_blob(
        &mut self,
        id: TxnId,
        oid: Oid,
        serial: Option<Tid>,
        data: Bytes,
    ) -> Result<(), BlobMistake> {
        let stored = self.store(id, oid, serial, data);
        self.name_blob(id, oid, stored)
    }

    /// As [`Self::end_blob`], of an object that is copied from another database (see
    /// [`Self::restore`]).
    ///
    /// # Errors
    ///
    /// See [`BlobMistake`].
    pub fn end_restored_blob(
        &mut self,
        id: TxnId,
        oid: Oid,
        data: Bytes,
        same_data: Option<Tid>,
    ) -> Result<(), BlobMistake> {
        let stored = self.restore(id, oid, Some(data), same_data);
        self.name_blob(id, oid, stored)
    }

    fn name_blob(&mut self, id: TxnId, oid: Oid, stored: bool) -> Result<(), BlobMistake> {
        if !stored {
            return Err(BlobMistake::Voted);
        }
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.blobs.end(oid)?;
        }
        self.continue_blob(id);
        Ok(())
    }

    /// Stores a new revision of an object whose blob the client has put into the object's
    /// directory itself, under a name that it has made up as ZODB does.
    ///
    /// # Errors
    ///
    /// See [`BlobMistake`].
    pub fn take_blob(
        &mut self,
        id: TxnId,
        oid: Oid,
        serial: Option<Tid>,
        data: Bytes,
        name: &[u8],
    ) -> Result<(), BlobMistake> {
        let blobs = self.blobs.as_mut().ok_or(BlobMistake::NotSupported)?;
        let name = shared_name(name).ok_or(BlobMistake::BadName)?;
        let from = blobs.directory.directory_of(oid).join(name);
        let base = blobs.directory.base().to_owned();
        let path = blobs.temporary_file();
        if !self.store(id, oid, serial, data) {
            return Err(BlobMistake::Voted);
        }
        let Some(txn) = self.txns.get_mut(&id) else {
            return Err(BlobMistake::Voted);
        };
        let replaced = txn.blobs.expect(oid, path.clone());
        self.run_blob_job(
            id,
            Task::TakeOver {
                from,
                path,
                oid,
                base,
            },
        );
        self.discard(id, replaced.into_iter().collect());
        Ok(())
    }

    /// A committed blob. Whether there is one, its first piece tells. `None` if the storage has no
    /// blobs at all.
    pub fn read_blob(&self, oid: Oid, serial: Tid) -> Option<BlobReader> {
        let directory = self.blob_directory()?;
        Some(BlobReader {
            disk: self.disk.clone(),
            path: directory.file(oid, serial),
            file: None,
            pos: 0,
            len: 0,
        })
    }

    /// Hands to a worker what has come of a blob, if it is enough.
    fn continue_blob(&mut self, id: TxnId) {
        let (Some(txn), Some(blobs)) = (self.txns.get_mut(&id), &self.blobs) else {
            return;
        };
        let is_broken = txn.broken.is_some();
        let (task, replaced) = txn.blobs.next_task(&blobs.directory, is_broken);
        if let Some(task) = task {
            self.run_blob_job(id, task);
        }
        self.discard(id, replaced.into_iter().collect());
    }

    fn run_blob_job(&mut self, txn: TxnId, task: Task) {
        let job = BlobJob {
            disk: self.disk.clone(),
            maker: self.directory_maker(),
            txn,
            task,
        };
        self.events.push_back(Event::Run(Job::Blob(job)));
    }

    /// What who gives blobs their names needs.
    pub(super) fn directory_maker(&self) -> DirectoryMaker {
        let blobs = self.blobs.as_ref();
        blobs.map(|blobs| blobs.maker.clone()).unwrap_or_default()
    }

    /// Has these temporary files removed.
    pub(super) fn discard(&mut self, txn: TxnId, paths: Vec<PathBuf>) {
        if !paths.is_empty() {
            self.run_blob_job(txn, Task::Discard(paths));
        }
    }

    /// Whether a vote can go on. If not, it will be asked for again when the blobs are on stable
    /// storage, and the directories that they will be in: not while others wait for the lock.
    pub(super) fn are_blobs_ready(&mut self, id: TxnId) -> bool {
        let (Some(txn), Some(blobs)) = (self.txns.get_mut(&id), &self.blobs) else {
            return true;
        };
        let task = match txn.broken {
            // It is refused anyway, when all its jobs have ended.
            Some(_) => None,
            // Who applies sees to that.
            None if self.feed.is_some() => None,
            None => txn.blobs.prepare(&blobs.directory),
        };
        let waits = txn.blobs.is_working();
        txn.blobs.vote_waits = waits;
        if let Some(task) = task {
            self.run_blob_job(id, task);
        }
        !waits
    }

    /// Gives the objects that were undone the blobs of the revisions that they have got back.
    /// Whether that has to be waited for, with the commit lock: it takes no longer than giving a
    /// file a second name, unless the file system knows no such thing.
    pub(super) fn copy_blobs_back(&mut self, id: TxnId) -> bool {
        let (Some(txn), Some(blobs)) = (self.txns.get_mut(&id), &mut self.blobs) else {
            return false;
        };
        let (mut copies, mut unwanted) = (Vec::new(), Vec::new());
        let base = blobs.directory.base().to_owned();
        let temporary = blobs.directory.temporary();
        for undone in &txn.undone {
            let oid = undone.oid;
            let Some(tid) = undone.data_tid.filter(|_| undone.is_blob) else {
                unwanted.extend(txn.blobs.forget(oid));
                continue;
            };
            let path = blobs.temporary_file();
            unwanted.extend(txn.blobs.expect(oid, path.clone()));
            copies.push(CopyBack {
                oid,
                from: blobs.directory.file(oid, tid),
                path,
                directories: blobs.directory.directories_of(oid),
            });
        }
        self.discard(id, unwanted);
        if copies.is_empty() {
            return false;
        }
        self.run_blob_job(
            id,
            Task::CopyBack {
                copies,
                base,
                temporary,
            },
        );
        true
    }

    pub(super) fn on_blob_done(&mut self, done: BlobDone, now: Instant) {
        let BlobDone { txn: id, outcome } = done;
        let Some(txn) = self.txns.get_mut(&id) else {
            // It was rolled back meanwhile.
            self.discard(id, outcome.into_files());
            return;
        };
        let is_copied_back = matches!(outcome, Outcome::CopiedBack { .. });
        let (failure, unwanted) = txn.blobs.on_done(outcome);
        if let Some(error) = failure {
            let reason = format!("a blob cannot be kept: {error}");
            log::error!("{}: {reason}", self.options.name);
            txn.broken.get_or_insert(reason);
        }
        if is_copied_back {
            self.on_blobs_copied_back(id, now);
        }
        self.discard(id, unwanted);
        self.continue_blob(id);
        self.events.push_back(Event::Spilled(id));
        let votes = |txn: &Txn| txn.blobs.is_voting() && !txn.blobs.is_working();
        if self.txns.get(&id).is_some_and(votes) {
            self.vote(id, now);
        }
    }

    fn on_blobs_copied_back(&mut self, id: TxnId, now: Instant) {
        let broken = self.txns.get(&id).and_then(|txn| txn.broken.clone());
        let Some(ticket) = self.checking(id) else {
            return;
        };
        let checked = match broken {
            Some(reason) => Err(Refusal::Disk(reason)),
            None => self.on_compared(id, ticket, now),
        };
        if let Err(refusal) = checked {
            self.refuse(id, refusal, now);
        }
    }

    /// Notes whether an object that is stored has a blob.
    pub(super) fn note_blob(&mut self, id: TxnId, oid: Oid, data: &[u8], needs: Needs) {
        let txn = self.txns.get_mut(&id).filter(|txn| txn.takes_records());
        if let (Some(txn), Some(_)) = (txn, &self.blobs) {
            txn.blobs
                .on_record(oid, is_blob_record(data).then_some(needs));
        }
    }

    /// Removes what unfinished transactions have left. Blocks; no job is in the hands of a worker.
    pub(super) fn discard_all_blobs(&self) {
        for txn in self.txns.values() {
            for path in txn.blobs.paths() {
                if let Err(error) = self.disk.discard(path) {
                    log::warn!("{}: not removed ({error})", path.display());
                }
            }
        }
    }

    /// Where the blobs of a finished transaction are, and where they are to be.
    pub(super) fn blob_moves(&self, staged: TxnBlobs, tid: Tid) -> Vec<(PathBuf, PathBuf)> {
        let Some(blobs) = &self.blobs else {
            return Vec::new();
        };
        self.warn_of_missing_blobs(&staged, Some(tid));
        let files = staged.into_files();
        files
            .map(|(oid, path)| (path, blobs.directory.file(oid, tid)))
            .collect()
    }

    /// Says which objects are restored without their blobs, in the transaction `tid` if it has one.
    pub(super) fn warn_of_missing_blobs(&self, staged: &TxnBlobs, tid: Option<Tid>) {
        let within = tid.map_or(String::new(), |tid| format!(" in {tid}"));
        for oid in staged.restored_without() {
            let name = self.name();
            log::warn!("{name}: object {oid} is restored{within} without its blob");
        }
    }
}

/// Whether a record is that of a `ZODB.blob.Blob`: whether it begins with a pickle of that class,
/// by name, in the protocols that ZODB has ever written, or may.
pub fn is_blob_record(data: &[u8]) -> bool {
    const GLOBAL: &[u8] = b"cZODB.blob\nBlob\n";
    const NAMES: [&[u8]; 2] = [b"\x8c\x09ZODB.blob", b"\x8c\x04Blob"];
    let pickle = match data {
        [0x80, _, rest @ ..] => rest,
        all => all,
    };
    if pickle.starts_with(GLOBAL) {
        return true;
    }
    // Protocol 4: a frame, both names, each perhaps put into the memo, and STACK_GLOBAL.
    let without_memo = |rest: &'_ [u8]| -> usize { usize::from(rest.first() == Some(&0x94)) };
    let mut rest = match pickle {
        [0x95, frame @ ..] => frame.get(8..).unwrap_or_default(),
        all => all,
    };
    for name in NAMES {
        let Some(behind) = rest.strip_prefix(name) else {
            return false;
        };
        rest = &behind[without_memo(behind)..];
    }
    rest.first() == Some(&0x93)
}

/// The name of a file that a client has made, if it is a base name with the ending that ZODB gives
/// to such (`.tmp`, and one more character for the second file of that name).
fn shared_name(name: &[u8]) -> Option<&str> {
    let name = str::from_utf8(name).ok()?;
    let mut without_last = name.chars();
    without_last.next_back();
    let is_temporary = name.ends_with(".tmp") || without_last.as_str().ends_with(".tmp");
    let is_base = !name.contains(['/', '\0']) && !name.starts_with('.');
    (is_temporary && is_base && name.len() <= NAME_LEN_MAX).then_some(name)
}

/// What file systems take.
const NAME_LEN_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::limits::{BLOB_JOBS_MAX, BLOB_READ_LEN, BLOB_SYNC_LEN, BLOB_WRITE_LEN};
    use crate::storage::disk::{Disk, OsDisk};
    use crate::storage::testing::{Rig, TestDir, options};
    use crate::storage::{Options, Vote};

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
            let mut events = self.vote(id);
            events.retain(|event| !matches!(event, Event::Spilled(_)));
            match events.pop() {
                Some(Event::Voted(_, Vote::Refused(Refusal::Blob(text) | Refusal::Disk(text)))) => {
                    text
                }
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
        assert!(
            !rig.storage
                .store(slow, Oid(9), None, Bytes::from_static(b"x"))
        );
        // Its blob is not on stable storage yet, so that it must not have the lock either.
        let quick = rig.begin(&[(2, 0, "quick")]);
        rig.end(quick);
        for job in held {
            rig.storage.on_done(job.run(), rig.now);
        }
        let events = rig.settle();
        let granted =
            |event: &Event| matches!(event, Event::Voted(id, Vote::Granted) if *id == slow);
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

    /// The finish could not fail alone: it would take the storage with it.
    #[test]
    fn a_vote_is_refused_if_the_blob_cannot_come_to_its_place() {
        let dir = TestDir::new();
        let mut rig = rig(&dir);
        let elsewhere = rig.storage.blob_directory().unwrap().directory_of(Oid(1));
        std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/proc", &elsewhere).unwrap();
        let id = rig.begin(&[]);
        rig.put(id, 1, 0, b"content");
        let text = rig.refusal(id);
        assert!(text.contains(&*elsewhere.to_string_lossy()), "{text}");
        rig.storage.abort(id, rig.now);
        rig.settle();
        assert!(rig.temporary().is_empty());
        let id = rig.begin(&[]);
        rig.put(id, 2, 0, b"content");
        rig.end(id);
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

    /// A client that is not read any more could not even abort.
    #[test]
    fn a_blob_that_fails_does_not_leave_another_one_waiting() {
        let dir = TestDir::new();
        let mut rig = rig(&dir);
        let id = rig.begin(&[]);
        rig.share(id, 1, "missing.tmp").unwrap();
        rig.storage.begin_blob(id).unwrap();
        let piece = Bytes::from(vec![7; BLOB_WRITE_LEN]);
        while !rig.storage.is_busy(id) {
            rig.storage.add_to_blob(id, piece.clone()).unwrap();
        }
        rig.settle();
        assert!(!rig.storage.is_busy(id));
        let record = Bytes::from_static(RECORD);
        rig.storage.end_blob(id, Oid(2), None, record).unwrap();
        assert!(rig.refusal(id).contains("a blob cannot be kept"));
        rig.storage.abort(id, rig.now);
        rig.settle();
        assert!(rig.temporary().is_empty());
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
        assert_eq!(
            shared_name("0x00l5600mfd.tmp-".as_bytes()).map(str::len),
            Some(17)
        );
        assert_eq!(shared_name("é.tmpé".as_bytes()).map(str::len), Some(8));
        assert_eq!(
            shared_name(format!("{}.tmp", "x".repeat(252)).as_bytes()),
            None
        );
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
        let put = |rig: &mut Rig, serial: Tid, content: &[u8]| {
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
        // One whose creation is undone has none, and has it again when that is undone.
        let id = rig.begin(&[]);
        rig.put(id, 2, 0, b"other");
        let created = rig.end(id);
        let uncreated = undo(&mut rig, created);
        assert!(rig.blob(2, uncreated).is_err());
        let recreated = undo(&mut rig, uncreated);
        assert_eq!(rig.blob(2, recreated).unwrap(), b"other");
        assert!(rig.temporary().is_empty());
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
}
