//! What the thread of the journal is to do, one thing after the other, and what comes of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::disk::{Done, Opened, Ran, Request};
use super::{CHECKPOINT_INTERVAL, HOLD_RETRY, Node, Output};
use crate::limits::{
    ANSWERS_HELD_MAX, BLOBS_LOG_INTERVAL, DISK_SLOW, DISK_SLOW_TOLD, UNWRITTEN_MAX,
};
use crate::log_disk::DiskAction;
use crate::replica::event::{Action, Event, Now, Outcome};
use crate::replica::message::Fetch;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct DiskQueue {
    /// Behind what it does.
    waiting: VecDeque<Request>,
    is_busy: bool,
    /// When it began what should not take long.
    since: Option<Instant>,
    /// That it takes long was told, last at this time.
    is_slow: bool,
    told: Option<Instant>,
    /// What there was no room for, and when it is tried again.
    stalled: Option<(DiskAction, Instant)>,
    /// That there is none was told.
    is_full: bool,
    /// When it was told last that there is none for blobs.
    blobs_told: Option<Instant>,
    /// Bytes of entries that wait, and of those that it is at.
    waiting_len: u64,
    busy_len: u64,
    /// To be asked of the node at this address when there are fewer.
    fetch: Option<(String, Fetch)>,
}

/// Bytes of entries that it appends, or looks for blobs of.
fn len_of(request: &Request) -> u64 {
    let (Request::Run(DiskAction::Append(entries)) | Request::FindMissing { entries, .. }) =
        request
    else {
        return 0;
    };
    entries.iter().map(|entry| entry.header().body_len).sum()
}

impl DiskQueue {
    /// Whether it does something, or is to.
    pub(super) fn is_writing(&self) -> bool {
        self.is_busy || !self.waiting.is_empty()
    }

    /// What waits for its turn.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Request> {
        self.waiting.iter()
    }

    /// Nothing of that is to be done any more.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.waiting_len = 0;
        self.fetch = None;
    }

    /// Whether more entries would be too many.
    pub(super) const fn is_crowded(&self) -> bool {
        self.waiting_len + self.busy_len >= UNWRITTEN_MAX
    }

    /// When [`Node::look_at_disk`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stalled = self.stalled.as_ref().map(|(_, at)| *at);
        let since = self.since.filter(|_| !self.is_slow);
        let not_before = self.told.map(|at| at + DISK_SLOW_TOLD);
        let slow = since.map(|at| (at + DISK_SLOW).max(not_before.unwrap_or(at)));
        stalled.into_iter().chain(slow).min()
    }

    /// It is told to do this now.
    pub(super) fn on_begun(&mut self, request: &Request, now: Instant) {
        let may_be_long = matches!(
            request,
            Request::Found(_)
                | Request::Seed { .. }
                | Request::Adopt { .. }
                | Request::ReplaceData { .. }
        );
        self.since = (!may_be_long).then_some(now);
    }
}

impl Node {
    pub(super) fn enqueue(&mut self, mut request: Request) {
        self.disk.waiting_len += len_of(&request);
        if let Request::Run(action) = request {
            match (self.disk.waiting.back_mut(), action) {
                (Some(Request::Run(last)), action) => match last.join(action) {
                    Ok(()) => return,
                    Err(action) => request = Request::Run(action),
                },
                (_, action) => request = Request::Run(action),
            }
        }
        self.disk.waiting.push_back(request);
        self.go_on_with_disk();
    }

    fn go_on_with_disk(&mut self) {
        if !self.disk.is_busy
            && let Some(request) = self.disk.waiting.pop_front()
        {
            self.disk.is_busy = true;
            self.disk.busy_len = len_of(&request);
            self.disk.waiting_len -= self.disk.busy_len;
            self.outputs.push_back(Output::Disk(request));
        }
    }

    /// Asks another node for entries, now or when there is room for them.
    pub(super) fn fetch_entries(&mut self, address: String, fetch: Fetch) {
        // The last one that was wanted is the only one that is.
        self.disk.fetch = Some((address, fetch));
        self.send_fetch();
    }

    /// Asks for them if nothing is in the way: the replica asks again and again, and knows nothing
    /// of the disk, nor of answers that wait for their blobs. Whoever asks to take office, or of
    /// another primary, is not kept waiting by an answer from before.
    pub(super) fn send_fetch(&mut self) {
        let Some((_, fetch)) = &self.disk.fetch else {
            return;
        };
        let is_another = fetch.is_claim || self.held.answers().all(|it| it != fetch.epoch);
        if !self.disk.is_crowded()
            && is_another
            && self.held.answers().count() < ANSWERS_HELD_MAX
            && let Some((address, fetch)) = self.disk.fetch.take()
        {
            self.outputs.push_back(Output::Fetch { address, fetch });
        }
    }

    /// The disk has done what it was asked for last.
    pub fn on_disk(&mut self, done: Done, now: Now) {
        self.disk.is_busy = matches!(done, Done::Full(..));
        self.disk.is_full &= self.disk.is_busy;
        if !self.disk.is_busy {
            self.disk.busy_len = 0;
        }
        let since = self.disk.since.take();
        if std::mem::take(&mut self.disk.is_slow)
            && let Some(since) = since
        {
            let seconds = now.instant.saturating_duration_since(since).as_secs_f64();
            let text = format!("the disk of this node answers again, after {seconds:.1} s");
            self.tell(text, now);
        }
        self.go_on_with_disk();
        self.send_fetch();
        match done {
            Done::Ran(ran) => self.on_ran(*ran, now),
            Done::Taken(id) => {
                if let Some(finish) = self.finishing.remove(&id) {
                    self.propose(finish, now);
                }
            }
            Done::NotTaken(id, why) => self.on_blobs_not_taken(id, &why, now),
            Done::Missing(id, missing) => self.on_missing(id, missing, now),
            Done::Supplied(id, answer) => self.outputs.push_back(Output::Supply(id, answer)),
            Done::Opened(opened) => self.run(*opened, now),
            Done::Adopted(id, opened) => {
                self.copying.take_if(|copying| *copying == id);
                let Opened { start, data, past } = *opened;
                self.roster.on_founded(start.history, start.me.disk, past);
                self.say_hello();
                self.replace_data(data);
                let log = Box::new(start.log);
                self.step(Event::Copied { id, log }, now);
            }
            Done::NotAdopted(id, why) => {
                self.copying.take_if(|copying| *copying == id);
                self.tell(format!("a copy is of no use: {why}"), now);
                self.step(Event::FetchFailed { id }, now);
            }
            Done::DataReplaced(id, data, history_from) => {
                self.step(Event::Replaced { history_from }, now);
                self.on_data_replaced(id, *data, now);
            }
            Done::NotReplaced(id, what) => self.on_not_replaced(id, what, now),
            Done::PackBegun(begun) => self.on_pack_begun(begun),
            Done::PackTurn(packing, turn) => self.on_pack_turn(packing, turn),
            Done::PackNoted(len) => self.on_pack_noted(len, now),
            Done::PackNotNoted(request, why) => self.on_pack_not_noted(request, &why, now),
            Done::Settled => {}
            Done::Full(action, why) => {
                // One after the other: what is behind it waits, too.
                if !std::mem::replace(&mut self.disk.is_full, true) {
                    self.tell(format!("this node waits, as the disk is full: {why}"), now);
                }
                self.disk.stalled = Some((action, now.instant + HOLD_RETRY));
            }
            Done::Failed(why) => self.stop(format!("the disk: {why}")),
        }
    }

    /// There is no room for the blobs of a transaction, which was not proposed: its client hears of
    /// that, and may try it again. Others need none of that room, and go on.
    fn on_blobs_not_taken(&mut self, id: u64, why: &str, now: Now) {
        let told = self.disk.blobs_told;
        if told.is_none_or(|at| now.instant >= at + BLOBS_LOG_INTERVAL) {
            self.disk.blobs_told = Some(now.instant);
            let text = format!("transactions with blobs are refused, as the disk is full: {why}");
            self.tell(text, now);
        }
        if let Some(finish) = self.finishing.remove(&id) {
            let outcome = Output::Outcome(finish.token, Outcome::Lost);
            self.outputs.push_back(outcome);
        }
    }

    /// Tries again what there was no room for, and says so if the disk takes too long.
    pub(super) fn look_at_disk(&mut self, now: Now) {
        let stalled = &mut self.disk.stalled;
        if let Some((action, _)) = stalled.take_if(|(_, at)| *at <= now.instant) {
            self.outputs.push_back(Output::Disk(Request::Run(action)));
        }
        let is_slow = |since: Instant| now.instant >= since + DISK_SLOW;
        let is_again = |told: Instant| now.instant < told + DISK_SLOW_TOLD;
        if self.disk.since.is_some_and(is_slow)
            && !self.disk.told.is_some_and(is_again)
            && !std::mem::replace(&mut self.disk.is_slow, true)
        {
            self.disk.told = Some(now.instant);
            let seconds = DISK_SLOW.as_secs();
            let text = format!(
                "the disk of this node has not answered for {seconds} s: meanwhile it acknowledges \
                 and promises nothing"
            );
            self.tell(text, now);
        }
    }

    /// What was applied is told together with the ends of our clients' finishes, so that each hears
    /// of them in the order of the log.
    fn on_ran(&mut self, ran: Ran, now: Now) {
        let Ran {
            event,
            news,
            data,
            packs,
            hold,
        } = ran;
        match hold {
            Some((through, hold)) => self.on_hold(through, hold, now),
            None if matches!(event, Some(Event::Applied { .. })) => self.on_room(now),
            None => {}
        }
        let actions = match event {
            Some(event) => self.actions_of(event, now),
            None => Vec::new(),
        };
        let mut ours = BTreeMap::new();
        let mut others = Vec::new();
        for action in actions {
            match action {
                Action::Reply {
                    token,
                    outcome: Outcome::Committed { seq, .. },
                } => {
                    ours.insert(seq, token);
                }
                action => others.push(action),
            }
        }
        if !news.applied.is_empty() {
            self.checkpoint_at
                .get_or_insert(now.instant + CHECKPOINT_INTERVAL);
        }
        let mut applied = news.applied;
        if let Some(data) = data {
            // It was too much to be told one by one, and is in there.
            applied.clear();
            self.replace_data(data);
        }
        let applied = applied.into_iter();
        let applied: Vec<_> = applied
            .map(|applied| {
                let token = ours.remove(&applied.seq);
                (applied, token)
            })
            .collect();
        if !applied.is_empty() {
            self.outputs.push_back(Output::Applied(applied));
        }
        if let Some(packs) = packs {
            self.set_pack_orders(packs);
        }
        // What was applied is not told one by one: the server does not know which is whose.
        for (_, token) in ours {
            self.outputs
                .push_back(Output::Outcome(token, Outcome::Unknown));
        }
        for action in others {
            self.act(action, now);
        }
        self.look_at_refresh(now);
    }
}
