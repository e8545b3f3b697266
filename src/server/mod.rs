//! The storage server: what happens at a call. Ties [`crate::zeo`] to [`crate::storage`].
//!
//! It is driven from outside and does no I/O: bytes and the time go in, and what it wants comes out
//! of [`Server::poll_output`]. What a client gets is queued in its session; [`Output::Send`] says
//! that there is something.
//!
//! Everything that clients can see happens in one thread, in one order (zeo-protocol, section 8):
//! a commit is published to the storage's index, then its committer's answer and the others'
//! invalidations are queued, then nobody reads an older state. A load that had to wait for the disk
//! is looked at again before it is answered (`FileStorage::settle`).

mod blobs;
mod browse;
mod calls;
mod client;
mod failover;
mod invalidation;
mod long_replies;
mod overview;
mod packing;
mod reads;
mod reason;
pub(crate) mod refusals;
mod stats;
#[cfg(test)]
mod testing;
mod verification;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::failover::{Port, ToNode};
pub use self::overview::StorageOverview;
pub use self::packing::OrderRefused;

use self::client::{Client, ClientTxn, Pending};
use self::failover::Failover;
use self::invalidation::InvalidationQueue;
use self::reads::Reads;
use self::reason::Reason;
use self::refusals::Refusals;
use self::stats::{Moment, Stats};
use crate::ids::{ClientId, Tid};
use crate::limits::{
    FOLLOW_OIDS_CLEAR, OUTPUT_LEN_MAX, OUTPUT_LEN_PER_TURN, OUTPUT_PAUSE_LEN, OUTPUT_RESUME_LEN,
    TRANSACTION_TIMEOUT_DEFAULT, WAITING_CALLS_MAX,
};
use crate::storage::{Commit, Done, Event, FileStorage, Job, TxnId, Vote};
use crate::zeo::Value;
use crate::zeo::frame::OutQueue;
use crate::zeo::message::{Dialect, Encoder, Encoding};
use crate::zeo::session::{Incoming, Session};

/// What lines about clients are logged under: runzeo's name, which people's log filters know.
const LOG: &str = "ZEO.StorageServer";

/// The time, as the reactor sees it.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For deadlines: never goes back.
    pub mono: Instant,
    /// For tids: since 1970, and may jump.
    pub wall: Duration,
}

/// How clients are served.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the server announces; clients follow.
    pub encoding: Encoding,
    /// Nobody may write, whatever the storages are.
    pub read_only: bool,
    /// Transactions whose changed objects are remembered, however old they are.
    pub invalidation_queue_size: usize,
    /// How long they are remembered, however many there are.
    pub invalidation_age: Duration,
    /// How long a vote may stay granted, if the operator says so.
    pub transaction_timeout: Option<Duration>,
    /// When the server started, as Python's `ctime` says it.
    pub start: String,
}

/// Whose job it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobTag {
    /// Number of the storage.
    pub storage: usize,
    /// Number of the call that waits for it, if it is one.
    read: Option<usize>,
    /// How often the data had been replaced by others; zero where that does not matter.
    copies: u64,
}

/// What the server wants of the reactor.
#[derive(Debug)]
pub enum Output {
    /// Run the job on a worker and call [`Server::on_done`].
    Run(JobTag, Job),
    /// There is output for the client.
    Send(ClientId),
    /// The client's calls can go on.
    Serve(ClientId),
    /// Send what is queued, close, and call [`Server::forget`].
    Close(ClientId),
    /// For the node that this server is the front of, if there are several.
    ToNode(ToNode),
}

/// All storages and all clients.
#[derive(Debug)]
pub struct Server {
    options: Options,
    storages: Vec<Served>,
    clients: BTreeMap<ClientId, Client>,
    /// Calls that wait for the disk.
    reads: Reads,
    refusals: Refusals,
    /// If the storages are replicated.
    failover: Option<Failover>,
    outputs: VecDeque<Output>,
    /// Clients for which something was queued in this turn.
    to_send: BTreeSet<ClientId>,
    /// Nothing is begun any more that takes long.
    stopping: bool,
}

/// A storage with what belongs to serving it.
#[derive(Debug)]
struct Served {
    storage: FileStorage,
    invalidations: InvalidationQueue,
    /// How often the data were replaced by others.
    copies: u64,
    /// Registered clients, in the order of their ids: that is who hears of commits.
    clients: BTreeSet<ClientId>,
    owners: BTreeMap<TxnId, ClientId>,
    /// Calls of `new_oids` that wait for a higher ceiling.
    waiting_for_oids: Vec<(ClientId, Value, u64)>,
    /// Calls of `getInvalidations` that wait until the queue has the past.
    waiting_for_past: Vec<(ClientId, Value, Tid)>,
    /// The call of `pack` that waits for its end.
    waiting_for_pack: Option<(ClientId, Value)>,
    /// The pack of all nodes that is being ordered, or was ordered here.
    order: Option<packing::Order>,
    /// The last pack that was ordered is not done here.
    is_pack_due: bool,
    /// If it is a copy of another server's, how far that is.
    following: Option<&'static str>,
    stats: Stats,
}

impl Server {
    /// Serves these storages. If a log writes to them (`FileStorage::follow`), nobody is served
    /// before [`Self::set_serving`] says so.
    pub fn new(options: Options, storages: Vec<FileStorage>, now: Now) -> Self {
        let (count, age) = (options.invalidation_queue_size, options.invalidation_age);
        let is_fed = storages.iter().any(FileStorage::is_fed);
        let storages = storages.into_iter().map(|storage| Served {
            invalidations: InvalidationQueue::new(count, age),
            copies: 0,
            storage,
            clients: BTreeSet::new(),
            owners: BTreeMap::new(),
            waiting_for_oids: Vec::new(),
            waiting_for_past: Vec::new(),
            waiting_for_pack: None,
            order: None,
            is_pack_due: false,
            following: None,
            stats: Stats::default(),
        });
        let mut server = Self {
            options,
            storages: storages.collect(),
            clients: BTreeMap::new(),
            reads: Reads::new(),
            refusals: Refusals::default(),
            failover: is_fed.then(Failover::default),
            outputs: VecDeque::new(),
            to_send: BTreeSet::new(),
            stopping: false,
        };
        server.begin_failover();
        for at in 0..server.storages.len() {
            server.read_past(at, now);
        }
        server
    }

    // -- what the reactor tells

    /// A client connected.
    pub fn connect(&mut self, id: ClientId, peer: String, port: Port, now: Now) {
        let session = Session::new(self.options.encoding);
        self.clients
            .insert(id, Client::new(id, peer, port, session));
        self.admit(id, now);
    }

    /// Who copies the transactions of another server connected: it may write, whoever else may not,
    /// and differs from other clients in this:
    ///
    /// * an extension is not a dict, but has a pickle as the one value, whose key is empty text. It
    ///   goes to the file as it is: another database may have there what we cannot read;
    /// * `storeBlobEnd` names no serial, but the transaction that may have the same data, or zero,
    ///   and compares nothing, as `restorea`.
    pub fn connect_feed(&mut self, id: ClientId, peer: String, now: Now) {
        self.connect(id, peer, Port::Main, now);
        if let Some(client) = self.clients.get_mut(&id) {
            client.feeds = true;
        }
    }

    /// A storage is a copy of another server's, and `how` says how far that is, for who asks for
    /// the status: a word. Such a storage is not packed: what the source may still undo would be
    /// gone. And so many oids are left out after it that its clients may have taken them there.
    pub fn set_following(&mut self, storage: &str, how: &'static str, now: Now) {
        if let Some(at) = self.storage_named(storage) {
            self.storages[at].following = Some(how);
            self.follow_storage(at, now);
        }
    }

    /// Bytes came from a client; [`Self::run_calls`] executes them.
    pub fn receive(&mut self, id: ClientId, data: &[u8]) {
        if let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) {
            client.session.receive(data);
        }
    }

    /// Executes calls that have arrived: `budget` at most, and no more when they have made as much
    /// output as one turn may. Whether more may be there.
    pub fn run_calls(&mut self, id: ClientId, budget: usize, now: Now) -> bool {
        let enough_len = self.output_len(id) + OUTPUT_LEN_PER_TURN;
        let mut executed = 0;
        while executed < budget && self.output_len(id) < enough_len {
            if !self.wants_input(id) {
                return false;
            }
            let loads = self.run_loads(id, budget - executed, enough_len);
            if loads > 0 {
                executed += loads;
                self.note_output(id);
                continue;
            }
            let Some(client) = self.clients.get_mut(&id) else {
                return false;
            };
            match client.session.next_call() {
                Ok(None) => {
                    self.note_output(id);
                    return false;
                }
                Ok(Some(Incoming::Call(call))) => self.execute(id, call, now),
                Ok(Some(Incoming::Piece(piece))) => self.take_piece(id, piece, now),
                Ok(Some(Incoming::CallWithPieces(call, len))) => {
                    self.execute_with_pieces(id, call, len, now);
                }
                Ok(Some(Incoming::Status)) => self.answer_status(id, now),
                Err(error) => self.hang_up(id, &Reason::Session(error), now),
            }
            executed += 1;
            self.note_output(id);
        }
        true
    }

    /// Answers loads as long as they come, a glance is enough for each, and neither `budget` nor
    /// `enough_len` bytes of output are reached; how many. This is the short way for what clients
    /// ask most: the next call, if any, goes the long one (`calls`), which would have answered all
    /// these in the same way.
    fn run_loads(&mut self, id: ClientId, budget: usize, enough_len: usize) -> usize {
        let Some(client) = self.clients.get_mut(&id) else {
            return 0;
        };
        let Some(Served { storage, stats, .. }) =
            client.storage.and_then(|at| self.storages.get_mut(at))
        else {
            return 0;
        };
        let enough_len = enough_len.min(OUTPUT_PAUSE_LEN);
        let mut loads = 0;
        while loads < budget && client.session.waiting_len() < enough_len {
            let Some(load) = client.session.peek_load() else {
                break;
            };
            let Some(found) = storage.glance(load.oid, load.tid) else {
                break;
            };
            log::trace!("{id}: loadBefore");
            client.session.answer_load(&load, found.data, found.serial);
            loads += 1;
        }
        stats.loads += loads as u64;
        loads
    }

    /// Whether the client's bytes should be read, and its calls executed.
    pub fn wants_input(&self, id: ClientId) -> bool {
        let Some(client) = self.clients.get(&id) else {
            return false;
        };
        let waits = client.waiting + client.long_replies.len() >= WAITING_CALLS_MAX;
        !client.closing && !client.paused && !waits && !client.iterating && !self.is_busy(client)
    }

    /// The client closed the connection.
    pub fn on_end(&mut self, id: ClientId, now: Now) {
        self.hang_up(id, &Reason::ClientClosed, now);
    }

    /// The connection broke.
    pub fn on_broken(&mut self, id: ClientId, error: &io::Error, now: Now) {
        self.hang_up(id, &Reason::Broken(error.to_string()), now);
    }

    /// The connection is not as safe as it has to be, and `problem` says why: text without the
    /// peer's words first, and with them in brackets behind it.
    pub fn on_refused(&mut self, id: ClientId, problem: &str, now: Now) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let repeated = self.refusals.note(&client.who.peer, problem, now.mono);
        let problem = problem.to_owned();
        self.hang_up(id, &Reason::Refused { problem, repeated }, now);
    }

    /// The client has had the time to register. If it had to wait for its greeting it has some
    /// more.
    pub fn on_register_timeout(&mut self, id: ClientId, now: Now) {
        let is_due = self.patience_of(id).is_none();
        let is_due = |client: &Client| client.storage.is_none() && is_due;
        if self.clients.get(&id).is_some_and(is_due) {
            self.hang_up(id, &Reason::NotRegistered, now);
        }
    }

    /// What waits for the client's socket.
    pub fn output_of(&mut self, id: ClientId) -> Option<&mut OutQueue> {
        self.clients
            .get_mut(&id)
            .map(|client| &mut client.session.out)
    }

    /// Whether transactions are on their way to a disk.
    pub fn is_writing(&self) -> bool {
        self.storages
            .iter()
            .any(|served| served.storage.is_writing())
    }

    /// The server stops: nothing is begun any more that takes long.
    pub fn give_up_packs(&mut self, now: Now) {
        self.stopping = true;
        for at in 0..self.storages.len() {
            self.storages[at].storage.give_up_pack(now.mono);
            self.follow_storage(at, now);
        }
    }

    /// Whether anything waits for the client's socket.
    pub fn has_output(&self, id: ClientId) -> bool {
        let waits = |client: &Client| !client.long_replies.is_empty();
        // The next piece of a long reply may be with a worker.
        self.output_len(id) > 0 || self.clients.get(&id).is_some_and(waits)
    }

    /// Bytes that wait for the client's socket, or will.
    fn output_len(&self, id: ClientId) -> usize {
        let client = self.clients.get(&id);
        client.map_or(0, |client| client.session.waiting_len())
    }

    /// The client's socket took something.
    pub fn on_written(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        // Of what is left no more can be notices; so a client that keeps up is never called deaf.
        client.notices_len = client.notices_len.min(client.session.waiting_len());
        let has_more = !(client.long_replies.is_empty() && client.transfers.is_empty());
        if client.paused && client.session.waiting_len() <= OUTPUT_RESUME_LEN {
            client.paused = false;
            self.outputs.push_back(Output::Serve(id));
            self.start_reads();
        }
        // Each write comes by here: usually for nothing.
        if has_more {
            self.read_long(id);
            self.read_blobs(id);
        }
    }

    /// The connection is closed.
    pub fn forget(&mut self, id: ClientId) {
        self.set_patience(id, None);
        self.clients.remove(&id);
        self.to_send.remove(&id);
    }

    /// A job has ended.
    pub fn on_done(&mut self, tag: JobTag, done: Done, now: Now) {
        let pending = tag.read.and_then(|key| self.reads.take(key));
        match (pending, done) {
            (
                Some(pending),
                Done::Looked {
                    lookup,
                    place,
                    result,
                },
            ) => {
                let settled = self.storages[tag.storage]
                    .storage
                    .settle(lookup, place, result);
                self.answer_lookup(tag.storage, pending, lookup, settled);
            }
            (Some(pending), Done::Browsed(result)) => {
                self.answer_browse(tag.storage, pending, result);
            }
            (Some(pending), Done::LongRead(result)) => {
                self.on_long_read(tag.storage, &pending, result, now);
            }
            (Some(pending), Done::BlobRead(result)) => {
                self.on_blob_read(tag.storage, pending, result);
            }
            (_, Done::Recent(result)) if tag.copies == self.storages[tag.storage].copies => {
                self.on_recent(tag.storage, result, now);
            }
            // Of other data than there are now.
            (_, Done::Recent(_)) => {}
            (_, done) => {
                self.storages[tag.storage].storage.on_done(done, now.mono);
                self.follow_storage(tag.storage, now);
            }
        }
        self.start_reads();
    }

    /// Hands out the reads whose turn has come.
    fn start_reads(&mut self) {
        let Self { reads, clients, .. } = self;
        // What a client waits for may wait itself, behind a long reply, for its next piece.
        let takes = |id, job: &Job| {
            let client = clients.get(&id);
            client.is_some_and(|client| !client.paused || matches!(job, Job::ReadLong(_)))
        };
        while let Some((tag, job)) = reads.next(takes) {
            self.outputs.push_back(Output::Run(tag, job));
        }
    }

    /// The deadline of [`Self::deadline`] has come.
    pub fn on_deadline(&mut self, now: Now) {
        for at in 0..self.storages.len() {
            let timeout = self.transaction_timeout();
            let storage = &mut self.storages[at].storage;
            storage.expire_resolving(now.mono);
            let overdue = storage.overdue(timeout, now.mono);
            for (txn, held_for) in overdue {
                if let Some(id) = self.storages[at].owners.get(&txn).copied() {
                    self.hang_up(id, &Reason::TransactionTimeout(held_for), now);
                }
            }
            self.follow_storage(at, now);
        }
        self.end_patience(now);
    }

    /// Some seconds have passed.
    pub fn on_tick(&mut self, now: Now) {
        for at in 0..self.storages.len() {
            self.storages[at].storage.on_timer(now.mono);
            self.follow_storage(at, now);
        }
    }

    /// All calls of this turn were executed.
    pub fn end_turn(&mut self, now: Now) {
        for at in 0..self.storages.len() {
            self.storages[at].storage.flush();
            self.follow_storage(at, now);
        }
        self.look_if_drained();
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = self.storages.iter().flat_map(|served| {
            let locked = served.storage.locked_since();
            [
                locked.and_then(|since| since.checked_add(self.transaction_timeout())),
                served.storage.resolving_until(),
            ]
        });
        deadlines.chain([self.patience()]).flatten().min()
    }

    /// What the server wants next. To be drained after every call.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        self.to_send.pop_first().map(Output::Send)
    }

    /// Closes the storages; `drained` tells whether their jobs have all ended. `false` if one
    /// could not be closed in good order.
    pub fn close(self, drained: bool) -> bool {
        let mut all_well = drained;
        for Served { storage, .. } in self.storages {
            if !drained {
                continue;
            }
            let name = storage.name().to_owned();
            if let Err(error) = storage.close() {
                log::error!("{name}: not closed in good order: {error}");
                all_well = false;
            }
        }
        all_well
    }

    // -- what the storages tell

    /// Does what a storage wants, and tells clients what happened.
    fn follow_storage(&mut self, at: usize, now: Now) {
        if self.storages[at].following.is_some() {
            self.storages[at].storage.keep_oids_clear(FOLLOW_OIDS_CLEAR);
        }
        while let Some(event) = self.storages[at].storage.poll_event() {
            match event {
                Event::Run(job) => {
                    let tag = self.tag(at);
                    self.outputs.push_back(Output::Run(tag, job));
                }
                Event::Voted(txn, vote) => self.on_voted(at, txn, vote),
                Event::Committed(commit) => self.on_committed(at, commit, now),
                Event::Lost(txn) => {
                    self.storages[at].stats.active_txns -= 1;
                    if let Some(id) = self.storages[at].owners.remove(&txn) {
                        let reason = match self.failover {
                            Some(_) => Reason::Replaced,
                            None => Reason::FinishLost,
                        };
                        self.hang_up(id, &reason, now);
                    }
                }
                Event::Spilled(txn) => {
                    let owner = self.storages[at].owners.get(&txn);
                    self.outputs.extend(owner.copied().map(Output::Serve));
                }
                Event::OidsRaised { raised } => self.on_oids_raised(at, raised, now),
                Event::Packed(ended) => self.on_packed(at, ended),
                Event::Offer(txn, blobs) => self.offer(at, txn, blobs),
                Event::Withdraw(txn) => self.withdraw(at, txn),
                Event::Propose(proposal) => self.propose(at, *proposal),
                Event::OidsWanted { count } => self.want_oids(at, count),
            }
        }
        self.go_on_with_order(at);
    }

    /// A vote is answered.
    fn on_voted(&mut self, at: usize, txn: TxnId, vote: Vote) {
        let Served {
            storage,
            owners,
            stats,
            ..
        } = &mut self.storages[at];
        let Some(client) = owners.get(&txn).and_then(|id| self.clients.get_mut(id)) else {
            return;
        };
        let id = client.who.id;
        let Some(current) = &mut client.txn else {
            return;
        };
        let Pending::Vote { msgid } = std::mem::replace(&mut current.pending, Pending::Nothing)
        else {
            return;
        };
        match vote {
            // The client forgets what it knows of these; the rest is as it has sent it.
            Vote::Granted => {
                let undone = storage.undone(txn).iter().map(|one| one.oid.into());
                client.session.reply(&msgid, &Value::List(undone.collect()));
            }
            Vote::Conflicts(conflicts) => {
                stats.conflicts += conflicts.len() as u64;
                current.conflicts += conflicts.len() as u64;
                for conflict in &conflicts {
                    log::debug!(target: LOG, "{} vote: conflict (oid {}, committed {}, sent {})",
                        client.who,
                        conflict.oid,
                        conflict.committed,
                        conflict.sent
                    );
                }
                let conflicts = conflicts.into_iter().map(calls::conflict_value).collect();
                client.session.reply(&msgid, &Value::List(conflicts));
            }
            Vote::Refused(refusal) => {
                log::debug!(target: LOG, "{} vote: refused ({refusal:?})", client.who);
                if calls::is_conflict(&refusal) {
                    stats.conflicts += 1;
                }
                client.session.fail(&msgid, &calls::refusal_error(refusal));
                client.txn = None;
                owners.remove(&txn);
                stats.active_txns -= 1;
            }
        }
        self.note_output(id);
        self.outputs.push_back(Output::Serve(id));
    }

    /// A transaction is durable and visible: its client and all the others hear of it.
    fn on_committed(&mut self, at: usize, commit: Commit, now: Now) {
        let served = &mut self.storages[at];
        let Commit {
            txn,
            tid,
            oids,
            changed,
            object_count,
            len,
        } = commit;
        served.stats.commits += 1;
        served.stats.active_txns -= u64::from(txn.is_some());
        let owner = txn.and_then(|txn| served.owners.remove(&txn));
        if let Some(client) = owner.and_then(|id| self.clients.get(&id)) {
            let (who, count) = (&client.who, oids.len());
            log::debug!(target: LOG, "{who} committed {tid} ({count} objects)");
        }
        let args = vec![tid.into(), oids.clone().into()];
        let mut frames = NoticeFrames::new(self.options.encoding, "invalidateTransaction", args);
        let mut deaf = Vec::new();
        for id in &served.clients {
            let Some(client) = self.clients.get_mut(id).filter(|client| !client.closing) else {
                continue;
            };
            if let Some(txn) = txn
                && Some(*id) == owner
            {
                served.stats.conflicts_resolved +=
                    answer_finish(client, txn, tid, object_count, len);
                self.outputs.push_back(Output::Serve(*id));
            } else if client.notices_len > OUTPUT_LEN_MAX {
                deaf.push(*id);
            } else {
                let frame = frames.of(client.session.dialect());
                client.notices_len += frame.len();
                client.session.push(frame);
            }
            self.to_send.insert(*id);
        }
        served.invalidations.push(tid, changed);
        self.end_of_office(owner, now);
        for id in deaf {
            self.hang_up(id, &Reason::Deaf, now);
        }
    }

    // -- clients

    /// How long a vote may stay granted.
    fn transaction_timeout(&self) -> Duration {
        self.options
            .transaction_timeout
            .unwrap_or(TRANSACTION_TIMEOUT_DEFAULT)
    }

    /// Whether a client's transaction is in the hands of the disk: calls that come behind a vote
    /// or a finish see what came of it.
    fn is_busy(&self, client: &Client) -> bool {
        let (Some(at), Some(txn)) = (client.storage, &client.txn) else {
            return false;
        };
        self.storages[at].storage.is_busy(txn.id)
    }

    /// Something may have been queued for the client: it is sent, and a client that takes nothing
    /// is heard no more.
    fn note_output(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id)
            && !client.session.out.is_empty()
        {
            client.paused |= client.session.waiting_len() >= OUTPUT_PAUSE_LEN;
            self.to_send.insert(id);
        }
        self.read_long(id);
    }

    /// Ends a connection from our side, and with it its transaction.
    fn hang_up(&mut self, id: ClientId, reason: &Reason, now: Now) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
            return;
        };
        client.closing = true;
        client.transfers.clear();
        client.long_replies.clear();
        self.reads.forget(id);
        reason.log(&client.who, client.storage.is_some());
        self.outputs.push_back(Output::Close(id));
        let (storage, txn) = (client.storage, client.txn.take());
        self.set_patience(id, None);
        let Some(at) = storage else {
            return;
        };
        let served = &mut self.storages[at];
        served.clients.remove(&id);
        served
            .waiting_for_oids
            .retain(|(waiting, ..)| *waiting != id);
        served
            .waiting_for_past
            .retain(|(waiting, ..)| *waiting != id);
        if let Some(txn) = txn {
            self.abort_txn(at, &txn, now);
        }
    }

    /// Rolls a client's transaction back, unless it is on its way to the disk.
    fn abort_txn(&mut self, at: usize, txn: &ClientTxn, now: Now) {
        let served = &mut self.storages[at];
        if !matches!(txn.pending, Pending::Finish { .. }) {
            served.owners.remove(&txn.id);
            served.stats.aborts += 1;
            served.stats.active_txns -= 1;
        }
        served.storage.abort(txn.id, now.mono);
        self.follow_storage(at, now);
    }

    /// Answers the health check, and closes.
    fn answer_status(&mut self, id: ClientId, now: Now) {
        let reports: Vec<String> = (0..self.storages.len())
            .map(|at| {
                let served = &self.storages[at];
                let report = served.stats.to_json(&self.moment(at, now));
                format!("{}: {report}", json_text(served.storage.name()))
            })
            .collect();
        if let Some(client) = self.clients.get_mut(&id) {
            client
                .session
                .answer_status(&format!("{{{}}}", reports.join(", ")));
        }
        self.hang_up(id, &Reason::StatusAnswered, now);
    }

    fn moment(&self, at: usize, now: Now) -> Moment {
        let served = &self.storages[at];
        let lock_time = served.storage.locked_since().map(|since| {
            (now.wall
                .saturating_sub(now.mono.saturating_duration_since(since)))
            .as_secs_f64()
        });
        Moment {
            connections: served.clients.len(),
            waiting: served.storage.waiting_count(),
            lock_time,
            start: self.options.start.clone(),
            has_timeout: self.options.transaction_timeout.is_some(),
            last_transaction: served.storage.last_tid().to_string(),
            following: served.following,
        }
    }
}

/// Tells the committer; returns how many conflicts it had resolved.
fn answer_finish(client: &mut Client, txn: TxnId, tid: Tid, object_count: u64, len: u64) -> u64 {
    let Some(current) = client.txn.take_if(|current| current.id == txn) else {
        return 0;
    };
    // The info comes before the answer: the client's thread goes on with the answer.
    let info = Value::Dict(vec![
        (Value::text("length"), Value::from(object_count)),
        (Value::text("size"), Value::from(len)),
    ]);
    client.session.notify("info", vec![info]);
    if let Pending::Finish { msgid } = &current.pending {
        client.session.reply(msgid, &tid.into());
    }
    current.conflicts
}

/// A notice that goes to many clients, encoded once for each dialect.
struct NoticeFrames {
    encoding: Encoding,
    name: &'static str,
    args: Vec<Value>,
    encoded: [Option<Bytes>; 2],
}

impl NoticeFrames {
    const fn new(encoding: Encoding, name: &'static str, args: Vec<Value>) -> Self {
        Self {
            encoding,
            name,
            args,
            encoded: [None, None],
        }
    }

    fn of(&mut self, dialect: Dialect) -> Bytes {
        let at = usize::from(dialect == Dialect::Python2);
        let encoded = self.encoded[at].get_or_insert_with(|| {
            Encoder::new(self.encoding, dialect).notice_frame(self.name, self.args.clone())
        });
        encoded.clone()
    }
}

/// A text as JSON. Names of storages come from the configuration, and may be anything.
fn json_text(text: &str) -> String {
    let mut json = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' => json.extend(['\\', char]),
            char if char < ' ' => json.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => json.push(char),
        }
    }
    json.push('"');
    json
}
