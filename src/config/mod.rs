//! stub
use crate::storage::LockScope;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
#[allow(missing_docs)]
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub addresses: Vec<Address>,
    pub read_only: bool,
    pub invalidation_queue_size: usize,
    pub invalidation_age: Option<Duration>,
    pub transaction_timeout: Option<Duration>,
    pub pid_file: Option<PathBuf>,
    pub client_conflict_resolution: bool,
    pub msgpack: bool,
    pub lock_scope: LockScope,
    pub storages: Vec<StorageConfig>,
}
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct StorageConfig {
    pub name: String,
    pub kind: StorageKind,
}
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum StorageKind {
    File(FileStorageConfig),
    Memory,
}
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct FileStorageConfig {
    pub path: PathBuf,
    pub create: bool,
    pub read_only: bool,
    pub quota: Option<u64>,
}
