//! Runs that are scripted: the basics, and what once went wrong.

use std::time::Duration;

use crate::plan::{Fault, NodePlan, Plan};
use crate::replica::message::NodeKind;
use crate::run::{Outcome, Watch, run};

/// Runs it, and wants nothing to be wrong and all of this to have happened.
fn expect(plan: &Plan, marks: &[&str]) -> Outcome {
    let outcome = run(plan, &Watch::default());
    if let Some(problem) = &outcome.problem {
        panic!("step {}: {}", problem.step, problem.what);
    }
    for mark in marks {
        assert!(
            outcome.marks.count(mark) > 0,
            "{mark} never happened: {:?}",
            outcome.marks
        );
    }
    outcome
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Two with data, and one that decides between them.
fn with_arbiter() -> Plan {
    let mut plan = Plan::quiet(2);
    let arbiter = NodePlan {
        kind: NodeKind::Arbiter,
        is_voter: false,
        ..plan.nodes[0].clone()
    };
    plan.nodes.push(arbiter);
    plan
}

#[test]
fn three_nodes_serve_when_nothing_goes_wrong() {
    let outcome = expect(
        &Plan::quiet(3),
        &["finish committed", "promoted", "confirmed"],
    );
    assert_eq!(outcome.marks.count("promoted"), 1, "{:?}", outcome.marks);
    assert_eq!(outcome.marks.count("finish lost"), 0);
}

#[test]
fn one_node_serves_by_itself() {
    expect(&Plan::quiet(1), &["finish committed"]);
}

#[test]
fn another_node_leads_when_the_primary_dies() {
    let mut plan = Plan::quiet(3);
    for (at, node) in [(2000, 0), (4500, 1), (7000, 2)] {
        plan = plan.with(
            at,
            Fault::Crash {
                node,
                power: true,
                down: millis(1500),
            },
        );
    }
    let outcome = expect(&plan, &["finish committed"]);
    assert!(outcome.marks.count("promoted") > 1, "{:?}", outcome.marks);
}

#[test]
fn clients_go_on_when_a_machine_is_gone_for_good() {
    for node in 0..3 {
        let mut plan = Plan::quiet(3).with(3000, Fault::Leave { node });
        plan.clients = 1;
        expect(&plan, &["finish answered"]);
    }
}

#[test]
fn all_is_there_when_the_power_comes_back() {
    let mut plan = Plan::quiet(3);
    for at in [1500, 4000, 6500] {
        plan = plan.with(at, Fault::PowerOfAll { down: millis(300) });
    }
    expect(
        &plan,
        &["finish committed", "crash while the disk was busy"],
    );
}

#[test]
fn the_part_with_most_goes_on_and_the_other_is_rewound() {
    let mut plan = Plan::quiet(3);
    // Whoever leads is alone at some time.
    for (at, groups) in [(2000, [1, 0, 0]), (4500, [0, 1, 0]), (7000, [0, 0, 1])] {
        let groups = groups.to_vec();
        plan = plan.with(
            at,
            Fault::Partition {
                groups,
                time: millis(2000),
            },
        );
    }
    expect(&plan, &["S1 rewind", "finish committed", "demoted"]);
}

#[test]
fn a_swap_loses_nothing() {
    let mut plan = Plan::quiet(3);
    for (number, at) in (1500..9500).step_by(500).enumerate() {
        plan = plan.with(at, Fault::Swap { to: number % 3 });
    }
    let outcome = expect(&plan, &["swap done", "finish committed"]);
    assert_eq!(outcome.marks.count("finish lost"), 0, "{:?}", outcome.marks);
    assert_eq!(
        outcome.marks.count("finish unknown"),
        0,
        "{:?}",
        outcome.marks
    );
}

#[test]
fn members_come_and_go() {
    let plan = Plan::quiet(3)
        .with(
            2000,
            Fault::Count {
                node: 2,
                counted: false,
            },
        )
        .with(
            4000,
            Fault::Count {
                node: 2,
                counted: true,
            },
        )
        .with(
            6000,
            Fault::Count {
                node: 1,
                counted: false,
            },
        );
    expect(&plan, &["member changed", "finish committed"]);
}

#[test]
fn one_of_two_goes_on_by_the_word_of_the_arbiter() {
    let plan = with_arbiter()
        .with(
            2000,
            Fault::Crash {
                node: 0,
                power: true,
                down: millis(3000),
            },
        )
        .with(
            6500,
            Fault::Crash {
                node: 1,
                power: true,
                down: millis(3000),
            },
        );
    let outcome = expect(&plan, &["finish committed"]);
    assert!(outcome.marks.count("promoted") > 1, "{:?}", outcome.marks);
}

#[test]
fn what_one_node_has_goes_on_when_most_are_gone_for_good() {
    let mut plan = Plan::quiet(3).with(3000, Fault::ForcedPromotion { node: 0 });
    for is_real in [false, true] {
        plan.has_storage = is_real;
        expect(
            &plan,
            &["forced promotion", "finish committed", "re-seeded"],
        );
    }
}

#[test]
fn a_full_disk_of_a_primary_takes_back_what_it_only_knew() {
    let mut plan = Plan::quiet(3);
    plan.segment_len = 4096;
    plan.load.finish_every = millis(10);
    plan.load.body_len_max = 3000;
    for (at, node) in [(2000, 0), (4500, 1), (7000, 2)] {
        plan = plan.with(
            at,
            Fault::SlowDisk {
                node,
                time: millis(500),
            },
        );
        plan = plan.with(
            at,
            Fault::FullDisk {
                node,
                // What a slow disk has begun is done by then.
                time: millis(4200),
            },
        );
    }
    expect(&plan, &["no room", "finish committed"]);
}

#[test]
fn nobody_is_removed_whom_a_quorum_needs() {
    let plan = Plan::quiet(3)
        .with(
            2000,
            Fault::LoseDisk {
                node: 2,
                down: millis(100),
            },
        )
        .with(
            9000,
            Fault::Count {
                node: 1,
                counted: false,
            },
        )
        .with(
            9500,
            Fault::Count {
                node: 0,
                counted: false,
            },
        );
    expect(
        &plan,
        &["re-seeded", "member change refused", "finish committed"],
    );
}

/// It has to be believed who it is by who knows more, with whatever the late one has.
#[test]
fn who_was_away_follows_one_whose_disk_was_replaced_meanwhile() {
    let plan = Plan::quiet(5)
        .with(
            2000,
            Fault::Crash {
                node: 4,
                power: false,
                down: millis(7000),
            },
        )
        .with(
            2500,
            Fault::LoseDisk {
                node: 0,
                down: millis(100),
            },
        )
        .with(
            5500,
            Fault::Count {
                node: 0,
                counted: false,
            },
        )
        .with(
            6500,
            Fault::Count {
                node: 0,
                counted: true,
            },
        )
        .with(7500, Fault::Swap { to: 0 });
    let outcome = expect(&plan, &["re-seeded", "member changed", "swap done"]);
    assert_eq!(
        outcome.marks.count("member changed"),
        2,
        "{:?}",
        outcome.marks
    );
}

#[test]
fn a_node_with_a_long_old_tail_gets_a_copy() {
    let mut plan = Plan::quiet(3);
    plan.segment_len = 4096;
    plan.window_len = 8192;
    plan.load.finish_every = millis(10);
    for (at, groups) in [(1500, [1, 0, 0]), (4500, [0, 1, 0]), (7500, [0, 0, 1])] {
        let groups = groups.to_vec();
        plan = plan.with(
            at,
            Fault::Partition {
                groups,
                time: millis(2900),
            },
        );
    }
    for is_real in [false, true] {
        plan.has_storage = is_real;
        expect(
            &plan,
            &["catch-up by copy", "copy adopted", "finish committed"],
        );
    }
}
