//! The log of proposals, beside Data.fs: what a node acknowledges stands here first, and goes into
//! Data.fs when it is committed.
//!
//! A [`Journal`] knows entries by their numbers, epochs and digests, and nothing of what they mean;
//! it has no clock, no threads and no randomness of its own. All its methods may wait for the disk.
//!
//! ```text
//!   append -> written -> begin_sync -> (a worker: SyncJob::run) -> on_synced -> synced
//!                ^                                                     |
//!                +---- the next group may be written meanwhile --------+
//! ```
//!
//! The manual has the format, and what a crash leaves: [`journal`](crate::manual::journal).
//!
//! | part | for |
//! |---|---|
//! | `format` | headers, digests; a decoder for tools |
//! | `state` | the small files: identity, promise, epochs, marks |
//! | `segment` | one file of the log |
//! | `recover` | opening: what is whole, torn, or damaged |
//! | `read` | reading, beside writing and in other threads |
//! | `cut` | cutting what diverged, and releasing what is old |
//! | `extent` | how much of it there is, for people |
//! | `retire` | a journal that makes room for one of another history |

mod cut;
mod error;
mod extent;
pub mod format;
mod read;
mod recover;
mod retire;
mod segment;
pub mod state;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::ids::{Epoch, Seq};
use crate::limits::{JOURNAL_SEGMENT_LEN_DEFAULT, JOURNAL_WINDOW_LEN_DEFAULT};
use crate::storage::disk::{Disk, File};

pub use crate::entry::Entry;
pub use cut::Diverged;
pub use error::{Fault, JournalError, Refusal};
pub use extent::{Extent, Stretch};
pub use format::Point;
pub use read::{Entries, Reader};
pub use recover::{Create, Recovered, TornTail};
pub use state::{EpochRow, EpochRows, Identity, StateFile};

use format::{ALIGNMENT, EntryHeader, Place, SegmentHeader};
use segment::Segment;
use state::{Hint, Promised, Released, State as _};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Made if there is no journal yet; `None` if there must be one.
    pub create: Option<Create>,
    /// Bytes after which another segment is begun.
    pub segment_len: u64,
    /// Bytes that are kept for other nodes, though all of it has been applied.
    pub window_len: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            create: None,
            segment_len: JOURNAL_SEGMENT_LEN_DEFAULT,
            window_len: JOURNAL_WINDOW_LEN_DEFAULT,
        }
    }
}

/// Where a journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The first entry that can be read; the one behind `last` if there is none.
    pub first: Seq,
    /// The last entry, on stable storage or not.
    pub last: Point,
    /// The last entry that is on stable storage, with all before it.
    pub synced: Seq,
    /// What was last noted as committed.
    pub committed: Seq,
    /// The highest epoch promised.
    pub promised: Epoch,
}

/// The log of one node. One thread writes; [`Reader`]s are for any.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    identity: Identity,
    segment_len: u64,
    window_len: u64,
    shared: Arc<Shared>,
    released: Released,
    promised: Epoch,
    /// What the file says.
    hint: Hint,
    last: Point,
    synced: Seq,
    /// Holds the lock on the directory.
    _lock: Arc<dyn File>,
}

/// What readers and syncs in other threads see of it.
#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    /// What has gone wrong first.
    failed: OnceLock<String>,
    /// Held during a sync. The system tells of a failure once: of two syncs at the same time the
    /// second would succeed, and what it was for be lost.
    syncing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Log {
    /// Oldest first. There is always one.
    segments: VecDeque<Segment>,
    /// How often it was cut.
    cuts: u64,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        // Nothing of ours panics with the log half changed.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), JournalError> {
        self.failed.get().map_or(Ok(()), |first| {
            let first = first.clone();
            Err(JournalError::Failed { first })
        })
    }

    /// After a failed change nothing more is written: nobody knows what is there.
    fn latch<T>(&self, result: Result<T, JournalError>) -> Result<T, JournalError> {
        result.inspect_err(|error| {
            if !matches!(
                error,
                JournalError::NoSpace { .. } | JournalError::Refused(_)
            ) {
                // Another thread may have been first; its failure is as good.
                let _ = self.failed.set(error.to_string());
            }
        })
    }

    fn sync(&self, file: &dyn File, path: &Path) -> Result<(), JournalError> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        self.latch(file.sync().map_err(JournalError::io("sync", path)))
    }
}

/// A sync that a worker may run while the next group is written.
#[derive(Debug)]
pub struct SyncJob {
    shared: Arc<Shared>,
    file: Arc<dyn File>,
    path: PathBuf,
    upto: Seq,
    cuts: u64,
}

/// What a [`SyncJob`] has brought to stable storage.
#[derive(Clone, Copy, Debug)]
pub struct Synced {
    upto: Seq,
    cuts: u64,
}

impl SyncJob {
    /// Waits for the disk. The result is for [`Journal::on_synced`].
    ///
    /// # Errors
    ///
    /// The journal takes no more writes.
    pub fn run(self) -> Result<Synced, JournalError> {
        self.shared.sync(&*self.file, &self.path)?;
        let Self { upto, cuts, .. } = self;
        Ok(Synced { upto, cuts })
    }
}

impl Journal {
    /// Whose it is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    pub fn positions(&self) -> Positions {
        Positions {
            first: self.first(),
            last: self.last,
            synced: self.synced,
            committed: self.hint.committed,
            promised: self.promised,
        }
    }

    fn first(&self) -> Seq {
        let log = self.shared.log();
        let first = log.segments.front().map(|segment| segment.header.first());
        first.unwrap_or(self.last.seq.next())
    }

    /// The epochs of the whole log, those of released entries included.
    pub fn epochs(&self) -> EpochRows {
        let mut epochs = self.released.epochs.clone();
        for segment in &self.shared.log().segments {
            epochs.append(&segment.epochs);
        }
        epochs
    }

    /// For reading, in any thread.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.clone())
    }

    /// Epoch and digest of an entry; `None` if it is not in the log any more, or not yet. Of the
    /// place that the log begins at they are known, too.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or is damaged there.
    pub fn point_at(&self, seq: Seq) -> Result<Option<Point>, JournalError> {
        self.reader().point_at(seq)
    }

    /// Appends entries that are to be synced together. They are not on stable storage yet; see
    /// [`Self::begin_sync`]. If a new segment is begun, all before them is synced first.
    ///
    /// # Errors
    ///
    /// [`Refusal::Order`] and [`Refusal::Chain`] if they do not continue the log, and
    /// [`JournalError::NoSpace`]: nothing was written, and the journal may be used. After any other
    /// error it takes no more writes.
    pub fn append(&mut self, group: &[Entry]) -> Result<(), JournalError> {
        self.shared.check()?;
        self.check_order(group)?;
        let Some(last) = group.last() else {
            return Ok(());
        };
        let len = group.iter().map(|entry| entry.header().len_in_segment());
        let len: u64 = len.sum();
        let end = self.shared.log().segments.back().map(|segment| segment.end);
        let is_empty = self.first_of_last() == self.last.seq.next();
        if !is_empty && end.is_none_or(|end| end + len > self.segment_len) {
            self.begin_segment()?;
        }
        let written = self.write(group, len);
        self.shared.latch(written)?;
        self.last = last.point();
        Ok(())
    }

    fn check_order(&self, group: &[Entry]) -> Result<(), Refusal> {
        let mut last = self.last;
        for header in group.iter().map(Entry::header) {
            let (found, expected) = (header.seq, last.seq.next());
            if found != expected {
                return Err(Refusal::Order { found, expected });
            }
            if header.previous != last.digest || header.epoch < last.epoch {
                return Err(Refusal::Chain { seq: found });
            }
            last = header.point();
        }
        Ok(())
    }

    fn first_of_last(&self) -> Seq {
        let log = self.shared.log();
        let last = log.segments.back();
        last.map_or(self.last.seq.next(), |segment| segment.header.first())
    }

    fn begin_segment(&mut self) -> Result<(), JournalError> {
        // Before the file is there: that one follows says that all of this one was synced.
        self.sync()?;
        let header = SegmentHeader {
            history: self.identity.history,
            disk: self.identity.disk,
            before: self.last,
        };
        let created = Segment::create(&*self.disk, &self.directory, header, self.segment_len);
        let segment = self.shared.latch(created)?;
        self.shared.log().segments.push_back(segment);
        Ok(())
    }

    /// Writes a group into the last segment, in one call of the disk.
    fn write(&self, group: &[Entry], len: u64) -> Result<(), JournalError> {
        let (file, path, start) = {
            let mut log = self.shared.log();
            let Some(segment) = log.segments.back_mut() else {
                let path = self.directory.clone();
                return Err(JournalError::Missing { path });
            };
            segment.reserve(segment.end + len)?;
            (segment.file.clone(), segment.path.clone(), segment.end)
        };
        let mut place = Place {
            disk: self.identity.disk,
            first: self.first_of_last(),
            pos: start,
        };
        let mut headers = Vec::with_capacity(group.len());
        for entry in group {
            let synced = self.synced;
            let header = EntryHeader {
                synced,
                ..*entry.header()
            };
            headers.push(header.encode(&place));
            place.pos += header.len_in_segment();
        }
        let mut bufs = Vec::new();
        for (header, entry) in headers.iter().zip(group) {
            bufs.push(IoSlice::new(header));
            bufs.extend(entry.body().iter().map(|piece| IoSlice::new(piece)));
            bufs.push(IoSlice::new(padding_behind(entry.header())));
        }
        // Readers do not wait for the disk, and see the entries when they are there.
        file.write_at(&mut bufs, start)
            .map_err(JournalError::io("write", &path))?;
        if let Some(segment) = self.shared.log().segments.back_mut() {
            group.iter().for_each(|entry| segment.note(entry.header()));
        }
        Ok(())
    }

    /// A sync of all that was appended; `None` if that is on stable storage. What is appended
    /// meanwhile says in its headers that this was not synced, which is the truth whatever becomes
    /// of it.
    pub fn begin_sync(&self) -> Option<SyncJob> {
        let log = self.shared.log();
        let segment = log.segments.back()?;
        (self.synced < self.last.seq).then(|| SyncJob {
            shared: self.shared.clone(),
            file: segment.file.clone(),
            path: segment.path.clone(),
            upto: self.last.seq,
            cuts: log.cuts,
        })
    }

    /// A [`SyncJob`] has done its work. Of a sync that began before the log was cut nothing is
    /// believed: other entries may stand there now.
    pub fn on_synced(&mut self, synced: Synced) {
        if synced.cuts == self.shared.log().cuts {
            self.synced = self.synced.max(synced.upto);
        }
    }

    /// Brings all that was appended to stable storage.
    ///
    /// # Errors
    ///
    /// The journal takes no more writes.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.shared.check()?;
        if let Some(job) = self.begin_sync() {
            let synced = job.run()?;
            self.on_synced(synced);
        }
        Ok(())
    }

    /// Promises an epoch; that is on stable storage when this returns. The same again is no change.
    ///
    /// # Errors
    ///
    /// [`Refusal::Promised`] if a higher one was promised. After any other error the promise may be
    /// there or not, and the journal takes no more writes.
    pub fn promise(&mut self, epoch: Epoch) -> Result<(), JournalError> {
        self.shared.check()?;
        let promised = self.promised;
        if epoch < promised {
            return Err(Refusal::Promised { epoch, promised }.into());
        }
        if epoch > promised {
            let saved = Promised(epoch).save(&*self.disk, &self.directory, self.identity.disk);
            // The old file is there, and the same can be tried again.
            self.shared.latch(saved.map_err(JournalError::full))?;
            self.promised = epoch;
        }
        Ok(())
    }

    /// Notes that all up to `committed` is committed, and what is synced; for now and then. It may
    /// be lost without harm, and tells opening which entries cannot be the torn end of the log.
    ///
    /// # Errors
    ///
    /// [`JournalError::NoSpace`]: it was not noted, and the journal may be used. After any other
    /// error it takes no more writes.
    pub fn note_committed(&mut self, committed: Seq) -> Result<(), JournalError> {
        self.shared.check()?;
        let hint = Hint {
            // A replica may hear of commits before its own sync is done.
            committed: committed.min(self.synced).max(self.hint.committed),
            synced: self.synced,
        };
        self.save_hint(hint)
    }

    fn save_hint(&mut self, hint: Hint) -> Result<(), JournalError> {
        if hint != self.hint {
            let saved = hint.save(&*self.disk, &self.directory, self.identity.disk);
            // The old file is there, and the same can be tried again.
            self.shared.latch(saved.map_err(JournalError::full))?;
            self.hint = hint;
        }
        Ok(())
    }

    /// Syncs, and notes that: damage anywhere is known for what it is when it is opened again.
    ///
    /// # Errors
    ///
    /// As of [`Self::sync`].
    pub fn close(mut self) -> Result<(), JournalError> {
        self.sync()?;
        match self.note_committed(self.hint.committed) {
            // It is for damage, and that it is missing harms nobody.
            Err(full @ JournalError::NoSpace { .. }) => {
                log::warn!("journal: its end is not noted: {full}")
            }
            noted => noted?,
        }
        Ok(())
    }
}

/// Zeros up to where the next entry begins.
fn padding_behind(header: &EntryHeader) -> &'static [u8] {
    const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
    let len = header.body_len.next_multiple_of(ALIGNMENT) - header.body_len;
    ZEROS
        .get(..usize::try_from(len).unwrap_or(0))
        .unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use std::thread;

    use bytes::Bytes;

    use super::*;
    use crate::ids::{DiskId, HistoryId, NodeId, Tid};
    use crate::storage::disk::OsDisk;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::testing::TestDir;

    fn options() -> Options {
        let identity = Identity {
            history: HistoryId([1; 16]),
            node: NodeId::new("n1").unwrap(),
            disk: DiskId([2; 16]),
        };
        Options {
            create: Some(Create::new(identity)),
            segment_len: 4096,
            window_len: 10_000,
        }
    }

    fn open(disk: &Arc<MemoryDisk>) -> Journal {
        Journal::open(disk.clone(), Path::new("journal"), options())
            .unwrap()
            .0
    }

    fn epoch(counter: u64) -> Epoch {
        let node = NodeId::new("n1").unwrap();
        Epoch { counter, node }
    }

    /// Entries that follow, with bodies of these lengths.
    fn entries(journal: &Journal, lens: &[usize]) -> Vec<Entry> {
        let mut last = journal.last;
        let entry = |len: &usize| {
            let body = vec![Bytes::from(vec![7; *len])];
            let entry = Entry::new(&last, epoch(1), 1, Tid(5), body).unwrap();
            last = entry.point();
            entry
        };
        lens.iter().map(entry).collect()
    }

    fn append(journal: &mut Journal, lens: &[usize]) {
        let group = entries(journal, lens);
        journal.append(&group).unwrap();
    }

    fn seqs(entries: Entries) -> Vec<u64> {
        entries.map(|entry| entry.unwrap().header().seq.0).collect()
    }

    #[test]
    fn what_does_not_continue_the_log_is_refused_and_changes_nothing() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        let group = entries(&journal, &[10, 20, 30]);
        journal.append(&group[..2]).unwrap();
        let before = journal.positions();
        let refused = |journal: &mut Journal, group: &[Entry]| match journal.append(group) {
            Err(JournalError::Refused(refusal)) => refusal,
            result => panic!("{result:?}"),
        };
        let (found, expected) = (Seq(2), Seq(3));
        let order = Refusal::Order { found, expected };
        assert_eq!(refused(&mut journal, &group[1..]), order);
        let (found, expected) = (Seq(3), Seq(4));
        let order = Refusal::Order { found, expected };
        let twice = [group[2].clone(), group[2].clone()];
        assert_eq!(refused(&mut journal, &twice), order);
        let (body, seq) = (Vec::new(), Seq(3));
        let mut other = journal.last;
        other.digest.0[0] ^= 1;
        let forked = Entry::new(&other, epoch(1), 1, Tid(5), body.clone()).unwrap();
        assert_eq!(refused(&mut journal, &[forked]), Refusal::Chain { seq });
        let early = Entry::new(&journal.last, epoch(0), 1, Tid(5), body).unwrap();
        assert_eq!(refused(&mut journal, &[early]), Refusal::Chain { seq });
        assert_eq!(journal.positions(), before);
        journal.append(&group[2..]).unwrap();
        journal.append(&[]).unwrap();
        assert_eq!(seqs(journal.reader().read(Seq(1), 1000)), [1, 2, 3]);
    }

    #[test]
    fn what_was_appended_is_read_in_other_threads_and_as_much_as_is_wanted() {
        let dir = TestDir::new();
        let disk = Arc::new(OsDisk::default());
        let (mut journal, recovered) =
            Journal::open(disk.clone(), &dir.path("journal"), options()).unwrap();
        assert!(recovered.is_new);
        let mut all = Vec::new();
        for number in 0..50 {
            let group = entries(&journal, &[number, 30 * number]);
            journal.append(&group).unwrap();
            all.extend(group);
        }
        // Not synced, and longer than a segment.
        let group = entries(&journal, &[100_000]);
        journal.append(&group).unwrap();
        all.extend(group);
        let reader = journal.reader();
        let found = thread::spawn(move || reader.read(Seq::ZERO, u64::MAX).collect::<Vec<_>>());
        let found = found.join().unwrap().into_iter();
        // Bodies are in one piece when they are read.
        let headers =
            |entries: &[Entry]| -> Vec<_> { entries.iter().map(|entry| *entry.header()).collect() };
        let found: Vec<Entry> = found.map(Result::unwrap).collect();
        assert_eq!(headers(&found), headers(&all));
        for (seq, len_max, expected) in [
            (1, 0, vec![1]),
            (97, 48 + 48 * 30, vec![97, 98]),
            (97, 48 + 48 * 30 + 1, vec![97, 98, 99]),
            (101, 10, vec![101]),
            (102, 10, vec![]),
        ] {
            assert_eq!(seqs(journal.reader().read(Seq(seq), len_max)), expected);
        }
        for entry in &all {
            let point = journal.point_at(entry.header().seq).unwrap();
            assert_eq!(point, Some(entry.point()));
        }
        assert_eq!(journal.point_at(Seq(102)).unwrap(), None);
        journal.close().unwrap();
        let (journal, recovered) = Journal::open(disk, &dir.path("journal"), options()).unwrap();
        assert!(!recovered.is_new);
        assert_eq!(recovered.last, all[100].point());
        assert_eq!(journal.positions().synced, Seq(101));
    }

    #[test]
    fn a_promise_is_kept_and_never_lowered() {
        let disk = Arc::new(MemoryDisk::new());
        let mut journal = open(&disk);
        journal.promise(epoch(7)).unwrap();
        journal.promise(epoch(7)).unwrap();
        let lower = journal.promise(epoch(6));
        assert!(matches!(
            lower,
            Err(JournalError::Refused(Refusal::Promised { .. }))
        ));
        drop(journal);
        assert_eq!(open(&disk).positions().promised, epoch(7));
    }

    #[test]
    fn a_directory_has_one_journal_at_a_time() {
        let disk = Arc::new(MemoryDisk::new());
        let journal = open(&disk);
        let again = Journal::open(disk.clone(), Path::new("journal"), options());
        assert!(matches!(again, Err(JournalError::Locked { .. })));
        drop(journal);
        open(&disk);
        let options = Options::default();
        let missing = Journal::open(disk, Path::new("elsewhere"), options);
        assert!(matches!(missing, Err(JournalError::Missing { .. })));
    }

    #[test]
    fn a_sync_that_began_before_a_cut_says_nothing_of_what_was_written_since() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        append(&mut journal, &[10, 10, 10]);
        let early = journal.begin_sync().unwrap().run().unwrap();
        journal.cut_after(Seq(1), Seq::ZERO).unwrap().unwrap();
        append(&mut journal, &[20, 20, 20]);
        journal.on_synced(early);
        assert_eq!(journal.positions().synced, Seq(1));
        let synced = journal.begin_sync().unwrap().run().unwrap();
        append(&mut journal, &[30]);
        journal.on_synced(synced);
        assert_eq!(journal.positions().synced, Seq(4));
    }

    #[test]
    fn readers_are_told_of_cuts_and_of_what_was_released() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        for _ in 0..12 {
            append(&mut journal, &[1500, 10]);
        }
        journal.sync().unwrap();
        let mut entries = journal.reader().read(Seq(1), u64::MAX);
        entries.next().unwrap().unwrap();
        assert_eq!(journal.release(Seq(1)).unwrap(), 0);
        assert!(journal.release(Seq(24)).unwrap() > 0);
        let first = journal.positions().first;
        assert!(first > Seq(2));
        // What it was in goes on.
        assert_eq!(entries.next().unwrap().unwrap().header().seq, Seq(2));
        let released = journal
            .reader()
            .read(Seq(1), 1)
            .next()
            .unwrap()
            .unwrap_err();
        let expected = Refusal::Released { first };
        assert!(matches!(released, JournalError::Refused(it) if it == expected));
        assert_eq!(journal.point_at(Seq(1)).unwrap(), None);
        let mut entries = journal.reader().read(first, u64::MAX);
        entries.next().unwrap().unwrap();
        journal.cut_after(Seq(20), Seq(20)).unwrap().unwrap();
        // To the end of the segment at most.
        let error = entries.find_map(Result::err).unwrap();
        assert!(
            matches!(error, JournalError::Refused(Refusal::Cut)),
            "{error}"
        );
        assert!(entries.next().is_none());
        assert_eq!(seqs(journal.reader().read(Seq(19), u64::MAX)), [19, 20]);
    }

    #[test]
    fn what_is_committed_or_was_released_is_never_cut() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        append(&mut journal, &[10; 8]);
        journal.sync().unwrap();
        let refused = |journal: &mut Journal, after, committed| {
            let cut = journal.cut_after(Seq(after), Seq(committed));
            matches!(cut, Err(JournalError::Refused(Refusal::BelowCommit { .. })))
        };
        assert!(refused(&mut journal, 3, 4));
        journal.note_committed(Seq(5)).unwrap();
        assert!(refused(&mut journal, 4, 0));
        assert_eq!(journal.cut_after(Seq(8), Seq(0)).unwrap(), None);
        let cut = journal.cut_after(Seq(5), Seq(5)).unwrap().unwrap();
        assert_eq!((cut.first.seq, cut.last.seq), (Seq(6), Seq(8)));
        assert_eq!(cut.path, Path::new("journal/diverged-n1-1-6.journal"));
    }

    #[test]
    fn what_is_not_synced_is_not_noted_as_committed() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        append(&mut journal, &[10, 10]);
        journal.sync().unwrap();
        append(&mut journal, &[10]);
        journal.note_committed(Seq(3)).unwrap();
        assert_eq!(journal.positions().committed, Seq(2));
    }

    #[test]
    fn what_was_noted_as_synced_and_is_cut_is_not_missed() {
        let disk = Arc::new(MemoryDisk::new());
        let mut journal = open(&disk);
        append(&mut journal, &[10; 5]);
        journal.sync().unwrap();
        journal.note_committed(Seq(2)).unwrap();
        journal.cut_after(Seq(3), Seq(2)).unwrap().unwrap();
        drop(journal);
        assert_eq!(open(&disk).positions().last.seq, Seq(3));
    }

    #[test]
    fn damage_that_could_be_a_missing_sector_is_known_by_what_comes_behind_it() {
        let disk = Arc::new(MemoryDisk::new());
        let mut journal = open(&disk);
        for byte in [0, 0] {
            let body = vec![Bytes::from(vec![byte; 1500])];
            let entry = Entry::new(&journal.last, epoch(1), 1, Tid(5), body).unwrap();
            journal.append(&[entry]).unwrap();
            journal.sync().unwrap();
        }
        drop(journal);
        let path = Path::new("journal/0000000000000001.segment");
        let mut bytes = disk.read(path).unwrap();
        bytes[1000] = 1;
        disk.replace(path, &[&bytes]).unwrap();
        let opened = Journal::open(disk, Path::new("journal"), options());
        let seq = match opened {
            Err(JournalError::Damaged { seq, .. }) => seq,
            result => panic!("{result:?}"),
        };
        assert_eq!(seq, Seq(1));
    }

    #[test]
    fn a_journal_may_begin_behind_a_copy_of_the_database() {
        let disk = Arc::new(MemoryDisk::new());
        let identity = Identity {
            history: HistoryId([1; 16]),
            node: NodeId::new("n2").unwrap(),
            disk: DiskId([3; 16]),
        };
        let base = Point {
            seq: Seq(1000),
            epoch: epoch(4),
            ..Point::start(identity.history)
        };
        let row = EpochRow {
            epoch: epoch(4),
            first: Seq(900),
            tids: Some((Tid(1), Tid(2))),
        };
        let options = || Options {
            create: Some(Create::behind(identity, base, &[row])),
            ..options()
        };
        let directory = Path::new("journal");
        let (mut journal, _) = Journal::open(disk.clone(), directory, options()).unwrap();
        let entry = Entry::new(&base, epoch(4), 1, Tid(3), Vec::new()).unwrap();
        journal.append(&[entry]).unwrap();
        drop(journal);
        let (journal, _) = Journal::open(disk, directory, options()).unwrap();
        let positions = journal.positions();
        assert_eq!((positions.first, positions.synced), (Seq(1001), Seq(1001)));
        assert_eq!(journal.point_at(Seq(1000)).unwrap(), Some(base));
        let tids = Some((Tid(1), Tid(3)));
        assert_eq!(journal.epochs().rows(), [EpochRow { tids, ..row }]);
    }
}
