//! A node that we ask: its address, how we get there, and what waits for that.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::super::certificates::Certificates;
use super::super::connection::{Connection, Stream};
use super::super::daemon::in_background;
use super::link::Link;
use super::{Asker, Peers, Serial, new_connection};
use crate::config::Address;
use crate::limits::{BEAT_LOST, PEER_CONNECT_TIMEOUT, PEER_RETRY_MAX, PEER_RETRY_MIN};
use crate::peer::{Failure, FailureKind, Request, Session};

/// Where a connection goes, and what for: what is long must not be in the way of beats.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Goal {
    /// `host:port`, as it was given.
    pub(super) to: String,
    pub(super) lane: Lane,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Requests
    Bulk,
    /// Beats
    Beats,
}

/// A node that we ask.
pub(super) struct Target {
    host: String,
    port: u16,
    way: Way,
    /// What a thread finds out, which may take longer than an attempt to connect: there is one at a
    /// time, and the attempt that is on when it is done takes what it has found.
    lookup: Option<Lookup>,
    /// What it is to be asked.
    pub(super) waiting: VecDeque<(Request, Asker)>,
    /// How long nobody tries to get there after the next failure.
    retry: Duration,
    /// Nobody tries before.
    rests_until: Option<Instant>,
}

/// How we get to a node.
enum Way {
    /// Not now.
    None,
    /// A thread looks up its name: [`Target::lookup`].
    Resolving { until: Instant },
    /// It has not answered yet; there may be other addresses to try, and an end to it.
    Connecting {
        serial: Serial,
        connection: Connection,
        rest: VecDeque<SocketAddr>,
        until: Instant,
    },
    /// By this connection
    Link(Serial),
}

type Lookup = Receiver<io::Result<VecDeque<SocketAddr>>>;

impl Target {
    /// An address as `host:port`.
    pub(super) fn new(to: &str) -> Result<Self, String> {
        let wrong = || format!("{to:?} is no address of a node (HOST:PORT)");
        match Address::from_str(to) {
            Ok(Address::Tcp { host, port }) if !host.is_empty() && port != 0 => Ok(Self {
                host,
                port,
                way: Way::None,
                lookup: None,
                waiting: VecDeque::new(),
                retry: PEER_RETRY_MIN,
                rests_until: None,
            }),
            Ok(_) | Err(_) => Err(wrong()),
        }
    }

    /// The connection, if there is one.
    pub(super) const fn link(&self) -> Option<Serial> {
        match self.way {
            Way::Link(serial) => Some(serial),
            _ => None,
        }
    }

    pub(super) const fn is_connecting(&self, serial: Serial) -> bool {
        matches!(&self.way, Way::Connecting { serial: own, .. } if *own == serial)
    }

    /// The connection that is being made, if it has this number.
    pub(super) fn connecting(&mut self, serial: Serial) -> Option<&mut Connection> {
        match &mut self.way {
            Way::Connecting {
                serial: own,
                connection,
                ..
            } if *own == serial => Some(connection),
            _ => None,
        }
    }

    /// Whether it may be forgotten.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        matches!(self.way, Way::None)
            && self.lookup.is_none()
            && self.waiting.is_empty()
            && self.rests_until.is_none_or(|until| until <= now)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.way {
            Way::None if self.waiting.is_empty() => None,
            Way::None => self.rests_until,
            Way::Resolving { until } | Way::Connecting { until, .. } => Some(*until),
            Way::Link(_) => None,
        }
    }

    /// Whether there is a step to be made towards it.
    fn wants_way(&self, now: Instant) -> bool {
        match &self.way {
            Way::None if self.waiting.is_empty() => false,
            Way::None => self.rests_until.is_none_or(|until| until <= now),
            Way::Resolving { .. } | Way::Connecting { .. } => true,
            Way::Link(_) => false,
        }
    }

    /// The node is there, and it is the right one.
    pub(super) const fn on_ready(&mut self) {
        self.retry = PEER_RETRY_MIN;
    }

    /// Nobody tries again for a while, longer each time.
    fn rest(&mut self, now: Instant) {
        self.rests_until = Some(now + self.retry);
        self.retry = (2 * self.retry).min(PEER_RETRY_MAX);
    }
}

/// How a way to a node was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing was wanted of it.
    Unused,
    /// What was wanted of it is lost. What waits may try again.
    Broken,
    /// It was not even known who is there. What waits has waited in vain.
    NeverThere,
}

/// What has become of an attempt to connect.
enum Attempt {
    /// It goes on.
    Goes(Way),
    /// The connection stands.
    Stands(Serial, Connection),
    /// It has failed.
    Failed(Failure),
}

impl Peers {
    /// Connects to nodes that something waits for.
    pub(super) fn go_on_connecting(&mut self, now: Instant) {
        let wanted = self.targets.iter().filter(|(_, it)| it.wants_way(now));
        let goals: Vec<Goal> = wanted.map(|(goal, _)| goal.clone()).collect();
        for goal in goals {
            let Some(target) = self.targets.get_mut(&goal) else {
                continue;
            };
            let way = std::mem::replace(&mut target.way, Way::None);
            match self.go_on_with(&goal, way, now) {
                Attempt::Goes(way) => {
                    if let Some(target) = self.targets.get_mut(&goal) {
                        target.way = way;
                    }
                }
                Attempt::Stands(serial, connection) => {
                    self.begin_session(serial, connection, goal, now);
                }
                Attempt::Failed(failure) => {
                    log::debug!("{}: {}", goal.to, failure.why);
                    self.on_way_lost(&goal, Loss::NeverThere, &failure, now);
                }
            }
        }
    }

    fn go_on_with(&mut self, goal: &Goal, way: Way, now: Instant) -> Attempt {
        match way {
            Way::None => self.begin_connecting(goal, now),
            Way::Resolving { until } => self.take_addresses(goal, until, now),
            Way::Connecting {
                serial,
                connection,
                rest,
                until,
            } => self.look_at(serial, connection, rest, until, now),
            Way::Link(_) => Attempt::Goes(way),
        }
    }

    fn begin_connecting(&mut self, goal: &Goal, now: Instant) -> Attempt {
        let Some(target) = self.targets.get_mut(goal) else {
            return Attempt::Goes(Way::None);
        };
        target.rests_until = None;
        let (host, port) = (target.host.clone(), target.port);
        let until = now + PEER_CONNECT_TIMEOUT;
        if let Ok(address) = host.parse::<IpAddr>() {
            let addresses = VecDeque::from([SocketAddr::new(address, port)]);
            return self.try_next(addresses, unreachable("it has no address"), until);
        }
        if target.lookup.is_none() {
            let lookup = move || (host, port).to_socket_addrs().map(Iterator::collect);
            match in_background("resolver", self.poll.waker.clone(), lookup) {
                Ok(lookup) => target.lookup = Some(lookup),
                Err(error) => return Attempt::Failed(unreachable(error.to_string())),
            }
        }
        Attempt::Goes(Way::Resolving { until })
    }

    /// Goes on with what the thread has found, if it has.
    fn take_addresses(&mut self, goal: &Goal, until: Instant, now: Instant) -> Attempt {
        let target = self.targets.get_mut(goal);
        let Some((target, lookup)) =
            target.and_then(|it| it.lookup.take().map(|lookup| (it, lookup)))
        else {
            return Attempt::Failed(unreachable("nobody looks up its name"));
        };
        match lookup.try_recv() {
            Ok(Ok(addresses)) => {
                self.try_next(addresses, unreachable("its name has no address"), until)
            }
            Ok(Err(error)) => {
                let why = format!("its name cannot be looked up: {error}");
                Attempt::Failed(unreachable(why))
            }
            Err(TryRecvError::Disconnected) => {
                Attempt::Failed(unreachable("its name cannot be looked up"))
            }
            Err(TryRecvError::Empty) => {
                target.lookup = Some(lookup);
                if now < until {
                    Attempt::Goes(Way::Resolving { until })
                } else {
                    Attempt::Failed(unreachable("its name is not looked up in time"))
                }
            }
        }
    }

    /// Tries the next of the addresses that are left.
    fn try_next(
        &mut self,
        mut rest: VecDeque<SocketAddr>,
        mut failure: Failure,
        until: Instant,
    ) -> Attempt {
        while let Some(next) = rest.pop_front() {
            let stream = match TcpStream::connect(next) {
                Ok(stream) => stream,
                Err(error) => {
                    failure = of_socket(&error);
                    continue;
                }
            };
            let tls = self.certificates.as_ref().map(Certificates::connect);
            let tls = match tls.transpose() {
                Ok(tls) => tls,
                Err(error) => {
                    failure = unreachable(error.of_node());
                    continue;
                }
            };
            let mut connection = new_connection(Stream::Tcp(stream), tls);
            connection.writable = false;
            let serial = self.next_serial();
            match connection.register(&self.poll.registry, self.poll.token(serial)) {
                Ok(()) => {
                    return Attempt::Goes(Way::Connecting {
                        serial,
                        connection,
                        rest,
                        until,
                    });
                }
                Err(error) => failure = unreachable(error.to_string()),
            }
        }
        Attempt::Failed(failure)
    }

    /// Looks whether a connection that was begun stands.
    fn look_at(
        &mut self,
        serial: Serial,
        mut connection: Connection,
        rest: VecDeque<SocketAddr>,
        until: Instant,
        now: Instant,
    ) -> Attempt {
        let connected = if connection.writable || connection.read_closed {
            connection.stream().connected()
        } else {
            Ok(false)
        };
        let failure = match connected {
            Ok(true) => return Attempt::Stands(serial, connection),
            Ok(false) if now < until => {
                return Attempt::Goes(Way::Connecting {
                    serial,
                    connection,
                    rest,
                    until,
                });
            }
            Ok(false) => unreachable("it does not answer"),
            Err(error) => of_socket(&error),
        };
        if let Err(error) = connection.deregister(&self.poll.registry) {
            log::warn!("{error}");
        }
        if now < until {
            self.try_next(rest, failure, until)
        } else {
            Attempt::Failed(failure)
        }
    }

    fn begin_session(
        &mut self,
        serial: Serial,
        mut connection: Connection,
        goal: Goal,
        now: Instant,
    ) {
        let Some(nonce) = self.nonce() else {
            if let Err(error) = connection.deregister(&self.poll.registry) {
                log::warn!("{}: {error}", goal.to);
            }
            let failure = unreachable("there are no random numbers");
            return self.on_way_lost(&goal, Loss::NeverThere, &failure, now);
        };
        let session = Session::connect(&self.options.node, &nonce, now);
        let session = match goal.lane {
            Lane::Bulk => session,
            Lane::Beats => session.with_silence_max(BEAT_LOST),
        };
        if let Some(target) = self.targets.get_mut(&goal) {
            target.way = Way::Link(serial);
        }
        let link = Link::new(connection, session, goal.to.clone(), Some(goal));
        self.links.insert(serial, link);
    }

    /// There is no connection to a node any more, or none came about.
    pub(super) fn on_way_lost(&mut self, goal: &Goal, loss: Loss, failure: &Failure, now: Instant) {
        let Some(target) = self.targets.get_mut(goal) else {
            return;
        };
        target.way = Way::None;
        if loss != Loss::Unused {
            target.rest(now);
        }
        if loss == Loss::NeverThere {
            for (_, asker) in std::mem::take(&mut target.waiting) {
                self.fail(asker, goal.to.as_str(), failure);
            }
        }
    }
}

fn unreachable(why: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Unreachable, why)
}

/// What it tells that a connection did not come about.
fn of_socket(error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => FailureKind::Refused,
        _ => FailureKind::Unreachable,
    };
    Failure::new(kind, error.to_string())
}
