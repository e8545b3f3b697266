//! Whether the source has the history that this server has: what was copied last is compared with
//! what is there.
//!
//! A source that was packed since has less of it, or nothing. Then it must say so by its status
//! `p`, and what is left must be the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use super::conversation::{Conversation, Trouble, Wire};
use crate::ids::{Oid, Tid};
use crate::limits::{FOLLOW_OIDS_ASKED, FOLLOW_OIDS_KEPT};
use crate::value::Value;
use crate::zeo::base64::from_base64;

/// Status of a transaction that was packed.
const PACKED: &[u8] = b"p";

/// How far back from the last transaction others are looked for, in minutes: each time that none
/// was of use. The upper half of a tid counts minutes; the last span has all.
const SPANS: [u64; 6] = [
    60,
    24 * 60,
    14 * 24 * 60,
    180 * 24 * 60,
    5 * 365 * 24 * 60,
    1 << 32,
];

/// A transaction as an iterator gives it.
#[derive(Debug)]
pub(super) struct Txn {
    pub(super) tid: Tid,
    pub(super) status: Bytes,
    pub(super) user: Bytes,
    pub(super) description: Bytes,
    pub(super) extension: Value,
    /// The whole answer.
    pub(super) frame: Bytes,
}

/// One of its records.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) oid: Oid,
    /// `None` if there is no object as of it.
    pub(super) data: Option<Bytes>,
    /// The transaction that had the same data.
    pub(super) data_txn: Option<Tid>,
}

/// Begins to iterate over the transactions between two, both included.
pub(super) fn transactions<W: Wire>(
    of: &mut Conversation<W>,
    start: Tid,
    stop: Option<Tid>,
) -> Result<Value, Trouble> {
    // That nothing is left out is said by None, not by a tid that no transaction has.
    let start = match start {
        Tid(0..=1) => Value::None,
        start => start.into(),
    };
    let stop = stop.map_or(Value::None, Value::from);
    of.ask("iterator_start", vec![start, stop])
}

/// The next one.
pub(super) fn next_transaction<W: Wire>(
    of: &mut Conversation<W>,
    iterator: &Value,
) -> Result<Option<Txn>, Trouble> {
    let reply = of.call("iterator_next", vec![iterator.clone()])?;
    let frame = reply.frame.clone();
    let value = of.value_of("iterator_next", reply)?;
    if value == Value::None {
        return Ok(None);
    }
    let read = |value: Value| {
        let Value::Tuple(parts) = value else {
            return None;
        };
        let [tid, status, user, description, extension] = <[Value; 5]>::try_from(parts).ok()?;
        Some(Txn {
            tid: Tid::from_slice(tid.string()?)?,
            status: status.string()?.clone(),
            user: user.string()?.clone(),
            description: description.string()?.clone(),
            extension,
            frame,
        })
    };
    match read(value) {
        Some(txn) => Ok(Some(txn)),
        None => Err(of.lost("iterator_next: no transaction")),
    }
}

/// The last transaction that a storage of files has, as it finds it from the end of its file on, in
/// which no damage of what is in front of that is in the way. `None` if it cannot say so: it keeps
/// no undo information, or has packed all.
pub(super) fn newest<W: Wire>(of: &mut Conversation<W>) -> Result<Option<Tid>, Trouble> {
    let reply = of.call("undoInfo", vec![Value::Int(0), Value::Int(1), Value::None])?;
    let Ok(Value::List(entries)) = reply.result else {
        return Ok(None);
    };
    let Some(Value::Dict(entry)) = entries.first() else {
        return Ok(None);
    };
    let is_id = |(key, _): &&(Value, Value)| key.string().is_some_and(|key| key[..] == *b"id");
    let id = entry.iter().find(is_id).and_then(|(_, id)| id.string());
    Ok(id.and_then(|id| from_base64(id)).map(Tid::from_bytes))
}

/// Begins to iterate over the records of the transaction that an iterator gave last.
pub(super) fn records<W: Wire>(
    of: &mut Conversation<W>,
    iterator: &Value,
    tid: Tid,
) -> Result<Value, Trouble> {
    of.ask("iterator_record_start", vec![iterator.clone(), tid.into()])
}

/// The next one. `tid` is that of the transaction.
pub(super) fn next_record<W: Wire>(
    of: &mut Conversation<W>,
    iterator: &Value,
    tid: Tid,
) -> Result<Option<Record>, Trouble> {
    let read = |value: Value| {
        let Value::Tuple(parts) = value else {
            return None;
        };
        let [oid, own, data, data_txn] = <[Value; 4]>::try_from(parts).ok()?;
        if Tid::from_slice(own.string()?)? != tid {
            return None;
        }
        Some(Record {
            oid: Oid::from_slice(oid.string()?)?,
            data: match data {
                Value::None => None,
                data => Some(data.string()?.clone()),
            },
            data_txn: match data_txn {
                Value::None => None,
                tid => Some(Tid::from_slice(tid.string()?)?),
            },
        })
    };
    match of.ask("iterator_record_next", vec![iterator.clone()])? {
        Value::None => Ok(None),
        value => match read(value) {
            Some(record) => Ok(Some(record)),
            None => Err(of.lost(format!("iterator_record_next: no record of {tid}"))),
        },
    }
}

/// What a transaction is compared by. Of an object that is in it twice the last record counts.
#[derive(Debug, PartialEq)]
struct Content {
    is_packed: bool,
    user: Bytes,
    description: Bytes,
    records: BTreeMap<Oid, Option<[u8; 32]>>,
}

impl Content {
    /// `None` if the server has no such transaction.
    fn read<W: Wire>(of: &mut Conversation<W>, tid: Tid) -> Result<Option<Self>, Trouble> {
        let iterator = transactions(of, tid, Some(tid))?;
        let Some(txn) = next_transaction(of, &iterator)? else {
            return Ok(None);
        };
        if txn.tid != tid {
            return Err(of.lost(format!("asked for {tid} it gives {}", txn.tid)));
        }
        let within = records(of, &iterator, tid)?;
        let mut records = BTreeMap::new();
        while let Some(record) = next_record(of, &within, tid)? {
            let digest = record.data.map(|data| {
                let digest = digest(&SHA256, &data);
                <[u8; 32]>::try_from(digest.as_ref()).expect("SHA-256 has 32 bytes")
            });
            records.insert(record.oid, digest);
        }
        of.send("iterator_gc", vec![Value::List(vec![iterator])])?;
        Ok(Some(Self {
            is_packed: txn.status[..] == *PACKED,
            user: txn.user,
            description: txn.description,
            records,
        }))
    }

    /// In what it differs from that of the source, if it does in more than packing explains.
    fn difference(&self, theirs: &Self) -> Option<String> {
        if (&self.user, &self.description) != (&theirs.user, &theirs.description) {
            return Some("user or description".to_owned());
        }
        let packed = self.is_packed || theirs.is_packed;
        let is_other = |(oid, digest): (&Oid, &Option<[u8; 32]>)| {
            let other = theirs.records.get(oid);
            (other.is_none() && !packed || other.is_some_and(|it| it != digest)).then_some(*oid)
        };
        let unknown = |oid: &&Oid| !packed && !self.records.contains_key(oid);
        let differs = self.records.iter().find_map(is_other);
        let differs = differs.or_else(|| theirs.records.keys().find(unknown).copied());
        differs.map(|oid| format!("object {oid}"))
    }
}

/// Looks whether the source has what is the last transaction here.
///
/// # Errors
///
/// [`Trouble::Stop`] if it has another one, [`Trouble::Behind`] if it has not come so far.
pub(super) fn compare<S: Wire, O: Wire>(
    source: &mut Conversation<S>,
    ours: &mut Conversation<O>,
    last: Tid,
) -> Result<(), Trouble> {
    if last == Tid::ZERO {
        return Ok(());
    }
    let theirs_last = source.told();
    if theirs_last < last {
        return Err(Trouble::Behind(format!(
            "the last transaction here is {last}, and there {theirs_last}"
        )));
    }
    let difference = match Content::read(ours, last)? {
        None => no_anchor(source, ours, last)?,
        Some(here) => match Content::read(source, last)? {
            Some(there) => here
                .difference(&there)
                .map(|what| format!("transaction {last} differs in {what}")),
            None => match left_of(&here, source, last)? {
                None => no_anchor(source, ours, last)?,
                differs => differs,
            },
        },
    };
    match difference {
        None => Ok(()),
        Some(what) => Err(Trouble::Stop(format!(
            "its history is another one: {what}. To follow it, begin with an empty data file, or \
             with a copy of its own"
        ))),
    }
}

/// The source has no transaction `last`: why that cannot be by packing, if it cannot.
fn left_of<S: Wire>(
    here: &Content,
    source: &mut Conversation<S>,
    last: Tid,
) -> Result<Option<String>, Trouble> {
    let iterator = transactions(source, last.next(), None)?;
    let next = next_transaction(source, &iterator)?;
    source.send("iterator_gc", vec![Value::List(vec![iterator])])?;
    if next.is_some_and(|next| next.status[..] != *PACKED) {
        let why = format!("it has no transaction {last}, and was not packed");
        return Ok(Some(why));
    }
    for oid in here.records.keys().take(FOLLOW_OIDS_ASKED) {
        // If there is none, nothing referred to it any more.
        let Some(serial) = serial_of(source, *oid)? else {
            continue;
        };
        if serial < last {
            let why = format!("object {oid} is older there than in {last} here");
            return Ok(Some(why));
        }
        if serial == last {
            let why = format!("object {oid} is of {last}, which it gives not");
            return Ok(Some(why));
        }
    }
    Ok(None)
}

/// Looks for the newest object here that the source has not changed since our last transaction. If
/// it is the same there, so is what was before it: what there is to say if it is not, or if there
/// is none.
///
/// That it was changed there since, or is gone, says nothing: a source that was restored from a
/// backup, used, and packed looks like that, too.
fn no_anchor<S: Wire, O: Wire>(
    source: &mut Conversation<S>,
    ours: &mut Conversation<O>,
    last: Tid,
) -> Result<Option<String>, Trouble> {
    let mut seen = BTreeSet::new();
    let mut end = last;
    for minutes in SPANS {
        let start = Tid(last.0.saturating_sub(minutes << 32));
        let mut asked = 0;
        for oid in changed_between(ours, start, end)?.into_iter().rev() {
            if asked == FOLLOW_OIDS_ASKED {
                break;
            }
            if !seen.insert(oid) {
                continue;
            }
            asked += 1;
            let Some(there) = serial_of(source, oid)?.filter(|there| *there <= last) else {
                continue;
            };
            let here = serial_of(ours, oid)?;
            let is_same =
                here == Some(there) && revision(source, oid, there)? == revision(ours, oid, there)?;
            return Ok(match is_same {
                true => None,
                false => Some(format!("object {oid} is another one there, of {there}")),
            });
        }
        if start == Tid::ZERO {
            break;
        }
        end = Tid(start.0 - 1);
    }
    Ok(Some(format!(
        "nothing of what was changed last before {last} here is there as it was"
    )))
}

/// The objects of the last transactions in a span of time, the newest last; some are in it twice.
fn changed_between<W: Wire>(
    of: &mut Conversation<W>,
    start: Tid,
    end: Tid,
) -> Result<VecDeque<Oid>, Trouble> {
    let mut oids = VecDeque::new();
    let iterator = transactions(of, start, Some(end))?;
    while let Some(txn) = next_transaction(of, &iterator)? {
        let within = records(of, &iterator, txn.tid)?;
        while let Some(record) = next_record(of, &within, txn.tid)? {
            if oids.len() == FOLLOW_OIDS_KEPT {
                oids.pop_front();
            }
            oids.push_back(record.oid);
        }
    }
    Ok(oids)
}

/// The transaction that has the current revision of an object, if there is one.
fn serial_of<W: Wire>(of: &mut Conversation<W>, oid: Oid) -> Result<Option<Tid>, Trouble> {
    match of.call("getTid", vec![oid.into()])?.result {
        Ok(serial) => match serial.string().and_then(|serial| Tid::from_slice(serial)) {
            Some(serial) => Ok(Some(serial)),
            None => Err(of.lost(format!("getTid of {oid}: no tid"))),
        },
        Err(raised) if raised.short_class() == "POSKeyError" => Ok(None),
        Err(raised) => Err(of.lost(format!("getTid: {raised}"))),
    }
}

/// The data of a revision.
fn revision<W: Wire>(of: &mut Conversation<W>, oid: Oid, serial: Tid) -> Result<Bytes, Trouble> {
    let data = of.ask("loadSerial", vec![oid.into(), serial.into()])?;
    let data = data.string().cloned();
    data.ok_or_else(|| of.lost(format!("loadSerial of {oid}: no data")))
}
