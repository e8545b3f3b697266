//! Seeded mutation of what decoders read, from clients, files and operators: a value or an error,
//! never a panic, and never more memory than the bytes justify. (Damaged data files are in
//! `format_fixtures.rs`.)
//!
//! `FUZZ_SEED` and `FUZZ_ROUNDS` choose another or a longer run; a failure prints what repeats it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "decoders_fuzz/peer.rs"]
mod peer;
#[path = "decoders_fuzz/replica.rs"]
mod replica;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{env, fs, io, thread};

use bytes::Bytes;
use standby::args::Args;
use standby::config::{self, Surroundings};
use standby::group::channel::Channel;
use standby::group::corosync::Address;
use standby::group::corosync::envelope::Envelope;
use standby::group::fragment::{Context, Seal};
use standby::group::loopback::Loopback;
use standby::group::spread::session;
use standby::group::spread::wire::{ClientItem, ClientStream, DaemonItem, DaemonStream};
use standby::group::{self, Audience, Body, Event, Group, Lane, MemberId, View, ViewId};
use standby::ids::{DiskId, Epoch, HistoryId, NodeId, Oid, Tid};
use standby::limits::{VALUES_PER_MESSAGE_MAX, WHOLE_STORE_LEN_MAX};
use standby::node::roster::{Peer, Roster};
use standby::storage::disk::Disk;
use standby::storage::index::Index;
use standby::storage::journal::format::{Decoder, Item};
use standby::storage::journal::{self, Create, Entry, Identity, Journal};
use standby::storage::memory::MemoryDisk;
use standby::storage::oids;
use standby::storage::references::references;
use standby::storage::transfer::{Record, Transfer};
use standby::zeo::client::ClientSession;
use standby::zeo::message::Encoder;
use standby::zeo::session::{Incoming, Session};
use standby::zeo::{
    Dialect, Encoding, FrameReader, Value, decode_standalone, encode_standalone, message, msgpack,
};

#[test]
fn mutated_frames_are_decoded_or_refused() {
    let corpus = corpus();
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let mut input = random.choose(&corpus).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &corpus);
        }
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &input,
        };
        check_decoders(&input);
        check_frames(&mut random, &input);
    }
}

#[test]
fn mutated_streams_with_large_stores_are_taken_or_refused() {
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) / 20 {
        let encoding = [Encoding::Z, Encoding::M][random.below(2)];
        let stream = large_stores(&mut random, encoding);
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &stream[..100],
        };
        // A part of a frame, with as much again while it grows; and values, in a stack that grows.
        let memory_max = 4 * WHOLE_STORE_LEN_MAX + 150 * VALUES_PER_MESSAGE_MAX;
        check_memory("session", memory_max, || {
            take_stream(&mut random, encoding, &stream);
        });
    }
}

#[test]
fn mutated_fragments_are_taken_or_refused() {
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    let seals = [Seal::Plain, Seal::keyed(b"a secret of many letters")];
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) / 20 {
        let seal = random.choose(&seals).clone();
        let bodies: Vec<Vec<u8>> = (0..12).map(|_| fragment(&mut random, &seal)).collect();
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &bodies[0],
        };
        // What is kept of messages, and as much again while that grows.
        check_memory("channel", 1 << 20, || {
            take_bodies(&mut random, seal, &bodies);
        });
    }
}

/// A fragment that a member has sent: the whole of a message, or a part of one.
fn fragment(random: &mut Random, seal: &Seal) -> Vec<u8> {
    let from = MemberId::new("b");
    let context = Context {
        group: "g",
        from: &from,
        lane: Lane::Commit,
        audience: Audience::All,
    };
    let args = vec![
        Value::Int(1),
        Value::text("beta"),
        Value::Int(7),
        Value::text("1.0"),
    ];
    let hello = group::message::encode("hello", args);
    let count = 1 + random.below(4) as u16;
    let number = random.below(usize::from(count)) as u16;
    let sequence = random.below(1000) as u64;
    seal.wrap(context, (number, count), sequence, hello)
        .concat()
}

/// Gives bodies to a member, the most of them changed.
fn take_bodies(random: &mut Random, seal: Seal, bodies: &[Vec<u8>]) {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    let now = std::time::Instant::now();
    let mut daemon = Loopback::new("a");
    daemon.join(now);
    let mut channel = Channel::new("g", seal, 1, now);
    let mut roster = Roster::new(Peer::blank(
        NodeId::new("alpha").unwrap(),
        1,
        "1.0".to_owned(),
    ));
    let members = vec![MemberId::new("a"), MemberId::new("b")];
    let view = Event::View(View {
        id: ViewId::default(),
        members: members.clone(),
        together: members.clone(),
        cause: "a test",
    });
    channel.on_event(view, &daemon, now);
    for body in bodies {
        let mut data = body.clone();
        for _ in 0..random.below(3) {
            mutate(random, &mut data, bodies);
        }
        let body = Event::Body(Body {
            from: random.choose(&members).clone(),
            lane: Lane::ALL[random.below(4)],
            audience: [Audience::All, Audience::One][random.below(2)],
            data: data.into(),
        });
        channel.on_event(body, &daemon, now);
        while let Some(incoming) = channel.poll_incoming() {
            roster.on_incoming(&incoming, &mut channel);
        }
        channel.flush(&mut daemon, now);
    }
}

/// Calls as clients write them, some with the data of a large object, and something wrong in the
/// rest of it.
fn large_stores(random: &mut Random, encoding: Encoding) -> Vec<u8> {
    let encoder = Encoder::new(encoding, Dialect::Python3);
    let id = |number: u64| Value::Bytes(Bytes::copy_from_slice(&number.to_be_bytes()));
    let mut stream = Vec::new();
    for _ in 0..1 + random.below(3) {
        let len = [10, 70_000, WHOLE_STORE_LEN_MAX, WHOLE_STORE_LEN_MAX + 9][random.below(4)];
        let data = Value::Bytes(vec![random.byte(); len].into());
        let mut args = vec![id(1), id(2), data, Value::Int(77)];
        let name = *random.choose(&["storea", "storea", "restorea", "storeBlobChunk", "ping"]);
        if name == "restorea" {
            args.insert(3, Value::None);
        }
        let mut frame = encoder.notice_frame(name, args).to_vec();
        for _ in 0..random.below(3) {
            // Before the data, behind them, or their first bytes.
            let around = random.below(120).min(frame.len() - 1);
            let at = if random.below(3) == 0 {
                frame.len() - 1 - around
            } else {
                around
            };
            match random.below(4) {
                0 => frame[at] = random.byte(),
                1 => frame[at] ^= 1 << random.below(8),
                2 => drop(frame.remove(at)),
                _ => frame.insert(at, random.byte()),
            }
        }
        if random.below(2) == 0 {
            let len = u32::try_from(frame.len().saturating_sub(4)).unwrap();
            let len = len.saturating_add_signed([0, 0, -1, 1, 1 << 30, i32::MIN][random.below(6)]);
            frame[..4].copy_from_slice(&len.to_be_bytes());
        }
        stream.extend(frame);
        let pair = Value::Tuple(vec![id(3), id(4)]);
        let mut load = Vec::new();
        let parts = Value::Tuple(vec![
            pair.clone(),
            Value::Bool(false),
            Value::text("loadBefore"),
            pair,
        ]);
        match encoding {
            Encoding::Z => load = encode_standalone(&parts, 1000).unwrap(),
            Encoding::M => msgpack::encode(&mut load, &parts),
        }
        stream.extend(u32::try_from(load.len()).unwrap().to_be_bytes());
        stream.extend(load);
    }
    stream
}

/// Gives a stream to the session of a client, in any pieces.
fn take_stream(random: &mut Random, encoding: Encoding, stream: &[u8]) {
    let mut session = Session::new(encoding);
    let greeting: &[u8] = match encoding {
        Encoding::Z => b"\0\0\0\x02Z5",
        Encoding::M => b"\0\0\0\x02M5",
    };
    session.receive(greeting);
    // The greeting leads to `Registering`.
    assert!(matches!(session.next_call(), Ok(None)));
    session.on_registered();
    let mut stream = stream;
    let mut pieces_len = 0;
    while !stream.is_empty() {
        let len = [1, 100, 5000, 65_536, 65_536][random.below(5)].min(stream.len());
        session.receive(&stream[..len]);
        stream = &stream[len..];
        loop {
            if let Some(load) = session.peek_load() {
                assert_eq!(pieces_len, 0, "a call overtakes a large store");
                session.answer_load(&load, b"data", Tid(1));
                continue;
            }
            match session.next_call() {
                Ok(None) => break,
                Ok(Some(Incoming::Piece(piece))) => {
                    assert!(!piece.is_empty());
                    pieces_len += piece.len();
                }
                Ok(Some(Incoming::CallWithPieces(_, len))) => {
                    assert_eq!(len, pieces_len);
                    pieces_len = 0;
                }
                Ok(Some(Incoming::Call(_) | Incoming::Status)) => assert_eq!(pieces_len, 0),
                Err(error) => {
                    // It must also be able to say what it is.
                    drop(error.to_string());
                    return;
                }
            }
        }
    }
}

#[test]
fn mutated_envelopes_of_corosync_are_read_or_refused() {
    let address = Address { node: 1, pid: 2 };
    let corpus = [None, Some(address)].map(|to| {
        let lane = Lane::Bulk;
        let envelope = Envelope {
            lane,
            number: 3,
            to,
        };
        [&envelope.encode()[..], b"body"].concat()
    });
    let mut random = Random::new(number_from_env("FUZZ_SEED", 1));
    let mut read = 0;
    for _ in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let mut input = random.choose(&corpus).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &corpus);
        }
        // There is one way to write what can be read.
        if let Some((envelope, body)) = Envelope::decode(&input) {
            assert_eq!([&envelope.encode()[..], body].concat(), input);
            read += 1;
        }
    }
    assert!(read > 100, "{read}");
}

#[test]
fn nasty_inputs_are_decoded_or_refused() {
    let mut random = Random::new(1);
    for (name, input) in nasty() {
        let _report = Report {
            name: name.to_owned(),
            input: &input[..input.len().min(100)],
        };
        check_decoders(&input);
        check_frames(&mut random, &input);
        replica::check(&Bytes::from(input.clone()));
    }
}

#[test]
fn mutated_records_are_searched_or_refused() {
    let records = lines_in_hex("references.txt", 3);
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let mut input = random.choose(&records).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &records);
        }
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &input,
        };
        check_references(&input);
    }
    for (name, input) in nasty() {
        let _report = Report {
            name: name.to_owned(),
            input: &input[..input.len().min(100)],
        };
        check_references(&input);
        check_references(&[b"N.", &input[..]].concat());
    }
}

#[test]
fn mutated_files_beside_the_data_file_are_read_or_refused() {
    let disk = MemoryDisk::new();
    let path = Path::new("Data.fs");
    let index_path = Path::new("Data.fs.index");
    let mut index = Index::new();
    for number in 1..2000 {
        // Dense, sparse, and far apart.
        for oid in [number, 1 << 20 | number << 9, number << 40] {
            index.insert(Oid(oid), 50 + number);
        }
    }
    index.save(1 << 20, &disk, index_path).unwrap();
    oids::save(&disk, path, Oid(8000)).unwrap();
    let originals = [
        disk.read(index_path).unwrap(),
        disk.read(Path::new("Data.fs.oids")).unwrap(),
    ];
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) / 20 {
        let [mut index, mut ceiling] = originals.clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut index, &originals);
            mutate(&mut random, &mut ceiling, &originals);
        }
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &ceiling,
        };
        disk.replace(index_path, &[&index]).unwrap();
        disk.replace(Path::new("Data.fs.oids"), &[&ceiling])
            .unwrap();
        // Eight bytes may be the only object of a part of the index.
        check_memory("index", 40 * index.len() + (1 << 20), || {
            Index::load(&disk, index_path).map_err(|error| error.to_string())
        });
        check_memory("oids", 4 * ceiling.len() + 4096, || {
            oids::load(&disk, path).map_err(|error| error.to_string())
        });
    }
}

/// A segment of a journal, with the files beside it.
fn journal_in_use() -> Vec<(PathBuf, Vec<u8>)> {
    let disk = Arc::new(MemoryDisk::new());
    let directory = Path::new("journal");
    let (mut journal, _) = Journal::open(disk.clone(), directory, journal_options()).unwrap();
    for number in 0..20_usize {
        let last = journal.positions().last;
        let body = vec![Bytes::from(vec![number as u8; 37 * number])];
        let entry = Entry::new(&last, Epoch::ZERO, 1, Tid(9), body).unwrap();
        journal.append(&[entry]).unwrap();
        journal.sync().unwrap();
    }
    let names = disk.names(directory).unwrap();
    let paths = names.iter().map(|name| directory.join(name));
    let files = paths.map(|path| (path.clone(), disk.read(&path).unwrap()));
    // Not the one that is only locked.
    files.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn journal_options() -> journal::Options {
    let identity = Identity {
        history: HistoryId([1; 16]),
        node: NodeId::new("n1").unwrap(),
        disk: DiskId([2; 16]),
    };
    journal::Options {
        create: Some(Create::new(identity)),
        ..journal::Options::default()
    }
}

#[test]
fn mutated_journals_are_opened_or_refused_and_taken_apart() {
    let files = journal_in_use();
    let corpus: Vec<Vec<u8>> = files.iter().map(|(_, bytes)| bytes.clone()).collect();
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) / 20 {
        let disk = Arc::new(MemoryDisk::new());
        disk.create_directories(Path::new("journal")).unwrap();
        let mutated = random.below(files.len());
        for (number, (path, original)) in files.iter().enumerate() {
            let mut bytes = original.clone();
            if number == mutated {
                for _ in 0..=random.below(4) {
                    mutate(&mut random, &mut bytes, &corpus);
                }
            }
            let _report = Report {
                name: format!("FUZZ_SEED={seed} round {round}: {}", path.display()),
                input: &bytes,
            };
            disk.replace(path, &[&bytes]).unwrap();
            for decoder in [Decoder::new(), Decoder::within_segment()] {
                check_memory("a segment", 32 * 1024, || take_segment(decoder, &bytes));
            }
        }
        // Three pieces of a megabyte that it is read and written in.
        check_memory("a journal", 5 << 20, || {
            Journal::open(disk.clone(), Path::new("journal"), journal_options())
        });
    }
}

/// Takes a segment apart, as tools do; nothing of it is left out.
fn take_segment(mut decoder: Decoder, bytes: &[u8]) {
    let mut len = 0;
    let mut pieces = bytes.chunks(4096);
    loop {
        match decoder.poll() {
            Some(Item::Segment(_)) => len += 512,
            Some(Item::Entry { pos, .. }) => {
                assert_eq!(pos, len);
                len += 160;
            }
            Some(Item::Body(piece)) => len += piece.len() as u64,
            Some(Item::End { .. }) => {}
            Some(Item::Zeros { pos, len: found } | Item::Garbage { pos, len: found }) => {
                assert_eq!(pos, len);
                len += found;
            }
            None => match pieces.next() {
                Some(piece) => decoder.feed(piece),
                None if len == bytes.len() as u64 => break,
                None => decoder.end(),
            },
        }
    }
}

#[test]
fn mutated_transactions_are_taken_or_refused() {
    let corpus: Vec<Vec<u8>> = (0..4).map(transfer).collect();
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let mut input = random.choose(&corpus).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &corpus);
        }
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &input,
        };
        let piece_len = 1 + random.below(input.len() + 1);
        let pieces: Vec<Bytes> = input
            .chunks(piece_len)
            .map(Bytes::copy_from_slice)
            .collect();
        // A record takes more memory than its bytes, and so does the list of all while it grows.
        check_memory("a transaction", 10_000 + 10 * input.len(), || {
            let transfer = Transfer::decode(&pieces).ok()?;
            assert_eq!(transfer.encode().unwrap().concat(), input);
            Some(())
        });
    }
}

/// A body with so many records.
fn transfer(count: u64) -> Vec<u8> {
    let record = |oid| Record {
        oid: Oid(oid),
        data: (oid != 2).then(|| Bytes::from(vec![7; 50 << oid])),
        same_as: (oid == 1).then_some(Tid(3)),
    };
    let transfer = Transfer {
        storage: "main".to_owned(),
        status: b' ',
        user: Bytes::from_static(b"user"),
        description: Bytes::from_static(b"description"),
        extension: Bytes::from_static(b"}q\x01."),
        records: (0..count).map(record).collect(),
        blobs: Vec::new(),
    };
    transfer.encode().unwrap().concat()
}

#[test]
fn mutated_configurations_are_read_or_refused() {
    struct Machine(String);

    impl Surroundings for Machine {
        fn read(&self, _path: &Path) -> io::Result<String> {
            Ok(self.0.clone())
        }

        fn is_directory(&self, _path: &Path) -> bool {
            true
        }

        fn variable(&self, _name: &str) -> Option<String> {
            Some("value".to_owned())
        }
    }

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/server.conf");
    let sample = fs::read_to_string(path).unwrap();
    // Options instead of comments, so that there is something to be wrong.
    let plain = sample.replace("\n#", "\n").replace("\n  #", "\n  ");
    let define = "%define a b\n%define c $a${a}\n%include x.conf\n$(HOME:-x)\n".to_owned();
    let corpus = [sample, plain, define].map(String::into_bytes);
    let args = Args {
        configure: Some(PathBuf::from("x.conf")),
        ..Args::default()
    };
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) / 20 {
        let mut input = random.choose(&corpus).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &corpus);
        }
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &input,
        };
        let machine = Machine(String::from_utf8_lossy(&input).into_owned());
        // A file may include itself, up to the limit.
        check_memory("configuration", 64 << 20, || {
            config::read(&args, &machine).map_err(|error| error.to_string())
        });
    }
}

#[test]
fn mutated_spread_streams_are_decoded_or_refused() {
    let corpus = spread_corpus();
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let mut input = random.choose(&corpus).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut random, &mut input, &corpus);
        }
        // An item may come in one piece, be it long.
        input.truncate(20_000);
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &input,
        };
        check_spread(&mut random, &input);
    }
}

/// Recorded streams, and each of their frames.
fn spread_corpus() -> Vec<Vec<u8>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/spread");
    let mut corpus = Vec::new();
    for path in files_of_kind(data, "bin") {
        let stream = fs::read(path).unwrap();
        let mut daemon = DaemonStream::new();
        daemon.receive(&stream);
        while let Ok(Some(item)) = daemon.next() {
            if let DaemonItem::Frame(frame) = item.what {
                corpus.push(frame.encode());
            }
        }
        corpus.push(stream);
    }
    corpus.retain(|input| !input.is_empty() && input.len() < 5000);
    assert!(corpus.len() > 300);
    corpus
}

/// What came, as either side reads it, from its first byte or its first frame on, in pieces.
fn check_spread(random: &mut Random, input: &[u8]) {
    let piece_len = 1 + random.below(input.len() + 10);
    // A set without names takes 4 bytes here and 24 there; buffers double.
    let memory_max = 16 * input.len() + 8192;
    for mut stream in [DaemonStream::new(), DaemonStream::in_frames()] {
        check_memory("daemon", memory_max, || {
            let mut pos = 0;
            for piece in input.chunks(piece_len) {
                stream.receive(piece);
                while let Ok(Some(item)) = stream.next() {
                    assert_eq!(item.pos, pos);
                    pos += item.len as u64;
                    if let DaemonItem::Frame(frame) = item.what {
                        drop(frame.membership().map_err(|error| error.to_string()));
                        drop(frame.transition().map_err(|error| error.to_string()));
                        assert_eq!(frame.encode().len(), item.len);
                    }
                }
            }
            let failed = stream.next().map_err(|error| error.to_string()).is_err();
            let rest = stream.pending().map_or(0, |pending| pending.have as u64);
            assert!(failed || pos + rest == input.len() as u64);
        });
    }
    for mut stream in [ClientStream::new(), ClientStream::in_frames()] {
        check_memory("client of spread", memory_max, || {
            for piece in input.chunks(piece_len) {
                stream.receive(piece);
                while let Ok(Some(item)) = stream.next() {
                    if let ClientItem::Frame(frame) = item.what {
                        let me = frame.header.name;
                        drop(
                            frame
                                .header
                                .check_request(&me)
                                .map_err(|error| error.to_string()),
                        );
                        assert_eq!(frame.encode().len(), item.len);
                    }
                }
            }
            drop(stream.next().map_err(|error| error.to_string()));
            stream.pending()
        });
    }
    check_memory("session", memory_max + 32 * input.len(), || {
        take_spread(random, input, piece_len);
    });
}

/// Gives it to a session that may have shaken hands, and been made a member, before.
#[expect(clippy::disallowed_methods, reason = "any time will do")]
fn take_spread(random: &mut Random, input: &[u8], piece_len: usize) {
    let mut now = Instant::now();
    let options = session::Options {
        name: "alice".to_owned(),
        group: ["room", "net", "g"][random.below(3)].to_owned(),
        address: "4803@localhost".to_owned(),
        seed: 1,
    };
    let mut session = session::Session::new(options, now).unwrap();
    session.join(now);
    session.on_connected(now);
    if random.below(4) > 0 {
        session.receive(b"\x05NULL \x01\x04\x04\0\x09#alice#d1", now);
        assert!(session.me().is_some());
    }
    for piece in input.chunks(piece_len) {
        session.receive(piece, now);
        while session.poll_event().is_some() {}
    }
    assert!(!session.wants_connection());
    drop(session.describe());
    session.on_closed("end of stream".to_owned(), now);
    // It always finds back.
    if let Some(deadline) = session.deadline() {
        now = deadline;
    }
    session.on_deadline(now);
    assert!(session.wants_connection() && session.me().is_none());
}

/// Bytes made to hurt a decoder that trusts them.
fn nasty() -> Vec<(&'static str, Vec<u8>)> {
    let pickle = |parts: &[&[u8]]| [&b"\x80\x03"[..], &parts.concat(), b"."].concat();
    let many = 100_000;
    // Each level holds the one below ten times.
    let mut lists = b"]q\x00".to_vec();
    let mut tuples = b")\x94".to_vec();
    for level in 1..30 {
        lists.extend_from_slice(&[b']', b'q', level, b'(']);
        lists.extend_from_slice(&[b'h', level - 1].repeat(10));
        lists.push(b'e');
        tuples.extend_from_slice(&[b'h', level - 1].repeat(3));
        tuples.extend_from_slice(b"\x87\x94");
    }
    let encode = b"c_codecs\nencode\nq\x01";
    let text = [&b"X\xff\xff\0\0"[..], &[b'a'; 0xffff], b"q\x02"].concat();
    vec![
        ("marks", b"(".repeat(many)),
        ("nested tuples", pickle(&[b"N", &b"\x85".repeat(many)])),
        (
            "nested lists",
            pickle(&[&b"]".repeat(many), &b"a".repeat(many)]),
        ),
        (
            "nested dicts",
            pickle(&[&b"}N".repeat(many), b"N", &b"s".repeat(many)]),
        ),
        (
            "nested marks",
            pickle(&[&b"(".repeat(many), &b"t".repeat(many)]),
        ),
        ("a list in itself", pickle(&[b"]q\0h\0a"])),
        (
            "a list in itself, often",
            pickle(&[b"]q\0(", &b"h\0".repeat(many), b"e"]),
        ),
        (
            "a long list in itself",
            pickle(&[b"]q\0(h\0", &b"N".repeat(many), b"e"]),
        ),
        (
            "a list in its copies",
            pickle(&[b"]", &b"2a2".repeat(many)]),
        ),
        ("a dict in itself", pickle(&[b"}q\0h\0h\0s"])),
        ("lists that grow tenfold", pickle(&[&lists])),
        ("tuples that grow threefold", pickle(&[&tuples])),
        (
            "a text fetched often",
            pickle(&[&text, b"(", &b"h\x02".repeat(many), b"t"]),
        ),
        (
            "bytes made often",
            pickle(&[
                encode,
                b"0",
                &text,
                b"0(",
                &b"h\x01h\x02X\x06\0\0\0latin1\x86R".repeat(9999),
            ]),
        ),
        ("memo keys", pickle(&[b"N", &b"\x94".repeat(many)])),
        (
            "globals",
            pickle(&[&b"c__builtin__\nobject\n".repeat(many)]),
        ),
        (
            "a long name of a global",
            pickle(&[b"c", &b"x".repeat(many), b"\nx\n"]),
        ),
        ("many pops", pickle(&[&b"N0".repeat(many), b"N"])),
        ("many digits", pickle(&[b"L", &b"9".repeat(many), b"L\n"])),
        ("huge bytes", b"\x80\x03B\xff\xff\xff\xff".to_vec()),
        (
            "huge bytes in 64 bits",
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        ),
        (
            "a negative length",
            b"\x80\x02\x8b\xff\xff\xff\xff".to_vec(),
        ),
        ("nested arrays", b"\x91".repeat(many)),
        ("nested maps", b"\x81\x01".repeat(many)),
        ("huge array", b"\xdd\xff\xff\xff\xff".to_vec()),
        ("huge map", b"\xdf\xff\xff\xff\xff\xc0".to_vec()),
        ("huge arrays in each other", b"\xdc\x10\x00".repeat(1400)),
        ("huge text", b"\xdb\xff\xff\xff\xff".to_vec()),
        (
            "many nils",
            [&b"\xdd\0\x01\x86\xa0"[..], &vec![0xc0; many]].concat(),
        ),
        (
            "many pairs",
            [&b"\xdf\0\0\xc3\x50"[..], &vec![0xc0; many]].concat(),
        ),
        ("nothing", Vec::new()),
    ]
}

fn check_decoders(input: &[u8]) {
    let frame = Bytes::copy_from_slice(input);
    // A value takes 40 bytes, and one byte may say that there is one. The stack of the pickle
    // machine doubles when it grows, and what was memoised is copied up to the limit of values.
    let pickle_max = 48 * VALUES_PER_MESSAGE_MAX + 200 * input.len() + 4096;
    let msgpack_max = 64 * input.len() + 4096;
    check_memory("pickle", pickle_max, || decode_standalone(&frame));
    check_memory("msgpack", msgpack_max, || msgpack::decode(&frame));
    for (encoding, memory_max) in [(Encoding::Z, pickle_max), (Encoding::M, msgpack_max)] {
        check_memory("message", memory_max, || {
            // An error must also be able to say what it is.
            message::decode(encoding, &frame).map_err(|error| error.to_string())
        });
        check_memory("client", memory_max + 8 * input.len() + 4096, || {
            let mut client = ClientSession::default();
            let greeting = match encoding {
                Encoding::Z => b"Z5",
                Encoding::M => b"M5",
            };
            for frame in [greeting, input] {
                client.receive(&u32::try_from(frame.len()).unwrap().to_be_bytes());
                client.receive(frame);
            }
            let greeted = client.next().unwrap();
            (greeted, client.next().map_err(|error| error.to_string()))
        });
    }
}

fn check_references(record: &[u8]) {
    // A value takes 32 bytes; the stack doubles when it grows, and so does the memo.
    check_memory("references", 160 * record.len() + 4096, || {
        let mut found = Vec::new();
        // An error must also be able to say what it is.
        references(record, &mut found).map_err(|error| error.to_string())
    });
}

/// The input as a stream, and behind its length, in random pieces.
fn check_frames(random: &mut Random, input: &[u8]) {
    let mut stream = input.to_vec();
    stream.extend_from_slice(&u32::try_from(input.len()).unwrap().to_be_bytes());
    stream.extend_from_slice(input);
    let piece_len = 1 + random.below(input.len() + 10);
    check_memory("frames", 4 * stream.len() + 4096, || {
        let mut reader = FrameReader::new(1 << 20);
        for piece in stream.chunks(piece_len) {
            reader.receive(piece);
            while let Ok(Some(frame)) = reader.next() {
                assert!(frame.len() <= stream.len());
            }
        }
        reader
    });
}

fn check_memory<T>(what: &str, memory_max: usize, decode: impl FnOnce() -> T) {
    let before = MEMORY.get();
    PEAK.set(before);
    drop(decode());
    let peak = usize::try_from(PEAK.get() - before).unwrap();
    assert!(
        peak <= memory_max,
        "{what} took {peak} bytes, allowed are {memory_max}"
    );
}

fn mutate(random: &mut Random, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let pos = random.below(input.len() + 1);
    let end = (pos + random.below(20)).min(input.len());
    match random.below(8) {
        0 => input.truncate(pos),
        1 => drop(input.drain(pos..end)),
        2 => {
            let copy = input[pos..end].to_vec();
            let count = 1 + random.below(20);
            input.splice(pos..pos, copy.repeat(count));
        }
        3 => {
            // The rest of another one.
            let other = random.choose(corpus);
            input.truncate(pos);
            input.extend_from_slice(&other[random.below(other.len())..]);
        }
        4 => {
            // An interesting length or number, in either byte order.
            let number = *random.choose(&[0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff_u32]);
            let bytes = if random.below(2) == 0 {
                number.to_le_bytes()
            } else {
                number.to_be_bytes()
            };
            let end = (pos + 4).min(input.len());
            input.splice(pos..end, bytes);
        }
        5 => {
            // Opcodes that the captures do not have.
            let opcodes =
                b"012()]}aesutldqhpgrj\x94\x85\x86\x87b\x81Rc.NIJKLMFGSTUVXBC\x8a\x8b\x8c\
                PQio\x91\x92\x93";
            input.insert(pos, *random.choose(opcodes));
        }
        6 => input.insert(pos, random.byte()),
        _ if pos < input.len() => input[pos] ^= 1 << random.below(8),
        _ => {}
    }
}

/// The frames of the captured streams, and the pickles of several Pythons.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    for path in files_of_kind(data.join("zeo"), "bin") {
        let mut reader = FrameReader::new(1 << 20);
        reader.receive(&fs::read(path).unwrap());
        while let Some(frame) = reader.next().unwrap() {
            corpus.push(frame.to_vec());
        }
    }
    corpus.append(&mut lines_in_hex("pickles.txt", 2));
    // The two pieces of a blob would only take time.
    corpus.retain(|input| !input.is_empty() && input.len() < 2000);
    assert!(corpus.len() > 1500);
    corpus
}

/// Files below a directory whose names end like this, in an order that does not change.
fn files_of_kind(directory: PathBuf, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut paths = vec![directory];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).unwrap();
            let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            paths.extend(entries);
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files
}

/// The bytes in one field of each line of a file in `tests/data`.
fn lines_in_hex(name: &str, field: usize) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let text = fs::read_to_string(path.join(name)).unwrap();
    let fields = text
        .lines()
        .map(|line| line.split('\t').nth(field).unwrap());
    fields
        .map(|hex| {
            let byte = |pos| u8::from_str_radix(&hex[pos..pos + 2], 16).unwrap();
            (0..hex.len()).step_by(2).map(byte).collect()
        })
        .collect()
}

fn number_from_env(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// Says what was being decoded if the test fails.
struct Report<'a> {
    name: String,
    input: &'a [u8],
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: {}", self.name, self.input.escape_ascii());
        }
    }
}

/// Xorshift.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Spreads small seeds over all bits; the state must not be zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

thread_local! {
    /// Bytes allocated by this thread now.
    static MEMORY: Cell<isize> = const { Cell::new(0) };
    /// The most since it was set.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn count(change: isize) {
    let memory = MEMORY.get() + change;
    MEMORY.set(memory);
    PEAK.set(PEAK.get().max(memory));
}

#[expect(
    unsafe_code,
    reason = "the trait is unsafe; all is passed on to the system's allocator"
)]
// SAFETY: `System` fulfils the contract, and counting neither allocates nor unwinds: the counters
// are thread locals without destructors.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}
