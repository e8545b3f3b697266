//! Nodes in one process, over loopback TCP. All turns are bounded.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use bytes::Bytes;
use mio::{Events, Poll};

use super::*;
use crate::config::Address;
use crate::ids::{Oid, Seq};
use crate::limits::{PEER_PIECE_LEN_MAX, PEER_REQUESTS_MAX, PEER_SILENCE_MAX};
use crate::peer::{Key, Refusal, RefusalKind};
use crate::reactor::listener::Bound;

const WAKER: Token = Token(0);
const FIRST: Token = Token(usize::MAX - 1_000_000);

/// A node with a poll of its own.
struct Node {
    poll: Poll,
    peers: Peers,
    events: Vec<PeerEvent>,
    /// How far its clock is ahead.
    ahead: Duration,
    /// It answers reads by itself, with so many bytes.
    supplies: Option<usize>,
}

fn options(node: &str, secret: Option<&str>, bulk_rate: Option<u64>) -> Options {
    Options {
        node: peer::Options {
            node: NodeId::new(node).unwrap(),
            group: "plone".to_owned(),
            key: secret.map(|secret| Key::new(secret.as_bytes())),
        },
        bulk_rate,
    }
}

#[expect(clippy::disallowed_methods, reason = "here is where time comes from")]
fn clock() -> Instant {
    Instant::now()
}

impl Node {
    fn new(options: Options) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).unwrap());
        let listen = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let doors = Bound::new(&listen).unwrap().into_iter();
        let doors = doors.map(|bound| bound.listen().unwrap());
        let registry = poll.registry();
        let peers = Peers::new(doors.collect(), options, registry, FIRST, &waker, clock());
        Self {
            peers: peers.unwrap(),
            poll,
            events: Vec::new(),
            ahead: Duration::ZERO,
            supplies: None,
        }
    }

    fn keyed(name: &str) -> Self {
        Self::new(options(name, Some("secret"), None))
    }

    fn address(&self) -> String {
        self.peers.addresses().remove(0)
    }

    fn now(&self) -> Instant {
        clock() + self.ahead
    }

    /// One turn, which waits for this long at most.
    fn turn(&mut self, wait: Duration) {
        let mut events = Events::with_capacity(64);
        let due = self.peers.deadline();
        let due = due.map(|it| it.saturating_duration_since(self.now()));
        let wait = due.unwrap_or(wait).min(wait);
        let wait = if self.peers.has_more() {
            Duration::ZERO
        } else {
            wait
        };
        self.poll.poll(&mut events, Some(wait)).unwrap();
        for event in &events {
            if event.token() != WAKER {
                assert!(self.peers.owns(event.token()));
                self.peers.on_ready(event);
            }
        }
        let now = self.now();
        if self
            .peers
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.peers.on_deadline(now);
        }
        self.peers.turn(now);
        while let Some(event) = self.peers.poll_event() {
            match (&event, self.supplies) {
                (PeerEvent::Request { id, .. }, Some(len)) => {
                    let piece = Answer::Piece(vec![7; len].into());
                    self.peers.answer(*id, piece, now);
                }
                _ => self.events.push(event),
            }
        }
        self.peers.flush(now);
        // The poll speaks of changes only: what is left has to be said.
        let is_left = self.peers.links.values().any(|link| {
            let connection = &link.connection;
            let has_output = connection.is_open() && link.session.has_output();
            let is_writable = connection.writable && (has_output || connection.has_unsent());
            link.wants_read() || is_writable
        });
        assert!(!is_left || self.peers.has_more());
    }

    fn request(&mut self, to: &str, request: Request) -> RequestId {
        let now = self.now();
        self.peers.request(to, request, now)
    }

    fn answer(&mut self, to: AnswerId, answer: Answer) {
        let now = self.now();
        self.peers.answer(to, answer, now);
    }

    /// Why its only request has failed.
    fn failure(&self) -> &str {
        match &self.events[..] {
            [PeerEvent::Failed { why, .. }] => why,
            other => panic!("{other:?}"),
        }
    }
}

/// Turns until something is so.
#[track_caller]
fn turn_until(nodes: &mut [&mut Node], is_so: impl Fn(&[&mut Node]) -> bool) {
    for _ in 0..20_000 {
        if is_so(nodes) {
            return;
        }
        for node in &mut *nodes {
            node.turn(Duration::from_millis(1));
        }
    }
    let seen: Vec<_> = nodes.iter().map(|node| &node.events).collect();
    panic!("it never is: {seen:?}");
}

fn read(len: usize) -> Request {
    Request::Read {
        snapshot: 1,
        file: 2,
        pos: 3,
        len: u32::try_from(len).unwrap(),
    }
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

#[test]
fn a_node_asks_another_and_is_answered() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    let at_least = Seq(6);
    let newest_only = false;
    let request = Request::Snapshot {
        newest_only,
        at_least,
    };
    let id = one.request(&other.address(), request.clone());
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[1].events.len() == 1
    });
    let Some(PeerEvent::Request {
        id: to,
        from,
        request: got,
    }) = other.events.pop()
    else {
        panic!("{:?}", other.events);
    };
    assert_eq!((from, got), (node("a"), request));
    let answer = Answer::Snapshot(Bytes::from(vec![1; 300_000]));
    other.answer(to, answer.clone());
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == 1
    });
    let from = node("b");
    assert_eq!(one.events, [PeerEvent::Answer { id, from, answer }]);
    // There is one connection for the next ones, in both directions one.
    one.events.clear();
    one.request(&other.address(), Request::Ping);
    other.request(&one.address(), Request::Ping);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes.iter().all(|node| node.events.len() == 1)
    });
    assert_eq!((one.peers.links.len(), other.peers.links.len()), (2, 2));
}

#[test]
fn many_requests_wait_for_their_turn_and_all_are_answered() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    other.supplies = Some(100_000);
    let count = 5 * PEER_REQUESTS_MAX;
    let to = other.address();
    let ids: Vec<_> = (0..count)
        .map(|_| one.request(&to, read(100_000)))
        .collect();
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == count
    });
    for (event, id) in one.events.iter().zip(ids) {
        let answer = Answer::Piece(vec![7; 100_000].into());
        let from = node("b");
        assert_eq!(event, &PeerEvent::Answer { id, from, answer });
    }
}

#[test]
fn more_than_goes_in_one_turn_goes_on_in_the_next() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    let to = other.address();
    let count = 4 * PEER_REQUESTS_MAX;
    (0..count).for_each(|_| _ = one.request(&to, read(PEER_PIECE_LEN_MAX)));
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[1].events.len() == PEER_REQUESTS_MAX
    });
    other.supplies = Some(PEER_PIECE_LEN_MAX);
    for event in std::mem::take(&mut other.events) {
        let PeerEvent::Request { id, .. } = event else {
            panic!("{event:?}");
        };
        other.answer(id, Answer::Piece(vec![7; PEER_PIECE_LEN_MAX].into()));
    }
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == count
    });
}

#[test]
fn more_requests_than_may_wait_fail_at_once() {
    let mut one = Node::keyed("a");
    for _ in 0..=PEER_WAITING_MAX {
        one.request("127.0.0.1:1", Request::Ping);
    }
    let event = one.peers.poll_event();
    assert!(matches!(event, Some(PeerEvent::Failed { why, .. }) if why.contains("too many")));
    assert_eq!(one.peers.poll_event(), None);
    for port in 2..=PEER_TARGETS_MAX + 1 {
        one.request(&format!("127.0.0.1:{port}"), Request::Ping);
    }
    let event = one.peers.poll_event();
    assert!(matches!(event, Some(PeerEvent::Failed { why, .. }) if why.contains("too many")));
    assert_eq!(one.peers.poll_event(), None);
}

#[test]
fn requests_to_what_is_no_address_fail() {
    for wrong in ["", "host", "8100", ":8100", "host:0", "host:x", "/path"] {
        let mut one = Node::keyed("a");
        one.request(wrong, Request::Ping);
        turn_until(&mut [&mut one], |nodes| nodes[0].events.len() == 1);
        assert!(one.failure().contains("is no address of a node"), "{wrong}");
    }
}

#[test]
fn a_node_that_is_not_there_is_not_tried_again_at_once() {
    // Bound, and so nobody else's; and nobody listens.
    let bound = Bound::new(&Address::Tcp {
        host: "127.0.0.1".to_owned(),
        port: 0,
    });
    let to = bound.unwrap()[0].describe();
    let mut one = Node::keyed("a");
    let begun = clock();
    for attempt in 0..3 {
        one.request(&to, Request::Ping);
        turn_until(&mut [&mut one], |nodes| nodes[0].events.len() == 1);
        assert!(one.failure().contains("refused"), "{}", one.failure());
        let least = match attempt {
            0 => Duration::ZERO,
            // 1, then 2 times as long.
            n => crate::limits::PEER_RETRY_MIN * (2 * n - 1) - Duration::from_millis(5),
        };
        assert!(clock() - begun >= least, "{attempt}");
        one.events.clear();
    }
}

#[test]
fn names_are_looked_up_by_a_thread() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    let to = other.address().replace("127.0.0.1", "localhost");
    one.request(&to, Request::Ping);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == 1
    });
    let event = &one.events[0];
    assert!(
        matches!(
            event,
            PeerEvent::Answer {
                answer: Answer::Done,
                ..
            }
        ),
        "{event:?}"
    );
    let mut one = Node::keyed("a");
    one.request("no-such-host.invalid:8100", Request::Ping);
    turn_until(&mut [&mut one], |nodes| nodes[0].events.len() == 1);
    assert!(one.failure().contains("looked up"), "{}", one.failure());
}

#[test]
fn a_node_with_another_key_is_neither_asked_nor_answered() {
    for (one, other, why) in [
        (Some("secret"), Some("sicrit"), "its key is another one"),
        (Some("secret"), None, "key-file"),
        (None, Some("secret"), "key-file"),
    ] {
        let mut one = Node::new(options("a", one, None));
        let mut other = Node::new(options("b", other, None));
        one.request(&other.address(), read(1));
        turn_until(&mut [&mut one, &mut other], |nodes| {
            nodes[0].events.len() == 1
        });
        assert!(one.failure().contains(why), "{}", one.failure());
        turn_until(&mut [&mut one, &mut other], |nodes| {
            nodes[1].peers.links.is_empty()
        });
        assert_eq!(other.events, []);
    }
}

#[test]
fn what_was_asked_of_a_node_that_goes_fails_and_what_waits_is_tried_again() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    let to = other.address();
    let count = PEER_REQUESTS_MAX + 3;
    (0..count).for_each(|_| _ = one.request(&to, read(1)));
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[1].events.len() == PEER_REQUESTS_MAX
    });
    other.peers.links.clear();
    other.supplies = Some(1);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == count
    });
    let failed = one
        .events
        .iter()
        .filter(|it| matches!(it, PeerEvent::Failed { .. }));
    assert_eq!(failed.count(), PEER_REQUESTS_MAX);
    // What is answered too late reaches nobody.
    let Some(PeerEvent::Request { id, .. }) = other.events.pop() else {
        panic!("{:?}", other.events);
    };
    other.answer(id, Answer::Done);
    other.answer(id, Answer::Piece(Bytes::from_static(b"1")));
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[1].peers.pieces.is_empty()
    });
}

#[test]
fn a_silent_node_is_given_up_and_an_unused_connection_closed() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    one.request(&other.address(), read(1));
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[1].events.len() == 1
    });
    one.ahead += PEER_SILENCE_MAX;
    turn_until(&mut [&mut one], |nodes| nodes[0].events.len() == 1);
    assert!(
        one.failure().contains("does not answer"),
        "{}",
        one.failure()
    );
    one.events.clear();
    one.request(&other.address(), Request::Ping);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == 1
    });
    one.ahead += crate::limits::PEER_IDLE_MAX;
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes.iter().all(|node| node.peers.links.is_empty())
    });
    // And is made again when it is wanted, at once.
    let target = one.peers.targets.values().next().unwrap();
    assert_eq!(target.deadline(), None);
    one.request(&other.address(), Request::Ping);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == 2
    });
}

#[test]
fn others_copy_no_faster_than_they_may() {
    let rate = 20 << 20;
    let mut one = Node::keyed("a");
    let mut other = Node::new(options("b", Some("secret"), Some(rate)));
    other.supplies = Some(PEER_PIECE_LEN_MAX);
    let to = other.address();
    let count = 10;
    let begun = clock();
    (0..count).for_each(|_| _ = one.request(&to, read(PEER_PIECE_LEN_MAX)));
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == count
    });
    let bytes = (count - 3) * PEER_PIECE_LEN_MAX;
    let least = Duration::from_secs_f64(bytes as f64 / rate as f64);
    assert!(clock() - begun >= least, "{:?}", clock() - begun);
}

#[test]
fn a_thread_asks_and_waits() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    other.supplies = Some(1000);
    let handle = one.peers.handle(&other.address(), Duration::from_secs(60));
    let nowhere = one.peers.handle("nowhere", Duration::from_secs(60));
    let short = one.peers.handle(&other.address(), Duration::ZERO);
    let copier = thread::spawn(move || {
        let pieces = (0..100).map(|_| handle.call(read(1000)));
        let pieces: Vec<_> = pieces.collect();
        (
            pieces,
            nowhere.call(Request::Ping),
            short.call(Request::Ping),
        )
    });
    turn_until(&mut [&mut one, &mut other], |_| copier.is_finished());
    let (pieces, nowhere, short) = copier.join().unwrap();
    let piece = Ok(Answer::Piece(vec![7; 1000].into()));
    assert!(pieces.len() == 100 && pieces.iter().all(|it| *it == piece));
    assert!(nowhere.unwrap_err().contains("is no address"));
    assert!(short.unwrap_err().contains("no answer within"));
    // When nobody turns any more, nobody waits.
    let handle = one.peers.handle(&other.address(), Duration::from_secs(600));
    let copier = thread::spawn(move || [handle.call(read(1)), handle.call(read(1))]);
    drop(one);
    for result in copier.join().unwrap() {
        assert!(result.unwrap_err().contains("this server ends"));
    }
}

#[test]
fn strangers_are_hung_up_on_and_only_so_many_may_come() {
    let mut one = Node::keyed("a");
    let to: SocketAddr = one.address().parse().unwrap();
    let mut stranger = TcpStream::connect(to).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    turn_until(&mut [&mut one], |nodes| nodes[0].peers.links.len() == 1);
    turn_until(&mut [&mut one], |nodes| nodes[0].peers.links.is_empty());
    let mut said = Vec::new();
    let _ = stranger.read_to_end(&mut said);
    assert_eq!(said, b"");
    let count = PEER_CONNECTIONS_MAX + 5;
    let strangers: Vec<_> = (0..count)
        .map(|_| TcpStream::connect(to).unwrap())
        .collect();
    turn_until(&mut [&mut one], |nodes| {
        nodes[0].peers.links.len() == PEER_CONNECTIONS_MAX
    });
    for mut refused in &strangers[PEER_CONNECTIONS_MAX..] {
        refused.set_nonblocking(true).unwrap();
        let closed = (0..1000).any(|_| {
            one.turn(Duration::from_millis(1));
            matches!(refused.read(&mut [0]), Ok(0))
        });
        assert!(closed);
    }
    // Those who say nothing are not waited for.
    one.ahead += Duration::from_secs(60);
    turn_until(&mut [&mut one], |nodes| nodes[0].peers.links.is_empty());
}

#[test]
fn another_server_at_the_address_is_no_node() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap().to_string();
    let mut one = Node::keyed("a");
    one.request(&to, Request::Ping);
    let mut turns = 0;
    listener.set_nonblocking(true).unwrap();
    let mut stream = loop {
        turns += 1;
        assert!(turns < 1000);
        one.turn(Duration::from_millis(1));
        if let Ok((stream, _)) = listener.accept() {
            break stream;
        }
    };
    stream.write_all(b"\0\0\0\x05M5101").unwrap();
    turn_until(&mut [&mut one], |nodes| nodes[0].events.len() == 1);
    assert!(
        one.failure().contains("it is no node of a group"),
        "{}",
        one.failure()
    );
}

#[test]
fn a_refusal_is_an_answer() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    let (oid, len) = (Oid(1), 2);
    let (snapshot, storage, tid, pos) = (1, 2, crate::ids::Tid(3), 0);
    let request = Request::ReadBlob {
        snapshot,
        storage,
        oid,
        tid,
        pos,
        len,
    };
    let id = one.request(&other.address(), request);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[1].events.len() == 1
    });
    let Some(PeerEvent::Request { id: to, .. }) = other.events.pop() else {
        panic!("{:?}", other.events);
    };
    let answer = Answer::Refused(Refusal::new(RefusalKind::NotThere, "no such copy"));
    other.answer(to, answer.clone());
    turn_until(&mut [&mut one, &mut other], |nodes| {
        nodes[0].events.len() == 1
    });
    let from = node("b");
    assert_eq!(one.events, [PeerEvent::Answer { id, from, answer }]);
}

// -- beats

fn beat(members: u16) -> Beat {
    Beat {
        members,
        ..Beat::default()
    }
}

impl Node {
    fn beat_to(&mut self, other: &str, address: &str) -> Vec<String> {
        let shown = peer::Shown {
            node: node(other),
            address: Some(address.to_owned()),
            is_here: true,
        };
        let now = self.now();
        let witnessed = peer::Witnessed::NoneNamed;
        self.peers
            .beat(beat(2), vec![shown], &[node(other)], witnessed, now)
    }
}

#[test]
fn beats_are_answered_beside_what_is_long_and_tell_of_both_sides() {
    let (mut one, mut other) = (Node::keyed("a"), Node::keyed("b"));
    let (to, back) = (other.address(), one.address());
    other.beat_to("a", &back);
    one.request(&to, read(10));
    one.beat_to("b", &to);
    turn_until(&mut [&mut one, &mut other], |nodes| {
        let heard = |at: usize, name: &str| nodes[at].peers.paths().direct(node(name));
        let answered = |heard: Option<peer::Heard>| heard.is_some_and(|it| it.answered.is_some());
        answered(heard(0, "b")) && answered(heard(1, "a")) && !nodes[1].events.is_empty()
    });
    let heard = one.peers.paths().direct(node("b")).unwrap();
    assert_eq!(heard.beat, Some(beat(2)));
    assert!(heard.round_trip.is_some());
    // Requests and beats have a connection each, and beats make no events.
    let goals = one.peers.links.values().filter(|it| it.target.is_some());
    assert_eq!(goals.count(), 2);
    assert_eq!((one.events.len(), other.events.len()), (0, 1));
}

#[test]
fn a_beat_without_an_answer_tells_why() {
    use crate::limits::{BEAT_INTERVAL, BEAT_LOST, TROUBLE_STEADY};
    let trouble_at = |mut one: Node, to: &str, serve: &dyn Fn()| {
        let mut news = Vec::new();
        for _ in 0..40 {
            news.extend(one.beat_to("b", to));
            (0..5).for_each(|_| {
                one.turn(Duration::from_millis(1));
                serve();
            });
            one.ahead += BEAT_INTERVAL;
        }
        assert!(one.now() > clock() + BEAT_LOST + TROUBLE_STEADY);
        assert_eq!(news.len(), 1, "{news:?}");
        news.remove(0)
    };
    // Nobody listens, nobody answers, and somebody else does.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = closed.local_addr().unwrap().to_string();
    drop(closed);
    let found = trouble_at(Node::keyed("a"), &to, &|| ());
    assert!(found.contains("its peer-address"), "{found}");
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = mute.local_addr().unwrap().to_string();
    let found = trouble_at(Node::keyed("a"), &to, &|| ());
    assert!(found.contains("hung or stopped"), "{found}");
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = web.local_addr().unwrap().to_string();
    web.set_nonblocking(true).unwrap();
    // Here, and not on a thread: the node's time does not wait for one.
    let serve = || {
        while let Ok((mut stream, _)) = web.accept() {
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
    };
    let found = trouble_at(Node::keyed("a"), &to, &serve);
    assert!(found.contains("there is not b"), "{found}");
}

// -- TLS

/// An authority, and certificates that it signs.
struct Authority {
    directory: std::path::PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir();
        let directory = directory.join(format!("standby-peers-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut params = rcgen::CertificateParams::default();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        Self { directory, issuer }
    }

    /// A node with a certificate of ours, which lets in those that `trusted` has signed.
    fn node(&self, name: &str, secret: Option<&str>, trusted: &Self) -> Node {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::default();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = self.directory.join(format!("{name}.pem"));
        std::fs::write(&path, certificate.pem() + &key.serialize_pem()).unwrap();
        let config = crate::config::SslConfig {
            place: crate::config::Place::CommandLine,
            certificate: path,
            key: None,
            password: None,
            authenticate: trusted.directory.join("ca.pem"),
        };
        let mut node = Node::new(options(name, secret, None));
        let certificates = Certificates::load(&config, &node.peers.poll.waker).unwrap();
        node.peers.encrypt(certificates);
        node
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn nodes_that_have_certificates_of_one_authority_talk_by_tls() {
    let ours = Authority::new("ours");
    for secret in [None, Some("secret")] {
        let mut one = ours.node("a", secret, &ours);
        let mut other = ours.node("b", secret, &ours);
        other.supplies = Some(PEER_PIECE_LEN_MAX);
        let to = other.address();
        let count = 3 * PEER_REQUESTS_MAX;
        (0..count).for_each(|_| _ = one.request(&to, read(PEER_PIECE_LEN_MAX)));
        one.beat_to("b", &to);
        turn_until(&mut [&mut one, &mut other], |nodes| {
            let heard = nodes[0].peers.paths().direct(node("b"));
            nodes[0].events.len() == count && heard.is_some_and(|it| it.answered.is_some())
        });
        let is_whole = |event: &PeerEvent| {
            matches!(event, PeerEvent::Answer { answer: Answer::Piece(piece), .. }
                if piece.len() == PEER_PIECE_LEN_MAX)
        };
        assert!(one.events.iter().all(is_whole));
        let links = one.peers.links.values();
        let described = links.map(|it| it.connection.tls().unwrap().describe());
        assert!(described.into_iter().all(|it| it.starts_with("TLSv1_3")));
        // New ones are made with new certificates, and those that stand go on.
        assert!(one.peers.reload_certificates());
        one.events.clear();
        one.request(&to, Request::Ping);
        turn_until(&mut [&mut one, &mut other], |nodes| {
            nodes[0].events.len() == 1
        });
    }
}

#[test]
fn who_has_no_certificate_that_is_trusted_gets_nothing() {
    let (ours, theirs) = (Authority::new("mine"), Authority::new("theirs"));
    let failure = |one: Node, other: Node| {
        let (mut one, mut other) = (one, other);
        one.request(&other.address(), Request::Ping);
        turn_until(&mut [&mut one, &mut other], |nodes| {
            nodes[0].events.len() == 1
        });
        assert!(other.events.is_empty());
        one.failure().to_owned()
    };
    let plain = |name| Node::new(options(name, None, None));
    let refused = failure(theirs.node("a", None, &ours), ours.node("b", None, &ours));
    assert!(refused.contains("refuses us: "), "{refused}");
    let refusing = failure(ours.node("a", None, &ours), theirs.node("b", None, &ours));
    assert!(
        refusing.contains("its certificate is not known"),
        "{refusing}"
    );
    let unencrypted = failure(plain("a"), ours.node("b", None, &ours));
    assert!(
        unencrypted.contains("it is no node of a group"),
        "{unencrypted}"
    );
    let encrypted = failure(ours.node("a", None, &ours), plain("b"));
    assert!(encrypted.contains("closed the connection"), "{encrypted}");
}
