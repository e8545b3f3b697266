//! A transaction between begin and finish: what it wants to write, and how far it has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::View;
use super::blob::TxnBlobs;
use super::commit_lock::{Claim, Ticket};
use super::compose::Composed;
use super::disk::File;
use super::format::{DATA_HEADER_LEN, POINTER_LEN, TXN_HEADER_LEN};
use super::index::Index;
use super::layout::Layout;
use super::undo::Undone;
use crate::ids::{Oid, Tid};
use crate::limits::{
    STAGED_LEN_IN_MEMORY_MAX, STAGED_PIECE_LEN, STAGED_PIECES_MAX, STAGED_SHARED_LEN_MIN,
};

/// Records and dependencies from which on a transaction is *large*: what has to be done with each
/// of them is done by workers. A vote compares fewer at once, with about a microsecond for each.
pub(super) const LARGE_COUNT_MIN: usize = 1000;

/// Bytes of memory that a record takes beside its data, roughly.
const RECORD_MEMORY_LEN: usize = 100;

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
    pub(super) base: Base,
    pub(super) data: Data,
    /// How many undos the transaction had named before: those know nothing of this record.
    pub(super) undos_before: usize,
}

/// What a record expects of the object's current revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// A store: if there is one, it is this, as far as the client said something that can be one.
    /// Conflicts can be resolved.
    Replaced(Option<Tid>),
    /// A deletion: there is one, and it is this.
    Deleted(Tid),
    /// A restored revision: nothing. The transaction may have the same data, and is named to save
    /// space.
    Any {
        /// Its tid.
        same_data: Option<Tid>,
    },
    /// The revision of an undo: nothing any more.
    Undone,
}

/// Where the data of a record are until they get their place in the data file.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// In memory. Never empty.
    Memory(Bytes),
    /// In the transaction's staging file. Never empty.
    Staged {
        /// From here
        pos: u64,
        /// on, so many bytes.
        len: usize,
    },
    /// In the data file already: they are those of the object's record at this position. It was
    /// found under the commit lock, and holds as long as that is held (see [`super::undo`]).
    Back(u64),
    /// Nowhere: the object does not exist as of this record.
    Gone,
}

impl Data {
    /// What came from a client. Short data do not keep the whole of what was read from the socket
    /// with them.
    pub(super) fn memory(data: Bytes) -> Self {
        Self::Memory(match data.len() {
            ..STAGED_SHARED_LEN_MIN => Bytes::copy_from_slice(&data),
            _ => data,
        })
    }

    /// Bytes of data in the record itself.
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Memory(data) => data.len(),
            Self::Staged { len, .. } => *len,
            Self::Back(_) | Self::Gone => 0,
        }
    }

    /// How much memory it takes that a staging file would save. Something for the record itself is
    /// counted in, so that the work of staging is bounded, however short the data are.
    const fn memory_len(&self) -> usize {
        match self {
            Self::Memory(data) => RECORD_MEMORY_LEN + data.len(),
            Self::Staged { .. } | Self::Back(_) | Self::Gone => 0,
        }
    }
}

impl Record {
    pub(super) const fn len_in_file(&self) -> u64 {
        let content_len = match &self.data {
            Data::Memory(_) | Data::Staged { .. } => self.data.len(),
            Data::Back(_) | Data::Gone => POINTER_LEN,
        };
        (DATA_HEADER_LEN + content_len) as u64
    }
}

/// A transaction in progress.
#[derive(Debug)]
pub(super) struct Txn {
    pub(super) metadata: Metadata,
    /// In the order in which the objects were named first; one record an object.
    pub(super) records: Vec<Record>,
    /// Where in `records` an object is, counted from 1. An index of positions is the map of so many
    /// that takes the least memory.
    by_oid: Index,
    /// Objects that must not have changed since the client read them.
    pub(super) checks: Vec<(Oid, Tid)>,
    /// Transactions to be undone, in order; `None` for what cannot be one.
    pub(super) undos: Vec<Option<Tid>>,
    /// What came of them; their records are in `records`, too.
    pub(super) undone: Vec<Undone>,
    pub(super) state: TxnState,
    /// Votes answered with conflicts so far.
    pub(super) conflicting_votes: u32,
    /// Serials of current revisions that had to be read from the disk, by file position.
    pub(super) serials_read: BTreeMap<u64, Tid>,
    /// Bytes that its records will take in the file.
    records_len: u64,
    /// Numbers of the records whose data are in memory. Others may be among them, and some twice.
    in_memory: Vec<usize>,
    /// Bytes of memory that these take.
    memory_len: usize,
    /// Where data go that are too much for the memory.
    pub(super) staging_file: Option<Arc<dyn File>>,
    /// Where the next ones go in it.
    staged_end: u64,
    /// Data are on their way to the staging file.
    is_spilling: bool,
    /// Data of a record that come in pieces: where they begin in the staging file.
    pieces_pos: Option<u64>,
    /// Pieces that are to be written before `staged_end`, and their length.
    pieces: Vec<Bytes>,
    pieces_len: usize,
    /// The files of its blobs.
    pub(super) blobs: TxnBlobs,
    /// Where its back pointers lead, if that is known.
    pub(super) looked_back_in: Option<View>,
    /// What is proposed of it, if a worker had to see to that.
    pub(super) composed: Option<Box<Composed>>,
    /// Whether other nodes have its blobs.
    pub(super) offer: Offer,
    /// Its serials were found right, and it only waits for space.
    pub(super) is_compared: bool,
    /// Why it can only be rolled back.
    pub(super) broken: Option<String>,
}

/// What a transaction leaves behind. Dropping a million records takes a while, and closing a
/// staging file does: that is when the system frees its space.
#[derive(Debug, Default)]
pub struct Rest {
    records: Vec<Record>,
    _by_oid: Index,
    staging_file: Option<Arc<dyn File>>,
    pub(super) layout: Option<Arc<Layout>>,
}

impl Rest {
    /// Whether nobody should wait for it to be dropped.
    pub(super) fn is_large(&self) -> bool {
        let is_long = self.records.len() > LARGE_COUNT_MIN;
        is_long || self.staging_file.is_some() || self.layout.is_some()
    }
}

impl From<Arc<dyn File>> for Rest {
    fn from(staging_file: Arc<dyn File>) -> Self {
        Self {
            staging_file: Some(staging_file),
            ..Self::default()
        }
    }
}

impl From<Vec<Record>> for Rest {
    fn from(records: Vec<Record>) -> Self {
        Self {
            records,
            ..Self::default()
        }
    }
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

/// What other nodes were told of the blobs of a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Offer {
    /// Nothing
    #[default]
    None,
    /// They are to fetch them.
    Made,
    /// It need not wait for that any more.
    Answered,
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
            by_oid: Index::new(),
            checks: Vec::new(),
            undos: Vec::new(),
            undone: Vec::new(),
            state: TxnState::Staging,
            conflicting_votes: 0,
            serials_read: BTreeMap::new(),
            records_len: 0,
            in_memory: Vec::new(),
            memory_len: 0,
            staging_file: None,
            staged_end: 0,
            is_spilling: false,
            pieces_pos: None,
            pieces: Vec::new(),
            pieces_len: 0,
            blobs: TxnBlobs::default(),
            looked_back_in: None,
            composed: None,
            offer: Offer::None,
            is_compared: false,
            broken: None,
        }
    }

    /// Adds a new revision; an earlier one of the same object is forgotten, and only its place in
    /// the order of things is kept: a client that resolves a conflict stores its object once more.
    pub(super) fn store(&mut self, mut record: Record) {
        self.records_len += record.len_in_file();
        self.memory_len += record.data.memory_len();
        let at = self.place_of(record.oid);
        if matches!(record.data, Data::Memory(_)) {
            self.in_memory.push(at.unwrap_or(self.records.len()));
        }
        match at {
            Some(at) => {
                record.undos_before = self.records[at].undos_before;
                let replaced = std::mem::replace(&mut self.records[at], record);
                self.records_len -= replaced.len_in_file();
                self.memory_len -= replaced.data.memory_len();
            }
            None => {
                self.by_oid
                    .insert(record.oid, self.records.len() as u64 + 1);
                self.records.push(record);
            }
        }
    }

    fn place_of(&self, oid: Oid) -> Option<usize> {
        let count = self.by_oid.get(oid)?;
        usize::try_from(count - 1).ok()
    }

    /// Whether records can be added: not while the lock covers those that there are.
    pub(super) const fn takes_records(&self) -> bool {
        matches!(self.state, TxnState::Staging | TxnState::Resolving { .. })
            && !self.blobs.is_voting()
    }

    /// Whether so much is on its way to the staging file that its client has to wait.
    pub(super) const fn is_spilling(&self) -> bool {
        match self.pieces_pos {
            None => self.is_spilling,
            Some(_) => self.is_spilling && self.has_enough_pieces(),
        }
    }

    /// Whether so many pieces have come that they should be written, be it that they are short: a
    /// byte takes as much memory as some dozens.
    const fn has_enough_pieces(&self) -> bool {
        self.pieces_len >= STAGED_PIECE_LEN || self.pieces.len() >= STAGED_PIECES_MAX
    }

    /// Data of a record that is to come.
    pub(super) fn add_piece(&mut self, piece: Bytes) {
        self.pieces_pos.get_or_insert(self.staged_end);
        self.staged_end += piece.len() as u64;
        self.pieces_len += piece.len();
        self.pieces.push(piece);
    }

    /// The data that have come in pieces since this was called last.
    pub(super) fn take_pieces(&mut self) -> Option<Data> {
        let pos = self.pieces_pos.take()?;
        let len = usize::try_from(self.staged_end - pos).ok()?;
        Some(Data::Staged { pos, len })
    }

    /// What should go to the staging file now, and where: pieces, if they are long enough or the
    /// last ones, or all data in memory, if they are too much for it. Until [`Self::on_spilled`]
    /// none of it may be read, though the records say already where their data will be.
    pub(super) fn spill(&mut self) -> Option<(u64, Vec<Bytes>)> {
        if self.is_spilling {
            return None;
        }
        let mut data = Vec::new();
        let pos = self.staged_end - self.pieces_len as u64;
        if self.has_enough_pieces() || self.pieces_pos.is_none() {
            data = std::mem::take(&mut self.pieces);
            self.pieces_len = 0;
        }
        // What comes in pieces stands in one place.
        if self.memory_len >= STAGED_LEN_IN_MEMORY_MAX && self.pieces_pos.is_none() {
            self.move_to_staging(&mut data);
        }
        self.is_spilling = !data.is_empty();
        self.is_spilling.then_some((pos, data))
    }

    /// Moves all data in memory behind `staged`.
    fn move_to_staging(&mut self, staged: &mut Vec<Bytes>) {
        let mut numbers = std::mem::take(&mut self.in_memory);
        numbers.sort_unstable();
        numbers.dedup();
        staged.reserve(numbers.len());
        for at in numbers {
            let data = &mut self.records[at].data;
            let (pos, len) = (self.staged_end, data.len());
            match std::mem::replace(data, Data::Staged { pos, len }) {
                // Moved, so that it is the worker that frees them.
                Data::Memory(bytes) => {
                    self.staged_end += len as u64;
                    staged.push(bytes);
                }
                other => *data = other,
            }
        }
        self.memory_len = 0;
    }

    /// What was to be staged is in the staging file.
    pub(super) fn on_spilled(&mut self, file: Arc<dyn File>) {
        self.is_spilling = false;
        self.staging_file = Some(file);
    }

    /// Data of a record that were in the staging file are in memory again.
    pub(super) fn on_fetched(&mut self, oid: Oid, data: Bytes) {
        if let Some(at) = self.place_of(oid) {
            let data = Data::Memory(data);
            self.memory_len += data.memory_len();
            self.in_memory.push(at);
            self.records[at].data = data;
        }
    }

    /// What came of the undos replaces what was stored before them.
    pub(super) fn on_undone(&mut self, mut undone: Vec<Undone>) {
        undone.retain(|one| {
            let later = |at: usize| self.records[at].undos_before > one.undo;
            !self.place_of(one.oid).is_some_and(later)
        });
        for one in &undone {
            self.store(Record {
                oid: one.oid,
                base: Base::Undone,
                data: one.back.map_or(Data::Gone, Data::Back),
                undos_before: 0,
            });
        }
        self.undone = undone;
    }

    /// The data of a record are in the data file already.
    pub(super) fn on_same_data(&mut self, at: usize, pos: u64) {
        let record = &mut self.records[at];
        self.records_len -= record.len_in_file();
        self.memory_len -= record.data.memory_len();
        record.data = Data::Back(pos);
        self.records_len += record.len_in_file();
    }

    /// Whether it has so many records that it takes its time to go through them.
    pub(super) fn is_large(&self) -> bool {
        self.records.len() + self.checks.len() > LARGE_COUNT_MIN
    }

    /// Takes what is of no use any more when it has its place in the file.
    pub(super) fn take_rest(&mut self) -> Rest {
        Rest {
            records: std::mem::take(&mut self.records),
            _by_oid: std::mem::take(&mut self.by_oid),
            staging_file: self.staging_file.take(),
            layout: None,
        }
    }

    /// What is left of one that is rolled back.
    pub(super) fn into_rest(mut self) -> Rest {
        self.take_rest()
    }

    /// What its vote has to exclude.
    pub(super) const fn claim(&self) -> Claim {
        if !self.undos.is_empty() {
            return Claim::Alone;
        }
        match self.metadata.tid {
            Some(_) => Claim::Storage,
            None => Claim::Objects,
        }
    }

    /// Every object that it names, in any order.
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
