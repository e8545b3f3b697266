//! What a test says to the daemons: one command in a line, one answer to each.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use standby::group::spread::wire::Name;

use super::change::{Loss, LossKind};
use super::part::{NodeId, Part};
use super::session::{Phase, Session};
use super::{Daemons, Output, SessionId};

/// The commands, with what they do, for people.
pub(crate) const COMMANDS: &str = "\
partition A,B C ...   cut the network between these, and those who are not named;
                      a name is a daemon's, a session's (#user#daemon), or a user's
merge                 heal the network
stall NAME [MS]       do not read and not write a session, or all of a daemon
resume NAME           read and write it again
kick NAME             end a session
crash DAEMON          end a daemon and its sessions; it comes back empty, cut off until merge
delay MS              deliver each message so much later (0: at once)
detection MS          notice changes of the network so much later
drop NAME             let the next message not get past NAME, which is cut off by that
drop-safe NAME        the same with the next SAFE message
unconfirmed NAME      let all get the next SAFE message, but NAME not know it; it is cut off
list                  say what there is, as JSON
quit                  end";

/// Something that a test wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Components, each a list of names
    Partition(Vec<Vec<String>>),
    /// All have each other.
    Merge,
    /// A daemon that does not move; for so long.
    Stall(String, Option<Duration>),
    /// It moves again.
    Resume(String),
    /// A session is ended.
    Kick(String),
    /// A daemon ends.
    Crash(String),
    /// From a message to its delivery
    Delay(Duration),
    /// From a change of the network to its being noticed
    Detection(Duration),
    /// A message is lost.
    Drop(String),
    /// A SAFE message is lost.
    DropSafe(String),
    /// The news that a SAFE message has arrived are lost.
    Unconfirmed(String),
    /// What there is
    List,
    /// The end of it all; that is the caller's.
    Quit,
}

impl Command {
    /// From a line. The error says what is wrong with it.
    pub(crate) fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let Some(command) = words.next() else {
            return Err("a command is missing".to_owned());
        };
        let words: Vec<&str> = words.collect();
        match (command, &words[..]) {
            ("partition", [_, ..]) => {
                let names = |word: &&str| {
                    let names = word.split(',').filter(|name| !name.is_empty());
                    names.map(str::to_owned).collect()
                };
                Ok(Self::Partition(words.iter().map(names).collect()))
            }
            ("merge", []) => Ok(Self::Merge),
            ("stall", [name]) => Ok(Self::Stall((*name).to_owned(), None)),
            ("stall", [name, time]) => Ok(Self::Stall((*name).to_owned(), Some(ms(time)?))),
            ("resume", [name]) => Ok(Self::Resume((*name).to_owned())),
            ("kick", [name]) => Ok(Self::Kick((*name).to_owned())),
            ("crash", [name]) => Ok(Self::Crash((*name).to_owned())),
            ("delay", [time]) => Ok(Self::Delay(ms(time)?)),
            ("detection", [time]) => Ok(Self::Detection(ms(time)?)),
            ("drop", [name]) => Ok(Self::Drop((*name).to_owned())),
            ("drop-safe", [name]) => Ok(Self::DropSafe((*name).to_owned())),
            ("unconfirmed", [name]) => Ok(Self::Unconfirmed((*name).to_owned())),
            ("list", []) => Ok(Self::List),
            ("quit", []) => Ok(Self::Quit),
            _ => Err(format!("there is no command {line:?}")),
        }
    }
}

fn ms(text: &str) -> Result<Duration, String> {
    let number: u32 = text
        .parse()
        .map_err(|_| format!("{text} is no number of milliseconds"))?;
    Ok(Duration::from_millis(number.into()))
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Daemon(usize),
    Session(SessionId),
}

impl Daemons {
    /// Does what a test wants. Returns what is to be answered.
    pub(crate) fn command(&mut self, command: &Command, now: Instant) -> Result<String, String> {
        self.now = now;
        let done = match command {
            Command::Partition(components) => self.partition(components)?,
            Command::Merge => {
                let changed = self.change_network(Vec::new());
                changed_or_not(changed)
            }
            Command::Stall(name, time) => {
                let until = time.map(|time| self.now + time);
                self.stall(name, true, until)?
            }
            Command::Resume(name) => self.stall(name, false, None)?,
            Command::Kick(name) => match self.find(name)? {
                Named::Daemon(_) => return Err(format!("{name} is a daemon")),
                Named::Session(id) => {
                    self.end_session(id, "it was kicked");
                    String::new()
                }
            },
            Command::Crash(name) => match self.find(name)? {
                Named::Session(_) => return Err(format!("{name} is no daemon")),
                Named::Daemon(daemon) => {
                    self.crash(daemon);
                    String::new()
                }
            },
            Command::Delay(delay) => {
                self.delay = *delay;
                String::new()
            }
            Command::Detection(detection) => {
                self.options.detection = *detection;
                String::new()
            }
            Command::Drop(name) => self.arm(name, LossKind::Any)?,
            Command::DropSafe(name) => self.arm(name, LossKind::Safe)?,
            Command::Unconfirmed(name) => self.arm(name, LossKind::Unconfirmed)?,
            Command::List => self.list(),
            Command::Quit => String::new(),
        };
        self.run();
        Ok(done)
    }

    fn partition(&mut self, words: &[Vec<String>]) -> Result<String, String> {
        let mut components: Vec<BTreeSet<NodeId>> = vec![BTreeSet::new(); words.len()];
        let mut daemons = Vec::new();
        for (names, component) in words.iter().zip(&mut components) {
            for name in names {
                match self.find(name) {
                    Ok(Named::Daemon(daemon)) => daemons.push((name, daemon)),
                    _ => component.extend(self.nodes_of(name)?),
                }
            }
        }
        // A session that is named beside its daemon counts for itself.
        let named: BTreeSet<NodeId> = components.iter().flatten().copied().collect();
        for (names, component) in words.iter().zip(&mut components) {
            let its = daemons.iter().filter(|(name, _)| names.contains(name));
            for (_, daemon) in its {
                component.extend(&self.nodes_of_daemon(*daemon) - &named);
            }
        }
        let count: usize = components.iter().map(BTreeSet::len).sum();
        let all: BTreeSet<NodeId> = components.iter().flatten().copied().collect();
        if all.len() != count {
            return Err("a name is in two components".to_owned());
        }
        let changed = self.change_network(components);
        Ok(changed_or_not(changed))
    }

    fn arm(&mut self, name: &str, kind: LossKind) -> Result<String, String> {
        let nodes = self.nodes_of(name)?;
        self.loss = Some(Loss { nodes, kind });
        Ok(String::new())
    }

    fn stall(
        &mut self,
        name: &str,
        stalled: bool,
        until: Option<Instant>,
    ) -> Result<String, String> {
        let sessions = match self.find(name)? {
            Named::Session(id) => vec![id],
            Named::Daemon(daemon) => {
                let sessions = self.sessions.iter();
                let its = sessions.filter(|(_, session)| session.daemon == daemon);
                its.map(|(id, _)| *id).collect()
            }
        };
        for id in sessions {
            self.set_stalled(id, stalled, until);
        }
        Ok(String::new())
    }

    /// Neither reads nor writes a session, or does so again.
    pub(super) fn set_stalled(&mut self, id: SessionId, stalled: bool, until: Option<Instant>) {
        let was = self.stalls.remove(&id).is_some();
        if stalled {
            self.stalls.insert(id, until);
        }
        if was != stalled {
            self.output.push_back(Output::Write(id, !stalled));
            self.wake(id);
            self.update_reading(id);
        }
    }

    /// All nodes that a name stands for. A session gets one of its own.
    fn nodes_of(&mut self, name: &str) -> Result<BTreeSet<NodeId>, String> {
        match self.find(name) {
            Ok(Named::Daemon(daemon)) => Ok(self.nodes_of_daemon(daemon)),
            Ok(Named::Session(id)) => Ok(BTreeSet::from([self.separate(id)?])),
            // It may have been there, and come back.
            Err(problem) => {
                let nodes = self.nodes.iter();
                let users = nodes.map(|node| node.user.filter(|user| is_meant(user, name)));
                let found = users.enumerate().filter(|(_, user)| user.is_some());
                let found: BTreeSet<_> = found.map(|(at, _)| NodeId(at)).collect();
                if found.len() == 1 {
                    Ok(found)
                } else {
                    Err(problem)
                }
            }
        }
    }

    /// Who is meant by a name: a daemon, a session, or a user if only one daemon has that.
    fn find(&self, name: &str) -> Result<Named, String> {
        let names = &self.options.names;
        if let Some(daemon) = names.iter().position(|it| it == name) {
            return Ok(Named::Daemon(daemon));
        }
        let open = |(_, session): &(&SessionId, &Session)| session.phase == Phase::Open;
        let found = self.sessions.iter().filter(open);
        let mut found = found.filter(|(_, session)| is_meant(&session.name, name));
        match (found.next(), found.next()) {
            (Some((id, _)), None) => Ok(Named::Session(*id)),
            (Some(_), Some(_)) => Err(format!("{name} is at several daemons; say #{name}#DAEMON")),
            (None, _) => Err(format!("there is no daemon and no session {name}")),
        }
    }

    /// What there is, as JSON in one line.
    fn list(&self) -> String {
        let daemons = self.options.names.iter().enumerate();
        let daemons = daemons.map(|(daemon, name)| {
            let open = |session: &&Session| session.phase == Phase::Open;
            let sessions = self.sessions.iter();
            let sessions = sessions.filter(|(_, it)| it.daemon == daemon && open(it));
            let sessions = sessions.map(|(id, session)| {
                format!(
                    "{{\"name\":{},\"queued\":{},\"stalled\":{},\"views\":{}}}",
                    Json(session.name.as_bytes()),
                    session.queued(),
                    self.stalls.contains_key(id),
                    session.views
                )
            });
            format!(
                "{{\"name\":{},\"sessions\":{}}}",
                Json(name.as_bytes()),
                array(sessions)
            )
        });
        let parts = self.parts.iter().map(|part| {
            let groups = part.groups.iter().map(|(name, group)| {
                let members = group.names();
                let members = members.iter().map(|name| Json(name.as_bytes()));
                format!(
                    "{{\"name\":{},\"id\":\"{}\",\"members\":{}}}",
                    Json(name.as_bytes()),
                    group.id,
                    array(members)
                )
            });
            let nodes = self.node_names(part);
            format!(
                "{{\"nodes\":{},\"waiting\":{},\"groups\":{}}}",
                array(nodes.iter().map(|name| Json(name.as_bytes()))),
                part.waiting(),
                array(groups)
            )
        });
        format!(
            "{{\"daemons\":{},\"parts\":{},\"changing\":{},\"delay_ms\":{}}}",
            array(daemons),
            array(parts),
            self.change.is_some(),
            self.delay.as_millis()
        )
    }

    /// Daemons, and sessions with a place of their own, of a part.
    fn node_names(&self, part: &Part) -> Vec<String> {
        let nodes = part.nodes.iter().filter_map(|node| self.nodes.get(node.0));
        let names = nodes.map(|node| {
            let daemon = self.options.names.get(node.daemon);
            let user = node.user.as_ref().map(Name::to_string);
            user.or(daemon.cloned()).unwrap_or_default()
        });
        names.collect()
    }

    /// Who has whom, for people.
    pub(super) fn describe_parts(&self) -> String {
        let parts = self
            .parts
            .iter()
            .map(|part| self.node_names(part).join(","));
        parts.collect::<Vec<_>>().join(" ")
    }
}

/// Whether a session is meant: by its whole name, or by that of its user.
fn is_meant(session: &Name, name: &str) -> bool {
    let user = session.parts().map(|(user, _)| user);
    session.as_bytes() == name.as_bytes() || user == Some(name.as_bytes())
}

fn changed_or_not(changed: bool) -> String {
    let text = if changed { "" } else { "nothing changes" };
    text.to_owned()
}

fn array(items: impl Iterator<Item = impl fmt::Display>) -> String {
    let mut text = String::from("[");
    for (n, item) in items.enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{item}", if n == 0 { "" } else { "," });
    }
    text.push(']');
    text
}

/// Bytes as a string of JSON; what is no visible character with its number.
struct Json<'a>(&'a [u8]);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for byte in self.0 {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                0x20..=0x7e => f.write_char(char::from(*byte))?,
                _ => write!(f, "\\u{byte:04x}")?,
            }
        }
        f.write_char('"')
    }
}
