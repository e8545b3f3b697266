//! Packing: the data file without the revisions, and the objects, that nobody can ask for.
//!
//! The result is that of ZODB's own pack (`manual/pack.md`), and comes about beside the service:
//!
//! ```text
//!   Scan ──► Mark ◄──► Future ──► Copy ──► Rest ─────► (waits for the lock) ──► switch
//!    │        │          │         │        │  ◄─ more was committed ─┘
//!    └────────┴──────────┴─────────┴────────┴──► given up: the new file is removed
//! ```
//!
//! | stage | does | needs |
//! |---|---|---|
//! | `Scan` | finds where the pack time is, and what is current there | 6 bytes an object |
//! | `Mark` | reads what can be reached (with garbage collection) | 2 bits an object |
//! | `Future` | finds records that later ones have back pointers to | 40 bytes each |
//! | `Copy` | writes what is kept to `Data.fs.pack` | 6 bytes an object, for the index |
//! | `Rest` | copies what was committed since, until little is left | |
//!
//! All this is a worker's, who has the [`Packer`] for one slice at a time ([`Lane::Pack`]): between
//! two slices others get at the disk, and the pack may be given up. Then the commit lock is taken
//! for the whole storage, the last bit is copied, and the files are switched (`drive`). Then blobs
//! are removed whose revisions are gone (`blobs`).
//!
//! [`Lane::Pack`]: super::Lane::Pack

mod blobs;
mod copy;
mod drive;
pub mod fed;
mod mark;
mod oid_set;
mod walk;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::DirectoryMaker;
use super::blob::layout::BlobDirectory;
use super::disk::{Disk, File, FileId, OpenMode, with_suffix};
use super::error::{ReadError, StorageError};
use super::format::{FIRST_TXN_POS, MAGIC, Status};
use super::index::Index;
use super::iterate::Transactions;
use super::job::Done;
use super::read::{Reader, Wait};
use super::references::ReferencesError;
use crate::ids::{Oid, Tid};
use blobs::Sweep;
use copy::Copier;
pub(super) use drive::Pack;
pub use drive::{PackRefused, Packed};
use mark::{Marks, References};
use walk::{Piece, Walk};

/// Bytes read or written in one slice: a millisecond or two on a fast disk. For that long others
/// may have to wait, and as much may have to be synced before they are.
const SLICE_LEN: u64 = 1 << 20;

/// The new file in the making.
pub(super) const NEW_SUFFIX: &str = ".pack";
/// The file as it was before, if that is kept.
const OLD_SUFFIX: &str = ".old";
/// A link that is about to become that.
pub(super) const LINK_SUFFIX: &str = ".old.new";

/// How a storage is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// Objects go that cannot be reached from the root.
    pub gc: bool,
    /// The file as it was before stays, with the suffix `.old`.
    pub keep_old: bool,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            gc: true,
            keep_old: true,
        }
    }
}

/// A pack on its way, and all that a worker needs to go on with it.
pub struct Packer {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<dyn File>,
    /// What must still stand under `path` in the end.
    file_id: FileId,
    keep_old: bool,
    /// The pack time.
    until: Tid,
    /// What is later than this transaction has no say in what is kept: others that pack the same
    /// may not have it yet. It stays itself, be it empty, so that the file goes on to end with it.
    through: Option<Tid>,
    order: Order,
    stage: Stage,
    /// Through the whole file, for what is kept,
    walk: Walk,
    /// and what it has read ahead.
    txns: Transactions,
    /// Where the transactions from after the pack time begin; zero while that is not known.
    pack_pos: u64,
    /// Some transaction from before the pack time was never packed.
    unpacked: bool,
    marks: Marks,
    copier: Option<Copier>,
    /// Where blobs are, if there are any.
    blobs: Option<BlobDirectory>,
    directory_maker: DirectoryMaker,
    /// What is to be done with them after the switch.
    sweep: Option<Sweep>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// One slice. All before `tail` is committed.
    Slice { tail: u64 },
    /// The rest, and the switch. Nothing is committed behind `tail`.
    Switch { tail: u64 },
    /// Removing what was made.
    GiveUp,
    /// Removing blobs, after the switch.
    Sweep,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Scan,
    Mark,
    Future,
    Copy,
    Rest,
}

/// How far a pack has come when a worker gives it back.
#[derive(Debug)]
pub enum Step {
    /// There is more to do.
    More,
    /// All up to this position of the old file has been copied.
    Level {
        /// The tail, as the order said it.
        pos: u64,
    },
    /// The file stays as it is: there is nothing to be dropped.
    Nothing,
    /// The new file has the name.
    Switched(Switched),
    /// What was made is removed.
    GivenUp,
    /// All blobs are removed that were to be.
    Swept,
}

/// The new file, under its name.
#[derive(Debug)]
pub struct Switched {
    pub(super) file: Arc<dyn File>,
    pub(super) id: FileId,
    pub(super) index: Index,
    pub(super) tail: u64,
    /// Whether the name would survive the loss of power.
    pub(super) synced: io::Result<()>,
}

/// What a pack is asked to do.
pub(super) struct Assignment {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) file_id: FileId,
    pub(super) until: Tid,
    /// See [`Packer`]; `None` if nobody else packs the same.
    pub(super) through: Option<Tid>,
    pub(super) options: PackOptions,
    pub(super) references: References,
    pub(super) blobs: Option<BlobDirectory>,
    pub(super) directory_maker: DirectoryMaker,
}

impl Packer {
    pub(super) fn new(assignment: Assignment) -> Box<Self> {
        let Assignment {
            disk,
            path,
            file,
            file_id,
            until,
            through,
            options,
            references,
            blobs,
            directory_maker,
        } = assignment;
        let txns = Transactions::from_pos(file.clone(), FIRST_TXN_POS, FIRST_TXN_POS);
        Box::new(Self {
            disk,
            path,
            file,
            file_id,
            keep_old: options.keep_old,
            until,
            through,
            order: Order::GiveUp,
            stage: Stage::Scan,
            walk: Walk::new(),
            txns,
            pack_pos: 0,
            unpacked: false,
            marks: Marks::new(options.gc, references),
            copier: None,
            blobs,
            directory_maker,
            sweep: None,
        })
    }

    /// Does what was ordered. What fails has left nothing behind.
    pub(super) fn run(mut self: Box<Self>) -> Done {
        let result = match self.order {
            Order::Slice { tail } => self.slice(tail),
            Order::Switch { tail } => self.switch(tail).map(Step::Switched),
            Order::GiveUp => Ok(Step::GivenUp),
            Order::Sweep => self.sweep(),
        };
        if matches!(result, Err(_) | Ok(Step::Nothing | Step::GivenUp)) {
            self.clean_up();
        }
        Done::Packed(self, result)
    }

    /// Whether the switch has to happen on the thread that writes the data file.
    pub(super) const fn is_switching(&self) -> bool {
        matches!(self.order, Order::Switch { .. })
    }

    /// Whether blobs are to be removed.
    pub(super) const fn has_to_sweep(&self) -> bool {
        self.sweep.is_some()
    }

    fn sweep(&mut self) -> Result<Step, PackError> {
        let Some(sweep) = &mut self.sweep else {
            return Ok(Step::Swept);
        };
        match sweep.run() {
            Ok(true) => Ok(Step::Swept),
            Ok(false) => Ok(Step::More),
            Err(error) => Err(PackError::BlobsLeft(error)),
        }
    }

    fn slice(&mut self, tail: u64) -> Result<Step, PackError> {
        match self.stage {
            Stage::Scan => self.scan(tail),
            Stage::Mark => self.mark(tail),
            Stage::Future => self.look_ahead(tail),
            Stage::Copy => self.copy(),
            Stage::Rest => self.copy_rest(tail, true),
        }
    }

    fn scan(&mut self, tail: u64) -> Result<Step, PackError> {
        self.txns.extend(tail);
        let txns = &mut self.txns;
        let end = self.walk.pos() + SLICE_LEN;
        let mut counts = self
            .walk
            .inside()
            .is_some_and(|txn| txn.header.status != Status::Undone);
        while self.walk.pos() < end {
            if self.walk.inside().is_none() {
                let next = self.walk.peek(txns).map_err(PackError::Read)?;
                match next {
                    Some(next) if next.header.tid <= self.until => {}
                    next => {
                        let next = next.filter(|next| self.has_a_say(next.header.tid));
                        return self.end_scan(next.map(|next| next.header.status));
                    }
                }
            }
            match self.walk.next(txns).map_err(PackError::Read)? {
                Some(Piece::Begin(txn)) => {
                    counts = txn.header.status != Status::Undone;
                    self.unpacked |= txn.header.status != Status::Packed;
                }
                Some(Piece::Record(record)) if counts => self.marks.note_past(&record),
                _ => {}
            }
        }
        Ok(Step::More)
    }

    /// The pack time is found; `next` is the status of the first transaction after it.
    fn end_scan(&mut self, next: Option<Status>) -> Result<Step, PackError> {
        self.pack_pos = self.walk.pos();
        let is_empty = self.pack_pos == FIRST_TXN_POS;
        // As in ZODB: nothing was changed since the last pack, or that was to a later time.
        if is_empty || (!self.unpacked && next.is_none_or(|status| status == Status::Packed)) {
            return Ok(Step::Nothing);
        }
        self.marks.begin()?;
        self.stage = Stage::Mark;
        Ok(Step::More)
    }

    fn mark(&mut self, tail: u64) -> Result<Step, PackError> {
        let file = self.file.clone();
        if !self.marks.mark(&reader(&*file, tail))? {
            return Ok(Step::More);
        }
        self.stage = Stage::Future;
        Ok(Step::More)
    }

    /// Looks for back pointers into what is packed, up to what is committed by now.
    fn look_ahead(&mut self, tail: u64) -> Result<Step, PackError> {
        self.txns.extend(tail);
        let end = self.walk.pos() + SLICE_LEN;
        while self.walk.pos() < end {
            match self.next_with_a_say()? {
                Some(Piece::Record(record)) => self.marks.note_future(&record, self.pack_pos)?,
                Some(_) => {}
                None if self.marks.is_complete() => {
                    self.begin_copy(tail)?;
                    self.stage = Stage::Copy;
                    break;
                }
                None => {
                    self.stage = Stage::Mark;
                    break;
                }
            }
        }
        Ok(Step::More)
    }

    /// The next piece of the transactions that have a say.
    fn next_with_a_say(&mut self) -> Result<Option<Piece>, PackError> {
        if self.through.is_some() && self.walk.inside().is_none() {
            let next = self.walk.peek(&mut self.txns).map_err(PackError::Read)?;
            if next.is_none_or(|next| !self.has_a_say(next.header.tid)) {
                return Ok(None);
            }
        }
        self.walk.next(&mut self.txns).map_err(PackError::Read)
    }

    /// Whether what is kept depends on this transaction.
    fn has_a_say(&self, tid: Tid) -> bool {
        self.through.is_none_or(|through| tid <= through)
    }

    /// Makes the new file, which is locked before it can get the name of the old one.
    fn begin_copy(&mut self, tail: u64) -> Result<(), PackError> {
        // One from an earlier pack takes room, as ZODB knows; and while commits wait is no time to
        // free the space of a large file.
        let old = with_suffix(&self.path, OLD_SUFFIX);
        let removed = self.disk.remove(&old);
        removed.map_err(PackError::io("remove", &old))?;
        let needed = self.marks.kept_len() + (tail - self.pack_pos);
        if let Some(free) = self.disk.free_len(&self.path)
            && free < needed
        {
            return Err(PackError::NoSpace { needed, free });
        }
        let mut magic = [0; MAGIC.len()];
        self.file
            .read_at(&mut magic, 0)
            .map_err(|error| PackError::Read(error.into()))?;
        let path = with_suffix(&self.path, NEW_SUFFIX);
        let removed = self.disk.remove(&path);
        removed.map_err(PackError::io("remove", &path))?;
        let created = self.disk.open(&path, OpenMode::CreateNew);
        let file = created.map_err(PackError::io("create", &path))?;
        if !file.try_lock().map_err(PackError::io("lock", &path))? {
            return Err(PackError::Storage(StorageError::Locked { path }));
        }
        // ZODB leaves them to the umask, and a file that nobody else could read is readable then.
        let given = self.disk.copy_permissions(&self.path, &path);
        given.map_err(PackError::io("set the permissions of", &path))?;
        let synced = self.disk.sync_directory_of(&path);
        synced.map_err(PackError::io("sync", &path))?;
        let has_blobs = self.blobs.is_some();
        self.copier = Some(Copier::new(file, path, &magic, has_blobs, self.through)?);
        Ok(())
    }

    fn copy(&mut self) -> Result<Step, PackError> {
        let Some(copier) = &mut self.copier else {
            return Ok(Step::Nothing);
        };
        let reader = reader(&*self.file, self.pack_pos);
        self.txns.extend(self.pack_pos);
        if copier.copy_past(&reader, &mut self.txns, &mut self.marks)? {
            // As in ZODB.
            if copier.new_pack_pos() == self.pack_pos {
                return Ok(Step::Nothing);
            }
            self.marks.forget();
            self.stage = Stage::Rest;
        }
        Ok(Step::More)
    }

    fn copy_rest(&mut self, tail: u64, limited: bool) -> Result<Step, PackError> {
        let Some(copier) = &mut self.copier else {
            return Ok(Step::Nothing);
        };
        if !copier.copy_rest(&self.file, tail, self.pack_pos, &self.marks, limited)? {
            return Ok(Step::More);
        }
        copier.sync()?;
        Ok(Step::Level { pos: copier.pos() })
    }

    /// Copies the last bit, and gives the new file the name of the old one. There is a file of that
    /// name at each moment, and none that is not complete and on stable storage.
    fn switch(&mut self, tail: u64) -> Result<Switched, PackError> {
        self.copy_rest(tail, false)?;
        let path = &self.path;
        let found = self.disk.identify(path);
        if found.map_err(PackError::io("identify", path))? != self.file_id {
            return Err(PackError::Replaced);
        }
        // It would be believed, if the new file ever had a transaction that ends where this says.
        let index_path = with_suffix(path, ".index");
        let removed = self.disk.remove(&index_path);
        removed.map_err(PackError::io("remove", &index_path))?;
        if self.keep_old {
            self.keep_old()?;
        }
        let Some(mut copier) = self.copier.take() else {
            return Err(PackError::Replaced);
        };
        let dropped = copier.take_dropped();
        let (file, index, tail) = copier.finish();
        let id = file.id().map_err(PackError::io("identify", path))?;
        let new_path = with_suffix(path, NEW_SUFFIX);
        let renamed = self.disk.rename(&new_path, path);
        // One that failed may have been done all the same; then there is no way back.
        if let Err(error) = renamed
            && self.disk.identify(path).ok() != Some(id)
        {
            return Err(PackError::io("rename", &new_path)(error));
        }
        let synced = self.disk.sync_directory_of(path);
        // Else it may be the old file that comes back.
        if let (Some(blobs), Ok(())) = (&self.blobs, &synced) {
            let (disk, blobs) = (self.disk.clone(), blobs.clone());
            let maker = self.directory_maker.clone();
            self.sweep = Some(Sweep::new(disk, blobs, maker, self.keep_old, dropped));
        }
        // Whoever drops the last handle frees the space of the old one; see `Job::Close`.
        self.file = file.clone();
        self.txns = Transactions::from_pos(file.clone(), FIRST_TXN_POS, FIRST_TXN_POS);
        Ok(Switched {
            file,
            id,
            index,
            tail,
            synced,
        })
    }

    /// Gives the file its other name, in place of one from an earlier pack.
    fn keep_old(&self) -> Result<(), PackError> {
        let [link, old] = [LINK_SUFFIX, OLD_SUFFIX].map(|suffix| with_suffix(&self.path, suffix));
        let kept = self
            .disk
            .remove(&link)
            .and_then(|()| self.disk.link(&self.path, &link))
            .and_then(|()| self.disk.rename(&link, &old))
            // If both had been the same file, the system has done nothing.
            .and_then(|()| self.disk.remove(&link));
        kept.map_err(PackError::io("keep the old file as", &old))
    }

    /// Removes what was made.
    fn clean_up(&mut self) {
        self.copier = None;
        for suffix in [NEW_SUFFIX, LINK_SUFFIX] {
            let path = with_suffix(&self.path, suffix);
            if let Err(error) = self.disk.remove(&path) {
                log::warn!("{}: cannot be removed: {error}", path.display());
            }
        }
    }
}

const fn reader(file: &dyn File, tail: u64) -> Reader<'_> {
    Reader {
        file,
        wait: Wait::Yes,
        tail,
    }
}

/// Why a pack failed. The data file is as it was, but for [`Self::BlobsLeft`].
#[derive(Debug)]
pub enum PackError {
    /// The data file cannot be read, or is damaged.
    Read(ReadError),
    /// The new file cannot be written, or take the place of the old one.
    Storage(StorageError),
    /// An object's references cannot be told, so that none can be called unreachable.
    References {
        /// The object.
        oid: Oid,
        /// Position of its record.
        pos: u64,
        /// What is wrong in it.
        error: ReferencesError,
    },
    /// An object that is referred to does not exist. As in ZODB nothing is collected then.
    Dangling {
        /// The object.
        oid: Oid,
        /// Which refers to it.
        by: Oid,
    },
    /// There are objects at the pack time, but not the one from which all others are reached.
    NoRoot,
    /// Something was undone while it was packed away.
    Undone {
        /// The object.
        oid: Oid,
    },
    /// There is not enough room for the new file.
    NoSpace {
        /// Bytes that it needs at least.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The new file would be longer than its positions can say.
    TooLong,
    /// Another file stands under the name.
    Replaced,
    /// The file is packed, but files of blobs that were dropped are left.
    BlobsLeft(io::Error),
    /// The server stops.
    Stopped,
    /// A write to the data file, or to its directory, failed.
    Failed(String),
}

impl PackError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let failed = StorageError::io(action, path);
        move |error| Self::Storage(failed(error))
    }
}

impl fmt::Display for PackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(f),
            Self::Storage(error) => error.fmt(f),
            Self::References { oid, pos, error } => {
                write!(f, "references of object {oid} (record at {pos}): {error}")
            }
            Self::Dangling { oid, by } => {
                write!(f, "object {by} refers to {oid}, which does not exist")
            }
            Self::NoRoot => f.write_str("there is no root object from which others are reached"),
            Self::Undone { oid } => write!(
                f,
                "object {oid} got back a revision that was being packed away; pack again"
            ),
            Self::NoSpace { needed, free } => {
                write!(f, "at least {needed} bytes are needed, and {free} are free")
            }
            Self::TooLong => f.write_str("the new file would be too long"),
            Self::Replaced => f.write_str("the file was replaced while it was served"),
            Self::BlobsLeft(error) => {
                write!(f, "packed, but blobs that were dropped are left: {error}")
            }
            Self::Stopped => f.write_str("the server stops"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for PackError {}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer")
            .field("order", &self.order)
            .field("stage", &self.stage)
            .field("pos", &self.walk.pos())
            .finish_non_exhaustive()
    }
}
