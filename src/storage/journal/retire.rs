//! A journal that makes room for one of another history.

use std::io;
use std::path::{Path, PathBuf};

use log::info;

use super::error::JournalError;
use super::recover::{self, LOCK};
use super::state::{Identity, State};
use super::{Fault, Journal};
use crate::ids::Seq;
use crate::storage::disk::{Disk, OpenMode};

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
    // Directories have names in them, or none; and a server that runs has its socket there.
    let is_file = |path: &PathBuf| {
        let opened = disk.open(path, OpenMode::ReadRegular);
        let is_other = opened.is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput);
        !is_other && disk.names(path).is_err()
    };
    Ok(paths.filter(is_file).collect())
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use super::*;
    use crate::ids::{DiskId, HistoryId, NodeId};
    use crate::storage::disk::OsDisk;
    use crate::storage::journal::{Create, Options};
    use crate::storage::testing::TestDir;

    #[test]
    fn what_is_not_of_the_journal_stays() {
        let dir = TestDir::new();
        let disk = Arc::new(OsDisk::default());
        let path = dir.path("journal");
        let identity = Identity {
            history: HistoryId([1; 16]),
            node: NodeId::new("n1").unwrap(),
            disk: DiskId([2; 16]),
        };
        let options = Options {
            create: Some(Create::new(identity)),
            ..Options::default()
        };
        let (journal, _) = Journal::open(disk.clone(), &path, options).unwrap();
        journal.close().unwrap();
        std::fs::create_dir(path.join("blobs")).unwrap();
        let _listener = UnixListener::bind(path.join("admin.sock")).unwrap();
        assert!(Journal::retire(&*disk, &path, "next").unwrap());
        let mut left = disk.names(&path).unwrap();
        left.sort();
        let history = format!("history-{}", identity.history);
        assert_eq!(left, ["admin.sock", "blobs", &history, LOCK]);
        let kept = disk.names(&path.join(history)).unwrap();
        assert!(kept.iter().any(|name| name == Identity::NAME), "{kept:?}");
        assert!(!kept.iter().any(|name| name == "admin.sock"), "{kept:?}");
    }
}
