//! One file of the log, as it is known while the journal is open.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::JournalError;
use super::format::{EntryHeader, Place, Point, SEGMENT_HEADER_LEN, SegmentHeader};
use super::state::EpochRows;
use crate::ids::{Seq, Tid};
use crate::limits::{JOURNAL_INDEX_STEP, JOURNAL_LATEST_MAX};
use crate::storage::disk::{Disk, File, OpenMode};

/// How the name of a segment ends; before it is the number of its first entry, in hexadecimal.
const SUFFIX: &str = ".segment";

/// A segment. Its file ends where its last entry does.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) header: SegmentHeader,
    /// Where the next entry goes.
    pub(super) end: u64,
    /// Its last entry, or the one that it follows.
    pub(super) last: Point,
    /// Of its entries that are not among the released ones.
    pub(super) epochs: EpochRows,
    /// Some entries and their positions, in order.
    index: Vec<Indexed>,
    /// The last entries, each with its end.
    latest: VecDeque<Indexed>,
    /// There is room for it up to here.
    allocated: u64,
}

/// A position of which it is known what stands there.
#[derive(Clone, Copy, Debug)]
struct Indexed {
    seq: Seq,
    pos: u64,
    tid: Tid,
}

impl Segment {
    /// One of which the header is known.
    pub(super) fn new(path: PathBuf, file: Arc<dyn File>, header: SegmentHeader) -> Self {
        Self {
            path,
            file,
            header,
            end: SEGMENT_HEADER_LEN as u64,
            last: header.before,
            epochs: EpochRows::default(),
            index: Vec::new(),
            latest: VecDeque::new(),
            allocated: 0,
        }
    }

    /// A new file with room for `len` bytes; it is on stable storage, with its name, when this
    /// returns. After [`JournalError::NoSpace`] there is none, and it may be tried again.
    pub(super) fn create(
        disk: &dyn Disk,
        directory: &Path,
        header: SegmentHeader,
        len: u64,
    ) -> Result<Self, JournalError> {
        let path = path_of(directory, header.first());
        // What an earlier attempt has left, or one that a crash has ended.
        disk.remove(&path)
            .map_err(JournalError::io("remove", &path))?;
        let file = disk
            .open(&path, OpenMode::CreateNew)
            .map_err(no_space_or("create", &path))?;
        let mut segment = Self::new(path, file, header);
        if let Err(error) = segment.reserve(len) {
            // On stable storage before the segment in front of it goes on: that a segment follows
            // says that all in front of it was synced.
            let path = &segment.path;
            disk.remove(path)
                .map_err(JournalError::io("remove", path))?;
            return Err(error);
        }
        let path = &segment.path;
        segment
            .file
            .write_at(&mut [IoSlice::new(&header.encode())], 0)
            .map_err(JournalError::io("write", path))?;
        let file = &segment.file;
        file.sync().map_err(JournalError::io("sync", path))?;
        disk.sync_directory_of(path)
            .map_err(JournalError::io("sync the directory of", path))?;
        Ok(segment)
    }

    /// Makes sure that there is room up to `end`.
    pub(super) fn reserve(&mut self, end: u64) -> Result<(), JournalError> {
        if end <= self.allocated {
            return Ok(());
        }
        let from = self.allocated.max(self.end);
        match self.file.allocate(from, end.saturating_sub(from)) {
            Ok(()) => self.allocated = end,
            // Then a full disk shows when something is written.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.allocated = u64::MAX,
            Err(error) => return Err(no_space_or("allocate", &self.path)(error)),
        }
        Ok(())
    }

    /// Where an entry at `pos` stands.
    pub(super) const fn place(&self, pos: u64) -> Place {
        Place {
            disk: self.header.disk,
            first: self.header.first(),
            pos,
        }
    }

    /// An entry has come at its end.
    pub(super) fn note(&mut self, header: &EntryHeader) {
        let is_far = |it: &Indexed| self.end - it.pos >= JOURNAL_INDEX_STEP;
        let EntryHeader { seq, tid, .. } = *header;
        if self.index.last().is_none_or(is_far) {
            let pos = self.end;
            self.index.push(Indexed { seq, pos, tid });
        }
        self.epochs.add(header.epoch, header.seq, header.tid);
        self.end += header.len_in_segment();
        if self.latest.len() == JOURNAL_LATEST_MAX {
            self.latest.pop_front();
        }
        let pos = self.end;
        self.latest.push_back(Indexed { seq, pos, tid });
        self.last = header.point();
    }

    /// As [`Self::note`], of an entry that is among the released ones.
    pub(super) fn note_released(&mut self, header: &EntryHeader) {
        let epochs = std::mem::take(&mut self.epochs);
        self.note(header);
        self.epochs = epochs;
    }

    /// Position of an entry at or before this one, and which it is; of the end of the header if
    /// there is none.
    pub(super) fn nearest(&self, seq: Seq) -> (Seq, u64) {
        let after = self.index.partition_point(|it| it.seq <= seq);
        let start = (self.header.first(), SEGMENT_HEADER_LEN as u64);
        let known = after.checked_sub(1).and_then(|at| self.index.get(at));
        known.map_or(start, |it| (it.seq, it.pos))
    }

    /// Where an entry of this segment, or the one in front of it, ends: of one of the last exactly,
    /// of an older one within [`JOURNAL_INDEX_STEP`].
    pub(super) fn end_of(&self, seq: Seq) -> u64 {
        let at = self.latest.partition_point(|it| it.seq < seq);
        match self.latest.get(at).filter(|it| it.seq == seq) {
            Some(known) => known.pos,
            None => self.nearest(seq.next()).1,
        }
    }

    /// The tid of the first transaction behind an entry, as far as it is known; of one that is not
    /// among the last, that of a later one.
    pub(super) fn tid_behind(&self, seq: Seq) -> Option<Tid> {
        let is_behind = |it: &&Indexed| it.seq > seq && it.tid != Tid::ZERO;
        let known = [
            self.index.iter().find(is_behind),
            self.latest.iter().find(is_behind),
        ];
        let first = known.into_iter().flatten().min_by_key(|it| it.seq);
        first.map(|it| it.tid)
    }

    /// Whether an entry with this number is in it.
    pub(super) fn contains(&self, seq: Seq) -> bool {
        self.header.before.seq < seq && seq <= self.last.seq
    }

    /// Forgets all entries: [`Self::note`] tells again which are there. What was allocated goes as
    /// the file is cut.
    pub(super) fn forget_entries(&mut self) {
        *self = Self::new(self.path.clone(), self.file.clone(), self.header);
    }
}

fn no_space_or(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::io(action, &path)(source).full()
}

/// The name of a segment.
pub(super) fn path_of(directory: &Path, first: Seq) -> PathBuf {
    directory.join(format!("{:016x}{SUFFIX}", first.0))
}

/// The first entry of the segment with this name; `None` if it is the name of something else.
pub(super) fn first_of(name: &OsStr) -> Option<Seq> {
    let digits = name.to_str()?.strip_suffix(SUFFIX)?;
    let first = u64::from_str_radix(digits, 16).ok()?;
    (digits == format!("{first:016x}")).then_some(Seq(first))
}
