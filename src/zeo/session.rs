//! One client's side of the protocol: greeting, registration, the order of calls.
//!
//! ```text
//!   Greeting ── "Z5" ──► Registering ── register answered ──► Registered
//!      │
//!      └── "ruok" ──► (answered and closed)
//! ```
//!
//! Sans-I/O: bytes from the socket go in by [`Session::receive`], calls come out of
//! [`Session::next_call`], answers are queued in [`Session::out`]. What a call does is unknown
//! here.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;

use super::errors::RemoteError;
use super::frame::{FrameError, FrameReader, OutQueue};
use super::large_store::{LargeStore, Next};
use super::load::{self, Load};
use super::message::{Call, Dialect, Encoder, Encoding, Message, ProtocolError, Request, decode};
use crate::ids::Tid;
use crate::limits::{FRAME_LEN_MAX, FRAME_LEN_MAX_UNREGISTERED, WHOLE_FRAME_LEN_MAX};
use crate::value::Value;

/// The version of the protocol behind the letter of the encoding.
const VERSION: u8 = b'5';

/// Protocol state of a connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    encoding: Encoding,
    frames: FrameReader,
    /// A frame that is given out in pieces.
    large_store: Option<Box<LargeStore>>,
    dialect: Dialect,
    encoder: Encoder,
    /// What waits for the socket.
    pub out: OutQueue,
    /// What waits for data of long replies: how many bytes are missing, and what comes behind them.
    behind: VecDeque<(usize, OutQueue)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Registering,
    Registered,
}

/// What a client asked.
#[derive(Debug)]
pub enum Incoming {
    /// `ruok`, the health check: to be answered by [`Session::answer_status`], and closed.
    Status,
    /// A call, in an order that the protocol allows.
    Call(Call),
    /// Data of an object that is about to be stored, one piece behind the other.
    Piece(Bytes),
    /// The call that stores them, and their length. It has the first of them itself.
    CallWithPieces(Call, usize),
}

/// Why a connection has to be closed.
#[derive(Debug)]
pub enum SessionError {
    /// The first frame is not a greeting of ours.
    Greeting(Bytes),
    /// The first bytes are those of TLS, which we do not speak here.
    Tls,
    /// The bytes are not frames.
    Frame(FrameError),
    /// A frame is not a message.
    Protocol(ProtocolError),
    /// A call that has no place now.
    OutOfOrder(&'static str),
}

impl Session {
    /// A new connection. Nothing is sent before [`Self::greet`].
    pub fn new(encoding: Encoding) -> Self {
        Self {
            phase: Phase::Greeting,
            encoding,
            frames: FrameReader::new(FRAME_LEN_MAX_UNREGISTERED),
            large_store: None,
            dialect: Dialect::Python3,
            encoder: Encoder::new(encoding, Dialect::Python3),
            out: OutQueue::default(),
            behind: VecDeque::new(),
        }
    }

    /// Announces the protocol, as the server has to before anything else.
    pub fn greet(&mut self) {
        let greeting = raw_frame(&self.greeting());
        self.push(greeting);
    }

    const fn greeting(&self) -> [u8; 2] {
        let letter = match self.encoding {
            Encoding::Z => b'Z',
            Encoding::M => b'M',
        };
        [letter, VERSION]
    }

    /// Takes bytes from the socket.
    pub fn receive(&mut self, data: &[u8]) {
        self.frames.receive(data);
    }

    /// The next call, if a whole one has arrived. Calls with wrong arguments are answered here.
    ///
    /// # Errors
    ///
    /// The connection has to be closed.
    pub fn next_call(&mut self) -> Result<Option<Incoming>, SessionError> {
        loop {
            let (frame, pieces_len) = match &mut self.large_store {
                Some(large_store) => match large_store.next(&mut self.frames) {
                    Next::NotYet => return Ok(None),
                    Next::Piece(piece) => return Ok(Some(Incoming::Piece(piece))),
                    Next::Call(frame, len) => {
                        self.large_store = None;
                        (frame, Some(len))
                    }
                },
                None => match self.next_frame()? {
                    Some(frame) => (frame, None),
                    None if self.begins_large_store()? => continue,
                    None => return Ok(None),
                },
            };
            if self.phase == Phase::Greeting {
                if frame == b"ruok"[..] {
                    return Ok(Some(Incoming::Status));
                }
                if frame[..] != self.greeting() {
                    return Err(SessionError::Greeting(frame));
                }
                self.phase = Phase::Registering;
                continue;
            }
            let call = match decode(self.encoding, &frame) {
                Ok(Message::Heartbeat) => continue,
                Ok(Message::Call(call)) => call,
                Err(ProtocolError::BadArguments {
                    msgid,
                    asynchronous: false,
                    method,
                    reason,
                }) if self.phase == Phase::Registered => {
                    self.fail(&msgid, &RemoteError::Type(format!("{method}: {reason}")));
                    continue;
                }
                Err(error) => return Err(SessionError::Protocol(error)),
            };
            let is_register = matches!(call.request, Request::Register { .. });
            if is_register != (self.phase == Phase::Registering) {
                return Err(SessionError::OutOfOrder(call.request.name()));
            }
            if is_register {
                self.speak(call.dialect);
            }
            return Ok(Some(match pieces_len {
                None => Incoming::Call(call),
                Some(len) => Incoming::CallWithPieces(call, len),
            }));
        }
    }

    /// Whether a frame has begun to come that is to be given out in pieces.
    fn begins_large_store(&mut self) -> Result<bool, SessionError> {
        if self.phase != Phase::Registered {
            return Ok(false);
        }
        match LargeStore::begin(self.encoding, &mut self.frames) {
            Ok(begun) => self.large_store = begun.map(Box::new),
            Err(len) if len > WHOLE_FRAME_LEN_MAX => {
                return Err(SessionError::Frame(FrameError::TooLong {
                    len,
                    len_max: WHOLE_FRAME_LEN_MAX,
                }));
            }
            Err(_) => {}
        }
        Ok(self.large_store.is_some())
    }

    /// The next call, if it is a load of the usual form. It is not taken: by
    /// [`Self::answer_load`] it will be, or by [`Self::next_call`] as any other.
    pub fn peek_load(&self) -> Option<Load> {
        if self.large_store.is_some() {
            // Its call comes first.
            return None;
        }
        let frame = self.frames.peek()?;
        match self.phase {
            Phase::Registered => load::read(self.encoding, self.dialect, frame),
            _ => None,
        }
    }

    /// Answers the load that [`Self::peek_load`] has shown with the current revision of its
    /// object.
    pub fn answer_load(&mut self, load: &Load, data: &[u8], serial: Tid) {
        self.frames.skip();
        let encoding = self.encoding;
        if load::answer(self.last(), encoding, load, data, serial).is_err() {
            debug_assert!(false, "{} bytes do not fit into a frame", data.len());
        }
    }

    fn next_frame(&mut self) -> Result<Option<Bytes>, SessionError> {
        let next = self.frames.next();
        next.map_err(|error| self.frame_error(error))
    }

    /// A handshake of TLS begins with the type 22, the version (3 and a minor one) and a length
    /// (RFC 8446, section 5.1): taken for the length of a frame, that is far too long.
    const fn frame_error(&self, error: FrameError) -> SessionError {
        let FrameError::TooLong { len, .. } = error;
        match self.phase {
            Phase::Greeting if matches!(len >> 8, 0x16_03_00..=0x16_03_04) => SessionError::Tls,
            _ => SessionError::Frame(error),
        }
    }

    /// The client is registered: from now on it may call all but `register`.
    pub const fn on_registered(&mut self) {
        self.phase = Phase::Registered;
        self.frames.set_len_max(FRAME_LEN_MAX);
    }

    /// The first call shows the client's Python.
    const fn speak(&mut self, dialect: Dialect) {
        self.dialect = dialect;
        self.encoder = Encoder::new(self.encoding, dialect);
    }

    /// The Python of the client.
    pub const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Where the next frame goes.
    fn last(&mut self) -> &mut OutQueue {
        match self.behind.back_mut() {
            Some((_, queue)) => queue,
            None => &mut self.out,
        }
    }

    /// Sends frames that are complete.
    pub fn push(&mut self, frames: Bytes) {
        self.last().push(frames);
    }

    /// Answers a call.
    pub fn reply(&mut self, msgid: &Value, result: &Value) {
        let encoder = self.encoder;
        encoder.reply(self.last(), msgid, result);
    }

    /// Answers a call with a result that has a [`Value::Gap`] of `len` bytes in it. What fills it
    /// comes by [`Self::fill`], after what fills earlier ones; frames that are sent meanwhile wait.
    ///
    /// # Errors
    ///
    /// The reply would be too long; nothing was sent.
    pub fn reply_long(
        &mut self,
        msgid: &Value,
        result: &Value,
        len: usize,
    ) -> Result<(), FrameError> {
        let [before, behind] = self.encoder.reply_around(msgid, result)?;
        self.push(before);
        let mut queue = OutQueue::default();
        queue.push(behind);
        self.behind.push_back((len, queue));
        Ok(())
    }

    /// Sends the next bytes of the first long reply that misses some, no more than these.
    pub fn fill(&mut self, data: Bytes) {
        let Some((left, _)) = self.behind.front_mut() else {
            return;
        };
        debug_assert!(data.len() <= *left, "more than was announced");
        *left = left.saturating_sub(data.len());
        let is_full = *left == 0;
        self.out.push(data);
        if is_full && let Some((_, queue)) = self.behind.pop_front() {
            self.out.append(queue);
        }
    }

    /// Bytes that wait for the socket, or behind what a long reply misses.
    pub fn waiting_len(&self) -> usize {
        let behind = self.behind.iter().map(|(_, queue)| queue.len());
        self.out.len() + behind.sum::<usize>()
    }

    /// Answers a call with an exception.
    pub fn fail(&mut self, msgid: &Value, error: &RemoteError) {
        let encoder = self.encoder;
        encoder.exception(self.last(), msgid, error);
    }

    /// Calls the client.
    pub fn notify(&mut self, name: &'static str, args: Vec<Value>) {
        let encoder = self.encoder;
        encoder.notice(self.last(), name, args);
    }

    /// Answers `ruok`.
    pub fn answer_status(&mut self, json: &str) {
        self.push(raw_frame(json.as_bytes()));
    }
}

/// A frame that is no message.
fn raw_frame(body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    Bytes::from(frame)
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greeting(frame) => {
                let shown = &frame[..frame.len().min(16)];
                write!(
                    f,
                    "its greeting is not ours but \"{}\"",
                    shown.escape_ascii()
                )
            }
            Self::Tls => write!(f, "it speaks TLS, and <zeo> has no <ssl>"),
            Self::Frame(error) => write!(f, "{error}"),
            Self::Protocol(error) => write!(f, "{error}"),
            Self::OutOfOrder(name) => write!(f, "{name} has no place here"),
        }
    }
}

impl std::error::Error for SessionError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_behind_a_long_reply_waits_for_its_data() {
        let data: Bytes = (0..5000_u32).map(|n| n as u8).collect();
        for encoding in [Encoding::Z, Encoding::M] {
            let mut whole = Session::new(encoding);
            let mut pieces = Session::new(encoding);
            let result = |data: Value| Value::Tuple(vec![data, Value::Int(7)]);
            let one = Value::Int(1);
            for _ in 0..2 {
                whole.reply(&one, &result(Value::Bytes(data.clone())));
                whole.notify("info", vec![one.clone()]);
                let gap = result(Value::Gap(data.len()));
                pieces.reply_long(&one, &gap, data.len()).unwrap();
                pieces.notify("info", vec![one.clone()]);
            }
            let before = pieces.waiting_len();
            assert_eq!(before, whole.waiting_len() - 2 * data.len());
            let mut sent = Vec::new();
            for piece in [0..2000, 2000..4000, 4000..5000, 0..4999, 4999..5000] {
                sent.extend(std::mem::take(&mut pieces.out).into_bytes());
                pieces.fill(data.slice(piece));
            }
            sent.extend(std::mem::take(&mut pieces.out).into_bytes());
            assert!(sent == whole.out.into_bytes());
            assert_eq!(pieces.waiting_len(), 0);
        }
    }

    #[test]
    fn a_client_that_speaks_tls_is_told_from_noise() {
        for (bytes, expected) in [
            (&[0x16, 3, 1, 2, 0, 1][..], "it speaks TLS"),
            (&[0x16, 3, 3, 0, 0xf4, 1], "it speaks TLS"),
            (&[0x16, 4, 1, 2, 0, 1], "a frame of"),
            (b"GET / HTTP", "a frame of"),
        ] {
            let mut session = Session::new(Encoding::Z);
            session.receive(bytes);
            let error = session.next_call().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
