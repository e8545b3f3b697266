//! The exceptions that a server answers with, in the form from which clients rebuild them.

use bytes::Bytes;

use crate::ids::{Oid, Tid};
use crate::value::Value;

/// An exception for a client.
///
/// The arguments have to be exactly these: a client that misses one fails inside its network
/// thread, and the call never returns. `BTreesConflictError`, which clients know too, is not
/// among them: it takes a server that resolves conflicts.
#[derive(Clone, Debug, PartialEq)]
pub enum RemoteError {
    /// No such object, or no such revision of it.
    PosKey(Oid),
    /// No such blob.
    BlobMissing {
        /// Whose blob
        oid: Oid,
        /// Of which revision
        serial: Tid,
    },
    /// The object was changed since the client read it.
    Conflict(Conflict),
    /// An object that the transaction depends on was changed since the client read it.
    ReadConflict(Conflict),
    /// The transaction was not committed, and never will be, for no fault of its own: another node
    /// has taken over. To be tried again, as after a conflict.
    NotCommitted,
    /// The server or the storage does not take writes.
    ReadOnly,
    /// A call for a transaction that is not the client's current one.
    NotCurrentTransaction {
        /// The current transaction, `Value::None` if there is none.
        current: Value,
        /// The one that the call was for.
        given: Value,
    },
    /// A second vote.
    AlreadyVoting {
        /// Whether the first still waits for the commit lock.
        waiting: bool,
    },
    /// There is no transaction of that name that can be undone. Clients do not rebuild it.
    Undo(&'static str),
    /// Objects that a transaction to be undone had changed cannot be undone, and why. Clients,
    /// and ZODB's tests, want a failed undo in this form.
    MultipleUndo(Vec<(Oid, String)>),
    /// `KeyError`, of an iterator that is not there.
    Key(Value),
    /// `TypeError`: wrong arguments.
    Type(String),
    /// Clients rebuild no others; they show the name and the text of these.
    Other {
        /// Module and class, as in `builtins.ValueError`
        class: &'static str,
        /// The text
        message: String,
    },
}

/// What a client is told about a conflict.
#[derive(Clone, Debug, PartialEq)]
pub struct Conflict {
    /// The object
    pub oid: Oid,
    /// The serial of its current revision
    pub committed: Tid,
    /// The serial that the client had
    pub read: Tid,
    /// Module and class of the object, as in `BTrees.Length.Length`, if we know.
    pub class_name: Option<Bytes>,
}

impl RemoteError {
    /// Module and class.
    pub const fn class(&self) -> &'static str {
        match self {
            Self::PosKey(_) | Self::BlobMissing { .. } => "ZODB.POSException.POSKeyError",
            Self::Conflict(_) | Self::NotCommitted => "ZODB.POSException.ConflictError",
            Self::ReadConflict(_) => "ZODB.POSException.ReadConflictError",
            Self::ReadOnly => "ZODB.POSException.ReadOnlyError",
            Self::NotCurrentTransaction { .. } | Self::AlreadyVoting { .. } => {
                "ZODB.POSException.StorageTransactionError"
            }
            Self::Undo(_) => "ZODB.POSException.UndoError",
            Self::MultipleUndo(_) => "ZODB.POSException.MultipleUndoErrors",
            Self::Key(_) => "builtins.KeyError",
            Self::Type(_) => "builtins.TypeError",
            Self::Other { class, .. } => class,
        }
    }

    /// The result of an exception reply: class and arguments.
    pub fn to_value(&self) -> Value {
        Value::Tuple(vec![Value::text(self.class()), self.arguments()])
    }

    fn arguments(&self) -> Value {
        match self {
            Self::PosKey(oid) => Value::Tuple(vec![(*oid).into()]),
            Self::BlobMissing { oid, serial } => {
                let text = Value::text("No blob file");
                Value::Tuple(vec![text, (*oid).into(), (*serial).into()])
            }
            Self::Conflict(conflict) => conflict.arguments("database conflict error"),
            Self::ReadConflict(conflict) => conflict.arguments("database read conflict error"),
            Self::NotCommitted => Value::Dict(vec![
                (Value::text("message"), Value::text(NOT_COMMITTED)),
                (Value::text("oid"), Value::None),
                (Value::text("class_name"), Value::None),
                (Value::text("serials"), Value::None),
            ]),
            Self::ReadOnly => Value::Tuple(Vec::new()),
            Self::NotCurrentTransaction { current, given } => {
                Value::Tuple(vec![current.clone(), given.clone()])
            }
            Self::AlreadyVoting { waiting: true } => {
                Value::Tuple(vec![Value::text("Already voting (waiting)")])
            }
            Self::AlreadyVoting { waiting: false } => {
                Value::Tuple(vec![Value::text("Already voting (locked)")])
            }
            Self::Undo(reason) => Value::Dict(vec![
                (Value::text("_reason"), Value::text(reason)),
                (Value::text("_oid"), Value::None),
            ]),
            Self::MultipleUndo(errors) => {
                let pair = |(oid, reason): &(Oid, String)| {
                    Value::Tuple(vec![(*oid).into(), reason.clone().into()])
                };
                let errors = Value::List(errors.iter().map(pair).collect());
                Value::Dict(vec![(Value::text("_errs"), errors)])
            }
            Self::Key(key) => Value::Tuple(vec![key.clone()]),
            Self::Type(message) | Self::Other { message, .. } => {
                Value::Tuple(vec![message.clone().into()])
            }
        }
    }
}

/// Behind it stands the class, which says that it can be tried again.
const NOT_COMMITTED: &str = "the transaction was not committed, as another server took over";

impl Conflict {
    fn arguments(&self, message: &'static str) -> Value {
        let class_name = self.class_name.clone().map_or(Value::None, Value::Text);
        let serials = Value::Tuple(vec![self.committed.into(), self.read.into()]);
        Value::Dict(vec![
            (Value::text("message"), Value::text(message)),
            (Value::text("oid"), self.oid.into()),
            (Value::text("class_name"), class_name),
            (Value::text("serials"), serials),
        ])
    }
}
