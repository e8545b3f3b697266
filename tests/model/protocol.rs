//! The rules of replication as steps of one state to the next, and what must hold.
//!
//! Each step is a method that gives the next state, or nothing if it is not possible. The names
//! are those that the manual and the code have. What must hold is checked at the step that could
//! break it, or in each state, and knows nothing about mutants.

use crate::mutants::Mutant;
use crate::rules::{Mark, Property, Rules};
use crate::state::{EPOCHS, Epoch, Last, Log, Replica, Role, State, VOTERS};

/// One step; voters are told by their places in the state before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Claim {
        node: usize,
        epoch: u8,
    },
    Promise {
        node: usize,
        epoch: u8,
    },
    Fetch {
        node: usize,
        from: usize,
    },
    Withdraw {
        node: usize,
    },
    TakeOffice {
        node: usize,
    },
    Propose {
        node: usize,
        clock: u8,
    },
    Append {
        node: usize,
        epoch: u8,
        seq: u8,
    },
    Sync {
        node: usize,
    },
    Commit {
        node: usize,
        epoch: u8,
    },
    Advance {
        node: usize,
        seq: u8,
    },
    Crash {
        node: usize,
        log: Log,
        commit_mark: u8,
    },
}

/// The state after a step, what it broke and what it showed.
#[derive(Clone, Copy)]
pub(crate) struct Next {
    pub(crate) state: State,
    pub(crate) broken: Option<Property>,
    pub(crate) marks: u16,
}

impl Next {
    fn new(state: &State) -> Self {
        Self {
            state: *state,
            broken: None,
            marks: 0,
        }
    }

    fn require(&mut self, rules: &Rules, holds: bool, property: Property) {
        if !holds && !rules.ignore.contains(&property) {
            self.broken = self.broken.or(Some(property));
        }
    }

    fn mark(&mut self, mark: Mark, seen: bool) {
        if seen {
            self.marks |= mark.bit();
        }
    }

    fn replica(&mut self, node: usize) -> &mut Replica {
        &mut self.state.replicas[node]
    }

    /// What follows every step: acknowledgements, the checks, and what is forgotten.
    fn finish(mut self, rules: &Rules, before: &State) -> Self {
        for replica in &mut self.state.replicas {
            // Who will not crash any more loses nothing by being slow to sync.
            if replica.crashes == 0 {
                replica.disk = replica.log;
            }
        }
        self.acknowledge(rules);
        let mut pairs = self.state.replicas.iter().zip(&before.replicas);
        let kept = pairs.all(|(replica, old)| {
            let mut acks = (1..).zip(replica.acked.iter().zip(&old.acked));
            let lower = |epoch| rules.is_higher(replica.promised, epoch);
            let broken = acks.any(|(epoch, (now, old))| now > old && lower(epoch));
            replica.promised >= old.promised && !broken
        });
        self.require(rules, kept, Property::Promise);
        if rules.reduce {
            self.learn(rules);
        }
        self.check(rules);
        if rules.reduce {
            self.reduce(rules);
        }
        self
    }

    /// `Ack`: every replica says what it has synced of the log of its epoch's primary.
    ///
    /// Sent as soon as it may be. Whoever counts takes it late or never, so this stands for all
    /// that is sent later; and what is acknowledged is only what is alike in both logs, which a
    /// replica has to know by `prev` or by fetching.
    fn acknowledge(&mut self, rules: &Rules) {
        let epochs = self.state.epochs;
        for replica in &mut self.state.replicas {
            for (n, Epoch { proposed, .. }) in epochs.iter().enumerate() {
                let epoch = n as u8 + 1;
                let lower = rules.is(Mutant::AckOfLowerEpoch) || rules.is(Mutant::AckAfterPromise);
                let late = lower && epoch < replica.promised;
                let mine = rules.number(epoch) == rules.number(replica.promised) || late;
                if !mine || proposed.is_empty() || replica.office == epoch {
                    continue;
                }
                let (log, disk) = (replica.log, replica.disk);
                let synced = match rules.mutant {
                    Some(Mutant::AckBeforeSync) => rules.matched(log, *proposed),
                    Some(Mutant::AckUnmatched) => proposed.len().min(replica.synced()),
                    _ => rules
                        .matched(log, *proposed)
                        .min(rules.matched(disk, *proposed)),
                };
                replica.acked[n] = replica.acked[n].max(synced);
            }
        }
    }

    /// Every replica takes the largest `Commit` at once. C gives a replica nothing to do; it only
    /// makes what must hold harder to hold.
    fn learn(&mut self, rules: &Rules) {
        for node in 0..VOTERS {
            for epoch in 1..=EPOCHS as u8 {
                if let Some(mark) = self.state.announced_to(rules, node, epoch) {
                    self.replica(node).commit_mark = mark;
                }
            }
        }
    }

    /// Makes states one that have the same future: drops messages that nobody can take, or that
    /// would change nothing. A test shows that runs without this find the same.
    fn reduce(&mut self, rules: &Rules) {
        let replicas = self.state.replicas;
        for n in 0..EPOCHS {
            let epoch = n as u8 + 1;
            let has = |role| {
                replicas
                    .iter()
                    .find(|r| r.role == role && r.office == epoch)
            };
            let candidate = has(Role::Candidate).copied();
            let primary = has(Role::Primary).copied();
            for replica in &mut self.state.replicas {
                // Only the candidate counts promises, and its log does not get older.
                replica.promises[n] = match (candidate, replica.promises[n]) {
                    (Some(candidate), Some(last)) => {
                        match rules.is_newer(last, candidate.log.last()) {
                            true => Some(last),
                            false => Some(Last::default()),
                        }
                    }
                    _ => None,
                };
                // Only the primary counts acknowledgements, from its barrier entry and C on.
                let counts = primary.is_some_and(|primary| {
                    let barrier = primary.log.barrier(epoch).unwrap_or(u8::MAX);
                    replica.acked[n] > primary.commit_mark && replica.acked[n] >= barrier
                });
                if !counts
                    && !rules.is(Mutant::OldAcksCounted)
                    && !rules.is(Mutant::OldEntriesCounted)
                {
                    replica.acked[n] = 0;
                }
            }
            // A promise is for ever.
            let over = replicas
                .iter()
                .all(|replica| rules.is_higher(replica.promised, epoch));
            let lasting = ![
                Mutant::PromiseNotSynced,
                Mutant::ProposeOfAnyEpoch,
                Mutant::CommitOfAnyEpoch,
                Mutant::CommitOfLowerEpoch,
                Mutant::AckOfLowerEpoch,
                Mutant::AckAfterPromise,
                Mutant::PromiseOfLowerEpoch,
            ]
            .iter()
            .any(|mutant| rules.is(*mutant));
            if over && lasting {
                self.state.epochs[n].proposed = Log::default();
                self.state.epochs[n].announced = 0;
            }
        }
    }

    /// What must hold in each state.
    fn check(&mut self, rules: &Rules) {
        let State {
            replicas,
            committed,
            ..
        } = self.state;
        for replica in &replicas {
            let exposed = match rules.is(Mutant::ExposeOnReceipt) {
                true => replica.log.len(),
                false => replica.commit_mark,
            };
            let agreed = replica.log.common(committed);
            self.require(rules, agreed >= replica.commit_mark, Property::Agreement);
            self.require(rules, agreed >= exposed, Property::Exposure);
        }
        let holders = replicas.iter().filter(|replica| {
            let len = replica.synced().min(replica.log.common(committed));
            len == committed.len()
        });
        let durable = holders.count() > VOTERS / 2;
        self.require(rules, durable, Property::Durability);
    }
}

impl State {
    /// All that can happen next.
    pub(crate) fn steps(&self, rules: &Rules, mut visit: impl FnMut(Step, Next)) {
        let mut offer = |step: Step, next: Option<Next>| {
            if let Some(next) = next {
                visit(step, next);
            }
        };
        for node in 0..VOTERS {
            for epoch in 1..=rules.epochs {
                let claim = self.claim(rules, node, epoch);
                offer(Step::Claim { node, epoch }, claim);
                let promise = self.promise(rules, node, epoch);
                offer(Step::Promise { node, epoch }, promise);
                for seq in 1..=self.epoch(epoch).proposed.len() {
                    let append = self.append(rules, node, epoch, seq);
                    offer(Step::Append { node, epoch, seq }, append);
                }
                // With reductions it has learnt.
                if !rules.reduce {
                    let commit = self.commit(rules, node, epoch);
                    offer(Step::Commit { node, epoch }, commit);
                }
            }
            for from in (0..VOTERS).filter(|from| *from != node) {
                offer(Step::Fetch { node, from }, self.fetch(rules, node, from));
            }
            // Not to act is as good, but for what one sees.
            if !rules.reduce {
                offer(Step::Withdraw { node }, self.withdraw(rules, node));
            }
            offer(Step::TakeOffice { node }, self.take_office(rules, node));
            for clock in rules.clocks.iter().copied() {
                let propose = self.propose(rules, node, clock);
                offer(Step::Propose { node, clock }, propose);
            }
            offer(Step::Sync { node }, self.sync(rules, node));
            for seq in 1..=self.replicas[node].log.len() {
                let advance = self.advance(rules, node, seq);
                offer(Step::Advance { node, seq }, advance);
            }
            self.crashes(rules, node, &mut offer);
        }
    }

    /// `Claim{epoch}`: a node promises itself an epoch higher than all it knows, and asks for it.
    ///
    /// At any time, by anybody: views choose who does it and when, and safety shall not depend on
    /// them. Any epoch that is nobody's stands for all ways to number them.
    pub(crate) fn claim(&self, rules: &Rules, node: usize, epoch: u8) -> Option<Next> {
        let me = &self.replicas[node];
        if self.epoch(epoch).claimed || !rules.is_higher(epoch, me.promised) {
            return None;
        }
        let mut next = Next::new(self);
        next.state.epoch_mut(epoch).claimed = true;
        let me = next.replica(node);
        if !rules.is(Mutant::ClaimNotPromised) {
            me.promised = epoch;
        }
        (me.role, me.office) = (Role::Candidate, epoch);
        Some(next.finish(rules, self))
    }

    /// `Promise{epoch, last}`: a voter takes a claim higher than what it has promised, or learns of
    /// an epoch that is higher. It leaves its own office.
    pub(crate) fn promise(&self, rules: &Rules, node: usize, epoch: u8) -> Option<Next> {
        let me = &self.replicas[node];
        let fresh = me.promises[usize::from(epoch) - 1].is_none();
        let lowers = rules.is(Mutant::PromiseOfLowerEpoch);
        let lower = fresh && (lowers || rules.is(Mutant::LowerClaimAnswered));
        let higher = rules.is_higher(epoch, me.promised) || (lower && lowers);
        if !self.epoch(epoch).claimed || me.office == epoch || !(higher || lower) {
            return None;
        }
        let asked = |replica: &Replica| replica.role == Role::Candidate && replica.office == epoch;
        if rules.is(Mutant::EpochNotAdopted) && !self.replicas.iter().any(asked) {
            return None;
        }
        let mut next = Next::new(self);
        let me = next.replica(node);
        for same in (1..=EPOCHS as u8).filter(|other| rules.number(*other) == rules.number(epoch)) {
            me.promises[usize::from(same) - 1] = Some(me.log.last());
        }
        let beaten = me.role;
        if higher {
            me.promised = epoch;
            if !rules.is(Mutant::OfficeNotLeft) {
                (me.role, me.office) = (Role::Replica, 0);
            }
        }
        next.mark(Mark::ClaimBeaten, beaten == Role::Candidate);
        next.mark(Mark::PrimaryBeaten, beaten == Role::Primary);
        Some(next.finish(rules, self))
    }

    /// `Fetch`/`Entries` in an election: a candidate takes the log of a voter that has promised it
    /// the epoch, and has a newer one.
    pub(crate) fn fetch(&self, rules: &Rules, node: usize, from: usize) -> Option<Next> {
        let (me, donor) = (&self.replicas[node], &self.replicas[from]);
        let promised = donor.promised == me.office;
        if me.role != Role::Candidate || !promised || rules.is(Mutant::NothingFetched) {
            return None;
        }
        donor.promises[usize::from(me.office) - 1]?;
        if !rules.is_newer(donor.log.last(), me.log.last()) {
            return None;
        }
        let log = donor.log;
        let mut next = Next::new(self);
        next.replace_log(rules, node, rules.matched(me.log, log), log);
        next.mark(Mark::CandidateFetched, true);
        Some(next.finish(rules, self))
    }

    /// A candidate that learnt of a newer log gives up.
    pub(crate) fn withdraw(&self, rules: &Rules, node: usize) -> Option<Next> {
        let me = &self.replicas[node];
        if me.role != Role::Candidate {
            return None;
        }
        let mut promises = self.replicas.iter();
        promises.find_map(|replica| {
            replica.promises[usize::from(me.office) - 1]
                .filter(|last| rules.is_newer(*last, me.log.last()))
        })?;
        let mut next = Next::new(self);
        let me = next.replica(node);
        (me.role, me.office) = (Role::Replica, 0);
        next.mark(Mark::CandidateWithdrew, true);
        Some(next.finish(rules, self))
    }

    /// A candidate with the promises of a quorum, none of them with a newer log, is primary, and
    /// appends its barrier entry.
    pub(crate) fn take_office(&self, rules: &Rules, node: usize) -> Option<Next> {
        let me = &self.replicas[node];
        let epoch = me.office;
        if me.role != Role::Candidate {
            return None;
        }
        let others = self.replicas.iter().filter(|replica| {
            replica.promises[usize::from(epoch) - 1]
                .is_some_and(|last| !rules.is_newer(last, me.log.last()))
        });
        if 1 + others.count() < rules.quorum() {
            return None;
        }
        let mut next = Next::new(self);
        // Of what later epochs have committed a candidate that is late need not know: nobody who
        // has promised one of them acknowledges this one's barrier.
        let before = self.committed_before(epoch);
        let complete = me.log.starts_with(before);
        next.require(rules, complete, Property::Completeness);
        next.mark(Mark::EntrySurvivedFailover, complete && !before.is_empty());
        let me = next.replica(node);
        me.role = Role::Primary;
        if !rules.is(Mutant::NoBarrier) {
            me.log = me.log.push(epoch);
        }
        next.state.epoch_mut(epoch).proposed = next.state.replicas[node].log;
        if rules.is(Mutant::NoBarrier) {
            next.open(rules, node);
        }
        Some(next.finish(rules, self))
    }

    /// `Propose`: a primary whose barrier entry is committed and applied takes a finish.
    pub(crate) fn propose(&self, rules: &Rules, node: usize, clock: u8) -> Option<Next> {
        let me = &self.replicas[node];
        let epoch = me.office;
        if me.role != Role::Primary || self.clients == rules.clients {
            return None;
        }
        let first = me.log.barrier(epoch).unwrap_or(me.log.len());
        if me.commit_mark < first && !rules.is(Mutant::OpenBeforeBarrier) {
            return None;
        }
        let mut next = Next::new(self);
        next.open(rules, node);
        let last = self.tid(me.log, me.log.len());
        let tid = match rules.is(Mutant::TidOfTheClock) {
            true => clock,
            false => clock.max(last + 1),
        };
        next.state.clients += 1;
        if !rules.is(Mutant::NoBarrier) {
            next.state.set_tid(epoch, me.log.len() - first, tid);
        }
        let me = next.replica(node);
        me.log = me.log.push(epoch);
        let (log, mark) = (me.log, me.commit_mark);
        next.state.epoch_mut(epoch).proposed = log;
        if rules.is(Mutant::MarkBeforeQuorum) {
            next.state.epoch_mut(epoch).announced = mark + 1;
        }
        Some(next.finish(rules, self))
    }

    /// `Propose`, or `Entries` fetched from the primary, at a replica: the primary's log up to
    /// `seq`, in the epoch promised. What conflicts is cut.
    pub(crate) fn append(&self, rules: &Rules, node: usize, epoch: u8, seq: u8) -> Option<Next> {
        let me = &self.replicas[node];
        let any = rules.is(Mutant::ProposeOfAnyEpoch);
        let late = rules.is(Mutant::AckOfLowerEpoch) && epoch < me.promised;
        let mine = rules.number(me.promised) == rules.number(epoch) || any || late;
        let mine_too = rules.number(me.office) == rules.number(epoch) || any;
        let leads = me.role == Role::Primary && mine_too;
        if !mine || leads {
            return None;
        }
        let proposed = self.epoch(epoch).proposed.cut(seq);
        let mut matched = rules.matched(me.log, proposed);
        if rules.is(Mutant::PrevNotCompared) {
            // Only the entry before has to be there, whatever it is.
            matched = matched.max(seq - 1).min(me.log.len());
        }
        if matched == seq && !(rules.is(Mutant::CutByDuplicate) && me.log.len() > seq) {
            return None;
        }
        if (late || rules.is(Mutant::ConflictNotCut)) && me.log.len() > matched {
            return None;
        }
        let mut next = Next::new(self);
        let kept = me.log.cut(matched);
        let log = (matched + 1..=seq).fold(kept, |log, seq| log.push(proposed.epoch(seq)));
        next.replace_log(rules, node, matched, log);
        Some(next.finish(rules, self))
    }

    /// One sync of the journal.
    pub(crate) fn sync(&self, rules: &Rules, node: usize) -> Option<Next> {
        let me = &self.replicas[node];
        if me.disk == me.log {
            return None;
        }
        let mut next = Next::new(self);
        next.replica(node).disk = me.log;
        Some(next.finish(rules, self))
    }

    /// `Commit{epoch, C}` at a replica, for what it has of the primary's log.
    pub(crate) fn commit(&self, rules: &Rules, node: usize, epoch: u8) -> Option<Next> {
        let mark = self.announced_to(rules, node, epoch)?;
        let mut next = Next::new(self);
        next.replica(node).commit_mark = mark;
        Some(next.finish(rules, self))
    }

    /// The C that a replica gets by an epoch's `Commit`, if that is more than it has.
    fn announced_to(&self, rules: &Rules, node: usize, epoch: u8) -> Option<u8> {
        let me = &self.replicas[node];
        let Epoch {
            proposed,
            announced,
            ..
        } = *self.epoch(epoch);
        let lower = epoch < me.promised && rules.is(Mutant::CommitOfLowerEpoch);
        let any = lower || rules.is(Mutant::CommitOfAnyEpoch);
        let mine = rules.number(epoch) == rules.number(me.promised);
        if !(mine || any) || (me.role == Role::Primary && me.office == epoch) {
            return None;
        }
        let matched = match (any, rules.is(Mutant::CommitUnmatched)) {
            (_, true) => me.log.len(),
            (true, _) if me.promised == 0 => 0,
            (true, _) => me.log.common(self.epoch(me.promised).proposed),
            _ => rules.matched(me.log, proposed),
        };
        let mark = announced.min(matched);
        (mark > me.commit_mark).then_some(mark)
    }

    /// A primary counts acknowledgements and advances C to `seq`: applies, replies, announces.
    pub(crate) fn advance(&self, rules: &Rules, node: usize, seq: u8) -> Option<Next> {
        let me = &self.replicas[node];
        let epoch = me.office;
        let current = me.log.epoch(seq) == epoch || rules.is(Mutant::OldEntriesCounted);
        if me.role != Role::Primary || seq <= me.commit_mark || !current {
            return None;
        }
        let synced = me.synced() >= seq || rules.is(Mutant::OwnSyncNotAwaited);
        let others =
            self.replicas
                .iter()
                .filter(|replica| match rules.is(Mutant::OldAcksCounted) {
                    true => replica.acked.iter().any(|acked| *acked >= seq),
                    false => replica.acked[usize::from(epoch) - 1] >= seq,
                });
        if usize::from(synced) + others.count() < rules.quorum() {
            return None;
        }
        let log = me.log.cut(seq);
        let agrees = log.common(self.committed) == self.committed.len().min(seq);
        let old = self.committed.len();
        let number = rules.number(epoch);
        let rival =
            |other: usize| other != node && self.replicas[other].counted & (1 << number) != 0;
        let beaten = self
            .replicas
            .iter()
            .filter(|replica| replica.promised > epoch)
            .count();

        let mut next = Next::new(self);
        next.require(rules, agrees, Property::Agreement);
        next.require(rules, !(0..VOTERS).any(rival), Property::OneCommitter);
        let brought = (old + 1..=seq).any(|seq| log.epoch(seq) < epoch);
        next.mark(Mark::BarrierCommittedOld, brought);
        next.mark(Mark::OldPrimaryCounted, beaten > 0);
        if seq > old {
            next.state.committed = log;
        }
        next.state.committed_in = (1..=seq.max(old)).fold(Log::default(), |epochs, n| {
            let earlier = self.committed_in.epoch(n);
            let lower = earlier != 0 && (n > seq || earlier < epoch);
            epochs.push(if lower { earlier } else { epoch })
        });
        let later = self.epochs[usize::from(epoch)..].iter();
        let mut later = later.filter(|later| !later.proposed.is_empty());
        let complete = later.all(|later| later.proposed.starts_with(log));
        next.require(rules, complete, Property::Completeness);
        next.replica(node).commit_mark = seq;
        if !rules.reduce || rules.is(Mutant::EpochWithoutNode) {
            next.replica(node).counted |= 1 << number;
        }
        let announced = &mut next.state.epoch_mut(epoch).announced;
        *announced = seq.max(*announced);
        let committed = next.state.committed;
        let rises = next.state.tids_rise(committed);
        next.require(rules, rises, Property::MonotoneTids);
        let clients = (1..=committed.len())
            .filter(|seq| committed.barrier(committed.epoch(*seq)) != Some(*seq));
        next.mark(
            Mark::AllCommitted,
            clients.count() == usize::from(rules.clients),
        );
        Some(next.finish(rules, self))
    }

    /// A crash, and the start after it: what was not synced is lost from any entry on, or, if it
    /// was a cut, perhaps undone; C is what Data.fs tells, or nothing.
    fn crashes(&self, rules: &Rules, node: usize, offer: &mut impl FnMut(Step, Option<Next>)) {
        let me = &self.replicas[node];
        if me.crashes == 0 {
            return;
        }
        // Cutting and appending are writes, in this order; a disk keeps the first so many of them.
        let shorter = (me.synced()..=me.log.len()).map(|len| me.log.cut(len));
        let undone = (!me.log.starts_with(me.disk)).then_some(me.disk);
        for log in shorter.chain(undone) {
            let kept = match rules.is(Mutant::HintBeforeSync) {
                true => me.commit_mark.min(log.len()),
                false => me.commit_mark.min(me.synced()),
            };
            // A node that loses nothing does what one does that did not crash and keeps silent;
            // C that is lost asks for less than C that is not.
            if rules.reduce && log == me.log {
                continue;
            }
            let marks = [0, kept];
            let lost = usize::from(kept == 0 || rules.reduce);
            for commit_mark in &marks[lost..] {
                let step = Step::Crash {
                    node,
                    log,
                    commit_mark: *commit_mark,
                };
                offer(step, Some(self.crash(rules, node, log, *commit_mark)));
            }
        }
    }

    fn crash(&self, rules: &Rules, node: usize, log: Log, commit_mark: u8) -> Next {
        let me = &self.replicas[node];
        let applied = match rules.is(Mutant::AppliedBeforeSync) {
            true => me.commit_mark,
            false => me.commit_mark.min(me.synced()),
        };
        let mut next = Next::new(self);
        next.require(rules, applied <= log.len(), Property::DataFs);
        next.mark(Mark::EntryLost, log.len() < me.log.len());
        let me = next.replica(node);
        (me.log, me.disk, me.commit_mark) = (log, log, commit_mark);
        (me.role, me.office) = (Role::Replica, 0);
        me.crashes -= 1;
        if rules.is(Mutant::PromiseNotSynced) {
            me.promised = log.last().epoch;
        }
        next.finish(rules, self)
    }

    fn tids_rise(&self, log: Log) -> bool {
        let is_client = |seq: &u8| log.barrier(log.epoch(*seq)) != Some(*seq);
        let tids: Vec<u8> = (1..=log.len())
            .filter(is_client)
            .map(|seq| self.tid(log, seq))
            .collect();
        tids.is_sorted_by(|a, b| a < b)
    }
}

impl Next {
    /// Puts another log into the place of a node's, of which `matched` entries stay.
    fn replace_log(&mut self, rules: &Rules, node: usize, matched: u8, log: Log) {
        let committed = self.state.committed;
        let me = self.replica(node);
        let (old, mark) = (me.log, me.commit_mark);
        me.log = log;
        let cut = old.len() > matched;
        self.require(rules, !cut || mark <= matched, Property::Rewind);
        // That is all that can be asked: what it cuts may be committed in an epoch that it has not
        // heard of, by a quorum that it does not belong to.
        self.mark(Mark::CommittedCut, old.common(committed) > matched);
        self.mark(Mark::Rewound, cut);
    }

    /// A primary serves clients from now on: it must have applied all that others have shown.
    fn open(&mut self, rules: &Rules, node: usize) {
        let me = self.state.replicas[node];
        let shown = self.state.committed_before(me.office).len();
        self.require(rules, me.commit_mark >= shown, Property::Reads);
    }
}
