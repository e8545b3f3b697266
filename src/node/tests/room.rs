//! A disk that is full.

use super::*;
use crate::ids::Digest;
use crate::log_disk::Hold;

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
