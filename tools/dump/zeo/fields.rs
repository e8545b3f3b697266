//! What calls and their results are made of, with names.

use bytes::Bytes;
use standby::ids::{Oid, Tid};
use standby::value::Value;
use standby::zeo::Request;
use standby::zeo::client::{Raised, Received};

use crate::message::{Field, Fields};

/// The arguments of a call.
pub(super) fn of_request(request: &Request) -> Fields {
    let value = |value: &Value| Field::Value(value.clone());
    let serial = |serial: &Option<Tid>| serial.map_or(Field::Value(Value::None), Field::Tid);
    match request {
        Request::Register { storage, read_only } => vec![
            ("storage", storage.clone().into()),
            ("read_only", (*read_only).into()),
        ],
        Request::GetInfo
        | Request::LastTransaction
        | Request::StoreBlobStart
        | Request::ServerStatus
        | Request::Ping => Vec::new(),
        Request::GetInvalidations { tid } => vec![("tid", (*tid).into())],
        Request::LoadBefore { oid, tid } => vec![("oid", (*oid).into()), ("before", (*tid).into())],
        Request::LoadSerial { oid, serial } => {
            vec![("oid", (*oid).into()), ("serial", (*serial).into())]
        }
        Request::GetTid { oid } => vec![("oid", (*oid).into())],
        Request::History { oid, size } => vec![("oid", (*oid).into()), ("size", (*size).into())],
        Request::NewOids { count } => vec![("count", (*count).into())],
        Request::TpcBegin {
            txn,
            user,
            description,
            extension,
            tid,
            status,
        } => {
            let mut fields = vec![
                ("txn", value(txn)),
                ("user", user.clone().into()),
                ("description", description.clone().into()),
            ];
            if !matches!(extension, Value::Dict(pairs) if pairs.is_empty()) {
                fields.push(("extension", value(extension)));
            }
            if let Some(tid) = tid {
                fields.push(("tid", (*tid).into()));
            }
            if *status != b' ' {
                fields.push(("status", char::from(*status).to_string().into()));
            }
            fields
        }
        Request::Storea {
            oid,
            serial: read,
            data,
            txn,
        } => store(*oid, serial(read), data, txn),
        Request::Restorea {
            oid,
            serial,
            data,
            prev_txn,
            txn,
        } => vec![
            ("oid", (*oid).into()),
            ("serial", (*serial).into()),
            (
                "data",
                data.clone()
                    .map_or(Field::Value(Value::None), Field::record),
            ),
            ("prev_txn", (*prev_txn).into()),
            ("txn", value(txn)),
        ],
        Request::DeleteObject { oid, serial, txn }
        | Request::CheckCurrentSerialInTransaction { oid, serial, txn } => vec![
            ("oid", (*oid).into()),
            ("serial", (*serial).into()),
            ("txn", value(txn)),
        ],
        Request::Undoa { undo_id, txn } => {
            vec![("undo_id", undo_id.clone().into()), ("txn", value(txn))]
        }
        Request::StoreBlobChunk { chunk } => vec![("len", chunk.len().into())],
        Request::StoreBlobEnd {
            oid,
            serial: read,
            data,
            txn,
        } => store(*oid, serial(read), data, txn),
        Request::StoreBlobShared {
            oid,
            serial: read,
            data,
            filename,
            txn,
        } => {
            let mut fields = store(*oid, serial(read), data, txn);
            fields.push(("filename", filename.clone().into()));
            fields
        }
        Request::Vote { txn } | Request::TpcFinish { txn } | Request::TpcAbort { txn } => {
            vec![("txn", value(txn))]
        }
        Request::UndoLog { first, last } => {
            vec![("first", (*first).into()), ("last", (*last).into())]
        }
        Request::UndoInfo {
            first,
            last,
            filter,
        } => {
            let mut fields = vec![("first", (*first).into()), ("last", (*last).into())];
            if !filter.is_empty() {
                fields.push(("filter", Value::Dict(filter.clone()).into()));
            }
            fields
        }
        Request::Pack { time, wait } => vec![
            ("time", Value::Float(*time).into()),
            ("wait", (*wait).into()),
        ],
        Request::SendBlob { oid, serial } => {
            vec![("oid", (*oid).into()), ("serial", (*serial).into())]
        }
        Request::IteratorStart { start, stop } => {
            vec![("start", (*start).into()), ("stop", (*stop).into())]
        }
        Request::IteratorNext { iterator } | Request::IteratorRecordNext { iterator } => {
            vec![("iterator", (*iterator).into())]
        }
        Request::IteratorRecordStart { iterator, tid } => {
            vec![("iterator", (*iterator).into()), ("tid", (*tid).into())]
        }
        Request::IteratorGc { iterators } => {
            let iterators = iterators.iter().map(|iterator| Field::Int(*iterator));
            vec![("iterators", Field::List(iterators.collect()))]
        }
        Request::RecordIternext { oid } => vec![("oid", (*oid).into())],
        Request::SetClientLabel { label } => vec![("label", label.clone().into())],
    }
}

fn store(oid: Oid, serial: Field, data: &Bytes, txn: &Value) -> Fields {
    vec![
        ("oid", oid.into()),
        ("serial", serial),
        ("data", Field::record(data.clone())),
        ("txn", Field::Value(txn.clone())),
    ]
}

/// Bytes of a call of which text is kept until it is answered: it keeps all that it is part of.
pub(super) const KEPT_LEN_MAX: usize = 1024;

/// Those fields of a call of `len` bytes that its reply is shown with.
pub(super) fn repeated(fields: &Fields, len: usize) -> Fields {
    let is_id = |field: &Field| matches!(field, Field::Oid(_) | Field::Tid(_));
    let named = |name: &str| matches!(name, "txn" | "iterator");
    fields
        .iter()
        .filter(|(name, field)| is_id(field) || named(name) && len <= KEPT_LEN_MAX)
        .cloned()
        .collect()
}

/// What a call of this method has returned.
pub(super) fn of_result(method: &str, result: &Value) -> Fields {
    known_result(method, result).unwrap_or_else(|| match result {
        Value::None => Vec::new(),
        result => vec![("result", Field::Value(result.clone()))],
    })
}

/// `None` if it is not of the form that this method should return.
fn known_result(method: &str, result: &Value) -> Option<Fields> {
    match method {
        "register" | "lastTransaction" => Some(vec![("last", tid_or_none(result)?)]),
        "getTid" => Some(vec![("tid", tid_or_none(result)?)]),
        "tpc_finish" => Some(vec![("tid", tid_or_none(result)?)]),
        "loadBefore" if *result == Value::None => Some(vec![("result", result.clone().into())]),
        "loadBefore" => {
            let [data, serial, end] = items(result)?;
            Some(vec![
                ("data", Field::record(data.string()?.clone())),
                ("serial", tid_or_none(serial)?),
                ("end", tid_or_none(end)?),
            ])
        }
        "loadSerial" => Some(vec![("data", Field::record(result.string()?.clone()))]),
        "new_oids" => Some(vec![("oids", oids(result)?)]),
        "getInvalidations" if *result != Value::None => {
            let [tid, changed] = items(result)?;
            Some(vec![("tid", tid_or_none(tid)?), ("oids", oids(changed)?)])
        }
        "record_iternext" => {
            let [oid, tid, data, next] = items(result)?;
            Some(vec![
                ("oid", Field::Oid(oid_of(oid)?)),
                ("tid", tid_or_none(tid)?),
                ("data", Field::record(data.string()?.clone())),
                ("next", oid_of(next).into()),
            ])
        }
        "vote" => match result {
            Value::None => Some(Vec::new()),
            Value::Tuple(items) | Value::List(items) if items.is_empty() => Some(Vec::new()),
            Value::Tuple(items) | Value::List(items) => {
                let conflicts = items.iter().map(conflict).collect::<Option<_>>()?;
                Some(vec![("conflicts", Field::List(conflicts))])
            }
            _ => None,
        },
        "iterator_next" if *result != Value::None => {
            let [tid, status, user, description, extension] = items(result)?;
            Some(vec![
                ("tid", tid_or_none(tid)?),
                ("status", Field::Value(status.clone())),
                ("user", Field::Bytes(user.string()?.clone())),
                ("description", Field::Bytes(description.string()?.clone())),
                ("extension", Field::Value(extension.clone())),
            ])
        }
        "iterator_record_next" if *result != Value::None => {
            let [oid, tid, data, prev] = items(result)?;
            Some(vec![
                ("oid", Field::Oid(oid_of(oid)?)),
                ("tid", tid_or_none(tid)?),
                ("data", record_or_none(data)?),
                ("prev_txn", tid_or_none(prev)?),
            ])
        }
        _ => None,
    }
}

/// An object that others have changed meanwhile, which the client is to resolve.
fn conflict(value: &Value) -> Option<Field> {
    let Value::Dict(pairs) = value else {
        return None;
    };
    let part = |name: &str| {
        let found = pairs
            .iter()
            .find(|(key, _)| key.string().is_some_and(|key| key == name));
        found.map(|(_, value)| value)
    };
    let [committed, read] = items(part("serials")?)?;
    Some(Field::Tree(vec![
        ("oid", Field::Oid(oid_of(part("oid")?)?)),
        ("committed", tid_or_none(committed)?),
        ("read", tid_or_none(read)?),
        ("data", record_or_none(part("data")?)?),
    ]))
}

/// A call of the server's.
pub(super) fn of_notice(name: &str, args: &[Value]) -> Fields {
    known_notice(name, args).unwrap_or_else(|| match args {
        [] => Vec::new(),
        [arg] => vec![("arg", Field::Value(arg.clone()))],
        args => vec![("args", Field::Value(Value::Tuple(args.to_vec())))],
    })
}

fn known_notice(name: &str, args: &[Value]) -> Option<Fields> {
    match (name, args) {
        ("invalidateTransaction", [tid, changed]) => {
            Some(vec![("tid", tid_or_none(tid)?), ("oids", oids(changed)?)])
        }
        ("receiveBlobStart" | "receiveBlobStop", [oid, serial]) => Some(vec![
            ("oid", Field::Oid(oid_of(oid)?)),
            ("serial", tid_or_none(serial)?),
        ]),
        ("receiveBlobChunk", [oid, serial, chunk]) => Some(vec![
            ("oid", Field::Oid(oid_of(oid)?)),
            ("serial", tid_or_none(serial)?),
            ("len", chunk.string()?.len().into()),
        ]),
        _ => None,
    }
}

/// An exception.
pub(super) fn of_raised(raised: &Raised) -> Fields {
    vec![
        ("raised", raised.class.clone().into()),
        ("arguments", Field::Value(raised.arguments.clone())),
    ]
}

/// What a reply has returned, whatever form it was read in.
pub(super) fn result_of(received: Received) -> Option<(Value, Result<Value, Raised>)> {
    match received {
        Received::Reply { msgid, result } => Some((msgid, result)),
        Received::Loaded(loaded) => {
            let id = |bytes: [u8; 8]| Value::Bytes(Bytes::copy_from_slice(&bytes));
            let msgid = vec![id(loaded.oid.to_bytes()), id(loaded.before.to_bytes())];
            let end = loaded.end.map_or(Value::None, |end| id(end.to_bytes()));
            let serial = id(loaded.serial.to_bytes());
            let result = vec![Value::Bytes(loaded.data), serial, end];
            Some((Value::Tuple(msgid), Ok(Value::Tuple(result))))
        }
        Received::Greeting(_) | Received::Notice { .. } => None,
    }
}

fn items<const N: usize>(value: &Value) -> Option<&[Value; N]> {
    match value {
        Value::Tuple(items) | Value::List(items) => items.as_slice().try_into().ok(),
        _ => None,
    }
}

fn oid_of(value: &Value) -> Option<Oid> {
    Oid::from_slice(value.string()?)
}

fn tid_or_none(value: &Value) -> Option<Field> {
    match value {
        Value::None => Some(Field::Value(Value::None)),
        value => Some(Field::Tid(Tid::from_slice(value.string()?)?)),
    }
}

fn record_or_none(value: &Value) -> Option<Field> {
    match value {
        Value::None => Some(Field::Value(Value::None)),
        value => Some(Field::record(value.string()?.clone())),
    }
}

fn oids(value: &Value) -> Option<Field> {
    let (Value::Tuple(items) | Value::List(items)) = value else {
        return None;
    };
    let oids = items.iter().map(|item| oid_of(item).map(Field::Oid));
    Some(Field::List(oids.collect::<Option<_>>()?))
}
