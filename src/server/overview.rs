//! How things are with storages and clients, for people.

use std::path::Path;

use super::Server;
use crate::ids::Tid;

/// A storage, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct StorageOverview<'a> {
    /// What clients call it.
    pub name: &'a str,
    /// Its last transaction
    pub tid: Tid,
    /// Objects in it
    pub objects: u64,
    /// Bytes of its data file
    pub len: u64,
    /// Its data file
    pub path: &'a Path,
    /// Clients that are registered with it
    pub clients: usize,
    /// Votes that wait
    pub waiting_votes: usize,
}

impl Server {
    /// All storages, in the order of the configuration.
    pub fn storages(&self) -> impl Iterator<Item = StorageOverview<'_>> {
        self.storages.iter().map(|served| {
            let storage = &served.storage;
            StorageOverview {
                name: storage.name(),
                tid: storage.last_tid(),
                objects: storage.object_count(),
                len: storage.file_len(),
                path: storage.path(),
                clients: served.clients.len(),
                waiting_votes: storage.waiting_count(),
            }
        })
    }

    /// Connections, those included that wait for their greeting.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }
}
