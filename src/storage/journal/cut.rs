//! Entries that go: those that another epoch has replaced, at the end, and those that have been
//! applied long ago, at the beginning.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use log::{info, warn};

use super::error::{JournalError, Refusal};
use super::format::{EntryHeader, Place, Point, SEGMENT_HEADER_LEN, SegmentHeader};
use super::recover::begin_anew;
use super::segment::Segment;
use super::state::{EpochRow, EpochRows, Hint, Released, State as _, free_name};
use super::{Journal, Log, padding_behind};
use crate::entry::Entry;
use crate::ids::Seq;
use crate::storage::disk::{OpenMode, with_suffix};

/// What was cut from the end of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// The file that it was kept in: a segment.
    pub path: PathBuf,
    /// The first entry that was cut.
    pub first: Point,
    /// The last one.
    pub last: Point,
}

impl Journal {
    /// Cuts all entries behind `after`. What is cut is kept as `diverged-NODE-COUNTER-SEQ.journal`,
    /// named by the epoch and the number of its first entry; it is a segment like any other. When
    /// this returns it is on stable storage, and the log ends with `after` and on stable storage,
    /// too. `None` if there was nothing to cut.
    ///
    /// A crash leaves the log as it was, or without some of its last entries; then it has to be
    /// asked for again, and what is left is kept in a file of its own.
    ///
    /// # Errors
    ///
    /// [`Refusal::BelowCommit`] if more than that is committed, by this word or by what was noted
    /// before, and [`JournalError::NoSpace`] if what is cut cannot be kept: nothing was changed.
    /// After any other error the journal takes no more writes.
    pub fn cut_after(
        &mut self,
        after: Seq,
        committed: Seq,
    ) -> Result<Option<Diverged>, JournalError> {
        self.shared.check()?;
        let committed = committed
            .max(self.hint.committed)
            .max(self.released.through.seq)
            .max(Seq(self.first().0.saturating_sub(1)));
        if after < committed {
            return Err(Refusal::BelowCommit { after, committed }.into());
        }
        if after >= self.last.seq {
            return Ok(None);
        }
        // So that nothing of it is on its way to the disk.
        self.sync()?;
        let cut = self.keep_and_cut(after);
        let diverged = self.shared.latch(cut)?;
        warn!(
            "journal: cut entries {} to {} (kept as {})",
            diverged.first.seq,
            diverged.last.seq,
            diverged.path.display()
        );
        Ok(Some(diverged))
    }

    fn keep_and_cut(&mut self, after: Seq) -> Result<Diverged, JournalError> {
        let missing = |path: PathBuf| JournalError::Missing { path };
        let point = self.point_at(after)?;
        let point = point.ok_or_else(|| missing(self.directory.clone()))?;
        let diverged = self.keep(&point)?;
        // Before anything is cut: else what is not there would be taken for lost.
        let noted = self.save_hint(Hint {
            synced: self.hint.synced.min(after),
            ..self.hint
        });
        if let Err(error) = noted {
            // It is kept anew when this is asked for again.
            self.drop_kept(&error, &diverged.path)?;
            return Err(error);
        }
        let (gone, last) = self.forget_behind(after)?;
        self.last = point;
        self.synced = after;
        // The last first, each for good before the next: what a crash leaves has no gap.
        for segment in gone.iter().rev() {
            self.disk
                .remove(&segment.path)
                .map_err(JournalError::io("remove", &segment.path))?;
        }
        let io = |action| JournalError::io(action, &last.path);
        last.file.set_len(last.end).map_err(io("cut"))?;
        last.file.sync().map_err(io("sync"))?;
        Ok(diverged)
    }

    /// For lack of room nothing is cut: what was kept so far would only take of it.
    fn drop_kept(&self, error: &JournalError, path: &Path) -> Result<(), JournalError> {
        match error {
            JournalError::NoSpace { .. } => self
                .disk
                .remove(path)
                .map_err(JournalError::io("remove", path)),
            _ => Ok(()),
        }
    }

    /// Copies the entries behind `before` to a segment of their own.
    fn keep(&self, before: &Point) -> Result<Diverged, JournalError> {
        let mut entries = self.reader().read(before.seq.next(), u64::MAX).peekable();
        let first = match entries.peek() {
            Some(Ok(entry)) => entry.point(),
            _ => *before,
        };
        let name = format!(
            "diverged-{}-{}-{}",
            first.epoch.node, first.epoch.counter, first.seq
        );
        let path = free_name(&*self.disk, &self.directory, &name, ".journal");
        let new = with_suffix(&path, ".new");
        let last = self.last;
        let io = |action| JournalError::io(action, &new);
        let kept = self
            .copy_behind(before, entries, &new)
            .and_then(|()| self.disk.rename(&new, &path).map_err(io("rename")));
        if let Err(error) = kept.map_err(JournalError::full) {
            self.drop_kept(&error, &new)?;
            return Err(error);
        }
        self.disk
            .sync_directory_of(&path)
            .map_err(io("sync the directory of"))?;
        Ok(Diverged { path, first, last })
    }

    /// Writes entries that follow `before` to a file, which is on stable storage when this returns.
    fn copy_behind(
        &self,
        before: &Point,
        entries: impl Iterator<Item = Result<Entry, JournalError>>,
        new: &Path,
    ) -> Result<(), JournalError> {
        let io = |action| JournalError::io(action, new);
        self.disk.discard(new).map_err(io("remove"))?;
        let file = self.disk.open(new, OpenMode::CreateNew);
        let file = file.map_err(io("create"))?;
        let header = SegmentHeader {
            history: self.identity.history,
            disk: self.identity.disk,
            before: *before,
        };
        file.write_at(&mut [IoSlice::new(&header.encode())], 0)
            .map_err(io("write"))?;
        let mut place = Place {
            disk: header.disk,
            first: header.first(),
            pos: SEGMENT_HEADER_LEN as u64,
        };
        for entry in entries {
            let entry = entry?;
            // All of it was synced, which is of no importance any more.
            let synced = before.seq;
            let header = EntryHeader {
                synced,
                ..*entry.header()
            };
            let bytes = header.encode(&place);
            let mut bufs = vec![IoSlice::new(&bytes)];
            bufs.extend(entry.body().iter().map(|piece| IoSlice::new(piece)));
            bufs.push(IoSlice::new(padding_behind(&header)));
            file.write_at(&mut bufs, place.pos).map_err(io("write"))?;
            place.pos += header.len_in_segment();
        }
        // Before the rename: else a crash could leave the name on a file without contents.
        file.sync().map_err(io("sync"))
    }

    /// Takes the entries behind `after` out of what readers see. The segments that go as a whole,
    /// and the one that is the last then, which is longer than it should be.
    fn forget_behind(&self, after: Seq) -> Result<(Vec<Segment>, Segment), JournalError> {
        let kept = self.headers_upto(after)?;
        let mut log = self.shared.log();
        let Log { segments, cuts } = &mut *log;
        *cuts += 1;
        let goes = |segment: &Segment| segment.header.before.seq >= after;
        let first_gone = segments.partition_point(|segment| !goes(segment)).max(1);
        let gone = segments.split_off(first_gone.min(segments.len()));
        let Some(last) = segments.back_mut() else {
            let path = self.directory.clone();
            return Err(JournalError::Missing { path });
        };
        last.forget_entries();
        for header in &kept {
            if header.seq <= self.released.through.seq {
                last.note_released(header);
            } else {
                last.note(header);
            }
        }
        Ok((gone.into(), last.clone()))
    }

    /// The headers of the entries up to this one in the segment that it is in, or ends.
    fn headers_upto(&self, after: Seq) -> Result<Vec<EntryHeader>, JournalError> {
        let first = {
            let log = self.shared.log();
            let at = log.segments.partition_point(|it| it.last.seq < after);
            let segment = log.segments.get(at).filter(|it| it.contains(after));
            segment.map(|segment| segment.header.first())
        };
        let Some(first) = first else {
            return Ok(Vec::new());
        };
        self.reader().headers(first, after)
    }

    /// Begins the log anew behind a copy of the database that is on stable storage, further than
    /// the log goes: as [`Create::behind`](super::Create::behind), but what was promised stays. All
    /// entries go; those that are not in the copy have to be cut before, so that they are kept.
    ///
    /// # Errors
    ///
    /// [`Refusal::Order`] if the log goes as far as that: nothing was changed. After any other
    /// error the journal takes no more writes.
    pub fn begin_behind(&mut self, base: Point, epochs: &[EpochRow]) -> Result<(), JournalError> {
        self.shared.check()?;
        let (found, expected) = (base.seq, self.last.seq.next());
        if found < expected {
            return Err(Refusal::Order { found, expected }.into());
        }
        let begun = self.replace_log(base, epochs);
        self.shared.latch(begun)
    }

    fn replace_log(&mut self, base: Point, epochs: &[EpochRow]) -> Result<(), JournalError> {
        let (disk, of) = (&*self.disk, self.identity.disk);
        let mut released = Released {
            through: base,
            epochs: EpochRows::of(epochs),
            is_anew: true,
        };
        // From here on opening does the rest.
        released.save(disk, &self.directory, of)?;
        let (directory, identity) = (&self.directory, &self.identity);
        let segment = begin_anew(disk, directory, identity, &mut released, self.segment_len);
        let segment = segment.map_err(|error| match error {
            // The log is gone: it cannot be tried again as if nothing had happened.
            JournalError::NoSpace { path, source } => JournalError::io("begin", &path)(source),
            error => error,
        })?;
        let mut log = self.shared.log();
        log.cuts += 1;
        log.segments = [segment].into();
        drop(log);
        self.released = released;
        self.last = base;
        self.synced = base.seq;
        info!("journal: begins anew behind entry {}", base.seq);
        Ok(())
    }

    /// Removes segments whose entries have all been applied, up to `applied`, which must be on
    /// stable storage in Data.fs; but keeps as many bytes as [`Options`](super::Options) say. How
    /// many segments went.
    ///
    /// # Errors
    ///
    /// [`JournalError::NoSpace`]: nothing was removed, and the journal may be used. After any other
    /// error it takes no more writes.
    pub fn release(&mut self, applied: Seq) -> Result<usize, JournalError> {
        self.shared.check()?;
        let released = self.release_segments(applied.min(self.synced));
        self.shared.latch(released)
    }

    fn release_segments(&mut self, applied: Seq) -> Result<usize, JournalError> {
        let gone: Vec<Segment> = {
            let log = self.shared.log();
            let mut len: u64 = log.segments.iter().map(|segment| segment.end).sum();
            let others = log.segments.len().saturating_sub(1);
            let old = log.segments.iter().take(others).take_while(|segment| {
                len -= segment.end;
                segment.last.seq <= applied && len >= self.window_len
            });
            old.cloned().collect()
        };
        let Some(last) = gone.last() else {
            return Ok(0);
        };
        // Before they go: then opening knows that they are to be missing, and what they had.
        if last.last.seq > self.released.through.seq {
            let mut epochs = self.released.epochs.clone();
            gone.iter()
                .for_each(|segment| epochs.append(&segment.epochs));
            let through = last.last;
            let released = Released {
                through,
                epochs,
                is_anew: false,
            };
            let saved = released.save(&*self.disk, &self.directory, self.identity.disk);
            saved.map_err(JournalError::full)?;
            self.released = released;
        }
        // The oldest first, each for good before the next: what a crash leaves has no gap.
        for segment in &gone {
            self.shared.log().segments.pop_front();
            self.disk
                .remove(&segment.path)
                .map_err(JournalError::io("remove", &segment.path))?;
        }
        info!("journal: released all up to entry {}", last.last.seq);
        Ok(gone.len())
    }
}
