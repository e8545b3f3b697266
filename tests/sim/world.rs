//! The cluster: what happens when, and to whom.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::time::Duration;

use crate::checker::{Checked, Checker};
use crate::daemon::{Daemon, What};
use crate::entry::Body;
use crate::group::MemberId;
use crate::ids::{HistoryId, Seq};
use crate::marks::Marks;
use crate::node::Node;
use crate::plan::{Plan, millis};
use crate::random::Random;
use crate::replica::event::{Event, Now};
use crate::store::wrap;
use crate::trace::Trace;
use crate::users::Users;

/// Something that will happen.
pub(crate) enum Happening {
    /// The daemon has something for a member.
    Daemon {
        node: usize,
        attachment: u64,
        what: What,
    },
    /// Something comes to a process directly.
    Direct {
        node: usize,
        process: u64,
        event: Event,
    },
    /// An answer to a fetch comes, or a copy.
    Fetched {
        node: usize,
        process: u64,
        id: u64,
        event: Event,
    },
    /// Nobody has answered.
    FetchOver {
        node: usize,
        process: u64,
        id: u64,
    },
    /// A copy has been made, and is to be taken over.
    Copied {
        node: usize,
        process: u64,
        id: u64,
        from: usize,
        at_least: Seq,
    },
    DiskDone {
        node: usize,
        process: u64,
    },
    /// What was not applied is to be asked for again.
    Held {
        node: usize,
        process: u64,
        through: Seq,
    },
    Packed {
        node: usize,
        process: u64,
    },
    Wake {
        node: usize,
        process: u64,
    },
    /// Users want to go on.
    Users,
    /// A fault of the plan.
    Fault(usize),
    /// A fault ends.
    Heal(Heal),
    Start(usize),
    /// A node that has another history is made anew.
    Reseed(usize),
    Join {
        node: usize,
        process: u64,
        same_name: bool,
    },
    Resume(usize),
    /// Data are brought to the disk now and then.
    Checkpoint(usize),
}

/// What ends.
pub(crate) enum Heal {
    Groups,
    Late(usize),
    Cut(usize, usize),
    Full(usize),
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: Duration,
    pub(crate) steps: u64,
    queue: BTreeMap<(Duration, u64), Box<Happening>>,
    serial: u64,
    pub(crate) random: Random,
    pub(crate) nodes: Vec<Node>,
    pub(crate) daemon: Daemon,
    pub(crate) cuts: BTreeMap<(usize, usize), u32>,
    pub(crate) checker: Checker,
    pub(crate) users: Box<dyn Users>,
    pub(crate) marks: Marks,
    pub(crate) faults: Marks,
    pub(crate) processes: u64,
    pub(crate) disks: u64,
    /// The lineage that is in use.
    pub(crate) history: HistoryId,
    /// The administrator's requests that are not answered, by token.
    pub(crate) asked: BTreeMap<u64, (usize, &'static str)>,
    pub(crate) tokens: u64,
    /// Of confirmations: what had been exposed when they were asked for.
    pub(crate) confirms: BTreeMap<u64, u64>,
    /// The highest entry that anybody has applied, which is what may have been seen.
    pub(crate) exposed: u64,
    pub(crate) is_calm: bool,
    pub(crate) trace: Option<Trace<BufWriter<File>>>,
    pub(crate) logs: bool,
    /// It ends behind so many steps.
    pub(crate) steps_max: Option<u64>,
    users_at: Option<Duration>,
}

impl World {
    pub(crate) fn empty(plan: Plan, users: Box<dyn Users>, history: HistoryId) -> Self {
        let daemon = Daemon::new(plan.daemon, plan.nodes.len(), Random::of_step(plan.seed, 3));
        Self {
            now: Duration::ZERO,
            steps: 0,
            queue: BTreeMap::new(),
            serial: 0,
            random: Random::of_step(plan.seed, 2),
            nodes: Vec::new(),
            daemon,
            cuts: BTreeMap::new(),
            checker: Checker::default(),
            users,
            marks: Marks::default(),
            faults: Marks::default(),
            processes: 0,
            disks: 0,
            history,
            asked: BTreeMap::new(),
            tokens: 0,
            confirms: BTreeMap::new(),
            exposed: 0,
            is_calm: false,
            trace: None,
            logs: false,
            steps_max: None,
            users_at: None,
            plan,
        }
    }

    pub(crate) fn at(&mut self, at: Duration, what: Happening) {
        self.serial += 1;
        self.queue
            .insert((at.max(self.now), self.serial), Box::new(what));
    }

    pub(crate) fn after(&mut self, time: Duration, what: Happening) {
        self.at(self.now + time, what);
    }

    pub(crate) fn within(&mut self, from: u64, to: u64) -> Duration {
        millis(&mut self.random, from, to)
    }

    /// All until then.
    pub(crate) fn run_until(&mut self, end: Duration) -> Checked {
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), what) = entry.remove_entry();
            self.now = at;
            self.happen(*what)?;
            self.settle()?;
            if self.steps_max.is_some_and(|max| self.steps >= max) {
                return Err(format!("stopped behind step {}, as was wanted", self.steps));
            }
            if self.steps > STEPS_MAX {
                return Err(format!("L1: {STEPS_MAX} steps are not enough"));
            }
        }
        self.now = end;
        Ok(())
    }

    /// What follows from what has happened, at the same moment.
    pub(crate) fn settle(&mut self) -> Checked {
        loop {
            self.post();
            let events = self.users.take_events();
            if events.is_empty() {
                break;
            }
            for (node, event) in events {
                let event = match event {
                    Event::Finish {
                        token,
                        body,
                        tid,
                        oids,
                    } => {
                        let body = Body::new(wrap(body.pieces())).expect("it is short");
                        Event::Finish {
                            token,
                            body,
                            tid,
                            oids,
                        }
                    }
                    event => event,
                };
                if let Event::Confirm { token } = &event {
                    self.confirms.insert(token.0, self.exposed);
                }
                self.arrive(node, event)?;
            }
        }
        for body in self.users.take_lost() {
            self.checker.on_lost(&wrap(&body))?;
        }
        self.users.check()?;
        let wanted = self.users.deadline();
        if wanted.is_some() && (self.users_at.is_none() || wanted < self.users_at) {
            self.users_at = wanted;
            let at = wanted.unwrap_or_default();
            self.at(at, Happening::Users);
        }
        Ok(())
    }

    /// Takes what the daemon has to be delivered.
    fn post(&mut self) {
        for delivery in std::mem::take(&mut self.daemon.out) {
            let (node, attachment, what) = (delivery.to, delivery.attachment, delivery.what);
            self.at(
                delivery.at,
                Happening::Daemon {
                    node,
                    attachment,
                    what,
                },
            );
        }
    }

    fn happen(&mut self, what: Happening) -> Checked {
        match what {
            Happening::Daemon {
                node,
                attachment,
                what,
            } => self.deliver(node, attachment, what),
            Happening::Direct {
                node,
                process,
                event,
            } => {
                if self.is_running(node, process) {
                    self.arrive(node, event)?;
                }
                Ok(())
            }
            Happening::Fetched {
                node,
                process,
                id,
                event,
            } => {
                if self.is_running(node, process) && self.end_fetch(node, id) {
                    self.arrive(node, event)?;
                }
                Ok(())
            }
            Happening::FetchOver { node, process, id } => {
                if self.is_running(node, process) && self.end_fetch(node, id) {
                    self.arrive(node, Event::FetchFailed { id })?;
                }
                Ok(())
            }
            Happening::Copied {
                node,
                process,
                id,
                from,
                at_least,
            } => {
                if self.is_running(node, process) {
                    self.take_copy(node, id, from, at_least)?;
                }
                Ok(())
            }
            Happening::DiskDone { node, process } => {
                if self.is_running(node, process) {
                    self.disk_done(node)?;
                }
                Ok(())
            }
            Happening::Held {
                node,
                process,
                through,
            } => {
                if self.is_running(node, process) {
                    self.go_on_applying(node, through);
                }
                Ok(())
            }
            Happening::Packed { node, process } => {
                if self.is_running(node, process) {
                    self.packed(node)?;
                }
                Ok(())
            }
            Happening::Wake { node, process } => {
                if self.is_running(node, process) {
                    self.wake(node)?;
                }
                Ok(())
            }
            Happening::Users => {
                if self.users_at.is_none_or(|at| at > self.now) {
                    // They have been asked since, and want something later.
                    return Ok(());
                }
                self.users_at = None;
                self.users.run(self.now);
                Ok(())
            }
            Happening::Fault(index) => self.apply_fault(index),
            Happening::Heal(heal) => {
                self.heal(&heal);
                Ok(())
            }
            Happening::Start(node) => self.start(node),
            Happening::Reseed(node) => {
                self.reseed(node);
                Ok(())
            }
            Happening::Join {
                node,
                process,
                same_name,
            } => {
                if self.is_running(node, process) && !self.daemon.is_attached(node) {
                    let name = self.nodes[node].name;
                    self.daemon.join(node, name.as_str(), same_name, self.now);
                }
                Ok(())
            }
            Happening::Resume(node) => self.resume(node),
            Happening::Checkpoint(node) => self.checkpoint(node),
        }
    }

    pub(crate) fn is_running(&self, node: usize, process: u64) -> bool {
        self.nodes[node]
            .process
            .as_ref()
            .is_some_and(|it| it.id == process)
    }

    fn end_fetch(&mut self, node: usize, id: u64) -> bool {
        let process = self.nodes[node].process.as_mut();
        process.is_some_and(|process| process.fetches.remove(&id))
    }

    fn deliver(&mut self, node: usize, attachment: u64, what: What) -> Checked {
        let Some(process) = self.nodes[node].process.as_ref().map(|process| process.id) else {
            return Ok(());
        };
        // That it is out is told to who is out.
        if matches!(what, What::Lost) {
            if !self.daemon.is_attached(node) {
                let away = self.within(1, 500);
                let same_name = self.random.percent(20);
                self.after(
                    away,
                    Happening::Join {
                        node,
                        process,
                        same_name,
                    },
                );
                return self.arrive(node, Event::Lost);
            }
            return Ok(());
        }
        if !self.daemon.is_current(node, attachment) {
            return Ok(());
        }
        match what {
            What::View { id, members, me } => self.arrive(node, Event::View { id, members, me }),
            What::Message(post) => {
                if !self.daemon.passes(node, &post) {
                    self.marks.hit("message lost");
                    return Ok(());
                }
                let from = post.member.clone();
                let message = post.message.clone();
                self.arrive(node, Event::Message { from, message })
            }
            What::Lost => Ok(()),
        }
    }

    /// Something comes to a node, which may stand still.
    pub(crate) fn arrive(&mut self, node: usize, event: Event) -> Checked {
        let it = &mut self.nodes[node];
        if it.process.is_none() {
            return Ok(());
        }
        if it.paused_until.is_some() {
            it.inbox.push_back(event);
            let waiting = it.inbox.len();
            if self.daemon.is_flooded(node, waiting) {
                self.marks.hit("kicked for its backlog");
                self.daemon.kick(node, self.now);
            }
            return Ok(());
        }
        self.step(node, event)
    }

    fn resume(&mut self, node: usize) -> Checked {
        let now = self.now;
        let it = &mut self.nodes[node];
        if it.paused_until.is_none_or(|until| until > now) {
            return Ok(());
        }
        it.paused_until = None;
        self.users.pause(node, false, self.now);
        while let Some(event) = self.nodes[node].inbox.pop_front() {
            if self.nodes[node].paused_until.is_some() {
                self.nodes[node].inbox.push_front(event);
                break;
            }
            self.step(node, event)?;
            self.settle()?;
        }
        self.rewake(node);
        self.start_disk(node);
        Ok(())
    }

    /// What the clocks of a node show.
    pub(crate) fn now_of(&self, node: usize) -> Now {
        let it = &self.nodes[node];
        let steady = it.steady(self.now);
        let wall = WALL.as_nanos() as i64 + steady.as_nanos() as i64 + it.wall_off;
        Now {
            instant: crate::base() + steady,
            wall: Duration::from_nanos(wall.max(0) as u64),
        }
    }

    /// The time of an event that nobody's clock is wrong for.
    pub(crate) fn node_of(&self, member: &MemberId) -> Option<usize> {
        self.daemon.node_of(member)
    }

    pub(crate) fn note(&mut self, node: usize, event: &str, text: impl FnOnce() -> String) {
        if !self.logs && self.trace.is_none() {
            return;
        }
        let text = text();
        let name = self.nodes.get(node).map_or("world", |it| it.name.as_str());
        if self.logs {
            let (now, steps) = (self.now, self.steps);
            println!(
                "{:>12.6} {steps:>7} {name:<6} {event:<10} {text}",
                now.as_secs_f64()
            );
        }
        if let Some(trace) = &mut self.trace {
            trace.at(self.now, self.steps);
            // A trace that cannot be written is no reason to stop.
            let _ = trace.note(name, event, &text);
        }
    }
}

/// More than any run needs by far.
const STEPS_MAX: u64 = 3_000_000;

/// The time of day when runs begin: a day in 2025.
pub(crate) const WALL: Duration = Duration::from_secs(1_750_000_000);
