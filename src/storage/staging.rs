//! A transaction between begin and finish: what it wants to write, and how far it has come.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use super::commit_lock::Ticket;
use super::format::{DATA_HEADER_LEN, TXN_HEADER_LEN};
use crate::ids::{Oid, Tid};

/// Bytes behind the records of a transaction: its length once more.
pub(super) const TXN_TRAILER_LEN: usize = 8;

/// An unfinished transaction of this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxnId(pub(super) u64);

/// What a transaction says about itself when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// User name, as in the file.
    pub user: Bytes,
    /// Description, as in the file.
    pub description: Bytes,
    /// The pickled extension dict, or nothing.
    pub extension: Bytes,
    /// The tid that it must get, for copies of other databases.
    pub tid: Option<Tid>,
    /// The status byte in the file, normally a blank.
    pub status: u8,
}

/// A new revision of an object.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) oid: Oid,
    /// The revision that it replaces, if the client said something that can be one.
    pub(super) serial: Option<Tid>,
    pub(super) data: Bytes,
}

impl Record {
    /// Data are never empty here.
    pub(super) const fn len_in_file(&self) -> u64 {
        (DATA_HEADER_LEN + self.data.len()) as u64
    }
}

/// A transaction in progress.
#[derive(Debug)]
pub(super) struct Txn {
    pub(super) metadata: Metadata,
    /// In the order in which the objects were named first; one record an object.
    pub(super) records: Vec<Record>,
    /// Where in `records` an object is.
    by_oid: BTreeMap<Oid, usize>,
    /// Objects that must not have changed since the client read them.
    pub(super) checks: Vec<(Oid, Tid)>,
    pub(super) state: TxnState,
    /// Votes answered with conflicts so far.
    pub(super) conflicting_votes: u32,
    /// Serials of current revisions that had to be read from the disk, by file position.
    pub(super) serials_read: BTreeMap<u64, Tid>,
    /// Bytes that its records will take in the file.
    records_len: u64,
}

/// How far a transaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TxnState {
    /// The client sends stores.
    Staging,
    /// It voted and waits for the commit lock.
    Waiting { ticket: Ticket },
    /// It has the lock, and waits for the disk: for serials to compare, or for space.
    Checking { ticket: Ticket },
    /// It was told of conflicts, and has the lock for a while to resolve them.
    Resolving { ticket: Ticket, since: Instant },
    /// It may finish; nothing can go wrong any more but the disk.
    Voted {
        ticket: Ticket,
        since: Instant,
        len: u64,
    },
    /// It has a tid and a place in the file, and waits for the sync.
    Finishing { ticket: Ticket },
}

impl TxnState {
    pub(super) const fn ticket(self) -> Option<Ticket> {
        match self {
            Self::Staging => None,
            Self::Waiting { ticket }
            | Self::Checking { ticket }
            | Self::Resolving { ticket, .. }
            | Self::Voted { ticket, .. }
            | Self::Finishing { ticket } => Some(ticket),
        }
    }
}

impl Txn {
    pub(super) fn new(metadata: Metadata) -> Self {
        Self {
            metadata,
            records: Vec::new(),
            by_oid: BTreeMap::new(),
            checks: Vec::new(),
            state: TxnState::Staging,
            conflicting_votes: 0,
            serials_read: BTreeMap::new(),
            records_len: 0,
        }
    }

    /// Adds a new revision; an earlier one of the same object is forgotten.
    pub(super) fn store(&mut self, record: Record) {
        self.records_len += record.len_in_file();
        match self.by_oid.get(&record.oid) {
            Some(at) => {
                let replaced = std::mem::replace(&mut self.records[*at], record);
                self.records_len -= replaced.len_in_file();
            }
            None => {
                self.by_oid.insert(record.oid, self.records.len());
                self.records.push(record);
            }
        }
    }

    /// Every object that it names.
    pub(super) fn oids(&self) -> Vec<Oid> {
        let stored = self.records.iter().map(|record| record.oid);
        stored
            .chain(self.checks.iter().map(|(oid, _)| *oid))
            .collect()
    }

    /// Its length in the file, both length fields included.
    pub(super) fn len_in_file(&self) -> u64 {
        let metadata = &self.metadata;
        let texts = metadata.user.len() + metadata.description.len() + metadata.extension.len();
        (TXN_HEADER_LEN + texts + TXN_TRAILER_LEN) as u64 + self.records_len
    }
}
