//! What the nodes agree on besides the data, and the entries that change it.
//!
//! Settings are changed by entries of the log, and by nothing else. So each place in the log has
//! its settings; every barrier entry repeats them as a whole.

use std::collections::BTreeMap;
use std::time::Duration;

use super::members::Members;
use crate::ids::{Oid, Seq, Tid};

/// The name of a storage, as clients name it; several may share one log.
pub type StorageName = String;

/// What the nodes have agreed on, as of some entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Who is counted.
    pub members: Members,
    /// Where the primary is. Nodes of other sites do not take over by themselves. Empty before the
    /// first barrier entry.
    pub home: String,
    /// Of each storage: oids below this may have been handed out. None is handed out at or above
    /// it.
    pub ceilings: BTreeMap<StorageName, Oid>,
    /// Of each storage: the last pack that was ordered.
    pub packs: BTreeMap<StorageName, Pack>,
    /// If not zero: the next barrier entry is a jump, with this tid or a later one, since what was
    /// in front of it may have been lost. Zero as of that entry.
    pub jump: Tid,
}

/// A pack that was ordered, with all that were ordered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pack {
    /// What is current as of this stays, and all that is later.
    pub tid: Tid,
    /// References are looked for up to this entry, so that all nodes find the same garbage.
    pub at: Seq,
}

/// An entry that is no transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The first entry of an epoch, with all settings. If the header of the entry has a tid, then
    /// an empty transaction with that tid is written, which is the jump behind a forced promotion.
    Barrier(Settings),
    /// Oids of a storage may be handed out below this.
    Ceiling {
        /// Whose
        storage: StorageName,
        /// The new ceiling
        oid: Oid,
    },
    /// Other members are counted from this entry on.
    Members(Members),
    /// A storage is to be packed, by each node in its time. `at` is the entry itself.
    Pack {
        /// Which
        storage: StorageName,
        /// As of when
        tid: Tid,
    },
}

/// What the body of an entry is; the header has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Change::Barrier`]
    Barrier,
    /// A transaction; what is in it only the storage knows.
    Transaction,
    /// [`Change::Ceiling`]
    Ceiling,
    /// [`Change::Members`]
    Members,
    /// [`Change::Pack`]
    Pack,
}

impl Kind {
    /// Its number in the header of an entry.
    pub const fn number(self) -> u8 {
        match self {
            Self::Barrier => 1,
            Self::Transaction => 2,
            Self::Ceiling => 3,
            Self::Members => 4,
            Self::Pack => 5,
        }
    }

    /// The kind of a number; `None` if it has none.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Barrier,
            2 => Self::Transaction,
            3 => Self::Ceiling,
            4 => Self::Members,
            5 => Self::Pack,
            _ => return None,
        })
    }
}

impl Change {
    /// The kind of its entry.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Barrier(_) => Kind::Barrier,
            Self::Ceiling { .. } => Kind::Ceiling,
            Self::Members(_) => Kind::Members,
            Self::Pack { .. } => Kind::Pack,
        }
    }
}

/// A lost transaction may have any tid up to this much behind the last that is known.
const JUMP: Duration = Duration::from_secs(20 * 60);

/// Oids that may have been handed out behind the last ceiling that is known.
const OIDS_JUMP: u64 = 1_000_000;

impl Settings {
    /// For a new history that begins with what is left of this one, as its majority is gone for
    /// good and an administrator accepts the loss: other members, and a jump of tids and oids.
    /// `storages` are all that there are, `last` is the largest tid that anybody has heard of.
    ///
    /// Clients' caches that have seen what is lost are cleared when they come back: what is lost is
    /// then in front of the jump, and in no epoch of the new history.
    pub fn after_loss(
        &self,
        members: Members,
        storages: &[StorageName],
        last: Tid,
        wall: Duration,
    ) -> Self {
        let time = last.unix_time().max(wall) + JUMP;
        // A node that never heard of a ceiling may be all that is left.
        let unheard = storages.iter().map(|storage| (storage, &Oid::ZERO));
        let ceilings = unheard.chain(&self.ceilings);
        let raised = |oid: &Oid| Oid(oid.0.saturating_add(OIDS_JUMP).min(Oid::END.0));
        let ceilings = ceilings.map(|(storage, oid)| (storage.clone(), raised(oid)));
        Self {
            members,
            home: String::new(),
            ceilings: ceilings.collect(),
            packs: self.packs.clone(),
            jump: Tid::from_unix_time(time).max(last.next()),
        }
    }

    /// These, and the change by the entry `seq`.
    pub fn changed(&self, change: &Change, seq: Seq) -> Self {
        let mut settings = self.clone();
        match change {
            Change::Barrier(all) => settings = all.clone(),
            Change::Ceiling { storage, oid } => {
                let ceiling = settings.ceilings.entry(storage.clone()).or_default();
                *ceiling = (*ceiling).max(*oid);
            }
            Change::Members(members) => settings.members = members.clone(),
            Change::Pack { storage, tid } => {
                let pack = Pack { tid: *tid, at: seq };
                settings.packs.insert(storage.clone(), pack);
            }
        }
        settings
    }
}
