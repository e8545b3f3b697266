//! A node: what it is by its configuration, its disk, and the process that runs on it, if one does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::checker::{Place, Torn};
use crate::disk::SimDisk;
use crate::group::{MemberId, ViewId};
use crate::ids::{Digest, Epoch, HistoryId, NodeId, Seq};
use crate::plan::NodePlan;
use crate::replica::Replica;
use crate::replica::event::{Event, Serving};
use crate::replica::members::Voter;
use crate::store::{Job, Kept, Store};

pub(crate) struct Node {
    pub(crate) name: NodeId,
    pub(crate) plan: NodePlan,
    pub(crate) history: HistoryId,
    pub(crate) voter: Voter,
    pub(crate) disk: SimDisk,
    pub(crate) kept: Arc<Mutex<Kept>>,
    pub(crate) process: Option<Process>,
    /// It stands still until then.
    pub(crate) paused_until: Option<Duration>,
    /// What has come meanwhile.
    pub(crate) inbox: VecDeque<Event>,
    /// How wrong its time of day is, in nanoseconds.
    pub(crate) wall_off: i64,
    pub(crate) torn: Torn,
    /// Its disk was damaged: it may refuse to start.
    pub(crate) is_damaged: bool,
    /// Blobs that wait to be applied, and have rotted.
    pub(crate) rotten: BTreeSet<Digest>,
    /// It is not to come back.
    pub(crate) is_gone: bool,
    pub(crate) slow_disk_until: Duration,
    pub(crate) slow_links_until: Duration,
    pub(crate) is_full: bool,
}

pub(crate) struct Process {
    /// No two of a run have the same.
    pub(crate) id: u64,
    pub(crate) replica: Replica,
    pub(crate) store: Store,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) running: Option<Job>,
    /// When it wants to be woken, by the time of the world.
    pub(crate) wake: Option<Duration>,
    /// Times that it was woken at the same moment.
    pub(crate) wakes: (Duration, u32),
    pub(crate) view: Option<SeenView>,
    /// Who has unblocked which view, as far as it has come here.
    pub(crate) unblocked: BTreeMap<ViewId, BTreeSet<MemberId>>,
    pub(crate) fetches: BTreeSet<u64>,
    /// The pack that is being done: of a storage, and the entry that ordered it.
    pub(crate) packing: Option<(String, Seq)>,
    /// The highest commit mark that it has shown.
    pub(crate) known: Seq,
    pub(crate) serving: Serving,
    pub(crate) promoted: Option<Epoch>,
    /// An administrator had it claim this one.
    pub(crate) ordered: Option<Epoch>,
    /// What is to be shown to be true of a confirmation: what was exposed when it was asked for.
    pub(crate) applied: Seq,
}

/// The view that a process is in.
pub(crate) struct SeenView {
    pub(crate) id: ViewId,
    pub(crate) members: BTreeSet<MemberId>,
    pub(crate) since: Duration,
}

impl Node {
    pub(crate) fn place(&self) -> Place {
        (self.history, self.voter)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// The time of its steady clock.
    pub(crate) fn steady(&self, now: Duration) -> Duration {
        let nanos = now.as_nanos() as i64;
        let nanos = nanos + nanos / 1_000_000 * self.plan.drift;
        Duration::from_nanos(nanos.max(0) as u64)
    }

    /// When its steady clock shows this.
    pub(crate) fn unsteady(&self, steady: Duration) -> Duration {
        let nanos = i128::try_from(steady.as_nanos()).unwrap_or(i128::MAX);
        let nanos = nanos * 1_000_000 / (1_000_000 + i128::from(self.plan.drift));
        // By rounding it may be a moment too early.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0) + 1_000_000)
    }
}
