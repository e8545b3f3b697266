//! What a node wants of its disk, and what came of it: one thing after the other, by a thread that
//! has the [`LogDisk`] for itself.
//!
//! [`Keeper::perform`] may wait for the disk, and is called by nobody but that thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::entry::Entry;
use crate::ids::{DiskId, HistoryId, Seq, Tid};
use crate::limits::FETCHED_LEN_MAX;
use crate::log_disk::{
    Beside, Blobs, Directories, DiskAction, Found, Hold, LogDisk, LogDiskError, NamedBlob, News,
    Options, PackBegun, PackOrder, PackTurn, Packing, Replacement, Snapshot, create_directory,
};
use crate::replica::event::{Event, LogStart, Start};
use crate::replica::lineage::Lineage;
use crate::replica::message::{Fetched, Supply};
use crate::replica::settings::{Pack, StorageName};
use crate::storage::PackOptions;
use crate::storage::disk::Disk;
use crate::storage::follow::Followed;
use crate::storage::journal::state::{State, Words};
use crate::storage::journal::{Identity, Reader};
use crate::storage::transfer::BlobName;

/// Something to be done.
#[derive(Debug)]
pub enum Request {
    /// What the replica wants.
    Run(DiskAction),
    /// Files that the server has staged get their places in the journal.
    TakeBlobs {
        /// Comes back.
        id: u64,
        /// What they are, and where.
        blobs: Vec<(BlobName, PathBuf)>,
    },
    /// Which blobs of these entries are not here?
    FindMissing {
        /// Comes back.
        id: u64,
        /// They
        entries: Vec<Entry>,
    },
    /// Blobs that were expected by this number need not stay for that any more.
    ExpectNoMore(u64),
    /// Entries for another node, to be put into the answer.
    Supply {
        /// Comes back.
        id: u64,
        /// The answer without entries.
        answer: Box<Fetched>,
        /// The first and the last of them.
        range: (Seq, Seq),
    },
    /// A journal is made where there is none, or for a new history.
    Found(Box<Found>),
    /// A journal is made behind a copy.
    Seed {
        /// Whose it is.
        identity: Identity,
        /// What was copied.
        beside: Box<Beside>,
    },
    /// A copy takes the place of the data.
    Adopt {
        /// Of the replica's request.
        id: u64,
        /// What was copied.
        beside: Box<Beside>,
    },
    /// A copy takes the place of the data, and the log stays.
    ReplaceData {
        /// Comes back; blobs are expected by it.
        id: u64,
        /// What was copied.
        beside: Box<Beside>,
    },
    /// Begin to pack a storage.
    BeginPack(StorageName, Pack, PackOptions),
    /// Do what a pack waits for.
    GoOnWithPack(Box<Packing>),
    /// A pack has ended: that is noted.
    EndPack(Box<Packing>),
    /// A pack is not done that this entry has ordered: that is noted.
    NotePacked(StorageName, Seq),
    /// Bring to stable storage what was applied.
    Checkpoint,
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// Of [`Request::Run`]
    Ran(Box<Ran>),
    /// Of [`Request::TakeBlobs`]
    Taken(u64),
    /// The same, if there was no room for one of them: none is there.
    NotTaken(u64, String),
    /// Of [`Request::FindMissing`]
    Missing(u64, Vec<NamedBlob>),
    /// Of [`Request::Supply`]
    Supplied(u64, Box<Fetched>),
    /// Of [`Request::Found`] and [`Request::Seed`]: there is a log now.
    Opened(Box<Opened>),
    /// Of [`Request::Adopt`], if it was of use.
    Adopted(u64, Box<Opened>),
    /// Of [`Request::Adopt`], if it was not.
    NotAdopted(u64, String),
    /// Of [`Request::ReplaceData`]: the same transactions are in other files now, from that
    /// tid on (`LogStart::history_from`).
    DataReplaced(u64, Box<Data>, Tid),
    /// Of [`Request::ReplaceData`], if it was not done.
    NotReplaced(u64, NotReplaced),
    /// Of [`Request::BeginPack`]
    PackBegun(PackBegun),
    /// Of [`Request::GoOnWithPack`]
    PackTurn(Box<Packing>, PackTurn),
    /// Of [`Request::EndPack`], with the length of the data file, and of [`Request::NotePacked`]. A
    /// length of `None`: there is another data file by now, which has to be packed.
    PackNoted(Option<u64>),
    /// The same, if there was no room for that: it is to be tried again, and no other request waits
    /// for it. Until it is noted the node keeps its turn to pack.
    PackNotNoted(Request, String),
    /// Of [`Request::Checkpoint`] and [`Request::ExpectNoMore`]
    Settled,
    /// There was no room for this: it is to be tried again before anything else.
    Full(DiskAction, String),
    /// The node must not go on.
    Failed(String),
}

/// Why data are as they were.
#[derive(Debug)]
pub enum NotReplaced {
    /// The copy is of no use, and is gone; or there is no room for what it needs, and it stays for
    /// the next time.
    Useless(String),
    /// The journal begins behind it: a later copy goes on where this one has ended.
    TooOld,
    /// These blobs have to be here first.
    Lacks(Vec<NamedBlob>, Box<Beside>),
}

/// What came of a [`Request::Run`].
#[derive(Debug)]
pub struct Ran {
    /// What to tell the replica.
    pub event: Option<Event>,
    /// What was applied.
    pub news: News,
    /// The data files, if the news do not tell all.
    pub data: Option<Data>,
    /// The packs that were ordered, if there are new ones.
    pub packs: Option<BTreeMap<StorageName, PackOrder>>,
    /// Why less was applied than up to this entry.
    pub hold: Option<(Seq, Hold)>,
}

/// A log, and the data files that are made of it.
#[derive(Debug)]
pub struct Opened {
    /// Where the node is.
    pub start: Start,
    /// They
    pub data: Data,
    /// The histories that this one is the future of, the oldest first.
    pub past: Vec<HistoryId>,
}

/// Data files, as they are at some moment.
#[derive(Debug)]
pub struct Data {
    /// Each storage's
    pub storages: BTreeMap<StorageName, Followed>,
    /// The tids of this history that are in them.
    pub lineage: Lineage,
    /// The files of their blobs, for other threads.
    pub blobs: Blobs,
    /// The packs that were ordered.
    pub packs: BTreeMap<StorageName, PackOrder>,
    /// The journal that they are made of.
    pub journal: Reader,
}

/// What a disk is called before there is a journal: the file `disk`. The cluster may have been
/// founded with that name meanwhile.
struct Fresh;

impl State for Fresh {
    const NAME: &'static str = "disk";

    fn write(&self, _text: &mut String) {}

    fn parse(_words: &mut Words<'_>) -> Option<Self> {
        Some(Self)
    }
}

/// The name of a disk without a journal; `random` is what it is called if it has none.
///
/// # Errors
///
/// The directory cannot be made, or the name cannot be read or kept.
pub fn disk_id(
    disk: &dyn Disk,
    directories: &Directories,
    random: DiskId,
) -> Result<DiskId, LogDiskError> {
    let path = &directories.journal;
    if let Some((_, known)) = Fresh::load(disk, path, None)? {
        return Ok(known);
    }
    create_directory(disk, path)?;
    Fresh.save(disk, path, random)?;
    Ok(random)
}

/// The thread's own.
#[derive(Debug)]
pub struct Keeper {
    disk: Arc<dyn Disk>,
    directories: Directories,
    options: Options,
    /// None if there is no journal yet.
    log: Option<LogDisk>,
}

impl Keeper {
    /// Opens the journal, if there is one.
    ///
    /// # Errors
    ///
    /// It is damaged, or its data files are.
    pub fn open(
        disk: Arc<dyn Disk>,
        directories: Directories,
        options: Options,
    ) -> Result<(Self, Option<Opened>), LogDiskError> {
        let mut keeper = Self {
            disk,
            directories,
            options,
            log: None,
        };
        if !LogDisk::is_there(&*keeper.disk, &keeper.directories)? {
            return Ok((keeper, None));
        }
        let opened = keeper.open_log()?;
        Ok((keeper, Some(opened)))
    }

    fn open_log(&mut self) -> Result<Opened, LogDiskError> {
        let (log, start) = LogDisk::open(self.disk.clone(), &self.directories, &self.options)?;
        let opened = opened(&log, start);
        self.log = Some(log);
        Ok(opened)
    }

    /// Does it.
    pub fn perform(&mut self, request: Request) -> Done {
        let done = self.try_to(request);
        done.unwrap_or_else(|error| Done::Failed(error.to_string()))
    }

    fn try_to(&mut self, request: Request) -> Result<Done, LogDiskError> {
        match request {
            Request::Found(found) => {
                // Its lock is in the way.
                self.log = None;
                let (disk, directories) = (self.disk.clone(), &self.directories);
                LogDisk::found(disk, directories, &self.options, &found)?;
                return Ok(Done::Opened(Box::new(self.open_log()?)));
            }
            Request::Seed { identity, beside } => {
                let (disk, directories) = (self.disk.clone(), &self.directories);
                LogDisk::seed(disk, directories, &self.options, &identity, *beside)?;
                return Ok(Done::Opened(Box::new(self.open_log()?)));
            }
            _ => {}
        }
        let Some(log) = &mut self.log else {
            return Ok(Done::Failed("there is no journal".to_owned()));
        };
        Ok(match request {
            Request::Run(action) => {
                let through = match &action {
                    DiskAction::Apply { through } => Some(*through),
                    _ => None,
                };
                let event = match log.run(action.clone()) {
                    Err(error) if error.is_for_lack_of_room() => {
                        return Ok(Done::Full(action, error.to_string()));
                    }
                    event => event?,
                };
                let news = log.take_news();
                Done::Ran(Box::new(Ran {
                    event,
                    data: news.has_gap.then(|| data_of(log)),
                    packs: log.take_pack_orders(),
                    news,
                    hold: through.zip(log.hold().cloned()),
                }))
            }
            Request::TakeBlobs { id, blobs } => match log.take_blobs(&blobs) {
                Ok(()) => Done::Taken(id),
                Err(error) if error.is_for_lack_of_room() => Done::NotTaken(id, error.to_string()),
                Err(error) => return Err(error),
            },
            Request::FindMissing { id, entries } => Done::Missing(id, log.missing_blobs(&entries)?),
            Request::ExpectNoMore(number) => {
                log.expect_no_more(number)?;
                Done::Settled
            }
            Request::Supply { id, answer, range } => {
                Done::Supplied(id, Box::new(supply(log, *answer, range)?))
            }
            Request::Adopt { id, beside } => match log.adopt(*beside) {
                Ok(start) => Done::Adopted(id, Box::new(adopted(log, start))),
                Err(error) if error.is_refusal() => Done::NotAdopted(id, error.to_string()),
                Err(error) => return Err(error),
            },
            Request::ReplaceData { id, beside } => replace_data(log, id, beside)?,
            Request::BeginPack(storage, pack, options) => {
                Done::PackBegun(log.begin_pack(&storage, pack, options)?)
            }
            Request::GoOnWithPack(mut packing) => {
                let turn = log.go_on_with_pack(&mut packing)?;
                Done::PackTurn(packing, turn)
            }
            Request::EndPack(packing) => match log.end_pack(&packing) {
                Err(error) if error.is_for_lack_of_room() => {
                    Done::PackNotNoted(Request::EndPack(packing), error.to_string())
                }
                len => Done::PackNoted(len?),
            },
            Request::NotePacked(storage, seq) => match log.note_packed(&storage, seq) {
                Err(error) if error.is_for_lack_of_room() => {
                    Done::PackNotNoted(Request::NotePacked(storage, seq), error.to_string())
                }
                noted => noted.map(|()| Done::PackNoted(Some(0)))?,
            },
            Request::Checkpoint => {
                log.checkpoint()?;
                Done::Settled
            }
            Request::Found(_) | Request::Seed { .. } => Done::Settled,
        })
    }

    /// The database as it is now, for a copy.
    ///
    /// # Errors
    ///
    /// There is none, or the disk has failed.
    pub fn snapshot(&mut self) -> Result<Snapshot, String> {
        let log = self.log.as_mut().ok_or("there is no journal")?;
        log.snapshot().map_err(|error| error.to_string())
    }

    /// Ends in good order.
    ///
    /// # Errors
    ///
    /// The disk has failed; what was acknowledged is there.
    pub fn close(self) -> Result<(), LogDiskError> {
        self.log.map_or(Ok(()), LogDisk::close)
    }
}

fn replace_data(log: &mut LogDisk, id: u64, beside: Box<Beside>) -> Result<Done, LogDiskError> {
    let not = |why| Ok(Done::NotReplaced(id, why));
    match log.replace_data(&beside, id) {
        Ok(Replacement::Done) => {
            // All of it is in there.
            log.take_news();
            let history_from = log.history_from();
            Ok(Done::DataReplaced(id, Box::new(data_of(log)), history_from))
        }
        Ok(Replacement::TooOld) => not(NotReplaced::TooOld),
        Ok(Replacement::Lacks(blobs)) => not(NotReplaced::Lacks(blobs, beside)),
        Err(error) if error.is_refusal() => not(NotReplaced::Useless(error.to_string())),
        Err(error) => Err(error),
    }
}

fn opened(log: &LogDisk, start: Start) -> Opened {
    let data = data_of(log);
    let past = log.past().to_vec();
    Opened { start, data, past }
}

fn data_of(log: &LogDisk) -> Data {
    Data {
        storages: log.follow(),
        lineage: log.lineage(),
        blobs: log.blobs(),
        packs: log.pack_orders(),
        journal: log.reader(),
    }
}

/// The same after a copy, which changes neither the history nor what was promised.
fn adopted(log: &LogDisk, start: LogStart) -> Opened {
    let identity = log.identity();
    let start = Start {
        history: identity.history,
        me: crate::replica::members::Voter {
            node: identity.node,
            disk: identity.disk,
        },
        promised: log.positions().promised,
        log: start,
    };
    opened(log, start)
}

/// Entries from the journal, for another node; if they are not there any more, that is said.
fn supply(
    log: &LogDisk,
    mut answer: Fetched,
    (from, to): (Seq, Seq),
) -> Result<Fetched, LogDiskError> {
    if let Supply::Entries { entries, .. } = &mut answer.what {
        match log.entries(from, to, FETCHED_LEN_MAX)? {
            Some(found) => *entries = found,
            None => {
                let before = Seq(log.positions().first.0.saturating_sub(1));
                answer.what = Supply::Released { before };
            }
        }
    }
    Ok(answer)
}
