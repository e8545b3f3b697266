//! A stock client's connections, by the rules of `ZEO.asyncio.client`: all addresses at once, the
//! first that registers wins, and a cache that is verified against it. What the application does
//! with it is in [`work`](super::work).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::message::{Attempt, ClientMessage, Conn, Port, Refused, ServerMessage, Value};
use super::work::Work;
use crate::ids::{NodeId, Oid, Tid};
use crate::random::Random;

/// `wait_timeout`: how long a call waits for a connection.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Writer,
    Reader,
    /// `read_only_fallback`
    Fallback,
}

/// Where a client can connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) node: NodeId,
    pub(crate) port: Port,
}

#[derive(Clone, Debug)]
pub(crate) struct ClientSetup {
    pub(crate) mode: Mode,
    pub(crate) addresses: Vec<Address>,
    /// The cache is a file.
    pub(crate) persistent: bool,
    /// Revisions that stay in the cache, current and older ones each.
    pub(crate) cache_len_max: usize,
    /// Each transaction begins with a `ping`.
    pub(crate) server_sync: bool,
    /// How long it thinks between two transactions, at most.
    pub(crate) pause_max: Duration,
}

/// What a client wants done, in order.
#[derive(Default)]
pub(crate) struct ClientOut {
    pub(crate) server: Vec<ToServer>,
    /// For the checks.
    pub(crate) facts: Vec<Fact>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToServer {
    Connect(Conn, Address),
    Send(Conn, ClientMessage),
    HangUp(Conn),
}

/// What a client has seen, or done.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    /// It is connected, and its cache is what it is.
    Verified {
        conn: Conn,
        how: Verification,
    },
    /// The server is behind the cache. It is refused.
    ServerBehind {
        conn: Conn,
        server: Tid,
    },
    /// The last tid became this; it was another one, and there is something in the cache.
    LastTidBack {
        from: Tid,
        to: Tid,
    },
    /// An object was read as of `tid`, in a transaction that began with that connection.
    Read {
        tid: Tid,
        generation: usize,
        oid: Oid,
        found: Option<(Tid, Value)>,
    },
    /// A transaction that only reads has ended.
    ReadAll,
    PingSent,
    Pong,
    /// The connection was lost during a finish.
    Unknown(Attempt),
    Answered(Attempt, Result<Tid, Refused>),
    /// It reconnects to be able to write.
    Upgraded,
    /// A `new_oids`.
    OidsGot,
    /// It waited for a connection for too long.
    TimedOut,
    /// It wanted to write where it can only read.
    ReadOnly,
    /// A vote was refused.
    Conflict,
    /// The machine that it runs on is gone, as it was told to be at this point.
    Vanish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verification {
    Empty,
    UpToDate,
    Quick,
    Cleared,
}

type ProtoId = u32;

/// `Protocol`: one address, which is tried again and again.
struct Proto {
    address: Address,
    conn: Option<Conn>,
    state: ProtoState,
    /// What was asked for last, or granted.
    read_only: bool,
    /// What came before the cache was verified.
    invalidations: Vec<(Tid, Vec<Oid>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProtoState {
    Connecting,
    Sleeping {
        until: Instant,
    },
    AwaitingGreeting,
    /// Some other one registers.
    AwaitingLock,
    Registering,
    /// `server` is what it said when it was asked to register.
    Verifying {
        server: Tid,
    },
    Ready,
}

/// A client process, or, while it is down, what is left of it.
pub(crate) struct Client {
    pub(crate) id: u32,
    pub(crate) setup: ClientSetup,
    pub(crate) random: Random,
    protos: BTreeMap<ProtoId, Proto>,
    proto_last: ProtoId,
    conn_last: u32,
    /// Those of the last round that were not given up.
    current: Vec<ProtoId>,
    /// Who registers; held until the cache is verified.
    lock: Option<ProtoId>,
    lock_queue: VecDeque<ProtoId>,
    chosen: Option<ProtoId>,
    retries: Vec<Instant>,
    is_operational: bool,
    /// Of this round, a connection was lost before it was registered, and by no server's will.
    has_bad_luck: bool,
    pub(crate) is_up: bool,
    pub(crate) cache: Cache,
    /// `_oids`: survives reconnects.
    pub(crate) oids: Vec<Oid>,
    /// Counts verified connections, over restarts, too.
    pub(crate) generation: usize,
    pub(crate) work: Work,
}

// From outside.
impl Client {
    pub(crate) fn new(id: u32, setup: ClientSetup, seed: u64) -> Self {
        Self {
            id,
            setup,
            random: Random::new(seed),
            protos: BTreeMap::new(),
            proto_last: 0,
            conn_last: 0,
            current: Vec::new(),
            lock: None,
            lock_queue: VecDeque::new(),
            chosen: None,
            retries: Vec::new(),
            is_operational: false,
            has_bad_luck: false,
            is_up: false,
            cache: Cache::default(),
            oids: Vec::new(),
            generation: 0,
            work: Work::default(),
        }
    }

    pub(crate) fn start(&mut self, now: Instant, out: &mut ClientOut) {
        assert!(!self.is_up, "a client is started once");
        self.is_up = true;
        self.try_connecting(out);
        self.start_work(now, out);
    }

    /// The process dies. Whoever was connected is told by who calls, or not.
    pub(crate) fn kill(&mut self, out: &mut ClientOut) {
        self.stop_work(out);
        self.protos.clear();
        self.current.clear();
        self.lock = None;
        self.lock_queue.clear();
        self.chosen = None;
        self.retries.clear();
        self.is_operational = false;
        self.is_up = false;
        self.oids.clear();
        if !self.setup.persistent {
            self.cache.clear();
        }
    }

    pub(crate) fn is_operational(&self) -> bool {
        self.is_operational
    }

    /// Connected as it wishes.
    pub(crate) fn is_content(&self) -> bool {
        let chosen = self.chosen.and_then(|id| self.protos.get(&id));
        let is_writer = chosen.is_some_and(|proto| !proto.read_only);
        self.is_operational && (is_writer || self.setup.mode == Mode::Reader)
    }

    /// Stock clients do not come back to an address whose connection ended before it was
    /// registered, as long as another one is tried. If nobody listens at that one, they never do,
    /// and no server can do anything about it.
    pub(crate) fn is_trapped(&self, is_down: impl Fn(Address) -> bool) -> bool {
        let mut protos = self.protos.values();
        self.has_bad_luck
            && self.retries.is_empty()
            && self.chosen.is_none()
            && protos.all(|proto| is_down(proto.address))
    }

    /// Where its connections are.
    pub(crate) fn describe(&self) -> String {
        let protos = self.protos.iter().map(|(id, proto)| {
            let address = proto.address;
            format!(
                "{id}: {}/{:?} {:?}",
                address.node, address.port, proto.state
            )
        });
        let protos: Vec<String> = protos.collect();
        format!(
            "{:?}, chosen {:?}, lock {:?}, {} retries, {}",
            self.setup.mode,
            self.chosen,
            self.lock,
            self.retries.len(),
            protos.join("; ")
        )
    }

    /// Where it is connected to.
    pub(crate) fn conn(&self) -> Option<Conn> {
        self.protos.get(&self.chosen?)?.conn
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let sleeping = self.protos.values().filter_map(|proto| match proto.state {
            ProtoState::Sleeping { until } => Some(until),
            _ => None,
        });
        let timers = sleeping.chain(self.retries.iter().copied());
        let next = timers.chain(self.work_timer()).min();
        next.filter(|_| self.is_up)
    }

    pub(crate) fn on_timer(&mut self, now: Instant, out: &mut ClientOut) {
        let due =
            |proto: &Proto| matches!(proto.state, ProtoState::Sleeping { until } if until <= now);
        let sleepers = self.protos.iter().filter(|(_, proto)| due(proto));
        let sleepers: Vec<ProtoId> = sleepers.map(|(id, _)| *id).collect();
        for id in sleepers {
            self.connect(id, out);
        }
        let count = self.retries.len();
        self.retries.retain(|at| *at > now);
        for _ in self.retries.len()..count {
            self.try_connecting(out);
        }
        self.on_work_timer(now, out);
    }

    pub(crate) fn on_connected(&mut self, conn: Conn) {
        if let Some(proto) = self.proto_of(conn).and_then(|id| self.protos.get_mut(&id)) {
            proto.state = ProtoState::AwaitingGreeting;
        }
    }

    pub(crate) fn on_refused(&mut self, conn: Conn, now: Instant) {
        let until = now + Duration::from_secs(1) + self.up_to_a_second();
        if let Some(proto) = self.proto_of(conn).and_then(|id| self.protos.get_mut(&id)) {
            proto.conn = None;
            proto.state = ProtoState::Sleeping { until };
        }
    }

    /// `is_accident`: it is not the server that has closed it.
    pub(crate) fn on_hangup(
        &mut self,
        conn: Conn,
        is_accident: bool,
        now: Instant,
        out: &mut ClientOut,
    ) {
        if let Some(id) = self.proto_of(conn) {
            self.has_bad_luck |= is_accident && self.chosen != Some(id);
            self.protos.get_mut(&id).expect("just found").conn = None;
            self.close(id, out);
            self.disconnected(id, now, out);
        }
    }

    pub(crate) fn on_message(
        &mut self,
        conn: Conn,
        message: ServerMessage,
        now: Instant,
        out: &mut ClientOut,
    ) {
        let Some(id) = self.proto_of(conn) else {
            return;
        };
        match message {
            ServerMessage::Greeting => self.on_greeting(id, out),
            ServerMessage::Registered(tid) => self.on_registered(id, tid, now, out),
            ServerMessage::Invalidations(list) => self.on_invalidations(id, list, out),
            ServerMessage::Info => self.on_info(id, now, out),
            ServerMessage::Invalidate { tid, oids } => self.on_invalidate(id, tid, oids, out),
            message if self.chosen == Some(id) => self.on_reply(message, now, out),
            _ => {}
        }
    }

    /// To the server that it works with.
    pub(crate) fn call(&self, message: ClientMessage, out: &mut ClientOut) {
        if let Some(conn) = self.conn() {
            out.server.push(ToServer::Send(conn, message));
        }
    }

    /// A finish has failed: nobody knows what is in the cache of the connection.
    pub(crate) fn drop_connection(&mut self, now: Instant, out: &mut ClientOut) {
        if let Some(id) = self.chosen {
            self.close(id, out);
            self.disconnected(id, now, out);
        }
    }

    /// All addresses once more, though some may be connected: `new_addrs` does it, and so do some
    /// of the failures.
    pub(crate) fn connect_again(&mut self, out: &mut ClientOut) {
        self.try_connecting(out);
    }

    pub(crate) fn set_last(&mut self, tid: Tid, out: &mut ClientOut) {
        let from = self.cache.last();
        if !self.cache.set_last(tid) {
            out.facts.push(Fact::LastTidBack { from, to: tid });
        }
    }
}

// What becomes of the connections.
impl Client {
    fn proto_of(&self, conn: Conn) -> Option<ProtoId> {
        let mut protos = self.protos.iter();
        let found = protos.find(|(_, proto)| proto.conn == Some(conn));
        found.map(|(id, _)| *id)
    }

    fn up_to_a_second(&mut self) -> Duration {
        Duration::from_micros(self.random.next() % 1_000_000)
    }

    /// Also while others are being tried, or one is connected: stock clients do not look.
    fn try_connecting(&mut self, out: &mut ClientOut) {
        self.current.clear();
        self.has_bad_luck = false;
        for address in self.setup.addresses.clone() {
            self.proto_last += 1;
            let proto = Proto {
                address,
                conn: None,
                state: ProtoState::Connecting,
                read_only: self.setup.mode == Mode::Reader,
                invalidations: Vec::new(),
            };
            self.protos.insert(self.proto_last, proto);
            self.current.push(self.proto_last);
            self.connect(self.proto_last, out);
        }
    }

    fn connect(&mut self, id: ProtoId, out: &mut ClientOut) {
        self.conn_last += 1;
        let conn = u64::from(self.id) << 32 | u64::from(self.conn_last);
        let proto = self.protos.get_mut(&id).expect("it is being tried");
        proto.conn = Some(conn);
        proto.state = ProtoState::Connecting;
        out.server.push(ToServer::Connect(conn, proto.address));
    }

    fn close(&mut self, id: ProtoId, out: &mut ClientOut) {
        if let Some(conn) = self.protos.remove(&id).and_then(|proto| proto.conn) {
            out.server.push(ToServer::HangUp(conn));
        }
        self.lock_queue.retain(|of| *of != id);
        self.unlock(id, out);
    }

    fn unlock(&mut self, id: ProtoId, out: &mut ClientOut) {
        if self.lock == Some(id) {
            self.lock = None;
            if let Some(next) = self.lock_queue.pop_front() {
                self.register(next, out);
            }
        }
    }

    fn clear_protocols(&mut self, but: Option<ProtoId>, out: &mut ClientOut) {
        for id in std::mem::take(&mut self.current) {
            if Some(id) != but {
                self.close(id, out);
            }
        }
    }

    fn none_is_tried(&self) -> bool {
        let mut current = self.current.iter();
        !current.any(|id| self.protos.contains_key(id))
    }

    /// A connection has ended, and not by our will.
    fn disconnected(&mut self, id: ProtoId, now: Instant, out: &mut ClientOut) {
        if self.chosen == Some(id) {
            self.is_operational = false;
            self.chosen = None;
            self.clear_protocols(None, out);
            self.on_disconnected(now, out);
        }
        if self.none_is_tried() {
            self.try_connecting(out);
        }
    }

    fn register_failed(&mut self, id: ProtoId, now: Instant, out: &mut ClientOut) {
        self.close(id, out);
        if self.chosen.is_none() && self.none_is_tried() {
            let retry = now + Duration::from_secs(9) + self.up_to_a_second();
            self.retries.push(retry);
        }
    }

    fn on_greeting(&mut self, id: ProtoId, out: &mut ClientOut) {
        if self.lock.is_none() {
            self.register(id, out);
        } else {
            self.protos.get_mut(&id).expect("it was greeted").state = ProtoState::AwaitingLock;
            self.lock_queue.push_back(id);
        }
    }

    fn register(&mut self, id: ProtoId, out: &mut ClientOut) {
        self.lock = Some(id);
        let proto = self.protos.get_mut(&id).expect("it was greeted");
        proto.state = ProtoState::Registering;
        let read_only = proto.read_only;
        if let Some(conn) = proto.conn {
            let message = ClientMessage::Register { read_only };
            out.server.push(ToServer::Send(conn, message));
        }
    }

    /// `None` is ReadOnlyError.
    fn on_registered(&mut self, id: ProtoId, tid: Option<Tid>, now: Instant, out: &mut ClientOut) {
        let is_fallback = self.setup.mode == Mode::Fallback;
        let proto = self.protos.get_mut(&id).expect("it has registered");
        let read_only = proto.read_only;
        let Some(tid) = tid else {
            if is_fallback && !read_only {
                proto.read_only = true;
                self.register(id, out);
            } else {
                self.register_failed(id, now, out);
            }
            return;
        };
        let chosen = self.chosen.and_then(|chosen| self.protos.get(&chosen));
        match chosen {
            None => {
                self.chosen = Some(id);
                if !(is_fallback && read_only) {
                    self.clear_protocols(Some(id), out);
                }
                self.verify(id, tid, now, out);
            }
            Some(chosen) if is_fallback && !read_only && chosen.read_only => {
                let before = self.chosen.replace(id).expect("just looked at");
                self.is_operational = false;
                self.close(before, out);
                self.clear_protocols(Some(id), out);
                self.on_disconnected(now, out);
                out.facts.push(Fact::Upgraded);
                self.verify(id, tid, now, out);
            }
            // Too late: it went home with another.
            Some(_) => self.close(id, out),
        }
    }

    fn verify(&mut self, id: ProtoId, server: Tid, now: Instant, out: &mut ClientOut) {
        let conn = self.conn().expect("it has registered");
        let last = self.cache.last();
        if self.cache.is_empty() {
            self.verified(id, server, Verification::Empty, out);
        } else if last > server {
            out.facts.push(Fact::ServerBehind { conn, server });
            self.chosen = None;
            self.register_failed(id, now, out);
        } else if last == server {
            self.verified(id, server, Verification::UpToDate, out);
        } else {
            self.protos.get_mut(&id).expect("it is chosen").state =
                ProtoState::Verifying { server };
            self.call(ClientMessage::GetInvalidations { tid: last }, out);
        }
    }

    fn on_invalidations(
        &mut self,
        id: ProtoId,
        list: Option<(Tid, Vec<Oid>)>,
        out: &mut ClientOut,
    ) {
        let state = self.protos.get(&id).map(|proto| proto.state);
        let Some(ProtoState::Verifying { server }) = state else {
            return;
        };
        if let Some((tid, oids)) = list {
            oids.iter()
                .for_each(|oid| self.cache.invalidate(*oid, None));
            self.verified(id, tid, Verification::Quick, out);
        } else {
            self.cache.clear();
            self.verified(id, server, Verification::Cleared, out);
        }
    }

    fn verified(&mut self, id: ProtoId, server: Tid, how: Verification, out: &mut ClientOut) {
        self.set_last(server, out);
        let proto = self.protos.get_mut(&id).expect("it is chosen");
        proto.state = ProtoState::Ready;
        let queued = std::mem::take(&mut proto.invalidations);
        let conn = proto.conn.expect("it is connected");
        for (tid, oids) in queued.into_iter().filter(|(tid, _)| *tid > server) {
            self.invalidate(tid, &oids, out);
        }
        self.generation += 1;
        out.facts.push(Fact::Verified { conn, how });
        self.call(ClientMessage::GetInfo, out);
    }

    fn on_info(&mut self, id: ProtoId, now: Instant, out: &mut ClientOut) {
        if self.chosen == Some(id) {
            self.is_operational = true;
            self.unlock(id, out);
            self.on_operational(now, out);
        }
    }

    fn on_invalidate(&mut self, id: ProtoId, tid: Tid, oids: Vec<Oid>, out: &mut ClientOut) {
        let proto = self.protos.get_mut(&id).expect("it has said something");
        if proto.state == ProtoState::Ready {
            self.invalidate(tid, &oids, out);
        } else {
            proto.invalidations.push((tid, oids));
        }
    }

    fn invalidate(&mut self, tid: Tid, oids: &[Oid], out: &mut ClientOut) {
        for oid in oids {
            self.cache.invalidate(*oid, Some(tid));
        }
        self.set_last(tid, out);
    }
}
