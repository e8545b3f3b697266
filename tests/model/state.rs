//! What the model knows: three replicas, what is on its way, and what has been true.

use std::fmt;

/// The voters. All of them are equal, so that states that differ in their order only are one.
pub(crate) const VOTERS: usize = 3;

/// The bound on claims in one run, and so on epochs; a run may have less.
pub(crate) const EPOCHS: usize = 4;

/// A log: epochs of entries, four bits for each, that with seq 1 lowest.
///
/// An entry is told by its epoch and its seq, since an epoch has one primary and a primary does
/// not take back what it proposed; what it says does not matter. The first entry of an epoch is
/// its barrier entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Log(pub(crate) u32);

impl Log {
    /// Seq of the last entry; 0 if there is none.
    pub(crate) fn len(self) -> u8 {
        (35 - self.0.leading_zeros() as u8) / 4
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The epoch of an entry; 0 if there is none.
    pub(crate) fn epoch(self, seq: u8) -> u8 {
        if seq == 0 || seq > 8 {
            return 0;
        }
        (self.0 >> (4 * (seq - 1))) as u8 & 15
    }

    pub(crate) fn push(self, epoch: u8) -> Self {
        assert!(self.len() < 8, "a log of the model has up to eight entries");
        Self(self.0 | u32::from(epoch) << (4 * self.len()))
    }

    /// The first `len` entries.
    pub(crate) fn cut(self, len: u8) -> Self {
        if len >= 8 {
            return self;
        }
        Self(self.0 & ((1 << (4 * len)) - 1))
    }

    /// How many entries two logs begin with alike.
    pub(crate) fn common(self, other: Self) -> u8 {
        let shorter = self.len().min(other.len());
        shorter.min((self.0 ^ other.0).trailing_zeros() as u8 / 4)
    }

    pub(crate) fn starts_with(self, other: Self) -> bool {
        self.common(other) == other.len()
    }

    /// `(epoch, seq)` of the last entry.
    pub(crate) fn last(self) -> Last {
        Last {
            epoch: self.epoch(self.len()),
            seq: self.len(),
        }
    }

    /// The seq of an epoch's barrier entry.
    pub(crate) fn barrier(self, epoch: u8) -> Option<u8> {
        (1..=self.len()).find(|seq| self.epoch(*seq) == epoch)
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list()
            .entries((1..=self.len()).map(|seq| self.epoch(seq)))
            .finish()
    }
}

/// The position of an entry. The order is that of logs: the newer one has more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Last {
    pub(crate) epoch: u8,
    pub(crate) seq: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    #[default]
    Replica,
    /// Has claimed the epoch `office`.
    Candidate,
    /// Is in office in the epoch `office`.
    Primary,
}

/// A voter, and its messages that are on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Replica {
    /// The journal as the node reads it.
    pub(crate) log: Log,
    /// The journal as of the last sync; a crash leaves this, or more of `log`.
    pub(crate) disk: Log,
    /// The highest epoch promised. On disk before anybody hears of it.
    pub(crate) promised: u8,
    pub(crate) role: Role,
    /// The epoch that a candidate has claimed or a primary is in office in; else 0.
    pub(crate) office: u8,
    /// C: the largest seq that the node knows to be committed.
    pub(crate) commit_mark: u8,
    /// How often it will crash yet.
    pub(crate) crashes: u8,
    /// Epochs in which it advanced C by counting, a bit for each.
    pub(crate) counted: u8,
    /// Its `Ack` in each epoch: what it said it has synced. Since acknowledgements are cumulative
    /// the largest stands for all.
    pub(crate) acked: [u8; EPOCHS],
    /// Its `Promise` for each epoch: the end of its log when it promised.
    pub(crate) promises: [Option<Last>; EPOCHS],
}

impl Replica {
    /// How much of the log is synced.
    pub(crate) fn synced(&self) -> u8 {
        self.log.common(self.disk)
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { log, disk, .. } = self;
        write!(
            f,
            "log {log} disk {disk} promised {} C {}",
            self.promised, self.commit_mark
        )?;
        match self.role {
            Role::Replica => Ok(()),
            role => write!(f, " {role:?} of {}", self.office),
        }
    }
}

/// What all have sent in an epoch. Messages are never taken away: each may come late, twice, in
/// any order, or never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch {
    /// There is a `Claim`.
    pub(crate) claimed: bool,
    /// The log of its primary, each entry of which is a `Propose` (and can be fetched).
    pub(crate) proposed: Log,
    /// The largest commit mark in a `Commit`.
    pub(crate) announced: u8,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) replicas: [Replica; VOTERS],
    pub(crate) epochs: [Epoch; EPOCHS],
    /// What was ever committed: what a primary has counted a quorum for.
    pub(crate) committed: Log,
    /// The lowest epoch that has counted a quorum for an entry or for one behind it.
    pub(crate) committed_in: Log,
    /// Client entries that were proposed.
    pub(crate) clients: u8,
    /// The tids of client entries, four bits for each: four in an epoch.
    pub(crate) tids: u64,
}

impl State {
    pub(crate) fn new(crashes: u8) -> Self {
        let mut state = Self::default();
        for replica in &mut state.replicas {
            replica.crashes = crashes;
        }
        state
    }

    pub(crate) fn epoch(&self, epoch: u8) -> &Epoch {
        &self.epochs[usize::from(epoch) - 1]
    }

    pub(crate) fn epoch_mut(&mut self, epoch: u8) -> &mut Epoch {
        &mut self.epochs[usize::from(epoch) - 1]
    }

    /// What was committed in epochs below one.
    pub(crate) fn committed_before(&self, epoch: u8) -> Log {
        let seqs = (1..=self.committed.len()).rev();
        let mut below = seqs.filter(|seq| self.committed_in.epoch(*seq) < epoch);
        self.committed.cut(below.next().unwrap_or(0))
    }

    /// The tid of an entry of a log; that of the entry before if it is a barrier entry.
    pub(crate) fn tid(&self, log: Log, seq: u8) -> u8 {
        for seq in (1..=seq).rev() {
            let epoch = log.epoch(seq);
            let barrier = log.barrier(epoch).unwrap_or(seq);
            if seq > barrier {
                return (self.tids >> tid_shift(epoch, seq - barrier - 1)) as u8 & 15;
            }
        }
        0
    }

    pub(crate) fn set_tid(&mut self, epoch: u8, nth: u8, tid: u8) {
        self.tids |= u64::from(tid) << tid_shift(epoch, nth);
    }

    /// The state that stands for all that differ in the order of the voters only. Nothing in a
    /// state names a voter, so sorting them is enough.
    pub(crate) fn representative(mut self) -> Self {
        self.replicas.sort_unstable();
        self
    }

    /// A name of 64 bits. Of 10^8 states two have the same with a probability of 0.0003.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hash = 0x9e37_79b9_7f4a_7c15;
        for replica in &self.replicas {
            let Replica {
                promises, acked, ..
            } = replica;
            let small = [
                replica.promised,
                replica.role as u8,
                replica.office,
                replica.commit_mark,
                replica.crashes,
                replica.counted,
            ];
            let promises = promises.map(|last| last.map_or(0, |l| 1 + (l.epoch << 4 | l.seq)));
            hash = mix(hash, pack(&[replica.log, replica.disk].map(|log| log.0)));
            hash = mix(hash, bytes(&small));
            hash = mix(hash, bytes(acked) << 32 | bytes(&promises));
        }
        for epoch in &self.epochs {
            let rest = u32::from(epoch.claimed) << 8 | u32::from(epoch.announced);
            hash = mix(hash, pack(&[epoch.proposed.0, rest]));
        }
        hash = mix(hash, pack(&[self.committed.0, self.committed_in.0]));
        mix(mix(hash, self.tids), u64::from(self.clients))
    }
}

fn tid_shift(epoch: u8, nth: u8) -> u32 {
    assert!(nth < 4, "an epoch of the model has room for four tids");
    u32::from(epoch - 1) * 16 + u32::from(nth) * 4
}

fn pack(halves: &[u32; 2]) -> u64 {
    u64::from(halves[0]) << 32 | u64::from(halves[1])
}

fn bytes(small: &[u8]) -> u64 {
    small
        .iter()
        .fold(0, |all, byte| all << 8 | u64::from(*byte))
}

/// A folded multiplication: each bit of the word changes about half of the result.
fn mix(hash: u64, word: u64) -> u64 {
    let product =
        u128::from(hash ^ word ^ 0xa076_1d64_78bd_642f) * u128::from(0xe703_7ed1_a0b4_28db_u64);
    (product as u64) ^ ((product >> 64) as u64)
}
