//! The values that both encodings of ZEO can carry, and why bytes may be none.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::UnexpectedEnd;
use crate::ids::{Oid, Tid};
use crate::limits;

/// A Python value, as far as ZEO messages contain them.
///
/// Byte strings are slices of the frame that they came in; nothing is copied. `Clone` is cheap for
/// leaves and copies the spine of tuples, lists and dicts.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// An integer that fits.
    Int(i64),
    /// An integer beyond 64 bits: two's complement, little-endian, shortest form (pickle `LONG1`).
    Long(Bytes),
    /// A float
    Float(f64),
    /// Python 3 `str`, Python 2 `unicode`; always valid UTF-8.
    Text(Bytes),
    /// `bytes`, `zodbpickle.binary`
    Bytes(Bytes),
    /// An oid, tid or serial of our own: sent as `bytes` of length 8. Decoders never produce it.
    Id([u8; 8]),
    /// Python 2 `str`, which is text or bytes; only the callee knows. Only decoders of pickles
    /// produce it.
    Str(Bytes),
    /// Bytes of this length that are sent for themselves: see `Session::reply_long`. Decoders never
    /// produce it.
    Gap(usize),
    /// A tuple
    Tuple(Vec<Self>),
    /// A list
    List(Vec<Self>),
    /// A list of oids, of which a transaction may have millions. Decoders never produce it.
    Oids(Arc<Vec<Oid>>),
    /// A dict, in the order that it was sent.
    Dict(Vec<(Self, Self)>),
    /// An instance of `ZopeUndo.Prefix.Prefix`, the one class that clients send: its `path`.
    Prefix(Vec<Self>),
}

impl Value {
    /// Text that is part of the program.
    pub const fn text(text: &'static str) -> Self {
        Self::Text(Bytes::from_static(text.as_bytes()))
    }

    /// The bytes of a string of whatever kind. Clients mix the kinds, and Python 2 has another
    /// idea of them in each encoding.
    pub const fn string(&self) -> Option<&Bytes> {
        match self {
            Self::Text(bytes) | Self::Bytes(bytes) | Self::Str(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// An integer from its two's complement, little-endian, of any length.
    pub(crate) fn integer(bytes: Bytes) -> Self {
        let len = shortest_integer_len(&bytes);
        if len > 8 {
            return Self::Long(bytes.slice(..len));
        }
        let negative = len > 0 && bytes[len - 1] >= 0x80;
        let mut filled = [if negative { 0xff } else { 0 }; 8];
        filled[..len].copy_from_slice(&bytes[..len]);
        Self::Int(i64::from_le_bytes(filled))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    /// Saturates; no count that we send comes near.
    fn from(count: u64) -> Self {
        Self::Int(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl From<Oid> for Value {
    fn from(oid: Oid) -> Self {
        Self::Id(oid.to_bytes())
    }
}

impl From<Arc<Vec<Oid>>> for Value {
    fn from(oids: Arc<Vec<Oid>>) -> Self {
        Self::Oids(oids)
    }
}

impl From<Tid> for Value {
    fn from(tid: Tid) -> Self {
        Self::Id(tid.to_bytes())
    }
}

/// Bytes that a little-endian two's complement needs, without those that only repeat the sign.
pub(crate) fn shortest_integer_len(bytes: &[u8]) -> usize {
    let mut len = bytes.len();
    while len > 1 {
        let (last, before) = (bytes[len - 1], bytes[len - 2]);
        if !(last == 0 && before < 0x80 || last == 0xff && before >= 0x80) {
            break;
        }
        len -= 1;
    }
    len
}

/// Why bytes are not a value: the peer's fault, or a damaged file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// They end too early.
    End(UnexpectedEnd),
    /// An opcode or type byte that we do not accept.
    Code {
        /// The byte
        code: u8,
        /// Where it stands
        pos: usize,
    },
    /// A class or function that we do not accept.
    Global {
        /// Module and name, cut if they are long
        name: String,
        /// Where the opcode stands
        pos: usize,
    },
    /// Accepted codes in a combination that makes no sense.
    Malformed {
        /// What is wrong
        what: &'static str,
        /// Where it was noticed
        pos: usize,
    },
    /// More than [`limits::VALUES_PER_MESSAGE_MAX`] values.
    TooManyValues,
    /// Nested more than [`limits::VALUE_DEPTH_MAX`] deep, or containing itself.
    TooDeep,
}

impl From<UnexpectedEnd> for DecodeError {
    fn from(error: UnexpectedEnd) -> Self {
        Self::End(error)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End(error) => write!(f, "{error}"),
            Self::Code { code, pos } => write!(f, "code {code:#04x} at byte {pos} is not accepted"),
            Self::Global { name, pos } => write!(f, "{name} at byte {pos} is not accepted"),
            Self::Malformed { what, pos } => write!(f, "{what} at byte {pos}"),
            Self::TooManyValues => {
                write!(f, "more than {} values", limits::VALUES_PER_MESSAGE_MAX)
            }
            Self::TooDeep => write!(f, "nested more than {} deep", limits::VALUE_DEPTH_MAX),
        }
    }
}

impl std::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_has_one_form_whatever_its_padding() {
        let integer = |bytes: &'static [u8]| Value::integer(Bytes::from_static(bytes));
        assert_eq!(integer(b""), Value::Int(0));
        assert_eq!(integer(b"\xff"), Value::Int(-1));
        assert_eq!(integer(b"\xff\x00"), Value::Int(255));
        assert_eq!(
            integer(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            Value::Int(-2)
        );
        assert_eq!(integer(b"\0\0\0\0\0\0\0\x80"), Value::Int(i64::MIN));
        let beyond = b"\0\0\0\0\0\0\0\x80\0";
        assert_eq!(
            integer(b"\0\0\0\0\0\0\0\x80\0\0"),
            Value::Long(Bytes::from_static(beyond))
        );
    }
}
