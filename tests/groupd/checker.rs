//! What Spread promises, checked on what sessions have got. Nothing here knows how the daemon does
//! it.

use std::collections::{BTreeMap, BTreeSet};

use standby::group::spread::wire::{
    DaemonItem, DaemonStream, Delivery, Frame, GroupId, Membership, MessageType, Name,
};

use crate::daemon::SessionId;

/// A message that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) from: SessionId,
    pub(crate) message_type: MessageType,
    pub(crate) to: Vec<Name>,
    /// How many bytes its sender had got when it sent it.
    pub(crate) sender_pos: usize,
    /// Sessions that the network cut off from the sender when the daemon read it; `None` if that is
    /// not known.
    pub(crate) cut_off: Option<BTreeSet<Name>>,
}

/// A session, with all that it has got.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) id: SessionId,
    pub(crate) name: Name,
    /// It wanted to hear of views.
    pub(crate) views: bool,
    /// It was connected, and not stalled, to the end.
    pub(crate) lives: bool,
    /// Each with the bytes before it
    pub(crate) events: Vec<(usize, Event)>,
}

/// What a daemon has said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Message(u64),
    View(View),
    Transition(Name, GroupId),
    SelfLeave(Name),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) group: Name,
    pub(crate) cause: MessageType,
    pub(crate) members: Vec<Name>,
    pub(crate) membership: Membership,
    /// When it was told. A group that was empty meanwhile has views of the same ids again, and this
    /// tells them apart.
    pub(crate) at: u64,
}

/// When, of which group, under which id.
type ViewKey = (u64, Name, GroupId);

impl View {
    /// Whether two sessions were told the same.
    fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key() && self.members == other.members
    }

    /// What the daemons were when they began to count.
    const fn ring(&self) -> [u32; 2] {
        let [address, time, _] = self.membership.id.0;
        [address, time]
    }

    const fn key(&self) -> ViewKey {
        (self.at, self.group, self.membership.id)
    }
}

/// What is in the bytes that a session has got; `sent_at` says when each frame was sent.
pub(crate) fn events(bytes: &[u8], sent_at: &[(usize, u64)]) -> Vec<(usize, Event)> {
    let mut stream = DaemonStream::new();
    stream.receive(bytes);
    let mut events = Vec::new();
    while let Some(item) = stream.next().unwrap() {
        if let DaemonItem::Frame(frame) = item.what {
            let pos = item.pos as usize;
            let at = sent_at.binary_search_by_key(&pos, |it| it.0).unwrap();
            events.push((pos, event(&frame, sent_at[at].1)));
        }
    }
    events
}

fn event(frame: &Frame, at: u64) -> Event {
    let group = frame.header.name;
    match frame.header.delivery() {
        Delivery::Regular => {
            Event::Message(u64::from_be_bytes(frame.data[..8].try_into().unwrap()))
        }
        Delivery::Membership => Event::View(View {
            group,
            cause: MessageType(frame.header.message_type.0 & 0xf00),
            members: frame.names().collect(),
            membership: frame.membership().unwrap(),
            at,
        }),
        Delivery::Transition => Event::Transition(group, frame.transition().unwrap()),
        Delivery::SelfLeave => Event::SelfLeave(group),
        other => panic!("{other:?}"),
    }
}

impl Seen {
    /// The members of the last view of a group, if it is still in that.
    pub(crate) fn last_view(&self, group: &Name) -> Option<Vec<Name>> {
        let of_group = |(_, event): &&(usize, Event)| match event {
            Event::View(view) => view.group == *group,
            Event::SelfLeave(left) => left == group,
            Event::Message(_) | Event::Transition(..) => false,
        };
        match self.events.iter().rfind(of_group) {
            Some((_, Event::View(view))) => Some(view.members.clone()),
            _ => None,
        }
    }
}

/// All that was sent and seen.
pub(crate) struct Checker {
    pub(crate) sent: BTreeMap<u64, Sent>,
    pub(crate) seen: Vec<Seen>,
}

/// What a session got of one group from one view to the next, or to the end.
#[derive(Clone, Debug)]
struct Period {
    view: View,
    /// Messages that were also to the group, each with whether the view was ending already.
    messages: Vec<(u64, bool)>,
    transitions: Vec<GroupId>,
    /// The view that follows; none if the session left, or heard no more.
    next: Option<View>,
    left: bool,
}

impl Checker {
    /// Checks everything. The error says what is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        for seen in &self.seen {
            self.check_messages(seen)?;
            self.check_fifo(seen)?;
            if seen.views {
                self.check_membership(seen)?;
            }
            if seen.lives {
                self.check_self_delivery(seen)?;
            }
        }
        for (n, a) in self.seen.iter().enumerate() {
            for b in &self.seen[n + 1..] {
                self.check_total_order(a, b)?;
            }
        }
        let unclear = self.unclear_views();
        self.check_agreement(&unclear)?;
        self.check_virtual_synchrony(&unclear)?;
        self.check_safe(&unclear)
    }

    /// Groups that were empty and began to count anew in one call: then there are two views of the
    /// same id that cannot be told apart. They are left out where that matters; there are few.
    fn unclear_views(&self) -> BTreeSet<ViewKey> {
        let events = self.seen.iter().flat_map(|seen| &seen.events);
        let views = events.filter_map(|(_, event)| match event {
            Event::View(view) => Some(view),
            _ => None,
        });
        let mut first: BTreeMap<(Name, [u32; 2]), u64> = BTreeMap::new();
        for view in views.clone() {
            let first = first.entry((view.group, view.ring())).or_insert(view.at);
            *first = view.at.min(*first);
        }
        // The first member of a group is told of itself alone, and only it is.
        let mut beginnings: BTreeMap<(u64, Name, [u32; 2]), usize> = BTreeMap::new();
        for view in views.clone() {
            if view.members.len() == 1 && view.cause == MessageType::CAUSED_BY_JOIN {
                let life = (view.at, view.group, view.ring());
                let again = first[&(view.group, view.ring())] < view.at;
                *beginnings.entry(life).or_default() += 1 + usize::from(again);
            }
        }
        let life = |view: &View| (view.at, view.group, view.ring());
        let unclear = views.filter(|it| beginnings.get(&life(it)).is_some_and(|it| *it > 1));
        unclear.map(View::key).collect()
    }

    /// How often something happened that is hard to get right.
    pub(crate) fn count(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        let mut add = |what, count| *counts.entry(what).or_insert(0) += count;
        for period in self.seen.iter().flat_map(|seen| self.periods(seen)) {
            let ending = period.messages.iter().filter(|(_, ending)| *ending);
            add("ending", ending.count());
            let Some(next) = period.next else {
                continue;
            };
            let by_network = next.cause == MessageType::CAUSED_BY_NETWORK;
            let gone = !period
                .view
                .members
                .iter()
                .all(|it| next.members.contains(it));
            let come = !next
                .members
                .iter()
                .all(|it| period.view.members.contains(it));
            let announced = !period.transitions.is_empty();
            add("lost", usize::from(by_network && gone));
            add("merged", usize::from(by_network && come && !announced));
            let ending = by_network && come && !gone && announced;
            add("joined while ending", usize::from(ending));
        }
        counts
    }

    /// Nothing comes twice, or from nowhere, or to others than it was for, or through a cut.
    fn check_messages(&self, seen: &Seen) -> Result<(), String> {
        let mut known = BTreeSet::new();
        let mut groups = BTreeSet::new();
        for (_, event) in &seen.events {
            match event {
                Event::Message(number) => {
                    let sent = self.sent.get(number);
                    let sent = sent.ok_or(format!("{}: {number} out of nothing", seen.name))?;
                    if !known.insert(number) {
                        return Err(format!("{}: {number} twice", seen.name));
                    }
                    let member = |name: &Name| *name == seen.name || groups.contains(name);
                    if seen.views && !sent.to.iter().any(member) {
                        return Err(format!("{}: {number} is not for it", seen.name));
                    }
                    let discard = sent.message_type.intersects(MessageType::SELF_DISCARD);
                    if discard && sent.from == seen.id {
                        return Err(format!("{}: {number} was to be discarded", seen.name));
                    }
                    if sent
                        .cut_off
                        .as_ref()
                        .is_some_and(|it| it.contains(&seen.name))
                    {
                        return Err(format!("{}: {number} came through a cut", seen.name));
                    }
                }
                Event::View(view) => _ = groups.insert(view.group),
                Event::SelfLeave(group) => _ = groups.remove(group),
                Event::Transition(..) => {}
            }
        }
        Ok(())
    }

    /// Of one sender everything from FIFO on comes in the order that it was sent in.
    fn check_fifo(&self, seen: &Seen) -> Result<(), String> {
        let mut last: BTreeMap<SessionId, u64> = BTreeMap::new();
        for number in self.ordered(seen, 0x3c) {
            let from = self.sent[&number].from;
            // Numbers count up.
            if last.insert(from, number).is_some_and(|last| last > number) {
                return Err(format!("{}: {number} too late", seen.name));
            }
        }
        Ok(())
    }

    /// What two sessions both have got of AGREED and SAFE, they have got in one order.
    fn check_total_order(&self, a: &Seen, b: &Seen) -> Result<(), String> {
        let (of_a, of_b) = (self.ordered(a, 0x30), self.ordered(b, 0x30));
        let in_a: BTreeSet<_> = of_a.iter().collect();
        let in_b: BTreeSet<_> = of_b.iter().collect();
        let common_a = of_a.iter().filter(|it| in_b.contains(it));
        let common_b = of_b.iter().filter(|it| in_a.contains(it));
        match common_a.zip(common_b).find(|(a, b)| a != b) {
            None => Ok(()),
            Some((x, y)) => Err(format!("{} and {}: {x}, {y} in no order", a.name, b.name)),
        }
    }

    /// Views list their receiver, follow from each other, and are announced when they lose
    /// somebody.
    fn check_membership(&self, seen: &Seen) -> Result<(), String> {
        for period in self.periods(seen) {
            let Period { view, .. } = &period;
            let wrong = |what: &str| {
                let next = &period.next;
                Err(format!("{}: {what}\n{view:?}\n{next:?}", seen.name))
            };
            if !view.members.contains(&seen.name) {
                return wrong("a view without me");
            }
            if view.cause == MessageType::CAUSED_BY_NETWORK
                && !view.membership.own_set().contains(&seen.name)
            {
                return wrong("I am not in my set");
            }
            let Some(next) = &period.next else {
                continue;
            };
            let before: BTreeSet<_> = view.members.iter().collect();
            let after: BTreeSet<_> = next.members.iter().collect();
            let gone: Vec<_> = before.difference(&after).collect();
            let come: Vec<_> = after.difference(&before).collect();
            let one = next.membership.sets[0].first();
            let fine = match next.cause {
                MessageType::CAUSED_BY_JOIN => gone.is_empty() && come == [&one.unwrap()],
                MessageType::CAUSED_BY_NETWORK => {
                    let announced = !period.transitions.is_empty();
                    let own: BTreeSet<_> = next.membership.own_set().iter().collect();
                    // In the period between, a leaver is gone before those who are lost.
                    let all: BTreeSet<_> = next.membership.sets.iter().flatten().collect();
                    own.is_subset(&before) && all == after && (gone.is_empty() || announced)
                }
                _ => come.is_empty() && gone == [&one.unwrap()],
            };
            if !fine {
                return wrong("these do not follow");
            }
            if next.cause != MessageType::CAUSED_BY_NETWORK && !period.transitions.is_empty() {
                return wrong("announced, but not by the network");
            }
            let of_view = |id: &GroupId| *id == view.membership.id;
            if !period.transitions.iter().all(of_view) || period.transitions.len() > 1 {
                return wrong("a signal of another view");
            }
        }
        Ok(())
    }

    /// What has one id is one view, whoever is told of it.
    fn check_agreement(&self, unclear: &BTreeSet<ViewKey>) -> Result<(), String> {
        let mut known: BTreeMap<ViewKey, &View> = BTreeMap::new();
        for seen in &self.seen {
            for (_, event) in &seen.events {
                let Event::View(view) = event else {
                    continue;
                };
                let first = *known.entry(view.key()).or_insert(view);
                let same = first.members == view.members
                    && first.cause == view.cause
                    && first.membership.sets == view.membership.sets;
                if !same && !unclear.contains(&view.key()) {
                    return Err(format!("{}: {first:?}\nis also\n{view:?}", seen.name));
                }
            }
        }
        Ok(())
    }

    /// What one sends to a group that it stays in, or to itself, comes back.
    fn check_self_delivery(&self, seen: &Seen) -> Result<(), String> {
        let got = self.ordered(seen, 0x3f);
        for (number, sent) in self.sent.iter().filter(|(_, sent)| sent.from == seen.id) {
            let discard = sent.message_type.intersects(MessageType::SELF_DISCARD);
            if discard || got.contains(number) {
                continue;
            }
            let stays = |group: &Name| {
                let mut events = seen.events.iter();
                let joined = events.any(|(pos, event)| {
                    *pos < sent.sender_pos
                        && matches!(event, Event::View(view) if view.group == *group)
                });
                let left = |(_, event): &(usize, Event)| *event == Event::SelfLeave(*group);
                joined && !seen.events.iter().any(left)
            };
            if sent.to.iter().any(|name| *name == seen.name || stays(name)) {
                return Err(format!("{}: {number} did not come back", seen.name));
            }
        }
        Ok(())
    }

    /// Those who come into a view together, have seen the same since the same view.
    fn check_virtual_synchrony(&self, unclear: &BTreeSet<ViewKey>) -> Result<(), String> {
        type Key = (u64, Name, GroupId, usize);
        let mut together: BTreeMap<Key, (Name, View, Vec<u64>)> = BTreeMap::new();
        for seen in self.seen.iter().filter(|seen| seen.views) {
            for period in self.periods(seen) {
                let Some(next) = &period.next else {
                    continue;
                };
                if unclear.contains(&next.key()) || unclear.contains(&period.view.key()) {
                    continue;
                }
                let membership = &next.membership;
                let key = (next.at, next.group, membership.id, membership.own);
                let messages: Vec<u64> = period.messages.iter().map(|it| it.0).collect();
                let Some((other, view, expected)) = together.get(&key) else {
                    together.insert(key, (seen.name, period.view, messages));
                    continue;
                };
                let mine: BTreeSet<_> = messages.iter().collect();
                let theirs: BTreeSet<_> = expected.iter().collect();
                let missed = mine.symmetric_difference(&theirs).find(|number| {
                    let sent = &self.sent[**number];
                    let discard = sent.message_type.intersects(MessageType::SELF_DISCARD);
                    let of = |name: &Name| self.name_of(sent.from) == Some(*name);
                    !(discard && (of(other) || of(&seen.name)))
                });
                let same_view = view.is_same(&period.view);
                if missed.is_some() || !same_view {
                    let names = format!("{} and {}", other, seen.name);
                    return Err(format!("{names}: {missed:?} before {next:?}"));
                }
            }
        }
        Ok(())
    }

    /// A SAFE message that one has got before its view began to end, all of that view get in it, or
    /// in its end, if they live.
    fn check_safe(&self, unclear: &BTreeSet<ViewKey>) -> Result<(), String> {
        for seen in self.seen.iter().filter(|seen| seen.views) {
            let mut periods = self.periods(seen);
            periods.retain(|it| !unclear.contains(&it.view.key()));
            for period in periods {
                let sure = period.messages.iter().filter(|(number, ending)| {
                    let sent = &self.sent[number];
                    !ending && sent.message_type.intersects(MessageType::SAFE)
                });
                for (number, _) in sure {
                    for name in &period.view.members {
                        self.check_safe_at(*number, name, &period)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check_safe_at(&self, number: u64, name: &Name, of: &Period) -> Result<(), String> {
        let sent = &self.sent[&number];
        let discard = sent.message_type.intersects(MessageType::SELF_DISCARD);
        for other in self.seen.iter().filter(|it| it.name == *name && it.views) {
            if discard && sent.from == other.id {
                continue;
            }
            let mut periods = self.periods(other).into_iter();
            let Some(period) = periods.find(|it| it.view.is_same(&of.view)) else {
                continue;
            };
            let has = period.messages.iter().any(|(it, _)| *it == number);
            let ends = period.next.is_some() || period.left || other.lives;
            if ends && !has {
                return Err(format!(
                    "{name}: has not got {number}, which was safe in\n{:?}\nbut\n{period:?}",
                    of.view
                ));
            }
        }
        Ok(())
    }

    /// Messages of these services that a session has got, in order.
    fn ordered(&self, seen: &Seen, services: u32) -> Vec<u64> {
        let messages = seen.events.iter().filter_map(|(_, event)| match event {
            Event::Message(number) => Some(*number),
            _ => None,
        });
        let wanted = MessageType(services);
        let sent = |number: &u64| self.sent.get(number);
        messages
            .filter(|it| sent(it).is_some_and(|it| it.message_type.intersects(wanted)))
            .collect()
    }

    fn name_of(&self, id: SessionId) -> Option<Name> {
        let found = self.seen.iter().find(|seen| seen.id == id);
        found.map(|seen| seen.name)
    }
}

impl Checker {
    /// What a session got of each group, view by view.
    fn periods(&self, seen: &Seen) -> Vec<Period> {
        let mut open: BTreeMap<Name, Period> = BTreeMap::new();
        let mut periods = Vec::new();
        for (_, event) in &seen.events {
            match event {
                Event::Message(number) => {
                    for group in &self.sent[number].to {
                        if let Some(period) = open.get_mut(group) {
                            let ending = !period.transitions.is_empty();
                            period.messages.push((*number, ending));
                        }
                    }
                }
                Event::Transition(group, id) => {
                    if let Some(period) = open.get_mut(group) {
                        period.transitions.push(*id);
                    }
                }
                Event::SelfLeave(group) => {
                    let period = open.remove(group);
                    periods.extend(period.map(|it| Period { left: true, ..it }));
                }
                Event::View(view) => {
                    let fresh = Period {
                        view: view.clone(),
                        messages: Vec::new(),
                        transitions: Vec::new(),
                        next: None,
                        left: false,
                    };
                    if let Some(mut period) = open.insert(view.group, fresh) {
                        period.next = Some(view.clone());
                        periods.push(period);
                    }
                }
            }
        }
        periods.extend(open.into_values());
        periods
    }
}
