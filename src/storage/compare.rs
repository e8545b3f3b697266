//! What a vote compares: the serials that a client sent with those of the current revisions.
//!
//! A few are compared at once, as far as the records are in memory; what is not is fetched
//! ([`Job::Fetch`]), and then all is compared again. Many are compared by a worker as a whole
//! ([`Job::Compare`]), with a snapshot of the index: it is right for all objects of the
//! transaction, since these cannot change as long as it has the lock.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::commit::{Conflict, Refusal};
use super::disk::File;
use super::error::ReadError;
use super::index::Index;
use super::job::Job;
use super::read::{Reader, Wait};
use super::staging::{Base, Data, Record, Txn, TxnId};
use super::{Event, FileStorage};
use crate::ids::{Oid, Tid};
use crate::limits::{CONFLICTS_LEN_MAX, VOTES_WITH_CONFLICTS_MAX};

/// What comparing serials led to.
pub(super) enum Comparison {
    Clean,
    Conflicts(Vec<Conflict>),
    /// Serials and data are not in memory, as [`Job::Fetch`] has them.
    Fetch {
        serials: Vec<(Oid, u64)>,
        staged: Vec<(Oid, u64, usize)>,
    },
}

/// A record whose object has another current revision than it expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflicting {
    /// Its number in the transaction.
    at: usize,
    committed: Tid,
    sent: Tid,
}

/// A large transaction in the hands of the worker that compares it.
#[derive(Debug)]
pub struct Compare {
    txn: TxnId,
    file: Arc<dyn File>,
    /// The end of what is committed.
    tail: u64,
    index: Index,
    records: Vec<Record>,
    checks: Vec<(Oid, Tid)>,
}

/// What became of it.
#[derive(Debug)]
pub struct Compared {
    txn: TxnId,
    records: Vec<Record>,
    checks: Vec<(Oid, Tid)>,
    result: Result<Vec<Conflicting>, Refusal>,
}

impl Compare {
    /// Compares. Blocks for as long as the disk takes.
    pub(super) fn run(self) -> Compared {
        let reader = Reader {
            file: &*self.file,
            wait: Wait::Yes,
            tail: self.tail,
        };
        let current = |oid| self.index.get(oid);
        let serial_at = |oid, pos| Ok(Some(reader.record_tid(pos, oid)?));
        let result = conflicting(&self.records, &self.checks, current, serial_at);
        Compared {
            txn: self.txn,
            records: self.records,
            checks: self.checks,
            result,
        }
    }
}

impl FileStorage {
    /// Compares the serials that the client sent with those of the current revisions.
    pub(super) fn compare(&self, txn: &Txn) -> Result<Comparison, Refusal> {
        let mut serials = Vec::new();
        let serial_at = |oid: Oid, pos: u64| {
            if let Some(tid) = txn.serials_read.get(&pos) {
                return Ok(Some(*tid));
            }
            match self.reader().record_tid(pos, oid) {
                Err(ReadError::WouldBlock) => {
                    serials.push((oid, pos));
                    Ok(None)
                }
                result => Ok(Some(result?)),
            }
        };
        let current = |oid| self.index.get(oid);
        let conflicting = conflicting(&txn.records, &txn.checks, current, serial_at)?;
        if !serials.is_empty() {
            let staged = Vec::new();
            return Ok(Comparison::Fetch { serials, staged });
        }
        self.conflicts(txn, &conflicting)
    }

    /// Has a worker compare a large transaction.
    pub(super) fn send_to_compare(&mut self, id: TxnId) {
        if let Some(txn) = self.txns.get_mut(&id) {
            self.events.push_back(Event::Run(Job::Compare(Compare {
                txn: id,
                file: self.file.clone(),
                tail: self.tail,
                index: self.index.snapshot(),
                records: std::mem::take(&mut txn.records),
                checks: std::mem::take(&mut txn.checks),
            })));
        }
    }

    pub(super) fn on_large_compared(&mut self, compared: Compared, now: Instant) {
        let Compared {
            txn: id,
            records,
            checks,
            result,
        } = compared;
        let ticket = self.checking(id);
        let (Some(txn), Some(ticket)) = (self.txns.get_mut(&id), ticket) else {
            return self.discard_rest(records.into());
        };
        (txn.records, txn.checks) = (records, checks);
        let compared = match (result, self.txns.get(&id)) {
            (Ok(conflicting), Some(txn)) => self.conflicts(txn, &conflicting),
            (Err(refusal), _) => Err(refusal),
            (Ok(_), None) => return,
        };
        self.on_comparison(id, ticket, compared, now);
    }

    /// What a client gets to resolve, unless it shall not, or it is too much, or it is a deletion.
    fn conflicts(&self, txn: &Txn, conflicting: &[Conflicting]) -> Result<Comparison, Refusal> {
        let Some(first) = conflicting.first() else {
            return Ok(Comparison::Clean);
        };
        let record = |it: &Conflicting| &txn.records[it.at];
        let deletes = |it: &&Conflicting| matches!(record(it).base, Base::Deleted(_));
        if let Some(deletion) = conflicting.iter().find(deletes) {
            return Err(Refusal::Conflict(deletion.to_conflict(txn)));
        }
        let len: usize = conflicting.iter().map(|it| record(it).data.len()).sum();
        let resolves = self.options.client_resolves
            && txn.conflicting_votes < VOTES_WITH_CONFLICTS_MAX
            && len <= CONFLICTS_LEN_MAX;
        if !resolves {
            return Err(Refusal::Conflict(first.to_conflict(txn)));
        }
        let staged = conflicting.iter().filter_map(|it| match record(it).data {
            Data::Staged { pos, len } => Some((record(it).oid, pos, len)),
            Data::Memory(_) | Data::Back(_) | Data::Gone => None,
        });
        let staged: Vec<_> = staged.collect();
        if !staged.is_empty() {
            let serials = Vec::new();
            return Ok(Comparison::Fetch { serials, staged });
        }
        let conflicts = conflicting.iter().map(|it| it.to_conflict(txn));
        Ok(Comparison::Conflicts(conflicts.collect()))
    }
}

impl Conflicting {
    fn to_conflict(self, txn: &Txn) -> Conflict {
        let record = &txn.records[self.at];
        Conflict {
            oid: record.oid,
            committed: self.committed,
            sent: self.sent,
            data: match &record.data {
                Data::Memory(data) => data.clone(),
                Data::Staged { .. } | Data::Back(_) | Data::Gone => Bytes::new(),
            },
        }
    }
}

/// The records that replace another revision than the current one. `current` is where an object's
/// current record is, `serial_at` the serial of the record there, or nothing if that has to be
/// fetched. An error is a dependency or a deletion that cannot be.
fn conflicting(
    records: &[Record],
    checks: &[(Oid, Tid)],
    current: impl Fn(Oid) -> Option<u64>,
    mut serial_at: impl FnMut(Oid, u64) -> Result<Option<Tid>, Refusal>,
) -> Result<Vec<Conflicting>, Refusal> {
    for (oid, read) in checks {
        let (oid, read) = (*oid, *read);
        let pos = current(oid).ok_or(Refusal::Missing(oid))?;
        match serial_at(oid, pos)? {
            Some(committed) if committed != read => {
                return Err(Refusal::ReadConflict {
                    oid,
                    committed,
                    read,
                });
            }
            _ => {}
        }
    }
    let mut conflicting = Vec::new();
    for (at, record) in records.iter().enumerate() {
        let sent = match record.base {
            Base::Replaced(serial) => serial,
            Base::Deleted(serial) => Some(serial),
            Base::Any { .. } | Base::Undone => continue,
        };
        let Some(pos) = current(record.oid) else {
            match record.base {
                Base::Deleted(_) => return Err(Refusal::Missing(record.oid)),
                _ => continue,
            }
        };
        match serial_at(record.oid, pos)? {
            Some(committed) if sent != Some(committed) => {
                conflicting.push(Conflicting {
                    at,
                    committed,
                    sent: sent.unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
    Ok(conflicting)
}
