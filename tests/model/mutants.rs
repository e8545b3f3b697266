//! Rules broken on purpose, and what has to find each.

use crate::explorer::{Check, no_check};
use crate::liveness::any_two_can_commit;
use crate::rules::{Property, Rules};

/// A rule that is left out or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A replica acknowledges what it has not synced.
    AckBeforeSync,
    /// A crash takes a promise back.
    PromiseNotSynced,
    /// A primary counts acknowledgements of entries of older epochs before its barrier entry.
    OldEntriesCounted,
    /// A candidate takes office whatever the logs of those who promised.
    LogsNotCompared,
    /// A replica appends what a primary of any epoch proposes.
    ProposeOfAnyEpoch,
    /// A replica shows readers what it has, not what is committed.
    ExposeOnReceipt,
    /// The majority of those who are there, be it one.
    QuorumOfTheLiving,
    /// A tid is what the clock shows, whatever the last one was.
    TidOfTheClock,
    /// Of two logs the longer one is the newer one, and the epoch decides a tie.
    SeqBeforeEpoch,
    /// A primary counts acknowledgements of other epochs.
    OldAcksCounted,
    /// A primary counts itself before its own sync is done.
    OwnSyncNotAwaited,
    /// A voter takes each claim, also a lower one than it has promised.
    PromiseOfLowerEpoch,
    /// A candidate does not promise its epoch itself.
    ClaimNotPromised,
    /// Who promises a higher epoch stays in office in its own.
    OfficeNotLeft,
    /// A replica appends and acknowledges in an epoch below that which it has promised.
    AckOfLowerEpoch,
    /// A replica acknowledges its whole log, be it like the primary's or not.
    AckUnmatched,
    /// A replica appends behind any entry, if the seq fits.
    PrevNotCompared,
    /// A proposal that comes twice cuts what is behind it.
    CutByDuplicate,
    /// A replica takes C for its whole log, be it like the primary's or not.
    CommitUnmatched,
    /// A replica takes C of any epoch for what it has of its own epoch's log.
    CommitOfAnyEpoch,
    /// A primary announces C with the proposal.
    MarkBeforeQuorum,
    /// A primary takes finishes before its barrier entry is committed.
    OpenBeforeBarrier,
    /// A primary appends no barrier entry, and is open at once.
    NoBarrier,
    /// The number of an epoch is a counter, and two nodes may count alike.
    EpochWithoutNode,
    /// Data.fs gets what the journal has not synced.
    AppliedBeforeSync,
    /// C on disk is ahead of what the journal has synced.
    HintBeforeSync,
    /// A candidate does not fetch a newer log, it only withdraws.
    NothingFetched,
    /// A replica that missed the claim does not follow who has won.
    EpochNotAdopted,
    /// A replica keeps what conflicts.
    ConflictNotCut,

    /// A voter answers a claim below its promise, and keeps the promise.
    LowerClaimAnswered,
    /// A replica acknowledges, after a promise, what it had appended before.
    AckAfterPromise,
    /// A replica takes C of an epoch below its promise.
    CommitOfLowerEpoch,
}

use Mutant::*;

/// A mutant, the run that finds it, and what that finds to be broken first.
pub(crate) struct Trial {
    pub(crate) rules: Rules,
    pub(crate) check: Check,
    pub(crate) finds: Option<Property>,
}

const fn trial(mutant: Mutant, finds: Property) -> Trial {
    of(mutant, Rules::new(3, 1, 1), Some(finds))
}

const fn of(mutant: Mutant, mut rules: Rules, finds: Option<Property>) -> Trial {
    rules.mutant = Some(mutant);
    Trial {
        rules,
        check: no_check,
        finds,
    }
}

/// Does not look at some properties, to see what else comes of it.
const fn beyond(properties: &'static [Property], mut trial: Trial) -> Trial {
    trial.rules.ignore = properties;
    trial
}

const fn stuck(mutant: Mutant) -> Trial {
    let mut trial = of(mutant, Rules::new(3, 1, 0), Some(Property::Liveness));
    trial.check = any_two_can_commit;
    trial
}

const fn with_clocks(mut trial: Trial) -> Trial {
    trial.rules.clocks = &[1, 2];
    trial
}

/// Each of them has to be found.
pub(crate) const FOUND: &[Trial] = &[
    trial(AckBeforeSync, Property::Durability),
    trial(PromiseNotSynced, Property::Promise),
    beyond(
        &[Property::Promise],
        trial(PromiseNotSynced, Property::Completeness),
    ),
    // Takes a fourth epoch: one that proposes, one beside it, one that counts, one that is elected.
    of(
        OldEntriesCounted,
        Rules::new(4, 0, 0),
        Some(Property::Durability),
    ),
    trial(LogsNotCompared, Property::Completeness),
    trial(ProposeOfAnyEpoch, Property::Durability),
    trial(ExposeOnReceipt, Property::Exposure),
    trial(QuorumOfTheLiving, Property::Durability),
    with_clocks(of(
        TidOfTheClock,
        Rules::new(2, 2, 0),
        Some(Property::MonotoneTids),
    )),
    // A log is longer, and older, only by two client entries.
    of(
        SeqBeforeEpoch,
        Rules::new(3, 2, 0),
        Some(Property::Durability),
    ),
    trial(OldAcksCounted, Property::Completeness),
    trial(OwnSyncNotAwaited, Property::Durability),
    trial(PromiseOfLowerEpoch, Property::Promise),
    beyond(
        &[Property::Promise],
        trial(PromiseOfLowerEpoch, Property::Completeness),
    ),
    trial(ClaimNotPromised, Property::Completeness),
    trial(OfficeNotLeft, Property::Completeness),
    trial(AckOfLowerEpoch, Property::Promise),
    beyond(
        &[Property::Promise],
        trial(AckOfLowerEpoch, Property::Completeness),
    ),
    trial(AckUnmatched, Property::Durability),
    trial(PrevNotCompared, Property::Durability),
    trial(CutByDuplicate, Property::Durability),
    trial(CommitUnmatched, Property::Agreement),
    trial(CommitOfAnyEpoch, Property::Agreement),
    trial(MarkBeforeQuorum, Property::Agreement),
    trial(OpenBeforeBarrier, Property::Reads),
    trial(NoBarrier, Property::Reads),
    trial(EpochWithoutNode, Property::Completeness),
    beyond(
        &[
            Property::Completeness,
            Property::Agreement,
            Property::Exposure,
            Property::Durability,
        ],
        trial(EpochWithoutNode, Property::OneCommitter),
    ),
    beyond(
        &[Property::Durability],
        trial(ProposeOfAnyEpoch, Property::Rewind),
    ),
    trial(AppliedBeforeSync, Property::DataFs),
    trial(HintBeforeSync, Property::Agreement),
    stuck(NothingFetched),
    stuck(EpochNotAdopted),
    stuck(ConflictNotCut),
];

/// Rules that nothing depends on. The manual says why; the code may have them all the same.
pub(crate) const NOT_NEEDED: &[Trial] = &[
    of(LowerClaimAnswered, Rules::new(3, 1, 1), None),
    beyond(
        &[Property::Promise],
        of(AckAfterPromise, Rules::new(3, 1, 1), None),
    ),
    of(CommitOfLowerEpoch, Rules::new(3, 1, 1), None),
];
