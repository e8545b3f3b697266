//! Files of blobs that wait for their transactions to be applied: in the directory `blobs` of the
//! journal, each named by the SHA-256 of what is in it. They are there, complete and on stable
//! storage, before the entry that names them is acknowledged, and until a checkpoint has brought it
//! to the data file. A blob of an entry that is cut goes to `diverged-blobs`.

use std::collections::BTreeSet;
use std::fmt;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::{Directories, LogDisk, LogDiskError, create_directory};
use crate::entry::Entry;
use crate::ids::{Digest, Seq};
use crate::replica::settings::Kind;
use crate::storage::disk::{Disk, File, OpenMode, with_suffix};
use crate::storage::transfer::{BlobName, Transfer};

/// What is appended to the name of a file that is not complete.
const NEW: &str = ".new";

/// Where they are.
pub(super) fn directory(directories: &Directories) -> PathBuf {
    directories.journal.join("blobs")
}

/// The blobs that an entry names.
fn blobs_of(entry: &Entry) -> Result<Vec<BlobName>, LogDiskError> {
    let header = entry.header();
    if header.kind != Kind::Transaction.number() {
        return Ok(Vec::new());
    }
    let seq = header.seq;
    let blobs = Transfer::blobs_of(entry.body());
    blobs.map_err(|error| LogDiskError::Transaction { seq, error })
}

/// The same, as they are remembered until it is applied.
pub(super) fn named_by(entry: &Entry) -> Result<Vec<(Digest, Seq)>, LogDiskError> {
    let seq = entry.header().seq;
    let blobs = blobs_of(entry)?;
    Ok(blobs.iter().map(|blob| (blob.digest, seq)).collect())
}

/// A file of a blob that is on its way here.
pub struct IncomingBlob {
    name: BlobName,
    path: PathBuf,
    file: Arc<dyn File>,
    pos: u64,
    context: Context,
}

impl IncomingBlob {
    /// The next bytes of it.
    ///
    /// # Errors
    ///
    /// The disk has failed, or is full.
    pub fn write(&mut self, pieces: &[Bytes]) -> Result<(), LogDiskError> {
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        self.file
            .write_at(&mut slices, self.pos)
            .map_err(LogDiskError::io("write", &self.path))?;
        for piece in pieces {
            self.context.update(piece);
            self.pos += piece.len() as u64;
        }
        Ok(())
    }
}

impl fmt::Debug for IncomingBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingBlob")
            .field("name", &self.name)
            .field("pos", &self.pos)
            .finish_non_exhaustive()
    }
}

impl LogDisk {
    /// The blobs of these entries whose files are not here: they have to come before the entries
    /// can be appended.
    ///
    /// # Errors
    ///
    /// An entry cannot be understood.
    pub fn missing_blobs(&self, entries: &[Entry]) -> Result<Vec<BlobName>, LogDiskError> {
        let mut missing = Vec::new();
        for entry in entries {
            let blobs = blobs_of(entry)?;
            missing.extend(blobs.into_iter().filter(|blob| !self.has_blob(blob)));
        }
        Ok(missing)
    }

    fn has_blob(&self, blob: &BlobName) -> bool {
        let path = self.blob_path(&blob.digest);
        let file = self.disk.open(&path, OpenMode::ReadRegular);
        file.is_ok_and(|file| file.len().is_ok_and(|len| len == blob.len))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        directory(&self.directories).join(digest.to_string())
    }

    /// Begins the file of a blob. What came of it before is forgotten.
    ///
    /// # Errors
    ///
    /// The disk has failed.
    pub fn begin_blob(&self, name: BlobName) -> Result<IncomingBlob, LogDiskError> {
        let path = with_suffix(&self.blob_path(&name.digest), NEW);
        create_directory(&*self.disk, &directory(&self.directories))?;
        let io = |action| LogDiskError::io(action, &path);
        self.disk.discard(&path).map_err(io("remove"))?;
        let file = self.disk.open(&path, OpenMode::CreateNew);
        Ok(IncomingBlob {
            name,
            file: file.map_err(io("create"))?,
            path,
            pos: 0,
            context: Context::new(&SHA256),
        })
    }

    /// All of a blob has come: it is on stable storage when this returns.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::WrongBlob`]: it is not what its name says, and was removed. Otherwise the disk
    /// has failed.
    pub fn end_blob(&self, blob: IncomingBlob) -> Result<(), LogDiskError> {
        let IncomingBlob {
            name,
            path,
            file,
            pos,
            context,
        } = blob;
        let disk = &*self.disk;
        let io = |action| LogDiskError::io(action, &path);
        let BlobName { len, digest, .. } = name;
        if pos != len || context.finish().as_ref() != digest.0 {
            disk.discard(&path).map_err(io("remove"))?;
            return Err(LogDiskError::WrongBlob { digest });
        }
        disk.set_read_only(&path, &directory(&self.directories))
            .map_err(io("protect"))?;
        // Before the rename: what has its name is complete.
        file.sync().map_err(io("sync"))?;
        let to = self.blob_path(&digest);
        disk.rename(&path, &to).map_err(io("rename"))?;
        disk.sync_directory_of(&to)
            .map_err(LogDiskError::io("sync the directory of", &to))
    }

    /// A blob that comes at once; see [`Self::begin_blob`].
    ///
    /// # Errors
    ///
    /// As of [`Self::end_blob`].
    pub fn put_blob(&self, name: BlobName, pieces: &[Bytes]) -> Result<(), LogDiskError> {
        let mut blob = self.begin_blob(name)?;
        blob.write(pieces)?;
        self.end_blob(blob)
    }

    /// The blobs of entries that are about to be appended, all of which are here.
    pub(super) fn blobs_that_are_here(
        &self,
        entries: &[Entry],
    ) -> Result<Vec<(Digest, Seq)>, LogDiskError> {
        let mut named = Vec::new();
        for entry in entries {
            for blob in blobs_of(entry)? {
                let BlobName { oid, digest, .. } = blob;
                if !self.has_blob(&blob) {
                    return Err(LogDiskError::NoBlob { digest, oid });
                }
                named.push((digest, entry.header().seq));
            }
        }
        Ok(named)
    }

    /// The blobs that only entries behind this one name.
    fn blobs_behind(&self, after: Seq) -> BTreeSet<Digest> {
        let (behind, others): (BTreeSet<_>, BTreeSet<_>) =
            self.staged.iter().partition(|(_, seq)| *seq > after);
        let digests = |of: BTreeSet<(Digest, Seq)>| -> BTreeSet<Digest> {
            of.into_iter().map(|(digest, _)| digest).collect()
        };
        &digests(behind) - &digests(others)
    }

    /// Gives the blobs of entries that are about to be cut a second name. Until they are cut they
    /// need the first one.
    pub(super) fn keep_blobs_behind(&self, after: Seq) -> Result<(), LogDiskError> {
        let blobs = self.blobs_behind(after);
        let kept = self.directories.journal.join("diverged-blobs");
        if blobs.is_empty() {
            return Ok(());
        }
        create_directory(&*self.disk, &kept)?;
        for digest in &blobs {
            let to = kept.join(digest.to_string());
            self.disk
                .discard(&to)
                .map_err(LogDiskError::io("remove", &to))?;
            if let Err(error) = self.disk.link(&self.blob_path(digest), &to) {
                log::warn!("{}: a blob that is cut is not kept: {error}", to.display());
            }
        }
        let any = kept.join("any");
        self.disk
            .sync_directory_of(&any)
            .map_err(LogDiskError::io("sync the directory of", &any))
    }

    /// The entries behind this one are gone.
    pub(super) fn forget_blobs_behind(&mut self, after: Seq) -> Result<(), LogDiskError> {
        let gone = self.blobs_behind(after);
        self.staged.retain(|(_, seq)| *seq <= after);
        self.discard_blobs(&gone)
    }

    /// All that was applied is in the data files, on stable storage.
    pub(super) fn discard_applied_blobs(&mut self) -> Result<(), LogDiskError> {
        let applied = self.applied;
        let is_applied = |(_, seq): &&(Digest, Seq)| *seq <= applied;
        let mut gone: BTreeSet<Digest> = self
            .staged
            .iter()
            .filter(is_applied)
            .map(|it| it.0)
            .collect();
        self.staged.retain(|(_, seq)| *seq > applied);
        gone.retain(|digest| !self.staged.iter().any(|(other, _)| other == digest));
        self.discard_blobs(&gone)
    }

    fn discard_blobs(&self, gone: &BTreeSet<Digest>) -> Result<(), LogDiskError> {
        // That they are gone need not last: the next start removes them.
        for digest in gone {
            discard(&*self.disk, &self.blob_path(digest))?;
        }
        Ok(())
    }

    /// Removes what no entry names that is still to be applied: what has been applied, or came only
    /// in part, or for an entry that never came.
    pub(super) fn clean_blobs(&self) -> Result<(), LogDiskError> {
        let directory = directory(&self.directories);
        let Ok(names) = self.disk.names(&directory) else {
            return Ok(());
        };
        let wanted: BTreeSet<String> = self.staged.iter().map(|it| it.0.to_string()).collect();
        for name in names {
            if !name.to_str().is_some_and(|name| wanted.contains(name)) {
                discard(&*self.disk, &directory.join(name))?;
            }
        }
        Ok(())
    }
}

fn discard(disk: &dyn Disk, path: &Path) -> Result<(), LogDiskError> {
    disk.discard(path).map_err(LogDiskError::io("remove", path))
}
