//! A socket and what is known of its readiness.

use std::io::{self, IoSlice, Read, Write};

use mio::event::Source;
use mio::{Interest, Registry, Token, net};

use crate::ids::ClientId;

/// A connected socket of either kind.
#[derive(Debug)]
pub(super) enum Stream {
    /// TCP
    Tcp(net::TcpStream),
    /// A Unix socket
    Unix(net::UnixStream),
}

/// A socket with what the poll has said of it. The poll speaks of changes only (it is edge
/// triggered), so both flags stay until the socket itself says that it would block.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    pub(super) client: ClientId,
    /// There may be something to read.
    pub(super) readable: bool,
    /// There may be room to write.
    pub(super) writable: bool,
    /// The peer will send no more; a read will come to the end.
    pub(super) read_closed: bool,
    /// It is in the list of connections to be served in the next turn.
    pub(super) queued: bool,
}

/// What became of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    WouldBlock,
    /// The peer has closed.
    End,
}

impl Connection {
    pub(super) fn new(stream: Stream, client: ClientId) -> Self {
        Self {
            stream,
            client,
            readable: false,
            writable: true,
            read_closed: false,
            queued: false,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        match &mut self.stream {
            Stream::Tcp(stream) => stream.register(registry, token, both),
            Stream::Unix(stream) => stream.register(registry, token, both),
        }
    }

    pub(super) fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.deregister(registry),
            Stream::Unix(stream) => stream.deregister(registry),
        }
    }

    /// Reads once.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<ReadOutcome> {
        let result = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(buf),
            Stream::Unix(stream) => stream.read(buf),
        };
        match result {
            Ok(0) => Ok(ReadOutcome::End),
            Ok(len) => {
                // A short read has emptied the socket, and the next bytes will be an event. The
                // end of the stream is none if it was there already.
                if len < buf.len() && !self.read_closed {
                    self.readable = false;
                }
                Ok(ReadOutcome::Bytes(len))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(ReadOutcome::WouldBlock)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(ReadOutcome::Bytes(0)),
            Err(error) => Err(error),
        }
    }

    /// Writes as much as there is room for, in one call; the number of bytes taken.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let result = match &mut self.stream {
            Stream::Tcp(stream) => stream.write_vectored(slices),
            Stream::Unix(stream) => stream.write_vectored(slices),
        };
        match result {
            Ok(len) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }
}
