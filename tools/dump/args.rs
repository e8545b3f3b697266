//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};
use standby::ids::{Oid, Tid};

use crate::clock::Clock;
use crate::failure::Failure;
use crate::filter::Filter;
use crate::show::Form;
use crate::talk::Protocol;

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) enum Invocation {
    /// `-h`, `--help`
    Help,
    /// `--version`
    Version,
    /// All else
    Run(Box<Options>),
}

/// Where the bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Captures, data files, journals: told apart by their first bytes. `-` is standard input.
    Files(Vec<PathBuf>),
    /// Data files, whatever they look like.
    DataFiles(Vec<PathBuf>),
    /// An interface, or `any`.
    Interface(String),
    /// Listening and target addresses.
    Proxy(Vec<(String, String)>),
    /// The bytes of connections, without packets and times.
    Streams(Protocol, Vec<PathBuf>),
}

/// The options, with their defaults.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub source: Source,
    /// What is spoken at which port.
    pub ports: Vec<(u16, Protocol)>,
    pub form: Form,
    /// Whether details of connections are shown.
    pub verbose: bool,
    pub all_bytes: bool,
    pub utc: bool,
    /// Figures in place of messages.
    pub summary: bool,
    pub filter: Filter,
    /// Where to record what is captured.
    pub write: Option<PathBuf>,
}

/// Reads the arguments, without the name of the program.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, Failure> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut sources = Sources::default();
    let mut options = Options {
        source: Source::Files(Vec::new()),
        ports: vec![(8100, Protocol::Zeo), (4803, Protocol::Spread)],
        form: Form::Line,
        verbose: false,
        all_bytes: false,
        utc: false,
        summary: false,
        filter: Filter::default(),
        write: None,
    };
    let filter = &mut options.filter;
    while let Some(argument) = parser.next().map_err(usage)? {
        match argument {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Long("version") => return Ok(Invocation::Version),
            Value(file) => sources.files.push(file.into()),
            Long("file") => sources.data_files.push(value(&mut parser)?.into()),
            Short('i') | Long("interface") => sources.interface = Some(text(&mut parser)?),
            Long("proxy") => sources.proxy.push(pair(&text(&mut parser)?)?),
            Long("stream") => sources.stream = Some(protocol(&text(&mut parser)?)?),
            Short('w') | Long("write") => options.write = Some(value(&mut parser)?.into()),
            Short('p') | Long("port") => {
                let (port, name) = pair(&text(&mut parser)?)?;
                let port = number(&port, "a port")?;
                // The last one counts.
                options.ports.insert(0, (port, protocol(&name)?));
            }
            Short('v') | Long("verbose") => options.verbose = true,
            Short('x') | Long("hex") => options.all_bytes = true,
            Short('j') | Long("json") => options.form = Form::Json,
            Long("utc") => options.utc = true,
            Short('s') | Long("summary") => options.summary = true,
            Long("client") => filter.clients.extend(words(&text(&mut parser)?)),
            Short('m') | Long("method") => filter.methods.extend(words(&text(&mut parser)?)),
            Long("oid") => {
                for word in words(&text(&mut parser)?) {
                    filter.oids.push(Oid(id(&word)?));
                }
            }
            Long("tid") => {
                for word in words(&text(&mut parser)?) {
                    filter.tids.push(Tid(id(&word)?));
                }
            }
            Long("since") => filter.since = Some(time(&text(&mut parser)?)?),
            Long("until") => filter.until = Some(time(&text(&mut parser)?)?),
            Short('e') | Long("errors-only") => filter.errors_only = true,
            Long("slower") => {
                let millis: u64 = number(&text(&mut parser)?, "a number of milliseconds")?;
                filter.slower_than = Some(Duration::from_millis(millis));
            }
            other => return Err(usage(other.unexpected())),
        }
    }
    if options.verbose && options.form == Form::Line {
        options.form = Form::Tree;
    }
    options.source = sources.only_one()?;
    let records = matches!(options.source, Source::Interface(_) | Source::Proxy(_));
    if options.write.is_some() && !records {
        return Err(Failure::Usage(
            "--write goes with --interface or --proxy".to_owned(),
        ));
    }
    Ok(Invocation::Run(Box::new(options)))
}

/// What was given, of which only one kind can be meant.
#[derive(Debug, Default)]
struct Sources {
    files: Vec<PathBuf>,
    data_files: Vec<PathBuf>,
    interface: Option<String>,
    proxy: Vec<(String, String)>,
    stream: Option<Protocol>,
}

impl Sources {
    fn only_one(self) -> Result<Source, Failure> {
        let Self {
            files,
            data_files,
            interface,
            proxy,
            stream,
        } = self;
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
        let has_files = !files.is_empty();
        match (data_files.is_empty(), interface, proxy.is_empty(), stream) {
            (true, None, true, Some(protocol)) if has_files => Ok(Source::Streams(protocol, files)),
            (true, None, true, Some(_)) => usage("--stream needs files"),
            (true, None, true, None) if has_files => Ok(Source::Files(files)),
            (true, None, true, None) => usage("nothing to read; see --help"),
            _ if has_files => usage("files do not go with --file, --interface or --proxy"),
            (false, None, true, None) => Ok(Source::DataFiles(data_files)),
            (true, Some(name), true, None) => Ok(Source::Interface(name)),
            (true, None, false, None) => Ok(Source::Proxy(proxy)),
            _ => usage("only one of --file, --interface, --proxy and --stream"),
        }
    }
}

fn usage(error: lexopt::Error) -> Failure {
    Failure::Usage(error.to_string())
}

fn value(parser: &mut lexopt::Parser) -> Result<OsString, Failure> {
    parser.value().map_err(usage)
}

fn text(parser: &mut lexopt::Parser) -> Result<String, Failure> {
    let text = value(parser)?.into_string();
    text.map_err(|text| usage(lexopt::Error::NonUnicodeValue(text)))
}

fn words(text: &str) -> Vec<String> {
    text.split(',').map(str::to_owned).collect()
}

/// `A=B`
fn pair(text: &str) -> Result<(String, String), Failure> {
    let pair = text.split_once('=');
    let pair = pair.filter(|(a, b)| !a.is_empty() && !b.is_empty());
    let wrong = || Failure::Usage(format!("{text:?} is not of the form A=B"));
    pair.map(|(a, b)| (a.to_owned(), b.to_owned()))
        .ok_or_else(wrong)
}

fn protocol(name: &str) -> Result<Protocol, Failure> {
    let wrong = || Failure::Usage(format!("{name:?} is neither zeo nor spread"));
    Protocol::named(name).ok_or_else(wrong)
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|_| Failure::Usage(format!("{text:?} is not {what}")))
}

/// Hex, with leading zeros or without.
fn id(text: &str) -> Result<u64, Failure> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| Failure::Usage(format!("{text:?} is no oid or tid in hex")))
}

fn time(text: &str) -> Result<crate::clock::When, Failure> {
    let wrong = || Failure::Usage(format!("{text:?} is no time; see --help"));
    Clock::parse(text).ok_or_else(wrong)
}

/// The answer to `--help`.
pub(crate) const USAGE: &str = "\
zeodump, a packet dump for ZEO, Spread, our replication, data files and journals

Usage: zeodump [options] FILE...                 capture files (pcap, pcapng; - is standard
                                                 input), data files (Data.fs), journals
                                                 (directories, or single files of them), and
                                                 traces of simulations
       zeodump [options] -i INTERFACE            what passes an interface now (needs root)
       zeodump [options] --proxy LISTEN=TARGET   what passes through itself
       zeodump [options] --stream PROTOCOL NAME  raw streams NAME.c2s.bin and NAME.s2c.bin

Sources:
      --file FILE            a data file, whatever its name
  -i, --interface NAME       capture there until interrupted; 'any' for all
      --proxy LISTEN=TARGET  accept connections and pass them on; HOST:PORT, or the path of a
                             Unix socket (with at least one '/'); may be repeated
      --stream zeo|spread    FILEs are streams without packets; a name without .c2s.bin or
                             .s2c.bin stands for both directions
  -w, --write FILE           also record to a pcapng file (with -i and --proxy)
  -p, --port PORT=PROTOCOL   what is spoken at a port of a server (8100=zeo, 4803=spread);
                             connections whose greeting is seen need none

Output, one line for each message by default:
  -v, --verbose              trees, with bytes in hex, and details of connections
  -j, --json                 one JSON object a line
  -x, --hex                  all bytes of each message (with -v and -j)
  -s, --summary              figures in place of messages
      --utc                  times in UTC

Only messages that are all of these (values may be lists with commas):
      --client WHO           a connection (c3), the client's address, or its host; in a trace
                             a node
  -m, --method NAME          calls, replies, notices, frames and notes of that name
      --oid HEX              with this oid in them
      --tid HEX              with this tid in them
      --since TIME           e.g. 12:30, '2026-11-21 12:30:15.5', 2026-11-21T12:30:15Z
      --until TIME
  -e, --errors-only          exceptions, calls without a reply, what is missing or damaged
      --slower MS            replies that took so many milliseconds, or more, and calls that had
                             been waiting so long and got none

  -h, --help                 print this, and exit
      --version              print the version, and exit

What was skipped or not understood is counted on standard error at the end.

Exit status:
  0  all was read and understood
  1  all was read, but something was missing, damaged, or not understood
  2  wrong command line
  3  what is to be read cannot be opened, or is nothing that is known
  4  writing failed
  5  the system refused a socket
";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        match super::parse(line.split_whitespace().map(OsString::from))? {
            Invocation::Run(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_source_is_one() {
        let source = |line: &str| parse(line).unwrap().source;
        let path = PathBuf::from;
        assert_eq!(source("a b"), Source::Files(vec![path("a"), path("b")]));
        assert_eq!(source("--file a"), Source::DataFiles(vec![path("a")]));
        assert_eq!(source("-i lo"), Source::Interface("lo".to_owned()));
        let pair = ("8101".to_owned(), "h:1".to_owned());
        assert_eq!(source("--proxy 8101=h:1"), Source::Proxy(vec![pair]));
        let streams = Source::Streams(Protocol::Zeo, vec![path("x")]);
        assert_eq!(source("--stream zeo x"), streams);
        for line in [
            "",
            "-i lo a",
            "-i lo --file a",
            "--proxy 1=2 -i lo",
            "--stream zeo",
            "--stream smtp a",
            "--proxy 8101",
            "-w x a",
            "--oid g a",
            "--since never a",
            "-p 99999=zeo a",
            "--no-such a",
        ] {
            assert!(matches!(parse(line), Err(Failure::Usage(_))), "{line}");
        }
    }

    #[test]
    fn filters_take_lists() {
        let options = parse("a -m vote,tpc_finish --oid 0x10,ff --port 9000=zeo").unwrap();
        assert_eq!(options.filter.methods, ["vote", "tpc_finish"]);
        assert_eq!(options.filter.oids, [Oid(16), Oid(255)]);
        assert_eq!(options.ports[0], (9000, Protocol::Zeo));
    }

    #[test]
    fn each_long_option_is_in_the_usage() {
        let source = include_str!("args.rs");
        let (code, _) = source.split_once("#[cfg(test)]").unwrap();
        for (pos, start) in code.match_indices("Long(\"") {
            let rest = &code[pos + start.len()..];
            let name = &rest[..rest.find('"').unwrap()];
            assert!(USAGE.contains(&format!("--{name}")), "{name}");
        }
    }
}
