//! Work for the disk that may wait, so that the reactor does not: data in, data out.
//!
//! The storage emits a [`Job`], whoever drives it runs it on a thread of the job's [`Lane`] and
//! hands the [`Done`] back to `FileStorage::on_done`.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Place;
use super::blob::{BlobDone, BlobJob, BlobReader, DirectoryMaker, move_in};
use super::commit::Refusal;
use super::compare::{Compare, Compared};
use super::compose::{Compose, Composed};
use super::disk::{Disk, File, FileId, with_suffix};
use super::error::{ReadError, StorageError};
use super::format::{STATUS_POS, Status};
use super::history::{From, Past, Query};
use super::index::Index;
use super::layout::Layout;
use super::oids;
use super::pack::{PackError, Packer, Step};
use super::pieces::LongData;
use super::read::{Content, Found, Reader, Wait};
use super::recent::{Recent, RecentReader};
use super::staging::{Rest, TxnId};
use super::undo::{Backs, LookBack};
use super::witness::{self, Witness};
use crate::ids::{Oid, Tid};

/// Which queue a job belongs in. Jobs of one storage and lane may not overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Appends and syncs: one thread a storage.
    Commit,
    /// What clients wait for: reads of what is not in memory, and new oids. Any number of threads,
    /// any order.
    Read,
    /// What may take long: the index, and staging of large transactions.
    Housekeeping,
    /// Slices of a pack: one thread, so that nothing else has to wait for one.
    Pack,
    /// Blobs that come in. A few threads, any order.
    Blob,
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

    /// Follows the object's revisions from its record at `pos` on. `file` is the reader's.
    pub(super) fn follow(
        self,
        reader: &Reader<'_>,
        file: &Arc<dyn File>,
        pos: u64,
    ) -> Result<Answer, ReadError> {
        Ok(match self {
            Self::Before(oid, before) => match reader.content_before(pos, oid, before)? {
                Found::Revision { data, serial, end } => match data {
                    Content::Data(data) => Answer::Revision { data, serial, end },
                    Content::Long { pos, len } => Answer::LongRevision {
                        data: LongData::new(file.clone(), pos, len),
                        serial,
                        end,
                    },
                },
                Found::NoneBefore => Answer::NoneBefore,
                Found::Deleted => Answer::Missing,
            },
            Self::Serial(oid, serial) => match reader.content_of_serial(pos, oid, serial)? {
                Some(Content::Data(data)) => Answer::Data(data),
                Some(Content::Long { pos, len }) => {
                    Answer::LongData(LongData::new(file.clone(), pos, len))
                }
                None => Answer::Missing,
            },
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
    /// To [`Lookup::Before`], too: of an object that is read piece by piece.
    LongRevision {
        /// The object's state.
        data: LongData,
        /// The revision.
        serial: Tid,
        /// The revision after it, if it is not the current one.
        end: Option<Tid>,
    },
    /// To [`Lookup::Before`]: the object was created later.
    NoneBefore,
    /// To [`Lookup::Serial`].
    Data(Bytes),
    /// To [`Lookup::Serial`], too: of an object that is read piece by piece.
    LongData(LongData),
    /// To [`Lookup::Current`].
    Serial(Tid),
    /// There is no such object, no such revision, or it was deleted: `POSKeyError`.
    Missing,
}

/// A piece of work.
pub enum Job {
    /// Write transactions at the end of the file and sync it.
    Append(Box<Append>),
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
    /// Write data of a transaction that are too much for the memory to its staging file.
    Spill {
        /// For whom.
        txn: TxnId,
        /// Where the staging file is made, if there is none yet.
        disk: Arc<dyn Disk>,
        /// The data file; the staging file is made beside it.
        path: PathBuf,
        /// The staging file.
        staging_file: Option<Arc<dyn File>>,
        /// Where they go in it.
        pos: u64,
        /// The data.
        data: Vec<Bytes>,
    },
    /// Read what a vote needs.
    Fetch {
        /// For whom.
        txn: TxnId,
        /// The data file.
        file: Arc<dyn File>,
        /// Objects with the positions of their current records, whose serials are wanted.
        serials: Vec<(Oid, u64)>,
        /// How often the data file had been replaced.
        generation: u64,
        /// The end of what is committed.
        tail: u64,
        /// The staging file.
        staging_file: Option<Arc<dyn File>>,
        /// Objects with position and length of their data there.
        staged: Vec<(Oid, u64, usize)>,
    },
    /// Compare the serials of a large transaction.
    Compare(Compare),
    /// Make of a transaction what is proposed to a log.
    Compose(Compose),
    /// Find earlier records whose data a transaction has.
    LookBack(LookBack),
    /// Read for a client.
    Lookup {
        /// What.
        lookup: Lookup,
        /// The data file.
        file: Arc<dyn File>,
        /// Where the object's current record is.
        place: Place,
        /// The end of what is committed.
        tail: u64,
    },
    /// Answer a question about the past.
    Browse {
        /// What.
        query: Query,
        /// The data file.
        file: Arc<dyn File>,
        /// The end of what is committed.
        tail: u64,
    },
    /// Go on with what the last transactions changed.
    Recent(Box<RecentReader>),
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
    /// Keep a blob that comes in.
    Blob(BlobJob),
    /// Read the next piece of a long object for a client.
    ReadLong(LongData),
    /// Read the next piece of a blob for a client.
    ReadBlob(BlobReader),
    /// Make a higher oid ceiling durable.
    RaiseOids {
        /// Where.
        disk: Arc<dyn Disk>,
        /// The data file; the ceiling is saved beside it.
        path: PathBuf,
        /// The new ceiling.
        ceiling: Oid,
    },
    /// From now on transactions are witnessed.
    Witness {
        /// Where.
        disk: Arc<dyn Disk>,
        /// The data file; the witness is saved beside it.
        path: PathBuf,
        /// The data file itself,
        file: Arc<dyn File>,
        /// which has this inode.
        inode: u64,
        /// From here on.
        pos: u64,
        /// Tid of the transaction that ends there, unless only the file knows.
        tid: Option<Tid>,
    },
    /// Go on with a pack.
    Pack(Box<Packer>),
    /// Let go of a file that has no name any more: its space is freed by that, which takes seconds
    /// if it is large.
    Close(Arc<dyn File>),
    /// Drop what a large transaction has left.
    Discard(Rest),
}

/// What one sync brings to the disk: transactions behind the end of the file, and the status that
/// makes those of the sync before finished (see `batch`).
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
    /// Their bytes.
    pub(super) parts: Vec<Part>,
    /// Files of their blobs: where they are, and where they shall be.
    pub(super) blobs: Vec<(PathBuf, PathBuf)>,
    pub(super) directory_maker: DirectoryMaker,
    /// From now on there is no witness: one of these is none, and looks like one.
    pub(super) ends_witness: bool,
}

/// Bytes of a transaction.
#[derive(Debug)]
pub(super) enum Part {
    /// In memory.
    Memory(Bytes),
    /// All of a large transaction; the only part of it.
    Layout(Arc<Layout>),
    /// In a staging file.
    Staged {
        file: Arc<dyn File>,
        pos: u64,
        len: usize,
    },
}

/// Bytes copied at a time from a staging file.
const COPY_LEN: usize = 1 << 20;

impl Append {
    fn run(&self) -> io::Result<()> {
        if self.disk.identify(&self.path)? != self.id {
            return Err(io::Error::other(
                "the file was replaced while it was served",
            ));
        }
        if self.ends_witness {
            self.disk
                .remove(&with_suffix(&self.path, witness::SUFFIX))?;
        }
        for (pos, status) in &self.seals {
            let status = [status.to_byte()];
            self.file
                .write_at(&mut [IoSlice::new(&status)], pos + STATUS_POS)?;
        }
        // Their statuses come with the next sync: no finished transaction is without its blobs.
        move_in(&*self.disk, &self.directory_maker, &self.blobs)?;
        self.write_parts()?;
        self.file.sync()
    }

    fn write_parts(&self) -> io::Result<()> {
        let mut pos = self.pos;
        let mut slices: Vec<IoSlice<'_>> = Vec::new();
        let mut slices_len = 0;
        for part in &self.parts {
            if let Part::Memory(bytes) = part {
                slices.push(IoSlice::new(bytes));
                slices_len += bytes.len() as u64;
                continue;
            }
            self.file.write_at(&mut slices, pos)?;
            pos += slices_len;
            (slices_len, slices) = (0, Vec::new());
            pos += part.write(&*self.file, pos)?;
        }
        self.file.write_at(&mut slices, pos)
    }
}

impl Part {
    /// Writes it at its place; its length.
    pub(super) fn write(&self, to: &dyn File, pos: u64) -> io::Result<u64> {
        match self {
            Self::Memory(bytes) => {
                to.write_at(&mut [IoSlice::new(bytes)], pos)?;
                Ok(bytes.len() as u64)
            }
            Self::Layout(layout) => {
                layout.write(to)?;
                Ok(layout.len())
            }
            Self::Staged {
                file,
                pos: from,
                len,
            } => {
                copy(&**file, *from, *len, to, pos)?;
                Ok(*len as u64)
            }
        }
    }
}

/// What a vote has to wait for.
#[derive(Debug)]
pub struct Fetched {
    /// Positions of records with their serials.
    pub(super) serials: Vec<(u64, Tid)>,
    /// Of the file that they are in.
    pub(super) generation: u64,
    /// Objects with their data.
    pub(super) staged: Vec<(Oid, Bytes)>,
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
    /// Of [`Job::Spill`].
    Spilled {
        /// For whom.
        txn: TxnId,
        /// The staging file, if it worked.
        result: io::Result<Arc<dyn File>>,
    },
    /// Of [`Job::Fetch`].
    Fetched {
        /// For whom.
        txn: TxnId,
        /// What was read.
        result: Result<Fetched, ReadError>,
    },
    /// Of [`Job::Compare`].
    Compared(Compared),
    /// Of [`Job::Compose`].
    Composed {
        /// For whom.
        txn: TxnId,
        /// What is proposed, or why the vote fails.
        result: Result<Box<Composed>, Refusal>,
    },
    /// Of [`Job::LookBack`].
    LookedBack {
        /// For whom.
        txn: TxnId,
        /// What was found, or why the vote fails.
        result: Result<Backs, Refusal>,
    },
    /// Of [`Job::Lookup`].
    Looked {
        /// What.
        lookup: Lookup,
        /// Where the object's current record was.
        place: Place,
        /// What was found.
        result: Result<Answer, ReadError>,
    },
    /// Of [`Job::Browse`].
    Browsed(Result<Past, ReadError>),
    /// Of [`Job::Recent`].
    Recent(Result<Recent, ReadError>),
    /// Of [`Job::SaveIndex`]: the position that it covers.
    IndexSaved {
        /// The end of the transactions that the saved index covers.
        tail: u64,
        /// If it worked.
        result: io::Result<()>,
    },
    /// Of [`Job::Blob`].
    Blob(BlobDone),
    /// Of [`Job::ReadLong`]: the rest, and a piece.
    LongRead(io::Result<(LongData, Bytes)>),
    /// Of [`Job::ReadBlob`]: the rest, and a piece.
    BlobRead(io::Result<(BlobReader, Bytes)>),
    /// Of [`Job::RaiseOids`].
    OidsRaised {
        /// The new ceiling,
        ceiling: Oid,
        /// if it worked.
        result: Result<(), StorageError>,
    },
    /// Of [`Job::Witness`].
    Witnessed(Result<(), StorageError>),
    /// Of [`Job::Pack`]: the pack, and how far it has come.
    Packed(Box<Packer>, Result<Step, PackError>),
    /// Of [`Job::Close`] and [`Job::Discard`].
    Closed,
}

impl Job {
    /// The queue that it belongs in.
    pub fn lane(&self) -> Lane {
        match self {
            // In order with what ends it.
            Self::Append(_) | Self::Allocate { .. } | Self::Witness { .. } => Lane::Commit,
            Self::Fetch { .. }
            | Self::Compare(_)
            | Self::LookBack(_)
            | Self::Lookup { .. }
            | Self::Browse { .. }
            | Self::ReadLong(_)
            | Self::Recent(_)
            | Self::ReadBlob(_)
            | Self::RaiseOids { .. } => Lane::Read,
            // These read blobs, which takes its time.
            Self::Blob(_) | Self::Compose(_) => Lane::Blob,
            Self::SaveIndex { .. } | Self::Spill { .. } | Self::Discard(_) => Lane::Housekeeping,
            Self::Pack(packer) if packer.is_switching() => Lane::Commit,
            Self::Pack(_) | Self::Close(_) => Lane::Pack,
        }
    }

    /// Whether it may read much more than a load does, so that loads should not wait for it.
    pub const fn may_take_long(&self) -> bool {
        match self {
            Self::Browse { query, .. } => match query {
                Query::History { .. } | Query::Log { .. } | Query::Transaction(From::Tid(_)) => {
                    true
                }
                Query::Transaction(From::Pos(_)) | Query::Record { .. } => false,
            },
            _ => false,
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
            Self::Spill {
                txn,
                disk,
                path,
                staging_file,
                pos,
                data,
            } => Done::Spilled {
                txn,
                result: spill(&*disk, &path, staging_file, pos, &data),
            },
            Self::Fetch {
                txn,
                file,
                serials,
                generation,
                tail,
                staging_file,
                staged,
            } => {
                let reader = Reader {
                    file: &*file,
                    wait: Wait::Yes,
                    tail,
                };
                let fetched = fetch(&reader, &serials, staging_file.as_deref(), &staged);
                let result = fetched.map(|fetched| Fetched {
                    generation,
                    ..fetched
                });
                Done::Fetched { txn, result }
            }
            Self::Compare(compare) => Done::Compared(compare.run()),
            Self::Compose(compose) => Done::Composed {
                txn: compose.txn,
                result: compose.run(),
            },
            Self::LookBack(look_back) => Done::LookedBack {
                txn: look_back.txn,
                result: look_back.run(),
            },
            Self::Lookup {
                lookup,
                file,
                place,
                tail,
            } => {
                let reader = Reader {
                    file: &*file,
                    wait: Wait::Yes,
                    tail,
                };
                Done::Looked {
                    lookup,
                    place,
                    result: lookup.follow(&reader, &file, place.pos),
                }
            }
            Self::Browse { query, file, tail } => Done::Browsed(query.answer(&file, tail)),
            Self::Recent(reader) => Done::Recent(reader.slice()),
            Self::SaveIndex {
                disk,
                path,
                index,
                tail,
            } => Done::IndexSaved {
                tail,
                result: index.save(tail, &*disk, &path),
            },
            Self::Blob(job) => Done::Blob(job.run()),
            Self::ReadLong(data) => Done::LongRead(data.read()),
            Self::ReadBlob(reader) => Done::BlobRead(reader.read()),
            Self::RaiseOids {
                disk,
                path,
                ceiling,
            } => Done::OidsRaised {
                ceiling,
                result: oids::save(&*disk, &path, ceiling),
            },
            Self::Witness {
                disk,
                path,
                file,
                inode,
                pos,
                tid,
            } => Done::Witnessed(
                tid.map_or_else(|| witness::tid_before(&*file, pos), Ok)
                    .map_err(StorageError::reading(&path))
                    .map(|tid| Witness { inode, pos, tid })
                    .and_then(|witness| witness.save(&*disk, &path)),
            ),
            Self::Pack(packer) => packer.run(),
            Self::Close(file) => {
                drop(file);
                Done::Closed
            }
            Self::Discard(rest) => {
                drop(rest);
                Done::Closed
            }
        }
    }
}

fn spill(
    disk: &dyn Disk,
    path: &Path,
    staging_file: Option<Arc<dyn File>>,
    pos: u64,
    data: &[Bytes],
) -> io::Result<Arc<dyn File>> {
    let file = match staging_file {
        Some(file) => file,
        None => disk.open_unnamed(path)?,
    };
    let mut slices: Vec<IoSlice<'_>> = data.iter().map(|data| IoSlice::new(data)).collect();
    file.write_at(&mut slices, pos)?;
    Ok(file)
}

fn fetch(
    reader: &Reader<'_>,
    serials: &[(Oid, u64)],
    staging_file: Option<&dyn File>,
    staged: &[(Oid, u64, usize)],
) -> Result<Fetched, ReadError> {
    let serials = serials
        .iter()
        .map(|(oid, pos)| Ok((*pos, reader.record_tid(*pos, *oid)?)));
    let staged = staged.iter().filter_map(|(oid, pos, len)| {
        staging_file.map(|file| Ok((*oid, read_whole(file, *pos, *len)?)))
    });
    Ok(Fetched {
        serials: serials.collect::<Result<_, ReadError>>()?,
        generation: 0,
        staged: staged.collect::<io::Result<_>>()?,
    })
}

/// Copies from a staging file. `copy_file_range` would save a copy between two buffers of the
/// system, but takes longer than this where the file systems do not share blocks; and of records,
/// which begin anywhere, they cannot.
pub(super) fn copy(
    from: &dyn File,
    mut from_pos: u64,
    mut len: usize,
    to: &dyn File,
    mut pos: u64,
) -> io::Result<()> {
    let mut buf = vec![0; len.min(COPY_LEN)];
    while len > 0 {
        let piece = &mut buf[..len.min(COPY_LEN)];
        if from.read_at(piece, from_pos)? != piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_at(&mut [IoSlice::new(piece)], pos)?;
        len -= piece.len();
        from_pos += piece.len() as u64;
        pos += piece.len() as u64;
    }
    Ok(())
}

/// Exactly `len` bytes, which were written there before.
fn read_whole(file: &dyn File, pos: u64, len: usize) -> io::Result<Bytes> {
    let mut buf = vec![0; len];
    if file.read_at(&mut buf, pos)? != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Bytes::from(buf))
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Append(_) => "Append",
            Self::Allocate { .. } => "Allocate",
            Self::Spill { .. } => "Spill",
            Self::Fetch { .. } => "Fetch",
            Self::Compare(_) => "Compare",
            Self::Compose(_) => "Compose",
            Self::LookBack(_) => "LookBack",
            Self::Lookup { .. } => "Lookup",
            Self::Browse { .. } => "Browse",
            Self::Recent(_) => "Recent",
            Self::SaveIndex { .. } => "SaveIndex",
            Self::Blob(_) => "Blob",
            Self::ReadLong(_) => "ReadLong",
            Self::ReadBlob(_) => "ReadBlob",
            Self::RaiseOids { .. } => "RaiseOids",
            Self::Witness { .. } => "Witness",
            Self::Pack(_) => "Pack",
            Self::Close(_) => "Close",
            Self::Discard(_) => "Discard",
        };
        f.write_str(name)
    }
}
