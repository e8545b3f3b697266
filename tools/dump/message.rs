//! What is shown: messages with named fields, whatever they were decoded from.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use standby::ids::{Oid, Tid};
use standby::storage::references::class_name;
use standby::value::Value;

/// Which way a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From the client to the server, or to the daemon.
    ToServer,
    /// Back.
    ToClient,
}

impl Way {
    pub(crate) const fn back(self) -> Self {
        match self {
            Self::ToServer => Self::ToClient,
            Self::ToClient => Self::ToServer,
        }
    }

    /// Where this way's part of a pair is.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::ToServer => 0,
            Self::ToClient => 1,
        }
    }
}

/// A connection, as it is called in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connection {
    /// Counts connections from 1, in the order that they were seen in.
    pub number: u64,
    /// Who made it: an address with a port, or a path.
    pub client: String,
    /// With whom.
    pub server: String,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The first words of a connection.
    Greeting,
    /// A call that is to be answered.
    Call,
    /// A call that is not.
    Async,
    /// What a call has returned.
    Reply,
    /// What a call has raised.
    Exception,
    /// A call of the server's.
    Notice,
    /// A sign of life.
    Heartbeat,
    /// A call that was not answered before the connection, or the capture, ended.
    Unanswered,
    /// A frame of the group daemon.
    Frame,
    /// What fragments were put together to.
    Message,
    /// A transaction of a data file.
    Transaction,
    /// A record of a data file.
    Record,
    /// An entry of a journal.
    Entry,
    /// A file of a journal's state.
    State,
    /// What a simulation has noted.
    Note,
    /// The beginning or the end of a connection.
    Connection,
    /// What is missing, or cannot be decoded.
    Trouble,
}

impl Kind {
    /// As it stands in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Call => "call",
            Self::Async => "async",
            Self::Reply => "reply",
            Self::Exception => "exception",
            Self::Notice => "notice",
            Self::Heartbeat => "heartbeat",
            Self::Unanswered => "unanswered",
            Self::Frame => "frame",
            Self::Message => "message",
            Self::Transaction => "transaction",
            Self::Record => "record",
            Self::Entry => "entry",
            Self::State => "state",
            Self::Note => "note",
            Self::Connection => "connection",
            Self::Trouble => "trouble",
        }
    }

    /// Whether somebody who looks for what went wrong wants to see it.
    pub(crate) const fn is_error(self) -> bool {
        matches!(self, Self::Exception | Self::Unanswered | Self::Trouble)
    }
}

/// Something to be shown.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// When its last byte was seen, since 1970; `None` where that was not recorded.
    pub time: Option<Duration>,
    /// `None` in a file.
    pub connection: Option<Rc<Connection>>,
    /// In a trace: where it happened.
    pub node: Option<String>,
    pub way: Option<Way>,
    pub kind: Kind,
    /// The method, the kind of frame: what is looked for by `--method`.
    pub name: String,
    pub fields: Fields,
    /// Bytes on the wire or in the file; zero for what has none.
    pub len: usize,
    /// Of a reply, from the last byte of its call on.
    pub latency: Option<Duration>,
    /// How long a call has been waiting that was not answered.
    pub waited: Option<Duration>,
    /// Its bytes, as far as they are at hand.
    pub bytes: Bytes,
    /// Shown only on demand.
    pub is_detail: bool,
}

/// Named values, in the order that they are shown in.
pub(crate) type Fields = Vec<(&'static str, Field)>;

/// A value of a field.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    Oid(Oid),
    Tid(Tid),
    Int(i64),
    Bool(bool),
    Text(String),
    /// Text from the other side, or bytes that are meant to be text.
    Bytes(Bytes),
    /// A digest, or another name of random bytes: its begin says enough to people.
    Hex(Bytes),
    /// A time, since 1970.
    Time(Duration),
    /// The data of an object: their begin at least, and their length.
    Record(Bytes, usize),
    /// What has no better form.
    Value(Value),
    List(Vec<Self>),
    Tree(Fields),
}

impl Message {
    /// One with nothing in it but what it is.
    pub(crate) fn new(time: Option<Duration>, kind: Kind, name: impl Into<String>) -> Self {
        Self {
            time,
            connection: None,
            node: None,
            way: None,
            kind,
            name: name.into(),
            fields: Vec::new(),
            len: 0,
            latency: None,
            waited: None,
            bytes: Bytes::new(),
            is_detail: false,
        }
    }

    /// What the call took: at least so long, if it has no reply.
    pub(crate) fn took(&self) -> Option<Duration> {
        self.latency.or(self.waited)
    }

    /// With one more field.
    pub(crate) fn with(mut self, name: &'static str, field: impl Into<Field>) -> Self {
        self.fields.push((name, field.into()));
        self
    }

    /// With the bytes that it was decoded from, beside `around` bytes of framing.
    pub(crate) fn of_bytes(mut self, bytes: Bytes, around: usize) -> Self {
        self.len = bytes.len() + around;
        self.bytes = bytes;
        self
    }
}

impl Field {
    /// All data of an object.
    pub(crate) fn record(data: Bytes) -> Self {
        let len = data.len();
        Self::Record(data, len)
    }

    /// Calls `look` with this and all fields in it, until it says that it has seen enough.
    pub(crate) fn any(&self, look: &mut impl FnMut(&Self) -> bool) -> bool {
        look(self)
            || match self {
                Self::List(items) => items.iter().any(|item| item.any(look)),
                Self::Tree(fields) => fields.iter().any(|(_, field)| field.any(look)),
                Self::Value(value) => any_id(value, look),
                _ => false,
            }
    }
}

/// Ids in values of no known form are those strings that have their length.
fn any_id(value: &Value, look: &mut impl FnMut(&Field) -> bool) -> bool {
    match value {
        Value::Bytes(bytes) | Value::Str(bytes) => {
            let id = <[u8; 8]>::try_from(&bytes[..]).ok();
            id.is_some_and(|id| {
                look(&Field::Oid(Oid::from_bytes(id))) || look(&Field::Tid(Tid::from_bytes(id)))
            })
        }
        Value::Tuple(values) | Value::List(values) => {
            values.iter().any(|value| any_id(value, look))
        }
        Value::Dict(pairs) => pairs
            .iter()
            .any(|(key, value)| any_id(key, look) || any_id(value, look)),
        _ => false,
    }
}

/// The class of the object in a record, as far as it can be shown.
pub(crate) fn class_of(record: &[u8]) -> Option<String> {
    let (module, name) = class_name(record)?;
    let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    Some(format!("{}.{}", shown(module), shown(name)))
}

macro_rules! field_from {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Field {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

field_from!(
    Oid => Oid, Tid => Tid, i64 => Int, u32 => Int, i32 => Int, bool => Bool, String => Text,
    &str => Text, Bytes => Bytes, Value => Value, Fields => Tree
);

impl From<usize> for Field {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<u64> for Field {
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl<T: Into<Self>> From<Vec<T>> for Field
where
    Vec<T>: IsList,
{
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

/// Vectors that are lists, which those of named fields are not.
pub(crate) trait IsList {}
impl IsList for Vec<Oid> {}
impl IsList for Vec<Tid> {}
impl IsList for Vec<String> {}
impl IsList for Vec<Field> {}

impl<T: Into<Self>> From<Option<T>> for Field {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Value(Value::None), Into::into)
    }
}
