//! A copy of the database, where it is taken from.
//!
//! Data files never change in front of their end, but for statuses, so a copy of them is made while
//! the node goes on. Who makes it asks for pieces, by whatever way: see `beside`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::digest::{Context, SHA256};

use super::compare::{BlobDigest, DigestSource};
use super::files::Settled;
use super::found::clip;
use super::manifest::{CopiedFile, Manifest};
use super::{LogDisk, LogDiskError};
use crate::entry::Point;
use crate::ids::{Digest, HistoryId, Oid, Tid};
use crate::storage::blob::layout::BlobDirectory;
use crate::storage::digest::{Places, RangeDigest, range};
use crate::storage::disk::{Disk, File, OpenMode};
use crate::storage::error::ReadError;
use crate::storage::index::Index;
use crate::storage::newest;
use crate::storage::read::{Reader, Wait};
use crate::storage::transfer::BlobAt;
use crate::storage::verify::Subject;

/// Bytes that are read at once.
pub(super) const PIECE_LEN: usize = 1 << 20;

/// Where a copy comes from: from a [`Snapshot`] on this machine, or from that of another node. All
/// calls may wait.
pub trait CopySource {
    /// What it consists of.
    fn manifest(&self) -> &Manifest;

    /// Bytes of a data file, which is followed by their SHA-256; how many there were: fewer only at
    /// the end of that, or if not so many are given at once.
    ///
    /// # Errors
    ///
    /// The copy cannot be had, or not now.
    fn read(&self, file: u32, pos: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// The blobs of a storage that are behind this one in the order of oids and tids, or all; so
    /// many at most. None if there are no more.
    ///
    /// # Errors
    ///
    /// As of [`Self::read`].
    fn blobs(
        &self,
        storage: u32,
        after: Option<(Oid, Tid)>,
        count: usize,
    ) -> io::Result<Vec<BlobAt>>;

    /// Bytes of a blob and of its SHA-256, as [`Self::read`].
    ///
    /// # Errors
    ///
    /// As of [`Self::read`]; [`io::ErrorKind::NotFound`] if it was packed away.
    fn read_blob(
        &self,
        storage: u32,
        at: (Oid, Tid),
        pos: u64,
        buf: &mut [u8],
    ) -> io::Result<usize>;
}

/// The database of a node as of one of its checkpoints. Any thread may read it.
#[derive(Debug)]
pub struct Snapshot {
    disk: Arc<dyn Disk>,
    manifest: Manifest,
    /// As in the manifest.
    storages: Vec<Data>,
    /// Of the blob that is being read.
    blob: Mutex<Option<(BlobKey, Hashing)>>,
}

/// Storage, object, transaction.
type BlobKey = (u32, Oid, Tid);

#[derive(Debug)]
struct Data {
    /// Of the manifest's length.
    file: Arc<dyn File>,
    /// What is copied, if it is not all of the file.
    newest: Option<Arc<dyn File>>,
    /// End of `file`.
    tail: u64,
    last_tid: Tid,
    index: Index,
    blobs: Option<BlobDirectory>,
    path: PathBuf,
    hashing: Mutex<Hashing>,
    /// Where ranges of transactions are.
    places: Mutex<Places>,
}

/// The digest of a file that is read from its beginning to its end; what is read in another order
/// is read again for it.
struct Hashing {
    context: Context,
    /// What is in it.
    pos: u64,
}

impl Hashing {
    fn new() -> Self {
        let context = Context::new(&SHA256);
        Self { context, pos: 0 }
    }

    fn add(&mut self, pos: u64, bytes: &[u8]) {
        let known = self.pos.checked_sub(pos);
        let known = known.and_then(|known| usize::try_from(known).ok());
        if let Some(new) = known.and_then(|known| bytes.get(known..)) {
            self.context.update(new);
            self.pos += new.len() as u64;
        }
    }

    fn digest(&mut self, file: &dyn File, len: u64) -> io::Result<Digest> {
        let mut piece = Vec::new();
        while self.pos < len {
            let left = usize::try_from(len - self.pos).unwrap_or(PIECE_LEN);
            piece.resize(left.min(PIECE_LEN), 0);
            let read = file.read_at(&mut piece, self.pos)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.add(self.pos, &piece[..read]);
        }
        let mut digest = Digest([0; Digest::LEN]);
        digest
            .0
            .copy_from_slice(self.context.clone().finish().as_ref());
        Ok(digest)
    }

    /// Bytes of a file of this length, and of its digest behind it.
    fn read(&mut self, file: &dyn File, len: u64, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(len.saturating_sub(pos)).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        let (content, behind) = buf.split_at_mut(want);
        let read = file.read_at(content, pos)?;
        self.add(pos, &content[..read]);
        let at = pos + read as u64;
        if at < len || behind.is_empty() {
            return Ok(read);
        }
        let digest = self.digest(file, len)?;
        let from = usize::try_from(at - len).unwrap_or(usize::MAX);
        let rest = digest.0.get(from..).unwrap_or_default();
        let count = rest.len().min(behind.len());
        behind[..count].copy_from_slice(&rest[..count]);
        Ok(read + count)
    }
}

impl fmt::Debug for Hashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hashing")
            .field("pos", &self.pos)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What has been read twice, or not, is as good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Data {
    /// Whether a revision is the current one. In doubt it is: a blob too many does no harm.
    fn is_newest(&self, oid: Oid, tid: Tid) -> bool {
        let reader = Reader {
            file: &*self.file,
            wait: Wait::Yes,
            tail: self.tail,
        };
        let Some(pos) = self.index.get(oid) else {
            return false;
        };
        reader
            .record_tid(pos, oid)
            .map_or(true, |newest| newest == tid)
    }

    fn is_wanted(&self, oid: Oid, tid: Tid) -> bool {
        tid <= self.last_tid && (self.newest.is_none() || self.is_newest(oid, tid))
    }
}

impl Snapshot {
    /// The lineage of the data.
    pub const fn history(&self) -> HistoryId {
        self.manifest.history()
    }

    /// The same without old revisions, which takes less time and space to copy. They are written to
    /// files of their own first, which vanish with this: so pieces of them may be asked for in any
    /// order, and again. That takes as long as reading all data files. The node that adopts it
    /// begins with them as of now: see
    /// [`LogStart::history_from`](crate::replica::event::LogStart::history_from).
    ///
    /// # Errors
    ///
    /// A data file cannot be read, or there is no room.
    pub fn newest_only(mut self) -> Result<Self, LogDiskError> {
        let settled = &mut self.manifest.settled;
        let last_tid = settled.tids.values().copied().max();
        settled.history_from = last_tid.unwrap_or_default();
        self.manifest.newest_only = true;
        for (data, file) in self
            .storages
            .iter_mut()
            .zip(self.manifest.files.values_mut())
        {
            let io = |action| LogDiskError::io(action, &data.path);
            let newest = self.disk.open_unnamed(&data.path);
            let newest = newest.map_err(io("create a copy of"))?;
            newest::copy(&data.file, data.tail, &data.index, &*newest, &data.path)?;
            file.len = newest.len().map_err(io("copy"))?;
            data.newest = Some(newest);
            data.hashing = Mutex::new(Hashing::new());
        }
        Ok(self)
    }

    /// The last entry that is in it.
    pub const fn point(&self) -> Point {
        self.manifest.point()
    }

    /// A data file as it is: also of one [without old revisions](Self::newest_only) all of it.
    ///
    /// # Errors
    ///
    /// There is none of this number.
    pub fn subject(&self, storage: u32) -> io::Result<Subject<'_>> {
        let data = self.data(storage)?;
        Ok(Subject {
            file: &data.file,
            tail: data.tail,
            index: &data.index,
            blobs: data.blobs.as_ref().map(|blobs| (blobs, &*self.disk)),
        })
    }

    /// Reads by handles of its own from now on: who reads a file from its beginning to its end
    /// shall not make the system believe that all who read it do. A file that has been replaced
    /// meanwhile is left as it is.
    pub fn apart(mut self) -> Self {
        for data in &mut self.storages {
            if let Ok(file) = self.disk.open(&data.path, OpenMode::ReadRegular)
                && file
                    .id()
                    .is_ok_and(|id| data.file.id().is_ok_and(|it| it == id))
            {
                data.file = file;
            }
        }
        self
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Whether something else stands under the name of a data file now: it was packed, or replaced
    /// by a copy.
    pub fn is_replaced(&self, storage: u32) -> bool {
        self.data(storage).is_ok_and(|data| {
            let now = self.disk.identify(&data.path);
            now.is_ok_and(|now| data.file.id().is_ok_and(|id| id != now))
        })
    }

    fn data(&self, number: u32) -> io::Result<&Data> {
        let data = usize::try_from(number)
            .ok()
            .and_then(|it| self.storages.get(it));
        data.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl CopySource for Snapshot {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn read(&self, file: u32, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let data = self.data(file)?;
        let mut hashing = lock(&data.hashing);
        match &data.newest {
            // Behind the end others write meanwhile.
            None => hashing.read(&*data.file, data.tail, pos, buf),
            Some(newest) => hashing.read(&**newest, newest.len()?, pos, buf),
        }
    }

    fn blobs(
        &self,
        storage: u32,
        after: Option<(Oid, Tid)>,
        count: usize,
    ) -> io::Result<Vec<BlobAt>> {
        let data = self.data(storage)?;
        let Some(blobs) = &data.blobs else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut after = after;
        while found.len() < count {
            let more = blobs.list(&*self.disk, after, count - found.len())?;
            let Some(last) = more.last() else {
                break;
            };
            after = Some(*last);
            for (oid, tid) in more.into_iter().filter(|it| data.is_wanted(it.0, it.1)) {
                match self.disk.open(&blobs.file(oid, tid), OpenMode::ReadRegular) {
                    Ok(file) => {
                        let len = file.len()?;
                        found.push(BlobAt { oid, tid, len });
                    }
                    // It was packed away.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    fn read_blob(
        &self,
        storage: u32,
        (oid, tid): (Oid, Tid),
        pos: u64,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let data = self.data(storage)?;
        let blobs = data.blobs.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let path = blobs.file(oid, tid);
        let file = self.disk.open(&path, OpenMode::ReadRegular)?;
        let mut blob = lock(&self.blob);
        let key = (storage, oid, tid);
        let (_, hashing) = match &mut *blob {
            Some(known) if known.0 == key => known,
            other => other.insert((key, Hashing::new())),
        };
        hashing.read(&*file, file.len()?, pos, buf)
    }
}

impl DigestSource for Snapshot {
    fn digest(
        &self,
        storage: u32,
        (from, to): (Tid, Tid),
        len_max: u64,
    ) -> io::Result<RangeDigest> {
        let data = self.data(storage)?;
        let digest = range(
            &data.file,
            &mut lock(&data.places),
            (from, to),
            data.tail,
            len_max,
        );
        digest.map_err(|error| match error {
            ReadError::Io(error) => error,
            error => io::Error::other(format!("{}: {error}", data.path.display())),
        })
    }

    fn digest_blob(
        &self,
        storage: u32,
        (oid, tid): (Oid, Tid),
        pos: u64,
        len: u64,
    ) -> io::Result<BlobDigest> {
        let data = self.data(storage)?;
        let blobs = data.blobs.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let file = self
            .disk
            .open(&blobs.file(oid, tid), OpenMode::ReadRegular)?;
        digest_piece(&*file, pos, len)
    }
}

/// The digest of so many bytes of a file, or of fewer where it ends.
pub(super) fn digest_piece(file: &dyn File, pos: u64, len: u64) -> io::Result<BlobDigest> {
    let mut context = Context::new(&SHA256);
    let mut piece = vec![0; PIECE_LEN];
    let mut done = 0;
    while done < len {
        let some = usize::try_from(len - done).map_or(PIECE_LEN, |left| left.min(PIECE_LEN));
        let read = file.read_at(&mut piece[..some], pos.saturating_add(done))?;
        context.update(&piece[..read]);
        done += read as u64;
        if read < some {
            break;
        }
    }
    let mut digest = Digest([0; Digest::LEN]);
    digest.0.copy_from_slice(context.finish().as_ref());
    Ok(BlobDigest { len: done, digest })
}

impl LogDisk {
    /// The database as it is now. It can be copied while this node goes on.
    ///
    /// # Errors
    ///
    /// The node must not go on.
    pub fn snapshot(&mut self) -> Result<Snapshot, LogDiskError> {
        // So that no status in it changes any more.
        self.checkpoint()?;
        let point = self.settled.point;
        let mut epochs = self.journal.epochs().rows().to_vec();
        epochs.retain(|row| row.first <= point.seq);
        // The last one goes on behind the copy.
        clip(&mut epochs, self.last_applied_tid());
        let mut files = std::collections::BTreeMap::new();
        let mut storages = Vec::new();
        for (name, applier) in &self.appliers {
            let (file, tail) = applier.data_file();
            let io = LogDiskError::io("identify", applier.path());
            let copied = CopiedFile {
                len: tail,
                origin: file.id().map_err(io)?.inode,
                has_blobs: applier.blobs().is_some(),
            };
            files.insert(name.clone(), copied);
            storages.push(Data {
                file,
                newest: None,
                tail,
                last_tid: applier.last_tid(),
                index: applier.index().snapshot(),
                blobs: applier.blobs().cloned(),
                path: applier.path().to_owned(),
                hashing: Mutex::new(Hashing::new()),
                places: Mutex::default(),
            });
        }
        let manifest = Manifest {
            of: self.identity().disk,
            history: self.identity().history,
            newest_only: false,
            settled: Settled {
                tids: self.tids(),
                // A pack that the node it comes from has yet to do is to be done by the other one,
                // too.
                ..self.settled.clone()
            },
            files,
            epochs,
        };
        Ok(Snapshot {
            disk: self.disk.clone(),
            manifest,
            storages,
            blob: Mutex::new(None),
        })
    }
}
