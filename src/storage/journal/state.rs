//! The small files of the state: who this is, what it has promised, and what is known of epochs and
//! of the commit mark. Each is text with a checksum, and is replaced as a whole.
//!
//! ```text
//! standby-promised 1 of 5b0e6d4c1fbd27c6f0ad8f3e9b1c2a77
//! epoch 7 n1
//! sha256 5c1f...
//! ```
//!
//! The first line names the disk (`identity` names it too), so that a file that was copied from
//! another node is noticed.

use std::fmt::{Display, Write};
use std::io;
use std::path::{Path, PathBuf};

use super::error::{Fault, JournalError};
use super::format::Point;
use crate::entry::sha256;
use crate::ids::{Digest, DiskId, Epoch, HistoryId, NodeId, Seq, Tid};
use crate::limits::{JOURNAL_EPOCHS_MAX, JOURNAL_STATE_LEN_MAX};
use crate::storage::disk::{Disk, OpenMode};

/// What stands in front of a checksum.
const CHECK: &str = "sha256 ";

/// A file of the state. Who uses a journal may keep more of them in its directory.
pub trait State: Sized {
    /// Its name.
    const NAME: &'static str;

    /// The lines between the first and the checksum.
    fn write(&self, text: &mut String);

    /// The value of such lines; `None` if they have another form. What is read is written again and
    /// compared, so that nothing more has to be looked at.
    fn parse(lines: &mut Words<'_>) -> Option<Self>;

    /// What stands in the directory, and the disk that it is of; `None` if there is no file.
    ///
    /// # Errors
    ///
    /// The file is not what was written, or of another disk than it should be.
    fn load(
        disk: &dyn Disk,
        directory: &Path,
        of: Option<DiskId>,
    ) -> Result<Option<(Self, DiskId)>, JournalError> {
        let path = directory.join(Self::NAME);
        let Some(bytes) = read_bounded(disk, &path)? else {
            return Ok(None);
        };
        let damaged = |fault| JournalError::damaged(&path, 0, Seq::ZERO, fault);
        let (value, found) = Self::decode(&bytes).ok_or_else(|| damaged(Fault::State))?;
        if of.is_some_and(|of| of != found) {
            return Err(damaged(Fault::Foreign));
        }
        Ok(Some((value, found)))
    }

    /// As [`Self::load`], of a file that must be there.
    ///
    /// # Errors
    ///
    /// As there; [`Fault::NoFile`] if it is not.
    fn load_existing(disk: &dyn Disk, directory: &Path, of: DiskId) -> Result<Self, JournalError> {
        let Some((value, _)) = Self::load(disk, directory, Some(of))? else {
            let path = directory.join(Self::NAME);
            return Err(JournalError::damaged(&path, 0, Seq::ZERO, Fault::NoFile));
        };
        Ok(value)
    }

    /// Replaces the file; it is on stable storage when this returns.
    ///
    /// # Errors
    ///
    /// The disk has failed; the old file or the new one is there.
    fn save(&self, disk: &dyn Disk, directory: &Path, of: DiskId) -> Result<(), JournalError> {
        let path = directory.join(Self::NAME);
        disk.replace(&path, &[self.encode(of).as_bytes()])
            .map_err(JournalError::io("write", &path))
    }

    /// The text of the file.
    fn encode(&self, of: DiskId) -> String {
        let mut text = format!("standby-{} 1 of {of}\n", Self::NAME);
        self.write(&mut text);
        let check = sha256(&[text.as_bytes()]);
        put_line(&mut text, format_args!("{CHECK}{check}"));
        text
    }

    /// What the text says, and the disk that it names; `None` for any other text.
    fn decode(text: &[u8]) -> Option<(Self, DiskId)> {
        let text = str::from_utf8(text).ok()?;
        let body_len = text.rfind(CHECK)?;
        let (body, check) = text.split_at_checked(body_len)?;
        let check = check.strip_prefix(CHECK)?.strip_suffix('\n')?;
        if Digest::from_hex(check)? != sha256(&[body.as_bytes()]) {
            return None;
        }
        let (first, lines) = body.split_once('\n')?;
        let rest = first.strip_prefix("standby-")?.strip_prefix(Self::NAME)?;
        let disk = DiskId::from_hex(rest.strip_prefix(" 1 of ")?)?;
        let mut words = Words(lines.split_ascii_whitespace());
        let value = Self::parse(&mut words)?;
        (value.encode(disk) == text).then_some((value, disk))
    }
}

/// The words of a file, one after the other.
#[derive(Clone, Debug)]
pub struct Words<'a>(std::str::SplitAsciiWhitespace<'a>);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }
}

impl<'a> Words<'a> {
    /// The value behind a word.
    pub fn after(&mut self, word: &str) -> Option<&'a str> {
        (self.next()? == word).then(|| self.next())?
    }

    /// The word that comes next, which stays.
    pub fn peek(&self) -> Option<&'a str> {
        self.0.clone().next()
    }

    /// A number.
    pub fn number(&mut self) -> Option<u64> {
        self.next()?.parse().ok()
    }

    /// A tid.
    pub fn tid(&mut self) -> Option<Tid> {
        u64::from_str_radix(self.next()?, 16).ok().map(Tid)
    }

    /// A place in the log, as [`put_point`] writes it.
    pub fn point(&mut self) -> Option<Point> {
        let epoch = self.epoch()?;
        let (seq, digest) = (Seq(self.number()?), Digest::from_hex(self.next()?)?);
        Some(Point { epoch, seq, digest })
    }

    /// A row of a table of epochs, as [`put_row`] writes it.
    pub fn row(&mut self) -> Option<EpochRow> {
        let epoch = self.epoch()?;
        let first = Seq(self.number()?);
        let tids = (self.tid()?, self.tid()?);
        let tids = (tids != (Tid::ZERO, Tid::ZERO)).then_some(tids);
        Some(EpochRow { epoch, first, tids })
    }

    /// An epoch, as [`show`] writes it.
    pub fn epoch(&mut self) -> Option<Epoch> {
        let counter = self.number()?;
        let node = match self.next()? {
            NO_NODE => NodeId::NONE,
            name => NodeId::new(name)?,
        };
        Some(Epoch { counter, node })
    }
}

/// In the place of a node's name, which it cannot be.
const NO_NODE: &str = "*";

/// The line that says that the log begins anew.
const ANEW: &str = "anew";

/// Adds a line.
pub fn put_line(text: &mut String, line: impl Display) {
    // Writing to a text does not fail.
    let _ = writeln!(text, "{line}");
}

/// Adds a line with a place in the log behind a word.
pub fn put_point(text: &mut String, word: &str, point: &Point) {
    let Point { epoch, seq, digest } = point;
    let epoch = show(*epoch);
    put_line(text, format_args!("{word} {epoch} {seq} {digest}"));
}

/// Adds a line with a row of a table of epochs.
pub fn put_row(text: &mut String, row: &EpochRow) {
    let EpochRow { epoch, first, tids } = row;
    let (first_tid, last_tid) = tids.unwrap_or_default();
    let epoch = show(*epoch);
    put_line(text, format_args!("{epoch} {first} {first_tid} {last_tid}"));
}

/// An epoch in two words.
pub fn show(epoch: Epoch) -> String {
    let node = match epoch.node {
        NodeId::NONE => NO_NODE,
        _ => epoch.node.as_str(),
    };
    format!("{} {node}", epoch.counter)
}

fn read_bounded(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, JournalError> {
    let read = || {
        let file = disk.open(path, OpenMode::Read)?;
        let len = usize::try_from(file.len()?.min(JOURNAL_STATE_LEN_MAX)).unwrap_or(0);
        let mut bytes = vec![0; len];
        let filled = file.read_at(&mut bytes, 0)?;
        bytes.truncate(filled);
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error_is_missing(&error) => Ok(None),
        Err(error) => Err(JournalError::io("read", path)(error)),
    }
}

fn error_is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Who a journal belongs to. Given from outside when it is made, and never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The lineage of the database.
    pub history: HistoryId,
    /// The node.
    pub node: NodeId,
    /// The disk: random, and new for each journal.
    pub disk: DiskId,
}

impl State for Identity {
    const NAME: &'static str = "identity";

    fn write(&self, text: &mut String) {
        put_line(text, format_args!("history {}", self.history));
        put_line(text, format_args!("node {}", self.node));
        put_line(text, format_args!("disk {}", self.disk));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        Some(Self {
            history: HistoryId::from_hex(words.after("history")?)?,
            node: NodeId::new(words.after("node")?)?,
            disk: DiskId::from_hex(words.after("disk")?)?,
        })
    }
}

/// The highest epoch that was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Promised(pub(super) Epoch);

impl State for Promised {
    const NAME: &'static str = "promised";

    fn write(&self, text: &mut String) {
        put_line(text, format_args!("epoch {}", show(self.0)));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        (words.next()? == "epoch").then_some(())?;
        words.epoch().map(Self)
    }
}

/// Marks that may be behind the truth and are never above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hint {
    /// Committed, and on stable storage here.
    pub(super) committed: Seq,
    /// On stable storage here.
    pub(super) synced: Seq,
}

impl State for Hint {
    const NAME: &'static str = "commit";

    fn write(&self, text: &mut String) {
        put_line(text, format_args!("committed {}", self.committed));
        put_line(text, format_args!("synced {}", self.synced));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        let committed = Seq(words.after("committed")?.parse().ok()?);
        let synced = Seq(words.after("synced")?.parse().ok()?);
        (committed <= synced).then_some(Self { committed, synced })
    }
}

/// An epoch in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochRow {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first entry.
    pub first: Seq,
    /// The tids of its first and last transaction, if it has any.
    pub tids: Option<(Tid, Tid)>,
}

/// The epochs of a part of the log, oldest first. At [`JOURNAL_EPOCHS_MAX`] the oldest is
/// forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochRows(Vec<EpochRow>);

impl EpochRows {
    /// The rows.
    pub fn rows(&self) -> &[EpochRow] {
        &self.0
    }

    /// From rows that are in order.
    pub fn of(rows: &[EpochRow]) -> Self {
        let mut all = Self::default();
        rows.iter().for_each(|row| all.add_row(*row));
        all
    }

    /// The next entry of the log.
    pub(super) fn add(&mut self, epoch: Epoch, seq: Seq, tid: Tid) {
        let tids = (tid != Tid::ZERO).then_some((tid, tid));
        self.add_row(EpochRow {
            epoch,
            first: seq,
            tids,
        });
    }

    /// The epochs of the part that follows.
    pub(super) fn append(&mut self, later: &Self) {
        later.0.iter().for_each(|row| self.add_row(*row));
    }

    fn add_row(&mut self, row: EpochRow) {
        match self.0.last_mut() {
            Some(last) if last.epoch == row.epoch => {
                last.tids = match (last.tids, row.tids) {
                    (Some((first, _)), Some((_, last))) => Some((first, last)),
                    (known, None) => known,
                    (None, new) => new,
                };
            }
            _ => {
                if self.0.len() == JOURNAL_EPOCHS_MAX {
                    self.0.remove(0);
                }
                self.0.push(row);
            }
        }
    }
}

/// What is known of the part of the log that has been released, or was never here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Released {
    /// The last entry of it.
    pub(super) through: Point,
    /// Its epochs.
    pub(super) epochs: EpochRows,
    /// The log begins anew behind it: whatever segments there are, they are to go.
    pub(super) is_anew: bool,
}

impl State for Released {
    const NAME: &'static str = "epochs";

    fn write(&self, text: &mut String) {
        put_point(text, "through", &self.through);
        if self.is_anew {
            put_line(text, ANEW);
        }
        for row in self.epochs.rows() {
            put_row(text, row);
        }
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        (words.next()? == "through").then_some(())?;
        let through = words.point()?;
        let is_anew = words.peek() == Some(ANEW);
        if is_anew {
            words.next();
        }
        let mut epochs = EpochRows::default();
        while words.peek().is_some() {
            epochs.add_row(words.row()?);
        }
        Some(Self {
            through,
            epochs,
            is_anew,
        })
    }
}

/// What a file of the state says, for tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateFile {
    /// `identity`
    Identity(Identity),
    /// `promised`
    Promised(Epoch),
    /// `commit`
    Commit {
        /// Committed, and on stable storage.
        committed: Seq,
        /// On stable storage.
        synced: Seq,
    },
    /// `epochs`
    Epochs {
        /// The last entry that was released.
        through: Point,
        /// The epochs up to there.
        epochs: EpochRows,
        /// The log begins anew behind it.
        is_anew: bool,
    },
}

impl StateFile {
    /// The names of these files.
    pub const NAMES: [&str; 4] = [Identity::NAME, Promised::NAME, Hint::NAME, Released::NAME];

    /// Reads the file of this name, and the disk that it names. `None` if it is not such a file, as
    /// a whole.
    pub fn decode(name: &str, bytes: &[u8]) -> Option<(Self, DiskId)> {
        match name {
            Identity::NAME => {
                Identity::decode(bytes).map(|(identity, disk)| (Self::Identity(identity), disk))
            }
            Promised::NAME => {
                Promised::decode(bytes).map(|(promised, disk)| (Self::Promised(promised.0), disk))
            }
            Hint::NAME => Hint::decode(bytes).map(|(hint, disk)| {
                let Hint { committed, synced } = hint;
                (Self::Commit { committed, synced }, disk)
            }),
            Released::NAME => Released::decode(bytes).map(|(released, disk)| {
                let Released {
                    through,
                    epochs,
                    is_anew,
                } = released;
                let file = Self::Epochs {
                    through,
                    epochs,
                    is_anew,
                };
                (file, disk)
            }),
            _ => None,
        }
    }
}

/// The path of a file that nobody has, beginning with this one.
pub(super) fn free_name(disk: &dyn Disk, directory: &Path, name: &str, suffix: &str) -> PathBuf {
    let mut path = directory.join(format!("{name}{suffix}"));
    let mut number = 1;
    while disk.identify(&path).is_ok() {
        path = directory.join(format!("{name}.{number}{suffix}"));
        number += 1;
    }
    path
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::storage::memory::MemoryDisk;

    const DISK: DiskId = DiskId([7; 16]);

    fn check<S: State + PartialEq + Debug>(value: &S) {
        let (disk, directory) = (MemoryDisk::new(), Path::new("journal"));
        assert!(S::load(&disk, directory, None).unwrap().is_none());
        S::load_existing(&disk, directory, DISK).err().unwrap();
        value.save(&disk, directory, DISK).unwrap();
        assert_eq!(&S::load_existing(&disk, directory, DISK).unwrap(), value);
        let error = S::load_existing(&disk, directory, DiskId([8; 16])).err();
        assert!(error.unwrap().to_string().contains("another"));
        let text = value.encode(DISK).into_bytes();
        for at in 0..text.len() {
            assert!(S::decode(&text[..at]).is_none(), "{at}");
            for bit in 0..8 {
                let mut bad = text.clone();
                bad[at] ^= 1 << bit;
                // A digit of the checksum may come to be written in another way.
                let is_same = S::decode(&bad).is_none_or(|(found, _)| found == *value);
                assert!(is_same, "{at} {bit}");
            }
        }
    }

    fn epoch(counter: u64) -> Epoch {
        let node = NodeId::new("n1").unwrap();
        Epoch { counter, node }
    }

    #[test]
    fn each_file_is_read_as_it_was_written_or_not_at_all() {
        check(&Identity {
            history: HistoryId([1; 16]),
            node: NodeId::new("none").unwrap(),
            disk: DISK,
        });
        check(&Promised(Epoch::ZERO));
        check(&Promised(epoch(u64::MAX)));
        check(&Hint {
            committed: Seq(7),
            synced: Seq(9),
        });
        let mut epochs = EpochRows::default();
        epochs.add(epoch(1), Seq(1), Tid::ZERO);
        epochs.add(epoch(2), Seq(2), Tid(100));
        epochs.add(epoch(2), Seq(3), Tid(101));
        check(&Released {
            through: Point {
                epoch: epoch(2),
                seq: Seq(3),
                digest: Digest([9; 32]),
            },
            epochs,
            is_anew: true,
        });
    }

    #[test]
    fn a_hint_of_more_commits_than_entries_is_none() {
        let hint = Hint {
            committed: Seq(3),
            synced: Seq(2),
        };
        assert!(Hint::decode(hint.encode(DISK).as_bytes()).is_none());
    }

    #[test]
    fn an_epoch_has_the_tids_of_its_first_and_last_transaction() {
        let mut rows = EpochRows::default();
        rows.add(epoch(1), Seq(1), Tid::ZERO);
        rows.add(epoch(1), Seq(2), Tid(20));
        let mut later = EpochRows::default();
        later.add(epoch(1), Seq(3), Tid(30));
        later.add(epoch(1), Seq(4), Tid::ZERO);
        later.add(epoch(2), Seq(5), Tid::ZERO);
        rows.append(&later);
        let row = |epoch, first, tids| EpochRow { epoch, first, tids };
        let expected = [
            row(epoch(1), Seq(1), Some((Tid(20), Tid(30)))),
            row(epoch(2), Seq(5), None),
        ];
        assert_eq!(rows.rows(), expected);
    }

    #[test]
    fn the_longest_table_of_epochs_fits_its_file_and_the_oldest_goes() {
        let mut epochs = EpochRows::default();
        let node = NodeId::new("0123456789").unwrap();
        let base = u64::MAX - 2 * JOURNAL_EPOCHS_MAX as u64;
        for number in 0..=JOURNAL_EPOCHS_MAX as u64 {
            let counter = base + number;
            let tid = Tid(u64::MAX - number);
            epochs.add(Epoch { counter, node }, Seq(base + number), tid);
        }
        assert_eq!(epochs.rows().len(), JOURNAL_EPOCHS_MAX);
        assert_eq!(epochs.rows()[0].epoch.counter, base + 1);
        let through = Point::start(HistoryId([1; 16]));
        let released = Released {
            through,
            epochs,
            is_anew: true,
        };
        let len = released.encode(DISK).len() as u64;
        assert!(len < JOURNAL_STATE_LEN_MAX);
    }
}
