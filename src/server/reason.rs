//! Why connections end, and what is said of it.

use std::time::Duration;

use log::Level;

use super::LOG;
use super::client::Who;
use super::refusals::Repeated;
use crate::zeo::session::SessionError;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Reason {
    ClientClosed,
    Broken(String),
    /// TLS does not let it in.
    Refused {
        problem: String,
        repeated: Repeated,
    },
    NotRegistered,
    /// It takes nothing of what it is told.
    Deaf,
    StatusAnswered,
    Session(SessionError),
    /// An asynchronous call failed; there is no other way to say so.
    Call {
        name: &'static str,
        problem: String,
    },
    TransactionTimeout(Duration),
    FinishLost,
    /// Another node is the primary, or nobody is.
    NotPrimary,
    /// It has waited for long, or came at the wrong moment: it is to try all its addresses again.
    Bounced,
    /// It reads, and wants to write.
    Fallback,
    /// What it reads is replaced.
    Replaced,
    /// Nobody knows whether its transaction was committed.
    FinishUnknown,
    /// It wants to know what is committed, and nobody here does.
    NotSure,
    /// It wants oids, and there are none to be had here.
    NoOids,
}

impl Reason {
    /// A client's mistake is never an error of ours; one that never registered may be a port scan
    /// or a load balancer, and is worth no line by default.
    pub(super) fn log(&self, who: &Who, registered: bool) {
        match self {
            Self::ClientClosed if registered => log::info!(target: LOG, "{who} disconnected"),
            Self::ClientClosed => log::debug!(target: LOG, "{who} gone before it registered"),
            Self::StatusAnswered => log::debug!(target: LOG, "{who} ruok answered"),
            Self::Broken(error) if registered => {
                log::info!(target: LOG, "{who} disconnected ({error})")
            }
            Self::Broken(error) => {
                log::debug!(target: LOG, "{who} gone before it registered ({error})")
            }
            Self::Refused { problem, repeated } => {
                repeated.log(Level::Warn, who, &format!("TLS: {problem}"))
            }
            Self::NotRegistered => {
                log::info!(target: LOG, "{who} closed (it did not register in time)")
            }
            Self::Deaf => {
                log::warn!(target: LOG, "{who} closed (it reads nothing, and more and more waits)")
            }
            Self::Session(error) => log::warn!(target: LOG, "{who} closed ({error})"),
            Self::Call { name, problem } => {
                log::warn!(target: LOG, "{who} closed ({name}: {problem})")
            }
            // Others have waited all the time, and it may happen again: somebody has to look.
            Self::TransactionTimeout(held_for) => log::error!(
                target: LOG,
                "{who} Transaction timeout after {} seconds: closed (voted, and did not finish)",
                held_for.as_secs()
            ),
            Self::FinishUnknown => log::warn!(
                target: LOG,
                "{who} closed (nobody can tell whether its transaction was committed)"
            ),
            Self::Bounced => log::debug!(target: LOG, "{who} sent to begin anew"),
            Self::NotPrimary => log::info!(target: LOG, "{who} closed (not the primary)"),
            Self::Fallback => log::info!(target: LOG, "{who} closed (it wants to write)"),
            Self::Replaced => log::info!(target: LOG, "{who} closed (the data are replaced)"),
            Self::NotSure => log::info!(target: LOG, "{who} closed (cut off from the primary)"),
            Self::NoOids => log::info!(target: LOG, "{who} closed (no new oids here)"),
            Self::FinishLost => {
                log::error!(target: LOG, "{who} closed (its tpc_finish met a failed disk)")
            }
        }
    }
}
