//! Calls that wait for their replies.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use standby::value::Value;

use crate::limits::{CALLS_WAITING_MAX, LATE_MAX};
use crate::message::Fields;

/// Replies without calls that are remembered.
const EARLY_MAX: usize = 1000;

/// What a reply is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// There is one such call in a connection, and it has no msgid.
    Status,
    Int(i64),
    /// Strings of all kinds are the same: on Python 2 what went out as one comes back as another.
    String(Vec<u8>),
    List(Vec<Self>),
    /// What no client sends.
    Other(String),
}

/// The key of a msgid.
pub(super) fn key(msgid: &Value) -> Key {
    match msgid {
        Value::Int(int) => Key::Int(*int),
        Value::Tuple(values) | Value::List(values) => Key::List(values.iter().map(key).collect()),
        value => match value.string() {
            Some(bytes) => Key::String(bytes.to_vec()),
            None => Key::Other(format!("{value:?}")),
        },
    }
}

/// A call.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub time: Option<Duration>,
    pub method: String,
    /// What its reply is shown with.
    pub shown: Fields,
    /// Counts calls.
    number: u64,
}

impl Asked {
    pub(super) fn new(time: Option<Duration>, method: &str, shown: Fields) -> Self {
        Self {
            time,
            method: method.to_owned(),
            shown,
            number: 0,
        }
    }

    pub(super) fn latency(&self, now: Option<Duration>) -> Option<Duration> {
        Some(now?.saturating_sub(self.time?))
    }
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Stock clients make up the msgid of a load of its arguments, so that there may be several.
    waiting: BTreeMap<Key, VecDeque<Asked>>,
    count: usize,
    last: u64,
    /// Replies that no call waited for, and when they came: the call may have been captured late.
    early: BTreeMap<Key, Duration>,
}

impl Calls {
    /// One more. Returns how many were forgotten for it.
    pub(super) fn put(&mut self, key: Key, mut asked: Asked) -> u64 {
        let early = self.early.remove(&key);
        if early
            .zip(asked.time)
            .is_some_and(|(reply, call)| call <= reply + LATE_MAX)
        {
            return 0;
        }
        let mut forgotten = 0;
        if self.count >= CALLS_WAITING_MAX {
            // All of them: who does not answer so many calls will not answer these.
            forgotten = self.count as u64;
            self.waiting.clear();
            self.count = 0;
        }
        self.last += 1;
        asked.number = self.last;
        self.waiting.entry(key).or_default().push_back(asked);
        self.count += 1;
        forgotten
    }

    /// A reply that no call waits for. Few are remembered.
    pub(super) fn note_early(&mut self, key: Key, time: Option<Duration>) {
        if self.early.len() >= EARLY_MAX {
            self.early.clear();
        }
        if let Some(time) = time {
            self.early.insert(key, time);
        }
    }

    /// The oldest call that this is the reply to.
    pub(super) fn take(&mut self, key: &Key) -> Option<Asked> {
        let calls = self.waiting.get_mut(key)?;
        let asked = calls.pop_front();
        if calls.is_empty() {
            self.waiting.remove(key);
        }
        self.count -= usize::from(asked.is_some());
        asked
    }

    pub(super) fn is_waiting(&self, key: &Key) -> bool {
        self.waiting.contains_key(key)
    }

    /// All, in the order that they were made in.
    pub(super) fn drain(&mut self) -> Vec<Asked> {
        self.count = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let mut calls: Vec<Asked> = waiting.into_values().flatten().collect();
        calls.sort_by_key(|asked| asked.number);
        calls
    }
}
