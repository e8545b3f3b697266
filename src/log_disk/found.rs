//! How a node comes by a journal, and what is to become of a directory: the file `next` says it,
//! and from then on opening completes it, whatever comes in between.
//!
//! | to do | because of |
//! |---|---|
//! | all that the old journal has is applied, and it is kept as history | a forced promotion |
//! | copies of data files get their names, if the tids that they end with are named | a copy |
//! | what the journal has beyond it is cut and kept; it begins behind it | a copy that is ahead |
//! | a journal is made | a new node, a new history |
//! | `settings` is written, `next` is removed | all |

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use log::info;

use super::files::{Next, Settled};
use super::start::open_data;
use super::{Directories, LogDisk, LogDiskError, Options, create_directory};
use crate::entry::Point;
use crate::ids::{Epoch, Seq, Tid};
use crate::replica::settings::{Settings, StorageName};
use crate::storage::apply::Applier;
use crate::storage::disk::{Disk, with_suffix};
use crate::storage::journal::state::State as _;
use crate::storage::journal::{self, Create, EpochRow, Identity, Journal};
use crate::storage::recover::Access;
use crate::storage::witness;

/// What is appended to the name of a data file that is to be replaced.
pub(super) const COPY: &str = ".copy";

/// The same for the file of its index.
pub(super) const INDEX: &str = ".index";

/// What a new journal begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whose it is.
    pub identity: Identity,
    /// What the nodes agree on before the first entry. For a new history behind another one they
    /// should have a [`jump`](Settings::jump).
    pub settings: Settings,
}

impl LogDisk {
    /// Whether there is a journal, or one was about to be made.
    ///
    /// # Errors
    ///
    /// What says so is damaged, or cannot be read.
    pub fn is_there(disk: &dyn Disk, directories: &Directories) -> Result<bool, LogDiskError> {
        let path = &directories.journal;
        let is_made = Identity::load(disk, path, None)?.is_some();
        Ok(is_made || Next::load(disk, path, None)?.is_some())
    }

    /// Makes a journal. If there is none, its log begins at the beginning, with the data files and
    /// blobs as they are; they are made if there are none. Oids that another server may have handed
    /// out are below the ceilings then, and what clients have seen of it is of this history. If
    /// there is one of another history, all that it has is applied, be it committed or not, and the
    /// new log begins behind that; the old journal is kept in a directory of its own.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::Exists`]: there is one of this history. Otherwise the old one cannot be
    /// opened, or the disk has failed; then it may be tried again.
    pub fn found(
        disk: Arc<dyn Disk>,
        directories: &Directories,
        options: &Options,
        found: &Found,
    ) -> Result<(), LogDiskError> {
        let Found { identity, settings } = found;
        create_directory(&*disk, &directories.journal)?;
        complete(&disk, directories, options)?;
        let history = identity.history;
        let start = Point::start(history);
        let mut next = Next {
            identity: *identity,
            promised: Epoch::ZERO,
            is_retiring: false,
            keeps_log: false,
            epochs: Vec::new(),
            settled: Settled {
                point: start,
                history_from: Tid::ZERO,
                tids: [].into(),
                packed: packs_of(settings),
                ordered: [].into(),
                past: Vec::new(),
                settings: settings.clone(),
            },
        };
        let path = &directories.journal;
        let old = Identity::load(&*disk, path, None)?;
        let is_first = old.is_none();
        match old {
            Some((old, _)) if old.history == history => {
                let path = path.clone();
                return Err(LogDiskError::Exists { path, history });
            }
            Some(_) => {
                let (old, _) = Self::open_complete(disk.clone(), directories, options)?;
                let last = old.positions().last;
                next.promised = last.epoch;
                // Of what is behind nobody knows whether it was committed. Clients that have seen
                // another one of the same tid must not be told that it is ours.
                let known = old.last_applied_tid();
                next.epochs = old.journal.epochs().rows().to_vec();
                clip(&mut next.epochs, known);
                next.settled.history_from = old.settled.history_from;
                next.settled.packed = old.settled.packed.clone();
                next.settled.past = old.settled.past.clone();
                next.settled.leave(old.identity().history);
                // No entry of one history continues another.
                next.settled.point = Point {
                    digest: start.digest,
                    ..last
                };
            }
            None => {}
        }
        next.save(&*disk, path, identity.disk)?;
        let completed = complete(&disk, directories, options);
        // Another server has the data files, or they are damaged: then nothing is to be done when
        // that is over.
        if completed.is_err() && is_first && Identity::load(&*disk, path, None)?.is_none() {
            let next = path.join(Next::NAME);
            disk.remove(&next)
                .map_err(LogDiskError::io("remove", &next))?;
        }
        completed
    }
}

/// Does what is still to be done, if anything is.
pub(super) fn complete(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    options: &Options,
) -> Result<(), LogDiskError> {
    let path = &directories.journal;
    let Some((mut next, _)) = Next::load(&**disk, path, None)? else {
        return Ok(());
    };
    let identity = next.identity;
    match Identity::load(&**disk, path, None)? {
        Some((old, _)) if old != identity => {
            if !next.is_retiring {
                apply_all(disk, directories, options)?;
                // From here on it is not opened any more.
                next.is_retiring = true;
                next.save(&**disk, path, identity.disk)?;
            }
            Journal::retire(&**disk, path, Next::NAME)?;
        }
        _ => {}
    }
    // Without tids it is about no copy: what there is of one is not complete, or not wanted.
    if !next.settled.tids.is_empty() {
        switch_data(&**disk, directories)?;
    }
    if next.keeps_log {
        let appliers = open_data(disk, directories, Access::Applied)?;
        settle(&**disk, directories, next, tids_of(&appliers))?;
        return Ok(appliers.into_values().try_for_each(Applier::close)?);
    }
    // Another server may have had them before.
    let appliers = open_data(disk, directories, Access::ReadWrite)?;
    take_over(&mut next, &appliers);
    let create = Create::behind(identity, next.settled.point, &next.epochs);
    let options = journal::Options {
        create: Some(create),
        segment_len: options.segment_len,
        window_len: options.window_len,
    };
    let (mut journal, _) = Journal::open(disk.clone(), path, options)?;
    begin_behind(&mut journal, &next)?;
    settle(&**disk, directories, next, tids_of(&appliers))?;
    appliers.into_values().try_for_each(Applier::close)?;
    Ok(())
}

/// Of each storage: the tid of its last transaction.
fn tids_of(appliers: &BTreeMap<StorageName, Applier>) -> BTreeMap<StorageName, Tid> {
    let tids = appliers.iter();
    tids.map(|(name, it)| (name.clone(), it.last_tid()))
        .collect()
}

/// The first log of these data begins behind what there is: that is of its history, and no oid that
/// may have been handed out is handed out again.
fn take_over(next: &mut Next, appliers: &BTreeMap<StorageName, Applier>) {
    if next.settled.point.seq != Seq::ZERO || !next.epochs.is_empty() {
        return;
    }
    let last = appliers.values().map(Applier::last_tid).max();
    let last = last.unwrap_or_default();
    // As one more epoch, in front of all others, so that whoever gets a copy knows it, too.
    let first = (last != Tid::ZERO).then_some(EpochRow {
        epoch: Epoch::ZERO,
        first: Seq::ZERO,
        tids: Some((Tid::ZERO, last)),
    });
    next.epochs.extend(first);
    for (name, applier) in appliers {
        if let Some(first) = applier.first_free_oid() {
            let ceiling = next.settled.settings.ceilings.entry(name.clone());
            let ceiling = ceiling.or_default();
            *ceiling = first.max(*ceiling);
        }
    }
}

/// Applies all that a journal has, which is about to end.
fn apply_all(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    options: &Options,
) -> Result<(), LogDiskError> {
    let (mut old, _) = LogDisk::open_complete(disk.clone(), directories, options)?;
    old.apply(old.positions().last.seq)?;
    if let Some(hold) = old.hold() {
        let (seq, why) = (old.applied().next(), hold.to_string());
        return Err(LogDiskError::Held { seq, why });
    }
    old.close()
}

/// Gives copies of data files, which are complete and on stable storage, their names.
pub(super) fn switch_data(disk: &dyn Disk, directories: &Directories) -> Result<(), LogDiskError> {
    for paths in directories.storages.values() {
        let (copy, data) = (with_suffix(&paths.data, COPY), &paths.data);
        let replace = |from: &Path, to: &Path| {
            disk.rename(from, to)
                .map_err(LogDiskError::io("replace", to))?;
            disk.sync_directory_of(to)
                .map_err(LogDiskError::io("sync the directory of", to))
        };
        if disk.identify(&copy).is_ok() {
            // Before the rename: else they would be believed to be about the copy.
            for suffix in [INDEX, witness::SUFFIX] {
                let path = with_suffix(data, suffix);
                disk.remove(&path)
                    .map_err(LogDiskError::io("remove", &path))?;
            }
            replace(&copy, data)?;
            info!("{}: replaced by a copy", data.display());
        }
        // Also if the copy has its name already: nothing was written to it since.
        let index = with_suffix(&copy, INDEX);
        if disk.identify(&index).is_ok() {
            replace(&index, &with_suffix(data, INDEX))?;
        }
    }
    Ok(())
}

/// Lets a journal begin behind the copy. What it has and the copy has not is cut before.
pub(super) fn begin_behind(journal: &mut Journal, next: &Next) -> Result<(), LogDiskError> {
    let point = next.settled.point;
    if journal.positions().last != point {
        let common = common(journal, &next.epochs, point.seq);
        if common < journal.positions().last.seq {
            journal.cut_after(common, common)?;
        }
        journal.begin_behind(point, &next.epochs)?;
    }
    if journal.positions().promised < next.promised {
        journal.promise(next.promised)?;
    }
    Ok(())
}

/// The last entry that a journal has in common with a log that ends with `last` and has these
/// epochs: two that have an entry of one epoch at the same place are the same up to there.
pub(super) fn common(journal: &Journal, epochs: &[EpochRow], last: Seq) -> Seq {
    let ours = journal.epochs();
    let ours = with_ends(ours.rows(), journal.positions().last.seq);
    let theirs: Vec<_> = with_ends(epochs, last).collect();
    let ends = ours.filter_map(|(row, end)| {
        let same = theirs.iter().find(|(it, _)| it.epoch == row.epoch)?;
        Some(end.min(same.1))
    });
    ends.max().unwrap_or_default()
}

/// The packs that were ordered: those that are not to be done any more by who begins here.
fn packs_of(settings: &Settings) -> BTreeMap<StorageName, Seq> {
    let packs = settings.packs.iter();
    packs.map(|(name, pack)| (name.clone(), pack.at)).collect()
}

/// Forgets transactions behind `last`.
pub(super) fn clip(rows: &mut [EpochRow], last: Tid) {
    for row in rows {
        let within = |(from, to): (Tid, Tid)| (from <= last).then(|| (from, to.min(last)));
        row.tids = row.tids.and_then(within);
    }
}

/// Each epoch with its last entry.
fn with_ends(rows: &[EpochRow], last: Seq) -> impl Iterator<Item = (&EpochRow, Seq)> {
    let next = rows.iter().skip(1);
    let ends = next.map(|next| Seq(next.first.0.saturating_sub(1)));
    rows.iter().zip(ends.chain([last]))
}

/// The data are in place, and the journal is: notes that, and that nothing is to be done any more.
pub(super) fn settle(
    disk: &dyn Disk,
    directories: &Directories,
    next: Next,
    tids: BTreeMap<StorageName, Tid>,
) -> Result<Settled, LogDiskError> {
    for (name, expected) in &next.settled.tids {
        let found = tids.get(name).copied().unwrap_or_default();
        if found != *expected {
            let paths = directories.storages.get(name);
            let paths = paths.ok_or_else(|| LogDiskError::Unknown(name.clone()))?;
            let (path, expected) = (paths.data.clone(), *expected);
            return Err(LogDiskError::Behind {
                path,
                found,
                expected,
            });
        }
    }
    let settled = Settled {
        tids,
        ..next.settled
    };
    let path = &directories.journal;
    settled.save(disk, path, next.identity.disk)?;
    let next = path.join(Next::NAME);
    disk.remove(&next)
        .map_err(LogDiskError::io("remove", &next))?;
    Ok(settled)
}
