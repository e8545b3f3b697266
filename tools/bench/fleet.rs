//! Sockets: the connections to one server, and the one loop that reads and writes them.
//!
//! There is one thread. What is measured is a server that has one, too, or a few, on the same
//! machine more often than not: each further thread here would take from it. One thread makes half
//! a million loads a second; who needs more runs several `zeobench` at once.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token, net};

use standby::ids::{Oid, Tid};
use standby::zeo::Value;
use standby::zeo::client::{ClientSession, Received};

use crate::failure::Failure;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// TCP
    Tcp(SocketAddr),
    /// A Unix socket
    Unix(PathBuf),
}

impl Address {
    /// `PORT`, `HOST:PORT`, `[IPV6]:PORT`, or a path with at least one `/`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text.contains('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let with_host = match text.parse::<u16>() {
            Ok(port) => format!("127.0.0.1:{port}"),
            Err(_) => text.to_owned(),
        };
        let resolved = with_host.to_socket_addrs().map(|mut found| found.next());
        match resolved {
            Ok(Some(address)) => Ok(Self::Tcp(address)),
            Ok(None) => Err(Failure::Usage(format!("{text} is no address"))),
            Err(error) => Err(Failure::Usage(format!("{text} is no address: {error}"))),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A connected socket of either kind.
#[derive(Debug)]
enum Stream {
    Tcp(net::TcpStream),
    Unix(net::UnixStream),
}

/// A connection with its session.
#[derive(Debug)]
struct Link {
    stream: Stream,
    session: ClientSession,
    /// The socket has room, as far as we know.
    is_writable: bool,
    /// It is in [`Fleet::dirty`].
    is_dirty: bool,
    /// Calls that were not answered yet, and the greeting.
    unanswered: usize,
    /// When something came last, or when the first of these calls was made after a quiet time.
    since: Instant,
    next_msgid: i64,
}

/// The connections to one server.
#[derive(Debug)]
pub(crate) struct Fleet {
    poll: Poll,
    events: Events,
    address: Address,
    links: Vec<Link>,
    /// Links with something to write.
    dirty: Vec<usize>,
    buffer: Box<[u8]>,
    /// How long an answer may take.
    patience: Duration,
}

/// Bytes read at once.
const BUFFER_LEN: usize = 256 * 1024;

/// Slices in one `writev`.
const SLICES_PER_WRITE: usize = 64;

impl Fleet {
    pub(crate) fn new(address: Address, patience: Duration) -> Result<Self, Failure> {
        Ok(Self {
            poll: Poll::new().map_err(|error| Failure::own("epoll", &error))?,
            events: Events::with_capacity(1024),
            address,
            links: Vec::new(),
            dirty: Vec::new(),
            buffer: vec![0; BUFFER_LEN].into(),
            patience,
        })
    }

    /// The number of connections.
    pub(crate) const fn len(&self) -> usize {
        self.links.len()
    }

    /// Begins one more connection. The first that comes of it is the greeting.
    pub(crate) fn connect(&mut self, now: Instant) -> Result<usize, Failure> {
        let mut stream = self.dial().map_err(|error| lost(&error))?;
        let (token, both) = (
            Token(self.links.len()),
            Interest::READABLE | Interest::WRITABLE,
        );
        let registry = self.poll.registry();
        match &mut stream {
            Stream::Tcp(stream) => registry.register(stream, token, both),
            Stream::Unix(stream) => registry.register(stream, token, both),
        }
        .map_err(|error| Failure::own("epoll", &error))?;
        self.links.push(Link {
            stream,
            session: ClientSession::default(),
            is_writable: false,
            is_dirty: false,
            unanswered: 1,
            since: now,
            next_msgid: 1,
        });
        Ok(token.0)
    }

    fn dial(&self) -> io::Result<Stream> {
        match &self.address {
            Address::Tcp(address) => {
                let stream = net::TcpStream::connect(*address)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => net::UnixStream::connect(path).map(Stream::Unix),
        }
    }

    /// Makes a call; its msgid.
    pub(crate) fn call(
        &mut self,
        link: usize,
        name: &'static str,
        args: Vec<Value>,
        now: Instant,
    ) -> Result<i64, Failure> {
        let open = self.begin_call(link, now);
        let msgid = open.next_msgid;
        open.next_msgid += 1;
        open.session.call(msgid, name, args)?;
        Ok(msgid)
    }

    /// Asks for a revision.
    pub(crate) fn load(
        &mut self,
        link: usize,
        oid: Oid,
        before: Tid,
        now: Instant,
    ) -> Result<(), Failure> {
        Ok(self
            .begin_call(link, now)
            .session
            .load_before(oid, before)?)
    }

    /// Makes a call that is not answered.
    pub(crate) fn send(
        &mut self,
        link: usize,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<(), Failure> {
        self.touch(link);
        Ok(self.links[link].session.send(name, args)?)
    }

    fn begin_call(&mut self, link: usize, now: Instant) -> &mut Link {
        self.touch(link);
        let link = &mut self.links[link];
        if link.unanswered == 0 {
            link.since = now;
        }
        link.unanswered += 1;
        link
    }

    /// Has it written in this turn.
    fn touch(&mut self, number: usize) {
        let link = &mut self.links[number];
        if !link.is_dirty {
            link.is_dirty = true;
            self.dirty.push(number);
        }
    }

    /// Waits for something to come, until `until`. Gives out the links that may have it.
    pub(crate) fn wait(&mut self, until: Instant, ready: &mut Vec<usize>) -> Result<(), Failure> {
        let timeout = until.saturating_duration_since(now());
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::own("epoll", &error)),
        }
        for event in &self.events {
            let Token(number) = event.token();
            let link = &mut self.links[number];
            if event.is_writable() {
                link.is_writable = true;
                if !link.is_dirty {
                    link.is_dirty = true;
                    self.dirty.push(number);
                }
            }
            if event.is_readable() || event.is_error() || event.is_read_closed() {
                ready.push(number);
            }
        }
        Ok(())
    }

    /// Reads what there is. True if more may be there.
    pub(crate) fn read(&mut self, number: usize, now: Instant) -> Result<bool, Failure> {
        let link = &mut self.links[number];
        let result = match &mut link.stream {
            Stream::Tcp(stream) => stream.read(&mut self.buffer),
            Stream::Unix(stream) => stream.read(&mut self.buffer),
        };
        match result {
            Ok(0) => Err(Failure::Server(format!(
                "the server hung up connection {number} with {} calls unanswered",
                link.unanswered
            ))),
            Ok(len) => {
                link.session.receive(&self.buffer[..len]);
                link.since = now;
                Ok(len == self.buffer.len())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(lost(&error)),
        }
    }

    /// What has come whole on a connection.
    pub(crate) fn next(&mut self, number: usize) -> Result<Option<Received>, Failure> {
        let link = &mut self.links[number];
        let received = link.session.next()?;
        match &received {
            None | Some(Received::Notice { .. }) => {}
            Some(Received::Greeting(_) | Received::Loaded(_) | Received::Reply { .. }) => {
                let left = link.unanswered.checked_sub(1);
                link.unanswered = left.ok_or_else(|| {
                    Failure::Wrong(format!(
                        "connection {number} got an answer that none asked for"
                    ))
                })?;
            }
        }
        // The answer to the greeting was queued by the session itself.
        if !link.session.out.is_empty() {
            self.touch(number);
        }
        Ok(received)
    }

    /// Writes what waits, as far as there is room.
    pub(crate) fn flush(&mut self, now: Instant) -> Result<(), Failure> {
        while let Some(number) = self.dirty.pop() {
            let link = &mut self.links[number];
            link.is_dirty = false;
            if let Err(error) = link.write(now) {
                return Err(lost(&error));
            }
        }
        Ok(())
    }

    /// Fails if an answer is overdue.
    pub(crate) fn check_patience(&self, now: Instant) -> Result<(), Failure> {
        for (number, link) in self.links.iter().enumerate() {
            if link.unanswered > 0 && now.saturating_duration_since(link.since) > self.patience {
                return Err(Failure::Server(format!(
                    "no answer on connection {number} for {} s ({} calls wait)",
                    self.patience.as_secs_f64(),
                    link.unanswered
                )));
            }
        }
        Ok(())
    }
}

impl Link {
    fn write(&mut self, now: Instant) -> io::Result<()> {
        while self.is_writable && !self.session.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
            let count = self.session.out.slices(&mut slices, usize::MAX);
            let written = match &mut self.stream {
                Stream::Tcp(stream) => stream.write_vectored(&slices[..count]),
                Stream::Unix(stream) => stream.write_vectored(&slices[..count]),
            };
            match written {
                Ok(len) => {
                    self.session.out.advance(len);
                    // A long call may take longer than an answer.
                    self.since = now;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn lost(error: &io::Error) -> Failure {
    Failure::Server(format!("the connection is lost: {error}"))
}

/// The time. Nothing else here looks at the clock.
#[expect(
    clippy::disallowed_methods,
    reason = "who measures time has to look at the clock; all else gets it as an argument"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}
