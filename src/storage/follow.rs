//! A data file that only a log writes to, served: [`apply`](super::apply) writes, on a thread of
//! its own, and what is here reads, votes and stages, and writes nothing.
//!
//! ```text
//!   finish ─► Propose ──► the log ──► applied ─► on_applied ─► Committed
//!                            └──────► lost ────► on_lost ────► Lost
//! ```
//!
//! A transaction that was proposed excludes those that name one of its objects until it has been
//! applied, or is known never to be. It has no tid and no place before; these are for the log, and
//! for each data file.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::apply::Applied;
use super::blob::Blobs;
use super::blob::layout::BlobDirectory;
use super::commit::Refusal;
use super::compose::Proposal;
use super::disk::{Disk, File, FileId};
use super::format::FIRST_TXN_POS;
use super::index::Index;
use super::memory;
use super::staging::{TxnId, TxnState};
use super::{Commit, Event, FileStorage, Job, Options, Origin, Witnessing};
use crate::ids::{Oid, Tid};
use crate::limits::OID_BLOCK;

/// A data file as its applier knows it at one moment. Who reads it shares the index's pages with
/// it.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Where it is.
    pub disk: Arc<dyn Disk>,
    /// Its name.
    pub path: PathBuf,
    /// The file.
    pub file: Arc<dyn File>,
    /// What stands under the name.
    pub file_id: FileId,
    /// Where the current record of each object is.
    pub index: Index,
    /// Behind the last transaction.
    pub tail: u64,
    /// The tid of the last transaction.
    pub last_tid: Tid,
    /// Where blobs are kept, if they are.
    pub blobs: Option<BlobDirectory>,
}

impl Followed {
    /// A data file that is not there yet.
    pub fn nothing(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self {
            disk,
            path,
            file: memory::nothing(),
            file_id: FileId {
                device: 0,
                inode: 0,
            },
            index: Index::new(),
            tail: FIRST_TXN_POS,
            last_tid: Tid::ZERO,
            blobs: None,
        }
    }
}

/// What a storage has that is fed by a log.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// Transactions whose end is not known.
    proposed: BTreeMap<TxnId, Proposed>,
    /// Oids that may be handed out, in order. Two blocks at most: no more are asked for while there
    /// is enough.
    oids: VecDeque<Range<u64>>,
    oids_wanted: bool,
    /// No vote is granted.
    is_frozen: bool,
    /// Those that would be.
    withheld: VecDeque<TxnId>,
    /// What is not later than this cannot be undone: a pack of it was ordered.
    packed_until: Tid,
    /// The same, while one is being ordered.
    ordering: Option<Tid>,
}

#[derive(Debug)]
struct Proposed {
    /// Bytes that it takes in the file, as the vote has counted them.
    len: u64,
    /// The files of its blobs, wherever they are now.
    files: Vec<PathBuf>,
    /// The earliest transaction that it undoes.
    undoes: Option<Tid>,
}

impl FileStorage {
    /// Serves a data file that a log writes to. Nothing is opened, locked or written.
    pub fn follow(followed: Followed, options: Options) -> Self {
        let Followed {
            disk,
            path,
            file,
            file_id,
            index,
            tail,
            last_tid,
            blobs,
        } = followed;
        let origin = Origin {
            disk,
            path,
            file,
            file_id,
            lock: None,
            index,
            index_saved: tail,
            tail,
            last_tid,
            ceiling: None,
            blobs: blobs.map(Blobs::new),
        };
        let mut storage = Self::new(options, origin, Witnessing::Off);
        // Space is a matter of who applies.
        storage.allocated_end = u64::MAX;
        storage.feed = Some(Feed::default());
        storage
    }

    /// Whether only a log writes to it.
    pub const fn is_fed(&self) -> bool {
        self.feed.is_some()
    }

    /// The data were replaced: packed, or by a copy. What is read from the old file meanwhile is
    /// answered as from that, or read anew. If there are other transactions than were applied here,
    /// those that are about to be voted, or were, are given up: what they were compared with may
    /// have changed.
    pub fn refollow(&mut self, followed: Followed, now: Instant) {
        let has_gap = followed.last_tid != self.last_tid;
        let old = std::mem::replace(&mut self.file, followed.file);
        self.events.push_back(Event::Run(Job::Close(old)));
        self.generation += 1;
        self.file_id = followed.file_id;
        self.path = followed.path;
        self.index = followed.index;
        self.index_saved = followed.tail;
        self.advance(followed.tail, followed.last_tid);
        match (&mut self.blobs, followed.blobs) {
            (Some(blobs), Some(directory)) => blobs.move_to(directory),
            (blobs, directory) => *blobs = directory.map(Blobs::new),
        }
        for txn in self.txns.values_mut() {
            // These are by position.
            txn.serials_read.clear();
        }
        if has_gap {
            self.give_up_compared(now);
        }
    }

    fn advance(&mut self, tail: u64, tid: Tid) {
        self.tail = tail;
        self.last_tid = tid;
        self.assigned_end = tail;
        self.assigned_tid = tid;
        self.end_tid = Some(tid);
    }

    /// Proposes a voted transaction; see [`FileStorage::finish`].
    pub(super) fn propose(&mut self, id: TxnId, now: Instant) -> bool {
        let Some(txn) = self.txns.get_mut(&id) else {
            return false;
        };
        let TxnState::Voted { ticket, len, .. } = txn.state else {
            return false;
        };
        let tid = txn.metadata.tid;
        let undoes = txn.undos.iter().flatten().min().copied();
        let undoable = self.check_undos(id);
        let composed = match undoable.and_then(|()| self.compose(id)) {
            Ok(composed) => *composed,
            Err(refusal) => {
                log::error!("{}: a voted transaction is lost ({refusal:?})", self.name());
                self.roll_back(id, now);
                self.events.push_back(Event::Lost(id));
                return true;
            }
        };
        if let Some(txn) = self.txns.get_mut(&id) {
            txn.state = TxnState::Finishing { ticket };
            let rest = txn.take_rest();
            let staged = txn.blobs.take();
            self.warn_of_missing_blobs(&staged, None);
            self.discard_rest(rest);
        }
        let files = composed.blobs.iter().map(|(_, path)| path.clone());
        let proposed = Proposed {
            len,
            files: files.collect(),
            undoes,
        };
        if let Some(feed) = &mut self.feed {
            feed.proposed.insert(id, proposed);
        }
        self.events.push_back(Event::Propose(Box::new(Proposal {
            txn: id,
            body: composed.body,
            tid,
            max_oid: composed.max_oid,
            blobs: composed.blobs,
        })));
        let held = self.lock.downgrade(ticket);
        self.go_on(held, now);
        true
    }

    /// A transaction of the log is in the data file now; they come in the order of their tids.
    /// `txn`: it was proposed here as that. An [`Event::Committed`] follows.
    pub fn on_applied(&mut self, applied: Applied, txn: Option<TxnId>, now: Instant) {
        let Applied {
            tid,
            end,
            published,
            ..
        } = applied;
        if tid <= self.last_tid {
            // It came with a copy, and so with others that nobody here was told of.
            if let Some(id) = txn {
                self.on_lost(id, now);
            }
            return;
        }
        self.index.enter_all(&published.change);
        self.advance(end, tid);
        if let Some(oid) = published.max_oid {
            self.skip_oids(oid);
        }
        let txn = txn.filter(|id| self.end_proposed(*id));
        self.events.push_back(Event::Committed(Commit {
            txn,
            tid,
            oids: published.oids.clone(),
            changed: published.changed.clone(),
            object_count: self.object_count(),
            len: self.tail,
        }));
        match txn {
            Some(id) => {
                let Some(txn) = self.txns.remove(&id) else {
                    return;
                };
                self.withdraw(id, txn.offer);
                if let Some(ticket) = txn.state.ticket() {
                    self.let_go(ticket, now);
                }
            }
            // Nobody else commits while transactions are voted here.
            None if published.oids.is_empty() => {}
            None => self.give_up_compared(now),
        }
    }

    /// A transaction that was proposed will never be committed, or nobody can know: it is rolled
    /// back, and lets others have its lock. An [`Event::Lost`] follows.
    pub fn on_lost(&mut self, txn: TxnId, now: Instant) {
        if !self.end_proposed(txn) {
            return;
        }
        self.roll_back(txn, now);
        self.events.push_back(Event::Lost(txn));
    }

    fn end_proposed(&mut self, txn: TxnId) -> bool {
        let feed = self.feed.as_mut();
        let Some(proposed) = feed.and_then(|feed| feed.proposed.remove(&txn)) else {
            return false;
        };
        self.voted_len -= proposed.len;
        // Those that the log has not taken, or had already: where a file has the wanted name, too,
        // it keeps both when it is given that.
        self.discard(txn, proposed.files);
        true
    }

    /// A pack is being ordered: nothing that it may drop is undone any more. `None`: it is not
    /// ordered.
    pub fn order_pack(&mut self, until: Option<Tid>) {
        if let Some(feed) = &mut self.feed {
            feed.ordering = until;
        }
    }

    /// A pack was ordered: who undoes what it drops would bring back what refers to nothing.
    pub fn on_pack_ordered(&mut self, until: Tid) {
        if let Some(feed) = &mut self.feed {
            feed.packed_until = feed.packed_until.max(until);
        }
    }

    /// Whether a transaction is proposed that undoes something that is not later than this.
    pub fn is_undoing(&self, until: Tid) -> bool {
        let proposed = self.feed.iter().flat_map(|feed| feed.proposed.values());
        let mut undone = proposed.filter_map(|proposed| proposed.undoes);
        undone.any(|tid| tid <= until)
    }

    /// Up to where nothing can be undone.
    pub(super) fn undoable_after(&self) -> Tid {
        let feed = self.feed.as_ref();
        feed.map_or(Tid::ZERO, |feed| {
            feed.packed_until.max(feed.ordering.unwrap_or_default())
        })
    }

    /// Whether transactions are proposed whose end is not known.
    pub(super) fn has_proposed(&self) -> bool {
        let feed = self.feed.as_ref();
        feed.is_some_and(|feed| !feed.proposed.is_empty())
    }

    /// The transactions that hold the lock as of what is no longer current.
    fn give_up_compared(&mut self, now: Instant) {
        let compared = self.txns.iter().filter_map(|(id, txn)| match txn.state {
            TxnState::Checking { .. } => Some((*id, false)),
            TxnState::Voted { .. } => Some((*id, true)),
            _ => None,
        });
        for (id, is_voted) in compared.collect::<Vec<_>>() {
            if is_voted {
                self.roll_back(id, now);
                self.events.push_back(Event::Lost(id));
            } else {
                let reason = "the database was replaced while it was voted";
                self.refuse(id, Refusal::Disk(reason.to_owned()), now);
            }
        }
    }

    /// From now on no vote is granted; those that would be are when this is over.
    pub fn freeze(&mut self) {
        if let Some(feed) = &mut self.feed {
            feed.is_frozen = true;
        }
    }

    /// Votes are granted again.
    pub fn thaw(&mut self, now: Instant) {
        let Some(feed) = &mut self.feed else { return };
        feed.is_frozen = false;
        for id in std::mem::take(&mut feed.withheld) {
            if let Some(ticket) = self.checking(id)
                && let Err(refusal) = self.on_compared(id, ticket, now)
            {
                self.refuse(id, refusal, now);
            }
        }
    }

    /// Whether a vote must not be granted now. It is looked at again later.
    pub(super) fn withholds(&mut self, id: TxnId) -> bool {
        let feed = self.feed.as_mut().filter(|feed| feed.is_frozen);
        feed.is_some_and(|feed| {
            feed.withheld.push_back(id);
            true
        })
    }

    /// Hands out oids; see [`FileStorage::allocate_oids`].
    pub(super) fn take_oids(&mut self, count: u64) -> Option<Range<u64>> {
        let feed = self.feed.as_mut()?;
        let mut taken = None;
        while let Some(first) = feed.oids.front_mut() {
            if first.end - first.start >= count {
                taken = Some(first.start..first.start + count);
                first.start += count;
                break;
            }
            // Too few in a row.
            feed.oids.pop_front();
        }
        let left: u64 = feed.oids.iter().map(|range| range.end - range.start).sum();
        if left < OID_BLOCK / 2 && !std::mem::replace(&mut feed.oids_wanted, true) {
            self.events
                .push_back(Event::OidsWanted { count: OID_BLOCK });
        }
        taken
    }

    /// The answer to [`Event::OidsWanted`]; `None` if there are none to be had. An
    /// [`Event::OidsRaised`] follows.
    pub fn on_oids(&mut self, range: Option<Range<u64>>) {
        let Some(feed) = &mut self.feed else { return };
        feed.oids_wanted = false;
        let raised = range.is_some();
        feed.oids.extend(range);
        self.events.push_back(Event::OidsRaised { raised });
    }

    /// Oids are handed out by another node from now on; those that are left here will be by nobody.
    pub fn forget_oids(&mut self) {
        if let Some(feed) = &mut self.feed {
            feed.oids.clear();
        }
    }

    /// A client has stored an object under this oid, of its own making perhaps: nobody is given
    /// that, or one below it, any more.
    fn skip_oids(&mut self, stored: Oid) {
        let Some(feed) = &mut self.feed else { return };
        for range in &mut feed.oids {
            let least = stored.0.saturating_add(1);
            range.start = range.start.max(least).min(range.end);
        }
        feed.oids.retain(|range| !range.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::limits::STAGED_LEN_IN_MEMORY_MAX;
    use crate::storage::apply::Applier;
    use crate::storage::disk::OsDisk;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::recover::Access;
    use crate::storage::staging::LARGE_COUNT_MIN;
    use crate::storage::testing::{Rig, TestDir, metadata, options};
    use crate::storage::transfer::Transfer;
    use crate::storage::{Answer, LockScope, Lookup, Metadata, Unanswered, Vote};

    const DATA: &str = "Data.fs";

    /// A storage, the applier that it follows, and a log that does what it is told.
    struct Fed {
        rig: Rig,
        applier: Applier,
        disk: Arc<dyn Disk>,
        /// Where the log keeps files of blobs.
        staged: PathBuf,
        proposals: VecDeque<Proposal>,
        /// Transactions that others were offered blobs of, and how many.
        offered: BTreeMap<TxnId, usize>,
        /// Others have them at once.
        takes_offers: bool,
        next_tid: Tid,
    }

    impl Fed {
        fn new() -> Self {
            Self::with(options())
        }

        fn with(options: Options) -> Self {
            let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
            Self::at(disk, Path::new(DATA), None, Path::new("journal"), options)
        }

        fn at(
            disk: Arc<dyn Disk>,
            path: &Path,
            blobs: Option<&Path>,
            staged: &Path,
            options: Options,
        ) -> Self {
            let access = Access::Applied;
            let applier = Applier::open(disk.clone(), path, blobs, access, &mut |_| ()).unwrap();
            let storage = FileStorage::follow(applier.follow(), options);
            Self {
                rig: Rig::around(storage),
                applier,
                disk,
                staged: staged.to_owned(),
                proposals: VecDeque::new(),
                offered: BTreeMap::new(),
                takes_offers: true,
                next_tid: Tid(1000),
            }
        }

        /// What comes but for proposals, which go to the log.
        fn settle(&mut self) -> Vec<Event> {
            let mut events = Vec::new();
            for event in self.rig.settle() {
                match event {
                    Event::Propose(proposal) => self.proposals.push_back(*proposal),
                    Event::Offer(id, blobs) => {
                        self.offered.insert(id, blobs.len());
                        if self.takes_offers {
                            self.rig.storage.on_offered(id, self.rig.now);
                            events.extend(self.settle());
                        }
                    }
                    Event::Withdraw(id) => assert!(self.offered.remove(&id).is_some()),
                    Event::Spilled(_) => {}
                    event => events.push(event),
                }
            }
            events
        }

        fn vote(&mut self, id: TxnId) -> Vec<Event> {
            assert!(self.rig.storage.vote(id, self.rig.now));
            self.settle()
        }

        fn granted(&mut self, id: TxnId) -> bool {
            let events = self.vote(id);
            matches!(events[..], [Event::Voted(of, Vote::Granted)] if of == id)
        }

        fn apply(&mut self, proposal: &Proposal) -> Applied {
            let tid = proposal.tid.unwrap_or(self.next_tid);
            self.next_tid = tid.next();
            let transfer = Transfer::decode(proposal.body.pieces()).unwrap();
            for (name, path) in &proposal.blobs {
                let place = self.staged.join(name.digest.to_string());
                self.disk.rename(path, &place).unwrap();
            }
            self.applier.apply(tid, &transfer, &self.staged).unwrap()
        }

        /// The log commits what was proposed first.
        fn commit_next(&mut self) -> Vec<Event> {
            let proposal = self.proposals.pop_front().unwrap();
            let applied = self.apply(&proposal);
            self.rig
                .storage
                .on_applied(applied, Some(proposal.txn), self.rig.now);
            let events = self.settle();
            self.assert_same();
            events
        }

        fn assert_same(&self) {
            let Self { rig, applier, .. } = self;
            let storage = &rig.storage;
            assert!(storage.index.iter().eq(applier.index().iter()));
            assert_eq!(storage.index.len(), applier.index().len());
            assert_eq!(storage.tail, applier.data_file().1);
            assert_eq!(storage.last_tid, applier.last_tid());
        }

        /// Votes and finishes; the log commits.
        fn end(&mut self, id: TxnId) -> Tid {
            assert!(self.granted(id));
            self.rig.finish(id);
            assert_eq!(self.settle().len(), 0);
            assert!(self.rig.storage.is_writing());
            match &self.commit_next()[..] {
                [Event::Committed(commit)] => {
                    assert_eq!(commit.txn, Some(id));
                    commit.tid
                }
                events => panic!("{events:?}"),
            }
        }

        fn commit(&mut self, stores: &[(u64, u64, &'static str)]) -> Tid {
            let id = self.rig.begin(stores);
            self.end(id)
        }

        /// What the data file has under its name, without what is behind the last transaction.
        fn bytes(&mut self) -> Vec<u8> {
            self.applier.checkpoint().unwrap();
            let (file, tail) = self.applier.data_file();
            let mut bytes = vec![0; usize::try_from(tail).unwrap()];
            file.read_at(&mut bytes, 0).unwrap();
            bytes
        }
    }

    /// What a client wants of a transaction; the tids are of those before.
    type Step = (fn(&mut Rig, TxnId, &[Tid]), u8);

    fn store(rig: &mut Rig, id: TxnId, oid: u64, serial: u64, data: impl Into<Bytes>) {
        let serial = Some(Tid(serial));
        assert!(rig.storage.store(id, Oid(oid), serial, data.into()));
        rig.settle();
    }

    const STEPS: [Step; 13] = [
        (|rig, id, _| store(rig, id, 0, 0, "root"), b' '),
        (
            |rig, id, tids| {
                store(rig, id, 0, tids[0].0, "other root");
                store(rig, id, 1, 0, vec![7; 5000]);
            },
            b'p',
        ),
        (|_, _, _| {}, b' '),
        (|rig, id, tids| undo(rig, id, tids[1]), b' '),
        (|rig, id, tids| undo(rig, id, tids[3]), b' '),
        // The object that there was once is gone again, and then there again.
        (|rig, id, tids| undo(rig, id, tids[4]), b' '),
        (|rig, id, tids| undo(rig, id, tids[5]), b' '),
        (
            |rig, id, tids| assert!(rig.storage.delete(id, Oid(1), tids[6])),
            b' ',
        ),
        // More than is kept in memory, and more than is laid out at once.
        (
            |rig, id, _| {
                for oid in 2..12 {
                    store(
                        rig,
                        id,
                        oid,
                        0,
                        vec![oid as u8; STAGED_LEN_IN_MEMORY_MAX / 9],
                    );
                }
                store(rig, id, 12, 0, "short");
            },
            b' ',
        ),
        (
            |rig, id, _| {
                for oid in 0..LARGE_COUNT_MIN as u64 + 10 {
                    store(rig, id, 5000 - oid, 0, vec![1; 100 + oid as usize % 7]);
                }
            },
            b' ',
        ),
        (|rig, id, tids| undo(rig, id, tids[9]), b' '),
        // The same data as at first, which is told, and as never.
        (
            |rig, id, tids| {
                let data = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
                let storage = &mut rig.storage;
                assert!(storage.restore(id, Oid(0), data("root"), Some(tids[0])));
                assert!(storage.restore(id, Oid(12), data("other"), Some(tids[8])));
                assert!(storage.restore(id, Oid(2), None, None));
            },
            b' ',
        ),
        (|rig, id, tids| store(rig, id, 0, tids[11].0, "last"), b' '),
    ];

    fn undo(rig: &mut Rig, id: TxnId, tid: Tid) {
        assert!(rig.storage.undo(id, Some(tid)));
    }

    #[test]
    fn the_log_writes_what_a_server_alone_would_have_written() {
        // Those that are packed cannot be undone.
        for status in [b' ', b'p'] {
            let disk = Arc::new(MemoryDisk::new());
            let mut alone = Rig::at(disk.clone(), Path::new(DATA), options());
            let mut fed = Fed::new();
            let mut tids = Vec::new();
            let count = if status == b' ' { STEPS.len() } else { 2 };
            for (number, (step, wanted)) in STEPS.iter().take(count).enumerate() {
                let metadata = Metadata {
                    extension: Bytes::from_static(b"}q."),
                    status: if status == b' ' { b' ' } else { *wanted },
                    ..metadata()
                };
                let id = alone.storage.begin(metadata.clone());
                step(&mut alone, id, &tids);
                let tid = alone.end(id);
                fed.next_tid = tid;
                let id = fed.rig.storage.begin(metadata);
                step(&mut fed.rig, id, &tids);
                assert_eq!(fed.end(id), tid, "{number}");
                tids.push(tid);
            }
            let expected = disk.read(Path::new(DATA)).unwrap();
            assert_eq!(alone.storage.tail, fed.rig.storage.tail);
            let len = usize::try_from(alone.storage.tail).unwrap();
            assert!(fed.bytes() == expected[..len]);
            assert!(!fed.rig.storage.is_writing());
            fed.rig.storage.close().unwrap();
        }
    }

    #[test]
    fn what_is_proposed_is_not_seen_and_excludes_others_until_it_is_applied() {
        let mut fed = Fed::new();
        let first = fed.commit(&[(1, 0, "one"), (2, 0, "two")]);
        let writer = fed.rig.begin(&[(1, first.0, "un")]);
        assert!(fed.granted(writer));
        fed.rig.finish(writer);
        assert!(fed.rig.storage.is_busy(writer));
        // Its client is gone: that changes nothing.
        fed.rig.storage.abort(writer, fed.rig.now);
        let same = fed.rig.begin(&[(1, first.0, "uno")]);
        assert!(fed.vote(same).is_empty());
        let other = fed.rig.begin(&[(2, first.0, "deux")]);
        assert!(fed.vote(other).is_empty(), "as in the queue of ZEO");
        fed.rig.storage.abort(same, fed.rig.now);
        assert!(matches!(fed.settle()[..], [Event::Voted(id, Vote::Granted)] if id == other));
        fed.rig.storage.abort(other, fed.rig.now);
        let again = fed.rig.begin(&[(1, first.0, "uno")]);
        assert!(fed.vote(again).is_empty());
        assert_eq!(fed.rig.current(1).unwrap().0, "one");
        let events = fed.commit_next();
        let [
            Event::Committed(commit),
            Event::Voted(id, Vote::Conflicts(conflicts)),
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert_eq!((commit.txn, *id), (Some(writer), again));
        assert_eq!((&commit.oids[..], commit.object_count), (&[Oid(1)][..], 2));
        assert_eq!(conflicts[0].committed, commit.tid);
        assert_eq!(fed.rig.current(1).unwrap(), (Bytes::from("un"), commit.tid));
    }

    #[test]
    fn a_transaction_that_is_lost_lets_the_next_one_in() {
        let mut fed = Fed::new();
        let first = fed.commit(&[(1, 0, "one")]);
        let lost = fed.rig.begin(&[(1, first.0, "un")]);
        assert!(fed.granted(lost));
        fed.rig.finish(lost);
        let next = fed.rig.begin(&[(1, first.0, "uno")]);
        assert!(fed.vote(next).is_empty());
        fed.proposals.clear();
        fed.settle();
        fed.proposals.clear();
        fed.rig.storage.on_lost(lost, fed.rig.now);
        let events = fed.settle();
        assert!(
            matches!(events[..], [Event::Voted(a, Vote::Granted), Event::Lost(b)]
                if (a, b) == (next, lost)),
            "{events:?}"
        );
        // Told twice, or by mistake.
        fed.rig.storage.on_lost(lost, fed.rig.now);
        fed.rig.storage.on_lost(next, fed.rig.now);
        assert!(fed.settle().is_empty());
        fed.rig.finish(next);
        fed.settle();
        assert!(matches!(fed.commit_next()[..], [Event::Committed(_)]));
        assert_eq!(fed.rig.storage.voted_len, 0);
        assert_eq!(fed.rig.current(1).unwrap().0, "uno");
    }

    #[test]
    fn what_others_commit_is_seen_and_ends_the_votes_that_know_nothing_of_it() {
        let mut fed = Fed::with(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let first = fed.commit(&[(1, 0, "one"), (2, 0, "two")]);
        let voted = fed.rig.begin(&[(1, first.0, "un")]);
        assert!(fed.granted(voted));
        let staged = fed.rig.begin(&[(1, first.0, "uno")]);
        let transfer = |records: Vec<crate::storage::transfer::Record>| Transfer {
            storage: "1".to_owned(),
            status: b' ',
            user: Bytes::new(),
            description: Bytes::new(),
            extension: Bytes::new(),
            records,
            blobs: Vec::new(),
        };
        let apply = |fed: &mut Fed, transfer| {
            let tid = fed.applier.last_tid().next();
            let applied = fed.applier.apply(tid, &transfer, Path::new("")).unwrap();
            fed.rig.storage.on_applied(applied, None, fed.rig.now);
            fed.assert_same();
            fed.settle()
        };
        // A jump changes nothing.
        let events = apply(&mut fed, transfer(Vec::new()));
        assert!(matches!(&events[..], [Event::Committed(commit)] if commit.txn.is_none()));
        let record = crate::storage::transfer::Record {
            oid: Oid(1),
            data: Some(Bytes::from_static(b"theirs")),
            same_as: None,
        };
        let events = apply(&mut fed, transfer(vec![record]));
        assert!(
            matches!(&events[..], [Event::Committed(commit), Event::Lost(id)]
                if commit.txn.is_none() && *id == voted),
            "{events:?}"
        );
        assert!(!fed.rig.storage.finish(voted, fed.rig.wall, fed.rig.now));
        assert!(matches!(
            fed.vote(staged)[..],
            [Event::Voted(_, Vote::Conflicts(_))]
        ));
        assert_eq!(fed.rig.current(1).unwrap().0, "theirs");
    }

    #[test]
    fn a_wanted_tid_waits_for_all_that_have_none_yet() {
        let mut fed = Fed::with(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let restoring = |fed: &mut Fed, tid| {
            let id = fed.rig.storage.begin(Metadata {
                tid: Some(Tid(tid)),
                ..metadata()
            });
            let data = Some(Bytes::from_static(b"restored"));
            assert!(fed.rig.storage.restore(id, Oid(7), data, None));
            id
        };
        let writer = fed.rig.begin(&[(1, 0, "one")]);
        assert!(fed.granted(writer));
        fed.rig.finish(writer);
        fed.settle();
        fed.next_tid = Tid(3000);
        let [early, late] = [2000, 4000].map(|tid| restoring(&mut fed, tid));
        assert!(fed.vote(early).is_empty() && fed.vote(late).is_empty());
        let events = fed.commit_next();
        assert!(
            matches!(
                events[..],
                [
                    Event::Committed(_),
                    Event::Voted(a, Vote::Refused(Refusal::WrongTid(Tid(2000)))),
                    Event::Voted(b, Vote::Granted)
                ] if (a, b) == (early, late)
            ),
            "{events:?}"
        );
        fed.rig.finish(late);
        fed.settle();
        assert_eq!(fed.proposals[0].tid, Some(Tid(4000)));
        assert_eq!(fed.proposals[0].max_oid, Some(Oid(7)));
        fed.commit_next();
        assert_eq!(fed.rig.current(7).unwrap().1, Tid(4000));
    }

    #[test]
    fn no_vote_is_granted_while_it_is_frozen() {
        let mut fed = Fed::with(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let first = fed.commit(&[(1, 0, "one"), (2, 0, "two")]);
        let before = fed.rig.begin(&[(1, first.0, "un")]);
        assert!(fed.granted(before));
        fed.rig.storage.freeze();
        let [waits, gone, stale] = [2, 3, 1].map(|oid| {
            let serial = if oid == 3 { 0 } else { first.0 };
            fed.rig.begin(&[(oid, serial, "later")])
        });
        assert!(fed.vote(waits).is_empty());
        assert!(fed.vote(gone).is_empty());
        assert!(fed.vote(stale).is_empty());
        // Who has voted may finish.
        fed.rig.finish(before);
        fed.settle();
        let events = fed.commit_next();
        assert!(
            matches!(
                events[..],
                [Event::Committed(_), Event::Voted(_, Vote::Conflicts(_))]
            ),
            "{events:?}"
        );
        assert!(fed.rig.storage.locked_since().is_none());
        fed.rig.storage.abort(gone, fed.rig.now);
        fed.rig.storage.thaw(fed.rig.now);
        let events = fed.settle();
        assert!(matches!(events[..], [Event::Voted(id, Vote::Granted)] if id == waits));
    }

    #[test]
    fn oids_come_from_the_log_in_blocks_and_none_twice() {
        let mut fed = Fed::new();
        assert_eq!(fed.rig.storage.allocate_oids(100), None);
        let wanted = |events: &[Event]| {
            let wanted = |event: &&Event| matches!(event, Event::OidsWanted { count: OID_BLOCK });
            events.iter().filter(wanted).count()
        };
        assert_eq!(wanted(&fed.settle()), 1);
        assert_eq!(fed.rig.storage.allocate_oids(100), None);
        assert_eq!(wanted(&fed.settle()), 0, "it is on its way");
        fed.rig.storage.on_oids(Some(50..OID_BLOCK));
        assert!(matches!(
            fed.settle()[..],
            [Event::OidsRaised { raised: true }]
        ));
        let mut next = 50;
        while next < OID_BLOCK / 2 {
            assert_eq!(fed.rig.storage.allocate_oids(100), Some(next..next + 100));
            next += 100;
        }
        assert_eq!(wanted(&fed.settle()), 1, "before the last is handed out");
        fed.rig.storage.on_oids(Some(20_000..30_000));
        fed.settle();
        // One that a client has made up.
        fed.commit(&[(next + 1000, 0, "made up")]);
        let left = next + 1001..OID_BLOCK;
        let first = fed.rig.storage.allocate_oids(100).unwrap();
        assert_eq!(first, left.start..left.start + 100);
        while let Some(range) = fed
            .rig
            .storage
            .allocate_oids(100)
            .filter(|it| it.end < 20_000)
        {
            assert!(left.contains(&range.start) && range.end <= left.end);
        }
        fed.commit(&[(40_000, 0, "above all")]);
        fed.settle();
        assert_eq!(fed.rig.storage.allocate_oids(100), None);
        fed.rig.storage.on_oids(None);
        let events = fed.settle();
        assert!(matches!(
            events[..],
            [.., Event::OidsRaised { raised: false }]
        ));
        fed.rig.storage.on_oids(Some(50_000..60_000));
        fed.rig.storage.forget_oids();
        assert_eq!(fed.rig.storage.allocate_oids(1), None);
    }

    #[test]
    fn what_is_too_long_for_the_log_is_refused_by_the_vote() {
        let mut fed = Fed::new();
        let piece = Bytes::from(vec![1; 9 << 20]);
        let mut id = fed.rig.storage.begin(metadata());
        for oid in 1..9 {
            store(&mut fed.rig, id, oid, 0, piece.clone());
        }
        let events = fed.vote(id);
        assert!(matches!(
            events[..],
            [Event::Voted(_, Vote::Refused(Refusal::Disk(_)))]
        ));
        // What an undo brings back counts, too.
        let (mut undone, mut serials) = (Vec::new(), [0; 9]);
        for round in 0..2 {
            for part in [1..5, 5..9] {
                id = fed.rig.storage.begin(metadata());
                for oid in part.clone() {
                    let data = match round {
                        0 => piece.clone(),
                        _ => Bytes::from_static(b"short"),
                    };
                    store(&mut fed.rig, id, oid, serials[oid as usize], data);
                }
                let tid = fed.end(id);
                part.for_each(|oid| serials[oid as usize] = tid.0);
                if round == 1 {
                    undone.push(tid);
                }
            }
        }
        id = fed.rig.begin(&[]);
        undone.iter().for_each(|tid| undo(&mut fed.rig, id, *tid));
        let events = fed.vote(id);
        assert!(
            matches!(
                events[..],
                [Event::Voted(_, Vote::Refused(Refusal::Disk(_)))]
            ),
            "{events:?}"
        );
        let id = fed.rig.begin(&[]);
        undo(&mut fed.rig, id, undone[0]);
        fed.end(id);
        assert_eq!(fed.rig.current(1).unwrap().0, piece);
    }

    #[test]
    fn the_quota_counts_what_is_proposed() {
        let mut fed = Fed::with(Options {
            quota: Some(500),
            lock_scope: LockScope::Objects,
            ..options()
        });
        let mut ids = (1..).map(|oid| fed.rig.begin(&[(oid, 0, "a text of thirty characters ..")]));
        let ids: Vec<TxnId> = ids.by_ref().take(5).collect();
        let granted = ids.iter().filter(|id| {
            let granted = fed.granted(**id);
            if granted {
                fed.rig.finish(**id);
            }
            granted
        });
        assert_eq!(granted.count(), 4);
        fed.settle();
        let lost = fed.proposals.pop_back().unwrap();
        for _ in 0..3 {
            fed.commit_next();
        }
        assert_eq!(fed.rig.storage.tail, 4 + 3 * fed.rig.storage.voted_len);
        fed.rig.storage.on_lost(lost.txn, fed.rig.now);
        fed.settle();
        fed.commit(&[(9, 0, "a text of thirty characters ..")]);
    }

    #[test]
    fn a_pack_is_refused() {
        let mut fed = Fed::new();
        fed.commit(&[(1, 0, "one")]);
        let refused = fed.rig.storage.pack(Tid::MAX, fed.rig.now);
        assert_eq!(refused, Err(crate::storage::PackRefused::Fed));
        fed.rig.storage.on_timer(fed.rig.now);
        assert!(fed.settle().is_empty());
    }

    impl Fed {
        /// Somebody packs the file, and another applier opens it.
        fn pack(&mut self) {
            let disk = Arc::new(MemoryDisk::new());
            let path = Path::new("packed");
            let bytes = self.bytes();
            disk.replace(path, &[&bytes]).unwrap();
            let mut options = options();
            options.pack.gc = false;
            let mut packing = Rig::at(disk.clone(), path, options);
            packing.storage.pack(Tid::MAX, packing.now).unwrap();
            packing.settle();
            packing.storage.close().unwrap();
            let packed = disk.read(path).unwrap();
            assert!(packed.len() < bytes.len());
            let disk: Arc<dyn Disk> = disk;
            let access = Access::ReadWrite;
            self.applier = Applier::open(disk, path, None, access, &mut |_| ()).unwrap();
        }

        fn refollow(&mut self) {
            let followed = self.applier.follow();
            self.rig.storage.refollow(followed, self.rig.now);
            self.assert_same();
        }

        /// Something that only a worker can look up.
        fn reading(&self, lookup: Lookup) -> Job {
            match self.rig.storage.look_up(lookup) {
                Err(Unanswered::Reading(job)) => *job,
                answer => panic!("{answer:?}"),
            }
        }

        /// A worker has looked it up.
        fn settled(&self, job: Job) -> Answer {
            let crate::storage::Done::Looked {
                lookup,
                place,
                result,
            } = job.run()
            else {
                panic!("another job");
            };
            match self.rig.storage.settle(lookup, place, result) {
                Ok(answer) => answer,
                Err(Unanswered::Reading(job)) => self.settled(*job),
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    const TEXTS: [&str; 2] = ["one", "two"];

    #[test]
    fn what_is_being_read_while_the_file_is_replaced_is_answered_rightly() {
        let mut fed = Fed::new();
        fed.commit(&[(0, 0, "root")]);
        let mut serials = vec![fed.commit(&[(1, 0, "first")])];
        for round in 0..40 {
            let serial = serials[round].0;
            serials.push(fed.commit(&[(1, serial, TEXTS[round % 2])]));
        }
        // So old that it is looked for by a worker, and one that is current, a long way off.
        let past = Lookup::Serial(Oid(1), serials[1]);
        let before = Lookup::Before(Oid(1), serials[1]);
        let (past, before) = (fed.reading(past), fed.reading(before));
        let mut undone = *serials.last().unwrap();
        for _ in 0..80 {
            let id = fed.rig.begin(&[]);
            undo(&mut fed.rig, id, undone);
            undone = fed.end(id);
        }
        let current = fed.reading(Lookup::Before(Oid(1), Tid::MAX));
        let text = fed.settled(fed.reading(Lookup::Before(Oid(1), Tid::MAX)));
        fed.pack();
        fed.refollow();
        assert_eq!(fed.settled(past), Answer::Data(Bytes::from_static(b"one")));
        let Answer::Revision { data, serial, .. } = fed.settled(before) else {
            panic!("another answer");
        };
        assert_eq!((&data[..], serial), (&b"first"[..], serials[0]));
        assert_eq!(fed.settled(current), text);
        assert!(matches!(text, Answer::Revision { end: None, .. }));
        assert_eq!(fed.rig.current(0).unwrap().0, "root");
    }

    #[test]
    fn a_transaction_outlives_the_pack_that_comes_in_between() {
        for step in 0..6 {
            let mut fed = Fed::new();
            let first = fed.commit(&[(0, 0, "root"), (1, 0, "one")]);
            let second = fed.commit(&[(1, first.0, "two")]);
            let third = fed.commit(&[(0, first.0, "other root")]);
            let id = fed.rig.begin(&[(0, third.0, "last root")]);
            undo(&mut fed.rig, id, second);
            let packs = |fed: &mut Fed, at| {
                if step == at {
                    fed.pack();
                    fed.refollow();
                }
            };
            packs(&mut fed, 0);
            assert!(fed.rig.storage.vote(id, fed.rig.now));
            for at in 1..4 {
                packs(&mut fed, at);
                fed.rig.collect();
                if !fed.rig.jobs.is_empty() {
                    let job = fed.rig.jobs.remove(0);
                    fed.rig.storage.on_done(job.run(), fed.rig.now);
                }
            }
            let events = fed.settle();
            if step == 0 {
                // What was to be undone was packed away.
                assert!(matches!(events[..], [Event::Voted(_, Vote::Refused(_))]));
                continue;
            }
            assert!(
                matches!(events[..], [Event::Voted(_, Vote::Granted)]),
                "{step}: {events:?}"
            );
            packs(&mut fed, 4);
            fed.rig.finish(id);
            fed.settle();
            packs(&mut fed, 5);
            assert!(matches!(fed.commit_next()[..], [Event::Committed(_)]));
            assert_eq!(fed.rig.current(0).unwrap().0, "last root");
            assert_eq!(fed.rig.current(1).unwrap().0, "one");
        }
    }

    #[test]
    fn serials_that_were_read_at_places_of_another_file_are_not_believed() {
        let mut fed = Fed::new();
        let first = fed.commit(&[(1, 0, "one"), (2, 0, "two")]);
        let id = fed.rig.begin(&[(1, first.0, "un")]);
        let generation = fed.rig.storage.generation;
        assert!(fed.granted(id));
        fed.rig.storage.abort(id, fed.rig.now);
        let id = fed.rig.begin(&[(1, first.0, "un")]);
        fed.rig.storage.freeze();
        assert!(fed.vote(id).is_empty());
        fed.refollow();
        let pos = fed.rig.storage.index.get(Oid(1)).unwrap();
        let done = crate::storage::Done::Fetched {
            txn: id,
            result: Ok(crate::storage::job::Fetched {
                serials: vec![(pos, Tid(1))],
                generation,
                staged: Vec::new(),
            }),
        };
        fed.rig.storage.on_done(done, fed.rig.now);
        fed.rig.storage.thaw(fed.rig.now);
        let events = fed.settle();
        assert!(
            matches!(events[..], [Event::Voted(_, Vote::Granted), ..]),
            "{events:?}"
        );
    }

    #[test]
    fn a_copy_ends_the_votes_and_answers_no_finish() {
        let mut fed = Fed::with(Options {
            lock_scope: LockScope::Objects,
            ..options()
        });
        let first = fed.commit(&[(1, 0, "one"), (2, 0, "two"), (3, 0, "three")]);
        let [finishing, voted, checking, staged] =
            [1, 2, 3, 3].map(|oid| fed.rig.begin(&[(oid, first.0, "later")]));
        assert!(fed.granted(finishing) && fed.granted(voted));
        fed.rig.finish(finishing);
        fed.settle();
        fed.rig.storage.freeze();
        assert!(fed.vote(checking).is_empty());
        // It is in the copy, with something else.
        let proposal = fed.proposals.pop_front().unwrap();
        let applied = fed.apply(&proposal);
        let transfer = Transfer::decode(proposal.body.pieces()).unwrap();
        let tid = applied.tid.next();
        let later = fed.applier.apply(tid, &transfer, Path::new("")).unwrap();
        fed.refollow();
        let events = fed.settle();
        assert!(
            matches!(events[..], [Event::Lost(a), Event::Voted(b, Vote::Refused(_))]
                if (a, b) == (voted, checking)),
            "{events:?}"
        );
        fed.rig.storage.on_applied(later, None, fed.rig.now);
        fed.rig
            .storage
            .on_applied(applied, Some(finishing), fed.rig.now);
        let events = fed.settle();
        assert!(matches!(events[..], [Event::Lost(id)] if id == finishing));
        fed.rig.storage.thaw(fed.rig.now);
        assert_eq!(fed.rig.storage.voted_len, 0);
        fed.next_tid = tid.next();
        fed.end(staged);
    }

    #[test]
    fn blobs_go_by_the_log_to_their_places_and_come_back_by_an_undo() {
        let dir = TestDir::new();
        let (blobs, staged) = (dir.path("blobs"), dir.path("staged"));
        let disk: Arc<dyn Disk> = Arc::new(OsDisk::default());
        disk.create_directories(&staged).unwrap();
        let mut fed = Fed::at(
            disk.clone(),
            &dir.path(DATA),
            Some(&blobs),
            &staged,
            options(),
        );
        let record = Bytes::from_static(b"cZODB.blob\nBlob\n.");
        let temporary = || std::fs::read_dir(blobs.join("tmp")).unwrap().count();
        let store = |fed: &mut Fed, serial: Tid, contents: &'static [u8]| {
            let id = fed.rig.storage.begin(metadata());
            for oid in [7, 8] {
                let storage = &mut fed.rig.storage;
                storage.begin_blob(id).unwrap();
                for chunk in contents.chunks(1000) {
                    let chunk = Bytes::copy_from_slice(chunk);
                    storage.add_to_blob(id, chunk).unwrap();
                }
                let record = record.clone();
                storage
                    .end_blob(id, Oid(oid), Some(serial), record)
                    .unwrap();
                fed.settle();
            }
            id
        };
        let id = store(&mut fed, Tid::ZERO, &[7; 300_000]);
        let first = fed.end(id);
        let id = store(&mut fed, first, b"short");
        let second = fed.end(id);
        let id = fed.rig.begin(&[]);
        undo(&mut fed.rig, id, second);
        let third = fed.end(id);
        let directory = BlobDirectory::open(&*disk, &blobs, false).unwrap();
        for (tid, contents) in [
            (first, &[7; 300_000][..]),
            (second, b"short"),
            (third, &[7; 300_000]),
        ] {
            for oid in [7, 8] {
                let bytes = disk.read(&directory.file(Oid(oid), tid)).unwrap();
                assert!(bytes == contents, "{oid} {tid}");
            }
        }
        assert_eq!(temporary(), 0);
        // Those of which nothing comes are removed.
        for lost in [false, true] {
            let id = store(&mut fed, third, b"in vain");
            assert!(fed.granted(id));
            if lost {
                fed.rig.finish(id);
                fed.settle();
                assert_eq!(fed.proposals.pop_front().unwrap().blobs.len(), 2);
                fed.rig.storage.on_lost(id, fed.rig.now);
            } else {
                fed.rig.storage.abort(id, fed.rig.now);
            }
            fed.settle();
            assert_eq!(temporary(), 0);
            assert_eq!(fed.offered.len(), 0);
        }
        // A vote waits until others have its blobs, or will not.
        fed.takes_offers = false;
        for aborted in [false, true] {
            let id = store(&mut fed, third, b"offered");
            assert!(!fed.granted(id));
            assert_eq!(fed.offered.get(&id), Some(&2));
            if aborted {
                fed.rig.storage.abort(id, fed.rig.now);
            }
            fed.rig.storage.on_offered(id, fed.rig.now);
            let events = fed.settle();
            let is_granted = matches!(events[..], [Event::Voted(of, Vote::Granted)] if of == id);
            assert_eq!(is_granted, !aborted);
            fed.rig.storage.abort(id, fed.rig.now);
            fed.settle();
            assert_eq!(fed.offered.len(), 0);
        }
        let id = fed.rig.storage.begin(metadata());
        assert!(fed.rig.storage.store(id, Oid(9), None, record.clone()));
        let events = fed.vote(id);
        assert!(matches!(
            events[..],
            [Event::Voted(_, Vote::Refused(Refusal::Blob(_)))]
        ));
    }
}
