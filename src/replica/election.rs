//! Who is to be primary: claims, promises, and the way into office. R1 to R6.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event::Action;
use super::members::{Members, Voter};
use super::message::{Content, NodeKind, Position, Record, Role, Sender};
use super::mutant::{self, Mutant};
use super::view::{Stated, View};
use super::{Office, Replica};
use crate::group::MemberId;
use crate::ids::{Epoch, NodeId, Tid};
use crate::limits::EPOCH_COUNTER_MAX;

/// One who has claimed an epoch.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) epoch: Epoch,
    since: Instant,
    sent: Option<Instant>,
    /// By the will of the primary of this epoch.
    handover: Option<Epoch>,
    /// It was in office until now, and its clients wait.
    pub(super) is_renewal: bool,
    pub(super) promises: BTreeMap<Voter, Promised>,
}

/// Where a log ended when its owner promised, and what an arbiter has on record.
#[derive(Clone, Debug)]
pub(super) struct Promised {
    pub(super) last: Position,
    record: Option<Record>,
}

/// The newest log that is known of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest<'a> {
    /// Where it ends.
    last: Position,
    /// Where the primary is to be, as of there.
    home: &'a str,
    /// Who is counted, as of there.
    pub(super) members: &'a Members,
}

/// What a promise is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Our own claim.
    Claim,
    /// Our own claim, in office: its clients wait.
    Renewal,
    /// Somebody's claim: this member is told.
    Answer(MemberId),
    /// A primary that is in office already (R4).
    Adopt,
}

/// Whether the first log is newer than the other one.
pub(super) fn is_newer(last: Position, than: Position) -> bool {
    if mutant::is(Mutant::LogsNotCompared) {
        return false;
    }
    if mutant::is(Mutant::SeqBeforeEpoch) {
        return (last.seq, last.epoch) > (than.seq, than.epoch);
    }
    last > than
}

impl Replica {
    /// R2: promises a higher epoch, and leaves every office of a lower one (R3). Others hear of it
    /// in [`Self::on_promised`].
    pub(super) fn promise(&mut self, epoch: Epoch, purpose: Purpose) {
        let is_renewal = matches!(purpose, Purpose::Renewal);
        if !mutant::is(Mutant::OfficeNotLeft) || matches!(purpose, Purpose::Claim) || is_renewal {
            self.leave_office_for(is_renewal);
        }
        self.promised = epoch;
        self.leader = None;
        self.matched = self.log.committed();
        self.recovery.forget();
        self.promised_to = None;
        self.quiet_until = self.now.instant + self.pace();
        self.promising = Some(purpose);
        if mutant::is(Mutant::PromiseNotSynced) {
            self.on_promised(epoch);
        } else {
            self.actions.push(Action::Promise(epoch));
        }
    }

    pub(super) fn on_promised(&mut self, epoch: Epoch) {
        self.durable = match mutant::is(Mutant::PromiseOfLowerEpoch) {
            true => epoch,
            false => self.durable.max(epoch),
        };
        if epoch != self.promised {
            return;
        }
        match self.promising.take() {
            Some(Purpose::Claim | Purpose::Renewal) => {
                if let Office::Candidate(candidate) = &mut self.office {
                    let promised = Promised {
                        last: self.log.last(),
                        record: None,
                    };
                    candidate.promises.insert(self.me, promised);
                }
                self.say_claim();
                self.try_office();
            }
            Some(Purpose::Answer(member)) => self.say_promise(&member),
            Some(Purpose::Adopt) | None => {}
        }
    }

    fn say_promise(&mut self, to: &MemberId) {
        let is_arbiter = self.is_arbiter();
        let content = Content::Promise {
            epoch: self.durable,
            last: match is_arbiter {
                true => Position::default(),
                false => self.log.last(),
            },
            record: is_arbiter.then(|| self.log.record()),
        };
        self.send_one(to, content);
    }

    fn say_claim(&mut self) {
        let Office::Candidate(candidate) = &mut self.office else {
            return;
        };
        candidate.sent = Some(self.now.instant);
        let (epoch, handover) = (candidate.epoch, candidate.handover);
        self.send_all(Content::Claim { epoch, handover });
    }

    pub(super) fn on_claim(
        &mut self,
        from: &MemberId,
        sender: &Sender,
        epoch: Epoch,
        handover: Option<Epoch>,
    ) {
        if epoch.node != sender.node || epoch.node == self.me.node {
            return;
        }
        if epoch == self.promised && epoch == self.durable {
            // What was promised is said again: the answer may have been lost.
            if self.leader.is_none() && self.promised_to == Some(sender.voter()) {
                self.say_promise(from);
            }
            return;
        }
        let is_lower = epoch < self.promised && !mutant::is(Mutant::PromiseOfLowerEpoch);
        // Who hears of a primary does not help to replace it, unless that wants it.
        let is_wanted = handover == Some(self.promised) || self.is_leader(from);
        let is_reticent = self.now.instant < self.reticent_until;
        let is_content = (self.hears().is_some() || is_reticent) && !is_wanted;
        if epoch == self.promised || is_lower || is_content {
            if let Some(view) = &mut self.view {
                view.wants_state = true;
            }
            return;
        }
        self.promise(epoch, Purpose::Answer(from.clone()));
        self.promised_to = Some(sender.voter());
    }

    fn is_leader(&self, member: &MemberId) -> bool {
        let leader = self.leader.as_ref();
        leader.is_some_and(|leader| leader.member == *member)
    }

    pub(super) fn on_promise(
        &mut self,
        from: Voter,
        epoch: Epoch,
        last: Position,
        record: Option<Record>,
    ) {
        if let Office::Candidate(candidate) = &mut self.office
            && candidate.epoch == epoch
        {
            let promised = Promised { last, record };
            candidate.promises.insert(from, promised);
            self.try_office();
        }
    }

    /// R5 and R6: into office, if a quorum has promised and none of those has a newer log; or fetch
    /// what is newer.
    pub(super) fn try_office(&mut self) {
        let Office::Candidate(candidate) = &self.office else {
            return;
        };
        if self.durable != candidate.epoch || self.recovery.is_busy() {
            return;
        }
        let mine = self.log.last();
        // Its own log tells who is counted, and no other one.
        let members = &self.log.settings().members;
        let is_counted = |voter: &Voter| {
            let promised = candidate.promises.get(voter);
            promised.is_some_and(|promised| !is_newer(promised.last, mine))
        };
        if members.is_voter(&self.me)
            && members.is_majority(is_counted)
            && self.knows_all(members, candidate, is_counted)
        {
            self.take_office();
            return;
        }
        // What it lacks may say that it is counted, and others than it knows of.
        let newest = self.newest().members;
        let is_known = |voter: &Voter| candidate.promises.contains_key(voter);
        let are_enough = members.is_majority(is_known) || newest.is_majority(is_known);
        // Others may have what is committed nowhere, and what only they could make so.
        let newer = candidate.promises.iter();
        let newer = newer.filter(|(voter, _)| members.is_voter(voter) || newest.is_voter(voter));
        let newer = newer.max_by_key(|(_, promised)| promised.last);
        let newer = newer.filter(|(_, promised)| is_newer(promised.last, mine));
        if let Some((voter, _)) = newer
            && are_enough
        {
            let voter = *voter;
            // Others have committed: what its clients have voted on is old.
            if let Office::Candidate(candidate) = &mut self.office {
                candidate.is_renewal = false;
            }
            self.fetch_for_claim(voter);
        } else if !self.may_be_counted() {
            self.withdraw();
        }
    }

    /// With an arbiter: whether somebody who was in sync last, as far as those who are counted
    /// know, is among them.
    fn knows_all(
        &self,
        members: &Members,
        candidate: &Candidate,
        is_counted: impl Fn(&Voter) -> bool,
    ) -> bool {
        let mine = self.log.record();
        let records = candidate.promises.iter();
        let records = records.filter_map(|(voter, promised)| {
            let record = promised.record.as_ref()?;
            members.electors().any(|who| who == voter).then_some(record)
        });
        let newest = records.max_by_key(|record| record.position);
        let newest = newest.filter(|record| record.position > mine.position);
        newest
            .map_or(members, |record| &record.members)
            .knows_all(is_counted)
    }

    /// Every tick: says a claim again, and gives it up.
    pub(super) fn look_at_candidate(&mut self) {
        let (now, pace) = (self.now.instant, self.pace());
        let Office::Candidate(candidate) = &self.office else {
            return;
        };
        if now >= candidate.since + 2 * pace && !self.recovery.is_fetching() {
            self.withdraw();
        } else if candidate.sent.is_some_and(|at| now >= at + pace / 4) {
            self.say_claim();
            self.try_office();
        }
    }

    /// Gives a claim up. The next one comes later each time, and not at the same time as that of
    /// others.
    pub(super) fn withdraw(&mut self) {
        if matches!(self.office, Office::Candidate(_)) {
            self.leave_office();
            self.failures = (self.failures + 1).min(4);
            let ranks = self.log.settings().members.voters.iter();
            let rank = ranks.take_while(|voter| **voter != self.me).count();
            let steps = u32::try_from(rank).unwrap_or(0) + 1;
            let count = self.log.settings().members.voters.len();
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let pace = self.pace();
            // Who has promised keeps quiet for a while, and those behind it in rank for longer:
            // after a second failure all of them get their turn.
            let turns = match self.failures {
                1 => Duration::ZERO,
                _ => pace * 2 + pace * count,
            };
            self.quiet_until = self.now.instant + turns + pace / 8 * steps;
        }
    }

    /// R1: claims an epoch above all that it knows of.
    pub(super) fn claim(&mut self, handover: Option<Epoch>) {
        let is_renewal = matches!(self.office, Office::Primary(_));
        let stated = self.view.iter().flat_map(View::stated);
        let seen = stated.map(|(_, stated)| stated.state.promised.counter);
        let seen = seen.filter(|counter| *counter < EPOCH_COUNTER_MAX);
        let highest = seen.max().unwrap_or(0).max(self.promised.counter);
        let epoch = Epoch {
            counter: highest.saturating_add(1),
            node: self.me.node,
        };
        if epoch <= self.promised {
            return;
        }
        self.promise(
            epoch,
            match is_renewal {
                true => Purpose::Renewal,
                false => Purpose::Claim,
            },
        );
        self.office = Office::Candidate(Box::new(Candidate {
            epoch,
            since: self.now.instant,
            sent: None,
            handover,
            is_renewal,
            promises: BTreeMap::new(),
        }));
        if self.durable == epoch {
            self.promising = Some(Purpose::Claim);
            self.on_promised(epoch);
        }
    }

    /// Claims if no primary is there, enough others are, and this is the best of them; or if the
    /// better ones do nothing.
    pub(super) fn look_for_primary(&mut self) {
        let now = self.now.instant;
        if !self.is_vacant() {
            self.recovery.vacant_since = None;
            return;
        }
        let since = *self.recovery.vacant_since.get_or_insert(now);
        let Some(rank) = self.rank() else {
            return;
        };
        // Who has just started promises nothing yet. What the best of them has claimed it will say
        // again.
        let since = match rank {
            0 => since,
            _ => since.max(self.reticent_until),
        };
        if now >= self.quiet_until && now >= since + self.pace() * 3 / 4 * rank {
            self.claim(None);
        }
    }

    /// Whether nobody is in office, as far as enough of the others know.
    pub(super) fn is_vacant(&self) -> bool {
        let Some(view) = &self.view else {
            return false;
        };
        let is_idle = matches!(self.office, Office::Replica)
            && self.promising.is_none()
            && !self.recovery.is_busy();
        if !view.is_open || !is_idle || self.hears().is_some() {
            return false;
        }
        self.newest().members.is_majority(|voter| {
            let mut stated = view.stated().map(|(_, stated)| stated);
            let stated = stated.find(|stated| stated.sender.voter() == *voter);
            *voter == self.me || stated.is_some_and(|stated| stated.state.hears.is_none())
        })
    }

    /// How many of those who could be primary are better than this node; `None` if it cannot be.
    fn rank(&self) -> Option<u32> {
        let newest = self.newest();
        let members = newest.members;
        // It was given the office, and was the last to hold it: it comes after all who have a
        // priority, but where there is nobody else, it need not be asked again. So does who is
        // counted no more by what may never be committed, and who stands aside.
        let was_given = newest.last.epoch.node == self.me.node;
        let is_last_resort =
            self.options.priority == 0 || self.stands_aside || !members.is_voter(&self.me);
        let is_home = |site: &str| newest.home.is_empty() || *site == *newest.home;
        let is_whole = self.log.history_from() == Tid::ZERO;
        let may_lead = is_whole || self.options.leads_without_history;
        if !self.may_be_counted()
            || self.options.priority == 0 && !was_given
            || !is_home(&self.options.site)
            || !may_lead
            || self.clock_error(self.now.wall).is_some()
        {
            return None;
        }
        type Merit = (Position, u32, Reverse<NodeId>);
        let mine: Merit = (
            self.log.last(),
            self.options.priority,
            Reverse(self.me.node),
        );
        let better = self.stated().filter(|(member, stated)| {
            let state = &stated.state;
            let merit: Merit = (state.last, state.priority, Reverse(stated.sender.node));
            !self.is_me(member)
                && state.kind == NodeKind::Data
                && state.hears.is_none()
                && state.role != Role::Primary
                && state.priority > 0
                && is_home(&state.site)
                && members.is_voter(&stated.sender.voter())
                && self.clock_error(self.clock_of(stated)).is_none()
                && (merit > mine || is_last_resort)
        });
        u32::try_from(better.count()).ok()
    }

    /// The newest log of those that are here and counted by it, or by one that led to it. Who is
    /// at home and has an older one fetches what it lacks. What others have is committed only if
    /// voters have it, too.
    ///
    /// As long as those who are here are not enough by it, somebody whom it does not count is
    /// heeded as well, who has a newer one that counts both: what made it a voter may be lost but
    /// there.
    pub(super) fn newest(&self) -> Newest<'_> {
        let settings = self.log.settings();
        let mut newest = Newest {
            last: self.log.last(),
            home: &settings.home,
            members: &settings.members,
        };
        let is_here = |voter: &Voter| {
            let mut stated = self.stated();
            *voter == self.me || stated.any(|(_, stated)| stated.sender.voter() == *voter)
        };
        loop {
            let newer = |is_heeded: &dyn Fn(&Voter, &Members) -> bool| {
                let heeded = self
                    .stated()
                    .filter(|(member, Stated { sender, state, .. })| {
                        !self.is_me(member)
                            && state.last > newest.last
                            && is_heeded(&sender.voter(), &state.members)
                    });
                heeded
                    .map(|(_, stated)| &stated.state)
                    .max_by_key(|state| state.last)
            };
            let mut found = newer(&|voter, _| newest.members.is_voter(voter));
            if found.is_none() && !newest.members.is_majority(is_here) {
                found = newer(&|voter, theirs| theirs.is_voter(voter) && theirs.is_voter(&self.me));
            }
            match found {
                Some(state) => {
                    newest = Newest {
                        last: state.last,
                        home: &state.home,
                        members: &state.members,
                    };
                }
                None => return newest,
            }
        }
    }

    /// Whether it is a voter by its own log, or by the newest one: a node that has lost what made
    /// it one is needed, too.
    pub(super) fn may_be_counted(&self) -> bool {
        let own = &self.log.settings().members;
        own.is_voter(&self.me) || self.newest().members.is_voter(&self.me)
    }
}
