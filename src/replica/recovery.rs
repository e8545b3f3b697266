//! Getting what is missing: what came too early is kept for a while, what did not come is fetched,
//! and what nobody has in his journal any more is copied. And giving it to others.

use std::collections::BTreeMap;
use std::time::Instant;

use super::event::{Action, Fatal, LogStart, Notice, Now};
use super::log::Log;
use super::members::Voter;
use super::message::{Fetch, Fetched, NodeKind, Position, Supply};
use super::serving::first_id;
use super::view::Stated;
use super::{Office, Replica};
use crate::entry::{Entry, Point};
use crate::group::MemberId;
use crate::ids::{Epoch, Seq, Tid};
use crate::limits::{
    AHEAD_COUNT_MAX, AHEAD_LEN_MAX, FAR_BEHIND, FETCH_RETRY, FETCH_TIMEOUT, NO_ROOM_RETRY,
};

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Proposals behind a gap, with the epochs of the entries before them.
    ahead: BTreeMap<Seq, (Epoch, Entry)>,
    /// Bytes of their bodies.
    ahead_len: u64,
    /// Fetched entries that are to be appended when the log is cut.
    fetched: Vec<Entry>,
    /// The log is being cut.
    pub(super) is_cutting: bool,
    fetch: Option<Fetching>,
    /// A copy of the database is being made.
    pub(super) copying: Option<u64>,
    /// There was no room for the journal.
    pub(super) no_room_until: Option<Instant>,
    /// Nothing is fetched before.
    retry_at: Option<Instant>,
    last_id: u64,
    /// Requests that came to nothing, one after the other.
    failures: u32,
    /// No primary is there since then.
    pub(super) vacant_since: Option<Instant>,
}

/// A request on its way.
#[derive(Debug)]
struct Fetching {
    id: u64,
    to: MemberId,
    at: Instant,
    is_claim: bool,
}

impl Recovery {
    pub(super) fn new(now: Now) -> Self {
        Self {
            last_id: first_id(now),
            ..Self::default()
        }
    }

    /// Another epoch: what was kept and asked for is of no use.
    pub(super) fn forget(&mut self) {
        self.ahead.clear();
        self.ahead_len = 0;
        self.fetched.clear();
        self.fetch = None;
        self.retry_at = None;
    }

    /// The log may not be written now.
    pub(super) fn is_writing(&self) -> bool {
        self.is_cutting || self.copying.is_some() || self.no_room_until.is_some()
    }

    /// The log may not be written, or will be.
    pub(super) fn is_busy(&self) -> bool {
        self.is_writing() || self.fetch.is_some()
    }

    pub(super) const fn is_fetching(&self) -> bool {
        self.fetch.is_some() || self.is_cutting
    }

    /// Keeps a proposal until its turn comes. Of too many the last ones are not kept: they are
    /// fetched.
    pub(super) fn keep(&mut self, previous: Epoch, entry: Entry, last: Seq) {
        let seq = entry.header().seq;
        let is_far = seq.0 > last.0.saturating_add(AHEAD_COUNT_MAX);
        let is_too_long = self.ahead_len + entry.header().body_len > AHEAD_LEN_MAX;
        if is_far || is_too_long && !self.ahead.is_empty() {
            return;
        }
        self.put_back(previous, entry);
    }

    pub(super) fn put_back(&mut self, previous: Epoch, entry: Entry) {
        let header = *entry.header();
        let old = self.ahead.insert(header.seq, (previous, entry));
        self.ahead_len += header.body_len;
        if let Some((_, old)) = old {
            self.ahead_len -= old.header().body_len;
        }
    }

    /// The first that is not behind a gap of numbers.
    pub(super) fn next(&mut self, last: Seq) -> Option<(Epoch, Entry)> {
        let first = self.ahead.first_entry()?;
        if *first.key() > last.next() {
            return None;
        }
        let (previous, entry) = first.remove();
        self.ahead_len -= entry.header().body_len;
        Some((previous, entry))
    }
}

impl Replica {
    /// Asks for what the primary has and this node has not.
    pub(super) fn fetch_what_is_missing(&mut self) {
        let now = self.now.instant;
        let Some(leader) = &self.leader else {
            return;
        };
        let is_early = self.recovery.retry_at.is_some_and(|at| now < at);
        if self.recovery.is_busy() || is_early || self.log.has(leader.last) {
            return;
        }
        let missing = leader.last.seq.0.saturating_sub(self.log.last().seq.0);
        let leader = leader.member.clone();
        // The primary has other things to do, if somebody else has it, too.
        let is_second_try = self.recovery.failures % 2 == 1;
        let donor = (missing > FAR_BEHIND && !is_second_try)
            .then(|| self.donor(|stated| stated.state.last.seq > self.log.last().seq))
            .flatten();
        self.fetch(donor.unwrap_or(leader), false);
    }

    /// Another replica that follows the same primary and has the data.
    fn donor(&self, is_fit: impl Fn(&Stated) -> bool) -> Option<MemberId> {
        let leader = self.leader.as_ref()?;
        let fit = self.stated().filter(|(member, stated)| {
            let state = &stated.state;
            !self.is_me(member)
                && **member != leader.member
                && state.kind != NodeKind::Arbiter
                && state.promised == self.promised
                && state.hears.is_some()
                && is_fit(stated)
        });
        // Those who are far do not all ask the same one.
        let fit: Vec<&MemberId> = fit.map(|(member, _)| member).collect();
        let count = u64::try_from(fit.len()).ok().filter(|count| *count > 0)?;
        let pick = usize::try_from(self.recovery.last_id % count).unwrap_or(0);
        fit.get(pick).map(|member| (*member).clone())
    }

    /// R6: what a voter that has promised has more than this candidate.
    pub(super) fn fetch_for_claim(&mut self, from: Voter) {
        let found = self
            .stated()
            .find(|(_, stated)| stated.sender.voter() == from)
            .map(|(member, _)| member.clone());
        if let Some(member) = found
            && !self.recovery.is_busy()
        {
            self.fetch(member, true);
        }
    }

    fn fetch(&mut self, to: MemberId, is_claim: bool) {
        self.recovery.last_id += 1;
        let id = self.recovery.last_id;
        let fetch = Fetch {
            sender: self.sender(),
            id,
            epoch: self.promised,
            is_claim,
            ends: self.log.ends(),
        };
        self.recovery.fetch = Some(Fetching {
            id,
            to: to.clone(),
            at: self.now.instant,
            is_claim,
        });
        self.actions.push(Action::Fetch { to, fetch });
    }

    pub(super) fn on_fetched(&mut self, fetched: Fetched) {
        let Some(fetch) = self.recovery.fetch.take_if(|fetch| fetch.id == fetched.id) else {
            return;
        };
        if fetched.sender.history != self.history || fetched.epoch != self.promised {
            self.fail_fetch(&fetch);
            return;
        }
        let is_wanted = match fetch.is_claim {
            true => matches!(self.office, Office::Candidate(_)),
            false => self.leader.is_some() && self.durable == self.promised,
        };
        match fetched.what {
            _ if !is_wanted => {}
            Supply::Entries { after, entries } => {
                self.recovery.failures = 0;
                let has_none = entries.is_empty();
                if !self.take_fetched(after, entries) || has_none {
                    // Somebody else may have more.
                    self.fail_fetch(&fetch);
                }
            }
            // What the other has is committed, as far as it gives it away.
            Supply::Released { before } => {
                self.withdraw();
                self.copy(fetch.to, before);
            }
            Supply::Apart => self.stop_apart(),
            Supply::Refused => self.fail_fetch(&fetch),
        }
    }

    /// Entries of the primary's log, or, at a candidate, of a newer one; the first follows `after`.
    /// `false` if they are of no use.
    fn take_fetched(&mut self, after: Position, mut entries: Vec<Entry>) -> bool {
        if self.recovery.is_writing() {
            return false;
        }
        if !self.log.has(after) {
            let is_committed = after.seq <= self.log.committed();
            if is_committed && self.log.epoch_at(after.seq).is_some() {
                self.stop_apart();
            }
            return false;
        }
        let is_known = |entry: &&Entry| {
            let point = entry.point();
            let (epoch, seq) = (point.epoch, point.seq);
            self.log.has(Position { epoch, seq })
        };
        let known_count = entries.iter().take_while(is_known).count();
        let known = entries[..known_count].last();
        let known = known.map_or(after.seq, |entry| entry.header().seq);
        if matches!(self.office, Office::Replica) {
            self.matched = self.matched.max(known);
        }
        self.recovery.fetched = entries.split_off(known_count);
        let is_conflict = self.log.last().seq > known;
        if is_conflict && !self.recovery.fetched.is_empty() {
            self.cut_after(known);
        } else {
            self.append_fetched();
        }
        true
    }

    /// What is committed here is not in the log of whom it follows.
    fn stop_apart(&mut self) {
        let committed = self.log.committed();
        self.stop(Fatal::BelowCommit {
            after: Seq(committed.0.saturating_sub(1)),
            committed,
            epoch: self.promised,
        });
    }

    /// After a cut, or if none is needed.
    pub(super) fn append_fetched(&mut self) {
        let entries = std::mem::take(&mut self.recovery.fetched);
        let first = entries.first().map(|entry| entry.header().seq);
        // A crash of a cut in between, or a full disk, may have left less.
        if first.is_some_and(|first| first == self.log.last().seq.next()) {
            let is_taken = entries.iter().all(|entry| self.push(entry));
            if !is_taken {
                return;
            }
            if matches!(self.office, Office::Replica) && self.leader.is_some() {
                self.matched = self.log.last().seq;
            }
            self.actions.push(Action::Append(entries));
        }
        self.try_office();
    }

    pub(super) fn on_fetch_failed(&mut self, id: u64) {
        if let Some(fetch) = self.recovery.fetch.take_if(|fetch| fetch.id == id) {
            self.fail_fetch(&fetch);
        }
        if self
            .recovery
            .copying
            .take_if(|copying| *copying == id)
            .is_some()
        {
            self.recovery.failures += 1;
            self.recovery.retry_at = Some(self.now.instant + 5 * FETCH_RETRY);
        }
    }

    fn fail_fetch(&mut self, fetch: &Fetching) {
        self.recovery.failures += 1;
        self.recovery.retry_at = Some(self.now.instant + FETCH_RETRY);
        if fetch.is_claim {
            self.withdraw();
        }
    }

    /// The journals of others begin behind what is missing here.
    ///
    /// So is what is committed here, and acknowledged: what the other has released is committed,
    /// and this log has other entries there, or none. Another node may have less.
    fn copy(&mut self, from: MemberId, at_least: Seq) {
        let newest_only = self.options.copies_newest_only;
        self.recovery.last_id += 1;
        let id = self.recovery.last_id;
        self.recovery.copying = Some(id);
        self.actions.push(Action::Copy {
            id,
            from,
            at_least,
            newest_only,
        });
        self.tell(Notice::Copying);
    }

    /// What the copy holds is committed. So it is in the log of whoever is primary, now or later.
    pub(super) fn on_copied(&mut self, id: u64, log: LogStart) {
        if self
            .recovery
            .copying
            .take_if(|copying| *copying == id)
            .is_none()
        {
            return;
        }
        self.recovery.forget();
        self.log = Log::new(log);
        self.matched = self.log.committed();
        self.recovery.failures = 0;
    }

    /// Every tick: gives up what takes too long.
    pub(super) fn look_at_recovery(&mut self) {
        let now = self.now.instant;
        let is_late = |fetch: &mut Fetching| now >= fetch.at + FETCH_TIMEOUT;
        if let Some(fetch) = self.recovery.fetch.take_if(is_late) {
            self.fail_fetch(&fetch);
        }
        self.recovery.no_room_until.take_if(|until| now >= *until);
    }

    /// The log ends earlier than this node believed. What it has acknowledged is there.
    pub(super) fn on_no_room(&mut self, last: Point, last_tid: Tid) {
        self.leave_office();
        if !self.recovery.is_cutting {
            // Else the end is told when it is cut.
            self.log.reset(last, last_tid);
            self.matched = self.matched.min(last.seq);
        }
        self.recovery.forget();
        if self.recovery.no_room_until.is_none() {
            self.tell(Notice::NoRoom);
        }
        self.recovery.no_room_until = Some(self.now.instant + NO_ROOM_RETRY);
    }

    /// Gives what it has to those who ask: all to the candidate that it has promised itself to,
    /// else what is known to be in the log of the primary that both follow.
    pub(super) fn on_requested(&mut self, from: MemberId, fetch: &Fetch) {
        if fetch.sender.history != self.history {
            return;
        }
        let is_same = fetch.epoch == self.promised && fetch.epoch == self.durable;
        let is_primary = matches!(self.office, Office::Primary(_));
        let is_steady = !self.recovery.is_cutting && self.recovery.copying.is_none();
        let limit = match () {
            () if !is_same || !is_steady => None,
            () if fetch.is_claim => (fetch.epoch.node == fetch.sender.node).then_some(self.last()),
            () if is_primary => Some(self.last()),
            () => self.leader.is_some().then(|| Position {
                epoch: self.log.epoch_at(self.matched).unwrap_or_default(),
                seq: self.matched,
            }),
        };
        let before = self.log.before().seq;
        let committed = fetch.ends.last().map_or(Seq::ZERO, |end| end.seq);
        let (what, entries) = match (limit, self.log.common(&fetch.ends)) {
            (None, _) => (Supply::Refused, None),
            (Some(_), None) if committed < before => (Supply::Released { before }, None),
            (Some(limit), None) if committed > limit.seq && !is_primary => (Supply::Refused, None),
            (Some(_), None) => (Supply::Apart, None),
            (Some(_), Some(after)) if after.seq < before => (Supply::Released { before }, None),
            // What is behind it in this log may be another one's in the primary's.
            (Some(limit), Some(after)) if after.seq > limit.seq => (Supply::Refused, None),
            (Some(limit), Some(after)) => {
                let entries = Vec::new();
                let range = (after.seq.next(), limit.seq);
                let what = Supply::Entries { after, entries };
                (what, (range.0 <= range.1).then_some(range))
            }
        };
        let answer = Box::new(Fetched {
            sender: self.sender(),
            id: fetch.id,
            epoch: self.promised,
            what,
        });
        self.actions.push(Action::Supply {
            to: from,
            answer,
            entries,
        });
    }
}
