//! Opening a data file: lock it, check where it ends, cut what was never finished, and know the
//! position of every object.
//!
//! Transactions are written in batches (see `batch`). Most show by themselves whether all of them
//! is there (see `witness`); the others have status `'c'` until all of their batch is on stable
//! storage. So after a crash the file may end in transactions that nobody was told of, in every
//! state of disrepair; and only there. What is not whole is cut off, after it has been copied to
//! `Data.fs.tr0` (or `.tr1`, ...) as ZODB does. One that has `'c'` in front of a finished one is
//! complete, and gets its status now. Everything else that is inconsistent is damage: the file is
//! left as it is, and the error says where. ZODB takes a transaction that seems to reach over the
//! end of the file for unfinished even if a wrong length is all there is to it, and cuts off what
//! follows. We look for finished transactions first.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::{info, warn};

use super::disk::{Disk, File, OpenMode, with_suffix};
use super::error::{Damage, Fault, ReadError, StorageError};
use super::format::{
    DATA_HEADER_LEN, DataHeader, FIRST_TXN_POS, MAGIC, MAGIC_PYTHON2, POINTER_LEN, POS_END,
    STATUS_POS, Status, TXN_HEADER_LEN, TxnHeader,
};
use super::index::{Index, UnusableIndex};
use super::iterate::{Backwards, Transactions};
use super::oids;
use super::pack;
use super::window::Window;
use super::witness::{self, Mark, Sectors, Witness};
use crate::ids::{Oid, Tid};
use crate::limits::{APPLIED_COUNT_MAX, WITNESSED_LEN_MAX};

/// What the file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading what is there now. Nothing is locked, cut or written; another server may be
    /// writing the file.
    ReadOnly,
    /// Reading and writing; created if it does not exist.
    ReadWrite,
    /// The same, of a file that a log is applied to (`apply`): what is not finished at its end is
    /// cut and not kept, since the journal has it.
    Applied,
    /// Reading and writing a new file in the place of what stands there.
    Create,
}

/// A data file that has been checked as far as opening needs.
#[derive(Debug)]
pub struct Opened {
    /// The data file; locked, unless it is read-only.
    pub file: Arc<dyn File>,
    /// `Data.fs.lock`, which keeps ZODB away for as long as it is held; `None` if read-only.
    pub lock: Option<Arc<dyn File>>,
    /// Current record of each object, from all transactions before `tail`.
    pub index: Index,
    /// What of the file the index file covers; nothing (4) if it is of no use.
    pub index_pos: u64,
    /// End of the last finished transaction, and of the file unless it is read-only.
    pub tail: u64,
    /// Its tid; zero if there is none.
    pub last_tid: Tid,
}

/// How far a long scan has got, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Read so far.
    pub done: u64,
    /// To be read in all.
    pub total: u64,
}

/// Bytes between two reports: some tens of milliseconds. Whoever logs them knows the time.
const PROGRESS_LEN: u64 = 32 << 20;

/// Statuses written again when opening: as many as go to the disk with one sync, at most, which is
/// one for each client, or what was applied since a checkpoint. What the index file covers was on
/// stable storage when that was saved.
const SEAL_AGAIN_COUNT: usize = APPLIED_COUNT_MAX;

/// Bytes of a tid, with which a header begins.
const TID_LEN: usize = 8;

/// Bytes copied at once from the end of a file that is cut.
const COPY_LEN: usize = 1 << 20;

/// Opens `path`. `progress` is called now and then while the file is scanned, which without an
/// index takes as long as reading it.
pub fn open(
    disk: &dyn Disk,
    path: &Path,
    access: Access,
    progress: &mut dyn FnMut(Progress),
) -> Result<Opened, StorageError> {
    let writable = access != Access::ReadOnly;
    // Before the data file is touched, or created: the owner of the lock may be doing so.
    let lock = writable.then(|| lock_name(disk, path)).transpose()?;
    let witness = match lock {
        None if is_foreign(&disk.read(&with_suffix(path, ".lock")).unwrap_or_default()) => None,
        // There may be one that nobody but its owner may read.
        None => Witness::load(disk, path).unwrap_or_default(),
        Some(_) => Witness::load(disk, path)?,
    };
    if access == Access::Create {
        create(disk, path)?;
    }
    let file = open_data(disk, path, writable)?;
    let size = read_magic(&*file, path, writable)?;
    if writable {
        let is_lost = access != Access::Create && size == FIRST_TXN_POS;
        remove_leftovers(disk, path, is_lost)?;
    }

    let index_path = with_suffix(path, ".index");
    let known = match load_index(disk, &index_path, &file, size) {
        Ok(known) => known,
        Err(reason) => {
            if size > FIRST_TXN_POS {
                info!("{}: {reason}: scanning the data file", index_path.display());
            }
            Known::default()
        }
    };
    let index_pos = known.pos;
    let mut scan = Scan {
        file: &file,
        path,
        size,
        known,
        unordered: Oddity::default(),
        unknown_status: Oddity::default(),
        wrong_prev: Oddity::default(),
        witness: witness.filter(|witness| witness.is_of(&*file)),
        last_batch: None,
        finished_pos: 0,
        unsealed: Vec::new(),
        sealed: VecDeque::new(),
    };
    scan.run(progress)?;
    scan.log_oddities();
    let unsealed = std::mem::take(&mut scan.unsealed);
    let sealed = std::mem::take(&mut scan.sealed);
    let last_batch = scan.last_batch;
    let Known {
        index,
        pos: tail,
        last_tid,
    } = scan.known;

    if tail < size {
        let (path, len) = (path.display(), size - tail);
        match access {
            Access::Applied => {
                info!("{path}: {len} bytes behind the last checkpoint, which the journal has");
            }
            _ => warn!("{path}: unfinished transaction at {tail} ({len} bytes)"),
        }
    }
    if writable {
        if tail < size {
            if access != Access::Applied {
                keep(disk, path, &*file, tail..size)?;
            }
            file.set_len(tail).map_err(StorageError::io("cut", path))?;
        }
        for pos in &unsealed {
            warn!(
                "{}: transaction at {pos} gets its status now",
                path.display()
            );
        }
        for pos in unsealed.into_iter().chain(sealed) {
            let finished = [Status::Finished.to_byte()];
            file.write_at(&mut [IoSlice::new(&finished)], pos + STATUS_POS)
                .map_err(StorageError::io("write", path))?;
        }
        // After a failed sync these, too, may be there only until the power goes.
        if let Some(start) = last_batch {
            copy(&*file, start..tail, &*file, start).map_err(StorageError::io("write", path))?;
        }
        // Also if nothing was cut: what a killed process has written, and we are going to show,
        // may be in memory only; and so may the name of the file, if it was killed creating it.
        file.sync()
            .and_then(|()| disk.sync_directory_of(path))
            .map_err(StorageError::io("sync", path))?;
    }
    Ok(Opened {
        file,
        lock,
        index,
        index_pos,
        tail,
        last_tid,
    })
}

/// Takes `Data.fs.lock` as `zc.lockfile` does: an exclusive `flock`, and the pid to be read by
/// people, and a word that says who we are: if another server has had the file since we had, what
/// is behind the position in the witness is no longer ours, and the witness goes. The file stays
/// behind when the lock ends.
fn lock_name(disk: &dyn Disk, data_path: &Path) -> Result<Arc<dyn File>, StorageError> {
    let path = with_suffix(data_path, ".lock");
    let mut opened = disk.open(&path, OpenMode::Write);
    if is_error(&opened, io::ErrorKind::NotFound) {
        opened = disk.open(&path, OpenMode::CreateNew);
    }
    if is_error(&opened, io::ErrorKind::AlreadyExists) {
        // Another process was quicker to create it; which of us gets the lock is still open.
        opened = disk.open(&path, OpenMode::Write);
    }
    let file = opened.map_err(StorageError::io("open", &path))?;
    if !file.try_lock().map_err(StorageError::io("lock", &path))? {
        return Err(StorageError::Locked { path });
    }
    let mut last = [0; LOCK_LEN_MAX];
    let len = file.read_at(&mut last, 0);
    let len = len.map_err(StorageError::io("read", &path))?;
    if is_foreign(&last[..len]) {
        // Before the lock file says that it is ours.
        let witness_path = with_suffix(data_path, witness::SUFFIX);
        disk.remove(&witness_path)
            .map_err(StorageError::io("remove", &witness_path))?;
    }
    let pid = format!(" {}\n{OURS}\n", std::process::id());
    // Synced, so that it says so after a crash when there is a witness.
    file.write_at(&mut [IoSlice::new(pid.as_bytes())], 0)
        .and_then(|()| file.set_len(pid.len() as u64))
        .and_then(|()| file.sync())
        .map_err(StorageError::io("write", &path))?;
    Ok(file)
}

/// What is written behind the pid into the lock file.
const OURS: &str = "standby";

/// More than anybody writes there.
const LOCK_LEN_MAX: usize = 64;

/// Whether another server was the last to have the lock: `zc.lockfile` writes the pid and nothing
/// else. In doubt not: what a crash has left of ours, or that somebody has removed the file, must
/// not cost us what the witness says.
fn is_foreign(lock: &[u8]) -> bool {
    let pid = lock
        .strip_prefix(b" ")
        .and_then(|it| it.strip_suffix(b"\n"));
    pid.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit))
}

/// A pack that was killed leaves a file that is of no use to anybody, and may be large. But no pack
/// was made of a file without transactions: if that is what we found, or had to create, the right
/// one `is_lost`, and somebody may need what is left. ZODB's pack is without a data file for a
/// moment.
fn remove_leftovers(disk: &dyn Disk, path: &Path, is_lost: bool) -> Result<(), StorageError> {
    for suffix in [pack::NEW_SUFFIX, pack::LINK_SUFFIX] {
        let path = with_suffix(path, suffix);
        if is_lost {
            if disk.identify(&path).is_ok() {
                let path = path.display();
                warn!("{path}: left by a pack, but the data file is empty: not removed");
            }
            continue;
        }
        disk.remove(&path)
            .map_err(StorageError::io("remove", &path))?;
    }
    Ok(())
}

fn is_error<T>(result: &io::Result<T>, kind: io::ErrorKind) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == kind)
}

/// Puts a data file without transactions in place of whatever there is.
fn create(disk: &dyn Disk, path: &Path) -> Result<(), StorageError> {
    let index_path = with_suffix(path, ".index");
    let oids_path = with_suffix(path, oids::SUFFIX);
    // The index goes first, and the oid ceiling last: a crash in between leaves a file that is
    // scanned, or oids that are skipped, but never one that believes the files of another.
    disk.remove(&index_path)
        .map_err(StorageError::io("remove", &index_path))?;
    disk.replace(path, &[&MAGIC])
        .map_err(StorageError::io("create", path))?;
    let witness_path = with_suffix(path, witness::SUFFIX);
    disk.remove(&oids_path)
        .map_err(StorageError::io("remove", &oids_path))?;
    disk.remove(&witness_path)
        .map_err(StorageError::io("remove", &witness_path))
}

fn open_data(disk: &dyn Disk, path: &Path, writable: bool) -> Result<Arc<dyn File>, StorageError> {
    let mode = if writable {
        OpenMode::Write
    } else {
        OpenMode::Read
    };
    let mut opened = disk.open(path, mode);
    if writable && is_error(&opened, io::ErrorKind::NotFound) {
        create(disk, path)?;
        opened = disk.open(path, mode);
    }
    let file = opened.map_err(StorageError::io("open", path))?;
    // By inode: the lock file protects a name, and may have been removed.
    if writable && !file.try_lock().map_err(StorageError::io("lock", path))? {
        let path = path.to_owned();
        return Err(StorageError::Locked { path });
    }
    Ok(file)
}

/// Checks that this is a data file; its length. An empty one becomes a data file, as in ZODB.
fn read_magic(file: &dyn File, path: &Path, writable: bool) -> Result<u64, StorageError> {
    let len = file.len().map_err(StorageError::io("open", path))?;
    if len == 0 {
        if writable {
            file.write_at(&mut [IoSlice::new(&MAGIC)], 0)
                .map_err(StorageError::io("write", path))?;
        }
        return Ok(FIRST_TXN_POS);
    }
    if len > POS_END {
        let path = path.to_owned();
        return Err(StorageError::TooLong { path, len });
    }
    let mut magic = [0; MAGIC.len()];
    let read = file
        .read_at(&mut magic, 0)
        .map_err(StorageError::io("read", path))?;
    if ![MAGIC, MAGIC_PYTHON2].contains(&magic) {
        return Err(StorageError::NotADataFile {
            path: path.to_owned(),
            found: magic[..read].to_vec(),
        });
    }
    Ok(len)
}

/// What is known of the file up to `pos`.
#[derive(Debug)]
struct Known {
    index: Index,
    pos: u64,
    last_tid: Tid,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            index: Index::new(),
            pos: FIRST_TXN_POS,
            last_tid: Tid::ZERO,
        }
    }
}

/// Why the index file is not used.
#[derive(Debug)]
enum NoIndex {
    Unusable(UnusableIndex),
    /// It is not an index of this file, or of something that is no longer in it.
    DoesNotFit,
}

impl fmt::Display for NoIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(reason) => reason.fmt(f),
            Self::DoesNotFit => f.write_str("does not fit the data file"),
        }
    }
}

/// The index from its file, if it is sane: the position it was saved at is the end of a
/// transaction, and the first few records of the last transaction before it are where the index
/// says. The same test as in ZODB, and as cheap.
fn load_index(
    disk: &dyn Disk,
    index_path: &Path,
    file: &Arc<dyn File>,
    size: u64,
) -> Result<Known, NoIndex> {
    let (index, pos) = Index::load(disk, index_path).map_err(NoIndex::Unusable)?;
    match last_indexed_tid(&index, pos, file, size) {
        Ok(Some(last_tid)) => Ok(Known {
            index,
            pos,
            last_tid,
        }),
        // An error of the disk will come up again when the file is scanned.
        Ok(None) | Err(_) => Err(NoIndex::DoesNotFit),
    }
}

/// Tid of the transaction that ends at `pos`, if the index agrees with it.
fn last_indexed_tid(
    index: &Index,
    pos: u64,
    file: &Arc<dyn File>,
    size: u64,
) -> Result<Option<Tid>, ReadError> {
    const RECORDS_TO_CHECK: usize = 5;

    if pos > size {
        return Ok(None);
    }
    let mut last_tid = None;
    for txn in Backwards::new(&**file, pos) {
        let txn = txn?;
        let last_tid = *last_tid.get_or_insert(txn.header.tid);
        match txn.header.status {
            Status::Undone => continue,
            Status::Finished | Status::Packed => {}
            Status::Voted | Status::Other(_) => return Ok(None),
        }
        if txn.records_pos() == txn.records_end() {
            continue;
        }
        let mut txns = Transactions::from_pos(Arc::clone(file), txn.pos, pos);
        for record in txns.records(&txn).take(RECORDS_TO_CHECK) {
            let record = record?;
            // A transaction may have several records of an object. The last one counts.
            let known = index.get(record.header.oid);
            if !known.is_some_and(|known| (record.pos..txn.records_end()).contains(&known)) {
                return Ok(None);
            }
        }
        return Ok(Some(last_tid));
    }
    Ok(None)
}

/// Something that ZODB warns of and lives with: where it was first, and how often.
#[derive(Debug, Default)]
struct Oddity {
    first_pos: u64,
    count: u64,
}

impl Oddity {
    const fn note(&mut self, pos: u64) {
        if self.count == 0 {
            self.first_pos = pos;
        }
        self.count += 1;
    }

    fn log(&self, path: &Path, what: &str) {
        if self.count > 0 {
            let (path, Self { first_pos, count }) = (path.display(), self);
            warn!("{path}: {what} at {first_pos} ({count} of them in all)");
        }
    }
}

/// Completes what is known with the rest of the file.
#[derive(Debug)]
struct Scan<'a> {
    file: &'a Arc<dyn File>,
    path: &'a Path,
    size: u64,
    known: Known,
    unordered: Oddity,
    unknown_status: Oddity,
    wrong_prev: Oddity,
    /// From where on witnessed transactions are such.
    witness: Option<Witness>,
    /// Where the batch of the witnessed transaction begins that was found last.
    last_batch: Option<u64>,
    /// A finished transaction that was found ahead; or zero. Looked for only once, or a batch with
    /// one status would be read again for each of its transactions.
    finished_pos: u64,
    /// Transactions that are complete and have status `'c'`.
    unsealed: Vec<u64>,
    /// The last ones that have status `' '`. When a sync fails, the system may show what it was
    /// to bring to the disk, and take it for written ever after: these would be there until the
    /// power goes. Written once more, they are not.
    sealed: VecDeque<u64>,
}

impl Scan<'_> {
    /// Up to the first unfinished transaction.
    fn run(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), StorageError> {
        let start = self.known.pos;
        let total = self.size - start;
        let mut reported = 0;
        let mut txns = Transactions::from_pos(Arc::clone(self.file), start, self.size);
        // Records of one transaction; they count when all of it has been found right.
        let mut positions = Vec::new();
        while self.known.pos < self.size {
            let finished = self
                .next_txn(&mut txns, &mut positions)
                .map_err(StorageError::reading(self.path))?;
            if !finished {
                break;
            }
            let done = self.known.pos - start;
            if done - reported >= PROGRESS_LEN {
                reported = done;
                progress(Progress { done, total });
            }
        }
        Ok(())
    }

    /// `false` if what follows was never finished.
    fn next_txn(
        &mut self,
        txns: &mut Transactions,
        positions: &mut Vec<(Oid, u64)>,
    ) -> Result<bool, ReadError> {
        let pos = txns.pos();
        let (mark, is_suspect) = self.mark_at(pos, txns)?;
        if is_suspect && self.has_empty_sector(pos, txns)? && self.is_torn(pos)? {
            return Ok(false);
        }
        match self.next_as_it_seems(txns, positions) {
            Ok(true) => {
                let last = self.last_batch;
                self.last_batch = mark.map(|mark| match last {
                    Some(start) if !mark.is_first => start,
                    _ => pos,
                });
                Ok(true)
            }
            Err(ReadError::Damaged(_)) if self.is_torn(pos)? => Ok(false),
            result => result,
        }
    }

    /// The mark of the transaction at `pos`, if it is a witnessed one; and whether it may be one
    /// that is not whole.
    fn mark_at(
        &self,
        pos: u64,
        txns: &mut Transactions,
    ) -> Result<(Option<Mark>, bool), ReadError> {
        if !self.is_witnessed(pos) {
            return Ok((None, false));
        }
        let header = txns.peek()?.filter(|header| self.fits(pos, header));
        let Some(header) = header.filter(|header| header.status == Status::Finished) else {
            return Ok((None, false));
        };
        let mark = witness::mark_of(header.tid);
        let may_be_torn = mark.is_some() || self.is_torn_tid(pos, header.tid);
        // Only there: all of a long file would be read byte by byte otherwise.
        Ok((mark, may_be_torn && self.is_near_end(pos)))
    }

    /// Whether what begins at `pos` is behind the position that the witness names.
    fn is_witnessed(&self, pos: u64) -> bool {
        self.witness.is_some_and(|witness| pos >= witness.pos)
    }

    /// Whether what begins at `pos` may be of the last batch.
    const fn is_near_end(&self, pos: u64) -> bool {
        self.size - pos <= WITNESSED_LEN_MAX
    }

    /// Whether the first bytes of a tid may be missing, which are in another sector then.
    fn is_torn_tid(&self, pos: u64, tid: Tid) -> bool {
        let missing = Sectors::room_at(pos).min(TID_LEN);
        let is_missing = tid.to_bytes()[..missing].iter().all(|byte| *byte == 0);
        tid <= self.known.last_tid || missing < TID_LEN && is_missing
    }

    /// Whether a sector of the transaction at `pos`, which is there as a whole, shows that it was
    /// not written.
    fn has_empty_sector(&self, pos: u64, txns: &mut Transactions) -> Result<bool, ReadError> {
        let end = txns.peek()?.map_or(pos, |header| pos + header.len);
        let len = usize::try_from(end - pos).unwrap_or(usize::MAX) + POINTER_LEN;
        let mut sectors = Sectors::from(pos);
        sectors.look_at(txns.bytes(pos, len)?);
        Ok(sectors.found())
    }

    fn is_empty_within(&self, range: Range<u64>) -> Result<bool, ReadError> {
        let mut sectors = Sectors::from(range.start);
        let mut window = Window::new(Arc::clone(self.file));
        let mut pos = range.start;
        while pos < range.end {
            let len = usize::try_from(range.end - pos).unwrap_or(COPY_LEN);
            let bytes = window.bytes(pos, len.min(COPY_LEN))?;
            if bytes.is_empty() {
                break;
            }
            sectors.look_at(bytes);
            pos += bytes.len() as u64;
        }
        Ok(sectors.found())
    }

    /// Whether what begins at `pos` is the rest of the last batch, which was on its way to the disk
    /// when the power went: a sector of it was not written, and all else that is finished there is
    /// of one batch of witnessed transactions, which does not begin behind `pos`. If it did, what
    /// is at `pos` had been acknowledged, and this is damage.
    fn is_torn(&self, pos: u64) -> Result<bool, ReadError> {
        let may_be = self.is_near_end(pos) && self.is_witnessed(pos);
        if !may_be || !self.is_empty_within(pos..self.size)? {
            return Ok(false);
        }
        let mut batch = None;
        let mut from = pos;
        while let Some((found, header)) = self.find_finished(from)? {
            let mark = witness::mark_of(header.tid);
            let is_of_it = mark.is_some_and(|mark| {
                batch.is_none_or(|batch| batch == mark.batch) && !(mark.is_first && found > pos)
            });
            if !is_of_it {
                return Ok(false);
            }
            batch = mark.map(|mark| mark.batch);
            from = found + header.len;
        }
        // What is at `pos` itself may be too damaged to be found.
        let mut header = [0; TXN_HEADER_LEN];
        self.file.read_at(&mut header, pos)?;
        let header = TxnHeader::decode(&header);
        if header.status != Status::Finished || self.is_torn_tid(pos, header.tid) {
            return Ok(true);
        }
        let mark = witness::mark_of(header.tid);
        Ok(mark.is_some_and(|mark| batch.is_none_or(|batch| batch == mark.batch)))
    }

    /// `false` if what follows was never finished, or is not as it should be.
    fn next_as_it_seems(
        &mut self,
        txns: &mut Transactions,
        positions: &mut Vec<(Oid, u64)>,
    ) -> Result<bool, ReadError> {
        if self.is_unfinished(txns)? {
            return Ok(false);
        }
        let pos = txns.pos();
        match self.take_txn(txns, positions) {
            // A complete file ends in a length, which is not zero: what is wrong here was torn.
            Err(ReadError::Damaged(_))
                if self.last_len()? == 0 && self.finished_after(pos)?.is_none() =>
            {
                Ok(false)
            }
            taken => taken,
        }
    }

    /// `false` at the end of the file.
    fn take_txn(
        &mut self,
        txns: &mut Transactions,
        positions: &mut Vec<(Oid, u64)>,
    ) -> Result<bool, ReadError> {
        let Some(txn) = txns.next().transpose()? else {
            return Ok(false);
        };
        if txn.header.tid <= self.known.last_tid {
            self.unordered.note(txn.pos);
        }
        if matches!(txn.header.status, Status::Other(_)) {
            self.unknown_status.note(txn.pos);
        }
        if txn.header.status != Status::Undone {
            positions.clear();
            for record in txns.records(&txn) {
                let record = record?;
                let oid = record.header.oid;
                if record.header.prev != self.known.index.get(oid).unwrap_or(0) {
                    self.wrong_prev.note(record.pos);
                }
                positions.push((oid, record.pos));
            }
            for (oid, pos) in positions.drain(..) {
                self.known.index.insert(oid, pos);
            }
        }
        if txn.header.status == Status::Finished {
            self.sealed.push_back(txn.pos);
            if self.sealed.len() > SEAL_AGAIN_COUNT {
                self.sealed.pop_front();
            }
        }
        self.known.last_tid = txn.header.tid;
        self.known.pos = txn.end();
        Ok(true)
    }

    /// Whether the file ends here, but for transactions that were never finished. An error if
    /// it does not, and this one was not finished all the same.
    fn is_unfinished(&mut self, txns: &mut Transactions) -> Result<bool, ReadError> {
        let pos = txns.pos();
        let Some(header) = txns.peek()? else {
            return Ok(true);
        };
        match header.status {
            // The power went while its batch got its statuses: all bytes had been there before.
            Status::Voted if self.fits(pos, &header) && self.finished_after(pos)?.is_some() => {
                self.unsealed.push(pos);
                return Ok(false);
            }
            Status::Voted => {}
            // The header, or its second half, never reached the disk.
            Status::Other(0) => {}
            _ if self.fits(pos, &header) => return Ok(false),
            // All of it is here: its length in the header is wrong, as will be found.
            _ if self.last_len()? == self.size - POINTER_LEN as u64 - pos => return Ok(false),
            _ => {}
        }
        match self.finished_after(pos)? {
            None => Ok(true),
            Some(next) => {
                let fault = Fault::Unfinished { next };
                Err(Damage { pos, fault }.into())
            }
        }
    }

    fn fits(&self, pos: u64, header: &TxnHeader) -> bool {
        let room = (self.size - pos).saturating_sub(POINTER_LEN as u64);
        header.len <= room
    }

    /// The length in the last bytes of the file.
    fn last_len(&self) -> Result<u64, ReadError> {
        let mut bytes = [0; POINTER_LEN];
        self.file
            .read_at(&mut bytes, self.size - POINTER_LEN as u64)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Position of a finished transaction somewhere behind `pos`, whatever is in between. Data of
    /// objects may look like one, if somebody stores data files in objects; but their positions
    /// are not right for this place.
    fn finished_after(&mut self, pos: u64) -> Result<Option<u64>, ReadError> {
        if self.finished_pos <= pos {
            let Some((found, _)) = self.find_finished(pos + 1)? else {
                return Ok(None);
            };
            self.finished_pos = found;
        }
        Ok(Some(self.finished_pos))
    }

    /// The first finished transaction from `start` on, whatever is before it.
    fn find_finished(&self, mut start: u64) -> Result<Option<(u64, TxnHeader)>, ReadError> {
        const STEP: usize = 256 * 1024;
        const STATUS_AT: usize = STATUS_POS as usize;

        let mut window = Window::new(Arc::clone(self.file));
        loop {
            let bytes = window.bytes(start, STEP + TXN_HEADER_LEN - 1)?;
            for (pos, header) in (start..).zip(bytes.windows(TXN_HEADER_LEN)) {
                // Before all of it is decoded: most end here.
                let status = Status::from_byte(header[STATUS_AT]);
                if !matches!(status, Status::Finished | Status::Packed) {
                    continue;
                }
                let Ok(header) = header.try_into() else {
                    continue;
                };
                let header = TxnHeader::decode(header);
                if self.is_finished(pos, &header)? {
                    return Ok(Some((pos, header)));
                }
            }
            if bytes.len() < STEP {
                return Ok(None);
            }
            start += STEP as u64;
        }
    }

    /// Whether a finished transaction with this header, and with a record, stands at `pos`. Cheap
    /// in nearly all cases, as it is asked at every byte.
    fn is_finished(&self, pos: u64, header: &TxnHeader) -> Result<bool, ReadError> {
        let likely = matches!(header.status, Status::Finished | Status::Packed)
            && header.tid > self.known.last_tid
            && header.len > header.header_len()
            && self.fits(pos, header);
        if !likely {
            return Ok(false);
        }
        let mut again = [0; POINTER_LEN];
        self.file.read_at(&mut again, pos + header.len)?;
        let mut record = [0; DATA_HEADER_LEN];
        self.file.read_at(&mut record, pos + header.header_len())?;
        let right_place = DataHeader::decode(&record).is_ok_and(|record| record.tloc == pos);
        Ok(right_place && u64::from_be_bytes(again) == header.len)
    }

    fn log_oddities(&self) {
        self.unordered
            .log(self.path, "transaction not newer than the one before it");
        self.unknown_status
            .log(self.path, "transaction with unknown status");
        self.wrong_prev.log(
            self.path,
            "record that does not lead to the object's previous one",
        );
    }
}

/// Keeps what is about to be cut in a file of its own.
fn keep(
    disk: &dyn Disk,
    path: &Path,
    file: &dyn File,
    range: Range<u64>,
) -> Result<(), StorageError> {
    let tail = range.start;
    let (kept_path, kept) = open_kept(disk, path)?;
    let failed = StorageError::io("write", &kept_path);
    copy(file, range, &*kept, 0)
        .and_then(|()| kept.sync())
        .and_then(|()| disk.sync_directory_of(&kept_path))
        .map_err(failed)?;
    warn!(
        "{}: cut at {tail} (see {})",
        path.display(),
        kept_path.display()
    );
    Ok(())
}

/// The first of `Data.fs.tr0`, `Data.fs.tr1`, ... that does not exist yet.
fn open_kept(disk: &dyn Disk, path: &Path) -> Result<(PathBuf, Arc<dyn File>), StorageError> {
    let mut number = 0u64;
    loop {
        let kept_path = with_suffix(path, &format!(".tr{number}"));
        match disk.open(&kept_path, OpenMode::CreateNew) {
            Ok(kept) => return Ok((kept_path, kept)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(StorageError::io("create", &kept_path)(error)),
        }
    }
}

fn copy(from: &dyn File, range: Range<u64>, to: &dyn File, at: u64) -> io::Result<()> {
    let mut buf = vec![0; COPY_LEN];
    let mut pos = range.start;
    while pos < range.end {
        let len = COPY_LEN.min(usize::try_from(range.end - pos).unwrap_or(COPY_LEN));
        let read = from.read_at(&mut buf[..len], pos)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_at(&mut [IoSlice::new(&buf[..read])], at + pos - range.start)?;
        pos += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::OsDisk;
    use crate::storage::testing::Content::{Back, Data};
    use crate::storage::testing::{DataFile, TestDir};

    fn open_as(access: Access, path: &Path) -> Result<Opened, StorageError> {
        open(&OsDisk::default(), path, access, &mut |_| ())
    }

    /// Two finished transactions: objects 1 and 2 created, 1 changed and 2 deleted.
    fn two_txns() -> DataFile {
        let mut file = DataFile::new();
        let records = [(1, Data(b"one")), (2, Data(b"two"))];
        file.txn(10, Status::Packed, "alice", &records);
        file.txn(
            20,
            Status::Finished,
            "bob",
            &[(1, Data(b"uno")), (2, Back(0))],
        );
        file
    }

    /// A third transaction behind them, of object 3.
    fn with_third(status: Status) -> (DataFile, u64) {
        let mut file = two_txns();
        let tail = file.end();
        file.txn(30, status, "carol", &[(3, Data(b"three"))]);
        (file, tail)
    }

    fn write(path: &Path, bytes: &[u8]) {
        OsDisk::default().replace(path, &[bytes]).unwrap();
    }

    fn positions(index: &Index) -> Vec<(u64, u64)> {
        index.iter().map(|(oid, pos)| (oid.0, pos)).collect()
    }

    #[test]
    fn a_missing_file_is_created_and_an_old_one_replaced_if_asked() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        assert!(open_as(Access::ReadOnly, &path).is_err());
        assert_eq!(dir.names(), [""; 0]);
        for access in [Access::ReadWrite, Access::Create] {
            write(&dir.path("Data.fs.index"), b"of another file");
            write(&dir.path("Data.fs.oids"), b"of another file");
            let opened = open_as(access, &path).unwrap();
            assert_eq!((opened.tail, opened.last_tid), (4, Tid::ZERO));
            assert_eq!(std::fs::read(&path).unwrap(), MAGIC);
            assert_eq!(dir.names(), ["Data.fs", "Data.fs.lock"]);
            drop(opened);
            write(&path, &two_txns().bytes);
        }
    }

    #[test]
    fn what_a_pack_left_is_removed_unless_the_data_file_is_lost() {
        let dir = TestDir::new();
        let left = dir.path("Data.fs.pack");
        for (contents, access, stays) in [
            (Some(&two_txns().bytes[..]), Access::ReadWrite, false),
            (Some(&two_txns().bytes), Access::ReadOnly, true),
            (Some(&two_txns().bytes), Access::Create, false),
            (Some(&b"FS21"[..]), Access::ReadWrite, true),
            (None, Access::ReadWrite, true),
        ] {
            let path = dir.path("Data.fs");
            OsDisk::default().remove(&path).unwrap();
            if let Some(contents) = contents {
                OsDisk::default().replace(&path, &[contents]).unwrap();
            }
            OsDisk::default().replace(&left, &[b"packed"]).unwrap();
            open(&OsDisk::default(), &path, access, &mut |_| ()).unwrap();
            let is_there = OsDisk::default().identify(&left).is_ok();
            assert_eq!(is_there, stays, "{access:?}");
        }
    }

    #[test]
    fn an_empty_file_becomes_a_data_file() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        write(&path, b"");
        assert_eq!(open_as(Access::ReadOnly, &path).unwrap().tail, 4);
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!(open_as(Access::ReadWrite, &path).unwrap().tail, 4);
        assert_eq!(std::fs::read(&path).unwrap(), MAGIC);
    }

    #[test]
    fn another_file_is_refused() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        for contents in [&b"FS"[..], b"FS20", b"something else"] {
            write(&path, contents);
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let error = open_as(access, &path).unwrap_err();
                assert!(matches!(error, StorageError::NotADataFile { .. }));
            }
            assert_eq!(std::fs::read(&path).unwrap(), contents);
        }
    }

    #[test]
    fn a_second_writer_is_refused_by_name_and_by_inode() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let first = open_as(Access::ReadWrite, &path).unwrap();
        let pid = format!(" {}\nstandby\n", std::process::id());
        let lock_path = dir.path("Data.fs.lock");
        assert_eq!(std::fs::read_to_string(&lock_path).unwrap(), pid);
        let locked = |path: &Path| match open_as(Access::ReadWrite, path) {
            Err(StorageError::Locked { path }) => path,
            other => panic!("{other:?}"),
        };
        assert_eq!(locked(&path), lock_path);
        let other_path = dir.path("Other.fs");
        std::fs::hard_link(&path, &other_path).unwrap();
        assert_eq!(locked(&other_path), other_path);
        open_as(Access::ReadOnly, &path).unwrap();
        drop(first);
        open_as(Access::ReadWrite, &path).unwrap();
    }

    #[test]
    fn the_index_is_the_same_from_its_file_and_from_the_data() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (file, second_end) = with_third(Status::Finished);
        file.save(&path);
        let scanned = open_as(Access::ReadWrite, &path).unwrap();
        let expected: Vec<_> = file.current.iter().map(|(o, p)| (*o, *p)).collect();
        assert_eq!(positions(&scanned.index), expected);
        assert_eq!((scanned.tail, scanned.last_tid), (file.end(), Tid(30)));
        assert_eq!(scanned.index_pos, FIRST_TXN_POS);
        drop(scanned);
        // Saved after two transactions, and after all of them.
        let mut index = Index::new();
        for (oid, pos) in &two_txns().current {
            index.insert(Oid(*oid), *pos);
        }
        for pos in [second_end, file.end()] {
            if pos == file.end() {
                index.insert(Oid(3), file.current[&3]);
            }
            let disk = OsDisk::default();
            index.save(pos, &disk, &dir.path("Data.fs.index")).unwrap();
            let opened = open_as(Access::ReadWrite, &path).unwrap();
            assert_eq!(positions(&opened.index), expected);
            assert_eq!((opened.tail, opened.last_tid), (file.end(), Tid(30)));
            assert_eq!(opened.index_pos, pos);
        }
    }

    #[test]
    fn an_index_that_does_not_fit_is_not_used() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (file, second_end) = with_third(Status::Finished);
        file.save(&path);
        let mut good = Index::new();
        for (oid, pos) in &file.current {
            good.insert(Oid(*oid), *pos);
        }
        let mut moved = good.snapshot();
        moved.insert(Oid(3), file.current[&3] - 1);
        for (index, pos) in [
            (&moved, file.end()),
            (&good, file.end() - 1),
            (&good, second_end),
            (&good, file.end() + 100),
            (&Index::new(), file.end()),
        ] {
            let disk = OsDisk::default();
            index.save(pos, &disk, &dir.path("Data.fs.index")).unwrap();
            let opened = open_as(Access::ReadWrite, &path).unwrap();
            assert_eq!(opened.index_pos, FIRST_TXN_POS, "{pos}");
            assert!(opened.index.iter().eq(good.iter()));
        }
    }

    #[test]
    fn a_file_that_ends_within_a_transaction_ends_before_it() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (file, tail) = with_third(Status::Finished);
        for len in tail..file.end() {
            write(&path, &file.bytes[..usize::try_from(len).unwrap()]);
            let opened = open_as(Access::ReadOnly, &path).unwrap();
            assert_eq!((opened.tail, opened.last_tid), (tail, Tid(20)), "{len}");
            assert_eq!(positions(&opened.index).len(), 2);
        }
        assert_eq!(dir.names(), ["Data.fs"]);
    }

    #[test]
    fn an_unfinished_transaction_is_cut_and_kept() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (voted, tail) = with_third(Status::Voted);
        let start = usize::try_from(tail).unwrap();
        let mut hole = voted.bytes.clone();
        hole[start..start + 40].fill(0);
        let mut half_header = voted.bytes.clone();
        half_header[start + 12..].fill(0);
        let short = voted.bytes[..start + 22].to_vec();
        let cases = [voted.bytes, hole, half_header, short];
        for (number, bytes) in cases.iter().enumerate() {
            write(&path, bytes);
            let opened = open_as(Access::ReadWrite, &path).unwrap();
            assert_eq!((opened.tail, opened.last_tid), (tail, Tid(20)), "{number}");
            assert_eq!(std::fs::read(&path).unwrap(), two_txns().bytes);
            let kept = std::fs::read(dir.path(&format!("Data.fs.tr{number}"))).unwrap();
            assert_eq!(kept, bytes[start..]);
        }
    }

    #[test]
    fn a_transaction_that_ends_in_zeros_was_never_finished() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (file, tail) = with_third(Status::Finished);
        for from in (tail..file.end() - 8).step_by(3) {
            let mut bytes = file.bytes.clone();
            bytes[usize::try_from(from).unwrap()..].fill(0);
            bytes.extend([0; 100]);
            write(&path, &bytes);
            let opened = open_as(Access::ReadOnly, &path).unwrap();
            assert_eq!((opened.tail, opened.last_tid), (tail, Tid(20)), "{from}");
        }
    }

    #[test]
    fn a_voted_transaction_that_a_finished_one_follows_gets_its_status() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (mut voted, third) = with_third(Status::Voted);
        voted.txn(40, Status::Finished, "", &[(4, Data(b"four"))]);
        write(&path, &voted.bytes);
        for access in [Access::ReadOnly, Access::ReadWrite, Access::ReadOnly] {
            let opened = open_as(access, &path).unwrap();
            assert_eq!((opened.tail, opened.last_tid), (voted.end(), Tid(40)));
        }
        let status_at = usize::try_from(third).unwrap() + 16;
        voted.bytes[status_at] = b' ';
        assert_eq!(std::fs::read(&path).unwrap(), voted.bytes);
    }

    #[test]
    fn nothing_is_cut_that_a_finished_transaction_follows() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        // A torn one, a finished one, and zeros at the end of the file.
        let (mut file, _) = with_third(Status::Finished);
        file.txn(40, Status::Finished, "", &[(4, Data(b"four"))]);
        let tloc_at = usize::try_from(file.current[&3]).unwrap() + 24;
        file.bytes[tloc_at..tloc_at + 8].fill(0);
        file.bytes.extend([0; 100]);
        write(&path, &file.bytes);
        assert!(open_as(Access::ReadOnly, &path).is_err());
    }

    #[test]
    fn one_wrong_bit_never_costs_a_finished_transaction() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (file, third) = with_third(Status::Finished);
        write(&path, &file.bytes);
        let on_disk = OsDisk::default().open(&path, OpenMode::Write).unwrap();
        for (at, byte) in (0..).zip(&file.bytes).skip(MAGIC.len()) {
            for bit in 0..8 {
                let wrong = [byte ^ 1 << bit];
                on_disk.write_at(&mut [IoSlice::new(&wrong)], at).unwrap();
                match open_as(Access::ReadOnly, &path) {
                    Ok(opened) if opened.tail == file.end() => {}
                    // The last one may have become one that was never finished: status 0.
                    Ok(opened) => assert_eq!((opened.tail, at), (third, third + 16)),
                    Err(StorageError::Damaged { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            on_disk.write_at(&mut [IoSlice::new(&[*byte])], at).unwrap();
        }
    }

    #[test]
    fn a_data_file_within_an_object_is_no_transaction() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let mut inner = DataFile::new();
        inner.txn(1000, Status::Finished, "", &[(1, Data(b"inner"))]);
        let mut file = two_txns();
        let tail = file.end();
        file.txn(30, Status::Finished, "", &[(3, Data(&inner.bytes))]);
        write(&path, &file.bytes[..file.bytes.len() - 3]);
        assert_eq!(open_as(Access::ReadOnly, &path).unwrap().tail, tail);
    }

    #[test]
    fn damage_is_an_error_that_says_where_and_changes_nothing() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let (file, third) = with_third(Status::Finished);
        let second_record = file.current[&1];
        let mut bytes = file.bytes.clone();
        let at = usize::try_from(second_record).unwrap() + 24;
        bytes[at..at + 8].copy_from_slice(&77u64.to_be_bytes());
        write(&path, &bytes);
        let tloc = second_record - 23 - 3;
        assert_eq!(
            open_as(Access::ReadWrite, &path).unwrap_err().to_string(),
            format!(
                "{}: damaged at {second_record}: record of the transaction at 77 (expected {tloc})",
                path.display()
            )
        );
        // A length that seems to reach over the end.
        let mut bytes = file.bytes.clone();
        bytes[12] = 1;
        write(&path, &bytes);
        let error = open_as(Access::ReadWrite, &path).unwrap_err();
        let next = tloc;
        assert!(matches!(
            error,
            StorageError::Damaged {
                damage: Damage {
                    pos: 4,
                    fault: Fault::Unfinished { next: found }
                },
                ..
            } if found == next
        ));
        // The same in the last transaction, of which all is there.
        let mut bytes = file.bytes.clone();
        bytes[usize::try_from(third).unwrap() + 12] = 1;
        write(&path, &bytes);
        let error = open_as(Access::ReadWrite, &path).unwrap_err();
        assert!(matches!(
            error,
            StorageError::Damaged {
                damage: Damage {
                    pos,
                    fault: Fault::TxnLength { .. }
                },
                ..
            } if pos == third
        ));
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(dir.names(), ["Data.fs", "Data.fs.lock"]);
    }

    #[test]
    fn what_was_undone_in_place_does_not_count() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let mut file = two_txns();
        let current = file.current.clone();
        file.txn(30, Status::Undone, "", &[(1, Data(b"x")), (5, Data(b"y"))]);
        file.save(&path);
        let opened = open_as(Access::ReadOnly, &path).unwrap();
        assert!(positions(&opened.index).into_iter().eq(current));
        assert_eq!((opened.tail, opened.last_tid), (file.end(), Tid(30)));
    }

    /// Two transactions, and two batches of witnessed ones behind them.
    struct Batches {
        bytes: Vec<u8>,
        /// Where the transactions of the first batch begin, those of the last, and the end.
        first: Vec<u64>,
        last: Vec<u64>,
        end: u64,
    }

    const LAST_UNWITNESSED: Tid = Tid(20);

    fn batches(len: usize) -> Batches {
        let mut file = two_txns();
        let mut tid = Tid::from_unix_time(std::time::Duration::from_secs(1_800_000_000));
        let data: Vec<u8> = (0..len).map(|at| 1 + at as u8 % 250).collect();
        let mut batch = |batch, count| {
            let mut starts = Vec::new();
            for at in 0..count {
                let is_first = at == 0;
                let mark = Mark { batch, is_first };
                tid = witness::witnessed_from(tid.next(), mark);
                starts.push(file.end());
                // More than half of a sector each, in turns.
                let data = &data[..len - at as usize * 7];
                file.txn(tid.0, Status::Finished, "", &[(batch, Data(data))]);
            }
            starts
        };
        let (first, last) = (batch(0, 2), batch(1, 3));
        Batches {
            first,
            last,
            end: file.end(),
            bytes: file.bytes,
        }
    }

    impl Batches {
        /// Writes these bytes, and a witness from `pos` on.
        fn save(&self, path: &Path, bytes: &[u8]) {
            write(path, bytes);
            let inode = OsDisk::default().identify(path).unwrap().inode;
            let (pos, tid) = (self.first[0], LAST_UNWITNESSED);
            let witness = Witness { inode, pos, tid };
            witness.save(&OsDisk::default(), path).unwrap();
        }
    }

    /// The parts of sectors that are in this range.
    fn sectors(range: Range<u64>) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        let mut pos = range.start;
        while pos < range.end {
            let end = (pos + Sectors::room_at(pos) as u64).min(range.end);
            parts.push(usize::try_from(pos).unwrap()..usize::try_from(end).unwrap());
            pos = end;
        }
        parts
    }

    #[test]
    fn of_a_witnessed_batch_all_is_cut_from_the_first_transaction_on_that_is_torn() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let mut straddling = 0;
        for len in (150..700).step_by(11) {
            let all = batches(len);
            let parts = sectors(all.last[0]..all.end);
            straddling += { all.last.iter() }
                .filter(|pos| Sectors::room_at(**pos) < TXN_HEADER_LEN)
                .count();
            for missing in 1..1u32 << parts.len() {
                let mut bytes = all.bytes.clone();
                let lost = parts.iter().enumerate();
                let lost: Vec<_> = lost.filter(|(at, _)| missing >> at & 1 == 1).collect();
                for (_, part) in &lost {
                    bytes[(*part).clone()].fill(0);
                }
                let tail = { all.last.iter() }
                    .rfind(|start| **start <= lost[0].1.start as u64)
                    .unwrap();
                all.save(&path, &bytes);
                let opened = open_as(Access::ReadOnly, &path).unwrap();
                assert_eq!(opened.tail, *tail, "{len} {missing:b} of {parts:?}");
                // If the length was not written either.
                let lost = lost.last().unwrap().1;
                if lost.end as u64 == all.end {
                    all.save(&path, &bytes[..lost.start]);
                    let opened = open_as(Access::ReadOnly, &path).unwrap();
                    assert_eq!(opened.tail, *tail, "{len} {missing:b} of {parts:?}");
                }
            }
        }
        assert!(straddling > 5, "{straddling}");
    }

    #[test]
    fn damage_in_front_of_the_last_batch_is_never_cut() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let mut errors = 0;
        for len in (480..1500).step_by(13) {
            let all = batches(len);
            for mut part in sectors(all.first[0]..all.last[0]) {
                // The last one with what it has of the last batch.
                part.end += Sectors::room_at(part.end as u64) % 512;
                for byte in [0, 0xff] {
                    let mut bytes = all.bytes.clone();
                    bytes[part.clone()].fill(byte);
                    all.save(&path, &bytes);
                    match open_as(Access::ReadWrite, &path) {
                        Ok(opened) => assert_eq!(opened.tail, all.end, "{len} {part:?}"),
                        Err(StorageError::Damaged { .. }) => errors += 1,
                        Err(error) => panic!("{error}"),
                    }
                    assert_eq!(std::fs::read(&path).unwrap(), bytes);
                }
            }
        }
        assert!(errors > 300, "{errors}");
    }

    /// A transaction of another server, which has a tid as ours have by chance, and zeros in an
    /// object.
    #[test]
    fn a_witness_that_is_not_of_the_file_as_it_is_costs_nothing() {
        let dir = TestDir::new();
        let path = dir.path("Data.fs");
        let disk = OsDisk::default();
        let mut file = two_txns();
        let pos = file.end();
        let (batch, is_first) = (0, true);
        let tid = witness::witnessed_from(Tid(1 << 58), Mark { batch, is_first });
        file.txn(tid.0, Status::Finished, "", &[(9, Data(&[0; 2000]))]);
        let tail_with = |witness: &dyn Fn(Witness) -> Witness, lock: &[u8]| {
            write(&path, &file.bytes);
            let inode = disk.identify(&path).unwrap().inode;
            let tid = LAST_UNWITNESSED;
            let right = Witness { inode, pos, tid };
            witness(right).save(&disk, &path).unwrap();
            write(&dir.path("Data.fs.lock"), lock);
            let seen = open_as(Access::ReadOnly, &path).unwrap().tail;
            let opened = open_as(Access::ReadWrite, &path).unwrap().tail;
            assert_eq!(seen, opened);
            // Whoever has the file next, and is killed at once.
            assert_eq!(open_as(Access::ReadWrite, &path).unwrap().tail, opened);
            opened
        };
        let (ours, others) = (b" 77\nstandby\n", b" 77\n");
        for lock in [&ours[..], b"", b" 77", b" 77\nstan", b"\0\0\0\0"] {
            assert_eq!(tail_with(&|right| right, lock), pos);
        }
        assert_eq!(tail_with(&|right| right, others), file.end());
        let inode = |right: Witness| Witness {
            inode: right.inode + 1,
            ..right
        };
        let tid = |right| Witness {
            tid: Tid(21),
            ..right
        };
        let (before, behind, outside) = (
            |right| Witness { pos: 5, ..right },
            |right: Witness| Witness {
                pos: right.pos + 1,
                ..right
            },
            |right| Witness {
                pos: u64::MAX,
                ..right
            },
        );
        let wrong: [&dyn Fn(Witness) -> Witness; 5] = [&inode, &tid, &before, &behind, &outside];
        for (number, wrong) in wrong.iter().enumerate() {
            assert_eq!(tail_with(wrong, ours), file.end(), "{number}");
        }
    }
}
