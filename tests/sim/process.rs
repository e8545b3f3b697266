//! What a process does: its replica's steps, and what these want done.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checker::Checked;
use crate::group::{Lane, MemberId, ViewId};
use crate::ids::{Epoch, Seq};
use crate::node::SeenView;
use crate::plan::Fault;
use crate::replica::event::{Action, Event, Notice, Writers};
use crate::replica::message::{Content, Fetch, Fetched, Message, NodeKind, Role, Supply};
use crate::store::{Job, change_of};
use crate::world::{Happening, World};
use standby::limits::PACE_MAX;

/// Bytes of entries in the answer to a fetch.
const FETCHED_LEN_MAX: u64 = 8 * 1024;

/// A replica that wants to be woken more often than this at one moment does nothing else.
const WAKES_MAX: u32 = 1000;

impl World {
    /// A step of a replica.
    pub(crate) fn step(&mut self, node: usize, event: Event) -> Checked {
        self.steps += 1;
        self.note_event(node, &event);
        let now = self.now_of(node);
        let place = self.nodes[node].place();
        let Some(process) = self.nodes[node].process.as_mut() else {
            return Ok(());
        };
        match &event {
            Event::View { id, members, .. } => {
                let (id, members) = (*id, members.iter().cloned().collect());
                process.view = Some(SeenView {
                    id,
                    members,
                    since: self.now,
                });
            }
            Event::Lost => process.view = None,
            Event::Message { from, message } => {
                if let Content::Unblock { view } = &message.content {
                    let unblocked = process.unblocked.entry(*view).or_default();
                    unblocked.insert(from.clone());
                }
            }
            Event::Applied { through } => process.applied = *through,
            Event::Copied { log, .. } => process.applied = log.applied,
            // Only now does it know.
            Event::NoRoom { last, .. } => self.checker.on_no_room(&place, last.seq),
            _ => {}
        }
        let is_of_primary = matches!(
            &event,
            Event::Message { message, .. } if matches!(
                message.content,
                Content::Propose { .. } | Content::Commit { .. } | Content::State(_)
            )
        );
        let before = (process.replica.role(), process.replica.promised());
        let actions = process.replica.step(event, now);
        process.replica.invariants();
        let after = (process.replica.role(), process.replica.promised());
        if let Some(mark) = mark_of(before, after, is_of_primary) {
            self.marks.hit(mark);
        }
        if after.0 == Role::Primary && process.ordered.take_if(|it| *it == after.1).is_some() {
            self.marks.hit("office taken by order");
        }
        for action in actions {
            if !self.nodes[node].is_up() {
                break;
            }
            self.act(node, action)?;
        }
        // An arbiter knows of records, and not what is committed.
        let has_data = self.nodes[node].plan.kind != NodeKind::Arbiter;
        if let Some(process) = self.nodes[node].process.as_mut().filter(|_| has_data) {
            let known = process.replica.committed();
            if known > process.known {
                process.known = known;
                self.checker.on_known(&place, known)?;
            }
        }
        self.rewake(node);
        Ok(())
    }

    fn act(&mut self, node: usize, action: Action) -> Checked {
        self.note_action(node, &action);
        self.users.on_action(node, &action, self.now);
        let place = self.nodes[node].place();
        let Some(process) = self.nodes[node].process.as_mut() else {
            return Ok(());
        };
        let id = process.id;
        match action {
            Action::SendAll(message) => self.send(node, None, &message)?,
            Action::SendOne(to, message) => self.send(node, Some(&to), &message)?,
            Action::Fetch { to, fetch } => {
                if fetch.is_claim {
                    self.marks.hit("candidate fetched");
                }
                self.fetch(node, &to, fetch);
            }
            Action::Supply {
                to,
                answer,
                entries,
            } => self.supply(node, &to, *answer, entries),
            Action::Copy {
                id: request,
                from,
                at_least,
                ..
            } => {
                self.marks.hit("catch-up by copy");
                let from = self.node_of(&from).unwrap_or(usize::MAX);
                let time = self.within(100, 3000);
                let what = Happening::Copied {
                    node,
                    process: id,
                    id: request,
                    from,
                    at_least,
                };
                self.after(time, what);
            }
            Action::Append(entries) => {
                let is_primary = process.replica.role() == Role::Primary;
                let office = is_primary.then(|| process.replica.promised());
                self.checker.on_append(place, id, &entries, office)?;
                self.push_job(node, Job::Append(entries));
            }
            Action::Promise(epoch) => self.push_job(node, Job::Promise(epoch)),
            Action::Cut { after, committed } => {
                let known = process.replica.committed();
                self.checker.on_cut(&place, after, known.max(committed))?;
                self.push_job(node, Job::Cut { after, committed });
            }
            Action::Apply { through } => {
                self.checker.on_apply(&place, through)?;
                self.push_job(node, Job::Apply { through });
            }
            Action::Record(position, members) => {
                self.push_job(node, Job::Record(position, members));
            }
            Action::Serve(serving) => process.serving = serving,
            Action::Confirmed { token, is_sure } => {
                let exposed = self.confirms.remove(&token.0).unwrap_or(0);
                if is_sure && place.0 == self.history {
                    self.marks.hit("confirmed");
                    if process.applied.0 < exposed {
                        let applied = process.applied;
                        return Err(format!(
                            "I12: {} is sure of {applied}, and {exposed} could be seen before",
                            place.1
                        ));
                    }
                }
            }
            Action::Pack { storage, pack } => {
                process.packing = Some((storage, pack.at));
                self.check_packs()?;
                let time = self.within(10, 2000);
                self.marks.hit("pack begun");
                self.after(time, Happening::Packed { node, process: id });
            }
            Action::Answer { token, result } => {
                let Some((_, what)) = self.asked.remove(&token.0) else {
                    // Nobody waits for what was left behind by a forced promotion.
                    if place.0 != self.history {
                        return Ok(());
                    }
                    return Err(format!("{token:?} is answered twice, or was never asked"));
                };
                if what == "office" && result.is_ok() {
                    process.ordered = Some(process.replica.promised());
                }
                self.marks.hit(match (what, result.is_ok()) {
                    ("swap", true) => "swap done",
                    ("swap", false) => "swap failed",
                    ("office", true) => "office ordered",
                    ("office", false) => "order of office refused",
                    ("members", true) => "member changed",
                    ("members", false) => "member change refused",
                    ("arbiter", true) => "arbiter changed",
                    ("arbiter", false) => "arbiter change refused",
                    (_, true) => "pack ordered",
                    (_, false) => "pack refused",
                });
            }
            Action::Tell(notice) => self.told(node, &notice),
            Action::Stop(fatal) => {
                return Err(format!("{} must not go on: {fatal}", self.nodes[node].name));
            }
            Action::Reply { .. } | Action::Oids { .. } => {}
        }
        Ok(())
    }

    /// Packs slow a node down: of those who serve, not most do it at a time. Who was cut off may
    /// still be at it when others begin.
    fn check_packs(&self) -> Checked {
        let faults = self.plan.faults.iter();
        let is_operation = |fault: &Fault| matches!(fault, Fault::Pack);
        let is_quiet = faults.map(|it| &it.fault).all(is_operation);
        let packing = self
            .nodes
            .iter()
            .filter_map(|node| node.process.as_ref()?.packing.as_ref());
        let count = packing.count();
        if is_quiet && !self.is_calm && count > 1 && 3 * count > self.nodes.len() {
            return Err(format!(
                "{count} of {} nodes pack at a time",
                self.nodes.len()
            ));
        }
        Ok(())
    }

    fn told(&mut self, node: usize, notice: &Notice) {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        match notice {
            Notice::Promoted(epoch) => {
                process.promoted = Some(*epoch);
                self.marks.hit("promoted");
            }
            Notice::Demoted(_) => {
                process.promoted = None;
                self.marks.hit("demoted");
            }
            Notice::Rewound { .. } => self.marks.hit("S1 rewind"),
            Notice::NoRoom => self.marks.hit("no room"),
            Notice::ClockOff(_) => self.marks.hit("clock off"),
            Notice::OtherDisk(_) => self.marks.hit("other disk seen"),
            Notice::Namesakes(_) => self.marks.hit("namesakes seen"),
            Notice::OtherHistory(..) => self.marks.hit("other history seen"),
            Notice::Copying => {}
        }
    }

    fn send(&mut self, node: usize, to: Option<&MemberId>, message: &Message) -> Checked {
        let place = self.nodes[node].place();
        let Some(process) = self.nodes[node].process.as_ref() else {
            return Ok(());
        };
        let id = process.id;
        if is_stream(&message.content) {
            self.check_barrier(node)?;
        }
        self.checker.on_sent(place, id, &message.content)?;
        if let Some(trace) = &mut self.trace {
            trace.at(self.now, self.steps);
            let receiver = to.map_or("all", |to| to.as_str());
            let _ = trace.sent(self.nodes[node].name.as_str(), receiver, message);
        }
        self.daemon.send(node, to, message, self.now);
        Ok(())
    }

    /// I15
    fn check_barrier(&self, node: usize) -> Checked {
        let it = &self.nodes[node];
        let Some(process) = &it.process else {
            return Ok(());
        };
        let Some(view) = &process.view else {
            return Err(format!("I15: {} sends without a view", it.name));
        };
        // One that does not unblock is waited for half a lease, and a second at most.
        let wait = self.plan.lease.min(PACE_MAX).mul_f64(0.49);
        if self.now >= view.since + wait {
            return Ok(());
        }
        let none = BTreeSet::new();
        let unblocked = process.unblocked.get(&view.id).unwrap_or(&none);
        if view.members.is_subset(unblocked) {
            return Ok(());
        }
        Err(format!(
            "I15: {} sends before all have unblocked {}",
            it.name,
            short(&view.id)
        ))
    }

    fn fetch(&mut self, node: usize, to: &MemberId, fetch: Fetch) {
        let it = &mut self.nodes[node];
        let Some(process) = it.process.as_mut() else {
            return;
        };
        let (id, process_id) = (fetch.id, process.id);
        process.fetches.insert(id);
        let target = self.daemon.node_of(to);
        let me = self.daemon.name_of(node).cloned();
        let reached = target.filter(|target| self.reaches(node, *target));
        let over = if reached.is_some() {
            self.within(1000, 5000)
        } else {
            self.within(1, 1500)
        };
        self.after(
            over,
            Happening::FetchOver {
                node,
                process: process_id,
                id,
            },
        );
        if let (Some(target), Some(from)) = (reached, me) {
            let time = self.direct_time(node, target);
            let process = self.nodes[target]
                .process
                .as_ref()
                .map_or(0, |process| process.id);
            let event = Event::Requested { from, fetch };
            self.after(
                time,
                Happening::Direct {
                    node: target,
                    process,
                    event,
                },
            );
        }
    }

    fn supply(
        &mut self,
        node: usize,
        to: &MemberId,
        mut answer: Fetched,
        range: Option<(Seq, Seq)>,
    ) {
        let Some(process) = self.nodes[node].process.as_ref() else {
            return;
        };
        if let (Some((from, last)), Supply::Entries { entries, .. }) = (range, &mut answer.what) {
            match process.store.entries(from, last, FETCHED_LEN_MAX) {
                Some(found) => *entries = found,
                None => {
                    let before = process.store.base().seq;
                    answer.what = Supply::Released { before };
                }
            }
        }
        let Some(target) = self.daemon.node_of(to) else {
            return;
        };
        if !self.reaches(node, target) || self.nodes[target].process.is_none() {
            return;
        }
        let time = self.direct_time(node, target);
        let process = self.nodes[target]
            .process
            .as_ref()
            .map_or(0, |process| process.id);
        let id = answer.id;
        match &answer.what {
            Supply::Entries { entries, .. } if !entries.is_empty() => {
                self.marks.hit("catch-up by journal");
            }
            Supply::Released { .. } => self.marks.hit("fetch: released"),
            Supply::Apart => self.marks.hit("fetch: apart"),
            Supply::Refused => self.marks.hit("fetch: refused"),
            Supply::Entries { .. } => {}
        }
        let event = Event::Fetched(answer);
        self.after(
            time,
            Happening::Fetched {
                node: target,
                process,
                id,
                event,
            },
        );
    }

    /// Whether one gets through to the other directly.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        let is_cut = |a, b| self.cuts.get(&(a, b)).is_some_and(|count| *count > 0);
        from != to && self.nodes[to].is_up() && !is_cut(from, to) && !is_cut(to, from)
    }

    fn direct_time(&mut self, from: usize, to: usize) -> Duration {
        let until = self.nodes[from]
            .slow_links_until
            .max(self.nodes[to].slow_links_until);
        if self.now < until {
            self.within(200, 3000)
        } else {
            self.within(0, 10)
        }
    }

    /// Wakes a replica when it wants to be.
    pub(crate) fn rewake(&mut self, node: usize) {
        let it = &self.nodes[node];
        let Some(process) = it.process.as_ref() else {
            return;
        };
        let Some(deadline) = process.replica.deadline() else {
            return;
        };
        let steady = deadline.saturating_duration_since(crate::base());
        let at = it.unsteady(steady).max(self.now);
        if process.wake.is_none_or(|wake| at < wake) {
            let id = process.id;
            if let Some(process) = self.nodes[node].process.as_mut() {
                process.wake = Some(at);
            }
            self.at(at, Happening::Wake { node, process: id });
        }
    }

    pub(crate) fn wake(&mut self, node: usize) -> Checked {
        let now = self.now;
        let (is_paused, instant) = (
            self.nodes[node].paused_until.is_some(),
            self.now_of(node).instant,
        );
        let Some(process) = self.nodes[node].process.as_mut() else {
            return Ok(());
        };
        if process.wake.is_some_and(|wake| wake > now) {
            return Ok(());
        }
        process.wake = None;
        if is_paused {
            return Ok(());
        }
        if process
            .replica
            .deadline()
            .is_none_or(|deadline| deadline > instant)
        {
            self.rewake(node);
            return Ok(());
        }
        process.wakes = match process.wakes {
            (at, count) if at == now => (at, count + 1),
            _ => (now, 1),
        };
        if process.wakes.1 > WAKES_MAX {
            return Err(format!(
                "{} wants to be woken again and again",
                self.nodes[node].name
            ));
        }
        self.step(node, Event::Deadline)
    }

    /// The primary that is open for writers, if there is one.
    pub(crate) fn primary(&self) -> Option<usize> {
        let nodes = self.nodes.iter().enumerate();
        let mut open = nodes.filter(|(_, node)| {
            let process = node.process.as_ref();
            process.is_some_and(|process| process.serving.writers == Writers::Open)
        });
        let found = open.find(|(_, node)| node.history == self.history);
        found.map(|(index, _)| index)
    }

    fn note_event(&mut self, node: usize, event: &Event) {
        if !self.logs && self.trace.is_none() {
            return;
        }
        if let (Event::Message { from, message }, Some(trace)) = (event, &mut self.trace) {
            trace.at(self.now, self.steps);
            let _ = trace.received(self.nodes[node].name.as_str(), from.as_str(), message);
        }
        self.note(node, "event", || brief(event));
    }

    fn note_action(&mut self, node: usize, action: &Action) {
        self.note(node, "action", || match action {
            Action::Append(entries) => {
                let entries: Vec<String> = entries
                    .iter()
                    .map(|entry| {
                        let header = entry.header();
                        let change = change_of(entry).map(|change| format!("{:?}", change.kind()));
                        let change = change.unwrap_or_default();
                        format!("{}@{}{change}", header.seq, header.epoch)
                    })
                    .collect();
                format!("append {}", entries.join(" "))
            }
            Action::SendAll(message) => format!("all: {}", brief_content(&message.content)),
            Action::SendOne(to, message) => format!("{to}: {}", brief_content(&message.content)),
            action => shorten(format!("{action:?}")),
        });
    }
}

/// What is held back in a new view.
const fn is_stream(content: &Content) -> bool {
    matches!(content.lane(), Lane::Commit)
}

fn short(id: &ViewId) -> String {
    id.to_string()
}

fn brief(event: &Event) -> String {
    match event {
        Event::Message { from, message } => {
            format!("from {from}: {}", brief_content(&message.content))
        }
        event => shorten(format!("{event:?}")),
    }
}

fn brief_content(content: &Content) -> String {
    match content {
        Content::Propose {
            previous,
            committed,
            entry,
        } => {
            let header = entry.header();
            let (seq, epoch) = (header.seq, header.epoch);
            format!("propose {seq}@{epoch} behind {previous}, committed {committed}")
        }
        content => shorten(format!("{content:?}")),
    }
}

fn shorten(mut text: String) -> String {
    if text.len() > 400 {
        let end = (0..=400)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// What has become of an office, or of a promise, in one step.
fn mark_of(
    (role, promised): (Role, Epoch),
    (now, promises): (Role, Epoch),
    is_of_primary: bool,
) -> Option<&'static str> {
    let is_higher = promises > promised;
    Some(match (role, now) {
        (Role::Candidate, Role::Replica) if is_higher => "S4 claim beaten",
        (Role::Candidate, Role::Replica) => "S3 candidate withdrew",
        (Role::Candidate, Role::Primary) => "candidate in office",
        (Role::Primary, Role::Candidate) => "office renewed",
        (Role::Primary, Role::Replica) if is_higher => "primary beaten",
        (Role::Primary, Role::Replica) => "office left",
        (Role::Replica, Role::Replica) if is_higher && is_of_primary => "epoch adopted",
        _ => return None,
    })
}
