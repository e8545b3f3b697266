//! How many transactions a node's disk takes in a second: appended to the journal and synced, and
//! applied to the data file, in groups of some lengths; and what of the time is the applying.
//!
//! ```sh
//! cargo bench --bench log_disk -- DIRECTORY [SECONDS]
//! ```

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a measurement")]
#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::entry::{Entry, Point};
use standby::ids::{DiskId, Epoch, HistoryId, NodeId, Oid, Tid};
use standby::log_disk::{Directories, DiskAction, Found, LogDisk, Options, StoragePaths};
use standby::replica::settings::{Kind, Settings};
use standby::storage::disk::{Disk, OsDisk};
use standby::storage::journal::Identity;
use standby::storage::transfer::{Record, Transfer};

/// Objects that are written in turns.
const OBJECTS: u64 = 100_000;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(directory) = args.next() else {
        println!("usage: log_disk DIRECTORY [SECONDS]");
        return;
    };
    let seconds: f64 = args.next().map_or(1.0, |text| text.parse().unwrap());
    let directory = PathBuf::from(directory).join(format!("log-disk-bench-{}", std::process::id()));
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::default());
    println!("  data  group   transactions/s   append, us   apply, us   checkpoint, ms");
    for len in [1 << 10, 64 << 10] {
        for group in [1, 8, 64] {
            disk.create_directories(&directory).unwrap();
            measure(&disk, &directory, len, group, seconds);
            disk.remove_tree(&directory).unwrap();
        }
    }
}

struct Log {
    last: Point,
    epoch: Epoch,
    tid: u64,
    data: Bytes,
}

impl Log {
    fn entry(&mut self) -> Entry {
        self.tid += 1;
        let transfer = Transfer {
            storage: "1".to_owned(),
            status: b' ',
            user: Bytes::new(),
            description: Bytes::new(),
            extension: Bytes::new(),
            records: vec![Record {
                oid: Oid(self.tid % OBJECTS),
                data: Some(self.data.clone()),
                same_as: None,
            }],
            blobs: Vec::new(),
        };
        let (kind, body) = (Kind::Transaction.number(), transfer.encode().unwrap());
        let entry = Entry::new(&self.last, self.epoch, kind, Tid(self.tid), body).unwrap();
        self.last = entry.point();
        entry
    }
}

fn measure(disk: &Arc<dyn Disk>, directory: &Path, len: usize, group: u64, seconds: f64) {
    let node = NodeId::new("bench").unwrap();
    let identity = Identity {
        history: HistoryId([1; 16]),
        node,
        disk: DiskId([2; 16]),
    };
    let paths = StoragePaths {
        data: directory.join("Data.fs"),
        blobs: None,
    };
    let directories = Directories {
        journal: directory.join("journal"),
        storages: [("1".to_owned(), paths)].into(),
    };
    let settings = Settings::default();
    let options = Options {
        // Only the one at the end.
        checkpoint_len: u64::MAX,
        ..Options::default()
    };
    let found = Found { identity, settings };
    LogDisk::found(disk.clone(), &directories, &options, &found).unwrap();
    let (mut log_disk, start) = LogDisk::open(disk.clone(), &directories, &options).unwrap();
    let mut log = Log {
        last: start.log.last,
        epoch: Epoch { counter: 1, node },
        tid: 0,
        data: (0..len).map(|at| (at % 251) as u8).collect(),
    };
    let (mut append_time, mut apply_time) = (Duration::ZERO, Duration::ZERO);
    let mut count = 0;
    while (append_time + apply_time).as_secs_f64() < seconds {
        let entries: Vec<Entry> = (0..group).map(|_| log.entry()).collect();
        let through = log.last.seq;
        let begun = Instant::now();
        log_disk.run(DiskAction::Append(entries)).unwrap();
        append_time += begun.elapsed();
        let begun = Instant::now();
        log_disk.run(DiskAction::Apply { through }).unwrap();
        apply_time += begun.elapsed();
        count += 1;
    }
    let begun = Instant::now();
    log_disk.checkpoint().unwrap();
    let checkpoint = begun.elapsed().as_secs_f64() * 1e3;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(count);
    let per_second = f64::from(count) * group as f64 / (append_time + apply_time).as_secs_f64();
    println!(
        "{len:6} {group:6} {per_second:16.0} {:12.0} {:11.0} {checkpoint:16.1}",
        each(append_time),
        each(apply_time),
    );
}
