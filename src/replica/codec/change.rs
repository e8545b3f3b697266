//! Entries that are no transactions.

use bytes::Bytes;

use super::field::{self, Field, Fields};
use super::{CHANGE_FORMAT, CodecError};
use crate::pickle;
use crate::replica::settings::{Change, Kind, Settings};
use crate::value::Value;

impl Kind {
    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Transaction => "transaction",
            Self::Ceiling => "ceiling",
            Self::Members => "members",
            Self::Pack => "pack",
        }
    }
}

impl Change {
    /// The body of its entry: a pickle of a tuple that begins with [`CHANGE_FORMAT`].
    pub fn encode(&self) -> Vec<Bytes> {
        let mut parts = vec![CHANGE_FORMAT.to_value()];
        match self {
            Self::Barrier(settings) => parts.extend([
                settings.members.to_value(),
                field::text_value(&settings.home),
                field::by_name_value(&settings.ceilings),
                field::by_name_value(&settings.packs),
                settings.jump.to_value(),
            ]),
            Self::Ceiling { storage, oid } => {
                parts.extend([field::text_value(storage), oid.to_value()]);
            }
            Self::Members(members) => parts.push(members.to_value()),
            Self::Pack { storage, tid } => {
                parts.extend([field::text_value(storage), tid.to_value()]);
            }
        }
        let mut bytes = Vec::new();
        pickle::encode(&mut bytes, &Value::Tuple(parts));
        vec![bytes.into()]
    }

    /// Reads the body of an entry of this kind.
    ///
    /// # Errors
    ///
    /// If it is none, or the entry is a transaction.
    pub fn decode(kind: Kind, body: &[Bytes]) -> Result<Self, CodecError> {
        let of = kind.name();
        let body = match body {
            [whole] => whole.clone(),
            pieces => pieces.concat().into(),
        };
        if kind == Kind::Transaction {
            return Err(CodecError::Method { of });
        }
        let value = pickle::decode(&body).map_err(|error| CodecError::Pickle { of, error })?;
        let Value::Tuple(parts) = value else {
            return Err(CodecError::NoArguments { of });
        };
        let mut fields = Fields::new(of, &parts);
        fields.format(CHANGE_FORMAT)?;
        let change = match kind {
            Kind::Barrier => Self::Barrier(Settings {
                members: fields.next("members")?,
                home: fields.next_by("home", field::site)?,
                ceilings: fields.next_by("ceilings", field::by_name)?,
                packs: fields.next_by("packs", field::by_name)?,
                jump: fields.next("jump")?,
            }),
            Kind::Ceiling => Self::Ceiling {
                storage: fields.next_by("storage", field::storage_name)?,
                oid: fields.next("oid")?,
            },
            Kind::Members => Self::Members(fields.next("members")?),
            Kind::Pack => Self::Pack {
                storage: fields.next_by("storage", field::storage_name)?,
                tid: fields.next("tid")?,
            },
            Kind::Transaction => return Err(CodecError::Method { of }),
        };
        fields.end()?;
        Ok(change)
    }
}
