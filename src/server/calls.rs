//! Each method of the protocol, executed.

use bytes::Bytes;
use log::Level;

use super::blobs::BlobCall;
use super::client::{ClientTxn, Pending};
use super::failover::Stage;
use super::reads::{PendingRead, Wanted};
use super::{LOG, Now, Output, Reason, Served, Server};
use crate::ids::{ClientId, Oid, Tid};
use crate::limits::{LABEL_LEN_MAX, METADATA_LEN_MAX, OIDS_PER_CALL_MAX};
use crate::pickle;
use crate::storage::{Answer, Conflict, Job, LongData, Lookup, Metadata, Refusal, Unanswered};
use crate::zeo::Value;
use crate::zeo::base64::from_base64;
use crate::zeo::errors::{self, RemoteError};
use crate::zeo::message::{Call, Request};

/// What a method comes to.
pub(super) enum Outcome {
    /// The answer, if somebody waits for one.
    Reply(Value),
    /// The answer, in which a gap stands for data that are still to be read.
    ReplyLong(Value, LongData),
    /// It was answered, or will be.
    Later,
    /// An exception; in an asynchronous call, the end of the connection.
    Raise(RemoteError),
    /// The end of the connection.
    HangUp(String),
}

impl Server {
    /// Executes one call of a client.
    pub(super) fn execute(&mut self, id: ClientId, call: Call, now: Now) {
        let Call {
            msgid,
            asynchronous,
            request,
            dialect: _,
        } = call;
        let name = request.name();
        log::trace!("{id}: {name}");
        if asynchronous && matches!(request, Request::Ping) {
            return;
        }
        if asynchronous && may_be_answered_later(&request) {
            // Nobody could know what came of it.
            let problem = "called without waiting for the answer".to_owned();
            return self.hang_up(id, &Reason::Call { name, problem }, now);
        }
        let problem = match self.outcome(id, &msgid, request, now) {
            Outcome::Later => return,
            Outcome::HangUp(problem) => problem,
            Outcome::Raise(error) if asynchronous => error.class().to_owned(),
            outcome => {
                if let Some(client) = self.clients.get_mut(&id).filter(|_| !asynchronous) {
                    match outcome {
                        Outcome::Reply(value) => client.session.reply(&msgid, &value),
                        Outcome::ReplyLong(value, data) => client.reply_long(&msgid, &value, data),
                        Outcome::Raise(error) => client.session.fail(&msgid, &error),
                        Outcome::Later | Outcome::HangUp(_) => {}
                    }
                }
                return;
            }
        };
        self.hang_up(id, &Reason::Call { name, problem }, now);
    }

    fn outcome(&mut self, id: ClientId, msgid: &Value, request: Request, now: Now) -> Outcome {
        if let Request::Register { storage, read_only } = request {
            let name = String::from_utf8_lossy(&storage);
            return self.register(id, msgid, &name, read_only, now);
        }
        let Some(client) = self.clients.get_mut(&id) else {
            return Outcome::Later;
        };
        // The session lets nothing else pass before `register`.
        let Some(at) = client.storage else {
            return Outcome::HangUp("not registered".to_owned());
        };
        if client.read_only && writes(&request) {
            return Outcome::Raise(RemoteError::ReadOnly);
        }
        let served = &mut self.storages[at];
        match request {
            Request::Register { .. } => unreachable!("answered above"),
            Request::Ping if self.failover.is_some() => self.confirm(id, msgid),
            Request::Ping => Outcome::Reply(Value::None),
            Request::SetClientLabel { label } => {
                let label = String::from_utf8_lossy(&label);
                let printable = label.chars().filter(|char| !char.is_control());
                client.who.label = printable.take(LABEL_LEN_MAX).collect();
                Outcome::Reply(Value::None)
            }
            Request::LastTransaction => Outcome::Reply(Value::from(served.storage.last_tid())),
            Request::GetInfo => Outcome::Reply(self.info(at)),
            Request::ServerStatus => {
                let moment = self.moment(at, now);
                Outcome::Reply(self.storages[at].stats.to_value(&moment))
            }
            Request::GetInvalidations { tid } => self.invalidations(id, msgid, at, tid, now),
            Request::LoadBefore { oid, tid } => {
                served.stats.loads += 1;
                self.look(id, msgid, at, Lookup::Before(oid, tid))
            }
            Request::LoadSerial { oid, serial } => {
                self.look(id, msgid, at, Lookup::Serial(oid, serial))
            }
            Request::GetTid { oid } => self.look(id, msgid, at, Lookup::Current(oid)),
            Request::NewOids { count } => {
                let count = count
                    .clamp(1, OIDS_PER_CALL_MAX.cast_signed())
                    .cast_unsigned();
                self.new_oids(id, msgid, at, count, now)
            }
            Request::TpcBegin {
                txn,
                user,
                description,
                extension,
                tid,
                status,
            } => {
                if let Some(current) = &client.txn {
                    if current.handle == txn {
                        return Outcome::Reply(Value::None);
                    }
                    return Outcome::HangUp("a transaction is open already".to_owned());
                }
                // Any other means that the transaction is not, or does not count: opening would
                // cut the file there.
                if !matches!(status, b' ' | b'p') {
                    return Outcome::HangUp(format!("status {:?}", char::from(status)));
                }
                let extension = match &extension {
                    Value::Dict(items) if items.is_empty() => Bytes::new(),
                    Value::Dict(items) if client.feeds => match given_as_it_is(items) {
                        Some(pickle) => Bytes::copy_from_slice(pickle),
                        None => return Outcome::HangUp("an extension in parts".to_owned()),
                    },
                    value => match pickle::encode_standalone(value, METADATA_LEN_MAX) {
                        Some(pickle) => Bytes::from(pickle),
                        None => return Outcome::HangUp("the extension is too long".to_owned()),
                    },
                };
                // Short, and kept for longer than what they came in should be.
                let [user, description] =
                    [user, description].map(|text| Bytes::copy_from_slice(&text));
                let metadata = Metadata {
                    user,
                    description,
                    extension,
                    tid,
                    status,
                };
                let id_in_storage = served.storage.begin(metadata);
                served.owners.insert(id_in_storage, id);
                served.stats.active_txns += 1;
                client.txn = Some(ClientTxn {
                    handle: txn,
                    id: id_in_storage,
                    pending: Pending::Nothing,
                    conflicts: 0,
                });
                Outcome::Reply(Value::None)
            }
            Request::Storea {
                oid,
                serial,
                data,
                txn,
            } => self.stage(id, at, txn, now, Staged::Store(oid, serial, data)),
            Request::Restorea {
                oid,
                data,
                prev_txn,
                txn,
                ..
            } => self.stage(id, at, txn, now, Staged::Restore(oid, data, prev_txn)),
            Request::DeleteObject { oid, serial, txn } => {
                self.stage(id, at, txn, now, Staged::Delete(oid, serial))
            }
            Request::CheckCurrentSerialInTransaction { oid, serial, txn } => {
                self.stage(id, at, txn, now, Staged::Check(oid, serial))
            }
            Request::Undoa { undo_id, txn } => {
                let tid = from_base64(&undo_id).map(Tid::from_bytes);
                self.stage(id, at, txn, now, Staged::Undo(tid))
            }
            Request::Vote { txn } => match client.txn_named(&txn) {
                Some(current)
                    if current.pending == Pending::Nothing
                        && served.storage.vote(current.id, now.mono) =>
                {
                    current.pending = Pending::Vote {
                        msgid: msgid.clone(),
                    };
                    self.follow_storage(at, now);
                    Outcome::Later
                }
                Some(_) => Outcome::Raise(RemoteError::AlreadyVoting {
                    waiting: client.is_voting(),
                }),
                None => Outcome::Raise(no_such_txn(client.txn.as_ref(), txn)),
            },
            Request::TpcFinish { txn } => match client.txn_named(&txn) {
                // While its vote waits it is as little granted as before it.
                Some(current) if current.pending == Pending::Nothing => {
                    let id_in_storage = current.id;
                    current.pending = Pending::Finish {
                        msgid: msgid.clone(),
                    };
                    if served.storage.finish(id_in_storage, now.wall, now.mono) {
                        self.follow_storage(at, now);
                        return Outcome::Later;
                    }
                    current.pending = Pending::Nothing;
                    Outcome::Raise(not_granted())
                }
                Some(_) => Outcome::Raise(not_granted()),
                None => Outcome::Reply(Value::None),
            },
            Request::TpcAbort { txn } => {
                if let Some(current) = client.txn.take_if(|current| current.handle == txn) {
                    self.abort_txn(at, &current, now);
                }
                Outcome::Reply(Value::None)
            }
            Request::StoreBlobStart => self.store_blob(id, at, None, BlobCall::Start, now),
            Request::StoreBlobChunk { chunk } => {
                self.store_blob(id, at, None, BlobCall::Chunk(chunk), now)
            }
            Request::StoreBlobEnd {
                oid,
                serial,
                data,
                txn,
            } => {
                let call = match client.feeds {
                    false => BlobCall::End { oid, serial, data },
                    true => BlobCall::Restored {
                        oid,
                        data,
                        same_data: serial.filter(|tid| *tid != Tid::ZERO),
                    },
                };
                self.store_blob(id, at, Some(txn), call, now)
            }
            Request::StoreBlobShared {
                oid,
                serial,
                data,
                filename: name,
                txn,
            } => {
                let call = BlobCall::Shared {
                    oid,
                    serial,
                    data,
                    name,
                };
                self.store_blob(id, at, Some(txn), call, now)
            }
            Request::SendBlob { oid, serial } => self.send_blob(id, msgid, at, oid, serial),
            Request::History { oid: None, .. } => {
                Outcome::Raise(other("ZODB.POSException.POSKeyError", "None"))
            }
            Request::History {
                oid: Some(oid),
                size,
            } => self.history(id, msgid, at, oid, size),
            Request::UndoLog { first, last } => {
                self.undo_log(id, msgid, at, first, last, Vec::new())
            }
            Request::UndoInfo {
                first,
                last,
                filter,
            } => self.undo_log(id, msgid, at, first, last, filter),
            Request::Pack { time, wait } => self.pack(id, msgid, at, (time, wait), now),
            Request::IteratorStart { start, stop } => self.iterator_start(id, at, start, stop),
            Request::IteratorNext { iterator } => self.iterator_next(id, msgid, at, iterator),
            Request::IteratorRecordStart { iterator, tid } => {
                self.iterator_record_start(id, iterator, tid)
            }
            Request::IteratorRecordNext { iterator } => {
                self.iterator_record_next(id, msgid, at, iterator)
            }
            Request::IteratorGc { iterators } => {
                for iterator in iterators {
                    client.iterators.remove(&iterator);
                }
                Outcome::Reply(Value::None)
            }
            Request::RecordIternext { oid } => self.record_iternext(id, msgid, at, oid),
        }
    }

    /// Data of an object come in pieces. Without a transaction that takes them they are dropped;
    /// the call behind them will say what is wrong.
    pub(super) fn take_piece(&mut self, id: ClientId, piece: Bytes, now: Now) {
        let Some(client) = self.clients.get_mut(&id).filter(|it| !it.read_only) else {
            return;
        };
        if let (Some(at), Some(txn)) = (client.storage, &client.txn) {
            self.storages[at].storage.add_piece(txn.id, piece);
            self.follow_storage(at, now);
        }
    }

    /// Executes the call that stores what came in pieces.
    pub(super) fn execute_with_pieces(&mut self, id: ClientId, call: Call, len: usize, now: Now) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.pieces_len = Some(len);
        }
        self.execute(id, call, now);
        if let Some(client) = self.clients.get_mut(&id) {
            client.pieces_len = None;
            if let (Some(at), Some(txn)) = (client.storage, &client.txn) {
                self.storages[at].storage.forget_pieces(txn.id);
            }
        }
    }

    /// Adds something to a client's transaction.
    fn stage(&mut self, id: ClientId, at: usize, txn: Value, now: Now, staged: Staged) -> Outcome {
        let Some(client) = self.clients.get_mut(&id) else {
            return Outcome::Later;
        };
        let pieces_len = client.pieces_len;
        let Some(txn) = client.txn_named(&txn).map(|current| current.id) else {
            return Outcome::Raise(no_such_txn(client.txn.as_ref(), txn));
        };
        if let Some(problem) = staged.problem() {
            return Outcome::HangUp(problem);
        }
        let Served { storage, stats, .. } = &mut self.storages[at];
        stats.stores += u64::from(staged.is_store());
        let added = match staged {
            Staged::Store(oid, serial, data) => match pieces_len {
                None => storage.store(txn, oid, serial, data),
                Some(len) => storage.store_pieces(txn, oid, serial, &data, len),
            },
            Staged::Restore(oid, data, same_data) => match (data, pieces_len) {
                (Some(data), Some(len)) => storage.restore_pieces(txn, oid, &data, len, same_data),
                (data, _) => storage.restore(txn, oid, data, same_data),
            },
            Staged::Delete(oid, serial) => storage.delete(txn, oid, serial),
            Staged::Check(oid, serial) => storage.check(txn, oid, serial),
            Staged::Undo(tid) => storage.undo(txn, tid),
        };
        if !added {
            return Outcome::HangUp("the transaction was voted already".to_owned());
        }
        self.follow_storage(at, now);
        Outcome::Reply(Value::None)
    }

    fn register(
        &mut self,
        id: ClientId,
        msgid: &Value,
        name: &str,
        read_only: bool,
        now: Now,
    ) -> Outcome {
        let found = self.storages.iter_mut().enumerate();
        let Some((at, served)) = found.into_iter().find(|(_, it)| it.storage.name() == name) else {
            // Stock clients do not say why they cannot connect, and try again for ever.
            let shown: String = name.chars().take(LABEL_LEN_MAX).collect();
            self.note_refusal(id, Level::Warn, ("unknown storage", &shown), now);
            let message = format!("unknown storage: {name}");
            return Outcome::Raise(RemoteError::Other {
                class: "builtins.ValueError",
                message,
            });
        };
        let feeds = self.clients.get(&id).is_some_and(|client| client.feeds);
        let refuses = self.options.read_only && !feeds || served.storage.is_read_only();
        if !read_only && refuses {
            // No warning: a client with read_only_fallback tries this first.
            let problem = "it wants to write to a read-only storage";
            self.note_refusal(id, Level::Info, (problem, name), now);
            return Outcome::Raise(RemoteError::ReadOnly);
        }
        let tid = served.storage.last_tid();
        let stage = match self.stage_at_register(id, read_only) {
            Stage::Bounced => {
                // It need not know, and begins anew when it is disconnected.
                if let Some(client) = self.clients.get_mut(&id) {
                    client.session.reply(msgid, &Value::from(tid));
                }
                self.hang_up(id, &Reason::Bounced, now);
                return Outcome::Later;
            }
            Stage::Refused => {
                self.set_stage(id, Stage::Refused, now);
                return Outcome::Raise(RemoteError::ReadOnly);
            }
            stage => stage,
        };
        self.set_stage(id, stage, now);
        let served = &mut self.storages[at];
        let Some(client) = self.clients.get_mut(&id) else {
            return Outcome::Later;
        };
        client.storage = Some(at);
        client.read_only = read_only;
        client.session.on_registered();
        // From here on it hears of every commit, and the answer says which was the last before.
        served.clients.insert(id);
        log::info!(target: LOG, "{} connected to storage {name:?}{}",
            client.who,
            if read_only { " to read" } else { "" }
        );
        Outcome::Reply(Value::from(served.storage.last_tid()))
    }

    /// Says who is not registered, and why: what is wrong, and the storage that was asked for.
    fn note_refusal(
        &mut self,
        id: ClientId,
        level: Level,
        (problem, name): (&str, &str),
        now: Now,
    ) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        // Without the name, which the client may have made up.
        let repeated = self.refusals.note(&client.who.peer, problem, now.mono);
        repeated.log(level, &client.who, &format!("{problem}: {name:?}"));
    }

    fn info(&self, at: usize) -> Value {
        let storage = &self.storages[at].storage;
        Value::Dict(vec![
            (Value::text("length"), storage.object_count().into()),
            (Value::text("size"), storage.file_len().into()),
            (
                Value::text("name"),
                storage.path().display().to_string().into(),
            ),
            (Value::text("supportsUndo"), Value::Bool(true)),
            (Value::text("supports_record_iternext"), Value::Bool(true)),
            (Value::text("interfaces"), interfaces(storage.has_blobs())),
        ])
    }

    fn new_oids(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        count: u64,
        now: Now,
    ) -> Outcome {
        let served = &mut self.storages[at];
        let range = served.storage.allocate_oids(count);
        if range.is_none() {
            let msgid = msgid.clone();
            served.waiting_for_oids.push((id, msgid, count));
            if let Some(client) = self.clients.get_mut(&id) {
                client.waiting += 1;
            }
        }
        self.follow_storage(at, now);
        range.map_or(Outcome::Later, |range| Outcome::Reply(oids_value(range)))
    }

    /// Calls of `new_oids` that had to wait are answered, as far as the oids go; for the others
    /// the storage has asked for more.
    pub(super) fn on_oids_raised(&mut self, at: usize, raised: bool, now: Now) {
        let is_replicated = self.failover.is_some();
        let mut given_up = Vec::new();
        let served = &mut self.storages[at];
        for (id, msgid, count) in std::mem::take(&mut served.waiting_for_oids) {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            match served.storage.allocate_oids(count) {
                Some(range) => client.session.reply(&msgid, &oids_value(range)),
                None if raised => {
                    served.waiting_for_oids.push((id, msgid, count));
                    continue;
                }
                // Not an error: clients would show that to the application.
                None if is_replicated => given_up.push(id),
                None => client.session.fail(
                    &msgid,
                    &other("builtins.OSError", "new oids cannot be reserved on disk"),
                ),
            }
            client.waiting -= 1;
            self.to_send.insert(id);
            self.outputs.push_back(Output::Serve(id));
        }
        for id in given_up {
            self.hang_up(id, &Reason::NoOids, now);
        }
    }

    fn look(&mut self, id: ClientId, msgid: &Value, at: usize, lookup: Lookup) -> Outcome {
        self.look_up(id, msgid, at, Wanted::Revision, lookup)
    }

    /// Answers now if that needs no wait for the disk, else later.
    pub(super) fn look_up(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        wanted: Wanted,
        lookup: Lookup,
    ) -> Outcome {
        match self.storages[at].storage.look_up(lookup) {
            Ok(answer) => lookup_outcome(wanted, lookup, answer),
            Err(Unanswered::Failed(error)) => self.read_failed(at, &error.to_string()),
            Err(Unanswered::Reading(job)) => self.read(id, msgid, at, wanted, *job),
        }
    }

    /// Has a worker read for a client.
    pub(super) fn read(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        wanted: Wanted,
        job: Job,
    ) -> Outcome {
        if let Some(client) = self.clients.get_mut(&id) {
            client.waiting += 1;
        }
        let pending = PendingRead {
            client: id,
            msgid: msgid.clone(),
            wanted,
        };
        self.submit_read(at, pending, job);
        Outcome::Later
    }

    fn submit_read(&mut self, at: usize, pending: PendingRead, job: Job) {
        self.reads.push(at, pending, job);
        self.start_reads();
    }

    /// The disk has answered a lookup.
    pub(super) fn answer_lookup(
        &mut self,
        at: usize,
        pending: PendingRead,
        lookup: Lookup,
        settled: Result<Answer, Unanswered>,
    ) {
        let outcome = match settled {
            Ok(answer) => lookup_outcome(pending.wanted, lookup, answer),
            Err(Unanswered::Failed(error)) => self.read_failed(at, &error.to_string()),
            Err(Unanswered::Reading(job)) => {
                // Whoever is gone would never take it.
                let client = self.clients.get(&pending.client);
                if client.is_some_and(|client| !client.closing) {
                    self.submit_read(at, pending, *job);
                }
                return;
            }
        };
        self.answer_later(&pending, outcome);
    }

    /// Answers a call that has waited for the disk.
    pub(super) fn answer_later(&mut self, pending: &PendingRead, outcome: Outcome) {
        let PendingRead {
            client: id, msgid, ..
        } = pending;
        let Some(client) = self.clients.get_mut(id).filter(|client| !client.closing) else {
            return;
        };
        client.waiting -= 1;
        match outcome {
            Outcome::Reply(value) => client.session.reply(msgid, &value),
            Outcome::ReplyLong(value, data) => client.reply_long(msgid, &value, data),
            Outcome::Raise(error) => client.session.fail(msgid, &error),
            Outcome::Later | Outcome::HangUp(_) => {}
        }
        self.note_output(*id);
        // It may have waited for this.
        self.outputs.push_back(Output::Serve(*id));
    }

    /// The file is damaged there, or the disk does not read it.
    pub(super) fn read_failed(&self, at: usize, error: &str) -> Outcome {
        log::error!("{}: {error}", self.storages[at].storage.name());
        Outcome::Raise(other(CORRUPTED, error))
    }
}

/// The extension of a transaction that is copied: see [`Server::connect_feed`].
fn given_as_it_is(items: &[(Value, Value)]) -> Option<&Bytes> {
    match items {
        [(Value::Text(name), Value::Bytes(pickle))] if name.is_empty() => Some(pickle),
        _ => None,
    }
}

/// What clients add to a transaction; nobody waits for an answer.
enum Staged {
    Store(Oid, Option<Tid>, Bytes),
    Restore(Oid, Option<Bytes>, Option<Tid>),
    Delete(Oid, Tid),
    Check(Oid, Tid),
    Undo(Option<Tid>),
}

impl Staged {
    /// Why it cannot be added to any transaction.
    fn problem(&self) -> Option<String> {
        match self {
            Self::Store(oid, _, data) | Self::Restore(oid, Some(data), _) if data.is_empty() => {
                Some(format!("oid {oid} without data"))
            }
            Self::Store(oid, ..) | Self::Restore(oid, ..) if *oid >= Oid::END => {
                Some(format!("oid {oid} is too high"))
            }
            _ => None,
        }
    }

    /// Whether it counts as a store in the statistics.
    const fn is_store(&self) -> bool {
        match self {
            Self::Store(..) | Self::Restore(..) | Self::Delete(..) => true,
            Self::Check(..) | Self::Undo(_) => false,
        }
    }
}

/// Whether a client that registered to read may not call this. `pack` counts as reading.
const fn writes(request: &Request) -> bool {
    matches!(
        request,
        Request::NewOids { .. }
            | Request::TpcBegin { .. }
            | Request::Storea { .. }
            | Request::Restorea { .. }
            | Request::DeleteObject { .. }
            | Request::CheckCurrentSerialInTransaction { .. }
            | Request::Undoa { .. }
            | Request::StoreBlobStart
            | Request::StoreBlobChunk { .. }
            | Request::StoreBlobEnd { .. }
            | Request::StoreBlobShared { .. }
            | Request::Vote { .. }
            | Request::TpcFinish { .. }
            | Request::TpcAbort { .. }
    )
}

const fn may_be_answered_later(request: &Request) -> bool {
    matches!(
        request,
        Request::Vote { .. }
            | Request::TpcFinish { .. }
            | Request::NewOids { .. }
            | Request::GetInvalidations { .. }
            | Request::LoadBefore { .. }
            | Request::LoadSerial { .. }
            | Request::GetTid { .. }
            | Request::History { .. }
            | Request::UndoLog { .. }
            | Request::UndoInfo { .. }
            | Request::Pack { .. }
            | Request::IteratorNext { .. }
            | Request::IteratorRecordNext { .. }
            | Request::RecordIternext { .. }
            | Request::SendBlob { .. }
    )
}

/// What a storage can do, in the order in which ZODB names it.
fn interfaces(has_blobs: bool) -> Value {
    let with_blobs = ["IBlobStorageRestoreable", "IBlobStorage"];
    let always = [
        "IStorageRestoreable",
        "IStorageIteration",
        "IStorageUndoable",
        "IStorageCurrentRecordIteration",
        "IExternalGC",
        "IStorage",
    ];
    let with_blobs = with_blobs.into_iter().filter(|_| has_blobs);
    let of_zodb = with_blobs
        .chain(always)
        .map(|name| ("ZODB.interfaces", name));
    let all = of_zodb.chain([("zope.interface", "Interface")]);
    let pairs =
        all.map(|(module, name)| Value::Tuple(vec![Value::text(module), Value::text(name)]));
    Value::Tuple(pairs.collect())
}

fn lookup_outcome(wanted: Wanted, lookup: Lookup, answer: Answer) -> Outcome {
    let revision = |data: Value, serial: Tid, end: Option<Tid>| match wanted {
        Wanted::NextObject { oid, next } => {
            let next = next.map_or(Value::None, Value::from);
            Value::Tuple(vec![oid.into(), serial.into(), data, next])
        }
        _ => Value::Tuple(vec![
            data,
            serial.into(),
            end.map_or(Value::None, Value::from),
        ]),
    };
    Outcome::Reply(match answer {
        Answer::Revision { data, serial, end } => revision(Value::Bytes(data), serial, end),
        Answer::LongRevision { data, serial, end } => {
            let value = revision(Value::Gap(data.left()), serial, end);
            return Outcome::ReplyLong(value, data);
        }
        Answer::LongData(data) => {
            return Outcome::ReplyLong(Value::Gap(data.left()), data);
        }
        Answer::NoneBefore => Value::None,
        Answer::Data(data) => Value::Bytes(data),
        Answer::Serial(serial) => serial.into(),
        Answer::Missing => return Outcome::Raise(RemoteError::PosKey(lookup.oid())),
    })
}

/// Module and class of an object, where its record begins in the usual way: with a pickle of the
/// class, by name. Good enough for a message.
fn class_name(record: &[u8]) -> Option<Bytes> {
    let pickle = record
        .strip_prefix(&[0x80])
        .map_or(record, |rest| &rest[1.min(rest.len())..]);
    let global = pickle
        .strip_prefix(b"(")
        .unwrap_or(pickle)
        .strip_prefix(b"c")?;
    let mut lines = global.split(|byte| *byte == b'\n');
    let name = [lines.next()?, lines.next()?].join(&b'.');
    str::from_utf8(&name).is_ok().then(|| Bytes::from(name))
}

fn oids_value(range: std::ops::Range<u64>) -> Value {
    Value::List(range.map(|oid| Oid(oid).into()).collect())
}

fn not_granted() -> RemoteError {
    let message = "tpc_finish of a transaction that has no granted vote";
    other("builtins.AssertionError", message)
}

pub(super) fn no_such_txn(current: Option<&ClientTxn>, named: Value) -> RemoteError {
    let current = current.map_or(Value::None, |txn| txn.handle.clone());
    RemoteError::NotCurrentTransaction {
        current,
        given: named,
    }
}

/// A conflict in the form that clients resolve.
pub(super) fn conflict_value(conflict: Conflict) -> Value {
    let Conflict {
        oid,
        committed,
        sent,
        data,
    } = conflict;
    Value::Dict(vec![
        (Value::text("oid"), oid.into()),
        (
            Value::text("serials"),
            Value::Tuple(vec![Value::from(committed), Value::from(sent)]),
        ),
        (Value::text("data"), Value::Bytes(data)),
    ])
}

/// Whether a refusal counts as a conflict in the statistics.
pub(super) const fn is_conflict(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Conflict(_) | Refusal::ReadConflict { .. })
}

/// What FileStorage raises where the file contradicts itself.
pub(super) const CORRUPTED: &str = "ZODB.FileStorage.format.CorruptedDataError";

/// What FileStorage raises.
pub(super) const STORAGE: &str = "ZODB.FileStorage.FileStorage.FileStorageError";

/// A refused vote in the form that clients know.
pub(super) fn refusal_error(refusal: Refusal) -> RemoteError {
    match refusal {
        Refusal::Conflict(Conflict {
            oid,
            committed,
            sent,
            data,
        }) => {
            let class_name = class_name(&data);
            RemoteError::Conflict(errors::Conflict {
                oid,
                committed,
                read: sent,
                class_name,
            })
        }
        Refusal::ReadConflict {
            oid,
            committed,
            read,
        } => RemoteError::ReadConflict(errors::Conflict {
            oid,
            committed,
            read,
            class_name: None,
        }),
        Refusal::Missing(oid) => RemoteError::PosKey(oid),
        Refusal::NotUndoable(reason) => RemoteError::Undo(reason),
        Refusal::Undo(errors) => {
            let errors = errors.into_iter();
            RemoteError::MultipleUndo(errors.map(|(oid, why)| (oid, why.to_owned())).collect())
        }
        Refusal::Quota => other(
            "ZODB.FileStorage.FileStorage.FileStorageQuotaError",
            "The storage quota has been exceeded.",
        ),
        Refusal::MetadataTooLong(what) => other(STORAGE, format!("{what} is too long")),
        Refusal::WrongTid(tid) => other(
            STORAGE,
            format!("tid {tid} is not above the last one, or too high"),
        ),
        Refusal::Blob(error) => other("ZODB.blob.BlobStorageError", error),
        Refusal::Disk(error) => other(STORAGE, error),
    }
}

pub(super) fn other(class: &'static str, message: impl Into<String>) -> RemoteError {
    RemoteError::Other {
        class,
        message: message.into(),
    }
}
