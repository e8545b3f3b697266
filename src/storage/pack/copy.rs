//! Writing the packed file.
//!
//! Of the time before the pack time the kept records are copied, each with its data and without a
//! way to an earlier revision, as ZODB does it. What is behind is copied as it is: it keeps its
//! lengths, so that each position in it moves by the same distance, and only pointers change.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::blob::is_blob_record;
use super::super::disk::File;
use super::super::error::{Damage, Fault, ReadError, StorageError};
use super::super::format::{
    DATA_HEADER_LEN, DataHeader, FIRST_TXN_POS, POINTER_LEN, POS_END, Status, TXN_HEADER_LEN,
    TxnHeader,
};
use super::super::index::Index;
use super::super::iterate::{Record, Transaction, Transactions};
use super::super::output::{Output, WRITE_LEN};
use super::super::read::{Reader, Wait};
use super::mark::Marks;
use super::walk::{Piece, Walk};
use super::{PackError, SLICE_LEN};
use crate::ids::{Oid, Tid};

/// Bytes written without a sync. Commits may have to wait for that long, and each of them takes
/// more than a sync of so little.
const SYNC_LEN: u64 = 1 << 20;

/// Data up to this length are copied from what was read along with their record.
const SHORT_LEN: u64 = 64 * 1024;

/// The new file in the making.
#[derive(Debug)]
pub(super) struct Copier {
    walk: Walk,
    output: Output,
    /// Where it is, for errors.
    path: PathBuf,
    /// Position of each object's current record in the new file.
    index: Index,
    /// Where the new file's transactions from after the pack time begin.
    new_pack_pos: u64,
    /// Position of the transaction that is being copied, if it has records that are kept.
    tloc: Option<u64>,
    /// The records of that transaction, which are current when all of it is there.
    entries: Vec<(Oid, u64)>,
    /// The last transaction that has a say, in a file that others pack, too: it stays, be it empty,
    /// and a back pointer behind it that leads to what is dropped becomes the data.
    through: Option<Tid>,
    /// How much further behind what follows is in the new file, since such data are longer than the
    /// pointers, by positions in the old one.
    shifts: Vec<(u64, u64)>,
    /// Revisions with blobs that are dropped; `None` if there are no blobs at all.
    dropped: Option<Vec<(Oid, Tid)>>,
    /// Those of the transaction that is being copied.
    dropped_here: Vec<(Oid, Tid)>,
}

impl Copier {
    /// `file` is empty.
    pub(super) fn new(
        file: Arc<dyn File>,
        path: PathBuf,
        magic: &[u8],
        has_blobs: bool,
        through: Option<Tid>,
    ) -> Result<Self, PackError> {
        let mut copier = Self {
            walk: Walk::new(),
            output: Output::new(file, SYNC_LEN),
            path,
            index: Index::new(),
            new_pack_pos: FIRST_TXN_POS,
            tloc: None,
            entries: Vec::new(),
            through,
            shifts: Vec::new(),
            dropped: has_blobs.then(Vec::new),
            dropped_here: Vec::new(),
        };
        copier.put(magic)?;
        Ok(copier)
    }

    /// Up to which position of the old file it has come.
    pub(super) fn pos(&self) -> u64 {
        self.walk.pos()
    }

    /// Copies some of what is kept from before the pack time, which `reader` and `txns` end at.
    /// `true` if that is done.
    pub(super) fn copy_past(
        &mut self,
        reader: &Reader<'_>,
        txns: &mut Transactions,
        marks: &mut Marks,
    ) -> Result<bool, PackError> {
        let slice = self.slice();
        while let Some(piece) = self.walk.next(txns).map_err(PackError::Read)? {
            match piece {
                Piece::Record(record) if marks.keeps(record.header.oid, record.pos) => {
                    let tloc = self.begin_kept()?;
                    let new_pos = self.copy_kept(&record, tloc, reader, txns)?;
                    marks.note_moved(record.pos, new_pos);
                }
                Piece::Record(record) => self.note_dropped(&record, reader, txns)?,
                Piece::Begin(txn) => {
                    if self.through == Some(txn.header.tid) {
                        self.begin_kept()?;
                    }
                }
                Piece::End(_) => self.end_kept()?,
            }
            if self.is_over(&slice) {
                return Ok(false);
            }
        }
        self.new_pack_pos = self.output.end();
        Ok(true)
    }

    /// Where the new file's transactions from after the pack time begin.
    pub(super) const fn new_pack_pos(&self) -> u64 {
        self.new_pack_pos
    }

    /// The head of the transaction that the walk is in, before its first record that is kept;
    /// where it stands in the new file.
    fn begin_kept(&mut self) -> Result<u64, PackError> {
        if let (None, Some(txn)) = (self.tloc, self.walk.inside().cloned()) {
            self.tloc = Some(self.output.end());
            // Its length is put right when it is known.
            let header = TxnHeader {
                status: Status::Packed,
                ..txn.header
            };
            self.put(&header.encode())?;
            self.put(txn.texts())?;
        }
        Ok(self.tloc.unwrap_or_default())
    }

    /// One record that is kept; its position in the new file.
    fn copy_kept(
        &mut self,
        record: &Record,
        tloc: u64,
        reader: &Reader<'_>,
        txns: &mut Transactions,
    ) -> Result<u64, PackError> {
        let oid = record.header.oid;
        let own = record.pos + DATA_HEADER_LEN as u64;
        let place = match record.back {
            None => Some((own, record.header.data_len)),
            Some(_) => {
                let source = reader.source(record.pos, oid).map_err(PackError::Read)?;
                source.map(|source| (source.data_pos, source.data_len))
            }
        };
        let new_pos = self.output.end();
        let header = DataHeader {
            prev: 0,
            tloc,
            data_len: place.map_or(0, |(_, len)| len),
            ..record.header
        };
        self.put(&header.encode())?;
        match place {
            None => self.put(&[0; POINTER_LEN])?,
            Some((pos, len)) if pos == own => self.copy_data(txns, reader.file, pos, len)?,
            Some((pos, len)) => self.put_from(reader.file, pos, len)?,
        }
        self.index.insert(oid, new_pos);
        Ok(new_pos)
    }

    /// Notes a record that is not kept, if a blob belongs to it.
    fn note_dropped(
        &mut self,
        record: &Record,
        reader: &Reader<'_>,
        txns: &mut Transactions,
    ) -> Result<(), PackError> {
        const HEAD_LEN: u64 = 64;

        if self.dropped.is_none() {
            return Ok(());
        }
        let oid = record.header.oid;
        let (pos, len) = match record.back {
            None => (record.pos + DATA_HEADER_LEN as u64, record.header.data_len),
            Some(_) => match reader.source(record.pos, oid).map_err(PackError::Read)? {
                Some(source) => (source.data_pos, source.data_len),
                None => return Ok(()),
            },
        };
        let len = len.min(HEAD_LEN) as usize;
        let mut head = [0; HEAD_LEN as usize];
        if record.back.is_none() {
            head[..len].copy_from_slice(txns.bytes(pos, len).map_err(PackError::Read)?);
        } else {
            let read = reader.file.read_at(&mut head[..len], pos);
            read.map_err(|error| PackError::Read(error.into()))?;
        }
        if is_blob_record(&head[..len]) {
            self.dropped_here.push((oid, record.header.tid));
        }
        Ok(())
    }

    /// Revisions with blobs that are not in the new file, for which this is asked once.
    pub(super) fn take_dropped(&mut self) -> Vec<(Oid, Tid)> {
        self.dropped.take().unwrap_or_default()
    }

    fn end_kept(&mut self) -> Result<(), PackError> {
        let mut dropped = std::mem::take(&mut self.dropped_here);
        // A transaction may have two records of an object, with one blob.
        dropped.retain(|(oid, _)| match (self.tloc, self.index.get(*oid)) {
            (Some(tloc), Some(kept)) => kept < tloc,
            _ => true,
        });
        if let Some(all) = &mut self.dropped {
            all.append(&mut dropped);
        }
        let Some(tloc) = self.tloc.take() else {
            return Ok(());
        };
        let len = self.output.end() - tloc;
        let patched = self.output.patch(tloc + LEN_POS, len);
        patched.map_err(|error| self.failed(error))?;
        self.put(&len.to_be_bytes())
    }

    /// Copies some of what is behind the pack time, up to `tail`. `limited` is false when it has to
    /// be all. `true` if nothing is left.
    pub(super) fn copy_rest(
        &mut self,
        file: &Arc<dyn File>,
        tail: u64,
        pack_pos: u64,
        marks: &Marks,
        limited: bool,
    ) -> Result<bool, PackError> {
        // Begun anew each time: what was read ahead of the tail then has changed since.
        let mut txns = Transactions::from_pos(file.clone(), self.pos(), tail);
        let slice = self.slice();
        while let Some(piece) = self.walk.next(&mut txns).map_err(PackError::Read)? {
            match piece {
                Piece::Begin(txn) => {
                    self.tloc = Some(self.output.end());
                    self.put(&txn.header.encode())?;
                    self.put(txn.texts())?;
                }
                Piece::Record(record) => {
                    let content = match record.back {
                        None => Later::Own,
                        Some(0) => Later::Back(0),
                        Some(back) if back >= pack_pos => {
                            Later::Back(back - pack_pos + self.new_pack_pos + self.shift(back))
                        }
                        Some(back) => match marks.moved(back) {
                            Some(moved) => Later::Back(moved),
                            None => self.find_moved(&record, back, file, tail)?,
                        },
                    };
                    self.copy_later(&record, &content, &mut txns, &**file)?;
                }
                Piece::End(txn) => self.end_later(&txn)?,
            }
            if limited && self.is_over(&slice) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How much further behind the record at this position of the old file, from after the pack
    /// time, is in the new one.
    fn shift(&self, pos: u64) -> u64 {
        let before = self.shifts.partition_point(|(from, _)| *from <= pos);
        let last = before.checked_sub(1).and_then(|at| self.shifts.get(at));
        last.map_or(0, |(_, shift)| *shift)
    }

    /// Where the record at `back`, from before the pack time, stands in the new file, if it was
    /// kept: for an undo of which nobody knew when that was decided. Nearly all lead to what was
    /// current at the pack time.
    fn find_moved(
        &mut self,
        record: &Record,
        back: u64,
        file: &Arc<dyn File>,
        tail: u64,
    ) -> Result<Later, PackError> {
        let oid = record.header.oid;
        let written = self.output.write();
        let written = written.map_err(|error| self.failed(error))?;
        let wait = Wait::Yes;
        let old = Reader {
            file: &**file,
            wait,
            tail,
        };
        let new = Reader {
            file: &**self.output.file(),
            wait,
            tail: written,
        };
        let find = || {
            let Some(current) = self.index.get(oid) else {
                return Ok(None);
            };
            let tid = old.record_tid(back, oid)?;
            let found = new.find(current, oid, tid)?;
            let Some(pos) = found.filter(|pos| *pos < self.new_pack_pos) else {
                return Ok(None);
            };
            // A transaction may have had two records of the object.
            let is_same = old.data_at(back, oid)? == new.data_at(pos, oid)?;
            Ok(is_same.then_some(pos))
        };
        match find().map_err(PackError::Read)? {
            Some(pos) => Ok(Later::Back(pos)),
            None if self.through.is_none() => Err(PackError::Undone { oid }),
            // As who has packed before this came writes it.
            None => {
                let source = old.source(record.pos, oid).map_err(PackError::Read)?;
                Ok(source.map_or(Later::Back(0), |it| Later::Data(it.data_pos, it.data_len)))
            }
        }
    }

    fn copy_later(
        &mut self,
        record: &Record,
        content: &Later,
        txns: &mut Transactions,
        file: &dyn File,
    ) -> Result<(), PackError> {
        let oid = record.header.oid;
        let new_pos = self.output.end();
        let header = DataHeader {
            prev: self.index.get(oid).unwrap_or(0),
            tloc: self.tloc.unwrap_or_default(),
            data_len: match content {
                Later::Own => record.header.data_len,
                Later::Back(_) => 0,
                Later::Data(_, len) => *len,
            },
            ..record.header
        };
        self.put(&header.encode())?;
        match *content {
            Later::Own => {
                let pos = record.pos + DATA_HEADER_LEN as u64;
                self.copy_data(txns, file, pos, record.header.data_len)?;
            }
            Later::Back(back) => self.put(&back.to_be_bytes())?,
            Later::Data(pos, len) => {
                self.put_from(file, pos, len)?;
                let shift = self.shift(record.end()) + len - POINTER_LEN as u64;
                self.shifts.push((record.end(), shift));
            }
        }
        self.entries.push((oid, new_pos));
        Ok(())
    }

    fn end_later(&mut self, txn: &Transaction) -> Result<(), PackError> {
        let tloc = self.tloc.take().unwrap_or_default();
        let entries = std::mem::take(&mut self.entries);
        if txn.header.status != Status::Undone {
            for (oid, pos) in entries {
                self.index.insert(oid, pos);
            }
        }
        let len = self.output.end() - tloc;
        if len != txn.header.len {
            let patched = self.output.patch(tloc + LEN_POS, len);
            patched.map_err(|error| self.failed(error))?;
        }
        self.put(&len.to_be_bytes())
    }

    fn copy_data(
        &mut self,
        txns: &mut Transactions,
        file: &dyn File,
        pos: u64,
        len: u64,
    ) -> Result<(), PackError> {
        if len > SHORT_LEN {
            return self.put_from(file, pos, len);
        }
        let bytes = txns.bytes(pos, len as usize).map_err(PackError::Read)?;
        self.put(bytes)
    }

    /// Copies from another file, in pieces: objects may be long.
    fn put_from(&mut self, file: &dyn File, mut pos: u64, len: u64) -> Result<(), PackError> {
        let mut left = len;
        while left > 0 {
            let needed = usize::try_from(left).unwrap_or(WRITE_LEN).min(WRITE_LEN);
            let mut read = Ok(needed);
            let put = self.output.put_with(needed, |buf| {
                read = file.read_at(buf, pos);
                Ok(*read.as_ref().unwrap_or(&0))
            });
            let found = read.map_err(|error| PackError::Read(error.into()))?;
            put.map_err(|error| self.failed(error))?;
            if found < needed {
                let (needed, found) = (needed as u64, found as u64);
                let fault = Fault::Short { needed, found };
                return Err(PackError::Read(ReadError::from(Damage { pos, fault })));
            }
            left -= needed as u64;
            pos += needed as u64;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        let put = self.output.put(bytes);
        put.map_err(|error| self.failed(error))?;
        match self.output.end() >= POS_END {
            true => Err(PackError::TooLong),
            false => Ok(()),
        }
    }

    fn failed(&self, error: io::Error) -> PackError {
        PackError::Storage(StorageError::io("write", &self.path)(error))
    }

    /// Returns when all that was copied is on stable storage.
    pub(super) fn sync(&mut self) -> Result<(), PackError> {
        let synced = self.output.sync();
        synced.map_err(|error| PackError::Storage(StorageError::io("sync", &self.path)(error)))
    }

    /// The file, the index of all its objects, and its length.
    pub(super) fn finish(self) -> (Arc<dyn File>, Index, u64) {
        (self.output.file().clone(), self.index, self.output.end())
    }

    fn slice(&self) -> (u64, u64) {
        (self.walk.pos() + SLICE_LEN, self.output.end() + SLICE_LEN)
    }

    fn is_over(&self, (pos, end): &(u64, u64)) -> bool {
        self.walk.pos() >= *pos || self.output.end() >= *end
    }
}

/// What follows the header of a record from after the pack time.
#[derive(Debug)]
enum Later {
    /// What does in the old file.
    Own,
    /// A pointer to there in the new one.
    Back(u64),
    /// Data that are there in the old file, and so long.
    Data(u64, u64),
}

/// Where the length stands in a transaction's header.
const LEN_POS: u64 = 8;

const _: () = assert!(LEN_POS as usize + 8 < TXN_HEADER_LEN);
