//! What an administrator asks for: the body of a `POST`, in JSON, under the command's name.
//!
//! | path | body |
//! |---|---|
//! | `/swap` | `{"to": NODE}`, or without `to` to whom it is best |
//! | `/promote` | `{"accept_loss": true}` |
//! | `/member` | `{"node": NODE, "action": "add", "remove", "add-arbiter" or "remove-arbiter"}` |
//! | `/pack` | `{"storage": NAME, "days": NUMBER}`, or `"time": NUMBER`; without `storage` all |
//! | `/drain` | `{"on": true}` |
//! | `/verify` | `{"storage": NAME}`, or all; `"with": NODE` or `"all": true`; `"rate"` |
//! | `/backup` | `{"tid": "16 hexadecimal digits", "to": PATH}`; `"storage"`, `"blobs"`, `"rate"` |
//! | `/fetch` | `{"from": NODE}`, or without `from` from whom it is best |
//!
//! An empty body is one without fields; an unknown field is an error.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::report::Report;

use crate::ids::{NodeId, Tid};
use crate::limits::STORAGE_NAME_LEN_MAX;
use crate::replica::event::MemberChange;

/// A command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Another node is to be primary, without a loss.
    Swap {
        /// Which one; `None` for the one that is most eligible.
        to: Option<NodeId>,
    },
    /// This node is to be primary though the majority is gone for good.
    Promote {
        /// What only the others have may be lost. Without it the command is refused.
        accept_loss: bool,
    },
    /// The members are to be changed.
    Member {
        /// Whom it concerns.
        node: NodeId,
        /// How
        action: MemberAction,
    },
    /// Storages are to be packed, on all nodes.
    Pack {
        /// Which; `None` for all.
        storage: Option<String>,
        /// What is older than this many days goes; from zero.
        days: f64,
        /// Instead of that: what is older than this time, in seconds since 1970.
        time: Option<f64>,
    },
    /// New clients are to be sent elsewhere, or not any more.
    Drain {
        /// Whether
        on: bool,
    },
    /// The data of this node are to be checked.
    Verify {
        /// Which; `None` for all.
        storage: Option<String>,
        /// And compared with those of others.
        with: Others,
        /// Bytes per second; `None` for a few, zero without bound.
        rate: Option<u64>,
    },
    /// A copy as of a transaction is to be written to this machine.
    Backup {
        /// The last one that may be in it; `None` for all that there are.
        tid: Option<Tid>,
        /// A new file in the directory for backups.
        to: String,
        /// Which; `None` for the only one.
        storage: Option<String>,
        /// A new directory there for the blobs, if they are wanted.
        blobs: Option<String>,
        /// As of [`Self::Verify`].
        rate: Option<u64>,
    },
    /// This node's data are to be copied anew from another one.
    Fetch {
        /// Whose; `None` for the one that is most suitable.
        from: Option<NodeId>,
    },
}

/// Whom to compare with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// Nobody.
    #[default]
    None,
    /// This node.
    One(NodeId),
    /// All that are here and have data.
    All,
}

/// How the members are to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberAction {
    /// The node is to be counted.
    Add,
    /// The node is not to be counted any more.
    Remove,
    /// The node is to decide between two.
    AddArbiter,
    /// The node is not to decide between two any more.
    RemoveArbiter,
}

impl MemberAction {
    /// What a replica has to be told.
    pub const fn change(self, node: NodeId) -> MemberChange {
        match self {
            Self::Add => MemberChange::Add(node),
            Self::Remove => MemberChange::Remove(node),
            Self::AddArbiter => MemberChange::AddArbiter(node),
            Self::RemoveArbiter => MemberChange::RemoveArbiter,
        }
    }
}

/// The body of an answer to a command that was obeyed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// What was done, for people.
    pub done: String,
    /// What `verify` has found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

/// The body of an answer to a request that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// Why, for people.
    pub error: String,
    /// Why, for programs.
    pub reason: Refusing,
    /// Who is primary, if that is why, and if it is known.
    pub primary: Option<String>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusing {
    /// The request is wrong.
    #[default]
    BadRequest,
    /// It cannot be done, now or at all.
    Conflict,
    /// Only the primary can do it.
    NotPrimary,
    /// This version does not do it.
    NotOffered,
    /// Too much is going on.
    Busy,
}

/// What stands in the bodies.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fields {
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<MemberAction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accept_loss: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    with: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blobs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
}

impl Command {
    /// Names of all commands, each the path of its requests behind the slash.
    pub const NAMES: [&str; 8] = [
        "swap", "promote", "member", "pack", "drain", "verify", "backup", "fetch",
    ];

    /// Of a name and a body. The error says what is wrong.
    pub fn parse(name: &str, body: &[u8]) -> Result<Self, String> {
        let mut fields: Fields = match body.trim_ascii() {
            b"" => Fields::default(),
            // Else a list would do, too, its values being the fields in order.
            body if !body.starts_with(b"{") => return Err("the body is no object".to_owned()),
            body => serde_json::from_slice(body).map_err(|error| format!("the body: {error}"))?,
        };
        let command = match name {
            "swap" => Self::Swap {
                to: node("to", fields.to.take())?,
            },
            "promote" => Self::Promote {
                accept_loss: fields.accept_loss.take().unwrap_or_default(),
            },
            "member" => Self::Member {
                node: needed("node", node("node", fields.node.take())?)?,
                action: needed("action", fields.action.take())?,
            },
            "pack" => Self::Pack {
                storage: storage(fields.storage.take())?,
                time: time(fields.time.take(), fields.days)?,
                days: days(fields.days.take())?,
            },
            "drain" => Self::Drain {
                on: needed("on", fields.on.take())?,
            },
            "verify" => Self::Verify {
                storage: storage(fields.storage.take())?,
                with: others(fields.with.take(), fields.all.take())?,
                rate: rate(fields.rate.take())?,
            },
            "backup" => Self::Backup {
                tid: fields.tid.take().map(tid).transpose()?,
                to: path("to", needed("to", fields.to.take())?)?,
                storage: storage(fields.storage.take())?,
                blobs: fields
                    .blobs
                    .take()
                    .map(|it| path("blobs", it))
                    .transpose()?,
                rate: rate(fields.rate.take())?,
            },
            "fetch" => Self::Fetch {
                from: node("from", fields.from.take())?,
            },
            _ => return Err(format!("there is no command {name}")),
        };
        // What is left belongs to another command.
        let left = serde_json::to_value(&fields).unwrap_or_default();
        match left.as_object().and_then(|left| left.keys().next()) {
            Some(field) => Err(format!("{name} has no field {field}")),
            None => Ok(command),
        }
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Swap { .. } => "swap",
            Self::Promote { .. } => "promote",
            Self::Member { .. } => "member",
            Self::Pack { .. } => "pack",
            Self::Drain { .. } => "drain",
            Self::Verify { .. } => "verify",
            Self::Backup { .. } => "backup",
            Self::Fetch { .. } => "fetch",
        }
    }

    /// Its body.
    pub fn body(&self) -> String {
        let mut fields = Fields::default();
        match self {
            Self::Swap { to } => fields.to = to.map(|node| node.to_string()),
            Self::Promote { accept_loss } => fields.accept_loss = Some(*accept_loss),
            Self::Member { node, action } => {
                fields.node = Some(node.to_string());
                fields.action = Some(*action);
            }
            Self::Pack {
                storage,
                days,
                time,
            } => {
                fields.storage.clone_from(storage);
                fields.time = *time;
                fields.days = time.is_none().then_some(*days);
            }
            Self::Drain { on } => fields.on = Some(*on),
            Self::Verify {
                storage,
                with,
                rate,
            } => {
                fields.storage.clone_from(storage);
                fields.rate = *rate;
                match with {
                    Others::None => {}
                    Others::One(node) => fields.with = Some(node.to_string()),
                    Others::All => fields.all = Some(true),
                }
            }
            Self::Backup {
                tid,
                to,
                storage,
                blobs,
                rate,
            } => {
                fields.tid = tid.map(|tid| tid.to_string());
                fields.to = Some(to.clone());
                fields.storage.clone_from(storage);
                fields.blobs.clone_from(blobs);
                fields.rate = *rate;
            }
            Self::Fetch { from } => fields.from = from.map(|node| node.to_string()),
        }
        serde_json::to_string(&fields).unwrap_or_default()
    }
}

fn needed<T>(field: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("a field {field} is needed"))
}

fn node(field: &str, name: Option<String>) -> Result<Option<NodeId>, String> {
    let Some(name) = name else {
        return Ok(None);
    };
    let node = NodeId::new(&name);
    node.map(Some)
        .ok_or_else(|| format!("{field}: {name:?} is not the name of a node"))
}

fn storage(name: Option<String>) -> Result<Option<String>, String> {
    let is_name = |name: &String| (1..=STORAGE_NAME_LEN_MAX).contains(&name.len());
    match name {
        Some(name) if !is_name(&name) => Err("storage: a name of 1 to 255 bytes".to_owned()),
        name => Ok(name),
    }
}

/// A hundred years are more than any database has.
const DAYS_MAX: f64 = 36_525.0;

fn days(days: Option<f64>) -> Result<f64, String> {
    let days = days.unwrap_or_default();
    match (0.0..=DAYS_MAX).contains(&days) {
        true => Ok(days),
        false => Err(format!("days: {days} is not from 0 to {DAYS_MAX}")),
    }
}

/// Beyond what a tid can say.
const TIME_MAX: f64 = 64_060_588_800.0;

fn time(time: Option<f64>, days: Option<f64>) -> Result<Option<f64>, String> {
    match time {
        Some(_) if days.is_some() => Err("time: there are days, too".to_owned()),
        Some(time) if !(0.0..=TIME_MAX).contains(&time) => {
            Err(format!("time: {time} is not from 0 to {TIME_MAX}"))
        }
        time => Ok(time),
    }
}

fn others(with: Option<String>, all: Option<bool>) -> Result<Others, String> {
    match (node("with", with)?, all.unwrap_or_default()) {
        (None, false) => Ok(Others::None),
        (Some(node), false) => Ok(Others::One(node)),
        (None, true) => Ok(Others::All),
        (Some(_), true) => Err("with and all exclude each other".to_owned()),
    }
}

/// Slower, and another node would forget what it is asked for.
const RATE_MIN: u64 = 1 << 20;

fn rate(rate: Option<u64>) -> Result<Option<u64>, String> {
    match rate {
        Some(rate @ 1..RATE_MIN) => {
            Err(format!("rate: {rate} is neither 0 nor {RATE_MIN} or more"))
        }
        rate => Ok(rate),
    }
}

fn tid(text: String) -> Result<Tid, String> {
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    let is_hex = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u64::from_str_radix(digits, 16) {
        Ok(tid) if is_hex => Ok(Tid(tid)),
        _ => Err(format!("tid: {text:?} is not 16 hexadecimal digits")),
    }
}

/// A path that leads out of the directory that it begins in is none. Where it may begin the server
/// knows.
fn path(field: &str, path: String) -> Result<String, String> {
    let mut parts = Path::new(&path).components();
    let is_sound = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
    match parts.all(is_sound) && !path.is_empty() && !path.contains('\0') && !path.ends_with('/') {
        true => Ok(path),
        false => Err(format!(
            "{field}: {path:?} is no path of a file, without . and .."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str, body: &str) -> Result<Command, String> {
        Command::parse(name, body.as_bytes())
    }

    #[test]
    fn commands_come_back_from_their_bodies() {
        let node = NodeId::new("beta").unwrap();
        let commands = [
            Command::Swap { to: None },
            Command::Swap { to: Some(node) },
            Command::Promote { accept_loss: true },
            Command::Member {
                node,
                action: MemberAction::AddArbiter,
            },
            Command::Pack {
                storage: Some("main".to_owned()),
                days: 1.5,
                time: None,
            },
            Command::Pack {
                storage: None,
                days: 0.0,
                time: Some(1.8e9),
            },
            Command::Drain { on: false },
            Command::Verify {
                storage: None,
                with: Others::None,
                rate: None,
            },
            Command::Verify {
                storage: Some("main".to_owned()),
                with: Others::One(node),
                rate: Some(0),
            },
            Command::Verify {
                storage: None,
                with: Others::All,
                rate: Some(1 << 30),
            },
            Command::Backup {
                tid: Some(Tid(0x0123_4567_89ab_cdef)),
                to: "/srv/a b".to_owned(),
                storage: None,
                blobs: None,
                rate: None,
            },
            Command::Backup {
                tid: None,
                to: "b/c".to_owned(),
                storage: Some("main".to_owned()),
                blobs: Some("blobs".to_owned()),
                rate: Some(1 << 20),
            },
            Command::Fetch { from: Some(node) },
        ];
        for command in commands {
            assert!(Command::NAMES.contains(&command.name()));
            assert_eq!(parsed(command.name(), &command.body()), Ok(command));
        }
    }

    #[test]
    fn an_empty_body_is_one_without_fields() {
        assert_eq!(parsed("swap", " \n"), Ok(Command::Swap { to: None }));
        let refused = Command::Promote { accept_loss: false };
        assert_eq!(parsed("promote", ""), Ok(refused));
    }

    #[test]
    fn what_is_wrong_with_a_body_is_said() {
        for (name, body, expected) in [
            ("dance", "", "there is no command dance"),
            ("swap", "{", "the body: EOF"),
            ("swap", "[]", "the body is no object"),
            ("swap", r#"{"to": 5}"#, "the body: "),
            ("swap", r#"{"too": "beta"}"#, "unknown field `too`"),
            ("swap", r#"{"days": 3}"#, "swap has no field days"),
            (
                "swap",
                r#"{"to": "a long name"}"#,
                "is not the name of a node",
            ),
            ("member", r#"{"node": "beta"}"#, "a field action is needed"),
            ("member", r#"{"action": "add"}"#, "a field node is needed"),
            (
                "member",
                r#"{"node": "b", "action": "ad"}"#,
                "unknown variant `ad`",
            ),
            ("pack", r#"{"days": -1}"#, "days: -1 is not from 0"),
            ("pack", r#"{"days": 1e300}"#, "is not from 0"),
            ("pack", r#"{"time": -1}"#, "time: -1 is not from 0"),
            ("pack", r#"{"time": 1, "days": 1}"#, "there are days, too"),
            ("pack", r#"{"storage": ""}"#, "storage: a name of"),
            ("drain", "", "a field on is needed"),
            (
                "backup",
                r#"{"tid": "12", "to": "/a"}"#,
                "is not 16 hexadecimal",
            ),
            (
                "backup",
                r#"{"tid": "+123456789abcdef", "to": "/a"}"#,
                "is not 16 hexadecimal",
            ),
            ("backup", r#"{"tid": "0123456789abcdef"}"#, "a field to is"),
            ("backup", r#"{"to": ""}"#, "is no path of a file"),
            ("backup", r#"{"to": "../a"}"#, "is no path of a file"),
            ("backup", r#"{"to": "/a/../b"}"#, "is no path of a file"),
            ("backup", r#"{"to": "a\u0000"}"#, "is no path of a file"),
            (
                "backup",
                r#"{"to": "a", "blobs": "b/"}"#,
                "blobs: \"b/\" is no",
            ),
            ("backup", r#"{"to": "a", "rate": 5}"#, "rate: 5 is neither"),
            (
                "verify",
                r#"{"with": "b", "all": true}"#,
                "exclude each other",
            ),
        ] {
            let error = parsed(name, body).unwrap_err();
            assert!(error.contains(expected), "{name} {body}: {error}");
        }
    }
}
