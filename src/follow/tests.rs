//! A follower between two servers that are played here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::ids::{Oid, Tid};
use crate::limits::METADATA_LEN_MAX;
use crate::value::Value;
use crate::zeo::base64::base64;
use crate::zeo::message::{Call, Encoding, Request};
use crate::zeo::session::{Incoming, Session};
use crate::zeo::{OutQueue, RemoteError};

const BLOB: &str = "cZODB.blob\nBlob\n.";

/// A transaction of a server that is played.
#[derive(Clone, Debug, PartialEq)]
struct Txn {
    tid: Tid,
    status: u8,
    user: &'static str,
    records: Vec<Record>,
}

/// Oid, data, and the transaction that had the same.
type Record = (u64, Option<Bytes>, Option<Tid>);

fn txn(tid: u64, records: &[(u64, &'static str)]) -> Txn {
    let record = |(oid, data): &(u64, &'static str)| {
        let data = (!data.is_empty()).then(|| Bytes::from_static(data.as_bytes()));
        (*oid, data, None)
    };
    Txn {
        tid: Tid(tid),
        status: b' ',
        user: "user",
        records: records.iter().map(record).collect(),
    }
}

fn packed(txn: Txn) -> Txn {
    Txn {
        status: b'p',
        ..txn
    }
}

/// A server that is played: what it has, and what was done to it.
#[derive(Debug, Default)]
struct Data {
    txns: Vec<Txn>,
    blobs: BTreeSet<(Oid, Tid)>,
    /// What writing calls came, in short.
    writes: Vec<String>,
    /// The next vote is refused.
    refuses: bool,
    /// Iterators end behind this, as at a damaged place.
    ends_at: Option<Tid>,
    /// This one is not given by them.
    hides: Option<Tid>,
    /// It is told of as soon as an iterator has ended.
    tells: Option<Tid>,
    /// There is no blob-dir.
    is_without_blobs: bool,
    /// What `lastTransaction` tells of besides what is there.
    claims: Option<Tid>,
    /// What `undoInfo` finds first.
    newest: Option<Tid>,
    /// The records of a transaction say that they are of the next one.
    is_confused: bool,
    /// Blobs that were asked for.
    asked: Vec<u64>,
}

impl Data {
    fn last(&self) -> Tid {
        let last = self.txns.last().map_or(Tid::ZERO, |txn| txn.tid);
        self.claims.map_or(last, |tid| tid.max(last))
    }

    fn revision(&self, oid: Oid, serial: Tid) -> Option<Value> {
        let txn = self.txns.iter().find(|txn| txn.tid == serial)?;
        let record = txn.records.iter().rfind(|record| record.0 == oid.0)?;
        record.1.clone().map(Value::Bytes)
    }

    fn serial_of(&self, oid: Oid) -> Option<Tid> {
        let has = |txn: &&Txn| txn.records.iter().any(|record| record.0 == oid.0);
        self.txns.iter().rfind(has).map(|txn| txn.tid)
    }
}

/// The connection to it.
#[derive(Debug)]
struct Played {
    session: Session,
    data: Rc<RefCell<Data>>,
    /// The transactions that an iterator has still to give, and the one that it gave.
    iterators: BTreeMap<i64, (Vec<Txn>, Option<Txn>)>,
    within: BTreeMap<i64, (Tid, Vec<Record>)>,
    next_iterator: i64,
    tid: Tid,
    /// Comes behind all else.
    raw: Vec<u8>,
}

impl Played {
    fn new(data: &Rc<RefCell<Data>>) -> Self {
        let mut session = Session::new(Encoding::Z);
        session.greet();
        Self {
            session,
            data: data.clone(),
            iterators: BTreeMap::new(),
            within: BTreeMap::new(),
            next_iterator: 0,
            tid: Tid::ZERO,
            raw: Vec::new(),
        }
    }

    fn answer(&mut self, call: Call) {
        let data = self.data.clone();
        let mut data = data.borrow_mut();
        let result = match call.request {
            Request::Register { .. } => {
                self.session.on_registered();
                Ok(data.last().into())
            }
            Request::LastTransaction => Ok(data.last().into()),
            Request::UndoInfo {
                first: 0, last: 1, ..
            } => Ok(Value::List(match data.newest {
                Some(tid) => {
                    let id = Value::Bytes(base64(&tid.to_bytes()).into());
                    vec![Value::Dict(vec![(Value::text("id"), id)])]
                }
                None => Vec::new(),
            })),
            Request::GetInfo => {
                let pair = vec![Value::text("ZODB.interfaces"), Value::text("IBlobStorage")];
                let all = Value::Tuple(vec![Value::Tuple(pair)]);
                Ok(Value::Dict(vec![(Value::text("interfaces"), all)]))
            }
            Request::GetTid { oid } => data
                .serial_of(oid)
                .map_or(Err(RemoteError::PosKey(oid)), |tid| Ok(tid.into())),
            Request::LoadSerial { oid, serial } => {
                data.revision(oid, serial).ok_or(RemoteError::PosKey(oid))
            }
            Request::IteratorStart { start, stop } => {
                let wanted = |txn: &&Txn| {
                    data.ends_at.is_none_or(|end| txn.tid <= end)
                        && data.hides != Some(txn.tid)
                        && start.is_none_or(|start| start <= txn.tid)
                        && stop.is_none_or(|stop| txn.tid <= stop)
                };
                let left = data.txns.iter().filter(wanted).rev().cloned().collect();
                self.next_iterator += 1;
                self.iterators.insert(self.next_iterator, (left, None));
                Ok(Value::Int(self.next_iterator))
            }
            Request::IteratorNext { iterator } => {
                if let Some(tid) = data.tells.take() {
                    let args = vec![tid.into(), Value::List(Vec::new())];
                    self.session.notify("invalidateTransaction", args);
                }
                Ok(self.next_txn(iterator))
            }
            Request::IteratorRecordStart { iterator, tid } => {
                let given = self.iterators[&iterator].1.clone().unwrap();
                assert_eq!(given.tid, tid);
                self.next_iterator += 1;
                let tid = Tid(tid.0 + u64::from(data.is_confused));
                self.within.insert(self.next_iterator, (tid, given.records));
                Ok(Value::Int(self.next_iterator))
            }
            Request::IteratorRecordNext { iterator } => Ok(self.next_record(iterator)),
            Request::SendBlob { oid, .. } if data.is_without_blobs => {
                data.asked.push(oid.0);
                Err(RemoteError::Type("Blobs are not supported".to_owned()))
            }
            Request::SendBlob { oid, serial } => match data.blobs.contains(&(oid, serial)) {
                false => {
                    data.asked.push(oid.0);
                    Err(RemoteError::BlobMissing { oid, serial })
                }
                true => {
                    data.asked.push(oid.0);
                    let of = || vec![Value::from(oid), Value::from(serial)];
                    self.session.notify("receiveBlobStart", of());
                    for piece in ["one", "two"] {
                        let piece = Value::Bytes(Bytes::from_static(piece.as_bytes()));
                        let args = [of(), vec![piece]].concat();
                        self.session.notify("receiveBlobChunk", args);
                    }
                    self.session.notify("receiveBlobStop", of());
                    Ok(Value::None)
                }
            },
            other => self.write(&mut data, other),
        };
        if !call.asynchronous {
            match result {
                Ok(value) => self.session.reply(&call.msgid, &value),
                Err(error) => self.session.fail(&call.msgid, &error),
            }
        }
    }

    fn next_txn(&mut self, iterator: i64) -> Value {
        let (left, given) = self.iterators.get_mut(&iterator).expect("an iterator");
        *given = left.pop();
        let Some(txn) = given else {
            self.iterators.remove(&iterator);
            return Value::None;
        };
        let status = Bytes::copy_from_slice(&[txn.status]);
        Value::Tuple(vec![
            txn.tid.into(),
            Value::Text(status),
            Value::Bytes(Bytes::from_static(txn.user.as_bytes())),
            Value::Bytes(Bytes::new()),
            Value::Dict(vec![(Value::text("key"), Value::Int(7))]),
        ])
    }

    fn next_record(&mut self, iterator: i64) -> Value {
        let (tid, left) = self.within.get_mut(&iterator).expect("an iterator");
        let tid = *tid;
        if left.is_empty() {
            self.within.remove(&iterator);
            return Value::None;
        }
        let (oid, data, data_txn) = left.remove(0);
        Value::Tuple(vec![
            Oid(oid).into(),
            tid.into(),
            data.map_or(Value::None, Value::Bytes),
            data_txn.map_or(Value::None, Value::from),
        ])
    }

    fn write(&mut self, data: &mut Data, request: Request) -> Result<Value, RemoteError> {
        let note = match request {
            Request::TpcBegin { tid, extension, .. } => {
                self.tid = tid.unwrap();
                let Value::Dict(items) = extension else {
                    panic!("no dict");
                };
                let [(_, Value::Bytes(pickle))] = &items[..] else {
                    panic!("{items:?}");
                };
                assert_eq!(pickle[..], *b"\x80\x03}X\x03\0\0\0keyK\x07s.");
                format!("begin {}", self.tid.0)
            }
            Request::Restorea { oid, data, .. } => {
                format!("{} {}", oid.0, data.map_or(0, |data| data.len()))
            }
            Request::StoreBlobStart => "blob".to_owned(),
            Request::StoreBlobChunk { chunk } => format!("+{}", chunk.len()),
            Request::StoreBlobEnd { oid, serial, .. } => {
                format!("end {} {}", oid.0, serial.unwrap().0)
            }
            Request::Vote { .. } if data.refuses => {
                return Err(RemoteError::Type("no room".to_owned()));
            }
            Request::Vote { .. } => "vote".to_owned(),
            Request::TpcFinish { .. } => {
                data.writes.push("finish".to_owned());
                data.txns.push(txn(self.tid.0, &[]));
                return Ok(self.tid.into());
            }
            Request::TpcAbort { .. } => "abort".to_owned(),
            _ => return Ok(Value::None),
        };
        data.writes.push(note);
        Ok(Value::List(Vec::new()))
    }
}

impl Wire for Played {
    fn send(&mut self, out: &mut OutQueue) -> io::Result<()> {
        self.session.receive(&std::mem::take(out).into_bytes());
        while let Some(incoming) = self.session.next_call().unwrap() {
            let Incoming::Call(call) = incoming else {
                panic!("{incoming:?}");
            };
            self.answer(call);
        }
        Ok(())
    }

    fn receive(&mut self, _: Duration, give: &mut dyn FnMut(&[u8])) -> io::Result<Came> {
        let mut bytes = std::mem::take(&mut self.session.out).into_bytes().to_vec();
        bytes.append(&mut self.raw);
        if bytes.is_empty() {
            return Ok(Came::Nothing);
        }
        give(&bytes);
        Ok(Came::Bytes)
    }
}

struct Pair {
    source: Rc<RefCell<Data>>,
    ours: Rc<RefCell<Data>>,
}

impl Pair {
    fn new(source: &[Txn], ours: &[Txn]) -> Self {
        let data = |txns: &[Txn]| {
            Rc::new(RefCell::new(Data {
                txns: txns.to_vec(),
                ..Data::default()
            }))
        };
        Self {
            source: data(source),
            ours: data(ours),
        }
    }

    fn begin(&self) -> Result<Follower<Played, Played>, Trouble> {
        self.begin_knowing(&mut Known::default())
    }

    fn begin_knowing(&self, known: &mut Known) -> Result<Follower<Played, Played>, Trouble> {
        let source = Conversation::open(Side::Source, Played::new(&self.source))?;
        let ours = Conversation::open(Side::Ours, Played::new(&self.ours))?;
        Follower::begin((source, "1"), (ours, "1"), known)
    }

    /// What is copied, in short.
    fn copy(&self) -> String {
        self.begin().unwrap().catch_up(&mut |_| {}).unwrap();
        self.ours.borrow().writes.join(", ")
    }

    /// Why nothing is.
    fn refusal(&self) -> String {
        match self.begin() {
            Err(Trouble::Stop(why)) => why,
            Err(trouble) => panic!("{trouble:?}"),
            Ok(_) => String::new(),
        }
    }

    /// Why nothing more is.
    fn stopped(&self) -> String {
        match self.begin().unwrap().catch_up(&mut |_| {}) {
            Err(Trouble::Stop(why)) => why,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_missing_here_is_copied_in_order() {
    let source = [
        txn(1, &[(0, "a")]),
        txn(2, &[(0, "bb"), (1, "")]),
        txn(5, &[]),
    ];
    let pair = Pair::new(&source, &source[..1]);
    let expected = "begin 2, 0 2, 1 0, vote, finish, begin 5, vote, finish";
    assert_eq!(pair.copy(), expected);
    let none = Pair::new(&source, &source);
    assert_eq!(none.copy(), "");
}

#[test]
fn a_blob_comes_with_its_record_once() {
    let pair = Pair::new(&[txn(3, &[(1, BLOB), (1, BLOB), (2, "x")])], &[]);
    pair.source.borrow_mut().blobs.insert((Oid(1), Tid(3)));
    let expected = "begin 3, blob, +3, +3, end 1 0, 2 1, vote, finish";
    assert_eq!(pair.copy(), expected);
}

#[test]
fn blobs_that_are_lost_are_asked_for_twice_and_then_done_without() {
    let source = [
        txn(3, &[(1, BLOB), (2, BLOB), (5, BLOB), (6, "x")]),
        txn(4, &[]),
    ];
    let pair = Pair::new(&source, &[]);
    pair.source.borrow_mut().blobs.insert((Oid(5), Tid(3)));
    let len = BLOB.len();
    let again = format!(
        "begin 3, 1 {len}, 2 {len}, blob, +3, +3, end 5 0, 6 1, vote, finish, begin 4, vote, finish"
    );
    let mut follower = pair.begin().unwrap();
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
    let progress = follower.progress();
    let counts = (progress.transactions, progress.records, progress.blobs);
    assert_eq!(counts, (2, 4, 1));
    let writes = std::mem::take(&mut pair.ours.borrow_mut().writes).join(", ");
    assert_eq!(writes, format!("begin 3, abort, {again}"));
    assert_eq!(pair.source.borrow().asked, [1, 2, 5, 1, 2, 5]);

    // The one that asked first has lost its connection before it could do so again.
    let pair = Pair::new(&source, &[]);
    pair.source.borrow_mut().blobs.insert((Oid(5), Tid(3)));
    pair.ours.borrow_mut().refuses = true;
    let mut follower = pair.begin().unwrap();
    assert!(follower.catch_up(&mut |_| {}).is_err());
    pair.ours.borrow_mut().refuses = false;
    pair.ours.borrow_mut().writes.clear();
    let mut known = follower.into_known();
    let mut follower = pair.begin_knowing(&mut known).unwrap();
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
    assert_eq!(pair.ours.borrow().writes.join(", "), again);
}

#[test]
fn a_source_that_keeps_no_blobs_is_asked_for_them_once() {
    let len = BLOB.len();
    let source = [txn(3, &[(1, BLOB), (2, BLOB)]), txn(4, &[(1, BLOB)])];
    let pair = Pair::new(&source, &[]);
    pair.source.borrow_mut().is_without_blobs = true;
    let expected =
        format!("begin 3, 1 {len}, 2 {len}, vote, finish, begin 4, 1 {len}, vote, finish");
    assert_eq!(pair.copy(), expected);
    assert_eq!(pair.source.borrow().asked, [1]);
}

#[test]
fn it_is_level_only_with_all_that_the_source_has_told_of() {
    let source = [txn(1, &[]), txn(2, &[]), txn(3, &[])];
    let pair = Pair::new(&source, &[]);
    pair.source.borrow_mut().ends_at = Some(Tid(2));
    let mut follower = pair.begin().unwrap();
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
    assert_eq!(follower.progress().last, Tid(2));
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
    pair.source.borrow_mut().ends_at = None;
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
    // It tells of one more while it is asked.
    pair.source.borrow_mut().txns.push(txn(4, &[]));
    pair.source.borrow_mut().tells = Some(Tid(5));
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::More));
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
}

#[test]
fn a_transaction_that_was_not_finished_keeps_nobody_from_being_level() {
    let pair = Pair::new(&[txn(1, &[]), txn(2, &[])], &[]);
    let mut follower = {
        let mut source = pair.source.borrow_mut();
        (source.claims, source.newest) = (Some(Tid(3)), Some(Tid(2)));
        drop(source);
        pair.begin().unwrap()
    };
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
    assert_eq!(
        (follower.progress().last, follower.told()),
        (Tid(2), Tid(2))
    );
    // It is told again, and looked for again.
    follower.wait().unwrap();
    assert_eq!(follower.told(), Tid(3));
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
    pair.source.borrow_mut().txns.push(txn(4, &[]));
    follower.wait().unwrap();
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
    assert_eq!(follower.progress().last, Tid(4));
    // What is behind a damaged place is found from the end on.
    let mut source = pair.source.borrow_mut();
    source.txns.extend([txn(5, &[]), txn(6, &[])]);
    (source.ends_at, source.newest) = (Some(Tid(5)), Some(Tid(6)));
    drop(source);
    follower.wait().unwrap();
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
    // It was told of when it was committed, and is cut off: the end of the file was damaged.
    let mut source = pair.source.borrow_mut();
    (source.tells, source.newest) = (Some(Tid(6)), Some(Tid(5)));
    drop(source);
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
    // All of it was packed.
    pair.source.borrow_mut().newest = None;
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
}

#[test]
fn what_was_heard_of_before_the_connection_was_lost_has_to_come() {
    let pair = Pair::new(&[txn(1, &[]), txn(2, &[])], &[]);
    let mut follower = pair.begin().unwrap();
    pair.source.borrow_mut().tells = Some(Tid(3));
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::More));
    // It has lost that when it is there again.
    pair.source.borrow_mut().newest = Some(Tid(2));
    let mut known = follower.into_known();
    let mut follower = pair.begin_knowing(&mut known).unwrap();
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Short));
    assert_eq!(follower.told(), Tid(3));
    pair.source.borrow_mut().txns.push(txn(4, &[]));
    assert_eq!(follower.catch_up(&mut |_| {}), Ok(Reached::Level));
}

#[test]
fn what_can_never_be_copied_ends_it() {
    let stopped = |source: &[Txn]| Pair::new(source, &[]).stopped();
    let why = stopped(&[txn(3, &[]), txn(2, &[])]);
    assert!(why.contains("behind 0000000000000003"), "{why}");
    let why = stopped(&[txn(Tid::END.0, &[])]);
    assert!(why.contains("has a tid that none can have"), "{why}");
    let why = stopped(&[txn(1, &[(Oid::END.0, "x")])]);
    assert!(why.contains("an oid that none can have"), "{why}");
    let empty = Txn {
        records: vec![(1, Some(Bytes::new()), None)],
        ..txn(1, &[])
    };
    assert!(stopped(&[empty]).contains("has no data"));
    let long = Txn {
        user: "u".repeat(METADATA_LEN_MAX + 1).leak(),
        ..txn(1, &[])
    };
    let why = stopped(&[long]);
    assert!(
        why.contains("user, description or extension that is too long"),
        "{why}"
    );
}

#[test]
fn a_record_of_another_transaction_is_not_copied() {
    let pair = Pair::new(&[txn(3, &[(1, "x")])], &[]);
    pair.source.borrow_mut().is_confused = true;
    let trouble = pair.begin().unwrap().catch_up(&mut |_| {});
    let Err(Trouble::Lost { why, .. }) = trouble else {
        panic!("{trouble:?}");
    };
    assert!(why.contains("no record of 0000000000000003"), "{why}");
    assert_eq!(pair.ours.borrow().writes.join(", "), "");
}

#[test]
fn what_nobody_asked_for_is_named_without_what_is_in_it() {
    let pair = Pair::new(&[], &[]);
    let mut source = Conversation::open(Side::Source, Played::new(&pair.source)).unwrap();
    // A notice may come at any time; an answer to no call may not.
    let secret = vec![Value::text("secret")];
    source.wire_mut().session.notify("info", secret);
    source.wait_for_news(Tid::ZERO, Duration::ZERO).unwrap();
    let long = Value::Text(Bytes::from(vec![b'x'; 1 << 20]));
    source.wire_mut().session.reply(&Value::Int(77), &long);
    let trouble = source.wait_for_news(Tid::ZERO, Duration::ZERO);
    let Err(Trouble::Lost { why, .. }) = trouble else {
        panic!("{trouble:?}");
    };
    assert_eq!(why, "unexpected: an answer to call 77");
}

#[test]
fn a_frame_that_is_too_long_ends_it_and_a_greeting_that_is_not() {
    let long = [0xff; 4];
    let pair = Pair::new(&[], &[]);
    let mut source = Conversation::open(Side::Source, Played::new(&pair.source)).unwrap();
    source.wire_mut().raw.extend(long);
    let trouble = source.wait_for_news(Tid::ZERO, Duration::ZERO);
    assert!(matches!(trouble, Err(Trouble::Stop(_))), "{trouble:?}");
    // Who begins like that is no ZEO server at all, and another address may have one.
    let mut other = Played::new(&pair.source);
    other.session.out = OutQueue::default();
    other.raw.extend(long);
    let trouble = Conversation::open(Side::Source, other).err();
    assert!(matches!(trouble, Some(Trouble::Lost { .. })), "{trouble:?}");
}

#[test]
fn nothing_follows_a_vote_that_is_refused() {
    let pair = Pair::new(&[txn(3, &[]), txn(4, &[])], &[]);
    pair.ours.borrow_mut().refuses = true;
    let trouble = pair.begin().unwrap().catch_up(&mut |_| {});
    assert!(matches!(
        trouble,
        Err(Trouble::Lost {
            side: Side::Ours,
            ..
        })
    ));
    assert_eq!(pair.ours.borrow().writes.join(", "), "begin 3");
}

#[test]
fn another_history_is_not_followed() {
    let common = txn(1, &[(0, "a")]);
    let last = txn(2, &[(0, "b"), (1, "c")]);
    let here = [common.clone(), last.clone()];
    let refusal = |there: &[Txn]| Pair::new(there, &here).refusal();
    let after = txn(3, &[(5, "x")]);

    assert_eq!(refusal(&[common.clone(), last.clone(), after.clone()]), "");
    // It is behind, which may be so for a moment.
    let trouble = Pair::new(&here[..1], &here).begin().err();
    assert!(matches!(trouble, Some(Trouble::Behind(_))), "{trouble:?}");
    // It was: the last one is not there, or another one, or has other records.
    assert!(refusal(&[common.clone(), after.clone()]).contains("was not packed"));
    for records in [
        &[(0, "b"), (1, "C")][..],
        &[(0, "b")],
        &[(0, "b"), (1, "c"), (2, "d")],
        &[(0, "b"), (1, "")],
    ] {
        let other = txn(2, records);
        let why = refusal(&[common.clone(), other, after.clone()]);
        assert!(why.contains("differs in object"), "{why}");
    }
    let other = Txn {
        user: "other",
        ..last
    };
    assert!(refusal(&[common, other]).contains("differs in user"));
}

#[test]
fn a_source_that_was_packed_is_followed_if_what_is_left_is_the_same() {
    let here = [txn(1, &[(0, "a")]), txn(2, &[(0, "b"), (1, "c")])];
    let refusal = |there: &[Txn]| Pair::new(there, &here).refusal();
    let next = packed(txn(3, &[(0, "x")]));

    assert_eq!(refusal(&[packed(txn(2, &[(1, "c")])), next.clone()]), "");
    let other = packed(txn(2, &[(1, "C")]));
    assert!(refusal(&[other, next.clone()]).contains("differs in object"));
    // One has an older one: that is not what we know.
    let older = packed(txn(1, &[(1, "c")]));
    assert!(refusal(&[older, next]).contains("is older there"));
}

#[test]
fn a_source_that_has_packed_the_last_one_away_has_to_have_something_before_it() {
    const OLD: u64 = 50_000 << 32;
    let here = [
        txn(OLD - (1 << 45), &[(7, "first")]),
        txn(OLD, &[(3, "d"), (4, "e")]),
        txn(OLD + 1, &[(0, "a")]),
        txn(OLD + 2, &[(0, "b"), (1, "c")]),
    ];
    let refusal = |there: &[Txn]| Pair::new(there, &here).refusal();
    let next = packed(txn(OLD + 3, &[(0, "x")]));

    // All of the last one has newer revisions, or was collected.
    let kept = packed(txn(OLD, &[(3, "d")]));
    assert_eq!(refusal(&[kept, next.clone()]), "");
    let first = packed(here[0].clone());
    assert_eq!(refusal(&[first.clone(), next.clone()]), "");
    // The whole file was written anew since, or all that was changed here for long.
    let why = refusal(std::slice::from_ref(&next));
    assert!(why.contains("nothing of what was changed last"), "{why}");
    for other in [
        txn(OLD, &[(3, "D")]),
        txn(OLD - 1, &[(4, "e")]),
        txn(OLD + 1, &[(3, "d")]),
    ] {
        let why = refusal(&[first.clone(), packed(other), next.clone()]);
        assert!(why.contains("is another one there"), "{why}");
    }
    // A record of a transaction that is not there.
    let pair = Pair::new(&[first.clone(), packed(here[3].clone()), next], &here);
    pair.source.borrow_mut().hides = Some(here[3].tid);
    let why = pair.refusal();
    assert!(why.contains("which it gives not"), "{why}");
}

#[test]
fn who_has_packed_its_own_last_one_away_compares_what_is_before_it() {
    let there = [
        txn(1, &[(0, "a")]),
        txn(2, &[(5, "b")]),
        txn(3, &[(6, "c")]),
    ];
    let other = [txn(1, &[(0, "A")]), there[1].clone(), there[2].clone()];
    for (source, expected) in [(&there, ""), (&other, "its history is another one: object")] {
        let pair = Pair::new(source, &there[..2]);
        pair.ours.borrow_mut().hides = Some(Tid(2));
        let why = pair.refusal();
        assert!(
            why.starts_with(expected) && why.is_empty() == expected.is_empty(),
            "{why}"
        );
    }
}
