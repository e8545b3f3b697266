//! A node without a journal: either it founds a cluster together with others of its kind, or it
//! becomes a part of one that there is.
//!
//! *Founding* happens once: all voters of the configuration are here, and none of them has a
//! journal. The one that has data, or else the one whose name is first, makes the journal; it names
//! all of them with their disks, so none can be founded into two clusters. All others then find a
//! cluster that is there.
//!
//! *Becoming a part*: the database of a member is copied, and the journal begins behind it. Only
//! then does the node say anything in the cluster: a voter that has no data yet has no voice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::disk::Request;
use super::roster::Peer;
use super::{Copy, Node, Output, Phase};
use crate::group::{MemberId, ViewId};
use crate::ids::{HistoryId, NodeId, Seq};
use crate::log_disk::{Beside, Found};
use crate::replica::event::Now;
use crate::replica::members::{Arbiter, Members, Voter};
use crate::replica::message::{Content, Message, NodeKind, Role};
use crate::replica::settings::Settings;
use crate::storage::journal::Identity;

/// How long is waited after a copy that came to nothing.
const RETRY_INTERVAL: Duration = Duration::from_secs(3);

/// How often an operator is told what is waited for.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// Who is silent for so long does not say who it is: what it says may be refused, as its key is
/// another one.
const SILENT_MAX: Duration = Duration::from_secs(6);

/// What was copied of another node.
#[derive(Debug)]
pub enum Copied {
    /// The database, beside ours.
    Beside(Box<Beside>),
    /// For an arbiter: the history, and what its nodes have agreed on.
    Settings(HistoryId, Box<Settings>),
}

/// A node without a journal.
#[derive(Debug)]
pub(super) struct Blank {
    /// What is being done.
    work: Work,
    /// Nothing is tried before: the last copy came to nothing.
    rests_until: Instant,
    /// When it is looked again, whatever happens.
    look_at: Instant,
    /// What was told last, and when it may be told again.
    told: Option<(String, Instant)>,
    /// Members that are in office, as they say.
    primaries: BTreeSet<MemberId>,
    /// Since when there are members of this view that have not said who they are.
    silent: Option<(Option<ViewId>, Instant)>,
}

/// What a node without a journal does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    Nothing,
    /// Copies from there.
    Copying(NodeId),
    /// Makes the journal.
    Making,
}

impl Blank {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            work: Work::Nothing,
            rests_until: now,
            look_at: now,
            told: None,
            primaries: BTreeSet::new(),
            silent: None,
        }
    }

    /// Others talk to each other: who of them is in office is seen by that.
    pub(super) fn on_message(&mut self, from: MemberId, message: &Message) {
        if let Content::State(state) = &message.content {
            match state.role {
                Role::Primary => self.primaries.insert(from),
                Role::Replica | Role::Candidate => self.primaries.remove(&from),
            };
        }
    }

    /// What it waits for.
    pub(super) fn state(&self, kind: NodeKind) -> String {
        match (&self.work, &self.told) {
            (Work::Copying(from), _) if kind == NodeKind::Arbiter => {
                format!("what the nodes have agreed on is asked of {from}")
            }
            (Work::Copying(from), _) => format!("the database is copied from {from}"),
            (Work::Making, _) => "the journal is made".to_owned(),
            (Work::Nothing, Some((what, _))) => what.clone(),
            (Work::Nothing, None) => "there is no journal yet".to_owned(),
        }
    }

    fn is_busy(&self) -> bool {
        self.work != Work::Nothing
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.is_busy()).then_some(self.look_at)
    }
}

/// What there is to be done.
enum Step {
    /// Found a cluster.
    Found(Members),
    /// Copy from this member.
    Join(MemberId),
    /// Wait, and say for what.
    Wait(String),
}

impl Node {
    /// Does what a node without a journal can do now.
    pub(super) fn look_at_founding(&mut self, now: Now) {
        let Phase::Blank(blank) = &mut self.phase else {
            return;
        };
        if blank.is_busy() || now.instant < blank.rests_until {
            return;
        }
        blank.look_at = now.instant + RETRY_INTERVAL;
        let step = if self.roster.knows_all() {
            blank.silent = None;
            self.next_step()
        } else {
            let view = self.roster.view_id();
            let known = blank.silent.filter(|(of, _)| *of == view);
            let (_, since) = *blank.silent.insert(known.unwrap_or((view, now.instant)));
            // One that has not said who it is may be part of a cluster.
            if now.instant < since + SILENT_MAX {
                return;
            }
            self.step_beside_silent()
        };
        match step {
            Step::Found(members) => {
                let voters: Vec<&str> = members.voters.iter().map(|it| it.node.as_str()).collect();
                log::info!("this node founds a cluster of {}", voters.join(", "));
                let settings = Settings {
                    members,
                    ..Settings::default()
                };
                self.make_journal(self.new_history, settings);
            }
            Step::Join(member) => self.begin_copy(&member),
            Step::Wait(what) => self.tell_now_and_then(what, now),
        }
    }

    /// Not all members say who they are. Of a cluster that is there they keep nobody out; but none
    /// is founded, as they may be part of one.
    fn step_beside_silent(&self) -> Step {
        if self.roster.view_id().is_none() {
            let what = "this node is in no view of the group: look at its daemon";
            return Step::Wait(what.to_owned());
        }
        if self.roster.peers().any(|(_, peer)| peer.history.is_some()) {
            return self.next_step();
        }
        let silent: Vec<&str> = self.roster.silent().map(MemberId::as_str).collect();
        Step::Wait(format!(
            "{} does not say who it is: its key-file may be another one, of which the log says \
             `refused of`",
            silent.join(", ")
        ))
    }

    fn next_step(&self) -> Step {
        let me = self.roster.me();
        let peers = || self.roster.peers();
        let histories: BTreeSet<HistoryId> = peers().filter_map(|(_, peer)| peer.history).collect();
        if histories.len() > 1 {
            let what = "members of two different clusters are in this group".to_owned();
            return Step::Wait(what);
        }
        if histories.len() == 1 {
            if me.has_data {
                let what = "there is a cluster, and this node has a data file without a journal: \
                            move it away, so that the cluster's can be copied";
                return Step::Wait(what.to_owned());
            }
            return self.donor(peers().filter(|(_, peer)| peer.history.is_some()));
        }
        self.founding(me)
    }

    /// Whom to copy from: not the primary, if there is another.
    fn donor<'a>(&'a self, founded: impl Iterator<Item = (&'a MemberId, &'a Peer)>) -> Step {
        let Phase::Blank(blank) = &self.phase else {
            return Step::Wait(String::new());
        };
        let can =
            founded.filter(|(_, peer)| peer.kind != NodeKind::Arbiter && !peer.address.is_empty());
        let best = can.min_by_key(|(member, _)| blank.primaries.contains(member));
        match best {
            Some((member, _)) => Step::Join(member.clone()),
            None => Step::Wait("no member of the cluster can be copied from".to_owned()),
        }
    }

    /// All are as new as we are: whether it is on us to begin.
    fn founding(&self, me: &Peer) -> Step {
        let wanted = &self.options.voters;
        if wanted.is_empty() {
            let what = "a cluster, as the configuration names no voters that could found one";
            return Step::Wait(format!("this node waits for {what}"));
        }
        let mut here: BTreeMap<NodeId, &Peer> = BTreeMap::new();
        for (_, peer) in self.roster.peers() {
            if here.insert(peer.name, peer).is_some() {
                return Step::Wait(format!("two members go by the name {}", peer.name));
            }
        }
        let names = wanted.iter().chain(&self.options.arbiter);
        let missing: Vec<&str> = names
            .filter(|name| !here.contains_key(name))
            .map(NodeId::as_str)
            .collect();
        if !missing.is_empty() {
            return Step::Wait(format!(
                "a new cluster is founded when all voters are here; missing: {}",
                missing.join(", ")
            ));
        }
        let voters: Vec<&Peer> = wanted
            .iter()
            .filter_map(|name| here.get(name).copied())
            .collect();
        if let Some(other) = voters.iter().find(|peer| peer.kind != NodeKind::Data) {
            return Step::Wait(format!(
                "{} is named as a voter, and has no data",
                other.name
            ));
        }
        let arbiter = self.options.arbiter.and_then(|name| here.get(&name));
        if let Some(other) = arbiter.filter(|peer| peer.kind != NodeKind::Arbiter) {
            return Step::Wait(format!(
                "{} is named as the arbiter, and its role is another one",
                other.name
            ));
        }
        let with_data: Vec<&str> = voters
            .iter()
            .filter(|peer| peer.has_data)
            .map(|peer| peer.name.as_str())
            .collect();
        let founder = match with_data[..] {
            [] => voters.first().map(|peer| peer.name),
            [one] => NodeId::new(one),
            _ => {
                return Step::Wait(format!(
                    "{} have data files each, and only one can be the cluster's: move the others \
                     away",
                    with_data.join(" and ")
                ));
            }
        };
        if founder != Some(me.name) {
            let founder = founder.unwrap_or(NodeId::NONE);
            return Step::Wait(format!("{founder} founds the cluster"));
        }
        let voter = |peer: &&Peer| Voter {
            node: peer.name,
            disk: peer.disk,
        };
        let voters: BTreeSet<Voter> = voters.iter().map(voter).collect();
        Step::Found(Members {
            arbiter: arbiter.map(|peer| Arbiter {
                node: voter(peer),
                in_sync: voters.clone(),
            }),
            voters,
        })
    }

    fn begin_copy(&mut self, from: &MemberId) {
        let Some(address) = self.address_of(from) else {
            return;
        };
        let id = self.number();
        let kind = self.roster.me().kind;
        let name = self
            .roster
            .peer(from)
            .map_or(NodeId::NONE, |peer| peer.name);
        match kind {
            NodeKind::Arbiter => log::info!("the settings are copied from {name} ({address})"),
            _ => log::info!("the database is copied from {name} ({address})"),
        }
        self.outputs.push_back(Output::Copy(Copy {
            id,
            from: address,
            at_least: Seq::ZERO,
            newest_only: self.options.replica.copies_newest_only,
            settings_only: kind == NodeKind::Arbiter,
            is_anew: false,
        }));
        self.begin_work(Work::Copying(name));
    }

    fn begin_work(&mut self, work: Work) {
        if let Phase::Blank(blank) = &mut self.phase {
            blank.work = work;
        }
    }

    /// A copy for a node without a journal has ended.
    pub(super) fn on_seed_copied(&mut self, copied: Result<Copied, String>, now: Now) {
        match copied {
            Ok(Copied::Beside(beside)) => {
                let identity = self.identity(beside.manifest().history());
                self.enqueue(Request::Seed { identity, beside });
            }
            Ok(Copied::Settings(history, settings)) => self.make_journal(history, *settings),
            Err(why) => {
                let what = match self.roster.me().kind {
                    NodeKind::Arbiter => "the settings were",
                    _ => "the database was",
                };
                let what = format!("{what} not copied: {why}");
                let blank = Blank::new(now.instant);
                self.phase = Phase::Blank(Blank {
                    rests_until: now.instant + RETRY_INTERVAL,
                    look_at: now.instant + RETRY_INTERVAL,
                    told: Some((what.clone(), now.instant + TOLD_INTERVAL)),
                    ..blank
                });
                self.tell(what, now);
            }
        }
    }

    pub(super) fn make_journal(&mut self, history: HistoryId, settings: Settings) {
        let identity = self.identity(history);
        self.begin_work(Work::Making);
        let found = Found { identity, settings };
        self.enqueue(Request::Found(Box::new(found)));
    }

    const fn identity(&self, history: HistoryId) -> Identity {
        let me = self.roster.me();
        Identity {
            history,
            node: me.name,
            disk: me.disk,
        }
    }

    fn tell_now_and_then(&mut self, what: String, now: Now) {
        let Phase::Blank(blank) = &mut self.phase else {
            return;
        };
        let is_told = blank
            .told
            .as_ref()
            .is_some_and(|(told, until)| *told == what && now.instant < *until);
        if !is_told {
            // The status says it as long as it is so.
            log::warn!("{what}");
            blank.told = Some((what, now.instant + TOLD_INTERVAL));
        }
    }
}
