//! Who is there, and the barrier of a view.
//!
//! In each view every member says its state; when it knows those of all, it says `Unblock` with the
//! name of the view; and when all have, what is not recovery goes on. So what was queued before the
//! change and comes after it is held off. A member that takes too long is not waited for. No rule
//! of safety rests on any of this.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::event::Notice;
use super::follow::Leader;
use super::members::{Members, Voter};
use super::message::{Content, NodeKind, Position, Role, Sender, State};
use super::mutant::{self, Mutant};
use super::primary::Primary;
use super::{Office, Replica};
use crate::group::{MemberId, ViewId};
use crate::ids::{Epoch, NodeId, Tid};
use crate::limits::{
    CLOCK_DIFFERENCE_LASTS, CLOCK_DIFFERENCE_MAX, CLOCK_DIFFERENCE_WARNED, GONE_AFTER,
    STATE_INTERVAL, UNBLOCK_MAX,
};

/// A view, as far as it is known.
#[derive(Debug)]
pub(super) struct View {
    pub(super) id: ViewId,
    me: MemberId,
    pub(super) members: BTreeMap<MemberId, Member>,
    began: Instant,
    said: Option<Said>,
    /// Somebody should know better.
    pub(super) wants_state: bool,
    unblocked: Option<Instant>,
    /// Messages that are not of recovery may be sent.
    pub(super) is_open: bool,
    /// Those that something was wrong with: each is told of once in a view.
    complained_of: BTreeSet<NodeId>,
}

/// What is known of a member.
#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) stated: Option<Stated>,
    unblocked: bool,
}

/// What a member has said.
#[derive(Debug)]
pub(super) struct Stated {
    pub(super) sender: Sender,
    pub(super) state: State,
    pub(super) at: Instant,
}

/// What was said of oneself, and when.
#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    role: Role,
    hears: Option<Epoch>,
    promised: Epoch,
    last: Position,
}

/// How right the clock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Clock {
    Right,
    /// Somebody should look after it.
    Differs,
    /// Not fit for a primary.
    Off,
}

impl View {
    /// This node's name in the group.
    pub(super) const fn me(&self) -> &MemberId {
        &self.me
    }

    /// All that have said their state.
    pub(super) fn stated(&self) -> impl Iterator<Item = (&MemberId, &Stated)> {
        let members = self.members.iter();
        members.filter_map(|(id, member)| Some((id, member.stated.as_ref()?)))
    }

    /// The member that goes by this name.
    pub(super) fn find(&self, node: NodeId) -> Option<(&MemberId, &Stated)> {
        self.stated().find(|(_, stated)| stated.sender.node == node)
    }

    fn knows_all(&self) -> bool {
        self.members.values().all(|member| member.stated.is_some())
    }

    fn is_complained_of(&mut self, node: NodeId) -> bool {
        !self.complained_of.insert(node)
    }
}

impl Replica {
    pub(super) fn on_view(&mut self, id: ViewId, members: Vec<MemberId>, me: MemberId) {
        let members = members
            .into_iter()
            .map(|member| (member, Member::default()));
        self.view = Some(View {
            id,
            me,
            members: members.collect(),
            began: self.now.instant,
            said: None,
            wants_state: false,
            unblocked: None,
            is_open: mutant::is(Mutant::UnblockNotAwaited),
            complained_of: BTreeSet::new(),
        });
        self.lost_since = None;
        let view = self.view.as_ref();
        if let (Some(view), Some(leader)) = (view, &mut self.leader) {
            match view.members.contains_key(&leader.member) {
                true => leader.absent_since = None,
                false => _ = leader.absent_since.get_or_insert(self.now.instant),
            }
        }
        self.say_state();
    }

    pub(super) fn on_lost(&mut self) {
        self.view = None;
        self.lost_since.get_or_insert(self.now.instant);
    }

    /// Whether this member is us.
    pub(super) fn is_me(&self, member: &MemberId) -> bool {
        self.view.as_ref().is_some_and(|view| view.me == *member)
    }

    /// Whether messages that are not of recovery may be sent.
    pub(super) fn is_unblocked(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.is_open)
    }

    pub(super) fn ignore_foreign(&mut self, from: &MemberId, sender: &Sender, content: &Content) {
        if let (Some(view), Content::State(_)) = (&mut self.view, content)
            && view.members.contains_key(from)
            && !view.is_complained_of(sender.node)
        {
            self.tell(Notice::OtherHistory(sender.node, sender.history));
        }
    }

    pub(super) fn on_state(&mut self, from: &MemberId, sender: Sender, state: State) {
        let (at, pace) = (self.now.instant, self.pace());
        let Some(view) = &mut self.view else {
            return;
        };
        let is_mine = view.me == *from;
        let Some(member) = view.members.get_mut(from) else {
            return;
        };
        let (role, promised, hears) = (state.role, state.promised, state.hears);
        let (began, is_of_this_view) = (view.began, state.view == view.id);
        // Who has begun just now has not heard what was said before.
        let is_late = view.is_open && member.stated.is_none() && !is_mine;
        view.wants_state |= is_of_this_view && is_late;
        if is_of_this_view || member.stated.is_some() {
            member.stated = Some(Stated { sender, state, at });
        }
        if is_mine {
            return;
        }
        self.complain(&sender);
        if self.is_impostor(&sender) {
            return;
        }
        // It was said behind the beginning of the view.
        if promised == self.promised
            && is_of_this_view
            && let Office::Primary(primary) = &mut self.office
        {
            primary.on_contact(sender.voter(), began, pace / 2, at);
        }
        // R4. Its word is as good as what it proposes.
        if role == Role::Primary && promised.node == sender.node && hears == Some(promised) {
            self.hear(from, promised);
        }
    }

    /// Whether this has the name of somebody who is counted, and another disk: what it claims and
    /// promises in that name is void. By the newest log it may have been counted since: who was
    /// away, and does not know, has to follow it to learn that.
    pub(super) fn is_impostor(&self, sender: &Sender) -> bool {
        if mutant::is(Mutant::ForeignDiskCounted) {
            return false;
        }
        let voter = sender.voter();
        let is_one_of = |members: &Members| members.electors().any(|who| *who == voter);
        let members = &self.log.settings().members;
        let is_named = members.electors().any(|who| who.node == voter.node);
        is_named && !is_one_of(members) && !is_one_of(self.newest().members)
    }

    fn complain(&mut self, sender: &Sender) {
        let notice = match () {
            () if sender.node == self.me.node => Notice::Namesakes(sender.node),
            () if self.is_impostor(sender) => Notice::OtherDisk(sender.voter()),
            () => return,
        };
        let view = self.view.as_mut();
        if view.is_some_and(|view| !view.is_complained_of(sender.node)) {
            self.tell(notice);
        }
    }

    pub(super) fn on_unblock(&mut self, from: &MemberId, id: ViewId) {
        let Some(view) = &mut self.view else {
            return;
        };
        if let Some(member) = view.members.get_mut(from)
            && (view.id == id || mutant::is(Mutant::StaleUnblock))
        {
            member.unblocked = true;
        }
    }

    /// The barrier.
    pub(super) fn go_on_with_view(&mut self) {
        let (now, pace) = (self.now.instant, self.pace());
        let Some(view) = &mut self.view else {
            return;
        };
        if view.is_open || view.said.is_none() {
            return;
        }
        // Far within a lease, or the primary would leave because of a member that is mute.
        let is_late = now >= view.began + UNBLOCK_MAX.min(pace / 2);
        let id = view.id;
        if (view.knows_all() || is_late)
            && view.unblocked.is_none_or(|at| now >= at + STATE_INTERVAL)
        {
            view.unblocked = Some(now);
            self.send_all(Content::Unblock { view: id });
        }
        if let Some(view) = &mut self.view
            && (is_late || view.members.values().all(|member| member.unblocked))
        {
            view.is_open = true;
            self.on_open_view();
        }
    }

    /// Whether the view is open, and has been there for so long that those who are not in it are
    /// gone.
    fn is_lasting(&self, view: &View) -> bool {
        view.is_open && self.now.instant >= view.began + self.gone_after()
    }

    fn gone_after(&self) -> Duration {
        GONE_AFTER.min(self.pace() / 4)
    }

    /// Of a primary: whether a quorum has another view, and another primary soon. When it was new
    /// some of them were in no view of it, either.
    pub(super) fn is_apart(&self, primary: &Primary) -> bool {
        let is_new = self.now.instant < primary.since + self.gone_after();
        let is_lasting = match &self.view {
            // Those who are mute may be anybody.
            Some(view) => self.is_lasting(view) && view.knows_all(),
            None => {
                let is_long_ago = |at| self.now.instant >= at + self.pace();
                self.lost_since.is_some_and(is_long_ago)
            }
        };
        let is_here = |voter: &Voter| {
            let mut stated = self.view.iter().flat_map(View::stated);
            *voter == self.me || stated.any(|(_, it)| it.sender.voter() == *voter)
        };
        let members = &self.log.settings().members;
        is_lasting && !is_new && members.is_majority(|voter| !is_here(voter))
    }

    /// Whether the primary that is followed has gone: its session with the daemon is over, or it is
    /// in office no more.
    fn is_left_by(&self, leader: &Leader) -> bool {
        let Some(view) = &self.view else {
            return false;
        };
        let is_over = |it: &Stated| {
            it.sender.node == self.promised.node
                && it.state.view == view.id
                && it.state.role == Role::Replica
                && it.at > leader.heard
                && !self.is_impostor(&it.sender)
        };
        let is_long_ago = |at| self.now.instant >= at + self.gone_after();
        view.stated().any(|(_, it)| is_over(it))
            || view.is_open && leader.absent_since.is_some_and(is_long_ago)
    }

    /// The epoch whose primary has been heard of within a lease, and is in the view; of a primary,
    /// its own, if a quorum has been heard of.
    pub(super) fn hears(&self) -> Option<Epoch> {
        let now = self.now.instant;
        match &self.office {
            Office::Primary(primary) => self
                .has_lease(primary, self.options.lease)
                .then_some(primary.epoch),
            Office::Candidate(_) => None,
            Office::Replica => {
                let leader = self.leader.as_ref()?;
                let is_here = now < leader.heard + self.options.lease && !self.is_left_by(leader);
                is_here.then_some(self.promised)
            }
        }
    }

    /// Says how things are, if others do not know.
    pub(super) fn say_state(&mut self) {
        let (now, hears, role) = (self.now.instant, self.hears(), self.role());
        let (promised, last) = (self.durable, self.log.last());
        let tick = self.tick();
        let Some(view) = &mut self.view else {
            return;
        };
        let is_due = view.said.is_none_or(|said| {
            let age = now.saturating_duration_since(said.at);
            let is_other = said.promised != promised || view.wants_state;
            let is_alone = hears.is_none() && (said.last != last || age >= STATE_INTERVAL);
            let is_waiting = !view.is_open && age >= STATE_INTERVAL;
            (said.role, said.hears) != (role, hears)
                || age >= tick && (is_other || is_alone || is_waiting)
                || age >= 5 * STATE_INTERVAL
        });
        if !is_due {
            return;
        }
        view.wants_state = false;
        view.said = Some(Said {
            at: now,
            role,
            hears,
            promised,
            last,
        });
        let view = view.id;
        let has_gap = self.log.history_from() != Tid::ZERO;
        let may_lead = !has_gap || self.options.leads_without_history;
        let may_lead = may_lead && !self.stands_aside;
        self.send_all(Content::State(Box::new(State {
            view,
            promised,
            last,
            committed: self.log.committed(),
            applied: self.log.applied(),
            role,
            hears,
            kind: self.options.kind,
            site: self.options.site.clone(),
            home: self.log.settings().home.clone(),
            members: self.log.settings().members.clone(),
            priority: if may_lead { self.options.priority } else { 0 },
            history_from: self.log.history_from(),
            wall: self.now.wall,
        })));
    }

    /// The wall clock that most show now, as far as they have said: that of the middle, or, of
    /// two, the earlier one. A clock that runs ahead drags all later tids into the future.
    fn median_clock(&self) -> Duration {
        let now = self.now.instant;
        let stated = self.view.iter().flat_map(View::stated);
        let others = stated.filter(|(member, stated)| {
            !self.is_me(member) && stated.state.kind != NodeKind::Observer
        });
        let others =
            others.map(|(_, stated)| stated.state.wall + now.saturating_duration_since(stated.at));
        let mut clocks: Vec<_> = others.chain([self.now.wall]).collect();
        clocks.sort_unstable();
        clocks[(clocks.len() - 1) / 2]
    }

    /// Every tick: a clock that begins to be wrong, and stays so, is told of.
    pub(super) fn look_at_clock(&mut self) {
        let error = self.now.wall.abs_diff(self.median_clock());
        let clock = match error {
            _ if error > CLOCK_DIFFERENCE_MAX => Clock::Off,
            _ if error > CLOCK_DIFFERENCE_WARNED => Clock::Differs,
            _ => Clock::Right,
        };
        if clock <= self.clock {
            self.clock = clock;
            self.clock_worse_since = None;
            return;
        }
        // What waited while this node was stopped is taken for new; then comes what is.
        let since = *self.clock_worse_since.get_or_insert(self.now.instant);
        if self.now.instant >= since + CLOCK_DIFFERENCE_LASTS {
            self.clock = clock;
            self.clock_worse_since = None;
            self.tell(Notice::ClockOff(error));
        }
    }

    /// By how much this clock is off, if that is too much to be primary.
    pub(super) fn clock_error(&self, wall: Duration) -> Option<Duration> {
        let error = wall.abs_diff(self.median_clock());
        (error > CLOCK_DIFFERENCE_MAX).then_some(error)
    }
}
