//! Members of a group at a daemon: the real `groupd` as a process, and members with all that
//! `standbyd` has of them; `standbyd` itself at the end.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

#[path = "../benches/group/member.rs"]
mod member;

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use member::{Commands, Member};

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory for one test, gone when that ends.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("standby-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process, killed at the end.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts a program, and reads what it says on one of its outputs.
    fn start(mut command: Command, reads_errors: bool) -> Self {
        let (out, err) = match reads_errors {
            true => (Stdio::null(), Stdio::piped()),
            false => (Stdio::piped(), Stdio::null()),
        };
        let mut child = command.stdout(out).stderr(err).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let read = move |output: &mut dyn BufRead| {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        thread::spawn(move || match (stdout, stderr) {
            (Some(out), _) => read(&mut BufReader::new(out)),
            (_, Some(err)) => read(&mut BufReader::new(err)),
            _ => {}
        });
        Self { child, lines }
    }

    /// Waits for a line that contains this.
    fn wait(&self, text: &str) -> String {
        let mut seen = Vec::new();
        let deadline = now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("no {text:?} after\n{}", seen.join("\n")),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The most memory that it ever had, in bytes.
    fn peak_memory(&self) -> u64 {
        peak_memory(&self.child.id().to_string())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn peak_memory(pid: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

/// A groupd with some daemons, each at a Unix socket of its name.
fn groupd(place: &Place, daemons: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groupd"));
    for name in daemons {
        command.args(["--daemon", &format!("{name}={}", place.path(name))]);
    }
    command.args(["--control", &place.path("control")]);
    let process = Process::start(command, false);
    process.wait("ready");
    process
}

fn tell(place: &Place, command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_groupd"))
        .args(["--tell", &place.path("control"), command])
        .output()
        .unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command}: {answer}");
    answer
}

/// A member in a thread.
struct Node {
    commands: Commands,
    lines: Receiver<Value>,
    thread: Option<thread::JoinHandle<()>>,
    name: String,
    /// It has said that it lost the daemon.
    lost: Cell<bool>,
}

impl Node {
    fn start(name: &str, daemon: &str, rest: &[&str]) -> Self {
        static SEQUENCE: AtomicU64 = AtomicU64::new(1);
        let mut lines = vec![
            format!("node {name}"),
            "group test".to_owned(),
            format!("daemon {daemon}"),
        ];
        lines.extend(rest.iter().map(|line| (*line).to_owned()));
        let config = member::config(lines).unwrap();
        let sequence = SEQUENCE.fetch_add(1 << 32, Ordering::Relaxed);
        let (mut member, commands) = Member::new(&config, now(), sequence).unwrap();
        let (sender, lines) = mpsc::channel();
        let thread = thread::spawn(move || {
            let say = |line: &str| sender.send(serde_json::from_str(line).unwrap()).is_ok();
            member.run(say).unwrap();
        });
        Self {
            commands,
            lines,
            thread: Some(thread),
            name: name.to_owned(),
            lost: Cell::new(false),
        }
    }

    fn at(place: &Place, name: &str, daemon: &str) -> Self {
        let node = Self::start(name, &format!("spread {}", place.path(daemon)), &[]);
        node.give("quiet");
        node
    }

    fn give(&self, command: &str) {
        self.commands.give(command);
    }

    /// Waits for a line of this event for which `is_it` holds.
    fn wait(&self, event: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Vec::new();
        let deadline = now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    assert_ne!(line["event"], "bad", "{}: {line}", self.name);
                    let is_lost = line["event"] == "lost";
                    self.lost.set(self.lost.get() | is_lost);
                    if line["event"] == event && is_it(&line) {
                        return line;
                    }
                    seen.push(line.to_string());
                }
                Err(_) => panic!("{}: no {event} after\n{}", self.name, seen.join("\n")),
            }
        }
    }

    /// Waits for a view with so many members.
    fn view_of(&self, count: usize) -> Value {
        self.wait("view", |view| {
            view["members"].as_array().unwrap().len() == count
        })
    }

    /// Waits until all of a view have said who they are.
    fn nodes(&self, names: &[&str]) {
        self.wait("roster", |roster| {
            let nodes = roster["nodes"].as_array().unwrap();
            nodes.len() == names.len() && names.iter().all(|it| nodes.contains(&(*it).into()))
        });
    }

    fn status(&self) -> Value {
        self.give("status");
        self.wait("status", |_| true)
    }

    /// Waits until it has got so many messages.
    fn has(&self, count: u64) -> Value {
        let deadline = now() + PATIENCE;
        loop {
            let status = self.status();
            if status["count"].as_u64().unwrap() >= count {
                return status;
            }
            assert!(now() < deadline, "{}: {status}", self.name);
            thread::yield_now();
        }
    }

    /// Whether it had lost the daemon, up to the last line that was waited for.
    fn was_lost(&self) -> bool {
        self.lost.get()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.give("quit");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a member has a clock")]
fn now() -> Instant {
    Instant::now()
}

#[test]
fn members_at_three_daemons_get_the_same_in_the_same_order() {
    let place = Place::new("group-order");
    let _groupd = groupd(&place, &["d1", "d2", "d3"]);
    let names = ["alpha", "beta", "gamma"];
    let nodes: Vec<Node> = names
        .iter()
        .zip(["d1", "d2", "d3"])
        .map(|(name, daemon)| Node::at(&place, name, daemon))
        .collect();
    for node in &nodes {
        node.nodes(&names);
    }
    for node in &nodes {
        for lane in ["bulk", "commit", "control"] {
            // Some of one fragment, some of many.
            node.give(&format!("send {lane} 100 200"));
            node.give(&format!("send {lane} 400000 5"));
        }
    }
    let all = 3 * 3 * 205;
    let status: Vec<Value> = nodes.iter().map(|node| node.has(all)).collect();
    for status in &status {
        assert_eq!(status["count"], all);
        assert_eq!(status["bad"], 0);
        assert_eq!(status["order"], self::first(&nodes, "order"));
        assert_eq!(
            (&status["refused"], &status["dropped"]),
            (&0.into(), &0.into())
        );
    }
}

fn first(nodes: &[Node], key: &str) -> Value {
    nodes[0].status()[key].clone()
}

#[test]
fn a_partition_and_its_end_are_views() {
    let place = Place::new("group-partition");
    let _groupd = groupd(&place, &["d1", "d2", "d3"]);
    let alpha = Node::at(&place, "alpha", "d1");
    let beta = Node::at(&place, "beta", "d2");
    let gamma = Node::at(&place, "gamma", "d3");
    for node in [&alpha, &beta, &gamma] {
        node.nodes(&["alpha", "beta", "gamma"]);
    }
    tell(&place, "partition d1 d2,d3");
    alpha.wait("transitional", |_| true);
    alpha.nodes(&["alpha"]);
    let view = beta.view_of(2);
    assert_eq!(view["together"], view["members"]);
    beta.nodes(&["beta", "gamma"]);
    gamma.nodes(&["beta", "gamma"]);
    alpha.give("send commit 100 7");
    beta.give("send commit 100 5");
    assert_eq!(alpha.has(7)["count"], 7);
    assert_eq!(gamma.has(5)["count"], 5);
    tell(&place, "merge");
    let view = alpha.view_of(3);
    assert_eq!(view["together"].as_array().unwrap().len(), 1);
    for node in [&alpha, &beta, &gamma] {
        node.nodes(&["alpha", "beta", "gamma"]);
    }
    beta.give("send commit 100 1");
    assert_eq!(alpha.has(8)["count"], 8);
    // The other side's messages are never made up for.
    assert_eq!(gamma.has(6)["count"], 6);
}

#[test]
fn who_was_kicked_comes_back_by_itself() {
    let place = Place::new("group-kick");
    let groupd = groupd(&place, &["d1", "d2"]);
    let alpha = Node::at(&place, "alpha", "d1");
    let beta = Node::at(&place, "beta", "d2");
    alpha.nodes(&["alpha", "beta"]);
    beta.nodes(&["alpha", "beta"]);
    tell(&place, "kick beta");
    beta.wait("lost", |_| true);
    assert!(beta.was_lost() && !alpha.was_lost());
    alpha.view_of(1);
    beta.nodes(&["alpha", "beta"]);
    alpha.nodes(&["alpha", "beta"]);
    // And so does everybody when the daemons are back.
    drop(groupd);
    alpha.wait("lost", |_| true);
    beta.wait("lost", |_| true);
    let _groupd = self::groupd(&place, &["d1", "d2"]);
    alpha.nodes(&["alpha", "beta"]);
    beta.nodes(&["alpha", "beta"]);
    alpha.give("send commit 100 3");
    assert_eq!(beta.has(3)["bad"], 0);
}

/// A daemon that hangs says nothing at all. The member notices by itself, and gives it up; as the
/// daemon still has its name, it takes another one.
#[test]
fn a_daemon_that_hangs_is_given_up() {
    let place = Place::new("group-hang");
    let _groupd = groupd(&place, &["d1"]);
    let alpha = Node::at(&place, "alpha", "d1");
    let beta = Node::at(&place, "beta", "d1");
    alpha.nodes(&["alpha", "beta"]);
    beta.nodes(&["alpha", "beta"]);
    tell(&place, "stall beta");
    let lost = beta.wait("lost", |_| true);
    assert!(
        lost["why"].as_str().unwrap().contains("nothing comes back"),
        "{lost}"
    );
    // The session that hangs is a member of the view, still; it does not say who it is.
    let view = beta.view_of(3);
    assert_ne!(view["me"], "#beta#d1");
    tell(&place, "kick #beta#d1");
    beta.nodes(&["alpha", "beta"]);
    alpha.nodes(&["alpha", "beta"]);
}

#[test]
fn a_flood_gets_nobody_kicked() {
    let place = Place::new("group-flood");
    let _groupd = groupd(&place, &["d1", "d2", "d3"]);
    let names = ["alpha", "beta", "gamma"];
    let nodes: Vec<Node> = names
        .iter()
        .zip(["d1", "d2", "d3"])
        .map(|(name, daemon)| Node::at(&place, name, daemon))
        .collect();
    for node in &nodes {
        node.nodes(&names);
    }
    // A greeting may have been, when one view followed another at once.
    let given_up: Vec<Value> = nodes
        .iter()
        .map(|node| node.status()["given_up"].clone())
        .collect();
    for node in &nodes {
        node.give("send commit 90000 1000");
        node.give("send control 20 20000");
    }
    for (node, given_up) in nodes.iter().zip(given_up) {
        let status = node.has(3 * 21_000);
        assert_eq!(status["bad"], 0);
        assert_eq!(status["given_up"], given_up);
        assert!(!node.was_lost());
    }
}

#[test]
fn a_message_of_a_gigabyte_takes_no_memory() {
    let place = Place::new("group-gigabyte");
    let groupd = groupd(&place, &["d1", "d2"]);
    let alpha = Node::at(&place, "alpha", "d1");
    let beta = Node::at(&place, "beta", "d2");
    let server = standbyd(&place, "gamma", "d2");
    for node in [&alpha, &beta] {
        node.nodes(&["alpha", "beta", "gamma"]);
    }
    server.wait("here are alpha");
    alpha.give("long bulk 1073741824");
    // Behind it, and not for long.
    alpha.give("send control 100 5");
    assert_eq!(beta.has(5)["count"], 5);
    for node in [&alpha, &beta] {
        let long = node.wait("long", |_| true);
        assert_eq!(
            (&long["len"], &long["whole"]),
            (&1_073_741_824_u64.into(), &true.into())
        );
    }
    for process in [&groupd, &server] {
        let peak = process.peak_memory();
        assert!(peak < 64 << 20, "{peak} bytes");
    }
}

#[test]
fn who_has_another_key_is_not_heard() {
    let place = Place::new("group-key");
    let _groupd = groupd(&place, &["d1"]);
    let daemon = format!("spread {}", place.path("d1"));
    let key = place.file("key", "0123456789abcdef0123456789abcdef\n");
    let other = place.file("other", "another secret of many letters\n");
    let with = |name: &str, key: &str| Node::start(name, &daemon, &[&format!("key-file {key}")]);
    let (alpha, beta) = (with("alpha", &key), with("beta", &key));
    alpha.nodes(&["alpha", "beta"]);
    beta.nodes(&["alpha", "beta"]);
    let mallory = with("mallory", &other);
    let naive = Node::start("naive", &daemon, &[]);
    for node in [&alpha, &beta, &mallory, &naive] {
        node.view_of(4);
        node.give("quiet");
    }
    for node in [&mallory, &naive] {
        node.give("send commit 100 50");
        assert_eq!(node.has(50)["count"], 50, "its own");
    }
    alpha.give("send commit 100 50");
    assert_eq!(beta.has(50)["count"], 50);
    let status = alpha.has(50);
    assert_eq!(status["count"], 50);
    assert!(status["refused"].as_u64().unwrap() >= 100, "{status}");
}

/// Starts a server that is a member of the group.
fn standbyd(place: &Place, node: &str, daemon: &str) -> Process {
    // Free, unless somebody takes it at this moment.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let port = port.unwrap().port();
    let config = place.file(
        &format!("{node}.conf"),
        &format!(
            "<zeo>\naddress {}\n</zeo>\n<filestorage>\npath {}\n</filestorage>\n\
             <standby>\nnode {node}\ngroup test\ndaemon spread {}\n\
             journal {}\npeer-address 127.0.0.1:{port}\n</standby>\n",
            place.path(&format!("{node}.zeo")),
            place.path(&format!("{node}.fs")),
            place.path(daemon),
            place.path(&format!("{node}.journal")),
        ),
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_standbyd"));
    command.env_remove("RUST_LOG").args(["-C", &config]);
    Process::start(command, true)
}

#[test]
fn servers_find_each_other() {
    let place = Place::new("group-servers");
    let groupd = groupd(&place, &["d1", "d2"]);
    let alpha = standbyd(&place, "alpha", "d1");
    alpha.wait("here are alpha");
    let beta = standbyd(&place, "beta", "d2");
    let both = |server: &Process| {
        server.wait(", beta (version");
    };
    both(&alpha);
    both(&beta);
    tell(&place, "kick beta");
    alpha.wait("(a disconnect)");
    both(&alpha);
    both(&beta);
    drop(groupd);
    assert!(
        Path::new(&place.path("beta.zeo")).exists(),
        "it goes on serving"
    );
    let _groupd = self::groupd(&place, &["d1", "d2"]);
    both(&beta);
    // Who stops says good-bye.
    beta.signal(Signal::TERM);
    beta.wait("stopped");
    alpha.wait("(a leave)");
}
