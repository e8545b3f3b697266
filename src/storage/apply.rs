//! The data file of a replicated storage: committed transactions come from the journal, one by one.
//!
//! *Applied* is written and seen by loads, and not synced: the journal has it on stable storage. A
//! *checkpoint* brings all that was applied to stable storage, now and then; then the journal may
//! let go of it. What is behind the last checkpoint has status `'c'`, which is what ZODB and we cut
//! from the end of a file when opening it (`recover`), so that a crash leaves whole transactions
//! only, those of the last checkpoint at least:
//!
//! ```text
//!   apply ... apply ─► checkpoint: sync ─► statuses as they shall be ─► sync
//!   status 'c'                     all bytes are there          all is finished
//! ```
//!
//! A status that has come to the disk says that all bytes are there, since these were synced before
//! it was written. What is cut is applied again.
//!
//! The second sync also brings a *stop* to where the next transaction begins: a header with status
//! `'c'` and nothing behind it. That transaction takes its place, with the same status; so whatever
//! sectors of what follows a crash keeps, whoever reads the file from its beginning is stopped
//! there. ZODB would take some of what a crash leaves for damage otherwise.
//!
//! Nothing is *witnessed* here (`witness`): whoever proposed the transaction has chosen its tid,
//! and it may look like one that is. So there is no witness beside the file.
//!
//! All calls may wait for the disk.

mod pack;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::blob::DirectoryMaker;
use super::blob::layout::BlobDirectory;
use super::disk::{Disk, File, FileId, OpenMode, is_lack_of_room, with_suffix};
use super::error::{ReadError, StorageError};
use super::follow::Followed;
use super::format::{
    DATA_HEADER_LEN, DataHeader, POINTER_LEN, POS_END, STATUS_POS, Status, TXN_HEADER_LEN,
    TxnHeader,
};
use super::index::Index;
use super::layout;
use super::oids::{self, OidAllocator};
use super::read::{Found, Reader, Wait};
use super::recent::Changed;
use super::recover::{self, Access, Progress};
use super::transfer::{BlobName, Record, Transfer};
use super::witness;
use crate::ids::{Oid, Tid};
use crate::limits::{APPLIED_COUNT_MAX, BLOB_WRITE_LEN, INDEX_SAVE_LEN, SHARED_DATA_LEN_MIN};

pub use pack::GoneOn;

/// Space is reserved in steps of this many bytes.
const ALLOCATE_STEP: u64 = 4 << 20;

/// A data file that only the log writes to.
#[derive(Debug)]
pub struct Applier {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<dyn File>,
    /// What stands under `path` as long as nobody replaces it.
    file_id: FileId,
    /// Kept open for the lock that it holds.
    _lock: Option<Arc<dyn File>>,
    _data_lock: DataLock,
    blobs: Option<BlobDirectory>,
    /// A pack removes directories of blobs that are empty.
    maker: DirectoryMaker,
    index: Index,
    /// Behind the last transaction.
    tail: u64,
    /// Its tid.
    last_tid: Tid,
    /// As of the last checkpoint. `settled_tid <= last_tid`
    settled_tid: Tid,
    /// Transactions behind the last checkpoint: positions, and statuses as they shall be.
    unsealed: Vec<(u64, Status)>,
    /// Bytes of them.
    unsealed_len: u64,
    /// Names that have to be made durable before their transactions are finished: one in each
    /// directory.
    unsynced_names: BTreeMap<PathBuf, PathBuf>,
    allocated_end: u64,
    /// Behind what the saved index covers.
    index_saved: u64,
    /// What the file of the ceiling says.
    ceiling: Option<Oid>,
    /// Why no more is written.
    failed: Option<String>,
}

/// Gives the lock of the data file back: who follows it may have it open for longer.
#[derive(Debug)]
struct DataLock(Arc<dyn File>);

impl Drop for DataLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            log::warn!("the lock of a data file cannot be given back: {error}");
        }
    }
}

/// A transaction that was applied: what loads find from now on.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its tid.
    pub tid: Tid,
    /// The objects that it changed, and where their records are.
    pub positions: Vec<(Oid, u64)>,
    /// Behind its last byte.
    pub end: u64,
    /// The same, for who follows: entered without a look at each object, be they a million, and the
    /// index there goes on sharing its pages with this one.
    pub(super) published: Arc<layout::LaidOut>,
}

#[cfg(test)]
impl Applied {
    /// One that nobody enters.
    pub(crate) fn for_tests(tid: Tid, positions: Vec<(Oid, u64)>, end: u64) -> Self {
        let published = layout::LaidOut {
            change: Index::new().prepare(&[]),
            changed: Changed::new(Vec::new()),
            oids: Arc::default(),
            max_oid: None,
        };
        Self {
            tid,
            positions,
            end,
            published: Arc::new(published),
        }
    }
}

impl PartialEq for Applied {
    fn eq(&self, other: &Self) -> bool {
        // The rest follows from these.
        (self.tid, self.end) == (other.tid, other.end) && self.positions == other.positions
    }
}

impl Eq for Applied {}

impl Applier {
    /// Opens or creates a data file: with [`Access::Applied`], or with [`Access::ReadWrite`] if
    /// another server may have written to it, so that what that has not finished is kept. Blocks
    /// until that is done. What a crash has left behind the last checkpoint may have been cut:
    /// [`Self::last_tid`] says what is there.
    ///
    /// # Errors
    ///
    /// The file is locked, damaged, of another format, or cannot be read.
    pub fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        blob_dir: Option<&Path>,
        access: Access,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StorageError> {
        let opened = recover::open(&*disk, path, access, progress)?;
        if opened.last_tid >= Tid::MAX {
            return Err(StorageError::TidTooHigh {
                path: path.to_owned(),
                tid: opened.last_tid,
            });
        }
        // Before anything is written that may look witnessed.
        let witness_path = with_suffix(path, witness::SUFFIX);
        disk.remove(&witness_path)
            .map_err(StorageError::io("remove", &witness_path))?;
        let blobs = blob_dir.map(|path| BlobDirectory::open(&*disk, path, true));
        let file_id = { opened.file.id() }.map_err(StorageError::io("identify", path))?;
        let applier = Self {
            blobs: blobs.transpose()?,
            maker: DirectoryMaker::default(),
            ceiling: oids::load(&*disk, path)?,
            disk,
            path: path.to_owned(),
            _data_lock: DataLock(opened.file.clone()),
            file: opened.file,
            file_id,
            _lock: opened.lock,
            index: opened.index,
            tail: opened.tail,
            last_tid: opened.last_tid,
            settled_tid: opened.last_tid,
            unsealed: Vec::new(),
            unsealed_len: 0,
            unsynced_names: BTreeMap::new(),
            allocated_end: opened.tail,
            index_saved: opened.index_pos,
            failed: None,
        };
        applier.put_stop()?;
        applier.sync()?;
        Ok(applier)
    }

    /// The data file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tid of the last transaction, be it behind the last checkpoint; zero if there is none.
    pub const fn last_tid(&self) -> Tid {
        self.last_tid
    }

    /// The tid of the last transaction that is on stable storage here.
    pub const fn settled_tid(&self) -> Tid {
        self.settled_tid
    }

    /// Bytes behind the last checkpoint.
    pub const fn unsealed_len(&self) -> u64 {
        self.unsealed_len
    }

    /// The data file, and the end of what was applied to it. What is in front of that never
    /// changes, but for statuses.
    pub fn data_file(&self) -> (Arc<dyn File>, u64) {
        (self.file.clone(), self.tail)
    }

    /// Where blobs are kept, if they are.
    pub const fn blobs(&self) -> Option<&BlobDirectory> {
        self.blobs.as_ref()
    }

    /// Where the current record of each object is.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The data file as it is now, for who serves it: what is applied from now on has to be told
    /// there ([`FileStorage::on_applied`](super::FileStorage::on_applied)).
    pub fn follow(&self) -> Followed {
        Followed {
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: self.file.clone(),
            file_id: self.file_id,
            index: self.index.snapshot(),
            tail: self.tail,
            last_tid: self.last_tid,
            blobs: self.blobs.clone(),
        }
    }

    /// The revision of an object that was current just before `before`; `None` if there is no such
    /// object.
    ///
    /// # Errors
    ///
    /// The file is damaged or cannot be read there.
    pub fn load(&self, oid: Oid, before: Tid) -> Result<Option<Found>, ReadError> {
        let Some(pos) = self.index.get(oid) else {
            return Ok(None);
        };
        self.reader().load_before(pos, oid, before).map(Some)
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            file: &*self.file,
            wait: Wait::Yes,
            tail: self.tail,
        }
    }

    /// Appends a committed transaction. Loads find it when this returns; a crash may take it back.
    /// The files of its blobs are in the directory `staged`, named by their digests, complete and
    /// on stable storage; they stay there.
    ///
    /// # Errors
    ///
    /// [`StorageError::NoSpace`]: nothing was written, and it may be tried again.
    /// [`StorageError::TidOrder`]: the same, but it would be no better. After any other error the
    /// file takes no more writes.
    pub fn apply(
        &mut self,
        tid: Tid,
        transfer: &Transfer,
        staged: &Path,
    ) -> Result<Applied, StorageError> {
        self.check()?;
        if tid <= self.last_tid || tid >= Tid::MAX {
            return Err(StorageError::TidOrder {
                path: self.path.clone(),
                tid,
                last: self.last_tid,
            });
        }
        if self.unsealed.len() >= APPLIED_COUNT_MAX {
            self.checkpoint()?;
        }
        let laid_out = self.lay_out(tid, transfer);
        // With the stop of a checkpoint behind it.
        self.reserve(laid_out.end + TXN_HEADER_LEN as u64)?;
        self.place_blobs(tid, transfer, staged)?;
        let written = self.write(&laid_out);
        self.latch(written)?;
        let applied = self.publish(laid_out);
        let status = Status::from_byte(transfer.status);
        self.unsealed.push((self.tail, status));
        self.unsealed_len += applied.end - self.tail;
        self.tail = applied.end;
        self.last_tid = tid;
        Ok(applied)
    }

    /// Enters the new positions into the index.
    fn publish(&mut self, laid_out: LaidOut) -> Applied {
        let LaidOut {
            tid,
            positions,
            end,
            ..
        } = laid_out;
        let oids: Vec<Oid> = positions.iter().map(|(oid, _)| *oid).collect();
        let mut sorted = positions.clone();
        sorted.sort_unstable();
        let change = self.index.prepare(&sorted);
        self.index.enter(&change);
        Applied {
            tid,
            positions,
            end,
            published: Arc::new(layout::LaidOut {
                change,
                changed: Changed::new(oids.clone()),
                oids: Arc::new(oids),
                max_oid: sorted.last().map(|(oid, _)| *oid),
            }),
        }
    }

    fn place_blobs(
        &mut self,
        tid: Tid,
        transfer: &Transfer,
        staged: &Path,
    ) -> Result<(), StorageError> {
        for blob in &transfer.blobs {
            match self.place_blob(blob, tid, staged) {
                // Nobody knows what is there yet, and it is done anew.
                Err(StorageError::Io { path, source, .. }) if is_lack_of_room(&source) => {
                    return Err(StorageError::NoSpace { path, source });
                }
                placed => self.latch(placed)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, laid_out: &LaidOut) -> Result<(), StorageError> {
        let slices = laid_out.parts.iter().map(|part| IoSlice::new(part));
        self.file
            .write_at(&mut slices.collect::<Vec<_>>(), self.tail)
            .map_err(StorageError::io("write", &self.path))
    }

    /// The bytes of a transaction at the end of the file.
    fn lay_out(&self, tid: Tid, transfer: &Transfer) -> LaidOut {
        let contents = transfer.records.iter();
        let contents: Vec<Content<'_>> = contents.map(|record| self.content(record)).collect();
        let texts = [&transfer.user, &transfer.description, &transfer.extension];
        // Decoding has checked them.
        let text_len = |text: &Bytes| u16::try_from(text.len()).unwrap_or(u16::MAX);
        let mut header = TxnHeader {
            tid,
            len: 0,
            status: Status::Voted,
            user_len: text_len(texts[0]),
            descr_len: text_len(texts[1]),
            ext_len: text_len(texts[2]),
        };
        let records_len: u64 = contents.iter().map(Content::len_in_file).sum();
        header.len = header.header_len() + records_len;
        let mut head = BytesMut::with_capacity(TXN_HEADER_LEN + header.texts_len());
        head.put_slice(&header.encode());
        texts.iter().for_each(|text| head.put_slice(text));
        let mut parts = Vec::new();
        let mut pos = self.tail + header.header_len();
        let mut positions = Vec::with_capacity(contents.len());
        for (record, content) in transfer.records.iter().zip(contents) {
            let data_header = DataHeader {
                oid: record.oid,
                tid,
                prev: self.index.get(record.oid).unwrap_or(0),
                tloc: self.tail,
                data_len: content.data_len(),
            };
            head.put_slice(&data_header.encode());
            match content {
                Content::Data(data) if data.len() < SHARED_DATA_LEN_MIN => head.put_slice(data),
                Content::Data(data) => {
                    parts.push(head.split().freeze());
                    parts.push(data.clone());
                }
                Content::Back(back) => head.put_u64(back),
            }
            positions.push((record.oid, pos));
            pos += content.len_in_file();
        }
        head.put_u64(header.len);
        parts.push(head.freeze());
        let end = pos + POINTER_LEN as u64;
        LaidOut {
            parts,
            tid,
            positions,
            end,
        }
    }

    /// What stands in a record: data, unless they are there already.
    fn content<'a>(&self, record: &'a Record) -> Content<'a> {
        let data = record.data.as_ref();
        let own = data.map_or(Content::Back(0), Content::Data);
        let Some((tid, pos)) = record.same_as.zip(self.index.get(record.oid)) else {
            return own;
        };
        let found = self.find_same(record.oid, pos, tid, data);
        // What cannot be read there is written here.
        let found = found.unwrap_or_else(|error| {
            let path = self.path.display();
            log::warn!("{path}: {} of {tid}: {error}", record.oid);
            None
        });
        found.map_or(own, Content::Back)
    }

    /// The object's record of this transaction, if it has the same data.
    fn find_same(
        &self,
        oid: Oid,
        pos: u64,
        tid: Tid,
        data: Option<&Bytes>,
    ) -> Result<Option<u64>, ReadError> {
        let reader = self.reader();
        let Some(found) = reader.find(pos, oid, tid)? else {
            return Ok(None);
        };
        let is_same = reader.data_at(found, oid)?.as_ref() == data;
        Ok(is_same.then_some(found))
    }

    /// Sees to it that there is space up to `end`: a full disk is no reason to give up the file.
    fn reserve(&mut self, end: u64) -> Result<(), StorageError> {
        if end >= POS_END {
            let path = self.path.clone();
            return Err(StorageError::TooLong { path, len: end });
        }
        if end <= self.allocated_end {
            return Ok(());
        }
        let pos = self.allocated_end.max(self.tail);
        let len = (end - pos).next_multiple_of(ALLOCATE_STEP);
        match self.file.allocate(pos, len) {
            Ok(()) => self.allocated_end = pos + len,
            // Where space cannot be reserved writing finds out.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.allocated_end = u64::MAX;
            }
            Err(source) => {
                let path = self.path.clone();
                return Err(StorageError::NoSpace { path, source });
            }
        }
        Ok(())
    }

    /// Gives the file of a blob its place; its name is durable with the next checkpoint.
    fn place_blob(&mut self, blob: &BlobName, tid: Tid, staged: &Path) -> Result<(), StorageError> {
        let Some(directory) = &self.blobs else {
            let path = self.path.clone();
            return Err(StorageError::NoBlobs {
                path,
                oid: blob.oid,
            });
        };
        let disk = &*self.disk;
        let from = staged.join(blob.digest.to_string());
        let to = directory.file(blob.oid, tid);
        let io = |action| StorageError::io(action, &to);
        let object_directory = directory.directory_of(blob.oid);
        let _right = self.maker.lock();
        disk.create_directories(&object_directory)
            .map_err(StorageError::io("create", &object_directory))?;
        // It may be there, and readers may be at it: what a crash or a copy of the database takes
        // back is applied again. So it is replaced in one step; without power there is one or the
        // other.
        if disk.link(&from, &to).is_err() {
            let new = directory.temporary().join("standby-place.tmp");
            let place = || {
                disk.discard(&new)?;
                if disk.link(&from, &new).is_err() {
                    copy(disk, &from, &new)?;
                }
                disk.rename(&new, &to)?;
                // It is still there if both names were of one file.
                disk.discard(&new)
            };
            place().map_err(io("write"))?;
        }
        disk.set_read_only(&to, directory.base())
            .map_err(io("protect"))?;
        // Directories that were there may not be durable either.
        let paths = directory.directories_of(blob.oid);
        for path in paths.into_iter().chain([to]) {
            if let Some(parent) = path.parent() {
                self.unsynced_names.insert(parent.to_owned(), path);
            }
        }
        Ok(())
    }

    /// Brings all that was applied to stable storage.
    ///
    /// # Errors
    ///
    /// The file takes no more writes. What had been settled before is.
    pub fn checkpoint(&mut self) -> Result<(), StorageError> {
        self.check()?;
        let done = self.settle();
        self.latch(done)?;
        self.unsynced_names.clear();
        self.unsealed.clear();
        self.unsealed_len = 0;
        self.settled_tid = self.last_tid;
        // A large index is written less often, so that it does not cost more than the data.
        let index_len = self.index.len() as u64 * 8;
        if self.tail - self.index_saved >= INDEX_SAVE_LEN.max(index_len) {
            self.save_index();
        }
        Ok(())
    }

    fn settle(&self) -> Result<(), StorageError> {
        if self.unsealed.is_empty() {
            return Ok(());
        }
        let io = |action| StorageError::io(action, &self.path);
        if self.disk.identify(&self.path).map_err(io("identify"))? != self.file_id {
            let path = self.path.clone();
            return Err(StorageError::Replaced { path });
        }
        // Before the statuses: no finished transaction is without its blobs.
        for path in self.unsynced_names.values() {
            self.disk
                .sync_directory_of(path)
                .map_err(StorageError::io("sync the directory of", path))?;
        }
        self.sync()?;
        for (pos, status) in &self.unsealed {
            self.file
                .write_at(&mut [IoSlice::new(&[status.to_byte()])], pos + STATUS_POS)
                .map_err(io("write"))?;
        }
        self.put_stop()?;
        self.sync()
    }

    /// Writes a header that nobody reads over, where the next transaction begins.
    fn put_stop(&self) -> Result<(), StorageError> {
        let header = TxnHeader {
            // ZODB takes the tid of what it cuts for the last one.
            tid: self.last_tid,
            len: TXN_HEADER_LEN as u64,
            status: Status::Voted,
            user_len: 0,
            descr_len: 0,
            ext_len: 0,
        };
        self.file
            .write_at(&mut [IoSlice::new(&header.encode())], self.tail)
            .map_err(StorageError::io("write", &self.path))
    }

    fn sync(&self) -> Result<(), StorageError> {
        let synced = self.file.sync();
        synced.map_err(StorageError::io("sync", &self.path))
    }

    /// Oids below this may have been handed out by who has served the file alone so far; `None` if
    /// nobody has.
    pub fn first_free_oid(&self) -> Option<Oid> {
        let max_oid = self.index.max_oid();
        let is_known = max_oid.is_some() || self.ceiling.is_some();
        let next = OidAllocator::new(max_oid, self.ceiling).next();
        is_known.then(|| next.min(Oid::END))
    }

    /// Oids below this may have been handed out: who serves the file alone later must not hand them
    /// out again. On stable storage when this returns.
    ///
    /// # Errors
    ///
    /// The disk has failed.
    pub fn note_ceiling(&mut self, ceiling: Oid) -> Result<(), StorageError> {
        if self.ceiling < Some(ceiling) {
            oids::save(&*self.disk, &self.path, ceiling)?;
            self.ceiling = Some(ceiling);
        }
        Ok(())
    }

    /// Ends in good order: a checkpoint, and the index is saved.
    ///
    /// # Errors
    ///
    /// As of [`Self::checkpoint`].
    pub fn close(mut self) -> Result<(), StorageError> {
        self.checkpoint()?;
        // Without the stop, and what was reserved ahead.
        let cut = self.file.set_len(self.tail);
        cut.map_err(StorageError::io("cut", &self.path))?;
        self.sync()?;
        if self.tail > self.index_saved {
            self.save_index();
        }
        Ok(())
    }

    /// Only when all is settled: an index must not know more than stable storage.
    fn save_index(&mut self) {
        let path = with_suffix(&self.path, ".index");
        match self.index.save(self.tail, &*self.disk, &path) {
            Ok(()) => self.index_saved = self.tail,
            // The data are safe without it; opening will take longer.
            Err(error) => log::warn!("{}: not saved ({error})", path.display()),
        }
    }

    fn check(&self) -> Result<(), StorageError> {
        self.failed.as_ref().map_or(Ok(()), |first| {
            let (path, first) = (self.path.clone(), first.clone());
            Err(StorageError::Failed { path, first })
        })
    }

    fn latch(&mut self, result: Result<(), StorageError>) -> Result<(), StorageError> {
        result.inspect_err(|error| self.failed = Some(error.to_string()))
    }
}

/// A transaction as it will stand in the file.
struct LaidOut {
    parts: Vec<Bytes>,
    tid: Tid,
    positions: Vec<(Oid, u64)>,
    /// Behind its last byte.
    end: u64,
}

/// What follows the header of a record.
#[derive(Clone, Copy)]
enum Content<'a> {
    Data(&'a Bytes),
    /// Zero if the object does not exist as of it.
    Back(u64),
}

impl Content<'_> {
    const fn data_len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Back(_) => 0,
        }
    }

    const fn len_in_file(&self) -> u64 {
        let len = match self {
            Self::Data(data) => data.len(),
            Self::Back(_) => POINTER_LEN,
        };
        (DATA_HEADER_LEN + len) as u64
    }
}

/// Where files have one name only.
fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<()> {
    let source = disk.open(from, OpenMode::ReadRegular)?;
    let file = disk.open(to, OpenMode::CreateNew)?;
    let mut piece = vec![0; BLOB_WRITE_LEN];
    let mut pos = 0;
    loop {
        let len = source.read_at(&mut piece, pos)?;
        if len == 0 {
            return file.sync();
        }
        file.write_at(&mut [IoSlice::new(&piece[..len])], pos)?;
        pos += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::storage::format::FIRST_TXN_POS;
    use crate::storage::history::{Past, Query};
    use crate::storage::iterate::Transactions;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::testing::{Rig, TestDir, options};
    use crate::storage::witness::Mark;

    const DATA: &str = "Data.fs";

    fn open(disk: &Arc<MemoryDisk>) -> Applier {
        let disk: Arc<dyn Disk> = disk.clone();
        Applier::open(disk, Path::new(DATA), None, Access::Applied, &mut |_| ()).unwrap()
    }

    /// An oid, data, and the tid that has the same.
    type Row<'a> = (u64, Option<&'a [u8]>, Option<u64>);

    fn transfer(records: &[Row<'_>]) -> Transfer {
        let record = |(oid, data, same_as): &Row<'_>| Record {
            oid: Oid(*oid),
            data: data.map(Bytes::copy_from_slice),
            same_as: same_as.map(Tid),
        };
        Transfer {
            storage: "1".to_owned(),
            status: b' ',
            user: Bytes::from_static(b"user"),
            description: Bytes::from_static(b"text"),
            extension: Bytes::new(),
            records: records.iter().map(record).collect(),
            blobs: Vec::new(),
        }
    }

    fn apply(applier: &mut Applier, tid: u64, transfer: &Transfer) -> Applied {
        let staged = Path::new("journal/blobs");
        applier.apply(Tid(tid), transfer, staged).unwrap()
    }

    fn data(applier: &Applier, oid: u64) -> Option<(Bytes, u64)> {
        match applier.load(Oid(oid), Tid::MAX).unwrap()? {
            Found::Revision { data, serial, .. } => Some((data, serial.0)),
            _ => None,
        }
    }

    fn statuses(applier: &Applier) -> String {
        let (file, tail) = applier.data_file();
        let txns = Transactions::from_pos(file, FIRST_TXN_POS, tail);
        let statuses = txns.map(|txn| char::from(txn.unwrap().header.status.to_byte()));
        statuses.collect()
    }

    #[test]
    fn what_is_applied_is_seen_at_once_and_finished_by_the_checkpoint() {
        let disk = Arc::new(MemoryDisk::new());
        let mut applier = open(&disk);
        let long = vec![7; 5000];
        let first = transfer(&[(0, Some(b"root"), None), (1, Some(&long), None)]);
        let applied = apply(&mut applier, 10, &first);
        assert_eq!(applied.tid, Tid(10));
        assert_eq!(applied.positions.len(), 2);
        assert_eq!(data(&applier, 1), Some((Bytes::from(long), 10)));
        assert_eq!(applier.settled_tid(), Tid::ZERO);
        let packed = Transfer {
            status: b'p',
            ..transfer(&[(1, Some(b"b"), None)])
        };
        apply(&mut applier, 11, &packed);
        assert_eq!(statuses(&applier), "cc");
        applier.checkpoint().unwrap();
        assert_eq!(statuses(&applier), " p");
        assert_eq!(applier.settled_tid(), Tid(11));
        // Deleted, and a transaction with nothing in it.
        apply(&mut applier, 12, &transfer(&[(1, None, None)]));
        apply(&mut applier, 13, &transfer(&[]));
        assert_eq!(data(&applier, 1), None);
        assert_eq!(applier.last_tid(), Tid(13));
        applier.close().unwrap();
        assert_eq!(statuses(&open(&disk)), " p  ");
    }

    #[test]
    fn what_is_behind_the_checkpoint_is_cut_by_whoever_opens_the_file_and_can_be_applied_again() {
        let disk = Arc::new(MemoryDisk::new());
        let mut applier = open(&disk);
        apply(&mut applier, 10, &transfer(&[(1, Some(b"a"), None)]));
        applier.checkpoint().unwrap();
        let second = transfer(&[(1, Some(b"b"), None)]);
        let third = transfer(&[(2, Some(b"c"), None)]);
        apply(&mut applier, 11, &second);
        apply(&mut applier, 12, &third);
        drop(applier);
        let mut applier = open(&disk);
        assert_eq!(applier.last_tid(), Tid(10));
        assert_eq!(data(&applier, 1), Some((Bytes::from_static(b"a"), 10)));
        // Nothing of it is kept: the journal has it.
        assert!(disk.identify(Path::new("Data.fs.tr0")).is_err());
        apply(&mut applier, 11, &second);
        apply(&mut applier, 12, &third);
        drop(applier);
        let rig = Rig::at(disk, Path::new(DATA), options());
        assert_eq!(rig.storage.last_tid(), Tid(10));
    }

    #[test]
    fn a_tid_that_looks_witnessed_is_none_to_whoever_opens_the_file() {
        let disk = Arc::new(MemoryDisk::new());
        // Somebody who served the file alone has left a witness, as after a crash.
        let rig = Rig::at(disk.clone(), Path::new(DATA), options());
        drop(rig);
        let witness = with_suffix(Path::new(DATA), witness::SUFFIX);
        assert!(disk.identify(&witness).is_ok());
        let mut applier = open(&disk);
        assert!(disk.identify(&witness).is_err());
        let mark = |is_first| Mark { batch: 0, is_first };
        let first = witness::witnessed_from(Tid(1 << 40), mark(true));
        let second = witness::witnessed_from(first.next(), mark(false));
        // Sectors of zeros, which a witnessed transaction has not.
        let zeros = vec![0; 4096];
        apply(&mut applier, first.0, &transfer(&[(1, Some(&zeros), None)]));
        apply(
            &mut applier,
            second.0,
            &transfer(&[(2, Some(&zeros), None)]),
        );
        applier.checkpoint().unwrap();
        drop(applier);
        assert_eq!(open(&disk).last_tid(), second);
    }

    #[test]
    fn data_that_are_there_are_pointed_to_and_others_written() {
        let disk = Arc::new(MemoryDisk::new());
        let mut applier = open(&disk);
        let long = vec![7; 5000];
        apply(&mut applier, 10, &transfer(&[(1, Some(&long), None)]));
        apply(&mut applier, 11, &transfer(&[(1, Some(b"b"), None)]));
        let undo = |tid| transfer(&[(1, Some(&long), Some(tid))]);
        let len = |applied: Applied, before: u64| applied.end - before;
        let end = |applier: &Applier| applier.data_file().1;
        for (tid, same_as, is_short) in [
            (12, 10, true),
            // Of other data, of nobody, and of the future.
            (13, 11, false),
            (14, 9, false),
            (15, 99, false),
            // A record that points there itself.
            (16, 12, true),
        ] {
            let before = end(&applier);
            let applied = apply(&mut applier, tid, &undo(same_as));
            assert_eq!(len(applied, before) < 1000, is_short, "{tid}");
            let (data, serial) = data(&applier, 1).unwrap();
            assert_eq!((&data[..], serial), (&long[..], tid));
        }
        applier.close().unwrap();
        let applier = open(&disk);
        assert_eq!(data(&applier, 1), Some((Bytes::from(long), 16)));
    }

    #[test]
    fn a_tid_that_is_not_newer_is_refused_and_changes_nothing() {
        let disk = Arc::new(MemoryDisk::new());
        let mut applier = open(&disk);
        let transfer = transfer(&[(1, Some(b"a"), None)]);
        apply(&mut applier, 10, &transfer);
        for tid in [Tid(10), Tid(9), Tid::ZERO, Tid::MAX] {
            let error = applier.apply(tid, &transfer, Path::new("")).unwrap_err();
            assert!(matches!(error, StorageError::TidOrder { .. }), "{error}");
        }
        apply(&mut applier, 11, &transfer);
        assert_eq!(statuses(&applier), "cc");
    }

    #[test]
    fn what_is_applied_counts_as_finished_for_who_asks_about_the_past() {
        let disk = Arc::new(MemoryDisk::new());
        let mut applier = open(&disk);
        apply(&mut applier, 10, &transfer(&[(1, Some(b"a"), None)]));
        let (file, tail) = applier.data_file();
        let query = Query::Log {
            first: 0,
            end: 10,
            filter: Box::new(|_| true),
        };
        let Past::Log(found) = query.answer(&file, tail).unwrap() else {
            panic!("another answer");
        };
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].status, b' ');
    }

    #[test]
    fn no_more_is_behind_a_checkpoint_than_opening_takes_care_of() {
        let disk = Arc::new(MemoryDisk::new());
        let mut applier = open(&disk);
        let transfer = transfer(&[(1, Some(b"a"), None)]);
        let count = APPLIED_COUNT_MAX as u64 + 1;
        for tid in 1..=count {
            apply(&mut applier, tid, &transfer);
        }
        assert_eq!(applier.settled_tid(), Tid(count - 1));
        assert!(applier.unsealed_len() < 200);
    }

    #[test]
    fn a_blob_gets_its_place_and_its_staged_file_stays() {
        let dir = TestDir::new();
        let disk: Arc<dyn Disk> = Arc::new(crate::storage::disk::OsDisk::default());
        let staged = dir.path("staged");
        disk.create_directories(&staged).unwrap();
        let digest = Digest([5; 32]);
        let staged_file = staged.join(digest.to_string());
        disk.replace(&staged_file, &[b"blob"]).unwrap();
        let blob_dir = dir.path("blobs");
        let path = dir.path(DATA);
        let access = Access::Applied;
        let open = || Applier::open(disk.clone(), &path, Some(&blob_dir), access, &mut |_| ());
        let mut transfer = transfer(&[(1, Some(b"a"), None)]);
        let (oid, len) = (Oid(1), 4);
        transfer.blobs = vec![BlobName { oid, len, digest }];
        for _ in 0..2 {
            // The second time after a crash, which takes the transaction back.
            let mut applier = open().unwrap();
            applier.apply(Tid(10), &transfer, &staged).unwrap();
            let place = applier.blobs().unwrap().file(oid, Tid(10));
            assert_eq!(disk.read(&place).unwrap(), b"blob");
        }
        assert_eq!(disk.read(&staged_file).unwrap(), b"blob");
        let mut applier = open().unwrap();
        applier.apply(Tid(10), &transfer, &staged).unwrap();
        applier.close().unwrap();
        let none = Applier::open(disk, &path, None, access, &mut |_| ());
        let error = none.unwrap().apply(Tid(11), &transfer, &staged);
        let error = error.unwrap_err();
        assert!(matches!(error, StorageError::NoBlobs { .. }), "{error}");
    }
}
