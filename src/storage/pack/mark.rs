//! Which records a pack keeps.
//!
//! *At pack time* an object has one current record, the last one before; that of an object that did
//! not exist any more does not count. With garbage collection only objects are kept that can be
//! reached from the root by references of such records. Beyond these, records are kept that have
//! the data of later ones (undo writes such *back pointers*), and what they refer to.
//!
//! Marking reads each reached record once. References lead anywhere, so objects wait in a set, and
//! are read in batches, each in the order of the file: of the disk that makes long strokes instead
//! of one seek for each object.

use std::collections::{BTreeMap, BTreeSet};

use super::super::error::{Damage, Fault};
use super::super::format::{DATA_HEADER_LEN, POINTER_LEN};
use super::super::index::Index;
use super::super::iterate::Record;
use super::super::read::Reader;
use super::super::references::ReferencesError;
use super::oid_set::OidSet;
use super::{PackError, SLICE_LEN};
use crate::ids::Oid;

/// Objects read in one slice. On a disk with moving parts that is some seconds.
const OBJECTS_PER_SLICE: usize = 1000;

/// Objects of one batch, which takes 16 bytes for each.
const BATCH_COUNT: usize = 50_000;

/// Finds what a record refers to.
pub(super) type References = fn(&[u8], &mut Vec<Oid>) -> Result<(), ReferencesError>;

/// What is kept of the time before the pack time.
#[derive(Debug)]
pub(super) struct Marks {
    /// Whether what cannot be reached is dropped.
    gc: bool,
    references: References,
    /// Position of each object's record that is current at pack time.
    index: Index,
    /// Objects that have been reached.
    reached: OidSet,
    /// Those of them that have not been read yet.
    pending: OidSet,
    /// Where the next batch of them begins.
    next: Oid,
    /// Those that are read now, the last one first.
    batch: Vec<(u64, Oid)>,
    /// Records to be read that are not, or not only, current at pack time.
    extra: Vec<(u64, Oid)>,
    /// Objects that nothing leads to at pack time, but that are current again later by a back
    /// pointer: only the record behind that is kept.
    revived: BTreeSet<Oid>,
    /// Records that later ones have back pointers to, by position, with their objects and their
    /// positions in the new file.
    targets: BTreeMap<u64, (Oid, u64)>,
    /// What is read now was not current at pack time, or is only reached from there: it may refer
    /// to objects that did not exist any more.
    reads_old: bool,
    /// Bytes of all records that were read.
    reached_len: u64,
}

impl Marks {
    pub(super) fn new(gc: bool, references: References) -> Self {
        Self {
            gc,
            references,
            index: Index::new(),
            reached: OidSet::default(),
            pending: OidSet::default(),
            next: Oid::ZERO,
            batch: Vec::new(),
            extra: Vec::new(),
            revived: BTreeSet::new(),
            targets: BTreeMap::new(),
            reads_old: false,
            reached_len: 0,
        }
    }

    /// A record from before the pack time. To be called for all of them, in order.
    pub(super) fn note_past(&mut self, record: &Record) {
        let oid = record.header.oid;
        if record.back == Some(0) {
            self.index.remove(oid);
        } else {
            self.index.insert(oid, record.pos);
        }
    }

    /// All records from before the pack time have been noted: begins at the root.
    pub(super) fn begin(&mut self) -> Result<(), PackError> {
        if !self.gc || self.index.is_empty() {
            return Ok(());
        }
        if self.index.get(Oid::ZERO).is_none() {
            return Err(PackError::NoRoot);
        }
        self.reach(Oid::ZERO, Oid::ZERO)
    }

    /// A record from after the pack time, which ends at `pack_pos`.
    pub(super) fn note_future(&mut self, record: &Record, pack_pos: u64) -> Result<(), PackError> {
        let (pos, oid) = (record.pos, record.header.oid);
        let found = record.back.unwrap_or(0);
        if found >= pos {
            let fault = Fault::Pointer { found };
            return Err(PackError::Read(Damage { pos, fault }.into()));
        }
        if found == 0 || found >= pack_pos || self.targets.contains_key(&found) {
            return Ok(());
        }
        self.targets.insert(found, (oid, 0));
        if self.gc {
            if self.reached.insert(oid) {
                self.revived.insert(oid);
            }
            // ZODB looks into the first such record of an object only if the object is reached at
            // pack time, too. What it refers to is lost there, if nothing else leads to it.
            self.extra.push((found, oid));
            self.reads_old = true;
        }
        Ok(())
    }

    /// Reads some of what has been reached; whether all of it has been read.
    pub(super) fn mark(&mut self, reader: &Reader<'_>) -> Result<bool, PackError> {
        let mut found = Vec::new();
        let mut len = 0;
        for _ in 0..OBJECTS_PER_SLICE {
            let Some((pos, oid)) = self.next_to_read() else {
                return Ok(true);
            };
            let data = reader.data_at(pos, oid).map_err(PackError::Read)?;
            let data = data.unwrap_or_default();
            let content_len = data.len().max(POINTER_LEN) as u64;
            self.reached_len += DATA_HEADER_LEN as u64 + content_len;
            if !data.is_empty() {
                found.clear();
                (self.references)(&data, &mut found).map_err(|error| PackError::References {
                    oid,
                    pos,
                    error,
                })?;
                for referred in &found {
                    self.reach(*referred, oid)?;
                }
            }
            len += content_len;
            if len >= SLICE_LEN {
                break;
            }
        }
        Ok(false)
    }

    /// Whether nothing waits to be read.
    pub(super) fn is_complete(&self) -> bool {
        self.extra.is_empty() && self.batch.is_empty() && self.pending.is_empty()
    }

    /// Whether the record at `pos`, from before the pack time, is kept.
    pub(super) fn keeps(&self, oid: Oid, pos: u64) -> bool {
        if self.targets.contains_key(&pos) {
            return true;
        }
        let is_current = self.index.get(oid) == Some(pos);
        is_current && (!self.gc || (self.reached.contains(oid) && !self.revived.contains(&oid)))
    }

    /// The record at `pos`, which is kept, has this position in the new file.
    pub(super) fn note_moved(&mut self, pos: u64, new_pos: u64) {
        if let Some((_, moved)) = self.targets.get_mut(&pos) {
            *moved = new_pos;
        }
    }

    /// Where the record at `pos`, from before the pack time, stands in the new file, if a back
    /// pointer to it was noted.
    pub(super) fn moved(&self, pos: u64) -> Option<u64> {
        let (_, moved) = self.targets.get(&pos)?;
        Some(*moved).filter(|moved| *moved != 0)
    }

    /// The least that the kept records take; nothing if that is not known.
    pub(super) const fn kept_len(&self) -> u64 {
        self.reached_len
    }

    /// All that is kept has been copied: gives back what only told which that is.
    pub(super) fn forget(&mut self) {
        self.index = Index::new();
        self.reached = OidSet::default();
        self.revived.clear();
    }

    fn reach(&mut self, oid: Oid, by: Oid) -> Result<(), PackError> {
        if self.reached.contains(oid) {
            return Ok(());
        }
        if self.index.get(oid).is_none() {
            return match self.reads_old {
                true => Ok(()),
                false => Err(PackError::Dangling { oid, by }),
            };
        }
        self.reached.insert(oid);
        self.pending.insert(oid);
        Ok(())
    }

    fn next_to_read(&mut self) -> Option<(u64, Oid)> {
        if self.batch.is_empty() {
            let mut oids = Vec::new();
            self.pending.take(self.next, BATCH_COUNT, &mut oids);
            self.next = oids.last().copied().unwrap_or_default();
            let placed = oids
                .into_iter()
                .filter_map(|oid| Some((self.index.get(oid)?, oid)));
            self.batch.extend(placed);
            self.batch.sort_unstable_by(|one, other| other.cmp(one));
        }
        self.batch.pop().or_else(|| self.extra.pop())
    }
}
