//! Daemons without sockets, with a clock that stands until it is moved.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use standby::group::spread::wire::Endian;

use crate::daemon::{Command, Daemons, Options, Output, SessionId};

/// What one connection has got.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    pub(crate) bytes: Vec<u8>,
    /// By the daemon
    pub(crate) closed: bool,
    /// What the daemon said last about reading and writing it.
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    /// Bytes that its socket takes from now on.
    pub(crate) room: usize,
    /// What waits for room.
    pub(crate) unsent: Vec<u8>,
    /// When each frame was sent to it: bytes before it, and the number of the call.
    pub(crate) sent_at: Vec<(usize, u64)>,
    /// Bytes sent to it
    sent_len: usize,
    /// What it has said and nobody has read.
    unread: Vec<Vec<u8>>,
    /// It has ended behind that.
    ended: bool,
}

/// The daemons with all that is connected to them.
pub(crate) struct World {
    pub(crate) daemons: Daemons,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) clients: BTreeMap<SessionId, Client>,
    /// By daemon, as far as it was said
    pub(crate) accepts: BTreeMap<usize, bool>,
    /// Calls so far
    calls: u64,
}

impl World {
    pub(crate) fn new(names: &[&str], endian: Endian) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had in no other way"
        )]
        let now = Instant::now();
        let options = Options {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            endian,
            detection: Duration::from_millis(50),
            epoch: 8567,
            // The policy of the daemon in `15`; the others have no such names.
            denied: Some("denied".to_owned()),
            sticky: Some("sticky".to_owned()),
        };
        Self {
            daemons: Daemons::new(options, now),
            start: now,
            now,
            clients: BTreeMap::new(),
            accepts: BTreeMap::new(),
            calls: 0,
        }
    }

    pub(crate) fn connect(&mut self, daemon: usize) -> SessionId {
        let id = self.daemons.connect(daemon, self.now);
        let client = Client {
            reads: true,
            writes: true,
            room: usize::MAX,
            ..Client::default()
        };
        self.clients.insert(id, client);
        self.follow();
        id
    }

    /// What one read of the daemon gives, when it reads.
    pub(crate) fn receive(&mut self, id: SessionId, data: &[u8]) {
        let client = self.clients.get_mut(&id).unwrap();
        client.unread.push(data.to_vec());
        self.read(id);
    }

    /// The client closes its connection.
    pub(crate) fn end(&mut self, id: SessionId) {
        self.clients.get_mut(&id).unwrap().ended = true;
        self.read(id);
    }

    /// What the client has said is read, if it is read at all.
    fn read(&mut self, id: SessionId) {
        loop {
            let client = self.clients.get_mut(&id).unwrap();
            if !client.reads || client.closed {
                return;
            }
            if !client.unread.is_empty() {
                let data = client.unread.remove(0);
                self.daemons.receive(id, &data, self.now);
            } else if client.ended {
                client.ended = false;
                self.daemons.on_end(id, self.now);
            } else {
                return;
            }
            self.follow();
        }
    }

    pub(crate) fn command(&mut self, line: &str) -> Result<String, String> {
        let answer = self.daemons.command(&Command::parse(line)?, self.now);
        self.follow();
        self.read_all();
        answer
    }

    /// Lets the time pass, with all that happens meanwhile.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.daemons.deadline().filter(|at| *at <= end) {
            assert!(deadline > self.now || deadline >= self.start);
            self.now = self.now.max(deadline);
            self.daemons.on_deadline(self.now);
            self.follow();
            self.read_all();
        }
        self.now = end;
    }

    fn write(&mut self, id: SessionId) {
        let client = self.clients.get_mut(&id).unwrap();
        if client.writes && !client.closed {
            let len = client.unsent.len().min(client.room);
            client.bytes.extend(client.unsent.drain(..len));
            if client.room != usize::MAX {
                client.room -= len;
            }
            self.daemons.on_written(id, len);
        }
    }

    fn follow(&mut self) {
        self.calls += 1;
        loop {
            self.perform();
            if !self.daemons.step(self.now) {
                break;
            }
        }
        self.perform();
    }

    /// Reads those who may be read again.
    fn read_all(&mut self) {
        let clients = self.clients.iter();
        let waiting = clients.filter(|(_, it)| it.reads && (it.ended || !it.unread.is_empty()));
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.read(id);
        }
    }

    fn perform(&mut self) {
        while let Some(output) = self.daemons.poll_output() {
            match output {
                Output::Send(id, head, data) => {
                    // It may be refused before its connect has returned.
                    let client = self.clients.entry(id).or_default();
                    client.sent_at.push((client.sent_len, self.calls));
                    client.sent_len += head.len() + data.len();
                    client.unsent.extend_from_slice(&head);
                    client.unsent.extend_from_slice(&data);
                    self.write(id);
                }
                Output::Close(id) => self.clients.entry(id).or_default().closed = true,
                Output::Read(id, reads) => self.clients.get_mut(&id).unwrap().reads = reads,
                Output::Write(id, writes) => {
                    self.clients.get_mut(&id).unwrap().writes = writes;
                    self.write(id);
                }
                Output::Accept(daemon, accepts) => _ = self.accepts.insert(daemon, accepts),
            }
        }
    }
}
