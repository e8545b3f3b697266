//! Recorded conversations of stock clients with runzeo, held again with our server: the bytes that
//! the clients sent go in, and what comes out has to mean what runzeo answered.
//!
//! Each is held twice: with a disk that answers at once, and with one that has to be waited for.
//!
//! The clock is set so that our tids are those of the recording; everything else follows. What may
//! differ is listed in [`may_differ`], with the reason. The order of messages within a connection
//! is that of the recording, except that loads may overtake each other; between connections it was
//! not recorded, and is chosen so that it explains what was (see [`Conversation::next`]).

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::ids::{ClientId, Tid};
use standby::pickle;
use standby::server::{Now, Output, Port, Server};
use standby::storage::blob::layout::{BlobDirectory, Layout};
use standby::storage::disk::{Disk, File, FileId, OpenMode};
use standby::storage::memory::MemoryDisk;
use standby::storage::witness;
use standby::storage::{FileStorage, LockScope, Options, PackOptions};
use standby::zeo::{
    Encoding, FrameReader, Message, ProtocolError, Request, Value, message, msgpack,
};

const BLOB_DIR: &str = "DIR/blobs";

/// What the server serves already.
const SCENARIOS: [&str; 16] = [
    "connect",
    "ruok",
    "load",
    "commit3",
    "conflict",
    "verification",
    "quota",
    "unknown_method",
    "async_error",
    "heartbeat",
    "iteration",
    "undo",
    "restore_delete",
    "pack",
    "blob",
    "blob_shared",
];

/// Calls whose answers are not compared: runzeo looks at the object before it looks at the other
/// arguments.
const WRONG_ARGUMENTS: &str = "a call with wrong arguments";

/// In an answer of runzeo on Python 3 to `undoInfo` with a `ZopeUndo.Prefix`, which it cannot
/// compare. We can, on any Python.
const DEFECT: &[u8] = b"a bytes-like object is required";

#[test]
fn answers_mean_what_runzeo_answered() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/zeo");
    let mut clients: Vec<PathBuf> = fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    clients.sort();
    let mut held = 0;
    for client in &clients {
        for scenario in SCENARIOS.iter().chain(&["errors", "bad_handshake"]) {
            let directory = client.join(scenario);
            if directory.is_dir() {
                for cold in [false, true] {
                    Conversation::new(&directory, cold).hold();
                }
                held += 1;
            }
        }
    }
    assert!(held >= 40, "only {held} recordings were found");
}

/// A disk on which tids are what the clock says; if `is_cold` it has nothing in memory: whatever is
/// read has to be waited for.
#[derive(Debug)]
struct ReplayDisk {
    memory: MemoryDisk,
    is_cold: bool,
}

#[derive(Debug)]
struct ColdFile(Arc<dyn File>);

impl Disk for ReplayDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = self.memory.open(path, mode)?;
        Ok(match self.is_cold {
            true => Arc::new(ColdFile(file)),
            false => file,
        })
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.memory.read(path)
    }

    fn replace(&self, path: &Path, contents: &[&[u8]]) -> io::Result<()> {
        if path.to_string_lossy().ends_with(witness::SUFFIX) {
            // With it tids would say something else, too.
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.memory.replace(path, contents)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.memory.remove(path)
    }

    fn identify(&self, path: &Path) -> io::Result<FileId> {
        self.memory.identify(path)
    }

    fn sync_directory_of(&self, path: &Path) -> io::Result<()> {
        self.memory.sync_directory_of(path)
    }

    fn open_unnamed(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.memory.open_unnamed(path)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.memory.names(directory)
    }

    fn create_directories(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.memory.create_directories(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.memory.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.memory.link(from, to)
    }

    fn discard(&self, path: &Path) -> io::Result<()> {
        self.memory.discard(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.memory.remove_tree(path)
    }

    fn set_read_only(&self, path: &Path, directory: &Path) -> io::Result<()> {
        self.memory.set_read_only(path, directory)
    }
}

impl File for ColdFile {
    fn id(&self) -> io::Result<FileId> {
        self.0.id()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], pos: u64) -> io::Result<usize> {
        self.0.read_at(buf, pos)
    }

    fn read_at_nowait(&self, _buf: &mut [u8], _pos: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], pos: u64) -> io::Result<()> {
        self.0.write_at(bufs, pos)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, pos: u64, len: u64) -> io::Result<()> {
        self.0.allocate(pos, len)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }
}

/// One recorded connection.
struct Recorded {
    sent: Vec<Bytes>,
    answered: Vec<Bytes>,
    /// How many of `sent` were replayed.
    replayed: usize,
    id: ClientId,
    reader: FrameReader,
    got: Vec<Bytes>,
    closed: bool,
}

struct Conversation {
    name: String,
    encoding: Encoding,
    connections: Vec<Recorded>,
    server: Server,
    /// Of the storage whose clients share its blobs.
    disk: Arc<dyn Disk>,
    start: Instant,
    wall: Duration,
    last_tid: Tid,
}

impl Conversation {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn new(directory: &Path, cold: bool) -> Self {
        let mut connections = Vec::new();
        for number in 1.. {
            let file = |direction| directory.join(format!("conn{number}.{direction}.bin"));
            if !file("c2s").exists() {
                break;
            }
            connections.push(Recorded {
                sent: frames(&fs::read(file("c2s")).unwrap()),
                answered: frames(&fs::read(file("s2c")).unwrap()),
                replayed: 0,
                id: ClientId {
                    serial: number,
                    key: 0,
                },
                reader: FrameReader::new(1 << 30),
                got: Vec::new(),
                closed: false,
            });
        }
        let name = directory.display().to_string();
        let encoding = if name.contains("-M") {
            Encoding::M
        } else {
            Encoding::Z
        };
        let serving = standby::server::Options {
            encoding,
            read_only: false,
            invalidation_queue_size: 10,
            invalidation_age: Duration::ZERO,
            transaction_timeout: None,
            start: "Sat Nov 21 00:00:00 2026".to_owned(),
        };
        let new_disk = || -> Arc<dyn Disk> {
            let memory = MemoryDisk::new();
            let is_cold = cold;
            Arc::new(ReplayDisk { memory, is_cold })
        };
        let storage = |disk: Arc<dyn Disk>, name: &str, read_only, quota| {
            let options = Options {
                name: name.to_owned(),
                read_only,
                create: false,
                quota,
                client_resolves: true,
                lock_scope: LockScope::Storage,
                pack: PackOptions::default(),
                blob_dir: (name == "1").then(|| BLOB_DIR.into()),
            };
            // A read-only storage does not create its file.
            let writable = Options {
                read_only: false,
                ..options.clone()
            };
            FileStorage::open(
                disk.clone(),
                Path::new("DIR/Data.fs"),
                writable,
                &mut |_| (),
            )
            .unwrap()
            .close()
            .unwrap();
            FileStorage::open(disk, Path::new("DIR/Data.fs"), options, &mut |_| ()).unwrap()
        };
        let disk = new_disk();
        let storages = vec![
            storage(disk.clone(), "1", false, None),
            storage(new_disk(), "frozen", true, None),
            storage(new_disk(), "small", false, Some(3000)),
        ];
        let start = Instant::now();
        let wall = Duration::from_secs(1_795_222_000);
        let now = Now { mono: start, wall };
        Self {
            name,
            encoding,
            connections,
            server: Server::new(serving, storages, now),
            disk,
            start,
            wall,
            last_tid: Tid::ZERO,
        }
    }

    fn hold(mut self) {
        for at in 0..self.connections.len() {
            let peer = format!("conn{}", at + 1);
            let now = self.now();
            self.server
                .connect(self.connections[at].id, peer, Port::Main, now);
        }
        self.settle();
        while let Some(at) = self.next() {
            self.replay(at);
            self.leave();
        }
        for (at, connection) in self.connections.iter().enumerate() {
            self.compare(at, connection);
        }
    }

    /// The connection whose next message is replayed: one whose next answer, as recorded, is that
    /// to this very message, if there is one. The others are in the middle of a transaction, whose
    /// end the first have to be there to hear of.
    fn next(&self) -> Option<usize> {
        let pending = |connection: &&Recorded| {
            !connection.closed && connection.replayed < connection.sent.len()
        };
        let is_explained = |connection: &Recorded| {
            let sent = &connection.sent[connection.replayed];
            match (
                self.call(sent),
                connection.answered.get(connection.got.len()),
            ) {
                (Some(call), Some(answer)) => self.reply(answer).is_some_and(|(msgid, result)| {
                    let registers = matches!(call.request, Request::Register { .. });
                    let told = as_tid(&result).filter(|_| registers);
                    msgid == call.msgid && told.is_none_or(|tid| tid == self.last_tid)
                }),
                // A greeting.
                (None, _) => connection.replayed == 0,
                _ => false,
            }
        };
        let is_asynchronous = |connection: &Recorded| {
            let call = self.call(&connection.sent[connection.replayed]);
            call.is_some_and(|call| call.asynchronous)
        };
        let position = |wanted: &dyn Fn(&Recorded) -> bool| {
            self.connections
                .iter()
                .position(|one| pending(&one) && wanted(one))
        };
        // What ends transactions comes in the order of their tids.
        let finishing = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, one)| pending(one));
        let first_to_finish = finishing.min_by_key(|(_, one)| self.tid_told(one));
        position(&is_explained)
            .or_else(|| position(&is_asynchronous))
            .or_else(|| first_to_finish.map(|(at, _)| at))
    }

    /// What `tpc_finish` was answered, if that is what the client sends next.
    fn tid_told(&self, connection: &Recorded) -> Tid {
        let call = self.call(&connection.sent[connection.replayed]);
        let finish = call.filter(|call| matches!(call.request, Request::TpcFinish { .. }));
        let replies = connection
            .answered
            .iter()
            .filter_map(|frame| self.reply(frame));
        finish
            .and_then(|finish| {
                replies
                    .filter(|(msgid, _)| *msgid == finish.msgid)
                    .find_map(|(_, r)| as_tid(&r))
            })
            .unwrap_or(Tid::MAX)
    }

    fn call(&self, frame: &Bytes) -> Option<message::Call> {
        match message::decode(self.encoding, frame) {
            Ok(Message::Call(call)) => Some(call),
            _ => None,
        }
    }

    /// Clients that have sent and got all that was recorded close their connections.
    fn leave(&mut self) {
        for at in 0..self.connections.len() {
            let connection = &self.connections[at];
            if connection.replayed == connection.sent.len()
                && connection.got.len() >= connection.answered.len()
            {
                self.server.on_end(connection.id, self.now());
            }
        }
        self.settle();
    }

    fn replay(&mut self, at: usize) {
        let tid = self.tid_told(&self.connections[at]);
        self.share_file(at);
        let connection = &mut self.connections[at];
        let frame = connection.sent[connection.replayed].clone();
        connection.replayed += 1;
        let id = connection.id;
        if tid != Tid::MAX {
            self.wall = tid.unix_time() + Duration::from_nanos(1);
            self.last_tid = tid;
        }
        let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&frame);
        // In pieces, as a network may deliver them.
        for piece in bytes.chunks(7) {
            self.server.receive(id, piece);
            while self.server.run_calls(id, 3, self.now()) {}
        }
        self.settle();
    }

    /// A client that shares the directory of the blobs has put a file there before it says so.
    fn share_file(&self, at: usize) {
        let connection = &self.connections[at];
        let call = self.call(&connection.sent[connection.replayed]);
        if let Some(Request::StoreBlobShared { oid, filename, .. }) = call.map(|call| call.request)
        {
            let directory = BlobDirectory::new(BLOB_DIR.into(), Layout::Bushy).directory_of(oid);
            let path = directory.join(str::from_utf8(&filename).unwrap());
            self.disk.create_directories(&directory).unwrap();
            self.disk.open(&path, OpenMode::CreateNew).unwrap();
        }
    }

    fn now(&self) -> Now {
        Now {
            mono: self.start,
            wall: self.wall,
        }
    }

    /// Does what the server asks for until it asks for no more.
    fn settle(&mut self) {
        loop {
            self.server.end_turn(self.now());
            let Some(output) = self.server.poll_output() else {
                return;
            };
            match output {
                Output::Run(tag, job) => self.server.on_done(tag, job.run(), self.now()),
                Output::Serve(id) => while self.server.run_calls(id, 3, self.now()) {},
                Output::Send(id) => self.take(id),
                Output::Close(id) => {
                    self.take(id);
                    self.server.forget(id);
                    for connection in self.connections.iter_mut().filter(|one| one.id == id) {
                        connection.closed = true;
                    }
                }
                Output::ToNode(to_node) => panic!("{to_node:?}"),
            }
        }
    }

    fn take(&mut self, id: ClientId) {
        let Some(out) = self.server.output_of(id) else {
            return;
        };
        let mut bytes = Vec::new();
        let mut slices = [IoSlice::new(&[]); 64];
        while !out.is_empty() {
            let count = out.slices(&mut slices, usize::MAX);
            let taken: Vec<u8> = slices[..count]
                .iter()
                .flat_map(|one| one.to_vec())
                .collect();
            out.advance(taken.len());
            bytes.extend_from_slice(&taken);
            slices = [IoSlice::new(&[]); 64];
        }
        self.server.on_written(id);
        for connection in self.connections.iter_mut().filter(|one| one.id == id) {
            connection.reader.receive(&bytes);
            while let Some(frame) = connection.reader.next().unwrap() {
                connection.got.push(frame);
            }
        }
    }

    fn compare(&self, at: usize, connection: &Recorded) {
        let who = format!("{} connection {}", self.name, at + 1);
        let calls = self.calls(connection);
        let show = |frames: &[Bytes]| -> Vec<String> {
            frames
                .iter()
                .map(|frame| self.shown(frame, &calls))
                .collect()
        };
        let (wanted, got) = (show(&connection.answered), show(&connection.got));
        for (number, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
            if contains(&connection.answered[number], DEFECT) {
                continue;
            }
            assert_eq!(got, wanted, "{who}, message {number}");
        }
        assert_eq!(got.len(), wanted.len(), "{who}: number of messages");
    }

    /// The method that was called with each msgid.
    fn calls(&self, connection: &Recorded) -> BTreeMap<String, &'static str> {
        let calls = connection.sent.iter().skip(1).filter_map(|frame| {
            let (msgid, name) = match message::decode(self.encoding, frame) {
                Ok(Message::Call(call)) if !call.asynchronous => (call.msgid, call.request.name()),
                Err(ProtocolError::BadArguments { msgid, .. }) => (msgid, WRONG_ARGUMENTS),
                _ => return None,
            };
            Some((format!("{msgid:?}"), name))
        });
        calls.collect()
    }

    /// A message of the server in a form that is equal when the meaning is.
    fn shown(&self, frame: &Bytes, calls: &BTreeMap<String, &'static str>) -> String {
        if let Some(what) = failed_undo(frame) {
            return what;
        }
        let Some(Value::Tuple(mut parts)) = self.decoded(frame) else {
            // The greeting, or the answer to `ruok`, which has times in it.
            let text = String::from_utf8_lossy(frame).into_owned();
            return if text.starts_with('{') {
                "status".to_owned()
            } else {
                text
            };
        };
        let method = calls.get(&format!("{:?}", parts[0])).copied();
        if let Some(name) = method.filter(|name| *name == WRONG_ARGUMENTS) {
            return format!("the answer to {name}");
        }
        let result = std::mem::replace(&mut parts[3], Value::None);
        parts[3] = may_differ(method, &parts[2], result);
        // A server on Python 2 knows one kind of string only.
        format!(
            "{:?}",
            normal(Value::Tuple(parts), self.name.contains("py27"))
        )
    }

    fn decoded(&self, frame: &Bytes) -> Option<Value> {
        let value = match self.encoding {
            Encoding::Z => pickle::decode(frame).ok()?,
            Encoding::M => msgpack::decode(frame).ok()?,
        };
        matches!(&value, Value::Tuple(parts) if parts.len() == 4).then_some(value)
    }

    /// Msgid and result of a reply.
    fn reply(&self, frame: &Bytes) -> Option<(Value, Value)> {
        let Value::Tuple(parts) = self.decoded(frame)? else {
            return None;
        };
        (parts[2].string()? == ".reply").then(|| (parts[0].clone(), parts[3].clone()))
    }
}

/// A refused undo. Runzeo sends instances of exceptions in its reasons, which clients of msgpack
/// cannot show; we send text. Its other reason is one of Python's decoder of undo ids.
fn failed_undo(frame: &[u8]) -> Option<String> {
    let reason = b"Some data were modified by a later transaction";
    if contains(frame, b"ZODB.POSException.MultipleUndoErrors") {
        let said = contains(frame, reason);
        return Some(format!("nothing is undone; the reason is there: {said}"));
    }
    let unknown: [&[u8]; 2] = [b"binascii.Error", b"Invalid transaction id"];
    let is_unknown = unknown.into_iter().any(|text| contains(frame, text));
    is_unknown.then(|| "there is no such transaction".to_owned())
}

fn contains(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|found| found == text)
}

/// Takes out of a result what may differ from runzeo's.
fn may_differ(method: Option<&'static str>, name: &Value, result: Value) -> Value {
    match (method, result) {
        // The interfaces that we serve; times, and counters of what runzeo counts otherwise.
        (Some("get_info" | "server_status"), _) => Value::text("(may differ)"),
        // Extensions are pickled without the memo's opcodes: the file is a few bytes shorter.
        (None, Value::Tuple(args)) if name.string().is_some_and(|name| name == "info") => {
            let keys = args.into_iter().map(|arg| match arg {
                Value::Dict(items) => Value::List(
                    items
                        .into_iter()
                        .filter(|(key, _)| key.string().is_none_or(|key| key != "size"))
                        .map(|(key, value)| Value::Tuple(vec![key, value]))
                        .collect(),
                ),
                other => other,
            });
            Value::Tuple(keys.collect())
        }
        // The path of the file, which is the server's business.
        (Some("sendBlob"), Value::Tuple(mut error)) => {
            if let Some(Value::Tuple(arguments)) = error.get_mut(1) {
                arguments[0] = Value::text("No blob file");
            }
            Value::Tuple(error)
        }
        (_, result) => result,
    }
}

/// Dicts sorted, and on request all strings as bytes.
fn normal(value: Value, one_kind: bool) -> Value {
    let all = |values: Vec<Value>| values.into_iter().map(|it| normal(it, one_kind)).collect();
    match value {
        Value::Text(text) | Value::Str(text) | Value::Bytes(text) if one_kind => {
            // Where Python 2 keeps what Python 3 calls builtins.
            match text.strip_prefix(b"exceptions.") {
                Some(name) => Value::Bytes([b"builtins.", name].concat().into()),
                None => Value::Bytes(text),
            }
        }
        Value::Tuple(values) => Value::Tuple(all(values)),
        Value::List(values) => Value::List(all(values)),
        Value::Dict(items) => {
            let items = items.into_iter();
            let mut items: Vec<_> = items
                .map(|(key, value)| (normal(key, one_kind), normal(value, one_kind)))
                .collect();
            items.sort_by_key(|(key, _)| format!("{key:?}"));
            Value::Dict(items)
        }
        other => other,
    }
}

fn as_tid(value: &Value) -> Option<Tid> {
    Tid::from_slice(value.string()?)
}

/// The frames of a recorded stream; what follows the last whole one is left out.
fn frames(stream: &[u8]) -> Vec<Bytes> {
    let mut reader = FrameReader::new(1 << 30);
    reader.receive(stream);
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}
