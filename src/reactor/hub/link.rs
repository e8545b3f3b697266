//! A connection and a listener with what the loop of the tools knows of them.

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};

use rustix::net::sockopt;

use super::super::connection::{Connection, Stream};
use super::super::listener::Listener;
use super::ListenerId;
use crate::out_queue::OutQueue;

/// A listening socket and what is known of it.
pub(super) struct Door {
    pub(super) listener: Listener,
    pub(super) id: ListenerId,
    /// Somebody may be waiting there.
    pub(super) acceptable: bool,
    /// The service wants them.
    pub(super) open: bool,
}

/// A connection with what waits for it.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) out: OutQueue,
    /// It is in the list of those that have to be written.
    pub(super) unsent: bool,
    /// Where it may be connected to if this attempt fails; `None` if it stands.
    pub(super) connecting: Option<VecDeque<SocketAddr>>,
    /// The service wants to read.
    pub(super) reading: bool,
    /// The service wants what it sent to be written.
    pub(super) writing: bool,
    /// The peer has ended its stream, and the service knows.
    pub(super) ended: bool,
    pub(super) ending: Ending,
}

/// How a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It does.
    Open,
    /// Our half of it is to end when all is written.
    FinishAfterFlush,
    /// Our half of it has ended.
    Finished,
    /// It is to be closed when all is written.
    CloseAfterFlush,
}

impl Link {
    /// The service has closed it.
    pub(super) fn is_given_up(&self) -> bool {
        self.ending == Ending::CloseAfterFlush
    }

    pub(super) fn wants_input(&self) -> bool {
        self.connection.readable
            && self.reading
            && !self.ended
            && self.connecting.is_none()
            && !self.is_given_up()
    }
}

impl Stream {
    /// Whether a connection that was begun stands; an error if it never will.
    pub(in crate::reactor) fn connected(&self) -> io::Result<bool> {
        match self {
            Self::Unix(_) => Ok(true),
            Self::Tcp(stream) => {
                if let Some(error) = stream.take_error()? {
                    return Err(error);
                }
                match stream.peer_addr() {
                    Ok(_) => {
                        sockopt::set_tcp_nodelay(stream, true)?;
                        Ok(true)
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
                    Err(error) => Err(error),
                }
            }
        }
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }
}
