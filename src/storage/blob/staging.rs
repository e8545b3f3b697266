//! The blobs of a transaction before it is finished.

use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::layout::BlobDirectory;
use super::work::{Outcome, Task};
use super::{BlobMistake, Needs};
use crate::ids::Oid;
use crate::limits::{BLOB_JOBS_MAX, BLOB_SYNC_LEN, BLOB_WRITE_LEN, SHARED_DATA_LEN_MIN};
use crate::storage::disk::File;

/// Blobs that a transaction is given, and how far they have come.
#[derive(Debug, Default)]
pub(in crate::storage) struct TxnBlobs {
    /// The one that is being received.
    upload: Option<Upload>,
    /// Those that were received, or are about to be.
    staged: BTreeMap<Oid, Staged>,
    /// Objects whose records say that they have a blob.
    wanted: BTreeMap<Oid, Needs>,
    /// In the hands of workers: blobs that are completed or taken over, and directories. The
    /// vote waits for them.
    jobs: usize,
    /// The directories of all in `staged` are there, and their names durable.
    prepared: bool,
    /// A vote has been asked for.
    pub(super) vote_waits: bool,
}

/// A blob that comes in pieces.
#[derive(Debug)]
struct Upload {
    path: PathBuf,
    /// Created with the first piece that is written.
    file: Option<Arc<dyn File>>,
    /// Bytes written, or in the hands of a worker.
    len: u64,
    /// How many of them no sync has covered.
    unsynced_len: u64,
    queued: Vec<Bytes>,
    queued_len: usize,
    is_writing: bool,
    /// All of it is in `queued`.
    ends_as: Option<Oid>,
}

#[derive(Debug)]
struct Staged {
    path: PathBuf,
    /// No worker has it.
    is_ready: bool,
}

impl TxnBlobs {
    /// A record was stored; `needs` if it is that of a blob.
    pub(super) fn on_record(&mut self, oid: Oid, needs: Option<Needs>) {
        match needs {
            Some(needs) => self.wanted.insert(oid, needs),
            None => self.wanted.remove(&oid),
        };
    }

    /// The object has no blob in this transaction; its file is returned as by [`Self::expect`].
    pub(super) fn forget(&mut self, oid: Oid) -> Option<PathBuf> {
        let staged = self.staged.remove(&oid)?;
        staged.is_ready.then_some(staged.path)
    }

    pub(super) fn begin(&mut self, path: PathBuf) -> Result<(), BlobMistake> {
        if self.upload.is_some() {
            return Err(BlobMistake::NotEnded);
        }
        self.upload = Some(Upload {
            path,
            file: None,
            len: 0,
            unsynced_len: 0,
            queued: Vec::new(),
            queued_len: 0,
            is_writing: false,
            ends_as: None,
        });
        Ok(())
    }

    /// `drops`: the transaction cannot be finished, and shall not take memory or space.
    pub(super) fn add(&mut self, chunk: Bytes, drops: bool) -> Result<(), BlobMistake> {
        let upload = self.upload.as_mut().ok_or(BlobMistake::NotBegun)?;
        if drops || chunk.is_empty() {
            return Ok(());
        }
        // Short ones do not keep the whole of what was read from the socket with them.
        let chunk = match chunk.len() {
            ..SHARED_DATA_LEN_MIN => Bytes::copy_from_slice(&chunk),
            _ => chunk,
        };
        upload.queued_len += chunk.len();
        upload.queued.push(chunk);
        Ok(())
    }

    pub(super) fn end(&mut self, oid: Oid) -> Result<(), BlobMistake> {
        let upload = self.upload.as_mut().ok_or(BlobMistake::NotBegun)?;
        upload.ends_as = Some(oid);
        Ok(())
    }

    /// A file for this object is on its way; one that it had before is returned if it can be
    /// removed already.
    pub(super) fn expect(&mut self, oid: Oid, path: PathBuf) -> Option<PathBuf> {
        self.jobs += 1;
        self.prepared = false;
        let is_ready = false;
        let replaced = self.staged.insert(oid, Staged { path, is_ready })?;
        // If a worker has it, its end will find that it is no more wanted.
        replaced.is_ready.then_some(replaced.path)
    }

    /// What is to be done for the upload, if anything, and a file to be removed. Of a transaction
    /// that cannot be finished (`is_broken`) nothing more is written.
    pub(super) fn next_task(
        &mut self,
        directory: &BlobDirectory,
        is_broken: bool,
    ) -> (Option<Task>, Option<PathBuf>) {
        if is_broken {
            if let Some(upload) = &mut self.upload {
                // Else it would wait, and its client with it, for a worker that it does not get.
                upload.queued = Vec::new();
                upload.queued_len = 0;
            }
            let ended = |it: &mut Upload| !it.is_writing && it.ends_as.is_some();
            let ended = self.upload.take_if(ended);
            let unwanted = ended.filter(|it| it.file.is_some()).map(|it| it.path);
            return (None, unwanted);
        }
        let Some(upload) = self.upload.take_if(|it| !it.is_writing && it.is_due()) else {
            return (None, None);
        };
        let Some(oid) = upload.ends_as else {
            let task = self.upload.insert(upload).write();
            return (Some(task), None);
        };
        let replaced = self.expect(oid, upload.path.clone());
        let task = Task::Complete {
            path: upload.path,
            file: upload.file,
            pos: upload.len,
            chunks: upload.queued,
            oid,
            base: directory.base().to_owned(),
        };
        (Some(task), replaced)
    }

    /// What is left to be done before a vote, once all are complete.
    pub(super) fn prepare(&mut self, directory: &BlobDirectory) -> Option<Task> {
        if self.is_working() || self.prepared || self.staged.is_empty() {
            return None;
        }
        self.jobs += 1;
        let directories = self.staged.keys().map(|oid| directory.directories_of(*oid));
        Some(Task::Prepare {
            directories: directories.collect(),
            temporary: directory.temporary(),
        })
    }

    /// What has failed, and files that are to be removed.
    pub(super) fn on_done(&mut self, outcome: Outcome) -> (Option<io::Error>, Vec<PathBuf>) {
        const NOTHING: Vec<PathBuf> = Vec::new();
        match outcome {
            Outcome::Discarded => (None, NOTHING),
            Outcome::Written { path, result } => {
                let Some(upload) = self.upload.as_mut().filter(|it| it.path == path) else {
                    return (None, vec![path]);
                };
                upload.is_writing = false;
                match result {
                    Ok(file) => {
                        upload.file = Some(file);
                        (None, NOTHING)
                    }
                    Err(error) => {
                        upload.file = None;
                        // What else comes of it is dropped; its vote will be refused.
                        upload.queued = Vec::new();
                        upload.queued_len = 0;
                        (Some(error), vec![path])
                    }
                }
            }
            Outcome::Staged { path, oid, result } => {
                let failure = result.err();
                let unwanted = self.on_staged(oid, path, failure.is_none());
                (failure, unwanted.into_iter().collect())
            }
            Outcome::CopiedBack { files, result } => {
                let failure = result.err();
                let files = files.into_iter();
                let unwanted =
                    files.filter_map(|(oid, path)| self.on_staged(oid, path, failure.is_none()));
                let unwanted = unwanted.collect();
                (failure, unwanted)
            }
            Outcome::Prepared(result) => {
                self.jobs -= 1;
                self.prepared = true;
                (result.err(), NOTHING)
            }
        }
    }

    /// A worker is done with a file. It is returned if nobody needs it: with a failure the vote is
    /// refused.
    fn on_staged(&mut self, oid: Oid, path: PathBuf, is_ready: bool) -> Option<PathBuf> {
        self.jobs -= 1;
        match self.staged.get_mut(&oid).filter(|it| it.path == path) {
            Some(staged) if is_ready => {
                staged.is_ready = true;
                None
            }
            _ => Some(path),
        }
    }

    /// Whether a vote has to wait.
    pub(super) fn is_working(&self) -> bool {
        let ends = self.upload.as_ref().is_some_and(|it| it.ends_as.is_some());
        self.jobs > 0 || ends
    }

    /// Whether there is no blob, and none is on its way.
    pub(in crate::storage) fn is_empty(&self) -> bool {
        self.upload.is_none() && self.staged.is_empty() && self.jobs == 0
    }

    /// Whether as much waits for the disk as may, so that no more should be taken.
    pub(in crate::storage) fn is_full(&self) -> bool {
        self.jobs >= BLOB_JOBS_MAX
            || self
                .upload
                .as_ref()
                .is_some_and(|it| it.ends_as.is_some() || it.queued_len >= 2 * BLOB_WRITE_LEN)
    }

    /// Whether a vote was asked for, and waits for the blobs.
    pub(in crate::storage) const fn is_voting(&self) -> bool {
        self.vote_waits
    }

    /// Why the transaction cannot be finished, though nothing has failed.
    pub(in crate::storage) fn fault(&self) -> Option<String> {
        if self.upload.is_some() {
            return Some("a blob was begun, and not ended".to_owned());
        }
        let missing = self.missing(Needs::Blob).next()?;
        Some(format!("object {missing} has come without its blob"))
    }

    /// Objects that were restored, and should have a blob.
    pub(super) fn restored_without(&self) -> impl Iterator<Item = Oid> {
        self.missing(Needs::Nothing)
    }

    fn missing(&self, needs: Needs) -> impl Iterator<Item = Oid> {
        let wanted = self.wanted.iter().filter(move |(_, it)| **it == needs);
        let oids = wanted.map(|(oid, _)| *oid);
        oids.filter(|oid| !self.staged.contains_key(oid))
    }

    /// The files, with their objects. Their transaction is finished.
    pub(super) fn into_files(self) -> impl Iterator<Item = (Oid, PathBuf)> {
        let staged = self.staged.into_iter();
        staged.map(|(oid, staged)| (oid, staged.path))
    }

    /// The same, of a transaction that is being voted.
    pub(in crate::storage) fn files(&self) -> Vec<(Oid, PathBuf)> {
        let staged = self.staged.iter();
        staged
            .map(|(oid, staged)| (*oid, staged.path.clone()))
            .collect()
    }

    /// Files that no worker has, for a transaction that is rolled back.
    pub(in crate::storage) fn into_unwanted(self) -> Vec<PathBuf> {
        let upload = self.upload.filter(|it| !it.is_writing && it.file.is_some());
        let ready = self.staged.into_values().filter(|it| it.is_ready);
        let ready = ready.map(|staged| staged.path);
        upload.map(|it| it.path).into_iter().chain(ready).collect()
    }

    /// All files that there may be.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let staged = self.staged.values().map(|staged| &*staged.path);
        staged.chain(self.upload.as_ref().map(|upload| &*upload.path))
    }

    /// For a transaction that goes on only to be refused.
    pub(in crate::storage) fn take(&mut self) -> Self {
        mem::take(self)
    }
}

impl Upload {
    /// Whether a worker should have what is queued.
    const fn is_due(&self) -> bool {
        self.ends_as.is_some() || self.queued_len >= BLOB_WRITE_LEN
    }

    fn write(&mut self) -> Task {
        let len = mem::take(&mut self.queued_len) as u64;
        self.unsynced_len += len;
        let sync = self.unsynced_len >= BLOB_SYNC_LEN;
        if sync {
            self.unsynced_len = 0;
        }
        let pos = self.len;
        self.len += len;
        self.is_writing = true;
        Task::Write {
            path: self.path.clone(),
            file: self.file.clone(),
            pos,
            chunks: mem::take(&mut self.queued),
            sync,
        }
    }
}
