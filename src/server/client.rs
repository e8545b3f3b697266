//! One client as the server sees it: its session, and its transaction in progress.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use super::failover::{Port, Stage};
use super::long_replies::LongReply;
use super::reads::PendingRead;
use crate::ids::{ClientId, Tid};
use crate::storage::history;
use crate::storage::{BlobReader, TxnId, View};
use crate::zeo::Value;
use crate::zeo::session::Session;

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) who: Who,
    pub(super) session: Session,
    pub(super) port: Port,
    /// It copies what another server has, and may do so though nobody else may write.
    pub(super) feeds: bool,
    pub(super) stage: Stage,
    /// The storage that it registered for.
    pub(super) storage: Option<usize>,
    pub(super) read_only: bool,
    pub(super) txn: Option<ClientTxn>,
    /// The call that is being executed stores data of this length, which came in pieces.
    pub(super) pieces_len: Option<usize>,
    /// Its calls that wait for the disk.
    pub(super) waiting: usize,
    pub(super) iterators: BTreeMap<i64, Iteration>,
    /// The number of the next one.
    pub(super) iterators_begun: i64,
    /// One of them waits for the disk, and the client's next calls for it.
    pub(super) iterating: bool,
    /// Replies with more data than are read at once, as they are sent, of which some are missing.
    pub(super) long_replies: VecDeque<LongReply>,
    /// Blobs that it asked for, of which no piece is being read.
    pub(super) transfers: VecDeque<Transfer>,
    /// A piece of a blob is being read for it.
    pub(super) reading_blob: bool,
    /// It does not take what we send; its calls wait.
    pub(super) paused: bool,
    /// It has been told to close; nothing is executed for it any more.
    pub(super) closing: bool,
    /// Bytes of notices queued since it last had taken all.
    pub(super) notices_len: usize,
}

/// How far an iterator has come.
#[derive(Clone, Debug)]
pub(super) enum Iteration {
    /// Over transactions.
    Transactions {
        from: history::From,
        /// The last tid that is wanted.
        stop: Option<Tid>,
        /// The file when it was begun.
        view: View,
        /// The one that it gave last.
        current: Option<Current>,
    },
    /// Over the records of a transaction: the position of the next one, their end, and the file
    /// when the transactions were begun.
    Records { pos: u64, end: u64, view: View },
}

/// A transaction that an iterator gave, without its texts, which may be long.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) tid: Tid,
    /// Where its records begin
    pub(super) pos: u64,
    /// and end.
    pub(super) end: u64,
}

/// A blob on its way to a client.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) pending: PendingRead,
    pub(super) reader: BlobReader,
}

/// What ZEO calls a transaction of a connection; there is at most one.
#[derive(Debug)]
pub(super) struct ClientTxn {
    /// The client's name for it.
    pub(super) handle: Value,
    pub(super) id: TxnId,
    /// The call that waits for an answer.
    pub(super) pending: Pending,
    /// Conflicts that the client was told of, and has to resolve.
    pub(super) conflicts: u64,
}

/// A call of a transaction that is answered later.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pending {
    Nothing,
    Vote { msgid: Value },
    Finish { msgid: Value },
}

/// A client in a log line.
#[derive(Clone, Debug)]
pub(super) struct Who {
    pub(super) id: ClientId,
    pub(super) peer: String,
    /// What the client calls itself.
    pub(super) label: String,
}

impl Client {
    pub(super) fn new(id: ClientId, peer: String, port: Port, session: Session) -> Self {
        Self {
            who: Who {
                id,
                peer,
                label: String::new(),
            },
            session,
            port,
            feeds: false,
            stage: Stage::Parked,
            storage: None,
            read_only: false,
            txn: None,
            pieces_len: None,
            waiting: 0,
            iterators: BTreeMap::new(),
            iterators_begun: 0,
            iterating: false,
            long_replies: VecDeque::new(),
            transfers: VecDeque::new(),
            reading_blob: false,
            paused: false,
            closing: false,
            notices_len: 0,
        }
    }

    /// Whether its vote waits for an answer.
    pub(super) fn is_voting(&self) -> bool {
        self.txn
            .as_ref()
            .is_some_and(|txn| matches!(txn.pending, Pending::Vote { .. }))
    }

    /// Whether nobody knows yet how its finish ends.
    pub(super) fn is_finishing(&self) -> bool {
        self.txn
            .as_ref()
            .is_some_and(|txn| matches!(txn.pending, Pending::Finish { .. }))
    }

    /// Its transaction, if the client calls it by that name.
    pub(super) fn txn_named(&mut self, handle: &Value) -> Option<&mut ClientTxn> {
        self.txn.as_mut().filter(|txn| txn.handle == *handle)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        if !self.label.is_empty() {
            write!(f, "{} ", self.label)?;
        }
        write!(f, "{} {})", self.id, self.peer)
    }
}
