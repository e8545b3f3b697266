//! Packs: each node does those that the log orders, in its turn.
//!
//! ```text
//!   Action::Pack ─► BeginPack ─► Output::Pack ─► on_pack_stepped ─► EndPack ─► Event::Packed
//!                   (disk)  ▲      ▲   (a thread)   │    │
//!                           │      └─ GoOnWithPack ◄┘    │
//!                           └── the data were replaced ◄─┘
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use super::disk::Request;
use super::{HOLD_RETRY, Node, Output};
use crate::ids::Seq;
use crate::log_disk::{PackBegun, PackOrder, PackTurn, Packing};
use crate::replica::event::{Event, Now};
use crate::replica::settings::{Pack, StorageName};
use crate::storage::PackError;
use crate::storage::pack_fed::FedStep;

/// What a node knows of packs.
#[derive(Debug, Default)]
pub(super) struct Packs {
    /// As of what was applied.
    orders: BTreeMap<StorageName, PackOrder>,
    /// What the replica wants packed now.
    wanted: Option<(StorageName, Pack)>,
    /// The disk or a thread has to do with one, be it wanted any more or not.
    is_out: bool,
    /// How the one has ended that is being noted.
    ended: Option<PackEnd>,
    /// What there was no room for to note that, and when it is tried again.
    unnoted: Option<(Request, Instant)>,
    /// That there is none was told.
    is_full: bool,
}

/// How a pack has ended.
#[derive(Debug)]
pub struct PackEnd {
    /// Whose data file it was.
    pub storage: StorageName,
    /// The entry that had ordered it.
    pub at: Seq,
    /// Bytes of the data file before, and now; none if nothing was to be dropped. Or why it has
    /// come to nothing.
    pub result: Result<Option<(u64, u64)>, PackError>,
}

impl Node {
    /// The replica wants a pack. There is one at a time.
    pub(super) fn begin_pack(&mut self, storage: StorageName, pack: Pack) {
        self.packs.wanted = Some((storage, pack));
        self.begin_wanted();
    }

    /// Begins it, if nothing is in the way any more.
    pub(super) fn begin_wanted(&mut self) {
        if self.packs.is_out || self.is_refreshing() {
            return;
        }
        if let Some((storage, pack)) = &self.packs.wanted {
            let options = self.options.packs.get(storage).copied().unwrap_or_default();
            let request = Request::BeginPack(storage.clone(), *pack, options);
            self.packs.is_out = true;
            self.enqueue(request);
        }
    }

    /// Whether this is what the replica still wants.
    fn is_wanted(&self, packing: &Packing) -> bool {
        let wanted = self.packs.wanted.as_ref();
        wanted.is_some_and(|(storage, pack)| (storage, pack.at) == (&packing.storage, packing.at))
    }

    pub(super) fn on_pack_begun(&mut self, begun: PackBegun) {
        match begun {
            PackBegun::Begun(packing) if self.is_wanted(&packing) => {
                log::info!("{}: pack begins (entry {})", packing.storage, packing.at);
                self.outputs.push_back(Output::Pack(Box::new(packing)));
            }
            PackBegun::Begun(packing) => self.drop_pack(packing),
            PackBegun::Needless(why) => {
                let Some((storage, pack)) = self.packs.wanted.clone() else {
                    self.packs.is_out = false;
                    return;
                };
                log::info!("{storage}: there is nothing to be packed: {why}");
                self.packs.ended = Some(PackEnd {
                    storage: storage.clone(),
                    at: pack.at,
                    result: Ok(None),
                });
                self.enqueue(Request::NotePacked(storage, pack.at));
            }
        }
    }

    /// What a thread has come to with [`Output::Pack`].
    pub fn on_pack_stepped(&mut self, packing: Box<Packing>, result: Result<FedStep, PackError>) {
        if !self.is_wanted(&packing) {
            return self.drop_pack(*packing);
        }
        match result {
            Ok(FedStep::More) => self.outputs.push_back(Output::Pack(packing)),
            Ok(FedStep::Wait) => self.enqueue(Request::GoOnWithPack(packing)),
            Ok(FedStep::Done) => self.end_pack(packing, None),
            Err(error) => self.end_pack(packing, Some(error)),
        }
    }

    pub(super) fn on_pack_turn(&mut self, packing: Box<Packing>, turn: PackTurn) {
        if let PackTurn::Switched(followed) = turn {
            let storage = packing.storage.clone();
            self.outputs.push_back(Output::Refollow(storage, followed));
        } else if let PackTurn::Ended(error) = turn {
            return match self.is_wanted(&packing) {
                true => self.end_pack(packing, Some(error)),
                false => self.drop_pack(*packing),
            };
        }
        // Also if nobody wants it any more: blobs go.
        self.outputs.push_back(Output::Pack(packing));
    }

    fn end_pack(&mut self, packing: Box<Packing>, error: Option<PackError>) {
        match error {
            // The process ends, and begins it anew.
            Some(PackError::Stopped) => {
                self.packs.wanted = None;
                self.drop_pack(*packing);
            }
            // It was of other data.
            Some(PackError::Replaced) => {
                self.packs.is_out = false;
                self.begin_wanted();
            }
            error => {
                let len_before = packing.len_before();
                let lens = packing.has_switched().then_some((len_before, 0));
                self.packs.ended = Some(PackEnd {
                    storage: packing.storage.clone(),
                    at: packing.at,
                    result: error.map_or(Ok(lens), Err),
                });
                self.enqueue(Request::EndPack(packing));
            }
        }
    }

    /// It is not wanted any more.
    fn drop_pack(&mut self, packing: Packing) {
        packing.give_up();
        self.packs.is_out = false;
        self.begin_wanted();
    }

    /// Other requests need not wait for that: what they write may have room.
    pub(super) fn on_pack_not_noted(&mut self, request: Request, why: &str, now: Now) {
        if !std::mem::replace(&mut self.packs.is_full, true) {
            let text = format!("that a pack has ended is not noted, as the disk is full: {why}");
            self.tell(text, now);
        }
        self.packs.unnoted = Some((request, now.instant + HOLD_RETRY));
    }

    /// When [`Self::look_at_packs`] has something to do.
    pub(super) fn packs_deadline(&self) -> Option<Instant> {
        self.packs.unnoted.as_ref().map(|(_, at)| *at)
    }

    /// Tries again what there was no room for.
    pub(super) fn look_at_packs(&mut self, now: Now) {
        let unnoted = &mut self.packs.unnoted;
        if let Some((request, _)) = unnoted.take_if(|(_, at)| *at <= now.instant) {
            self.enqueue(request);
        }
    }

    pub(super) fn on_pack_noted(&mut self, len: Option<u64>, now: Now) {
        self.packs.is_out = false;
        self.packs.is_full = false;
        let Some(mut end) = self.packs.ended.take() else {
            return self.begin_wanted();
        };
        let wanted = self.packs.wanted.as_ref();
        let is_it =
            wanted.is_some_and(|(storage, pack)| (storage, pack.at) == (&end.storage, end.at));
        let (true, Some(len)) = (is_it, len) else {
            return self.begin_wanted();
        };
        self.packs.wanted = None;
        if let Ok(Some(lens)) = &mut end.result {
            lens.1 = len;
        }
        if let Some(order) = self.packs.orders.get_mut(&end.storage) {
            order.is_done |= order.at <= end.at;
        }
        match &end.result {
            Ok(Some((before, len))) => {
                log::info!("{}: pack ended ({len} bytes, were {before})", end.storage)
            }
            Ok(None) => log::info!("{}: pack ended: nothing was dropped", end.storage),
            Err(error) => self.tell(format!("{}: pack failed: {error}", end.storage), now),
        }
        self.outputs.push_back(Output::Packed(end));
        self.step(Event::Packed, now);
    }

    /// Packs were ordered, or it is another log.
    pub(super) fn set_pack_orders(&mut self, orders: BTreeMap<StorageName, PackOrder>) {
        for (storage, order) in &orders {
            self.outputs
                .push_back(Output::PackOrdered(storage.clone(), *order));
        }
        self.packs.orders = orders;
    }

    /// What the disk was to do and has not begun will not be done.
    pub(super) fn drop_disk_queue(&mut self) {
        let is_of_pack = |request: &Request| {
            matches!(
                request,
                Request::BeginPack(..)
                    | Request::GoOnWithPack(_)
                    | Request::EndPack(_)
                    | Request::NotePacked(..)
            )
        };
        // What the disk or the thread has comes back.
        let is_unnoted = self.packs.unnoted.take().is_some();
        if is_unnoted || self.disk.waiting().any(is_of_pack) {
            self.packs.is_out = false;
            self.packs.ended = None;
        }
        let is_copy = |request: &Request| matches!(request, Request::Adopt { .. });
        if self.disk.waiting().any(is_copy) {
            self.copying = None;
        }
        self.disk.clear();
        // Nobody would say which blobs it waits for.
        self.held.clear();
    }

    /// Another replica begins: what the one before wanted does not count.
    pub(super) fn forget_packs(&mut self) {
        self.packs.wanted = None;
    }

    /// The packs that this node has yet to do: storages, and whether it is at it.
    pub fn packs_due(&self) -> impl Iterator<Item = (&StorageName, bool)> {
        let wanted = self.packs.wanted.as_ref().map(|(storage, _)| storage);
        let due = self.packs.orders.iter().filter(|(_, order)| !order.is_done);
        due.map(move |(storage, _)| (storage, wanted == Some(storage)))
    }

    /// The last pack of each storage that was ordered.
    pub const fn pack_orders(&self) -> &BTreeMap<StorageName, PackOrder> {
        &self.packs.orders
    }

    /// Whether a thread or the disk has to do with a pack.
    pub const fn is_packing(&self) -> bool {
        self.packs.is_out
    }

    /// The same, but for the end of one that waits until the disk has room.
    pub const fn is_at_a_pack(&self) -> bool {
        self.packs.is_out && self.packs.unnoted.is_none()
    }
}
