//! A blocking connection, with TLS or without.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::config::Address;
use crate::follow::{Came, Wire};
use crate::limits::{FOLLOW_CONNECT_TIMEOUT, FOLLOW_READ_LEN, FOLLOW_REPLY_MAX};
use crate::tls::{Channel, Setup};
use crate::zeo::OutQueue;

/// Seconds of silence after which the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Slices in one `writev`.
const SLICES_PER_WRITE: usize = 64;

/// A socket.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Line {
    stream: Stream,
    tls: Option<Box<Channel>>,
    buf: Vec<u8>,
    /// What came behind the handshake, and was not asked for yet.
    early: Vec<u8>,
}

/// Connects, and shakes hands if there is TLS.
///
/// # Errors
///
/// Why that is impossible now.
pub(super) fn connect(to: &Address, setup: Option<&Setup>) -> Result<Line, String> {
    let stream = match to {
        Address::Unix(path) => unix(path).map(Stream::Unix),
        Address::Tcp { host, port } => tcp(host, *port).map(Stream::Tcp),
    };
    let mut line = Line::new(stream.map_err(|error| error.to_string())?);
    if let Some(setup) = setup {
        let channel = Channel::connect(setup).map_err(|error| error.of_server())?;
        line.tls = Some(Box::new(channel));
        line.shake_hands()?;
    }
    Ok(line)
}

fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let host = if host.is_empty() { "localhost" } else { host };
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, FOLLOW_CONNECT_TIMEOUT) {
            Ok(stream) => {
                // Each question is short, and its answer is waited for.
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(FOLLOW_REPLY_MAX))?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Does not wait if the other side accepts nobody.
fn unix(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(FOLLOW_REPLY_MAX))?;
    Ok(stream)
}

impl Line {
    /// One end of a pair.
    ///
    /// # Errors
    ///
    /// The socket has no timeouts.
    pub(super) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(FOLLOW_REPLY_MAX))?;
        Ok(Self::new(Stream::Unix(stream)))
    }

    fn new(stream: Stream) -> Self {
        Self {
            stream,
            tls: None,
            buf: vec![0; FOLLOW_READ_LEN],
            early: Vec::new(),
        }
    }

    fn shake_hands(&mut self) -> Result<(), String> {
        let mut early = Vec::new();
        while self.tls.as_ref().is_some_and(|tls| !tls.is_open()) {
            self.send_encrypted().map_err(|error| error.to_string())?;
            let came = self.read(FOLLOW_CONNECT_TIMEOUT, &mut |data| {
                early.extend_from_slice(data)
            });
            match came {
                Ok(Came::Bytes) => {}
                Ok(Came::Nothing) => return Err("it does not answer TLS's greeting".to_owned()),
                Ok(Came::End) => return Err("it has closed when it was greeted by TLS".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
        self.send_encrypted().map_err(|error| error.to_string())?;
        self.early = early;
        Ok(())
    }

    /// Sends what TLS has ready.
    fn send_encrypted(&mut self) -> io::Result<()> {
        let Self { stream, tls, .. } = self;
        while let Some(tls) = tls
            && tls.has_unsent()
        {
            match tls.send(stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&mut self, wait: Duration, give: &mut dyn FnMut(&[u8])) -> io::Result<Came> {
        let Self {
            stream, tls, buf, ..
        } = self;
        if tls.as_ref().is_some_and(|tls| tls.is_closed()) {
            return Ok(Came::End);
        }
        stream.set_read_timeout(wait)?;
        let len = loop {
            match stream.read(buf) {
                Ok(0) => return Ok(Came::End),
                Ok(len) => break len,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        return Ok(Came::Nothing);
                    }
                    _ => return Err(error),
                },
            }
        };
        match tls {
            None => give(&buf[..len]),
            Some(tls) => {
                let received = tls.receive(&buf[..len], give);
                // If it failed, what is sent says why.
                let sent = self.send_encrypted();
                received.map_err(|error| io::Error::other(error.of_server()))?;
                sent?;
            }
        }
        Ok(Came::Bytes)
    }
}

impl Wire for Line {
    fn send(&mut self, out: &mut OutQueue) -> io::Result<()> {
        while !out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
            let count = out.slices(&mut slices, usize::MAX);
            let taken = match &mut self.tls {
                None => self.stream.write_vectored(&slices[..count]),
                Some(tls) => Ok(tls.encrypt(&slices[..count])),
            };
            match taken {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => out.advance(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            self.send_encrypted()?;
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration, give: &mut dyn FnMut(&[u8])) -> io::Result<Came> {
        if !self.early.is_empty() {
            give(&std::mem::take(&mut self.early));
            return Ok(Came::Bytes);
        }
        self.read(wait, give)
    }
}

impl Stream {
    fn set_read_timeout(&self, wait: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(Some(wait)),
            Self::Unix(stream) => stream.set_read_timeout(Some(wait)),
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
            Self::Tcp(stream) => stream.write_vectored(slices),
            Self::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
