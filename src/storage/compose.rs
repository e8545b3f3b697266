//! From a staged transaction to what is proposed to the log: its body, and the files of its blobs.
//!
//! What is short and in memory is composed when it finishes. All else waits for the disk (data in a
//! staging file, revisions that an undo brings back, blobs whose digests are to be found) or takes
//! its time, and is composed by a worker at the end of the vote: so a vote that was granted can be
//! proposed at once, and nothing can go wrong then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::commit::Refusal;
use super::disk::{Disk, File, OpenMode};
use super::error::ReadError;
use super::job::Job;
use super::read::{Reader, Wait};
use super::staging::{Data, Metadata, Offer, Record, Txn, TxnId};
use super::transfer::{self, BlobName, Transfer};
use super::window::Window;
use super::{Event, FileStorage, View};
use crate::entry::Body;
use crate::ids::{Digest, Oid, Tid};
use crate::limits::{COMPOSED_AT_ONCE_LEN_MAX, JOURNAL_BODY_LEN_MAX};

/// Bytes of a blob that are read at once.
const READ_LEN: usize = 1 << 20;

/// A transaction that is to be committed by the log.
#[derive(Debug)]
pub struct Proposal {
    /// Whose.
    pub txn: TxnId,
    /// What the entry carries: a [`Transfer`].
    pub body: Body,
    /// The tid that it must get, for copies of other databases.
    pub tid: Option<Tid>,
    /// The largest oid that it stores.
    pub max_oid: Option<Oid>,
    /// The files of its blobs, complete and synced: to be moved to where the journal has such
    /// before the entry is appended. Of several with the same digest any will do.
    pub blobs: Vec<(BlobName, PathBuf)>,
}

/// What a proposal is made of.
#[derive(Debug)]
pub struct Composed {
    pub(super) body: Body,
    pub(super) max_oid: Option<Oid>,
    pub(super) blobs: Vec<(BlobName, PathBuf)>,
}

/// Composes on a worker; see [`Job::Compose`].
#[derive(Debug)]
pub struct Compose {
    pub(super) txn: TxnId,
    disk: Arc<dyn Disk>,
    storage: String,
    metadata: Metadata,
    records: Vec<Record>,
    staging_file: Option<Arc<dyn File>>,
    /// Where records lead to that have no data of their own.
    view: View,
    blobs: Vec<(Oid, PathBuf)>,
}

impl FileStorage {
    /// Whether a transaction that is otherwise fine is ready to be proposed, or will be at once. If
    /// not, a worker sees to it.
    ///
    /// # Errors
    ///
    /// It cannot be proposed.
    pub(super) fn is_composed(&mut self, id: TxnId) -> Result<bool, Refusal> {
        let Some(txn) = self.txns.get_mut(&id) else {
            return Ok(false);
        };
        if self.feed.is_none() || txn.composed.is_some() {
            return Ok(true);
        }
        if txn.len_in_file() > JOURNAL_BODY_LEN_MAX {
            return Err(too_long());
        }
        if is_short(txn) {
            return Ok(true);
        }
        let current = View {
            file: self.file.clone(),
            tail: self.tail,
        };
        let compose = Compose {
            txn: id,
            disk: self.disk.clone(),
            storage: self.options.name.clone(),
            metadata: txn.metadata.clone(),
            records: std::mem::take(&mut txn.records),
            staging_file: txn.staging_file.clone(),
            view: txn.looked_back_in.take().unwrap_or(current),
            blobs: txn.blobs.files(),
        };
        self.events.push_back(Event::Run(Job::Compose(compose)));
        Ok(false)
    }

    pub(super) fn on_composed(
        &mut self,
        id: TxnId,
        result: Result<Box<Composed>, Refusal>,
        now: Instant,
    ) {
        let Some(ticket) = self.checking(id) else {
            // It was rolled back; the files of its blobs went with it.
            return;
        };
        let checked = result.and_then(|composed| {
            if let Some(txn) = self.txns.get_mut(&id) {
                txn.composed = Some(composed);
            }
            self.on_compared(id, ticket, now)
        });
        if let Err(refusal) = checked {
            self.refuse(id, refusal, now);
        }
    }

    /// Whether a transaction that is composed need not wait until other nodes have its blobs. An
    /// [`Event::Offer`] sees to that: what is proposed behind it would wait for that, too.
    pub(super) fn is_offered(&mut self, id: TxnId) -> bool {
        let Some(txn) = self.txns.get_mut(&id) else {
            return false;
        };
        let composed = txn.composed.as_ref();
        let Some(composed) = composed.filter(|it| !it.blobs.is_empty()) else {
            return true;
        };
        if txn.offer == Offer::None {
            txn.offer = Offer::Made;
            let offer = Event::Offer(id, composed.blobs.clone());
            self.events.push_back(offer);
        }
        txn.offer == Offer::Answered
    }

    /// The answer to [`Event::Offer`]: as many nodes as will have the blobs of the transaction.
    pub fn on_offered(&mut self, id: TxnId, now: Instant) {
        let Some(txn) = self.txns.get_mut(&id) else {
            return;
        };
        txn.offer = Offer::Answered;
        if let Some(ticket) = self.checking(id)
            && let Err(refusal) = self.on_compared(id, ticket, now)
        {
            self.refuse(id, refusal, now);
        }
    }

    /// What was offered of a transaction that has ended is of no use any more.
    pub(super) fn withdraw(&mut self, id: TxnId, offer: Offer) {
        if offer != Offer::None {
            self.events.push_back(Event::Withdraw(id));
        }
    }

    /// What is proposed of a voted transaction, whose ticket comes with it.
    pub(super) fn compose(&mut self, id: TxnId) -> Result<Box<Composed>, Refusal> {
        let Some(txn) = self.txns.get_mut(&id) else {
            return Err(Refusal::Disk("there is no such transaction".to_owned()));
        };
        if let Some(composed) = txn.composed.take() {
            return Ok(composed);
        }
        let records = txn.records.iter().map(|record| transfer::Record {
            oid: record.oid,
            data: match &record.data {
                Data::Memory(data) => Some(data.clone()),
                Data::Staged { .. } | Data::Back(_) | Data::Gone => None,
            },
            same_as: None,
        });
        compose(
            &self.options.name,
            &txn.metadata,
            records.collect(),
            Vec::new(),
        )
    }
}

/// Whether it can be composed without a wait, and in no time.
fn is_short(txn: &Txn) -> bool {
    let is_at_hand = |record: &Record| matches!(record.data, Data::Memory(_) | Data::Gone);
    txn.len_in_file() <= COMPOSED_AT_ONCE_LEN_MAX
        && !txn.is_large()
        && txn.blobs.is_empty()
        && txn.records.iter().all(is_at_hand)
}

fn too_long() -> Refusal {
    Refusal::Disk(format!(
        "a transaction of a replicated storage has {} MB at most, without its blobs: commit in \
         smaller ones",
        JOURNAL_BODY_LEN_MAX >> 20
    ))
}

fn compose(
    storage: &str,
    metadata: &Metadata,
    records: Vec<transfer::Record>,
    blobs: Vec<(BlobName, PathBuf)>,
) -> Result<Box<Composed>, Refusal> {
    let max_oid = records.iter().map(|record| record.oid).max();
    let transfer = Transfer {
        storage: storage.to_owned(),
        status: metadata.status,
        user: metadata.user.clone(),
        description: metadata.description.clone(),
        extension: metadata.extension.clone(),
        records,
        blobs: blobs.iter().map(|(name, _)| *name).collect(),
    };
    let body = transfer.encode();
    let body = body.map_err(|error| Refusal::Disk(error.to_string()))?;
    let body = Body::new(body).ok_or_else(too_long)?;
    Ok(Box::new(Composed {
        body,
        max_oid,
        blobs,
    }))
}

impl Compose {
    /// Does it. Blocks for as long as the disk takes.
    pub(super) fn run(self) -> Result<Box<Composed>, Refusal> {
        let mut staged = self.staging_file.clone().map(Window::new);
        let mut left = JOURNAL_BODY_LEN_MAX;
        let mut records = Vec::with_capacity(self.records.len());
        for record in &self.records {
            let record = self.record(record, staged.as_mut())?;
            let len = record.data.as_ref().map_or(0, Bytes::len) as u64;
            // An undo may bring back more than a transaction may store.
            left = left.checked_sub(len).ok_or_else(too_long)?;
            records.push(record);
        }
        let mut blobs = Vec::with_capacity(self.blobs.len());
        for (oid, path) in &self.blobs {
            let name = name_of(&*self.disk, *oid, path);
            let name = name.map_err(|error| {
                Refusal::Blob(format!("{}: cannot be read: {error}", path.display()))
            })?;
            blobs.push((name, path.clone()));
        }
        compose(&self.storage, &self.metadata, records, blobs)
    }

    fn record(
        &self,
        record: &Record,
        staged: Option<&mut Window>,
    ) -> Result<transfer::Record, ReadError> {
        let oid = record.oid;
        let (data, same_as) = match &record.data {
            Data::Memory(data) => (Some(data.clone()), None),
            Data::Gone => (None, None),
            Data::Staged { pos, len } => {
                let data = staged.map_or(Ok(Vec::new()), |staged| staged.copy(*pos, *len))?;
                if data.len() != *len {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                (Some(Bytes::from(data)), None)
            }
            Data::Back(pos) => {
                let reader = Reader {
                    file: &*self.view.file,
                    wait: Wait::Yes,
                    tail: self.view.tail,
                };
                let data = reader.data_at(*pos, oid)?;
                (data, Some(reader.record_tid(*pos, oid)?))
            }
        };
        Ok(transfer::Record { oid, data, same_as })
    }
}

/// Reads a blob once, for its digest.
fn name_of(disk: &dyn Disk, oid: Oid, path: &Path) -> io::Result<BlobName> {
    let file = disk.open(path, OpenMode::ReadRegular)?;
    let mut context = Context::new(&SHA256);
    let mut piece = vec![0; READ_LEN];
    let mut len = 0;
    loop {
        let read = file.read_at(&mut piece, len)?;
        if read == 0 {
            break;
        }
        context.update(&piece[..read]);
        len += read as u64;
    }
    let mut digest = Digest::default();
    digest.0.copy_from_slice(context.finish().as_ref());
    Ok(BlobName { oid, len, digest })
}
