//! A member of a group as a program, to try a daemon and to measure it: commands on standard input,
//! lines of JSON on standard output. `member` tells which.
//!
//! ```text
//! cargo bench --bench group -- --daemon 'spread 4803@localhost' --node alpha
//! ```

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a measurement")]

mod member;

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use standby::args::Args;
use standby::config::{self, Surroundings};

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
    let config = match config::read(&args_of_file(), &File(lines)) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let sequence = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let standby = config.standby.unwrap();
    let (mut member, commands) =
        Member::new(&standby, Instant::now(), sequence.as_nanos() as u64).unwrap();
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

fn args_of_file() -> Args {
    Args {
        configure: Some("standby.conf".into()),
        ..Args::default()
    }
}

/// The command line in the form of a configuration, so that it is read as that is.
struct File(Vec<String>);

impl Surroundings for File {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path != Path::new("standby.conf") {
            return std::fs::read_to_string(path);
        }
        let lines = self.0.join("\n");
        Ok(format!(
            "<zeo>\naddress 1\n</zeo>\n<mappingstorage>\n</mappingstorage>\n\
             <standby>\n{lines}\n</standby>\n"
        ))
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn variable(&self, _name: &str) -> Option<String> {
        None
    }
}
