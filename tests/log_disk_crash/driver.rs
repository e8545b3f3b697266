//! Uses a log's disk as a replica does, and keeps account of what must be there after a crash.

mod checks;
mod packs;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use standby::entry::Entry;
use standby::ids::{Digest, Epoch, NodeId, Oid, Seq, Tid};
use standby::log_disk::{
    Beside, Directories, DiskAction, Found, LogDisk, LogDiskError, Options, Packing, Replacement,
    Snapshot, StoragePaths, copy_anew, copy_beside,
};
use standby::replica::event::{Event, LogStart, Start};
use standby::replica::members::Members;
use standby::replica::message::Position;
use standby::replica::settings::{Change, Kind, Settings};
use standby::storage::disk::{Disk, with_suffix};
use standby::storage::journal::{JournalError, Point};
use standby::storage::transfer::{BlobName, Record, Transfer};

use crate::disk::SimDisk;
use crate::ledger::{Ledger, State, fold, history, identity, index, settings};
use crate::random::Random;

/// What the pickle of an object with a blob begins with.
const BLOB_PICKLE: &[u8] = b"\x80\x03cZODB.blob\nBlob\n";

/// Storages, and whether each has blobs.
const STORAGES: [(&str, bool); 2] = [("1", true), ("second one", false)];

pub(crate) const OPTIONS: Options = Options {
    segment_len: 4096,
    window_len: 9000,
    checkpoint_len: 6000,
};

pub(crate) fn directories() -> Directories {
    let storages = STORAGES.iter().map(|(name, has_blobs)| {
        let paths = StoragePaths {
            data: data_path(name),
            blobs: has_blobs.then(|| PathBuf::from("blobs")),
        };
        ((*name).to_owned(), paths)
    });
    Directories {
        journal: "journal".into(),
        storages: storages.collect(),
    }
}

fn data_path(storage: &str) -> PathBuf {
    format!("{storage}.fs").into()
}

/// Why a run ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The disk has failed, or what is on it is refused.
    Log(LogDiskError),
    /// Something is not as it must be.
    Wrong(String),
}

impl From<LogDiskError> for Stop {
    fn from(error: LogDiskError) -> Self {
        Self::Log(error)
    }
}

pub(crate) struct Driver {
    /// Of a hundred transactions that may have a blob.
    pub(crate) blobs: usize,
    /// Of a hundred records that are not needed for a blob.
    pub(crate) deletions: usize,
    pub(crate) disk: SimDisk,
    pub(crate) ledger: Ledger,
    pub(crate) random: Random,
    log: Option<LogDisk>,
    packing: Option<Packing>,
    last: Point,
}

impl Driver {
    pub(crate) fn new(disk: SimDisk, mut ledger: Ledger, random: Random) -> Self {
        // As of its first step.
        ledger.states = vec![(0, ledger.current.clone())];
        Self {
            disk,
            ledger,
            random,
            blobs: 30,
            deletions: 0,
            log: None,
            packing: None,
            last: Point::start(history(0)),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.ledger.current);
        let state = (self.disk.step_count(), self.ledger.current.clone());
        self.ledger.states.push(state);
    }

    /// Up to here there is nothing that other workloads do not have.
    pub(crate) fn sweep_from_here(&mut self) {
        self.ledger.from = self.disk.step_count();
    }

    fn log(&mut self) -> &mut LogDisk {
        self.log.as_mut().expect("it is open")
    }

    fn shared_disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    /// A copy of data was not completed.
    pub(crate) fn leave_copy(&mut self) -> Result<(), Stop> {
        for paths in directories().storages.values() {
            let copy = with_suffix(&paths.data, ".copy");
            let index = with_suffix(&copy, ".index");
            for path in [copy, index] {
                let replaced = self.disk.replace(&path, &[b"FS30"]);
                replaced.map_err(|source| LogDiskError::Io {
                    action: "write",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// A new history: the first, or one behind another.
    pub(crate) fn found(&mut self) -> Result<(), Stop> {
        let mut new = self.ledger.current.clone();
        let is_first = !new.is_founded;
        new.history += u8::from(!is_first);
        new.is_founded = true;
        if !is_first {
            // All of it is applied.
            new.begins_behind = new.may.len();
            (new.settled, new.applied) = (new.may.len(), new.may.len());
            new.promised = self.last.epoch;
            new.may_promise = new.promised;
            self.change(|state| {
                state.applied = state.may.len();
                state.or = Some(Box::new(new.clone()));
            });
        }
        let found = Found {
            identity: identity(new.history),
            settings: settings(),
        };
        LogDisk::found(self.shared_disk(), &directories(), &OPTIONS, &found)?;
        self.change(|state| *state = new);
        Ok(())
    }

    /// Opens what is there, and holds it against what must be there.
    pub(crate) fn open(&mut self) -> Result<(), Stop> {
        self.check_data_files()?;
        let opened = LogDisk::open(self.shared_disk(), &directories(), &OPTIONS);
        let (log, start) = match opened {
            // It was being made.
            Err(LogDiskError::Journal(JournalError::Missing { .. }))
                if !self.ledger.current.is_founded =>
            {
                self.found()?;
                LogDisk::open(self.shared_disk(), &directories(), &OPTIONS)?
            }
            opened => opened?,
        };
        self.log = Some(log);
        let current = self.ledger.current.clone();
        let or = current.or.as_deref().cloned();
        let checked = self.check(&current, &start).or_else(|error| match &or {
            Some(or) => self.check(or, &start).map(|()| {
                self.ledger.current = or.clone();
            }),
            None => Err(error),
        });
        checked.map_err(|what| {
            let Start { promised, log, .. } = &start;
            let LogStart { last, applied, .. } = log;
            let found = format!("{promised}, {} entries, {applied} applied", last.seq);
            Stop::Wrong(format!("{what} ({found}; {current:?})"))
        })?;
        self.last = start.log.last;
        let (last, applied) = (index(start.log.last.seq), index(start.log.applied));
        self.change(|state| {
            state.is_founded = true;
            state.may.truncate(last);
            state.must = last;
            state.promised = start.promised;
            state.may_promise = start.promised;
            // What was found to be applied is on stable storage now. Of two data files one may
            // have more.
            state.settled = applied;
            state.applied = state.applied.max(applied).min(last);
            state.or = None;
        });
        self.settle_packs()
    }

    pub(crate) fn kill(&mut self) {
        self.log = None;
        self.packing = None;
    }

    pub(crate) fn close(&mut self) -> Result<(), Stop> {
        let log = self.log.take().expect("it is open");
        let applied = index(log.applied());
        log.close()?;
        self.change(|state| state.settled = applied);
        Ok(())
    }

    /// Does something, and again if there was no room for it.
    fn run(&mut self, action: &DiskAction) -> Result<Event, Stop> {
        for _ in 0..2 {
            match self.log().run(action.clone()) {
                Ok(Some(Event::NoRoom { last, .. })) => {
                    self.ledger.seen.no_room += 1;
                    self.append_too_late(last)?;
                }
                Ok(Some(event)) => return Ok(event),
                Ok(None) => return wrong("nothing was done".to_owned()),
                Err(error) if error.is_refusal() => self.ledger.seen.refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        wrong(format!("refused twice: {action:?}"))
    }

    /// What was asked for before it was known that there is no room is dropped.
    fn append_too_late(&mut self, last: Point) -> Result<(), Stop> {
        let late = Point {
            seq: last.seq.next(),
            digest: Digest([9; 32]),
            ..last
        };
        let entry = Entry::new(&late, last.epoch, 1, Tid::ZERO, Vec::new()).expect("short");
        match self.log().run(DiskAction::Append(vec![entry]))? {
            None => Ok(()),
            Some(event) => wrong(format!("{event:?} of what came too late")),
        }
    }

    /// Appends so many entries of all kinds.
    pub(crate) fn append(&mut self, count: usize) -> Result<(), Stop> {
        let mut entries = Vec::new();
        for _ in 0..count {
            let entry = self.entry()?;
            self.last = entry.point();
            entries.push(entry);
        }
        self.append_these(entries)
    }

    fn append_these(&mut self, entries: Vec<Entry>) -> Result<(), Stop> {
        let (from, count) = (self.ledger.entries.len(), entries.len());
        self.ledger.entries.extend(entries.iter().cloned());
        self.change(|state| state.may.extend(from..from + count));
        match self.run(&DiskAction::Append(entries))? {
            Event::Synced { through } if through == self.last.seq => {}
            event => return wrong(format!("{event:?} after append")),
        }
        self.change(|state| state.must = state.may.len());
        Ok(())
    }

    fn entry(&mut self) -> Result<Entry, Stop> {
        let epoch = self.ledger.current.promised.max(self.last.epoch);
        let number = self.ledger.entries.len() as u64;
        let seq = self.last.seq.next();
        let tid = Tid(0x4000 + 10 * seq.0 + number % 10);
        let (kind, tid, body) = match self.random.below(8) {
            0 => {
                let mut settings = self.settings_at_end();
                settings.home = format!("site{number}");
                let change = Change::Barrier(settings);
                let is_jump = self.random.percent(50);
                let tid = if is_jump { tid } else { Tid::ZERO };
                (change.kind(), tid, change.encode())
            }
            1 => {
                let change = Change::Ceiling {
                    storage: STORAGES[0].0.to_owned(),
                    oid: Oid(1000 + number),
                };
                (change.kind(), Tid::ZERO, change.encode())
            }
            _ => (Kind::Transaction, tid, self.transaction()?),
        };
        Ok(Entry::new(&self.last, epoch, kind.number(), tid, body).expect("short"))
    }

    fn settings_at_end(&self) -> Settings {
        let state = &self.ledger.current;
        fold(&self.ledger.entries_of(state), state)
    }

    fn transaction(&mut self) -> Result<Vec<Bytes>, Stop> {
        let (storage, has_blobs) = STORAGES[usize::from(self.random.percent(30))];
        let mut records = Vec::new();
        for oid in 0..self.random.below(4) as u64 {
            // Zeros are what nobody can tell from what was never written.
            let fill = if self.random.percent(30) { 0 } else { 7 };
            let data = vec![fill; 1 + self.random.below(900)];
            let is_deletion = self.deletions > 0 && self.random.percent(self.deletions);
            records.push(Record {
                oid: Oid(oid),
                data: (!is_deletion).then(|| Bytes::from(data)),
                same_as: None,
            });
        }
        let mut blobs = Vec::new();
        if has_blobs && !records.is_empty() && self.random.percent(self.blobs) {
            let content = vec![self.random.next() as u8; 1 + self.random.below(700)];
            let content = Bytes::from(content);
            let mut sha = Digest([0; 32]);
            sha.0.copy_from_slice(digest(&SHA256, &content).as_ref());
            let blob = BlobName {
                oid: Oid(0),
                len: content.len() as u64,
                digest: sha,
            };
            // What has failed may be done again.
            if self
                .log()
                .put_blob(blob, std::slice::from_ref(&content))
                .is_err()
            {
                self.log().put_blob(blob, &[content])?;
            }
            self.ledger.seen.blobs += 1;
            blobs.push(blob);
            // What is packed away has its blob removed if it looks like that of one.
            let data = records[0].data.take().unwrap_or_default();
            records[0].data = Some([BLOB_PICKLE, &data].concat().into());
        }
        let transfer = Transfer {
            storage: storage.to_owned(),
            status: b' ',
            user: Bytes::new(),
            description: Bytes::from_static(b"description"),
            extension: Bytes::new(),
            records,
            blobs,
        };
        Ok(transfer.encode().unwrap())
    }

    /// Applies all but the last so many.
    pub(crate) fn apply(&mut self, but: usize) -> Result<(), Stop> {
        let through = self.ledger.current.may.len().saturating_sub(but);
        let through = through.max(self.ledger.current.applied);
        if self.packing.is_some() {
            self.count_beside(self.ledger.current.applied..through);
        }
        self.change(|state| state.applied = through);
        let action = DiskAction::Apply {
            through: Seq(through as u64),
        };
        let mut event = self.run(&action)?;
        if self.log().is_full() {
            // What was applied stays, and the rest is asked for again.
            self.ledger.seen.refused += 1;
            event = self.run(&action)?;
        }
        match event {
            Event::Applied { through: upto } if index(upto) == through => Ok(()),
            event => wrong(format!("{event:?} after apply")),
        }
    }

    pub(crate) fn checkpoint(&mut self) -> Result<(), Stop> {
        let applied = self.log().applied();
        let mut settled = self.log().checkpoint()?;
        if settled != applied {
            // There was no room to note it.
            self.ledger.seen.refused += 1;
            settled = self.log().checkpoint()?;
        }
        if settled != applied {
            return wrong(format!("a checkpoint of {settled}"));
        }
        self.ledger.seen.released = self.log().positions().first.0 - 1;
        self.change(|state| state.settled = index(settled));
        Ok(())
    }

    pub(crate) fn promise(&mut self) -> Result<(), Stop> {
        let counter = self.log().positions().promised.counter + 1;
        let node = NodeId::new(["n1", "n2"][self.random.below(2)]).unwrap();
        let epoch = Epoch { counter, node };
        self.change(|state| state.may_promise = epoch);
        match self.run(&DiskAction::Promise(epoch))? {
            Event::Promised(found) if found == epoch => {}
            event => return wrong(format!("{event:?} after promise")),
        }
        self.change(|state| state.promised = epoch);
        Ok(())
    }

    /// Cuts so many entries, if that many are not applied.
    pub(crate) fn cut(&mut self, count: usize) -> Result<(), Stop> {
        let state = &self.ledger.current;
        let after = state.may.len().saturating_sub(count).max(state.applied);
        let committed = Seq(state.applied as u64);
        self.change(|state| state.must = after);
        let action = DiskAction::Cut {
            after: Seq(after as u64),
            committed,
        };
        match self.run(&action)? {
            Event::Cut { last, .. } if index(last.seq) == after => self.last = last,
            event => return wrong(format!("{event:?} after cut")),
        }
        self.change(|state| state.may.truncate(after));
        Ok(())
    }

    /// Takes a copy from a node that has the same log and some more, and has cut what is cut here.
    pub(crate) fn adopt(&mut self, cut: usize, more: usize) -> Result<(), Stop> {
        let (snapshot, entries) = self.donor(cut, more)?;
        let kept = self.ledger.current.may.len() - cut;
        let mut new = self.ledger.current.clone();
        new.may.truncate(kept);
        let from = self.ledger.entries.len();
        self.ledger.entries.extend(entries);
        new.may.extend(from..self.ledger.entries.len());
        let len = new.may.len();
        (new.must, new.settled, new.applied) = (len, len, len);
        self.change(|state| state.or = Some(Box::new(new.clone())));
        let disk: Arc<dyn Disk> = self.shared_disk();
        let copy = || copy_beside(&disk, &directories(), &snapshot, &mut |_, _| true);
        let beside = match copy() {
            // There was no room for it.
            Err(error) if error.is_refusal() => {
                self.ledger.seen.refused += 1;
                copy()?
            }
            beside => beside?,
        };
        let start = self.log().adopt(beside)?;
        if start.last != snapshot.point() || start.applied != start.last.seq {
            return wrong(format!("{start:?} after a copy"));
        }
        self.last = start.last;
        self.change(|state| *state = new);
        Ok(())
    }

    /// Takes a copy of a node that has so many entries fewer than were applied, in the place of the
    /// data alone.
    pub(crate) fn replace(&mut self, less: usize) -> Result<(), Stop> {
        let point = self.ledger.current.applied.saturating_sub(less);
        let beside = self.copy_anew(point)?;
        self.put_in_place(&beside, point)
    }

    /// The same with a copy of all that there is, part of which is applied behind that.
    pub(crate) fn replace_ahead(&mut self) -> Result<(), Stop> {
        let point = self.ledger.current.may.len();
        let beside = self.copy_anew(point)?;
        self.apply(0)?;
        self.put_in_place(&beside, point)
    }

    /// A copy of a node that has so many entries.
    fn copy_anew(&mut self, point: usize) -> Result<Beside, Stop> {
        let len = self.ledger.current.may.len();
        let (snapshot, _) = self.donor(len - point, 0)?;
        let disk: Arc<dyn Disk> = self.shared_disk();
        let copy = || copy_anew(&disk, &directories(), &snapshot, &mut |_, _| true);
        match copy() {
            // There was no room for it.
            Err(error) if error.is_refusal() => {
                self.ledger.seen.refused += 1;
                Ok(copy()?)
            }
            beside => Ok(beside?),
        }
    }

    fn put_in_place(&mut self, beside: &Beside, point: usize) -> Result<(), Stop> {
        let applied = self.ledger.current.applied;
        // What is behind the copy has to be applied again.
        let mut new = self.ledger.current.clone();
        (new.settled, new.committed) = (point, applied);
        self.change(|state| state.or = Some(Box::new(new)));
        let before = self.log().positions();
        let replaced = match self.log().replace_data(beside, 1) {
            // The blobs had no room.
            Err(error) if error.is_for_lack_of_room() => self.log().replace_data(beside, 1),
            replaced => replaced,
        };
        match replaced? {
            Replacement::Done => {}
            Replacement::TooOld => return wrong("the copy is too old".to_owned()),
            Replacement::Lacks(blobs) => return wrong(format!("{blobs:?} are lacking")),
        }
        let log = self.log();
        let (after, found) = (log.positions(), index(log.applied()));
        if (after.last, after.promised) != (before.last, before.promised) || found != applied {
            return wrong(format!("{after:?}, {found} applied, of {before:?}"));
        }
        self.ledger.seen.replaced += usize::from(point < applied);
        self.change(|state| {
            state.or = None;
            (state.settled, state.committed) = (applied, applied);
        });
        Ok(self.log().expect_no_more(1)?)
    }

    fn donor(&mut self, cut: usize, more: usize) -> Result<(Snapshot, Vec<Entry>), Stop> {
        let state = self.ledger.current.clone();
        let kept = &state.may[..state.may.len() - cut];
        let kept: Vec<Entry> = kept
            .iter()
            .map(|at| self.ledger.entries[*at].clone())
            .collect();
        let disk = SimDisk::new(crate::disk::Model::default(), None);
        let mut donor = Self::new(disk, self.ledger.clone(), self.random.clone());
        donor.ledger.current = State {
            history: state.history,
            ..State::default()
        };
        donor.found()?;
        let opened = LogDisk::open(donor.shared_disk(), &directories(), &OPTIONS)?;
        donor.log = Some(opened.0);
        // The blobs that it has already.
        for (path, contents) in self.disk.model().shown() {
            let name = path.file_name().and_then(|name| name.to_str());
            let mut sha = Digest([0; 32]);
            sha.0.copy_from_slice(digest(&SHA256, &contents).as_ref());
            let is_blob =
                name.is_some_and(|name| name.ends_with(".blob")) || name == Some(&sha.to_string());
            if is_blob {
                let blob = BlobName {
                    oid: Oid(0),
                    len: contents.len() as u64,
                    digest: sha,
                };
                let content = Bytes::copy_from_slice(&contents);
                donor.log().put_blob(blob, &[content])?;
            }
        }
        donor.log().run(DiskAction::Append(kept.clone()))?;
        donor.last = kept.last().map_or(donor.last, Entry::point);
        donor.ledger.current.promised = Epoch {
            counter: state.promised.counter + 1,
            node: NodeId::new("n3").unwrap(),
        };
        donor.ledger.current.may = state.may[..kept.len()].to_vec();
        let from = donor.ledger.entries.len();
        if more > 0 {
            donor.append(more)?;
        }
        donor.apply(0)?;
        let snapshot = donor.log().snapshot()?;
        Ok((snapshot, donor.ledger.entries.split_off(from)))
    }

    /// After a failure: everything is refused.
    pub(crate) fn try_everything(&mut self) -> Result<(), String> {
        let epoch = Epoch {
            counter: u64::MAX,
            node: NodeId::NONE,
        };
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let actions = [
            DiskAction::Append(Vec::new()),
            DiskAction::Promise(epoch),
            DiskAction::Cut {
                after: Seq(0),
                committed: Seq(0),
            },
            DiskAction::Apply { through: Seq(0) },
            DiskAction::Record(Position::default(), Members::default()),
        ];
        for action in actions {
            if let Ok(event) = log.run(action.clone()) {
                return Err(format!("{event:?} after a failure ({action:?})"));
            }
        }
        let (storage, seq) = (STORAGES[0].0, Seq(u64::MAX));
        if log.note_packed(storage, seq).is_ok() {
            return Err("a pack is noted after a failure".to_owned());
        }
        match (log.checkpoint(), log.snapshot()) {
            (Err(_), Err(_)) => Ok(()),
            _ => Err("a checkpoint after a failure".to_owned()),
        }
    }
}

fn wrong<T>(what: String) -> Result<T, Stop> {
    Err(Stop::Wrong(what))
}
