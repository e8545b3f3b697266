//! What people want of a node, and want to know of it.

use std::cmp::Reverse;
use std::time::Duration;

use super::found::Blank;
use super::roster::Peer;
use super::wishes::{Refused, What};
use super::{Node, Output, Phase, RESIGN_INTERVAL};
use crate::group::{MemberId, ViewId};
use crate::ids::{Epoch, HistoryId, NodeId, Tid};
use crate::replica::event::{Event, MemberChange, Now, Refusal, Serving, Token};
use crate::replica::members::Members;
use crate::replica::message::{NodeKind, Role};
use crate::replica::overview::Overview;
use crate::replica::settings::StorageName;

impl Node {
    /// Another node is to be primary: this one, or whoever is best.
    pub fn swap(&mut self, token: Token, to: Option<NodeId>, now: Now) {
        self.wish(token, What::Swap(to), now);
        let Some(to) = to.or_else(|| self.best_successor()) else {
            let (refusal, text) = match self.is_primary() {
                true => (
                    Refusal::NoQuorum,
                    "no other voter is here that could be primary (with a priority above 0, and \
                     all revisions)"
                        .to_owned(),
                ),
                false => {
                    let refused = self.refused(&What::Swap(to), Refusal::NotPrimary);
                    (refused.refusal, refused.text)
                }
            };
            return self.end_wish(token, Err(Refused { refusal, text }));
        };
        self.ask(token, Event::Swap { token, to }, now);
    }

    /// The members are to be changed.
    pub fn change_members(&mut self, token: Token, change: MemberChange, now: Now) {
        self.wish(token, What::Members(change), now);
        self.ask(token, Event::ChangeMembers { token, change }, now);
    }

    /// A storage is to be packed on all nodes.
    pub fn order_pack(&mut self, token: Token, storage: StorageName, tid: Tid, now: Now) {
        self.wish(token, What::Pack, now);
        let event = Event::OrderPack {
            token,
            storage,
            tid,
        };
        self.ask(token, event, now);
    }

    /// This node is to be primary: as nobody is and enough others are here; or with a loss, as they
    /// never will be. Then what it has is the past of `new_history`, and it is alone in that.
    pub fn promote(&mut self, token: Token, accepts_loss: bool, new_history: HistoryId, now: Now) {
        self.wish(token, What::Promote, now);
        if !accepts_loss {
            return self.ask(token, Event::TakeOffice { token }, now);
        }
        let Some(overview) = self.overview() else {
            return self.ask(token, Event::TakeOffice { token }, now);
        };
        // What it has is nothing: those that have the data would have to follow it.
        if self.roster.me().kind == NodeKind::Arbiter {
            let refusal = Refusal::NotEligible(overview.me.node);
            return self.on_answer(token, Err(refusal), now);
        }
        if overview.role == Role::Primary || self.renewal.is_some() {
            return self.on_answer(token, Err(Refusal::Already), now);
        }
        // Of all commands it is the only one that loses something: not where nothing has to be.
        if let Some(refused) = self.needless_loss(&overview, now) {
            return self.end_wish(token, Err(refused));
        }
        let me = overview.me;
        let members = Members {
            voters: [me].into(),
            arbiter: None,
        };
        // Those that are here may have heard of later ones.
        let heard = overview.last_tid;
        let storages = &self.options.storages;
        let settings = overview
            .settings
            .after_loss(members, storages, heard, now.wall);
        self.tell(
            format!(
                "an administrator accepts a loss: the log up to {} is the past of history \
                 {new_history}, which begins with this node alone",
                overview.last.seq
            ),
            now,
        );
        self.serving = Serving::default();
        self.outputs.push_back(Output::Serve(self.serving));
        self.phase = Phase::Blank(Blank::new(now.instant));
        self.finishing.clear();
        self.outputs.push_back(Output::BegunAnew);
        // What the old replica wanted is of no use.
        self.drop_disk_queue();
        self.give_up_refresh("a loss was accepted here", now);
        self.renewal = Some(token);
        self.make_journal(new_history, settings);
    }

    /// Who could be primary instead, the best first: as far in the log, and preferred.
    pub fn best_successor(&self) -> Option<NodeId> {
        let overview = self.overview()?;
        let fit = overview.members.iter().filter(|it| {
            it.voter != overview.me
                && overview.settings.members.is_voter(&it.voter)
                && it.state.kind == NodeKind::Data
                && it.state.priority > 0
                && it.state.history_from == Tid::ZERO
        });
        let home = &overview.settings.home;
        let best = fit.max_by_key(|it| {
            let seq = it.acked.map_or(it.state.last.seq, |(seq, _)| seq);
            (
                it.state.site == *home,
                it.state.priority,
                seq,
                Reverse(it.voter),
            )
        });
        best.map(|it| it.voter.node)
    }

    /// This node comes last in elections, or does no more. See [`Event::StandAside`].
    pub fn stand_aside(&mut self, aside: bool, now: Now) {
        self.stands_aside = aside;
        self.tell_aside(now);
    }

    /// Tells the replica whether it stands aside.
    pub(super) fn tell_aside(&mut self, now: Now) {
        if matches!(self.phase, Phase::Running(_)) {
            let aside = self.stands_aside || self.lacks_room.is_some();
            self.step(Event::StandAside(aside), now);
        }
    }

    /// Nothing is applied, as there is no room: a primary answers nobody then. It leaves its office
    /// to another that could have it, and is the last one to take it; again from time to time,
    /// should it come back to it.
    pub(super) fn on_no_room(&mut self, now: Now) {
        let is_new = self.lacks_room.is_none();
        if self.lacks_room.is_some_and(|at| now.instant < at) {
            return;
        }
        self.lacks_room = Some(now.instant);
        if is_new {
            self.tell_aside(now);
        }
        if self.is_primary() && self.has_heir() {
            self.lacks_room = Some(now.instant + RESIGN_INTERVAL);
            let why = "another node is to be primary, as there is no room here".to_owned();
            self.tell(why, now);
            self.step(Event::Resign, now);
        }
    }

    /// Whether another node is here that takes the office by itself, if this one leaves it.
    fn has_heir(&self) -> bool {
        self.overview().is_some_and(|overview| {
            let home = &overview.settings.home;
            overview.members.iter().any(|it| {
                it.voter != overview.me
                    && overview.settings.members.is_voter(&it.voter)
                    && it.state.kind == NodeKind::Data
                    && it.state.priority > 0
                    && it.state.history_from == Tid::ZERO
                    && (home.is_empty() || it.state.site == *home)
            })
        })
    }

    /// Something was applied.
    pub(super) fn on_room(&mut self, now: Now) {
        if self.lacks_room.take().is_some() {
            self.tell("there is room again".to_owned(), now);
            self.tell_aside(now);
        }
    }

    /// Whether this node is in office.
    pub fn is_primary(&self) -> bool {
        matches!(&self.phase, Phase::Running(replica) if replica.role() == Role::Primary)
    }

    /// The epoch of another primary that this node follows, and has caught up with.
    pub fn follows(&self) -> Option<Epoch> {
        match &self.phase {
            Phase::Running(replica) => replica.follows(),
            Phase::Blank(_) | Phase::Stopped => None,
        }
    }

    /// Who decides between two voters, if anybody does.
    pub fn arbiter(&self) -> Option<NodeId> {
        let members = self.overview()?.settings.members;
        members.arbiter.map(|arbiter| arbiter.node.node)
    }

    /// Who is primary, as far as it is known.
    pub fn primary(&self) -> Option<NodeId> {
        let overview = self.overview()?;
        let primary = overview.primary?;
        self.roster.peer(&primary).map(|peer| peer.name)
    }

    fn ask(&mut self, token: Token, event: Event, now: Now) {
        if matches!(self.phase, Phase::Running(_)) {
            return self.step(event, now);
        }
        self.on_answer(token, Err(Refusal::NotPrimary), now);
    }

    /// What the replica knows, if there is one.
    pub fn overview(&self) -> Option<Overview> {
        match &self.phase {
            Phase::Running(replica) => Some(replica.overview()),
            Phase::Blank(_) | Phase::Stopped => None,
        }
    }

    /// What it does, in words.
    pub fn state(&self) -> String {
        match &self.phase {
            Phase::Stopped => "stopped".to_owned(),
            Phase::Blank(blank) => blank.state(self.roster.me().kind),
            Phase::Running(_) if self.roster.view().is_none() => "alone".to_owned(),
            Phase::Running(_) => "running".to_owned(),
        }
    }

    /// Why it must not go on.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// The view that it is in.
    pub fn view(&self) -> Option<ViewId> {
        self.roster.view_id()
    }

    /// How many members it has; zero without one.
    pub fn view_count(&self) -> usize {
        self.roster.view().map_or(0, |view| view.members.len())
    }

    /// The members that have said who they are.
    pub fn peers(&self) -> impl Iterator<Item = (&MemberId, &Peer)> {
        self.roster.peers()
    }

    /// What was told lately, with times since 1970.
    pub fn notices(&self) -> impl Iterator<Item = &(Duration, String)> {
        self.notices.iter()
    }
}
