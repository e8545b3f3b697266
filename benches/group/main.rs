//! A member of a group as a program, to try a daemon and to measure it: commands on standard input,
//! lines of JSON on standard output. `member` tells which.
//!
//! ```text
//! cargo bench --bench group -- --daemon 'spread 4803@localhost' --node alpha
//! ```

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a measurement")]

mod member;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use member::Member;

const USAGE: &str = "usage: group --daemon DAEMON [--node NAME] [--group NAME] [--key-file PATH]";

#[expect(clippy::disallowed_methods, reason = "a member has a clock")]
fn main() -> ExitCode {
    env_logger::init();
    let mut lines = vec!["group bench".to_owned()];
    let mut args = std::env::args().skip(1);
    let mut node = "node alpha".to_owned();
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            // What cargo says to each of these programs.
            ("--bench", None) => {}
            ("--daemon", Some(value)) => lines.push(format!("daemon {value}")),
            ("--node", Some(value)) => node = format!("node {value}"),
            ("--group", Some(value)) => lines[0] = format!("group {value}"),
            ("--key-file", Some(value)) => lines.push(format!("key-file {value}")),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    lines.push(node);
    let config = match member::config(lines) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let sequence = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let (mut member, commands) =
        Member::new(&config, Instant::now(), sequence.as_nanos() as u64).unwrap();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            commands.give(&line);
        }
        commands.give("quit");
    });
    let mut out = io::stdout();
    member
        .run(|line| writeln!(out, "{line}").and_then(|()| out.flush()).is_ok())
        .unwrap();
    ExitCode::SUCCESS
}
