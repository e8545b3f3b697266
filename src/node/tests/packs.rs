//! Packs that the log orders.

use super::*;
use crate::storage::format::Status;
use crate::storage::iterate::Transactions;

impl Many {
    /// Orders a pack of all that is there.
    fn order_pack(&mut self) {
        let (at, now) = (self.primary(), self.now);
        self.node(at)
            .order_pack(Token(90), "1".to_owned(), Tid::MAX, now);
        self.follow(at);
        self.settle();
        assert!(matches!(self.nodes[at].answers.pop(), Some(Ok(_))));
    }

    /// The transactions in a data file, each with its status.
    fn contents(&self, at: usize) -> Vec<(Tid, Status)> {
        let file = self.nodes[at].disk.open("Data.fs".as_ref(), OpenMode::Read);
        let file = file.unwrap();
        let tail = file.len().unwrap();
        let txns = Transactions::from_pos(file, 4, tail);
        let txns = txns.map_while(Result::ok);
        let finished = txns.filter(|txn| txn.header.status != Status::Voted);
        finished
            .map(|txn| (txn.header.tid, txn.header.status))
            .collect()
    }

    fn checkpoint(&mut self) {
        self.pass(2 * CHECKPOINT_INTERVAL);
    }
}

#[test]
fn all_nodes_pack_one_after_the_other_and_end_with_the_same() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    // The root, again and again.
    for _ in 0..5 {
        many.commit(0, 10);
    }
    for at in 0..3 {
        many.nodes[at].packing = Some(Vec::new());
    }
    many.order_pack();
    many.pass(10 * LEASE);
    let is_at_it = |many: &Many| -> Vec<usize> {
        let waits = |at: &usize| !many.nodes[*at].packing.as_ref().unwrap().is_empty();
        (0..3).filter(waits).collect()
    };
    for _ in 0..3 {
        let [at] = is_at_it(&many)[..] else {
            panic!("{:?} pack at once", is_at_it(&many));
        };
        // What is committed meanwhile is in the new file, too.
        many.commit(7, 10);
        while is_at_it(&many) == [at] {
            many.step_packs(at);
        }
        many.pass(10 * LEASE);
    }
    many.checkpoint();
    let expected = many.contents(0);
    assert_eq!(expected.len(), 4, "{expected:?}");
    assert_eq!(expected[0].1, Status::Packed);
    for at in 0..3 {
        assert_eq!(many.contents(at), expected, "{at}");
        let packed = &many.nodes[at].packed;
        assert!(
            matches!(&packed[..], [end] if matches!(end.result, Ok(Some(_)))),
            "{packed:?}"
        );
        assert_eq!(many.node(at).packs_due().count(), 0);
        many.kill(at);
        many.start(at);
        many.view();
        // It is known to be done.
        many.pass(5 * LEASE);
        assert_eq!(many.nodes[at].packed.len(), 1);
    }
}

#[test]
fn a_pack_of_a_node_that_was_killed_is_done_by_the_next_process() {
    for steps in 0..3 {
        let mut many = Many::three();
        many.start_all();
        many.pass(3 * LEASE);
        many.commit(0, 10);
        many.commit(0, 10);
        let at = many.primary();
        many.nodes[at].packing = Some(Vec::new());
        many.order_pack();
        many.pass(10 * LEASE);
        for _ in 0..steps {
            many.step_packs(at);
        }
        let is_switched = many.nodes[at].disk.identify("Data.fs.old".as_ref()).is_ok();
        assert_eq!(is_switched, steps > 0, "{steps}");
        many.nodes[at].packing = None;
        let is_done = !many.nodes[at].packed.is_empty();
        assert_eq!(is_done, steps > 1);
        many.kill(at);
        many.start(at);
        many.view();
        many.pass(20 * LEASE);
        many.commit(1, 10);
        many.checkpoint();
        for other in 0..3 {
            assert_eq!(many.contents(other), many.contents(at), "{steps}");
            assert_eq!(many.contents(other).len(), 2);
            assert_eq!(many.nodes[other].packed.len(), 1);
        }
    }
}

#[test]
fn a_node_that_gets_a_copy_packs_what_its_donor_has_yet_to_pack() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(0, 10);
    many.commit(0, 10);
    for at in 0..3 {
        many.nodes[at].packing = Some(Vec::new());
    }
    let lost = (many.primary() + 1) % 3;
    many.kill(lost);
    many.order_pack();
    many.nodes[lost].disk = Arc::new(MemoryDisk::new());
    many.nodes[lost].disk_number = 2;
    many.start(lost);
    many.view();
    many.pass(4 * LEASE);
    for at in 0..3 {
        many.nodes[at].packing.as_mut().unwrap().clear();
        many.nodes[at].packing = None;
        many.kill(at);
        many.start(at);
        many.view();
        many.pass(4 * LEASE);
    }
    many.pass(20 * LEASE);
    many.checkpoint();
    for at in 0..3 {
        assert_eq!(many.contents(at).len(), 1, "{at}");
        assert_eq!(many.contents(at), many.contents(lost));
    }
}

#[test]
fn a_copy_that_comes_while_a_node_packs_is_packed_instead() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(0, 10);
    many.commit(0, 10);
    let at = (many.primary() + 1) % 3;
    many.nodes[at].packing = Some(Vec::new());
    many.order_pack();
    many.pass(10 * LEASE);
    assert_eq!(many.nodes[at].packing.as_ref().unwrap().len(), 1);
    // More than a journal keeps.
    many.cut_off = Some(at);
    many.view();
    many.pass(3 * LEASE);
    for token in 1..8 {
        many.commit(token, 20_000);
    }
    many.checkpoint();
    many.cut_off = None;
    many.view();
    many.pass(10 * LEASE);
    assert_eq!(many.applied(at), many.applied(many.primary()));
    many.step_packs(at);
    many.nodes[at].packing = None;
    many.pass(10 * LEASE);
    many.checkpoint();
    for other in 0..3 {
        assert_eq!(many.contents(other), many.contents(at), "{other}");
        assert_eq!(many.nodes[other].packed.len(), 1);
    }
    let expected = many.contents(at);
    assert_eq!((expected.len(), expected[0].1), (8, Status::Packed));
}
