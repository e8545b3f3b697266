//! A call that stores a large object, of which the data are given out as they come.
//!
//! ```text
//!   length │ (msgid, async, "storea", (oid, serial, │ data ... │ txn))
//!          └────────────── start ──────────────────┘└ pieces ─┘└ end ┘
//! ```
//!
//! A client sends a record in one frame with the call around it. What comes before the data tells
//! where they begin and end; they need not be in memory together then. When all has come, the call
//! is decoded with the first bytes of the data in their place.

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::FrameReader;
use super::message::Encoding;
use super::msgpack;
use crate::limits::WHOLE_STORE_LEN_MAX;
use crate::pickle;
use crate::value::Value;

/// Where the data of an object begin and end in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BegunStore {
    /// The name of the method.
    pub(super) method: Bytes,
    /// Where the code and the length of the data stand.
    pub(super) head_pos: usize,
    /// Behind them.
    pub(super) data_pos: usize,
    pub(super) data_len: usize,
    /// The code that is followed by a length of one byte.
    pub(super) short_head: u8,
}

/// A frame that is given out in pieces.
#[derive(Debug)]
pub struct LargeStore {
    /// The call without the data, but for the first of them.
    call: BytesMut,
    /// Where the length of the data stands in `call`, one byte.
    len_pos: usize,
    data_len: usize,
    /// Bytes of data that have not come yet.
    data_left: usize,
    /// Bytes behind the data that have not come yet.
    end_left: usize,
}

/// What comes next of it.
#[derive(Debug)]
pub enum Next {
    /// No more has arrived.
    NotYet,
    /// Data
    Piece(Bytes),
    /// All has come: the call with the first bytes of its data, and the length of all of them.
    Call(Bytes, usize),
}

/// Bytes before the data, and behind them: oid, serial and the names of a transaction and a method
/// take about 100.
const FRAME_LEN_AROUND_MAX: usize = 4096;

/// Bytes of the data that are decoded with their call: what tells a blob from other objects.
const DATA_SHOWN_LEN: usize = 200;

impl LargeStore {
    /// Takes the frame that has begun to come, if it stores a large object. `None` as long as that
    /// cannot be told, too; `Some` of the length of the frame if it can, and does not.
    pub fn begin(encoding: Encoding, frames: &mut FrameReader) -> Result<Option<Self>, usize> {
        let Some((frame_len, begun)) = frames.incomplete() else {
            return Ok(None);
        };
        if frame_len <= WHOLE_STORE_LEN_MAX {
            return Ok(None);
        }
        let is_all = begun.len() >= FRAME_LEN_AROUND_MAX;
        let start = Bytes::copy_from_slice(&begun[..begun.len().min(FRAME_LEN_AROUND_MAX)]);
        let store = match encoding {
            Encoding::Z => begun_pickle(&start),
            Encoding::M => msgpack::begun(&start),
        };
        let is_store = |store: &BegunStore| {
            let end = store.data_pos.checked_add(store.data_len);
            let end_len = end.and_then(|end| frame_len.checked_sub(end));
            matches!(&store.method[..], b"storea" | b"restorea")
                && end_len.is_some_and(|len| len <= FRAME_LEN_AROUND_MAX)
        };
        let Some(store) = store.filter(is_store) else {
            return if is_all { Err(frame_len) } else { Ok(None) };
        };
        frames.begin_pieces();
        let mut call = BytesMut::from(&frames.piece(store.head_pos)[..]);
        let _head = frames.piece(store.data_pos - store.head_pos);
        call.put_slice(&[store.short_head, 0]);
        Ok(Some(Self {
            len_pos: call.len() - 1,
            call,
            data_len: store.data_len,
            data_left: store.data_len,
            end_left: frame_len - store.data_pos - store.data_len,
        }))
    }

    /// What comes next. After [`Next::Call`] it is over.
    pub fn next(&mut self, frames: &mut FrameReader) -> Next {
        if self.data_left > 0 {
            let piece = frames.piece(self.data_left);
            if piece.is_empty() {
                return Next::NotYet;
            }
            self.data_left -= piece.len();
            let shown = self.call.len() - self.len_pos - 1;
            let shown = piece.len().min(DATA_SHOWN_LEN - shown);
            self.call.put_slice(&piece[..shown]);
            return Next::Piece(piece);
        }
        if self.end_left > 0 {
            if self.call[self.len_pos] == 0 {
                let shown = self.call.len() - self.len_pos - 1;
                self.call[self.len_pos] = u8::try_from(shown).unwrap_or(u8::MAX);
            }
            let piece = frames.piece(self.end_left);
            self.end_left -= piece.len();
            self.call.put_slice(&piece);
        }
        match self.end_left {
            0 => Next::Call(std::mem::take(&mut self.call).freeze(), self.data_len),
            _ => Next::NotYet,
        }
    }
}

const _: () = assert!(DATA_SHOWN_LEN <= u8::MAX as usize);
const _: () = assert!(2 * FRAME_LEN_AROUND_MAX < WHOLE_STORE_LEN_MAX);

/// The msgid of the message that a frame begins with, if what has come of it ends within the data
/// of an object: for those who do not wait for the rest.
pub fn begun_msgid(encoding: Encoding, start: &Bytes) -> Option<Value> {
    match encoding {
        Encoding::Z => pickle::cut_off(start)?.before.into_iter().next(),
        Encoding::M => msgpack::begun_msgid(start),
    }
}

/// The call that a frame begins with, up to the data of an object, if these are cut off.
fn begun_pickle(start: &Bytes) -> Option<BegunStore> {
    let cut = pickle::cut_off(start)?;
    // The message id, whether it is asynchronous, and the method; the oid and the serial.
    let [_, _, method, _, _] = &cut.before[..] else {
        return None;
    };
    Some(BegunStore {
        method: method.string()?.clone(),
        head_pos: cut.opcode_pos,
        data_pos: cut.data_pos,
        data_len: cut.data_len,
        short_head: cut.short_opcode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Oid, Tid};
    use crate::zeo::Dialect;
    use crate::zeo::message::{Call, Encoder, Request};
    use crate::zeo::session::{Incoming, Session, SessionError};

    const KINDS: [(Encoding, Dialect); 3] = [
        (Encoding::Z, Dialect::Python3),
        (Encoding::Z, Dialect::Python2),
        (Encoding::M, Dialect::Python3),
    ];

    /// A call of a client, as a frame.
    fn frame(
        (encoding, dialect): (Encoding, Dialect),
        name: &'static str,
        args: Vec<Value>,
    ) -> Bytes {
        Encoder::new(encoding, dialect).notice_frame(name, args)
    }

    fn data(len: usize) -> Bytes {
        (0..len).map(|n| (n * 7 / 3) as u8).collect()
    }

    fn args(data: &Bytes) -> Vec<Value> {
        let data = Value::Bytes(data.clone());
        vec![Oid(1).into(), Tid(2).into(), data, Value::Int(77)]
    }

    fn registered(encoding: Encoding) -> Session {
        let mut session = Session::new(encoding);
        let greeting: &[u8] = match encoding {
            Encoding::Z => b"\0\0\0\x02Z5",
            Encoding::M => b"\0\0\0\x02M5",
        };
        session.receive(greeting);
        assert!(session.next_call().unwrap().is_none());
        session.on_registered();
        session
    }

    /// The pieces of data that a session gives out, and its calls with the lengths of their data.
    fn all(
        session: &mut Session,
        bytes: &[u8],
        step: usize,
    ) -> (Vec<Bytes>, Vec<(Call, Option<usize>)>) {
        let (mut pieces, mut calls) = (Vec::new(), Vec::new());
        for bytes in bytes.chunks(step) {
            session.receive(bytes);
            while let Some(incoming) = session.next_call().unwrap() {
                match incoming {
                    Incoming::Piece(piece) => pieces.push(piece),
                    Incoming::Call(call) => calls.push((call, None)),
                    Incoming::CallWithPieces(call, len) => calls.push((call, Some(len))),
                    Incoming::Status => panic!("no status was asked for"),
                }
            }
        }
        (pieces, calls)
    }

    #[test]
    fn a_long_reply_tells_early_what_it_is_the_reply_to() {
        for (encoding, dialect) in KINDS {
            let mut out = crate::out_queue::OutQueue::default();
            let oid = Value::from(Oid(1));
            let msgid = Value::Tuple(vec![oid.clone(), Value::from(Tid(2))]);
            let result = Value::Tuple(vec![Value::Bytes(data(5000)), oid, Value::None]);
            Encoder::new(encoding, dialect).reply(&mut out, &msgid, &result);
            let start = out.into_bytes().slice(4..260);
            let begun = begun_msgid(encoding, &start).unwrap();
            let Value::Tuple(parts) = begun else {
                panic!("{begun:?}");
            };
            let parts: Vec<_> = parts.iter().filter_map(Value::string).collect();
            assert_eq!(parts, [&Oid(1).to_bytes()[..], &Tid(2).to_bytes()]);
            assert_eq!(begun_msgid(encoding, &Bytes::new()), None);
        }
    }

    #[test]
    fn a_large_store_comes_in_pieces_however_it_arrives() {
        let long = data(WHOLE_STORE_LEN_MAX + 3);
        for kind in KINDS {
            let store = frame(kind, "storea", args(&long));
            let small = frame(kind, "storea", args(&data(300)));
            let stream = [&small[..], &store, &store, &small].concat();
            for step in [977, 65_536] {
                let mut session = registered(kind.0);
                let (pieces, calls) = all(&mut session, &stream, step);
                let expected = [&long[..], &long].concat();
                assert!(pieces.concat() == expected, "{kind:?} {step}");
                let lens: Vec<_> = calls.iter().map(|(_, len)| *len).collect();
                assert_eq!(lens, [None, Some(long.len()), Some(long.len()), None]);
                for (call, _) in &calls[1..3] {
                    assert_eq!((&call.msgid, call.asynchronous), (&Value::Int(0), true));
                    let Request::Storea {
                        oid,
                        serial,
                        data,
                        txn,
                    } = &call.request
                    else {
                        panic!("{:?}", call.request);
                    };
                    assert_eq!(
                        (*oid, *serial, txn),
                        (Oid(1), Some(Tid(2)), &Value::Int(77))
                    );
                    assert_eq!(*data, long[..DATA_SHOWN_LEN]);
                }
            }
        }
    }

    #[test]
    fn a_restored_object_comes_in_pieces_too() {
        let long = data(2 * WHOLE_STORE_LEN_MAX);
        for kind in KINDS {
            let mut args = args(&long);
            args.insert(3, Value::None);
            let restore = frame(kind, "restorea", args);
            let (pieces, calls) = all(&mut registered(kind.0), &restore, 50_000);
            assert!(pieces.concat() == long);
            assert!(matches!(&calls[..], [(call, Some(_))] if call.request.name() == "restorea"));
        }
    }

    #[test]
    fn another_long_frame_comes_as_a_whole_up_to_a_limit() {
        let long = data(WHOLE_STORE_LEN_MAX + 3);
        for kind in KINDS {
            let chunk = frame(kind, "storeBlobChunk", vec![Value::Bytes(long.clone())]);
            let (pieces, calls) = all(&mut registered(kind.0), &chunk, 50_000);
            assert!(pieces.is_empty());
            let [(call, None)] = &calls[..] else {
                panic!("{calls:?}");
            };
            assert_eq!(
                call.request,
                Request::StoreBlobChunk {
                    chunk: long.clone()
                }
            );

            let mut session = registered(kind.0);
            let mut begun = chunk[..8192].to_vec();
            begun[..4].copy_from_slice(&(100_u32 << 20).to_be_bytes());
            session.receive(&begun);
            let error = session.next_call().unwrap_err();
            assert!(matches!(error, SessionError::Frame(_)), "{error}");
        }
    }

    #[test]
    fn what_only_looks_like_a_large_store_is_an_error_of_its_sender() {
        let long = data(WHOLE_STORE_LEN_MAX + 3);
        for kind in KINDS {
            let mut store = frame(kind, "storea", args(&long)).to_vec();
            // The name of the transaction is missing, and the end is wrong.
            let end = store.len() - 5;
            store[end..].fill(0xc1);
            let mut session = registered(kind.0);
            session.receive(&store);
            while let Ok(incoming) = session.next_call() {
                assert!(matches!(incoming, Some(Incoming::Piece(_))));
            }
        }
        // One who has not registered has no business with objects.
        let mut session = Session::new(Encoding::M);
        session.receive(b"\0\0\0\x02M5");
        session.receive(&frame(KINDS[2], "storea", args(&long)));
        assert!(session.next_call().is_err());
    }
}
