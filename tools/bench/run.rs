//! Runs a command: one server or two in turns, one round or several.

use std::io::{self, Write};
use std::time::Instant;

use crate::args::{Command, Options};
use crate::bench::{Bench, Workload};
use crate::catalogue;
use crate::failure::Failure;
use crate::fleet::{Address, now};
use crate::mix::{Mix, Plan};
use crate::process::{self, Usage};
use crate::report::{Figures, Json};

/// Runs a command; what is to be printed.
pub(crate) fn run(options: &Options) -> Result<String, Failure> {
    let mut runs: Vec<Vec<Figures>> = vec![Vec::new(); options.addresses.len()];
    for round in 0..options.rounds {
        // A B, B A, A B, ...: what grows worse with time falls on both.
        let mut turns: Vec<usize> = (0..options.addresses.len()).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            let address = &options.addresses[turn];
            let pid = options.pids.get(turn).copied();
            let figures =
                one(options, address, pid, round).map_err(|failure| failure.at(address))?;
            runs[turn].push(figures);
        }
    }
    Ok(present(options, &runs))
}

fn present(options: &Options, runs: &[Vec<Figures>]) -> String {
    let medians: Vec<Figures> = runs.iter().map(|runs| Figures::medians(runs)).collect();
    if options.json {
        return json(options, runs, &medians);
    }
    let name = options.command.name();
    let mut text = format!("{name}: {}\n", settings(options));
    match &medians[..] {
        [a, b] => {
            let (first, second) = (&options.addresses[0], &options.addresses[1]);
            text += &format!("  A is {first}, B is {second}\n{}", a.compared(b));
        }
        all => all.iter().for_each(|figures| text += &figures.text()),
    }
    text
}

fn settings(options: &Options) -> String {
    let mut text = format!(
        "{} connections x {}, {} objects a commit, {:?}",
        options.connections, options.depth, options.batch, options.distribution
    );
    if options.rounds > 1 {
        text += &format!(", medians of {} rounds", options.rounds);
    }
    text
}

fn json(options: &Options, runs: &[Vec<Figures>], medians: &[Figures]) -> String {
    let servers = options.addresses.iter().zip(runs).zip(medians);
    let server = |((address, runs), median): ((&Address, &Vec<Figures>), &Figures)| {
        Json::object([
            ("address", Json::Text(address.to_string())),
            ("median", median.json()),
            (
                "rounds",
                Json::Array(runs.iter().map(Figures::json).collect()),
            ),
        ])
    };
    let mut document = vec![
        (
            "command".to_owned(),
            Json::Text(options.command.name().to_owned()),
        ),
        ("settings".to_owned(), Json::Text(settings(options))),
        (
            "servers".to_owned(),
            Json::Array(servers.map(server).collect()),
        ),
    ];
    if let [a, b] = medians {
        document.push(("ratios".to_owned(), a.ratios(b)));
    }
    Json::Object(document).text() + "\n"
}

/// One round with one server.
fn one(
    options: &Options,
    address: &Address,
    pid: Option<u32>,
    round: usize,
) -> Result<Figures, Failure> {
    let mut bench = Bench::new(address.clone(), &options.storage, options.timeout)?;
    if options.progress {
        let label = format!("{} {address}", options.command.name());
        bench.meter.show_progress(label, now());
    }
    match options.command {
        Command::Prepare => prepare(&mut bench, options, pid),
        Command::Loads => mix(&mut bench, options, pid, round, 0.0),
        Command::Commits => mix(&mut bench, options, pid, round, 1.0),
        Command::Mixed => mix(&mut bench, options, pid, round, options.writes),
    }
}

fn prepare(bench: &mut Bench, options: &Options, pid: Option<u32>) -> Result<Figures, Failure> {
    bench.open(1)?;
    let span = Span::begin(pid)?;
    let mut next = now();
    catalogue::prepare(bench, options.objects, &options.sizes, |done| {
        if options.progress && now() >= next {
            next = now() + std::time::Duration::from_secs(1);
            // Nobody may be looking.
            let _ = writeln!(
                io::stderr(),
                "prepare: {done} of {} objects",
                options.objects
            );
        }
    })?;
    let mut figures = span.end(bench, options.objects as u64)?;
    figures.put("objects", options.objects as f64);
    Ok(figures)
}

fn mix(
    bench: &mut Bench,
    options: &Options,
    pid: Option<u32>,
    round: usize,
    writes: f64,
) -> Result<Figures, Failure> {
    bench.open(options.connections)?;
    let oids = catalogue::find(bench)?;
    bench.ledger.adopt(&oids);
    let plan = Plan {
        depth: options.depth,
        writes,
        batch: options.batch,
        sizes: options.sizes.clone(),
        distribution: options.distribution,
        seed: options.seed + round as u64,
    };
    let mut mix = Mix::new(bench, plan)?;
    mix.start(bench)?;
    let figures = measure(bench, options, pid, &mut mix)?;
    mix.stop();
    bench.drive(&mut mix, None)?;
    bench.compare_links()?;
    Ok(figures)
}

/// Lets a workload run, warm first, and counts what it does.
fn measure(
    bench: &mut Bench,
    options: &Options,
    pid: Option<u32>,
    workload: &mut dyn Workload,
) -> Result<Figures, Failure> {
    bench.drive(workload, Some(now() + options.warmup))?;
    bench.meter.start();
    let span = Span::begin(pid)?;
    bench.drive(workload, Some(now() + options.duration))?;
    bench.meter.stop();
    let operations = bench
        .meter
        .series
        .iter()
        .map(|series| series.latencies.len())
        .sum();
    span.end(bench, operations)
}

/// A time that is measured.
struct Span {
    started: Instant,
    process: Option<(u32, Usage)>,
}

impl Span {
    fn begin(pid: Option<u32>) -> Result<Self, Failure> {
        let process = match pid {
            Some(pid) => Some((pid, process::usage(pid)?)),
            None => None,
        };
        Ok(Self {
            started: now(),
            process,
        })
    }

    fn end(self, bench: &Bench, operations: u64) -> Result<Figures, Failure> {
        let seconds = now().saturating_duration_since(self.started).as_secs_f64();
        let mut figures = Figures::new(&bench.meter, seconds);
        if let Some((pid, before)) = self.process {
            figures.put_usage(before, process::usage(pid)?, operations);
        }
        Ok(figures)
    }
}
