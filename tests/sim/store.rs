//! What executes a replica's disk actions: the server's own part, or a journal with a list for the
//! data, which is faster and which mutants of the core can be run on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::disk::{Model, SimDisk};
use crate::entry::{Entry, Point};
use crate::ids::{Digest, Epoch, Oid, Seq, Tid};
#[cfg(not(mutants))]
use crate::real::RealStore;
use crate::replica::event::{Event, LogStart, Start};
use crate::replica::members::{Members, Voter};
use crate::replica::message::Position;
use crate::replica::settings::{Change, Kind, Settings};
#[cfg(not(mutants))]
use standby::log_disk::Snapshot;
use standby::storage::disk::Disk;
use standby::storage::journal::{Create, EpochRow, Identity, Journal, JournalError, Options};
use standby::storage::transfer::{BlobName, Record, Transfer};

/// The directory of a node's journal.
pub(crate) const JOURNAL: &str = "journal";

/// Something to be done by a disk.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    Append(Vec<Entry>),
    Promise(Epoch),
    Cut { after: Seq, committed: Seq },
    Apply { through: Seq },
    Record(Position, Members),
    Adopt { id: u64, copy: Arc<Copy> },
}

/// A copy of a database.
#[derive(Debug)]
pub(crate) enum Copy {
    List(Box<ListCopy>),
    #[cfg(not(mutants))]
    Real(Box<Snapshot>),
}

#[derive(Debug)]
pub(crate) struct ListCopy {
    last: Point,
    epochs: Vec<EpochRow>,
    kept: Kept,
}

/// What opening gives.
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) start: Start,
    /// Of an arbiter.
    pub(crate) record: Option<(Position, Members)>,
}

/// A transaction in the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) tid: Tid,
    pub(crate) data: Vec<Bytes>,
}

/// Of whom, and how, a directory is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sort {
    /// The server's own.
    pub(crate) is_real: bool,
    /// Not that of an arbiter.
    pub(crate) has_data: bool,
    pub(crate) sizes: Sizes,
}

impl Copy {
    /// The last entry that is in it.
    pub(crate) fn last(&self) -> Point {
        match self {
            Self::List(copy) => copy.last,
            #[cfg(not(mutants))]
            Self::Real(snapshot) => snapshot.point(),
        }
    }

    #[cfg(not(mutants))]
    pub(crate) const fn real(&self) -> Option<&Snapshot> {
        match self {
            Self::Real(snapshot) => Some(snapshot),
            Self::List(_) => None,
        }
    }
}

/// Either of them.
pub(crate) enum Store {
    List(Box<ListStore>),
    #[cfg(not(mutants))]
    Real(Box<RealStore>),
}

impl Store {
    /// Makes the directory of a new node.
    pub(crate) fn found(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        settings: Settings,
        sort: Sort,
    ) -> Result<(), String> {
        #[cfg(not(mutants))]
        if sort.is_real {
            return RealStore::found(disk, identity, settings, sort.has_data, sort.sizes);
        }
        ListStore::found(disk, kept, identity, settings, sort.sizes)
    }

    /// Begins another history behind what is there.
    pub(crate) fn found_behind(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        settings: Settings,
        sort: Sort,
    ) -> Result<SimDisk, String> {
        #[cfg(not(mutants))]
        if sort.is_real {
            RealStore::found(disk, identity, settings, sort.has_data, sort.sizes)?;
            return Ok(disk.clone());
        }
        ListStore::found_behind(disk, kept, identity, settings, sort.sizes)
    }

    /// See [`RealStore::check_blobs`]; how many there are.
    pub(crate) fn check_blobs(
        &self,
        disk: &SimDisk,
        rotten: &BTreeSet<Digest>,
    ) -> Result<u64, String> {
        let _ = (disk, rotten);
        match self {
            Self::List(_) => Ok(0),
            #[cfg(not(mutants))]
            Self::Real(store) => store.check_blobs(disk, rotten),
        }
    }

    /// Whether less was applied than was to be.
    pub(crate) const fn is_held(&self) -> bool {
        match self {
            Self::List(_) => false,
            #[cfg(not(mutants))]
            Self::Real(store) => store.is_held(),
        }
    }

    /// Brings the blobs that have rotted: these.
    pub(crate) fn mend(&self) -> Result<Vec<Digest>, String> {
        match self {
            Self::List(_) => Ok(Vec::new()),
            #[cfg(not(mutants))]
            Self::Real(store) => store.mend(),
        }
    }

    /// Makes the directory of a new node from a copy.
    pub(crate) fn seed(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        copy: &Copy,
        sort: Sort,
    ) -> Result<(), String> {
        match copy {
            Copy::List(copy) => ListStore::seed(disk, kept, identity, copy, sort.sizes),
            #[cfg(not(mutants))]
            Copy::Real(snapshot) => RealStore::seed(disk, identity, snapshot, sort.sizes),
        }
    }

    pub(crate) fn open(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        sort: Sort,
    ) -> Result<Opened, String> {
        #[cfg(not(mutants))]
        if sort.is_real {
            let (store, start) = RealStore::open(disk, sort.has_data, sort.sizes)?;
            let log = &start.log;
            let position = Position {
                epoch: log.last.epoch,
                seq: log.last.seq,
            };
            let record = (!sort.has_data).then(|| (position, log.settings.members.clone()));
            let store = Self::Real(Box::new(store));
            return Ok(Opened {
                store,
                start,
                record,
            });
        }
        let (store, start) = ListStore::open(disk, kept, sort.sizes)?;
        let record = lock(kept).record.clone();
        Ok(Opened {
            store: Self::List(Box::new(store)),
            start,
            record,
        })
    }

    /// Does it. `None`: what was to be appended does not follow any more, as there was no room.
    pub(crate) fn run(&mut self, job: Job) -> Result<Option<Event>, String> {
        match self {
            Self::List(store) => store.run(job),
            #[cfg(not(mutants))]
            Self::Real(store) => store.run(job),
        }
    }

    /// Whether a crash may leave some of it done, and some not. What the list does is done at once.
    pub(crate) const fn is_divisible(&self, job: &Job) -> bool {
        match self {
            Self::List(_) => {
                !matches!(job, Job::Adopt { .. } | Job::Apply { .. } | Job::Record(..))
            }
            #[cfg(not(mutants))]
            Self::Real(_) => true,
        }
    }

    /// What is applied is brought to the disk, and the journal gives up what it need not have.
    pub(crate) fn checkpoint(&mut self) -> Result<(), String> {
        match self {
            Self::List(store) => store.checkpoint(),
            #[cfg(not(mutants))]
            Self::Real(store) => store.checkpoint(),
        }
    }

    pub(crate) fn entries(&self, from: Seq, to: Seq, len_max: u64) -> Option<Vec<Entry>> {
        match self {
            Self::List(store) => store.entries(from, to, len_max),
            #[cfg(not(mutants))]
            Self::Real(store) => store.entries(from, to, len_max),
        }
    }

    /// What was applied since it was asked last.
    pub(crate) fn take_applied(&mut self) -> Vec<Entry> {
        match self {
            Self::List(store) => store.take_applied(),
            #[cfg(not(mutants))]
            Self::Real(store) => store.take_applied(),
        }
    }

    pub(crate) fn applied(&self) -> Seq {
        match self {
            Self::List(store) => store.applied(),
            #[cfg(not(mutants))]
            Self::Real(store) => store.applied(),
        }
    }

    /// All transactions in the data.
    pub(crate) fn written(&self) -> Result<Vec<Written>, String> {
        match self {
            Self::List(store) => Ok(store.written()),
            #[cfg(not(mutants))]
            Self::Real(store) => store.written(),
        }
    }

    /// A pack is done, which this entry has ordered.
    pub(crate) fn note_packed(&mut self, storage: &str, at: Seq) -> Result<(), String> {
        match self {
            Self::List(store) => {
                lock(&store.kept).packed.insert(storage.to_owned(), at);
                Ok(())
            }
            #[cfg(not(mutants))]
            Self::Real(store) => store.note_packed(storage, at),
        }
    }

    /// Where the log can be read from, and where it ends.
    pub(crate) fn ends(&self) -> (Seq, Point) {
        match self {
            Self::List(store) => store.ends(),
            #[cfg(not(mutants))]
            Self::Real(store) => store.ends(),
        }
    }

    /// In front of the first entry that can be read.
    pub(crate) fn base(&self) -> Point {
        match self {
            Self::List(store) => store.base(),
            #[cfg(not(mutants))]
            Self::Real(store) => store.base(),
        }
    }

    pub(crate) fn snapshot(&mut self) -> Result<Copy, String> {
        match self {
            Self::List(store) => store.snapshot().map(|copy| Copy::List(Box::new(copy))),
            #[cfg(not(mutants))]
            Self::Real(store) => store.snapshot().map(|copy| Copy::Real(Box::new(copy))),
        }
    }
}

/// What users want to be committed, as a transaction that the storage understands.
pub(crate) fn wrap(body: &[Bytes]) -> Vec<Bytes> {
    let data = Bytes::from(body.concat());
    let oid = oid_of(&data);
    let blobs = blob_of(&data).map(|(name, _)| name).into_iter().collect();
    let record = Record {
        oid,
        data: Some(data),
        same_as: None,
    };
    let transfer = Transfer {
        storage: "1".to_owned(),
        status: b' ',
        user: Bytes::new(),
        description: Bytes::new(),
        extension: Bytes::new(),
        records: vec![record],
        blobs,
    };
    transfer.encode().expect("it is short")
}

fn oid_of(data: &[u8]) -> Oid {
    Oid(data.iter().take(8).map(|byte| u64::from(*byte)).sum())
}

/// Every fourth transaction has a blob. Its content follows from the data, so that each node can
/// make what it would have to fetch.
fn blob_of(data: &[u8]) -> Option<(BlobName, Bytes)> {
    let has_blob = data.get(7).is_some_and(|byte| byte.is_multiple_of(4));
    let content: Vec<u8> = data.iter().rev().copied().cycle().take(1000).collect();
    let mut digest = Digest::default();
    digest
        .0
        .copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &content).as_ref());
    let name = BlobName {
        oid: oid_of(data),
        len: content.len() as u64,
        digest,
    };
    has_blob.then(|| (name, content.into()))
}

/// The blob whose file this is, while it waits to be applied.
pub(crate) fn blob_at(path: &Path) -> Option<Digest> {
    let name = path.strip_prefix(Path::new(JOURNAL).join("blobs")).ok()?;
    Digest::from_hex(name.to_str()?)
}

/// The blobs that an entry names, with their contents.
#[cfg(not(mutants))]
pub(crate) fn blobs_of(entry: &Entry) -> Option<(BlobName, Bytes)> {
    let is_transaction = entry.header().kind == Kind::Transaction.number();
    blob_of(&unwrap(entry).concat()).filter(|_| is_transaction)
}

/// What was wrapped.
pub(crate) fn unwrap(entry: &Entry) -> Vec<Bytes> {
    if Kind::from_number(entry.header().kind) != Some(Kind::Transaction) {
        return entry.body().to_vec();
    }
    let transfer = Transfer::decode(entry.body()).expect("nothing else was proposed");
    transfer
        .records
        .into_iter()
        .filter_map(|record| record.data)
        .collect()
}

/// As it has to be in the data; `None` if nothing is written for it.
pub(crate) fn written(entry: &Entry) -> Option<Written> {
    let tid = entry.header().tid;
    match Kind::from_number(entry.header().kind)? {
        Kind::Transaction => Some(Written {
            tid,
            data: unwrap(entry),
        }),
        // The jump of a forced promotion.
        Kind::Barrier if tid != Tid::ZERO => Some(Written {
            tid,
            data: Vec::new(),
        }),
        _ => None,
    }
}

/// What stands on the disk besides the journal, or as if it did: it is written at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// What has been applied.
    pub(crate) applied: Vec<Entry>,
    settled: Seq,
    settings: Settings,
    record: Option<(Position, Members)>,
    /// The packs that were done.
    packed: BTreeMap<String, Seq>,
}

/// A journal, and a list for the data.
pub(crate) struct ListStore {
    journal: Journal,
    kept: Arc<Mutex<Kept>>,
    taken: usize,
    is_full: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) segment_len: u64,
    pub(crate) window_len: u64,
}

fn options(sizes: Sizes) -> Options {
    let Sizes {
        segment_len,
        window_len,
    } = sizes;
    Options {
        create: None,
        segment_len,
        window_len,
    }
}

impl ListStore {
    /// Makes the directory of a new node.
    pub(crate) fn found(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        settings: Settings,
        sizes: Sizes,
    ) -> Result<(), String> {
        disk.create_directories(Path::new(JOURNAL))
            .map_err(|error| error.to_string())?;
        disk.sync_directory_of(Path::new(JOURNAL))
            .map_err(|error| error.to_string())?;
        let create = Some(Create::new(identity));
        let options = Options {
            create,
            ..options(sizes)
        };
        let disk = Arc::new(disk.clone());
        Journal::open(disk, Path::new(JOURNAL), options).map_err(|error| error.to_string())?;
        *lock(kept) = Kept {
            settings,
            ..Kept::default()
        };
        Ok(())
    }

    fn found_behind(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        settings: Settings,
        sizes: Sizes,
    ) -> Result<SimDisk, String> {
        let (mut old, _) = Self::open(disk, kept, sizes)?;
        let last = old.ends().1;
        old.apply(last.seq)?;
        old.checkpoint()?;
        let mut epochs = old.journal.epochs().rows().to_vec();
        let known = lock(kept)
            .applied
            .iter()
            .map(|entry| entry.header().tid)
            .max();
        if let Some((_, tid)) = epochs.last_mut().and_then(|row| row.tids.as_mut()) {
            *tid = known.unwrap_or(*tid);
        }
        drop(old);
        let disk = SimDisk::new(Model::default(), None);
        let base = Point {
            digest: Point::start(identity.history).digest,
            ..last
        };
        let copy = ListCopy {
            last: base,
            epochs,
            kept: lock(kept).clone(),
        };
        Self::seed(&disk, kept, identity, &copy, sizes)?;
        lock(kept).settings = settings;
        let (mut new, _) = Self::open(&disk, kept, sizes)?;
        new.journal
            .promise(last.epoch)
            .map_err(|error| error.to_string())?;
        Ok(disk)
    }

    /// Makes the directory of a new node from a copy.
    pub(crate) fn seed(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        copy: &ListCopy,
        sizes: Sizes,
    ) -> Result<(), String> {
        disk.create_directories(Path::new(JOURNAL))
            .map_err(|error| error.to_string())?;
        disk.sync_directory_of(Path::new(JOURNAL))
            .map_err(|error| error.to_string())?;
        let create = Some(Create::behind(identity, copy.last, &copy.epochs));
        let options = Options {
            create,
            ..options(sizes)
        };
        let disk = Arc::new(disk.clone());
        Journal::open(disk, Path::new(JOURNAL), options).map_err(|error| error.to_string())?;
        *lock(kept) = copy.kept.clone();
        Ok(())
    }

    pub(crate) fn open(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        sizes: Sizes,
    ) -> Result<(Self, Start), String> {
        let disk = Arc::new(disk.clone());
        let opened = Journal::open(disk, Path::new(JOURNAL), options(sizes));
        let (journal, recovered) = opened.map_err(|error| error.to_string())?;
        let identity = *journal.identity();
        let me = Voter {
            node: identity.node,
            disk: identity.disk,
        };
        let taken = lock(kept).applied.len();
        let store = Self {
            journal,
            kept: kept.clone(),
            taken,
            is_full: false,
        };
        let log = store.log_start()?;
        let start = Start {
            history: identity.history,
            me,
            promised: recovered.promised,
            log,
        };
        Ok((store, start))
    }

    fn log_start(&self) -> Result<LogStart, String> {
        let kept = lock(&self.kept);
        let positions = self.journal.positions();
        let base = Seq(positions.first.0 - 1);
        let point = self
            .journal
            .point_at(base)
            .map_err(|error| error.to_string())?;
        let point = point.ok_or("the log begins nowhere")?;
        let before = Position {
            epoch: point.epoch,
            seq: point.seq,
        };
        let applied = Seq(kept.applied.len() as u64);
        let last_applied = kept.applied.iter().rev().map(|entry| entry.header().tid);
        let mut last_tid = last_applied
            .into_iter()
            .find(|tid| *tid != Tid::ZERO)
            .unwrap_or_default();
        let (mut changes, mut ends) = (Vec::new(), Vec::<Position>::new());
        for entry in self
            .entries(positions.first, positions.last.seq, u64::MAX)
            .unwrap_or_default()
        {
            let header = *entry.header();
            let end = Position {
                epoch: header.epoch,
                seq: header.seq,
            };
            match ends.last_mut() {
                Some(last) if last.epoch == end.epoch => *last = end,
                _ => ends.push(end),
            }
            if header.seq > applied && header.tid != Tid::ZERO {
                last_tid = header.tid;
            }
            if header.seq > kept.settled
                && let Some(change) = change_of(&entry)
            {
                changes.push((header.seq, change));
            }
        }
        if let Some((position, members)) = &kept.record {
            // An arbiter has nothing else.
            let settings = Settings {
                members: members.clone(),
                ..Settings::default()
            };
            return Ok(LogStart {
                before: *position,
                last: Point {
                    epoch: position.epoch,
                    seq: position.seq,
                    ..positions.last
                },
                last_tid: Tid::ZERO,
                ends: Vec::new(),
                committed: position.seq,
                applied: position.seq,
                settled: position.seq,
                settings,
                changes: Vec::new(),
                history_from: Tid::ZERO,
                packed: BTreeMap::new(),
            });
        }
        Ok(LogStart {
            before,
            last: positions.last,
            last_tid,
            ends,
            committed: positions.committed.max(applied),
            applied,
            settled: kept.settled,
            settings: kept.settings.clone(),
            changes,
            history_from: Tid::ZERO,
            packed: kept.packed.clone(),
        })
    }

    /// Does it. `None`: what was to be appended does not follow any more, as there was no room.
    pub(crate) fn run(&mut self, job: Job) -> Result<Option<Event>, String> {
        let event = match job {
            Job::Append(entries) => {
                return self.append(&entries).map_err(|error| error.to_string());
            }
            Job::Promise(epoch) => {
                self.journal
                    .promise(epoch)
                    .map_err(|error| error.to_string())?;
                Event::Promised(epoch)
            }
            Job::Cut { after, committed } => {
                let cut = self.journal.cut_after(after, committed);
                cut.map_err(|error| error.to_string())?;
                self.is_full = false;
                let last = self.journal.positions().last;
                Event::Cut {
                    last,
                    last_tid: self.log_start()?.last_tid,
                }
            }
            Job::Apply { through } => {
                self.apply(through)?;
                Event::Applied { through }
            }
            Job::Record(position, members) => {
                lock(&self.kept).record = Some((position, members));
                Event::Recorded(position)
            }
            Job::Adopt { id, copy } => match self.adopt_any(&copy) {
                Ok(log) => Event::Copied {
                    id,
                    log: Box::new(log),
                },
                Err(_) => Event::FetchFailed { id },
            },
        };
        Ok(Some(event))
    }

    fn append(&mut self, entries: &[Entry]) -> Result<Option<Event>, JournalError> {
        let follows = entries.first().is_none_or(|entry| {
            let last = self.journal.positions().last;
            entry.header().previous == last.digest && entry.header().seq == last.seq.next()
        });
        if self.is_full && !follows {
            return Ok(None);
        }
        match self.journal.append(entries) {
            Err(JournalError::NoSpace { .. }) => {
                self.journal.sync()?;
                self.is_full = true;
                let last = self.journal.positions().last;
                let start = self.log_start();
                let last_tid = start.map(|start| start.last_tid).unwrap_or_default();
                return Ok(Some(Event::NoRoom { last, last_tid }));
            }
            result => result?,
        }
        self.is_full = false;
        self.journal.sync()?;
        let through = self.journal.positions().last.seq;
        Ok(Some(Event::Synced { through }))
    }

    fn apply(&mut self, through: Seq) -> Result<(), String> {
        let kept = self.kept.clone();
        let mut kept = lock(&kept);
        let from = Seq(kept.applied.len() as u64 + 1);
        let entries = self.entries(from, through, u64::MAX).unwrap_or_default();
        if entries
            .last()
            .is_some_and(|entry| entry.header().seq > self.journal.positions().synced)
        {
            return Err("applied before it was synced".to_owned());
        }
        kept.applied.extend(entries);
        if kept.applied.len() as u64 != through.0 {
            return Err(format!("nothing to apply up to {through}"));
        }
        drop(kept);
        self.journal
            .note_committed(through)
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Settings are written, and the journal gives up what it need not have.
    pub(crate) fn checkpoint(&mut self) -> Result<(), String> {
        let kept = self.kept.clone();
        let mut kept = lock(&kept);
        let applied = kept.applied.len();
        for at in kept.settled.0 as usize..applied {
            let entry = &kept.applied[at];
            if let Some(change) = change_of(entry) {
                kept.settings = kept.settings.changed(&change, entry.header().seq);
            }
        }
        kept.settled = Seq(applied as u64);
        self.journal
            .release(kept.settled)
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    pub(crate) fn entries(&self, from: Seq, to: Seq, len_max: u64) -> Option<Vec<Entry>> {
        let entries = self.journal.reader().read(from, len_max);
        let entries = entries.take_while(|entry| {
            entry
                .as_ref()
                .map_or(true, |entry| entry.header().seq <= to)
        });
        entries.collect::<Result<_, _>>().ok()
    }

    /// What was applied since it was asked last.
    pub(crate) fn take_applied(&mut self) -> Vec<Entry> {
        let kept = lock(&self.kept);
        let applied = kept.applied.get(self.taken..).unwrap_or_default().to_vec();
        self.taken = kept.applied.len();
        applied
    }

    pub(crate) fn applied(&self) -> Seq {
        Seq(lock(&self.kept).applied.len() as u64)
    }

    fn written(&self) -> Vec<Written> {
        lock(&self.kept)
            .applied
            .iter()
            .filter_map(written)
            .collect()
    }

    /// Where the log can be read from, and where it ends.
    pub(crate) fn ends(&self) -> (Seq, Point) {
        let positions = self.journal.positions();
        (positions.first, positions.last)
    }

    fn base(&self) -> Point {
        let (first, last) = self.ends();
        self.journal
            .point_at(Seq(first.0 - 1))
            .ok()
            .flatten()
            .unwrap_or(last)
    }

    pub(crate) fn snapshot(&mut self) -> Result<ListCopy, String> {
        let kept = lock(&self.kept).clone();
        let applied = Seq(kept.applied.len() as u64);
        let last = self
            .journal
            .point_at(applied)
            .map_err(|error| error.to_string())?;
        let last = last.ok_or("what was applied is not in the log")?;
        let epochs = self.journal.epochs();
        let epochs = epochs
            .rows()
            .iter()
            .filter(|row| row.first <= applied)
            .copied()
            .collect();
        let mut kept = kept;
        for at in kept.settled.0 as usize..kept.applied.len() {
            let entry = &kept.applied[at];
            if let Some(change) = change_of(entry) {
                kept.settings = kept.settings.changed(&change, entry.header().seq);
            }
        }
        kept.settled = applied;
        Ok(ListCopy { last, epochs, kept })
    }

    fn adopt_any(&mut self, copy: &Copy) -> Result<LogStart, String> {
        match copy {
            Copy::List(copy) => self.adopt(copy),
            #[cfg(not(mutants))]
            Copy::Real(_) => Err("a copy of another sort".to_owned()),
        }
    }

    fn adopt(&mut self, copy: &ListCopy) -> Result<LogStart, String> {
        let (_, last) = self.ends();
        if copy.last.seq < Seq(lock(&self.kept).applied.len() as u64) {
            return Err("the copy is older".to_owned());
        }
        if self.journal.point_at(copy.last.seq).ok().flatten() != Some(copy.last)
            || copy.last.seq < last.seq
        {
            // What is not applied is not known to be in the copy: it is kept in a file.
            let applied = Seq(lock(&self.kept).applied.len() as u64);
            self.journal
                .cut_after(applied, applied)
                .map_err(|error| error.to_string())?;
        }
        let behind = self.journal.begin_behind(copy.last, &copy.epochs);
        behind.map_err(|error| error.to_string())?;
        *lock(&self.kept) = copy.kept.clone();
        self.taken = copy.kept.applied.len();
        self.log_start()
    }
}

pub(crate) fn change_of(entry: &Entry) -> Option<Change> {
    let kind = Kind::from_number(entry.header().kind)?;
    if kind == Kind::Transaction {
        return None;
    }
    decode_change(kind, entry.body())
}

fn decode_change(kind: Kind, body: &[Bytes]) -> Option<Change> {
    Change::decode(kind, body).ok()
}

pub(crate) fn lock(kept: &Arc<Mutex<Kept>>) -> std::sync::MutexGuard<'_, Kept> {
    kept.lock().expect("no panic with the lock held")
}
