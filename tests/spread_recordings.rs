//! Recordings of a real Spread daemon, in both directions: all of them is decoded, however it
//! comes, to what they are known to say; and is written again as it was.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod recordings;

use bytes::Bytes;
use recordings::{Recording, digest, hex, recordings};
use serde_json::{Map, Value, json};
use standby::group::spread::wire::{
    AuthChoice, AuthList, ClientItem, ClientStream, Connect, DaemonItem, DaemonStream, Delivery,
    Dialect, Endian, Frame, GroupId, Hint, Item, MessageType, Name, Pending, Request, StreamError,
    multicast_head,
};

#[test]
fn recordings_are_decoded_from_pieces_of_every_size() {
    for recording in recordings() {
        for len in [1, 2, 3, 5, 7, 47, 48, 49, usize::MAX] {
            let found = decode(&recording, |_| len);
            assert_same(&recording, &found, &format!("pieces of {len}"));
        }
    }
}

#[test]
fn recordings_are_decoded_from_any_pieces() {
    for recording in recordings() {
        for seed in 1..=20_u64 {
            let mut random = seed;
            let found = decode(&recording, |_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let max = [3, 60, 200, 5000][random as usize / 8 % 4];
                1 + random as usize / 64 % max
            });
            assert_same(&recording, &found, &format!("pieces by {seed}"));
        }
    }
}

#[test]
fn daemons_and_clients_of_the_other_byte_order_are_understood() {
    let mut swapped = 0;
    for mut recording in recordings() {
        for item in &mut recording.items {
            swapped += usize::from(swap(&mut recording.bytes, item));
        }
        for len in [1, 48, usize::MAX] {
            let found = decode(&recording, |_| len);
            assert_same(&recording, &found, "swapped");
        }
    }
    assert_eq!(swapped, 542);
}

#[test]
fn everything_that_was_decoded_is_written_again_as_it_was() {
    let mut count = 0;
    for recording in recordings() {
        each_item(&recording, |what, bytes| {
            count += 1;
            let written = match what {
                What::Client(ClientItem::Connect(connect)) => connect.encode(),
                What::Client(ClientItem::AuthChoice(choice)) => choice.0.to_vec(),
                What::Daemon(DaemonItem::AuthList(list)) => list.encode(),
                What::Daemon(DaemonItem::Accept(accept)) => accept.encode(Dialect::Full),
                What::Daemon(DaemonItem::Reject(reject)) => vec![reject.code().cast_unsigned()],
                What::Client(ClientItem::Frame(frame)) => frame.encode(),
                What::Daemon(DaemonItem::Frame(frame)) => {
                    assert_body_is_written_again(&recording.name, &frame);
                    frame.encode()
                }
            };
            assert_eq!(hex(&written), hex(bytes), "{}", recording.name);
        });
    }
    assert_eq!(count, 744);
}

/// Membership messages and transitional signals from what they say.
fn assert_body_is_written_again(name: &str, frame: &Frame) {
    let (endian, group) = (frame.header.endian, frame.header.name);
    let again = match frame.header.delivery() {
        Delivery::Membership => {
            let members: Vec<Name> = frame.names().collect();
            let cause = frame.header.message_type.only(MessageType(0xf00));
            let membership = frame.membership().unwrap();
            Frame::new_view(endian, group, cause, &members, &membership)
        }
        Delivery::Transition => Frame::new_transition(endian, group, frame.transition().unwrap()),
        Delivery::SelfLeave => Frame::new_self_leave(endian, group),
        _ => return,
    };
    assert_eq!(hex(&again.encode()), hex(&frame.encode()), "{name}");
}

#[test]
fn what_clients_asked_is_written_from_what_it_means() {
    let mut same = 0;
    let mut other = Vec::new();
    for recording in recordings()
        .iter()
        .filter(|recording| !recording.from_daemon)
    {
        let requests = recording.items.iter().filter(|item| {
            let kind = item["kind"].as_str().unwrap();
            matches!(kind, "join" | "leave" | "kill" | "multicast")
        });
        for item in requests {
            let mut bytes = bytes_of(recording, item).to_vec();
            let written = request_of(recording, item).encode();
            if item["kind"] == "kill" && item["num_groups"] == 1 {
                // The C library sends what its stack had behind this name.
                let end = 48 + written[48..].iter().position(|byte| *byte == 0).unwrap();
                assert_eq!(bytes[end], 0, "{}", recording.name);
                bytes[end..].fill(0);
            }
            match bytes == written {
                true => same += 1,
                false => other.push(recording.name.clone()),
            }
        }
    }
    assert_eq!(same, 150);
    // Bits in the hint that belong to nothing.
    assert_eq!(other, ["10-protocol-errors/badhint.c2s"]);
}

#[test]
fn multicasts_are_written_unless_the_daemon_would_not_survive_them() {
    let mut written = 0;
    let mut refused = Vec::new();
    for recording in recordings() {
        each_item(&recording, |what, bytes| {
            let What::Client(ClientItem::Frame(frame)) = what else {
                return;
            };
            let header = frame.header;
            if header.request() != Request::Multicast || header.endian != Endian::Little {
                return;
            }
            let groups: Vec<Name> = frame.names().collect();
            let mess_type = header.hint.mess_type().unwrap();
            let (message_type, len) = (header.message_type, header.data_len);
            match multicast_head(message_type, header.name, &groups, mess_type, len) {
                Ok(head) if *head == bytes[..head.len()] => written += 1,
                Ok(_) => refused.push(format!("{}: other bytes", recording.name)),
                Err(error) => refused.push(format!("{}: {error}", recording.name)),
            }
        });
    }
    assert_eq!(written, 65);
    let expected = [
        "08-max-message/alice.c2s: a request with 143953 bytes of names and data",
        "10-protocol-errors/badhint.c2s: other bytes",
        "10-protocol-errors/g101.c2s: a request with 101 names",
        "10-protocol-errors/g44.c2s: a request with 44 names",
        "10-protocol-errors/no-svc.c2s: a request of type 0",
        "10-protocol-errors/two-svc.c2s: a request of type AGREED|SAFE",
    ];
    assert_eq!(refused, expected);
}

#[test]
fn requests_that_ended_a_session_are_those_that_are_found() {
    let mut ended = Vec::new();
    for recording in recordings() {
        let mut user = None;
        each_item(&recording, |what, _| match what {
            What::Client(ClientItem::Connect(connect)) => user = Some(connect.user),
            What::Client(ClientItem::Frame(frame)) => {
                // At whichever daemon it was, and under the name that it gave.
                let (sent_by, daemon) = frame.header.name.parts().unwrap();
                let user = user.clone().filter(|user| !user.is_empty());
                let me = Name::private(&user.unwrap_or(sent_by.to_vec()), daemon).unwrap();
                if frame.header.check_request(&me).is_err() {
                    ended.push(recording.name.clone());
                }
            }
            _ => {}
        });
    }
    let expected = [
        "08-max-message/alice.c2s",
        "10-protocol-errors/badhint.c2s",
        "10-protocol-errors/g101.c2s",
        "10-protocol-errors/no-svc.c2s",
        "10-protocol-errors/two-svc.c2s",
        "10-protocol-errors/wrongname.c2s",
    ];
    assert_eq!(ended, expected);
}

enum What {
    Client(ClientItem),
    Daemon(DaemonItem),
}

/// Either direction.
enum Stream {
    Client(ClientStream),
    Daemon(DaemonStream),
}

impl Stream {
    fn new(recording: &Recording) -> Self {
        match recording.from_daemon {
            true => Self::Daemon(DaemonStream::new()),
            false => Self::Client(ClientStream::new()),
        }
    }

    fn receive(&mut self, data: &[u8]) {
        match self {
            Self::Client(stream) => stream.receive(data),
            Self::Daemon(stream) => stream.receive(data),
        }
    }

    fn next(&mut self) -> Result<Option<(u64, usize, What)>, StreamError> {
        fn parts<T>(item: Item<T>, what: fn(T) -> What) -> (u64, usize, What) {
            (item.pos, item.len, what(item.what))
        }
        Ok(match self {
            Self::Client(stream) => stream.next()?.map(|item| parts(item, What::Client)),
            Self::Daemon(stream) => stream.next()?.map(|item| parts(item, What::Daemon)),
        })
    }

    fn pending(&self) -> Option<Pending> {
        match self {
            Self::Client(stream) => stream.pending(),
            Self::Daemon(stream) => stream.pending(),
        }
    }
}

/// What is in a recording that comes in pieces of these lengths.
fn decode(recording: &Recording, mut piece_len: impl FnMut(usize) -> usize) -> Vec<Value> {
    let mut stream = Stream::new(recording);
    let mut found = Vec::new();
    let mut rest = &recording.bytes[..];
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(piece_len(rest.len()).min(rest.len()));
        rest = behind;
        stream.receive(piece);
        loop {
            match stream.next() {
                Ok(None) => break,
                Ok(Some((pos, len, what))) => found.push(described(pos, len, what)),
                Err(error) => {
                    let len = recording.bytes.len() as u64 - error.pos;
                    let error = json!({"off": error.pos, "len": len, "kind": "invalid-header"});
                    found.push(error);
                    return found;
                }
            }
        }
    }
    found.extend(
        stream
            .pending()
            .map(|pending| incomplete(recording, &pending)),
    );
    found
}

/// The last item, if it ends too early.
fn incomplete(recording: &Recording, pending: &Pending) -> Value {
    let rest = &recording.bytes[usize::try_from(pending.pos).unwrap()..];
    assert_eq!(rest.len(), pending.have);
    if pending.pos == 0 {
        // A user name shorter than was said.
        let (head, name_len) = Connect::decode_head(rest).unwrap();
        let name_pos = pending.need.unwrap() - name_len;
        let user = rest[name_pos..].to_vec();
        let connect = ClientItem::Connect(Connect { user, ..head });
        return described(0, rest.len(), What::Client(connect));
    }
    let header = pending.header.unwrap();
    json!({
        "off": pending.pos,
        "kind": "truncated-body",
        "type": type_of(header.message_type),
        "need": pending.need.unwrap(),
        "have": pending.have,
    })
}

fn each_item(recording: &Recording, mut take: impl FnMut(What, &[u8])) {
    let mut stream = Stream::new(recording);
    stream.receive(&recording.bytes);
    while let Ok(Some((pos, len, what))) = stream.next() {
        let pos = usize::try_from(pos).unwrap();
        take(what, &recording.bytes[pos..pos + len]);
    }
}

#[track_caller]
fn assert_same(recording: &Recording, found: &[Value], how: &str) {
    let name = &recording.name;
    for (found, expected) in found.iter().zip(&recording.items) {
        assert_eq!(found, expected, "{name}, {how}");
    }
    assert_eq!(found.len(), recording.items.len(), "{name}, {how}");
}

/// As the recordings describe it.
fn described(pos: u64, len: usize, what: What) -> Value {
    let mut item = Map::new();
    item.insert("off".into(), pos.into());
    item.insert("len".into(), len.into());
    let about = match what {
        What::Client(ClientItem::Connect(connect)) => json!({
            "kind": "connect",
            "version": connect.version.0,
            "membership": u8::from(connect.membership()),
            "priority": connect.priority(),
            "name": text(&connect.user),
        }),
        What::Client(ClientItem::AuthChoice(choice)) => json!({
            "kind": "auth-choice",
            "methods": methods(&choice),
        }),
        What::Daemon(DaemonItem::AuthList(AuthList(list))) => json!({
            "kind": "auth-list",
            "list": text(&list),
        }),
        What::Daemon(DaemonItem::Accept(accept)) => json!({
            "kind": "accept",
            "daemon_version": accept.version.0,
            "private_group": accept.private_name.to_string(),
        }),
        What::Daemon(DaemonItem::Reject(reject)) => json!({
            "kind": "reject",
            "code": reject.code(),
            "name": reject.name(),
        }),
        What::Client(ClientItem::Frame(frame)) => {
            let kind = match frame.header.request() {
                Request::Join => "join",
                Request::Leave => "leave",
                Request::Kill => "kill",
                Request::Multicast => "multicast",
            };
            described_frame(kind, &frame)
        }
        What::Daemon(DaemonItem::Frame(frame)) => {
            let kind = match frame.header.delivery() {
                Delivery::Regular => "regular",
                Delivery::Membership => "membership",
                Delivery::Transition => "transition",
                Delivery::SelfLeave => "self-leave",
                Delivery::Reject => "reject",
                Delivery::Unknown => "unknown",
            };
            described_frame(kind, &frame)
        }
    };
    item.extend(about.as_object().unwrap().clone());
    item.into()
}

fn described_frame(kind: &str, frame: &Frame) -> Value {
    let header = &frame.header;
    let names = header.message_type.to_string();
    let mut about = json!({
        "kind": kind,
        "type": type_of(header.message_type),
        "type_names": names.replace("SUBGROUP_CAST", "(flush) SUBGROUP_CAST"),
        "header_endian": header.endian.to_string(),
        "hint_endian": header.hint.endian().unwrap().to_string(),
        "sender": header.name.to_string(),
        "num_groups": header.count,
        "groups": shown(&frame.names().collect::<Vec<_>>()),
        "mess_type": header.hint.mess_type().unwrap(),
        "data_len": header.data_len,
    });
    let map = about.as_object_mut().unwrap();
    match kind {
        "membership" => {
            let membership = frame.membership().unwrap();
            map.insert("group_id".into(), json!(membership.id.0));
            map.insert("num_vs_sets".into(), json!(membership.sets.len()));
            map.insert("local_vs_offset".into(), json!(membership.own_pos()));
            map.insert("my_vs_index".into(), json!(membership.own));
            let sets: Vec<Value> = membership.sets.iter().map(|set| shown(set)).collect();
            map.insert("vs_sets".into(), sets.into());
        }
        "transition" => {
            let GroupId(id) = frame.transition().unwrap();
            map.insert("group_id".into(), json!(id));
        }
        "self-leave" => {}
        _ => {
            map.insert("data_sha256".into(), digest(&frame.data).into());
            if frame.data.len() < 100 {
                map.insert("data_hex".into(), hex(&frame.data).into());
            }
        }
    }
    if let Some(old_type) = frame.old_type {
        map.insert("old_type".into(), type_of(old_type).into());
    }
    about
}

fn type_of(message_type: MessageType) -> String {
    format!("0x{:08x}", message_type.0)
}

fn shown(names: &[Name]) -> Value {
    names.iter().map(Name::to_string).collect::<Vec<_>>().into()
}

fn methods(choice: &AuthChoice) -> Vec<String> {
    choice.methods().map(text).collect()
}

fn text(bytes: &[u8]) -> String {
    str::from_utf8(bytes).unwrap().to_owned()
}

fn bytes_of<'a>(recording: &'a Recording, item: &Value) -> &'a [u8] {
    let [pos, len] =
        ["off", "len"].map(|key| usize::try_from(item[key].as_u64().unwrap()).unwrap());
    &recording.bytes[pos..pos + len]
}

/// A request from its description, and its data.
fn request_of(recording: &Recording, item: &Value) -> Frame {
    let name = |value: &Value| Name::new(value.as_str().unwrap().as_bytes()).unwrap();
    let endian = |key: &str| match item[key].as_str().unwrap() {
        "little" => Endian::Little,
        _ => Endian::Big,
    };
    let message_type = item["type"].as_str().unwrap().strip_prefix("0x").unwrap();
    let message_type = MessageType(u32::from_str_radix(message_type, 16).unwrap());
    let groups: Vec<Name> = item["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(name)
        .collect();
    let mess_type = i16::try_from(item["mess_type"].as_i64().unwrap()).unwrap();
    let data = Bytes::copy_from_slice(&bytes_of(recording, item)[48 + 32 * groups.len()..]);
    let (order, sender) = (endian("header_endian"), name(&item["sender"]));
    let mut frame = Frame::new(order, message_type, sender, &groups, mess_type, data);
    frame.header.hint = Hint::new(endian("hint_endian"), mess_type);
    frame
}

/// Writes the numbers of a frame in the other byte order, and its description too. By hand: the
/// codec is what is tested.
fn swap(bytes: &mut [u8], item: &mut Value) -> bool {
    let kind = item["kind"].as_str().unwrap().to_owned();
    let Some(len) = item["len"].as_u64() else {
        // An incomplete frame has its header.
        let pos = usize::try_from(item["off"].as_u64().unwrap()).unwrap();
        swap_header(&mut bytes[pos..]);
        return true;
    };
    if item.get("header_endian").is_none() && kind != "invalid-header" {
        return false;
    }
    let pos = usize::try_from(item["off"].as_u64().unwrap()).unwrap();
    let frame = &mut bytes[pos..pos + usize::try_from(len).unwrap()];
    swap_header(frame);
    if kind == "invalid-header" {
        return true;
    }
    let names = usize::try_from(item["num_groups"].as_u64().unwrap()).unwrap();
    let mut data = 48 + 32 * names;
    match kind.as_str() {
        "reject" => swap_flagged(&mut frame[48..52]),
        "transition" => frame[data..].chunks_mut(4).for_each(<[u8]>::reverse),
        "membership" => {
            frame[data..data + 20]
                .chunks_mut(4)
                .for_each(<[u8]>::reverse);
            data += 20;
            for set in item["vs_sets"].as_array().unwrap() {
                frame[data..data + 4].reverse();
                data += 4 + 32 * set.as_array().unwrap().len();
            }
            assert_eq!(data, frame.len());
        }
        _ => {}
    }
    let other = match item["header_endian"].as_str().unwrap() {
        "little" => "big",
        _ => "little",
    };
    item["header_endian"] = other.into();
    true
}

fn swap_header(frame: &mut [u8]) {
    swap_flagged(&mut frame[..4]);
    frame[36..40].reverse();
    frame[44..48].reverse();
}

/// A word with the flag of the byte order in it.
fn swap_flagged(word: &mut [u8]) {
    word.reverse();
    word[0] ^= 0x80;
    word[3] ^= 0x80;
}
