//! Voting: from staged records to a transaction that can be finished.
//!
//! ```text
//!  begin ─► Staging ─vote─► Waiting ─lock─► Checking ─► Voted ─finish─► Finishing ─► published
//!              ▲                               │ │
//!              │                     conflicts │ └ failed: rolled back
//!              └────────── Resolving ◄─────────┘
//! ```
//!
//! *Checking* compares serials (`compare`), looks back for what is to be undone (`undo`), and
//! reserves space; it needs a worker for what is not in memory, and for all undos. From *finish* on
//! a transaction is in the hands of `batch`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::blob::Needs;
use super::commit_lock::{Claim, Ticket};
use super::compare::Comparison;
use super::disk::File;
use super::error::ReadError;
use super::format::POS_END;
use super::job::{Fetched, Job};
use super::staging::{Base, Data, Metadata, Offer, Record, Rest, Txn, TxnId, TxnState};
use super::{Event, FileStorage};
use crate::ids::{Oid, Tid};
use crate::limits::{METADATA_LEN_MAX, RESOLVE_TIMEOUT};

/// Space is reserved in steps of this many bytes.
const ALLOCATE_STEP: u64 = 4 << 20;

/// An object whose stored revision is not the one that a client replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The object.
    pub oid: Oid,
    /// The serial of the current revision.
    pub committed: Tid,
    /// The serial that the client sent; zero if it sent none.
    pub sent: Tid,
    /// The data that the client sent; may be missing if it is not to resolve the conflict.
    pub data: Bytes,
}

/// The answer to a vote.
#[derive(Debug)]
pub enum Vote {
    /// It can be finished.
    Granted,
    /// The client may resolve these, store the results, and vote again.
    Conflicts(Vec<Conflict>),
    /// It is rolled back.
    Refused(Refusal),
}

/// Why a vote failed.
#[derive(Debug)]
pub enum Refusal {
    /// A store conflicts, and the client shall not (or no more) try to resolve it.
    Conflict(Conflict),
    /// An object that the transaction depends on was changed.
    ReadConflict {
        /// The object.
        oid: Oid,
        /// The serial of the current revision.
        committed: Tid,
        /// The serial that the client read.
        read: Tid,
    },
    /// An object that the transaction depends on does not exist.
    Missing(Oid),
    /// The file would outgrow its quota, or what its format can address.
    Quota,
    /// User name, description or extension are too long for the file format.
    MetadataTooLong(&'static str),
    /// The wanted tid is not above the last one, or leaves none above it.
    WrongTid(Tid),
    /// A blob is missing, or was not sent as a whole.
    Blob(String),
    /// There is no transaction of that name that can be undone; why.
    NotUndoable(&'static str),
    /// These objects of a transaction cannot be undone (not more than
    /// [`crate::limits::UNDO_ERRORS_MAX`] are listed), and why.
    Undo(Vec<(Oid, &'static str)>),
    /// No space, or the disk failed.
    Disk(String),
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Self::Disk(error.to_string())
    }
}

impl FileStorage {
    /// Begins a transaction. Takes no lock.
    pub fn begin(&mut self, metadata: Metadata) -> TxnId {
        let id = TxnId(self.txns_begun);
        self.txns_begun += 1;
        self.txns.insert(id, Txn::new(metadata));
        id
    }

    /// Adds a new revision of an object. `serial` is the revision that it replaces; what is not a
    /// serial can only be right for a new object. `false` if nothing can be added, since the
    /// transaction was voted: its lock and its space are for what it had named then.
    #[must_use]
    pub fn store(&mut self, txn: TxnId, oid: Oid, serial: Option<Tid>, data: Bytes) -> bool {
        self.note_blob(txn, oid, &data, Needs::Blob);
        self.add(txn, oid, Base::Replaced(serial), Data::memory(data))
    }

    /// Adds a record of whatever kind; a large transaction is moved to its staging file.
    pub(super) fn add(&mut self, txn: TxnId, oid: Oid, base: Base, data: Data) -> bool {
        let Some(staging) = self.txns.get_mut(&txn).filter(|it| it.takes_records()) else {
            return false;
        };
        if staging.broken.is_some() {
            return true;
        }
        let undos_before = staging.undos.len();
        staging.store(Record {
            oid,
            base,
            data,
            undos_before,
        });
        self.spill(txn);
        true
    }

    /// Makes the transaction depend on a revision being current when it is voted. `false` as for
    /// [`Self::store`].
    #[must_use]
    pub fn check(&mut self, txn: TxnId, oid: Oid, serial: Tid) -> bool {
        let Some(staging) = self.txns.get_mut(&txn).filter(|it| it.takes_records()) else {
            return false;
        };
        staging.checks.push((oid, serial));
        true
    }

    /// Asks for the commit lock; the answer is an [`Event::Voted`], now or later. `false` if this
    /// transaction cannot be voted, because it was already.
    pub fn vote(&mut self, id: TxnId, now: Instant) -> bool {
        let Some(txn) = self.txns.get(&id) else {
            return false;
        };
        let kept = match txn.state {
            TxnState::Staging => None,
            TxnState::Resolving { ticket, .. } => Some(ticket),
            _ => return false,
        };
        if !self.are_blobs_ready(id) {
            return true;
        }
        let Some(txn) = self.txns.get(&id) else {
            return false;
        };
        let (oids, claim) = (txn.oids(), self.claim(txn));
        let ticket = match kept.filter(|ticket| self.lock.covers(*ticket, &oids, claim)) {
            Some(ticket) => ticket,
            None => {
                // Not while it has a lock already: two that do so could wait for each other.
                if let Some(ticket) = kept {
                    self.let_go(ticket, now);
                }
                let (ticket, held) = self.lock.enqueue(oids, claim);
                self.tickets.insert(ticket, id);
                if !held {
                    self.set_state(id, TxnState::Waiting { ticket });
                    return true;
                }
                ticket
            }
        };
        self.check_vote(id, ticket, now);
        true
    }

    /// What a vote has to exclude.
    const fn claim(&self, txn: &Txn) -> Claim {
        match txn.metadata.tid {
            // Those that are on their way through the log have no tid yet.
            Some(_) if self.feed.is_some() => Claim::Alone,
            _ => txn.claim(),
        }
    }

    /// Whether a transaction waits for the disk, so that its client's next calls should wait too.
    pub fn is_busy(&self, id: TxnId) -> bool {
        self.txns.get(&id).is_some_and(|txn| {
            let is_voting = match txn.state {
                // Other nodes may take long; its client may leave.
                TxnState::Checking { .. } => txn.offer != Offer::Made,
                TxnState::Finishing { .. } => true,
                _ => false,
            };
            is_voting || txn.is_spilling() || txn.blobs.is_full()
        })
    }

    /// Rolls a transaction back, whatever its state; one that has its place in the file already is
    /// committed all the same, and only its answer is dropped.
    pub fn abort(&mut self, id: TxnId, now: Instant) {
        let Some(txn) = self.txns.get(&id) else {
            return;
        };
        if !matches!(txn.state, TxnState::Finishing { .. }) {
            self.roll_back(id, now);
        }
    }

    /// How many votes wait for the commit lock.
    pub fn waiting_count(&self) -> usize {
        self.lock.waiting_count()
    }

    /// Transactions that have the lock since before `now - timeout`: who they are, and since when.
    pub fn overdue(&self, timeout: Duration, now: Instant) -> Vec<(TxnId, Duration)> {
        let held = self.txns.iter().filter_map(|(id, txn)| match txn.state {
            TxnState::Voted { since, .. } => Some((*id, now.saturating_duration_since(since))),
            _ => None,
        });
        held.filter(|(_, held_for)| *held_for >= timeout).collect()
    }

    /// Since when the oldest voted transaction has the commit lock.
    pub fn locked_since(&self) -> Option<Instant> {
        self.txns
            .values()
            .filter_map(|txn| match txn.state {
                TxnState::Voted { since, .. } => Some(since),
                _ => None,
            })
            .min()
    }

    /// Takes the lock from those who were told of conflicts and did not vote again in time. They
    /// stay alive, and wait in line when they do.
    pub fn expire_resolving(&mut self, now: Instant) {
        let expired: Vec<(TxnId, Ticket)> = self
            .txns
            .iter()
            .filter_map(|(id, txn)| match txn.state {
                TxnState::Resolving { ticket, since } if now >= since + RESOLVE_TIMEOUT => {
                    Some((*id, ticket))
                }
                _ => None,
            })
            .collect();
        for (id, ticket) in expired {
            self.set_state(id, TxnState::Staging);
            self.let_go(ticket, now);
        }
    }

    /// When [`Self::expire_resolving`] has something to do.
    pub fn resolving_until(&self) -> Option<Instant> {
        self.txns
            .values()
            .filter_map(|txn| match txn.state {
                TxnState::Resolving { since, .. } => Some(since + RESOLVE_TIMEOUT),
                _ => None,
            })
            .min()
    }

    /// Checks a transaction that has the lock, as far as that goes without waiting.
    fn check_vote(&mut self, id: TxnId, ticket: Ticket, now: Instant) {
        let Some(txn) = self.txns.get_mut(&id) else {
            return;
        };
        txn.state = TxnState::Checking { ticket };
        txn.is_compared = false;
        let Some(txn) = self.txns.get(&id) else {
            return;
        };
        let compared = match self.fault(txn) {
            Some(refusal) => Err(refusal),
            None if txn.is_large() => return self.send_to_compare(id),
            None => self.compare(txn),
        };
        self.on_comparison(id, ticket, compared, now);
    }

    /// Goes on with a vote whose serials were compared, or are to be fetched for that.
    pub(super) fn on_comparison(
        &mut self,
        id: TxnId,
        ticket: Ticket,
        compared: Result<Comparison, Refusal>,
        now: Instant,
    ) {
        let checked = match compared {
            Ok(Comparison::Fetch { serials, staged }) => {
                let txn = self.txns.get(&id);
                let staging_file = txn.and_then(|txn| txn.staging_file.clone());
                self.events.push_back(Event::Run(Job::Fetch {
                    txn: id,
                    file: self.file.clone(),
                    serials,
                    generation: self.generation,
                    tail: self.tail,
                    staging_file,
                    staged,
                }));
                return;
            }
            Ok(Comparison::Conflicts(conflicts)) => {
                return self.on_conflicts(id, ticket, conflicts, now);
            }
            // What undo needs of the past is read when nothing else can be in the way any more.
            Ok(Comparison::Clean) => match self.look_back(id) {
                Some(job) => return self.events.push_back(Event::Run(job)),
                None => self.on_compared(id, ticket, now),
            },
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = checked {
            self.refuse(id, refusal, now);
        }
    }

    /// Why a transaction cannot be voted, whatever it is compared with.
    fn fault(&self, txn: &Txn) -> Option<Refusal> {
        let metadata = &txn.metadata;
        for (what, text) in [
            ("user name", &metadata.user),
            ("description", &metadata.description),
            ("extension", &metadata.extension),
        ] {
            if text.len() > METADATA_LEN_MAX {
                return Some(Refusal::MetadataTooLong(what));
            }
        }
        if let Some(reason) = self.failed.as_ref().or(txn.broken.as_ref()) {
            return Some(Refusal::Disk(reason.clone()));
        }
        txn.blobs.fault().map(Refusal::Blob)
    }

    /// The client resolves conflicts, with the lock kept for it, but not for ever.
    fn on_conflicts(&mut self, id: TxnId, ticket: Ticket, conflicts: Vec<Conflict>, now: Instant) {
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.conflicting_votes += 1;
            txn.state = TxnState::Resolving { ticket, since: now };
            let conflicts = Vote::Conflicts(conflicts);
            self.events.push_back(Event::Voted(id, conflicts));
        }
    }

    /// Nothing but space can be missing now, or what the log gets.
    pub(super) fn on_compared(
        &mut self,
        id: TxnId,
        ticket: Ticket,
        now: Instant,
    ) -> Result<(), Refusal> {
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.is_compared = true;
        }
        match self.is_composed(id)? && self.is_offered(id) && !self.withholds(id) {
            true => self.reserve(id, ticket, now),
            false => Ok(()),
        }
    }

    /// Sees to it that the file has space for a transaction that is otherwise fine.
    fn reserve(&mut self, id: TxnId, ticket: Ticket, now: Instant) -> Result<(), Refusal> {
        let Some(txn) = self.txns.get_mut(&id) else {
            return Ok(());
        };
        let is_wrong = |tid: &Tid| *tid <= self.assigned_tid || *tid >= Tid::END;
        if let Some(tid) = txn.metadata.tid.filter(is_wrong) {
            return Err(Refusal::WrongTid(tid));
        }
        let len = txn.len_in_file();
        let end = self.assigned_end + self.voted_len + len;
        if self.options.quota.is_some_and(|quota| end > quota) || end >= POS_END {
            return Err(Refusal::Quota);
        }
        if end > self.allocated_end {
            let (file, pos) = (self.file.clone(), self.allocated_end.max(self.assigned_end));
            let len = (end - pos).next_multiple_of(ALLOCATE_STEP);
            self.events.push_back(Event::Run(Job::Allocate {
                txn: id,
                file,
                pos,
                len,
            }));
            return Ok(());
        }
        txn.state = TxnState::Voted {
            ticket,
            since: now,
            len,
        };
        self.voted_len += len;
        self.events.push_back(Event::Voted(id, Vote::Granted));
        Ok(())
    }

    pub(super) fn on_allocated(
        &mut self,
        id: TxnId,
        end: u64,
        result: io::Result<()>,
        now: Instant,
    ) {
        match result {
            Ok(()) => self.allocated_end = self.allocated_end.max(end),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                log::info!(
                    "{}: this file system cannot reserve space ahead",
                    self.name()
                );
                self.allocated_end = u64::MAX;
            }
            Err(error) => {
                log::error!("{}: no space for a transaction ({error})", self.name());
                if self.checking(id).is_some() {
                    self.refuse(id, Refusal::Disk(error.to_string()), now);
                }
                return;
            }
        }
        let Some(ticket) = self.checking(id) else {
            return;
        };
        // Nobody else can have changed what it was compared with: it has the lock.
        match self.txns.get(&id) {
            Some(txn) if txn.is_compared => {
                if let Err(refusal) = self.reserve(id, ticket, now) {
                    self.refuse(id, refusal, now);
                }
            }
            _ => self.check_vote(id, ticket, now),
        }
    }

    pub(super) fn on_fetched(
        &mut self,
        id: TxnId,
        result: Result<Fetched, ReadError>,
        now: Instant,
    ) {
        let Some(ticket) = self.checking(id) else {
            return;
        };
        match result {
            Ok(Fetched {
                serials,
                generation,
                staged,
            }) => {
                let is_current = generation == self.generation;
                if let Some(txn) = self.txns.get_mut(&id) {
                    // Positions in a file that was replaced are of no use.
                    txn.serials_read
                        .extend(serials.into_iter().filter(|_| is_current));
                    for (oid, data) in staged {
                        txn.on_fetched(oid, data);
                    }
                }
                self.check_vote(id, ticket, now);
            }
            Err(error) => {
                self.refuse(id, Refusal::Disk(error.to_string()), now);
            }
        }
    }

    pub(super) fn on_spilled(&mut self, id: TxnId, result: io::Result<Arc<dyn File>>) {
        let Some(txn) = self.txns.get_mut(&id) else {
            if let Ok(file) = result {
                self.discard_rest(Rest::from(file));
            }
            return;
        };
        match result {
            Ok(file) => {
                txn.on_spilled(file);
                // More may have come meanwhile.
                self.spill(id);
            }
            Err(error) => {
                let reason = format!("a large transaction cannot be staged: {error}");
                log::error!("{}: {reason}", self.options.name);
                // Its vote will say so; until then it shall not take memory.
                let mut broken = Txn::new(txn.metadata.clone());
                broken.broken = Some(reason);
                // It may hold the lock, and have to give it back.
                broken.state = txn.state;
                // Their files have to be removed.
                broken.blobs = txn.blobs.take();
                broken.conflicting_votes = txn.conflicting_votes;
                let rest = std::mem::replace(txn, broken).into_rest();
                self.discard_rest(rest);
            }
        }
        self.events.push_back(Event::Spilled(id));
    }

    /// The ticket of a transaction that waits for the disk in its vote; `None` if it was aborted
    /// meanwhile.
    pub(super) fn checking(&self, id: TxnId) -> Option<Ticket> {
        match self.txns.get(&id)?.state {
            TxnState::Checking { ticket } => Some(ticket),
            _ => None,
        }
    }

    /// The vote fails, and with it the transaction.
    pub(super) fn refuse(&mut self, id: TxnId, refusal: Refusal, now: Instant) {
        self.events
            .push_back(Event::Voted(id, Vote::Refused(refusal)));
        self.roll_back(id, now);
    }

    pub(super) fn roll_back(&mut self, id: TxnId, now: Instant) {
        let Some(mut txn) = self.txns.remove(&id) else {
            return;
        };
        if let TxnState::Voted { len, .. } = txn.state {
            self.voted_len -= len;
        }
        self.withdraw(id, txn.offer);
        self.discard(id, txn.blobs.take().into_unwanted());
        if let Some(ticket) = txn.state.ticket() {
            self.let_go(ticket, now);
        }
        self.discard_rest(txn.into_rest());
    }

    /// Drops what a transaction has left, elsewhere if that takes its time.
    pub(super) fn discard_rest(&mut self, rest: Rest) {
        if rest.is_large() {
            self.events.push_back(Event::Run(Job::Discard(rest)));
        }
    }

    pub(super) fn let_go(&mut self, ticket: Ticket, now: Instant) {
        self.tickets.remove(&ticket);
        let held = self.lock.release(ticket);
        self.go_on(held, now);
    }

    /// These have the lock now. One after the other: a vote that is refused lets the next one in,
    /// and thousands may wait.
    pub(super) fn go_on(&mut self, held: Vec<Ticket>, now: Instant) {
        self.to_check.extend(held);
        if std::mem::replace(&mut self.is_checking, true) {
            return;
        }
        while let Some(ticket) = self.to_check.pop_front() {
            if let Some(id) = self.tickets.get(&ticket) {
                self.check_vote(*id, ticket, now);
            }
        }
        self.is_checking = false;
        // It may have been the turn of a pack.
        self.drive_pack(now);
    }

    fn set_state(&mut self, id: TxnId, state: TxnState) {
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::VOTES_WITH_CONFLICTS_MAX;
    use crate::storage::staging::LARGE_COUNT_MIN;
    use crate::storage::testing::{Rig, metadata, options};
    use crate::storage::{LockScope, Options};

    #[test]
    fn a_transaction_is_visible_when_it_is_synced_and_not_before() {
        let mut rig = Rig::new(options());
        let id = rig.begin(&[(1, 0, "one")]);
        rig.vote(id);
        rig.finish(id);
        rig.storage.flush();
        rig.collect();
        assert!(matches!(rig.jobs[..], [Job::Append(_)]));
        assert_eq!(rig.current(1), None);
        assert_eq!(rig.storage.last_tid(), Tid::ZERO);
        rig.settle();
        let tid = rig.storage.last_tid();
        assert_eq!(rig.current(1), Some((Bytes::from_static(b"one"), tid)));
        assert!(tid.unix_time().abs_diff(rig.wall) < Duration::from_secs(1));
    }

    #[test]
    fn tids_increase_even_if_the_clock_goes_back() {
        let mut rig = Rig::new(options());
        let first = rig.commit(&[(1, 0, "one")]);
        rig.wall -= Duration::from_secs(3600);
        let second = rig.commit(&[(2, 0, "two")]);
        // Not much: the least that tells what a witness has to know.
        assert!(second > first && second.0 - first.0 < 1 << 11);
    }

    #[test]
    fn finishes_that_meet_share_an_append() {
        for lock_scope in [LockScope::Storage, LockScope::Objects] {
            let mut rig = Rig::new(Options {
                lock_scope,
                ..options()
            });
            let ids: Vec<TxnId> = (1..=3).map(|oid| rig.begin(&[(oid, 0, "data")])).collect();
            for id in &ids {
                rig.storage.vote(*id, rig.now);
            }
            rig.collect();
            // The first needs space; with it there is enough for all.
            for job in std::mem::take(&mut rig.jobs) {
                rig.storage.on_done(job.run(), rig.now);
            }
            for id in &ids {
                rig.finish(*id);
            }
            rig.storage.flush();
            rig.collect();
            let appends = rig
                .jobs
                .iter()
                .filter(|job| matches!(job, Job::Append(_)))
                .count();
            assert_eq!(appends, 1, "{lock_scope:?}");
            let events = rig.settle();
            let committed = events.iter().filter_map(|event| match event {
                Event::Committed(commit) => commit.txn,
                _ => None,
            });
            assert_eq!(committed.collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn a_vote_on_an_object_that_is_being_written_waits_for_the_sync() {
        let mut rig = Rig::new(options());
        let tid = rig.commit(&[(1, 0, "one")]);
        let first = rig.begin(&[(1, tid.0, "two")]);
        rig.vote(first);
        rig.finish(first);
        let second = rig.begin(&[(1, tid.0, "three")]);
        assert!(rig.storage.vote(second, rig.now));
        assert_eq!(rig.storage.waiting_count(), 1);
        let events = rig.settle();
        let [
            Event::Committed(commit),
            Event::Voted(id, Vote::Conflicts(conflicts)),
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((commit.txn, *id), (Some(first), second));
        assert_eq!(conflicts[0].committed, commit.tid);
        assert_eq!(conflicts[0].sent, tid);
    }

    #[test]
    fn who_resolves_keeps_the_lock_but_not_for_ever() {
        let mut rig = Rig::new(options());
        let tid = rig.commit(&[(1, 0, "one")]);
        let stale = rig.begin(&[(1, 0, "two")]);
        assert!(matches!(
            rig.vote(stale)[..],
            [Event::Voted(_, Vote::Conflicts(_))]
        ));
        let other = rig.begin(&[(2, 0, "other")]);
        assert!(rig.vote(other).is_empty());
        rig.storage.expire_resolving(rig.now);
        assert!(rig.settle().is_empty());
        rig.now += RESOLVE_TIMEOUT;
        assert!(
            rig.storage
                .resolving_until()
                .is_some_and(|until| until <= rig.now)
        );
        rig.storage.expire_resolving(rig.now);
        assert!(matches!(rig.settle()[..], [Event::Voted(id, Vote::Granted)] if id == other));
        // The late one waits in line, and goes on with what it has resolved.
        assert!(
            rig.storage
                .store(stale, Oid(1), Some(tid), Bytes::from_static(b"both"))
        );
        assert!(rig.vote(stale).is_empty());
        rig.storage.abort(other, rig.now);
        assert!(matches!(rig.settle()[..], [Event::Voted(id, Vote::Granted)] if id == stale));
    }

    #[test]
    fn votes_with_conflicts_end_in_an_error() {
        let mut rig = Rig::new(options());
        rig.commit(&[(1, 0, "one")]);
        let id = rig.begin(&[(1, 0, "two")]);
        for _ in 0..VOTES_WITH_CONFLICTS_MAX {
            assert!(matches!(
                rig.vote(id)[..],
                [Event::Voted(_, Vote::Conflicts(_))]
            ));
        }
        let events = rig.vote(id);
        assert!(matches!(
            events[..],
            [Event::Voted(_, Vote::Refused(Refusal::Conflict(_)))]
        ));
        assert!(!rig.storage.vote(id, rig.now), "it is rolled back");
        rig.commit(&[(2, 0, "free")]);
    }

    #[test]
    fn a_dependency_must_be_current() {
        let mut rig = Rig::new(options());
        let tid = rig.commit(&[(1, 0, "one")]);
        for (oid, serial, fine) in [(1, tid.0, true), (1, 5, false), (9, 5, false)] {
            let id = rig.begin(&[(2 + serial + oid, 0, "two")]);
            assert!(rig.storage.check(id, Oid(oid), Tid(serial)));
            let granted = matches!(rig.vote(id)[..], [Event::Voted(_, Vote::Granted)]);
            assert_eq!(granted, fine);
            rig.storage.abort(id, rig.now);
        }
    }

    #[test]
    fn a_quota_is_not_exceeded_and_what_was_reserved_is_given_back() {
        let mut rig = Rig::new(Options {
            quota: Some(200),
            ..options()
        });
        let id = rig.begin(&[(1, 0, "a text of thirty characters ..")]);
        assert!(matches!(rig.vote(id)[..], [Event::Voted(_, Vote::Granted)]));
        rig.storage.abort(id, rig.now);
        rig.commit(&[(1, 0, "a text of thirty characters ..")]);
        let id = rig.begin(&[(2, 0, "a text of thirty characters ..")]);
        let events = rig.vote(id);
        assert!(matches!(
            events[..],
            [Event::Voted(_, Vote::Refused(Refusal::Quota))]
        ));
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_any_more() {
        let mut rig = Rig::new(options());
        let tid = rig.commit(&[(1, 0, "one")]);
        let [in_flight, later] = [2, 3].map(|oid| {
            let id = rig.begin(&[(oid, 0, "lost")]);
            assert!(rig.storage.vote(id, rig.now));
            rig.finish(id);
            rig.storage.flush();
            id
        });
        rig.collect();
        rig.jobs.clear();
        rig.events.clear();
        let voting = rig.begin(&[(3, 0, "waits for the one that is lost")]);
        assert!(rig.storage.vote(voting, rig.now));
        rig.storage.on_done(
            super::super::Done::Appended(Err(io::Error::other("gone"))),
            rig.now,
        );
        let events = rig.settle();
        assert!(
            matches!(
                events[..],
                [Event::Lost(a), Event::Voted(b, Vote::Refused(Refusal::Disk(_))), Event::Lost(c)]
                if (a, b, c) == (in_flight, voting, later)
            ),
            "{events:?}"
        );
        assert_eq!(rig.storage.last_tid(), tid);
        assert_eq!(rig.current(1).map(|(_, serial)| serial), Some(tid));
        let id = rig.begin(&[(4, 0, "refused")]);
        let events = rig.vote(id);
        assert!(matches!(
            events[..],
            [Event::Voted(_, Vote::Refused(Refusal::Disk(_)))]
        ));
    }

    #[test]
    fn a_large_transaction_is_staged_on_the_disk() {
        let mut rig = Rig::new(options());
        let piece = |oid: u64| Bytes::from(vec![u8::try_from(oid).unwrap(); 1 << 20]);
        let tid = rig.commit(&[(20, 0, "one")]);
        let id = rig.storage.begin(metadata());
        let mut spills = 0;
        for oid in 1..=20 {
            // A serial that is wrong for the one object that exists.
            assert!(rig.storage.store(id, Oid(oid), None, piece(oid)));
            spills += usize::from(rig.storage.is_busy(id));
            rig.settle();
        }
        assert_eq!(spills, 2);
        assert!(
            rig.storage
                .store(id, Oid(3), None, Bytes::from_static(b"replaced"))
        );
        let events = rig.vote(id);
        let [Event::Voted(_, Vote::Conflicts(conflicts))] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!((conflicts.len(), &conflicts[0].data), (1, &piece(20)));
        assert!(rig.storage.store(id, Oid(20), Some(tid), piece(21)));
        assert!(matches!(rig.vote(id)[..], [Event::Voted(_, Vote::Granted)]));
        rig.finish(id);
        assert!(matches!(rig.settle()[..], [Event::Committed(_)]));
        for oid in 1..=20 {
            let wanted = match oid {
                3 => Bytes::from_static(b"replaced"),
                20 => piece(21),
                _ => piece(oid),
            };
            assert!(
                rig.current(oid).is_some_and(|(data, _)| data == wanted),
                "{oid}"
            );
        }
    }

    #[test]
    fn nothing_is_added_to_a_transaction_that_was_voted() {
        let mut rig = Rig::new(options());
        let voted = rig.begin(&[(1, 0, "one")]);
        rig.vote(voted);
        let waiting = rig.begin(&[(2, 0, "two")]);
        assert!(rig.vote(waiting).is_empty());
        let data = Bytes::from_static(b"late");
        for id in [voted, waiting] {
            assert!(!rig.storage.store(id, Oid(3), None, data.clone()));
            assert!(!rig.storage.check(id, Oid(3), Tid(1)));
        }
        rig.finish(voted);
        assert_eq!(rig.settle().len(), 2);
    }

    #[test]
    fn new_oids_fail_at_once_where_there_are_none() {
        // A file that has an object at the very top, and a disk that has failed.
        for break_disk in [false, true] {
            let mut rig = Rig::new(options());
            if break_disk {
                rig.storage
                    .on_appended(Err(io::Error::other("gone")), rig.now);
            } else {
                rig.commit(&[(u64::MAX, 0, "top")]);
            }
            let mut answers = 0;
            for _ in 0..3 {
                assert!(rig.storage.allocate_oids(100).is_none());
                let events = rig.settle();
                answers += events
                    .iter()
                    .filter(|event| matches!(event, Event::OidsRaised { raised: false }))
                    .count();
                assert!(rig.jobs.is_empty());
            }
            assert!(answers >= 2, "{answers}");
        }
    }

    #[test]
    fn a_large_vote_is_compared_by_a_worker() {
        let mut rig = Rig::new(options());
        let oids = 1..=LARGE_COUNT_MIN as u64 + 1;
        let stores: Vec<_> = oids.map(|oid| (oid, 0, "data")).collect();
        let tid = rig.commit(&stores);
        let again: Vec<_> = stores
            .iter()
            .map(|(oid, ..)| (*oid, tid.0, "new"))
            .collect();
        let id = rig.begin(&again);
        assert!(rig.storage.vote(id, rig.now));
        rig.collect();
        assert!(matches!(rig.jobs[..], [Job::Compare(_)]));
        assert!(matches!(rig.settle()[..], [Event::Voted(_, Vote::Granted)]));
    }

    #[test]
    fn thousands_of_refused_votes_are_no_recursion() {
        let mut rig = Rig::new(Options {
            client_resolves: false,
            ..options()
        });
        rig.commit(&[(1, 0, "one")]);
        let first = rig.begin(&[(2, 0, "two")]);
        rig.vote(first);
        for _ in 0..3000 {
            let id = rig.begin(&[(1, 5, "stale")]);
            assert!(rig.storage.vote(id, rig.now));
        }
        rig.storage.abort(first, rig.now);
        let events = rig.settle();
        assert_eq!(events.len(), 3000);
        rig.commit(&[(3, 0, "free")]);
    }

    #[test]
    fn a_transaction_that_cannot_be_staged_gives_its_lock_back() {
        let mut rig = Rig::new(options());
        rig.commit(&[(1, 0, "one")]);
        let id = rig.begin(&[(1, 0, "two")]);
        assert!(matches!(
            rig.vote(id)[..],
            [Event::Voted(_, Vote::Conflicts(_))]
        ));
        let large = Bytes::from(vec![1; 9 << 20]);
        assert!(rig.storage.store(id, Oid(1), None, large));
        rig.collect();
        let [Job::Spill { .. }] = &rig.jobs[..] else {
            panic!("{:?}", rig.jobs);
        };
        rig.jobs.clear();
        let full = Err(io::ErrorKind::StorageFull.into());
        rig.storage.on_spilled(id, full);
        let other = rig.begin(&[(2, 0, "other")]);
        assert!(matches!(rig.vote(other)[..], [Event::Spilled(_)]));
        let events = rig.vote(id);
        assert!(
            matches!(
                events[..],
                [
                    Event::Voted(a, Vote::Refused(Refusal::Disk(_))),
                    Event::Voted(b, Vote::Granted)
                ] if (a, b) == (id, other)
            ),
            "{events:?}"
        );
    }

    #[test]
    fn a_wanted_tid_must_be_above_the_last() {
        let mut rig = Rig::new(options());
        let tid = rig.commit(&[(1, 0, "one")]);
        for (wanted, fine) in [
            (tid, false),
            (Tid(u64::MAX), false),
            (Tid::MAX, false),
            (Tid(tid.0 + 1000), true),
        ] {
            let id = rig.storage.begin(Metadata {
                tid: Some(wanted),
                ..metadata()
            });
            let granted = matches!(rig.vote(id)[..], [Event::Voted(_, Vote::Granted)]);
            assert_eq!(granted, fine);
        }
    }
}
