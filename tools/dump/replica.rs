//! What replicas say to each other, and the entries of their log.

use std::time::Duration;

use bytes::Bytes;
use standby::entry::{Entry, EntryHeader, Point};
use standby::group::message::{Message as GroupMessage, MessageError};
use standby::ids::{Epoch, Tid};
use standby::pickle;
use standby::replica::codec::CodecError;
use standby::replica::members::{Arbiter, Members, Voter};
use standby::replica::message::{
    Content, Fetch, Fetched, Message as ReplicaMessage, NodeKind, PackStage, Position, Record,
    Role, Sender, State, Supply,
};
use standby::replica::settings::{Change, Kind as EntryKind, Settings};
use standby::storage::transfer::{self, BlobName, Transfer};
use standby::value::Value;

use crate::message::{Field, Fields, Kind, Message};

/// A message of our group, whoever said it to whom. `None` if the bytes are none.
pub(crate) fn said(time: Option<Duration>, bytes: &Bytes) -> Result<Message, MessageError> {
    let said = GroupMessage::decode(bytes)?;
    let message = match fields_of(&said, bytes) {
        Ok(Some(fields)) => Message {
            fields,
            ..Message::new(time, Kind::Message, said.method)
        },
        Ok(None) => {
            Message::new(time, Kind::Message, said.method).with("args", Value::Tuple(said.args))
        }
        Err(error) => Message::new(time, Kind::Trouble, said.method)
            .with("why", error.to_string())
            .with("args", Value::Tuple(said.args)),
    };
    Ok(message.of_bytes(bytes.clone(), 0))
}

/// The fields of what replicas say; `None` if the channel itself says it.
fn fields_of(said: &GroupMessage, bytes: &Bytes) -> Result<Option<Fields>, CodecError> {
    match said.method.as_str() {
        "fetch" => Fetch::decode(bytes).map(|fetch| Some(fetch_fields(&fetch))),
        "entries" | "released" | "refused" => {
            Fetched::decode(bytes).map(|fetched| Some(fetched_fields(&fetched)))
        }
        _ => Ok(ReplicaMessage::decode(said)?.map(|message| {
            let mut fields = content_fields(&message.content);
            put_sender(&mut fields, &message.sender);
            fields
        })),
    }
}

/// Which node that is comes first; what is the same in most messages, last.
fn put_sender(fields: &mut Fields, sender: &Sender) {
    fields.insert(0, ("node", sender.node.to_string().into()));
    fields.push(("history", hex(&sender.history.0)));
    fields.push(("disk", hex(&sender.disk.0)));
}

/// A name of random bytes.
pub(crate) fn hex(bytes: &[u8]) -> Field {
    Field::Hex(Bytes::copy_from_slice(bytes))
}

fn epoch(epoch: Epoch) -> Field {
    epoch.to_string().into()
}

/// `7-n1:42`: entry 42, which is of epoch `7-n1`.
fn position(position: Position) -> Field {
    format!("{}:{}", position.epoch, position.seq).into()
}

/// As [`position`].
pub(crate) fn point(point: &Point) -> Field {
    let Point { epoch, seq, .. } = *point;
    position(Position { epoch, seq })
}

fn content_fields(content: &Content) -> Fields {
    match content {
        Content::State(state) => state_fields(state),
        Content::Unblock { view } => vec![("view", hex(&view.0))],
        Content::Claim { epoch: e, handover } => {
            vec![
                ("epoch", epoch(*e)),
                ("handover", handover.map(epoch).into()),
            ]
        }
        Content::Promise {
            epoch: e,
            last,
            record,
        } => vec![
            ("epoch", epoch(*e)),
            ("last", position(*last)),
            ("record", record.as_ref().map(record_fields).into()),
        ],
        Content::Propose {
            previous,
            committed,
            entry,
        } => {
            let mut fields = entry_fields(entry);
            fields.push(("after", epoch(*previous)));
            fields.push(("committed", committed.0.into()));
            fields
        }
        Content::Ack {
            epoch: e,
            seq,
            applied,
            beat,
        } => vec![
            ("epoch", epoch(*e)),
            ("seq", seq.0.into()),
            ("applied", applied.0.into()),
            ("beat", (*beat).into()),
        ],
        Content::Commit {
            epoch: e,
            committed,
            last,
            beat,
            wall,
        } => vec![
            ("epoch", epoch(*e)),
            ("committed", committed.0.into()),
            ("last", position(*last)),
            ("beat", (*beat).into()),
            ("clock", Field::Time(*wall)),
        ],
        Content::Handover { epoch: e, to } => {
            vec![("epoch", epoch(*e)), ("to_node", to.to_string().into())]
        }
        Content::Ask { epoch: e, id } => vec![("epoch", epoch(*e)), ("id", (*id).into())],
        Content::Told {
            epoch: e,
            id,
            committed,
        } => vec![
            ("epoch", epoch(*e)),
            ("id", (*id).into()),
            ("committed", committed.0.into()),
        ],
        Content::Record(record) => record_fields(record),
        Content::Recorded(place) => vec![("position", position(*place))],
        Content::Packing { epoch: e, stage } => {
            vec![("epoch", epoch(*e)), ("stage", stage_name(*stage).into())]
        }
        Content::Pack { epoch: e, node } => {
            vec![("epoch", epoch(*e)), ("to_node", node.to_string().into())]
        }
    }
}

fn state_fields(state: &State) -> Fields {
    let role = match state.role {
        Role::Replica => "replica",
        Role::Candidate => "candidate",
        Role::Primary => "primary",
    };
    let kind = match state.kind {
        NodeKind::Data => "data",
        NodeKind::Observer => "observer",
        NodeKind::Arbiter => "arbiter",
    };
    let mut fields = vec![
        ("role", role.into()),
        ("promised", epoch(state.promised)),
        ("last", position(state.last)),
        ("committed", state.committed.0.into()),
        ("applied", state.applied.0.into()),
        ("hears", state.hears.map(epoch).into()),
        ("kind", kind.into()),
        ("site", state.site.as_str().into()),
        ("home", state.home.as_str().into()),
        ("priority", state.priority.into()),
        ("history_from", state.history_from.into()),
        ("clock", Field::Time(state.wall)),
        ("view", hex(&state.view.0)),
    ];
    fields.extend(members_fields(&state.members));
    fields
}

fn record_fields(record: &Record) -> Fields {
    let mut fields = vec![("position", position(record.position))];
    fields.extend(members_fields(&record.members));
    fields
}

fn fetch_fields(fetch: &Fetch) -> Fields {
    let ends = fetch.ends.iter().map(|end| position(*end)).collect();
    let mut fields = vec![
        ("id", fetch.id.into()),
        ("epoch", epoch(fetch.epoch)),
        ("is_claim", fetch.is_claim.into()),
        ("ends", Field::List(ends)),
    ];
    put_sender(&mut fields, &fetch.sender);
    fields
}

fn fetched_fields(fetched: &Fetched) -> Fields {
    let mut fields = vec![("id", fetched.id.into()), ("epoch", epoch(fetched.epoch))];
    if let Supply::Entries { after, entries } = &fetched.what {
        let entries = entries.iter().map(|entry| Field::Tree(entry_fields(entry)));
        fields.push(("after", position(*after)));
        fields.push(("entries", Field::List(entries.collect())));
    }
    put_sender(&mut fields, &fetched.sender);
    fields
}

fn entry_fields(entry: &Entry) -> Fields {
    let mut fields = header_fields(entry.header());
    let (body, records) = body(entry.header(), entry.body());
    fields.extend(body);
    if !records.is_empty() {
        let records = records.into_iter().map(Field::Tree);
        fields.push(("records", Field::List(records.collect())));
    }
    fields
}

/// What the header of an entry says.
pub(crate) fn header_fields(header: &EntryHeader) -> Fields {
    let kind = EntryKind::from_number(header.kind);
    let kind = kind.map_or_else(|| header.kind.to_string(), |kind| kind.name().to_owned());
    let mut fields: Fields = vec![
        ("seq", header.seq.0.into()),
        ("epoch", epoch(header.epoch)),
        ("kind", kind.into()),
    ];
    if header.tid != Tid::ZERO {
        fields.push(("tid", header.tid.into()));
    }
    fields.push(("body_len", header.body_len.into()));
    fields.push(("digest", hex(&header.digest.0)));
    fields
}

/// What the body of an entry says, and the records in it.
pub(crate) fn body(header: &EntryHeader, body: &[Bytes]) -> (Fields, Vec<Fields>) {
    let problem = |why: String| vec![("problem", Field::from(why))];
    match EntryKind::from_number(header.kind) {
        Some(EntryKind::Transaction) => match Transfer::decode(body) {
            Ok(transfer) => {
                let records = transfer.records.iter().map(record_of).collect();
                (transfer_fields(&transfer), records)
            }
            Err(error) => (problem(error.to_string()), Vec::new()),
        },
        Some(kind) => match Change::decode(kind, body) {
            Ok(change) => (change_fields(&change), Vec::new()),
            Err(error) => (problem(error.to_string()), Vec::new()),
        },
        None => (problem("of an unknown kind".to_owned()), Vec::new()),
    }
}

fn transfer_fields(transfer: &Transfer) -> Fields {
    let mut fields: Fields = vec![
        ("storage", transfer.storage.as_str().into()),
        ("user", transfer.user.clone().into()),
        ("description", transfer.description.clone().into()),
    ];
    if transfer.status != b' ' {
        fields.push(("status", format!("{:#04x}", transfer.status).into()));
    }
    if !transfer.extension.is_empty() {
        fields.push(match pickle::decode(&transfer.extension) {
            Ok(value) => ("extension", value.into()),
            Err(error) => ("problem", error.to_string().into()),
        });
    }
    if !transfer.blobs.is_empty() {
        let blob = |blob: &BlobName| {
            Field::Tree(vec![
                ("oid", blob.oid.into()),
                ("len", blob.len.into()),
                ("digest", hex(&blob.digest.0)),
            ])
        };
        let blobs = transfer.blobs.iter().map(blob);
        fields.push(("blobs", Field::List(blobs.collect())));
    }
    fields
}

fn record_of(record: &transfer::Record) -> Fields {
    let mut fields: Fields = vec![("oid", record.oid.into())];
    if let Some(tid) = record.same_as {
        fields.push(("same_as", tid.into()));
    }
    fields.push(match &record.data {
        Some(data) => ("data", Field::record(data.clone())),
        None => ("gone", true.into()),
    });
    fields
}

fn change_fields(change: &Change) -> Fields {
    match change {
        Change::Barrier(settings) => settings_fields(settings),
        Change::Ceiling { storage, oid } => {
            vec![("storage", storage.as_str().into()), ("oid", (*oid).into())]
        }
        Change::Members(members) => members_fields(members),
        Change::Pack { storage, tid } => {
            vec![
                ("storage", storage.as_str().into()),
                ("until", (*tid).into()),
            ]
        }
    }
}

fn settings_fields(settings: &Settings) -> Fields {
    let mut fields = members_fields(&settings.members);
    fields.push(("home", settings.home.as_str().into()));
    let ceilings = settings.ceilings.iter().map(|(storage, oid)| {
        Field::Tree(vec![
            ("storage", storage.as_str().into()),
            ("oid", (*oid).into()),
        ])
    });
    fields.push(("ceilings", Field::List(ceilings.collect())));
    let packs = settings.packs.iter().map(|(storage, pack)| {
        Field::Tree(vec![
            ("storage", storage.as_str().into()),
            ("until", pack.tid.into()),
            ("at", pack.at.0.into()),
        ])
    });
    fields.push(("packs", Field::List(packs.collect())));
    fields.push(("jump", settings.jump.into()));
    fields
}

fn members_fields(members: &Members) -> Fields {
    let list = |voters: &mut dyn Iterator<Item = &Voter>| Field::List(voters.map(voter).collect());
    let mut fields = vec![("voters", list(&mut members.voters.iter()))];
    if let Some(Arbiter { node, in_sync }) = &members.arbiter {
        fields.push(("arbiter", voter(node)));
        fields.push(("in_sync", list(&mut in_sync.iter())));
    }
    fields
}

fn voter(voter: &Voter) -> Field {
    Field::Tree(vec![
        ("node", voter.node.to_string().into()),
        ("disk", hex(&voter.disk.0)),
    ])
}

const fn stage_name(stage: PackStage) -> &'static str {
    match stage {
        PackStage::Wanted => "wanted",
        PackStage::Begun => "begun",
        PackStage::Done => "done",
    }
}
