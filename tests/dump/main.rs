//! `zeodump`: every recording in every form of capture, what is missing from captures, garbage, and
//! the proxy with a real server behind it.
//!
//! `STANDBY_UPDATE_GOLDEN=1` writes the expected texts anew; then they have to be read.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod journal;
mod packets;
#[path = "../sim/trace.rs"]
mod trace;

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use standby::value::Value;

use packets::{ACK, Ends, Packet, Sent, conversation, pcap};

/// A directory for one test, gone when that ends.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("standby-dump-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, contents: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn zeodump() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeodump"));
    command.stdin(Stdio::null()).arg("--utc");
    command
}

#[track_caller]
fn run(args: &[&str]) -> Output {
    let output = zeodump().args(args).output().unwrap();
    assert!(output.status.code().is_some(), "{args:?}: {output:?}");
    output
}

/// What it shows, and with which status.
#[track_caller]
fn shown(args: &[&str]) -> (String, i32) {
    let output = run(args);
    let text = String::from_utf8(output.stdout).unwrap();
    (text, output.status.code().unwrap())
}

/// Compares with the text in a file.
#[track_caller]
fn assert_golden(name: &str, text: &str) {
    let path = data_dir().join("dump").join(name);
    if std::env::var_os("STANDBY_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap();
    for (n, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "{name}:{}", n + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{name}");
}

fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Recorded connections below a directory, without the ends of their names.
fn streams_in(directory: &Path) -> Vec<String> {
    let names = names_in(directory).into_iter();
    let mut streams: Vec<String> = names
        .filter_map(|name| {
            let name = name
                .strip_suffix(".c2s.bin")
                .or(name.strip_suffix(".s2c.bin"))?;
            Some(directory.join(name).to_str().unwrap().to_owned())
        })
        .collect();
    streams.dedup();
    streams
}

/// Shows the recordings of a directory, scenario by scenario.
fn recordings(protocol: &str, directory: &Path) -> String {
    let mut text = String::new();
    for scenario in names_in(directory) {
        let path = directory.join(&scenario);
        if !path.is_dir() {
            continue;
        }
        let streams = streams_in(&path);
        let mut args = vec!["--stream", protocol];
        args.extend(streams.iter().map(String::as_str));
        let (shown, status) = shown(&args);
        writeln!(text, "# {scenario} (status {status})\n{shown}").unwrap();
    }
    text
}

#[test]
fn recordings_of_zeo_are_shown_as_they_were() {
    let directory = data_dir().join("zeo");
    for client in names_in(&directory) {
        if directory.join(&client).is_dir() {
            let text = recordings("zeo", &directory.join(&client));
            assert_golden(&format!("zeo-{client}.txt"), &text);
        }
    }
}

#[test]
fn recordings_of_spread_are_shown_as_they_were() {
    let text = recordings("spread", &data_dir().join("spread"));
    assert_golden("spread.txt", &text);
}

#[test]
fn data_files_are_shown_as_they_are() {
    for name in [
        "py27-zodb58-voted",
        "py311-zodb64-packed",
        "py311-zodb64-plain",
    ] {
        let path = data_dir().join(format!("fs/{name}.fs"));
        let before = fs::read(&path).unwrap();
        let (text, _) = shown(&[path.to_str().unwrap()]);
        // The place of the project is nobody's business.
        let text = text.replace(data_dir().to_str().unwrap(), "DATA");
        assert_golden(&format!("{name}.txt"), &text);
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn records_of_an_object_are_shown_with_their_transactions() {
    let path = data_dir().join("fs/py311-zodb64-plain.fs");
    let (text, status) = shown(&["--oid", "3", path.to_str().unwrap()]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len() % 2, status), (0, 0), "{text}");
    assert!(lines.len() >= 2, "{text}");
    for pair in lines.chunks(2) {
        assert!(pair[0].contains(" transaction tid="), "{text}");
        assert!(
            pair[1].contains(" record oid=0000000000000003 tid="),
            "{text}"
        );
    }
    // By its tid a transaction is found with all its records.
    let (text, _) = shown(&["--tid", "040d287f65ee2344", path.to_str().unwrap()]);
    assert_eq!(text.lines().count(), 4, "{text}");
}

const ENDS: Ends = Ends {
    v6: false,
    client_port: 40_000,
    server_port: 8100,
};

const V6: Ends = Ends { v6: true, ..ENDS };

/// Without times and addresses.
fn said(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.contains(" -- "))
        .map(|line| {
            let line = line.split_once(" c").unwrap().1;
            let line = line.split_once(' ').unwrap().1;
            line.split(" [").next().unwrap().to_owned()
        })
        .collect()
}

/// The lines of a conversation that is captured as simply as can be.
fn expected(sent: &[Sent]) -> Vec<String> {
    let len: usize = sent.iter().map(|sent| sent.data.len()).sum();
    let place = Place::new(&format!("expected-{len}-{:?}", std::thread::current().id()));
    let file = place.file(
        "a.pcap",
        &pcap(&ENDS.connection(sent, 1400), 101, 65_535, false),
    );
    let (text, status) = shown(&[&file]);
    assert_eq!(status, 0, "{text}");
    said(&text)
}

#[test]
fn every_form_of_capture_shows_the_same() {
    let place = Place::new("forms");
    for name in [
        "zeo/py311-zeo6.2-M/commit3/conn1",
        "zeo/py311-zeo6.2-Z/conflict/conn1",
        "zeo/py27-zeo5.4-Z/iteration/conn1",
    ] {
        let sent = conversation(name);
        let expected = expected(&sent);
        assert!(expected.len() > 20, "{expected:?}");
        for link in [0, 1, 101, 113, 276] {
            for ends in [ENDS, V6] {
                for (segment_len, big_endian) in [(1, true), (100, false), (30_000, true)] {
                    let packets = ends.connection(&sent, segment_len);
                    let file = place.file("a.pcap", &pcap(&packets, link, 65_535, big_endian));
                    let (text, status) = shown(&[&file]);
                    assert_eq!(status, 0, "{name} {link} {segment_len} {text}");
                    assert_eq!(said(&text), expected, "{name} {link} {segment_len}");
                }
            }
        }
    }
}

#[test]
fn retransmissions_overlaps_and_disorder_change_nothing() {
    let place = Place::new("disorder");
    let sent = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let expected = expected(&sent);
    let mut random = Random(1);
    for round in 0..40 {
        let mut packets = ENDS.connection(&sent, 1 + random.below(400));
        // Not the handshake, which says who is who.
        for at in 3..packets.len() {
            match random.below(6) {
                0 => {
                    let copy = packets[random.between(3, at + 1)].clone();
                    packets.insert(at, copy);
                }
                1 if at > 3 => packets.swap(at - 1, at),
                _ => {}
            }
        }
        let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
        let (text, status) = shown(&[&file]);
        // In each direction, since one may overtake the other: a reply its call, then.
        let of_way = |lines: &[String], way: char| {
            let lines = lines.iter().filter(|line| line.starts_with(way));
            lines.cloned().collect::<Vec<_>>()
        };
        let found = said(&text);
        assert_eq!(of_way(&found, '>'), of_way(&expected, '>'), "round {round}");
        assert_eq!(found.len(), expected.len(), "round {round}: {text}");
        assert_eq!(status, 0, "round {round}");
    }
}

#[test]
fn a_lost_packet_costs_what_was_in_it_and_is_told() {
    let place = Place::new("gaps");
    let sent = conversation("zeo/py311-zeo6.2-M/commit3/conn1");
    let expected = expected(&sent);
    let whole = ENDS.connection(&sent, 60);
    let lost: Vec<usize> = (5..whole.len() - 3)
        .filter(|n| !whole[*n].is_empty)
        .collect();
    assert!(lost.len() > 20);
    for n in lost {
        let mut packets = whole.clone();
        packets.remove(n);
        let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
        let (text, status) = shown(&[&file]);
        assert_eq!(status, 1, "{n}");
        assert!(text.contains("?? gap missing="), "{n}: {text}");
        // Sixty bytes are parts of few messages; all others are there.
        let found = said(&text);
        let missing = expected.iter().filter(|line| !found.contains(line));
        assert!(missing.count() <= 6, "{n}: {text}");
    }
}

#[test]
fn packets_cut_by_the_capture_are_told_and_the_next_frames_found() {
    let place = Place::new("snaplen");
    let sent = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let packets = ENDS.connection(&sent, 1000);
    let file = place.file("a.pcap", &pcap(&packets, 1, 400, false));
    let output = run(&[&file]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("?? gap missing="), "{text}");
    assert!(
        text.contains("storea") && text.contains("tpc_finish"),
        "{text}"
    );
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.contains("packets cut short by the capture"),
        "{notes}"
    );
}

#[test]
fn a_capture_that_begins_in_the_midst_is_decoded_from_the_next_frame_on() {
    let place = Place::new("midst");
    for name in [
        "zeo/py311-zeo6.2-M/commit3/conn1",
        "zeo/py311-zeo6.2-Z/conflict/conn1",
        "zeo/py27-zeo5.4-Z/commit3/conn1",
    ] {
        let sent = conversation(name);
        let expected = expected(&sent);
        let whole = ENDS.connection(&sent, 50);
        let file = place.file("a.pcap", &pcap(&whole[12..], 1, 65_535, false));
        let (text, _) = shown(&[&file]);
        assert!(text.contains("begin=\"not captured\""), "{text}");
        assert!(text.contains("guessed protocol=zeo encoding="), "{text}");
        let found = said(&text);
        let last_call = expected.iter().rfind(|line| line.starts_with('>')).unwrap();
        assert!(found.contains(last_call), "{name}: {text}");
        // Elsewhere than at a known port nobody could tell.
        let ends = Ends {
            server_port: 9999,
            ..ENDS
        };
        let whole = ends.connection(&sent, 50);
        let file = place.file("b.pcap", &pcap(&whole[12..], 1, 65_535, false));
        assert_eq!(shown(&[&file]).0, "");
        assert_ne!(shown(&["-p", "9999=zeo", &file]).0, "");
    }
}

#[test]
fn protocols_are_known_by_their_greetings_at_any_port() {
    let place = Place::new("ports");
    let ends = Ends {
        server_port: 9999,
        ..ENDS
    };
    let zeo = conversation("zeo/py311-zeo6.2-M/commit3/conn1");
    let expected = expected(&zeo);
    let file = place.file("a.pcap", &pcap(&ends.connection(&zeo, 3), 1, 65_535, false));
    assert_eq!(said(&shown(&[&file]).0), expected);
    let spread = spread_conversation("spread/01-connect-join-self/alice");
    let file = place.file(
        "b.pcap",
        &pcap(&ends.connection(&spread, 7), 1, 65_535, false),
    );
    let (text, status) = shown(&[&file]);
    assert!(text.contains("protocol=spread") && status == 0, "{text}");
    assert!(text.contains("membership group=room cause=join"), "{text}");
    let http = [Sent {
        to_server: true,
        data: b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec(),
    }];
    let file = place.file(
        "c.pcap",
        &pcap(&ends.connection(&http, 7), 1, 65_535, false),
    );
    let output = run(&[&file]);
    assert_eq!(output.stdout, b"");
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.contains("1 connections of other protocols"),
        "{notes}"
    );
}

fn spread_conversation(name: &str) -> Vec<Sent> {
    let read = |suffix: &str| fs::read(data_dir().join(format!("{name}{suffix}"))).unwrap();
    let sent = |to_server, data: &[u8]| Sent {
        to_server,
        data: data.to_vec(),
    };
    let (client, daemon) = (read(".c2s.bin"), read(".s2c.bin"));
    vec![
        sent(true, &client[..10]),
        sent(false, &daemon[..6]),
        sent(true, &client[10..]),
        sent(false, &daemon[6..]),
    ]
}

#[test]
fn a_hole_in_a_spread_connection_is_told_and_passed() {
    let place = Place::new("spread-gap");
    let sent = spread_conversation("spread/01-connect-join-self/alice");
    let ends = Ends {
        server_port: 4803,
        ..ENDS
    };
    let whole = ends.connection(&sent, 40);
    let mut found = 0;
    for n in 12..whole.len() - 3 {
        if whole[n].is_empty {
            continue;
        }
        let mut packets = whole.clone();
        packets.remove(n);
        let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
        let (text, status) = shown(&[&file]);
        assert_eq!(status, 1, "{n}: {text}");
        assert!(text.contains("?? gap missing="), "{n}: {text}");
        found += usize::from(text.contains("kill from=#alice#localhost"));
    }
    assert!(found > 3, "{found}");
}

/// What a client may say to its group.
fn hello() -> (&'static str, Vec<Value>) {
    let text = Value::text("a text that does not fit into one fragment");
    ("hello", vec![text, Value::Int(7)])
}

/// A client that says something to its group, in fragments of this length.
fn group_conversation(said: (&'static str, Vec<Value>), fragment_len: usize) -> Vec<Sent> {
    use standby::group::fragment::{Context, Seal};
    use standby::group::spread::wire::{Endian, Frame, MessageType, Name};
    use standby::group::{Audience, Lane, MemberId, message};

    let name = |name: &str| Name::new(name.as_bytes()).unwrap();
    let from = MemberId::new("#alice#localhost");
    let context = Context {
        group: "room",
        from: &from,
        lane: Lane::Commit,
        audience: Audience::All,
    };
    let (method, args) = said;
    let said = message::encode(method, args).concat();
    let pieces = said.chunks(fragment_len);
    let count = pieces.len() as u16;
    let frames = pieces.enumerate().flat_map(|(n, piece)| {
        let data = vec![piece.to_vec().into()];
        let body = Seal::Plain
            .wrap(context, (n as u16, count), 0, data)
            .concat();
        Frame::new(
            Endian::Little,
            MessageType::AGREED,
            name("#alice#localhost"),
            &[name("room")],
            Lane::Commit.number().into(),
            body.into(),
        )
        .encode()
    });
    let frames: Vec<u8> = frames.collect();
    let mut sent = spread_conversation("spread/01-connect-join-self/alice");
    // Behind the handshake, and both from the client and back to it.
    sent[2].data.truncate(90);
    sent[3].data.truncate(21);
    for to_server in [true, false] {
        sent.push(Sent {
            to_server,
            data: frames.clone(),
        });
    }
    sent
}

#[test]
fn messages_of_our_group_are_put_together_from_fragments() {
    let place = Place::new("group");
    let ends = Ends {
        server_port: 4803,
        ..ENDS
    };
    for fragment_len in [10, 1000] {
        let sent = group_conversation(hello(), fragment_len);
        let packets = ends.connection(&sent, 100);
        let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
        let (text, status) = shown(&[&file]);
        assert_eq!(status, 0, "{text}");
        for way in ['>', '<'] {
            let line = format!("{way}  hello from=#alice#localhost lane=commit args=(");
            assert_eq!(text.matches(&line).count(), 1, "{text}");
        }
        assert_eq!(shown(&["-m", "hello", &file]).0.lines().count(), 3);
        if fragment_len == 10 {
            assert!(text.contains("fragment=2/7"), "{text}");
        }
    }
}

#[test]
fn tls_is_told_as_such() {
    let place = Place::new("tls");
    let hello = fs::read(data_dir().join("tls/hello-tls13.bin")).unwrap();
    let sent = [Sent {
        to_server: true,
        data: hello,
    }];
    let file = place.file(
        "a.pcap",
        &pcap(&ENDS.connection(&sent, 9), 1, 65_535, false),
    );
    let (text, status) = shown(&[&file]);
    assert!(
        text.contains("?? tls why=") && text.contains("protocol=tls"),
        "{text}"
    );
    assert_eq!(status, 1);
}

#[test]
fn fragments_of_ip_are_counted() {
    let place = Place::new("fragments");
    let mut packets = ENDS.connection(&conversation("zeo/py311-zeo6.2-M/commit3/conn1"), 1000);
    packets[5].ip[6] = 0x20;
    let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
    let output = run(&[&file]);
    assert_eq!(output.status.code(), Some(1));
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(
        notes.contains("1 packets skipped: fragments of IP"),
        "{notes}"
    );
}

#[test]
fn latencies_are_those_of_the_packets() {
    let place = Place::new("latency");
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    let call = b"\x94\x05\xc2\xa4ping\x90";
    let reply = b"\x94\x05\x00\xa6.reply\xc0";
    let sent = |to_server, data: Vec<u8>| Sent { to_server, data };
    let talk = [
        sent(false, frame(b"M5")),
        sent(true, frame(b"M5")),
        sent(true, frame(call)),
        sent(false, frame(reply)),
    ];
    let file = place.file(
        "a.pcap",
        &pcap(&ENDS.connection(&talk, 100), 1, 65_535, false),
    );
    let (text, _) = shown(&[&file]);
    // The acknowledgement is between them.
    assert!(text.contains("c1 <  ping [2.000 ms]"), "{text}");
    assert_eq!(
        shown(&["--slower", "2", "-m", "ping", &file])
            .0
            .lines()
            .count(),
        2
    );
    assert_eq!(shown(&["--slower", "3", &file]).0, "");
    let (summary, _) = shown(&["-s", &file]);
    assert!(
        summary.contains("ping") && summary.contains("2.0"),
        "{summary}"
    );
}

#[test]
fn a_status_is_known_wherever_the_greeting_is() {
    let place = Place::new("status");
    let sent = |to_server, data: &[u8]| Sent {
        to_server,
        data: [&(data.len() as u32).to_be_bytes()[..], data].concat(),
    };
    let (greeting, ruok) = (sent(false, b"Z5"), sent(true, b"ruok"));
    let status = sent(false, b"{\"1\": {\"connections\": 0}}");
    for talk in [
        vec![greeting.clone(), ruok.clone(), status.clone()],
        vec![ruok.clone(), greeting, status.clone()],
        vec![ruok, status],
    ] {
        for segment_len in [1, 3, 1000] {
            let packets = ENDS.connection(&talk, segment_len);
            let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
            let (text, code) = shown(&[&file]);
            assert_eq!(code, 0, "{text}");
            assert_eq!(text.matches(" >  ruok").count(), 1, "{text}");
            assert_eq!(text.matches(" <  ruok status=\"{").count(), 1, "{text}");
        }
    }
}

#[test]
fn filters_choose() {
    let place = Place::new("filters");
    let sent = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let packets = ENDS.connection(&sent, 1000);
    let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
    let lines = |args: &[&str]| {
        let args = [args, &[file.as_str()]].concat();
        said(&shown(&args).0)
    };
    let all = lines(&[]);
    let votes = lines(&["-m", "vote,tpc_finish"]);
    assert!(
        votes
            .iter()
            .all(|line| line.contains("vote") || line.contains("tpc_finish"))
    );
    assert_eq!(
        votes.len(),
        all.iter()
            .filter(|l| l.contains("vote ") || l.contains("tpc_f"))
            .count()
    );
    let of_one = lines(&["--oid", "1"]);
    assert!(!of_one.is_empty() && of_one.iter().all(|line| line.contains("0000000000000001")));
    let of_tid = lines(&["--tid", "040d277b9b3bf5dd"]);
    assert!(!of_tid.is_empty() && of_tid.iter().all(|line| line.contains("040d277b9b3bf5dd@")));
    let errors = lines(&["-e"]);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("raised=ZODB.POSException.POSKeyError"));
    for client in ["c1", "10.0.0.1", "10.0.0.1:40000"] {
        assert_eq!(lines(&["--client", client]), all);
    }
    assert!(lines(&["--client", "10.0.0.2"]).is_empty());
    assert!(lines(&["--client", "c2"]).is_empty());
    // The day is that of the capture.
    assert_eq!(lines(&["--since", "00:00", "--until", "23:59:59"]), all);
    assert!(lines(&["--since", "2027-01-01"]).is_empty());
    assert!(lines(&["--until", "2025-01-01"]).is_empty());
}

#[test]
fn each_line_of_json_is_an_object_with_the_documented_keys() {
    const KEYS: [&str; 13] = [
        "time",
        "connection",
        "client",
        "server",
        "to",
        "kind",
        "name",
        "bytes",
        "latency_ms",
        "fields",
        "hex",
        "messages",
        "seconds",
    ];
    let manual =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual/zeodump.md"))
            .unwrap();
    let mut objects = 0;
    for protocol in ["zeo", "spread"] {
        let directory = data_dir().join(protocol);
        let directories = match protocol {
            "zeo" => names_in(&directory.join("py311-zeo6.2-Z"))
                .iter()
                .map(|name| directory.join("py311-zeo6.2-Z").join(name))
                .collect(),
            _ => names_in(&directory)
                .iter()
                .map(|name| directory.join(name))
                .filter(|path| path.is_dir())
                .collect::<Vec<_>>(),
        };
        for directory in directories {
            let streams = streams_in(&directory);
            let mut args = vec!["-j", "-x", "-v", "--stream", protocol];
            args.extend(streams.iter().map(String::as_str));
            for line in shown(&args).0.lines() {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                let object = value.as_object().unwrap();
                assert!(object.contains_key("kind"), "{line}");
                for key in object.keys() {
                    assert!(KEYS.contains(&key.as_str()), "{key}: {line}");
                    assert!(
                        manual.contains(&format!("`{key}`")),
                        "{key} is not documented"
                    );
                }
                objects += 1;
            }
        }
    }
    assert!(objects > 500);
}

#[test]
fn damaged_data_files_are_shown_as_far_as_they_go() {
    let place = Place::new("damaged");
    let original = fs::read(data_dir().join("fs/py311-zodb64-plain.fs")).unwrap();
    let transactions = |path: &str| {
        let (text, status) = shown(&["--file", path]);
        let lines = text
            .lines()
            .filter(|line| line.contains(" transaction tid="));
        (lines.count(), status, text.clone())
    };
    let whole = place.file("whole.fs", &original);
    let (count, status, _) = transactions(&whole);
    assert!(count > 5 && status == 0);
    // The length of the second transaction: all behind it is found again.
    let mut damaged = original.clone();
    damaged[166 + 8..166 + 16].fill(0x55);
    let path = place.file("damaged.fs", &damaged);
    let (found, status, text) = transactions(&path);
    assert_eq!((found, status), (count - 1, 1), "{text}");
    assert!(text.contains("skipped from=166"), "{text}");
    // One that is being written.
    let path = place.file("growing.fs", &original[..original.len() - 10]);
    let (found, status, text) = transactions(&path);
    assert_eq!((found, status), (count - 1, 1), "{text}");
    for (name, contents) in [("empty.fs", &b""[..]), ("text.fs", b"Some text")] {
        let path = place.file(name, contents);
        assert_eq!(run(&["--file", &path]).status.code(), Some(3), "{name}");
        assert_eq!(run(&[&path]).status.code(), Some(3), "{name}");
    }
}

/// xorshift64*, as good as any for this.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap() % bound
    }

    fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from)
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(8) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes[at] = self.next() as u8,
                1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    bytes.drain(at..end);
                }
                4 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
                _ => {
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].fill(0xff);
                }
            }
        }
    }
}

fn stream(sent: &[Sent], to_server: bool) -> Vec<u8> {
    let of_way = sent.iter().filter(|sent| sent.to_server == to_server);
    of_way.flat_map(|sent| sent.data.clone()).collect()
}

/// Bytes of memory that garbage may take: a bound that a believed length would exceed.
const MEMORY_KB_MAX: usize = 700_000;

#[test]
fn garbage_is_survived_in_bounded_memory() {
    let place = Place::new("garbage");
    let zeo = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let spread = spread_conversation("spread/01-connect-join-self/alice");
    let spread_ends = Ends {
        server_port: 4803,
        ..ENDS
    };
    let mut both = ENDS.connection(&zeo, 300);
    both.extend(spread_ends.connection(&spread, 300));
    let inputs = [
        ("capture", pcap(&both, 1, 65_535, false)),
        (
            "data",
            fs::read(data_dir().join("fs/py311-zodb64-plain.fs")).unwrap(),
        ),
        ("zeo.s2c.bin", stream(&zeo, false)),
        ("zeo.c2s.bin", stream(&zeo, true)),
        ("spread.s2c.bin", stream(&spread, false)),
    ];
    for seed in 1..=40 {
        let mut random = Random(seed);
        for (name, bytes) in &inputs {
            let mut bytes = bytes.clone();
            random.mutate(&mut bytes);
            // Mutations behind the headers of packets, as well.
            let path = place.file(name, &bytes);
            let source = match name.split_once('.') {
                Some((protocol, _)) => format!("--stream {protocol}"),
                None => String::new(),
            };
            let form = ["", "-v", "-j -x", "-s"][random.below(4)];
            let line = format!(
                "ulimit -v {MEMORY_KB_MAX}; exec {} {form} {source} {path}",
                env!("CARGO_BIN_EXE_zeodump")
            );
            let output = Command::new("sh").args(["-c", &line]).output().unwrap();
            let status = output.status.code();
            assert!(
                matches!(status, Some(0 | 1 | 3)),
                "seed {seed}, {name}: {status:?} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

#[test]
fn it_ends_quietly_when_nobody_reads() {
    let place = Place::new("pipe");
    let sent = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let mut packets = Vec::new();
    for client_port in 1000..1400 {
        let ends = Ends {
            client_port,
            ..ENDS
        };
        packets.extend(ends.connection(&sent, 1000));
    }
    let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
    let mut child = zeodump()
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_wrong_command_line_has_status_2() {
    for args in [&[][..], &["--no-such"], &["-i", "lo", "file"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(run(&["/no/such/file"]).status.code(), Some(3));
    let (help, status) = shown(&["--help"]);
    assert!(help.contains("Usage: zeodump") && status == 0);
}

// The proxy

/// A process that says on standard error where it listens; ended with the test.
struct Process {
    child: Child,
    addresses: Vec<String>,
}

impl Process {
    fn start(command: &mut Command, listeners: usize) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut addresses = Vec::new();
        while addresses.len() < listeners {
            let line = lines.next().expect("it says where it listens").unwrap();
            if let Some((_, address)) = line.split_once("listening on ") {
                addresses.push(address.to_owned());
            }
        }
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, addresses }
    }

    fn standbyd(place: &Place, address: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_standbyd"));
        command
            .current_dir(&place.0)
            .args(["-a", address, "-f", "Data.fs"]);
        command.env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        Self::start(command.stdout(Stdio::null()), 1)
    }

    /// Asks it to end, and gives what it has written.
    fn stop(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text).unwrap();
        }
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{text}");
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends calls, takes as many answers, and lets the server hang up.
fn talk(mut stream: impl Read + Write, calls: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    read_frame(&mut stream, &mut answers);
    stream.write_all(calls).unwrap();
    for _ in 0..3 {
        read_frame(&mut stream, &mut answers);
    }
    // No server knows this method.
    let unknown = b"\0\0\0\x12\x80\x03(K\x07\x89X\x04\0\0\0nosu)t.";
    stream.write_all(unknown).unwrap();
    assert_eq!(stream.read(&mut [0; 100]).unwrap_or(0), 0);
    answers
}

fn read_frame(stream: &mut impl Read, to: &mut Vec<u8>) {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut frame).unwrap();
    to.extend(len);
    to.extend(frame);
}

/// The greeting, and calls that change nothing, as a client on Python 3 sends them.
fn calls() -> Vec<u8> {
    let frame = |body: &[u8]| [&(body.len() as u32).to_be_bytes()[..], body].concat();
    [
        frame(b"Z5"),
        frame(b"\x80\x03(K\x01\x89X\x08\0\0\0registerX\x01\0\0\x001K\0\x86t."),
        frame(b"\x80\x03(K\x02\x89X\x08\0\0\0get_info)t."),
        frame(b"\x80\x03(K\x03\x89X\x08\0\0\0new_oidsK\x05\x85t."),
    ]
    .concat()
}

#[test]
fn the_proxy_shows_and_records_what_passes_and_changes_nothing() {
    let place = Place::new("proxy");
    let server = Process::standbyd(&place, "127.0.0.1:0");
    let target = &server.addresses[0];
    let socket = place.path("proxy.sock");
    let recording = place.path("proxy.pcapng");
    let mut command = zeodump();
    command
        .args(["--proxy", &format!("127.0.0.1:0={target}")])
        .args(["--proxy", &format!("{socket}={target}")])
        .args(["--write", &recording])
        .stdout(Stdio::piped());
    let proxy = Process::start(&mut command, 2);
    let direct = talk(TcpStream::connect(target).unwrap(), &calls());
    assert!(direct.len() > 500);
    let through = talk(TcpStream::connect(&proxy.addresses[0]).unwrap(), &calls());
    let on_unix = talk(UnixStream::connect(&socket).unwrap(), &calls());
    // The oids go on; all else is the same.
    for answer in [through, on_unix] {
        assert_eq!(answer.len(), direct.len());
        assert_eq!(answer[..400], direct[..400]);
    }
    let text = proxy.stop();
    for line in [
        "register storage=1",
        "<  get_info result=",
        "new_oids count=5",
    ] {
        assert!(
            text.contains(line) || line.starts_with('?'),
            "{line}: {text}"
        );
    }
    assert!(text.contains("problem=\"unknown method nosu\""), "{text}");
    let (recorded, _) = shown(&[&recording]);
    let without_ends = |text: &str| {
        // When the proxy heard of the end of a connection that it was stopped with is open.
        let lines = text
            .lines()
            .filter(|line| !line.contains(" -- ") && !line.contains("no reply"));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(without_ends(&recorded), without_ends(&text));
    server.stop();
}

#[test]
fn the_proxy_lets_the_slow_wait_and_keeps_no_more_than_a_little() {
    let place = Place::new("slow");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let mut command = zeodump();
    command
        .args(["--proxy", &format!("127.0.0.1:0={target}"), "-s"])
        .stdout(Stdio::piped());
    let proxy = Process::start(&mut command, 1);
    let mut client = TcpStream::connect(&proxy.addresses[0]).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    // Nobody reads: sending stops before long.
    client.set_nonblocking(true).unwrap();
    let block = vec![7; 1 << 16];
    let mut sent = 0;
    let mut blocked = 0;
    while blocked < 20 {
        match client.write(&block) {
            Ok(len) => {
                sent += len;
                blocked = 0;
            }
            Err(_) => {
                blocked += 1;
                std::thread::yield_now();
                // The sockets between are waited for, not the time.
                let mut nothing = [0; 0];
                let _ = server.peek(&mut nothing);
                wait_until_idle(proxy.child.id());
            }
        }
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
    client.set_nonblocking(false).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut received = Vec::new();
    server.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), sent);
    assert!(received.iter().all(|byte| *byte == 7));
    // The other half still works.
    server.write_all(b"done").unwrap();
    drop(server);
    let mut end = String::new();
    client.read_to_string(&mut end).unwrap();
    assert_eq!(end, "done");
    proxy.stop();
    drop(place);
}

#[test]
fn a_client_that_is_gone_is_no_longer_served_by_the_proxy() {
    let place = Place::new("gone");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let mut command = zeodump();
    command
        .args(["--proxy", &format!("127.0.0.1:0={target}"), "-s"])
        .stdout(Stdio::piped());
    let proxy = Process::start(&mut command, 1);
    let client = TcpStream::connect(&proxy.addresses[0]).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    // Nobody takes this; who went on to wait for it would make the server wait.
    let block = vec![7; 1 << 16];
    server.set_nonblocking(true).unwrap();
    let failed = loop {
        wait_until_idle(proxy.child.id());
        if let Err(error) = server.write(&block) {
            break error;
        }
    };
    assert_ne!(failed.kind(), std::io::ErrorKind::WouldBlock);
    proxy.stop();
    drop(place);
}

#[test]
fn a_capture_comes_from_a_pipe_by_any_name() {
    let place = Place::new("pipe");
    let sent = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let capture = pcap(&ENDS.connection(&sent, 1000), 101, 65_535, false);
    let expected = shown(&[&place.file("x.pcap", &capture)]);
    let mut child = zeodump()
        .arg("/dev/stdin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&capture));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.0);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn who_looks_for_slow_calls_finds_those_that_still_wait() {
    let place = Place::new("slow-calls");
    let sent = conversation("zeo/py311-zeo6.2-Z/conflict/conn1");
    let mut packets = ENDS.connection(&sent, 1000);
    // The capture goes on, and nothing more is said.
    let shown_up_to = |packets: &[_]| {
        let file = place.file("a.pcap", &pcap(packets, 101, 65_535, false));
        shown(&["--slower", "900", &file]).0
    };
    let calls = |text: &str| text.matches("??").count();
    let last = packets.pop().unwrap();
    packets.truncate(packets.len() / 2);
    while {
        let file = place.file("b.pcap", &pcap(&packets, 101, 65_535, false));
        !shown(&[&file]).0.contains("no reply")
    } {
        packets.pop();
    }
    assert_eq!(calls(&shown_up_to(&packets)), 0);
    packets.extend(std::iter::repeat_n(last, 2000));
    let text = shown_up_to(&packets);
    assert!(calls(&text) > 0 && text.contains("waited="), "{text}");
}

/// Until a process sleeps: it has done what it could.
fn wait_until_idle(pid: u32) {
    for _ in 0..100_000 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let state = stat.rsplit_once(')').unwrap().1.trim_start();
        if state.starts_with('S') {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_capture_from_the_loopback_shows_each_message_once() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: capturing needs root");
        return;
    }
    let place = Place::new("live");
    let server = Process::standbyd(&place, "127.0.0.1:0");
    let port = server.addresses[0].rsplit_once(':').unwrap().1.to_owned();
    let recording = place.path("live.pcapng");
    let mut command = zeodump();
    command
        .args(["-i", "lo", "-p", &format!("{port}=zeo"), "-w", &recording])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut notes = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    notes.read_line(&mut line).unwrap();
    if !line.contains("capturing on lo") {
        let _ = child.wait();
        eprintln!("SKIPPED: this machine allows no packet sockets: {line}");
        return;
    }
    talk(TcpStream::connect(&server.addresses[0]).unwrap(), &calls());
    // The connection's last packet is shown when it has been captured.
    let mut text = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let marker = format!("server=127.0.0.1:{port} ");
    let mut connection = None;
    loop {
        line.clear();
        assert_ne!(lines.read_line(&mut line).unwrap(), 0, "{text}");
        text += &line;
        if line.contains(&marker) {
            let (_, rest) = line.split_once(" c").unwrap();
            connection = Some(format!(" c{} ", rest.split_once(' ').unwrap().0));
        }
        if let Some(connection) = &connection
            && line.contains(connection.as_str())
            && line.contains("close why")
        {
            break;
        }
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    notes.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("captured twice"), "{rest}");
    child.wait().unwrap();
    let connection = connection.unwrap();
    let ours: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(&connection))
        .collect();
    for call in [
        ">  register",
        "<  register",
        ">  get_info",
        "<  get_info",
        ">  new_oids",
    ] {
        assert_eq!(
            ours.iter().filter(|line| line.contains(call)).count(),
            1,
            "{text}"
        );
    }
    let (recorded, _) = shown(&["-p", &format!("{port}=zeo"), &recording]);
    assert_eq!(recorded.matches(">  get_info").count(), 1, "{recorded}");
    server.stop();
}

#[test]
fn acknowledgements_alone_are_nothing_to_show() {
    let place = Place::new("acks");
    let packets: Vec<Packet> = (0..10)
        .map(|n| ENDS.packet(true, [n, n], ACK, b""))
        .collect();
    let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
    assert_eq!(shown(&[&file]), (String::new(), 0));
}
