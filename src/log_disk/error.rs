//! What can go wrong with the log and what is made of it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::entry::Point;
use crate::ids::{Digest, HistoryId, Oid, Seq, Tid};
use crate::replica::codec::CodecError;
use crate::replica::settings::StorageName;
use crate::storage::disk::is_lack_of_room;
use crate::storage::error::{ReadError, StorageError};
use crate::storage::journal::JournalError;
use crate::storage::transfer::TransferError;

/// Why a node cannot start, or must not go on; or why something was not done.
#[derive(Debug)]
pub enum LogDiskError {
    /// The journal, or a file beside it.
    Journal(JournalError),
    /// A data file.
    Storage(StorageError),
    /// A data file where it is read.
    Read(ReadError),
    /// A file of a blob, or of a copy of the database.
    Io {
        /// What was tried: "open", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The body of an entry is no transaction.
    Transaction {
        /// The entry
        seq: Seq,
        /// Why
        error: TransferError,
    },
    /// The body of an entry is no change.
    Change {
        /// The entry
        seq: Seq,
        /// Why
        error: CodecError,
    },
    /// An entry is of a kind that is not known.
    Kind {
        /// The entry
        seq: Seq,
        /// Its kind
        kind: u8,
    },
    /// The log is about a storage that is not configured here, or of which nothing is known.
    Unknown(StorageName),
    /// A data file ends with a transaction that is not in the log: somebody else has written to it,
    /// or it is of another database.
    Ahead {
        /// The data file
        path: PathBuf,
        /// The transaction
        tid: Tid,
    },
    /// A data file has less than was on stable storage: it is an older copy, or was cut.
    Behind {
        /// The data file
        path: PathBuf,
        /// Its last transaction
        found: Tid,
        /// What it had once
        expected: Tid,
    },
    /// The file of the settings is about a place that the log does not have.
    OutsideLog(Point),
    /// An entry is asked for that is not there.
    NoEntry(Seq),
    /// A file of a blob is not there as a whole. Nothing was done.
    NoBlob {
        /// Its digest
        digest: Digest,
        /// Its object
        oid: Oid,
    },
    /// What came for a blob is not what it is named. Nothing was kept of it.
    WrongBlob {
        /// The digest that it should have.
        digest: Digest,
    },
    /// There is a journal of this history already. Nothing was done.
    Exists {
        /// The directory
        path: PathBuf,
        /// Its history
        history: HistoryId,
    },
    /// A copy is of no use here: why. Nothing was done.
    Useless(&'static str),
    /// A copy could not be made. What there was is as it was.
    Uncopied(Box<Self>),
    /// The file of a copy ends too early.
    Short {
        /// The file
        path: PathBuf,
    },
    /// An entry cannot be applied now, and has to be. It may be tried again.
    Held {
        /// The entry
        seq: Seq,
        /// Why
        why: String,
    },
    /// The file of a copy is not what its digest says.
    Garbled {
        /// The file
        path: PathBuf,
    },
    /// It was not to go on.
    Cancelled,
    /// A failure before. Only opening anew finds out what is there.
    Failed {
        /// What it was.
        first: String,
    },
}

impl LogDiskError {
    /// For `map_err` on calls of the disk.
    pub(super) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Whether a file was not replaced as there was no room for the new one.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Journal(JournalError::Io { source, .. })
            | Self::Storage(StorageError::Io { source, .. }) => is_lack_of_room(source),
            _ => false,
        }
    }

    /// The same of something that may be tried again if the disk was full: nothing is there of it.
    pub(super) fn full(self) -> Self {
        match self {
            Self::Io { path, source, .. } if is_lack_of_room(&source) => {
                JournalError::NoSpace { path, source }.into()
            }
            other => other,
        }
    }

    /// Whether there was no room, and nothing was done: it may be tried again.
    pub const fn is_for_lack_of_room(&self) -> bool {
        matches!(self, Self::Journal(JournalError::NoSpace { .. }))
    }

    /// Whether there was no room for a file.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_lack_of_room(source))
    }

    /// Whether nothing was done, and all is as it was before.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NoBlob { .. }
                | Self::WrongBlob { .. }
                | Self::Exists { .. }
                | Self::Useless(_)
                | Self::Uncopied(_)
                | Self::Held { .. }
                | Self::Journal(JournalError::Refused(_) | JournalError::NoSpace { .. })
                | Self::Storage(StorageError::NoSpace { .. })
        )
    }
}

impl From<JournalError> for LogDiskError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

impl From<StorageError> for LogDiskError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<ReadError> for LogDiskError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl fmt::Display for LogDiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journal(error) => error.fmt(f),
            Self::Storage(error) => error.fmt(f),
            Self::Read(error) => error.fmt(f),
            Self::Io {
                action,
                path,
                source,
            } => write!(f, "{}: cannot {action}: {source}", path.display()),
            Self::Transaction { seq, error } => write!(f, "entry {seq}: {error}"),
            Self::Change { seq, error } => write!(f, "entry {seq}: {error}"),
            Self::Kind { seq, kind } => write!(f, "entry {seq} is of the unknown kind {kind}"),
            Self::Unknown(name) => {
                write!(
                    f,
                    "storage \"{name}\" is not both in the log and configured"
                )
            }
            Self::Ahead { path, tid } => write!(
                f,
                "{}: its last transaction, {tid}, is not in the log",
                path.display()
            ),
            Self::Behind {
                path,
                found,
                expected,
            } => write!(
                f,
                "{}: ends with transaction {found}, and had {expected} once",
                path.display()
            ),
            Self::OutsideLog(point) => write!(
                f,
                "the data are as of entry {} of epoch {}, which the journal does not have",
                point.seq, point.epoch
            ),
            Self::NoEntry(seq) => write!(f, "entry {seq} is not in the journal"),
            Self::NoBlob { digest, oid } => {
                write!(f, "the file of the blob of {oid} is not there ({digest})")
            }
            Self::WrongBlob { digest } => {
                write!(
                    f,
                    "a blob came with another content ({digest} was expected)"
                )
            }
            Self::Exists { path, history } => {
                write!(f, "{}: has a journal of history {history}", path.display())
            }
            Self::Useless(why) => write!(f, "the copy is of no use here: {why}"),
            Self::Uncopied(error) => write!(f, "no copy: {error}"),
            Self::Short { path } => write!(f, "{}: ended while it was copied", path.display()),
            Self::Held { seq, why } => write!(f, "entry {seq} cannot be applied: {why}"),
            Self::Garbled { path } => {
                write!(f, "{}: garbled while it was copied", path.display())
            }
            Self::Cancelled => f.write_str("it was given up"),
            Self::Failed { first } => write!(f, "refused after an earlier failure ({first})"),
        }
    }
}

impl std::error::Error for LogDiskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Journal(error) => Some(error),
            Self::Storage(error) => Some(error),
            Self::Read(error) => Some(error),
            Self::Io { source, .. } => Some(source),
            Self::Transaction { error, .. } => Some(error),
            Self::Change { error, .. } => Some(error),
            Self::Uncopied(error) => Some(error),
            _ => None,
        }
    }
}
