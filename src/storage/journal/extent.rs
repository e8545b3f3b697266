//! How much of the log there is, for people: told without the disk, and without waiting for whoever
//! has the log at that moment.

use super::Log;
use super::format::SEGMENT_HEADER_LEN;
use super::read::Reader;
use super::segment::Segment;
use crate::ids::{Seq, Tid};

/// What there is of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// The first entry that can be read; the one behind the last if there is none.
    pub first: Seq,
    /// Bytes of all segments
    pub len: u64,
}

/// Some entries of a log, one behind the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Their bytes: exactly if both ends are among the last entries, else within
    /// [`JOURNAL_INDEX_STEP`](crate::limits::JOURNAL_INDEX_STEP) for each end.
    pub len: u64,
    /// The tid of the first transaction among them, or of one soon behind it.
    pub oldest: Option<Tid>,
}

impl Reader {
    /// What there is; `None` if somebody is changing that right now.
    pub fn extent(&self) -> Option<Extent> {
        let log = self.try_log()?;
        let first = log.segments.front()?.header.first();
        let len = log.segments.iter().map(|segment| segment.end).sum();
        Some(Extent { first, len })
    }

    /// The entries behind `after`, up to `to`. `None` if not all of them are there, and if somebody
    /// is changing the log right now.
    pub fn stretch(&self, after: Seq, to: Seq) -> Option<Stretch> {
        if to <= after {
            return Some(Stretch::default());
        }
        stretch(&*self.try_log()?, after, to)
    }
}

fn stretch(log: &Log, after: Seq, to: Seq) -> Option<Stretch> {
    let (first, last) = (log.segments.front()?, log.segments.back()?);
    if after < first.header.before.seq || last.last.seq < to {
        return None;
    }
    let is_of_it = |segment: &&Segment| {
        let Segment { header, last, .. } = segment;
        after < last.seq && header.before.seq < to
    };
    let mut found = Stretch::default();
    for segment in log.segments.iter().filter(is_of_it) {
        let start = match segment.header.before.seq < after {
            true => segment.end_of(after),
            false => SEGMENT_HEADER_LEN as u64,
        };
        let end = match to < segment.last.seq {
            true => segment.end_of(to),
            false => segment.end,
        };
        found.len += end.saturating_sub(start);
        found.oldest = found.oldest.or_else(|| segment.tid_behind(after));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::{Create, Identity, Journal, Options};
    use super::*;
    use crate::entry::Entry;
    use crate::ids::{DiskId, Epoch, HistoryId, NodeId};
    use crate::limits::{JOURNAL_INDEX_STEP, JOURNAL_LATEST_MAX};
    use crate::storage::memory::MemoryDisk;

    const SEGMENT_LEN: u64 = 1 << 20;

    fn open(disk: &Arc<MemoryDisk>) -> Journal {
        let node = NodeId::new("n1").unwrap();
        let options = Options {
            create: Some(Create::new(Identity {
                history: HistoryId([1; 16]),
                node,
                disk: DiskId([2; 16]),
            })),
            segment_len: SEGMENT_LEN,
            window_len: 1,
        };
        Journal::open(disk.clone(), Path::new("journal"), options)
            .unwrap()
            .0
    }

    /// Appends entries, of which each third is no transaction; the length of each.
    fn append(journal: &mut Journal, count: u64, len: usize) -> Vec<u64> {
        let mut lens = Vec::new();
        for _ in 0..count {
            let last = journal.positions().last;
            let epoch = Epoch {
                counter: 1,
                node: NodeId::new("n1").unwrap(),
            };
            let seq = last.seq.next().0;
            let tid = if seq.is_multiple_of(3) {
                Tid::ZERO
            } else {
                Tid(100 + seq)
            };
            let body = vec![Bytes::from(vec![7; len + seq as usize % 50])];
            let entry = Entry::new(&last, epoch, 2, tid, body).unwrap();
            lens.push(entry.header().len_in_segment());
            journal.append(&[entry]).unwrap();
        }
        lens
    }

    #[test]
    fn the_last_entries_are_counted_exactly_and_older_ones_nearly() {
        let disk = Arc::new(MemoryDisk::new());
        let mut journal = open(&disk);
        let mut lens = append(&mut journal, 5000, 300);
        lens.extend(append(&mut journal, 20, 9000));
        journal.sync().unwrap();
        let last = journal.positions().last.seq.0;
        let check = |journal: &Journal| {
            let reader = journal.reader();
            let extent = reader.extent().unwrap();
            assert_eq!(extent.first, Seq(1));
            let headers = journal.shared.log().segments.len() as u64 * SEGMENT_HEADER_LEN as u64;
            assert!(headers > SEGMENT_HEADER_LEN as u64, "more than one segment");
            assert_eq!(extent.len, lens.iter().sum::<u64>() + headers);
            for after in 0..last {
                let expected: u64 = lens[after as usize..].iter().sum();
                let found = reader.stretch(Seq(after), Seq(last)).unwrap();
                let first = (after + 1..).find(|seq| seq % 3 != 0).unwrap();
                let first = (first <= last).then_some(Tid(100 + first));
                if last - after <= JOURNAL_LATEST_MAX as u64 / 2 {
                    assert_eq!((found.len, found.oldest), (expected, first), "{after}");
                } else {
                    assert!(
                        found.len.abs_diff(expected) <= JOURNAL_INDEX_STEP,
                        "{after}"
                    );
                    assert!(found.oldest >= first, "{after}");
                }
            }
            let one = reader.stretch(Seq(last - 8), Seq(last - 7)).unwrap();
            assert_eq!(one.len, lens[last as usize - 8]);
        };
        check(&journal);
        drop(journal);
        check(&open(&disk));
    }

    #[test]
    fn of_what_is_not_there_nothing_is_said() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        let reader = journal.reader();
        assert_eq!(reader.stretch(Seq(0), Seq(0)), Some(Stretch::default()));
        assert_eq!(reader.stretch(Seq(0), Seq(1)), None);
        append(&mut journal, 9000, 300);
        journal.sync().unwrap();
        let before = reader.extent().unwrap();
        journal.release(Seq(9000)).unwrap();
        let after = reader.extent().unwrap();
        assert!(after.len < before.len && after.first > before.first);
        let behind = Seq(after.first.0 - 2);
        assert_eq!(reader.stretch(behind, Seq(9000)), None);
        assert!(reader.stretch(behind.next(), Seq(9000)).is_some());
        journal.cut_after(Seq(8999), Seq(0)).unwrap().unwrap();
        assert_eq!(reader.stretch(Seq(8999), Seq(9000)), None);
    }

    #[test]
    fn who_only_looks_does_not_wait() {
        let mut journal = open(&Arc::new(MemoryDisk::new()));
        append(&mut journal, 2, 10);
        let reader = journal.reader();
        let busy = journal.shared.log();
        assert_eq!(
            (reader.extent(), reader.stretch(Seq(0), Seq(1))),
            (None, None)
        );
        drop(busy);
        assert!(reader.extent().is_some() && reader.stretch(Seq(0), Seq(1)).is_some());
    }
}
