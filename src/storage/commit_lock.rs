//! Who may vote: the commit lock of one storage.
//!
//! A transaction that votes takes a ticket with the oids that it names. Tickets are served in the
//! order in which they were taken, and a ticket takes all its oids at once, so there is neither
//! deadlock nor starvation: whoever waits, waits for earlier tickets only.
//!
//! ```text
//!   enqueue ──► waiting ──► held ──── downgrade ──► finishing ──► (released)
//!                  │          │                                       ▲
//!                  └──────────┴──────────── release ──────────────────┘
//! ```
//!
//! With [`LockScope::Storage`], ZEO's own rule, a held ticket excludes every later one until its
//! client says `tpc_finish`. With [`LockScope::Objects`] it excludes only those that name one of
//! its objects. In both, a *finishing* ticket, whose place in the file is fixed but not yet on
//! stable storage, excludes only those that name one of its objects: what they would be compared
//! with is not committed yet. This is what lets several finishes share one sync.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::Oid;

/// What a voted transaction excludes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockScope {
    /// Every other vote on its storage, as ZEO does.
    Storage,
    /// Votes that name one of its objects.
    #[default]
    Objects,
}

/// A ticket's number; smaller is earlier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The lock, with its queue.
#[derive(Debug)]
pub(super) struct CommitLock {
    scope: LockScope,
    next: u64,
    tickets: BTreeMap<Ticket, Entry>,
    /// The tickets that name an oid, in order, but for the long ones. No list is empty.
    by_oid: BTreeMap<Oid, Vec<Ticket>>,
    /// Those that name more than [`LISTED_OIDS_MAX`]. A million entries in `by_oid` would take
    /// half a second to make and to remove; looking into sorted lists costs less.
    long: BTreeSet<Ticket>,
}

/// Objects of a ticket that are listed one by one.
const LISTED_OIDS_MAX: usize = 1000;

/// What a ticket asks for, beside the objects that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// What the scope says.
    Objects,
    /// Excludes all others whatever the scope, but those that are finishing.
    Storage,
    /// Excludes those, too, until they are over: for what depends on all that was committed, and
    /// cannot say before which objects that will be.
    Alone,
}

#[derive(Debug)]
struct Entry {
    /// Sorted, without repetition.
    oids: Vec<Oid>,
    claim: Claim,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits at least for this earlier ticket.
    Waiting {
        on: Ticket,
    },
    Held,
    Finishing,
}

impl CommitLock {
    pub(super) fn new(scope: LockScope) -> Self {
        Self {
            scope,
            next: 0,
            tickets: BTreeMap::new(),
            by_oid: BTreeMap::new(),
            long: BTreeSet::new(),
        }
    }

    /// Takes a ticket; whether it is held at once.
    pub(super) fn enqueue(&mut self, mut oids: Vec<Oid>, claim: Claim) -> (Ticket, bool) {
        oids.sort_unstable();
        oids.dedup();
        let ticket = Ticket(self.next);
        self.next += 1;
        self.list(ticket, &oids);
        let mut entry = Entry {
            oids,
            claim,
            phase: Phase::Held,
        };
        if let Some(on) = self.blocker(ticket, &entry) {
            entry.phase = Phase::Waiting { on };
        }
        let held = entry.phase == Phase::Held;
        self.tickets.insert(ticket, entry);
        (ticket, held)
    }

    /// Notes which objects a ticket names.
    fn list(&mut self, ticket: Ticket, oids: &[Oid]) {
        if oids.len() > LISTED_OIDS_MAX {
            self.long.insert(ticket);
            return;
        }
        for oid in oids {
            let list = self.by_oid.entry(*oid).or_default();
            if let Err(place) = list.binary_search(&ticket) {
                list.insert(place, ticket);
            }
        }
    }

    fn unlist(&mut self, ticket: Ticket, oids: &[Oid]) {
        if self.long.remove(&ticket) {
            return;
        }
        for oid in oids {
            if let Some(list) = self.by_oid.get_mut(oid) {
                list.retain(|other| *other != ticket);
                if list.is_empty() {
                    self.by_oid.remove(oid);
                }
            }
        }
    }

    /// Whether nobody has the lock, or waits for it.
    pub(super) fn is_idle(&self) -> bool {
        let mut tickets = self.tickets.values();
        tickets.all(|entry| entry.phase == Phase::Finishing)
    }

    /// Whether it is the turn of this ticket.
    pub(super) fn is_held(&self, ticket: Ticket) -> bool {
        self.tickets
            .get(&ticket)
            .is_some_and(|entry| entry.phase == Phase::Held)
    }

    /// Whether the ticket, which is held, covers these oids and this claim, too.
    pub(super) fn covers(&self, ticket: Ticket, oids: &[Oid], claim: Claim) -> bool {
        self.tickets.get(&ticket).is_some_and(|entry| {
            let mut oids = oids.iter();
            entry.claim >= claim && oids.all(|oid| entry.oids.binary_search(oid).is_ok())
        })
    }

    /// The ticket, which is held with [`Claim::Alone`], names these objects, too: later tickets
    /// that name them will wait for its end.
    pub(super) fn extend(&mut self, ticket: Ticket, oids: impl Iterator<Item = Oid>) {
        let Some(entry) = self.tickets.get_mut(&ticket) else {
            return;
        };
        debug_assert_eq!((entry.claim, entry.phase), (Claim::Alone, Phase::Held));
        let mut all = std::mem::take(&mut entry.oids);
        self.unlist(ticket, &all);
        all.extend(oids);
        all.sort_unstable();
        all.dedup();
        self.list(ticket, &all);
        if let Some(entry) = self.tickets.get_mut(&ticket) {
            entry.oids = all;
        }
    }

    /// The transaction has its place in the file: from now on it excludes only those that name
    /// its objects. Returns the tickets that are held now because of that.
    pub(super) fn downgrade(&mut self, ticket: Ticket) -> Vec<Ticket> {
        if let Some(entry) = self.tickets.get_mut(&ticket) {
            entry.phase = Phase::Finishing;
        }
        self.wake(ticket)
    }

    /// The transaction is over, or left the queue. Returns the tickets that are held now.
    pub(super) fn release(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(entry) = self.tickets.remove(&ticket) else {
            return Vec::new();
        };
        self.unlist(ticket, &entry.oids);
        self.wake(ticket)
    }

    /// How many tickets wait.
    pub(super) fn waiting_count(&self) -> usize {
        self.tickets
            .values()
            .filter(|entry| matches!(entry.phase, Phase::Waiting { .. }))
            .count()
    }

    /// Looks again at those that waited for `ticket`.
    fn wake(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let waiting_on_it: Vec<Ticket> = self
            .tickets
            .range(ticket..)
            .filter(|(_, entry)| entry.phase == Phase::Waiting { on: ticket })
            .map(|(waiting, _)| *waiting)
            .collect();
        let mut held = Vec::new();
        for waiting in waiting_on_it {
            let phase = match self.tickets.get(&waiting) {
                Some(entry) => match self.blocker(waiting, entry) {
                    Some(on) => Phase::Waiting { on },
                    None => Phase::Held,
                },
                None => continue,
            };
            if phase == Phase::Held {
                held.push(waiting);
            }
            if let Some(entry) = self.tickets.get_mut(&waiting) {
                entry.phase = phase;
            }
        }
        held
    }

    /// An earlier ticket that excludes this one.
    fn blocker(&self, ticket: Ticket, entry: &Entry) -> Option<Ticket> {
        let everything = self.scope == LockScope::Storage || entry.claim >= Claim::Storage;
        let whole = self.tickets.range(..ticket).find(|(_, earlier)| {
            entry.claim == Claim::Alone
                || earlier.phase != Phase::Finishing
                    && (everything || earlier.claim >= Claim::Storage)
        });
        if let Some((earlier, _)) = whole {
            return Some(*earlier);
        }
        let shares = |earlier: &Ticket| {
            let earlier = self.tickets.get(earlier);
            earlier.is_some_and(|earlier| have_common(&entry.oids, &earlier.oids))
        };
        if self.long.contains(&ticket) {
            let mut earlier = self.tickets.range(..ticket).map(|(earlier, _)| *earlier);
            return earlier.find(shares);
        }
        let listed = entry.oids.iter().find_map(|oid| {
            let first = *self.by_oid.get(oid)?.first()?;
            (first < ticket).then_some(first)
        });
        listed.or_else(|| self.long.range(..ticket).copied().find(shares))
    }
}

/// Whether two sorted lists have an oid in common.
fn have_common(one: &[Oid], other: &[Oid]) -> bool {
    let (short, mut long) = match one.len() < other.len() {
        true => (one, other),
        false => (other, one),
    };
    short.iter().any(|oid| {
        // Most lists are runs of numbers: what is next is near.
        let mut reach = 1;
        while long.get(reach).is_some_and(|there| there < oid) {
            reach *= 2;
        }
        let end = long.len().min(reach + 1);
        let at = long[..end].partition_point(|there| there < oid);
        long = &long[at..];
        long.first() == Some(oid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oids(numbers: &[u64]) -> Vec<Oid> {
        numbers.iter().map(|number| Oid(*number)).collect()
    }

    #[test]
    fn with_storage_scope_votes_go_one_by_one_in_order() {
        let mut lock = CommitLock::new(LockScope::Storage);
        let (a, held) = lock.enqueue(oids(&[]), Claim::Objects);
        assert!(held);
        let (b, held) = lock.enqueue(oids(&[1]), Claim::Objects);
        assert!(!held);
        let (c, held) = lock.enqueue(oids(&[2]), Claim::Objects);
        assert!(!held);
        assert_eq!(lock.waiting_count(), 2);
        assert_eq!(lock.release(a), [b]);
        assert_eq!(lock.release(b), [c]);
        assert_eq!(lock.waiting_count(), 0);
    }

    #[test]
    fn one_who_leaves_the_queue_lets_the_next_pass_in_turn() {
        let mut lock = CommitLock::new(LockScope::Storage);
        let (a, _) = lock.enqueue(oids(&[1]), Claim::Objects);
        let (b, _) = lock.enqueue(oids(&[2]), Claim::Objects);
        let (c, _) = lock.enqueue(oids(&[3]), Claim::Objects);
        assert_eq!(lock.release(b), []);
        assert_eq!(lock.release(a), [c]);
    }

    #[test]
    fn a_finishing_transaction_excludes_only_its_own_objects() {
        for scope in [LockScope::Storage, LockScope::Objects] {
            let mut lock = CommitLock::new(scope);
            let (a, _) = lock.enqueue(oids(&[1, 2]), Claim::Objects);
            assert_eq!(lock.downgrade(a), []);
            let (b, held) = lock.enqueue(oids(&[3]), Claim::Objects);
            assert!(held);
            assert_eq!(lock.downgrade(b), []);
            let (c, held) = lock.enqueue(oids(&[2, 3]), Claim::Objects);
            assert!(!held);
            assert_eq!(lock.release(a), []);
            assert_eq!(lock.release(b), [c]);
        }
    }

    #[test]
    fn with_object_scope_disjoint_transactions_do_not_wait() {
        let mut lock = CommitLock::new(LockScope::Objects);
        let (a, _) = lock.enqueue(oids(&[1, 2]), Claim::Objects);
        assert!(lock.enqueue(oids(&[3]), Claim::Objects).1);
        let (c, held) = lock.enqueue(oids(&[2, 4]), Claim::Objects);
        assert!(!held);
        // It came before, so it is not overtaken by one that could go at once.
        let (d, held) = lock.enqueue(oids(&[4]), Claim::Objects);
        assert!(!held);
        assert_eq!(lock.release(a), [c]);
        assert_eq!(lock.release(c), [d]);
    }

    #[test]
    fn a_ticket_for_the_storage_excludes_all_and_waits_for_all() {
        let mut lock = CommitLock::new(LockScope::Objects);
        let (a, _) = lock.enqueue(oids(&[1]), Claim::Objects);
        let (b, held) = lock.enqueue(oids(&[2]), Claim::Storage);
        assert!(!held);
        let (c, held) = lock.enqueue(oids(&[3]), Claim::Objects);
        assert!(!held);
        assert_eq!(lock.downgrade(a), [b]);
        assert_eq!(lock.release(b), [c]);
    }

    #[test]
    fn a_ticket_for_itself_waits_for_the_end_of_those_that_are_finishing() {
        for scope in [LockScope::Storage, LockScope::Objects] {
            let mut lock = CommitLock::new(scope);
            let (a, _) = lock.enqueue(oids(&[1]), Claim::Objects);
            assert_eq!(lock.downgrade(a), []);
            let (b, held) = lock.enqueue(oids(&[]), Claim::Alone);
            assert!(!held);
            let (c, held) = lock.enqueue(oids(&[3]), Claim::Objects);
            assert!(!held);
            assert_eq!(lock.release(a), [b]);
            assert!(lock.covers(b, &oids(&[]), Claim::Alone));
            assert_eq!(lock.downgrade(b), [c]);
        }
    }

    #[test]
    fn objects_that_are_named_late_are_waited_for_all_the_same() {
        let mut lock = CommitLock::new(LockScope::Objects);
        let (a, _) = lock.enqueue(oids(&[1]), Claim::Alone);
        let (b, _) = lock.enqueue(oids(&[2]), Claim::Objects);
        let (c, _) = lock.enqueue(oids(&[3]), Claim::Objects);
        lock.extend(a, oids(&[2, 1]).into_iter());
        assert!(lock.covers(a, &oids(&[1, 2]), Claim::Objects));
        assert_eq!(lock.downgrade(a), [c]);
        let (d, held) = lock.enqueue(oids(&[2]), Claim::Objects);
        assert!(!held);
        assert_eq!(lock.release(a), [b]);
        assert_eq!(lock.release(b), [d]);
    }
    #[test]
    fn tickets_of_many_objects_exclude_as_others_do() {
        let many = |from: u64| (from..from + 3 * LISTED_OIDS_MAX as u64).map(Oid).collect();
        let mut lock = CommitLock::new(LockScope::Objects);
        let (a, held) = lock.enqueue(many(10_000), Claim::Objects);
        assert!(held);
        // One with few objects after one with many, many after many, and many after few.
        let (b, held) = lock.enqueue(oids(&[5, 11_000]), Claim::Objects);
        assert!(!held);
        let (c, held) = lock.enqueue(many(12_999), Claim::Objects);
        assert!(!held);
        let (d, held) = lock.enqueue(many(20_000), Claim::Objects);
        assert!(held);
        let (e, held) = lock.enqueue(oids(&[9999, 13_000, 19_999]), Claim::Objects);
        assert!(!held);
        let (f, held) = lock.enqueue(many(4), Claim::Objects);
        assert!(!held);
        assert_eq!(lock.downgrade(a), []);
        assert_eq!(lock.release(a), [b, c]);
        assert_eq!(lock.release(d), []);
        assert_eq!(lock.release(b), [f]);
        assert_eq!(lock.release(c), [e]);
        assert_eq!((lock.release(e), lock.release(f)), (vec![], vec![]));
        assert!(lock.by_oid.is_empty() && lock.long.is_empty() && lock.tickets.is_empty());
    }

    #[test]
    fn a_ticket_that_comes_to_name_many_objects_excludes_them() {
        let mut lock = CommitLock::new(LockScope::Objects);
        let (a, _) = lock.enqueue(oids(&[1]), Claim::Alone);
        lock.extend(a, (2..2000).map(Oid));
        assert!(lock.by_oid.is_empty());
        assert_eq!(lock.downgrade(a), []);
        assert!(!lock.enqueue(oids(&[1]), Claim::Objects).1);
        assert!(!lock.enqueue(oids(&[1999]), Claim::Objects).1);
        assert!(lock.enqueue(oids(&[2000]), Claim::Objects).1);
        lock.release(a);
        assert!(lock.long.is_empty());
    }
}
