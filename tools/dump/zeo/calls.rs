//! Calls that wait for their replies.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use standby::value::Value;

use super::fields::KEPT_LEN_MAX;
use super::side::Budget;
use crate::limits::{CALLS_LEN_MAX, CALLS_WAITING_MAX, LATE_MAX};
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
    /// Bytes that are held for it, about.
    held: usize,
}

/// Bytes of a call in memory beside its own.
const CALL_LEN: usize = 512;

/// Bytes of a msgid that somebody could have meant.
const KEY_LEN_MAX: usize = 64;

impl Key {
    /// Others could be of any size.
    fn is_small(&self) -> bool {
        match self {
            Self::Status | Self::Int(_) => true,
            Self::String(bytes) => bytes.len() <= KEY_LEN_MAX,
            Self::List(keys) => {
                keys.len() <= 4
                    && keys
                        .iter()
                        .all(|key| !matches!(key, Self::List(_)) && key.is_small())
            }
            Self::Other(text) => text.len() <= KEY_LEN_MAX,
        }
    }
}

impl Asked {
    pub(super) fn new(time: Option<Duration>, method: &str, shown: Fields) -> Self {
        Self {
            time,
            method: method.to_owned(),
            shown,
            number: 0,
            held: 0,
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
    /// What the calls of all connections hold.
    budget: Budget,
}

impl Calls {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            ..Self::default()
        }
    }

    /// One more, of a frame of `len` bytes. Returns how many were forgotten.
    pub(super) fn put(&mut self, key: Key, mut asked: Asked, len: usize) -> u64 {
        if !key.is_small() {
            return 1;
        }
        // A load may have the name of one before, which that reply was to.
        let late_max = match key {
            Key::List(_) => Duration::ZERO,
            _ => LATE_MAX,
        };
        let early = self.early.remove(&key);
        if early
            .zip(asked.time)
            .is_some_and(|(reply, call)| call <= reply.saturating_add(late_max))
        {
            return 0;
        }
        let mut forgotten = 0;
        if self.count >= CALLS_WAITING_MAX || self.budget.get() >= CALLS_LEN_MAX {
            // All of them: who does not answer so many calls will not answer these.
            forgotten = self.drain().len() as u64;
        }
        self.last += 1;
        asked.held = CALL_LEN + 2 * len.min(KEPT_LEN_MAX);
        self.budget.set(self.budget.get() + asked.held);
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
        if let Some(time) = time.filter(|_| key.is_small()) {
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
        if let Some(asked) = &asked {
            self.count -= 1;
            self.release(asked.held);
        }
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
        self.release(calls.iter().map(|asked| asked.held).sum());
        calls
    }

    fn release(&self, held: usize) {
        self.budget.set(self.budget.get().saturating_sub(held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn at(millis: u64) -> Asked {
        Asked::new(Some(Duration::from_millis(millis)), "ping", Vec::new())
    }

    #[test]
    fn calls_of_all_connections_are_bounded() {
        let budget = Budget::default();
        let (mut forgotten, mut all) = (0, Vec::new());
        for _ in 0..10 {
            let mut calls = Calls::new(Rc::clone(&budget));
            for n in 0..90_000 {
                forgotten += calls.put(Key::Int(n), at(0), 20);
                assert!(budget.get() <= CALLS_LEN_MAX + CALL_LEN + 40);
            }
            all.push(calls);
        }
        let left: usize = all.iter_mut().map(|calls| calls.drain().len()).sum();
        assert!(forgotten > 0 && left > 0, "{forgotten} {left}");
        assert_eq!(forgotten + left as u64, 900_000);
        assert_eq!(budget.get(), 0);
    }

    #[test]
    fn a_msgid_of_any_size_is_not_kept() {
        let mut calls = Calls::new(Budget::default());
        for long in [
            Key::String(vec![0; 100]),
            Key::List(vec![Key::Int(1); 5]),
            Key::Other("x".repeat(100)),
        ] {
            assert_eq!(calls.put(long.clone(), at(0), 20), 1);
            calls.note_early(long, Some(Duration::ZERO));
        }
        assert!(calls.early.is_empty() && calls.waiting.is_empty());
    }

    #[test]
    fn a_reply_before_a_call_of_that_name_does_not_answer_it() {
        let load = || Key::List(vec![Key::String(vec![0; 8]), Key::String(vec![1; 8])]);
        let mut calls = Calls::new(Budget::default());
        calls.note_early(load(), Some(Duration::from_millis(10)));
        assert_eq!(calls.put(load(), at(11), 60), 0);
        assert!(calls.is_waiting(&load()));
        // Unless the call was captured late.
        calls.note_early(Key::Int(1), Some(Duration::MAX));
        assert_eq!(calls.put(Key::Int(1), at(9), 20), 0);
        assert!(!calls.is_waiting(&Key::Int(1)));
    }
}
