//! One node of a replicated storage: the rules by which no acknowledged transaction is lost, and no
//! two nodes commit.
//!
//! [`Replica::step`] takes an event and gives back what is to be done. There are no clocks,
//! sockets, files or threads in here; what travels how, what a transaction is, and what a disk is,
//! others know. The rules and why they are so: [`replication`](crate::manual::replication).
//!
//! ```text
//!                 view: no live primary, a quorum is here, and this node is the best
//!    Replica ─────────────────────────────────────────────────────────────► Candidate
//!       ▲  ▲                                                                    │
//!       │  └── a higher epoch; no quorum of promises in time ───────────────────┤
//!       │                                          a quorum, no newer log (R5)  │
//!       │                                                                       ▼
//!       └── a higher epoch (R3); no sign of a quorum for a lease; no room ── Primary
//!                                                            barrier entry applied: open
//! ```
//!
//! | part | for |
//! |---|---|
//! | `event` | what goes in and comes out |
//! | `message` | what replicas say to each other |
//! | `codec` | the same as pickles |
//! | `settings`, `members` | what is agreed on, who is counted |
//! | `log` | what is known of the log without reading it |
//! | `lineage` | which transactions clients may have seen |
//! | `view` | who is there; the barrier of a view |
//! | `election` | claims and promises: R1-R6 |
//! | `primary` | proposals, counting, the lease: R7, R10, R14 |
//! | `follow` | what a replica does with the primary's log: R8, R9, R11, R15 |
//! | `recovery` | fetching, copies, and serving those who fetch |
//! | `serving` | what clients may do; R12, R13, and the ends of finishes |
//! | `admin` | swaps, changes of the members, packs, oids |
//! | `arbiter` | a node without data |
//! | `overview` | how things are, for people |

mod admin;
mod arbiter;
pub mod codec;
mod election;
pub mod event;
mod follow;
pub mod lineage;
mod log;
pub mod members;
pub mod message;
pub mod mutant;
pub mod overview;
mod primary;
mod recovery;
mod serving;
pub mod settings;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use admin::Errands;
use election::{Candidate, Purpose};
use event::{Action, Event, Fatal, Notice, Now, Options, Start};
use follow::Leader;
use log::Log;
use members::{Members, Voter};
use message::{Content, Message, Position, Role, Sender};
use primary::Primary;
use recovery::Recovery;
use serving::Finishes;
use view::{Clock, View};

use crate::group::MemberId;
use crate::ids::{Epoch, HistoryId, Seq};

/// See the module's page.
#[derive(Debug)]
pub struct Replica {
    options: Options,
    history: HistoryId,
    me: Voter,
    log: Log,
    /// The highest epoch that it obeys. It is never lowered.
    promised: Epoch,
    /// The highest epoch whose promise is on stable storage, at most `promised`. Nobody hears of
    /// one that is not.
    durable: Epoch,
    /// The promise on its way to the disk, and what it is for: that of `promised`.
    promising: Option<Purpose>,
    /// Who claimed `promised`: another disk that goes by the same name is not answered. It is not
    /// known after a start.
    promised_to: Option<Voter>,
    /// Nothing is promised to others before: a primary may be there that it has not heard of yet.
    reticent_until: Instant,
    office: Office,
    /// The primary of `promised`, if it has been heard of.
    leader: Option<Leader>,
    /// The log up to here is known to be the same as that of the primary of `promised`.
    matched: Seq,
    recovery: Recovery,
    view: Option<View>,
    /// There is no view since then.
    lost_since: Option<Instant>,
    finishes: Finishes,
    errands: Errands,
    /// Of an arbiter: what is on its way to the disk.
    recording: BTreeMap<Position, Members>,
    /// Nothing is claimed before.
    quiet_until: Instant,
    /// Claims that came to nothing since a primary was heard of.
    failures: u32,
    /// See [`Event::StandAside`].
    stands_aside: bool,
    /// How wrong the clock is, as was told last.
    clock: Clock,
    /// It is worse since then.
    clock_worse_since: Option<Instant>,
    ticked: Instant,
    now: Now,
    actions: Vec<Action>,
    is_stopped: bool,
}

/// What the node does.
#[derive(Debug)]
enum Office {
    Replica,
    Candidate(Box<Candidate>),
    Primary(Box<Primary>),
}

impl Replica {
    /// A node that starts with this (R16): it is a replica, and in no view.
    pub fn new(options: Options, start: Start, now: Now) -> Self {
        let Start {
            history,
            me,
            promised,
            log,
        } = start;
        let packed = log.packed.clone();
        let log = Log::new(log);
        // One who decides alone has nobody to listen for.
        let is_alone = log.settings().members.electors().count() == 1;
        let reticence = if is_alone {
            Duration::ZERO
        } else {
            options.pace()
        };
        let reticent_until = now.instant + reticence;
        Self {
            options,
            history,
            me,
            matched: log.committed(),
            log,
            promised,
            durable: promised,
            promising: None,
            promised_to: None,
            reticent_until,
            office: Office::Replica,
            leader: None,
            recovery: Recovery::new(now),
            view: None,
            lost_since: None,
            finishes: Finishes::new(now),
            errands: Errands::new(packed),
            recording: BTreeMap::new(),
            quiet_until: reticent_until,
            failures: 0,
            stands_aside: false,
            clock: Clock::Right,
            clock_worse_since: None,
            ticked: now.instant,
            now,
            actions: Vec::new(),
            is_stopped: false,
        }
    }

    /// Takes an event; what is to be done now, in this order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Action> {
        if self.is_stopped {
            return Vec::new();
        }
        self.now = now;
        self.on_event(event);
        if !self.is_stopped {
            self.go_on();
        }
        std::mem::take(&mut self.actions)
    }

    /// When to come with [`Event::Deadline`], whatever else happens.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.is_stopped).then(|| self.ticked + self.tick())
    }

    /// See [`Options::pace`].
    fn pace(&self) -> Duration {
        self.options.pace()
    }

    /// How often it looks at the time.
    fn tick(&self) -> Duration {
        self.pace() / 20
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Deadline => {}
            Event::View { id, members, me } => self.on_view(id, members, me),
            Event::Lost => self.on_lost(),
            Event::Message { from, message } => self.on_message(&from, message),
            Event::Requested { from, fetch } => self.on_requested(from, &fetch),
            Event::Fetched(fetched) => self.on_fetched(fetched),
            Event::FetchFailed { id } => self.on_fetch_failed(id),
            Event::Copied { id, log } => self.on_copied(id, *log),
            Event::Replaced { history_from } => self.log.set_history_from(history_from),
            Event::Synced { through } => self.on_synced(through),
            Event::Promised(epoch) => self.on_promised(epoch),
            Event::Cut { last, last_tid } => self.on_cut(last, last_tid),
            Event::Applied { through } => self.on_applied(through),
            Event::Recorded(position) => self.on_record_kept(position),
            Event::NoRoom { last, last_tid } => self.on_no_room(last, last_tid),
            Event::Finish {
                token,
                body,
                tid,
                oids,
            } => self.on_finish(token, body, tid, &oids),
            Event::AllocateOids {
                token,
                storage,
                count,
            } => self.on_allocate_oids(token, storage, count),
            Event::Confirm { token } => self.on_confirm(token),
            Event::Drained => self.on_drained(),
            Event::Packed => self.on_packed(),
            Event::Swap { token, to } => self.on_swap(token, to),
            Event::TakeOffice { token } => self.on_take_office(token),
            Event::StandAside(aside) => self.on_stand_aside(aside),
            Event::Resign => self.leave_office(),
            Event::ChangeMembers { token, change } => self.on_change_members(token, change),
            Event::OrderPack {
                token,
                storage,
                tid,
            } => self.on_order_pack(token, storage, tid),
        }
    }

    fn on_message(&mut self, from: &MemberId, message: Message) {
        let Message { sender, content } = message;
        if sender.history != self.history {
            self.ignore_foreign(from, &sender, &content);
            return;
        }
        let is_of_office = matches!(
            content,
            Content::Claim { .. }
                | Content::Promise { .. }
                | Content::Propose { .. }
                | Content::Commit { .. }
                | Content::Handover { .. }
        );
        if is_of_office && self.is_impostor(&sender) {
            return;
        }
        let is_mine = self.is_me(from);
        match content {
            Content::State(state) => self.on_state(from, sender, *state),
            Content::Unblock { view } => self.on_unblock(from, view),
            // What else comes back is known.
            _ if is_mine => {}
            Content::Claim { epoch, handover } => self.on_claim(from, &sender, epoch, handover),
            Content::Promise {
                epoch,
                last,
                record,
            } => self.on_promise(sender.voter(), epoch, last, record),
            Content::Propose {
                previous,
                committed,
                entry,
            } => self.on_propose(from, previous, committed, entry),
            Content::Ack {
                epoch,
                seq,
                applied,
                beat,
            } => self.on_ack(sender.voter(), epoch, seq, applied, beat),
            Content::Commit {
                epoch,
                committed,
                last,
                beat,
                wall: _,
            } => self.on_commit(from, epoch, committed, last, beat),
            Content::Handover { epoch, to } => self.on_handover(epoch, to),
            Content::Ask { epoch, id } => self.on_ask(from, epoch, id),
            Content::Told {
                epoch,
                id,
                committed,
            } => self.on_told(epoch, id, committed),
            Content::Record(record) => self.on_record(from, record),
            Content::Recorded(position) => self.on_recorded(sender.voter(), position),
            Content::Packing { epoch, stage } => self.on_packing(from, &sender, epoch, stage),
            Content::Pack { epoch, node } => self.on_pack_turn(epoch, node),
        }
    }

    /// What follows from all that is known now. Each part is asked in each step; what has been done
    /// already is not done again.
    fn go_on(&mut self) {
        let is_tick = self.now.instant >= self.ticked + self.tick();
        if is_tick {
            self.ticked = self.now.instant;
            self.look_at_lease();
            self.look_at_candidate();
            self.look_at_recovery();
            self.look_at_admin();
            self.look_at_clock();
        }
        self.go_on_with_view();
        self.go_on_following();
        self.advance();
        self.apply();
        self.end_finishes();
        self.answer_confirms();
        self.acknowledge();
        self.look_for_primary();
        self.go_on_with_admin();
        self.say_state();
        self.serve();
        self.take_held();
    }

    fn sender(&self) -> Sender {
        Sender {
            history: self.history,
            node: self.me.node,
            disk: self.me.disk,
        }
    }

    fn send_all(&mut self, content: Content) {
        if self.view.is_some() {
            let sender = self.sender();
            self.actions
                .push(Action::SendAll(Message { sender, content }));
        }
    }

    fn send_one(&mut self, to: &MemberId, content: Content) {
        if self.view.is_some() {
            let sender = self.sender();
            let message = Message { sender, content };
            self.actions.push(Action::SendOne(to.clone(), message));
        }
    }

    fn tell(&mut self, notice: Notice) {
        self.actions.push(Action::Tell(notice));
    }

    fn stop(&mut self, fatal: Fatal) {
        self.is_stopped = true;
        self.actions.push(Action::Stop(fatal));
    }

    /// What it does.
    pub const fn role(&self) -> Role {
        match self.office {
            Office::Replica => Role::Replica,
            Office::Candidate(_) => Role::Candidate,
            Office::Primary(_) => Role::Primary,
        }
    }

    /// The highest epoch that it obeys.
    pub const fn promised(&self) -> Epoch {
        self.promised
    }

    /// Where its log ends.
    pub const fn last(&self) -> Position {
        self.log.last()
    }

    /// What it knows to be committed.
    pub const fn committed(&self) -> Seq {
        self.log.committed()
    }

    /// What it believes to be on stable storage.
    pub const fn synced(&self) -> Seq {
        self.log.synced()
    }

    /// What is settled as of what is committed.
    pub const fn settings(&self) -> &settings::Settings {
        self.log.settled()
    }

    /// What must hold between any two steps.
    ///
    /// # Panics
    ///
    /// If it does not: that is a bug here.
    pub fn invariants(&self) {
        self.log.invariants();
        assert!(self.durable <= self.promised, "a promise was lowered");
        assert!(
            self.matched <= self.log.last().seq,
            "matched behind the end"
        );
        let office = match &self.office {
            Office::Replica => return,
            Office::Candidate(candidate) => candidate.epoch,
            Office::Primary(primary) => primary.epoch,
        };
        assert_eq!(office, self.promised, "in office in an epoch that is over");
        assert_eq!(office.node, self.me.node, "in somebody else's epoch");
        assert!(self.leader.is_none(), "in office, and follows somebody");
    }
}
