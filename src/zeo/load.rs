//! `loadBefore` as stock clients write it, read and answered without a [`Value`].
//!
//! Nearly all that a server is asked is this call, and nearly all of its answers are the current
//! revision of an object. So they have a short way: a frame that is, byte for byte, what a stock
//! client on Python 3 writes (in msgpack also on Python 2) is recognised where it lies, and the
//! answer is written where it is sent from. Nothing is allocated.
//!
//! [`message::decode`](super::message::decode) and [`Encoder::reply`](super::Encoder::reply) say
//! what all this means; a frame of any other form is left to them. That both ways come to the same
//! is tested below.

use bytes::Bytes;

use super::frame::{FrameError, OutQueue, Sink};
use super::message::{Dialect, Encoding};
use super::msgpack;
use crate::cursor::Cursor;
use crate::ids::{Oid, Tid};
use crate::pickle;
use crate::pickle::Reader;
use crate::value::Value;

/// A call of `loadBefore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The object.
    pub oid: Oid,
    /// The revision that was current just before this one.
    pub tid: Tid,
    msgid: Msgid,
}

/// What the client wants to see again in the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Msgid {
    /// The pair of oid and tid: so stock clients write it, to find equal loads.
    Arguments,
    /// A number; not a negative one, which may be a heartbeat.
    Number(u32),
}

/// Reads a frame; `None` unless it is a load of the usual form.
pub fn read(encoding: Encoding, dialect: Dialect, frame: &[u8]) -> Option<Load> {
    let mut cursor = Cursor::new(frame);
    let load = match (encoding, dialect) {
        (Encoding::M, _) => read_msgpack(&mut cursor)?,
        (Encoding::Z, Dialect::Python3) => read_pickle(&mut cursor)?,
        (Encoding::Z, Dialect::Python2) => return None,
    };
    (cursor.remaining() == 0).then_some(load)
}

/// Queues the answer: that the object's current revision is this one.
///
/// # Errors
///
/// The data are too long for a frame; nothing is queued.
pub fn answer(
    out: &mut OutQueue,
    encoding: Encoding,
    load: &Load,
    data: &[u8],
    serial: Tid,
) -> Result<(), FrameError> {
    let (mut before, mut after) = (Short::default(), Short::default());
    match encoding {
        Encoding::M => answer_msgpack(load, data.len(), serial, &mut before, &mut after),
        Encoding::Z => answer_pickle(load, data.len(), serial, &mut before, &mut after),
    }
    let mut frame = out.frame_of(before.len + data.len() + after.len);
    frame.put(before.bytes());
    frame.put(data);
    frame.put(after.bytes());
    frame.finish()
}

/// What stands before the data of a reply, or behind them. Put together here, as the many small
/// pieces cost more one by one.
struct Short {
    bytes: [u8; SHORT_LEN_MAX],
    /// `len <= SHORT_LEN_MAX`: before the data of a reply in pickle it is 48.
    len: usize,
}

/// More than is ever needed.
const SHORT_LEN_MAX: usize = 64;

impl Default for Short {
    fn default() -> Self {
        Self {
            bytes: [0; SHORT_LEN_MAX],
            len: 0,
        }
    }
}

impl Short {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Sink for Short {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    fn put_data(&mut self, data: &Bytes) {
        self.put(data);
    }
}

fn read_msgpack(cursor: &mut Cursor<'_>) -> Option<Load> {
    expect(cursor, b"\x94")?;
    let msgid = match cursor.u8().ok()? {
        number @ 0..=0x7f => Given::Number(number.into()),
        0xcc => Given::Number(cursor.u8().ok()?.into()),
        0xcd => Given::Number(cursor.u16_be().ok()?.into()),
        0xce => Given::Number(cursor.u32_be().ok()?),
        0x92 => Given::Pair(read_ids(cursor, b"\xc4\x08")?),
        _ => return None,
    };
    match cursor.take(2).ok()? {
        b"\xc2\xaa" => {}
        // Python 2, where the name is a `str`.
        b"\xc2\xc4" => expect(cursor, b"\x0a")?,
        _ => return None,
    }
    expect(cursor, b"loadBefore\x92")?;
    let (oid, tid) = read_ids(cursor, b"\xc4\x08")?;
    msgid.load(oid, tid)
}

fn read_pickle(cursor: &mut Cursor<'_>) -> Option<Load> {
    expect(cursor, b"\x80\x03(")?;
    let msgid = match cursor.u8().ok()? {
        b'K' => Given::Number(cursor.u8().ok()?.into()),
        b'M' => Given::Number(cursor.u16_le().ok()?.into()),
        b'J' => Given::Number(i32::try_from(cursor.u32_le().ok()?).ok()?.cast_unsigned()),
        b'C' => {
            expect(cursor, b"\x08")?;
            let oid = Oid::from_bytes(cursor.array().ok()?);
            expect(cursor, b"C\x08")?;
            let tid = Tid::from_bytes(cursor.array().ok()?);
            expect(cursor, b"\x86")?;
            Given::Pair((oid, tid))
        }
        _ => return None,
    };
    expect(cursor, b"\x89X\x0a\0\0\0loadBefore")?;
    let (oid, tid) = read_ids(cursor, b"C\x08")?;
    expect(cursor, b"\x86t.")?;
    msgid.load(oid, tid)
}

/// A msgid before the arguments are known.
enum Given {
    Pair((Oid, Tid)),
    Number(u32),
}

impl Given {
    fn load(self, oid: Oid, tid: Tid) -> Option<Load> {
        let msgid = match self {
            Self::Number(number) => Msgid::Number(number),
            Self::Pair(pair) if pair == (oid, tid) => Msgid::Arguments,
            Self::Pair(_) => return None,
        };
        Some(Load { oid, tid, msgid })
    }
}

/// Two byte strings of eight bytes, each with its head.
fn read_ids(cursor: &mut Cursor<'_>, head: &[u8; 2]) -> Option<(Oid, Tid)> {
    expect(cursor, head)?;
    let oid = Oid::from_bytes(cursor.array().ok()?);
    expect(cursor, head)?;
    let tid = Tid::from_bytes(cursor.array().ok()?);
    Some((oid, tid))
}

fn expect(cursor: &mut Cursor<'_>, bytes: &[u8]) -> Option<()> {
    (cursor.take(bytes.len()).ok()? == bytes).then_some(())
}

fn answer_msgpack(load: &Load, len: usize, serial: Tid, before: &mut Short, after: &mut Short) {
    before.put(b"\x94");
    match load.msgid {
        Msgid::Number(number) => msgpack::encode(before, &Value::Int(number.into())),
        Msgid::Arguments => {
            before.put(b"\x92");
            put_ids(before, b"\xc4\x08", load);
        }
    }
    before.put(b"\x00\xa6.reply\x93");
    msgpack::encode_bytes_head(before, len);
    after.put(b"\xc4\x08");
    after.put(&serial.to_bytes());
    after.put(b"\xc0");
}

fn answer_pickle(load: &Load, len: usize, serial: Tid, before: &mut Short, after: &mut Short) {
    before.put(b"\x80\x03(");
    match load.msgid {
        Msgid::Number(number) => pickle::encode_int(before, number.into()),
        Msgid::Arguments => {
            put_ids(before, b"C\x08", load);
            before.put(b"\x86");
        }
    }
    before.put(b"K\x00X\x06\0\0\0.reply");
    pickle::encode_bytes_head(before, Reader::Python3, len);
    after.put(b"C\x08");
    after.put(&serial.to_bytes());
    after.put(b"N\x87t.");
}

fn put_ids(sink: &mut Short, head: &[u8; 2], load: &Load) {
    sink.put(head);
    sink.put(&load.oid.to_bytes());
    sink.put(head);
    sink.put(&load.tid.to_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zeo::message::{Call, Encoder, Message, Request, decode};

    const OID: Oid = Oid(0x0102_0304_0506_0708);
    const TID: Tid = Tid(0x040d_277b_9f84_8e33);

    const ENCODINGS: [Encoding; 2] = [Encoding::Z, Encoding::M];

    fn id(bytes: [u8; 8]) -> Value {
        Value::Bytes(Bytes::copy_from_slice(&bytes))
    }

    fn pair() -> Value {
        Value::Tuple(vec![id(OID.to_bytes()), id(TID.to_bytes())])
    }

    /// A call of a client on Python 3.
    fn frame(encoding: Encoding, message: [&Value; 4]) -> Vec<u8> {
        let mut frame = Vec::new();
        match encoding {
            Encoding::Z => pickle::encode_message(&mut frame, Reader::Python3, message),
            Encoding::M => msgpack::encode_message(&mut frame, message),
        }
        frame
    }

    fn call(encoding: Encoding, msgid: &Value) -> Vec<u8> {
        let name = Value::text("loadBefore");
        frame(encoding, [msgid, &Value::Bool(false), &name, &pair()])
    }

    /// What the long way makes of a frame.
    fn decoded(encoding: Encoding, frame: &[u8]) -> Option<Call> {
        match decode(encoding, &Bytes::copy_from_slice(frame)) {
            Ok(Message::Call(call)) => Some(call),
            _ => None,
        }
    }

    /// Numbers at the borders of their forms, and the pair.
    fn msgids() -> Vec<Value> {
        let numbers = (0..32).flat_map(|bits| [(1_i64 << bits) - 1, 1 << bits]);
        let numbers = numbers.chain([(1 << 31) - 1, 1_000_000]).map(Value::Int);
        numbers.chain([pair()]).collect()
    }

    #[test]
    fn a_load_is_recognised_and_answered_as_on_the_long_way() {
        for encoding in ENCODINGS {
            for msgid in msgids() {
                let frame = call(encoding, &msgid);
                let Some(load) = read(encoding, Dialect::Python3, &frame) else {
                    // Pickle has no short form for it.
                    assert_eq!((encoding, msgid), (Encoding::Z, Value::Int(1 << 31)));
                    continue;
                };
                let call = decoded(encoding, &frame).unwrap();
                assert_eq!(
                    call.request,
                    Request::LoadBefore {
                        oid: load.oid,
                        tid: load.tid
                    }
                );
                assert_eq!(call.dialect, Dialect::Python3);
                for len in [1, 255, 256, 1023, 1024, 65_535, 65_536] {
                    let data = vec![7; len];
                    let mut short = OutQueue::default();
                    answer(&mut short, encoding, &load, &data, Tid(9)).unwrap();
                    let mut long = OutQueue::default();
                    let data = Value::Bytes(data.into());
                    let result = Value::Tuple(vec![data, Tid(9).into(), Value::None]);
                    Encoder::new(encoding, call.dialect).reply(&mut long, &call.msgid, &result);
                    assert_eq!(
                        short.into_bytes(),
                        long.into_bytes(),
                        "{encoding:?} {load:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_call_that_was_changed_anywhere_is_the_same_on_both_ways_or_left_to_the_long_one() {
        for encoding in ENCODINGS {
            for msgid in [pair(), Value::Int(200), Value::Int(70_000)] {
                let good = call(encoding, &msgid);
                assert!(read(encoding, Dialect::Python3, &good).is_some());
                let cut = (0..good.len()).map(|len| good[..len].to_vec());
                let longer = [good.clone(), vec![0]].concat();
                let changed = (0..good.len()).flat_map(|at| {
                    let good = &good;
                    (0..=255).map(move |byte| {
                        let mut frame = good.clone();
                        frame[at] = byte;
                        frame
                    })
                });
                for frame in cut.chain([longer]).chain(changed) {
                    let Some(load) = read(encoding, Dialect::Python3, &frame) else {
                        continue;
                    };
                    let call = decoded(encoding, &frame).unwrap();
                    let Load { oid, tid, msgid } = load;
                    assert_eq!(call.request, Request::LoadBefore { oid, tid });
                    assert!(!call.asynchronous);
                    match msgid {
                        Msgid::Number(number) => assert_eq!(call.msgid, Value::Int(number.into())),
                        Msgid::Arguments => assert_eq!(
                            call.msgid,
                            Value::Tuple(vec![id(oid.to_bytes()), id(tid.to_bytes())])
                        ),
                    }
                }
            }
        }
    }

    #[test]
    fn other_calls_are_left_to_the_long_way() {
        let name = Value::text("loadBefore");
        let (sync, serial) = (Value::Bool(false), Value::text("loadSerial"));
        let twisted = Value::Tuple(vec![id(TID.to_bytes()), id(OID.to_bytes())]);
        for encoding in ENCODINGS {
            for message in [
                [&Value::Int(-1), &sync, &name, &pair()],
                [&Value::Int(1), &Value::Bool(true), &name, &pair()],
                [&Value::Int(1), &sync, &serial, &pair()],
                [&twisted, &sync, &name, &pair()],
                [&Value::Int(1), &sync, &name, &id(OID.to_bytes())],
            ] {
                let frame = frame(encoding, message);
                assert_eq!(
                    read(encoding, Dialect::Python3, &frame),
                    None,
                    "{message:?}"
                );
            }
        }
        // What Python 2 reads in pickles is different.
        let frame = call(Encoding::Z, &pair());
        assert_eq!(read(Encoding::Z, Dialect::Python2, &frame), None);
    }

    #[test]
    fn the_calls_of_recorded_clients_are_recognised() {
        // tests/data/zeo: py311-zeo6.2-Z, py311-zeo6.2-M and py27-zeo5.4-M, conflict, conn1
        let ids = b"\0\0\0\0\0\0\0\0|\0\0\0\0\0\0\0\x01";
        let (oid, tid) = (&ids[..8], &ids[9..]);
        let pickle = [
            b"\x80\x03(C\x08",
            oid,
            b"C\x08",
            tid,
            b"\x86\x89X\n\0\0\0loadBeforeC\x08",
            oid,
            b"C\x08",
            tid,
            b"\x86t.",
        ];
        let msgpack = |name| {
            let parts: [&[u8]; 9] = [
                b"\x94\x92\xc4\x08",
                oid,
                b"\xc4\x08",
                tid,
                name,
                b"\x92\xc4\x08",
                oid,
                b"\xc4\x08",
                tid,
            ];
            parts.concat()
        };
        let load = Load {
            oid: Oid(0),
            tid: Tid(1),
            msgid: Msgid::Arguments,
        };
        for (encoding, dialect, frame) in [
            (Encoding::Z, Dialect::Python3, pickle.concat()),
            (
                Encoding::M,
                Dialect::Python3,
                msgpack(b"\xc2\xaaloadBefore"),
            ),
            (
                Encoding::M,
                Dialect::Python2,
                msgpack(b"\xc2\xc4\nloadBefore"),
            ),
        ] {
            assert_eq!(read(encoding, dialect, &frame), Some(load), "{encoding:?}");
        }
    }
}
