//! Why a dump ends early, and the exit status that tells.

use std::fmt;
use std::io;

use standby::exit::Exit;

/// Why no more is shown.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// What was to be read cannot be opened, or is nothing that we know.
    Input(String),
    /// What was to be written cannot be.
    Output(String),
    /// The system refuses a socket.
    System(String),
    /// Nobody reads standard output any more, which is no failure: `zeodump ... | head`.
    NobodyReads,
}

/// The status if all was read, but some of it was missing, damaged, or not understood.
pub(crate) const STATUS_INCOMPLETE: u8 = 1;

impl Failure {
    /// The exit status.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::NobodyReads => Exit::Stopped as u8,
            Self::Usage(_) => Exit::Usage as u8,
            Self::Input(_) => Exit::StorageFailed as u8,
            Self::Output(_) => Exit::WriteFailed as u8,
            Self::System(_) => Exit::Internal as u8,
        }
    }

    /// `what` cannot be opened or read.
    pub(crate) fn input(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Input(format!("{what}: {why}"))
    }

    /// The system refuses `what`.
    pub(crate) fn system(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::System(format!("{what}: {why}"))
    }

    /// Writing to `what` has failed.
    pub(crate) fn output(what: impl fmt::Display, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Output(format!("{what}: {error}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Input(text) | Self::Output(text) | Self::System(text) => {
                f.write_str(text)
            }
            Self::NobodyReads => f.write_str("nobody reads standard output"),
        }
    }
}
