//! What can go wrong below the transactions, sorted by what it means to the caller.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::ids::{Oid, Tid};

/// The data file cannot be opened, or no longer be used.
#[derive(Debug)]
pub enum StorageError {
    /// The system refused.
    Io {
        /// What was tried: "open", "cut", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Another process, or another storage of this one, has the file.
    Locked {
        /// The file that is locked: the data file or its `.lock`.
        path: PathBuf,
    },
    /// The file does not begin with one of the magics in [`super::format`].
    NotADataFile {
        /// The file.
        path: PathBuf,
        /// Its first bytes, four at most.
        found: Vec<u8>,
    },
    /// The file is longer than its positions can say.
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// No tid is left above that of the last transaction.
    TidTooHigh {
        /// The file.
        path: PathBuf,
        /// The tid.
        tid: Tid,
    },
    /// There is no space for what was to be written. Nothing was; it may be tried again.
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A transaction to be applied is not newer than the last one, or leaves no tid above.
    TidOrder {
        /// The file.
        path: PathBuf,
        /// Its tid.
        tid: Tid,
        /// That of the last one.
        last: Tid,
    },
    /// A transaction has the blob of an object, and blobs are not kept here.
    NoBlobs {
        /// The data file.
        path: PathBuf,
        /// The object.
        oid: Oid,
    },
    /// Something else stands under the name of the file that is in use.
    Replaced {
        /// The name.
        path: PathBuf,
    },
    /// A write or sync has failed before. Only opening anew finds out what is there.
    Failed {
        /// The file.
        path: PathBuf,
        /// What it was.
        first: String,
    },
    /// The blob directory has a layout that is not known.
    BlobLayout {
        /// The file that names it.
        path: PathBuf,
        /// What it says.
        found: Vec<u8>,
    },
    /// Temporary files of blobs would be on another file system than the blobs.
    BlobsApart {
        /// The directory of the temporary files.
        path: PathBuf,
    },
    /// The file contradicts itself before its end, and nothing was changed.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        damage: Damage,
    },
}

impl StorageError {
    /// For `map_err` on calls of the disk.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// A failure to read `path` while it is opened.
    pub fn reading(path: &Path) -> impl FnOnce(ReadError) -> Self {
        let path = path.to_owned();
        move |error| match error {
            ReadError::Damaged(damage) => Self::Damaged { path, damage },
            ReadError::Io(source) => Self::Io {
                action: "read",
                path,
                source,
            },
            ReadError::WouldBlock => Self::Io {
                action: "read",
                path,
                source: io::ErrorKind::WouldBlock.into(),
            },
        }
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io {
                action,
                path,
                source,
            } => write!(f, "{}: cannot {action}: {source}", path.display()),
            Self::Locked { path } => {
                write!(f, "{}: locked by another server", path.display())
            }
            Self::NotADataFile { path, found } => write!(
                f,
                "{}: not a data file (begins with '{}', expected 'FS30' or 'FS21')",
                path.display(),
                found.escape_ascii()
            ),
            Self::TooLong { path, len } => {
                write!(f, "{}: too long ({len} bytes)", path.display())
            }
            Self::TidTooHigh { path, tid } => write!(
                f,
                "{}: the tid of the last transaction, {tid}, leaves none for another",
                path.display()
            ),
            Self::NoSpace { path, source } => {
                write!(
                    f,
                    "{}: no space for a transaction: {source}",
                    path.display()
                )
            }
            Self::TidOrder { path, tid, last } => write!(
                f,
                "{}: transaction {tid} cannot follow {last}",
                path.display()
            ),
            Self::NoBlobs { path, oid } => write!(
                f,
                "{}: a blob of {oid}, and no blob directory is configured",
                path.display()
            ),
            Self::Replaced { path } => write!(
                f,
                "{}: the file was replaced while it was in use",
                path.display()
            ),
            Self::Failed { path, first } => write!(
                f,
                "{}: refused after an earlier failure ({first})",
                path.display()
            ),
            Self::BlobLayout { path, found } => write!(
                f,
                "{}: unknown layout \"{}\" of a blob directory (expected \"bushy\" or \"lawn\")",
                path.display(),
                found.escape_ascii()
            ),
            Self::BlobsApart { path } => write!(
                f,
                "{}: on another file system than the blob directory (expected the same)",
                path.display()
            ),
            Self::Damaged { path, damage } => write!(f, "{}: {damage}", path.display()),
        }
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// A record could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// It is not in memory; ask again with [`super::read::Wait::Yes`] where waiting is allowed.
    WouldBlock,
    /// The file contradicts itself.
    Damaged(Damage),
    /// The system could not read it.
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::WouldBlock {
            Self::WouldBlock
        } else {
            Self::Io(error)
        }
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WouldBlock => f.write_str("not in memory"),
            Self::Damaged(damage) => damage.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {}

/// A place where the file contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Position of the header, record or length that is wrong.
    pub pos: u64,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What was found and what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file, or its committed part, ends too early.
    Short {
        /// Bytes that the value needs.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// A transaction is shorter than its own header, or longer than the file.
    TxnLength {
        /// Length in the header.
        found: u64,
        /// The least that the header needs.
        min: u64,
        /// The most that the file has room for.
        max: u64,
    },
    /// An unfinished transaction does not end the file.
    Unfinished {
        /// Position of a finished transaction behind it.
        next: u64,
    },
    /// The length behind a transaction differs from the one in its header.
    RedundantLength {
        /// Length behind the transaction.
        found: u64,
        /// Length in its header.
        expected: u64,
    },
    /// No transaction that ends here can have this length.
    BackwardLength {
        /// Length before the position.
        found: u64,
        /// The most there is room for.
        max: u64,
    },
    /// A data record reaches over the end of its transaction, or of the file.
    RecordLength {
        /// Length of the record.
        found: u64,
        /// The most there is room for.
        max: u64,
    },
    /// A data record names another transaction than the one it stands in.
    TxnPosition {
        /// Position in the record.
        found: u64,
        /// Position of the transaction.
        expected: u64,
    },
    /// A data record has a version, which no ZODB since 3.9 writes or reads.
    Version {
        /// Length of the version's name.
        found: u16,
    },
    /// A pointer led to a record of another object.
    WrongOid {
        /// Oid in the record.
        found: Oid,
        /// Oid that was looked for.
        expected: Oid,
    },
    /// A pointer to an earlier record does not lead back.
    Pointer {
        /// The position that it has.
        found: u64,
    },
    /// A transaction is not newer than the one before it.
    TidOrder {
        /// Its tid.
        found: Tid,
        /// That of the one before.
        last: Tid,
    },
    /// No finished transaction has this status.
    UnknownStatus {
        /// The byte.
        found: u8,
    },
    /// The object is larger than any client could be sent.
    DataLength {
        /// Length in the header.
        found: u64,
        /// See [`crate::limits::FRAME_LEN_MAX`].
        max: u64,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damaged at {}: ", self.pos)?;
        match self.fault {
            Fault::Short { needed, found } => {
                write!(f, "ends after {found} bytes (expected {needed})")
            }
            Fault::TxnLength { found, min, max } => {
                write!(f, "transaction length {found} (expected {min} to {max})")
            }
            Fault::Unfinished { next } => write!(
                f,
                "unfinished transaction, and a finished one at {next} (expected the end)"
            ),
            Fault::RedundantLength { found, expected } => write!(
                f,
                "length behind the transaction {found} (expected {expected})"
            ),
            Fault::BackwardLength { found, max } => write!(
                f,
                "length of the transaction that ends here {found} (expected at most {max})"
            ),
            Fault::RecordLength { found, max } => {
                write!(f, "record length {found} (expected at most {max})")
            }
            Fault::TxnPosition { found, expected } => write!(
                f,
                "record of the transaction at {found} (expected {expected})"
            ),
            Fault::Version { found } => {
                write!(f, "version name of {found} bytes (expected none)")
            }
            Fault::WrongOid { found, expected } => {
                write!(f, "record of object {found} (expected {expected})")
            }
            Fault::Pointer { found } => write!(
                f,
                "pointer to an earlier record {found} (expected a record before this one)"
            ),
            Fault::TidOrder { found, last } => {
                write!(f, "transaction {found} is not newer than {last} before it")
            }
            Fault::UnknownStatus { found } => write!(
                f,
                "transaction with status '{}' (expected ' ', 'p' or 'u')",
                found.escape_ascii()
            ),
            Fault::DataLength { found, max } => {
                write!(f, "object of {found} bytes (expected at most {max})")
            }
        }
    }
}

impl std::error::Error for Damage {}
