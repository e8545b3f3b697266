//! Messages through the group: each content is a method.

use super::field::{self, Field, Fields};
use super::{CodecError, MESSAGE_FORMAT};
use crate::group;
use crate::replica::message::{Content, Message, Record, Sender, State};
use crate::value::Value;

/// The methods of messages that go through the group.
pub const METHODS: [&str; 14] = [
    "state", "unblock", "claim", "promise", "propose", "ack", "commit", "handover", "ask", "told",
    "record", "recorded", "packing", "pack",
];

impl Content {
    /// The method that it is.
    pub const fn method(&self) -> &'static str {
        match self {
            Self::State(_) => "state",
            Self::Unblock { .. } => "unblock",
            Self::Claim { .. } => "claim",
            Self::Promise { .. } => "promise",
            Self::Propose { .. } => "propose",
            Self::Ack { .. } => "ack",
            Self::Commit { .. } => "commit",
            Self::Handover { .. } => "handover",
            Self::Ask { .. } => "ask",
            Self::Told { .. } => "told",
            Self::Record(_) => "record",
            Self::Recorded(_) => "recorded",
            Self::Packing { .. } => "packing",
            Self::Pack { .. } => "pack",
        }
    }
}

impl Message {
    /// Its method and arguments, as the channel of a group takes them. The body of an entry is not
    /// copied.
    pub fn encode(&self) -> (&'static str, Vec<Value>) {
        let mut args = beginning(&self.sender);
        encode_content(&self.content, &mut args);
        (self.content.method(), args)
    }

    /// What has come through a group; `None` if it is none of [`METHODS`]. The body of an entry is
    /// what was received, and not copied.
    ///
    /// # Errors
    ///
    /// If it is not understood, whose fault is the sender's. Entries are checked against their
    /// digests.
    pub fn decode(message: &group::message::Message) -> Result<Option<Self>, CodecError> {
        let mut methods = METHODS.into_iter();
        let Some(method) = methods.find(|method| *method == message.method) else {
            return Ok(None);
        };
        let mut fields = Fields::new(method, &message.args);
        let sender = read_beginning(&mut fields)?;
        let Some(content) = decode_content(method, &mut fields)? else {
            return Ok(None);
        };
        fields.end()?;
        Ok(Some(Self { sender, content }))
    }
}

/// What each message begins with: the format, and who says it.
pub(super) fn beginning(sender: &Sender) -> Vec<Value> {
    vec![
        MESSAGE_FORMAT.to_value(),
        sender.history.to_value(),
        sender.node.to_value(),
        sender.disk.to_value(),
    ]
}

/// See [`beginning`].
pub(super) fn read_beginning(fields: &mut Fields<'_>) -> Result<Sender, CodecError> {
    fields.format(MESSAGE_FORMAT)?;
    Ok(Sender {
        history: fields.next("history")?,
        node: fields.next("node")?,
        disk: fields.next("disk")?,
    })
}

fn encode_content(content: &Content, args: &mut Vec<Value>) {
    match content {
        Content::State(state) => encode_state(state, args),
        Content::Unblock { view } => args.push(view.to_value()),
        Content::Claim { epoch, handover } => {
            args.extend([epoch.to_value(), handover.to_value()]);
        }
        Content::Promise {
            epoch,
            last,
            record,
        } => args.extend([epoch.to_value(), last.to_value(), record.to_value()]),
        Content::Propose {
            previous,
            committed,
            entry,
        } => args.extend([previous.to_value(), committed.to_value(), entry.to_value()]),
        Content::Ack {
            epoch,
            seq,
            applied,
            beat,
        } => args.extend([
            epoch.to_value(),
            seq.to_value(),
            applied.to_value(),
            beat.to_value(),
        ]),
        Content::Commit {
            epoch,
            committed,
            last,
            beat,
            wall,
        } => args.extend([
            epoch.to_value(),
            committed.to_value(),
            last.to_value(),
            beat.to_value(),
            wall.to_value(),
        ]),
        Content::Handover { epoch, to } => args.extend([epoch.to_value(), to.to_value()]),
        Content::Ask { epoch, id } => args.extend([epoch.to_value(), id.to_value()]),
        Content::Told {
            epoch,
            id,
            committed,
        } => args.extend([epoch.to_value(), id.to_value(), committed.to_value()]),
        Content::Record(record) => {
            args.extend([record.position.to_value(), record.members.to_value()]);
        }
        Content::Recorded(position) => args.push(position.to_value()),
        Content::Packing { epoch, stage } => {
            args.extend([epoch.to_value(), stage.to_value()]);
        }
        Content::Pack { epoch, node } => args.extend([epoch.to_value(), node.to_value()]),
    }
}

fn encode_state(state: &State, args: &mut Vec<Value>) {
    args.extend([
        state.view.to_value(),
        state.promised.to_value(),
        state.last.to_value(),
        state.committed.to_value(),
        state.applied.to_value(),
        state.role.to_value(),
        state.hears.to_value(),
        state.kind.to_value(),
        field::text_value(&state.site),
        field::text_value(&state.home),
        state.members.to_value(),
        state.priority.to_value(),
        state.history_from.to_value(),
        state.wall.to_value(),
    ]);
}

fn decode_content(method: &str, fields: &mut Fields<'_>) -> Result<Option<Content>, CodecError> {
    Ok(Some(match method {
        "state" => Content::State(Box::new(decode_state(fields)?)),
        "unblock" => Content::Unblock {
            view: fields.next("view")?,
        },
        "claim" => Content::Claim {
            epoch: fields.next("epoch")?,
            handover: fields.next("handover")?,
        },
        "promise" => Content::Promise {
            epoch: fields.next("epoch")?,
            last: fields.next("last")?,
            record: fields.next("record")?,
        },
        "propose" => Content::Propose {
            previous: fields.next("previous")?,
            committed: fields.next("committed")?,
            entry: fields.next("entry")?,
        },
        "ack" => Content::Ack {
            epoch: fields.next("epoch")?,
            seq: fields.next("seq")?,
            applied: fields.next("applied")?,
            beat: fields.next("beat")?,
        },
        "commit" => Content::Commit {
            epoch: fields.next("epoch")?,
            committed: fields.next("committed")?,
            last: fields.next("last")?,
            beat: fields.next("beat")?,
            wall: fields.next("wall")?,
        },
        "handover" => Content::Handover {
            epoch: fields.next("epoch")?,
            to: fields.next("to")?,
        },
        "ask" => Content::Ask {
            epoch: fields.next("epoch")?,
            id: fields.next("id")?,
        },
        "told" => Content::Told {
            epoch: fields.next("epoch")?,
            id: fields.next("id")?,
            committed: fields.next("committed")?,
        },
        "record" => Content::Record(Record {
            position: fields.next("position")?,
            members: fields.next("members")?,
        }),
        "recorded" => Content::Recorded(fields.next("position")?),
        "packing" => Content::Packing {
            epoch: fields.next("epoch")?,
            stage: fields.next("stage")?,
        },
        "pack" => Content::Pack {
            epoch: fields.next("epoch")?,
            node: fields.next("node")?,
        },
        _ => return Ok(None),
    }))
}

fn decode_state(fields: &mut Fields<'_>) -> Result<State, CodecError> {
    Ok(State {
        view: fields.next("view")?,
        promised: fields.next("promised")?,
        last: fields.next("last")?,
        committed: fields.next("committed")?,
        applied: fields.next("applied")?,
        role: fields.next("role")?,
        hears: fields.next("hears")?,
        kind: fields.next("kind")?,
        site: fields.next_by("site", field::site)?,
        home: fields.next_by("home", field::site)?,
        members: fields.next("members")?,
        priority: fields.next("priority")?,
        history_from: fields.next("history_from")?,
        wall: fields.next("wall")?,
    })
}
