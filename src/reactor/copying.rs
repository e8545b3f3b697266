//! What is got of other nodes directly, and may take long: blobs, and copies of the database; and
//! the same for others. All of it waits, and is for threads of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::now;
use super::peers::PeerHandle;
use crate::ids::{Oid, Seq, Tid};
use crate::limits::{
    BLOBS_OPEN_MAX, DIGEST_LEN, PEER_BLOBS_MAX, PEER_PIECE_LEN_MAX, SNAPSHOTS_MAX,
    TASK_RATE_DEFAULT,
};
use crate::log_disk::{
    BlobDigest, Blobs, CopySource, DigestSource, Directories, LogDiskError, Manifest, NamedBlob,
    Snapshot, copy_anew, copy_beside,
};
use crate::node::{Copied, Copy, NotFetched};
use crate::peer::{Answer, Refusal, RefusalKind, Request, Throttle};
use crate::storage::digest::RangeDigest;
use crate::storage::disk::{Disk, File, OpenMode};
use crate::storage::transfer::{BlobAt, BlobName};

/// How often a request is made again that was not answered.
const ATTEMPTS: u32 = 10;

/// The same for what is fetched ahead.
const OFFERED_ATTEMPTS: u32 = 2;

/// How long a node is waited for, at first, that has not answered yet while others may have the
/// same.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

/// How long is waited between two of them.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a snapshot is kept for a node that does not ask for anything of it.
const SNAPSHOT_IDLE_MAX: Duration = Duration::from_secs(600);

/// Gets what this node lacks.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    disk: Arc<dyn Disk>,
    directories: Directories,
    /// How far the last copy is: bytes, and in all.
    copied: Arc<(AtomicU64, AtomicU64)>,
}

/// Where the files of blobs are.
#[derive(Default)]
pub(super) struct BlobPlaces {
    /// As soon as there is a journal.
    kept: Mutex<Option<Blobs>>,
    lent: Mutex<Lent>,
}

/// Files of blobs whose transactions are not in the journal yet.
#[derive(Default)]
struct Lent {
    /// Each by the number of who lends them.
    places: BTreeMap<u64, Vec<(BlobName, PathBuf)>>,
    /// Those that were asked for last.
    open: VecDeque<(BlobName, Arc<dyn File>)>,
}

/// The same, for several threads.
pub(super) type SharedBlobs = Arc<BlobPlaces>;

impl Lent {
    fn place(&self, blob: &BlobName) -> Option<(u64, PathBuf)> {
        let all = self.places.iter();
        let mut all = all.flat_map(|(number, blobs)| blobs.iter().map(move |it| (number, it)));
        let (number, (_, path)) = all.find(|(_, (name, _))| name == blob)?;
        Some((*number, path.clone()))
    }
}

impl BlobPlaces {
    /// There is another journal.
    pub(super) fn replace(&self, blobs: Blobs) {
        *lock(&self.kept) = Some(blobs);
    }

    /// Others may have these.
    pub(super) fn lend(&self, number: u64, blobs: Vec<(BlobName, PathBuf)>) {
        lock(&self.lent).places.insert(number, blobs);
    }

    /// Not any more.
    pub(super) fn take_back(&self, number: u64) {
        let mut lent = lock(&self.lent);
        for (name, _) in lent.places.remove(&number).into_iter().flatten() {
            lent.open.retain(|(open, _)| *open != name);
        }
    }

    fn kept(&self) -> Option<Blobs> {
        lock(&self.kept).clone()
    }

    /// The file of a blob that is lent.
    fn lent(&self, disk: &dyn Disk, blob: &BlobName) -> Option<Arc<dyn File>> {
        let (number, path) = {
            let lent = lock(&self.lent);
            if let Some((_, file)) = lent.open.iter().find(|(name, _)| name == blob) {
                return Some(file.clone());
            }
            lent.place(blob)?
        };
        // Gone if it has got its place in the journal just now. A disk may take long for this.
        let file = disk.open(&path, OpenMode::ReadRegular).ok()?;
        let mut lent = lock(&self.lent);
        if !lent.places.contains_key(&number) {
            return Some(file);
        }
        lent.open.truncate(BLOBS_OPEN_MAX - 1);
        lent.open.push_front((*blob, file.clone()));
        Some(file)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of ours panics with it half changed.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings blobs into the journal that are offered ahead of their entries; they stay for this
/// number. Which have come: others are fetched with their entries, and so this does not try for
/// long.
pub(super) fn fetch_offered(
    here: &SharedBlobs,
    from: &PeerHandle,
    number: u64,
    blobs: &[NamedBlob],
) -> BTreeSet<BlobName> {
    let mut came = BTreeSet::new();
    let Some(kept) = here.kept() else {
        return came;
    };
    for blob in blobs {
        kept.expect(blob.name.digest, number);
        let mut sources = Sources::new(std::slice::from_ref(from), OFFERED_ATTEMPTS);
        match fetch_blob(&kept, &mut sources, blob) {
            Ok(()) => _ = came.insert(blob.name),
            Err(why) => {
                log::debug!("{} is not fetched ahead: {why}", blob.name.digest);
                break;
            }
        }
    }
    came
}

/// Brings blobs into the journal, from any of these nodes.
pub(super) fn fetch_blobs(
    here: &SharedBlobs,
    from: &[PeerHandle],
    blobs: &[NamedBlob],
) -> Result<(), NotFetched> {
    let here = here.kept().ok_or_else(|| NotFetched {
        why: "there is no journal".to_owned(),
        gone: None,
    })?;
    let mut from = from.to_vec();
    for blob in blobs {
        // For another entry it may have come meanwhile.
        if here.is_here(&blob.name) {
            continue;
        }
        let mut sources = Sources::new(&from, ATTEMPTS);
        if let Err(why) = fetch_blob(&here, &mut sources, blob) {
            return Err(NotFetched {
                why: format!("blob {} of {}: {why}", blob.name.oid, blob.tid),
                gone: sources.have_all_not().then_some(blob.seq),
            });
        }
        sources.put_first(&mut from);
    }
    Ok(())
}

/// Nodes that may have something. Each piece of it is asked of the first one, and, if there is no
/// answer, of the next: a node that is silent holds nothing up for long where others have the same.
struct Sources {
    nodes: VecDeque<Source>,
    /// How many there were, and how many have said not to have it.
    count: usize,
    have_not: usize,
    /// How often each is asked for a piece.
    attempts_max: usize,
    /// How long one is waited for that has not answered yet, while there are others.
    patience: Duration,
    /// Why there was no answer last.
    why: String,
}

struct Source {
    node: PeerHandle,
    has_answered: bool,
}

impl Sources {
    fn new(from: &[PeerHandle], attempts_max: u32) -> Self {
        let nodes = from.iter().map(|node| Source {
            node: node.clone(),
            has_answered: false,
        });
        Self {
            nodes: nodes.collect(),
            count: from.len(),
            have_not: 0,
            attempts_max: attempts_max as usize,
            patience: FIRST_TIMEOUT,
            why: "nobody has it".to_owned(),
        }
    }

    fn have_all_not(&self) -> bool {
        self.count > 0 && self.have_not == self.count
    }

    /// Who has answered last is the first that is asked for what comes next: who does not answer is
    /// not waited for each time.
    fn put_first(&self, from: &mut [PeerHandle]) {
        let best = self.nodes.front().map(|it| it.node.to());
        from.sort_by_key(|it| Some(it.to()) != best);
    }

    /// The first of them is not asked any more.
    fn drop_first(&mut self, why: &str) {
        if let Some(source) = self.nodes.pop_front() {
            self.why = format!("{}: {why}", source.node.to());
        }
    }

    /// A piece that is not empty; or why there is none.
    fn piece(&mut self, request: &Request) -> Result<Bytes, String> {
        let mut attempts = 0;
        while let Some(source) = self.nodes.front() {
            let answer = match source.has_answered || self.nodes.len() == 1 {
                true => source.node.call(request.clone()),
                false => source.node.call_within(request.clone(), self.patience),
            };
            let why = match answer {
                Ok(Answer::Piece(piece)) if !piece.is_empty() => {
                    self.nodes[0].has_answered = true;
                    return Ok(piece);
                }
                Ok(Answer::Refused(refusal)) if refusal.kind != RefusalKind::Busy => {
                    self.have_not += usize::from(refusal.kind == RefusalKind::NotThere);
                    self.drop_first(&refusal.to_string());
                    continue;
                }
                Ok(Answer::Piece(_)) => {
                    self.drop_first("it ends early");
                    continue;
                }
                Ok(Answer::Refused(refusal)) => format!("{}: {refusal}", source.node.to()),
                Ok(_) => {
                    self.drop_first("it answers something else");
                    continue;
                }
                Err(why) => why,
            };
            self.why = why;
            attempts += 1;
            if attempts >= self.attempts_max * self.nodes.len() {
                break;
            }
            // A node that is restarted is back in a moment, and one that reads much answers late.
            if attempts.is_multiple_of(self.nodes.len()) {
                thread::sleep(ATTEMPT_INTERVAL);
                self.patience *= 2;
            }
            self.nodes.rotate_left(1);
        }
        Err(self.why.clone())
    }
}

impl Fetcher {
    pub(super) fn new(disk: Arc<dyn Disk>, directories: Directories) -> Self {
        Self {
            disk,
            directories,
            copied: Arc::default(),
        }
    }

    /// Bytes of the last copy that are there, and in all as far as is known.
    pub(super) fn copied(&self) -> (u64, u64) {
        let (done, total) = &*self.copied;
        (done.load(Ordering::Relaxed), total.load(Ordering::Relaxed))
    }

    /// Makes a copy of the database of another node, beside ours.
    pub(super) fn copy(&self, from: PeerHandle, copy: &Copy) -> Result<Copied, String> {
        self.copied.0.store(0, Ordering::Relaxed);
        self.copied.1.store(0, Ordering::Relaxed);
        let remote = Remote::begin(from, copy)?;
        if copy.settings_only {
            let manifest = &remote.manifest;
            let settings = Box::new(manifest.settings().clone());
            return Ok(Copied::Settings(manifest.history(), settings));
        }
        let mut told = now().mono;
        let from = remote.from.to().to_owned();
        // What both read to compare leaves the other node unthrottled.
        let rate = copy.is_anew.then_some(TASK_RATE_DEFAULT);
        let mut throttle = Throttle::new(rate, told);
        let mut last = 0;
        let mut progress = |done: u64, total: u64| {
            self.copied.0.store(done, Ordering::Relaxed);
            self.copied.1.store(total, Ordering::Relaxed);
            // What is known of an earlier copy comes as one piece, and has cost the other nothing.
            let len = (done - last).min(DIGEST_LEN);
            throttle.take(usize::try_from(len).unwrap_or(usize::MAX));
            last = done;
            let mut at = now().mono;
            while !throttle.is_open(at) {
                let opens = throttle.opens_at().unwrap_or(at);
                thread::sleep(opens.saturating_duration_since(at));
                at = now().mono;
            }
            if at >= told + Duration::from_secs(10) {
                told = at;
                log::info!("{} of {} MB copied from {from}", done >> 20, total >> 20);
            }
            true
        };
        let (disk, directories) = (&self.disk, &self.directories);
        let made = match copy.is_anew {
            true => copy_anew(disk, directories, &remote, &mut progress),
            false => copy_beside(disk, directories, &remote, &mut progress),
        };
        let beside = made.map_err(|error| error.to_string())?;
        Ok(Copied::Beside(Box::new(beside)))
    }
}

/// Brings one from whoever has it.
fn fetch_blob(here: &Blobs, sources: &mut Sources, blob: &NamedBlob) -> Result<(), String> {
    loop {
        let mut incoming = here.begin(blob.name).map_err(|it| it.to_string())?;
        let mut pos = 0;
        while pos < blob.name.len {
            let piece = sources.piece(&Request::Blob {
                storage: blob.storage.clone(),
                tid: blob.tid,
                name: blob.name,
                pos,
                len: piece_len(blob.name.len - pos),
            })?;
            pos += piece.len() as u64;
            incoming.write(&[piece]).map_err(|it| it.to_string())?;
        }
        match here.end(incoming) {
            Ok(()) => return Ok(()),
            // All of it anew, of the others.
            Err(error @ LogDiskError::WrongBlob { .. }) => {
                sources.drop_first(&error.to_string());
                if sources.nodes.is_empty() {
                    return Err(sources.why.clone());
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn piece_len(left: u64) -> u32 {
    let len = left.min(PEER_PIECE_LEN_MAX as u64);
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Asks again and again: a node that is restarted is back in a moment.
fn ask(from: &PeerHandle, request: &Request) -> Result<Answer, String> {
    let mut attempts = 1;
    loop {
        let why = match from.call(request.clone()) {
            Ok(Answer::Refused(refusal)) if refusal.kind == RefusalKind::Busy => {
                format!("{}: {refusal}", from.to())
            }
            Ok(answer) => return Ok(answer),
            Err(why) => why,
        };
        if attempts >= ATTEMPTS {
            return Err(why);
        }
        attempts += 1;
        thread::sleep(ATTEMPT_INTERVAL);
    }
}

/// The database of another node.
pub(super) struct Remote {
    from: PeerHandle,
    snapshot: u64,
    manifest: Manifest,
}

impl Remote {
    fn begin(from: PeerHandle, copy: &Copy) -> Result<Self, String> {
        Self::ask_for(from, copy.newest_only, copy.at_least)
    }

    /// One that is only looked at.
    pub(super) fn begin_apart(from: PeerHandle, at_least: Seq) -> Result<Self, String> {
        Self::ask_for(from, false, at_least)
    }

    fn ask_for(from: PeerHandle, newest_only: bool, at_least: Seq) -> Result<Self, String> {
        let request = Request::Snapshot {
            newest_only,
            at_least,
        };
        let answer = match ask(&from, &request)? {
            Answer::Snapshot(answer) => answer,
            Answer::Refused(refusal) => return Err(format!("{}: {refusal}", from.to())),
            _ => return Err(format!("{}: it answers something else", from.to())),
        };
        let (number, manifest) = answer
            .split_first_chunk::<8>()
            .ok_or_else(|| format!("{}: its manifest is too short", from.to()))?;
        let manifest = Manifest::decode(manifest)
            .ok_or_else(|| format!("{}: its manifest is not understood", from.to()))?;
        Ok(Self {
            snapshot: u64::from_be_bytes(*number),
            manifest,
            from,
        })
    }

    fn piece(&self, request: &Request, buf: &mut [u8]) -> io::Result<usize> {
        let piece = match ask(&self.from, request).map_err(io::Error::other)? {
            Answer::Piece(piece) if piece.len() <= buf.len() => piece,
            other => return Err(unexpected(&other)),
        };
        buf[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

fn unexpected(answer: &Answer) -> io::Error {
    match answer {
        Answer::Refused(refusal) if refusal.kind == RefusalKind::NotThere => {
            io::Error::new(io::ErrorKind::NotFound, refusal.text.clone())
        }
        Answer::Refused(refusal) => io::Error::other(refusal.text.clone()),
        _ => io::Error::other("another answer than to what was asked"),
    }
}

impl CopySource for Remote {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn read(&self, file: u32, pos: u64, buf: &mut [u8]) -> io::Result<usize> {
        let request = Request::Read {
            snapshot: self.snapshot,
            file,
            pos,
            len: piece_len(buf.len() as u64),
        };
        self.piece(&request, buf)
    }

    fn blobs(
        &self,
        storage: u32,
        after: Option<(Oid, Tid)>,
        count: usize,
    ) -> io::Result<Vec<BlobAt>> {
        let request = Request::ListBlobs {
            snapshot: self.snapshot,
            storage,
            after,
            count: u32::try_from(count).map_or(PEER_BLOBS_MAX, |count| count.min(PEER_BLOBS_MAX)),
        };
        match ask(&self.from, &request).map_err(io::Error::other)? {
            Answer::Blobs(blobs) => Ok(blobs),
            other => Err(unexpected(&other)),
        }
    }

    fn read_blob(
        &self,
        storage: u32,
        (oid, tid): (Oid, Tid),
        pos: u64,
        buf: &mut [u8],
    ) -> io::Result<usize> {
        let request = Request::ReadBlob {
            snapshot: self.snapshot,
            storage,
            oid,
            tid,
            pos,
            len: piece_len(buf.len() as u64),
        };
        self.piece(&request, buf)
    }
}

impl DigestSource for Remote {
    fn digest(
        &self,
        storage: u32,
        (from, to): (Tid, Tid),
        len_max: u64,
    ) -> io::Result<RangeDigest> {
        let request = Request::Digest {
            snapshot: self.snapshot,
            storage,
            from,
            to,
            len: len_max,
        };
        match ask(&self.from, &request).map_err(io::Error::other)? {
            Answer::Digest(digest) => Ok(digest),
            other => Err(unexpected(&other)),
        }
    }

    fn digest_blob(
        &self,
        storage: u32,
        (oid, tid): (Oid, Tid),
        pos: u64,
        len: u64,
    ) -> io::Result<BlobDigest> {
        let request = Request::DigestBlob {
            snapshot: self.snapshot,
            storage,
            oid,
            tid,
            pos,
            len,
        };
        match ask(&self.from, &request).map_err(io::Error::other)? {
            Answer::BlobDigest(len, digest) => Ok(BlobDigest { len, digest }),
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let snapshot = self.snapshot;
        // It would be forgotten in time.
        let _ = self.from.call(Request::EndSnapshot { snapshot });
    }
}

/// Gives to others what they lack.
pub(super) struct Supplier {
    disk: Arc<dyn Disk>,
    blobs: SharedBlobs,
    /// With the time when something was asked of it.
    snapshots: BTreeMap<u64, (Snapshot, Instant)>,
    /// The number of the last one: it differs from those of before the start.
    number: u64,
}

impl Supplier {
    pub(super) fn new(disk: Arc<dyn Disk>, blobs: SharedBlobs) -> Self {
        let nanos = u64::try_from(now().wall.as_nanos()).unwrap_or_default();
        Self {
            disk,
            blobs,
            snapshots: BTreeMap::new(),
            number: nanos,
        }
    }

    /// The answer to a request; `snapshot` makes one.
    pub(super) fn answer(
        &mut self,
        request: Request,
        snapshot: &dyn Fn() -> Result<Snapshot, String>,
    ) -> Answer {
        let at = now().mono;
        self.snapshots
            .retain(|_, (_, used)| at < *used + SNAPSHOT_IDLE_MAX);
        let answered = match request {
            Request::Snapshot {
                newest_only,
                at_least,
            } => {
                let (kind, text) = (RefusalKind::Busy, "there are too many copies being made");
                if self.snapshots.len() >= SNAPSHOTS_MAX {
                    return Answer::Refused(Refusal::new(kind, text));
                }
                self.begin(newest_only, at_least, snapshot)
            }
            Request::Read {
                snapshot,
                file,
                pos,
                len,
            } => self.piece(snapshot, len, |it, buf| it.read(file, pos, buf)),
            Request::ReadBlob {
                snapshot,
                storage,
                oid,
                tid,
                pos,
                len,
            } => self.piece(snapshot, len, |it, buf| {
                it.read_blob(storage, (oid, tid), pos, buf)
            }),
            Request::ListBlobs {
                snapshot,
                storage,
                after,
                count,
            } => self.pinned(snapshot).and_then(|it| {
                let count = count.min(PEER_BLOBS_MAX) as usize;
                Ok(Answer::Blobs(it.blobs(storage, after, count)?))
            }),
            Request::Digest {
                snapshot,
                storage,
                from,
                to,
                len,
            } => self.pinned(snapshot).and_then(|it| {
                let digest = it.digest(storage, (from, to), len.min(DIGEST_LEN))?;
                Ok(Answer::Digest(digest))
            }),
            Request::DigestBlob {
                snapshot,
                storage,
                oid,
                tid,
                pos,
                len,
            } => self.pinned(snapshot).and_then(|it| {
                let found = it.digest_blob(storage, (oid, tid), pos, len.min(DIGEST_LEN))?;
                Ok(Answer::BlobDigest(found.len, found.digest))
            }),
            Request::EndSnapshot { snapshot } => {
                self.snapshots.remove(&snapshot);
                Ok(Answer::Done)
            }
            Request::Blob {
                storage,
                tid,
                name,
                pos,
                len,
            } => match self.blob(&storage, tid, &name) {
                Ok(Some(file)) => read_piece(len, |buf| file.read_at(buf, pos)),
                Ok(None) => Err(io::ErrorKind::NotFound.into()),
                Err(error) => Err(io::Error::other(error)),
            },
            Request::Fetch(_) | Request::Ping | Request::Beat(_) => Ok(Answer::Done),
        };
        answered.unwrap_or_else(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => RefusalKind::NotThere,
                _ => RefusalKind::Failed,
            };
            Answer::Refused(Refusal::new(kind, error.to_string()))
        })
    }

    /// A file that has what a blob's name says: one that is lent, or one of the journal's.
    fn blob(
        &self,
        storage: &str,
        tid: Tid,
        name: &BlobName,
    ) -> Result<Option<Arc<dyn File>>, LogDiskError> {
        let lent = self.blobs.lent(&*self.disk, name);
        match (lent, self.blobs.kept()) {
            (None, Some(kept)) => kept.open(storage, tid, name),
            (lent, _) => Ok(lent),
        }
    }

    fn begin(
        &mut self,
        newest_only: bool,
        at_least: Seq,
        snapshot: &dyn Fn() -> Result<Snapshot, String>,
    ) -> io::Result<Answer> {
        let mut made = snapshot().map_err(io::Error::other)?;
        if made.point().seq < at_least {
            return Err(io::Error::other("it is behind of what is wanted"));
        }
        if newest_only {
            made = made.newest_only().map_err(io::Error::other)?;
        }
        self.number += 1;
        let mut answer = self.number.to_be_bytes().to_vec();
        answer.extend(made.manifest().encode());
        self.snapshots.insert(self.number, (made, now().mono));
        Ok(Answer::Snapshot(answer.into()))
    }

    fn pinned(&mut self, snapshot: u64) -> io::Result<&Snapshot> {
        let found = self.snapshots.get_mut(&snapshot);
        let (snapshot, used) = found.ok_or(io::ErrorKind::NotFound)?;
        *used = now().mono;
        Ok(snapshot)
    }

    fn piece(
        &mut self,
        snapshot: u64,
        len: u32,
        read: impl Fn(&Snapshot, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Answer> {
        let snapshot = self.pinned(snapshot)?;
        read_piece(len, |buf| read(snapshot, buf))
    }
}

fn read_piece(len: u32, read: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Answer> {
    let mut buf = vec![0; (len as usize).min(PEER_PIECE_LEN_MAX)];
    let got = read(&mut buf)?;
    buf.truncate(got);
    Ok(Answer::Piece(buf.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"contents";

    fn request(pos: u64) -> Request {
        Request::Read {
            snapshot: 1,
            file: 1,
            pos,
            len: 4,
        }
    }

    fn piece(request: &Request) -> Answer {
        let Request::Read { pos, .. } = request else {
            panic!("{request:?}");
        };
        let rest = &CONTENT[usize::try_from(*pos).unwrap()..];
        Answer::Piece(Bytes::copy_from_slice(&rest[..rest.len().min(4)]))
    }

    fn refusal(kind: RefusalKind) -> Answer {
        Answer::Refused(Refusal::new(kind, "no"))
    }

    fn sources(from: &[PeerHandle]) -> Sources {
        let mut sources = Sources::new(from, ATTEMPTS);
        sources.patience = Duration::from_millis(50);
        sources
    }

    #[test]
    fn who_is_silent_is_not_waited_for_where_others_have_the_same() {
        let silent = PeerHandle::answering("silent", |_| None);
        let has_it = PeerHandle::answering("other", |request| Some(piece(request)));
        let mut from = [silent, has_it];
        let mut sources = sources(&from);
        assert_eq!(sources.piece(&request(0)).unwrap(), &CONTENT[..4]);
        // From now on the other one is the first.
        assert_eq!(sources.nodes[0].node.to(), "other");
        assert_eq!(sources.piece(&request(4)).unwrap(), &CONTENT[4..]);
        assert!(!sources.have_all_not());
        sources.put_first(&mut from);
        assert_eq!((from[0].to(), from[1].to()), ("other", "silent"));
    }

    #[test]
    fn who_has_not_what_is_wanted_is_asked_once() {
        let no = |to, kind| PeerHandle::answering(to, move |_| Some(refusal(kind)));
        let has_it = PeerHandle::answering("other", |request| Some(piece(request)));
        let mut one_has = sources(&[no("one", RefusalKind::NotThere), has_it]);
        assert_eq!(one_has.piece(&request(0)).unwrap(), &CONTENT[..4]);
        assert_eq!(one_has.nodes.len(), 1);
        // That nobody has it is for certain if all have said so.
        for (kind, have_all_not) in [(RefusalKind::NotThere, true), (RefusalKind::Failed, false)] {
            let mut nobody = sources(&[no("one", RefusalKind::NotThere), no("two", kind)]);
            let why = nobody.piece(&request(0)).unwrap_err();
            assert!(why.starts_with("two: no"), "{why}");
            assert_eq!(nobody.have_all_not(), have_all_not);
        }
        let mut none = sources(&[]);
        assert_eq!(none.piece(&request(0)).unwrap_err(), "nobody has it");
        assert!(!none.have_all_not());
        // Who ends early is not asked for ever.
        let empty = PeerHandle::answering("one", |_| Some(Answer::Piece(Bytes::new())));
        let why = sources(&[empty]).piece(&request(0)).unwrap_err();
        assert_eq!(why, "one: it ends early");
    }
}
