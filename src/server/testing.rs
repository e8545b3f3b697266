//! A server between clients and a node, both of which say what a test wants them to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Now, Options, Output, Port, Server, ToNode};
use crate::ids::{ClientId, Oid, Tid};
use crate::replica::event::{Readers, Serving, Token, Writers};
use crate::storage::apply::{Applied, Applier};
use crate::storage::disk::Disk;
use crate::storage::memory::MemoryDisk;
use crate::storage::recover::Access;
use crate::storage::transfer::Transfer;
use crate::storage::{self, FileStorage, LockScope, PackOptions, Proposal};
use crate::zeo::client::{ClientError, ClientSession, Raised, Received};
use crate::zeo::{Encoding, Value};

/// What a client hears in answer to a call.
pub(super) type Heard = Result<Value, Raised>;

pub(super) const OPEN: Serving = Serving {
    writers: Writers::Open,
    readers: Readers::Open,
};

pub(super) const REPLICA: Serving = Serving {
    writers: Writers::Closed,
    readers: Readers::Open,
};

pub(super) struct Front {
    pub(super) server: Server,
    pub(super) applier: Applier,
    pub(super) now: Now,
    pub(super) to_node: VecDeque<ToNode>,
    sessions: BTreeMap<ClientId, ClientSession>,
    heard: BTreeMap<ClientId, Vec<Received>>,
    closed: BTreeSet<ClientId>,
    /// Answers to `ruok`.
    pub(super) reports: BTreeMap<ClientId, Bytes>,
    calls: i64,
}

impl Front {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    pub(super) fn new(serving: Serving) -> Self {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let access = Access::Applied;
        let path = Path::new("Data.fs");
        let mut applier = Applier::open(disk, path, None, access, &mut |_| ()).unwrap();
        for tid in [10, 20, 30] {
            applier
                .apply(Tid(tid), &transfer(&[tid]), Path::new(""))
                .unwrap();
        }
        let options = storage::Options {
            name: "1".to_owned(),
            read_only: false,
            create: false,
            quota: None,
            client_resolves: true,
            lock_scope: LockScope::Objects,
            pack: PackOptions::default(),
            blob_dir: None,
        };
        let storage = FileStorage::follow(applier.follow(), options);
        let now = Now {
            mono: Instant::now(),
            wall: Duration::from_secs(1_800_000_000),
        };
        let options = Options {
            encoding: Encoding::Z,
            read_only: false,
            invalidation_queue_size: 100,
            invalidation_age: Duration::ZERO,
            transaction_timeout: None,
            start: String::new(),
        };
        let mut front = Self {
            server: Server::new(options, vec![storage], now),
            applier,
            now,
            to_node: VecDeque::new(),
            sessions: BTreeMap::new(),
            heard: BTreeMap::new(),
            closed: BTreeSet::new(),
            reports: BTreeMap::new(),
            calls: 0,
        };
        front.serve(serving);
        front
    }

    pub(super) fn serve(&mut self, serving: Serving) {
        self.server.set_serving(serving, self.now);
        self.settle();
    }

    /// Time passes, as far as there is something to do, and no further than that.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now.mono + time;
        while let Some(deadline) = self.server.deadline().filter(|at| *at <= until) {
            self.now.mono = deadline;
            self.server.on_deadline(self.now);
            self.settle();
        }
        self.now.mono = until;
    }

    pub(super) fn connect(&mut self, port: Port) -> ClientId {
        let key = u32::try_from(self.sessions.len()).unwrap();
        let id = ClientId {
            serial: key + 1,
            key,
        };
        self.sessions.insert(id, ClientSession::default());
        self.server.connect(id, "peer".to_owned(), port, self.now);
        self.settle();
        id
    }

    /// A client that has registered, and could.
    pub(super) fn registered(&mut self, port: Port, read_only: bool) -> ClientId {
        let id = self.connect(port);
        self.confirm_all(true);
        assert!(self.is_greeted(id));
        self.register(id, read_only).unwrap().unwrap();
        assert!(!self.is_closed(id));
        id
    }

    /// What the client hears when it wants to register, if anything.
    pub(super) fn register(&mut self, id: ClientId, read_only: bool) -> Option<Heard> {
        let args = vec![Value::text("1"), Value::Bool(read_only)];
        let msgid = self.call(id, "register", args);
        self.reply(id, msgid)
    }

    /// Calls; the name of the call.
    pub(super) fn call(&mut self, id: ClientId, name: &'static str, args: Vec<Value>) -> i64 {
        self.calls += 1;
        let session = self.sessions.get_mut(&id).unwrap();
        session.call(self.calls, name, args).unwrap();
        self.settle();
        self.calls
    }

    pub(super) fn tell(&mut self, id: ClientId, name: &'static str, args: Vec<Value>) {
        let session = self.sessions.get_mut(&id).unwrap();
        session.send(name, args).unwrap();
        self.settle();
    }

    /// Bytes of no protocol.
    pub(super) fn say(&mut self, id: ClientId, frame: &[u8]) {
        let len = u32::try_from(frame.len()).unwrap();
        self.server.receive(id, &len.to_be_bytes());
        self.server.receive(id, frame);
        while self.server.run_calls(id, 10, self.now) {}
        self.settle();
    }

    /// The answer to a call, if it has come.
    pub(super) fn reply(&mut self, id: ClientId, wanted: i64) -> Option<Heard> {
        let heard = self.heard.get_mut(&id)?;
        let is_it = |it: &Received| match it {
            Received::Reply { msgid, .. } => *msgid == Value::Int(wanted),
            _ => false,
        };
        match heard.remove(heard.iter().position(is_it)?) {
            Received::Reply { result, .. } => Some(result),
            _ => None,
        }
    }

    /// All that the client has heard and not looked at.
    pub(super) fn heard(&mut self, id: ClientId) -> Vec<Received> {
        std::mem::take(self.heard.entry(id).or_default())
    }

    pub(super) fn is_greeted(&self, id: ClientId) -> bool {
        self.sessions[&id].encoding().is_some()
    }

    pub(super) fn is_closed(&self, id: ClientId) -> bool {
        self.closed.contains(&id)
    }

    /// The client goes.
    pub(super) fn hang_up(&mut self, id: ClientId) {
        self.server.on_end(id, self.now);
        self.settle();
    }

    /// Stages and votes; the call.
    pub(super) fn vote(&mut self, id: ClientId, stores: &[(u64, u64)]) -> i64 {
        self.calls += 1;
        let txn = Value::Int(self.calls);
        let empty = || Value::Bytes(Bytes::new());
        let begin = vec![
            txn.clone(),
            empty(),
            empty(),
            Value::Dict(Vec::new()),
            Value::None,
            Value::text(" "),
        ];
        self.tell(id, "tpc_begin", begin);
        for (oid, serial) in stores {
            let data = Value::Bytes(Bytes::from_static(b"data"));
            let args = vec![Oid(*oid).into(), Tid(*serial).into(), data, txn.clone()];
            self.tell(id, "storea", args);
        }
        self.call(id, "vote", vec![txn])
    }

    /// Finishes what was voted last by [`Self::vote`], which was this call.
    pub(super) fn finish(&mut self, id: ClientId, vote: i64) -> i64 {
        self.call(id, "tpc_finish", vec![Value::Int(vote - 1)])
    }

    /// Stages, votes and finishes; the call.
    pub(super) fn propose(&mut self, id: ClientId, stores: &[(u64, u64)]) -> (Token, i64) {
        let vote = self.vote(id, stores);
        let granted = Some(Ok(Value::List(Vec::new())));
        assert_eq!(self.reply(id, vote), granted);
        let finish = self.finish(id, vote);
        match self.to_node.back() {
            Some(ToNode::Finish { token, .. }) => (*token, finish),
            other => panic!("{other:?}"),
        }
    }

    /// What the server wants committed next.
    pub(super) fn proposal(&mut self) -> (Token, Proposal) {
        let is_finish = |it: &ToNode| matches!(it, ToNode::Finish { .. });
        let at = self.to_node.iter().position(is_finish).unwrap();
        match self.to_node.remove(at) {
            Some(ToNode::Finish {
                token, proposal, ..
            }) => (token, proposal),
            other => panic!("{other:?}"),
        }
    }

    /// The log commits it.
    pub(super) fn apply(&mut self, proposal: &Proposal) -> Applied {
        let tid = Tid(self.applier.last_tid().0 + 10);
        let transfer = Transfer::decode(proposal.body.pieces()).unwrap();
        let applied = self.applier.apply(tid, &transfer, Path::new(""));
        applied.unwrap()
    }

    pub(super) fn commit_next(&mut self) -> Tid {
        let (token, proposal) = self.proposal();
        let applied = self.apply(&proposal);
        let tid = applied.tid;
        self.server.on_applied("1", applied, Some(token), self.now);
        self.settle();
        tid
    }

    /// Another node has committed changes of these objects.
    pub(super) fn commit_elsewhere(&mut self, oids: &[u64]) -> Tid {
        let tid = Tid(self.applier.last_tid().0 + 10);
        let transfer = transfer(oids);
        let applied = self.applier.apply(tid, &transfer, Path::new("")).unwrap();
        self.server.on_applied("1", applied, None, self.now);
        self.settle();
        tid
    }

    /// What wants to be confirmed.
    pub(super) fn confirms(&mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        self.to_node.retain(|it| match it {
            ToNode::Confirm { token } => {
                tokens.push(*token);
                false
            }
            _ => true,
        });
        tokens
    }

    pub(super) fn confirm_all(&mut self, is_sure: bool) -> usize {
        let tokens = self.confirms();
        for token in &tokens {
            self.server.on_confirmed(*token, is_sure, self.now);
        }
        self.settle();
        tokens.len()
    }

    /// Does what the server asks for; jobs are run at once, and sockets take all.
    pub(super) fn settle(&mut self) {
        loop {
            self.server.end_turn(self.now);
            let Some(output) = self.server.poll_output() else {
                if self.deliver() {
                    continue;
                }
                return;
            };
            match output {
                Output::Run(tag, job) => self.server.on_done(tag, job.run(), self.now),
                Output::Serve(id) => while self.server.run_calls(id, 10, self.now) {},
                Output::Send(id) => self.take(id),
                Output::Close(id) => {
                    self.take(id);
                    self.server.forget(id);
                    self.closed.insert(id);
                }
                Output::ToNode(to_node) => self.to_node.push_back(to_node),
            }
        }
    }

    /// What clients have said comes to the server.
    fn deliver(&mut self) -> bool {
        let mut any = false;
        for (id, session) in &mut self.sessions {
            let said = drain(&mut session.out);
            if !said.is_empty() && !self.closed.contains(id) {
                any = true;
                self.server.receive(*id, &said);
                while self.server.run_calls(*id, 10, self.now) {}
            }
        }
        any
    }

    fn take(&mut self, id: ClientId) {
        let Some(out) = self.server.output_of(id) else {
            return;
        };
        let said = drain(out);
        self.server.on_written(id);
        let session = self.sessions.get_mut(&id).unwrap();
        session.receive(&said);
        let heard = self.heard.entry(id).or_default();
        loop {
            match session.next() {
                Ok(Some(received)) => heard.push(received),
                Ok(None) => break,
                // The answer to `ruok`.
                Err(ClientError::Greeting(text)) => {
                    self.reports.insert(id, text);
                    break;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

fn drain(out: &mut crate::out_queue::OutQueue) -> Vec<u8> {
    let mut said = Vec::new();
    while !out.is_empty() {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = out.slices(&mut slices, usize::MAX);
        let before = said.len();
        slices[..count]
            .iter()
            .for_each(|slice| said.extend_from_slice(slice));
        out.advance(said.len() - before);
    }
    said
}

fn transfer(oids: &[u64]) -> Transfer {
    let record = |oid: &u64| storage::transfer::Record {
        oid: Oid(*oid),
        data: Some(Bytes::from_static(b"theirs")),
        same_as: None,
    };
    Transfer {
        storage: "1".to_owned(),
        status: b' ',
        user: Bytes::new(),
        description: Bytes::new(),
        extension: Bytes::new(),
        records: oids.iter().map(record).collect(),
        blobs: Vec::new(),
    }
}
