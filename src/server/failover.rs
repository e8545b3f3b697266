//! Clients of a replicated storage: who is served, who waits, and who is sent away when the primary
//! changes. What stock clients need stands in [`replication`](crate::manual::replication).
//!
//! ```text
//!   connect ─► Parked ── open ──► Greeted ─► Registered
//!                 │                  │ └ not open any more ─► answered, closed
//!                 │                  └─► Refused ─► Fallback ── open, or some time ──► closed
//!                 └─ some time ─► Bounced ─► answered at `register`, closed
//! ```
//!
//! A server alone greets at once, and knows nothing of all this.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use super::client::{Client, Pending};
use super::invalidation::InvalidationQueue;
use super::reason::Reason;
use super::{JobTag, LOG, Now, Output, Server};
use crate::ids::{ClientId, Epoch, Tid};
use crate::limits::{
    FALLBACK_MAX, FINISH_DOUBT_MAX, GREETING_RETRY, PARKED_BESIDE_PRIMARY_MAX, PARKED_MAX,
    REGISTER_TIMEOUT,
};
use crate::replica::event::{self, Readers, Serving, Token, Writers};
use crate::replica::lineage::Lineage;
use crate::replica::settings::StorageName;
use crate::storage::apply::Applied;
use crate::storage::follow::Followed;
use crate::storage::transfer::BlobName;
use crate::storage::{Proposal, TxnId};
use crate::zeo::Value;
use crate::zeo::errors::RemoteError;

/// What a client has connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Of the primary, wherever that is.
    Main,
    /// Of whoever has the data.
    Read,
}

/// What the server wants of the node that it is the front of.
#[derive(Debug)]
pub enum ToNode {
    /// A transaction is to be committed: [`Server::on_applied`], or [`Server::on_outcome`].
    Finish {
        /// Comes back.
        token: Token,
        /// Where it belongs.
        storage: StorageName,
        /// The transaction.
        proposal: Proposal,
    },
    /// A transaction that is being voted has these blobs, which are in these files, and which other
    /// nodes may fetch: [`Server::on_offered`].
    Offer {
        /// Comes back.
        token: Token,
        /// Where it belongs.
        storage: StorageName,
        /// They
        blobs: Vec<(BlobName, PathBuf)>,
    },
    /// The transaction of this [`ToNode::Offer`] has ended.
    Withdraw {
        /// Its
        token: Token,
    },
    /// Oids are needed: [`Server::on_oids`].
    Oids {
        /// Comes back.
        token: Token,
        /// For this storage,
        storage: StorageName,
        /// so many.
        count: u64,
    },
    /// What is committed by now has to be known, and applied: [`Server::on_confirmed`].
    Confirm {
        /// Comes back.
        token: Token,
    },
    /// A storage is to be packed on all nodes: [`Server::on_order_answered`], and then
    /// [`Server::on_pack_ordered`] and [`Server::on_pack_ended`].
    Pack {
        /// Comes back.
        token: Token,
        /// Which
        storage: StorageName,
        /// To this time.
        until: Tid,
    },
    /// No transaction is voted and not finished, and none will be; after [`Writers::Draining`].
    Drained,
}

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for the greeting.
    Parked,
    Greeted,
    /// Greeted, to be disconnected when it has registered.
    Bounced,
    /// It wanted to write, and was told that it cannot.
    Refused,
    Registered,
    /// Registered to read, since it could not write.
    Fallback,
}

/// What belongs to being one of several servers.
#[derive(Debug, Default)]
pub(super) struct Failover {
    serving: Serving,
    /// Of the last question; none is used twice.
    token_last: u64,
    /// Finishes whose end is not known: of which storage, and which transaction.
    finishing: BTreeMap<Token, (usize, TxnId)>,
    /// Blobs that others were offered: of which storage, and which transaction.
    offered: BTreeMap<(usize, TxnId), Token>,
    asked: BTreeMap<Token, Asked>,
    greetings: Greetings,
    /// The node was told that no vote is left.
    is_drained: bool,
    /// Clients that may not stay as they are any longer than until then.
    patience: BTreeSet<(Instant, ClientId)>,
    /// The same, by client.
    until: BTreeMap<ClientId, Instant>,
    lineage: Lineage,
}

/// Clients that are greeted when it is sure what is committed. One question is for all who were
/// here when it was asked: thousands may come at once.
#[derive(Debug, Default)]
struct Greetings {
    /// For whom the node was asked.
    asked: BTreeSet<ClientId>,
    /// For whom it is to be asked next.
    next: BTreeSet<ClientId>,
    /// Not before then: it could not tell.
    retry: Option<Instant>,
}

/// What the node was asked.
#[derive(Debug)]
enum Asked {
    /// For a storage.
    Oids(usize),
    /// By this client, in this call.
    Ping(ClientId, Value),
    /// Before clients are greeted, as they may have seen more elsewhere. A stock client that finds
    /// that out refuses the server, and may not come back to any.
    Greetings,
}

impl Failover {
    /// Whether a transaction with this tid may be one of this history.
    pub(super) fn is_ours(&self, tid: Tid) -> bool {
        self.lineage.contains(tid)
    }

    /// Whether it is older than the log of this history.
    pub(super) fn is_of_base(&self, tid: Tid) -> bool {
        self.lineage.is_of_base(tid)
    }

    /// Whether the node is in office, and lets clients write.
    pub(super) fn is_in_office(&self) -> bool {
        self.serving.writers == Writers::Open
    }

    pub(super) const fn token(&mut self) -> Token {
        self.token_last += 1;
        Token(self.token_last)
    }
}

impl Client {
    /// Whether it ends with the office of the node.
    fn is_for_writing(&self) -> bool {
        match self.port {
            Port::Main => self.storage.is_some(),
            Port::Read => self.storage.is_some() && !self.read_only,
        }
    }
}

// What the node says.
impl Server {
    /// What clients may do from now on.
    pub fn set_serving(&mut self, serving: Serving, now: Now) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let before = std::mem::replace(&mut failover.serving, serving);
        if serving.writers != Writers::Draining {
            failover.is_drained = false;
        }
        let has_begun = |is: bool, was: bool| is && !was;
        let is = |writers| has_begun(serving.writers == writers, before.writers == writers);
        let reads = |readers| has_begun(serving.readers == readers, before.readers == readers);
        if serving.writers == Writers::Open {
            self.each_storage(now, |served| served.thaw(now.mono));
        } else {
            self.each_storage(now, |served| served.freeze());
        }
        if is(Writers::Closed) {
            self.drop_orders();
            self.each_storage(now, |served| served.forget_oids());
            // For these the end is told, if ever it is known.
            let goes = |client: &Client| client.is_for_writing() && !client.is_finishing();
            self.hang_up_where(goes, &Reason::NotPrimary, now);
            let finishing = self.clients.iter().filter(|(_, it)| it.is_finishing());
            let finishing: Vec<ClientId> = finishing.map(|(id, _)| *id).collect();
            for id in finishing {
                self.set_patience(id, Some(now.mono + FINISH_DOUBT_MAX));
            }
        }
        if reads(Readers::Closed) {
            let reads =
                |it: &Client| it.port == Port::Read && it.storage.is_some() && !it.is_for_writing();
            self.hang_up_where(reads, &Reason::Replaced, now);
        }
        if is(Writers::Open) {
            let is_fallback = |client: &Client| client.stage == Stage::Fallback;
            self.hang_up_where(is_fallback, &Reason::Fallback, now);
            for id in self.parked(Port::Main) {
                self.greet(id, Stage::Greeted, now);
            }
        }
        if reads(Readers::Open) {
            for id in self.parked(Port::Read) {
                self.ask_before_greeting(id);
            }
        }
        self.look_if_drained();
    }

    /// Another node has taken office: its barrier entry was applied. Who wants to write should be
    /// there, and must begin anew for it.
    pub fn on_other_primary(&mut self, now: Now) {
        let is_fallback = |client: &Client| client.stage == Stage::Fallback;
        self.hang_up_where(is_fallback, &Reason::Fallback, now);
        let latest = now.mono + PARKED_BESIDE_PRIMARY_MAX;
        for id in self.parked(Port::Main) {
            let until = self.patience_of(id);
            let until = until.map_or(latest, |until| until.min(latest));
            self.set_patience(id, Some(until));
        }
    }

    /// A transaction was applied; they come in order. `token`: it is the one that was to be
    /// committed by that name.
    pub fn on_applied(&mut self, storage: &str, applied: Applied, token: Option<Token>, now: Now) {
        let finishing = token.and_then(|token| self.failover.as_mut()?.finishing.remove(&token));
        let Some(at) = self.storage_named(storage) else {
            return;
        };
        let txn = finishing.filter(|(of, _)| *of == at).map(|(_, txn)| txn);
        self.storages[at].storage.on_applied(applied, txn, now.mono);
        self.follow_storage(at, now);
    }

    /// The node has begun anew, and will say no more of what it was asked.
    pub fn on_begun_anew(&mut self, now: Now) {
        let Some(failover) = &self.failover else {
            return;
        };
        let finishing: Vec<Token> = failover.finishing.keys().copied().collect();
        let asked = failover.asked.iter();
        let asked = asked.map(|(token, asked)| (*token, matches!(asked, Asked::Oids(_))));
        let asked: Vec<(Token, bool)> = asked.collect();
        for token in finishing {
            self.on_outcome(token, event::Outcome::Unknown, now);
        }
        for (token, is_for_oids) in asked {
            match is_for_oids {
                true => self.on_oids(token, None, now),
                false => self.on_confirmed(token, false, now),
            }
        }
    }

    /// The vote of a transaction need not wait any more for other nodes to have its blobs.
    pub fn on_offered(&mut self, token: Token, now: Now) {
        let mut offered = self.failover.iter().flat_map(|it| &it.offered);
        let Some((&(at, txn), _)) = offered.find(|(_, it)| **it == token) else {
            return;
        };
        self.storages[at].storage.on_offered(txn, now.mono);
        self.follow_storage(at, now);
    }

    /// A finish has ended otherwise than by [`Self::on_applied`].
    pub fn on_outcome(&mut self, token: Token, outcome: event::Outcome, now: Now) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let Some((at, txn)) = failover.finishing.remove(&token) else {
            return;
        };
        let is_closed = failover.serving.writers == Writers::Closed;
        let owner = self.storages[at].owners.remove(&txn);
        if let Some(id) = owner {
            match outcome {
                event::Outcome::Lost if self.answer_lost(id, txn) => {
                    if is_closed {
                        self.hang_up(id, &Reason::NotPrimary, now);
                    }
                }
                // It came with a copy: the client has not heard of what was committed before it,
                // and its cache would go on without that.
                event::Outcome::Committed { .. }
                | event::Outcome::Unknown
                | event::Outcome::Lost => self.hang_up(id, &Reason::FinishUnknown, now),
            }
        }
        self.storages[at].storage.on_lost(txn, now.mono);
        self.follow_storage(at, now);
    }

    /// Tells a client that its transaction was not committed; `false` if it does not wait for that.
    fn answer_lost(&mut self, id: ClientId, txn: TxnId) -> bool {
        let client = self.clients.get_mut(&id).filter(|client| !client.closing);
        let Some(client) = client else {
            return true;
        };
        let ended = client.txn.take_if(|current| current.id == txn);
        let Some(Pending::Finish { msgid }) = ended.map(|txn| txn.pending) else {
            return false;
        };
        let who = &client.who;
        log::info!(target: LOG, "{who} tpc_finish: not committed");
        client.session.fail(&msgid, &RemoteError::NotCommitted);
        self.to_send.insert(id);
        self.outputs.push_back(Output::Serve(id));
        true
    }

    /// The answer to [`ToNode::Oids`]; `None` if there are none to be had here.
    pub fn on_oids(&mut self, token: Token, oids: Option<Range<u64>>, now: Now) {
        if let Some(Asked::Oids(at)) = self.take_asked(token) {
            self.storages[at].storage.on_oids(oids);
            self.follow_storage(at, now);
        }
    }

    /// The answer to [`ToNode::Confirm`]: all that was committed when it was asked has been
    /// applied; or, if not `is_sure`, nobody knows.
    pub fn on_confirmed(&mut self, token: Token, is_sure: bool, now: Now) {
        match self.take_asked(token) {
            Some(Asked::Ping(id, msgid)) => {
                let client = self.clients.get_mut(&id).filter(|client| !client.closing);
                let Some(client) = client else { return };
                client.waiting -= 1;
                if is_sure {
                    client.session.reply(&msgid, &Value::None);
                    self.note_output(id);
                    self.outputs.push_back(Output::Serve(id));
                } else {
                    self.hang_up(id, &Reason::NotSure, now);
                }
            }
            Some(Asked::Greetings) => self.on_greetings(is_sure, now),
            Some(Asked::Oids(_)) | None => {}
        }
    }

    /// The data of a storage were packed, or replaced by a copy. After a copy its clients begin
    /// anew, since nobody can tell them what has changed, and no finish from before it is answered.
    pub fn refollow(&mut self, storage: &str, followed: Followed, now: Now) {
        let Some(at) = self.storage_named(storage) else {
            return;
        };
        let has_gap = followed.last_tid != self.storages[at].storage.last_tid();
        self.storages[at].storage.refollow(followed, now.mono);
        if has_gap {
            let is_served = |client: &Client| client.storage == Some(at);
            self.hang_up_where(is_served, &Reason::Replaced, now);
            let (count, age) = (
                self.options.invalidation_queue_size,
                self.options.invalidation_age,
            );
            let served = &mut self.storages[at];
            served.invalidations = InvalidationQueue::new(count, age);
            served.copies += 1;
            self.read_past(at, now);
        } else {
            self.tell_size(at);
        }
        self.follow_storage(at, now);
    }

    /// Which transactions are of this history: caches that end with another one are not told what
    /// has changed, and begin anew.
    pub fn set_lineage(&mut self, lineage: Lineage) {
        if let Some(failover) = &mut self.failover {
            failover.lineage = lineage;
        }
    }

    /// A transaction of this epoch was applied, and belongs to the history.
    pub fn extend_lineage(&mut self, epoch: Epoch, tid: Tid) {
        if let Some(failover) = &mut self.failover {
            failover.lineage.extend(epoch, tid);
        }
    }

    /// Clients that wait for their greeting.
    pub fn parked_count(&self) -> usize {
        let clients = self.clients.values();
        clients
            .filter(|client| client.stage == Stage::Parked && !client.closing)
            .count()
    }
}

// What clients do.
impl Server {
    /// A client has connected: it is greeted, now or later.
    pub(super) fn admit(&mut self, id: ClientId, now: Now) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        let port = client.port;
        if self.failover.is_none() || (port == Port::Main && self.is_open(port)) {
            self.greet(id, Stage::Greeted, now);
        } else {
            self.set_stage(id, Stage::Parked, now);
            if self.is_open(port) {
                self.ask_before_greeting(id);
            }
        }
    }

    fn is_open(&self, port: Port) -> bool {
        let serving = self.failover.as_ref().map(|failover| failover.serving);
        serving.is_none_or(|serving| match port {
            Port::Main => serving.writers == Writers::Open,
            Port::Read => serving.readers == Readers::Open,
        })
    }

    fn greet(&mut self, id: ClientId, stage: Stage, now: Now) {
        self.set_stage(id, stage, now);
        if let Some(client) = self.clients.get_mut(&id) {
            client.session.greet();
            self.to_send.insert(id);
        }
    }

    fn ask_before_greeting(&mut self, id: ClientId) {
        if let Some(failover) = &mut self.failover {
            failover.greetings.next.insert(id);
            self.ask_for_greetings();
        }
    }

    /// Asks for those who have come since the last question, when that is answered.
    fn ask_for_greetings(&mut self) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let greetings = &mut failover.greetings;
        let is_waiting = !greetings.asked.is_empty() || greetings.retry.is_some();
        if !is_waiting && !greetings.next.is_empty() {
            greetings.asked = std::mem::take(&mut greetings.next);
            self.ask(Asked::Greetings);
        }
    }

    fn on_greetings(&mut self, is_sure: bool, now: Now) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let asked = std::mem::take(&mut failover.greetings.asked);
        // Those who wait are asked for again when it opens.
        if self.is_open(Port::Read) {
            let is_parked = |id: &ClientId| {
                let client = self.clients.get(id).filter(|client| !client.closing);
                client.is_some_and(|client| client.stage == Stage::Parked)
            };
            let parked: Vec<ClientId> = asked.into_iter().filter(is_parked).collect();
            if is_sure {
                for id in parked {
                    self.greet(id, Stage::Greeted, now);
                }
            } else if let Some(failover) = &mut self.failover {
                failover.greetings.next.extend(parked);
                // Asked at once it would say the same at once.
                failover.greetings.retry = Some(now.mono + GREETING_RETRY);
            }
        }
        self.ask_for_greetings();
    }

    fn retry_greetings(&mut self, now: Now) {
        if let Some(failover) = &mut self.failover
            && failover
                .greetings
                .retry
                .take_if(|at| *at <= now.mono)
                .is_some()
        {
            self.ask_for_greetings();
        }
    }

    /// Where a client gets to that wants to register. [`Stage::Bounced`]: it is answered, and has
    /// to begin anew. It was greeted a moment ago, or is to be sent away; and it must be answered
    /// at once, since it registers with no other server meanwhile.
    pub(super) fn stage_at_register(&mut self, id: ClientId, read_only: bool) -> Stage {
        let Some(client) = self.clients.get_mut(&id) else {
            return Stage::Bounced;
        };
        let (port, stage) = (client.port, client.stage);
        if stage == Stage::Parked {
            // It has not waited for the greeting.
            client.session.greet();
            return Stage::Bounced;
        }
        let (can_write, can_read) = (self.is_open(Port::Main), self.is_open(Port::Read));
        let next = match (port, read_only) {
            _ if stage == Stage::Bounced && !can_write => None,
            (Port::Main, _) => can_write.then_some(Stage::Registered),
            (Port::Read, false) if can_write => Some(Stage::Registered),
            (Port::Read, false) => can_read.then_some(Stage::Refused),
            (Port::Read, true) if stage == Stage::Refused => can_read.then_some(Stage::Fallback),
            (Port::Read, true) => can_read.then_some(Stage::Registered),
        };
        next.unwrap_or(Stage::Bounced)
    }

    /// The client has come so far; how long it may stay there follows from that.
    pub(super) fn set_stage(&mut self, id: ClientId, stage: Stage, now: Now) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.stage = stage;
        if self.failover.is_none() {
            return;
        }
        let patience = match stage {
            Stage::Parked => Some(PARKED_MAX),
            Stage::Greeted | Stage::Bounced | Stage::Refused => Some(REGISTER_TIMEOUT),
            Stage::Fallback => Some(FALLBACK_MAX),
            Stage::Registered => None,
        };
        self.set_patience(id, patience.map(|patience| now.mono + patience));
    }

    pub(super) fn set_patience(&mut self, id: ClientId, until: Option<Instant>) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let before = match until {
            Some(until) => failover.until.insert(id, until),
            None => failover.until.remove(&id),
        };
        if let Some(before) = before {
            failover.patience.remove(&(before, id));
        }
        failover.patience.extend(until.map(|until| (until, id)));
    }

    /// Until when a client may stay as it is, if not for ever.
    pub(super) fn patience_of(&self, id: ClientId) -> Option<Instant> {
        self.failover.as_ref()?.until.get(&id).copied()
    }

    /// When [`Self::end_patience`] has something to do.
    pub(super) fn patience(&self) -> Option<Instant> {
        let failover = self.failover.as_ref()?;
        let until = failover.patience.first().map(|(until, _)| *until);
        until.into_iter().chain(failover.greetings.retry).min()
    }

    /// Sends on who has waited for too long.
    pub(super) fn end_patience(&mut self, now: Now) {
        self.retry_greetings(now);
        while let Some(failover) = &self.failover
            && let Some((until, id)) = failover.patience.first().copied()
            && until <= now.mono
        {
            let stage = self.clients.get(&id).map(|client| client.stage);
            match stage {
                Some(Stage::Parked) => self.greet(id, Stage::Bounced, now),
                Some(Stage::Fallback) => self.hang_up(id, &Reason::Fallback, now),
                Some(Stage::Registered) if self.is_finishing(id) => {
                    self.hang_up(id, &Reason::FinishUnknown, now);
                }
                // The end of its finish was told.
                Some(Stage::Registered) => self.set_patience(id, None),
                _ => self.hang_up(id, &Reason::NotRegistered, now),
            }
        }
    }

    fn is_finishing(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_some_and(Client::is_finishing)
    }

    /// The storage proposes a transaction.
    pub(super) fn propose(&mut self, at: usize, proposal: Proposal) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let token = failover.token();
        failover.finishing.insert(token, (at, proposal.txn));
        let storage = self.storages[at].storage.name().to_owned();
        self.outputs.push_back(Output::ToNode(ToNode::Finish {
            token,
            storage,
            proposal,
        }));
    }

    /// Other nodes may fetch the blobs of a transaction.
    pub(super) fn offer(&mut self, at: usize, txn: TxnId, blobs: Vec<(BlobName, PathBuf)>) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let token = failover.token();
        failover.offered.insert((at, txn), token);
        let storage = self.storages[at].storage.name().to_owned();
        self.outputs.push_back(Output::ToNode(ToNode::Offer {
            token,
            storage,
            blobs,
        }));
    }

    /// It has ended.
    pub(super) fn withdraw(&mut self, at: usize, txn: TxnId) {
        let failover = self.failover.as_mut();
        let token = failover.and_then(|it| it.offered.remove(&(at, txn)));
        let withdraw = token.map(|token| Output::ToNode(ToNode::Withdraw { token }));
        self.outputs.extend(withdraw);
    }

    /// The storage has no more oids.
    pub(super) fn want_oids(&mut self, at: usize, count: u64) {
        let storage = self.storages[at].storage.name().to_owned();
        let Some(failover) = &mut self.failover else {
            return;
        };
        let token = failover.token();
        failover.asked.insert(token, Asked::Oids(at));
        self.outputs.push_back(Output::ToNode(ToNode::Oids {
            token,
            storage,
            count,
        }));
    }

    /// `ping`: the client's next loads shall see all that was committed before.
    pub(super) fn confirm(&mut self, id: ClientId, msgid: &Value) -> super::calls::Outcome {
        if let Some(client) = self.clients.get_mut(&id) {
            client.waiting += 1;
        }
        self.ask(Asked::Ping(id, msgid.clone()));
        super::calls::Outcome::Later
    }

    fn ask(&mut self, asked: Asked) {
        if let Some(failover) = &mut self.failover {
            let token = failover.token();
            failover.asked.insert(token, asked);
            self.outputs
                .push_back(Output::ToNode(ToNode::Confirm { token }));
        }
    }

    fn take_asked(&mut self, token: Token) -> Option<Asked> {
        self.failover.as_mut()?.asked.remove(&token)
    }

    /// A client's finish was answered: if the node has left its office meanwhile, that was all.
    pub(super) fn end_of_office(&mut self, owner: Option<ClientId>, now: Now) {
        let serving = self.failover.as_ref().map(|failover| failover.serving);
        let is_closed = serving.is_some_and(|serving| serving.writers == Writers::Closed);
        if let Some(id) = owner.filter(|_| is_closed) {
            self.hang_up(id, &Reason::NotPrimary, now);
        }
    }

    /// Tells the node when all who have voted have finished or are gone.
    pub(super) fn look_if_drained(&mut self) {
        let Some(failover) = &mut self.failover else {
            return;
        };
        let is_draining = failover.serving.writers == Writers::Draining && !failover.is_drained;
        let mut storages = self.storages.iter();
        if is_draining && storages.all(|served| served.storage.locked_since().is_none()) {
            failover.is_drained = true;
            self.outputs.push_back(Output::ToNode(ToNode::Drained));
        }
    }
}

// What several of them use.
impl Server {
    /// Before anybody may write no vote is granted.
    pub(super) fn begin_failover(&mut self) {
        for served in &mut self.storages {
            served.storage.freeze();
        }
    }

    fn each_storage(&mut self, now: Now, mut change: impl FnMut(&mut crate::storage::FileStorage)) {
        for at in 0..self.storages.len() {
            change(&mut self.storages[at].storage);
            self.follow_storage(at, now);
        }
    }

    /// The tag of a job that no client waits for.
    pub(super) fn tag(&self, storage: usize) -> JobTag {
        JobTag {
            storage,
            read: None,
            copies: self.storages[storage].copies,
        }
    }

    pub(super) fn storage_named(&self, name: &str) -> Option<usize> {
        let mut names = self.storages.iter().map(|served| served.storage.name());
        names.position(|known| known == name)
    }

    fn parked(&self, port: Port) -> Vec<ClientId> {
        let is_parked = |client: &Client| {
            client.port == port && client.stage == Stage::Parked && !client.closing
        };
        let clients = self.clients.iter();
        let parked = clients.filter(|(_, client)| is_parked(client));
        parked.map(|(id, _)| *id).collect()
    }

    fn hang_up_where(&mut self, is_meant: impl Fn(&Client) -> bool, reason: &Reason, now: Now) {
        let clients = self.clients.iter();
        let meant = clients.filter(|(_, client)| !client.closing && is_meant(client));
        for id in meant.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.hang_up(id, reason, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::ids::Oid;
    use crate::replica::event::Outcome;
    use crate::server::testing::{Front, Heard, OPEN, REPLICA};
    use crate::storage::apply::Applier;
    use crate::storage::disk::Disk;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::recover::Access;
    use crate::zeo::client::{Raised, Received};

    const CONFLICT: &str = "ZODB.POSException.ConflictError";
    const READ_ONLY: &str = "ZODB.POSException.ReadOnlyError";

    fn serving(writers: Writers, readers: Readers) -> Serving {
        Serving { writers, readers }
    }

    fn raises(heard: Option<Heard>, class: &str) -> bool {
        matches!(heard, Some(Err(Raised { class: raised, .. })) if raised == class)
    }

    /// A tid or an oid as it is heard.
    fn tid(tid: u64) -> Value {
        Value::Bytes(Bytes::copy_from_slice(&tid.to_be_bytes()))
    }

    /// The objects of the invalidations that have come, and the tids of the finishes, in order.
    fn news(front: &mut Front, id: ClientId) -> Vec<(&'static str, Value)> {
        let heard = front.heard(id).into_iter();
        let news = heard.filter_map(|heard| match heard {
            Received::Notice { name, args } if name == "invalidateTransaction" => {
                Some(("invalidated", args[0].clone()))
            }
            Received::Reply {
                result: Ok(tid @ Value::Bytes(_)),
                ..
            } => Some(("finished", tid)),
            _ => None,
        });
        news.collect()
    }

    #[test]
    fn a_writer_waits_for_its_greeting_until_the_node_is_open() {
        let mut front = Front::new(REPLICA);
        let [early, late] = [Port::Main; 2].map(|port| front.connect(port));
        assert!(front.heard(early).is_empty() && !front.is_greeted(early));
        assert_eq!(front.server.parked_count(), 2);
        front.server.on_register_timeout(early, front.now);
        front.settle();
        assert!(!front.is_closed(early));
        // A load balancer is answered all the same.
        let balancer = front.connect(Port::Main);
        front.say(balancer, b"ruok");
        assert!(front.is_closed(balancer));
        assert!(front.reports[&balancer].starts_with(b"{\"1\": {"));
        for writers in [Writers::Frozen, Writers::Draining, Writers::Closed] {
            front.serve(serving(writers, Readers::Open));
            assert!(!front.is_greeted(early), "{writers:?}");
        }
        front.serve(OPEN);
        assert!(front.is_greeted(early) && front.is_greeted(late));
        assert_eq!(front.register(early, false), Some(Ok(tid(30))));
        let (_, finish) = front.propose(early, &[(1, 0)]);
        assert!(front.server.is_writing());
        assert_eq!(front.commit_next(), Tid(40));
        assert_eq!(front.reply(early, finish), Some(Ok(tid(40))));
        assert!(!front.server.is_writing());
        // One that comes now need not wait, and has its time to register.
        let next = front.connect(Port::Main);
        assert!(front.is_greeted(next));
        front.pass(REGISTER_TIMEOUT - Duration::from_millis(1));
        assert!(!front.is_closed(next) && !front.is_closed(early));
        front.pass(Duration::from_millis(1));
        assert!(front.is_closed(next) && !front.is_closed(early));
    }

    #[test]
    fn who_has_waited_for_long_is_answered_and_begins_anew() {
        for other_primary in [false, true] {
            let mut front = Front::new(REPLICA);
            let id = front.connect(Port::Main);
            let mut patience = PARKED_MAX;
            if other_primary {
                front.server.on_other_primary(front.now);
                patience = PARKED_BESIDE_PRIMARY_MAX;
            }
            front.pass(patience - Duration::from_millis(1));
            assert!(!front.is_greeted(id));
            front.pass(Duration::from_millis(1));
            assert!(front.is_greeted(id) && !front.is_closed(id));
            assert_eq!(front.register(id, false), Some(Ok(tid(30))));
            assert!(front.is_closed(id));
        }
        // Not if it can be served by then.
        let mut front = Front::new(REPLICA);
        let id = front.connect(Port::Main);
        front.pass(PARKED_MAX);
        front.serve(OPEN);
        assert_eq!(front.register(id, false), Some(Ok(tid(30))));
        assert!(!front.is_closed(id));
    }

    #[test]
    fn who_was_greeted_and_comes_too_late_is_answered_and_begins_anew() {
        let mut front = Front::new(OPEN);
        let [writer, reader] = [Port::Main, Port::Read].map(|port| front.connect(port));
        front.confirm_all(true);
        front.serve(serving(Writers::Frozen, Readers::Kept));
        for (id, read_only) in [(writer, false), (reader, true)] {
            assert!(front.is_greeted(id));
            assert_eq!(front.register(id, read_only), Some(Ok(tid(30))));
            assert!(front.is_closed(id));
        }
    }

    #[test]
    fn a_reader_is_greeted_when_it_has_missed_nothing() {
        let mut front = Front::new(serving(Writers::Closed, Readers::Kept));
        let early = front.connect(Port::Read);
        assert!(front.confirms().is_empty() && !front.is_greeted(early));
        front.serve(REPLICA);
        assert_eq!(front.confirm_all(false), 1);
        assert!(!front.is_greeted(early));
        front.commit_elsewhere(&[7]);
        // Asked at once it would be as unsure at once, and so on without end.
        let late = front.connect(Port::Read);
        assert!(front.confirms().is_empty());
        // One question is for all who are here by then.
        front.pass(GREETING_RETRY);
        let later = front.connect(Port::Read);
        assert_eq!(front.confirm_all(true), 1);
        assert!(!front.is_greeted(later));
        assert_eq!(front.confirm_all(true), 1);
        assert!(front.is_greeted(later) && front.confirms().is_empty());
        assert!(front.is_greeted(early) && front.is_greeted(late));
        assert_eq!(front.register(early, true), Some(Ok(tid(40))));
        front.commit_elsewhere(&[7, 8]);
        assert_eq!(news(&mut front, early), [("invalidated", tid(50))]);
        let call = front.call(early, "new_oids", vec![Value::Int(10)]);
        assert!(raises(front.reply(early, call), READ_ONLY));
        // It goes on while nobody knows what is new, and when the primary comes and goes.
        for other in [
            serving(Writers::Closed, Readers::Kept),
            OPEN,
            serving(Writers::Frozen, Readers::Kept),
            REPLICA,
        ] {
            front.serve(other);
            assert!(!front.is_closed(early), "{other:?}");
        }
        front.serve(serving(Writers::Closed, Readers::Closed));
        assert!(front.is_closed(early) && !front.is_closed(late));
    }

    #[test]
    fn who_could_not_write_is_sent_away_when_it_can() {
        for case in 0..4 {
            let mut front = Front::new(REPLICA);
            let reader = front.registered(Port::Read, true);
            let id = front.connect(Port::Read);
            front.confirm_all(true);
            let refused = front.register(id, false);
            assert!(raises(refused, READ_ONLY), "{case}");
            assert_eq!(front.register(id, true), Some(Ok(tid(30))));
            match case {
                0 => front.serve(OPEN),
                1 => front.server.on_other_primary(front.now),
                2 => front.pass(FALLBACK_MAX),
                _ => front.pass(FALLBACK_MAX - Duration::from_millis(1)),
            }
            front.settle();
            assert_eq!(front.is_closed(id), case < 3);
            assert!(!front.is_closed(reader));
        }
    }

    #[test]
    fn on_the_primary_the_port_of_readers_takes_writers_until_it_is_no_primary_any_more() {
        let mut front = Front::new(OPEN);
        let [writer, reader] = [false, true].map(|only| front.registered(Port::Read, only));
        let of_main = front.registered(Port::Main, true);
        front.propose(writer, &[(1, 0)]);
        front.commit_next();
        front.serve(REPLICA);
        assert!(front.is_closed(writer) && front.is_closed(of_main));
        assert!(!front.is_closed(reader));
    }

    #[test]
    fn a_finish_is_answered_after_the_office_has_ended_and_that_is_all() {
        type Answer = fn(&mut Front, Token, crate::storage::Proposal);
        let cases: [(Answer, Option<&str>); 4] = [
            (
                |front, token, proposal| {
                    let applied = front.apply(&proposal);
                    front
                        .server
                        .on_applied("1", applied, Some(token), front.now);
                },
                Some("finished"),
            ),
            (
                |front, token, _| front.server.on_outcome(token, Outcome::Lost, front.now),
                Some(CONFLICT),
            ),
            (
                |front, token, _| front.server.on_outcome(token, Outcome::Unknown, front.now),
                None,
            ),
            (
                |front, token, _| {
                    let (seq, tid) = (crate::ids::Seq(1), Tid(40));
                    let outcome = Outcome::Committed { seq, tid };
                    front.server.on_outcome(token, outcome, front.now);
                },
                None,
            ),
        ];
        for (answer, expected) in cases {
            let mut front = Front::new(OPEN);
            let [finishing, voted, idle] = [0; 3].map(|_| front.registered(Port::Main, false));
            let vote = front.vote(voted, &[(2, 0)]);
            assert!(front.reply(voted, vote).is_some());
            let (token, finish) = front.propose(finishing, &[(1, 0)]);
            front.serve(REPLICA);
            assert!(front.is_closed(voted) && front.is_closed(idle));
            assert!(!front.is_closed(finishing));
            assert_eq!(front.reply(finishing, finish), None);
            let (_, proposal) = front.proposal();
            answer(&mut front, token, proposal);
            front.settle();
            let heard = front.reply(finishing, finish);
            match expected {
                Some("finished") => assert_eq!(heard, Some(Ok(tid(40)))),
                Some(class) => assert!(raises(heard, class)),
                None => assert_eq!(heard, None),
            }
            assert!(front.is_closed(finishing));
            assert!(!front.server.is_writing());
        }
    }

    #[test]
    fn a_lost_transaction_can_be_tried_again_on_the_same_connection() {
        let mut front = Front::new(OPEN);
        let [one, other] = [0; 2].map(|_| front.registered(Port::Main, false));
        let (token, finish) = front.propose(one, &[(1, 0)]);
        let vote = front.vote(other, &[(1, 0)]);
        assert_eq!(front.reply(other, vote), None);
        front.server.on_outcome(token, Outcome::Lost, front.now);
        front.settle();
        assert!(raises(front.reply(one, finish), CONFLICT));
        assert!(front.reply(other, vote).is_some_and(|heard| heard.is_ok()));
        front.hang_up(other);
        // Told once more.
        front.server.on_outcome(token, Outcome::Lost, front.now);
        front.proposal();
        front.propose(one, &[(1, 0)]);
        front.commit_next();
        assert!(!front.is_closed(one));
    }

    #[test]
    fn the_locks_of_a_finish_whose_client_is_gone_are_held_until_its_end() {
        let mut front = Front::new(OPEN);
        let [gone, other] = [0; 2].map(|_| front.registered(Port::Main, false));
        front.propose(gone, &[(1, 0)]);
        front.hang_up(gone);
        let vote = front.vote(other, &[(1, 0)]);
        assert_eq!(front.reply(other, vote), None);
        front.commit_next();
        // With a conflict, since it has been committed.
        let Some(Ok(Value::List(conflicts))) = front.reply(other, vote) else {
            panic!("another answer");
        };
        assert_eq!(conflicts.len(), 1);
    }

    #[test]
    fn votes_wait_while_the_node_is_not_sure_to_be_the_primary() {
        let mut front = Front::new(OPEN);
        let [voted, waiting] = [0; 2].map(|_| front.registered(Port::Main, false));
        let before = front.vote(voted, &[(1, 0)]);
        assert!(front.reply(voted, before).is_some());
        front.serve(serving(Writers::Frozen, Readers::Open));
        let vote = front.vote(waiting, &[(2, 0)]);
        assert_eq!(front.reply(waiting, vote), None);
        let finish = front.finish(voted, before);
        front.commit_next();
        assert_eq!(front.reply(voted, finish), Some(Ok(tid(40))));
        assert_eq!(front.reply(waiting, vote), None);
        front.serve(OPEN);
        assert!(front.reply(waiting, vote).is_some());
    }

    #[test]
    fn the_node_hears_when_all_who_have_voted_have_finished() {
        let drained = |front: &Front| {
            let is_it = |it: &&ToNode| matches!(it, ToNode::Drained);
            front.to_node.iter().filter(is_it).count()
        };
        for goes in [false, true] {
            let mut front = Front::new(OPEN);
            let [voted, waiting] = [0; 2].map(|_| front.registered(Port::Main, false));
            let before = front.vote(voted, &[(1, 0)]);
            front.serve(serving(Writers::Draining, Readers::Open));
            front.vote(waiting, &[(2, 0)]);
            assert_eq!(drained(&front), 0);
            match goes {
                true => front.hang_up(voted),
                false => _ = front.finish(voted, before),
            }
            assert_eq!(drained(&front), 1);
            let is_last = matches!(front.to_node.back(), Some(ToNode::Drained));
            assert!(is_last, "a proposal behind it would be too late");
            front.settle();
            front.serve(serving(Writers::Draining, Readers::Open));
            assert_eq!(drained(&front), 1);
            front.serve(OPEN);
            front.serve(serving(Writers::Draining, Readers::Open));
            // The one that had to wait has voted meanwhile.
            assert_eq!(drained(&front), 1);
        }
        let mut front = Front::new(OPEN);
        front.serve(serving(Writers::Draining, Readers::Open));
        assert_eq!(drained(&front), 1);
    }

    #[test]
    fn who_finishes_where_nobody_is_in_office_is_not_left_in_doubt_for_ever() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, false);
        front.propose(id, &[(1, 0)]);
        front.serve(serving(Writers::Closed, Readers::Kept));
        front.pass(FINISH_DOUBT_MAX - Duration::from_millis(1));
        assert!(!front.is_closed(id));
        front.pass(Duration::from_millis(2));
        assert!(front.is_closed(id));
    }

    #[test]
    fn what_has_changed_is_told_only_to_who_knows_this_history() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, true);
        let ask = |front: &mut Front, since: u64| {
            let call = front.call(id, "getInvalidations", vec![tid(since)]);
            front.reply(id, call).unwrap().unwrap()
        };
        let told = |last: u64, oids: &[u64]| {
            let oids: Vec<Value> = oids.iter().map(|oid| tid(*oid)).collect();
            Value::Tuple(vec![tid(last), Value::List(oids)])
        };
        assert_eq!(ask(&mut front, 20), Value::None, "nothing is known of it");
        let mut lineage = Lineage::default();
        lineage.add(Epoch::ZERO, Tid(5), Tid(22));
        front.server.set_lineage(lineage);
        front.server.extend_lineage(
            Epoch {
                counter: 1,
                ..Epoch::ZERO
            },
            Tid(30),
        );
        assert_eq!(ask(&mut front, 20), told(30, &[30]));
        assert_eq!(ask(&mut front, 10), told(30, &[20, 30]));
        assert_eq!(ask(&mut front, 30), told(30, &[]));
        // Of what was there before the first epoch only what is there now is known: 22 may be of
        // another data file. The others are lost, of the future, and too old.
        for since in [22, 25, 35, 5] {
            assert_eq!(ask(&mut front, since), Value::None, "{since}");
        }
    }

    #[test]
    fn a_ping_is_answered_when_it_is_sure_what_is_committed() {
        let mut front = Front::new(REPLICA);
        let [sure, unsure, gone] = [0; 3].map(|_| front.registered(Port::Read, true));
        let pings = [sure, unsure, gone].map(|id| front.call(id, "ping", Vec::new()));
        assert_eq!(front.reply(sure, pings[0]), None);
        front.hang_up(gone);
        let tokens = front.confirms();
        assert_eq!(tokens.len(), 3);
        for (token, is_sure) in tokens.into_iter().zip([true, false, true]) {
            front.server.on_confirmed(token, is_sure, front.now);
            front.server.on_confirmed(token, is_sure, front.now);
        }
        front.settle();
        assert_eq!(front.reply(sure, pings[0]), Some(Ok(Value::None)));
        assert!(front.is_closed(unsure) && !front.is_closed(sure));
    }

    #[test]
    fn oids_come_from_the_node() {
        let mut front = Front::new(OPEN);
        let [one, other] = [0; 2].map(|_| front.registered(Port::Main, false));
        let calls = [one, other].map(|id| front.call(id, "new_oids", vec![Value::Int(100)]));
        let asked: Vec<Token> = { front.to_node.drain(..) }
            .filter_map(|it| match it {
                ToNode::Oids { token, .. } => Some(token),
                _ => None,
            })
            .collect();
        assert_eq!(asked.len(), 1);
        front.server.on_oids(asked[0], Some(500..650), front.now);
        front.settle();
        let Some(Ok(Value::List(oids))) = front.reply(one, calls[0]) else {
            panic!("no oids");
        };
        assert_eq!((oids.len(), &oids[0]), (100, &tid(500)));
        assert_eq!(front.reply(other, calls[1]), None, "not as many are left");
        let Some(ToNode::Oids { token, .. }) = front.to_node.pop_front() else {
            panic!("no more are wanted");
        };
        front.server.on_oids(token, None, front.now);
        front.settle();
        // It looks elsewhere; an error would come to the application.
        assert_eq!(front.reply(other, calls[1]), None);
        assert!(front.is_closed(other) && !front.is_closed(one));
    }

    #[test]
    fn answers_and_invalidations_come_in_the_order_of_tids() {
        let mut front = Front::new(OPEN);
        let [one, other, reader] = [0; 3].map(|_| front.registered(Port::Main, false));
        front.propose(one, &[(1, 0)]);
        front.propose(other, &[(2, 0)]);
        for id in [one, other, reader] {
            front.heard(id);
        }
        front.commit_elsewhere(&[]);
        assert_eq!(front.commit_next(), Tid(50));
        assert_eq!(front.commit_next(), Tid(60));
        assert_eq!(
            news(&mut front, one),
            [
                ("invalidated", tid(40)),
                ("finished", tid(50)),
                ("invalidated", tid(60))
            ]
        );
        assert_eq!(
            news(&mut front, other),
            [
                ("invalidated", tid(40)),
                ("invalidated", tid(50)),
                ("finished", tid(60))
            ]
        );
        assert_eq!(
            news(&mut front, reader),
            [40, 50, 60].map(|it| ("invalidated", tid(it)))
        );
        let call = front.call(reader, "lastTransaction", Vec::new());
        assert_eq!(front.reply(reader, call), Some(Ok(tid(60))));
    }

    #[test]
    fn what_a_node_that_begins_anew_was_asked_holds_up_nobody() {
        let mut front = Front::new(OPEN);
        let [finishing, next] = [0; 2].map(|_| front.registered(Port::Main, false));
        let (_, finish) = front.propose(finishing, &[(1, 0)]);
        let other = front.connect(Port::Read);
        assert_eq!(front.confirms().len(), 1);
        front.serve(Serving::default());
        assert!(!front.is_closed(finishing) && front.is_closed(next));
        front.server.on_begun_anew(front.now);
        front.settle();
        assert_eq!(front.reply(finishing, finish), None);
        assert!(front.is_closed(finishing) && !front.server.is_writing());
        // Its object is free, and who waits for a greeting is not forgotten.
        front.to_node.clear();
        front.serve(OPEN);
        let next = front.registered(Port::Main, false);
        front.propose(next, &[(1, 0)]);
        front.confirm_all(true);
        assert!(front.is_greeted(other));
    }

    #[test]
    fn after_a_copy_all_begin_anew_and_the_past_is_that_of_the_copy() {
        let mut front = Front::new(OPEN);
        let [finishing, reader] = [Port::Main, Port::Read].map(|it| front.registered(it, false));
        let parked = front.connect(Port::Read);
        let (token, finish) = front.propose(finishing, &[(1, 0)]);
        front.serve(serving(Writers::Closed, Readers::Closed));
        assert!(front.is_closed(reader) && !front.is_closed(finishing));
        let (_, proposal) = front.proposal();
        let applied = front.apply(&proposal);
        let followed = front.applier.follow();
        front.server.refollow("1", followed, front.now);
        front
            .server
            .on_applied("1", applied, Some(token), front.now);
        front.settle();
        assert_eq!(front.reply(finishing, finish), None);
        assert!(front.is_closed(finishing) && !front.is_closed(parked));
        assert!(!front.server.is_writing());
        front.serve(REPLICA);
        front.confirm_all(true);
        let mut lineage = Lineage::default();
        lineage.add(Epoch::ZERO, Tid(10), Tid(40));
        front.server.set_lineage(lineage);
        assert_eq!(front.register(parked, true), Some(Ok(tid(40))));
        let call = front.call(parked, "getInvalidations", vec![tid(30)]);
        let oids = Value::List(vec![tid(1)]);
        let told = Value::Tuple(vec![tid(40), oids]);
        assert_eq!(front.reply(parked, call), Some(Ok(told)));
    }

    #[test]
    fn a_past_that_was_read_of_other_data_is_none() {
        let mut front = Front::new(OPEN);
        let stale = front.server.tag(0);
        front.commit_elsewhere(&[9]);
        // A copy has come meanwhile, with one more.
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let access = Access::Applied;
        let mut other = Applier::open(disk, Path::new("copy"), None, access, &mut |_| ()).unwrap();
        let mut copied = other.follow();
        copied.last_tid = Tid(99);
        front.server.refollow("1", copied, front.now);
        let wrong = vec![(Tid(5), crate::storage::Changed::new(vec![Oid(5)]))];
        let done = crate::storage::Done::Recent(Ok(crate::storage::Recent::Found(wrong)));
        front.server.on_done(stale, done, front.now);
        assert!(!front.server.storages[0].invalidations.has_past());
        front.settle();
        assert!(front.server.storages[0].invalidations.has_past());
        other.checkpoint().unwrap();
    }

    #[test]
    fn a_pack_disturbs_nobody() {
        let mut front = Front::new(OPEN);
        let id = front.registered(Port::Main, false);
        let (_, finish) = front.propose(id, &[(1, 0)]);
        front.heard(id);
        front
            .server
            .refollow("1", front.applier.follow(), front.now);
        front.settle();
        let heard = front.heard(id);
        assert!(
            matches!(&heard[..], [Received::Notice { name, .. }] if name == "info"),
            "{heard:?}"
        );
        front.commit_next();
        assert_eq!(front.reply(id, finish), Some(Ok(tid(40))));
    }
}
