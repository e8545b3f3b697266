//! Who is who: daemons name members in their own way, so each member says what node it is.
//!
//! In each new view every member sends `("hello", (format, node, incarnation, version))` to all:
//! the number of what it says and how, 1; the name of its configuration; a number that differs from
//! start to start; and the version of the program, for people.

use std::collections::{BTreeMap, BTreeSet};

use super::channel::{Channel, Delivered, Incoming, To};
use super::message::Message;
use super::{Lane, MemberId, View, ViewId};
use crate::value::Value;
use bytes::Bytes;

/// What we say and how.
const FORMAT: i64 = 1;

/// The method by which a member says who it is.
const HELLO: &str = "hello";

/// Bytes of a greeting at most, with what later versions may add to it.
const HELLO_LEN_MAX: usize = 4096;

/// Characters of a name that are believed.
const NAME_LEN_MAX: usize = 40;

/// A member that has said who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The name of its configuration
    pub name: String,
    /// Differs from start to start.
    pub incarnation: i64,
    /// Of the program
    pub version: String,
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
    me: Node,
    view: Option<View>,
    known: BTreeMap<MemberId, Node>,
    /// Members of this view that something was wrong with: each is told of once.
    complained_of: BTreeSet<MemberId>,
    complete: bool,
}

impl Roster {
    /// For a node of this name. `incarnation` differs from start to start.
    pub const fn new(name: String, incarnation: i64, version: String) -> Self {
        Self {
            me: Node {
                name,
                incarnation,
                version,
            },
            view: None,
            known: BTreeMap::new(),
            complained_of: BTreeSet::new(),
            complete: false,
        }
    }

    /// Takes what has come, and answers a view. What is not about this is ignored.
    pub fn on_incoming(&mut self, incoming: &Incoming, channel: &mut Channel) -> Option<Noticed> {
        match incoming {
            Incoming::View(view) => {
                // Who was here may be another one now under the same name.
                self.known.clear();
                self.complained_of.clear();
                self.complete = false;
                self.view = Some(view.clone());
                // Refused, if the view is over already: then its end comes next.
                let _ = channel.send(To::All, Lane::Control, HELLO, self.hello());
                None
            }
            Incoming::Lost(_) => {
                self.view = None;
                self.known.clear();
                None
            }
            Incoming::Message(message) => self.on_message(message, channel.me()),
            _ => None,
        }
    }

    fn hello(&self) -> Vec<Value> {
        let Node {
            name,
            incarnation,
            version,
        } = &self.me;
        vec![
            Value::Int(FORMAT),
            Value::from(name.clone()),
            Value::Int(*incarnation),
            Value::from(version.clone()),
        ]
    }

    fn on_message(&mut self, message: &Delivered<Bytes>, me: Option<&MemberId>) -> Option<Noticed> {
        let from = &message.from;
        if message.lane != Lane::Control || message.what.len() > HELLO_LEN_MAX {
            // To read the bulk of others only to see that it is no greeting would cost too much.
            return None;
        }
        let said = Message::decode(&message.what).ok()?;
        if said.method != HELLO {
            return None;
        }
        let Some(node) = read(&said.args) else {
            let what = match said.args.first() {
                Some(Value::Int(format)) => format!("format {format}"),
                _ => "no format".to_owned(),
            };
            let is_news = self.complained_of.insert(from.clone());
            return is_news.then(|| Noticed::Foreign(from.clone(), what));
        };
        let is_namesake = node.name == self.me.name && me != Some(from);
        self.known.insert(from.clone(), node);
        if is_namesake {
            let is_news = self.complained_of.insert(from.clone());
            return is_news.then(|| Noticed::Namesake(from.clone()));
        }
        let members = self.view.as_ref().map_or(&[][..], |view| &view.members);
        let is_complete = members.iter().all(|member| self.known.contains_key(member));
        let is_news = is_complete && !self.complete;
        self.complete = is_complete;
        is_news.then_some(Noticed::Complete)
    }

    /// The view that we are in.
    pub fn view(&self) -> Option<ViewId> {
        self.view.as_ref().map(|view| view.id)
    }

    /// The members of the view, each with what it has said of itself.
    pub fn members(&self) -> impl Iterator<Item = (&MemberId, Option<&Node>)> {
        let members = self.view.iter().flat_map(|view| &view.members);
        members.map(|member| (member, self.known.get(member)))
    }
}

fn read(args: &[Value]) -> Option<Node> {
    let [
        Value::Int(FORMAT),
        name,
        Value::Int(incarnation),
        version,
        ..,
    ] = args
    else {
        return None;
    };
    Some(Node {
        name: text(name)?,
        incarnation: *incarnation,
        version: text(version)?,
    })
}

fn text(value: &Value) -> Option<String> {
    let Value::Text(text) = value else {
        return None;
    };
    let text = std::str::from_utf8(text).ok()?;
    let is_shown = text.chars().all(|c| !c.is_control());
    (is_shown && text.len() <= NAME_LEN_MAX).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::fragment::Seal;
    use super::super::loopback::Loopback;
    use super::super::{Audience, Group};
    use super::*;

    struct Alone {
        group: Loopback,
        channel: Channel,
        roster: Roster,
        now: Instant,
    }

    impl Alone {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant can be had in no other way"
        )]
        fn new() -> Self {
            let now = Instant::now();
            Self {
                group: Loopback::new("a"),
                channel: Channel::new("g", Seal::Plain, 1, now),
                roster: Roster::new("alpha".to_owned(), 5, "0.1".to_owned()),
                now,
            }
        }

        fn run(&mut self) -> Vec<Noticed> {
            let mut noticed = Vec::new();
            while let Some(event) = self.group.poll_event() {
                self.channel.on_event(event, &self.group, self.now);
                while let Some(incoming) = self.channel.poll_incoming() {
                    noticed.extend(self.roster.on_incoming(&incoming, &mut self.channel));
                }
                self.channel.flush(&mut self.group, self.now);
            }
            noticed
        }

        fn hear(&mut self, from: &str, args: Vec<Value>) -> Option<Noticed> {
            let parts = super::super::message::encode(HELLO, args);
            let message = Incoming::Message(Delivered {
                from: MemberId::new(from),
                lane: Lane::Control,
                audience: Audience::All,
                what: parts.concat().into(),
            });
            self.roster.on_incoming(&message, &mut self.channel)
        }
    }

    #[test]
    fn members_say_in_each_view_who_they_are() {
        let mut alone = Alone::new();
        alone.group.join(alone.now);
        assert_eq!(alone.run(), [Noticed::Complete]);
        let (member, node) = alone.roster.members().next().unwrap();
        assert_eq!((member.as_str(), &node.unwrap().name[..]), ("a", "alpha"));
        let first = alone.roster.view();
        alone.group.reset("test", alone.now);
        assert_eq!(alone.run(), [Noticed::Complete]);
        assert_ne!(alone.roster.view(), first);
    }

    #[test]
    fn a_namesake_and_a_stranger_are_noticed() {
        let mut alone = Alone::new();
        alone.group.join(alone.now);
        alone.run();
        let namesake = vec![
            Value::Int(FORMAT),
            Value::text("alpha"),
            Value::Int(6),
            Value::text("0.1"),
        ];
        let b = MemberId::new("b");
        assert_eq!(
            alone.hear("b", namesake.clone()),
            Some(Noticed::Namesake(b))
        );
        assert_eq!(alone.hear("b", namesake), None, "it was told");
        for (member, args, expected) in [
            ("c", vec![Value::Int(2), Value::None], "format 2"),
            ("d", vec![], "no format"),
        ] {
            let foreign = Noticed::Foreign(MemberId::new(member), expected.to_owned());
            assert_eq!(alone.hear(member, args.clone()), Some(foreign));
            assert_eq!(alone.hear(member, args), None, "it was told");
        }
    }
}
