//! What nodes send to each other directly.

use std::io::IoSlice;
use std::time::Instant;

use standby::ids::{Digest, Seq};
use standby::limits::PEER_ENTRIES_LEN_MAX;
use standby::peer::{
    Answer, Beat, Event, Key, Nonce, Options, PeerError, Refusal, RefusalKind, Request, Session,
};
use standby::replica::message::{Fetch, Fetched, Position, Role, Sender, Supply};
use standby::storage::transfer::{BlobAt, BlobName};

use super::*;

/// Bytes in front of a frame's payload: its length, its kind, its number.
const HEAD_LEN: usize = 4 + 1 + 8;

fn sender(name: &str) -> Sender {
    Sender {
        history: HistoryId([1; 16]),
        node: NodeId::new(name).unwrap(),
        disk: DiskId([1; 16]),
    }
}

/// Each with its answer.
fn all_kinds() -> Vec<(Request, Answer)> {
    let (epoch, snapshot, storage, oid, tid) = (Epoch::ZERO, 7, 1, Oid(3), Tid(4));
    let (pos, len) = (5, 1000);
    let beat = Beat {
        role: Role::Primary,
        epoch,
        members: 3,
    };
    let fetch = Fetch {
        sender: sender("a"),
        id: 1,
        epoch,
        is_claim: false,
        ends: vec![Position::default(); 3],
    };
    let fetched = Fetched {
        sender: sender("b"),
        id: 1,
        epoch,
        what: Supply::Entries {
            after: Position::default(),
            entries: vec![],
        },
    };
    let name = BlobName {
        oid,
        len: 9,
        digest: Digest([6; 32]),
    };
    let blob = Request::Blob {
        storage: "main".to_owned(),
        tid,
        name,
        pos,
        len,
    };
    let read = Request::Read {
        snapshot,
        file: 2,
        pos,
        len,
    };
    let list = |after| Request::ListBlobs {
        snapshot,
        storage,
        after,
        count: 10,
    };
    let read_blob = Request::ReadBlob {
        snapshot,
        storage,
        oid,
        tid,
        pos,
        len,
    };
    let take = Request::Snapshot {
        newest_only: true,
        at_least: Seq(8),
    };
    let at = |oid| BlobAt {
        oid: Oid(oid),
        tid,
        len: 1,
    };
    let piece = || Answer::Piece(vec![7; 100].into());
    let refusal = Refusal::new(RefusalKind::Busy, "not now");
    vec![
        (Request::Fetch(fetch), Answer::Fetched(fetched)),
        (blob, piece()),
        (take, Answer::Snapshot(b"a manifest"[..].into())),
        (read, piece()),
        (list(None), Answer::Blobs(vec![at(1), at(2)])),
        (list(Some((oid, tid))), Answer::Refused(refusal)),
        (read_blob, piece()),
        (Request::EndSnapshot { snapshot }, Answer::Done),
        (Request::Ping, Answer::Done),
        (Request::Beat(beat), Answer::Beat(beat)),
    ]
}

fn output(session: &mut Session, now: Instant) -> Vec<u8> {
    let mut taken = Vec::new();
    while session.has_output() {
        let out = session.output();
        let mut slices = [IoSlice::new(&[]); 16];
        let count = out.slices(&mut slices, usize::MAX);
        let len = slices[..count].iter().map(|it| it.len()).sum();
        slices[..count]
            .iter()
            .for_each(|it| taken.extend_from_slice(it));
        out.advance(len);
        session.on_written(now);
    }
    taken
}

/// Both ends of a connection, as they begin each time.
fn ends(is_keyed: bool, now: Instant) -> (Session, Session) {
    let options = |name: &str| Options {
        node: NodeId::new(name).unwrap(),
        group: "g".to_owned(),
        key: is_keyed.then(|| Key::new(b"a secret of many letters")),
    };
    let nonce: Nonce = [9; 32];
    let one = Session::connect(&options("a"), &nonce, now);
    (one, Session::accept(&options("b"), &nonce, now))
}

/// What each side sends to the other: how it begins, and then frame by frame.
struct Recorded {
    is_keyed: bool,
    connects: (Vec<u8>, Vec<Vec<u8>>),
    answers: (Vec<u8>, Vec<Vec<u8>>),
}

fn record(is_keyed: bool, now: Instant) -> Recorded {
    let (mut one, mut other) = ends(is_keyed, now);
    let (mut hello, mut reply) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let sent = output(&mut one, now);
        other.receive(&sent, now);
        hello.extend(sent);
        let sent = output(&mut other, now);
        one.receive(&sent, now);
        reply.extend(sent);
    }
    let (mut requests, mut replies) = (Vec::new(), Vec::new());
    for (request, answer) in all_kinds() {
        let id = one.request(&request, now).unwrap();
        requests.push(output(&mut one, now));
        other.receive(requests.last().unwrap(), now);
        other.answer(id, &answer, now);
        replies.push(output(&mut other, now));
        one.receive(replies.last().unwrap(), now);
    }
    let answers = std::iter::from_fn(|| one.poll_event());
    let expected: Vec<Answer> = all_kinds().into_iter().map(|(_, answer)| answer).collect();
    let answers = answers.filter_map(|event| match event {
        Event::Answer { answer, .. } => Some(answer),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), expected);
    Recorded {
        is_keyed,
        connects: (hello, requests),
        answers: (reply, replies),
    }
}

/// Changes frames; of the most the length is what it is then, so that what is in them is looked at.
fn mutated(random: &mut Random, frames: &[Vec<u8>], is_keyed: bool) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        let mut frame = frame.clone();
        match random.below(8) {
            0 | 1 => mutate(random, &mut frame, frames),
            2..5 if !is_keyed && frame.len() >= HEAD_LEN => {
                let mut payload = frame.split_off(HEAD_LEN);
                mutate(random, &mut payload, frames);
                frame.extend(payload);
                let len = u32::try_from(frame.len() - 4).unwrap();
                frame[..4].copy_from_slice(&len.to_be_bytes());
            }
            5 => continue,
            _ => {}
        }
        stream.extend(frame);
    }
    stream
}

/// Takes a stream in pieces, and does what somebody would do who is asked; why it was closed.
fn take(random: &mut Random, session: &mut Session, stream: &[u8], now: Instant) -> Vec<Event> {
    let mut seen = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() && session.wants_input() {
        let (piece, behind) = rest.split_at(1 + random.below(rest.len()));
        session.receive(piece, now);
        rest = behind;
        while let Some(event) = session.poll_event() {
            if let Event::Request { id, .. } = &event {
                session.answer(*id, &Answer::Done, now);
            }
            seen.push(event);
        }
        output(session, now);
    }
    session.on_deadline(now + std::time::Duration::from_secs(1000));
    seen
}

#[test]
fn mutated_streams_between_nodes_are_taken_or_refused() {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    let now = Instant::now();
    let recorded = [record(false, now), record(true, now)];
    let seed = number_from_env("FUZZ_SEED", 1);
    let mut random = Random::new(seed);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..number_from_env("FUZZ_ROUNDS", 20_000) {
        let recorded = &recorded[usize::from(random.below(8) == 0)];
        let (mut one, mut other) = ends(recorded.is_keyed, now);
        let from_who_connects = random.below(2) == 0;
        let (begin, frames) = match from_who_connects {
            true => &recorded.connects,
            false => &recorded.answers,
        };
        let mut stream = begin.clone();
        if random.below(8) == 0 {
            mutate(&mut random, &mut stream, &recorded.connects.1);
        }
        stream.extend(mutated(&mut random, frames, recorded.is_keyed));
        let _report = Report {
            name: format!("FUZZ_SEED={seed} round {round}"),
            input: &stream,
        };
        let events = Cell::new(Vec::new());
        // What a node has asked for may be announced to be long, and is not taken before it is
        // there.
        let memory_max = 48 * VALUES_PER_MESSAGE_MAX + 400 * stream.len() + (1 << 16);
        assert!(memory_max < PEER_ENTRIES_LEN_MAX);
        check_memory("peer", memory_max, || {
            let session = if from_who_connects {
                &mut other
            } else {
                // It has to have asked.
                let (hello, frames) = stream.split_at(begin.len().min(stream.len()));
                one.receive(hello, now);
                for (request, _) in all_kinds() {
                    let _ = one.request(&request, now);
                }
                events.set(take(&mut random, &mut one, frames, now));
                return;
            };
            events.set(take(&mut random, session, &stream, now));
        });
        let events = events.take();
        let is_over = |event: &Event| match event {
            Event::Closed(error) => *error != PeerError::Idle,
            _ => false,
        };
        let is_use = |event: &Event| matches!(event, Event::Answer { .. } | Event::Request { .. });
        refused += usize::from(events.iter().any(is_over));
        taken += events.iter().filter(|it| is_use(it)).count();
    }
    assert!(taken > 1000 && refused > 100, "{taken} {refused}");
}
