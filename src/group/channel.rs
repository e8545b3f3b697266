//! Messages of any length between members: cut into bodies, sent by lanes, few at a time.
//!
//! ```text
//!   send ──> lanes ──> window ──> Group ──> daemon ──> Group ──> assembler ──> poll_incoming
//!            signal      1 MB,                          by member and lane
//!            control     64 bodies                      ours open the window again
//!            commit
//!            bulk
//! ```
//!
//! The daemon's socket is one queue, and a daemon drops a client that it has too much for; so what
//! may be on its way is bounded, and known by what comes back: everybody gets what he sent. The
//! next body is always of the first lane that has any, so that an election does not wait behind a
//! large transaction; within a lane messages follow each other. Nor is a sender far ahead of a slow
//! member (`group::credit`).
//!
//! The channel says something to itself through the daemon every second. A daemon that hangs, or a
//! ring that does, is silent and tells nobody; that silence is told, and after
//! [`SILENCE_MAX`] the daemon is given up.
//!
//! **At a new view nothing is left of what was sent before:** what waits, and what was sent in
//! part, is given up ([`crate::group::fragment`]); what had been sent as a whole may arrive in the
//! new view. Whoever sends says again what still holds.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Instant;

use bytes::Bytes;

use super::credit::Credit;
use super::fragment::{
    Assembled, Assembler, Context, Dropped, FRAGMENTS_MAX, FragmentError, Outcome, Seal,
};
use super::message::{self, Message};
use super::{Audience, Body, Event, Group, Lane, MemberId, SendError, View};
use crate::limits::{
    HEARTBEAT_INTERVAL, IN_FLIGHT_BODIES_MAX, IN_FLIGHT_CONTROL_MAX, IN_FLIGHT_LEN_MAX,
    LANE_LEN_MAX, LANE_MESSAGES_MAX, SILENCE_MAX, SILENCE_WARNED,
};
use crate::value::Value;

/// The method of what the channel says to itself.
const HEARTBEAT: &str = "heartbeat";

/// The method by which a member says how much it has had: view and number of bodies to all.
const CREDIT: &str = "credit";

/// For whom a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// All members, us included.
    All,
    /// One member.
    One(MemberId),
}

/// What comes out of the channel.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// As [`Event::Transitional`].
    Transitional,
    /// As [`Event::View`]. Nothing is sent any more that was sent before this was taken.
    View(View),
    /// A message.
    Message(Delivered<Bytes>),
    /// A part of a message that is too long to be put together here.
    Part(Delivered<Part>),
    /// A message that this member was sending in this lane has come to nothing, and no view tells
    /// why: no more parts will come of it, or it was dropped at a bound before it was whole.
    Cut {
        /// Whose
        from: MemberId,
        /// Where
        lane: Lane,
    },
    /// As [`Event::Lost`].
    Lost(String),
}

/// Something with its sender.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivered<T> {
    /// Who sent it: a member of the view.
    pub from: MemberId,
    /// In which lane
    pub lane: Lane,
    /// Whether the others got it, too
    pub audience: Audience,
    /// What it is
    pub what: T,
}

/// A part of a long message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from zero; they come in order.
    pub number: u16,
    /// How many there will be
    pub count: u16,
    /// The bytes
    pub data: Bytes,
}

/// Bytes to be sent that need not be in memory all at once.
pub trait Source: Send {
    /// The next `len` bytes, in any number of parts; `None` if they are not there yet:
    /// then [`Channel::flush`] is to be called when they are.
    fn take(&mut self, len: usize) -> Option<Vec<Bytes>>;
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelError {
    /// We are in no view. What is to be said is said in the next one.
    NoView,
    /// Too much waits in this lane.
    Full,
    /// It needs more than [`FRAGMENTS_MAX`] fragments.
    TooLong,
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoView => "not a member of the group",
            Self::Full => "too much waits to be sent",
            Self::TooLong => "too long to be sent in fragments",
        })
    }
}

impl std::error::Error for ChannelError {}

/// What has been counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages sent as a whole
    pub sent: u64,
    /// Messages received as a whole, our own included
    pub received: u64,
    /// Bytes of bodies sent
    pub sent_len: u64,
    /// Bytes of bodies received
    pub received_len: u64,
    /// Bodies of others that are no members
    pub strangers: u64,
    /// Bodies that are no fragments, or none that we believe
    pub refused: u64,
    /// Fragments that fit nothing
    pub dropped: u64,
    /// Messages of ours that a view has ended before they were sent as a whole
    pub given_up: u64,
}

/// Our end of the group: see the module's page.
///
/// Invariants: `in_flight_len` is the sum of `in_flight`; `waiting_len` of each lane the sum of
/// what its messages still have to send from memory.
pub struct Channel {
    group_name: String,
    seal: Seal,
    me: Option<MemberId>,
    /// Members of the view that we are in.
    members: Vec<MemberId>,
    /// Bytes of a message that fit into one fragment.
    part_len_max: usize,
    lanes: [LaneQueue; 4],
    /// Lengths of what is on its way through the daemon, in its order, and when it was sent.
    in_flight: VecDeque<(usize, Instant)>,
    in_flight_len: usize,
    /// The number of the last fragment. It rises over restarts, too, if the clock does.
    sequence: u64,
    assembler: Assembler,
    /// How far the others are, in the view that we are in.
    credit: Option<Credit>,
    incoming: VecDeque<Incoming>,
    counters: Counters,
    /// Complaints by their kind: how often there was reason since the last one.
    complaints: BTreeMap<&'static str, Complaint>,
    /// When we last heard of ourselves, or could not expect to.
    heard: Instant,
    /// Since when the daemon takes nothing.
    refused_since: Option<Instant>,
    next_heartbeat: Instant,
    /// The message that we send ourselves.
    heartbeat: Bytes,
    warned: bool,
}

#[derive(Debug)]
struct Complaint {
    said: Instant,
    unsaid: u64,
}

/// Messages of one lane.
#[derive(Default)]
struct LaneQueue {
    messages: VecDeque<Outgoing>,
    len: usize,
}

/// A message on its way out.
struct Outgoing {
    to: To,
    what: What,
    /// Bytes of it that are not sent yet.
    left: u64,
    next: u16,
    /// How many fragments it has; zero as long as none is sent.
    count: u16,
    /// Bytes of each but the last; known with `count`.
    part_len: usize,
    /// Data of a fragment that the daemon did not take: they go first.
    held: Option<Vec<Bytes>>,
}

enum What {
    Parts(VecDeque<Bytes>),
    Source(Box<dyn Source>),
}

impl Channel {
    /// For the group of this name. `sequence` is above all that this node has ever used: a clock's
    /// nanoseconds, say.
    pub fn new(group_name: &str, seal: Seal, sequence: u64, now: Instant) -> Self {
        Self {
            group_name: group_name.to_owned(),
            seal,
            me: None,
            members: Vec::new(),
            part_len_max: 1,
            lanes: Default::default(),
            in_flight: VecDeque::new(),
            in_flight_len: 0,
            sequence,
            assembler: Assembler::default(),
            credit: None,
            incoming: VecDeque::new(),
            counters: Counters::default(),
            complaints: BTreeMap::new(),
            heard: now,
            refused_since: None,
            next_heartbeat: now,
            heartbeat: message::encode(HEARTBEAT, Vec::new()).concat().into(),
            warned: false,
        }
    }

    /// Sends a message, see [`message::encode`]. It goes out with the next [`Self::flush`].
    pub fn send(
        &mut self,
        to: To,
        lane: Lane,
        method: &'static str,
        args: Vec<Value>,
    ) -> Result<(), ChannelError> {
        self.send_bytes(to, lane, message::encode(method, args))
    }

    /// Sends a message that is written already.
    pub fn send_bytes(
        &mut self,
        to: To,
        lane: Lane,
        parts: Vec<Bytes>,
    ) -> Result<(), ChannelError> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let queue = &self.lanes[index(lane)];
        if len > LANE_LEN_MAX {
            return Err(ChannelError::TooLong);
        }
        if queue.len + len > LANE_LEN_MAX {
            return Err(ChannelError::Full);
        }
        self.enqueue(to, lane, What::Parts(parts.into()), len as u64)?;
        self.lanes[index(lane)].len += len;
        Ok(())
    }

    /// Sends `len` bytes that are not in memory. Those who get them get them in parts if they are
    /// more than [`crate::limits::WHOLE_MESSAGE_LEN_MAX`].
    pub fn send_source(
        &mut self,
        to: To,
        lane: Lane,
        len: u64,
        source: Box<dyn Source>,
    ) -> Result<(), ChannelError> {
        self.enqueue(to, lane, What::Source(source), len)
    }

    fn enqueue(&mut self, to: To, lane: Lane, what: What, left: u64) -> Result<(), ChannelError> {
        if self.members.is_empty() {
            return Err(ChannelError::NoView);
        }
        if left.div_ceil(self.part_len_max as u64) > FRAGMENTS_MAX as u64 {
            return Err(ChannelError::TooLong);
        }
        let queue = &mut self.lanes[index(lane)];
        if queue.messages.len() >= LANE_MESSAGES_MAX {
            return Err(ChannelError::Full);
        }
        queue.messages.push_back(Outgoing {
            to,
            what,
            left,
            next: 0,
            count: 0,
            part_len: 0,
            held: None,
        });
        Ok(())
    }

    /// Members of the view that we are in; none if we are in none.
    pub fn members(&self) -> &[MemberId] {
        &self.members
    }

    /// Our name there, while we have one.
    pub const fn me(&self) -> Option<&MemberId> {
        self.me.as_ref()
    }

    /// What has been counted.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Bytes that wait in memory to be sent, of all lanes.
    pub fn waiting_len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.len).sum()
    }

    /// Bytes on their way through the daemon.
    pub const fn in_flight_len(&self) -> usize {
        self.in_flight_len
    }

    /// What has come. To be called until there is no more, after [`Self::on_event`] and
    /// [`Self::on_deadline`].
    pub fn poll_incoming(&mut self) -> Option<Incoming> {
        let incoming = self.incoming.pop_front();
        if matches!(incoming, Some(Incoming::View(_))) {
            // Whoever sent something meanwhile did not know of it.
            let signals = std::mem::take(&mut self.lanes[index(Lane::Signal)]);
            self.give_up();
            self.lanes[index(Lane::Signal)] = signals;
        }
        incoming
    }

    /// Whether [`Self::poll_incoming`] has something.
    pub fn has_incoming(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Takes an event of the group. [`Self::flush`] is to follow the last of them.
    pub fn on_event(&mut self, event: Event, group: &dyn Group, now: Instant) {
        match event {
            Event::Transitional => self.incoming.push_back(Incoming::Transitional),
            Event::View(view) => {
                self.me = group.me().cloned();
                self.part_len_max = group.body_len_max() - self.seal.overhead();
                self.on_view(view, now);
            }
            Event::Passed { len, .. } => self.on_passed(len, now),
            Event::Body(body) => self.on_body(&body, now),
            Event::Lost(why) => self.on_lost(why, now),
        }
    }

    fn on_view(&mut self, view: View, now: Instant) {
        self.give_up();
        for (from, lane) in self.assembler.on_view(&view.members) {
            self.incoming.push_back(Incoming::Cut { from, lane });
        }
        self.members.clone_from(&view.members);
        let others = view.members.iter();
        let others = others.filter(|member| self.me.as_ref() != Some(*member));
        self.credit = Some(Credit::new(view.id, others));
        self.hear(now);
        self.incoming.push_back(Incoming::View(view));
    }

    fn on_lost(&mut self, why: String, now: Instant) {
        self.give_up();
        for (from, lane) in self.assembler.on_view(&[]) {
            self.incoming.push_back(Incoming::Cut { from, lane });
        }
        self.members.clear();
        self.credit = None;
        self.me = None;
        self.in_flight.clear();
        self.in_flight_len = 0;
        self.heard = now;
        self.refused_since = None;
        self.warned = false;
        self.incoming.push_back(Incoming::Lost(why));
    }

    /// Gives up what waits, and what was sent in part.
    fn give_up(&mut self) {
        for lane in &mut self.lanes {
            let messages = std::mem::take(&mut lane.messages);
            self.counters.given_up += messages.len() as u64;
            lane.len = 0;
        }
    }

    fn hear(&mut self, now: Instant) {
        self.heard = now;
        if std::mem::take(&mut self.warned) {
            log::info!("group {}: the daemon answers again", self.group_name);
        }
    }

    /// Something of ours has come back.
    fn on_passed(&mut self, len: usize, now: Instant) {
        self.hear(now);
        match self.in_flight.pop_front() {
            Some((sent, _)) => {
                self.in_flight_len -= sent;
                if sent != len {
                    self.complain("strange echoes", now, |name| {
                        format!("group {name}: {len} bytes came back where {sent} were sent")
                    });
                }
            }
            None => self.complain("strange echoes", now, |name| {
                format!("group {name}: {len} bytes came back that were not sent")
            }),
        }
    }

    fn on_body(&mut self, body: &Body, now: Instant) {
        self.counters.received_len += body.data.len() as u64;
        if self.me.as_ref() == Some(&body.from) {
            self.on_passed(body.data.len(), now);
        }
        if !self.members.contains(&body.from) {
            self.counters.strangers += 1;
            return self.complain("strangers", now, |name| {
                let len = body.data.len();
                format!(
                    "group {name}: {len} bytes of {}, which is no member",
                    body.from
                )
            });
        }
        self.count_body(body);
        let context = Context {
            group: &self.group_name,
            from: &body.from,
            lane: body.lane,
            audience: body.audience,
        };
        let fragment = match self.seal.unwrap(context, &body.data) {
            Ok(fragment) => fragment,
            Err(error) => return self.refuse(body, error, now),
        };
        let outcome = self.assembler.receive(body, fragment, now);
        self.on_outcome(body, outcome, now);
    }

    /// Counts a body of a member, and tells it now and then.
    fn count_body(&mut self, body: &Body) {
        let is_me = self.is_me(&body.from);
        let to_all = body.audience == Audience::All;
        let Some(credit) = self.credit.as_mut().filter(|_| to_all) else {
            return;
        };
        if is_me {
            return credit.on_own();
        }
        if let Some(had) = credit.on_other(&body.from) {
            let view = Bytes::copy_from_slice(&credit.view().0);
            let args = vec![Value::Bytes(view), Value::from(had)];
            // If so much waits that this cannot, the next will tell.
            let _ = self.send(To::One(body.from.clone()), Lane::Signal, CREDIT, args);
        }
    }

    /// Takes what a member says of how much it has had, if it is that.
    fn take_credit(&mut self, from: &MemberId, message: &Bytes, now: Instant) {
        if message.len() > CREDIT_LEN_MAX {
            return;
        }
        let Ok(Message { method, args }) = Message::decode(message) else {
            return;
        };
        if method != CREDIT {
            return;
        }
        if let ([Value::Bytes(view), Value::Int(has)], Some(credit)) = (&args[..], &mut self.credit)
            && view[..] == credit.view().0
        {
            credit.on_told(from, u64::try_from(*has).unwrap_or(0), now);
        }
    }

    fn on_outcome(&mut self, body: &Body, outcome: Outcome, now: Instant) {
        let Body {
            from,
            lane,
            audience,
            ..
        } = body;
        if outcome.cut {
            self.incoming.push_back(Incoming::Cut {
                from: from.clone(),
                lane: *lane,
            });
        }
        if let Some(dropped) = outcome.dropped {
            self.drop_fragment(body, dropped, now);
        }
        let (from, lane, audience) = (from.clone(), *lane, *audience);
        if lane == Lane::Signal {
            // Between channels. A heartbeat has told all it can by coming.
            if let Some(Assembled::Whole(what)) = outcome.assembled {
                self.take_credit(&from, &what, now);
            }
            return;
        }
        match outcome.assembled {
            None => {}
            Some(Assembled::Whole(what)) => {
                self.counters.received += 1;
                self.incoming.push_back(Incoming::Message(Delivered {
                    from,
                    lane,
                    audience,
                    what,
                }));
            }
            Some(Assembled::Part {
                number,
                count,
                data,
            }) => {
                self.counters.received += u64::from(number + 1 == count);
                let what = Part {
                    number,
                    count,
                    data,
                };
                self.incoming.push_back(Incoming::Part(Delivered {
                    from,
                    lane,
                    audience,
                    what,
                }));
            }
        }
    }

    fn is_me(&self, member: &MemberId) -> bool {
        self.me.as_ref() == Some(member)
    }

    fn refuse(&mut self, body: &Body, error: FragmentError, now: Instant) {
        self.counters.refused += 1;
        let kind = match error {
            FragmentError::TooShort(_) | FragmentError::Number { .. } => "no fragments",
            FragmentError::Version(_) => "unknown versions",
            FragmentError::Keyed | FragmentError::Plain => "other seals",
            FragmentError::WrongDigest => "wrong digests",
        };
        self.complain(kind, now, |name| {
            format!("group {name}: refused of {}: {error}", body.from)
        });
    }

    fn drop_fragment(&mut self, body: &Body, why: Dropped, now: Instant) {
        self.counters.dropped += 1;
        // The rest of a message that a view has cut.
        log::debug!("group {}: dropped of {}: {why}", self.group_name, body.from);
        if why != Dropped::OutOfOrder {
            self.complain("dropped", now, |name| {
                format!("group {name}: dropped of {}: {why}", body.from)
            });
        }
    }

    /// Says it, if it was not said lately; else counts it.
    fn complain(&mut self, kind: &'static str, now: Instant, text: impl FnOnce(&str) -> String) {
        let unsaid = match self.complaints.get_mut(kind) {
            Some(last) if now < last.said + COMPLAINT_INTERVAL => {
                last.unsaid += 1;
                return;
            }
            Some(last) => std::mem::take(&mut last.unsaid),
            None => 0,
        };
        self.complaints.insert(
            kind,
            Complaint {
                said: now,
                unsaid: 0,
            },
        );
        let text = text(&self.group_name);
        if unsaid == 0 {
            log::warn!("{text}");
        } else {
            log::warn!("{text} ({unsaid} more of this kind since the last)");
        }
    }

    /// Hands to the daemon what may be on its way.
    pub fn flush(&mut self, group: &mut dyn Group, now: Instant) {
        if self.members.is_empty() {
            return;
        }
        for lane in Lane::ALL {
            while self.has_room(lane) && self.send_next(lane, group, now) {}
        }
    }

    /// Whether one more body may be on its way.
    fn has_room(&self, lane: Lane) -> bool {
        let bodies_max = match lane {
            Lane::Signal => IN_FLIGHT_BODIES_MAX + 2 * IN_FLIGHT_CONTROL_MAX,
            Lane::Control => IN_FLIGHT_BODIES_MAX + IN_FLIGHT_CONTROL_MAX,
            Lane::Commit | Lane::Bulk => IN_FLIGHT_BODIES_MAX,
        };
        let is_short = matches!(lane, Lane::Signal | Lane::Control);
        self.in_flight.len() < bodies_max && (is_short || self.in_flight_len < IN_FLIGHT_LEN_MAX)
    }

    /// Sends the next body of a lane. Returns whether there was one, and the daemon took it.
    fn send_next(&mut self, lane: Lane, group: &mut dyn Group, now: Instant) -> bool {
        let queue = &mut self.lanes[index(lane)];
        let Some(message) = queue.messages.front_mut() else {
            return false;
        };
        if message.to == To::All
            && let Some(credit) = &mut self.credit
            && !credit.may_send(now)
        {
            return false;
        }
        if message.count == 0 {
            message.begin(self.part_len_max);
        }
        let (from, audience) = match (&self.me, &message.to) {
            (None, _) => return false,
            (Some(me), To::All) => (me, Audience::All),
            (Some(me), To::One(_)) => (me, Audience::One),
        };
        let (data, len) = match message.held.take() {
            Some(data) => (data, 0),
            None => {
                let len = message.left.min(message.part_len as u64) as usize;
                let Some(data) = message.what.take(len) else {
                    return false;
                };
                message.left -= len as u64;
                (data, len)
            }
        };
        // Sealed anew each time that it is tried: what other lanes have sent meanwhile has later
        // numbers than it had.
        self.sequence += 1;
        let context = Context {
            group: &self.group_name,
            from,
            lane,
            audience,
        };
        let number = (message.next, message.count);
        let body = self.seal.wrap(context, number, self.sequence, data.clone());
        if matches!(message.what, What::Parts(_)) {
            queue.len -= len;
        }
        let body_len = body.iter().map(Bytes::len).sum();
        let sent = match &message.to {
            To::All => group.send_all(lane, &body),
            To::One(member) => group.send_one(member, lane, &body),
        };
        match sent {
            Ok(()) => self.refused_since = None,
            // If we are no member any more, an event that tells is on its way.
            Err(SendError::Busy | SendError::NotJoined) => {
                message.held = Some(data);
                self.refused_since.get_or_insert(now);
                return false;
            }
            Err(error @ (SendError::TooLong | SendError::NoSuchMember)) => {
                log::error!(
                    "group {}: not sent to {:?}: {error}",
                    self.group_name,
                    message.to
                );
                let message = queue.messages.pop_front();
                queue.len -= message.map_or(0, |it| it.left_in_memory());
                return true;
            }
        }
        message.next += 1;
        if message.next == message.count {
            queue.messages.pop_front();
            self.counters.sent += 1;
        }
        self.counters.sent_len += body_len as u64;
        self.in_flight.push_back((body_len, now));
        self.in_flight_len += body_len;
        true
    }

    /// When [`Self::on_deadline`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        if self.members.is_empty() {
            return None;
        }
        let heartbeat = Some(self.next_heartbeat);
        let credit = self.credit.as_ref().and_then(Credit::deadline);
        let assembler = self.assembler.deadline();
        [heartbeat, credit, assembler].into_iter().flatten().min()
    }

    /// Says something to itself, looks how long nothing has come back, and forgets what has not
    /// been continued. [`Self::flush`] is to follow.
    pub fn on_deadline(&mut self, group: &mut dyn Group, now: Instant) {
        for (from, lane) in self.assembler.on_time(now) {
            self.counters.dropped += 1;
            self.complain("not continued", now, |name| {
                format!("group {name}: a message of {from} is not continued; dropped")
            });
            self.incoming.push_back(Incoming::Cut { from, lane });
        }
        let given_up = self.credit.as_mut().map(|credit| credit.on_deadline(now));
        for member in given_up.unwrap_or_default() {
            let group = &self.group_name;
            log::info!("group {group}: {member} is far behind, and not waited for");
        }
        if self.members.is_empty() || now < self.next_heartbeat {
            return;
        }
        self.next_heartbeat = now + HEARTBEAT_INTERVAL;
        let Some(me) = self.me.clone() else { return };
        // What is on its way tells as well, and so does a daemon that takes nothing.
        let waits_since = self.in_flight.front().map(|(_, sent)| *sent);
        let waits_since = waits_since.or(self.refused_since).unwrap_or(now);
        let silence = now.saturating_duration_since(self.heard.max(waits_since));
        if silence >= SILENCE_MAX {
            let why = format!(
                "nothing comes back from the daemon for {} s",
                silence.as_secs()
            );
            return group.reset(&why, now);
        }
        if silence >= SILENCE_WARNED && !self.warned {
            self.warned = true;
            log::warn!(
                "group {}: nothing comes back from the daemon for {} s",
                self.group_name,
                silence.as_secs()
            );
        }
        if self.in_flight.is_empty() && self.lanes[index(Lane::Signal)].messages.is_empty() {
            // A lane that is full says enough.
            let heartbeat = vec![self.heartbeat.clone()];
            let _ = self.send_bytes(To::One(me), Lane::Signal, heartbeat);
        }
    }
}

impl Outgoing {
    /// Decides how it is cut. That it can be was found when it was taken.
    fn begin(&mut self, part_len_max: usize) {
        let count = self.left.div_ceil(part_len_max as u64).max(1);
        self.count = count as u16;
        self.part_len = part_len_max;
    }

    /// What its lane counts of it.
    const fn left_in_memory(&self) -> usize {
        match self.what {
            What::Parts(_) => self.left as usize,
            What::Source(_) => 0,
        }
    }
}

impl What {
    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Option<Vec<Bytes>> {
        let parts = match self {
            Self::Source(source) => return source.take(len),
            Self::Parts(parts) => parts,
        };
        let mut left = len;
        let mut taken = Vec::new();
        while left > 0 {
            let part = parts.front_mut()?;
            if part.len() <= left {
                left -= part.len();
                taken.extend(parts.pop_front());
            } else {
                taken.push(part.split_to(left));
                left = 0;
            }
        }
        Some(taken)
    }
}

const fn index(lane: Lane) -> usize {
    lane as usize
}

/// Bytes that a message about credit has at most.
const CREDIT_LEN_MAX: usize = 100;

/// Time between two complaints of the same kind.
const COMPLAINT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::group::ViewId;
    use crate::limits::WHOLE_MESSAGE_LEN_MAX;

    /// A daemon with all its members: bodies are in one order, and everybody takes them when he
    /// likes.
    #[derive(Default)]
    struct Daemon {
        /// What each member has not taken yet.
        queues: BTreeMap<MemberId, VecDeque<Event>>,
        views: u8,
    }

    impl Daemon {
        fn everybody(&mut self, event: &Event) {
            for queue in self.queues.values_mut() {
                queue.push_back(event.clone());
            }
        }

        fn change_view(&mut self) {
            self.views += 1;
            let members: Vec<MemberId> = self.queues.keys().cloned().collect();
            self.everybody(&Event::View(View {
                id: ViewId([self.views; 20]),
                members: members.clone(),
                together: members,
                cause: "test",
            }));
        }
    }

    struct End {
        me: MemberId,
        daemon: Rc<RefCell<Daemon>>,
        body_len_max: usize,
        busy: bool,
        resets: Vec<String>,
    }

    impl Group for End {
        fn join(&mut self, _now: Instant) {}
        fn leave(&mut self, _now: Instant) {}
        fn me(&self) -> Option<&MemberId> {
            Some(&self.me)
        }
        fn body_len_max(&self) -> usize {
            self.body_len_max
        }
        fn send_all(&mut self, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
            if self.busy {
                return Err(SendError::Busy);
            }
            let data: Bytes = parts.concat().into();
            assert!(data.len() <= self.body_len_max);
            let body = Body {
                from: self.me.clone(),
                lane,
                audience: Audience::All,
                data,
            };
            self.daemon.borrow_mut().everybody(&Event::Body(body));
            Ok(())
        }
        fn send_one(
            &mut self,
            to: &MemberId,
            lane: Lane,
            parts: &[Bytes],
        ) -> Result<(), SendError> {
            if self.busy {
                return Err(SendError::Busy);
            }
            let data: Bytes = parts.concat().into();
            let len = data.len();
            let body = Body {
                from: self.me.clone(),
                lane,
                audience: Audience::One,
                data,
            };
            let queues = &mut self.daemon.borrow_mut().queues;
            if let Some(queue) = queues.get_mut(to) {
                queue.push_back(Event::Body(body));
            }
            if *to != self.me
                && let Some(queue) = queues.get_mut(&self.me)
            {
                queue.push_back(Event::Passed { lane, len });
            }
            Ok(())
        }
        fn poll_event(&mut self) -> Option<Event> {
            self.daemon
                .borrow_mut()
                .queues
                .get_mut(&self.me)?
                .pop_front()
        }
        fn deadline(&self) -> Option<Instant> {
            None
        }
        fn on_deadline(&mut self, _now: Instant) {}
        fn reset(&mut self, why: &str, _now: Instant) {
            self.resets.push(why.to_owned());
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    struct Node {
        end: End,
        channel: Channel,
    }

    impl Node {
        /// Takes all that there is for it.
        fn take(&mut self, now: Instant) -> Vec<Incoming> {
            let mut all = Vec::new();
            while self.step(now, &mut all) {}
            all
        }

        fn step(&mut self, now: Instant, all: &mut Vec<Incoming>) -> bool {
            self.channel.flush(&mut self.end, now);
            let event = self.end.poll_event();
            let some = event.is_some();
            if let Some(event) = event {
                self.channel.on_event(event, &self.end, now);
                all.extend(std::iter::from_fn(|| self.channel.poll_incoming()));
            }
            some
        }
    }

    fn nodes(names: &[&str], seal: &Seal, body_len_max: usize, now: Instant) -> Vec<Node> {
        let daemon = Rc::new(RefCell::new(Daemon::default()));
        let nodes: Vec<Node> = names
            .iter()
            .map(|name| {
                let me = MemberId::new(name);
                daemon
                    .borrow_mut()
                    .queues
                    .insert(me.clone(), VecDeque::new());
                let daemon = daemon.clone();
                Node {
                    end: End {
                        me,
                        daemon,
                        body_len_max,
                        busy: false,
                        resets: Vec::new(),
                    },
                    channel: Channel::new("test", seal.clone(), 1, now),
                }
            })
            .collect();
        daemon.borrow_mut().change_view();
        nodes
    }

    fn texts(incoming: &[Incoming]) -> Vec<Bytes> {
        let whole = incoming.iter().filter_map(|incoming| match incoming {
            Incoming::Message(message) => Some(message.what.clone()),
            _ => None,
        });
        whole.collect()
    }

    /// A small generator; see Marsaglia's xorshift.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }
    }

    #[test]
    fn an_election_overtakes_a_large_transaction() {
        let now = start();
        let mut nodes = nodes(&["a", "b"], &Seal::Plain, 100, now);
        let [a, b] = &mut nodes[..] else { panic!() };
        a.take(now);
        b.take(now);
        let large = vec![Bytes::from(vec![1; 95 * 200])];
        let sent = a.channel.send_bytes(To::All, Lane::Commit, large.clone());
        assert_eq!(sent, Ok(()));
        a.channel.flush(&mut a.end, now);
        // So much may be on its way, and no more.
        assert_eq!(
            a.end.daemon.borrow().queues[&b.end.me].len(),
            IN_FLIGHT_BODIES_MAX
        );
        let small = vec![Bytes::from_static(b"vote")];
        let sent = a
            .channel
            .send_bytes(To::One(b.end.me.clone()), Lane::Control, small.clone());
        assert_eq!(sent, Ok(()));
        a.take(now);
        assert_eq!(a.channel.in_flight_len(), 0);
        assert_eq!(a.channel.waiting_len(), 0);
        let got = texts(&b.take(now));
        assert_eq!(got, [small.concat(), large.concat()]);
    }

    #[test]
    fn what_is_not_sent_as_a_whole_ends_with_the_view() {
        let now = start();
        let mut nodes = nodes(&["a", "b"], &Seal::Plain, 100, now);
        let [a, b] = &mut nodes[..] else { panic!() };
        a.take(now);
        b.take(now);
        let large = vec![Bytes::from(vec![1; 95 * 200])];
        let sent = a.channel.send_bytes(To::All, Lane::Commit, large);
        assert_eq!(sent, Ok(()));
        a.channel.flush(&mut a.end, now);
        a.end.daemon.borrow_mut().change_view();
        a.take(now);
        assert_eq!(a.channel.counters().given_up, 1);
        let next = vec![Bytes::from(vec![2; 95 * 200])];
        let sent = a.channel.send_bytes(To::All, Lane::Commit, next.clone());
        assert_eq!(sent, Ok(()));
        a.take(now);
        assert!(
            texts(&b.take(now)) == [next.concat()],
            "or spliced, or lost"
        );
        assert_eq!(b.channel.assembler.len(), 0);
    }

    #[test]
    fn a_message_that_is_too_long_to_be_kept_comes_in_parts() {
        struct Zeros;
        impl Source for Zeros {
            fn take(&mut self, len: usize) -> Option<Vec<Bytes>> {
                Some(vec![Bytes::from(vec![0; len])])
            }
        }
        let now = start();
        let mut nodes = nodes(&["a", "b"], &Seal::keyed(b"secret"), 100_000, now);
        let [a, b] = &mut nodes[..] else { panic!() };
        a.take(now);
        b.take(now);
        let len = 5 * WHOLE_MESSAGE_LEN_MAX as u64 + 17;
        let sent = a
            .channel
            .send_source(To::All, Lane::Bulk, len, Box::new(Zeros));
        assert_eq!(sent, Ok(()));
        a.channel.flush(&mut a.end, now);
        let mut got = 0;
        let mut last = false;
        let mut all = Vec::new();
        while a.step(now, &mut Vec::new()) || b.step(now, &mut all) {
            for incoming in all.drain(..) {
                let Incoming::Part(part) = incoming else {
                    continue;
                };
                assert!(!last);
                got += part.what.data.len() as u64;
                last = part.what.number + 1 == part.what.count;
            }
            assert_eq!(b.channel.assembler.len(), 0);
        }
        assert!(last);
        assert_eq!(got, len);
    }

    #[test]
    fn who_has_no_key_is_not_heard() {
        let now = start();
        let mut nodes = nodes(&["a", "b", "c"], &Seal::keyed(b"secret"), 100, now);
        nodes[1].channel.seal = Seal::keyed(b"another");
        nodes[2].channel.seal = Seal::Plain;
        for node in &mut nodes {
            node.take(now);
        }
        for node in &mut nodes {
            let text = vec![Bytes::from_static(b"text")];
            assert_eq!(
                node.channel.send_bytes(To::All, Lane::Control, text),
                Ok(())
            );
            node.channel.flush(&mut node.end, now);
        }
        for node in &mut nodes {
            assert_eq!(texts(&node.take(now)), ["text"], "its own");
            assert_eq!(node.channel.counters().refused, 2);
        }
        // Nor is who repeats what a member has said.
        let copy = Body {
            from: nodes[0].end.me.clone(),
            lane: Lane::Control,
            audience: Audience::All,
            data: {
                let context = Context {
                    group: "test",
                    from: &nodes[0].end.me,
                    lane: Lane::Control,
                    audience: Audience::All,
                };
                let text = vec![Bytes::from_static(b"text")];
                let body = nodes[0].channel.seal.wrap(context, (0, 1), 2, text);
                body.concat().into()
            },
        };
        let node = &mut nodes[0];
        let copy = Event::Body(Body {
            from: node.end.me.clone(),
            ..copy
        });
        node.channel.on_event(copy, &node.end, now);
        assert_eq!(node.channel.poll_incoming(), None);
        assert_eq!(node.channel.counters().dropped, 1);
    }

    #[test]
    fn a_daemon_that_is_silent_is_told_of_and_then_given_up() {
        let now = start();
        let mut nodes = nodes(&["a"], &Seal::Plain, 100, now);
        let [a] = &mut nodes[..] else { panic!() };
        a.take(now);
        for second in 0..60 {
            let now = now + Duration::from_secs(second);
            a.channel.on_deadline(&mut a.end, now);
            a.channel.flush(&mut a.end, now);
            assert_eq!(a.take(now), [], "a heartbeat is nobody else's business");
        }
        assert_eq!(a.end.resets, [""; 0]);
        let silent = now + Duration::from_secs(60);
        for second in 0..=SILENCE_MAX.as_secs() {
            assert_eq!(a.end.resets, [""; 0]);
            let now = silent + Duration::from_secs(second);
            a.channel.on_deadline(&mut a.end, now);
            a.channel.flush(&mut a.end, now);
            assert_eq!(a.channel.warned, second >= SILENCE_WARNED.as_secs());
        }
        assert_eq!(a.end.resets.len(), 1);
    }

    #[test]
    fn a_daemon_that_takes_nothing_is_given_up_too() {
        let now = start();
        let mut nodes = nodes(&["a"], &Seal::Plain, 100, now);
        let [a] = &mut nodes[..] else { panic!() };
        a.take(now);
        a.end.busy = true;
        for second in 0..=SILENCE_MAX.as_secs() {
            assert_eq!(a.end.resets, [""; 0]);
            let now = now + Duration::from_secs(second);
            a.channel.on_deadline(&mut a.end, now);
            a.channel.flush(&mut a.end, now);
            assert_eq!(a.channel.lanes[index(Lane::Signal)].messages.len(), 1);
            assert_eq!(a.channel.warned, second >= SILENCE_WARNED.as_secs());
        }
        assert_eq!(a.end.resets.len(), 1);
    }

    #[test]
    fn what_was_said_before_the_view_was_known_is_not_sent_in_it() {
        let now = start();
        let mut nodes = nodes(&["a", "b"], &Seal::Plain, 100, now);
        let [a, b] = &mut nodes[..] else { panic!() };
        b.take(now);
        let text = |text: &'static [u8]| vec![Bytes::from_static(text)];
        let sent = |a: &mut Node, bytes| {
            let sent = a.channel.send_bytes(To::All, Lane::Control, text(bytes));
            assert_eq!(sent, Ok(()));
        };
        // The view is there, and whoever sends does not know yet.
        let event = a.end.poll_event().unwrap();
        a.channel.on_event(event, &a.end, now);
        sent(a, b"before");
        assert!(matches!(a.channel.poll_incoming(), Some(Incoming::View(_))));
        sent(a, b"behind");
        a.take(now);
        assert_eq!(texts(&b.take(now)), ["behind"]);
    }

    #[test]
    fn a_message_that_cannot_be_numbered_is_refused_at_once() {
        struct Nothing;
        impl Source for Nothing {
            fn take(&mut self, _len: usize) -> Option<Vec<Bytes>> {
                None
            }
        }
        let now = start();
        let mut nodes = nodes(&["a"], &Seal::Plain, 105, now);
        let [a] = &mut nodes[..] else { panic!() };
        a.take(now);
        let len_max = 100 * FRAGMENTS_MAX as u64;
        for (len, expected) in [
            (len_max, Ok(())),
            (len_max + 1, Err(ChannelError::TooLong)),
            (u64::MAX, Err(ChannelError::TooLong)),
        ] {
            let source = Box::new(Nothing);
            let sent = a.channel.send_source(To::All, Lane::Bulk, len, source);
            assert_eq!(sent, expected, "{len}");
        }
    }

    /// Messages say who sent them in which lane and as which. Whatever views, refusals and delays
    /// there are, they come unharmed and in order, and all of them in the last view.
    #[test]
    fn messages_come_whole_and_in_order_through_any_weather() {
        for seed in 1..=300 {
            let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
            let now = start();
            let seal = if seed % 2 == 0 {
                Seal::Plain
            } else {
                Seal::keyed(b"secret")
            };
            let mut nodes = nodes(&["a", "b", "c"], &seal, 60 + seed as usize % 50, now);
            let mut sent = 0_u32;
            let mut last: BTreeMap<(MemberId, MemberId, Lane), u32> = BTreeMap::new();
            for step in 0..600 {
                let storm = step < 400;
                let at = random.below(3) as usize;
                let mut all = Vec::new();
                match random.below(12) {
                    0 if storm => nodes[0].end.daemon.borrow_mut().change_view(),
                    1 if storm => nodes[at].end.busy ^= true,
                    2..4 if storm || step < 450 => {
                        let lane = Lane::ALL[1 + random.below(3) as usize];
                        sent += 1;
                        let len = random.below(2000) as usize;
                        let mut text = sent.to_be_bytes().to_vec();
                        text.extend(vec![sent as u8; len]);
                        let text = Bytes::from(text);
                        let cut = random.below(text.len() as u64 + 1) as usize;
                        let parts = vec![text.slice(..cut), text.slice(cut..)];
                        // In no view yet, it may be refused.
                        let _ = nodes[at].channel.send_bytes(To::All, lane, parts);
                    }
                    _ => {
                        nodes[at].step(now, &mut all);
                    }
                }
                if step == 400 {
                    nodes.iter_mut().for_each(|node| node.end.busy = false);
                    nodes[0].end.daemon.borrow_mut().change_view();
                }
                let me = nodes[at].end.me.clone();
                check(&me, &all, &mut last);
            }
            loop {
                let mut more = false;
                for node in &mut nodes {
                    let mut all = Vec::new();
                    more |= node.step(now, &mut all);
                    let me = node.end.me.clone();
                    check(&me, &all, &mut last);
                }
                if !more {
                    break;
                }
            }
            for node in &nodes {
                assert_eq!(node.channel.in_flight_len(), 0, "seed {seed}");
                assert_eq!(node.channel.waiting_len(), 0, "seed {seed}");
                // What a sender has begun when the view had changed already, and given up then.
                assert!(node.channel.assembler.len() < 3 * 3 * 2100, "seed {seed}");
            }
            // Everybody has seen the same to the end.
            for ((at, from, lane), number) in &last {
                let other = (from.clone(), from.clone(), *lane);
                assert_eq!(
                    Some(number),
                    last.get(&other),
                    "seed {seed}: {at} {from} {lane:?}"
                );
            }
        }
    }

    fn check(
        me: &MemberId,
        incoming: &[Incoming],
        last: &mut BTreeMap<(MemberId, MemberId, Lane), u32>,
    ) {
        for incoming in incoming {
            let Incoming::Message(message) = incoming else {
                continue;
            };
            let (number, rest) = message.what.split_at(4);
            let number = u32::from_be_bytes(number.try_into().unwrap());
            assert!(rest.iter().all(|byte| *byte == number as u8), "spliced");
            let key = (me.clone(), message.from.clone(), message.lane);
            let before = last.insert(key, number);
            assert!(before.is_none_or(|before| before < number), "out of order");
        }
    }
}
