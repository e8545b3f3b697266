//! The sample configuration, and the command line of the real binary where it ends by itself.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::io;
use std::path::Path;
use std::process::{Command, Output};

use standby::args::Args;
use standby::config::{self, Config, FollowConfig, StandbyConfig, Surroundings};

const SAMPLE: &str = include_str!("../conf/server.conf");
const REPLICATED: &str = include_str!("../conf/replicated.conf");
const FOLLOW: &str = include_str!("../conf/follow.conf");
const SCHEMA: &str = include_str!("../src/config/schema.rs");
const STANDBY: &str = include_str!("../src/config/group.rs");
const FOLLOWING: &str = include_str!("../src/config/follow.rs");

/// A machine with one file, and with every directory.
struct OneFile(String);

impl Surroundings for OneFile {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path.ends_with("group.key") {
            return Ok("a key of many letters".to_owned());
        }
        Ok(self.0.clone())
    }

    fn is_directory(&self, _: &Path) -> bool {
        true
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

fn read(text: &str) -> Config {
    let args = Args {
        configure: Some("server.conf".into()),
        ..Args::default()
    };
    config::read(&args, &OneFile(text.to_owned())).unwrap_or_else(|error| panic!("{error}"))
}

/// A line of the sample that is an option, and not prose.
fn option(line: &str) -> Option<&str> {
    let line = line.trim();
    match line.strip_prefix('#') {
        Some(option) if option.starts_with(|c: char| c.is_ascii_lowercase() || c == '<') => {
            Some(option)
        }
        Some(_) => None,
        None => Some(line),
    }
}

#[test]
fn the_sample_is_a_configuration_as_it_stands() {
    let config = read(SAMPLE);
    assert_eq!(config.addresses[0].to_string(), "127.0.0.1:8100");
    assert_eq!(config.storages.len(), 1);
}

#[test]
fn the_sample_shows_options_that_exist_with_their_defaults() {
    // One of two that exclude each other.
    let other = |line: &&str| !line.starts_with("password-command ");
    let all: Vec<&str> = SAMPLE.lines().filter_map(option).filter(other).collect();
    let (all, given) = (read(&all.join("\n")), read(SAMPLE));
    // Those without a default have an example.
    assert!(all.invalidation_age.is_some() && all.pid_file.is_some());
    assert!(all.ssl.as_ref().unwrap().password.is_some());
    assert_eq!(all.storages.len(), 3);
    assert_eq!(all.log.outputs.len(), 1);
    let expected = Config {
        invalidation_age: all.invalidation_age,
        transaction_timeout: all.transaction_timeout,
        pid_file: all.pid_file.clone(),
        ssl: all.ssl.clone(),
        storages: all.storages.clone(),
        log: all.log.clone(),
        ..given
    };
    assert_eq!(all, expected);
}

#[test]
fn the_sample_of_a_node_is_a_configuration_and_shows_defaults() {
    // It is for two voters.
    let other = |line: &&str| !line.starts_with("arbiter ");
    let all: Vec<&str> = REPLICATED
        .lines()
        .filter_map(option)
        .filter(other)
        .collect();
    let (all, given) = (read(&all.join("\n")), read(REPLICATED));
    let (own, plain) = (
        all.standby.as_ref().unwrap(),
        given.standby.as_ref().unwrap(),
    );
    assert!(own.key.is_some() && plain.key.is_none());
    assert!(own.on_promote.is_some() && own.on_demote.is_some());
    assert!(own.backup_directory.is_some() && plain.backup_directory.is_none());
    assert!(own.witnesses.len() == 2 && own.ssl.is_some());
    assert_eq!(plain.journal.join("admin.sock"), plain.admin_socket);
    let expected = StandbyConfig {
        place: own.place.clone(),
        key: own.key.clone(),
        key_file: own.key_file.clone(),
        read_addresses: own.read_addresses.clone(),
        admin_address: own.admin_address.clone(),
        admin_socket: own.admin_socket.clone(),
        backup_directory: own.backup_directory.clone(),
        journal: own.journal.clone(),
        on_promote: own.on_promote.clone(),
        on_demote: own.on_demote.clone(),
        witnesses: own.witnesses.clone(),
        ssl: own.ssl.clone(),
        ..plain.clone()
    };
    assert_eq!(*own, expected);
    assert_eq!(all.invalidation_queue_size, given.invalidation_queue_size);
    let two = REPLICATED.replace("#arbiter", "arbiter");
    let two = read(&two.replace("voters alpha beta gamma", "voters alpha beta"));
    let two = two.standby.unwrap();
    assert_eq!(two.arbiter.unwrap().as_str(), "delta");
    assert_eq!(two.voters, plain.voters[..2]);
}

#[test]
fn the_sample_of_a_copy_is_a_configuration_and_shows_defaults() {
    let all: Vec<&str> = FOLLOW.lines().filter_map(option).collect();
    let (all, given) = (read(&all.join("\n")), read(FOLLOW));
    let ([all], [given]) = (&all.follow[..], &given.follow[..]) else {
        panic!("not one <follow>");
    };
    assert!(all.ssl.is_some() && given.ssl.is_none());
    let expected = FollowConfig {
        place: all.place.clone(),
        ssl: all.ssl.clone(),
        ..given.clone()
    };
    assert_eq!(*all, expected);
}

#[test]
fn the_sample_shows_every_option() {
    let samples = SAMPLE.lines().chain(REPLICATED.lines());
    let samples = samples.chain(FOLLOW.lines());
    let shown: Vec<&str> = samples
        .filter_map(option)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    // From the first section's function to that of <runner>, which is not for us, each key stands
    // first in a call or tuple.
    let schema: String = SCHEMA.split_whitespace().collect();
    let schema = schema
        .split("fnzeo(")
        .nth(1)
        .and_then(|text| text.split("fnrunner(").next());
    let standby: String = STANDBY.split_whitespace().collect();
    let standby = standby.split("fnfill(").nth(1);
    let standby = standby.and_then(|text| text.split("fncheck(").next());
    let follow: String = FOLLOWING.split_whitespace().collect();
    let follow = follow.split("fnfill(").nth(1);
    let follow = follow.and_then(|text| text.split("fncheck(").next());
    let mut keys = 0;
    let texts = schema.unwrap().split("(\"").skip(1);
    let texts = texts.chain(standby.unwrap().split("(\"").skip(1));
    for text in texts.chain(follow.unwrap().split("(\"").skip(1)) {
        let key = text.split('"').next().unwrap();
        assert!(shown.contains(&key), "{key}");
        keys += 1;
    }
    assert!(keys > 20, "only {keys} were found");
}

fn standbyd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_standbyd"))
        .args(arguments)
        .output()
        .expect("the binary was built")
}

#[test]
fn help_and_version_go_to_standard_output() {
    let help = standbyd(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .contains("Usage: standbyd -C FILE")
    );
    let version = standbyd(&["--version"]);
    let expected = format!("standbyd {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
}

#[test]
fn what_is_wrong_goes_to_standard_error_with_status_2() {
    let missing = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/no-such.conf");
    for (arguments, complaint) in [
        (&["--no-such-option"][..], "--no-such-option"),
        (&["-C"], "-C"),
        (&["-C", missing], "no-such.conf: cannot read"),
        (&["-a", "8100"], "-f is needed"),
        (&["-f", "no/such/Data.fs", "-a", "8100"], "no/such/Data.fs"),
    ] {
        let output = standbyd(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.starts_with("standbyd: ") && stderr.contains(complaint),
            "{stderr}"
        );
        assert!(output.stdout.is_empty());
    }
}
