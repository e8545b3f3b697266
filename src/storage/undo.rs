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
use super::blob::{Needs, is_blob_record};
use super::commit::Refusal;
use super::disk::File;
use super::error::ReadError;
use super::format::Status;
use super::index::Index;
use super::iterate::{self, Backwards, Transactions};
use super::job::Job;
use super::read::{Reader, Source, Wait};
use super::staging::{Base, Data, Record, TxnId};
use crate::ids::{Oid, Tid};
use crate::limits::{UNDO_ERRORS_MAX, UNDONE_OBJECTS_MAX, UNDOS_MAX};

/// Bytes that tell whether a record is that of a blob.
const BLOB_RECORD_START_LEN: u64 = 64;

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
    /// Whether those data are the record of a blob.
    pub is_blob: bool,
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
        self.note_blob(
            txn,
            oid,
            data.as_deref().unwrap_or_default(),
            Needs::Nothing,
        );
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
    pub(super) fn look_back(&mut self, id: TxnId) -> Option<Job> {
        let view = self.view();
        let txn = self.txns.get_mut(&id)?;
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
        let (mut index, mut own) = (Index::new(), Vec::new());
        if !txn.undos.is_empty() {
            index = self.index.snapshot();
            own.clone_from(&txn.records);
        } else if hints.is_empty() {
            return None;
        }
        txn.looked_back_in = Some(view.clone());
        Some(Job::LookBack(LookBack {
            txn: id,
            file: view.file,
            tail: view.tail,
            staging_file: txn.staging_file.clone(),
            undos: txn.undos.clone(),
            index,
            own,
            hints,
        }))
    }

    /// Whether what a transaction undoes may still be: the same is said of what is packed.
    pub(super) fn check_undos(&self, id: TxnId) -> Result<(), Refusal> {
        let after = self.undoable_after();
        let txn = self.txns.get(&id);
        let mut undone = txn.iter().flat_map(|txn| txn.undos.iter().flatten());
        match undone.any(|tid| *tid <= after) {
            true => Err(Refusal::NotUndoable(NO_TRANSACTION)),
            false => Ok(()),
        }
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
        let checked = self.check_undos(id).and(result).and_then(|backs| {
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
            if self.copy_blobs_back(id) {
                // Goes on when that is done.
                return Ok(());
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
    /// The transaction's own records; none if nothing is to be undone. Sorted by oid when it runs.
    own: Vec<Record>,
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
    pub(super) fn run(mut self) -> Result<Backs, Refusal> {
        self.own.sort_unstable_by_key(|record| record.oid);
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
                if txn.header.status.of_committed() != Status::Finished {
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
            is_blob: match source {
                Some(source) => self.is_blob(source)?,
                None => false,
            },
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
        let own = self.own.binary_search_by_key(&oid, |record| record.oid);
        let own = own.ok().map(|place| &self.own[place]).filter(|record| {
            let before = record.undos_before;
            before <= undo && undone.is_none_or(|undone| undone.undo < before)
        });
        let at = |pos: Option<u64>| pos.map_or(Current::Gone, Current::At);
        Ok(match (own.map(|record| &record.data), undone) {
            (Some(Data::Gone), _) => Current::Gone,
            (Some(Data::Back(pos)), _) => Current::At(*pos),
            (Some(data), _) => Current::Own(data),
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

    fn is_blob(&self, source: Source) -> Result<bool, ReadError> {
        let content = self.content_at(source);
        let len = content.len().min(BLOB_RECORD_START_LEN);
        let mut start = vec![0; usize::try_from(len).unwrap_or(0)];
        content.read(0, &mut start)?;
        Ok(is_blob_record(&start))
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::limits::STAGED_LEN_IN_MEMORY_MAX;
    use crate::storage::disk::{Disk, OpenMode};
    use crate::storage::format::FIRST_TXN_POS;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::testing::Content::{Back, Data as Own};
    use crate::storage::testing::{DataFile, Rig, metadata, options};
    use crate::storage::{Answer, Event, LockScope, Lookup, Metadata, Options, Unanswered, Vote};

    impl Rig {
        fn begin_undo(&mut self, tids: &[Tid]) -> TxnId {
            let id = self.begin(&[]);
            for tid in tids {
                assert!(self.storage.undo(id, Some(*tid)));
            }
            id
        }

        /// Undoes these in one transaction.
        fn undo(&mut self, tids: &[Tid]) -> Tid {
            let id = self.begin_undo(tids);
            self.end(id)
        }

        fn refused(&mut self, id: TxnId) -> Refusal {
            match self.vote(id).pop() {
                Some(Event::Voted(_, Vote::Refused(refusal))) => refusal,
                event => panic!("{event:?}"),
            }
        }

        /// Why these cannot be undone.
        fn reasons(&mut self, tids: &[Tid]) -> Vec<(Oid, Reason)> {
            let id = self.begin_undo(tids);
            match self.refused(id) {
                Refusal::Undo(reasons) => reasons,
                refusal => panic!("{refusal:?}"),
            }
        }

        /// The data of an object and its serial, or that there is none.
        fn state(&self, oid: u64) -> Option<(Vec<u8>, Tid)> {
            self.current(oid).map(|(data, tid)| (data.to_vec(), tid))
        }

        /// Tid, oid, position, `prev` and, if there is one, `back` of each record in the file.
        fn records(&self) -> Vec<(Tid, u64, u64, u64, Option<u64>)> {
            let tail = self.storage.file_len();
            let from = |pos| Transactions::from_pos(self.storage.file.clone(), pos, tail);
            let mut found = Vec::new();
            for txn in from(FIRST_TXN_POS) {
                let txn = txn.unwrap();
                for record in from(FIRST_TXN_POS).records(&txn) {
                    let record = record.unwrap();
                    let header = record.header;
                    let (tid, oid) = (header.tid, header.oid.0);
                    found.push((tid, oid, record.pos, header.prev, record.back));
                }
            }
            found
        }

        fn restore(&mut self, oid: u64, data: Option<&'static str>, hint: Option<Tid>) -> Tid {
            let id = self.storage.begin(Metadata {
                tid: Some(self.storage.last_tid().next()),
                ..metadata()
            });
            let data = data.map(|text| Bytes::from_static(text.as_bytes()));
            assert!(self.storage.restore(id, Oid(oid), data, hint));
            self.end(id)
        }
    }

    fn rig() -> Rig {
        Rig::new(options())
    }

    #[test]
    fn an_undo_points_back_to_the_record_before() {
        let mut rig = rig();
        let first = rig.commit(&[(1, 0, "one"), (2, 0, "two")]);
        let second = rig.commit(&[(2, first.0, "deux"), (1, first.0, "un"), (3, 0, "trois")]);
        let id = rig.begin_undo(&[second]);
        rig.vote(id);
        let undone = |oid, data_tid| (Oid(oid), data_tid);
        let found: Vec<_> = rig.storage.undone(id).iter().collect();
        assert_eq!(
            found
                .iter()
                .map(|it| (it.oid, it.data_tid))
                .collect::<Vec<_>>(),
            [
                undone(2, Some(first)),
                undone(1, Some(first)),
                undone(3, None)
            ]
        );
        rig.finish(id);
        let events = rig.settle();
        let [Event::Committed(commit)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(*commit.oids, [Oid(2), Oid(1), Oid(3)]);
        let third = commit.tid;
        assert_eq!(rig.state(1), Some((b"one".to_vec(), third)));
        assert_eq!(rig.state(2), Some((b"two".to_vec(), third)));
        assert_eq!(rig.state(3), None);
        let [one, two, deux, un, trois, undone @ ..] = &rig.records()[..] else {
            panic!("{:?}", rig.records());
        };
        let facts: Vec<_> = undone.iter().map(|it| (it.0, it.1, it.3, it.4)).collect();
        assert_eq!(
            facts,
            [
                (third, 2, deux.2, Some(two.2)),
                (third, 1, un.2, Some(one.2)),
                (third, 3, trois.2, Some(0))
            ]
        );
    }

    #[test]
    fn what_was_undone_can_be_redone_again_and_again() {
        let mut rig = rig();
        let created = rig.commit(&[(1, 0, "one")]);
        let mut last = rig.undo(&[created]);
        for round in 0..50 {
            assert_eq!(rig.state(1), None);
            last = rig.undo(&[last]);
            assert_eq!(rig.state(1), Some((b"one".to_vec(), last)), "{round}");
            last = rig.undo(&[last]);
        }
        // The way back to "one" has become long, but it is found.
        let redone = rig.undo(&[last]);
        assert_eq!(rig.state(1), Some((b"one".to_vec(), redone)));
        let lookup = Lookup::Serial(Oid(1), redone);
        let unanswered = rig.storage.look_up(lookup).unwrap_err();
        assert!(
            matches!(unanswered, Unanswered::Reading(_)),
            "it takes a worker"
        );
        let one = Bytes::from_static(b"one");
        assert_eq!(rig.look_up(lookup), Answer::Data(one));
    }

    #[test]
    fn what_was_changed_since_can_be_undone_only_if_it_is_the_same() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a"), (2, 0, "other")]);
        let b = rig.commit(&[(1, a.0, "b"), (2, a.0, "another")]);
        let c = rig.commit(&[(1, b.0, "c")]);
        assert_eq!(rig.reasons(&[b]), [(Oid(1), MODIFIED)]);
        assert_eq!(
            rig.reasons(&[a]),
            [
                (Oid(1), MODIFIED_SINCE_CREATION),
                (Oid(2), MODIFIED_SINCE_CREATION)
            ]
        );
        let same = rig.commit(&[(1, c.0, "b")]);
        let undone = rig.undo(&[b]);
        assert_eq!(rig.state(1), Some((b"a".to_vec(), undone)));
        assert_eq!(rig.state(2), Some((b"other".to_vec(), undone)));
        let records = rig.records();
        let at = |tid, oid| {
            records
                .iter()
                .find(|it| (it.0, it.1) == (tid, oid))
                .unwrap()
        };
        assert_eq!(at(undone, 1).3, at(same, 1).2);
        assert_eq!(at(undone, 1).4, Some(at(a, 1).2));
        // What does not exist is the same as nothing.
        let gone = rig.undo(&[a]);
        assert_eq!(rig.reasons(&[undone]), [(Oid(1), GONE), (Oid(2), GONE)]);
        assert!(rig.storage.last_tid() == gone);
    }

    #[test]
    fn several_undos_are_done_in_their_order() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a"), (2, 0, "x")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        let c = rig.commit(&[(1, b.0, "c"), (2, a.0, "y")]);
        assert_eq!(rig.reasons(&[b, c]), [(Oid(1), MODIFIED)]);
        assert_eq!(
            rig.reasons(&[c, c]),
            [(Oid(1), MODIFIED), (Oid(2), MODIFIED)]
        );
        let count = rig.records().len();
        let undone = rig.undo(&[c, b]);
        assert_eq!(rig.state(1), Some((b"a".to_vec(), undone)));
        assert_eq!(rig.state(2), Some((b"x".to_vec(), undone)));
        let records = rig.records();
        assert_eq!(records.len(), count + 2, "one record an object");
        let redone = rig.undo(&[undone]);
        assert_eq!(rig.state(1), Some((b"c".to_vec(), redone)));
        let all = rig.undo(&[redone, undone, c, b, a]);
        assert_eq!((rig.state(1), rig.state(2)), (None, None));
        assert!(
            rig.records()
                .iter()
                .filter(|it| it.0 == all)
                .all(|it| it.4 == Some(0))
        );
    }

    #[test]
    fn stores_and_undos_of_one_transaction_are_done_in_their_order() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        // What was stored before is what the undo finds.
        for (text, fine) in [("new", false), ("b", true)] {
            let id = rig.begin(&[(1, b.0, text), (2, 0, "beside")]);
            assert!(rig.storage.undo(id, Some(b)));
            if !fine {
                assert!(matches!(rig.refused(id), Refusal::Undo(_)));
                continue;
            }
            let undone = rig.end(id);
            assert_eq!(rig.state(1), Some((b"a".to_vec(), undone)));
            assert_eq!(rig.state(2), Some((b"beside".to_vec(), undone)));
        }
        // A second undo finds what the first has made of it.
        let serial = rig.storage.last_tid();
        let c = rig.commit(&[(1, serial.0, "c"), (2, serial.0, "beside")]);
        let id = rig.begin(&[(1, c.0, "c")]);
        assert!(rig.storage.undo(id, Some(c)));
        assert!(rig.storage.undo(id, Some(serial)));
        let undone = rig.end(id);
        assert_eq!(rig.state(1), Some((b"b".to_vec(), undone)));
        assert_eq!(rig.state(2), None);
        let redone = rig.undo(&[undone, c]);
        assert_eq!(rig.state(1), Some((b"a".to_vec(), redone)));
        // What is stored behind it stays, and the client need not forget it.
        let serial = rig.storage.last_tid();
        let id = rig.begin_undo(&[serial]);
        let data = Bytes::from_static(b"later");
        assert!(rig.storage.store(id, Oid(1), Some(serial), data));
        rig.vote(id);
        let undone: Vec<Oid> = rig.storage.undone(id).iter().map(|it| it.oid).collect();
        assert_eq!(undone, [Oid(2)]);
        rig.finish(id);
        rig.settle();
        let tid = rig.storage.last_tid();
        assert_eq!(rig.state(1), Some((b"later".to_vec(), tid)));
        assert_eq!(rig.state(2), None);
        // Between two undos it is what the second finds.
        let c = rig.commit(&[(1, tid.0, "c")]);
        let id = rig.begin_undo(&[c]);
        let data = Bytes::from_static(b"c");
        assert!(rig.storage.store(id, Oid(1), Some(c), data));
        assert!(rig.storage.undo(id, Some(c)));
        let undone = rig.end(id);
        assert_eq!(rig.state(1), Some((b"later".to_vec(), undone)));
    }

    #[test]
    fn a_conflict_is_resolved_before_anything_is_undone() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a"), (2, 0, "x")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        let c = rig.commit(&[(2, a.0, "y")]);
        let id = rig.begin(&[(2, a.0, "z")]);
        assert!(rig.storage.undo(id, Some(b)));
        let events = rig.vote(id);
        assert!(matches!(events[..], [Event::Voted(_, Vote::Conflicts(_))]));
        assert!(rig.storage.undone(id).is_empty());
        let data = Bytes::from_static(b"yz");
        assert!(rig.storage.store(id, Oid(2), Some(c), data));
        let tid = rig.end(id);
        assert_eq!(rig.state(1), Some((b"a".to_vec(), tid)));
        assert_eq!(rig.state(2), Some((b"yz".to_vec(), tid)));
    }

    #[test]
    fn what_is_stored_once_more_keeps_its_place_before_the_undo() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        let id = rig.begin(&[(1, a.0, "c")]);
        assert!(rig.storage.undo(id, Some(b)));
        let events = rig.vote(id);
        assert!(matches!(events[..], [Event::Voted(_, Vote::Conflicts(_))]));
        let data = Bytes::from_static(b"bc");
        assert!(rig.storage.store(id, Oid(1), Some(b), data));
        assert!(matches!(rig.refused(id), Refusal::Undo(_)));
    }

    #[test]
    fn an_undo_that_is_named_late_takes_a_ticket_of_its_own() {
        let mut rig = Rig::new(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let a = rig.commit(&[(1, 0, "a"), (2, 0, "x")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        let conflicting = rig.begin(&[(2, 0, "z")]);
        rig.vote(conflicting);
        let other = rig.begin(&[(1, b.0, "c")]);
        rig.vote(other);
        assert!(rig.storage.undo(conflicting, Some(b)));
        let data = Bytes::from_static(b"z");
        assert!(rig.storage.store(conflicting, Oid(2), Some(a), data));
        // The other one was there first.
        assert!(rig.vote(conflicting).is_empty());
        rig.finish(other);
        let events = rig.settle();
        assert!(
            matches!(
                events[..],
                [
                    Event::Committed(_),
                    Event::Voted(_, Vote::Refused(Refusal::Undo(_)))
                ]
            ),
            "{events:?}"
        );
    }

    #[test]
    fn only_a_finished_transaction_that_was_not_packed_can_be_undone() {
        let mut file = DataFile::new();
        file.txn(10, Status::Finished, "", &[(1, Own(b"a"))]);
        file.txn(20, Status::Packed, "", &[(1, Own(b"b"))]);
        file.txn(30, Status::Other(b'x'), "", &[(1, Own(b"c"))]);
        file.txn(40, Status::Finished, "", &[(1, Own(b"d"))]);
        for (tid, reason) in [
            (Some(10), NO_TRANSACTION),
            (Some(20), WRONG_STATUS),
            (Some(30), WRONG_STATUS),
            (Some(35), NO_TRANSACTION),
            (Some(50), NO_TRANSACTION),
            (None, NO_TRANSACTION),
        ] {
            let mut rig = Rig::with_file(&file);
            let id = rig.begin(&[]);
            assert!(rig.storage.undo(id, tid.map(Tid)));
            let refusal = rig.refused(id);
            assert!(
                matches!(refusal, Refusal::NotUndoable(it) if it == reason),
                "{tid:?}: {refusal:?}"
            );
        }
        let mut rig = Rig::with_file(&file);
        let tid = rig.undo(&[Tid(40)]);
        assert_eq!(rig.state(1), Some((b"c".to_vec(), tid)));
    }

    #[test]
    fn of_two_records_of_an_object_the_second_counts() {
        // ZODB writes such a transaction if several undos meet in it.
        let mut file = DataFile::new();
        let a = file.txn(10, Status::Finished, "", &[(1, Own(b"a"))])[0];
        let b = file.txn(20, Status::Finished, "", &[(1, Own(b"b"))])[0];
        let c = file.txn(30, Status::Finished, "", &[(1, Own(b"c"))])[0];
        file.txn(40, Status::Finished, "", &[(1, Back(b)), (1, Back(a))]);
        let mut rig = Rig::with_file(&file);
        assert_eq!(rig.state(1), Some((b"a".to_vec(), Tid(40))));
        let tid = rig.undo(&[Tid(40)]);
        assert_eq!(rig.state(1), Some((b"c".to_vec(), tid)));
        let undone = *rig.records().last().unwrap();
        assert_eq!(undone.4, Some(c));
    }

    #[test]
    fn an_undo_waits_for_what_is_on_its_way_to_the_disk() {
        for lock_scope in [LockScope::Storage, LockScope::Objects] {
            let mut rig = Rig::new(Options {
                lock_scope,
                ..options()
            });
            let a = rig.commit(&[(1, 0, "a"), (2, 0, "x")]);
            let b = rig.commit(&[(1, a.0, "b")]);
            let writing = rig.begin(&[(1, b.0, "c")]);
            rig.vote(writing);
            rig.finish(writing);
            // Nothing tells yet that it will change the same object.
            let undoing = rig.begin_undo(&[b]);
            assert!(rig.storage.vote(undoing, rig.now));
            assert_eq!(rig.storage.waiting_count(), 1);
            let events = rig.settle();
            assert!(
                matches!(
                    &events[..],
                    [Event::Committed(_), Event::Voted(_, Vote::Refused(Refusal::Undo(reasons)))]
                        if reasons[..] == [(Oid(1), MODIFIED)]
                ),
                "{events:?}"
            );
        }
    }

    #[test]
    fn nobody_votes_on_an_undone_object_until_it_is_written() {
        let mut rig = Rig::new(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let a = rig.commit(&[(1, 0, "a"), (2, 0, "x")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        let undoing = rig.begin_undo(&[b]);
        rig.vote(undoing);
        let same = rig.begin(&[(1, b.0, "c")]);
        let other = rig.begin(&[(2, a.0, "y")]);
        assert!(rig.vote(same).is_empty() && rig.vote(other).is_empty());
        rig.finish(undoing);
        rig.collect();
        let first = std::mem::take(&mut rig.events);
        assert!(
            matches!(first[..], [Event::Voted(id, Vote::Granted)] if id == other),
            "{first:?}"
        );
        let events = rig.settle();
        let [
            Event::Committed(commit),
            Event::Voted(id, Vote::Conflicts(conflicts)),
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((commit.txn, *id), (Some(undoing), same));
        assert_eq!(conflicts[0].committed, commit.tid);
    }

    #[test]
    fn an_undo_that_is_aborted_while_it_looks_back_lets_the_next_pass() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a")]);
        let undoing = rig.begin_undo(&[a]);
        assert!(rig.storage.vote(undoing, rig.now));
        rig.collect();
        assert!(matches!(rig.jobs[..], [Job::LookBack(_)]), "{:?}", rig.jobs);
        assert!(rig.storage.is_busy(undoing));
        let next = rig.begin(&[(1, a.0, "b")]);
        assert!(rig.storage.vote(next, rig.now));
        rig.storage.abort(undoing, rig.now);
        let events = rig.settle();
        assert!(matches!(events[..], [Event::Voted(id, Vote::Granted)] if id == next));
    }

    #[test]
    fn a_damaged_record_is_not_pointed_to() {
        let mut file = DataFile::new();
        let a = file.txn(10, Status::Finished, "", &[(1, Own(b"a"))])[0];
        let b = file.txn(20, Status::Finished, "", &[(1, Own(b"b")), (2, Own(b"x"))]);
        // `prev` of the second record names one of another object.
        let at = usize::try_from(b[1]).unwrap() + 16;
        file.bytes[at..at + 8].copy_from_slice(&a.to_be_bytes());
        let mut rig = Rig::with_file(&file);
        let id = rig.begin_undo(&[Tid(20)]);
        match rig.refused(id) {
            Refusal::Disk(reason) => assert!(reason.contains(&a.to_string()), "{reason}"),
            refusal => panic!("{refusal:?}"),
        }
    }

    #[test]
    fn no_damage_makes_looking_back_fail_in_another_way_than_by_saying_so() {
        let mut file = DataFile::new();
        let a = file.txn(10, Status::Finished, "", &[(1, Own(b"a")), (2, Own(b"x"))]);
        file.txn(20, Status::Finished, "", &[(1, Own(b"b")), (2, Back(0))]);
        file.txn(
            30,
            Status::Finished,
            "",
            &[(1, Back(a[0])), (2, Back(a[1]))],
        );
        let mut index = Index::new();
        for (oid, pos) in &file.current {
            index.insert(Oid(*oid), *pos);
        }
        let (mut good, mut bad) = (0, 0);
        for at in 0..file.bytes.len() {
            for flip in [0x01, 0x20, 0xff] {
                let mut bytes = file.bytes.clone();
                bytes[at] ^= flip;
                let disk = MemoryDisk::new();
                disk.replace(Path::new("Data.fs"), &[&bytes]).unwrap();
                let hint = Hint {
                    at: 0,
                    oid: Oid(1),
                    pos: file.current[&1],
                    tid: Tid(10),
                    data: Data::memory(Bytes::from_static(b"a")),
                };
                let look_back = LookBack {
                    txn: TxnId(0),
                    file: disk.open(Path::new("Data.fs"), OpenMode::Read).unwrap(),
                    tail: file.end(),
                    staging_file: None,
                    undos: [30, 20, 10].map(|tid| Some(Tid(tid))).to_vec(),
                    index: index.snapshot(),
                    own: Vec::new(),
                    hints: vec![hint],
                };
                match look_back.run() {
                    Ok(backs) => {
                        let backs = backs.undone.iter().filter_map(|undone| undone.back);
                        assert!({ backs }.all(|back| back < file.end()));
                        good += 1;
                    }
                    Err(_) => bad += 1,
                }
            }
        }
        assert!(good > 100 && bad > 100, "{good} {bad}");
    }

    #[test]
    fn the_answer_to_a_failed_undo_and_the_number_of_undos_have_bounds() {
        let mut rig = rig();
        let oids = 1..=UNDO_ERRORS_MAX as u64 + 1;
        let stores = |serial: Tid, text| oids.clone().map(|oid| (oid, serial.0, text)).collect();
        let a: Vec<_> = stores(Tid::ZERO, "a");
        let a = rig.commit(&a);
        let b: Vec<_> = stores(a, "b");
        rig.commit(&b);
        assert_eq!(rig.reasons(&[a]).len(), UNDO_ERRORS_MAX);
        let id = rig.begin_undo(&vec![Tid(1); UNDOS_MAX + 1]);
        assert_eq!(rig.storage.txns[&id].undos.len(), UNDOS_MAX);
        assert!(matches!(rig.refused(id), Refusal::Disk(reason) if reason.contains("undos")));
    }

    #[test]
    fn nothing_is_added_after_the_vote() {
        let mut rig = rig();
        let tid = rig.commit(&[(1, 0, "a")]);
        let id = rig.begin(&[]);
        rig.vote(id);
        assert!(!rig.storage.undo(id, Some(tid)));
        assert!(!rig.storage.restore(id, Oid(1), None, None));
        assert!(!rig.storage.delete(id, Oid(1), tid));
    }

    #[test]
    fn a_restored_revision_shares_data_that_are_the_same() {
        let mut rig = rig();
        let a = rig.restore(1, Some("a"), None);
        let b = rig.restore(1, Some("b"), Some(a));
        let undone = rig.restore(1, Some("a"), Some(a));
        let again = rig.restore(1, Some("a"), Some(undone));
        let gone = rig.restore(1, None, Some(b));
        let still_gone = rig.restore(1, None, Some(gone));
        let unknown = rig.restore(1, Some("b"), Some(Tid(7)));
        rig.restore(2, Some("x"), Some(a));
        let records = rig.records();
        let backs: Vec<_> = records.iter().map(|it| it.4).collect();
        let [at_a, _, at_undone, _, at_gone, ..] = records[..] else {
            panic!("{records:?}");
        };
        assert_eq!(
            backs,
            [
                None,
                None,
                Some(at_a.2),
                Some(at_undone.2),
                Some(0),
                Some(at_gone.2),
                None,
                None
            ]
        );
        for (tid, data) in [(b, "b"), (undone, "a"), (again, "a"), (unknown, "b")] {
            let answer = rig.look_up(Lookup::Serial(Oid(1), tid));
            assert_eq!(answer, Answer::Data(Bytes::from_static(data.as_bytes())));
        }
        for tid in [gone, still_gone] {
            let answer = rig.look_up(Lookup::Serial(Oid(1), tid));
            assert_eq!(answer, Answer::Missing);
        }
    }

    #[test]
    fn long_data_are_compared_wherever_they_are() {
        let mut rig = rig();
        let long = |last: u8| {
            let mut data = vec![7; STAGED_LEN_IN_MEMORY_MAX];
            data.push(last);
            Bytes::from(data)
        };
        let restore = |rig: &mut Rig, data: Bytes, hint: Option<Tid>| {
            let id = rig.storage.begin(metadata());
            assert!(rig.storage.restore(id, Oid(1), Some(data), hint));
            rig.settle();
            assert!(rig.storage.txns[&id].staging_file.is_some());
            rig.end(id)
        };
        let a = restore(&mut rig, long(1), None);
        let len = rig.storage.file_len();
        let other = restore(&mut rig, long(2), Some(a));
        assert!(
            rig.storage.file_len() > 2 * len - 100,
            "the last byte differs"
        );
        let len = rig.storage.file_len();
        restore(&mut rig, long(1), Some(a));
        assert_eq!(rig.storage.file_len() - len, 23 + 8 + 42 + 8 + 8);
        assert_eq!(rig.state(1).unwrap().0, long(1));
        // The same in an undo: it is current again what `a` wrote.
        assert_eq!(rig.reasons(&[other]), [(Oid(1), MODIFIED)]);
        rig.undo(&[a]);
        assert_eq!(rig.state(1), None);
    }

    #[test]
    fn space_is_asked_for_when_it_is_known_how_much() {
        let mut rig = Rig::new(Options {
            quota: Some(260),
            ..options()
        });
        let text = "a text of sixty characters, with which the quota is exceeded";
        let a = rig.restore(1, Some(text), None);
        assert_eq!(rig.storage.file_len(), 4 + 23 + 8 + 42 + 60 + 8);
        // Two of them would be too much.
        rig.restore(1, Some(text), Some(a));
        let id = rig.begin_undo(&[rig.storage.last_tid()]);
        assert!(matches!(rig.refused(id), Refusal::Quota));
    }

    #[test]
    fn a_deletion_must_name_the_current_revision() {
        let mut rig = rig();
        let a = rig.commit(&[(1, 0, "a")]);
        let b = rig.commit(&[(1, a.0, "b")]);
        let delete = |rig: &mut Rig, oid, serial| {
            let id = rig.begin(&[(5, 0, "beside")]);
            assert!(rig.storage.delete(id, Oid(oid), serial));
            id
        };
        let id = delete(&mut rig, 1, a);
        let Refusal::Conflict(conflict) = rig.refused(id) else {
            panic!("no conflict");
        };
        assert_eq!(
            (conflict.oid, conflict.committed, conflict.sent),
            (Oid(1), b, a)
        );
        let id = delete(&mut rig, 9, a);
        assert!(matches!(rig.refused(id), Refusal::Missing(Oid(9))));
        let id = delete(&mut rig, 1, b);
        let deleted = rig.end(id);
        assert_eq!(rig.state(1), None);
        assert_eq!(
            rig.storage.object_count(),
            2,
            "it counts until it is packed away"
        );
        assert_eq!(
            rig.records()
                .iter()
                .find(|it| it.0 == deleted && it.1 == 1)
                .unwrap()
                .4,
            Some(0)
        );
        // It can come back: by an undo, or by a store that knows of the deletion.
        let undone = rig.undo(&[deleted]);
        assert_eq!(rig.state(1), Some((b"b".to_vec(), undone)));
        let id = rig.begin(&[]);
        assert!(rig.storage.delete(id, Oid(1), undone));
        let deleted = rig.end(id);
        let tid = rig.commit(&[(1, deleted.0, "new")]);
        assert_eq!(rig.state(1), Some((b"new".to_vec(), tid)));
    }
}
