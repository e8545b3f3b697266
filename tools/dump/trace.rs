//! Traces of simulations: captures whose packets are not those of a network, but what has happened
//! at the nodes.

use std::time::Duration;

use bytes::Bytes;
use standby::group::message::Message as GroupMessage;
use standby::value::Value;

use crate::message::{Kind, Message, Way};
use crate::replica;

/// The link type of such captures: `LINKTYPE_USER0` of the tcpdump project's list.
pub(crate) const LINK: u32 = 147;

/// What a packet tells; `len` is what it had before it was cut.
pub(crate) fn message(time: Duration, data: &[u8], len: usize) -> Message {
    let time = Some(time);
    let bytes = Bytes::copy_from_slice(data);
    let found = match GroupMessage::decode(&bytes) {
        Ok(record) => of_record(time, &record),
        Err(error) => Err(error.to_string()),
    };
    found.unwrap_or_else(|why| {
        let mut message = Message::new(time, Kind::Trouble, "undecodable").with("why", why);
        if len > data.len() {
            message = message.with("missing", len - data.len());
        }
        message.of_bytes(bytes, 0)
    })
}

fn of_record(time: Option<Duration>, record: &GroupMessage) -> Result<Message, String> {
    let [Value::Int(step), Value::Text(node), Value::Text(word), what] = &record.args[..] else {
        return Err("no record of a trace".to_owned());
    };
    let mut message = match (record.method.as_str(), what) {
        ("note", Value::Text(text)) => {
            Message::new(time, Kind::Note, text_of(word)).with("text", text_of(text))
        }
        ("sent", Value::Bytes(said)) => carried(time, Way::ToServer, ("to", word), said),
        ("received", Value::Bytes(said)) => carried(time, Way::ToClient, ("from", word), said),
        _ => return Err("no record of a trace".to_owned()),
    };
    message.node = Some(text_of(node));
    Ok(message.with("step", *step))
}

fn carried(
    time: Option<Duration>,
    way: Way,
    (name, peer): (&'static str, &Bytes),
    said: &Bytes,
) -> Message {
    let mut message = replica::said(time, said).unwrap_or_else(|error| {
        Message::new(time, Kind::Trouble, "no-message")
            .with("why", error.to_string())
            .of_bytes(said.clone(), 0)
    });
    message.way = Some(way);
    message.fields.insert(0, (name, text_of(peer).into()));
    message
}

fn text_of(text: &Bytes) -> String {
    String::from_utf8_lossy(text).into_owned()
}
