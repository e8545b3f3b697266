//! What a replica knows of its log without reading it: where epochs end, how far it is synced,
//! committed and applied, and what is settled. The entries are in the journal.

use std::collections::VecDeque;

use super::event::LogStart;
use super::members::Members;
use super::message::{Position, Record};
use super::settings::{Change, Settings};
use crate::entry::{Entry, EntryHeader, Point};
use crate::ids::{Epoch, Seq, Tid};
use crate::limits::{FETCH_ENDS_MAX, JOURNAL_EPOCHS_MAX};

/// See the module's page. `applied <= applying <= committed <= last`, `synced <= last`.
#[derive(Debug)]
pub(super) struct Log {
    /// In front of what can be read.
    before: Position,
    /// In front of the first entry of which the epoch is known.
    known_after: Position,
    /// The last entry of each epoch, oldest first. The last one is the end of the log.
    ends: VecDeque<Position>,
    last: Point,
    /// Of the last transaction.
    last_tid: Tid,
    synced: Seq,
    committed: Seq,
    applied: Seq,
    /// What was asked to be applied.
    applying: Seq,
    /// As of the last entry that is committed, and on stable storage here: no disk takes that back.
    settled: Settings,
    /// That entry.
    settled_through: Seq,
    /// The entry that settled the members, at or before that.
    settled_members: Position,
    /// Behind what is settled.
    changes: VecDeque<(Seq, Change)>,
    /// As of the end.
    current: Settings,
    history_from: Tid,
}

impl Log {
    pub(super) fn new(start: LogStart) -> Self {
        let LogStart {
            before,
            last,
            last_tid,
            ends,
            committed,
            applied,
            settled,
            settings,
            changes,
            history_from,
            packed: _,
        } = start;
        let ends = ends.into_iter().filter(|end| end.seq > before.seq);
        let mut log = Self {
            before,
            known_after: before,
            ends: ends.collect(),
            last,
            last_tid,
            synced: last.seq,
            committed: settled,
            applied,
            applying: applied,
            settled: settings.clone(),
            settled_through: settled,
            settled_members: Position::default(),
            changes: changes.into(),
            current: settings,
            history_from,
        };
        let epoch = log.epoch_at(settled).unwrap_or_default();
        log.settled_members = Position {
            epoch,
            seq: settled,
        };
        for (seq, change) in &log.changes {
            log.current = log.current.changed(change, *seq);
        }
        log.commit(committed.max(applied).min(last.seq));
        log
    }

    /// Where it ends.
    pub(super) const fn last(&self) -> Position {
        Position {
            epoch: self.last.epoch,
            seq: self.last.seq,
        }
    }

    pub(super) const fn last_point(&self) -> &Point {
        &self.last
    }

    pub(super) const fn last_tid(&self) -> Tid {
        self.last_tid
    }

    pub(super) const fn synced(&self) -> Seq {
        self.synced
    }

    pub(super) const fn committed(&self) -> Seq {
        self.committed
    }

    pub(super) const fn applied(&self) -> Seq {
        self.applied
    }

    pub(super) const fn before(&self) -> Position {
        self.before
    }

    pub(super) const fn history_from(&self) -> Tid {
        self.history_from
    }

    /// The data are others now, of the same log.
    pub(super) const fn set_history_from(&mut self, tid: Tid) {
        self.history_from = tid;
    }

    /// As of the end of the log.
    pub(super) const fn settings(&self) -> &Settings {
        &self.current
    }

    /// As of what is committed, and on stable storage here.
    pub(super) const fn settled(&self) -> &Settings {
        &self.settled
    }

    /// The changes that are not settled.
    pub(super) fn changes(&self) -> impl DoubleEndedIterator<Item = &(Seq, Change)> {
        self.changes.iter()
    }

    /// The epoch of an entry; `None` if there is none, or it was so long ago that nobody knows.
    pub(super) fn epoch_at(&self, seq: Seq) -> Option<Epoch> {
        if seq <= self.known_after.seq {
            return (seq == self.known_after.seq).then_some(self.known_after.epoch);
        }
        let index = self.ends.partition_point(|end| end.seq < seq);
        self.ends.get(index).map(|end| end.epoch)
    }

    /// Whether the log has this entry, and so all that is before it. Nothing is before the first.
    pub(super) fn has(&self, position: Position) -> bool {
        position == Position::default() || self.epoch_at(position.seq) == Some(position.epoch)
    }

    /// The last entry that it has in common with a log that these are ends of, the newest first.
    pub(super) fn common(&self, ends: &[Position]) -> Option<Position> {
        ends.iter().find_map(|theirs| {
            if *theirs == Position::default() {
                return Some(*theirs);
            }
            let ours = self.ends.iter().rev();
            let ours = ours.chain(std::iter::once(&self.known_after));
            let mut ours = ours.filter(|ours| ours.epoch == theirs.epoch);
            let ours = ours.next()?;
            let seq = ours.seq.min(theirs.seq);
            // An epoch of theirs may begin behind the end of ours only if one of them is no log.
            let position = Position { seq, ..*theirs };
            self.has(position).then_some(position)
        })
    }

    /// For [`Self::common`], down to what is committed.
    pub(super) fn ends(&self) -> Vec<Position> {
        let committed = Position {
            epoch: self.epoch_at(self.committed).unwrap_or_default(),
            seq: self.committed,
        };
        let uncommitted = self.ends.iter().rev();
        let uncommitted = uncommitted.take_while(|end| end.seq > self.committed);
        let uncommitted = uncommitted.copied().take(FETCH_ENDS_MAX - 1);
        uncommitted.chain(std::iter::once(committed)).collect()
    }

    /// An entry was appended.
    pub(super) fn push(&mut self, header: &EntryHeader, change: Option<Change>) {
        self.last = header.point();
        if header.tid != Tid::ZERO {
            self.last_tid = header.tid;
        }
        let last = self.last();
        match self.ends.back_mut() {
            Some(end) if end.epoch == last.epoch => *end = last,
            _ => self.ends.push_back(last),
        }
        if self.ends.len() > JOURNAL_EPOCHS_MAX
            && let Some(oldest) = self.ends.pop_front()
        {
            self.known_after = oldest;
        }
        if let Some(change) = change {
            self.current = self.current.changed(&change, last.seq);
            self.changes.push_back((last.seq, change));
        }
    }

    /// Whether an entry follows the end.
    pub(super) fn is_next(&self, entry: &Entry) -> bool {
        let header = entry.header();
        header.seq == self.last.seq.next() && header.previous == self.last.digest
    }

    /// Behind this there is nothing any more. The digest is to be told by [`Self::reset`].
    pub(super) fn cut_after(&mut self, after: Seq) {
        let epoch = self.epoch_at(after).unwrap_or_default();
        while self.ends.back().is_some_and(|end| end.seq > after) {
            self.ends.pop_back();
        }
        let last = Position { epoch, seq: after };
        if after > self.known_after.seq && self.ends.back() != Some(&last) {
            self.ends.push_back(last);
        }
        self.last.epoch = epoch;
        self.last.seq = after;
        self.synced = self.synced.min(after);
        self.changes.retain(|(seq, _)| *seq <= after);
        self.current = self.settled.clone();
        for (seq, change) in &self.changes {
            self.current = self.current.changed(change, *seq);
        }
    }

    /// The log ends here, on stable storage.
    pub(super) fn reset(&mut self, last: Point, last_tid: Tid) {
        if last.seq < self.last.seq {
            self.cut_after(last.seq);
        }
        self.last = last;
        self.last_tid = last_tid;
        self.synced = last.seq;
        // What others have committed, and this disk had no room for, is to be learnt again.
        self.committed = self.committed.min(last.seq);
        self.settle();
    }

    pub(super) fn on_synced(&mut self, through: Seq) {
        self.synced = self.synced.max(through.min(self.last.seq));
        self.settle();
    }

    /// All up to here is committed.
    pub(super) fn commit(&mut self, through: Seq) {
        if through <= self.committed {
            return;
        }
        self.committed = through;
        self.settle();
    }

    fn settle(&mut self) {
        let through = self.committed.min(self.synced);
        self.settled_through = self.settled_through.max(through);
        while self.changes.front().is_some_and(|(seq, _)| *seq <= through) {
            let Some((seq, change)) = self.changes.pop_front() else {
                break;
            };
            self.settled = self.settled.changed(&change, seq);
            if members_of(&change).is_some() {
                let epoch = self.epoch_at(seq).unwrap_or_default();
                self.settled_members = Position { epoch, seq };
            }
        }
    }

    /// Up to where it has to be applied now; `None` if it was asked for already.
    pub(super) fn begin_apply(&mut self, through: Seq) -> Option<Seq> {
        let is_news = through > self.applying;
        self.applying = self.applying.max(through);
        is_news.then_some(through)
    }

    pub(super) fn on_applied(&mut self, through: Seq) {
        self.applied = self.applied.max(through);
    }

    /// The last entry that says who the members are.
    pub(super) fn record(&self) -> Record {
        let tail = self.changes.iter().rev();
        let mut tail = tail.filter(|(_, change)| members_of(change).is_some());
        let position = tail.next().map_or(self.settled_members, |(seq, _)| {
            let epoch = self.epoch_at(*seq).unwrap_or_default();
            Position { epoch, seq: *seq }
        });
        Record {
            position,
            members: self.current.members.clone(),
        }
    }

    /// Of an arbiter: who is in sync, by an entry that it has not.
    pub(super) fn put_on_record(&mut self, position: Position, members: Members) {
        self.settled.members = members.clone();
        self.current.members = members;
        self.settled_members = position;
    }

    /// Who is counted for which entries: the newest first, each from this entry on.
    pub(super) fn regimes(&self) -> impl Iterator<Item = (Seq, &Members)> {
        let tail = self.changes.iter().rev();
        let tail = tail.filter_map(|(seq, change)| Some((*seq, members_of(change)?)));
        tail.chain([(self.settled_members.seq, &self.settled.members)])
    }

    pub(super) fn invariants(&self) {
        assert!(self.applied <= self.applying, "applied before it was asked");
        assert!(self.committed <= self.last.seq, "committed behind the end");
        assert!(self.synced <= self.last.seq, "synced behind the end");
        let settled = self.committed.min(self.synced);
        assert!(
            self.settled_through <= settled,
            "settled behind what is committed"
        );
        assert!(
            self.changes
                .iter()
                .all(|(seq, _)| *seq > self.settled_through),
            "a settled change waits to be settled"
        );
        let ends = self.ends.iter().copied();
        assert!(
            ends.is_sorted_by(|a, b| a.epoch < b.epoch && a.seq < b.seq),
            "epochs end in another order than they began"
        );
        let end = self.ends.back().map_or(self.known_after, |end| *end);
        assert_eq!(end, self.last(), "the last epoch ends elsewhere");
    }
}

/// The members, if this is what changes them.
const fn members_of(change: &Change) -> Option<&Members> {
    match change {
        Change::Barrier(settings) => Some(&settings.members),
        Change::Members(members) => Some(members),
        Change::Ceiling { .. } | Change::Pack { .. } => None,
    }
}
