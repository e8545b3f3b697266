//! What daemons of Spread do that speak to clients, without sockets and without a clock: bytes of
//! clients, commands and the time go in; bytes for clients, and what is to become of their
//! connections, come out.
//!
//! All daemons of the group are here, so that what they say to each other needs no protocol. They
//! live in *nodes*: one for each daemon, and one for each session that was named in a partition, so
//! that sessions of one daemon can be parted as if they were on several. Nodes that have the same
//! history are a *part* ([`part`]): one order of messages, one idea of who is in which group. When
//! the network changes ([`change`]), parts are cut, and later put together.
//!
//! ```text
//!   session   handshake; requests cut from bytes; what waits for its socket
//!   part      the order of messages, delayed or held back, and groups
//!   deliver   what each event says to whom
//!   change    partitions and merges: transitional signals, views
//!   command   what a test says to all this
//! ```

mod change;
mod command;
mod deliver;
mod part;
mod session;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::group::spread::wire::{
    ClientItem, Endian, Frame, GROUPS_MAX, GROUPS_TAKEN_MAX, MessageType, NAME_LEN, Name, Reject,
    Request, SENT_LEN_MAX,
};

use self::change::Loss;
pub(crate) use self::command::{COMMANDS, Command};
use self::part::{Event, NodeId, Part, RingId};
use self::session::{Phase, Session};

/// Sessions of one daemon.
pub(crate) const SESSIONS_MAX: usize = 997;

/// Messages that wait for the socket of a session; with the next one the session is over.
pub(crate) const SESSION_QUEUE_MAX: usize = 1000;

/// Messages on the way between daemons from which on clients are not read.
pub(crate) const WAITING_MAX: usize = 500;

/// How long a daemon waits for the first byte of a connection, and accepts nobody else.
pub(crate) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that a client has sent and we have not got to, from which on it is not read. More than the
/// longest frame.
const INPUT_LEN_MAX: usize = 256 * 1024;

/// Requests of all sessions that one step takes: what they lead to is to be written before so much
/// piles up for one socket that it looks slow.
const REQUESTS_PER_STEP: usize = 64;

/// Nodes there may be: sessions named in partitions are remembered.
const NODES_MAX: usize = 4096;

/// Set by daemons between each other; a client that sends it ends the 4.4.0 daemon.
const INTERNAL_BIT: MessageType = MessageType(0x8_0000);

/// A connection of a client. Not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(pub(crate) u64);

/// What is to be done with connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send a frame, in two pieces: up to the data, and the data. What the socket takes of it is
    /// reported by [`Daemons::on_written`].
    Send(SessionId, Bytes, Bytes),
    /// Let the socket take what it takes at once, and close it. We hear no more of it.
    Close(SessionId),
    /// Read it, or do not.
    Read(SessionId, bool),
    /// Write to it, or keep back what was sent.
    Write(SessionId, bool),
    /// Accept connections to the daemon of that number, or let them wait.
    Accept(usize, bool),
}

/// How the daemons are.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Their names, in the order of their configuration file.
    pub names: Vec<String>,
    /// The byte order of their machines.
    pub endian: Endian,
    /// From a change of the network to its being noticed.
    pub detection: Duration,
    /// Seconds since 1970, for the ids of groups.
    pub epoch: u32,
    /// Joins of groups, and messages to them, whose names begin so are refused.
    pub denied: Option<String>,
    /// Leaves of groups whose names begin so are refused.
    pub sticky: Option<String>,
}

/// All daemons, with all that connects to them.
pub(crate) struct Daemons {
    options: Options,
    /// Behind those of the daemons come those of sessions.
    nodes: Vec<Node>,
    parts: Vec<Part>,
    sessions: BTreeMap<SessionId, Session>,
    /// Private names that cannot be given out.
    names: BTreeMap<Name, SessionId>,
    session_serial: u64,
    /// Sessions that may have a request waiting.
    busy: VecDeque<SessionId>,
    /// By daemon: who has connected and said nothing, and how long that may last.
    silent: BTreeMap<usize, (SessionId, Instant)>,
    /// By daemon: whether it accepts, as far as it was said.
    accepting: Vec<bool>,
    /// How the network is now, if that was not noticed yet; and when it will be.
    change: Option<(Instant, Vec<BTreeSet<NodeId>>)>,
    /// What shall be lost.
    loss: Option<Loss>,
    /// From a message to its delivery.
    delay: Duration,
    /// Configurations so far; the time in their names.
    rings: u32,
    /// Who shall go on, and when.
    stalls: BTreeMap<SessionId, Option<Instant>>,
    output: VecDeque<Output>,
    now: Instant,
}

/// Where sessions live.
#[derive(Clone, Debug)]
struct Node {
    daemon: usize,
    /// Of a session that has its own.
    user: Option<Name>,
}

impl Daemons {
    /// All connected with each other, and nobody connected to them.
    pub(crate) fn new(options: Options, now: Instant) -> Self {
        let count = options.names.len();
        let nodes = (0..count).map(|daemon| Node { daemon, user: None });
        let mut daemons = Self {
            nodes: nodes.collect(),
            parts: Vec::new(),
            sessions: BTreeMap::new(),
            names: BTreeMap::new(),
            session_serial: 0,
            busy: VecDeque::new(),
            silent: BTreeMap::new(),
            accepting: vec![true; count],
            change: None,
            loss: None,
            delay: Duration::ZERO,
            rings: 0,
            stalls: BTreeMap::new(),
            output: VecDeque::new(),
            now,
            options,
        };
        let all: BTreeSet<NodeId> = (0..count).map(NodeId).collect();
        let ring = daemons.new_ring(&all);
        daemons.parts.push(Part::new(all, ring));
        daemons
    }

    /// Somebody has connected to a daemon.
    pub(crate) fn connect(&mut self, daemon: usize, now: Instant) -> SessionId {
        self.now = now;
        self.session_serial += 1;
        let id = SessionId(self.session_serial);
        if self.session_count(daemon) >= SESSIONS_MAX {
            self.send_bytes(id, Bytes::from(vec![Reject::Quota.code().cast_unsigned()]));
            self.output.push_back(Output::Close(id));
            return id;
        }
        self.sessions
            .insert(id, Session::new(daemon, NodeId(daemon)));
        self.silent.insert(daemon, (id, now + FIRST_BYTE_TIMEOUT));
        self.update_accepting(daemon);
        id
    }

    /// A client has sent bytes. Those of one call came by one read: a daemon wants the messages of
    /// the handshake so. Call [`Self::step`] after this.
    pub(crate) fn receive(&mut self, id: SessionId, data: &[u8], now: Instant) {
        self.now = now;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        match session.phase {
            Phase::Open => session.input.receive(data),
            Phase::Connecting | Phase::Authenticating(_) => {
                session.unread.extend_from_slice(data);
                self.shake_hands(id);
            }
        }
        self.wake(id);
        self.update_reading(id);
        self.run();
    }

    /// A client will send no more.
    pub(crate) fn on_end(&mut self, id: SessionId, now: Instant) {
        self.now = now;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.ended = true;
            match session.phase {
                Phase::Open => self.wake(id),
                Phase::Connecting | Phase::Authenticating(_) => self.end_session(id, "it has left"),
            }
        }
        self.run();
    }

    /// The connection of a client is gone.
    pub(crate) fn on_broken(&mut self, id: SessionId, now: Instant) {
        self.now = now;
        self.end_session(id, "its connection is gone");
        self.run();
    }

    /// The socket of a session has taken so many bytes.
    pub(crate) fn on_written(&mut self, id: SessionId, len: usize) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.on_written(len);
        }
    }

    /// Takes a few of the requests that have come, one of each session in turn. Returns whether
    /// there may be more.
    pub(crate) fn step(&mut self, now: Instant) -> bool {
        self.now = now;
        for _ in 0..REQUESTS_PER_STEP {
            let Some(id) = self.busy.pop_front() else {
                return false;
            };
            if let Some(session) = self.sessions.get_mut(&id) {
                session.busy = false;
            }
            if self.take_request(id) {
                self.wake(id);
            }
            self.update_reading(id);
            self.run();
        }
        !self.busy.is_empty()
    }

    /// Whether [`Self::step`] has something to do.
    pub(crate) fn has_more(&self) -> bool {
        !self.busy.is_empty()
    }

    /// What is to be done next.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// When to call [`Self::on_deadline`].
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let change = self.change.as_ref().map(|(at, _)| *at);
        let silent = self.silent.values().map(|(_, at)| *at);
        let stalls = self.stalls.values().filter_map(|at| *at);
        let parts = self.parts.iter().filter_map(Part::deadline);
        change
            .into_iter()
            .chain(silent)
            .chain(stalls)
            .chain(parts)
            .min()
    }

    /// Time has passed.
    pub(crate) fn on_deadline(&mut self, now: Instant) {
        self.now = now;
        let silent = self.silent.values();
        let late: Vec<_> = silent.filter(|(_, at)| *at <= now).map(|it| it.0).collect();
        for id in late {
            self.end_session(id, "it has said nothing");
        }
        let stalls = self.stalls.iter();
        let over = stalls.filter(|(_, at)| at.is_some_and(|at| at <= now));
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.set_stalled(id, false, None);
        }
        self.run();
        if self.change.as_ref().is_some_and(|(at, _)| *at <= now) {
            self.complete_change();
            self.run();
        }
    }

    /// Takes one request of a session. Returns whether there may be another.
    fn take_request(&mut self, id: SessionId) -> bool {
        if !self.is_served(id) {
            return false;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let name = session.name;
        let frame = match session.input.next() {
            Ok(Some(item)) => match item.what {
                ClientItem::Frame(frame) => frame,
                // Its stream has no handshake.
                ClientItem::Connect(_) | ClientItem::AuthChoice(_) => return true,
            },
            Ok(None) => {
                // A daemon looks at the header before the rest has come.
                let pending = session.input.pending().and_then(|pending| pending.header);
                let problem = pending.and_then(|header| header.check_request(&name).err());
                if let Some(error) = problem {
                    self.end_session(id, &error.to_string());
                } else if session.ended {
                    self.end_session(id, "it has left");
                }
                return false;
            }
            Err(error) => {
                self.end_session(id, &error.to_string());
                return false;
            }
        };
        match frame.header.check_request(&name) {
            Err(error) => {
                self.end_session(id, &error.to_string());
                false
            }
            Ok(request) => {
                self.perform(id, request, frame);
                true
            }
        }
    }

    fn perform(&mut self, id: SessionId, request: Request, frame: Frame) {
        if request == Request::Kill {
            return self.end_session(id, "it says so");
        }
        if let Some(problem) = deadly(request, &frame) {
            return self.end_session(id, problem);
        }
        if self.is_refused(request, &frame) {
            return self.refuse(id, &frame);
        }
        let Some(who) = self.sessions.get(&id).map(|session| session.who(id)) else {
            return;
        };
        let first = frame.names().next();
        let event = match (request, first) {
            (Request::Multicast, _) if frame.names.len() > GROUPS_MAX * NAME_LEN => {
                log::warn!("{id}: a message to more than {GROUPS_MAX} groups is for nobody");
                return;
            }
            (Request::Multicast, _) => Event::Message(self.message(id, frame)),
            (Request::Join, Some(group)) => Event::Join(who, group),
            (Request::Leave, Some(group)) => Event::Leave(who, group),
            _ => return,
        };
        self.submit(who.member.node, event);
    }

    /// Whether the policy is against a request. That of the real daemon never is.
    fn is_refused(&self, request: Request, frame: &Frame) -> bool {
        let prefix = match request {
            Request::Join | Request::Multicast => &self.options.denied,
            Request::Leave => &self.options.sticky,
            Request::Kill => &None,
        };
        let begins = |name: &Name, prefix: &String| name.as_bytes().starts_with(prefix.as_bytes());
        let refused = |prefix: &String| frame.names().any(|name| begins(&name, prefix));
        // One more name would not fit.
        prefix.as_ref().is_some_and(refused) && frame.header.count < GROUPS_TAKEN_MAX
    }

    /// Sends a request back, unless its sender does not want it back.
    fn refuse(&mut self, id: SessionId, frame: &Frame) {
        if !frame
            .header
            .message_type
            .intersects(MessageType::SELF_DISCARD)
        {
            let reject = Frame::new_reject(self.options.endian, frame);
            self.send(id, &self.message(id, reject));
        }
    }

    /// Puts an event of a session that lives in a node into the order of its part.
    fn submit(&mut self, node: NodeId, event: Event) {
        let due = self.now + self.delay;
        if self.lose_if_told(node, &event, due) {
            return;
        }
        let at = self.part_of(node);
        self.parts[at].push(event, due, false);
        self.update_flow(at);
    }

    /// Delivers what can be delivered.
    fn run(&mut self) {
        for at in 0..self.parts.len() {
            while let Some(event) = self.parts[at].pop(self.now) {
                self.deliver(at, event);
            }
            self.update_flow(at);
        }
    }

    /// Ends a session, whatever it is at, and tells its groups.
    fn end_session(&mut self, id: SessionId, why: &str) {
        let Some(session) = self.sessions.remove(&id) else {
            return;
        };
        log::debug!("{id}: {}: over ({why})", session.name);
        self.output.push_back(Output::Close(id));
        self.stalls.remove(&id);
        if self
            .silent
            .get(&session.daemon)
            .is_some_and(|it| it.0 == id)
        {
            self.silent.remove(&session.daemon);
            self.update_accepting(session.daemon);
        }
        if matches!(session.phase, Phase::Open) {
            // Its name is free when all daemons know.
            let at = self.part_of(session.node);
            let due = self.now + self.delay;
            self.parts[at].push(Event::Gone(session.who(id)), due, false);
        } else {
            self.free_name(id, &session.name);
        }
    }

    fn free_name(&mut self, id: SessionId, name: &Name) {
        if self.names.get(name) == Some(&id) {
            self.names.remove(name);
        }
    }

    /// The session is looked at in the next step, if it may be.
    fn wake(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id)
            && !session.busy
            && matches!(session.phase, Phase::Open)
        {
            session.busy = true;
            self.busy.push_back(id);
        }
    }

    /// Whether requests of the session are taken now.
    fn is_served(&self, id: SessionId) -> bool {
        let Some(session) = self.sessions.get(&id) else {
            return false;
        };
        !self.stalls.contains_key(&id) && !self.parts[self.part_of(session.node)].full
    }

    fn update_reading(&mut self, id: SessionId) {
        let served = self.is_served(id);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let reading = served && session.input.waiting_len() < INPUT_LEN_MAX;
        if session.reading != reading {
            session.reading = reading;
            self.output.push_back(Output::Read(id, reading));
        }
    }

    /// Notes whether too much is under way in a part for its clients to be read.
    fn update_flow(&mut self, at: usize) {
        let part = &mut self.parts[at];
        let full = part.waiting() >= WAITING_MAX;
        if part.full == full {
            return;
        }
        part.full = full;
        let nodes = part.nodes.clone();
        let sessions = self.sessions.iter();
        let there = sessions.filter(|(_, session)| nodes.contains(&session.node));
        for id in there.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.wake(id);
            self.update_reading(id);
        }
        for daemon in nodes.iter().map(|node| node.0) {
            self.update_accepting(daemon);
        }
    }

    fn update_accepting(&mut self, daemon: usize) {
        let Some(said) = self.accepting.get(daemon).copied() else {
            return;
        };
        let full = self.parts[self.part_of(NodeId(daemon))].full;
        let accepting = !full && !self.silent.contains_key(&daemon);
        if said != accepting {
            self.accepting[daemon] = accepting;
            self.output.push_back(Output::Accept(daemon, accepting));
        }
    }

    fn session_count(&self, daemon: usize) -> usize {
        let sessions = self.sessions.values();
        sessions.filter(|session| session.daemon == daemon).count()
    }

    /// The part that a node is in. Each is in one.
    fn part_of(&self, node: NodeId) -> usize {
        let found = self
            .parts
            .iter()
            .position(|part| part.nodes.contains(&node));
        found.unwrap_or_default()
    }

    /// A name for a new configuration of these nodes. No two have the same.
    fn new_ring(&mut self, nodes: &BTreeSet<NodeId>) -> RingId {
        self.rings += 1;
        let first = nodes.first().and_then(|node| self.nodes.get(node.0));
        let daemon = first.map_or(0, |node| node.daemon);
        RingId {
            // 127.0.0.1 and so on, as if each had its own.
            address: 0x7f00_0001 + u32::try_from(daemon).unwrap_or_default(),
            time: self.options.epoch.wrapping_add(self.rings),
        }
    }

    fn send_bytes(&mut self, id: SessionId, bytes: Bytes) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.on_sent(bytes.len());
        }
        self.output.push_back(Output::Send(id, bytes, Bytes::new()));
    }
}

/// What the 4.4.0 daemon would not survive, or would do at random. It ends the session here.
fn deadly(request: Request, frame: &Frame) -> Option<&'static str> {
    let problem = match request {
        Request::Multicast if frame.names.len() + frame.data.len() > SENT_LEN_MAX => {
            "it has sent more than 143 151 bytes: the 4.4.0 daemon would have crashed"
        }
        Request::Multicast if frame.header.message_type.intersects(INTERNAL_BIT) => {
            "it has sent the internal bit 0x80000: the 4.4.0 daemon would have crashed"
        }
        Request::Join | Request::Leave if frame.names.is_empty() => {
            "a join or leave without a group: the 4.4.0 daemon would have taken what is in memory"
        }
        Request::Join if !frame.names[..NAME_LEN].contains(&0) => {
            "a group's name without NUL: the 4.4.0 daemon might have crashed"
        }
        _ => return None,
    };
    log::warn!("{}: {problem}", frame.header.name);
    Some(problem)
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s{}", self.0)
    }
}
