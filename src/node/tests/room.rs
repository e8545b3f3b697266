//! A disk that is full.

use std::io::ErrorKind;

use super::*;
use crate::entry::sha256;
use crate::ids::Digest;
use crate::log_disk::Hold;

impl Many {
    /// Three whose disks can be full.
    fn three_on_memory() -> (Self, Vec<Arc<MemoryDisk>>) {
        let mut many = Self::three();
        let disks: Vec<Arc<MemoryDisk>> = (0..3).map(|_| Arc::default()).collect();
        for (one, disk) in many.nodes.iter_mut().zip(&disks) {
            one.disk = disk.clone();
        }
        many.start_all();
        many.pass(3 * LEASE);
        (many, disks)
    }

    /// A client finishes a transaction with a blob at this node.
    fn finish_with_a_blob(&mut self, at: usize, token: u64) {
        let (path, now) = (PathBuf::from("blobs/tmp/1"), self.now);
        self.nodes[at].disk.replace(&path, &[b"content"]).unwrap();
        let name = BlobName {
            oid: Oid(token),
            len: 7,
            digest: sha256(&[b"content"]),
        };
        let finish = Self::finish_of(token, b"data".to_vec(), vec![(name, path)]);
        self.node(at).finish(finish, now);
        self.follow(at);
        self.settle();
    }
}

fn told(many: &mut Many, at: usize) -> String {
    let notices = many.node(at).notices();
    let texts: Vec<String> = notices.map(|(_, text)| text.clone()).collect();
    texts.join("\n")
}

#[test]
fn a_primary_that_cannot_apply_leaves_its_office_to_another() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let old = many.primary();
    let (through, now) = (many.applied(old), many.now);
    let hold = Hold::NoSpace("No space left on device".to_owned());
    many.node(old).on_hold(through, hold.clone(), now);
    many.follow(old);
    assert!(!many.node(old).is_primary());
    many.pass(3 * LEASE);
    let new = many.primary();
    assert_ne!(new, old);
    many.commit(2, 10);
    let said = told(&mut many, old);
    assert!(
        said.contains("another node is to be primary, as there is no room here"),
        "{said}"
    );

    // There was room when it was tried again. A replica has no office to leave.
    assert!(said.contains("there is room again"), "{said}");
    let now = many.now;
    many.node(old).on_hold(through, hold, now);
    many.follow(old);
    many.pass(3 * LEASE);
    assert_eq!(many.primary(), new);
    let said = told(&mut many, old);
    assert_eq!(said.matches("another node is to be").count(), 1, "{said}");
}

/// The replica tells nothing of it, but for its clients.
#[test]
fn the_end_of_a_renewal_that_came_to_nothing_is_told() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let primary = many.primary();
    let other = (primary + 1) % 3;
    let epoch = many.node(primary).office.unwrap();
    many.node(other).office = Some(epoch);
    many.pass(LEASE);
    let ended = |many: &Many, at: usize| {
        let others = many.nodes[at].others.iter();
        let ended = others.filter(|it| matches!(it, Output::Office(false, _)));
        ended.count()
    };
    assert_eq!((ended(&many, primary), ended(&many, other)), (0, 1));
    assert_eq!(many.node(primary).office, Some(epoch));
    assert_eq!(many.node(other).office, None);
}

/// Each entry that is committed tries to apply what waits for the blob.
#[test]
fn a_damaged_blob_is_fetched_by_one_at_a_time() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let at = many.primary();
    let blob = NamedBlob {
        seq: Seq(9),
        tid: Tid(90),
        storage: "1".to_owned(),
        name: BlobName {
            oid: Oid(5),
            len: 10,
            digest: Digest([5; 32]),
        },
    };
    let (through, now) = (many.applied(at), many.now);
    let hold = || Hold::Blob(blob.clone());
    let fetches = |many: &mut Many| {
        many.follow(at);
        let others = std::mem::take(&mut many.nodes[at].others);
        let ids = others.into_iter().filter_map(|it| match it {
            Output::FetchBlobs { id, .. } => Some(id),
            _ => None,
        });
        ids.collect::<Vec<_>>()
    };
    many.node(at).on_hold(through, hold(), now);
    many.node(at).on_hold(through, hold(), now);
    let [id] = fetches(&mut many)[..] else {
        panic!("not one");
    };
    let why = "nobody has it".to_owned();
    let not = NotFetched { why, gone: None };
    many.node(at).on_blobs(id, Err(not), now);
    assert!(fetches(&mut many).is_empty());
    many.node(at).on_hold(through, hold(), now);
    let [again] = fetches(&mut many)[..] else {
        panic!("not one");
    };
    assert_ne!(again, id);
}

#[test]
fn a_transaction_whose_blobs_have_no_room_is_lost_and_the_node_goes_on() {
    let (mut many, disks) = Many::three_on_memory();
    let at = many.primary();
    disks[at].leave_room("journal".as_ref(), 3, ErrorKind::StorageFull);
    for token in [1, 2] {
        many.finish_with_a_blob(at, token);
        let is_lost =
            |it: &Output| matches!(it, Output::Outcome(of, Outcome::Lost) if of.0 == token);
        let one = &many.nodes[at];
        assert!(one.others.iter().any(is_lost), "{:?}", one.others);
        assert_eq!(one.stopped, None);
    }
    assert_eq!(disks[at].names("journal/blobs".as_ref()).unwrap().len(), 0);
    let said = told(&mut many, at);
    assert_eq!(said.matches("with blobs are refused").count(), 1, "{said}");
    // What needs no room there is committed.
    let seq = many.commit(3, 10);
    assert_eq!(many.primary(), at);
    disks[at].make_room();
    many.finish_with_a_blob(at, 4);
    let overview = many.node(at).overview().unwrap();
    assert_eq!(overview.last.seq, seq.next(), "it is proposed");
}

#[test]
fn a_pack_whose_end_has_no_room_ends_when_there_is_and_nobody_waits_for_it() {
    let (mut many, disks) = Many::three_on_memory();
    for _ in 0..3 {
        many.commit(0, 10);
    }
    for disk in &disks {
        disk.leave_room("journal".as_ref(), 3, ErrorKind::StorageFull);
    }
    let (at, now) = (many.primary(), many.now);
    let node = many.node(at);
    node.order_pack(Token(90), "1".to_owned(), Tid::MAX, now);
    many.follow(at);
    many.settle();
    many.pass(10 * LEASE);
    let packed = |many: &Many| many.nodes.iter().map(|one| one.packed.len()).sum::<usize>();
    let waits = (0..3).find(|at| many.node(*at).is_packing()).unwrap();
    assert_eq!(packed(&many), 0);
    assert!(
        !many.node(waits).is_at_a_pack(),
        "a stop need not wait for it"
    );
    let said = told(&mut many, waits);
    let text = "that a pack has ended is not noted, as the disk is full";
    assert_eq!(said.matches(text).count(), 1, "{said}");
    many.commit(1, 10);
    for disk in &disks {
        disk.make_room();
    }
    many.pass(10 * LEASE);
    assert_eq!(packed(&many), 3);
    assert!(many.nodes.iter().all(|one| one.stopped.is_none()));
}
