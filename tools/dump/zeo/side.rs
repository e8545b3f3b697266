//! One direction of a ZEO connection: from bytes, with holes in them, to frames.
//!
//! ```text
//!   Frames ── a hole within a frame ──► Skipping ── its end ──► Frames
//!     │ └──── any other hole ─────────► Searching ── a frame ──► Frames
//!     └────── a large store ──────────► Large ──── its end ───► Frames
//! ```
//!
//! A frame says how long it is, so that a hole within one leaves no doubt where the next one
//! begins. Otherwise that is searched for: at each byte, until there is a frame that decodes.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use standby::limits::WHOLE_STORE_LEN_MAX;
use standby::zeo::large_store::{LargeStore, Next};
use standby::zeo::message::parts;
use standby::zeo::{Encoding, FrameReader};

use crate::limits::{FRAME_LEN_MAX, INCOMPLETE_LEN_MAX, SEARCH_LEN_MAX};
use crate::message::Way;

/// Bytes of incomplete frames of all connections together.
pub(crate) type Budget = Rc<Cell<usize>>;

/// What a direction gives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// A frame without its length.
    Frame(Bytes),
    /// A call with the first bytes of an object's data, and the length of all of these.
    LargeStore {
        call: Bytes,
        data_len: usize,
        frame_len: usize,
    },
    /// A frame that is longer than what is decoded, with its begin.
    TooLong { begin: Bytes, len: usize },
    /// A frame with a hole in it.
    Incomplete { begin: Bytes, len: usize },
    /// So many bytes that belong to no frame that is known.
    Lost(u64),
    /// Frames begin again, in this encoding, behind so many bytes of which nothing is known.
    Found(Encoding, u64),
    /// The stream has ended within a frame, of which so much has come.
    Ended {
        begin: Bytes,
        have: usize,
        len: usize,
    },
}

/// Protocol state of a direction.
#[derive(Debug)]
pub(crate) struct Side {
    way: Way,
    frames: FrameReader,
    mode: Mode,
    /// Bytes of the stream so far, holes included.
    received: u64,
    budget: Budget,
    /// What of the budget is ours.
    held: usize,
}

#[derive(Debug)]
enum Mode {
    Frames,
    Large {
        store: Box<LargeStore>,
        /// Where the frame ends in the stream.
        end: u64,
        frame_len: usize,
    },
    Skipping {
        left: u64,
    },
    Searching(Search),
}

/// Bytes in which a frame is looked for.
#[derive(Debug, Default)]
struct Search {
    buf: Vec<u8>,
    /// Where to look on; whatever is before it is no begin of a frame, or is in `begun`.
    pos: usize,
    /// Places where a frame may begin that has not come as a whole.
    begun: Vec<usize>,
    /// Bytes given up.
    skipped: u64,
}

/// Candidates that are remembered while their rest is missing.
const BEGUN_MAX: usize = 256;

/// Bytes of a frame that are shown when it cannot be decoded.
const BEGIN_LEN: usize = 256;

const LENGTH_LEN: usize = 4;

impl Side {
    /// `from_start`: whether the first bytes of the stream will come.
    pub(crate) fn new(way: Way, from_start: bool, budget: Budget) -> Self {
        let mode = if from_start {
            Mode::Frames
        } else {
            Mode::Searching(Search::default())
        };
        Self {
            way,
            frames: FrameReader::new(u32::MAX as usize),
            mode,
            received: 0,
            budget,
            held: 0,
        }
    }

    /// Takes bytes. Then call [`Self::next`] until it has no more.
    pub(crate) fn receive(&mut self, data: &[u8]) {
        self.received += data.len() as u64;
        match &mut self.mode {
            Mode::Searching(search) => search.buf.extend_from_slice(data),
            Mode::Skipping { left } => {
                let skipped = (*left).min(data.len() as u64);
                *left -= skipped;
                let rest = &data[usize::try_from(skipped).unwrap_or(data.len())..];
                if *left == 0 {
                    self.mode = Mode::Frames;
                    self.frames.receive(rest);
                }
            }
            Mode::Frames | Mode::Large { .. } => self.frames.receive(data),
        }
    }

    /// So many bytes are missing here.
    pub(crate) fn gap(&mut self, len: u64) -> Option<Piece> {
        let pos = self.received;
        self.received += len;
        match &mut self.mode {
            Mode::Searching(search) => {
                // What has begun before the hole will not be completed.
                let lost = search.skipped + search.buf.len() as u64 + len;
                *search = Search {
                    skipped: lost,
                    ..Search::default()
                };
                None
            }
            Mode::Skipping { left } => {
                let left = left.checked_sub(len);
                self.lose(left, len);
                None
            }
            Mode::Large { end, frame_len, .. } => {
                let (left, frame_len) = (end.checked_sub(pos + len), *frame_len);
                self.lose(left, len);
                let begin = Bytes::new();
                Some(Piece::Incomplete {
                    begin,
                    len: frame_len,
                })
            }
            Mode::Frames => {
                let begun = self.frames.incomplete().map(|(frame_len, begun)| {
                    let missing = (frame_len - begun.len()) as u64;
                    (frame_len, missing.checked_sub(len), begin_of(begun))
                });
                let left = begun.as_ref().and_then(|(_, left, _)| *left);
                self.lose(left, len);
                let (len, _, begin) = begun?;
                Some(Piece::Incomplete { begin, len })
            }
        }
    }

    /// Goes on behind a hole: at the end of a frame if that is known.
    fn lose(&mut self, left: Option<u64>, lost: u64) {
        self.frames = FrameReader::new(u32::MAX as usize);
        self.mode = match left {
            Some(0) => Mode::Frames,
            Some(left) => Mode::Skipping { left },
            None => Mode::Searching(Search {
                skipped: lost,
                ..Search::default()
            }),
        };
    }

    /// The next piece, if there is one. `encoding` as far as it is known.
    pub(crate) fn next(&mut self, encoding: Option<Encoding>) -> Option<Piece> {
        let piece = self.step(encoding);
        let held = match &self.mode {
            Mode::Searching(search) => search.buf.len(),
            _ => self.frames.incomplete().map_or(0, |(_, begun)| begun.len()),
        };
        self.budget.set(self.budget.get() + held - self.held);
        self.held = held;
        piece
    }

    fn step(&mut self, encoding: Option<Encoding>) -> Option<Piece> {
        match &mut self.mode {
            Mode::Skipping { .. } => None,
            Mode::Searching(search) => match search.find(encoding) {
                Some((encoding, pos)) => {
                    let found = Piece::Found(encoding, search.skipped + pos as u64);
                    let rest = search.buf.split_off(pos);
                    self.mode = Mode::Frames;
                    self.frames.receive(&rest);
                    Some(found)
                }
                None => search.give_up().map(Piece::Lost),
            },
            Mode::Large {
                store, frame_len, ..
            } => loop {
                match store.next(&mut self.frames) {
                    Next::NotYet => return None,
                    Next::Piece(_) => {}
                    Next::Call(call, data_len) => {
                        let frame_len = *frame_len;
                        self.mode = Mode::Frames;
                        return Some(Piece::LargeStore {
                            call,
                            data_len,
                            frame_len,
                        });
                    }
                }
            },
            Mode::Frames => self.step_frames(encoding),
        }
    }

    fn step_frames(&mut self, encoding: Option<Encoding>) -> Option<Piece> {
        if let Some((len, begun)) = self.frames.incomplete() {
            let is_likely = match (encoding, begun.first()) {
                (Some(encoding), Some(first)) => may_begin(encoding, *first),
                _ => true,
            };
            if !is_likely || encoding.is_none() && len > WHOLE_STORE_LEN_MAX {
                return self.search(encoding);
            }
            if let (Some(encoding), Way::ToServer) = (encoding, self.way)
                && let Some(large) = self.begin_large(encoding, len)
            {
                self.mode = large;
                return self.step(Some(encoding));
            }
            return self.begin_skipping();
        }
        self.frames.next().ok().flatten().map(Piece::Frame)
    }

    /// A large store, if that is what has begun.
    fn begin_large(&mut self, encoding: Encoding, frame_len: usize) -> Option<Mode> {
        let (_, begun) = self.frames.incomplete()?;
        let end = self.received + (frame_len - begun.len()) as u64;
        let store = LargeStore::begin(encoding, &mut self.frames).ok()??;
        Some(Mode::Large {
            store: Box::new(store),
            end,
            frame_len,
        })
    }

    /// Skips a frame that is too long for us, or too long for now.
    fn begin_skipping(&mut self) -> Option<Piece> {
        let (len, begun) = self.frames.incomplete()?;
        let is_too_long = len > FRAME_LEN_MAX || self.budget.get() > INCOMPLETE_LEN_MAX;
        if !is_too_long || begun.len() < BEGIN_LEN {
            return None;
        }
        let (begin, left) = (begin_of(begun), (len - begun.len()) as u64);
        self.lose(Some(left), 0);
        Some(Piece::TooLong { begin, len })
    }

    /// The frames are none: what has come is searched for one.
    fn search(&mut self, encoding: Option<Encoding>) -> Option<Piece> {
        let (len, begun) = self.frames.incomplete()?;
        let mut buf = (len as u32).to_be_bytes().to_vec();
        buf.extend_from_slice(begun);
        self.frames = FrameReader::new(u32::MAX as usize);
        self.mode = Mode::Searching(Search {
            buf,
            // At its begin there is none.
            pos: 1,
            ..Search::default()
        });
        self.step(encoding)
    }

    /// The frame that was given out last is no message: the next one is searched for.
    pub(crate) fn distrust(&mut self) {
        if matches!(self.mode, Mode::Frames) {
            let mut rest = Vec::new();
            while let Ok(Some(frame)) = self.frames.next() {
                rest.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                rest.extend_from_slice(&frame);
            }
            if let Some((len, begun)) = self.frames.incomplete() {
                rest.extend_from_slice(&(len as u32).to_be_bytes());
                rest.extend_from_slice(begun);
            }
            self.frames = FrameReader::new(u32::MAX as usize);
            self.mode = Mode::Searching(Search {
                buf: rest,
                ..Search::default()
            });
        }
    }

    /// The stream has ended.
    pub(crate) fn end(&mut self) -> Option<Piece> {
        let piece = match &mut self.mode {
            Mode::Frames => self.frames.incomplete().map(|(len, begun)| Piece::Ended {
                begin: begin_of(begun),
                have: begun.len(),
                len,
            }),
            Mode::Large { end, frame_len, .. } => Some(Piece::Ended {
                begin: Bytes::new(),
                have: frame_len.saturating_sub(
                    usize::try_from(end.saturating_sub(self.received)).unwrap_or(0),
                ),
                len: *frame_len,
            }),
            Mode::Skipping { .. } => None,
            Mode::Searching(search) => {
                let lost = search.skipped + search.buf.len() as u64;
                (lost > 0).then_some(Piece::Lost(lost))
            }
        };
        self.lose(None, 0);
        self.budget.set(self.budget.get().saturating_sub(self.held));
        self.held = 0;
        piece
    }
}

impl Drop for Side {
    /// Of a connection whose greeting is not known nobody asks for the end.
    fn drop(&mut self) {
        self.budget.set(self.budget.get().saturating_sub(self.held));
    }
}

impl Search {
    /// Where a frame begins, if it can be told yet.
    fn find(&mut self, encoding: Option<Encoding>) -> Option<(Encoding, usize)> {
        let begun = std::mem::take(&mut self.begun);
        for pos in begun {
            if let Some(found) = self.check(encoding, pos) {
                return Some((found, pos));
            }
        }
        while self.pos + LENGTH_LEN < self.buf.len() {
            let pos = self.pos;
            self.pos += 1;
            if let Some(found) = self.check(encoding, pos) {
                return Some((found, pos));
            }
        }
        None
    }

    /// The encoding of the frame at `pos`, if there is one. It is remembered if it is incomplete.
    fn check(&mut self, encoding: Option<Encoding>, pos: usize) -> Option<Encoding> {
        let length = self.buf.get(pos..pos + LENGTH_LEN)?;
        let len = u32::from_be_bytes(length.try_into().ok()?) as usize;
        let first = *self.buf.get(pos + LENGTH_LEN)?;
        let candidates = [Encoding::M, Encoding::Z];
        let found = candidates
            .into_iter()
            .filter(|candidate| encoding.is_none_or(|encoding| encoding == *candidate))
            .find(|candidate| may_begin(*candidate, first))?;
        if !(FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len) {
            return None;
        }
        let Some(frame) = self.buf.get(pos + LENGTH_LEN..pos + LENGTH_LEN + len) else {
            if self.begun.len() < BEGUN_MAX {
                self.begun.push(pos);
            }
            return None;
        };
        is_message(found, &Bytes::copy_from_slice(frame)).then_some(found)
    }

    /// Makes room if nothing was found in too much. Returns how much was given up.
    fn give_up(&mut self) -> Option<u64> {
        if self.buf.len() <= SEARCH_LEN_MAX {
            return None;
        }
        // A long frame may have begun, and will be found when the next ones have come.
        let len = self.pos.min(self.buf.len());
        self.buf.drain(..len);
        self.begun.clear();
        self.pos = 0;
        let lost = self.skipped + len as u64;
        self.skipped = 0;
        Some(lost)
    }
}

/// Bytes of the shortest message: four values.
const FRAME_LEN_MIN: usize = 5;

/// Whether a message in this encoding may begin so: an array of four, or a pickle of any protocol.
const fn may_begin(encoding: Encoding, first: u8) -> bool {
    match encoding {
        Encoding::M => first == 0x94,
        Encoding::Z => matches!(first, 0x80 | b'(' | b'I' | b'K'),
    }
}

/// Whether a frame is a message without any doubt.
pub(super) fn is_message(encoding: Encoding, frame: &Bytes) -> bool {
    let Ok([_, _, name, _]) = parts(encoding, frame) else {
        return false;
    };
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    name.string()
        .is_some_and(|name| name.len() <= 100 && name.iter().all(is_word))
}

fn begin_of(begun: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&begun[..begun.len().min(BEGIN_LEN)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use standby::ids::{Oid, Tid};
    use standby::value::Value;
    use standby::zeo::{Dialect, Encoder};

    fn call(encoding: Encoding, name: &'static str, args: Vec<Value>) -> Bytes {
        Encoder::new(encoding, Dialect::Python3).notice_frame(name, args)
    }

    fn store(encoding: Encoding, len: usize) -> Bytes {
        let data = Value::Bytes(vec![7; len].into());
        let args = vec![Oid(1).into(), Tid(2).into(), data, Value::Int(3)];
        call(encoding, "storea", args)
    }

    fn side(way: Way, from_start: bool) -> Side {
        Side::new(way, from_start, Budget::default())
    }

    fn pieces(side: &mut Side, encoding: Encoding) -> Vec<Piece> {
        std::iter::from_fn(|| side.next(Some(encoding))).collect()
    }

    #[test]
    fn a_large_store_takes_no_memory() {
        for encoding in [Encoding::Z, Encoding::M] {
            let budget = Budget::default();
            let mut side = Side::new(Way::ToServer, true, Rc::clone(&budget));
            let frame = store(encoding, 5 << 20);
            let ping = call(encoding, "ping", Vec::new());
            let mut found = Vec::new();
            for piece in [&frame[..], &ping].concat().chunks(10_000) {
                side.receive(piece);
                found.extend(pieces(&mut side, encoding));
                assert!(budget.get() <= 20_000, "{}", budget.get());
            }
            let [
                Piece::LargeStore {
                    data_len,
                    frame_len,
                    ..
                },
                Piece::Frame(next),
            ] = &found[..]
            else {
                panic!("{found:?}");
            };
            assert_eq!((*data_len, *frame_len), (5 << 20, frame.len() - 4));
            assert_eq!(next[..], ping[4..]);
        }
    }

    #[test]
    fn behind_a_hole_in_a_frame_the_next_one_is_found_without_a_search() {
        for encoding in [Encoding::Z, Encoding::M] {
            let (long, ping) = (store(encoding, 5000), call(encoding, "ping", Vec::new()));
            let stream = [&long[..], &ping].concat();
            for (from, len) in [(10, 100), (10, long.len() - 10), (4, 1), (3000, 2000)] {
                let mut side = side(Way::ToServer, true);
                side.receive(&stream[..from]);
                assert_eq!(pieces(&mut side, encoding), []);
                let gap = side.gap(len as u64);
                let Some(Piece::Incomplete { len: frame_len, .. }) = gap else {
                    panic!("{gap:?}");
                };
                assert_eq!(frame_len, long.len() - 4);
                side.receive(&stream[from + len..]);
                let expected = [Piece::Frame(ping.slice(4..))];
                assert_eq!(pieces(&mut side, encoding), expected, "{from} {len}");
            }
        }
    }

    #[test]
    fn behind_a_hole_at_the_end_of_a_frame_the_next_one_is_searched_for() {
        for encoding in [Encoding::Z, Encoding::M] {
            let (long, ping) = (store(encoding, 5000), call(encoding, "ping", Vec::new()));
            // It ends within the second store.
            let stream = [&long[..], &long, &ping].concat();
            let mut side = side(Way::ToServer, true);
            side.receive(&stream[..100]);
            let hole = long.len();
            assert!(matches!(
                side.gap(hole as u64),
                Some(Piece::Incomplete { .. })
            ));
            let mut found = Vec::new();
            for byte in &stream[100 + hole..] {
                side.receive(&[*byte]);
                found.extend(pieces(&mut side, encoding));
            }
            let skipped = (stream.len() - 100 - ping.len()) as u64;
            let expected = [
                Piece::Found(encoding, skipped),
                Piece::Frame(ping.slice(4..)),
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_search_ends_in_bounded_memory() {
        let budget = Budget::default();
        let mut side = Side::new(Way::ToClient, false, Rc::clone(&budget));
        let mut lost = 0;
        for _ in 0..100 {
            // Each byte could begin a frame.
            side.receive(&[0, 0, 0, 100].repeat(25_000));
            while let Some(piece) = side.next(None) {
                let Piece::Lost(len) = piece else {
                    panic!("{piece:?}");
                };
                lost += len;
            }
            assert!(budget.get() <= 2 * SEARCH_LEN_MAX);
        }
        let Some(Piece::Lost(rest)) = side.end() else {
            panic!("nothing is lost at the end");
        };
        assert_eq!(lost + rest, 10_000_000);
        assert_eq!(budget.get(), 0);
    }

    #[test]
    fn a_frame_too_long_for_us_is_passed_by() {
        let mut side = side(Way::ToClient, true);
        let len = FRAME_LEN_MAX + 1;
        side.receive(&(len as u32).to_be_bytes());
        let block = vec![0x94; 1 << 20];
        let mut found = Vec::new();
        for _ in 0..64 {
            side.receive(&block);
            found.extend(pieces(&mut side, Encoding::M));
        }
        side.receive(&block[..1]);
        let ping = call(Encoding::M, "ping", Vec::new());
        side.receive(&ping);
        found.extend(pieces(&mut side, Encoding::M));
        let [Piece::TooLong { len: told, .. }, Piece::Frame(next)] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((*told, &next[..]), (len, &ping[4..]));
    }
}
