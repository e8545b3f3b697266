//! The journal beside a raw loop of writes and syncs on the same disk, in one run.
//!
//!     cargo bench --bench journal -- DIRECTORY [SECONDS]
//!
//! Each line is one size of body and one size of group: entries and megabytes per second of the
//! journal, of a file to which the same bytes are appended, and of one that was filled before, so
//! that a sync has no more to bring to the disk than the bytes. They take turns, so that all
//! see the same disk. The raw loops write the bodies only, and compute nothing.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends it")]
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use standby::ids::{DiskId, Epoch, HistoryId, NodeId, Tid};
use standby::storage::disk::{Disk, File, OpenMode, OsDisk};
use standby::storage::journal::{Create, Entry, Identity, Journal, Options};

const SEGMENT_LEN: u64 = 64 << 20;

/// What one of them has done.
#[derive(Clone, Copy, Default)]
struct Count {
    entries: u64,
    time: Duration,
}

trait Writer {
    /// Writes a group and syncs it.
    fn write(&mut self, body: &Bytes, count: usize);
}

impl Writer for Journal {
    fn write(&mut self, body: &Bytes, count: usize) {
        let mut last = self.positions().last;
        let group: Vec<Entry> = (0..count)
            .map(|_| {
                let tid = Tid(last.seq.0);
                let entry = Entry::new(&last, Epoch::ZERO, 1, tid, vec![body.clone()]);
                let entry = entry.unwrap();
                last = entry.point();
                entry
            })
            .collect();
        self.append(&group).unwrap();
        self.sync().unwrap();
        self.release(last.seq).unwrap();
    }
}

/// A file that begins anew where a segment would end.
struct Raw {
    file: Arc<dyn File>,
    pos: u64,
    is_filled: bool,
}

impl Raw {
    fn new(disk: &dyn Disk, path: &Path, is_filled: bool) -> Self {
        let file = disk.open(path, OpenMode::CreateNew).unwrap();
        if is_filled {
            let piece = vec![1; 1 << 20];
            for pos in (0..2 * SEGMENT_LEN).step_by(piece.len()) {
                file.write_at(&mut [IoSlice::new(&piece)], pos).unwrap();
            }
        } else {
            let _ = file.allocate(0, 2 * SEGMENT_LEN);
        }
        file.sync().unwrap();
        Self {
            file,
            pos: 0,
            is_filled,
        }
    }
}

impl Writer for Raw {
    fn write(&mut self, body: &Bytes, count: usize) {
        let len = (count * body.len()) as u64;
        if self.pos + len > SEGMENT_LEN {
            self.pos = 0;
            if !self.is_filled {
                self.file.set_len(0).unwrap();
                let _ = self.file.allocate(0, 2 * SEGMENT_LEN);
            }
        }
        let mut bufs: Vec<_> = (0..count).map(|_| IoSlice::new(body)).collect();
        self.file.write_at(&mut bufs, self.pos).unwrap();
        self.file.sync().unwrap();
        self.pos += len;
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(directory) = args.next() else {
        println!("usage: journal DIRECTORY [SECONDS]");
        return;
    };
    let seconds: f64 = args.next().map_or(1.0, |text| text.parse().unwrap());
    let directory = PathBuf::from(directory).join(format!("journal-bench-{}", std::process::id()));
    let disk = Arc::new(OsDisk::default());
    disk.create_directories(&directory).unwrap();
    println!("  body  group   journal              appended to a file   written over a file");
    for body_len in [1 << 10, 64 << 10] {
        for group_count in [1, 8, 64] {
            measure(&disk, &directory, body_len, group_count, seconds);
        }
    }
    disk.remove_tree(&directory).unwrap();
}

fn measure(disk: &Arc<OsDisk>, directory: &Path, len: usize, group: usize, seconds: f64) {
    let path = directory.join("run");
    disk.create_directories(&path).unwrap();
    let body: Bytes = (0..len).map(|at| (at % 251) as u8).collect();
    let identity = Identity {
        history: HistoryId([1; 16]),
        node: NodeId::new("bench").unwrap(),
        disk: DiskId([2; 16]),
    };
    let options = Options {
        create: Some(Create::new(identity)),
        segment_len: SEGMENT_LEN,
        window_len: 0,
    };
    let (mut journal, _) = Journal::open(disk.clone(), &path.join("journal"), options).unwrap();
    let mut appended = Raw::new(&**disk, &path.join("appended"), false);
    let mut over = Raw::new(&**disk, &path.join("over"), true);
    let mut writers: [&mut dyn Writer; 3] = [&mut journal, &mut appended, &mut over];
    let mut counts = [Count::default(); 3];
    let turn = Duration::from_secs_f64(seconds / 10.0);
    for _ in 0..10 {
        for (writer, count) in writers.iter_mut().zip(&mut counts) {
            let begun = Instant::now();
            while begun.elapsed() < turn {
                writer.write(&body, group);
                count.entries += group as u64;
            }
            count.time += begun.elapsed();
        }
    }
    let shown: Vec<String> = counts.iter().map(|count| show(count, len)).collect();
    println!("{len:6} {group:6}   {}", shown.join("   "));
    drop(journal);
    disk.remove_tree(&path).unwrap();
}

fn show(count: &Count, body_len: usize) -> String {
    let per_second = count.entries as f64 / count.time.as_secs_f64();
    let megabytes = per_second * body_len as f64 / 1e6;
    format!("{per_second:7.0}/s {megabytes:6.1} MB/s")
}
