//! The recording proxy: stands between clients and a server, shows what passes, and changes
//! nothing of it.
//!
//! Each client that connects to a listener gets a connection of its own to the target. What one
//! side sends goes to the other one; who is slow makes the other one wait; the end of a stream is
//! passed on as such. A target that cannot be reached ends the client's connection.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use standby::exit::Exit;
use standby::limits::{OUTPUT_PAUSE_LEN, OUTPUT_RESUME_LEN};
use standby::reactor::hub::{Address, ConnectionId, Hub, ListenerId, Service};

use crate::dump::Dump;
use crate::failure::Failure;
use crate::message::Way;
use crate::record::Recorder;

/// What is shown and recorded while it passes.
struct Proxy<'a, W: Write, R: Write> {
    dump: &'a mut Dump<W>,
    recorder: Option<&'a mut Recorder<R>>,
    /// In the order of the listeners.
    targets: Vec<(String, Address)>,
    ends: BTreeMap<ConnectionId, End>,
    /// Clients so far.
    last_pair: u64,
    /// What was said last of targets that cannot be reached.
    complaint: Option<String>,
    /// Why it cannot go on.
    failure: Option<Failure>,
}

/// One of the two connections of a client.
#[derive(Clone, Copy, Debug)]
struct End {
    pair: u64,
    other: ConnectionId,
    /// Which way goes what comes from it.
    way: Way,
    /// It sends no more.
    has_ended: bool,
    /// It stands.
    is_connected: bool,
}

/// When a connection is closed whatever still waits for it.
type Timer = ConnectionId;

/// How long somebody whose other side is gone may take to read what was left for them.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until a signal.
pub(crate) fn run<W: Write, R: Write>(
    pairs: &[(String, String)],
    dump: &mut Dump<W>,
    recorder: Option<&mut Recorder<R>>,
) -> Result<(), Failure> {
    let mut hub = Hub::new().map_err(|error| Failure::system("the reactor", error))?;
    let mut targets = Vec::new();
    for (from, to) in pairs {
        let listen = address(from)?;
        targets.push((to.clone(), address(to)?));
        let listening = hub.listen(&listen);
        let (_, places) = listening.map_err(|error| Failure::system(from, error))?;
        for place in places {
            // Whoever starts this may wait for it to be ready.
            let _ = writeln!(io::stderr(), "zeodump: listening on {place}");
        }
    }
    let mut proxy = Proxy {
        dump,
        recorder,
        targets,
        ends: BTreeMap::new(),
        last_pair: 0,
        complaint: None,
        failure: None,
    };
    let ended = hub.run(&mut proxy);
    match proxy.failure {
        Some(failure) => Err(failure),
        None => ended
            .map(drop)
            .map_err(|error| Failure::system("the reactor", error)),
    }
}

fn address(text: &str) -> Result<Address, Failure> {
    text.parse()
        .map_err(|expected| Failure::Usage(format!("{text:?} is not {expected}")))
}

impl<W: Write, R: Write> Proxy<'_, W, R> {
    /// Notes why it cannot go on.
    fn check(&mut self, done: Result<(), Failure>, hub: &mut Hub<Timer>) {
        if let Err(failure) = done {
            self.failure.get_or_insert(failure);
            hub.stop(Exit::Stopped);
        }
    }

    fn open(
        &mut self,
        pair: u64,
        listener: ListenerId,
        peer: &str,
        hub: &Hub<Timer>,
    ) -> Result<(), Failure> {
        let Some((name, target)) = self.targets.get(listener.0) else {
            return Ok(());
        };
        let port = match target {
            Address::Tcp { port, .. } => Some(*port),
            // Spread's daemon names its socket so.
            Address::Unix(path) => path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok()),
        };
        let expected = port.and_then(|port| self.dump.expected(port));
        let names = [peer.to_owned(), name.clone()];
        let time = hub.wall();
        self.dump.open(Some(time), pair, names, expected, true);
        let Some(recorder) = &mut self.recorder else {
            return Ok(());
        };
        recorder.open(time, pair, [peer, name], port.unwrap_or(ZEO_PORT))
    }

    /// Tells why there is no conversation: once, as clients try again and again.
    fn cannot_connect(&mut self, why: &str) {
        if self.complaint.as_deref() != Some(why) {
            let _ = writeln!(io::stderr(), "zeodump: no connection to {why}");
            self.complaint = Some(why.to_owned());
        }
    }

    /// One of two connections is gone, and the other one goes when all is written.
    fn drop_pair(&mut self, id: ConnectionId, why: &str, hub: &mut Hub<Timer>) {
        let Some(end) = self.ends.remove(&id) else {
            return;
        };
        self.ends.remove(&end.other);
        hub.close(end.other);
        let time = hub.wall();
        let done = self.dump.close(Some(time), end.pair, why);
        self.check(done, hub);
        if let Some(recorder) = &mut self.recorder {
            let done = recorder.close(time, end.pair, end.way);
            self.check(done, hub);
        }
    }
}

/// The port of a server on a Unix socket, in a recording.
const ZEO_PORT: u16 = 8100;

impl<W: Write, R: Write> Service for Proxy<'_, W, R> {
    type Timer = Timer;

    fn on_accept(
        &mut self,
        id: ConnectionId,
        listener: ListenerId,
        peer: &str,
        hub: &mut Hub<Timer>,
    ) {
        let Some((name, target)) = self.targets.get(listener.0) else {
            return;
        };
        let other = match hub.connect(target) {
            Ok(other) => other,
            Err(error) => {
                let why = format!("{name}: {error}");
                self.cannot_connect(&why);
                hub.abort(id);
                return;
            }
        };
        self.last_pair += 1;
        let pair = self.last_pair;
        for (from, to, way) in [(id, other, Way::ToServer), (other, id, Way::ToClient)] {
            let end = End {
                pair,
                other: to,
                way,
                has_ended: false,
                is_connected: way == Way::ToServer,
            };
            self.ends.insert(from, end);
        }
        let done = self.open(pair, listener, peer, hub);
        self.check(done, hub);
    }

    fn on_connected(&mut self, id: ConnectionId, _hub: &mut Hub<Timer>) {
        if let Some(end) = self.ends.get_mut(&id) {
            end.is_connected = true;
            self.complaint = None;
        }
    }

    fn on_timer(&mut self, id: ConnectionId, hub: &mut Hub<Timer>) {
        hub.abort(id);
    }

    fn receive(&mut self, id: ConnectionId, data: &[u8], hub: &mut Hub<Timer>) {
        let Some(end) = self.ends.get(&id).copied() else {
            return;
        };
        let data = Bytes::copy_from_slice(data);
        hub.send(end.other, data.clone());
        if hub.queued(end.other) >= OUTPUT_PAUSE_LEN {
            hub.set_reading(id, false);
        }
        let time = hub.wall();
        let done = self.dump.data(Some(time), end.pair, end.way, &data);
        self.check(done, hub);
        if let Some(recorder) = &mut self.recorder {
            let done = recorder.data(time, end.pair, end.way, &data);
            self.check(done, hub);
        }
    }

    fn on_written(&mut self, id: ConnectionId, _len: usize, hub: &mut Hub<Timer>) {
        if let Some(end) = self.ends.get(&id)
            && hub.queued(id) <= OUTPUT_RESUME_LEN
        {
            hub.set_reading(end.other, true);
        }
    }

    fn on_end(&mut self, id: ConnectionId, hub: &mut Hub<Timer>) {
        let Some(end) = self.ends.get_mut(&id) else {
            return;
        };
        end.has_ended = true;
        let End {
            pair, other, way, ..
        } = *end;
        let time = hub.wall();
        let done = self.dump.end_stream(Some(time), pair, way);
        self.check(done, hub);
        if let Some(recorder) = &mut self.recorder {
            let done = recorder.finish(time, pair, way);
            self.check(done, hub);
        }
        if self.ends.get(&other).is_some_and(|other| other.has_ended) {
            hub.close(id);
            self.drop_pair(id, "closed", hub);
        } else {
            hub.finish(other);
        }
    }

    fn on_broken(&mut self, id: ConnectionId, error: &io::Error, hub: &mut Hub<Timer>) {
        if let Some(end) = self.ends.get(&id) {
            hub.set_timer(end.other, Some(hub.now() + LAST_WORDS_TIMEOUT));
            if !end.is_connected {
                self.cannot_connect(&format!("the target: {error}"));
            }
        }
        self.drop_pair(id, &error.to_string(), hub);
    }

    fn end_turn(&mut self, hub: &mut Hub<Timer>) {
        let done = self.dump.out.flush();
        self.check(done, hub);
        if let Some(recorder) = &mut self.recorder {
            let done = recorder.flush();
            self.check(done, hub);
        }
    }
}
