//! Requests and answers as payloads of frames. The module's page has the table.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Answer, Beat, PeerError, Refusal, RefusalKind, Request};
use crate::cursor::Cursor;
use crate::ids::{Digest, Epoch, NodeId, Oid, Seq, Tid};
use crate::limits::{
    BEAT_LEN_MAX, FETCHED_LEN_MAX, PEER_BLOBS_MAX, PEER_ENTRIES_LEN_MAX, PEER_MANIFEST_LEN_MAX,
    PEER_PIECE_LEN_MAX, PEER_REFUSAL_LEN_MAX, STORAGE_NAME_LEN_MAX,
};
use crate::replica::message::{Fetch, Fetched, Role};
use crate::storage::digest::RangeDigest;
use crate::storage::transfer::{BlobAt, BlobName};

pub(super) const ALIVE: u8 = 4;

const FETCH: u8 = 16;
const BLOB: u8 = 17;
const SNAPSHOT: u8 = 18;
const READ: u8 = 19;
const LIST_BLOBS: u8 = 20;
const READ_BLOB: u8 = 21;
const END_SNAPSHOT: u8 = 22;
const DIGEST: u8 = 23;
const PING: u8 = 24;
const DIGEST_BLOB: u8 = 25;
const BEAT: u8 = 26;

const FETCHED: u8 = 64;
const PIECE: u8 = 65;
const MANIFEST: u8 = 66;
const BLOBS: u8 = 67;
const DONE: u8 = 68;
const REFUSED: u8 = 69;
const DIGESTED: u8 = 70;
const BLOB_DIGESTED: u8 = 71;
const BEATEN: u8 = 72;

/// Kinds of requests, also of those that only a later version has.
pub(super) const REQUESTS: std::ops::Range<u8> = FETCH..FETCHED;

/// Bytes of a [`BlobAt`].
const BLOB_AT_LEN: usize = 8 + 8 + 8;

/// Bytes of a [`RangeDigest`].
const RANGE_DIGEST_LEN: usize = 8 + 8 + 2 * Digest::LEN;

/// What may answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// Its kind, unless it is refused.
    kind: u8,
    /// Bytes of its payload at most.
    pub(super) len_max: usize,
    /// Bytes of its payload, if nothing is out of the ordinary.
    pub(super) len_usual: usize,
}

impl Expected {
    /// Of any payload of this kind: how long it may be.
    pub(super) fn len_max_of(&self, kind: u8) -> Result<usize, PeerError> {
        match kind {
            REFUSED => Ok(2 + PEER_REFUSAL_LEN_MAX),
            kind if kind == self.kind => Ok(self.len_max),
            kind => Err(PeerError::Kind(kind)),
        }
    }
}

impl Request {
    /// What answers it.
    pub(super) fn expected(&self) -> Expected {
        let (kind, len_max) = match self {
            Self::Fetch(_) => (FETCHED, PEER_ENTRIES_LEN_MAX),
            Self::Blob { len, .. } | Self::Read { len, .. } | Self::ReadBlob { len, .. } => {
                (PIECE, *len as usize)
            }
            Self::Snapshot { .. } => (MANIFEST, PEER_MANIFEST_LEN_MAX),
            Self::ListBlobs { count, .. } => (BLOBS, *count as usize * BLOB_AT_LEN),
            Self::Digest { .. } => (DIGESTED, RANGE_DIGEST_LEN),
            Self::DigestBlob { .. } => (BLOB_DIGESTED, 8 + Digest::LEN),
            Self::EndSnapshot { .. } | Self::Ping => (DONE, 0),
            Self::Beat(_) => (BEATEN, BEAT_LEN_MAX),
        };
        // Only a single entry may be longer.
        let len_usual = len_max.min(FETCHED_LEN_MAX as usize);
        Expected {
            kind,
            len_max,
            len_usual,
        }
    }

    /// What is wrong with it, if anything is: it would be refused by who gets it.
    pub(super) fn check(&self) -> Result<(), PeerError> {
        let of = "request";
        match self {
            Self::Blob { len, .. } | Self::Read { len, .. } | Self::ReadBlob { len, .. }
                if *len as usize > PEER_PIECE_LEN_MAX =>
            {
                let why = "more bytes than a piece has";
                Err(PeerError::Malformed { of, why })
            }
            Self::Blob { storage, .. } if !(1..=STORAGE_NAME_LEN_MAX).contains(&storage.len()) => {
                let why = "a name of a storage of another length";
                Err(PeerError::Malformed { of, why })
            }
            Self::Digest { from, to, .. } if from > to => {
                let why = "a range that ends before it begins";
                Err(PeerError::Malformed { of, why })
            }
            Self::ListBlobs { count, .. } if *count > PEER_BLOBS_MAX => {
                let why = "more blobs than a list has";
                Err(PeerError::Malformed { of, why })
            }
            _ => Ok(()),
        }
    }

    /// Kind and payload.
    pub(super) fn encode(&self) -> (u8, Vec<Bytes>) {
        let mut out = BytesMut::new();
        let kind = match self {
            Self::Fetch(fetch) => return (FETCH, fetch.encode()),
            Self::Blob {
                storage,
                tid,
                name,
                pos,
                len,
            } => {
                out.put_u64(tid.0);
                out.put_u64(name.oid.0);
                out.put_u64(name.len);
                out.put_slice(&name.digest.0);
                out.put_u64(*pos);
                out.put_u32(*len);
                // It is no longer: see `check`.
                out.put_u8(storage.len() as u8);
                out.put_slice(storage.as_bytes());
                BLOB
            }
            Self::Snapshot {
                newest_only,
                at_least,
            } => {
                out.put_u8(u8::from(*newest_only));
                out.put_u64(at_least.0);
                SNAPSHOT
            }
            Self::Read {
                snapshot,
                file,
                pos,
                len,
            } => {
                out.put_u64(*snapshot);
                out.put_u32(*file);
                out.put_u64(*pos);
                out.put_u32(*len);
                READ
            }
            Self::ListBlobs {
                snapshot,
                storage,
                after,
                count,
            } => {
                out.put_u64(*snapshot);
                out.put_u32(*storage);
                out.put_u32(*count);
                if let Some((oid, tid)) = after {
                    out.put_u64(oid.0);
                    out.put_u64(tid.0);
                }
                LIST_BLOBS
            }
            Self::ReadBlob {
                snapshot,
                storage,
                oid,
                tid,
                pos,
                len,
            } => {
                out.put_u64(*snapshot);
                out.put_u32(*storage);
                out.put_u64(oid.0);
                out.put_u64(tid.0);
                out.put_u64(*pos);
                out.put_u32(*len);
                READ_BLOB
            }
            Self::Digest {
                snapshot,
                storage,
                from,
                to,
                len,
            } => {
                out.put_u64(*snapshot);
                out.put_u32(*storage);
                out.put_u64(from.0);
                out.put_u64(to.0);
                out.put_u64(*len);
                DIGEST
            }
            Self::DigestBlob {
                snapshot,
                storage,
                oid,
                tid,
                pos,
                len,
            } => {
                out.put_u64(*snapshot);
                out.put_u32(*storage);
                out.put_u64(oid.0);
                out.put_u64(tid.0);
                out.put_u64(*pos);
                out.put_u64(*len);
                DIGEST_BLOB
            }
            Self::EndSnapshot { snapshot } => {
                out.put_u64(*snapshot);
                END_SNAPSHOT
            }
            Self::Ping => PING,
            Self::Beat(beat) => {
                put_beat(&mut out, beat);
                BEAT
            }
        };
        (kind, vec![out.freeze()])
    }

    /// A request; `None` if its kind is unknown here.
    pub(super) fn decode(kind: u8, payload: &Bytes) -> Result<Option<Self>, PeerError> {
        let mut fields = Fields::new("request", payload);
        let request = match kind {
            FETCH => return Ok(Some(Self::Fetch(Fetch::decode(payload)?))),
            BLOB => Self::Blob {
                tid: Tid(fields.u64()?),
                name: BlobName {
                    oid: Oid(fields.u64()?),
                    len: fields.u64()?,
                    digest: Digest(fields.array()?),
                },
                pos: fields.u64()?,
                len: fields.u32()?,
                storage: fields.text()?,
            },
            SNAPSHOT => Self::Snapshot {
                newest_only: match fields.array()? {
                    [0] => false,
                    [1] => true,
                    _ => return Err(fields.malformed("neither yes nor no")),
                },
                at_least: Seq(fields.u64()?),
            },
            READ => Self::Read {
                snapshot: fields.u64()?,
                file: fields.u32()?,
                pos: fields.u64()?,
                len: fields.u32()?,
            },
            LIST_BLOBS => {
                let (snapshot, storage) = (fields.u64()?, fields.u32()?);
                let count = fields.u32()?;
                let after = match fields.cursor.remaining() {
                    0 => None,
                    _ => Some((Oid(fields.u64()?), Tid(fields.u64()?))),
                };
                Self::ListBlobs {
                    snapshot,
                    storage,
                    after,
                    count,
                }
            }
            READ_BLOB => Self::ReadBlob {
                snapshot: fields.u64()?,
                storage: fields.u32()?,
                oid: Oid(fields.u64()?),
                tid: Tid(fields.u64()?),
                pos: fields.u64()?,
                len: fields.u32()?,
            },
            DIGEST => Self::Digest {
                snapshot: fields.u64()?,
                storage: fields.u32()?,
                from: Tid(fields.u64()?),
                to: Tid(fields.u64()?),
                len: fields.u64()?,
            },
            DIGEST_BLOB => Self::DigestBlob {
                snapshot: fields.u64()?,
                storage: fields.u32()?,
                oid: Oid(fields.u64()?),
                tid: Tid(fields.u64()?),
                pos: fields.u64()?,
                len: fields.u64()?,
            },
            END_SNAPSHOT => Self::EndSnapshot {
                snapshot: fields.u64()?,
            },
            PING => Self::Ping,
            BEAT => return decode_beat(payload).map(|beat| Some(Self::Beat(beat))),
            _ => return Ok(None),
        };
        fields.end()?;
        request.check()?;
        Ok(Some(request))
    }
}

impl Answer {
    /// Kind and payload. What is long stays where it is.
    pub(super) fn encode(&self) -> (u8, Vec<Bytes>) {
        match self {
            Self::Fetched(fetched) => (FETCHED, fetched.encode()),
            Self::Piece(bytes) => (PIECE, vec![bytes.clone()]),
            Self::Snapshot(manifest) => (MANIFEST, vec![manifest.clone()]),
            Self::Blobs(blobs) => {
                let mut out = BytesMut::with_capacity(blobs.len() * BLOB_AT_LEN);
                for BlobAt { oid, tid, len } in blobs {
                    out.put_u64(oid.0);
                    out.put_u64(tid.0);
                    out.put_u64(*len);
                }
                (BLOBS, vec![out.freeze()])
            }
            Self::Digest(digest) => {
                let mut out = BytesMut::with_capacity(RANGE_DIGEST_LEN);
                out.put_u64(digest.count);
                out.put_u64(digest.next.0);
                out.put_slice(&digest.shape.0);
                out.put_slice(&digest.content.0);
                (DIGESTED, vec![out.freeze()])
            }
            Self::BlobDigest(len, digest) => {
                let mut out = BytesMut::with_capacity(8 + Digest::LEN);
                out.put_u64(*len);
                out.put_slice(&digest.0);
                (BLOB_DIGESTED, vec![out.freeze()])
            }
            Self::Done => (DONE, Vec::new()),
            Self::Beat(beat) => {
                let mut out = BytesMut::new();
                put_beat(&mut out, beat);
                (BEATEN, vec![out.freeze()])
            }
            Self::Refused(Refusal { kind, text }) => {
                let mut len = text.len().min(PEER_REFUSAL_LEN_MAX);
                while !text.is_char_boundary(len) {
                    len -= 1;
                }
                let mut out = BytesMut::new();
                out.put_u16(*kind as u16);
                out.put_slice(&text.as_bytes()[..len]);
                (REFUSED, vec![out.freeze()])
            }
        }
    }

    /// An answer of a kind that was expected.
    pub(super) fn decode(kind: u8, payload: Bytes) -> Result<Self, PeerError> {
        match kind {
            FETCHED => Ok(Self::Fetched(Fetched::decode(&payload)?)),
            PIECE => Ok(Self::Piece(payload)),
            MANIFEST => Ok(Self::Snapshot(payload)),
            BLOBS => decode_blobs(&payload).map(Self::Blobs),
            DONE => Fields::new("done", &payload).end().map(|()| Self::Done),
            REFUSED => decode_refusal(&payload).map(Self::Refused),
            DIGESTED => decode_digest(&payload).map(Self::Digest),
            BLOB_DIGESTED => {
                let mut fields = Fields::new("digest of a blob", &payload);
                let (len, digest) = (fields.u64()?, Digest(fields.array()?));
                fields.end()?;
                Ok(Self::BlobDigest(len, digest))
            }
            BEATEN => decode_beat(&payload).map(Self::Beat),
            kind => Err(PeerError::Kind(kind)),
        }
    }
}

fn put_beat(out: &mut BytesMut, beat: &Beat) {
    out.put_u8(match beat.role {
        Role::Replica => 0,
        Role::Candidate => 1,
        Role::Primary => 2,
    });
    out.put_u64(beat.epoch.counter);
    out.put_slice(&beat.epoch.node.to_bytes());
    out.put_u16(beat.members);
}

/// A later version may say more, which is behind it.
fn decode_beat(payload: &[u8]) -> Result<Beat, PeerError> {
    let mut fields = Fields::new("beat", payload);
    let role = match fields.array()? {
        [0] => Role::Replica,
        [1] => Role::Candidate,
        [2] => Role::Primary,
        _ => return Err(fields.malformed("a role that is unknown")),
    };
    let counter = fields.u64()?;
    let node = NodeId::from_bytes(fields.array()?);
    let node = node.ok_or_else(|| fields.malformed("no name of a node"))?;
    Ok(Beat {
        role,
        epoch: Epoch { counter, node },
        members: u16::from_be_bytes(fields.array()?),
    })
}

fn decode_blobs(payload: &[u8]) -> Result<Vec<BlobAt>, PeerError> {
    let mut fields = Fields::new("blobs", payload);
    let mut blobs = Vec::with_capacity(payload.len() / BLOB_AT_LEN);
    while fields.cursor.remaining() > 0 {
        blobs.push(BlobAt {
            oid: Oid(fields.u64()?),
            tid: Tid(fields.u64()?),
            len: fields.u64()?,
        });
    }
    let place = |blob: &BlobAt| (blob.oid, blob.tid);
    if !blobs.is_sorted_by(|one, next| place(one) < place(next)) {
        return Err(fields.malformed("they are not in order"));
    }
    Ok(blobs)
}

fn decode_digest(payload: &[u8]) -> Result<RangeDigest, PeerError> {
    let mut fields = Fields::new("digest", payload);
    let digest = RangeDigest {
        count: fields.u64()?,
        next: Tid(fields.u64()?),
        shape: Digest(fields.array()?),
        content: Digest(fields.array()?),
    };
    fields.end()?;
    Ok(digest)
}

fn decode_refusal(payload: &[u8]) -> Result<Refusal, PeerError> {
    let mut fields = Fields::new("refusal", payload);
    let kind = match u16::from_be_bytes(fields.array()?) {
        1 => RefusalKind::NotThere,
        2 => RefusalKind::Busy,
        3 => RefusalKind::Unsupported,
        _ => RefusalKind::Failed,
    };
    // It will stand in a log, where it must not look like something else.
    let text = String::from_utf8_lossy(&payload[fields.cursor.pos()..]);
    let text = text
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it });
    Ok(Refusal::new(kind, text.collect::<String>()))
}

/// Checked reads of a payload.
struct Fields<'a> {
    of: &'static str,
    cursor: Cursor<'a>,
}

impl<'a> Fields<'a> {
    const fn new(of: &'static str, payload: &'a [u8]) -> Self {
        Self {
            of,
            cursor: Cursor::new(payload),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PeerError> {
        let array = self.cursor.array();
        array.map_err(|_| self.malformed("it is too short"))
    }

    fn u32(&mut self) -> Result<u32, PeerError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, PeerError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Its length, and it.
    fn text(&mut self) -> Result<String, PeerError> {
        let [len] = self.array()?;
        let bytes = self.cursor.take(len.into());
        let bytes = bytes.map_err(|_| self.malformed("it is too short"))?;
        let text = str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|_| self.malformed("no text"))
    }

    fn end(self) -> Result<(), PeerError> {
        match self.cursor.remaining() {
            0 => Ok(()),
            _ => Err(self.malformed("it is too long")),
        }
    }

    const fn malformed(&self, why: &'static str) -> PeerError {
        PeerError::Malformed { of: self.of, why }
    }
}
