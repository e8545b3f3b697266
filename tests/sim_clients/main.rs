//! The simulator's clients and fronts by themselves, over a log that is always right: they must
//! find nothing wrong with it, and everything with a front that breaks a rule.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

#[path = "../sim/clients/mod.rs"]
mod clients;
mod perfect;
#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::thread;

use standby::{entry, ids, replica};

use clients::front::FrontMutant;
use perfect::{Faults, Run};

/// Of a sweep; the same each time.
const SEEDS: u64 = 60;

/// A mutant that lives longer than this is not caught.
const MUTANT_SEEDS: u64 = 200;

#[test]
fn nothing_is_wrong_with_a_perfect_log_and_all_that_can_happen_does() {
    let halves: Vec<_> = (0..2)
        .map(|half| {
            thread::spawn(move || {
                let mut marks: BTreeMap<&'static str, u64> = BTreeMap::new();
                for seed in (half..SEEDS).step_by(2) {
                    let run = Run::new(seed, Faults::All, None);
                    let seen = run
                        .result()
                        .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
                    for (mark, count) in seen {
                        *marks.entry(mark).or_default() += count;
                    }
                }
                marks
            })
        })
        .collect();
    let mut marks: BTreeMap<&'static str, u64> = BTreeMap::new();
    for half in halves {
        for (mark, count) in half.join().unwrap() {
            *marks.entry(mark).or_default() += count;
        }
    }
    for (mark, count) in &marks {
        println!("{count:8} {mark}");
    }
    let missing: Vec<&&str> = MARKS
        .iter()
        .filter(|mark| !marks.contains_key(**mark))
        .collect();
    assert!(missing.is_empty(), "this never happened: {missing:?}");
}

const MARKS: &[&str] = &[
    "cache cleared",
    "conflict",
    "copied",
    "demotion",
    "fallback upgraded",
    "fault: client killed",
    "fault: client paused",
    "fault: client vanished",
    "fault: connection cut",
    "fault: connections twice",
    "fault: silence",
    "fault: stuck in vote",
    "fault: vanishes after vote",
    "fault: vanishes in finish",
    "finish answered",
    "finish lost",
    "forced promotion",
    "list refused, other history",
    "list refused, too old",
    "oids",
    "outcome unknown to the server",
    "paused",
    "ping",
    "primary crashed",
    "ReadOnlyError",
    "read",
    "swap",
    "unknown outcome",
    "vanished",
    "verified, empty cache",
    "verified, quickly",
    "verified, up to date",
    "waited in vain",
];

#[test]
fn each_front_that_breaks_a_rule_is_caught() {
    let halves: Vec<_> = (0..2)
        .map(|half| {
            thread::spawn(move || {
                let mine = FrontMutant::ALL.iter().skip(half).step_by(2);
                mine.map(|mutant| (*mutant, catch(*mutant)))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut missed = Vec::new();
    for half in halves {
        for (mutant, caught) in half.join().unwrap() {
            match caught {
                Some((seed, what)) => println!("{mutant:?}: seed {seed}: {what:.120}"),
                None => missed.push(mutant),
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

fn catch(mutant: FrontMutant) -> Option<(u64, String)> {
    (0..MUTANT_SEEDS).find_map(|seed| {
        let result = Run::new(seed, Faults::All, Some(mutant)).result();
        result.err().map(|what| (seed, what))
    })
}

/// M9 of the measurements. A client whose finish meets the demotion on its way knows nothing; but
/// then nothing was committed, and to try again is right.
#[test]
fn demotions_commit_nothing_twice_and_swaps_leave_no_outcome_unknown() {
    for seed in 0..12 {
        let mut run = Run::new(seed, Faults::Demotions, None);
        run.go()
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert_eq!(run.crowd.duplicates(), 0, "seed {seed}");
        let mut run = Run::new(seed, Faults::Swaps, None);
        run.go()
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        assert_eq!(run.crowd.unknowns(), 0, "seed {seed}");
        assert!(run.swaps > 0, "seed {seed}: no swap");
    }
}

#[test]
fn a_run_can_be_repeated() {
    let marks = || Run::new(7, Faults::All, None).result().unwrap();
    assert_eq!(marks(), marks());
}
