//! A member of a group that does as it is told: commands in, lines of JSON out.
//!
//! | command | what it does |
//! |---|---|
//! | `send LANE LEN COUNT` | sends messages of that many bytes to all, as fast as that goes |
//! | `tell MEMBER LANE LEN COUNT` | to one member |
//! | `long LANE LEN` | sends one message to all that is never in memory as a whole |
//! | `latency LANE LEN COUNT` | sends one to all, waits until it is back, and so on |
//! | `roundtrip LANE LEN COUNT` | as `latency`, and waits until another member has answered |
//! | `flood LANE LEN COUNT` | as `send`, and tells the throughput when the last is back |
//! | `quiet` | from now on messages are counted, and not told of one by one |
//! | `status` | what has been counted; the order of messages as a digest |
//! | `reset` | gives up the daemon and begins anew |
//! | `quit` | leaves |
//!
//! Every message says its number and its length, and consists of bytes that follow from these; what
//! comes is checked for that, and for the order of its sender's lane.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use mio::{Events, Poll, Token, Waker};

use standby::args::Args;
use standby::config::{self, ConfigError, StandbyConfig, Surroundings};
use standby::group::channel::{ChannelError, Delivered, Incoming, Part, Source, To};
use standby::group::{Audience, Lane, MemberId};
use standby::limits::WHOLE_MESSAGE_LEN_MAX;
use standby::node::roster::{Noticed, Peer, Roster};
use standby::reactor::daemon::Daemon;

const WAKER: Token = Token(0);
const DAEMON: Token = Token(1);

/// Bytes that a message begins with: what it is, its number, and its length.
const HEAD_LEN: usize = 17;

/// A message of ours.
const PLAIN: u8 = 0;

/// A message that others are to answer.
const PING: u8 = 1;

/// The answer.
const PONG: u8 = 2;

/// Where commands come from.
pub(crate) struct Commands {
    sender: Sender<String>,
    waker: Arc<Waker>,
}

impl Commands {
    /// Gives a command.
    pub(crate) fn give(&self, command: &str) {
        // A member that has quit takes none.
        let _ = self.sender.send(command.to_owned());
        let _ = self.waker.wake();
    }
}

/// See the module's page.
pub(crate) struct Member {
    poll: Poll,
    waker: Arc<Waker>,
    daemon: Daemon,
    roster: Roster,
    commands: Receiver<String>,
    /// What is to be sent, by lane.
    sending: VecDeque<Sending>,
    measuring: Option<Measuring>,
    /// The number of the last message of ours that was answered.
    answered: u64,
    /// The number of the last message, by lane.
    sent: BTreeMap<Lane, u64>,
    seen: BTreeMap<(MemberId, Lane, bool), u64>,
    long: BTreeMap<(MemberId, Lane), Long>,
    count: u64,
    bad: u64,
    order: u64,
    quiet: bool,
    quit: bool,
    out: Vec<String>,
}

struct Sending {
    to: To,
    lane: Lane,
    len: usize,
    left: u64,
    kind: u8,
}

struct Measuring {
    name: &'static str,
    lane: Lane,
    len: usize,
    count: u64,
    /// Messages that are not back yet.
    left: u64,
    begun: Instant,
    sent: Instant,
    took: Vec<Duration>,
    is_flood: bool,
}

/// A message that comes in parts.
#[derive(Default)]
struct Long {
    number: u64,
    len: u64,
    expected: u64,
}

impl Member {
    /// Begins to join.
    pub(crate) fn new(
        config: &StandbyConfig,
        now: Instant,
        sequence: u64,
    ) -> io::Result<(Self, Commands)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (sender, commands) = mpsc::channel();
        let daemon = Daemon::new(config, poll.registry(), DAEMON, &waker, sequence, now)?;
        let roster = Roster::new(Peer::blank(
            config.node,
            sequence as i64,
            "bench".to_owned(),
        ));
        let member = Self {
            poll,
            waker: waker.clone(),
            daemon,
            roster,
            commands,
            sending: VecDeque::new(),
            measuring: None,
            answered: 0,
            sent: BTreeMap::new(),
            seen: BTreeMap::new(),
            long: BTreeMap::new(),
            count: 0,
            bad: 0,
            order: 0,
            quiet: false,
            quit: false,
            out: Vec::new(),
        };
        Ok((member, Commands { sender, waker }))
    }

    /// Runs until it is told to quit, or `say` does not want to hear any more.
    pub(crate) fn run(&mut self, mut say: impl FnMut(&str) -> bool) -> io::Result<()> {
        let mut events = Events::with_capacity(16);
        let mut more = true;
        loop {
            let deadline = self.daemon.deadline();
            let wait = deadline.map(|it| it.saturating_duration_since(now()));
            let wait = if more { Some(Duration::ZERO) } else { wait };
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                if event.token() == DAEMON {
                    self.daemon.on_ready(event);
                }
            }
            let at = now();
            if self
                .daemon
                .deadline()
                .is_some_and(|deadline| deadline <= at)
            {
                self.daemon.on_deadline(at);
            }
            more = self.daemon.turn(at);
            while let Some(incoming) = self.daemon.poll_incoming() {
                let noticed = self.roster.on_incoming(&incoming, self.daemon.channel());
                self.tell_roster(noticed);
                self.on_incoming(incoming);
            }
            // What is measured is not to be disturbed.
            while self.measuring.is_none()
                && let Ok(command) = self.commands.try_recv()
            {
                self.obey(&command, at);
            }
            self.send_more();
            more |= self.daemon.flush(at);
            let willing = self.out.drain(..).all(|line| say(&line));
            if self.quit || !willing {
                self.daemon.leave(now());
                return Ok(());
            }
        }
    }

    fn obey(&mut self, command: &str, now: Instant) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let number = |text: &str| text.parse::<u64>().ok();
        let done = match words[..] {
            ["send", lane, len, count] => self.begin(To::All, lane, number(len), number(count)),
            ["tell", member, lane, len, count] => {
                let to = To::One(MemberId::new(member));
                self.begin(to, lane, number(len), number(count))
            }
            ["long", lane, len] => self.send_long(lane, number(len)),
            [name @ ("latency" | "roundtrip" | "flood"), lane, len, count] => {
                self.measure(name, lane, number(len), number(count), now)
            }
            ["quiet"] => {
                self.quiet = true;
                Some(())
            }
            ["status"] => {
                self.tell_status();
                Some(())
            }
            ["reset"] => {
                self.daemon.reset("it was told so", now);
                Some(())
            }
            ["quit"] => {
                self.quit = true;
                Some(())
            }
            _ => None,
        };
        if done.is_none() {
            self.out.push(format!(
                "{{\"event\":\"error\",\"command\":\"{}\"}}",
                quoted(command)
            ));
        }
    }

    fn begin(&mut self, to: To, lane: &str, len: Option<u64>, count: Option<u64>) -> Option<()> {
        self.sending.push_back(Sending {
            to,
            lane: lane_of(lane)?,
            len: len_of(len?),
            left: count?,
            kind: PLAIN,
        });
        Some(())
    }

    fn measure(
        &mut self,
        name: &str,
        lane: &str,
        len: Option<u64>,
        count: Option<u64>,
        now: Instant,
    ) -> Option<()> {
        let (lane, len, count) = (lane_of(lane)?, len_of(len?), count?);
        let is_flood = name == "flood";
        let (name, kind) = match name {
            "flood" => ("flood", PLAIN),
            "roundtrip" => ("roundtrip", PING),
            _ => ("latency", PLAIN),
        };
        self.measuring = Some(Measuring {
            name,
            lane,
            len,
            count,
            left: count,
            begun: now,
            sent: now,
            took: Vec::new(),
            is_flood,
        });
        let left = if is_flood { count } else { 1 };
        self.sending.push_back(Sending {
            to: To::All,
            lane,
            len,
            left,
            kind,
        });
        Some(())
    }

    fn send_more(&mut self) {
        while let Some(sending) = self.sending.front_mut() {
            if sending.left == 0 {
                self.sending.pop_front();
                continue;
            }
            let number = self.sent.get(&sending.lane).copied().unwrap_or(0) + 1;
            let message = message(sending.kind, number, sending.len);
            let (to, lane) = (sending.to.clone(), sending.lane);
            match self.daemon.channel().send_bytes(to, lane, vec![message]) {
                Ok(()) => {
                    self.sent.insert(lane, number);
                    sending.left -= 1;
                }
                Err(ChannelError::Full | ChannelError::NoView) => return,
                Err(ChannelError::TooLong) => {
                    self.out
                        .push("{\"event\":\"error\",\"why\":\"too long\"}".to_owned());
                    self.sending.pop_front();
                }
            }
        }
    }

    fn send_long(&mut self, lane: &str, len: Option<u64>) -> Option<()> {
        let (lane, len) = (lane_of(lane)?, len?);
        let number = self.sent.get(&lane).copied().unwrap_or(0) + 1;
        self.sent.insert(lane, number);
        let source = Box::new(Pattern {
            number,
            len,
            pos: 0,
        });
        let sent = self
            .daemon
            .channel()
            .send_source(To::All, lane, len, source);
        if let Err(error) = sent {
            self.out
                .push(format!("{{\"event\":\"error\",\"why\":\"{error}\"}}"));
        }
        Some(())
    }

    fn on_incoming(&mut self, incoming: Incoming) {
        if matches!(incoming, Incoming::View(_) | Incoming::Lost(_))
            && let Some(measured) = self.measuring.take()
        {
            // What was on its way may be lost, and is not counted on.
            let what = measured.name;
            self.sending.clear();
            self.out
                .push(format!("{{\"event\":\"interrupted\",\"what\":\"{what}\"}}"));
            let _ = self.waker.wake();
        }
        match incoming {
            Incoming::Transitional => self.out.push("{\"event\":\"transitional\"}".to_owned()),
            Incoming::View(view) => {
                self.order = 0;
                let me = self
                    .daemon
                    .channel()
                    .me()
                    .map_or_else(String::new, |me| me.to_string());
                self.out.push(format!(
                    "{{\"event\":\"view\",\"id\":\"{}\",\"me\":\"{me}\",\"members\":{},\
                     \"together\":{},\"cause\":\"{}\"}}",
                    view.id,
                    list(&view.members),
                    list(&view.together),
                    view.cause
                ));
            }
            Incoming::Lost(why) => {
                let why = quoted(&why);
                self.out
                    .push(format!("{{\"event\":\"lost\",\"why\":\"{why}\"}}"));
            }
            Incoming::Cut { from, lane } => {
                self.long.remove(&(from.clone(), lane));
                self.out
                    .push(format!("{{\"event\":\"cut\",\"from\":\"{from}\"}}"));
            }
            Incoming::Message(message) => self.on_message(&message),
            Incoming::Part(part) => self.on_part(&part),
        }
    }

    fn on_message(&mut self, message: &Delivered<Bytes>) {
        let Some((kind, number)) = check(&message.what) else {
            if standby::group::message::Message::decode(&message.what).is_err() {
                self.on_bad(&message.from, "not as it was sent");
            }
            return;
        };
        let Delivered { from, lane, .. } = message;
        let is_mine = self.daemon.channel().me() == Some(from);
        if kind == PONG {
            // The first answer counts; of two others come two.
            if self.sent.get(lane) == Some(&number) && self.answered != number {
                self.answered = number;
                self.on_back("roundtrip");
            }
            return;
        }
        let to_all = message.audience == Audience::All;
        let last = self.seen.insert((from.clone(), *lane, to_all), number);
        if last.is_some_and(|last| last >= number) {
            self.on_bad(from, "out of order");
        }
        self.count += 1;
        if to_all {
            for byte in from.as_str().bytes().chain(number.to_be_bytes()) {
                self.order = (self.order ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        if kind == PING && !is_mine {
            let pong = self::message(PONG, number, message.what.len());
            let to = To::One(from.clone());
            // Who asked too fast asks again.
            let _ = self.daemon.channel().send_bytes(to, *lane, vec![pong]);
        }
        if !self.quiet {
            self.out.push(format!(
                "{{\"event\":\"message\",\"from\":\"{from}\",\"lane\":\"{lane:?}\",\
                 \"audience\":\"{:?}\",\"number\":{number},\"len\":{}}}",
                message.audience,
                message.what.len()
            ));
        }
        if is_mine {
            self.on_back("latency");
        }
    }

    /// One of ours is back, or answered.
    fn on_back(&mut self, name: &str) {
        let Some(measuring) = &mut self.measuring else {
            return;
        };
        let at = now();
        if measuring.is_flood {
            measuring.left -= u64::from(name == "latency");
        } else if measuring.name == name {
            measuring.left -= 1;
            measuring
                .took
                .push(at.saturating_duration_since(measuring.sent));
            if measuring.left > 0 {
                measuring.sent = at;
                self.sending.push_back(Sending {
                    to: To::All,
                    lane: measuring.lane,
                    len: measuring.len,
                    left: 1,
                    kind: if name == "roundtrip" { PING } else { PLAIN },
                });
            }
        }
        if measuring.left == 0
            && let Some(measured) = self.measuring.take()
        {
            self.out.push(measured.report(at));
            // There may be commands that wait for this.
            let _ = self.waker.wake();
        }
    }

    fn on_part(&mut self, part: &Delivered<Part>) {
        let key = (part.from.clone(), part.lane);
        let data = &part.what.data;
        let mut long = self.long.remove(&key).unwrap_or_default();
        if part.what.number == 0 {
            long = Long::default();
            long.number = data
                .get(1..9)
                .map_or(0, |it| u64::from_be_bytes(it.try_into().unwrap()));
            long.expected = data
                .get(9..17)
                .map_or(0, |it| u64::from_be_bytes(it.try_into().unwrap()));
        }
        if !follows(long.number, long.expected, long.len, data) {
            self.on_bad(&part.from, "a part is not as it was sent");
        }
        long.len += data.len() as u64;
        if part.what.number + 1 < part.what.count {
            self.long.insert(key, long);
            return;
        }
        let is_whole = long.len == long.expected;
        self.count += 1;
        self.out.push(format!(
            "{{\"event\":\"long\",\"from\":\"{}\",\"len\":{},\"parts\":{},\"whole\":{is_whole}}}",
            part.from, long.len, part.what.count
        ));
    }

    fn on_bad(&mut self, from: &MemberId, why: &str) {
        self.bad += 1;
        self.out.push(format!(
            "{{\"event\":\"bad\",\"from\":\"{from}\",\"why\":\"{why}\"}}"
        ));
    }

    fn tell_roster(&mut self, noticed: Option<Noticed>) {
        match noticed {
            None => {}
            Some(Noticed::Complete) => {
                let names: Vec<String> = self
                    .roster
                    .peers()
                    .map(|(_, peer)| format!("\"{}\"", peer.name))
                    .collect();
                self.out.push(format!(
                    "{{\"event\":\"roster\",\"nodes\":[{}]}}",
                    names.join(",")
                ));
            }
            Some(other) => self.out.push(format!(
                "{{\"event\":\"noticed\",\"what\":\"{}\"}}",
                quoted(&format!("{other:?}"))
            )),
        }
    }

    fn tell_status(&mut self) {
        let describe = quoted(&self.daemon.describe());
        let channel = self.daemon.channel();
        let waiting = channel.waiting_len();
        let counters = channel.counters();
        self.out.push(format!(
            "{{\"event\":\"status\",\"daemon\":\"{describe}\",\"count\":{},\"bad\":{},\
             \"order\":\"{:016x}\",\"waiting\":{waiting},\"sent\":{},\"received\":{},\
             \"refused\":{},\"dropped\":{},\"given_up\":{},\"strangers\":{}}}",
            self.count,
            self.bad,
            self.order,
            counters.sent,
            counters.received,
            counters.refused,
            counters.dropped,
            counters.given_up,
            counters.strangers,
        ));
    }
}

impl Measuring {
    fn report(mut self, at: Instant) -> String {
        let secs = at.saturating_duration_since(self.begun).as_secs_f64();
        let megabytes = (self.count * self.len as u64) as f64 / 1e6;
        self.took.sort();
        let ms = |part: usize| {
            let at = (self.took.len() * part / 100).min(self.took.len().saturating_sub(1));
            self.took
                .get(at)
                .map_or(0.0, |took| took.as_secs_f64() * 1e3)
        };
        let mut line = format!(
            "{{\"event\":\"measured\",\"what\":\"{}\",\"len\":{},\"count\":{},\
             \"seconds\":{secs:.3}",
            self.name, self.len, self.count
        );
        let _ = if self.is_flood {
            write!(line, ",\"mb_per_s\":{:.1}}}", megabytes / secs)
        } else {
            write!(line, ",\"p50_ms\":{:.3},\"p99_ms\":{:.3}}}", ms(50), ms(99))
        };
        line
    }
}

fn head(kind: u8, number: u64, len: u64) -> [u8; HEAD_LEN] {
    let mut head = [kind; HEAD_LEN];
    head[1..9].copy_from_slice(&number.to_be_bytes());
    head[9..].copy_from_slice(&len.to_be_bytes());
    head
}

/// Longer ones are for `long`.
fn len_of(len: u64) -> usize {
    (len as usize).clamp(HEAD_LEN, TABLE_LEN)
}

/// Bytes of the pattern that are there once and for all.
const TABLE_LEN: usize = WHOLE_MESSAGE_LEN_MAX;

/// Part of the bytes that messages consist of: 0 to 250 over and over, begun at a place that the
/// number of the message tells.
fn pattern(number: u64, pos: u64, len: usize) -> Bytes {
    static TABLE: OnceLock<Bytes> = OnceLock::new();
    let table = TABLE.get_or_init(|| (0..251).cycle().take(TABLE_LEN + 251).collect());
    let start = (number.wrapping_mul(31).wrapping_add(pos) % 251) as usize;
    assert!(len <= TABLE_LEN, "no message that is in memory is so long");
    table.slice(start..start + len)
}

fn message(kind: u8, number: u64, len: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(len);
    bytes.put_slice(&head(kind, number, len as u64));
    bytes.put(pattern(number, HEAD_LEN as u64, len - HEAD_LEN));
    bytes.freeze()
}

/// Kind and number of a message that is as it was sent.
fn check(message: &Bytes) -> Option<(u8, u64)> {
    let kind = *message.first()?;
    let number = u64::from_be_bytes(message.get(1..9)?.try_into().ok()?);
    let len = u64::from_be_bytes(message.get(9..17)?.try_into().ok()?);
    let good = kind <= PONG && len == message.len() as u64;
    let rest = pattern(number, HEAD_LEN as u64, message.len() - HEAD_LEN);
    (good && message[HEAD_LEN..] == rest).then_some((kind, number))
}

/// Whether data are what belongs at this place of a long message.
fn follows(number: u64, len: u64, pos: u64, data: &[u8]) -> bool {
    let skipped = (HEAD_LEN as u64).saturating_sub(pos) as usize;
    let skipped = skipped.min(data.len());
    let head = head(PLAIN, number, len);
    let begun = &head[(pos as usize).min(HEAD_LEN)..][..skipped];
    let rest = pattern(number, pos + skipped as u64, data.len() - skipped);
    data[..skipped] == *begun && data[skipped..] == rest
}

/// A message that is made while it is sent.
struct Pattern {
    number: u64,
    len: u64,
    pos: u64,
}

impl Source for Pattern {
    fn take(&mut self, len: usize) -> Option<Vec<Bytes>> {
        let head = head(PLAIN, self.number, self.len);
        let begun = &head[(self.pos as usize).min(HEAD_LEN)..];
        let begun = Bytes::copy_from_slice(&begun[..begun.len().min(len)]);
        let rest = pattern(
            self.number,
            self.pos + begun.len() as u64,
            len - begun.len(),
        );
        self.pos += len as u64;
        Some(vec![begun, rest])
    }
}

fn lane_of(name: &str) -> Option<Lane> {
    match name {
        "control" => Some(Lane::Control),
        "commit" => Some(Lane::Commit),
        "bulk" => Some(Lane::Bulk),
        _ => None,
    }
}

fn list(members: &[MemberId]) -> String {
    let members: Vec<String> = members
        .iter()
        .map(|member| format!("\"{member}\""))
        .collect();
    format!("[{}]", members.join(","))
}

fn quoted(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c => vec![c],
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "a member has a clock")]
fn now() -> Instant {
    Instant::now()
}

/// The configuration that consists of these lines of `<standby>`.
pub(crate) fn config(lines: Vec<String>) -> Result<StandbyConfig, ConfigError> {
    let args = Args {
        configure: Some("standby.conf".into()),
        ..Args::default()
    };
    let config = config::read(&args, &File(lines))?;
    Ok(config.standby.expect("the file has the section"))
}

/// Lines as a file, so that they are read as that is.
struct File(Vec<String>);

impl Surroundings for File {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path != Path::new("standby.conf") {
            return std::fs::read_to_string(path);
        }
        let lines = self.0.join("\n");
        Ok(format!(
            "<zeo>\naddress 1\n</zeo>\n<filestorage>\npath Data.fs\n</filestorage>\n\
             <standby>\n{lines}\npeer-address localhost:1\n</standby>\n"
        ))
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn variable(&self, _name: &str) -> Option<String> {
        None
    }
}
