//! Listening sockets: TCP over IPv4 and IPv6, and Unix sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::Stream;
use crate::config::Address;

/// Connections that the kernel keeps for us between two turns.
const BACKLOG: i32 = 1024;

/// Seconds of silence after which the kernel asks whether a peer is still there, and between
/// questions; stock clients send a heartbeat every 60 s.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(120);

/// An address that is bound.
#[derive(Debug)]
pub(super) enum Listener {
    /// TCP
    Tcp(mio::net::TcpListener),
    /// A Unix socket.
    Unix(UnixName, mio::net::UnixListener),
}

/// The name of a Unix socket. Until it listens it has another one, so that nobody takes it for
/// one that a killed server has left behind, and removes it.
#[derive(Debug)]
pub(super) struct UnixName {
    path: PathBuf,
    temporary: PathBuf,
    /// Device and inode, to remove no other than ours.
    id: (u64, u64),
}

impl Listener {
    /// Binds all that an address of the configuration stands for: a host name may have several.
    /// Nobody can connect before [`Self::listen`].
    pub(super) fn bind(address: &Address) -> io::Result<Vec<Self>> {
        match address {
            Address::Unix(path) => Ok(vec![bind_unix(path.clone())?]),
            Address::Tcp { host, port } if host.is_empty() => {
                // One socket for both, where there is IPv6.
                let v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, *port));
                let v4 = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, *port));
                match bind_tcp(v6, true) {
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                        Ok(vec![bind_tcp(v4, false)?])
                    }
                    bound => Ok(vec![bound?]),
                }
            }
            Address::Tcp { host, port } => {
                let mut port = *port;
                let mut listeners = Vec::new();
                for resolved in (host.as_str(), port).to_socket_addrs()? {
                    let listener = bind_tcp(SocketAddr::new(resolved.ip(), port), false)?;
                    if let (0, Self::Tcp(bound)) = (port, &listener) {
                        // "Any port" is the same one for all addresses of a name.
                        port = bound.local_addr()?.port();
                    }
                    listeners.push(listener);
                }
                if listeners.is_empty() {
                    return Err(io::Error::other(format!("{host} has no address")));
                }
                Ok(listeners)
            }
        }
    }

    /// Lets clients connect.
    pub(super) fn listen(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => rustix::net::listen(listener, BACKLOG)?,
            Self::Unix(name, listener) => {
                rustix::net::listen(listener, BACKLOG)?;
                rustix::fs::rename(&name.temporary, &name.path)?;
            }
        }
        Ok(())
    }

    /// The next connection, with a name of its peer for logs. `WouldBlock` if there is none.
    pub(super) fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                // Calls and replies are small and each is waited for.
                sockopt::set_tcp_nodelay(&stream, true)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            Self::Unix(name, listener) => {
                let (stream, _) = listener.accept()?;
                Ok((Stream::Unix(stream), name.path.display().to_string()))
            }
        }
    }

    /// Where it listens, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|error| error.to_string(), |address| address.to_string()),
            Self::Unix(name, _) => name.path.display().to_string(),
        }
    }

    /// Registers it with the poll.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Self::Unix(_, listener) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

impl Drop for UnixName {
    fn drop(&mut self) {
        for path in [&self.path, &self.temporary] {
            if socket_id(path).is_ok_and(|id| id == Some(self.id))
                && let Err(error) = rustix::fs::unlink(path)
            {
                log::warn!("{}: not removed ({error})", path.display());
            }
        }
    }
}

fn bind_tcp(address: SocketAddr, both_families: bool) -> io::Result<Listener> {
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A restart must not wait for connections of the last run to be forgotten.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !both_families)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(Listener::Tcp(mio::net::TcpListener::from_std(
        TcpListener::from(socket),
    )))
}

fn bind_unix(path: PathBuf) -> io::Result<Listener> {
    if socket_id(&path)?.is_some() && is_alive(&path)? {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let temporary = path.with_file_name(format!(".{}.sock", std::process::id()));
    let socket = unix_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&temporary)?)?;
    let id = socket_id(&temporary)?.unwrap_or_default();
    let listener = mio::net::UnixListener::from_std(UnixListener::from(socket));
    let name = UnixName {
        path,
        temporary,
        id,
    };
    Ok(Listener::Unix(name, listener))
}

/// Whether a server listens there, even one that is too busy to accept.
fn is_alive(path: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::net::connect(unix_socket()?, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// Device and inode of the socket of that name; an error if it is something else.
fn socket_id(path: &Path) -> io::Result<Option<(u64, u64)>> {
    use rustix::fs::{FileType, lstat};
    match lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {
            Ok(Some((stat.st_dev, stat.st_ino)))
        }
        Ok(_) => Err(io::Error::other("there is something that is no socket")),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
