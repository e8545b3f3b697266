//! One operation, many times over, and nothing else: for counting instructions.
//!
//!     operations SCENARIO ENCODING COUNT
//!
//! `tests/instructions` runs it under callgrind with two counts; the difference is what so many
//! operations cost, without what the preparations do. As in `tests/costs.rs` there are no sockets,
//! and the disk is in memory.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends it")]

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use driver::Driver;
use standby::ids::{ClientId, Tid};
use standby::storage::memory::MemoryDisk;
use standby::zeo::Encoding;

/// Objects, of so many bytes of data each.
const OBJECTS: u64 = 1000;
const OBJECT_LEN: usize = 1024;

/// Loads that come at once.
const DEPTH: u64 = 16;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [scenario, encoding, count] = arguments[..] else {
        // Cargo runs it without when it runs all benches.
        println!("usage: operations SCENARIO Z|M COUNT");
        return ExitCode::SUCCESS;
    };
    let encoding = if encoding == "Z" {
        Encoding::Z
    } else {
        Encoding::M
    };
    let count: u64 = count.parse().unwrap();
    let mut prepared = Prepared::new(encoding);
    match scenario {
        "load" => prepared.load(count),
        "load-older" => prepared.load_older(count),
        "commit" => prepared.commit(count, 1),
        "commit-100" => prepared.commit(count, 100),
        "invalidate" => prepared.invalidate(count),
        "connect" => prepared.connect(count),
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// A server with objects, and a client of it.
struct Prepared {
    driver: Driver,
    id: ClientId,
    /// Of the objects that are committed.
    serial: Tid,
}

impl Prepared {
    fn new(encoding: Encoding) -> Self {
        let disk = Arc::new(MemoryDisk::new());
        let mut driver = Driver::new(disk, Path::new("Data.fs"), encoding);
        let id = driver.connect();
        let data = [b'x'; OBJECT_LEN];
        let stores: Vec<_> = (0..OBJECTS)
            .map(|oid| (oid, Tid::ZERO, &data[..]))
            .collect();
        let serial = driver.commit(id, &stores);
        Self { driver, id, serial }
    }

    /// Executes calls, and drops what is answered.
    fn run(&mut self, calls: &[u8]) {
        self.driver.send(self.id, calls);
        self.driver.drop_output(self.id);
    }

    /// Loads of current revisions, [`DEPTH`] at a time.
    fn load(&mut self, count: u64) {
        let calls = (0..DEPTH).flat_map(|n| self.driver.load(n * 61, Tid::MAX));
        let calls: Vec<u8> = calls.collect();
        for _ in 0..count / DEPTH {
            self.run(&calls);
        }
    }

    /// The same of a revision that is not current any more.
    fn load_older(&mut self, count: u64) {
        let tid = self.driver.commit(self.id, &[(0, self.serial, b"new")]);
        let calls: Vec<u8> = (0..DEPTH).flat_map(|_| self.driver.load(0, tid)).collect();
        for _ in 0..count / DEPTH {
            self.run(&calls);
        }
    }

    /// Commits that change the first `objects` objects.
    fn commit(&mut self, count: u64, objects: u64) {
        let data = [b'y'; OBJECT_LEN];
        for _ in 0..count {
            let stores: Vec<_> = (0..objects)
                .map(|oid| (oid, self.serial, &data[..]))
                .collect();
            self.serial = self.driver.commit(self.id, &stores);
        }
    }

    /// Invalidations of one object, each commit one for `count` clients.
    fn invalidate(&mut self, count: u64) {
        let others: Vec<ClientId> = (0..count).map(|_| self.driver.connect()).collect();
        for _ in 0..100 {
            self.commit(1, 1);
            for other in &others {
                self.driver.drop_output(*other);
            }
        }
    }

    /// Connections that register and are closed.
    fn connect(&mut self, count: u64) {
        for _ in 0..count {
            let id = self.driver.connect();
            self.driver.hang_up(id);
        }
    }
}
