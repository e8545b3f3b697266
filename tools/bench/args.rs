//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};
use standby::zeo::Encoding;

use crate::failure::Failure;
use crate::fleet::Address;
use crate::random::Distribution;
use crate::record::OBJECT_LEN_MIN;
use crate::table::Fault;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Invocation {
    /// `-h`, `--help`
    Help,
    /// `--version`
    Version,
    /// All else
    Run(Box<Options>),
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Prepare,
    Loads,
    Commits,
    Mixed,
    Conflicts,
    Fanout,
    Connect,
    Large,
    Stub,
}

/// The options, with their defaults.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub command: Command,
    /// One, or the two of `--compare`.
    pub addresses: Vec<Address>,
    /// Whether these are to be compared.
    pub compare: bool,
    /// Processes of the servers at `addresses`, as far as they were named.
    pub pids: Vec<u32>,
    pub storage: String,
    pub connections: usize,
    pub depth: usize,
    /// Of what is measured in a round.
    pub duration: Duration,
    /// How many operations to measure instead, if that is given.
    pub operations: Option<u64>,
    /// Before that, in each round.
    pub warmup: Duration,
    pub rounds: usize,
    pub seed: u64,
    /// How long an answer may take.
    pub timeout: Duration,
    pub objects: usize,
    pub sizes: Vec<usize>,
    /// Objects in a commit.
    pub batch: usize,
    /// Objects that all write in `conflicts`.
    pub hot: usize,
    /// Connections in all in `connect`.
    pub count: usize,
    /// The share of commits in `mixed`.
    pub writes: f64,
    pub distribution: Distribution,
    pub json: bool,
    pub progress: bool,
    /// Of the stub.
    pub encoding: Encoding,
    /// What is wrong with the stub.
    pub fault: Option<Fault>,
}

impl Command {
    const ALL: [(&str, Self); 9] = [
        ("prepare", Self::Prepare),
        ("loads", Self::Loads),
        ("commits", Self::Commits),
        ("mixed", Self::Mixed),
        ("conflicts", Self::Conflicts),
        ("fanout", Self::Fanout),
        ("connect", Self::Connect),
        ("large", Self::Large),
        ("stub", Self::Stub),
    ];

    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(_, command)| *command == self);
        found.map_or("", |(name, _)| name)
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        let unknown = || Failure::Usage(format!("unknown command {text}"));
        found.map(|(_, command)| *command).ok_or_else(unknown)
    }
}

impl Options {
    fn new(command: Command) -> Self {
        let (connections, depth) = match command {
            Command::Loads => (8, 16),
            Command::Mixed | Command::Conflicts => (16, 1),
            Command::Fanout => (101, 1),
            Command::Connect => (50, 1),
            Command::Prepare | Command::Commits | Command::Large | Command::Stub => (1, 1),
        };
        let size = match command {
            Command::Large => 64 << 20,
            _ => 1024,
        };
        let batch = match command {
            Command::Prepare => 100,
            _ => 1,
        };
        Self {
            command,
            addresses: Vec::new(),
            compare: false,
            pids: Vec::new(),
            storage: "1".to_owned(),
            connections,
            depth,
            duration: Duration::from_secs(5),
            operations: None,
            warmup: Duration::from_millis(500),
            rounds: 1,
            seed: 1,
            timeout: Duration::from_secs(30),
            objects: 10_000,
            sizes: vec![size],
            batch,
            hot: 4,
            count: 1000,
            writes: 0.05,
            distribution: Distribution::Uniform,
            json: false,
            progress: true,
            encoding: Encoding::M,
            fault: None,
        }
    }
}

/// Reads the arguments, without the name of the program.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut options = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Long("version") => return Ok(Invocation::Version),
            Value(value) => match &mut options {
                None => options = Some(Options::new(Command::parse(&value.to_string_lossy())?)),
                Some(options) => options
                    .addresses
                    .push(Address::parse(&value.to_string_lossy())?),
            },
            Short(letter) => return Err(Failure::Usage(format!("unknown option -{letter}"))),
            Long(name) => {
                let name = name.to_owned();
                let Some(options) = &mut options else {
                    return Err(Failure::Usage(format!("--{name} comes after the command")));
                };
                set(options, &name, &mut parser)?;
            }
        }
    }
    let options = options.ok_or_else(|| Failure::Usage("a command is missing".to_owned()))?;
    check(&options)?;
    Ok(Invocation::Run(Box::new(options)))
}

fn set(options: &mut Options, name: &str, parser: &mut lexopt::Parser) -> Result<(), Failure> {
    match name {
        "json" => options.json = true,
        "no-progress" => options.progress = false,
        "compare" => {
            options.compare = true;
            for _ in 0..2 {
                let address = Address::parse(&text(parser)?)?;
                options.addresses.push(address);
            }
        }
        "encoding" => {
            options.encoding = match &text(parser)?[..] {
                "Z" => Encoding::Z,
                "M" => Encoding::M,
                other => {
                    return Err(Failure::Usage(format!(
                        "--encoding: {other} is neither Z nor M"
                    )));
                }
            }
        }
        "fault" => options.fault = Some(fault(&text(parser)?)?),
        "storage" => options.storage = text(parser)?,
        "distribution" => options.distribution = distribution(&text(parser)?)?,
        "size" => {
            let text = text(parser)?;
            let sizes = text.split(',').map(|size| number(name, size));
            options.sizes = sizes.collect::<Result<_, _>>()?;
        }
        "pid" => options.pids.push(number(name, &text(parser)?)?),
        "connections" => options.connections = number(name, &text(parser)?)?,
        "depth" => options.depth = number(name, &text(parser)?)?,
        "rounds" => options.rounds = number(name, &text(parser)?)?,
        "seed" => options.seed = number(name, &text(parser)?)?,
        "objects" => options.objects = number(name, &text(parser)?)?,
        "batch" => options.batch = number(name, &text(parser)?)?,
        "hot" => options.hot = number(name, &text(parser)?)?,
        "count" => options.count = number(name, &text(parser)?)?,
        "writes" => options.writes = number::<f64>(name, &text(parser)?)? / 100.0,
        "duration" => options.duration = seconds(name, &text(parser)?)?,
        "operations" => options.operations = Some(number(name, &text(parser)?)?),
        "warmup" => options.warmup = seconds(name, &text(parser)?)?,
        "timeout" => options.timeout = seconds(name, &text(parser)?)?,
        _ => return Err(Failure::Usage(format!("unknown option --{name}"))),
    }
    Ok(())
}

fn text(parser: &mut lexopt::Parser) -> Result<String, Failure> {
    let value = parser.value()?;
    value
        .into_string()
        .map_err(|value| lexopt::Error::NonUnicodeValue(value).into())
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Failure> {
    let error = |_| Failure::Usage(format!("--{name}: {text} is not such a number"));
    text.parse().map_err(error)
}

fn seconds(name: &str, text: &str) -> Result<Duration, Failure> {
    let error = |_| Failure::Usage(format!("--{name}: {text} is no time in seconds"));
    Duration::try_from_secs_f64(number(name, text)?).map_err(error)
}

fn distribution(text: &str) -> Result<Distribution, Failure> {
    match text.split_once(':') {
        None if text == "uniform" => Ok(Distribution::Uniform),
        None if text == "zipf" => Ok(Distribution::Zipf(0.99)),
        Some(("zipf", theta)) => {
            let theta: f64 = number("distribution", theta)?;
            if theta > 0.0 && theta < 1.0 {
                return Ok(Distribution::Zipf(theta));
            }
            Err(Failure::Usage(format!(
                "--distribution: {theta} is not between 0 and 1"
            )))
        }
        _ => Err(Failure::Usage(format!(
            "--distribution: {text} is neither uniform nor zipf"
        ))),
    }
}

fn fault(text: &str) -> Result<Fault, Failure> {
    let found = Fault::ALL.iter().find(|(name, _)| *name == text);
    let unknown = || Failure::Usage(format!("--fault: there is no {text}"));
    found.map(|(_, fault)| *fault).ok_or_else(unknown)
}

/// Bytes of an object. Servers have a bound of their own.
const OBJECT_LEN_MAX: usize = 1 << 30;

fn check(options: &Options) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::Usage(text));
    if options.addresses.is_empty() {
        return refuse("an address is missing".to_owned());
    }
    if options.addresses.len() > 2 || options.addresses.len() == 2 && !options.compare {
        return refuse("one address, or --compare and two".to_owned());
    }
    if options.pids.len() > options.addresses.len() {
        return refuse("more --pid than addresses".to_owned());
    }
    for (name, value) in [
        ("connections", options.connections),
        ("depth", options.depth),
        ("rounds", options.rounds),
        ("objects", options.objects),
        ("batch", options.batch),
        ("hot", options.hot),
        ("count", options.count),
    ] {
        if value == 0 {
            return refuse(format!("--{name} is zero"));
        }
    }
    if !(0.0..=1.0).contains(&options.writes) {
        return refuse("--writes is a percentage".to_owned());
    }
    for size in &options.sizes {
        if !(OBJECT_LEN_MIN..=OBJECT_LEN_MAX).contains(size) {
            return refuse(format!(
                "--size: {size} is not in {OBJECT_LEN_MIN}..{OBJECT_LEN_MAX}"
            ));
        }
    }
    Ok(())
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

/// The answer to `--help`.
pub(crate) const USAGE: &str = "\
zeobench, a load generator for ZEO servers that checks what it reads

Usage: zeobench COMMAND ADDRESS [options]
       zeobench COMMAND --compare ADDRESS_A ADDRESS_B [options]

ADDRESS is PORT, HOST:PORT, [IPV6]:PORT, or the path of a Unix socket (with at least one '/').
With --compare the servers are measured in turns (A B, B A, ...) and their medians are compared.

Commands:
  prepare    make objects, and a catalogue of them in the root object; needed before all others
             but connect, large and stub
  loads      load objects
  commits    commit new states of objects, each connection of its own ones
  mixed      loads, and some commits
  conflicts  read and write the same few objects; who meets a conflict tries again
  fanout     one connection commits, all others wait for the invalidation
  connect    open many connections, and keep them until the end
  large      store and load one large object
  stub       be a server in memory, to measure what the machine allows (ADDRESS is where to listen)

Options of a run:
  --storage NAME       storage (1)
  --connections N      connections (loads 8, mixed and conflicts 16, fanout 101, else 1);
                       of connect: how many are on their way at a time (50)
  --depth N            operations on their way on each connection (loads 16, mixed 1)
  --duration SECONDS   how long to measure (5)
  --operations N       measure so many operations, however long that takes
  --warmup SECONDS     how long to run before that (0.5)
  --rounds N           how often; the figures are medians (1)
  --seed N             what random choices follow from (1)
  --timeout SECONDS    how long an answer or an invalidation may take (30)
  --pid PID            process of the server, for its memory and processor time; once for each
                       address of --compare

Options of commands:
  --objects N          prepare: how many (10000)
  --size BYTES[,..]    bytes of objects that are written, in turn (1024; large 67108864)
  --batch N            objects in a commit of prepare (100), commits, mixed, fanout (1)
  --writes PERCENT     mixed: share of commits (5)
  --distribution NAME  loads, mixed: uniform, zipf, or zipf:THETA (uniform; THETA 0.99)
  --hot N              conflicts: how many objects (4)
  --count N            connect: how many connections (1000)
  --encoding Z|M       stub: pickle or msgpack (M)
  --fault NAME         stub: be wrong, so that zeobench can be seen to notice: stale, other,
                       damaged, end, tid, untold, partly, order, update, hang

Output:
  --json               print figures as JSON
  --no-progress        no line on standard error each second
  -h, --help           print this, and exit
      --version        print the version, and exit

Exit status:
  0  measured
  1  the server was wrong: stale or damaged data, tids out of order, lost invalidations, ...
  2  wrong command line, or the database is not prepared
  3  the server cannot be reached, hangs, hangs up, or refuses what it was asked
  4  the system refuses something
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, Failure> {
        super::parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match parse(line) {
            Ok(Invocation::Run(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn each_command_has_defaults_of_its_own() {
        for (name, command) in Command::ALL {
            assert_eq!(options(&format!("{name} 8100")).command, command);
            assert!(USAGE.contains(&format!("\n  {name} ")), "{name}");
        }
        let loads = options("loads 127.0.0.1:8100");
        assert_eq!(
            (loads.connections, loads.depth, loads.sizes),
            (8, 16, vec![1024])
        );
        assert_eq!(options("large 8100").sizes, [64 << 20]);
    }

    #[test]
    fn options_are_read_wherever_they_stand_behind_the_command() {
        let line = "mixed --size 300,1024 --duration=0.5 --compare 8100 ./zeo.sock --pid 1 --pid 2 \
                    --distribution zipf:0.5 --writes 20 --json";
        let mixed = options(line);
        assert_eq!(mixed.sizes, [300, 1024]);
        assert_eq!(mixed.duration, Duration::from_millis(500));
        let path = Address::Unix("./zeo.sock".into());
        assert_eq!(mixed.addresses, [Address::parse("8100").unwrap(), path]);
        assert_eq!(mixed.pids, [1, 2]);
        assert_eq!(mixed.distribution, Distribution::Zipf(0.5));
        assert_eq!(mixed.writes, 0.2);
        assert!(mixed.json);
    }

    #[test]
    fn every_fault_and_option_is_in_the_usage() {
        for (name, _) in Fault::ALL {
            assert!(USAGE.contains(name), "{name}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "sing 8100",
            "loads",
            "--depth 3 loads 8100",
            "loads 8100 8101",
            "loads 8100 --compare 8101 8102",
            "loads --compare 8100",
            "loads 8100 --depth 0",
            "loads 8100 --depth many",
            "loads 8100 --size 3",
            "loads 8100 --duration -1",
            "loads 8100 --distribution zipf:2",
            "loads 8100 --pid 1 --pid 2",
            "loads no.such.host.invalid:1",
            "mixed 8100 --writes 101",
            "stub 8100 --fault none",
            "loads 8100 -q",
        ] {
            let Err(Failure::Usage(_)) = parse(line) else {
                panic!("{line} was accepted");
            };
        }
    }
}
