//! One connection between two nodes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::codec::{ALIVE, Expected, REQUESTS};
use super::frame::{HEAD_LEN, Head, Reader, Writer};
use super::handshake::{
    self, GOODBYE, HANDSHAKE_LEN_MAX, HELLO, Keyed, Nonce, Options, PREFACE_LEN, PROOF, Reason,
    Side,
};
use super::{Answer, PeerError, Refusal, RefusalKind, Request};
use crate::ids::NodeId;
use crate::limits::{
    PEER_ALIVE_INTERVAL, PEER_ANSWERS_LEN_MAX, PEER_HANDSHAKE_TIMEOUT, PEER_IDLE_ACCEPTED_MAX,
    PEER_IDLE_MAX, PEER_REQUEST_LEN_MAX, PEER_REQUESTS_MAX, PEER_SILENCE_MAX, PEER_STUCK_MAX,
};
use crate::out_queue::OutQueue;

/// What happens on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Both sides know each other. Requests may be sent from now on.
    Ready {
        /// Who the other is.
        node: NodeId,
    },
    /// The other asks. To be answered by [`Session::answer`].
    Request {
        /// Which one
        id: u64,
        /// What
        request: Request,
    },
    /// The other answers.
    Answer {
        /// The request's number
        id: u64,
        /// What
        answer: Answer,
    },
    /// It is over, and this is the last event. What [`Session::output`] still has may be sent.
    Closed(PeerError),
}

/// One end of a connection between two nodes.
///
/// [`Self::receive`] what the socket has while [`Self::wants_input`], and then [`Self::poll_event`]
/// until there is no more; the same after [`Self::answer`], [`Self::on_written`] and
/// [`Self::on_deadline`]. [`Self::output`] is to be sent, and may have more when that is done.
#[derive(Debug)]
pub struct Session {
    side: Side,
    options: Options,
    state: State,
    /// Preface and hello of ours.
    hello: Vec<u8>,
    reader: Reader,
    writer: Writer,
    node: Option<NodeId>,
    events: VecDeque<Event>,
    /// Requests of ours without an answer.
    asked: BTreeMap<u64, Expected>,
    /// Requests of the other's without an answer.
    open: BTreeMap<u64, Expected>,
    /// A request that waits for some of them.
    held: Option<(u64, Request)>,
    /// The number of the last request.
    last_id: u64,
    times: Times,
    /// How long the other may say nothing though it was asked.
    silence_max: Duration,
}

#[derive(Debug)]
enum State {
    /// Nothing is known of the other.
    Hello,
    /// It is to show that it has the key.
    Proof(Keyed),
    Open,
    /// Nothing is heard any more.
    Closed,
}

/// When something was last.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The connection began.
    begun: Instant,
    /// Something came, or something was asked for when nothing had been.
    heard: Instant,
    /// Something was sent, or something was asked of us when nothing had been.
    said: Instant,
    /// Something of what waits was taken, or something waits since then.
    taken: Instant,
    /// There was a request or an answer.
    used: Instant,
}

impl Session {
    /// We have connected. `nonce` is new for each session.
    pub fn connect(options: &Options, nonce: &Nonce, now: Instant) -> Self {
        let mut session = Self::new(Side::Connects, options, nonce, now);
        session.writer.push_bytes(&session.hello);
        session
    }

    /// We are connected to. `nonce` is new for each session.
    pub fn accept(options: &Options, nonce: &Nonce, now: Instant) -> Self {
        Self::new(Side::Answers, options, nonce, now)
    }

    fn new(side: Side, options: &Options, nonce: &Nonce, now: Instant) -> Self {
        Self {
            side,
            options: options.clone(),
            state: State::Hello,
            hello: handshake::hello(options, nonce),
            reader: Reader::default(),
            writer: Writer::default(),
            node: None,
            events: VecDeque::new(),
            asked: BTreeMap::new(),
            open: BTreeMap::new(),
            held: None,
            last_id: 0,
            times: Times {
                begun: now,
                heard: now,
                said: now,
                taken: now,
                used: now,
            },
            silence_max: PEER_SILENCE_MAX,
        }
    }

    /// Gives the other up earlier than usual if it is asked and says nothing.
    #[must_use]
    pub const fn with_silence_max(mut self, silence_max: Duration) -> Self {
        self.silence_max = silence_max;
        self
    }

    /// Who the other is, as soon as that is certain.
    pub const fn node(&self) -> Option<NodeId> {
        match self.state {
            State::Open => self.node,
            _ => None,
        }
    }

    /// Whether a request may be sent now.
    pub fn has_room(&self) -> bool {
        matches!(self.state, State::Open)
            && self.side == Side::Connects
            && self.asked.len() < PEER_REQUESTS_MAX
    }

    /// Asks. The number of the request is in its answer. `None` if there is no room, or if the
    /// request asks for more than there may be in an answer.
    pub fn request(&mut self, request: &Request, now: Instant) -> Option<u64> {
        if !self.has_room() || request.check().is_err() {
            return None;
        }
        if self.asked.is_empty() {
            self.times.heard = now;
        }
        self.last_id += 1;
        self.asked.insert(self.last_id, request.expected());
        self.times.used = now;
        let (kind, payload) = request.encode();
        self.push(kind, self.last_id, payload, now);
        Some(self.last_id)
    }

    /// Answers a request. Nothing happens if it has been answered, or the other has gone.
    pub fn answer(&mut self, id: u64, answer: &Answer, now: Instant) {
        let Some(Expected { len_max, .. }) = self.open.remove(&id) else {
            return;
        };
        let (kind, payload) = answer.encode();
        let len: usize = payload.iter().map(Bytes::len).sum();
        let is_refusal = matches!(answer, Answer::Refused(_));
        self.times.used = now;
        if !is_refusal && len > len_max {
            // The other would have to take it for a damage.
            return self.refuse(id, RefusalKind::Failed, "the answer is too long", now);
        }
        if matches!(answer, Answer::Piece(_)) {
            self.wait_for_socket(now);
            self.writer.push_bulk(kind, id, payload);
        } else {
            self.push(kind, id, payload, now);
        }
    }

    /// Whether [`Self::receive`] may be called: what the socket has shall wait there else.
    pub fn wants_input(&self) -> bool {
        !self.is_closed() && self.held.is_none()
    }

    /// Takes what came.
    pub fn receive(&mut self, data: &[u8], now: Instant) {
        if self.is_closed() {
            return;
        }
        self.times.heard = now;
        self.reader.receive(data);
        self.take_frames(now);
    }

    /// What has happened. To be called until there is no more.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether there is something to be polled.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// What is to be sent.
    pub fn output(&mut self) -> &mut OutQueue {
        self.writer.output()
    }

    /// Whether anything is to be sent.
    pub fn has_output(&self) -> bool {
        !self.writer.is_empty()
    }

    /// Some of the output was sent.
    pub fn on_written(&mut self, now: Instant) {
        self.times.taken = now;
        self.times.said = now;
        self.times.used = now;
        // There may be room for another request.
        self.take_frames(now);
    }

    /// Whether it is over.
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// When [`Self::on_deadline`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let times = &self.times;
        let own = match (&self.state, self.side) {
            (State::Closed, _) => return None,
            (State::Hello | State::Proof(_), _) => times.begun + PEER_HANDSHAKE_TIMEOUT,
            (State::Open, Side::Connects) if self.asked.is_empty() => times.used + PEER_IDLE_MAX,
            (State::Open, Side::Connects) => times.heard + self.silence_max,
            (State::Open, Side::Answers) if self.has_output() => times.taken + PEER_STUCK_MAX,
            (State::Open, Side::Answers) if self.open.is_empty() => {
                times.used + PEER_IDLE_ACCEPTED_MAX
            }
            (State::Open, Side::Answers) => times.said + PEER_ALIVE_INTERVAL,
        };
        Some(own)
    }

    /// Does what is due.
    pub fn on_deadline(&mut self, now: Instant) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match (&self.state, self.side) {
            (State::Closed, _) => {}
            (State::Hello | State::Proof(_), _) => self.close(PeerError::Late),
            (State::Open, Side::Connects) if self.asked.is_empty() => self.close(PeerError::Idle),
            (State::Open, Side::Connects) => self.close(PeerError::Silent),
            (State::Open, Side::Answers) if self.has_output() => self.close(PeerError::Stuck),
            (State::Open, Side::Answers) if self.open.is_empty() => self.close(PeerError::Idle),
            (State::Open, Side::Answers) => {
                self.push(ALIVE, 0, Vec::new(), now);
                self.times.said = now;
            }
        }
    }

    fn push(&mut self, kind: u8, id: u64, payload: Vec<Bytes>, now: Instant) {
        self.wait_for_socket(now);
        self.writer.push(kind, id, payload);
    }

    /// From now on something waits.
    fn wait_for_socket(&mut self, now: Instant) {
        if !self.has_output() {
            self.times.taken = now;
        }
    }

    fn refuse(&mut self, id: u64, kind: RefusalKind, text: &str, now: Instant) {
        let refusal = Answer::Refused(Refusal::new(kind, text));
        let (kind, payload) = refusal.encode();
        self.push(kind, id, payload, now);
    }

    fn close(&mut self, error: PeerError) {
        self.state = State::Closed;
        self.held = None;
        self.asked.clear();
        self.open.clear();
        self.events.push_back(Event::Closed(error));
    }

    /// Takes all that has come as a whole, as far as there is room for it.
    fn take_frames(&mut self, now: Instant) {
        let result = loop {
            let more = match self.state {
                State::Hello | State::Proof(_) => self.go_on_with_handshake(now),
                State::Open => self.take_frame(now),
                State::Closed => Ok(false),
            };
            match more {
                Ok(true) => {}
                result => break result,
            }
        };
        if let Err(error) = result {
            self.close(error);
        }
    }

    /// The next frame. Whether there was one.
    fn take_frame(&mut self, now: Instant) -> Result<bool, PeerError> {
        if let Some((id, request)) = self.held.take()
            && !self.on_request(id, request, now)
        {
            return Ok(false);
        }
        let Some(head) = self.reader.head()? else {
            return Ok(false);
        };
        let len_max = self.len_max(head)?;
        let Head { kind, id, len } = head;
        if len > len_max {
            return Err(PeerError::TooLong { kind, len, len_max });
        }
        let Some(payload) = self.reader.take()? else {
            return Ok(false);
        };
        if kind == ALIVE {
            return Ok(true);
        }
        self.times.used = now;
        if self.side == Side::Connects {
            self.asked.remove(&id);
            let answer = Answer::decode(kind, payload)?;
            self.events.push_back(Event::Answer { id, answer });
            return Ok(true);
        }
        if id <= self.last_id {
            return Err(PeerError::Number(id));
        }
        self.last_id = id;
        match Request::decode(kind, &payload)? {
            Some(request) => {
                self.check_sender(&request)?;
                Ok(self.on_request(id, request, now))
            }
            // It is held up as others are, by what it leads to.
            None => {
                self.refuse(id, RefusalKind::Unsupported, "an unknown request", now);
                Ok(true)
            }
        }
    }

    /// How long the payload of a frame may be, if it may come at all.
    fn len_max(&self, head: Head) -> Result<usize, PeerError> {
        match self.side {
            Side::Connects if head.kind == ALIVE => Ok(0),
            Side::Connects => {
                let expected = self.asked.get(&head.id);
                let expected = expected.ok_or(PeerError::Unasked(head.id))?;
                expected.len_max_of(head.kind)
            }
            Side::Answers if REQUESTS.contains(&head.kind) => Ok(PEER_REQUEST_LEN_MAX),
            Side::Answers => Err(PeerError::Kind(head.kind)),
        }
    }

    /// A request that may have to wait. Whether it did not.
    fn on_request(&mut self, id: u64, request: Request, now: Instant) -> bool {
        let count = self.open.len() + self.writer.count();
        let expected = request.expected();
        let open: usize = self.open.values().map(|it| it.len_usual).sum();
        let len = open + self.writer.len() + expected.len_usual;
        let is_only = count == 0;
        if !is_only && (count >= PEER_REQUESTS_MAX || len > PEER_ANSWERS_LEN_MAX) {
            self.held = Some((id, request));
            return false;
        }
        if self.open.is_empty() {
            self.times.said = now;
        }
        self.open.insert(id, expected);
        if matches!(request, Request::Ping) {
            self.answer(id, &Answer::Done, now);
        } else {
            self.events.push_back(Event::Request { id, request });
        }
        true
    }

    fn check_sender(&self, request: &Request) -> Result<(), PeerError> {
        match request {
            Request::Fetch(fetch) if Some(fetch.sender.node) != self.node => {
                Err(PeerError::Sender(fetch.sender.node))
            }
            _ => Ok(()),
        }
    }
}

/// The handshake.
impl Session {
    /// Takes the next part of it. Whether it has come.
    fn go_on_with_handshake(&mut self, now: Instant) -> Result<bool, PeerError> {
        let is_hello = matches!(self.state, State::Hello);
        let result = match is_hello {
            true => self.take_hello(now),
            false => self.take_proof(now),
        };
        if let Err(error) = &result
            && !matches!(
                error,
                PeerError::NoPeer | PeerError::Encrypted | PeerError::Refused(_)
            )
        {
            self.say_goodbye(error, is_hello);
        }
        result
    }

    /// Tells the other why, if it is a node.
    fn say_goodbye(&mut self, error: &PeerError, is_hello: bool) {
        if self.side == Side::Answers && is_hello {
            self.writer.push_bytes(&handshake::preface());
        }
        let goodbye = handshake::frame(GOODBYE, &[Reason::of(error) as u8]);
        self.writer.push_bytes(&goodbye);
    }

    fn take_hello(&mut self, now: Instant) -> Result<bool, PeerError> {
        let bytes = self.reader.bytes();
        if !handshake::check_preface(bytes)? {
            return Ok(false);
        }
        let mut behind = Reader::default();
        behind.receive(&bytes[PREFACE_LEN..bytes.len().min(PREFACE_LEN + HEAD_LEN)]);
        let Some(head) = behind.head()? else {
            return Ok(false);
        };
        check_handshake(head, HELLO)?;
        let len = PREFACE_LEN + HEAD_LEN + head.len;
        if self.reader.bytes().len() < len {
            return Ok(false);
        }
        let theirs = self.reader.take_bytes(len);
        let payload = &theirs[PREFACE_LEN + HEAD_LEN..];
        if head.kind == GOODBYE {
            return Err(handshake::read_goodbye(payload));
        }
        self.node = Some(handshake::check_hello(&self.options, payload)?);
        if self.side == Side::Answers {
            self.writer.push_bytes(&self.hello);
        }
        let (connects, answers) = match self.side {
            Side::Connects => (&self.hello[..], &theirs[..]),
            Side::Answers => (&theirs[..], &self.hello[..]),
        };
        let Some(key) = &self.options.key else {
            self.open(now);
            return Ok(true);
        };
        let keyed = Keyed::new(key, connects, answers);
        if self.side == Side::Answers {
            let proof = handshake::frame(PROOF, &keyed.proof(self.side));
            self.writer.push_bytes(&proof);
        }
        self.state = State::Proof(keyed);
        Ok(true)
    }

    fn take_proof(&mut self, now: Instant) -> Result<bool, PeerError> {
        let State::Proof(keyed) = &self.state else {
            return Ok(false);
        };
        let Some(head) = self.reader.head()? else {
            return Ok(false);
        };
        check_handshake(head, PROOF)?;
        let Some(payload) = self.reader.take()? else {
            return Ok(false);
        };
        if head.kind == GOODBYE {
            return Err(handshake::read_goodbye(&payload));
        }
        keyed.check_proof(self.side.other(), &payload)?;
        if self.side == Side::Connects {
            let proof = handshake::frame(PROOF, &keyed.proof(self.side));
            self.writer.push_bytes(&proof);
        }
        self.reader.set_seal(keyed.seal(self.side.other()));
        self.writer.set_seal(keyed.seal(self.side));
        self.open(now);
        Ok(true)
    }

    fn open(&mut self, now: Instant) {
        self.state = State::Open;
        self.times.used = now;
        if let Some(node) = self.node {
            self.events.push_back(Event::Ready { node });
        }
    }
}

/// A frame of the handshake is of this kind, or a goodbye.
const fn check_handshake(head: Head, expected: u8) -> Result<(), PeerError> {
    let Head { kind, id, len } = head;
    if kind != expected && kind != GOODBYE {
        return Err(PeerError::Kind(kind));
    }
    if id != 0 {
        return Err(PeerError::Number(id));
    }
    if len > HANDSHAKE_LEN_MAX {
        let len_max = HANDSHAKE_LEN_MAX;
        return Err(PeerError::TooLong { kind, len, len_max });
    }
    Ok(())
}
