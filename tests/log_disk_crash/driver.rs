//! Uses a log's disk as a replica does, and keeps account of what must be there after a crash.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use standby::entry::Entry;
use standby::ids::{Digest, DiskId, Epoch, HistoryId, NodeId, Oid, Seq, Tid};
use standby::replica::event::{Event, LogStart, Start};
use standby::replica::members::{Members, Voter};
use standby::replica::message::Position;
use standby::replica::settings::{Change, Kind, Settings};
use standby::server::log_disk::{
    Directories, DiskAction, Found, LogDisk, LogDiskError, Options, Snapshot, StoragePaths,
};
use standby::storage::disk::Disk;
use standby::storage::iterate::Transactions;
use standby::storage::journal::{Identity, JournalError, Point};
use standby::storage::read::Found as Loaded;
use standby::storage::recover::{self, Access};
use standby::storage::transfer::{BlobName, Record, Transfer};

use crate::disk::SimDisk;
use crate::random::Random;
use crate::reader;

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

/// What must be there, and what may.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct State {
    /// Whether there is something to be opened for sure.
    is_founded: bool,
    history: u8,
    /// The entries that were appended, or were about to be, by their numbers in `Ledger::entries`.
    may: Vec<usize>,
    /// The digest that the log begins with, behind so many entries.
    begins_behind: usize,
    /// So many must be there.
    must: usize,
    promised: Epoch,
    /// One more that may have been promised.
    may_promise: Epoch,
    /// At least so many are in the data files, on stable storage,
    settled: usize,
    /// and at most so many.
    applied: usize,
    /// What all this may have become, if something was under way.
    or: Option<Box<Self>>,
}

/// States, and from which step on each holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    states: Vec<(usize, State)>,
    pub(crate) current: State,
    /// All that ever was.
    entries: Vec<Entry>,
    pub(crate) seen: Seen,
}

/// What a run has had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) no_room: usize,
    pub(crate) refused: usize,
    pub(crate) released: u64,
    pub(crate) blobs: usize,
}

impl Ledger {
    /// As it was at a step.
    pub(crate) fn at(&self, step: usize) -> Self {
        let holds = self.states.partition_point(|(from, _)| *from <= step);
        let current = match holds.checked_sub(1) {
            Some(at) => self.states[at].1.clone(),
            None => State::default(),
        };
        Self {
            states: Vec::new(),
            current,
            entries: self.entries.clone(),
            seen: Seen::default(),
        }
    }
}

/// A transaction as it must be in a data file.
type Txn = (Tid, Vec<(Oid, Option<Bytes>)>);

pub(crate) struct Driver {
    pub(crate) disk: SimDisk,
    pub(crate) ledger: Ledger,
    pub(crate) random: Random,
    log: Option<LogDisk>,
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
            log: None,
            last: Point::start(history(0)),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.ledger.current);
        let state = (self.disk.step_count(), self.ledger.current.clone());
        self.ledger.states.push(state);
    }

    fn log(&mut self) -> &mut LogDisk {
        self.log.as_mut().expect("it is open")
    }

    fn shared_disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
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
        Ok(())
    }

    fn check(&mut self, state: &State, start: &Start) -> Result<(), String> {
        let LogStart {
            before,
            last,
            ends,
            committed,
            applied,
            settled,
            settings,
            changes,
            ..
        } = &start.log;
        let entries: Vec<Entry> = state
            .may
            .iter()
            .map(|at| self.ledger.entries[*at].clone())
            .collect();
        let (len, applied, before) = (index(last.seq), index(*applied), index(before.seq));
        if start.history != history(state.history) {
            return Err("another history".to_owned());
        }
        if ![state.promised, state.may_promise].contains(&start.promised) {
            return Err("another promise".to_owned());
        }
        if !(state.must..=state.may.len()).contains(&len) {
            return Err("entries are missing, or too many".to_owned());
        }
        if !(state.settled..=state.applied.max(state.settled)).contains(&applied) {
            return Err("too little or too much is applied".to_owned());
        }
        if index(*settled) > applied || applied > index(*committed) || before > index(*settled) {
            return Err("marks in the wrong order".to_owned());
        }
        let expected = match len.checked_sub(1) {
            Some(at) if len > state.begins_behind => entries[at].point(),
            _ => begin(state, &entries[..len]),
        };
        if *last != expected {
            return Err("another last entry".to_owned());
        }
        let log = self.log.as_ref().expect("it is open");
        let read = log.entries(Seq(before as u64 + 1), Seq(u64::MAX), u64::MAX);
        let read = read.map_err(|error| error.to_string())?;
        if read.as_deref() != Some(&entries[before..len]) {
            return Err("other entries".to_owned());
        }
        if ends.last().map(|end| end.seq) != (len > before).then_some(last.seq) {
            return Err(format!("epochs end at {ends:?}"));
        }
        let folded = fold(&entries[..index(*settled)], state);
        let mut found = settings.clone();
        if *settings != folded {
            return Err(format!("settings {settings:?}, expected {folded:?}"));
        }
        for (seq, change) in changes {
            found = found.changed(change, *seq);
        }
        if found != fold(&entries[..len], state) {
            return Err("other changes".to_owned());
        }
        if *log.settings() != fold(&entries[..applied], state) {
            return Err("other settings as of what is applied".to_owned());
        }
        for (storage, _) in STORAGES {
            let found = self.txns(storage)?;
            let least = expected_txns(&entries[..applied], storage);
            let most = expected_txns(&entries[..state.applied.max(applied)], storage);
            if !found.starts_with(&least) || !most.starts_with(&found) {
                let tids = |of: &[Txn]| of.iter().map(|txn| txn.0).collect::<Vec<_>>();
                let (found, least, most) = (tids(&found), tids(&least), tids(&most));
                return Err(format!(
                    "{storage}: {found:?}, not from {least:?} to {most:?}"
                ));
            }
        }
        self.check_blobs(&entries, applied.max(before), len)
    }

    /// Blobs of what is applied are in their places, others are staged.
    fn check_blobs(&self, entries: &[Entry], applied: usize, len: usize) -> Result<(), String> {
        let log = self.log.as_ref().expect("it is open");
        let missing = log.missing_blobs(&entries[applied..len]);
        let missing = missing.map_err(|error| error.to_string())?;
        if !missing.is_empty() {
            return Err(format!("{missing:?} are not there"));
        }
        for entry in &entries[..applied] {
            let header = entry.header();
            if header.kind != Kind::Transaction.number() {
                continue;
            }
            let transfer = Transfer::decode(entry.body()).unwrap();
            for blob in transfer.blobs {
                let place = format!(
                    "blobs/0x00/0x00/0x00/0x00/0x00/0x00/0x00/0x{:02x}/0x{:04x}.blob",
                    blob.oid.0, header.tid.0
                );
                let found = self.disk.read(Path::new(&place));
                let found = found.map_err(|error| format!("{place}: {error}"))?;
                if digest(&SHA256, &found).as_ref() != blob.digest.0 {
                    return Err(format!("{place}: another content"));
                }
            }
        }
        Ok(())
    }

    /// What is in a data file.
    fn txns(&self, storage: &str) -> Result<Vec<Txn>, String> {
        let log = self.log.as_ref().expect("it is open");
        let (file, tail) = log.data_file(storage).expect("it is configured");
        let mut txns = Transactions::from_pos(file, 4, tail);
        let mut found = Vec::new();
        while let Some(txn) = txns.next() {
            let txn = txn.map_err(|error| error.to_string())?;
            let tid = txn.header.tid;
            let mut records = Vec::new();
            for record in txns.records(&txn) {
                let oid = record.map_err(|error| error.to_string())?.header.oid;
                let loaded = log.load(storage, oid, tid.next());
                let data = match loaded.map_err(|error| error.to_string())? {
                    Some(Loaded::Revision { data, .. }) => Some(data),
                    _ => None,
                };
                records.push((oid, data));
            }
            found.push((tid, records));
        }
        Ok(found)
    }

    /// Whoever opens a data file by itself finds whole transactions, all that are settled and none
    /// that is not committed.
    fn check_data_files(&self) -> Result<(), Stop> {
        let current = &self.ledger.current;
        let states: Vec<&State> = [Some(current), current.or.as_deref()]
            .into_iter()
            .flatten()
            .collect();
        for (storage, _) in STORAGES {
            let path = data_path(storage);
            let Ok(bytes) = self.disk.read(&path) else {
                if current.is_founded {
                    return wrong(format!("{storage}: there is no data file"));
                }
                continue;
            };
            let as_zodb = reader::tids(&bytes).map_err(Stop::Wrong)?;
            let opened = recover::open(&self.disk, &path, Access::ReadOnly, &mut |_| ());
            let opened = opened.map_err(|error| Stop::Wrong(format!("{storage}: {error}")))?;
            let ours = Transactions::from_pos(opened.file, 4, opened.tail);
            let ours: Vec<Tid> = ours.map(|txn| txn.unwrap().header.tid).collect();
            for found in [as_zodb, ours] {
                let fits = |state: &&State| {
                    let all = state.may.iter().map(|at| self.ledger.entries[*at].clone());
                    let all: Vec<Entry> = all.collect();
                    let tids = |upto: usize| -> Vec<Tid> {
                        let txns = expected_txns(&all[..upto], storage);
                        txns.into_iter().map(|(tid, _)| tid).collect()
                    };
                    found.starts_with(&tids(state.settled))
                        && tids(state.applied.max(state.settled)).starts_with(&found)
                };
                if !states.iter().any(fits) {
                    return wrong(format!("{storage}: found {found:?} ({current:?})"));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn kill(&mut self) {
        self.log = None;
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
        let from = self.ledger.entries.len();
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
        let all = state.may.iter().map(|at| self.ledger.entries[*at].clone());
        fold(&all.collect::<Vec<_>>(), state)
    }

    fn transaction(&mut self) -> Result<Vec<Bytes>, Stop> {
        let (storage, has_blobs) = STORAGES[usize::from(self.random.percent(30))];
        let mut records = Vec::new();
        for oid in 0..self.random.below(4) as u64 {
            // Zeros are what nobody can tell from what was never written.
            let fill = if self.random.percent(30) { 0 } else { 7 };
            let data = vec![fill; 1 + self.random.below(900)];
            records.push(Record {
                oid: Oid(oid),
                data: (oid != 3).then(|| Bytes::from(data)),
                same_as: None,
            });
        }
        let mut blobs = Vec::new();
        if has_blobs && !records.is_empty() && self.random.percent(30) {
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
        self.change(|state| state.applied = through);
        let action = DiskAction::Apply {
            through: Seq(through as u64),
        };
        match self.run(&action)? {
            Event::Applied { through: upto } if index(upto) == through => Ok(()),
            event => wrong(format!("{event:?} after apply")),
        }
    }

    pub(crate) fn checkpoint(&mut self) -> Result<(), Stop> {
        let applied = self.log().applied();
        let settled = self.log().checkpoint()?;
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
        let start = match self.log().adopt(&snapshot) {
            // There was no room for it.
            Err(error) if error.is_refusal() => {
                self.ledger.seen.refused += 1;
                self.log().adopt(&snapshot)?
            }
            start => start?,
        };
        if start.last != snapshot.point() || start.applied != start.last.seq {
            return wrong(format!("{start:?} after a copy"));
        }
        self.last = start.last;
        self.change(|state| *state = new);
        Ok(())
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
        donor.append(more)?;
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
        match (log.checkpoint(), log.snapshot()) {
            (Err(_), Err(_)) => Ok(()),
            _ => Err("a checkpoint after a failure".to_owned()),
        }
    }
}

fn history(number: u8) -> HistoryId {
    HistoryId([number + 1; 16])
}

pub(crate) fn identity(number: u8) -> Identity {
    Identity {
        history: history(number),
        node: NodeId::new("n1").unwrap(),
        disk: DiskId([0x10 + number; 16]),
    }
}

fn settings() -> Settings {
    let identity = identity(0);
    let voter = Voter {
        node: identity.node,
        disk: identity.disk,
    };
    Settings {
        members: Members {
            voters: [voter].into(),
            arbiter: None,
        },
        ..Settings::default()
    }
}

/// What a log begins with.
fn begin(state: &State, before: &[Entry]) -> Point {
    let start = Point::start(history(state.history));
    match before.last() {
        Some(last) => Point {
            digest: start.digest,
            ..last.point()
        },
        None => start,
    }
}

/// The settings as of the last of these entries. A new history begins with new ones.
fn fold(entries: &[Entry], state: &State) -> Settings {
    let mut folded = settings();
    for (at, entry) in entries.iter().enumerate() {
        let header = entry.header();
        let kind = Kind::from_number(header.kind).unwrap();
        if at >= state.begins_behind && kind != Kind::Transaction {
            let change = Change::decode(kind, entry.body()).unwrap();
            folded = folded.changed(&change, header.seq);
        }
    }
    folded
}

fn expected_txns(entries: &[Entry], storage: &str) -> Vec<Txn> {
    let mut txns = Vec::new();
    for entry in entries {
        let header = entry.header();
        match Kind::from_number(header.kind).unwrap() {
            Kind::Transaction => {
                let transfer = Transfer::decode(entry.body()).unwrap();
                if transfer.storage == storage {
                    let records = transfer.records.into_iter();
                    let records = records.map(|record| (record.oid, record.data));
                    txns.push((header.tid, records.collect()));
                }
            }
            _ if header.tid != Tid::ZERO => txns.push((header.tid, Vec::new())),
            _ => {}
        }
    }
    txns
}

fn index(seq: Seq) -> usize {
    usize::try_from(seq.0).expect("few entries")
}

fn wrong<T>(what: String) -> Result<T, Stop> {
    Err(Stop::Wrong(what))
}
