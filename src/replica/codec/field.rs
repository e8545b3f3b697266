//! The values that messages and entries are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::CodecError;
use crate::entry::{Entry, EntryHeader};
use crate::group::ViewId;
use crate::ids::{Digest, DiskId, Epoch, HistoryId, NodeId, Oid, Seq, Tid};
use crate::limits::{ENTRY_PIECES_MAX, SHARED_DATA_LEN_MIN, SITE_LEN_MAX, STORAGE_NAME_LEN_MAX};
use crate::replica::members::{Arbiter, Members, VOTERS_MAX, Voter};
use crate::replica::message::{NodeKind, PackStage, Position, Record, Role};
use crate::replica::settings::{Pack, StorageName};
use crate::value::Value;

/// A value, or what is wrong with it.
pub(super) type Read<T> = Result<T, &'static str>;

/// Something that is a value of its own.
pub(super) trait Field: Sized {
    fn to_value(&self) -> Value;

    fn from_value(value: &Value) -> Read<Self>;
}

/// Arguments, as they are read one after the other.
pub(super) struct Fields<'a> {
    of: &'static str,
    left: slice::Iter<'a, Value>,
}

impl<'a> Fields<'a> {
    /// Of a method or an entry, which errors tell.
    pub(super) fn new(of: &'static str, values: &'a [Value]) -> Self {
        let left = values.iter();
        Self { of, left }
    }

    /// The number of the format, which must be this one.
    pub(super) fn format(&mut self, known: u64) -> Result<(), CodecError> {
        let of = self.of;
        let found = self.next("format")?;
        (found == known)
            .then_some(())
            .ok_or(CodecError::Format { of, found })
    }

    /// The argument that is next.
    pub(super) fn next<T: Field>(&mut self, argument: &'static str) -> Result<T, CodecError> {
        self.next_by(argument, T::from_value)
    }

    /// As [`Self::next`], with bounds of its own.
    pub(super) fn next_by<T>(
        &mut self,
        argument: &'static str,
        read: impl FnOnce(&'a Value) -> Read<T>,
    ) -> Result<T, CodecError> {
        let of = self.of;
        let value = self.left.next();
        let value = value.ok_or(CodecError::Missing { of, argument })?;
        read(value).map_err(|why| CodecError::Argument { of, argument, why })
    }

    /// There must be no more.
    pub(super) fn end(self) -> Result<(), CodecError> {
        match self.left.len() {
            0 => Ok(()),
            count => Err(CodecError::TooMany { of: self.of, count }),
        }
    }
}

/// The parts of a tuple that has so many.
pub(super) fn parts<const N: usize>(value: &Value) -> Read<&[Value; N]> {
    let Value::Tuple(parts) = value else {
        return Err("no tuple");
    };
    let parts = parts.as_slice().try_into();
    parts.map_err(|_| "a tuple of another length")
}

/// A tuple of any length up to this.
pub(super) fn list<T: Field>(value: &Value, count_max: usize) -> Read<Vec<T>> {
    let Value::Tuple(parts) = value else {
        return Err("no tuple");
    };
    if parts.len() > count_max {
        return Err("too many of them");
    }
    parts.iter().map(T::from_value).collect()
}

pub(super) fn list_value<'a, T: Field + 'a>(items: impl IntoIterator<Item = &'a T>) -> Value {
    Value::Tuple(items.into_iter().map(T::to_value).collect())
}

/// A dict of names, in order.
pub(super) fn by_name<T: Field>(value: &Value) -> Read<BTreeMap<StorageName, T>> {
    let Value::Dict(pairs) = value else {
        return Err("no dict");
    };
    let mut map = BTreeMap::new();
    for (name, value) in pairs {
        let name = storage_name(name)?;
        if map.last_key_value().is_some_and(|(last, _)| *last >= name) {
            return Err("names are not in order");
        }
        map.insert(name, T::from_value(value)?);
    }
    Ok(map)
}

pub(super) fn by_name_value<T: Field>(map: &BTreeMap<StorageName, T>) -> Value {
    let pair = |(name, value): (&StorageName, &T)| (text_value(name), value.to_value());
    Value::Dict(map.iter().map(pair).collect())
}

pub(super) fn storage_name(value: &Value) -> Read<StorageName> {
    text(value, STORAGE_NAME_LEN_MAX).map(str::to_owned)
}

pub(super) fn site(value: &Value) -> Read<String> {
    text(value, SITE_LEN_MAX).map(str::to_owned)
}

pub(super) fn text_value(text: &str) -> Value {
    Value::from(text.to_owned())
}

fn text(value: &Value, len_max: usize) -> Read<&str> {
    let Value::Text(text) = value else {
        return Err("no text");
    };
    if text.len() > len_max {
        return Err("too long");
    }
    // Decoders of pickles have seen to that.
    str::from_utf8(text).map_err(|_| "no text")
}

fn array<const N: usize>(value: &Value) -> Read<[u8; N]> {
    let bytes = match value {
        Value::Bytes(bytes) => &bytes[..],
        // So it is before it is written.
        Value::Id(id) => &id[..],
        _ => return Err("no bytes"),
    };
    bytes.try_into().map_err(|_| "bytes of another length")
}

impl Field for u64 {
    fn to_value(&self) -> Value {
        i64::try_from(*self).map_or_else(
            |_| Value::Long([&self.to_le_bytes()[..], &[0]].concat().into()),
            Value::Int,
        )
    }

    fn from_value(value: &Value) -> Read<Self> {
        match value {
            Value::Int(int) => Self::try_from(*int).map_err(|_| "below zero"),
            Value::Long(bytes) => match <[u8; 9]>::try_from(&bytes[..]) {
                Ok([a, b, c, d, e, f, g, h, 0]) => {
                    Ok(Self::from_le_bytes([a, b, c, d, e, f, g, h]))
                }
                _ => Err("no number of 64 bits"),
            },
            _ => Err("no number"),
        }
    }
}

impl Field for u32 {
    fn to_value(&self) -> Value {
        Value::Int((*self).into())
    }

    fn from_value(value: &Value) -> Read<Self> {
        Self::try_from(u64::from_value(value)?).map_err(|_| "more than 32 bits")
    }
}

impl Field for u8 {
    fn to_value(&self) -> Value {
        Value::Int((*self).into())
    }

    fn from_value(value: &Value) -> Read<Self> {
        Self::try_from(u64::from_value(value)?).map_err(|_| "more than 8 bits")
    }
}

impl Field for bool {
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }

    fn from_value(value: &Value) -> Read<Self> {
        match value {
            Value::Bool(is_so) => Ok(*is_so),
            _ => Err("neither true nor false"),
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::None, T::to_value)
    }

    fn from_value(value: &Value) -> Read<Self> {
        match value {
            Value::None => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

/// Nanoseconds, up to the year 2554.
impl Field for Duration {
    fn to_value(&self) -> Value {
        u64::try_from(self.as_nanos())
            .unwrap_or(u64::MAX)
            .to_value()
    }

    fn from_value(value: &Value) -> Read<Self> {
        u64::from_value(value).map(Self::from_nanos)
    }
}

impl Field for Seq {
    fn to_value(&self) -> Value {
        self.0.to_value()
    }

    fn from_value(value: &Value) -> Read<Self> {
        u64::from_value(value).map(Self)
    }
}

impl Field for Oid {
    fn to_value(&self) -> Value {
        Value::from(*self)
    }

    fn from_value(value: &Value) -> Read<Self> {
        array(value).map(Self::from_bytes)
    }
}

impl Field for Tid {
    fn to_value(&self) -> Value {
        Value::from(*self)
    }

    fn from_value(value: &Value) -> Read<Self> {
        array(value).map(Self::from_bytes)
    }
}

macro_rules! bytes {
    ($($name:ident)*) => {
        $(impl Field for $name {
            fn to_value(&self) -> Value {
                Value::Bytes(Bytes::copy_from_slice(&self.0))
            }

            fn from_value(value: &Value) -> Read<Self> {
                array(value).map(Self)
            }
        })*
    };
}

bytes!(HistoryId DiskId Digest ViewId);

impl Field for NodeId {
    fn to_value(&self) -> Value {
        text_value(self.as_str())
    }

    fn from_value(value: &Value) -> Read<Self> {
        let name = text(value, Self::LEN_MAX)?;
        Self::new(name).ok_or("no name of a node")
    }
}

/// `(counter, node)`; the node of the epoch before all is the empty text.
impl Field for Epoch {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.counter.to_value(), self.node.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [counter, node] = parts(value)?;
        let node = match node {
            Value::Text(name) if name.is_empty() => NodeId::NONE,
            node => NodeId::from_value(node)?,
        };
        let counter = u64::from_value(counter)?;
        Ok(Self { counter, node })
    }
}

/// `(epoch, seq)`
impl Field for Position {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.epoch.to_value(), self.seq.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [epoch, seq] = parts(value)?;
        let epoch = Epoch::from_value(epoch)?;
        let seq = Seq::from_value(seq)?;
        Ok(Self { epoch, seq })
    }
}

/// `(node, disk)`
impl Field for Voter {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.node.to_value(), self.disk.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [node, disk] = parts(value)?;
        let node = NodeId::from_value(node)?;
        let disk = DiskId::from_value(disk)?;
        Ok(Self { node, disk })
    }
}

/// In order.
impl Field for BTreeSet<Voter> {
    fn to_value(&self) -> Value {
        list_value(self)
    }

    fn from_value(value: &Value) -> Read<Self> {
        let voters: Vec<Voter> = list(value, VOTERS_MAX)?;
        let is_ordered = voters.is_sorted_by(|one, next| one < next);
        if !is_ordered {
            return Err("voters are not in order");
        }
        Ok(voters.into_iter().collect())
    }
}

/// `(voters, arbiter)`
impl Field for Members {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.voters.to_value(), self.arbiter.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [voters, arbiter] = parts(value)?;
        let voters = BTreeSet::from_value(voters)?;
        let arbiter = Option::from_value(arbiter)?;
        Ok(Self { voters, arbiter })
    }
}

/// `((node, disk), in_sync)`
impl Field for Arbiter {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.node.to_value(), self.in_sync.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [node, in_sync] = parts(value)?;
        let node = Voter::from_value(node)?;
        let in_sync = BTreeSet::from_value(in_sync)?;
        Ok(Self { node, in_sync })
    }
}

/// `(position, members)`
impl Field for Record {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.position.to_value(), self.members.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [position, members] = parts(value)?;
        let position = Position::from_value(position)?;
        let members = Members::from_value(members)?;
        Ok(Self { position, members })
    }
}

/// `(tid, at)`
impl Field for Pack {
    fn to_value(&self) -> Value {
        Value::Tuple(vec![self.tid.to_value(), self.at.to_value()])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [tid, at] = parts(value)?;
        let tid = Tid::from_value(tid)?;
        let at = Seq::from_value(at)?;
        Ok(Self { tid, at })
    }
}

macro_rules! words {
    ($name:ident { $($variant:ident $word:literal)* }) => {
        impl Field for $name {
            fn to_value(&self) -> Value {
                Value::text(match self {
                    $(Self::$variant => $word,)*
                })
            }

            fn from_value(value: &Value) -> Read<Self> {
                let Value::Text(text) = value else {
                    return Err("no text");
                };
                $(if text == $word {
                    return Ok(Self::$variant);
                })*
                Err("an unknown word")
            }
        }
    };
}

words!(PackStage { Wanted "wanted" Begun "begun" Done "done" });
words!(Role { Replica "replica" Candidate "candidate" Primary "primary" });
words!(NodeKind { Data "data" Observer "observer" Arbiter "arbiter" });

/// `(kind, seq, epoch, tid, previous, digest, body)`; the body is bytes, or a tuple of its pieces.
impl Field for Entry {
    fn to_value(&self) -> Value {
        let header = self.header();
        Value::Tuple(vec![
            header.kind.to_value(),
            header.seq.to_value(),
            header.epoch.to_value(),
            header.tid.to_value(),
            header.previous.to_value(),
            header.digest.to_value(),
            body_value(self.body()),
        ])
    }

    fn from_value(value: &Value) -> Read<Self> {
        let [kind, seq, epoch, tid, previous, digest, body] = parts(value)?;
        let body = body_pieces(body)?;
        let header = EntryHeader {
            kind: u8::from_value(kind)?,
            body_len: body.iter().map(|piece| piece.len() as u64).sum(),
            seq: Seq::from_value(seq)?,
            synced: Seq::ZERO,
            epoch: Epoch::from_value(epoch)?,
            tid: Tid::from_value(tid)?,
            previous: Digest::from_value(previous)?,
            digest: Digest::from_value(digest)?,
        };
        Self::from_parts(header, body).ok_or("the digest is that of another entry")
    }
}

fn body_value(pieces: &[Bytes]) -> Value {
    match pieces {
        [piece] => Value::Bytes(piece.clone()),
        pieces if pieces.len() <= ENTRY_PIECES_MAX => {
            Value::Tuple(pieces.iter().cloned().map(Value::Bytes).collect())
        }
        pieces => Value::Tuple(joined(pieces).into_iter().map(Value::Bytes).collect()),
    }
}

/// The same bytes, with short pieces put together: one by one they could be more values than a
/// message may have. They are copied anyway when they are written.
fn joined(pieces: &[Bytes]) -> Vec<Bytes> {
    let (mut joined, mut tail) = (Vec::new(), BytesMut::new());
    for piece in pieces {
        if piece.len() < SHARED_DATA_LEN_MIN {
            tail.extend_from_slice(piece);
        }
        if tail.len() >= SHARED_DATA_LEN_MIN || piece.len() >= SHARED_DATA_LEN_MIN {
            push_some(&mut joined, tail.split().freeze());
        }
        if piece.len() >= SHARED_DATA_LEN_MIN {
            joined.push(piece.clone());
        }
    }
    push_some(&mut joined, tail.freeze());
    joined
}

fn push_some(pieces: &mut Vec<Bytes>, piece: Bytes) {
    if !piece.is_empty() {
        pieces.push(piece);
    }
}

fn body_pieces(value: &Value) -> Read<Vec<Bytes>> {
    let piece = |value: &Value| match value {
        Value::Bytes(bytes) => Ok(bytes.clone()),
        _ => Err("a body of something else than bytes"),
    };
    match value {
        Value::Tuple(pieces) if pieces.len() == 1 => Err("one piece in a tuple"),
        Value::Tuple(pieces) => pieces.iter().map(piece).collect(),
        value => piece(value).map(|piece| vec![piece]),
    }
}
