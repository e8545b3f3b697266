//! Frames in and out: their lengths, and the digests that they end with. Either is worked on as
//! bytes come and go, so that a long frame is not one long piece of work.

use std::collections::VecDeque;

use byteorder::{BigEndian, ByteOrder};
use bytes::{Bytes, BytesMut};
use ring::hmac;

use super::PeerError;
use crate::limits::{PEER_READY_LEN, READ_BYTES_PER_TURN};
use crate::out_queue::OutQueue;

/// Bytes of the length field.
const LENGTH_LEN: usize = 4;

/// Bytes in front of the payload.
pub(super) const HEAD_LEN: usize = LENGTH_LEN + 1 + 8;

/// Bytes of the digest behind it.
const TAG_LEN: usize = 16;

/// What frames of one direction are marked with.
#[derive(Debug)]
pub(super) struct Seal {
    key: hmac::Key,
    /// Frames that have begun.
    count: u64,
}

impl Seal {
    pub(super) const fn new(key: hmac::Key) -> Self {
        Self { key, count: 0 }
    }

    /// The digest of the next frame, in the making.
    fn begin(&mut self) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&self.count.to_be_bytes());
        self.count += 1;
        context
    }
}

/// Whether two digests are the same. All of them is looked at, so that the time tells nothing.
pub(super) fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differs = one.iter().zip(other).fold(0, |it, (a, b)| it | (a ^ b));
    one.len() == other.len() && differs == 0
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) id: u64,
    /// Bytes of the payload.
    pub(super) len: usize,
}

/// The bytes of a frame without length and digest.
pub(super) fn encode_head(kind: u8, id: u64, len: usize) -> [u8; HEAD_LEN] {
    let mut head = [0; HEAD_LEN];
    // Nothing that is sent comes near the end of the field.
    let len = u32::try_from(len + HEAD_LEN - LENGTH_LEN).unwrap_or(u32::MAX);
    BigEndian::write_u32(&mut head, len);
    head[LENGTH_LEN] = kind;
    BigEndian::write_u64(&mut head[LENGTH_LEN + 1..], id);
    head
}

/// Cuts a stream into frames, and checks their digests.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Received and not given out. From the first byte of a frame on.
    buf: BytesMut,
    seal: Option<Seal>,
    /// Of the frame that `buf` begins with: its digest so far, which is of so many bytes.
    begun: Option<(hmac::Context, usize)>,
}

impl Reader {
    pub(super) fn receive(&mut self, data: &[u8]) {
        self.buf.extend_from_slice(data);
        self.digest_more();
    }

    /// From the next frame on there are digests.
    pub(super) fn set_seal(&mut self, seal: Seal) {
        self.seal = Some(seal);
        self.digest_more();
    }

    /// What has come, for what is no frame.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Takes what is no frame.
    pub(super) fn take_bytes(&mut self, len: usize) -> Bytes {
        self.buf.split_to(len.min(self.buf.len())).freeze()
    }

    /// What the next frame begins with, as soon as it has come. Nothing has proved it yet.
    pub(super) fn head(&self) -> Result<Option<Head>, PeerError> {
        if self.buf.len() < HEAD_LEN {
            return Ok(None);
        }
        let len = BigEndian::read_u32(&self.buf) as usize;
        let around = HEAD_LEN - LENGTH_LEN + self.tag_len();
        Ok(Some(Head {
            kind: self.buf[LENGTH_LEN],
            id: BigEndian::read_u64(&self.buf[LENGTH_LEN + 1..]),
            len: len.checked_sub(around).ok_or(PeerError::TooShort(len))?,
        }))
    }

    /// The payload of the next frame, when it has come as a whole.
    pub(super) fn take(&mut self) -> Result<Option<Bytes>, PeerError> {
        let Some(head) = self.head()? else {
            return Ok(None);
        };
        let end = HEAD_LEN + head.len;
        if self.buf.len() < end + self.tag_len() {
            return Ok(None);
        }
        if self.seal.is_some() {
            let (context, digested) = self.begun.take().ok_or(PeerError::Digest)?;
            debug_assert_eq!(digested, end);
            let digest = context.sign();
            if !is_same(&digest.as_ref()[..TAG_LEN], &self.buf[end..end + TAG_LEN]) {
                return Err(PeerError::Digest);
            }
        }
        let mut frame = self.buf.split_to(end + self.tag_len());
        let payload = frame.split_off(HEAD_LEN).split_to(head.len).freeze();
        if head.len >= READ_BYTES_PER_TURN {
            // What follows would keep the memory of a long frame.
            self.buf = BytesMut::from(&self.buf[..]);
        }
        self.digest_more();
        Ok(Some(payload))
    }

    const fn tag_len(&self) -> usize {
        match self.seal {
            None => 0,
            Some(_) => TAG_LEN,
        }
    }

    /// Goes on with the digest of the first frame.
    fn digest_more(&mut self) {
        let Ok(Some(head)) = self.head() else {
            return;
        };
        let Some(seal) = &mut self.seal else {
            return;
        };
        let (context, digested) = self.begun.get_or_insert_with(|| (seal.begin(), 0));
        let end = self.buf.len().min(HEAD_LEN + head.len);
        context.update(&self.buf[*digested..end]);
        *digested = end;
    }
}

/// Frames on their way out.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Before all others.
    urgent: VecDeque<Frame>,
    /// Long ones
    bulk: VecDeque<Frame>,
    /// Bytes in both
    waiting_len: usize,
    /// What has begun to go out.
    begun: Option<(Frame, Option<hmac::Context>)>,
    seal: Option<Seal>,
    /// Ready for the socket.
    out: OutQueue,
}

/// A frame that goes out, or what is left of it.
#[derive(Debug)]
struct Frame {
    head: [u8; HEAD_LEN],
    parts: VecDeque<Bytes>,
}

impl Frame {
    fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

impl Writer {
    /// Bytes that are no frame, or one without digest. Nothing else may wait.
    pub(super) fn push_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(self.urgent.is_empty() && self.bulk.is_empty() && self.begun.is_none());
        self.out.push(Bytes::copy_from_slice(bytes));
    }

    /// From the next frame on there are digests.
    pub(super) fn set_seal(&mut self, seal: Seal) {
        self.seal = Some(seal);
    }

    /// A frame that goes before all that have not begun.
    pub(super) fn push(&mut self, kind: u8, id: u64, parts: Vec<Bytes>) {
        let frame = self.frame(kind, id, parts);
        self.urgent.push_back(frame);
    }

    /// A frame that waits for others.
    pub(super) fn push_bulk(&mut self, kind: u8, id: u64, parts: Vec<Bytes>) {
        let frame = self.frame(kind, id, parts);
        self.bulk.push_back(frame);
    }

    fn frame(&mut self, kind: u8, id: u64, parts: Vec<Bytes>) -> Frame {
        let len: usize = parts.iter().map(Bytes::len).sum();
        self.waiting_len += len;
        let tag_len = self.seal.as_ref().map_or(0, |_| TAG_LEN);
        Frame {
            head: encode_head(kind, id, len + tag_len),
            parts: parts.into(),
        }
    }

    /// Frames that have not gone out as a whole, or are among the last that did.
    pub(super) fn count(&self) -> usize {
        let begun = usize::from(self.begun.is_some() || !self.out.is_empty());
        self.urgent.len() + self.bulk.len() + begun
    }

    /// Bytes that wait, without what stands around them.
    pub(super) fn len(&self) -> usize {
        let begun = self.begun.as_ref().map_or(0, |(frame, _)| frame.len());
        self.out.len() + self.waiting_len + begun
    }

    pub(super) fn is_empty(&self) -> bool {
        self.out.is_empty()
            && self.urgent.is_empty()
            && self.bulk.is_empty()
            && self.begun.is_none()
    }

    /// What is ready for the socket.
    pub(super) fn output(&mut self) -> &mut OutQueue {
        while self.out.len() < PEER_READY_LEN && self.ready_more() {}
        &mut self.out
    }

    /// Makes a part ready; whether there was one.
    fn ready_more(&mut self) -> bool {
        let Some((frame, context)) = &mut self.begun else {
            let next = self.urgent.pop_front().or_else(|| self.bulk.pop_front());
            let Some(frame) = next else {
                return false;
            };
            self.waiting_len -= frame.len();
            let mut context = self.seal.as_mut().map(Seal::begin);
            if let Some(context) = &mut context {
                context.update(&frame.head);
            }
            self.out.push(Bytes::copy_from_slice(&frame.head));
            self.begun = Some((frame, context));
            return true;
        };
        if let Some(part) = frame.parts.front_mut() {
            let bytes = part.split_to(part.len().min(PEER_READY_LEN));
            if part.is_empty() {
                frame.parts.pop_front();
            }
            if let Some(context) = context {
                context.update(&bytes);
            }
            self.out.push(bytes);
        } else {
            if let Some(context) = context.take() {
                let digest = context.sign();
                let tag = Bytes::copy_from_slice(&digest.as_ref()[..TAG_LEN]);
                self.out.push(tag);
            }
            self.begun = None;
        }
        true
    }
}
