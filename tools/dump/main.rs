//! `zeodump`: shows what is on the wire between clients, servers and the group daemon, and what is
//! in data files and journals. It has no parser of its own for any of it: it uses the server's.

mod args;
mod clock;
mod data;
mod dump;
mod failure;
mod files;
mod filter;
mod journal;
mod json;
mod limits;
mod live;
mod message;
mod output;
mod packet;
mod pcap;
mod proxy;
mod record;
mod replica;
mod show;
mod spread;
mod summary;
mod talk;
mod tcp;
mod trace;
mod value;
mod zeo;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use crate::args::{Invocation, Options, Source};
use crate::clock::Clock;
use crate::dump::Dump;
use crate::failure::Failure;
use crate::output::Output;
use crate::record::Recorder;
use crate::show::Show;

fn main() -> ExitCode {
    match args::parse(std::env::args_os().skip(1)).and_then(perform) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(failure::STATUS_INCOMPLETE),
        Err(failure) => {
            if !matches!(failure, Failure::NobodyReads) {
                complain(&failure.to_string());
            }
            ExitCode::from(failure.status())
        }
    }
}

/// Whether all was read and understood.
fn perform(invocation: Invocation) -> Result<bool, Failure> {
    match invocation {
        Invocation::Help => print(args::USAGE),
        Invocation::Version => print(concat!("zeodump ", env!("CARGO_PKG_VERSION"), "\n")),
        Invocation::Run(options) => run(*options),
    }
}

fn print(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(|error| Failure::output("standard output", &error))?;
    Ok(true)
}

/// Nobody may be listening any more, which is not worth a panic.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "zeodump: {text}");
}

#[expect(
    clippy::disallowed_methods,
    reason = "an instant to count from, the same for all that is read"
)]
fn run(options: Options) -> Result<bool, Failure> {
    let show = Show {
        clock: Clock::new(options.utc),
        form: options.form,
        all_bytes: options.all_bytes,
    };
    let (filter, verbose) = (options.filter, options.verbose);
    let out = Output::new(show, filter, verbose, options.summary, io::stdout());
    let mut dump = Dump::new(out, options.ports, Instant::now());
    let record = options.write.as_deref().map(Recorder::create);
    let mut recorder = record.transpose()?;
    let mut dropped = 0;
    match options.source {
        Source::Files(files) => files::read(&files, &mut dump)?,
        Source::DataFiles(files) => {
            for path in files {
                data::read(&path, &mut dump.out)?;
            }
        }
        Source::Streams(protocol, names) => files::read_streams(protocol, &names, &mut dump)?,
        Source::Interface(name) => {
            dropped = live::capture(&name, &mut dump, recorder.as_mut())?;
        }
        Source::Proxy(pairs) => proxy::run(&pairs, &mut dump, recorder.as_mut())?,
    }
    dump.finish()?;
    if let Some(recorder) = &mut recorder {
        recorder.flush()?;
    }
    let (mut notes, mut is_incomplete) = dump.notes();
    if dropped > 0 {
        notes.push(format!("{dropped} packets dropped by the kernel"));
        is_incomplete = true;
    }
    for note in notes {
        complain(&note);
    }
    Ok(!is_incomplete)
}
