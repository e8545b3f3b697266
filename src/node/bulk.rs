//! What nodes get of each other beside the group: entries, blobs, copies.

use super::blobs;
use super::disk::Request;
use super::{Copied, HOLD_RETRY, Node, Output, Phase};
use crate::group::MemberId;
use crate::ids::Seq;
use crate::limits::{BLOB_GONE_COUNT, BLOBS_LOG_INTERVAL};
use crate::log_disk::{Hold, NamedBlob};
use crate::replica::event::{Event, Now};
use crate::replica::message::{Fetch, Fetched, Supply};

/// Why blobs were not fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFetched {
    /// For people.
    pub why: String,
    /// The entry with a blob that all nodes that were asked have said not to have.
    pub gone: Option<Seq>,
}

impl Node {
    /// Another node asks for entries; `id` names the request.
    pub fn on_requested(&mut self, id: u64, fetch: Fetch, now: Now) {
        let sender = &fetch.sender;
        let Some(from) = self.roster.member(sender.node, sender.disk).cloned() else {
            self.outputs
                .push_back(Output::Refuse(id, "not a member of the group"));
            return;
        };
        if !matches!(self.phase, Phase::Running(_)) {
            self.outputs
                .push_back(Output::Refuse(id, "it is not running"));
            return;
        }
        let key = (from.clone(), fetch.id);
        if let Some(before) = self.supplying.insert(key, id) {
            self.outputs
                .push_back(Output::Refuse(before, "asked again"));
        }
        self.step(Event::Requested { from, fetch }, now);
    }

    pub(super) fn supply(
        &mut self,
        to: &MemberId,
        answer: Box<Fetched>,
        entries: Option<(Seq, Seq)>,
    ) {
        let Some(id) = self.supplying.remove(&(to.clone(), answer.id)) else {
            return;
        };
        match entries {
            Some(range) => self.enqueue(Request::Supply { id, answer, range }),
            None => self.outputs.push_back(Output::Supply(id, answer)),
        }
    }

    /// The answer to [`Output::Fetch`]. Blobs of what it brings are fetched before.
    pub fn on_fetched(&mut self, fetched: Fetched, now: Now) {
        if let Supply::Entries { entries, .. } = &fetched.what
            && blobs::have_blobs(entries)
        {
            let (id, entries) = (self.number(), entries.clone());
            self.held.hold_fetched(id, fetched);
            return self.find_missing(id, entries);
        }
        self.step(Event::Fetched(fetched), now);
    }

    /// Nobody has answered [`Output::Fetch`], or the copy of [`Output::Copy`] came to nothing.
    pub fn on_fetch_failed(&mut self, id: u64, now: Now) {
        self.step(Event::FetchFailed { id }, now);
    }

    pub(super) fn on_missing(&mut self, id: u64, missing: Vec<NamedBlob>, now: Now) {
        if missing.is_empty() {
            return self.release(id, now);
        }
        // Another view has come meanwhile, or another primary.
        if !self.held.knows(id) || self.waits_for_offer(id, &missing) {
            return;
        }
        // Who has the entry has its blobs.
        let first = self.held.source(id).or_else(|| {
            let fetched = self.held.fetched(id)?;
            let sender = fetched.sender;
            self.roster.member(sender.node, sender.disk)
        });
        let first = first.and_then(|it| self.address_of(it));
        self.held.on_coming(id);
        self.fetch_blobs(id, first, missing);
    }

    /// Fetches blobs, from `first` if it has them, or from anybody.
    pub(super) fn fetch_blobs(&mut self, id: u64, first: Option<String>, blobs: Vec<NamedBlob>) {
        let mut from: Vec<String> = first.into_iter().collect();
        for (member, peer) in self.roster.peers() {
            let is_other = peer.history.is_some() && self.me.as_ref() != Some(member);
            if is_other && !peer.address.is_empty() && !from.contains(&peer.address) {
                from.push(peer.address.clone());
            }
        }
        self.outputs
            .push_back(Output::FetchBlobs { id, from, blobs });
    }

    /// Less was applied than was to be. It is tried again.
    pub(super) fn on_hold(&mut self, through: Seq, hold: Hold, now: Now) {
        let is_new = self.hold.is_none();
        self.hold = Some((through, now.instant + HOLD_RETRY));
        match hold {
            Hold::NoSpace(why) => {
                if is_new && self.lacks_room.is_none() {
                    let text = format!("nothing is applied, as the disk is full: {why}");
                    self.tell(text, now);
                }
                self.on_no_room(now);
            }
            Hold::Blob(blob) => {
                if is_new {
                    let what = format!("blob {} of {}", blob.name.oid, blob.tid);
                    self.tell(format!("{what} is damaged, and fetched anew"), now);
                }
                // Each entry that is committed tries to apply it.
                if self.mending.is_none() {
                    let id = self.number();
                    self.mending = Some(id);
                    self.fetch_blobs(id, None, vec![blob]);
                }
            }
        }
    }

    /// The end of [`Output::FetchBlobs`].
    pub fn on_blobs(&mut self, id: u64, result: Result<(), NotFetched>, now: Now) {
        if Self::is_refresh(id) {
            return self.on_blobs_again(id, result, now);
        }
        self.mending.take_if(|mending| *mending == id);
        self.held.on_came(id);
        match result {
            Ok(()) => {
                self.gone = None;
                self.release(id, now);
            }
            Err(NotFetched { why, gone }) => {
                // Each proposal tries it again.
                let is_news = self
                    .not_fetched
                    .is_none_or(|at| now.instant >= at + BLOBS_LOG_INTERVAL);
                match is_news {
                    true => {
                        self.not_fetched = Some(now.instant);
                        self.tell(format!("blobs cannot be fetched: {why}"), now);
                    }
                    false => log::debug!("blobs cannot be fetched: {why}"),
                }
                if let Some(seq) = gone
                    && self.is_gone(seq)
                    && let Some(mut fetched) = self.held.take_fetched(id)
                {
                    // As if the journal had been let go of so far: a copy has no need of it.
                    fetched.what = Supply::Released { before: seq };
                    return self.step(Event::Fetched(fetched), now);
                }
                // As if it had been lost on the way.
                if let Some(request) = self.held.drop(id) {
                    self.step(Event::FetchFailed { id: request }, now);
                }
                self.go_on_with_held(now);
            }
        }
    }

    /// All others have packed a blob of this entry away, as far as can be told: it may also be that
    /// it was not yet, or not any more, at its place just when it was asked for.
    fn is_gone(&mut self, seq: Seq) -> bool {
        let known = self.gone.filter(|(entry, _)| *entry == seq);
        let times = known.map_or(0, |(_, times)| times) + 1;
        self.gone = Some((seq, times));
        times >= BLOB_GONE_COUNT
    }

    /// What has waited for blobs goes on: they are here.
    fn release(&mut self, id: u64, now: Now) {
        if let Some(fetched) = self.held.ready(id) {
            self.step(Event::Fetched(fetched), now);
        }
        self.go_on_with_held(now);
    }

    pub(super) fn go_on_with_held(&mut self, now: Now) {
        while let Some((from, message)) = self.held.next_ready() {
            self.step(Event::Message { from, message }, now);
        }
        if let Some((id, entry)) = self.held.next_to_look_at() {
            self.find_missing(id, vec![entry]);
        }
        self.release_claims();
        self.send_fetch();
    }

    /// The end of [`Output::Copy`].
    pub fn on_copied(&mut self, id: u64, copied: Result<Copied, String>, now: Now) {
        if Self::is_refresh(id) {
            return self.on_copied_anew(id, copied, now);
        }
        if let Phase::Blank(_) = self.phase {
            // What the replica wanted that there was is of no use.
            return match self.copying.take_if(|copying| *copying == id) {
                Some(_) => (),
                None => self.on_seed_copied(copied, now),
            };
        }
        if !matches!(copied, Ok(Copied::Beside(_))) {
            self.copying.take_if(|copying| *copying == id);
        }
        match copied {
            Ok(Copied::Beside(beside)) => self.enqueue(Request::Adopt { id, beside }),
            Ok(Copied::Settings(..)) => {}
            Err(why) => {
                self.tell(format!("the database was not copied: {why}"), now);
                self.step(Event::FetchFailed { id }, now);
            }
        }
    }
}
