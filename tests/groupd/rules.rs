//! Rules of the daemon, one by one, that no recording shows.

use std::time::Duration;

use standby::group::spread::wire::{
    Delivery, Endian, Frame, MessageType, NAME_LEN, Name, SENT_LEN_MAX,
};

use crate::checker::{Event, events};
use crate::daemon::{FIRST_BYTE_TIMEOUT, SESSIONS_MAX, SessionId, WAITING_MAX};
use crate::world::World;

const DETECTION: Duration = Duration::from_millis(50);

fn world(daemons: &[&str]) -> World {
    World::new(daemons, Endian::Little)
}

/// The 90 bytes that choose no authentication.
fn choice() -> Vec<u8> {
    let mut choice = b"NULL".to_vec();
    choice.resize(90, 0);
    choice
}

fn connect_message(user: &str) -> Vec<u8> {
    let mut message = vec![4, 4, 0, 1, user.len() as u8];
    message.extend_from_slice(user.as_bytes());
    message
}

/// A session, with its private name.
#[derive(Clone, Copy)]
struct Session {
    id: SessionId,
    name: Name,
}

fn session(world: &mut World, user: &str, daemon: usize) -> Session {
    let id = world.connect(daemon);
    world.receive(id, &connect_message(user));
    world.receive(id, &choice());
    let bytes = &world.clients[&id].bytes;
    let name = Name::new(&bytes[11..]).unwrap();
    Session { id, name }
}

fn request(from: Session, message_type: MessageType, groups: &[Name], data: Vec<u8>) -> Vec<u8> {
    let data = data.into();
    Frame::new(Endian::Little, message_type, from.name, groups, 0, data).encode()
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn join(world: &mut World, who: Session) {
    world.receive(
        who.id,
        &request(who, MessageType::JOIN, &[name("g")], Vec::new()),
    );
}

fn send(world: &mut World, from: Session, service: MessageType, number: u64) {
    let data = number.to_be_bytes().to_vec();
    world.receive(from.id, &request(from, service, &[name("g")], data));
}

/// What a session was told, in short: messages by number, views by their members, `T` for a signal.
fn told(world: &World, who: Session) -> Vec<String> {
    let client = &world.clients[&who.id];
    let events = events(&client.bytes, &client.sent_at).into_iter();
    let told = events.map(|(_, event)| match event {
        Event::Message(number) => number.to_string(),
        Event::View(view) => {
            let users = view.members.iter().map(|name| {
                let (user, _) = name.parts().unwrap();
                String::from_utf8_lossy(user).into_owned()
            });
            users.collect::<Vec<_>>().join("+")
        }
        Event::Transition(..) => "T".to_owned(),
        Event::SelfLeave(_) => "left".to_owned(),
    });
    told.collect()
}

/// What it was told since it knew of the whole group.
fn told_since(world: &World, who: Session, view: &str) -> Vec<String> {
    let mut told = told(world, who);
    let at = told.iter().position(|it| it == view).unwrap();
    told.split_off(at + 1)
}

#[test]
fn clients_of_all_ages_are_spoken_to_as_they_can() {
    for (version, answer) in [
        (&[2, 9, 9][..], &[0xf9][..]),
        (&[3, 0, 0], &[0xf9]),
        (&[0x80, 0, 0], &[0xf9]),
        (&[3, 1], b"\x01\x04\x04\x05#a#d1"),
        (&[3, 14], b"\x01\x04\x04\x05#a#d1"),
        (&[3, 15, 0], b"\x01\x04\x04\x00\x05#a#d1"),
        (&[3, 16, 0], b"\x05NULL "),
        (&[5, 1, 9], b"\x05NULL "),
        (&[4, 0x80, 0], b"\x05NULL "),
    ] {
        let mut world = world(&["d1"]);
        let id = world.connect(0);
        world.receive(id, &[version, &[1, 1], b"a"].concat());
        assert_eq!(world.clients[&id].bytes, answer, "{version:?}");
        assert_eq!(world.clients[&id].closed, answer[0] == 0xf9);
    }
}

#[test]
fn what_is_sent_too_early_is_taken_for_the_name_unless_that_is_full_or_empty() {
    for (user, accepted) in [("abcdefghij", true), ("", true), ("abc", false)] {
        let mut world = world(&["d1"]);
        let id = world.connect(0);
        world.receive(id, &[connect_message(user), choice()].concat());
        let bytes = &world.clients[&id].bytes;
        assert_eq!(bytes.len() > 6, accepted, "{user}");
        assert_eq!(world.clients[&id].closed, !accepted);
        // A name that was invented has nine characters at most.
        assert!(bytes.len() <= 6 + 5 + 1 + 10 + 3);
    }
}

#[test]
fn a_daemon_has_so_many_sessions_and_no_more() {
    let mut world = world(&["d1", "d2"]);
    let mut first = None;
    for n in 0..SESSIONS_MAX {
        first = first.or(Some(session(&mut world, &format!("u{n}"), 0)));
    }
    let id = world.connect(0);
    assert_eq!(world.clients[&id].bytes, [0xfd]);
    assert!(world.clients[&id].closed);
    session(&mut world, "u0", 1);
    world.end(first.unwrap().id);
    session(&mut world, "new", 0);
}

#[test]
fn who_says_nothing_keeps_others_out_for_a_second() {
    let mut world = world(&["d1", "d2"]);
    let id = world.connect(0);
    assert_eq!(world.accepts.get(&0), Some(&false));
    assert_eq!(world.accepts.get(&1), None);
    world.pass(FIRST_BYTE_TIMEOUT - Duration::from_millis(1));
    assert!(!world.clients[&id].closed);
    world.pass(Duration::from_millis(1));
    assert!(world.clients[&id].closed && world.clients[&id].bytes.is_empty());
    assert!(world.accepts[&0]);
    // One that has said something has all the time, and its name.
    let id = world.connect(0);
    world.receive(id, &connect_message("a"));
    assert!(world.accepts[&0]);
    world.pass(Duration::from_secs(3600));
    let other = world.connect(0);
    world.receive(other, &connect_message("a"));
    assert_eq!(world.clients[&other].bytes, [0xfa]);
    world.receive(id, &choice());
    assert!(world.clients[&id].bytes.len() > 6);
}

#[test]
fn a_name_is_free_when_all_know_that_its_session_is_gone() {
    let mut world = world(&["d1"]);
    let a = session(&mut world, "a", 0);
    world.command("delay 10").unwrap();
    world.end(a.id);
    let id = world.connect(0);
    world.receive(id, &connect_message("a"));
    assert_eq!(world.clients[&id].bytes, [0xfa]);
    world.pass(Duration::from_millis(10));
    session(&mut world, "a", 0);
}

#[test]
fn what_the_real_daemon_would_not_survive_ends_the_session_alone() {
    let g = name("g");
    let agreed = MessageType::AGREED;
    let full = Name::from_field([b'x'; NAME_LEN]);
    for (message_type, groups, len, survives) in [
        (agreed, vec![g], SENT_LEN_MAX - NAME_LEN, true),
        (agreed, vec![g], SENT_LEN_MAX - NAME_LEN + 1, false),
        (agreed, vec![g], 143_952 - NAME_LEN, false),
        (agreed | MessageType(0x8_0000), vec![g], 8, false),
        (agreed | MessageType::REG_MEMB, vec![g], 8, true),
        (MessageType::JOIN, vec![], 0, false),
        (MessageType::LEAVE, vec![], 0, false),
        (MessageType::JOIN, vec![full], 0, false),
        (MessageType::KILL, vec![], 0, false),
    ] {
        let mut world = world(&["d1"]);
        let a = session(&mut world, "a", 0);
        let b = session(&mut world, "b", 0);
        join(&mut world, a);
        world.receive(b.id, &request(b, message_type, &groups, vec![0; len]));
        assert_eq!(
            world.clients[&b.id].closed, !survives,
            "{message_type} {len}"
        );
        assert!(!world.clients[&a.id].closed);
        let got = told(&world, a).len();
        assert_eq!(got, if survives { 2 } else { 1 }, "{message_type} {len}");
    }
}

#[test]
fn a_header_is_judged_before_the_rest_has_come() {
    let mut world = world(&["d1"]);
    let a = session(&mut world, "a", 0);
    let both = MessageType::AGREED | MessageType::SAFE;
    let bytes = request(a, both, &[name("g")], vec![0; 1000]);
    world.receive(a.id, &bytes[..47]);
    assert!(!world.clients[&a.id].closed);
    world.receive(a.id, &bytes[47..48]);
    assert!(world.clients[&a.id].closed);
}

#[test]
fn clients_are_not_read_while_too_much_is_under_way() {
    let mut world = world(&["d1", "d2"]);
    let a = session(&mut world, "a", 0);
    let b = session(&mut world, "b", 1);
    join(&mut world, a);
    join(&mut world, b);
    world.command("partition d1 d2").unwrap();
    let count = WAITING_MAX as u64 + 100;
    for number in 0..count {
        send(&mut world, a, MessageType::SAFE, number);
        let full = number + 1 >= WAITING_MAX as u64;
        assert_eq!(world.clients[&a.id].reads, !full, "{number}");
    }
    assert!(!world.accepts[&0]);
    assert!(world.clients[&b.id].reads);
    world.pass(DETECTION);
    assert!(world.clients[&a.id].reads && world.accepts[&0]);
    let told = told_since(&world, a, "a+b");
    // Those on their way when the network changed are of the old view, the others of the new one.
    let mut expected = vec!["T".to_owned()];
    expected.extend((0..WAITING_MAX).map(|n| n.to_string()));
    expected.push("a".to_owned());
    expected.extend((WAITING_MAX as u64..count).map(|n| n.to_string()));
    assert_eq!(told, expected);
}

#[test]
fn a_safe_message_may_be_sure_for_some_and_unsure_for_others() {
    let mut world = world(&["d1", "d2"]);
    let a = session(&mut world, "a", 0);
    let b = session(&mut world, "b", 1);
    join(&mut world, a);
    join(&mut world, b);
    world.command("unconfirmed b").unwrap();
    send(&mut world, a, MessageType::AGREED, 1);
    send(&mut world, a, MessageType::SAFE, 2);
    world.pass(DETECTION);
    assert_eq!(told_since(&world, a, "a+b"), ["1", "2", "T", "a"]);
    assert_eq!(told_since(&world, b, "a+b"), ["1", "T", "2", "b"]);
}

#[test]
fn a_message_that_is_lost_parts_those_who_did_not_get_it() {
    for (command, of_a, of_b) in [
        ("drop b", &["1", "T", "2", "a"][..], &["T", "b"][..]),
        ("drop-safe b", &["1", "T", "2", "a"], &["1", "T", "b"]),
    ] {
        let mut world = world(&["d1"]);
        let a = session(&mut world, "a", 0);
        let b = session(&mut world, "b", 0);
        join(&mut world, a);
        join(&mut world, b);
        world.command(command).unwrap();
        send(&mut world, a, MessageType::AGREED, 1);
        send(&mut world, a, MessageType::SAFE, 2);
        world.pass(DETECTION);
        assert_eq!(told_since(&world, a, "a+b"), of_a, "{command}");
        assert_eq!(told_since(&world, b, "a+b"), of_b, "{command}");
    }
}

#[test]
fn a_loss_and_a_merge_in_one_step_are_one_view() {
    let mut world = world(&["d1", "d2", "d3"]);
    let users = ["a", "b", "c"];
    let all: Vec<_> = (0..3).map(|n| session(&mut world, users[n], n)).collect();
    world.command("partition d1 d2,d3").unwrap();
    world.pass(DETECTION);
    for who in &all {
        join(&mut world, *who);
    }
    world.command("partition d1,d2 d3").unwrap();
    world.pass(DETECTION);
    // Only those who lose somebody get a signal.
    assert_eq!(told(&world, all[0]), ["a", "a+b"]);
    assert_eq!(told(&world, all[1]), ["b", "b+c", "T", "a+b"]);
    assert_eq!(told(&world, all[2]), ["b+c", "T", "c"]);
}

#[test]
fn a_daemon_that_crashes_says_nothing_and_comes_back_empty() {
    let mut world = world(&["d1", "d2"]);
    let a = session(&mut world, "a", 0);
    let b = session(&mut world, "b", 1);
    join(&mut world, a);
    join(&mut world, b);
    world.command("crash d2").unwrap();
    assert!(world.clients[&b.id].closed);
    assert_eq!(told_since(&world, b, "a+b"), Vec::<String>::new());
    let again = session(&mut world, "b", 1);
    join(&mut world, again);
    world.pass(DETECTION);
    assert_eq!(told_since(&world, a, "a+b"), ["T", "a"]);
    world.command("merge").unwrap();
    world.pass(DETECTION);
    assert_eq!(told(&world, again), ["b", "a+b"]);
    assert_eq!(told_since(&world, a, "a+b"), ["T", "a", "a+b"]);
}

#[test]
fn who_comes_back_by_the_same_name_is_where_it_was() {
    let mut world = world(&["d1"]);
    let a = session(&mut world, "a", 0);
    let b = session(&mut world, "b", 0);
    join(&mut world, a);
    world.command("partition b").unwrap();
    world.end(b.id);
    world.pass(DETECTION);
    let b = session(&mut world, "b", 0);
    join(&mut world, b);
    assert_eq!(told(&world, b), ["b"]);
    world.command("merge").unwrap();
    world.pass(DETECTION);
    assert_eq!(told(&world, b), ["b", "a+b"]);
}

#[test]
fn a_stall_ends_by_itself_if_that_was_said() {
    let mut world = world(&["d1"]);
    let a = session(&mut world, "a", 0);
    join(&mut world, a);
    world.command("stall d1 100").unwrap();
    send(&mut world, a, MessageType::SAFE, 1);
    world.pass(Duration::from_millis(99));
    assert_eq!(told(&world, a), ["a"]);
    world.pass(Duration::from_millis(1));
    assert_eq!(told(&world, a), ["a", "1"]);
}

#[test]
fn a_daemon_of_the_other_byte_order_writes_its_own_headers_and_others_types_of_messages() {
    let mut world = World::new(&["d1"], Endian::Big);
    let a = session(&mut world, "a", 0);
    join(&mut world, a);
    send(&mut world, a, MessageType::SAFE, 1);
    let bytes = &world.clients[&a.id].bytes[16..];
    let mut stream = standby::group::spread::wire::DaemonStream::in_frames();
    stream.receive(bytes);
    let mut seen = Vec::new();
    while let Some(item) = stream.next().unwrap() {
        let standby::group::spread::wire::DaemonItem::Frame(frame) = item.what else {
            panic!("{item:?}");
        };
        let header = frame.header;
        seen.push((
            header.delivery(),
            header.endian,
            header.hint.endian().unwrap(),
        ));
    }
    let expected = [
        (Delivery::Membership, Endian::Big, Endian::Big),
        (Delivery::Regular, Endian::Big, Endian::Little),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn names_that_are_not_clear_are_refused() {
    let mut world = world(&["d1", "d2"]);
    session(&mut world, "a", 0);
    session(&mut world, "a", 1);
    for (command, problem) in [
        ("kick a", "several daemons"),
        ("kick b", "no daemon and no session"),
        ("kick d1", "is a daemon"),
        ("crash #a#d1", "is no daemon"),
        ("partition d1 d1", "two components"),
        ("partition #a#d1 #a#d1", "two components"),
    ] {
        let error = world.command(command).unwrap_err();
        assert!(error.contains(problem), "{command}: {error}");
    }
    world.command("partition d1 #a#d1").unwrap();
    world.command("kick #a#d2").unwrap();
    world.command("kick a").unwrap();
}

#[test]
fn no_bytes_of_clients_upset_it() {
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 20) as usize % below
    };
    let mut survived = 0;
    for round in 0..3000 {
        let mut world = world(&["d1", "d2"]);
        let a = session(&mut world, "a", 0);
        join(&mut world, a);
        let b = Session {
            id: world.connect(1),
            name: Name::private(b"b", b"d2").unwrap(),
        };
        let mut said = [connect_message("b"), choice()].concat();
        for _ in 0..3 {
            let services = [MessageType::JOIN, MessageType::LEAVE, MessageType::SAFE];
            let data = vec![0; 8 + next(30)];
            said.extend(request(b, services[next(3)], &[name("g"), a.name], data));
        }
        // Most rounds leave the handshake as it is, to get behind it.
        let from = if round % 4 == 0 { 0 } else { 96 };
        for _ in 0..next(4) {
            let at = from + next(said.len() - from);
            said[at] ^= 1 << next(8);
        }
        let (connect, rest) = said.split_at(6);
        world.receive(b.id, connect);
        let (choice, frames) = rest.split_at(90);
        world.receive(b.id, choice);
        for piece in frames.chunks(1 + next(200)) {
            world.receive(b.id, piece);
        }
        world.command("partition d1 d2").unwrap();
        world.pass(DETECTION);
        survived += usize::from(!world.clients[&b.id].closed);
        world.end(b.id);
        assert!(!world.clients[&a.id].closed);
    }
    // Neither all nor none were ended for it.
    assert!((500..2900).contains(&survived), "{survived}");
}
