//! Who is who: daemons name members in their own way, so each member says what node it is.
//!
//! In each new view, and when something of it changes, every member sends
//! `("hello", (format, node, incarnation, version, history, disk, kind, has data, peer address,
//! past))`:
//! the number of what it says and how, 2; the name of its configuration; a number that differs from
//! start to start; the version of the program, for people; the history that it is part of, empty if
//! it has no journal yet; the id of its disk; 0 for data, 1 for an observer, 2 for an arbiter;
//! whether there is anything in its data files; where the others reach it directly, empty if
//! they do not; and the histories that its own is the future of, one behind the other.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::group::channel::{Channel, Delivered, Incoming, To};
use crate::group::message::Message;
use crate::group::{Lane, MemberId, View, ViewId};
use crate::ids::{DiskId, HistoryId, NodeId};
use crate::limits::PAST_MAX;
use crate::replica::message::NodeKind;
use crate::value::Value;

/// What we say and how.
const FORMAT: i64 = 2;

/// The method by which a member says who it is.
pub const HELLO: &str = "hello";

/// Bytes of a greeting at most, with what later versions may add to it.
const HELLO_LEN_MAX: usize = 4096;

/// Characters of a text that are believed.
const TEXT_LEN_MAX: usize = 300;

/// A member, by what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name of its configuration
    pub name: NodeId,
    /// Differs from start to start.
    pub incarnation: i64,
    /// Of the program
    pub version: String,
    /// The history that it is part of. None if it has no journal yet.
    pub history: Option<HistoryId>,
    /// What its promises are on.
    pub disk: DiskId,
    /// What it is for.
    pub kind: NodeKind,
    /// There is something in its data files.
    pub has_data: bool,
    /// Where the others reach it directly: `host:port`. Empty if they do not.
    pub address: String,
    /// The histories that its own is the future of: a loss was accepted.
    pub past: Vec<HistoryId>,
}

impl Peer {
    /// A node of this name without a journal.
    pub const fn blank(name: NodeId, incarnation: i64, version: String) -> Self {
        Self {
            name,
            incarnation,
            version,
            history: None,
            disk: DiskId([0; 16]),
            kind: NodeKind::Data,
            has_data: false,
            address: String::new(),
            past: Vec::new(),
        }
    }
}

/// What a message led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// All members of the view have said who they are.
    Complete,
    /// Another member goes by our name: one of them has to be configured anew.
    Namesake(MemberId),
    /// A member says things in another way than we do.
    Foreign(MemberId, String),
}

/// See the module's page.
#[derive(Debug)]
pub struct Roster {
    me: Peer,
    view: Option<View>,
    known: BTreeMap<MemberId, Peer>,
    /// Members of this view that something was wrong with: each is told of once.
    complained_of: BTreeSet<MemberId>,
    is_complete: bool,
}

impl Roster {
    /// Of a node that is this.
    pub const fn new(me: Peer) -> Self {
        Self {
            me,
            view: None,
            known: BTreeMap::new(),
            complained_of: BTreeSet::new(),
            is_complete: false,
        }
    }

    /// What we say of ourselves.
    pub const fn me(&self) -> &Peer {
        &self.me
    }

    /// We have a journal now, of this history and on this disk. It is to be said again.
    pub fn on_founded(&mut self, history: HistoryId, disk: DiskId, past: Vec<HistoryId>) {
        self.me.past = past;
        self.me.history = Some(history);
        self.me.disk = disk;
        self.me.has_data = true;
    }

    /// The arguments of our [`HELLO`].
    pub fn hello(&self) -> Vec<Value> {
        let me = &self.me;
        let history = me.history.map_or(Vec::new(), |history| history.0.to_vec());
        let past: Vec<u8> = me.past.iter().flat_map(|history| history.0).collect();
        let kind = match me.kind {
            NodeKind::Data => 0,
            NodeKind::Observer => 1,
            NodeKind::Arbiter => 2,
        };
        vec![
            Value::Int(FORMAT),
            Value::from(me.name.as_str().to_owned()),
            Value::Int(me.incarnation),
            Value::from(me.version.clone()),
            Value::Bytes(history.into()),
            Value::Bytes(me.disk.0.to_vec().into()),
            Value::Int(kind),
            Value::Bool(me.has_data),
            Value::from(me.address.clone()),
            Value::Bytes(past.into()),
        ]
    }

    /// Takes what has come, and answers a view. What is not about this is ignored.
    pub fn on_incoming(&mut self, incoming: &Incoming, channel: &mut Channel) -> Option<Noticed> {
        match incoming {
            Incoming::View(view) => {
                self.on_view(view);
                // Refused, if the view is over already: then its end comes next.
                let _ = channel.send(To::All, Lane::Control, HELLO, self.hello());
                None
            }
            Incoming::Lost(_) => {
                self.on_lost();
                None
            }
            Incoming::Message(message) if Self::may_be_hello(message) => {
                let said = Message::decode(&message.what).ok()?;
                let is_hello = said.method == HELLO;
                is_hello
                    .then(|| self.on_hello(&message.from, &said, channel.me()))
                    .flatten()
            }
            _ => None,
        }
    }

    /// These are the members from now on. Each says who it is, and so should we.
    pub fn on_view(&mut self, view: &View) {
        // Who was here may be another one now under the same name.
        self.known.clear();
        self.complained_of.clear();
        self.is_complete = false;
        self.view = Some(view.clone());
    }

    /// We are a member of nothing.
    pub fn on_lost(&mut self) {
        self.view = None;
        self.known.clear();
        self.is_complete = false;
    }

    /// Whether a message may be a greeting: to read the bulk of others only to see that it is none
    /// would cost too much.
    pub fn may_be_hello(message: &Delivered<Bytes>) -> bool {
        message.lane == Lane::Control && message.what.len() <= HELLO_LEN_MAX
    }

    /// Takes a greeting; `me` is our own name in the group.
    pub fn on_hello(
        &mut self,
        from: &MemberId,
        said: &Message,
        me: Option<&MemberId>,
    ) -> Option<Noticed> {
        let Some(peer) = read(&said.args) else {
            let what = match said.args.first() {
                Some(Value::Int(format)) => format!("format {format}"),
                _ => "no format".to_owned(),
            };
            let is_news = self.complained_of.insert(from.clone());
            return is_news.then(|| Noticed::Foreign(from.clone(), what));
        };
        let is_namesake = peer.name == self.me.name && me != Some(from);
        self.known.insert(from.clone(), peer);
        if is_namesake {
            let is_news = self.complained_of.insert(from.clone());
            return is_news.then(|| Noticed::Namesake(from.clone()));
        }
        let is_complete = self.knows_all();
        let is_news = is_complete && !self.is_complete;
        self.is_complete = is_complete;
        is_news.then_some(Noticed::Complete)
    }

    /// Whether all members of the view have said who they are.
    pub fn knows_all(&self) -> bool {
        let Some(view) = &self.view else {
            return false;
        };
        let mut members = view.members.iter();
        members.all(|member| self.known.contains_key(member))
    }

    /// Those who have not.
    pub fn silent(&self) -> impl Iterator<Item = &MemberId> {
        let members = self.view.iter().flat_map(|view| &view.members);
        members.filter(|member| !self.known.contains_key(member))
    }

    /// The view that we are in.
    pub fn view(&self) -> Option<&View> {
        self.view.as_ref()
    }

    /// Its name.
    pub fn view_id(&self) -> Option<ViewId> {
        self.view.as_ref().map(|view| view.id)
    }

    /// What a member has said of itself.
    pub fn peer(&self, member: &MemberId) -> Option<&Peer> {
        self.known.get(member)
    }

    /// The member with this name and disk.
    pub fn member(&self, name: NodeId, disk: DiskId) -> Option<&MemberId> {
        let mut known = self.known.iter();
        let found = known.find(|(_, peer)| peer.name == name && peer.disk == disk);
        found.map(|(member, _)| member)
    }

    /// The members of the view that have said who they are.
    pub fn peers(&self) -> impl Iterator<Item = (&MemberId, &Peer)> {
        self.known.iter()
    }
}

fn read(args: &[Value]) -> Option<Peer> {
    let [
        Value::Int(FORMAT),
        name,
        Value::Int(incarnation),
        version,
        Value::Bytes(history),
        Value::Bytes(disk),
        Value::Int(kind),
        Value::Bool(has_data),
        address,
        Value::Bytes(past),
        ..,
    ] = args
    else {
        return None;
    };
    let history = match history.len() {
        0 => None,
        _ => Some(HistoryId(history.as_ref().try_into().ok()?)),
    };
    Some(Peer {
        name: NodeId::new(&text(name)?)?,
        incarnation: *incarnation,
        version: text(version)?,
        history,
        disk: DiskId(disk.as_ref().try_into().ok()?),
        kind: match kind {
            0 => NodeKind::Data,
            1 => NodeKind::Observer,
            2 => NodeKind::Arbiter,
            _ => return None,
        },
        has_data: *has_data,
        address: text(address)?,
        past: {
            let (past, rest) = past.as_chunks::<16>();
            let is_whole = rest.is_empty() && past.len() <= PAST_MAX;
            let past = past.iter().map(|history| HistoryId(*history));
            is_whole.then(|| past.collect())?
        },
    })
}

fn text(value: &Value) -> Option<String> {
    let Value::Text(text) = value else {
        return None;
    };
    let text = std::str::from_utf8(text).ok()?;
    let is_shown = text.chars().all(|c| !c.is_control());
    (is_shown && text.len() <= TEXT_LEN_MAX).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Peer {
        Peer {
            disk: DiskId([7; 16]),
            address: "10.0.0.1:8102".to_owned(),
            ..Peer::blank(NodeId::new(name).unwrap(), 5, "0.1".to_owned())
        }
    }

    fn view(names: &[&str]) -> View {
        let members: Vec<MemberId> = names.iter().map(|name| MemberId::new(name)).collect();
        View {
            id: ViewId::default(),
            together: members.clone(),
            members,
            cause: "test",
        }
    }

    fn hello(args: Vec<Value>) -> Message {
        let bytes: Bytes = crate::group::message::encode(HELLO, args).concat().into();
        Message::decode(&bytes).unwrap()
    }

    #[test]
    fn all_are_known_when_each_has_said_who_it_is() {
        let (a, b) = (MemberId::new("#a"), MemberId::new("#b"));
        let mut roster = Roster::new(peer("alpha"));
        assert!(!roster.knows_all());
        roster.on_view(&view(&["#a", "#b"]));
        let own = hello(roster.hello());
        assert_eq!(roster.on_hello(&a, &own, Some(&a)), None);
        let mut other = Roster::new(peer("beta"));
        other.on_founded(
            HistoryId([3; 16]),
            DiskId([4; 16]),
            vec![HistoryId([2; 16])],
        );
        let said = hello(other.hello());
        assert_eq!(
            roster.on_hello(&b, &said, Some(&a)),
            Some(Noticed::Complete)
        );
        assert_eq!(roster.on_hello(&b, &said, Some(&a)), None, "it was told");
        assert_eq!(roster.peer(&b), Some(other.me()));
        let beta = NodeId::new("beta").unwrap();
        assert_eq!(roster.member(beta, DiskId([4; 16])), Some(&b));
        assert_eq!(roster.member(beta, DiskId([7; 16])), None);
        roster.on_view(&view(&["#a"]));
        assert!(!roster.knows_all(), "it may be another one");
    }

    #[test]
    fn a_namesake_and_a_stranger_are_noticed_once() {
        let (a, b) = (MemberId::new("#a"), MemberId::new("#b"));
        let mut roster = Roster::new(peer("alpha"));
        roster.on_view(&view(&["#a", "#b", "#c", "#d", "#e"]));
        let namesake = hello(Roster::new(peer("alpha")).hello());
        assert_eq!(
            roster.on_hello(&b, &namesake, Some(&a)),
            Some(Noticed::Namesake(b.clone()))
        );
        assert_eq!(roster.on_hello(&b, &namesake, Some(&a)), None);
        let mut short_disk = roster.hello();
        short_disk[5] = Value::Bytes(Bytes::from_static(b"short"));
        let mut name_too_long = roster.hello();
        name_too_long[1] = Value::text("a-name-too-long");
        for (member, args, expected) in [
            ("#c", vec![Value::Int(1), Value::None], "format 1"),
            ("#d", vec![], "no format"),
            ("#e", short_disk, "format 2"),
            ("#f", name_too_long, "format 2"),
        ] {
            let member = MemberId::new(member);
            let foreign = Noticed::Foreign(member.clone(), expected.to_owned());
            let said = hello(args);
            assert_eq!(roster.on_hello(&member, &said, Some(&a)), Some(foreign));
            assert_eq!(roster.on_hello(&member, &said, Some(&a)), None);
        }
    }
}
