//! A socket, TLS if there is any, and what is known of its readiness.

use std::io::{self, IoSlice, Read, Write};

use mio::event::Source;
use mio::{Interest, Registry, Token, net};

use crate::ids::ClientId;
use crate::tls::{Channel, TlsError};
use crate::zeo::frame::OutQueue;

/// Slices in one `writev`.
const SLICES_PER_WRITE: usize = 64;

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
    /// What is between the socket and the plain bytes, if anything is.
    tls: Option<Box<Channel>>,
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
    /// Something came, though it may have been nothing but TLS's own.
    Received,
    /// Nothing now.
    WouldBlock,
    /// The peer has closed.
    End,
}

/// Why a connection cannot be read any more.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The socket says so.
    Socket(io::Error),
    /// TLS says so; what has to be sent to the peer is ready.
    Tls(TlsError),
}

impl Connection {
    pub(super) fn new(stream: Stream, tls: Option<Channel>, client: ClientId) -> Self {
        Self {
            stream,
            tls: tls.map(Box::new),
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

    /// The socket, for what is special about its kind.
    pub(super) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The TLS of the connection, if it has any.
    pub(super) fn tls(&self) -> Option<&Channel> {
        self.tls.as_deref()
    }

    /// Whether what is queued for the peer can be sent now: TLS has first to know who it is.
    pub(super) fn is_open(&self) -> bool {
        self.tls().is_none_or(Channel::is_open)
    }

    /// Whether something waits for the socket here, and not in the peer's queue any more.
    pub(super) fn has_unsent(&self) -> bool {
        self.tls().is_some_and(Channel::has_unsent)
    }

    /// Reads once, into `buf`, and gives out what that says. All of it: nothing stays behind that
    /// the socket would not announce again.
    pub(super) fn read(
        &mut self,
        buf: &mut [u8],
        mut give: impl FnMut(&[u8]),
    ) -> Result<ReadOutcome, ReadError> {
        if self.tls().is_some_and(Channel::is_closed) {
            return Ok(ReadOutcome::End);
        }
        let len = loop {
            match self.stream.read(buf) {
                Ok(0) => return Ok(ReadOutcome::End),
                Ok(len) => break len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(ReadOutcome::WouldBlock);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Socket(error)),
            }
        };
        // A short read has emptied the socket, and the next bytes will be an event. The end of the
        // stream is none if it was there already.
        if len < buf.len() && !self.read_closed {
            self.readable = false;
        }
        match &mut self.tls {
            None => give(&buf[..len]),
            Some(tls) => {
                tls.receive(&buf[..len], give).map_err(ReadError::Tls)?;
                // The end came with these bytes; no event will tell.
                self.readable |= tls.is_closed();
            }
        }
        Ok(ReadOutcome::Received)
    }

    /// Writes of a queue as much as there is room for, `budget` bytes at most (but for those that
    /// TLS adds), in one call; zero if that is nothing, for lack of room or of anything to send.
    pub(super) fn write(&mut self, out: &mut OutQueue, budget: usize) -> io::Result<usize> {
        let Self { stream, tls, .. } = self;
        let written = match tls {
            None if out.is_empty() => return Ok(0),
            None => write_queue(out, budget, |slices| {
                retried(|| stream.write_vectored(slices))
            }),
            Some(tls) => {
                // The next bytes are encrypted when the last are gone: so records are as long as
                // they may be, and most of what waits does so where it is counted.
                if !tls.has_unsent() && !out.is_empty() {
                    write_queue(out, budget, |slices| Ok(tls.encrypt(slices)))?;
                }
                if !tls.has_unsent() {
                    return Ok(0);
                }
                retried(|| tls.send(stream))
            }
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                Ok(0)
            }
            result => result,
        }
    }

    /// Says good-bye, if that is the custom, to a peer that has been sent all there was. There is
    /// one try: nobody waits for it.
    pub(super) fn say_goodbye(&mut self) {
        let Self { stream, tls, .. } = self;
        if let Some(tls) = tls
            && tls.has_begun()
            && !tls.has_unsent()
        {
            tls.close();
            // Who does not take it sees the end all the same.
            let _ = retried(|| tls.send(stream));
        }
    }
}

/// Writes the beginning of a queue, `budget` bytes at most, by `write`, which returns how many it
/// has taken.
fn write_queue(
    out: &mut OutQueue,
    budget: usize,
    write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
    let count = out.slices(&mut slices, budget);
    let len = write(&slices[..count])?;
    out.advance(len);
    Ok(len)
}

/// A signal is no reason to stop.
fn retried(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            // With one piece `send` is the shorter way through the kernel.
            Self::Tcp(stream) => match slices {
                [one] => stream.write(one),
                _ => stream.write_vectored(slices),
            },
            Self::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
