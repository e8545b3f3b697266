//! Messages: frames to typed calls, and results to frames.

use std::fmt;
use std::vec;

use bytes::Bytes;

use super::errors::RemoteError;
use super::frame::{Around, Frame, FrameError, OutQueue, Sink};
use super::msgpack;
use crate::ids::{Oid, Tid};
use crate::limits::OIDS_PER_CALL_MAX;
use crate::pickle;
use crate::pickle::Reader;
use crate::value::{DecodeError, Value};

/// How values are written. The server announces it; it holds for a connection in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// Pickle
    Z,
    /// Msgpack
    M,
}

impl Encoding {
    /// What a greeting of version 5 announces; `None` for any other frame.
    pub fn greeted(frame: &[u8]) -> Option<Self> {
        match frame {
            b"Z5" => Some(Self::Z),
            b"M5" => Some(Self::M),
            _ => None,
        }
    }
}

/// The Python of a client, which shows in its first call. In pickles it makes a difference to
/// what we may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// Text and bytes are the same, `str`.
    Python2,
    /// Text and bytes are different.
    Python3,
}

/// What a client may send.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all messages are calls, and they are moved once"
)]
pub enum Message {
    /// A sign of life, not to be answered.
    Heartbeat,
    /// Something to do.
    Call(Call),
}

/// A call from a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Whatever the client wants to see again in the reply.
    pub msgid: Value,
    /// No reply, not even an exception, is possible: a call that fails ends the connection.
    pub asynchronous: bool,
    /// The Python that wrote this call.
    pub dialect: Dialect,
    /// Method and arguments
    pub request: Request,
}

/// The methods of a storage server with their arguments.
///
/// `txn` is the client's own name for a transaction: any value, only to be compared. Text is what
/// came, whether text or bytes.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "variants and fields have the names of ZEO")]
pub enum Request {
    Register {
        storage: Bytes,
        read_only: bool,
    },
    GetInfo,
    LastTransaction,
    GetInvalidations {
        tid: Tid,
    },
    LoadBefore {
        oid: Oid,
        tid: Tid,
    },
    LoadSerial {
        oid: Oid,
        serial: Tid,
    },
    GetTid {
        oid: Oid,
    },
    History {
        /// `None` is an object that does not exist, and what is asked of it cannot be wrong: a test
        /// of ZEO's asks for the history of None in a MappingStorage.
        oid: Option<Oid>,
        size: i64,
    },
    NewOids {
        count: i64,
    },
    TpcBegin {
        txn: Value,
        user: Bytes,
        description: Bytes,
        /// A dict
        extension: Value,
        /// The tid that the transaction is to get, if it is copied.
        tid: Option<Tid>,
        status: u8,
    },
    Storea {
        oid: Oid,
        /// `None` if it is no serial at all, which for new objects is common.
        serial: Option<Tid>,
        data: Bytes,
        txn: Value,
    },
    Restorea {
        oid: Oid,
        serial: Tid,
        /// `None` for an undone creation
        data: Option<Bytes>,
        /// A transaction that may have the same data.
        prev_txn: Option<Tid>,
        txn: Value,
    },
    DeleteObject {
        oid: Oid,
        serial: Tid,
        txn: Value,
    },
    CheckCurrentSerialInTransaction {
        oid: Oid,
        serial: Tid,
        txn: Value,
    },
    Undoa {
        /// The tid in base64
        undo_id: Bytes,
        txn: Value,
    },
    StoreBlobStart,
    StoreBlobChunk {
        chunk: Bytes,
    },
    StoreBlobEnd {
        oid: Oid,
        /// As in `Storea`
        serial: Option<Tid>,
        data: Bytes,
        txn: Value,
    },
    StoreBlobShared {
        oid: Oid,
        /// As in `Storea`
        serial: Option<Tid>,
        data: Bytes,
        filename: Bytes,
        txn: Value,
    },
    Vote {
        txn: Value,
    },
    TpcFinish {
        txn: Value,
    },
    TpcAbort {
        txn: Value,
    },
    UndoLog {
        first: i64,
        last: i64,
    },
    UndoInfo {
        first: i64,
        last: i64,
        /// What must be in an entry: pairs of keys and values. Empty if there is no filter.
        filter: Vec<(Value, Value)>,
    },
    Pack {
        /// Seconds since 1970
        time: f64,
        wait: bool,
    },
    SendBlob {
        oid: Oid,
        serial: Tid,
    },
    IteratorStart {
        start: Option<Tid>,
        stop: Option<Tid>,
    },
    IteratorNext {
        iterator: i64,
    },
    IteratorRecordStart {
        iterator: i64,
        tid: Tid,
    },
    IteratorRecordNext {
        iterator: i64,
    },
    IteratorGc {
        iterators: Vec<i64>,
    },
    RecordIternext {
        oid: Option<Oid>,
    },
    ServerStatus,
    SetClientLabel {
        label: Bytes,
    },
    Ping,
}

/// Why a frame is not a call that can be served.
#[derive(Clone, Debug, PartialEq)]
pub enum ProtocolError {
    /// The bytes are no value. Ends the connection.
    Undecodable(DecodeError),
    /// A value, but not of the form of a message. Ends the connection.
    NotAMessage,
    /// No method of that name. Ends the connection.
    UnknownMethod {
        /// The name, cut if it is long
        name: String,
    },
    /// The arguments do not fit the method. A synchronous call is answered with
    /// [`RemoteError::Type`], an asynchronous one ends the connection.
    BadArguments {
        /// As in [`Call`]
        msgid: Value,
        /// As in [`Call`]
        asynchronous: bool,
        /// The method
        method: String,
        /// What is wrong with them
        reason: ArgumentError,
    },
}

/// What is wrong with the arguments of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    /// There are too few.
    Missing,
    /// There are too many.
    TooMany,
    /// One is of a wrong type.
    Type {
        /// Which, from 1
        position: usize,
        /// What it should be
        expected: &'static str,
    },
}

/// The four parts of a message of either side, whatever they mean: msgid, flag, name, and
/// arguments or result.
///
/// # Errors
///
/// The bytes are no value, or the value is no tuple of four.
pub fn parts(encoding: Encoding, frame: &Bytes) -> Result<[Value; 4], ProtocolError> {
    let value = match encoding {
        Encoding::Z => pickle::decode(frame),
        Encoding::M => msgpack::decode(frame),
    };
    let Value::Tuple(parts) = value.map_err(ProtocolError::Undecodable)? else {
        return Err(ProtocolError::NotAMessage);
    };
    <[Value; 4]>::try_from(parts).map_err(|_| ProtocolError::NotAMessage)
}

/// Reads a message from a client.
pub fn decode(encoding: Encoding, frame: &Bytes) -> Result<Message, ProtocolError> {
    let [msgid, flag, name, arguments] = parts(encoding, frame)?;
    if msgid == Value::Int(-1) {
        return Ok(Message::Heartbeat);
    }
    if !is_handle(&msgid) {
        return Err(ProtocolError::NotAMessage);
    }
    let dialect = match name {
        Value::Text(_) => Dialect::Python3,
        _ => Dialect::Python2,
    };
    let (Some(asynchronous), Some(name), Value::Tuple(values)) =
        (as_bool(&flag), name.string(), arguments)
    else {
        return Err(ProtocolError::NotAMessage);
    };
    let shown = || name[..name.len().min(60)].escape_ascii().to_string();
    match Request::new(name, values) {
        Ok(Some(request)) => Ok(Message::Call(Call {
            msgid,
            asynchronous,
            dialect,
            request,
        })),
        Ok(None) => Err(ProtocolError::UnknownMethod { name: shown() }),
        Err(reason) => Err(ProtocolError::BadArguments {
            msgid,
            asynchronous,
            method: shown(),
            reason,
        }),
    }
}

impl Request {
    /// The name of the method.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::GetInfo => "get_info",
            Self::LastTransaction => "lastTransaction",
            Self::GetInvalidations { .. } => "getInvalidations",
            Self::LoadBefore { .. } => "loadBefore",
            Self::LoadSerial { .. } => "loadSerial",
            Self::GetTid { .. } => "getTid",
            Self::History { .. } => "history",
            Self::NewOids { .. } => "new_oids",
            Self::TpcBegin { .. } => "tpc_begin",
            Self::Storea { .. } => "storea",
            Self::Restorea { .. } => "restorea",
            Self::DeleteObject { .. } => "deleteObject",
            Self::CheckCurrentSerialInTransaction { .. } => "checkCurrentSerialInTransaction",
            Self::Undoa { .. } => "undoa",
            Self::StoreBlobStart => "storeBlobStart",
            Self::StoreBlobChunk { .. } => "storeBlobChunk",
            Self::StoreBlobEnd { .. } => "storeBlobEnd",
            Self::StoreBlobShared { .. } => "storeBlobShared",
            Self::Vote { .. } => "vote",
            Self::TpcFinish { .. } => "tpc_finish",
            Self::TpcAbort { .. } => "tpc_abort",
            Self::UndoLog { .. } => "undoLog",
            Self::UndoInfo { .. } => "undoInfo",
            Self::Pack { .. } => "pack",
            Self::SendBlob { .. } => "sendBlob",
            Self::IteratorStart { .. } => "iterator_start",
            Self::IteratorNext { .. } => "iterator_next",
            Self::IteratorRecordStart { .. } => "iterator_record_start",
            Self::IteratorRecordNext { .. } => "iterator_record_next",
            Self::IteratorGc { .. } => "iterator_gc",
            Self::RecordIternext { .. } => "record_iternext",
            Self::ServerStatus => "server_status",
            Self::SetClientLabel { .. } => "set_client_label",
            Self::Ping => "ping",
        }
    }

    /// `None` if there is no such method.
    fn new(name: &[u8], values: Vec<Value>) -> Result<Option<Self>, ArgumentError> {
        let mut args = Arguments {
            values: values.into_iter(),
            position: 0,
        };
        let request = match name {
            b"loadBefore" => Self::LoadBefore {
                oid: args.oid()?,
                tid: args.tid()?,
            },
            b"storea" => Self::Storea {
                oid: args.oid()?,
                serial: args.any_serial()?,
                data: args.data()?,
                txn: args.handle()?,
            },
            b"register" => Self::Register {
                storage: args.text()?,
                read_only: args.bool()?,
            },
            b"get_info" => Self::GetInfo,
            b"lastTransaction" => Self::LastTransaction,
            b"getInvalidations" => Self::GetInvalidations { tid: args.tid()? },
            b"loadSerial" => Self::LoadSerial {
                oid: args.oid()?,
                serial: args.tid()?,
            },
            b"getTid" => Self::GetTid { oid: args.oid()? },
            b"history" => {
                let oid = args.oid_or_none()?;
                let size = match oid {
                    Some(_) => args.or(1, Arguments::int)?,
                    None => args.or(1, |args| args.value().map(|_| 1))?,
                };
                Self::History { oid, size }
            }
            b"new_oids" => Self::NewOids {
                count: args.or(OIDS_PER_CALL_MAX.cast_signed(), Arguments::int)?,
            },
            b"tpc_begin" => Self::TpcBegin {
                txn: args.handle()?,
                user: args.text()?,
                description: args.text()?,
                extension: args.extension()?,
                tid: args.or(None, Arguments::tid_or_none)?,
                status: args.or(b' ', Arguments::status)?,
            },
            b"restorea" => Self::Restorea {
                oid: args.oid()?,
                serial: args.tid()?,
                data: args.bytes_or_none()?,
                prev_txn: args.tid_or_none()?,
                txn: args.handle()?,
            },
            b"deleteObject" => Self::DeleteObject {
                oid: args.oid()?,
                serial: args.tid()?,
                txn: args.handle()?,
            },
            b"checkCurrentSerialInTransaction" => Self::CheckCurrentSerialInTransaction {
                oid: args.oid()?,
                serial: args.tid()?,
                txn: args.handle()?,
            },
            b"undoa" => Self::Undoa {
                undo_id: args.text()?,
                txn: args.handle()?,
            },
            b"storeBlobStart" => Self::StoreBlobStart,
            b"storeBlobChunk" => Self::StoreBlobChunk {
                chunk: args.bytes()?,
            },
            b"storeBlobEnd" => Self::StoreBlobEnd {
                oid: args.oid()?,
                serial: args.any_serial()?,
                data: args.data()?,
                txn: args.handle()?,
            },
            b"storeBlobShared" => Self::StoreBlobShared {
                oid: args.oid()?,
                serial: args.any_serial()?,
                data: args.data()?,
                filename: args.text()?,
                txn: args.handle()?,
            },
            b"vote" => Self::Vote {
                txn: args.handle()?,
            },
            b"tpc_finish" => Self::TpcFinish {
                txn: args.handle()?,
            },
            b"tpc_abort" => Self::TpcAbort {
                txn: args.handle()?,
            },
            b"undoLog" => Self::UndoLog {
                first: args.int()?,
                last: args.int()?,
            },
            b"undoInfo" => Self::UndoInfo {
                first: args.int()?,
                last: args.int()?,
                filter: args.filter()?,
            },
            b"pack" => Self::Pack {
                time: args.float()?,
                wait: args.or(true, Arguments::bool)?,
            },
            b"sendBlob" => Self::SendBlob {
                oid: args.oid()?,
                serial: args.tid()?,
            },
            b"iterator_start" => Self::IteratorStart {
                start: args.tid_or_none()?,
                stop: args.tid_or_none()?,
            },
            b"iterator_next" => Self::IteratorNext {
                iterator: args.int()?,
            },
            b"iterator_record_start" => Self::IteratorRecordStart {
                iterator: args.int()?,
                tid: args.tid()?,
            },
            b"iterator_record_next" => Self::IteratorRecordNext {
                iterator: args.int()?,
            },
            b"iterator_gc" => Self::IteratorGc {
                iterators: args.ints()?,
            },
            b"record_iternext" => Self::RecordIternext {
                oid: args.or(None, Arguments::oid_or_none)?,
            },
            b"server_status" => Self::ServerStatus,
            b"set_client_label" => Self::SetClientLabel {
                label: args.text()?,
            },
            b"ping" => Self::Ping,
            _ => return Ok(None),
        };
        if args.values.len() > 0 {
            return Err(ArgumentError::TooMany);
        }
        Ok(Some(request))
    }
}

/// The arguments of a call that are not used yet.
struct Arguments {
    values: vec::IntoIter<Value>,
    /// Of the one used last, from 1.
    position: usize,
}

type Argument<T> = Result<T, ArgumentError>;

/// Whether a value can be a client's name for something, which we keep and send back: a number, a
/// short string, or a few of these. Others could be made small to send and large to send back.
fn is_handle(value: &Value) -> bool {
    let scalar_len = |value: &Value| match value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Id(_) => Some(0),
        Value::Long(bytes) | Value::Text(bytes) | Value::Bytes(bytes) | Value::Str(bytes) => {
            Some(bytes.len())
        }
        Value::Tuple(_)
        | Value::List(_)
        | Value::Oids(_)
        | Value::Dict(_)
        | Value::Prefix(_)
        | Value::Gap(_) => None,
    };
    let len = match value {
        Value::Tuple(values) if values.len() <= HANDLE_VALUES_MAX => {
            values.iter().map(scalar_len).sum()
        }
        scalar => scalar_len(scalar),
    };
    len.is_some_and(|len: usize| len <= HANDLE_LEN_MAX)
}

/// Values in a msgid or the name of a transaction; stock clients send one number, or two strings.
const HANDLE_VALUES_MAX: usize = 4;

/// Bytes of strings in a msgid or the name of a transaction; stock clients send 16.
const HANDLE_LEN_MAX: usize = 256;

impl Arguments {
    fn handle(&mut self) -> Argument<Value> {
        self.typed("a number or a short string", |value| {
            is_handle(&value).then_some(value)
        })
    }

    fn value(&mut self) -> Argument<Value> {
        self.position += 1;
        self.values.next().ok_or(ArgumentError::Missing)
    }

    fn typed<T>(
        &mut self,
        expected: &'static str,
        convert: impl FnOnce(Value) -> Option<T>,
    ) -> Argument<T> {
        let value = self.value()?;
        convert(value).ok_or(ArgumentError::Type {
            position: self.position,
            expected,
        })
    }

    /// An argument that may be left out.
    fn or<T>(&mut self, default: T, argument: fn(&mut Self) -> Argument<T>) -> Argument<T> {
        if self.values.len() == 0 {
            return Ok(default);
        }
        argument(self)
    }

    fn oid(&mut self) -> Argument<Oid> {
        self.typed("an oid", as_oid)
    }

    fn oid_or_none(&mut self) -> Argument<Option<Oid>> {
        self.typed("an oid or None", |value| or_none(value, as_oid))
    }

    fn tid(&mut self) -> Argument<Tid> {
        self.typed("a tid", as_tid)
    }

    fn tid_or_none(&mut self) -> Argument<Option<Tid>> {
        self.typed("a tid or None", |value| or_none(value, as_tid))
    }

    /// Clients send all sorts of things as the serial of a new object.
    fn any_serial(&mut self) -> Argument<Option<Tid>> {
        Ok(as_tid(self.value()?))
    }

    fn bytes(&mut self) -> Argument<Bytes> {
        self.typed("bytes", as_bytes)
    }

    /// The record of an object. ZEO looks at it no sooner than it has to, so a text passes, too.
    fn data(&mut self) -> Argument<Bytes> {
        self.typed("bytes", |value| value.string().cloned())
    }

    fn bytes_or_none(&mut self) -> Argument<Option<Bytes>> {
        self.typed("bytes or None", |value| or_none(value, as_bytes))
    }

    fn text(&mut self) -> Argument<Bytes> {
        self.typed("text", |value| value.string().cloned())
    }

    fn int(&mut self) -> Argument<i64> {
        self.typed("an integer", |value| as_int(&value))
    }

    fn ints(&mut self) -> Argument<Vec<i64>> {
        self.typed("integers", |value| match value {
            Value::List(items) | Value::Tuple(items) => items.iter().map(as_int).collect(),
            _ => None,
        })
    }

    fn bool(&mut self) -> Argument<bool> {
        self.typed("a boolean", |value| as_bool(&value))
    }

    fn float(&mut self) -> Argument<f64> {
        self.typed("a number", |value| match value {
            Value::Float(float) => Some(float),
            Value::Int(int) => Some(int as f64),
            _ => None,
        })
    }

    fn status(&mut self) -> Argument<u8> {
        self.typed("a character", |value| match value.string()?[..] {
            [status] => Some(status),
            _ => None,
        })
    }

    /// A dict with names as keys. They come as `bin` from Python 2 in msgpack; taken for bytes,
    /// they would be other names to Python 3.
    fn extension(&mut self) -> Argument<Value> {
        self.typed("a dict", |value| match value {
            Value::Dict(pairs) => Some(Value::Dict(
                pairs
                    .into_iter()
                    .map(|(key, value)| match key {
                        Value::Bytes(name) => (Value::Str(name), value),
                        key => (key, value),
                    })
                    .collect(),
            )),
            _ => None,
        })
    }

    fn filter(&mut self) -> Argument<Vec<(Value, Value)>> {
        self.typed("a dict or None", |value| match value {
            Value::Dict(pairs) => Some(pairs),
            Value::None => Some(Vec::new()),
            _ => None,
        })
    }
}

fn or_none<T>(value: Value, convert: fn(Value) -> Option<T>) -> Option<Option<T>> {
    match value {
        Value::None => Some(None),
        value => convert(value).map(Some),
    }
}

fn as_bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::Bytes(bytes) | Value::Str(bytes) => Some(bytes),
        _ => None,
    }
}

fn as_oid(value: Value) -> Option<Oid> {
    Oid::from_slice(&as_bytes(value)?)
}

fn as_tid(value: Value) -> Option<Tid> {
    Tid::from_slice(&as_bytes(value)?)
}

const fn as_int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(int) => Some(*int),
        _ => None,
    }
}

const fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(bool) => Some(*bool),
        Value::Int(int) => Some(*int != 0),
        Value::None => Some(false),
        _ => None,
    }
}

/// Writes messages to one client, or to all that share encoding and dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoder {
    encoding: Encoding,
    dialect: Dialect,
}

impl Encoder {
    /// For a connection with this encoding and a client on this Python.
    pub const fn new(encoding: Encoding, dialect: Dialect) -> Self {
        Self { encoding, dialect }
    }

    /// Queues the result of a call. Big byte strings in it are queued as they are, not copied.
    pub fn reply(&self, out: &mut OutQueue, msgid: &Value, result: &Value) {
        let mut frame = out.frame();
        self.encode(&mut frame, [msgid, &Value::Int(0), &REPLY, result]);
        if let Err(FrameError::TooLong { len, .. }) = frame.finish() {
            let error = RemoteError::Other {
                class: "builtins.ValueError",
                message: format!("{len} bytes do not fit into a reply"),
            };
            self.exception(out, msgid, &error);
        }
    }

    /// The result of a call with a [`Value::Gap`] in it: what of its frame comes before the gap,
    /// and what behind.
    ///
    /// # Errors
    ///
    /// The frame is too long.
    pub fn reply_around(&self, msgid: &Value, result: &Value) -> Result<[Bytes; 2], FrameError> {
        let mut around = Around::default();
        self.encode(&mut around, [msgid, &Value::Int(0), &REPLY, result]);
        around.finish()
    }

    /// Queues an exception as the result of a call.
    pub fn exception(&self, out: &mut OutQueue, msgid: &Value, error: &RemoteError) {
        let mut frame = out.frame();
        self.encode(
            &mut frame,
            [msgid, &Value::Int(2), &REPLY, &error.to_value()],
        );
        finish_small(frame);
    }

    /// Queues a call to the client.
    pub fn notice(&self, out: &mut OutQueue, name: &'static str, args: Vec<Value>) {
        let mut frame = out.frame();
        let (name, args) = (Value::text(name), Value::Tuple(args));
        self.encode(
            &mut frame,
            [&Value::Int(0), &Value::Bool(true), &name, &args],
        );
        finish_small(frame);
    }

    /// A call to the client as a frame for [`OutQueue::push`], to be written once for many clients.
    pub fn notice_frame(&self, name: &'static str, args: Vec<Value>) -> Bytes {
        let mut out = OutQueue::default();
        self.notice(&mut out, name, args);
        out.into_bytes()
    }
    fn encode(&self, sink: &mut impl Sink, message: [&Value; 4]) {
        match (self.encoding, self.dialect) {
            (Encoding::Z, Dialect::Python2) => {
                pickle::encode_message(sink, Reader::Python2, message);
            }
            (Encoding::Z, Dialect::Python3) => {
                pickle::encode_message(sink, Reader::Python3, message);
            }
            (Encoding::M, _) => msgpack::encode_message(sink, message),
        }
    }
}

/// Finishes a frame without object data. Exceptions have a few bytes; a notice would need a
/// transaction of 400 million objects to be too long for the length field.
fn finish_small(frame: Frame<'_>) {
    let finished = frame.finish();
    debug_assert!(finished.is_ok());
}

const REPLY: Value = Value::text(".reply");

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecodable(error) => write!(f, "undecodable message: {error}"),
            Self::NotAMessage => write!(f, "a value that is no message"),
            Self::UnknownMethod { name } => write!(f, "unknown method {name}"),
            Self::BadArguments { method, reason, .. } => write!(f, "{method}: {reason}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "an argument is missing"),
            Self::TooMany => write!(f, "too many arguments"),
            Self::Type { position, expected } => write!(f, "argument {position} is not {expected}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SHARED_DATA_LEN_MIN;

    const OID: Oid = Oid(1);
    const TID: Tid = Tid(0x040d_277b_9f84_8e33);

    fn call(name: &'static str, args: Vec<Value>) -> Result<Message, ProtocolError> {
        let message = [
            &Value::Int(5),
            &Value::Bool(false),
            &Value::text(name),
            &Value::Tuple(args),
        ];
        let mut frame = Vec::new();
        pickle::encode_message(&mut frame, Reader::Python3, message);
        decode(Encoding::Z, &frame.into())
    }

    fn request(name: &'static str, args: Vec<Value>) -> Request {
        match call(name, args) {
            Ok(Message::Call(call)) => call.request,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn reason(name: &'static str, args: Vec<Value>) -> ArgumentError {
        match call(name, args) {
            Err(ProtocolError::BadArguments { method, reason, .. }) if method == name => reason,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn what_is_sent_back_cannot_be_made_large() {
        let oid = Bytes::from_static(b"12345678");
        let pair = Value::Tuple(vec![Value::Bytes(oid.clone()), Value::Bytes(oid)]);
        assert!(is_handle(&pair) && is_handle(&Value::Int(7)));
        let nested = Value::Tuple(vec![pair]);
        let long = Value::Text(Bytes::from(vec![b'x'; HANDLE_LEN_MAX + 1]));
        let many = Value::Tuple(vec![Value::None; HANDLE_VALUES_MAX + 1]);
        for value in [nested, long, many, Value::List(Vec::new())] {
            assert!(!is_handle(&value), "{value:?}");
        }
    }

    #[test]
    fn every_method_has_the_name_that_calls_it() {
        let (oid, tid) = (|| Value::from(OID), || Value::from(TID));
        let int = || Value::Int(3);
        let text = || Value::text("x");
        let data = || Value::Bytes(Bytes::from_static(b"data"));
        for (name, args) in [
            ("register", vec![text(), Value::Bool(true)]),
            ("get_info", vec![]),
            ("lastTransaction", vec![]),
            ("getInvalidations", vec![tid()]),
            ("loadBefore", vec![oid(), tid()]),
            ("loadSerial", vec![oid(), tid()]),
            ("getTid", vec![oid()]),
            ("history", vec![oid(), int()]),
            ("new_oids", vec![int()]),
            (
                "tpc_begin",
                vec![int(), text(), text(), Value::Dict(vec![])],
            ),
            ("storea", vec![oid(), tid(), data(), int()]),
            ("restorea", vec![oid(), tid(), data(), tid(), int()]),
            ("deleteObject", vec![oid(), tid(), int()]),
            ("checkCurrentSerialInTransaction", vec![oid(), tid(), int()]),
            ("undoa", vec![data(), int()]),
            ("storeBlobStart", vec![]),
            ("storeBlobChunk", vec![data()]),
            ("storeBlobEnd", vec![oid(), tid(), data(), int()]),
            ("storeBlobShared", vec![oid(), tid(), data(), text(), int()]),
            ("vote", vec![int()]),
            ("tpc_finish", vec![int()]),
            ("tpc_abort", vec![int()]),
            ("undoLog", vec![int(), int()]),
            ("undoInfo", vec![int(), int(), Value::None]),
            ("pack", vec![Value::Float(1.5), Value::Bool(false)]),
            ("sendBlob", vec![oid(), tid()]),
            ("iterator_start", vec![Value::None, tid()]),
            ("iterator_next", vec![int()]),
            ("iterator_record_start", vec![int(), tid()]),
            ("iterator_record_next", vec![int()]),
            ("iterator_gc", vec![Value::List(vec![int()])]),
            ("record_iternext", vec![Value::None]),
            ("server_status", vec![]),
            ("set_client_label", vec![text()]),
            ("ping", vec![]),
        ] {
            assert_eq!(request(name, args.clone()).name(), name);
            let one_more = [&args[..], &[Value::None, Value::None, Value::None]].concat();
            assert!(call(name, one_more).is_err(), "{name}");
        }
    }

    #[test]
    fn arguments_that_may_be_left_out_have_defaults() {
        assert_eq!(
            request("history", vec![OID.into()]),
            Request::History {
                oid: Some(OID),
                size: 1
            }
        );
        assert_eq!(
            request("history", vec![Value::None, Value::None]),
            Request::History { oid: None, size: 1 }
        );
        assert_eq!(request("new_oids", vec![]), Request::NewOids { count: 100 });
        let empty = || Value::Bytes(Bytes::new());
        assert_eq!(
            request(
                "tpc_begin",
                vec![Value::Int(7), empty(), empty(), Value::Dict(vec![])]
            ),
            Request::TpcBegin {
                txn: Value::Int(7),
                user: Bytes::new(),
                description: Bytes::new(),
                extension: Value::Dict(vec![]),
                tid: None,
                status: b' ',
            }
        );
    }

    #[test]
    fn names_in_an_extension_may_come_as_bytes() {
        let string = Bytes::from_static;
        let value = || Value::Bytes(string(b"value"));
        let extension = Value::Dict(vec![
            (Value::Bytes(string(b"old")), value()),
            (Value::text("new"), value()),
        ]);
        let empty = || Value::Bytes(Bytes::new());
        let Request::TpcBegin { extension, .. } = request(
            "tpc_begin",
            vec![Value::Int(7), empty(), empty(), extension],
        ) else {
            panic!("another call");
        };
        let expected = vec![
            (Value::Str(string(b"old")), value()),
            (Value::text("new"), value()),
        ];
        assert_eq!(extension, Value::Dict(expected));
    }

    #[test]
    fn the_serial_of_a_store_may_be_anything() {
        for (sent, serial) in [
            (TID.into(), Some(TID)),
            (Value::None, None),
            (Value::Bytes(Bytes::new()), None),
            (Value::text("\0\0\0\0\0\0\0\0"), None),
        ] {
            let data = Bytes::from_static(b"data");
            let args = vec![OID.into(), sent, Value::Bytes(data.clone()), Value::Int(7)];
            let txn = Value::Int(7);
            let expected = Request::Storea {
                oid: OID,
                serial,
                data,
                txn,
            };
            assert_eq!(request("storea", args), expected);
        }
    }

    #[test]
    fn wrong_arguments_are_told_apart() {
        assert_eq!(
            reason("loadBefore", vec![OID.into()]),
            ArgumentError::Missing
        );
        assert_eq!(reason("ping", vec![Value::None]), ArgumentError::TooMany);
        assert_eq!(
            reason("loadBefore", vec![OID.into(), Value::text("12345678")]),
            ArgumentError::Type {
                position: 2,
                expected: "a tid",
            }
        );
        assert_eq!(
            reason("history", vec![OID.into(), Value::None]),
            ArgumentError::Type {
                position: 2,
                expected: "an integer",
            }
        );
    }

    #[test]
    fn values_of_another_form_are_no_messages() {
        for pickle in [
            &b"N."[..],
            b").",
            b"(NNNt.",
            b"(NNX\0\0\0\0Nt.",
            b"(NNNNNt.",
        ] {
            let frame = Bytes::copy_from_slice(pickle);
            assert_eq!(decode(Encoding::Z, &frame), Err(ProtocolError::NotAMessage));
        }
        let name = "new_oid".to_owned();
        assert_eq!(
            call("new_oid", vec![]),
            Err(ProtocolError::UnknownMethod { name })
        );
    }

    #[test]
    fn an_exception_is_written_as_clients_expect_it() {
        let conflict = super::super::Conflict {
            oid: OID,
            committed: TID,
            read: Tid(2),
            class_name: None,
        };
        let error = RemoteError::ReadConflict(conflict);
        let mut out = OutQueue::default();
        Encoder::new(Encoding::M, Dialect::Python3).exception(&mut out, &Value::Int(10), &error);
        let body = b"\x94\x0a\x02\xa6.reply\x92\xd9\x23ZODB.POSException.ReadConflictError\
            \x84\xa7message\xbcdatabase read conflict error\
            \xa3oid\xc4\x08\0\0\0\0\0\0\0\x01\xaaclass_name\xc0\
            \xa7serials\x92\xc4\x08\x04\x0d\x27\x7b\x9f\x84\x8e\x33\xc4\x08\0\0\0\0\0\0\0\x02";
        assert_eq!(out.into_bytes()[4..], body[..]);
    }

    #[test]
    fn object_data_are_sent_without_a_copy() {
        let data = Bytes::from(vec![7; SHARED_DATA_LEN_MIN]);
        let result = Value::Tuple(vec![Value::Bytes(data.clone()), TID.into(), Value::None]);
        for encoding in [Encoding::Z, Encoding::M] {
            let mut out = OutQueue::default();
            Encoder::new(encoding, Dialect::Python3).reply(&mut out, &Value::Int(1), &result);
            let mut slices = [std::io::IoSlice::new(&[]); 4];
            assert_eq!(out.slices(&mut slices, usize::MAX), 3);
            assert_eq!(slices[1].as_ptr(), data.as_ptr());
        }
    }
}
