//! The listeners for administrators and monitors, and their connections.
//!
//! There are few of these, they are short, and they are bounded; so each turn looks at all of them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Instant;

use mio::event::Event;
use mio::{Registry, Token};
use rustix::fs::Mode;
use slab::Slab;

use super::addresses::{bind, listen};
use super::connection::{Connection, ReadOutcome, Stream};
use super::listener::{Bound, Listener};
use crate::admin::{Access, Answer, Asked, Http, What};
use crate::config::{Address, StandbyConfig};
use crate::exit::Exit;
use crate::ids::ClientId;
use crate::limits::{ADMIN_CONNECTIONS_MAX, ADMIN_IDLE_MAX, ADMIN_READ_LEN, WRITE_BYTES_PER_TURN};

/// Tokens count down from here: first listeners, then connections.
const FIRST: usize = usize::MAX - 2_000_000;

/// Listeners at most: a name may stand for several addresses.
const LISTENERS_MAX: usize = 64;

/// Connections accepted from one listener in one turn.
const ACCEPTS_PER_TURN: usize = 8;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Admin {
    listeners: Vec<(Listener, Access)>,
    connections: Slab<Peer>,
    accepted: u32,
    asked: VecDeque<AdminAsked>,
    scratch: Vec<u8>,
    /// Something may be done without waiting for the poll.
    has_more: bool,
    started: Instant,
}

/// A connection with what is said on it.
#[derive(Debug)]
struct Peer {
    connection: Connection,
    http: Http,
    /// When it last came to something.
    since: Instant,
}

/// Names a request in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AdminId {
    client: ClientId,
    id: u64,
}

#[cfg(test)]
impl AdminId {
    pub(super) const fn for_tests(id: u64) -> Self {
        let client = ClientId { serial: 0, key: 0 };
        Self { client, id }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AdminAsked {
    /// Comes back with the answer.
    pub(super) id: AdminId,
    /// What is asked for.
    pub(super) what: What,
}

/// The addresses of a configuration, bound: nobody can connect yet.
#[derive(Debug)]
pub(super) struct AdminBound {
    sockets: Vec<(Bound, Access)>,
}

impl AdminBound {
    /// Binds them.
    pub(super) fn new(config: &StandbyConfig) -> Result<Self, (Exit, String)> {
        let socket = Address::Unix(config.admin_socket.clone());
        if config.admin_socket.parent() == Some(config.journal.as_path()) {
            // The first to need it. What belongs into it is nobody else's business.
            make_directory(&config.journal).map_err(|error| {
                let path = config.journal.display();
                let why = format!("journal directory {path}: cannot be made: {error}");
                (Exit::Internal, why)
            })?;
        }
        let all = [
            (config.admin_address.as_ref(), Access::Read),
            (Some(&socket), Access::All),
        ];
        let mut sockets = Vec::new();
        for (address, access) in all {
            let Some(address) = address else {
                continue;
            };
            let bound = bind(key_of(access), address)?;
            sockets.extend(bound.into_iter().map(|bound| (bound, access)));
        }
        sockets.truncate(LISTENERS_MAX);
        Ok(Self { sockets })
    }
}

/// The key of the configuration that names such an address.
const fn key_of(access: Access) -> &'static str {
    match access {
        Access::Read => "admin-address",
        Access::All => "admin-socket",
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Admin {
    /// Lets administrators connect.
    pub(super) fn new(
        bound: AdminBound,
        registry: &Registry,
        now: Instant,
    ) -> Result<Self, (Exit, String)> {
        let mut listeners = Vec::new();
        for (at, (bound, access)) in bound.sockets.into_iter().enumerate() {
            let mode = match access {
                Access::Read => None,
                // Whoever can write to it gives commands.
                Access::All => Some(Mode::RUSR | Mode::WUSR),
            };
            let mut listener = listen(key_of(access), bound, mode)?;
            let registered = listener.register(registry, Token(FIRST - at));
            registered.map_err(|error| (Exit::Internal, format!("cannot start: {error}")))?;
            log::info!("status at {}", listener.describe());
            listeners.push((listener, access));
        }
        Ok(Self {
            listeners,
            connections: Slab::new(),
            accepted: 0,
            asked: VecDeque::new(),
            scratch: vec![0; ADMIN_READ_LEN],
            has_more: true,
            started: now,
        })
    }

    /// Seconds since the start.
    pub(super) fn uptime(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs()
    }

    /// Where it listens, for people.
    #[cfg(test)]
    fn addresses(&self) -> impl Iterator<Item = String> {
        self.listeners
            .iter()
            .map(|(listener, _)| listener.describe())
    }

    /// Whether an event of this token belongs here.
    pub(super) const fn owns(token: Token) -> bool {
        token.0 <= FIRST && token.0 > FIRST - LISTENERS_MAX - ADMIN_CONNECTIONS_MAX - 1
    }

    /// Notes what the poll has said. An event that is late may concern the next connection in its
    /// place, to which it does no harm: a read that would block.
    pub(super) fn on_ready(&mut self, event: &Event) {
        self.has_more = true;
        let Some(key) = (FIRST - LISTENERS_MAX).checked_sub(event.token().0) else {
            return;
        };
        if let Some(peer) = self.connections.get_mut(key) {
            let connection = &mut peer.connection;
            connection.readable |= event.is_readable() || event.is_read_closed();
            connection.read_closed |= event.is_read_closed() || event.is_error();
            connection.writable |= event.is_writable();
        }
    }

    /// Whether [`Self::turn`] is to be called without waiting for an event.
    pub(super) const fn has_more(&self) -> bool {
        self.has_more
    }

    /// Accepts, and takes what has come.
    pub(super) fn turn(&mut self, registry: &Registry, now: Instant) {
        if !std::mem::take(&mut self.has_more) {
            return;
        }
        for at in 0..self.listeners.len() {
            self.accept(at, registry, now);
        }
        self.serve(registry, now);
    }

    /// What is asked for, if anything is. Each has to be answered once, in any order.
    pub(super) fn poll_asked(&mut self) -> Option<AdminAsked> {
        self.asked.pop_front()
    }

    /// Answers a request; nothing happens if who asked is gone.
    pub(super) fn answer(
        &mut self,
        id: AdminId,
        answer: &Answer,
        registry: &Registry,
        now: Instant,
    ) {
        let key = id.client.key as usize;
        let peer = self.connections.get_mut(key);
        if let Some(peer) = peer.filter(|peer| peer.connection.client == id.client) {
            peer.http.answer(id.id, answer);
            peer.since = now;
            take(peer, &mut self.asked, now);
            // It is read on in the next turn: who asks without a pause does not get this one.
            self.has_more = true;
            if !write(peer) {
                self.close(key, registry);
            }
        }
    }

    /// Whether who made a request has hung up.
    pub(super) fn is_gone(&self, id: AdminId) -> bool {
        let peer = self.connections.get(id.client.key as usize);
        let peer = peer.filter(|peer| peer.connection.client == id.client);
        peer.is_none_or(|peer| peer.connection.read_closed)
    }

    /// Closes what is idle for too long. To be called now and then.
    pub(super) fn on_tick(&mut self, registry: &Registry, now: Instant) {
        let is_idle = |peer: &Peer| {
            !peer.http.is_waiting() && now.saturating_duration_since(peer.since) > ADMIN_IDLE_MAX
        };
        let idle = self.connections.iter().filter(|(_, peer)| is_idle(peer));
        let idle: Vec<usize> = idle.map(|(key, _)| key).collect();
        for key in idle {
            self.close(key, registry);
        }
    }

    fn accept(&mut self, at: usize, registry: &Registry, now: Instant) {
        for _ in 0..ACCEPTS_PER_TURN {
            let (listener, access) = &self.listeners[at];
            let access = *access;
            match listener.accept() {
                Ok((stream, peer)) => self.connect(stream, &peer, access, registry, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // It is tried again when something else happens here.
                    log::debug!("{}: not accepted ({error})", listener.describe());
                    return;
                }
            }
        }
        self.has_more = true;
    }

    fn connect(
        &mut self,
        stream: Stream,
        peer: &str,
        access: Access,
        registry: &Registry,
        now: Instant,
    ) {
        if self.connections.len() >= ADMIN_CONNECTIONS_MAX {
            let idle = self.connections.iter();
            let idle = idle.filter(|(_, peer)| !peer.http.is_waiting());
            let Some((oldest, _)) = idle.min_by_key(|(_, peer)| peer.since) else {
                log::warn!("{peer}: not served: {ADMIN_CONNECTIONS_MAX} wait for their answers");
                return;
            };
            self.close(oldest, registry);
        }
        self.accepted = self.accepted.wrapping_add(1);
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let client = ClientId {
            serial: self.accepted,
            key: key as u32,
        };
        let mut connection = Connection::new(stream, None, client);
        let token = Token(FIRST - LISTENERS_MAX - key);
        if let Err(error) = connection.register(registry, token) {
            log::error!("{peer}: cannot be polled ({error})");
            return;
        }
        // What it has sent already is no event.
        connection.readable = true;
        entry.insert(Peer {
            connection,
            http: Http::new(access),
            since: now,
        });
    }

    fn serve(&mut self, registry: &Registry, now: Instant) {
        let keys: Vec<usize> = self.connections.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.serve_one(key, registry, now);
        }
    }

    /// Writes, reads and understands what one connection has, within bounds.
    fn serve_one(&mut self, key: usize, registry: &Registry, now: Instant) {
        let Some(peer) = self.connections.get_mut(key) else {
            return;
        };
        let mut is_open = write(peer);
        if is_open && peer.connection.readable && peer.http.wants_input() {
            let Peer {
                connection, http, ..
            } = peer;
            match connection.read(&mut self.scratch, |data| http.receive(data)) {
                Ok(ReadOutcome::Received) => {
                    take(peer, &mut self.asked, now);
                    is_open = write(peer);
                    self.has_more |= peer.connection.readable && peer.http.wants_input();
                }
                Ok(ReadOutcome::WouldBlock) => {}
                Ok(ReadOutcome::End) | Err(_) => is_open = false,
            }
        }
        if !is_open {
            self.close(key, registry);
        }
    }

    fn close(&mut self, key: usize, registry: &Registry) {
        if let Some(mut peer) = self.connections.try_remove(key)
            && let Err(error) = peer.connection.deregister(registry)
        {
            log::warn!("a connection of an administrator: {error}");
        }
    }
}

/// Takes what is asked for, one request at a time.
fn take(peer: &mut Peer, asked: &mut VecDeque<AdminAsked>, now: Instant) {
    let client = peer.connection.client;
    while let Some(Asked { id, what }) = peer.http.poll() {
        peer.since = now;
        let id = AdminId { client, id };
        asked.push_back(AdminAsked { id, what });
    }
}

/// Writes what waits. Returns whether the connection goes on.
fn write(peer: &mut Peer) -> bool {
    let mut budget = WRITE_BYTES_PER_TURN;
    while peer.connection.writable && budget > 0 {
        match peer.connection.write(peer.http.output(), budget) {
            Ok(0) => break,
            Ok(len) => budget = budget.saturating_sub(len),
            Err(_) => return false,
        }
    }
    !peer.http.is_done()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;
    use crate::admin::{Command, Page};
    use crate::args::Args;
    use crate::config::{self, Surroundings};

    /// What is waited for in vain fails.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A configuration of a group of one, with its files in a directory of its own.
    struct Rig {
        directory: std::path::PathBuf,
        poll: Poll,
        admin: Admin,
        now: Instant,
    }

    struct Text(String);

    impl Surroundings for Text {
        fn read(&self, _: &Path) -> io::Result<String> {
            Ok(self.0.clone())
        }
        fn is_directory(&self, _: &Path) -> bool {
            true
        }
        fn variable(&self, _: &str) -> Option<String> {
            None
        }
    }

    impl Drop for Rig {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }

    fn standby(directory: &Path) -> StandbyConfig {
        let text = format!(
            "<zeo>\naddress 0\n</zeo>\n<filestorage>\npath Data.fs\n</filestorage>\n<standby>\n\
             node a\ngroup g\ndaemon loopback\nadmin-address 127.0.0.1:0\njournal {}/j\n\
             </standby>\n",
            directory.display()
        );
        let args = Args {
            configure: Some("zeo.conf".into()),
            ..Args::default()
        };
        config::read(&args, &Text(text)).unwrap().standby.unwrap()
    }

    impl Rig {
        fn new(name: &str) -> Self {
            let name = format!("standby-admin-{name}-{}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&directory).unwrap();
            let poll = Poll::new().unwrap();
            let bound = AdminBound::new(&standby(&directory)).unwrap();
            let now = super::super::now().mono;
            let admin = Admin::new(bound, poll.registry(), now).unwrap();
            Self {
                directory,
                poll,
                admin,
                now,
            }
        }

        fn unix(&self) -> UnixStream {
            let stream = UnixStream::connect(self.directory.join("j/admin.sock")).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        }

        fn tcp(&self) -> TcpStream {
            let stream = TcpStream::connect(self.admin.addresses().next().unwrap()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        }

        /// Turns once, without waiting.
        fn turn(&mut self) {
            let mut events = Events::with_capacity(16);
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            for event in &events {
                assert!(Admin::owns(event.token()));
                self.admin.on_ready(event);
            }
            self.admin.turn(self.poll.registry(), self.now);
        }

        /// Turns until something is asked.
        fn asked(&mut self) -> AdminAsked {
            loop {
                self.turn();
                if let Some(asked) = self.admin.poll_asked() {
                    return asked;
                }
            }
        }

        fn answer(&mut self, id: AdminId, text: &str) {
            let registry = self.poll.registry();
            self.admin
                .answer(id, &Answer::done(text), registry, self.now);
        }
    }

    fn read_answer(stream: &mut impl Read) -> String {
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with("}\n") {
            stream.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        text
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named_as_such() {
        let (exit, error) = AdminBound::new(&standby(Path::new("/no-such-dir"))).unwrap_err();
        let expected = "journal directory /no-such-dir/j: cannot be made: No such file";
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(exit, Exit::Internal);
    }

    #[test]
    fn pages_are_seen_by_tcp_and_commands_given_at_the_unix_socket() {
        let mut rig = Rig::new("both");
        let mut tcp = rig.tcp();
        tcp.write_all(
            b"GET /live HTTP/1.1\r\n\r\nPOST /swap HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        )
        .unwrap();
        let asked = rig.asked();
        assert_eq!(asked.what, What::Get(Page::Live));
        rig.answer(asked.id, "live");
        assert!(read_answer(&mut tcp).contains("live"));
        assert!(read_answer(&mut tcp).starts_with("HTTP/1.1 405 "));
        let mut unix = rig.unix();
        for _ in 0..2 {
            unix.write_all(b"POST /swap HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
            let asked = rig.asked();
            assert_eq!(asked.what, What::Post(Command::Swap { to: None }));
            rig.answer(asked.id, "swapped");
            assert!(read_answer(&mut unix).contains("swapped"));
        }
    }

    #[test]
    fn only_the_owner_may_give_commands() {
        use std::os::unix::fs::PermissionsExt;
        let rig = Rig::new("mode");
        let socket = rig.directory.join("j/admin.sock");
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn another_connection_ends_the_one_that_is_idle_for_longest() {
        let mut rig = Rig::new("many");
        let mut first = rig.unix();
        first.write_all(b"GET /live HTTP/1.1\r\n\r\n").unwrap();
        let asked = rig.asked();
        let mut others = Vec::new();
        for _ in 1..=ADMIN_CONNECTIONS_MAX {
            rig.now += Duration::from_millis(1);
            others.push(rig.unix());
            rig.turn();
        }
        assert_eq!(rig.admin.connections.len(), ADMIN_CONNECTIONS_MAX);
        assert_eq!(others[0].read(&mut [0]).unwrap(), 0, "it was idle");
        rig.answer(asked.id, "first");
        assert!(read_answer(&mut first).contains("first"));
        rig.now += ADMIN_IDLE_MAX + Duration::from_secs(1);
        rig.admin.on_tick(rig.poll.registry(), rig.now);
        assert!(rig.admin.connections.is_empty());
    }

    #[test]
    fn who_is_gone_is_not_answered_and_nor_is_who_came_after() {
        let mut rig = Rig::new("gone");
        let mut stream = rig.unix();
        stream.write_all(b"GET /live HTTP/1.1\r\n\r\n").unwrap();
        let asked = rig.asked();
        let key = asked.id.client.key as usize;
        rig.admin.close(key, rig.poll.registry());
        let mut next = rig.unix();
        next.write_all(b"GET /ready HTTP/1.1\r\n\r\n").unwrap();
        let other = rig.asked();
        assert_eq!(other.id.client.key, asked.id.client.key);
        rig.answer(asked.id, "late");
        rig.answer(other.id, "ready");
        assert!(read_answer(&mut next).contains("ready"));
    }

    #[test]
    fn a_client_that_says_nothing_of_use_is_hung_up_on() {
        let mut rig = Rig::new("noise");
        let mut stream = rig.unix();
        stream.write_all(&vec![b'x'; 100_000]).unwrap();
        let mut answer = Vec::new();
        while !rig.admin.connections.is_empty() || rig.admin.accepted == 0 {
            rig.turn();
        }
        // What it has not read may break the connection before the answer is there.
        let _ = stream.read_to_end(&mut answer);
    }
}
