//! `standbyd`: reads flags and configuration, opens the log, runs the reactor.
//!
//! Exit status: 0 stopped as asked; 1 SIGHUP without a log file to reopen, as runzeo; 2 wrong
//! command line or configuration, or an address in use; 3 a storage could not be opened; 4 a write
//! to the disk failed; 5 the system refused something that the server cannot do without. See
//! [`Exit`].

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Signal, getpid, kill_process};
use standby::args::{self, Args, Invocation};
use standby::config::{self, Config, Surroundings};
use standby::exit::Exit;
use standby::{logging, reactor};

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Invocation::Serve(args)) => args,
        Ok(Invocation::Help) => return answer(args::USAGE),
        Ok(Invocation::Version) => {
            return answer(concat!("standbyd ", env!("CARGO_PKG_VERSION"), "\n"));
        }
        Err(error) => return refuse(format_args!("{error}\nFor help, use standbyd -h")),
    };
    if args.is_quick_start()
        && let Err(error) = fs::create_dir("var")
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return refuse(format_args!("cannot create the directory ./var: {error}"));
    }
    let config = match config::read(&args, &Machine) {
        Ok(config) => config,
        Err(error) => return refuse(error),
    };
    let log = match logging::install(&config.log) {
        Ok(log) => log,
        Err(error) => return refuse(error),
    };
    if !config.runner_keys.is_empty() {
        let keys = config.runner_keys.join(", ");
        log::info!("section <runner> concerns zeoctl alone (ignored: {keys})");
    }
    let exit = reactor::run(&config, log, |_| on_started(&args, &config));
    remove_pid_file(&config);
    exit
}

/// Clients can connect.
fn on_started(args: &Args, config: &Config) {
    if let Some(path) = &config.pid_file {
        // As in runzeo, a service without its pid file is better than none.
        if let Err(error) = fs::write(path, format!("{}\n", std::process::id())) {
            log::error!("pid file {} cannot be written: {error}", path.display());
        }
    }
    if args.is_quick_start() {
        answer(QUICK_START);
    }
    if args.test {
        answer("testing exit immediately\n");
        // By the way that every stop takes, so that this is tested, too.
        if let Err(error) = kill_process(getpid(), Signal::TERM) {
            log::error!("cannot stop: {error}");
        }
    }
}

const QUICK_START: &str = "\
Serving ./var/Data.fs as storage 1 on 127.0.0.1:8100. To connect from Python:

    import ZEO
    connection = ZEO.connection(('127.0.0.1', 8100))
    print(connection.root())
";

/// Removes the pid file, if it is ours: another server may have begun, and failed, or not.
fn remove_pid_file(config: &Config) {
    let Some(path) = &config.pid_file else { return };
    let is_ours = fs::read_to_string(path)
        .is_ok_and(|text| text.trim_end() == std::process::id().to_string());
    if is_ours && let Err(error) = fs::remove_file(path) {
        log::error!("pid file {} cannot be removed: {error}", path.display());
    }
}

/// Nobody may be listening any more, which is not worth a panic.
fn answer(text: &str) -> ExitCode {
    let mut stdout = io::stdout();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    Exit::Stopped.into()
}

fn refuse(error: impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "standbyd: {error}");
    Exit::Usage.into()
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
