//! What was: transactions and revisions in the order that undo pages, copies and tools ask for.
//!
//! All of it reads more of the file than is likely to be in memory, so it is done by workers only
//! ([`super::Job::Browse`]). Only what was committed when the question was asked is seen.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::File;
use super::error::ReadError;
use super::format::Status;
use super::iterate::{Backwards, Transaction, Transactions};
use super::pieces::LongData;
use super::read::{Reader, Wait};
use crate::ids::{Oid, Tid};

/// What a transaction says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnInfo {
    /// Its tid.
    pub tid: Tid,
    /// Its status byte.
    pub status: u8,
    /// User name.
    pub user: Bytes,
    /// Description.
    pub description: Bytes,
    /// The pickled extension dict, or nothing.
    pub extension: Bytes,
    /// Its length in the file, as its header says it.
    pub len: u64,
}

/// A question about the past.
pub enum Query {
    /// The last revisions of an object, newest first.
    History {
        /// The object.
        oid: Oid,
        /// Its current record.
        pos: u64,
        /// How many at most.
        count: usize,
    },
    /// Transactions that can be undone, newest first.
    Log {
        /// The number of the first, from zero, counting those that pass the filter.
        first: u64,
        /// The number behind the last.
        end: u64,
        /// Which count.
        filter: Filter,
    },
    /// The transaction that comes next.
    Transaction(From),
    /// The record that comes next in a transaction.
    Record {
        /// Its position.
        pos: u64,
        /// The end of the records of the transaction.
        end: u64,
    },
}

/// Which transactions a log is asked for.
pub type Filter = Box<dyn Fn(&TxnInfo) -> bool + Send>;

/// Where an iteration over transactions goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the first one that is not below.
    Tid(Tid),
    /// At this position.
    Pos(u64),
}

/// The answer to a [`Query`].
#[derive(Debug)]
pub enum Past {
    /// To [`Query::History`]: each revision's length of data, and its transaction.
    History(Vec<(u64, TxnInfo)>),
    /// To [`Query::Log`].
    Log(Vec<TxnInfo>),
    /// To [`Query::Transaction`]; `None` at the end.
    Transaction(Option<Step>),
    /// To [`Query::Record`]; `None` at the end.
    Record(Option<Revision>),
}

/// A transaction on an iteration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it says about itself.
    pub info: TxnInfo,
    /// Position of its first record,
    pub records_pos: u64,
    /// and behind its last one.
    pub records_end: u64,
    /// Position of the transaction after it.
    pub next: u64,
}

/// A record on an iteration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The object.
    pub oid: Oid,
    /// The transaction.
    pub tid: Tid,
    /// The object's state; `None` if it does not exist as of this record.
    pub data: Option<RevisionData>,
    /// The transaction whose data these are, if it is another one (after an undo).
    pub data_tid: Option<Tid>,
    /// Position of the record after it.
    pub next: u64,
}

/// The data of a record on an iteration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevisionData {
    /// As they are.
    Whole(Bytes),
    /// To be read piece by piece.
    Long(LongData),
}

impl Query {
    /// Answers it. May wait for the disk.
    pub(super) fn answer(&self, file: &Arc<dyn File>, tail: u64) -> Result<Past, ReadError> {
        let reader = Reader {
            file: &**file,
            wait: Wait::Yes,
            tail,
        };
        match self {
            Self::History { oid, pos, count } => {
                history(&reader, file, *oid, *pos, *count).map(Past::History)
            }
            Self::Log { first, end, filter } => {
                log(&**file, tail, *first, *end, filter).map(Past::Log)
            }
            Self::Transaction(from) => {
                let mut txns = match from {
                    From::Tid(tid) => Transactions::from_tid(file.clone(), *tid, tail)?,
                    From::Pos(pos) => Transactions::from_pos(file.clone(), *pos, tail),
                };
                let txn = txns.next().transpose()?;
                Ok(Past::Transaction(txn.map(|txn| Step {
                    info: info(&txn),
                    records_pos: txn.records_pos(),
                    records_end: txn.records_end(),
                    next: txn.end(),
                })))
            }
            Self::Record { pos, end } if pos < end => {
                let revision = reader.revision(*pos, file)?;
                Ok(Past::Record(Some(revision)))
            }
            Self::Record { .. } => Ok(Past::Record(None)),
        }
    }
}

fn info(txn: &Transaction) -> TxnInfo {
    TxnInfo {
        tid: txn.header.tid,
        status: txn.header.status.of_committed().to_byte(),
        user: Bytes::copy_from_slice(txn.user()),
        description: Bytes::copy_from_slice(txn.descr()),
        extension: Bytes::copy_from_slice(txn.ext()),
        len: txn.header.len,
    }
}

fn history(
    reader: &Reader<'_>,
    file: &Arc<dyn File>,
    oid: Oid,
    mut pos: u64,
    count: usize,
) -> Result<Vec<(u64, TxnInfo)>, ReadError> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        let header = reader.header(pos, oid)?;
        let mut txns = Transactions::from_pos(file.clone(), header.tloc, reader.tail);
        let Some(txn) = txns.next().transpose()? else {
            break;
        };
        revisions.push((header.data_len, info(&txn)));
        // Towards the start of the file, whatever a damaged pointer says.
        if header.prev == 0 || header.prev >= pos {
            break;
        }
        pos = header.prev;
    }
    Ok(revisions)
}

/// As in ZODB the search ends at the first transaction that was packed: what is older cannot be
/// undone.
fn log(
    file: &dyn File,
    tail: u64,
    first: u64,
    end: u64,
    filter: &Filter,
) -> Result<Vec<TxnInfo>, ReadError> {
    let mut found = Vec::new();
    let mut number = 0;
    for txn in Backwards::new(file, tail) {
        if number >= end {
            break;
        }
        let txn = txn?;
        match txn.header.status.of_committed() {
            Status::Packed => break,
            Status::Finished => {}
            _ => continue,
        }
        let info = info(&txn);
        if !filter(&info) {
            continue;
        }
        if number >= first {
            found.push(info);
        }
        number += 1;
    }
    Ok(found)
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::History { .. } => "History",
            Self::Log { .. } => "Log",
            Self::Transaction(_) => "Transaction",
            Self::Record { .. } => "Record",
        })
    }
}
