//! The daemons with their sockets: what connections say goes to [`Daemons`], and what those want
//! is done.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use standby::exit::Exit;
use standby::group::spread::wire::HEADER_LEN;
use standby::reactor::hub::{Address, ConnectionId, Hub, ListenerId, Service};

use crate::args::Options;
use crate::daemon::{self, Command, Daemons, Output, SessionId};

/// Steps of the daemons in one call: others have to have their turn.
const STEPS_PER_CALL: usize = 64;

/// Bytes of a command.
const COMMAND_LEN_MAX: usize = 64 * 1024;

/// All that is connected.
pub(crate) struct Groupd {
    daemons: Daemons,
    /// By listener
    doors: Vec<Door>,
    sessions: BTreeMap<ConnectionId, SessionId>,
    connections: BTreeMap<SessionId, ConnectionId>,
    /// Those that give commands, with what they have said of the next.
    controls: BTreeMap<ConnectionId, Vec<u8>>,
    small_writes: bool,
    /// Those that were sent something in this step.
    sent: BTreeSet<SessionId>,
}

/// Who is behind a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Daemon(usize),
    Control,
}

/// What has a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The daemons have something to do at that time.
    Deadline,
    /// They have more to do than one call allowed.
    More,
}

impl Groupd {
    /// Listens, says where by `print`, and serves until a signal or a command ends it.
    pub(crate) fn run(options: &Options, print: impl FnOnce(&str)) -> Result<Exit, (Exit, String)> {
        let internal = |error: io::Error| (Exit::Internal, format!("cannot start: {error}"));
        let mut hub = Hub::new().map_err(internal)?;
        let mut doors = Vec::new();
        let mut text = String::new();
        for (daemon, (name, addresses)) in options.daemons.iter().enumerate() {
            for address in addresses {
                for place in listen(&mut hub, address)? {
                    text.push_str(&format!("daemon {name}: {place}\n"));
                }
                doors.push(Door::Daemon(daemon));
            }
        }
        if let Some(path) = &options.control {
            for place in listen(&mut hub, &Address::Unix(path.clone()))? {
                text.push_str(&format!("control: {place}\n"));
            }
            doors.push(Door::Control);
        }
        text.push_str("ready\n");
        let names = options.daemons.iter().map(|(name, _)| name.clone());
        let settings = daemon::Options {
            names: names.collect(),
            endian: options.endian,
            detection: options.detection,
            denied: options.denied.clone(),
            sticky: options.sticky.clone(),
            epoch: u32::try_from(hub.wall().as_secs()).unwrap_or_default(),
        };
        let mut groupd = Self {
            daemons: Daemons::new(settings, hub.now()),
            doors,
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            controls: BTreeMap::new(),
            small_writes: options.small_writes,
            sent: BTreeSet::new(),
        };
        print(&text);
        hub.run(&mut groupd).map_err(internal)
    }

    /// Does what the daemons want, and lets them go on.
    fn follow(&mut self, hub: &mut Hub<Timer>) {
        for _ in 0..STEPS_PER_CALL {
            self.perform(hub);
            if !self.daemons.step(hub.now()) {
                break;
            }
        }
        self.perform(hub);
        hub.set_timer(Timer::Deadline, self.daemons.deadline());
        let more = self.daemons.has_more().then(|| hub.now());
        hub.set_timer(Timer::More, more);
    }

    fn perform(&mut self, hub: &mut Hub<Timer>) {
        while let Some(output) = self.daemons.poll_output() {
            match output {
                Output::Send(id, head, data) => self.send(id, head, data, hub),
                Output::Close(id) => {
                    // What was said before has been written, if there was room.
                    self.flush(id, hub);
                    if let Some(connection) = self.connections.remove(&id) {
                        self.sessions.remove(&connection);
                        hub.abort(connection);
                    }
                }
                Output::Read(id, reading) => {
                    if let Some(connection) = self.connections.get(&id) {
                        hub.set_reading(*connection, reading);
                    }
                }
                Output::Write(id, writing) => {
                    if let Some(connection) = self.connections.get(&id) {
                        hub.set_writing(*connection, writing);
                    }
                }
                Output::Accept(daemon, accepting) => {
                    for (at, door) in self.doors.iter().enumerate() {
                        if *door == Door::Daemon(daemon) {
                            hub.set_accepting(ListenerId(at), accepting);
                        }
                    }
                }
            }
        }
        // At once, and not at the end of the turn: what a socket takes at once does not make its
        // client look slow.
        for id in std::mem::take(&mut self.sent) {
            self.flush(id, hub);
        }
    }

    fn send(&mut self, id: SessionId, head: Bytes, data: Bytes, hub: &mut Hub<Timer>) {
        let Some(connection) = self.connections.get(&id).copied() else {
            return;
        };
        if self.small_writes {
            let mut head = head;
            if head.len() < HEADER_LEN {
                for _ in 1..head.len().min(6) {
                    hub.send(connection, head.split_to(1));
                    self.flush(id, hub);
                }
            } else {
                hub.send(connection, head.split_to(HEADER_LEN));
                self.flush(id, hub);
            }
            hub.send(connection, head);
        } else {
            hub.send(connection, head);
        }
        hub.send(connection, data);
        self.sent.insert(id);
    }

    fn flush(&mut self, id: SessionId, hub: &mut Hub<Timer>) {
        if let Some(connection) = self.connections.get(&id) {
            let len = hub.flush(*connection);
            self.daemons.on_written(id, len);
        }
    }

    /// Commands have come. Each gets an answer of one line.
    fn obey(&mut self, id: ConnectionId, data: &[u8], hub: &mut Hub<Timer>) {
        let Some(mut text) = self.controls.remove(&id) else {
            return;
        };
        text.extend_from_slice(data);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            log::info!("command: {}", line.trim());
            let answer = match Command::parse(line.trim()) {
                Ok(command) => self.command(&command, hub),
                Err(problem) => Err(problem),
            };
            let answer = match answer {
                Ok(text) if text.is_empty() => "ok\n".to_owned(),
                Ok(text) => format!("ok {text}\n"),
                Err(problem) => format!("error {problem}\n"),
            };
            hub.send(id, answer.into());
        }
        if text.len() > COMMAND_LEN_MAX {
            hub.send(id, Bytes::from_static(b"error that is too long\n"));
            return hub.close(id);
        }
        self.controls.insert(id, text);
    }

    fn command(&mut self, command: &Command, hub: &mut Hub<Timer>) -> Result<String, String> {
        if *command == Command::Quit {
            hub.stop(Exit::Stopped);
        }
        let answer = self.daemons.command(command, hub.now());
        self.follow(hub);
        answer
    }
}

impl Service for Groupd {
    type Timer = Timer;

    fn on_accept(
        &mut self,
        id: ConnectionId,
        listener: ListenerId,
        peer: &str,
        hub: &mut Hub<Timer>,
    ) {
        match self.doors.get(listener.0) {
            Some(Door::Daemon(daemon)) => {
                let session = self.daemons.connect(*daemon, hub.now());
                log::debug!("{session}: connected ({peer})");
                self.sessions.insert(id, session);
                self.connections.insert(session, id);
                self.follow(hub);
            }
            Some(Door::Control) => _ = self.controls.insert(id, Vec::new()),
            None => hub.abort(id),
        }
    }

    fn receive(&mut self, id: ConnectionId, data: &[u8], hub: &mut Hub<Timer>) {
        match self.sessions.get(&id) {
            Some(session) => {
                self.daemons.receive(*session, data, hub.now());
                self.follow(hub);
            }
            None => self.obey(id, data, hub),
        }
    }

    fn on_end(&mut self, id: ConnectionId, hub: &mut Hub<Timer>) {
        match self.sessions.get(&id) {
            Some(session) => {
                self.daemons.on_end(*session, hub.now());
                self.follow(hub);
            }
            None => {
                self.controls.remove(&id);
                hub.close(id);
            }
        }
    }

    fn on_broken(&mut self, id: ConnectionId, _: &io::Error, hub: &mut Hub<Timer>) {
        self.controls.remove(&id);
        if let Some(session) = self.sessions.remove(&id) {
            self.connections.remove(&session);
            self.daemons.on_broken(session, hub.now());
            self.follow(hub);
        }
    }

    fn on_written(&mut self, id: ConnectionId, len: usize, _: &mut Hub<Timer>) {
        if let Some(session) = self.sessions.get(&id) {
            self.daemons.on_written(*session, len);
        }
    }

    fn on_timer(&mut self, _: Timer, hub: &mut Hub<Timer>) {
        self.daemons.on_deadline(hub.now());
        self.follow(hub);
    }

    fn on_stop(&mut self, hub: &mut Hub<Timer>) {
        // Those who gave the last command get their answer.
        for id in std::mem::take(&mut self.controls).into_keys() {
            hub.close(id);
        }
    }
}

fn listen(hub: &mut Hub<Timer>, address: &Address) -> Result<Vec<String>, (Exit, String)> {
    let listening = hub.listen(address);
    let problem = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::AddrInUse => Exit::Usage,
            _ => Exit::Internal,
        };
        (exit, format!("address {address}: {error}"))
    };
    listening.map(|(_, places)| places).map_err(problem)
}
