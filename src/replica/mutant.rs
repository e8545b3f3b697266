//! Rules that can be broken on purpose, to see that the simulator notices.
//!
//! In a build with `--cfg mutants`, which only the simulator has, [`select`] breaks one; in all
//! others [`is`] is `false`, and the compiler removes what depends on it.

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    dead_code,
    reason = "the names say what is broken; the manual has the rules"
)]
pub enum Mutant {
    AckBeforeSync,
    AckUnmatched,
    PromiseNotSynced,
    PromiseOfLowerEpoch,
    OfficeNotLeft,
    EpochNotAdopted,
    LogsNotCompared,
    SeqBeforeEpoch,
    QuorumOfTheLiving,
    NoBarrier,
    OpenBeforeBarrier,
    ProposeOfAnyEpoch,
    PrevNotCompared,
    OldEntriesCounted,
    OldAcksCounted,
    OwnSyncNotAwaited,
    CommitUnmatched,
    CommitOfAnyEpoch,
    AppliedBeforeSync,
    ExposeOnReceipt,
    TidOfTheClock,
    StaleUnblock,
    UnblockNotAwaited,
    OidsFromTheFloor,
    CeilingNotAwaited,
    ForeignDiskCounted,
    TwoChangesAtOnce,
    SwapNotDrained,
    ReadersNotHeldBack,
    FateGuessed,
    ArbiterCounted,
    JumpForgotten,
    PackUnordered,
}

#[cfg(mutants)]
thread_local! {
    static SELECTED: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Breaks a rule in this thread from now on, and no other.
#[cfg(mutants)]
pub fn select(mutant: Option<Mutant>) {
    SELECTED.with(|selected| selected.set(mutant));
}

/// Whether this rule is broken.
#[cfg(mutants)]
pub(crate) fn is(mutant: Mutant) -> bool {
    SELECTED.with(|selected| selected.get() == Some(mutant))
}

/// Whether this rule is broken.
#[cfg(not(mutants))]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}
