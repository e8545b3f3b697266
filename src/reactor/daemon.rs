//! The group-communication daemon: its one descriptor, and what moves bytes between it and the
//! group ([`crate::group`]).
//!
//! ```text
//!   Spread     a socket        read and written here; the session knows the protocol
//!   corosync   a descriptor    of its library, which reads and writes by itself
//!   loopback   nothing
//! ```
//!
//! Whoever runs the poll gives [`Daemon::turn`] the first place in each turn, and
//! [`Daemon::flush`] a place behind all that may send. Nothing here waits: names are looked up, and
//! libraries opened, by threads of their own.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::Instant;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, Waker, net};

use super::connection::{Connection, ReadError, ReadOutcome, Stream};
use crate::config::{Address, DaemonConfig, StandbyConfig};
use crate::group::channel::{Channel, Incoming};
use crate::group::fragment::Seal;
use crate::group::loopback::Loopback;
use crate::group::{Group, corosync, spread};
use crate::ids::ClientId;
use crate::limits::{
    DAEMON_BYTES_PER_TURN, DAEMON_CONNECT_TIMEOUT, READ_BYTES_PER_TURN, WRITE_BYTES_PER_TURN,
};

/// A daemon with our membership in its group. See the module's page.
pub struct Daemon {
    engine: Engine,
    channel: Channel,
    poll: Polling,
    scratch: Vec<u8>,
}

/// Where descriptors are registered, and who is woken when a thread is done.
struct Polling {
    registry: Registry,
    token: Token,
    waker: Arc<Waker>,
}

enum Engine {
    Spread(Box<SpreadLink>),
    Corosync(Box<CorosyncLink>),
    Loopback(Loopback),
}

impl Daemon {
    /// Begins to join the group; `sequence` as for [`Channel::new`]. The descriptor, of which there
    /// may be another one after each loss, is registered with `token`; `waker` is woken when a
    /// thread has done something, and [`Self::turn`] is to be called then.
    pub fn new(
        config: &StandbyConfig,
        registry: &Registry,
        token: Token,
        waker: &Arc<Waker>,
        sequence: u64,
        now: Instant,
    ) -> io::Result<Self> {
        let seal = match &config.key {
            None => Seal::Plain,
            Some(key) => Seal::keyed(key.bytes()),
        };
        let mut engine = match &config.daemon {
            DaemonConfig::Spread(address) => {
                let link = SpreadLink::new(config, address, sequence, now);
                Engine::Spread(Box::new(link.map_err(io::Error::other)?))
            }
            DaemonConfig::Corosync => {
                let link = CorosyncLink::new(config, registry, token, now)?;
                Engine::Corosync(Box::new(link))
            }
            DaemonConfig::Loopback => Engine::Loopback(Loopback::new(config.node.as_str())),
        };
        engine.group().join(now);
        Ok(Self {
            engine,
            channel: Channel::new(&config.group, seal, sequence, now),
            poll: Polling {
                registry: registry.try_clone()?,
                token,
                waker: waker.clone(),
            },
            scratch: vec![0; READ_BYTES_PER_TURN],
        })
    }

    /// Messages of ours, and what is known of the group.
    pub const fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// The daemon, for people.
    pub fn describe(&mut self) -> String {
        self.engine.group().describe()
    }

    /// Notes what the poll has said of the descriptor.
    pub fn on_ready(&mut self, event: &Event) {
        match &mut self.engine {
            Engine::Spread(link) => link.on_ready(event),
            Engine::Corosync(link) => link.readable = true,
            Engine::Loopback(_) => {}
        }
    }

    /// Takes what there is, up to a budget; connects, when it is time; sends what may be sent.
    /// Returns whether there may be more at once.
    pub fn turn(&mut self, now: Instant) -> bool {
        let more = match &mut self.engine {
            Engine::Spread(link) => {
                let taken = |session: &mut spread::session::Session| {
                    take_events(&mut self.channel, session, now);
                };
                link.turn(&self.poll, &mut self.scratch, taken, now)
            }
            Engine::Corosync(link) => {
                let taken = |session: &mut corosync::Session| {
                    take_events(&mut self.channel, session, now);
                };
                link.turn(&self.poll, taken, now)
            }
            Engine::Loopback(_) => false,
        };
        take_events(&mut self.channel, self.engine.group(), now);
        self.flush(now);
        more
    }

    /// Fires what is due. [`Self::turn`] is to follow.
    pub fn on_deadline(&mut self, now: Instant) {
        let group = self.engine.group();
        if group.deadline().is_some_and(|deadline| deadline <= now) {
            group.on_deadline(now);
        }
        if self.channel.deadline().is_some_and(|it| it <= now) {
            self.channel.on_deadline(self.engine.group(), now);
        }
    }

    /// When [`Self::on_deadline`] is to be called.
    pub fn deadline(&mut self) -> Option<Instant> {
        let link = match &self.engine {
            Engine::Spread(link) => link.deadline(),
            Engine::Corosync(_) | Engine::Loopback(_) => None,
        };
        let group = self.engine.group().deadline();
        [link, group, self.channel.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What has come. To be called until there is no more, after [`Self::turn`].
    pub fn poll_incoming(&mut self) -> Option<Incoming> {
        self.channel.poll_incoming()
    }

    /// Sends what was given to the channel, as far as that is possible now. Without a daemon that
    /// comes back at once: returns whether something has come.
    pub fn flush(&mut self, now: Instant) -> bool {
        self.channel.flush(self.engine.group(), now);
        match &mut self.engine {
            Engine::Spread(link) => link.write(),
            // The library sends by itself.
            Engine::Corosync(_) => {}
            // What was sent is there.
            Engine::Loopback(group) => take_events(&mut self.channel, group, now),
        }
        self.channel.has_incoming()
    }

    /// Gives the daemon up, and begins anew.
    pub fn reset(&mut self, why: &str, now: Instant) {
        self.engine.group().reset(why, now);
        self.turn(now);
    }

    /// Leaves the group; there are some moments for that.
    pub fn leave(&mut self, now: Instant) {
        self.engine.group().leave(now);
        self.turn(now);
    }
}

/// Gives to the channel all that has happened.
fn take_events(channel: &mut Channel, group: &mut dyn Group, now: Instant) {
    while let Some(event) = group.poll_event() {
        channel.on_event(event, group, now);
    }
}

impl Engine {
    fn group(&mut self) -> &mut dyn Group {
        match self {
            Self::Spread(link) => &mut link.session,
            Self::Corosync(link) => &mut link.session,
            Self::Loopback(group) => group,
        }
    }
}

/// A session with its socket.
struct SpreadLink {
    session: spread::session::Session,
    address: Address,
    socket: Socket,
    /// What a thread finds out, which may take longer than an attempt to connect: there is one at
    /// a time, and the attempt that is on when it is done takes what it has found.
    lookup: Option<Lookup>,
}

type Lookup = Receiver<io::Result<VecDeque<SocketAddr>>>;

enum Socket {
    Closed,
    /// A thread looks up the name: [`SpreadLink::lookup`].
    Resolving,
    /// The daemon has not answered yet; there may be other addresses to try, and an end to it.
    Connecting {
        connection: Connection,
        rest: VecDeque<SocketAddr>,
        until: Instant,
    },
    Open(Connection),
}

impl SpreadLink {
    fn new(
        config: &StandbyConfig,
        address: &Address,
        seed: u64,
        now: Instant,
    ) -> Result<Self, spread::session::OptionsError> {
        let options = spread::session::Options {
            name: config.node.to_string(),
            group: config.group.clone(),
            address: address.to_string(),
            seed,
        };
        Ok(Self {
            session: spread::session::Session::new(options, now)?,
            address: address.clone(),
            socket: Socket::Closed,
            lookup: None,
        })
    }

    fn on_ready(&mut self, event: &Event) {
        if let Socket::Connecting { connection, .. } | Socket::Open(connection) = &mut self.socket {
            connection.readable |= event.is_readable() || event.is_read_closed();
            connection.read_closed |= event.is_read_closed() || event.is_error();
            connection.writable |= event.is_writable();
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.socket {
            Socket::Connecting { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// Returns whether there may be more to read at once. `taken` is called with the session after
    /// each read, so that no more waits in it than one read brings.
    fn turn(
        &mut self,
        poll: &Polling,
        scratch: &mut [u8],
        mut taken: impl FnMut(&mut spread::session::Session),
        now: Instant,
    ) -> bool {
        if matches!(self.socket, Socket::Closed) && self.session.wants_connection() {
            self.connect(poll, now);
        }
        self.go_on_connecting(poll, now);
        if self.session.wants_close() {
            self.close(poll, "closed", now);
        }
        let Socket::Open(connection) = &mut self.socket else {
            return false;
        };
        let mut budget = DAEMON_BYTES_PER_TURN;
        let ended = loop {
            if budget == 0 || !connection.readable {
                break None;
            }
            let mut got = 0;
            let outcome = connection.read(scratch, |data| {
                got = data.len();
                self.session.receive(data, now);
            });
            taken(&mut self.session);
            budget = budget.saturating_sub(got);
            match outcome {
                Ok(ReadOutcome::Received) => {}
                Ok(ReadOutcome::WouldBlock) => break None,
                Ok(ReadOutcome::End) => break Some("it has closed the connection".to_owned()),
                Err(ReadError::Socket(error)) => break Some(error.to_string()),
                Err(ReadError::Tls(_)) => break Some("TLS where there is none".to_owned()),
            }
        };
        let more = connection.readable;
        if let Some(why) = ended {
            self.close(poll, &why, now);
            return false;
        }
        self.write();
        if self.session.wants_close() {
            self.close(poll, "closed", now);
        }
        more && matches!(self.socket, Socket::Open(_))
    }

    /// Writes what the session has for the daemon, as far as there is room.
    fn write(&mut self) {
        let Socket::Open(connection) = &mut self.socket else {
            return;
        };
        while connection.writable {
            match connection.write(self.session.output(), WRITE_BYTES_PER_TURN) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    // What the daemon had to say before, the reason perhaps, is read first.
                    log::debug!("{}: {error}", self.address);
                    connection.readable = true;
                    connection.read_closed = true;
                    connection.writable = false;
                    break;
                }
            }
        }
    }

    fn close(&mut self, poll: &Polling, why: &str, now: Instant) {
        let socket = std::mem::replace(&mut self.socket, Socket::Closed);
        if let Socket::Open(mut connection) | Socket::Connecting { mut connection, .. } = socket
            && let Err(error) = connection.deregister(&poll.registry)
        {
            log::warn!("{}: {error}", self.address);
        }
        self.session.on_closed(why.to_owned(), now);
    }

    /// Begins to connect; by a thread, if a name has to be looked up for that.
    fn connect(&mut self, poll: &Polling, now: Instant) {
        match &self.address {
            Address::Unix(path) => match net::UnixStream::connect(path) {
                Ok(stream) => self.begin(poll, Stream::Unix(stream), VecDeque::new(), now),
                Err(error) => self.session.on_closed(error.to_string(), now),
            },
            Address::Tcp { host, port } => match host.parse::<IpAddr>() {
                Ok(address) => {
                    let addresses = VecDeque::from([SocketAddr::new(address, *port)]);
                    self.try_next(poll, addresses, "it has no address".to_owned(), now);
                }
                Err(_) if self.lookup.is_some() => self.socket = Socket::Resolving,
                Err(_) => {
                    let name = (host.clone(), *port);
                    let waker = poll.waker.clone();
                    let lookup = move || name.to_socket_addrs().map(Iterator::collect);
                    match in_background("resolver", waker, lookup) {
                        Ok(receiver) => {
                            self.lookup = Some(receiver);
                            self.socket = Socket::Resolving;
                        }
                        Err(error) => self.session.on_closed(error.to_string(), now),
                    }
                }
            },
        }
    }

    /// Tries the next address of the daemon.
    fn try_next(
        &mut self,
        poll: &Polling,
        mut rest: VecDeque<SocketAddr>,
        mut why: String,
        now: Instant,
    ) {
        while let Some(next) = rest.pop_front() {
            match net::TcpStream::connect(next) {
                Ok(stream) => return self.begin(poll, Stream::Tcp(stream), rest, now),
                Err(error) => why = error.to_string(),
            }
        }
        self.socket = Socket::Closed;
        self.session.on_closed(why, now);
    }

    fn begin(&mut self, poll: &Polling, stream: Stream, rest: VecDeque<SocketAddr>, now: Instant) {
        // Nobody's: the daemon is no client.
        let client = ClientId { serial: 0, key: 0 };
        let mut connection = Connection::new(stream, None, client);
        connection.writable = false;
        if let Err(error) = connection.register(&poll.registry, poll.token) {
            return self.session.on_closed(error.to_string(), now);
        }
        self.socket = Socket::Connecting {
            connection,
            rest,
            until: now + DAEMON_CONNECT_TIMEOUT,
        };
    }

    /// Goes on with what the thread has found, if it has.
    fn take_addresses(&mut self, poll: &Polling, now: Instant) {
        let found = match self.lookup.take() {
            Some(lookup) => match lookup.try_recv() {
                Err(TryRecvError::Empty) => {
                    self.lookup = Some(lookup);
                    self.socket = Socket::Resolving;
                    return;
                }
                Ok(found) => found,
                Err(TryRecvError::Disconnected) => Err(io::Error::other("no thread did it")),
            },
            None => Err(io::Error::other("nobody did it")),
        };
        match found {
            Ok(addresses) => {
                self.try_next(poll, addresses, "its name has no address".to_owned(), now);
            }
            Err(error) => {
                let why = format!("its name cannot be looked up: {error}");
                self.session.on_closed(why, now);
            }
        }
    }

    fn go_on_connecting(&mut self, poll: &Polling, now: Instant) {
        match std::mem::replace(&mut self.socket, Socket::Closed) {
            Socket::Resolving => self.take_addresses(poll, now),
            Socket::Connecting {
                mut connection,
                rest,
                until,
            } => {
                let connected = if connection.writable || connection.read_closed {
                    connection.stream().connected()
                } else {
                    Ok(false)
                };
                let why = match connected {
                    Ok(true) => {
                        self.socket = Socket::Open(connection);
                        self.session.on_connected(now);
                        return self.write();
                    }
                    Ok(false) if now < until => {
                        self.socket = Socket::Connecting {
                            connection,
                            rest,
                            until,
                        };
                        return;
                    }
                    Ok(false) => "it does not answer".to_owned(),
                    Err(error) => error.to_string(),
                };
                if let Err(error) = connection.deregister(&poll.registry) {
                    log::warn!("{}: {error}", self.address);
                }
                self.try_next(poll, rest, why, now);
            }
            socket => self.socket = socket,
        }
    }
}

/// A session with the descriptor of its library.
struct CorosyncLink {
    session: corosync::Session,
    /// What waits for the daemon.
    job: Option<Receiver<corosync::Done>>,
    readable: bool,
}

impl CorosyncLink {
    fn new(
        config: &StandbyConfig,
        registry: &Registry,
        token: Token,
        now: Instant,
    ) -> io::Result<Self> {
        let library = Arc::new(corosync::System::new()?);
        let session = corosync::Session::new(&config.group, library, now);
        let session = session.map_err(io::Error::other)?;
        if let Some(descriptor) = session.descriptor() {
            registry.register(&mut SourceFd(&descriptor), token, Interest::READABLE)?;
        }
        Ok(Self {
            session,
            job: None,
            readable: false,
        })
    }

    /// As that of a [`SpreadLink`].
    fn turn(
        &mut self,
        poll: &Polling,
        mut taken: impl FnMut(&mut corosync::Session),
        now: Instant,
    ) -> bool {
        self.go_on_with_job(poll, now);
        let mut left = DAEMON_BYTES_PER_TURN;
        while self.readable && left > 0 {
            // In small portions, since what was taken waits in the session.
            let portion = left.min(READ_BYTES_PER_TURN);
            self.readable = self.session.on_ready(portion, now);
            taken(&mut self.session);
            left -= portion;
        }
        self.go_on_with_job(poll, now);
        self.readable
    }

    fn go_on_with_job(&mut self, poll: &Polling, now: Instant) {
        if let Some(job) = &self.job {
            match job.try_recv() {
                Ok(done) => {
                    self.session.on_done(done, now);
                    self.readable = true;
                }
                // The waker tells.
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    log::error!("corosync: a job was lost");
                    self.session.on_job_lost(now);
                }
            }
            self.job = None;
        }
        let Some(job) = self.session.take_job(now) else {
            return;
        };
        match in_background("corosync", poll.waker.clone(), || job.run()) {
            Ok(receiver) => self.job = Some(receiver),
            Err(error) => {
                log::error!("corosync: no thread to wait for it ({error})");
                self.session.on_job_lost(now);
            }
        }
    }
}

/// Runs something that may wait, and wakes the poll when it is done.
pub(super) fn in_background<T: Send + 'static>(
    name: &str,
    waker: Arc<Waker>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Receiver<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        // Nobody may want it any more.
        let _ = sender.send(work());
        if let Err(error) = waker.wake() {
            log::error!("the reactor cannot be woken ({error})");
        }
    })?;
    Ok(receiver)
}
