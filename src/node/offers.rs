//! Blobs ahead of their transactions. A proposal counts as synced with its blobs, and all proposals
//! behind it wait for that; so a transaction with blobs is proposed when most voters have them.
//!
//! ```text
//!   primary   vote ─► ("offer", (start, number, storage, blobs)) ─► all
//!   others    fetch them directly ─► ("offered", (start, number, are here)) ─► primary
//!   primary   enough have them, or nobody else is to come ─► the vote goes on
//!             the transaction has ended ─► ("withdraw", (start, number, first)) ─► all
//!   others    what no entry of the journal names is removed
//! ```
//!
//! *Start* tells processes of one name apart, *blobs* are oid, length and SHA-256 of each, *first*
//! is the lowest number that is not withdrawn: what is below it is, too, as a message may have been
//! lost. All of this is for speed: what was not offered, or did not come, is fetched with its
//! proposal.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};

use super::disk::Request;
use super::{Node, Output, Phase};
use crate::group::message::Message as GroupMessage;
use crate::group::{Lane, MemberId};
use crate::ids::{Digest, Oid, Seq, Tid};
use crate::limits::{
    OFFER_LEN_PER_SECOND, OFFER_MAX, OFFERED_BLOBS_MAX, OFFERS_FETCHED_MAX, OFFERS_MAX,
};
use crate::log_disk::NamedBlob;
use crate::replica::event::{Now, Token};
use crate::replica::message::NodeKind;
use crate::replica::settings::StorageName;
use crate::storage::transfer::BlobName;
use crate::value::Value;

const OFFER: &str = "offer";
const OFFERED: &str = "offered";
const WITHDRAW: &str = "withdraw";

/// Bytes of a blob's name.
const NAME_LEN: usize = 8 + 8 + Digest::LEN;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Offers {
    ours: BTreeMap<u64, Ours>,
    theirs: BTreeMap<Key, Theirs>,
    /// What waits for blobs that are being fetched ahead: its number, and which of its blobs are
    /// missing.
    waiting: Vec<(u64, Vec<NamedBlob>)>,
    /// Numbers that blobs need not be kept for any more, as soon as no proposal waits.
    ended: Vec<u64>,
    /// That there are too many was told.
    is_full: bool,
}

/// An offer of another member: of which process, and its number there.
type Key = (MemberId, i64, u64);

#[derive(Debug)]
struct Ours {
    token: Token,
    /// None if the vote goes on already.
    wait: Option<Wait>,
}

#[derive(Debug)]
struct Wait {
    until: Instant,
    /// Voters that have not answered.
    silent: BTreeSet<MemberId>,
    /// So many more have to have them.
    missing: usize,
}

#[derive(Debug)]
struct Theirs {
    /// Of the fetch, and what the blobs are kept for.
    id: u64,
    blobs: Vec<NamedBlob>,
    stage: Stage,
    /// Its transaction has ended, or nobody will tell.
    is_over: bool,
    /// Who has offered it is not there any more.
    is_left: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Others are fetched.
    Waiting,
    Fetching,
    Ended,
}

// Of the primary.
impl Node {
    /// A transaction that is being voted has these blobs, in these files. [`Output::Offered`]
    /// follows; [`Self::withdraw`] is to be called when it has ended.
    pub fn offer(
        &mut self,
        token: Token,
        storage: StorageName,
        blobs: Vec<(BlobName, PathBuf)>,
        now: Now,
    ) {
        if !self.is_primary() || blobs.len() > OFFERED_BLOBS_MAX {
            return self.outputs.push_back(Output::Offered(token));
        }
        let (silent, missing) = self.wanted_at();
        if missing == 0 {
            return self.outputs.push_back(Output::Offered(token));
        }
        let number = self.number();
        let len = blobs.iter().map(|(name, _)| name.len);
        let len = len.fold(0_u64, u64::saturating_add);
        let time = OFFER_MAX + Duration::from_secs(len / OFFER_LEN_PER_SECOND);
        let wait = Some(Wait {
            // Of lengths beyond all time there is no use in waiting.
            until: now.instant.checked_add(time).unwrap_or(now.instant),
            silent,
            missing,
        });
        self.offers.ours.insert(number, Ours { token, wait });
        let mut args = self.names_of(number);
        args.push(Value::from(storage));
        args.push(Value::Bytes(encode(blobs.iter().map(|(name, _)| name))));
        self.outputs.push_back(Output::Lend(number, blobs));
        self.outputs
            .push_back(Output::Send(None, Lane::Control, OFFER, args));
    }

    /// What an offer of ours goes by.
    fn names_of(&self, number: u64) -> Vec<Value> {
        let start = self.roster.me().incarnation;
        vec![Value::Int(start), number_value(number)]
    }

    /// The other voters that are here and needed, and how many of them: those who make a quorum
    /// with us, or as much of one as there is. Beside an arbiter all who are in sync are.
    fn wanted_at(&self) -> (BTreeSet<MemberId>, usize) {
        let Some(overview) = self.overview() else {
            return (BTreeSet::new(), 0);
        };
        let members = &overview.settings.members;
        let (needed, count) = match &members.arbiter {
            Some(arbiter) => (&arbiter.in_sync, arbiter.in_sync.len()),
            None => (&members.voters, members.voters.len() / 2),
        };
        let seen = overview.members.iter();
        let others = seen.filter(|it| needed.contains(&it.voter) && it.voter != overview.me);
        let others: BTreeSet<MemberId> = others.map(|it| it.member.clone()).collect();
        let missing = others.len().min(count);
        (others, missing)
    }

    /// A member has them, or will not.
    fn on_offer_answered(&mut self, from: &MemberId, number: u64, are_here: bool) {
        let Some(ours) = self.offers.ours.get_mut(&number) else {
            return;
        };
        let Some(wait) = &mut ours.wait else {
            return;
        };
        if wait.silent.remove(from) && are_here {
            wait.missing = wait.missing.saturating_sub(1);
        }
        if wait.missing == 0 || wait.silent.is_empty() {
            ours.wait = None;
            self.outputs.push_back(Output::Offered(ours.token));
        }
    }

    /// A transaction that was offered has ended.
    pub fn withdraw(&mut self, token: Token) {
        let mut ours = self.offers.ours.iter();
        let Some(number) = ours.find_map(|(number, it)| (it.token == token).then_some(*number))
        else {
            return;
        };
        self.offers.ours.remove(&number);
        self.outputs.push_back(Output::TakeBack(number));
        // Behind what was proposed, for who is behind himself.
        self.say_withdrawn(number, Lane::Bulk);
    }

    fn say_withdrawn(&mut self, number: u64, lane: Lane) {
        let first = self.offers.ours.first_key_value();
        let first = first.map_or(self.next_id + 1, |(first, _)| *first);
        let mut args = self.names_of(number);
        args.push(number_value(first));
        self.outputs
            .push_back(Output::Send(None, lane, WITHDRAW, args));
    }

    /// When votes go on whatever others have.
    pub(super) fn offers_deadline(&self) -> Option<Instant> {
        let waits = self.offers.ours.values();
        waits.filter_map(|it| Some(it.wait.as_ref()?.until)).min()
    }

    pub(super) fn look_at_offers(&mut self, now: Now) {
        self.give_up_waits(|wait| wait.until <= now.instant);
    }

    fn give_up_waits(&mut self, is_meant: impl Fn(&Wait) -> bool) {
        for ours in self.offers.ours.values_mut() {
            if ours.wait.take_if(|wait| is_meant(wait)).is_some() {
                self.outputs.push_back(Output::Offered(ours.token));
            }
        }
    }
}

// Of the others.
impl Node {
    /// Takes a message, if it is about this.
    pub(super) fn on_offer_message(&mut self, from: &MemberId, said: &GroupMessage) -> bool {
        let number = |value: &Value| match value {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let is_other = self.me.as_ref() != Some(from);
        match (said.method.as_str(), &said.args[..]) {
            (
                OFFER,
                [
                    Value::Int(start),
                    offer,
                    Value::Text(storage),
                    Value::Bytes(blobs),
                    ..,
                ],
            ) => {
                let storage = std::str::from_utf8(storage).map(str::to_owned);
                if let (Some(offer), Ok(storage), true) = (number(offer), storage, is_other) {
                    let key = (from.clone(), *start, offer);
                    self.on_offer(key, &storage, decode(blobs));
                }
            }
            (OFFERED, [Value::Int(start), offer, Value::Bool(are_here), ..]) => {
                let is_ours = *start == self.roster.me().incarnation;
                if let (Some(offer), true) = (number(offer), is_ours) {
                    self.on_offer_answered(from, offer, *are_here);
                }
            }
            (WITHDRAW, [Value::Int(start), offer, first, ..]) => {
                if let (Some(offer), Some(first)) = (number(offer), number(first)) {
                    let is_it = |number| number == offer || number < first;
                    self.end_offers(|key| key.0 == *from && (key.1 != *start || is_it(key.2)));
                }
            }
            (OFFER | OFFERED | WITHDRAW, _) => {
                log::warn!("{from}: a message \"{}\" is not understood", said.method);
            }
            _ => return false,
        }
        true
    }

    fn on_offer(&mut self, key: Key, storage: &StorageName, blobs: Option<Vec<BlobName>>) {
        // What a process of this name has offered before went with it.
        self.end_offers(|other| other.0 == key.0 && other.1 != key.1);
        let is_full = self.offers.theirs.len() >= OFFERS_MAX;
        if is_full && !std::mem::replace(&mut self.offers.is_full, true) {
            log::warn!("blobs are offered of more than {OFFERS_MAX} transactions at a time");
        }
        let may = matches!(self.phase, Phase::Running(_))
            && self.roster.me().kind != NodeKind::Arbiter
            && !is_full
            && !self.offers.theirs.contains_key(&key);
        let can_be_fetched = may && self.address_of(&key.0).is_some();
        let Some(blobs) = blobs.filter(|_| can_be_fetched) else {
            return self.answer_offer(&key, false);
        };
        let named = blobs.into_iter().map(|name| NamedBlob {
            seq: Seq::ZERO,
            tid: Tid::ZERO,
            storage: storage.clone(),
            name,
        });
        let theirs = Theirs {
            id: self.number(),
            blobs: named.collect(),
            stage: Stage::Waiting,
            is_over: false,
            is_left: false,
        };
        self.offers.theirs.insert(key, theirs);
        self.fetch_next_offers();
    }

    /// Fetches those that came first, some at a time.
    fn fetch_next_offers(&mut self) {
        let at = |stage| move |it: &&Theirs| it.stage == stage;
        loop {
            let theirs = self.offers.theirs.values();
            if theirs.filter(at(Stage::Fetching)).count() >= OFFERS_FETCHED_MAX {
                return;
            }
            let waiting = self.offers.theirs.iter();
            let waiting = waiting.filter(|(_, it)| it.stage == Stage::Waiting);
            let Some((key, id)) = waiting
                .min_by_key(|(_, it)| it.id)
                .map(|(key, it)| (key.clone(), it.id))
            else {
                return;
            };
            let from = self.address_of(&key.0);
            let Some(offer) = self.offers.theirs.get_mut(&key) else {
                return;
            };
            offer.stage = Stage::Fetching;
            self.outputs.push_back(Output::FetchOffered {
                id,
                from: from.unwrap_or_default(),
                blobs: offer.blobs.clone(),
            });
        }
    }

    fn answer_offer(&mut self, key: &Key, are_here: bool) {
        let (from, start, offer) = key;
        let args = vec![
            Value::Int(*start),
            number_value(*offer),
            Value::Bool(are_here),
        ];
        let to = Some(from.clone());
        self.outputs
            .push_back(Output::Send(to, Lane::Control, OFFERED, args));
    }

    /// The end of [`Output::FetchOffered`]: these are here.
    pub fn on_offer_fetched(&mut self, id: u64, came: &BTreeSet<BlobName>, now: Now) {
        let mut theirs = self.offers.theirs.iter_mut();
        let Some((key, offer)) = theirs.find(|(_, offer)| offer.id == id) else {
            return;
        };
        offer.stage = Stage::Ended;
        let key = key.clone();
        let are_here = offer.blobs.iter().all(|blob| came.contains(&blob.name));
        if offer.is_over {
            self.end_offers(|other| *other == key);
        } else {
            self.answer_offer(&key, are_here);
        }
        self.fetch_next_offers();
        for (id, mut missing) in std::mem::take(&mut self.offers.waiting) {
            missing.retain(|blob| !came.contains(&blob.name));
            if self.held.knows(id) {
                self.on_missing(id, missing, now);
            }
        }
    }

    /// Whether one of these is being fetched ahead: then what this number waits for is looked at
    /// again when it has come.
    pub(super) fn waits_for_offer(&mut self, id: u64, missing: &[NamedBlob]) -> bool {
        let theirs = self.offers.theirs.values();
        let mut coming = theirs.filter(|it| it.stage == Stage::Fetching && !it.is_left);
        let has = |it: &Theirs, blob: &NamedBlob| it.blobs.iter().any(|its| its.name == blob.name);
        let is_coming = coming.any(|it| missing.iter().any(|blob| has(it, blob)));
        if is_coming {
            self.offers.waiting.push((id, missing.to_vec()));
        }
        is_coming
    }

    /// These are over: blobs that have come for them need not stay.
    fn end_offers(&mut self, is_meant: impl Fn(&Key) -> bool) {
        let Offers { theirs, ended, .. } = &mut self.offers;
        theirs.retain(|key, offer| {
            if !is_meant(key) {
                return true;
            }
            offer.is_over = true;
            ended.extend((offer.stage == Stage::Ended).then_some(offer.id));
            // What is being fetched ends with that.
            offer.stage == Stage::Fetching
        });
        self.offers.is_full &= self.offers.theirs.len() >= OFFERS_MAX / 2;
        self.release_claims();
    }

    /// What has ended for others may be still to come here: it stays while something waits.
    pub(super) fn release_claims(&mut self) {
        if !self.held.is_empty() && self.offers.ended.len() < OFFERS_MAX {
            return;
        }
        for id in std::mem::take(&mut self.offers.ended) {
            self.enqueue(Request::ExpectNoMore(id));
        }
    }

    /// Another view, or none: who left takes offers along, what was held is not held any more, and
    /// votes go on, as nobody knows yet who is to come.
    pub(super) fn on_offers_view(&mut self) {
        self.offers.waiting.clear();
        let here: BTreeSet<MemberId> = self
            .roster
            .view()
            .map_or_else(BTreeSet::new, |view| view.members.iter().cloned().collect());
        let has_left = |(member, ..): &Key| !here.contains(member);
        for (key, offer) in &mut self.offers.theirs {
            offer.is_left |= has_left(key);
        }
        self.end_offers(has_left);
        self.give_up_waits(|_| true);
        if self.is_primary() && !here.is_empty() {
            // What was said of that at the end of the last view may be lost.
            self.say_withdrawn(0, Lane::Control);
        }
    }
}

fn number_value(number: u64) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn encode<'a>(blobs: impl Iterator<Item = &'a BlobName>) -> Bytes {
    let mut out = Vec::new();
    for BlobName { oid, len, digest } in blobs {
        out.put_u64(oid.0);
        out.put_u64(*len);
        out.put_slice(&digest.0);
    }
    out.into()
}

/// None if there are none, or too many, or it is no whole number of them.
fn decode(bytes: &[u8]) -> Option<Vec<BlobName>> {
    let (names, rest) = bytes.as_chunks::<NAME_LEN>();
    let is_right = rest.is_empty() && (1..=OFFERED_BLOBS_MAX).contains(&names.len());
    let name = |bytes: &[u8; NAME_LEN]| {
        let (oid, rest) = bytes.split_first_chunk()?;
        let (len, digest) = rest.split_first_chunk()?;
        Some(BlobName {
            oid: Oid(u64::from_be_bytes(*oid)),
            len: u64::from_be_bytes(*len),
            digest: Digest(digest.try_into().ok()?),
        })
    };
    names
        .iter()
        .map(name)
        .collect::<Option<_>>()
        .filter(|_| is_right)
}
