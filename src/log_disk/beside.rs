//! A copy of the database in the place of what a node has.
//!
//! It is made beside the old data, and takes its time; the node goes on meanwhile. When it is
//! complete, checked and on stable storage it is *adopted*: `next` is written, and from then on it
//! counts. What the node has promised stays. The file `copy` says how far it has come, so that what
//! is there is not copied again.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{Context, SHA256};

use super::compare::DigestSource;
use super::copy::{CopySource, PIECE_LEN, digest_piece};
use super::files::Next;
use super::found::{COPY, INDEX, begin_behind, common, complete, settle, switch_data};
use super::manifest::{CopiedFile, Manifest, Partial};
use super::start::{Scan, open_data};
use super::{Directories, LogDisk, LogDiskError, Options, create_directory};
use crate::ids::{Digest, Tid};
use crate::limits::{COPY_BLOBS_LISTED, COPY_SYNC_LEN, DIGEST_LEN};
use crate::replica::event::LogStart;
use crate::replica::settings::StorageName;
use crate::storage::blob::layout::BlobDirectory;
use crate::storage::disk::{Disk, File, OpenMode, with_suffix};
use crate::storage::journal::Identity;
use crate::storage::journal::state::State as _;
use crate::storage::recover::{self, Access};
use crate::storage::transfer::BlobAt;

/// A copy that is complete, checked, and on stable storage beside the data.
#[derive(Debug)]
pub struct Beside {
    manifest: Manifest,
}

impl Beside {
    /// What it consists of.
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// Told of the bytes that are there and of those that there are to be as far as is known: blobs are
/// counted when they are met. Whether to go on.
pub type CopyProgress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// Copies all that a source has beside the data: data files to files of their own, blobs to their
/// places, where nobody looks for them yet. May be done while a [`LogDisk`] has the directories, by
/// one thread at a time; takes as long as it takes. All of it is on stable storage when this
/// returns. What was interrupted goes on where it was, if the source is the same disk; a blob
/// begins anew.
///
/// # Errors
///
/// [`LogDiskError::Useless`]: it is of other storages. [`LogDiskError::Uncopied`]: the source or
/// the disk have failed, or it was not to go on; what there was is as it was, and it may be tried
/// again.
pub fn copy_beside(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    source: &dyn CopySource,
    progress: &mut CopyProgress<'_>,
) -> Result<Beside, LogDiskError> {
    make_copy(disk, directories, source, None, progress)
}

/// Makes a copy. With `blobs` those that are here are believed only if they are the same there.
pub(super) fn make_copy(
    disk: &Arc<dyn Disk>,
    directories: &Directories,
    source: &dyn CopySource,
    blobs: Option<&dyn DigestSource>,
    progress: &mut CopyProgress<'_>,
) -> Result<Beside, LogDiskError> {
    let manifest = source.manifest();
    if !manifest.files.keys().eq(directories.storages.keys()) {
        return Err(LogDiskError::Useless("it has other storages"));
    }
    let copier = Copier {
        disk: &**disk,
        directories,
        source,
        blobs,
        progress,
        synced: Synced::default(),
        done: 0,
        total: manifest.len(),
    };
    if let Err(error) = copier.run() {
        if error.is_full() && blobs.is_some() {
            // The node goes on, and has need of the room; who is a copy short would begin anew.
            if let Err(error) = discard_copy(&**disk, directories) {
                log::warn!("{error}");
            }
        }
        return Err(LogDiskError::Uncopied(Box::new(error)));
    }
    let manifest = manifest.clone();
    Ok(Beside { manifest })
}

/// Removes what there is of a copy that is not wanted any more. Not while one is being made.
///
/// # Errors
///
/// The disk has failed.
pub fn discard_copy(disk: &dyn Disk, directories: &Directories) -> Result<(), LogDiskError> {
    // Last, so that nothing is left without a word.
    let paths = directories.storages.values();
    let copies = paths.map(|paths| with_suffix(&paths.data, COPY));
    let indexes = copies.clone().map(|path| index_of(&path));
    let partial = directories.journal.join(Partial::NAME);
    for path in copies.chain(indexes).chain([partial]) {
        disk.remove(&path)
            .map_err(LogDiskError::io("remove", &path))?;
    }
    Ok(())
}

/// The file of the index of a copy.
fn index_of(copy: &Path) -> PathBuf {
    with_suffix(copy, INDEX)
}

/// A file that comes, with its digest behind it.
struct Incoming<'a> {
    file: Arc<dyn File>,
    path: &'a Path,
    len: u64,
    /// So much of it is here, and in `context`. `pos <= len`
    pos: u64,
    context: Context,
    /// What came of its digest.
    digest: Vec<u8>,
    piece: Vec<u8>,
}

impl<'a> Incoming<'a> {
    fn new(file: Arc<dyn File>, path: &'a Path, len: u64) -> Self {
        Self {
            file,
            path,
            len,
            pos: 0,
            context: Context::new(&SHA256),
            digest: Vec::new(),
            piece: Vec::new(),
        }
    }

    /// So much of it is there already.
    fn take_known(&mut self, done: u64) -> Result<(), LogDiskError> {
        while self.pos < done {
            self.resize(done - self.pos);
            let read = self.file.read_at(&mut self.piece, self.pos);
            let read = read.map_err(LogDiskError::io("read", self.path))?;
            if read < self.piece.len() {
                let path = self.path.to_owned();
                return Err(LogDiskError::Short { path });
            }
            self.context.update(&self.piece);
            self.pos += read as u64;
        }
        Ok(())
    }

    fn resize(&mut self, left: u64) {
        let left = usize::try_from(left).unwrap_or(PIECE_LEN);
        self.piece.resize(left.min(PIECE_LEN), 0);
    }

    /// The next piece. How much of the file was in it.
    fn step(
        &mut self,
        read: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
    ) -> Result<u64, LogDiskError> {
        let at = self.pos + self.digest.len() as u64;
        self.resize(self.len + Digest::LEN as u64 - at);
        let read = read(at, &mut self.piece);
        let read = read.map_err(LogDiskError::io("read for", self.path))?;
        let Some(piece) = self.piece.get(..read).filter(|it| !it.is_empty()) else {
            let path = self.path.to_owned();
            return Err(LogDiskError::Short { path });
        };
        let left = usize::try_from(self.len - self.pos).unwrap_or(usize::MAX);
        let (content, digest) = piece.split_at(piece.len().min(left));
        self.file
            .write_at(&mut [IoSlice::new(content)], self.pos)
            .map_err(LogDiskError::io("write", self.path))?;
        self.context.update(content);
        self.digest.extend_from_slice(digest);
        self.pos += content.len() as u64;
        Ok(content.len() as u64)
    }

    const fn is_complete(&self) -> bool {
        self.digest.len() == Digest::LEN
    }

    /// Whether it is what its digest says.
    fn is_right(&self) -> bool {
        self.context.clone().finish().as_ref() == self.digest
    }
}

struct Copier<'a, 'b> {
    disk: &'a dyn Disk,
    directories: &'a Directories,
    source: &'a dyn CopySource,
    /// Tells what is in its blobs, if those that are here are not believed.
    blobs: Option<&'a dyn DigestSource>,
    progress: &'a mut CopyProgress<'b>,
    synced: Synced,
    done: u64,
    total: u64,
}

/// Directories of blobs whose names are durable: of each only what is new is synced.
#[derive(Default)]
struct Synced {
    /// Those above the directories of objects.
    above: BTreeSet<PathBuf>,
    /// That of the last object: they come in order.
    last: PathBuf,
}

impl Copier<'_, '_> {
    fn run(mut self) -> Result<(), LogDiskError> {
        let manifest = self.source.manifest();
        create_directory(self.disk, &self.directories.journal)?;
        let mut partial = self.begin()?;
        for (number, (name, copied)) in (0..).zip(&manifest.files) {
            let Some(paths) = self.directories.storages.get(name) else {
                return Err(LogDiskError::Unknown(name.clone()));
            };
            match (copied.has_blobs, &paths.blobs) {
                (true, Some(to)) => self.copy_blobs(number, to)?,
                (true, None) => return Err(LogDiskError::Useless("blobs are not kept here")),
                (false, _) => {}
            }
            self.copy_data(number, name, &paths.data, copied, &mut partial)?;
        }
        let checked = self.check_all();
        if checked.is_err() {
            // It is damaged where it comes from, perhaps not for ever.
            discard_copy(self.disk, self.directories)?;
        }
        checked
    }

    fn check_all(&self) -> Result<(), LogDiskError> {
        let manifest = self.source.manifest();
        for (name, paths) in &self.directories.storages {
            let expected = manifest.settled.tids.get(name).copied().unwrap_or_default();
            let copy = with_suffix(&paths.data, COPY);
            self.check(&copy, manifest.files.get(name), expected)?;
        }
        Ok(())
    }

    /// What is there already.
    fn begin(&self) -> Result<Partial, LogDiskError> {
        let manifest = self.source.manifest();
        let directory = &self.directories.journal;
        // One that cannot be read is none.
        let partial = Partial::load(self.disk, directory, None).unwrap_or_default();
        let mut partial = match partial {
            Some((partial, _)) => partial.go_on(manifest),
            None => Partial::begin(manifest),
        };
        for (name, file) in &mut partial.files {
            let Some(paths) = self.directories.storages.get(name) else {
                continue;
            };
            let copy = with_suffix(&paths.data, COPY);
            let known = self.disk.open(&copy, OpenMode::Read);
            if known.and_then(|it| it.len()).unwrap_or(0) < file.done {
                file.done = 0;
            }
            if file.done == 0 {
                let removed = self.disk.remove(&copy);
                removed.map_err(LogDiskError::io("remove", &copy))?;
            }
        }
        self.note(&partial)?;
        Ok(partial)
    }

    fn note(&self, partial: &Partial) -> Result<(), LogDiskError> {
        Ok(partial.save(self.disk, &self.directories.journal, partial.of)?)
    }

    fn copy_data(
        &mut self,
        number: u32,
        name: &StorageName,
        data: &Path,
        copied: &CopiedFile,
        partial: &mut Partial,
    ) -> Result<(), LogDiskError> {
        if let Some(directory) = data.parent().filter(|it| *it != Path::new("")) {
            create_directory(self.disk, directory)?;
        }
        let Some(state) = partial.files.get(name) else {
            return Err(LogDiskError::Unknown(name.clone()));
        };
        let copy = with_suffix(data, COPY);
        let io = |action| LogDiskError::io(action, &copy);
        let done = state.done;
        let mode = match done {
            0 => OpenMode::CreateNew,
            _ => OpenMode::Write,
        };
        let file = self.disk.open(&copy, mode).map_err(io("open"))?;
        file.set_len(done).map_err(io("cut"))?;
        let free = self.disk.free_len(&copy);
        if free.is_some_and(|free| free < copied.len.saturating_sub(done)) {
            return Err(io("make room for")(io::ErrorKind::StorageFull.into()));
        }
        let mut incoming = Incoming::new(file, &copy, copied.len);
        incoming.take_known(done)?;
        self.tell(done)?;
        let source = self.source;
        let read = |pos, buf: &mut [u8]| source.read(number, pos, buf);
        loop {
            let more = incoming.step(read)?;
            self.tell(more)?;
            let state = partial
                .files
                .get_mut(name)
                .filter(|it| it.done < incoming.pos);
            let is_at_end = incoming.pos == copied.len;
            if let Some(state) = state
                && (is_at_end || incoming.pos - state.done >= COPY_SYNC_LEN)
            {
                incoming.file.sync().map_err(io("sync"))?;
                if state.done == 0 {
                    self.disk
                        .sync_directory_of(&copy)
                        .map_err(io("sync the directory of"))?;
                }
                state.done = incoming.pos;
                self.note(partial)?;
            }
            if incoming.is_complete() {
                break;
            }
        }
        if !incoming.is_right() {
            // Nobody knows what of it is wrong.
            discard_copy(self.disk, self.directories)?;
            return Err(LogDiskError::Garbled { path: copy });
        }
        Ok(())
    }

    fn tell(&mut self, more: u64) -> Result<(), LogDiskError> {
        self.done += more;
        match (self.progress)(self.done, self.total) {
            true => Ok(()),
            false => Err(LogDiskError::Cancelled),
        }
    }

    /// Copies the blobs that are not there yet. A blob never changes.
    fn copy_blobs(&mut self, number: u32, to: &Path) -> Result<(), LogDiskError> {
        let to = open_blobs(self.disk, to)?;
        let mut after = None;
        loop {
            let listed = self.source.blobs(number, after, COPY_BLOBS_LISTED);
            let listed = listed.map_err(LogDiskError::io("list the blobs for", to.base()))?;
            let Some(last) = listed.last().map(|it| (it.oid, it.tid)) else {
                return Ok(());
            };
            let lens = listed.iter().map(|it| it.len);
            self.total = lens.fold(self.total, u64::saturating_add);
            for blob in &listed {
                let at = (blob.oid, blob.tid);
                // Whatever the source says, this comes to an end.
                if after.is_some_and(|after| at <= after) {
                    return Err(LogDiskError::Useless("its blobs are in no order"));
                }
                after = Some(at);
                self.copy_blob(number, blob, &to)?;
            }
            after = Some(last);
        }
    }

    fn copy_blob(
        &mut self,
        number: u32,
        blob: &BlobAt,
        to: &BlobDirectory,
    ) -> Result<(), LogDiskError> {
        let BlobAt { oid, tid, len } = *blob;
        let disk = self.disk;
        let place = to.file(oid, tid);
        let there = disk.open(&place, OpenMode::ReadRegular);
        if let Ok(there) = there
            && there.len().is_ok_and(|there| there == len)
            && self.is_same(number, blob, &*there, &place)?
        {
            return self.synced.sync_names(disk, to, &place, &[]);
        }
        let new = to.temporary().join("standby-copy.tmp");
        disk.discard(&new)
            .map_err(LogDiskError::io("remove", &new))?;
        let copied = self.copy_blob_by(&new, number, blob, to);
        if copied.is_err() {
            // It begins anew in any case.
            _ = disk.discard(&new);
        }
        copied
    }

    /// Copies a blob to a file of its own, which gets its place when it is complete.
    fn copy_blob_by(
        &mut self,
        new: &Path,
        number: u32,
        &BlobAt { oid, tid, len }: &BlobAt,
        to: &BlobDirectory,
    ) -> Result<(), LogDiskError> {
        let (disk, source) = (self.disk, self.source);
        let place = to.file(oid, tid);
        let io = |action| LogDiskError::io(action, new);
        let file = disk.open(new, OpenMode::CreateNew);
        let mut incoming = Incoming::new(file.map_err(io("create"))?, new, len);
        let read = |pos, buf: &mut [u8]| source.read_blob(number, (oid, tid), pos, buf);
        while !incoming.is_complete() {
            match incoming.step(read) {
                Ok(more) => self.tell(more)?,
                // It was packed away.
                Err(LogDiskError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    return disk.discard(new).map_err(io("remove"));
                }
                Err(error) => return Err(error),
            }
        }
        if !incoming.is_right() {
            return Err(LogDiskError::Garbled { path: place });
        }
        incoming.file.sync().map_err(io("sync"))?;
        disk.set_read_only(new, to.base()).map_err(io("protect"))?;
        let directory = to.directory_of(oid);
        let created = disk
            .create_directories(&directory)
            .map_err(LogDiskError::io("create", &directory))?;
        disk.rename(new, &place)
            .map_err(LogDiskError::io("rename", &place))?;
        self.synced.sync_names(disk, to, &place, &created)
    }

    /// Whether a blob that is here has what it has there.
    fn is_same(
        &mut self,
        number: u32,
        &BlobAt { oid, tid, len }: &BlobAt,
        here: &dyn File,
        place: &Path,
    ) -> Result<bool, LogDiskError> {
        let Some(source) = self.blobs else {
            self.tell(len)?;
            return Ok(true);
        };
        let mut pos = 0;
        while pos < len {
            let ours = match digest_piece(here, pos, DIGEST_LEN) {
                Ok(ours) => ours,
                // This is what a copy is made for.
                Err(error) => {
                    log::warn!("{}: cannot be read ({error}), is copied", place.display());
                    self.total = self.total.saturating_add(pos);
                    return Ok(false);
                }
            };
            let theirs = match source.digest_blob(number, (oid, tid), pos, DIGEST_LEN) {
                // It was packed away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                theirs => theirs.map_err(LogDiskError::io("compare", place))?,
            };
            if ours != theirs || ours.len == 0 {
                log::warn!("{}: is another one there, and is copied", place.display());
                // So much of it comes twice.
                self.total = self.total.saturating_add(pos);
                return Ok(false);
            }
            pos += ours.len;
            self.tell(ours.len)?;
        }
        Ok(true)
    }

    /// Reads the copy of a data file from its beginning to its end, as far as its structure goes,
    /// and keeps its index for when it is opened.
    fn check(
        &self,
        copy: &Path,
        copied: Option<&CopiedFile>,
        last_tid: Tid,
    ) -> Result<(), LogDiskError> {
        let index = index_of(copy);
        // It may be that of an earlier one.
        self.disk
            .remove(&index)
            .map_err(LogDiskError::io("remove", &index))?;
        let opened = recover::open(self.disk, copy, Access::ReadOnly, &mut |_| ())?;
        if Some(opened.tail) != copied.map(|it| it.len) {
            let path = copy.to_owned();
            return Err(LogDiskError::Short { path });
        }
        if opened.last_tid != last_tid {
            return Err(LogDiskError::Behind {
                path: copy.to_owned(),
                found: opened.last_tid,
                expected: last_tid,
            });
        }
        opened
            .index
            .save(opened.tail, self.disk, &index)
            .map_err(LogDiskError::io("write", &index))
    }
}

/// The directory that blobs are copied to. One that is in use is left as it is: there may be files
/// of unfinished transactions.
fn open_blobs(disk: &dyn Disk, path: &Path) -> Result<BlobDirectory, LogDiskError> {
    let found = BlobDirectory::open(disk, path, false)?;
    match disk.identify(&found.temporary()) {
        Ok(_) => Ok(found),
        Err(_) => Ok(BlobDirectory::open(disk, path, true)?),
    }
}

impl Synced {
    /// Makes the name of a blob durable, and those of the directories that it is in. `created` are
    /// directories that were not there just now: they may have been before, and were removed.
    fn sync_names(
        &mut self,
        disk: &dyn Disk,
        to: &BlobDirectory,
        place: &Path,
        created: &[PathBuf],
    ) -> Result<(), LogDiskError> {
        let sync = |path: &Path| {
            disk.sync_directory_of(path)
                .map_err(LogDiskError::io("sync the directory of", path))
        };
        sync(place)?;
        let Some(directory) = place.parent().filter(|it| *it != to.base()) else {
            return Ok(());
        };
        if self.last != directory || created.iter().any(|it| it == directory) {
            sync(directory)?;
            directory.clone_into(&mut self.last);
        }
        let above = directory.ancestors().skip(1);
        for path in above.take_while(|path| *path != to.base()) {
            if !self.above.contains(path) || created.iter().any(|it| it == path) {
                sync(path)?;
                self.above.insert(path.to_owned());
            }
        }
        Ok(())
    }
}

impl LogDisk {
    /// Puts a copy in the place of the data; the journal begins behind it. Where the log is then.
    /// Takes no longer than opening a data file that has an index.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::Useless`]: all is as it was, and the copy is removed. After any other the
    /// node must not go on; opening finds the old state or the new one.
    pub fn adopt(&mut self, beside: Beside) -> Result<LogStart, LogDiskError> {
        self.check()?;
        let Beside { manifest } = beside;
        if let Err(useless) = self.check_use(&manifest) {
            let discarded = discard_copy(&*self.disk, &self.directories);
            self.latch(discarded)?;
            return Err(useless);
        }
        let replaced = self.replace(&manifest);
        self.latch(replaced)
    }

    /// Whether a copy has more than there is here, and all that is committed here.
    fn check_use(&self, manifest: &Manifest) -> Result<(), LogDiskError> {
        let useless = |why| Err(LogDiskError::Useless(why));
        if manifest.history != self.identity().history {
            return useless("it is of another history");
        }
        if !manifest.files.keys().eq(self.directories.storages.keys()) {
            return useless("it has other storages");
        }
        let point = manifest.point();
        let positions = self.journal.positions();
        if point.seq <= self.applied {
            return useless("all of it has been applied");
        }
        if point.seq <= positions.last.seq
            && self
                .journal
                .point_at(point.seq)?
                .is_none_or(|ours| ours == point)
        {
            return useless("the log goes further");
        }
        let committed = positions.committed.max(self.applied);
        if common(&self.journal, &manifest.epochs, point.seq) < committed {
            return useless("it has not what is committed here");
        }
        Ok(())
    }

    fn replace(&mut self, manifest: &Manifest) -> Result<LogStart, LogDiskError> {
        let next = Next {
            identity: *self.identity(),
            promised: self.journal.positions().promised,
            is_retiring: false,
            keeps_log: false,
            epochs: manifest.epochs.clone(),
            settled: manifest.settled.clone(),
        };
        let after = common(&self.journal, &next.epochs, next.settled.point.seq);
        self.keep_blobs_behind(after)?;
        next.save(&*self.disk, &self.directories.journal, next.identity.disk)?;
        // From here on opening does the rest.
        self.appliers.clear();
        switch_data(&*self.disk, &self.directories)?;
        begin_behind(&mut self.journal, &next).map_err(|error| {
            // The data are others already: it cannot be tried again as if nothing had happened.
            match error.is_for_lack_of_room() {
                true => LogDiskError::Failed {
                    first: error.to_string(),
                },
                false => error,
            }
        })?;
        self.appliers = open_data(&self.disk, &self.directories, Access::Applied)?;
        self.settled = settle(&*self.disk, &self.directories, next, self.tids())?;
        self.applied = self.settled.point.seq;
        self.settings = self.settled.settings.clone();
        self.ends = self.tids();
        self.ordered = self.settled.ordered.clone();
        self.staged.clear();
        self.clean_blobs()?;
        self.news.break_off();
        self.has_no_room = false;
        discard_copy(&*self.disk, &self.directories)?;
        self.log_start(Scan::empty())
    }

    /// Makes a node out of a copy: a new one, or one whose disk was lost. What stands in the place
    /// of its data files is replaced.
    ///
    /// # Errors
    ///
    /// [`LogDiskError::Exists`]: there is a journal already. Otherwise the disk has failed; as long
    /// as there is no journal then, it has to be done again.
    pub fn seed(
        disk: Arc<dyn Disk>,
        directories: &Directories,
        options: &Options,
        identity: &Identity,
        beside: Beside,
    ) -> Result<(), LogDiskError> {
        let Beside { manifest } = beside;
        let path = &directories.journal;
        create_directory(&*disk, path)?;
        complete(&disk, directories, options)?;
        if let Some((old, _)) = Identity::load(&*disk, path, None)? {
            let (path, history) = (path.clone(), old.history);
            return Err(LogDiskError::Exists { path, history });
        }
        if manifest.history != identity.history
            || !manifest.files.keys().eq(directories.storages.keys())
        {
            return Err(LogDiskError::Useless(
                "it is of another history, or has other storages",
            ));
        }
        let next = Next {
            identity: *identity,
            promised: manifest.point().epoch,
            is_retiring: false,
            keeps_log: false,
            epochs: manifest.epochs,
            settled: manifest.settled,
        };
        next.save(&*disk, path, identity.disk)?;
        complete(&disk, directories, options)
    }

    /// What a copy that was interrupted has left is removed, if it is of no use any more.
    pub(super) fn discard_old_copy(&self) -> Result<(), LogDiskError> {
        let directory = &self.directories.journal;
        let partial = Partial::load(&*self.disk, directory, None).unwrap_or_default();
        let last = self.journal.positions().last.seq;
        let history = self.identity().history;
        let is_useful = |it: &Partial| it.history == history && it.point.seq > last;
        match partial {
            Some((partial, _)) if is_useful(&partial) => Ok(()),
            _ => discard_copy(&*self.disk, &self.directories),
        }
    }
}
