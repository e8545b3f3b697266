//! How the process ends, for service managers and scripts.

use std::process::ExitCode;

/// The exit status. A larger one is graver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Stopped as asked, by SIGTERM or SIGINT.
    Stopped = 0,
    /// SIGHUP without a log file to reopen: runzeo's "restart me".
    HungUp = 1,
    /// The command line or the configuration is wrong, a log file cannot be opened, or an address
    /// is in use or of no machine. Starting again will not help; zdaemon, too, does not restart
    /// after this one.
    Usage = 2,
    /// A storage could not be opened.
    StorageFailed = 3,
    /// A write or sync failed, or what was on its way to the disk may not have arrived.
    WriteFailed = 4,
    /// The system refused something that the server cannot do without: a thread, or an address
    /// that it does not let us have, that this machine has not got (yet), or whose name no server
    /// of names tells now. Starting again may help.
    Internal = 5,
    /// What this node of a cluster has contradicts what the others have, or its journal fails. To
    /// be looked at by somebody; starting again does not help, or may do harm to nobody but it.
    NodeStopped = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
