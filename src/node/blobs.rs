//! What waits for blobs: a proposal counts as synced with its blobs, or not at all, so these are
//! fetched before the replica hears of it. Signs of life do not wait.
//!
//! Proposals of one member keep their order. What cannot be kept, or whose blobs cannot be had, is
//! dropped, as if it had been lost on the way: the replica will fetch it.

use std::collections::{BTreeMap, VecDeque};

use crate::entry::Entry;
use crate::group::MemberId;
use crate::ids::Epoch;
use crate::limits::HELD_PROPOSALS_MAX;
use crate::replica::message::{Content, Fetched, Message};
use crate::replica::settings::Kind;
use crate::storage::transfer::Transfer;

/// Whether any of these entries names a blob. One that is not understood does not: whoever appends
/// it will say so.
pub(super) fn have_blobs(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| {
        entry.header().kind == Kind::Transaction.number()
            && Transfer::blobs_of(entry.body()).is_ok_and(|names| !names.is_empty())
    })
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Proposals of one member, in their order. The first is being looked at.
    proposals: VecDeque<Proposal>,
    from: Option<MemberId>,
    /// Answers whose blobs are being fetched.
    fetched: BTreeMap<u64, Fetched>,
    /// Answers whose blobs a thread fetches, be they held any more or not, and of which epoch.
    coming: BTreeMap<u64, Epoch>,
}

#[derive(Debug)]
struct Proposal {
    id: u64,
    message: Message,
    /// Its blobs are being looked for.
    is_asked: bool,
    is_ready: bool,
}

impl Held {
    /// Forgets all: the view has changed.
    pub(super) fn clear(&mut self) {
        let coming = std::mem::take(&mut self.coming);
        *self = Self {
            coming,
            ..Self::default()
        };
    }

    /// Whether proposals of this member wait already.
    pub(super) fn is_waiting_for(&self, from: &MemberId) -> bool {
        !self.proposals.is_empty() && self.from.as_ref() == Some(from)
    }

    /// Bytes of the proposals that wait.
    pub(super) fn len(&self) -> u64 {
        let lens = self.proposals.iter().map(|it| match &it.message.content {
            Content::Propose { entry, .. } => entry.header().body_len,
            _ => 0,
        });
        lens.sum()
    }

    /// Keeps a proposal; returns whether it is the first, whose blobs are to be looked for.
    pub(super) fn hold(
        &mut self,
        id: u64,
        from: MemberId,
        message: Message,
        has_blobs: bool,
    ) -> bool {
        if self.from.as_ref() != Some(&from) {
            // Another primary: what the last one has proposed is of no use now.
            self.proposals.clear();
            self.from = Some(from);
        }
        if self.proposals.len() >= HELD_PROPOSALS_MAX {
            return false;
        }
        self.proposals.push_back(Proposal {
            id,
            message,
            is_ready: !has_blobs,
            is_asked: self.proposals.is_empty(),
        });
        self.proposals.len() == 1
    }

    /// Keeps an answer.
    pub(super) fn hold_fetched(&mut self, id: u64, fetched: Fetched) {
        self.fetched.insert(id, fetched);
    }

    /// A thread fetches what this number waits for.
    pub(super) fn on_coming(&mut self, id: u64) {
        if let Some(fetched) = self.fetched.get(&id) {
            self.coming.insert(id, fetched.epoch);
        }
    }

    /// It has ended.
    pub(super) fn on_came(&mut self, id: u64) {
        self.coming.remove(&id);
    }

    /// The epochs of answers that wait, and of those for which a thread is at work still.
    pub(super) fn answers(&self) -> impl Iterator<Item = Epoch> {
        let is_forgotten = |(id, _): &(&u64, &Epoch)| !self.fetched.contains_key(id);
        let forgotten = self.coming.iter().filter(is_forgotten);
        let held = self.fetched.values().map(|it| it.epoch);
        held.chain(forgotten.map(|(_, epoch)| *epoch))
    }

    /// An answer whose blobs are being fetched.
    pub(super) fn fetched(&self, id: u64) -> Option<&Fetched> {
        self.fetched.get(&id)
    }

    /// The same, which is given up.
    pub(super) fn take_fetched(&mut self, id: u64) -> Option<Fetched> {
        self.fetched.remove(&id)
    }

    /// The member that what waits under this number came from, if it came through the group.
    pub(super) fn source(&self, id: u64) -> Option<&MemberId> {
        let is_proposal = self.proposals.iter().any(|it| it.id == id);
        self.from.as_ref().filter(|_| is_proposal)
    }

    /// Whether something waits under this number.
    pub(super) fn knows(&self, id: u64) -> bool {
        self.fetched.contains_key(&id) || self.proposals.iter().any(|it| it.id == id)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.fetched.is_empty() && self.proposals.is_empty()
    }

    /// The blobs of what waits under this number are here; it, if it is an answer.
    pub(super) fn ready(&mut self, id: u64) -> Option<Fetched> {
        if let Some(proposal) = self.proposals.iter_mut().find(|it| it.id == id) {
            proposal.is_ready = true;
        }
        self.fetched.remove(&id)
    }

    /// What waits under this number is given up. The number of the replica's request, if it is an
    /// answer.
    pub(super) fn drop(&mut self, id: u64) -> Option<u64> {
        // Nothing of what is behind it can be taken without it.
        if let Some(at) = self.proposals.iter().position(|it| it.id == id) {
            self.proposals.truncate(at);
        }
        self.fetched.remove(&id).map(|fetched| fetched.id)
    }

    /// The next proposal that need not wait any more.
    pub(super) fn next_ready(&mut self) -> Option<(MemberId, Message)> {
        let is_ready = self.proposals.front()?.is_ready;
        let from = self.from.clone()?;
        let proposal = is_ready.then(|| self.proposals.pop_front()).flatten()?;
        Some((from, proposal.message))
    }

    /// The first proposal that waits, which was behind others so far.
    pub(super) fn next_to_look_at(&mut self) -> Option<(u64, Entry)> {
        let first = self.proposals.front_mut()?;
        if std::mem::replace(&mut first.is_asked, true) {
            return None;
        }
        let Content::Propose { entry, .. } = &first.message.content else {
            return None;
        };
        Some((first.id, entry.clone()))
    }
}
