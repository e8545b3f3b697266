//! The bytes of a load and of its answer, without a detour over values.
//!
//! Loads are nearly all that clients do, and a tool that measures a server must not spend more on
//! one than the server does. A call of `loadBefore` is one form of bytes with oid and tid in known
//! places, and so is the beginning of its answer. The forms are made by the encoders, so that there
//! is no second idea of them.

use bytes::Bytes;

use super::frame::Sink;
use super::message::Encoding;
use super::msgpack;
use crate::ids::{Oid, Tid};
use crate::pickle;
use crate::pickle::Reader;
use crate::pickle_opcode::{BINBYTES, NONE, SHORT_BINBYTES, TUPLE3};
use crate::value::Value;

/// Codes of msgpack.
const ARRAY3: u8 = 0x93;
const NIL: u8 = 0xc0;
const BIN8: u8 = 0xc4;
const BIN16: u8 = 0xc5;
const BIN32: u8 = 0xc6;

/// A revision of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Whose
    pub oid: Oid,
    /// Before which tid was asked.
    pub before: Tid,
    /// The record
    pub data: Bytes,
    /// The transaction that wrote it.
    pub serial: Tid,
    /// The one that replaced it, `None` for the current revision.
    pub end: Option<Tid>,
}

/// The form of `loadBefore` and of its answer in one encoding.
#[derive(Debug)]
pub struct LoadForm {
    encoding: Encoding,
    call: Form,
    /// Up to the result
    reply: Form,
    /// What follows the result.
    reply_end: &'static [u8],
}

/// Bytes with an oid and a tid in some places.
#[derive(Debug)]
struct Form {
    bytes: Vec<u8>,
    oid_places: Vec<usize>,
    tid_places: Vec<usize>,
}

impl LoadForm {
    /// As the encoders write them.
    pub fn new(encoding: Encoding) -> Self {
        // Stand for oid and tid until they are found again; no other part of a message has them.
        let (oid, tid) = (Value::Id(Form::OID), Value::Id(Form::TID));
        let pair = Value::Tuple(vec![oid, tid]);
        let mut call = Vec::new();
        let load = Value::text("loadBefore");
        encode(
            encoding,
            &mut call,
            [&pair, &Value::Bool(false), &load, &pair],
        );
        let mut reply = Vec::new();
        let name = Value::text(".reply");
        encode(
            encoding,
            &mut reply,
            [&pair, &Value::Int(0), &name, &Value::None],
        );
        // The result is one byte, with the end behind it.
        let reply_end: &[u8] = match encoding {
            Encoding::Z => b"t.",
            Encoding::M => b"",
        };
        reply.truncate(reply.len() - 1 - reply_end.len());
        Self {
            encoding,
            call: Form::new(call),
            reply: Form::new(reply),
            reply_end,
        }
    }

    /// Writes a call, with its arguments as msgid, as stock clients do.
    pub fn write_call(&self, sink: &mut impl Sink, oid: Oid, before: Tid) {
        self.call.write(sink, oid, before);
    }

    /// The arguments of a call of this form, `None` for any other frame.
    pub fn read_call(&self, frame: &[u8]) -> Option<(Oid, Tid)> {
        let is_whole = frame.len() == self.call.bytes.len();
        self.call.read(frame).filter(|_| is_whole)
    }

    /// Writes the answer to a call of this form.
    pub fn write_reply(&self, sink: &mut impl Sink, loaded: &Loaded) {
        self.reply.write(sink, loaded.oid, loaded.before);
        // A tuple of three: in msgpack its head comes first, in pickles its opcode comes last.
        if self.encoding == Encoding::M {
            sink.put(&[ARRAY3]);
        }
        encode_bytes(self.encoding, sink, &loaded.data);
        self.write_id(sink, loaded.serial);
        match (loaded.end, self.encoding) {
            (Some(end), _) => self.write_id(sink, end),
            (None, Encoding::Z) => sink.put(&[NONE]),
            (None, Encoding::M) => sink.put(&[NIL]),
        }
        if self.encoding == Encoding::Z {
            sink.put(&[TUPLE3]);
        }
        sink.put(self.reply_end);
    }

    fn write_id(&self, sink: &mut impl Sink, tid: Tid) {
        let code = match self.encoding {
            Encoding::Z => SHORT_BINBYTES,
            Encoding::M => BIN8,
        };
        sink.put(&[code, 8]);
        sink.put(&tid.to_bytes());
    }

    /// An answer of this form, `None` for any other frame.
    pub fn read_reply(&self, frame: &Bytes) -> Option<Loaded> {
        let (oid, before) = self.reply.read(frame)?;
        let mut rest = Rest {
            encoding: self.encoding,
            bytes: frame,
            pos: self.reply.bytes.len(),
        };
        if self.encoding == Encoding::M && rest.byte()? != ARRAY3 {
            return None;
        }
        let data = rest.byte_string()?;
        let serial = Tid::from_slice(&rest.byte_string()?)?;
        let end = if rest.skip_none() {
            None
        } else {
            Some(Tid::from_slice(&rest.byte_string()?)?)
        };
        if self.encoding == Encoding::Z && rest.byte()? != TUPLE3 {
            return None;
        }
        (frame[rest.pos..] == *self.reply_end).then_some(Loaded {
            oid,
            before,
            data,
            serial,
            end,
        })
    }
}

impl Form {
    const OID: [u8; 8] = *b"\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7";
    const TID: [u8; 8] = *b"\xb0\xb1\xb2\xb3\xb4\xb5\xb6\xb7";

    fn new(bytes: Vec<u8>) -> Self {
        let places = |id: [u8; 8]| {
            let windows = bytes.windows(id.len()).enumerate();
            windows
                .filter(|(_, window)| **window == id)
                .map(|(place, _)| place)
                .collect()
        };
        Self {
            oid_places: places(Self::OID),
            tid_places: places(Self::TID),
            bytes,
        }
    }

    fn write(&self, sink: &mut impl Sink, oid: Oid, tid: Tid) {
        let mut written = 0;
        for (oid_place, tid_place) in self.oid_places.iter().zip(&self.tid_places) {
            sink.put(&self.bytes[written..*oid_place]);
            sink.put(&oid.to_bytes());
            sink.put(&self.bytes[oid_place + 8..*tid_place]);
            sink.put(&tid.to_bytes());
            written = tid_place + 8;
        }
        sink.put(&self.bytes[written..]);
    }

    /// What stands in the places, if all around them is as it should be at the start of `frame`.
    fn read(&self, frame: &[u8]) -> Option<(Oid, Tid)> {
        let head = frame.get(..self.bytes.len())?;
        let id = |places: &[usize]| head[*places.first()?..].first_chunk::<8>();
        let (oid, tid) = (id(&self.oid_places)?, id(&self.tid_places)?);
        let mut read = 0;
        for (oid_place, tid_place) in self.oid_places.iter().zip(&self.tid_places) {
            let is_same = |from: usize, to: usize| head[from..to] == self.bytes[from..to];
            if !is_same(read, *oid_place)
                || head[*oid_place..oid_place + 8] != *oid
                || !is_same(oid_place + 8, *tid_place)
                || head[*tid_place..tid_place + 8] != *tid
            {
                return None;
            }
            read = tid_place + 8;
        }
        (head[read..] == self.bytes[read..])
            .then_some((Oid::from_bytes(*oid), Tid::from_bytes(*tid)))
    }
}

/// What is left of a frame.
struct Rest<'a> {
    encoding: Encoding,
    bytes: &'a Bytes,
    pos: usize,
}

impl Rest<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.pos)?;
        self.pos += 1;
        Some(byte)
    }

    fn skip_none(&mut self) -> bool {
        let none = match self.encoding {
            Encoding::Z => NONE,
            Encoding::M => NIL,
        };
        let is_none = self.bytes.get(self.pos) == Some(&none);
        self.pos += usize::from(is_none);
        is_none
    }

    fn byte_string(&mut self) -> Option<Bytes> {
        let code = self.byte()?;
        let width = match (self.encoding, code) {
            (Encoding::Z, SHORT_BINBYTES) | (Encoding::M, BIN8) => 1,
            (Encoding::M, BIN16) => 2,
            (Encoding::Z, BINBYTES) | (Encoding::M, BIN32) => 4,
            _ => return None,
        };
        let mut len = 0_usize;
        for n in 0..width {
            let byte = usize::from(self.byte()?);
            len = match self.encoding {
                Encoding::Z => len | byte << (8 * n),
                Encoding::M => len << 8 | byte,
            };
        }
        let end = self.pos.checked_add(len)?;
        if end > self.bytes.len() {
            return None;
        }
        let bytes = self.bytes.slice(self.pos..end);
        self.pos = end;
        Some(bytes)
    }
}

/// Appends a message.
pub(super) fn encode(encoding: Encoding, sink: &mut impl Sink, message: [&Value; 4]) {
    match encoding {
        Encoding::Z => pickle::encode_message(sink, Reader::Python3, message),
        Encoding::M => msgpack::encode_message(sink, message),
    }
}

/// Appends a byte string.
fn encode_bytes(encoding: Encoding, sink: &mut impl Sink, data: &Bytes) {
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    match (encoding, u8::try_from(len)) {
        (Encoding::Z, Ok(len)) => sink.put(&[SHORT_BINBYTES, len]),
        (Encoding::M, Ok(len)) => sink.put(&[BIN8, len]),
        (Encoding::Z, Err(_)) => {
            sink.put(&[BINBYTES]);
            sink.put(&len.to_le_bytes());
        }
        (Encoding::M, Err(_)) => match u16::try_from(len) {
            Ok(len) => {
                sink.put(&[BIN16]);
                sink.put(&len.to_be_bytes());
            }
            Err(_) => {
                sink.put(&[BIN32]);
                sink.put(&len.to_be_bytes());
            }
        },
    }
    sink.put_data(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    const OID: Oid = Oid(7);
    const TID: Tid = Tid(0x040d_277b_9f84_8e33);

    fn loaded(len: usize, end: Option<Tid>) -> Loaded {
        Loaded {
            oid: OID,
            before: TID,
            data: Bytes::from(vec![b'd'; len]),
            serial: Tid(8),
            end,
        }
    }

    #[test]
    fn replies_are_those_of_the_encoders() {
        for encoding in [Encoding::Z, Encoding::M] {
            for len in [0, 255, 256, 65_535, 65_536] {
                for end in [None, Some(Tid(9))] {
                    let loaded = loaded(len, end);
                    let pair = Value::Tuple(vec![OID.into(), TID.into()]);
                    let result = Value::Tuple(vec![
                        Value::Bytes(loaded.data.clone()),
                        loaded.serial.into(),
                        end.map_or(Value::None, Value::from),
                    ]);
                    let mut expected = Vec::new();
                    let name = Value::text(".reply");
                    encode(
                        encoding,
                        &mut expected,
                        [&pair, &Value::Int(0), &name, &result],
                    );
                    let form = LoadForm::new(encoding);
                    let mut written = Vec::new();
                    form.write_reply(&mut written, &loaded);
                    assert!(written == expected, "{encoding:?} {len} {end:?}");
                    assert_eq!(form.read_reply(&written.into()), Some(loaded));
                }
            }
        }
    }

    #[test]
    fn what_is_not_exactly_of_the_form_is_left_to_others() {
        for encoding in [Encoding::Z, Encoding::M] {
            let form = LoadForm::new(encoding);
            let (mut call, mut reply) = (Vec::new(), Vec::new());
            form.write_call(&mut call, OID, TID);
            form.write_reply(&mut reply, &loaded(4, None));
            assert_eq!(form.read_call(&call), Some((OID, TID)));
            for pos in 0..call.len() {
                assert_eq!(form.read_call(&call[..pos]), None);
                let mut changed = call.clone();
                changed[pos] ^= 1;
                assert_eq!(form.read_call(&changed), None, "byte {pos}");
            }
            let reply = Bytes::from(reply);
            for len in 0..reply.len() {
                assert_eq!(form.read_reply(&reply.slice(..len)), None);
            }
            for frame in [&mut call, &mut reply.to_vec()] {
                frame.push(b'x');
                assert_eq!(form.read_call(frame), None);
                assert_eq!(form.read_reply(&frame.clone().into()), None);
            }
        }
    }
}
