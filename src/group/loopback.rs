//! A group of one, without a daemon: what is sent comes back at once.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::{Audience, Body, Event, Group, Lane, MemberId, SendError, View, ViewId};

/// The group; see the module's page.
#[derive(Debug)]
pub struct Loopback {
    me: MemberId,
    joined: bool,
    views: u32,
    events: VecDeque<Event>,
}

impl Loopback {
    /// With this name for its member.
    pub fn new(name: &str) -> Self {
        Self {
            me: MemberId::new(name),
            joined: false,
            views: 0,
            events: VecDeque::new(),
        }
    }
}

impl Group for Loopback {
    fn join(&mut self, _now: Instant) {
        if self.joined {
            return;
        }
        self.joined = true;
        self.views += 1;
        let mut id = ViewId::default();
        id.0[..4].copy_from_slice(&self.views.to_be_bytes());
        self.events.push_back(Event::View(View {
            id,
            members: vec![self.me.clone()],
            together: vec![self.me.clone()],
            cause: "joined",
        }));
    }

    fn leave(&mut self, _now: Instant) {
        self.joined = false;
        self.events.clear();
    }

    fn me(&self) -> Option<&MemberId> {
        self.joined.then_some(&self.me)
    }

    fn body_len_max(&self) -> usize {
        100_000
    }

    fn send_all(&mut self, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        self.deliver(lane, Audience::All, parts)
    }

    fn send_one(&mut self, to: &MemberId, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        if *to == self.me {
            return self.deliver(lane, Audience::One, parts);
        }
        if !self.joined {
            return Err(SendError::NotJoined);
        }
        let len = parts.iter().map(Bytes::len).sum();
        self.events.push_back(Event::Passed { lane, len });
        Ok(())
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn on_deadline(&mut self, _now: Instant) {}

    fn reset(&mut self, why: &str, now: Instant) {
        self.leave(now);
        self.events.push_back(Event::Lost(why.to_owned()));
        self.join(now);
    }

    fn describe(&self) -> String {
        "no daemon: a group of one".to_owned()
    }
}

impl Loopback {
    fn deliver(
        &mut self,
        lane: Lane,
        audience: Audience,
        parts: &[Bytes],
    ) -> Result<(), SendError> {
        if !self.joined {
            return Err(SendError::NotJoined);
        }
        let data = match parts {
            [one] => one.clone(),
            parts => parts.concat().into(),
        };
        if data.len() > self.body_len_max() {
            return Err(SendError::TooLong);
        }
        self.events.push_back(Event::Body(Body {
            from: self.me.clone(),
            lane,
            audience,
            data,
        }));
        Ok(())
    }
}
