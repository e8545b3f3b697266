//! Rules that are broken on purpose, each of which must be noticed: else the checks are worth
//! nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::clients::front::FrontMutant;
use crate::disk::Lie;
use crate::plan::{Fault, Plan, Planned, millis, nodes};
use crate::random::Random;
use crate::replica::mutant::{Mutant, select};
use crate::run::{Problem, Watch, run};
use crate::sweep;

/// What lives longer than this is not caught.
const SEEDS_MAX: u64 = 2000;

/// Something that is broken.
#[derive(Clone, Copy, Debug)]
enum Broken {
    Core(Mutant),
    Front(FrontMutant),
    Disk(Lie),
}

const CORE: &[Mutant] = &[
    Mutant::AckBeforeSync,
    Mutant::AckUnmatched,
    Mutant::PromiseNotSynced,
    Mutant::PromiseOfLowerEpoch,
    Mutant::OfficeNotLeft,
    Mutant::EpochNotAdopted,
    Mutant::LogsNotCompared,
    Mutant::SeqBeforeEpoch,
    Mutant::QuorumOfTheLiving,
    Mutant::NoBarrier,
    Mutant::OpenBeforeBarrier,
    Mutant::ProposeOfAnyEpoch,
    Mutant::PrevNotCompared,
    Mutant::OldEntriesCounted,
    Mutant::OldAcksCounted,
    Mutant::OwnSyncNotAwaited,
    Mutant::CommitUnmatched,
    Mutant::CommitOfAnyEpoch,
    Mutant::AppliedBeforeSync,
    Mutant::ExposeOnReceipt,
    Mutant::TidOfTheClock,
    Mutant::StaleUnblock,
    Mutant::UnblockNotAwaited,
    Mutant::OidsFromTheFloor,
    Mutant::CeilingNotAwaited,
    Mutant::ForeignDiskCounted,
    Mutant::TwoChangesAtOnce,
    Mutant::SwapNotDrained,
    Mutant::ReadersNotHeldBack,
    Mutant::FateGuessed,
    Mutant::ArbiterCounted,
    Mutant::RecordedEarly,
    Mutant::JumpForgotten,
    Mutant::PackUnordered,
];

const LIES: [Lie; 3] = [
    Lie::SyncsNothing,
    Lie::SyncsAllButTheLast,
    Lie::ForgetsNames,
];

/// Where to begin to look: some are noticed in one of a thousand runs, and this is one of them.
fn first_seed(broken: Broken) -> u64 {
    match broken {
        Broken::Core(Mutant::OldAcksCounted) => 437,
        Broken::Core(Mutant::SeqBeforeEpoch) => 310,
        Broken::Core(Mutant::RecordedEarly) => 788,
        Broken::Front(FrontMutant::HistoryNotLookedAt) => 1201,
        Broken::Front(FrontMutant::RegisteredTooEarly) => 248,
        _ => 1,
    }
}

fn plan(seed: u64, broken: Broken) -> Plan {
    let mut plan = Plan::new(seed);
    match broken {
        Broken::Core(Mutant::JumpForgotten) => {
            plan.clients = 1;
            let at = plan.calm_at.mul_f64(0.7);
            let fault = Fault::ForcedPromotion { node: 0 };
            plan.faults.push(Planned { at, fault });
        }
        // What is to be seen if nothing goes wrong.
        Broken::Core(Mutant::SwapNotDrained | Mutant::PackUnordered) => {
            plan = Plan::quiet(3);
            plan.seed = seed;
            plan.load.finish_every = Duration::from_millis(5);
            // They have voted, and finish when they like.
            plan.clients = usize::from(matches!(broken, Broken::Core(Mutant::SwapNotDrained)));
            for at in (1500..9500).step_by(400) {
                let to = (seed + at) as usize % 3;
                let is_swap = matches!(broken, Broken::Core(Mutant::SwapNotDrained));
                let fault = if is_swap {
                    Fault::Swap { to }
                } else {
                    Fault::Pack
                };
                plan = plan.with(at, fault);
            }
        }
        Broken::Core(Mutant::OldAcksCounted) => old_words(&mut plan),
        Broken::Core(Mutant::TwoChangesAtOnce) => {
            plan.contest();
            change_members(&mut plan);
        }
        Broken::Core(_) if seed.is_multiple_of(2) => plan.contest(),
        Broken::Core(_) => {}
        Broken::Front(mutant) => {
            plan.clients = 1;
            plan.front = Some(mutant);
            // Its clients try that address for ever, and no other one again.
            if matches!(mutant, FrontMutant::WritersRefused) {
                plan = Plan::quiet(3);
                (plan.seed, plan.clients, plan.front) = (seed, 1, Some(mutant));
                let node = seed as usize % 3;
                plan = plan.with(3000, Fault::Leave { node });
            }
        }
        Broken::Disk(lie) => plan.lie = Some(lie),
    }
    plan
}

/// Two of five are parted from the others for a while, one time after the other; and what was said
/// comes again when they meet.
fn old_words(plan: &mut Plan) {
    plan.contest();
    let random = &mut Random::of_step(plan.seed, 8);
    plan.nodes = nodes((5, 0, 0, false), random);
    for node in &mut plan.nodes {
        (node.priority, node.wall_off) = (10, 0);
    }
    (plan.daemon.repeats, plan.daemon.had_max) = (100, 400);
    plan.faults.clear();
    let mut at = Duration::from_millis(800);
    while at < plan.calm_at {
        let time = millis(random, 200, 1500);
        let (one, other) = (random.below(5), random.below(5));
        let groups = (0..5).map(|node| u8::from(node == one || node == other));
        let groups = groups.collect();
        let fault = Fault::Partition { groups, time };
        plan.faults.push(Planned { at, fault });
        at += time + millis(random, 50, 1200);
    }
}

/// Of five or so some are counted no more, and again, all the time.
fn change_members(plan: &mut Plan) {
    let random = &mut Random::of_step(plan.seed, 9);
    let mut at = Duration::from_millis(500);
    while at < plan.calm_at {
        let node = random.below(plan.nodes.len());
        let counted = random.percent(50);
        let fault = Fault::Count { node, counted };
        plan.faults.push(Planned { at, fault });
        at += millis(random, 5, 200);
    }
    plan.faults.sort_by_key(|planned| planned.at);
}

fn select_of(broken: Broken) {
    select(match broken {
        Broken::Core(mutant) => Some(mutant),
        _ => None,
    });
}

fn catch(broken: Broken) -> Option<(u64, Problem)> {
    select_of(broken);
    let first = first_seed(broken);
    let seeds = match std::env::var_os("SIM_SEEDS") {
        Some(_) => sweep::seeds(),
        None => first..first + SEEDS_MAX,
    };
    let caught = seeds.into_iter().find_map(|seed| {
        let outcome = run(&plan(seed, broken), &Watch::default());
        let lost = outcome.marks.count("finish lost") + outcome.marks.count("finish unknown");
        let is_swap = matches!(broken, Broken::Core(Mutant::SwapNotDrained));
        if is_swap && outcome.problem.is_none() && lost > 0 {
            select(None);
            let whole = run(&plan(seed, broken), &Watch::default());
            select_of(broken);
            if whole.marks.count("finish lost") + whole.marks.count("finish unknown") > 0 {
                return None;
            }
            let what = format!("{lost} finishes are lost by swaps");
            let (at, step) = (outcome.time, outcome.steps);
            return Some((seed, Problem { what, at, step }));
        }
        let problem = outcome.problem?;
        // What fails anyhow says nothing.
        let whole = Plan {
            front: None,
            lie: None,
            ..plan(seed, broken)
        };
        select(None);
        let fails_anyhow = run(&whole, &Watch::default()).problem.is_some();
        select_of(broken);
        (!fails_anyhow).then_some((seed, problem))
    });
    select(None);
    caught
}

#[test]
fn each_broken_rule_is_noticed() {
    let wanted = std::env::var("SIM_MUTANT").unwrap_or_default();
    let all = CORE.iter().copied().map(Broken::Core);
    let all = all.chain(FrontMutant::ALL.into_iter().map(Broken::Front));
    let all = all.chain(LIES.into_iter().map(Broken::Disk));
    let all: Vec<Broken> = all
        .filter(|it| format!("{it:?}").contains(&wanted))
        .collect();
    let next = AtomicUsize::new(0);
    let survivors = Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|_| {}));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(broken) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match catch(*broken) {
                        Some((seed, problem)) => {
                            let what: String = problem.what.chars().take(90).collect();
                            let what = what.lines().next().unwrap_or_default();
                            println!("{broken:?}: {seed} seeds: {what}");
                        }
                        None => {
                            println!("{broken:?}: NOT CAUGHT in {SEEDS_MAX} seeds");
                            let mut survivors = survivors.lock().expect("no panic in here");
                            survivors.push(format!("{broken:?}"));
                        }
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner().expect("no panic in there");
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}
