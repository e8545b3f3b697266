//! Sessions that do anything in any order on a network that does anything, and what they saw held
//! against what Spread promises. `GROUPD_SEED=n` runs that one seed, and `GROUPD_SEEDS=n` so many.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use standby::group::spread::wire::{Endian, Frame, MessageType, Name};

use crate::checker::{Checker, Seen, Sent, events};
use crate::daemon::SessionId;
use crate::world::World;

/// Seeds if nobody says another number.
const SEEDS: u64 = 400;

/// Things that happen, by seed.
const STEPS: usize = 250;

const GROUPS: [&str; 4] = ["g0", "g1", "g2", "quiet"];

/// Users; each has one session at a time.
const USERS: usize = 7;

#[test]
fn what_sessions_see_is_what_spread_promises() {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse().ok());
    let seeds: Vec<u64> = match number("GROUPD_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("GROUPD_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut happened = BTreeMap::new();
    for seed in seeds.iter().copied() {
        let mut model = Model::new(seed);
        for _ in 0..STEPS {
            model.step();
        }
        let checker = model.finish();
        if let Err(problem) = checker.check() {
            panic!("GROUPD_SEED={seed}: {problem}\n{}", model.log.join("\n"));
        }
        for (what, count) in model.count(&checker) {
            *happened.entry(what).or_insert(0) += count;
        }
    }
    // A model in which nothing happens would be content with everything.
    if seeds.len() as u64 >= SEEDS {
        for what in ["ending", "merged", "lost", "joined while ending", "killed"] {
            assert!(happened[what] > 50, "{what}: {happened:?}");
        }
    }
}

/// What a user is at.
struct User {
    name: Name,
    user: String,
    daemon: usize,
    id: Option<SessionId>,
    views: bool,
    stalled: bool,
    /// Groups that it has asked to be in.
    groups: BTreeSet<usize>,
}

struct Model {
    random: u64,
    world: World,
    daemons: Vec<&'static str>,
    users: Vec<User>,
    /// All sessions that ever were.
    sessions: Vec<(SessionId, Name, bool)>,
    sent: BTreeMap<u64, Sent>,
    serial: u64,
    /// Who has whom: daemons, and users who were named in a partition, by the component they are
    /// in.
    network: BTreeMap<Name, usize>,
    /// Whether that is so: a message to be lost may have changed it.
    network_known: bool,
    log: Vec<String>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let daemons = match seed % 3 {
            0 => vec!["localhost"],
            1 => vec!["d1", "d2"],
            _ => vec!["d1", "d2", "d3"],
        };
        let endian = if seed.is_multiple_of(5) {
            Endian::Big
        } else {
            Endian::Little
        };
        let mut model = Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            world: World::new(&daemons, endian),
            users: Vec::new(),
            sessions: Vec::new(),
            sent: BTreeMap::new(),
            serial: 0,
            network: BTreeMap::new(),
            network_known: true,
            log: Vec::new(),
            daemons,
        };
        for n in 0..USERS {
            let daemon = n % model.daemons.len();
            let user = format!("u{n}");
            let name = Name::private(user.as_bytes(), model.daemons[daemon].as_bytes());
            model.users.push(User {
                name: name.unwrap(),
                user,
                daemon,
                id: None,
                views: n != 4,
                stalled: false,
                groups: BTreeSet::new(),
            });
        }
        model
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize % below
    }

    fn step(&mut self) {
        self.find_closed();
        let n = self.random(self.users.len());
        if self.users[n].id.is_none() {
            self.connect(n);
            return;
        }
        match self.random(40) {
            0..18 => self.send(n),
            18..23 => self.join(n),
            23..25 => self.leave(n),
            25 => self.part_from(n),
            26 | 27 => self.partition(),
            28 | 29 => self.merge(),
            30 => self.kick(n),
            31 => self.stall(n),
            32 => self.lose_something(n),
            33 => {
                let delay = [0, 0, 3, 20, 70][self.random(5)];
                self.command(&format!("delay {delay}"));
            }
            34 => self.crash(),
            _ => {
                let time = [1, 5, 20, 60, 120][self.random(5)];
                self.log.push(format!("pass {time}"));
                self.world.pass(Duration::from_millis(time));
            }
        }
    }

    fn command(&mut self, line: &str) {
        self.log.push(line.to_owned());
        self.world.command(line).unwrap();
    }

    /// Notes which sessions the daemon has closed.
    fn find_closed(&mut self) {
        for user in &mut self.users {
            if user.id.is_some_and(|id| self.world.clients[&id].closed) {
                user.id = None;
                user.stalled = false;
                user.groups.clear();
            }
        }
    }

    fn connect(&mut self, n: usize) {
        let user = &mut self.users[n];
        let id = self.world.connect(user.daemon);
        let mut connect = vec![4, 4, 0, u8::from(user.views), user.user.len() as u8];
        connect.extend_from_slice(user.user.as_bytes());
        self.world.receive(id, &connect);
        if self.world.clients[&id].closed {
            // Its name is still in use.
            assert_eq!(self.world.clients[&id].bytes, [0xfa]);
            return;
        }
        let mut choice = b"NULL".to_vec();
        choice.resize(90, 0);
        self.world.receive(id, &choice);
        user.id = Some(id);
        self.sessions.push((id, user.name, user.views));
        self.log.push(format!("connect {}", user.name));
    }

    fn request(&mut self, n: usize, message_type: u32, to: &[Name], data: &[u8]) {
        let endian = [Endian::Little, Endian::Big][self.random(2)];
        let user = &self.users[n];
        let frame = Frame::new(
            endian,
            MessageType(message_type),
            user.name,
            to,
            7,
            data.to_vec().into(),
        );
        let bytes = frame.encode();
        // In one read, or in two.
        let cut = match self.random(4) {
            0 => self.random(bytes.len()),
            _ => 0,
        };
        let id = self.users[n].id.unwrap();
        for part in [&bytes[..cut], &bytes[cut..]] {
            if !part.is_empty() {
                self.world.receive(id, part);
            }
        }
    }

    fn send(&mut self, n: usize) {
        let service = 1 << self.random(6);
        let service = if self.random(3) == 0 { 0x20 } else { service };
        let discard = if self.random(6) == 0 { 0x40 } else { 0 };
        let mut to = BTreeSet::new();
        for _ in 0..=self.random(3) {
            let name = match self.random(5) {
                0 => {
                    let other = self.random(self.users.len());
                    self.users[other].name
                }
                other => Name::new(GROUPS[other % GROUPS.len()].as_bytes()).unwrap(),
            };
            to.insert(name);
        }
        let to: Vec<Name> = to.into_iter().collect();
        let id = self.users[n].id.unwrap();
        self.serial += 1;
        let sent = Sent {
            from: id,
            message_type: MessageType(service | discard),
            to: to.clone(),
            sender_pos: self.world.clients[&id].bytes.len(),
            cut_off: self.cut_off(n),
        };
        self.log.push(format!(
            "{} {} {to:?} {}",
            self.serial, self.users[n].name, sent.message_type
        ));
        self.sent.insert(self.serial, sent);
        let mut data = self.serial.to_be_bytes().to_vec();
        data.resize(8 + self.random(40), 0);
        self.request(n, service | discard, &to, &data);
    }

    /// Users that have no way to this one now. What a stalled one says is read later.
    fn cut_off(&self, n: usize) -> Option<BTreeSet<Name>> {
        if self.users[n].stalled || !self.network_known {
            return None;
        }
        let at = |user: &User| {
            let own = self.network.get(&user.name);
            let daemon = Name::new(self.daemons[user.daemon].as_bytes()).unwrap();
            own.or(self.network.get(&daemon))
                .copied()
                .unwrap_or_default()
        };
        let here = at(&self.users[n]);
        let away = self.users.iter().filter(|user| at(user) != here);
        Some(away.map(|user| user.name).collect())
    }

    /// A group to join or leave. Who hears of no views has one of its own: nobody could tell what
    /// has become of the others.
    fn group_of(&mut self, n: usize) -> (usize, Name) {
        let group = match self.users[n].views {
            true => self.random(GROUPS.len() - 1),
            false => GROUPS.len() - 1,
        };
        (group, Name::new(GROUPS[group].as_bytes()).unwrap())
    }

    fn join(&mut self, n: usize) {
        let (group, name) = self.group_of(n);
        self.users[n].groups.insert(group);
        self.log
            .push(format!("{} joins {name}", self.users[n].name));
        self.request(n, 0x1_0000, &[name], b"");
    }

    fn leave(&mut self, n: usize) {
        let (group, name) = self.group_of(n);
        self.users[n].groups.remove(&group);
        self.log
            .push(format!("{} leaves {name}", self.users[n].name));
        self.request(n, 0x2_0000, &[name], b"");
    }

    /// Ends a session of its own will, with a word or without.
    fn part_from(&mut self, n: usize) {
        self.log.push(format!("{} ends", self.users[n].name));
        let id = self.users[n].id.unwrap();
        match self.random(2) {
            0 => {
                let name = self.users[n].name;
                self.request(n, 0x4_0000, &[name], b"");
            }
            _ => self.world.end(id),
        }
    }

    fn kick(&mut self, n: usize) {
        let name = self.users[n].name;
        self.command(&format!("kick {name}"));
    }

    fn partition(&mut self) {
        let count = 2 + self.random(2);
        let mut words = vec![Vec::new(); count];
        // Who is not named is together with all others who are not.
        self.network.values_mut().for_each(|at| *at = usize::MAX);
        let of_sessions = self.random(2) == 0;
        for daemon in self.daemons.clone() {
            let at = self.random(count);
            words[at].push(daemon.to_owned());
            let name = Name::new(daemon.as_bytes()).unwrap();
            self.network.insert(name, at);
            for user in &self.users {
                // A daemon takes with it those of its sessions that are not named.
                if self.daemons[user.daemon] == daemon {
                    self.network.entry(user.name).and_modify(|to| *to = at);
                }
            }
        }
        for n in 0..self.users.len() {
            if of_sessions && self.users[n].id.is_some() {
                let at = self.random(count);
                words[at].push(self.users[n].name.to_string());
                self.network.insert(self.users[n].name, at);
            }
        }
        words.retain(|word| !word.is_empty());
        let words: Vec<_> = words.iter().map(|word| word.join(",")).collect();
        self.command(&format!("partition {}", words.join(" ")));
        self.network_known = true;
    }

    fn merge(&mut self) {
        self.command("merge");
        self.network.values_mut().for_each(|at| *at = 0);
        self.network_known = true;
    }

    fn stall(&mut self, n: usize) {
        let name = self.users[n].name;
        match self.random(2) {
            0 => {
                self.users[n].stalled = true;
                self.command(&format!("stall {name}"));
            }
            _ => {
                self.users[n].stalled = false;
                self.command(&format!("resume {name}"));
            }
        }
    }

    fn lose_something(&mut self, n: usize) {
        let how = ["drop", "drop-safe", "unconfirmed"][self.random(3)];
        let whom = match self.random(2) {
            0 => {
                // From now on it has a place of its own.
                self.network.entry(self.users[n].name).or_insert(0);
                self.users[n].name.to_string()
            }
            _ => self.daemons[self.users[n].daemon].to_owned(),
        };
        self.command(&format!("{how} {whom}"));
        self.network_known = false;
    }

    fn crash(&mut self) {
        let daemon = self.random(self.daemons.len());
        let name = self.daemons[daemon];
        self.command(&format!("crash {name}"));
        self.network_known = false;
    }

    /// Lets everything come to rest, and all say a last word.
    fn finish(&mut self) -> Checker {
        self.find_closed();
        self.command("delay 0");
        self.merge();
        for n in 0..self.users.len() {
            if self.users[n].id.is_some() {
                let name = self.users[n].name;
                self.command(&format!("resume {name}"));
                self.users[n].stalled = false;
            }
        }
        self.world.pass(Duration::from_secs(2));
        // A message to be lost may have parted them again.
        self.command("merge");
        self.world.pass(Duration::from_secs(2));
        self.find_closed();
        let sessions = self.sessions.iter().map(|(id, name, views)| Seen {
            id: *id,
            name: *name,
            views: *views,
            lives: !self.world.clients[id].closed,
            events: {
                let client = &self.world.clients[id];
                events(&client.bytes, &client.sent_at)
            },
        });
        let checker = Checker {
            seen: sessions.collect(),
            sent: self.sent.clone(),
        };
        self.check_rest(&checker);
        checker
    }

    /// At rest all have each other: those who are in a group see those who are in it.
    fn check_rest(&self, checker: &Checker) {
        for (n, group) in GROUPS.iter().enumerate() {
            let group = Name::new(group.as_bytes()).unwrap();
            let users = self.users.iter();
            let inside = users.filter(|user| user.id.is_some() && user.groups.contains(&n));
            let mut inside: Vec<(usize, Name)> = inside.map(|it| (it.daemon, it.name)).collect();
            inside.sort();
            let expected: Vec<Name> = inside.iter().map(|(_, name)| *name).collect();
            for seen in checker.seen.iter().filter(|it| it.lives && it.views) {
                if expected.contains(&seen.name) {
                    let last = seen.last_view(&group).unwrap_or_default();
                    assert_eq!(
                        last,
                        expected,
                        "{} in {group}\n{}",
                        seen.name,
                        self.log.join("\n")
                    );
                }
            }
        }
    }

    /// How often something happened that is to be checked.
    fn count(&self, checker: &Checker) -> BTreeMap<&'static str, usize> {
        let mut counts = checker.count();
        let killed = checker.seen.iter().filter(|seen| !seen.lives).count();
        counts.insert("killed", killed);
        counts
    }
}
