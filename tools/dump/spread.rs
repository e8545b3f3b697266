//! A connection to a Spread daemon: frames, and our messages in them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::group::fragment::{Assembled, Assembler, Fragment};
use standby::group::spread::wire::{
    ClientItem, ClientStream, Connect, DaemonItem, DaemonStream, Delivery, Frame, GroupId,
    HEADER_LEN, Header, Membership, MessageType, NAME_LEN, Name, Pending, Request,
};
use standby::group::{Audience, Body, Lane, MemberId};

use crate::message::{Field, Kind, Message, Way};
use crate::replica;

type Time = Option<Duration>;

/// Protocol state of a connection.
#[derive(Debug)]
pub(crate) struct Spread {
    sides: [Side; 2],
    /// For what fragments count as time: when this began, and the time of the first packet.
    epoch: Instant,
    first: Option<Duration>,
}

#[derive(Debug)]
struct Side {
    way: Way,
    mode: Mode,
    /// Fragments that have come this way.
    assembler: Assembler,
    /// Bytes of the stream before `kept`.
    kept_pos: u64,
    /// The bytes of the stream that are not decoded, to be shown beside what they mean.
    kept: Vec<u8>,
}

#[derive(Debug)]
enum Mode {
    Client(Box<ClientStream>),
    Daemon(Box<DaemonStream>),
    Skipping {
        left: u64,
    },
    Searching {
        buf: Vec<u8>,
        skipped: u64,
    },
    /// What was wrong has been told.
    Lost,
}

impl Spread {
    /// `from_start`: whether the handshake will be seen. `epoch` is any instant.
    pub(crate) fn new(from_start: bool, epoch: Instant) -> Self {
        let side = |way| Side::new(way, from_start);
        Self {
            sides: [side(Way::ToServer), side(Way::ToClient)],
            epoch,
            first: None,
        }
    }

    /// Whether these may be a client's first bytes; `None` as long as they are too few.
    pub(crate) fn is_greeting(begin: &[u8]) -> Option<bool> {
        if begin.first().is_some_and(|major| !(3..=9).contains(major)) {
            return Some(false);
        }
        let (connect, len) = Connect::decode_head(begin)?;
        let is_likely = connect.flags & 0x0e == 0 && len <= 10 && connect.version.0[1] < 100;
        if !is_likely {
            return Some(false);
        }
        let (connect, len) = Connect::decode(begin)?;
        let is_word = connect.user.iter().all(|byte| (0x24..=0x7e).contains(byte));
        Some(is_word && len == begin.len())
    }

    /// Takes bytes; what they say is appended to `out`.
    pub(crate) fn receive(&mut self, time: Time, way: Way, data: &[u8], out: &mut Vec<Message>) {
        let now = self.instant(time);
        self.sides[way.index()].receive(time, now, data, out);
    }

    /// So many bytes are missing.
    pub(crate) fn gap(&mut self, time: Time, way: Way, len: u64, out: &mut Vec<Message>) {
        self.sides[way.index()].gap(time, len, out);
    }

    /// One side has ended its stream.
    pub(crate) fn finish(&mut self, time: Time, way: Way, out: &mut Vec<Message>) {
        self.sides[way.index()].finish(time, out);
    }

    /// The connection has ended.
    pub(crate) fn end(&mut self, time: Time, out: &mut Vec<Message>) {
        for way in [Way::ToServer, Way::ToClient] {
            self.finish(time, way, out);
        }
    }

    fn instant(&mut self, time: Time) -> Instant {
        let time = time.unwrap_or_default();
        let first = *self.first.get_or_insert(time);
        self.epoch + time.saturating_sub(first).min(YEAR)
    }
}

/// No capture is longer, and no instant is too late for the system.
const YEAR: Duration = Duration::from_secs(366 * 86_400);

impl Side {
    fn new(way: Way, from_start: bool) -> Self {
        let mode = match (way, from_start) {
            (Way::ToServer, true) => Mode::Client(Box::new(ClientStream::new())),
            (Way::ToClient, true) => Mode::Daemon(Box::new(DaemonStream::new())),
            (_, false) => Mode::Searching {
                buf: Vec::new(),
                skipped: 0,
            },
        };
        Self {
            way,
            mode,
            assembler: Assembler::default(),
            kept_pos: 0,
            kept: Vec::new(),
        }
    }

    /// Begins to read frames.
    fn resume(&mut self) {
        self.mode = match self.way {
            Way::ToServer => Mode::Client(Box::new(ClientStream::in_frames())),
            Way::ToClient => Mode::Daemon(Box::new(DaemonStream::in_frames())),
        };
        self.kept_pos = 0;
        self.kept.clear();
    }

    fn receive(&mut self, time: Time, now: Instant, data: &[u8], out: &mut Vec<Message>) {
        match &mut self.mode {
            Mode::Lost => return,
            Mode::Skipping { left } => {
                let skipped = (*left).min(data.len() as u64);
                *left -= skipped;
                if *left > 0 {
                    return;
                }
                self.resume();
                let rest = &data[usize::try_from(skipped).unwrap_or(data.len())..];
                return self.receive(time, now, rest, out);
            }
            Mode::Searching { buf, skipped } => {
                buf.extend_from_slice(data);
                let way = self.way;
                if let Some(pos) = (0..buf.len()).find(|pos| is_header(way, &buf[*pos..])) {
                    let lost = *skipped + pos as u64;
                    let rest = buf.split_off(pos);
                    if lost > 0 {
                        out.push(self.trouble(time, "skipped").with("len", lost));
                    }
                    self.resume();
                    return self.receive(time, now, &rest, out);
                }
                // Only at the last bytes a header may have begun that is not there as a whole.
                let len = buf.len().saturating_sub(HEADER_LEN - 1);
                buf.drain(..len);
                *skipped += len as u64;
                return;
            }
            Mode::Client(stream) => stream.receive(data),
            Mode::Daemon(stream) => stream.receive(data),
        }
        self.kept.extend_from_slice(data);
        while let Some(decoded) = self.next(time, out) {
            out.push(decoded.message);
            if let Some(members) = decoded.view {
                self.assembler.on_view(&members);
            }
            if let Some(body) = decoded.body {
                self.carried(time, now, &body, out);
            }
        }
    }

    /// The next item of the stream.
    fn next(&mut self, time: Time, out: &mut Vec<Message>) -> Option<Decoded> {
        let found = match &mut self.mode {
            Mode::Client(stream) => match stream.next() {
                Ok(item) => item.map(|item| (item.pos, item.len, client_item(time, item.what))),
                Err(error) => return self.lose(time, &error.to_string(), out),
            },
            Mode::Daemon(stream) => match stream.next() {
                Ok(item) => item.map(|item| (item.pos, item.len, daemon_item(time, item.what))),
                Err(error) => return self.lose(time, &error.to_string(), out),
            },
            _ => None,
        };
        let (pos, len, mut decoded) = found?;
        let message = &mut decoded.message;
        let start = usize::try_from(pos - self.kept_pos).unwrap_or(0);
        let end = (start + len).min(self.kept.len());
        message.bytes = Bytes::copy_from_slice(self.kept.get(start..end).unwrap_or_default());
        message.len = len;
        message.way = Some(self.way);
        self.kept.drain(..end);
        self.kept_pos = pos + len as u64;
        Some(decoded)
    }

    /// The stream makes no sense here; the next frame is searched for.
    fn lose(&mut self, time: Time, why: &str, out: &mut Vec<Message>) -> Option<Decoded> {
        out.push(self.trouble(time, "undecodable").with("why", why));
        let buf = std::mem::take(&mut self.kept);
        self.mode = Mode::Searching {
            // What it begins with is what could not be decoded.
            skipped: buf.len().min(1) as u64,
            buf: buf.get(1..).unwrap_or_default().to_vec(),
        };
        None
    }

    fn trouble(&self, time: Time, name: &str) -> Message {
        let mut message = Message::new(time, Kind::Trouble, name);
        message.way = Some(self.way);
        message
    }

    fn pending(&self) -> Option<Pending> {
        match &self.mode {
            Mode::Client(stream) => stream.pending(),
            Mode::Daemon(stream) => stream.pending(),
            _ => None,
        }
    }

    fn gap(&mut self, time: Time, len: u64, out: &mut Vec<Message>) {
        let left = match &mut self.mode {
            Mode::Lost => return,
            Mode::Searching { buf, skipped } => {
                *skipped += buf.len() as u64 + len;
                buf.clear();
                return;
            }
            Mode::Skipping { left } => left.checked_sub(len),
            Mode::Client(_) | Mode::Daemon(_) => {
                let pending = self.pending();
                let need = pending.and_then(|pending| Some((pending.have, pending.need?)));
                if let Some((_, need)) = need {
                    let mut message = self.trouble(time, "incomplete").with("len", need);
                    message.bytes = std::mem::take(&mut self.kept).into();
                    out.push(message);
                }
                need.and_then(|(have, need)| ((need - have) as u64).checked_sub(len))
            }
        };
        self.mode = match left {
            Some(left) => Mode::Skipping { left },
            None => Mode::Searching {
                buf: Vec::new(),
                skipped: len,
            },
        };
        if left == Some(0) {
            self.resume();
        }
    }

    fn finish(&mut self, time: Time, out: &mut Vec<Message>) {
        if let Some(pending) = self.pending() {
            let mut message = self
                .trouble(time, "ends-within-frame")
                .with("have", pending.have);
            if let Some(need) = pending.need {
                message = message.with("len", need);
            }
            message.bytes = std::mem::take(&mut self.kept).into();
            out.push(message);
        }
        if let Mode::Searching { buf, skipped } = &self.mode
            && *skipped + buf.len() as u64 > 0
        {
            let len = *skipped + buf.len() as u64;
            out.push(self.trouble(time, "skipped").with("len", len));
        }
        self.mode = Mode::Lost;
    }

    /// A body of ours: what it completes.
    fn carried(&mut self, time: Time, now: Instant, body: &Body, out: &mut Vec<Message>) {
        self.assembler.on_time(now);
        let Ok(fragment) = Fragment::decode(&body.data) else {
            return;
        };
        let (from, lane) = (&body.from, body.lane);
        let is_keyed = fragment.sequence.is_some();
        let outcome = self.assembler.receive(body, fragment, now);
        if let Some(dropped) = outcome.dropped {
            let message = self.trouble(time, "fragment-dropped");
            let why = dropped.to_string();
            out.push(message.with("from", from.as_str()).with("why", why));
        }
        let mut message = match outcome.assembled {
            None => return,
            Some(Assembled::Whole(bytes)) => match replica::said(time, &bytes) {
                Ok(said) => said,
                Err(error) => self
                    .trouble(time, "no-message")
                    .with("why", error.to_string())
                    .of_bytes(bytes, 0),
            },
            Some(Assembled::Part {
                number,
                count,
                data,
            }) => Message::new(time, Kind::Message, "part")
                .with("part", format!("{}/{count}", u32::from(number) + 1))
                .of_bytes(data, 0),
        };
        message.way = Some(self.way);
        message.fields.insert(0, ("from", from.as_str().into()));
        message.fields.insert(1, ("lane", lane_name(lane).into()));
        if is_keyed {
            message.fields.push(("digest", "not checked".into()));
        }
        out.push(message);
    }
}

/// An item of a stream, with what it means for our messages.
struct Decoded {
    message: Message,
    /// What may be a fragment.
    body: Option<Body>,
    /// The members from here on.
    view: Option<Vec<MemberId>>,
}

impl From<Message> for Decoded {
    fn from(message: Message) -> Self {
        Self {
            message,
            body: None,
            view: None,
        }
    }
}

fn client_item(time: Time, item: ClientItem) -> Decoded {
    match item {
        ClientItem::Connect(connect) => Message::new(time, Kind::Greeting, "connect")
            .with("user", Bytes::from(connect.user.clone()))
            .with("version", version(connect.version.0))
            .with("membership", connect.membership())
            .into(),
        ClientItem::AuthChoice(choice) => Message::new(time, Kind::Greeting, "auth-choice")
            .with("methods", texts(choice.methods()))
            .into(),
        ClientItem::Frame(frame) => {
            let name = match frame.header.request() {
                Request::Join => "join",
                Request::Leave => "leave",
                Request::Kill => "kill",
                Request::Multicast => "multicast",
            };
            let mut message = Message::new(time, Kind::Frame, name);
            let message_type = frame.header.message_type;
            if name == "multicast" {
                message = message.with("service", message_type.to_string());
            }
            message = message.with("from", frame.header.name.to_string());
            if name != "kill" {
                message = message.with("to", names_of(&frame));
            }
            if let Err(error) = frame.header.check_request(&frame.header.name) {
                message = message.with("problem", error.to_string());
            }
            with_body(message, &frame)
        }
    }
}

fn daemon_item(time: Time, item: DaemonItem) -> Decoded {
    match item {
        DaemonItem::AuthList(list) => Message::new(time, Kind::Greeting, "auth-list")
            .with("methods", texts(list.methods()))
            .into(),
        DaemonItem::Accept(accept) => Message::new(time, Kind::Greeting, "accept")
            .with("private_name", accept.private_name.to_string())
            .with("version", version(accept.version.0))
            .into(),
        DaemonItem::Reject(reject) => Message::new(time, Kind::Exception, "rejected")
            .with("raised", reject.name())
            .with("code", i64::from(reject.code()))
            .into(),
        DaemonItem::Frame(frame) => delivery(time, &frame),
    }
}

fn delivery(time: Time, frame: &Frame) -> Decoded {
    let header = &frame.header;
    let message = |name: &str| Message::new(time, Kind::Frame, name);
    let message_type = header.message_type.to_string();
    match header.delivery() {
        Delivery::Regular => {
            let message = message("deliver")
                .with("service", message_type)
                .with("from", header.name.to_string())
                .with("to", names_of(frame));
            with_body(message, frame)
        }
        Delivery::Membership => membership(
            message("membership")
                .with("group", header.name.to_string())
                .with("cause", cause(header.message_type))
                .with("members", names_of(frame)),
            frame,
        ),
        Delivery::Transition => {
            let message = message("transition").with("group", header.name.to_string());
            match GroupId::decode(header.endian, &frame.data) {
                Some(id) => message.with("id", group_id(id)),
                None => message.with("problem", "no group id"),
            }
            .into()
        }
        Delivery::SelfLeave => message("self-leave")
            .with("group", header.name.to_string())
            .into(),
        Delivery::Reject => Message::new(time, Kind::Exception, "reject")
            .with(
                "raised",
                frame.old_type.unwrap_or(MessageType(0)).to_string(),
            )
            .with("from", header.name.to_string())
            .with("to", names_of(frame))
            .with("data_len", frame.data.len())
            .into(),
        Delivery::Unknown => message("unknown")
            .with("type", message_type)
            .with("name", header.name.to_string())
            .with("data_len", frame.data.len())
            .into(),
    }
}

fn membership(message: Message, frame: &Frame) -> Decoded {
    let decoded = match Membership::decode(frame.header.endian, &frame.data) {
        Ok(membership) => {
            let set = |names: &Vec<Name>| {
                let names = names.iter().map(|name| Field::Text(name.to_string()));
                Field::List(names.collect())
            };
            let sets = Field::List(membership.sets.iter().map(set).collect());
            message
                .with("id", group_id(membership.id))
                .with("sets", sets)
                .with("own_set", membership.own)
        }
        Err(error) => message.with("problem", error.to_string()),
    };
    Decoded {
        view: Some(names(frame).map(|name| member(&name)).collect()),
        ..decoded.into()
    }
}

/// With the application's type and data of a multicast.
fn with_body(message: Message, frame: &Frame) -> Decoded {
    let header = &frame.header;
    let Some(mess_type) = header.hint.mess_type() else {
        return message.with("problem", "a type in no byte order").into();
    };
    let mut message = message.with("mess_type", i64::from(mess_type));
    let is_multicast = header.message_type.intersects(MessageType::SERVICES);
    if is_multicast || !frame.data.is_empty() {
        message = message.with("data_len", frame.data.len());
    }
    let lane = u8::try_from(mess_type).ok().and_then(Lane::from_number);
    let (Some(lane), true, Ok(fragment)) = (lane, is_multicast, Fragment::decode(&frame.data))
    else {
        return message.into();
    };
    let number = u32::from(fragment.number) + 1;
    message = message
        .with("lane", lane_name(lane))
        .with("fragment", format!("{number}/{}", fragment.count));
    if let Some(sequence) = fragment.sequence {
        message = message.with("sequence", sequence);
    }
    // The name of a session is that of a group with one member.
    let to_one = names(frame)
        .next()
        .is_some_and(|name| name.parts().is_some());
    let body = Body {
        from: member(&header.name),
        lane,
        audience: if to_one { Audience::One } else { Audience::All },
        data: frame.data.clone(),
    };
    Decoded {
        body: Some(body),
        ..message.into()
    }
}

/// Whether a frame may well begin here.
fn is_header(way: Way, bytes: &[u8]) -> bool {
    let Ok(Some(header)) = Header::decode(bytes) else {
        return false;
    };
    let is_word = |byte: &u8| (0x23..=0x7e).contains(byte);
    let name = header.name.as_bytes();
    if name.is_empty() || !name.iter().all(is_word) || !header.hint.is_legal() {
        return false;
    }
    match way {
        Way::ToServer => {
            header.name.parts().is_some() && header.check_request(&header.name).is_ok()
        }
        Way::ToClient => match header.delivery() {
            Delivery::Regular | Delivery::Reject => header.name.parts().is_some(),
            Delivery::Membership | Delivery::Transition | Delivery::SelfLeave => {
                header.name.is_legal_group()
            }
            Delivery::Unknown => false,
        },
    }
}

fn names(frame: &Frame) -> impl Iterator<Item = Name> {
    frame.names.chunks_exact(NAME_LEN).map(|field| {
        let mut name = [0; NAME_LEN];
        name.copy_from_slice(field);
        Name::from_field(name)
    })
}

fn names_of(frame: &Frame) -> Field {
    Field::List(
        names(frame)
            .map(|name| Field::Text(name.to_string()))
            .collect(),
    )
}

fn member(name: &Name) -> MemberId {
    MemberId::new(&name.to_string())
}

fn texts<'a>(methods: impl Iterator<Item = &'a [u8]>) -> Field {
    let text = |method: &[u8]| Field::Bytes(Bytes::copy_from_slice(method));
    Field::List(methods.map(text).collect())
}

fn version([major, minor, patch]: [u8; 3]) -> String {
    format!("{major}.{minor}.{patch}")
}

fn group_id(GroupId([a, b, c]): GroupId) -> String {
    format!("{a:08x}.{b:08x}.{c}")
}

/// `JOIN` of `CAUSED_BY_JOIN`.
fn cause(message_type: MessageType) -> String {
    let bits = MessageType::CAUSED_BY_JOIN
        | MessageType::CAUSED_BY_LEAVE
        | MessageType::CAUSED_BY_DISCONNECT
        | MessageType::CAUSED_BY_NETWORK;
    let text = message_type.only(bits).to_string();
    text.replace("CAUSED_BY_", "").to_lowercase()
}

const fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Signal => "signal",
        Lane::Control => "control",
        Lane::Commit => "commit",
        Lane::Bulk => "bulk",
    }
}
