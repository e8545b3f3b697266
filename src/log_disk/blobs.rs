//! Files of blobs that wait for their transactions to be applied: in the directory `blobs` of the
//! journal, each named by the SHA-256 of what is in it. They are there, complete and on stable
//! storage, before the entry that names them is acknowledged, and until a checkpoint has brought it
//! to the data file. A blob of an entry that is cut goes to `diverged-blobs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::copy::PIECE_LEN;
use super::{Directories, LogDisk, LogDiskError, create_directory};
use crate::entry::{Entry, EntryHeader};
use crate::ids::{Digest, Seq, Tid};
use crate::limits::{BLOBS_CHECKED_LEN, BLOBS_OPEN_MAX, LOST_BLOBS_MAX};
use crate::replica::settings::{Kind, StorageName};
use crate::storage::apply::Applier;
use crate::storage::blob::layout::BlobDirectory;
use crate::storage::disk::{Disk, File, OpenMode, is_lack_of_room, with_suffix};
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

/// They, and where they belong.
fn named(entry: &Entry, blobs: Vec<BlobName>) -> Result<Vec<NamedBlob>, LogDiskError> {
    let EntryHeader { seq, tid, .. } = *entry.header();
    if blobs.is_empty() {
        return Ok(Vec::new());
    }
    let storage = Transfer::storage_of(entry.body());
    let storage = storage.map_err(|error| LogDiskError::Transaction { seq, error })?;
    let named = blobs.into_iter().map(|name| NamedBlob {
        seq,
        tid,
        storage: storage.clone(),
        name,
    });
    Ok(named.collect())
}

/// A file of a blob that is on its way here. What is not complete is removed with this.
pub struct IncomingBlob {
    name: BlobName,
    disk: Arc<dyn Disk>,
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

    /// The bytes of a file.
    fn write_all_of(&mut self, file: &dyn File, path: &Path) -> Result<(), LogDiskError> {
        let mut piece = vec![0; PIECE_LEN];
        loop {
            let read = file.read_at(&mut piece, self.pos);
            let read = read.map_err(LogDiskError::io("read", path))?;
            if read == 0 {
                return Ok(());
            }
            self.write(&[Bytes::copy_from_slice(&piece[..read])])?;
        }
    }
}

impl Drop for IncomingBlob {
    fn drop(&mut self) {
        // One that is complete has another name now.
        if let Err(error) = self.disk.discard(&self.path) {
            log::warn!("{}: cannot be removed: {error}", self.path.display());
        }
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

/// A blob that an entry names: what has to be known to ask another node for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedBlob {
    /// The entry
    pub seq: Seq,
    /// The tid of its transaction
    pub tid: Tid,
    /// Whose
    pub storage: StorageName,
    /// The blob
    pub name: BlobName,
}

/// The files of blobs, for any thread.
#[derive(Clone, Debug)]
pub struct Blobs {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    /// Where those are that have been applied.
    applied: BTreeMap<StorageName, BlobDirectory>,
    known: Arc<Mutex<Known>>,
}

/// Who wants a blob that no entry of the journal names yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// An entry
    Entry(Seq),
    /// Whoever has called [`Blobs::expect`] with this.
    Expected(u64),
}

/// What threads tell each other of them.
#[derive(Debug, Default)]
struct Known {
    /// They were asked for, for what may be about to come. Several may name the same one.
    wanted: BTreeSet<(Digest, Claim)>,
    /// They have come for so many entries that have no place yet.
    taken: BTreeMap<Digest, u32>,
    /// Their names are there, and not known to be durable: as if they were not.
    unsynced: BTreeSet<Digest>,
    /// They were there when the node was started, and are to be looked at before they are used.
    unchecked: BTreeSet<Digest>,
    /// Those that were opened last, all of them checked.
    open: VecDeque<(BlobName, Arc<dyn File>)>,
    /// Numbers the files that are not complete: two threads may bring the same blob.
    last_new: u64,
}

impl Known {
    fn is_wanted(&self, digest: &Digest) -> bool {
        let first = (*digest, Claim::Entry(Seq::ZERO));
        let next = self.wanted.range(first..).next();
        self.taken.contains_key(digest) || next.is_some_and(|(wanted, _)| wanted == digest)
    }

    /// One entry fewer waits for its place.
    fn release(&mut self, digest: &Digest) {
        if let Some(count) = self.taken.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                self.taken.remove(digest);
            }
        }
    }
}

impl Blobs {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        directories: &Directories,
        appliers: &BTreeMap<StorageName, Applier>,
    ) -> Self {
        let applied = appliers
            .iter()
            .filter_map(|(name, applier)| Some((name.clone(), applier.blobs()?.clone())));
        Self {
            disk,
            directory: directory(directories),
            applied: applied.collect(),
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing of ours panics with it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As if the start had been too short for it.
    #[cfg(test)]
    pub(super) fn unchecked_for_tests(&self, digest: Digest) {
        self.known().unchecked.insert(digest);
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// Whether the file of a blob is here, for an entry that is still to be applied.
    pub fn is_here(&self, blob: &BlobName) -> bool {
        if self.known().unsynced.contains(&blob.digest) {
            return false;
        }
        let file = self
            .disk
            .open(&self.path(&blob.digest), OpenMode::ReadRegular);
        file.is_ok_and(|file| file.len().is_ok_and(|len| len == blob.len))
    }

    /// A blob that a peer asks for: one that waits to be applied, or, with the tid of its
    /// transaction, one that has been. Its digest is checked, so that this may take as long as
    /// reading it, but not each time; one that waits and is damaged is removed, and missing then.
    ///
    /// # Errors
    ///
    /// The disk cannot be read.
    pub fn open(
        &self,
        storage: &str,
        tid: Tid,
        name: &BlobName,
    ) -> Result<Option<Arc<dyn File>>, LogDiskError> {
        let is_it = |open: &&(BlobName, Arc<dyn File>)| open.0.digest == name.digest;
        if let Some((_, file)) = self.known().open.iter().find(is_it) {
            return Ok(Some(file.clone()));
        }
        let staged = self.path(&name.digest);
        let mut found = self.open_checked(&staged, name)?;
        match found {
            Some(_) => {
                self.known().unchecked.remove(&name.digest);
            }
            None if self.is_here(name) => self.discard_damaged(&staged, &name.digest)?,
            None => {}
        }
        if let (None, Some(blobs)) = (&found, self.applied.get(storage)) {
            found = self.open_checked(&blobs.file(name.oid, tid), name)?;
        }
        if let Some(file) = &found {
            let open = &mut self.known().open;
            open.truncate(BLOBS_OPEN_MAX - 1);
            open.push_front((*name, file.clone()));
        }
        Ok(found)
    }

    /// A file if it is what a blob's name says.
    fn open_checked(
        &self,
        path: &Path,
        name: &BlobName,
    ) -> Result<Option<Arc<dyn File>>, LogDiskError> {
        let io = |action| LogDiskError::io(action, path);
        let file = match self.disk.open(path, OpenMode::ReadRegular) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(io("open"))?,
        };
        let is_right = file.len().map_err(io("read"))? == name.len
            && digest_of(&*file).map_err(io("read"))? == name.digest;
        if !is_right {
            log::error!("{}: is not what it was", path.display());
        }
        Ok(is_right.then_some(file))
    }

    fn discard_damaged(&self, path: &Path, digest: &Digest) -> Result<(), LogDiskError> {
        log::error!("{}: removed, to be fetched anew", path.display());
        self.known().unchecked.remove(digest);
        discard(&*self.disk, path)
    }

    /// Looks at blobs that were here when the node was started, until so many bytes were read. They
    /// are looked at when they are used in any case; this is to know in time that one has to be
    /// fetched anew. Whether there are more.
    ///
    /// # Errors
    ///
    /// The disk cannot be read.
    pub fn check_some(&self, mut len: u64) -> Result<bool, LogDiskError> {
        loop {
            let next = self.known().unchecked.first().copied();
            let Some(digest) = next else {
                return Ok(false);
            };
            let path = self.path(&digest);
            let file = self.disk.open(&path, OpenMode::ReadRegular);
            let file_len = file.and_then(|file| file.len()).unwrap_or(0);
            let Some(left) = len.checked_sub(file_len) else {
                return Ok(true);
            };
            len = left;
            self.check(&digest)?;
        }
    }

    /// Looks at one that is still to be applied, if nobody has since the start. One that is damaged
    /// is removed.
    fn check(&self, digest: &Digest) -> Result<(), LogDiskError> {
        if !self.known().unchecked.contains(digest) {
            return Ok(());
        }
        let path = self.path(digest);
        let file = match self.disk.open(&path, OpenMode::ReadRegular) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file.map_err(LogDiskError::io("open", &path))?),
        };
        let found = file.map(|file| digest_of(&*file)).transpose();
        match found.map_err(LogDiskError::io("read", &path))? {
            Some(found) if found != *digest => self.discard_damaged(&path, digest),
            _ => {
                self.known().unchecked.remove(digest);
                Ok(())
            }
        }
    }

    /// Begins the file of a blob. If others begin it, too, the one that is complete last stays.
    ///
    /// # Errors
    ///
    /// The disk has failed.
    pub fn begin(&self, name: BlobName) -> Result<IncomingBlob, LogDiskError> {
        let number = {
            let mut known = self.known();
            known.last_new += 1;
            known.last_new
        };
        let path = with_suffix(&self.path(&name.digest), &format!("{NEW}{number}"));
        create_directory(&*self.disk, &self.directory)?;
        let io = |action| LogDiskError::io(action, &path);
        self.disk.discard(&path).map_err(io("remove"))?;
        let file = self.disk.open(&path, OpenMode::CreateNew);
        Ok(IncomingBlob {
            name,
            file: file.map_err(io("create"))?,
            disk: self.disk.clone(),
            path,
            pos: 0,
            context: Context::new(&SHA256),
        })
    }

    /// All of a blob has come: it is on stable storage when this returns.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::WrongBlob`]: it is not what its name says, and was removed. Otherwise the
    /// disk has failed.
    pub fn end(&self, mut blob: IncomingBlob) -> Result<(), LogDiskError> {
        let BlobName { len, digest, .. } = blob.name;
        let context = std::mem::replace(&mut blob.context, Context::new(&SHA256));
        if blob.pos != len || context.finish().as_ref() != digest.0 {
            return Err(LogDiskError::WrongBlob { digest });
        }
        // Before the rename: what has its name is complete.
        let sync = blob.file.sync();
        sync.map_err(LogDiskError::io("sync", &blob.path))?;
        {
            // Before it is there: from then on a checkpoint may remove it.
            let mut known = self.known();
            if !known.is_wanted(&digest) {
                known.taken.insert(digest, 1);
            }
        }
        self.give_name(&blob.path, &digest)
    }

    /// Gives a file that is complete and on stable storage its name.
    fn give_name(&self, from: &Path, digest: &Digest) -> Result<(), LogDiskError> {
        let disk = &*self.disk;
        disk.set_read_only(from, &self.directory)
            .map_err(LogDiskError::io("protect", from))?;
        let to = self.path(digest);
        {
            // What is there already may be what an entry relies on.
            let mut known = self.known();
            known.unchecked.remove(digest);
            if disk.open(&to, OpenMode::ReadRegular).is_err() {
                known.unsynced.insert(*digest);
            }
        }
        let renamed = disk.rename(from, &to);
        renamed.map_err(LogDiskError::io("rename", from))?;
        let synced = disk.sync_directory_of(&to);
        synced.map_err(LogDiskError::io("sync the directory of", &to))?;
        self.known().unsynced.remove(digest);
        Ok(())
    }

    /// This blob is about to come for an entry that may follow: it stays, if no entry needs it any
    /// more, until [`LogDisk::expect_no_more`] with the same number.
    pub fn expect(&self, digest: Digest, number: u64) {
        let claim = (digest, Claim::Expected(number));
        self.known().wanted.insert(claim);
    }

    /// A blob that comes at once; see [`Self::begin`].
    ///
    /// # Errors
    ///
    /// As of [`Self::end`].
    pub fn put(&self, name: BlobName, pieces: &[Bytes]) -> Result<(), LogDiskError> {
        let mut blob = self.begin(name)?;
        blob.write(pieces)?;
        self.end(blob)
    }

    /// Sees to it that a blob that was applied waits here once more, as it is in its place. Whether
    /// it does; its name need not be durable.
    fn stage_again(&self, blob: &NamedBlob) -> Result<bool, LogDiskError> {
        let NamedBlob {
            storage, tid, name, ..
        } = blob;
        self.check(&name.digest)?;
        if self.is_here(name) {
            return Ok(true);
        }
        let Some(place) = self.applied.get(storage) else {
            return Ok(false);
        };
        let place = place.file(name.oid, *tid);
        let file = match self.open_checked(&place, name) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(false),
            // To be fetched, as one that is another.
            Err(error) => {
                log::warn!("{error}");
                return Ok(false);
            }
        };
        create_directory(&*self.disk, &self.directory)?;
        let staged = self.path(&name.digest);
        // It may be there, and not be whole.
        discard(&*self.disk, &staged)?;
        if let Err(error) = self.disk.link(&place, &staged) {
            log::debug!(
                "{}: copied, as it cannot be linked ({error})",
                place.display()
            );
            let mut copy = self.begin(*name)?;
            copy.write_all_of(&*file, &place)?;
            self.end(copy)?;
        }
        Ok(true)
    }

    /// A file that the server has got from a client, complete and on stable storage, gets its place
    /// here: by another name, or, from another file system, by a copy. It is gone where it was.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::WrongBlob`]: its length is not what its name says. Otherwise the disk has
    /// failed, or there is no such file.
    pub fn take(&self, name: BlobName, from: &Path) -> Result<(), LogDiskError> {
        let io = |action| LogDiskError::io(action, from);
        let file = self.disk.open(from, OpenMode::ReadRegular);
        let file = file.map_err(io("open"))?;
        let digest = name.digest;
        if file.len().map_err(io("read"))? != name.len {
            return Err(LogDiskError::WrongBlob { digest });
        }
        create_directory(&*self.disk, &self.directory)?;
        *self.known().taken.entry(digest).or_default() += 1;
        let moved = self.move_here(name, &*file, from);
        moved.inspect_err(|_| self.known().release(&digest))
    }

    fn move_here(&self, name: BlobName, file: &dyn File, from: &Path) -> Result<(), LogDiskError> {
        let Err(error) = self.give_name(from, &name.digest) else {
            return Ok(());
        };
        log::debug!(
            "{}: copied, as it cannot be renamed ({error})",
            from.display()
        );
        let mut blob = self.begin(name)?;
        blob.write_all_of(file, from)?;
        self.end(blob)?;
        let removed = self.disk.discard(from);
        removed.map_err(LogDiskError::io("remove", from))
    }
}

/// SHA-256 of what is in a file.
fn digest_of(file: &dyn File) -> io::Result<Digest> {
    let (mut context, mut pos) = (Context::new(&SHA256), 0);
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let read = file.read_at(&mut piece, pos)?;
        if read == 0 {
            break;
        }
        context.update(&piece[..read]);
        pos += read as u64;
    }
    let mut digest = Digest([0; Digest::LEN]);
    digest.0.copy_from_slice(context.finish().as_ref());
    Ok(digest)
}

impl LogDisk {
    /// The files of blobs, for other threads: bringing one, or reading it, may take long.
    pub fn blobs(&self) -> Blobs {
        self.blobs.clone()
    }

    /// As [`Blobs::take`]: before the entry that names it is appended.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn take_blob(&self, name: BlobName, from: &Path) -> Result<(), LogDiskError> {
        self.blobs.take(name, from)
    }

    /// The same of all blobs of a transaction. If there is no room for one of them, none is here.
    ///
    /// # Errors
    ///
    /// As there; a lack of room is [known as such](LogDiskError::is_for_lack_of_room).
    pub fn take_blobs(&self, blobs: &[(BlobName, PathBuf)]) -> Result<(), LogDiskError> {
        for (at, (name, from)) in blobs.iter().enumerate() {
            let error = match self.take_blob(*name, from).map_err(LogDiskError::full) {
                Ok(()) => continue,
                Err(error) => error,
            };
            if error.is_for_lack_of_room() {
                for (name, _) in &blobs[..at] {
                    self.forget_blob(name)?;
                }
                // Its name may have come without being durable.
                self.discard_unwanted(&name.digest)?;
            }
            return Err(error);
        }
        Ok(())
    }

    /// As [`Blobs::put`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn put_blob(&self, name: BlobName, pieces: &[Bytes]) -> Result<(), LogDiskError> {
        self.blobs.put(name, pieces)
    }

    /// An entry that a blob has come for will not come. Without this its file stays until the next
    /// start.
    ///
    /// # Errors
    ///
    /// The disk has failed.
    pub fn forget_blob(&self, name: &BlobName) -> Result<(), LogDiskError> {
        self.blobs.known().release(&name.digest);
        self.discard_unwanted(&name.digest)
    }

    fn discard_unwanted(&self, digest: &Digest) -> Result<(), LogDiskError> {
        // While nobody begins to want it.
        let known = self.blobs.known();
        let is_staged = self.staged.iter().any(|it| it.0 == *digest);
        match is_staged || known.is_wanted(digest) {
            true => Ok(()),
            false => discard(&*self.disk, &self.blobs.path(digest)),
        }
    }

    /// What was expected by this number has come or not, and need not stay for that.
    ///
    /// # Errors
    ///
    /// The disk has failed.
    pub fn expect_no_more(&mut self, number: u64) -> Result<(), LogDiskError> {
        self.check()?;
        let mut known = self.blobs.known();
        let mut gone = BTreeSet::new();
        known.wanted.retain(|(digest, claim)| {
            let is_it = *claim == Claim::Expected(number);
            gone.extend(is_it.then_some(*digest));
            !is_it
        });
        drop(known);
        gone.retain(|digest| !self.staged.iter().any(|(staged, _)| staged == digest));
        let discarded = self.discard_blobs(&gone);
        self.latch(discarded)
    }

    /// The blobs of these entries whose files are not here: they have to come before the entries
    /// can be appended. Those that are here stay until that.
    ///
    /// # Errors
    ///
    /// An entry cannot be understood.
    pub fn missing_blobs(&self, entries: &[Entry]) -> Result<Vec<NamedBlob>, LogDiskError> {
        let mut missing = Vec::new();
        for entry in entries {
            let mut blobs = blobs_of(entry)?;
            blobs.retain(|blob| {
                // First, as a checkpoint may be under way.
                let seq = entry.header().seq;
                let claim = (blob.digest, Claim::Entry(seq));
                self.blobs.known().wanted.insert(claim);
                !self.blobs.is_here(blob)
            });
            missing.extend(named(entry, blobs)?);
        }
        Ok(missing)
    }

    /// Blobs of entries that are in the journal and still to be applied, whose files are not here
    /// any more, as they were damaged: the first ones.
    ///
    /// # Errors
    ///
    /// The journal cannot be read.
    pub fn lost_blobs(&self) -> Result<Vec<NamedBlob>, LogDiskError> {
        let waiting = self.staged.iter().map(|it| it.1);
        let waiting: BTreeSet<Seq> = waiting.filter(|seq| *seq > self.applied).collect();
        let mut lost = Vec::new();
        for seq in waiting {
            if lost.len() >= LOST_BLOBS_MAX {
                break;
            }
            let entry = self.journal.reader().read(seq, 1).next();
            let entry = entry.ok_or(LogDiskError::NoEntry(seq))??;
            let mut blobs = blobs_of(&entry)?;
            blobs.retain(|blob| !self.blobs.is_here(blob));
            lost.extend(named(&entry, blobs)?);
        }
        Ok(lost)
    }

    /// Blobs of the entries behind `after` that were applied wait here again, for those to be
    /// applied again; they are expected by this number. Those that are not in their places as they
    /// should be: the first ones.
    pub(super) fn stage_again(
        &self,
        after: Seq,
        number: u64,
    ) -> Result<Vec<NamedBlob>, LogDiskError> {
        let mut lacking = Vec::new();
        let mut staged = Vec::new();
        for entry in self.journal.reader().read(after.next(), u64::MAX) {
            let entry = entry?;
            if entry.header().seq > self.applied || lacking.len() >= LOST_BLOBS_MAX {
                break;
            }
            for blob in named(&entry, blobs_of(&entry)?)? {
                // First, so that it stays.
                self.blobs.expect(blob.name.digest, number);
                match self.blobs.stage_again(&blob)? {
                    true => staged.push(blob.name.digest),
                    false => lacking.push(blob),
                }
            }
        }
        if !staged.is_empty() {
            let any = self.blobs.directory.join("any");
            self.disk
                .sync_directory_of(&any)
                .map_err(LogDiskError::io("sync the directory of", &any))?;
            let unsynced = &mut self.blobs.known().unsynced;
            unsynced.retain(|digest| !staged.contains(digest));
        }
        Ok(lacking)
    }

    /// The first blob of a transaction whose file is not here as it should be.
    pub(super) fn lost_blob_of(
        &self,
        transfer: &Transfer,
    ) -> Result<Option<BlobName>, LogDiskError> {
        for blob in &transfer.blobs {
            self.blobs.check(&blob.digest)?;
            if !self.blobs.is_here(blob) {
                return Ok(Some(*blob));
            }
        }
        Ok(None)
    }

    /// At the start: blobs that wait to be applied are looked at, some at once, the others when
    /// they are used.
    pub(super) fn check_blobs(&self) -> Result<(), LogDiskError> {
        let waiting = self.staged.iter().filter(|(_, seq)| *seq > self.applied);
        self.blobs.known().unchecked = waiting.map(|it| it.0).collect();
        self.blobs.check_some(BLOBS_CHECKED_LEN)?;
        Ok(())
    }

    /// They have what they were here for.
    pub(super) fn note_appended(&mut self, staged: Vec<(Digest, Seq)>) {
        let last = self.journal.positions().last.seq;
        let mut known = self.blobs.known();
        for (digest, seq) in &staged {
            if !known.wanted.remove(&(*digest, Claim::Entry(*seq))) {
                known.release(digest);
            }
        }
        // For entries that others are in the place of.
        known.wanted.retain(|(_, claim)| match claim {
            Claim::Entry(seq) => *seq > last,
            Claim::Expected(_) => true,
        });
        drop(known);
        self.staged.extend(staged);
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
                if !self.blobs.is_here(&blob) {
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
    /// need the first one. For lack of room this may be tried again.
    pub(super) fn keep_blobs_behind(&self, after: Seq) -> Result<(), LogDiskError> {
        self.try_to_keep(after).map_err(LogDiskError::full)
    }

    fn try_to_keep(&self, after: Seq) -> Result<(), LogDiskError> {
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
            match self.disk.link(&self.blobs.path(digest), &to) {
                Err(error) if is_lack_of_room(&error) => {
                    return Err(LogDiskError::io("link", &to)(error));
                }
                Err(error) => {
                    log::warn!("{}: a blob that is cut is not kept: {error}", to.display());
                }
                Ok(()) => {}
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
        // While nobody begins to want one of them.
        let known = self.blobs.known();
        // That they are gone need not last: the next start removes them.
        for digest in gone.iter().filter(|digest| !known.is_wanted(digest)) {
            discard(&*self.disk, &self.blobs.path(digest))?;
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
