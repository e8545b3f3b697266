//! A library that is made up: what it says is a script, what it is told is kept.

#![cfg(test)]

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use super::envelope::incoming;
use super::{
    Address, Connection, CpgEvent, Failure, Library, OpenError, Opened, Quorum, QuorumEvent,
    Reason, RingId,
};
use crate::limits::{CPG_BODY_LEN_MAX, CPG_PARTS_MAX};

pub(super) const ME: Address = Address { node: 1, pid: 100 };
pub(super) const GONE: Failure = Failure {
    call: "cpg_dispatch",
    code: 2,
};

pub(super) const fn at(node: u32) -> Address {
    Address {
        node,
        pid: node * 100,
    }
}

pub(super) const fn ring(seq: u64) -> RingId {
    RingId { node: 1, seq }
}

/// The library, and the far end of the connection that it has made last.
#[derive(Debug, Clone)]
pub(super) struct Fake(Arc<Mutex<State>>);

#[derive(Debug)]
pub(super) struct State {
    /// What the next opening ends with, if not well.
    pub(super) refuses: Option<OpenError>,
    pub(super) quorum_is: Quorum,
    pub(super) opened: usize,
    pub(super) dropped: usize,
    pub(super) left: usize,
    pub(super) muted: usize,
    pub(super) cpg: VecDeque<Result<CpgEvent, Failure>>,
    pub(super) quorum: VecDeque<Result<QuorumEvent, Failure>>,
    /// What was sent, in one piece each.
    pub(super) sent: Vec<Vec<u8>>,
    /// How often it says that it is busy.
    pub(super) busy: usize,
    pub(super) send_fails: bool,
}

impl Fake {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            refuses: None,
            quorum_is: Quorum::Tracked,
            opened: 0,
            dropped: 0,
            left: 0,
            muted: 0,
            cpg: VecDeque::new(),
            quorum: VecDeque::new(),
            sent: Vec::new(),
            busy: 0,
            send_fails: false,
        })))
    }

    pub(super) fn with<R>(&self, see: impl FnOnce(&mut State) -> R) -> R {
        see(&mut self.0.lock().unwrap())
    }

    pub(super) fn says(&self, event: CpgEvent) {
        self.with(|state| state.cpg.push_back(Ok(event)));
    }

    pub(super) fn quorum_says(&self, event: QuorumEvent) {
        self.with(|state| state.quorum.push_back(Ok(event)));
    }

    /// As a whole, what corosync says when a ring has formed.
    pub(super) fn quorum_says_ring(&self, id: RingId, nodes: &[u32], is_quorate: bool) {
        let nodes = nodes.to_vec();
        self.quorum_says(QuorumEvent::Nodes { ring: id, nodes });
        self.quorum_says(QuorumEvent::Quorate {
            ring: id,
            is_quorate,
        });
    }

    /// What was sent so far comes back, as from `from`.
    pub(super) fn delivers_sent(&self, from: Address, to: Address) {
        self.with(|state| {
            for bytes in std::mem::take(&mut state.sent) {
                let event = incoming(to, from, &bytes, CPG_BODY_LEN_MAX);
                state.cpg.push_back(Ok(event));
            }
        });
    }
}

/// Members change; each of `left` and `joined` for one reason.
pub(super) fn members(
    members: &[Address],
    left: &[(Address, Reason)],
    joined: &[(Address, Reason)],
) -> CpgEvent {
    CpgEvent::Members {
        members: members.to_vec(),
        left: left.to_vec(),
        joined: joined.to_vec(),
    }
}

pub(super) fn ring_of(id: RingId, nodes: &[u32]) -> CpgEvent {
    CpgEvent::Ring {
        ring: id,
        nodes: nodes.to_vec(),
    }
}

impl Library for Fake {
    fn open(&self, _group: &str) -> Result<Opened, OpenError> {
        self.with(|state| {
            if let Some(error) = state.refuses.clone() {
                return Err(error);
            }
            state.opened += 1;
            Ok(Opened {
                connection: Box::new(FakeConnection(self.clone())),
                me: ME,
                len_max: 1_047_552,
                quorum: state.quorum_is.clone(),
            })
        })
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }
}

#[derive(Debug)]
struct FakeConnection(Fake);

impl Connection for FakeConnection {
    fn poll_quorum(&mut self) -> Result<Option<QuorumEvent>, Failure> {
        self.0.with(|state| state.quorum.pop_front()).transpose()
    }

    fn poll_cpg(&mut self) -> Result<Option<CpgEvent>, Failure> {
        self.0.with(|state| state.cpg.pop_front()).transpose()
    }

    fn multicast(&mut self, parts: &[&[u8]]) -> Result<bool, Failure> {
        assert!(parts.len() <= CPG_PARTS_MAX);
        self.0.with(|state| {
            if state.send_fails {
                return Err(GONE);
            }
            if state.busy > 0 {
                state.busy -= 1;
                return Ok(false);
            }
            state.sent.push(parts.concat());
            Ok(true)
        })
    }

    fn mute(&mut self) {
        self.0.with(|state| state.muted += 1);
    }

    fn leave(self: Box<Self>) {
        self.0.with(|state| state.left += 1);
    }
}

impl Drop for FakeConnection {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.dropped += 1;
            state.cpg.clear();
            state.quorum.clear();
        });
    }
}
