//! What unit tests of several files here need.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::{Disk, File, OpenMode, OsDisk};
use super::format::{DataHeader, MAGIC, Status, TXN_HEADER_LEN, TxnHeader};
use super::memory::MemoryDisk;
use super::{
    Answer, Done, Event, FileStorage, Job, LockScope, Lookup, Metadata, Options, PackOptions,
    TxnId, Unanswered, Vote,
};
use crate::ids::{Oid, Tid};

/// A directory that is removed with its contents when the test ends.
pub(super) struct TestDir(PathBuf);

impl TestDir {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("standby-storage-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of the files in it, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a data record holds.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Data(&'a [u8]),
    Back(u64),
}

/// An object that refers to others.
pub(super) fn object(oids: &[u64]) -> Vec<u8> {
    let mut pickles = b"\x80\x03cmodule\nClass\n.\x80\x03(".to_vec();
    for oid in oids {
        pickles.extend_from_slice(b"C\x08");
        pickles.extend_from_slice(&oid.to_be_bytes());
        pickles.push(b'Q');
    }
    pickles.extend_from_slice(b"t.");
    pickles
}

/// The bytes of a data file in the making.
pub(super) struct DataFile {
    pub(super) bytes: Vec<u8>,
    /// Position of each object's current record.
    pub(super) current: BTreeMap<u64, u64>,
}

impl DataFile {
    pub(super) fn new() -> Self {
        Self {
            bytes: MAGIC.to_vec(),
            current: BTreeMap::new(),
        }
    }

    pub(super) fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Appends a transaction by `user`; the positions of its records.
    pub(super) fn txn(
        &mut self,
        tid: u64,
        status: Status,
        user: &str,
        records: &[(u64, Content<'_>)],
    ) -> Vec<u64> {
        let tloc = self.end();
        let mut header = TxnHeader {
            tid: Tid(tid),
            len: 0,
            status,
            user_len: user.len().try_into().unwrap(),
            descr_len: 0,
            ext_len: 0,
        };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(user.as_bytes());
        let mut positions = Vec::new();
        for (oid, content) in records {
            positions.push(self.end());
            let back;
            let (data_len, content) = match content {
                Content::Data(data) => (data.len() as u64, *data),
                Content::Back(pos) => {
                    back = pos.to_be_bytes();
                    (0, &back[..])
                }
            };
            let header = DataHeader {
                oid: Oid(*oid),
                tid: Tid(tid),
                prev: self.current.get(oid).copied().unwrap_or(0),
                tloc,
                data_len,
            };
            self.bytes.extend_from_slice(&header.encode());
            self.bytes.extend_from_slice(content);
        }
        header.len = self.end() - tloc;
        let start = usize::try_from(tloc).unwrap();
        self.bytes[start..start + TXN_HEADER_LEN].copy_from_slice(&header.encode());
        self.bytes.extend_from_slice(&header.len.to_be_bytes());
        let oids = records.iter().map(|(oid, _)| *oid);
        self.current.extend(oids.zip(positions.iter().copied()));
        positions
    }

    /// Writes it all to `path` and opens that.
    pub(super) fn save(&self, path: &Path) -> Arc<dyn File> {
        let disk = OsDisk::default();
        disk.replace(path, &[&self.bytes]).unwrap();
        disk.open(path, OpenMode::Read).unwrap()
    }
}

/// A storage whose jobs are run when the test says so.
pub(super) struct Rig {
    pub(super) storage: FileStorage,
    pub(super) jobs: Vec<Job>,
    pub(super) events: Vec<Event>,
    pub(super) now: Instant,
    pub(super) wall: Duration,
}

impl Rig {
    pub(super) fn new(options: Options) -> Self {
        Self::on(MemoryDisk::new(), options)
    }

    /// With a data file that is there already.
    pub(super) fn with_file(file: &DataFile) -> Self {
        let disk = MemoryDisk::new();
        disk.replace(Path::new("Data.fs"), &[&file.bytes]).unwrap();
        Self::on(disk, options())
    }

    fn on(disk: MemoryDisk, options: Options) -> Self {
        Self::at(Arc::new(disk), Path::new("Data.fs"), options)
    }

    pub(super) fn at(disk: Arc<dyn Disk>, path: &Path, options: Options) -> Self {
        Self::around(FileStorage::open(disk, path, options, &mut |_| ()).unwrap())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    pub(super) fn around(storage: FileStorage) -> Self {
        let wall = Duration::from_secs(1_800_000_000);
        Self {
            storage,
            jobs: Vec::new(),
            events: Vec::new(),
            now: Instant::now(),
            wall,
        }
    }

    pub(super) fn collect(&mut self) {
        while let Some(event) = self.storage.poll_event() {
            match event {
                Event::Run(job) => self.jobs.push(job),
                event => self.events.push(event),
            }
        }
    }

    /// Ends the turn and runs all jobs, and those that come of them.
    pub(super) fn settle(&mut self) -> Vec<Event> {
        self.storage.flush();
        self.collect();
        while !self.jobs.is_empty() {
            for job in std::mem::take(&mut self.jobs) {
                self.storage.on_done(job.run(), self.now);
            }
            self.storage.flush();
            self.collect();
        }
        std::mem::take(&mut self.events)
    }

    pub(super) fn begin(&mut self, stores: &[(u64, u64, &'static str)]) -> TxnId {
        let id = self.storage.begin(metadata());
        for (oid, serial, data) in stores {
            let data = Bytes::from_static(data.as_bytes());
            assert!(self.storage.store(id, Oid(*oid), Some(Tid(*serial)), data));
        }
        id
    }

    pub(super) fn vote(&mut self, id: TxnId) -> Vec<Event> {
        assert!(self.storage.vote(id, self.now));
        self.settle()
    }

    /// Votes, and has no job run.
    pub(super) fn vote_and_leave(&mut self, id: TxnId) {
        assert!(self.storage.vote(id, self.now));
        self.collect();
        let events = std::mem::take(&mut self.events);
        assert!(
            matches!(events[..], [Event::Voted(_, Vote::Granted)]),
            "{events:?}"
        );
    }

    pub(super) fn finish(&mut self, id: TxnId) {
        assert!(self.storage.finish(id, self.wall, self.now));
    }

    pub(super) fn commit(&mut self, stores: &[(u64, u64, &'static str)]) -> Tid {
        let id = self.begin(stores);
        self.end(id)
    }

    /// Votes and finishes.
    pub(super) fn end(&mut self, id: TxnId) -> Tid {
        let mut events = self.vote(id);
        events.retain(|event| !matches!(event, Event::Spilled(_)));
        assert!(
            matches!(events[..], [Event::Voted(_, Vote::Granted)]),
            "{events:?}"
        );
        self.finish(id);
        match &self.settle()[..] {
            [Event::Committed(commit)] => commit.tid,
            events => panic!("{events:?}"),
        }
    }

    /// Looks something up, if need be with the help of a worker.
    pub(super) fn look_up(&self, lookup: Lookup) -> Answer {
        match self.storage.look_up(lookup) {
            Ok(answer) => answer,
            Err(Unanswered::Reading(job)) => match job.run() {
                Done::Looked { result, .. } => result.unwrap(),
                done => panic!("{done:?}"),
            },
            Err(Unanswered::Failed(error)) => panic!("{error}"),
        }
    }

    pub(super) fn current(&self, oid: u64) -> Option<(Bytes, Tid)> {
        match self.look_up(Lookup::Before(Oid(oid), Tid::MAX)) {
            Answer::Revision {
                data,
                serial,
                end: None,
            } => Some((data, serial)),
            Answer::LongRevision {
                mut data,
                serial,
                end: None,
            } => {
                let mut pieces = Vec::new();
                while data.left() > 0 {
                    let (rest, piece) = data.read().unwrap();
                    (data, pieces) = (rest, [pieces, vec![piece]].concat());
                }
                Some((pieces.concat().into(), serial))
            }
            Answer::Missing => None,
            answer => panic!("{answer:?}"),
        }
    }
}

pub(super) fn metadata() -> Metadata {
    Metadata {
        user: Bytes::from_static(b"user"),
        description: Bytes::from_static(b"text"),
        extension: Bytes::new(),
        tid: None,
        status: b' ',
    }
}

pub(super) fn options() -> Options {
    Options {
        name: "1".to_owned(),
        read_only: false,
        create: false,
        quota: None,
        client_resolves: true,
        lock_scope: LockScope::Storage,
        pack: PackOptions::default(),
        blob_dir: None,
    }
}
