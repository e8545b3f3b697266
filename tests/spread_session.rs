//! A client of Spread against what a real daemon said, and against what one could say.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]
#![allow(clippy::disallowed_methods, reason = "any time will do to begin with")]

mod recordings;

use std::mem;
use std::time::{Duration, Instant};

use bytes::Bytes;
use recordings::{Recording, recording, recordings};
use serde_json::Value;
use standby::group::spread::session::{Ignored, Options, OptionsError, Session};
use standby::group::spread::wire::{
    Accept, AuthList, ClientItem, ClientStream, Dialect, Endian, Frame, GroupId, Hint, METHOD_IP,
    METHOD_NULL, Membership, MessageType, Name, Reject, Request, Version,
};
use standby::group::{Audience, Event, Group, Lane, MemberId, SendError, View};
use standby::limits::{
    SPREAD_JOIN_TIMEOUT, SPREAD_LEAVE_TIMEOUT, SPREAD_NAME_RETRY, SPREAD_OUTPUT_LEN_MAX,
    SPREAD_RETRY_MAX, SPREAD_RETRY_MIN, SPREAD_SETTLED_AFTER, SPREAD_STEP_TIMEOUT,
};

const AGREED: MessageType = MessageType::AGREED;

/// A session, its clock, and what it wrote.
struct Driven {
    session: Session,
    now: Instant,
    sent: ClientStream,
}

impl Driven {
    /// One that waits for its socket.
    fn new(user: &str, group: &str) -> Self {
        let now = Instant::now();
        let mut session = Session::new(options(user, group), now).unwrap();
        assert!(!session.wants_connection() && session.deadline().is_none());
        session.join(now);
        assert!(session.wants_connection());
        Self {
            session,
            now,
            sent: ClientStream::new(),
        }
    }

    /// One that is connected, and has asked to be a member.
    fn connected(user: &str, group: &str) -> Self {
        let mut driven = Self::new(user, group);
        driven.connect();
        driven.shake_hands(user);
        driven
    }

    /// One that is a member, with bob.
    fn joined() -> Self {
        let mut driven = Self::connected("alice", "plone");
        let cause = MessageType::CAUSED_BY_JOIN;
        driven.receive(&view(cause, &["alice", "bob"], &["alice"]));
        assert_eq!(driven.views().len(), 1);
        driven.written();
        driven
    }

    fn connect(&mut self) {
        self.session.on_connected(self.now);
        assert!(!self.session.wants_connection());
        self.sent = ClientStream::new();
    }

    /// What the daemon says up to its acceptance, and what is said to it.
    fn shake_hands(&mut self, user: &str) {
        let connect = self.written();
        assert!(matches!(connect[..], [ClientItem::Connect(_)]));
        self.receive(&AuthList::new(&[METHOD_NULL]).encode());
        assert!(matches!(self.written()[..], [ClientItem::AuthChoice(_)]));
        self.receive(&accept(user));
        let [ClientItem::Frame(join)] = &self.written()[..] else {
            panic!("one JOIN was expected");
        };
        assert_eq!(join.header.request(), Request::Join);
        assert_eq!(join.header.check_request(&private(user)), Ok(Request::Join));
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.session.receive(bytes, self.now);
    }

    /// What it has written since last asked.
    fn written(&mut self) -> Vec<ClientItem> {
        let bytes = self.written_bytes();
        self.sent.receive(&bytes);
        let mut items = Vec::new();
        while let Some(item) = self.sent.next().unwrap() {
            items.push(item.what);
        }
        assert_eq!(self.sent.waiting_len(), 0);
        items
    }

    fn written_bytes(&mut self) -> Bytes {
        mem::take(self.session.output()).into_bytes()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    fn views(&mut self) -> Vec<View> {
        let views = self.events().into_iter().filter_map(|event| match event {
            Event::View(view) => Some(view),
            _ => None,
        });
        views.collect()
    }

    /// The session wants its socket closed for this reason, and gets that.
    #[track_caller]
    fn assert_closes(&mut self, reason: &str) {
        assert!(self.session.wants_close());
        self.session.on_closed("closed".to_owned(), self.now);
        let state = self.session.describe();
        assert!(state.contains(reason), "{state}");
    }

    /// Lets time pass up to the next deadline, and says how much it was.
    fn wait(&mut self) -> Duration {
        let deadline = self.session.deadline().unwrap();
        let waited = deadline - self.now;
        self.now = deadline;
        self.session.on_deadline(self.now);
        waited
    }

    fn after(&mut self, time: Duration) {
        self.now += time;
    }
}

fn options(user: &str, group: &str) -> Options {
    Options {
        name: user.to_owned(),
        group: group.to_owned(),
        address: "4803@localhost".to_owned(),
        seed: 7,
    }
}

fn private(user: &str) -> Name {
    Name::private(user.as_bytes(), b"host").unwrap()
}

fn member(user: &str) -> MemberId {
    MemberId::new(&format!("#{user}#host"))
}

fn accept(user: &str) -> Vec<u8> {
    let private_name = private(user);
    let version = Version::OURS;
    let accept = Accept {
        version,
        private_name,
    };
    accept.encode(Dialect::Full)
}

fn plone() -> Name {
    Name::new(b"plone").unwrap()
}

/// A membership message with one set.
fn view(cause: MessageType, members: &[&str], set: &[&str]) -> Vec<u8> {
    let names = |users: &[&str]| users.iter().map(|user| private(user)).collect::<Vec<_>>();
    let membership = Membership {
        id: GroupId([0x7f00_0001, 5, 1]),
        sets: vec![names(set)],
        own: 0,
    };
    Frame::new_view(Endian::Little, plone(), cause, &names(members), &membership).encode()
}

/// A message with one byte of data.
fn message(message_type: MessageType, from: &str, to: &[Name], lane: i16) -> Vec<u8> {
    let data = Bytes::from_static(b"x");
    Frame::new(Endian::Little, message_type, private(from), to, lane, data).encode()
}

/// Plays what a daemon said to a client, in pieces, and closes the connection then.
fn play(recording: &Recording, user: &str, group: &str, piece_len: usize) -> Driven {
    let mut driven = Driven::new(user, group);
    driven.connect();
    for piece in recording.bytes.chunks(piece_len) {
        driven.receive(piece);
    }
    driven
}

// What a real daemon said.

#[test]
fn what_is_sent_to_a_real_daemon_is_what_its_own_library_sends() {
    let sent = recording("01-connect-join-self/alice.c2s").bytes;
    let answers = recording("01-connect-join-self/alice.s2c").bytes;
    let mut driven = Driven::new("alice", "room");
    driven.connect();
    assert_eq!(driven.written_bytes(), &sent[..10]);
    driven.receive(&answers[..5]);
    assert!(driven.session.output().is_empty(), "no pipelining");
    driven.receive(&answers[5..6]);
    assert_eq!(driven.written_bytes(), &sent[10..100]);
    driven.receive(&answers[6..26]);
    assert!(driven.session.output().is_empty());
    assert_eq!(driven.session.me(), None);
    driven.receive(&answers[26..27]);
    assert_eq!(driven.written_bytes(), &sent[100..180]);
    let me = MemberId::new("#alice#localhost");
    assert_eq!(driven.session.me(), Some(&me));
    assert_eq!(
        driven.session.send_all(Lane::Bulk, &[]),
        Err(SendError::NotJoined)
    );
    driven.receive(&answers[27..163]);
    let [view] = &driven.views()[..] else {
        panic!("one view was expected");
    };
    assert_eq!(
        (&view.members[..], &view.together[..]),
        (&[me.clone()][..], &[me][..])
    );
    driven.session.leave(driven.now);
    // The last eight bytes are what the library's stack had behind our name.
    let bye = driven.written_bytes();
    assert_eq!(bye[..152], sent[180..332]);
    assert_eq!(bye[152..], [0; 8]);
}

#[test]
fn events_do_not_depend_on_how_the_bytes_come() {
    let mut count = 0;
    for recording in recordings()
        .iter()
        .filter(|recording| recording.from_daemon)
    {
        let (user, group) = ("alice", first_group(recording));
        let whole = play(recording, user, &group, usize::MAX).events();
        count += whole.len();
        for piece_len in [1, 7, 48, 1000] {
            assert_eq!(play(recording, user, &group, piece_len).events(), whole);
        }
    }
    // Enough to be worth it.
    assert!(count > 100, "{count}");
}

#[test]
fn views_are_what_the_daemon_meant() {
    let mut count = 0;
    let scenarios = [
        "04-join-leave-disconnect",
        "11-partition-merge",
        "12-daemon-crash-in-flight",
        "17-join-during-transition",
    ];
    for recording in recordings() {
        let (scenario, file) = recording.name.split_once('/').unwrap();
        let Some((user, "s2c")) = file.split_once('.') else {
            continue;
        };
        if !scenarios.contains(&scenario) {
            continue;
        }
        let group = first_group(&recording);
        let expected = expected_events(&recording, &group);
        let mut driven = play(&recording, user, &group, 60);
        let events = driven.events().into_iter().map(|event| match event {
            Event::Transitional => "transitional".to_owned(),
            Event::View(view) => shown(&view),
            Event::Lost(_) => "lost".to_owned(),
            Event::Body(body) => format!("{}: {}", body.from, recordings::hex(&body.data)),
            Event::Passed { .. } => panic!("nobody else was addressed"),
        });
        let events: Vec<String> = events.collect();
        assert_eq!(events, expected, "{}", recording.name);
        count += events.len();
    }
    assert_eq!(count, 91);
}

fn shown(view: &View) -> String {
    let join = |ids: &[MemberId]| {
        ids.iter()
            .map(MemberId::as_str)
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!("{} / {}", join(&view.members), join(&view.together))
}

fn first_group(recording: &Recording) -> String {
    let named = recording
        .items
        .iter()
        .filter(|item| item["kind"] == "membership");
    let mut groups = named.map(|item| item["sender"].as_str().unwrap().to_owned());
    groups.next().unwrap_or("room".to_owned())
}

/// What a client has to learn, by the descriptions of the frames.
fn expected_events(recording: &Recording, group: &str) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let texts = value.as_array().unwrap().iter();
        texts
            .map(|text| text.as_str().unwrap().to_owned())
            .collect()
    };
    let accept = &recording.items[1];
    let me = accept["private_group"].as_str().unwrap().to_owned();
    let mut events = Vec::new();
    let mut joined = false;
    for item in &recording.items {
        let ours = item["sender"] == group || item["groups"][0] == group;
        match item["kind"].as_str().unwrap() {
            _ if !ours => {}
            "regular" => {
                let agreed = item["type_names"] == "AGREED";
                if agreed && (1..=4).contains(&item["mess_type"].as_i64().unwrap()) {
                    let data = item["data_hex"].as_str().unwrap();
                    events.push(format!("{}: {data}", item["sender"].as_str().unwrap()));
                }
            }
            "transition" => events.push("transitional".to_owned()),
            "membership" => {
                let members = texts(&item["groups"]);
                let own = usize::try_from(item["my_vs_index"].as_u64().unwrap()).unwrap();
                let set = texts(&item["vs_sets"][own]);
                let names = item["type_names"].as_str().unwrap();
                let mut together = members.clone();
                match names.split('|').next().unwrap() {
                    _ if !joined => together = vec![me.clone()],
                    "CAUSED_BY_JOIN" => together.retain(|name| !set.contains(name)),
                    "CAUSED_BY_NETWORK" => together = set,
                    _ => {}
                }
                joined = true;
                events.push(format!("{} / {}", members.join(" "), together.join(" ")));
            }
            "self-leave" => {
                events.push("lost".to_owned());
                break;
            }
            _ => {}
        }
    }
    events
}

#[test]
fn news_of_other_groups_are_ignored() {
    let recording = recording("11-partition-merge/alice.s2c");
    let mut driven = play(&recording, "alice", "local", usize::MAX);
    assert_eq!(driven.events().len(), 2);
    let of_net = |item: &&Value| item["sender"] == "net" || item["groups"][0] == "net";
    let other = recording.items.iter().filter(of_net);
    assert_eq!(driven.session.ignored().other_groups, other.count() as u64);
}

#[test]
fn a_daemon_that_dies_is_lost_and_looked_for() {
    let recording = recording("13-own-daemon-dies/alice.s2c");
    let mut driven = play(&recording, "alice", &first_group(&recording), 100);
    assert!(
        driven
            .events()
            .iter()
            .any(|event| matches!(event, Event::View(_)))
    );
    driven
        .session
        .on_closed("end of stream".to_owned(), driven.now);
    assert_eq!(driven.events(), [Event::Lost("end of stream".to_owned())]);
    assert_eq!(driven.session.me(), None);
    assert_eq!(
        driven.session.send_all(Lane::Bulk, &[]),
        Err(SendError::NotJoined)
    );
    assert!(!driven.session.wants_connection() && !driven.session.wants_close());
    let waited = driven.wait();
    assert!(waited >= SPREAD_RETRY_MIN / 2 && waited <= SPREAD_RETRY_MIN);
    assert!(driven.session.wants_connection());
}

#[test]
fn an_end_within_a_frame_is_an_end() {
    let recording = recording("14-slow-reader/slow.s2c");
    let mut driven = play(&recording, "slow", "feed", usize::MAX);
    driven.events();
    driven
        .session
        .on_closed("end of stream".to_owned(), driven.now);
    let reason = "end of stream (within a frame: 888 bytes)".to_owned();
    assert_eq!(driven.events(), [Event::Lost(reason)]);
}

#[test]
fn every_refusal_says_what_it_is_and_is_tried_again() {
    for (file, reason) in [
        (
            "dup-name",
            "has a client called \"alice\" already (REJECT_NOT_UNIQUE (-6))",
        ),
        ("name-too-long", "the name \"alice\"; choose"),
        ("name-bad-char", "REJECT_ILLEGAL_NAME (-5)"),
        ("name-len-lies", "REJECT_ILLEGAL_NAME (-5)"),
        ("old-version", "REJECT_VERSION (-7)"),
        (
            "auth-unknown",
            "allow NULL or IP authentication (REJECT_AUTH (-9))",
        ),
        ("auth-split", "REJECT_AUTH (-9)"),
        ("pipelined-auth", "REJECT_ILLEGAL_NAME (-5)"),
    ] {
        let recording = recording(&format!("03-connect-rejected/{file}.s2c"));
        let mut driven = play(&recording, "alice", "room", 1);
        driven.assert_closes(reason);
        assert_eq!(driven.events(), [], "we were nothing, and lose nothing");
        driven.wait();
        assert!(driven.session.wants_connection());
    }
}

#[test]
fn an_end_without_a_word_is_taken_for_a_refusal() {
    let mut driven = Driven::new("alice", "room");
    driven.connect();
    driven
        .session
        .on_closed("connection reset".to_owned(), driven.now);
    let state = driven.session.describe();
    assert!(
        state.contains("connection reset before it had taken us"),
        "{state}"
    );
    assert_eq!(driven.events(), []);
}

#[test]
fn a_policy_that_refuses_us_is_told() {
    let recording = recording("15-reject-frames/alice.s2c");
    let mut driven = play(&recording, "alice", "room", 33);
    assert!(matches!(driven.events()[..], [.., Event::Lost(_)]));
    driven.assert_closes("a policy of the daemon refuses what we do in group room");
}

// What a daemon could say.

#[test]
fn bodies_come_with_their_lane_and_audience() {
    let mut driven = Driven::joined();
    let (alice, bob) = (private("alice"), private("bob"));
    for (from, to, lane) in [
        ("bob", &[plone()][..], 1),
        ("bob", &[bob, alice], 2),
        ("alice", &[plone()], 3),
        ("alice", &[bob, alice], 1),
        ("alice", &[alice], 1),
        ("carol", &[alice], 2),
    ] {
        driven.receive(&message(AGREED, from, to, lane));
    }
    let events = driven.events().into_iter().map(|event| match event {
        Event::Body(body) => {
            assert_eq!(*body.data, *b"x");
            format!("{} {:?} {:?}", body.from, body.lane, body.audience)
        }
        Event::Passed { lane, len } => format!("passed {lane:?} {len}"),
        other => panic!("{other:?}"),
    });
    let expected = [
        "#bob#host Control All",
        "#bob#host Commit One",
        "#alice#host Bulk All",
        "passed Control 1",
        "#alice#host Control One",
        "#carol#host Commit One",
    ];
    assert_eq!(events.collect::<Vec<_>>(), expected);
    assert_eq!(driven.session.ignored(), Ignored::default());
}

#[test]
fn what_is_not_of_our_form_is_counted_and_ignored() {
    let mut driven = Driven::joined();
    let to = &[plone()][..];
    let forged = AGREED | MessageType::REG_MEMB;
    let transition = AGREED | MessageType::TRANSITION;
    let reject = AGREED | MessageType::REJECT;
    for message_type in [
        forged,
        transition,
        reject,
        MessageType::SAFE,
        MessageType::FIFO,
    ] {
        driven.receive(&message(message_type, "bob", to, 1));
    }
    for lane in [0, 5, -1, 257, i16::MIN] {
        driven.receive(&message(AGREED, "bob", to, lane));
    }
    let other = Name::new(b"other").unwrap();
    driven.receive(&message(AGREED, "bob", &[other], 1));
    driven.receive(&message(AGREED, "bob", &[], 1));
    driven.receive(&message(MessageType(0x80), "bob", to, 1));
    let mut half = message(AGREED, "bob", to, 1);
    half[40] = 0;
    driven.receive(&half);
    assert_eq!(driven.events(), []);
    let expected = Ignored {
        other_groups: 2,
        other_services: 5,
        lanes: 6,
        not_joined: 0,
        unknown: 1,
    };
    assert_eq!(driven.session.ignored(), expected);
    assert!(!driven.session.wants_close());
}

#[test]
fn nothing_is_heard_before_we_are_members() {
    let mut driven = Driven::connected("alice", "plone");
    driven.receive(&message(AGREED, "bob", &[private("alice")], 1));
    driven.receive(&Frame::new_transition(Endian::Little, plone(), GroupId([1, 2, 3])).encode());
    let leave = MessageType::CAUSED_BY_LEAVE;
    driven.receive(&view(leave, &["bob"], &["carol"]));
    assert_eq!(driven.events(), []);
    assert_eq!(driven.session.ignored().not_joined, 1);
    driven.receive(&view(leave, &["alice", "bob"], &["carol"]));
    assert_eq!(driven.views()[0].together, [member("alice")]);
}

#[test]
fn senders_of_the_other_byte_order_have_lanes_too() {
    let mut driven = Driven::joined();
    let mut frame = message(AGREED, "bob", &[plone()], 0);
    frame[40..44].copy_from_slice(&Hint::new(Endian::Big, 2).field());
    driven.receive(&frame);
    let data = Bytes::from_static(b"y");
    let big = Frame::new(Endian::Big, AGREED, private("bob"), &[plone()], 3, data);
    driven.receive(&big.encode());
    let lanes = driven.events().into_iter().map(|event| match event {
        Event::Body(body) => body.lane,
        other => panic!("{other:?}"),
    });
    assert_eq!(lanes.collect::<Vec<_>>(), [Lane::Commit, Lane::Bulk]);
}

#[test]
fn a_daemon_that_breaks_its_protocol_is_left() {
    let leave = Frame::new_self_leave(Endian::Little, plone()).encode();
    let mut long = message(AGREED, "bob", &[plone()], 1);
    long[44..48].copy_from_slice(&200_000_u32.to_le_bytes());
    let mut short = view(MessageType::CAUSED_BY_JOIN, &["alice"], &["alice"]);
    short[80 + 12] = 2;
    let mut transition = Frame::new_self_leave(Endian::Little, plone());
    transition.header.message_type = MessageType::TRANSITION;
    for (bytes, reason) in [
        (leave, "says that we have left plone"),
        (long, "at byte "),
        (
            short,
            "a membership message of 56 bytes: it ends before a set",
        ),
        (transition.encode(), "a transitional signal of 0 bytes"),
        (
            view(MessageType::CAUSED_BY_NETWORK, &["bob"], &["bob"]),
            "a view of plone without us",
        ),
    ] {
        let mut driven = Driven::joined();
        driven.receive(&bytes);
        driven.receive(&message(AGREED, "bob", &[plone()], 1));
        let [Event::Lost(lost)] = &driven.events()[..] else {
            panic!("one loss was expected");
        };
        assert!(lost.contains(reason), "{lost}");
        driven.assert_closes(reason);
        assert_eq!(driven.events(), []);
    }
}

#[test]
fn a_name_that_is_none_is_not_taken() {
    let mut driven = Driven::new("alice", "plone");
    driven.connect();
    driven.receive(b"\x05NULL \x01\x04\x04\0\x05alice");
    driven.assert_closes("calls us alice, which is no name");
}

#[test]
fn daemons_of_other_versions_are_talked_to() {
    let mut driven = Driven::new("alice", "plone");
    driven.connect();
    driven.receive(b"\x05NULL \x01\x05\x01\x09\x0b#alice#host");
    assert_eq!(driven.session.me(), Some(&member("alice")));
    assert!(
        driven
            .session
            .describe()
            .contains("joining as #alice#host (version 5.1.9)")
    );
}

#[test]
fn a_method_is_chosen_from_the_list() {
    let choice = |list: &AuthList| {
        let mut driven = Driven::new("alice", "plone");
        driven.connect();
        driven.written();
        driven.receive(&list.encode());
        match &driven.written()[..] {
            [ClientItem::AuthChoice(choice)] => {
                let methods = choice.methods().map(<[u8]>::to_vec);
                Some(methods.collect::<Vec<_>>().concat())
            }
            [] => {
                driven.assert_closes("the daemon wants authentication by PWORD ");
                None
            }
            other => panic!("{other:?}"),
        }
    };
    let chosen = choice(&AuthList::new(&[METHOD_IP, METHOD_NULL]));
    assert_eq!(chosen.unwrap(), METHOD_NULL);
    assert_eq!(choice(&AuthList::new(&[METHOD_IP])).unwrap(), METHOD_IP);
    assert_eq!(choice(&AuthList::new(&[b"PWORD"])), None);
}

#[test]
fn a_daemon_without_methods_refuses_us_itself() {
    let mut driven = Driven::new("alice", "plone");
    driven.connect();
    driven.written();
    driven.receive(b"\0");
    assert!(driven.written().is_empty() && !driven.session.wants_close());
    driven.receive(b"\xf7");
    driven.assert_closes("REJECT_AUTH (-9)");
}

#[test]
fn each_step_has_its_time() {
    let late = |driven: &mut Driven, time, reason: &str| {
        assert_eq!(driven.wait(), time);
        driven.assert_closes(reason);
    };
    let mut driven = Driven::new("alice", "plone");
    late(
        &mut driven,
        SPREAD_STEP_TIMEOUT,
        "no connection within 10 s",
    );

    let mut driven = Driven::new("alice", "plone");
    driven.connect();
    late(&mut driven, SPREAD_STEP_TIMEOUT, "not answered within 10 s");

    let mut driven = Driven::new("alice", "plone");
    driven.connect();
    driven.after(Duration::from_secs(3));
    driven.receive(&AuthList::new(&[METHOD_NULL]).encode());
    late(&mut driven, SPREAD_STEP_TIMEOUT, "not answered within 10 s");

    let mut driven = Driven::connected("alice", "plone");
    late(
        &mut driven,
        SPREAD_JOIN_TIMEOUT,
        "not made us a member within 30 s",
    );
    let [Event::Lost(reason)] = &driven.events()[..] else {
        panic!("one loss was expected");
    };
    assert!(reason.contains("not made us a member"));

    assert_eq!(Driven::joined().session.deadline(), None);
}

#[test]
fn a_deadline_that_has_not_come_does_nothing() {
    let mut driven = Driven::new("alice", "plone");
    driven.after(SPREAD_STEP_TIMEOUT - Duration::from_millis(1));
    driven.session.on_deadline(driven.now);
    assert!(driven.session.wants_connection());
}

#[test]
fn attempts_become_rarer_until_a_membership_lasts() {
    let mut driven = Driven::new("alice", "plone");
    let fail = |driven: &mut Driven| {
        driven
            .session
            .on_closed("connection refused".to_owned(), driven.now);
        driven.wait()
    };
    let waits: Vec<Duration> = (0..12).map(|_| fail(&mut driven)).collect();
    assert!(waits[0] <= SPREAD_RETRY_MIN && waits[11] >= SPREAD_RETRY_MAX / 2);
    for (lasts, waits_long) in [
        (Duration::from_secs(1), true),
        (SPREAD_SETTLED_AFTER, false),
    ] {
        driven.connect();
        driven.shake_hands("alice");
        driven.receive(&view(MessageType::CAUSED_BY_JOIN, &["alice"], &["alice"]));
        driven.after(lasts);
        let waited = fail(&mut driven);
        assert_eq!(waited > SPREAD_RETRY_MIN, waits_long, "{waited:?}");
    }
}

#[test]
fn a_name_in_use_is_asked_for_again_and_then_another_is_taken() {
    let mut driven = Driven::new("alice", "plone");
    let begin = driven.now;
    let refuse = |driven: &mut Driven| {
        let [ClientItem::Connect(connect)] = &driven.written()[..] else {
            panic!("a connect message was expected");
        };
        let user = connect.user.clone();
        driven.receive(&[Reject::NotUnique.code().cast_unsigned()]);
        driven.assert_closes("REJECT_NOT_UNIQUE");
        assert!(driven.wait() <= 2 * SPREAD_RETRY_MIN);
        driven.connect();
        user
    };
    driven.connect();
    while driven.now - begin < SPREAD_NAME_RETRY {
        assert_eq!(refuse(&mut driven), b"alice");
    }
    // The daemon invents one.
    let [ClientItem::Connect(connect)] = &driven.written()[..] else {
        panic!("a connect message was expected");
    };
    assert_eq!(connect.encode(), [4, 4, 0, 1, 0]);
    driven.receive(&AuthList::new(&[METHOD_NULL]).encode());
    driven.receive(&accept("r12-3"));
    assert_eq!(driven.session.me(), Some(&member("r12-3")));
    // The next time it is the old one.
    driven
        .session
        .on_closed("end of stream".to_owned(), driven.now);
    driven.wait();
    driven.connect();
    assert_eq!(refuse(&mut driven), b"alice");
}

#[test]
fn only_refusals_one_after_the_other_cost_the_name() {
    let mut driven = Driven::new("alice", "plone");
    driven.connect();
    driven.receive(&[Reject::NotUnique.code().cast_unsigned()]);
    driven
        .session
        .on_closed("end of stream".to_owned(), driven.now);
    driven.wait();
    driven
        .session
        .on_closed("connection refused".to_owned(), driven.now);
    driven.after(2 * SPREAD_NAME_RETRY);
    driven.session.on_deadline(driven.now);
    driven.connect();
    assert_eq!(driven.written_bytes()[5..], *b"alice");
}

#[test]
fn bodies_are_sent_agreed_and_within_the_limits_of_the_daemon() {
    let mut driven = Driven::joined();
    let len = driven.session.body_len_max();
    let long = Bytes::from(vec![7; len - 1]);
    let part = Bytes::from_static(b"z");
    let parts = [part.clone(), long.clone()];
    driven.session.send_all(Lane::Commit, &parts).unwrap();
    driven
        .session
        .send_one(&member("bob"), Lane::Bulk, &parts)
        .unwrap();
    driven
        .session
        .send_one(&member("alice"), Lane::Control, &[])
        .unwrap();
    let groups = [
        vec![plone()],
        vec![private("bob"), private("alice")],
        vec![private("alice")],
    ];
    let items = driven.written();
    assert_eq!(items.len(), 3);
    for ((item, groups), mess_type) in items.iter().zip(groups).zip([2, 3, 1]) {
        let ClientItem::Frame(frame) = item else {
            panic!("a frame was expected");
        };
        assert_eq!(frame.header.message_type, AGREED);
        assert_eq!(
            frame.header.check_request(&private("alice")),
            Ok(Request::Multicast)
        );
        assert_eq!(frame.header.hint, Hint::new(Endian::Little, mess_type));
        assert_eq!(frame.names().collect::<Vec<_>>(), groups);
        let names_and_data = frame.names.len() + frame.data.len();
        assert!(names_and_data <= 143_151);
    }
    let too_long = [part.clone(), part, long];
    assert_eq!(
        driven.session.send_all(Lane::Bulk, &too_long),
        Err(SendError::TooLong)
    );
    let bob = member("bob");
    let result = driven.session.send_one(&bob, Lane::Bulk, &too_long);
    assert_eq!(result, Err(SendError::TooLong));
    assert!(driven.session.output().is_empty());
}

#[test]
fn a_body_goes_to_a_member_of_any_name_that_a_daemon_allows() {
    for user in [r"back\slash", "o'neil", "$&()*+,./"] {
        let mut driven = Driven::connected(user, "plone");
        let cause = MessageType::CAUSED_BY_JOIN;
        driven.receive(&view(cause, &[user, "it's"], &[user]));
        let [view] = &driven.views()[..] else {
            panic!("one view was expected");
        };
        driven.written();
        assert_eq!(view.members, [member(user), member("it's")]);
        for (to, names) in [
            (member(user), vec![private(user)]),
            (member("it's"), vec![private("it's"), private(user)]),
        ] {
            driven.session.send_one(&to, Lane::Bulk, &[]).unwrap();
            let [ClientItem::Frame(frame)] = &driven.written()[..] else {
                panic!("one frame was expected");
            };
            assert_eq!(frame.names().collect::<Vec<_>>(), names);
        }
        driven.receive(&message(AGREED, user, &[private(user)], 3));
        assert!(matches!(driven.events()[..], [Event::Body(_)]));
    }
}

#[test]
fn bodies_go_to_members_only() {
    let mut driven = Driven::joined();
    for name in ["plone", "", "#bob", "#bob#0123456789012345678901234567"] {
        let to = MemberId::new(name);
        let result = driven.session.send_one(&to, Lane::Bulk, &[]);
        assert_eq!(result, Err(SendError::NoSuchMember), "{name}");
    }
    assert!(driven.session.output().is_empty());
}

#[test]
fn a_daemon_that_reads_nothing_is_busy() {
    let mut driven = Driven::joined();
    let part = [Bytes::from(vec![7; 100_000])];
    let mut sent = 0;
    while driven.session.send_all(Lane::Bulk, &part) != Err(SendError::Busy) {
        sent += 1;
        assert!(driven.session.output().len() <= SPREAD_OUTPUT_LEN_MAX + 100);
    }
    assert!(sent >= SPREAD_OUTPUT_LEN_MAX / 101_000);
    driven.session.output().advance(100_080);
    assert_eq!(driven.session.send_all(Lane::Bulk, &part), Ok(()));
}

#[test]
fn long_data_are_not_copied_on_their_way_out() {
    let mut driven = Driven::joined();
    let data = Bytes::from(vec![7; 100_000]);
    driven
        .session
        .send_all(Lane::Bulk, &[Bytes::from_static(b"head"), data.clone()])
        .unwrap();
    let mut slices = [std::io::IoSlice::new(&[]); 4];
    let count = driven.session.output().slices(&mut slices, usize::MAX);
    assert!(
        slices[..count]
            .iter()
            .any(|slice| slice.as_ptr() == data.as_ptr())
    );
}

#[test]
fn whoever_leaves_says_so_and_hears_nothing_more() {
    let mut driven = Driven::joined();
    driven.receive(&message(AGREED, "bob", &[plone()], 1));
    driven.session.leave(driven.now);
    let requests = driven.written().into_iter().map(|item| match item {
        ClientItem::Frame(frame) => frame.header.check_request(&private("alice")).unwrap(),
        other => panic!("{other:?}"),
    });
    assert_eq!(
        requests.collect::<Vec<_>>(),
        [Request::Leave, Request::Kill]
    );
    driven.receive(&Frame::new_self_leave(Endian::Little, plone()).encode());
    driven.receive(&message(AGREED, "bob", &[plone()], 1));
    assert_eq!(driven.events(), []);
    assert_eq!(
        driven.session.send_all(Lane::Bulk, &[]),
        Err(SendError::NotJoined)
    );
    assert!(!driven.session.wants_close());
    driven
        .session
        .on_closed("end of stream".to_owned(), driven.now);
    assert_eq!(driven.session.deadline(), None);
    assert!(!driven.session.wants_connection() && !driven.session.wants_close());
    assert_eq!(driven.events(), []);
}

#[test]
fn a_daemon_that_does_not_let_us_go_is_left() {
    let mut driven = Driven::joined();
    driven.session.leave(driven.now);
    assert_eq!(driven.wait(), SPREAD_LEAVE_TIMEOUT);
    driven.assert_closes("not joined");
    assert_eq!(driven.events(), []);
}

#[test]
fn one_may_leave_at_any_time_and_come_back() {
    let begun: [fn() -> Driven; 4] = [
        || Driven::new("alice", "plone"),
        || {
            let mut driven = Driven::new("alice", "plone");
            driven.connect();
            driven
        },
        || Driven::connected("alice", "plone"),
        || {
            let mut driven = Driven::new("alice", "plone");
            driven
                .session
                .on_closed("connection refused".to_owned(), driven.now);
            driven
        },
    ];
    for begin in begun {
        let mut driven = begin();
        driven.session.leave(driven.now);
        driven.session.join(driven.now);
        if !driven.session.wants_connection() {
            driven.session.on_closed("closed".to_owned(), driven.now);
            driven.wait();
        }
        assert!(driven.session.wants_connection());
        driven.connect();
        driven.shake_hands("alice");
        driven.session.leave(driven.now);
        driven.session.on_closed("closed".to_owned(), driven.now);
        assert_eq!(driven.session.deadline(), None);
        assert_eq!(driven.events(), []);
    }
}

#[test]
fn a_daemon_that_is_given_up_is_lost_and_looked_for() {
    let mut driven = Driven::joined();
    driven
        .session
        .send_all(Lane::Bulk, &[Bytes::from_static(b"x")])
        .unwrap();
    driven.session.reset("it is silent", driven.now);
    assert_eq!(driven.events(), [Event::Lost("it is silent".to_owned())]);
    assert!(driven.session.output().is_empty());
    driven.receive(&message(AGREED, "bob", &[plone()], 1));
    assert_eq!(driven.events(), []);
    driven.assert_closes("it is silent");
    driven.wait();
    driven.connect();
    driven.shake_hands("alice");
}

#[test]
fn a_reset_is_followed_by_a_loss_whatever_there_was() {
    let begun: [fn() -> Driven; 3] = [
        || Driven::new("alice", "plone"),
        || Driven::connected("alice", "plone"),
        || {
            let mut driven = Driven::new("alice", "plone");
            driven
                .session
                .on_closed("connection refused".to_owned(), driven.now);
            driven
        },
    ];
    for begin in begun {
        let mut driven = begin();
        driven.session.reset("it is silent", driven.now);
        assert_eq!(driven.events(), [Event::Lost("it is silent".to_owned())]);
    }
}

#[test]
fn a_socket_that_comes_too_late_is_not_used() {
    let mut driven = Driven::new("alice", "plone");
    driven.wait();
    driven.session.on_connected(driven.now);
    assert!(driven.session.output().is_empty());
    driven.assert_closes("no connection within 10 s");
}

#[test]
fn names_that_a_daemon_could_not_bear_are_refused_at_once() {
    let result =
        |user: &str, group: &str| Session::new(options(user, group), Instant::now()).map(drop);
    assert_eq!(result("$tenbytes~", &"g".repeat(31)), Ok(()));
    for user in ["", "elevenbytes", "a b", "a#b", "ä"] {
        let error = OptionsError::Name(user.to_owned());
        assert_eq!(result(user, "plone"), Err(error));
    }
    for group in ["", &"g".repeat(32), "a b", "#a#b", "ä"] {
        let error = OptionsError::Group(group.to_owned());
        assert_eq!(result("alice", group), Err(error));
    }
    let error = result("a b", "plone").unwrap_err().to_string();
    assert_eq!(
        error,
        "\"a b\" is no name of a member: Spread allows 1 to 10 characters from $ to ~"
    );
}

#[test]
fn one_line_says_how_it_stands() {
    let mut driven = Driven::new("alice", "plone");
    let describe = |driven: &Driven| driven.session.describe();
    assert_eq!(
        describe(&driven),
        "spread 4803@localhost, group plone: connecting"
    );
    driven
        .session
        .on_closed("connection refused".to_owned(), driven.now);
    assert_eq!(
        describe(&driven),
        "spread 4803@localhost, group plone: connecting (last: connection refused)"
    );
    let mut driven = Driven::joined();
    assert_eq!(
        describe(&driven),
        "spread 4803@localhost, group plone: #alice#host is one of 2 members (version 4.4.0)"
    );
    driven.session.leave(driven.now);
    assert_eq!(
        describe(&driven),
        "spread 4803@localhost, group plone: not joined"
    );
}

#[test]
fn an_audience_is_what_the_message_was_addressed_to() {
    // Somebody may address both; whoever reads it must not think that it was for him alone.
    let mut driven = Driven::joined();
    let to = [private("alice"), plone()];
    driven.receive(&message(AGREED, "bob", &to, 1));
    let [Event::Body(body)] = &driven.events()[..] else {
        panic!("a body was expected");
    };
    assert_eq!(body.audience, Audience::All);
}
