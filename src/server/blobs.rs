//! Calls about blobs (zeo-protocol, sections 8 and 11).

use std::io;

use bytes::Bytes;

use super::calls::{Outcome, no_such_txn, other};
use super::client::{ClientTxn, Transfer};
use super::reads::{PendingRead, Wanted};
use super::{LOG, Now, Server};
use crate::ids::{ClientId, Oid, Tid};
use crate::limits::{BLOB_CHUNK_LEN, BLOBS_SENT_MAX, OUTPUT_RESUME_LEN};
use crate::storage::{BlobMistake, BlobReader, Job};
use crate::zeo::Value;
use crate::zeo::errors::RemoteError;

/// What a client says of a blob of its transaction.
#[derive(Debug)]
pub(super) enum BlobCall {
    Start,
    Chunk(Bytes),
    End {
        oid: Oid,
        serial: Option<Tid>,
        data: Bytes,
    },
    /// The end of one that is copied from another server.
    Restored {
        oid: Oid,
        data: Bytes,
        same_data: Option<Tid>,
    },
    Shared {
        oid: Oid,
        serial: Option<Tid>,
        data: Bytes,
        name: Bytes,
    },
}

impl BlobCall {
    /// What is wrong with it, whatever the storage says.
    fn mistake(&self) -> Option<String> {
        match self {
            Self::End { oid, data, .. }
            | Self::Restored { oid, data, .. }
            | Self::Shared { oid, data, .. } => {
                if data.is_empty() {
                    return Some(format!("oid {oid} without data"));
                }
                (*oid >= Oid::END).then(|| format!("oid {oid} is too high"))
            }
            Self::Start | Self::Chunk(_) => None,
        }
    }
}

impl Server {
    /// A part of a blob of the client's transaction, which is `named` in some of these calls.
    pub(super) fn store_blob(
        &mut self,
        id: ClientId,
        at: usize,
        named: Option<Value>,
        call: BlobCall,
        now: Now,
    ) -> Outcome {
        let current = self.clients.get(&id).and_then(|it| it.txn.as_ref());
        let is_named = |it: &&ClientTxn| named.as_ref().is_none_or(|named| it.handle == *named);
        let Some(txn) = current.filter(is_named).map(|current| current.id) else {
            return Outcome::Raise(no_such_txn(current, named.unwrap_or(Value::None)));
        };
        if let Some(mistake) = call.mistake() {
            return Outcome::HangUp(mistake);
        }
        let storage = &mut self.storages[at].storage;
        let result = match call {
            BlobCall::Start => storage.begin_blob(txn),
            BlobCall::Chunk(chunk) => storage.add_to_blob(txn, chunk),
            BlobCall::End { oid, serial, data } => storage.end_blob(txn, oid, serial, data),
            BlobCall::Restored {
                oid,
                data,
                same_data,
            } => storage.end_restored_blob(txn, oid, data, same_data),
            BlobCall::Shared {
                oid,
                serial,
                data,
                name,
            } => {
                let result = storage.take_blob(txn, oid, serial, data, &name);
                if result == Err(BlobMistake::BadName) {
                    let name = name.escape_ascii();
                    log::warn!(target: LOG, "{id}: storeBlobShared: \"{name}\" is refused");
                }
                result
            }
        };
        self.follow_storage(at, now);
        match result {
            Ok(()) => Outcome::Reply(Value::None),
            Err(BlobMistake::NotSupported) => Outcome::Raise(not_supported()),
            Err(mistake) => Outcome::HangUp(mistake.to_string()),
        }
    }

    /// Sends a blob, piece by piece as the client takes it; the reply comes last.
    pub(super) fn send_blob(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        oid: Oid,
        serial: Tid,
    ) -> Outcome {
        let Some(reader) = self.storages[at].storage.read_blob(oid, serial) else {
            return Outcome::Raise(not_supported());
        };
        let Some(client) = self.clients.get_mut(&id) else {
            return Outcome::Later;
        };
        client.waiting += 1;
        let pending = PendingRead {
            client: id,
            msgid: msgid.clone(),
            wanted: Wanted::Blob {
                oid,
                serial,
                begun: false,
            },
        };
        client.transfers.push_back(Transfer { pending, reader });
        self.read_blobs(id);
        Outcome::Later
    }

    /// Has the next piece of a blob read for a client, unless enough waits for it. Of several blobs
    /// each of the first [`BLOBS_SENT_MAX`] gets a piece in turn.
    pub(super) fn read_blobs(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let (Some(storage), false) = (client.storage, client.closing || client.reading_blob) else {
            return;
        };
        if client.session.waiting_len() > OUTPUT_RESUME_LEN {
            return;
        }
        let Some(Transfer { pending, reader }) = client.transfers.pop_front() else {
            return;
        };
        client.reading_blob = true;
        self.reads.push(storage, pending, Job::ReadBlob(reader));
        self.start_reads();
    }

    /// A piece of a blob was read, or not.
    pub(super) fn on_blob_read(
        &mut self,
        at: usize,
        mut pending: PendingRead,
        result: io::Result<(BlobReader, Bytes)>,
    ) {
        let id = pending.client;
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
            return;
        };
        client.reading_blob = false;
        let Wanted::Blob { oid, serial, begun } = &mut pending.wanted else {
            return;
        };
        let blob = || vec![Value::from(*oid), Value::from(*serial)];
        match result {
            Ok((reader, piece)) => {
                if !*begun {
                    client.session.notify("receiveBlobStart", blob());
                }
                for start in (0..piece.len()).step_by(BLOB_CHUNK_LEN) {
                    let end = piece.len().min(start + BLOB_CHUNK_LEN);
                    let mut args = blob();
                    args.push(Value::Bytes(piece.slice(start..end)));
                    client.session.notify("receiveBlobChunk", args);
                }
                if reader.is_at_end() {
                    client.session.notify("receiveBlobStop", blob());
                    self.answer_later(&pending, Outcome::Reply(Value::None));
                } else {
                    *begun = true;
                    // Those behind wait until one of the first ones has ended.
                    let turn = client.transfers.len().min(BLOBS_SENT_MAX - 1);
                    client.transfers.insert(turn, Transfer { pending, reader });
                    self.note_output(id);
                }
            }
            Err(error) => {
                let is_missing = error.kind() == io::ErrorKind::NotFound && !*begun;
                let outcome = if is_missing {
                    let (oid, serial) = (*oid, *serial);
                    Outcome::Raise(RemoteError::BlobMissing { oid, serial })
                } else {
                    let name = self.storages[at].storage.name();
                    log::error!("{name}: blob of {oid} in {serial}: not read ({error})");
                    Outcome::Raise(other("builtins.OSError", error.to_string()))
                };
                self.answer_later(&pending, outcome);
            }
        }
        self.read_blobs(id);
    }
}

/// What FileStorage says that has no directory for blobs.
fn not_supported() -> RemoteError {
    RemoteError::Type("Blobs are not supported".to_owned())
}
