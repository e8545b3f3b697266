//! Frames: a 4-byte big-endian length, then that many bytes. In pieces in, in pieces out.

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

/// Cuts the bytes of a stream into frames.
///
/// After each [`receive`](Self::receive) call [`next`](Self::next) until it has no more. Frames
/// are slices of what was received; an idle reader holds no memory.
#[derive(Debug)]
pub struct FrameReader {
    /// Received and not yet given out; begins with the length of a frame.
    buf: BytesMut,
    /// Whether frames that were taken lie in the allocation of `buf`, before what it has now.
    used: bool,
    len_max: usize,
    /// What is left of a frame that is given out in pieces; then `buf` begins within it.
    left: usize,
}

impl FrameReader {
    /// For frames of at most `len_max` bytes, not counting their length fields.
    pub fn new(len_max: usize) -> Self {
        Self {
            buf: BytesMut::new(),
            used: false,
            len_max,
            left: 0,
        }
    }

    /// Changes the limit for the frames not yet given out.
    pub const fn set_len_max(&mut self, len_max: usize) {
        self.len_max = len_max;
    }

    /// Takes what came from the stream.
    pub fn receive(&mut self, data: &[u8]) {
        let needed = self.buf.len() + data.len();
        if needed > self.buf.capacity() {
            self.reallocate(needed);
        }
        self.buf.extend_from_slice(data);
    }

    /// The next frame without its length, or `None` if it has not arrived as a whole.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that ends and then goes on would mislead"
    )]
    pub fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        debug_assert_eq!(
            self.left, 0,
            "a frame that is given out in pieces has to end first"
        );
        let Some(len) = self.first_len() else {
            self.detach();
            return Ok(None);
        };
        if len > self.len_max {
            return Err(FrameError::TooLong {
                len,
                len_max: self.len_max,
            });
        }
        if self.buf.len() - LENGTH_LEN < len {
            self.detach();
            return Ok(None);
        }
        self.buf.advance(LENGTH_LEN);
        let frame = self.buf.split_to(len).freeze();
        self.used = true;
        Ok(Some(frame))
    }

    /// The first frame, if it has not arrived as a whole: its length, and its beginning as far as
    /// it has come.
    pub fn incomplete(&self) -> Option<(usize, &[u8])> {
        let len = self.first_len()?;
        let begun = &self.buf[LENGTH_LEN..];
        (begun.len() < len).then_some((len, begun))
    }

    /// The first frame is to be given out in pieces.
    pub fn begin_pieces(&mut self) {
        if let Some(len) = self.first_len() {
            self.buf.advance(LENGTH_LEN);
            self.left = len;
        }
    }

    /// The next piece of a frame that is given out in pieces, `len_max` bytes at most; empty if no
    /// more has arrived, or the frame has ended.
    pub fn piece(&mut self, len_max: usize) -> Bytes {
        let len = len_max.min(self.left).min(self.buf.len());
        let piece = self.buf.split_to(len).freeze();
        self.used = true;
        self.left -= len;
        if self.buf.is_empty() {
            self.detach();
        }
        piece
    }

    /// What [`Self::next`] would give out, where it lies: to be taken by that, or by
    /// [`Self::skip`]. `None` also for a frame that is too long, of which `next` tells.
    pub fn peek(&self) -> Option<&[u8]> {
        if self.left > 0 {
            return None;
        }
        let len = self.first_len().filter(|len| *len <= self.len_max)?;
        self.buf[LENGTH_LEN..].get(..len)
    }

    /// Takes a frame that [`Self::peek`] has shown.
    pub fn skip(&mut self) {
        if let Some(len) = self.peek().map(<[u8]>::len) {
            self.buf.advance(LENGTH_LEN + len);
            self.used = true;
        }
    }

    /// The length of the first frame, as soon as it is known.
    fn first_len(&self) -> Option<usize> {
        (self.buf.len() >= LENGTH_LEN).then(|| BigEndian::read_u32(&self.buf) as usize)
    }

    /// Moves the beginning of a frame out of the memory of the frames before it, which it would
    /// keep for as long as the peer takes to send the rest.
    fn detach(&mut self) {
        if self.used {
            self.reallocate(self.buf.len());
        }
    }

    /// A big frame gets its memory by doubling: its length is only believed as far as bytes have
    /// arrived, and each byte is copied a constant number of times on average.
    fn reallocate(&mut self, needed: usize) {
        let capacity = match self.first_len() {
            _ if self.left > 0 => needed,
            Some(len) if LENGTH_LEN + len > needed => (LENGTH_LEN + len).min(2 * needed),
            _ => needed,
        };
        let received = mem::replace(&mut self.buf, BytesMut::with_capacity(capacity));
        self.buf.extend_from_slice(&received);
        self.used = false;
    }
}

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

/// A frame with one gap in it.
#[derive(Debug, Default)]
pub(super) struct Around {
    bytes: Vec<u8>,
    gap_pos: usize,
    gap_len: usize,
}

impl Around {
    /// What comes before the gap, with the length of the frame, and what behind.
    pub(super) fn finish(self) -> Result<[Bytes; 2], FrameError> {
        let Self {
            bytes,
            gap_pos,
            gap_len,
        } = self;
        let len = bytes.len() + gap_len;
        let Ok(length) = u32::try_from(len) else {
            let len_max = u32::MAX as usize;
            return Err(FrameError::TooLong { len, len_max });
        };
        let (before, behind) = bytes.split_at(gap_pos);
        let before = [&length.to_be_bytes(), before].concat();
        Ok([before.into(), Bytes::copy_from_slice(behind)])
    }
}

impl Sink for Around {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn put_data(&mut self, data: &Bytes) {
        self.put(data);
    }

    fn put_gap(&mut self, len: usize) {
        debug_assert_eq!(self.gap_len, 0, "there is one gap");
        (self.gap_pos, self.gap_len) = (self.bytes.len(), len);
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
    fn frames_do_not_depend_on_how_the_bytes_arrive() {
        let bodies: [&[u8]; 5] = [b"Z5", b"", &[7; 3000], b"x", &[9; 70_000]];
        let stream = stream(&bodies);
        for piece_len in [1, 2, 3, 7, 1000, stream.len()] {
            let mut reader = FrameReader::new(1 << 20);
            let mut frames = Vec::new();
            for piece in stream.chunks(piece_len) {
                reader.receive(piece);
                while let Some(frame) = reader.next().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, bodies);
            assert_eq!(reader.buf.capacity(), 0, "an idle reader holds no memory");
        }
    }

    #[test]
    fn small_frames_share_the_memory_they_arrived_in() {
        let mut reader = FrameReader::new(100);
        reader.receive(&stream(&[b"one", b"two"]));
        let first = reader.next().unwrap().unwrap();
        let second = reader.next().unwrap().unwrap();
        assert_eq!(
            second.as_ptr() as usize - first.as_ptr() as usize,
            3 + LENGTH_LEN
        );
    }

    #[test]
    fn the_start_of_a_frame_does_not_keep_the_frames_before_it() {
        let mut reader = FrameReader::new(1 << 20);
        let mut bytes = stream(&[&[1; 100_000]]);
        bytes.extend_from_slice(&[0, 0]);
        reader.receive(&bytes);
        assert!(reader.next().unwrap().is_some());
        assert_eq!(reader.next(), Ok(None));
        assert!(reader.buf.capacity() < 100);
    }

    #[test]
    fn a_length_is_only_believed_as_far_as_bytes_have_arrived() {
        let mut reader = FrameReader::new(1 << 30);
        reader.receive(&(1_u32 << 30).to_be_bytes());
        for received in 1..1000 {
            reader.receive(&[0; 10]);
            assert_eq!(reader.next(), Ok(None));
            assert!(reader.buf.capacity() <= 2 * (received * 10 + LENGTH_LEN));
        }
    }

    #[test]
    fn a_frame_can_be_had_in_pieces() {
        let long: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
        let stream = stream(&[b"before", &long, b"after"]);
        let mut reader = FrameReader::new(1 << 20);
        let (mut frames, mut pieces) = (Vec::new(), Vec::new());
        for bytes in stream.chunks(700) {
            reader.receive(bytes);
            if pieces.is_empty() {
                while let Some(frame) = reader.next().unwrap() {
                    frames.push(frame);
                }
                let (len, begun) = reader.incomplete().unwrap();
                assert_eq!((len, begun), (long.len(), &long[..begun.len()]));
                reader.begin_pieces();
            }
            loop {
                let piece = reader.piece(300);
                if piece.is_empty() {
                    break;
                }
                pieces.push(piece);
            }
            assert!(reader.buf.capacity() <= 1400);
        }
        assert_eq!(pieces.concat(), long);
        frames.extend(reader.next().unwrap());
        assert_eq!(frames, [&b"before"[..], b"after"]);
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.buf.capacity(), 0);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_at_its_length() {
        let mut reader = FrameReader::new(10);
        reader.receive(&[0, 0, 0, 11]);
        let error = FrameError::TooLong {
            len: 11,
            len_max: 10,
        };
        assert_eq!(reader.next(), Err(error));
        reader.set_len_max(11);
        assert_eq!(reader.next(), Ok(None));
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
