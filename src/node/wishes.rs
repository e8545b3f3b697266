//! What came of what people want: when it has come about, and how that is said, or why not. Who
//! reads it is to know from it what to do next.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Node, Output};
use crate::ids::{DiskId, Epoch, NodeId, Seq, Tid};
use crate::limits::SWAP_MAX;
use crate::replica::event::{MemberChange, Now, Refusal, Token, Writers};
use crate::replica::members::{Members, VOTERS_MAX, Voter};
use crate::replica::message::{NodeKind, Role};
use crate::replica::overview::{Overview, Seen};

/// How long a wish for another primary may take in all, until that is open.
const OPEN_AWAITED: Duration = SWAP_MAX;

/// How long that is waited for at least, when the office has been handed over or taken.
const OPEN_AWAITED_MIN: Duration = Duration::from_secs(2);

/// Something that was asked for. There are no more of these than administrators' connections.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    what: What,
    since: Instant,
    /// The replica has done its part. The primary is awaited.
    awaited: Option<Awaited>,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// This one is to be primary; without it, any other.
    Swap(Option<NodeId>),
    /// This node is to be primary.
    Promote,
    Members(MemberChange),
    Pack,
}

#[derive(Clone, Copy, Debug)]
struct Awaited {
    until: Instant,
    /// An entry of this epoch: when it is committed, so is the first one.
    mark: Option<(Epoch, Seq)>,
}

/// Why a wish is not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For programs
    pub refusal: Refusal,
    /// For people
    pub text: String,
}

impl Node {
    /// Something is asked of the replica, which answers it by the token.
    pub(super) fn wish(&mut self, token: Token, what: What, now: Now) {
        let wish = Wish {
            what,
            since: now.instant,
            awaited: None,
        };
        self.wishes.insert(token, wish);
    }

    /// What the replica says to it.
    pub(super) fn on_answer(&mut self, token: Token, result: Result<(), Refusal>, now: Now) {
        let Some(wish) = self.wishes.get_mut(&token) else {
            return;
        };
        match (result, &wish.what) {
            (Ok(()), What::Swap(_) | What::Promote) => {
                let until = (wish.since + OPEN_AWAITED).max(now.instant + OPEN_AWAITED_MIN);
                wish.awaited = Some(Awaited { until, mark: None });
            }
            (Ok(()), What::Members(change)) => {
                let change = *change;
                let done = self.done_text(change);
                self.end_wish(token, Ok(done));
                if let Some(warning) = self.overview().and_then(|it| even_voters(&it)) {
                    self.tell(warning, now);
                }
            }
            (Ok(()), What::Pack) => self.end_wish(token, Ok("the pack is ordered".to_owned())),
            (Err(refusal), what) => {
                let what = what.clone();
                let refused = self.refused(&what, refusal);
                self.end_wish(token, Err(refused));
            }
        }
    }

    pub(super) fn end_wish(&mut self, token: Token, result: Result<String, Refused>) {
        self.wishes.remove(&token);
        self.outputs.push_back(Output::Answer(token, result));
    }

    /// When a primary that is awaited is not awaited any more.
    pub(super) fn wishes_deadline(&self) -> Option<Instant> {
        let awaited = self.wishes.values().filter_map(|wish| wish.awaited);
        awaited.map(|it| it.until).min()
    }

    /// Ends what waits for a primary, if there is one. Costs nothing if nothing waits.
    pub(super) fn look_at_wishes(&mut self, now: Now) {
        if self.wishes.values().all(|wish| wish.awaited.is_none()) {
            return;
        }
        let overview = self.overview();
        let mut ended = Vec::new();
        for (token, wish) in &mut self.wishes {
            let Some(awaited) = &mut wish.awaited else {
                continue;
            };
            let open = overview.as_ref().and_then(|it| open_epoch(it, awaited));
            if open.is_some() || now.instant >= awaited.until {
                ended.push((*token, wish.what.clone(), open));
            }
        }
        for (token, what, open) in ended {
            let result = self.outcome(&what, open);
            self.end_wish(token, result);
        }
    }

    fn outcome(&self, what: &What, open: Option<Epoch>) -> Result<String, Refused> {
        let wanted = match what {
            What::Swap(to) => *to,
            _ => Some(self.name()),
        };
        match (open, wanted) {
            (Some(epoch), Some(wanted)) if epoch.node != wanted => Err(Refused {
                refusal: Refusal::TimedOut,
                text: format!(
                    "{wanted} did not stay in office: {} is primary of epoch {epoch}",
                    epoch.node
                ),
            }),
            (Some(epoch), _) => Ok(format!("{} is primary of epoch {epoch}", epoch.node)),
            (None, wanted) => Err(Refused {
                refusal: Refusal::TimedOut,
                text: self.lacks_sync().unwrap_or_else(|| format!(
                    "{} took office, and nobody is seen to be open for writers after {} s: look \
                     at the status of all nodes",
                    wanted.map_or("another node".to_owned(), |it| it.to_string()),
                    OPEN_AWAITED.as_secs()
                )),
            }),
        }
    }

    /// Why nobody may lead, with an arbiter, though two of three are here.
    fn lacks_sync(&self) -> Option<String> {
        let overview = &self.overview()?;
        let in_sync = Seeing {
            node: self,
            overview,
        }
        .lacks_sync()?;
        Some(without_sync(&in_sync))
    }

    fn name(&self) -> NodeId {
        self.roster.me().name
    }

    fn done_text(&self, change: MemberChange) -> String {
        let Some(overview) = self.overview() else {
            return "the members are changed".to_owned();
        };
        let mut voters = overview.settings.members.voters;
        // It may not be on this disk yet.
        match change {
            MemberChange::Add(node) if voters.iter().all(|it| it.node != node) => {
                let disk = DiskId::default();
                voters.insert(Voter { node, disk });
            }
            MemberChange::Remove(node) => voters.retain(|it| it.node != node),
            _ => {}
        }
        let voters = names(voters.iter());
        match change {
            MemberChange::Add(node) => format!("{node} is counted; voters are {voters}"),
            MemberChange::Remove(node) => {
                format!("{node} is not counted any more; voters are {voters}")
            }
            MemberChange::AddArbiter(node) => format!("{node} is the arbiter of {voters}"),
            MemberChange::RemoveArbiter => format!("there is no arbiter; voters are {voters}"),
        }
    }

    /// What an operator should know, as long as it is so.
    pub fn warnings(&self, overview: &Overview) -> Vec<String> {
        even_voters(overview).into_iter().collect()
    }

    /// Why a loss need not be accepted, if that is so.
    pub(super) fn needless_loss(&self, overview: &Overview, now: Now) -> Option<Refused> {
        let lease = self.options.replica.lease;
        let is_heard = overview.heard.is_some_and(|at| now.instant < at + lease);
        let view = Seeing {
            node: self,
            overview,
        };
        let text = match self.primary().filter(|_| is_heard) {
            Some(primary) => format!(
                "{primary} is primary: nothing has to be lost. To begin anew with this node alone, \
                 stop all others first"
            ),
            None if view.is_majority_here() && view.lacks_sync().is_none() => format!(
                "more than half of the voters are here ({}): nothing has to be lost; 'standbyctl \
                 promote' without --accept-loss. To begin anew with this node alone, stop all \
                 others first",
                view.here()
            ),
            None => return None,
        };
        let refusal = Refusal::NotEligible(overview.me.node);
        Some(Refused { refusal, text })
    }

    pub(super) fn refused(&self, what: &What, refusal: Refusal) -> Refused {
        let Some(overview) = self.overview() else {
            let (me, state) = (self.name(), self.state());
            let text = format!("{me} is no part of a cluster yet ({state})");
            return Refused { refusal, text };
        };
        let view = Seeing {
            node: self,
            overview: &overview,
        };
        if refusal == Refusal::NotPrimary && overview.role == Role::Primary {
            let text = format!(
                "{} is in office, and not open yet; try again in some seconds",
                overview.me
            );
            let refusal = Refusal::Busy;
            return Refused { refusal, text };
        }
        let text = match what {
            What::Swap(to) => view.swap(*to, &refusal),
            What::Promote => view.promote(&refusal),
            What::Members(change) => view.members(*change, &refusal),
            What::Pack => None,
        };
        let text = text.unwrap_or_else(|| view.any(&refusal));
        let refusal = match (what, refusal) {
            // It is not over in a moment.
            (What::Promote, Refusal::Busy) => Refusal::NotEligible(view.me()),
            (_, refusal) => refusal,
        };
        Refused { refusal, text }
    }
}

/// The epoch of a primary that is open for writers, as far as this node can know: itself, or one
/// whose first entry is committed.
fn open_epoch(overview: &Overview, awaited: &mut Awaited) -> Option<Epoch> {
    let epoch = overview.promised;
    if overview.role == Role::Primary {
        return (overview.serving.writers == Writers::Open).then_some(epoch);
    }
    overview.primary.as_ref()?;
    if overview.last.epoch == epoch && awaited.mark.is_none_or(|(known, _)| known != epoch) {
        awaited.mark = Some((epoch, overview.last.seq));
    }
    let (known, seq) = awaited.mark?;
    (known == epoch && overview.committed >= seq).then_some(epoch)
}

/// What is to be said of a number of voters that is even.
fn even_voters(overview: &Overview) -> Option<String> {
    let Members { voters, arbiter } = &overview.settings.members;
    match voters.len() {
        2 if arbiter.is_none() => {
            Some("of 2 voters none may be away: add another voter, or an arbiter".to_owned())
        }
        count if count > 2 && count.is_multiple_of(2) => Some(format!(
            "of {count} voters {} may be away, as of {}: add another, or remove one",
            (count - 1) / 2,
            count - 1
        )),
        _ => None,
    }
}

fn names<'a>(voters: impl Iterator<Item = &'a Voter>) -> String {
    let names: Vec<&str> = voters.map(|voter| voter.node.as_str()).collect();
    match names[..] {
        [] => "nobody".to_owned(),
        _ => names.join(", "),
    }
}

fn without_sync(in_sync: &str) -> String {
    format!(
        "only {in_sync} is in sync, and not here: this node may lack what it has. Start it. If it \
         never comes back: promote --accept-loss"
    )
}

/// A refusal is explained by what the node sees.
struct Seeing<'a> {
    node: &'a Node,
    overview: &'a Overview,
}

impl Seeing<'_> {
    const fn me(&self) -> NodeId {
        self.overview.me.node
    }

    const fn voters(&self) -> &BTreeSet<Voter> {
        &self.overview.settings.members.voters
    }

    fn find(&self, node: NodeId) -> Option<&Seen> {
        let mut members = self.overview.members.iter();
        members.find(|it| it.voter.node == node)
    }

    fn here(&self) -> String {
        names(self.overview.members.iter().map(|it| &it.voter))
    }

    fn missing(&self) -> String {
        let electors = self.overview.settings.members.electors();
        let is_here = |voter: &&Voter| self.overview.members.iter().any(|it| it.voter == **voter);
        names(electors.filter(|voter| !is_here(voter)))
    }

    fn is_majority_here(&self) -> bool {
        let is_here = |voter: &Voter| self.overview.members.iter().any(|it| it.voter == *voter);
        self.overview.settings.members.is_majority(is_here)
    }

    /// With an arbiter: who is in sync, as far as it knows, if none of them is here. What they have
    /// committed nobody else may have.
    fn lacks_sync(&self) -> Option<String> {
        let arbiter = self.overview.settings.members.arbiter.as_ref()?;
        // Who has just come may not have said yet how far it is.
        let has_come = |voter: &Voter| {
            let mut peers = self.node.roster.peers();
            peers.any(|(_, peer)| peer.name == voter.node && peer.disk == voter.disk)
        };
        let is_here = |voter: &Voter| {
            let mut members = self.overview.members.iter();
            members.any(|it| it.voter == *voter) || has_come(voter)
        };
        let mut members = self.overview.members.iter();
        let seen = members.find(|it| it.voter == arbiter.node)?;
        let known = &seen.state.members;
        let in_sync = &known.arbiter.as_ref()?.in_sync;
        (!known.knows_all(is_here)).then(|| names(in_sync.iter()))
    }

    /// What is the same for all wishes.
    fn any(&self, refusal: &Refusal) -> String {
        let me = self.me();
        match refusal {
            Refusal::NotPrimary => format!("{me} is not the primary"),
            Refusal::Busy => "a swap or another change of the members is under way; try again in \
                              some seconds"
                .to_owned(),
            Refusal::NoSuchNode(node) => {
                format!("{node} is not here; here are {}", self.here())
            }
            Refusal::TimedOut => "it took too long; look at the status".to_owned(),
            other => format!("{me}: {other}"),
        }
    }

    /// Why a node could not be primary.
    fn unfit(&self, node: NodeId) -> String {
        let seen = self.find(node);
        let why = match seen.map(|it| it.state.kind) {
            Some(NodeKind::Arbiter) => "it is an arbiter, and has no data",
            Some(NodeKind::Observer) => "it is an observer, by role in its configuration",
            _ if seen.is_some_and(|it| !self.voters().contains(&it.voter)) => {
                "it is no voter; 'standbyctl member add' makes it one"
            }
            _ if seen.is_some_and(|it| it.state.history_from != Tid::ZERO) => {
                "it has no old revisions, by copies in its configuration"
            }
            _ => "it is no voter, or has no old revisions",
        };
        format!("{node} cannot be primary: {why}")
    }

    fn swap(&self, to: Option<NodeId>, refusal: &Refusal) -> Option<String> {
        let me = self.me();
        Some(match refusal {
            Refusal::Already => {
                format!("{me} is the primary already; to hand over, name another node or none")
            }
            Refusal::NotEligible(node) => self.unfit(*node),
            Refusal::NoSuchNode(node) if self.voters().iter().any(|it| it.node == *node) => {
                let here = self.here();
                format!("{node} is not here: start it, or name another; here are {here}")
            }
            Refusal::TimedOut => {
                let wanted = to.map_or("nobody".to_owned(), |it| it.to_string());
                let found = match self.node.primary() {
                    Some(primary) if to.is_none_or(|it| it != primary) => {
                        format!("{primary} is primary")
                    }
                    Some(primary) => format!("{primary} may be primary by now"),
                    None => "nobody is heard of as primary".to_owned(),
                };
                format!("{wanted} has not taken over in time; {found}: look at the status")
            }
            _ => return None,
        })
    }

    fn promote(&self, refusal: &Refusal) -> Option<String> {
        let me = self.me();
        if let Refusal::NotEligible(node) = refusal {
            return Some(self.unfit(*node));
        }
        if let Some(in_sync) = self.lacks_sync() {
            return Some(without_sync(&in_sync));
        }
        Some(match refusal {
            Refusal::Already if self.overview.role == Role::Candidate => {
                format!("{me} is about to take office already")
            }
            Refusal::Already if self.overview.role == Role::Primary => {
                format!("{me} is the primary already")
            }
            Refusal::Already => format!("{me} is being promoted already"),
            Refusal::Busy => match self.node.primary() {
                Some(primary) => format!(
                    "{primary} is primary: give 'standbyctl swap {me}' there (promote is for when \
                     nobody is primary)"
                ),
                None => "a primary was heard of a moment ago; if it is gone, try again in some \
                         seconds"
                    .to_owned(),
            },
            Refusal::NoQuorum if self.is_majority_here() => {
                "an election is under way, or others have heard of a primary a moment ago; try \
                 again in some seconds"
                    .to_owned()
            }
            Refusal::NoQuorum => format!(
                "more than half of the voters have to be here; missing: {}. Start them. If they \
                 never come back: promote --accept-loss",
                self.missing()
            ),
            _ => return None,
        })
    }

    fn members(&self, change: MemberChange, refusal: &Refusal) -> Option<String> {
        let members = &self.overview.settings.members;
        let arbiter = members.arbiter.as_ref();
        Some(match (refusal, change) {
            (Refusal::NotEligible(node), MemberChange::Remove(_)) => {
                format!("{node} is the primary: 'standbyctl swap' first, then ask the new primary")
            }
            (Refusal::NotEligible(node), _) => self.no_candidate(*node, change),
            (Refusal::NoSuchNode(node), MemberChange::Remove(_)) => match arbiter {
                Some(it) if it.node.node == *node => {
                    format!("{node} is the arbiter: 'standbyctl arbiter remove {node}'")
                }
                _ => format!(
                    "{node} is no voter; voters are {}",
                    names(members.voters.iter())
                ),
            },
            (Refusal::Already, MemberChange::RemoveArbiter) => "there is no arbiter".to_owned(),
            (Refusal::Already, MemberChange::Add(node) | MemberChange::AddArbiter(node)) => {
                let is_arbiter = arbiter.is_some_and(|it| it.node.node == node);
                let what = if is_arbiter { "the arbiter" } else { "a voter" };
                format!("{node} is {what} already")
            }
            (Refusal::Busy, MemberChange::RemoveArbiter)
                if arbiter.is_some_and(|it| it.in_sync != members.voters) =>
            {
                let in_sync = arbiter.map(|it| names(it.in_sync.iter()));
                format!(
                    "only {} is in sync: without the arbiter both are needed for each commit. \
                     Wait until the status shows both in sync",
                    in_sync.unwrap_or_default()
                )
            }
            (Refusal::Behind(node, count), _) => format!(
                "{node} has not caught up yet ({count} entries are missing): wait until the status \
                 shows it with a LAG of 0 or 1"
            ),
            (Refusal::VoterCount, change) => self.voter_count(change),
            (Refusal::NoQuorum, _) => format!(
                "more than half of the members have to be here, as they would be then; missing \
                 now: {}",
                self.missing()
            ),
            _ => return None,
        })
    }

    fn no_candidate(&self, node: NodeId, change: MemberChange) -> String {
        let members = &self.overview.settings.members;
        let known = members.electors().find(|it| it.node == node);
        let seen = self.find(node);
        match (known, seen) {
            (Some(_), Some(_)) => format!(
                "{node} is counted with another disk, which it had before: 'standbyctl member \
                 remove {node}' first"
            ),
            (Some(_), None) => format!("{node} is counted already, and is not here"),
            (None, Some(seen)) => {
                let role = match seen.state.kind {
                    NodeKind::Data => "data",
                    NodeKind::Observer => "observer",
                    NodeKind::Arbiter => "arbiter",
                };
                let needed = match change {
                    MemberChange::AddArbiter(_) => "arbiter",
                    _ => "data",
                };
                format!("{node} has role {role} in its configuration, and would need {needed}")
            }
            (None, None) => format!("{node} is not here; here are {}", self.here()),
        }
    }

    fn voter_count(&self, change: MemberChange) -> String {
        let members = &self.overview.settings.members;
        match (&members.arbiter, change) {
            (Some(arbiter), MemberChange::AddArbiter(_)) => {
                format!("{} is the arbiter, and there is one only", arbiter.node)
            }
            (Some(arbiter), _) => format!(
                "an arbiter is there for two voters, no more and no less: 'standbyctl arbiter \
                 remove {}' first",
                arbiter.node
            ),
            (None, MemberChange::AddArbiter(_)) => format!(
                "an arbiter decides between two voters; voters are {}",
                names(members.voters.iter())
            ),
            (None, _) => format!("there are {VOTERS_MAX} voters, and no more can be counted"),
        }
    }
}
