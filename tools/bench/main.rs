//! `zeobench`: a load generator for any ZEO server, in the manner of pgbench, that checks what it
//! reads.

mod args;
mod audit;
mod bench;
mod catalogue;
mod conflicts;
mod connect;
mod failure;
mod fanout;
mod fleet;
mod large;
mod ledger;
mod meter;
mod mix;
mod process;
mod random;
mod record;
mod report;
mod run;
mod stub;
mod table;
mod txn;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::args::Invocation;
use crate::failure::Failure;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)).and_then(perform) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody may be listening any more, which is not worth a panic.
            let _ = writeln!(io::stderr(), "zeobench: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn perform(invocation: Invocation) -> Result<(), Failure> {
    match invocation {
        Invocation::Help => print(args::USAGE),
        Invocation::Version => print(concat!("zeobench ", env!("CARGO_PKG_VERSION"), "\n")),
        Invocation::Run(options) => print(&run::run(&options)?),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(|error| Failure::own("standard output", &error))
}
