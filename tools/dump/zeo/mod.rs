//! A ZEO connection: what both sides say, and which reply belongs to which call.

mod calls;
mod fields;
mod side;

use std::time::Duration;

use bytes::Bytes;
use standby::value::Value;
use standby::zeo::Encoding;
use standby::zeo::client::{self, Received};
use standby::zeo::large_store::begun_msgid;
use standby::zeo::message::{self, Call, ProtocolError, parts};

use self::calls::{Asked, Calls};
use self::side::{Budget, Piece, Side};
use crate::limits::UNANSWERED_SHOWN_MAX;
use crate::message::{Field, Fields, Kind, Message, Way};

/// What all connections together hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Budgets {
    /// Bytes of incomplete frames.
    frames: Budget,
    /// Bytes of calls that wait for their replies, about.
    calls: Budget,
}

/// Protocol state of a connection.
#[derive(Debug)]
pub(crate) struct Zeo {
    encoding: Option<Encoding>,
    sides: [Side; 2],
    /// Whether each side has said its first words.
    greeted: [bool; 2],
    /// What is behind the greetings is nothing that we know.
    is_foreign: bool,
    calls: Calls,
    /// Calls that were forgotten since there were too many.
    pub forgotten: u64,
}

type Time = Option<Duration>;

/// Bytes of a frame's length.
const LENGTH_LEN: usize = 4;

impl Zeo {
    /// `from_start`: whether the greetings will be seen.
    pub(crate) fn new(from_start: bool, budgets: &Budgets) -> Self {
        let side = |way| Side::new(way, from_start, Budget::clone(&budgets.frames));
        Self {
            encoding: None,
            sides: [side(Way::ToServer), side(Way::ToClient)],
            greeted: [!from_start; 2],
            is_foreign: false,
            calls: Calls::new(Budget::clone(&budgets.calls)),
            forgotten: 0,
        }
    }

    /// Whether these may be the first bytes of a connection; `None` as long as they are too few.
    pub(crate) fn is_greeting(way: Way, begin: &[u8]) -> Option<bool> {
        let length = begin.first_chunk::<LENGTH_LEN>()?;
        let len = u32::from_be_bytes(*length) as usize;
        let frame = begin.get(LENGTH_LEN..LENGTH_LEN + len.min(8))?;
        Some(match way {
            Way::ToServer if frame == b"ruok" => true,
            _ => len <= 8 && matches!(frame, [b'Z' | b'M', rest @ ..] if is_version(rest)),
        })
    }

    /// Takes bytes; what they say is appended to `out`.
    pub(crate) fn receive(&mut self, time: Time, way: Way, data: &[u8], out: &mut Vec<Message>) {
        if self.is_foreign {
            return;
        }
        self.sides[way.index()].receive(data);
        while let Some(piece) = self.next(way) {
            self.take(time, way, piece, out);
            if self.is_foreign {
                return;
            }
        }
    }

    fn next(&mut self, way: Way) -> Option<Piece> {
        // Neither a greeting nor a status is a message.
        let speaks = self.greeted[way.index()] && !self.owes_status(way);
        let encoding = self.encoding.filter(|_| speaks);
        self.sides[way.index()].next(encoding)
    }

    /// So many bytes are missing.
    pub(crate) fn gap(&mut self, time: Time, way: Way, len: u64, out: &mut Vec<Message>) {
        self.greeted[way.index()] = true;
        let piece = self.sides[way.index()].gap(len);
        if let Some(piece) = piece {
            self.take(time, way, piece, out);
        }
    }

    /// One side has ended its stream.
    pub(crate) fn finish(&mut self, time: Time, way: Way, out: &mut Vec<Message>) {
        if !self.is_foreign
            && let Some(piece) = self.sides[way.index()].end()
        {
            self.take(time, way, piece, out);
        }
    }

    /// The connection has ended.
    pub(crate) fn end(&mut self, time: Time, out: &mut Vec<Message>) {
        for way in [Way::ToServer, Way::ToClient] {
            self.finish(time, way, out);
        }
        let (mut shown, mut more) = (0, 0_u64);
        for asked in self.calls.drain() {
            if shown == UNANSWERED_SHOWN_MAX {
                more += 1;
                continue;
            }
            shown += 1;
            let mut message = Message::new(time, Kind::Unanswered, asked.method.clone());
            message.way = Some(Way::ToServer);
            message.fields.clone_from(&asked.shown);
            message.fields.push(("why", "no reply".into()));
            message.waited = asked.latency(time);
            if let Some(waited) = message.waited {
                let text = format!("{:.3} ms", waited.as_secs_f64() * 1e3);
                message.fields.push(("waited", text.into()));
            }
            out.push(message);
        }
        if more > 0 {
            let message = Message::new(time, Kind::Trouble, "unanswered").with("more_calls", more);
            out.push(message);
        }
    }

    fn take(&mut self, time: Time, way: Way, piece: Piece, out: &mut Vec<Message>) {
        let trouble = |name: &str| {
            let mut message = Message::new(time, Kind::Trouble, name);
            message.way = Some(way);
            message
        };
        match piece {
            Piece::Frame(frame) => self.frame(time, way, frame, out),
            Piece::LargeStore {
                call,
                data_len,
                frame_len,
            } => {
                let mut message = self.message_of(time, way, &call, Some(data_len));
                message.bytes = call;
                message.len = frame_len + LENGTH_LEN;
                out.push(message);
            }
            Piece::TooLong { begin, len } => {
                let mut message = trouble("too-long").with("len", len);
                message.len = len + LENGTH_LEN;
                // The call has its reply, though we do not know what it says.
                if let Some(asked) = self.asked_for(way, &begin) {
                    message = message.with("reply_to", asked.method);
                    message.fields.extend(asked.shown);
                }
                message.bytes = begin;
                out.push(message);
            }
            Piece::Incomplete { begin, len } => {
                let mut message = trouble("incomplete").with("len", len);
                message.len = len + LENGTH_LEN;
                message.bytes = begin;
                out.push(message);
            }
            Piece::Lost(len) => out.push(trouble("skipped").with("len", len)),
            Piece::Found(encoding, skipped) => {
                self.greeted[way.index()] = true;
                if self.encoding.is_none() {
                    self.encoding = Some(encoding);
                    let name = encoding_name(encoding);
                    let mut message = Message::new(time, Kind::Connection, "guessed");
                    message.way = Some(way);
                    out.push(message.with("protocol", "zeo").with("encoding", name));
                }
                if skipped > 0 {
                    out.push(trouble("skipped").with("len", skipped));
                }
            }
            Piece::Ended { begin, have, len } => {
                let mut message = trouble("ends-within-frame")
                    .with("have", have)
                    .with("len", len);
                message.bytes = begin;
                out.push(message);
            }
        }
    }

    /// The call that a message of the server's, of which this is the begin, is the reply to.
    fn asked_for(&mut self, way: Way, begin: &Bytes) -> Option<Asked> {
        let encoding = self.encoding.filter(|_| way == Way::ToClient)?;
        let msgid = begun_msgid(encoding, begin)?;
        self.calls.take(&calls::key(&msgid))
    }

    fn frame(&mut self, time: Time, way: Way, frame: Bytes, out: &mut Vec<Message>) {
        let has_greeted = std::mem::replace(&mut self.greeted[way.index()], true);
        // A server that keeps its clients waiting gives its status without a greeting.
        let is_status = self.owes_status(way) && Encoding::greeted(&frame).is_none();
        let message = if is_status {
            self.status(time, &frame)
        } else if has_greeted {
            self.message_of(time, way, &frame, None)
        } else {
            self.greeting(time, way, &frame)
        };
        if message.kind == Kind::Trouble && has_greeted && !self.is_foreign {
            // A message that is wrong is no reason to distrust where it ends. But what does not
            // even begin as one is.
            let looks_right = self
                .encoding
                .is_none_or(|encoding| parts(encoding, &frame).is_ok());
            if !looks_right {
                self.sides[way.index()].distrust();
            }
        }
        out.push(message.of_bytes(frame, LENGTH_LEN));
    }

    /// The first frame of a side.
    fn greeting(&mut self, time: Time, way: Way, frame: &Bytes) -> Message {
        let mut message = if frame[..] == *b"ruok" && way == Way::ToServer {
            let asked = Asked::new(time, "ruok", Vec::new());
            self.forgotten += self.calls.put(STATUS, asked, frame.len());
            Message::new(time, Kind::Call, "ruok")
        } else if let Some(encoding) = Encoding::greeted(frame) {
            self.encoding = Some(encoding);
            let text = String::from_utf8_lossy(frame).into_owned();
            Message::new(time, Kind::Greeting, text)
        } else {
            self.is_foreign = true;
            let shown = frame.slice(..frame.len().min(60));
            Message::new(time, Kind::Trouble, "unknown-greeting").with("greeting", shown)
        };
        message.way = Some(way);
        message
    }

    /// What a frame says. `data_len` is that of an object of which the frame has only the begin.
    fn message_of(
        &mut self,
        time: Time,
        way: Way,
        frame: &Bytes,
        data_len: Option<usize>,
    ) -> Message {
        let mut message = match (self.encoding, way) {
            (None, _) => Message::new(time, Kind::Trouble, "no-greeting"),
            (Some(encoding), Way::ToServer) => self.client_says(time, encoding, frame),
            (Some(encoding), Way::ToClient) => self.server_says(time, encoding, frame),
        };
        message.way = Some(way);
        if let Some(data_len) = data_len {
            for (_, field) in &mut message.fields {
                if let Field::Record(_, len) = field {
                    *len = data_len;
                }
            }
        }
        message
    }

    fn client_says(&mut self, time: Time, encoding: Encoding, frame: &Bytes) -> Message {
        match message::decode(encoding, frame) {
            Ok(message::Message::Heartbeat) => Message::new(time, Kind::Heartbeat, "heartbeat"),
            Ok(message::Message::Call(call)) => self.call(time, &call, frame.len()),
            Err(
                error @ (ProtocolError::UnknownMethod { .. } | ProtocolError::BadArguments { .. }),
            ) => self.odd_call(time, encoding, frame, &error),
            Err(error) => undecodable(time, &error.to_string()),
        }
    }

    fn call(&mut self, time: Time, call: &Call, len: usize) -> Message {
        let (name, fields) = (call.request.name(), fields::of_request(&call.request));
        self.asked(time, &call.msgid, call.asynchronous, name, fields, len)
    }

    /// A call that no server of ours would take.
    fn odd_call(
        &mut self,
        time: Time,
        encoding: Encoding,
        frame: &Bytes,
        error: &ProtocolError,
    ) -> Message {
        let Ok([msgid, flag, name, args]) = parts(encoding, frame) else {
            return undecodable(time, &error.to_string());
        };
        let name = name.string().map_or_else(String::new, |name| {
            String::from_utf8_lossy(&name[..name.len().min(100)]).into_owned()
        });
        let is_async = !matches!(flag, Value::Bool(false) | Value::Int(0) | Value::None);
        let fields = vec![
            ("args", Field::Value(args)),
            ("problem", error.to_string().into()),
        ];
        self.asked(time, &msgid, is_async, &name, fields, frame.len())
    }

    fn asked(
        &mut self,
        time: Time,
        msgid: &Value,
        is_async: bool,
        name: &str,
        fields: Fields,
        len: usize,
    ) -> Message {
        let kind = if is_async { Kind::Async } else { Kind::Call };
        if !is_async {
            let asked = Asked::new(time, name, fields::repeated(&fields, len));
            self.forgotten += self.calls.put(calls::key(msgid), asked, len);
        }
        let mut message = Message::new(time, kind, name);
        message.fields = fields;
        message
    }

    fn server_says(&mut self, time: Time, encoding: Encoding, frame: &Bytes) -> Message {
        let received = match client::decode(encoding, frame) {
            Ok(received) => received,
            Err(error) => return undecodable(time, &error.to_string()),
        };
        if let Received::Notice { name, args } = &received {
            let name = String::from_utf8_lossy(&name[..name.len().min(100)]).into_owned();
            let mut message = Message::new(time, Kind::Notice, name);
            message.fields = fields::of_notice(&message.name, args);
            return message;
        }
        let Some((msgid, result)) = fields::result_of(received) else {
            return undecodable(time, "a greeting in the midst");
        };
        if msgid == Value::Int(-1) {
            return Message::new(time, Kind::Heartbeat, "heartbeat");
        }
        let key = calls::key(&msgid);
        let asked = self.calls.take(&key);
        if asked.is_none() {
            self.calls.note_early(key, time);
        }
        let kind = match &result {
            Ok(_) => Kind::Reply,
            Err(_) => Kind::Exception,
        };
        let method = match &asked {
            Some(asked) => asked.method.as_str(),
            // So stock clients call loads, whose msgid are the arguments.
            None if client::load_msgid(&msgid).is_some() => "loadBefore",
            None => "reply",
        };
        let mut message = Message::new(time, kind, method);
        let result = match &result {
            Ok(result) => fields::of_result(method, result),
            Err(raised) => fields::of_raised(raised),
        };
        match asked {
            Some(asked) => {
                message.latency = asked.latency(time);
                message.fields = asked.shown;
            }
            None => message.fields = vec![("msgid", msgid.into())],
        }
        message.fields.extend(result);
        message
    }

    /// Whether what comes this way is the answer to `ruok`.
    fn owes_status(&self, way: Way) -> bool {
        way == Way::ToClient && self.calls.is_waiting(&STATUS)
    }

    /// The answer to `ruok`: JSON.
    fn status(&mut self, time: Time, frame: &Bytes) -> Message {
        let mut message = Message::new(time, Kind::Reply, "ruok").with("status", frame.clone());
        message.way = Some(Way::ToClient);
        if let Some(asked) = self.calls.take(&STATUS) {
            message.latency = asked.latency(time);
        }
        message
    }

    /// Whether a server would not have sent this yet: a reply to a call that was not made, or the
    /// status that was not asked for. For streams that were recorded without times.
    pub(crate) fn is_premature(&self, frame: &Bytes) -> bool {
        if !self.greeted[Way::ToClient.index()] {
            // A server greets first, but for one that was asked for its status.
            return Encoding::greeted(frame).is_none() && !self.greeted[Way::ToServer.index()];
        }
        let Some(encoding) = self.encoding else {
            return !self.calls.is_waiting(&STATUS);
        };
        let Ok(received) = client::decode(encoding, frame) else {
            return !self.greeted[Way::ToServer.index()];
        };
        match fields::result_of(received) {
            Some((msgid, _)) => !self.calls.is_waiting(&calls::key(&msgid)),
            // What a server says by itself is about what clients have done.
            None => false,
        }
    }
}

/// The key of the one call that has no msgid.
const STATUS: calls::Key = calls::Key::Status;

fn undecodable(time: Time, why: &str) -> Message {
    Message::new(time, Kind::Trouble, "undecodable").with("why", why)
}

fn is_version(digits: &[u8]) -> bool {
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// As the greeting has it.
pub(crate) const fn encoding_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Z => "pickle",
        Encoding::M => "msgpack",
    }
}
