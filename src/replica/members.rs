//! Who is counted, and what a quorum is.

use std::collections::BTreeSet;
use std::fmt;

use super::mutant::{self, Mutant};
use crate::ids::{DiskId, NodeId, Seq};

/// Voters at most.
pub const VOTERS_MAX: usize = 9;

/// A node that is counted, with the disk that its promises are on: with another disk it is another
/// voter, which has promised and acknowledged nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Voter {
    /// Its name
    pub node: NodeId,
    /// Its disk
    pub disk: DiskId,
}

impl fmt::Display for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.node, f)
    }
}

/// Who is counted.
///
/// Without an arbiter a quorum is more than half of the voters. With one there are two voters, and
/// an entry is committed when all who are *in sync* have synced it; who is in sync is changed by
/// an entry that those who are in sync after it have synced, and that a majority of the three has
/// on record. An arbiter has records and promises, and no data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those who have the data and are counted.
    pub voters: BTreeSet<Voter>,
    /// Who decides between two.
    pub arbiter: Option<Arbiter>,
}

/// See [`Members`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arbiter {
    /// Who it is. It is none of the voters.
    pub node: Voter,
    /// The voters whose acknowledgements are needed: one or both.
    pub in_sync: BTreeSet<Voter>,
}

impl Members {
    /// Whether it is counted as one that has the data.
    pub fn is_voter(&self, who: &Voter) -> bool {
        self.voters.contains(who)
    }

    /// All that are counted for promises.
    pub fn electors(&self) -> impl Iterator<Item = &Voter> {
        let arbiter = self.arbiter.iter().map(|arbiter| &arbiter.node);
        self.voters.iter().chain(arbiter)
    }

    /// Whether these are more than half of the electors. A promise, or a sign of life, of so many
    /// of them leaves no quorum for anybody else.
    pub fn is_majority(&self, is_in: impl Fn(&Voter) -> bool) -> bool {
        let mine = self.electors().filter(|who| is_in(who)).count();
        if mutant::is(Mutant::QuorumOfTheLiving) {
            return mine > 0;
        }
        2 * mine > self.electors().count()
    }

    /// The entries up to which enough have synced the log, if that of each voter is synced up to
    /// where `synced` says: they are committed, if they are of the right epoch and the members
    /// are these.
    pub fn quorum_seq(&self, synced: impl Fn(&Voter) -> Seq) -> Seq {
        if let Some(arbiter) = &self.arbiter
            && !mutant::is(Mutant::ArbiterCounted)
        {
            return arbiter.in_sync.iter().map(synced).min().unwrap_or_default();
        }
        let mut seqs: Vec<Seq> = self.voters.iter().map(synced).collect();
        if mutant::is(Mutant::ArbiterCounted) && self.arbiter.is_some() {
            seqs.push(Seq(u64::MAX));
        }
        seqs.sort_unstable_by(|a, b| b.cmp(a));
        let quorum = match mutant::is(Mutant::QuorumOfTheLiving) {
            true => 0,
            false => seqs.len() / 2,
        };
        seqs.get(quorum).copied().unwrap_or_default()
    }

    /// Whether enough know of the entry that made these the members: an arbiter must, if not both
    /// voters do. `has` tells who has synced it.
    pub fn is_on_record(&self, has: impl Fn(&Voter) -> bool) -> bool {
        self.arbiter.is_none() || self.is_majority(has)
    }

    /// Whether one of these may lead: of those who are in sync, one must be among them, as only
    /// they have all that is committed.
    pub fn knows_all(&self, is_in: impl Fn(&Voter) -> bool) -> bool {
        let arbiter = self.arbiter.as_ref();
        arbiter.is_none_or(|arbiter| arbiter.in_sync.iter().any(is_in))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voter(name: &str) -> Voter {
        Voter {
            node: NodeId::new(name).unwrap(),
            disk: DiskId([name.as_bytes()[0]; 16]),
        }
    }

    fn members(voters: &[&str], arbiter: Option<(&str, &[&str])>) -> Members {
        let set = |names: &[&str]| names.iter().map(|name| voter(name)).collect();
        Members {
            voters: set(voters),
            arbiter: arbiter.map(|(node, in_sync)| Arbiter {
                node: voter(node),
                in_sync: set(in_sync),
            }),
        }
    }

    fn seqs(of: &[(&str, u64)]) -> impl Fn(&Voter) -> Seq {
        let of: Vec<(Voter, Seq)> = of.iter().map(|(n, seq)| (voter(n), Seq(*seq))).collect();
        move |who| {
            let found = of.iter().find(|(voter, _)| voter == who);
            found.map_or(Seq::ZERO, |(_, seq)| *seq)
        }
    }

    #[test]
    fn a_quorum_is_more_than_half_of_the_voters() {
        let three = members(&["a", "b", "c"], None);
        assert_eq!(three.quorum_seq(seqs(&[("a", 5), ("b", 3)])), Seq(3));
        assert_eq!(three.quorum_seq(seqs(&[("a", 5), ("d", 5)])), Seq(0));
        let two = members(&["a", "b"], None);
        assert_eq!(two.quorum_seq(seqs(&[("a", 5), ("b", 4)])), Seq(4));
        assert_eq!(two.quorum_seq(seqs(&[("a", 5)])), Seq(0));
        let one = members(&["a"], None);
        assert_eq!(one.quorum_seq(seqs(&[("a", 5)])), Seq(5));
        assert!(three.is_majority(|who| *who != voter("c")));
        assert!(!three.is_majority(|who| *who == voter("c")));
        assert!(!two.is_majority(|who| *who == voter("a")));
        assert!(!members(&[], None).is_majority(|_| true));
    }

    #[test]
    fn the_same_name_with_another_disk_is_not_counted() {
        let three = members(&["a", "b", "c"], None);
        let other = Voter {
            disk: DiskId([0; 16]),
            ..voter("b")
        };
        assert!(!three.is_voter(&other));
        assert!(!three.is_majority(|who| [other, voter("a")].contains(who)));
    }

    #[test]
    fn with_an_arbiter_all_in_sync_must_have_an_entry() {
        let both = members(&["a", "b"], Some(("x", &["a", "b"])));
        assert_eq!(both.quorum_seq(seqs(&[("a", 5), ("b", 3)])), Seq(3));
        assert_eq!(both.quorum_seq(seqs(&[("a", 5), ("x", 5)])), Seq(0));
        let alone = members(&["a", "b"], Some(("x", &["a"])));
        assert_eq!(alone.quorum_seq(seqs(&[("a", 5)])), Seq(5));
        // The arbiter, or the other one, has to know that it is alone.
        assert!(!alone.is_on_record(|who| *who == voter("a")));
        assert!(alone.is_on_record(|who| *who != voter("b")));
        assert!(alone.knows_all(|who| *who == voter("a")));
        assert!(!alone.knows_all(|who| *who != voter("a")));
    }
}
