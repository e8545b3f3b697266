//! Many runs, and what they were worth; and of a run that failed the smallest one that fails.

use std::env;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::marks::Marks;
use crate::plan::Plan;
use crate::run::{Outcome, Problem, Watch, run};

/// Seeds if nobody says another number.
const SEEDS: u64 = if cfg!(debug_assertions) { 40 } else { 2000 };

/// What has to have happened in so many seeds.
const MARKS: [&str; 42] = [
    "blob looked at",
    "S1 rewind",
    "S2 barrier committed old",
    "S3 candidate withdrew",
    "S4 claim beaten",
    "candidate fetched",
    "epoch adopted",
    "office left",
    "office renewed",
    "primary beaten",
    "append dropped",
    "apply held",
    "arbiter changed",
    "cache cleared",
    "catch-up by copy",
    "catch-up by journal",
    "clock off",
    "committed",
    "confirmed",
    "copy adopted",
    "crash while the disk was busy",
    "damage refused",
    "demoted",
    "fallback upgraded",
    "finish lost",
    "finish unknown",
    "forced promotion",
    "kicked for its backlog",
    "list refused, other history",
    "member changed",
    "member change refused",
    "message lost",
    "no room",
    "nobody left who may lead",
    "office taken by order",
    "order of office refused",
    "other disk seen",
    "other history seen",
    "pack begun",
    "re-seeded",
    "swap done",
    "swap failed",
];

/// What all runs of a sweep come to.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) seeds: u64,
    pub(crate) steps: u64,
    /// Seconds of the simulation, for each node by itself.
    pub(crate) seconds: f64,
    pub(crate) marks: Marks,
    pub(crate) faults: Marks,
}

/// A run that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) seed: u64,
    pub(crate) problem: Problem,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        self.seconds += outcome.time.as_secs_f64() * outcome.nodes as f64;
        self.marks.merge(&outcome.marks);
        self.faults.merge(&outcome.faults);
    }

    /// What never happened, and should have.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        if self.seeds < 2000 {
            return Vec::new();
        }
        MARKS
            .into_iter()
            .filter(|mark| self.marks.count(mark) == 0)
            .collect()
    }

    pub(crate) fn print(&self) {
        let Self {
            seeds,
            steps,
            seconds,
            ..
        } = self;
        println!("{seeds} seeds, {steps} steps, {seconds:.0} simulated seconds of nodes");
        let line = |marks: &Marks| -> String {
            let marks = marks.iter().map(|(mark, count)| format!("{mark} {count}"));
            marks.collect::<Vec<_>>().join(", ")
        };
        println!("faults: {}", line(&self.faults));
        println!("marks: {}", line(&self.marks));
    }
}

/// The seeds that the environment asks for.
pub(crate) fn seeds() -> std::ops::Range<u64> {
    if let Some(seed) = number("SIM_SEED") {
        return seed..seed + 1;
    }
    match env::var("SIM_SEEDS").ok().as_deref() {
        None => 1..SEEDS + 1,
        Some("endless") => number("SIM_FROM").unwrap_or(1)..u64::MAX,
        Some(text) => match text.split_once("..") {
            Some((from, to)) => parse(from)..parse(to),
            None => 1..parse(text) + 1,
        },
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| parse(&text))
}

fn parse(text: &str) -> u64 {
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// Runs all of these, on all cores, until one fails.
pub(crate) fn sweep(seeds: std::ops::Range<u64>) -> (Sum, Vec<Failed>) {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let failures_max = number("SIM_FAILURES").unwrap_or(1) as usize;
    let sum = Mutex::new((Sum::default(), Vec::new()));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let outcome = run(&Plan::new(seed), &watch());
            let (sum, failed) = &mut *sum.lock().expect("no panic with the lock held");
            sum.add(&outcome);
            if let Some(problem) = outcome.problem {
                println!("seed {seed}: {} (step {})", problem.what, problem.step);
                failed.push(Failed { seed, problem });
                if failed.len() >= failures_max {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            if sum.seeds.is_multiple_of(10_000) {
                sum.print();
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = if seeds.end - seeds.start == 1 {
        1
    } else {
        threads
    };
    let threads = number("SIM_THREADS").map_or(threads, |threads| threads as usize);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let sum = sum.into_inner().expect("no thread has panicked");
    let (sum, mut failed) = sum;
    failed.sort_by_key(|failed: &Failed| failed.seed);
    (sum, failed)
}

fn watch() -> Watch {
    Watch {
        trace: env::var_os("SIM_TRACE")
            .filter(|_| env::var("SIM_SEED").is_ok())
            .map(PathBuf::from),
        logs: env::var("SIM_LOG").is_ok(),
        steps: number("SIM_STEPS"),
    }
}

/// Says what failed and how to see it again, and writes the trace of the smallest run that fails.
pub(crate) fn explain(failed: &Failed) -> String {
    let Failed { seed, problem } = failed;
    let mut text = format!(
        "seed {seed}, step {}, at {:.6} s: {}\n  commit {}\n  to see it again: SIM_SEED={seed} \
         cargo test --release --test sim sweep -- --nocapture\n",
        problem.step,
        problem.at.as_secs_f64(),
        problem.what,
        commit(),
    );
    let shrunk = shrink(&Plan::new(*seed));
    if let Some((plan, problem)) = shrunk {
        let path = env::temp_dir().join(format!("sim-{seed}.pcapng"));
        let watch = Watch {
            trace: Some(path.clone()),
            ..Watch::default()
        };
        run(&plan, &watch);
        text.push_str(&format!(
            "  shrunk to {} nodes and {} faults: step {}: {}\n  zeodump --utc {}\n",
            plan.nodes.len(),
            plan.faults.len(),
            problem.step,
            problem.what,
            path.display()
        ));
        for planned in &plan.faults {
            text.push_str(&format!(
                "    {:>10.6} {:?}\n",
                planned.at.as_secs_f64(),
                planned.fault
            ));
        }
    }
    text
}

fn commit() -> String {
    let output = std::process::Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    let text = output
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    text.unwrap_or_default().trim().to_owned()
}

/// Takes away what is not needed to fail.
pub(crate) fn shrink(plan: &Plan) -> Option<(Plan, Problem)> {
    let fails = |plan: &Plan| run(plan, &Watch::default()).problem;
    let mut best = (plan.clone(), fails(plan)?);
    let mut tries = 0;
    let mut attempt = |best: &mut (Plan, Problem), plan: Plan| {
        tries += 1;
        if tries > SHRINK_TRIES {
            return false;
        }
        let problem = fails(&plan).filter(|problem| same_kind(problem, &best.1));
        let is_smaller = problem.is_some();
        if let Some(problem) = problem {
            *best = (plan, problem);
        }
        is_smaller
    };
    // Whole halves first, then quarters, then one by one.
    let mut size = best.0.faults.len().div_ceil(2);
    while size > 0 {
        let mut from = 0;
        while from < best.0.faults.len() {
            let mut plan = best.0.clone();
            let to = (from + size).min(plan.faults.len());
            plan.faults.drain(from..to);
            if !attempt(&mut best, plan) {
                from += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    let milder: [fn(&mut Plan); 5] = [
        |plan| plan.daemon.lost = 0,
        |plan| plan.daemon.repeats = 0,
        |plan| {
            plan.nodes
                .iter_mut()
                .for_each(|node| (node.drift, node.wall_off) = (0, 0))
        },
        |plan| plan.window_len = 1 << 24,
        |plan| plan.load.body_len_max = 60,
    ];
    for change in milder {
        let mut plan = best.0.clone();
        change(&mut plan);
        attempt(&mut best, plan);
    }
    Some(best)
}

/// Runs at most for making one smaller.
const SHRINK_TRIES: u32 = 200;

fn same_kind(one: &Problem, other: &Problem) -> bool {
    let kind = |problem: &Problem| problem.what.split([':', ' ']).next().map(str::to_owned);
    kind(one) == kind(other)
}
