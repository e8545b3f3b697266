//! Who is counted, and what a quorum is.

use std::collections::BTreeSet;
use std::fmt;

use crate::ids::{DiskId, NodeId};

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
