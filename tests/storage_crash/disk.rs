//! A disk that loses power and fails, as `manual/data_file.md` says that disks do ("What is assumed
//! of the disk"), and no milder.
//!
//! Every change has a number, its *step*. What a sync has not covered is kept in pieces no larger
//! than a sector; [`Model::cut_power`] picks those that survive.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::{fmt, mem};

use bytes::Bytes;
use standby::storage::disk::{Disk, File, FileId, OpenMode, with_suffix};

use crate::random::Random;

/// What is written whole or not at all.
const SECTOR_LEN: u64 = 512;

/// What stands on a disk without power.
pub(crate) type Files = BTreeMap<PathBuf, Contents>;

/// A file without power.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Contents {
    /// It stays the same when the power comes back.
    pub(crate) inode: u64,
    bytes: Vec<u8>,
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Which of the changes that no sync has covered survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    Nothing,
    /// No data, but the lengths of files: they read as zeros.
    Lengths,
    Everything,
    First,
    Last,
    /// A prefix, in the order in which they were made.
    Prefix,
    Random,
}

pub(crate) const EXTREMES: [Pick; 6] = [
    Pick::Nothing,
    Pick::Lengths,
    Pick::Everything,
    Pick::First,
    Pick::Last,
    Pick::Prefix,
];

/// What is wrong with a disk that no storage can be safe on: the checks must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Syncs of files do nothing.
    SyncsNothing,
    /// Syncs bring single bytes to the disk and nothing else: statuses before what they are of.
    SyncsStatusesOnly,
    /// A sync leaves out the last sector.
    SyncsAllButTheLast,
    /// Syncs of directories do nothing.
    ForgetsNames,
    /// Syncs of directories do nothing, but for that of the data file.
    ForgetsNamesBelow,
}

/// A change, or a sync.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        path: PathBuf,
        inode: u64,
    },
    Link {
        path: PathBuf,
        inode: u64,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        inode: u64,
    },
    Remove {
        path: PathBuf,
    },
    CreateDirectory {
        path: PathBuf,
    },
    SyncNames {
        directory: PathBuf,
    },
    Write {
        inode: u64,
        pos: u64,
        data: Bytes,
    },
    SetLen {
        inode: u64,
        len: u64,
    },
    Sync {
        inode: u64,
    },
    Allocate,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { path, inode } => write!(f, "create {} as {inode}", path.display()),
            Self::Link { path, inode } => write!(f, "link {} to {inode}", path.display()),
            Self::Rename { from, to, .. } => {
                write!(f, "rename {} {}", from.display(), to.display())
            }
            Self::Remove { path } => write!(f, "remove {}", path.display()),
            Self::CreateDirectory { path } => write!(f, "create directory {}", path.display()),
            Self::SyncNames { directory } => write!(f, "sync names in {}", directory.display()),
            Self::Write { inode, pos, data } => {
                write!(f, "write {} bytes to {inode} at {pos}", data.len())
            }
            Self::SetLen { inode, len } => write!(f, "set length of {inode} to {len}"),
            Self::Sync { inode } => write!(f, "sync {inode}"),
            Self::Allocate => f.write_str("allocate"),
        }
    }
}

/// The contents of the disk: what the system shows, and what would be left without power.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    names: Names,
    durable_names: Names,
    /// `names` is `durable_names` with these, each of which survives or not for itself, as long as
    /// the directory that it is in does.
    pending_names: Vec<Op>,
    inodes: BTreeMap<u64, Inode>,
    lie: Option<Lie>,
}

/// Files and directories.
#[derive(Clone, Debug, Default)]
struct Names {
    files: BTreeMap<PathBuf, u64>,
    directories: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    shown: Vec<u8>,
    /// After a failed sync this may differ from what is shown, with nothing pending.
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    /// Within one sector.
    Write {
        pos: u64,
        data: Bytes,
    },
    SetLen(u64),
}

impl Model {
    /// All of it on stable storage.
    pub(crate) fn new(files: &Files, lie: Option<Lie>) -> Self {
        let mut model = Self {
            lie,
            ..Self::default()
        };
        for (path, contents) in files {
            let Contents { inode, bytes } = contents;
            model.names.files.insert(path.clone(), *inode);
            let directories = parent(path).ancestors().map(Path::to_owned);
            model.names.directories.extend(directories);
            let (shown, durable) = (bytes.clone(), bytes.clone());
            let pending = Vec::new();
            model.inodes.insert(
                *inode,
                Inode {
                    shown,
                    durable,
                    pending,
                },
            );
        }
        model.durable_names = model.names.clone();
        model
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { .. }
            | Op::Link { .. }
            | Op::Rename { .. }
            | Op::Remove { .. }
            | Op::CreateDirectory { .. } => {
                if let Op::Create { inode, .. } = op {
                    self.inodes.insert(*inode, Inode::default());
                }
                self.names.change(op);
                self.pending_names.push(op.clone());
            }
            Op::SyncNames { directory } => self.sync_names(directory),
            Op::Write { inode, pos, data } => {
                for change in sectors(*pos, data) {
                    self.inode(*inode).change(change);
                }
            }
            Op::SetLen { inode, len } => self.inode(*inode).change(Change::SetLen(*len)),
            Op::Sync { inode } => {
                let lie = self.lie;
                self.inode(*inode).sync(lie);
            }
            Op::Allocate => {}
        }
    }

    /// A change that fails is made in part, or not at all. After a failed sync part of what was
    /// written is on the disk, and the system takes the rest for written.
    fn fail(&mut self, op: &Op, random: &mut Random) {
        match op {
            Op::Write { inode, pos, data } => {
                for change in sectors(*pos, data) {
                    if random.percent(50) {
                        self.inode(*inode).change(change);
                    }
                }
            }
            Op::Sync { inode } => {
                let inode = self.inode(*inode);
                for change in mem::take(&mut inode.pending) {
                    if random.percent(50) {
                        change.apply(&mut inode.durable);
                    }
                }
            }
            _ => {}
        }
    }

    /// What was done in this directory is durable; whether the directory is, is another question.
    fn sync_names(&mut self, directory: &Path) {
        let forgets = match self.lie {
            Some(Lie::ForgetsNames) => true,
            Some(Lie::ForgetsNamesBelow) => directory != Path::new(""),
            _ => false,
        };
        if forgets {
            return;
        }
        let is_within = |path: &Path| parent(path) == directory;
        for op in mem::take(&mut self.pending_names) {
            match &op {
                // In one step, in both directories.
                Op::Rename { from, to, inode } if is_within(from) || is_within(to) => {
                    self.durable_names.files.remove(from);
                    self.durable_names.files.insert(to.clone(), *inode);
                    let is_earlier = |op: &Op| op.path() == Some(from) || op.path() == Some(to);
                    self.pending_names.retain(|op| !is_earlier(op));
                }
                op if op.path().is_some_and(|path| is_within(path)) => {
                    self.durable_names.change(op);
                }
                _ => self.pending_names.push(op),
            }
        }
    }

    /// What is left when the power goes now.
    pub(crate) fn cut_power(&self, pick: Pick, random: &mut Random) -> Files {
        let changes = self.inodes.values().map(|inode| inode.pending.len());
        let count = self.pending_names.len() + changes.sum::<usize>();
        let mut survives = pick.survivors(count, random).into_iter();
        let mut survives = || survives.next() == Some(true);

        let mut names = self.durable_names.clone();
        for op in &self.pending_names {
            if survives() {
                names.change(op);
            }
        }
        names.drop_unreachable();
        let contents: BTreeMap<u64, Vec<u8>> = self
            .inodes
            .iter()
            .map(|(number, inode)| (*number, inode.cut_power(pick, &mut survives, random)))
            .collect();
        names
            .files
            .into_iter()
            .map(|(path, inode)| {
                let bytes = contents[&inode].clone();
                (path, Contents { inode, bytes })
            })
            .collect()
    }

    /// Turns bits of a file over that stands on the disk.
    #[allow(dead_code, reason = "not all who include this file do")]
    pub(crate) fn rot(&mut self, path: &Path, pos: usize, bits: u8) {
        let inode = self.names.files[path];
        let inode = self.inode(inode);
        for bytes in [&mut inode.shown, &mut inode.durable] {
            if let Some(byte) = bytes.get_mut(pos) {
                *byte ^= bits;
            }
        }
    }

    /// What the system shows.
    pub(crate) fn shown(&self) -> Files {
        self.names
            .files
            .iter()
            .map(|(path, inode)| {
                let bytes = self.inodes[inode].shown.clone();
                let inode = *inode;
                (path.clone(), Contents { inode, bytes })
            })
            .collect()
    }

    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("an open file")
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.shown);
        self.pending.push(change);
    }

    fn sync(&mut self, lie: Option<Lie>) {
        let (synced, kept) = match lie {
            None | Some(Lie::ForgetsNames | Lie::ForgetsNamesBelow) => {
                (mem::take(&mut self.pending), Vec::new())
            }
            Some(Lie::SyncsNothing) => return,
            Some(Lie::SyncsStatusesOnly) => mem::take(&mut self.pending).into_iter().partition(
                |change| matches!(change, Change::Write { data, .. } if data.len() == 1),
            ),
            Some(Lie::SyncsAllButTheLast) => {
                let mut synced = mem::take(&mut self.pending);
                let kept = synced.split_off(synced.len().saturating_sub(1));
                (synced, kept)
            }
        };
        for change in synced {
            change.apply(&mut self.durable);
        }
        self.pending = kept;
        self.durable.resize(self.shown.len(), 0);
    }

    fn cut_power(
        &self,
        pick: Pick,
        survives: &mut impl FnMut() -> bool,
        random: &mut Random,
    ) -> Vec<u8> {
        let mut left = self.durable.clone();
        // A file that has grown may have any length between the synced and the written one.
        let (mut len_min, mut len_max) = (left.len(), left.len());
        for change in &self.pending {
            if survives() {
                change.apply(&mut left);
                if let Change::SetLen(_) = change {
                    (len_min, len_max) = (left.len(), left.len());
                }
            }
            if let Change::Write { pos, data } = change {
                len_max = len_max.max(index(*pos) + data.len());
            }
        }
        let len = match pick {
            Pick::Nothing => len_min,
            Pick::Random => match random.below(3) {
                0 => len_min,
                1 => len_max,
                _ => len_min + random.below(len_max - len_min + 1),
            },
            _ => len_max,
        };
        left.resize(len, 0);
        left
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { pos, data } => {
                let range = index(*pos)..index(*pos) + data.len();
                if bytes.len() < range.end {
                    bytes.resize(range.end, 0);
                }
                bytes[range].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(index(*len), 0),
        }
    }
}

impl Pick {
    fn survivors(self, count: usize, random: &mut Random) -> Vec<bool> {
        let prefix = random.below(count + 1);
        let percent = [10, 50, 90][random.below(3)];
        (0..count)
            .map(|number| match self {
                Self::Nothing | Self::Lengths => false,
                Self::Everything => true,
                Self::First => number == 0,
                Self::Last => number == count - 1,
                Self::Prefix => number < prefix,
                Self::Random => random.percent(percent),
            })
            .collect()
    }
}

impl Op {
    /// The name that it creates or removes; none if it renames.
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Create { path, .. }
            | Self::Link { path, .. }
            | Self::Remove { path }
            | Self::CreateDirectory { path } => Some(path),
            _ => None,
        }
    }
}

impl Names {
    fn change(&mut self, op: &Op) {
        match op {
            Op::Create { path, inode } | Op::Link { path, inode } => {
                self.files.insert(path.clone(), *inode);
            }
            Op::Rename { from, to, inode } => {
                // Nothing to rename if the creation did not survive. If an older file had the name,
                // that was written anew: it is no other file that comes to stand here.
                if self.files.remove(from).is_some() {
                    self.files.insert(to.clone(), *inode);
                }
            }
            Op::Remove { path } => {
                self.files.remove(path);
            }
            Op::CreateDirectory { path } => {
                self.directories.insert(path.clone());
            }
            _ => unreachable!("{op} changes no name"),
        }
    }

    /// What is in a directory that is not there is not there either.
    fn drop_unreachable(&mut self) {
        let Self { files, directories } = self;
        let is_there = |path: &Path| path == Path::new("") || directories.contains(path);
        files.retain(|path, _| parent(path).ancestors().all(is_there));
    }

    fn has_directory(&self, path: &Path) -> bool {
        path == Path::new("") || self.directories.contains(path)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The parts of a write that survive for themselves.
fn sectors(mut pos: u64, data: &Bytes) -> Vec<Change> {
    let mut data = data.clone();
    let mut changes = Vec::new();
    while !data.is_empty() {
        let len = data.len().min(index(SECTOR_LEN - pos % SECTOR_LEN));
        let sector = data.split_to(len);
        changes.push(Change::Write { pos, data: sector });
        pos += len as u64;
    }
    changes
}

fn index(pos: u64) -> usize {
    usize::try_from(pos).expect("a position in memory")
}

/// One step that fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) step: usize,
    pub(crate) kind: io::ErrorKind,
    pub(crate) seed: u64,
}

/// The disk as the storage sees it. Clones are the same disk.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    model: Model,
    /// All steps since the start.
    log: Vec<Op>,
    failure: Option<Failure>,
    locked: BTreeSet<u64>,
    inodes_created: u64,
    /// The number of the device: another one each time.
    device: u64,
    /// A change through a handle after one through it has failed: nobody knows what such a file
    /// holds.
    reckless: Option<String>,
    /// No room can be reserved.
    is_full: bool,
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: u64,
    failed: AtomicBool,
    holds_lock: AtomicBool,
}

impl SimDisk {
    pub(crate) fn new(model: Model, failure: Option<Failure>) -> Self {
        static DEVICES: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Mutex::new(State {
            device: DEVICES.fetch_add(1, Ordering::Relaxed),
            inodes_created: model.inodes.keys().max().copied().unwrap_or(0),
            model,
            log: Vec::new(),
            failure,
            locked: BTreeSet::new(),
            reckless: None,
            is_full: false,
        })))
    }

    pub(crate) fn model(&self) -> Model {
        self.state().model.clone()
    }

    pub(crate) fn log(&self) -> Vec<Op> {
        self.state().log.clone()
    }

    /// How many steps there were.
    pub(crate) fn step_count(&self) -> usize {
        self.state().log.len()
    }

    pub(crate) fn exists(&self, name: &str) -> bool {
        self.find(Path::new(name)).is_ok()
    }

    pub(crate) fn reckless(&self) -> Option<String> {
        self.state().reckless.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic with the lock held")
    }

    fn run(&self, op: Op) -> io::Result<()> {
        let state = &mut *self.state();
        let step = state.log.len();
        let failure = state.failure.filter(|failure| failure.step == step);
        match failure {
            None => state.model.apply(&op),
            Some(failure) => state.model.fail(&op, &mut Random::new(failure.seed)),
        }
        state.log.push(op);
        failure.map_or(Ok(()), |failure| Err(failure.kind.into()))
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let inode = {
            let state = &mut *self.state();
            if !state.model.names.has_directory(parent(path)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            state.inodes_created += 1;
            state.inodes_created
        };
        let path = path.to_owned();
        self.run(Op::Create { path, inode })?;
        Ok(self.handle(inode))
    }

    fn handle(&self, inode: u64) -> SimFile {
        SimFile {
            disk: self.clone(),
            inode,
            failed: AtomicBool::new(false),
            holds_lock: AtomicBool::new(false),
        }
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        let inode = self.state().model.names.files.get(path).copied();
        inode.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// For whoever has the disk in hand while it is used.
#[allow(dead_code, reason = "not all who include this file do")]
impl SimDisk {
    /// What was done from this step on.
    pub(crate) fn log_from(&self, step: usize) -> Vec<Op> {
        self.state().log[step..].to_vec()
    }

    /// Whether there is room for anything.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    /// Lets a step fail that has not been made yet, or none.
    pub(crate) fn fail(&self, failure: Option<Failure>) {
        self.state().failure = failure;
    }

    /// Whether a power cut would leave what is shown below this directory.
    pub(crate) fn is_settled(&self, directory: &Path) -> bool {
        let model = &self.state().model;
        let is_below = |path: &Path| path.starts_with(directory);
        let names = &model.pending_names;
        let named = |op: &Op| match op {
            Op::Rename { from, to, .. } => is_below(from) || is_below(to),
            op => op.path().is_some_and(|path| is_below(path)),
        };
        let mut files = model.names.files.iter().filter(|(path, _)| is_below(path));
        let is_settled = |inode: &u64| {
            let inode = &model.inodes[inode];
            inode.pending.is_empty() && inode.shown == inode.durable
        };
        !names.iter().any(named) && files.all(|(_, inode)| is_settled(inode))
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(match (mode, self.find(path)) {
            (OpenMode::CreateNew, Ok(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, Err(_)) => self.create(path)?,
            (_, found) => self.handle(found?),
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inode = self.find(path)?;
        Ok(self.state().model.inode(inode).shown.clone())
    }

    fn replace(&self, path: &Path, contents: &[&[u8]]) -> io::Result<()> {
        let new = with_suffix(path, ".new");
        let file = self.create(&new)?;
        file.write_at(&mut [IoSlice::new(&contents.concat())], 0)?;
        file.sync()?;
        self.rename(&new, path)?;
        self.sync_directory_of(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.find(path).is_err() {
            return Ok(());
        }
        let path = path.to_owned();
        let directory = parent(&path).to_owned();
        self.run(Op::Remove { path })?;
        self.run(Op::SyncNames { directory })
    }

    fn identify(&self, path: &Path) -> io::Result<FileId> {
        let is_directory = self.state().model.names.has_directory(path);
        let inode = if is_directory { 0 } else { self.find(path)? };
        let device = self.state().device;
        Ok(FileId { device, inode })
    }

    fn sync_directory_of(&self, path: &Path) -> io::Result<()> {
        let directory = parent(path).to_owned();
        self.run(Op::SyncNames { directory })
    }

    fn open_unnamed(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let path = with_suffix(path, ".staging");
        let file = self.create(&path)?;
        self.run(Op::Remove { path })?;
        Ok(Arc::new(file))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let names = &self.state().model.names;
        if !names.has_directory(directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = names.files.keys().chain(&names.directories);
        let within = all.filter(|path| path.parent() == Some(directory));
        let names = within.filter_map(|path| path.file_name());
        Ok(names.map(OsString::from).collect())
    }

    fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let has = |path: &Path| self.state().model.names.has_directory(path);
        let missing: Vec<_> = path.ancestors().take_while(|path| !has(path)).collect();
        let mut created = Vec::new();
        for path in missing.into_iter().rev() {
            let path = path.to_owned();
            created.push(path.clone());
            self.run(Op::CreateDirectory { path })?;
        }
        Ok(created)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.find(from)?;
        if !self.state().model.names.has_directory(parent(to)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        self.run(Op::Rename { from, to, inode })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (inode, path) = (self.find(from)?, to.to_owned());
        self.run(Op::Link { path, inode })
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Err(_) => Ok(()),
            Ok(_) => {
                let path = path.to_owned();
                self.run(Op::Remove { path })
            }
        }
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        let files = self.state().model.names.files.clone();
        let within = files.into_keys().filter(|file| file.starts_with(path));
        for path in within {
            self.run(Op::Remove { path })?;
        }
        Ok(())
    }

    fn set_read_only(&self, _path: &Path, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl SimFile {
    fn change(&self, op: Op) -> io::Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            let said = format!("after a failed change: {op}");
            self.disk.state().reckless.get_or_insert(said);
        }
        self.disk
            .run(op)
            .inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }
}

impl File for SimFile {
    fn id(&self) -> io::Result<FileId> {
        let (device, inode) = (self.disk.state().device, self.inode);
        Ok(FileId { device, inode })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().model.inode(self.inode).shown.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        let state = &mut *self.disk.state();
        let shown = &state.model.inode(self.inode).shown;
        let pos = usize::try_from(pos).unwrap_or(usize::MAX).min(shown.len());
        let len = buf.len().min(shown.len() - pos);
        buf[..len].copy_from_slice(&shown[pos..pos + len]);
        Ok(len)
    }

    fn read_at_nowait(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.read_at(buf, pos)
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        let (inode, data) = (self.inode, data.into());
        self.change(Op::Write { inode, pos, data })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Op::Sync { inode: self.inode })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let inode = self.inode;
        self.change(Op::SetLen { inode, len })
    }

    fn allocate(&self, _pos: u64, _len: u64) -> io::Result<()> {
        if self.disk.state().is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.run(Op::Allocate)
    }

    fn try_lock(&self) -> io::Result<bool> {
        let taken = self.disk.state().locked.insert(self.inode);
        self.holds_lock.fetch_or(taken, Ordering::Relaxed);
        Ok(taken)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if *self.holds_lock.get_mut() {
            self.disk.state().locked.remove(&self.inode);
        }
    }
}
