//! What must hold of clients, by the specification: nothing in here asks how a server does it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::cache::Cache;
use super::client::{Fact, Verification};
use super::message::{Applied, Attempt, Conn, Refused, Revision, ServerMessage, Value};
use crate::ids::{HistoryId, Oid, Seq, Tid};

/// The truth, and what was said of it.
#[derive(Default)]
pub(crate) struct Checks {
    logs: BTreeMap<HistoryId, Log>,
    links: BTreeMap<Conn, Link>,
    /// Of all that there ever were.
    accepted: BTreeMap<Conn, Accepted>,
    /// Of these, those that were registered for reading.
    readers: BTreeSet<Conn>,
    clients: BTreeMap<u32, Seen>,
    oids: BTreeSet<Oid>,
    refused: BTreeSet<Attempt>,
    unknown: BTreeSet<Attempt>,
    acknowledged: BTreeSet<Attempt>,
    marks: BTreeMap<&'static str, u64>,
    violation: Option<String>,
}

/// What is committed in one history.
#[derive(Clone, Default)]
struct Log {
    last: Seq,
    transactions: BTreeMap<Tid, (Seq, Vec<Oid>)>,
    attempts: BTreeMap<Attempt, Tid>,
    objects: BTreeMap<Oid, BTreeMap<Tid, Value>>,
    /// The largest that anybody was told.
    exposed: Tid,
}

/// A connection, as seen on the wire of the server.
struct Link {
    history: HistoryId,
    /// The client knows all up to this.
    last: Option<Tid>,
    /// It has asked what has changed since.
    since: Option<Tid>,
    /// It votes, or has.
    attempt: Option<Attempt>,
    /// It has asked to finish that, and was not answered.
    is_finishing: bool,
}

/// A connection, from its beginning on.
struct Accepted {
    history: HistoryId,
    /// What had been exposed, somewhere, when it was accepted: to be let in behind that is wrong. A
    /// client that tries several servers at a time may see more before its turn comes here.
    floor: Tid,
}

/// A client, as it is seen from inside.
#[derive(Default)]
struct Seen {
    /// Of each of its verified connections, the first being number 1.
    histories: Vec<HistoryId>,
    /// What was exposed when it asked to be level.
    floor: Tid,
    /// Where it was let in last.
    conn: Option<Conn>,
}

impl Log {
    /// As of `tid`, included.
    fn revision(&self, oid: Oid, tid: Tid) -> Option<(Tid, &Value)> {
        let revisions = self.objects.get(&oid)?;
        let (serial, value) = revisions.range(..=tid).next_back()?;
        Some((*serial, value))
    }

    fn next_of(&self, oid: Oid, serial: Tid) -> Option<Tid> {
        let behind = (Bound::Excluded(serial), Bound::Unbounded);
        let revisions = self.objects.get(&oid)?;
        revisions.range(behind).next().map(|(tid, _)| *tid)
    }

    fn has(&self, tid: Tid) -> bool {
        tid == Tid::ZERO || self.transactions.contains_key(&tid)
    }

    fn follows(&self, tid: Tid) -> Option<Tid> {
        let behind = (Bound::Excluded(tid), Bound::Unbounded);
        self.transactions.range(behind).next().map(|(tid, _)| *tid)
    }

    fn changed(&self, after: Tid, through: Tid) -> BTreeSet<Oid> {
        let range = (Bound::Excluded(after), Bound::Included(through));
        let transactions = self.transactions.range(range);
        let oids = transactions.flat_map(|(_, (_, oids))| oids);
        oids.copied().collect()
    }
}

impl Checks {
    pub(crate) fn result(&self) -> Result<(), String> {
        self.violation.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn marks(&self) -> &BTreeMap<&'static str, u64> {
        &self.marks
    }

    pub(crate) fn mark(&mut self, what: &'static str) {
        *self.marks.entry(what).or_default() += 1;
    }

    /// The first one counts.
    pub(crate) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn unknowns(&self) -> u64 {
        self.unknown.len() as u64
    }

    /// Operations that were committed more than once, over all histories.
    pub(crate) fn duplicates(&self) -> u64 {
        let logs = self.logs.values();
        logs.map(|log| log.attempts.len() as u64 - operations(log).len() as u64)
            .max()
            .unwrap_or_default()
    }

    /// At the end of a run.
    pub(crate) fn finish(&mut self) {
        let mut wrong = Vec::new();
        for log in self.logs.values() {
            for (operation, attempts) in operations(log) {
                let known = attempts
                    .iter()
                    .filter(|at| !self.unknown.contains(at))
                    .count();
                if known > 1 {
                    wrong.push(format!(
                        "M9: {operation:?} is committed {} times, and only {} of them may be",
                        attempts.len(),
                        attempts.len() - known + 1
                    ));
                }
            }
            for (oid, revisions) in &log.objects {
                let stored = revisions.len() as u64;
                let count = revisions.values().next_back().map(|value| value.count);
                if count != Some(stored) {
                    wrong.push(format!(
                        "{oid} counts {count:?} and was stored {stored} times"
                    ));
                }
            }
        }
        wrong.into_iter().for_each(|what| self.violated(what));
    }

    // The truth.

    pub(crate) fn on_committed(&mut self, history: HistoryId, entry: &Applied) {
        let mut wrong = Vec::new();
        let log = self.logs.entry(history).or_default();
        if entry.seq != log.last.next() {
            wrong.push(format!("{} is committed behind {}", entry.seq, log.last));
        }
        log.last = entry.seq;
        if entry.tid != Tid::ZERO {
            let last = log.transactions.last_key_value();
            if last.is_some_and(|(tid, _)| *tid >= entry.tid) {
                wrong.push(format!(
                    "I7: {} has {}, which is no larger tid",
                    entry.seq, entry.tid
                ));
            }
            log.transactions.insert(entry.tid, (entry.seq, Vec::new()));
        }
        if let Some(transaction) = entry.transaction() {
            let attempt = transaction.attempt;
            if self.refused.contains(&attempt) {
                wrong.push(format!("I13: {attempt:?} was refused, and is committed"));
            }
            if log.attempts.insert(attempt, entry.tid).is_some() {
                wrong.push(format!("I13: {attempt:?} is committed twice"));
            }
            for record in transaction.records {
                let revisions = log.objects.entry(record.oid).or_default();
                let current = revisions.last_key_value();
                let (serial, count) =
                    current.map_or((Tid::ZERO, 0), |(tid, value)| (*tid, value.count));
                if (record.serial, record.value.count) != (serial, count + 1) {
                    wrong.push(format!(
                        "a lost update: {attempt:?} stores {record:?} over {serial} and {count}"
                    ));
                }
                revisions.insert(entry.tid, record.value);
                if let Some((_, oids)) = log.transactions.get_mut(&entry.tid) {
                    oids.push(record.oid);
                }
            }
        }
        wrong.into_iter().for_each(|what| self.violated(what));
    }

    pub(crate) fn on_forced(&mut self, old: HistoryId, new: HistoryId, after: Seq) {
        let mut log = self.logs.get(&old).cloned().unwrap_or_default();
        log.last = after;
        log.transactions.retain(|_, (seq, _)| *seq <= after);
        let last = log.transactions.last_key_value().map(|(tid, _)| *tid);
        let last = last.unwrap_or_default();
        log.attempts.retain(|_, tid| *tid <= last);
        for revisions in log.objects.values_mut() {
            revisions.retain(|tid, _| *tid <= last);
        }
        log.objects.retain(|_, revisions| !revisions.is_empty());
        log.exposed = log.exposed.min(last);
        self.logs.insert(new, log);
        self.mark("forced promotion");
    }

    // On the wire.

    pub(crate) fn on_accepted(&mut self, conn: Conn, history: HistoryId) {
        let link = Link {
            history,
            last: None,
            since: None,
            attempt: None,
            is_finishing: false,
        };
        self.links.insert(conn, link);
        let floor = self.log(history).exposed;
        self.accepted.insert(conn, Accepted { history, floor });
    }

    pub(crate) fn on_asked_since(&mut self, conn: Conn, tid: Tid) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.since = Some(tid);
        }
    }

    pub(crate) fn on_asked_to_read(&mut self, conn: Conn) {
        self.readers.insert(conn);
    }

    pub(crate) fn on_asked_vote(&mut self, conn: Conn, attempt: Attempt) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.attempt = Some(attempt);
        }
    }

    pub(crate) fn on_asked_finish(&mut self, conn: Conn) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.is_finishing = link.attempt.is_some();
        }
    }

    /// The connection is no more, and nobody is to blame.
    pub(crate) fn on_gone(&mut self, conn: Conn) {
        self.links.remove(&conn);
    }

    /// The server closes it.
    pub(crate) fn on_closed(&mut self, conn: Conn) {
        if let Some(link) = self.links.remove(&conn)
            && link.is_finishing
        {
            self.violated(format!(
                "(g): a connection was closed before {:?} was answered",
                link.attempt
            ));
        }
    }

    pub(crate) fn is_registered(&self, conn: Conn) -> bool {
        let link = self.links.get(&conn);
        link.is_some_and(|link| link.last.is_some())
    }

    /// A front says something.
    pub(crate) fn on_sent(&mut self, conn: Conn, message: &ServerMessage) {
        let Some(link) = self.links.get(&conn) else {
            return;
        };
        let (history, last) = (link.history, link.last);
        let result = match message {
            ServerMessage::Registered(Some(tid)) => self.exposes(history, *tid).map(|()| {
                self.told(conn, *tid);
            }),
            ServerMessage::Invalidations(list) => self.on_list(conn, list.as_ref()),
            ServerMessage::Invalidate { tid, oids } => {
                let given: BTreeSet<Oid> = oids.iter().copied().collect();
                self.on_next(conn, *tid).and_then(|()| {
                    let changed = self.log(history).changed(last.unwrap_or_default(), *tid);
                    let is_all = changed == given;
                    is_all.then_some(()).ok_or_else(|| {
                        format!("I11: {tid} changed {changed:?}, and the client hears {given:?}")
                    })
                })
            }
            ServerMessage::Loaded {
                oid,
                before,
                revision,
            } => self.on_loaded(history, last, *oid, *before, revision.as_ref()),
            ServerMessage::Oids(oids) => self.on_oids(oids),
            ServerMessage::Finished(result) => self.on_finished(conn, *result),
            ServerMessage::Greeting
            | ServerMessage::Registered(None)
            | ServerMessage::Info
            | ServerMessage::Voted(_)
            | ServerMessage::Aborted
            | ServerMessage::Pong(_) => Ok(()),
        };
        if let Err(what) = result {
            self.violated(format!("{what} (connection {conn:x}: {message:?})"));
        }
    }

    fn log(&mut self, history: HistoryId) -> &mut Log {
        self.logs.entry(history).or_default()
    }

    fn told(&mut self, conn: Conn, tid: Tid) {
        if let Some(link) = self.links.get_mut(&conn) {
            link.last = Some(tid);
        }
    }

    /// I6
    fn exposes(&mut self, history: HistoryId, tid: Tid) -> Result<(), String> {
        let log = self.log(history);
        if !log.has(tid) {
            return Err(format!("I6: {tid} is exposed and not committed"));
        }
        log.exposed = log.exposed.max(tid);
        Ok(())
    }

    /// All transactions are told, in order.
    fn on_next(&mut self, conn: Conn, tid: Tid) -> Result<(), String> {
        let link = &self.links[&conn];
        let (history, last) = (link.history, link.last);
        self.exposes(history, tid)?;
        let last = last.ok_or("it is not registered")?;
        if self.log(history).follows(last) != Some(tid) {
            return Err(format!("I12: the client hears of {tid} after {last}"));
        }
        self.told(conn, tid);
        Ok(())
    }

    /// I11, from the server's side.
    fn on_list(&mut self, conn: Conn, list: Option<&(Tid, Vec<Oid>)>) -> Result<(), String> {
        let link = self.links.get_mut(&conn).expect("it was looked up");
        let (history, last, since) = (link.history, link.last, link.since.take());
        let Some((tid, oids)) = list else {
            let is_ours = since.is_some_and(|since| self.log(history).has(since));
            self.mark(if is_ours {
                "list refused, too old"
            } else {
                "list refused, other history"
            });
            return Ok(());
        };
        let since = since.ok_or("nobody has asked for it")?;
        self.exposes(history, *tid)?;
        if last != Some(*tid) {
            return Err(format!(
                "I11: the list is as of {tid}, the client was told {last:?}"
            ));
        }
        let log = self.log(history);
        if !log.has(since) {
            return Err(format!(
                "I11: {since} is not of this history, and there is a list"
            ));
        }
        let given: BTreeSet<Oid> = oids.iter().copied().collect();
        let changed = log.changed(since, *tid);
        if changed.is_subset(&given) {
            Ok(())
        } else {
            Err(format!(
                "I11: {changed:?} have changed since {since}, told is {given:?}"
            ))
        }
    }

    /// A replica may lag, but not behind what it has told the client.
    fn on_loaded(
        &mut self,
        history: HistoryId,
        last: Option<Tid>,
        oid: Oid,
        before: Tid,
        revision: Option<&Revision>,
    ) -> Result<(), String> {
        let known = last.ok_or("it is not registered")?;
        let log = self.log(history);
        let through = known.min(Tid(before.0.saturating_sub(1)));
        let expected = log.revision(oid, through).map(|(serial, _)| serial);
        let Some(revision) = revision else {
            let is_right = expected.is_none();
            return is_right.then_some(()).ok_or_else(|| {
                format!("I12: nothing is shown of {oid}, which has revision {expected:?}")
            });
        };
        let serial = revision.serial;
        if log.objects.get(&oid).and_then(|all| all.get(&serial)) != Some(&revision.value) {
            return Err(format!(
                "I6: {oid} is shown with a revision that is not committed"
            ));
        }
        let next = log.next_of(oid, serial);
        let is_current = revision.next.is_none() && next.is_none_or(|next| next > known);
        if revision.next.is_some() && revision.next != next {
            return Err(format!("I11: {serial} of {oid} was replaced by {next:?}"));
        }
        if serial >= before || expected.is_some_and(|expected| serial < expected) {
            return Err(format!(
                "I12: the client knows of {known}, and {oid} has {expected:?}"
            ));
        }
        if revision.next.is_none() && !is_current {
            return Err(format!(
                "I11: {oid} is shown as current, and {next:?} is known"
            ));
        }
        log.exposed = log.exposed.max(serial);
        Ok(())
    }

    /// I8
    fn on_oids(&mut self, oids: &[Oid]) -> Result<(), String> {
        for oid in oids {
            let is_stored = self.logs.values().any(|log| log.objects.contains_key(oid));
            if !self.oids.insert(*oid) || is_stored || *oid == Oid::ZERO {
                return Err(format!("I8: {oid} is handed out again"));
            }
        }
        Ok(())
    }

    /// I13
    fn on_finished(&mut self, conn: Conn, result: Result<Tid, Refused>) -> Result<(), String> {
        let link = self.links.get_mut(&conn).expect("it was looked up");
        let was_finishing = std::mem::replace(&mut link.is_finishing, false);
        let history = link.history;
        let attempt = link.attempt.filter(|_| was_finishing);
        let attempt = attempt.ok_or("I13: there is an answer, and no question")?;
        if let Ok(tid) = result {
            let found = self.log(history).attempts.get(&attempt).copied();
            if found != Some(tid) {
                return Err(format!("I13: {attempt:?} is committed as {found:?}"));
            }
            self.acknowledged.insert(attempt);
            return self.on_next(conn, tid);
        }
        self.refused.insert(attempt);
        self.mark("finish lost");
        let mut logs = self.logs.values();
        if logs.any(|log| log.attempts.contains_key(&attempt)) {
            return Err(format!("I13: {attempt:?} is committed"));
        }
        Ok(())
    }

    // In the clients.

    pub(crate) fn on_fact(&mut self, client: u32, fact: &Fact, cache: &Cache) {
        match fact {
            Fact::Verified { conn, how } => {
                self.mark(match how {
                    Verification::Empty => "verified, empty cache",
                    Verification::UpToDate => "verified, up to date",
                    Verification::Quick => "verified, quickly",
                    Verification::Cleared => "cache cleared",
                });
                let history = self.accepted.get(conn).map(|accepted| accepted.history);
                let seen = self.clients.entry(client).or_default();
                seen.histories.push(history.unwrap_or_default());
                seen.conn = Some(*conn);
                self.check_cache(client, cache);
            }
            Fact::ServerBehind { conn, server } => self.on_behind(client, *conn, *server, cache),
            Fact::LastTidBack { from, to } => {
                self.violated(format!(
                    "I12: client {client} was at {from}, and is told {to}"
                ));
            }
            Fact::Read {
                tid,
                generation,
                oid,
                found,
            } => self.on_read(client, *tid, *generation, *oid, found.as_ref()),
            Fact::ReadAll => self.mark("read"),
            Fact::PingSent => {
                let history = self.history_of(client);
                let exposed = self.logs.get(&history).map(|log| log.exposed);
                let seen = self.clients.entry(client).or_default();
                seen.floor = exposed.unwrap_or_default();
            }
            Fact::Pong => {
                self.mark("ping");
                let floor = self.clients.entry(client).or_default().floor;
                if cache.last() < floor {
                    self.violated(format!(
                        "(f): client {client} is at {}, and was to be at {floor}",
                        cache.last()
                    ));
                }
            }
            Fact::Unknown(attempt) => {
                self.mark("unknown outcome");
                self.unknown.insert(*attempt);
            }
            Fact::Answered(attempt, result) => {
                self.mark("finish answered");
                if result.is_ok() != self.acknowledged.contains(attempt) {
                    self.violated(format!("I13: client {client} is told {result:?}"));
                }
            }
            Fact::Upgraded => self.mark("fallback upgraded"),
            Fact::OidsGot => self.mark("oids"),
            Fact::TimedOut => self.mark("waited in vain"),
            Fact::ReadOnly => self.mark("ReadOnlyError"),
            Fact::Conflict => self.mark("conflict"),
            Fact::Vanish => self.mark("vanished"),
        }
    }

    /// Who asks to read is let in by who is level; then this cannot be, but in another history.
    fn on_behind(&mut self, client: u32, conn: Conn, server: Tid, cache: &Cache) {
        self.mark("server behind cache");
        let Some(accepted) = self.accepted.get(&conn) else {
            return;
        };
        // It was answered only to be sent away, so that it begins anew.
        let is_let_in = self.links.contains_key(&conn);
        let is_same = accepted.history == self.history_of(client);
        if is_let_in && is_same && self.readers.contains(&conn) && server < accepted.floor {
            self.violated(format!(
                "(c)4: client {client} has seen {}, and is let in to read at {server}",
                cache.last()
            ));
        }
    }

    fn history_of(&self, client: u32) -> HistoryId {
        let seen = self.clients.get(&client);
        let last = seen.and_then(|seen| seen.histories.last());
        last.copied().unwrap_or_default()
    }

    /// A snapshot is what was committed as of its tid.
    fn on_read(
        &mut self,
        client: u32,
        tid: Tid,
        generation: usize,
        oid: Oid,
        found: Option<&(Tid, Value)>,
    ) {
        let Some(seen) = self.clients.get(&client) else {
            // It was never connected, and has nothing.
            return;
        };
        let began = seen.histories.get(generation.wrapping_sub(1)).copied();
        let history = self.history_of(client);
        if began != Some(history) {
            self.mark("snapshot across histories");
            return;
        }
        // It has seen more than this server, by another one, since this one was asked to let it in;
        // with an empty cache no client notices.
        let link = seen.conn.and_then(|conn| self.links.get(&conn));
        let is_ahead = link.is_none_or(|link| link.last < Some(tid));
        let expected = self.log(history).revision(oid, tid);
        let found = found.map(|(serial, value)| (*serial, value));
        if expected != found && is_ahead {
            self.mark("snapshot ahead of its server");
            return;
        }
        if expected != found {
            let what = format!(
                "I12: client {client} reads {oid} as of {tid}: {found:?}, not {expected:?}"
            );
            self.violated(what);
        }
    }

    /// I11: all that is in it is true, in the history of the server.
    pub(crate) fn check_cache(&mut self, client: u32, cache: &Cache) {
        let history = self.history_of(client);
        let last = cache.last();
        let log = self.log(history);
        let mut wrong = None;
        if !cache.is_empty() && !log.has(last) {
            wrong = Some(format!("its last tid {last} is of no transaction"));
        }
        for (oid, serial, value) in cache.current() {
            // It may have come with a load, before its invalidation.
            let known = log.revision(oid, last.max(serial));
            if known != Some((serial, value)) {
                wrong = Some(format!("{oid} is not {value:?} of {serial}, but {known:?}"));
            }
        }
        for (oid, serial, end, value) in cache.old() {
            let known = log.revision(oid, serial);
            let is_true = known == Some((serial, value)) && log.next_of(oid, serial) == Some(end);
            if !is_true && end > serial {
                wrong = Some(format!("{oid} was never {value:?} from {serial} to {end}"));
            }
        }
        if let Some(wrong) = wrong {
            self.violated(format!("I11: client {client} has at {last}: {wrong}"));
        }
    }
}

/// Which of them were committed by which attempts.
fn operations(log: &Log) -> BTreeMap<(u32, u32), Vec<Attempt>> {
    let mut operations: BTreeMap<_, Vec<Attempt>> = BTreeMap::new();
    for attempt in log.attempts.keys() {
        let operation = (attempt.client, attempt.operation);
        operations.entry(operation).or_default().push(*attempt);
    }
    operations
}
