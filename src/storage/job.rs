//! Work for the disk that may wait, so that the reactor does not: data in, data out.
//!
//! The storage emits a [`Job`], whoever drives it runs it on a thread of the job's [`Lane`] and
//! hands the [`Done`] back to `FileStorage::on_done`.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, File, FileId};
use super::error::{ReadError, StorageError};
use super::format::{STATUS_POS, Status};
use super::index::Index;
use super::oids;
use super::read::{Found, Reader, Wait};
use super::staging::TxnId;
use crate::ids::{Oid, Tid};

/// Which queue a job belongs in. Jobs of one storage and lane may not overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Appends and syncs: one thread a storage.
    Commit,
    /// Reads of what is not in memory: any number of threads, any order.
    Read,
    /// What may take long and is urgent to nobody: index and oid ceiling.
    Housekeeping,
}

/// Something to read for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The revision that was current just before a tid.
    Before(Oid, Tid),
    /// The revision with exactly this serial.
    Serial(Oid, Tid),
    /// The serial of the current revision.
    Current(Oid),
}

impl Lookup {
    /// The object.
    pub const fn oid(self) -> Oid {
        match self {
            Self::Before(oid, _) | Self::Serial(oid, _) | Self::Current(oid) => oid,
        }
    }

    /// Follows the object's revisions from its record at `pos` on.
    pub(super) fn follow(self, reader: &Reader<'_>, pos: u64) -> Result<Answer, ReadError> {
        Ok(match self {
            Self::Before(oid, before) => match reader.load_before(pos, oid, before)? {
                Found::Revision { data, serial, end } => Answer::Revision { data, serial, end },
                Found::NoneBefore => Answer::NoneBefore,
                Found::Deleted => Answer::Missing,
            },
            Self::Serial(oid, serial) => reader
                .load_serial(pos, oid, serial)?
                .map_or(Answer::Missing, Answer::Data),
            Self::Current(oid) => reader
                .current_tid(pos, oid)?
                .map_or(Answer::Missing, Answer::Serial),
        })
    }
}

/// The answer to a [`Lookup`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Lookup::Before`].
    Revision {
        /// The object's state.
        data: Bytes,
        /// The revision.
        serial: Tid,
        /// The revision after it, if it is not the current one.
        end: Option<Tid>,
    },
    /// To [`Lookup::Before`]: the object was created later.
    NoneBefore,
    /// To [`Lookup::Serial`].
    Data(Bytes),
    /// To [`Lookup::Current`].
    Serial(Tid),
    /// There is no such object, no such revision, or it was deleted: `POSKeyError`.
    Missing,
}

/// A piece of work.
pub enum Job {
    /// Write transactions at the end of the file and sync it.
    Append(Append),
    /// Reserve space at the end of the file, so that a finish cannot fail for lack of it.
    Allocate {
        /// For whom.
        txn: TxnId,
        /// The data file.
        file: Arc<dyn File>,
        /// From here
        pos: u64,
        /// on, so many bytes.
        len: u64,
    },
    /// Read the serials of these records.
    Serials {
        /// For whom.
        txn: TxnId,
        /// The data file.
        file: Arc<dyn File>,
        /// Objects with the positions of their current records.
        records: Vec<(Oid, u64)>,
        /// The end of what is committed.
        tail: u64,
    },
    /// Read for a client.
    Lookup {
        /// What.
        lookup: Lookup,
        /// The data file.
        file: Arc<dyn File>,
        /// Where the object's current record is.
        pos: u64,
        /// The end of what is committed.
        tail: u64,
    },
    /// Save the index.
    SaveIndex {
        /// Where.
        disk: Arc<dyn Disk>,
        /// The index file.
        path: PathBuf,
        /// A snapshot.
        index: Index,
        /// The end of the transactions that it covers.
        tail: u64,
    },
    /// Make a higher oid ceiling durable.
    RaiseOids {
        /// Where.
        disk: Arc<dyn Disk>,
        /// The data file; the ceiling is saved beside it.
        path: PathBuf,
        /// The new ceiling.
        ceiling: Oid,
    },
}

/// What one sync brings to the disk: transactions behind the end of the file, and the status that
/// makes those of the sync before finished (see `commit`).
pub struct Append {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    /// The file that must still be there under its name.
    pub(super) id: FileId,
    /// Positions and statuses of transactions whose bytes are on stable storage.
    pub(super) seals: Vec<(u64, Status)>,
    /// Where the new transactions begin.
    pub(super) pos: u64,
    /// Their bytes, with status `'c'`.
    pub(super) parts: Vec<Bytes>,
}

impl Append {
    fn run(&self) -> io::Result<()> {
        if self.disk.identify(&self.path)? != self.id {
            return Err(io::Error::other(
                "the file was replaced while it was served",
            ));
        }
        for (pos, status) in &self.seals {
            let status = [status.to_byte()];
            self.file
                .write_at(&mut [IoSlice::new(&status)], pos + STATUS_POS)?;
        }
        if !self.parts.is_empty() {
            let mut slices: Vec<IoSlice<'_>> =
                self.parts.iter().map(|part| IoSlice::new(part)).collect();
            self.file.write_at(&mut slices, self.pos)?;
        }
        self.file.sync()
    }
}

/// What became of a job.
#[derive(Debug)]
pub enum Done {
    /// Of [`Job::Append`].
    Appended(io::Result<()>),
    /// Of [`Job::Allocate`]: with the position up to which space is reserved.
    Allocated {
        /// For whom.
        txn: TxnId,
        /// Up to here,
        end: u64,
        /// if it worked.
        result: io::Result<()>,
    },
    /// Of [`Job::Serials`]: by position.
    Serials {
        /// For whom.
        txn: TxnId,
        /// Position and serial.
        result: Result<Vec<(u64, Tid)>, ReadError>,
    },
    /// Of [`Job::Lookup`].
    Looked {
        /// What.
        lookup: Lookup,
        /// Where the object's current record was.
        pos: u64,
        /// What was found.
        result: Result<Answer, ReadError>,
    },
    /// Of [`Job::SaveIndex`]: the position that it covers.
    IndexSaved {
        /// The end of the transactions that the saved index covers.
        tail: u64,
        /// If it worked.
        result: io::Result<()>,
    },
    /// Of [`Job::RaiseOids`].
    OidsRaised {
        /// The new ceiling,
        ceiling: Oid,
        /// if it worked.
        result: Result<(), StorageError>,
    },
}

impl Job {
    /// The queue that it belongs in.
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Append(_) | Self::Allocate { .. } => Lane::Commit,
            Self::Serials { .. } | Self::Lookup { .. } => Lane::Read,
            Self::SaveIndex { .. } | Self::RaiseOids { .. } => Lane::Housekeeping,
        }
    }

    /// Does it. Blocks for as long as the disk takes.
    pub fn run(self) -> Done {
        match self {
            Self::Append(append) => Done::Appended(append.run()),
            Self::Allocate {
                txn,
                file,
                pos,
                len,
            } => Done::Allocated {
                txn,
                end: pos + len,
                result: file.allocate(pos, len),
            },
            Self::Serials {
                txn,
                file,
                records,
                tail,
            } => {
                let reader = Reader {
                    file: &*file,
                    wait: Wait::Yes,
                    tail,
                };
                let serials = records
                    .into_iter()
                    .map(|(oid, pos)| Ok((pos, reader.record_tid(pos, oid)?)));
                Done::Serials {
                    txn,
                    result: serials.collect(),
                }
            }
            Self::Lookup {
                lookup,
                file,
                pos,
                tail,
            } => {
                let reader = Reader {
                    file: &*file,
                    wait: Wait::Yes,
                    tail,
                };
                Done::Looked {
                    lookup,
                    pos,
                    result: lookup.follow(&reader, pos),
                }
            }
            Self::SaveIndex {
                disk,
                path,
                index,
                tail,
            } => Done::IndexSaved {
                tail,
                result: index.save(tail, &*disk, &path),
            },
            Self::RaiseOids {
                disk,
                path,
                ceiling,
            } => Done::OidsRaised {
                ceiling,
                result: oids::save(&*disk, &path, ceiling),
            },
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Append(_) => "Append",
            Self::Allocate { .. } => "Allocate",
            Self::Serials { .. } => "Serials",
            Self::Lookup { .. } => "Lookup",
            Self::SaveIndex { .. } => "SaveIndex",
            Self::RaiseOids { .. } => "RaiseOids",
        };
        f.write_str(name)
    }
}
