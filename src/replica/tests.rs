//! Nodes in one process with a network that is as one wishes: who plays by the rules, alone or with
//! others, is seen step by step. What is unlikely, and what goes wrong, is for the simulator.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::event::*;
use super::members::Arbiter;
use super::message::*;
use super::settings::*;
use super::*;
use crate::entry::{Body, Entry, Point};
use crate::group::ViewId;
use crate::ids::{DiskId, NodeId, Oid, Tid};
use crate::limits::CLOCK_DIFFERENCE_LASTS;

mod leases;
mod review;

/// A node with a disk that does at once what it is asked for.
struct Node {
    replica: Replica,
    member: MemberId,
    log: Vec<Entry>,
    applied: Seq,
    told: Vec<Action>,
    serving: Serving,
    is_up: bool,
}

struct World {
    nodes: Vec<Node>,
    queue: VecDeque<(usize, Event)>,
    now: Now,
    views: u8,
    /// Messages to these come to nothing.
    deaf: BTreeSet<usize>,
    /// The clocks of these are ahead.
    wrong: BTreeMap<usize, Duration>,
    /// The first cannot fetch from the second: there is no direct way.
    no_way: BTreeSet<(usize, usize)>,
    /// What is fetched by these comes later.
    slow: BTreeSet<usize>,
    held: Vec<(usize, Event)>,
}

fn voter(number: usize) -> Voter {
    let name = format!("n{number}");
    Voter {
        node: NodeId::new(&name).unwrap(),
        disk: DiskId([u8::try_from(number).unwrap(); 16]),
    }
}

const HISTORY: HistoryId = HistoryId([7; 16]);

fn options(kind: NodeKind) -> Options {
    Options {
        kind,
        site: "here".to_owned(),
        priority: 10,
        copies_newest_only: false,
        leads_without_history: false,
        lease: Duration::from_secs(2),
    }
}

impl World {
    fn new(kinds: &[NodeKind], members: &Members) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any time will do")]
        let instant = Instant::now();
        let now = Now {
            instant,
            wall: Duration::from_secs(1_800_000_000),
        };
        let nodes = kinds.iter().enumerate().map(|(number, kind)| Node {
            replica: Replica::new(options(*kind), start(number, members), now),
            member: MemberId::new(&format!("#n{number}")),
            log: Vec::new(),
            applied: Seq::ZERO,
            told: Vec::new(),
            serving: Serving::default(),
            is_up: true,
        });
        let nodes = nodes.collect();
        // They have listened long enough.
        let listened = Duration::from_secs(3);
        let now = Now {
            instant: now.instant + listened,
            wall: now.wall + listened,
        };
        Self {
            nodes,
            queue: VecDeque::new(),
            now,
            views: 0,
            deaf: BTreeSet::new(),
            wrong: BTreeMap::new(),
            no_way: BTreeSet::new(),
            slow: BTreeSet::new(),
            held: Vec::new(),
        }
    }

    fn of_voters(count: usize) -> Self {
        let members = Members {
            voters: (0..count).map(voter).collect(),
            arbiter: None,
        };
        Self::new(&vec![NodeKind::Data; count], &members)
    }

    /// These see each other, and nobody else.
    fn view(&mut self, members: &[usize]) {
        self.views += 1;
        let mut id = [0; 20];
        id[0] = self.views;
        let names = members.iter().map(|at| self.nodes[*at].member.clone());
        let names: Vec<MemberId> = names.collect();
        // All are in it before anybody speaks.
        let mut actions = Vec::new();
        for at in members {
            let event = Event::View {
                id: ViewId(id),
                members: names.clone(),
                me: self.nodes[*at].member.clone(),
            };
            let now = self.now_at(*at);
            actions.push((*at, self.nodes[*at].replica.step(event, now)));
        }
        for (at, actions) in actions {
            actions.into_iter().for_each(|action| self.act(at, action));
        }
        self.settle();
    }

    /// As this node's clocks show it.
    fn now_at(&self, at: usize) -> Now {
        let ahead = self.wrong.get(&at).copied().unwrap_or_default();
        Now {
            wall: self.now.wall + ahead,
            ..self.now
        }
    }

    fn give(&mut self, at: usize, event: Event) {
        self.queue.push_back((at, event));
        self.settle();
    }

    fn settle(&mut self) {
        let mut steps = 0;
        while let Some((at, event)) = self.queue.pop_front() {
            steps += 1;
            assert!(steps < 100_000, "it never ends");
            if self.nodes[at].is_up {
                let now = self.now_at(at);
                let actions = self.nodes[at].replica.step(event, now);
                self.nodes[at].replica.invariants();
                for action in actions {
                    self.act(at, action);
                }
            }
        }
    }

    /// Time goes by.
    fn pass(&mut self, time: Duration) {
        let until = self.now.instant + time;
        while self.now.instant < until {
            let step = Duration::from_millis(100);
            self.now.instant += step;
            self.now.wall += step;
            for at in 0..self.nodes.len() {
                self.queue.push_back((at, Event::Deadline));
            }
            self.settle();
        }
    }

    fn find(&self, member: &MemberId) -> usize {
        let mut nodes = self.nodes.iter();
        nodes.position(|node| node.member == *member).unwrap()
    }

    fn deliver(&mut self, sender: usize, to: usize, message: &Message) {
        let from = self.nodes[sender].member.clone();
        let message = Message::decode_args(message);
        let view = |at: usize| self.nodes[at].replica.view.as_ref().map(|view| view.id);
        if !self.deaf.contains(&to) && view(to) == view(sender) {
            self.queue.push_back((to, Event::Message { from, message }));
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::SendAll(message) => {
                let to = self.nodes[at].replica.view.as_ref().unwrap();
                let to: Vec<MemberId> = to.members.keys().cloned().collect();
                for to in to {
                    self.deliver(at, self.find(&to), &message);
                }
            }
            Action::SendOne(to, message) => self.deliver(at, self.find(&to), &message),
            Action::Fetch { to, fetch } => {
                let from = self.nodes[at].member.clone();
                let to = self.find(&to);
                if self.no_way.contains(&(at, to)) || !self.nodes[to].is_up {
                    self.queue
                        .push_back((at, Event::FetchFailed { id: fetch.id }));
                    return;
                }
                self.queue.push_back((to, Event::Requested { from, fetch }));
            }
            Action::Supply {
                to,
                mut answer,
                entries,
            } => {
                if let (Supply::Entries { entries, .. }, Some((from, to))) =
                    (&mut answer.what, entries)
                {
                    let log = self.nodes[at].log.iter();
                    let within = |entry: &&Entry| (from..=to).contains(&entry.header().seq);
                    entries.extend(log.filter(within).cloned());
                }
                let to = self.find(&to);
                match self.slow.contains(&to) {
                    true => self.held.push((to, Event::Fetched(*answer))),
                    false => self.queue.push_back((to, Event::Fetched(*answer))),
                }
            }
            Action::Append(entries) => {
                let node = &mut self.nodes[at];
                for entry in entries {
                    let last = node.log.last().map(Entry::point);
                    let last = last.unwrap_or_else(|| Point::start(HISTORY));
                    assert_eq!(entry.header().previous, last.digest);
                    node.log.push(entry);
                }
                let through = node.log.last().unwrap().header().seq;
                self.queue.push_back((at, Event::Synced { through }));
            }
            Action::Promise(epoch) => self.queue.push_back((at, Event::Promised(epoch))),
            Action::Cut { after, .. } => {
                let node = &mut self.nodes[at];
                node.log.retain(|entry| entry.header().seq <= after);
                let last = node.log.last();
                let point = last.map_or_else(|| Point::start(HISTORY), Entry::point);
                let tids = node.log.iter().map(|entry| entry.header().tid);
                let last_tid = tids.max().unwrap_or_default();
                let event = Event::Cut {
                    last: point,
                    last_tid,
                };
                self.queue.push_back((at, event));
            }
            Action::Apply { through } => {
                self.nodes[at].applied = through;
                self.queue.push_back((at, Event::Applied { through }));
            }
            Action::Record(position, members) => {
                let action = Action::Record(position, members);
                self.nodes[at].told.push(action);
                self.queue.push_back((at, Event::Recorded(position)));
            }
            Action::Serve(serving) => {
                self.nodes[at].serving = serving;
                self.nodes[at].told.push(Action::Serve(serving));
            }
            Action::Stop(fatal) => panic!("n{at} stops: {fatal}"),
            other => self.nodes[at].told.push(other),
        }
    }

    fn finish(&mut self, at: usize, token: u64) {
        let body = Body::new(vec![Bytes::from(vec![1; 100])]).unwrap();
        let event = Event::Finish {
            token: Token(token),
            body,
            tid: None,
            oids: vec![("1".to_owned(), Oid(1))],
        };
        self.give(at, event);
    }

    fn outcome(&self, at: usize, token: u64) -> Option<Outcome> {
        self.nodes[at].told.iter().find_map(|action| match action {
            Action::Reply { token: of, outcome } if of.0 == token => Some(*outcome),
            _ => None,
        })
    }

    fn answer(&self, at: usize, token: u64) -> Option<Result<(), Refusal>> {
        self.nodes[at].told.iter().find_map(|action| match action {
            Action::Answer { token: of, result } if of.0 == token => Some(result.clone()),
            _ => None,
        })
    }

    fn open(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let open = nodes.filter(|(_, node)| node.is_up && node.serving.writers == Writers::Open);
        open.map(|(at, _)| at).collect()
    }

    /// How often this was told of.
    fn told(&self, at: usize, what: impl Fn(&Notice) -> bool) -> usize {
        let told = self.nodes[at].told.iter();
        let told = told.filter(|it| matches!(it, Action::Tell(notice) if what(notice)));
        told.count()
    }

    /// How long who is shown by the daemon is believed to be there.
    fn set_lease(&mut self, lease: Duration) {
        for node in &mut self.nodes {
            node.replica.options.lease = lease;
        }
    }

    fn assert_level(&self, nodes: &[usize]) {
        let first = &self.nodes[nodes[0]];
        for at in nodes {
            let node = &self.nodes[*at];
            assert_eq!(node.log, first.log, "the log of n{at}");
            assert_eq!(node.applied, node.log.last().unwrap().header().seq, "n{at}");
        }
    }
}

impl Message {
    /// Through the codec, as it travels.
    fn decode_args(message: &Self) -> Self {
        let (method, args) = message.encode();
        let parts = crate::group::message::encode(method, args);
        let whole = Bytes::from(parts.concat());
        let decoded = crate::group::message::Message::decode(&whole).unwrap();
        let decoded = Self::decode(&decoded).unwrap().unwrap();
        assert_eq!(decoded.content.method(), message.content.method());
        decoded
    }
}

fn start(number: usize, members: &Members) -> Start {
    let settings = Settings {
        members: members.clone(),
        ..Settings::default()
    };
    Start {
        history: HISTORY,
        me: voter(number),
        promised: Epoch::ZERO,
        log: LogStart {
            before: Position::default(),
            last: Point::start(HISTORY),
            last_tid: Tid::ZERO,
            ends: Vec::new(),
            committed: Seq::ZERO,
            applied: Seq::ZERO,
            settled: Seq::ZERO,
            settings,
            changes: Vec::new(),
            history_from: Tid::ZERO,
            packed: BTreeMap::new(),
        },
    }
}

#[test]
fn one_voter_alone_opens_and_commits() {
    let mut world = World::of_voters(1);
    world.view(&[0]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [0]);
    world.finish(0, 1);
    assert!(matches!(
        world.outcome(0, 1),
        Some(Outcome::Committed { .. })
    ));
}

#[test]
fn three_voters_elect_one_and_all_get_what_it_commits() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [0]);
    for token in 0..20 {
        world.finish(0, token);
        let outcome = world.outcome(0, token);
        assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    }
    world.pass(Duration::from_secs(1));
    world.assert_level(&[0, 1, 2]);
    let readers: Vec<Readers> = world
        .nodes
        .iter()
        .map(|node| node.serving.readers)
        .collect();
    assert_eq!(readers, [Readers::Open; 3]);
}

#[test]
fn two_of_three_go_on_without_the_primary_and_it_comes_back_rewound() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    // The others do not hear what comes now.
    world.deaf = [1, 2].into();
    world.finish(0, 2);
    assert_eq!(world.outcome(0, 2), None);
    world.deaf.clear();
    world.view(&[0]);
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.open(), [1]);
    assert_eq!(world.nodes[0].serving.writers, Writers::Closed);
    assert_eq!(world.nodes[0].serving.readers, Readers::Kept);
    world.finish(1, 3);
    assert_eq!(world.outcome(0, 2), None, "nobody knows");
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.open(), [1]);
    world.assert_level(&[0, 1, 2]);
    assert_eq!(world.outcome(0, 2), Some(Outcome::Lost));
    let rewound = |action: &Action| matches!(action, Action::Tell(Notice::Rewound { .. }));
    assert!(world.nodes[0].told.iter().any(rewound));
}

/// Seed 8973: clients waited for the locks of the second one, so that nothing came to its place.
#[test]
fn a_finish_has_failed_when_a_later_epoch_is_committed_in_front_of_it() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.deaf = [1, 2].into();
    world.finish(0, 2);
    world.finish(0, 3);
    world.deaf.clear();
    world.view(&[0]);
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.open(), [1]);
    assert_eq!(world.outcome(0, 2), None, "nobody knows");
    // Of the new epoch there is a barrier entry, in the place of the first of them, and no more.
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.outcome(0, 2), Some(Outcome::Lost));
    assert_eq!(world.outcome(0, 3), Some(Outcome::Lost));
    world.assert_level(&[0, 1, 2]);
}

#[test]
fn the_primary_stays_in_office_when_another_one_goes_and_comes() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let epoch = world.nodes[0].replica.promised();
    world.view(&[0, 1]);
    world.finish(0, 1);
    world.pass(Duration::from_secs(5));
    assert!(world.outcome(0, 1).is_some());
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [0]);
    assert_eq!(world.nodes[2].replica.promised(), epoch);
    world.assert_level(&[0, 1, 2]);
}

#[test]
fn a_swap_ends_no_finish_with_an_error() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    let to = voter(2).node;
    world.give(
        0,
        Event::Swap {
            token: Token(9),
            to,
        },
    );
    assert_eq!(world.nodes[0].serving.writers, Writers::Draining);
    world.finish(0, 2);
    world.give(0, Event::Drained);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [2]);
    assert_eq!(world.answer(0, 9), Some(Ok(())));
    let outcome = world.outcome(0, 2);
    assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    world.pass(Duration::from_secs(1));
    world.assert_level(&[0, 1, 2]);
}

#[test]
fn a_voter_is_added_and_another_removed() {
    let members = Members {
        voters: (0..2).map(voter).collect(),
        arbiter: None,
    };
    let mut world = World::new(&[NodeKind::Data; 3], &members);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.pass(Duration::from_secs(1));
    let mut change = |token, change| {
        let token = Token(token);
        world.give(0, Event::ChangeMembers { token, change });
        world.pass(Duration::from_secs(1));
        world.answer(0, token.0)
    };
    let node = |number| voter(number).node;
    assert_eq!(change(1, MemberChange::Add(node(2))), Some(Ok(())));
    assert_eq!(change(2, MemberChange::Remove(node(1))), Some(Ok(())));
    let refused = change(3, MemberChange::Remove(node(0)));
    assert_eq!(refused, Some(Err(Refusal::NotEligible(node(0)))));
    // Two that are left commit by themselves.
    world.view(&[0, 2]);
    world.finish(0, 2);
    let outcome = world.outcome(0, 2);
    assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    world.view(&[0, 1]);
    world.finish(0, 3);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.outcome(0, 3), None);
}

#[test]
fn of_two_with_an_arbiter_one_may_go() {
    let members = Members {
        voters: (0..2).map(voter).collect(),
        arbiter: Some(Arbiter {
            node: voter(2),
            in_sync: (0..2).map(voter).collect(),
        }),
    };
    let mut world = World::new(
        &[NodeKind::Data, NodeKind::Data, NodeKind::Arbiter],
        &members,
    );
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.view(&[0, 2]);
    world.finish(0, 2);
    assert_eq!(world.outcome(0, 2), None, "the other one has not synced it");
    world.pass(Duration::from_secs(3));
    let outcome = world.outcome(0, 2);
    assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    // The other one lacks it, and must not lead.
    world.nodes[0].is_up = false;
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(20));
    assert!(world.open().is_empty());
    world.nodes[0].is_up = true;
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(5));
    world.assert_level(&[0, 1]);
    assert_eq!(world.open().len(), 1);
}

#[test]
fn oids_are_handed_out_once() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let mut ranges = Vec::new();
    let mut token = 100;
    let mut allocate = |world: &mut World, at: usize, count| {
        token += 1;
        let (token, storage) = (Token(token), "1".to_owned());
        let event = Event::AllocateOids {
            token,
            storage,
            count,
        };
        world.give(at, event);
        let mut told = world.nodes[at].told.iter();
        told.find_map(|action| match action {
            Action::Oids { token: of, oids } if *of == token => oids.clone(),
            _ => None,
        })
    };
    for _ in 0..150 {
        ranges.push(allocate(&mut world, 0, 100).unwrap());
    }
    assert_eq!(allocate(&mut world, 1, 100), None);
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(5));
    ranges.push(allocate(&mut world, 1, 100).unwrap());
    ranges.sort_by_key(|range| range.start);
    let oids = ranges.iter().flat_map(Clone::clone);
    assert!(oids.is_sorted_by(|a, b| a < b));
}

#[test]
fn who_asks_what_is_committed_hears_of_all_that_was() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    let sure = |world: &World, at: usize, token: u64| {
        let mut told = world.nodes[at].told.iter();
        told.find_map(|action| match action {
            Action::Confirmed { token: of, is_sure } if of.0 == token => Some(*is_sure),
            _ => None,
        })
    };
    for at in 0..3 {
        world.give(at, Event::Confirm { token: Token(7) });
        assert_eq!(sure(&world, at, 7), Some(true));
        assert!(world.nodes[at].applied >= Seq(2));
    }
    world.view(&[0]);
    world.give(0, Event::Confirm { token: Token(8) });
    world.pass(Duration::from_secs(3));
    assert_eq!(sure(&world, 0, 8), Some(false));
}

#[test]
fn packs_are_done_by_one_after_the_other() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let (token, storage) = (Token(5), "1".to_owned());
    let tid = Tid(5);
    world.give(
        0,
        Event::OrderPack {
            token,
            storage,
            tid,
        },
    );
    let packs = |world: &World| -> BTreeMap<usize, Seq> {
        let nodes = world.nodes.iter().enumerate();
        let packs = nodes.filter_map(|(at, node)| {
            node.told.iter().find_map(|action| match action {
                Action::Pack { pack, .. } => Some((at, pack.at)),
                _ => None,
            })
        });
        packs.collect()
    };
    let mut done = BTreeSet::new();
    for round in 1..=3 {
        world.pass(Duration::from_secs(8));
        let packing = packs(&world);
        assert_eq!(packing.len(), round);
        let seqs: BTreeSet<&Seq> = packing.values().collect();
        assert_eq!(seqs.len(), 1);
        let at = *packing.keys().find(|at| !done.contains(*at)).unwrap();
        done.insert(at);
        world.give(at, Event::Packed);
    }
}

#[test]
fn who_was_given_the_office_takes_it_again_though_its_disk_was_full() {
    let mut world = World::of_voters(3);
    world.nodes[2].replica.options.site = "away".to_owned();
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    let to = voter(2).node;
    let token = Token(9);
    world.give(0, Event::Swap { token, to });
    world.give(0, Event::Drained);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [2]);
    // There was no room for its barrier entry, which names its site as home; the others have it.
    let node = &mut world.nodes[2];
    node.log.pop();
    let last = node.log.last().unwrap();
    let event = Event::NoRoom {
        last: last.point(),
        last_tid: last.header().tid,
    };
    world.nodes[2].replica.log = log::Log::new(LogStart {
        committed: world.nodes[2].log.last().unwrap().header().seq,
        ..log_start(&world.nodes[2])
    });
    world.give(2, event);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.open(), [2]);
    world.assert_level(&[0, 1, 2]);
}

/// Where a node would start with the log that it has, and nothing applied but that.
fn log_start(node: &Node) -> LogStart {
    let last = node.log.last().unwrap();
    let mut ends: Vec<Position> = Vec::new();
    for point in node.log.iter().map(Entry::point) {
        ends.retain(|end| end.epoch != point.epoch);
        ends.push(Position {
            epoch: point.epoch,
            seq: point.seq,
        });
    }
    let changes = node.log.iter().filter_map(|entry| {
        let header = entry.header();
        let kind = Kind::from_number(header.kind)?;
        Some((header.seq, Change::decode(kind, entry.body()).ok()?))
    });
    let (seqs, settings) = (last.header().seq, Settings::default());
    let settings = changes.fold(settings, |all, (seq, change)| all.changed(&change, seq));
    LogStart {
        before: Position::default(),
        last: last.point(),
        last_tid: last.header().tid,
        ends,
        committed: seqs,
        applied: seqs,
        settled: seqs,
        settings,
        changes: Vec::new(),
        history_from: Tid::ZERO,
        packed: BTreeMap::new(),
    }
}

#[test]
fn behind_a_loss_no_storage_begins_with_oids_that_were_handed_out() {
    let heard = ("heard".to_owned(), Oid(500));
    let settings = Settings {
        ceilings: [heard].into(),
        ..Settings::default()
    };
    let storages = ["heard".to_owned(), "unheard".to_owned()];
    let wall = Duration::from_secs(1_800_000_000);
    let last = Tid::from_unix_time(wall + Duration::from_secs(60));
    let after = settings.after_loss(Members::default(), &storages, last, wall);
    assert_eq!(after.ceilings["heard"], Oid(1_000_500));
    assert_eq!(after.ceilings["unheard"], Oid(1_000_000));
    // 20 minutes ahead of all that anybody has heard of.
    let ahead = after.jump.unix_time() - last.unix_time();
    assert_eq!(ahead.as_secs_f64().round(), 1200.0);
}

#[test]
fn a_clock_that_is_wrong_is_told_of_and_one_that_is_far_ahead_does_not_lead() {
    let mut world = World::of_voters(3);
    world.wrong.insert(0, Duration::from_secs(5));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.open(), [0]);
    let told = |world: &World, at: usize| world.told(at, |it| matches!(it, Notice::ClockOff(_)));
    assert_eq!(told(&world, 0), 0, "what has just come may have waited");
    world.pass(CLOCK_DIFFERENCE_LASTS);
    assert_eq!((told(&world, 0), told(&world, 1)), (1, 0));
    world.wrong.insert(0, Duration::from_secs(60));
    world.pass(CLOCK_DIFFERENCE_LASTS + Duration::from_secs(1));
    assert_eq!(world.open(), [0], "who is in office stays");
    assert_eq!(told(&world, 0), 2);
    world.view(&[0]);
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(10));
    world.view(&[1]);
    world.view(&[2]);
    world.pass(Duration::from_secs(10));
    world.view(&[0, 2]);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.open(), [2]);
}
