//! Stock clients of the simulated nodes, the fronts that they talk to, the network between them,
//! and what must hold of all that, by the specification. Nothing in here knows how a replica works:
//! it takes what a replica wants and gives what clients want.

pub(crate) mod cache;
pub(crate) mod checks;
pub(crate) mod client;
pub(crate) mod database;
pub(crate) mod front;
pub(crate) mod message;
#[path = "../../storage_crash/random.rs"]
mod random;
pub(crate) mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use self::checks::Checks;
use self::client::{Address, Client, ClientOut, ClientSetup, Fact, Mode, ToServer};
use self::front::{Front, FrontMutant, FrontOptions, FrontOut, ToClient};
use self::message::{Applied, ClientMessage, Conn, Port, ServerMessage};
use self::random::Random;
use self::work::Mishap;
use crate::ids::{HistoryId, NodeId, Seq};
use crate::replica::event::{Action, Event};

/// What there is.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    pub(crate) clients: Vec<ClientSetup>,
    /// Of the fronts.
    pub(crate) transaction_timeout: Duration,
    /// Of the fronts: who cannot be served waits for a greeting, or finds a closed port.
    pub(crate) parks: bool,
    /// Of the fronts: transactions that `getInvalidations` can tell of.
    pub(crate) queue_len_max: usize,
    pub(crate) mutant: Option<FrontMutant>,
}

impl Setup {
    /// Three to six clients of these nodes, of all kinds.
    pub(crate) fn random(seed: u64, nodes: &[NodeId]) -> Self {
        let mut random = Random::new(seed ^ 0x636c_6965_6e74_7321);
        let count = 3 + random.below(4);
        let clients = (0..count).map(|number| {
            // There is always somebody who writes.
            let mode = match random.below(6) {
                _ if number == 0 => Mode::Writer,
                0..=2 => Mode::Writer,
                3 => Mode::Reader,
                _ => Mode::Fallback,
            };
            let addresses = addresses(mode, nodes, &mut random);
            ClientSetup {
                mode,
                addresses,
                persistent: random.percent(60),
                cache_len_max: [3, 8, 100][random.below(3)],
                server_sync: random.percent(30),
                pause_max: Duration::from_millis([20, 200, 1000][random.below(3)]),
            }
        });
        Self {
            seed,
            clients: clients.collect(),
            transaction_timeout: Duration::from_secs(5),
            parks: random.percent(80),
            queue_len_max: [5, 50, 10_000][random.below(3)],
            mutant: None,
        }
    }
}

/// In an order of its own.
fn addresses(mode: Mode, nodes: &[NodeId], random: &mut Random) -> Vec<Address> {
    let ports: &[Port] = match mode {
        Mode::Writer => &[Port::Writers],
        Mode::Reader => &[Port::Readers],
        Mode::Fallback if random.percent(50) => &[Port::Readers],
        Mode::Fallback => &[Port::Writers, Port::Readers],
    };
    let all = nodes.iter().flat_map(|node| {
        let ports = ports.iter();
        ports.map(|port| Address {
            node: *node,
            port: *port,
        })
    });
    let mut addresses: Vec<Address> = all.collect();
    for at in (1..addresses.len()).rev() {
        addresses.swap(at, random.below(at + 1));
    }
    addresses
}

/// All of it.
pub(crate) struct Crowd {
    setup: Setup,
    random: Random,
    clients: Vec<Client>,
    fronts: BTreeMap<NodeId, Front>,
    /// Counts the fronts that there ever were.
    incarnations: u64,
    links: BTreeMap<Conn, Link>,
    queue: BTreeMap<(Instant, u64), (Conn, Delivery)>,
    /// What cannot be delivered now, in order.
    held: Vec<(Conn, Delivery)>,
    queued: u64,
    paused_nodes: BTreeSet<NodeId>,
    isolated: BTreeSet<NodeId>,
    paused_clients: BTreeSet<usize>,
    /// Neither hears of the other.
    silent: BTreeSet<(usize, NodeId)>,
    ends: BTreeMap<(Instant, u64), End>,
    events: Vec<(NodeId, Event)>,
    checks: Checks,
    /// What each client has committed and read when faults ended.
    at_calm: Vec<(u64, u64)>,
}

/// A connection. It is there from the first attempt until both ends have gone.
struct Link {
    client: usize,
    address: Address,
    is_accepted: bool,
    /// The client's machine is gone, and the server does not know.
    is_dead: bool,
    /// When the last message arrives, here and there.
    to_front: Option<Instant>,
    to_client: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Delivery {
    Connect,
    ToFront(ClientMessage),
    /// The client has closed it.
    Gone,
    Connected,
    Refused,
    ToClient(ServerMessage),
    /// The server has closed it.
    Closed,
    /// The server is no more.
    Lost,
}

impl Delivery {
    fn is_for_front(&self) -> bool {
        matches!(self, Self::Connect | Self::ToFront(_) | Self::Gone)
    }

    /// Nothing of the connection is left at the server.
    fn is_last(&self) -> bool {
        matches!(self, Self::Closed | Self::Lost | Self::Refused)
    }
}

/// A fault that ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Silence(usize, NodeId),
    Pause(usize),
    Death(usize),
    /// A connection with a dead end is reset.
    HalfOpen(Conn),
}

// The nodes.
impl Crowd {
    pub(crate) fn new(setup: Setup, now: Instant) -> Self {
        let clients = setup.clients.iter().enumerate().map(|(id, client)| {
            let seed = setup
                .seed
                .wrapping_add(1 + id as u64)
                .wrapping_mul(0x9e37_79b9);
            let id = u32::try_from(id).expect("there are few clients");
            Client::new(id + 1, client.clone(), seed)
        });
        let clients: Vec<Client> = clients.collect();
        let mut crowd = Self {
            random: Random::new(setup.seed),
            at_calm: vec![(0, 0); clients.len()],
            clients,
            setup,
            fronts: BTreeMap::new(),
            incarnations: 0,
            links: BTreeMap::new(),
            queue: BTreeMap::new(),
            held: Vec::new(),
            queued: 0,
            paused_nodes: BTreeSet::new(),
            isolated: BTreeSet::new(),
            paused_clients: BTreeSet::new(),
            silent: BTreeSet::new(),
            ends: BTreeMap::new(),
            events: Vec::new(),
            checks: Checks::default(),
        };
        for number in 0..crowd.clients.len() {
            crowd.start_client(number, now);
        }
        crowd
    }

    /// A process with a replica comes up. Its data hold `applied`.
    pub(crate) fn start_front(&mut self, node: NodeId, history: HistoryId, applied: &[Applied]) {
        self.incarnations += 1;
        let options = FrontOptions {
            transaction_timeout: self.setup.transaction_timeout,
            parks: self.setup.parks,
            parked_max: Duration::from_secs(10),
            fallback_max: Duration::from_secs(30),
            queue_len_max: self.setup.queue_len_max,
            mutant: self.setup.mutant,
        };
        let front = Front::new(options, node, self.incarnations, history, applied);
        let before = self.fronts.insert(node, front);
        assert!(before.is_none(), "{node} has a process already");
    }

    /// It has ended, in whatever way.
    pub(crate) fn stop_front(&mut self, node: NodeId, now: Instant) {
        if self.fronts.remove(&node).is_none() {
            return;
        }
        self.paused_nodes.remove(&node);
        let ended = self
            .links
            .iter()
            .filter(|(_, link)| link.address.node == node && link.is_accepted);
        let ended: Vec<Conn> = ended.map(|(conn, _)| *conn).collect();
        for conn in ended {
            self.checks.on_gone(conn);
            self.links.get_mut(&conn).expect("just found").is_accepted = false;
            self.send(conn, Delivery::Lost, now);
        }
        self.release(now);
    }

    /// The data were replaced by a copy of somebody else's.
    pub(crate) fn on_copied(&mut self, node: NodeId, history: HistoryId, applied: &[Applied]) {
        let Some(front) = self.fronts.get_mut(&node) else {
            return;
        };
        front.on_copied(history, applied);
        let links = self.links.iter();
        let ours = links.filter(|(_, link)| link.address.node == node && link.is_accepted);
        for conn in ours.map(|(conn, _)| *conn) {
            if self.checks.is_registered(conn) {
                let what = format!("{node}: the data are replaced while somebody reads them");
                self.checks.violated(what);
            }
            self.checks.on_accepted(conn, history);
        }
    }

    /// A process that is stopped, and goes on later.
    pub(crate) fn set_paused(&mut self, node: NodeId, is_paused: bool, now: Instant) {
        if is_paused {
            self.paused_nodes.insert(node);
        } else {
            self.paused_nodes.remove(&node);
            self.release(now);
        }
    }

    /// No client reaches it, and it reaches none.
    pub(crate) fn isolate(&mut self, node: NodeId, is_isolated: bool, now: Instant) {
        if is_isolated {
            self.isolated.insert(node);
        } else {
            self.isolated.remove(&node);
            self.release(now);
        }
    }

    /// What a replica wants; most of it is not for us.
    pub(crate) fn on_action(&mut self, node: NodeId, action: &Action, now: Instant) {
        let Some(front) = self.fronts.get_mut(&node) else {
            return;
        };
        let mut out = FrontOut::default();
        match action {
            Action::Serve(serving) => front.on_serving(*serving, now, &mut out),
            Action::Reply { token, outcome } => front.on_reply(*token, *outcome, now, &mut out),
            Action::Oids { token, oids } => front.on_oids(*token, oids.clone(), &mut out),
            Action::Confirmed { token, is_sure } => {
                front.on_confirmed(*token, *is_sure, now, &mut out);
            }
            _ => return,
        }
        self.front_wants(node, out, now);
    }

    /// An entry has got into the data of the node.
    pub(crate) fn on_applied(&mut self, node: NodeId, entry: &Applied, now: Instant) {
        if let Some(front) = self.fronts.get_mut(&node) {
            let mut out = FrontOut::default();
            front.on_applied(entry, now, &mut out);
            self.front_wants(node, out, now);
        }
    }

    /// An entry is committed, as the specification has it: in order, before anybody shows it.
    pub(crate) fn on_committed(&mut self, history: HistoryId, entry: &Applied) {
        self.checks.on_committed(history, entry);
    }

    /// `new` begins with what `old` has up to `after`; what is behind that is lost.
    pub(crate) fn on_forced(&mut self, old: HistoryId, new: HistoryId, after: Seq) {
        self.checks.on_forced(old, new, after);
    }

    /// What clients want of replicas.
    pub(crate) fn take_events(&mut self) -> Vec<(NodeId, Event)> {
        std::mem::take(&mut self.events)
    }

    fn front_wants(&mut self, node: NodeId, out: FrontOut, now: Instant) {
        let events = out.events.into_iter();
        self.events.extend(events.map(|event| (node, event)));
        if let Some(what) = out.wrong {
            self.checks.violated(format!("{node}: {what}"));
        }
        for what in out.clients {
            match what {
                ToClient::Send(conn, message) => {
                    self.checks.on_sent(conn, &message);
                    self.send(conn, Delivery::ToClient(message), now);
                }
                ToClient::HangUp(conn) => {
                    self.checks.on_closed(conn);
                    if let Some(link) = self.links.get_mut(&conn) {
                        link.is_accepted = false;
                    }
                    self.send(conn, Delivery::Closed, now);
                }
            }
        }
    }
}

// Time.
impl Crowd {
    /// When [`Self::run`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        let ends = self.ends.keys().next().map(|(at, _)| *at);
        let clients = self.running_clients().filter_map(Client::next_timer).min();
        let fronts = self
            .running_fronts()
            .filter_map(|(_, front)| front.deadline());
        let all = [queued, ends, clients, fronts.min()];
        all.into_iter().flatten().min()
    }

    /// Does all that is due.
    pub(crate) fn run(&mut self, now: Instant) {
        while let Some(at) = self.deadline().filter(|at| *at <= now) {
            self.run_one(at);
        }
    }

    fn run_one(&mut self, at: Instant) {
        if let Some(entry) = self.ends.first_entry()
            && entry.key().0 <= at
        {
            let end = entry.remove();
            self.end(end, at);
            return;
        }
        if let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= at
        {
            let (conn, delivery) = entry.remove();
            self.deliver(conn, delivery, at);
            return;
        }
        for number in 0..self.clients.len() {
            let is_due = self.clients[number]
                .next_timer()
                .is_some_and(|due| due <= at);
            if is_due && !self.paused_clients.contains(&number) {
                self.with_client(number, at, |client, out| client.on_timer(at, out));
            }
        }
        let due = self
            .running_fronts()
            .filter(|(_, front)| front.deadline().is_some_and(|due| due <= at));
        let due: Vec<NodeId> = due.map(|(node, _)| *node).collect();
        for node in due {
            let mut out = FrontOut::default();
            let front = self.fronts.get_mut(&node).expect("just looked at");
            front.on_timer(at, &mut out);
            self.front_wants(node, out, at);
        }
    }

    fn running_clients(&self) -> impl Iterator<Item = &Client> {
        let all = self.clients.iter().enumerate();
        let running = all.filter(|(number, _)| !self.paused_clients.contains(number));
        running.map(|(_, client)| client)
    }

    fn running_fronts(&self) -> impl Iterator<Item = (&NodeId, &Front)> {
        let all = self.fronts.iter();
        all.filter(|(node, _)| !self.paused_nodes.contains(node))
    }

    fn send(&mut self, conn: Conn, delivery: Delivery, now: Instant) {
        let latency = Duration::from_micros(match self.random.below(100) {
            0 => 100_000,
            1..=10 => 5_000,
            _ => 100,
        });
        let latency = latency + Duration::from_micros(self.random.next() % 500);
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        let last = if delivery.is_for_front() {
            &mut link.to_front
        } else {
            &mut link.to_client
        };
        let at = (now + latency).max(last.unwrap_or(now));
        *last = Some(at);
        self.queued += 1;
        self.queue.insert((at, self.queued), (conn, delivery));
    }

    fn is_held(&self, link: &Link, delivery: &Delivery) -> bool {
        let node = link.address.node;
        let is_paused = if delivery.is_for_front() {
            self.paused_nodes.contains(&node)
        } else {
            self.paused_clients.contains(&link.client)
        };
        is_paused || self.isolated.contains(&node) || self.silent.contains(&(link.client, node))
    }

    /// What was held back goes on, if there is no other reason.
    fn release(&mut self, now: Instant) {
        for (conn, delivery) in std::mem::take(&mut self.held) {
            self.queued += 1;
            self.queue.insert((now, self.queued), (conn, delivery));
        }
    }

    fn deliver(&mut self, conn: Conn, delivery: Delivery, now: Instant) {
        let Some(link) = self.links.get(&conn) else {
            return;
        };
        // In order, within a direction.
        let is_behind = self
            .held
            .iter()
            .any(|(of, held)| *of == conn && held.is_for_front() == delivery.is_for_front());
        if is_behind || self.is_held(link, &delivery) {
            self.held.push((conn, delivery));
            return;
        }
        if delivery.is_for_front() {
            self.deliver_to_front(conn, delivery, now);
        } else if !link.is_dead {
            let number = link.client;
            if delivery.is_last() {
                self.links.remove(&conn);
            }
            self.with_client(number, now, |client, out| match delivery {
                Delivery::Connected => client.on_connected(conn),
                Delivery::Refused => client.on_refused(conn, now),
                Delivery::ToClient(message) => client.on_message(conn, message, now, out),
                Delivery::Lost => client.on_hangup(conn, true, now, out),
                _ => client.on_hangup(conn, false, now, out),
            });
        } else if delivery.is_last() {
            self.links.remove(&conn);
        }
    }

    fn deliver_to_front(&mut self, conn: Conn, delivery: Delivery, now: Instant) {
        let link = self.links.get_mut(&conn).expect("just looked at");
        let node = link.address.node;
        let is_accepted = link.is_accepted;
        let mut out = FrontOut::default();
        match (delivery, self.fronts.get_mut(&node)) {
            (Delivery::Connect, Some(front)) if front.accepts(link.address.port) => {
                link.is_accepted = true;
                let port = link.address.port;
                self.checks.on_accepted(conn, front.history());
                front.on_connect(conn, port, now, &mut out);
                self.send(conn, Delivery::Connected, now);
            }
            (Delivery::Connect, _) => self.send(conn, Delivery::Refused, now),
            (Delivery::ToFront(message), Some(front)) if is_accepted => {
                match &message {
                    ClientMessage::GetInvalidations { tid } => {
                        self.checks.on_asked_since(conn, *tid);
                    }
                    ClientMessage::Register { read_only: true } => {
                        self.checks.on_asked_to_read(conn);
                    }
                    ClientMessage::Vote { attempt, .. } => {
                        self.checks.on_asked_vote(conn, *attempt);
                    }
                    ClientMessage::Finish { .. } => self.checks.on_asked_finish(conn),
                    _ => {}
                }
                front.on_message(conn, message, now, &mut out);
            }
            (Delivery::Gone, front) => {
                self.links.remove(&conn);
                self.checks.on_gone(conn);
                if let Some(front) = front
                    && is_accepted
                {
                    front.on_hangup(conn, now, &mut out);
                }
            }
            // The server has closed it, and the client will hear of that.
            _ => {}
        }
        self.front_wants(node, out, now);
    }
}

// The clients.
impl Crowd {
    fn with_client(
        &mut self,
        number: usize,
        now: Instant,
        f: impl FnOnce(&mut Client, &mut ClientOut),
    ) {
        let mut out = ClientOut::default();
        f(&mut self.clients[number], &mut out);
        let id = self.clients[number].id;
        let mut vanishes = false;
        for fact in &out.facts {
            vanishes |= matches!(fact, Fact::Vanish);
            self.checks.on_fact(id, fact, &self.clients[number].cache);
        }
        for what in out.server {
            match what {
                ToServer::Connect(conn, address) => {
                    let link = Link {
                        client: number,
                        address,
                        is_accepted: false,
                        is_dead: false,
                        to_front: None,
                        to_client: None,
                    };
                    self.links.insert(conn, link);
                    self.send(conn, Delivery::Connect, now);
                }
                ToServer::Send(conn, message) => self.send(conn, Delivery::ToFront(message), now),
                ToServer::HangUp(conn) => self.send(conn, Delivery::Gone, now),
            }
        }
        if vanishes {
            self.vanish(number, now);
        }
    }

    fn start_client(&mut self, number: usize, now: Instant) {
        if !self.clients[number].is_up {
            self.with_client(number, now, |client, out| client.start(now, out));
        }
    }

    /// The process dies, and the kernel closes its connections.
    fn kill(&mut self, number: usize, now: Instant) {
        self.with_client(number, now, |client, out| client.kill(out));
        for conn in self.conns_of(number) {
            self.send(conn, Delivery::Gone, now);
        }
        self.end_later(End::Death(number), now, 3_000);
    }

    /// The machine dies. Nobody is told, for long.
    fn vanish(&mut self, number: usize, now: Instant) {
        self.with_client(number, now, |client, out| client.kill(out));
        for conn in self.conns_of(number) {
            self.links.get_mut(&conn).expect("just found").is_dead = true;
            self.end_later(End::HalfOpen(conn), now, 120_000);
        }
        self.end_later(End::Death(number), now, 5_000);
    }

    fn conns_of(&self, number: usize) -> Vec<Conn> {
        let links = self.links.iter();
        let ours = links.filter(|(_, link)| link.client == number && !link.is_dead);
        ours.map(|(conn, _)| *conn).collect()
    }

    fn end_later(&mut self, end: End, now: Instant, millis_max: u64) {
        let at = now + Duration::from_millis(1 + self.random.next() % millis_max);
        self.queued += 1;
        self.ends.insert((at, self.queued), end);
    }

    fn end(&mut self, end: End, now: Instant) {
        match end {
            End::Silence(number, node) => {
                self.silent.remove(&(number, node));
                self.release(now);
            }
            End::Pause(number) => {
                self.paused_clients.remove(&number);
                self.release(now);
            }
            End::Death(number) => self.start_client(number, now),
            End::HalfOpen(conn) => self.send(conn, Delivery::Gone, now),
        }
    }

    /// Something happens to a client.
    pub(crate) fn inject(&mut self, now: Instant) {
        let number = self.random.below(self.clients.len());
        match self.random.below(10) {
            0 => {
                self.checks.mark("fault: client killed");
                self.kill(number, now);
            }
            1 => {
                self.checks.mark("fault: client vanished");
                self.vanish(number, now);
            }
            2 => {
                self.checks.mark("fault: client paused");
                self.paused_clients.insert(number);
                let longest = if self.random.percent(10) {
                    60_000
                } else {
                    8_000
                };
                self.end_later(End::Pause(number), now, longest);
            }
            3 | 4 => {
                self.checks.mark("fault: silence");
                let nodes: BTreeSet<NodeId> = self.nodes_of(number);
                let at = self.random.below(nodes.len());
                let node = *nodes.iter().nth(at).expect("it is below the count");
                self.silent.insert((number, node));
                self.end_later(End::Silence(number, node), now, 8_000);
            }
            5..=7 => {
                self.checks.mark("fault: connection cut");
                self.cut(number, now);
            }
            8 => {
                let mishaps = [Mishap::Stick, Mishap::VanishVoted, Mishap::VanishFinishing];
                let mishap = mishaps[self.random.below(mishaps.len())];
                self.checks.mark(match mishap {
                    Mishap::Stick => "fault: stuck in vote",
                    Mishap::VanishVoted => "fault: vanishes after vote",
                    Mishap::VanishFinishing => "fault: vanishes in finish",
                });
                self.clients[number].work.mishap = Some(mishap);
            }
            _ => {
                self.checks.mark("fault: connections twice");
                if self.clients[number].is_up {
                    self.with_client(number, now, |client, out| client.connect_again(out));
                }
            }
        }
    }

    fn nodes_of(&self, number: usize) -> BTreeSet<NodeId> {
        let addresses = self.setup.clients[number].addresses.iter();
        addresses.map(|address| address.node).collect()
    }

    /// One of its connections ends for both sides, most often the one that it works with.
    fn cut(&mut self, number: usize, now: Instant) {
        let conns = self.conns_of(number);
        if conns.is_empty() {
            return;
        }
        let any = conns[self.random.below(conns.len())];
        let conn = match self.clients[number].conn() {
            Some(conn) if self.random.percent(70) => conn,
            _ => any,
        };
        // What is on its way is lost.
        self.queue.retain(|_, (of, _)| *of != conn);
        self.held.retain(|(of, _)| *of != conn);
        let Some(link) = self.links.remove(&conn) else {
            return;
        };
        self.checks.on_gone(conn);
        let node = link.address.node;
        if link.is_accepted
            && let Some(front) = self.fronts.get_mut(&node)
        {
            let mut out = FrontOut::default();
            front.on_hangup(conn, now, &mut out);
            self.front_wants(node, out, now);
        }
        self.with_client(number, now, |client, out| {
            client.on_hangup(conn, true, now, out)
        });
    }

    /// Faults end: all clients run, and reach all that runs.
    pub(crate) fn calm(&mut self, now: Instant) {
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(end, now);
        }
        self.paused_clients.clear();
        self.silent.clear();
        self.isolated.clear();
        for number in 0..self.clients.len() {
            self.clients[number].work.mishap = None;
            self.start_client(number, now);
            let work = &self.clients[number].work;
            self.at_calm[number] = (work.committed, work.read);
        }
        self.release(now);
    }
}

// What became of it.
impl Crowd {
    /// L1: since [`Self::calm`] each client has got what it wants.
    pub(crate) fn well(&self) -> Result<(), String> {
        for (number, client) in self.clients.iter().enumerate() {
            let (committed, read) = self.at_calm[number];
            if client.is_stuck() {
                // It waits for the server to lose patience.
                return Err(format!("L1: client {} is stuck in vote", client.id));
            }
            if self.is_trapped(client) {
                continue;
            }
            if !client.is_content() {
                let what = client.describe();
                return Err(format!("L1: client {} is not connected: {what}", client.id));
            }
            let is_writer = client.setup.mode != Mode::Reader;
            if is_writer && client.work.committed == committed {
                return Err(format!("L1: client {} has committed nothing", client.id));
            }
            if !is_writer && client.work.read == read {
                return Err(format!("L1: client {} has read nothing", client.id));
            }
        }
        Ok(())
    }

    fn is_trapped(&self, client: &Client) -> bool {
        client.is_trapped(|address| {
            let front = self.fronts.get(&address.node);
            !front.is_some_and(|front| front.accepts(address.port))
        })
    }

    /// What is wrong, if anything ever was.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.checks.result()
    }

    /// At the end of a run, in calm.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            if self.is_trapped(client) {
                self.checks.mark(match self.setup.parks {
                    true => "trapped, though servers accept all",
                    false => "trapped, as servers accept few",
                });
            }
            let client = &self.clients[number];
            if client.is_operational() {
                self.checks.check_cache(client.id, &client.cache);
            }
        }
        self.checks.finish();
        self.check()
    }

    /// What happened how often.
    pub(crate) fn marks(&self) -> &BTreeMap<&'static str, u64> {
        self.checks.marks()
    }

    /// Finishes whose end the client does not know.
    pub(crate) fn unknowns(&self) -> u64 {
        self.checks.unknowns()
    }

    /// Operations that were committed more than once.
    pub(crate) fn duplicates(&self) -> u64 {
        self.checks.duplicates()
    }
}
