//! The one in office: proposals, counting, and the signs of life. R7, R10, R14.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::admin::Duties;
use super::event::{Action, Event, Notice, Outcome, Token};
use super::members::{Members, Voter};
use super::message::{Content, Position, Record};
use super::mutant::{self, Mutant};
use super::settings::{Change, Kind, Settings, StorageName};
use super::{Office, Replica};
use crate::entry::{Body, Entry};
use crate::ids::{Epoch, Oid, Seq, Tid};
use crate::limits::BEATS_MAX;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) epoch: Epoch,
    /// The first entry of the epoch.
    pub(super) barrier: Seq,
    /// That is committed and applied.
    pub(super) is_open: bool,
    /// When it took office.
    pub(super) since: Instant,
    /// When it did, or when it heard of somebody after it had heard of nobody for a while.
    pub(super) woken: Instant,
    pub(super) acks: BTreeMap<Voter, Acked>,
    /// When signs of life were sent: some of the last ones.
    beats: VecDeque<(u64, Instant)>,
    pub(super) beat: u64,
    /// What the arbiter has on record.
    pub(super) recorded: Position,
    /// What it was asked to put on record.
    record_said: Position,
    /// A member has promised a higher epoch, since then.
    outdone_since: Option<Instant>,
    pub(super) duties: Duties,
}

/// What a member has acknowledged in this epoch.
#[derive(Debug)]
pub(super) struct Acked {
    pub(super) seq: Seq,
    pub(super) applied: Seq,
    pub(super) beat: u64,
    /// It obeyed at this time.
    pub(super) contact: Instant,
    /// It had all, or got more, at this time.
    pub(super) progress: Instant,
}

impl Primary {
    /// A member that obeys this primary, and has at this time, has been heard of. Nobody has for a
    /// while if so much time was lost.
    pub(super) fn on_contact(&mut self, from: Voter, at: Instant, silence: Duration, now: Instant) {
        if self.heard().is_some_and(|heard| at > heard + silence) {
            self.woken = now;
        }
        if let Some(acked) = self.acks.get_mut(&from) {
            acked.contact = acked.contact.max(at);
        }
    }

    /// When somebody obeyed last.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.acks.values().map(|acked| acked.contact).max()
    }
}

impl Replica {
    /// R7.
    pub(super) fn take_office(&mut self) {
        let epoch = self.promised;
        let now = self.now.instant;
        let settings = self.log.settings();
        let jump = settings.jump;
        let settings = Settings {
            home: self.options.site.clone(),
            jump: Tid::ZERO,
            ..settings.clone()
        };
        let tid = match jump == Tid::ZERO || mutant::is(Mutant::JumpForgotten) {
            true => Tid::ZERO,
            false => self.next_tid().max(jump),
        };
        // Those who have promised are there.
        let mut acks = BTreeMap::new();
        if let Office::Candidate(candidate) = &self.office {
            for voter in candidate.promises.keys().filter(|voter| **voter != self.me) {
                acks.insert(*voter, Acked::none(now));
            }
        }
        let barrier = match mutant::is(Mutant::NoBarrier) {
            true => self.log.last().seq,
            false => self.log.last().seq.next(),
        };
        let duties = Duties::new(&settings);
        self.office = Office::Primary(Box::new(Primary {
            epoch,
            barrier,
            is_open: false,
            since: now,
            woken: now,
            acks,
            beats: VecDeque::new(),
            beat: 0,
            recorded: Position::default(),
            record_said: Position::default(),
            outdone_since: None,
            duties,
        }));
        self.failures = 0;
        if !mutant::is(Mutant::NoBarrier) {
            self.propose_change(Change::Barrier(settings), tid);
        }
        self.beat();
    }

    /// Leaves the office that it is in, if any. What was proposed may be committed all the same.
    pub(super) fn leave_office(&mut self) {
        self.leave_office_for(false);
    }

    /// The same; `is_renewal` if it claims the next epoch at once.
    pub(super) fn leave_office_for(&mut self, is_renewal: bool) {
        let office = std::mem::replace(&mut self.office, Office::Replica);
        self.recovery.vacant_since = None;
        self.matched = self.log.committed();
        if let Office::Primary(primary) = office {
            if !is_renewal {
                self.tell(Notice::Demoted(primary.epoch));
            }
            self.drop_duties(primary.duties, is_renewal);
        }
    }

    /// R14.
    fn next_tid(&self) -> Tid {
        let clock = Tid::from_unix_time(self.now.wall);
        match mutant::is(Mutant::TidOfTheClock) {
            true => clock,
            false => clock.max(self.log.last_tid().next()),
        }
    }

    pub(super) fn propose_change(&mut self, change: Change, tid: Tid) -> Seq {
        let kind = change.kind();
        // Settings are far shorter than a body may be.
        let body = Body::new(change.encode()).unwrap_or_default();
        self.propose(kind, tid, body, Some(change))
    }

    /// Appends an entry to the log, and sends it to all, if that may be now; else it is fetched.
    fn propose(&mut self, kind: Kind, tid: Tid, body: Body, change: Option<Change>) -> Seq {
        let previous = self.log.last().epoch;
        let number = kind.number();
        let entry = Entry::with_body(self.log.last_point(), self.promised, number, tid, body);
        self.log.push(entry.header(), change);
        self.matched = self.log.last().seq;
        self.actions.push(Action::Append(vec![entry.clone()]));
        if self.is_unblocked() {
            let committed = self.log.committed();
            self.send_all(Content::Propose {
                previous,
                committed,
                entry,
            });
        }
        self.matched
    }

    pub(super) fn on_finish(
        &mut self,
        token: Token,
        body: Body,
        tid: Option<Tid>,
        oids: &[(StorageName, Oid)],
    ) {
        let is_open = match &self.office {
            Office::Primary(primary) => primary.is_open || mutant::is(Mutant::OpenBeforeBarrier),
            _ => false,
        };
        if !is_open && self.is_renewing() {
            self.finishes.hold(Event::Finish {
                token,
                body,
                tid,
                oids: oids.to_vec(),
            });
            return;
        }
        let is_possible = tid.is_none_or(|tid| tid > self.log.last_tid());
        if !is_open || !is_possible {
            let outcome = Outcome::Lost;
            self.actions.push(Action::Reply { token, outcome });
            return;
        }
        for (storage, oid) in oids {
            self.note_stored(storage, *oid);
        }
        let tid = tid.unwrap_or_else(|| self.next_tid());
        let seq = self.propose(Kind::Transaction, tid, body, None);
        self.finishes.expect(self.promised, seq, token, tid);
    }

    pub(super) fn on_ack(&mut self, from: Voter, epoch: Epoch, seq: Seq, applied: Seq, beat: u64) {
        let members = self.log.settings().members.clone();
        let (now, pace) = (self.now.instant, self.pace());
        let last = self.log.last().seq;
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        if epoch != primary.epoch && !mutant::is(Mutant::OldAcksCounted) {
            return;
        }
        let from = match mutant::is(Mutant::ForeignDiskCounted) {
            true => *members
                .electors()
                .find(|who| who.node == from.node)
                .unwrap_or(&from),
            false => from,
        };
        // The last that was noted before it: rather too early than too late.
        let after = primary.beats.partition_point(|(sent, _)| *sent <= beat);
        let sent = after.checked_sub(1).and_then(|at| primary.beats.get(at));
        let contact = sent.map(|(_, at)| *at);
        let acked = primary.acks.entry(from);
        let acked = acked.or_insert_with(|| Acked::none(contact.unwrap_or(now)));
        if seq > acked.seq || seq >= last {
            acked.progress = now;
        }
        acked.seq = acked.seq.max(seq);
        acked.applied = acked.applied.max(applied);
        acked.beat = acked.beat.max(beat);
        if let Some(contact) = contact {
            primary.on_contact(from, contact, pace / 2, now);
        }
    }

    pub(super) fn on_recorded(&mut self, from: Voter, position: Position) {
        let settings = self.log.settings();
        let arbiter = settings.members.arbiter.as_ref();
        let is_arbiter = arbiter.is_some_and(|arbiter| arbiter.node == from);
        if let Office::Primary(primary) = &mut self.office
            && is_arbiter
            && position.epoch == primary.epoch
        {
            primary.recorded = primary.recorded.max(position);
        }
    }

    /// R10: advances the commit mark to an entry of this epoch that enough have synced.
    pub(super) fn advance(&mut self) {
        let Office::Primary(primary) = &self.office else {
            return;
        };
        if self.durable != primary.epoch {
            return;
        }
        let synced = |voter: &Voter| self.synced_at(primary, voter);
        let committed = self.log.committed();
        let mut end = self.log.last().seq;
        let mut reached = committed;
        // The members of the last entries first: what commits a change commits all before it.
        for (first, members) in self.log.regimes() {
            let seq = members.quorum_seq(synced).min(end);
            let has = |voter: &Voter| match &members.arbiter {
                Some(arbiter) if arbiter.node == *voter => {
                    primary.recorded.seq >= first && primary.recorded.epoch == primary.epoch
                }
                _ => synced(voter) >= first,
            };
            let is_settled = first <= committed;
            if seq >= first && (is_settled || members.is_on_record(has)) {
                reached = seq;
                break;
            }
            end = Seq(first.0.saturating_sub(1));
        }
        let has_arbiter = self.log.settings().members.arbiter.is_some();
        let is_own = reached >= primary.barrier || mutant::is(Mutant::OldEntriesCounted);
        if reached > committed && is_own {
            self.log.commit(reached);
            if self.is_unblocked() {
                self.announce();
            }
        }
        if has_arbiter && self.is_unblocked() {
            self.say_record();
        }
    }

    /// Says what is committed; a sign of life, too.
    fn announce(&mut self) {
        let (committed, last, wall) = (self.log.committed(), self.log.last(), self.now.wall);
        let now = self.now.instant;
        let noted_every = self.tick();
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        primary.beat += 1;
        let noted = primary.beats.back();
        if noted.is_none_or(|(_, at)| now >= *at + noted_every) {
            primary.beats.push_back((primary.beat, now));
        }
        if primary.beats.len() > BEATS_MAX {
            primary.beats.pop_front();
        }
        let (epoch, beat) = (primary.epoch, primary.beat);
        self.send_all(Content::Commit {
            epoch,
            committed,
            last,
            beat,
            wall,
        });
    }

    /// A sign of life, and what has to be said with it.
    pub(super) fn beat(&mut self) {
        if !self.is_unblocked() {
            return;
        }
        self.announce();
        if let Office::Primary(primary) = &mut self.office {
            primary.record_said = primary.recorded;
        }
        self.say_record();
    }

    fn synced_at(&self, primary: &Primary, voter: &Voter) -> Seq {
        match *voter == self.me {
            true if mutant::is(Mutant::OwnSyncNotAwaited) => self.log.last().seq,
            true => self.log.synced(),
            false => primary.acks.get(voter).map_or(Seq::ZERO, |acked| acked.seq),
        }
    }

    /// Asks the arbiter to put on record who is in sync, when they have synced that. Before, one
    /// who is to be in sync, and lacks what is committed, would be taken for one that has it.
    fn say_record(&mut self) {
        let Office::Primary(primary) = &self.office else {
            return;
        };
        let said = primary.record_said;
        let ready = self.log.regimes().find(|(first, members)| {
            let synced = members.quorum_seq(|voter| self.synced_at(primary, voter));
            synced >= *first || mutant::is(Mutant::RecordedEarly)
        });
        let Some((seq, members)) = ready else {
            return;
        };
        let epoch = self.log.epoch_at(seq).unwrap_or_default();
        let position = Position { epoch, seq };
        let arbiter = members.arbiter.as_ref().map(|arbiter| arbiter.node.node);
        if position <= said || epoch != primary.epoch {
            return;
        }
        let members = members.clone();
        let view = self.view.as_ref();
        let found = arbiter.and_then(|node| view?.find(node));
        if let Some(member) = found.map(|(member, _)| member.clone()) {
            self.send_one(&member, Content::Record(Record { position, members }));
        }
        if let Office::Primary(primary) = &mut self.office {
            primary.record_said = position;
        }
    }

    /// The barrier of a view has been passed.
    pub(super) fn on_open_view(&mut self) {
        self.beat();
        if let Some(leader) = &mut self.leader {
            leader.say_again();
        }
    }

    /// Whether enough have obeyed within this time.
    pub(super) fn has_lease(&self, primary: &Primary, within: Duration) -> bool {
        self.is_majority_of(&self.log.settings().members, primary, within)
    }

    /// Whether a quorum of these members has obeyed within this time.
    pub(super) fn is_majority_of(
        &self,
        members: &Members,
        primary: &Primary,
        within: Duration,
    ) -> bool {
        let now = self.now.instant;
        members.is_majority(|voter| {
            let acked = primary.acks.get(voter);
            *voter == self.me || acked.is_some_and(|acked| now < acked.contact + within)
        })
    }

    /// Every tick: signs of life; an office that is over, or is to be renewed.
    pub(super) fn look_at_lease(&mut self) {
        let (now, pace) = (self.now.instant, self.pace());
        let Office::Primary(primary) = &self.office else {
            return;
        };
        if !self.has_lease(primary, self.options.lease) || self.is_apart(primary) {
            self.leave_office();
            // What others have done since may still have to come.
            self.quiet_until = now + pace;
            return;
        }
        let last = primary.beats.back();
        let is_due = last.is_none_or(|(_, at)| now >= *at + pace / 4);
        let is_outdone = self.view.iter().flat_map(super::view::View::stated);
        let is_outdone = is_outdone
            .filter(|(_, stated)| stated.state.promised > primary.epoch)
            .count()
            > 0;
        if is_due {
            self.beat();
        }
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        if !is_outdone {
            primary.outdone_since = None;
        } else if now >= *primary.outdone_since.get_or_insert(now) + pace / 2 {
            // That member cannot obey this epoch any more. All can obey a higher one.
            self.claim(None);
        }
    }
}

impl Acked {
    const fn none(contact: Instant) -> Self {
        Self {
            seq: Seq::ZERO,
            applied: Seq::ZERO,
            beat: 0,
            contact,
            progress: contact,
        }
    }
}
