//! What members say to each other: a pickled tuple `(method, arguments)`, `("hello", ("alpha",
//! 7))`.
//!
//! The method is a text, the arguments are a tuple of values; Python's `pickletools` can read it.
//! The bulk of a message, the data of objects, is not copied when it is written: the pickle is
//! opcodes around it.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::limits::SHARED_DATA_LEN_MIN;
use crate::out_queue::Sink;
use crate::pickle;
use crate::value::{DecodeError, Value};

/// A message as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What is to be done
    pub method: String,
    /// With what
    pub args: Vec<Value>,
}

impl Message {
    /// Reads a message. Data in it are slices of `bytes`.
    pub fn decode(bytes: &Bytes) -> Result<Self, MessageError> {
        let Value::Tuple(parts) = pickle::decode(bytes)? else {
            return Err(MessageError::NoMessage);
        };
        let Ok([Value::Text(method), Value::Tuple(args)]) = <[Value; 2]>::try_from(parts) else {
            return Err(MessageError::NoMessage);
        };
        let method = String::from_utf8(method.into()).map_err(|_| MessageError::NoMessage)?;
        Ok(Self { method, args })
    }
}

/// Writes a message, in parts one behind the other. Data of some length are parts by themselves,
/// and not copied.
pub fn encode(method: &'static str, args: Vec<Value>) -> Vec<Bytes> {
    let mut parts = Parts::default();
    let message = Value::Tuple(vec![Value::text(method), Value::Tuple(args)]);
    pickle::encode(&mut parts, &message);
    parts.finish()
}

/// Gathers what is short, and keeps what is long.
#[derive(Default)]
struct Parts {
    parts: Vec<Bytes>,
    tail: BytesMut,
}

impl Parts {
    fn finish(mut self) -> Vec<Bytes> {
        self.push_tail();
        self.parts
    }

    fn push_tail(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(self.tail.split().freeze());
        }
    }
}

impl Sink for Parts {
    fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    fn put_data(&mut self, data: &Bytes) {
        if data.len() < SHARED_DATA_LEN_MIN {
            self.put(data);
        } else {
            self.push_tail();
            self.parts.push(data.clone());
        }
    }
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// They are no pickle of ours.
    Pickle(DecodeError),
    /// They are one, and not of a tuple of a text and a tuple.
    NoMessage,
}

impl From<DecodeError> for MessageError {
    fn from(error: DecodeError) -> Self {
        Self::Pickle(error)
    }
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pickle(error) => write!(f, "no message: {error}"),
            Self::NoMessage => f.write_str("no message: not (method, arguments)"),
        }
    }
}

impl std::error::Error for MessageError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_and_its_bulk_is_not_copied() {
        let data = Bytes::from(vec![7; SHARED_DATA_LEN_MIN]);
        let args = vec![Value::Int(5), Value::Bytes(data.clone()), Value::None];
        let parts = encode("store", args.clone());
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[1].as_ptr(), data.as_ptr());
        let read = Message::decode(&Bytes::from(parts.concat()));
        let method = "store".to_owned();
        assert_eq!(read, Ok(Message { method, args }));
    }

    #[test]
    fn what_python_pickles_is_a_message_too() {
        // pickle.dumps(("hello", ("alpha", 7)), 4) of Python 3.11
        let bytes =
            b"\x80\x04\x95\x17\0\0\0\0\0\0\0\x8c\x05hello\x94\x8c\x05alpha\x94K\x07\x86\x94\
            \x86\x94.";
        let read = Message::decode(&Bytes::from_static(bytes));
        let args = vec![Value::text("alpha"), Value::Int(7)];
        let method = "hello".to_owned();
        assert_eq!(read, Ok(Message { method, args }));
    }

    #[test]
    fn other_pickles_are_no_messages() {
        for bytes in [
            &b"\x80\x02K\x01."[..],
            b"\x80\x02K\x01K\x02\x86.",
            b"",
            b"no",
        ] {
            assert!(Message::decode(&Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
