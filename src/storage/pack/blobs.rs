//! Files of blobs whose revisions were packed away. They go after the switch, when no file that
//! could come back leads to them any more.
//!
//! With `pack-keep-old` there is a directory of blobs for the old file, too (`blobs.old`): what is
//! dropped is moved there, and what stays gets a second name there.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::blob::DirectoryMaker;
use super::super::blob::layout::BlobDirectory;
use super::super::disk::{Disk, with_suffix};
use super::OLD_SUFFIX;
use crate::ids::{Oid, Tid};

/// Files dropped, or directories read, in one slice.
const SLICE_COUNT: usize = 200;

const LAYOUT_MARKER: &str = ".layout";
const BLOB_SUFFIX: &[u8] = b".blob";

/// What is left to be done with the blobs.
#[derive(Debug)]
pub(super) struct Sweep {
    disk: Arc<dyn Disk>,
    directory: BlobDirectory,
    maker: DirectoryMaker,
    keep_old: bool,
    begun: bool,
    /// Revisions that were dropped.
    dropped: Vec<(Oid, Tid)>,
    /// Directories with blobs that stay.
    to_link: Vec<PathBuf>,
}

impl Sweep {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        directory: BlobDirectory,
        maker: DirectoryMaker,
        keep_old: bool,
        dropped: Vec<(Oid, Tid)>,
    ) -> Self {
        Self {
            disk,
            maker,
            keep_old,
            begun: false,
            dropped,
            to_link: match keep_old {
                true => vec![directory.base().to_owned()],
                false => Vec::new(),
            },
            directory,
        }
    }

    /// Does some of it; whether it is done.
    pub(super) fn run(&mut self) -> io::Result<bool> {
        if !self.begun {
            self.begin()?;
            self.begun = true;
        }
        for _ in 0..SLICE_COUNT {
            if let Some((oid, tid)) = self.dropped.pop() {
                self.drop_file(oid, tid)?;
            } else if let Some(path) = self.to_link.pop() {
                self.link_all(&path)?;
            } else {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn begin(&self) -> io::Result<()> {
        let old = self.old();
        self.disk.remove_tree(&old)?;
        if self.keep_old {
            self.disk.create_directories(&old)?;
            let marker = self.directory.base().join(LAYOUT_MARKER);
            ignore_missing(self.disk.link(&marker, &old.join(LAYOUT_MARKER)))?;
        }
        Ok(())
    }

    fn old(&self) -> PathBuf {
        with_suffix(self.directory.base(), OLD_SUFFIX)
    }

    /// The same place in the directory of the old file.
    fn old_place(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(self.directory.base()) {
            Ok(within) => self.old().join(within),
            Err(_) => self.old(),
        }
    }

    fn drop_file(&self, oid: Oid, tid: Tid) -> io::Result<()> {
        let path = self.directory.file(oid, tid);
        if self.keep_old {
            let place = self.old_place(&path);
            if let Some(parent) = place.parent() {
                self.disk.create_directories(parent)?;
            }
            ignore_missing(self.disk.rename(&path, &place))?;
        } else {
            self.disk.discard(&path)?;
        }
        // A transaction that has use for one makes it again when its blob comes.
        let _right = self.maker.lock();
        for directory in path.ancestors().skip(1) {
            if directory == self.directory.base() || !self.disk.remove_if_empty(directory)? {
                break;
            }
        }
        Ok(())
    }

    /// Second names for the blobs in this directory; those below it come later.
    fn link_all(&mut self, path: &Path) -> io::Result<()> {
        let names = match self.disk.names(path) {
            Ok(names) => names,
            // Something else than a directory, or gone by now.
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let (blobs, others): (Vec<OsString>, Vec<OsString>) = names
            .into_iter()
            .partition(|name| name.as_encoded_bytes().ends_with(BLOB_SUFFIX));
        if !blobs.is_empty() {
            self.disk.create_directories(&self.old_place(path))?;
        }
        for name in blobs {
            let path = path.join(name);
            ignore_missing(self.disk.link(&path, &self.old_place(&path)))?;
        }
        // Objects have names like 0x01; what is being made, and what is hidden, does not.
        let objects = others.iter().filter(|name| is_hex(name.as_encoded_bytes()));
        self.to_link.extend(objects.map(|name| path.join(name)));
        Ok(())
    }
}

fn is_hex(name: &[u8]) -> bool {
    name.starts_with(b"0x")
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::blob::layout::Layout;
    use crate::storage::disk::OsDisk;
    use crate::storage::testing::TestDir;

    /// Files below a directory, without it.
    fn files(base: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![base.to_owned()];
        while let Some(path) = todo.pop() {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => todo.push(path),
                    false => found.push(path.strip_prefix(base).unwrap().display().to_string()),
                }
            }
        }
        found.sort();
        found
    }

    fn sweep(layout: Layout, keep_old: bool) -> (Vec<String>, Option<Vec<String>>, bool) {
        let dir = TestDir::new();
        let base = dir.path("blobs");
        let disk = Arc::new(OsDisk::default());
        std::fs::create_dir_all(base.join("tmp")).unwrap();
        std::fs::write(base.join(".layout"), layout.name()).unwrap();
        std::fs::write(base.join("tmp/standby-1.tmp"), b"in the making").unwrap();
        let directory = BlobDirectory::open(&*disk, &base, false).unwrap();
        for (oid, tid) in [(1, 10), (1, 20), (0x0102, 10)] {
            let path = directory.file(Oid(oid), Tid(tid));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"blob").unwrap();
        }
        // Of an earlier pack.
        std::fs::create_dir_all(dir.path("blobs.old/0x07")).unwrap();
        let gone = directory.directory_of(Oid(0x0102));
        let missing = (Oid(9), Tid(9));
        let dropped = vec![(Oid(1), Tid(10)), (Oid(0x0102), Tid(10)), missing];
        let mut sweep = Sweep::new(
            disk,
            directory,
            DirectoryMaker::default(),
            keep_old,
            dropped,
        );
        while !sweep.run().unwrap() {}
        let old = dir.path("blobs.old");
        let old = old.exists().then(|| files(&old));
        (files(&base), old, gone.exists())
    }

    #[test]
    fn dropped_blobs_are_removed_with_what_is_empty_then() {
        for layout in [Layout::Bushy, Layout::Lawn] {
            let (files, old, is_there) = sweep(layout, false);
            assert_eq!((files.len(), old, is_there), (3, None, false), "{files:?}");
            assert!(files.iter().any(|path| path.ends_with("0x14.blob")));
        }
    }

    #[test]
    fn no_directory_vanishes_while_somebody_makes_some() {
        let dir = TestDir::new();
        let directory = BlobDirectory::new(dir.path("blobs"), Layout::Bushy);
        let path = directory.file(Oid(1), Tid(10));
        let of_object = directory.directory_of(Oid(1));
        std::fs::create_dir_all(&of_object).unwrap();
        std::fs::write(&path, b"blob").unwrap();
        let maker = DirectoryMaker::default();
        let disk = Arc::new(OsDisk::default());
        let dropped = vec![(Oid(1), Tid(10))];
        let mut sweep = Sweep::new(disk, directory, maker.clone(), false, dropped);
        std::thread::scope(|scope| {
            let right = maker.lock();
            let sweeper = scope.spawn(|| sweep.run().unwrap());
            while !maker.is_awaited() {
                assert!(!sweeper.is_finished());
                std::thread::yield_now();
            }
            assert!(!path.exists() && of_object.exists());
            drop(right);
            assert!(sweeper.join().unwrap());
        });
        assert!(!of_object.exists());
    }

    #[test]
    fn the_old_directory_has_all_blobs_of_the_old_file() {
        for layout in [Layout::Bushy, Layout::Lawn] {
            let (files, old, is_there) = sweep(layout, true);
            assert_eq!((files.len(), is_there), (3, false));
            let old = old.unwrap();
            assert_eq!(old.len(), 4, "{old:?}");
            assert!(old.contains(&".layout".to_owned()));
        }
    }
}
