//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};
use standby::group::spread::wire::{DAEMON_LEN_MAX, Endian, PORT_DEFAULT};
use standby::reactor::hub::Address;

use crate::daemon::COMMANDS;

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Invocation {
    /// `-h`, `--help`
    Help,
    /// `--version`
    Version,
    /// `--tell`: one command to a groupd that runs
    Tell(PathBuf, String),
    /// All else
    Run(Options),
}

/// What is to run.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    /// Daemons in order, each with where it listens.
    pub daemons: Vec<(String, Vec<Address>)>,
    /// The Unix socket for commands
    pub control: Option<PathBuf>,
    /// From a change of the network to its being noticed
    pub detection: Duration,
    /// The byte order of the daemons' machines
    pub endian: Endian,
    /// Groups, by the beginnings of their names, that cannot be joined or sent to
    pub denied: Option<String>,
    /// Groups, by the beginnings of their names, that cannot be left
    pub sticky: Option<String>,
    /// Whether bytes leave in pieces as small as those of the real daemon
    pub small_writes: bool,
}

/// What the daemon of `--listen` and `--unix` is called.
const NAME_DEFAULT: &str = "localhost";

/// From a change of the network to its being noticed. A real daemon takes seconds.
const DETECTION_DEFAULT: Duration = Duration::from_millis(50);

/// Understands the arguments behind the program's name. The error says what is wrong with them.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, String> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut own: Vec<Address> = Vec::new();
    let mut options = Options {
        daemons: Vec::new(),
        control: None,
        detection: DETECTION_DEFAULT,
        endian: Endian::Little,
        denied: None,
        sticky: None,
        small_writes: false,
    };
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        let name = match arg {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Long("version") => return Ok(Invocation::Version),
            Long(name) => name.to_owned(),
            Short(letter) => return Err(format!("unknown option -{letter}")),
            Value(value) => return Err(format!("unexpected argument {}", value.display())),
        };
        if name == "small-writes" {
            options.small_writes = true;
            continue;
        }
        let value = parser.value().map_err(|error| error.to_string())?;
        if name == "tell" {
            let rest = parser.raw_args().map_err(|error| error.to_string())?;
            let words: Vec<_> = rest
                .map(|word| word.to_string_lossy().into_owned())
                .collect();
            return Ok(Invocation::Tell(value.into(), words.join(" ")));
        }
        let value = value
            .into_string()
            .map_err(|value| format!("--{name}: {} is no text", value.display()))?;
        match name.as_str() {
            "listen" => own.push(address(&name, &value)?),
            "unix" => own.push(Address::Unix(value.into())),
            "control" => options.control = Some(value.into()),
            "daemon" => {
                let (daemon, place) = value
                    .split_once('=')
                    .ok_or_else(|| format!("--daemon: {value} is not NAME=ADDRESS"))?;
                check_name(daemon)?;
                add(&mut options.daemons, daemon, address(&name, place)?);
            }
            "deny" => options.denied = Some(value),
            "sticky" => options.sticky = Some(value),
            "detection" => {
                let ms: u32 = value
                    .parse()
                    .map_err(|_| format!("--detection: {value} is no number of milliseconds"))?;
                options.detection = Duration::from_millis(ms.into());
            }
            "byte-order" => {
                options.endian = match value.as_str() {
                    "little" => Endian::Little,
                    "big" => Endian::Big,
                    _ => return Err(format!("--byte-order: {value} is neither little nor big")),
                }
            }
            _ => return Err(format!("unknown option --{name}")),
        }
    }
    if own.is_empty() && options.daemons.is_empty() {
        own.push(Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: PORT_DEFAULT,
        });
    }
    for address in own {
        add(&mut options.daemons, NAME_DEFAULT, address);
    }
    Ok(Invocation::Run(options))
}

fn add(daemons: &mut Vec<(String, Vec<Address>)>, name: &str, address: Address) {
    match daemons.iter_mut().find(|(known, _)| known == name) {
        Some((_, addresses)) => addresses.push(address),
        None => daemons.push((name.to_owned(), vec![address])),
    }
}

fn address(option: &str, text: &str) -> Result<Address, String> {
    let parsed = text.parse();
    parsed.map_err(|expected| format!("--{option}: {text} is not {expected}"))
}

fn check_name(name: &str) -> Result<(), String> {
    let legal = name.bytes().all(|byte| (0x24..=0x7e).contains(&byte));
    if !legal || name.is_empty() || name.len() > DAEMON_LEN_MAX {
        return Err(format!(
            "--daemon: {name:?} is no name: 1 to {DAEMON_LEN_MAX} visible characters without #"
        ));
    }
    Ok(())
}

/// The answer to `--help`.
pub(crate) fn usage() -> String {
    format!(
        "\
groupd, a stand-in for the Spread daemon on one machine, for development and tests

Usage: groupd [options]
       groupd --tell PATH COMMAND ...

Options:
  --listen ADDRESS       where the daemon \"{NAME_DEFAULT}\" listens: PORT, HOST:PORT, [IPV6]:PORT,
                         or a path with a '/' (127.0.0.1:{PORT_DEFAULT} if nothing is said)
  --unix PATH            a Unix socket where it listens, too
  --daemon NAME=ADDRESS  a daemon of that name; several are one group, in this order; the same
                         name again is another address of it
  --control PATH         a Unix socket that takes commands, one a line
  --detection MS         how long a change of the network stays unnoticed ({}); a real
                         daemon takes seconds
  --byte-order ORDER     little or big: of the machines that the daemons are on (little)
  --deny PREFIX          refuse joins of groups whose names begin so, and messages to them
  --sticky PREFIX        refuse leaves of groups whose names begin so
  --small-writes         write a header by itself, and the handshake in bytes, as the real
                         daemon does, instead of all that fits
  --tell PATH COMMAND    give a command to the groupd whose --control is PATH
  -h, --help             this
  --version              the version

Commands:
{COMMANDS}

RUST_LOG=debug shows sessions, on standard error.
",
        DETECTION_DEFAULT.as_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<Invocation, String> {
        parse(args.iter().map(OsString::from))
    }

    fn daemons(args: &[&str]) -> Vec<String> {
        let Ok(Invocation::Run(options)) = parsed(args) else {
            panic!("{args:?}");
        };
        let shown = options.daemons.iter().map(|(name, addresses)| {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            format!("{name} {}", addresses.join(" "))
        });
        shown.collect()
    }

    #[test]
    fn without_options_there_is_one_daemon_at_the_usual_port() {
        assert_eq!(daemons(&[]), ["localhost 127.0.0.1:4803"]);
    }

    #[test]
    fn daemons_have_the_addresses_that_are_said() {
        assert_eq!(daemons(&["--unix", "/tmp/4803"]), ["localhost /tmp/4803"]);
        assert_eq!(
            daemons(&["--daemon", "d1=:1", "--daemon=d2=./s", "--daemon", "d1=./t"]),
            ["d1 :1 ./t", "d2 ./s"]
        );
        assert_eq!(
            daemons(&["--daemon", "d1=:1", "--listen", "2"]),
            ["d1 :1", "localhost :2"]
        );
    }

    #[test]
    fn a_command_may_have_words_that_look_like_options() {
        let told = parsed(&["--tell", "./c", "stall", "-x", "5"]);
        let expected = Invocation::Tell("./c".into(), "stall -x 5".to_owned());
        assert_eq!(told, Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, word) in [
            (&["--listen", "a:b"][..], "--listen"),
            (&["--daemon", "x"], "NAME=ADDRESS"),
            (&["--daemon", "a#b=1"], "a#b"),
            (&["--detection", "soon"], "soon"),
            (&["--byte-order", "middle"], "middle"),
            (&["--what", "x"], "--what"),
            (&["-x"], "-x"),
            (&["partition"], "partition"),
            (&["--control"], "control"),
        ] {
            let error = parsed(args).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
