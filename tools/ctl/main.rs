//! `standbyctl`: shows how things are with a node, and gives it commands.

mod args;
mod client;
mod screen;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use jiff::tz::TimeZone;
use standby::admin::{Command, Done, PackState, PackStatus, Refused, Refusing, Status};
use standby::args::Args;
use standby::config::{self, Surroundings};

use crate::args::{Invocation, Run, Target, Wish};
use crate::client::{Client, ClientError};

/// How it ended; the page of the manual has the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Done.
    Done = 0,
    /// The server refuses.
    Refused = 1,
    /// The command line, or the configuration, is wrong.
    Usage = 2,
    /// Nobody answers.
    Unreachable = 3,
    /// Another node is primary, or none is.
    NotPrimary = 4,
    /// The command was given, and nobody said how it ended.
    Unknown = 5,
    /// What was verified is not well.
    NotWell = 6,
}

/// What goes to standard error.
struct Failure {
    exit: Exit,
    message: String,
}

fn main() -> ExitCode {
    let invocation = args::parse(std::env::args_os().skip(1));
    let ended = match invocation {
        Err(message) => Err(Failure::usage(format!("{message}; see standbyctl --help"))),
        Ok(Invocation::Help) => print(&args::usage()),
        Ok(Invocation::Version) => print(concat!("standbyctl ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Invocation::Run(run)) => obey(run),
    };
    let exit = match ended {
        Ok(()) => Exit::Done,
        Err(Failure { exit, message }) => {
            // Nobody may be listening any more, which is not worth a panic.
            let _ = writeln!(io::stderr(), "standbyctl: {message}");
            exit
        }
    };
    ExitCode::from(exit as u8)
}

fn obey(run: Run) -> Result<(), Failure> {
    let client = client(run.target, &run.wish)?;
    match run.wish {
        Wish::Status { json, watch: None } => print(&status(&client, json)?),
        Wish::Status {
            json,
            watch: Some(interval),
        } => watch(&client, json, interval),
        Wish::Command(command) => command_to(&client, &command, false),
        Wish::Report(command) => command_to(&client, &command, true),
        Wish::Pack(command) => {
            command_to(&client, &command, false)?;
            wait_for_pack(&client, &command)
        }
    }
}

/// Where the node is that is meant.
fn client(target: Option<Target>, wish: &Wish) -> Result<Client, Failure> {
    let variable = || std::env::var_os("STANDBY_CONF").filter(|path| !path.is_empty());
    let target = target.or_else(|| variable().map(|path| Target::Config(path.into())));
    match target {
        None => Err(Failure::usage(
            "which node? Give -C FILE, its configuration, or --socket PATH, or --address \
             HOST:PORT, or set STANDBY_CONF to its configuration"
                .to_owned(),
        )),
        Some(Target::Address(_)) if !matches!(wish, Wish::Status { .. }) => Err(Failure::usage(
            "commands are taken at the Unix socket only: give --socket or -C on the node's machine"
                .to_owned(),
        )),
        Some(Target::Address(address)) => Ok(Client::Tcp(address)),
        Some(Target::Socket(path)) => Ok(Client::Unix(path)),
        Some(Target::Config(path)) => socket_of(&path).map(Client::Unix),
    }
}

/// The socket that a configuration names.
fn socket_of(path: &Path) -> Result<PathBuf, Failure> {
    let args = Args {
        configure: Some(path.to_owned()),
        ..Args::default()
    };
    let config =
        config::read(&args, &Machine).map_err(|error| Failure::usage(error.to_string()))?;
    match config.standby {
        Some(standby) => Ok(standby.admin_socket),
        None => Err(Failure::usage(format!(
            "{}: there is no <standby>",
            path.display()
        ))),
    }
}

fn status(client: &Client, json: bool) -> Result<String, Failure> {
    let answer = client.get("/status")?;
    if answer.code != 200 {
        return Err(refusal("status", &answer.body));
    }
    if json {
        return Ok(String::from_utf8_lossy(&answer.body).into_owned());
    }
    let status = understood(&answer)?;
    Ok(screen::screen(&status, &TimeZone::system(), width()))
}

fn understood(answer: &client::Answer) -> Result<Status, Failure> {
    let status = serde_json::from_slice(&answer.body);
    Ok(status.map_err(|error| ClientError::Strange(format!("the status: {error}")))?)
}

fn look(client: &Client) -> Result<Status, Failure> {
    let answer = client.get("/status")?;
    match answer.code {
        200 => understood(&answer),
        _ => Err(refusal("status", &answer.body)),
    }
}

/// Columns of the terminal that is written to; `None` if it is none.
fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let set = std::env::var("COLUMNS").ok();
    let set = set.and_then(|columns| columns.parse().ok());
    let found = || {
        let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
        Some(usize::from(size.ws_col))
    };
    let width = set.or_else(found).filter(|columns| *columns > 0);
    Some(width.unwrap_or(screen::WIDTH))
}

/// Shows the status again and again, until it is interrupted: on a screen in the place of the last
/// one, and else, in lines of text, behind an empty one.
fn watch(client: &Client, json: bool, interval: Duration) -> Result<(), Failure> {
    let between = match io::stdout().is_terminal() {
        true => "\x1b[H\x1b[2J",
        false => "\n",
    };
    loop {
        // It may come back.
        match (status(client, json), json) {
            (Ok(text), true) => print(&text)?,
            (Ok(text), false) => print(&format!("{between}{text}"))?,
            (Err(failure), true) => {
                let _ = writeln!(io::stderr(), "{}", failure.message);
            }
            (Err(failure), false) => print(&format!("{between}{}\n", failure.message))?,
        }
        thread::sleep(interval);
    }
}

fn command_to(client: &Client, command: &Command, json: bool) -> Result<(), Failure> {
    let name = command.name();
    let answer = while_told(client, command, || client.post(command))?;
    if answer.code != 200 {
        return Err(refusal(name, &answer.body));
    }
    let done: Done = serde_json::from_slice(&answer.body).unwrap_or_default();
    match (&done.report, json) {
        (Some(report), true) => {
            let text = serde_json::to_string_pretty(report).unwrap_or_default();
            print(&format!("{text}\n"))?;
        }
        _ => print(&format!("{}\n", done.done))?,
    }
    match done.report {
        Some(report) if !report.well => Err(Failure {
            exit: Exit::NotWell,
            message: "verify: not all is well".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Between two looks at how far a command is
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Waits, and shows meanwhile how far it is, if somebody sits there.
fn while_told<T>(client: &Client, command: &Command, wait: impl FnOnce() -> T) -> T {
    let takes_long = matches!(
        command,
        Command::Verify { .. } | Command::Backup { .. } | Command::Fetch { .. }
    );
    if !takes_long || !io::stderr().is_terminal() {
        return wait();
    }
    let (over, is_over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while is_over.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let answer = client.get("/status");
                let status = answer.map(|answer| serde_json::from_slice::<Status>(&answer.body));
                if let Ok(Ok(status)) = status
                    && let Some(task) = status.tasks.iter().find(|it| it.command == command.name())
                {
                    // Whoever sits there sees it or not.
                    let _ = write!(io::stderr(), "\r\x1b[K{}", screen::task(task));
                }
            }
            let _ = write!(io::stderr(), "\r\x1b[K");
        });
        let waited = wait();
        drop(over);
        waited
    })
}

/// Between two looks at a pack.
const PACK_INTERVAL: Duration = Duration::from_millis(500);

/// How often nobody may answer meanwhile, as the node is started anew.
const PACK_MISSED_MAX: u32 = 120;

/// Says how it goes on with a pack that was ordered, until this node has done it.
fn wait_for_pack(client: &Client, command: &Command) -> Result<(), Failure> {
    let Command::Pack { storage, .. } = command else {
        return Ok(());
    };
    let is_meant = |pack: &&PackStatus| storage.as_ref().is_none_or(|it| *it == pack.storage);
    let mut told = BTreeMap::new();
    let mut missed = 0;
    loop {
        let status = match look(client) {
            Ok(status) => Some(status),
            Err(failure) if failure.exit == Exit::Unreachable && missed < PACK_MISSED_MAX => None,
            Err(failure) => {
                return Err(Failure {
                    exit: Exit::Unknown,
                    ..failure
                });
            }
        };
        missed = status.as_ref().map_or(missed + 1, |_| 0);
        if let Some(status) = &status {
            let packs: Vec<&PackStatus> = status.packs.iter().filter(is_meant).collect();
            for pack in &packs {
                if told.insert(pack.storage.clone(), pack.state) != Some(pack.state) {
                    print(&format!("{}\n", screen::pack(&status.node, pack)))?;
                }
            }
            let is_over =
                |pack: &&PackStatus| matches!(pack.state, PackState::Done | PackState::Failed);
            if packs.iter().all(is_over) {
                return match packs.iter().any(|pack| pack.state == PackState::Failed) {
                    true => Err(Failure {
                        exit: Exit::Refused,
                        message: "pack: it has come to nothing at this node".to_owned(),
                    }),
                    false => print("the other nodes pack each in its turn\n"),
                };
            }
        }
        thread::sleep(PACK_INTERVAL);
    }
}

/// What a server that refuses says.
fn refusal(what: &str, body: &[u8]) -> Failure {
    let refused: Refused = serde_json::from_slice(body).unwrap_or_default();
    let Refused {
        error,
        reason,
        primary,
    } = refused;
    let (exit, behind) = match (reason, primary) {
        (Refusing::NotPrimary, Some(node)) => (
            Exit::NotPrimary,
            format!("; {node} is: give the command there"),
        ),
        (Refusing::NotPrimary, None) => (
            Exit::NotPrimary,
            "; nobody is known to be: look at the status".to_owned(),
        ),
        _ => (Exit::Refused, String::new()),
    };
    Failure {
        exit,
        message: format!("{what}: {error}{behind}"),
    }
}

/// Who reads it may have gone: that is the end, and no failure of ours.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(|error| Failure {
        exit: Exit::Refused,
        message: format!("standard output: {error}"),
    })
}

impl Failure {
    fn usage(message: String) -> Self {
        let exit = Exit::Usage;
        Self { exit, message }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error {
            ClientError::Unreachable(_) | ClientError::Strange(_) => Exit::Unreachable,
            ClientError::NoAnswer(_) => Exit::Unknown,
        };
        let message = error.to_string();
        Self { exit, message }
    }
}

/// The machine that we run on.
struct Machine;

impl Surroundings for Machine {
    fn read(&self, path: &Path) -> io::Result<String> {
        fs::read_to_string(path)
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}
