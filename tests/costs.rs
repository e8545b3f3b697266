//! What an operation costs in allocations: how many, and how many bytes.
//!
//! Times mean little on a machine that does other things meanwhile; these counts are the same
//! wherever and whenever they are taken. A change that adds an allocation to a load, or one per
//! client to an invalidation, fails here. Who finds a better way lowers the bound.
//!
//! Counted is what the server does between the bytes that a client sends and those that it gets,
//! without sockets; and the jobs of the disk, which is in memory.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

mod driver;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use driver::Driver;
use standby::ids::{ClientId, Tid};
use standby::storage::memory::MemoryDisk;
use standby::zeo::Encoding;

/// Counts what the thread that runs a test allocates.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
    /// What is not freed. Other threads would free what was allocated here, but there are none.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn note(len: usize) {
    COUNT.set(COUNT.get() + 1);
    BYTES.set(BYTES.get() + len as u64);
    hold(len as i64);
}

fn hold(len: i64) {
    HELD.set(HELD.get() + len);
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "there is no other way to see what is allocated")]
// SAFETY: all is left to `System`, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        note(new_size);
        hold(-(layout.size() as i64));
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        hold(-(layout.size() as i64));
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// How often something was allocated, and how many bytes in all.
#[derive(Clone, Copy, Debug)]
struct Cost {
    count: u64,
    bytes: u64,
}

fn cost(action: impl FnOnce()) -> Cost {
    let before = (COUNT.get(), BYTES.get());
    action();
    Cost {
        count: COUNT.get() - before.0,
        bytes: BYTES.get() - before.1,
    }
}

/// Says what each of `count` operations has cost, and that it must be no more.
#[track_caller]
fn assert_each(what: &str, count: u64, cost: Cost, allocations_max: f64, bytes_max: u64) {
    let each = cost.count as f64 / count as f64;
    let bytes = cost.bytes / count;
    println!("{what}: {each:.2} allocations, {bytes} bytes");
    assert!(
        each <= allocations_max && bytes <= bytes_max,
        "{what}: {each:.2} allocations and {bytes} bytes, where {allocations_max} and {bytes_max} \
        were enough"
    );
}

const OBJECTS: u64 = 1000;
const OBJECT_LEN: usize = 1024;
const ENCODINGS: [Encoding; 2] = [Encoding::Z, Encoding::M];

/// A server with objects, and a client of it.
fn served(encoding: Encoding) -> (Driver, ClientId) {
    let mut driver = Driver::new(Arc::new(MemoryDisk::new()), Path::new("Data.fs"), encoding);
    let id = driver.connect();
    let data = [b'x'; OBJECT_LEN];
    let stores: Vec<_> = (0..OBJECTS)
        .map(|oid| (oid, Tid::ZERO, &data[..]))
        .collect();
    driver.commit(id, &stores);
    (driver, id)
}

/// Executes calls and drops what is answered, without allocations of its own.
fn run(driver: &mut Driver, id: ClientId, calls: &[u8]) {
    driver.send(id, calls);
    assert!(driver.server.has_output(id));
    driver.drop_output(id);
}

/// The cost of calls that are made for the second time: what is kept for later is there then.
fn cost_of_calls(driver: &mut Driver, id: ClientId, calls: &[u8]) -> Cost {
    run(driver, id, calls);
    cost(|| run(driver, id, calls))
}

/// The cost of a transaction that changes the first `objects` objects.
fn cost_of_commit(driver: &mut Driver, id: ClientId, objects: u64) -> Cost {
    let data = [b'y'; OBJECT_LEN];
    let serial = driver.current(id, 0);
    let stores: Vec<_> = (0..objects).map(|oid| (oid, serial, &data[..])).collect();
    let (calls, finish) = driver.transaction(&stores);
    driver.pass_time();
    cost(|| {
        run(driver, id, &calls);
        run(driver, id, &finish);
    })
}

#[test]
fn a_load() {
    for encoding in ENCODINGS {
        let (mut driver, id) = served(encoding);
        // What was received, and what is sent.
        let calls = driver.load(7, Tid::MAX);
        let cost = cost_of_calls(&mut driver, id, &calls);
        assert_each("a load", 1, cost, 2.0, 1200);
        // The same, for all of them; what is sent is one piece for each 16 KB.
        let calls: Vec<u8> = (0..64).flat_map(|oid| driver.load(oid, Tid::MAX)).collect();
        let cost = cost_of_calls(&mut driver, id, &calls);
        assert_each("one of 64 loads", 64, cost, 0.25, 1300);
    }
}

#[test]
fn a_load_of_an_older_revision() {
    for encoding in ENCODINGS {
        let (mut driver, id) = served(encoding);
        let serial = driver.current(id, 7);
        let tid = driver.commit(id, &[(7, serial, b"new")]);
        let calls: Vec<u8> = (0..64).flat_map(|_| driver.load(7, tid)).collect();
        let cost = cost_of_calls(&mut driver, id, &calls);
        let (allocations, bytes) = match encoding {
            Encoding::Z => (11.0, 6500),
            Encoding::M => (9.0, 5700),
        };
        assert_each("a load of an older revision", 64, cost, allocations, bytes);
    }
}

#[test]
fn a_commit() {
    for encoding in ENCODINGS {
        let bounds = match encoding {
            Encoding::Z => [(1, 53.0, 11_600), (100, 1100.0, 430_000)],
            Encoding::M => [(1, 45.0, 8300), (100, 900.0, 350_000)],
        };
        for (objects, allocations, bytes) in bounds {
            let (mut driver, id) = served(encoding);
            cost_of_commit(&mut driver, id, objects);
            let cost = cost_of_commit(&mut driver, id, objects);
            let what = format!("a commit of {objects}");
            assert_each(&what, 1, cost, allocations, bytes);
        }
    }
}

#[test]
fn an_invalidation_for_each_client() {
    for encoding in ENCODINGS {
        let (mut driver, id) = served(encoding);
        cost_of_commit(&mut driver, id, 1);
        let alone = cost_of_commit(&mut driver, id, 1);
        let others: Vec<ClientId> = (0..100).map(|_| driver.connect()).collect();
        cost_of_commit(&mut driver, id, 1);
        for other in &others {
            assert!(!driver.take(*other).is_empty());
        }
        let with_others = cost_of_commit(&mut driver, id, 1);
        let cost = Cost {
            count: with_others.count - alone.count,
            bytes: with_others.bytes - alone.bytes,
        };
        // What is sent to it, as long as it is not sent.
        assert_each("an invalidation", 100, cost, 1.3, 600);
    }
}

#[test]
fn a_connection() {
    for encoding in ENCODINGS {
        let (mut driver, _) = served(encoding);
        for _ in 0..10 {
            driver.connect();
        }
        let cost = cost(|| {
            for _ in 0..100 {
                driver.connect();
            }
        });
        let (allocations, bytes) = match encoding {
            Encoding::Z => (22.0, 3200),
            Encoding::M => (19.0, 2200),
        };
        assert_each("a connection", 100, cost, allocations, bytes);
    }
}

#[test]
fn an_idle_connection_holds_little() {
    for encoding in ENCODINGS {
        let (mut driver, id) = served(encoding);
        let held = HELD.get();
        for _ in 0..100 {
            let client = driver.connect();
            // After more than it was ever sent at once, too.
            let calls: Vec<u8> = (0..200)
                .flat_map(|oid| driver.load(oid, Tid::MAX))
                .collect();
            driver.send(client, &calls);
            assert!(driver.take(client).len() > 200 * OBJECT_LEN);
        }
        cost_of_commit(&mut driver, id, 1);
        let each = (HELD.get() - held) / 100;
        println!("an idle connection: {each} bytes");
        assert!(each < 1500, "{each}");
    }
}
