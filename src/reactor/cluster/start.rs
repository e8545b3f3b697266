//! From a configuration and what is on the disk to a node that joins.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};

use mio::{Registry, Token, Waker};
use ring::rand::{SecureRandom, SystemRandom};

use super::draining::Draining;
use super::threads::{run_keeper, run_supplier, tell_ended};
use super::{Cluster, Ended, Fixed, PEERS, of};
use crate::config::{Address, Config, NodeRole, StandbyConfig};
use crate::exit::Exit;
use crate::ids::{DiskId, HistoryId};
use crate::log_disk::{self, Directories, LogDiskError, StoragePaths};
use crate::node::disk::{Keeper, Opened, disk_id};
use crate::node::roster::Peer;
use crate::node::{self, Node};
use crate::peer;
use crate::reactor::certificates::Certificates;
use crate::reactor::copying::{self, Fetcher, SharedBlobs};
use crate::reactor::daemon::Daemon;
use crate::reactor::listener::Listener;
use crate::reactor::lookout::Lookout;
use crate::reactor::office::Office;
use crate::reactor::packing::PackThread;
use crate::reactor::peers::{self, Peers};
use crate::reactor::storage_options;
use crate::reactor::tasks::Tasks;
use crate::reactor::worker::Traffic;
use crate::replica::event;
use crate::replica::message::NodeKind;
use crate::replica::settings::StorageName;
use crate::server::Now;
use crate::storage::disk::{Disk, OpenMode, OsDisk};
use crate::storage::follow::Followed;
use crate::storage::format::FIRST_TXN_POS;
use crate::storage::{FileStorage, PackOptions};

/// What the reactor has for it.
pub(in crate::reactor) struct Surroundings<'a> {
    pub(in crate::reactor) registry: &'a Registry,
    /// Of the daemon's descriptor
    pub(in crate::reactor) token: Token,
    pub(in crate::reactor) waker: &'a Arc<Waker>,
    /// Of `<ssl>`, if there is one
    pub(in crate::reactor) certificates: Option<Certificates>,
    /// Where other nodes connect
    pub(in crate::reactor) doors: Vec<Listener>,
    /// What clients want, to which packs give way
    pub(in crate::reactor) traffic: Arc<Traffic>,
}

/// What is on the disk of a node that starts.
pub(in crate::reactor) struct Opening {
    disk: Arc<dyn Disk>,
    directories: Directories,
    keeper: Keeper,
    opened: Option<Opened>,
    me: Peer,
    storages: Vec<String>,
    packs: BTreeMap<StorageName, PackOptions>,
}

/// Opens the journal, if there is one, and what the server serves: nothing yet, but the names are
/// known. What is in the data files follows, by [`Cluster::follow`].
pub(in crate::reactor) fn open(
    config: &Config,
    standby: &StandbyConfig,
    now: Now,
) -> Result<(Vec<FileStorage>, Opening), (Exit, String)> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::default());
    let mut directories = Directories {
        journal: standby.journal.clone(),
        storages: [].into(),
    };
    let mut storages = Vec::new();
    let mut packs = BTreeMap::new();
    let mut has_data = false;
    for storage in &config.storages {
        let (_, data, options) = storage_options(config, storage);
        let blobs = options.blob_dir.clone();
        packs.insert(storage.name.clone(), options.pack);
        has_data |= has_transactions(&*disk, &data);
        let nothing = Followed::nothing(disk.clone(), data.clone());
        storages.push(FileStorage::follow(nothing, options));
        let paths = StoragePaths { data, blobs };
        directories.storages.insert(storage.name.clone(), paths);
    }
    let failed = |error: LogDiskError| (Exit::StorageFailed, error.to_string());
    let id = disk_id(&*disk, &directories, DiskId(random())).map_err(failed)?;
    let options = log_disk::Options {
        window_len: standby.journal_len,
        ..log_disk::Options::default()
    };
    log::info!("opening the journal in {}", directories.journal.display());
    let (keeper, opened) =
        Keeper::open(disk.clone(), directories.clone(), options).map_err(failed)?;
    match &opened {
        None => log::info!("there is no journal yet"),
        Some(opened) => log::info!(
            "history {}, epoch {} promised, log up to {}, {} committed",
            opened.start.history,
            opened.start.promised,
            opened.start.log.last.seq,
            opened.start.log.committed
        ),
    }
    let opening = Opening {
        disk,
        keeper,
        me: Peer {
            disk: id,
            kind: kind(standby),
            has_data,
            address: standby
                .peer_address
                .as_ref()
                .map_or_else(String::new, Address::to_string),
            ..Peer::blank(
                standby.node,
                (sequence(now) >> 1) as i64,
                env!("CARGO_PKG_VERSION").to_owned(),
            )
        },
        storages: directories.storages.keys().cloned().collect(),
        directories,
        opened,
        packs,
    };
    Ok((storages, opening))
}

/// Whether there is more in a data file than its first bytes.
fn has_transactions(disk: &dyn Disk, path: &Path) -> bool {
    let file = disk.open(path, OpenMode::ReadRegular);
    file.is_ok_and(|file| file.len().is_ok_and(|len| len > FIRST_TXN_POS))
}

/// Differs from start to start, and rises.
fn sequence(now: Now) -> u64 {
    u64::try_from(now.wall.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    let filled = SystemRandom::new().fill(&mut bytes);
    // There is no machine without it.
    filled.expect("the system has random numbers");
    bytes
}

const fn kind(standby: &StandbyConfig) -> NodeKind {
    match standby.role {
        NodeRole::Data => NodeKind::Data,
        NodeRole::Observer => NodeKind::Observer,
        NodeRole::Arbiter => NodeKind::Arbiter,
    }
}

impl Cluster {
    /// Begins to join.
    pub(in crate::reactor) fn join(
        config: &StandbyConfig,
        opening: Opening,
        around: Surroundings<'_>,
        now: Now,
    ) -> io::Result<Self> {
        let Surroundings {
            registry,
            token,
            waker,
            certificates,
            doors,
            traffic,
        } = around;
        let mut peers = Peers::new(
            doors,
            peer_options(config),
            registry,
            PEERS,
            waker,
            now.mono,
        )?;
        if let Some(certificates) = certificates {
            peers.encrypt(certificates);
        }
        let blobs = SharedBlobs::default();
        let supplier = copying::Supplier::new(opening.disk.clone(), blobs.clone());
        let options = node_options(config, opening.storages, opening.packs);
        let new_history = HistoryId(random());
        let node = Node::new(options, opening.me, opening.opened, new_history, of(now));
        let fetcher = Fetcher::new(opening.disk, opening.directories);
        log::info!("group {}: joining by {}", config.group, config.daemon);
        if config.key.is_none() {
            log::warn!(
                "group {}: without key-file, whoever reaches the daemon can speak in it",
                config.group
            );
        }
        let (ended_sender, ended) = mpsc::channel();
        let (keeper, keeper_thread) =
            run_keeper(opening.keeper, ended_sender.clone(), waker.clone())?;
        let supplier = run_supplier(
            supplier,
            keeper.clone(),
            ended_sender.clone(),
            waker.clone(),
        )?;
        let packer = {
            let (ended, waker) = (ended_sender.clone(), waker.clone());
            PackThread::start(traffic, move |stepped| {
                tell_ended(&ended, &waker, Ended::Packed(stepped));
            })?
        };
        Ok(Self {
            group: config.group.clone(),
            daemon: Daemon::new(config, registry, token, waker, sequence(now), now.mono)?,
            node,
            peers,
            keeper,
            keeper_thread,
            supplier,
            fetcher,
            blobs,
            packer,
            journal: None,
            ended,
            ended_sender,
            waker: waker.clone(),
            asked: [].into(),
            asked_count: 0,
            asking: [].into(),
            office: Office::new(config, waker),
            lookout: Lookout::new(config, waker, now.mono),
            commands: BTreeMap::new(),
            commands_count: 1 << 63,
            orders: Vec::new(),
            packed: BTreeMap::new(),
            tasks: Tasks::default(),
            backup_directory: config.backup_directory.clone(),
            draining: Draining::default(),
            answered: VecDeque::new(),
            fixed: Fixed {
                node: config.node,
                group: config.group.clone(),
                site: config.site.clone(),
                kind: kind(config),
            },
            has_more: true,
            stopped: None,
            followed: None,
            deadline: None,
        })
    }
}

fn node_options(
    config: &StandbyConfig,
    storages: Vec<StorageName>,
    packs: BTreeMap<StorageName, PackOptions>,
) -> node::Options {
    node::Options {
        replica: event::Options {
            kind: kind(config),
            site: config.site.clone(),
            priority: config.priority,
            copies_newest_only: config.copies_newest_only,
            leads_without_history: false,
            lease: config.lease,
        },
        voters: config.voters.iter().copied().collect(),
        arbiter: config.arbiter,
        storages,
        packs,
        ring_body_max: config.ring_body_len_max,
    }
}

fn peer_options(config: &StandbyConfig) -> peers::Options {
    peers::Options {
        node: peer::Options {
            node: config.node,
            group: config.group.clone(),
            key: config.key.as_ref().map(|key| peer::Key::new(key.bytes())),
        },
        bulk_rate: config.bulk_rate,
    }
}
