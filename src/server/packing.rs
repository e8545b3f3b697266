//! The call `pack`. That of a replicated storage is ordered by an entry of the log, and done by
//! each node in its turn:
//!
//! ```text
//!   pack ─► (undos on their way) ─► ToNode::Pack ─► on_order_answered ─► on_pack_ordered
//!             until they have ended                  refused               all must pack
//!                                                        answered ◄─ on_pack_ended ◄┘
//! ```

use super::calls::{CORRUPTED, Outcome, STORAGE, other};
use super::failover::ToNode;
use super::{LOG, NoticeFrames, Now, Output, Server};
use crate::ids::{ClientId, Seq, Tid};
use crate::replica::event::Token;
use crate::storage::{PackError, PackRefused, Packed};
use crate::zeo::Value;
use crate::zeo::errors::RemoteError;

/// A pack of a replicated storage that was ordered here.
#[derive(Debug)]
pub(super) struct Order {
    token: Token,
    until: Tid,
    stage: Stage,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Something is being undone that it may drop.
    Waiting,
    /// The node has been told.
    Sent,
    /// By this entry.
    Ordered(Seq),
}

/// Why a pack of all nodes is not ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderRefused {
    /// There is no storage of that name.
    Unknown,
    /// Another node is primary, or none is.
    NotPrimary,
    /// One is under way, here at least.
    Already,
}

impl Server {
    /// Packs to a time, in seconds since 1970. Who does not wait is answered at once, and hears
    /// nothing of errors, as from ZEO.
    pub(super) fn pack(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        (time, wait): (f64, bool),
        now: Now,
    ) -> Outcome {
        let begun = self.begin_pack(id, at, time, now);
        match (begun, wait) {
            (Ok(()), true) => {
                let served = &mut self.storages[at];
                served.waiting_for_pack = Some((id, msgid.clone()));
                if let Some(client) = self.clients.get_mut(&id) {
                    client.waiting += 1;
                }
                self.follow_storage(at, now);
                Outcome::Later
            }
            (Err(error), true) => Outcome::Raise(error),
            (_, false) => {
                self.follow_storage(at, now);
                Outcome::Reply(Value::None)
            }
        }
    }

    fn begin_pack(
        &mut self,
        id: ClientId,
        at: usize,
        time: f64,
        now: Now,
    ) -> Result<(), RemoteError> {
        let Some(until) = Tid::from_unix_seconds(time) else {
            return Err(other(STORAGE, "Invalid pack time"));
        };
        if let Some(client) = self.clients.get(&id) {
            log::info!(target: LOG, "{} pack(time={time}) asked for", client.who);
        }
        if self.storages[at].following.is_some() {
            return Err(RemoteError::ReadOnly);
        }
        let already = || other(STORAGE, "Already packing");
        match self.storages[at].storage.pack(until, now.mono) {
            Ok(()) => Ok(()),
            Err(PackRefused::ReadOnly) => Err(RemoteError::ReadOnly),
            Err(PackRefused::Already) => Err(already()),
            Err(PackRefused::Fed) => match self.begin_order(at, until, None) {
                Ok(()) => Ok(()),
                Err(OrderRefused::Already) => Err(already()),
                Err(OrderRefused::NotPrimary | OrderRefused::Unknown) => Err(RemoteError::ReadOnly),
            },
        }
    }

    /// Has a replicated storage packed by all nodes, as an administrator wants it. `token` comes
    /// back with [`ToNode::Pack`].
    ///
    /// # Errors
    ///
    /// See [`OrderRefused`].
    pub fn order_pack(
        &mut self,
        storage: &str,
        until: Tid,
        token: Token,
    ) -> Result<(), OrderRefused> {
        let at = self.storage_named(storage).ok_or(OrderRefused::Unknown)?;
        self.begin_order(at, until, Some(token))
    }

    fn begin_order(
        &mut self,
        at: usize,
        until: Tid,
        token: Option<Token>,
    ) -> Result<(), OrderRefused> {
        let failover = self.failover.as_mut().filter(|it| it.is_in_office());
        let failover = failover.ok_or(OrderRefused::NotPrimary)?;
        let served = &mut self.storages[at];
        if served.order.is_some() || served.is_pack_due {
            return Err(OrderRefused::Already);
        }
        served.order = Some(Order {
            token: token.unwrap_or_else(|| failover.token()),
            until,
            stage: Stage::Waiting,
        });
        served.storage.order_pack(Some(until));
        self.go_on_with_order(at);
        Ok(())
    }

    /// Orders the pack as soon as nothing is on its way that undoes what it may drop.
    pub(super) fn go_on_with_order(&mut self, at: usize) {
        let served = &mut self.storages[at];
        if let Some(order) = &mut served.order
            && order.stage == Stage::Waiting
            && !served.storage.is_undoing(order.until)
        {
            order.stage = Stage::Sent;
            self.outputs.push_back(Output::ToNode(ToNode::Pack {
                token: order.token,
                storage: served.storage.name().to_owned(),
                until: order.until,
            }));
        }
    }

    /// The answer to [`ToNode::Pack`]: it is an entry of the log now, or why it is not, or may not
    /// be.
    pub fn on_order_answered(&mut self, token: Token, result: Result<(), String>) {
        let is_it = |order: &Order| order.token == token;
        let found = self.storages.iter();
        let found = found.map(|served| served.order.as_ref());
        let Some(at) = found.into_iter().position(|order| order.is_some_and(is_it)) else {
            return;
        };
        if let Err(why) = result {
            self.end_order(at, Err(other(STORAGE, why)));
        }
    }

    /// The log has a pack of a storage, as far as it is applied here: that it was ordered, and
    /// perhaps done, may be long ago.
    pub fn on_pack_ordered(&mut self, storage: &str, entry: Seq, until: Tid, is_done: bool) {
        let Some(at) = self.storage_named(storage) else {
            return;
        };
        let served = &mut self.storages[at];
        served.storage.on_pack_ordered(until);
        served.is_pack_due = !is_done;
        if let Some(order) = served.order.as_mut().filter(|_| !is_done)
            && order.stage == Stage::Sent
        {
            order.stage = Stage::Ordered(entry);
            served.storage.order_pack(None);
        }
    }

    /// This node has done a pack, or it has come to nothing here.
    pub fn on_pack_ended(&mut self, storage: &str, entry: Seq, result: Result<(), &PackError>) {
        let Some(at) = self.storage_named(storage) else {
            return;
        };
        let served = &mut self.storages[at];
        served.is_pack_due = false;
        let order = served.order.as_ref();
        if order.is_some_and(|order| order.stage == Stage::Ordered(entry)) {
            self.end_order(at, result.map_err(remote));
        }
    }

    /// The office is left.
    pub(super) fn drop_orders(&mut self) {
        for at in 0..self.storages.len() {
            if self.storages[at].order.is_some() {
                let why = "this server is not primary any more: it is packed if that was ordered \
                           in time";
                self.end_order(at, Err(other(STORAGE, why)));
            }
        }
    }

    fn end_order(&mut self, at: usize, result: Result<(), RemoteError>) {
        let served = &mut self.storages[at];
        served.order = None;
        served.storage.order_pack(None);
        self.answer_pack(at, result);
    }

    /// A pack has ended: all clients hear of the new length, and then who waits for it.
    pub(super) fn on_packed(&mut self, at: usize, ended: Result<Packed, PackError>) {
        if ended.is_ok() {
            self.tell_size(at);
        }
        self.answer_pack(at, ended.map(drop).map_err(|error| remote(&error)));
    }

    fn answer_pack(&mut self, at: usize, result: Result<(), RemoteError>) {
        let served = &mut self.storages[at];
        let Some((id, msgid)) = served.waiting_for_pack.take() else {
            return;
        };
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
            return;
        };
        client.waiting -= 1;
        match result {
            Ok(()) => client.session.reply(&msgid, &Value::None),
            Err(error) => client.session.fail(&msgid, &error),
        }
        self.note_output(id);
        self.outputs.push_back(Output::Serve(id));
    }

    /// All clients hear of the new length.
    pub(super) fn tell_size(&mut self, at: usize) {
        let served = &self.storages[at];
        let info = Value::Dict(vec![
            (
                Value::text("length"),
                Value::from(served.storage.object_count()),
            ),
            (Value::text("size"), Value::from(served.storage.file_len())),
        ]);
        let mut frames = NoticeFrames::new(self.options.encoding, "info", vec![info]);
        for id in &served.clients {
            let Some(client) = self.clients.get_mut(id).filter(|client| !client.closing) else {
                continue;
            };
            let frame = frames.of(client.session.dialect());
            client.notices_len += frame.len();
            client.session.push(frame);
            self.to_send.insert(*id);
        }
    }
}

fn remote(error: &PackError) -> RemoteError {
    let class = match error {
        PackError::Read(_) => CORRUPTED,
        _ => STORAGE,
    };
    other(class, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::event::Writers;
    use crate::server::failover::Port;
    use crate::server::testing::{Front, Heard, OPEN, REPLICA};
    use crate::zeo::base64::base64;
    use crate::zeo::client::Raised;

    const ERROR: &str = "ZODB.FileStorage.FileStorage.FileStorageError";

    /// A time that has come, in seconds since 1970, for clients and in the file.
    const TIME: f64 = 2e9;

    fn raised(heard: Option<Heard>, class: &str) -> String {
        match heard {
            Some(Err(Raised {
                class: found,
                arguments,
            })) if found == class => format!("{arguments:?}"),
            other => panic!("{other:?}"),
        }
    }

    fn undo_id(tid: Tid) -> Value {
        Value::Bytes(base64(&tid.to_bytes()).into())
    }

    fn pack(front: &mut Front, id: ClientId, wait: bool) -> i64 {
        front.call(id, "pack", vec![Value::Float(TIME), Value::Bool(wait)])
    }

    fn ordered(front: &mut Front) -> Option<Token> {
        let is_pack = |it: &ToNode| matches!(it, ToNode::Pack { .. });
        let at = front.to_node.iter().position(is_pack)?;
        match front.to_node.remove(at)? {
            ToNode::Pack {
                token,
                storage,
                until,
            } => {
                assert_eq!(storage, "1");
                assert_eq!(Some(until), Tid::from_unix_seconds(TIME));
                Some(token)
            }
            _ => None,
        }
    }

    /// Its entry is applied here, and orders a pack up to this.
    fn apply_order(front: &mut Front, entry: u64, until: u64) {
        let server = &mut front.server;
        server.on_pack_ordered("1", Seq(entry), Tid(until), false);
        front.settle();
    }

    fn end(front: &mut Front, entry: u64, result: Result<(), &PackError>) {
        front.server.on_pack_ended("1", Seq(entry), result);
        front.settle();
    }

    #[test]
    fn a_client_is_answered_when_this_node_has_packed() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, false);
        front.commit_elsewhere(&[1]);
        let call = pack(&mut front, id, true);
        let token = ordered(&mut front).unwrap();
        front.server.on_order_answered(token, Ok(()));
        apply_order(&mut front, 7, 10);
        // That of an earlier one.
        end(&mut front, 5, Ok(()));
        assert_eq!(front.reply(id, call), None);
        end(&mut front, 7, Ok(()));
        assert_eq!(front.reply(id, call), Some(Ok(Value::None)));
        // Who does not wait is answered at once, and the error of the next goes to who waits.
        let call = pack(&mut front, id, false);
        assert_eq!(front.reply(id, call), Some(Ok(Value::None)));
        assert!(ordered(&mut front).is_some());
        apply_order(&mut front, 8, 10);
        end(&mut front, 8, Ok(()));
        let call = pack(&mut front, id, true);
        assert!(ordered(&mut front).is_some());
        apply_order(&mut front, 9, 10);
        end(&mut front, 9, Err(&PackError::NoRoot));
        let why = raised(front.reply(id, call), ERROR);
        assert!(why.contains("root"), "{why}");
    }

    #[test]
    fn there_is_one_pack_of_a_storage_at_a_time() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, false);
        front.commit_elsewhere(&[1]);
        let is_refused = |front: &mut Front| {
            let call = pack(front, id, true);
            let why = raised(front.reply(id, call), ERROR);
            assert!(why.contains("Already packing"), "{why}");
            let token = Token(1 << 63);
            let refused = front.server.order_pack("1", Tid(10), token);
            assert_eq!(refused, Err(OrderRefused::Already));
            assert!(ordered(front).is_none());
        };
        let call = pack(&mut front, id, true);
        let token = ordered(&mut front).unwrap();
        is_refused(&mut front);
        let why = "it was not".to_owned();
        front.server.on_order_answered(token, Err(why));
        front.settle();
        assert!(raised(front.reply(id, call), ERROR).contains("it was not"));
        // One that this node has yet to do, whoever had it ordered.
        apply_order(&mut front, 7, 10);
        is_refused(&mut front);
        end(&mut front, 7, Ok(()));
        let token = Token(1 << 63);
        assert_eq!(
            front.server.order_pack("2", Tid(10), token),
            Err(OrderRefused::Unknown)
        );
        pack(&mut front, id, false);
        assert!(ordered(&mut front).is_some());
    }

    #[test]
    fn who_is_not_primary_packs_nothing_and_says_so() {
        let mut front = Front::new(REPLICA);
        let id = front.registered(Port::Read, true);
        front.commit_elsewhere(&[1]);
        let call = pack(&mut front, id, true);
        raised(front.reply(id, call), "ZODB.POSException.ReadOnlyError");
        front.serve(OPEN);
        let call = pack(&mut front, id, true);
        assert!(ordered(&mut front).is_some());
        apply_order(&mut front, 7, 10);
        front.serve(crate::replica::event::Serving {
            writers: Writers::Closed,
            ..OPEN
        });
        let why = raised(front.reply(id, call), ERROR);
        assert!(why.contains("not primary any more"), "{why}");
        end(&mut front, 7, Ok(()));
    }

    #[test]
    fn a_copy_of_another_servers_storage_is_not_packed() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, false);
        front.commit_elsewhere(&[1]);
        let now = front.now;
        front.server.set_following("1", "level", now);
        let call = pack(&mut front, id, true);
        raised(front.reply(id, call), "ZODB.POSException.ReadOnlyError");
        assert!(ordered(&mut front).is_none());
    }

    #[test]
    fn nothing_is_undone_any_more_that_a_pack_may_drop() {
        let mut front = Front::new(OPEN);
        let [one, other] = [(); 2].map(|()| front.registered(Port::Main, false));
        let first = front.commit_elsewhere(&[1]);
        let second = front.commit_elsewhere(&[1]);
        let mut txn_last = 5000;
        let mut undo = |front: &mut Front, id, tid: Tid| {
            txn_last += 1;
            let txn = txn_last;
            let empty = || Value::Bytes(bytes::Bytes::new());
            let begin = vec![
                Value::Int(txn),
                empty(),
                empty(),
                Value::Dict(Vec::new()),
                Value::None,
                Value::text(" "),
            ];
            front.tell(id, "tpc_begin", begin);
            front.tell(id, "undoa", vec![undo_id(tid), Value::Int(txn)]);
            let vote = front.call(id, "vote", vec![Value::Int(txn)]);
            (txn, vote)
        };
        // One is on its way, and is waited for.
        let (txn, vote) = undo(&mut front, one, second);
        let reply = front.reply(one, vote);
        assert!(matches!(reply, Some(Ok(Value::List(_)))), "{reply:?}");
        let finish = front.call(one, "tpc_finish", vec![Value::Int(txn)]);
        let call = pack(&mut front, other, true);
        assert!(ordered(&mut front).is_none());
        // Another comes too late.
        let (_, late) = undo(&mut front, other, first);
        let tid = front.commit_next();
        raised(front.reply(other, late), "ZODB.POSException.UndoError");
        assert!(matches!(front.reply(one, finish), Some(Ok(_))));
        let token = ordered(&mut front).unwrap();
        apply_order(&mut front, 7, tid.0);
        let third = front.commit_elsewhere(&[1]);
        let (_, late) = undo(&mut front, one, tid);
        raised(front.reply(one, late), "ZODB.POSException.UndoError");
        // What is later can be undone.
        let (_, vote) = undo(&mut front, one, third);
        assert!(matches!(front.reply(one, vote), Some(Ok(Value::List(_)))));
        front.server.on_order_answered(token, Ok(()));
        end(&mut front, 7, Ok(()));
        assert_eq!(front.reply(other, call), Some(Ok(Value::None)));
    }

    #[test]
    fn an_undo_that_was_voted_before_the_order_is_not_committed_behind_it() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, false);
        front.commit_elsewhere(&[1]);
        let tid = front.commit_elsewhere(&[1]);
        let empty = || Value::Bytes(bytes::Bytes::new());
        let begin = vec![
            Value::Int(5000),
            empty(),
            empty(),
            Value::Dict(Vec::new()),
            Value::None,
            Value::text(" "),
        ];
        front.tell(id, "tpc_begin", begin);
        front.tell(id, "undoa", vec![undo_id(tid), Value::Int(5000)]);
        front.call(id, "vote", vec![Value::Int(5000)]);
        apply_order(&mut front, 7, tid.0);
        front.call(id, "tpc_finish", vec![Value::Int(5000)]);
        assert!(front.is_closed(id));
        let is_finish = |it: &ToNode| matches!(it, ToNode::Finish { .. });
        assert!(!front.to_node.iter().any(is_finish));
    }
}
