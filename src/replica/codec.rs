//! What replicas say and what they agree on, as values and bytes.
//!
//! Messages are those of the group, `(method, arguments)`; the manual has a table of them:
//! [`replication`](crate::manual::replication). The body of an entry that is no transaction is a
//! pickle of a tuple. Either begins with the number of its format. All of it can be read by
//! Python's `pickletools`.
//!
//! What is read is what could have been written: no other types, nothing missing, nothing more.
//! Whether it makes sense, and whether it is of our history, is for the replica to say.

mod change;
mod fetch;
mod field;
mod message;

use std::fmt;

use crate::value::DecodeError;

pub use self::message::METHODS;

/// The format of messages, requests and answers. One that reads another one refuses it.
pub const MESSAGE_FORMAT: u64 = 1;

/// The format of entries that are no transactions.
pub const CHANGE_FORMAT: u64 = 1;

/// Why something of a peer, or in a journal, is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// It is no pickle of ours.
    Pickle {
        /// What it should be: a method, or the kind of an entry.
        of: &'static str,
        /// Why not.
        error: DecodeError,
    },
    /// It is a pickle of something else than arguments.
    NoArguments {
        /// What it should be.
        of: &'static str,
    },
    /// It is of another format: another version of the server.
    Format {
        /// What it is.
        of: &'static str,
        /// The number of its format.
        found: u64,
    },
    /// It ends before this argument.
    Missing {
        /// What it is.
        of: &'static str,
        /// The argument.
        argument: &'static str,
    },
    /// There are more arguments than there should be.
    TooMany {
        /// What it is.
        of: &'static str,
        /// So many.
        count: usize,
    },
    /// An argument is not what it should be.
    Argument {
        /// What it is.
        of: &'static str,
        /// The argument.
        argument: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is none of the messages that it should be one of.
    Method {
        /// What it should be.
        of: &'static str,
    },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pickle { of, error } => write!(f, "{of}: {error}"),
            Self::NoArguments { of } => write!(f, "{of}: no tuple of arguments"),
            Self::Format { of, found } => write!(f, "{of}: of format {found}, which is unknown"),
            Self::Missing { of, argument } => write!(f, "{of}: {argument} is missing"),
            Self::TooMany { of, count } => write!(f, "{of}: {count} arguments too many"),
            Self::Argument { of, argument, why } => write!(f, "{of}: {argument}: {why}"),
            Self::Method { of } => write!(f, "{of}: something else"),
        }
    }
}

impl std::error::Error for CodecError {}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use bytes::Bytes;

    use super::field::Field as _;
    use super::*;
    use crate::entry::{Entry, Point};
    use crate::group::{self, ViewId};
    use crate::ids::{DiskId, Epoch, HistoryId, NodeId, Oid, Seq, Tid};
    use crate::limits::{
        ENTRY_PIECES_MAX, FETCH_ENDS_MAX, FETCHED_ENTRIES_MAX, FETCHED_LEN_MAX,
        JOURNAL_BODY_LEN_MAX, SHARED_DATA_LEN_MIN, SITE_LEN_MAX, STORAGE_NAME_LEN_MAX,
    };
    use crate::replica::members::{Arbiter, Members, VOTERS_MAX, Voter};
    use crate::replica::message::PackStage;
    use crate::replica::message::{
        Content, Fetch, Fetched, Message, NodeKind, Position, Record, Role, Sender, State, Supply,
    };
    use crate::replica::settings::{Change, Kind, Pack, Settings};
    use crate::value::Value;

    fn voter(name: &str, disk: u8) -> Voter {
        Voter {
            node: NodeId::new(name).unwrap(),
            disk: DiskId([disk; 16]),
        }
    }

    fn epoch(counter: u64, name: &str) -> Epoch {
        let node = NodeId::new(name).unwrap();
        Epoch { counter, node }
    }

    fn position(counter: u64, seq: u64) -> Position {
        Position {
            epoch: epoch(counter, "n1"),
            seq: Seq(seq),
        }
    }

    fn members() -> Members {
        let voters = BTreeSet::from([voter("n1", 1), voter("n2", 2)]);
        let in_sync = BTreeSet::from([voter("n2", 2)]);
        let node = voter("arbiter", 0xff);
        Members {
            voters,
            arbiter: Some(Arbiter { node, in_sync }),
        }
    }

    fn settings() -> Settings {
        let pack = Pack {
            tid: Tid(0x0102_0304_0506_0708),
            at: Seq(u64::MAX),
        };
        Settings {
            members: members(),
            home: "Berlin \u{fc}".to_owned(),
            ceilings: BTreeMap::from([
                ("1".to_owned(), Oid(10_000)),
                (String::new(), Oid(u64::MAX)),
            ]),
            packs: BTreeMap::from([("1".to_owned(), pack)]),
            jump: Tid(5),
        }
    }

    fn changes() -> Vec<Change> {
        let longest = Settings {
            members: Members {
                voters: (0..VOTERS_MAX as u8)
                    .map(|disk| voter("0123456789", disk))
                    .collect(),
                arbiter: None,
            },
            home: "x".repeat(SITE_LEN_MAX),
            ceilings: BTreeMap::from([("y".repeat(STORAGE_NAME_LEN_MAX), Oid(1))]),
            packs: BTreeMap::new(),
            jump: Tid::ZERO,
        };
        vec![
            Change::Barrier(Settings::default()),
            Change::Barrier(settings()),
            Change::Barrier(longest),
            Change::Ceiling {
                storage: "main".to_owned(),
                oid: Oid(20_000),
            },
            Change::Members(members()),
            Change::Members(Members::default()),
            Change::Pack {
                storage: "main".to_owned(),
                tid: Tid(7),
            },
        ]
    }

    fn sender() -> Sender {
        Sender {
            history: HistoryId([0xaa; 16]),
            node: NodeId::new("n1").unwrap(),
            disk: DiskId([0xbb; 16]),
        }
    }

    fn entry_of(body: Vec<Bytes>) -> Entry {
        let start = Point::start(HistoryId([0xaa; 16]));
        Entry::new(&start, epoch(3, "n1"), 2, Tid(9), body).unwrap()
    }

    fn state() -> State {
        State {
            view: ViewId([5; 20]),
            promised: epoch(4, "n2"),
            last: position(3, 77),
            committed: Seq(70),
            applied: Seq(69),
            role: Role::Candidate,
            hears: None,
            kind: NodeKind::Observer,
            site: "Berlin".to_owned(),
            home: "Paris".to_owned(),
            members: members(),
            priority: u32::MAX,
            history_from: Tid(1),
            wall: Duration::new(1_795_222_013, 123_456_789),
        }
    }

    #[rustfmt::skip]
    fn contents() -> Vec<Content> {
        let record = Record { position: position(3, 5), members: members() };
        let long = Bytes::from(vec![7; SHARED_DATA_LEN_MIN]);
        let (epoch, to) = (epoch(3, "n1"), NodeId::new("n2").unwrap());
        let (last, seq, wall) = (position(3, 77), Seq(76), Duration::from_nanos(u64::MAX));
        let propose = |body: Vec<Bytes>| Content::Propose {
            previous: Epoch::ZERO,
            committed: Seq::ZERO,
            entry: entry_of(body),
        };
        vec![
            Content::State(Box::new(state())),
            Content::State(Box::new(State { hears: Some(epoch), role: Role::Primary, ..state() })),
            Content::State(Box::new(State { kind: NodeKind::Arbiter, ..state() })),
            Content::State(Box::new(State { role: Role::Replica, ..state() })),
            Content::Unblock { view: ViewId::default() },
            Content::Claim { epoch, handover: None },
            Content::Claim { epoch, handover: Some(Epoch::ZERO) },
            Content::Promise { epoch, last, record: None },
            Content::Promise { epoch, last, record: Some(record.clone()) },
            propose(vec![]),
            propose(vec![Bytes::from_static(b"one piece")]),
            propose(vec![Bytes::from_static(b"short"), long, Bytes::new()]),
            Content::Ack { epoch, seq, applied: Seq(u64::MAX), beat: 1 << 63 },
            Content::Commit { epoch, committed: seq, last, beat: 0, wall },
            Content::Handover { epoch, to },
            Content::Ask { epoch, id: 8 },
            Content::Told { epoch, id: 8, committed: seq },
            Content::Record(record),
            Content::Recorded(last),
            Content::Packing { epoch, stage: PackStage::Wanted },
            Content::Packing { epoch, stage: PackStage::Begun },
            Content::Packing { epoch, stage: PackStage::Done },
            Content::Pack { epoch, node: to },
        ]
    }

    /// Through the bytes that a group carries.
    fn read(method: &'static str, args: Vec<Value>) -> Result<Option<Message>, CodecError> {
        let bytes = group::message::encode(method, args).concat();
        let message = group::message::Message::decode(&bytes.into()).unwrap();
        Message::decode(&message)
    }

    #[test]
    fn changes_are_read_as_they_were_written() {
        for change in changes() {
            let body = change.encode();
            let read = Change::decode(change.kind(), &body).unwrap();
            assert_eq!(read, change);
            assert_eq!(read.encode(), body);
            let (one, other) = (body[0].slice(..3), body[0].slice(3..));
            assert_eq!(Change::decode(change.kind(), &[one, other]), Ok(change));
        }
    }

    #[test]
    fn a_change_has_one_form_which_pythons_pickletools_read() {
        let change = Change::Pack {
            storage: "1".to_owned(),
            tid: Tid(7),
        };
        let body = b"\x80\x03K\x01X\x01\0\0\x001C\x08\0\0\0\0\0\0\0\x07\x87.";
        assert_eq!(change.encode().concat(), body);
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let mut methods = BTreeSet::new();
        for content in contents() {
            let sender = sender();
            let message = Message { sender, content };
            let (method, args) = message.encode();
            methods.insert(method);
            let found = read(method, args.clone()).unwrap().unwrap();
            assert_eq!(found, message);
            assert_eq!(found.encode(), (method, args.clone()));
            // As they are when nobody wrote them.
            let unwritten = group::message::Message {
                method: method.to_owned(),
                args,
            };
            assert_eq!(Message::decode(&unwritten), Ok(Some(message)));
        }
        assert_eq!(methods, BTreeSet::from(METHODS));
    }

    #[test]
    fn messages_of_the_group_itself_are_not_ours() {
        for method in ["hello", "heartbeat", "credit", "", "STATE"] {
            assert_eq!(read(method, vec![]), Ok(None));
        }
    }

    #[test]
    fn each_argument_is_looked_at_and_none_may_be_missing_or_too_many() {
        for content in contents() {
            let sender = sender();
            let (method, args) = Message { sender, content }.encode();
            for count in 0..args.len() {
                let found = read(method, args[..count].to_vec());
                assert!(
                    matches!(found, Err(CodecError::Missing { of, .. }) if of == method),
                    "{method} {count}"
                );
                let mut wrong = args.clone();
                wrong[count] = Value::Float(1.5);
                let found = read(method, wrong);
                assert!(
                    matches!(found, Err(CodecError::Argument { of, .. }) if of == method),
                    "{method} {count}"
                );
            }
            let more = [args, vec![Value::None]].concat();
            let (of, count) = (method, 1);
            let error = CodecError::TooMany { of, count };
            assert_eq!(read(method, more), Err(error));
        }
    }

    #[test]
    fn an_error_names_method_and_argument() {
        let content = Content::Unblock {
            view: ViewId([1; 20]),
        };
        let sender = sender();
        let (method, mut args) = Message { sender, content }.encode();
        args[4] = Value::Bytes(Bytes::from_static(b"short"));
        let error = read(method, args.clone()).unwrap_err();
        assert_eq!(error.to_string(), "unblock: view: bytes of another length");
        args[0] = Value::Int(2);
        let error = read(method, args).unwrap_err();
        assert_eq!(error.to_string(), "unblock: of format 2, which is unknown");
    }

    #[test]
    fn an_entry_with_another_digest_is_refused() {
        let content = Content::Propose {
            previous: Epoch::ZERO,
            committed: Seq::ZERO,
            entry: entry_of(vec![Bytes::from_static(b"body")]),
        };
        let sender = sender();
        let (method, args) = Message { sender, content }.encode();
        let Value::Tuple(entry) = &args[6] else {
            panic!("{:?}", args[6]);
        };
        for number in 0..entry.len() {
            let mut entry = entry.clone();
            entry[number] = match &entry[number] {
                Value::Int(int) => Value::Int(int + 1),
                Value::Tuple(_) => epoch(9, "n1").to_value(),
                Value::Id(_) => Tid(0).to_value(),
                Value::Bytes(bytes) => Value::Bytes(vec![0; bytes.len()].into()),
                other => panic!("{other:?}"),
            };
            let mut args = args.clone();
            args[6] = Value::Tuple(entry);
            let error = read(method, args).unwrap_err();
            let expected = "propose: entry: the digest is that of another entry";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn the_body_of_an_entry_is_never_copied() {
        let body = Bytes::from(vec![7; SHARED_DATA_LEN_MIN]);
        let content = Content::Propose {
            previous: Epoch::ZERO,
            committed: Seq::ZERO,
            entry: entry_of(vec![body.clone()]),
        };
        let sender = sender();
        let (method, args) = Message { sender, content }.encode();
        let parts = group::message::encode(method, args);
        assert!(parts.iter().any(|part| part.as_ptr() == body.as_ptr()));
        let bytes = Bytes::from(parts.concat());
        let message = group::message::Message::decode(&bytes).unwrap();
        let Some(Message {
            content: Content::Propose { entry, .. },
            ..
        }) = Message::decode(&message).unwrap()
        else {
            panic!("{message:?}");
        };
        let within = bytes.as_ptr_range();
        assert!(within.contains(&entry.body()[0].as_ptr()));
    }

    #[test]
    fn a_body_of_many_pieces_is_the_same_body_in_fewer() {
        let long = Bytes::from(vec![1; SHARED_DATA_LEN_MIN]);
        let short = Bytes::from_static(b"ab");
        let mut body = vec![short.clone(); 3];
        body.push(long.clone());
        body.extend(vec![short; SHARED_DATA_LEN_MIN]);
        body.push(long);
        assert!(body.len() > ENTRY_PIECES_MAX);
        let entry = entry_of(body.clone());
        let content = Content::Propose {
            previous: Epoch::ZERO,
            committed: Seq::ZERO,
            entry: entry.clone(),
        };
        let sender = sender();
        let (method, args) = Message { sender, content }.encode();
        let found = read(method, args).unwrap().unwrap();
        let Content::Propose { entry: found, .. } = found.content else {
            panic!("{found:?}");
        };
        assert_eq!(found.header(), entry.header());
        assert_eq!(found.body().concat(), body.concat());
        let lens: Vec<usize> = found.body().iter().map(Bytes::len).collect();
        assert_eq!(lens, [6, 1024, 1024, 1024, 1024]);
    }

    #[test]
    fn an_entry_of_any_number_of_pieces_is_no_more_values_than_a_message_may_have() {
        let len = usize::try_from(JOURNAL_BODY_LEN_MAX).unwrap();
        let long = Bytes::from(vec![1; SHARED_DATA_LEN_MIN]);
        let pair = [Bytes::from_static(b"a"), long];
        let body: Vec<Bytes> = pair
            .iter()
            .cycle()
            .take(len / (SHARED_DATA_LEN_MIN + 1) * 2)
            .cloned()
            .collect();
        let content = Content::Propose {
            previous: Epoch::ZERO,
            committed: Seq::ZERO,
            entry: entry_of(body),
        };
        let sender = sender();
        let (method, args) = Message { sender, content }.encode();
        assert!(read(method, args).is_ok());
    }

    fn chain(count: u64) -> Vec<Entry> {
        let mut after = Point::start(HistoryId([0xaa; 16]));
        let next = |number: u64| {
            let body = vec![Bytes::from(number.to_string())];
            let entry = Entry::new(&after, epoch(3, "n1"), 2, Tid(number), body).unwrap();
            after = entry.point();
            entry
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn requests_and_answers_are_read_as_they_were_written() {
        for (is_claim, count) in [(true, 0), (false, FETCH_ENDS_MAX as u64)] {
            let fetch = Fetch {
                sender: sender(),
                id: 9,
                epoch: epoch(3, "n1"),
                is_claim,
                ends: (0..count).rev().map(|end| position(end, end)).collect(),
            };
            let bytes = Bytes::from(fetch.encode().concat());
            assert_eq!(Fetch::decode(&bytes), Ok(fetch));
            assert!(Fetched::decode(&bytes).is_err());
        }
        let after = Position::default();
        for what in [
            Supply::Entries {
                after,
                entries: chain(3),
            },
            Supply::Entries {
                after,
                entries: vec![],
            },
            Supply::Released { before: Seq(9) },
            Supply::Apart,
            Supply::Refused,
        ] {
            let fetched = Fetched {
                sender: sender(),
                id: 9,
                epoch: epoch(3, "n1"),
                what,
            };
            let bytes = Bytes::from(fetched.encode().concat());
            assert_eq!(Fetched::decode(&bytes), Ok(fetched));
            assert!(Fetch::decode(&bytes).is_err());
        }
    }

    #[test]
    fn entries_that_do_not_follow_one_another_are_refused() {
        let answer = |after, entries| {
            let fetched = Fetched {
                sender: sender(),
                id: 9,
                epoch: epoch(3, "n1"),
                what: Supply::Entries { after, entries },
            };
            Fetched::decode(&fetched.encode().concat().into()).map(|_| ())
        };
        let entries = chain(3);
        assert_eq!(answer(Position::default(), entries.clone()), Ok(()));
        assert_eq!(answer(position(3, 1), entries[1..].to_vec()), Ok(()));
        let error = Err(CodecError::Argument {
            of: "entries",
            argument: "entries",
            why: "they do not follow one another",
        });
        assert_eq!(answer(position(3, 1), entries.clone()), error);
        let hole = vec![entries[0].clone(), entries[2].clone()];
        assert_eq!(answer(Position::default(), hole), error);
    }

    #[test]
    fn an_entry_that_follows_another_one_of_the_same_number_is_refused() {
        let mut entries = chain(1);
        let other = Point {
            digest: chain(2)[1].point().digest,
            ..entries[0].point()
        };
        let body = vec![Bytes::from_static(b"body")];
        entries.push(Entry::new(&other, epoch(3, "n1"), 2, Tid(9), body).unwrap());
        let fetched = Fetched {
            sender: sender(),
            id: 9,
            epoch: epoch(3, "n1"),
            what: Supply::Entries {
                after: Position::default(),
                entries,
            },
        };
        let error = Fetched::decode(&fetched.encode().concat().into()).unwrap_err();
        let expected = "entries: entries: they do not follow one another";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn an_answer_of_any_entries_up_to_the_bounds_can_be_read() {
        let len = usize::try_from(FETCHED_LEN_MAX).unwrap() / FETCHED_ENTRIES_MAX;
        let long = Bytes::from(vec![1; SHARED_DATA_LEN_MIN]);
        let pair = [Bytes::from_static(b"a"), long];
        let bodies: [Vec<Bytes>; 2] = [
            vec![Bytes::from_static(b"a"); ENTRY_PIECES_MAX],
            pair.iter()
                .cycle()
                .take(len / (SHARED_DATA_LEN_MIN + 1) * 2)
                .cloned()
                .collect(),
        ];
        for body in bodies {
            let mut after = Point::start(HistoryId([0xaa; 16]));
            let entries = (0..FETCHED_ENTRIES_MAX).map(|_| {
                let entry = Entry::new(&after, epoch(3, "n1"), 2, Tid(9), body.clone()).unwrap();
                after = entry.point();
                entry
            });
            let fetched = Fetched {
                sender: sender(),
                id: u64::MAX,
                epoch: epoch(3, "n1"),
                what: Supply::Entries {
                    after: Position::default(),
                    entries: entries.collect(),
                },
            };
            let read = Fetched::decode(&fetched.encode().concat().into());
            assert_eq!(read, Ok(fetched));
        }
    }

    #[test]
    fn a_number_has_no_sign_and_64_bits_at_most() {
        for number in [0, 255, 1 << 31, i64::MAX as u64, 1 << 63, u64::MAX] {
            assert_eq!(u64::from_value(&number.to_value()), Ok(number));
        }
        assert_eq!(u64::from_value(&Value::Int(-1)), Err("below zero"));
        for bytes in [&[0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0xff; 9], &[1; 10]] {
            let long = Value::Long(Bytes::copy_from_slice(bytes));
            assert_eq!(u64::from_value(&long), Err("no number of 64 bits"));
        }
        assert_eq!(
            u32::from_value(&(1_u64 << 32).to_value()),
            Err("more than 32 bits")
        );
        assert_eq!(u8::from_value(&Value::Int(256)), Err("more than 8 bits"));
    }

    #[test]
    fn names_in_no_order_or_twice_are_refused() {
        for names in [["b", "a"], ["a", "a"]] {
            let ceilings = names.map(|name| (Value::text(name), Oid(1).to_value()));
            let parts = vec![
                CHANGE_FORMAT.to_value(),
                Members::default().to_value(),
                Value::text(""),
                Value::Dict(ceilings.to_vec()),
            ];
            let mut bytes = Vec::new();
            crate::pickle::encode(&mut bytes, &Value::Tuple(parts));
            let error = Change::decode(Kind::Barrier, &[bytes.into()]).unwrap_err();
            let expected = "barrier: ceilings: names are not in order";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn requests_with_too_many_ends_are_refused() {
        let fetch = Fetch {
            sender: sender(),
            id: 9,
            epoch: epoch(3, "n1"),
            is_claim: false,
            ends: vec![position(1, 1); FETCH_ENDS_MAX + 1],
        };
        let error = Fetch::decode(&fetch.encode().concat().into()).unwrap_err();
        assert_eq!(error.to_string(), "fetch: ends: too many of them");
    }

    #[test]
    fn changes_beyond_their_bounds_are_refused() {
        let barrier = |change: fn(&mut Settings)| {
            let mut settings = settings();
            change(&mut settings);
            let change = Change::Barrier(settings);
            Change::decode(Kind::Barrier, &change.encode()).map_err(|error| error.to_string())
        };
        assert!(barrier(|_| {}).is_ok());
        let error = |text: &str| Err(text.to_owned());
        let site = barrier(|settings| settings.home = "x".repeat(SITE_LEN_MAX + 1));
        assert_eq!(site, error("barrier: home: too long"));
        let name = barrier(|settings| {
            let name = "x".repeat(STORAGE_NAME_LEN_MAX + 1);
            settings.ceilings.insert(name, Oid(1));
        });
        assert_eq!(name, error("barrier: ceilings: too long"));
        let voters = barrier(|settings| {
            let voters = (0..=VOTERS_MAX as u8).map(|disk| voter("n", disk));
            settings.members.voters = voters.collect();
        });
        assert_eq!(voters, error("barrier: members: too many of them"));
    }

    #[test]
    fn bytes_that_are_no_change_are_refused() {
        let pack = Change::Pack {
            storage: "1".to_owned(),
            tid: Tid(7),
        };
        let body = pack.encode();
        let decode =
            |kind, body: &[Bytes]| Change::decode(kind, body).map_err(|error| error.to_string());
        let error = |text: &str| Err(text.to_owned());
        assert_eq!(
            decode(Kind::Transaction, &body),
            error("transaction: something else")
        );
        assert_eq!(
            decode(Kind::Barrier, &body),
            error("barrier: members: no tuple")
        );
        assert_eq!(
            decode(Kind::Pack, &[]),
            error("pack: ends within a value of 1 bytes at byte 0")
        );
        let none = Bytes::from_static(b"\x80\x03N.");
        assert_eq!(
            decode(Kind::Pack, &[none]),
            error("pack: no tuple of arguments")
        );
        // Twice the same voter, and two in the wrong order.
        for disks in [[1, 1], [2, 1]] {
            let voters = disks.map(|disk| voter("n", disk).to_value());
            let members = Value::Tuple(vec![Value::Tuple(voters.to_vec()), Value::None]);
            let parts = Value::Tuple(vec![CHANGE_FORMAT.to_value(), members]);
            let mut bytes = Vec::new();
            crate::pickle::encode(&mut bytes, &parts);
            assert_eq!(
                decode(Kind::Members, &[bytes.into()]),
                error("members: members: voters are not in order")
            );
        }
    }
}
