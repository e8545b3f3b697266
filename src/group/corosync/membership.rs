//! Two streams of changes, joined to one of views.
//!
//! CPG tells who comes and goes, and then which ring that was about; the quorum service tells which
//! rings are quorate. Either may be ahead. A view is told when both speak of the same ring:
//!
//! ```text
//!   CPG     members (node down) ─► ring 8 ─┐                    bodies of ring 8
//!   quorum  ring 8, quorate ───────────────┴─► View of ring 8 ─►
//! ```
//!
//! Until then what CPG says next is not taken ([`Membership::is_held`]): it belongs to the new
//! view. That wait ends at a deadline, or when the quorum service is ahead of us, which then never
//! says about our ring: whether we are quorate is for people to know, and a condition for nothing.
//!
//! A view is named by its ring and by who is in it. That makes the name the same for all members,
//! as no counter would be: who joins does not know what the others have counted. A process that
//! leaves and comes back under its address while the ring stays makes the same name again.

use std::collections::BTreeSet;
use std::time::Instant;

use super::{Address, QuorumEvent, Reason, RingId};
use crate::group::{Event, MemberId, View, ViewId};
use crate::limits::CPG_QUORUM_TIMEOUT;

/// Who is there, as far as the daemon has said.
#[derive(Debug)]
pub(super) struct Membership {
    me: Address,
    /// Whether the quorum service will say something about each ring.
    is_tracked: bool,
    /// Who is in the group by the last word of CPG; empty before our join.
    members: BTreeSet<Address>,
    /// The ring that CPG is in.
    ring: Option<Ring>,
    /// Nodes came or went, and the ring that this was about has not been told yet.
    ring_is_due: bool,
    /// The last word of the quorum service.
    quorate: Option<(RingId, bool)>,
    /// Who came or went since the last view: neither was with us all the time.
    changed: BTreeSet<Address>,
    causes: BTreeSet<Cause>,
    /// Since when there is something to tell, and until when to wait with it.
    pending: Option<Instant>,
    /// The last view
    view: Option<Current>,
    /// Whether a change was announced that is not a view yet.
    is_transitional: bool,
}

#[derive(Debug)]
struct Ring {
    id: RingId,
    nodes: BTreeSet<u32>,
}

#[derive(Debug)]
struct Current {
    ring: RingId,
    members: BTreeSet<Address>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Join,
    Leave,
    ProcessDown,
    NodeDown,
    NodeUp,
    Other,
}

/// We are not in the group, though we have joined it and have not left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expelled;

impl Membership {
    pub(super) const fn new(me: Address, is_tracked: bool) -> Self {
        Self {
            me,
            is_tracked,
            members: BTreeSet::new(),
            ring: None,
            ring_is_due: false,
            quorate: None,
            changed: BTreeSet::new(),
            causes: BTreeSet::new(),
            pending: None,
            view: None,
            is_transitional: false,
        }
    }

    /// Whether a view was told.
    pub(super) const fn has_view(&self) -> bool {
        self.view.is_some()
    }

    /// Whether CPG is to be left alone: what it says next belongs to a view that is yet to be told.
    pub(super) const fn is_held(&self) -> bool {
        self.pending.is_some()
    }

    /// When [`Self::on_deadline`] is to be called.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.pending
    }

    /// The ring that CPG is in.
    pub(super) fn ring(&self) -> Option<RingId> {
        Some(self.ring.as_ref()?.id)
    }

    /// The nodes in it.
    pub(super) fn nodes(&self) -> impl Iterator<Item = u32> {
        self.ring.iter().flat_map(|ring| &ring.nodes).copied()
    }

    /// Whether that ring is quorate, if that is known.
    pub(super) fn is_quorate(&self) -> Option<bool> {
        let (ring, is_quorate) = self.quorate?;
        (self.ring() == Some(ring)).then_some(is_quorate)
    }

    /// CPG: these are the members.
    pub(super) fn on_members(
        &mut self,
        members: Vec<Address>,
        left: &[(Address, Reason)],
        joined: &[(Address, Reason)],
        now: Instant,
    ) -> Result<Vec<Event>, Expelled> {
        let mut events = Vec::new();
        let had_joined = self.members.contains(&self.me);
        self.members = members.into_iter().collect();
        if !self.members.contains(&self.me) {
            if had_joined {
                return Err(Expelled);
            }
            return Ok(events);
        }
        for (address, reason) in left.iter().chain(joined) {
            self.changed.insert(*address);
            self.causes.insert(Cause::of(*reason));
            self.ring_is_due |= matches!(reason, Reason::NodeDown | Reason::NodeUp);
        }
        if self.ring_is_due {
            self.announce(&mut events);
        }
        self.want_view(now);
        events.extend(self.settle(now));
        Ok(events)
    }

    /// CPG: this is the ring.
    pub(super) fn on_ring(&mut self, id: RingId, nodes: Vec<u32>, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        self.ring = Some(Ring {
            id,
            nodes: nodes.into_iter().collect(),
        });
        let was_due = std::mem::take(&mut self.ring_is_due);
        if !self.members.contains(&self.me) {
            return events;
        }
        // The same one comes again when another group of this node has a newcomer; that is no news,
        // unless it is what nodes came or went with.
        if was_due || self.view.as_ref().is_none_or(|view| view.ring != id) {
            self.announce(&mut events);
            self.want_view(now);
        }
        events.extend(self.settle(now));
        events
    }

    /// The quorum service.
    pub(super) fn on_quorum(&mut self, event: &QuorumEvent, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        let ring = match *event {
            QuorumEvent::Nodes { ring, .. } => ring,
            QuorumEvent::Quorate { ring, is_quorate } => {
                self.quorate = Some((ring, is_quorate));
                ring
            }
        };
        // It is ahead of CPG: a change is coming.
        if self
            .view
            .as_ref()
            .is_some_and(|view| ring.seq > view.ring.seq)
        {
            self.announce(&mut events);
        }
        events.extend(self.settle(now));
        events
    }

    /// The deadline has come, or may have.
    pub(super) fn on_deadline(&mut self, now: Instant) -> Option<Event> {
        self.settle(now)
    }

    fn announce(&mut self, events: &mut Vec<Event>) {
        if self.view.is_some() && !self.is_transitional {
            self.is_transitional = true;
            events.push(Event::Transitional);
        }
    }

    fn want_view(&mut self, now: Instant) {
        if !self.ring_is_due && self.ring.is_some() && self.pending.is_none() {
            self.pending = Some(now + CPG_QUORUM_TIMEOUT);
        }
    }

    /// Tells the view that is wanted, if nothing more is to be waited for. Of a ring that was told
    /// once the quorum service was waited for already.
    fn settle(&mut self, now: Instant) -> Option<Event> {
        let until = self.pending?;
        let ring = self.ring.as_ref()?;
        let is_told = self.view.as_ref().is_some_and(|view| view.ring == ring.id);
        let quorum_is_behind = match self.quorate {
            _ if is_told || !self.is_tracked => false,
            None => true,
            Some((quorum, _)) => quorum != ring.id && quorum.seq <= ring.id.seq,
        };
        if quorum_is_behind && now < until {
            return None;
        }
        self.pending = None;
        self.is_transitional = false;
        // A process that joined and whose node died at once may stay in CPG's list for ever.
        let members: BTreeSet<Address> = self
            .members
            .iter()
            .filter(|member| ring.nodes.contains(&member.node))
            .copied()
            .collect();
        let old = self.view.take();
        let together = |member: &&Address| {
            let was_there = old.as_ref().is_some_and(|old| old.members.contains(member));
            **member == self.me || was_there && !self.changed.contains(member)
        };
        let view = View {
            id: view_id(ring.id, &members),
            together: ids(members.iter().filter(together)),
            members: ids(members.iter()),
            cause: self.cause(old.is_none()),
        };
        self.view = Some(Current {
            ring: ring.id,
            members,
        });
        self.changed.clear();
        self.causes.clear();
        Some(Event::View(view))
    }

    fn cause(&self, is_first: bool) -> &'static str {
        let causes: Vec<Cause> = self.causes.iter().copied().collect();
        match causes[..] {
            _ if is_first => "we joined",
            [] => "other nodes",
            [Cause::Join] => "a process joined",
            [Cause::Leave] => "a process left",
            [Cause::ProcessDown] => "a process ended",
            [Cause::NodeDown] => "nodes went",
            [Cause::NodeUp] => "nodes came",
            [Cause::NodeDown, Cause::NodeUp] => "nodes went and came",
            _ => "several changes",
        }
    }
}

impl Cause {
    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::Join => Self::Join,
            Reason::Leave => Self::Leave,
            Reason::ProcessDown => Self::ProcessDown,
            Reason::NodeDown => Self::NodeDown,
            Reason::NodeUp => Self::NodeUp,
            Reason::Unknown(_) => Self::Other,
        }
    }
}

fn ids<'a>(addresses: impl Iterator<Item = &'a Address>) -> Vec<MemberId> {
    addresses.map(|address| address.member_id()).collect()
}

/// The ring's node and number, and a hash (FNV-1a) of the members.
fn view_id(ring: RingId, members: &BTreeSet<Address>) -> ViewId {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let bytes = members
        .iter()
        .flat_map(|member| [member.node.to_be_bytes(), member.pid.to_be_bytes()])
        .flatten();
    for byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut id = [0; 20];
    id[..4].copy_from_slice(&ring.node.to_be_bytes());
    id[4..12].copy_from_slice(&ring.seq.to_be_bytes());
    id[12..].copy_from_slice(&hash.to_be_bytes());
    ViewId(id)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ME, at, ring};
    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    fn names(addresses: &[Address]) -> Vec<MemberId> {
        ids(addresses.iter())
    }

    /// The view that is the only event.
    #[track_caller]
    fn the_view(events: Vec<Event>) -> View {
        match <[Event; 1]>::try_from(events) {
            Ok([Event::View(view)]) => view,
            other => panic!("not one view: {other:?}"),
        }
    }

    fn nodes(ring: RingId) -> QuorumEvent {
        QuorumEvent::Nodes {
            ring,
            nodes: Vec::new(),
        }
    }

    fn quorate(ring: RingId) -> QuorumEvent {
        QuorumEvent::Quorate {
            ring,
            is_quorate: true,
        }
    }

    /// A member of a group of `addresses` in ring 4.
    fn member(addresses: &[Address], now: Instant) -> Membership {
        let mut membership = Membership::new(ME, true);
        membership.on_quorum(&quorate(ring(4)), now);
        let joined = [(ME, Reason::Join)];
        let events = membership.on_members(addresses.to_vec(), &[], &joined, now);
        assert_eq!(events, Ok(vec![]));
        let view = the_view(membership.on_ring(ring(4), vec![1, 2, 3], now));
        assert_eq!(view.members, names(addresses));
        assert_eq!(view.together, names(&[ME]));
        assert_eq!(view.cause, "we joined");
        membership
    }

    const PEERS: [Address; 3] = [ME, at(2), at(3)];

    #[test]
    fn a_view_waits_for_the_quorum_service() {
        let now = now();
        let mut group = member(&PEERS, now);
        let left = [(at(3), Reason::NodeDown)];
        let events = group.on_members(vec![ME, at(2)], &left, &[], now);
        assert_eq!(events, Ok(vec![Event::Transitional]));
        assert!(!group.is_held(), "the ring is still to come");
        assert_eq!(group.on_ring(ring(8), vec![1, 2], now), []);
        assert!(group.is_held());
        assert_eq!(group.on_quorum(&nodes(ring(8)), now), []);
        assert!(group.is_held(), "nodes are not quorum");
        let view = the_view(group.on_quorum(&quorate(ring(8)), now));
        assert_eq!(view.members, names(&[ME, at(2)]));
        assert_eq!(view.together, view.members);
        assert_eq!(view.cause, "nodes went");
        assert_eq!(group.is_quorate(), Some(true));
        assert!(!group.is_held());
    }

    #[test]
    fn a_quorum_service_that_is_ahead_is_a_first_sign() {
        let now = now();
        let mut group = member(&PEERS, now);
        assert_eq!(group.on_quorum(&nodes(ring(8)), now), [Event::Transitional]);
        assert_eq!(group.on_quorum(&quorate(ring(8)), now), []);
        let left = [(at(3), Reason::NodeDown)];
        assert_eq!(
            group.on_members(vec![ME, at(2)], &left, &[], now),
            Ok(vec![])
        );
        the_view(group.on_ring(ring(8), vec![1, 2], now));
    }

    #[test]
    fn a_ring_that_the_quorum_service_skips_is_not_waited_for() {
        let now = now();
        let mut group = member(&PEERS, now);
        let left = [(at(2), Reason::NodeDown), (at(3), Reason::NodeDown)];
        group.on_members(vec![ME], &left, &[], now).unwrap();
        assert_eq!(group.on_ring(ring(8), vec![1], now), []);
        // Alone for a moment; of that it never says that it was not quorate.
        let alone = the_view(group.on_quorum(&quorate(ring(12)), now));
        assert_eq!(alone.members, names(&[ME]));
        assert_eq!(
            group.is_quorate(),
            None,
            "what was said is about another ring"
        );
        let joined = [(at(2), Reason::NodeUp), (at(3), Reason::NodeUp)];
        let events = group.on_members(PEERS.to_vec(), &[], &joined, now);
        assert_eq!(events, Ok(vec![Event::Transitional]));
        let all = the_view(group.on_ring(ring(12), vec![1, 2, 3], now));
        assert_eq!(all.members, names(&PEERS));
        assert_eq!(all.together, names(&[ME]));
        assert_eq!(group.is_quorate(), Some(true));
    }

    #[test]
    fn a_silent_quorum_service_is_not_waited_for_longer_than_that() {
        let start = now();
        let mut group = member(&PEERS, start);
        let left = [(at(3), Reason::NodeDown)];
        group
            .on_members(vec![ME, at(2)], &left, &[], start)
            .unwrap();
        group.on_ring(ring(8), vec![1, 2], start);
        let until = start + CPG_QUORUM_TIMEOUT;
        assert_eq!(group.deadline(), Some(until));
        assert_eq!(group.on_deadline(start), None);
        let event = group.on_deadline(until);
        the_view(event.into_iter().collect());
        assert_eq!(group.deadline(), None);
        // What happens in the same ring then waits for nothing.
        let left = [(at(2), Reason::ProcessDown)];
        the_view(group.on_members(vec![ME], &left, &[], until).unwrap());
        // Late, and nobody waits for it.
        assert_eq!(group.on_quorum(&quorate(ring(8)), until), []);
        assert_eq!(group.is_quorate(), Some(true));
    }

    #[test]
    fn without_a_quorum_service_nothing_waits() {
        let now = now();
        let mut group = Membership::new(ME, false);
        group
            .on_members(vec![ME], &[], &[(ME, Reason::Join)], now)
            .unwrap();
        the_view(group.on_ring(ring(4), vec![1], now));
        let joined = [(at(2), Reason::NodeUp)];
        group
            .on_members(vec![ME, at(2)], &[], &joined, now)
            .unwrap();
        the_view(group.on_ring(ring(8), vec![1, 2], now));
        assert_eq!(group.is_quorate(), None);
    }

    #[test]
    fn processes_come_and_go_while_the_ring_stays() {
        let now = now();
        let mut group = member(&[ME, at(2)], now);
        let joined = [(at(3), Reason::Join)];
        let with = the_view(group.on_members(PEERS.to_vec(), &[], &joined, now).unwrap());
        assert_eq!(with.cause, "a process joined");
        assert_eq!(with.together, names(&[ME, at(2)]));
        let left = [(at(3), Reason::ProcessDown)];
        let events = group.on_members(vec![ME, at(2)], &left, &[], now);
        let without = the_view(events.unwrap());
        assert_eq!(without.cause, "a process ended");
        assert_ne!(with.id, without.id);
    }

    #[test]
    fn views_have_the_same_name_for_all() {
        let now = now();
        let mut old = member(&[ME, at(2)], now);
        let joined = [(at(3), Reason::Join)];
        let seen = the_view(old.on_members(PEERS.to_vec(), &[], &joined, now).unwrap());
        // The newcomer has counted nothing, and CPG lists the members in another order.
        let mut new = Membership::new(at(3), true);
        new.on_quorum(&quorate(ring(4)), now);
        let members = vec![at(3), at(2), ME];
        assert_eq!(new.on_members(members, &[], &joined, now), Ok(vec![]));
        let first = the_view(new.on_ring(ring(4), vec![3, 1, 2], now));
        assert_eq!(first.id, seen.id);
        assert_eq!(first.members, seen.members);
    }

    #[test]
    fn who_was_away_between_two_views_did_not_come_along() {
        let now = now();
        let mut group = member(&PEERS, now);
        // Lost and found in one burst, under the same address.
        let left = [(at(3), Reason::NodeDown)];
        group.on_members(vec![ME, at(2)], &left, &[], now).unwrap();
        let joined = [(at(3), Reason::NodeUp)];
        assert_eq!(
            group.on_members(PEERS.to_vec(), &[], &joined, now),
            Ok(vec![])
        );
        group.on_quorum(&quorate(ring(12)), now);
        let view = the_view(group.on_ring(ring(12), vec![1, 2, 3], now));
        assert_eq!(view.members, names(&PEERS));
        assert_eq!(view.together, names(&[ME, at(2)]));
        assert_eq!(view.cause, "nodes went and came");
        // But from here on it is with us.
        group.on_ring(ring(16), vec![1, 2, 3], now);
        let next = the_view(group.on_quorum(&quorate(ring(16)), now));
        assert_eq!(next.together, names(&PEERS));
    }

    #[test]
    fn a_member_without_a_node_is_not_one() {
        let now = now();
        let mut group = member(&[ME], now);
        // It came and its node died within one change; CPG keeps it for ever.
        let joined = [(at(2), Reason::NodeUp), (at(3), Reason::NodeUp)];
        group.on_members(PEERS.to_vec(), &[], &joined, now).unwrap();
        group.on_quorum(&quorate(ring(8)), now);
        let view = the_view(group.on_ring(ring(8), vec![1, 2], now));
        assert_eq!(view.members, names(&[ME, at(2)]));
    }

    #[test]
    fn a_ring_alone_is_a_view_and_is_told_once() {
        let now = now();
        let mut group = member(&PEERS, now);
        assert_eq!(group.on_ring(ring(4), vec![1, 2, 3], now), []);
        assert_eq!(
            group.on_ring(ring(8), vec![1, 2, 3, 4], now),
            [Event::Transitional]
        );
        let view = the_view(group.on_quorum(&quorate(ring(8)), now));
        assert_eq!(view.together, names(&PEERS));
        assert_eq!(view.cause, "other nodes");
    }

    #[test]
    fn nodes_that_come_with_a_ring_that_was_told_are_a_view() {
        let now = now();
        // We joined while the ring was being taken up: it is told to us as a newcomer, then who
        // came with it, and then again to all.
        let mut group = Membership::new(ME, true);
        group.on_quorum(&quorate(ring(8)), now);
        let joined = [(ME, Reason::Join)];
        let events = group.on_members(vec![ME], &[], &joined, now);
        assert_eq!(events, Ok(vec![]));
        let alone = the_view(group.on_ring(ring(8), vec![1, 2], now));
        assert_eq!(alone.members, names(&[ME]));
        let joined = [(at(2), Reason::NodeUp)];
        let events = group.on_members(vec![ME, at(2)], &[], &joined, now);
        assert_eq!(events, Ok(vec![Event::Transitional]));
        let view = the_view(group.on_ring(ring(8), vec![1, 2], now));
        assert_eq!(view.members, names(&[ME, at(2)]));
        assert_eq!(view.together, names(&[ME]));
        assert_ne!(view.id, alone.id);
        assert!(!group.is_held());
    }

    #[test]
    fn a_ring_before_our_join_is_remembered() {
        let now = now();
        let mut group = Membership::new(ME, false);
        assert_eq!(group.on_ring(ring(4), vec![1], now), []);
        let joined = [(ME, Reason::Join)];
        the_view(group.on_members(vec![ME], &[], &joined, now).unwrap());
    }

    #[test]
    fn who_is_not_listed_any_more_is_expelled() {
        let now = now();
        let mut group = member(&PEERS, now);
        let left = [(ME, Reason::ProcessDown)];
        let events = group.on_members(vec![at(2), at(3)], &left, &[], now);
        assert_eq!(events, Err(Expelled));
    }
}
