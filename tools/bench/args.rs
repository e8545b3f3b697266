//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};

use crate::failure::Failure;
use crate::fleet::Address;
use crate::random::Distribution;
use crate::record::OBJECT_LEN_MIN;

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
}

/// The options, with their defaults.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub command: Command,
    /// One, or the two of `--compare`.
    pub addresses: Vec<Address>,
    /// Processes of the servers at `addresses`, as far as they were named.
    pub pids: Vec<u32>,
    pub storage: String,
    pub connections: usize,
    pub depth: usize,
    /// Of what is measured in a round.
    pub duration: Duration,
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
    /// The share of commits in `mixed`.
    pub writes: f64,
    pub distribution: Distribution,
    pub json: bool,
    pub progress: bool,
}

impl Command {
    const ALL: [(&str, Self); 4] = [
        ("prepare", Self::Prepare),
        ("loads", Self::Loads),
        ("commits", Self::Commits),
        ("mixed", Self::Mixed),
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
            Command::Mixed => (16, 1),
            Command::Prepare | Command::Commits => (1, 1),
        };
        Self {
            command,
            addresses: Vec::new(),
            pids: Vec::new(),
            storage: "1".to_owned(),
            connections,
            depth,
            duration: Duration::from_secs(5),
            warmup: Duration::from_millis(500),
            rounds: 1,
            seed: 1,
            timeout: Duration::from_secs(30),
            objects: 10_000,
            sizes: vec![1024],
            batch: 1,
            writes: 0.05,
            distribution: Distribution::Uniform,
            json: false,
            progress: true,
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
                Some(options) => add_address(options, &value)?,
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

fn add_address(options: &mut Options, value: &OsString) -> Result<(), Failure> {
    if !options.addresses.is_empty() {
        let text = value.to_string_lossy();
        return Err(Failure::Usage(format!("one address too many: {text}")));
    }
    options
        .addresses
        .push(Address::parse(&value.to_string_lossy())?);
    Ok(())
}

fn set(options: &mut Options, name: &str, parser: &mut lexopt::Parser) -> Result<(), Failure> {
    match name {
        "json" => options.json = true,
        "no-progress" => options.progress = false,
        "compare" => {
            for _ in 0..2 {
                let address = Address::parse(&text(parser)?)?;
                options.addresses.push(address);
            }
        }
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
        "writes" => options.writes = number::<f64>(name, &text(parser)?)? / 100.0,
        "duration" => options.duration = seconds(name, &text(parser)?)?,
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

/// Bytes of an object. Servers have a bound of their own.
const OBJECT_LEN_MAX: usize = 1 << 30;

fn check(options: &Options) -> Result<(), Failure> {
    let refuse = |text: String| Err(Failure::Usage(text));
    if options.addresses.is_empty() {
        return refuse("an address is missing".to_owned());
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
zeobench, a load generator for ZEO servers

Usage: zeobench COMMAND ADDRESS [options]
       zeobench COMMAND --compare ADDRESS_A ADDRESS_B [options]
";
