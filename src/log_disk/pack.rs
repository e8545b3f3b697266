//! Packs of the data files, as entries of the log order them.
//!
//! All nodes pack the same: to the time that the entry names, and as of the transactions in front
//! of it. Each does it in its turn, so that others may be there by then. What was the last
//! transaction in front of the order is noted with the settings; a node that was started anew, or
//! begins with a copy, goes by that, too.

use std::collections::BTreeMap;

use super::files::Ordered;
use super::{LogDisk, LogDiskError};
use crate::ids::{Seq, Tid};
use crate::replica::settings::{Pack, StorageName};
use crate::storage::apply::GoneOn;
use crate::storage::follow::Followed;
use crate::storage::journal::state::State as _;
use crate::storage::pack_fed::{FedPack, FedStep};
use crate::storage::{PackError, PackOptions};

/// A pack on its way. Who has it makes steps, on any thread; between them the log goes on.
#[derive(Debug)]
pub struct Packing {
    /// Whose data file is packed.
    pub storage: StorageName,
    /// The entry that has ordered it.
    pub at: Seq,
    pack: FedPack,
    len_before: u64,
}

/// What becomes of a pack that was ordered.
#[derive(Debug)]
pub enum PackBegun {
    /// It is to be stepped on.
    Begun(Packing),
    /// There is nothing to be done: why.
    Needless(&'static str),
}

/// How it goes on with a pack.
#[derive(Debug)]
pub enum PackTurn {
    /// It has to be stepped on.
    Steps,
    /// The same, and from now on this is the data file.
    Switched(Box<Followed>),
    /// It has come to nothing, and the data file is as it was. With [`PackError::Replaced`] it was
    /// that of another file, and is to be begun anew.
    Ended(PackError),
}

/// A pack that was ordered, as far as this node is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOrder {
    /// The entry that has ordered it.
    pub at: Seq,
    /// What is not later than this is packed.
    pub until: Tid,
    /// It was done here, or is not to be.
    pub is_done: bool,
}

impl Packing {
    /// Does some of it: a slice of a few milliseconds.
    ///
    /// # Errors
    ///
    /// It has come to nothing, and the data file is as it was; with [`PackError::BlobsLeft`] it is
    /// packed.
    pub fn step(&mut self) -> Result<FedStep, PackError> {
        self.pack.step()
    }

    /// Removes what was made, if the data file is not packed already.
    pub fn give_up(self) {
        self.pack.give_up();
    }

    /// Whether the data file is a new one.
    pub const fn has_switched(&self) -> bool {
        self.pack.has_switched()
    }

    /// Bytes of the data file when it began.
    pub const fn len_before(&self) -> u64 {
        self.len_before
    }
}

impl LogDisk {
    /// Begins a pack that the replica wants now.
    ///
    /// # Errors
    ///
    /// The node must not go on.
    pub fn begin_pack(
        &mut self,
        storage: &str,
        pack: Pack,
        options: PackOptions,
    ) -> Result<PackBegun, LogDiskError> {
        self.check()?;
        if self.settled.packed.get(storage) >= Some(&pack.at) {
            return Ok(PackBegun::Needless("it is packed"));
        }
        let ordered = self.ordered.get(storage).filter(|it| it.at == pack.at);
        let Some(ordered) = ordered.copied() else {
            return Ok(PackBegun::Needless("it was ordered before this node began"));
        };
        // Old revisions are what such a node lacks, and what it has refers to objects as of later.
        if pack.tid < self.settled.history_from {
            return Ok(PackBegun::Needless("there is nothing as old as that"));
        }
        let Some(applier) = self.appliers.get_mut(storage) else {
            return Ok(PackBegun::Needless("there is no such storage"));
        };
        let (_, len_before) = applier.data_file();
        let begun = applier.begin_pack(pack.tid, ordered.through, options);
        let pack = self.latch(begun.map_err(LogDiskError::from))?;
        Ok(PackBegun::Begun(Packing {
            storage: storage.to_owned(),
            at: ordered.at,
            pack,
            len_before,
        }))
    }

    /// Does for a pack what it waits for.
    ///
    /// # Errors
    ///
    /// The node must not go on.
    pub fn go_on_with_pack(&mut self, packing: &mut Packing) -> Result<PackTurn, LogDiskError> {
        // Data files do not get ahead of what is noted of them by so much.
        self.checkpoint()?;
        let Some(applier) = self.appliers.get_mut(&packing.storage) else {
            return Ok(PackTurn::Ended(PackError::Replaced));
        };
        let gone_on = applier.go_on_with_pack(&mut packing.pack);
        match self.latch(gone_on.map_err(LogDiskError::from))? {
            GoneOn::Steps => Ok(PackTurn::Steps),
            GoneOn::Ended(error) => Ok(PackTurn::Ended(error)),
            GoneOn::Switched => {
                let applier = self.appliers.get(&packing.storage);
                let followed = applier.map(|applier| Box::new(applier.follow()));
                Ok(followed.map_or(PackTurn::Ended(PackError::Replaced), PackTurn::Switched))
            }
        }
    }

    /// A pack was done, or has come to nothing. On stable storage when this returns: then
    /// [`Event::Packed`](crate::replica::event::Event::Packed) may be told. The length of the data
    /// file now; `None` if that was replaced by a copy meanwhile, and the pack is to be begun anew.
    ///
    /// # Errors
    ///
    /// As of [`Self::note_packed`].
    pub fn end_pack(&mut self, packing: &Packing) -> Result<Option<u64>, LogDiskError> {
        self.check()?;
        let applier = self.appliers.get_mut(&packing.storage);
        let Some(applier) = applier.filter(|it| it.is_file_of(&packing.pack)) else {
            return Ok(None);
        };
        let ended = applier.end_pack(&packing.pack);
        let (_, len) = applier.data_file();
        self.latch(ended.map_err(LogDiskError::from))?;
        self.note_packed(&packing.storage, packing.at)?;
        Ok(Some(len))
    }

    /// A storage was packed as the entry `seq` had ordered it, or that is not needed. On stable
    /// storage when this returns.
    ///
    /// # Errors
    ///
    /// [A lack of room](LogDiskError::is_for_lack_of_room): it is not noted, and may be tried
    /// again. Otherwise the node must not go on.
    pub fn note_packed(&mut self, storage: &str, seq: Seq) -> Result<(), LogDiskError> {
        self.check()?;
        let mut settled = self.settled.clone();
        let packed = settled.packed.entry(storage.to_owned()).or_default();
        *packed = seq.max(*packed);
        let of = self.journal.identity().disk;
        let saved = settled.save(&*self.disk, &self.directories.journal, of);
        // The old file is there.
        let saved = saved.map_err(|error| LogDiskError::from(error.full()));
        self.latch(saved)?;
        self.settled = settled;
        Ok(())
    }

    /// The packs that were ordered, as of what was applied.
    pub fn pack_orders(&self) -> BTreeMap<StorageName, PackOrder> {
        let packs = self.settings.packs.iter();
        let orders = packs.map(|(storage, pack)| {
            let ordered = self.ordered.get(storage).filter(|it| it.at == pack.at);
            let order = PackOrder {
                at: pack.at,
                until: ordered.map_or(pack.tid, |it| it.through.min(pack.tid)),
                is_done: self.settled.packed.get(storage) >= Some(&pack.at),
            };
            (storage.clone(), order)
        });
        orders.collect()
    }

    /// The same, if they are others than when this was asked last.
    pub fn take_pack_orders(&mut self) -> Option<BTreeMap<StorageName, PackOrder>> {
        std::mem::take(&mut self.has_new_orders).then(|| self.pack_orders())
    }

    /// The entry `at` orders a pack: notes what is in front of it.
    pub(super) fn note_order(&mut self, storage: &StorageName, at: Seq) {
        let through = self.ends.get(storage).copied().unwrap_or_default();
        self.ordered
            .insert(storage.clone(), Ordered { at, through });
        self.has_new_orders = true;
    }
}
