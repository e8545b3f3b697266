//! A copy of the database in the place of data that are damaged, while the log stays as it is.
//!
//! The node is as far as others, and goes on while the copy is made beside its data: so the copy is
//! older than what it has applied. What is behind it is in the journal, and is applied again:
//!
//! ```text
//!   journal        ... ───────────────────────────────────────────────►
//!   data           ══════════════════════════════════════════► applied
//!   copy           ══════════════════════► point
//!   replaced       ══════════════════════►─── applied again ──► applied
//! ```
//!
//! Nothing is cut and nothing is forgotten: neither entries nor promises, nor that all up to what
//! was applied is committed. `next` says that the journal is kept; from then on opening does the
//! rest.

use std::sync::Arc;

use super::beside::{Beside, CopyProgress, discard_copy, make_copy};
use super::compare::DigestSource;
use super::files::Next;
use super::found::{settle, switch_data};
use super::manifest::Manifest;
use super::start::open_data;
use super::{Directories, LogDisk, LogDiskError, NamedBlob};
use crate::ids::Tid;
use crate::storage::disk::Disk;
use crate::storage::journal::state::State as _;
use crate::storage::recover::Access;

/// As [`copy_beside`](super::copy_beside), for a node whose data are damaged: a blob that is here
/// is believed only if it is the same there, and is replaced if not. Meanwhile nothing may be
/// packed here, as that would remove blobs that were looked at.
///
/// # Errors
///
/// As of [`copy_beside`](super::copy_beside).
pub fn copy_anew(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    source: &dyn DigestSource,
    progress: &mut CopyProgress<'_>,
) -> Result<Beside, LogDiskError> {
    make_copy(disk, directories, source, Some(source), progress)
}

/// What came of a copy that was to take the place of the data.
#[derive(Debug, PartialEq, Eq)]
pub enum Replacement {
    /// It has.
    Done,
    /// These blobs have to be put into the journal first, or some more of them. Nothing was done.
    Lacks(Vec<NamedBlob>),
    /// The journal does not go back to it any more. Nothing was done; a later copy goes on where
    /// this one has ended.
    TooOld,
}

impl LogDisk {
    /// Puts a copy in the place of the data; the journal stays, and what it has behind the copy is
    /// applied again, as far as it was. Takes as long as that. `number` is what blobs are
    /// [expected](super::Blobs::expect) by that this needs; it is for who calls to expect them no
    /// more.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::Useless`]: all is as it was, and the copy is removed.
    /// [A lack of room](LogDiskError::is_for_lack_of_room): the same, but the copy stays. After any
    /// other, a lack of room as it is written down that the data are replaced among them, the node
    /// must not go on; opening finds the old data or the new ones.
    pub fn replace_data(
        &mut self,
        beside: &Beside,
        number: u64,
    ) -> Result<Replacement, LogDiskError> {
        self.check()?;
        let manifest = beside.manifest();
        let checked = self.check_replacement(manifest);
        match checked {
            Ok(true) => {}
            Ok(false) => return Ok(Replacement::TooOld),
            Err(LogDiskError::Useless(why)) => {
                let discarded = discard_copy(&*self.disk, &self.directories);
                self.latch(discarded)?;
                return Err(LogDiskError::Useless(why));
            }
            Err(error) => return self.latch(Err(error)),
        }
        let staged = self.stage_again(manifest.point().seq, number);
        let lacking = self.latch(staged.map_err(LogDiskError::full))?;
        if !lacking.is_empty() {
            return Ok(Replacement::Lacks(lacking));
        }
        // The data will not say it any more.
        let noted = self.journal.note_committed(self.applied);
        self.latch(noted.map_err(LogDiskError::from))?;
        self.put_in_place(manifest).map_err(|error| {
            // Whatever it is, the old data may be gone.
            let first = error.to_string();
            self.failed.get_or_insert(first.clone());
            LogDiskError::Failed { first }
        })?;
        Ok(Replacement::Done)
    }

    /// See [`LogStart::history_from`](crate::replica::event::LogStart::history_from).
    pub const fn history_from(&self) -> Tid {
        self.settled.history_from
    }

    /// Whether a copy is of this log, not ahead of what was applied, and no less than what is here.
    /// `false` if the journal begins behind it.
    fn check_replacement(&self, manifest: &Manifest) -> Result<bool, LogDiskError> {
        let useless = |why| Err(LogDiskError::Useless(why));
        if self.directories.storages.is_empty() {
            return useless("this node keeps no data");
        }
        if manifest.history != self.identity().history {
            return useless("it is of another history");
        }
        if !manifest.files.keys().eq(self.directories.storages.keys()) {
            return useless("it has other storages");
        }
        let settled = &manifest.settled;
        if settled.history_from > self.settled.history_from
            && (self.settled.history_from == Tid::ZERO || !manifest.newest_only)
        {
            return useless("it lacks old revisions that are here");
        }
        // The replica believes that it is packed, and would not have it done again.
        let is_packed = |(name, at)| settled.packed.get(name).is_some_and(|theirs| theirs >= at);
        if !self.settled.packed.iter().all(is_packed) {
            return useless("a pack that was done here has yet to be done there");
        }
        let point = manifest.point();
        if point.seq > self.applied {
            return useless("it is ahead of what was applied here");
        }
        match self.journal.point_at(point.seq)? {
            Some(ours) if ours == point => Ok(true),
            Some(_) => useless("its log is another one"),
            None => Ok(false),
        }
    }

    fn put_in_place(&mut self, manifest: &Manifest) -> Result<(), LogDiskError> {
        let applied = self.applied;
        let next = Next {
            identity: *self.identity(),
            promised: self.journal.positions().promised,
            is_retiring: false,
            keeps_log: true,
            epochs: Vec::new(),
            settled: manifest.settled.clone(),
        };
        next.save(&*self.disk, &self.directories.journal, next.identity.disk)?;
        // From here on opening does the rest.
        self.appliers.clear();
        switch_data(&*self.disk, &self.directories)?;
        self.appliers = open_data(&self.disk, &self.directories, Access::Applied)?;
        self.settled = settle(&*self.disk, &self.directories, next, self.tids())?;
        self.settings = self.settled.settings.clone();
        self.ordered = self.settled.ordered.clone();
        self.find_applied()?;
        self.apply(applied)?;
        if let Some(hold) = &self.hold {
            let (seq, why) = (self.applied.next(), hold.to_string());
            return Err(LogDiskError::Held { seq, why });
        }
        self.news.break_off();
        self.settle()?;
        discard_copy(&*self.disk, &self.directories)
    }
}
