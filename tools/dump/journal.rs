//! Journals: their segments, what was cut from them, and the files of their state.

use std::io::{Read, Write};
use std::path::Path;

use bytes::Bytes;
use standby::ids::Seq;
use standby::limits::JOURNAL_STATE_LEN_MAX;
use standby::storage::journal::StateFile;
use standby::storage::journal::format::{
    Decoder, ENTRY_HEADER_LEN, ENTRY_MAGIC, EntryHeader, Item, Point, SEGMENT_MAGIC, SegmentHeader,
};

use crate::failure::Failure;
use crate::message::{Field, Fields, Kind, Message};
use crate::output::Output;
use crate::replica;

/// Bytes that are read at once.
const READ_LEN: usize = 256 * 1024;

/// What a file of a journal is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    State,
    Segment,
    /// What another epoch has replaced.
    Diverged,
    /// What a crash has left of a group, without the header of its segment.
    Torn,
    Other,
}

impl Part {
    pub(crate) fn of(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if StateFile::NAMES.contains(&&*name) {
            Self::State
        } else if name.ends_with(".segment") {
            Self::Segment
        } else if name.starts_with("diverged-") && name.ends_with(".journal") {
            Self::Diverged
        } else if name.starts_with("torn-") && name.ends_with(".bytes") {
            Self::Torn
        } else {
            Self::Other
        }
    }

    /// As [`Self::of`], of a file that begins so. Names say more, since the first bytes may be what
    /// is damaged.
    pub(crate) fn of_file(path: &Path, magic: [u8; 4]) -> Self {
        match Self::of(path) {
            Self::State | Self::Other if SEGMENT_MAGIC.starts_with(&magic) => Self::Segment,
            Self::State | Self::Other if magic == ENTRY_MAGIC => Self::Torn,
            // A file of a state begins with a word.
            Self::State if magic != *b"stan" => Self::Other,
            part => part,
        }
    }
}

/// Shows the files of a journal.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    /// Where its log is, as far as that was seen.
    last: Option<Point>,
    /// All up to this one should be there,
    synced: Seq,
    /// behind this one.
    released: Option<Seq>,
}

/// An entry whose body is being read.
#[derive(Debug)]
struct Current {
    pos: u64,
    header: EntryHeader,
    is_checked: bool,
    /// As far as it has come.
    body: Vec<Bytes>,
}

impl Journal {
    /// Shows a file. Its entries are to follow those of the segment before; those of what was cut
    /// follow nothing.
    pub(crate) fn read(
        &mut self,
        part: Part,
        path: &Path,
        input: impl Read,
        out: &mut Output<impl Write>,
    ) -> Result<(), Failure> {
        match part {
            Part::State => self.state(path, input, out),
            Part::Segment => self.segment(part, path, input, out),
            Part::Diverged | Part::Torn => Self::default().segment(part, path, input, out),
            // It is empty; somebody may have locked it.
            Part::Other if path.ends_with("lock") => Ok(()),
            Part::Other => out.put(about(Kind::Connection, "other-file", path)),
        }
    }

    /// All segments have been read.
    pub(crate) fn finish(&self, out: &mut Output<impl Write>) -> Result<(), Failure> {
        let last = self.last.map_or(Seq::ZERO, |last| last.seq);
        if last < self.synced {
            out.put(missing(last, self.synced))?;
        }
        Ok(())
    }

    fn state(
        &mut self,
        path: &Path,
        input: impl Read,
        out: &mut Output<impl Write>,
    ) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let read = input.take(JOURNAL_STATE_LEN_MAX).read_to_end(&mut bytes);
        read.map_err(|error| Failure::input(path.display(), error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some((file, disk)) = StateFile::decode(&name, &bytes) else {
            let why = "no such file as a whole: another form, or another checksum";
            return out.put(
                about(Kind::Trouble, &name, path)
                    .with("why", why)
                    .of_bytes(bytes.into(), 0),
            );
        };
        match &file {
            StateFile::Commit { synced, .. } => self.synced = *synced,
            StateFile::Epochs { through, .. } => self.released = Some(through.seq),
            _ => {}
        }
        let mut message = about(Kind::State, &name, path);
        message.fields.extend(state_fields(&file));
        message.fields.push(("disk", replica::hex(&disk.0)));
        out.put(message.of_bytes(bytes.into(), 0))
    }

    fn segment(
        &mut self,
        part: Part,
        path: &Path,
        mut input: impl Read,
        out: &mut Output<impl Write>,
    ) -> Result<(), Failure> {
        let name = match part {
            Part::Diverged => "diverged",
            Part::Torn => "torn",
            _ => "segment",
        };
        let file = path.display().to_string();
        if part == Part::Torn {
            out.put(about(Kind::Connection, name, path))?;
        }
        let mut decoder = match part {
            Part::Torn => Decoder::within_segment(),
            _ => Decoder::new(),
        };
        let mut reading = Reading {
            journal: self,
            name,
            file: &file,
            current: None,
            zeros: None,
        };
        let mut buf = vec![0; READ_LEN];
        loop {
            while let Some(item) = decoder.poll() {
                reading.item(item, out)?;
            }
            match input.read(&mut buf) {
                Ok(0) => break,
                Ok(len) => decoder.feed(&buf[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::input(path.display(), error)),
            }
        }
        decoder.end();
        while let Some(item) = decoder.poll() {
            reading.item(item, out)?;
        }
        reading.end(out)
    }
}

/// A segment that is being read.
struct Reading<'a> {
    journal: &'a mut Journal,
    name: &'static str,
    file: &'a str,
    current: Option<Current>,
    /// Zeros that may be the last of the file.
    zeros: Option<(u64, u64)>,
}

impl Reading<'_> {
    fn item(&mut self, item: Item, out: &mut Output<impl Write>) -> Result<(), Failure> {
        match item {
            Item::Segment(header) => self.segment(&header, out),
            Item::Entry {
                pos,
                header,
                is_checked,
            } => {
                self.hole(out)?;
                self.follows(pos, &header, out)?;
                self.current = Some(Current {
                    pos,
                    header,
                    is_checked,
                    body: Vec::new(),
                });
                Ok(())
            }
            Item::Body(piece) => {
                if let Some(current) = &mut self.current {
                    current.body.push(piece);
                }
                Ok(())
            }
            Item::End { is_whole } => match self.current.take() {
                Some(current) => current.put(is_whole, out),
                None => Ok(()),
            },
            Item::Zeros { pos, len } => {
                self.zeros = Some((pos, len));
                Ok(())
            }
            Item::Garbage { pos, len } => {
                self.hole(out)?;
                out.put(self.trouble("skipped", pos).with("len", len))
            }
        }
    }

    fn segment(
        &mut self,
        header: &SegmentHeader,
        out: &mut Output<impl Write>,
    ) -> Result<(), Failure> {
        let before = &header.before;
        let message = Message::new(None, Kind::Connection, self.name)
            .with("file", self.file)
            .with("first", header.first().0)
            .with("after", replica::point(before))
            .with("digest", replica::hex(&before.digest.0))
            .with("history", replica::hex(&header.history.0))
            .with("disk", replica::hex(&header.disk.0));
        out.put(message)?;
        if self.journal.last.is_some_and(|last| last != *before) {
            let why = "it does not begin where the segment before ends";
            out.put(self.trouble("order", 0).with("why", why))?;
        }
        let is_first = self.journal.last.replace(*before).is_none();
        match self.journal.released {
            Some(released) if is_first && released < before.seq => {
                out.put(missing(released, before.seq))
            }
            _ => Ok(()),
        }
    }

    /// Whether the entry continues the log.
    fn follows(
        &mut self,
        pos: u64,
        header: &EntryHeader,
        out: &mut Output<impl Write>,
    ) -> Result<(), Failure> {
        let last = self.journal.last.replace(header.point());
        let why = match last {
            Some(last) if header.seq != last.seq.next() => "its number is not the next",
            Some(last) if header.previous != last.digest => "it follows another entry",
            Some(last) if header.epoch < last.epoch => "its epoch is an earlier one",
            _ => return Ok(()),
        };
        let mut message = self.trouble("order", pos).with("seq", header.seq.0);
        if let Some(last) = last {
            message = message.with("after", replica::point(&last));
        }
        out.put(message.with("why", why))
    }

    /// Zeros with something behind them, where none were written.
    fn hole(&mut self, out: &mut Output<impl Write>) -> Result<(), Failure> {
        let padding_len_max = 7;
        match self.zeros.take() {
            Some((pos, len)) if len > padding_len_max => {
                out.put(self.trouble("zeros", pos).with("len", len))
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, out: &mut Output<impl Write>) -> Result<(), Failure> {
        match self.zeros.take() {
            // Room that was reserved, or the padding of the last entry.
            Some((pos, len)) => {
                let mut message = Message::new(None, Kind::Connection, "zeros")
                    .with("file", self.file)
                    .with("pos", pos)
                    .with("len", len);
                message.is_detail = len < 8;
                out.put(message)
            }
            None => Ok(()),
        }
    }

    fn trouble(&self, name: &str, pos: u64) -> Message {
        Message::new(None, Kind::Trouble, name)
            .with("file", self.file)
            .with("pos", pos)
    }
}

impl Current {
    /// Shows it, and the records in it.
    fn put(self, is_whole: bool, out: &mut Output<impl Write>) -> Result<(), Failure> {
        let header = &self.header;
        let time = Some(header.tid.unix_time()).filter(|time| !time.is_zero());
        let kind = if is_whole { Kind::Entry } else { Kind::Trouble };
        let mut message = Message::new(time, kind, "entry").with("pos", self.pos);
        message.fields.extend(replica::header_fields(header));
        message.fields.push(("synced", header.synced.0.into()));
        if !self.is_checked {
            message.fields.push(("place", "not checked".into()));
        }
        let mut records = Vec::new();
        if is_whole {
            let (fields, found) = replica::body(header, &self.body);
            message.fields.extend(fields);
            records = found;
        } else {
            let why = "header and body are not those of its digest, or it ends early";
            message.fields.push(("why", Field::from(why)));
        }
        message = message.of_bytes(self.body.concat().into(), 0);
        let len = ENTRY_HEADER_LEN as u64 + header.body_len;
        message.len = usize::try_from(len).unwrap_or(usize::MAX);
        out.put(message)?;
        for fields in records {
            let message = Message::new(time, Kind::Record, "record");
            out.put(Message { fields, ..message })?;
        }
        Ok(())
    }
}

fn missing(after: Seq, through: Seq) -> Message {
    Message::new(None, Kind::Trouble, "missing")
        .with("after", after.0)
        .with("through", through.0)
        .with("why", "these entries were on stable storage")
}

fn about(kind: Kind, name: &str, path: &Path) -> Message {
    Message::new(None, kind, name).with("file", path.display().to_string())
}

fn state_fields(file: &StateFile) -> Fields {
    match file {
        StateFile::Identity(identity) => vec![
            ("history", replica::hex(&identity.history.0)),
            ("node", identity.node.to_string().into()),
        ],
        StateFile::Promised(epoch) => vec![("epoch", epoch.to_string().into())],
        StateFile::Commit { committed, synced } => {
            vec![
                ("committed", committed.0.into()),
                ("synced", synced.0.into()),
            ]
        }
        StateFile::Epochs {
            through,
            epochs,
            is_anew,
        } => {
            let row = |row: &standby::storage::journal::EpochRow| {
                let (first_tid, last_tid) = row.tids.unwrap_or_default();
                Field::Tree(vec![
                    ("epoch", row.epoch.to_string().into()),
                    ("first", row.first.0.into()),
                    ("first_tid", first_tid.into()),
                    ("last_tid", last_tid.into()),
                ])
            };
            vec![
                ("through", replica::point(through)),
                ("digest", replica::hex(&through.digest.0)),
                ("anew", (*is_anew).into()),
                (
                    "epochs",
                    Field::List(epochs.rows().iter().map(row).collect()),
                ),
            ]
        }
    }
}
