//! Listening sockets: TCP over IPv4 and IPv6, and Unix sockets.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustix::fs::Mode;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::Stream;
use crate::config::Address;

/// Connections that the kernel keeps for us between two turns.
const BACKLOG: i32 = 1024;

/// Seconds of silence after which the kernel asks whether a peer is still there, and between
/// questions; stock clients send a heartbeat every 60 s.
const KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(120);

/// An address that is ours, but nobody can connect yet.
#[derive(Debug)]
pub(super) enum Bound {
    /// A socket of any family.
    Tcp(OwnedFd),
    /// The path of a Unix socket that nobody listens on. It gets its socket when that listens: one
    /// that does not looks like one that a killed server has left behind.
    Unix(PathBuf),
}

/// An address that clients connect to.
#[derive(Debug)]
pub(super) enum Listener {
    /// TCP
    Tcp(mio::net::TcpListener),
    /// A Unix socket.
    Unix(UnixName, mio::net::UnixListener),
}

/// The name of a Unix socket, which ends with it.
#[derive(Debug)]
pub(super) struct UnixName {
    path: PathBuf,
    /// Device and inode, to remove no other than ours.
    id: (u64, u64),
}

impl Bound {
    /// Binds all that an address of the configuration stands for: a host name may have several.
    pub(super) fn new(address: &Address) -> io::Result<Vec<Self>> {
        match address {
            Address::Unix(path) => {
                if socket_id(path)?.is_some() && is_alive(path)? {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                // A missing directory shall be found now, and not after minutes of opening.
                let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
                rustix::fs::stat(directory.unwrap_or(Path::new(".")))?;
                Ok(vec![Self::Unix(path.clone())])
            }
            Address::Tcp { host, port } if host.is_empty() => {
                // One socket for both, where there is IPv6.
                let v6 = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, *port));
                let v4 = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, *port));
                match bind_tcp(v6, true) {
                    Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                        Ok(vec![Self::Tcp(bind_tcp(v4, false)?)])
                    }
                    bound => Ok(vec![Self::Tcp(bound?)]),
                }
            }
            Address::Tcp { host, port } => {
                let mut port = *port;
                let mut bound = Vec::new();
                for resolved in look_up(host, port)? {
                    let socket = bind_tcp(SocketAddr::new(resolved.ip(), port), false)?;
                    if port == 0 {
                        // "Any port" is the same one for all addresses of a name.
                        let address = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
                        port = address.port();
                    }
                    bound.push(Self::Tcp(socket));
                }
                if bound.is_empty() {
                    let why = format!("{host} has no address");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
                }
                Ok(bound)
            }
        }
    }

    /// The address, for people.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Tcp(socket) => rustix::net::getsockname(socket)
                .and_then(SocketAddr::try_from)
                .map_or_else(|error| error.to_string(), |address| address.to_string()),
            Self::Unix(path) => path.display().to_string(),
        }
    }

    /// Lets clients connect.
    pub(super) fn listen(self) -> io::Result<Listener> {
        self.listen_as(None)
    }

    /// The same; a Unix socket gets this mode, and not what the umask leaves of all.
    pub(super) fn listen_as(self, mode: Option<Mode>) -> io::Result<Listener> {
        match self {
            Self::Tcp(socket) => {
                rustix::net::listen(&socket, BACKLOG)?;
                let listener = mio::net::TcpListener::from_std(TcpListener::from(socket));
                Ok(Listener::Tcp(listener))
            }
            Self::Unix(path) => {
                if let Some(id) = socket_id(&path)? {
                    if is_alive(&path)? {
                        return Err(io::ErrorKind::AddrInUse.into());
                    }
                    // Its server was killed; this removes it.
                    drop(UnixName {
                        path: path.clone(),
                        id,
                    });
                }
                let socket = unix_socket()?;
                rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
                if let Some(mode) = mode {
                    // Nobody can have connected: it does not listen.
                    rustix::fs::chmod(&path, mode)?;
                }
                rustix::net::listen(&socket, BACKLOG)?;
                let id = socket_id(&path)?.unwrap_or_default();
                let listener = mio::net::UnixListener::from_std(UnixListener::from(socket));
                Ok(Listener::Unix(UnixName { path, id }, listener))
            }
        }
    }
}

impl Listener {
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
        if socket_id(&self.path).is_ok_and(|id| id == Some(self.id))
            && let Err(error) = rustix::fs::unlink(&self.path)
        {
            log::warn!("{}: not removed ({error})", self.path.display());
        }
    }
}

/// The addresses of a name. The error is of the kind `InvalidInput` if it has none.
fn look_up(host: &str, port: u16) -> io::Result<impl Iterator<Item = SocketAddr>> {
    (host, port).to_socket_addrs().map_err(|error| {
        let why = error.to_string();
        // All else may pass, as when no server of names answers yet. A text is all that tells it
        // (glibc's, musl's).
        let texts = [
            "not known",
            "No address associated",
            "does not resolve",
            "no usable address",
        ];
        match texts.iter().any(|it| why.contains(it)) {
            true => io::Error::new(io::ErrorKind::InvalidInput, why),
            false => error,
        }
    })
}

fn bind_tcp(address: SocketAddr, both_families: bool) -> io::Result<OwnedFd> {
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
    Ok(socket)
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
