//! Schedules by which the core did something that it must not: each fails until that is repaired.

use super::*;

fn name(number: usize) -> NodeId {
    voter(number).node
}

impl World {
    fn committed_log(&self, at: usize) -> &[Entry] {
        let node = &self.nodes[at];
        let count = usize::try_from(node.replica.committed().0).unwrap();
        &node.log[..count]
    }

    fn swap(&mut self, from: usize, to: usize, token: u64) {
        let token = Token(token);
        let to = name(to);
        self.give(from, Event::Swap { token, to });
        self.give(from, Event::Drained);
        self.pass(Duration::from_secs(2));
    }

    /// It crashes, and comes back with all that was on its disk.
    fn restart(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let log = &node.replica.log;
        assert_eq!(log.changes().count(), 0);
        let mut ends: Vec<Position> = Vec::new();
        for entry in &node.log {
            let point = entry.point();
            let (epoch, seq) = (point.epoch, point.seq);
            ends.retain(|end| end.epoch != epoch);
            ends.push(Position { epoch, seq });
        }
        let start = Start {
            history: HISTORY,
            me: node.replica.me,
            promised: node.replica.durable,
            log: LogStart {
                before: Position::default(),
                last: node.log.last().unwrap().point(),
                last_tid: log.last_tid(),
                ends,
                committed: log.committed(),
                applied: node.applied,
                settled: log.committed(),
                settings: log.settled().clone(),
                changes: Vec::new(),
                history_from: Tid::ZERO,
                packed: node.replica.errands.packed.clone(),
            },
        };
        let options = node.replica.options.clone();
        node.replica = Replica::new(options, start, self.now);
        node.serving = Serving::default();
    }
}

/// review-1
#[test]
fn who_fetches_from_a_replica_believes_nothing_that_it_has_not_matched() {
    let mut world = World::of_voters(5);
    world.view(&[0, 1, 2, 3, 4]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.pass(Duration::from_secs(1));
    // The primary and one more are cut off; what it proposes is never committed.
    world.view(&[2, 3, 4]);
    world.view(&[0, 1]);
    for token in 100..110 {
        world.finish(0, token);
    }
    world.deaf = [1].into();
    world.no_way = [(1, 0)].into();
    world.finish(0, 110);
    world.deaf.clear();
    world.pass(Duration::from_secs(6));
    assert_eq!(world.open(), [2]);
    for token in 1000..2100 {
        world.finish(2, token);
    }
    // They come back, and there is no direct way to the new primary.
    world.no_way = [(0, 2), (1, 2)].into();
    world.view(&[3, 4]);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(3));
    let (one, all) = (world.committed_log(1), world.committed_log(2));
    assert_eq!(one, &all[..one.len()], "n1 believes what is not so");
    assert!(world.nodes[1].applied.0 <= one.len() as u64);
}

/// review-2
#[test]
fn an_arbiter_hears_of_a_growth_when_the_new_one_has_all() {
    let members = Members {
        voters: (0..2).map(voter).collect(),
        arbiter: Some(Arbiter {
            node: voter(2),
            in_sync: (0..2).map(voter).collect(),
        }),
    };
    let kinds = [NodeKind::Data, NodeKind::Data, NodeKind::Arbiter];
    let mut world = World::new(&kinds, &members);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    world.finish(0, 1);
    world.view(&[0, 2]);
    world.pass(Duration::from_secs(3));
    for token in 2..12 {
        world.finish(0, token);
        let outcome = world.outcome(0, token);
        assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    }
    // The other one comes back, and has not fetched yet when the primary dies.
    world.no_way = [(1, 0)].into();
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let committed = world.committed_log(0).to_vec();
    world.nodes[0].is_up = false;
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(20));
    let has_all = world.nodes[1].log.starts_with(&committed);
    assert!(has_all || world.open().is_empty(), "n1 leads without them");
}

/// review-3
#[test]
fn a_copy_is_not_taken_from_who_has_less() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.pass(Duration::from_secs(1));
    let epoch = world.nodes[0].replica.promised();
    let view = world.nodes[1].replica.view.as_ref().unwrap().id;
    world.no_way = [(1, 0), (1, 2)].into();
    let now = world.now;
    let sender = |at: usize| Sender {
        history: HISTORY,
        node: voter(at).node,
        disk: voter(at).disk,
    };
    // The third is a newcomer that has nothing, and follows the same primary.
    let content = Content::State(Box::new(State {
        view,
        promised: epoch,
        last: Position::default(),
        committed: Seq::ZERO,
        applied: Seq::ZERO,
        role: Role::Replica,
        hears: Some(epoch),
        kind: NodeKind::Data,
        site: "here".to_owned(),
        home: "here".to_owned(),
        members: Members::default(),
        priority: 10,
        history_from: Tid::ZERO,
        wall: now.wall,
    }));
    let members: Vec<MemberId> = world.nodes.iter().map(|it| it.member.clone()).collect();
    let mut step = |event| world.nodes[1].replica.step(event, now);
    step(Event::Message {
        from: members[2].clone(),
        message: Message {
            sender: sender(2),
            content,
        },
    });
    let last = Position {
        epoch,
        seq: Seq(900),
    };
    let actions = step(Event::Message {
        from: members[0].clone(),
        message: Message {
            sender: sender(0),
            content: Content::Commit {
                epoch,
                committed: Seq(900),
                last,
                beat: 50,
                wall: now.wall,
            },
        },
    });
    let id = actions.iter().find_map(|action| match action {
        Action::Fetch { to, fetch } if *to == members[0] => Some(fetch.id),
        _ => None,
    });
    let fetched = Fetched {
        sender: sender(0),
        id: id.unwrap(),
        epoch,
        what: Supply::Released { before: Seq(800) },
    };
    let actions = step(Event::Fetched(fetched));
    let from = actions.iter().find_map(|action| match action {
        Action::Copy { from, .. } => Some(from),
        _ => None,
    });
    assert_eq!(from, Some(&members[0]), "it copies what is less");
}

/// review-4
#[test]
fn of_two_with_one_name_one_is_promised_an_epoch() {
    let mut world = World::of_voters(4);
    let members = Members {
        voters: (0..3).map(voter).collect(),
        arbiter: None,
    };
    // The fourth has the name of the first, and another disk. The others never lead by themselves.
    for at in 0..4 {
        let mut start = start(at, &members);
        let mut options = options(NodeKind::Data);
        if at == 3 {
            start.me.node = name(0);
        }
        if [1, 2].contains(&at) {
            options.priority = 0;
        }
        world.nodes[at].replica = Replica::new(options, start, world.now);
    }
    world.pass(Duration::from_secs(3));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [0]);
    world.finish(0, 1);
    world.swap(0, 1, 90);
    assert_eq!(world.open(), [1]);
    // The disk of the first is believed to be lost: it is replaced by the fourth.
    world.view(&[0]);
    world.view(&[1, 2, 3]);
    world.pass(Duration::from_secs(2));
    for (token, change) in [
        (91, MemberChange::Remove(name(0))),
        (92, MemberChange::Add(name(0))),
    ] {
        let token = Token(token);
        world.give(1, Event::ChangeMembers { token, change });
        world.pass(Duration::from_secs(1));
        assert_eq!(world.answer(1, token.0), Some(Ok(())));
    }
    world.finish(1, 2);
    // All lose sight of each other; then all see each other, also the one with the old disk.
    (0..4).for_each(|at| world.view(&[at]));
    world.pass(Duration::from_secs(5));
    world.slow = [0].into();
    world.view(&[0, 1, 2, 3]);
    world.pass(Duration::from_secs(1));
    world.slow.clear();
    let held = std::mem::take(&mut world.held);
    world.queue.extend(held);
    world.settle();
    world.finish(0, 501);
    world.finish(3, 502);
    world.pass(Duration::from_secs(1));
    let offices: Vec<Epoch> = (0..4)
        .filter(|at| world.nodes[*at].replica.role() == Role::Primary)
        .map(|at| world.nodes[at].replica.promised())
        .collect();
    assert!(offices.len() <= 1, "several are in office: {offices:?}");
}

/// What a node says of itself, but for what is changed in it.
fn stated(world: &World, at: usize, by: usize, change: impl FnOnce(&mut State)) -> Event {
    let replica = &world.nodes[by].replica;
    let mut state = State {
        view: world.nodes[at].replica.view.as_ref().unwrap().id,
        promised: replica.promised(),
        last: replica.last(),
        committed: replica.committed(),
        applied: replica.committed(),
        role: Role::Replica,
        hears: None,
        kind: NodeKind::Data,
        site: "here".to_owned(),
        home: "here".to_owned(),
        members: replica.log.settings().members.clone(),
        priority: 10,
        history_from: Tid::ZERO,
        wall: world.now.wall,
    };
    change(&mut state);
    Event::Message {
        from: world.nodes[by].member.clone(),
        message: Message {
            sender: Sender {
                history: HISTORY,
                node: voter(by).node,
                disk: voter(by).disk,
            },
            content: Content::State(Box::new(state)),
        },
    }
}

fn outdone(world: &World, at: usize, by: usize) -> Event {
    stated(world, at, by, |state| {
        state.promised = Epoch {
            counter: state.promised.counter + 5,
            node: name(by),
        };
    })
}

/// review-5
#[test]
fn a_finish_during_a_renewal_does_not_fail() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    world.finish(0, 1);
    let event = outdone(&world, 0, 2);
    world.give(0, event);
    // The promises are on their way.
    world.nodes[2].is_up = false;
    while world.nodes[0].replica.role() == Role::Primary {
        world.deaf = [0].into();
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(world.nodes[0].serving.writers, Writers::Frozen);
    world.finish(0, 2);
    assert_ne!(world.outcome(0, 2), Some(Outcome::Lost), "it was voted");
}

/// review-6
#[test]
fn a_renewal_that_finds_others_work_closes_the_writers() {
    let mut world = World::of_voters(3);
    // One that never leads by itself, as it is far away.
    let replica = &mut world.nodes[2].replica;
    replica.options.priority = 0;
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    world.finish(0, 1);
    world.pass(Duration::from_secs(1));
    world.view(&[1]);
    world.view(&[0, 2]);
    world.pass(Duration::from_secs(3));
    world.nodes[0].told.clear();
    // Who starts anew has not heard of the primary.
    world.restart(2);
    // And, as an older version did, it does not wait until it must have.
    world.nodes[2].replica.reticent_until = world.now.instant;
    world.view(&[0]);
    world.view(&[1, 2]);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.open(), [0, 1]);
    world.finish(1, 2);
    let outcome = world.outcome(1, 2);
    assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    world.nodes[1].is_up = false;
    world.view(&[0, 2]);
    world.pass(Duration::from_secs(8));
    let log = &world.nodes[0].log;
    let foreign = log.iter().any(|it| it.header().epoch.node == name(1));
    assert!(foreign, "n0 has got what n1 has committed");
    // What was voted at n0 has not been compared with that.
    let closed = |action: &Action| match action {
        Action::Serve(serving) => serving.writers == Writers::Closed,
        _ => false,
    };
    assert!(world.nodes[0].told.iter().any(closed), "votes live on");
}

/// review-7
#[test]
fn who_cannot_fetch_leaves_the_others_a_turn() {
    let mut world = World::of_voters(5);
    world.nodes[2].replica = Replica::new(
        Options {
            priority: 0,
            ..options(NodeKind::Data)
        },
        start(
            2,
            &Members {
                voters: (0..5).map(voter).collect(),
                arbiter: None,
            },
        ),
        world.now,
    );
    world.view(&[0, 1, 2, 3, 4]);
    world.pass(Duration::from_secs(2));
    world.swap(0, 3, 90);
    assert_eq!(world.open(), [3]);
    // Only the one that never leads gets the last one.
    world.deaf = [0, 1, 4].into();
    world.finish(3, 1);
    world.deaf.clear();
    (3..5).for_each(|at| world.nodes[at].is_up = false);
    world.no_way = [(0, 2)].into();
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.open().len(), 1, "nobody leads");
}

/// A disk of one cluster gets into another one: the same history, other entries committed.
fn mixed_up(to: usize) -> World {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let mut other = World::of_voters(3);
    other.view(&[0, 1, 2]);
    other.pass(Duration::from_secs(1));
    other.finish(0, 1);
    other.pass(Duration::from_secs(1));
    other.swap(0, to, 90);
    other.restart(2);
    world.swap(0, 1, 90);
    world.swap(1, 0, 91);
    world.finish(0, 1);
    world.nodes[2] = other.nodes.remove(2);
    assert!(world.nodes[2].replica.committed() > Seq::ZERO);
    world
}

/// review-8
#[test]
#[should_panic(expected = "n2 stops")]
fn a_node_that_has_committed_something_else_does_not_fetch_for_ever() {
    let mut world = mixed_up(1);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(3));
}

/// review-8
#[test]
#[should_panic(expected = "n2 stops")]
fn a_node_that_has_committed_something_else_is_not_copied_over() {
    let mut world = mixed_up(2);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(3));
    let copies = |action: &Action| matches!(action, Action::Copy { .. });
    assert!(!world.nodes[2].told.iter().any(copies), "it copies instead");
}

/// review-9
#[test]
fn no_number_of_an_epoch_stops_the_process() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1]);
    world.pass(Duration::from_secs(1));
    let mut event = outdone(&world, 0, 1);
    if let Event::Message { message, .. } = &mut event
        && let Content::State(state) = &mut message.content
    {
        state.promised.counter = u64::MAX;
    }
    world.give(0, event);
    world.pass(Duration::from_secs(5));
}

/// review-10
#[test]
fn an_answer_to_a_question_before_a_crash_answers_none_after_it() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.pass(Duration::from_secs(1));
    let event = Event::Confirm { token: Token(7) };
    let now = world.now;
    let actions = world.nodes[1].replica.step(event, now);
    let id = actions.iter().find_map(|action| match action {
        Action::SendOne(_, message) => match message.content {
            Content::Ask { id, .. } => Some(id),
            _ => None,
        },
        _ => None,
    });
    let told = Event::Message {
        from: world.nodes[0].member.clone(),
        message: Message {
            sender: Sender {
                history: HISTORY,
                node: voter(0).node,
                disk: voter(0).disk,
            },
            content: Content::Told {
                epoch: world.nodes[0].replica.promised(),
                id: id.unwrap(),
                committed: world.nodes[0].replica.committed(),
            },
        },
    };
    world.restart(1);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.deaf = [1].into();
    world.finish(0, 2);
    assert!(world.outcome(0, 2).is_some());
    world.deaf = [0].into();
    world.give(1, Event::Confirm { token: Token(8) });
    // What was said before the crash, or to who had this member's name before, comes now.
    world.give(1, told);
    let sure = world.nodes[1].told.iter().any(|action| match action {
        Action::Confirmed { token, is_sure } => token.0 == 8 && *is_sure,
        _ => false,
    });
    let has_all = world.nodes[1].applied >= world.nodes[0].replica.committed();
    assert!(!sure || has_all, "it is sure of what is older");
}

/// review-11
#[test]
fn a_pack_that_was_ordered_is_done_after_a_restart() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let (token, storage, tid) = (Token(5), "1".to_owned(), Tid(5));
    let order = Event::OrderPack {
        token,
        storage,
        tid,
    };
    world.give(0, order);
    world.pass(Duration::from_secs(1));
    let packs = |action: &Action| matches!(action, Action::Pack { .. });
    let waits = |at: &usize| !world.nodes[*at].told.iter().any(packs);
    let waiting = (0..3).find(waits).unwrap();
    let busy = (0..3).find(|at| !waits(at)).unwrap();
    world.restart(waiting);
    world.view(&[0, 1, 2]);
    world.give(busy, Event::Packed);
    world.pass(Duration::from_secs(60));
    let others = 3 - waiting - busy;
    world.give(others, Event::Packed);
    world.pass(Duration::from_secs(60));
    assert!(
        world.nodes[waiting].told.iter().any(packs),
        "it never packs"
    );
}

#[test]
fn a_pack_includes_those_that_were_ordered_before_and_nothing_to_come() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    let mut order = |token, tid| {
        let (token, storage) = (Token(token), "1".to_owned());
        let order = Event::OrderPack {
            token,
            storage,
            tid,
        };
        world.give(0, order);
        let replica = &world.nodes[0].replica;
        (replica.log.settings().packs["1"], replica.log.last_tid())
    };
    let (first, last_tid) = order(5, Tid::MAX);
    assert_eq!(first.tid, last_tid);
    // Whoever has not done the first one yet does both.
    let (second, _) = order(6, Tid(1));
    assert_eq!(second.tid, first.tid);
    assert!(second.at > first.at);
}

/// review-12
#[test]
fn a_full_disk_and_a_cut_at_the_same_time() {
    let mut world = World::of_voters(3);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    world.finish(0, 1);
    world.pass(Duration::from_secs(1));
    let now = world.now;
    let node = &mut world.nodes[1];
    let last = *node.replica.log.last_point();
    let epoch = last.epoch;
    let body = || Body::new(vec![Bytes::from_static(b"1")]).unwrap();
    let from = MemberId::new("#n0");
    let mut propose = |entry: Entry, previous: Epoch| {
        let sender = Sender {
            history: HISTORY,
            node: voter(0).node,
            disk: voter(0).disk,
        };
        let content = Content::Propose {
            previous,
            committed: Seq::ZERO,
            entry,
        };
        let message = Message { sender, content };
        let from = from.clone();
        let actions = node.replica.step(Event::Message { from, message }, now);
        node.replica.invariants();
        actions
    };
    // Three entries, of which the disk has room for one; it has not said so yet.
    let one = Entry::with_body(&last, epoch, 2, Tid::MAX, body());
    let two = Entry::with_body(&one.point(), epoch, 2, Tid::MAX, body());
    propose(one.clone(), epoch);
    propose(two, epoch);
    // A higher epoch has something else there.
    let next = Epoch {
        counter: epoch.counter + 1,
        node: name(2),
    };
    let other = Entry::with_body(&last, next, 2, Tid::MAX, body());
    propose(other, epoch);
    let mut step = |event| {
        let actions = node.replica.step(event, now);
        node.replica.invariants();
        actions
    };
    let actions = step(Event::Promised(next));
    let cut = |action: &Action| matches!(action, Action::Cut { .. });
    assert!(actions.iter().any(cut));
    step(Event::NoRoom {
        last: one.point(),
        last_tid: Tid::MAX,
    });
    step(Event::Cut {
        last,
        last_tid: Tid::ZERO,
    });
}

/// review-13
#[test]
fn an_arbiter_writes_nothing_for_a_commit() {
    let set: BTreeSet<Voter> = (0..2).map(voter).collect();
    let members = Members {
        voters: set.clone(),
        arbiter: Some(Arbiter {
            node: voter(2),
            in_sync: set,
        }),
    };
    let kinds = [NodeKind::Data, NodeKind::Data, NodeKind::Arbiter];
    let mut world = World::new(&kinds, &members);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    world.nodes[2].told.clear();
    for token in 0..50 {
        world.finish(0, token);
    }
    let records = |action: &&Action| matches!(action, Action::Record(..));
    let count = world.nodes[2].told.iter().filter(records).count();
    assert!(count <= 1, "{count} records for 50 commits");
}

/// Seed 28207
#[test]
fn who_is_not_counted_does_not_say_where_the_primary_is_to_be() {
    let members = Members {
        voters: (0..3).map(voter).collect(),
        arbiter: None,
    };
    let mut world = World::new(&[NodeKind::Data; 4], &members);
    world.view(&[0, 1, 2, 3]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [0]);
    // One of another site led, and its barrier entry got to the fourth node and to no voter.
    let mut last = world.nodes[1].replica.last();
    last.epoch.counter += 1;
    last.epoch.node = name(2);
    last.seq = last.seq.next();
    (0..3).for_each(|at| world.view(&[at]));
    world.pass(Duration::from_secs(5));
    world.nodes[3].is_up = false;
    world.view(&[0, 1, 3]);
    for at in [0, 1] {
        let event = stated(&world, at, 3, |state| {
            state.last = last;
            (state.site, state.home) = ("away".to_owned(), "away".to_owned());
        });
        world.give(at, event);
    }
    world.pass(Duration::from_secs(5));
    assert_eq!(world.open(), [0]);
}

/// Seed 33003
#[test]
fn who_was_given_the_office_leads_again_if_nobody_else_of_its_site_can() {
    for is_other_there in [false, true] {
        let mut world = World::of_voters(3);
        for at in 1..3 {
            let options = &mut world.nodes[at].replica.options;
            options.site = "away".to_owned();
            options.priority = u32::from(at == 1 && is_other_there);
        }
        world.view(&[0, 1, 2]);
        world.pass(Duration::from_secs(1));
        world.swap(0, 2, 90);
        assert_eq!(world.open(), [2]);
        world.finish(2, 1);
        world.pass(Duration::from_secs(1));
        // The power of all goes, and comes back.
        (0..3).for_each(|at| world.restart(at));
        world.view(&[0, 1, 2]);
        world.pass(Duration::from_secs(8));
        assert_eq!(world.open(), [if is_other_there { 1 } else { 2 }]);
    }
}

/// Its log ends behind so many entries: those behind were never synced.
fn lose_tail(world: &mut World, at: usize, count: usize, members: &Members) {
    let node = &mut world.nodes[at];
    node.log.truncate(count);
    let committed = node.log.last().unwrap().header().seq;
    let log = LogStart {
        settings: Settings {
            members: members.clone(),
            ..Settings::default()
        },
        ..log_start(node)
    };
    assert_eq!(log.committed, committed);
    node.applied = committed;
    let start = Start {
        history: HISTORY,
        me: node.replica.me,
        promised: node.replica.durable,
        log,
    };
    let options = node.replica.options.clone();
    node.replica = Replica::new(options, start, world.now);
    node.serving = Serving::default();
}

/// Of two voters the first makes the third node one, commits, and is gone with its disk. One of
/// the others loses power, and what it knew of that. What was committed, too.
fn with_a_forgetful_node(
    forgetful: usize,
    prepare: impl FnOnce(&mut World),
) -> (World, Vec<Entry>) {
    let members = Members {
        voters: (0..2).map(voter).collect(),
        arbiter: None,
    };
    let mut world = World::new(&[NodeKind::Data; 3], &members);
    prepare(&mut world);
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(1));
    let known = world.nodes[forgetful].log.len();
    let token = Token(1);
    let change = MemberChange::Add(name(2));
    world.give(0, Event::ChangeMembers { token, change });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.answer(0, 1), Some(Ok(())));
    world.finish(0, 2);
    world.pass(Duration::from_secs(1));
    let committed = world.nodes[3 - forgetful].log.clone();
    world.nodes[0].is_up = false;
    lose_tail(&mut world, forgetful, known, &members);
    (world, committed)
}

/// Nobody leads by itself, and this one if an administrator has it do so.
fn order_to_lead(world: &mut World, at: usize) {
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.open(), [0; 0]);
    let token = Token(3);
    world.give(at, Event::TakeOffice { token });
    assert_eq!(world.answer(at, 3), Some(Ok(())));
}

fn assert_leads_with(world: &mut World, leader: usize, committed: &[Entry]) {
    world.pass(Duration::from_secs(8));
    assert_eq!(world.open(), [leader]);
    assert_eq!(world.nodes[leader].log[..committed.len()], *committed);
    world.finish(leader, 4);
    world.pass(Duration::from_secs(1));
    let outcome = world.outcome(leader, 4);
    assert!(matches!(outcome, Some(Outcome::Committed { .. })));
    world.assert_level(&[1, 2]);
}

/// Seed 58834
#[test]
fn a_voter_that_has_lost_what_made_it_one_leads_if_nobody_else_may() {
    for is_ordered in [false, true] {
        let (mut world, committed) = with_a_forgetful_node(2, |world| {
            world.nodes[1].replica.options.priority = 0;
        });
        if is_ordered {
            world.nodes[2].replica.options.priority = 0;
            order_to_lead(&mut world, 2);
        } else {
            world.view(&[1, 2]);
        }
        assert_leads_with(&mut world, 2, &committed);
    }
}

/// Seed 203861: who is left at home does not know that the other one, who is away, is a voter.
#[test]
fn what_made_a_node_of_another_site_a_voter_counts_if_it_alone_has_it() {
    for is_ordered in [false, true] {
        let (mut world, committed) = with_a_forgetful_node(1, |world| {
            world.nodes[2].replica.options.site = "away".to_owned();
        });
        let leader = if is_ordered {
            // Who is at home may not lead.
            world.nodes[1].replica.options.priority = 0;
            order_to_lead(&mut world, 2);
            2
        } else {
            world.view(&[1, 2]);
            1
        };
        assert_leads_with(&mut world, leader, &committed);
    }
}

/// A claim is told by all who are here where their logs end.
#[test]
fn what_only_who_is_not_counted_has_is_not_fetched_for_a_claim() {
    let members = Members {
        voters: (0..2).map(voter).collect(),
        arbiter: None,
    };
    let mut world = World::new(&[NodeKind::Data; 5], &members);
    world.nodes[3].replica.options.site = "away".to_owned();
    world.view(&[0, 1, 2, 3, 4]);
    world.pass(Duration::from_secs(1));
    let known = world.nodes[1].log.len();
    let token = Token(1);
    let change = MemberChange::Add(name(3));
    world.give(0, Event::ChangeMembers { token, change });
    world.pass(Duration::from_secs(1));
    assert_eq!(world.answer(0, 1), Some(Ok(())));
    let committed = world.nodes[3].log.clone();
    // Of the next change only those hear who are not counted.
    world.nodes[1].is_up = false;
    world.nodes[3].is_up = false;
    let token = Token(2);
    let change = MemberChange::Add(name(4));
    world.give(0, Event::ChangeMembers { token, change });
    world.pass(Duration::from_millis(100));
    assert_eq!(world.answer(0, 2), None);
    assert_eq!(world.nodes[2].log.len(), committed.len() + 1);
    world.nodes[0].is_up = false;
    world.nodes[4].is_up = false;
    world.nodes[1].is_up = true;
    world.nodes[3].is_up = true;
    lose_tail(&mut world, 1, known, &members);
    world.view(&[1, 2, 3]);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.open(), [1]);
    assert_eq!(world.nodes[1].log[..committed.len()], committed);
    world.assert_level(&[1, 2, 3]);
}

/// A log of somebody whom those do not count who are enough says nothing that counts.
#[test]
fn a_newer_log_of_somebody_who_is_not_counted_is_not_heeded_by_those_who_are_enough() {
    let members = Members {
        voters: (0..3).map(voter).collect(),
        arbiter: None,
    };
    let mut world = World::new(&[NodeKind::Data; 4], &members);
    world.nodes[3].replica.options.site = "away".to_owned();
    world.view(&[0, 1, 2, 3]);
    world.pass(Duration::from_secs(1));
    // Two do not hear of it, so that it is not committed.
    let known = world.nodes[1].log.len();
    world.nodes[1].is_up = false;
    world.nodes[2].is_up = false;
    let token = Token(1);
    let change = MemberChange::Add(name(3));
    world.give(0, Event::ChangeMembers { token, change });
    world.pass(Duration::from_millis(100));
    assert_eq!(world.answer(0, 1), None);
    assert_eq!(world.nodes[3].log.len(), known + 1);
    world.nodes[0].is_up = false;
    world.nodes[1].is_up = true;
    world.nodes[2].is_up = true;
    world.view(&[1, 2, 3]);
    world.pass(Duration::from_millis(100));
    let newest = world.nodes[1].replica.newest();
    assert_eq!(newest.members, &members);
    world.pass(Duration::from_secs(8));
    assert_eq!(world.open(), [1]);
    world.assert_level(&[1, 2, 3]);
}

/// The second best claimed before anybody answered the best.
#[test]
fn the_best_leads_when_all_start_at_once() {
    let mut world = World::of_voters(3);
    for (at, priority) in [10, 30, 20].into_iter().enumerate() {
        let replica = &mut world.nodes[at].replica;
        replica.options.priority = priority;
        replica.reticent_until = world.now.instant + replica.options.lease;
    }
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(4));
    assert_eq!(world.open(), [1]);
}
