//! The way of finished transactions to the disk.
//!
//! *Finish* fixes tid and position. Transactions that finish while the disk is busy form the next
//! *batch*, which goes to the disk in two syncs:
//!
//! 1. the bytes of all, behind the end of the file, with status `'c'`: unfinished;
//! 2. their statuses as they shall be, one byte each.
//!
//! A disk that loses power may keep any part of what was not synced. Before the first sync is done
//! opening finds `'c'`, or no header at all, and cuts the batch (`recover`), as ZODB does; when a
//! single status has reached the disk, all bytes are there. Under load the second sync of a batch
//! is the first of the next, so that one sync is spent on each batch, not two. Only after it is the
//! batch published, in tid order: index, `last_tid`, then the events by which clients hear of it.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::commit_lock::Ticket;
use super::format::{DataHeader, Status, TxnHeader};
use super::index::Index;
use super::job::{Append, Job, Part};
use super::layout::{LaidOut, Layout};
use super::staging::{Data, Rest, TXN_TRAILER_LEN, Txn, TxnId, TxnState};
use super::{Event, FileStorage};
use crate::ids::{Oid, Tid};
use crate::limits::SHARED_DATA_LEN_MIN;

/// A transaction on its way to the disk.
#[derive(Debug)]
pub(super) struct Finishing {
    txn: TxnId,
    ticket: Ticket,
    header: TxnHeader,
    start: u64,
    /// Behind its last byte.
    end: u64,
    changes: Changes,
    parts: Vec<Part>,
    /// Files of its blobs: where they are, and where they shall be.
    blobs: Vec<(PathBuf, PathBuf)>,
    /// To be dropped when it is over.
    rest: Rest,
}

/// Where the objects of a transaction are in the file.
#[derive(Debug)]
enum Changes {
    /// At these positions.
    Listed(Vec<(Oid, u64)>),
    /// The worker that writes the transaction finds that out.
    Prepared(Arc<Layout>),
}

/// A committed transaction, as it is published.
#[derive(Debug)]
pub struct Commit {
    /// Whose.
    pub txn: TxnId,
    /// Its tid.
    pub tid: Tid,
    /// The objects that it changed, in the order of their records.
    pub oids: Arc<Vec<Oid>>,
    /// Objects in the storage afterwards.
    pub object_count: u64,
    /// Length of the file afterwards, in bytes.
    pub len: u64,
}

impl FileStorage {
    /// Gives a voted transaction its tid and its place in the file. It is committed when the
    /// [`Event::Committed`] comes. `false` if it was not voted.
    pub fn finish(&mut self, id: TxnId, wall: Duration, now: Instant) -> bool {
        let Some(txn) = self.txns.get_mut(&id) else {
            return false;
        };
        let TxnState::Voted { ticket, len, .. } = txn.state else {
            return false;
        };
        if self.failed.is_some() {
            self.roll_back(id, now);
            self.events.push_back(Event::Lost(id));
            return true;
        }
        let tid = match txn.metadata.tid {
            Some(tid) => tid,
            None => Tid::from_unix_time(wall).max(self.assigned_tid.next()),
        };
        assert!(
            tid > self.assigned_tid,
            "a vote for a tid that is not above the last was granted"
        );
        txn.state = TxnState::Finishing { ticket };
        let staged = txn.blobs.take();
        let mut finishing = match txn.is_large() {
            true => lay_out_later(id, ticket, txn, tid, self.assigned_end, &self.index),
            false => lay_out(id, ticket, txn, tid, self.assigned_end, |oid| {
                self.index.get(oid)
            }),
        };
        assert_eq!(
            finishing.end - self.assigned_end,
            len,
            "a transaction has another length"
        );
        // They are in `finishing` now.
        finishing.rest = txn.take_rest();
        finishing.blobs = self.blob_moves(staged, tid);
        self.voted_len -= len;
        self.assigned_tid = tid;
        self.assigned_end = finishing.end;
        self.finishing.push(finishing);
        let held = self.lock.downgrade(ticket);
        self.go_on(held, now);
        true
    }

    /// Sends to the disk what is there to be sent, unless it is busy. To be called at the end of a
    /// turn, so that those who finish in the same turn share their syncs.
    pub fn flush(&mut self) {
        let idle = self.sealing.is_empty() && self.writing.is_empty();
        let wanted = !self.written.is_empty() || !self.finishing.is_empty();
        if !idle || !wanted || self.failed.is_some() {
            return;
        }
        self.sealing = std::mem::take(&mut self.written);
        self.writing = std::mem::take(&mut self.finishing);
        let (mut parts, mut blobs) = (Vec::new(), Vec::new());
        for one in &mut self.writing {
            parts.append(&mut one.parts);
            blobs.append(&mut one.blobs);
        }
        let append = Append {
            parts,
            blobs,
            directory_maker: self.directory_maker(),
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: self.file.clone(),
            id: self.file_id,
            seals: self
                .sealing
                .iter()
                .map(|one| (one.start, one.header.status))
                .collect(),
            pos: self
                .writing
                .first()
                .map_or(self.assigned_end, |first| first.start),
        };
        self.events.push_back(Event::Run(Job::Append(append)));
    }

    pub(super) fn on_appended(&mut self, result: io::Result<()>, now: Instant) {
        let sealed = std::mem::take(&mut self.sealing);
        self.written = std::mem::take(&mut self.writing);
        if let Err(error) = result {
            self.fail(&error);
            let written = std::mem::take(&mut self.written);
            let later = std::mem::take(&mut self.finishing);
            for finishing in sealed.into_iter().chain(written).chain(later) {
                self.roll_back(finishing.txn, now);
                self.events.push_back(Event::Lost(finishing.txn));
            }
            return;
        }
        let mut held = Vec::new();
        for mut finishing in sealed {
            // Publishing before the sync would show a transaction that a power cut takes back.
            let oids = self.publish(finishing.changes, &mut finishing.rest);
            self.tail = finishing.end;
            self.last_tid = finishing.header.tid;
            self.txns.remove(&finishing.txn);
            self.tickets.remove(&finishing.ticket);
            self.events.push_back(Event::Committed(Commit {
                txn: finishing.txn,
                tid: finishing.header.tid,
                oids,
                object_count: self.object_count(),
                len: self.tail,
            }));
            held.append(&mut self.lock.release(finishing.ticket));
            self.discard_rest(finishing.rest);
        }
        self.save_index_if_due();
        self.go_on(held, now);
    }

    /// Enters the new positions into the index; the objects that have them.
    fn publish(&mut self, changes: Changes, rest: &mut Rest) -> Arc<Vec<Oid>> {
        match changes {
            Changes::Listed(positions) => {
                for (oid, pos) in &positions {
                    self.index.insert(*oid, *pos);
                    self.oids.stored(*oid);
                }
                Arc::new(positions.into_iter().map(|(oid, _)| oid).collect())
            }
            Changes::Prepared(layout) => {
                let laid_out = layout.laid_out.get();
                let LaidOut {
                    change,
                    oids,
                    max_oid,
                } = laid_out.expect("who wrote it has laid it out");
                self.index.enter(change);
                if let Some(oid) = max_oid {
                    self.oids.stored(*oid);
                }
                let oids = oids.clone();
                rest.layout = Some(layout);
                oids
            }
        }
    }

    /// After this the file takes no more writes in this process: what the kernel has of it and
    /// what the disk has may differ.
    pub(super) fn fail(&mut self, error: &io::Error) {
        let reason = format!(
            "{}: a write failed, no more are taken: {error}",
            self.name()
        );
        log::error!("{reason}");
        self.failed = Some(reason);
    }
}

fn header(txn: &Txn, tid: Tid) -> TxnHeader {
    let metadata = &txn.metadata;
    let text_len = |text: &Bytes| u16::try_from(text.len()).expect("checked by the vote");
    TxnHeader {
        tid,
        // The length fields do not count the trailing one.
        len: txn.len_in_file() - TXN_TRAILER_LEN as u64,
        status: Status::from_byte(metadata.status),
        user_len: text_len(&metadata.user),
        descr_len: text_len(&metadata.description),
        ext_len: text_len(&metadata.extension),
    }
}

/// A large transaction, which the worker that writes it will lay out. Takes its records.
fn lay_out_later(
    id: TxnId,
    ticket: Ticket,
    txn: &mut Txn,
    tid: Tid,
    start: u64,
    index: &Index,
) -> Finishing {
    let header = header(txn, tid);
    let layout = Arc::new(Layout {
        header,
        metadata: txn.metadata.clone(),
        staging_file: txn.staging_file(),
        records: std::mem::take(&mut txn.records),
        index: index.snapshot(),
        start,
        laid_out: OnceLock::new(),
    });
    Finishing {
        txn: id,
        ticket,
        header,
        start,
        end: start + txn.len_in_file(),
        changes: Changes::Prepared(layout.clone()),
        parts: vec![Part::Layout(layout)],
        blobs: Vec::new(),
        rest: Rest::default(),
    }
}

/// The bytes of a transaction at its place in the file. Long data stay where they are; the rest is
/// gathered around them.
fn lay_out(
    id: TxnId,
    ticket: Ticket,
    txn: &Txn,
    tid: Tid,
    start: u64,
    current: impl Fn(Oid) -> Option<u64>,
) -> Finishing {
    let metadata = &txn.metadata;
    let header = header(txn, tid);
    let unfinished = TxnHeader {
        status: Status::Voted,
        ..header
    };
    let mut parts = Vec::new();
    let mut head = BytesMut::new();
    head.put_slice(&unfinished.encode());
    head.put_slice(&metadata.user);
    head.put_slice(&metadata.description);
    head.put_slice(&metadata.extension);
    let mut pos = start + header.header_len();
    let mut positions = Vec::with_capacity(txn.records.len());
    for record in &txn.records {
        let data = &record.data;
        let prev = current(record.oid).unwrap_or(0);
        let data_header = DataHeader {
            oid: record.oid,
            tid,
            prev,
            tloc: start,
            data_len: data.len() as u64,
        };
        head.put_slice(&data_header.encode());
        match data {
            Data::Memory(data) if data.len() < SHARED_DATA_LEN_MIN => head.put_slice(data),
            Data::Memory(data) => {
                parts.push(Part::Memory(head.split().freeze()));
                parts.push(Part::Memory(data.clone()));
            }
            Data::Staged { pos, len } => {
                if let Some((file, _)) = &txn.staging_file {
                    parts.push(Part::Memory(head.split().freeze()));
                    parts.push(Part::Staged {
                        file: file.clone(),
                        pos: *pos,
                        len: *len,
                    });
                }
            }
            Data::Back(back) => head.put_u64(*back),
            Data::Gone => head.put_u64(0),
        }
        positions.push((record.oid, pos));
        pos += record.len_in_file();
    }
    head.put_u64(header.len);
    parts.push(Part::Memory(head.freeze()));
    Finishing {
        txn: id,
        ticket,
        header,
        start,
        end: pos + TXN_TRAILER_LEN as u64,
        changes: Changes::Listed(positions),
        parts,
        blobs: Vec::new(),
        rest: Rest::default(),
    }
}
