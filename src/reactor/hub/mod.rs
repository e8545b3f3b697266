//! The loop that tools run on: listeners, connections in both directions, timers and signals, made
//! of the server's own parts, with what is done by them left to a [`Service`].
//!
//! One turn, always in this order: wait; connect, write and read, each connection within its
//! budget; accept; fire the timers; write what was sent; close what is to be closed. What a service
//! is told of a connection comes in this order: [`Service::on_accept`] or
//! [`Service::on_connected`]; [`Service::receive`] and [`Service::on_written`] as often as needed;
//! [`Service::on_end`] at most once; and [`Service::on_broken`] last, unless the service itself
//! closed it.

mod link;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Events, Poll, Waker, net};
use slab::Slab;

use self::link::{Door, Ending, Link};
use super::connection::{Connection, ReadError, ReadOutcome, Stream};
use super::listener::Bound;
use super::signals::{Signal, Signals};
use super::timer::Timers;
use super::{
    ACCEPT_REST, EVENTS_PER_POLL, LAST_REPLIES_TIMEOUT, WAKER, client_of, connection_token,
    listener_at, listener_token, now, raise_descriptor_limit,
};
use crate::exit::Exit;
use crate::ids::ClientId;
use crate::limits::{ACCEPTS_PER_TURN, READ_BYTES_PER_TURN, WRITE_BYTES_PER_TURN};
use crate::out_queue::OutQueue;

pub use crate::config::Address;

/// Reads of one connection in one turn, of [`READ_BYTES_PER_TURN`] each.
const READS_PER_TURN: usize = 4;

/// What a tool does with its connections. Each call may use the hub to send, to close, to connect,
/// and to set timers.
pub trait Service: Sized {
    /// What its timers are called.
    type Timer: Copy + Ord + fmt::Debug;

    /// Somebody has connected to a listener. `peer` names them, for people.
    fn on_accept(
        &mut self,
        id: ConnectionId,
        listener: ListenerId,
        peer: &str,
        hub: &mut Hub<Self::Timer>,
    );

    /// A connection that [`Hub::connect`] has begun stands.
    fn on_connected(&mut self, _id: ConnectionId, _hub: &mut Hub<Self::Timer>) {}

    /// Bytes have come: what one read has given.
    fn receive(&mut self, id: ConnectionId, data: &[u8], hub: &mut Hub<Self::Timer>);

    /// The peer will send no more, in good order. It may still read; the connection stays until it
    /// is closed.
    fn on_end(&mut self, id: ConnectionId, hub: &mut Hub<Self::Timer>);

    /// The connection is gone, or did not come to be; nothing can be sent any more.
    fn on_broken(&mut self, id: ConnectionId, error: &io::Error, hub: &mut Hub<Self::Timer>);

    /// The socket has taken `len` bytes more of what was sent.
    fn on_written(&mut self, _id: ConnectionId, _len: usize, _hub: &mut Hub<Self::Timer>) {}

    /// A timer of the service has come due.
    fn on_timer(&mut self, _timer: Self::Timer, _hub: &mut Hub<Self::Timer>) {}

    /// The process is to end, because of a signal or of [`Hub::stop`]. What is sent here, and what
    /// waits already, has three seconds to be taken where
    /// [`Hub::close`] was said.
    fn on_stop(&mut self, _hub: &mut Hub<Self::Timer>) {}

    /// The last call of a turn. Nothing has been written yet of what was sent in it.
    fn end_turn(&mut self, _hub: &mut Hub<Self::Timer>) {}
}

/// One connection, for as long as it lasts; none other gets its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(ClientId);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A listener, in the order of [`Hub::listen`], from 0. A host name may stand for several
/// addresses, which are one listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub usize);

/// Sockets and timers, as the service sees them.
pub struct Hub<T> {
    poll: Poll,
    listeners: Vec<Door>,
    /// How many [`ListenerId`]s there are.
    listener_count: usize,
    links: Slab<Link>,
    /// Connections so far: the part of an id that is never reused.
    serial: u32,
    /// Slab keys of connections that have something to do, or may have.
    ready: Vec<usize>,
    /// Slab keys of connections that have to be written, or ended, in this turn.
    unsent: Vec<usize>,
    /// Connections that are to be closed at the end of the turn.
    closing: Vec<ConnectionId>,
    timers: Timers<Timer<T>>,
    /// What sockets are read into.
    scratch: Vec<u8>,
    connections_max: usize,
    now: super::Now,
    stop: Option<Exit>,
}

/// Something with a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer<T> {
    /// The listener may accept again.
    Accept(usize),
    /// Of the service.
    Service(T),
}

impl<T: Copy + Ord + fmt::Debug> Hub<T> {
    /// A loop without any connections.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            listeners: Vec::new(),
            listener_count: 0,
            links: Slab::new(),
            serial: 0,
            ready: Vec::new(),
            unsent: Vec::new(),
            closing: Vec::new(),
            timers: Timers::new(),
            scratch: vec![0; READ_BYTES_PER_TURN],
            connections_max: raise_descriptor_limit(),
            now: now(),
            stop: None,
        })
    }

    /// The time of this turn, for deadlines.
    pub fn now(&self) -> Instant {
        self.now.mono
    }

    /// The time of this turn since 1970, for people.
    pub fn wall(&self) -> Duration {
        self.now.wall
    }

    /// Listens at an address. Returns the listener, and the addresses that it has got.
    pub fn listen(&mut self, address: &Address) -> io::Result<(ListenerId, Vec<String>)> {
        let id = ListenerId(self.listener_count);
        let mut addresses = Vec::new();
        for bound in Bound::new(address)? {
            let mut listener = bound.listen()?;
            let token = listener_token(self.listeners.len());
            listener.register(self.poll.registry(), token)?;
            addresses.push(listener.describe());
            self.listeners.push(Door {
                listener,
                id,
                acceptable: true,
                open: true,
            });
        }
        self.listener_count += 1;
        Ok((id, addresses))
    }

    /// Whether connections to a listener are accepted. Who is not stays in the kernel's queue.
    pub fn set_accepting(&mut self, listener: ListenerId, accepting: bool) {
        for door in self.listeners.iter_mut().filter(|door| door.id == listener) {
            door.open = accepting;
        }
    }

    /// Begins to connect; [`Service::on_connected`] or [`Service::on_broken`] will follow. Looking
    /// up a name waits for the answer. The addresses of a name are tried one after the other.
    pub fn connect(&mut self, address: &Address) -> io::Result<ConnectionId> {
        match address {
            Address::Unix(path) => {
                let stream = net::UnixStream::connect(path)?;
                self.add(Stream::Unix(stream), Some(VecDeque::new()))
            }
            Address::Tcp { host, port } => {
                let host = if host.is_empty() { "localhost" } else { host };
                let mut rest: VecDeque<_> = (host, *port).to_socket_addrs()?.collect();
                let mut failed = io::Error::other(format!("{host} has no address"));
                while let Some(next) = rest.pop_front() {
                    match net::TcpStream::connect(next) {
                        Ok(stream) => return self.add(Stream::Tcp(stream), Some(rest)),
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
        }
    }

    /// Queues bytes. They are written at the end of the turn, or as soon as there is room. How much
    /// may wait is for the service to say: [`Self::queued`]. What is sent to a connection that is
    /// gone, or that we have ended, is dropped.
    pub fn send(&mut self, id: ConnectionId, data: Bytes) {
        let Some(link) = self.link(id) else {
            return;
        };
        if link.ending == Ending::Open {
            link.out.push(data);
            self.write_later(id);
        }
    }

    /// Bytes that wait for the socket.
    pub fn queued(&self, id: ConnectionId) -> usize {
        let link = self.links.get(id.0.key as usize);
        let link = link.filter(|link| link.connection.client == id.0);
        link.map_or(0, |link| link.out.len())
    }

    /// Writes at once what the socket takes, and returns how many bytes that was;
    /// [`Service::on_written`] is not called for them. An error is noticed in the next turn.
    pub fn flush(&mut self, id: ConnectionId) -> usize {
        let Some(link) = self.link(id) else {
            return 0;
        };
        if link.connecting.is_some() || !link.writing {
            return 0;
        }
        let mut written = 0;
        while link.connection.writable && written < WRITE_BYTES_PER_TURN {
            match link.connection.write(&mut link.out, WRITE_BYTES_PER_TURN) {
                Ok(len) if len > 0 => written += len,
                Ok(_) | Err(_) => break,
            }
        }
        written
    }

    /// Whether the connection is read. What is not read makes the peer wait, in the end.
    pub fn set_reading(&mut self, id: ConnectionId, reading: bool) {
        if let Some(link) = self.link(id) {
            link.reading = reading;
            self.queue(id.0.key as usize);
        }
    }

    /// Whether what is sent is written, or kept back.
    pub fn set_writing(&mut self, id: ConnectionId, writing: bool) {
        if let Some(link) = self.link(id) {
            link.writing = writing;
            self.write_later(id);
        }
    }

    /// Ends our half of the connection when all is written. The peer's half goes on.
    pub fn finish(&mut self, id: ConnectionId) {
        if let Some(link) = self.link(id)
            && link.ending == Ending::Open
        {
            link.ending = Ending::FinishAfterFlush;
            self.write_later(id);
        }
    }

    /// Closes the connection when all is written. The service hears no more of it, and nothing more
    /// is read: what the peer has sent and we did not read makes this a reset.
    pub fn close(&mut self, id: ConnectionId) {
        if let Some(link) = self.link(id) {
            link.ending = Ending::CloseAfterFlush;
            self.write_later(id);
        }
    }

    /// Closes the connection at the end of this turn, whatever waits for it. The service hears no
    /// more of it.
    pub fn abort(&mut self, id: ConnectionId) {
        if let Some(link) = self.link(id) {
            link.ending = Ending::CloseAfterFlush;
            link.out = OutQueue::default();
            self.closing.push(id);
        }
    }

    /// Sets, moves or (with `None`) clears a timer.
    pub fn set_timer(&mut self, timer: T, deadline: Option<Instant>) {
        self.timers.set(Timer::Service(timer), deadline);
    }

    /// Ends the loop after this turn.
    pub fn stop(&mut self, exit: Exit) {
        self.stop = Some(exit);
    }

    fn add(
        &mut self,
        stream: Stream,
        connecting: Option<VecDeque<SocketAddr>>,
    ) -> io::Result<ConnectionId> {
        self.serial = self.serial.wrapping_add(1);
        let entry = self.links.vacant_entry();
        let key = u32::try_from(entry.key()).map_err(io::Error::other)?;
        let client = ClientId {
            serial: self.serial,
            key,
        };
        let mut connection = Connection::new(stream, None, client);
        connection.register(self.poll.registry(), connection_token(client))?;
        // An accepted one may have been written to already. Of one that is being connected the poll
        // will say when it can be written to: not before it stands, or has failed.
        connection.readable = connecting.is_none();
        connection.writable = connecting.is_none();
        entry.insert(Link {
            connection,
            out: OutQueue::default(),
            unsent: false,
            connecting,
            reading: true,
            writing: true,
            ended: false,
            ending: Ending::Open,
        });
        self.queue(key as usize);
        Ok(ConnectionId(client))
    }

    fn link(&mut self, id: ConnectionId) -> Option<&mut Link> {
        let link = self.links.get_mut(id.0.key as usize);
        link.filter(|link| link.connection.client == id.0)
    }

    /// The connection gets its turn.
    fn queue(&mut self, key: usize) {
        if let Some(link) = self.links.get_mut(key)
            && !link.connection.queued
        {
            link.connection.queued = true;
            self.ready.push(key);
        }
    }

    /// The connection is written at the end of the turn.
    fn write_later(&mut self, id: ConnectionId) {
        if let Some(link) = self.link(id)
            && !link.unsent
        {
            link.unsent = true;
            self.unsent.push(id.0.key as usize);
        }
    }

    /// Removes a connection, which closes it.
    fn remove(&mut self, id: ConnectionId) {
        if self.link(id).is_none() {
            return;
        }
        let mut link = self.links.remove(id.0.key as usize);
        if let Err(error) = link.connection.deregister(self.poll.registry()) {
            log::warn!("{id}: {error}");
        }
    }

    /// Waits for the kernel, and notes what it says.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let busy = !self.ready.is_empty()
            || !self.unsent.is_empty()
            || !self.closing.is_empty()
            || self.listeners.iter().any(|it| it.acceptable && it.open);
        let timeout = if busy {
            Some(Duration::ZERO)
        } else {
            let next = self.timers.next();
            next.map(|deadline| deadline.saturating_duration_since(now().mono))
        };
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        self.now = now();
        for event in events.iter() {
            let token = event.token();
            if token == WAKER {
                continue;
            }
            if let Some(at) = listener_at(token, self.listeners.len()) {
                self.listeners[at].acceptable = true;
                continue;
            }
            let id = ConnectionId(client_of(token));
            if let Some(link) = self.link(id) {
                let connection = &mut link.connection;
                connection.readable |= event.is_readable() || event.is_read_closed();
                connection.read_closed |= event.is_read_closed() || event.is_error();
                connection.writable |= event.is_writable() || event.is_error();
                self.queue(id.0.key as usize);
            }
        }
        Ok(())
    }

    /// Whether anything is to be closed that still waits to be written.
    fn is_flushing(&self) -> bool {
        self.links
            .iter()
            .any(|(_, link)| link.is_given_up() && !link.out.is_empty())
    }
}

impl<T: Copy + Ord + fmt::Debug> Hub<T> {
    /// Serves until a signal or [`Self::stop`] ends it. Signals are taken over for good: there can
    /// be one such call in a process.
    pub fn run(&mut self, service: &mut impl Service<Timer = T>) -> io::Result<Exit> {
        let waker = Arc::new(Waker::new(self.poll.registry(), WAKER)?);
        let signals = Signals::install(waker)?;
        let mut events = Events::with_capacity(EVENTS_PER_POLL);
        let exit = loop {
            self.turn(&mut events, service)?;
            if let Some(exit) = self.stop {
                break exit;
            }
            match signals.take() {
                Some(Signal::Stop(name)) => {
                    log::info!("terminated by {name}");
                    break Exit::Stopped;
                }
                Some(Signal::HangUp) => {
                    log::info!("hung up by SIGHUP");
                    break Exit::HungUp;
                }
                Some(Signal::ReopenLog) | None => {}
            }
        };
        self.wind_up(&mut events, service)?;
        Ok(exit)
    }

    /// One turn; the module says what is in it.
    fn turn(
        &mut self,
        events: &mut Events,
        service: &mut impl Service<Timer = T>,
    ) -> io::Result<()> {
        self.wait(events)?;
        for key in std::mem::take(&mut self.ready) {
            self.serve(key, service);
        }
        for at in 0..self.listeners.len() {
            self.accept(at, service);
        }
        while let Some(timer) = self.timers.pop_due(self.now.mono) {
            match timer {
                Timer::Accept(at) => self.listeners[at].acceptable = true,
                Timer::Service(timer) => service.on_timer(timer, self),
            }
        }
        service.end_turn(self);
        self.write_unsent(service);
        for id in std::mem::take(&mut self.closing) {
            self.remove(id);
        }
        Ok(())
    }

    /// Lets those who are to be closed have what was sent to them, for a while.
    fn wind_up(
        &mut self,
        events: &mut Events,
        service: &mut impl Service<Timer = T>,
    ) -> io::Result<()> {
        service.on_stop(self);
        self.listeners.clear();
        self.timers.clear();
        let deadline = now().mono + LAST_REPLIES_TIMEOUT;
        loop {
            for key in std::mem::take(&mut self.ready) {
                if let Some(link) = self.links.get_mut(key) {
                    link.connection.queued = false;
                }
                self.write(key, service);
            }
            self.write_unsent(service);
            for id in std::mem::take(&mut self.closing) {
                self.remove(id);
            }
            if !self.is_flushing() || now().mono >= deadline {
                return Ok(());
            }
            self.timers.set(Timer::Accept(0), Some(deadline));
            self.wait(events)?;
        }
    }

    /// A connection's turn: it is connected, written, and read.
    fn serve(&mut self, key: usize, service: &mut impl Service<Timer = T>) {
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        link.connection.queued = false;
        let id = ConnectionId(link.connection.client);
        if link.connecting.is_some() && !self.check_connected(id, service) {
            return;
        }
        self.write(key, service);
        for _ in 0..READS_PER_TURN {
            if !self.read(id, service) {
                return;
            }
        }
        self.queue(key);
    }

    /// Whether a connection that is being connected stands. If it does not, it goes on with the
    /// next address, or is given up.
    fn check_connected(&mut self, id: ConnectionId, service: &mut impl Service<Timer = T>) -> bool {
        let Some(link) = self.link(id) else {
            return false;
        };
        if link.is_given_up() {
            self.closing.push(id);
            return false;
        }
        if !link.connection.writable {
            return false;
        }
        match link.connection.stream().connected() {
            Ok(false) => {
                link.connection.writable = false;
                false
            }
            Ok(true) => {
                link.connecting = None;
                link.connection.readable = true;
                service.on_connected(id, self);
                true
            }
            Err(error) => {
                self.try_next(id, error, service);
                false
            }
        }
    }

    fn try_next(
        &mut self,
        id: ConnectionId,
        mut error: io::Error,
        service: &mut impl Service<Timer = T>,
    ) {
        let registry = &self.poll.registry();
        let link = self.links.get_mut(id.0.key as usize);
        if let Some(link) = link.filter(|link| link.connection.client == id.0) {
            while let Some(next) = link.connecting.as_mut().and_then(VecDeque::pop_front) {
                let attempt = net::TcpStream::connect(next).and_then(|stream| {
                    let _ = link.connection.deregister(registry);
                    let mut connection = Connection::new(Stream::Tcp(stream), None, id.0);
                    connection.register(registry, connection_token(id.0))?;
                    connection.writable = false;
                    Ok(connection)
                });
                match attempt {
                    Ok(connection) => {
                        link.connection = connection;
                        return;
                    }
                    Err(failed) => error = failed,
                }
            }
        }
        self.give_up(id, &error, service);
    }

    /// Reads once. Returns whether there may be more.
    fn read(&mut self, id: ConnectionId, service: &mut impl Service<Timer = T>) -> bool {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut len = 0;
        let outcome = match self.link(id) {
            Some(link) if link.wants_input() => {
                // Without TLS what is given out is what was read, where it was read.
                Some(link.connection.read(&mut scratch, |data| len = data.len()))
            }
            _ => None,
        };
        let mut more = true;
        match outcome {
            None | Some(Ok(ReadOutcome::WouldBlock)) => more = false,
            Some(Ok(ReadOutcome::Received)) => service.receive(id, &scratch[..len], self),
            Some(Ok(ReadOutcome::End)) => {
                if let Some(link) = self.link(id) {
                    link.ended = true;
                }
                service.on_end(id, self);
                more = false;
            }
            Some(Err(ReadError::Socket(error))) => {
                self.give_up(id, &error, service);
                more = false;
            }
            Some(Err(ReadError::Tls(error))) => {
                self.give_up(id, &io::Error::other(error.to_string()), service);
                more = false;
            }
        }
        self.scratch = scratch;
        more && self.link(id).is_some_and(|link| link.wants_input())
    }

    /// Writes to those that were sent something in this turn. What a service sends because of that
    /// has to wait for the next one.
    fn write_unsent(&mut self, service: &mut impl Service<Timer = T>) {
        for key in std::mem::take(&mut self.unsent) {
            if let Some(link) = self.links.get_mut(key) {
                link.unsent = false;
            }
            self.write(key, service);
        }
    }

    /// Writes what waits, up to the budget; and ends what is to end behind it.
    fn write(&mut self, key: usize, service: &mut impl Service<Timer = T>) {
        let Some(link) = self.links.get_mut(key) else {
            return;
        };
        let id = ConnectionId(link.connection.client);
        if link.connecting.is_some() {
            return;
        }
        let mut written = 0;
        let mut failed = None;
        while link.connection.writable && link.writing && written < WRITE_BYTES_PER_TURN {
            match link.connection.write(&mut link.out, WRITE_BYTES_PER_TURN) {
                Ok(0) => break,
                Ok(len) => written += len,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = failed {
            // What the peer has said before it went is still there to be read, and then its error.
            // Of one that has ended its stream nothing is read any more.
            if link.wants_input() {
                link.out = OutQueue::default();
                link.connection.writable = false;
                return;
            }
            return self.give_up(id, &error, service);
        }
        if link.out.is_empty() {
            match link.ending {
                Ending::CloseAfterFlush => self.closing.push(id),
                Ending::FinishAfterFlush => {
                    link.ending = Ending::Finished;
                    // If it is gone already, reading will tell.
                    let _ = link.connection.stream().shutdown(Shutdown::Write);
                }
                Ending::Open | Ending::Finished => {}
            }
        } else if link.connection.writable && link.writing {
            self.queue(key);
        }
        if written > 0 && self.link(id).is_some_and(|link| !link.is_given_up()) {
            service.on_written(id, written, self);
        }
    }

    /// The connection is beyond help. The service hears of it, unless it has given it up itself.
    fn give_up(
        &mut self,
        id: ConnectionId,
        error: &io::Error,
        service: &mut impl Service<Timer = T>,
    ) {
        let Some(link) = self.link(id) else {
            return;
        };
        let unwanted = link.is_given_up();
        self.remove(id);
        if !unwanted {
            service.on_broken(id, error, self);
        }
    }

    /// Accepts from one listener, up to its budget.
    fn accept(&mut self, at: usize, service: &mut impl Service<Timer = T>) {
        for _ in 0..ACCEPTS_PER_TURN {
            let door = &mut self.listeners[at];
            if !door.acceptable || !door.open {
                return;
            }
            let id = door.id;
            if self.links.len() >= self.connections_max {
                return self.rest(at, &io::Error::other("that is the limit of open files"));
            }
            let accepted = match door.listener.accept() {
                Ok((stream, peer)) => self.add(stream, None).map(|link| (link, peer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    door.acceptable = false;
                    return;
                }
                // The peer was gone before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => Err(error),
            };
            match accepted {
                Ok((link, peer)) => service.on_accept(link, id, &peer, self),
                Err(error) => return self.rest(at, &error),
            }
        }
    }

    /// Accepts no more for a while: trying again at once would spin.
    fn rest(&mut self, at: usize, error: &io::Error) {
        log::error!("cannot accept connections: {error}");
        self.listeners[at].acceptable = false;
        let deadline = self.now.mono + ACCEPT_REST;
        self.timers.set(Timer::Accept(at), Some(deadline));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// What happened, by name of the call; and what to do about it.
    #[derive(Default)]
    struct Recorder {
        happened: Vec<String>,
        accepted: Vec<ConnectionId>,
        received: Vec<u8>,
        written: usize,
        echo: bool,
    }

    impl Service for Recorder {
        type Timer = u8;

        fn on_accept(&mut self, id: ConnectionId, _: ListenerId, _: &str, _: &mut Hub<u8>) {
            self.accepted.push(id);
            self.happened.push("accept".to_owned());
        }

        fn on_connected(&mut self, _: ConnectionId, _: &mut Hub<u8>) {
            self.happened.push("connected".to_owned());
        }

        fn receive(&mut self, id: ConnectionId, data: &[u8], hub: &mut Hub<u8>) {
            self.received.extend_from_slice(data);
            if self.echo {
                hub.send(id, Bytes::copy_from_slice(data));
            }
        }

        fn on_end(&mut self, _: ConnectionId, _: &mut Hub<u8>) {
            self.happened.push("end".to_owned());
        }

        fn on_broken(&mut self, _: ConnectionId, error: &io::Error, _: &mut Hub<u8>) {
            self.happened.push(format!("broken {:?}", error.kind()));
        }

        fn on_written(&mut self, _: ConnectionId, len: usize, _: &mut Hub<u8>) {
            self.written += len;
        }

        fn on_timer(&mut self, timer: u8, _: &mut Hub<u8>) {
            self.happened.push(format!("timer {timer}"));
        }
    }

    struct World {
        hub: Hub<u8>,
        service: Recorder,
        events: Events,
    }

    impl World {
        fn new() -> Self {
            let mut hub = Hub::new().unwrap();
            // No test waits for ever.
            hub.set_timer(u8::MAX, Some(now().mono + Duration::from_secs(30)));
            Self {
                hub,
                service: Recorder::default(),
                events: Events::with_capacity(16),
            }
        }

        fn turn(&mut self) {
            self.hub.turn(&mut self.events, &mut self.service).unwrap();
            assert!(!self.happened("timer 255"), "{:?}", self.service.happened);
        }

        /// Turns that have nothing to wait for, as far as anybody knows.
        fn turn_busily(&mut self) {
            for n in 0..20 {
                self.hub.set_timer(n, Some(now().mono));
                self.turn();
            }
        }

        fn until(&mut self, mut done: impl FnMut(&Recorder) -> bool) {
            while !done(&self.service) {
                self.turn();
            }
        }

        fn happened(&self, what: &str) -> bool {
            self.service.happened.iter().any(|it| it == what)
        }

        /// A listener, and where it is.
        fn listener(&mut self, address: &str) -> (ListenerId, String) {
            let (id, addresses) = self.hub.listen(&address.parse().unwrap()).unwrap();
            (id, addresses[0].clone())
        }

        /// A connection of both ends, ours accepted.
        fn pair(&mut self) -> (ConnectionId, TcpStream) {
            let (_, address) = self.listener("127.0.0.1:0");
            let peer = TcpStream::connect(&address).unwrap();
            self.until(|it| !it.accepted.is_empty());
            (self.service.accepted[0], peer)
        }
    }

    #[test]
    fn what_a_slow_peer_does_not_take_waits_and_comes_in_order() {
        let mut world = World::new();
        let (id, mut peer) = world.pair();
        peer.set_nonblocking(true).unwrap();
        let data: Vec<u8> = (0..20_000_000_u32).map(|n| (n >> 8) as u8).collect();
        world.hub.send(id, Bytes::from(data.clone()));
        let mut got = Vec::new();
        let mut buf = vec![0; 300_000];
        while got.len() < data.len() {
            world.turn_busily();
            assert_eq!(world.hub.queued(id) + world.service.written, data.len());
            match peer.read(&mut buf) {
                Ok(len) => got.extend_from_slice(&buf[..len]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(got == data);
    }

    #[test]
    fn what_came_while_reading_was_paused_is_read_later_without_an_event() {
        let mut world = World::new();
        let (id, mut peer) = world.pair();
        world.hub.set_reading(id, false);
        peer.write_all(b"hello").unwrap();
        drop(peer);
        world.turn_busily();
        assert_eq!(world.service.received, b"");
        world.hub.set_reading(id, true);
        world.until(|it| it.happened.contains(&"end".to_owned()));
        assert_eq!(world.service.received, b"hello");
    }

    #[test]
    fn what_was_kept_back_is_written_when_writing_goes_on() {
        let mut world = World::new();
        let (id, mut peer) = world.pair();
        world.hub.set_writing(id, false);
        world.hub.send(id, Bytes::from_static(b"late"));
        world.turn_busily();
        assert_eq!((world.hub.queued(id), world.hub.flush(id)), (4, 0));
        world.hub.set_writing(id, true);
        world.until(|it| it.written == 4);
        let mut buf = [0; 4];
        peer.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"late");
    }

    #[test]
    fn a_peer_that_has_ended_its_half_gets_all_before_ours_ends() {
        let mut world = World::new();
        let (id, mut peer) = world.pair();
        world.service.echo = true;
        peer.write_all(b"question").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        world.until(|it| it.happened.contains(&"end".to_owned()));
        world.hub.send(id, Bytes::from_static(b" and answer"));
        world.hub.finish(id);
        world.hub.send(id, Bytes::from_static(b"too late"));
        world.turn_busily();
        let mut got = String::new();
        peer.read_to_string(&mut got).unwrap();
        assert_eq!(got, "question and answer");
        // It is still there, until the service closes it.
        assert!(world.hub.link(id).is_some());
        world.hub.abort(id);
        world.turn_busily();
        assert!(world.hub.link(id).is_none());
        assert_eq!(world.service.happened.last().unwrap(), "timer 19");
    }

    #[test]
    fn close_flushes_and_abort_does_not() {
        for (flushes, expected) in [(true, 9_000_000), (false, 0)] {
            let mut world = World::new();
            let (id, mut peer) = world.pair();
            world.hub.send(id, Bytes::from(vec![1; 9_000_000]));
            if flushes {
                world.hub.close(id);
            } else {
                world.hub.abort(id);
            }
            peer.set_nonblocking(true).unwrap();
            let mut buf = vec![0; 1 << 20];
            let mut got = 0;
            while world.hub.link(id).is_some() {
                world.turn_busily();
                got += peer.read(&mut buf).unwrap_or(0);
            }
            peer.set_nonblocking(false).unwrap();
            got += peer.read_to_end(&mut Vec::new()).unwrap();
            assert_eq!(got, expected);
            assert_eq!(
                (world.service.written > 0, world.happened("end")),
                (false, false)
            );
        }
    }

    #[test]
    fn a_connection_of_ours_stands_fails_or_finds_another_address() {
        let mut world = World::new();
        let (_, address) = world.listener("127.0.0.1:0");
        // Most machines have ::1 for this name, too, where nobody listens.
        let by_name = address.replace("127.0.0.1", "localhost").parse().unwrap();
        let id = world.hub.connect(&by_name).unwrap();
        world.hub.send(id, Bytes::from_static(b"early"));
        world.until(|it| it.received == b"early");
        assert_eq!(world.service.happened.len(), 2);
        let free = {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap().to_string()
        };
        if world.hub.connect(&free.parse().unwrap()).is_ok() {
            world.until(|it| it.happened.len() == 3);
            assert!(world.happened("broken ConnectionRefused"));
        }
    }

    #[test]
    fn nobody_is_accepted_while_the_listener_is_closed() {
        let mut world = World::new();
        let (id, address) = world.listener("127.0.0.1:0");
        world.hub.set_accepting(id, false);
        let _peer = TcpStream::connect(&address).unwrap();
        world.turn_busily();
        assert!(world.service.accepted.is_empty());
        world.hub.set_accepting(id, true);
        world.until(|it| !it.accepted.is_empty());
    }

    #[test]
    fn a_reset_is_told_though_the_peer_had_ended_its_stream() {
        let mut world = World::new();
        let (id, peer) = world.pair();
        drop(peer);
        world.until(|it| it.happened.contains(&"end".to_owned()));
        // The first is answered by a reset, on which the next one fails.
        while !world
            .service
            .happened
            .iter()
            .any(|it| it.starts_with("broken"))
        {
            world.hub.send(id, Bytes::from_static(b"for nobody"));
            world.turn_busily();
        }
        assert!(world.hub.link(id).is_none());
    }

    #[test]
    fn a_reset_is_told_once() {
        let mut world = World::new();
        let (id, peer) = world.pair();
        world.hub.send(id, Bytes::from_static(b"unread"));
        world.until(|it| it.written > 0);
        // Closing what has something unread resets it.
        drop(peer);
        world.until(|it| it.happened.iter().any(|it| it.starts_with("broken")));
        world.hub.send(id, Bytes::from_static(b"for nobody"));
        world.turn_busily();
        let told = world.service.happened.iter();
        assert_eq!(told.filter(|it| it.starts_with("broken")).count(), 1);
    }
}
