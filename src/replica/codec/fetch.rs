//! Requests for entries, and their answers, which go from node to node directly. They have the form
//! of messages of the group.

use bytes::Bytes;

use super::CodecError;
use super::field::{self, Field, Fields};
use super::message::{beginning, read_beginning};
use crate::entry::Entry;
use crate::group;
use crate::limits::{FETCH_ENDS_MAX, FETCHED_ENTRIES_MAX};
use crate::replica::message::{Fetch, Fetched, Position, Supply};

impl Fetch {
    /// Its bytes, in parts.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut args = beginning(&self.sender);
        args.extend([
            self.id.to_value(),
            self.epoch.to_value(),
            self.is_claim.to_value(),
            field::list_value(&self.ends),
        ]);
        group::message::encode(FETCH, args)
    }

    /// Reads a request.
    ///
    /// # Errors
    ///
    /// If it is none, whose fault is the sender's.
    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        let message = decode_message(FETCH, bytes)?;
        if message.method != FETCH {
            return Err(CodecError::Method { of: FETCH });
        }
        let mut fields = Fields::new(FETCH, &message.args);
        let fetch = Self {
            sender: read_beginning(&mut fields)?,
            id: fields.next("id")?,
            epoch: fields.next("epoch")?,
            is_claim: fields.next("is_claim")?,
            ends: fields.next_by("ends", |value| field::list(value, FETCH_ENDS_MAX))?,
        };
        fields.end()?;
        Ok(fetch)
    }
}

impl Fetched {
    /// Its bytes, in parts. The bodies of entries are not copied. There must be no more of them
    /// than [`FETCHED_ENTRIES_MAX`].
    pub fn encode(&self) -> Vec<Bytes> {
        let mut args = beginning(&self.sender);
        args.extend([self.id.to_value(), self.epoch.to_value()]);
        let method = match &self.what {
            Supply::Entries { after, entries } => {
                args.extend([after.to_value(), field::list_value(entries)]);
                ENTRIES
            }
            Supply::Released => RELEASED,
            Supply::Refused => REFUSED,
        };
        group::message::encode(method, args)
    }

    /// Reads an answer. Entries are checked against their digests, and follow one another.
    ///
    /// # Errors
    ///
    /// If it is none, whose fault is the sender's.
    pub fn decode(bytes: &Bytes) -> Result<Self, CodecError> {
        let of = "fetched";
        let message = decode_message(of, bytes)?;
        let mut methods = [ENTRIES, RELEASED, REFUSED].into_iter();
        let method = methods.find(|method| *method == message.method);
        let method = method.ok_or(CodecError::Method { of })?;
        let mut fields = Fields::new(method, &message.args);
        let sender = read_beginning(&mut fields)?;
        let id = fields.next("id")?;
        let epoch = fields.next("epoch")?;
        let what = match method {
            ENTRIES => decode_entries(&mut fields)?,
            RELEASED => Supply::Released,
            _ => Supply::Refused,
        };
        fields.end()?;
        Ok(Self {
            sender,
            id,
            epoch,
            what,
        })
    }
}

fn decode_entries(fields: &mut Fields<'_>) -> Result<Supply, CodecError> {
    let after: Position = fields.next("after")?;
    let entries = fields.next_by("entries", |value| {
        let entries: Vec<Entry> = field::list(value, FETCHED_ENTRIES_MAX)?;
        let follows_after = entries
            .first()
            .is_none_or(|first| first.header().seq == after.seq.next());
        let is_chain = entries.windows(2).all(|pair| {
            let (one, next) = (pair[0].header(), pair[1].header());
            next.previous == one.digest && next.seq == one.seq.next()
        });
        (follows_after && is_chain)
            .then_some(entries)
            .ok_or("they do not follow one another")
    })?;
    Ok(Supply::Entries { after, entries })
}

fn decode_message(of: &'static str, bytes: &Bytes) -> Result<group::message::Message, CodecError> {
    use group::message::MessageError;
    group::message::Message::decode(bytes).map_err(|error| match error {
        MessageError::Pickle(error) => CodecError::Pickle { of, error },
        MessageError::NoMessage => CodecError::NoArguments { of },
    })
}

const FETCH: &str = "fetch";
const ENTRIES: &str = "entries";
const RELEASED: &str = "released";
const REFUSED: &str = "refused";
