//! The files that a log's disk keeps beside the journal, in its directory and in its form.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::entry::Point;
use crate::ids::{Epoch, HistoryId, Seq, Tid};
use crate::limits::PAST_MAX;
use crate::replica::members::Members;
use crate::replica::message::Position;
use crate::replica::settings::{Change, Kind, Settings, StorageName};
use crate::storage::journal::state::{State, Words, put_line, put_point, put_row, show};
use crate::storage::journal::{EpochRow, Identity};

/// What is on stable storage in the data files, and what is settled as of it: `settings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// All up to this entry has been applied.
    pub(super) point: Point,
    /// See [`LogStart::history_from`](crate::replica::event::LogStart::history_from).
    pub(super) history_from: Tid,
    /// Of each storage: the tid of its last transaction up to there.
    pub(super) tids: BTreeMap<StorageName, Tid>,
    /// See [`LogStart::packed`](crate::replica::event::LogStart::packed).
    pub(super) packed: BTreeMap<StorageName, Seq>,
    /// Of each storage: the last pack that was ordered up to there.
    pub(super) ordered: BTreeMap<StorageName, Ordered>,
    /// The histories that this one is the future of, as losses were accepted, the oldest first.
    pub(super) past: Vec<HistoryId>,
    /// As of there.
    pub(super) settings: Settings,
}

/// A pack that was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ordered {
    /// By this entry.
    pub(super) at: Seq,
    /// The tid of the last transaction of the storage in front of that.
    pub(super) through: Tid,
}

impl Settled {
    /// A history has ended, and this is its future.
    pub(super) fn leave(&mut self, history: HistoryId) {
        self.past.retain(|it| *it != history);
        self.past.push(history);
        let excess = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..excess);
    }
}

impl State for Settled {
    const NAME: &'static str = "settings";

    fn write(&self, text: &mut String) {
        put_point(text, "applied", &self.point);
        put_line(text, format_args!("history-from {}", self.history_from));
        for (name, tid) in &self.tids {
            put_line(text, format_args!("storage {} {tid}", escape(name)));
        }
        for (name, seq) in &self.packed {
            put_line(text, format_args!("packed {} {seq}", escape(name)));
        }
        for (name, Ordered { at, through }) in &self.ordered {
            put_line(
                text,
                format_args!("ordered {} {at} {through}", escape(name)),
            );
        }
        for history in &self.past {
            put_line(text, format_args!("past {history}"));
        }
        put_change(text, &Change::Barrier(self.settings.clone()));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        (words.next()? == "applied").then_some(())?;
        let point = words.point()?;
        (words.next()? == "history-from").then_some(())?;
        let history_from = words.tid()?;
        let mut tids = BTreeMap::new();
        while words.peek() == Some("storage") {
            let name = unescape(words.after("storage")?)?;
            tids.insert(name, words.tid()?);
        }
        let mut packed = BTreeMap::new();
        while words.peek() == Some("packed") {
            let name = unescape(words.after("packed")?)?;
            packed.insert(name, Seq(words.number()?));
        }
        let mut ordered = BTreeMap::new();
        while words.peek() == Some("ordered") {
            let name = unescape(words.after("ordered")?)?;
            let (at, through) = (Seq(words.number()?), words.tid()?);
            ordered.insert(name, Ordered { at, through });
        }
        let mut past = Vec::new();
        while words.peek() == Some("past") {
            past.push(HistoryId::from_hex(words.after("past")?)?);
            (past.len() <= PAST_MAX).then_some(())?;
        }
        let Change::Barrier(settings) = change(words, Kind::Barrier)? else {
            return None;
        };
        Some(Self {
            point,
            history_from,
            tids,
            packed,
            ordered,
            past,
            settings,
        })
    }
}

/// What an arbiter has on record: `record`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) position: Position,
    pub(super) members: Members,
}

impl State for Record {
    const NAME: &'static str = "record";

    fn write(&self, text: &mut String) {
        let Position { epoch, seq } = self.position;
        put_line(text, format_args!("at {} {seq}", show(epoch)));
        put_change(text, &Change::Members(self.members.clone()));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        (words.next()? == "at").then_some(())?;
        let (epoch, seq) = (words.epoch()?, Seq(words.number()?));
        let position = Position { epoch, seq };
        let Change::Members(members) = change(words, Kind::Members)? else {
            return None;
        };
        Some(Self { position, members })
    }
}

/// What is to become of the directory: `next`. While it is there all that it needs is on stable
/// storage, and opening does the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Next {
    /// Whose journal it is to be. If there is one of somebody else it is kept as history.
    pub(super) identity: Identity,
    /// At least this is promised.
    pub(super) promised: Epoch,
    /// The old journal has been applied as a whole, and may be on its way to where it is kept.
    pub(super) is_retiring: bool,
    /// The journal stays as it is: only the data are others. Then there are no `epochs` here.
    pub(super) keeps_log: bool,
    /// The log begins behind `settled.point`, with these epochs in front.
    pub(super) epochs: Vec<EpochRow>,
    /// The data that are there, or in copies that are to become them.
    pub(super) settled: Settled,
}

impl State for Next {
    const NAME: &'static str = "next";

    fn write(&self, text: &mut String) {
        self.identity.write(text);
        put_line(text, format_args!("promised {}", show(self.promised)));
        if self.is_retiring {
            put_line(text, RETIRING);
        }
        if self.keeps_log {
            put_line(text, KEEPS_LOG);
        }
        self.settled.write(text);
        self.epochs.iter().for_each(|row| put_row(text, row));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        let identity = Identity::parse(words)?;
        (words.next()? == "promised").then_some(())?;
        let promised = words.epoch()?;
        let mut flag = |word| {
            let is_there = words.peek() == Some(word);
            if is_there {
                words.next();
            }
            is_there
        };
        let is_retiring = flag(RETIRING);
        let keeps_log = flag(KEEPS_LOG);
        let settled = Settled::parse(words)?;
        let mut epochs = Vec::new();
        while words.peek().is_some() {
            epochs.push(words.row()?);
        }
        Some(Self {
            identity,
            promised,
            is_retiring,
            keeps_log,
            epochs,
            settled,
        })
    }
}

/// The line that says that the old journal is on its way.
const RETIRING: &str = "retiring";

/// The line that says that it stays.
const KEEPS_LOG: &str = "keeps-log";

/// Adds what an entry would say, in hexadecimal digits.
fn put_change(text: &mut String, change: &Change) {
    text.push_str(change.kind().name());
    text.push(' ');
    for byte in change.encode().iter().flatten() {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
}

fn change(words: &mut Words<'_>, kind: Kind) -> Option<Change> {
    let digits = words.after(kind.name())?;
    let bytes = digits.as_bytes().chunks(2).map(|two| {
        let two = str::from_utf8(two).ok()?;
        u8::from_str_radix(two, 16).ok()
    });
    let bytes: Vec<u8> = bytes.collect::<Option<_>>()?;
    Change::decode(kind, &[bytes.into()]).ok()
}

/// A name as a word: what could end it is escaped, as in a URL.
pub(super) fn escape(name: &str) -> String {
    let mut word = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                word.push(char::from(byte));
            }
            _ => {
                let _ = write!(word, "%{byte:02x}");
            }
        }
    }
    word
}

pub(super) fn unescape(word: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        rest = behind;
        bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::path::Path;

    use super::*;
    use crate::ids::{Digest, DiskId, HistoryId, NodeId, Oid};
    use crate::replica::members::Voter;
    use crate::storage::disk::Disk;
    use crate::storage::memory::MemoryDisk;

    const DISK: DiskId = DiskId([7; 16]);

    fn epoch(counter: u64) -> Epoch {
        let node = NodeId::new("n1").unwrap();
        Epoch { counter, node }
    }

    fn members() -> Members {
        let voter = |name, disk| Voter {
            node: NodeId::new(name).unwrap(),
            disk: DiskId([disk; 16]),
        };
        Members {
            voters: [voter("n1", 1), voter("n2", 2)].into(),
            arbiter: None,
        }
    }

    fn settled() -> Settled {
        Settled {
            point: Point {
                epoch: epoch(3),
                seq: Seq(77),
                digest: Digest([9; 32]),
            },
            history_from: Tid(5),
            tids: [
                ("main".to_owned(), Tid(9)),
                ("a b%\n\u{fc}".to_owned(), Tid(0)),
            ]
            .into(),
            packed: [("main".to_owned(), Seq(50))].into(),
            ordered: [(
                "main".to_owned(),
                Ordered {
                    at: Seq(60),
                    through: Tid(8),
                },
            )]
            .into(),
            past: vec![HistoryId([4; 16]), HistoryId([5; 16])],
            settings: Settings {
                members: members(),
                home: "paris".to_owned(),
                ceilings: [("main".to_owned(), Oid(100))].into(),
                ..Settings::default()
            },
        }
    }

    fn check<S: State + PartialEq + Debug>(value: &S) {
        let (disk, directory) = (MemoryDisk::new(), Path::new("journal"));
        value.save(&disk, directory, DISK).unwrap();
        assert_eq!(&S::load_existing(&disk, directory, DISK).unwrap(), value);
        let path = directory.join(S::NAME);
        let text = disk.read(&path).unwrap();
        for at in 0..text.len() {
            let mut bad = text.clone();
            bad[at] ^= 4;
            disk.replace(&path, &[&bad]).unwrap();
            // A digit of the checksum may come to be written in another way.
            let found = S::load_existing(&disk, directory, DISK);
            assert!(found.is_err() || found.is_ok_and(|found| found == *value));
            disk.replace(&path, &[&text[..at]]).unwrap();
            S::load_existing(&disk, directory, DISK).err().unwrap();
        }
    }

    #[test]
    fn each_file_is_read_as_it_was_written_or_not_at_all() {
        check(&settled());
        check(&Record::default());
        check(&Record {
            position: Position {
                epoch: epoch(2),
                seq: Seq(4),
            },
            members: members(),
        });
        let row = |counter, first, tids| EpochRow {
            epoch: epoch(counter),
            first: Seq(first),
            tids,
        };
        let next = Next {
            identity: Identity {
                history: HistoryId([1; 16]),
                node: NodeId::new("n1").unwrap(),
                disk: DISK,
            },
            promised: epoch(3),
            is_retiring: true,
            keeps_log: false,
            epochs: vec![row(1, 1, None), row(3, 5, Some((Tid(1), Tid(9))))],
            settled: settled(),
        };
        check(&next);
        check(&Next {
            is_retiring: false,
            keeps_log: true,
            epochs: Vec::new(),
            ..next
        });
    }

    #[test]
    fn of_too_many_histories_the_oldest_is_forgotten() {
        let mut settled = settled();
        settled.leave(HistoryId([4; 16]));
        assert_eq!(settled.past, [HistoryId([5; 16]), HistoryId([4; 16])]);
        for byte in 100..100 + PAST_MAX as u8 {
            settled.leave(HistoryId([byte; 16]));
        }
        assert_eq!(settled.past.len(), PAST_MAX);
        assert_eq!(settled.past[0], HistoryId([100; 16]));
        check(&settled);
    }
}
