//! The transactions of a file with their records, in steps that can be interrupted anywhere.

use super::super::error::{Damage, Fault, ReadError};
use super::super::format::{FIRST_TXN_POS, Status};
use super::super::iterate::{Record, Transaction, Transactions};
use crate::ids::Tid;

/// A place in a file.
#[derive(Debug)]
pub(super) struct Walk {
    /// Position of the transaction that comes next.
    pos: u64,
    /// That of the transaction before.
    last_tid: Tid,
    /// The transaction that it is in, and the position of the next record.
    inside: Option<(Transaction, u64)>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Piece {
    Begin(Transaction),
    Record(Record),
    End(Transaction),
}

impl Walk {
    /// From the first transaction on.
    pub(super) const fn new() -> Self {
        Self {
            pos: FIRST_TXN_POS,
            last_tid: Tid::ZERO,
            inside: None,
        }
    }

    /// How far it has come.
    pub(super) fn pos(&self) -> u64 {
        self.inside.as_ref().map_or(self.pos, |(_, pos)| *pos)
    }

    /// The transaction that it is in.
    pub(super) fn inside(&self) -> Option<&Transaction> {
        self.inside.as_ref().map(|(txn, _)| txn)
    }

    /// The next piece; `None` at the tail of `txns`, which begins anywhere.
    ///
    /// # Errors
    ///
    /// The file is damaged, or not as it should be before it is packed.
    pub(super) fn next(&mut self, txns: &mut Transactions) -> Result<Option<Piece>, ReadError> {
        if let Some((txn, pos)) = &mut self.inside
            && let Some(record) = txns.record(txn, *pos)
        {
            let record = record?;
            *pos = record.end();
            return Ok(Some(Piece::Record(record)));
        }
        if let Some((txn, _)) = self.inside.take() {
            return Ok(Some(Piece::End(txn)));
        }
        txns.seek(self.pos);
        let Some(txn) = txns.next().transpose()? else {
            return Ok(None);
        };
        self.check(&txn)?;
        self.pos = txn.end();
        self.last_tid = txn.header.tid;
        self.inside = Some((txn.clone(), txn.records_pos()));
        Ok(Some(Piece::Begin(txn)))
    }

    /// The transaction that comes next, or `None` at the end; the walk stays where it is.
    pub(super) fn peek(&self, txns: &mut Transactions) -> Result<Option<Transaction>, ReadError> {
        txns.seek(self.pos);
        txns.next().transpose()
    }

    /// ZODB packs no file in which this is wrong, nor do we: what is to be kept follows from the
    /// order of the transactions.
    fn check(&self, txn: &Transaction) -> Result<(), Damage> {
        let (pos, found) = (txn.pos, txn.header.tid);
        if found <= self.last_tid {
            let last = self.last_tid;
            let fault = Fault::TidOrder { found, last };
            return Err(Damage { pos, fault });
        }
        match txn.header.status {
            Status::Finished | Status::Packed | Status::Undone => Ok(()),
            Status::Voted | Status::Other(_) => {
                let found = txn.header.status.to_byte();
                let fault = Fault::UnknownStatus { found };
                Err(Damage { pos, fault })
            }
        }
    }
}
