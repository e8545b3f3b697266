//! A server that is driven by hand: what clients would send goes in, what they would get comes out,
//! and jobs are run when the test says so. No sockets, no threads, no clock.

#![allow(dead_code, reason = "each test uses what it needs")]

pub(crate) mod cold;

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::ids::{ClientId, Oid, Tid};
use standby::limits::CALLS_PER_TURN;
use standby::pickle;
use standby::server::{JobTag, Now, Options, Output, Port, Server};
use standby::storage::disk::Disk;
use standby::storage::{self, Done, FileStorage, Job, LockScope, PackOptions};
use standby::zeo::{Encoding, FrameReader, Value, msgpack};

/// The server, and what the reactor would hold for it.
pub(crate) struct Driver {
    pub(crate) server: Server,
    pub(crate) encoding: Encoding,
    now: Now,
    /// Jobs that were handed out and not run.
    pub(crate) jobs: VecDeque<(JobTag, Job)>,
    /// Clients whose calls can go on.
    pub(crate) to_serve: Vec<ClientId>,
    pub(crate) closed: Vec<ClientId>,
    /// Whether jobs are run at the end of each turn.
    pub(crate) is_disk_at_hand: bool,
    connected: u32,
    txns: i64,
}

impl Driver {
    /// Serves `Data.fs` on `disk` as the storage `1`.
    #[expect(clippy::disallowed_methods, reason = "the time that all this is at")]
    pub(crate) fn new(disk: Arc<dyn Disk>, path: &Path, encoding: Encoding) -> Self {
        let options = storage::Options {
            name: "1".to_owned(),
            read_only: false,
            create: false,
            quota: None,
            client_resolves: true,
            lock_scope: LockScope::Storage,
            pack: PackOptions::default(),
            blob_dir: None,
        };
        let storage = FileStorage::open(disk, path, options, &mut |_| ()).unwrap();
        let now = Now {
            mono: Instant::now(),
            wall: Duration::from_secs(1_800_000_000),
        };
        let options = Options {
            encoding,
            read_only: false,
            invalidation_queue_size: 100,
            invalidation_age: Duration::ZERO,
            transaction_timeout: None,
            start: String::new(),
        };
        Self {
            server: Server::new(options, vec![storage], now),
            encoding,
            now,
            jobs: VecDeque::new(),
            to_serve: Vec::new(),
            closed: Vec::new(),
            is_disk_at_hand: true,
            connected: 0,
            txns: 0,
        }
    }

    /// A client that has registered.
    pub(crate) fn connect(&mut self) -> ClientId {
        let id = ClientId {
            serial: self.connected + 1,
            key: self.connected,
        };
        self.connected += 1;
        self.server
            .connect(id, "peer".to_owned(), Port::Main, self.now);
        let greeting: &[u8] = match self.encoding {
            Encoding::Z => b"Z5",
            Encoding::M => b"M5",
        };
        let args = vec![Value::text("1"), Value::Bool(false)];
        let hello = [framed(greeting), self.call(0, "register", args)].concat();
        self.send(id, &hello);
        self.take(id);
        id
    }

    /// A call as a client on Python 3 writes it.
    pub(crate) fn call(&self, msgid: i64, name: &'static str, args: Vec<Value>) -> Vec<u8> {
        self.message(&Value::Int(msgid), false, name, args)
    }

    /// A call that nobody waits for.
    pub(crate) fn tell(&self, name: &'static str, args: Vec<Value>) -> Vec<u8> {
        self.message(&Value::Int(0), true, name, args)
    }

    /// A load as stock clients write it.
    pub(crate) fn load(&self, oid: u64, before: Tid) -> Vec<u8> {
        let ids = vec![bytes(&Oid(oid).to_bytes()), bytes(&before.to_bytes())];
        self.message(&Value::Tuple(ids.clone()), false, "loadBefore", ids)
    }

    fn message(
        &self,
        msgid: &Value,
        asynchronous: bool,
        name: &'static str,
        args: Vec<Value>,
    ) -> Vec<u8> {
        let parts = [
            msgid.clone(),
            Value::Bool(asynchronous),
            Value::text(name),
            Value::Tuple(args),
        ];
        let mut body = Vec::new();
        match self.encoding {
            Encoding::M => msgpack::encode(&mut body, &Value::Tuple(parts.into())),
            Encoding::Z => {
                let pickle = pickle::encode_standalone(&Value::Tuple(parts.into()), usize::MAX);
                body = pickle.unwrap();
            }
        }
        framed(&body)
    }

    /// Bytes come from a client, and its calls are executed to the end; then the turn ends.
    pub(crate) fn send(&mut self, id: ClientId, data: &[u8]) {
        self.server.receive(id, data);
        while self.server.run_calls(id, CALLS_PER_TURN, self.now) {}
        self.end_turn();
    }

    /// One connection's part of a turn; whether more calls may be there.
    pub(crate) fn serve(&mut self, id: ClientId) -> bool {
        self.server.run_calls(id, CALLS_PER_TURN, self.now)
    }

    /// Does what the server asks for, but for sending.
    pub(crate) fn end_turn(&mut self) {
        loop {
            self.server.end_turn(self.now);
            while let Some(output) = self.server.poll_output() {
                match output {
                    Output::Run(tag, job) => self.jobs.push_back((tag, job)),
                    Output::Serve(id) => self.to_serve.push(id),
                    Output::Send(_) => {}
                    Output::Close(id) => {
                        self.server.forget(id);
                        self.closed.push(id);
                    }
                    Output::ToNode(to_node) => panic!("{to_node:?}"),
                }
            }
            if !self.is_disk_at_hand || !self.run_job() {
                return;
            }
        }
    }

    /// Runs the job that waits longest, if there is one.
    pub(crate) fn run_job(&mut self) -> bool {
        let Some((tag, job)) = self.jobs.pop_front() else {
            return false;
        };
        self.server.on_done(tag, job.run(), self.now);
        true
    }

    /// Runs one of the jobs, or has it fail.
    pub(crate) fn run_job_at(&mut self, at: usize, fail: bool) {
        let (tag, job) = self.jobs.remove(at).unwrap();
        let done = match job {
            Job::Spill { txn, .. } if fail => Done::Spilled {
                txn,
                result: Err(ErrorKind::StorageFull.into()),
            },
            job => job.run(),
        };
        self.server.on_done(tag, done, self.now);
        self.end_turn();
    }

    /// What waits for a client, as if its socket took it all.
    pub(crate) fn take(&mut self, id: ClientId) -> Vec<u8> {
        self.take_some(id, usize::MAX)
    }

    /// As [`Self::take`], but the socket has room for `len` bytes only.
    pub(crate) fn take_some(&mut self, id: ClientId, len: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        let Some(out) = self.server.output_of(id) else {
            return taken;
        };
        while !out.is_empty() && taken.len() < len {
            let mut slices = [IoSlice::new(&[]); 64];
            let count = out.slices(&mut slices, usize::MAX);
            let before = taken.len();
            for slice in &slices[..count] {
                let room = len - taken.len();
                taken.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            out.advance(taken.len() - before);
        }
        self.server.on_written(id);
        taken
    }

    /// As [`Self::take`], without a look at it, nor an allocation.
    pub(crate) fn drop_output(&mut self, id: ClientId) {
        if let Some(out) = self.server.output_of(id) {
            out.advance(out.len());
        }
        self.server.on_written(id);
        self.to_serve.clear();
    }

    /// The frames that wait for a client.
    pub(crate) fn frames(&mut self, id: ClientId) -> Vec<Bytes> {
        let mut reader = FrameReader::new(usize::MAX);
        reader.receive(&self.take(id));
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().unwrap() {
            frames.push(frame);
        }
        frames
    }

    /// Everything of a transaction but its end: begin, stores, and the vote.
    pub(crate) fn transaction(&mut self, stores: &[(u64, Tid, &[u8])]) -> (Vec<u8>, Vec<u8>) {
        self.txns += 1;
        let txn = || Value::Int(self.txns);
        let empty = || Value::Bytes(Bytes::new());
        let begin = vec![
            txn(),
            empty(),
            empty(),
            Value::Dict(Vec::new()),
            Value::None,
            Value::text(" "),
        ];
        let mut calls = self.tell("tpc_begin", begin);
        for (oid, serial, data) in stores {
            let args = vec![
                bytes(&Oid(*oid).to_bytes()),
                bytes(&serial.to_bytes()),
                bytes(data),
                txn(),
            ];
            calls.extend(self.tell("storea", args));
        }
        calls.extend(self.call(1, "vote", vec![txn()]));
        (calls, self.call(2, "tpc_finish", vec![txn()]))
    }

    /// So that the next tid is a later one.
    pub(crate) fn pass_time(&mut self) {
        self.now.wall += Duration::from_millis(1);
    }

    /// The client closes its connection.
    pub(crate) fn hang_up(&mut self, id: ClientId) {
        self.server.on_end(id, self.now);
        self.end_turn();
    }

    /// How long the data file is, as a client is told.
    pub(crate) fn file_len(&mut self, id: ClientId) -> u64 {
        let call = self.call(4, "get_info", Vec::new());
        self.send(id, &call);
        let frames = self.frames(id);
        let Value::Tuple(parts) = self.decoded(&frames[0]) else {
            panic!("{frames:?}");
        };
        let Value::Dict(items) = &parts[3] else {
            panic!("{parts:?}");
        };
        let size = items.iter().find(|(key, _)| *key == Value::text("size"));
        match size {
            Some((_, Value::Int(len))) => u64::try_from(*len).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The serial of an object's current revision, as a client is told.
    pub(crate) fn current(&mut self, id: ClientId, oid: u64) -> Tid {
        let call = self.call(3, "getTid", vec![bytes(&Oid(oid).to_bytes())]);
        self.send(id, &call);
        self.last_tid(id)
    }

    /// Commits a transaction of a client; its tid.
    pub(crate) fn commit(&mut self, id: ClientId, stores: &[(u64, Tid, &[u8])]) -> Tid {
        self.pass_time();
        let (calls, finish) = self.transaction(stores);
        self.send(id, &calls);
        self.take(id);
        self.send(id, &finish);
        self.last_tid(id)
    }

    /// The tid that the last answer to a client consists of.
    fn last_tid(&mut self, id: ClientId) -> Tid {
        let frames = self.frames(id);
        let reply = self.decoded(frames.last().unwrap());
        match reply {
            Value::Tuple(parts) => match &parts[3] {
                Value::Bytes(tid) => Tid::from_slice(tid).unwrap(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn decoded(&self, frame: &Bytes) -> Value {
        match self.encoding {
            Encoding::Z => pickle::decode(frame).unwrap(),
            Encoding::M => msgpack::decode(frame).unwrap(),
        }
    }
}

pub(crate) fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(bytes))
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}
