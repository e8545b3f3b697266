//! `zeobench`: every workload runs against the real server, and every check bites: a stub that is
//! wrong in a known way is caught.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A directory for one test, gone when that ends.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("standby-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that says on standard error where it listens; ended with the test.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it says where it listens").unwrap();
            if let Some((_, address)) = line.split_once("listening on ") {
                break address.to_owned();
            }
        };
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address }
    }

    fn standbyd(place: &Place, encoding: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standbyd"));
        command
            .current_dir(&place.0)
            .args(["-a", "127.0.0.1:0", "-f", "Data.fs"]);
        command.env("ZEO_MSGPACK", if encoding == "M" { "1" } else { "" });
        command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        Self::start(&mut command)
    }

    fn stub(options: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeobench"));
        Self::start(command.args(["stub", "127.0.0.1:0"]).args(options))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn zeobench(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeobench"));
    command
        .args(line.split_whitespace())
        .arg("--no-progress")
        .output()
        .unwrap()
}

/// What it prints when all is well.
#[track_caller]
fn measured(line: &str) -> String {
    let output = zeobench(line);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// The value of a figure in a JSON text, the first of that name.
#[track_caller]
fn figure(json: &str, name: &str) -> f64 {
    let key = format!("\"{name}\": ");
    let (_, rest) = json
        .split_once(&key)
        .unwrap_or_else(|| panic!("no {name} in {json}"));
    let end = rest.find([',', '}']).unwrap();
    rest[..end].parse().unwrap()
}

const WORKLOADS: [(&str, &str); 8] = [
    ("loads --connections 3 --depth 4", "loads_count"),
    (
        "loads --distribution zipf --connections 1 --depth 1",
        "loads_p99_ms",
    ),
    (
        "commits --connections 3 --batch 5 --size 200,3000",
        "commits_count",
    ),
    (
        "mixed --connections 4 --depth 3 --writes 90",
        "commits_p50_ms",
    ),
    ("conflicts --connections 4 --hot 2", "commits_count"),
    ("fanout --connections 6", "fanout_p50_ms"),
    ("connect --count 20 --connections 5", "connects_count"),
    ("large --size 3000000", "stores_mb_per_second"),
];

#[test]
fn every_workload_runs_against_the_server_in_both_encodings() {
    for encoding in ["Z", "M"] {
        let place = Place::new(&format!("bench-{encoding}"));
        let server = Server::standbyd(&place, encoding);
        let address = &server.address;
        let pid = server.child.id();
        measured(&format!(
            "prepare {address} --objects 300 --size 150,1024,2000 --timeout 20"
        ));
        for (workload, name) in WORKLOADS {
            let json = measured(&format!(
                "{workload} --json --operations 9 --warmup 0 --timeout 20 --pid {pid} {address}"
            ));
            assert!(figure(&json, name) > 0.0, "{workload}: {json}");
            assert!(figure(&json, "server_resident_mb") > 1.0, "{json}");
        }
        // A second catalogue takes the place of the first.
        measured(&format!("prepare {address} --objects 5 --timeout 20"));
        measured(&format!(
            "commits {address} --connections 5 --operations 9 --timeout 20"
        ));
        let output = zeobench(&format!("commits {address} --connections 6 --duration 0.1"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn two_servers_are_compared_in_one_run() {
    let (a, b) = (Server::stub(&[]), Server::stub(&["--encoding", "Z"]));
    for server in [&a, &b] {
        measured(&format!(
            "prepare {} --objects 100 --timeout 20",
            server.address
        ));
    }
    let options = format!(
        "loads --compare {} {} --rounds 3 --operations 200 --warmup 0 --timeout 20",
        a.address, b.address
    );
    let json = measured(&format!("{options} --json"));
    let rates = json.matches("\"loads_per_second\": ").count();
    assert_eq!(
        rates,
        2 * (1 + 3) + 1,
        "medians, rounds and the ratio: {json}"
    );
    assert!(json.contains("\"ratios\": {"));
    let text = measured(&options);
    assert!(text.contains("B/A") && text.contains(&b.address), "{text}");
}

#[test]
fn a_wrong_server_is_caught() {
    let mixed = "mixed --connections 4 --writes 50";
    for (fault, workload, complaint) in [
        ("stale", mixed, "stale"),
        ("other", "loads", "has the state of"),
        ("damaged", "loads", "is damaged"),
        ("end", mixed, "has the end"),
        ("tid", mixed, "transaction"),
        // Noticed in another way if it was the last transaction.
        ("untold", mixed, "told of"),
        (
            "untold",
            "fanout --connections 11 --timeout 1",
            "have been told of it",
        ),
        ("partly", mixed, "an invalidation was lost"),
        ("order", mixed, "was told of transaction"),
        ("update", "conflicts --hot 1", "version"),
    ] {
        let stub = Server::stub(&["--fault", fault]);
        let address = &stub.address;
        measured(&format!("prepare {address} --objects 200 --timeout 20"));
        let line = format!("--operations 3000 --warmup 0 {address}");
        let output = zeobench(&format!("{workload} {line}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{fault}, {workload}: {stderr}"
        );
        assert!(
            stderr.contains("WRONG") && stderr.contains(complaint),
            "{fault}: {stderr}"
        );
        assert_eq!(output.stdout, b"", "{fault}: a wrong server has no figures");
    }
}

#[test]
fn a_server_that_hangs_or_is_not_there_ends_the_run() {
    let stub = Server::stub(&["--fault", "hang"]);
    measured(&format!(
        "prepare {} --objects 200 --timeout 20",
        stub.address
    ));
    let output = zeobench(&format!("loads {} --timeout 0.3", stub.address));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no answer"));
    let address = stub.address.clone();
    drop(stub);
    let output = zeobench(&format!("loads {address} --timeout 5"));
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn a_database_that_is_not_prepared_is_left_alone() {
    let stub = Server::stub(&[]);
    let output = zeobench(&format!("commits {}", stub.address));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("zeobench prepare"));
}

#[test]
fn a_unix_socket_will_do() {
    let place = Place::new("bench-unix");
    let path = place.0.join("stub.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeobench"));
    let stub = Server::start(command.arg("stub").arg(&path));
    measured(&format!(
        "prepare {} --objects 50 --timeout 20",
        stub.address
    ));
    let json = measured(&format!(
        "mixed {} --json --operations 100 --timeout 20",
        stub.address
    ));
    assert!(figure(&json, "loads_count") > 0.0);
}

#[test]
fn help_and_version_are_there() {
    for (line, text) in [
        ("--help", "Usage: zeobench COMMAND"),
        ("--version", "zeobench "),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeobench"));
        let output = command.arg(line).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(text));
    }
}
