//! How things are with a replica, for people.

use std::time::Instant;

use super::event::Serving;
use super::members::Voter;
use super::message::{Position, Role, State};
use super::settings::Settings;
use super::{Office, Replica};
use crate::group::{MemberId, ViewId};
use crate::ids::{Epoch, HistoryId, Seq, Tid};

/// What a replica knows.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The lineage of its data.
    pub history: HistoryId,
    /// Itself
    pub me: Voter,
    /// What it does.
    pub role: Role,
    /// The highest epoch that it has promised.
    pub promised: Epoch,
    /// The end of its log
    pub last: Position,
    /// What it knows to be committed.
    pub committed: Seq,
    /// What it has applied.
    pub applied: Seq,
    /// The last transaction in its log
    pub last_tid: Tid,
    /// As of what is committed.
    pub settings: Settings,
    /// The data begin with this transaction, if not zero.
    pub history_from: Tid,
    /// The view that it is in, if it is in one.
    pub view: Option<ViewId>,
    /// The primary that it follows, or itself in office.
    pub primary: Option<MemberId>,
    /// When that was heard of last; `None` in office.
    pub heard: Option<Instant>,
    /// What clients may do.
    pub serving: Serving,
    /// Those of its view that have said something, itself included.
    pub members: Vec<Seen>,
}

/// A member of its view, as it knows it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name in the group
    pub member: MemberId,
    /// Its name and disk
    pub voter: Voter,
    /// What it has said of itself, which may be a moment ago.
    pub state: State,
    /// What it has acknowledged and applied since, if this node is in office.
    pub acked: Option<(Seq, Seq)>,
}

impl Replica {
    /// The epoch of the primary that it follows, and has caught up with.
    pub fn follows(&self) -> Option<Epoch> {
        let leader = self.leader.as_ref()?;
        leader.is_level.then_some(self.promised)
    }

    /// What it knows.
    pub fn overview(&self) -> Overview {
        let acks = match &self.office {
            Office::Primary(primary) => Some(&primary.acks),
            Office::Replica | Office::Candidate(_) => None,
        };
        let me = self.view.as_ref().map(super::view::View::me);
        let stated = self.view.iter().flat_map(super::view::View::stated);
        let members = stated.map(|(member, stated)| {
            let voter = stated.sender.voter();
            let acked = acks.and_then(|acks| acks.get(&voter));
            Seen {
                member: member.clone(),
                voter,
                state: stated.state.clone(),
                acked: acked.map(|acked| (acked.seq, acked.applied)),
            }
        });
        let leader = self.leader.as_ref();
        Overview {
            history: self.history,
            me: self.me,
            role: self.role(),
            promised: self.promised,
            last: self.log.last(),
            committed: self.log.committed(),
            applied: self.log.applied(),
            last_tid: self.log.last_tid(),
            settings: self.log.settled().clone(),
            history_from: self.log.history_from(),
            view: self.view.as_ref().map(|view| view.id),
            primary: match self.office {
                Office::Primary(_) => me.cloned(),
                Office::Replica | Office::Candidate(_) => leader.map(|it| it.member.clone()),
            },
            heard: leader.map(|leader| leader.heard),
            serving: self.finishes.served(),
            members: members.collect(),
        }
    }
}
