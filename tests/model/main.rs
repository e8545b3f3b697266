//! An exhaustive model of the core rules of replication: every state that three voters can reach
//! is visited, and in each of them the invariants must hold. It needs no code of the server, so
//! that it checks the rules and not how they are written down there; the manual's page on
//! replication says which rule is which function here.
//!
//! Without optimization the runs are smaller; `tests/run` makes them with. `STANDBY_LONG=1` makes
//! them large: minutes, and gigabytes. `STANDBY_TRACES=1` shows how each mutant is found.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod arbiter;
mod barrier;
mod explorer;
mod liveness;
mod mutants;
mod protocol;
mod rules;
mod state;

use std::fmt::Write;

use explorer::{Broken, Report, explore, no_check};
use liveness::any_two_can_commit;
use mutants::{FOUND, NOT_NEEDED, Trial};
use rules::{Mark, Property, Rules};

const OPTIMIZED: bool = !cfg!(debug_assertions);

/// Nothing is lost in a run without crashes.
const WITHOUT_CRASHES: &[Mark] = &[Mark::EntryLost];

#[test]
fn the_invariants_hold_in_every_state() {
    if !OPTIMIZED {
        holds("three epochs", &Rules::new(3, 2, 0), WITHOUT_CRASHES);
        return holds("three epochs", &Rules::new(3, 0, 1), &[]);
    }
    holds("three epochs", &Rules::new(3, 2, 1), &[]);
    holds("four epochs", &Rules::new(4, 0, 1), &[]);
    if is_long() {
        holds("four epochs", &Rules::new(4, 2, 1), &[]);
    }
}

#[test]
fn the_invariants_hold_without_reductions() {
    let mut rules = Rules::new(2, 1, OPTIMIZED.into());
    rules.reduce = false;
    let unseen = if OPTIMIZED { &[] } else { WITHOUT_CRASHES };
    holds("nothing left out", &rules, unseen);
    if is_long() {
        (rules.epochs, rules.clients) = (3, 2);
        holds("nothing left out", &rules, &[]);
    }
}

#[test]
fn tids_rise_whatever_the_clocks_show() {
    let mut rules = Rules::new(if OPTIMIZED { 3 } else { 2 }, 2, 0);
    rules.clocks = &[0, 1, 3, 7];
    holds("clocks", &rules, WITHOUT_CRASHES);
}

#[test]
fn any_two_voters_can_commit_from_every_state() {
    // Without reductions, too: they were chosen for safety.
    let mut unreduced = Rules::new(2, 1, 0);
    unreduced.reduce = false;
    live("two go on", &unreduced, WITHOUT_CRASHES);
    match OPTIMIZED {
        true => live("two go on", &Rules::new(3, 1, 1), &[]),
        false => live("two go on", &Rules::new(3, 1, 0), WITHOUT_CRASHES),
    }
}

#[test]
fn every_mutant_is_found() {
    no_complaints(FOUND.iter().map(|trial| (trial.rules, trial)));
}

/// Else a reduction might hide what it is to be checked for.
#[test]
fn every_mutant_is_found_without_reductions() {
    let small = |rules: &Rules| rules.epochs < 4 && rules.crashes == 0;
    let trials = FOUND
        .iter()
        .filter(|trial| OPTIMIZED || small(&trial.rules));
    no_complaints(trials.map(|trial| {
        let mut rules = trial.rules;
        rules.reduce = false;
        (rules, trial)
    }));
}

#[test]
fn what_is_not_needed_breaks_nothing() {
    no_complaints(NOT_NEEDED.iter().map(|trial| {
        let mut rules = trial.rules;
        if !OPTIMIZED {
            rules.epochs = 2;
        }
        (rules, trial)
    }));
}

/// Explores all, where nothing may be broken and every mark but some must be seen.
fn holds(name: &str, rules: &Rules, unseen: &[Mark]) {
    let report = explore(rules, no_check);
    tell(name, rules, &report);
    assert_sound(rules, &report, unseen);
}

fn live(name: &str, rules: &Rules, unseen: &[Mark]) {
    let report = explore(rules, any_two_can_commit);
    tell(name, rules, &report);
    assert_sound(rules, &report, unseen);
}

#[track_caller]
fn assert_sound(rules: &Rules, report: &Report, unseen: &[Mark]) {
    if let Some(broken) = &report.broken {
        panic!("{}", story(broken));
    }
    let mut missing = report.missing();
    missing.retain(|mark| !unseen.contains(mark));
    // It takes four epochs, and a crash: the test above fails if it is not seen there.
    let crashes = rules.epochs > 3 && rules.crashes > 0;
    missing.retain(|mark| crashes || *mark != Mark::CommittedCut);
    // With reductions nobody withdraws: to do nothing is the same.
    missing.retain(|mark| !rules.reduce || *mark != Mark::CandidateWithdrew);
    assert!(missing.is_empty(), "never seen: {missing:?}");
}

/// Every trial finds what it is to find.
#[track_caller]
fn no_complaints<'a>(trials: impl Iterator<Item = (Rules, &'a Trial)>) {
    let mut wrong = String::new();
    for (rules, trial) in trials {
        let report = explore(&rules, trial.check);
        let name = format!("{:?}", rules.mutant.unwrap());
        tell(&name, &rules, &report);
        let found = report.broken.as_ref().map(|broken| broken.property);
        if found != trial.finds {
            let shown = report.broken.as_ref().map(story).unwrap_or_default();
            writeln!(wrong, "{name}: {found:?}, not {:?}\n{shown}", trial.finds).unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

fn tell(name: &str, rules: &Rules, report: &Report) {
    println!(
        "{name}: {} epochs, {} client entries, {} crashes each{}: {} states, {} steps, depth {}, \
         {} MB{}",
        rules.epochs,
        rules.clients,
        rules.crashes,
        if rules.reduce { "" } else { ", unreduced" },
        report.states,
        report.steps,
        report.depth,
        report.bytes >> 20,
        match &report.broken {
            Some(Broken { property, trace }) => format!(": {property:?} after {}", trace.len()),
            None => String::new(),
        }
    );
    if let (Some(broken), true) = (&report.broken, std::env::var_os("STANDBY_TRACES").is_some()) {
        println!("{}", story(broken));
    }
}

/// The way to where a property is broken, a line for each step.
fn story(broken: &Broken) -> String {
    let mut text = format!("{:?} does not hold after\n", broken.property);
    for (step, state) in &broken.trace {
        writeln!(text, "  {step:?}").unwrap();
        for replica in state.replicas {
            write!(text, "    {replica}").unwrap();
        }
        writeln!(text, "    committed {}", state.committed).unwrap();
    }
    text
}

fn is_long() -> bool {
    std::env::var_os("STANDBY_LONG").is_some()
}

#[test]
fn a_property_that_is_broken_comes_with_the_shortest_way_there() {
    let report = explore(&FOUND[0].rules, no_check);
    let broken = report.broken.unwrap();
    assert_eq!(broken.property, Property::Durability);
    // Claim, promise, office, an own sync, a proposal that is taken, and counted.
    assert_eq!(broken.trace.len(), 6);
    let state = broken.trace.last().unwrap().1;
    assert_eq!(state.committed.len(), 1);
}
