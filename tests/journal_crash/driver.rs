//! Uses a journal, and keeps account of what must be there after a crash.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use standby::ids::{DiskId, Epoch, HistoryId, NodeId, Seq, Tid};
use standby::storage::disk::Disk;
use standby::storage::journal::format::{Decoder, EntryHeader, Item};
use standby::storage::journal::{
    Create, Entry, EpochRow, Identity, Journal, JournalError, Options, Point, SyncJob, TornTail,
};

use crate::disk::SimDisk;
use crate::random::Random;

pub(crate) const DIRECTORY: &str = "journal";

const SEGMENT_LEN: u64 = 4096;
const WINDOW_LEN: u64 = 9000;

/// Why a run ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The journal refuses, or the disk does.
    Journal(JournalError),
    /// Something is not as it must be.
    Wrong(String),
}

impl From<JournalError> for Stop {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

/// What must be there, and what may.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct State {
    /// Whether the journal was there for sure.
    is_founded: bool,
    /// Digests of all entries that were appended, or were about to be, without those that were cut.
    may: Vec<[u8; 32]>,
    /// So many of them must be there.
    must: usize,
    /// More than `must`, while a cut is under way: what of them is not in the log is in a file.
    must_or_kept: usize,
    /// Of each cut that was done, what must be in files.
    kept: Vec<[u8; 32]>,
    /// So many may have been released.
    released: usize,
    promised: Epoch,
    /// One more that may have been promised.
    may_promise: Epoch,
    committed: u64,
}

/// States, and from which step on each holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    states: Vec<(usize, State)>,
    current: State,
    /// The entries of `may`.
    entries: Vec<Entry>,
    pub(crate) seen: Seen,
}

/// What a run has had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) cuts: usize,
    pub(crate) segments_cut: usize,
    pub(crate) segments: usize,
    pub(crate) released: usize,
    pub(crate) overlapping: usize,
}

impl Ledger {
    /// As it was at a step.
    pub(crate) fn at(&self, step: usize) -> Self {
        let holds = self.states.partition_point(|(from, _)| *from <= step);
        let current = match holds.checked_sub(1) {
            Some(at) => self.states[at].1.clone(),
            None => State::default(),
        };
        let entries = self.all_entries(&current);
        Self {
            states: Vec::new(),
            current,
            entries,
            seen: Seen::default(),
        }
    }

    pub(crate) const fn now(&self) -> &State {
        &self.current
    }

    fn all_entries(&self, state: &State) -> Vec<Entry> {
        // Cut ones are looked for too: a state of before the cut may need them.
        let find = |digest: &[u8; 32]| {
            let is_it = |entry: &&Entry| entry.header().digest.0 == *digest;
            self.entries.iter().rev().find(is_it).cloned()
        };
        state
            .may
            .iter()
            .map(|it| find(it).expect("known"))
            .collect()
    }
}

pub(crate) struct Driver {
    pub(crate) disk: SimDisk,
    pub(crate) ledger: Ledger,
    pub(crate) random: Random,
    /// Takes for synced what was only written.
    pub(crate) is_hasty: bool,
    /// Makes a journal if there seems to be none, whatever was there.
    pub(crate) always_creates: bool,
    pub(crate) disk_number: u8,
    journal: Option<Journal>,
    job: Option<SyncJob>,
    /// All entries that ever were.
    entries: Vec<Entry>,
    last: Point,
}

const HISTORY: HistoryId = HistoryId([3; 16]);

impl Driver {
    pub(crate) fn new(disk: SimDisk, mut ledger: Ledger, random: Random) -> Self {
        ledger.states = vec![(0, ledger.current.clone())];
        Self {
            disk,
            entries: ledger.entries.clone(),
            ledger,
            random,
            is_hasty: false,
            always_creates: false,
            disk_number: 7,
            journal: None,
            job: None,
            last: Point::start(HISTORY),
        }
    }

    fn identity(&self) -> Identity {
        Identity {
            history: HISTORY,
            node: NodeId::new("n1").unwrap(),
            disk: DiskId([self.disk_number; 16]),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) {
        change(&mut self.ledger.current);
        let now = (self.disk.step_count(), self.ledger.current.clone());
        self.ledger.states.push(now);
        self.ledger.entries = self.entries.clone();
    }

    fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().expect("it is open")
    }

    /// Opens it, and holds what it has against what it must have.
    pub(crate) fn open(&mut self) -> Result<(), Stop> {
        self.kill();
        let create = self.always_creates || !self.ledger.current.is_founded;
        let options = Options {
            create: create.then(|| Create::new(self.identity())),
            segment_len: SEGMENT_LEN,
            window_len: WINDOW_LEN,
        };
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let (journal, recovered) = Journal::open(disk, Path::new(DIRECTORY), options)?;
        self.journal = Some(journal);
        self.check(recovered.torn.as_ref())?;
        let journal = self.journal.as_ref().expect("it is open");
        let positions = journal.positions();
        if recovered.last != positions.last || positions.synced != positions.last.seq {
            return wrong(format!("{recovered:?}, but {positions:?}"));
        }
        self.last = positions.last;
        let len = index(positions.last.seq);
        // What is there now is on stable storage, and what is not does not come back.
        self.change(|state| {
            state.is_founded = true;
            let gone = state.may.split_off(len);
            let kept = state.must_or_kept.saturating_sub(len).min(gone.len());
            state.kept.extend(&gone[..kept]);
            (state.must, state.must_or_kept) = (len, 0);
            state.promised = positions.promised;
            state.may_promise = positions.promised;
        });
        Ok(())
    }

    fn check(&self, torn: Option<&TornTail>) -> Result<(), Stop> {
        let state = &self.ledger.current;
        let journal = self.journal.as_ref().expect("it is open");
        let positions = journal.positions();
        let (first, last) = (index(positions.first), index(positions.last.seq));
        if last < state.must {
            let (lost, must) = (last + 1, state.must);
            return wrong(format!("entries {lost} to {must} were synced ({torn:?})"));
        }
        if last > state.may.len() {
            return wrong(format!("{last} entries of {}", state.may.len()));
        }
        if first > state.released + 1 {
            return wrong(format!("{first} is the first, released {}", state.released));
        }
        let entries = journal.reader().read(positions.first, u64::MAX);
        let entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
        let digests = entries.iter().map(|entry| entry.header().digest.0);
        if !digests.eq(state.may[first - 1..last].iter().copied()) {
            return wrong("other entries than were appended".to_owned());
        }
        for seq in first - 1..=last + 1 {
            let point = journal.point_at(Seq(seq as u64))?;
            let found = point.map(|point| point.digest.0);
            let expected = match seq.checked_sub(1) {
                None => Some(Point::start(HISTORY).digest.0),
                Some(at) => state.may[..last].get(at).copied(),
            };
            if found != expected {
                return wrong(format!("digest at {seq}"));
            }
        }
        if positions.committed.0 > state.committed {
            return wrong(format!("{} committed", positions.committed));
        }
        if ![state.promised, state.may_promise].contains(&positions.promised) {
            return wrong(format!("{} promised", positions.promised));
        }
        self.check_epochs(journal, last)?;
        self.check_kept(last)
    }

    /// The table has all epochs, also those of released entries.
    fn check_epochs(&self, journal: &Journal, last: usize) -> Result<(), Stop> {
        let mut expected: Vec<EpochRow> = Vec::new();
        for entry in &self.ledger.all_entries(&self.ledger.current)[..last] {
            let EntryHeader {
                epoch, seq, tid, ..
            } = *entry.header();
            let tids = (tid != Tid::ZERO).then_some((tid, tid));
            match expected.last_mut().filter(|row| row.epoch == epoch) {
                Some(row) => {
                    let first = row.tids.or(tids).map(|tids| tids.0);
                    row.tids = first.zip(tids.or(row.tids).map(|tids| tids.1));
                }
                None => expected.push(EpochRow {
                    epoch,
                    first: seq,
                    tids,
                }),
            }
        }
        let found = journal.epochs();
        if found.rows() != expected {
            return wrong(format!("epochs {found:?}, expected {expected:?}"));
        }
        Ok(())
    }

    /// What was cut is in files of its own.
    fn check_kept(&self, last: usize) -> Result<(), Stop> {
        let state = &self.ledger.current;
        let cut_now = state.may.get(last..state.must_or_kept).unwrap_or(&[]);
        let wanted: Vec<_> = state.kept.iter().chain(cut_now).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let found = self.diverged();
        let missing = wanted.iter().filter(|digest| !found.contains(**digest));
        match missing.count() {
            0 => Ok(()),
            count => wrong(format!("{count} entries were cut and are not kept")),
        }
    }

    /// Digests of the entries in files of what was cut, as a tool finds them.
    fn diverged(&self) -> Vec<[u8; 32]> {
        let mut found = Vec::new();
        for (path, contents) in self.disk.model().shown() {
            let name = path.file_name().expect("a name").to_string_lossy();
            if !(name.starts_with("diverged-n") && name.ends_with(".journal")) {
                continue;
            }
            let mut decoder = Decoder::new();
            let mut last = None;
            for piece in contents.chunks(1000) {
                decoder.feed(piece);
                while let Some(item) = decoder.poll() {
                    match item {
                        Item::Entry {
                            header, is_checked, ..
                        } => last = is_checked.then_some(header.digest.0),
                        Item::End { is_whole: true } => found.extend(last),
                        Item::Garbage { .. } => return Vec::new(),
                        _ => {}
                    }
                }
            }
        }
        found
    }

    pub(crate) fn kill(&mut self) {
        self.job = None;
        self.journal = None;
    }

    pub(crate) fn close(&mut self) -> Result<(), Stop> {
        let journal = self.journal.take().expect("it is open");
        journal.close()?;
        self.synced();
        Ok(())
    }

    /// Appends a group of entries: the lengths of their bodies, and what they are made of.
    pub(crate) fn append(&mut self, group: &[(usize, u8)]) -> Result<(), Stop> {
        let epoch = self.journal().positions().promised;
        let epoch = epoch.max(self.last.epoch);
        let mut last = self.last;
        let mut entries = Vec::new();
        for (len, content) in group {
            // Zeros are what nobody can tell from what was never written.
            let fill = |random: &mut Random| match content {
                0 => 0,
                _ => random.next() as u8,
            };
            let body: Vec<u8> = (0..*len).map(|_| fill(&mut self.random)).collect();
            let body = Bytes::from(body);
            let middle = len / 2;
            let body = vec![body.slice(..middle), body.slice(middle..)];
            let tid = match last.seq.0 % 3 {
                0 => Tid::ZERO,
                _ => Tid(1000 + last.seq.0),
            };
            let entry = Entry::new(&last, epoch, 1, tid, body).expect("short");
            last = entry.point();
            entries.push(entry);
        }
        self.entries.extend(entries.iter().cloned());
        let digests = entries.iter().map(|entry| entry.header().digest.0);
        self.change(|state| state.may.extend(digests));
        match self.journal().append(&entries) {
            // No more than that: it may be tried again.
            Err(JournalError::NoSpace { .. }) => self.journal().append(&entries)?,
            result => result?,
        }
        self.last = last;
        if self.is_hasty {
            self.synced();
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> Result<(), Stop> {
        self.journal().sync()?;
        self.synced();
        Ok(())
    }

    fn synced(&mut self) {
        let synced = index(self.last.seq);
        self.synced_upto(synced);
    }

    fn synced_upto(&mut self, synced: usize) {
        self.change(|state| state.must = state.must.max(synced));
        let shown = self.disk.model().shown();
        let segments = shown
            .keys()
            .filter(|path| path.to_string_lossy().ends_with(".segment"));
        self.ledger.seen.segments = self.ledger.seen.segments.max(segments.count());
    }

    pub(crate) fn begin_sync(&mut self) {
        self.job = self.journal().begin_sync();
    }

    pub(crate) fn end_sync(&mut self) -> Result<(), Stop> {
        let Some(job) = self.job.take() else {
            return wrong("nothing to sync".to_owned());
        };
        let synced = job.run()?;
        self.journal().on_synced(synced);
        let positions = self.journal().positions();
        if positions.synced < positions.last.seq {
            self.ledger.seen.overlapping += 1;
        }
        self.synced_upto(index(positions.synced));
        Ok(())
    }

    pub(crate) fn promise(&mut self) -> Result<(), Stop> {
        let counter = self.journal().positions().promised.counter + 1;
        let node = NodeId::new(["n1", "n2"][self.random.below(2)]).unwrap();
        let epoch = Epoch { counter, node };
        self.change(|state| state.may_promise = epoch);
        match self.journal().promise(epoch) {
            // No more than that: it may be tried again.
            Err(JournalError::NoSpace { .. }) => self.journal().promise(epoch)?,
            result => result?,
        }
        self.change(|state| state.promised = epoch);
        Ok(())
    }

    /// Notes that all but the last ones are committed.
    pub(crate) fn note(&mut self, but: u64) -> Result<(), Stop> {
        let committed = self.last.seq.0.saturating_sub(but);
        self.change(|state| state.committed = state.committed.max(committed));
        match self.journal().note_committed(Seq(committed)) {
            // No more than that: it may be tried again.
            Err(JournalError::NoSpace { .. }) => self.journal().note_committed(Seq(committed))?,
            result => result?,
        }
        Ok(())
    }

    /// Cuts so many entries.
    pub(crate) fn cut(&mut self, count: u64) -> Result<(), Stop> {
        let positions = self.journal().positions();
        let after = self.last.seq.0.saturating_sub(count);
        let after = Seq(after.max(positions.committed.0).max(positions.first.0 - 1));
        if after < positions.last.seq && after.0 > 0 {
            let below = self.journal().cut_after(Seq(after.0 - 1), after);
            if !matches!(below, Err(JournalError::Refused(_))) {
                return wrong(format!("{below:?} of what is committed"));
            }
        }
        let segments = |disk: &SimDisk| {
            let shown = disk.model().shown();
            let paths = shown.into_keys();
            let paths = paths.filter(|path| path.to_string_lossy().ends_with(".segment"));
            paths.count()
        };
        let before = segments(&self.disk);
        let len = index(after);
        // What is synced on the way is not lost either: it is in the log or in the file.
        self.change(|state| {
            state.must_or_kept = state.must;
            state.must = state.must.min(len);
        });
        let cut = match self.journal().cut_after(after, after) {
            // No more than that: it may be tried again.
            Err(JournalError::NoSpace { .. }) => self.journal().cut_after(after, after)?,
            result => result?,
        };
        let last = self.journal().positions().last;
        if last.seq != after || cut.is_some_and(|cut| cut.first.seq != after.next()) {
            return wrong(format!("cut after {after}, but {last:?}"));
        }
        self.last = last;
        self.change(|state| {
            let gone = state.may.split_off(len);
            state.kept.extend(gone);
            (state.must, state.must_or_kept) = (len, 0);
        });
        self.ledger.seen.cuts += 1;
        self.ledger.seen.segments_cut += before.saturating_sub(segments(&self.disk));
        Ok(())
    }

    /// All has been applied.
    pub(crate) fn release(&mut self) -> Result<(), Stop> {
        let synced = self.journal().positions().synced;
        self.change(|state| {
            state.released = index(synced);
        });
        let released = match self.journal().release(synced) {
            // No more than that: it may be tried again.
            Err(JournalError::NoSpace { .. }) => self.journal().release(synced)?,
            result => result?,
        };
        self.ledger.seen.released += released;
        let first = self.journal().positions().first;
        let bytes = self.disk.model().shown();
        let bytes = bytes
            .iter()
            .filter(|(path, _)| path.to_string_lossy().ends_with(".segment"));
        let bytes: usize = bytes.map(|(_, contents)| contents.len()).sum();
        if released > 0 && (bytes as u64) < WINDOW_LEN {
            return wrong(format!("{bytes} bytes are left from {first} on"));
        }
        self.change(|state| state.released = index(first) - 1);
        Ok(())
    }

    /// Begins anew behind entries that came in another way.
    pub(crate) fn begin_behind(&mut self) -> Result<(), Stop> {
        let mut last = self.last;
        let mut epochs = self.journal().epochs().rows().to_vec();
        let node = NodeId::new("n3").unwrap();
        let counter = last.epoch.counter + 1;
        let epoch = Epoch { counter, node };
        for _ in 0..3 {
            let entry = Entry::new(&last, epoch, 1, Tid(77), Vec::new()).expect("short");
            last = entry.point();
            self.entries.push(entry);
        }
        epochs.push(EpochRow {
            epoch,
            first: self.last.seq.next(),
            tids: Some((Tid(77), Tid(77))),
        });
        let digests = self.entries[self.entries.len() - 3..].iter();
        let digests: Vec<_> = digests.map(|entry| entry.header().digest.0).collect();
        self.change(|state| {
            state.may.extend(digests);
            state.released = index(last.seq);
        });
        let early = self.last;
        let refused = self.journal().begin_behind(early, &[]);
        if !matches!(refused, Err(JournalError::Refused(_))) {
            return wrong(format!("{refused:?} of what is there"));
        }
        self.journal().begin_behind(last, &epochs)?;
        self.last = last;
        self.change(|state| state.must = index(last.seq));
        Ok(())
    }

    /// After a failure: everything is refused.
    pub(crate) fn try_everything(&mut self) -> Result<(), String> {
        let last = self.last;
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        let last_of_journal = journal.positions().last;
        let epoch = Epoch {
            counter: u64::MAX,
            node: NodeId::NONE,
        };
        let body = vec![Bytes::from_static(b"x")];
        let entry = Entry::new(&last_of_journal, epoch, 1, Tid::ZERO, body).expect("short");
        let results = [
            journal.append(&[entry]),
            journal.sync(),
            journal.promise(epoch),
            journal.note_committed(last.seq),
            journal.cut_after(Seq(0), Seq(0)).map(|_| ()),
            journal.release(last.seq).map(|_| ()),
            journal.begin_behind(
                Point {
                    seq: Seq(u64::MAX),
                    ..last
                },
                &[],
            ),
        ];
        match results.iter().position(Result::is_ok) {
            Some(at) => Err(format!("call {at} went well after a failure")),
            None => Ok(()),
        }
    }
}

fn index(seq: Seq) -> usize {
    usize::try_from(seq.0).expect("few entries")
}

fn wrong<T>(what: String) -> Result<T, Stop> {
    Err(Stop::Wrong(what))
}
