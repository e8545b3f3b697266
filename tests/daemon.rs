//! A server beside a daemon that is not there, or misbehaves, ten thousand times in a row: it takes
//! no more descriptors, threads or memory than the first time, and does not fill the log.
//!
//! The clock is the test's own, so that all this takes seconds; the sockets are real.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

#[path = "../benches/group/member.rs"]
#[allow(dead_code, reason = "only its configuration is of use here")]
mod member;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use mio::{Events, Poll, Token, Waker};
use standby::group::channel::Incoming;
use standby::group::spread::wire::{
    Accept, AuthList, Dialect, Endian, Frame, GroupId, METHOD_NULL, Membership, MessageType, Name,
    Version,
};
use standby::ids::NodeId;
use standby::node::roster::{Peer, Roster};
use standby::reactor::daemon::Daemon;

/// Connections of each kind of misbehaviour.
const TIMES: usize = 10_000;

/// Counts lines.
struct Lines(AtomicUsize);

static LINES: Lines = Lines(AtomicUsize::new(0));

impl Log for Lines {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _record: &Record<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self) {}
}

/// Our side of a daemon, with a clock that is moved by hand.
struct Node {
    poll: Poll,
    events: Events,
    daemon: Daemon,
    roster: Roster,
    now: Instant,
    views: usize,
    lost: usize,
}

impl Node {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn new(daemon: &str) -> Self {
        let lines = ["node alpha", "group test", &format!("daemon {daemon}")];
        let config = member::config(lines.map(str::to_owned).to_vec()).unwrap();
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let now = Instant::now();
        let daemon = Daemon::new(&config, poll.registry(), Token(1), &waker, 1, now).unwrap();
        Self {
            poll,
            events: Events::with_capacity(16),
            daemon,
            roster: Roster::new(Peer::blank(
                NodeId::new("alpha").unwrap(),
                1,
                "0".to_owned(),
            )),
            now,
            views: 0,
            lost: 0,
        }
    }

    /// A turn of a reactor. Returns whether there was anything to do.
    fn turn(&mut self) -> bool {
        self.poll
            .poll(&mut self.events, Some(Duration::ZERO))
            .unwrap();
        let mut busy = false;
        for event in &self.events {
            busy = true;
            if event.token() == Token(1) {
                self.daemon.on_ready(event);
            }
        }
        busy |= self.daemon.turn(self.now);
        while let Some(incoming) = self.daemon.poll_incoming() {
            self.roster.on_incoming(&incoming, self.daemon.channel());
            self.views += usize::from(matches!(incoming, Incoming::View(_)));
            self.lost += usize::from(matches!(incoming, Incoming::Lost(_)));
        }
        busy | self.daemon.flush(self.now)
    }

    /// Lets time pass up to the next deadline.
    fn wait(&mut self) {
        let deadline = self.daemon.deadline().expect("it tries again");
        self.now = self.now.max(deadline);
        self.daemon.on_deadline(self.now);
    }
}

/// What a daemon does to those who connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Closes,
    SaysNothing,
    SaysNonsense,
    /// After the handshake.
    Leaves,
    /// When it has made us a member.
    KicksAtOnce,
}

struct BadDaemon {
    listener: UnixListener,
    manner: Manner,
    connection: Option<(UnixStream, usize)>,
    accepted: usize,
}

impl BadDaemon {
    /// Returns whether it has done anything.
    fn act(&mut self) -> bool {
        if let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            self.accepted += 1;
            self.connection = Some((stream, 0));
            return true;
        }
        let Some((mut stream, step)) = self.connection.take() else {
            return false;
        };
        let mut buf = [0; 1024];
        match (self.manner, step) {
            (Manner::Closes, _) => return true,
            (Manner::SaysNonsense, _) => {
                let nonsense: Vec<u8> = (0..997_u32).map(|n| ((n * n) >> 3) as u8).collect();
                let _ = stream.write_all(&nonsense);
                return true;
            }
            _ => {}
        }
        match stream.read(&mut buf) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.connection = Some((stream, step));
                return false;
            }
            Ok(0) | Err(_) => return true,
            Ok(_) if self.manner == Manner::SaysNothing => {}
            Ok(_) => match step {
                0 => stream
                    .write_all(&AuthList::new(&[METHOD_NULL]).encode())
                    .unwrap(),
                1 => stream.write_all(&accept()).unwrap(),
                _ => {
                    if self.manner == Manner::KicksAtOnce {
                        stream.write_all(&view()).unwrap();
                    }
                    return true;
                }
            },
        }
        self.connection = Some((stream, step + 1));
        true
    }
}

fn private() -> Name {
    Name::private(b"alpha", b"d1").unwrap()
}

fn accept() -> Vec<u8> {
    let accept = Accept {
        version: Version::OURS,
        private_name: private(),
    };
    accept.encode(Dialect::Full)
}

fn view() -> Vec<u8> {
    let membership = Membership {
        id: GroupId([0x7f00_0001, 5, 1]),
        sets: vec![vec![private()]],
        own: 0,
    };
    let group = Name::new(b"test").unwrap();
    let cause = MessageType::CAUSED_BY_JOIN;
    Frame::new_view(Endian::Little, group, cause, &[private()], &membership).encode()
}

/// Descriptors, threads and kilobytes of this process.
fn held() -> (usize, usize, usize) {
    let count = |path| fs::read_dir(path).unwrap().count();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let rss = status.lines().find(|it| it.starts_with("VmRSS")).unwrap();
    let rss = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    (count("/proc/self/fd"), count("/proc/self/task"), rss)
}

/// Lines that may be logged in so much time.
fn lines_max(time: Duration) -> usize {
    // Two a minute, and some when it begins.
    10 + time.as_secs() as usize / 30
}

fn check(what: &str, first: (usize, usize, usize), lines_max: usize) {
    let (descriptors, threads, kilobytes) = held();
    let lines = LINES.0.swap(0, Ordering::Relaxed);
    println!("{what}: {first:?} {descriptors} {threads} {kilobytes} KB, {lines} lines");
    assert!(
        descriptors <= first.0 + 2,
        "{what}: {descriptors} open files"
    );
    assert!(threads <= first.1 + 1, "{what}: {threads} threads");
    assert!(kilobytes < first.2 + 4096, "{what}: {kilobytes} KB");
    assert!(lines <= lines_max, "{what}: {lines} lines");
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_bad_daemon_costs_nothing_however_often_it_is_tried() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Info);
    let directory = std::env::temp_dir().join(format!("standby-{}-daemon", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let directory = Directory(directory);
    for manner in [
        Manner::Closes,
        Manner::SaysNothing,
        Manner::SaysNonsense,
        Manner::Leaves,
        Manner::KicksAtOnce,
    ] {
        let path = directory.0.join(format!("{manner:?}"));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut daemon = BadDaemon {
            listener,
            manner,
            connection: None,
            accepted: 0,
        };
        let mut node = Node::new(&format!("spread {}", path.display()));
        let begun = node.now;
        let mut first = held();
        while daemon.accepted < TIMES {
            let busy = node.turn() | daemon.act();
            if !busy {
                node.wait();
            }
            if daemon.accepted == 10 {
                first = held();
            }
        }
        if manner == Manner::KicksAtOnce {
            assert!(node.views >= TIMES - 1 && node.lost >= TIMES - 1);
        }
        let time = node.now - begun;
        assert!(time > Duration::from_secs(2 * TIMES as u64), "it rests");
        // The end of a view is said each time; that it comes back is not.
        let views = node.views;
        check(&format!("{manner:?}"), first, lines_max(time) + views);
    }
    a_name_is_looked_up_by_one_thread();
}

/// However long that takes, and however often it is wanted.
fn a_name_is_looked_up_by_one_thread() {
    let (_, threads, _) = held();
    // A name that there never is (RFC 2606).
    let mut node = Node::new("spread 4803@standby.invalid");
    for _ in 0..1000 {
        if !node.turn() {
            node.wait();
        }
        assert!(held().1 <= threads + 1);
    }
}
