//! What clients said to a real daemon is said to ours, at the same times, and the answers are
//! compared byte for byte. Ids of groups are compared by what they are equal to; names that the
//! daemon invented are put in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use standby::group::spread::wire::{
    DaemonItem, DaemonStream, Delivery, Endian, Frame, GroupId, Name,
};

use crate::daemon::SessionId;
use crate::recordings::{Recording, recordings};
use crate::world::World;

/// All scenarios but `14`, which needs senders that were not recorded.
const SCENARIOS: [&str; 16] = [
    "01-connect-join-self",
    "02-connect-variants",
    "03-connect-rejected",
    "04-join-leave-disconnect",
    "05-multicast-services",
    "06-private-and-multigroup",
    "07-self-discard",
    "08-max-message",
    "09-endian-mismatch",
    "10-protocol-errors",
    "11-partition-merge",
    "12-daemon-crash-in-flight",
    "13-own-daemon-dies",
    "15-reject-frames",
    "16-flush-layer",
    "17-join-during-transition",
];

#[test]
fn the_answers_are_those_of_the_real_daemon() {
    let recordings = recordings();
    for scenario in SCENARIOS {
        let found = replay(scenario, &recordings);
        let mut ids = Ids::default();
        let mut compared = 0;
        for recording in of(scenario, &recordings, ".s2c") {
            let client = &found[client_name(recording)];
            let mut expected = items(&recording.bytes);
            // In `16` another client woke the recorded ones up, which does not matter here.
            expected.retain(|item| !is_from(item, b"#helper#localhost"));
            let items = items(&client.bytes);
            for (n, (item, expected)) in items.iter().zip(&expected).enumerate() {
                let item = ids.translated(item);
                let place = format!("{}: item {n}", recording.name);
                assert_eq!(item, ids.noted(expected), "{place}");
                compared += 1;
            }
            assert_eq!(items.len(), expected.len(), "{}", recording.name);
            assert!(client.closed, "{}: still open", recording.name);
        }
        assert!(compared > 0, "{scenario}");
        ids.check(scenario);
    }
}

#[test]
fn a_slow_reader_is_killed_when_a_thousand_messages_wait() {
    let all = recordings();
    let slow = of("14-slow-reader", &all, "slow.s2c").next().unwrap();
    let mut world = World::new(&["localhost"], Endian::Little);
    let said = of("14-slow-reader", &all, "slow.c2s").next().unwrap();
    let feeder = connected(&mut world, "feeder");
    let watcher = connected(&mut world, "watcher");
    let join = |name: &str| request(0x1_0000, name, "feed", b"");
    world.receive(watcher, &join("watcher"));
    let id = world.connect(0);
    for part in [&said.bytes[..9], &said.bytes[9..99], &said.bytes[99..]] {
        world.receive(id, part);
    }
    // From here on its socket takes what the recorded one took.
    let taken = slow.bytes.len() - world.clients[&id].bytes.len();
    world.clients.get_mut(&id).unwrap().room = taken;
    world.receive(feeder, &join("feeder"));
    // A view of three members, and messages.
    let in_socket = (taken - 200) / (80 + 2000);
    for number in 0_u32.. {
        let mut data = number.to_be_bytes().to_vec();
        data.resize(2000, b'.');
        world.receive(feeder, &request(0x50, "feeder", "feed", &data));
        if world.clients[&id].closed {
            // The one that killed it, those that waited (the first one in part), and those taken.
            assert_eq!(number as usize, in_socket + 1000);
            break;
        }
    }
    let expected = ids_blanked(&slow.bytes);
    assert!(ids_blanked(&world.clients[&id].bytes) == expected);
    let told = items(&world.clients[&watcher].bytes);
    assert!(matches!(
        told.last(),
        Some(DaemonItem::Frame(frame)) if frame.header.message_type.0 == 0x1400
    ));
}

/// A session of that name, accepted.
fn connected(world: &mut World, user: &str) -> SessionId {
    let id = world.connect(0);
    let mut connect = vec![4, 4, 0, 1, user.len() as u8];
    connect.extend_from_slice(user.as_bytes());
    world.receive(id, &connect);
    let mut choice = b"NULL".to_vec();
    choice.resize(90, 0);
    world.receive(id, &choice);
    id
}

fn request(message_type: u32, user: &str, group: &str, data: &[u8]) -> Vec<u8> {
    let frame = Frame::new(
        Endian::Little,
        standby::group::spread::wire::MessageType(message_type),
        Name::private(user.as_bytes(), b"localhost").unwrap(),
        &[Name::new(group.as_bytes()).unwrap()],
        0,
        data.to_vec().into(),
    );
    frame.encode()
}

/// With zeros for the ids of groups.
fn ids_blanked(bytes: &[u8]) -> Vec<u8> {
    let mut blank = bytes.to_vec();
    let mut stream = DaemonStream::new();
    stream.receive(bytes);
    while let Some(item) = stream.next().unwrap() {
        if let DaemonItem::Frame(frame) = &item.what
            && group_id(frame).is_some()
        {
            let data_at = item.pos as usize + item.len - frame.data.len();
            blank[data_at..data_at + GroupId::LEN].fill(0);
        }
    }
    blank
}

/// The timeline of a scenario, played. What each client has got.
fn replay(scenario: &str, recordings: &[Recording]) -> BTreeMap<String, crate::world::Client> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/groupd");
    let timeline = std::fs::read_to_string(path.join(format!("{scenario}.txt"))).unwrap();
    let several = timeline.contains(" d1");
    let daemons: &[&str] = match several {
        true => &["d1", "d2", "d3"],
        false => &["localhost"],
    };
    let mut world = World::new(daemons, Endian::Little);
    world.command("detection 1000").unwrap();
    if scenario.starts_with("03") {
        // Not recorded, but there.
        connected(&mut world, "taken");
    }
    let mut said: BTreeMap<String, &[u8]> = of(scenario, recordings, ".c2s")
        .map(|recording| (client_name(recording).to_owned(), &recording.bytes[..]))
        .collect();
    let mut sessions: BTreeMap<String, SessionId> = BTreeMap::new();
    for line in timeline.lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        let time = Duration::from_secs_f64(time.parse::<f64>().unwrap() / 1000.0);
        let passed = world.now - world.start;
        world.pass(time.saturating_sub(passed));
        let words: Vec<&str> = rest.split(' ').collect();
        match words[..] {
            ["!", ..] => _ = world.command(&rest[2..]).unwrap(),
            [name, "connect", daemon] => {
                let daemon = daemons.iter().position(|it| *it == daemon).unwrap();
                sessions.insert(name.to_owned(), world.connect(daemon));
            }
            [name, "sends", len] => {
                let rest = said.get_mut(name).unwrap();
                let (bytes, behind) = rest.split_at(len.parse().unwrap());
                *rest = behind;
                let id = sessions[name];
                let bytes = with_invented_name(bytes, &world.clients[&id].bytes);
                world.receive(id, &bytes);
            }
            [name, "ends"] => world.end(sessions[name]),
            _ => panic!("{scenario}: {line}"),
        }
    }
    world.pass(Duration::from_secs(10));
    assert!(said.values().all(|rest| rest.is_empty()), "{scenario}");
    let clients = sessions.iter();
    clients
        .map(|(name, id)| (name.clone(), world.clients[id].clone()))
        .collect()
}

/// What a client says whose name was invented: with the name that it has got now. Those are as long
/// as the recorded ones.
fn with_invented_name(bytes: &[u8], got: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let invented = got.windows(7).find(|it| it.starts_with(b"#r8567-"));
    if let Some(invented) = invented {
        let mut at = 0;
        while at + 8 <= bytes.len() {
            if bytes[at..].starts_with(b"#r8567-") {
                bytes[at..at + 7].copy_from_slice(invented);
                bytes[at + 7] = got[got.windows(7).position(|it| it == invented).unwrap() + 7];
            }
            at += 1;
        }
    }
    bytes
}

fn of<'a>(
    scenario: &'a str,
    recordings: &'a [Recording],
    suffix: &'a str,
) -> impl Iterator<Item = &'a Recording> {
    let its = recordings.iter();
    its.filter(move |it| it.name.starts_with(scenario) && it.name.ends_with(suffix))
}

/// `alice` of `01-connect-join-self/alice.s2c`.
fn client_name(recording: &Recording) -> &str {
    let file = recording.name.split_once('/').unwrap().1;
    file.rsplit_once('.').unwrap().0
}

/// What a daemon has said. Names that it invented have the number that ours gives.
fn items(bytes: &[u8]) -> Vec<DaemonItem> {
    let mut stream = DaemonStream::new();
    stream.receive(&anonymous(bytes));
    let mut items = Vec::new();
    while let Some(item) = stream.next().unwrap() {
        items.push(item.what);
    }
    assert_eq!(stream.pending(), None);
    items
}

fn is_from(item: &DaemonItem, name: &[u8]) -> bool {
    matches!(item, DaemonItem::Frame(frame) if frame.header.name.as_bytes() == name)
}

/// With the same number in all names that a daemon has invented.
fn anonymous(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 7..bytes.len() {
        if bytes[at - 7..].starts_with(b"#r8567-") {
            bytes[at] = b'0';
        }
    }
    bytes
}

fn group_id(frame: &Frame) -> Option<GroupId> {
    match frame.header.delivery() {
        Delivery::Membership => Some(frame.membership().unwrap().id),
        Delivery::Transition => Some(frame.transition().unwrap()),
        _ => None,
    }
}

/// Which ids of ours stand for which of the recording: one for one.
#[derive(Default)]
struct Ids {
    ours: Vec<GroupId>,
    theirs: Vec<GroupId>,
}

impl Ids {
    /// An item of ours, without its id.
    fn translated(&mut self, item: &DaemonItem) -> DaemonItem {
        let mut item = item.clone();
        self.ours.extend(blank(&mut item));
        item
    }

    /// The item of the recording, without its id.
    fn noted(&mut self, item: &DaemonItem) -> DaemonItem {
        let mut item = item.clone();
        self.theirs.extend(blank(&mut item));
        item
    }

    fn check(&self, scenario: &str) {
        assert_eq!(self.ours.len(), self.theirs.len());
        let pairs: BTreeSet<_> = self.ours.iter().zip(&self.theirs).collect();
        let ours: BTreeSet<_> = self.ours.iter().collect();
        let theirs: BTreeSet<_> = self.theirs.iter().collect();
        assert_eq!(
            (pairs.len(), pairs.len()),
            (ours.len(), theirs.len()),
            "{scenario}: {pairs:?}"
        );
        // What counts within a configuration is the same number, too.
        for (ours, theirs) in pairs {
            assert_eq!(ours.0[2], theirs.0[2], "{scenario}");
        }
    }
}

/// Takes the id out of an item, if it has one.
fn blank(item: &mut DaemonItem) -> Option<GroupId> {
    let DaemonItem::Frame(frame) = item else {
        return None;
    };
    let id = group_id(frame)?;
    let mut data = frame.data.to_vec();
    data[..GroupId::LEN].fill(0);
    frame.data = data.into();
    Some(id)
}
