//! The command line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use lexopt::Arg::{Long, Short, Value};
use standby::admin::{Command, MemberAction, Others};
use standby::ids::NodeId;

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Invocation {
    /// `-h`, `--help`
    Help,
    /// `--version`
    Version,
    /// All else
    Run(Run),
}

/// Something that concerns a node.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    /// Which node
    pub target: Option<Target>,
    /// What
    pub wish: Wish,
}

/// How a node is named.
#[derive(Debug, PartialEq)]
pub(crate) enum Target {
    /// By its Unix socket
    Socket(PathBuf),
    /// By its configuration
    Config(PathBuf),
    /// By an address of TCP, for looking only
    Address(String),
}

/// What is wished for.
#[derive(Debug, PartialEq)]
pub(crate) enum Wish {
    /// To see how things are
    Status {
        /// In JSON
        json: bool,
        /// Again and again, with this time between
        watch: Option<Duration>,
    },
    /// To have something done
    Command(Command),
    /// To have a pack done, and to wait until this node has done it
    Pack(Command),
    /// The same, with what comes of it in JSON
    Report(Command),
}

/// Options that belong to commands.
#[derive(Default)]
struct Flags {
    json: bool,
    watch: bool,
    accept_loss: bool,
    days: Option<f64>,
    no_wait: bool,
    all: bool,
    undo: bool,
    /// Options with a value, by their names.
    values: BTreeMap<String, String>,
}

/// Options of commands that have a value.
const VALUES: [&str; 5] = ["with", "rate", "to", "blobs", "storage"];

/// Between two looks, if nothing is said
const WATCH_DEFAULT: Duration = Duration::from_secs(2);

/// Understands the arguments behind the program's name. The error says what is wrong with them.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Invocation, String> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut flags = Flags::default();
    let mut words = Vec::new();
    let mut target = None;
    while let Some(arg) = parser.next().map_err(|error| error.to_string())? {
        let option = match arg {
            Short('h') | Long("help") => return Ok(Invocation::Help),
            Long("version") => return Ok(Invocation::Version),
            Long("json") => {
                flags.json = true;
                continue;
            }
            Long("watch") => {
                flags.watch = true;
                words.extend(parser.optional_value().map(text).transpose()?);
                continue;
            }
            Long("no-wait") => {
                flags.no_wait = true;
                continue;
            }
            Long("accept-loss") => {
                flags.accept_loss = true;
                continue;
            }
            Long("all") => {
                flags.all = true;
                continue;
            }
            Long("undo") => {
                flags.undo = true;
                continue;
            }
            Short('C') => "configure".to_owned(),
            Long(name) => name.to_owned(),
            Short(letter) => return Err(format!("unknown option -{letter}")),
            Value(value) => {
                words.push(text(value)?);
                continue;
            }
        };
        let mut value = || parser.value().map_err(|error| error.to_string());
        let named = match option.as_str() {
            "socket" => Target::Socket(value()?.into()),
            "configure" => Target::Config(value()?.into()),
            "address" => Target::Address(address(text(value()?)?)?),
            "days" => {
                let days = text(value()?)?;
                let number = days.parse().ok().filter(|days: &f64| *days >= 0.0);
                flags.days = Some(number.ok_or(format!("--days: {days} is no number from zero"))?);
                continue;
            }
            name if VALUES.contains(&name) => {
                flags.values.insert(name.to_owned(), text(value()?)?);
                continue;
            }
            _ => return Err(format!("unknown option --{option}")),
        };
        if target.replace(named).is_some() {
            return Err("only one of -C, --socket and --address names the node".to_owned());
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let wish = wish(&words, &mut flags)?;
    for (is_left, option) in [
        (flags.json, "--json"),
        (flags.watch, "--watch"),
        (flags.accept_loss, "--accept-loss"),
        (flags.days.is_some(), "--days"),
        (flags.no_wait, "--no-wait"),
        (flags.all, "--all"),
        (flags.undo, "--undo"),
    ] {
        if is_left {
            return Err(format!("{option} is not for {}", words[0]));
        }
    }
    if let Some(option) = flags.values.keys().next() {
        return Err(format!("--{option} is not for {}", words[0]));
    }
    Ok(Invocation::Run(Run { target, wish }))
}

/// What words and flags mean. The flags that belong there are taken.
fn wish(words: &[&str], flags: &mut Flags) -> Result<Wish, String> {
    let command = match *words {
        [] => return Err("what? Perhaps: status".to_owned()),
        ["status", ref rest @ ..] => {
            let json = std::mem::take(&mut flags.json);
            let watch = match (std::mem::take(&mut flags.watch), rest) {
                (false, []) => None,
                (true, []) => Some(WATCH_DEFAULT),
                (true, [seconds]) => Some(interval(seconds)?),
                _ => return Err(format!("status {}: not understood", rest.join(" "))),
            };
            return Ok(Wish::Status { json, watch });
        }
        ["swap"] => Command::Swap { to: None },
        ["swap", to] => Command::Swap {
            to: Some(node(to)?),
        },
        ["promote"] => Command::Promote {
            accept_loss: std::mem::take(&mut flags.accept_loss),
        },
        ["member", "add", name] | ["member", "role", name, "voter"] => {
            member(name, MemberAction::Add)?
        }
        ["member", "remove", name] | ["member", "role", name, "observer"] => {
            member(name, MemberAction::Remove)?
        }
        ["member", "role", name, "arbiter"] | ["arbiter", "add", name] => {
            member(name, MemberAction::AddArbiter)?
        }
        ["arbiter", "remove", name] => member(name, MemberAction::RemoveArbiter)?,
        ["pack"] | ["pack", _] => return pack(words.get(1).copied(), flags),
        ["drain"] => Command::Drain {
            on: !std::mem::take(&mut flags.undo),
        },
        ["drain", "on"] => Command::Drain { on: true },
        ["drain", "off"] => Command::Drain { on: false },
        ["verify"] | ["verify", _] => verify(words.get(1).copied(), flags)?,
        ["backup", as_of] => backup(as_of, flags)?,
        ["fetch"] => Command::Fetch { from: None },
        ["fetch", from] => Command::Fetch {
            from: Some(node(from)?),
        },
        [name, ..] if Command::NAMES.contains(&name) || name == "arbiter" => {
            let forms = forms(name).join(" | ");
            return Err(format!(
                "{}: not understood; it is {forms}",
                words.join(" ")
            ));
        }
        [name, ..] => return Err(format!("there is no command {name}")),
    };
    let command = checked(&command)?;
    let wants_json = matches!(command, Command::Verify { .. }) && std::mem::take(&mut flags.json);
    Ok(match wants_json {
        true => Wish::Report(command),
        false => Wish::Command(command),
    })
}

/// What the server would not take is found here.
fn checked(command: &Command) -> Result<Command, String> {
    Command::parse(command.name(), command.body().as_bytes()).map_err(by_option)
}

fn verify(storage: Option<&str>, flags: &mut Flags) -> Result<Command, String> {
    let with = flags.values.remove("with");
    let with = match (with, std::mem::take(&mut flags.all)) {
        (None, false) => Others::None,
        (None, true) => Others::All,
        (Some(name), false) => Others::One(node(&name)?),
        (Some(_), true) => return Err("--with and --all exclude each other".to_owned()),
    };
    Ok(Command::Verify {
        storage: storage.map(str::to_owned),
        with,
        rate: rate(flags)?,
    })
}

fn backup(as_of: &str, flags: &mut Flags) -> Result<Command, String> {
    let to = flags.values.remove("to");
    let body = serde_json::json!({
        "tid": (as_of != "now").then_some(as_of),
        "to": to.ok_or("backup: where to? Give --to FILE")?,
        "blobs": flags.values.remove("blobs"),
        "storage": flags.values.remove("storage"),
        "rate": rate(flags)?,
    });
    Command::parse("backup", body.to_string().as_bytes()).map_err(by_option)
}

/// Bytes per second, if they are given.
fn rate(flags: &mut Flags) -> Result<Option<u64>, String> {
    let Some(text) = flags.values.remove("rate") else {
        return Ok(None);
    };
    let units = [("KB", 10), ("MB", 20), ("GB", 30), ("", 0)];
    let found = units.iter().find_map(|(unit, shift)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(1 << shift)
    });
    let rate = found.ok_or(format!("--rate: {text} is no number of bytes"))?;
    Ok(Some(rate))
}

fn pack(storage: Option<&str>, flags: &mut Flags) -> Result<Wish, String> {
    let (days, time) = (flags.days.take(), flags.values.remove("to"));
    let time = time.map(|time| seconds_of(&time)).transpose()?;
    if days.is_some() && time.is_some() {
        return Err("pack: --days or --to, not both".to_owned());
    }
    let command = Command::Pack {
        storage: storage.map(str::to_owned),
        days: days.unwrap_or_default(),
        time,
    };
    let command = checked(&command)?;
    Ok(match std::mem::take(&mut flags.no_wait) {
        true => Wish::Command(command),
        false => Wish::Pack(command),
    })
}

/// A time as people write it, in seconds since 1970: that of this machine, unless it says which.
fn seconds_of(time: &str) -> Result<f64, String> {
    let instant = time.parse::<Timestamp>().ok().or_else(|| {
        let local = time.parse::<DateTime>().ok()?;
        let zoned = local.to_zoned(TimeZone::system()).ok()?;
        Some(zoned.timestamp())
    });
    let instant = instant.ok_or(format!(
        "--to: {time} is no time; 2026-01-31, 2026-01-31T23:00, and 2026-01-31T22:00Z are such"
    ))?;
    Ok(instant.as_duration().as_secs_f64())
}

fn member(name: &str, action: MemberAction) -> Result<Command, String> {
    let node = node(name)?;
    Ok(Command::Member { node, action })
}

fn node(name: &str) -> Result<NodeId, String> {
    NodeId::new(name).ok_or_else(|| format!("{name} is not the name of a node"))
}

/// Where a node may be. Whether it is there shows when it is asked.
fn address(text: String) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    let is_address = parts.is_some_and(|(host, port)| {
        let port = port.parse().unwrap_or(0_u16);
        !host.is_empty() && port > 0
    });
    match is_address {
        true => Ok(text),
        false => Err(format!("--address: {text} is not HOST:PORT")),
    }
}

/// What is wrong with a command, by what people wrote and not by the fields that came of it.
fn by_option(error: String) -> String {
    let Some((field, why)) = error.split_once(": ") else {
        return error;
    };
    match field {
        "time" => format!("--to: {why}"),
        "tid" => format!("TID: {why}"),
        "rate" | "to" | "days" | "blobs" => format!("--{field}: {why}"),
        _ => error,
    }
}

/// A day is more than anybody waits.
const INTERVAL_MAX: f64 = 86_400.0;

fn interval(seconds: &str) -> Result<Duration, String> {
    let number = seconds.parse().ok();
    let number = number.filter(|number| (0.1..=INTERVAL_MAX).contains(number));
    let number: f64 = number.ok_or(format!(
        "--watch: {seconds} is no number of seconds from 0.1"
    ))?;
    Ok(Duration::from_secs_f64(number))
}

fn text(value: OsString) -> Result<String, String> {
    value
        .into_string()
        .map_err(|value| format!("{} is no text", value.display()))
}

/// How a command is given, by the answer to `--help`.
fn forms(name: &str) -> Vec<String> {
    let usage = usage();
    let lines = usage.lines().filter_map(|line| line.strip_prefix("  "));
    let forms = lines.filter_map(|line| line.split("  ").next());
    let is_its = |form: &&str| form.split(' ').next() == Some(name);
    forms.filter(is_its).map(str::to_owned).collect()
}

/// The answer to `--help`.
pub(crate) fn usage() -> String {
    "\
standbyctl, for the administrators of replicated standbyd

Usage: standbyctl [-C FILE | --socket PATH | --address HOST:PORT] COMMAND ...

Which node:
  -C, --configure FILE   the one with this configuration, on this machine; also by the
                         environment variable STANDBY_CONF
  --socket PATH          the one with this admin-socket, on this machine
  --address HOST:PORT    the one with this admin-address; for status only

Commands:
  status [--json] [--watch [SECONDS]]
                         how things are, as this node knows; again every 2 seconds
  swap [NODE]            make another node primary; nothing is lost, clients reconnect
  promote                make this node primary, as nobody is, and a majority is there
  promote --accept-loss  the same though the majority is gone for good: what it has is lost
  member add NODE        count a node that has all the data
  member remove NODE     count it no more
  member role NODE voter|observer|arbiter
                         the same by what it is to be
  arbiter add NODE       let a node decide between the two voters
  arbiter remove NODE    let it decide no more
  pack [STORAGE] [--days N | --to TIME] [--no-wait]
                         pack on all nodes what is older than N days (0), or than TIME, in
                         time of this machine (2026-01-31, 2026-01-31T23:00) or with its zone
                         (2026-01-31T22:00Z); wait until this node has done it
  drain [--undo]         give up office and close readers, or open again
  verify [STORAGE] [--with NODE | --all] [--rate BYTES] [--json]
                         check the data of this node, also against other nodes
  backup TID|now --to FILE [--blobs DIR] [--storage NAME] [--rate BYTES]
                         write a copy as of a transaction into the backup-directory
  fetch [NODE]           replace the data of this node by those of another one, while it goes on
  -h, --help             this
  --version              the version

Exit status: 0 done; 1 refused; 2 wrong command line or configuration; 3 no answer;
4 this node is not primary (who is, is said); 5 given, but how it ended is not known;
6 what was verified is not well.
"
    .to_owned()
}

#[cfg(test)]
mod tests {
    use standby::ids::Tid;

    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn wished(line: &str) -> Wish {
        match parsed(line) {
            Ok(Invocation::Run(run)) => run.wish,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn status(json: bool, watch: Option<u64>) -> Wish {
        let watch = watch.map(Duration::from_millis);
        Wish::Status { json, watch }
    }

    #[test]
    fn a_node_is_named_in_one_way() {
        let target = |line: &str| match parsed(line) {
            Ok(Invocation::Run(run)) => Ok(run.target),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        assert_eq!(target("status"), Ok(None));
        let config = Some(Target::Config("a.conf".into()));
        assert_eq!(target("-C a.conf status"), Ok(config));
        let socket = Some(Target::Socket("./s".into()));
        assert_eq!(target("status --socket ./s"), Ok(socket));
        let address = Some(Target::Address("a:1".to_owned()));
        assert_eq!(target("--address=a:1 status"), Ok(address));
        assert!(
            target("-C a --socket b status")
                .unwrap_err()
                .contains("only one")
        );
    }

    #[test]
    fn the_status_can_be_watched() {
        assert_eq!(wished("status"), status(false, None));
        assert_eq!(wished("status --json"), status(true, None));
        assert_eq!(wished("status --watch"), status(false, Some(2000)));
        assert_eq!(wished("--watch status 0.5"), status(false, Some(500)));
        assert_eq!(wished("status --watch=5 --json"), status(true, Some(5000)));
    }

    #[test]
    fn each_command_has_its_words() {
        let beta = NodeId::new("beta").unwrap();
        let member = |action| Command::Member { node: beta, action };
        let main = Some("main".to_owned());
        for (line, command) in [
            ("swap", Command::Swap { to: None }),
            ("swap beta", Command::Swap { to: Some(beta) }),
            ("promote", Command::Promote { accept_loss: false }),
            (
                "promote --accept-loss",
                Command::Promote { accept_loss: true },
            ),
            ("member add beta", member(MemberAction::Add)),
            ("member role beta voter", member(MemberAction::Add)),
            ("member remove beta", member(MemberAction::Remove)),
            ("member role beta observer", member(MemberAction::Remove)),
            ("member role beta arbiter", member(MemberAction::AddArbiter)),
            ("arbiter add beta", member(MemberAction::AddArbiter)),
            ("arbiter remove beta", member(MemberAction::RemoveArbiter)),
            ("drain", Command::Drain { on: true }),
            ("drain off", Command::Drain { on: false }),
            ("drain --undo", Command::Drain { on: false }),
            (
                "verify main",
                Command::Verify {
                    storage: main.clone(),
                    with: Others::None,
                    rate: None,
                },
            ),
            (
                "verify --with beta --rate 0",
                Command::Verify {
                    storage: None,
                    with: Others::One(beta),
                    rate: Some(0),
                },
            ),
            (
                "verify --all --rate 3MB",
                Command::Verify {
                    storage: None,
                    with: Others::All,
                    rate: Some(3 << 20),
                },
            ),
            (
                "backup 0x040d2774690f2033 --to b",
                Command::Backup {
                    tid: Some(Tid(0x040d_2774_690f_2033)),
                    to: "b".to_owned(),
                    storage: None,
                    blobs: None,
                    rate: None,
                },
            ),
            (
                "backup now --to b/c --storage main --blobs b/d --rate 1GB",
                Command::Backup {
                    tid: None,
                    to: "b/c".to_owned(),
                    storage: main,
                    blobs: Some("b/d".to_owned()),
                    rate: Some(1 << 30),
                },
            ),
            ("fetch beta", Command::Fetch { from: Some(beta) }),
        ] {
            assert_eq!(wished(line), Wish::Command(command), "{line}");
        }
        let pack = |storage, days, time| Command::Pack {
            storage,
            days,
            time,
        };
        let main = Some("main".to_owned());
        let waits = |line, command| assert_eq!(wished(line), Wish::Pack(command), "{line}");
        waits("pack", pack(None, 0.0, None));
        waits("pack main --days 1.5", pack(main, 1.5, None));
        waits(
            "pack --to 2026-01-31T22:00:30Z",
            pack(None, 0.0, Some(1_769_896_830.0)),
        );
        assert!(matches!(
            wished("pack --to 2026-01-31"),
            Wish::Pack(Command::Pack { time: Some(_), .. })
        ));
        assert_eq!(
            wished("pack --no-wait"),
            Wish::Command(pack(None, 0.0, None))
        );
        let Wish::Report(command) = wished("verify --json --all") else {
            panic!();
        };
        assert_eq!(command.name(), "verify");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, word) in [
            ("", "status"),
            ("dance", "no command dance"),
            ("status now", "status now: not understood"),
            ("status --watch soon", "--watch: soon"),
            ("status --watch 0", "--watch: 0"),
            ("swap a b", "swap a b: not understood"),
            ("swap a-name-too-long", "a-name-too-long"),
            ("swap --json", "--json is not for swap"),
            ("swap --days 3", "--days is not for swap"),
            ("drain --accept-loss", "--accept-loss is not for drain"),
            (
                "member add",
                "member add: not understood; it is member add NODE | member remove NODE | member",
            ),
            ("member role beta king", "not understood"),
            ("arbiter beta", "not understood"),
            ("pack --days -1", "--days"),
            ("pack --days many", "--days: many"),
            ("pack --to yesterday", "--to: yesterday"),
            ("pack --to 2026-01-31 --days 1", "not both"),
            ("swap --no-wait", "--no-wait is not for swap"),
            ("swap --to 2026-01-31", "--to is not for swap"),
            ("pack --days 1e9", "--days: 1000000000"),
            ("pack --to 5000-01-01", "--to: 9"),
            ("backup 12 --to b", "TID: \"12\" is not 16 hexadecimal"),
            ("backup now", "Give --to FILE"),
            ("backup now b", "backup now b: not understood"),
            (
                "backup now --to ../b",
                "--to: \"../b\" is no path of a file",
            ),
            ("backup now --to b --json", "--json is not for backup"),
            ("verify --with b --all", "exclude each other"),
            ("verify --rate fast", "--rate: fast"),
            ("verify --rate 5KB", "--rate: 5120"),
            (
                "status --address 31013",
                "--address: 31013 is not HOST:PORT",
            ),
            ("status --address :1", "--address: :1 is not"),
            ("status --address a:0", "--address: a:0 is not"),
            (
                "status --address 127.0.0.1:99999",
                "--address: 127.0.0.1:99999 is not",
            ),
            ("verify --to b", "--to is not for verify"),
            ("swap --undo", "--undo is not for swap"),
            ("--what status", "--what"),
            ("-x status", "-x"),
            ("--socket", "socket"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn help_is_an_answer() {
        assert_eq!(parsed("swap -h"), Ok(Invocation::Help));
        assert_eq!(parsed("--version"), Ok(Invocation::Version));
        for name in Command::NAMES {
            assert!(!forms(name).is_empty(), "{name}");
            assert!(usage().contains(&format!("\n  {name}")), "{name}");
        }
    }
}
