//! `standbyctl` as a process: against a server that says what the test wants, and against the real
//! one.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use standby::admin::{
    Access, Answer, Asked, ComparisonReport, FindingReport, Http, Others, Page, Refused, Refusing,
    Report, Status, StorageReport, What,
};

const STATUS: &str = include_str!("data/admin/status.json");
const SCREEN: &str = include_str!("data/admin/screen.txt");

/// A directory for one test, gone when that ends.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("standbyctl-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Runs `standbyctl` there.
    fn ctl(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standbyctl"));
        command.current_dir(&self.0).env("TZ", "UTC");
        command.env_remove("STANDBY_CONF").stdin(Stdio::null());
        command.args(line.split_whitespace()).output().unwrap()
    }

    /// A server at the socket `s` that takes one connection, gives each request to `respond`, and
    /// sends what that returns. It ends with the connection.
    fn serve(&self, respond: impl Fn(&What) -> Vec<u8> + Send + 'static) -> JoinHandle<Vec<What>> {
        let listener = UnixListener::bind(self.0.join("s")).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut http = Http::new(Access::All);
            let mut seen = Vec::new();
            let mut buf = [0; 4096];
            loop {
                let len = stream.read(&mut buf).unwrap();
                http.receive(&buf[..len]);
                if let Some(Asked { what, .. }) = http.poll() {
                    stream.write_all(&respond(&what)).unwrap();
                    seen.push(what);
                    return seen;
                }
                if len == 0 {
                    return seen;
                }
            }
        })
    }

    /// As [`Self::serve`], with an answer of ours.
    fn answer(&self, answer: Answer) -> JoinHandle<Vec<What>> {
        self.serve(move |_| {
            let mut http = Http::new(Access::All);
            http.receive(b"GET /status HTTP/1.0\r\n\r\n");
            let asked = http.poll().unwrap();
            http.answer(asked.id, &answer);
            std::mem::take(http.output()).into_bytes().to_vec()
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn example() -> Answer {
    let status: Status = serde_json::from_str(STATUS).unwrap();
    Page::Status.answer(&status)
}

#[test]
fn the_status_is_shown_on_a_screen_or_in_json() {
    // Where it is no terminal no line is folded.
    let unfolded = SCREEN.replace("\n  (10.0.0.3", " (10.0.0.3");
    assert_ne!(unfolded, SCREEN);
    for (line, expected) in [
        ("--socket ./s status", &*unfolded),
        ("--socket ./s status --json", STATUS),
    ] {
        let place = Place::new("screen");
        let server = place.answer(example());
        let output = place.ctl(line);
        assert_eq!(out(&output), expected);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(server.join().unwrap(), [What::Get(Page::Status)]);
    }
}

#[test]
fn a_status_is_watched_until_nobody_reads_it() {
    let place = Place::new("watch");
    let server = place.answer(example());
    let mut command = Command::new(env!("CARGO_BIN_EXE_standbyctl"));
    command.current_dir(&place.0).env("TZ", "UTC");
    command.args(["--socket", "./s", "status", "--watch", "0.1"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // No screen is cleared where there is none.
    assert_eq!(lines.next().unwrap().unwrap(), "");
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("group plone"), "{first}");
    server.join().unwrap();
    // The server is gone, which is shown, and does not end it.
    assert!(lines.any(|line| line.unwrap().contains("no answer of ./s")));
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn nothing_but_json_is_among_the_json() {
    let place = Place::new("watch-json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_standbyctl"));
    command.current_dir(&place.0);
    command.args(["--socket", "./s", "status", "--json", "--watch", "0.1"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
    for _ in 0..2 {
        assert!(told.next().unwrap().unwrap().contains("no answer of ./s"));
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(out(&output), "");
}

#[test]
fn a_command_is_given_and_its_end_is_told() {
    let place = Place::new("done");
    let server = place.answer(Answer::done("beta is primary now"));
    let output = place.ctl("--socket ./s swap beta");
    assert_eq!(out(&output), "beta is primary now\n");
    assert_eq!(output.status.code(), Some(0));
    let asked = server.join().unwrap();
    let beta = standby::ids::NodeId::new("beta");
    let swap = standby::admin::Command::Swap { to: beta };
    assert_eq!(asked, [What::Post(swap)]);
}

#[test]
fn refusals_have_their_exit_status() {
    let refused = |reason, primary: Option<&str>| {
        Answer::refused(&Refused {
            error: "no".to_owned(),
            reason,
            primary: primary.map(str::to_owned),
        })
    };
    for (answer, code, message) in [
        (
            refused(Refusing::Conflict, None),
            1,
            "standbyctl: swap: no\n",
        ),
        (
            refused(Refusing::NotOffered, None),
            1,
            "standbyctl: swap: no\n",
        ),
        (
            refused(Refusing::NotPrimary, Some("beta")),
            4,
            "standbyctl: swap: no; beta is: give the command there\n",
        ),
        (
            refused(Refusing::NotPrimary, None),
            4,
            "standbyctl: swap: no; nobody is known to be: look at the status\n",
        ),
    ] {
        let place = Place::new("refused");
        let server = place.answer(answer);
        let output = place.ctl("--socket ./s swap");
        assert_eq!(
            (output.status.code(), err(&output).as_str()),
            (Some(code), message)
        );
        assert!(output.stdout.is_empty());
        server.join().unwrap();
    }
}

/// The fields of the answer are for programs: they stay as they are.
#[test]
fn what_verify_has_found_is_a_text_or_json_and_an_exit_status() {
    let report = |well| Report {
        well,
        node: "alpha".to_owned(),
        storages: vec![StorageReport {
            name: "1".to_owned(),
            through: "000000000000000a".to_owned(),
            bytes: 1000,
            transactions: 4,
            records: 7,
            objects: 5,
            references: 3,
            blobs: 1,
            counts: if well {
                [].into()
            } else {
                [("blobs".to_owned(), 11)].into()
            },
            findings: (!well)
                .then(|| FindingReport {
                    check: "blobs".to_owned(),
                    tid: Some("0000000000000009".to_owned()),
                    oid: Some("0000000000000003".to_owned()),
                    text: "x.blob is missing".to_owned(),
                })
                .into_iter()
                .collect(),
            error: None,
            comparisons: vec![ComparisonReport {
                node: "beta".to_owned(),
                through: "0000000000000008".to_owned(),
                transactions: 3,
                blobs: 1,
                differences: Vec::new(),
                is_cut: false,
                thinned: Some(("0000000000000001".to_owned(), "0000000000000002".to_owned())),
                error: None,
            }],
        }],
    };
    let head = "storage 1 up to 000000000000000a: 1000 bytes, 4 transactions, 7 records, \
                5 objects, 3 references, 1 blobs\n";
    let found = "  blobs: 11 found\n    transaction 0000000000000009, object 0000000000000003: \
                 x.blob is missing\n";
    let compared = "  beta, up to 0000000000000008: 3 transactions and 1 blobs are the same\n  \
                    beta: from 0000000000000001 to 0000000000000002 nothing could be compared: one \
                    node may have packed it and the other one not\n";
    for (well, code, text) in [
        (true, 0, format!("{head}{compared}all is well\n")),
        (
            false,
            6,
            format!("{head}{found}{compared}not all is well\n"),
        ),
    ] {
        for json in [false, true] {
            let place = Place::new("verify");
            let server = place.answer(Answer::report(report(well)));
            let flag = if json { "--json" } else { "" };
            let output = place.ctl(&format!("--socket ./s verify 1 --with beta {flag}"));
            assert_eq!(output.status.code(), Some(code), "{}", err(&output));
            match json {
                false => assert_eq!(out(&output), text),
                true => {
                    let shown: Report = serde_json::from_slice(&output.stdout).unwrap();
                    assert_eq!(shown, report(well));
                }
            }
            let with = Others::One(standby::ids::NodeId::new("beta").unwrap());
            let verify = standby::admin::Command::Verify {
                storage: Some("1".to_owned()),
                with,
                rate: None,
            };
            assert_eq!(server.join().unwrap(), [What::Post(verify)]);
        }
    }
}

#[test]
fn a_command_without_an_answer_has_ended_nobody_knows_how() {
    for half in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal"] {
        let place = Place::new("half");
        let server = place.serve(move |_| half.to_vec());
        let output = place.ctl("--socket ./s swap");
        assert_eq!(output.status.code(), Some(5), "{}", err(&output));
        assert!(err(&output).contains("nobody knows how the command ended"));
        server.join().unwrap();
    }
    // A question may be asked again.
    let place = Place::new("half-page");
    let server = place.serve(|_| b"banana\r\n".to_vec());
    let output = place.ctl("--socket ./s status");
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
    server.join().unwrap();
}

#[test]
fn what_cannot_be_is_said_without_a_server() {
    let place = Place::new("none");
    for (line, code, message) in [
        ("--socket ./s status", 3, "no answer of ./s: "),
        ("--socket ./s swap", 3, "no answer of ./s: "),
        ("status", 2, "which node?"),
        ("--address localhost:1 swap", 2, "at the Unix socket only"),
        (
            "--address 31013 status",
            2,
            "--address: 31013 is not HOST:PORT",
        ),
        ("--socket ./s dance", 2, "no command dance"),
        ("-C no.conf status", 2, "no.conf: cannot read"),
    ] {
        let output = place.ctl(line);
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(err(&output).starts_with("standbyctl: "));
        assert!(err(&output).contains(message), "{}", err(&output));
    }
    fs::write(
        place.0.join("plain.conf"),
        "<zeo>\naddress 1\n</zeo>\n<mappingstorage/>\n",
    )
    .unwrap();
    let output = place.ctl("-C plain.conf status");
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("there is no <standby>"));
    assert!(out(&place.ctl("--help")).contains("member role NODE voter|observer|arbiter"));
}

/// A server, killed at the end.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_tells_how_it_is() {
    let place = Place::new("real");
    let text = "<zeo>\naddress ./zeo.sock\n</zeo>\n<filestorage>\npath Data.fs\n</filestorage>\n\
                <standby>\nnode alpha\ngroup plone\ndaemon loopback\nsite paris\n\
                admin-address 127.0.0.1:0\nbackup-directory backups\n</standby>\n";
    fs::write(place.0.join("zeo.conf"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_standbyd"));
    command.current_dir(&place.0).env_remove("RUST_LOG");
    command.args(["-C", "zeo.conf"]).stderr(Stdio::piped());
    let mut server = Server(command.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let mut address = String::new();
    for line in lines.by_ref().map(Result::unwrap) {
        if let Some((_, found)) = line.split_once("status at 127") {
            address = format!("127{found}");
        }
        if line.contains("listening on") {
            break;
        }
    }
    // It writes on, which nobody has to wait for.
    thread::spawn(move || lines.for_each(drop));
    let shown = place.ctl("-C zeo.conf status");
    assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
    assert!(out(&shown).starts_with("group plone   node alpha   site paris"));
    let status = || -> Status {
        let by_tcp = place.ctl(&format!("--address {address} status --json"));
        serde_json::from_slice(&by_tcp.stdout).unwrap()
    };
    // A group of one founds itself, as soon as there is one.
    let mut tries = 0..200;
    while status().primary.is_none() && tries.next().is_some() {
        thread::sleep(Duration::from_millis(50));
    }
    let status = status();
    assert_eq!(
        (&status.node[..], &status.voters[..]),
        ("alpha", &["alpha".to_owned()][..])
    );
    works(&place, &address);
}

#[test]
fn an_arbiter_does_nothing_for_data_that_it_has_not() {
    let place = Place::new("arbiter");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer_address = taken.local_addr().unwrap();
    // No daemon is there, and none is waited for.
    let text = format!(
        "<standby>\nnode arb\ngroup plone\nrole arbiter\njournal j\nvoters b c\narbiter arb\n\
         daemon spread ./no.sock\npeer-address {peer_address}\n</standby>\n"
    );
    fs::write(place.0.join("zeo.conf"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_standbyd"));
    command.current_dir(&place.0).env_remove("RUST_LOG");
    command.args(["-C", "zeo.conf"]).stderr(Stdio::piped());
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
    let expected = format!("peer-address {peer_address}: Address already in use");
    assert!(err(&refused).contains(&expected), "{}", err(&refused));
    assert!(!place.0.join("j").exists());

    drop(taken);
    let mut server = Server(command.spawn().unwrap());
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let is_ready = |line: &String| line.contains("status at");
    assert!(
        lines
            .by_ref()
            .map(Result::unwrap)
            .any(|line| is_ready(&line))
    );
    thread::spawn(move || lines.for_each(drop));
    for (line, code, message) in [
        ("verify", 1, "verify: arb is an arbiter, and has no data"),
        ("verify --all", 1, "arb is an arbiter, and has no data"),
        ("drain", 1, "drain: arb is an arbiter, and has no data"),
        (
            "pack",
            4,
            "pack: packs are ordered at the primary; nobody is known",
        ),
    ] {
        let refused = place.ctl(&format!("-C zeo.conf {line}"));
        assert_eq!(
            refused.status.code(),
            Some(code),
            "{line}: {}",
            out(&refused)
        );
        assert!(err(&refused).contains(message), "{line}: {}", err(&refused));
    }
}

/// What a node of a group of one does, and what it does not.
fn works(place: &Place, address: &str) {
    let ctl = |line: &str| place.ctl(&format!("--socket standby/admin.sock {line}"));
    let verified = ctl("verify --all");
    assert_eq!(verified.status.code(), Some(0), "{}", err(&verified));
    assert!(
        out(&verified).ends_with("\nall is well\n"),
        "{}",
        out(&verified)
    );
    for (line, message) in [
        ("drain", "it is primary, and no other node could be"),
        ("verify main", "there is no storage main"),
        (
            "verify --with beta",
            "beta is not another node that is here",
        ),
        (
            "verify --with alpha",
            "alpha is not another node that is here",
        ),
        ("backup now --to /etc/b", "is not in the backup-directory"),
        ("backup now --to b", "cannot create"),
        ("fetch", "alpha is the primary: 'standbyctl swap' first"),
    ] {
        let refused = ctl(line);
        assert_eq!(refused.status.code(), Some(1), "{line}: {}", out(&refused));
        assert!(err(&refused).contains(message), "{line}: {}", err(&refused));
    }
    fs::create_dir(place.0.join("backups")).unwrap();
    let done = ctl("backup now --to b");
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    let copied = fs::read(place.0.join("backups/b")).unwrap();
    assert!(
        fs::read(place.0.join("Data.fs"))
            .unwrap()
            .starts_with(&copied)
    );
    let packed = ctl("pack");
    let told = out(&packed);
    assert!(
        told.starts_with("storage 1: to be packed\nstorage 1: alpha "),
        "{told}"
    );
    let undone = ctl("drain --undo");
    assert_eq!(out(&undone), "alpha does not drain\n");
    let by_tcp = place.ctl(&format!("--address {address} verify"));
    assert_eq!(by_tcp.status.code(), Some(2));
}
