//! What is wrong when a node is missing, in words that say where to look.

use std::time::Instant;

use super::paths::{FailureKind, Known};
use crate::ids::NodeId;
use crate::limits::{BEAT_FORGOTTEN, TROUBLE_LOG_INTERVAL, TROUBLE_STEADY};

/// What is known of the witnesses: addresses that tell whether this node is cut off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Witnessed {
    /// There are none.
    #[default]
    NoneNamed,
    /// None was asked yet.
    NotKnown,
    /// This one answers.
    Answers(String),
    /// None answers.
    Silent,
}

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It answers, and is not in our view, but in another one.
    Parted,
    /// It answers, and is in no view.
    NoDaemon,
    /// It answers, and is not in our view; whether it is in one it does not say.
    NotShown,
    /// It is in the view, and takes connections, and does not answer.
    Hung,
    /// It is in the view, and cannot be connected to.
    NoDirectPath,
    /// It is in the view, and somebody else is at its address.
    Stranger,
    /// It is not in the view, and its machine says that it does not run.
    NotRunning,
    /// It is not in the view, and its machine takes connections for it.
    HungAndGone,
    /// It is not in the view, and nothing comes of its machine.
    Gone,
}

impl Trouble {
    /// What is wrong with a node now, if anything is.
    pub(super) fn of(known: &Known, is_in_view: bool, now: Instant) -> Option<Self> {
        if known.is_direct(now) {
            // Without a view of our own it is not the other's fault.
            if known.is_here || !is_in_view {
                return None;
            }
            let beat = known.heard.and_then(|heard| heard.beat);
            return Some(match beat.map(|beat| beat.members) {
                None => Self::NotShown,
                Some(0) => Self::NoDaemon,
                Some(_) => Self::Parted,
            });
        }
        let kind = known.failure.as_ref().map(|failure| failure.kind);
        Some(match (known.is_here, kind) {
            (true, Some(FailureKind::Refused | FailureKind::Unreachable)) => Self::NoDirectPath,
            (true, Some(FailureKind::Stranger)) => Self::Stranger,
            (true, Some(FailureKind::Silent | FailureKind::Mute) | None) => Self::Hung,
            (false, Some(FailureKind::Refused | FailureKind::Stranger)) => Self::NotRunning,
            (false, Some(FailureKind::Mute)) => Self::HungAndGone,
            (false, Some(FailureKind::Silent | FailureKind::Unreachable) | None) => Self::Gone,
        })
    }

    /// In one word, for monitors.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Parted | Self::NoDaemon | Self::NotShown => "daemon",
            Self::Hung | Self::HungAndGone => "hung",
            Self::NoDirectPath => "path",
            Self::Stranger => "stranger",
            Self::NotRunning => "stopped",
            Self::Gone => "gone",
        }
    }

    /// For people
    pub(super) fn text(self, node: NodeId, known: &Known) -> String {
        let text = self.plain_text(node, known);
        match self {
            // It may have been stopped for good.
            Self::NotRunning | Self::HungAndGone | Self::Gone if !known.is_counted => format!(
                "{text}; it is not counted, and forgotten {} minutes after it went",
                BEAT_FORGOTTEN.as_secs() / 60
            ),
            _ => text,
        }
    }

    fn plain_text(self, node: NodeId, known: &Known) -> String {
        let at = &known.address;
        let why = known.failure.as_ref().map(|failure| &failure.why[..]);
        let why = why.unwrap_or("nothing comes back");
        let members = known.heard.and_then(|heard| heard.beat);
        let members = members.map_or(0, |beat| beat.members);
        match self {
            Self::Parted => format!(
                "the daemon does not show {node}, though its server answers at {at}, and is in a \
                 view of {members}: the daemons do not reach each other"
            ),
            Self::NoDaemon => format!(
                "the daemon does not show {node}, though its server answers at {at}, and is in no \
                 view: its daemon, or its way to it"
            ),
            Self::NotShown => format!(
                "the daemon does not show {node}, though its server answers at {at}: the daemon \
                 or its network"
            ),
            Self::Hung => format!(
                "{node}'s server does not answer at {at} though the daemon shows it: hung or \
                 stopped ({why})"
            ),
            Self::NoDirectPath => format!(
                "{node} cannot be connected to at {at} though the daemon shows it: its \
                 peer-address, or the network on the way there ({why})"
            ),
            Self::Stranger => format!(
                "at {at} there is not {node}, which the daemon shows: its peer-address, key-file \
                 or <ssl> ({why})"
            ),
            Self::NotRunning => format!(
                "{node} is not heard by either path, and its machine answers at {at}: its server \
                 does not run there ({why})"
            ),
            Self::HungAndGone => format!(
                "{node} is not heard by either path, and takes connections at {at}: its server is \
                 hung or stopped ({why})"
            ),
            Self::Gone => format!(
                "{node} is not heard by either path: the machine or its network is down ({at}: \
                 {why})"
            ),
        }
    }
}

/// What is wrong with all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Overall {
    /// Nothing, or each node has its own trouble.
    #[default]
    Fine,
    /// Others answer, which are in views, and this node is in none.
    NotInView,
    /// Others answer, and none is in a view.
    NobodyInView,
    /// Nobody is heard; there is no witness.
    Unheard,
    /// Nobody is heard, nor is a witness.
    Isolated,
    /// No other node is heard, and somebody else is.
    OthersGone,
}

impl Overall {
    /// For people. `names` are those of nodes that answer, or whose machines do.
    pub(super) fn text(self, names: &str, witnessed: &Witnessed) -> Option<String> {
        Some(match self {
            Self::Fine => return None,
            Self::NotInView => format!(
                "this node is in no view, though the servers of others answer ({names}): the \
                 daemon of this node, or its way to it"
            ),
            Self::NobodyInView => format!(
                "no node is in a view, though their servers answer ({names}): the daemon does not \
                 run, or does not let them in"
            ),
            Self::Unheard => "no other node is heard by either path: all others are gone, or this \
                              node is cut off (there is no witness to tell)"
                .to_owned(),
            Self::Isolated => "isolated: no other node and no witness is heard".to_owned(),
            Self::OthersGone => match witnessed {
                Witnessed::Answers(witness) => {
                    format!("the others are gone, the network is there: {witness} answers")
                }
                _ => {
                    format!("the others are gone, the network is there: machines answer ({names})")
                }
            },
        })
    }
}

/// Something that counts only when it lasts.
#[derive(Clone, Debug, Default)]
pub(super) struct Steady<T> {
    seen: T,
    /// Since when that is so; `None` from the beginning.
    since: Option<Instant>,
    /// What has lasted.
    held: T,
    /// What was told last, and when; but for that all is well.
    told: Option<(T, Instant)>,
    /// What holds was not told, as it was just before.
    is_quiet: bool,
}

impl<T: Copy + PartialEq + Default> Steady<T> {
    /// All is well.
    pub(super) const fn new(fine: T) -> Self {
        Self {
            seen: fine,
            since: None,
            held: fine,
            told: None,
            is_quiet: false,
        }
    }

    /// What has lasted.
    pub(super) const fn held(&self) -> &T {
        &self.held
    }

    /// It is so now. Whether that is to be told: what comes and goes is told once in a while.
    pub(super) fn see(&mut self, now_it_is: T, now: Instant) -> bool {
        if now_it_is != self.seen {
            self.seen = now_it_is;
            self.since = Some(now);
        }
        let has_lasted = self.since.is_none_or(|since| now >= since + TROUBLE_STEADY);
        if self.seen == self.held || !has_lasted {
            return false;
        }
        self.held = self.seen;
        if self.held == T::default() {
            return !std::mem::take(&mut self.is_quiet);
        }
        let is_again =
            |(what, at): (T, Instant)| what == self.held && now < at + TROUBLE_LOG_INTERVAL;
        self.is_quiet = self.told.is_some_and(is_again);
        if !self.is_quiet {
            self.told = Some((self.held, now));
        }
        !self.is_quiet
    }
}
