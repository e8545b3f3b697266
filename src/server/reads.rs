//! The reads that clients wait for: which are in the hands of the workers, and which wait for
//! their turn.
//!
//! A worker takes what was handed out first. So only a few reads are handed out at a time, and the
//! others wait here, where clients take turns: one that asks for a hundred things delays another
//! one's load by one of them. What may take long has turns of its own, and fewer workers than there
//! are: a load always finds one.

use std::collections::{BTreeMap, VecDeque};

use slab::Slab;

use super::JobTag;
use crate::ids::{ClientId, Oid, Tid};
use crate::limits::{LONG_READS_MAX, SHORT_READS_MAX};
use crate::storage::Job;
use crate::zeo::Value;

/// A call that waits for the disk.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) client: ClientId,
    pub(super) msgid: Value,
    pub(super) wanted: Wanted,
}

/// What a call wants to know that waits for the disk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// A revision of an object.
    Revision,
    /// The current revision of an object, and which object comes next.
    NextObject { oid: Oid, next: Option<Oid> },
    /// Revisions or transactions of the past.
    Log,
    /// The next transaction or record of this iterator.
    Iteration(i64),
    /// The next piece of a long reply.
    Piece,
    /// The next piece of a blob. `begun`: it is not the first.
    Blob { oid: Oid, serial: Tid, begun: bool },
}

/// All of them.
#[derive(Debug)]
pub(super) struct Reads {
    /// By the number that the tag of the job has.
    pending: Slab<(PendingRead, Kind)>,
    short: Turns,
    long: Turns,
}

/// Whose turns a read has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Short,
    Long,
}

/// Reads of one kind.
#[derive(Debug)]
struct Turns {
    /// No client has an empty queue.
    waiting: BTreeMap<ClientId, VecDeque<(JobTag, Job)>>,
    /// The clients in `waiting`, next one first.
    order: VecDeque<ClientId>,
    /// In the hands of the workers.
    running: usize,
    /// `running <= running_max`
    running_max: usize,
}

impl Reads {
    pub(super) const fn new() -> Self {
        Self {
            pending: Slab::new(),
            short: Turns::new(SHORT_READS_MAX),
            long: Turns::new(LONG_READS_MAX),
        }
    }

    /// Takes a read of a client; [`Self::next`] gives it out when its turn has come.
    pub(super) fn push(&mut self, storage: usize, pending: PendingRead, job: Job) {
        let client = pending.client;
        let kind = if job.may_take_long() {
            Kind::Long
        } else {
            Kind::Short
        };
        let read = Some(self.pending.insert((pending, kind)));
        let copies = 0;
        let tag = JobTag {
            storage,
            read,
            copies,
        };
        self.turns(kind).push(client, (tag, job));
    }

    /// The next one for the workers, of a client that `takes` what it comes to: what is read for
    /// others would pile up. To be called until there is none, after [`Self::push`],
    /// [`Self::take`] and [`Self::forget`], and when a client takes more than before.
    pub(super) fn next(&mut self, takes: impl Fn(ClientId, &Job) -> bool) -> Option<(JobTag, Job)> {
        let short = self.short.next(&takes);
        short.or_else(|| self.long.next(&takes))
    }

    /// A worker is done with it.
    pub(super) fn take(&mut self, key: usize) -> Option<PendingRead> {
        let (pending, kind) = self.pending.try_remove(key)?;
        self.turns(kind).running -= 1;
        Some(pending)
    }

    /// The client is gone: what it waits for need not be read any more, as far as no worker has
    /// begun.
    pub(super) fn forget(&mut self, client: ClientId) {
        for turns in [&mut self.short, &mut self.long] {
            for (tag, _) in turns.forget(client) {
                if let Some(key) = tag.read {
                    self.pending.remove(key);
                }
            }
        }
    }

    const fn turns(&mut self, kind: Kind) -> &mut Turns {
        match kind {
            Kind::Short => &mut self.short,
            Kind::Long => &mut self.long,
        }
    }
}

impl Turns {
    const fn new(running_max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            order: VecDeque::new(),
            running: 0,
            running_max,
        }
    }

    fn push(&mut self, client: ClientId, read: (JobTag, Job)) {
        let queue = self.waiting.entry(client).or_default();
        if queue.is_empty() {
            self.order.push_back(client);
        }
        match read.1 {
            // The answers to all others come behind it.
            Job::ReadLong(_) => queue.push_front(read),
            _ => queue.push_back(read),
        }
    }

    fn next(&mut self, takes: impl Fn(ClientId, &Job) -> bool) -> Option<(JobTag, Job)> {
        if self.running >= self.running_max {
            return None;
        }
        // The others keep their places.
        let is_taken = |client: &ClientId| {
            let first = self.waiting.get(client).and_then(VecDeque::front);
            first.is_some_and(|(_, job)| takes(*client, job))
        };
        let at = self.order.iter().position(is_taken)?;
        let client = self.order.remove(at)?;
        let queue = self.waiting.get_mut(&client)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.order.push_back(client);
        }
        self.running += usize::from(next.is_some());
        next
    }

    fn forget(&mut self, client: ClientId) -> VecDeque<(JobTag, Job)> {
        self.order.retain(|waiting| *waiting != client);
        self.waiting.remove(&client).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::disk::{Disk, OpenMode};
    use crate::storage::memory::MemoryDisk;

    const fn client(serial: u32) -> ClientId {
        ClientId { serial, key: 0 }
    }

    /// Some job; the number of its call tells it from others.
    fn read(number: usize) -> (JobTag, Job) {
        let file = MemoryDisk::new().open(Path::new("x"), OpenMode::CreateNew);
        let tag = JobTag {
            storage: 0,
            read: Some(number),
            copies: 0,
        };
        (tag, Job::Close(file.unwrap()))
    }

    fn next(turns: &mut Turns) -> Option<usize> {
        next_of(turns, |_| true)
    }

    fn next_of(turns: &mut Turns, takes: impl Fn(ClientId) -> bool) -> Option<usize> {
        let takes = |client, _: &Job| takes(client);
        turns.next(takes).and_then(|(tag, _)| tag.read)
    }

    #[test]
    fn clients_take_turns() {
        let mut turns = Turns::new(10);
        for (number, serial) in [(1, 7), (2, 7), (3, 7), (4, 5), (5, 5), (6, 9)] {
            turns.push(client(serial), read(number));
        }
        let order: Vec<_> = std::iter::from_fn(|| next(&mut turns)).collect();
        assert_eq!(order, [1, 4, 6, 2, 5, 3]);
        assert!(turns.waiting.is_empty() && turns.order.is_empty());
    }

    #[test]
    fn a_client_that_takes_nothing_keeps_its_place_and_holds_up_nobody() {
        let mut turns = Turns::new(10);
        for (number, serial) in [(1, 5), (2, 6), (3, 6), (4, 7)] {
            turns.push(client(serial), read(number));
        }
        let others = |turns: &mut Turns| next_of(turns, |id| id != client(5));
        assert_eq!(others(&mut turns), Some(2));
        assert_eq!(others(&mut turns), Some(4));
        assert_eq!(next(&mut turns), Some(1));
        assert_eq!(others(&mut turns), Some(3));
        assert_eq!(next(&mut turns), None);
    }

    #[test]
    fn a_client_that_is_gone_leaves_no_gap() {
        let mut turns = Turns::new(1);
        for (number, serial) in [(1, 6), (2, 7), (3, 8)] {
            turns.push(client(serial), read(number));
        }
        assert_eq!(next(&mut turns), Some(1));
        assert_eq!(next(&mut turns), None);
        assert_eq!(turns.forget(client(7)).len(), 1);
        turns.running -= 1;
        assert_eq!(next(&mut turns), Some(3));
    }
}
