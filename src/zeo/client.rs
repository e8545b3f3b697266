//! A client's side of the protocol, for tools, and for following another server: the mirror image
//! of [`session`](super::session).
//!
//! Sans-I/O like that: bytes from the socket go in by [`ClientSession::receive`], what the server
//! said comes out of [`ClientSession::next`], calls are queued in [`ClientSession::out`]. Matching
//! replies with calls is the caller's business.
//!
//! Loads have a way of their own, both out and in ([`LoadForm`]). A reply that is written in
//! another way is read as any other message.

use std::fmt::{self, Write};

use bytes::Bytes;

use super::frame::{Frame, FrameError, FrameReader, OutQueue, Sink};
use super::load_form::{LoadForm, Loaded, encode};
use super::message::Encoding;
use super::msgpack;
use crate::ids::{Oid, Tid};
use crate::pickle;
use crate::value::{DecodeError, Value};

/// Bytes of a frame from the server. A server that is measured is trusted, but for what the length
/// field of a broken one says; memory is only taken as bytes arrive.
const FRAME_LEN_MAX: usize = 1 << 31;

/// Protocol state of a connection to a server.
#[derive(Debug)]
pub struct ClientSession {
    /// `None` until the server has greeted.
    speech: Option<Speech>,
    frames: FrameReader,
    /// What waits for the socket.
    pub out: OutQueue,
}

/// What the greeting has settled.
#[derive(Debug)]
struct Speech {
    encoding: Encoding,
    loads: LoadForm,
}

/// What a server says.
#[derive(Debug, PartialEq)]
pub enum Received {
    /// The greeting, which was answered: calls may be made.
    Greeting(Encoding),
    /// The answer to [`ClientSession::load_before`], if there is such a revision.
    Loaded(Loaded),
    /// The answer to any other call.
    Reply {
        /// That of the call
        msgid: Value,
        /// What it has returned or raised
        result: Result<Value, Raised>,
    },
    /// A call of the server's.
    Notice {
        /// The method
        name: Bytes,
        /// Its arguments
        args: Vec<Value>,
    },
}

/// An exception of the server's.
#[derive(Clone, Debug, PartialEq)]
pub struct Raised {
    /// Module and class, as in `ZODB.POSException.POSKeyError`
    pub class: String,
    /// Its arguments: a tuple or a dict
    pub arguments: Value,
}

/// What a server must not say.
#[derive(Debug, PartialEq)]
pub enum ClientError {
    /// The first frame is no greeting of version 5.
    Greeting(Bytes),
    /// The bytes are no frames.
    Frame(FrameError),
    /// A frame holds no value.
    Undecodable(DecodeError),
    /// A value, but neither a reply nor a notice.
    NotAMessage,
}

impl Default for ClientSession {
    fn default() -> Self {
        Self {
            speech: None,
            frames: FrameReader::new(FRAME_LEN_MAX),
            out: OutQueue::default(),
        }
    }
}

impl ClientSession {
    /// How values are written, as soon as the server has said so.
    pub fn encoding(&self) -> Option<Encoding> {
        self.speech.as_ref().map(|speech| speech.encoding)
    }

    /// Takes bytes from the socket.
    pub fn receive(&mut self, data: &[u8]) {
        self.frames.receive(data);
    }

    /// What the server said next, if it has arrived as a whole.
    ///
    /// # Errors
    ///
    /// The connection is of no more use.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that ends and then goes on would mislead"
    )]
    pub fn next(&mut self) -> Result<Option<Received>, ClientError> {
        Ok(self.next_framed()?.map(|(received, _)| received))
    }

    /// As [`Self::next`], with the frame that it came in.
    ///
    /// # Errors
    ///
    /// As of [`Self::next`].
    pub fn next_framed(&mut self) -> Result<Option<(Received, Bytes)>, ClientError> {
        let Some(frame) = self.frames.next().map_err(ClientError::Frame)? else {
            return Ok(None);
        };
        let Some(speech) = &self.speech else {
            return Ok(Some((self.on_greeting(frame.clone())?, frame)));
        };
        let received = match speech.loads.read_reply(&frame) {
            Some(loaded) => Received::Loaded(loaded),
            None => decode(speech.encoding, &frame)?,
        };
        Ok(Some((received, frame)))
    }

    fn on_greeting(&mut self, frame: Bytes) -> Result<Received, ClientError> {
        let Some(encoding) = Encoding::greeted(&frame) else {
            return Err(ClientError::Greeting(frame));
        };
        let mut answer = self.out.frame();
        answer.put(&frame);
        finish(answer)?;
        self.speech = Some(Speech {
            encoding,
            loads: LoadForm::new(encoding),
        });
        Ok(Received::Greeting(encoding))
    }

    /// Queues a call that will be answered with `msgid`, which is neither 0 nor -1.
    ///
    /// # Errors
    ///
    /// The call is too long for a frame, and is not queued.
    ///
    /// # Panics
    ///
    /// If the server has not greeted.
    pub fn call(
        &mut self,
        msgid: i64,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<(), ClientError> {
        self.message(&Value::Int(msgid), false, name, args)
    }

    /// Queues a call that is not answered.
    ///
    /// # Errors
    ///
    /// As of [`Self::call`].
    ///
    /// # Panics
    ///
    /// As [`Self::call`].
    pub fn send(&mut self, name: &'static str, args: Vec<Value>) -> Result<(), ClientError> {
        self.message(&Value::Int(0), true, name, args)
    }

    fn message(
        &mut self,
        msgid: &Value,
        asynchronous: bool,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<(), ClientError> {
        let Self { speech, out, .. } = self;
        let speech = speech.as_ref().expect("calls come after the greeting");
        let parts = [
            msgid,
            &Value::Bool(asynchronous),
            &Value::text(name),
            &Value::Tuple(args),
        ];
        let mut frame = out.frame();
        encode(speech.encoding, &mut frame, parts);
        finish(frame)
    }

    /// Queues `loadBefore(oid, before)`, with both as msgid, as stock clients do. The answer is
    /// [`Received::Loaded`], or a [`Received::Reply`] with `None` or an exception.
    ///
    /// # Errors
    ///
    /// None that can occur: the call is short.
    ///
    /// # Panics
    ///
    /// As [`Self::call`].
    pub fn load_before(&mut self, oid: Oid, before: Tid) -> Result<(), ClientError> {
        let Self { speech, out, .. } = self;
        let speech = speech.as_ref().expect("calls come after the greeting");
        let mut frame = out.frame();
        speech.loads.write_call(&mut frame, oid, before);
        finish(frame)
    }
}

/// What [`ClientSession::load_before`] has as its msgid.
pub fn load_msgid(msgid: &Value) -> Option<(Oid, Tid)> {
    let Value::Tuple(parts) = msgid else {
        return None;
    };
    let [oid, before] = &parts[..] else {
        return None;
    };
    let (oid, before) = (oid.string()?, before.string()?);
    Some((Oid::from_slice(oid)?, Tid::from_slice(before)?))
}

fn finish(frame: Frame<'_>) -> Result<(), ClientError> {
    frame.finish().map_err(ClientError::Frame)
}

/// Reads one message of a server, behind its greeting: what [`ClientSession::next`] does with a
/// frame, for those who look at a conversation from outside.
///
/// # Errors
///
/// It is none.
pub fn decode(encoding: Encoding, frame: &Bytes) -> Result<Received, ClientError> {
    let value = match encoding {
        // An exception that is part of a result is an instance.
        Encoding::Z => pickle::decode_any(frame),
        Encoding::M => msgpack::decode(frame),
    };
    let Value::Tuple(parts) = value.map_err(ClientError::Undecodable)? else {
        return Err(ClientError::NotAMessage);
    };
    let parts = <[Value; 4]>::try_from(parts).map_err(|_| ClientError::NotAMessage)?;
    let [msgid, flag, name, content] = parts;
    let name = name.string().ok_or(ClientError::NotAMessage)?;
    let flag = !matches!(flag, Value::Int(0) | Value::Bool(false) | Value::None);
    if name[..] != *b".reply" {
        return match content {
            Value::Tuple(args) | Value::List(args) => Ok(Received::Notice {
                name: name.clone(),
                args,
            }),
            _ => Err(ClientError::NotAMessage),
        };
    }
    let result = if flag {
        Err(Raised::new(content).ok_or(ClientError::NotAMessage)?)
    } else {
        Ok(content)
    };
    Ok(loaded(&msgid, &result).map_or(Received::Reply { msgid, result }, Received::Loaded))
}

/// A reply to a load that is not written as we write it.
fn loaded(msgid: &Value, result: &Result<Value, Raised>) -> Option<Loaded> {
    let (oid, before) = load_msgid(msgid)?;
    let Ok(Value::Tuple(parts)) = result else {
        return None;
    };
    let [data, serial, end] = &parts[..] else {
        return None;
    };
    Some(Loaded {
        oid,
        before,
        data: data.string()?.clone(),
        serial: Tid::from_slice(serial.string()?)?,
        end: match end {
            Value::None => None,
            end => Some(Tid::from_slice(end.string()?)?),
        },
    })
}

impl Raised {
    fn new(content: Value) -> Option<Self> {
        let Value::Tuple(parts) = content else {
            return None;
        };
        let [class, arguments] = <[Value; 2]>::try_from(parts).ok()?;
        Some(Self {
            class: String::from_utf8_lossy(class.string()?).into_owned(),
            arguments,
        })
    }

    /// The class without its module.
    pub fn short_class(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or_default()
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = Beginning {
            text: String::new(),
            left: 100,
        };
        // It ends with an error when it is full.
        let _ = write!(shown, "{}", self.class.escape_debug());
        shown.left = 200;
        let _ = write!(shown, ": {:?}", self.arguments);
        f.write_str(&shown.text)
    }
}

/// As many characters of a text as are left to it; the rest is not even made.
struct Beginning {
    text: String,
    left: usize,
}

impl fmt::Write for Beginning {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            self.left = self.left.checked_sub(1).ok_or(fmt::Error)?;
            self.text.push(char);
        }
        Ok(())
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greeting(frame) => {
                let shown = &frame[..frame.len().min(16)];
                write!(f, "\"{}\" is no greeting of ZEO 5", shown.escape_ascii())
            }
            Self::Frame(error) => write!(f, "{error}"),
            Self::Undecodable(error) => write!(f, "undecodable message: {error}"),
            Self::NotAMessage => write!(f, "a value that is no message of a server"),
        }
    }
}

impl std::error::Error for ClientError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zeo::session::{Incoming, Session};
    use crate::zeo::{Call, RemoteError, Request};

    const OID: Oid = Oid(7);
    const TID: Tid = Tid(0x040d_277b_9f84_8e33);

    /// Both sides after the greeting.
    fn pair(encoding: Encoding) -> (ClientSession, Session) {
        let mut server = Session::new(encoding);
        let mut client = ClientSession::default();
        server.greet();
        to_client(&mut server, &mut client);
        assert_eq!(client.next(), Ok(Some(Received::Greeting(encoding))));
        client
            .call(1, "register", vec![Value::text("1"), Value::Bool(false)])
            .unwrap();
        let call = to_server(&mut client, &mut server);
        assert!(matches!(call.request, Request::Register { .. }));
        server.on_registered();
        (client, server)
    }

    fn to_client(server: &mut Session, client: &mut ClientSession) {
        client.receive(&std::mem::take(&mut server.out).into_bytes());
    }

    fn to_server(client: &mut ClientSession, server: &mut Session) -> Call {
        server.receive(&std::mem::take(&mut client.out).into_bytes());
        match server.next_call().unwrap().unwrap() {
            Incoming::Call(call) => call,
            incoming => panic!("{incoming:?}"),
        }
    }

    #[test]
    fn a_load_is_asked_and_answered_in_both_encodings() {
        for encoding in [Encoding::Z, Encoding::M] {
            for len in [0, 200, 300, 70_000] {
                for end in [None, Some(Tid(9))] {
                    let (mut client, mut server) = pair(encoding);
                    client.load_before(OID, TID).unwrap();
                    let call = to_server(&mut client, &mut server);
                    assert_eq!(call.request, Request::LoadBefore { oid: OID, tid: TID });
                    assert_eq!(load_msgid(&call.msgid), Some((OID, TID)));
                    let data = Bytes::from(vec![7; len]);
                    let result = vec![
                        Value::Bytes(data.clone()),
                        Tid(8).into(),
                        end.map_or(Value::None, Value::from),
                    ];
                    server.reply(&call.msgid, &Value::Tuple(result));
                    to_client(&mut server, &mut client);
                    let loaded = Loaded {
                        oid: OID,
                        before: TID,
                        data,
                        serial: Tid(8),
                        end,
                    };
                    assert_eq!(client.next(), Ok(Some(Received::Loaded(loaded))));
                    assert_eq!(client.next(), Ok(None));
                }
            }
        }
    }

    #[test]
    fn a_load_in_another_form_is_understood_as_well() {
        // With memo opcodes, and lists for tuples.
        let pickle = [
            &b"\x80\x03(C\x08"[..],
            &OID.to_bytes(),
            b"q\x00C\x08",
            &TID.to_bytes(),
            b"q\x01\x86K\x00X\x06\0\0\0.replyq\x02C\x04dataC\x08",
            &TID.to_bytes(),
            b"N\x87t.",
        ]
        .concat();
        let loaded = match decode(Encoding::Z, &Bytes::from(pickle)) {
            Ok(Received::Loaded(loaded)) => loaded,
            other => panic!("{other:?}"),
        };
        assert_eq!((loaded.oid, loaded.serial), (OID, TID));
        assert_eq!(&loaded.data[..], b"data");
    }

    #[test]
    fn replies_exceptions_and_notices_are_told_apart() {
        for encoding in [Encoding::Z, Encoding::M] {
            let (mut client, mut server) = pair(encoding);
            server.reply(&Value::Int(1), &Value::from(TID));
            server.fail(&Value::Int(2), &RemoteError::PosKey(OID));
            server.notify(
                "invalidateTransaction",
                vec![TID.into(), Value::List(vec![])],
            );
            to_client(&mut server, &mut client);
            let tid = Value::Bytes(Bytes::copy_from_slice(&TID.to_bytes()));
            let reply = Received::Reply {
                msgid: Value::Int(1),
                result: Ok(tid),
            };
            assert_eq!(client.next(), Ok(Some(reply)));
            let Ok(Some(Received::Reply {
                result: Err(raised),
                ..
            })) = client.next()
            else {
                panic!("no exception");
            };
            assert_eq!(raised.short_class(), "POSKeyError");
            let Ok(Some(Received::Notice { name, args })) = client.next() else {
                panic!("no notice");
            };
            assert_eq!((&name[..], args.len()), (&b"invalidateTransaction"[..], 2));
        }
    }

    #[test]
    fn an_exception_is_shown_on_one_short_line() {
        let raised = Raised {
            class: "x\n".repeat(1000),
            arguments: Value::Bytes(Bytes::from(vec![0; 1 << 20])),
        };
        let shown = raised.to_string();
        assert_eq!(shown.chars().count(), 300);
        assert!(!shown.contains('\n'), "{shown}");
        let short = Raised {
            class: "a.B".to_owned(),
            arguments: Value::Tuple(Vec::new()),
        };
        assert_eq!(short.to_string(), "a.B: Tuple([])");
    }

    #[test]
    fn what_is_no_server_of_zeo_5_is_refused() {
        let mut client = ClientSession::default();
        client.receive(b"\0\0\0\x02Z4");
        assert_eq!(
            client.next(),
            Err(ClientError::Greeting(Bytes::from_static(b"Z4")))
        );
        let (mut client, _) = pair(Encoding::M);
        client.receive(b"\0\0\0\x01\xc0");
        assert_eq!(client.next(), Err(ClientError::NotAMessage));
        client.receive(b"\0\0\0\x01\xc1");
        assert!(matches!(client.next(), Err(ClientError::Undecodable(_))));
    }
}
