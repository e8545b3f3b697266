//! A connection: which protocol it speaks, and what is said in it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::message::{Kind, Message, Way};
use crate::spread::Spread;
use crate::zeo::{Budgets, Zeo};

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    Zeo,
    Spread,
}

impl Protocol {
    pub(crate) const ALL: [(&str, Self); 2] = [("zeo", Self::Zeo), ("spread", Self::Spread)];

    pub(crate) fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, protocol)| *protocol)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Zeo => "zeo",
            Self::Spread => "spread",
        }
    }
}

type Time = Option<Duration>;

/// What is known of a connection.
#[derive(Debug)]
pub(crate) struct Talk {
    state: State,
    /// What the port says.
    expected: Option<Protocol>,
    from_start: bool,
    budgets: Budgets,
    epoch: Instant,
}

#[derive(Debug)]
enum State {
    /// Too little has come to tell.
    Undecided(Vec<(Time, Way, Bytes)>),
    Zeo(Box<Zeo>),
    Spread(Box<Spread>),
    /// Encrypted
    Tls,
    /// Nothing of ours.
    Other,
}

/// Bytes by which a protocol is known.
const GREETING_LEN: usize = 16;

/// Pieces in which these may come, and all bytes that may come before it is known.
const PIECES_MAX: usize = 64;
const UNDECIDED_LEN_MAX: usize = 4096;

impl Talk {
    /// `expected` is what the port of the server says. `from_start`: whether its first bytes will
    /// be seen.
    pub(crate) fn new(
        expected: Option<Protocol>,
        from_start: bool,
        budgets: &Budgets,
        epoch: Instant,
    ) -> Self {
        let mut talk = Self {
            state: State::Undecided(Vec::new()),
            expected,
            from_start,
            budgets: budgets.clone(),
            epoch,
        };
        if !from_start {
            // Without a greeting there is but the port to tell.
            talk.state = expected.map_or(State::Other, |protocol| talk.decoder(protocol));
        }
        talk
    }

    /// What it speaks, as far as that is known; for people.
    pub(crate) const fn protocol(&self) -> Option<&'static str> {
        match self.state {
            State::Undecided(_) => None,
            State::Zeo(_) => Some(Protocol::Zeo.name()),
            State::Spread(_) => Some(Protocol::Spread.name()),
            State::Tls => Some("tls"),
            State::Other => Some("other"),
        }
    }

    /// Whether it is nothing of ours.
    pub(crate) const fn is_other(&self) -> bool {
        matches!(self.state, State::Other)
    }

    /// Calls of this connection that were forgotten.
    pub(crate) fn forgotten(&self) -> u64 {
        match &self.state {
            State::Zeo(zeo) => zeo.forgotten,
            _ => 0,
        }
    }

    fn decoder(&self, protocol: Protocol) -> State {
        match protocol {
            Protocol::Zeo => State::Zeo(Box::new(Zeo::new(self.from_start, &self.budgets))),
            Protocol::Spread => State::Spread(Box::new(Spread::new(self.from_start, self.epoch))),
        }
    }

    /// Takes bytes; what they say is appended to `out`.
    pub(crate) fn receive(&mut self, time: Time, way: Way, data: &Bytes, out: &mut Vec<Message>) {
        match &mut self.state {
            State::Zeo(zeo) => zeo.receive(time, way, data, out),
            State::Spread(spread) => spread.receive(time, way, data, out),
            State::Tls | State::Other => {}
            State::Undecided(seen) => {
                seen.push((time, way, data.clone()));
                let decided = decide(seen, self.expected);
                let len: usize = seen.iter().map(|(_, _, data)| data.len()).sum();
                let is_enough = seen.len() >= PIECES_MAX || len >= UNDECIDED_LEN_MAX;
                match decided {
                    Some(Decision::Speaks(protocol)) => self.begin(protocol, out),
                    Some(Decision::Tls) => {
                        self.state = State::Tls;
                        out.push(
                            Message::new(time, Kind::Trouble, "tls")
                                .with("why", "encrypted: only who has the keys can read on"),
                        );
                    }
                    Some(Decision::Other) => self.state = State::Other,
                    None if is_enough => {
                        self.state = State::Other;
                    }
                    None => {}
                }
            }
        }
    }

    /// Decodes what has come so far, and from here on what comes.
    fn begin(&mut self, protocol: Protocol, out: &mut Vec<Message>) {
        let decoder = self.decoder(protocol);
        let state = std::mem::replace(&mut self.state, decoder);
        if let State::Undecided(seen) = state {
            for (time, way, data) in seen {
                self.receive(time, way, &data, out);
            }
        }
    }

    /// So many bytes are missing.
    pub(crate) fn gap(&mut self, time: Time, way: Way, len: u64, out: &mut Vec<Message>) {
        if let State::Undecided(_) = self.state {
            self.settle(out);
        }
        if self.is_other() {
            return;
        }
        let mut missing = Message::new(time, Kind::Trouble, "gap").with("missing", len);
        missing.way = Some(way);
        out.push(missing);
        match &mut self.state {
            State::Zeo(zeo) => zeo.gap(time, way, len, out),
            State::Spread(spread) => spread.gap(time, way, len, out),
            State::Undecided(_) | State::Tls | State::Other => {}
        }
    }

    /// No more will help to tell what it speaks.
    fn settle(&mut self, out: &mut Vec<Message>) {
        match self.expected {
            Some(protocol) => self.begin(protocol, out),
            None => self.state = State::Other,
        }
    }

    /// One side sends no more.
    pub(crate) fn finish(&mut self, time: Time, way: Way, out: &mut Vec<Message>) {
        match &mut self.state {
            State::Zeo(zeo) => zeo.finish(time, way, out),
            State::Spread(spread) => spread.finish(time, way, out),
            State::Undecided(_) | State::Tls | State::Other => {}
        }
    }

    /// It has ended.
    pub(crate) fn end(&mut self, time: Time, out: &mut Vec<Message>) {
        if let State::Undecided(_) = self.state {
            self.settle(out);
        }
        match &mut self.state {
            State::Zeo(zeo) => zeo.end(time, out),
            State::Spread(spread) => spread.end(time, out),
            State::Undecided(_) | State::Tls | State::Other => {}
        }
    }

    /// The decoder, if it is one of ZEO.
    pub(crate) const fn zeo(&self) -> Option<&Zeo> {
        match &self.state {
            State::Zeo(zeo) => Some(zeo),
            _ => None,
        }
    }
}

enum Decision {
    Speaks(Protocol),
    Tls,
    Other,
}

/// What these bytes are the begin of; `None` as long as that is open.
fn decide(seen: &[(Time, Way, Bytes)], expected: Option<Protocol>) -> Option<Decision> {
    let begin = |way: Way| {
        let of_way = seen.iter().filter(|(_, seen_way, _)| *seen_way == way);
        let bytes = of_way.flat_map(|(_, _, data)| data.iter().copied());
        bytes.take(GREETING_LEN).collect::<Vec<u8>>()
    };
    let [from_client, from_server] = [Way::ToServer, Way::ToClient].map(begin);
    // A handshake of TLS has the type 22 and the version 3 (RFC 8446, section 5.1).
    if from_client.starts_with(&[0x16, 3]) {
        return Some(Decision::Tls);
    }
    if let Some(protocol) = expected {
        // Two bytes would be TLS.
        let is_told = from_client.len() >= 2 || !from_server.is_empty();
        return is_told.then_some(Decision::Speaks(protocol));
    }
    let zeo = [
        Zeo::is_greeting(Way::ToServer, &from_client),
        Zeo::is_greeting(Way::ToClient, &from_server),
    ];
    let spread = Spread::is_greeting(&from_client);
    if zeo.contains(&Some(true)) {
        Some(Decision::Speaks(Protocol::Zeo))
    } else if spread == Some(true) {
        Some(Decision::Speaks(Protocol::Spread))
    } else if zeo.contains(&Some(false)) && spread == Some(false) {
        Some(Decision::Other)
    } else {
        None
    }
}
