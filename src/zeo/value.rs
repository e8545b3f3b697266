//! The values that both encodings of ZEO can carry.

use bytes::Bytes;

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
    /// A tuple
    Tuple(Vec<Value>),
    /// A list
    List(Vec<Value>),
    /// A dict, in the order that it was sent.
    Dict(Vec<(Value, Value)>),
    /// An instance of `ZopeUndo.Prefix.Prefix`, the one class that clients send: its `path`.
    Prefix(Vec<Value>),
}
