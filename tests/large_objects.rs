//! Objects that are sent, and come, in pieces, among everything else on their connections.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod driver;

use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use driver::Driver;
use driver::cold::PartlyCold;
use standby::ids::{ClientId, Oid, Tid};
use standby::limits::{LONG_READ_LEN, OUTPUT_PAUSE_LEN, SHORT_READS_MAX, WHOLE_LOAD_LEN_MAX};
use standby::storage::Lane;
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

#[test]
fn an_iterator_gives_long_records_in_pieces() {
    for encoding in ENCODINGS {
        let (mut driver, ..) = served(encoding);
        let client = driver.connect();
        let call = |driver: &mut Driver, name, args| {
            let call = driver.call(1, name, args);
            driver.send(client, &call);
            let waiting = driver.server.output_of(client).unwrap().len();
            assert!(waiting < LONG_READ_LEN + 1000, "{waiting}");
            let frame = take_all(driver, client).pop().unwrap();
            match driver.decoded(&frame) {
                Value::Tuple(mut parts) => parts.pop().unwrap(),
                other => panic!("{other:?}"),
            }
        };
        call(
            &mut driver,
            "iterator_start",
            vec![Value::None, Value::None],
        );
        for oid in 0..=LONG {
            let Value::Tuple(txn) = call(&mut driver, "iterator_next", vec![Value::Int(0)]) else {
                panic!("no transaction");
            };
            let args = vec![Value::Int(0), txn[0].clone()];
            let number = call(&mut driver, "iterator_record_start", args);
            let Value::Tuple(record) = call(&mut driver, "iterator_record_next", vec![number])
            else {
                panic!("no record");
            };
            let expected: [Value; 2] = [Value::Bytes(data(oid).into()), Value::None];
            assert!(record[2..] == expected, "{oid}");
        }
    }
}

#[test]
fn clients_that_are_sent_large_objects_leave_turns_to_others() {
    for encoding in ENCODINGS {
        let (mut driver, _, disk) = served(encoding);
        let greedy: Vec<ClientId> = (0..3 * SHORT_READS_MAX).map(|_| driver.connect()).collect();
        let modest = driver.connect();
        disk.cool_from(0);
        driver.is_disk_at_hand = false;
        let calls = loads(&driver, &[LONG; 20]);
        for client in &greedy {
            driver.send(*client, &calls);
        }
        // They take all that they are sent, faster than the disk reads it.
        let round = |driver: &mut Driver| {
            assert!(driver.run_job());
            driver.end_turn();
            assert!(
                driver.jobs.len() <= SHORT_READS_MAX,
                "{}",
                driver.jobs.len()
            );
            for client in &greedy {
                driver.take(*client);
                driver.serve(*client);
            }
            driver.end_turn();
        };
        for _ in 0..3 * greedy.len() {
            round(&mut driver);
        }
        let call = loads(&driver, &[1]);
        driver.send(modest, &call);
        let mut reads = 0;
        while driver.frames(modest).is_empty() {
            round(&mut driver);
            reads += 1;
        }
        assert!(reads <= greedy.len() + SHORT_READS_MAX + 1, "{reads}");
    }
}

type Serials = BTreeMap<Oid, Tid>;

/// A client that loads and commits at random, and looks at what it is told.
struct Someone {
    id: ClientId,
    /// On its way to the server.
    calls: Vec<u8>,
    reader: FrameReader,
    /// Since which revision each object must not be older.
    least: Serials,
    /// Objects that its transaction stores, and what ends it.
    txn: Option<(Vec<Oid>, Vec<u8>)>,
}

impl Someone {
    fn new(driver: &mut Driver) -> Self {
        let at_hand = std::mem::replace(&mut driver.is_disk_at_hand, true);
        let id = driver.connect();
        driver.is_disk_at_hand = at_hand;
        Self {
            id,
            calls: Vec::new(),
            reader: FrameReader::new(usize::MAX),
            least: BTreeMap::new(),
            txn: None,
        }
    }

    fn ask(&mut self, driver: &mut Driver, random: &mut Random, latest: &Serials) {
        match random.below(10) {
            0..3 => {
                let count = 1 + random.below(20);
                let oids: Vec<u64> = (0..count).map(|_| random.below(6) as u64).collect();
                self.calls.extend(loads(driver, &oids));
            }
            3 => {
                let time = Value::Float(2e9);
                let call = driver.call(9, "pack", vec![time, Value::Bool(false)]);
                self.calls.extend(call);
            }
            _ if self.txn.is_none() => {
                driver.pass_time();
                let mut oids: Vec<u64> = (0..1 + random.below(3))
                    .map(|_| random.below(6) as u64)
                    .collect();
                oids.sort_unstable();
                oids.dedup();
                let data: Vec<Vec<u8>> = oids
                    .iter()
                    .map(|_| some_data(random.below(LENS.len()).min(random.below(LENS.len()))))
                    .collect();
                let stores: Vec<_> = oids
                    .iter()
                    .zip(&data)
                    .map(|(oid, data)| {
                        let serial = latest.get(&Oid(*oid));
                        (*oid, serial.copied().unwrap_or(Tid::ZERO), &data[..])
                    })
                    .collect();
                let (calls, finish) = driver.transaction(&stores);
                self.calls.extend(calls);
                self.txn = Some((oids.into_iter().map(Oid).collect(), finish));
            }
            _ => {}
        }
    }

    /// Takes some of what it is sent.
    fn take(&mut self, driver: &mut Driver, len: usize, latest: &mut Serials) {
        self.reader.receive(&driver.take_some(self.id, len));
        while let Some(frame) = self.reader.next().unwrap() {
            let Value::Tuple(parts) = driver.decoded(&frame) else {
                panic!("{frame:?}");
            };
            self.hear(driver, &parts, latest);
        }
    }

    fn hear(&mut self, driver: &mut Driver, parts: &[Value], latest: &mut Serials) {
        let is_exception = parts[1] != Value::Int(0) && parts[1] != Value::Bool(false);
        match (&parts[0], &parts[3]) {
            (_, Value::Tuple(args)) if parts[2] == Value::text("invalidateTransaction") => {
                let (Value::List(oids) | Value::Tuple(oids)) = &args[1] else {
                    panic!("{args:?}");
                };
                for oid in oids {
                    self.changed(Oid::from_slice(oid.string().unwrap()).unwrap(), &args[0]);
                }
            }
            (_, _) if parts[2] == Value::text("info") => {}
            // A load, of an object that is there or is not.
            (Value::Tuple(ids), Value::Tuple(result)) if !is_exception => {
                let oid = Oid::from_slice(ids[0].string().unwrap()).unwrap();
                let data = result[0].string().unwrap();
                let serial = Tid::from_slice(result[1].string().unwrap()).unwrap();
                assert_eq!(result[2], Value::None);
                assert!(serial >= self.least.get(&oid).copied().unwrap_or_default());
                self.least.insert(oid, serial);
                let kind = usize::from(data[0] - b'a');
                assert!(*data == some_data(kind), "{oid} {serial}");
            }
            (Value::Tuple(_), _) => assert!(is_exception),
            (Value::Int(1), conflicts) => {
                let (_, finish) = self.txn.as_ref().unwrap();
                if is_exception {
                    self.txn = None;
                } else if matches!(conflicts, Value::List(them) | Value::Tuple(them)
                    if them.is_empty())
                {
                    self.calls.extend(finish);
                } else {
                    // It is rolled back with its client.
                    self.txn = None;
                    driver.hang_up(self.id);
                }
            }
            (Value::Int(2), tid) => {
                assert!(!is_exception, "{tid:?}");
                for oid in self.txn.take().unwrap().0 {
                    self.changed(oid, tid);
                    latest.insert(oid, self.least[&oid]);
                }
            }
            (Value::Int(9), _) => {}
            _ => panic!("{parts:?}"),
        }
    }

    fn changed(&mut self, oid: Oid, tid: &Value) {
        let tid = Tid::from_slice(tid.string().unwrap()).unwrap();
        let before = self.least.insert(oid, tid);
        assert!(before.is_none_or(|before| before <= tid));
    }
}

/// Lengths of objects: in the buffer of a glance, behind it, and in pieces.
const LENS: [usize; 6] = [
    100,
    7000,
    9000,
    400_000,
    WHOLE_LOAD_LEN_MAX + 1,
    WHOLE_LOAD_LEN_MAX + 700_000,
];

fn some_data(kind: usize) -> Vec<u8> {
    vec![b'a' + kind as u8; LENS[kind]]
}

/// Xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// The job to be run next: of each queue the first, but for reads.
fn some_job(driver: &Driver, random: &mut Random) -> usize {
    let at = random.below(driver.jobs.len());
    let lane = driver.jobs[at].1.lane();
    match lane {
        Lane::Read => at,
        _ => driver
            .jobs
            .iter()
            .position(|(_, job)| job.lane() == lane)
            .unwrap(),
    }
}

#[test]
fn whatever_comes_together_each_client_is_told_of_it_in_order() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().unwrap());
    let (seed, rounds) = (number("FUZZ_SEED", 1_u64), number("FUZZ_ROUNDS", 20_000));
    for round in seed..seed + rounds.div_ceil(5000) {
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(round) | 1);
        println!("FUZZ_SEED={round}");
        let disk = Arc::new(PartlyCold::new());
        let encoding = ENCODINGS[round as usize % 2];
        let mut driver = Driver::new(disk.clone(), Path::new("Data.fs"), encoding);
        driver.end_turn();
        driver.is_disk_at_hand = false;
        let mut latest = Serials::new();
        let mut all: Vec<_> = (0..4).map(|_| Someone::new(&mut driver)).collect();
        for step in 0..20_000 {
            if step % 300 == 0 {
                // All in memory, or nothing.
                disk.cool_from(if random.below(2) == 0 { 0 } else { u64::MAX });
            }
            let at = random.below(all.len());
            let someone = &mut all[at];
            match random.below(20) {
                0 if random.below(20) == 0 => driver.hang_up(someone.id),
                0..4 if someone.calls.len() < 100_000 => {
                    someone.ask(&mut driver, &mut random, &latest)
                }
                0..9 if driver.server.wants_input(someone.id) => {
                    let len = [100, 65_536, 65_536, 300_000][random.below(4)];
                    let len = len.min(someone.calls.len());
                    let calls: Vec<u8> = someone.calls.drain(..len).collect();
                    driver.server.receive(someone.id, &calls);
                }
                9..12 => someone.take(
                    &mut driver,
                    [100, 50_000, 400_000][random.below(3)],
                    &mut latest,
                ),
                12..16 if !driver.jobs.is_empty() => {
                    let job = some_job(&driver, &mut random);
                    driver.run_job_at(job, random.below(10) == 0);
                }
                _ => {}
            }
            driver.serve(someone.id);
            driver.end_turn();
            if driver.closed.contains(&all[at].id) {
                driver.closed.clear();
                all[at] = Someone::new(&mut driver);
            }
        }
        // All is answered in the end.
        driver.is_disk_at_hand = true;
        for _ in 0..2000 {
            for someone in &mut all {
                driver.end_turn();
                if driver.server.wants_input(someone.id) {
                    let len = someone.calls.len().min(65_536);
                    let calls: Vec<u8> = someone.calls.drain(..len).collect();
                    driver.server.receive(someone.id, &calls);
                }
                driver.serve(someone.id);
                driver.end_turn();
                someone.take(&mut driver, usize::MAX, &mut latest);
                if driver.closed.contains(&someone.id) {
                    driver.closed.clear();
                    *someone = Someone::new(&mut driver);
                }
            }
        }
        for someone in &all {
            assert!(someone.calls.is_empty() && someone.txn.is_none());
            assert!(!driver.server.has_output(someone.id));
        }
    }
}
