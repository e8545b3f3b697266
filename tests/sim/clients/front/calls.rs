//! What clients say to a front, and what it says to that.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Asked, Front, FrontMutant, FrontOut, Phase, STORAGE, Session, Stage, Txn, invalidate};
use crate::clients::message::{
    Attempt, ClientMessage, Conn, Port, Refused, ServerMessage, Transaction, encode,
};
use crate::ids::{Oid, Tid};
use crate::replica::event::{Event, Readers, Writers};

/// As many as stock clients ask for.
const OIDS_PER_CALL: u64 = 100;

impl Front {
    /// Whether anybody listens.
    pub(crate) fn accepts(&self, port: Port) -> bool {
        self.options.parks || self.is_open(port)
    }

    fn is_open(&self, port: Port) -> bool {
        match port {
            Port::Writers => {
                self.serving.writers == Writers::Open
                    || self.is(FrontMutant::WritersRefused)
                    || self.is(FrontMutant::RegisteredTooEarly)
            }
            Port::Readers => self.serving.readers == Readers::Open,
        }
    }

    pub(crate) fn on_connect(&mut self, conn: Conn, port: Port, now: Instant, out: &mut FrontOut) {
        let session = Session {
            port,
            stage: Stage::Parked,
            since: now,
            txn: None,
            held: Vec::new(),
        };
        self.sessions.insert(conn, session);
        match port {
            _ if !self.is_open(port) => {}
            Port::Readers if !self.is(FrontMutant::ReadersNotConfirmed) => {
                self.ask_before_greeting(conn, out);
            }
            _ => self.greet(conn, Stage::Greeted, now, out),
        }
    }

    pub(crate) fn on_hangup(&mut self, conn: Conn, now: Instant, out: &mut FrontOut) {
        self.forget(conn);
        self.on_locks_changed(now, out);
    }

    pub(crate) fn on_message(
        &mut self,
        conn: Conn,
        message: ClientMessage,
        now: Instant,
        out: &mut FrontOut,
    ) {
        // It may have been closed while the message was on its way.
        let Some(session) = self.sessions.get(&conn) else {
            return;
        };
        let is_writer = session.stage == Stage::Writer;
        match message {
            ClientMessage::Register { read_only } => self.on_register(conn, read_only, now, out),
            _ if !session.stage.is_registered() => self.hang_up(conn, out),
            ClientMessage::GetInvalidations { tid } => {
                let list = self.invalidations_since(tid);
                out.send(conn, ServerMessage::Invalidations(list));
            }
            ClientMessage::GetInfo => out.send(conn, ServerMessage::Info),
            ClientMessage::LoadBefore { oid, tid } => self.on_load_before(conn, oid, tid, out),
            ClientMessage::Ping => self.on_ping(conn, out),
            _ if !is_writer => self.hang_up(conn, out),
            ClientMessage::NewOids => self.on_new_oids(conn, out),
            ClientMessage::Begin { id } => self.on_begin(conn, id, out),
            ClientMessage::Store { id, record } => match self.txn(conn, id) {
                Some(txn) if txn.phase == Phase::Open => txn.records.push(record),
                _ => self.hang_up(conn, out),
            },
            ClientMessage::Vote { id, attempt } => self.on_vote(conn, id, attempt, out),
            ClientMessage::Finish { id } => self.on_finish(conn, id, out),
            ClientMessage::Abort { id } => {
                let phase = self.txn(conn, id).map(|txn| txn.phase);
                if phase.is_some() && phase != Some(Phase::Finishing) {
                    self.abort(conn);
                }
                out.send(conn, ServerMessage::Aborted);
            }
        }
        self.on_locks_changed(now, out);
    }

    fn on_register(&mut self, conn: Conn, read_only: bool, now: Instant, out: &mut FrontOut) {
        let can_write = self.serving.writers == Writers::Open;
        let can_read = self.serving.readers == Readers::Open;
        let refuses = self.is(FrontMutant::WritersRefused);
        let is_early = self.is(FrontMutant::RegisteredTooEarly);
        let session = self.sessions.get_mut(&conn).expect("looked up before");
        if session.stage == Stage::Bounced && !can_write {
            self.bounce(conn, out);
            return;
        }
        let stage = match (session.port, session.stage, read_only) {
            (_, Stage::Parked | Stage::Writer | Stage::Reader | Stage::Fallback, _) => None,
            (Port::Writers, _, _) if !can_write && refuses => Some(Stage::Refused),
            (Port::Writers, _, false) => (can_write || is_early).then_some(Stage::Writer),
            (Port::Writers, _, true) => can_write.then_some(Stage::Reader),
            (Port::Readers, _, false) if can_write => Some(Stage::Writer),
            (Port::Readers, _, false) => can_read.then_some(Stage::Refused),
            (Port::Readers, Stage::Refused, true) => can_read.then_some(Stage::Fallback),
            (Port::Readers, _, true) => can_read.then_some(Stage::Reader),
        };
        // It was greeted a moment ago. A late answer would hold up its other connections.
        let Some(stage) = stage else {
            self.bounce(conn, out);
            return;
        };
        session.stage = stage;
        session.since = now;
        let tid = stage.is_registered().then_some(self.database.last());
        out.send(conn, ServerMessage::Registered(tid));
    }

    /// What ends before it is registered is not tried again by a stock client, as long as any other
    /// address is. What ends behind that makes it begin anew, with all addresses.
    fn bounce(&mut self, conn: Conn, out: &mut FrontOut) {
        out.send(conn, ServerMessage::Registered(Some(self.database.last())));
        self.hang_up(conn, out);
    }

    fn invalidations_since(&self, tid: Tid) -> Option<(Tid, Vec<Oid>)> {
        if !self.database.is_ours(tid) && !self.is(FrontMutant::HistoryNotLookedAt) {
            return None;
        }
        self.database.since(tid)
    }

    fn on_load_before(&mut self, conn: Conn, oid: Oid, before: Tid, out: &mut FrontOut) {
        let mut revision = self.database.load_before(oid, before);
        if self.is(FrontMutant::StaleLoads)
            && let Some(current) = &revision
            && let Some(mut older) = self.database.load_before(oid, current.serial)
        {
            older.next = None;
            revision = Some(older);
        }
        out.send(
            conn,
            ServerMessage::Loaded {
                oid,
                before,
                revision,
            },
        );
    }

    fn on_ping(&mut self, conn: Conn, out: &mut FrontOut) {
        if self.is(FrontMutant::PingNotConfirmed) {
            out.send(conn, ServerMessage::Pong(true));
            return;
        }
        let token = self.token();
        self.asked.insert(token, Asked::Ping(conn));
        out.events.push(Event::Confirm { token });
    }

    fn on_new_oids(&mut self, conn: Conn, out: &mut FrontOut) {
        if self.is(FrontMutant::OidsFromTheFloor) {
            let oids = (self.oid_last.0 + 1..).map(Oid).take(100).collect();
            self.oid_last.0 += OIDS_PER_CALL;
            out.send(conn, ServerMessage::Oids(oids));
            return;
        }
        let token = self.token();
        self.asked.insert(token, Asked::Oids(conn));
        out.events.push(Event::AllocateOids {
            token,
            storage: STORAGE.to_owned(),
            count: OIDS_PER_CALL,
        });
    }

    fn on_begin(&mut self, conn: Conn, id: u64, out: &mut FrontOut) {
        let session = self.sessions.get_mut(&conn).expect("looked up before");
        if session.txn.is_some() {
            self.hang_up(conn, out);
            return;
        }
        session.txn = Some(Txn {
            id,
            attempt: None,
            records: Vec::new(),
            phase: Phase::Open,
        });
    }

    fn on_vote(&mut self, conn: Conn, id: u64, attempt: Attempt, out: &mut FrontOut) {
        match self.txn(conn, id) {
            Some(txn) if txn.phase == Phase::Open => {
                txn.attempt = Some(attempt);
                txn.phase = Phase::Waiting;
                self.voting.push_back(conn);
            }
            _ => out.send(conn, ServerMessage::Voted(Err(Refused::NoTransaction))),
        }
    }

    /// Votes that can be answered are.
    pub(super) fn on_locks_changed(&mut self, now: Instant, out: &mut FrontOut) {
        self.look_if_drained(out);
        if self.serving.writers != Writers::Open && !self.is(FrontMutant::RegisteredTooEarly) {
            return;
        }
        // Who came first is not overtaken by who wants the same.
        let mut wanted: BTreeSet<Oid> = BTreeSet::new();
        for conn in std::mem::take(&mut self.voting) {
            let session = self.sessions.get_mut(&conn).expect("it would be forgotten");
            let txn = session.txn.as_mut().expect("it votes");
            let oids: BTreeSet<Oid> = txn.records.iter().map(|record| record.oid).collect();
            let ignores_locks = self.options.mutant == Some(FrontMutant::LocksIgnored);
            let is_locked = |oid: &Oid| self.locks.contains_key(oid) || wanted.contains(oid);
            if oids.iter().any(is_locked) && !ignores_locks {
                wanted.extend(oids);
                self.voting.push_back(conn);
                continue;
            }
            let ignores_serials = self.options.mutant == Some(FrontMutant::SerialsIgnored);
            let mut records = txn.records.iter();
            let stale = records.find(|record| self.database.serial(record.oid) != record.serial);
            let result = match stale {
                Some(record) if !ignores_serials => {
                    let oid = record.oid;
                    session.txn = None;
                    Err(Refused::Conflict(oid))
                }
                _ => {
                    txn.phase = Phase::Voted { since: now };
                    self.locks.extend(oids.into_iter().map(|oid| (oid, conn)));
                    Ok(())
                }
            };
            out.send(conn, ServerMessage::Voted(result));
        }
    }

    fn on_finish(&mut self, conn: Conn, id: u64, out: &mut FrontOut) {
        let token = self.token();
        let Some(txn) = self.txn(conn, id) else {
            out.send(conn, ServerMessage::Finished(Err(Refused::NoTransaction)));
            return;
        };
        let (Phase::Voted { .. }, Some(attempt)) = (txn.phase, txn.attempt) else {
            self.hang_up(conn, out);
            return;
        };
        txn.phase = Phase::Finishing;
        let records = std::mem::take(&mut txn.records);
        let oids: Vec<Oid> = records.iter().map(|record| record.oid).collect();
        let largest = oids.iter().max().copied();
        self.finishing.insert(token, conn);
        out.events.push(Event::Finish {
            token,
            body: encode(&Transaction { attempt, records }),
            tid: None,
            oids: largest
                .map(|oid| (STORAGE.to_owned(), oid))
                .into_iter()
                .collect(),
        });
        if self.is(FrontMutant::ExposedAtFinish) {
            let tid = self.database.last().next();
            let others = self.sessions.iter().filter(|(of, _)| **of != conn);
            for (other, _) in others.filter(|(_, session)| session.stage.is_registered()) {
                out.send(*other, invalidate(tid, oids.clone()));
            }
        }
        self.look_if_drained(out);
    }
}
