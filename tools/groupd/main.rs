//! `groupd`: a stand-in for Spread's daemon on one machine, for development and tests. It speaks
//! Spread's client protocol, and does on command what networks do unasked.

mod args;
mod daemon;
mod service;
mod tell;

use std::io::{self, Write};
use std::process::ExitCode;

use standby::exit::Exit;

use crate::args::Invocation;
use crate::service::Groupd;

fn main() -> ExitCode {
    let invocation = match args::parse(std::env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(error) => return complain(Exit::Usage, &format!("{error}; see groupd --help")),
    };
    match invocation {
        Invocation::Help => print(&args::usage()),
        Invocation::Version => print(concat!("groupd ", env!("CARGO_PKG_VERSION"), "\n")),
        Invocation::Tell(path, command) => match tell::tell(&path, &command) {
            Ok(Ok(answer)) => print(&answer),
            Ok(Err(problem)) => complain(Exit::HungUp, &problem),
            Err(error) => complain(Exit::Internal, &format!("{}: {error}", path.display())),
        },
        Invocation::Run(options) => {
            let filter = env_logger::Env::default().default_filter_or("info");
            env_logger::Builder::from_env(filter).init();
            match Groupd::run(&options, |text| _ = print(text)) {
                Ok(exit) => exit.into(),
                Err((exit, message)) => complain(exit, &message),
            }
        }
    }
}

fn complain(exit: Exit, message: &str) -> ExitCode {
    // Nobody may be listening any more, which is not worth a panic.
    let _ = writeln!(io::stderr(), "groupd: {message}");
    exit.into()
}

fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(Exit::Internal, &format!("standard output: {error}")),
    }
}
