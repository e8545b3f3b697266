//! TCP connections out of segments: in order, once, with what is missing told.
//!
//! Sequence numbers are counted on in 64 bits from the first one that was seen. What is behind a
//! hole waits until the hole is filled, or until it is clear that it will not be: the receiver has
//! acknowledged it and it has still not come, too much waits, or the connection ends.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, Bytes};

use crate::limits::{
    CONNECTIONS_MAX, LATE_ACKS_MAX, LATE_MAX, WAITING_LEN_MAX, WAITING_PIECES_MAX,
    WAITING_TOTAL_MAX,
};
use crate::message::Way;
use crate::packet::{Endpoint, Segment};

/// Which connection, for as long as this runs.
pub(crate) type ConnectionId = u64;

/// What happens on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpEvent {
    pub time: Duration,
    pub id: ConnectionId,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// It is seen for the first time.
    Opened {
        client: Endpoint,
        server: Endpoint,
        /// Whether it was seen from the first packet on. Otherwise who is who is a guess.
        from_start: bool,
    },
    /// The next bytes.
    Data(Way, Bytes),
    /// Bytes that were not captured.
    Gap(Way, u64),
    /// One side sends no more.
    Finished(Way),
    /// It has ended; nothing follows.
    Closed(&'static str),
    /// Bytes that were seen before.
    Repeated(Way, usize),
}

/// All connections.
#[derive(Debug, Default)]
pub(crate) struct Tcp {
    connections: BTreeMap<(Endpoint, Endpoint), Followed>,
    /// Ports of servers, to tell who is who.
    pub server_ports: Vec<u16>,
    /// Which connection to give up first: those that have ended, then by when they were heard of.
    order: BTreeMap<(bool, u64), (Endpoint, Endpoint)>,
    last_id: ConnectionId,
    /// Counts packets, for what was silent longest.
    clock: u64,
    /// Bytes that wait in all connections.
    waiting_len: usize,
    pub counts: Counts,
}

/// What was seen and not passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Packets that were captured twice.
    pub duplicates: u64,
    /// Bytes that were sent again.
    pub repeated_len: u64,
    /// Bytes that were sent and not captured.
    pub missing_len: u64,
    pub gaps: u64,
    /// Connections that were taken for ended since there were too many.
    pub forgotten: u64,
    /// Packets of no connection that we know, with nothing in them.
    pub strays: u64,
    /// Bytes that came behind the end of their connection.
    pub late_len: u64,
}

#[derive(Debug)]
struct Followed {
    id: ConnectionId,
    client: Endpoint,
    halves: [Half; 2],
    is_closed: bool,
    /// Who ended it by a reset.
    reset_by: Option<Way>,
    /// The value of the clock when it was last heard of.
    heard: u64,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    /// The sequence number at the position `next`; `None` before the first segment.
    next_seq: Option<u32>,
    /// Bytes passed on, or given up.
    next: u64,
    /// What waits for something before it, by position.
    waiting: BTreeMap<u64, Piece>,
    waiting_len: usize,
    /// Where the stream ends.
    end: Option<u64>,
    finished: bool,
    /// When the hole in front of `waiting` was first seen to be acknowledged, and how often it was.
    acknowledged: Option<(Duration, u32)>,
    /// Bytes that the receiver has, as far as it was seen to say so.
    has_received: u64,
    /// The packet before, to know it again.
    last: Option<(u16, u32, usize)>,
    /// The sequence number of its SYN.
    syn: Option<u32>,
}

#[derive(Debug)]
enum Piece {
    Data(Duration, Bytes),
    /// Bytes that were cut from the end of a packet.
    Cut(Duration, u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Data(_, data) => data.len() as u64,
            Self::Cut(_, len) => *len,
        }
    }

    const fn time(&self) -> Duration {
        match self {
            Self::Data(time, _) | Self::Cut(time, _) => *time,
        }
    }
}

impl Tcp {
    /// Takes a segment; what happens by it is appended to `events`. Returns the connection that it
    /// belongs to.
    pub(crate) fn segment(
        &mut self,
        time: Duration,
        segment: &Segment<'_>,
        events: &mut Vec<TcpEvent>,
    ) -> Option<ConnectionId> {
        self.clock += 1;
        let key = ordered(segment.from, segment.to);
        let is_new = match self.connections.get_mut(&key) {
            None => true,
            Some(followed) => {
                self.order.remove(&followed.rank());
                let way = followed.way(segment.from);
                let again = segment.syn
                    && segment.ack.is_none()
                    && followed.halves[way.index()].syn != Some(segment.seq);
                if again && !followed.is_closed {
                    self.waiting_len -= followed.waiting_len();
                    followed.close(
                        time,
                        "a new connection has its ports",
                        events,
                        &mut self.counts,
                    );
                }
                again || followed.is_alive(segment)
            }
        };
        if is_new && !self.open(time, key, segment, events) {
            self.counts.strays += 1;
            return None;
        }
        let followed = self.connections.get_mut(&key)?;
        followed.heard = self.clock;
        let is_full = self.waiting_len > WAITING_TOTAL_MAX;
        self.waiting_len -= followed.waiting_len();
        followed.segment(time, segment, is_full, events, &mut self.counts);
        self.waiting_len += followed.waiting_len();
        self.order.insert(followed.rank(), key);
        Some(followed.id)
    }

    /// The end of the capture.
    pub(crate) fn finish(&mut self, time: Duration, events: &mut Vec<TcpEvent>) {
        let mut open: Vec<&mut Followed> = self
            .connections
            .values_mut()
            .filter(|followed| !followed.is_closed)
            .collect();
        open.sort_by_key(|followed| followed.id);
        for followed in open {
            followed.close(time, "the capture ends", events, &mut self.counts);
        }
        self.connections.clear();
        self.order.clear();
        self.waiting_len = 0;
    }

    /// Whether there is a connection now. Packets without content that belong to none make none:
    /// they are the last ones of something that has ended.
    fn open(
        &mut self,
        time: Duration,
        key: (Endpoint, Endpoint),
        segment: &Segment<'_>,
        events: &mut Vec<TcpEvent>,
    ) -> bool {
        if !segment.syn && segment.payload.is_empty() && segment.missing == 0 {
            return false;
        }
        if self.connections.len() >= CONNECTIONS_MAX && !self.connections.contains_key(&key) {
            self.forget(time, events);
        }
        let (from, to) = (segment.from, segment.to);
        let client = match (segment.syn, segment.ack) {
            (true, None) => from,
            (true, Some(_)) => to,
            (false, _) if self.server_ports.contains(&to.port) => from,
            (false, _) if self.server_ports.contains(&from.port) => to,
            (false, _) if from.port < to.port => to,
            (false, _) => from,
        };
        self.last_id += 1;
        let id = self.last_id;
        let followed = Followed {
            id,
            client,
            halves: [Half::default(), Half::default()],
            is_closed: false,
            reset_by: None,
            heard: self.clock,
        };
        self.connections.insert(key, followed);
        let what = What::Opened {
            client,
            server: if client == from { to } else { from },
            from_start: segment.syn,
        };
        events.push(TcpEvent { time, id, what });
        true
    }

    /// Gives up the connection that was silent for longest.
    fn forget(&mut self, time: Duration, events: &mut Vec<TcpEvent>) {
        let oldest = self.order.pop_first();
        let oldest = oldest.and_then(|(_, key)| self.connections.remove(&key));
        let Some(mut followed) = oldest else {
            return;
        };
        if !followed.is_closed {
            self.waiting_len -= followed.waiting_len();
            self.counts.forgotten += 1;
            followed.close(time, "too many connections", events, &mut self.counts);
        }
    }
}

fn ordered(a: Endpoint, b: Endpoint) -> (Endpoint, Endpoint) {
    if a <= b { (a, b) } else { (b, a) }
}

impl Followed {
    fn way(&self, from: Endpoint) -> Way {
        if from == self.client {
            Way::ToServer
        } else {
            Way::ToClient
        }
    }

    const fn rank(&self) -> (bool, u64) {
        (!self.is_closed, self.heard)
    }

    /// Whether this tells that there is a connection, though ours has ended: another one has its
    /// ports, and its first packets were not captured; or the reset was not its own. What the other
    /// side had sent before it knew of a reset is neither.
    fn is_alive(&self, segment: &Segment<'_>) -> bool {
        let way = self.way(segment.from);
        self.is_closed
            && !segment.payload.is_empty()
            && self.reset_by.is_none_or(|by| by == way)
            && self.halves[way.index()].is_new(segment.seq)
    }

    /// Bytes that wait for what is missing before them.
    fn waiting_len(&self) -> usize {
        self.halves.iter().map(|half| half.waiting_len).sum()
    }

    /// `is_full`: nothing more may wait.
    fn segment(
        &mut self,
        time: Duration,
        segment: &Segment<'_>,
        is_full: bool,
        events: &mut Vec<TcpEvent>,
        counts: &mut Counts,
    ) {
        if self.is_closed {
            let len = segment.payload.len() as u64;
            if self.halves[self.way(segment.from).index()].is_new(segment.seq) {
                counts.late_len += len;
            } else {
                counts.repeated_len += len;
            }
            return;
        }
        let way = self.way(segment.from);
        let id = self.id;
        let mut push = |time, what| events.push(TcpEvent { time, id, what });
        let half = &mut self.halves[way.index()];
        if half.is_duplicate(segment) {
            counts.duplicates += 1;
            return;
        }
        half.take(time, segment, &mut |repeated| {
            counts.repeated_len += repeated as u64;
            push(time, What::Repeated(way, repeated));
        });
        // What had to wait for this segment could not be read before.
        half.deliver(
            |piece| push(time.max(piece.time()), piece.what(way)),
            counts,
        );
        if is_full || half.holds_too_much() {
            half.give_up_hole(time, |piece| push(piece.time(), piece.what(way)), counts);
        }
        if half.ends_now() {
            push(time, What::Finished(way));
        }
        if let Some(ack) = segment.ack {
            let back = way.back();
            let other = &mut self.halves[back.index()];
            if other.is_lost(time, ack) {
                other.give_up_hole(time, |piece| push(piece.time(), piece.what(back)), counts);
                if other.ends_now() {
                    push(time, What::Finished(back));
                }
            }
        }
        if segment.rst {
            self.reset_by = Some(way);
            self.close(time, "reset", events, counts);
        } else if self.halves.iter().all(|half| half.finished) {
            self.close(time, "closed", events, counts);
        }
    }

    /// Passes on all that waits, with its holes.
    fn close(
        &mut self,
        time: Duration,
        why: &'static str,
        events: &mut Vec<TcpEvent>,
        counts: &mut Counts,
    ) {
        let id = self.id;
        for way in [Way::ToServer, Way::ToClient] {
            let half = &mut self.halves[way.index()];
            let mut push = |piece: Piece| {
                let (time, what) = (piece.time(), piece.what(way));
                events.push(TcpEvent { time, id, what });
            };
            while !half.waiting.is_empty() {
                half.give_up_hole(time, &mut push, counts);
            }
            let missing = half.missing_end();
            if missing > 0 {
                counts.missing_len += missing;
                counts.gaps += 1;
                push(Piece::Cut(time, missing));
            }
        }
        self.is_closed = true;
        let what = What::Closed(why);
        events.push(TcpEvent { time, id, what });
    }
}

impl Piece {
    fn what(self, way: Way) -> What {
        match self {
            Self::Data(_, data) => What::Data(way, data),
            Self::Cut(_, len) => What::Gap(way, len),
        }
    }
}

impl Half {
    /// Whether this is the packet before once more: some captures have each packet twice.
    fn is_duplicate(&mut self, segment: &Segment<'_>) -> bool {
        let this = (segment.id, segment.seq, segment.payload.len());
        let again = segment.id != 0 && self.last == Some(this);
        self.last = Some(this);
        again
    }

    /// The position of a sequence number near the next one.
    const fn position(&self, seq: u32, next_seq: u32) -> Option<u64> {
        let distance = seq.wrapping_sub(next_seq).cast_signed();
        self.next.checked_add_signed(distance as i64)
    }

    /// Whether what begins there was not seen before.
    fn is_new(&self, seq: u32) -> bool {
        self.next_seq
            .is_none_or(|next_seq| seq.wrapping_sub(next_seq).cast_signed() >= 0)
    }

    fn take(&mut self, time: Duration, segment: &Segment<'_>, repeated: &mut impl FnMut(usize)) {
        let mut seq = segment.seq;
        if segment.syn {
            self.syn = Some(seq);
            seq = seq.wrapping_add(1);
        }
        let len = segment.payload.len() + segment.missing;
        let next_seq = match self.next_seq {
            Some(next_seq) => next_seq,
            // An acknowledgement may be that of a keep-alive, which is one byte behind.
            None if !segment.syn && len == 0 => return,
            None => *self.next_seq.insert(seq),
        };
        let mut from = self.position(seq, next_seq);
        let mut data = Bytes::copy_from_slice(segment.payload);
        let mut missing = segment.missing as u64;
        let end = match from {
            Some(from) => from + len as u64,
            // Before all that we have seen.
            None => {
                let before = next_seq.wrapping_sub(seq) as usize;
                (self.next + len as u64).saturating_sub(before as u64)
            }
        };
        if segment.fin {
            self.end = Some(end);
        }
        // What was passed on already.
        let start = from.unwrap_or(0);
        if len > 0 && start < self.next {
            let old = (self.next - start).min(len as u64);
            repeated(usize::try_from(old).unwrap_or(usize::MAX));
            if end <= self.next {
                return;
            }
            let skip = len as u64 - (end - self.next);
            let of_data = skip.min(data.len() as u64);
            data.advance(usize::try_from(of_data).unwrap_or(data.len()));
            missing -= skip - of_data;
            from = Some(self.next);
        }
        let Some(from) = from else { return };
        let cut_pos = from + data.len() as u64;
        if !data.is_empty() {
            self.wait(from, Piece::Data(time, data));
        }
        if missing > 0 {
            self.wait(cut_pos, Piece::Cut(time, missing));
        }
    }

    /// Puts a piece where it belongs. Of two at one place the longer one stays.
    fn wait(&mut self, pos: u64, piece: Piece) {
        let is_better = self.waiting.get(&pos).is_none_or(|known| {
            known.len() < piece.len()
                || matches!((known, &piece), (Piece::Cut(..), Piece::Data(..)))
        });
        if is_better {
            self.waiting_len += piece.held();
            if let Some(old) = self.waiting.insert(pos, piece) {
                self.waiting_len -= old.held();
            }
        }
    }

    /// Passes on what has nothing missing before it.
    fn deliver(&mut self, mut pass: impl FnMut(Piece), counts: &mut Counts) {
        while let Some(entry) = self.waiting.first_entry() {
            if *entry.key() > self.next {
                return;
            }
            let (pos, piece) = entry.remove_entry();
            self.waiting_len -= piece.held();
            let known = self.next - pos;
            if known >= piece.len() {
                continue;
            }
            let piece = piece.without(known);
            self.next += piece.len();
            let next_seq = self.next_seq.unwrap_or(0);
            self.next_seq = Some(next_seq.wrapping_add(piece.len() as u32));
            if let Piece::Cut(_, len) = piece {
                counts.missing_len += len;
                counts.gaps += 1;
            }
            self.acknowledged = None;
            pass(piece);
        }
    }

    const fn ends_now(&mut self) -> bool {
        let ends = match self.end {
            Some(end) => self.next >= end && !self.finished,
            None => false,
        };
        self.finished |= ends;
        ends
    }

    fn holds_too_much(&self) -> bool {
        self.waiting_len > WAITING_LEN_MAX || self.waiting.len() > WAITING_PIECES_MAX
    }

    /// The receiver tells what it has. Returns whether something that is missing here is among it,
    /// and will not come any more.
    fn is_lost(&mut self, time: Duration, ack: u32) -> bool {
        let Some(next_seq) = self.next_seq else {
            return false;
        };
        let ahead = ack.wrapping_sub(next_seq).cast_signed();
        if ahead <= 0 {
            return false;
        }
        self.has_received = self
            .has_received
            .max(self.next + u64::from(ahead.unsigned_abs()));
        if self.waiting.is_empty() {
            return false;
        }
        let (since, count) = self.acknowledged.get_or_insert((time, 0));
        *count += 1;
        *count >= LATE_ACKS_MAX || time.saturating_sub(*since) > LATE_MAX
    }

    /// What is missing at the end, where nothing waits.
    fn missing_end(&mut self) -> u64 {
        // The end of a stream is acknowledged as if it were a byte.
        let end = self
            .end
            .unwrap_or_else(|| self.has_received.saturating_sub(1));
        let missing = end.saturating_sub(self.next);
        self.next += missing;
        missing
    }

    /// Takes what is missing before the first piece that waits for lost.
    fn give_up_hole(&mut self, time: Duration, mut pass: impl FnMut(Piece), counts: &mut Counts) {
        if let Some((pos, _)) = self.waiting.first_key_value()
            && *pos > self.next
        {
            let len = *pos - self.next;
            self.next = *pos;
            let next_seq = self.next_seq.unwrap_or(0);
            self.next_seq = Some(next_seq.wrapping_add(len as u32));
            counts.missing_len += len;
            counts.gaps += 1;
            pass(Piece::Cut(time, len));
        }
        self.deliver(pass, counts);
    }
}

impl Piece {
    /// Bytes of memory.
    const fn held(&self) -> usize {
        match self {
            Self::Data(_, data) => data.len(),
            Self::Cut(..) => 0,
        }
    }

    /// Without its first bytes, which are fewer than it has.
    fn without(self, len: u64) -> Self {
        match self {
            Self::Data(time, mut data) => {
                data.advance(usize::try_from(len).unwrap_or(data.len()));
                Self::Data(time, data)
            }
            Self::Cut(time, cut) => Self::Cut(time, cut - len),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    const CLIENT: Endpoint = end(1, 40_000);
    const SERVER: Endpoint = end(2, 8100);

    const fn end(last: u8, port: u16) -> Endpoint {
        Endpoint {
            address: core::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
            port,
        }
    }

    /// What comes of a client's segments, and of the server's acknowledgements.
    #[derive(Default)]
    struct Watch {
        tcp: Tcp,
        events: Vec<TcpEvent>,
        now: Duration,
    }

    impl Watch {
        fn segment(&mut self, from: Endpoint, seq: u32, change: impl FnOnce(&mut Segment<'_>)) {
            let mut segment = Segment {
                from,
                to: if from == CLIENT { SERVER } else { CLIENT },
                seq,
                ack: Some(1),
                syn: false,
                fin: false,
                rst: false,
                payload: &[],
                missing: 0,
                id: 0,
            };
            change(&mut segment);
            self.now += Duration::from_millis(1);
            self.tcp.segment(self.now, &segment, &mut self.events);
        }

        fn syn(&mut self, seq: u32) {
            self.segment(CLIENT, seq, |segment| {
                segment.syn = true;
                segment.ack = None;
            });
        }

        fn send(&mut self, seq: u32, payload: &'static [u8]) {
            self.segment(CLIENT, seq, |segment| segment.payload = payload);
        }

        fn finish(&mut self) {
            self.tcp.finish(self.now, &mut self.events);
        }

        /// The client's stream, with `[n]` for n missing bytes and `.` for its end.
        fn stream(&self) -> String {
            let mut text = String::new();
            for event in &self.events {
                match &event.what {
                    What::Data(Way::ToServer, data) => text += &String::from_utf8_lossy(data),
                    What::Gap(Way::ToServer, len) => text += &format!("[{len}]"),
                    What::Finished(Way::ToServer) => text += ".",
                    _ => {}
                }
            }
            text
        }
    }

    #[test]
    fn segments_come_out_in_order_and_once() {
        // Near the end of the numbers, so that they begin anew in the midst.
        let first = u32::MAX - 3;
        let at = |offset: u32| first.wrapping_add(1 + offset);
        let mut watch = Watch::default();
        watch.syn(first);
        watch.send(at(0), b"ab");
        watch.send(at(4), b"ef");
        watch.send(at(0), b"ab");
        watch.send(at(3), b"de");
        assert_eq!(watch.stream(), "ab");
        watch.send(at(1), b"bcd");
        watch.send(at(5), b"fgh");
        watch.segment(CLIENT, at(8), |segment| segment.fin = true);
        assert_eq!(watch.stream(), "abcdefgh.");
        assert_eq!(watch.tcp.counts.gaps, 0);
        assert_eq!(watch.tcp.counts.repeated_len, 2 + 1 + 1);
    }

    #[test]
    fn what_was_acknowledged_and_never_came_is_a_gap() {
        let mut watch = Watch::default();
        watch.syn(0);
        watch.send(1, b"ab");
        watch.send(6, b"fg");
        watch.segment(SERVER, 1, |segment| segment.ack = Some(8));
        assert_eq!(watch.stream(), "ab");
        watch.now += LATE_MAX;
        watch.segment(SERVER, 1, |segment| segment.ack = Some(8));
        watch.send(10, b"j");
        assert_eq!(watch.stream(), "ab[3]fg");
        for _ in 0..LATE_ACKS_MAX {
            watch.segment(SERVER, 1, |segment| segment.ack = Some(11));
        }
        assert_eq!(watch.stream(), "ab[3]fg[2]j");
        let counts = watch.tcp.counts;
        assert_eq!((counts.gaps, counts.missing_len), (2, 5));
    }

    #[test]
    fn what_is_missing_at_the_end_is_told() {
        let mut watch = Watch::default();
        watch.syn(0);
        watch.send(1, b"ab");
        watch.segment(CLIENT, 7, |segment| segment.fin = true);
        watch.finish();
        assert_eq!(watch.stream(), "ab[4]");
        let mut watch = Watch::default();
        watch.syn(0);
        watch.send(1, b"ab");
        watch.segment(SERVER, 1, |segment| segment.ack = Some(9));
        watch.finish();
        assert_eq!(watch.stream(), "ab[5]");
    }

    #[test]
    fn a_late_segment_fills_its_hole_in_time() {
        let mut watch = Watch::default();
        watch.syn(0);
        watch.send(3, b"cd");
        watch.segment(SERVER, 1, |segment| segment.ack = Some(5));
        watch.send(1, b"ab");
        watch.now += LATE_MAX * 2;
        watch.segment(SERVER, 1, |segment| segment.ack = Some(5));
        assert_eq!(watch.stream(), "abcd");
    }

    #[test]
    fn bytes_cut_off_by_the_capture_are_a_gap_of_their_length() {
        let mut watch = Watch::default();
        watch.syn(0);
        watch.segment(CLIENT, 1, |segment| {
            segment.payload = b"ab";
            segment.missing = 3;
        });
        watch.send(6, b"fg");
        assert_eq!(watch.stream(), "ab[3]fg");
    }

    #[test]
    fn a_whole_segment_takes_the_place_of_one_that_was_cut() {
        let mut watch = Watch::default();
        watch.syn(0);
        watch.segment(CLIENT, 3, |segment| {
            segment.payload = b"c";
            segment.missing = 2;
        });
        watch.send(3, b"cde");
        watch.send(1, b"ab");
        assert_eq!(watch.stream(), "abcde");
    }

    #[test]
    fn holes_are_given_up_when_too_much_waits_or_the_capture_ends() {
        let mut watch = Watch::default();
        watch.syn(0);
        for n in 0..=WAITING_PIECES_MAX as u32 {
            watch.send(10 + 2 * n, b"x");
        }
        assert!(watch.stream().starts_with("[9]x"), "{}", watch.stream());
        let mut watch = Watch::default();
        watch.syn(0);
        watch.send(5, b"ef");
        watch.finish();
        assert_eq!(watch.stream(), "[4]ef");
        let ends = watch
            .events
            .iter()
            .filter(|event| matches!(event.what, What::Closed(_)));
        assert_eq!(ends.count(), 1);
    }

    #[test]
    fn a_connection_seen_from_the_midst_has_its_server_by_the_port() {
        let mut watch = Watch::default();
        watch.tcp.server_ports = vec![8100];
        watch.segment(SERVER, 77, |segment| segment.payload = b"reply");
        let What::Opened {
            client,
            server,
            from_start,
        } = watch.events[0].what
        else {
            panic!("{:?}", watch.events);
        };
        assert_eq!((client, server, from_start), (CLIENT, SERVER, false));
        // What says nothing makes no connection.
        let mut watch = Watch::default();
        watch.segment(CLIENT, 5, |_| {});
        assert!(watch.events.is_empty());
        assert_eq!(watch.tcp.counts.strays, 1);
    }

    #[test]
    fn the_same_ports_again_are_another_connection() {
        let mut watch = Watch::default();
        watch.syn(100);
        watch.send(101, b"a");
        watch.syn(100);
        watch.syn(5000);
        watch.send(5001, b"b");
        let opened = |event: &&TcpEvent| matches!(event.what, What::Opened { .. });
        assert_eq!(watch.events.iter().filter(opened).count(), 2);
        assert_eq!(watch.stream(), "ab");
    }

    #[test]
    fn a_connection_that_goes_on_behind_its_end_is_shown_as_another_one() {
        // A reset that was not the client's, and ports used again with the first packets missing.
        for by_reset in [true, false] {
            let mut watch = Watch::default();
            watch.syn(100);
            watch.send(101, b"a");
            if by_reset {
                watch.segment(CLIENT, 9, |segment| segment.rst = true);
                watch.segment(SERVER, 1, |segment| segment.payload = b"in flight");
            } else {
                watch.segment(CLIENT, 102, |segment| segment.fin = true);
                watch.segment(SERVER, 1, |segment| {
                    segment.syn = true;
                    segment.fin = true;
                });
            }
            watch.send(101, b"a");
            assert_eq!(watch.stream().trim_end_matches('.'), "a");
            watch.send(102, b"bc");
            watch.send(104, b"d");
            assert_eq!(watch.stream().replace('.', ""), "abcd");
            let opened = |event: &&TcpEvent| matches!(event.what, What::Opened { .. });
            assert_eq!(watch.events.iter().filter(opened).count(), 2);
            let late_len = if by_reset { b"in flight".len() } else { 0 };
            assert_eq!(watch.tcp.counts.late_len, late_len as u64);
            assert_eq!(watch.tcp.counts.repeated_len, 1);
            assert_eq!(watch.tcp.order.len(), watch.tcp.connections.len());
        }
    }

    #[test]
    fn what_waited_for_a_segment_sent_again_has_the_time_of_that() {
        let mut watch = Watch::default();
        watch.syn(0);
        watch.send(3, b"cd");
        watch.now += Duration::from_millis(200);
        watch.send(1, b"ab");
        let times = watch
            .events
            .iter()
            .filter(|event| matches!(event.what, What::Data(..)))
            .map(|event| event.time);
        assert_eq!(times.collect::<Vec<_>>(), [watch.now; 2]);
    }

    #[test]
    fn a_packet_captured_twice_counts_once() {
        let mut watch = Watch::default();
        watch.syn(0);
        for _ in 0..2 {
            watch.segment(CLIENT, 1, |segment| {
                segment.payload = b"ab";
                segment.id = 7;
            });
        }
        assert_eq!(watch.stream(), "ab");
        assert_eq!(watch.tcp.counts.duplicates, 1);
        assert_eq!(watch.tcp.counts.repeated_len, 0);
    }

    #[test]
    fn all_connections_together_keep_no_more_than_is_allowed() {
        static BLOCK: [u8; 60_000] = [7; 60_000];
        let mut watch = Watch::default();
        for n in 0..WAITING_TOTAL_MAX / BLOCK.len() + 200 {
            let port = (n % 1000) as u16 + 1;
            // Each behind a hole.
            let seq = 100 + (n / 1000 * BLOCK.len()) as u32;
            if n < 1000 {
                watch.segment(end(1, port), 1, |segment| segment.syn = true);
            }
            watch.segment(end(1, port), seq, |segment| segment.payload = &BLOCK);
            assert!(watch.tcp.waiting_len <= WAITING_TOTAL_MAX + BLOCK.len());
        }
        assert!(watch.tcp.counts.gaps > 0);
        let held = watch.tcp.connections.values().map(Followed::waiting_len);
        assert_eq!(held.sum::<usize>(), watch.tcp.waiting_len);
        watch.finish();
        assert_eq!(watch.tcp.waiting_len, 0);
    }

    #[test]
    fn the_connection_silent_for_longest_goes_when_there_are_too_many() {
        let mut watch = Watch::default();
        for port in 1..=CONNECTIONS_MAX as u16 + 1 {
            watch.segment(end(1, port), 1, |segment| segment.payload = b"x");
        }
        assert_eq!(watch.tcp.counts.forgotten, 1);
        assert_eq!(watch.tcp.connections.len(), CONNECTIONS_MAX);
        assert_eq!(watch.tcp.order.len(), CONNECTIONS_MAX);
        assert!(
            !watch
                .tcp
                .connections
                .contains_key(&ordered(end(1, 1), SERVER))
        );
    }
}
