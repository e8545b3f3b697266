//! What each event says to whom.

use std::collections::BTreeMap;

use standby::group::spread::wire::{Frame, GroupId, Header, Membership, MessageType, Name};

use super::part::{Event, Group, Message, Who};
use super::{Daemons, Output, SESSION_QUEUE_MAX, SessionId};

/// A view of a group, as it is told to the group.
pub(super) struct View {
    pub(super) group: Name,
    pub(super) id: GroupId,
    pub(super) cause: MessageType,
    /// In the order of the view
    pub(super) members: Vec<Name>,
    pub(super) sets: Vec<Vec<Name>>,
}

impl Daemons {
    /// A message as all get it: in the byte order of the daemon, and the application's type as it
    /// came.
    pub(super) fn message(&self, from: SessionId, mut frame: Frame) -> Message {
        frame.header = Header {
            endian: self.options.endian,
            ..frame.header
        };
        let message_type = frame.header.message_type;
        Message {
            from,
            safe: message_type.intersects(MessageType::SAFE),
            self_discard: message_type.intersects(MessageType::SELF_DISCARD),
            groups: frame.names().collect(),
            head: frame.head(),
            data: frame.data,
        }
    }

    /// An event has its turn in a part.
    pub(super) fn deliver(&mut self, at: usize, event: Event) {
        match event {
            Event::Message(message) => self.deliver_message(at, &message),
            Event::Join(who, group) => self.deliver_join(at, &who, group),
            Event::Leave(who, group) => self.deliver_leave(at, &who, group),
            Event::Gone(who) => self.deliver_gone(at, &who),
        }
    }

    fn deliver_message(&mut self, at: usize, message: &Message) {
        let part = &self.parts[at];
        let mut receivers: Vec<SessionId> = Vec::new();
        for name in &message.groups {
            if let Some(group) = part.groups.get(name) {
                let here = group.members.values().filter(|member| part.has(member));
                receivers.extend(here.map(|member| member.session));
            } else if let Some(id) = self.names.get(name) {
                let session = self.sessions.get(id);
                if session.is_some_and(|session| part.nodes.contains(&session.node)) {
                    receivers.push(*id);
                }
            }
        }
        // One copy each, however many of the groups they are in.
        receivers.sort_unstable();
        receivers.dedup();
        for id in receivers {
            if !(message.self_discard && id == message.from) {
                self.send(id, message);
            }
        }
    }

    fn deliver_join(&mut self, at: usize, who: &Who, name: Name) {
        let part = &mut self.parts[at];
        let first = part.ring.view(0);
        let is_lost = part.transitional && !part.has(&who.member);
        let group = part.groups.entry(name).or_insert_with(|| Group {
            id: first,
            members: BTreeMap::new(),
            transitional: false,
        });
        let key = (who.daemon, who.name);
        if group.members.contains_key(&key) {
            return;
        }
        group.members.insert(key, who.member);
        group.transitional |= is_lost;
        if group.transitional {
            return self.tell_transitional(at, name, Some(who.name));
        }
        self.tell_change(at, name, MessageType::CAUSED_BY_JOIN, who.name);
    }

    fn deliver_leave(&mut self, at: usize, who: &Who, name: Name) {
        if !self.remove_member(at, who, name) {
            return;
        }
        if self.parts[at].has(&who.member) {
            let frame = Frame::new_self_leave(self.options.endian, name);
            self.send_frame(who.member.session, &frame);
        }
        self.tell_left(at, name, MessageType::CAUSED_BY_LEAVE, who.name);
    }

    fn deliver_gone(&mut self, at: usize, who: &Who) {
        let groups: Vec<Name> = self.parts[at].groups.keys().copied().collect();
        for name in groups {
            if self.remove_member(at, who, name) {
                self.tell_left(at, name, MessageType::CAUSED_BY_DISCONNECT, who.name);
            }
        }
        if self.parts[at].has(&who.member) {
            self.free_name(who.member.session, &who.name);
        }
    }

    /// Takes a session out of a group. Returns whether it was in it.
    fn remove_member(&mut self, at: usize, who: &Who, name: Name) -> bool {
        let groups = &mut self.parts[at].groups;
        let Some(group) = groups.get_mut(&name) else {
            return false;
        };
        let key = (who.daemon, who.name);
        if group
            .members
            .get(&key)
            .is_none_or(|it| it.session != who.member.session)
        {
            return false;
        }
        group.members.remove(&key);
        if group.members.is_empty() {
            groups.remove(&name);
        }
        true
    }

    fn tell_left(&mut self, at: usize, name: Name, cause: MessageType, who: Name) {
        match self.parts[at].groups.get(&name) {
            None => {}
            Some(group) if group.transitional => self.tell_transitional(at, name, None),
            Some(_) => self.tell_change(at, name, cause, who),
        }
    }

    /// Tells a group that one member has come or gone.
    fn tell_change(&mut self, at: usize, name: Name, cause: MessageType, who: Name) {
        let Some(group) = self.parts[at].groups.get_mut(&name) else {
            return;
        };
        // A group that no change of the network has touched keeps the name of an old ring.
        group.count_up();
        let view = View {
            group: name,
            id: group.id,
            cause,
            members: group.names(),
            sets: vec![vec![who]],
        };
        self.tell(at, &view);
    }

    /// Tells a group that is losing members that another one has come, or gone: the network did it,
    /// it says. Those who are lost are still there, in sets of their own.
    fn tell_transitional(&mut self, at: usize, name: Name, joined: Option<Name>) {
        let part = &mut self.parts[at];
        let Some(group) = part.groups.get_mut(&name) else {
            return;
        };
        group.count_up();
        let group = group.clone();
        let part = &self.parts[at];
        let stayed = group.members.iter().filter(|(_, member)| part.has(member));
        let stayed = stayed.map(|((_, name), _)| *name);
        let mut sets = vec![stayed.filter(|it| Some(*it) != joined).collect::<Vec<_>>()];
        let mut lost: Vec<_> = group.members.iter().collect();
        lost.retain(|(_, member)| !part.has(member));
        lost.sort_by_key(|(_, member)| member.node);
        for of_node in lost.chunk_by(|(_, a), (_, b)| a.node == b.node) {
            sets.push(of_node.iter().map(|((_, name), _)| *name).collect());
        }
        sets.extend(joined.map(|name| vec![name]));
        sets.retain(|set| !set.is_empty());
        let view = View {
            group: name,
            id: group.id,
            cause: MessageType::CAUSED_BY_NETWORK,
            members: group.names(),
            sets,
        };
        self.tell(at, &view);
        self.tell_transition(at, name);
    }

    /// Tells those of a group who are here that its view is about to end.
    pub(super) fn tell_transition(&mut self, at: usize, name: Name) {
        let part = &self.parts[at];
        let Some(group) = part.groups.get(&name) else {
            return;
        };
        let here = group.members.values().filter(|member| part.has(member));
        let here: Vec<_> = here.map(|member| member.session).collect();
        let frame = Frame::new_transition(self.options.endian, name, group.id);
        for id in here {
            self.send_frame(id, &frame);
        }
    }

    /// Tells a view to those of a group who are here: to each with the place of its own set, if the
    /// network made it.
    pub(super) fn tell(&mut self, at: usize, view: &View) {
        let part = &self.parts[at];
        let Some(group) = part.groups.get(&view.group) else {
            return;
        };
        let here = group.members.iter().filter(|(_, member)| part.has(member));
        let here: Vec<_> = here.map(|((_, name), it)| (*name, it.session)).collect();
        let mut frames: Vec<Option<Frame>> = vec![None; view.sets.len()];
        for (name, id) in here {
            let own = view.sets.iter().position(|set| set.contains(&name));
            let own = own.unwrap_or_default();
            let endian = self.options.endian;
            let frame = frames[own].get_or_insert_with(|| {
                let membership = Membership {
                    id: view.id,
                    sets: view.sets.clone(),
                    own,
                };
                Frame::new_view(endian, view.group, view.cause, &view.members, &membership)
            });
            let frame = frame.clone();
            self.send_frame(id, &frame);
        }
    }

    /// Sends a message of the daemon, to a session that wants such.
    fn send_frame(&mut self, id: SessionId, frame: &Frame) {
        if self.sessions.get(&id).is_some_and(|session| session.views) {
            let message = Message {
                from: id,
                safe: false,
                self_discard: false,
                groups: Vec::new(),
                head: frame.head(),
                data: frame.data.clone(),
            };
            self.send(id, &message);
        }
    }

    /// Sends to a session, or ends it if it takes nothing.
    pub(super) fn send(&mut self, id: SessionId, message: &Message) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.queued() >= SESSION_QUEUE_MAX {
            let name = session.name;
            log::warn!("{name}: killed, since {SESSION_QUEUE_MAX} messages wait for it");
            return self.end_session(id, "it is too slow");
        }
        session.on_sent(message.head.len() + message.data.len());
        let (head, data) = (message.head.clone(), message.data.clone());
        self.output.push_back(Output::Send(id, head, data));
    }
}
