//! Who is gone, who is only silent, and who stands aside.

use super::*;

#[test]
fn a_primary_that_the_daemon_does_not_show_is_not_waited_for() {
    let mut world = World::of_voters(3);
    world.set_lease(Duration::from_secs(30));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.open(), [0]);
    world.nodes[0].is_up = false;
    world.pass(Duration::from_secs(10));
    assert!(
        world.open().is_empty(),
        "it may be there, and only be silent"
    );
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [1]);
}

#[test]
fn a_primary_that_is_shown_nobody_else_leaves_before_its_lease_is_over() {
    let mut world = World::of_voters(3);
    world.set_lease(Duration::from_secs(30));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    world.view(&[0]);
    world.view(&[1, 2]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [1]);
    assert_eq!(world.nodes[0].serving.writers, Writers::Closed);
    // One that has lost its daemon does, too.
    world.give(1, Event::Lost);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.nodes[1].serving.writers, Writers::Closed);
}

#[test]
fn a_daemon_that_is_silent_for_less_than_a_lease_costs_no_office() {
    let mut world = World::of_voters(3);
    world.set_lease(Duration::from_secs(12));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(2));
    // One machine is gone, and until that is sure nothing is delivered.
    world.nodes[2].is_up = false;
    world.deaf.extend([0, 1]);
    world.finish(0, 1);
    world.pass(Duration::from_secs(8));
    assert_eq!(world.outcome(0, 1), None);
    world.deaf.clear();
    world.view(&[0, 1]);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.open(), [0]);
    assert!(matches!(
        world.outcome(0, 1),
        Some(Outcome::Committed { .. })
    ));
    let has_left = |it: &Notice| matches!(it, Notice::Demoted(_));
    assert_eq!(world.told(0, has_left), 0);
}

#[test]
fn who_stands_aside_takes_an_office_only_if_nobody_else_can() {
    let mut world = World::of_voters(3);
    world.give(0, Event::StandAside(true));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.open(), [1]);
    world.nodes[1].is_up = false;
    world.view(&[0, 2]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [2], "it does not wait for the other one");
    // The last one that could be primary, beside one that is none by its configuration.
    world.nodes[1].is_up = true;
    world.nodes[2].is_up = false;
    world.nodes[1].replica.options.priority = 0;
    world.view(&[0, 1]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.open(), [0]);
}

#[test]
fn of_two_voters_the_primary_waits_for_the_other_one_as_long_as_its_lease() {
    let mut world = World::of_voters(2);
    world.set_lease(Duration::from_secs(12));
    world.view(&[0, 1]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.open(), [0]);
    // The other one cannot do anything by itself.
    world.view(&[0]);
    world.pass(Duration::from_secs(5));
    world.view(&[0, 1]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.open(), [0]);
    assert_eq!(world.told(0, |it| matches!(it, Notice::Demoted(_))), 0);
}

#[test]
fn a_primary_is_gone_though_others_come_and_go() {
    let mut world = World::of_voters(4);
    world.set_lease(Duration::from_secs(60));
    world.view(&[0, 1, 2, 3]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.open(), [0]);
    world.nodes[0].is_up = false;
    for _ in 0..10 {
        world.view(&[1, 2]);
        world.pass(Duration::from_millis(400));
        world.view(&[1, 2, 3]);
        world.pass(Duration::from_millis(400));
    }
    assert_eq!(world.open(), [1]);
}

#[test]
fn while_the_daemon_is_silent_an_arbiter_takes_nobody_out() {
    let members = Members {
        voters: [0, 1].into_iter().map(voter).collect(),
        arbiter: Some(Arbiter {
            node: voter(2),
            in_sync: [0, 1].into_iter().map(voter).collect(),
        }),
    };
    let kinds = [NodeKind::Data, NodeKind::Data, NodeKind::Arbiter];
    let mut world = World::new(&kinds, &members);
    world.set_lease(Duration::from_secs(15));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.open(), [0]);
    world.deaf.extend([0, 1, 2]);
    world.finish(0, 1);
    let before = world.nodes[0].log.len();
    world.pass(Duration::from_secs(8));
    // The arbiter is heard of first.
    world.deaf.remove(&0);
    world.deaf.remove(&2);
    world.pass(Duration::from_millis(300));
    world.deaf.remove(&1);
    world.pass(Duration::from_secs(2));
    let members = &world.nodes[0].replica.log.settings().members;
    assert_eq!(members.arbiter.as_ref().unwrap().in_sync.len(), 2);
    assert_eq!(world.nodes[0].log.len(), before, "it went and came back");
}

#[test]
fn a_namesake_does_not_say_that_the_primary_has_gone() {
    let mut world = World::of_voters(3);
    world.set_lease(Duration::from_secs(12));
    world.view(&[0, 1, 2]);
    world.pass(Duration::from_secs(3));
    let mut sender = world.nodes[0].replica.sender();
    sender.disk = DiskId([99; 16]);
    let view = world.nodes[1].replica.view.as_ref().unwrap();
    let (_, stated) = view.find(sender.node).unwrap();
    let state = State {
        role: Role::Replica,
        hears: None,
        ..stated.state.clone()
    };
    world.now.instant += Duration::from_millis(100);
    for at in [1, 2] {
        let mut member = super::view::Member::default();
        member.stated = Some(super::view::Stated {
            sender,
            state: state.clone(),
            at: world.now.instant,
        });
        let view = world.nodes[at].replica.view.as_mut().unwrap();
        view.members.insert(MemberId::new("#a"), member);
        assert!(world.nodes[at].replica.hears().is_some());
    }
    world.pass(Duration::from_millis(300));
    assert_eq!(world.open(), [0]);
    assert_eq!(world.told(0, |it| matches!(it, Notice::Demoted(_))), 0);
}
