//! Objects that are sent, and come, in pieces, among everything else on their connections.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod driver;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use driver::Driver;
use driver::cold::PartlyCold;
use standby::ids::{ClientId, Tid};
use standby::limits::{LONG_READ_LEN, OUTPUT_PAUSE_LEN, WHOLE_LOAD_LEN_MAX};
use standby::zeo::{Encoding, FrameReader, Value};

const ENCODINGS: [Encoding; 2] = [Encoding::Z, Encoding::M];

/// The object that is long; those before it are short.
const LONG: u64 = 10;
const LONG_LEN: usize = WHOLE_LOAD_LEN_MAX + 5 * LONG_READ_LEN / 2;
const SHORT_LEN: usize = 5000;

/// A server with both, and who has written them.
fn served(encoding: Encoding) -> (Driver, ClientId, Arc<PartlyCold>) {
    let disk = Arc::new(PartlyCold::new());
    let mut driver = Driver::new(disk.clone(), Path::new("Data.fs"), encoding);
    let writer = driver.connect();
    for oid in 0..=LONG {
        driver.commit(writer, &[(oid, Tid::ZERO, &data(oid))]);
    }
    (driver, writer, disk)
}

fn data(oid: u64) -> Vec<u8> {
    let len = if oid == LONG { LONG_LEN } else { SHORT_LEN };
    vec![b'a' + oid as u8; len]
}

/// All that a client gets, as its socket takes it in steps; and its calls go on.
fn take_all(driver: &mut Driver, id: ClientId) -> Vec<Bytes> {
    let mut reader = FrameReader::new(usize::MAX);
    let mut frames = Vec::new();
    // It may take a turn of the server until there is more.
    let mut idle = 0;
    while idle < 3 {
        let taken = driver.take_some(id, 100_000);
        idle = if taken.is_empty() { idle + 1 } else { 0 };
        reader.receive(&taken);
        while let Some(frame) = reader.next().unwrap() {
            frames.push(frame);
        }
        driver.serve(id);
        driver.end_turn();
    }
    frames
}

/// What a frame is: the data that a load came to, or the name of a notice.
fn content(driver: &Driver, frame: &Bytes) -> Result<Bytes, Value> {
    let Value::Tuple(parts) = driver.decoded(frame) else {
        panic!("{frame:?}");
    };
    match &parts[3] {
        Value::Tuple(result) if parts[2] == Value::text(".reply") => match &result[0] {
            Value::Bytes(data) => Ok(data.clone()),
            other => panic!("{other:?}"),
        },
        _ => Err(parts[2].clone()),
    }
}

fn loads(driver: &Driver, oids: &[u64]) -> Vec<u8> {
    let calls = oids.iter().map(|oid| driver.load(*oid, Tid::MAX));
    calls.collect::<Vec<_>>().concat()
}

#[test]
fn short_replies_come_behind_a_long_one_and_not_within_it() {
    for encoding in ENCODINGS {
        let (mut driver, ..) = served(encoding);
        let reader = driver.connect();
        let oids = [1, LONG, 2, 3, LONG, LONG, 4];
        let calls = loads(&driver, &oids);
        driver.send(reader, &calls);
        let frames = take_all(&mut driver, reader);
        let got: Vec<_> = frames.iter().map(|it| content(&driver, it)).collect();
        let expected: Vec<_> = oids.iter().map(|oid| Ok(Bytes::from(data(*oid)))).collect();
        assert!(got == expected, "{encoding:?}");
    }
}

#[test]
fn a_long_reply_goes_on_however_much_waits_behind_it() {
    for encoding in ENCODINGS {
        let (mut driver, ..) = served(encoding);
        let reader = driver.connect();
        let shorts = 3 * OUTPUT_PAUSE_LEN / SHORT_LEN;
        let mut oids = vec![LONG];
        oids.extend((0..shorts as u64).map(|n| n % LONG));
        oids.extend([LONG, 1]);
        let calls = loads(&driver, &oids);
        driver.send(reader, &calls);
        let frames = take_all(&mut driver, reader);
        assert_eq!(frames.len(), oids.len(), "{encoding:?}");
        for (frame, oid) in frames.iter().zip(&oids) {
            assert!(content(&driver, frame) == Ok(data(*oid).into()));
        }
    }
}

#[test]
fn what_is_committed_is_told_behind_the_long_reply_that_was_begun_before() {
    for encoding in ENCODINGS {
        let (mut driver, writer, _) = served(encoding);
        let reader = driver.connect();
        let call = loads(&driver, &[LONG]);
        driver.send(reader, &call);
        let serial = driver.current(writer, LONG);
        let newer = vec![b'N'; LONG_LEN];
        driver.commit(writer, &[(LONG, serial, &newer)]);
        let call = loads(&driver, &[LONG, 1]);
        driver.send(reader, &call);
        let frames = take_all(&mut driver, reader);
        let got: Vec<_> = frames.iter().map(|it| content(&driver, it)).collect();
        let notice = Err(Value::text("invalidateTransaction"));
        let expected = [Ok(data(LONG)), Ok(newer), Ok(data(1))].map(|it| it.map(Bytes::from));
        let [old, new, other] = expected;
        assert!(got == [old, notice, new, other], "{encoding:?}");
    }
}

#[test]
fn many_notices_do_not_stop_a_long_reply() {
    for encoding in ENCODINGS {
        let (mut driver, writer, _) = served(encoding);
        let reader = driver.connect();
        let call = loads(&driver, &[LONG]);
        driver.send(reader, &call);
        let oids: Vec<u64> = (1000..6000).collect();
        let mut serial = Tid::ZERO;
        // Each notice names them all.
        for _ in 0..2 + OUTPUT_PAUSE_LEN / (oids.len() * 10) {
            let stores: Vec<_> = oids.iter().map(|oid| (*oid, serial, &b"x"[..])).collect();
            serial = driver.commit(writer, &stores);
        }
        let call = driver.call(9, "ping", Vec::new());
        driver.send(reader, &call);
        let frames = take_all(&mut driver, reader);
        assert!(content(&driver, &frames[0]) == Ok(data(LONG).into()));
        assert!(frames.len() > 20, "{}", frames.len());
    }
}
