//! The network: partitions, merges, and messages that get to some only.
//!
//! A partition cuts parts at once: from then on what is sent in one does not get to the other, and
//! in each what needs the others to confirm it waits. After the time for detection ([`complete`])
//! each part tells its groups that lose members that their views end, delivers what waits, and
//! installs the new configuration. A merge is noticed by nobody before it is complete.
//!
//! [`complete`]: Daemons::complete_change

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use standby::group::spread::wire::{MessageType, Name};

use super::deliver::View;
use super::part::{Event, Group, Member, NodeId, Part};
use super::{Daemons, NODES_MAX, Node, SessionId};

/// A message that gets to some only; then these part from the others.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    /// Who is parted from all others
    pub(super) nodes: BTreeSet<NodeId>,
    pub(super) kind: LossKind,
}

/// Which message it is, and who gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossKind {
    /// The next message gets to the sender's side only.
    Any,
    /// The next SAFE message gets to the sender's side only.
    Safe,
    /// The next SAFE message gets to all, but only the others learn that it did.
    Unconfirmed,
}

impl Daemons {
    /// The network is now as `components` say, and this will be noticed after a while. Nodes that
    /// are in none of them have each other. Returns whether anything has changed.
    pub(super) fn change_network(&mut self, mut components: Vec<BTreeSet<NodeId>>) -> bool {
        let named: BTreeSet<NodeId> = components.iter().flatten().copied().collect();
        let all = (0..self.nodes.len()).map(NodeId);
        components.push(all.filter(|node| !named.contains(node)).collect());
        components.retain(|component| !component.is_empty());
        let is_new = |component: &BTreeSet<NodeId>| !components.contains(component);
        if !self.network().iter().any(is_new) {
            return false;
        }
        // One after the other: that is what comes out when they are far enough apart.
        self.complete_change();
        for part in std::mem::take(&mut self.parts) {
            for component in &components {
                let nodes: BTreeSet<_> = part.nodes.intersection(component).copied().collect();
                if !nodes.is_empty() {
                    self.parts.push(part.piece(nodes));
                }
            }
        }
        self.change = Some((self.now + self.options.detection, components));
        true
    }

    /// The change of the network is noticed by all.
    pub(super) fn complete_change(&mut self) {
        let Some((_, components)) = self.change.take() else {
            return;
        };
        for at in 0..self.parts.len() {
            let part = &self.parts[at];
            if part.cut || !components.contains(&part.nodes) {
                self.end_configuration(at);
            }
        }
        for component in components {
            if !self
                .parts
                .iter()
                .any(|part| part.nodes == component && !part.cut)
            {
                self.install(component);
            }
        }
        log::info!("the network: {}", self.describe_parts());
        for daemon in 0..self.options.names.len() {
            self.update_accepting(daemon);
        }
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for id in sessions {
            self.wake(id);
            self.update_reading(id);
        }
    }

    /// Says to groups that lose members that their views end, and delivers what has waited, to
    /// those who are here.
    fn end_configuration(&mut self, at: usize) {
        let nodes = self.parts[at].nodes.clone();
        let transitional = self.new_ring(&nodes);
        let part = &mut self.parts[at];
        part.transitional = true;
        part.ring = transitional;
        let mut losing = Vec::new();
        for (name, group) in &mut part.groups {
            if group
                .members
                .values()
                .any(|it| !part.nodes.contains(&it.node))
            {
                losing.push(*name);
            }
        }
        for name in losing {
            // By the name of the view that ends; those of this period get a name of their own.
            self.tell_transition(at, name);
            if let Some(group) = self.parts[at].groups.get_mut(&name) {
                group.id = transitional.view(1);
                group.transitional = true;
            }
        }
        while let Some(event) = self.parts[at].pop(self.now) {
            self.deliver(at, event);
        }
    }

    /// Puts what is left of old configurations together to a new one.
    fn install(&mut self, nodes: BTreeSet<NodeId>) {
        let ring = self.new_ring(&nodes);
        let (mut old, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parts)
            .into_iter()
            .partition(|part| part.nodes.is_subset(&nodes));
        self.parts = others;
        // The order of sets in views.
        old.sort_by_key(|part| (part.ring, part.nodes.first().copied()));
        let mut part = Part::new(nodes, ring);
        let names: BTreeSet<Name> = old
            .iter()
            .flat_map(|it| it.groups.keys().copied())
            .collect();
        let mut changed = Vec::new();
        for name in names {
            let mut members: BTreeMap<(usize, Name), Member> = BTreeMap::new();
            let mut sets = Vec::new();
            let mut lost = false;
            let mut id = ring.view(1);
            for from in &old {
                let Some(group) = from.groups.get(&name) else {
                    continue;
                };
                let here = group.members.iter().filter(|(_, member)| from.has(member));
                let here: Vec<_> = here.map(|(key, member)| (*key, *member)).collect();
                lost |= here.len() < group.members.len() || group.transitional;
                if !here.is_empty() {
                    id = group.id;
                    sets.push(here.iter().map(|((_, name), _)| *name).collect::<Vec<_>>());
                    members.extend(here);
                }
            }
            if members.is_empty() {
                continue;
            }
            if lost || sets.len() > 1 {
                id = ring.view(1);
                changed.push((name, sets));
            }
            let group = Group {
                id,
                members,
                transitional: false,
            };
            part.groups.insert(name, group);
        }
        let at = self.parts.len();
        self.parts.push(part);
        for (name, sets) in changed {
            let group = self.parts[at].groups.get(&name);
            let Some((id, members)) = group.map(|group| (group.id, group.names())) else {
                continue;
            };
            let cause = MessageType::CAUSED_BY_NETWORK;
            let view = View {
                group: name,
                id,
                cause,
                members,
                sets,
            };
            self.tell(at, &view);
        }
    }

    /// If this is the message that shall be lost: parts those who do not get it. Returns whether it
    /// was put where it belongs.
    pub(super) fn lose_if_told(&mut self, from: NodeId, event: &Event, due: Instant) -> bool {
        let (Event::Message(message), Some(loss)) = (event, &self.loss) else {
            return false;
        };
        let concerned = |nodes: &BTreeSet<NodeId>| {
            !loss.nodes.is_disjoint(nodes) && !loss.nodes.is_superset(nodes)
        };
        // Who does not get it anyway does not lose it: then it is for the next one.
        let nodes = &self.parts[self.part_of(from)].nodes;
        if !(loss.kind == LossKind::Any || message.safe) || !concerned(nodes) {
            return false;
        }
        let loss = loss.clone();
        self.loss = None;
        self.complete_change();
        let before = self.parts[self.part_of(from)].nodes.clone();
        log::info!("a message is lost on its way");
        self.cut_off(&loss.nodes);
        for at in 0..self.parts.len() {
            let part = &mut self.parts[at];
            let sent_here = part.nodes.contains(&from);
            let received = loss.kind == LossKind::Unconfirmed && part.nodes.is_subset(&before);
            if sent_here || received {
                let confirmed = received && part.nodes.is_disjoint(&loss.nodes);
                part.push(event.clone(), due, confirmed);
                self.update_flow(at);
            }
        }
        true
    }

    /// Who has each other, whether that was noticed or not.
    fn network(&self) -> Vec<BTreeSet<NodeId>> {
        match &self.change {
            Some((_, components)) => components.clone(),
            None => self.parts.iter().map(|part| part.nodes.clone()).collect(),
        }
    }

    /// Parts nodes from all others, and not from each other if they have each other now.
    pub(super) fn cut_off(&mut self, nodes: &BTreeSet<NodeId>) -> bool {
        let network = self.network();
        let pieces = network.iter().flat_map(|it| [it - nodes, it & nodes]);
        self.change_network(pieces.collect())
    }

    /// A daemon ends, with all that it knows, and begins anew, parted from the others.
    pub(super) fn crash(&mut self, daemon: usize) {
        let nodes = self.nodes_of_daemon(daemon);
        self.cut_off(&nodes);
        let sessions = self.sessions.iter();
        let its = sessions.filter(|(_, session)| session.daemon == daemon);
        for id in its.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_session(id, "its daemon has crashed");
        }
        for at in 0..self.parts.len() {
            if self.parts[at].nodes.is_subset(&nodes) {
                let nodes = self.parts[at].nodes.clone();
                let ring = self.new_ring(&nodes);
                self.parts[at].forget(ring);
            }
        }
        // Nobody else has known these names.
        let gone = self.options.names[daemon].as_bytes();
        let sessions = &self.sessions;
        self.names.retain(|name, id| {
            let here = name.parts().is_some_and(|(_, daemon)| daemon == gone);
            sessions.contains_key(id) || !here
        });
    }

    /// A daemon's own node, and those of its sessions that have one.
    pub(super) fn nodes_of_daemon(&self, daemon: usize) -> BTreeSet<NodeId> {
        let nodes = self.nodes.iter().enumerate();
        let its = nodes.filter(|(_, node)| node.daemon == daemon);
        its.map(|(at, _)| NodeId(at)).collect()
    }

    /// The node that sessions of this name have for themselves, if they have one.
    pub(super) fn node_of_name(&self, name: &Name) -> Option<NodeId> {
        let found = self
            .nodes
            .iter()
            .position(|node| node.user.as_ref() == Some(name));
        found.map(NodeId)
    }

    /// Gives a session a node of its own, in the part where it is. So have those that come later by
    /// the same name.
    pub(super) fn separate(&mut self, id: SessionId) -> Result<NodeId, String> {
        let Some(session) = self.sessions.get_mut(&id) else {
            return Err("there is no such session".to_owned());
        };
        if self
            .nodes
            .get(session.node.0)
            .is_some_and(|node| node.user.is_some())
        {
            return Ok(session.node);
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("more than {NODES_MAX} names were in partitions"));
        }
        let node = NodeId(self.nodes.len());
        let old = std::mem::replace(&mut session.node, node);
        self.nodes.push(Node {
            daemon: session.daemon,
            user: Some(session.name),
        });
        let at = self.part_of(old);
        self.parts[at].nodes.insert(node);
        for component in self
            .change
            .iter_mut()
            .flat_map(|(_, components)| components)
        {
            if component.contains(&old) {
                component.insert(node);
            }
        }
        for part in &mut self.parts {
            part.move_session(id, node);
        }
        Ok(node)
    }
}
