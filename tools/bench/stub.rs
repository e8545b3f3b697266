//! A server that has all in memory and does nothing but answer: what the machine and the protocol
//! allow at most, to hold a real server's figures against.
//!
//! It serves what the workloads here ask for, and no more: no history, no undo, nothing that
//! survives its end. Stock clients get as far as loads and commits.
//!
//! It can also be wrong on demand (`--fault`), so that anybody can see the workloads notice.

use std::io::{self, IoSlice, Read, Write};
use std::net;
use std::os::unix::net as unix_net;

use bytes::Bytes;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use standby::zeo::frame::{FrameReader, OutQueue, Sink};
use standby::zeo::load_form::LoadForm;
use standby::zeo::message::{self, Message};
use standby::zeo::{Dialect, Encoder, Encoding};

use crate::failure::Failure;
use crate::fleet::Address;
use crate::table::{Delivery, Fault, Table};

/// Where it listens.
enum Listener {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
}

/// A client.
struct Peer {
    stream: Stream,
    frames: FrameReader,
    out: OutQueue,
    has_greeted: bool,
}

/// The stub.
struct Stub {
    encoding: Encoding,
    form: LoadForm,
    encoder: Encoder,
    table: Table,
    peers: Slab<Peer>,
    buffer: Box<[u8]>,
}

/// Serves until the process is ended. `tell` hears where.
pub(crate) fn serve(
    address: &Address,
    encoding: Encoding,
    fault: Option<Fault>,
    tell: impl FnOnce(&str),
) -> Result<(), Failure> {
    let own = |error: io::Error| Failure::own(&address.to_string(), &error);
    let mut poll = Poll::new().map_err(own)?;
    let (mut listener, place) = listen(address).map_err(own)?;
    let (token, readable) = (Token(usize::MAX), Interest::READABLE);
    match &mut listener {
        Listener::Tcp(listener) => poll.registry().register(listener, token, readable),
        Listener::Unix(listener) => poll.registry().register(listener, token, readable),
    }
    .map_err(own)?;
    tell(&place);
    let mut stub = Stub {
        encoding,
        form: LoadForm::new(encoding),
        encoder: Encoder::new(encoding, Dialect::Python3),
        table: Table::new(fault),
        peers: Slab::new(),
        buffer: vec![0; 256 * 1024].into(),
    };
    let mut events = Events::with_capacity(1024);
    loop {
        match poll.poll(&mut events, None) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(own(error)),
        }
        for event in &events {
            if event.token() == token {
                stub.accept(&poll, &listener).map_err(own)?;
            } else if stub.peers.contains(event.token().0) {
                stub.serve(event.token().0);
            }
        }
    }
}

fn listen(address: &Address) -> io::Result<(Listener, String)> {
    Ok(match address {
        Address::Tcp(address) => {
            let listener = net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let place = listener.local_addr()?.to_string();
            (
                Listener::Tcp(mio::net::TcpListener::from_std(listener)),
                place,
            )
        }
        Address::Unix(path) => {
            let listener = unix_net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            let place = path.display().to_string();
            (
                Listener::Unix(mio::net::UnixListener::from_std(listener)),
                place,
            )
        }
    })
}

/// The client is gone already, or a signal came.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

impl Stub {
    fn accept(&mut self, poll: &Poll, listener: &Listener) -> io::Result<()> {
        loop {
            let accepted = match listener {
                Listener::Tcp(listener) => listener.accept().and_then(|(stream, _)| {
                    stream.set_nodelay(true)?;
                    Ok(Stream::Tcp(stream))
                }),
                Listener::Unix(listener) => {
                    listener.accept().map(|(stream, _)| Stream::Unix(stream))
                }
            };
            let mut stream = match accepted {
                Ok(stream) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            let entry = self.peers.vacant_entry();
            let (token, both) = (Token(entry.key()), Interest::READABLE | Interest::WRITABLE);
            match &mut stream {
                Stream::Tcp(stream) => poll.registry().register(stream, token, both)?,
                Stream::Unix(stream) => poll.registry().register(stream, token, both)?,
            }
            let mut out = OutQueue::default();
            let mut greeting = out.frame();
            greeting.put(match self.encoding {
                Encoding::Z => b"Z5",
                Encoding::M => b"M5",
            });
            // Two bytes fit.
            let _ = greeting.finish();
            let key = entry.key();
            entry.insert(Peer {
                stream,
                frames: FrameReader::new(1 << 31),
                out,
                has_greeted: false,
            });
            self.flush(key);
        }
    }

    /// Reads, answers and writes; a client that fails is forgotten.
    fn serve(&mut self, key: usize) {
        loop {
            let Some(peer) = self.peers.get_mut(key) else {
                return;
            };
            let read = match &mut peer.stream {
                Stream::Tcp(stream) => stream.read(&mut self.buffer),
                Stream::Unix(stream) => stream.read(&mut self.buffer),
            };
            let is_more = match read {
                Ok(0) => return self.forget(key),
                Ok(len) => {
                    peer.frames.receive(&self.buffer[..len]);
                    len == self.buffer.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
                Err(_) => return self.forget(key),
            };
            if self.answer(key).is_none() {
                return self.forget(key);
            }
            self.flush(key);
            if !is_more {
                return;
            }
        }
    }

    /// Answers all that has come; `None` if it makes no sense.
    fn answer(&mut self, key: usize) -> Option<()> {
        loop {
            let peer = self.peers.get_mut(key)?;
            let Some(frame) = peer.frames.next().ok()? else {
                return Some(());
            };
            if !peer.has_greeted {
                peer.has_greeted = true;
                continue;
            }
            if let Some((oid, before)) = self.form.read_call(&frame)
                && let Some(loaded) = self.table.load(oid, before)
            {
                let mut reply = peer.out.frame();
                self.form.write_reply(&mut reply, &loaded);
                reply.finish().ok()?;
                continue;
            }
            self.call(key, &frame)?;
        }
    }

    /// Any other call.
    fn call(&mut self, key: usize, frame: &Bytes) -> Option<()> {
        let call = match message::decode(self.encoding, frame).ok()? {
            Message::Heartbeat => return Some(()),
            Message::Call(call) => call,
        };
        let clients: Vec<usize> = self.peers.iter().map(|(key, _)| key).collect();
        let deliveries = self.table.call(key, &clients, call.msgid, call.request);
        self.deliver(key, deliveries);
        Some(())
    }

    fn deliver(&mut self, current: usize, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let (Delivery::Reply { to, .. }
            | Delivery::Raise { to, .. }
            | Delivery::Notice { to, .. }) = delivery;
            let Some(peer) = self.peers.get_mut(to) else {
                continue;
            };
            let out = &mut peer.out;
            match delivery {
                Delivery::Reply { msgid, result, .. } => self.encoder.reply(out, &msgid, &result),
                Delivery::Raise { msgid, error, .. } => self.encoder.exception(out, &msgid, &error),
                Delivery::Notice { name, args, .. } => self.encoder.notice(out, name, args),
            }
            if to != current {
                self.flush(to);
            }
        }
    }

    fn forget(&mut self, key: usize) {
        self.peers.remove(key);
        let deliveries = self.table.on_closed(key);
        self.deliver(key, deliveries);
    }

    /// Writes what there is room for; the rest is written when there is room again.
    fn flush(&mut self, key: usize) {
        let Some(peer) = self.peers.get_mut(key) else {
            return;
        };
        while !peer.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 64];
            let count = peer.out.slices(&mut slices, usize::MAX);
            let written = match &mut peer.stream {
                Stream::Tcp(stream) => stream.write_vectored(&slices[..count]),
                Stream::Unix(stream) => stream.write_vectored(&slices[..count]),
            };
            match written {
                Ok(len) => peer.out.advance(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A broken socket shows when it is read.
                Err(_) => return,
            }
        }
    }
}
