//! What can go wrong with a journal, sorted by what it means to the node.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::ids::{Digest, Epoch, Seq};
use crate::storage::disk::is_lack_of_room;

/// The journal cannot be opened, written or read.
#[derive(Debug)]
pub enum JournalError {
    /// The system refused. If it was a write or a sync, the journal takes no more.
    Io {
        /// What was tried: "open", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// There is no room for what was to be written. Nothing was changed; it may be tried again.
    NoSpace {
        /// The segment.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Another process, or another journal of this one, has the directory.
    Locked {
        /// The file that is locked.
        path: PathBuf,
    },
    /// There is no journal, and none was to be created.
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Something has failed before. Only opening anew finds out what is there.
    Failed {
        /// What it was.
        first: String,
    },
    /// What was on stable storage is not what it was. The node must not vote: it may have promised
    /// and acknowledged what it no longer knows.
    Damaged {
        /// The segment, or the file of the state.
        path: PathBuf,
        /// Where in it, in bytes.
        pos: u64,
        /// The entry that should be there, or the first of several; zero for files of the state.
        seq: Seq,
        /// What is wrong.
        fault: Fault,
    },
    /// What was asked for contradicts the log, and was not done.
    Refused(Refusal),
}

/// What is wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No header that belongs to this place.
    Header,
    /// The body is not that of the digest.
    Body,
    /// The file ends within the entry, or holds zeros where it should be.
    Gone,
    /// A segment, or a file of the state, is not there.
    NoFile,
    /// The entry does not continue the one before.
    Chain {
        /// The digest of the one before.
        expected: Digest,
        /// The digest that it follows.
        found: Digest,
    },
    /// The number is not the next, or the epoch an earlier one.
    Order {
        /// The number that it has.
        found: Seq,
    },
    /// Not a file of the state in our form, as a whole.
    State,
    /// It belongs to another history, disk or node.
    Foreign,
}

/// Why something was not done. The log is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The first entry of a group, or one behind another, does not continue the log.
    Order {
        /// Number of the entry.
        found: Seq,
        /// The one that would be next.
        expected: Seq,
    },
    /// It does not follow the last entry by its digest, or its epoch is an earlier one.
    Chain {
        /// Number of the entry.
        seq: Seq,
    },
    /// What is committed is never cut.
    BelowCommit {
        /// Where to cut.
        after: Seq,
        /// What is committed, or applied.
        committed: Seq,
    },
    /// A higher epoch was promised.
    Promised {
        /// The one that was asked for.
        epoch: Epoch,
        /// The one that was promised.
        promised: Epoch,
    },
    /// The entry is not there any more: it has been released.
    Released {
        /// The first that is there.
        first: Seq,
    },
    /// The log was cut while it was read.
    Cut,
}

impl JournalError {
    /// For `map_err` on calls of the disk.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(super) fn damaged(path: &Path, pos: u64, seq: Seq, fault: Fault) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            pos,
            seq,
            fault,
        }
    }
}

impl From<Refusal> for JournalError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl JournalError {
    /// The same of something that may be tried again if the disk was full.
    pub(crate) fn full(self) -> Self {
        match self {
            Self::Io { path, source, .. } if is_lack_of_room(&source) => {
                Self::NoSpace { path, source }
            }
            other => other,
        }
    }
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io {
                action,
                path,
                source,
            } => write!(f, "{}: cannot {action}: {source}", path.display()),
            Self::NoSpace { path, source } => {
                write!(f, "{}: no room: {source}", path.display())
            }
            Self::Locked { path } => write!(f, "{}: locked by another server", path.display()),
            Self::Missing { path } => write!(f, "{}: no journal is here", path.display()),
            Self::Failed { first } => {
                write!(f, "journal: refused after an earlier failure ({first})")
            }
            Self::Damaged {
                path,
                pos,
                seq,
                fault,
            } => {
                write!(f, "{}: damaged at byte {pos}", path.display())?;
                if *seq != Seq::ZERO {
                    write!(f, " (entry {seq})")?;
                }
                write!(f, ": {fault}")
            }
            Self::Refused(refusal) => write!(f, "journal: {refusal}"),
        }
    }
}

impl std::error::Error for JournalError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::NoSpace { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("not a header of this place"),
            Self::Body => f.write_str("the body is not that of its digest"),
            Self::Gone => f.write_str("what was synced is not there"),
            Self::NoFile => f.write_str("the file is missing"),
            Self::Chain { expected, found } => {
                write!(f, "it follows {found} (expected {expected})")
            }
            Self::Order { found } => write!(f, "entry {found} is out of order"),
            Self::State => f.write_str("not what was written"),
            Self::Foreign => f.write_str("it belongs to another history, disk or node"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order { found, expected } => {
                write!(f, "entry {found} is not the next one ({expected})")
            }
            Self::Chain { seq } => write!(f, "entry {seq} does not continue the log"),
            Self::BelowCommit { after, committed } => {
                write!(f, "cannot cut after {after}: {committed} is committed")
            }
            Self::Promised { epoch, promised } => {
                write!(f, "cannot promise epoch {epoch}: {promised} is promised")
            }
            Self::Released { first } => write!(f, "the first entry that is kept is {first}"),
            Self::Cut => f.write_str("the log was cut while it was read"),
        }
    }
}
