//! The server's side at one node, as long as its process lives: connections, locks, invalidations.
//! What it may do is said by the node's replica, and all that is committed comes from there.

mod calls;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::database::Database;
use super::message::{Applied, Attempt, Conn, Port, Record, Refused, ServerMessage};
use crate::ids::{HistoryId, NodeId, Oid, Tid};
use crate::replica::event::{Event, Outcome, Readers, Serving, Token, Writers};
use crate::replica::settings::Kind;

/// The one storage that there is.
const STORAGE: &str = "1";

/// A rule that a front breaks on purpose, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FrontMutant {
    /// `getInvalidations` is answered with a list for a tid that is of no epoch.
    HistoryNotLookedAt,
    /// Others are told of a transaction when its finish comes.
    ExposedAtFinish,
    /// A new process begins behind the largest oid that is stored.
    OidsFromTheFloor,
    /// Who waits for the end of a finish is told of later ones first.
    InvalidationsNotHeldBack,
    /// Some invalidations are not sent.
    InvalidationForgotten,
    /// Writers are answered with ReadOnlyError where they cannot write.
    WritersRefused,
    /// Who reads only because it could not write stays connected when it could.
    FallbackKept,
    /// Votes look at no lock.
    LocksIgnored,
    /// Votes look at no serial.
    SerialsIgnored,
    /// An error, and later a tid.
    AnsweredTwice,
    /// A transaction that was lost is answered with a tid.
    LostAnsweredWithTid,
    /// `ping` is answered at once.
    PingNotConfirmed,
    /// Who leaves office closes all connections.
    FinishesCutOff,
    /// The locks of who has gone are kept.
    LocksKept,
    /// Nobody looks at the time.
    TimeoutForgotten,
    /// Loads show the revision before the current one as current.
    StaleLoads,
    /// Writers may register while the node is not open for them.
    RegisteredTooEarly,
    /// Who waits for its greeting waits for ever.
    ParkedForEver,
    /// Readers are let in though they may have seen more elsewhere.
    ReadersNotConfirmed,
}

impl FrontMutant {
    pub(crate) const ALL: [Self; 19] = [
        Self::HistoryNotLookedAt,
        Self::ExposedAtFinish,
        Self::OidsFromTheFloor,
        Self::InvalidationsNotHeldBack,
        Self::InvalidationForgotten,
        Self::WritersRefused,
        Self::FallbackKept,
        Self::LocksIgnored,
        Self::SerialsIgnored,
        Self::AnsweredTwice,
        Self::LostAnsweredWithTid,
        Self::PingNotConfirmed,
        Self::FinishesCutOff,
        Self::LocksKept,
        Self::TimeoutForgotten,
        Self::StaleLoads,
        Self::RegisteredTooEarly,
        Self::ParkedForEver,
        Self::ReadersNotConfirmed,
    ];
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FrontOptions {
    /// From the moment that a vote has its locks.
    pub(crate) transaction_timeout: Duration,
    /// Who cannot be served yet is accepted and waits for its greeting; or else is not accepted, as
    /// if nobody listened.
    pub(crate) parks: bool,
    /// Who waits that long for a greeting is made to try all its addresses again. A stock client
    /// whose connection ended before it was greeted does not come back to that address as long as
    /// any other one is tried, or holds it; only a connection that it has registered with, and
    /// lost, makes it begin anew.
    pub(crate) parked_max: Duration,
    /// Who reads though it wants to write comes back that often, to see whether it can.
    pub(crate) fallback_max: Duration,
    /// Transactions that `getInvalidations` can tell of.
    pub(crate) queue_len_max: usize,
    pub(crate) mutant: Option<FrontMutant>,
}

/// What a front wants done, in order.
#[derive(Default)]
pub(crate) struct FrontOut {
    /// For the replica.
    pub(crate) events: Vec<Event>,
    /// For clients.
    pub(crate) clients: Vec<ToClient>,
    /// What the replica did that it must not.
    pub(crate) wrong: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToClient {
    Send(Conn, ServerMessage),
    HangUp(Conn),
    /// Without the answer to a finish: nobody knows it.
    GiveUp(Conn),
}

impl FrontOut {
    fn send(&mut self, conn: Conn, message: ServerMessage) {
        self.clients.push(ToClient::Send(conn, message));
    }
}

pub(crate) struct Front {
    options: FrontOptions,
    node: NodeId,
    history: HistoryId,
    token_last: u64,
    serving: Serving,
    database: Database,
    sessions: BTreeMap<Conn, Session>,
    /// By whom an object is locked; a connection that ended in a finish keeps its locks.
    locks: BTreeMap<Oid, Conn>,
    /// Who waits for locks, or for the node to be open.
    voting: VecDeque<Conn>,
    finishing: BTreeMap<Token, Conn>,
    asked: BTreeMap<Token, Asked>,
    is_drained: bool,
    oid_last: Oid,
}

#[derive(Clone, Copy)]
enum Asked {
    Oids(Conn),
    Ping(Conn),
    /// A reader that may have seen more elsewhere.
    Greeting(Conn),
}

struct Session {
    port: Port,
    stage: Stage,
    /// As of when it is at that stage.
    since: Instant,
    txn: Option<Txn>,
    /// Invalidations that come behind the answer to a finish, or just before it.
    held: Vec<(Tid, Vec<Oid>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for the greeting.
    Parked,
    Greeted,
    /// Greeted, to be disconnected when it has registered.
    Bounced,
    /// Asked to write, and was told no.
    Refused,
    Writer,
    Reader,
    /// A reader that was refused as a writer.
    Fallback,
}

impl Stage {
    fn is_registered(self) -> bool {
        matches!(self, Self::Writer | Self::Reader | Self::Fallback)
    }
}

struct Txn {
    id: u64,
    attempt: Option<Attempt>,
    records: Vec<Record>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Waiting,
    Voted { since: Instant },
    Finishing,
}

impl Session {
    fn is_finishing(&self) -> bool {
        let phase = self.txn.as_ref().map(|txn| txn.phase);
        phase == Some(Phase::Finishing)
    }

    /// Ends with the office of the node.
    fn is_for_writing(&self) -> bool {
        match self.port {
            Port::Writers => self.stage.is_registered(),
            Port::Readers => self.stage == Stage::Writer,
        }
    }
}

// What the node says.
impl Front {
    /// `incarnation` is another one for each front that there ever is.
    pub(crate) fn new(
        options: FrontOptions,
        node: NodeId,
        incarnation: u64,
        history: HistoryId,
        applied: &[Applied],
    ) -> Self {
        let database = Database::new(applied, options.queue_len_max);
        Self {
            options,
            node,
            history,
            token_last: incarnation << 32,
            serving: Serving::default(),
            oid_last: database.oid_max(),
            database,
            sessions: BTreeMap::new(),
            locks: BTreeMap::new(),
            voting: VecDeque::new(),
            finishing: BTreeMap::new(),
            asked: BTreeMap::new(),
            is_drained: false,
        }
    }

    pub(crate) fn history(&self) -> HistoryId {
        self.history
    }

    /// The data were replaced. Nobody reads them but who waits for the end of a finish; and to
    /// these no end can be told, as what was committed before it, and was not applied one by one,
    /// cannot be taken out of their caches any more.
    pub(crate) fn on_copied(
        &mut self,
        history: HistoryId,
        applied: &[Applied],
        out: &mut FrontOut,
    ) {
        self.history = history;
        self.database = Database::new(applied, self.options.queue_len_max);
        let sessions = self.sessions.iter();
        let finishing = sessions.filter(|(_, session)| session.is_finishing());
        let finishing: Vec<Conn> = finishing.map(|(conn, _)| *conn).collect();
        for conn in finishing {
            self.forget(conn);
            out.clients.push(ToClient::GiveUp(conn));
        }
    }

    pub(crate) fn on_serving(&mut self, serving: Serving, now: Instant, out: &mut FrontOut) {
        let before = std::mem::replace(&mut self.serving, serving);
        if serving.writers == Writers::Closed && before.writers != Writers::Closed {
            let cuts_off = self.is(FrontMutant::FinishesCutOff);
            self.hang_up_where(out, |session| {
                session.is_for_writing() && (cuts_off || !session.is_finishing())
            });
        }
        if serving.readers == Readers::Closed && before.readers != Readers::Closed {
            self.hang_up_where(out, |session| {
                session.port == Port::Readers
                    && session.stage.is_registered()
                    && !session.is_for_writing()
            });
        }
        if serving.writers == Writers::Open && before.writers != Writers::Open {
            if !self.is(FrontMutant::FallbackKept) {
                self.hang_up_where(out, |session| session.stage == Stage::Fallback);
            }
            for conn in self.parked(Port::Writers) {
                self.greet(conn, Stage::Greeted, now, out);
            }
            self.on_locks_changed(now, out);
        }
        if serving.readers == Readers::Open && before.readers != Readers::Open {
            let conns = self.parked(Port::Readers);
            conns
                .into_iter()
                .for_each(|conn| self.ask_before_greeting(conn, out));
        }
        if serving.writers != Writers::Draining {
            self.is_drained = false;
        }
        self.look_if_drained(out);
    }

    pub(crate) fn on_applied(&mut self, entry: &Applied, now: Instant, out: &mut FrontOut) {
        if entry.kind == Kind::Barrier.number() && entry.epoch.node != self.node {
            self.on_other_primary(now, out);
        }
        let Some(oids) = self.database.apply(entry) else {
            return;
        };
        if self.is(FrontMutant::InvalidationForgotten) && entry.seq.0.is_multiple_of(7) {
            return;
        }
        let holds_back = !self.is(FrontMutant::InvalidationsNotHeldBack);
        for (conn, session) in &mut self.sessions {
            if session.is_finishing() && holds_back {
                session.held.push((entry.tid, oids.clone()));
            } else if session.stage.is_registered() {
                out.send(*conn, invalidate(entry.tid, oids.clone()));
            }
        }
    }

    /// Another node is in office. Who wants to write should be there, and must begin anew for it.
    fn on_other_primary(&mut self, now: Instant, out: &mut FrontOut) {
        if !self.is(FrontMutant::FallbackKept) {
            self.hang_up_where(out, |session| session.stage == Stage::Fallback);
        }
        // Those who reach it have gone there soon.
        let grace = Duration::from_secs(2).min(self.options.parked_max);
        let since = now + grace - self.options.parked_max;
        for session in self.sessions.values_mut() {
            if session.stage == Stage::Parked && session.port == Port::Writers {
                session.since = session.since.min(since);
            }
        }
    }

    pub(crate) fn on_reply(
        &mut self,
        token: Token,
        outcome: Outcome,
        now: Instant,
        out: &mut FrontOut,
    ) {
        let Some(conn) = self.finishing.remove(&token) else {
            out.wrong = Some(format!(
                "I13: {token:?} has two answers, or was never asked"
            ));
            return;
        };
        let result = match outcome {
            Outcome::Committed { tid, .. } => Ok(tid),
            Outcome::Lost if self.is(FrontMutant::LostAnsweredWithTid) => {
                Ok(self.database.last().next())
            }
            Outcome::Lost => Err(Refused::Lost),
            Outcome::Unknown => {
                self.unlock(conn);
                if self.sessions.contains_key(&conn) {
                    self.forget(conn);
                    out.clients.push(ToClient::GiveUp(conn));
                }
                self.on_locks_changed(now, out);
                return;
            }
        };
        if let Ok(tid) = result
            && tid > self.database.last()
            && outcome != Outcome::Lost
        {
            out.wrong = Some(format!("{token:?} is answered, but {tid} is not applied"));
        }
        self.unlock(conn);
        self.answer_finish(conn, result, out);
        self.on_locks_changed(now, out);
    }

    fn answer_finish(&mut self, conn: Conn, result: Result<Tid, Refused>, out: &mut FrontOut) {
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        session.txn = None;
        let held = std::mem::take(&mut session.held);
        if self.is(FrontMutant::AnsweredTwice) {
            out.send(conn, ServerMessage::Finished(Err(Refused::Lost)));
        }
        // The answer takes the place of the invalidation.
        let own = result.unwrap_or(Tid::MAX);
        let (earlier, later): (Vec<_>, Vec<_>) = held.into_iter().partition(|(tid, _)| *tid < own);
        for (tid, oids) in earlier {
            out.send(conn, invalidate(tid, oids));
        }
        out.send(conn, ServerMessage::Finished(result));
        for (tid, oids) in later.into_iter().filter(|(tid, _)| *tid != own) {
            out.send(conn, invalidate(tid, oids));
        }
        if self.serving.writers == Writers::Closed {
            self.hang_up(conn, out);
        }
    }

    pub(crate) fn on_oids(&mut self, token: Token, oids: Option<Range<u64>>, out: &mut FrontOut) {
        let Some(Asked::Oids(conn)) = self.asked.remove(&token) else {
            out.wrong = Some(format!("oids for {token:?}, which has not asked"));
            return;
        };
        if !self.sessions.contains_key(&conn) {
            return;
        }
        match oids {
            Some(oids) => out.send(conn, ServerMessage::Oids(oids.map(Oid).collect())),
            // Not ReadOnlyError: the client would show that to the application.
            None => self.hang_up(conn, out),
        }
    }

    pub(crate) fn on_confirmed(
        &mut self,
        token: Token,
        is_sure: bool,
        now: Instant,
        out: &mut FrontOut,
    ) {
        match self.asked.remove(&token) {
            Some(Asked::Ping(conn)) if self.sessions.contains_key(&conn) => {
                out.send(conn, ServerMessage::Pong(is_sure));
            }
            Some(Asked::Greeting(conn)) => {
                let is_parked = |session: &Session| session.stage == Stage::Parked;
                let waits = self.sessions.get(&conn).is_some_and(is_parked);
                match self.serving.readers {
                    Readers::Open if waits && is_sure => {
                        self.greet(conn, Stage::Greeted, now, out);
                    }
                    Readers::Open if waits => self.ask_before_greeting(conn, out),
                    _ => {}
                }
            }
            Some(Asked::Ping(_)) => {}
            Some(Asked::Oids(_)) | None => {
                out.wrong = Some(format!("{token:?} is confirmed, but has not asked"));
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let sessions = self.sessions.values();
        sessions.filter_map(|session| self.patience(session)).min()
    }

    /// Until when a session may stay as it is.
    fn patience(&self, session: &Session) -> Option<Instant> {
        let phase = session.txn.as_ref().map(|txn| txn.phase);
        if let Some(Phase::Voted { since }) = phase {
            let until = since + self.options.transaction_timeout;
            return Some(until).filter(|_| !self.is(FrontMutant::TimeoutForgotten));
        }
        let max = match (session.stage, session.port) {
            (Stage::Parked, _) => self.options.parked_max,
            (Stage::Fallback, _) => self.options.fallback_max,
            _ => return None,
        };
        let is_kept = match session.stage {
            Stage::Fallback => self.is(FrontMutant::FallbackKept),
            _ => self.is(FrontMutant::ParkedForEver),
        };
        Some(session.since + max).filter(|_| !is_kept)
    }

    pub(crate) fn on_timer(&mut self, now: Instant, out: &mut FrontOut) {
        let sessions = self.sessions.iter();
        let due = sessions
            .filter(|(_, session)| self.patience(session).is_some_and(|until| until <= now));
        let due: Vec<(Conn, Stage)> = due.map(|(conn, session)| (*conn, session.stage)).collect();
        for (conn, stage) in due {
            if stage == Stage::Parked {
                self.greet(conn, Stage::Bounced, now, out);
            } else {
                self.hang_up(conn, out);
            }
        }
        self.on_locks_changed(now, out);
    }
}

// What several of them use.
impl Front {
    fn is(&self, mutant: FrontMutant) -> bool {
        self.options.mutant == Some(mutant)
    }

    fn token(&mut self) -> Token {
        self.token_last += 1;
        Token(self.token_last)
    }

    fn txn(&mut self, conn: Conn, id: u64) -> Option<&mut Txn> {
        let txn = self.sessions.get_mut(&conn)?.txn.as_mut();
        txn.filter(|txn| txn.id == id)
    }

    fn parked(&self, port: Port) -> Vec<Conn> {
        let sessions = self.sessions.iter();
        let parked =
            sessions.filter(|(_, session)| session.port == port && session.stage == Stage::Parked);
        parked.map(|(conn, _)| *conn).collect()
    }

    fn greet(&mut self, conn: Conn, stage: Stage, now: Instant, out: &mut FrontOut) {
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.stage = stage;
            session.since = now;
            out.send(conn, ServerMessage::Greeting);
        }
    }

    /// It may have seen more than this node has. A stock client that finds that out refuses the
    /// server, and if it could have been content with reading, it may not come back to any.
    fn ask_before_greeting(&mut self, conn: Conn, out: &mut FrontOut) {
        let token = self.token();
        self.asked.insert(token, Asked::Greeting(conn));
        out.events.push(Event::Confirm { token });
    }

    /// [`Event::Drained`] is wanted when each that has voted has finished or gone.
    fn look_if_drained(&mut self, out: &mut FrontOut) {
        let is_voted = |session: &Session| {
            let phase = session.txn.as_ref().map(|txn| txn.phase);
            matches!(phase, Some(Phase::Voted { .. }))
        };
        let is_draining = self.serving.writers == Writers::Draining && !self.is_drained;
        if is_draining && !self.sessions.values().any(is_voted) {
            self.is_drained = true;
            out.events.push(Event::Drained);
        }
    }

    fn hang_up_where(&mut self, out: &mut FrontOut, is_meant: impl Fn(&Session) -> bool) {
        let meant = self
            .sessions
            .iter()
            .filter(|(_, session)| is_meant(session));
        let meant: Vec<Conn> = meant.map(|(conn, _)| *conn).collect();
        for conn in meant {
            self.hang_up(conn, out);
        }
    }

    /// Votes that wait for the locks of it are for the caller.
    fn hang_up(&mut self, conn: Conn, out: &mut FrontOut) {
        self.forget(conn);
        out.clients.push(ToClient::HangUp(conn));
    }

    fn forget(&mut self, conn: Conn) {
        let is_finishing = self.sessions.get(&conn).is_some_and(Session::is_finishing);
        // What is proposed may be committed: its locks stay until that is known.
        if !is_finishing && !self.is(FrontMutant::LocksKept) {
            self.abort(conn);
        }
        self.voting.retain(|of| *of != conn);
        self.sessions.remove(&conn);
    }

    fn abort(&mut self, conn: Conn) {
        self.unlock(conn);
        self.voting.retain(|of| *of != conn);
        if let Some(session) = self.sessions.get_mut(&conn) {
            session.txn = None;
        }
    }

    fn unlock(&mut self, conn: Conn) {
        if !self.is(FrontMutant::LocksKept) || self.sessions.contains_key(&conn) {
            self.locks.retain(|_, of| *of != conn);
        }
    }
}

fn invalidate(tid: Tid, oids: Vec<Oid>) -> ServerMessage {
    ServerMessage::Invalidate { tid, oids }
}
