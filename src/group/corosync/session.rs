//! Being a member of a group at corosync.
//!
//! ```text
//!   Down ──take_job──► (open, elsewhere) ──on_done──► Up: joining ──View──► Up: member
//!    ▲                        │ failed                      │                  │
//!    └──── back-off ◄─────────┴─────────────◄── Lost ───────┴──────────────────┘
//! ```
//!
//! A connection that has come to its end is closed by a job, too, and nothing is opened before.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::envelope::{ENVELOPE_LEN, Envelope};
use super::membership::{Expelled, Membership};
use super::{Address, Connection, CpgEvent, Failure, Incoming, Library, OpenError, Opened, Quorum};
use crate::group::{Audience, Body, Event, Group, Lane, MemberId, SendError};
use crate::limits::{
    CPG_BODY_LEN_MAX, CPG_EVENTS_LEN_MAX, CPG_EVENTS_MAX, CPG_GROUP_NAME_LEN_MAX, CPG_OPEN_TIMEOUT,
    CPG_PARTS_MAX, CPG_UNCONFIRMED_MAX, TROUBLE_LOG_INTERVAL,
};

/// First and longest time between two attempts to connect. The daemon is on this machine, and has
/// no other clients to speak of.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// First and longest time after which a daemon that was busy is tried again. It says nothing when
/// it is no longer; while nodes come and go that may be seconds.
const BUSY_MIN: Duration = Duration::from_millis(1);
const BUSY_MAX: Duration = Duration::from_millis(5);

/// What an event costs besides its body, of a turn's budget of bytes.
const EVENT_COST: usize = 256;

/// A group at corosync.
#[derive(Debug)]
pub struct Session {
    group: String,
    library: Arc<dyn Library>,
    /// Whether we want to be a member.
    is_wanted: bool,
    link: Link,
    /// What is to be ended by a job.
    closing: Option<Closing>,
    /// Whether a job is out, and since when.
    job_since: Option<Instant>,
    /// When to connect, if that is wanted.
    next_try: Option<Instant>,
    backoff: Duration,
    /// What has happened; bounded, because no more is taken from the daemon when it is full.
    events: VecDeque<Event>,
    /// Bytes of bodies in `events`.
    events_len: usize,
    /// More may be waiting at the daemon that no descriptor will tell of.
    is_more: bool,
    complaints: Complaints,
    /// The last time that we were told.
    now: Instant,
}

#[derive(Debug)]
enum Link {
    Down,
    Up(Box<Up>),
}

#[derive(Debug)]
struct Up {
    connection: Box<dyn Connection>,
    me: Address,
    name: MemberId,
    membership: Membership,
    quorum: Quorum,
    body_len_max: usize,
    /// The number of the next body of ours.
    next: u32,
    /// Bodies of ours that have not come back yet.
    unconfirmed: u32,
    /// When to try again, and how long after the time before.
    busy_until: Option<Instant>,
    busy_for: Duration,
}

#[derive(Debug)]
struct Closing {
    connection: Box<dyn Connection>,
    /// Whether the others shall see that it was meant.
    leaves: bool,
}

/// Something that waits for the daemon: for another thread than the one of the session.
pub struct Job(Box<dyn FnOnce() -> Done + Send>);

/// What has become of a job.
#[derive(Debug)]
pub struct Done(Option<Result<Opened, OpenError>>);

/// When it was complained, so that it is not at each opportunity.
#[derive(Debug, Default)]
struct Complaints {
    no_daemon: Option<(OpenError, Instant)>,
    garbage: Option<Instant>,
    garbage_count: u64,
}

impl Job {
    /// Does it; this may take as long as the daemon is stopped.
    pub fn run(self) -> Done {
        (self.0)()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// That is no name for a group at corosync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadGroupName;

impl fmt::Display for BadGroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a group's name has 1 to {CPG_GROUP_NAME_LEN_MAX} bytes, none of them 0"
        )
    }
}

impl std::error::Error for BadGroupName {}

impl Session {
    /// Of a group, through a library; [`System`](super::System) is the real one. Nothing is done
    /// before [`Group::join`].
    pub fn new(group: &str, library: Arc<dyn Library>, now: Instant) -> Result<Self, BadGroupName> {
        if group.is_empty() || group.len() > CPG_GROUP_NAME_LEN_MAX || group.contains('\0') {
            return Err(BadGroupName);
        }
        Ok(Self {
            group: group.to_owned(),
            library,
            is_wanted: false,
            link: Link::Down,
            closing: None,
            job_since: None,
            next_try: None,
            backoff: RECONNECT_MIN,
            events: VecDeque::new(),
            events_len: 0,
            is_more: false,
            complaints: Complaints::default(),
            now,
        })
    }

    /// Readable when [`Self::on_ready`] is to be called. It stays the same, and is open as long as
    /// the library is there.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.library.descriptor()
    }

    /// Something to be done by another thread, if there is. Ask after each other call; the result
    /// goes to [`Self::on_done`]. A job that cannot be run is to be told, too
    /// ([`Self::on_job_lost`]).
    pub fn take_job(&mut self, now: Instant) -> Option<Job> {
        self.now = now;
        if self.job_since.is_some() {
            return None;
        }
        if let Some(Closing { connection, leaves }) = self.closing.take() {
            self.job_since = Some(now);
            return Some(Job(Box::new(move || {
                if leaves {
                    connection.leave();
                } else {
                    drop(connection);
                }
                Done(None)
            })));
        }
        self.next_try.take_if(|at| *at <= now)?;
        self.job_since = Some(now);
        let library = self.library.clone();
        let group = self.group.clone();
        Some(Job(Box::new(move || Done(Some(library.open(&group))))))
    }

    /// A job has ended.
    pub fn on_done(&mut self, done: Done, now: Instant) {
        self.now = now;
        self.job_since = None;
        match done.0 {
            Some(Ok(opened)) => self.on_opened(opened),
            Some(Err(error)) => {
                if self.complaints.on_no_daemon(&error, now) {
                    log::warn!("corosync: cannot join group {} ({error})", self.group);
                }
                self.try_later();
            }
            None => {}
        }
    }

    /// A job was not run, or nobody knows what has become of it.
    pub fn on_job_lost(&mut self, now: Instant) {
        self.now = now;
        self.job_since = None;
        self.try_later();
    }

    /// The descriptor is readable, or the last call has said that there is more. Takes about
    /// `budget` bytes from the daemon. Whether there is more: call again, after
    /// [`Group::poll_event`] and others' turns.
    pub fn on_ready(&mut self, budget: usize, now: Instant) -> bool {
        self.now = now;
        self.is_more = self.pump(budget);
        self.is_more
    }

    fn on_opened(&mut self, opened: Opened) {
        if !self.is_wanted {
            self.close(opened.connection, false);
            return;
        }
        let Opened {
            connection,
            me,
            len_max,
            quorum,
        } = opened;
        log::info!("corosync: connected as {me}, joining group {}", self.group);
        if let Quorum::Unknown(reason) = &quorum {
            log::info!("corosync: whether the nodes are quorate is not known ({reason})");
        }
        self.link = Link::Up(Box::new(Up {
            connection,
            me,
            name: me.member_id(),
            membership: Membership::new(me, quorum == Quorum::Tracked),
            quorum,
            body_len_max: CPG_BODY_LEN_MAX.min(len_max.saturating_sub(ENVELOPE_LEN)),
            next: 0,
            unconfirmed: 0,
            busy_until: None,
            busy_for: BUSY_MIN,
        }));
        // What it said while the job was on its way here, the descriptor has told already.
        self.is_more = true;
    }

    /// Takes events from the daemon. Whether there may be more that could be taken now.
    fn pump(&mut self, budget: usize) -> bool {
        let mut left = budget;
        loop {
            if self.is_full() {
                return true;
            }
            let taken = match &mut self.link {
                Link::Down => return false,
                Link::Up(up) => up.take(self.now, &mut self.complaints),
            };
            match taken {
                Ok(Taken::Nothing) => return false,
                Ok(Taken::Event(len, events)) => {
                    for event in events {
                        self.push(event);
                    }
                    left = left.saturating_sub(len + EVENT_COST);
                }
                Err(why) => {
                    self.lose(&why);
                    return false;
                }
            }
            if left == 0 {
                return true;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= CPG_EVENTS_MAX || self.events_len >= CPG_EVENTS_LEN_MAX
    }

    fn push(&mut self, event: Event) {
        match &event {
            Event::View(view) => self.on_view(view.cause),
            Event::Body(body) => self.events_len += body.data.len(),
            _ => {}
        }
        self.events.push_back(event);
    }

    /// Who is in it, others say; where and why, only we know.
    fn on_view(&mut self, cause: &str) {
        self.backoff = RECONNECT_MIN;
        self.complaints.no_daemon = None;
        if let Link::Up(up) = &self.link {
            log::info!("corosync: {cause}: {}", up.state());
        }
    }

    /// The connection is of no use any more.
    fn lose(&mut self, why: &str) {
        let Link::Up(up) = std::mem::replace(&mut self.link, Link::Down) else {
            return;
        };
        log::warn!("corosync: group {} is lost ({why})", self.group);
        self.close(up.connection, false);
        self.events.push_back(Event::Lost(why.to_owned()));
        self.try_later();
    }

    fn close(&mut self, mut connection: Box<dyn Connection>, leaves: bool) {
        connection.mute();
        self.closing = Some(Closing { connection, leaves });
    }

    fn try_later(&mut self) {
        if self.is_wanted {
            self.next_try = Some(self.now + self.backoff);
            self.backoff = (self.backoff * 2).min(RECONNECT_MAX);
        }
    }

    fn send(&mut self, to: Option<Address>, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        if len > self.body_len_max() {
            return Err(SendError::TooLong);
        }
        let Link::Up(up) = &mut self.link else {
            return Err(SendError::NotJoined);
        };
        match up.send(to, lane, parts, self.now) {
            Ok(sent) => sent,
            Err(failure) => {
                self.lose(&failure.to_string());
                Err(SendError::NotJoined)
            }
        }
    }
}

impl Group for Session {
    fn join(&mut self, now: Instant) {
        self.now = now;
        if !self.is_wanted {
            self.is_wanted = true;
            self.backoff = RECONNECT_MIN;
            self.next_try = Some(now);
        }
    }

    fn leave(&mut self, now: Instant) {
        self.now = now;
        self.is_wanted = false;
        self.next_try = None;
        self.is_more = false;
        self.events.clear();
        self.events_len = 0;
        if let Link::Up(up) = std::mem::replace(&mut self.link, Link::Down) {
            self.close(up.connection, true);
        }
    }

    fn me(&self) -> Option<&MemberId> {
        match &self.link {
            Link::Up(up) if up.membership.has_view() => Some(&up.name),
            _ => None,
        }
    }

    fn body_len_max(&self) -> usize {
        match &self.link {
            Link::Up(up) => up.body_len_max,
            Link::Down => CPG_BODY_LEN_MAX,
        }
    }

    fn send_all(&mut self, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        self.send(None, lane, parts)
    }

    fn send_one(&mut self, to: &MemberId, lane: Lane, parts: &[Bytes]) -> Result<(), SendError> {
        match Address::from_member_id(to) {
            Some(to) if to.node != 0 => self.send(Some(to), lane, parts),
            _ => Err(SendError::NoSuchMember),
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Body(body) = &event {
            self.events_len -= body.data.len();
        }
        Some(event)
    }

    fn deadline(&self) -> Option<Instant> {
        // While a job is out, none can be taken.
        let next_try = self.next_try.filter(|_| self.job_since.is_none());
        let slow = self
            .job_since
            .filter(|_| self.is_wanted)
            .map(|since| since + CPG_OPEN_TIMEOUT)
            .filter(|at| *at > self.now);
        let more = self.is_more.then_some(self.now);
        let (held, busy) = match &self.link {
            Link::Up(up) => (up.membership.deadline(), up.busy_until),
            Link::Down => (None, None),
        };
        [next_try, slow, more, held, busy]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_deadline(&mut self, now: Instant) {
        let before = std::mem::replace(&mut self.now, now);
        if let Some(since) = self.job_since
            && self.is_wanted
            && (before..now).contains(&(since + CPG_OPEN_TIMEOUT))
        {
            log::warn!("corosync: the daemon does not answer (it is stopped, or very busy)");
        }
        if let Link::Up(up) = &mut self.link {
            up.busy_until.take_if(|until| *until <= now);
            if let Some(event) = up.membership.on_deadline(now) {
                log::warn!("corosync: the quorum service is silent about a new ring");
                self.push(event);
                self.is_more = true;
            }
        }
        if self.is_more {
            self.is_more = self.pump(crate::limits::READ_BYTES_PER_TURN);
        }
    }

    fn reset(&mut self, why: &str, now: Instant) {
        self.now = now;
        match self.link {
            Link::Up(_) => self.lose(why),
            // There is nothing to give up; but whoever asked waits for it.
            Link::Down => self.events.push_back(Event::Lost(why.to_owned())),
        }
    }

    fn describe(&self) -> String {
        let group = &self.group;
        match &self.link {
            Link::Up(up) if up.membership.has_view() => {
                format!("corosync: {} in group {group}, {}", up.name, up.state())
            }
            Link::Up(up) => format!("corosync: {} joining group {group}", up.name),
            Link::Down if self.is_wanted => format!("corosync: connecting, for group {group}"),
            Link::Down => format!("corosync: not in group {group}"),
        }
    }
}

/// What a call took from the daemon.
enum Taken {
    /// There is nothing more that can be taken now.
    Nothing,
    /// So many bytes of bodies, and what follows from them.
    Event(usize, Vec<Event>),
}

impl Up {
    /// Takes one event, of the quorum service first: it is rare, and CPG may be waiting for it.
    fn take(&mut self, now: Instant, complaints: &mut Complaints) -> Result<Taken, String> {
        let failed = |failure: Failure| failure.to_string();
        if self.quorum_may_speak()
            && let Some(event) = self.connection.poll_quorum().map_err(failed)?
        {
            log::debug!("corosync: {event:?}");
            let before = self.membership.is_quorate();
            let events = self.membership.on_quorum(&event, now);
            let after = self.membership.is_quorate();
            if before != after && before.is_some() && after.is_some() {
                log::info!("corosync: votes have changed: {}", self.state());
            }
            return Ok(Taken::Event(0, events));
        }
        if self.membership.is_held() {
            return Ok(Taken::Nothing);
        }
        let Some(event) = self.connection.poll_cpg().map_err(failed)? else {
            return Ok(Taken::Nothing);
        };
        let expelled = |_: Expelled| "the daemon does not list us in the group".to_owned();
        Ok(match event {
            CpgEvent::Body(incoming) => {
                let len = incoming.data.len();
                Taken::Event(len, self.on_body(incoming).into_iter().collect())
            }
            CpgEvent::Garbage { from, len } => {
                complaints.on_garbage(from, len, now);
                Taken::Event(0, Vec::new())
            }
            CpgEvent::Members {
                members,
                left,
                joined,
            } => {
                log::debug!("corosync: members {members:?}, left {left:?}, joined {joined:?}");
                let events = self.membership.on_members(members, &left, &joined, now);
                Taken::Event(0, events.map_err(expelled)?)
            }
            CpgEvent::Ring { ring, nodes } => {
                log::debug!("corosync: ring {ring}, nodes {nodes:?}");
                Taken::Event(0, self.membership.on_ring(ring, nodes, now))
            }
        })
    }

    const fn quorum_may_speak(&self) -> bool {
        !matches!(self.quorum, Quorum::Unknown(_))
    }

    fn on_body(&mut self, incoming: Incoming) -> Option<Event> {
        let Incoming {
            from,
            envelope,
            len,
            data,
        } = incoming;
        let is_ours = from == self.me;
        if is_ours {
            // By the number and not by counting: should one be lost, the next one corrects it.
            let sent_since = self.next.wrapping_sub(envelope.number).wrapping_sub(1);
            self.unconfirmed = self.unconfirmed.min(sent_since);
        }
        let lane = envelope.lane;
        if !self.membership.has_view() {
            return None;
        }
        if envelope.is_for(self.me) {
            let audience = match envelope.to {
                None => Audience::All,
                Some(_) => Audience::One,
            };
            return Some(Event::Body(Body {
                from: from.member_id(),
                lane,
                audience,
                data,
            }));
        }
        is_ours.then_some(Event::Passed { lane, len })
    }

    fn send(
        &mut self,
        to: Option<Address>,
        lane: Lane,
        parts: &[Bytes],
        now: Instant,
    ) -> Result<Result<(), SendError>, Failure> {
        if !self.membership.has_view() {
            return Ok(Err(SendError::NotJoined));
        }
        // Nobody waits in vain: what is on its way comes back, and that is an event.
        if self.unconfirmed >= CPG_UNCONFIRMED_MAX {
            return Ok(Err(SendError::Busy));
        }
        let envelope = Envelope {
            lane,
            number: self.next,
            to,
        };
        let head = envelope.encode();
        let mut slices: Vec<&[u8]> = Vec::with_capacity(1 + parts.len());
        slices.push(&head);
        slices.extend(parts.iter().map(|part| &part[..]));
        let joined;
        if slices.len() > CPG_PARTS_MAX {
            joined = slices.concat();
            slices = vec![&joined];
        }
        if self.connection.multicast(&slices)? {
            self.next = self.next.wrapping_add(1);
            self.unconfirmed += 1;
            self.busy_for = BUSY_MIN;
            self.busy_until = None;
            return Ok(Ok(()));
        }
        self.busy_until = Some(now + self.busy_for);
        self.busy_for = (self.busy_for * 2).min(BUSY_MAX);
        Ok(Err(SendError::Busy))
    }

    /// Ring, nodes and quorum, for people.
    fn state(&self) -> String {
        let ring = self.membership.ring().map_or_else(
            || "no ring".to_owned(),
            |ring| {
                let nodes: Vec<String> = self.membership.nodes().map(|it| it.to_string()).collect();
                format!("ring {ring} of nodes {}", nodes.join(" "))
            },
        );
        let quorate = match (&self.quorum, self.membership.is_quorate()) {
            (Quorum::NoProvider, _) => "no quorum provider",
            (Quorum::Unknown(_), _) | (Quorum::Tracked, None) => "quorum unknown",
            (Quorum::Tracked, Some(true)) => "quorate",
            (Quorum::Tracked, Some(false)) => "not quorate",
        };
        format!("{ring}, {quorate}")
    }
}

impl Complaints {
    /// Whether to speak of it: it is another reason than the last time, or that was long ago.
    fn on_no_daemon(&mut self, why: &OpenError, now: Instant) -> bool {
        if let Some((told, at)) = &self.no_daemon
            && told == why
            && now < *at + TROUBLE_LOG_INTERVAL
        {
            return false;
        }
        self.no_daemon = Some((why.clone(), now));
        true
    }

    fn on_garbage(&mut self, from: Address, len: usize, now: Instant) {
        self.garbage_count += 1;
        if self
            .garbage
            .is_none_or(|at| now >= at + TROUBLE_LOG_INTERVAL)
        {
            self.garbage = Some(now);
            let count = self.garbage_count;
            log::warn!(
                "corosync: {from} sends what is not ours to the group ({len} bytes; {count} so far)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fake, GONE, ME, at, members, ring, ring_of};
    use super::super::{QuorumEvent, Reason};
    use super::*;
    use crate::group::View;
    use crate::limits::CPG_QUORUM_TIMEOUT;

    /// A session with the library that it thinks is corosync's, and a clock.
    struct Fixture {
        fake: Fake,
        session: Session,
        now: Instant,
    }

    impl Fixture {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had in no other way"
        )]
        fn new() -> Self {
            let fake = Fake::new();
            let now = Instant::now();
            let session = Session::new("plone", Arc::new(fake.clone()), now).unwrap();
            Self { fake, session, now }
        }

        /// In a group with nodes 2 and 3.
        fn member() -> Self {
            let mut fixture = Self::new();
            fixture.fake.quorum_says_ring(ring(4), &[1, 2, 3], true);
            fixture.fake_joins();
            fixture.session.join(fixture.now);
            fixture.run_jobs();
            let view = fixture.the_view();
            assert_eq!(view.members.len(), 3);
            assert_eq!(fixture.session.me(), Some(&ME.member_id()));
            fixture
        }

        fn fake_joins(&self) {
            let all = [ME, at(2), at(3)];
            self.fake.says(members(&all, &[], &[(ME, Reason::Join)]));
            self.fake.says(ring_of(ring(4), &[1, 2, 3]));
        }

        fn run_jobs(&mut self) {
            while let Some(job) = self.session.take_job(self.now) {
                let done = job.run();
                self.session.on_done(done, self.now);
            }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.session.on_deadline(self.now);
            self.run_jobs();
        }

        /// All that has happened.
        fn events(&mut self) -> Vec<Event> {
            let mut events = Vec::new();
            loop {
                let is_more = self.session.on_ready(1 << 16, self.now);
                while let Some(event) = self.session.poll_event() {
                    events.push(event);
                }
                if !is_more {
                    return events;
                }
            }
        }

        #[track_caller]
        fn the_view(&mut self) -> View {
            match <[Event; 1]>::try_from(self.events()) {
                Ok([Event::View(view)]) => view,
                other => panic!("not one view: {other:?}"),
            }
        }

        fn send(&mut self, text: &'static [u8]) -> Result<(), SendError> {
            self.session
                .send_all(Lane::Commit, &[Bytes::from_static(text)])
        }
    }

    fn body(from: Address, audience: Audience, data: &'static [u8]) -> Event {
        Event::Body(Body {
            from: from.member_id(),
            lane: Lane::Commit,
            audience,
            data: Bytes::from_static(data),
        })
    }

    #[test]
    fn what_is_sent_comes_back() {
        let mut group = Fixture::member();
        let parts = [Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
        group.session.send_all(Lane::Commit, &parts).unwrap();
        let peer = at(2).member_id();
        group.session.send_one(&peer, Lane::Bulk, &parts).unwrap();
        let me = ME.member_id();
        group.session.send_one(&me, Lane::Commit, &parts).unwrap();
        group.fake.delivers_sent(ME, ME);
        let passed = Event::Passed {
            lane: Lane::Bulk,
            len: 3,
        };
        let expected = [
            body(ME, Audience::All, b"abc"),
            passed,
            body(ME, Audience::One, b"abc"),
        ];
        assert_eq!(group.events(), expected);
    }

    #[test]
    fn what_others_send_to_others_is_not_told() {
        let mut group = Fixture::member();
        let mut peer = Fixture::member();
        for to in [at(3), ME] {
            let parts = [Bytes::from_static(b"x")];
            peer.session
                .send_one(&to.member_id(), Lane::Commit, &parts)
                .unwrap();
        }
        peer.send(b"all").unwrap();
        // What it has sent comes to us as from node 2.
        peer.fake.delivers_sent(at(2), ME);
        let events = peer.fake.with(|state| std::mem::take(&mut state.cpg));
        group.fake.with(|state| state.cpg = events);
        let expected = [
            body(at(2), Audience::One, b"x"),
            body(at(2), Audience::All, b"all"),
        ];
        assert_eq!(group.events(), expected);
    }

    #[test]
    fn nothing_is_sent_before_the_first_view() {
        let mut group = Fixture::new();
        assert_eq!(group.send(b"x"), Err(SendError::NotJoined));
        group.session.join(group.now);
        group.run_jobs();
        assert_eq!(group.send(b"x"), Err(SendError::NotJoined));
        assert_eq!(group.session.me(), None);
        // Its ring is known, but not whether that is quorate.
        group.fake_joins();
        assert_eq!(group.events(), []);
        assert_eq!(group.send(b"x"), Err(SendError::NotJoined));
        group.pass(CPG_QUORUM_TIMEOUT);
        group.the_view();
        assert_eq!(group.send(b"x"), Ok(()));
    }

    #[test]
    fn bodies_of_a_view_to_come_wait_for_it() {
        let mut group = Fixture::member();
        group.send(b"x").unwrap();
        let left = [(at(3), Reason::NodeDown)];
        group.fake.says(members(&[ME, at(2)], &left, &[]));
        group.fake.says(ring_of(ring(8), &[1, 2]));
        group.fake.delivers_sent(ME, ME);
        assert_eq!(group.events(), [Event::Transitional]);
        group.fake.quorum_says_ring(ring(8), &[1, 2], false);
        let events = group.events();
        assert!(matches!(events[0], Event::View(_)), "{events:?}");
        assert_eq!(events[1], body(ME, Audience::All, b"x"));
        assert!(group.session.describe().contains("not quorate"));
    }

    #[test]
    fn a_view_that_the_quorum_service_keeps_back_comes_at_the_deadline() {
        let mut group = Fixture::member();
        group.send(b"x").unwrap();
        group.fake.says(ring_of(ring(8), &[1, 2, 3]));
        group.fake.delivers_sent(ME, ME);
        assert_eq!(group.events(), [Event::Transitional]);
        assert_eq!(
            group.session.deadline(),
            Some(group.now + CPG_QUORUM_TIMEOUT)
        );
        group.now += CPG_QUORUM_TIMEOUT;
        group.session.on_deadline(group.now);
        // Without the descriptor: that has nothing new to tell.
        assert!(matches!(group.session.poll_event(), Some(Event::View(_))));
        assert_eq!(
            group.session.poll_event(),
            Some(body(ME, Audience::All, b"x"))
        );
        assert!(group.session.describe().contains("quorum unknown"));
    }

    #[test]
    fn a_busy_daemon_is_tried_again() {
        let mut group = Fixture::member();
        group.fake.with(|state| state.busy = 1000);
        let mut waits = Vec::new();
        for _ in 0..5 {
            assert_eq!(group.send(b"x"), Err(SendError::Busy));
            let deadline = group.session.deadline().unwrap();
            waits.push((deadline - group.now).as_millis());
            group.now = deadline;
            group.session.on_deadline(group.now);
            assert_eq!(group.session.deadline(), None);
        }
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        group.fake.with(|state| state.busy = 0);
        group.send(b"x").unwrap();
        assert_eq!(group.session.deadline(), None);
        assert_eq!(group.fake.with(|state| state.sent.len()), 1, "once");
    }

    #[test]
    fn no_more_is_under_way_than_the_library_takes() {
        let mut group = Fixture::member();
        for _ in 0..CPG_UNCONFIRMED_MAX {
            group.send(b"x").unwrap();
        }
        assert_eq!(group.send(b"x"), Err(SendError::Busy));
        assert_eq!(
            group.session.deadline(),
            None,
            "what comes back is an event"
        );
        group.fake.with(|state| state.sent.truncate(1));
        group.fake.delivers_sent(ME, ME);
        assert_eq!(group.events().len(), 1);
        assert_eq!(group.send(b"x"), Ok(()));
        assert_eq!(group.send(b"x"), Err(SendError::Busy));
        // The next that comes back speaks for those before it that did not.
        let last = group.fake.with(|state| std::mem::take(&mut state.sent));
        group.fake.with(|state| state.sent = last);
        group.fake.delivers_sent(ME, ME);
        group.events();
        for _ in 0..CPG_UNCONFIRMED_MAX {
            group.send(b"x").unwrap();
        }
    }

    #[test]
    fn lengths_and_names_are_checked() {
        let mut group = Fixture::member();
        let max = group.session.body_len_max();
        assert_eq!(max, CPG_BODY_LEN_MAX);
        let long = [Bytes::from(vec![0; max]), Bytes::from_static(b"1")];
        let sent = group.session.send_all(Lane::Bulk, &long);
        assert_eq!(sent, Err(SendError::TooLong));
        group.session.send_all(Lane::Bulk, &long[..1]).unwrap();
        for name in ["", "node1", "1", "0:1", "1:2:3"] {
            let to = MemberId::new(name);
            let sent = group.session.send_one(&to, Lane::Bulk, &[]);
            assert_eq!(sent, Err(SendError::NoSuchMember), "{name}");
        }
        let many = vec![Bytes::from_static(b"1"); 1000];
        group.session.send_all(Lane::Bulk, &many).unwrap();
        let sent = group.fake.with(|state| state.sent.pop().unwrap());
        assert_eq!(sent.len(), ENVELOPE_LEN + 1000);
    }

    #[test]
    fn a_group_has_a_name_that_corosync_takes() {
        let name = |name: &str| {
            let fixture = Fixture::new();
            Session::new(name, Arc::new(fixture.fake), fixture.now).err()
        };
        assert_eq!(name(""), Some(BadGroupName));
        assert_eq!(name("a\0b"), Some(BadGroupName));
        assert_eq!(name(&"x".repeat(128)), Some(BadGroupName));
        assert_eq!(name(&"x".repeat(127)), None);
    }

    #[test]
    fn a_dead_daemon_is_connected_to_again() {
        let mut group = Fixture::member();
        group.fake.with(|state| state.cpg.push_back(Err(GONE)));
        let text = "cpg_dispatch: CS_ERR_LIBRARY: the daemon is not there";
        assert_eq!(group.events(), [Event::Lost(text.to_owned())]);
        assert_eq!(
            group.fake.with(|state| (state.muted, state.dropped)),
            (1, 0)
        );
        assert_eq!(group.session.me(), None);
        assert_eq!(group.send(b"x"), Err(SendError::NotJoined));
        group.run_jobs();
        assert_eq!(group.fake.with(|state| state.dropped), 1, "by a job");
        // It takes some attempts, each later than the one before, and then one that works.
        let down = OpenError::Failed(Failure {
            call: "cpg_model_initialize",
            code: 2,
        });
        group.fake.with(|state| state.refuses = Some(down));
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = group.session.deadline().unwrap() - group.now;
            waits.push(wait.as_millis());
            group.pass(wait);
        }
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        group.fake.with(|state| state.refuses = None);
        group.fake.quorum_says_ring(ring(4), &[1, 2, 3], true);
        group.fake_joins();
        group.pass(RECONNECT_MAX);
        assert_eq!(group.the_view().cause, "we joined");
        assert_eq!(group.session.deadline(), None);
        // The next time begins with the shortest wait again.
        group.session.reset("it hangs", group.now);
        group.run_jobs();
        let deadline = group.session.deadline();
        assert_eq!(deadline, Some(group.now + RECONNECT_MIN));
    }

    #[test]
    fn why_there_is_no_daemon_is_said_once_a_minute_unless_it_changes() {
        let mut group = Fixture::new();
        let failed = |code| {
            OpenError::Failed(Failure {
                call: "cpg_model_initialize",
                code,
            })
        };
        let mut told = Vec::new();
        for (code, secs) in [(2, 0), (2, 59), (2, 1), (11, 1), (11, 1)] {
            group.now += Duration::from_secs(secs);
            let complaints = &mut group.session.complaints;
            told.push(complaints.on_no_daemon(&failed(code), group.now));
        }
        assert_eq!(told, [true, false, true, true, false]);
    }

    #[test]
    fn a_failed_send_is_the_end_of_a_connection() {
        let mut group = Fixture::member();
        group.fake.with(|state| state.send_fails = true);
        assert_eq!(group.send(b"x"), Err(SendError::NotJoined));
        assert!(matches!(group.events()[..], [Event::Lost(_)]));
    }

    #[test]
    fn a_daemon_that_does_not_list_us_is_given_up() {
        let mut group = Fixture::member();
        let left = [(ME, Reason::ProcessDown)];
        group.fake.says(members(&[at(2), at(3)], &left, &[]));
        assert!(matches!(group.events()[..], [Event::Lost(_)]));
    }

    #[test]
    fn a_reset_begins_anew() {
        let mut group = Fixture::member();
        group.session.reset("no sign of life", group.now);
        assert_eq!(group.events(), [Event::Lost("no sign of life".to_owned())]);
        // The job that ends the old connection may last, and nothing is opened before.
        let job = group.session.take_job(group.now).unwrap();
        group.now += RECONNECT_MAX;
        group.session.on_deadline(group.now);
        assert!(group.session.take_job(group.now).is_none());
        let done = job.run();
        group.session.on_done(done, group.now);
        group.fake.quorum_says_ring(ring(4), &[1, 2, 3], true);
        group.fake_joins();
        group.run_jobs();
        group.the_view();
        assert_eq!(
            group.fake.with(|state| (state.opened, state.dropped)),
            (2, 1)
        );
    }

    #[test]
    fn a_reset_is_followed_by_a_loss_whatever_there_was() {
        let mut group = Fixture::new();
        let lost = [Event::Lost("no sign of life".to_owned())];
        group.session.reset("no sign of life", group.now);
        assert_eq!(group.events(), lost);
        group.session.join(group.now);
        let job = group.session.take_job(group.now).unwrap();
        group.session.reset("no sign of life", group.now);
        assert_eq!(group.events(), lost);
        // What is being opened is new, and is used.
        group.fake_joins();
        group.fake.quorum_says_ring(ring(4), &[1, 2, 3], true);
        let done = job.run();
        group.session.on_done(done, group.now);
        group.the_view();
        group.session.reset("no sign of life", group.now);
        group.session.reset("no sign of life", group.now);
        assert_eq!(group.events(), [lost.clone(), lost].concat());
    }

    #[test]
    fn leaving_is_done_by_a_job_and_is_no_event() {
        let mut group = Fixture::member();
        group.send(b"x").unwrap();
        group.fake.delivers_sent(ME, ME);
        group.session.on_ready(1 << 16, group.now);
        group.session.leave(group.now);
        assert_eq!(group.session.poll_event(), None);
        assert_eq!(group.fake.with(|state| state.left), 0);
        group.run_jobs();
        assert_eq!(group.fake.with(|state| (state.left, state.dropped)), (1, 1));
        assert_eq!(group.session.deadline(), None);
        group.session.join(group.now);
        group.run_jobs();
        assert_eq!(group.fake.with(|state| state.opened), 2);
    }

    #[test]
    fn a_lost_job_is_not_waited_for() {
        let mut group = Fixture::new();
        group.session.join(group.now);
        drop(group.session.take_job(group.now).unwrap());
        assert!(group.session.take_job(group.now).is_none());
        group.session.on_job_lost(group.now);
        let deadline = group.session.deadline().unwrap();
        assert_eq!(deadline, group.now + RECONNECT_MIN);
        group.pass(RECONNECT_MIN);
        assert_eq!(group.fake.with(|state| state.opened), 1);
    }

    #[test]
    fn who_leaves_while_the_door_opens_does_not_go_in() {
        let mut group = Fixture::new();
        group.session.join(group.now);
        let job = group.session.take_job(group.now).unwrap();
        group.session.leave(group.now);
        let done = job.run();
        group.session.on_done(done, group.now);
        group.run_jobs();
        assert_eq!(
            group.fake.with(|state| (state.opened, state.dropped)),
            (1, 1)
        );
        assert_eq!(group.session.deadline(), None);
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        let mut group = Fixture::member();
        let mut sender = Fixture::member();
        for _ in 0..10 {
            for _ in 0..100 {
                sender.send(b"x").unwrap();
            }
            sender.fake.delivers_sent(at(2), ME);
            let events = sender.fake.with(|state| state.cpg.split_off(0));
            group.fake.with(|state| state.cpg.extend(events));
            sender = Fixture::member();
        }
        assert!(group.session.on_ready(usize::MAX, group.now));
        assert_eq!(
            group.fake.with(|state| state.cpg.len()),
            1000 - CPG_EVENTS_MAX
        );
        assert_eq!(group.events().len(), 1000, "the rest is not forgotten");
        assert!(group.session.events.is_empty());
        assert_eq!(group.session.events_len, 0);
    }

    #[test]
    fn a_turn_has_a_budget() {
        let mut group = Fixture::member();
        for _ in 0..10 {
            group.send(b"x").unwrap();
        }
        group.fake.delivers_sent(ME, ME);
        assert!(group.session.on_ready(3 * EVENT_COST, group.now));
        assert_eq!(group.fake.with(|state| state.cpg.len()), 7);
        // If the reactor forgets, the deadline remembers.
        assert_eq!(group.session.deadline(), Some(group.now));
        group.session.on_deadline(group.now);
        assert_eq!(group.fake.with(|state| state.cpg.len()), 0);
    }

    #[test]
    fn garbage_is_dropped_and_said_once_a_minute() {
        let mut group = Fixture::member();
        let garbage = CpgEvent::Garbage {
            from: at(9),
            len: 3,
        };
        for _ in 0..3 {
            group.fake.says(garbage.clone());
        }
        assert_eq!(group.events(), []);
        assert_eq!(group.session.complaints.garbage, Some(group.now));
        assert_eq!(group.session.complaints.garbage_count, 3);
        let start = group.now;
        group.now += TROUBLE_LOG_INTERVAL - Duration::from_millis(1);
        group.fake.says(garbage.clone());
        group.events();
        assert_eq!(group.session.complaints.garbage, Some(start));
        group.now += Duration::from_millis(1);
        group.fake.says(garbage);
        group.events();
        assert_eq!(group.session.complaints.garbage, Some(group.now));
    }

    #[test]
    fn a_daemon_without_a_quorum_service_will_do() {
        for (quorum, text) in [
            (Quorum::NoProvider, "no quorum provider"),
            (
                Quorum::Unknown("libquorum.so.5".to_owned()),
                "quorum unknown",
            ),
        ] {
            let mut group = Fixture::new();
            group.fake.with(|state| state.quorum_is = quorum.clone());
            group.fake_joins();
            group.session.join(group.now);
            group.run_jobs();
            group.the_view();
            assert!(group.session.describe().contains(text));
            group.fake.with(|state| state.quorum.push_back(Err(GONE)));
            let is_asked = matches!(quorum, Quorum::NoProvider);
            assert_eq!(group.events().len(), usize::from(is_asked));
        }
    }

    #[test]
    fn what_quorum_says_meanwhile_is_for_people() {
        let mut group = Fixture::member();
        assert!(
            group
                .session
                .describe()
                .ends_with("ring 1.4 of nodes 1 2 3, quorate")
        );
        group.fake.quorum_says(QuorumEvent::Quorate {
            ring: ring(4),
            is_quorate: false,
        });
        assert_eq!(group.events(), []);
        assert!(
            group
                .session
                .describe()
                .ends_with("ring 1.4 of nodes 1 2 3, not quorate")
        );
    }

    /// What CPG and the quorum service say in a life with some rings, each by itself.
    fn a_life(random: &mut Random) -> (Vec<CpgEvent>, Vec<QuorumEvent>) {
        let all = [ME, at(2), at(3)];
        let (mut cpg, mut quorum) = (Vec::new(), Vec::new());
        let mut there: Vec<Address> = vec![ME];
        let mut number = 0;
        for seq in 1..=1 + random.below(6) {
            let old = there;
            there = all
                .into_iter()
                .filter(|it| *it == ME || random.below(2) == 0)
                .collect();
            let change = |of: &[Address], without: &[Address], reason| -> Vec<(Address, Reason)> {
                let of = of.iter().filter(|it| !without.contains(it));
                of.map(|it| (*it, reason)).collect()
            };
            let left = change(&old, &there, Reason::NodeDown);
            let mut joined = change(&there, &old, Reason::NodeUp);
            if seq == 1 {
                joined.push((ME, Reason::Join));
            }
            cpg.push(members(&there, &left, &joined));
            let id = ring(seq as u64 * 4);
            let nodes: Vec<u32> = there.iter().map(|it| it.node).collect();
            cpg.push(ring_of(id, &nodes));
            let is_quorate = there.len() > 1;
            quorum.push(QuorumEvent::Nodes { ring: id, nodes });
            // Of a ring without a majority that does not last it may say nothing.
            if is_quorate || random.below(2) == 0 {
                quorum.push(QuorumEvent::Quorate {
                    ring: id,
                    is_quorate,
                });
            }
            for _ in 0..random.below(4) {
                number += 1;
                let envelope = Envelope {
                    lane: Lane::Commit,
                    number,
                    to: None,
                };
                let data = envelope.encode();
                cpg.push(super::super::envelope::incoming(ME, at(2), &data, 0));
            }
        }
        (cpg, quorum)
    }

    /// Views and bodies that a session makes of the two, in any mixture.
    fn live(
        cpg: &[CpgEvent],
        quorum: &[QuorumEvent],
        tracked: bool,
        random: &mut Random,
    ) -> Vec<Event> {
        let mut group = Fixture::new();
        if !tracked {
            group
                .fake
                .with(|state| state.quorum_is = Quorum::Unknown(String::new()));
        }
        group.session.join(group.now);
        group.run_jobs();
        let (mut cpg, mut quorum) = (cpg.iter(), quorum.iter());
        let mut events = Vec::new();
        while cpg.len() > 0 || quorum.len() > 0 {
            if random.below(2) == 0 {
                cpg.next()
                    .into_iter()
                    .for_each(|it| group.fake.says(it.clone()));
            } else {
                quorum
                    .next()
                    .into_iter()
                    .for_each(|it| group.fake.quorum_says(it.clone()));
            }
            if random.below(2) == 0 {
                events.extend(group.events());
            }
        }
        // What nobody will say any more is waited for in vain, once for each ring.
        loop {
            events.extend(group.events());
            let Some(deadline) = group.session.deadline() else {
                break;
            };
            group.now = deadline.max(group.now);
            group.session.on_deadline(group.now);
        }
        let is_change = |pair: &[Event]| {
            matches!(
                pair,
                [Event::Transitional, Event::Transitional | Event::View(_)]
            ) || !matches!(pair, [Event::Transitional, _])
        };
        assert!(!matches!(events.last(), Some(Event::Transitional)));
        assert!(
            !tracked
                || events
                    .windows(2)
                    .all(|pair| is_change(pair) || bodies(pair))
        );
        events.retain(|event| *event != Event::Transitional);
        events
    }

    /// Bodies of the view that ends may come between its announced end and its end.
    fn bodies(pair: &[Event]) -> bool {
        matches!(pair, [Event::Transitional, Event::Body(_)])
    }

    #[test]
    fn the_mixture_of_the_streams_changes_nothing() {
        for seed in 1..2000 {
            let mut random = Random(seed);
            let (cpg, quorum) = a_life(&mut random);
            let expected = live(&cpg, &[], false, &mut random);
            let found = live(&cpg, &quorum, true, &mut random);
            assert_eq!(found, expected, "seed {seed}");
        }
    }

    /// Marsaglia's xorshift.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % end as u64).unwrap()
        }
    }
}
