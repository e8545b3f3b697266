//! What unit tests of several files here need.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, File, OpenMode, OsDisk};
use super::format::{DataHeader, MAGIC, Status, TXN_HEADER_LEN, TxnHeader};
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
