//! The ZEO protocol, version 5, in both its encodings: bytes to typed calls and values to bytes.
//!
//! # The protocol on one page
//!
//! A stream in each direction consists of *frames*: a 4-byte big-endian length and as many bytes
//! ([`frame`]). The server speaks first: its first frame is `Z5` or `M5`, the encoding (pickle or
//! msgpack) and the version. The client answers with the same, or with `ruok`, which asks for the
//! status of the server in JSON and ends the connection.
//!
//! Every further frame is a *message*, a 4-tuple in the encoding ([`crate::pickle`], [`msgpack`]):
//!
//! | message | first | second | third | fourth |
//! |---|---|---|---|---|
//! | call | msgid | false | method | arguments |
//! | asynchronous call, in both directions | 0 | true | method | arguments |
//! | reply | msgid of the call | 0 | `.reply` | result |
//! | exception | msgid of the call | 2 | `.reply` | class name and arguments ([`errors`]) |
//! | heartbeat of a client | -1 | 0 | `.reply` | `None` |
//!
//! The msgid is any value. Replies may come in any order. Asynchronous calls have none, so that
//! one that fails ends the connection, as does what is no message or names no method
//! ([`message`]).
//!
//! The first call is `register(storage, read_only)`. Then come loads, and transactions:
//! `tpc_begin`, `storea` and its kind, all asynchronous, then `vote` and `tpc_finish`, or
//! `tpc_abort`. A server tells its clients of other clients' commits by `invalidateTransaction(tid,
//! oids)`.
//!
//! Clients on Python 2 write other types of strings; they are understood, and in pickles answered
//! in their own [`Dialect`].
//!
//! Nothing here knows sockets, or what a call does. Everything takes bytes from untrusted peers: it
//! answers with a value or an error and takes no more memory than a fixed multiple of the bytes
//! received, but for what [`crate::limits::VALUES_PER_MESSAGE_MAX`] allows a memo to repeat.

pub mod base64;
pub mod client;
pub mod errors;
pub mod frame;
pub mod large_store;
pub mod load;
pub mod load_form;
pub mod message;
pub mod msgpack;
pub mod session;

pub use crate::pickle::{decode as decode_standalone, encode_standalone};
pub use crate::value::{DecodeError, Value};
pub use errors::{Conflict, RemoteError};
pub use frame::{FrameError, FrameReader, OutQueue};
pub use load::Load;
pub use message::{
    ArgumentError, Call, Dialect, Encoder, Encoding, Message, ProtocolError, Request,
};
