//! What a replica does with the primary's log: takes it, acknowledges it, and learns what is
//! committed. R4, R8, R9, R11, R15.

use std::time::Instant;

use super::election::Purpose;
use super::event::{Action, Fatal, Notice};
use super::message::{Content, NodeKind, Position};
use super::mutant::{self, Mutant};
use super::settings::{Change, Kind};
use super::{Office, Replica};
use crate::entry::{Entry, Point};
use crate::group::MemberId;
use crate::ids::{Epoch, Seq, Tid};

/// The primary that is followed.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) member: MemberId,
    /// When it said something last.
    pub(super) heard: Instant,
    /// It is in none of the views since then.
    pub(super) absent_since: Option<Instant>,
    /// Its last sign of life.
    beat: u64,
    /// Where its log ends, as far as it has said.
    pub(super) last: Position,
    /// What it says is committed.
    pub(super) committed: Seq,
    /// What it was told.
    told: (Seq, u64),
    /// All that was committed when it was first heard of, or since, has been applied.
    pub(super) is_level: bool,
}

impl Leader {
    /// What was acknowledged may not have come to it.
    pub(super) const fn say_again(&mut self) {
        self.told = (Seq::ZERO, 0);
    }
}

/// Whether the first epoch is over for somebody who has promised the other one.
fn is_over(epoch: Epoch, promised: Epoch) -> bool {
    epoch < promised && !mutant::is(Mutant::ProposeOfAnyEpoch)
}

impl Replica {
    /// A primary has said something: whether it is to be followed.
    pub(super) fn hear(&mut self, from: &MemberId, epoch: Epoch) -> bool {
        if epoch.node == self.me.node || is_over(epoch, self.promised) {
            return false;
        }
        if epoch > self.promised {
            if mutant::is(Mutant::EpochNotAdopted) {
                return false;
            }
            self.promise(epoch, Purpose::Adopt);
        }
        if !matches!(self.office, Office::Replica) {
            return false;
        }
        let heard = self.now.instant;
        self.failures = 0;
        let view = self.view.as_ref();
        let is_here = view.is_some_and(|view| view.members.contains_key(from));
        match &mut self.leader {
            Some(leader) => {
                leader.heard = heard;
                leader.member = from.clone();
                leader.absent_since = leader.absent_since.filter(|_| !is_here);
            }
            None => {
                self.leader = Some(Leader {
                    member: from.clone(),
                    heard,
                    absent_since: (!is_here).then_some(heard),
                    beat: 0,
                    last: Position::default(),
                    committed: Seq::ZERO,
                    told: (Seq::ZERO, 0),
                    is_level: false,
                });
            }
        }
        true
    }

    pub(super) fn on_commit(
        &mut self,
        from: &MemberId,
        epoch: Epoch,
        committed: Seq,
        last: Position,
        beat: u64,
    ) {
        if mutant::is(Mutant::CommitOfAnyEpoch) {
            self.log.commit(committed.min(self.log.last().seq));
        }
        if !self.hear(from, epoch) {
            return;
        }
        if let Some(leader) = &mut self.leader {
            leader.beat = leader.beat.max(beat);
            leader.last = leader.last.max(last);
            leader.committed = leader.committed.max(committed);
        }
        if self.log.has(last) {
            self.matched = self.matched.max(last.seq);
        }
    }

    pub(super) fn on_propose(
        &mut self,
        from: &MemberId,
        previous: Epoch,
        committed: Seq,
        entry: Entry,
    ) {
        let header = entry.header();
        if !self.hear(from, header.epoch) {
            return;
        }
        let last = Position {
            epoch: header.epoch,
            seq: header.seq,
        };
        if let Some(leader) = &mut self.leader {
            leader.last = leader.last.max(last);
            leader.committed = leader.committed.max(committed);
        }
        if !self.is_arbiter() && self.recovery.copying.is_none() {
            self.recovery.keep(previous, entry, self.log.last().seq);
        }
    }

    /// Takes what follows the log, learns what is committed, and asks for what is missing.
    pub(super) fn go_on_following(&mut self) {
        // Nothing of an epoch is in the log before its promise is on stable storage.
        let is_ready = self.durable == self.promised && !self.recovery.is_writing();
        if self.leader.is_none() || !is_ready || self.is_arbiter() {
            return;
        }
        let mut appended = Vec::new();
        while let Some((previous, entry)) = self.recovery.next(self.log.last().seq) {
            match self.take(previous, entry) {
                Taken::Appended(entry) => appended.push(entry),
                Taken::Known => {}
                Taken::Kept(entry) => {
                    self.recovery.put_back(previous, entry);
                    break;
                }
            }
        }
        if !appended.is_empty() {
            self.actions.push(Action::Append(appended));
        }
        self.learn();
        self.fetch_what_is_missing();
    }

    /// R8, for one entry that is not behind a gap of numbers.
    fn take(&mut self, previous: Epoch, entry: Entry) -> Taken {
        let header = *entry.header();
        let before = Position {
            epoch: previous,
            seq: Seq(header.seq.0.saturating_sub(1)),
        };
        let place = Position {
            epoch: header.epoch,
            seq: header.seq,
        };
        if header.seq <= self.log.committed() {
            return Taken::Known;
        }
        let last = self.log.last().seq;
        let is_behind = mutant::is(Mutant::PrevNotCompared) && before.seq <= last;
        if !self.log.has(before) && !is_behind {
            return Taken::Kept(entry);
        }
        self.matched = self.matched.max(before.seq);
        if self.log.has(place) {
            self.matched = self.matched.max(place.seq);
            return Taken::Known;
        }
        if header.seq <= last {
            self.cut_after(before.seq);
            return Taken::Kept(entry);
        }
        match self.push(&entry) {
            true => {
                self.matched = place.seq;
                Taken::Appended(entry)
            }
            false => Taken::Known,
        }
    }

    /// Notes an entry that is to be appended; `false` if this node must stop.
    pub(super) fn push(&mut self, entry: &Entry) -> bool {
        let header = entry.header();
        if !self.log.is_next(entry) {
            let position = self.log.last();
            self.stop(Fatal::Forked { position });
            return false;
        }
        let change = match Kind::from_number(header.kind) {
            Some(Kind::Transaction) => Ok(None),
            Some(kind) => Change::decode(kind, entry.body()).map(Some).map_err(drop),
            None => Err(()),
        };
        match change {
            Ok(change) => {
                self.log.push(header, change);
                true
            }
            Err(()) => {
                self.stop(Fatal::Unreadable(header.seq));
                false
            }
        }
    }

    /// R15: what is behind this entry is another one's in the primary's log.
    pub(super) fn cut_after(&mut self, after: Seq) {
        let (committed, last) = (self.log.committed(), self.log.last().seq);
        if after < committed {
            self.stop(Fatal::BelowCommit {
                after,
                committed,
                epoch: self.promised,
            });
            return;
        }
        self.log.cut_after(after);
        self.matched = self.matched.min(after);
        self.recovery.is_cutting = true;
        self.actions.push(Action::Cut { after, committed });
        let first = after.next();
        self.tell(Notice::Rewound { first, last });
    }

    pub(super) fn on_cut(&mut self, last: Point, last_tid: Tid) {
        self.log.reset(last, last_tid);
        self.matched = self.matched.min(last.seq);
        self.recovery.is_cutting = false;
        self.append_fetched();
    }

    /// R11.
    fn learn(&mut self) {
        let Some(leader) = &self.leader else {
            return;
        };
        let known = match mutant::is(Mutant::CommitUnmatched) {
            true => self.log.last().seq,
            false => self.matched,
        };
        self.log.commit(leader.committed.min(known));
    }

    pub(super) fn on_synced(&mut self, through: Seq) {
        // What was synced before a cut is not what stands there now.
        if !self.recovery.is_cutting {
            self.log.on_synced(through);
        }
    }

    /// R9.
    pub(super) fn acknowledge(&mut self) {
        let is_promised = self.durable == self.promised;
        let is_ready = is_promised && self.is_unblocked() && !self.recovery.is_cutting;
        let (synced, last) = (self.log.synced(), self.log.last().seq);
        let Some(leader) = &mut self.leader else {
            return;
        };
        let seq = match () {
            () if matches!(self.options.kind, NodeKind::Arbiter) => Seq::ZERO,
            () if mutant::is(Mutant::AckBeforeSync) => self.matched,
            () if mutant::is(Mutant::AckUnmatched) => synced.min(last),
            () => self.matched.min(synced),
        };
        let (told, beat) = (leader.told, leader.beat);
        if !is_ready || seq <= told.0 && beat <= told.1 {
            return;
        }
        leader.told = (seq.max(told.0), beat);
        let member = leader.member.clone();
        let content = Content::Ack {
            epoch: self.promised,
            seq,
            applied: self.log.applied(),
            beat,
        };
        self.send_one(&member, content);
    }
}

/// What became of an entry.
enum Taken {
    Appended(Entry),
    /// It is there already.
    Known,
    /// Something else comes first.
    Kept(Entry),
}
