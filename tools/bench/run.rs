//! Runs a command: one server or two in turns, one round or several.

use std::io::{self, Write};
use std::time::Instant;

use crate::args::{Command, Options};
use crate::audit::audit;
use crate::bench::{Bench, Until, Workload};
use crate::catalogue;
use crate::conflicts::Conflicts;
use crate::connect::Connect;
use crate::failure::Failure;
use crate::fanout::Fanout;
use crate::fleet::{Address, now};
use crate::large::Large;
use crate::mix::{Mix, Plan};
use crate::process::{self, Usage};
use crate::random::Distribution;
use crate::report::{Figures, Json};
use crate::stub;

/// Runs a command; what is to be printed.
pub(crate) fn run(options: &Options) -> Result<String, Failure> {
    raise_descriptor_limit();
    if options.command == Command::Stub {
        stub::serve(
            &options.addresses[0],
            options.encoding,
            options.fault,
            |place| {
                // Nobody may be looking.
                let _ = writeln!(io::stderr(), "zeobench: stub listening on {place}");
            },
        )?;
    }
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

/// What the figures are about, for people.
fn settings(options: &Options) -> String {
    let Json::Object(settings) = settings_json(options) else {
        return String::new();
    };
    let shown = settings
        .into_iter()
        .map(|(name, value)| format!("{name} {}", value.text()));
    shown.collect::<Vec<_>>().join(", ")
}

/// The options that have a meaning for the command.
fn settings_json(options: &Options) -> Json {
    use Command::{Commits, Conflicts, Connect, Fanout, Large, Loads, Mixed, Prepare, Stub};
    let count = |count: usize| Json::Number(count as f64);
    let sizes = || {
        let sizes: Vec<String> = options.sizes.iter().map(ToString::to_string).collect();
        Json::Text(sizes.join(","))
    };
    let distribution = || {
        Json::Text(match options.distribution {
            Distribution::Uniform => "uniform".to_owned(),
            Distribution::Zipf(theta) => format!("zipf:{theta}"),
        })
    };
    let (connections, size) = (
        ("connections", count(options.connections)),
        ("size", sizes()),
    );
    let (depth, batch) = (
        ("depth", count(options.depth)),
        ("batch", count(options.batch)),
    );
    let members = match options.command {
        Prepare => vec![("objects", count(options.objects)), batch, size],
        Loads => vec![connections, depth, ("distribution", distribution())],
        Commits => vec![connections, batch, size],
        Mixed => {
            let writes = ("writes", Json::Number(options.writes * 100.0));
            vec![
                connections,
                depth,
                writes,
                batch,
                size,
                ("distribution", distribution()),
            ]
        }
        Conflicts => vec![connections, ("hot", count(options.hot)), size],
        Fanout => vec![connections, batch, size],
        Connect => vec![("count", count(options.count)), connections],
        Large => vec![size],
        Stub => Vec::new(),
    };
    let rounds = [("rounds", count(options.rounds))];
    let members = members.into_iter().chain(rounds);
    Json::Object(
        members
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
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
        ("settings".to_owned(), settings_json(options)),
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
        Command::Conflicts => conflicts(&mut bench, options, pid, round),
        Command::Fanout => fanout(&mut bench, options, pid),
        Command::Connect => connect(&mut bench, options, pid),
        Command::Large => large(&mut bench, options, pid),
        // It does not come here.
        Command::Stub => Ok(Figures::default()),
    }
}

fn prepare(bench: &mut Bench, options: &Options, pid: Option<u32>) -> Result<Figures, Failure> {
    bench.open(1)?;
    let span = Span::begin(pid)?;
    let mut next = now();
    let plan = catalogue::Plan {
        count: options.objects,
        sizes: &options.sizes,
        batch: options.batch,
    };
    catalogue::prepare(bench, plan, |done| {
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
    bench.drive(&mut mix, Until::Done)?;
    audit(bench)?;
    Ok(figures)
}

fn conflicts(
    bench: &mut Bench,
    options: &Options,
    pid: Option<u32>,
    round: usize,
) -> Result<Figures, Failure> {
    bench.open(options.connections)?;
    let oids = catalogue::find(bench)?;
    bench.ledger.adopt(&oids);
    let seed = options.seed + round as u64;
    let mut conflicts = Conflicts::new(bench, options.hot, options.sizes[0], seed)?;
    conflicts.start(bench)?;
    let figures = measure(bench, options, pid, &mut conflicts)?;
    conflicts.stop();
    bench.drive(&mut conflicts, Until::Done)?;
    audit(bench)?;
    Ok(figures)
}

fn fanout(bench: &mut Bench, options: &Options, pid: Option<u32>) -> Result<Figures, Failure> {
    bench.open(options.connections)?;
    let oids = catalogue::find(bench)?;
    bench.ledger.adopt(&oids);
    let mut fanout = Fanout::new(bench, options.batch, options.sizes[0], options.timeout)?;
    fanout.begin(bench, now())?;
    let figures = measure(bench, options, pid, &mut fanout)?;
    fanout.stop();
    bench.drive(&mut fanout, Until::Done)?;
    audit(bench)?;
    Ok(figures)
}

/// All connections stay until the end, so that it can be seen what they cost.
fn connect(bench: &mut Bench, options: &Options, pid: Option<u32>) -> Result<Figures, Failure> {
    let mut connect = Connect::new(bench, options.count, options.connections);
    bench.meter.start();
    let span = Span::begin(pid)?;
    let before = span.process.map(|(_, usage)| usage.resident);
    connect.start(bench)?;
    bench.drive(&mut connect, Until::Done)?;
    let mut figures = span.end(bench, options.count as u64)?;
    if let (Some(pid), Some(before)) = (pid, before) {
        let more = process::usage(pid)?.resident.saturating_sub(before) as f64;
        figures.put(
            "server_resident_kb_per_connection",
            more / 1024.0 / options.count as f64,
        );
    }
    Ok(figures)
}

fn large(bench: &mut Bench, options: &Options, pid: Option<u32>) -> Result<Figures, Failure> {
    bench.open(1)?;
    let mut large = Large::new(bench, options.sizes[0])?;
    bench.meter.start();
    let span = Span::begin(pid)?;
    large.run(bench, enough(options))?;
    let mut figures = span.end(bench, bench.meter.operations())?;
    for what in ["stores", "loads"] {
        if let Some(median) = figures.value(&format!("{what}_p50_ms")) {
            let megabytes = options.sizes[0] as f64 / f64::from(1 << 20);
            figures.put(&format!("{what}_mb_per_second"), megabytes / (median / 1e3));
        }
    }
    Ok(figures)
}

/// A storm of connections needs more descriptors than shells usually grant. If there are none, it
/// will be told when they are needed.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Lets a workload run, warm first, and counts what it does.
fn measure(
    bench: &mut Bench,
    options: &Options,
    pid: Option<u32>,
    workload: &mut dyn Workload,
) -> Result<Figures, Failure> {
    bench.drive(workload, Until::Time(now() + options.warmup))?;
    bench.meter.start();
    let span = Span::begin(pid)?;
    bench.drive(workload, enough(options))?;
    bench.meter.stop();
    span.end(bench, bench.meter.operations())
}

/// From now on.
fn enough(options: &Options) -> Until {
    match options.operations {
        Some(count) => Until::Operations(count),
        None => Until::Time(now() + options.duration),
    }
}

/// A time that is measured.
struct Span {
    started: Instant,
    /// Of the server
    process: Option<(u32, Usage)>,
    /// Ours
    own: Usage,
}

impl Span {
    fn begin(pid: Option<u32>) -> Result<Self, Failure> {
        let process = match pid {
            Some(pid) => Some((pid, process::usage(pid)?)),
            None => None,
        };
        Ok(Self {
            own: process::usage(std::process::id())?,
            process,
            started: now(),
        })
    }

    fn end(self, bench: &Bench, operations: u64) -> Result<Figures, Failure> {
        let seconds = now().saturating_duration_since(self.started).as_secs_f64();
        let mut figures = Figures::new(&bench.meter, seconds);
        let own = process::usage(std::process::id())?;
        figures.put_cpu("client", self.own, own, operations);
        if let Some((pid, before)) = self.process {
            let after = process::usage(pid)?;
            figures.put_cpu("server", before, after, operations);
            figures.put_memory("server", after);
        }
        Ok(figures)
    }
}
