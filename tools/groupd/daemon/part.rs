//! A part of the network with one history: what its nodes have in order, and who they think is in
//! which group.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use standby::group::spread::wire::{GroupId, Name};

use super::SessionId;

/// Where sessions live; the first ones are the daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(pub(super) usize);

/// Names a configuration of daemons. Parts of groups' ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RingId {
    pub(super) address: u32,
    pub(super) time: u32,
}

/// Something that has a place in the order of all messages.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A message of a client
    Message(Message),
    /// A session joins a group.
    Join(Who, Name),
    /// A session leaves a group.
    Leave(Who, Name),
    /// A session is over.
    Gone(Who),
}

/// A session, as others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) daemon: usize,
    /// `#user#daemon`
    pub(super) name: Name,
    pub(super) member: Member,
}

/// A message of a client, as all get it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) from: SessionId,
    pub(super) safe: bool,
    pub(super) self_discard: bool,
    pub(super) groups: Vec<Name>,
    /// The bytes before the data
    pub(super) head: Bytes,
    pub(super) data: Bytes,
}

/// Daemons, or sessions of them, that have received the same since they came together.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) nodes: BTreeSet<NodeId>,
    /// What they are, or were, a part of.
    pub(super) ring: RingId,
    pub(super) groups: BTreeMap<Name, Group>,
    /// The network has been cut: those of the ring that are not here cannot confirm anything.
    pub(super) cut: bool,
    /// The end of the configuration has begun: everything is delivered, to those who are left.
    pub(super) transitional: bool,
    /// So much waits that clients are not read.
    pub(super) full: bool,
    /// What was not delivered yet, in order.
    queue: VecDeque<Waiting>,
}

#[derive(Clone, Debug)]
struct Waiting {
    event: Event,
    due: Instant,
    /// All of the ring have it, and are known to.
    confirmed: bool,
}

/// Who is in a group, as a part sees it.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    /// Sorted as in views: by daemon, then by name.
    pub(super) members: BTreeMap<(usize, Name), Member>,
    /// It lost members, and has been told so; the view without them is to come.
    pub(super) transitional: bool,
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) node: NodeId,
}

impl Part {
    pub(super) const fn new(nodes: BTreeSet<NodeId>, ring: RingId) -> Self {
        Self {
            nodes,
            ring,
            groups: BTreeMap::new(),
            cut: false,
            transitional: false,
            full: false,
            queue: VecDeque::new(),
        }
    }

    /// Those of its nodes, with the same history. What was under way has got to all of them.
    pub(super) fn piece(&self, nodes: BTreeSet<NodeId>) -> Self {
        Self {
            cut: nodes != self.nodes,
            nodes,
            ..self.clone()
        }
    }

    /// Puts an event behind all others.
    pub(super) fn push(&mut self, event: Event, due: Instant, confirmed: bool) {
        // The delay may have become shorter.
        let last = self.queue.back().map_or(due, |waiting| waiting.due);
        let due = due.max(last);
        self.queue.push_back(Waiting {
            event,
            due,
            confirmed,
        });
    }

    /// The next event that can be delivered. A SAFE message waits until everybody is known to have
    /// it. So do joins, leaves and ends: two sides that do not know of each other would else have
    /// different views of the same id. Everything else waits behind them.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Event> {
        let first = self.queue.front()?;
        let unconfirmed = self.cut && !first.confirmed && first.event.needs_all();
        if !self.transitional && (first.due > now || unconfirmed) {
            return None;
        }
        self.queue.pop_front().map(|waiting| waiting.event)
    }

    /// When the next one can be delivered, unless it has to be confirmed first.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let first = self.queue.front()?;
        let unconfirmed = self.cut && !first.confirmed && first.event.needs_all();
        (!unconfirmed).then_some(first.due)
    }

    /// Events that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Knows nothing any more, and is a configuration of its own.
    pub(super) fn forget(&mut self, ring: RingId) {
        self.ring = ring;
        self.cut = false;
        self.groups.clear();
        self.queue.clear();
    }

    /// A session has moved to another node.
    pub(super) fn move_session(&mut self, id: SessionId, node: NodeId) {
        let members = self.groups.values_mut();
        let members = members.flat_map(|group| group.members.values_mut());
        let queued = self.queue.iter_mut().filter_map(|it| match &mut it.event {
            Event::Message(_) => None,
            Event::Join(who, _) | Event::Leave(who, _) | Event::Gone(who) => Some(&mut who.member),
        });
        for member in members.chain(queued) {
            if member.session == id {
                member.node = node;
            }
        }
    }

    /// Whether a member is known to be still there.
    pub(super) fn has(&self, member: &Member) -> bool {
        self.nodes.contains(&member.node)
    }
}

impl Group {
    /// The next view of it.
    pub(super) fn count_up(&mut self) {
        let [_, _, index] = &mut self.id.0;
        *index += 1;
    }

    /// All members, in their order.
    pub(super) fn names(&self) -> Vec<Name> {
        self.members.keys().map(|(_, name)| *name).collect()
    }
}

impl RingId {
    /// The view of a group of that index in this configuration.
    pub(super) const fn view(self, index: u32) -> GroupId {
        GroupId([self.address, self.time, index])
    }
}

impl Event {
    /// Whether it is not delivered in a configuration before all of that have it.
    const fn needs_all(&self) -> bool {
        match self {
            Self::Message(message) => message.safe,
            Self::Join(..) | Self::Leave(..) | Self::Gone(..) => true,
        }
    }
}
