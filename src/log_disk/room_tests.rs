//! A disk of the journal that is full: all is tried again, and nothing ends.

use std::io;

use super::tests::{Node, blob, epoch, order, transfer};
use super::*;
use crate::ids::{DiskId, NodeId};
use crate::replica::members::Voter;
use crate::storage::memory::MemoryDisk;

/// A node on a disk that can be full.
fn found_on_memory(storages: &[&str]) -> (Node, Arc<MemoryDisk>) {
    let memory = Arc::new(MemoryDisk::new());
    (Node::found_on(memory.clone(), storages), memory)
}

/// The disk of the journal has room for so many bytes.
fn leave_room(memory: &MemoryDisk, len: u64) {
    memory.leave_room("journal".as_ref(), len, io::ErrorKind::StorageFull);
}

fn names(memory: &MemoryDisk) -> Vec<String> {
    let names = memory.names("journal".as_ref()).unwrap();
    let names = names.into_iter().map(|name| name.into_string().unwrap());
    names.collect()
}

#[test]
fn a_disk_without_room_and_a_quota_that_is_used_up_are_the_same() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        let (mut node, memory) = found_on_memory(&["main"]);
        node.store("main", 10, b"a");
        node.apply();
        memory.leave_room("journal".as_ref(), 0, kind);
        assert_eq!(node.log.checkpoint().unwrap(), Seq(0));
        let error = node.log.run(DiskAction::Promise(epoch(4))).unwrap_err();
        assert!(error.is_for_lack_of_room(), "{error}");
        memory.make_room();
        assert_eq!(node.log.checkpoint().unwrap(), Seq(1));
        node.log.run(DiskAction::Promise(epoch(4))).unwrap();
    }
}

#[test]
fn blobs_that_have_no_room_leave_nothing_behind_and_may_come_again() {
    let (mut node, memory) = found_on_memory(&["main"]);
    let (one, _) = blob(b"one");
    let (other, _) = blob(b"the other");
    let tmp = |name: &str| Path::new("main-blobs/tmp").join(name);
    let bring = || {
        node.disk.replace(&tmp("1"), &[b"one"]).unwrap();
        node.disk.replace(&tmp("2"), &[b"the other"]).unwrap();
        node.log.take_blobs(&[(one, tmp("1")), (other, tmp("2"))])
    };
    // As much as for the first, and for a part of the second.
    memory.leave_room("journal".as_ref(), 8, io::ErrorKind::StorageFull);
    let error = bring().unwrap_err();
    assert!(error.is_for_lack_of_room(), "{error}");
    let names = || memory.names(Path::new("journal/blobs")).unwrap();
    assert_eq!(names().len(), 0, "{:?}", names());
    memory.make_room();
    bring().unwrap();
    assert_eq!(names().len(), 2, "{:?}", names());
    for (tid, name) in [(10, one), (11, other)] {
        let body = transfer("main", b"a", &[name]);
        node.append(Kind::Transaction, tid, body);
    }
    node.apply();
    node.log.checkpoint().unwrap();
    assert_eq!(names().len(), 0, "nobody waits for them: {:?}", names());
}

#[test]
fn a_pack_whose_end_has_no_room_is_not_noted_before_there_is() {
    let (mut node, memory) = found_on_memory(&["main"]);
    node.store("main", 10, b"a");
    order(&mut node);
    node.apply();
    leave_room(&memory, 10);
    for _ in 0..2 {
        let error = node.log.note_packed("main", Seq(2)).unwrap_err();
        assert!(error.is_for_lack_of_room(), "{error}");
        assert!(!node.log.pack_orders()["main"].is_done);
    }
    memory.make_room();
    node.log.note_packed("main", Seq(2)).unwrap();
    let mut node = node.restart().unwrap();
    node.apply();
    assert!(node.log.pack_orders()["main"].is_done);
}

#[test]
fn an_arbiter_without_room_records_it_later() {
    let (mut node, memory) = found_on_memory(&[]);
    let position = Position {
        epoch: epoch(3),
        seq: Seq(8),
    };
    let voter = Voter {
        node: NodeId::new("n2").unwrap(),
        disk: DiskId([2; 16]),
    };
    let members = Members {
        voters: [voter].into(),
        arbiter: None,
    };
    let record = DiskAction::Record(position, members);
    leave_room(&memory, 10);
    let error = node.log.run(record.clone()).unwrap_err();
    assert!(error.is_for_lack_of_room(), "{error}");
    memory.make_room();
    let event = node.log.run(record).unwrap();
    assert_eq!(event, Some(Event::Recorded(position)));
    let start = node.restart().unwrap().start;
    assert_eq!(start.log.before, position);
}

#[test]
fn what_has_no_room_to_be_kept_is_not_cut_before_there_is() {
    let (mut node, memory) = found_on_memory(&["main"]);
    let (name, content) = blob(b"content");
    node.log.put_blob(name, &content).unwrap();
    node.store("main", 10, b"a");
    node.apply();
    let applied = node.last;
    node.append(Kind::Transaction, 11, transfer("main", b"b", &[name]));
    node.store("main", 12, &[3; 200]);
    // All of it is noted as synced.
    node.log.checkpoint().unwrap();
    let (before, last) = (names(&memory), node.last);
    let cut = DiskAction::Cut {
        after: applied.seq,
        committed: applied.seq,
    };
    let mut refused = 0;
    for len in 0.. {
        leave_room(&memory, len);
        let error = match node.log.run(cut.clone()) {
            Ok(event) => {
                assert!(matches!(event, Some(Event::Cut { last, .. }) if last == applied));
                break;
            }
            Err(error) => error,
        };
        assert!(error.is_for_lack_of_room(), "{error}");
        assert_eq!(node.log.positions().last, last);
        let mut now = names(&memory);
        now.retain(|name| name != "diverged-blobs");
        assert_eq!(now, before, "with room for {len} bytes");
        refused += 1;
    }
    // The entries are longer than that, and behind them the new mark has none.
    assert!(refused > 200 + 100, "{refused}");
    let count = |what: &str| names(&memory).iter().filter(|it| it.contains(what)).count();
    assert_eq!((count("diverged-n1"), count(".new")), (1, 0));
    let kept = memory.names("journal/diverged-blobs".as_ref()).unwrap();
    assert_eq!(kept.len(), 1, "{kept:?}");
    // All goes on behind it.
    memory.make_room();
    node.last = applied;
    node.store("main", 13, b"c");
    node.apply();
    assert_eq!(node.restart().unwrap().start.log.last.seq, Seq(2));
}

#[test]
fn what_a_cut_has_given_back_is_asked_for_again() {
    let (mut node, memory) = found_on_memory(&["main"]);
    leave_room(&memory, 200_000);
    let mut tid = 10;
    let before = names(&memory).len();
    // A segment that was begun now is in what is left.
    while names(&memory).len() == before {
        tid += 1;
        node.store("main", tid, &[1; 700]);
    }
    node.apply();
    let applied = node.last;
    node.store("main", tid + 1, &[2; 700]);
    node.store("main", tid + 2, &[3; 700]);
    let after = applied.seq;
    let committed = after;
    let cut = node.log.run(DiskAction::Cut { after, committed }).unwrap();
    assert!(matches!(cut, Some(Event::Cut { last, .. }) if last == applied));
    node.last = applied;
    // Others take it meanwhile.
    let taken = |n: u32| memory.replace(format!("journal/other-{n}").as_ref(), &[&[0; 100]]);
    let refused = (0..).find_map(|n| taken(n).err()).unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    let entry = node.entry(Kind::Transaction, tid + 3, transfer("main", &[4; 700], &[]));
    let event = node.log.run(DiskAction::Append(vec![entry])).unwrap();
    assert!(matches!(event, Some(Event::NoRoom { last, .. }) if last == applied));
}

#[test]
fn a_checkpoint_without_room_is_completed_by_a_later_one() {
    let (mut node, memory) = found_on_memory(&["main"]);
    let (mut held, mut unreleased, mut tid) = (0, 0, 10);
    for len in (0..2400).step_by(8) {
        tid += 1;
        memory.make_room();
        node.store("main", tid, &[1; 700]);
        node.apply();
        leave_room(&memory, len);
        let (applied, committed) = (node.log.applied(), node.log.positions().committed);
        // Whatever there is no room for.
        match node.log.checkpoint().unwrap() == applied {
            false => held += 1,
            true if node.log.positions().committed == committed => unreleased += 1,
            true => {}
        }
    }
    assert!(held > 3 && unreleased > 3, "{held} {unreleased}");
    leave_room(&memory, 0);
    node.log.close().unwrap();
    memory.make_room();
    let mut node = Node::open(memory.clone(), node.directories).unwrap();
    node.store("main", tid + 1, b"last");
    node.apply();
    assert_eq!(node.log.checkpoint().unwrap(), node.last.seq);
    assert_eq!(node.log.positions().committed, node.last.seq);
    assert!(node.log.positions().first > Seq(250), "it is released");
    let len = names(&memory).len();
    assert!(len < 20, "{:?}", names(&memory));
}
