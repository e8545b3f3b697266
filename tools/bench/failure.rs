//! Why a run ends early, and the exit status that tells.

use std::fmt;
use std::io;

use standby::zeo::client::{ClientError, Raised};

/// Why there is no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense, or the database is not prepared.
    Usage(String),
    /// The server said what is not so: its figures are worth nothing.
    Wrong(String),
    /// The server cannot be reached, hangs, hangs up, or refuses what it was asked.
    Server(String),
    /// Something of ours: the system refuses a socket, or standard output is gone.
    Own(String),
}

impl Failure {
    /// The exit status.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Wrong(_) => 1,
            Self::Usage(_) => 2,
            Self::Server(_) => 3,
            Self::Own(_) => 4,
        }
    }

    /// The system refuses `what`.
    pub(crate) fn own(what: &str, error: &io::Error) -> Self {
        Self::Own(format!("{what}: {error}"))
    }

    /// A call was answered with an exception that it should not have been answered with.
    pub(crate) fn raised(name: &str, raised: &Raised) -> Self {
        Self::Server(format!("{name} raised {raised}"))
    }

    /// A call was answered with something that is no answer to it.
    pub(crate) fn answer(name: &str) -> Self {
        Self::Wrong(format!("the answer to {name} is none"))
    }

    /// Says where it happened.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Usage(text) => Self::Usage(format!("{place}: {text}")),
            Self::Wrong(text) => Self::Wrong(format!("{place}: {text}")),
            Self::Server(text) => Self::Server(format!("{place}: {text}")),
            Self::Own(text) => Self::Own(format!("{place}: {text}")),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Wrong(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(text) => write!(f, "WRONG: {text}"),
            Self::Usage(text) | Self::Server(text) | Self::Own(text) => write!(f, "{text}"),
        }
    }
}
