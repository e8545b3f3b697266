//! Two sessions in one process, and bytes that are passed between them as one wishes.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::entry::{Entry, Point};
use crate::ids::{Digest, DiskId, Epoch, HistoryId};
use crate::limits::*;
use crate::replica::message::{Position, Sender, Supply};

/// A session with all that it has said.
struct End {
    session: Session,
    events: Vec<Event>,
    /// All that it has sent.
    sent: Vec<u8>,
}

struct Pair {
    connects: End,
    answers: End,
    now: Instant,
}

#[expect(clippy::disallowed_methods, reason = "any time will do")]
fn now() -> Instant {
    Instant::now()
}

fn options(node: &str, secret: Option<&str>) -> Options {
    Options {
        node: NodeId::new(node).unwrap(),
        group: "plone".to_owned(),
        key: secret.map(|secret| Key::new(secret.as_bytes())),
    }
}

impl End {
    fn new(session: Session) -> Self {
        Self {
            session,
            events: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Takes what it has to send.
    fn take_output(&mut self, now: Instant) -> Vec<u8> {
        let mut taken = Vec::new();
        while self.session.has_output() {
            let out = self.session.output();
            let mut slices = [IoSlice::new(&[]); 16];
            let count = out.slices(&mut slices, usize::MAX);
            let start = taken.len();
            slices[..count]
                .iter()
                .for_each(|it| taken.extend_from_slice(it));
            let len = taken.len() - start;
            out.advance(len);
            self.session.on_written(now);
        }
        self.sent.extend_from_slice(&taken);
        self.poll();
        taken
    }

    fn receive(&mut self, data: &[u8], now: Instant) {
        self.session.receive(data, now);
        self.poll();
    }

    fn poll(&mut self) {
        self.events
            .extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    fn closed(&self) -> Option<&PeerError> {
        match self.events.last() {
            Some(Event::Closed(error)) => Some(error),
            _ => None,
        }
    }

    fn ask(&mut self, request: &Request, now: Instant) -> u64 {
        self.session.request(request, now).unwrap()
    }
}

impl Pair {
    fn new(one: &Options, other: &Options) -> Self {
        let now = now();
        Self {
            connects: End::new(Session::connect(one, &[1; 32], now)),
            answers: End::new(Session::accept(other, &[2; 32], now)),
            now,
        }
    }

    /// Two that know each other.
    fn open(secret: Option<&str>) -> Self {
        let mut pair = Self::new(&options("a", secret), &options("b", secret));
        pair.exchange(usize::MAX);
        assert!(pair.connects.session.node().is_some() && pair.answers.session.node().is_some());
        pair.connects.events.clear();
        pair.answers.events.clear();
        pair
    }

    /// Passes on what either has to say, in parts of this length, until neither has more.
    fn exchange(&mut self, step: usize) {
        loop {
            let there = self.connects.take_output(self.now);
            let back = self.answers.take_output(self.now);
            if there.is_empty() && back.is_empty() {
                return;
            }
            for part in there.chunks(step) {
                self.answers.receive(part, self.now);
            }
            for part in back.chunks(step) {
                self.connects.receive(part, self.now);
            }
        }
    }

    /// Passes on one direction only, and then the other one.
    fn ask(&mut self, request: &Request) -> u64 {
        let id = self.connects.ask(request, self.now);
        let there = self.connects.take_output(self.now);
        self.answers.receive(&there, self.now);
        id
    }

    fn answer(&mut self, id: u64, answer: &Answer) {
        self.answers.session.answer(id, answer, self.now);
        let back = self.answers.take_output(self.now);
        self.connects.receive(&back, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn sender(node: &str) -> Sender {
    Sender {
        history: HistoryId([1; 16]),
        node: NodeId::new(node).unwrap(),
        disk: DiskId([2; 16]),
    }
}

fn fetch() -> Fetch {
    Fetch {
        sender: sender("a"),
        id: 7,
        epoch: Epoch::ZERO,
        is_claim: true,
        ends: vec![Position::default(); FETCH_ENDS_MAX],
    }
}

fn fetched(body: Vec<u8>) -> Fetched {
    let after = Point::start(HistoryId([1; 16]));
    let epoch = Epoch {
        counter: 3,
        node: NodeId::new("0123456789").unwrap(),
    };
    let entry = Entry::new(&after, epoch, 1, Tid(9), vec![body.into()]).unwrap();
    Fetched {
        sender: sender("b"),
        id: 7,
        epoch,
        what: Supply::Entries {
            after: Position::default(),
            entries: vec![entry],
        },
    }
}

fn blob_at(oid: u64, tid: u64) -> BlobAt {
    let (oid, tid) = (Oid(oid), Tid(tid));
    BlobAt { oid, tid, len: 5 }
}

fn read(len: usize) -> Request {
    Request::Read {
        snapshot: 1,
        file: 2,
        pos: 3,
        len: u32::try_from(len).unwrap(),
    }
}

fn piece(len: usize) -> Answer {
    Answer::Piece(vec![7; len].into())
}

/// Requests of all kinds but one, each with an answer.
#[rustfmt::skip]
fn conversation() -> Vec<(Request, Answer)> {
    let name = BlobName { oid: Oid(1), len: 2, digest: Digest([3; 32]) };
    let (snapshot, storage) = (1 << 63, u32::MAX);
    let (oid, tid, pos, len) = (Oid(4), Tid(5), u64::MAX, 100);
    let refused = Refusal::new(RefusalKind::NotThere, "no such blob");
    vec![
        (Request::Fetch(fetch()), Answer::Fetched(fetched(vec![5; 100_000]))),
        (Request::Fetch(fetch()), Answer::Refused(Refusal::new(RefusalKind::Failed, ""))),
        (Request::Blob { storage: "1".to_owned(), tid, name, pos, len }, Answer::Refused(refused)),
        (Request::Blob { storage: "x".repeat(255), tid, name, pos: 0, len }, piece(100)),
        (Request::Snapshot { newest_only: true, at_least: Seq(6) },
         Answer::Snapshot(Bytes::from_static(b"manifest"))),
        (Request::Snapshot { newest_only: false, at_least: Seq(6) },
         Answer::Refused(Refusal::new(RefusalKind::Busy, "later"))),
        (read(PEER_PIECE_LEN_MAX), piece(PEER_PIECE_LEN_MAX)),
        (read(0), piece(0)),
        (Request::ListBlobs { snapshot, storage, after: None, count: 2 },
         Answer::Blobs(vec![blob_at(1, 2), blob_at(1, 3)])),
        (Request::ListBlobs { snapshot, storage, after: Some((oid, tid)), count: PEER_BLOBS_MAX },
         Answer::Blobs(vec![])),
        (Request::ReadBlob { snapshot, storage, oid, tid, pos, len }, piece(99)),
        (Request::Digest { snapshot, storage, from: Tid(1), to: Tid(1 << 63), len: u64::MAX },
         Answer::Digest(RangeDigest {
             count: 8, next: Tid(9), shape: Digest([10; 32]), content: Digest([11; 32]),
         })),
        (Request::Digest { snapshot, storage, from: tid, to: tid, len: 0 },
         Answer::Refused(Refusal::new(RefusalKind::NotThere, "no such copy"))),
        (Request::DigestBlob { snapshot, storage, oid, tid, pos, len: 6 },
         Answer::BlobDigest(7, Digest([8; 32]))),
        (Request::EndSnapshot { snapshot }, Answer::Done),
    ]
}

#[test]
fn all_requests_and_answers_arrive_in_pieces_of_any_length() {
    for secret in [None, Some("secret")] {
        for step in [1, 2, 3, 5, 1000, usize::MAX] {
            let mut pair = Pair::new(&options("a", secret), &options("b", secret));
            pair.exchange(step);
            let ready = |node| {
                vec![Event::Ready {
                    node: NodeId::new(node).unwrap(),
                }]
            };
            assert_eq!(pair.connects.events, ready("b"));
            assert_eq!(pair.answers.events, ready("a"));
            for (request, answer) in conversation() {
                let id = pair.connects.ask(&request, pair.now);
                pair.exchange(step);
                let event = Event::Request { id, request };
                assert_eq!(pair.answers.events.last(), Some(&event));
                pair.answers.session.answer(id, &answer, pair.now);
                pair.exchange(step);
                let event = Event::Answer { id, answer };
                assert_eq!(pair.connects.events.last(), Some(&event));
            }
            assert!(pair.connects.session.deadline() == Some(pair.now + PEER_IDLE_MAX));
        }
    }
}

#[test]
fn a_ping_is_answered_by_the_session() {
    let mut pair = Pair::open(Some("secret"));
    let id = pair.ask(&Request::Ping);
    pair.exchange(1);
    let answer = Answer::Done;
    assert_eq!(pair.connects.events, [Event::Answer { id, answer }]);
    assert_eq!(pair.answers.events, []);
}

#[test]
fn the_largest_entry_has_room_and_is_not_copied() {
    let len = usize::try_from(JOURNAL_BODY_LEN_MAX).unwrap();
    let mut pair = Pair::open(Some("secret"));
    let id = pair.ask(&Request::Fetch(fetch()));
    let fetched = fetched(vec![1; len]);
    let Supply::Entries { entries, .. } = &fetched.what else {
        panic!("{:?}", fetched.what);
    };
    let body = entries[0].body()[0].as_ptr_range();
    let answer = Answer::Fetched(fetched.clone());
    pair.answers.session.answer(id, &answer, pair.now);
    let mut shared = 0;
    while pair.answers.session.has_output() {
        let out = pair.answers.session.output();
        // However long the frame is.
        assert!(out.len() < 2 * PEER_READY_LEN + 1000, "{}", out.len());
        let mut slices = [IoSlice::new(&[]); 16];
        let count = out.slices(&mut slices, usize::MAX);
        let mut sent = Vec::new();
        for slice in &slices[..count] {
            sent.extend_from_slice(slice);
            shared += if body.contains(&slice.as_ptr()) {
                slice.len()
            } else {
                0
            };
        }
        out.advance(sent.len());
        pair.connects.receive(&sent, pair.now);
    }
    assert_eq!(shared, len);
    assert_eq!(pair.connects.events, [Event::Answer { id, answer }]);
}

#[test]
fn who_does_not_belong_to_us_is_refused_and_both_sides_know_why() {
    let plain = options("b", None);
    let keyed = options("b", Some("secret"));
    let other = Options {
        group: "other\n".to_owned(),
        ..keyed.clone()
    };
    let cases = [
        (
            plain.clone(),
            Some("secret"),
            PeerError::Keyed,
            Reason::Seal,
        ),
        (keyed.clone(), None, PeerError::Plain, Reason::Seal),
        (
            other,
            Some("secret"),
            PeerError::Group("plone".to_owned()),
            Reason::Group,
        ),
        (
            options("a", None),
            None,
            PeerError::Namesake(NodeId::new("a").unwrap()),
            Reason::Namesake,
        ),
    ];
    for (answers, secret, error, reason) in cases {
        let mut pair = Pair::new(&options("a", secret), &answers);
        pair.exchange(1);
        assert_eq!(pair.answers.closed(), Some(&error));
        assert_eq!(pair.connects.closed(), Some(&PeerError::Refused(reason)));
    }
    // Who connects sees it first: the other has to show that it has the key before it learns
    // anything.
    let mut pair = Pair::new(&options("a", Some("sicrit")), &keyed);
    pair.exchange(1);
    assert_eq!(pair.connects.closed(), Some(&PeerError::WrongKey));
    let refused = PeerError::Refused(Reason::Key);
    assert_eq!(pair.answers.closed(), Some(&refused));
    for end in [&pair.connects, &pair.answers] {
        assert!(
            !end.events
                .iter()
                .any(|it| matches!(it, Event::Ready { .. }))
        );
        assert_eq!(end.session.node(), None);
        assert_eq!(end.session.deadline(), None);
    }
}

#[test]
fn who_pretends_to_have_the_key_gets_nothing() {
    let pair = Pair::open(Some("secret"));
    // What was sent once is worth nothing when the other has another nonce.
    let mut other = End::new(Session::accept(
        &options("b", Some("secret")),
        &[3; 32],
        pair.now,
    ));
    other.receive(&pair.connects.sent, pair.now);
    assert_eq!(other.events, [Event::Closed(PeerError::WrongKey)]);
    // Nor is what the other says itself, if it is said back.
    let mut other = End::new(Session::accept(
        &options("b", Some("secret")),
        &[3; 32],
        pair.now,
    ));
    other.receive(
        &pair.connects.sent[..pair.connects.sent.len() - 45],
        pair.now,
    );
    let said = other.take_output(pair.now);
    other.receive(&said[said.len() - 45..], pair.now);
    assert_eq!(other.events, [Event::Closed(PeerError::WrongKey)]);
}

#[test]
fn other_protocols_and_versions_are_told_from_ours() {
    for (bytes, error) in [
        (&b"\0\0\0\x04"[..], PeerError::NoPeer),
        (b"GET / HTTP/1.1\r\n", PeerError::NoPeer),
        (b"stdbpeer\0\x02", PeerError::Version(2)),
        (
            b"stdbpeer\0\x01\xff\xff\xff\xff\x01\0\0\0\0\0\0\0\0",
            PeerError::TooLong {
                kind: 1,
                len: 0xffff_ffff - 9,
                len_max: 299,
            },
        ),
        (
            b"stdbpeer\0\x01\0\0\0\x08\x01\0\0\0\0\0\0\0\0",
            PeerError::TooShort(8),
        ),
        (
            b"stdbpeer\0\x01\0\0\0\x09\x10\0\0\0\0\0\0\0\0",
            PeerError::Kind(16),
        ),
    ] {
        for session in [Session::accept, Session::connect] {
            let mut end = End::new(session(&options("a", None), &[1; 32], now()));
            for part in bytes.chunks(1) {
                end.receive(part, now());
            }
            assert_eq!(end.events, [Event::Closed(error.clone())]);
        }
    }
    // A stranger learns nothing of us.
    let mut end = End::new(Session::accept(&options("a", None), &[1; 32], now()));
    end.receive(b"GET / HTTP/1.1\r\n", now());
    assert_eq!(end.take_output(now()), b"");
}

#[test]
fn a_handshake_that_was_changed_or_cut_anywhere_never_succeeds() {
    let whole = Pair::open(Some("secret"));
    let one = || {
        let options = options("a", Some("secret"));
        End::new(Session::connect(&options, &[1; 32], whole.now))
    };
    let other = || {
        let options = options("b", Some("secret"));
        End::new(Session::accept(&options, &[2; 32], whole.now))
    };
    let sides: [(&[u8], &dyn Fn() -> End); 2] =
        [(&whole.answers.sent, &one), (&whole.connects.sent, &other)];
    for (sent, end) in sides {
        let mut known = end();
        known.receive(sent, whole.now);
        assert!(known.session.node().is_some());
        for len in 0..sent.len() {
            let mut end = end();
            end.receive(&sent[..len], whole.now);
            assert_eq!(end.events, [], "{len}");
            end.session.on_deadline(whole.now + PEER_HANDSHAKE_TIMEOUT);
            end.poll();
            assert_eq!(end.events, [Event::Closed(PeerError::Late)]);
        }
        for bit in 0..8 * sent.len() {
            let mut changed = sent.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut end = end();
            end.receive(&changed, whole.now);
            assert_eq!(end.session.node(), None, "bit {bit}");
        }
    }
}

/// What goes from one to the other for a request, and back for its answer.
fn said(pair: &mut Pair) -> [Vec<u8>; 2] {
    let id = pair.connects.ask(&read(100), pair.now);
    let there = pair.connects.take_output(pair.now);
    pair.answers.receive(&there, pair.now);
    pair.answers.session.answer(id, &piece(100), pair.now);
    [there, pair.answers.take_output(pair.now)]
}

#[test]
fn frames_that_were_changed_repeated_or_left_out_are_noticed() {
    let [there, back] = said(&mut Pair::open(Some("secret")));
    for bit in 0..8 * there.len() {
        let mut pair = Pair::open(Some("secret"));
        let mut changed = there.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        pair.answers.receive(&changed, pair.now);
        let events = &pair.answers.events;
        assert!(
            events.iter().all(|it| matches!(it, Event::Closed(_))),
            "{events:?}"
        );
    }
    for bit in 0..8 * back.len() {
        let mut pair = Pair::open(Some("secret"));
        pair.connects.ask(&read(100), pair.now);
        let mut changed = back.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        pair.connects.receive(&changed, pair.now);
        let events = &pair.connects.events;
        assert!(
            events.iter().all(|it| matches!(it, Event::Closed(_))),
            "{events:?}"
        );
    }
    let mut pair = Pair::open(Some("secret"));
    pair.answers
        .receive(&[&there[..], &there].concat(), pair.now);
    assert_eq!(pair.answers.closed(), Some(&PeerError::Digest));
    let mut pair = Pair::open(Some("secret"));
    pair.connects.ask(&Request::Ping, pair.now);
    pair.connects.take_output(pair.now);
    pair.connects.ask(&Request::Ping, pair.now);
    let second = pair.connects.take_output(pair.now);
    pair.answers.receive(&second, pair.now);
    assert_eq!(pair.answers.closed(), Some(&PeerError::Digest));
    // A frame of the other direction.
    let mut pair = Pair::open(Some("secret"));
    pair.connects.ask(&read(100), pair.now);
    let sent = pair.connects.take_output(pair.now);
    assert_eq!(sent, there);
    pair.connects.receive(&sent, pair.now);
    assert_eq!(pair.connects.closed(), Some(&PeerError::Kind(19)));
}

#[test]
fn plain_frames_that_are_cut_or_changed_do_no_harm() {
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut there = Vec::new();
    let mut back = Vec::new();
    let mut pair = Pair::open(None);
    for (request, answer) in conversation().into_iter().skip(1) {
        let id = pair.connects.ask(&request, pair.now);
        let sent = pair.connects.take_output(pair.now);
        pair.answers.receive(&sent, pair.now);
        there.extend_from_slice(&sent);
        pair.answers.session.answer(id, &answer, pair.now);
        let sent = pair.answers.take_output(pair.now);
        pair.connects.receive(&sent, pair.now);
        // The long one would take all the changes.
        back.extend_from_slice(if sent.len() > 1000 { b"" } else { &sent });
    }
    let mut ended = 0;
    for _ in 0..3000 {
        let mut pair = Pair::open(None);
        for (request, _) in conversation().into_iter().skip(1) {
            pair.connects.ask(&request, pair.now);
        }
        let mut mutated = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                bytes[at] ^= 1 << random(8);
            }
            bytes.truncate(bytes.len() - random(2) * random(bytes.len()));
            bytes
        };
        pair.answers.receive(&mutated(&there), pair.now);
        pair.connects.receive(&mutated(&back), pair.now);
        ended += usize::from(pair.answers.closed().is_some());
        ended += usize::from(pair.connects.closed().is_some());
    }
    assert!(ended > 1000, "{ended}");
}

#[test]
fn what_is_longer_than_it_may_be_ends_the_connection_before_it_has_come() {
    // The head alone is enough.
    let mut pair = Pair::open(None);
    let id = pair.ask(&read(100));
    let head = frame::encode_head(65, id, 101);
    pair.connects.receive(&head, pair.now);
    let (kind, len, len_max) = (65, 101, 100);
    let too_long = PeerError::TooLong { kind, len, len_max };
    assert_eq!(pair.connects.closed(), Some(&too_long));
    let (kind, len, len_max) = (19, PEER_REQUEST_LEN_MAX + 1, PEER_REQUEST_LEN_MAX);
    let mut pair = Pair::open(None);
    pair.answers
        .receive(&frame::encode_head(kind, 1, len), pair.now);
    let too_long = PeerError::TooLong { kind, len, len_max };
    assert_eq!(pair.answers.closed(), Some(&too_long));
    // Who asks for more than there may be is not let.
    let mut pair = Pair::open(None);
    let now = pair.now;
    assert_eq!(
        pair.connects
            .session
            .request(&read(PEER_PIECE_LEN_MAX + 1), now),
        None
    );
    let many = Request::ListBlobs {
        snapshot: 1,
        storage: 1,
        after: None,
        count: PEER_BLOBS_MAX + 1,
    };
    assert_eq!(pair.connects.session.request(&many, now), None);
    // An answer that is too long becomes none.
    let id = pair.ask(&read(100));
    pair.answer(id, &piece(101));
    let [Event::Answer { answer, .. }] = &pair.connects.events[..] else {
        panic!("{:?}", pair.connects.events);
    };
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

#[test]
fn answers_that_nobody_has_asked_for_end_the_connection() {
    let bytes = |kind, id| frame::encode_head(kind, id, 0);
    for (sent, error) in [
        (bytes(68, 2), PeerError::Unasked(2)),
        (bytes(68, 1), PeerError::Kind(68)),
        (bytes(16, 1), PeerError::Kind(16)),
        (bytes(1, 0), PeerError::Unasked(0)),
    ] {
        let mut pair = Pair::open(None);
        pair.ask(&read(100));
        pair.connects.receive(&sent, pair.now);
        assert_eq!(pair.connects.closed(), Some(&error));
    }
}

#[test]
fn requests_that_make_no_sense_end_the_connection() {
    let said = |parts: [&[u8]; 2]| parts.concat();
    let head = |kind, id, len| frame::encode_head(kind, id, len);
    let named = |name: &[u8]| [&[0; 8 + 8 + 8 + 32 + 8 + 4], name].concat();
    let malformed = |why| PeerError::Malformed { of: "request", why };
    for (sent, error) in [
        (said([&head(65, 1, 0), b""]), PeerError::Kind(65)),
        (said([&head(24, 0, 0), b""]), PeerError::Number(0)),
        (said([&head(24, 1, 1), b"x"]), malformed("it is too long")),
        (
            said([&head(22, 1, 7), b"1234567"]),
            malformed("it is too short"),
        ),
        (
            said([&head(18, 1, 9), b"\x0212345678"]),
            malformed("neither yes nor no"),
        ),
        (
            said([&head(19, 1, 24), &[9; 24]]),
            malformed("more bytes than a piece has"),
        ),
        (
            said([&head(20, 1, 16), &[9; 16]]),
            malformed("more blobs than a list has"),
        ),
        (
            said([&head(23, 1, 36), &[&[0; 19][..], &[1], &[0; 16]].concat()]),
            malformed("a range that ends before it begins"),
        ),
        (
            said([&head(25, 1, 43), &[0; 43]]),
            malformed("it is too short"),
        ),
        (
            said([&head(17, 1, 69), &named(b"\0")]),
            malformed("a name of a storage of another length"),
        ),
        (
            said([&head(17, 1, 70), &named(b"\x01\xff")]),
            malformed("no text"),
        ),
        (
            said([&head(17, 1, 70), &named(b"\x02a")]),
            malformed("it is too short"),
        ),
        (
            said([&head(17, 1, 71), &named(b"\x01ab")]),
            malformed("it is too long"),
        ),
    ] {
        let mut pair = Pair::open(None);
        pair.answers.receive(&sent, pair.now);
        assert_eq!(pair.answers.events, [Event::Closed(error)]);
    }
    let mut pair = Pair::open(None);
    let mut fetch = fetch();
    fetch.sender = sender("c");
    pair.ask(&Request::Fetch(fetch));
    let sender = PeerError::Sender(NodeId::new("c").unwrap());
    assert_eq!(pair.answers.closed(), Some(&sender));
}

#[test]
fn a_request_of_a_later_version_is_refused_and_does_no_harm() {
    let mut pair = Pair::open(None);
    let head = frame::encode_head(40, 5, 3);
    pair.answers
        .receive(&[&head[..], b"abc"].concat(), pair.now);
    assert_eq!(pair.answers.events, []);
    let refused = pair.answers.take_output(pair.now);
    assert_eq!(
        refused,
        b"\0\0\0\x1d\x45\0\0\0\0\0\0\0\x05\0\x03an unknown request"
    );
}

#[test]
fn what_a_refusal_says_can_be_logged() {
    let mut pair = Pair::open(None);
    let id = pair.ask(&read(1));
    let text = format!("a\nb{}", "\u{fc}".repeat(1000));
    pair.answer(id, &Answer::Refused(Refusal::new(RefusalKind::Busy, text)));
    let refusal = Refusal::new(RefusalKind::Busy, format!("a b{}", "\u{fc}".repeat(248)));
    let answer = Answer::Refused(refusal);
    assert_eq!(pair.connects.events, [Event::Answer { id, answer }]);
}

#[test]
fn the_next_request_waits_while_as_many_as_may_be_are_answered() {
    let mut pair = Pair::open(None);
    let connects = &mut pair.connects;
    let ids: Vec<u64> = (0..PEER_REQUESTS_MAX)
        .map(|_| connects.ask(&read(10), pair.now))
        .collect();
    assert!(!connects.session.has_room());
    assert_eq!(connects.session.request(&read(10), pair.now), None);
    let sent = connects.take_output(pair.now);
    let (_, read_again) = sent.split_at(sent.len() - 37);
    pair.answers.receive(&sent, pair.now);
    assert_eq!(pair.answers.events.len(), PEER_REQUESTS_MAX);
    assert!(pair.answers.session.wants_input());
    // One that asks for more than it may.
    let mut more = read_again.to_vec();
    more[12] += 1;
    pair.answers.receive(&more, pair.now);
    assert_eq!(pair.answers.events.len(), PEER_REQUESTS_MAX);
    assert!(!pair.answers.session.wants_input());
    // Not before the other has taken the answer.
    pair.answers.session.answer(ids[0], &piece(1), pair.now);
    pair.answers.poll();
    assert_eq!(pair.answers.events.len(), PEER_REQUESTS_MAX);
    pair.answers.take_output(pair.now);
    assert_eq!(pair.answers.events.len(), PEER_REQUESTS_MAX + 1);
    assert!(pair.answers.session.wants_input());
}

#[test]
fn answers_of_so_many_bytes_are_made_at_a_time() {
    let mut pair = Pair::open(None);
    for _ in 0..3 {
        pair.ask(&Request::Fetch(fetch()));
    }
    assert_eq!(pair.answers.events.len(), 2);
    assert!(!pair.answers.session.wants_input());
    pair.answer(1, &Answer::Refused(Refusal::new(RefusalKind::Busy, "")));
    assert_eq!(pair.answers.events.len(), 3);
}

#[test]
fn entries_do_not_wait_behind_pieces_of_a_copy() {
    let mut pair = Pair::open(Some("secret"));
    for _ in 0..4 {
        pair.ask(&read(PEER_PIECE_LEN_MAX));
    }
    let fetch = pair.ask(&Request::Fetch(fetch()));
    let now = pair.now;
    let answers = &mut pair.answers.session;
    (1..=4).for_each(|id| answers.answer(id, &piece(PEER_PIECE_LEN_MAX), now));
    // The first has begun to go out.
    assert!(!answers.output().is_empty());
    answers.answer(fetch, &Answer::Fetched(fetched(vec![1; 100])), now);
    pair.exchange(usize::MAX);
    let answered = pair.connects.events.iter().map(|event| match event {
        Event::Answer { id, .. } => *id,
        other => panic!("{other:?}"),
    });
    assert_eq!(answered.collect::<Vec<_>>(), [1, 5, 2, 3, 4]);
}

#[test]
fn a_node_that_is_at_work_says_so_and_one_that_is_silent_is_given_up() {
    let mut pair = Pair::open(Some("secret"));
    let id = pair.ask(&read(100));
    for _ in 0..100 {
        assert_eq!(
            pair.answers.session.deadline(),
            Some(pair.now + PEER_ALIVE_INTERVAL)
        );
        pair.pass(PEER_ALIVE_INTERVAL);
        pair.answers.session.on_deadline(pair.now);
        pair.connects.session.on_deadline(pair.now);
        pair.exchange(1);
        assert_eq!(pair.connects.events, []);
    }
    pair.answer(id, &piece(100));
    assert_eq!(pair.connects.events.len(), 1);
    let id = pair.ask(&read(100));
    pair.pass(PEER_SILENCE_MAX - Duration::from_millis(1));
    pair.connects.session.on_deadline(pair.now);
    pair.connects.poll();
    assert_eq!(pair.connects.closed(), None);
    pair.pass(Duration::from_millis(1));
    pair.connects.session.on_deadline(pair.now);
    pair.connects.poll();
    assert_eq!(pair.connects.closed(), Some(&PeerError::Silent));
    // What comes too late is nothing.
    pair.answer(id, &piece(100));
    assert_eq!(pair.connects.closed(), Some(&PeerError::Silent));
}

#[test]
fn a_node_that_takes_nothing_is_given_up() {
    let mut pair = Pair::open(None);
    let id = pair.ask(&read(100));
    pair.answers.session.answer(id, &piece(100), pair.now);
    pair.pass(PEER_STUCK_MAX - Duration::from_millis(1));
    pair.answers.session.on_written(pair.now);
    pair.pass(Duration::from_millis(1));
    pair.answers.session.on_deadline(pair.now);
    assert!(!pair.answers.session.is_closed());
    pair.pass(PEER_STUCK_MAX);
    pair.answers.session.on_deadline(pair.now);
    pair.answers.poll();
    assert_eq!(pair.answers.closed(), Some(&PeerError::Stuck));
}

#[test]
fn a_connection_without_requests_ends_and_the_one_who_asks_ends_it_first() {
    let mut pair = Pair::open(None);
    let id = pair.ask(&read(100));
    pair.answer(id, &piece(100));
    let begun = pair.now;
    assert_eq!(
        pair.connects.session.deadline(),
        Some(begun + PEER_IDLE_MAX)
    );
    assert_eq!(
        pair.answers.session.deadline(),
        Some(begun + PEER_IDLE_ACCEPTED_MAX)
    );
    pair.pass(PEER_IDLE_MAX);
    pair.connects.session.on_deadline(pair.now);
    pair.connects.poll();
    assert_eq!(pair.connects.closed(), Some(&PeerError::Idle));
    pair.pass(PEER_IDLE_ACCEPTED_MAX);
    pair.answers.session.on_deadline(pair.now);
    pair.answers.poll();
    assert_eq!(pair.answers.closed(), Some(&PeerError::Idle));
}

#[test]
fn a_beat_comes_as_it_was_sent_and_may_say_more() {
    let beat = Beat {
        role: crate::replica::message::Role::Candidate,
        epoch: crate::ids::Epoch {
            counter: 7,
            node: NodeId::new("beta").unwrap(),
        },
        members: 3,
    };
    let mut pair = Pair::open(Some("secret"));
    let id = pair.ask(&Request::Beat(beat));
    let request = Request::Beat(beat);
    assert_eq!(pair.answers.events, [Event::Request { id, request }]);
    let now = pair.now;
    pair.answers.session.answer(id, &Answer::Beat(beat), now);
    pair.exchange(usize::MAX);
    let answer = Answer::Beat(beat);
    assert_eq!(pair.connects.events, [Event::Answer { id, answer }]);
    let (kind, payload) = Request::Beat(beat).encode();
    let mut longer = payload.concat();
    longer.extend_from_slice(b"more");
    let decoded = Request::decode(kind, &longer.into()).unwrap();
    assert_eq!(decoded, Some(Request::Beat(beat)));
    for wrong in [
        &b""[..],
        &[3; 21],
        &[0; 20],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, b'/', 0, 0, 0],
    ] {
        let wrong = Bytes::copy_from_slice(wrong);
        assert!(Request::decode(kind, &wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn who_beats_gives_up_earlier_than_who_copies() {
    let now = now();
    let options = options("a", None);
    let silence = PEER_SILENCE_MAX / 4;
    for (session, expected) in [
        (Session::connect(&options, &[1; 32], now), PEER_SILENCE_MAX),
        (
            Session::connect(&options, &[1; 32], now).with_silence_max(silence),
            silence,
        ),
    ] {
        let mut pair = Pair::open(None);
        pair.connects.session = session;
        pair.answers.session = Session::accept(&super::tests::options("b", None), &[2; 32], now);
        pair.exchange(usize::MAX);
        pair.connects.session.request(&Request::Ping, now).unwrap();
        assert_eq!(pair.connects.session.deadline(), Some(now + expected));
        pair.connects.session.on_deadline(now + expected);
        pair.connects.poll();
        assert_eq!(pair.connects.closed(), Some(&PeerError::Silent));
    }
}
