//! Two nodes and an arbiter.

use super::*;

#[test]
fn an_arbiter_joins_without_data() {
    let mut many = Many::new();
    many.add("a", NodeKind::Data, &["a"]);
    let b = many.add("b", NodeKind::Data, &[]);
    let c = many.add("c", NodeKind::Arbiter, &[]);
    many.start_all();
    many.pass(4 * LEASE);
    assert_eq!(many.primary(), 0);
    many.commit(1, 10);
    for (token, change) in [
        (60, MemberChange::Add(NodeId::new("b").unwrap())),
        (61, MemberChange::AddArbiter(NodeId::new("c").unwrap())),
    ] {
        let now = many.now;
        many.node(0).change_members(Token(token), change, now);
        many.follow(0);
        many.pass(2 * LEASE);
    }
    let said = many.said(0);
    assert_eq!(
        said,
        ["b is counted; voters are a, b", "c is the arbiter of a, b"]
    );
    let last = many.commit(2, 10);
    many.kill(0);
    many.pass(4 * LEASE);
    assert_eq!(many.primary(), b);
    assert!(many.applied(b) >= last);
    assert!(many.nodes[c].running.is_some());
    assert_ne!(many.history(c), None);
}

/// The arbiter alone knows that the other one has committed alone.
#[test]
fn with_an_arbiter_who_is_not_in_sync_is_promoted_by_force_only() {
    let mut many = Many::new();
    for (name, kind) in [
        ("a", NodeKind::Data),
        ("b", NodeKind::Data),
        ("c", NodeKind::Arbiter),
    ] {
        let at = many.add(name, kind, &["a", "b"]);
        many.nodes[at].arbiter = Some("c");
        many.start(at);
    }
    many.view();
    many.pass(4 * LEASE + Duration::from_secs(4));
    let last = many.primary();
    let old = 1 - last;
    many.commit(1, 10);
    many.kill(old);
    many.pass(4 * LEASE);
    many.commit(2, 10);
    many.kill(last);
    many.start(old);
    many.view();
    many.pass(6 * LEASE);
    let now = many.now;
    let (history, names) = (HistoryId([9; 16]), ["a", "b"]);
    for accepts_loss in [false, true] {
        many.node(2).promote(Token(8), accepts_loss, history, now);
        many.follow(2);
        many.pass(Duration::from_secs(30));
        let said = many.said(2);
        let why = "no: c cannot be primary: it is an arbiter, and has no data";
        assert_eq!(said.last().map(String::as_str), Some(why), "{said:?}");
    }
    let now = many.now;
    many.node(old).promote(Token(9), false, history, now);
    many.follow(old);
    many.pass(Duration::from_secs(30));
    let said = many.said(old);
    let expected = format!("only {} is in sync, and not here", names[last]);
    assert!(said[0].contains(&expected), "{said:?}");
    let now = many.now;
    many.node(old).promote(Token(10), true, history, now);
    many.follow(old);
    many.pass(4 * LEASE);
    assert_eq!(many.history(old), Some(history));
}

#[test]
fn two_and_an_arbiter_found_a_cluster() {
    let mut many = Many::new();
    for (name, kind) in [
        ("a", NodeKind::Data),
        ("b", NodeKind::Data),
        ("c", NodeKind::Arbiter),
    ] {
        let at = many.add(name, kind, &["a", "b"]);
        many.nodes[at].arbiter = Some("c");
    }
    many.start(0);
    many.start(1);
    many.view();
    many.pass(4 * LEASE);
    let state = many.node(0).state();
    assert!(state.contains("missing: c"), "{state}");
    many.start(2);
    many.view();
    many.pass(4 * LEASE);
    let primary = many.primary();
    let members = many.node(primary).overview().unwrap().settings.members;
    assert_eq!((members.voters.len(), members.electors().count()), (2, 3));
    // What it waited for is over, and not told any more.
    assert_eq!(
        many.node(0)
            .notices()
            .filter(|it| it.1.contains("missing"))
            .count(),
        0
    );
    let last = many.commit(1, 10);
    many.pass(LEASE);
    // Each of the three may be away.
    many.kill(primary);
    many.pass(4 * LEASE);
    let other = many.primary();
    assert!(other != primary && many.applied(other) >= last);
    many.commit(2, 10);
    many.start(primary);
    many.view();
    many.pass(6 * LEASE);
    many.kill(2);
    many.pass(4 * LEASE);
    many.commit(3, 10);
}

#[test]
fn an_arbiter_that_has_data_by_its_role_is_not_founded_with() {
    let mut many = Many::new();
    for name in ["a", "b", "c"] {
        let at = many.add(name, NodeKind::Data, &["a", "b"]);
        many.nodes[at].arbiter = Some("c");
    }
    many.start_all();
    many.pass(LEASE);
    let state = many.node(0).state();
    assert!(state.contains("c is named as the arbiter"), "{state}");
}
