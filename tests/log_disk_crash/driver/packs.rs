//! Packs, as a node makes them: each step where it pleases, and between them whatever comes.

use std::ops::Range;

use standby::entry::Entry;
use standby::ids::{Seq, Tid};
use standby::log_disk::{PackBegun, PackOrder, PackTurn};
use standby::replica::settings::{Change, Pack as Ordered};
use standby::storage::pack_fed::FedStep;
use standby::storage::{PackError, PackOptions};

use super::checks::{blobs, dropped};
use super::{Driver, STORAGES, Stop, wrong};
use crate::ledger::{Maybe, Pack, expected_txns, index};

impl Driver {
    /// The time of a transaction in the middle of what is applied to a storage.
    pub(crate) fn middle(&self, storage: usize) -> Tid {
        let txns = expected_txns(&self.applied_entries(), STORAGES[storage].0);
        txns[txns.len() / 2].tid
    }

    fn applied_entries(&self) -> Vec<Entry> {
        let state = &self.ledger.current;
        let mut entries = self.ledger.entries_of(state);
        entries.truncate(state.applied);
        entries
    }

    /// Appends the order of a pack to a time.
    pub(crate) fn order_pack(&mut self, storage: usize, tid: Tid) -> Result<(), Stop> {
        let change = Change::Pack {
            storage: STORAGES[storage].0.to_owned(),
            tid,
        };
        let epoch = self.ledger.current.promised.max(self.last.epoch);
        let (kind, body) = (change.kind().number(), change.encode());
        let entry = Entry::new(&self.last, epoch, kind, Tid::ZERO, body).expect("short");
        self.last = entry.point();
        self.append_these(vec![entry])
    }

    /// Begins the pack that was ordered last. `false` if there is nothing to be done for it.
    pub(crate) fn begin_pack(&mut self, storage: usize, keep_old: bool) -> Result<bool, Stop> {
        let (name, _) = STORAGES[storage];
        let order = self.log().settings().packs.get(name).copied();
        let Some(Ordered { tid, at }) = order else {
            return wrong(format!("{name}: no pack was ordered"));
        };
        let is_it = |it: &Pack| (it.storage, it.at) == (storage, at);
        if !self.ledger.current.packs.iter().any(is_it) {
            let before = &self.applied_entries()[..index(at) - 1];
            let last = expected_txns(before, name).pop();
            let through = last.map_or(Tid::ZERO, |txn| txn.tid);
            let pack = Pack {
                storage,
                at,
                through,
                until: tid.min(through),
                is_packed: Maybe::No,
                is_noted: Maybe::No,
                is_swept: false,
            };
            self.change(|state| state.packs.push(pack));
        }
        let gc = false;
        let options = PackOptions { gc, keep_old };
        match self.log().begin_pack(name, Ordered { tid, at }, options)? {
            PackBegun::Begun(packing) => {
                self.packing = Some(packing);
                Ok(true)
            }
            PackBegun::Needless("it is packed") => {
                self.ledger.seen.packs_needless += 1;
                // As of a step that has ended before.
                self.change_pack(storage, at, |pack| pack.is_noted = Maybe::Perhaps);
                self.note_packed(name, at)?;
                self.change_pack(storage, at, |pack| pack.is_noted = Maybe::Yes);
                Ok(false)
            }
            begun @ PackBegun::Needless(_) => wrong(format!("{name}: {begun:?}")),
        }
    }

    fn note_packed(&mut self, name: &str, at: Seq) -> Result<(), Stop> {
        match self.log().note_packed(name, at) {
            // No more than that: it may be tried again.
            Err(error) if error.is_for_lack_of_room() => self.log().note_packed(name, at)?,
            noted => noted?,
        }
        Ok(())
    }

    fn change_pack(&mut self, storage: usize, at: Seq, change: impl FnOnce(&mut Pack)) {
        self.change(|state| {
            let is_it = |it: &&mut Pack| (it.storage, it.at) == (storage, at);
            let pack = state.packs.iter_mut().find(is_it);
            change(pack.expect("it was begun"));
        });
    }

    /// The same of the one that is under way.
    fn change_this(&mut self, change: impl FnOnce(&mut Pack)) {
        let packing = self.packing.as_ref().expect("it was begun");
        let storage = STORAGES.iter().position(|it| it.0 == packing.storage);
        self.change_pack(storage.expect("it is known"), packing.at, change);
    }

    /// One step of the pack that is under way. `false` if there is none any more.
    pub(crate) fn step_pack(&mut self) -> Result<bool, Stop> {
        let Some(packing) = &mut self.packing else {
            return Ok(false);
        };
        match packing.step() {
            Ok(FedStep::More) => Ok(true),
            Ok(FedStep::Wait) => self.take_turn(),
            Ok(FedStep::Done) => {
                let again = usize::from(!packing.has_switched());
                self.ledger.seen.packs_again += again;
                self.change_this(|pack| {
                    // Or nothing was to be dropped, which is the same.
                    pack.is_packed = Maybe::Yes;
                    pack.is_swept = true;
                });
                self.end_pack().map(|()| false)
            }
            Err(error) => self.on_pack_failed(&error).map(|()| false),
        }
    }

    /// The thread of the log does what it waits for.
    fn take_turn(&mut self) -> Result<bool, Stop> {
        let mut before = Maybe::No;
        self.change_this(|pack| {
            before = pack.is_packed;
            if before == Maybe::No {
                pack.is_packed = Maybe::Perhaps;
            }
        });
        let mut packing = self.packing.take().expect("it was begun");
        let turn = self.log().go_on_with_pack(&mut packing);
        self.packing = Some(packing);
        let turn = turn?;
        // All of it already, if there was room to note it.
        let settled = index(self.log().checkpoint()?);
        self.change(|state| state.settled = settled);
        match turn {
            PackTurn::Switched(_) => {
                self.ledger.seen.packs += 1;
                self.change_this(|pack| pack.is_packed = Maybe::Yes);
                self.ledger.seen.blobs_packed = self.blobs_packed();
                Ok(true)
            }
            PackTurn::Steps => {
                self.change_this(|pack| pack.is_packed = before);
                Ok(true)
            }
            PackTurn::Ended(error) => {
                self.change_this(|pack| pack.is_packed = before);
                self.on_pack_failed(&error).map(|()| false)
            }
        }
    }

    /// It is not tried again, and counts as done.
    fn on_pack_failed(&mut self, error: &PackError) -> Result<(), Stop> {
        self.ledger.seen.packs_failed += 1;
        match error {
            PackError::Storage(_) | PackError::BlobsLeft(_) => self.end_pack(),
            error => wrong(format!("a pack failed: {error}")),
        }
    }

    fn end_pack(&mut self) -> Result<(), Stop> {
        self.change_this(|pack| pack.is_noted = Maybe::Perhaps);
        let packing = self.packing.take().expect("it was begun");
        let ended = match self.log().end_pack(&packing) {
            // No more than that: it may be tried again.
            Err(error) if error.is_for_lack_of_room() => self.log().end_pack(&packing),
            ended => ended,
        };
        self.packing = Some(packing);
        let len = ended?;
        self.change_this(|pack| pack.is_noted = Maybe::Yes);
        let storage = self.packing.take().expect("it was begun").storage;
        let (_, tail) = self.log().data_file(&storage).expect("it is configured");
        if len != Some(tail) {
            return wrong(format!("{storage}: {len:?} bytes, and not {tail}"));
        }
        self.check_now()
    }

    /// How many blobs are of revisions that were packed away.
    fn blobs_packed(&self) -> usize {
        let (storage, _) = STORAGES[0];
        let way = self.ledger.current.packs_of(0).remove(0);
        let entries = self.applied_entries();
        let dropped = dropped(&entries, storage, &way);
        let mut blobs = blobs(&entries, storage);
        blobs.retain(|(oid, tid, _)| dropped.iter().any(|it| (it.0, it.1) == (*oid, *tid)));
        blobs.len()
    }

    /// These entries are applied while a pack is under way.
    pub(super) fn count_beside(&mut self, applied: Range<usize>) {
        let entries = self.ledger.entries_of(&self.ledger.current);
        let beside = &entries[applied];
        self.ledger.seen.beside_packs += beside.len();
        self.ledger.seen.blobs_beside += blobs(beside, STORAGES[0].0).len();
    }

    /// What is shown is as it is to be left.
    fn check_now(&mut self) -> Result<(), Stop> {
        let applied = index(self.log().applied());
        let state = &self.ledger.current;
        let entries = self.ledger.entries_of(state);
        self.check_data(state, &entries, applied)
            .map_err(Stop::Wrong)
    }

    /// Steps until the packed file is in the place of the other, or it has ended.
    pub(crate) fn pack_to_the_switch(&mut self) -> Result<(), Stop> {
        let has_to_switch = |driver: &Self| {
            let packing = driver.packing.as_ref();
            packing.is_some_and(|packing| !packing.has_switched())
        };
        while has_to_switch(self) {
            self.step_pack()?;
        }
        Ok(())
    }

    /// All steps that are left.
    pub(crate) fn finish_pack(&mut self) -> Result<(), Stop> {
        while self.step_pack()? {}
        Ok(())
    }

    /// Nobody wants it any more.
    pub(crate) fn give_up_pack(&mut self) {
        if let Some(packing) = self.packing.take() {
            packing.give_up();
            self.ledger.seen.packs_given_up += 1;
        }
    }

    /// The packs that were ordered and are not done.
    pub(crate) fn pack_what_is_due(&mut self) -> Result<(), Stop> {
        for (storage, (name, _)) in STORAGES.into_iter().enumerate() {
            let order = self.log().pack_orders().get(name).copied();
            if order.is_some_and(|order| !order.is_done) && self.begin_pack(storage, false)? {
                self.finish_pack()?;
            }
        }
        Ok(())
    }

    /// After opening: what was under way was done, or was not. Nothing is left of what was not.
    pub(super) fn settle_packs(&mut self) -> Result<(), Stop> {
        let state = self.ledger.current.clone();
        if state.packs.is_empty() {
            return Ok(());
        }
        let entries = self.ledger.entries_of(&state);
        let mut packs = state.packs.clone();
        for (number, (storage, _)) in STORAGES.into_iter().enumerate() {
            let found = self.packs_found(&state, number, &entries, state.settled);
            let (way, _) = found.map_err(Stop::Wrong)?;
            let order = self.log().pack_orders().get(storage).copied();
            for pack in packs.iter_mut().filter(|pack| pack.storage == number) {
                let is_there = way.iter().any(|it| it.at == pack.at);
                let maybe = |is_so| if is_so { Maybe::Yes } else { Maybe::No };
                pack.is_packed = maybe(is_there);
                if pack.is_noted == Maybe::Perhaps {
                    let is_done = |it: PackOrder| it.at == pack.at && it.is_done;
                    pack.is_noted = maybe(order.is_some_and(is_done));
                }
            }
            for suffix in [".pack", ".old.new"] {
                let name = format!("{storage}.fs{suffix}");
                if self.disk.exists(&name) {
                    return wrong(format!("{name} is left"));
                }
            }
        }
        self.change(|state| state.packs = packs);
        Ok(())
    }
}
