//! Journals as they are on a disk, whole and damaged; what replicas say through a Spread daemon;
//! and traces of simulations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use standby::entry::{Entry, Point};
use standby::ids::{Digest, DiskId, Epoch, HistoryId, NodeId, Oid, Seq, Tid};
use standby::replica::members::{Arbiter, Members, Voter};
use standby::replica::message::{
    Content, Fetch, Fetched, Message, NodeKind, Position, Role, Sender, State, Supply,
};
use standby::replica::settings::{Change, Kind, Pack, Settings};
use standby::storage::disk::Disk;
use standby::storage::journal::{Create, Identity, Journal, Options};
use standby::storage::memory::MemoryDisk;
use standby::storage::transfer::{BlobName, Record, Transfer};

use super::trace::Trace;
use super::*;

fn identity() -> Identity {
    Identity {
        history: HistoryId([0xaa; 16]),
        node: NodeId::new("n1").unwrap(),
        disk: DiskId([1; 16]),
    }
}

fn epoch(counter: u64, node: &str) -> Epoch {
    let node = NodeId::new(node).unwrap();
    Epoch { counter, node }
}

fn members() -> Members {
    let voter = |node: &str, disk| Voter {
        node: NodeId::new(node).unwrap(),
        disk: DiskId([disk; 16]),
    };
    Members {
        voters: BTreeSet::from([voter("n1", 1), voter("n2", 2)]),
        arbiter: Some(Arbiter {
            node: voter("n3", 3),
            in_sync: BTreeSet::from([voter("n1", 1)]),
        }),
    }
}

fn settings() -> Settings {
    let pack = Pack {
        tid: Tid(0x040d_276e_e444_4444),
        at: Seq(2),
    };
    Settings {
        members: members(),
        home: "Berlin".to_owned(),
        ceilings: BTreeMap::from([("main".to_owned(), Oid(20_000))]),
        packs: BTreeMap::from([("main".to_owned(), pack)]),
        jump: Tid(0x040d_276e_e444_4445),
    }
}

fn transfer() -> Transfer {
    let record = |oid, data: Option<&'static [u8]>, same_as| Record {
        oid: Oid(oid),
        data: data.map(Bytes::from_static),
        same_as,
    };
    let data = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x01.}.";
    Transfer {
        storage: "main".to_owned(),
        status: b' ',
        user: Bytes::from_static(b"/ jim"),
        description: Bytes::from_static(b"three objects"),
        extension: Bytes::from_static(b"\x80\x03}X\x01\0\0\0aK\x05s."),
        records: vec![
            record(1, Some(data), None),
            record(2, Some(data), Some(Tid(0x040d_276e_0000_0000))),
            record(3, None, None),
        ],
        blobs: vec![BlobName {
            oid: Oid(1),
            len: 5,
            digest: Digest([9; 32]),
        }],
    }
}

/// An entry of each kind, in two epochs.
fn entries(after: Point) -> Vec<Entry> {
    let tid = Tid(0x040d_276e_e444_4444);
    let mut last = after;
    let mut next = |epoch, kind: Kind, tid, body| {
        let entry = Entry::new(&last, epoch, kind.number(), tid, body).unwrap();
        last = entry.point();
        entry
    };
    let mut change = |epoch, change: Change| next(epoch, change.kind(), Tid::ZERO, change.encode());
    let (first, second) = (epoch(1, "n1"), epoch(2, "n2"));
    let storage = "main".to_owned();
    let oid = Oid(30_000);
    let mut entries = vec![
        change(first, Change::Barrier(Settings::default())),
        change(first, Change::Ceiling { storage, oid }),
    ];
    entries.push(next(
        first,
        Kind::Transaction,
        tid,
        transfer().encode().unwrap(),
    ));
    let mut change = |epoch, change: Change| next(epoch, change.kind(), Tid::ZERO, change.encode());
    let storage = "main".to_owned();
    entries.push(change(first, Change::Members(members())));
    entries.push(change(first, Change::Pack { storage, tid }));
    entries.push(change(second, Change::Barrier(settings())));
    entries
}

/// A journal with segments of two epochs, a file of what was cut, one of what was torn, and state.
/// It is made in memory: on a disk, a test that starts a process would hold its lock for a moment.
fn journal_at(directory: &Path) {
    let disk = Arc::new(MemoryDisk::new());
    let open = || {
        let options = Options {
            create: Some(Create::new(identity())),
            segment_len: 1500,
            ..Options::default()
        };
        Journal::open(disk.clone(), Path::new("journal"), options).unwrap()
    };
    let (mut journal, _) = open();
    for entry in entries(journal.positions().last) {
        journal.append(&[entry]).unwrap();
        journal.sync().unwrap();
    }
    journal.promise(epoch(3, "n2")).unwrap();
    journal.cut_after(Seq(5), Seq(4)).unwrap().unwrap();
    journal.note_committed(Seq(4)).unwrap();
    journal.close().unwrap();
    // Its last bytes never came to the disk.
    let (mut journal, _) = open();
    let last = journal.positions().last;
    let body = vec![Bytes::from(vec![0x55; 700])];
    let kind = Kind::Transaction.number();
    let entry = Entry::new(&last, epoch(3, "n2"), kind, Tid(9), body).unwrap();
    journal.append(&[entry]).unwrap();
    drop(journal);
    let segment = Path::new("journal/0000000000000006.segment");
    let mut bytes = disk.read(segment).unwrap();
    bytes.truncate(512 + 160 + 400);
    disk.replace(segment, &[&bytes]).unwrap();
    let (journal, recovered) = open();
    recovered.torn.unwrap();
    journal.close().unwrap();
    fs::create_dir_all(directory).unwrap();
    for name in disk.names(Path::new("journal")).unwrap() {
        let bytes = disk.read(&Path::new("journal").join(&name)).unwrap();
        fs::write(directory.join(&name), bytes).unwrap();
    }
}

fn last_segment(directory: &Path) -> PathBuf {
    let mut names = names_in(directory).into_iter();
    let name = names.rfind(|name| name.ends_with(".segment")).unwrap();
    directory.join(name)
}

fn shown_of(path: &Path, args: &[&str]) -> (String, i32) {
    let args = [args, &[path.to_str().unwrap()]].concat();
    let (text, status) = shown(&args);
    // Where tests put their files is nobody's business.
    let directory = if path.is_dir() {
        path
    } else {
        path.parent().unwrap()
    };
    (text.replace(directory.to_str().unwrap(), "JOURNAL"), status)
}

#[test]
fn a_journal_is_shown_with_its_state_and_what_was_cut_and_torn() {
    let place = Place::new("journal");
    let directory = place.0.join("journal");
    journal_at(&directory);
    let before: Vec<Vec<u8>> = names_in(&directory)
        .iter()
        .map(|name| fs::read(directory.join(name)).unwrap())
        .collect();
    let (text, status) = shown_of(&directory, &[]);
    assert_golden("journal.txt", &text);
    // The torn end is one.
    assert_eq!(status, 1);
    let after = names_in(&directory)
        .into_iter()
        .map(|name| fs::read(directory.join(name)).unwrap());
    assert!(after.eq(before), "it was changed");
}

#[test]
fn each_file_of_a_journal_is_shown_by_itself() {
    let place = Place::new("journal-files");
    let directory = place.0.join("journal");
    journal_at(&directory);
    for (name, words) in [
        (
            "identity",
            "identity file=JOURNAL/identity history=aaaaaaaa node=n1",
        ),
        ("promised", "epoch=3-n2"),
        ("commit", "committed=4 synced=5"),
        ("0000000000000001.segment", "kind=ceiling body_len="),
        ("diverged-n2-2-6.journal", "seq=6 epoch=2-n2 kind=barrier"),
        ("torn-6.bytes", "seq=6 epoch=3-n2 kind=transaction"),
    ] {
        let (text, _) = shown_of(&directory.join(name), &[]);
        assert!(text.contains(words), "{name}: {text}");
    }
    // By any name, too.
    let segment = fs::read(directory.join("0000000000000001.segment")).unwrap();
    let other = place.file("some.file", &segment);
    let (text, status) = shown(&[&other]);
    assert!(text.contains("entry pos=512 seq="), "{text}");
    assert_eq!(status, 0);
}

#[test]
fn entries_are_found_by_tid_and_by_oid() {
    let place = Place::new("journal-filter");
    let directory = place.0.join("journal");
    journal_at(&directory);
    let (text, _) = shown_of(&directory, &["--oid", "7530"]);
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("kind=ceiling"), "{text}");
    // With the entry that it is in.
    let (text, _) = shown_of(&directory, &["--oid", "2"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("kind=transaction"), "{text}");
    assert!(text.contains("record oid=0000000000000002"), "{text}");
    let (text, _) = shown_of(&directory, &["--tid", "040d276ee4444444"]);
    let kinds = ["kind=transaction", "kind=pack", "kind=barrier"];
    assert!(kinds.iter().all(|kind| text.contains(kind)), "{text}");
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn damage_in_a_journal_is_named_and_the_rest_is_shown() {
    let place = Place::new("journal-damage");
    let directory = place.0.join("journal");
    journal_at(&directory);
    let path = directory.join("0000000000000001.segment");
    let original = fs::read(&path).unwrap();
    let (whole, status) = shown_of(&path, &[]);
    assert_eq!(status, 0);
    let count = whole.matches("entry pos=").count();
    assert!(count >= 3, "{whole}");
    let starts: Vec<usize> = whole
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("entry pos=")?;
            rest.split(' ').next()?.parse().ok()
        })
        .collect();
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = original.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let (text, status) = shown_of(&path, &[]);
        assert_eq!(status, 1, "{text}");
        text
    };
    // The body of the first entry.
    let text = damaged(&|bytes| bytes[starts[0] + 160] ^= 1);
    let why = "why=\"header and body are not those of its digest";
    assert!(text.contains(why), "{text}");
    assert_eq!(text.matches("entry pos=").count(), count);
    // The header of the second one.
    let text = damaged(&|bytes| bytes[starts[1] + 20] ^= 1);
    assert!(text.contains(&format!(
        "skipped file=JOURNAL/0000000000000001.segment pos={}",
        starts[1]
    )));
    assert!(
        text.contains("why=\"its number is not the next\""),
        "{text}"
    );
    assert_eq!(text.matches("entry pos=").count(), count - 1);
    // Zeros where it was.
    let text = damaged(&|bytes| bytes[starts[1]..starts[2]].fill(0));
    assert!(text.contains("zeros file="), "{text}");
    // The header of the segment: places are not known then.
    let text = damaged(&|bytes| bytes[30] ^= 1);
    assert!(text.contains("skipped file=JOURNAL/0000000000000001.segment pos=0"));
    assert_eq!(text.matches("place=\"not checked\"").count(), count);
    // It is cut within its last entry.
    let text = damaged(&|bytes| bytes.truncate(starts[count - 1] + 165));
    assert!(text.contains("or it ends early"), "{text}");
    // A segment that is gone is missed.
    fs::remove_file(&path).unwrap();
    fs::remove_file(last_segment(&directory)).unwrap();
    let (text, status) = shown_of(&directory, &[]);
    assert!(text.contains("missing after=0 through=3"), "{text}");
    assert_eq!(status, 1);
    // A file of the state.
    fs::write(directory.join("promised"), "standby-promised 1 of nobody\n").unwrap();
    let (text, _) = shown_of(&directory, &[]);
    assert!(
        text.contains("promised file=JOURNAL/promised why="),
        "{text}"
    );
}

#[test]
fn segments_that_are_gone_are_missed() {
    let place = Place::new("journal-gone");
    let directory = place.0.join("journal");
    journal_at(&directory);
    let segment = |first: u64| directory.join(format!("{first:016x}.segment"));
    fs::remove_file(segment(4)).unwrap();
    let (text, _) = shown_of(&directory, &["-e"]);
    let order = "order file=JOURNAL/0000000000000006.segment pos=0 why=";
    assert!(text.contains(order), "{text}");
    assert!(!text.contains("missing"), "{text}");
    fs::remove_file(segment(6)).unwrap();
    let (text, _) = shown_of(&directory, &["-e"]);
    assert!(text.contains("missing after=3 through=5"), "{text}");
}

#[test]
fn an_empty_directory_is_no_journal() {
    let place = Place::new("no-journal");
    let output = run(&[place.0.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("no journal"), "{complaint}");
}

fn sender(node: &str, disk: u8) -> Sender {
    Sender {
        history: HistoryId([0xaa; 16]),
        node: NodeId::new(node).unwrap(),
        disk: DiskId([disk; 16]),
    }
}

/// Some of what replicas say.
fn contents() -> Vec<Content> {
    let (one, two) = (epoch(7, "n1"), epoch(8, "n2"));
    let last = Position {
        epoch: one,
        seq: Seq(42),
    };
    let wall = Duration::from_millis(1_795_222_013_500);
    let entries = entries(Point::start(HistoryId([0xaa; 16])));
    let propose = |entry: &Entry| Content::Propose {
        previous: Epoch::ZERO,
        committed: Seq(40),
        entry: entry.clone(),
    };
    vec![
        Content::State(Box::new(State {
            view: standby::group::ViewId([5; 20]),
            promised: two,
            last,
            committed: Seq(40),
            applied: Seq(39),
            role: Role::Replica,
            hears: Some(one),
            kind: NodeKind::Data,
            site: "Berlin".to_owned(),
            home: "Paris".to_owned(),
            members: members(),
            priority: 100,
            history_from: Tid::ZERO,
            wall,
        })),
        Content::Claim {
            epoch: two,
            handover: None,
        },
        propose(&entries[2]),
        propose(&entries[5]),
        Content::Ack {
            epoch: one,
            seq: Seq(42),
            applied: Seq(40),
            beat: 3,
        },
        Content::Commit {
            epoch: one,
            committed: Seq(42),
            last,
            beat: 4,
            wall,
        },
        Content::Recorded(last),
    ]
}

#[test]
fn what_replicas_say_is_shown_by_name() {
    let place = Place::new("replicas");
    let ends = Ends {
        server_port: 4803,
        ..ENDS
    };
    let mut text = String::new();
    for content in contents() {
        let sender = sender("n1", 1);
        let (method, args) = Message { sender, content }.encode();
        let sent = group_conversation((method, args), 1000);
        let packets = ends.connection(&sent, 1000);
        let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
        let (shown, status) = shown(&["-m", method, &file]);
        assert_eq!(status, 0, "{shown}");
        text += shown.lines().next_back().unwrap();
        text += "\n";
    }
    assert_golden("replicas.txt", &text);
}

#[test]
fn what_a_replica_could_not_have_said_is_told() {
    let place = Place::new("replicas-wrong");
    let ends = Ends {
        server_port: 4803,
        ..ENDS
    };
    let args = vec![standby::value::Value::Int(2)];
    let sent = group_conversation(("claim", args), 1000);
    let packets = ends.connection(&sent, 1000);
    let file = place.file("a.pcap", &pcap(&packets, 1, 65_535, false));
    let (text, status) = shown(&[&file]);
    assert_eq!(status, 1);
    let why =
        "claim from=#alice#localhost lane=commit why=\"claim: of format 2, which is unknown\"";
    assert!(text.contains(why), "{text}");
}

fn trace() -> Vec<u8> {
    let mut trace = Trace::new(Vec::new()).unwrap();
    trace.at(Duration::from_micros(1), 1);
    trace
        .note("n1", "start", "3 entries in its journal")
        .unwrap();
    for (number, content) in contents().into_iter().enumerate() {
        let message = Message {
            sender: sender("n1", 1),
            content,
        };
        trace.at(Duration::from_micros(100 * number as u64), 2);
        trace.sent("n1", "all", &message).unwrap();
        trace.at(Duration::from_millis(90_000), 3);
        trace.received("n2", "n1", &message).unwrap();
    }
    trace.at(Duration::from_secs(91), 4);
    let end = Position {
        epoch: epoch(7, "n1"),
        seq: Seq(0),
    };
    let fetch = Fetch {
        sender: sender("n2", 2),
        id: 9,
        epoch: epoch(7, "n1"),
        is_claim: true,
        ends: vec![end],
    };
    trace.sent_bytes("n2", "n1", &fetch.encode()).unwrap();
    let fetched = Fetched {
        sender: sender("n1", 1),
        id: 9,
        epoch: epoch(7, "n1"),
        what: Supply::Entries {
            after: end,
            entries: entries(Point::start(HistoryId([0xaa; 16]))),
        },
    };
    trace.received_bytes("n2", "n1", &fetched.encode()).unwrap();
    let heartbeat = standby::group::message::encode("heartbeat", vec![]);
    trace.sent_bytes("n1", "all", &heartbeat).unwrap();
    trace.note("n2", "crash", "loses \u{fc} 3 of 5").unwrap();
    trace.finish().unwrap()
}

#[test]
fn a_trace_of_a_simulation_is_shown_step_by_step() {
    let place = Place::new("trace");
    let file = place.file("a.trace", &trace());
    let (text, status) = shown(&[&file]);
    assert_golden("trace.txt", &text);
    assert_eq!(status, 0);
    let (text, _) = shown(&["--client", "n2", "-m", "crash,fetch", &file]);
    assert_eq!(text.lines().count(), 2);
    let (text, _) = shown(&["-j", "-m", "claim", &file]);
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(line["node"], "n1");
    assert_eq!(line["kind"], "message");
    assert_eq!(line["fields"]["to"], "all");
    assert_eq!(line["fields"]["epoch"], "8-n2");
    assert_eq!(line["fields"]["disk"], "01".repeat(16));
    assert_eq!(line["fields"]["step"], 2);
}

#[test]
fn json_of_journals_and_traces_has_the_documented_keys() {
    let place = Place::new("journal-json");
    let directory = place.0.join("journal");
    journal_at(&directory);
    let file = place.file("a.trace", &trace());
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual/zeodump.md");
    let manual = fs::read_to_string(manual).unwrap();
    let (text, _) = shown(&["-j", "-x", "-v", directory.to_str().unwrap(), &file]);
    assert!(text.lines().count() > 30);
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let object = value.as_object().unwrap();
        let kind = object["kind"].as_str().unwrap();
        for word in object.keys().map(String::as_str).chain([kind]) {
            assert!(manual.contains(&format!("`{word}`")), "{word}: {line}");
        }
    }
}

#[test]
fn a_trace_that_was_cut_is_shown_as_far_as_it_goes() {
    let place = Place::new("trace-cut");
    let trace = trace();
    for len in (28..trace.len()).step_by(37) {
        let file = place.file("a.trace", &trace[..len]);
        let output = run(&[&file]);
        assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{len}");
    }
    // And one in which something was changed.
    for at in (48..trace.len()).step_by(41) {
        let mut bytes = trace.clone();
        bytes[at] ^= 0x55;
        let output = run(&["-v", &place.file("a.trace", &bytes)]);
        assert!(matches!(output.status.code(), Some(0 | 1 | 3)), "{at}");
    }
}
