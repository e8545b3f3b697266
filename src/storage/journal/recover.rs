//! Opening a journal: what is whole is believed, what a crash has torn is cut, and what was on
//! stable storage and is not what it was is damage.
//!
//! The last group may not have been synced when the power went, and then any sector of it may be
//! missing. What came before was synced, and the entries tell so: each has the number of the last
//! one that was on stable storage when it was written. So an entry that is not whole is *torn* only
//! if
//!
//! - nothing says that it was synced: no later entry of its segment, no later segment, no mark in
//!   a file of the state;
//! - and some sector of it, as far as it is the entry's, is all zeros, or not there: what was never
//!   written reads as that. If all of it was written and it is wrong nevertheless, it has rotted.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use log::{info, warn};

use super::error::{Fault, JournalError};
use super::format::{
    ALIGNMENT, ENTRY_HEADER_LEN, ENTRY_MAGIC, EntryHeader, Point, SEGMENT_HEADER_LEN, SegmentHeader,
};
use super::segment::{Segment, first_of, path_of};
use super::state::{EpochRow, EpochRows, Hint, Identity, Promised, Released, State, free_name};
use super::{Journal, Log, Options, Shared};
use crate::ids::{Epoch, Seq};
use crate::storage::disk::{Disk, File, OpenMode};
use crate::storage::window::Window;
use crate::storage::witness::Sectors;

/// Bytes read, and written again, at once.
const PIECE_LEN: usize = 1 << 20;

/// The file that is locked.
pub(super) const LOCK: &str = "lock";

/// How a new journal begins.
#[derive(Clone, Debug)]
pub struct Create {
    identity: Identity,
    base: Point,
    epochs: EpochRows,
}

impl Create {
    /// At the beginning of a history.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            base: Point::start(identity.history),
            epochs: EpochRows::default(),
        }
    }

    /// Behind what a copy of the database holds: `base` is the last entry that went into it, and
    /// `epochs` are those of the log up to there.
    pub fn behind(identity: Identity, base: Point, epochs: &[EpochRow]) -> Self {
        let epochs = EpochRows::of(epochs);
        Self {
            identity,
            base,
            epochs,
        }
    }
}

/// What opening has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Whose journal it is.
    pub identity: Identity,
    /// It was made just now.
    pub is_new: bool,
    /// The highest epoch promised.
    pub promised: Epoch,
    /// Committed, as far as was noted.
    pub committed: Seq,
    /// The last entry, which is on stable storage.
    pub last: Point,
    /// What a crash has left of the last group.
    pub torn: Option<TornTail>,
}

/// What was cut when the journal was opened. Nobody was told that it was here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The first entry that was not whole.
    pub first: Seq,
    /// Where it was kept, as it was.
    pub path: PathBuf,
    /// So many bytes.
    pub len: u64,
}

impl Journal {
    /// Opens the journal in a directory, or makes one there. All that it holds then is on stable
    /// storage.
    ///
    /// # Errors
    ///
    /// [`JournalError::Damaged`] names the place: the node must not vote with this disk any more,
    /// and nothing was changed. [`JournalError::Missing`] and [`JournalError::Locked`] say what
    /// they say.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        options: Options,
    ) -> Result<(Self, Recovered), JournalError> {
        let lock = lock(&*disk, directory, options.create.is_some())?;
        let (identity, is_new) = match Identity::load(&*disk, directory, None)? {
            Some((identity, of)) if identity.disk == of => (identity, false),
            Some(_) => {
                let path = directory.join(Identity::NAME);
                return Err(JournalError::damaged(&path, 0, Seq::ZERO, Fault::Foreign));
            }
            None => {
                let create = options.create.ok_or_else(|| missing(directory))?;
                found(&*disk, directory, &create, options.segment_len)?;
                (create.identity, true)
            }
        };
        // A process that was killed, or whose sync failed, may have left names that are only shown.
        disk.sync_directory_of(&directory.join(LOCK))
            .map_err(JournalError::io("sync the directory of", directory))?;
        let promised = Promised::load_existing(&*disk, directory, identity.disk)?.0;
        let hint = Hint::load_existing(&*disk, directory, identity.disk)?;
        let mut released = Released::load_existing(&*disk, directory, identity.disk)?;
        if released.is_anew {
            begin_anew(
                &*disk,
                directory,
                &identity,
                &mut released,
                options.segment_len,
            )?;
        }
        let mut scan = Scan::new(&*disk, directory, &identity, &hint, &released);
        scan.run()?;
        let (segments, last, torn) = scan.settle()?;
        let recovered = Recovered {
            identity,
            is_new,
            promised,
            committed: hint.committed,
            last,
            torn,
        };
        let log = Log { segments, cuts: 0 };
        let shared = Shared {
            log: Mutex::new(log),
            failed: OnceLock::new(),
            syncing: Mutex::new(()),
        };
        let journal = Self {
            disk,
            directory: directory.to_owned(),
            identity,
            segment_len: options.segment_len,
            window_len: options.window_len,
            shared: Arc::new(shared),
            released,
            promised,
            hint,
            last,
            synced: last.seq,
            _lock: lock,
        };
        Ok((journal, recovered))
    }
}

fn missing(directory: &Path) -> JournalError {
    let path = directory.to_owned();
    JournalError::Missing { path }
}

/// The lock on the directory, which is made if it is not there.
pub(super) fn lock(
    disk: &dyn Disk,
    directory: &Path,
    create: bool,
) -> Result<Arc<dyn File>, JournalError> {
    let path = directory.join(LOCK);
    let io = |action| JournalError::io(action, &path);
    let opened = match disk.open(&path, OpenMode::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !create {
                return Err(missing(directory));
            }
            let created = disk.create_directories(directory);
            for new in created.map_err(io("create the directory of"))? {
                disk.sync_directory_of(&new)
                    .map_err(JournalError::io("sync the directory of", &new))?;
            }
            disk.open(&path, OpenMode::CreateNew)
        }
        opened => opened,
    };
    let file = opened.map_err(io("open"))?;
    if !file.try_lock().map_err(io("lock"))? {
        return Err(JournalError::Locked { path });
    }
    Ok(file)
}

/// Makes a journal where there is none. The identity comes last: without it there is none.
fn found(
    disk: &dyn Disk,
    directory: &Path,
    create: &Create,
    segment_len: u64,
) -> Result<(), JournalError> {
    let Create {
        identity,
        base,
        epochs,
    } = create;
    refuse_a_lost_identity(disk, directory)?;
    let of = identity.disk;
    Promised(Epoch::ZERO).save(disk, directory, of)?;
    let hint = Hint {
        committed: base.seq,
        synced: base.seq,
    };
    hint.save(disk, directory, of)?;
    let released = Released {
        through: *base,
        epochs: epochs.clone(),
        is_anew: false,
    };
    released.save(disk, directory, of)?;
    let header = SegmentHeader {
        history: identity.history,
        disk: of,
        before: *base,
    };
    // What is left of an earlier attempt may be the beginning of another log.
    for (_, path) in segments_in(disk, directory)? {
        disk.remove(&path)
            .map_err(JournalError::io("remove", &path))?;
    }
    Segment::create(disk, directory, header, segment_len)?;
    // An attempt that failed may have left a directory that is only shown.
    disk.sync_directory_of(directory)
        .map_err(JournalError::io("sync the directory of", directory))?;
    identity.save(disk, directory, of)?;
    info!("journal: created in {}", directory.display());
    Ok(())
}

/// Puts an empty log in the place of what there is, as the table of epochs says already.
pub(super) fn begin_anew(
    disk: &dyn Disk,
    directory: &Path,
    identity: &Identity,
    released: &mut Released,
    segment_len: u64,
) -> Result<Segment, JournalError> {
    for (_, path) in segments_in(disk, directory)? {
        disk.remove(&path)
            .map_err(JournalError::io("remove", &path))?;
    }
    let header = SegmentHeader {
        history: identity.history,
        disk: identity.disk,
        before: released.through,
    };
    let segment = Segment::create(disk, directory, header, segment_len)?;
    released.is_anew = false;
    released.save(disk, directory, identity.disk)?;
    Ok(segment)
}

/// A journal that was in use and has lost its identity is no place for a new one.
fn refuse_a_lost_identity(disk: &dyn Disk, directory: &Path) -> Result<(), JournalError> {
    let path = directory.join(Identity::NAME);
    let lost = || JournalError::damaged(&path, 0, Seq::ZERO, Fault::NoFile);
    // Nothing is promised, and nothing written, before the identity is there.
    if let Ok(Some((promised, _))) = Promised::load(disk, directory, None)
        && promised.0 != Epoch::ZERO
    {
        return Err(lost());
    }
    for (_, path) in segments_in(disk, directory)? {
        let io = |action| JournalError::io(action, &path);
        let file = disk.open(&path, OpenMode::Read).map_err(io("open"))?;
        if file.len().map_err(io("read"))? > SEGMENT_HEADER_LEN as u64 {
            return Err(lost());
        }
    }
    Ok(())
}

/// The segments of a directory, in order, with the numbers of their names.
fn segments_in(disk: &dyn Disk, directory: &Path) -> Result<Vec<(Seq, PathBuf)>, JournalError> {
    let names = disk
        .names(directory)
        .map_err(JournalError::io("list", directory))?;
    let mut segments: Vec<_> = names
        .iter()
        .filter_map(|name| first_of(name))
        .map(|first| (first, path_of(directory, first)))
        .collect();
    segments.sort();
    Ok(segments)
}

/// The log while it is read from its beginning.
struct Scan<'a> {
    disk: &'a dyn Disk,
    directory: &'a Path,
    identity: &'a Identity,
    released: &'a Released,
    segments: VecDeque<Segment>,
    last: Point,
    /// All up to here was on stable storage once: that is written somewhere.
    known_synced: Seq,
    /// A new segment that a crash has ended before anything was put into it.
    unborn: Option<PathBuf>,
    /// An entry at the end of the last segment is torn.
    is_torn: bool,
}

impl<'a> Scan<'a> {
    fn new(
        disk: &'a dyn Disk,
        directory: &'a Path,
        identity: &'a Identity,
        hint: &Hint,
        released: &'a Released,
    ) -> Self {
        Self {
            disk,
            directory,
            identity,
            released,
            segments: VecDeque::new(),
            last: released.through,
            known_synced: hint.synced.max(released.through.seq),
            unborn: None,
            is_torn: false,
        }
    }

    fn run(&mut self) -> Result<(), JournalError> {
        let mut paths = segments_in(self.disk, self.directory)?
            .into_iter()
            .peekable();
        while let Some((first, path)) = paths.next() {
            let is_last = paths.peek().is_none();
            let Some(segment) = self.begin(first, path, is_last)? else {
                break;
            };
            // That another one follows, however far it got, says that this one was synced.
            let segment = self.entries(segment, is_last)?;
            self.segments.push_back(segment);
        }
        let Some(last) = self.segments.back() else {
            let (path, seq) = (self.directory, self.known_synced.next());
            return Err(JournalError::damaged(path, 0, seq, Fault::NoFile));
        };
        // What was synced once has to be there, and not only what is in front of it.
        if self.last.seq < self.known_synced {
            let seq = self.last.seq.next();
            return Err(JournalError::damaged(
                &last.path,
                last.end,
                seq,
                Fault::Gone,
            ));
        }
        Ok(())
    }

    /// The header of the next segment; `None` if it is the last and was never finished.
    fn begin(
        &mut self,
        first: Seq,
        path: PathBuf,
        is_last: bool,
    ) -> Result<Option<Segment>, JournalError> {
        let file = self
            .disk
            .open(&path, OpenMode::Write)
            .map_err(JournalError::io("open", &path))?;
        let damaged = |fault| JournalError::damaged(&path, 0, first, fault);
        let Some(header) = header_of(&*file, &path)? else {
            let is_first = self.segments.is_empty();
            let start = SEGMENT_HEADER_LEN as u64;
            let is_empty = first_written(&*file, start)
                .map_err(JournalError::io("read", &path))?
                .is_none();
            if is_last && !is_first && is_empty && self.known_synced < first {
                self.unborn = Some(path);
                return Ok(None);
            }
            return Err(damaged(Fault::Header));
        };
        if header.history != self.identity.history || header.disk != self.identity.disk {
            return Err(damaged(Fault::Foreign));
        }
        if header.first() != first {
            let found = header.first();
            return Err(damaged(Fault::Order { found }));
        }
        self.check_begin(&header, &path)?;
        self.last = header.before;
        Ok(Some(Segment::new(path, file, header)))
    }

    /// It follows what was there, or what was released.
    fn check_begin(&self, header: &SegmentHeader, path: &Path) -> Result<(), JournalError> {
        let before = header.before;
        let first = header.first();
        let expected = match self.segments.back() {
            Some(segment) if before.seq != self.last.seq => {
                // What was between them was at the end of the one before.
                let seq = self.last.seq.next();
                let (path, pos) = (&segment.path, segment.end);
                return Err(JournalError::damaged(path, pos, seq, Fault::Gone));
            }
            Some(_) => self.last,
            // A crash may have come between the table of epochs and the removal.
            None if before.seq < self.released.through.seq => return Ok(()),
            None if before.seq > self.released.through.seq => {
                let seq = self.released.through.seq.next();
                let path = path_of(self.directory, seq);
                return Err(JournalError::damaged(&path, 0, seq, Fault::NoFile));
            }
            None => self.released.through,
        };
        if before == expected {
            return Ok(());
        }
        let fault = Fault::Chain {
            expected: expected.digest,
            found: before.digest,
        };
        Err(JournalError::damaged(path, 0, first, fault))
    }

    /// The entries of a segment.
    fn entries(
        &mut self,
        mut segment: Segment,
        may_be_torn: bool,
    ) -> Result<Segment, JournalError> {
        let mut window = Window::with_len(segment.file.clone(), PIECE_LEN);
        loop {
            let found = self.entry(&segment, &mut window)?;
            let header = match found {
                Found::Entry(header) => header,
                Found::End => break,
                Found::Broken { fault, extent } => {
                    self.judge(&segment, &mut window, fault, extent, may_be_torn)?;
                    self.is_torn = true;
                    break;
                }
            };
            self.known_synced = self.known_synced.max(header.synced);
            if header.seq <= self.released.through.seq {
                segment.note_released(&header);
            } else {
                segment.note(&header);
            }
            self.last = header.point();
            self.check_released(&segment)?;
        }
        Ok(segment)
    }

    /// What was released was the same log.
    fn check_released(&self, segment: &Segment) -> Result<(), JournalError> {
        let Released { through, .. } = self.released;
        if self.last.seq != through.seq || self.last == *through {
            return Ok(());
        }
        let fault = Fault::Chain {
            expected: through.digest,
            found: self.last.digest,
        };
        let (path, pos) = (&segment.path, segment.end);
        Err(JournalError::damaged(path, pos, through.seq, fault))
    }

    /// What stands at the end of what is known of the segment.
    fn entry(&self, segment: &Segment, window: &mut Window) -> Result<Found, JournalError> {
        let pos = segment.end;
        let io = |action| JournalError::io(action, &segment.path);
        let head = window.bytes(pos, ENTRY_HEADER_LEN).map_err(io("read"))?;
        let is_empty = head.iter().all(|byte| *byte == 0);
        let header = EntryHeader::decode(head, &segment.place(pos));
        if is_empty {
            let rest = first_written(&*segment.file, pos).map_err(io("read"))?;
            if rest.is_none() {
                return Ok(Found::End);
            }
        }
        let Some(header) = header else {
            let (fault, extent) = (Fault::Header, ENTRY_HEADER_LEN as u64);
            return Ok(Found::Broken { fault, extent });
        };
        let damaged =
            |fault| JournalError::damaged(&segment.path, pos, self.last.seq.next(), fault);
        // A header that has been checked was written here, by us.
        if header.seq != self.last.seq.next() || header.epoch < self.last.epoch {
            let found = header.seq;
            return Err(damaged(Fault::Order { found }));
        }
        if header.previous != self.last.digest {
            let (expected, found) = (self.last.digest, header.previous);
            return Err(damaged(Fault::Chain { expected, found }));
        }
        let is_whole = is_whole(&header, pos, window).map_err(io("read"))?;
        let extent = ENTRY_HEADER_LEN as u64 + header.body_len;
        Ok(match is_whole {
            true => Found::Entry(header),
            false => Found::Broken {
                fault: Fault::Body,
                extent,
            },
        })
    }

    /// Whether an entry that is not whole is torn; else it is damaged.
    fn judge(
        &mut self,
        segment: &Segment,
        window: &mut Window,
        fault: Fault,
        extent: u64,
        may_be_torn: bool,
    ) -> Result<(), JournalError> {
        let (seq, pos) = (self.last.seq.next(), segment.end);
        let io = |action| JournalError::io(action, &segment.path);
        let claimed = claimed_behind(segment, window).map_err(io("read"))?;
        self.known_synced = self.known_synced.max(claimed);
        let is_missing = lacks_a_sector(window, pos, extent).map_err(io("read"))?;
        if may_be_torn && self.known_synced < seq && is_missing {
            return Ok(());
        }
        Err(JournalError::damaged(&segment.path, pos, seq, fault))
    }

    /// Cuts what is torn, and brings the rest to stable storage.
    fn settle(mut self) -> Result<(VecDeque<Segment>, Point, Option<TornTail>), JournalError> {
        if let Some(path) = &self.unborn {
            self.disk
                .remove(path)
                .map_err(JournalError::io("remove", path))?;
        }
        let torn = self.cut()?;
        self.write_again()?;
        let segments = std::mem::take(&mut self.segments);
        Ok((segments, self.last, torn))
    }

    fn cut(&self) -> Result<Option<TornTail>, JournalError> {
        let Some(segment) = self.segments.back() else {
            return Ok(None);
        };
        let io = |action| JournalError::io(action, &segment.path);
        let len = segment.file.len().map_err(io("read"))?;
        if len == segment.end {
            return Ok(None);
        }
        let first = self.last.seq.next();
        let torn = match self.is_torn {
            true => Some(self.keep_tail(segment, len, first)?),
            // Room that was never written to; or the padding of the last entry is not there.
            false => None,
        };
        segment.file.set_len(segment.end).map_err(io("cut"))?;
        // Before anything is written there: else something of this might come to stand behind it.
        segment.file.sync().map_err(io("sync"))?;
        Ok(torn)
    }

    fn keep_tail(&self, segment: &Segment, len: u64, first: Seq) -> Result<TornTail, JournalError> {
        let name = format!("torn-{first}");
        let path = free_name(self.disk, self.directory, &name, ".bytes");
        let io = |action| JournalError::io(action, &path);
        let copy = self.disk.open(&path, OpenMode::CreateNew);
        let copy = copy.map_err(io("create"))?;
        each_piece(&*segment.file, segment.end, len, |pos, piece| {
            copy.write_at(&mut [IoSlice::new(piece)], pos - segment.end)
        })
        .map_err(io("write"))?;
        copy.sync().map_err(io("sync"))?;
        self.disk
            .sync_directory_of(&path)
            .map_err(io("sync the directory of"))?;
        let len = len - segment.end;
        warn!(
            "{}: cut {len} bytes of a torn group at byte {} (kept as {})",
            segment.path.display(),
            segment.end,
            path.display()
        );
        Ok(TornTail { first, path, len })
    }

    /// What is not known to have been synced is written once more, as it is, and synced: after a
    /// failed sync the system may show what it could not write, and take it for written.
    fn write_again(&self) -> Result<(), JournalError> {
        let Some(segment) = self.segments.back() else {
            return Ok(());
        };
        let io = |action| JournalError::io(action, &segment.path);
        let unproven = self.known_synced.max(segment.header.before.seq).next();
        let from = match segment.header.before.seq == segment.last.seq {
            // Then its header may be all there is.
            true => 0,
            false if unproven > segment.last.seq => segment.end,
            false => segment.nearest(unproven).1,
        };
        each_piece(&*segment.file, from, segment.end, |pos, piece| {
            segment.file.write_at(&mut [IoSlice::new(piece)], pos)
        })
        .map_err(io("write"))?;
        segment.file.sync().map_err(io("sync"))
    }
}

enum Found {
    Entry(EntryHeader),
    /// Nothing was written behind what is known.
    End,
    Broken {
        fault: Fault,
        /// Bytes that are the entry's, as far as can be told.
        extent: u64,
    },
}

fn header_of(file: &dyn File, path: &Path) -> Result<Option<SegmentHeader>, JournalError> {
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    let filled = file.read_at(&mut bytes, 0);
    let filled = filled.map_err(JournalError::io("read", path))?;
    Ok(SegmentHeader::decode(&bytes[..filled]))
}

fn is_whole(header: &EntryHeader, pos: u64, window: &mut Window) -> io::Result<bool> {
    let mut hasher = header.hasher();
    let mut at = pos + ENTRY_HEADER_LEN as u64;
    let end = at + header.body_len;
    while at < end {
        let wanted = usize::try_from(end - at)
            .unwrap_or(PIECE_LEN)
            .min(PIECE_LEN);
        let piece = window.bytes(at, wanted)?;
        if piece.is_empty() {
            return Ok(false);
        }
        hasher.update(piece);
        at += piece.len() as u64;
    }
    Ok(hasher.finish() == header.digest)
}

/// Whether some sector of these bytes, as far as it is theirs, is all zeros, or not there.
fn lacks_a_sector(window: &mut Window, pos: u64, extent: u64) -> io::Result<bool> {
    let mut sectors = Sectors::from(pos);
    let (mut at, end) = (pos, pos + extent);
    while at < end {
        let wanted = usize::try_from(end - at)
            .unwrap_or(PIECE_LEN)
            .min(PIECE_LEN);
        let piece = window.bytes(at, wanted)?;
        if piece.is_empty() {
            return Ok(true);
        }
        sectors.look_at(piece);
        at += piece.len() as u64;
    }
    Ok(sectors.found())
}

/// The highest number that a header behind the end of what is known of the segment tells to have
/// been synced.
fn claimed_behind(segment: &Segment, window: &mut Window) -> io::Result<Seq> {
    let mut claimed = Seq::ZERO;
    let mut pos = segment.end + ALIGNMENT;
    loop {
        let piece = window.bytes(pos, PIECE_LEN)?;
        if piece.len() < ENTRY_HEADER_LEN {
            return Ok(claimed);
        }
        // One that reaches over the end of the piece is found in the next one.
        let step = usize::try_from(ALIGNMENT).unwrap_or(1);
        let starts = (0..=piece.len() - ENTRY_HEADER_LEN).step_by(step);
        for start in starts.clone() {
            let bytes = &piece[start..][..ENTRY_HEADER_LEN];
            if bytes.starts_with(&ENTRY_MAGIC)
                && let Some(header) = EntryHeader::decode(bytes, &segment.place(pos + start as u64))
            {
                claimed = claimed.max(header.synced);
            }
        }
        pos += starts.last().unwrap_or(0) as u64 + ALIGNMENT;
    }
}

/// Position of the first byte from `pos` on that is not zero.
fn first_written(file: &dyn File, pos: u64) -> io::Result<Option<u64>> {
    let len = file.len()?;
    let left = usize::try_from(len.saturating_sub(pos)).unwrap_or(PIECE_LEN);
    let mut buf = vec![0; left.min(PIECE_LEN)];
    let mut found = None;
    let mut at = pos;
    while at < len && found.is_none() {
        let filled = file.read_at(&mut buf, at)?;
        if filled == 0 {
            break;
        }
        let first = buf[..filled].iter().position(|byte| *byte != 0);
        found = first.map(|first| at + first as u64);
        at += filled as u64;
    }
    Ok(found)
}

/// Reads a part of a file in pieces.
fn each_piece(
    file: &dyn File,
    from: u64,
    to: u64,
    mut then: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buf = vec![0; PIECE_LEN];
    let mut at = from;
    while at < to {
        let wanted = usize::try_from(to - at).unwrap_or(PIECE_LEN).min(PIECE_LEN);
        let filled = file.read_at(&mut buf[..wanted], at)?;
        if filled == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        then(at, &buf[..filled])?;
        at += filled as u64;
    }
    Ok(())
}
