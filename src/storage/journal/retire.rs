//! A journal that makes room for one of another history.

use std::path::{Path, PathBuf};

use log::info;

use super::error::JournalError;
use super::recover::{self, LOCK};
use super::state::{Identity, State};
use super::{Fault, Journal};
use crate::ids::Seq;
use crate::storage::disk::Disk;

impl Journal {
    /// Moves the journal that is in a directory, with all files of its state, into a directory in
    /// that one, `history-ID`, but for the file `except`. Then there is none, until another one is
    /// made. If a crash comes in between it is to be called again. `false` if there was none.
    ///
    /// # Errors
    ///
    /// It is in use, or the disk has failed.
    pub fn retire(disk: &dyn Disk, directory: &Path, except: &str) -> Result<bool, JournalError> {
        let Some((identity, _)) = Identity::load(disk, directory, None)? else {
            return Ok(false);
        };
        let _lock = recover::lock(disk, directory, false)?;
        let old = directory.join(format!("history-{}", identity.history));
        disk.create_directories(&old)
            .map_err(JournalError::io("create", &old))?;
        // Also if it was there: a process that was killed may have made it.
        disk.sync_directory_of(&old)
            .map_err(JournalError::io("sync the directory of", &old))?;
        // The identity last: while it is there the rest is not complete.
        for path in files_of(disk, directory, except)? {
            move_to(disk, &path, &old)?;
        }
        let last = directory.join(Identity::NAME);
        sync(disk, &last, &old)?;
        move_to(disk, &last, &old)?;
        sync(disk, &last, &old)?;
        info!(
            "journal: history {} is kept in {}",
            identity.history,
            old.display()
        );
        Ok(true)
    }
}

/// The files of a journal, but for its identity and its lock.
fn files_of(disk: &dyn Disk, directory: &Path, except: &str) -> Result<Vec<PathBuf>, JournalError> {
    let names = disk
        .names(directory)
        .map_err(JournalError::io("list", directory))?;
    let stays = |name: &str| [Identity::NAME, LOCK, except].contains(&name);
    let names = names
        .iter()
        .filter(|name| !name.to_str().is_some_and(stays));
    let paths = names.map(|name| directory.join(name));
    // Directories have names in them, or none.
    Ok(paths.filter(|path| disk.names(path).is_err()).collect())
}

fn move_to(disk: &dyn Disk, path: &Path, directory: &Path) -> Result<(), JournalError> {
    let Some(name) = path.file_name() else {
        return Err(JournalError::damaged(path, 0, Seq::ZERO, Fault::NoFile));
    };
    disk.rename(path, &directory.join(name))
        .map_err(JournalError::io("move", path))
}

fn sync(disk: &dyn Disk, path: &Path, old: &Path) -> Result<(), JournalError> {
    for path in [path, &old.join(Identity::NAME)] {
        disk.sync_directory_of(path)
            .map_err(JournalError::io("sync the directory of", path))?;
    }
    Ok(())
}
