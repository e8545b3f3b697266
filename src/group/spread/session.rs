//! A client of a Spread daemon: connects, joins one group, and does so again when that ends.
//!
//! ```text
//!              join                on_connected           list        accepted
//!   Idle ──────────► Connecting ───────────────► AskedList ──► AskedIn ──────► Connected
//!    ▲                 ▲    │ too late, refused     │            │   (JOIN)      │  │ leave
//!    │          in time│    ▼                       ▼            ▼               │  ▼
//!    │              Waiting ◄────── on_closed ─── Closing ◄──────────────────────┘ Leaving
//!    └──────────────────────────────────────────────┴─────────────────────────────────┘
//! ```
//!
//! Sans-I/O. The reactor asks [`Session::wants_connection`] and [`Session::wants_close`] after each
//! call, opens and closes the socket as they say, writes what is in [`Session::output`], and gives
//! to [`Session::receive`] what comes. All this it does whenever it can: a daemon drops a client
//! that does not read.
//!
//! **In the handshake each thing that waits in the output has to go out by one `write`**, as the
//! daemon reads it by one `read`. There is never more than one.
//!
//! All is sent as AGREED: in one order for all, and before anybody's crash is known everybody alive
//! may have it; more would be waited for, and is not relied on. A message to one member is sent to
//! him and to us, so that we see it pass.
//!
//! The daemon passes on what any of its clients sends. What is not of our form is counted and
//! ignored; a daemon that breaks its own protocol is left.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::retry::{Backoff, Trouble};
use super::view::{member_id, view};
use super::wire::{
    Accept, AuthChoice, AuthList, Connect, DaemonItem, DaemonStream, Delivery, Endian, Frame,
    METHOD_IP, METHOD_NULL, Membership, MessageType, NAME_LEN, Name, Reject, SENT_LEN_MAX,
    USER_LEN_MAX, WireError, multicast_head,
};
use crate::group::{Audience, Body, Event, Group, Lane, MemberId, SendError};
use crate::limits::{
    SPREAD_JOIN_TIMEOUT, SPREAD_LEAVE_TIMEOUT, SPREAD_NAME_RETRY, SPREAD_OUTPUT_LEN_MAX,
    SPREAD_SETTLED_AFTER, SPREAD_STEP_TIMEOUT,
};
use crate::out_queue::OutQueue;

/// Which daemon, and as who.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What we want to be called at the daemon, 1 to 10 characters from `$` to `~`. No other client
    /// of this daemon may have the name; those of others may.
    pub name: String,
    /// The group, 1 to 31 characters from `$` to `~`.
    pub group: String,
    /// Where the daemon is, for people to read.
    pub address: String,
    /// Any number that other clients do not have: they wait for different times by it.
    pub seed: u64,
}

/// Why options are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionsError {
    /// This cannot be a user's name.
    Name(String),
    /// This cannot be a group's name.
    Group(String),
}

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, name, len_max) = match self {
            Self::Name(name) => ("member", name, USER_LEN_MAX),
            Self::Group(name) => ("group", name, NAME_LEN - 1),
        };
        write!(
            f,
            "{name:?} is no name of a {what}: Spread allows 1 to {len_max} characters from $ to ~"
        )
    }
}

impl std::error::Error for OptionsError {}

/// What was ignored, by its reason: frames since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Messages to and about groups that are not ours.
    pub other_groups: u64,
    /// Messages with another service than AGREED, or with bits of the daemon's that were forged.
    pub other_services: u64,
    /// Messages of no lane.
    pub lanes: u64,
    /// Messages to us while we are no member.
    pub not_joined: u64,
    /// Frames that are nothing that we know.
    pub unknown: u64,
}

/// The client; see the module's page.
#[derive(Debug)]
pub struct Session {
    user: String,
    group: Name,
    address: String,
    phase: Phase,
    /// Whether we are to be a member.
    wanted: bool,
    stream: DaemonStream,
    out: OutQueue,
    events: VecDeque<Event>,
    backoff: Backoff,
    /// Since when our name is refused, each time that we come.
    name_refused: Option<Instant>,
    /// Whether this connection ends because of our name.
    refused_for_name: bool,
    trouble: Trouble,
    /// That we are connected is logged no more often.
    connected: Trouble,
    /// The last thing that went wrong, for [`Group::describe`].
    last_trouble: Option<String>,
    ignored: Ignored,
    /// What is ignored is logged as trouble is.
    ignored_trouble: Trouble,
}

#[derive(Debug)]
enum Phase {
    /// We want nothing.
    Idle,
    /// The next attempt is at that time.
    Waiting(Instant),
    /// A socket is to be opened, by that time.
    Connecting(Instant),
    /// We said who we are; the methods are to come by that time.
    AskedList(Instant),
    /// We chose a method; an answer is to come by that time.
    AskedIn(Instant),
    /// The daemon knows us.
    Connected(Connected),
    /// We said that we go; the daemon is to close by that time.
    Leaving(Instant),
    /// The socket is to be closed, for this reason; empty if we wanted it.
    Closing(String),
}

#[derive(Debug)]
struct Connected {
    /// Our name, as it stands in frames.
    name: Name,
    /// The same for others.
    id: MemberId,
    /// The daemon's version, for people.
    version: String,
    membership: Joined,
}

#[derive(Debug)]
enum Joined {
    /// Asked to be a member; to be so by that time.
    Asked(Instant),
    /// A member since then, with so many others and us.
    Since(Instant, usize),
}

/// Why a daemon is left: a sentence for the log.
type Reason = String;

impl Session {
    /// One that does nothing until it is told to join.
    pub fn new(options: Options, _now: Instant) -> Result<Self, OptionsError> {
        let Options {
            name,
            group,
            address,
            seed,
        } = options;
        let user = Name::new(name.as_bytes()).filter(Name::is_legal_group);
        if user.is_none() || name.len() > USER_LEN_MAX {
            return Err(OptionsError::Name(name));
        }
        let Some(group) = Name::new(group.as_bytes()).filter(Name::is_legal_group) else {
            return Err(OptionsError::Group(group));
        };
        Ok(Self {
            user: name,
            group,
            address,
            phase: Phase::Idle,
            wanted: false,
            stream: DaemonStream::new(),
            out: OutQueue::default(),
            events: VecDeque::new(),
            backoff: Backoff::new(seed),
            name_refused: None,
            refused_for_name: false,
            trouble: Trouble::default(),
            connected: Trouble::default(),
            last_trouble: None,
            ignored: Ignored::default(),
            ignored_trouble: Trouble::default(),
        })
    }

    /// Whether a socket is to be opened to the daemon, unless one is being opened already;
    /// [`Self::on_connected`] or [`Self::on_closed`] tells how that went.
    pub const fn wants_connection(&self) -> bool {
        matches!(self.phase, Phase::Connecting(_))
    }

    /// Whether the socket, connected or not, is to be closed now; [`Self::on_closed`] is to follow,
    /// even if there is none.
    pub const fn wants_close(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// The socket is connected. What is in the output has to be written at once: until it comes,
    /// for a second at most, the daemon does nothing else.
    pub fn on_connected(&mut self, now: Instant) {
        if !self.wants_connection() {
            // Nobody waits for it any more.
            return;
        }
        self.stream = DaemonStream::new();
        self.out = OutQueue::default();
        let user = match self.name_refused {
            Some(since) if now.saturating_duration_since(since) >= SPREAD_NAME_RETRY => "",
            _ => &self.user,
        };
        let connect = Connect::new(user.as_bytes());
        self.out.push(connect.encode().into());
        self.phase = Phase::AskedList(now + SPREAD_STEP_TIMEOUT);
    }

    /// The socket is closed, or could not be opened. What had come until then must have been given
    /// to [`Self::receive`]: it may say why.
    pub fn on_closed(&mut self, reason: String, now: Instant) {
        let name_refused = std::mem::take(&mut self.refused_for_name);
        if !name_refused {
            self.name_refused = None;
        }
        let reason = match std::mem::replace(&mut self.phase, Phase::Idle) {
            phase @ (Phase::Idle | Phase::Waiting(_)) => {
                self.phase = phase;
                return;
            }
            Phase::Closing(own) => own,
            Phase::Leaving(_) => String::new(),
            Phase::AskedList(_) | Phase::AskedIn(_) => {
                format!("{reason} before it had taken us, which may have been a refusal")
            }
            Phase::Connecting(_) => reason,
            Phase::Connected(connected) => {
                let reason = match self.stream.pending() {
                    Some(pending) => format!("{reason} (within a frame: {} bytes)", pending.have),
                    None => reason,
                };
                self.lose(&connected, &reason, now);
                reason
            }
        };
        self.stream = DaemonStream::new();
        self.out = OutQueue::default();
        if self.wanted && !reason.is_empty() {
            self.tell(&reason, now);
        }
        if self.wanted {
            let wait = match name_refused {
                true => self.backoff.soon(),
                false => self.backoff.next(),
            };
            self.phase = Phase::Waiting(now + wait);
        }
    }

    /// Takes what came from the daemon. [`Group::poll_event`] has the events of it, which are to be
    /// taken before more is received.
    pub fn receive(&mut self, data: &[u8], now: Instant) {
        if !self.listens() {
            // Nothing of this connection counts any more.
            return;
        }
        self.stream.receive(data);
        while self.listens() {
            let result = match self.stream.next() {
                Ok(None) => return,
                Ok(Some(item)) => self.on_item(item.what, now),
                Err(error) => Err(format!("the daemon breaks its protocol: {error}")),
            };
            if let Err(reason) = result {
                self.close(reason, now);
            }
        }
    }

    /// What is to be written to the socket.
    pub const fn output(&mut self) -> &mut OutQueue {
        &mut self.out
    }

    /// What was ignored since the start.
    pub const fn ignored(&self) -> Ignored {
        self.ignored
    }

    const fn listens(&self) -> bool {
        matches!(
            self.phase,
            Phase::AskedList(_) | Phase::AskedIn(_) | Phase::Connected(_)
        )
    }

    fn on_item(&mut self, item: DaemonItem, now: Instant) -> Result<(), Reason> {
        match item {
            DaemonItem::AuthList(list) => self.on_auth_list(&list, now),
            DaemonItem::Accept(accept) => self.on_accept(&accept, now),
            DaemonItem::Reject(reject) => Err(self.on_reject(reject, now)),
            DaemonItem::Frame(frame) => self.on_frame(frame, now),
        }
    }

    fn on_auth_list(&mut self, list: &AuthList, now: Instant) -> Result<(), Reason> {
        if list.methods().next().is_none() {
            // Its refusal follows.
            return Ok(());
        }
        let Some(method) = [METHOD_NULL, METHOD_IP]
            .into_iter()
            .find(|method| list.methods().any(|allowed| allowed == *method))
        else {
            return Err(format!(
                "the daemon wants authentication by {}; its configuration has to allow NULL or IP",
                list.0.escape_ascii()
            ));
        };
        self.out
            .push(Bytes::copy_from_slice(&AuthChoice::new(&[method]).0));
        self.phase = Phase::AskedIn(now + SPREAD_STEP_TIMEOUT);
        Ok(())
    }

    fn on_accept(&mut self, accept: &Accept, now: Instant) -> Result<(), Reason> {
        let name = accept.private_name;
        let legal = name.parts().is_some() && name.as_bytes().iter().all(u8::is_ascii_graphic);
        if !legal {
            return Err(format!("the daemon calls us {name}, which is no name"));
        }
        let id = member_id(&name);
        let version = accept.version;
        if version.0[0] != 4 {
            log::warn!(
                "spread {}: the daemon is of version {version}, which nobody has tried with us",
                self.address
            );
        }
        self.name_refused = None;
        if name.parts().map(|(user, _)| user) != Some(self.user.as_bytes()) {
            log::warn!(
                "spread {}: {:?} is somebody else there; we are {id}",
                self.address,
                self.user
            );
        }
        let connected = format!("connected as {id} (version {version})");
        // A daemon may take us again and again, and close each time.
        if let Some(untold) = self.connected.tell(&connected, now) {
            log::info!("spread {}: {connected}{}", self.address, times(untold));
        }
        self.phase = Phase::Connected(Connected {
            name,
            id,
            version: version.to_string(),
            membership: Joined::Asked(now + SPREAD_JOIN_TIMEOUT),
        });
        self.request(MessageType::JOIN, name, self.group);
        Ok(())
    }

    /// Queues a JOIN, LEAVE or KILL.
    fn request(&mut self, message_type: MessageType, me: Name, group: Name) {
        let groups = [group];
        Frame::new(Endian::Little, message_type, me, &groups, 0, Bytes::new()).queue(&mut self.out);
    }

    /// What a refusal means, and what to do about it.
    fn on_reject(&mut self, reject: Reject, now: Instant) -> Reason {
        let user = &self.user;
        let advice = match reject {
            Reject::NotUnique => {
                // The end of our last connection may still be on its way round the ring.
                self.name_refused.get_or_insert(now);
                self.refused_for_name = true;
                return format!("the daemon has a client called {user:?} already ({reject})");
            }
            Reject::Quota => "it has as many clients as it takes".to_owned(),
            Reject::NoName | Reject::IllegalName => {
                format!("it does not take the name {user:?}; choose 1 to 10 letters or digits")
            }
            Reject::Version => "it is of a version that we cannot talk to".to_owned(),
            Reject::Auth => "its configuration has to allow NULL or IP authentication".to_owned(),
            Reject::Other(_) => "it does not say why".to_owned(),
        };
        format!("the daemon refuses us: {advice} ({reject})")
    }

    fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<(), Reason> {
        let Phase::Connected(connected) = &self.phase else {
            return Ok(());
        };
        let joined = matches!(connected.membership, Joined::Since(..));
        let header = &frame.header;
        let ours = header.name == self.group;
        let protocol = |error: WireError| format!("the daemon breaks its protocol: {error}");
        match header.delivery() {
            Delivery::Regular => self.on_regular(frame, now),
            Delivery::Reject => {
                // What we sent does not come back, and we would wait for it.
                let old_type = frame.old_type.unwrap_or_default();
                return Err(format!(
                    "a policy of the daemon refuses what we do in group {} ({old_type})",
                    self.group
                ));
            }
            Delivery::Membership | Delivery::Transition | Delivery::SelfLeave if !ours => {
                self.ignored.other_groups += 1;
                self.tell_ignored("news of another group", now);
            }
            Delivery::Membership => {
                let membership = frame.membership().map_err(protocol)?;
                return self.on_membership(&frame, &membership, now);
            }
            Delivery::Transition => {
                frame.transition().map_err(protocol)?;
                if joined {
                    self.events.push_back(Event::Transitional);
                }
            }
            Delivery::SelfLeave => {
                return Err(format!("the daemon says that we have left {}", self.group));
            }
            Delivery::Unknown => {
                self.ignored.unknown += 1;
                self.tell_ignored("a frame of an unknown type", now);
            }
        }
        Ok(())
    }

    fn on_membership(
        &mut self,
        frame: &Frame,
        membership: &Membership,
        now: Instant,
    ) -> Result<(), Reason> {
        let Phase::Connected(connected) = &mut self.phase else {
            return Ok(());
        };
        let me = connected.name;
        let names: Vec<Name> = frame.names().collect();
        let first = matches!(connected.membership, Joined::Asked(_));
        if !names.contains(&me) {
            if first {
                // It was on its way before we were a member.
                return Ok(());
            }
            return Err(format!("a view of {} without us came to us", self.group));
        }
        let since = match connected.membership {
            Joined::Asked(_) => now,
            Joined::Since(since, _) => since,
        };
        connected.membership = Joined::Since(since, names.len());
        let caused_by = frame.header.message_type;
        let view = view(me, first, caused_by, &names, membership);
        self.last_trouble = None;
        // Whoever takes the event logs it, too, for all kinds of daemons.
        log::debug!(
            "spread {}: view {} of {}: {} members after {}",
            self.address,
            membership.id,
            self.group,
            names.len(),
            view.cause
        );
        self.events.push_back(Event::View(view));
        Ok(())
    }

    fn on_regular(&mut self, frame: Frame, now: Instant) {
        let Phase::Connected(connected) = &self.phase else {
            return;
        };
        let me = connected.name;
        if matches!(connected.membership, Joined::Asked(_)) {
            self.ignored.not_joined += 1;
            return;
        }
        let to_all = frame.names().any(|name| name == self.group);
        let to_others = frame.names().any(|name| name != me);
        if !to_all && !frame.names().any(|name| name == me) {
            self.ignored.other_groups += 1;
            return self.tell_ignored("a message to another group", now);
        }
        if frame.header.message_type != MessageType::AGREED {
            self.ignored.other_services += 1;
            return self.tell_ignored("a message that is not AGREED", now);
        }
        let number = frame.header.hint.mess_type();
        let lane = number.and_then(|number| Lane::from_number(u8::try_from(number).ok()?));
        let Some(lane) = lane else {
            self.ignored.lanes += 1;
            return self.tell_ignored("a message of no lane", now);
        };
        if !to_all && to_others && frame.header.name == me {
            let len = frame.data.len();
            return self.events.push_back(Event::Passed { lane, len });
        }
        self.events.push_back(Event::Body(Body {
            from: member_id(&frame.header.name),
            lane,
            audience: if to_all { Audience::All } else { Audience::One },
            data: frame.data,
        }));
    }

    /// Sends a body to these names, of which we must be one, or a member of one.
    fn send(&mut self, groups: &[Name], lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        let Phase::Connected(connected) = &self.phase else {
            return Err(SendError::NotJoined);
        };
        if matches!(connected.membership, Joined::Asked(_)) {
            return Err(SendError::NotJoined);
        }
        let len = parts.iter().map(Bytes::len).sum();
        if len > BODY_LEN_MAX {
            return Err(SendError::TooLong);
        }
        // One is taken whatever its length, or a low bound would stop everything.
        if !self.out.is_empty() && self.out.len() + len > SPREAD_OUTPUT_LEN_MAX {
            return Err(SendError::Busy);
        }
        let mess_type = i16::from(lane.number());
        let (me, agreed) = (connected.name, MessageType::AGREED);
        let head =
            multicast_head(agreed, me, groups, mess_type, len).map_err(|_| SendError::TooLong)?;
        self.out.push(head);
        for part in parts {
            self.out.push(part.clone());
        }
        Ok(())
    }

    /// The connection is to be closed for a reason of ours.
    fn close(&mut self, reason: Reason, now: Instant) {
        let phase = std::mem::replace(&mut self.phase, Phase::Closing(reason.clone()));
        if let Phase::Connected(connected) = phase {
            self.lose(&connected, &reason, now);
        }
        self.stream = DaemonStream::new();
        self.out = OutQueue::default();
    }

    /// We are a member of nothing any more.
    fn lose(&mut self, connected: &Connected, reason: &str, now: Instant) {
        if let Joined::Since(since, _) = connected.membership
            && now.saturating_duration_since(since) >= SPREAD_SETTLED_AFTER
        {
            self.backoff.reset();
            // What ends it now is told, even if it is what ended the last one.
            self.trouble.clear();
        }
        self.events.push_back(Event::Lost(reason.to_owned()));
    }

    /// Logs why there is no connection, unless that is known.
    fn tell(&mut self, reason: &str, now: Instant) {
        self.last_trouble = Some(reason.to_owned());
        if let Some(untold) = self.trouble.tell(reason, now) {
            let times = times(untold);
            log::warn!("spread {}: {reason}{times}; trying again", self.address);
        }
    }

    fn tell_ignored(&mut self, what: &str, now: Instant) {
        // One line for all kinds, or somebody could fill the log.
        if let Some(untold) = self.ignored_trouble.tell("ignored", now) {
            let times = times(untold);
            log::warn!("spread {}: {what} is ignored{times}", self.address);
        }
    }

    /// Time is up for this phase.
    fn expire(&mut self, now: Instant) {
        let seconds = |time: Duration| time.as_secs();
        let reason = match &self.phase {
            Phase::Waiting(_) => {
                self.phase = Phase::Connecting(now + SPREAD_STEP_TIMEOUT);
                return;
            }
            Phase::Connecting(_) => {
                format!("no connection within {} s", seconds(SPREAD_STEP_TIMEOUT))
            }
            Phase::AskedList(_) | Phase::AskedIn(_) => format!(
                "the daemon has not answered within {} s",
                seconds(SPREAD_STEP_TIMEOUT)
            ),
            Phase::Connected(_) => format!(
                "the daemon has not made us a member within {} s",
                seconds(SPREAD_JOIN_TIMEOUT)
            ),
            Phase::Leaving(_) => String::new(),
            Phase::Idle | Phase::Closing(_) => return,
        };
        self.close(reason, now);
    }
}

impl Group for Session {
    fn join(&mut self, now: Instant) {
        self.wanted = true;
        if matches!(self.phase, Phase::Idle) {
            self.phase = Phase::Connecting(now + SPREAD_STEP_TIMEOUT);
        }
    }

    fn leave(&mut self, now: Instant) {
        self.wanted = false;
        self.events.clear();
        match &self.phase {
            Phase::Connected(connected) => {
                let me = connected.name;
                // The first so that others see that we wanted it, the second ends the session.
                self.request(MessageType::LEAVE, me, self.group);
                self.request(MessageType::KILL, me, me);
                self.phase = Phase::Leaving(now + SPREAD_LEAVE_TIMEOUT);
            }
            Phase::Connecting(_) | Phase::AskedList(_) | Phase::AskedIn(_) => {
                self.close(String::new(), now);
            }
            Phase::Waiting(_) => self.phase = Phase::Idle,
            Phase::Idle | Phase::Leaving(_) | Phase::Closing(_) => {}
        }
    }

    fn me(&self) -> Option<&MemberId> {
        match &self.phase {
            Phase::Connected(connected) => Some(&connected.id),
            _ => None,
        }
    }

    fn body_len_max(&self) -> usize {
        BODY_LEN_MAX
    }

    fn send_all(&mut self, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        self.send(&[self.group], lane, parts)
    }

    fn send_one(&mut self, to: &MemberId, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        let Phase::Connected(Connected { name: me, .. }) = self.phase else {
            return Err(SendError::NotJoined);
        };
        let to = Name::new(to.as_str().as_bytes())
            .filter(|name| name.parts().is_some())
            .ok_or(SendError::NoSuchMember)?;
        match to == me {
            true => self.send(&[me], lane, parts),
            false => self.send(&[to, me], lane, parts),
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Idle | Phase::Closing(_) => None,
            Phase::Waiting(at)
            | Phase::Connecting(at)
            | Phase::AskedList(at)
            | Phase::AskedIn(at)
            | Phase::Leaving(at) => Some(*at),
            Phase::Connected(connected) => match connected.membership {
                Joined::Asked(at) => Some(at),
                Joined::Since(..) => None,
            },
        }
    }

    fn on_deadline(&mut self, now: Instant) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.expire(now);
        }
    }

    fn reset(&mut self, why: &str, now: Instant) {
        match self.phase {
            Phase::Connected(_) => self.close(why.to_owned(), now),
            Phase::Connecting(_) | Phase::AskedList(_) | Phase::AskedIn(_) => {
                self.close(why.to_owned(), now);
                self.events.push_back(Event::Lost(why.to_owned()));
            }
            Phase::Idle | Phase::Waiting(_) | Phase::Leaving(_) | Phase::Closing(_) => {
                self.events.push_back(Event::Lost(why.to_owned()));
            }
        }
    }

    fn describe(&self) -> String {
        let state = match &self.phase {
            Phase::Idle | Phase::Leaving(_) => "not joined".to_owned(),
            Phase::Waiting(_)
            | Phase::Connecting(_)
            | Phase::AskedList(_)
            | Phase::AskedIn(_)
            | Phase::Closing(_) => match &self.last_trouble {
                Some(trouble) => format!("connecting (last: {trouble})"),
                None => "connecting".to_owned(),
            },
            Phase::Connected(connected) => {
                let Connected { id, version, .. } = connected;
                match connected.membership {
                    Joined::Asked(_) => format!("joining as {id} (version {version})"),
                    Joined::Since(_, count) => {
                        format!("{id} is one of {count} members (version {version})")
                    }
                }
            }
        };
        format!("spread {}, group {}: {state}", self.address, self.group)
    }
}

fn times(untold: u32) -> String {
    match untold {
        0 => String::new(),
        untold => format!(" ({untold} times more since the last time)"),
    }
}

/// Bytes of a body: what a daemon survives, less the names of two members.
const BODY_LEN_MAX: usize = SENT_LEN_MAX - 2 * NAME_LEN;
