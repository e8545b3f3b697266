//! What executes a replica's disk actions.

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::disk::SimDisk;
use crate::entry::{Entry, Point};
use crate::ids::{Epoch, Seq, Tid};
use crate::replica::event::{Event, LogStart, Start};
use crate::replica::members::{Members, Voter};
use crate::replica::message::Position;
use crate::replica::settings::{Change, Kind, Settings};
use standby::storage::disk::Disk;
use standby::storage::journal::{Create, EpochRow, Identity, Journal, JournalError, Options};

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
pub(crate) struct Copy {
    pub(crate) last: Point,
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

/// What stands on the disk besides the journal, or as if it did: it is written at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// What has been applied.
    pub(crate) applied: Vec<Entry>,
    settled: Seq,
    settings: Settings,
    record: Option<(Position, Members)>,
}

/// A journal, and a list for the data.
pub(crate) struct Store {
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
    let Sizes { segment_len, window_len } = sizes;
    Options { create: None, segment_len, window_len }
}

impl Store {
    /// Makes the directory of a new node.
    pub(crate) fn found(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        settings: Settings,
        sizes: Sizes,
    ) -> Result<(), String> {
        disk.create_directories(Path::new(JOURNAL)).map_err(|error| error.to_string())?;
        disk.sync_directory_of(Path::new(JOURNAL)).map_err(|error| error.to_string())?;
        let create = Some(Create::new(identity));
        let options = Options { create, ..options(sizes) };
        let disk = Arc::new(disk.clone());
        Journal::open(disk, Path::new(JOURNAL), options).map_err(|error| error.to_string())?;
        *lock(kept) = Kept { settings, ..Kept::default() };
        Ok(())
    }

    /// Makes the directory of a new node from a copy.
    pub(crate) fn seed(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        identity: Identity,
        copy: &Copy,
        sizes: Sizes,
    ) -> Result<(), String> {
        disk.create_directories(Path::new(JOURNAL)).map_err(|error| error.to_string())?;
        disk.sync_directory_of(Path::new(JOURNAL)).map_err(|error| error.to_string())?;
        let create = Some(Create::behind(identity, copy.last, &copy.epochs));
        let options = Options { create, ..options(sizes) };
        let disk = Arc::new(disk.clone());
        Journal::open(disk, Path::new(JOURNAL), options).map_err(|error| error.to_string())?;
        *lock(kept) = copy.kept.clone();
        Ok(())
    }

    pub(crate) fn open(
        disk: &SimDisk,
        kept: &Arc<Mutex<Kept>>,
        sizes: Sizes,
    ) -> Result<Opened, String> {
        let disk = Arc::new(disk.clone());
        let opened = Journal::open(disk, Path::new(JOURNAL), options(sizes));
        let (journal, recovered) = opened.map_err(|error| error.to_string())?;
        let identity = *journal.identity();
        let me = Voter { node: identity.node, disk: identity.disk };
        let taken = lock(kept).applied.len();
        let store = Self { journal, kept: kept.clone(), taken, is_full: false };
        let log = store.log_start()?;
        let start = Start { history: identity.history, me, promised: recovered.promised, log };
        let record = lock(kept).record.clone();
        Ok(Opened { store, start, record })
    }

    fn log_start(&self) -> Result<LogStart, String> {
        let kept = lock(&self.kept);
        let positions = self.journal.positions();
        let base = Seq(positions.first.0 - 1);
        let point = self.journal.point_at(base).map_err(|error| error.to_string())?;
        let point = point.ok_or("the log begins nowhere")?;
        let before = Position { epoch: point.epoch, seq: point.seq };
        let applied = Seq(kept.applied.len() as u64);
        let last_applied = kept.applied.iter().rev().map(|entry| entry.header().tid);
        let mut last_tid = last_applied.into_iter().find(|tid| *tid != Tid::ZERO).unwrap_or_default();
        let (mut changes, mut ends) = (Vec::new(), Vec::<Position>::new());
        for entry in self.entries(positions.first, positions.last.seq, u64::MAX).unwrap_or_default() {
            let header = *entry.header();
            let end = Position { epoch: header.epoch, seq: header.seq };
            match ends.last_mut() {
                Some(last) if last.epoch == end.epoch => *last = end,
                _ => ends.push(end),
            }
            if header.seq > applied && header.tid != Tid::ZERO {
                last_tid = header.tid;
            }
            if header.seq > kept.settled && let Some(change) = change_of(&entry) {
                changes.push((header.seq, change));
            }
        }
        if let Some((position, members)) = &kept.record {
            // An arbiter has nothing else.
            let settings = Settings { members: members.clone(), ..Settings::default() };
            return Ok(LogStart {
                before: *position,
                last: Point { epoch: position.epoch, seq: position.seq, ..positions.last },
                last_tid: Tid::ZERO,
                ends: Vec::new(),
                committed: position.seq,
                applied: position.seq,
                settled: position.seq,
                settings,
                changes: Vec::new(),
                history_from: Tid::ZERO,
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
        })
    }

    /// Does it. `None`: what was to be appended does not follow any more, as there was no room.
    pub(crate) fn run(&mut self, job: Job) -> Result<Option<Event>, String> {
        let event = match job {
            Job::Append(entries) => return self.append(&entries).map_err(|error| error.to_string()),
            Job::Promise(epoch) => {
                self.journal.promise(epoch).map_err(|error| error.to_string())?;
                Event::Promised(epoch)
            }
            Job::Cut { after, committed } => {
                let cut = self.journal.cut_after(after, committed);
                cut.map_err(|error| error.to_string())?;
                self.is_full = false;
                let last = self.journal.positions().last;
                Event::Cut { last, last_tid: self.log_start()?.last_tid }
            }
            Job::Apply { through } => {
                self.apply(through)?;
                Event::Applied { through }
            }
            Job::Record(position, members) => {
                lock(&self.kept).record = Some((position, members));
                Event::Recorded(position)
            }
            Job::Adopt { id, copy } => match self.adopt(&copy) {
                Ok(log) => Event::Copied { id, log: Box::new(log) },
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
        if entries.last().is_some_and(|entry| entry.header().seq > self.journal.positions().synced) {
            return Err("applied before it was synced".to_owned());
        }
        kept.applied.extend(entries);
        if kept.applied.len() as u64 != through.0 {
            return Err(format!("nothing to apply up to {through}"));
        }
        drop(kept);
        self.journal.note_committed(through).map_err(|error| error.to_string())?;
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
        self.journal.release(kept.settled).map_err(|error| error.to_string())?;
        Ok(())
    }

    pub(crate) fn entries(&self, from: Seq, to: Seq, len_max: u64) -> Option<Vec<Entry>> {
        let entries = self.journal.reader().read(from, len_max);
        let entries = entries.take_while(|entry| {
            entry.as_ref().map_or(true, |entry| entry.header().seq <= to)
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

    /// All that was applied.
    pub(crate) fn applied(&self) -> Vec<Entry> {
        lock(&self.kept).applied.clone()
    }

    pub(crate) fn promised(&self) -> Epoch {
        self.journal.positions().promised
    }

    /// Where the log can be read from, and where it ends.
    pub(crate) fn ends(&self) -> (Seq, Point) {
        let positions = self.journal.positions();
        (positions.first, positions.last)
    }

    /// In front of the first entry that can be read.
    pub(crate) fn before(&self) -> Option<Point> {
        let first = self.journal.positions().first;
        self.journal.point_at(Seq(first.0 - 1)).ok().flatten()
    }

    pub(crate) fn snapshot(&mut self) -> Result<Copy, String> {
        let kept = lock(&self.kept).clone();
        let applied = Seq(kept.applied.len() as u64);
        let last = self.journal.point_at(applied).map_err(|error| error.to_string())?;
        let last = last.ok_or("what was applied is not in the log")?;
        let epochs = self.journal.epochs();
        let epochs = epochs.rows().iter().filter(|row| row.first <= applied).copied().collect();
        let mut kept = kept;
        for at in kept.settled.0 as usize..kept.applied.len() {
            let entry = &kept.applied[at];
            if let Some(change) = change_of(entry) {
                kept.settings = kept.settings.changed(&change, entry.header().seq);
            }
        }
        kept.settled = applied;
        Ok(Copy { last, epochs, kept })
    }

    fn adopt(&mut self, copy: &Copy) -> Result<LogStart, String> {
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
