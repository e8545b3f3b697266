//! Blobs that are fetched ahead of the entries that name them.

use ring::digest::{SHA256, digest};

use super::*;
use crate::ids::Digest;
use crate::limits::{OFFER_MAX, OFFERS_FETCHED_MAX};
use crate::log_disk::Blobs;

const CONTENT: &[u8] = b"what is in the blob";
const OFFER: Token = Token(50);

fn name() -> BlobName {
    BlobName {
        oid: Oid(7),
        len: CONTENT.len() as u64,
        digest: Digest(digest(&SHA256, CONTENT).as_ref().try_into().unwrap()),
    }
}

fn staged() -> PathBuf {
    PathBuf::from("journal/blobs").join(name().digest.to_string())
}

fn is_fetch(output: &Output) -> bool {
    matches!(output, Output::FetchBlobs { .. })
}

impl Many {
    /// Three nodes, one of them in office, which offers a blob.
    fn with_an_offer() -> (Self, usize, [usize; 2]) {
        let mut many = Self::three();
        many.start_all();
        many.pass(3 * LEASE);
        let at = many.primary();
        let others: Vec<usize> = (0..3).filter(|other| *other != at).collect();
        many.offer(at);
        (many, at, others.try_into().unwrap())
    }

    fn offer(&mut self, at: usize) {
        let now = self.now;
        let blobs = vec![(name(), PathBuf::from("tmp/1"))];
        self.node(at).offer(OFFER, "1".to_owned(), blobs, now);
        self.follow(at);
        self.settle();
    }

    fn is_offered(&mut self, at: usize) -> bool {
        let others = &mut self.nodes[at].others;
        let before = others.len();
        others.retain(|it| !matches!(it, Output::Offered(OFFER)));
        before != others.len()
    }

    /// What a node is to fetch ahead: its number, and of whom.
    fn fetches(&self, at: usize) -> Vec<(u64, &str)> {
        let others = self.nodes[at].others.iter();
        let fetches = others.filter_map(|it| match it {
            Output::FetchOffered { id, from, blobs } => {
                assert_eq!(blobs[0].name, name());
                Some((*id, &**from))
            }
            _ => None,
        });
        fetches.collect()
    }

    fn count(&self, at: usize, is_it: impl Fn(&Output) -> bool) -> usize {
        self.nodes[at].others.iter().filter(|it| is_it(it)).count()
    }

    fn blobs(&self, at: usize) -> Blobs {
        let mut others = self.nodes[at].others.iter().rev();
        let data = others.find_map(|it| match it {
            Output::Data(data) => Some(data.blobs.clone()),
            _ => None,
        });
        data.unwrap()
    }

    /// A thread of this node brings what it is to fetch ahead, or not.
    fn bring(&mut self, at: usize, is_here: bool) {
        let (id, _) = *self.fetches(at).last().unwrap();
        let blobs = self.blobs(at);
        blobs.expect(name().digest, id);
        if is_here {
            blobs.put(name(), &[CONTENT.into()]).unwrap();
        }
        let came = is_here.then(name).into_iter().collect();
        let now = self.now;
        self.node(at).on_offer_fetched(id, &came, now);
        self.follow(at);
        self.settle();
    }

    fn withdraw(&mut self, at: usize) {
        self.node(at).withdraw(OFFER);
        self.follow(at);
        self.settle();
    }

    /// A transaction with the blob is finished here.
    fn finish_with_blob(&mut self, at: usize) {
        let path = PathBuf::from("tmp/1");
        self.nodes[at].disk.replace(&path, &[CONTENT]).unwrap();
        let now = self.now;
        let finish = Self::finish_of(7, b"data".to_vec(), vec![(name(), path)]);
        self.node(at).finish(finish, now);
        self.follow(at);
        self.settle();
    }

    fn has_blob(&self, at: usize) -> bool {
        self.nodes[at].disk.identify(&staged()).is_ok()
    }
}

#[test]
fn a_vote_waits_until_most_have_its_blobs() {
    let (mut many, at, [one, other]) = Many::with_an_offer();
    let address = format!("{}:8102", many.nodes[at].name);
    for at in [one, other] {
        let fetches = many.fetches(at);
        assert!(matches!(fetches[..], [(_, from)] if from == address));
    }
    assert!(!many.is_offered(at));
    assert_eq!(many.count(at, |it| matches!(it, Output::Lend(..))), 1);
    many.bring(one, true);
    assert!(many.is_offered(at));
    // The other one is not asked twice, and changes nothing.
    many.bring(other, true);
    assert!(!many.is_offered(at));
    many.withdraw(at);
    assert_eq!(many.count(at, |it| matches!(it, Output::TakeBack(_))), 1);
}

#[test]
fn a_vote_goes_on_when_nobody_is_to_come_any_more() {
    // They cannot.
    let (mut many, at, [one, other]) = Many::with_an_offer();
    many.bring(one, false);
    assert!(!many.is_offered(at));
    many.bring(other, false);
    assert!(many.is_offered(at));
    // They take too long.
    many.offer(at);
    many.pass(OFFER_MAX - Duration::from_secs(1));
    assert!(!many.is_offered(at));
    many.pass(Duration::from_secs(2));
    assert!(many.is_offered(at));
    // Others are here.
    many.offer(at);
    assert!(!many.is_offered(at));
    many.kill(other);
    assert!(many.is_offered(at));
    // A node that is not in office waits for nothing.
    many.offer(one);
    assert!(many.is_offered(one));
    assert_eq!(many.count(one, |it| matches!(it, Output::Lend(..))), 0);
}

#[test]
fn what_no_entry_has_named_is_removed() {
    let (mut many, at, [one, other]) = Many::with_an_offer();
    many.bring(one, true);
    many.bring(other, true);
    assert!(many.has_blob(one) && many.has_blob(other));
    many.withdraw(at);
    assert!(!many.has_blob(one) && !many.has_blob(other));
    // What comes when it is over already.
    many.offer(at);
    many.withdraw(at);
    many.bring(one, true);
    assert!(!many.has_blob(one));
    many.bring(other, true);
    // Who has offered it is gone.
    many.offer(at);
    many.bring(one, true);
    assert!(many.has_blob(one));
    many.kill(at);
    assert!(!many.has_blob(one));
}

#[test]
fn a_proposal_waits_for_what_is_being_fetched_ahead_and_is_not_fetched_again() {
    for is_here in [true, false] {
        let (mut many, at, [one, other]) = Many::with_an_offer();
        many.kill(other);
        assert!(many.is_offered(at));
        many.pass(2 * LEASE);
        let last = |many: &mut Many| many.node(one).overview().unwrap().last.seq;
        let before = last(&mut many);
        many.finish_with_blob(at);
        assert_eq!(many.count(one, is_fetch), 0);
        // That the transaction has ended for others changes nothing.
        many.withdraw(at);
        assert_eq!(many.count(one, is_fetch), 0);
        many.bring(one, is_here);
        many.pass(Duration::from_millis(100));
        assert_eq!(many.count(one, is_fetch), usize::from(!is_here));
        assert_eq!(last(&mut many) > before, is_here);
    }
}

#[test]
fn a_proposal_does_not_wait_for_a_fetch_from_who_is_gone() {
    let (mut many, at, [one, other]) = Many::with_an_offer();
    many.kill(at);
    many.pass(6 * LEASE);
    let at = many.primary();
    let replica = one + other - at;
    many.finish_with_blob(at);
    assert_eq!(many.count(replica, is_fetch), 1);
}

#[test]
fn a_process_that_was_started_again_has_offered_nothing() {
    let (mut many, at, [one, _]) = Many::with_an_offer();
    many.bring(one, true);
    let from = member(many.nodes[at].name);
    let said = |method, args| GroupMessage::decode(&encode(method, args).concat().into()).unwrap();
    // As if nobody had noticed that it was away.
    let mut blobs = Vec::new();
    blobs.extend(name().oid.0.to_be_bytes());
    blobs.extend(5_u64.to_be_bytes());
    blobs.extend([3; 32]);
    let offer = |number| {
        let blobs = Value::Bytes(blobs.clone().into());
        let args = vec![Value::Int(2), Value::Int(number), Value::text("1"), blobs];
        said("offer", args)
    };
    assert!(many.node(one).on_offer_message(&from, &offer(1)));
    many.follow(one);
    assert!(!many.has_blob(one));
    // Nonsense is no offer, and leads to nothing.
    let before = many.nodes[one].others.len();
    let nothing = vec![
        Value::Int(2),
        Value::Int(3),
        Value::text("1"),
        Value::Bytes(Bytes::new()),
    ];
    for said in [
        offer(-1),
        said("offer", vec![Value::None]),
        said("offer", nothing),
    ] {
        assert!(many.node(one).on_offer_message(&from, &said));
    }
    many.follow(one);
    assert_eq!(many.nodes[one].others.len(), before);
    let other = said("something", vec![]);
    assert!(!many.node(one).on_offer_message(&from, &other));
}

#[test]
fn what_was_withdrawn_is_known_even_if_that_was_lost() {
    let (mut many, at, [one, other]) = Many::with_an_offer();
    many.bring(one, true);
    // Nobody hears of it.
    many.node(at).withdraw(OFFER);
    many.follow(at);
    many.messages.clear();
    assert!(many.has_blob(one));
    many.kill(other);
    assert!(!many.has_blob(one));
}

#[test]
fn some_are_fetched_at_a_time_and_the_others_after_them() {
    let (mut many, at, [one, _]) = Many::with_an_offer();
    for _ in 0..OFFERS_FETCHED_MAX {
        many.offer(at);
    }
    let first = many.fetches(one).len();
    assert_eq!(first, OFFERS_FETCHED_MAX);
    let (id, _) = many.fetches(one)[0];
    let now = many.now;
    many.node(one).on_offer_fetched(id, &[name()].into(), now);
    many.follow(one);
    assert_eq!(many.fetches(one).len(), first + 1);
}

#[test]
fn beside_an_arbiter_a_vote_waits_for_who_is_in_sync_only() {
    let mut many = Many::new();
    for name in ["a", "b"] {
        many.add(name, NodeKind::Data, &["a", "b"]);
    }
    many.add("c", NodeKind::Arbiter, &["a", "b"]);
    for one in &mut many.nodes {
        one.arbiter = Some("c");
    }
    many.start_all();
    many.pass(3 * LEASE);
    let at = many.primary();
    many.offer(at);
    assert!(!many.is_offered(at));
    assert_eq!(many.fetches(2).len(), 0);
    many.bring(1 - at, true);
    assert!(many.is_offered(at));
    // The other one is out of sync, and here again.
    many.kill(1 - at);
    many.pass(3 * LEASE);
    many.offer(at);
    assert!(many.is_offered(at));
}

/// A node that was away while others have committed a blob, and has asked for it; all of them.
fn with_a_late_one() -> (Many, usize, usize) {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let at = many.primary();
    let (late, other) = ((at + 1) % 3, (at + 2) % 3);
    many.kill(late);
    many.pass(LEASE);
    many.finish_with_blob(at);
    many.bring_fetched(other);
    many.pass(LEASE);
    many.start(late);
    many.view();
    many.pass(3 * LEASE);
    assert_eq!(many.count(late, is_fetch), 1);
    assert!(many.applied(at) > many.applied(late));
    (many, at, late)
}

impl Many {
    /// A thread of this node has fetched what it was to fetch last.
    fn bring_fetched(&mut self, at: usize) {
        let mut others = self.nodes[at].others.iter().rev();
        let id = others.find_map(|it| match it {
            Output::FetchBlobs { id, .. } => Some(*id),
            _ => None,
        });
        let blobs = self.blobs(at);
        blobs.put(name(), &[CONTENT.into()]).unwrap();
        let now = self.now;
        self.node(at).on_blobs(id.unwrap(), Ok(()), now);
        self.follow(at);
        self.settle();
    }
}

#[test]
fn blobs_of_an_answer_are_fetched_once_however_long_that_takes() {
    let (mut many, at, late) = with_a_late_one();
    many.pass(Duration::from_secs(80));
    assert_eq!(many.count(late, is_fetch), 1);
    many.bring_fetched(late);
    many.pass(2 * LEASE);
    assert_eq!(many.applied(late), many.applied(at));
    assert_eq!(many.count(late, is_fetch), 1);
}

#[test]
fn blobs_that_come_for_an_answer_that_nobody_waits_for_are_of_use() {
    let (mut many, at, late) = with_a_late_one();
    for _ in 0..3 {
        many.view();
        many.pass(Duration::from_secs(20));
    }
    assert_eq!(many.count(late, is_fetch), 1);
    many.bring_fetched(late);
    many.pass(2 * LEASE);
    assert_eq!(many.applied(late), many.applied(at));
    // What comes next is asked for again.
    many.finish_with_blob(at);
    many.pass(2 * LEASE);
    assert_eq!(many.applied(late), many.applied(at));
}

#[test]
fn blobs_that_were_asked_of_who_has_gone_hold_up_an_office_no_longer_than_they_take() {
    let (mut many, at, late) = with_a_late_one();
    let last = many.applied(at);
    many.kill(at);
    // What the other one that is left has committed is not here without its blob. It is fetched
    // anew, for the new primary.
    many.pass(6 * LEASE);
    assert_eq!(many.count(late, is_fetch), 2);
    many.bring_fetched(late);
    many.pass(6 * LEASE);
    assert_ne!(many.primary(), at);
    assert!(many.applied(late) > last);
}
