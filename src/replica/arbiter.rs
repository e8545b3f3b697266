//! A node without data, which decides between two that have them: it promises epochs as others do,
//! and keeps a record of who is in sync. It acknowledges no entry: what it has not, it cannot give
//! back.

use super::Replica;
use super::event::Action;
use super::message::{Content, NodeKind, Position, Record};
use crate::group::MemberId;

impl Replica {
    pub(super) const fn is_arbiter(&self) -> bool {
        matches!(self.options.kind, NodeKind::Arbiter)
    }

    /// The primary wants this on record.
    pub(super) fn on_record(&mut self, from: &MemberId, record: Record) {
        let position = record.position;
        if !self.is_arbiter() || !self.hear(from, position.epoch) || self.durable != self.promised {
            return;
        }
        if position > self.log.record().position {
            self.actions
                .push(Action::Record(position, record.members.clone()));
            self.recording.insert(position, record.members);
        } else {
            self.send_one(from, Content::Recorded(position));
        }
    }

    /// It is on stable storage.
    pub(super) fn on_record_kept(&mut self, position: Position) {
        let Some(members) = self.recording.remove(&position) else {
            return;
        };
        self.recording.retain(|other, _| *other > position);
        self.log.put_on_record(position, members);
        if position.epoch == self.promised
            && let Some(leader) = &self.leader
        {
            let member = leader.member.clone();
            self.send_one(&member, Content::Recorded(position));
        }
    }
}
