//! Reading what was recorded: capture files, data files, raw streams.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use standby::storage::format::{MAGIC, MAGIC_PYTHON2};
use standby::zeo::FrameReader;

use crate::data;
use crate::dump::Dump;
use crate::failure::Failure;
use crate::journal::{Journal, Part};
use crate::message::{Kind, Message, Way};
use crate::pcap::{PcapError, PcapReader};
use crate::talk::Protocol;

/// Reads files of either kind, one after the other.
pub(crate) fn read(files: &[PathBuf], dump: &mut Dump<impl Write>) -> Result<(), Failure> {
    for path in files {
        read_one(path, dump)?;
    }
    Ok(())
}

fn read_one(path: &Path, dump: &mut Dump<impl Write>) -> Result<(), Failure> {
    if path == Path::new("-") {
        return read_packets(path, io::stdin().lock(), dump);
    }
    if path.is_dir() {
        return read_journal(path, dump);
    }
    let file = File::open(path).map_err(|error| Failure::input(path.display(), error))?;
    // It may be a pipe, which gives its bytes once.
    read_packets(path, BufReader::with_capacity(256 * 1024, file), dump)
}

/// Reads the directory of a journal, in the order that opening does.
fn read_journal(path: &Path, dump: &mut Dump<impl Write>) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::input(path.display(), error);
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(|error| failed(&error))?;
    let files = entries.iter().map(std::fs::DirEntry::path);
    let mut files: Vec<(Part, PathBuf)> = files.map(|file| (Part::of(&file), file)).collect();
    files.sort();
    if files.iter().all(|(part, _)| *part == Part::Other) {
        return Err(failed(&"no journal: there is no file of one"));
    }
    let mut journal = Journal::default();
    for (part, file) in &files {
        let input = File::open(file).map_err(|error| Failure::input(file.display(), error))?;
        journal.read(*part, file, input, &mut dump.out)?;
    }
    journal.finish(&mut dump.out)
}

fn read_packets(
    path: &Path,
    mut input: impl Read,
    dump: &mut Dump<impl Write>,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::input(path.display(), error);
    let mut magic = [0; 4];
    input
        .read_exact(&mut magic)
        .map_err(|_| failed(&"no pcap or pcapng file: it is shorter than any"))?;
    let part = Part::of_file(path, magic);
    if part != Part::Other {
        return Journal::default().read(part, path, magic.chain(input), &mut dump.out);
    }
    if [MAGIC, MAGIC_PYTHON2].contains(&magic) {
        return data::read(path, &mut dump.out);
    }
    let mut reader = PcapReader::new(magic, input).map_err(|error| failed(&error))?;
    loop {
        match reader.next() {
            Ok(None) => break,
            Ok(Some(packet)) => {
                dump.packet(packet.time, packet.link, &packet.data, packet.len)?;
            }
            Err(PcapError::Io(error)) => return Err(failed(&error)),
            Err(error) => {
                // What was read so far is good; the rest cannot be.
                dump.out.put(
                    Message::new(None, Kind::Trouble, "file")
                        .with("file", path.display().to_string())
                        .with("why", error.to_string()),
                )?;
                break;
            }
        }
    }
    Ok(())
}

/// The two directions of a recorded connection.
#[derive(Debug)]
struct Recorded {
    name: String,
    /// What is there of it.
    bytes: [Option<Bytes>; 2],
}

const SUFFIXES: [&str; 2] = [".c2s.bin", ".s2c.bin"];

/// Reads streams that were recorded without packets and times.
pub(crate) fn read_streams(
    protocol: Protocol,
    files: &[PathBuf],
    dump: &mut Dump<impl Write>,
) -> Result<(), Failure> {
    for (n, path) in files.iter().enumerate() {
        let id = n as u64 + 1;
        let recorded = Recorded::read(path)?;
        // Of one direction alone the dialogue is not known, but its greeting is.
        let names = ["client", "server"].map(|side| format!("{side} of {}", recorded.name));
        dump.open(None, id, names, Some(protocol), true);
        match protocol {
            Protocol::Zeo => recorded.play_zeo(id, dump)?,
            Protocol::Spread => recorded.play_spread(id, dump)?,
        }
        dump.close(None, id, "end of the recording")?;
    }
    Ok(())
}

impl Recorded {
    fn read(path: &Path) -> Result<Self, Failure> {
        let text = path.to_string_lossy().into_owned();
        let whole = |path: &Path| -> Result<Bytes, Failure> {
            let bytes = std::fs::read(path);
            Ok(bytes
                .map_err(|error| Failure::input(path.display(), error))?
                .into())
        };
        for (n, suffix) in SUFFIXES.into_iter().enumerate() {
            if let Some(name) = text.strip_suffix(suffix) {
                let mut bytes = [None, None];
                bytes[n] = Some(whole(path)?);
                return Ok(Self {
                    name: base_name(name),
                    bytes,
                });
            }
        }
        let mut bytes = [None, None];
        for (place, suffix) in bytes.iter_mut().zip(SUFFIXES) {
            let path = PathBuf::from(format!("{text}{suffix}"));
            if path.exists() {
                *place = Some(whole(&path)?);
            }
        }
        if bytes.iter().all(Option::is_none) {
            let why = "there is neither NAME.c2s.bin nor NAME.s2c.bin";
            return Err(Failure::input(path.display(), why));
        }
        Ok(Self {
            name: base_name(&text),
            bytes,
        })
    }

    /// A server's reply comes behind the call; all else it says as early as may be.
    fn play_zeo(self, id: u64, dump: &mut Dump<impl Write>) -> Result<(), Failure> {
        let [from_client, from_server] = self.bytes.map(Option::unwrap_or_default);
        let has_both = !from_client.is_empty() && !from_server.is_empty();
        let mut calls = Frames::new(from_client);
        let mut answers = Frames::new(from_server);
        while let Some((frame, whole)) = answers.next() {
            while has_both && is_premature(dump, id, frame.as_ref()) {
                let Some((_, call)) = calls.next() else { break };
                dump.data(None, id, Way::ToServer, &call)?;
            }
            dump.data(None, id, Way::ToClient, &whole)?;
        }
        while let Some((_, call)) = calls.next() {
            dump.data(None, id, Way::ToServer, &call)?;
        }
        Ok(())
    }

    /// The handshake alternates. Behind it nothing tells what came first: all that the client sent
    /// is shown before all that it got.
    fn play_spread(self, id: u64, dump: &mut Dump<impl Write>) -> Result<(), Failure> {
        for (way, bytes) in [Way::ToServer, Way::ToClient].into_iter().zip(self.bytes) {
            if let Some(bytes) = bytes {
                dump.data(None, id, way, &bytes)?;
            }
        }
        Ok(())
    }
}

/// Whether a server would have said this later.
fn is_premature(dump: &Dump<impl Write>, id: u64, frame: Option<&Bytes>) -> bool {
    let zeo = dump.talk_of(id).and_then(|talk| talk.zeo());
    zeo.zip(frame)
        .is_some_and(|(zeo, frame)| zeo.is_premature(frame))
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// A stream frame by frame.
#[derive(Debug)]
struct Frames {
    bytes: Bytes,
    pos: usize,
    reader: FrameReader,
}

impl Frames {
    fn new(bytes: Bytes) -> Self {
        let mut reader = FrameReader::new(u32::MAX as usize);
        reader.receive(&bytes);
        Self {
            bytes,
            pos: 0,
            reader,
        }
    }

    /// The next frame, and the same with its length. The rest of the stream at last, which is no
    /// frame.
    fn next(&mut self) -> Option<(Option<Bytes>, Bytes)> {
        if self.pos >= self.bytes.len() {
            return None;
        }
        let frame = self.reader.next().ok().flatten();
        let end = frame
            .as_ref()
            .map_or(self.bytes.len(), |frame| self.pos + 4 + frame.len());
        let whole = self.bytes.slice(self.pos..end);
        self.pos = end;
        Some((frame, whole))
    }
}
