//! The codec of ZEO against bytes that real clients and servers wrote: `data/zeo`,
//! `data/pickles.txt`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use standby::ids::Oid;
use standby::pickle;
use standby::zeo::client::{ClientError, ClientSession, Received};
use standby::zeo::load_form::LoadForm;
use standby::zeo::{
    DecodeError, Dialect, Encoder, Encoding, FrameReader, Message, OutQueue, ProtocolError,
    Request, Value, decode_standalone, encode_standalone, message, msgpack,
};

#[test]
fn captured_streams_do_not_depend_on_how_they_arrive() {
    for stream in streams() {
        let whole = frames(&stream.bytes, stream.bytes.len());
        assert!(!whole.is_empty(), "{stream:?}");
        for piece_len in [1, 2, 3, 7] {
            assert_eq!(frames(&stream.bytes, piece_len), whole, "{stream:?}");
        }
    }
}

#[test]
fn all_that_clients_send_is_understood() {
    let mut names = Vec::new();
    for stream in streams().iter().filter(|stream| stream.from_client) {
        for (index, frame) in stream.messages().iter().enumerate() {
            let message = message::decode(stream.encoding, frame);
            let call = match message {
                Ok(Message::Call(call)) => call,
                Ok(Message::Heartbeat) if stream.scenario == "heartbeat" => continue,
                Err(ProtocolError::UnknownMethod { .. }) if stream.scenario == "unknown_method" => {
                    continue;
                }
                Err(ProtocolError::BadArguments { method, .. })
                    if stream.scenario == "errors" && method == "history" =>
                {
                    continue;
                }
                other => panic!("{stream:?} message {index}: {other:?}"),
            };
            assert_eq!(call.dialect, stream.dialect, "{stream:?} message {index}");
            let registers = matches!(call.request, Request::Register { .. });
            assert!(registers || index > 0, "{stream:?} message {index}");
            names.push(call.request.name());
        }
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 34, "methods in the captures: {names:?}");
}

#[test]
fn what_python_3_and_msgpack_write_is_written_back_the_same() {
    let (mut equal, mut refused) = (0, 0);
    for stream in streams() {
        for (index, frame) in stream.messages().iter().enumerate() {
            let value = match stream.decode(frame) {
                Ok(value) => value,
                // The reference answers a failed undo with an instance of an exception.
                Err(DecodeError::Global { name, .. }) => {
                    assert_eq!(name, "ZODB.POSException._recon");
                    refused += 1;
                    continue;
                }
                Err(error) => panic!("{stream:?} message {index}: {error}"),
            };
            if stream.encoding == Encoding::M {
                let mut written = Vec::new();
                msgpack::encode(&mut written, &value);
                assert_eq!(written, frame[..], "{stream:?} message {index}");
            } else if stream.dialect == Dialect::Python3 && !contains_prefix(&value) {
                assert_eq!(
                    encode_standalone(&value, frame.len()).unwrap(),
                    frame[..],
                    "{stream:?} message {index}"
                );
            } else {
                continue;
            }
            equal += 1;
        }
    }
    assert!(equal > 1600);
    assert_eq!(refused, 3);
}

#[test]
fn replies_and_notices_are_written_as_the_reference_writes_them() {
    let mut equal = 0;
    // A reference on Python 2 writes names as `str`.
    let from_python3 = |stream: &&Stream| !stream.from_client && stream.dialect == Dialect::Python3;
    for stream in streams().iter().filter(from_python3) {
        let encoder = Encoder::new(stream.encoding, stream.dialect);
        for frame in stream.messages() {
            let Ok(Value::Tuple(parts)) = stream.decode(&frame) else {
                continue;
            };
            let mut out = OutQueue::default();
            match &parts[..] {
                [msgid, Value::Int(0), _, result] => encoder.reply(&mut out, msgid, result),
                [Value::Int(0), Value::Bool(true), name, Value::Tuple(args)] => {
                    let name = NOTICES
                        .iter()
                        .find(|known| *name.string().unwrap() == **known);
                    encoder.notice(&mut out, name.unwrap(), args.clone());
                }
                _ => continue,
            }
            let written = frames(&out.into_bytes(), usize::MAX);
            assert_eq!(written, [frame], "{stream:?}");
            equal += 1;
        }
    }
    assert!(equal > 500);
}

const NOTICES: [&str; 5] = [
    "invalidateTransaction",
    "info",
    "receiveBlobStart",
    "receiveBlobChunk",
    "receiveBlobStop",
];

/// A client of ours reads what the reference sends, and a load that was answered with a revision is
/// read without a detour, and written back the same.
#[test]
fn what_the_reference_sends_is_understood_by_a_client() {
    let (mut loads, mut others) = (0, 0);
    let from_python3 = |stream: &&Stream| !stream.from_client && stream.dialect == Dialect::Python3;
    for stream in streams().iter().filter(from_python3) {
        let form = LoadForm::new(stream.encoding);
        let mut client = ClientSession::default();
        client.receive(match stream.encoding {
            Encoding::Z => b"\0\0\0\x02Z5",
            Encoding::M => b"\0\0\0\x02M5",
        });
        client.next().unwrap();
        for frame in stream.messages() {
            client.receive(&u32::try_from(frame.len()).unwrap().to_be_bytes());
            client.receive(&frame);
            match client.next() {
                Ok(Some(Received::Loaded(loaded))) => {
                    assert_eq!(
                        form.read_reply(&frame).as_ref(),
                        Some(&loaded),
                        "{stream:?}"
                    );
                    let mut written = Vec::new();
                    form.write_reply(&mut written, &loaded);
                    assert_eq!(written, frame[..], "{stream:?}");
                    loads += 1;
                }
                Ok(Some(_)) => others += 1,
                // An instance of an exception.
                Err(ClientError::Undecodable(DecodeError::Global { .. })) => {}
                other => panic!("{stream:?}: {other:?}"),
            }
        }
    }
    assert!(loads >= 20 && others > 400, "{loads} {others}");
}

#[test]
fn loads_are_called_as_stock_clients_call_them() {
    let mut count = 0;
    let of_python3 = |stream: &&Stream| stream.from_client && stream.dialect == Dialect::Python3;
    for stream in streams().iter().filter(of_python3) {
        let form = LoadForm::new(stream.encoding);
        for frame in stream.messages() {
            let Some((oid, before)) = form.read_call(&frame) else {
                let name = b"loadBefore";
                let is_load = frame.windows(name.len()).any(|window| window == name);
                assert!(!is_load, "{stream:?}");
                continue;
            };
            let mut written = Vec::new();
            form.write_call(&mut written, oid, before);
            assert_eq!(written, frame[..], "{stream:?}");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn bytes_for_python_2_are_its_str() {
    let mut out = OutQueue::default();
    let result = Value::Tuple(vec![
        Value::Bytes(Bytes::from_static(b"\xff")),
        Value::Id([0; 8]),
    ]);
    Encoder::new(Encoding::Z, Dialect::Python2).reply(&mut out, &Value::Int(1), &result);
    let body = b"\x80\x02(K\x01K\x00X\x06\0\0\0.replyU\x01\xffU\x08\0\0\0\0\0\0\0\0\x86t.";
    assert_eq!(out.into_bytes()[4..], body[..]);
}

#[test]
fn a_list_of_oids_is_written_as_one_of_values() {
    let kinds = [
        (Encoding::Z, Dialect::Python3),
        (Encoding::Z, Dialect::Python2),
        (Encoding::M, Dialect::Python3),
    ];
    for (encoding, dialect) in kinds {
        let encoder = Encoder::new(encoding, dialect);
        for count in [0, 1, 2, 15, 16, 70_000] {
            let oids: Vec<Oid> = (0..count).map(|n| Oid(n * 0x0101_0101)).collect();
            let values = oids.iter().map(|oid| Value::from(*oid)).collect();
            let expected = encoder.notice_frame("oids", vec![Value::List(values)]);
            let written = encoder.notice_frame("oids", vec![Value::from(Arc::new(oids))]);
            assert!(written == expected, "{encoding:?} {dialect:?} {count}");
        }
    }
}

/// What ZODB of several Pythons writes into files, and clients into messages.
#[test]
fn pickles_of_python_are_read_as_what_they_were() {
    let text = fs::read_to_string(data("pickles.txt")).unwrap();
    for line in text.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let [pickler, protocol, pickle, expected] = fields[..] else {
            panic!("{line}");
        };
        let pickle = Bytes::from(unhex(pickle));
        let value = decode_standalone(&pickle).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(show(&value), expected, "{pickler} {protocol}");
        if !contains_prefix(&value) {
            let again = decode_standalone(&encode_standalone(&value, usize::MAX).unwrap().into());
            assert_eq!(again, Ok(value), "{pickler} {protocol}");
        }
    }
}

/// A recorded direction of a connection.
struct Stream {
    path: PathBuf,
    bytes: Vec<u8>,
    encoding: Encoding,
    dialect: Dialect,
    from_client: bool,
    scenario: String,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Stream {
    /// The frames after the greeting; none where the client asked for the status only.
    fn messages(&self) -> Vec<Bytes> {
        let mut frames = frames(&self.bytes, self.bytes.len());
        let greeting = frames.remove(0);
        if greeting == "ruok" || self.scenario == "ruok" {
            return Vec::new();
        }
        frames
    }

    fn decode(&self, frame: &Bytes) -> Result<Value, DecodeError> {
        match self.encoding {
            Encoding::Z => pickle::decode(frame),
            Encoding::M => msgpack::decode(frame),
        }
    }
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// Directories are `CLIENT-ENCODING/SCENARIO/connN.DIRECTION.bin`.
fn streams() -> Vec<Stream> {
    let mut streams = Vec::new();
    for client in entries(&data("zeo"))
        .into_iter()
        .filter(|path| path.is_dir())
    {
        let name = client.file_name().unwrap().to_str().unwrap().to_owned();
        for scenario in entries(&client) {
            for path in entries(&scenario) {
                streams.push(Stream {
                    bytes: fs::read(&path).unwrap(),
                    encoding: if name.ends_with("-M") {
                        Encoding::M
                    } else {
                        Encoding::Z
                    },
                    dialect: if name.starts_with("py2") {
                        Dialect::Python2
                    } else {
                        Dialect::Python3
                    },
                    from_client: path.to_str().unwrap().ends_with(".c2s.bin"),
                    scenario: scenario.file_name().unwrap().to_str().unwrap().to_owned(),
                    path,
                });
            }
        }
    }
    assert!(streams.len() > 200);
    streams
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn frames(bytes: &[u8], piece_len: usize) -> Vec<Bytes> {
    let mut reader = FrameReader::new(1 << 20);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece_len) {
        reader.receive(piece);
        while let Some(frame) = reader.next().unwrap() {
            frames.push(frame);
        }
    }
    frames
}

fn contains_prefix(value: &Value) -> bool {
    match value {
        Value::Prefix(_) => true,
        Value::Tuple(items) | Value::List(items) => items.iter().any(contains_prefix),
        Value::Dict(pairs) => pairs.iter().any(|(_, value)| contains_prefix(value)),
        _ => false,
    }
}

/// The notation of `data/pickles.py`.
fn show(value: &Value) -> String {
    let all = |items: &[Value]| items.iter().map(show).collect::<Vec<_>>().join(" ");
    match value {
        Value::None => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Int(int) => int.to_string(),
        Value::Long(bytes) => format!("l{}", hex(bytes)),
        Value::Float(float) => format!("f{}", hex(&float.to_be_bytes())),
        Value::Text(text) => format!("u{}", hex(text)),
        Value::Bytes(bytes) => format!("b{}", hex(bytes)),
        Value::Id(_) | Value::Oids(_) | Value::Gap(_) => panic!("decoders do not make ids"),
        Value::Str(bytes) => format!("s{}", hex(bytes)),
        Value::Tuple(items) => format!("({})", all(items)),
        Value::List(items) => format!("[{}]", all(items)),
        Value::Prefix(items) => format!("<{}>", all(items)),
        Value::Dict(pairs) => {
            let shown = pairs
                .iter()
                .map(|(key, value)| format!("{} {}", show(key), show(value)));
            format!("{{{}}}", shown.collect::<Vec<_>>().join(" "))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let digit = |digit: u8| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap();
    hex.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}
