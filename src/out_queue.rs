//! What waits for a socket: small things gathered, large ones as they are; in pieces out.

use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::mem;

use byteorder::{BigEndian, ByteOrder};
use bytes::{Buf, Bytes, BytesMut};

use crate::limits;

/// Why a frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// It is longer than allowed. Its end will never be found: the connection is lost.
    TooLong {
        /// What the frame has, without the length field
        len: usize,
        /// What it may have
        len_max: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::TooLong { len, len_max } = self;
        write!(f, "a frame of {len} bytes where {len_max} are allowed")
    }
}

impl std::error::Error for FrameError {}

/// Frames on their way out, until the socket takes them.
#[derive(Debug, Default)]
pub struct OutQueue {
    /// Goes out before `tail`. No piece is empty.
    pieces: VecDeque<Bytes>,
    /// Bytes in `pieces`
    pieces_len: usize,
    /// Where small things are gathered.
    tail: BytesMut,
}

impl OutQueue {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.pieces_len + self.tail.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends frames that are complete with their lengths.
    pub fn push(&mut self, frames: Bytes) {
        if frames.len() < limits::SHARED_DATA_LEN_MIN {
            self.reserve_tail(frames.len());
            self.tail.extend_from_slice(&frames);
        } else {
            self.push_tail();
            self.push_piece(frames);
        }
    }

    /// Begins a frame. It counts from [`Frame::finish`] on, which has to be called.
    pub fn frame(&mut self) -> Frame<'_> {
        self.frame_of(0)
    }

    /// As [`Self::frame`], with room for `len` bytes that will be copied.
    pub fn frame_of(&mut self, len: usize) -> Frame<'_> {
        self.reserve_tail(LENGTH_LEN + len);
        let start = self.tail.len();
        self.tail.extend_from_slice(&[0; LENGTH_LEN]);
        Frame {
            out: self,
            start,
            shared: Vec::new(),
        }
    }

    /// Fills in what has to be written next, `len_max` bytes at most, and returns the number of
    /// slices used.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>], len_max: usize) -> usize {
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        let waiting = self.pieces.iter().map(|piece| &piece[..]).chain(tail);
        let mut room = len_max;
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(waiting) {
            if room == 0 {
                break;
            }
            let bytes = &bytes[..bytes.len().min(room)];
            *slice = IoSlice::new(bytes);
            room -= bytes.len();
            count += 1;
        }
        count
    }

    /// Forgets the first `len` bytes, which were written.
    pub fn advance(&mut self, mut len: usize) {
        debug_assert!(len <= self.len());
        while let Some(piece) = self.pieces.front_mut() {
            let written = len.min(piece.len());
            piece.advance(written);
            self.pieces_len -= written;
            len -= written;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(len.min(self.tail.len()));
        if self.tail.is_empty() {
            *self = Self::default();
        }
    }

    /// Appends all that waits in another queue.
    pub fn append(&mut self, mut other: Self) {
        self.push_tail();
        self.pieces.append(&mut other.pieces);
        self.pieces_len += other.pieces_len;
        self.tail = other.tail;
    }

    /// All that waits, in one piece.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.is_empty() {
            return self.tail.freeze();
        }
        self.push_tail();
        Vec::from(self.pieces).concat().into()
    }

    /// Makes room for `len` bytes in the tail: for the first reply what that needs, as most queues
    /// are written when they have one; for the next one all that a tail may have. So no tail grows
    /// in many steps, and a long one is not moved.
    fn reserve_tail(&mut self, len: usize) {
        if self.tail.len() >= TAIL_LEN_MAX {
            self.push_tail();
        }
        if self.tail.capacity() == 0 {
            self.tail.reserve(len.max(TAIL_LEN_MIN));
        } else if self.tail.capacity() - self.tail.len() < len.max(HEAD_LEN) {
            self.tail.reserve(len.max(TAIL_LEN_MAX));
        }
    }

    fn push_tail(&mut self) {
        let tail = mem::take(&mut self.tail).freeze();
        self.push_piece(tail);
    }

    fn push_piece(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.pieces_len += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

/// A frame being written.
#[derive(Debug)]
pub struct Frame<'a> {
    out: &'a mut OutQueue,
    /// Where its length stands in the tail of the queue.
    start: usize,
    /// What is queued as it is, each with its place in the tail.
    shared: Vec<(usize, Bytes)>,
}

impl Frame<'_> {
    /// Queues the frame; or nothing at all, if its length does not fit into the length field.
    pub fn finish(self) -> Result<(), FrameError> {
        let Self { out, start, shared } = self;
        let shared_len: usize = shared.iter().map(|(_, data)| data.len()).sum();
        let len = out.tail.len() - start - LENGTH_LEN + shared_len;
        let Ok(length) = u32::try_from(len) else {
            out.tail.truncate(start);
            return Err(FrameError::TooLong {
                len,
                len_max: u32::MAX as usize,
            });
        };
        BigEndian::write_u32(&mut out.tail[start..], length);
        let mut split_pos = 0;
        for (pos, data) in shared {
            let before = out.tail.split_to(pos - split_pos).freeze();
            split_pos = pos;
            out.push_piece(before);
            out.push_piece(data);
        }
        Ok(())
    }
}

/// What encoders write to.
pub trait Sink {
    /// Appends a copy.
    fn put(&mut self, bytes: &[u8]);
    /// Appends data that the sink may keep as they are.
    fn put_data(&mut self, data: &Bytes);
    /// Leaves room for data that come from elsewhere. Only `Around` can.
    fn put_gap(&mut self, _len: usize) {
        debug_assert!(false, "a gap has to be filled");
    }
}

impl Sink for Frame<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out.tail.extend_from_slice(bytes);
    }

    fn put_data(&mut self, data: &Bytes) {
        if data.len() < limits::SHARED_DATA_LEN_MIN {
            self.put(data);
        } else {
            self.shared.push((self.out.tail.len(), data.clone()));
        }
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn put_data(&mut self, data: &Bytes) {
        self.extend_from_slice(data);
    }
}

/// Bytes of the length field.
const LENGTH_LEN: usize = 4;

/// What the tail of an [`OutQueue`] starts with: a few small replies.
const TAIL_LEN_MIN: usize = 512;

/// Below this much room a frame may need another allocation, however short it is.
const HEAD_LEN: usize = 64;

/// From here on a tail is left as it is and another one begun.
const TAIL_LEN_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bodies: &[&[u8]]) -> Vec<u8> {
        let mut stream = Vec::new();
        for body in bodies {
            stream.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
            stream.extend_from_slice(body);
        }
        stream
    }

    fn waiting(out: &OutQueue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = out.slices(&mut slices, usize::MAX);
        slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn big_data_are_queued_as_they_are_between_the_rest_of_their_frame() {
        let big = Bytes::from(vec![5; limits::SHARED_DATA_LEN_MIN]);
        let mut out = OutQueue::default();
        let mut expected = Vec::new();
        for _ in 0..2 {
            let mut frame = out.frame();
            frame.put(b"head");
            frame.put_data(&big);
            frame.put_data(&Bytes::from_static(b"small"));
            frame.put_data(&big);
            frame.finish().unwrap();
            expected.extend_from_slice(&stream(&[
                &[b"head", &big[..], b"small", &big[..]].concat()
            ]));
        }
        assert_eq!(waiting(&out), expected);
        assert_eq!(out.len(), expected.len());
        assert_eq!(out.pieces[1].as_ptr(), big.as_ptr());
    }

    #[test]
    fn a_queue_may_be_written_in_any_pieces() {
        let mut out = OutQueue::default();
        let mut expected = Vec::new();
        for len in [3, 2000, 10, 900, 5000] {
            let frame = stream(&[&vec![3; len]]);
            expected.extend_from_slice(&frame);
            out.push(frame.into());
        }
        let mut written = 0;
        for step in (1..).map(|n| n * 37 % 1500) {
            if out.is_empty() {
                break;
            }
            assert_eq!(waiting(&out), expected[written..]);
            let step = step.min(out.len());
            out.advance(step);
            written += step;
        }
        assert_eq!(written, expected.len());
        assert_eq!((out.tail.capacity(), out.pieces.capacity()), (0, 0));
    }

    #[test]
    fn a_long_tail_is_not_moved_when_it_grows() {
        let mut out = OutQueue::default();
        for _ in 0..1000 {
            out.push(Bytes::from_static(&[0; 100]));
        }
        assert_eq!(out.len(), 100_000);
        assert!(out.pieces.len() > 4 && out.tail.len() <= TAIL_LEN_MAX + 100);
    }
}
