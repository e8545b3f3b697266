//! Blobs between their coming and their place: for peers, damaged, and wanted again.

use super::tests::{Node, blob, transfer};
use super::*;
use crate::storage::memory::MemoryDisk;
use crate::storage::transfer::BlobName;

/// A node with an entry that is not applied yet, and names a blob.
fn with_a_blob() -> (Node, BlobName, PathBuf) {
    let mut node = Node::found(&["main"]);
    let (name, content) = blob(b"content");
    node.log.put_blob(name, &content).unwrap();
    node.append(Kind::Transaction, 10, transfer("main", b"a", &[name]));
    let staged = Path::new("journal/blobs").join(name.digest.to_string());
    (node, name, staged)
}

fn contents(file: &dyn File) -> Vec<u8> {
    let mut content = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut content, 0).unwrap();
    content
}

#[test]
fn a_blob_is_found_for_a_peer_before_it_is_applied_and_after() {
    let (mut node, name, staged) = with_a_blob();
    let open = |node: &Node, storage, tid| node.log.blobs().open(storage, Tid(tid), &name).unwrap();
    assert_eq!(contents(&*open(&node, "main", 10).unwrap()), b"content");
    node.apply();
    node.log.checkpoint().unwrap();
    assert!(node.disk.identify(&staged).is_err());
    // So that nothing is open any more.
    let mut node = node.restart().unwrap();
    assert!(open(&node, "main", 11).is_none());
    assert!(open(&node, "other", 10).is_none());
    assert_eq!(contents(&*open(&node, "main", 10).unwrap()), b"content");
    // One that is damaged is not given to anybody.
    node = node.restart().unwrap();
    let place = node.log.appliers["main"]
        .blobs()
        .unwrap()
        .file(Oid(1), Tid(10));
    node.disk.replace(&place, &[b"CONTENT"]).unwrap();
    assert!(open(&node, "main", 10).is_none());
}

#[test]
fn a_damaged_blob_is_missing_and_its_transaction_waits_for_it() {
    let (node, name, staged) = with_a_blob();
    let mut node = node;
    node.store("main", 11, b"b");
    let (disk, directories) = (node.disk.clone(), node.directories.clone());
    drop(node);
    disk.replace(&staged, &[b"CONTENT"]).unwrap();
    let mut node = Node::open(disk.clone(), directories).unwrap();
    assert!(disk.identify(&staged).is_err());
    let lost = NamedBlob {
        seq: Seq(1),
        tid: Tid(10),
        storage: "main".to_owned(),
        name,
    };
    let expected = std::slice::from_ref(&lost);
    assert_eq!(node.log.lost_blobs().unwrap(), expected);
    let apply = DiskAction::Apply { through: Seq(2) };
    let event = node.log.run(apply.clone()).unwrap();
    assert_eq!(event, Some(Event::Applied { through: Seq(0) }));
    assert_eq!(node.log.hold(), Some(&Hold::Blob(lost)));
    assert!(!node.log.is_full());
    // It is fetched, and all goes on.
    node.log.put_blob(name, &blob(b"content").1).unwrap();
    assert_eq!(node.log.lost_blobs().unwrap(), []);
    let event = node.log.run(apply).unwrap();
    assert_eq!(event, Some(Event::Applied { through: Seq(2) }));
    assert_eq!(node.log.hold(), None);
    assert_eq!(node.data("main").unwrap(), "b");
}

#[test]
fn a_blob_that_rots_is_noticed_when_a_peer_wants_it() {
    let (node, name, staged) = with_a_blob();
    node.disk.replace(&staged, &[b"CONTENT"]).unwrap();
    let opened = node.log.blobs().open("main", Tid(10), &name).unwrap();
    assert!(opened.is_none());
    assert!(node.disk.identify(&staged).is_err());
    assert_eq!(node.log.lost_blobs().unwrap().len(), 1);
}

#[test]
fn blobs_that_were_not_looked_at_when_starting_are_looked_at_later() {
    let (node, _, staged) = with_a_blob();
    let blobs = node.log.blobs();
    assert!(!blobs.check_some(0).unwrap());
    let mut node = node.restart().unwrap();
    // As if it had been too long then.
    let (digest, _) = *node.log.staged.first().unwrap();
    let forget = |node: &Node| node.log.blobs.unchecked_for_tests(digest);
    forget(&node);
    let blobs = node.log.blobs();
    assert!(blobs.check_some(6).unwrap());
    assert!(!blobs.check_some(7).unwrap());
    forget(&node);
    node.disk.replace(&staged, &[b"CONTENT"]).unwrap();
    // Right in time.
    node.log.run(DiskAction::Apply { through: Seq(1) }).unwrap();
    assert!(matches!(node.log.hold(), Some(Hold::Blob(_))));
    assert!(node.disk.identify(&staged).is_err());
}

#[test]
fn a_file_that_the_server_has_becomes_a_blob() {
    let mut node = Node::found(&["main"]);
    let (name, _) = blob(b"content");
    let from = Path::new("main-blobs/tmp/standby-1.tmp");
    let error = node.log.take_blob(name, from).unwrap_err();
    assert!(error.to_string().contains("standby-1.tmp"), "{error}");
    node.disk.replace(from, &[b"contents"]).unwrap();
    let error = node.log.take_blob(name, from).unwrap_err();
    assert!(matches!(error, LogDiskError::WrongBlob { .. }), "{error}");
    node.disk.replace(from, &[b"content"]).unwrap();
    node.log.take_blob(name, from).unwrap();
    assert!(node.disk.identify(from).is_err());
    node.append(Kind::Transaction, 10, transfer("main", b"a", &[name]));
    node.apply();
    let place = node.log.appliers["main"]
        .blobs()
        .unwrap()
        .file(Oid(1), Tid(10));
    assert_eq!(node.disk.read(&place).unwrap(), b"content");
}

#[test]
fn a_blob_that_is_wanted_again_outlives_the_entry_that_it_was_for() {
    let (mut node, name, staged) = with_a_blob();
    node.apply();
    let body = transfer("main", b"b", &[name]);
    let entry = node.entry(Kind::Transaction, 11, body);
    assert_eq!(
        node.log
            .missing_blobs(std::slice::from_ref(&entry))
            .unwrap(),
        []
    );
    node.log.checkpoint().unwrap();
    node.log.run(DiskAction::Append(vec![entry])).unwrap();
    node.apply();
    node.log.checkpoint().unwrap();
    assert!(node.disk.identify(&staged).is_err());
    // One whose entry will not come.
    let (name, content) = blob(b"other");
    node.log.put_blob(name, &content).unwrap();
    let staged = Path::new("journal/blobs").join(name.digest.to_string());
    assert!(node.disk.identify(&staged).is_ok());
    node.log.forget_blob(&name).unwrap();
    assert!(node.disk.identify(&staged).is_err());
}

/// An entry comes, is applied, and settled.
fn pass(node: &mut Node, entry: Entry) {
    let through = entry.header().seq;
    let event = node.log.run(DiskAction::Append(vec![entry])).unwrap();
    assert_eq!(event, Some(Event::Synced { through }));
    node.log.run(DiskAction::Apply { through }).unwrap();
    node.log.checkpoint().unwrap();
}

#[test]
fn a_blob_stays_until_all_entries_that_name_it_have_come_and_been_applied() {
    let mut node = Node::found(&["main"]);
    let (name, content) = blob(b"the same of two clients");
    let body = || transfer("main", b"a", &[name]);
    let first = node.entry(Kind::Transaction, 10, body());
    let second = node.entry(Kind::Transaction, 11, body());
    let third = node.entry(Kind::Transaction, 12, body());
    let missing = |node: &Node, entry: &Entry| {
        let missing = node.log.missing_blobs(std::slice::from_ref(entry));
        missing.unwrap().len()
    };
    assert_eq!(missing(&node, &first), 1);
    node.log.put_blob(name, &content).unwrap();
    assert_eq!(missing(&node, &second), 0);
    // It is asked for again, as the first answer was late.
    assert_eq!(missing(&node, &second), 0);
    pass(&mut node, first);
    pass(&mut node, second);
    // Nobody has said that it is needed for this one.
    assert_eq!(missing(&node, &third), 1);
}

#[test]
fn a_blob_that_two_clients_bring_stays_for_both() {
    let mut node = Node::found(&["main"]);
    let content = b"the same of two clients";
    let (name, _) = blob(content);
    for number in 1..=2 {
        let from = format!("main-blobs/tmp/standby-{number}.tmp");
        let from = Path::new(&from);
        node.disk.replace(from, &[content]).unwrap();
        node.log.take_blob(name, from).unwrap();
    }
    for tid in [10, 11] {
        node.append(Kind::Transaction, tid, transfer("main", b"a", &[name]));
        node.apply();
        node.log.checkpoint().unwrap();
    }
    let staged = Path::new("journal/blobs").join(name.digest.to_string());
    assert!(node.disk.identify(&staged).is_err(), "it is not needed");
}

#[test]
fn a_blob_that_does_not_come_to_its_end_leaves_nothing_behind() {
    let node = Node::found(&["main"]);
    let (name, content) = blob(b"content");
    let blobs = node.log.blobs();
    let mut first = blobs.begin(name).unwrap();
    first.write(&[content[0].slice(..3)]).unwrap();
    // Another thread is faster.
    blobs.put(name, &content).unwrap();
    drop(first);
    let names = node.disk.names(Path::new("journal/blobs")).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
    let mut wrong = blobs.begin(name).unwrap();
    wrong.write(&[content[0].slice(..3)]).unwrap();
    let error = blobs.end(wrong).unwrap_err();
    assert!(matches!(error, LogDiskError::WrongBlob { .. }), "{error}");
    let names = node.disk.names(Path::new("journal/blobs")).unwrap();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_blob_that_is_expected_stays_until_it_is_no_more() {
    let mut node = Node::found(&["main"]);
    let (name, content) = blob(b"content");
    let staged = Path::new("journal/blobs").join(name.digest.to_string());
    let is_here = |node: &Node| node.disk.identify(&staged).is_ok();
    let blobs = node.log.blobs();
    // No entry comes.
    for number in [5, 6] {
        blobs.expect(name.digest, number);
    }
    blobs.put(name, &content).unwrap();
    node.log.checkpoint().unwrap();
    node.log.expect_no_more(5).unwrap();
    assert!(is_here(&node), "6 wants it");
    node.log.expect_no_more(6).unwrap();
    assert!(!is_here(&node));
    // One comes: then it stays until that is applied, and is not needed any more.
    blobs.expect(name.digest, 7);
    blobs.put(name, &content).unwrap();
    node.append(Kind::Transaction, 10, transfer("main", b"a", &[name]));
    node.log.expect_no_more(7).unwrap();
    assert!(is_here(&node));
    node.apply();
    node.log.checkpoint().unwrap();
    assert!(!is_here(&node));
    // It may stay for longer than that.
    blobs.expect(name.digest, 8);
    blobs.put(name, &content).unwrap();
    node.append(Kind::Transaction, 11, transfer("main", b"b", &[name]));
    node.apply();
    node.log.checkpoint().unwrap();
    assert!(is_here(&node));
    node.log.expect_no_more(8).unwrap();
    assert!(!is_here(&node));
}

#[test]
fn a_blob_whose_name_may_not_last_is_not_here() {
    let memory = Arc::new(MemoryDisk::new());
    let mut node = Node::found_on(memory.clone(), &["main"]);
    let (name, content) = blob(b"content");
    memory.forget_names(true);
    node.log.put_blob(name, &content).unwrap_err();
    memory.forget_names(false);
    let entry = node.entry(Kind::Transaction, 10, transfer("main", b"a", &[name]));
    let missing = |node: &Node| {
        let missing = node.log.missing_blobs(std::slice::from_ref(&entry));
        missing.unwrap().len()
    };
    assert_eq!(missing(&node), 1);
    node.log.put_blob(name, &content).unwrap();
    assert_eq!(missing(&node), 0);
    // Once it is there for good it stays, whatever becomes of one that comes again.
    memory.forget_names(true);
    node.log.put_blob(name, &content).unwrap_err();
    memory.forget_names(false);
    assert_eq!(missing(&node), 0);
    let append = DiskAction::Append(vec![entry.clone()]);
    let event = node.log.run(append).unwrap();
    assert!(matches!(event, Some(Event::Synced { .. })), "{event:?}");
}
