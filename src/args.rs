//! The command line: which options were given, not what they mean. `config` gives them their
//! meaning, and lets them win over the configuration file.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use lexopt::Arg::{Long, Short};

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `-h`, `--help`: print [`USAGE`].
    Help,
    /// `--version`
    Version,
    /// All else: serve.
    Serve(Args),
}

/// The options, as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `-C`, `--configure`
    pub configure: Option<PathBuf>,
    /// `-a`, `--address`; any number of them.
    pub addresses: Vec<String>,
    /// `-f`, `--filename`; any number of them.
    pub filenames: Vec<PathBuf>,
    /// `-t`, `--timeout`
    pub timeout: Option<String>,
    /// `--pid-file`
    pub pid_file: Option<PathBuf>,
    /// `-d`, `--debug`
    pub debug: bool,
    /// `--test`
    pub test: bool,
}

impl Args {
    /// Nothing says what to serve or where: the default storage is served at the default address.
    pub fn is_quick_start(&self) -> bool {
        self.configure.is_none() && self.addresses.is_empty() && self.filenames.is_empty()
    }
}

/// Reads the arguments, without the name of the program.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, ArgsError> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut args = Args::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Long("version") => return Ok(Invocation::Version),
            Short('C') | Long("configure") => {
                set(&mut args.configure, parser.value()?.into(), "--configure")?;
            }
            Short('a') | Long("address") => args.addresses.push(text(&mut parser)?),
            Short('f') | Long("filename") => args.filenames.push(parser.value()?.into()),
            Short('t') | Long("timeout") => {
                set(&mut args.timeout, text(&mut parser)?, "--timeout")?;
            }
            Long("pid-file") => set(&mut args.pid_file, parser.value()?.into(), "--pid-file")?,
            Short('d') | Long("debug") => args.debug = true,
            Long("test") => args.test = true,
            Short('S') | Long("schema") => return Err(ArgsError::Schema),
            Short('X') => return Err(ArgsError::Override),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Invocation::Serve(args))
}

fn text(parser: &mut lexopt::Parser) -> Result<String, ArgsError> {
    parser
        .value()?
        .into_string()
        .map_err(|value| lexopt::Error::NonUnicodeValue(value).into())
}

/// Which of two different values was meant cannot be known; the same one twice does no harm.
fn set<T: PartialEq>(
    place: &mut Option<T>,
    value: T,
    option: &'static str,
) -> Result<(), ArgsError> {
    if place.as_ref().is_some_and(|earlier| *earlier != value) {
        return Err(ArgsError::Conflicting(option));
    }
    *place = Some(value);
    Ok(())
}

/// Why a command line is refused.
#[derive(Debug)]
pub enum ArgsError {
    /// An unknown option, a value that lacks or is too many.
    Syntax(lexopt::Error),
    /// An option was given two values.
    Conflicting(&'static str),
    /// `-S`: the schema is a file of Python's ZConfig, and ours is built in.
    Schema,
    /// `-X`: zdaemon's way to change single options of the file.
    Override,
}

impl From<lexopt::Error> for ArgsError {
    fn from(error: lexopt::Error) -> Self {
        Self::Syntax(error)
    }
}

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(error) => write!(f, "{error}"),
            Self::Conflicting(option) => write!(f, "option {option} has two different values"),
            Self::Schema => write!(
                f,
                "option --schema is not supported: the schema is built in"
            ),
            Self::Override => write!(f, "option -X is not supported: change the file of -C"),
        }
    }
}

impl std::error::Error for ArgsError {}

/// The answer to `--help`.
pub const USAGE: &str = "\
standbyd, a storage server for ZODB that ZEO clients connect to

Usage: standbyd -C FILE [options]
       standbyd -a ADDRESS -f FILENAME [options]
       standbyd

Without -C, -a and -f it serves ./var/Data.fs, which it creates if need be, as storage 1 on
127.0.0.1:8100. What the command line says wins over the file.

Options:
  -C, --configure FILE     configuration file, in the form that runzeo reads
  -a, --address ADDRESS    where to listen: PORT, HOST:PORT, [IPV6]:PORT, or the path of a Unix
                           socket (with at least one '/'); may be repeated
  -f, --filename FILENAME  data file to serve; the first is storage 1, the next storage 2, ...
  -t, --timeout SECONDS    how long a transaction may hold the commit lock
      --pid-file PATH      write the process id there while serving
  -d, --debug              log a line for each transaction; RUST_LOG=standby=trace logs more
      --test               start, and stop as soon as clients could connect
  -h, --help               print this, and exit
      --version            print the version, and exit

Signals:
  SIGTERM, SIGINT  finish what is on its way to the disk, and stop
  SIGHUP, SIGUSR2  reopen the log files (SIGHUP stops the server if there are none)

Exit status:
  0  stopped as asked
  1  SIGHUP, and no log file to reopen
  2  wrong command line or configuration, or an address in use
  3  a storage could not be opened
  4  a write to the disk failed
  5  the system refused something that the server cannot do without
  6  a node of a cluster cannot go on with what is on its disk
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Invocation, ArgsError> {
        super::parse(line.split_whitespace().map(OsString::from))
    }

    fn args(line: &str) -> Args {
        match parse(line) {
            Ok(Invocation::Serve(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn short_and_long_options_mean_the_same() {
        let short = args("-C zeo.conf -a 8100 -f A.fs -f B.fs -t 30 -d");
        let long = "--configure=zeo.conf --address 8100 --filename=A.fs --filename B.fs \
                    --timeout=30 --debug";
        assert_eq!(short, args(long));
        assert_eq!(short, args("-Czeo.conf -a8100 -fA.fs -fB.fs -t30 -d"));
        assert_eq!(
            short.filenames,
            [PathBuf::from("A.fs"), PathBuf::from("B.fs")]
        );
        assert!(!short.is_quick_start());
    }

    #[test]
    fn options_that_do_not_say_what_to_serve_leave_the_default() {
        assert!(args("").is_quick_start());
        assert!(args("-d -t 5 --pid-file pid --test").is_quick_start());
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        assert_eq!(parse("-h").unwrap(), Invocation::Help);
        assert_eq!(parse("-C zeo.conf --version").unwrap(), Invocation::Version);
    }

    #[test]
    fn each_option_is_in_the_usage() {
        for option in [
            "-C, --configure",
            "-a, --address",
            "-f, --filename",
            "-t, --timeout",
            "--pid-file",
            "-d, --debug",
            "--test",
            "-h, --help",
            "--version",
        ] {
            assert!(USAGE.contains(option), "{option}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "--no-such-option",
            "-q",
            "zeo.conf",
            "-C",
            "--test=yes",
            "-C a.conf -C b.conf",
            "-S schema.xml",
            "--schema=schema.xml",
            "-X zeo/read-only=true",
        ] {
            let error = parse(line).unwrap_err();
            assert!(!error.to_string().is_empty(), "{line}");
        }
        assert_eq!(args("-C a.conf -C a.conf"), args("-C a.conf"));
    }
}
