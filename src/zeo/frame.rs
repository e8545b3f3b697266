//! Frames: a 4-byte big-endian length, then that many bytes. How they come in; out they go through
//! [`crate::out_queue`].

use std::mem;

use byteorder::{BigEndian, ByteOrder};
use bytes::{Buf, Bytes, BytesMut};

pub use crate::out_queue::{Frame, FrameError, OutQueue, Sink};

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

/// Bytes of the length field.
const LENGTH_LEN: usize = 4;

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
}
