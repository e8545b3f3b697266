//! An exhaustive model of the core rules of replication: every state that three voters can reach
//! is visited, and in each of them the invariants must hold. It needs no code of the server, so that it
//! checks the rules and not how they are written down there; the manual's page on replication says
//! which rule is which function here.
//!
//! Without optimization the run is smaller; `tests/run` makes it with. `STANDBY_LONG=1` makes
//! it large: some minutes and 3 GB.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod explorer;
mod liveness;
mod mutants;
mod protocol;
mod state;

use std::fmt::Write;

use explorer::{Broken, Report, explore, no_check};
use liveness::any_two_can_commit;
use mutants::{FOUND, NOT_NEEDED, Trial};
use protocol::{Mark, Property, Rules};

const OPTIMIZED: bool = !cfg!(debug_assertions);

#[test]
fn the_invariants_hold_in_every_state() {
    holds(
        "three epochs",
        &Rules::new(3, if OPTIMIZED { 2 } else { 1 }, 1),
        &[],
    );
    if OPTIMIZED {
        holds("four epochs", &Rules::new(4, 1, 1), &[]);
    }
    if is_long() {
        holds("four epochs", &Rules::new(4, 2, 1), &[]);
    }
}

#[test]
fn the_invariants_hold_without_reductions() {
    let mut rules = Rules::new(2, if OPTIMIZED { 2 } else { 1 }, 1);
    rules.reduce = false;
    holds("nothing left out", &rules, &[]);
    if is_long() {
        rules.epochs = 3;
        holds("nothing left out", &rules, &[]);
    }
}

#[test]
fn tids_rise_whatever_the_clocks_show() {
    let mut rules = Rules::new(if OPTIMIZED { 3 } else { 2 }, 2, 0);
    rules.clocks = &[0, 1, 3, 7];
    holds("clocks", &rules, &[Mark::EntryLost]);
}

#[test]
fn any_two_voters_can_commit_from_every_state() {
    let mut rules = Rules::new(3, 1, if OPTIMIZED { 1 } else { 0 });
    let lost = [Mark::EntryLost];
    let never: &[Mark] = if OPTIMIZED { &[] } else { &lost };
    live("two can go on", &rules, never);
    // Without reductions, too: they were chosen for safety.
    rules = Rules::new(2, 1, 0);
    rules.reduce = false;
    live("two can go on, nothing left out", &rules, &lost);
}

#[test]
fn every_mutant_is_found() {
    let wrong: Vec<String> = FOUND.iter().filter_map(complaint).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_mutant_is_found_without_reductions() {
    let small = |trial: &&Trial| trial.rules.epochs < 4 || OPTIMIZED;
    let unreduced = FOUND.iter().filter(small).map(|trial| {
        let mut rules = trial.rules;
        rules.reduce = false;
        Trial { rules, ..*trial }
    });
    let wrong: Vec<String> = unreduced.filter_map(|trial| complaint(&trial)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_is_not_needed_breaks_nothing() {
    let wrong: Vec<String> = NOT_NEEDED.iter().filter_map(complaint).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
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
    // With reductions nobody withdraws: to do nothing is the same.
    missing.retain(|mark| !unseen.contains(mark));
    missing.retain(|mark| !rules.reduce || *mark != Mark::CandidateWithdrew);
    assert!(missing.is_empty(), "never seen: {missing:?}");
}

/// What is wrong with a trial, if anything is.
fn complaint(trial: &Trial) -> Option<String> {
    let Trial {
        rules,
        check,
        finds,
    } = trial;
    let report = explore(rules, *check);
    let name = format!("{:?}", rules.mutant.unwrap());
    tell(&name, rules, &report);
    let found = report.broken.as_ref().map(|broken| broken.property);
    let shown = report.broken.as_ref().map(story).unwrap_or_default();
    (found != *finds).then(|| format!("{name}: {found:?} instead of {finds:?}\n{shown}"))
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
