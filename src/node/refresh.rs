//! Data that are damaged: the database of another node is copied beside ours while this node goes
//! on, and then takes the place of its data. The replica does not notice: its log is the same.
//!
//! ```text
//!   fetch ─► Output::Copy ─► what the copy has is applied here ─► ReplaceData ─► Output::Data
//!                 ▲                                          (disk) │    ▲
//!                 └──────── the journal begins behind it ◄──────────┤    │
//!                                          Output::FetchBlobs ◄─────┴────┘
//! ```
//!
//! There is one at a time, and none while the replica wants a copy, since both are made in the same
//! place. Nothing is packed meanwhile: a pack removes blobs, and the copy may have need of them.

use std::cmp::Reverse;
use std::time::Instant;

use super::disk::{Data, NotReplaced, Request};
use super::wishes::Refused;
use super::{Copied, Copy, Node, NotFetched, Output};
use crate::ids::{NodeId, Seq, Tid};
use crate::limits::{REFRESH_TAIL_MAX, REFRESH_TRIES_MAX, REFRESH_WAIT_MAX};
use crate::log_disk::{Beside, NamedBlob};
use crate::replica::event::{Now, Refusal, Token};
use crate::replica::message::{NodeKind, Role};
use crate::replica::overview::Overview;

/// See the module's page.
#[derive(Debug)]
pub(super) struct Refresh {
    /// Of the copy, and of the blobs that are expected: the replica counts its copies from one on.
    id: u64,
    /// Who waits for the answer. None if it was given, and only the end of a thread is awaited.
    token: Option<Token>,
    from: NodeId,
    address: String,
    stage: Stage,
    /// How often what was committed since was copied, too, as it is much.
    tries: u32,
    /// How often the journal did not go back to the copy any more.
    too_old: u32,
    /// Whether the blobs that are here were compared with those of the donor. What comes later is
    /// checked when it comes.
    is_compared: bool,
    /// The first blob that was lacking, and how often.
    lacked: Option<(NamedBlob, u32)>,
}

#[derive(Debug)]
enum Stage {
    /// A thread copies.
    Copying,
    /// What is in the copy is to be applied here first, until some time.
    Waiting(Box<Beside>, Instant),
    /// The disk does it.
    Replacing,
    /// Blobs of what is to be applied again are on their way.
    Fetching(Box<Beside>),
}

/// Set in the numbers of copies that are made for an operator.
const OURS: u64 = 1 << 63;

impl Node {
    /// The data of this node are to be copied anew, from that node or from whom it is best.
    /// Answered when that is done.
    pub fn fetch(&mut self, token: Token, from: Option<NodeId>, now: Now) {
        if let Err(refused) = self.begin_refresh(token, from, now) {
            self.outputs.push_back(Output::Answer(token, Err(refused)));
        }
    }

    /// What is being copied for [`Self::fetch`], in words.
    pub fn refreshing(&self) -> Option<String> {
        let Refresh { from, stage, .. } = self.refresh.as_ref()?;
        Some(match stage {
            Stage::Copying => format!("copying from {from}"),
            Stage::Waiting(..) => "until what was copied is applied here".to_owned(),
            Stage::Replacing => "replacing the data".to_owned(),
            Stage::Fetching(_) => "fetching blobs".to_owned(),
        })
    }

    fn begin_refresh(
        &mut self,
        token: Token,
        from: Option<NodeId>,
        now: Now,
    ) -> Result<(), Refused> {
        let me = self.roster.me().name;
        let no = |refusal, text: String| Err(Refused { refusal, text });
        let Some(overview) = self.overview() else {
            let text = format!("{me} is no part of a cluster yet ({})", self.state());
            return no(Refusal::NotEligible(me), text);
        };
        if self.roster.me().kind == NodeKind::Arbiter {
            let text = format!("{me} is an arbiter, and has no data");
            return no(Refusal::NotEligible(me), text);
        }
        if overview.role == Role::Primary {
            let text = format!("{me} is the primary: 'standbyctl swap' first, then fetch here");
            return no(Refusal::NotEligible(me), text);
        }
        if let Some(what) = self.refreshing() {
            return no(Refusal::Busy, format!("fetch is being done ({what})"));
        }
        if self.copying.is_some() {
            let text = "a copy of the database is being made already, as this node lacks what is \
                        in no journal any more";
            return no(Refusal::Busy, text.to_owned());
        }
        if self.is_packing() {
            let text = format!("{me} packs: try again when that has ended");
            return no(Refusal::Busy, text);
        }
        let (from, address) = self.copied_from(from)?;
        log::info!("an administrator has the database copied anew from {from} ({address})");
        self.refresh = Some(Refresh {
            id: OURS | self.number(),
            token: Some(token),
            from,
            address,
            stage: Stage::Copying,
            tries: 0,
            too_old: 0,
            is_compared: false,
            lacked: None,
        });
        self.copy_anew();
        self.tell(format!("the database is copied anew from {from}"), now);
        Ok(())
    }

    /// Whom to copy from, and its address: not the primary, if there is another.
    fn copied_from(&self, wanted: Option<NodeId>) -> Result<(NodeId, String), Refused> {
        let no = |refusal, text: String| Err(Refused { refusal, text });
        let Some(overview) = self.overview() else {
            let me = self.roster.me().name;
            return no(Refusal::NotEligible(me), self.state());
        };
        let has_all = |from: Tid| from == Tid::ZERO || from <= overview.history_from;
        let others = overview.members.iter().filter(|it| {
            it.voter != overview.me
                && it.state.kind != NodeKind::Arbiter
                && has_all(it.state.history_from)
                && self.address_of(&it.member).is_some()
        });
        let mut fit = others.filter(|it| wanted.is_none_or(|wanted| it.voter.node == wanted));
        let best = match wanted {
            Some(_) => fit.next(),
            None => fit.max_by_key(|it| {
                let is_primary = overview.primary.as_ref() == Some(&it.member);
                (!is_primary, it.state.last.seq, Reverse(it.voter))
            }),
        };
        let found = best.and_then(|it| Some((it.voter.node, self.address_of(&it.member)?)));
        match (found, wanted) {
            (Some(found), _) => Ok(found),
            (None, Some(node)) => no(
                Refusal::NoSuchNode(node),
                format!("{node} is not another node that is here and has all the data"),
            ),
            (None, None) => {
                let text = "no other node is here that has all the data".to_owned();
                no(Refusal::NoQuorum, text)
            }
        }
    }

    fn copy_anew(&mut self) {
        let overview = self.overview();
        let Some(refresh) = &mut self.refresh else {
            return;
        };
        refresh.stage = Stage::Copying;
        // One that lags by little has what is wanted, and what is missing is in the journal here.
        let applied = overview.as_ref().map_or(0, |it| it.applied.0);
        let at_least = Seq(applied.saturating_sub(REFRESH_TAIL_MAX));
        // Who has old revisions shall not lose them by this.
        let lacks_some = overview.is_some_and(|it| it.history_from != Tid::ZERO);
        let copy = Copy {
            id: refresh.id,
            from: refresh.address.clone(),
            at_least,
            newest_only: lacks_some && self.options.replica.copies_newest_only,
            settings_only: false,
            is_anew: !refresh.is_compared,
        };
        self.outputs.push_back(Output::Copy(copy));
    }

    /// Whether a number is that of what is copied for an operator.
    pub(super) const fn is_refresh(id: u64) -> bool {
        id & OURS != 0
    }

    /// Whether something of it is under way, be it of use or not.
    pub(super) const fn is_refreshing(&self) -> bool {
        self.refresh.is_some()
    }

    pub(super) const fn refresh_deadline(&self) -> Option<Instant> {
        match &self.refresh {
            Some(Refresh {
                stage: Stage::Waiting(_, until),
                ..
            }) => Some(*until),
            _ => None,
        }
    }

    /// The replica wants a copy, as it cannot go on without: whether it may have one now.
    pub(super) fn makes_way(&mut self, now: Now) -> bool {
        let is_waiting = |it: &Refresh| matches!(it.stage, Stage::Waiting(..));
        if self.refresh.as_ref().is_some_and(is_waiting) {
            // What this waits for would never come.
            let why = "this node lacks what is in no journal any more: the database is copied in \
                       any case";
            self.end_refresh(Err(why.to_owned()), now);
        }
        self.refresh.is_none()
    }

    /// The end of a copy that was made for an operator.
    pub(super) fn on_copied_anew(&mut self, id: u64, copied: Result<Copied, String>, now: Now) {
        let Some(refresh) = self.refresh.as_mut().filter(|it| it.id == id) else {
            return;
        };
        let is_given_up = refresh.token.is_none();
        match copied {
            Ok(Copied::Beside(beside)) if !is_given_up => {
                log::info!(
                    "the database of {} is here, as of entry {}",
                    refresh.from,
                    beside.manifest().point().seq
                );
                refresh.is_compared = true;
                refresh.stage = Stage::Waiting(beside, now.instant + REFRESH_WAIT_MAX);
                self.look_at_refresh(now);
            }
            Ok(_) => self.forget_refresh(),
            Err(why) => {
                // The thread has ended.
                refresh.stage = Stage::Replacing;
                let why = format!("{why}. What was copied is kept for the next fetch");
                self.end_refresh(Err(why), now);
            }
        }
    }

    /// Goes on, if what is in the copy is applied here by now.
    pub(super) fn look_at_refresh(&mut self, now: Now) {
        let Some(Refresh {
            stage: Stage::Waiting(beside, until),
            ..
        }) = &self.refresh
        else {
            return;
        };
        let (point, is_late) = (beside.manifest().point().seq, now.instant >= *until);
        let Some(Overview { role, applied, .. }) = self.overview() else {
            return self.end_refresh(Err(self.state()), now);
        };
        if role == Role::Primary {
            let why = "this node is the primary by now: 'standbyctl swap', then fetch again; what \
                       was copied is kept for that";
            return self.end_refresh(Err(why.to_owned()), now);
        }
        // One that seeks the office needs its disk at once.
        let is_ready = applied >= point && role == Role::Replica;
        if !is_ready && !is_late {
            return;
        }
        if applied < point {
            let why = format!(
                "entry {point}, which the copy has, is not applied here; it is kept for the next \
                 fetch"
            );
            return self.end_refresh(Err(why), now);
        }
        if !is_ready {
            let why = "there has been no primary for long; what was copied is kept for the next \
                       fetch";
            return self.end_refresh(Err(why.to_owned()), now);
        }
        let Some(refresh) = &mut self.refresh else {
            return;
        };
        if applied.0 - point.0 > REFRESH_TAIL_MAX && refresh.tries < REFRESH_TRIES_MAX {
            // Meanwhile this node would acknowledge nothing.
            refresh.tries += 1;
            log::info!(
                "what was committed since is copied, too: {} entries",
                applied.0 - point.0
            );
            return self.copy_anew();
        }
        if let Stage::Waiting(beside, _) = std::mem::replace(&mut refresh.stage, Stage::Replacing) {
            let id = refresh.id;
            self.enqueue(Request::ReplaceData { id, beside });
        }
    }

    /// The data are others now.
    pub(super) fn on_data_replaced(&mut self, id: u64, data: Data, now: Now) {
        // Whoever asked for it may have been told otherwise.
        self.replace_data(data);
        let Some(refresh) = self.refresh.as_ref().filter(|it| it.id == id) else {
            return;
        };
        let done = format!(
            "the data of this node are those of {} now, and what was committed since",
            refresh.from
        );
        self.end_refresh(Ok(done), now);
    }

    /// They are as they were.
    pub(super) fn on_not_replaced(&mut self, id: u64, what: NotReplaced, now: Now) {
        let Some(refresh) = self.refresh.as_mut().filter(|it| it.id == id) else {
            return;
        };
        match what {
            NotReplaced::Useless(why) => self.end_refresh(Err(why), now),
            NotReplaced::TooOld if refresh.too_old < REFRESH_TRIES_MAX => {
                refresh.too_old += 1;
                log::info!("the journal begins behind the copy by now: what is missing is copied");
                self.copy_anew();
            }
            NotReplaced::TooOld => {
                let why = "more is committed while it is copied than the journal keeps \
                           (journal-size)";
                self.end_refresh(Err(why.to_owned()), now);
            }
            NotReplaced::Lacks(blobs, beside) => {
                // Of one journal there is an end to different ones.
                let known = refresh.lacked.take();
                let known = known.filter(|it| blobs.first() == Some(&it.0));
                let times = known.map_or(0, |it| it.1) + 1;
                refresh.lacked = blobs.first().map(|it| (it.clone(), times));
                if let Some((NamedBlob { name, tid, .. }, _)) = &refresh.lacked
                    && times > REFRESH_TRIES_MAX
                {
                    let oid = name.oid;
                    let why = format!("the blob of {oid} of {tid} cannot be had from any node");
                    return self.end_refresh(Err(why), now);
                }
                refresh.stage = Stage::Fetching(beside);
                let address = refresh.address.clone();
                self.fetch_blobs(id, Some(address), blobs);
            }
        }
    }

    /// The end of [`Output::FetchBlobs`] for this.
    pub(super) fn on_blobs_again(&mut self, id: u64, result: Result<(), NotFetched>, now: Now) {
        if let Err(NotFetched { why, .. }) = result {
            log::warn!("blobs cannot be fetched: {why}");
        }
        let Some(refresh) = self.refresh.as_mut().filter(|it| it.id == id) else {
            return;
        };
        // Those that have not come are lacking again.
        refresh.stage = match std::mem::replace(&mut refresh.stage, Stage::Replacing) {
            Stage::Fetching(beside) => Stage::Waiting(beside, now.instant + REFRESH_WAIT_MAX),
            other => other,
        };
        self.look_at_refresh(now);
    }

    /// Nothing is to come of it any more: what the disk was to do will not be done.
    pub(super) fn give_up_refresh(&mut self, why: &str, now: Now) {
        if self.refresh.is_some() {
            self.end_refresh(Err(why.to_owned()), now);
        }
    }

    fn end_refresh(&mut self, result: Result<String, String>, now: Now) {
        let Some(refresh) = &mut self.refresh else {
            return;
        };
        let (id, from) = (refresh.id, refresh.from);
        let token = refresh.token.take();
        let is_copying = matches!(refresh.stage, Stage::Copying);
        if !is_copying {
            self.enqueue(Request::ExpectNoMore(id));
        }
        if let Some(token) = token {
            let result = match result {
                Ok(done) => {
                    self.tell(done.clone(), now);
                    Ok(done)
                }
                Err(why) => {
                    let text = format!("the data file of this node is as it was: {why}");
                    self.tell(format!("fetch: {text}"), now);
                    let refusal = Refusal::NotEligible(from);
                    Err(Refused { refusal, text })
                }
            };
            self.outputs.push_back(Output::Answer(token, result));
        }
        // The thread still writes there.
        if !is_copying {
            self.forget_refresh();
        }
    }

    fn forget_refresh(&mut self) {
        self.refresh = None;
        self.begin_wanted();
    }
}
