//! How a node comes by a journal, and what is to become of a directory: the file `next` says it, and
//! from then on opening completes it, whatever comes in between.
//!
//! | to do | because of |
//! |---|---|
//! | what the old journal has is applied, all of it; the old journal is kept as history | a forced promotion |
//! | copies of data files get their names | `copy` |
//! | what the journal has beyond the copy is cut and kept; it begins behind it | `copy` |
//! | a journal is made | a new node, a new history |
//! | `settings` is written, `next` is removed | all |

use std::collections::BTreeMap;
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
use crate::storage::witness;

/// What is appended to the name of a data file that is to be replaced.
pub(super) const COPY: &str = ".copy";

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
    /// Makes a journal. If there is none, its log begins at the beginning, with the data files as
    /// they are; they are made if there are none. If there is one of another history, all that it
    /// has is applied, be it committed or not, and the new log begins behind that; the old journal
    /// is kept in a directory of its own.
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
            epochs: Vec::new(),
            settled: Settled {
                point: start,
                history_from: Tid::ZERO,
                tids: [].into(),
                settings: settings.clone(),
            },
        };
        let path = &directories.journal;
        match Identity::load(&*disk, path, None)? {
            Some((old, _)) if old.history == history => {
                let path = path.clone();
                return Err(LogDiskError::Exists { path, history });
            }
            Some(_) => {
                let (old, _) = Self::open_complete(disk.clone(), directories, options)?;
                let last = old.positions().last;
                next.promised = last.epoch;
                next.epochs = old.journal.epochs().rows().to_vec();
                next.settled.history_from = old.settled.history_from;
                // No entry of one history continues another.
                next.settled.point = Point {
                    digest: start.digest,
                    ..last
                };
            }
            None => {}
        }
        next.save(&*disk, path, identity.disk)?;
        complete(&disk, directories, options)
    }
}

/// Does what is still to be done, if anything is.
pub(super) fn complete(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    options: &Options,
) -> Result<(), LogDiskError> {
    let path = &directories.journal;
    let Some((next, _)) = Next::load(&**disk, path, None)? else {
        return discard_copies(&**disk, directories);
    };
    let identity = next.identity;
    match Identity::load(&**disk, path, None)? {
        Some((old, _)) if old != identity => {
            apply_all(disk, directories, options)?;
            Journal::retire(&**disk, path, Next::NAME)?;
        }
        _ => {}
    }
    switch_data(&**disk, directories)?;
    let create = Create::behind(identity, next.settled.point, &next.epochs);
    let options = journal::Options {
        create: Some(create),
        segment_len: options.segment_len,
        window_len: options.window_len,
    };
    let (mut journal, _) = Journal::open(disk.clone(), path, options)?;
    begin_behind(&mut journal, &next)?;
    let appliers = open_data(disk, directories)?;
    let tids = appliers
        .iter()
        .map(|(name, it)| (name.clone(), it.last_tid()));
    settle(&**disk, directories, next, tids.collect())?;
    appliers.into_values().try_for_each(Applier::close)?;
    Ok(())
}

/// Applies all that a journal has, which is about to end.
fn apply_all(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    options: &Options,
) -> Result<(), LogDiskError> {
    let (mut old, _) = LogDisk::open_complete(disk.clone(), directories, options)?;
    old.apply(old.positions().last.seq)?;
    old.close()
}

/// Gives copies of data files, which are complete and on stable storage, their names.
pub(super) fn switch_data(disk: &dyn Disk, directories: &Directories) -> Result<(), LogDiskError> {
    for paths in directories.storages.values() {
        let (copy, data) = (with_suffix(&paths.data, COPY), &paths.data);
        if disk.identify(&copy).is_err() {
            continue;
        }
        // Before the rename: else they would be believed to be about the copy.
        for suffix in [".index", witness::SUFFIX] {
            let path = with_suffix(data, suffix);
            disk.remove(&path)
                .map_err(LogDiskError::io("remove", &path))?;
        }
        disk.rename(&copy, data)
            .map_err(LogDiskError::io("replace", data))?;
        disk.sync_directory_of(data)
            .map_err(LogDiskError::io("sync the directory of", data))?;
        info!("{}: replaced by a copy", data.display());
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

/// Removes copies that were not completed.
fn discard_copies(disk: &dyn Disk, directories: &Directories) -> Result<(), LogDiskError> {
    for paths in directories.storages.values() {
        let path = with_suffix(&paths.data, COPY);
        disk.remove(&path)
            .map_err(LogDiskError::io("remove", &path))?;
    }
    Ok(())
}
