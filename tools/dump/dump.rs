//! From packets, or from bytes of connections, to messages.

use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::failure::Failure;
use crate::message::{Connection, Kind, Message, Way};
use crate::output::Output;
use crate::packet::{self, Skipped};
use crate::talk::{Protocol, Talk};
use crate::tcp::{ConnectionId, Tcp, TcpEvent, What};
use crate::trace;
use crate::zeo::Budgets;

type Time = Option<Duration>;

/// All that is known of the connections of a capture.
#[derive(Debug)]
pub(crate) struct Dump<W: Write> {
    pub out: Output<W>,
    tcp: Tcp,
    events: Vec<TcpEvent>,
    talks: BTreeMap<ConnectionId, Seen>,
    ports: Vec<(u16, Protocol)>,
    budgets: Budgets,
    epoch: Instant,
    messages: Vec<Message>,
    last_number: u64,
    last_time: Time,
    packets: u64,
    cut_packets: u64,
    skipped: BTreeMap<Skipped, u64>,
    other_connections: u64,
    forgotten_calls: u64,
}

/// A connection with its state.
#[derive(Debug)]
struct Seen {
    talk: Talk,
    connection: Rc<Connection>,
    from_start: bool,
    /// Whether its first line was written.
    introduced: bool,
    opened: Time,
}

impl<W: Write> Dump<W> {
    /// `epoch` is any instant.
    pub(crate) fn new(out: Output<W>, ports: Vec<(u16, Protocol)>, epoch: Instant) -> Self {
        let mut tcp = Tcp::default();
        tcp.server_ports = ports.iter().map(|(port, _)| *port).collect();
        Self {
            out,
            tcp,
            events: Vec::new(),
            talks: BTreeMap::new(),
            ports,
            budgets: Budgets::default(),
            epoch,
            messages: Vec::new(),
            last_number: 0,
            last_time: None,
            packets: 0,
            cut_packets: 0,
            skipped: BTreeMap::new(),
            other_connections: 0,
            forgotten_calls: 0,
        }
    }

    /// A packet as it was captured; `len` is what it had on the wire. Returns whether it belongs to
    /// what we decode, as far as that can be told yet.
    pub(crate) fn packet(
        &mut self,
        time: Duration,
        link: u32,
        data: &[u8],
        len: usize,
    ) -> Result<bool, Failure> {
        self.packets += 1;
        self.last_time = self.last_time.max(Some(time));
        if link == trace::LINK {
            self.out.put(trace::message(time, data, len))?;
            return Ok(false);
        }
        let segment = match packet::segment(link, data, len) {
            Ok(segment) => segment,
            Err(skipped) => {
                *self.skipped.entry(skipped).or_default() += 1;
                return Ok(false);
            }
        };
        self.cut_packets += u64::from(segment.missing > 0);
        let mut events = std::mem::take(&mut self.events);
        let id = self.tcp.segment(time, &segment, &mut events);
        let done = events.drain(..).try_for_each(|event| self.event(event));
        self.events = events;
        done?;
        let has_known_port = [segment.from, segment.to]
            .iter()
            .any(|end| self.expected(end.port).is_some());
        let is_followed = id
            .and_then(|id| self.talks.get(&id))
            .is_some_and(|seen| !seen.talk.is_other());
        Ok(has_known_port || is_followed)
    }

    /// A packet that is of no use to us.
    pub(crate) fn skip(&mut self, why: Skipped) {
        self.packets += 1;
        *self.skipped.entry(why).or_default() += 1;
    }

    fn event(&mut self, event: TcpEvent) -> Result<(), Failure> {
        let TcpEvent { time, id, what } = event;
        let time = Some(time);
        match what {
            What::Opened {
                client,
                server,
                from_start,
            } => {
                let expected = self.expected(server.port);
                let names = [client.to_string(), server.to_string()];
                self.open(time, id, names, expected, from_start);
                Ok(())
            }
            What::Data(way, data) => self.data(time, id, way, &data),
            What::Gap(way, len) => self.gap(time, id, way, len),
            What::Finished(way) => self.end_stream(time, id, way),
            What::Closed(why) => self.close(time, id, why),
            What::Repeated(way, len) => {
                let message = Message::new(time, Kind::Connection, "repeated").with("len", len);
                self.detail(id, way, message)
            }
        }
    }

    /// What is spoken at a port, if that is known.
    pub(crate) fn expected(&self, port: u16) -> Option<Protocol> {
        let known = self.ports.iter().find(|(known, _)| *known == port);
        known.map(|(_, protocol)| *protocol)
    }

    /// A connection begins.
    pub(crate) fn open(
        &mut self,
        time: Time,
        id: ConnectionId,
        [client, server]: [String; 2],
        expected: Option<Protocol>,
        from_start: bool,
    ) {
        let connection = Rc::new(Connection {
            number: 0,
            client,
            server,
        });
        let seen = Seen {
            talk: Talk::new(expected, from_start, &self.budgets, self.epoch),
            connection,
            from_start,
            introduced: false,
            opened: time,
        };
        self.talks.insert(id, seen);
    }

    /// Bytes of a connection.
    pub(crate) fn data(
        &mut self,
        time: Time,
        id: ConnectionId,
        way: Way,
        data: &Bytes,
    ) -> Result<(), Failure> {
        self.last_time = self.last_time.max(time);
        self.talk(id, |talk, out| talk.receive(time, way, data, out))
    }

    /// Bytes of a connection that are missing.
    fn gap(&mut self, time: Time, id: ConnectionId, way: Way, len: u64) -> Result<(), Failure> {
        self.talk(id, |talk, out| talk.gap(time, way, len, out))
    }

    /// One side of a connection sends no more.
    pub(crate) fn end_stream(
        &mut self,
        time: Time,
        id: ConnectionId,
        way: Way,
    ) -> Result<(), Failure> {
        self.talk(id, |talk, out| talk.finish(time, way, out))?;
        let message = Message::new(time, Kind::Connection, "end-of-stream");
        self.detail(id, way, message)
    }

    /// A connection ends.
    pub(crate) fn close(&mut self, time: Time, id: ConnectionId, why: &str) -> Result<(), Failure> {
        self.talk(id, |talk, out| talk.end(time, out))?;
        let Some(seen) = self.talks.remove(&id) else {
            return Ok(());
        };
        self.forgotten_calls += seen.talk.forgotten();
        if !seen.introduced {
            // Nothing of ours was said.
            self.other_connections += 1;
            return Ok(());
        }
        let mut message = Message::new(time, Kind::Connection, "close").with("why", why);
        message.connection = Some(seen.connection);
        self.out.put(message)
    }

    /// The decoder of a connection.
    pub(crate) fn talk_of(&self, id: ConnectionId) -> Option<&Talk> {
        self.talks.get(&id).map(|seen| &seen.talk)
    }

    /// Lets a connection decode something, and shows what comes out.
    fn talk(
        &mut self,
        id: ConnectionId,
        decode: impl FnOnce(&mut Talk, &mut Vec<Message>),
    ) -> Result<(), Failure> {
        let Some(seen) = self.talks.get_mut(&id) else {
            return Ok(());
        };
        let mut messages = std::mem::take(&mut self.messages);
        decode(&mut seen.talk, &mut messages);
        if !messages.is_empty() {
            self.introduce(id)?;
        }
        let connection = self.talks.get(&id).map(|seen| Rc::clone(&seen.connection));
        let done = messages.drain(..).try_for_each(|mut message| {
            message.connection.clone_from(&connection);
            self.out.put(message)
        });
        self.messages = messages;
        done
    }

    /// Gives a connection its number, and its first line.
    fn introduce(&mut self, id: ConnectionId) -> Result<(), Failure> {
        let Some(seen) = self.talks.get_mut(&id).filter(|seen| !seen.introduced) else {
            return Ok(());
        };
        seen.introduced = true;
        self.last_number += 1;
        let connection = Rc::make_mut(&mut seen.connection);
        connection.number = self.last_number;
        let mut message = Message::new(seen.opened, Kind::Connection, "open")
            .with("client", connection.client.as_str())
            .with("server", connection.server.as_str());
        if let Some(protocol) = seen.talk.protocol() {
            message = message.with("protocol", protocol);
        }
        if !seen.from_start {
            message = message.with("begin", "not captured");
        }
        message.connection = Some(Rc::clone(&seen.connection));
        self.out.put(message)
    }

    /// Something that only people who look at packets want to know.
    fn detail(&mut self, id: ConnectionId, way: Way, mut message: Message) -> Result<(), Failure> {
        let seen = self.talks.get(&id).filter(|seen| seen.introduced);
        let Some(seen) = seen else { return Ok(()) };
        message.connection = Some(Rc::clone(&seen.connection));
        message.way = Some(way);
        message.is_detail = true;
        self.out.put(message)
    }

    /// The end of all packets.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        let time = self.last_time;
        let mut events = Vec::new();
        self.tcp.finish(time.unwrap_or_default(), &mut events);
        events.into_iter().try_for_each(|event| self.event(event))?;
        let open: Vec<ConnectionId> = self.talks.keys().copied().collect();
        for id in open {
            self.close(time, id, "the capture ends")?;
        }
        self.out.finish()
    }

    /// What was not shown, for people, and whether something is missing that should not be.
    pub(crate) fn notes(&self) -> (Vec<String>, bool) {
        let counts = &self.tcp.counts;
        let mut notes = Vec::new();
        let mut note = |count: u64, what: &str| {
            if count > 0 {
                notes.push(format!("{count} {what}"));
            }
        };
        note(self.packets, "packets");
        for (skipped, count) in &self.skipped {
            note(*count, &format!("packets skipped: {skipped}"));
        }
        note(self.cut_packets, "packets cut short by the capture");
        note(counts.duplicates, "packets captured twice");
        note(counts.repeated_len, "bytes sent again");
        note(counts.missing_len, "bytes missing");
        note(counts.gaps, "gaps");
        note(counts.strays, "packets of connections that had ended");
        note(counts.late_len, "bytes behind the end of their connections");
        note(counts.forgotten, "connections given up: too many at a time");
        note(
            self.forgotten_calls,
            "calls forgotten: too many without a reply",
        );
        note(
            self.other_connections,
            "connections of other protocols, or without content",
        );
        note(self.out.troubles, "troubles");
        let is_incomplete = self.out.troubles > 0
            || counts.gaps > 0
            || counts.forgotten > 0
            || self.forgotten_calls > 0
            || self
                .skipped
                .iter()
                .any(|(skipped, _)| !matches!(skipped, Skipped::NotIp | Skipped::NotTcp));
        (notes, is_incomplete)
    }
}
