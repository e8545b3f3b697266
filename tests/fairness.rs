//! Whoever asks for much, or for what is slow, keeps the others waiting for a bounded time. Bounded
//! in what the server does meanwhile: nothing here looks at a clock.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod driver;

use std::path::Path;
use std::sync::Arc;

use driver::cold::PartlyCold;
use driver::{Driver, bytes};
use standby::ids::{ClientId, Oid, Tid};
use standby::limits::{
    CALLS_PER_TURN, LONG_READS_MAX, OUTPUT_LEN_PER_TURN, OUTPUT_PAUSE_LEN, SHORT_READS_MAX,
    WAITING_CALLS_MAX,
};
use standby::storage::Lane;
use standby::zeo::{Encoding, Value};

const ENCODINGS: [Encoding; 2] = [Encoding::Z, Encoding::M];

/// Objects below are short, the others long.
const LONG: u64 = 100;
const SHORT_LEN: usize = 100;

/// More than a reply that is copied.
const LONG_LEN: usize = 60_000;

/// The first object that is not in memory after [`Served::cool`].
const COLD: u64 = 50;

struct Served {
    driver: Driver,
    disk: Arc<PartlyCold>,
    /// Where the file ended before the object [`COLD`] came.
    cold_from: u64,
    writer: ClientId,
}

/// A server with 200 objects.
fn served(encoding: Encoding) -> Served {
    let disk = Arc::new(PartlyCold::new());
    let mut driver = Driver::new(disk.clone(), Path::new("Data.fs"), encoding);
    let writer = driver.connect();
    let (short, long) = (vec![b's'; SHORT_LEN], vec![b'l'; LONG_LEN]);
    let mut cold_from = 0;
    for oids in [0..COLD, COLD..LONG, LONG..2 * LONG] {
        let stores: Vec<_> = oids
            .map(|oid| {
                let data = if oid < LONG { &short } else { &long };
                (oid, Tid::ZERO, &data[..])
            })
            .collect();
        if stores[0].0 == COLD {
            cold_from = driver.file_len(writer);
        }
        driver.commit(writer, &stores);
    }
    Served {
        driver,
        disk,
        cold_from,
        writer,
    }
}

impl Served {
    /// From now on half of the short objects, and all long ones, have to be waited for; and what
    /// is waited for is not there until a job is run.
    fn cool(&mut self) {
        self.disk.cool_from(self.cold_from);
        self.driver.is_disk_at_hand = false;
    }

    fn loads(&self, oids: impl Iterator<Item = u64>) -> Vec<u8> {
        oids.flat_map(|oid| self.driver.load(oid, Tid::MAX))
            .collect()
    }
}

fn history(driver: &Driver, msgid: i64) -> Vec<u8> {
    let args = vec![bytes(&Oid(1).to_bytes()), Value::Int(100)];
    driver.call(msgid, "history", args)
}

#[test]
fn a_client_that_sends_many_calls_gets_a_share_of_each_turn() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let (greedy, modest) = (served.driver.connect(), served.driver.connect());
        let many = served.loads((0..1000).map(|n| n % LONG));
        let one = served.loads(0..1);
        served.driver.server.receive(greedy, &many);
        for _ in 0..15 {
            served.driver.server.receive(modest, &one);
            assert!(served.driver.serve(greedy), "more is left");
            assert!(!served.driver.serve(modest));
            served.driver.end_turn();
            assert_eq!(served.driver.frames(greedy).len(), CALLS_PER_TURN);
            assert_eq!(served.driver.frames(modest).len(), 1);
        }
    }
}

#[test]
fn a_client_that_asks_for_large_objects_gets_no_more_bytes_than_its_share() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let greedy = served.driver.connect();
        let many = served.loads((0..100).map(|n| LONG + n % LONG));
        served.driver.server.receive(greedy, &many);
        let mut sent = 0;
        while sent < 100 {
            let more = served.driver.serve(greedy);
            served.driver.end_turn();
            let frames = served.driver.frames(greedy);
            let len: usize = frames.iter().map(|frame| 4 + frame.len()).sum();
            assert!(len < OUTPUT_LEN_PER_TURN + LONG_LEN + 100, "{len}");
            sent += frames.len();
            assert!(more || sent == 100);
            assert!(!frames.is_empty());
        }
    }
}

#[test]
fn hot_objects_are_loaded_while_cold_ones_are_waited_for() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let (cold, hot) = (served.driver.connect(), served.driver.connect());
        served.cool();
        let calls = served.loads(COLD..COLD + 20);
        served.driver.send(cold, &calls);
        assert!(served.driver.frames(cold).is_empty());
        // Nobody reads them. All the others go on as before, this client itself included.
        let calls = served.loads(0..COLD);
        for client in [hot, cold] {
            served.driver.send(client, &calls);
            assert_eq!(served.driver.frames(client).len(), COLD as usize);
        }
        served.driver.is_disk_at_hand = true;
        served.driver.end_turn();
        assert_eq!(served.driver.frames(cold).len(), 20);
    }
}

#[test]
fn reads_of_many_clients_wait_where_they_are_bounded_and_all_are_answered() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let clients: Vec<ClientId> = (0..20).map(|_| served.driver.connect()).collect();
        served.cool();
        let calls = served.loads((0..40).map(|n| COLD + n));
        for client in &clients {
            served.driver.send(*client, &calls);
            assert!(
                !served.driver.server.wants_input(*client),
                "enough of it wait"
            );
        }
        assert_eq!(served.driver.jobs.len(), SHORT_READS_MAX);
        let mut answered = vec![0; clients.len()];
        while served.driver.run_job() {
            served.driver.end_turn();
            assert!(served.driver.jobs.len() <= SHORT_READS_MAX);
            for (client, answered) in clients.iter().zip(&mut answered) {
                *answered += served.driver.frames(*client).len();
            }
            // Who was first had the workers for itself, and is so much ahead.
            let (first, rest) = answered.split_first().unwrap();
            let (least, most) = (rest.iter().min().unwrap(), rest.iter().max().unwrap());
            let is_fair = most - least <= 1 && *first <= most + SHORT_READS_MAX + 1;
            assert!(is_fair, "{answered:?}");
            // Their other calls were not executed as long as so many waited.
            for client in std::mem::take(&mut served.driver.to_serve) {
                served.driver.serve(client);
            }
        }
        const { assert!(WAITING_CALLS_MAX < 40) };
        assert!(answered.iter().all(|count| *count == 40), "{answered:?}");
    }
}

#[test]
fn a_client_that_asks_for_cold_objects_delays_another_one_by_a_few_reads() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let (greedy, modest) = (served.driver.connect(), served.driver.connect());
        served.cool();
        let many = served.loads(COLD..COLD + 30);
        served.driver.send(greedy, &many);
        let one = served.loads(COLD + 40..COLD + 41);
        served.driver.send(modest, &one);
        let mut before = 0;
        while served.driver.frames(modest).is_empty() {
            before += 1;
            assert!(served.driver.run_job());
            served.driver.end_turn();
        }
        assert!(before <= SHORT_READS_MAX + 2, "{before}");
    }
}

#[test]
fn questions_about_the_past_leave_workers_for_loads() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let (greedy, modest) = (served.driver.connect(), served.driver.connect());
        served.cool();
        let many: Vec<u8> = (1..=30)
            .flat_map(|msgid| history(&served.driver, msgid))
            .collect();
        served.driver.send(greedy, &many);
        assert_eq!(served.driver.jobs.len(), LONG_READS_MAX);
        // As if those took for ever.
        let stuck = std::mem::take(&mut served.driver.jobs);
        assert!(stuck.iter().all(|(_, job)| job.lane() == Lane::Read));
        let calls = served.loads(COLD..LONG);
        served.driver.send(modest, &calls);
        let mut answered = 0;
        while served.driver.run_job() {
            served.driver.end_turn();
            answered += served.driver.frames(modest).len();
            for client in std::mem::take(&mut served.driver.to_serve) {
                served.driver.serve(client);
            }
        }
        assert_eq!(answered, (LONG - COLD) as usize);
        // Another one's question is the next but one.
        let question = history(&served.driver, 1);
        served.driver.send(modest, &question);
        served.driver.jobs = stuck;
        for _ in 0..LONG_READS_MAX + 2 {
            served.driver.run_job();
            served.driver.end_turn();
        }
        assert_eq!(served.driver.frames(modest).len(), 1);
    }
}

#[test]
fn nothing_is_read_for_a_client_that_takes_nothing() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let (deaf, other) = (served.driver.connect(), served.driver.connect());
        served.cool();
        let calls = served.loads(LONG..LONG + WAITING_CALLS_MAX as u64);
        served.driver.send(deaf, &calls);
        let mut read = 0;
        while served.driver.run_job() {
            served.driver.end_turn();
            read += 1;
        }
        // What waits for it is a megabyte, and what was on the way when it got so much.
        let enough = OUTPUT_PAUSE_LEN.div_ceil(LONG_LEN) + SHORT_READS_MAX;
        assert!(read <= enough && enough < WAITING_CALLS_MAX, "{read}");
        // That holds up nobody else, and nothing is lost.
        served.driver.send(other, &calls);
        while served.driver.run_job() {
            served.driver.end_turn();
            served.driver.take(other);
        }
        let mut frames = 0;
        for _ in 0..4 {
            frames += served.driver.frames(deaf).len();
            while served.driver.run_job() {
                served.driver.end_turn();
            }
            served.driver.end_turn();
        }
        assert_eq!(frames, WAITING_CALLS_MAX);
    }
}

#[test]
fn what_a_client_waits_for_is_not_read_when_it_is_gone() {
    for encoding in ENCODINGS {
        let mut served = served(encoding);
        let (gone, other) = (served.driver.connect(), served.driver.connect());
        served.cool();
        let calls = served.loads(COLD..COLD + 30);
        served.driver.send(gone, &calls);
        served.driver.send(other, &calls);
        served.driver.hang_up(gone);
        assert_eq!(served.driver.closed, [gone]);
        let mut run = 0;
        let mut answered = 0;
        while served.driver.run_job() {
            served.driver.end_turn();
            answered += served.driver.frames(other).len();
            run += 1;
        }
        assert_eq!(answered, 30);
        assert_eq!(run, 30 + SHORT_READS_MAX);
        // Nothing is left of it that would keep the workers from others.
        let calls = served.loads(COLD..COLD + 30);
        served.driver.send(served.writer, &calls);
        assert_eq!(served.driver.jobs.len(), SHORT_READS_MAX);
    }
}
