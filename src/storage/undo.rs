//! What a transaction writes without data of its own: undone transactions, restored revisions,
//! deletions.
//!
//! *Undo* gives each object that a transaction changed the revision back that it had before: a
//! record with a *back pointer* to the record before that of the transaction, or with a back
//! pointer of zero where the transaction created the object. That is possible if the object still
//! has the data that the transaction gave it: because nothing came after, or what came was undone
//! itself, or happens to be equal. ZODB would otherwise try to resolve the conflict, with the
//! object's class; we have no classes, and fail.
//!
//! *Restore* (for copies of other databases) writes a back pointer where the transaction that it
//! names has the very data, else the data.
//!
//! All of it depends on what is current, so that it happens in the vote, when the transaction has
//! the commit lock, and on a worker ([`LookBack`]): neither the way back through the file nor the
//! data that have to be compared need be in memory. What is found are positions. They hold until
//! the transaction is written, since a pack has to have the lock, too, when it puts its file in the
//! place of this one; a transaction that lets go of the lock to resolve conflicts has not looked
//! back yet.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::FileStorage;
use super::commit::Refusal;
use super::disk::File;
use super::error::ReadError;
use super::format::Status;
use super::index::Index;
use super::iterate::{self, Backwards, Transactions};
use super::job::Job;
use super::read::{Reader, Source, Wait};
use super::staging::{Base, Data, TxnId};
use crate::ids::{Oid, Tid};
use crate::limits::{UNDO_ERRORS_MAX, UNDONE_OBJECTS_MAX, UNDOS_MAX};

/// Bytes compared at a time.
const COMPARE_LEN: u64 = 256 * 1024;

/// An object that a transaction gives an older revision back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undone {
    /// The object.
    pub oid: Oid,
    /// The revision whose data are current again; `None` if the object does not exist as of it.
    /// Whoever keeps more of a revision than its data (a blob) has to give that back, too: from
    /// `data_tid` to the tid of the transaction.
    pub data_tid: Option<Tid>,
    /// Where the back pointer leads; `None` for one of zero.
    pub(super) back: Option<u64>,
    /// The number of the undo in the transaction.
    pub(super) undo: usize,
}

impl FileStorage {
    /// Undoes a transaction; `None` stands for what cannot be the tid of one. Whether it is
    /// possible is found out by the vote. `false` as for [`Self::store`].
    #[must_use]
    pub fn undo(&mut self, txn: TxnId, tid: Option<Tid>) -> bool {
        let Some(staging) = self.txns.get_mut(&txn).filter(|it| it.takes_records()) else {
            return false;
        };
        if staging.undos.len() < UNDOS_MAX {
            staging.undos.push(tid);
        } else {
            let reason = format!("more than {UNDOS_MAX} undos in one transaction");
            staging.broken.get_or_insert(reason);
        }
        true
    }

    /// Adds a revision of another database without asking what is current; `None` as data says that
    /// the object does not exist as of it. Its serial is the tid of the transaction, whatever it
    /// was there. `same_data` names an older transaction that has the same data, where there is
    /// one. `false` as for [`Self::store`].
    #[must_use]
    pub fn restore(
        &mut self,
        txn: TxnId,
        oid: Oid,
        data: Option<Bytes>,
        same_data: Option<Tid>,
    ) -> bool {
        let data = data.map_or(Data::Gone, Data::memory);
        self.add(txn, oid, Base::Any { same_data }, data)
    }

    /// Deletes an object, whose current revision must be `serial` when it is voted. It counts, and
    /// its older revisions can be read, until it is packed away. `false` as for [`Self::store`].
    #[must_use]
    pub fn delete(&mut self, txn: TxnId, oid: Oid, serial: Tid) -> bool {
        self.add(txn, oid, Base::Deleted(serial), Data::Gone)
    }

    /// The objects that a voted transaction gives older revisions back: its client has to forget
    /// what it knows of them.
    pub fn undone(&self, txn: TxnId) -> &[Undone] {
        self.txns.get(&txn).map_or(&[], |txn| &txn.undone)
    }

    /// What a worker has to find for a transaction that has the commit lock, if anything.
    pub(super) fn look_back(&self, id: TxnId) -> Option<Job> {
        let txn = self.txns.get(&id)?;
        let mut hints = Vec::new();
        for (at, record) in txn.records.iter().enumerate() {
            if let Base::Any {
                same_data: Some(tid),
            } = record.base
                && let Some(pos) = self.index.get(record.oid)
            {
                let (oid, data) = (record.oid, record.data.clone());
                hints.push(Hint {
                    at,
                    oid,
                    pos,
                    tid,
                    data,
                });
            }
        }
        let mut own = BTreeMap::new();
        let mut index = Index::new();
        if !txn.undos.is_empty() {
            index = self.index.snapshot();
            let records = txn.records.iter();
            own.extend(
                records.map(|record| (record.oid, (record.undos_before, record.data.clone()))),
            );
        } else if hints.is_empty() {
            return None;
        }
        Some(Job::LookBack(LookBack {
            txn: id,
            file: self.file.clone(),
            tail: self.tail,
            staging_file: txn.staging_file.as_ref().map(|(file, _)| file.clone()),
            undos: txn.undos.clone(),
            index,
            own,
            hints,
        }))
    }

    pub(super) fn on_looked_back(
        &mut self,
        id: TxnId,
        result: Result<Backs, Refusal>,
        now: Instant,
    ) {
        let Some(ticket) = self.checking(id) else {
            return;
        };
        let checked = result.and_then(|backs| {
            if let Some(txn) = self.txns.get_mut(&id) {
                for (at, pos) in backs.same_data {
                    txn.on_same_data(at, pos);
                }
                txn.on_undone(backs.undone);
                if !txn.undos.is_empty() {
                    // Later votes on these have to wait until they are written.
                    let oids = txn.undone.iter().map(|undone| undone.oid);
                    self.lock.extend(ticket, oids);
                }
            }
            self.on_compared(id, ticket, now)
        });
        if let Err(refusal) = checked {
            self.refuse(id, refusal, now);
        }
    }
}

/// The part of a vote that follows an object's older revisions; see [`Job::LookBack`].
pub struct LookBack {
    pub(super) txn: TxnId,
    file: Arc<dyn File>,
    /// The end of what is committed; nothing is on its way to the disk.
    tail: u64,
    staging_file: Option<Arc<dyn File>>,
    /// Transactions to be undone, in order.
    undos: Vec<Option<Tid>>,
    /// What is current; empty if nothing is to be undone.
    index: Index,
    /// The transaction's own records, each with the number of undos before it.
    own: BTreeMap<Oid, (usize, Data)>,
    hints: Vec<Hint>,
}

/// A restored record that may be a back pointer.
struct Hint {
    /// Its number in the transaction.
    at: usize,
    oid: Oid,
    /// The object's current record.
    pos: u64,
    /// The transaction that may have the same data.
    tid: Tid,
    data: Data,
}

/// Where a transaction's back pointers lead.
#[derive(Debug)]
pub struct Backs {
    pub(super) undone: Vec<Undone>,
    /// Numbers of restored records with positions of records that have the same data.
    pub(super) same_data: Vec<(usize, u64)>,
}

/// Why an object cannot be undone.
type Reason = &'static str;

const MODIFIED: Reason = "Some data were modified by a later transaction";
const MODIFIED_SINCE_CREATION: Reason =
    "The object was created by the transaction, and modified by a later one";
const GONE: Reason = "The object was deleted, or its creation undone";
const NO_TRANSACTION: Reason = "Invalid transaction id";
const WRONG_STATUS: Reason = "The transaction cannot be undone";

/// What an undo makes of an object.
type Outcome = Result<Undone, Reason>;

/// The same for many, in the order in which they were met first.
#[derive(Default)]
struct Outcomes {
    order: Vec<Oid>,
    by_oid: BTreeMap<Oid, Outcome>,
}

/// What an object is before an undo.
enum Current<'a> {
    /// It has the data of the record at this position.
    At(u64),
    /// Data that the transaction itself stores.
    Own(&'a Data),
    Gone,
}

/// Bytes that are compared.
#[derive(Clone, Copy)]
enum Content<'a> {
    Memory(&'a [u8]),
    File {
        file: &'a dyn File,
        pos: u64,
        len: u64,
    },
}

impl LookBack {
    /// Finds it. Blocks for as long as the disk takes.
    pub(super) fn run(&self) -> Result<Backs, Refusal> {
        let mut same_data = Vec::new();
        for hint in &self.hints {
            same_data.extend(self.same_data(hint)?.map(|pos| (hint.at, pos)));
        }
        let undone = self.undo_all()?;
        Ok(Backs { undone, same_data })
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            file: &*self.file,
            wait: Wait::Yes,
            tail: self.tail,
        }
    }

    /// The record that a restored one has its data from, if all is as the copier says; it may have
    /// been packed away.
    fn same_data(&self, hint: &Hint) -> Result<Option<u64>, ReadError> {
        let reader = self.reader();
        let Some(pos) = reader.find(hint.pos, hint.oid, hint.tid)? else {
            return Ok(None);
        };
        let there = reader.source(pos, hint.oid)?;
        let is_same = match (self.content(&hint.data), there) {
            (Some(data), Some(there)) => same(data, self.content_at(there))?,
            (None, None) => true,
            _ => false,
        };
        Ok(is_same.then_some(pos))
    }

    /// One undo after the other. The first that fails is told of, with all objects that let it.
    fn undo_all(&self) -> Result<Vec<Undone>, Refusal> {
        let mut undone = Outcomes::default();
        for (undo, pos) in self.find_all()?.into_iter().enumerate() {
            let outcomes = self.undo_one(undo, pos, &undone)?;
            let errors = outcomes.iter();
            let errors = errors.filter_map(|(oid, outcome)| Some((oid, outcome.err()?)));
            let errors: Vec<(Oid, Reason)> = errors.take(UNDO_ERRORS_MAX).collect();
            if !errors.is_empty() {
                return Err(Refusal::Undo(errors));
            }
            for (oid, outcome) in outcomes.iter() {
                undone.insert(oid, outcome);
            }
        }
        Ok(undone.iter().filter_map(|(_, one)| one.ok()).collect())
    }

    /// Positions of the transactions to be undone. As in ZODB the search ends at the first one that
    /// was packed: what is older may have lost what it changed.
    fn find_all(&self) -> Result<Vec<u64>, Refusal> {
        let wanted = self.undos.iter().flatten().map(|tid| (*tid, None));
        let mut wanted: BTreeMap<Tid, Option<u64>> = wanted.collect();
        let mut missing = wanted.len();
        let mut txns = Backwards::new(&*self.file, self.tail);
        while missing > 0 {
            let Some(txn) = txns.next().transpose()? else {
                break;
            };
            if let Some(found) = wanted.get_mut(&txn.header.tid) {
                if txn.header.status != Status::Finished {
                    return Err(Refusal::NotUndoable(WRONG_STATUS));
                }
                *found = Some(txn.pos);
                missing -= 1;
            }
            if txn.header.status == Status::Packed {
                break;
            }
        }
        let positions = self.undos.iter().map(|tid| *wanted.get(tid.as_ref()?)?);
        let positions: Option<Vec<u64>> = positions.collect();
        positions.ok_or(Refusal::NotUndoable(NO_TRANSACTION))
    }

    /// What the undo with this number makes of the objects of the transaction at `pos`, where those
    /// before it came to `undone`.
    fn undo_one(&self, undo: usize, pos: u64, undone: &Outcomes) -> Result<Outcomes, Refusal> {
        let mut outcomes = Outcomes::default();
        let mut txns = Transactions::from_pos(self.file.clone(), pos, self.tail);
        let Some(txn) = txns.next().transpose()? else {
            return Ok(outcomes);
        };
        for record in txns.records(&txn) {
            let record = record?;
            let oid = record.header.oid;
            // A transaction may have two records of an object. The second counts, also if the
            // first, which is not current, could not be undone.
            let outcome = self.undo_record(&record, undo, undone)?;
            outcomes.insert(oid, outcome);
            if undone.order.len() + outcomes.order.len() > UNDONE_OBJECTS_MAX {
                let reason = format!("more than {UNDONE_OBJECTS_MAX} objects would be undone");
                return Err(Refusal::Disk(reason));
            }
        }
        Ok(outcomes)
    }

    fn undo_record(
        &self,
        record: &iterate::Record,
        undo: usize,
        undone: &Outcomes,
    ) -> Result<Outcome, ReadError> {
        let reader = self.reader();
        let (oid, prev) = (record.header.oid, record.header.prev);
        let current = self.current(record, undo, undone)?;
        // Else it is as the transaction left it, or undos of later ones have left it.
        if !matches!(current, Current::At(pos) if pos == record.pos) {
            let current = match current {
                Current::At(pos) => reader.source(pos, oid)?.map(|it| self.content_at(it)),
                Current::Own(data) => self.content(data),
                Current::Gone => None,
            };
            let written = reader.source(record.pos, oid)?;
            let (Some(current), Some(written)) = (current, written) else {
                return Ok(Err(GONE));
            };
            if !same(current, self.content_at(written))? {
                return Ok(Err(match prev {
                    0 => MODIFIED_SINCE_CREATION,
                    _ => MODIFIED,
                }));
            }
        }
        // The record must be found there before anything points to it.
        let source = match prev {
            0 => None,
            _ => reader.source(prev, oid)?,
        };
        Ok(Ok(Undone {
            oid,
            data_tid: source.map(|source| source.tid),
            back: (prev != 0).then_some(prev),
            undo,
        }))
    }

    /// What the object of a record is before an undo: as its transaction has made it so far, or as
    /// it is in the file.
    fn current(
        &self,
        record: &iterate::Record,
        undo: usize,
        undone: &Outcomes,
    ) -> Result<Current<'_>, ReadError> {
        let oid = record.header.oid;
        let undone = undone.by_oid.get(&oid).and_then(|outcome| outcome.ok());
        let own = self.own.get(&oid).filter(|(undos_before, _)| {
            *undos_before <= undo && undone.is_none_or(|undone| undone.undo < *undos_before)
        });
        let at = |pos: Option<u64>| pos.map_or(Current::Gone, Current::At);
        Ok(match (own, undone) {
            (Some((_, Data::Gone)), _) => Current::Gone,
            (Some((_, Data::Back(pos))), _) => Current::At(*pos),
            (Some((_, data)), _) => Current::Own(data),
            (None, Some(undone)) => at(undone.back),
            (None, None) => match self.index.get(oid) {
                Some(pos) if pos == record.pos => Current::At(pos),
                Some(pos) => at(self.reader().nearest_source(pos, oid)?),
                None => Current::Gone,
            },
        })
    }

    /// Data of a record of the transaction itself; `None` if it has none of its own.
    fn content<'a>(&'a self, data: &'a Data) -> Option<Content<'a>> {
        match data {
            Data::Memory(data) => Some(Content::Memory(data)),
            Data::Staged { pos, len } => Some(Content::File {
                file: self.staging_file.as_deref()?,
                pos: *pos,
                len: *len as u64,
            }),
            Data::Back(_) | Data::Gone => None,
        }
    }

    fn content_at(&self, source: Source) -> Content<'_> {
        Content::File {
            file: &*self.file,
            pos: source.data_pos,
            len: source.data_len,
        }
    }
}

impl Outcomes {
    fn insert(&mut self, oid: Oid, outcome: Outcome) {
        if self.by_oid.insert(oid, outcome).is_none() {
            self.order.push(oid);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Oid, Outcome)> {
        let oids = self.order.iter();
        oids.filter_map(|oid| Some((*oid, *self.by_oid.get(oid)?)))
    }
}

impl Content<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(data) => data.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Fills `buf` with what stands `from` bytes behind the start, where there is as much.
    fn read(&self, from: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        match self {
            Self::Memory(data) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                buf.copy_from_slice(&data[from..from + buf.len()]);
            }
            Self::File { file, pos, .. } => {
                if file.read_at(buf, pos + from)? < buf.len() {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
        Ok(())
    }
}

/// Whether both have the same bytes, of which no more than a piece is in memory at a time.
fn same(a: Content<'_>, b: Content<'_>) -> Result<bool, ReadError> {
    if a.len() != b.len() {
        return Ok(false);
    }
    let mut from = 0;
    let (mut piece_a, mut piece_b) = (Vec::new(), Vec::new());
    while from < a.len() {
        let len = COMPARE_LEN.min(a.len() - from);
        for (content, piece) in [(a, &mut piece_a), (b, &mut piece_b)] {
            piece.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
            content.read(from, piece)?;
        }
        if piece_a != piece_b {
            return Ok(false);
        }
        from += len;
    }
    Ok(true)
}
