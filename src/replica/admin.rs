//! What is ordered now and then: swaps, changes of the members, packs; and oids, which are handed
//! out below a ceiling that is an entry of the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::event::{Action, Event, MemberChange, Refusal, Token};
use super::members::{Arbiter, Members, VOTERS_MAX, Voter};
use super::message::{Content, NodeKind, PackStage, Sender};
use super::mutant::{self, Mutant};
use super::primary::Primary;
use super::settings::{Change, Pack, Settings, StorageName};
use super::view::View;
use super::{Office, Replica};
use crate::group::MemberId;
use crate::ids::{Epoch, NodeId, Oid, Seq, Tid};
use crate::limits::{
    LEVEL_COUNT, OID_BLOCK, OID_REQUESTS_MAX, PACK_TURN_MAX, STATE_INTERVAL, SWAP_MAX,
};

/// What a primary has to do besides.
#[derive(Debug)]
pub(super) struct Duties {
    swap: Option<Swap>,
    /// The entries that the administrator waits for.
    orders: Vec<(Seq, Token)>,
    oids: BTreeMap<StorageName, Oids>,
    /// Who packs, as of when.
    turns: BTreeMap<Voter, Instant>,
}

/// Another node is to be primary.
#[derive(Debug)]
struct Swap {
    token: Token,
    to: Voter,
    since: Instant,
    stage: SwapStage,
}

#[derive(Debug, PartialEq, Eq)]
enum SwapStage {
    /// Who has voted may finish.
    Draining,
    /// The other one has to have all.
    Waiting,
    /// It was asked to claim.
    Handed(Instant),
}

/// Oids of one storage.
#[derive(Debug)]
struct Oids {
    /// The one to be handed out next.
    next: u64,
    /// An entry with a higher ceiling is on its way: this.
    asked: Oid,
    waiting: VecDeque<(Token, u64)>,
}

/// What any node has to do besides.
#[derive(Debug, Default)]
pub(super) struct Errands {
    /// A swap that this node, no more primary, waits for the end of.
    swap: Option<(Token, NodeId, Instant)>,
    /// The last packs that were done, or were there at the start.
    pub(super) packed: BTreeMap<StorageName, Seq>,
    packing: Option<Packing>,
}

/// A pack that is due.
#[derive(Debug)]
struct Packing {
    storage: StorageName,
    pack: Pack,
    has_begun: bool,
    said: Option<Instant>,
}

impl Errands {
    pub(super) fn new(packed: BTreeMap<StorageName, Seq>) -> Self {
        Self {
            packed,
            ..Self::default()
        }
    }
}

impl Duties {
    pub(super) fn new(settings: &Settings) -> Self {
        let oids = settings.ceilings.iter();
        let oids = oids.map(|(storage, ceiling)| (storage.clone(), Oids::from(*ceiling)));
        Self {
            swap: None,
            orders: Vec::new(),
            oids: oids.collect(),
            turns: BTreeMap::new(),
        }
    }

    pub(super) const fn is_swapping(&self) -> bool {
        self.swap.is_some()
    }
}

impl Oids {
    /// All below the ceiling may have been handed out, by others or by this node before.
    fn from(ceiling: Oid) -> Self {
        Self {
            next: match mutant::is(Mutant::OidsFromTheFloor) {
                true => 1,
                false => ceiling.0.max(1),
            },
            asked: Oid::ZERO,
            waiting: VecDeque::new(),
        }
    }
}

impl Replica {
    fn open_primary(&mut self) -> Option<&mut Primary> {
        match &mut self.office {
            Office::Primary(primary) if primary.is_open => Some(primary),
            _ => None,
        }
    }

    fn answer_order(&mut self, token: Token, result: Result<(), Refusal>) {
        self.actions.push(Action::Answer { token, result });
    }

    /// The office is left: nothing of what was waited for comes any more.
    pub(super) fn drop_duties(&mut self, duties: Duties, is_renewal: bool) {
        for (storage, oids) in duties.oids {
            for (token, count) in oids.waiting {
                if is_renewal {
                    let storage = storage.clone();
                    self.finishes.hold(Event::AllocateOids {
                        token,
                        storage,
                        count,
                    });
                } else {
                    self.actions.push(Action::Oids { token, oids: None });
                }
            }
        }
        for (_, token) in duties.orders {
            self.answer_order(token, Err(Refusal::TimedOut));
        }
        match duties.swap {
            Some(swap) if matches!(swap.stage, SwapStage::Handed(_)) => {
                self.errands.swap = Some((swap.token, swap.to.node, swap.since));
            }
            Some(swap) => self.answer_order(swap.token, Err(Refusal::NotPrimary)),
            None => {}
        }
    }

    /// Each step: what waits for entries to be committed or applied.
    pub(super) fn go_on_with_admin(&mut self) {
        self.answer_orders();
        self.hand_over();
        self.hand_out_oids();
        self.end_swap();
        self.begin_pack();
    }

    fn answer_orders(&mut self) {
        let committed = self.log.committed();
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        let orders = std::mem::take(&mut primary.duties.orders);
        let (done, left) = orders.into_iter().partition(|(seq, _)| *seq <= committed);
        primary.duties.orders = left;
        let done: Vec<(Seq, Token)> = done;
        for (_, token) in done {
            self.answer_order(token, Ok(()));
        }
    }

    // Oids.

    pub(super) fn on_allocate_oids(&mut self, token: Token, storage: StorageName, count: u64) {
        if self.is_renewing() {
            self.finishes.hold(Event::AllocateOids {
                token,
                storage,
                count,
            });
            return;
        }
        let Some(primary) = self.open_primary() else {
            self.actions.push(Action::Oids { token, oids: None });
            return;
        };
        let oids = primary.duties.oids.entry(storage);
        let oids = oids.or_insert_with(|| Oids::from(Oid::ZERO));
        let is_possible = count < Oid::END.0 - OID_BLOCK - oids.next.min(Oid::END.0 - OID_BLOCK);
        if oids.waiting.len() >= OID_REQUESTS_MAX || !is_possible {
            self.actions.push(Action::Oids { token, oids: None });
        } else {
            oids.waiting.push_back((token, count));
        }
    }

    /// A transaction stores an object with this oid, which may be one that nobody has handed out.
    pub(super) fn note_stored(&mut self, storage: &StorageName, oid: Oid) {
        let ceilings = &self.log.settings().ceilings;
        let ceiling = ceilings.get(storage).copied().unwrap_or_default();
        let next = Oid(oid.0.saturating_add(1));
        if next > ceiling {
            let storage = storage.clone();
            self.propose_change(Change::Ceiling { storage, oid: next }, Tid::ZERO);
        }
        if let Office::Primary(primary) = &mut self.office {
            let oids = primary.duties.oids.entry(storage.clone());
            let oids = oids.or_insert_with(|| Oids::from(Oid::ZERO));
            oids.next = oids.next.max(next.0);
        }
    }

    /// Hands out what is below the ceilings, and raises them in time.
    pub(super) fn hand_out_oids(&mut self) {
        let ceilings = match mutant::is(Mutant::CeilingNotAwaited) {
            true => &self.log.settings().ceilings,
            false => &self.log.settled().ceilings,
        };
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        let mut raised = Vec::new();
        for (storage, oids) in &mut primary.duties.oids {
            let ceiling = ceilings.get(storage).map_or(0, |oid| oid.0);
            let mut is_used = false;
            while let Some((token, count)) = oids.waiting.front().copied() {
                let end = oids.next + count;
                if end > ceiling {
                    break;
                }
                let range = Some(oids.next..end);
                self.actions.push(Action::Oids { token, oids: range });
                oids.next = end;
                oids.waiting.pop_front();
                is_used = true;
            }
            let wanted: u64 = oids.waiting.iter().map(|(_, count)| count).sum();
            let is_low = is_used && oids.next + OID_BLOCK / 2 > ceiling;
            if (wanted > 0 || is_low) && oids.asked.0 <= ceiling {
                oids.asked = Oid((oids.next + wanted + OID_BLOCK).max(ceiling));
                raised.push((storage.clone(), oids.asked));
            }
        }
        for (storage, oid) in raised {
            self.propose_change(Change::Ceiling { storage, oid }, Tid::ZERO);
        }
    }

    // Swaps.

    /// An administrator wants this node to be primary: what keeps it from claiming by itself, its
    /// site and its priority, does not count. All that makes a claim safe does.
    pub(super) fn on_take_office(&mut self, token: Token) {
        let result = if !matches!(self.office, Office::Replica) {
            Err(Refusal::Already)
        } else if !self.may_be_counted() || self.log.history_from() != Tid::ZERO {
            Err(Refusal::NotEligible(self.me.node))
        } else if self.hears().is_some() {
            Err(Refusal::Busy)
        } else if !self.is_vacant() {
            Err(Refusal::NoQuorum)
        } else {
            Ok(())
        };
        if result.is_ok() {
            self.claim(None);
        }
        self.answer_order(token, result);
    }

    pub(super) fn on_stand_aside(&mut self, aside: bool) {
        self.stands_aside = aside;
        if let Some(view) = &mut self.view {
            view.wants_state = true;
        }
    }

    pub(super) fn on_swap(&mut self, token: Token, to: NodeId) {
        let since = self.now.instant;
        let result = self.check_swap(to);
        if let (Ok(to), Some(primary)) = (&result, self.open_primary()) {
            let to = *to;
            let stage = match mutant::is(Mutant::SwapNotDrained) {
                true => SwapStage::Waiting,
                false => SwapStage::Draining,
            };
            primary.duties.swap = Some(Swap {
                token,
                to,
                since,
                stage,
            });
        } else {
            self.answer_order(token, result.map(drop));
        }
    }

    fn check_swap(&mut self, to: NodeId) -> Result<Voter, Refusal> {
        let me = self.me.node;
        let has_change = self.log.changes().count() > 0;
        let primary = self.open_primary().ok_or(Refusal::NotPrimary)?;
        if primary.duties.is_swapping() || has_change {
            return Err(Refusal::Busy);
        }
        if to == me {
            return Err(Refusal::Already);
        }
        let view = self.view.as_ref();
        let found = view.and_then(|view| view.find(to));
        let (_, stated) = found.ok_or(Refusal::NoSuchNode(to))?;
        let members = &self.log.settings().members;
        let voter = stated.sender.voter();
        let is_fit = members.is_voter(&voter) && stated.state.history_from == Tid::ZERO;
        is_fit.then_some(voter).ok_or(Refusal::NotEligible(to))
    }

    pub(super) fn on_drained(&mut self) {
        if let Some(primary) = self.open_primary()
            && let Some(swap) = &mut primary.duties.swap
            && swap.stage == SwapStage::Draining
        {
            swap.stage = SwapStage::Waiting;
        }
    }

    /// Asks the other one to claim when it has all, and nothing more can come.
    fn hand_over(&mut self) {
        let now = self.now.instant;
        let last = self.log.last().seq;
        let is_done = self.finishes.is_empty() || mutant::is(Mutant::SwapNotDrained);
        let again = self.pace() / 4;
        let Office::Primary(primary) = &mut self.office else {
            return;
        };
        let Some(swap) = &mut primary.duties.swap else {
            return;
        };
        let acked = primary.acks.get(&swap.to);
        let has_all = acked.is_some_and(|acked| acked.seq >= last && acked.applied >= last);
        let has_all = has_all || mutant::is(Mutant::SwapNotDrained);
        let is_due = match swap.stage {
            SwapStage::Draining => false,
            SwapStage::Waiting => is_done && has_all,
            SwapStage::Handed(at) => now >= at + again,
        };
        if is_due {
            swap.stage = SwapStage::Handed(now);
            let (epoch, to) = (primary.epoch, swap.to.node);
            self.send_all(Content::Handover { epoch, to });
        }
    }

    pub(super) fn on_handover(&mut self, epoch: Epoch, to: NodeId) {
        let is_mine = to == self.me.node && epoch == self.promised && self.durable == epoch;
        let is_idle = matches!(self.office, Office::Replica)
            && self.leader.is_some()
            && !self.recovery.is_busy();
        let members = &self.log.settings().members;
        let may_lead = members.is_voter(&self.me) && self.clock_error(self.now.wall).is_none();
        if is_mine && is_idle && may_lead {
            self.claim(Some(epoch));
        }
    }

    /// Who handed over hears of the end.
    fn end_swap(&mut self) {
        let is_late = |since: Instant| self.now.instant >= since + SWAP_MAX;
        if let Some((token, to, since)) = self.errands.swap {
            let is_over = is_late(since) || matches!(self.office, Office::Primary(_));
            let result = match &self.leader {
                Some(_) if self.promised.node == to => Ok(()),
                Some(_) => Err(Refusal::TimedOut),
                None if is_over => Err(Refusal::TimedOut),
                None => return,
            };
            self.errands.swap = None;
            self.answer_order(token, result);
        }
        let now = self.now.instant;
        if let Office::Primary(primary) = &mut self.office
            && let Some(swap) = primary
                .duties
                .swap
                .take_if(|swap| now >= swap.since + SWAP_MAX)
        {
            self.answer_order(swap.token, Err(Refusal::TimedOut));
        }
    }

    // Members.

    pub(super) fn on_change_members(&mut self, token: Token, change: MemberChange) {
        match self.changed_members(change) {
            Ok(members) => {
                let seq = self.propose_change(Change::Members(members), Tid::ZERO);
                if let Office::Primary(primary) = &mut self.office {
                    primary.duties.orders.push((seq, token));
                }
            }
            Err(refusal) => self.answer_order(token, Err(refusal)),
        }
    }

    /// One change at a time: a quorum of the members before and one of those after it have somebody
    /// in common.
    fn changed_members(&mut self, change: MemberChange) -> Result<Members, Refusal> {
        let is_changing = self.is_changing_members() && !mutant::is(Mutant::TwoChangesAtOnce);
        let primary = self.open_primary().ok_or(Refusal::NotPrimary)?;
        if is_changing || primary.duties.is_swapping() {
            return Err(Refusal::Busy);
        }
        let mut members = self.log.settings().members.clone();
        match change {
            MemberChange::Add(node) => {
                let voter = self.candidate_voter(node, NodeKind::Data)?;
                if members.arbiter.is_some() || members.voters.len() >= VOTERS_MAX {
                    return Err(Refusal::VoterCount);
                }
                members.voters.insert(voter);
            }
            MemberChange::Remove(node) => {
                let voter = members.voters.iter().find(|voter| voter.node == node);
                let voter = *voter.ok_or(Refusal::NoSuchNode(node))?;
                if voter == self.me {
                    return Err(Refusal::NotEligible(node));
                }
                if members.arbiter.is_some() {
                    return Err(Refusal::VoterCount);
                }
                members.voters.remove(&voter);
            }
            MemberChange::AddArbiter(node) => {
                let voter = self.candidate_voter(node, NodeKind::Arbiter)?;
                if members.arbiter.is_some() || members.voters.len() != 2 {
                    return Err(Refusal::VoterCount);
                }
                members.arbiter = Some(Arbiter {
                    node: voter,
                    in_sync: members.voters.clone(),
                });
            }
            MemberChange::RemoveArbiter => {
                let arbiter = members.arbiter.take().ok_or(Refusal::Already)?;
                if arbiter.in_sync != members.voters {
                    return Err(Refusal::Busy);
                }
            }
        }
        let Office::Primary(primary) = &self.office else {
            return Err(Refusal::NotPrimary);
        };
        // Else the change would be the last: nobody could commit it, nor take it back.
        let is_here = self.is_majority_of(&members, primary, self.pace());
        is_here.then_some(members).ok_or(Refusal::NoQuorum)
    }

    fn is_changing_members(&self) -> bool {
        let mut changes = self.log.changes();
        changes.any(|(_, change)| matches!(change, Change::Members(_)))
    }

    /// A node that is here, and could be counted.
    fn candidate_voter(&self, node: NodeId, kind: NodeKind) -> Result<Voter, Refusal> {
        let members = &self.log.settings().members;
        if let Some(same) = members.electors().find(|voter| voter.node == node) {
            let found = self.view.as_ref().and_then(|view| view.find(node));
            let is_same = found.is_some_and(|(_, stated)| stated.sender.voter() == *same);
            return Err(match is_same {
                true => Refusal::Already,
                // The one with the old disk has to go first.
                false => Refusal::NotEligible(node),
            });
        }
        let found = self.view.as_ref().and_then(|view| view.find(node));
        let (_, stated) = found.ok_or(Refusal::NoSuchNode(node))?;
        if stated.state.kind != kind {
            return Err(Refusal::NotEligible(node));
        }
        let voter = stated.sender.voter();
        let Office::Primary(primary) = &self.office else {
            return Err(Refusal::NotPrimary);
        };
        let acked = primary.acks.get(&voter);
        let seq = acked.map_or(Seq::ZERO, |acked| acked.seq);
        let (now, pace) = (self.now.instant, self.pace());
        let is_moving = acked.is_some_and(|acked| now < acked.progress + pace);
        let is_level = seq >= self.log.committed() || is_moving;
        let lag = self.log.last().seq.0.saturating_sub(seq.0);
        match kind {
            NodeKind::Data if lag > LEVEL_COUNT || !is_level => Err(Refusal::Behind(node, lag)),
            _ => Ok(voter),
        }
    }

    /// With an arbiter: who does not answer is not waited for any more, and who is level is again.
    fn look_at_sync(&mut self) {
        let members = self.log.settings().members.clone();
        let Some(arbiter) = &members.arbiter else {
            return;
        };
        let (now, pace) = (self.now.instant, self.pace());
        let is_changing = self.is_changing_members();
        let (last, committed) = (self.log.last().seq, self.log.committed());
        let Some(primary) = self.open_or_alone() else {
            return;
        };
        // While the daemon is silent none of them is missing, and then all get their turn.
        if primary.heard().is_none_or(|at| now >= at + pace * 3 / 4) {
            return;
        }
        let is_new = now < primary.woken + pace / 2;
        let is_fit = |voter: &Voter| {
            if is_new && arbiter.in_sync.contains(voter) {
                return true;
            }
            let Some(acked) = primary.acks.get(voter) else {
                return false;
            };
            let is_moving = acked.seq >= last || now < acked.progress + 2 * pace;
            match arbiter.in_sync.contains(voter) {
                true => is_moving && now < acked.contact + pace * 3 / 4,
                false => acked.seq >= committed && now < acked.contact + pace / 2,
            }
        };
        let voters = members.voters.iter().copied();
        let in_sync: BTreeSet<Voter> = voters
            .filter(|voter| *voter == self.me || is_fit(voter))
            .collect();
        // To wait for one more is no hurry; to wait for one who is gone holds up all.
        let is_growth = in_sync.is_superset(&arbiter.in_sync);
        if in_sync == arbiter.in_sync || is_growth && is_changing {
            return;
        }
        let arbiter = Some(Arbiter {
            in_sync,
            ..arbiter.clone()
        });
        let members = Members { arbiter, ..members };
        self.propose_change(Change::Members(members), Tid::ZERO);
        self.beat();
    }

    /// In office. Before its barrier entry is committed, too: that may wait for one who is gone.
    fn open_or_alone(&self) -> Option<&Primary> {
        match &self.office {
            Office::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    // Packs.

    pub(super) fn on_order_pack(&mut self, token: Token, storage: StorageName, tid: Tid) {
        if self.open_primary().is_none() {
            self.answer_order(token, Err(Refusal::NotPrimary));
            return;
        }
        // One that was ordered before may not be done everywhere yet: it is part of this. What
        // comes later is not meant, nor by an order that includes this one.
        let before = self.log.settings().packs.get(&storage);
        let tid = before.map_or(tid, |before| before.tid.max(tid));
        let tid = tid.min(self.log.last_tid());
        let seq = self.propose_change(Change::Pack { storage, tid }, Tid::ZERO);
        if let Office::Primary(primary) = &mut self.office {
            primary.duties.orders.push((seq, token));
        }
    }

    /// Something was applied: a pack may be due.
    fn begin_pack(&mut self) {
        let packs = &self.log.settled().packs;
        let packed = &self.errands.packed;
        if self.errands.packing.is_some() {
            return;
        }
        let applied = self.log.applied();
        let is_due = |name: &str, pack: &Pack| {
            pack.at <= applied && packed.get(name).is_none_or(|at| *at < pack.at)
        };
        let mut due = packs.iter().filter(|(name, pack)| is_due(name, pack));
        if let Some((storage, pack)) = due.next() {
            self.errands.packing = Some(Packing {
                storage: storage.clone(),
                pack: *pack,
                has_begun: false,
                said: None,
            });
            self.ask_for_turn();
        }
    }

    /// Every so often: who waits for its turn asks for it, and who packs says so.
    fn ask_for_turn(&mut self) {
        let now = self.now.instant;
        let Some(packing) = &mut self.errands.packing else {
            return;
        };
        if packing.said.is_some_and(|at| now < at + STATE_INTERVAL) {
            return;
        }
        packing.said = Some(now);
        let stage = match packing.has_begun {
            true => PackStage::Begun,
            false => PackStage::Wanted,
        };
        let (me, epoch) = (self.me, self.promised);
        if mutant::is(Mutant::PackUnordered) {
            self.take_turn();
        } else if matches!(self.office, Office::Primary(_)) {
            if self.give_turn(me, stage) {
                self.take_turn();
            }
        } else if let Some(leader) = &self.leader
            && self.is_unblocked()
        {
            let member = leader.member.clone();
            self.send_one(&member, Content::Packing { epoch, stage });
        }
    }

    /// At the primary: whether it is somebody's turn. A third of the voters may pack at a time.
    fn give_turn(&mut self, to: Voter, stage: PackStage) -> bool {
        let now = self.now.instant;
        let max = (self.log.settings().members.voters.len() / 3).max(1);
        let Office::Primary(primary) = &mut self.office else {
            return false;
        };
        // Who packs by the leave of the primary before has to be heard of first.
        let is_new = now < primary.since + 2 * STATE_INTERVAL;
        let turns = &mut primary.duties.turns;
        turns.retain(|_, at| now < *at + PACK_TURN_MAX);
        match stage {
            PackStage::Done => {
                turns.remove(&to);
                return false;
            }
            PackStage::Begun => {}
            PackStage::Wanted if turns.contains_key(&to) => {}
            PackStage::Wanted if turns.len() < max && !is_new => {}
            PackStage::Wanted => return false,
        }
        turns.insert(to, now);
        stage == PackStage::Wanted
    }

    pub(super) fn on_packing(
        &mut self,
        from: &MemberId,
        sender: &Sender,
        epoch: Epoch,
        stage: PackStage,
    ) {
        if epoch == self.promised && self.give_turn(sender.voter(), stage) {
            let node = sender.node;
            self.send_one(from, Content::Pack { epoch, node });
        }
    }

    pub(super) fn on_pack_turn(&mut self, epoch: Epoch, node: NodeId) {
        if epoch == self.promised && node == self.me.node {
            self.take_turn();
        }
    }

    fn take_turn(&mut self) {
        if let Some(packing) = &mut self.errands.packing
            && !packing.has_begun
        {
            packing.has_begun = true;
            let (storage, pack) = (packing.storage.clone(), packing.pack);
            self.actions.push(Action::Pack { storage, pack });
        }
    }

    pub(super) fn on_packed(&mut self) {
        let Some(packing) = self.errands.packing.take_if(|packing| packing.has_begun) else {
            return;
        };
        let packed = &mut self.errands.packed;
        packed.insert(packing.storage, packing.pack.at);
        let (me, epoch) = (self.me, self.promised);
        self.give_turn(me, PackStage::Done);
        if let Some(leader) = &self.leader {
            let member = leader.member.clone();
            let stage = PackStage::Done;
            self.send_one(&member, Content::Packing { epoch, stage });
        }
    }

    /// Every tick.
    pub(super) fn look_at_admin(&mut self) {
        let Office::Primary(primary) = &self.office else {
            self.ask_for_turn();
            return;
        };
        if primary.duties.is_swapping() {
            // So that the other one says soon how far it is.
            self.beat();
        }
        self.look_at_sync();
        self.ask_for_turn();
    }

    /// The time of day at a member, as far as it has said.
    pub(super) fn clock_of(&self, stated: &super::view::Stated) -> std::time::Duration {
        stated.state.wall + self.now.instant.saturating_duration_since(stated.at)
    }

    /// All that have said their state.
    pub(super) fn stated(&self) -> impl Iterator<Item = (&MemberId, &super::view::Stated)> {
        self.view.iter().flat_map(View::stated)
    }
}
