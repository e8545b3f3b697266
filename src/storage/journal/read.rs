//! Reading the log, beside writing and in any thread.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, TryLockError};

use bytes::Bytes;

use super::error::{Fault, JournalError, Refusal};
use super::format::{ENTRY_HEADER_LEN, EntryHeader, Place, Point};
use super::{Log, Shared};
use crate::entry::Entry;
use crate::ids::Seq;
use crate::storage::window::Window;

/// Bytes read at once.
const WINDOW_LEN: usize = 256 * 1024;

/// Reads entries. Clones are cheap, and each may be in another thread.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The log, if nobody has it at this moment.
    pub(super) fn try_log(&self) -> Option<MutexGuard<'_, Log>> {
        match self.shared.log.try_lock() {
            Ok(log) => Some(log),
            Err(TryLockError::Poisoned(log)) => Some(log.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The entries from `from` on, as far as they are there, synced or not. It ends when the bodies
    /// that it has given out are `len_max` bytes together, but not before the first.
    pub fn read(&self, from: Seq, len_max: u64) -> Entries {
        Entries {
            shared: self.shared.clone(),
            cuts: self.shared.log().cuts,
            next: from.max(Seq(1)),
            len_left: Some(len_max),
            part: None,
        }
    }

    /// The headers of entries of one segment, from its first on.
    pub(super) fn headers(&self, from: Seq, to: Seq) -> Result<Vec<EntryHeader>, JournalError> {
        let mut entries = self.read(from, 0);
        let mut headers = Vec::new();
        while entries.next <= to {
            let Some((header, part)) = entries.next_header()? else {
                break;
            };
            part.pass(&header);
            headers.push(header);
            entries.next = header.seq.next();
        }
        Ok(headers)
    }

    /// See [`Journal::point_at`](super::Journal::point_at).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn point_at(&self, seq: Seq) -> Result<Option<Point>, JournalError> {
        {
            let log = self.shared.log();
            let befores = log.segments.iter().map(|segment| segment.header.before);
            let lasts = log.segments.iter().map(|segment| segment.last);
            if let Some(point) = befores.chain(lasts).find(|point| point.seq == seq) {
                return Ok(Some(point));
            }
        }
        match self.read(seq, 0).next_header() {
            Ok(header) => Ok(header.map(|(header, ..)| header.point())),
            Err(JournalError::Refused(Refusal::Released { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// See [`Reader::read`]. After an error there are no more.
#[derive(Debug)]
pub struct Entries {
    shared: Arc<Shared>,
    /// How often the log had been cut when it began.
    cuts: u64,
    next: Seq,
    /// None if it has ended.
    len_left: Option<u64>,
    part: Option<Part>,
}

/// The part of a segment that is being read.
#[derive(Debug)]
struct Part {
    window: Window,
    path: PathBuf,
    /// Of the entry that is next.
    place: Place,
    seq: Seq,
    /// What is behind this is not looked at: it may be half written.
    end: u64,
}

impl Entries {
    /// The header of the next entry and the part that it is in; `None` if there is none yet.
    fn next_header(&mut self) -> Result<Option<(EntryHeader, &mut Part)>, JournalError> {
        if self
            .part
            .as_ref()
            .is_none_or(|part| part.place.pos >= part.end)
        {
            self.part = self.locate()?;
        }
        let Some(part) = &mut self.part else {
            return Ok(None);
        };
        loop {
            let header = part.header()?;
            if header.seq >= self.next {
                break Ok(Some((header, part)));
            }
            part.pass(&header);
        }
    }

    fn locate(&self) -> Result<Option<Part>, JournalError> {
        let log = self.shared.log();
        if log.cuts != self.cuts {
            return Err(Refusal::Cut.into());
        }
        let first = log.segments.front().map(|segment| segment.header.first());
        if let Some(first) = first.filter(|first| self.next < *first) {
            return Err(Refusal::Released { first }.into());
        }
        let after = log.segments.partition_point(|it| it.last.seq < self.next);
        let Some(segment) = log.segments.get(after) else {
            return Ok(None);
        };
        let (seq, pos) = segment.nearest(self.next);
        Ok(Some(Part {
            window: Window::with_len(segment.file.clone(), WINDOW_LEN),
            path: segment.path.clone(),
            place: segment.place(pos),
            seq,
            end: segment.end,
        }))
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, JournalError> {
        let Some((header, part)) = self.next_header()? else {
            return Ok(None);
        };
        let entry = part.entry(&header)?;
        part.pass(&header);
        self.next = header.seq.next();
        Ok(Some(entry))
    }

    /// What goes wrong while the log is cut is no damage.
    fn blame_cut(&self, error: JournalError) -> JournalError {
        match error {
            JournalError::Damaged { .. } if self.shared.log().cuts != self.cuts => {
                Refusal::Cut.into()
            }
            error => error,
        }
    }
}

impl Part {
    fn header(&mut self) -> Result<EntryHeader, JournalError> {
        let pos = self.place.pos;
        let bytes = self
            .window
            .bytes(pos, ENTRY_HEADER_LEN)
            .map_err(JournalError::io("read", &self.path))?;
        let header = EntryHeader::decode(bytes, &self.place);
        let damaged = |fault| JournalError::damaged(&self.path, pos, self.seq, fault);
        let header = header.ok_or_else(|| damaged(Fault::Header))?;
        let fits = self.end.checked_sub(pos) >= Some(header.len_in_segment());
        if header.seq != self.seq || !fits {
            let found = header.seq;
            return Err(damaged(Fault::Order { found }));
        }
        Ok(header)
    }

    fn entry(&mut self, header: &EntryHeader) -> Result<Entry, JournalError> {
        let pos = self.place.pos;
        // A header that has been checked is of our making, and its length within bounds.
        let len = usize::try_from(header.body_len).unwrap_or(0);
        let body = self
            .window
            .copy(pos + ENTRY_HEADER_LEN as u64, len)
            .map_err(JournalError::io("read", &self.path))?;
        Entry::from_parts(*header, vec![Bytes::from(body)])
            .ok_or_else(|| JournalError::damaged(&self.path, pos, header.seq, Fault::Body))
    }

    fn pass(&mut self, header: &EntryHeader) {
        self.place.pos += header.len_in_segment();
        self.seq = header.seq.next();
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let len_left = self.len_left?;
        match self.next_entry() {
            Ok(entry) => {
                let entry = entry?;
                let body_len = entry.header().body_len;
                // At least one, and none behind one that was too much.
                self.len_left = len_left.checked_sub(body_len).filter(|left| *left > 0);
                Some(Ok(entry))
            }
            Err(error) => {
                self.len_left = None;
                Some(Err(self.blame_cut(error)))
            }
        }
    }
}
