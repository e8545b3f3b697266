//! Calls about the past: history, the log for undo, iteration.

use bytes::Bytes;

use super::Server;
use super::calls::{Outcome, other};
use super::client::{Current, Iteration};
use super::reads::{PendingRead, Wanted};
use crate::ids::{ClientId, Oid, Tid};
use crate::limits::{HISTORY_ENTRIES_MAX, ITERATORS_MAX};
use crate::storage::error::ReadError;
use crate::storage::history::{From, Past, Query, Revision, RevisionData, Step, TxnInfo};
use crate::storage::{Job, Lookup};
use crate::zeo::base64::base64;
use crate::zeo::errors::RemoteError;
use crate::zeo::{Value, decode_standalone};

impl Server {
    pub(super) fn history(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        oid: Oid,
        size: i64,
    ) -> Outcome {
        let Some(pos) = self.storages[at].storage.position(oid) else {
            return Outcome::Raise(RemoteError::PosKey(oid));
        };
        let count = bounded(size);
        let query = Query::History {
            oid,
            pos,
            count: usize::try_from(count).unwrap_or(usize::MAX),
        };
        let job = self.storages[at].storage.view().browse(query);
        self.read(id, msgid, at, Wanted::Log, job)
    }

    /// `last` below zero counts from `first` on.
    pub(super) fn undo_log(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        first: i64,
        last: i64,
        wanted: Vec<(Value, Value)>,
    ) -> Outcome {
        let end = if last < 0 {
            first.saturating_sub(last)
        } else {
            last
        };
        let query = Query::Log {
            first: bounded(first),
            end: bounded(end),
            filter: Box::new(move |info| wanted.is_empty() || passes(info, &wanted)),
        };
        let job = self.storages[at].storage.view().browse(query);
        self.read(id, msgid, at, Wanted::Log, job)
    }

    /// The first object whose oid is not below the argument, and which one comes next.
    pub(super) fn record_iternext(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        from: Option<Oid>,
    ) -> Outcome {
        let storage = &self.storages[at].storage;
        let Some(oid) = storage.next_oid(from.unwrap_or_default()) else {
            return Outcome::Raise(other("builtins.ValueError", "there is no such object"));
        };
        let next = oid
            .0
            .checked_add(1)
            .and_then(|from| storage.next_oid(Oid(from)));
        let lookup = Lookup::Before(oid, Tid::MAX);
        self.look_up(id, msgid, at, Wanted::NextObject { oid, next }, lookup)
    }

    /// What is committed or packed away from now on the iterator does not see, as in ZODB.
    pub(super) fn iterator_start(
        &mut self,
        id: ClientId,
        at: usize,
        start: Option<Tid>,
        stop: Option<Tid>,
    ) -> Outcome {
        let from = From::Tid(start.unwrap_or_default());
        let view = self.storages[at].storage.view();
        self.begin_iteration(
            id,
            Iteration::Transactions {
                from,
                stop,
                view,
                current: None,
            },
        )
    }

    pub(super) fn iterator_next(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        number: i64,
    ) -> Outcome {
        match self.iteration(id, number) {
            Some(Iteration::Transactions { from, view, .. }) => {
                let job = view.browse(Query::Transaction(*from));
                self.iterate(id, msgid, at, number, job)
            }
            _ => Outcome::Raise(RemoteError::Key(Value::Int(number))),
        }
    }

    /// An iterator over the records of the transaction that another iterator gave last.
    pub(super) fn iterator_record_start(&mut self, id: ClientId, number: i64, tid: Tid) -> Outcome {
        match self.iteration(id, number) {
            Some(Iteration::Transactions {
                current:
                    Some(Current {
                        tid: last,
                        pos,
                        end,
                    }),
                view,
                ..
            }) if *last == tid => {
                let (pos, end, view) = (*pos, *end, view.clone());
                self.begin_iteration(id, Iteration::Records { pos, end, view })
            }
            Some(Iteration::Transactions { .. }) => {
                let text = format!("transaction {tid} is not the one that was returned last");
                Outcome::Raise(other("builtins.Exception", text))
            }
            _ => Outcome::Raise(RemoteError::Key(Value::Int(number))),
        }
    }

    pub(super) fn iterator_record_next(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        number: i64,
    ) -> Outcome {
        match self.iteration(id, number) {
            Some(Iteration::Records { pos, end, view }) => {
                let (pos, end) = (*pos, *end);
                let job = view.browse(Query::Record { pos, end });
                self.iterate(id, msgid, at, number, job)
            }
            _ => Outcome::Raise(RemoteError::Key(Value::Int(number))),
        }
    }

    /// The disk has answered a question about the past.
    pub(super) fn answer_browse(
        &mut self,
        at: usize,
        pending: PendingRead,
        result: Result<Past, ReadError>,
    ) {
        let outcome = match (pending.wanted, result) {
            (_, Err(error)) => self.read_failed(at, &error.to_string()),
            (_, Ok(Past::History(revisions))) => {
                let entries = revisions
                    .iter()
                    .map(|(len, info)| history_entry(*len, info));
                Outcome::Reply(Value::List(entries.collect()))
            }
            (_, Ok(Past::Log(infos))) => {
                Outcome::Reply(Value::List(infos.iter().map(log_entry).collect()))
            }
            (Wanted::Iteration(number), Ok(Past::Transaction(step))) => {
                self.on_transaction(pending.client, number, step)
            }
            (Wanted::Iteration(number), Ok(Past::Record(revision))) => {
                self.on_record(pending.client, number, revision)
            }
            (_, Ok(Past::Transaction(_) | Past::Record(_))) => Outcome::Later,
        };
        if let Some(client) = self.clients.get_mut(&pending.client)
            && matches!(pending.wanted, Wanted::Iteration(_))
        {
            client.iterating = false;
        }
        self.answer_later(&pending, outcome);
    }

    fn begin_iteration(&mut self, id: ClientId, iteration: Iteration) -> Outcome {
        let Some(client) = self.clients.get_mut(&id) else {
            return Outcome::Later;
        };
        if client.iterators.len() >= ITERATORS_MAX {
            return Outcome::Raise(other(
                "builtins.RuntimeError",
                "too many iterators are open",
            ));
        }
        let number = client.iterators_begun;
        client.iterators_begun += 1;
        client.iterators.insert(number, iteration);
        Outcome::Reply(Value::Int(number))
    }

    fn iteration(&mut self, id: ClientId, number: i64) -> Option<&mut Iteration> {
        self.clients.get_mut(&id)?.iterators.get_mut(&number)
    }

    fn iterate(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        number: i64,
        job: Job,
    ) -> Outcome {
        if let Some(client) = self.clients.get_mut(&id) {
            client.iterating = true;
        }
        self.read(id, msgid, at, Wanted::Iteration(number), job)
    }

    fn on_transaction(&mut self, id: ClientId, number: i64, step: Option<Step>) -> Outcome {
        let Some(Iteration::Transactions {
            from,
            stop,
            current,
            ..
        }) = self.iteration(id, number)
        else {
            return Outcome::Reply(Value::None);
        };
        let step = step.filter(|step| stop.is_none_or(|stop| step.info.tid <= stop));
        let Some(step) = step else {
            self.end_iteration(id, number);
            return Outcome::Reply(Value::None);
        };
        *from = From::Pos(step.next);
        let info = step.info;
        *current = Some(Current {
            tid: info.tid,
            pos: step.records_pos,
            end: step.records_end,
        });
        Outcome::Reply(Value::Tuple(vec![
            info.tid.into(),
            char::from(info.status).to_string().into(),
            Value::Bytes(info.user),
            Value::Bytes(info.description),
            Value::Dict(extension(&info.extension)),
        ]))
    }

    fn on_record(&mut self, id: ClientId, number: i64, revision: Option<Revision>) -> Outcome {
        let (Some(Iteration::Records { pos, .. }), Some(revision)) =
            (self.iteration(id, number), revision)
        else {
            self.end_iteration(id, number);
            return Outcome::Reply(Value::None);
        };
        *pos = revision.next;
        let record = |data: Value| {
            Value::Tuple(vec![
                revision.oid.into(),
                revision.tid.into(),
                data,
                revision.data_tid.map_or(Value::None, Value::from),
            ])
        };
        match revision.data {
            None => Outcome::Reply(record(Value::None)),
            Some(RevisionData::Whole(data)) => Outcome::Reply(record(Value::Bytes(data))),
            Some(RevisionData::Long(data)) => {
                Outcome::ReplyLong(record(Value::Gap(data.left())), data)
            }
        }
    }

    fn end_iteration(&mut self, id: ClientId, number: i64) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.iterators.remove(&number);
        }
    }
}

/// A number from a client, in the bounds of one answer.
fn bounded(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0).min(HISTORY_ENTRIES_MAX)
}

/// What a transaction was given as extension. One that cannot be read is left out, as in ZODB.
fn extension(pickle: &Bytes) -> Vec<(Value, Value)> {
    match decode_standalone(pickle) {
        Ok(Value::Dict(items)) => items,
        _ => Vec::new(),
    }
}

fn common(info: &TxnInfo) -> Vec<(Value, Value)> {
    vec![
        (Value::text("time"), Value::Float(info.tid.unix_seconds())),
        (Value::text("user_name"), Value::Bytes(info.user.clone())),
        (
            Value::text("description"),
            Value::Bytes(info.description.clone()),
        ),
    ]
}

/// An entry of `history`, in which our keys win over those of the extension.
fn history_entry(len: u64, info: &TxnInfo) -> Value {
    let mut entry = extension(&info.extension);
    let mut ours = common(info);
    ours.push((Value::text("tid"), info.tid.into()));
    ours.push((Value::text("size"), len.into()));
    merge(&mut entry, ours);
    Value::Dict(entry)
}

/// An entry of `undoLog`, in which the keys of the extension win.
fn log_entry(info: &TxnInfo) -> Value {
    let id = base64(&info.tid.to_bytes());
    let mut entry = vec![(Value::text("id"), Value::Bytes(Bytes::from(id)))];
    entry.extend(common(info));
    entry.push((Value::text("size"), info.len.into()));
    merge(&mut entry, extension(&info.extension));
    Value::Dict(entry)
}

fn merge(entry: &mut Vec<(Value, Value)>, winners: Vec<(Value, Value)>) {
    for (key, value) in winners {
        match entry
            .iter_mut()
            .find(|(old, _)| old.string() == key.string())
        {
            Some(old) => old.1 = value,
            None => entry.push((key, value)),
        }
    }
}

/// Whether an entry of the log has all that a filter of Zope wants.
fn passes(info: &TxnInfo, wanted: &[(Value, Value)]) -> bool {
    let Value::Dict(entry) = log_entry(info) else {
        return false;
    };
    wanted.iter().all(|(key, wanted)| {
        let found = entry.iter().find(|(name, _)| name.string() == key.string());
        found.is_some_and(|(_, value)| match (wanted, value.string()) {
            (Value::Prefix(path), Some(user)) => begins_with(user, path),
            (wanted, Some(text)) => wanted.string() == Some(text),
            _ => value == wanted,
        })
    })
}

/// Whether the path in a user name (`/site/acl_users bob`: a path, a blank, the name within it)
/// begins with this one, as `ZopeUndo.Prefix` compares them.
fn begins_with(user: &[u8], path: &[Value]) -> bool {
    let blank = user.iter().rposition(|byte| *byte == b' ');
    let user_path = &user[..blank.unwrap_or(user.len())];
    let mut components = user_path.split(|byte| *byte == b'/');
    path.iter().all(|wanted| {
        let component = components.next();
        component.is_some() && component == wanted.string().map(|bytes| &bytes[..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &[&'static str]) -> Vec<Value> {
        path.iter().map(|text| Value::text(text)).collect()
    }

    #[test]
    fn a_prefix_compares_whole_components() {
        let site = texts(&["", "site"]);
        for (user, found) in [
            ("/site/acl_users bob", true),
            ("/site bob", true),
            ("/site", true),
            ("/sites/acl_users bob", false),
            ("/other/acl_users bob", false),
            (" bob", false),
            ("", false),
        ] {
            assert_eq!(begins_with(user.as_bytes(), &site), found, "{user}");
        }
        assert!(begins_with(b"/ admin", &texts(&["", ""])));
    }

    #[test]
    fn who_wins_between_our_keys_and_those_of_the_extension() {
        let extension = Value::Dict(vec![(Value::text("user_name"), Value::text("theirs"))]);
        let info = TxnInfo {
            tid: Tid(1),
            status: b' ',
            user: Bytes::from_static(b"ours"),
            description: Bytes::new(),
            extension: crate::zeo::encode_standalone(&extension, 100)
                .unwrap()
                .into(),
            len: 9,
        };
        let user_of = |entry: Value| match entry {
            Value::Dict(items) => {
                let mut users = items
                    .into_iter()
                    .filter(|(key, _)| *key == Value::text("user_name"));
                (users.next().map(|(_, value)| value), users.next().is_none())
            }
            _ => (None, false),
        };
        assert_eq!(
            user_of(log_entry(&info)),
            (Some(Value::text("theirs")), true)
        );
        let ours = Value::Bytes(Bytes::from_static(b"ours"));
        assert_eq!(user_of(history_entry(5, &info)), (Some(ours), true));
    }
}
