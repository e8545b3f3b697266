//! What is asked of a run: its size, the rule that is broken in it, what must hold, and what has
//! to be seen.

use crate::mutants::Mutant;
use crate::state::{Last, Log, VOTERS};

/// How large a run is, and which rule is broken in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Claims in all.
    pub(crate) epochs: u8,
    /// Client entries in all.
    pub(crate) clients: u8,
    /// Crashes of each voter.
    pub(crate) crashes: u8,
    /// What clocks show, in units of a tid; any of them at any time.
    pub(crate) clocks: &'static [u8],
    pub(crate) mutant: Option<Mutant>,
    /// Properties that are not looked at, so that one sees what else is broken.
    pub(crate) ignore: &'static [Property],
    /// Leave out what another run stands for; see `Next::reduce`.
    pub(crate) reduce: bool,
}

impl Rules {
    pub(crate) const fn new(epochs: u8, clients: u8, crashes: u8) -> Self {
        Self {
            epochs,
            clients,
            crashes,
            clocks: &[0],
            mutant: None,
            ignore: &[],
            reduce: true,
        }
    }

    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// The number of an epoch as nodes compare it. Every claim has an epoch of its own, unless
    /// nodes do not put their names into it.
    pub(crate) fn number(&self, epoch: u8) -> u8 {
        match self.is(Mutant::EpochWithoutNode) {
            true => epoch.div_ceil(2),
            false => epoch,
        }
    }

    pub(crate) fn is_higher(&self, epoch: u8, than: u8) -> bool {
        self.number(epoch) > self.number(than)
    }

    pub(crate) fn is_newer(&self, last: Last, than: Last) -> bool {
        match self.mutant {
            Some(Mutant::LogsNotCompared) => false,
            Some(Mutant::SeqBeforeEpoch) => (last.seq, last.epoch) > (than.seq, than.epoch),
            _ => {
                let (epoch, other) = (self.number(last.epoch), self.number(than.epoch));
                (epoch, last.seq) > (other, than.seq)
            }
        }
    }

    /// How much of two logs is alike by what nodes compare.
    pub(crate) fn matched(&self, log: Log, other: Log) -> u8 {
        if !self.is(Mutant::EpochWithoutNode) {
            return log.common(other);
        }
        let len = log.len().min(other.len());
        let differs = |seq: &u8| self.number(log.epoch(*seq)) != self.number(other.epoch(*seq));
        (1..=len).find(differs).map_or(len, |seq| seq - 1)
    }

    pub(crate) fn quorum(&self) -> usize {
        match self.is(Mutant::QuorumOfTheLiving) {
            true => 1,
            false => VOTERS / 2 + 1,
        }
    }
}

/// What must hold, by the names of the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Property {
    Agreement,
    Durability,
    Completeness,
    OneCommitter,
    Promise,
    Exposure,
    MonotoneTids,
    Rewind,
    DataFs,
    Reads,
    Liveness,
}

/// What shall happen in some run, or the model says little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mark {
    Rewound,
    BarrierCommittedOld,
    CandidateFetched,
    CandidateWithdrew,
    ClaimBeaten,
    PrimaryBeaten,
    EntrySurvivedFailover,
    EntryLost,
    AllCommitted,
    OldPrimaryCounted,
    /// A node that follows an epoch which is over cuts what a later one has committed.
    CommittedCut,
}

impl Mark {
    pub(crate) const ALL: [Self; 11] = [
        Self::Rewound,
        Self::BarrierCommittedOld,
        Self::CandidateFetched,
        Self::CandidateWithdrew,
        Self::ClaimBeaten,
        Self::PrimaryBeaten,
        Self::EntrySurvivedFailover,
        Self::EntryLost,
        Self::AllCommitted,
        Self::OldPrimaryCounted,
        Self::CommittedCut,
    ];

    pub(crate) fn bit(self) -> u16 {
        1 << self as u8
    }
}
