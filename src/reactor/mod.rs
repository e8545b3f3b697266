//! The one loop that everything runs in: sockets, timers, signals, and the ends of disk jobs.
//!
//! This module and its children alone know mio, sockets and the clock. What a call means is the
//! server's business ([`crate::server`]), which takes bytes and the time and gives back bytes,
//! jobs and the next deadline.

mod addresses;
mod admin;
mod certificates;
mod cluster;
mod connection;
mod copying;
pub mod daemon;
mod follow;
pub mod hub;
mod listener;
mod lookout;
mod office;
mod packing;
pub mod peers;
mod signals;
mod status;
mod tasks;
mod timer;
mod worker;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::{Events, Poll, Token, Waker};
use sd_notify::NotifyState;
use slab::Slab;

use self::addresses::Addresses;
use self::admin::Admin;
use self::certificates::Certificates;
use self::cluster::Cluster;
use self::connection::{Connection, ReadError, ReadOutcome};
use self::follow::Following;
use self::listener::Listener;
use self::signals::{Signal, Signals};
use self::timer::Timers;
use self::worker::Workers;
use crate::config::{self, Config, StorageConfig, StorageKind};
use crate::exit::Exit;
use crate::ids::ClientId;
use crate::limits::{
    ACCEPTS_PER_TURN, CALLS_PER_TURN, DESCRIPTORS_KEPT, READ_BYTES_PER_TURN, REGISTER_TIMEOUT,
    WRITE_BYTES_PER_TURN,
};
use crate::logging;
use crate::server::{self, Now, Output, Port, Server};
use crate::storage::disk::{Disk, OsDisk};
use crate::storage::memory::MemoryDisk;
use crate::storage::recover::Progress;
use crate::storage::{self, FileStorage, PackOptions};
use crate::tls::Channel;
use crate::zeo::Encoding;

/// Token of the waker, where no connection's serial comes.
const WAKER: Token = Token(usize::MAX);

/// Token of the group's daemon; listeners count down from here.
const DAEMON: Token = Token(usize::MAX - 1);

/// Events taken from the kernel in one poll.
const EVENTS_PER_POLL: usize = 1024;

/// How long a listener rests when the process has no file descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(500);

/// Time between two looks at what is due only roughly.
const TICK: Duration = Duration::from_secs(5);

/// How long a stop waits for transactions that are on their way to the disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a primary that is to stop waits for another one to take over.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stop waits for clients to take their last replies.
const LAST_REPLIES_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two complaints that no connection can be accepted.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Something with a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The client has to be registered by then.
    Register(ClientId),
    /// The listener may accept again.
    Accept(usize),
    /// What the server asked for.
    Server,
    /// What the group asked for.
    Group,
    /// A primary that is to stop has had the time to hand over.
    Leave,
    /// The regular look.
    Tick,
}

/// The loop with all that it serves.
struct Reactor {
    poll: Poll,
    listeners: Vec<Listener>,
    /// For whom each is.
    ports: Vec<Port>,
    /// Listeners that may have a connection waiting.
    acceptable: Vec<bool>,
    connections: Slab<Connection>,
    /// Connections accepted so far: the part of a client's id that is never reused.
    accepted: u32,
    /// Slab keys of connections that have something to do, or may have.
    ready: Vec<usize>,
    workers: Workers,
    server: Server,
    timers: Timers<Timer>,
    signals: Signals,
    log: logging::Handle,
    /// How connections are encrypted, if they are.
    certificates: Option<Certificates>,
    /// The cluster that we are a node of, if there is one.
    cluster: Option<Cluster>,
    /// Where administrators and monitors connect, if they can.
    admin: Option<Admin>,
    /// Who copies what other servers have, if anybody does.
    following: Option<Following>,
    /// What sockets are read into; frames are cut from copies that are just long enough.
    scratch: Vec<u8>,
    /// Connections at a time: files need descriptors, too.
    connections_max: usize,
    /// When it was said that no connection can be accepted.
    complained: Option<Instant>,
}

/// Serves until a signal ends it. `started` is called once, with the addresses, when clients can
/// connect.
pub fn run(config: &Config, log: logging::Handle, started: impl FnOnce(&[String])) -> ExitCode {
    match Reactor::start(config, log) {
        Ok(mut reactor) => {
            let addresses: Vec<String> = reactor.listeners.iter().map(Listener::describe).collect();
            for address in &addresses {
                log::info!("listening on {address}");
            }
            started(&addresses);
            notify(&[NotifyState::Ready]);
            let exit = reactor.serve();
            notify(&[NotifyState::Stopping]);
            let exit = reactor.stop(exit);
            log::info!("stopped");
            exit.into()
        }
        Err((exit, message)) => {
            log::error!("{message}");
            exit.into()
        }
    }
}

impl Reactor {
    /// Binds, opens, and starts the threads.
    fn start(config: &Config, log: logging::Handle) -> Result<Self, (Exit, String)> {
        let internal = |error: io::Error| (Exit::Internal, format!("cannot start: {error}"));
        let connections_max = raise_descriptor_limit();
        let poll = Poll::new().map_err(internal)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(internal)?);
        // From here on no signal ends the process: opening may take minutes, and would begin anew.
        let signals = Signals::install(waker.clone()).map_err(internal)?;
        let load = |ssl| Certificates::load(ssl, &waker).map_err(|error| (Exit::Usage, error));
        let certificates = config.ssl.as_ref().map(load).transpose()?;
        let between_nodes = config.standby.as_ref().and_then(|it| it.ssl.as_ref());
        let between_nodes = between_nodes.map(load).transpose()?;
        // Who can connect shall be served, so listening comes last.
        let addresses = Addresses::bind(config)?;
        let mut storages = Vec::new();
        let mut opening = None;
        match &config.standby {
            None => {
                for storage in &config.storages {
                    storages.push(open(config, storage, &signals)?);
                }
            }
            Some(standby) => {
                let (follow, opened) = cluster::open(config, standby, now())?;
                storages = follow;
                opening = Some((standby, opened));
            }
        }
        let workers = Workers::start(storages.len(), &waker).map_err(internal)?;
        let options = server::Options {
            encoding: if config.msgpack {
                Encoding::M
            } else {
                Encoding::Z
            },
            read_only: config.read_only,
            invalidation_queue_size: config.invalidation_queue_size,
            invalidation_age: config.invalidation_age.unwrap_or_default(),
            transaction_timeout: config.transaction_timeout,
            start: logging::local_time_text(system_time()),
        };
        let mut server = Server::new(options, storages, now());
        for follow in &config.follow {
            server.set_following(&follow.storage, follow::AWAY, now());
        }
        let doors = addresses.peers.into_iter();
        let doors = doors.map(|bound| addresses::listen("peer-address", bound, None));
        let doors = doors.collect::<Result<Vec<Listener>, _>>()?;
        let join = |(standby, opened)| {
            let around = cluster::Surroundings {
                registry: poll.registry(),
                token: DAEMON,
                waker: &waker,
                certificates: between_nodes,
                doors,
                traffic: workers.traffic(),
            };
            Cluster::join(standby, opened, around, now())
        };
        let cluster = opening.map(join).transpose().map_err(internal)?;
        let mut timers = Timers::new();
        timers.set(Timer::Tick, Some(now().mono + TICK));
        let (mut listeners, mut ports) = (Vec::new(), Vec::new());
        for (at, (bound, port)) in addresses.clients.into_iter().enumerate() {
            let mut listener = addresses::listen(addresses::key_of(port), bound, None)?;
            let registered = listener.register(poll.registry(), listener_token(at));
            registered.map_err(internal)?;
            listeners.push(listener);
            ports.push(port);
        }
        let open = |bound| Admin::new(bound, poll.registry(), now().mono);
        let admin = addresses.admin.map(open).transpose()?;
        let following = Following::start(&config.follow, &waker)?;
        Ok(Self {
            workers,
            signals,
            server,
            acceptable: vec![true; listeners.len()],
            poll,
            listeners,
            ports,
            connections: Slab::new(),
            accepted: 0,
            ready: Vec::new(),
            timers,
            log,
            certificates,
            cluster,
            admin,
            following,
            scratch: vec![0; READ_BYTES_PER_TURN],
            connections_max,
            complained: None,
        })
    }

    /// Turns until a signal says that it is over.
    fn serve(&mut self) -> Exit {
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        // It has something to do without being asked.
        self.follow_server();
        let mut leaving = None;
        loop {
            if let Err(error) = self.turn(&mut events) {
                log::error!("the event loop failed ({error})");
                return Exit::Internal;
            }
            if let Some(exit) = self.on_signals() {
                // Again: that is meant.
                if leaving.is_some() {
                    return exit;
                }
                leaving = self.hand_over().map(|until| (exit, until));
                if leaving.is_none() {
                    return exit;
                }
            }
            if let Some((exit, until)) = leaving
                && (now().mono >= until || !self.cluster.as_ref().is_some_and(Cluster::is_primary))
            {
                return exit;
            }
            if let Some(why) = self.cluster.as_ref().and_then(|it| it.stopped.as_deref()) {
                log::error!("this node must not go on: {why}");
                return Exit::NodeStopped;
            }
        }
    }

    /// A primary that is to stop lets another one take over first, so that no client is left in
    /// doubt of what became of its transaction. Until when that may take; `None` if there is
    /// nobody.
    fn hand_over(&mut self) -> Option<Instant> {
        let now = now();
        let cluster = self.cluster.as_mut()?;
        if !cluster.hand_over(&mut self.server, now) {
            return None;
        }
        let until = now.mono + HAND_OVER_TIMEOUT;
        self.timers.set(Timer::Leave, Some(until));
        Some(until)
    }

    /// One turn, always in this order:
    ///
    /// 1. wait for events, or not at all if a connection has more to do than its last turn allowed;
    ///    read the group's daemon before anybody else, since it drops who reads slowly;
    /// 2. take the ends of disk jobs, so that what is committed is published before anybody reads;
    /// 3. read each ready connection, to the end or to its budget, and execute its calls;
    /// 4. accept; answer administrators;
    /// 5. fire the timers;
    /// 6. hand the jobs of this turn to the workers: the finishes of one turn share a sync;
    /// 7. write to every connection that has something to send, and to the daemon. A reply that
    ///    promises durability is queued only when its sync is done (2), so none can leave early
    ///    here;
    /// 8. close what is to be closed.
    ///
    /// What the ends of disk jobs lead to (2) is written and closed at once, too; a connection that
    /// is closed is found by nobody in the steps behind.
    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        self.wait(events)?;
        let now = now();
        if let Some(cluster) = &mut self.cluster {
            cluster.turn(&mut self.server, now);
        }
        while let Some((tag, done)) = self.workers.take_done() {
            self.server.on_done(tag, done, now);
        }
        if let Some(certificates) = &mut self.certificates {
            certificates.take_loaded();
        }
        self.follow_server();
        for key in std::mem::take(&mut self.ready) {
            self.serve_connection(key, now);
        }
        for at in 0..self.listeners.len() {
            self.accept(at, now);
        }
        self.take_feeds(now);
        self.serve_admin(now);
        while let Some(timer) = self.timers.pop_due(now.mono) {
            self.on_timer(timer, now);
        }
        self.server.end_turn(now);
        self.follow_server();
        self.workers.end_turn();
        self.timers.set(Timer::Server, self.server.deadline());
        if let Some(cluster) = &mut self.cluster {
            cluster.flush(now.mono);
            self.timers.set(Timer::Group, cluster.deadline());
        }
        Ok(())
    }

    /// Waits for the kernel, and notes what it says.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let group_has_more = self.cluster.as_ref().is_some_and(|it| it.has_more);
        let admin_has_more = self.admin.as_ref().is_some_and(Admin::has_more);
        let is_idle = self.ready.is_empty() && !self.acceptable.contains(&true);
        let timeout = if is_idle && !group_has_more && !admin_has_more {
            self.timers
                .next()
                .map(|deadline| deadline.saturating_duration_since(now().mono))
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in events.iter() {
            let token = event.token();
            if token == WAKER {
                continue;
            }
            if token == DAEMON {
                if let Some(cluster) = &mut self.cluster {
                    cluster.on_ready(event);
                }
                continue;
            }
            if Admin::owns(token) {
                if let Some(admin) = &mut self.admin {
                    admin.on_ready(event);
                }
                continue;
            }
            if let Some(cluster) = &mut self.cluster
                && cluster.owns(token)
            {
                cluster.on_peer_ready(event);
                continue;
            }
            if let Some(at) = listener_at(token, self.listeners.len()) {
                self.acceptable[at] = true;
                continue;
            }
            let client = client_of(token);
            let key = client.key as usize;
            // The connection may have been closed, and its key may have another one now.
            let connection = self.connections.get_mut(key);
            let Some(connection) = connection.filter(|it| it.client == client) else {
                continue;
            };
            connection.readable |= event.is_readable() || event.is_read_closed();
            connection.read_closed |= event.is_read_closed() || event.is_error();
            connection.writable |= event.is_writable();
            self.queue(key);
        }
        Ok(())
    }

    /// The connection gets its turn.
    fn queue(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push(key);
        }
    }

    /// Writes what waits, reads what there is, executes what is complete; each within its bound.
    fn serve_connection(&mut self, key: usize, now: Now) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.queued = false;
        let client = connection.client;
        // Room may have come: a client that was paused for what it does not take goes on.
        self.write(key);
        // Calls first that a former turn left over: reading on would pile them up.
        let mut more = self.server.run_calls(client, CALLS_PER_TURN, now);
        if !more
            && let Some(connection) = self.connections.get_mut(key)
            && connection.readable
            && self.server.wants_input(client)
        {
            let was_open = connection.is_open();
            let server = &mut self.server;
            let outcome = connection.read(&mut self.scratch, |data| server.receive(client, data));
            match outcome {
                Ok(ReadOutcome::Received) => {
                    self.shake_hands(key, was_open);
                    more = self.server.run_calls(client, CALLS_PER_TURN, now);
                }
                Ok(ReadOutcome::WouldBlock) => {}
                Ok(ReadOutcome::End) => return self.server.on_end(client, now),
                Err(ReadError::Socket(error)) => {
                    return self.server.on_broken(client, &error, now);
                }
                Err(ReadError::Tls(error)) if was_open => {
                    let error = io::Error::other(format!("TLS: {error}"));
                    return self.server.on_broken(client, &error, now);
                }
                Err(ReadError::Tls(error)) => {
                    return self.server.on_refused(client, &error.to_string(), now);
                }
            }
        }
        let readable = self
            .connections
            .get(key)
            .is_some_and(|connection| connection.readable);
        if more || (readable && self.server.wants_input(client)) {
            self.queue(key);
        }
    }

    /// Sends what TLS has to say of itself; when both sides know each other, it can begin.
    fn shake_hands(&mut self, key: usize, was_open: bool) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let opened = !was_open && connection.is_open();
        if opened && let Some(tls) = connection.tls() {
            log::debug!("{}: {}", connection.client, tls.describe());
        }
        if opened || connection.has_unsent() {
            self.write(key);
        }
    }

    /// Writes to a connection until nothing is left or there is no room.
    fn write(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let client = connection.client;
        let Some(out) = self.server.output_of(client) else {
            return;
        };
        let mut budget = WRITE_BYTES_PER_TURN;
        while connection.writable && budget > 0 {
            match connection.write(out, budget) {
                Ok(0) => break,
                Ok(len) => budget = budget.saturating_sub(len),
                Err(error) => {
                    self.server.on_broken(client, &error, now());
                    return;
                }
            }
        }
        if budget == 0 {
            self.queue(key);
        }
        self.server.on_written(client);
    }

    /// Accepts from one listener, up to its budget.
    fn accept(&mut self, at: usize, now: Now) {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.acceptable[at] {
                return;
            }
            if self.connections.len() >= self.connections_max {
                let all = io::Error::other("that is the limit of open files, less some for us");
                return self.rest(at, &all, now);
            }
            match self.listeners[at].accept() {
                Ok((stream, peer)) => self.connect(stream, peer, self.ports[at], now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.acceptable[at] = false;
                }
                // The peer was gone before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return self.rest(at, &error, now),
            }
        }
    }

    /// Accepts no more for a while: trying again at once would spin. Who wants to connect stays in
    /// the kernel's queue.
    fn rest(&mut self, at: usize, error: &io::Error, now: Now) {
        if self
            .complained
            .is_none_or(|last| now.mono >= last + COMPLAINT_INTERVAL)
        {
            self.complained = Some(now.mono);
            let count = self.connections.len();
            log::error!("cannot accept connections while {count} are open: {error}");
        }
        self.acceptable[at] = false;
        self.timers
            .set(Timer::Accept(at), Some(now.mono + ACCEPT_REST));
    }

    fn connect(&mut self, stream: connection::Stream, peer: String, port: Port, now: Now) {
        let tls = match &self.certificates {
            None => None,
            Some(certificates) => match certificates.channel() {
                Some(tls) => Some(tls),
                None => return,
            },
        };
        if let Some(client) = self.adopt(stream, &peer, tls) {
            self.server.connect(client, peer, port, now);
            self.timers
                .set(Timer::Register(client), Some(now.mono + REGISTER_TIMEOUT));
        }
    }

    /// A connection that a thread of ours has made.
    fn connect_feed(&mut self, stream: connection::Stream, peer: String, now: Now) {
        if let Some(client) = self.adopt(stream, &peer, None) {
            self.server.connect_feed(client, peer, now);
        }
    }

    /// Takes a connection among those that are served.
    fn adopt(
        &mut self,
        stream: connection::Stream,
        peer: &str,
        tls: Option<Channel>,
    ) -> Option<ClientId> {
        self.accepted = self.accepted.wrapping_add(1);
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let client = ClientId {
            serial: self.accepted,
            key: u32::try_from(key).ok()?,
        };
        let mut connection = Connection::new(stream, tls, client);
        if let Err(error) = connection.register(self.poll.registry(), connection_token(client)) {
            log::error!("{peer}: cannot be polled ({error})");
            return None;
        }
        // It gets its greeting, and what it has sent already is read.
        connection.readable = true;
        entry.insert(connection);
        self.queue(key);
        Some(client)
    }

    fn on_timer(&mut self, timer: Timer, now: Now) {
        match timer {
            Timer::Register(client) => self.on_register_timeout(client, now),
            Timer::Accept(at) => self.acceptable[at] = true,
            Timer::Server => self.server.on_deadline(now),
            Timer::Group => {
                if let Some(cluster) = &mut self.cluster {
                    cluster.on_deadline(&mut self.server, now);
                }
            }
            // It is looked at after each turn.
            Timer::Leave => {}
            Timer::Tick => {
                self.server.on_tick(now);
                if let Some(admin) = &mut self.admin {
                    admin.on_tick(self.poll.registry(), now.mono);
                }
                self.timers.set(Timer::Tick, Some(now.mono + TICK));
            }
        }
    }

    fn on_register_timeout(&mut self, client: ClientId, now: Now) {
        let connection = self.connections.get(client.key as usize);
        let connection = connection.filter(|it| it.client == client && !it.is_open());
        match connection.and_then(Connection::tls) {
            None => self.server.on_register_timeout(client, now),
            Some(tls) if tls.has_begun() => {
                let problem = "the handshake is not done in time";
                self.server.on_refused(client, problem, now);
            }
            Some(_) => {
                let problem = "it waits for us to begin: a client without <ssl>?";
                self.server.on_refused(client, problem, now);
            }
        }
    }

    /// Does what the server has asked for, until it asks for no more.
    fn follow_server(&mut self) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::ToNode(what) => {
                    if let Some(cluster) = &mut self.cluster {
                        cluster.on_server(what, &mut self.server, now());
                    }
                }
                Output::Run(tag, job) => self.workers.submit(tag, job),
                Output::Send(client) => self.write(client.key as usize),
                Output::Serve(client) => self.queue(client.key as usize),
                Output::Close(client) => self.close(client),
                // Only of storages that a log writes to; none is opened here.
            }
        }
    }

    fn close(&mut self, client: ClientId) {
        let key = client.key as usize;
        // What is queued was promised; there is no second try.
        self.write(key);
        self.timers.set(Timer::Register(client), None);
        if let Some(mut connection) = self.connections.try_remove(key) {
            connection.say_goodbye();
            if let Err(error) = connection.deregister(self.poll.registry()) {
                log::warn!("{client}: {error}");
            }
        }
        self.server.forget(client);
    }

    fn on_signals(&mut self) -> Option<Exit> {
        while let Some(signal) = self.signals.take() {
            match signal {
                Signal::Stop(name) => {
                    log::info!("terminated by {name}");
                    return Some(Exit::Stopped);
                }
                Signal::HangUp if !self.log.has_files() => {
                    log::info!("hung up by SIGHUP, and there is no log file to reopen");
                    return Some(Exit::HungUp);
                }
                Signal::HangUp | Signal::ReopenLog => self.reopen(),
            }
        }
        None
    }

    /// Opens log files anew, and reads certificates anew: both may have been replaced.
    fn reopen(&mut self) {
        let certificates = self.certificates.as_mut();
        let mut has_certificates = certificates.map(Certificates::reload).is_some();
        if let Some(cluster) = &mut self.cluster {
            has_certificates |= cluster.reload_certificates();
        }
        if self.log.has_files() {
            match self.log.reopen() {
                Ok(()) => log::info!("log files reopened"),
                Err(error) => log::error!("log files not reopened: {error}"),
            }
        } else if !has_certificates {
            log::warn!("SIGUSR2: there is no log file to reopen");
        }
    }

    /// Stops in good order: no new connections or calls; what is on its way to the disk gets there
    /// and is answered; then the storages are closed.
    fn stop(mut self, exit: Exit) -> Exit {
        if let Some(cluster) = &mut self.cluster {
            // The others need not find out.
            cluster.leave(now().mono);
        }
        if let Some(following) = &self.following {
            following.stop();
        }
        self.listeners.clear();
        self.admin = None;
        self.acceptable.clear();
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let deadline = now().mono + DRAIN_TIMEOUT;
        self.server.give_up_packs(now());
        self.server.end_turn(now());
        self.follow_server();
        while self.is_writing() && now().mono < deadline {
            self.drain(&mut events, deadline);
        }
        let deadline = now().mono + LAST_REPLIES_TIMEOUT;
        while self.has_output() && now().mono < deadline {
            self.drain(&mut events, deadline);
        }
        let Self {
            server,
            workers,
            connections,
            cluster,
            ..
        } = self;
        // The sockets last, so that who sees one closed finds the file closed, too.
        let drained = !server.is_writing();
        if drained {
            // What is left reads, or saves an index; that has its time.
            workers.stop();
        } else {
            log::error!("the disk does not answer; stopping without it");
        }
        let mut closed = server.close(drained);
        if let Some(cluster) = cluster {
            closed &= cluster.close();
        }
        for (_, mut connection) in connections {
            connection.say_goodbye();
        }
        if closed {
            exit
        } else {
            exit.max(Exit::WriteFailed)
        }
    }
}

impl Reactor {
    /// Whether anything is on its way to a disk.
    fn is_writing(&self) -> bool {
        self.server.is_writing() || self.cluster.as_ref().is_some_and(Cluster::is_writing)
    }

    /// Whether anything waits for a socket that can still be sent.
    fn has_output(&self) -> bool {
        self.connections.iter().any(|(_, connection)| {
            let queued = connection.is_open() && self.server.has_output(connection.client);
            queued || connection.has_unsent()
        })
    }

    /// A turn of a server that stops: it waits for the disk and for sockets, and reads nothing.
    fn drain(&mut self, events: &mut Events, deadline: Instant) {
        // Others are not wanted any more.
        self.timers.clear();
        self.timers.set(Timer::Tick, Some(deadline));
        if let Err(error) = self.wait(events) {
            log::error!("the event loop failed ({error})");
        }
        if let Some(cluster) = &mut self.cluster {
            // What it says would wake us for ever, if nobody took it.
            cluster.turn(&mut self.server, now());
        }
        for key in std::mem::take(&mut self.ready) {
            if let Some(connection) = self.connections.get_mut(key) {
                connection.queued = false;
            }
            self.write(key);
        }
        while let Some((tag, done)) = self.workers.take_done() {
            self.server.on_done(tag, done, now());
        }
        self.server.end_turn(now());
        self.follow_server();
        self.workers.end_turn();
    }
}

fn open(
    config: &Config,
    storage: &StorageConfig,
    signals: &Signals,
) -> Result<FileStorage, (Exit, String)> {
    let (disk, path, options) = storage_options(config, storage);
    let path = &path;
    let mut reported = now().mono;
    let mut progress = |progress: Progress| {
        if signals.wants_stop() {
            // Nothing has been written, and nobody was served.
            log::info!("terminated while opening");
            std::process::exit(Exit::Stopped as i32);
        }
        let at = now().mono;
        if at >= reported + Duration::from_secs(2) {
            reported = at;
            log::info!(
                "{}: {} of {} MB read",
                storage.name,
                progress.done >> 20,
                progress.total >> 20
            );
            // A service manager that waits for us shall go on waiting.
            notify(&[NotifyState::ExtendTimeoutUsec(30_000_000)]);
        }
    };
    log::info!("opening storage {:?} from {}", storage.name, path.display());
    let begun = now().mono;
    let opened = FileStorage::open(disk, path, options, &mut progress).map_err(|error| {
        (
            Exit::StorageFailed,
            format!("storage {:?}: {error}", storage.name),
        )
    })?;
    log::info!(
        "storage {:?}: {} objects, {} bytes, last transaction {}, opened in {:?}",
        storage.name,
        opened.object_count(),
        opened.file_len(),
        opened.last_tid(),
        now().mono.saturating_duration_since(begun)
    );
    Ok(opened)
}

/// Where a storage is kept, and how.
fn storage_options(
    config: &Config,
    storage: &StorageConfig,
) -> (Arc<dyn Disk>, PathBuf, storage::Options) {
    let mut options = storage::Options {
        name: storage.name.clone(),
        read_only: false,
        create: false,
        quota: None,
        client_resolves: config.client_conflict_resolution,
        lock_scope: match config.lock_scope {
            config::LockScope::Storage => storage::LockScope::Storage,
            config::LockScope::Objects => storage::LockScope::Objects,
        },
        pack: PackOptions::default(),
        blob_dir: None,
    };
    let (disk, path): (Arc<dyn Disk>, PathBuf) = match &storage.kind {
        StorageKind::Memory => {
            // Nobody could get at it.
            options.pack.keep_old = false;
            (Arc::new(MemoryDisk::new()), "memory".into())
        }
        StorageKind::File(file) => {
            options.read_only = file.read_only;
            options.create = file.create;
            options.quota = file.quota;
            options.pack = PackOptions {
                gc: file.pack_gc,
                keep_old: file.pack_keep_old,
            };
            options.blob_dir.clone_from(&file.blob_dir);
            (Arc::new(OsDisk::default()), file.path.clone())
        }
    };
    (disk, path, options)
}

/// The one look at the clocks.
#[expect(
    clippy::disallowed_methods,
    reason = "the reactor is where time comes from"
)]
fn now() -> Now {
    let since_1970 = system_time().duration_since(SystemTime::UNIX_EPOCH);
    Now {
        mono: Instant::now(),
        wall: since_1970.unwrap_or_default(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the reactor is where time comes from"
)]
fn system_time() -> SystemTime {
    SystemTime::now()
}

/// Tells a service manager, if there is one.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("the service manager was not told ({error})");
    }
}

/// Each client is a descriptor, and the usual soft limit of 1024 is for programs that use select.
/// Returns how many clients there may be.
fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    let current = match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.current,
        Err(error) => {
            log::warn!("the limit of open files stays as it is ({error})");
            before
        }
    };
    // Without a limit the kernel has one of its own.
    let current = current.unwrap_or(1 << 20);
    usize::try_from(current - DESCRIPTORS_KEPT.min(current / 2)).unwrap_or(usize::MAX)
}

// The token of a connection has both parts of its client's id, so that a late event finds nobody.

fn connection_token(client: ClientId) -> Token {
    Token((client.serial as usize) << 32 | client.key as usize)
}

fn client_of(token: Token) -> ClientId {
    ClientId {
        serial: (token.0 >> 32) as u32,
        key: (token.0 & 0xffff_ffff) as u32,
    }
}

fn listener_token(at: usize) -> Token {
    Token(DAEMON.0 - 1 - at)
}

fn listener_at(token: Token, count: usize) -> Option<usize> {
    let at = (DAEMON.0 - 1).checked_sub(token.0)?;
    (at < count).then_some(at)
}
