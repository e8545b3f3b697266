//! What replicas say to each other, and entries that are no transactions.

use std::collections::BTreeSet;
use std::time::Duration;

use standby::entry::Point;
use standby::group::ViewId;
use standby::ids::Seq;
use standby::replica::codec::METHODS;
use standby::replica::members::{Arbiter, Members, Voter};
use standby::replica::message::{
    Content, Fetch, Fetched, Message, NodeKind, PackStage, Position, Record, Role, Sender, State,
    Supply,
};
use standby::replica::settings::{Change, Kind, Pack, Settings};

use super::*;

/// What replicas say, ask and answer, as bytes; and the bodies of entries.
fn said_by_replicas() -> [Vec<Vec<u8>>; 2] {
    let node = |name| NodeId::new(name).unwrap();
    let voter = |name, disk| Voter {
        node: node(name),
        disk: DiskId([disk; 16]),
    };
    let voters = BTreeSet::from([voter("n1", 1), voter("n2", 2)]);
    let arbiter = Some(Arbiter {
        node: voter("n3", 3),
        in_sync: voters.clone(),
    });
    let members = Members { voters, arbiter };
    let settings = Settings {
        members: members.clone(),
        home: "Berlin".to_owned(),
        ceilings: [("1".to_owned(), Oid(7)), ("2".to_owned(), Oid(8))].into(),
        packs: [(
            "1".to_owned(),
            Pack {
                tid: Tid(5),
                at: Seq(6),
            },
        )]
        .into(),
        ..Settings::default()
    };
    let (storage, oid, tid) = ("1".to_owned(), Oid(7), Tid(8));
    let changes = [
        Change::Barrier(settings),
        Change::Ceiling {
            storage: storage.clone(),
            oid,
        },
        Change::Members(members.clone()),
        Change::Pack { storage, tid },
    ];
    let epoch = Epoch {
        counter: 7,
        node: node("n1"),
    };
    let mut last = Point::start(HistoryId([1; 16]));
    let entries = changes.iter().map(|change| {
        let kind = change.kind().number();
        let entry = Entry::new(&last, epoch, kind, Tid(9), change.encode()).unwrap();
        last = entry.point();
        entry
    });
    let entries: Vec<Entry> = entries.collect();
    let position = Position {
        epoch,
        seq: Seq(u64::MAX),
    };
    let view = ViewId([5; 20]);
    let sender = Sender {
        history: HistoryId([1; 16]),
        node: node("n1"),
        disk: DiskId([1; 16]),
    };
    let contents = [
        Content::State(Box::new(State {
            view,
            promised: epoch,
            last: position,
            committed: Seq(3),
            applied: Seq(2),
            role: Role::Primary,
            hears: Some(epoch),
            kind: NodeKind::Data,
            site: "Berlin".to_owned(),
            home: "Paris".to_owned(),
            members: members.clone(),
            priority: 5,
            history_from: tid,
            wall: Duration::from_secs(1_795_222_013),
        })),
        Content::Unblock { view },
        Content::Claim {
            epoch,
            handover: Some(epoch),
        },
        Content::Promise {
            epoch,
            last: position,
            record: Some(Record {
                position,
                members: members.clone(),
            }),
        },
        Content::Propose {
            previous: epoch,
            committed: Seq(1),
            entry: entries[0].clone(),
        },
        Content::Ack {
            epoch,
            seq: Seq(1),
            applied: Seq(1),
            beat: 2,
        },
        Content::Commit {
            epoch,
            committed: Seq(1),
            last: position,
            beat: 2,
            wall: Duration::from_secs(9),
        },
        Content::Handover {
            epoch,
            to: node("n2"),
        },
        Content::Ask { epoch, id: 3 },
        Content::Told {
            epoch,
            id: 3,
            committed: Seq(4),
        },
        Content::Record(Record { position, members }),
        Content::Recorded(position),
        Content::Packing {
            epoch,
            stage: PackStage::Begun,
        },
        Content::Pack {
            epoch,
            node: node("n2"),
        },
    ];
    let said = contents.into_iter().map(|content| {
        let (method, args) = Message { sender, content }.encode();
        group::message::encode(method, args).concat()
    });
    let fetch = Fetch {
        sender,
        id: 1,
        epoch,
        is_claim: true,
        ends: vec![position; 3],
    };
    let after = Position::default();
    let what = Supply::Entries { after, entries };
    let fetched = Fetched {
        sender,
        id: 1,
        epoch,
        what,
    };
    let mut said: Vec<Vec<u8>> = said.collect();
    assert_eq!(said.len(), METHODS.len());
    said.extend([fetch.encode().concat(), fetched.encode().concat()]);
    [said, changes.map(|change| change.encode().concat()).into()]
}

#[test]
fn mutated_messages_and_entries_of_replicas_are_read_or_refused() {
    let [said, bodies] = said_by_replicas();
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    let (mut read, mut refused) = (0, 0);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let corpus = [&said, &bodies][random.below(2)];
        let mut input = random.choose(corpus).clone();
        for _ in 0..=random.below(3) {
            mutate(&mut random, &mut input, corpus);
        }
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &input,
        };
        let memory_max = 48 * VALUES_PER_MESSAGE_MAX + 200 * input.len() + 4096;
        let is_read = Cell::new(false);
        check_memory("replica", memory_max, || {
            is_read.set(check(&Bytes::copy_from_slice(&input)));
        });
        *if is_read.get() {
            &mut read
        } else {
            &mut refused
        } += 1;
    }
    assert!(read > 100 && refused > 100, "{read} {refused}");
}

/// Whether it can be read as anything; what can be is written as it was understood.
pub(super) fn check(input: &Bytes) -> bool {
    let mut is_read = false;
    if let Ok(said) = group::message::Message::decode(input) {
        match Message::decode(&said) {
            Ok(Some(message)) => {
                let (method, args) = message.encode();
                assert_eq!(method, said.method);
                let again = group::message::encode(method, args).concat();
                let again = group::message::Message::decode(&again.into()).unwrap();
                assert_eq!(Message::decode(&again), Ok(Some(message)));
                is_read = true;
            }
            Ok(None) => {}
            // An error must also be able to say what it is.
            Err(error) => drop(error.to_string()),
        }
    }
    if let Ok(fetch) = Fetch::decode(input).map_err(|error| error.to_string()) {
        assert_eq!(Fetch::decode(&fetch.encode().concat().into()), Ok(fetch));
        is_read = true;
    }
    if let Ok(fetched) = Fetched::decode(input).map_err(|error| error.to_string()) {
        assert_eq!(
            Fetched::decode(&fetched.encode().concat().into()),
            Ok(fetched)
        );
        is_read = true;
    }
    for number in 0..=u8::MAX {
        let Some(kind) = Kind::from_number(number) else {
            continue;
        };
        let body = [input.clone()];
        if let Ok(change) = Change::decode(kind, &body).map_err(|error| error.to_string()) {
            assert_eq!(change.kind(), kind);
            assert_eq!(Change::decode(kind, &change.encode()), Ok(change));
            is_read = true;
        }
    }
    is_read
}
