//! Blobs: files beside the data file, one for each revision of an object that has one.
//!
//! ```text
//!  storeBlobStart, Chunk ...  ──►  tmp/standby-7.tmp     written, and synced now and then
//!  storeBlobEnd               ──►      "                 complete: read-only, synced
//!  vote                       ──►                        the object's directory made and synced
//!  finish                     ──►  0x00/.../0x01/0x040d27462eea6211.blob   renamed, directory synced
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
pub use self::work::{BlobDone, BlobJob, BlobReader};
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
}

impl Blobs {
    pub(super) const fn new(directory: BlobDirectory) -> Self {
        Self {
            directory,
            files_begun: 0,
        }
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
        if !self.store(id, oid, serial, data) {
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
        let directory = blobs.directory.directory_of(oid);
        let path = blobs.temporary_file();
        if !self.store(id, oid, serial, data) {
            return Err(BlobMistake::Voted);
        }
        let Some(txn) = self.txns.get_mut(&id) else {
            return Err(BlobMistake::Voted);
        };
        let replaced = txn.blobs.expect(oid, path.clone());
        let from = directory.join(name);
        self.run_blob_job(
            id,
            Task::TakeOver {
                from,
                path,
                oid,
                directory,
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
        let disk = self.disk.clone();
        let job = BlobJob { disk, txn, task };
        self.events.push_back(Event::Run(Job::Blob(job)));
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
        let waits = !copies.is_empty();
        if waits {
            self.run_blob_job(id, Task::CopyBack(copies));
        }
        waits
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
        for oid in staged.restored_without() {
            let name = self.name();
            log::warn!("{name}: object {oid} is restored in {tid} without its blob");
        }
        let files = staged.into_files();
        files
            .map(|(oid, path)| (path, blobs.directory.file(oid, tid)))
            .collect()
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
