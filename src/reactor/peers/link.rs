//! A connection that stands: its session, and what moves bytes between that and the socket.

use std::collections::BTreeMap;
use std::time::Instant;

use super::super::connection::{Connection, ReadError, ReadOutcome};
use super::target::{Goal, Lane, Loss};
use super::{AnswerId, Asker, PeerEvent, Peers, Serial};
use crate::ids::NodeId;
use crate::limits::{PEER_BYTES_PER_TURN, WRITE_BYTES_PER_TURN};
use crate::peer::{Answer, Event, Failure, FailureKind, PeerError, Request, Session};
use crate::tls::TlsError;

/// A connection with its session.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) session: Session,
    /// The other side, for people.
    pub(super) peer: String,
    /// What we have connected to; `None` if the other has.
    pub(super) target: Option<Goal>,
    /// Who waits for the answer to which request.
    asked: BTreeMap<u64, Asker>,
    /// Who the other is, if it has said so.
    node: Option<NodeId>,
}

impl Link {
    pub(super) const fn new(
        connection: Connection,
        session: Session,
        peer: String,
        target: Option<Goal>,
    ) -> Self {
        Self {
            connection,
            session,
            peer,
            target,
            asked: BTreeMap::new(),
            node: None,
        }
    }

    /// Whether there is something to be sent.
    pub(super) fn wants_write(&self) -> bool {
        self.session.has_output() || self.connection.has_unsent()
    }

    /// Whether there is something to be taken of it.
    pub(super) fn wants_read(&self) -> bool {
        let is_readable = self.connection.readable && self.session.wants_input();
        is_readable || self.session.has_event()
    }
}

/// Why a connection is over.
enum End {
    /// The session says so.
    Session(PeerError),
    /// The socket does.
    Socket(String),
    /// Who is there is not let in, or does not let us in.
    Tls(TlsError),
}

impl Peers {
    /// Reads what there is, up to a budget.
    pub(super) fn read(&mut self, serial: Serial, now: Instant) {
        let mut budget = PEER_BYTES_PER_TURN;
        while let Some(link) = self.links.get_mut(&serial)
            && link.connection.readable
            && link.session.wants_input()
        {
            if budget == 0 {
                self.has_more = true;
                break;
            }
            let (connection, session) = (&mut link.connection, &mut link.session);
            let mut got = 0;
            let outcome = connection.read(&mut self.scratch, |data| {
                got = data.len();
                session.receive(data, now);
            });
            budget = budget.saturating_sub(got);
            let ended = match outcome {
                Ok(ReadOutcome::Received | ReadOutcome::WouldBlock) => None,
                Ok(ReadOutcome::End) => {
                    Some(End::Socket("it has closed the connection".to_owned()))
                }
                Err(ReadError::Socket(error)) => Some(End::Socket(error.to_string())),
                Err(ReadError::Tls(error)) => Some(End::Tls(error)),
            };
            self.take_events(serial, now);
            if let Some(end) = ended {
                return self.lose(serial, end, now);
            }
        }
        self.take_events(serial, now);
    }

    /// Writes what waits, up to a budget.
    pub(super) fn write(&mut self, serial: Serial, now: Instant) {
        let mut budget = WRITE_BYTES_PER_TURN;
        let mut lost = None;
        let Some(link) = self.links.get_mut(&serial) else {
            return;
        };
        while link.connection.writable && budget > 0 {
            match link.connection.write(link.session.output(), budget) {
                Ok(0) => break,
                Ok(len) => {
                    budget = budget.saturating_sub(len);
                    link.session.on_written(now);
                }
                Err(error) => {
                    lost = Some(error.to_string());
                    break;
                }
            }
        }
        if let Some(why) = lost {
            return self.lose(serial, End::Socket(why), now);
        }
        let is_left = budget == 0 && link.wants_write();
        let is_unread = link.connection.readable && link.session.wants_input();
        self.has_more |= is_left || is_unread;
        self.take_events(serial, now);
    }

    /// Sends what waits for a node that is connected to, as many as it takes at a time.
    pub(super) fn feed(&mut self, serial: Serial, now: Instant) {
        let Some(link) = self.links.get_mut(&serial) else {
            return;
        };
        let target = link.target.as_ref();
        let Some(target) = target.and_then(|to| self.targets.get_mut(to)) else {
            return;
        };
        let mut refused = Vec::new();
        while link.session.has_room()
            && let Some((request, asker)) = target.waiting.pop_front()
        {
            match link.session.request(&request, now) {
                Some(id) => _ = link.asked.insert(id, asker),
                None => refused.push(asker),
            }
        }
        let peer = link.peer.clone();
        for asker in refused {
            let failure = Failure::new(FailureKind::Silent, "it asks for too much at once");
            self.fail(asker, &peer, &failure);
        }
    }

    /// What the session has to say.
    fn take_events(&mut self, serial: Serial, now: Instant) {
        while let Some(link) = self.links.get_mut(&serial)
            && let Some(event) = link.session.poll_event()
        {
            match event {
                Event::Ready { node } => {
                    link.node = Some(node);
                    log::debug!("{node} at {}: connected", link.peer);
                    if let Some(target) = link.target.as_ref()
                        && let Some(target) = self.targets.get_mut(target)
                    {
                        target.on_ready();
                    }
                    self.feed(serial, now);
                }
                Event::Request {
                    id,
                    request: Request::Beat(beat),
                } => {
                    link.session.answer(id, &Answer::Beat(self.beat), now);
                    if let Some(from) = link.node {
                        self.paths.on_beat(from, beat, now);
                    }
                }
                Event::Request { id, request } => {
                    if let Some(from) = link.node {
                        let id = AnswerId { link: serial, id };
                        let event = PeerEvent::Request { id, from, request };
                        self.events.push_back(event);
                    }
                }
                Event::Answer { id, answer } => {
                    if let Some(asker) = link.asked.remove(&id)
                        && let Some(from) = link.node
                    {
                        self.on_answer(asker, from, answer, now);
                    }
                    self.feed(serial, now);
                }
                Event::Closed(error) => return self.lose(serial, End::Session(error), now),
            }
        }
    }

    /// The connection is over.
    fn lose(&mut self, serial: Serial, end: End, now: Instant) {
        let Some(mut link) = self.links.remove(&serial) else {
            return;
        };
        // The other may be told why. There is one try.
        let is_told = match &end {
            End::Session(_) => link.wants_write(),
            End::Tls(_) => link.connection.has_unsent(),
            End::Socket(_) => false,
        };
        if is_told && link.connection.writable {
            let output = link.session.output();
            let _ = link.connection.write(output, WRITE_BYTES_PER_TURN);
        }
        if let Err(error) = link.connection.deregister(&self.poll.registry) {
            log::warn!("{}: {error}", link.peer);
        }
        let (why, is_over) = match &end {
            End::Session(error) => (error.to_string(), *error == PeerError::Idle),
            End::Socket(why) => (why.clone(), false),
            End::Tls(error) => (error.of_node(), false),
        };
        let loss = match link.node {
            None => Loss::NeverThere,
            Some(_) if is_over || link.asked.is_empty() => Loss::Unused,
            Some(_) => Loss::Broken,
        };
        let who = match (&link.node, &link.target) {
            (Some(node), _) => format!("{node} at {}", link.peer),
            (None, Some(goal)) => goal.to.clone(),
            (None, None) => link.peer.clone(),
        };
        let is_for_beats = matches!(&link.target, Some(goal) if goal.lane == Lane::Beats);
        let kind = match &end {
            // Who closes before it is known who is there does not want us.
            End::Socket(_) if link.node.is_none() => FailureKind::Stranger,
            End::Socket(_) => FailureKind::Unreachable,
            End::Session(PeerError::Silent) => FailureKind::Silent,
            End::Session(PeerError::Late) => FailureKind::Mute,
            End::Session(_) | End::Tls(_) => FailureKind::Stranger,
        };
        // Nodes that go, and those that only look whether somebody is there, are not worth a word;
        // and of beats that are missing it is told what that means.
        let is_usual = match end {
            End::Session(PeerError::Silent | PeerError::Late) => is_for_beats,
            End::Session(_) => is_over,
            End::Socket(_) => loss == Loss::Unused || link.target.is_none() || is_for_beats,
            End::Tls(_) => false,
        };
        if is_usual {
            log::debug!("{who}: disconnected ({why})");
        } else {
            self.complain(&format!("{who}: disconnected"), &link.peer, &why, now);
        }
        let failure = Failure::new(kind, why);
        for asker in std::mem::take(&mut link.asked).into_values() {
            self.fail(asker, &who, &failure);
        }
        if let Some(goal) = &link.target {
            self.on_way_lost(goal, loss, &failure, now);
        }
    }
}
