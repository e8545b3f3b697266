//! Connections to other nodes, over which what is long goes ([`crate::peer`]).
//!
//! ```text
//!  whoever decides ── request ──►          ◄── events ──  Peers  ◄══ TCP ══►  Peers of other nodes
//!                  ── answer ───►                           ▲
//!  a thread that copies ── PeerHandle::call, and waits ─────┘
//! ```
//!
//! A connection to a node is made when something is asked of it, and kept for a while. Whoever runs
//! the poll calls [`Peers::turn`] in each turn, [`Peers::flush`] behind all that may ask or answer,
//! and between them [`Peers::poll_event`] until there is no more.

mod beats;
mod handle;
mod link;
mod target;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use log::Level;
use mio::event::Event;
use mio::{Registry, Token, Waker};
use ring::rand::{SecureRandom, SystemRandom};

use self::handle::Call;
pub use self::handle::PeerHandle;
use self::link::Link;
use self::target::{Goal, Lane, Target};
use super::certificates::Certificates;
use super::connection::{Connection, Stream};
use super::listener::Listener;
use crate::ids::{ClientId, NodeId};
use crate::limits::{
    ACCEPTS_PER_TURN, PEER_CALLS_MAX, PEER_CONNECTIONS_MAX, PEER_TARGETS_MAX, PEER_WAITING_MAX,
    READ_BYTES_PER_TURN,
};
use crate::peer::{
    self, Answer, Beat, Failure, FailureKind, Nonce, Paths, Request, Session, Throttle,
};
use crate::server::refusals::Refusals;
use crate::tls::Channel;

/// Names a request of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Names a request of another node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AnswerId {
    link: Serial,
    id: u64,
}

/// What happens between nodes.
#[derive(Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// Another node asks; to be answered by [`Peers::answer`].
    Request {
        /// Which one
        id: AnswerId,
        /// Who asks; with a key, for certain.
        from: NodeId,
        /// What
        request: Request,
    },
    /// A request of ours is answered.
    Answer {
        /// Which one
        id: RequestId,
        /// Who answers
        from: NodeId,
        /// What
        answer: Answer,
    },
    /// A request of ours has no answer, and will have none.
    Failed {
        /// Which one
        id: RequestId,
        /// Why
        why: String,
    },
}

/// How nodes are talked to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who we are.
    pub node: peer::Options,
    /// Bytes per second of files that others copy of us, all together; `None` without bound.
    pub bulk_rate: Option<u64>,
}

/// All connections with other nodes. See the module's page.
pub struct Peers {
    options: Options,
    poll: Polling,
    random: SystemRandom,
    certificates: Option<Certificates>,
    doors: Vec<Door>,
    links: BTreeMap<Serial, Link>,
    /// That of the last connection.
    last_serial: Serial,
    /// By address as it was given. Those that nothing is wanted of are forgotten.
    targets: BTreeMap<Goal, Target>,
    last_request: u64,
    calls: Receiver<Call>,
    caller: SyncSender<Call>,
    events: VecDeque<PeerEvent>,
    /// What we say of ourselves to those that beat to us.
    beat: Beat,
    paths: Paths,
    throttle: Throttle,
    /// Pieces that wait for the throttle, of all connections, in order.
    pieces: VecDeque<(AnswerId, Answer)>,
    refusals: Refusals,
    scratch: Vec<u8>,
    has_more: bool,
}

/// Tells connections apart; a part of their tokens.
type Serial = u32;

/// Where sockets are registered, and who is woken when a thread is done.
struct Polling {
    registry: Registry,
    /// The first of [`TOKENS`]; the others count down.
    first: Token,
    waker: Arc<Waker>,
}

/// Where others connect.
struct Door {
    listener: Listener,
    /// Somebody may be waiting there.
    acceptable: bool,
    /// Nobody is accepted before.
    rests_until: Option<Instant>,
}

/// Who waits for an answer.
enum Asker {
    /// Whoever takes our events.
    Event(RequestId),
    /// A thread
    Thread(SyncSender<Result<Answer, String>>),
    /// A beat to this node
    Beat(NodeId),
}

/// Tokens that belong to us.
const TOKENS: usize = 1_000_000;

/// Those of them that listeners may have.
const DOORS_MAX: usize = 100;

/// How long a listener rests when the process has no file descriptor left.
const REST: Duration = Duration::from_millis(500);

const LOG: &str = module_path!();

impl Peers {
    /// Others connect to `listeners`. Sockets are registered with tokens from `first` down, a
    /// million of them: see [`Self::owns`]. `waker` is woken when a thread has done something, and
    /// [`Self::turn`] is to be called then.
    ///
    /// # Errors
    ///
    /// The system has not enough room for another socket in a poll.
    pub(super) fn new(
        listeners: Vec<Listener>,
        options: Options,
        registry: &Registry,
        first: Token,
        waker: &Arc<Waker>,
        now: Instant,
    ) -> io::Result<Self> {
        let poll = Polling {
            registry: registry.try_clone()?,
            first,
            waker: waker.clone(),
        };
        let mut doors = Vec::new();
        for (at, mut listener) in listeners.into_iter().take(DOORS_MAX).enumerate() {
            listener.register(&poll.registry, Token(first.0 - at))?;
            doors.push(Door {
                listener,
                acceptable: true,
                rests_until: None,
            });
        }
        let (caller, calls) = mpsc::sync_channel(PEER_CALLS_MAX);
        Ok(Self {
            throttle: Throttle::new(options.bulk_rate, now),
            options,
            poll,
            random: SystemRandom::new(),
            certificates: None,
            doors,
            links: BTreeMap::new(),
            last_serial: 0,
            targets: BTreeMap::new(),
            last_request: 0,
            calls,
            caller,
            events: VecDeque::new(),
            beat: Beat::default(),
            paths: Paths::default(),
            pieces: VecDeque::new(),
            refusals: Refusals::default(),
            scratch: vec![0; READ_BYTES_PER_TURN],
            has_more: true,
        })
    }

    /// From now on connections are encrypted, and both sides have to show a certificate.
    pub(super) fn encrypt(&mut self, certificates: Certificates) {
        self.certificates = Some(certificates);
    }

    /// Begins to read the certificates anew, if there are any: whether there are. Who is connected
    /// stays so.
    pub(super) fn reload_certificates(&mut self) -> bool {
        let certificates = self.certificates.as_mut();
        certificates.map(Certificates::reload).is_some()
    }

    /// Where others connect, for people.
    pub fn addresses(&self) -> Vec<String> {
        self.doors.iter().map(|it| it.listener.describe()).collect()
    }

    /// Whether a token is one of ours.
    pub const fn owns(&self, token: Token) -> bool {
        token.0 <= self.poll.first.0 && self.poll.first.0 - token.0 < TOKENS
    }

    /// Notes what the poll has said of a token of ours.
    pub fn on_ready(&mut self, event: &Event) {
        let at = self.poll.first.0.saturating_sub(event.token().0);
        if let Some(door) = self.doors.get_mut(at) {
            door.acceptable = true;
            return;
        }
        let Some(serial) = at.checked_sub(DOORS_MAX) else {
            return;
        };
        // A late event finds nobody.
        let Ok(serial) = Serial::try_from(serial) else {
            return;
        };
        let connecting = self.targets.values_mut();
        let connecting = connecting.filter_map(|target| target.connecting(serial));
        let open = self.links.get_mut(&serial).map(|it| &mut it.connection);
        for connection in open.into_iter().chain(connecting) {
            connection.readable |= event.is_readable() || event.is_read_closed();
            connection.read_closed |= event.is_read_closed() || event.is_error();
            connection.writable |= event.is_writable();
        }
    }

    /// Whether [`Self::turn`] has something to do at once.
    pub fn has_more(&self) -> bool {
        self.has_more || !self.events.is_empty()
    }

    /// What has happened. To be called until there is no more.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.events.pop_front()
    }

    /// Asks the node at `to`, which is `host:port`. There will be an answer, or a failure.
    pub fn request(&mut self, to: &str, request: Request, now: Instant) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.ask(bulk(to), request, Asker::Event(id), now);
        id
    }

    /// Answers; to be called once for each [`PeerEvent::Request`]. If the other has gone, nothing
    /// happens.
    pub fn answer(&mut self, to: AnswerId, answer: Answer, now: Instant) {
        if matches!(answer, Answer::Piece(_)) && self.links.contains_key(&to.link) {
            self.pieces.push_back((to, answer));
            self.release_pieces(now);
        } else if let Some(link) = self.links.get_mut(&to.link) {
            link.session.answer(to.id, &answer, now);
        }
    }

    /// For a thread that asks the node at `to` and waits, for `timeout` at most, for each answer.
    pub fn handle(&self, to: &str, timeout: Duration) -> PeerHandle {
        PeerHandle::new(to, timeout, self.caller.clone(), self.poll.waker.clone())
    }

    /// Connects, accepts, reads what there is, up to a budget.
    pub fn turn(&mut self, now: Instant) {
        self.has_more = false;
        if let Some(certificates) = &mut self.certificates {
            certificates.take_loaded();
        }
        for _ in 0..PEER_CALLS_MAX {
            let Ok(call) = self.calls.try_recv() else {
                break;
            };
            self.ask(
                bulk(&call.to),
                call.request,
                Asker::Thread(call.answer),
                now,
            );
        }
        let ready = self.links.iter().filter(|(_, it)| it.wants_read());
        let serials: Vec<Serial> = ready.map(|(serial, _)| *serial).collect();
        for serial in serials {
            self.read(serial, now);
        }
        self.go_on_connecting(now);
        for at in 0..self.doors.len() {
            self.accept(at, now);
        }
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self, now: Instant) {
        self.release_pieces(now);
        let ready = self.links.iter().filter(|(_, it)| it.wants_write());
        let serials: Vec<Serial> = ready.map(|(serial, _)| *serial).collect();
        for serial in serials {
            self.write(serial, now);
        }
    }

    /// When [`Self::on_deadline`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let sessions = self.links.values().filter_map(|it| it.session.deadline());
        let targets = self.targets.values().filter_map(Target::deadline);
        let doors = self.doors.iter().filter_map(|door| door.rests_until);
        let throttle = match self.pieces.is_empty() {
            true => None,
            false => self.throttle.opens_at(),
        };
        sessions.chain(targets).chain(doors).chain(throttle).min()
    }

    /// Fires what is due. [`Self::turn`] is to follow.
    pub fn on_deadline(&mut self, now: Instant) {
        for link in self.links.values_mut() {
            link.session.on_deadline(now);
        }
        for door in &mut self.doors {
            if door.rests_until.is_some_and(|until| until <= now) {
                door.rests_until = None;
                door.acceptable = true;
            }
        }
        self.has_more = true;
    }

    fn ask(&mut self, goal: Goal, request: Request, asker: Asker, now: Instant) {
        let unable = |why: &str| Failure::new(FailureKind::Unreachable, why);
        if !self.targets.contains_key(&goal) {
            if self.targets.len() >= PEER_TARGETS_MAX {
                self.targets.retain(|_, target| !target.is_idle(now));
            }
            if self.targets.len() >= PEER_TARGETS_MAX {
                return self.fail(asker, &goal.to, &unable("too many other nodes"));
            }
            match Target::new(&goal.to) {
                Ok(target) => _ = self.targets.insert(goal.clone(), target),
                Err(why) => return self.fail(asker, &goal.to, &unable(&why)),
            }
        }
        let Some(target) = self.targets.get_mut(&goal) else {
            return;
        };
        if target.waiting.len() >= PEER_WAITING_MAX {
            return self.fail(asker, &goal.to, &unable("too many requests wait"));
        }
        target.waiting.push_back((request, asker));
        // Sent at once if that is possible, so that it leaves in this turn.
        match target.link() {
            Some(serial) => self.feed(serial, now),
            None => self.has_more = true,
        }
    }

    fn fail(&mut self, asker: Asker, who: &str, failure: &Failure) {
        let why = || format!("{who}: {}", failure.why);
        match asker {
            Asker::Event(id) => {
                let why = why();
                self.events.push_back(PeerEvent::Failed { id, why });
            }
            // It may not wait any more.
            Asker::Thread(sender) => drop(sender.try_send(Err(why()))),
            Asker::Beat(node) => self.paths.on_failed(node, failure.clone()),
        }
    }

    fn on_answer(&mut self, asker: Asker, from: NodeId, answer: Answer, now: Instant) {
        match asker {
            Asker::Event(id) => {
                let event = PeerEvent::Answer { id, from, answer };
                self.events.push_back(event);
            }
            Asker::Thread(sender) => drop(sender.try_send(Ok(answer))),
            Asker::Beat(node) => {
                // A version that does not know it refuses it, and is there.
                let beat = match answer {
                    Answer::Beat(beat) => Some(beat),
                    _ => None,
                };
                self.paths.on_answer(node, from, beat, now);
            }
        }
    }

    /// Gives pieces to their connections, as the throttle allows.
    fn release_pieces(&mut self, now: Instant) {
        while !self.pieces.is_empty() && self.throttle.is_open(now) {
            let Some((to, piece)) = self.pieces.pop_front() else {
                return;
            };
            if let Some(link) = self.links.get_mut(&to.link) {
                if let Answer::Piece(bytes) = &piece {
                    self.throttle.take(bytes.len());
                }
                link.session.answer(to.id, &piece, now);
            }
        }
    }

    /// Accepts from one listener, up to its budget.
    fn accept(&mut self, at: usize, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let door = &mut self.doors[at];
            if !door.acceptable {
                return;
            }
            match door.listener.accept() {
                Ok((stream, peer)) => self.admit(stream, peer, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    door.acceptable = false;
                }
                // It was gone before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    door.acceptable = false;
                    door.rests_until = Some(now + REST);
                    let why = error.to_string();
                    self.complain("other nodes cannot connect", "", &why, now);
                    return;
                }
            }
        }
        self.has_more = true;
    }

    fn admit(&mut self, stream: Stream, peer: String, now: Instant) {
        let count = self.links.values().filter(|it| it.target.is_none()).count();
        if count >= PEER_CONNECTIONS_MAX {
            let why = format!("there are {count} connections of other nodes");
            return self.complain(&format!("{peer} refused"), &peer, &why, now);
        }
        let Some(nonce) = self.nonce() else {
            return;
        };
        let tls = match &self.certificates {
            None => None,
            Some(certificates) => match certificates.channel() {
                Some(tls) => Some(tls),
                None => return,
            },
        };
        let session = Session::accept(&self.options.node, &nonce, now);
        let serial = self.next_serial();
        let mut connection = new_connection(stream, tls);
        // What it has sent already is no event.
        connection.readable = true;
        if let Err(error) = connection.register(&self.poll.registry, self.poll.token(serial)) {
            return log::error!("{peer}: cannot be polled ({error})");
        }
        let link = Link::new(connection, session, peer, None);
        self.links.insert(serial, link);
        self.has_more = true;
    }

    /// Random bytes. Without them nobody can be talked to.
    fn nonce(&self) -> Option<Nonce> {
        let mut nonce = Nonce::default();
        match self.random.fill(&mut nonce) {
            Ok(()) => Some(nonce),
            Err(error) => {
                log::error!("the system has no random numbers ({error})");
                None
            }
        }
    }

    fn next_serial(&mut self) -> Serial {
        const COUNT: Serial = (TOKENS - DOORS_MAX) as Serial;
        loop {
            self.last_serial = (self.last_serial + 1) % COUNT;
            let serial = self.last_serial;
            let is_connecting = |target: &Target| target.is_connecting(serial);
            if !self.links.contains_key(&serial) && !self.targets.values().any(is_connecting) {
                return serial;
            }
        }
    }

    /// Says that something is wrong with a peer, once in a while.
    fn complain(&mut self, what: &str, peer: &str, why: &str, now: Instant) {
        let repeated = self.refusals.note(peer, why, now);
        repeated.log_line(LOG, Level::Warn, what, why);
    }
}

/// What requests go by.
fn bulk(to: &str) -> Goal {
    let to = to.to_owned();
    let lane = Lane::Bulk;
    Goal { to, lane }
}

impl Polling {
    const fn token(&self, serial: Serial) -> Token {
        Token(self.first.0 - DOORS_MAX - serial as usize)
    }
}

fn new_connection(stream: Stream, tls: Option<Channel>) -> Connection {
    // Nobody's: a node is no client.
    let client = ClientId { serial: 0, key: 0 };
    Connection::new(stream, tls, client)
}

#[cfg(test)]
mod tests;
