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
//! | `entry` | one entry |
//! | `state` | the small files: identity, promise, epochs, marks |
//! | `segment` | one file of the log |
//! | `recover` | opening: what is whole, torn, or damaged |
//! | `read` | reading, beside writing and in other threads |
//! | `cut` | cutting what diverged, and releasing what is old |

mod cut;
mod entry;
mod error;
pub mod format;
mod read;
mod recover;
mod segment;
mod state;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::ids::{Epoch, Seq};
use crate::limits::{JOURNAL_SEGMENT_LEN_DEFAULT, JOURNAL_WINDOW_LEN_DEFAULT};
use crate::storage::disk::{Disk, File};

pub use cut::Diverged;
pub use entry::Entry;
pub use error::{Fault, JournalError, Refusal};
pub use format::Point;
pub use read::{Entries, Reader};
pub use recover::{Create, Recovered, TornTail};
pub use state::{EpochRow, EpochRows, Identity};

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
            self.shared.latch(saved)?;
            self.promised = epoch;
        }
        Ok(())
    }

    /// Notes that all up to `committed` is committed, and what is synced; for now and then. It may
    /// be lost without harm, and tells opening which entries cannot be the torn end of the log.
    ///
    /// # Errors
    ///
    /// The journal takes no more writes.
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
            self.shared.latch(saved)?;
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
        self.note_committed(self.hint.committed)
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
