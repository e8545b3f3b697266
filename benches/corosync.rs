//! A member of a group at corosync as a program, without the channel above it: to try the daemon,
//! and to measure what it does with bodies of a length.
//!
//!     corosync GROUP
//!
//! Commands on standard input, lines of JSON on standard output.
//!
//! | command | what it does |
//! |---|---|
//! | `send LANE LEN COUNT` | sends bodies to all, as fast as they are taken |
//! | `tell MEMBER LANE LEN COUNT` | to one member |
//! | `window COUNT LEN` | from now on no more bodies, and bytes, are under way |
//! | `latency LEN COUNT` | sends one to all, waits until it is back, and so on |
//! | `roundtrip LEN COUNT` | as `latency`, and waits until another member has answered |
//! | `flood LEN COUNT` | as `send`, and tells the throughput when the last is back |
//! | `oversize` | sends a body of one byte more than is allowed |
//! | `status` | what was counted since the last time; the order of bodies as a digest |
//! | `leave`, `join`, `reset` | as of `Group` |
//! | `quit` | leaves, and ends |
//!
//! `longest_turn_ms` of the status is how long the longest turn of the loop took: a daemon that is
//! stopped must not make it long.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends it")]
#![allow(clippy::disallowed_methods, reason = "a member has a clock")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use standby::group::corosync::{Done, Session, System};
use standby::group::{Audience, Body, Event, Group, Lane, MemberId, SendError};

const WAKER: Token = Token(0);
const DAEMON: Token = Token(1);

/// Bytes taken from the daemon in one turn.
const BUDGET: usize = 1 << 20;

/// Bytes that a body begins with: what it is, and its number.
const HEAD_LEN: usize = 9;

/// A body that is counted; one that others are to answer; the answer.
const PLAIN: u8 = 0;
const PING: u8 = 1;
const PONG: u8 = 2;

/// Something that wakes the loop.
enum Input {
    Command(String),
    Done(Done),
}

fn main() {
    env_logger::init();
    let group = std::env::args().nth(1).filter(|name| name != "--bench");
    let Some(group) = group else {
        eprintln!("usage: corosync GROUP");
        return;
    };
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).unwrap());
    let (sender, inputs) = mpsc::channel();
    let library = Arc::new(System::new().unwrap());
    let session = Session::new(&group, library, Instant::now()).unwrap();
    let fd = session.descriptor().unwrap();
    // Registered once, edge-triggered, whatever becomes of the daemon.
    poll.registry()
        .register(&mut SourceFd(&fd), DAEMON, Interest::READABLE)
        .unwrap();
    let commands = Wake {
        sender: sender.clone(),
        waker: waker.clone(),
    };
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            commands.give(Input::Command(line));
        }
        commands.give(Input::Command("quit".to_owned()));
    });
    let jobs = Wake { sender, waker };
    Member::new(session, jobs).run(poll, &inputs);
}

#[derive(Clone)]
struct Wake {
    sender: Sender<Input>,
    waker: Arc<Waker>,
}

impl Wake {
    fn give(&self, input: Input) {
        // Who has quit takes nothing.
        let _ = self.sender.send(input);
        let _ = self.waker.wake();
    }
}

struct Member {
    session: Session,
    jobs: Wake,
    sending: VecDeque<Sending>,
    /// Lengths of bodies of ours that are under way.
    in_flight: VecDeque<usize>,
    window: (usize, usize),
    number: u64,
    measuring: Option<Measuring>,
    /// The last number of each sender, to all and to us alone.
    seen: BTreeMap<(MemberId, bool), u64>,
    count: u64,
    bad: u64,
    busy: u64,
    order: u64,
    longest_turn: Duration,
    quit: bool,
}

struct Sending {
    to: Option<MemberId>,
    lane: Lane,
    len: usize,
    left: u64,
    kind: u8,
}

struct Measuring {
    name: &'static str,
    len: usize,
    count: u64,
    left: u64,
    begun: Instant,
    /// The body that is waited for; several members answer, and the first answer counts.
    awaited: u64,
    sent: Instant,
    took: Vec<Duration>,
}

impl Member {
    fn new(session: Session, jobs: Wake) -> Self {
        Self {
            session,
            jobs,
            sending: VecDeque::new(),
            in_flight: VecDeque::new(),
            window: (64, 1 << 20),
            number: 0,
            measuring: None,
            seen: BTreeMap::new(),
            count: 0,
            bad: 0,
            busy: 0,
            order: 0,
            longest_turn: Duration::ZERO,
            quit: false,
        }
    }

    fn run(mut self, mut poll: Poll, inputs: &Receiver<Input>) {
        let mut events = Events::with_capacity(16);
        self.session.join(Instant::now());
        self.give_jobs();
        let (mut ready, mut more) = (false, false);
        while !self.quit {
            let deadline = self.session.deadline();
            let wait = deadline.map(|it| it.saturating_duration_since(Instant::now()));
            let wait = if more { Some(Duration::ZERO) } else { wait };
            match poll.poll(&mut events, wait) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                result => result.unwrap(),
            }
            let now = Instant::now();
            ready |= more | events.iter().any(|event| event.token() == DAEMON);
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.session.on_deadline(now);
            }
            while let Ok(input) = inputs.try_recv() {
                match input {
                    Input::Command(line) => self.obey(&line, now),
                    Input::Done(done) => {
                        self.session.on_done(done, now);
                        ready = true;
                    }
                }
            }
            more = std::mem::take(&mut ready) && self.session.on_ready(BUDGET, now);
            self.take_events();
            self.send_more();
            self.take_events();
            self.give_jobs();
            self.longest_turn = self.longest_turn.max(now.elapsed());
        }
    }

    fn give_jobs(&mut self) {
        if let Some(job) = self.session.take_job(Instant::now()) {
            let wake = self.jobs.clone();
            std::thread::spawn(move || wake.give(Input::Done(job.run())));
        }
    }

    fn obey(&mut self, line: &str, now: Instant) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| text.parse::<usize>().unwrap();
        match words[..] {
            ["send", lane, len, count] => {
                self.begin(None, lane_of(lane), number(len), number(count), PLAIN);
            }
            ["tell", to, lane, len, count] => {
                let to = Some(MemberId::new(to));
                self.begin(to, lane_of(lane), number(len), number(count), PLAIN);
            }
            ["window", count, len] => self.window = (number(count), number(len)),
            ["latency", len, count] => self.measure("latency", number(len), number(count), now),
            ["roundtrip", len, count] => {
                self.measure("roundtrip", number(len), number(count), now);
            }
            ["flood", len, count] => self.measure("flood", number(len), number(count), now),
            ["oversize"] => {
                let body = vec![0; self.session.body_len_max() + 1].into();
                let sent = self.session.send_all(Lane::Bulk, &[body]);
                say(&format!(r#"{{"event":"oversize","result":"{sent:?}"}}"#));
            }
            ["status"] => self.tell_status(),
            ["leave"] => self.session.leave(now),
            ["join"] => self.session.join(now),
            ["reset"] => self.session.reset("it was told so", now),
            ["quit"] => self.quit(now),
            _ => say(&format!(r#"{{"event":"error","command":"{line}"}}"#)),
        }
    }

    /// Leaves, which may wait for the daemon, so not for long.
    fn quit(&mut self, now: Instant) {
        self.quit = true;
        self.session.leave(now);
        if let Some(job) = self.session.take_job(now) {
            let (sender, receiver) = mpsc::channel();
            std::thread::spawn(move || sender.send(job.run()));
            let _ = receiver.recv_timeout(Duration::from_secs(1));
        }
    }

    fn begin(&mut self, to: Option<MemberId>, lane: Lane, len: usize, count: usize, kind: u8) {
        self.sending.push_back(Sending {
            to,
            lane,
            len: len.max(HEAD_LEN),
            left: count as u64,
            kind,
        });
    }

    fn measure(&mut self, name: &'static str, len: usize, count: usize, now: Instant) {
        let (at_once, kind) = match name {
            "flood" => (count, PLAIN),
            "roundtrip" => (1, PING),
            _ => (1, PLAIN),
        };
        self.measuring = Some(Measuring {
            name,
            len,
            count: count as u64,
            left: count as u64,
            begun: now,
            awaited: 0,
            sent: now,
            took: Vec::new(),
        });
        self.begin(None, Lane::Commit, len, at_once, kind);
    }

    fn send_more(&mut self) {
        while let Some(sending) = self.sending.front_mut() {
            if sending.left == 0 {
                self.sending.pop_front();
                continue;
            }
            let under_way: usize = self.in_flight.iter().sum();
            let is_first = self.in_flight.is_empty();
            if self.in_flight.len() >= self.window.0
                || !is_first && under_way + sending.len > self.window.1
            {
                return;
            }
            let head = head(sending.kind, self.number + 1);
            let parts = [head, filling(self.number + 1, sending.len - HEAD_LEN)];
            let sent = match &sending.to {
                None => self.session.send_all(sending.lane, &parts),
                Some(to) => self.session.send_one(to, sending.lane, &parts),
            };
            match sent {
                Ok(()) => {
                    self.number += 1;
                    if let Some(measuring) = &mut self.measuring {
                        measuring.awaited = self.number;
                        measuring.sent = Instant::now();
                    }
                    sending.left -= 1;
                    self.in_flight.push_back(sending.len);
                }
                Err(SendError::Busy) => {
                    self.busy += 1;
                    return;
                }
                Err(SendError::NotJoined) => return,
                Err(error) => {
                    say(&format!(r#"{{"event":"error","why":"{error}"}}"#));
                    self.sending.pop_front();
                }
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Transitional => say(r#"{"event":"transitional"}"#),
                Event::View(view) => {
                    self.order = 0;
                    let me = self.session.me().unwrap();
                    say(&format!(
                        "{{\"event\":\"view\",\"id\":\"{}\",\"me\":\"{me}\",\"members\":{}, \
                         \"together\":{},\"cause\":\"{}\",\"group\":\"{}\"}}",
                        view.id,
                        list(&view.members),
                        list(&view.together),
                        view.cause,
                        self.session.describe(),
                    ));
                }
                Event::Body(body) => self.on_body(&body),
                Event::Passed { len, .. } => self.on_passed(len),
                Event::Lost(why) => {
                    self.in_flight.clear();
                    self.seen.clear();
                    say(&format!(r#"{{"event":"lost","why":"{why}"}}"#));
                }
            }
        }
    }

    fn on_passed(&mut self, len: usize) {
        if self.in_flight.pop_front() != Some(len) {
            self.bad += 1;
        }
    }

    fn on_body(&mut self, body: &Body) {
        let is_mine = self.session.me() == Some(&body.from);
        if is_mine {
            self.on_passed(body.data.len());
        }
        let (kind, number) = (body.data[0], body.data[1..HEAD_LEN].try_into().unwrap());
        let number = u64::from_be_bytes(number);
        let filling = filling(number, body.data.len() - HEAD_LEN);
        let to_all = body.audience == Audience::All;
        let last = self.seen.insert((body.from.clone(), to_all), number);
        if last.is_some_and(|last| last >= number) || body.data[HEAD_LEN..] != filling {
            self.bad += 1;
        }
        self.count += 1;
        if to_all {
            for byte in body.from.as_str().bytes().chain(number.to_be_bytes()) {
                self.order = (self.order ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        if kind == PING && !is_mine {
            let parts = [head(PONG, number), filling];
            if self
                .session
                .send_one(&body.from, Lane::Commit, &parts)
                .is_ok()
            {
                self.in_flight.push_back(body.data.len());
            }
        }
        if is_mine && kind != PONG {
            self.on_back("latency", number);
        } else if kind == PONG {
            self.on_back("roundtrip", number);
        }
    }

    fn on_back(&mut self, name: &str, number: u64) {
        let Some(measuring) = &mut self.measuring else {
            return;
        };
        let now = Instant::now();
        if measuring.name == "flood" && name == "latency" {
            measuring.left -= 1;
        } else if measuring.name == name && measuring.awaited == number {
            measuring.left -= 1;
            measuring.took.push(now - measuring.sent);
            measuring.awaited = 0;
            let len = measuring.len;
            let kind = if name == "roundtrip" { PING } else { PLAIN };
            if measuring.left > 0 {
                self.begin(None, Lane::Commit, len, 1, kind);
            }
        }
        if self.measuring.as_ref().is_some_and(|it| it.left == 0) {
            self.measuring.take().unwrap().report(now);
        }
    }

    fn tell_status(&mut self) {
        say(&format!(
            "{{\"event\":\"status\",\"group\":\"{}\",\"count\":{},\"bad\":{},\"busy\":{}, \
             \"sending\":{},\"in_flight\":{},\"order\":\"{:016x}\",\"longest_turn_ms\":{}}}",
            self.session.describe(),
            self.count,
            self.bad,
            self.busy,
            self.sending.iter().map(|it| it.left).sum::<u64>(),
            self.in_flight.len(),
            self.order,
            self.longest_turn.as_millis(),
        ));
        self.count = 0;
        self.busy = 0;
        self.longest_turn = Duration::ZERO;
    }
}

impl Measuring {
    fn report(mut self, now: Instant) {
        self.took.sort();
        let ms = |part: usize| {
            let at = (self.took.len() * part / 100).min(self.took.len().saturating_sub(1));
            self.took.get(at).map_or(0.0, |it| it.as_secs_f64() * 1e3)
        };
        let secs = (now - self.begun).as_secs_f64();
        let mb = (self.count * self.len as u64) as f64 / 1e6;
        say(&format!(
            "{{\"event\":\"{}\",\"len\":{},\"count\":{},\"p50_ms\":{:.3},\"p99_ms\":{:.3}, \
             \"secs\":{secs:.3},\"mb_per_s\":{:.1},\"per_s\":{:.0}}}",
            self.name,
            self.len,
            self.count,
            ms(50),
            ms(99),
            mb / secs,
            self.count as f64 / secs,
        ));
    }
}

fn head(kind: u8, number: u64) -> Bytes {
    let mut head = BytesMut::with_capacity(HEAD_LEN);
    head.extend_from_slice(&[kind]);
    head.extend_from_slice(&number.to_be_bytes());
    head.freeze()
}

/// What the rest of a body consists of.
fn filling(number: u64, len: usize) -> Bytes {
    vec![number as u8; len].into()
}

fn lane_of(name: &str) -> Lane {
    match name {
        "control" => Lane::Control,
        "commit" => Lane::Commit,
        _ => Lane::Bulk,
    }
}

fn list(members: &[MemberId]) -> String {
    let members: Vec<String> = members.iter().map(|it| format!("\"{it}\"")).collect();
    format!("[{}]", members.join(","))
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever does not listen any more has ended, and so will we.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
