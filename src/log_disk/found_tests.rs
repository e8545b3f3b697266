//! A new history behind another one.

use super::tests::{Node, OPTIONS, epoch, identity};
use super::*;

#[test]
fn a_new_history_goes_on_behind_all_that_the_old_one_had() {
    let mut node = Node::found(&["main"]);
    node.store("main", 10, b"a");
    node.apply();
    node.log.checkpoint().unwrap();
    node.store("main", 11, b"b");
    let last = node.last;
    let Node {
        disk, directories, ..
    } = node;
    drop(node.log);
    let again = Found {
        identity: identity(1),
        settings: Settings::default(),
    };
    let error = LogDisk::found(disk.clone(), &directories, &OPTIONS, &again).unwrap_err();
    assert!(matches!(error, LogDiskError::Exists { .. }), "{error}");

    let found = Found {
        identity: identity(2),
        settings: Settings {
            jump: Tid(500),
            ..Settings::default()
        },
    };
    // A copy that was not completed is none of the new history.
    let half = disk.read(Path::new("main.fs")).unwrap();
    for (name, len) in [("main.fs.copy", 4), ("main.fs.copy.index", 9)] {
        disk.replace(Path::new(name), &[&half[..len]]).unwrap();
    }
    LogDisk::found(disk.clone(), &directories, &OPTIONS, &found).unwrap();
    let mut node = Node::open(disk.clone(), directories).unwrap();
    for name in ["main.fs.copy", "main.fs.copy.index"] {
        assert!(disk.identify(Path::new(name)).is_err(), "{name}");
    }
    assert_eq!(node.start.history, identity(2).history);
    assert_eq!(node.start.promised, last.epoch);
    let log = &node.start.log;
    assert_eq!(
        (log.last.seq, log.applied, log.last_tid),
        (Seq(2), Seq(2), Tid(11))
    );
    assert_ne!(log.last.digest, last.digest);
    assert_eq!(log.settings.jump, Tid(500));
    assert_eq!(node.data("main").unwrap(), "b");
    // Nobody knows whether the second was committed.
    let rows = node.log.journal.epochs();
    assert_eq!(rows.rows()[0].tids, Some((Tid(10), Tid(10))));
    // The old journal is kept.
    let old = format!("journal/history-{}", identity(1).history);
    assert!(disk.names(Path::new(&old)).unwrap().len() > 4);

    // Nobody claims an epoch that was promised.
    node.epoch = epoch(2);
    node.change(500, &Change::Barrier(Settings::default()));
    node.apply();
    assert_eq!(node.log.last_tid_of("main"), Some(Tid(500)));
    // Neither what nobody knows to be committed, nor what is in front of the jump.
    let lineage = node.log.lineage();
    let tids = [9, 10, 11, 499, 500].map(|tid| lineage.contains(Tid(tid)));
    assert_eq!(tids, [false, true, false, false, true]);
    let node = node.restart().unwrap();
    assert_eq!(node.start.log.last.seq, Seq(3));
}
