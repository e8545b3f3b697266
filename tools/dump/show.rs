//! Messages as lines, as trees, and as JSON.

use std::fmt::Write as _;

use bytes::Bytes;
use standby::ids::Tid;
use standby::value::Value;

use crate::clock::{self, Clock};
use crate::json::Json;
use crate::limits::{HEX_LEN_MAX, LONG_VALUE_CHARS_MAX, VALUE_CHARS_MAX};
use crate::message::{Field, Fields, Kind, Message, Way, class_of};
use crate::value;

/// In what form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Line,
    /// A line, and below it each field, and the bytes in hex.
    Tree,
    Json,
}

/// Items of a list in a line; the others are counted.
const LIST_ITEMS_MAX: usize = 8;

/// Bytes of a digest in a line.
const HEX_SHORT_LEN: usize = 4;

/// Writes messages down.
#[derive(Debug)]
pub(crate) struct Show {
    pub clock: Clock,
    pub form: Form,
    /// Whether JSON has the bytes, too, and trees have all of them.
    pub all_bytes: bool,
}

impl Show {
    /// The text of a message, with the end of its last line.
    pub(crate) fn text(&self, message: &Message) -> String {
        match self.form {
            Form::Line => self.line(message),
            Form::Tree => {
                let mut text = self.head(message);
                text.push('\n');
                self.tree(&mut text, &message.fields, 1);
                self.hex(&mut text, &message.bytes);
                text
            }
            Form::Json => {
                let mut text = self.json(message).text();
                text.push('\n');
                text
            }
        }
    }

    fn line(&self, message: &Message) -> String {
        let mut text = self.head(message);
        for (name, field) in &message.fields {
            let _ = write!(text, " {name}={}", self.short(field));
        }
        if let Some(latency) = message.latency {
            let _ = write!(text, " [{:.3} ms]", latency.as_secs_f64() * 1e3);
        }
        text.push('\n');
        text
    }

    /// Time, connection, direction and name.
    fn head(&self, message: &Message) -> String {
        let mut text = String::new();
        if let Some(time) = message.time {
            text.push_str(&self.clock.line(time));
            text.push(' ');
        }
        if let Some(connection) = &message.connection {
            let _ = write!(text, "c{} {} ", connection.number, sign(message));
        }
        if let Some(node) = &message.node {
            let node = value::text(node.as_bytes(), VALUE_CHARS_MAX);
            let _ = write!(text, "{node} {} ", sign(message));
        }
        text.push_str(&value::text(message.name.as_bytes(), VALUE_CHARS_MAX));
        if self.form == Form::Tree {
            let _ = write!(text, " ({}", message.kind.name());
            if message.len > 0 {
                let _ = write!(text, ", {} bytes", message.len);
            }
            if let Some(latency) = message.latency {
                let _ = write!(text, ", {:.3} ms", latency.as_secs_f64() * 1e3);
            }
            text.push(')');
        }
        text
    }

    fn short(&self, field: &Field) -> String {
        match field {
            Field::Oid(oid) => oid.to_string(),
            Field::Tid(tid) => self.tid(*tid),
            Field::Int(int) => int.to_string(),
            Field::Bool(bool) => bool.to_string(),
            Field::Text(text) => value::text(text.as_bytes(), VALUE_CHARS_MAX),
            Field::Bytes(bytes) => value::text(bytes, VALUE_CHARS_MAX),
            Field::Hex(bytes) => hex_of(&bytes[..bytes.len().min(HEX_SHORT_LEN)]),
            Field::Time(time) => self.clock.word(*time),
            Field::Record(record, len) => match class_of(record) {
                Some(class) => {
                    let class = value::text(class.as_bytes(), VALUE_CHARS_MAX);
                    format!("{len}B:{class}")
                }
                None => format!("{len}B"),
            },
            Field::Value(value) => value::shown(value, VALUE_CHARS_MAX),
            Field::List(items) => {
                let shown = items.iter().take(LIST_ITEMS_MAX);
                let shown: Vec<String> = shown.map(|item| self.short(item)).collect();
                let mut text = format!("[{}", shown.join(", "));
                if items.len() > LIST_ITEMS_MAX {
                    let _ = write!(text, ", ... {} in all", items.len());
                }
                text.push(']');
                text
            }
            Field::Tree(fields) => {
                let shown = fields
                    .iter()
                    .map(|(name, field)| format!("{name}={}", self.short(field)));
                format!("({})", shown.collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn tid(&self, tid: Tid) -> String {
        match tid {
            Tid::ZERO => "0".to_owned(),
            Tid::MAX => "max".to_owned(),
            // It stands for no time: clients ask for what is before the first of all tids.
            tid if tid.unix_time().is_zero() => tid.to_string(),
            tid => format!("{tid}@{}", self.clock.tid(tid)),
        }
    }

    fn tree(&self, text: &mut String, fields: &Fields, depth: usize) {
        for (name, field) in fields {
            self.branch(text, name, field, depth);
        }
    }

    fn branch(&self, text: &mut String, name: &str, field: &Field, depth: usize) {
        let indent = depth * 4;
        let _ = write!(text, "{:indent$}{name}:", "");
        match field {
            Field::Tree(fields) => {
                text.push('\n');
                self.tree(text, fields, depth + 1);
            }
            Field::List(items) => {
                let _ = writeln!(text, " {} items", items.len());
                for (n, item) in items.iter().enumerate() {
                    self.branch(text, &n.to_string(), item, depth + 1);
                }
            }
            Field::Bytes(bytes) => {
                let _ = writeln!(text, " {}", value::text(bytes, LONG_VALUE_CHARS_MAX));
            }
            Field::Text(words) => {
                let shown = value::text(words.as_bytes(), LONG_VALUE_CHARS_MAX);
                let _ = writeln!(text, " {shown}");
            }
            Field::Value(value) => {
                let _ = writeln!(text, " {}", value::shown(value, LONG_VALUE_CHARS_MAX));
            }
            Field::Hex(bytes) => _ = writeln!(text, " {}", hex_of(bytes)),
            field => _ = writeln!(text, " {}", self.short(field)),
        }
    }

    fn hex(&self, text: &mut String, bytes: &Bytes) {
        let len_max = if self.all_bytes {
            bytes.len()
        } else {
            HEX_LEN_MAX
        };
        let shown = &bytes[..bytes.len().min(len_max)];
        for (n, row) in shown.chunks(16).enumerate() {
            let _ = write!(text, "    {:06x} ", n * 16);
            for column in 0..16 {
                match row.get(column) {
                    Some(byte) => _ = write!(text, " {byte:02x}"),
                    None => text.push_str("   "),
                }
            }
            let printable = |byte: &u8| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '.',
            };
            let _ = writeln!(text, "  {}", row.iter().map(printable).collect::<String>());
        }
        if shown.len() < bytes.len() {
            let _ = writeln!(text, "    ... {} bytes more", bytes.len() - shown.len());
        }
    }

    pub(crate) fn json(&self, message: &Message) -> Json {
        let mut members: Vec<(String, Json)> = Vec::new();
        let mut put = |name: &str, value| members.push((name.to_owned(), value));
        if let Some(time) = message.time {
            put("time", Json::Text(clock::rfc3339(time)));
        }
        if let Some(connection) = &message.connection {
            put("connection", Json::from(connection.number));
            put("client", Json::Text(connection.client.clone()));
            put("server", Json::Text(connection.server.clone()));
        }
        if let Some(node) = &message.node {
            put("node", Json::Text(node.clone()));
        } else if let Some(way) = message.way {
            put("to", Json::text_of(way_name(way)));
        }
        put("kind", Json::text_of(message.kind.name()));
        put("name", Json::Text(message.name.clone()));
        if message.len > 0 {
            put("bytes", Json::from(message.len as u64));
        }
        if let Some(latency) = message.latency {
            put("latency_ms", Json::Number(latency.as_secs_f64() * 1e3));
        }
        if !message.fields.is_empty() {
            put("fields", self.json_fields(&message.fields));
        }
        if self.all_bytes && !message.bytes.is_empty() {
            put("hex", Json::Text(hex_of(&message.bytes)));
        }
        Json::Object(members)
    }

    fn json_fields(&self, fields: &Fields) -> Json {
        let mut members = Vec::new();
        for (name, field) in fields {
            members.push(((*name).to_owned(), self.json_field(field)));
            if let Field::Tid(tid) = field
                && *tid != Tid::MAX
                && !tid.unix_time().is_zero()
            {
                let time = clock::rfc3339(tid.unix_time());
                members.push((format!("{name}_time"), Json::Text(time)));
            }
        }
        Json::Object(members)
    }

    fn json_field(&self, field: &Field) -> Json {
        match field {
            Field::Oid(oid) => Json::Text(oid.to_string()),
            Field::Tid(tid) => Json::Text(tid.to_string()),
            Field::Int(int) => Json::Int(*int),
            Field::Bool(bool) => Json::Bool(*bool),
            Field::Text(text) => Json::Text(text.clone()),
            Field::Bytes(bytes) => json_bytes(bytes),
            Field::Hex(bytes) => Json::Text(hex_of(bytes)),
            Field::Time(time) => Json::Text(clock::rfc3339(*time)),
            Field::Record(record, len) => {
                let mut members = vec![("bytes".to_owned(), Json::from(*len as u64))];
                if let Some(class) = class_of(record) {
                    members.push(("class".to_owned(), Json::Text(class)));
                }
                Json::Object(members)
            }
            Field::Value(value) => json_value(value),
            Field::List(items) => {
                Json::Array(items.iter().map(|item| self.json_field(item)).collect())
            }
            Field::Tree(fields) => self.json_fields(fields),
        }
    }
}

/// How a message stands in the dialogue.
const fn sign(message: &Message) -> &'static str {
    match (message.kind, message.way) {
        (Kind::Trouble | Kind::Unanswered, _) => "??",
        (Kind::Connection, _) | (_, None) => "--",
        (Kind::Async, Some(Way::ToServer)) => ">>",
        (Kind::Notice, Some(Way::ToClient)) => "<<",
        (Kind::Exception, Some(Way::ToClient)) => "<!",
        (_, Some(Way::ToServer)) => "> ",
        (_, Some(Way::ToClient)) => "< ",
    }
}

const fn way_name(way: Way) -> &'static str {
    match way {
        Way::ToServer => "server",
        Way::ToClient => "client",
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Text if it is some, else hex behind `0x`.
fn json_bytes(bytes: &Bytes) -> Json {
    let head = &bytes[..bytes.len().min(LONG_VALUE_CHARS_MAX)];
    let more = if head.len() < bytes.len() { "..." } else { "" };
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            let end = (0..=head.len()).rev().find(|at| text.is_char_boundary(*at));
            Json::Text(format!("{}{more}", &text[..end.unwrap_or(0)]))
        }
        Err(_) => Json::Text(format!("0x{}{more}", hex_of(head))),
    }
}

fn json_value(value: &Value) -> Json {
    match value {
        Value::None => Json::Null,
        Value::Bool(bool) => Json::Bool(*bool),
        Value::Int(int) => Json::Int(*int),
        Value::Float(float) => Json::Number(*float),
        Value::Text(bytes) => json_bytes(bytes),
        Value::Bytes(bytes) | Value::Str(bytes) if bytes.len() == 8 => Json::Text(hex_of(bytes)),
        Value::Bytes(bytes) | Value::Str(bytes) => json_bytes(bytes),
        Value::Tuple(values) | Value::List(values) | Value::Prefix(values) => {
            Json::Array(values.iter().map(json_value).collect())
        }
        Value::Dict(pairs) if pairs.iter().all(|(key, _)| key.string().is_some()) => {
            let member = |(key, value): &(Value, Value)| {
                let key = key.string().map_or(&[][..], |key| &key[..]);
                (String::from_utf8_lossy(key).into_owned(), json_value(value))
            };
            Json::Object(pairs.iter().map(member).collect())
        }
        Value::Long(_) | Value::Id(_) | Value::Gap(_) | Value::Oids(_) | Value::Dict(_) => {
            Json::Text(value::shown(value, LONG_VALUE_CHARS_MAX))
        }
    }
}
