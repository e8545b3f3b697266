//! Data that are damaged, and copied anew.

use super::*;

/// In data of this text a bit is turned.
const TEXT: [u8; 10] = [1; 10];

impl Many {
    /// Three that have committed something, in data files; and a replica of them.
    fn three_with_data() -> (Self, usize) {
        let mut many = Self::three();
        many.start_all();
        many.pass(3 * LEASE);
        for token in 1..5 {
            many.commit(token, 10);
        }
        many.pass(2 * CHECKPOINT_INTERVAL);
        let replica = (many.primary() + 1) % 3;
        (many, replica)
    }

    fn data(&self, at: usize) -> Vec<u8> {
        self.nodes[at].disk.read("Data.fs".as_ref()).unwrap()
    }

    fn damage(&self, at: usize) {
        let data = self.data(at);
        let pos = data.windows(TEXT.len()).position(|it| it == TEXT);
        let disk = &self.nodes[at].disk;
        let file = disk.open("Data.fs".as_ref(), OpenMode::Write).unwrap();
        let mut slices = [std::io::IoSlice::new(&[7])];
        file.write_at(&mut slices, pos.unwrap() as u64).unwrap();
    }

    fn is_damaged(&self, at: usize) -> bool {
        !self.data(at).windows(TEXT.len()).any(|it| it == TEXT)
    }

    fn ask(&mut self, at: usize, from: Option<&str>) {
        let (now, from) = (self.now, from.map(|name| NodeId::new(name).unwrap()));
        self.node(at).fetch(Token(70), from, now);
        self.follow(at);
    }

    /// A thread makes the copies that wait for it.
    fn make_copies(&mut self, at: usize) {
        let waiting = self.nodes[at].copying.as_mut().unwrap();
        for copy in std::mem::take(waiting) {
            let (copied, now) = (self.copy(at, &copy), self.now);
            self.node(at).on_copied(copy.id, copied, now);
            self.follow(at);
        }
    }

    /// The data files that the server was told of.
    fn data_told(&mut self, at: usize) -> usize {
        let others = std::mem::take(&mut self.nodes[at].others);
        let told = others.iter().filter(|it| matches!(it, Output::Data(_)));
        told.count()
    }

    /// Applied, and what is in the log, on stable storage.
    fn log(&mut self, at: usize) -> (Seq, Seq, Epoch) {
        let overview = self.node(at).overview().unwrap();
        (overview.applied, overview.last.seq, overview.promised)
    }
}

#[test]
fn a_node_gets_the_data_of_another_one_while_it_goes_on() {
    let (mut many, at) = Many::three_with_data();
    many.damage(at);
    many.data_told(at);
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    let primary = many.primary();
    // Not from who has the most to do.
    let wanted = many.nodes[at].copying.as_ref().unwrap()[0].clone();
    assert!(wanted.is_anew && !wanted.from.starts_with(many.nodes[primary].name));
    many.commit(5, 10);
    many.make_copies(at);
    many.commit(6, 10);
    many.pass(LEASE);
    let said = many.said(at);
    assert!(
        said[0].starts_with("the data of this node are those of "),
        "{said:?}"
    );
    assert_eq!(many.data_told(at), 1);
    assert!(!many.is_damaged(at));
    let last = many.commit(7, 10);
    many.pass(LEASE);
    assert_eq!(many.applied(at), last);
    many.pass(2 * CHECKPOINT_INTERVAL);
    assert_eq!(many.data(at), many.data(primary));
    // It was never away.
    let (node, _) = many.nodes[at].running.as_ref().unwrap();
    let overview = node.overview().unwrap();
    assert!(overview.settings.members.is_voter(&overview.me));
    let log = many.log(at);
    many.kill(at);
    many.start(at);
    many.view();
    assert_eq!(many.log(at), log);
}

#[test]
fn what_was_committed_while_a_copy_was_made_is_applied_again_before_anybody_reads() {
    let (mut many, at) = Many::three_with_data();
    many.damage(at);
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    // The copy is as of now, and comes later.
    let copy = many.nodes[at].copying.as_mut().unwrap().remove(0);
    let copied = many.copy(at, &copy);
    let last = many.commit(5, 10);
    many.pass(LEASE);
    assert_eq!(many.applied(at), last);
    many.data_told(at);
    let now = many.now;
    many.node(at).on_copied(copy.id, copied, now);
    many.follow(at);
    let others = std::mem::take(&mut many.nodes[at].others);
    let data = others.iter().find_map(|it| match it {
        Output::Data(data) => Some(&data.storages["1"]),
        _ => None,
    });
    assert!(data.unwrap().index.get(Oid(5)).is_some());
    assert!(!many.is_damaged(at));
    assert!(many.said(at)[0].starts_with("the data of this node are those of "));
}

#[test]
fn a_copy_that_is_ahead_waits_until_this_node_is_as_far() {
    let (mut many, at) = Many::three_with_data();
    many.damage(at);
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    // What the others commit does not come here.
    many.cut_off = Some(at);
    many.view();
    many.pass(3 * LEASE);
    let last = many.commit(5, 10);
    many.make_copies(at);
    assert!(many.is_damaged(at) && many.applied(at) < last);
    assert!(many.said(at).is_empty());
    many.cut_off = None;
    many.view();
    many.pass(3 * LEASE);
    assert!(!many.is_damaged(at));
    assert_eq!((many.said(at).len(), many.applied(at)), (1, last));

    // It does not wait for ever.
    many.damage(at);
    many.ask(at, None);
    many.cut_off = Some(at);
    many.view();
    many.pass(3 * LEASE);
    many.commit(6, 10);
    many.make_copies(at);
    many.pass(crate::limits::REFRESH_WAIT_MAX + LEASE);
    let said = many.said(at);
    assert!(said[1].contains("is not applied here"), "{said:?}");
    assert!(many.is_damaged(at));
}

#[test]
fn who_cannot_fetch_says_why() {
    let mut many = Many::three();
    let arbiter = many.add("x", NodeKind::Arbiter, &[]);
    many.start_all();
    many.pass(4 * LEASE);
    many.commit(1, 10);
    let primary = many.primary();
    let at = (primary + 1) % 3;
    let me = many.nodes[at].name;
    many.ask(primary, None);
    many.ask(arbiter, None);
    for from in ["x", "nobody", me] {
        many.ask(at, Some(from));
    }
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    many.ask(at, None);
    let first = many.nodes[primary].name;
    assert_eq!(
        many.said(primary),
        [format!(
            "no: {first} is the primary: 'standbyctl swap' first, then fetch here"
        )]
    );
    assert_eq!(
        many.said(arbiter),
        ["no: x is an arbiter, and has no data".to_owned()]
    );
    let said = many.said(at);
    for (said, from) in said.iter().zip(["x", "nobody", me]) {
        let expected = format!("no: {from} is not another node that is here and has all the data");
        assert_eq!(*said, expected);
    }
    assert!(said[3].starts_with("no: fetch is being done (copying from "));
    assert_eq!(said.len(), 4);
}

#[test]
fn a_donor_that_is_lost_ends_it_and_it_may_be_asked_for_again() {
    let (mut many, at) = Many::three_with_data();
    many.damage(at);
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    let from = many.nodes[at].copying.as_ref().unwrap()[0].from.clone();
    let donor = many.at_address(&from).unwrap();
    many.kill(donor);
    many.make_copies(at);
    let said = many.said(at);
    assert!(
        said[0].starts_with("no: the data file of this node is as it was: nobody is there"),
        "{said:?}"
    );
    many.pass(3 * LEASE);
    many.ask(at, None);
    many.make_copies(at);
    many.pass(LEASE);
    assert!(!many.is_damaged(at));
    assert_eq!(many.said(at).len(), 2);
}

#[test]
fn who_has_become_primary_meanwhile_keeps_its_data() {
    let (mut many, at) = Many::three_with_data();
    many.damage(at);
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    let (old, now) = (many.primary(), many.now);
    let name = NodeId::new(many.nodes[at].name);
    many.node(old).swap(Token(3), name, now);
    many.node(old).on_drained(now);
    many.follow(old);
    many.pass(3 * LEASE);
    assert_eq!(many.primary(), at);
    many.make_copies(at);
    let said = many.said(at);
    assert!(said[0].contains("is the primary by now"), "{said:?}");
    assert!(many.is_damaged(at));
    // Nothing is left of it that would be in the way.
    many.commit(9, 10);
    many.ask(old, None);
    many.pass(LEASE);
    let said = many.said(old);
    assert!(
        said.last().unwrap().starts_with("the data of this node"),
        "{said:?}"
    );
}

#[test]
fn a_pack_waits_until_the_copy_has_its_place() {
    let (mut many, at) = Many::three_with_data();
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    let (primary, now) = (many.primary(), many.now);
    many.node(primary)
        .order_pack(Token(90), "1".to_owned(), Tid::MAX, now);
    many.follow(primary);
    many.pass(20 * LEASE);
    assert!(many.nodes[at].packed.is_empty());
    many.make_copies(at);
    many.pass(20 * LEASE);
    for at in 0..3 {
        assert_eq!(many.nodes[at].packed.len(), 1, "{at}");
        assert_eq!(many.node(at).packs_due().count(), 0, "{at}");
    }
    many.pass(2 * CHECKPOINT_INTERVAL);
    assert_eq!(many.data(at), many.data(primary));
    // Who packs does not fetch.
    many.nodes[at].packing = Some(Vec::new());
    let now = many.now;
    many.commit(1, 20);
    many.node(primary)
        .order_pack(Token(91), "1".to_owned(), Tid::MAX, now);
    many.follow(primary);
    many.pass(20 * LEASE);
    many.ask(at, None);
    let said = many.said(at);
    assert!(
        said.last().unwrap().contains("packs: try again"),
        "{said:?}"
    );
}

#[test]
fn a_node_that_cannot_go_on_without_a_copy_gets_one_though_it_was_asked_to_fetch() {
    let (mut many, at) = Many::three_with_data();
    many.damage(at);
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    // More than a journal keeps.
    many.cut_off = Some(at);
    many.view();
    many.pass(3 * LEASE);
    for token in 5..12 {
        many.commit(token, 20_000);
    }
    many.pass(2 * CHECKPOINT_INTERVAL);
    many.cut_off = None;
    many.view();
    many.pass(10 * LEASE);
    assert_eq!(
        many.nodes[at].copying.as_ref().unwrap().len(),
        1,
        "one at a time"
    );
    many.make_copies(at);
    many.pass(20 * LEASE);
    many.make_copies(at);
    many.pass(10 * LEASE);
    let said = many.said(at);
    assert!(said[0].contains("is copied in any case"), "{said:?}");
    assert_eq!(many.applied(at), many.applied(many.primary()));
    assert!(!many.is_damaged(at));
}

#[test]
fn a_loss_that_is_accepted_meanwhile_ends_it() {
    let (mut many, at) = Many::three_with_data();
    many.nodes[at].copying = Some(Vec::new());
    many.ask(at, None);
    let copy = many.nodes[at].copying.as_mut().unwrap().remove(0);
    let copied = many.copy(at, &copy);
    for other in (0..3).filter(|other| *other != at) {
        many.kill(other);
    }
    many.pass(3 * LEASE);
    let now = many.now;
    many.node(at)
        .promote(Token(10), true, HistoryId([9; 16]), now);
    many.node(at).on_copied(copy.id, copied, now);
    many.follow(at);
    many.pass(3 * LEASE);
    let said = many.said(at);
    assert!(said[0].contains("a loss was accepted here"), "{said:?}");
    assert_eq!(many.nodes[at].stopped, None);
    assert_eq!(many.history(at), Some(HistoryId([9; 16])));
    many.commit(6, 10);
}
