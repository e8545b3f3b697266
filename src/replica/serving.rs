//! What clients may do, what they get to see, and how their finishes end. R12, R13.

use std::collections::BTreeMap;
use std::time::Instant;

use super::event::{Action, Event, Notice, Now, Outcome, Readers, Serving, Token, Writers};
use super::message::{Content, Position};
use super::mutant::{self, Mutant};
use super::{Office, Replica};
use crate::group::MemberId;
use crate::ids::{Epoch, Seq, Tid};
use crate::limits::CONFIRMS_MAX;

/// Finishes that have not ended, and what was told to the server.
#[derive(Debug, Default)]
pub(super) struct Finishes {
    /// By the place of their entries. As many as were voted at most.
    pending: BTreeMap<(Seq, Epoch), (Token, Tid)>,
    /// Who wants to know what is committed.
    confirms: Vec<Confirm>,
    /// Names the questions; greater than those before the start, as far as clocks can tell.
    last_id: u64,
    served: Serving,
    /// What came while the office was being renewed.
    held: Vec<Event>,
}

/// Somebody wants to know what is committed.
#[derive(Debug)]
struct Confirm {
    asked_by: Asker,
    id: u64,
    since: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Asker {
    /// This node's server.
    Server(Token),
    /// A replica, by its question.
    Member(MemberId, u64),
}

#[derive(Debug)]
enum Stage {
    /// The primary: who obeys this sign of life, or a later one, had not promised anything higher
    /// when it was asked.
    Beat(u64),
    /// The replica has not asked yet.
    Waiting,
    /// It has.
    Asked(Instant),
    /// When this is applied, the answer is there.
    Apply(Seq),
}

impl Finishes {
    /// What clients were told that they may do.
    pub(super) const fn served(&self) -> Serving {
        self.served
    }

    pub(super) fn new(now: Now) -> Self {
        Self {
            last_id: first_id(now),
            ..Self::default()
        }
    }

    /// Keeps what is to be done when the office is renewed. As many as were voted, and as wait for
    /// oids, at most.
    pub(super) fn hold(&mut self, event: Event) {
        self.held.push(event);
    }

    pub(super) fn expect(&mut self, epoch: Epoch, seq: Seq, token: Token, tid: Tid) {
        self.pending.insert((seq, epoch), (token, tid));
    }

    /// Whether a finish has not ended.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// A number that is greater than those of the process before, if the clock was not set back.
pub(super) fn first_id(now: Now) -> u64 {
    u64::try_from(now.wall.as_nanos()).unwrap_or(u64::MAX / 2)
}

impl Replica {
    /// R12: what is committed, and on stable storage here.
    pub(super) fn apply(&mut self) {
        if self.recovery.copying.is_some() || self.recovery.is_cutting || self.is_arbiter() {
            return;
        }
        let through = match () {
            () if mutant::is(Mutant::ExposeOnReceipt) => self.log.last().seq,
            () if mutant::is(Mutant::AppliedBeforeSync) => self.log.committed(),
            () => self.log.committed().min(self.log.synced()),
        };
        if let Some(through) = self.log.begin_apply(through) {
            self.actions.push(Action::Apply { through });
        }
    }

    pub(super) fn on_applied(&mut self, through: Seq) {
        self.log.on_applied(through);
    }

    /// R25: tells how finishes have ended, in the order of the log. What was cut here may be
    /// committed elsewhere: only what is committed tells. Epochs rise along the log, so behind an
    /// entry of a later one there is never one of theirs; else a finish would wait, with its locks,
    /// for others that may wait for these.
    pub(super) fn end_finishes(&mut self) {
        let (committed, applied) = (self.log.committed(), self.log.applied());
        let settled = self.log.epoch_at(committed).unwrap_or_default();
        while let Some((&(seq, epoch), &(token, tid))) = self.finishes.pending.first_key_value() {
            let is_there = self.log.has(Position { epoch, seq });
            let outcome = match self.log.epoch_at(seq) {
                _ if mutant::is(Mutant::FateGuessed) && !is_there => Outcome::Lost,
                _ if seq > committed && epoch < settled => Outcome::Lost,
                _ if seq > committed => break,
                Some(found) if found == epoch && seq > applied => break,
                Some(found) if found == epoch => Outcome::Committed { seq, tid },
                Some(_) => Outcome::Lost,
                None => Outcome::Unknown,
            };
            self.finishes.pending.remove(&(seq, epoch));
            self.actions.push(Action::Reply { token, outcome });
        }
    }

    pub(super) fn on_confirm(&mut self, token: Token) {
        self.confirm(Asker::Server(token));
    }

    pub(super) fn on_ask(&mut self, from: &MemberId, epoch: Epoch, id: u64) {
        let is_known = |confirm: &Confirm| match &confirm.asked_by {
            Asker::Member(member, asked) => member == from && *asked == id,
            Asker::Server(_) => false,
        };
        let is_news = !self.finishes.confirms.iter().any(is_known);
        if epoch == self.promised && matches!(self.office, Office::Primary(_)) && is_news {
            self.confirm(Asker::Member(from.clone(), id));
        }
    }

    fn confirm(&mut self, asked_by: Asker) {
        if self.finishes.confirms.len() >= CONFIRMS_MAX {
            self.answer(asked_by, None);
            return;
        }
        self.finishes.last_id += 1;
        let stage = match &self.office {
            _ if mutant::is(Mutant::ReadersNotHeldBack) => Stage::Apply(self.log.applied()),
            // Several that come in the same turn share one sign of life.
            Office::Primary(primary) => Stage::Beat(primary.beat + 1),
            _ => Stage::Waiting,
        };
        self.finishes.confirms.push(Confirm {
            asked_by,
            id: self.finishes.last_id,
            since: self.now.instant,
            stage,
        });
    }

    pub(super) fn on_told(&mut self, epoch: Epoch, id: u64, committed: Seq) {
        let mut confirms = self.finishes.confirms.iter_mut();
        if epoch == self.promised
            && let Some(confirm) = confirms.find(|confirm| confirm.id == id)
            && matches!(confirm.stage, Stage::Asked(_))
        {
            confirm.stage = Stage::Apply(committed);
        }
    }

    fn answer(&mut self, asked_by: Asker, committed: Option<Seq>) {
        match (asked_by, committed) {
            (Asker::Server(token), committed) => {
                let is_sure = committed.is_some();
                self.actions.push(Action::Confirmed { token, is_sure });
            }
            (Asker::Member(member, id), Some(committed)) => {
                let epoch = self.promised;
                self.send_one(
                    &member,
                    Content::Told {
                        epoch,
                        id,
                        committed,
                    },
                );
            }
            // It asks again, or gives up.
            (Asker::Member(..), None) => {}
        }
    }

    pub(super) fn answer_confirms(&mut self) {
        let confirms = std::mem::take(&mut self.finishes.confirms);
        for mut confirm in confirms {
            self.go_on_with_confirm(&mut confirm);
            let is_late = self.now.instant >= confirm.since + self.options.lease;
            match confirm.stage {
                Stage::Apply(through) if through <= self.log.applied() => {
                    self.answer(confirm.asked_by, Some(through));
                }
                _ if is_late => self.answer(confirm.asked_by, None),
                _ => self.finishes.confirms.push(confirm),
            }
        }
    }

    fn go_on_with_confirm(&mut self, confirm: &mut Confirm) {
        let now = self.now.instant;
        let pace = self.pace();
        match (&self.office, &confirm.stage) {
            (Office::Primary(primary), Stage::Beat(beat)) => {
                let is_told = primary.beat >= *beat;
                let has_answered = |voter: &super::members::Voter| {
                    let acked = primary.acks.get(voter);
                    *voter == self.me || acked.is_some_and(|acked| acked.beat >= *beat)
                };
                let members = &self.log.settings().members;
                if primary.is_open && is_told && members.is_majority(has_answered) {
                    confirm.stage = Stage::Apply(self.log.committed());
                } else if !is_told {
                    self.beat();
                }
            }
            // In office since it was asked.
            (Office::Primary(primary), Stage::Waiting | Stage::Asked(_)) => {
                confirm.stage = Stage::Beat(primary.beat + 1);
            }
            (_, Stage::Beat(_)) => confirm.stage = Stage::Waiting,
            (_, Stage::Asked(at)) if now >= *at + pace / 4 => confirm.stage = Stage::Waiting,
            _ => {}
        }
        if matches!(confirm.stage, Stage::Waiting)
            && self.is_unblocked()
            && let Some(leader) = &self.leader
        {
            let member = leader.member.clone();
            confirm.stage = Stage::Asked(now);
            let (epoch, id) = (self.promised, confirm.id);
            self.send_one(&member, Content::Ask { epoch, id });
        }
    }

    /// Tells the server what clients may do, if that is news.
    pub(super) fn serve(&mut self) {
        self.open();
        let serving = Serving {
            writers: self.writers(),
            readers: self.readers(),
        };
        if serving != self.finishes.served {
            self.finishes.served = serving;
            self.actions.push(Action::Serve(serving));
        }
    }

    /// R7: the barrier entry is committed and applied.
    fn open(&mut self) {
        let applied = self.log.applied();
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        let is_applied = applied >= primary.barrier || mutant::is(Mutant::OpenBeforeBarrier);
        if !primary.is_open && is_applied {
            primary.is_open = true;
            let epoch = primary.epoch;
            self.tell(Notice::Promoted(epoch));
        }
    }

    /// Whether it claims, or has claimed, the next epoch out of office, and its clients wait.
    pub(super) const fn is_renewing(&self) -> bool {
        match &self.office {
            Office::Candidate(candidate) => candidate.is_renewal,
            Office::Primary(primary) => {
                !primary.is_open && !matches!(self.finishes.served.writers, Writers::Closed)
            }
            Office::Replica => false,
        }
    }

    /// What came while the office was being renewed is done, or has come to nothing.
    pub(super) fn take_held(&mut self) {
        if self.is_renewing() || self.finishes.held.is_empty() {
            return;
        }
        for event in std::mem::take(&mut self.finishes.held) {
            self.on_event(event);
        }
        self.hand_out_oids();
    }

    fn writers(&self) -> Writers {
        let lease = self.options.lease;
        match &self.office {
            Office::Replica => Writers::Closed,
            Office::Candidate(candidate) if candidate.is_renewal => Writers::Frozen,
            Office::Candidate(_) => Writers::Closed,
            Office::Primary(primary) if !primary.is_open => {
                match self.finishes.served.writers == Writers::Closed {
                    true => Writers::Closed,
                    false => Writers::Frozen,
                }
            }
            Office::Primary(primary) if primary.duties.is_swapping() => Writers::Draining,
            Office::Primary(primary) => {
                let is_fresh = self.has_lease(primary, lease * 3 / 4);
                match is_fresh && self.is_unblocked() {
                    true => Writers::Open,
                    false => Writers::Frozen,
                }
            }
        }
    }

    fn readers(&mut self) -> Readers {
        if self.recovery.copying.is_some() {
            return Readers::Closed;
        }
        let is_level = match &self.office {
            Office::Primary(primary) => primary.is_open && self.is_unblocked(),
            Office::Candidate(_) => false,
            Office::Replica => self.is_level(),
        };
        match (is_level, self.finishes.served.readers) {
            (true, _) => Readers::Open,
            (false, Readers::Closed) => Readers::Closed,
            (false, _) => Readers::Kept,
        }
    }

    /// Whether a replica follows somebody and has had all that was committed at some time since.
    fn is_level(&mut self) -> bool {
        let is_heard = self.hears().is_some();
        let applied = self.log.applied();
        let Some(leader) = &mut self.leader else {
            return false;
        };
        let has_heard = leader.last != Position::default();
        leader.is_level |= has_heard && applied >= leader.committed;
        leader.is_level && is_heard
    }
}
