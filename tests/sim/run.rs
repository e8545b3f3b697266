//! A run from its beginning to its end: faults, then calm.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::checker::Checked;
use crate::clients::Setup;
use crate::disk::{Files, Model, SimDisk};
use crate::entry::Point;
use crate::ids::{DiskId, HistoryId, NodeId, Seq, Tid};
use crate::marks::Marks;
use crate::node::Node;
use crate::plan::Plan;
use crate::random::Random;
use crate::replica::event::Writers;
use crate::replica::members::{Arbiter, Members, Voter};
use crate::replica::message::{NodeKind, Position};
use crate::replica::settings::Settings;
use crate::stock::Stock;
use crate::store::{Kept, Store};
use crate::trace::Trace;
use crate::users::{Hand, Users};
use crate::world::{Happening, World};
use standby::storage::journal::Identity;

/// Time for all to be well again when faults have ended: a lease, a start, catch-up and an election
/// or two; most of it is for clients, which wait before they try again.
const CALM_TIME: Duration = Duration::from_secs(90);

/// How long an administrator waits for others to lead, and for what he has ordered.
const ORDER_EVERY: Duration = Duration::from_secs(5);

/// How a run went.
pub(crate) struct Outcome {
    pub(crate) problem: Option<Problem>,
    pub(crate) steps: u64,
    /// Of the simulation
    pub(crate) time: Duration,
    pub(crate) nodes: usize,
    pub(crate) marks: Marks,
    pub(crate) faults: Marks,
}

/// What went wrong, and when.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) at: Duration,
    pub(crate) step: u64,
}

/// What is wanted of a run besides its outcome.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// Where the trace goes.
    pub(crate) trace: Option<PathBuf>,
    /// Whether everything is printed.
    pub(crate) logs: bool,
    /// It ends behind so many steps.
    pub(crate) steps: Option<u64>,
}

/// Runs a plan.
pub(crate) fn run(plan: &Plan, watch: &Watch) -> Outcome {
    let mut world = build(plan.clone());
    world.logs = watch.logs;
    world.steps_max = watch.steps;
    if let Some(path) = &watch.trace {
        let file = std::fs::File::create(path).ok();
        let trace = file.and_then(|file| Trace::new(std::io::BufWriter::new(file)).ok());
        world.trace = trace;
    }
    let result = catch_unwind(AssertUnwindSafe(|| world.live()));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    });
    let problem = result.err().map(|what| Problem {
        what,
        at: world.now,
        step: world.steps,
    });
    if let Some(problem) = &problem {
        world.note(usize::MAX, "violation", || problem.what.clone());
    }
    if let Some(trace) = world.trace.take() {
        let _ = trace.finish();
    }
    let mut marks = std::mem::take(&mut world.marks);
    marks.merge(&world.users.marks());
    Outcome {
        problem,
        steps: world.steps,
        time: world.now,
        nodes: world.nodes.len(),
        marks,
        faults: std::mem::take(&mut world.faults),
    }
}

/// The cluster as it begins: all nodes are founded with the same members, and start.
pub(crate) fn build(plan: Plan) -> World {
    let mut history = [0x5b; 16];
    history[8..].copy_from_slice(&plan.seed.to_be_bytes());
    let history = HistoryId(history);
    let users: Box<dyn Users> = users(&plan);
    let mut world = World::empty(plan, users, history);
    let lie = world.plan.lie;
    let mut voters = BTreeSet::new();
    let mut arbiter = None;
    for index in 0..world.plan.nodes.len() {
        let plan = world.plan.nodes[index].clone();
        let name = name(index);
        world.disks += 1;
        let mut disk = [0; 16];
        disk[0] = index as u8 + 1;
        let voter = Voter {
            node: name,
            disk: DiskId(disk),
        };
        if plan.is_voter {
            voters.insert(voter);
        }
        if plan.kind == NodeKind::Arbiter {
            arbiter = Some(voter);
        }
        world.nodes.push(Node {
            name,
            history,
            voter,
            disk: SimDisk::new(Model::new(&Files::new(), lie), None),
            kept: Arc::new(Mutex::new(Kept::default())),
            process: None,
            paused_until: None,
            inbox: [].into(),
            wall_off: plan.wall_off * 1_000_000,
            torn: crate::checker::Torn::default(),
            is_damaged: false,
            rotten: BTreeSet::new(),
            is_gone: false,
            slow_disk_until: Duration::ZERO,
            slow_links_until: Duration::ZERO,
            is_full: false,
            plan,
        });
    }
    let arbiter = arbiter.map(|node| Arbiter {
        node,
        in_sync: voters.clone(),
    });
    let members = Members { voters, arbiter };
    let settings = Settings {
        members,
        ..Settings::default()
    };
    world
        .checker
        .begin(history, Point::start(history), settings.clone(), Tid::ZERO);
    for index in 0..world.nodes.len() {
        let sort = world.sort(index);
        let node = &world.nodes[index];
        let identity = Identity {
            history,
            node: node.name,
            disk: node.voter.disk,
        };
        Store::found(&node.disk, &node.kept, identity, settings.clone(), sort)
            .expect("a disk that has not failed yet");
        let time = world.within(0, 200);
        world.at(time, Happening::Start(index));
        world.at(time, Happening::Checkpoint(index));
    }
    for index in 0..world.plan.faults.len() {
        let at = world.plan.faults[index].at;
        world.at(at, Happening::Fault(index));
    }
    world
}

fn name(index: usize) -> NodeId {
    NodeId::new(&format!("n{}", index + 1)).expect("a short name")
}

fn users(plan: &Plan) -> Box<dyn Users> {
    let random = Random::of_step(plan.seed, 5);
    if plan.clients == 0 {
        return Box::new(Hand::new(plan.load, plan.nodes.len(), random));
    }
    let names: Vec<NodeId> = (0..plan.nodes.len()).map(name).collect();
    let nodes = names.iter().zip(&plan.nodes);
    let nodes = nodes.filter(|(_, node)| node.kind != NodeKind::Arbiter);
    let nodes: Vec<NodeId> = nodes.map(|(name, _)| *name).collect();
    let setup = Setup {
        mutant: plan.front,
        ..Setup::random(plan.seed, &nodes)
    };
    Box::new(Stock::new(setup, names))
}

impl World {
    fn live(&mut self) -> Checked {
        self.settle()?;
        self.run_until(self.plan.calm_at)?;
        self.calm()?;
        let end = self.now + CALM_TIME;
        let mut order_at = self.now + ORDER_EVERY;
        let mut goal = None;
        loop {
            let next = self.now + Duration::from_millis(100);
            self.run_until(next)?;
            match self.is_well(&mut goal) {
                Ok(()) => break,
                // Too many disks are gone, one of them by damage that was found behind the faults.
                Err(_) if self.now >= order_at && !self.is_quorum_left() => {
                    self.marks.hit("no quorum left");
                    break;
                }
                Err(what) if self.now >= end => return Err(format!("{what}{}", self.describe())),
                Err(_) => {}
            }
            if self.now >= order_at {
                order_at = self.now + ORDER_EVERY;
                self.lead_by_order()?;
            }
        }
        self.end()
    }

    /// Where nobody leads by himself, as all that may are gone, an administrator chooses the best
    /// of those who are left, until it is in office.
    fn lead_by_order(&mut self) -> Checked {
        if self.primary().is_some() || self.can_be_led() {
            return Ok(());
        }
        let (_, settings) = self.newest_left(&self.checker.settings(self.history).members);
        let voters = self.nodes.iter().enumerate();
        let voters = voters.filter(|(_, it)| settings.members.is_voter(&it.voter));
        let last = |it: &Node| it.process.as_ref().map(|process| process.replica.last());
        let best = voters.max_by_key(|(_, it)| (last(it), it.plan.priority));
        if let Some((best, _)) = best {
            self.marks.hit("nobody left who may lead");
            self.order_office(best)?;
        }
        Ok(())
    }

    /// How things are with all nodes.
    fn describe(&self) -> String {
        let settings = self.checker.settings(self.history);
        let mut text = format!("\n  {settings:?}");
        for node in &self.nodes {
            let it = node.process.as_ref();
            let state = it.map_or_else(
                || "down".to_owned(),
                |it| {
                    let replica = &it.replica;
                    format!(
                        "{:?} promised {} last {:?} committed {} applied {} view of {} {:?}",
                        replica.role(),
                        replica.promised(),
                        replica.last(),
                        replica.committed(),
                        it.applied,
                        it.view.as_ref().map_or(0, |view| view.members.len()),
                        it.serving,
                    )
                },
            );
            let (name, plan) = (node.name, &node.plan);
            let disk = node.voter.disk;
            text.push_str(&format!(
                "\n  {name} disk {disk} {:?} {} {}: {state}",
                plan.kind, plan.site, plan.priority
            ));
        }
        text
    }

    /// Faults end.
    pub(crate) fn calm(&mut self) -> Checked {
        self.note(usize::MAX, "calm", String::new);
        self.is_calm = true;
        self.plan.faults.clear();
        self.daemon.calm();
        self.cuts.clear();
        for node in 0..self.nodes.len() {
            let it = &mut self.nodes[node];
            it.wall_off = 0;
            it.is_full = false;
            it.slow_disk_until = Duration::ZERO;
            it.slow_links_until = Duration::ZERO;
            let down = self.within(0, 500);
            self.after(down, Happening::Start(node));
            if let Some(until) = &mut self.nodes[node].paused_until {
                *until = self.now;
                self.after(Duration::ZERO, Happening::Resume(node));
            }
            if let Some(process) = self.nodes[node].process.as_ref().map(|process| process.id) {
                let away = self.within(0, 500);
                let same_name = false;
                self.after(
                    away,
                    Happening::Join {
                        node,
                        process,
                        same_name,
                    },
                );
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_up() {
                self.arrive(node, crate::replica::event::Event::StandAside(false))?;
            }
        }
        self.daemon.merge(self.now);
        self.users.calm(self.now);
        self.settle()
    }

    /// Whether enough of those who are counted are left.
    fn is_quorum_left(&self) -> bool {
        let all = self.checker.all_members(self.history);
        all.iter().all(|members| {
            let left = self.left_of(members).count();
            let is_left = |voter: &Voter| self.nodes.iter().any(|node| node.voter == *voter);
            match &members.arbiter {
                None => 2 * left > members.voters.len(),
                Some(arbiter) => {
                    left + usize::from(is_left(&arbiter.node)) >= 2
                        && arbiter.in_sync.iter().any(is_left)
                }
            }
        })
    }

    /// Whether one of those who are counted may lead by himself.
    fn can_be_led(&self) -> bool {
        let all = self.checker.all_members(self.history);
        all.iter().all(|members| {
            let (newest, settings) = self.newest_left(members);
            self.left_of(members).any(|node| {
                let plan = &node.plan;
                let is_home = settings.home.is_empty() || settings.home == plan.site;
                is_home && (plan.priority > 0 || newest.epoch.node == node.name)
            })
        })
    }

    /// Voters whose disks are not gone.
    fn left_of(&self, members: &Members) -> impl Iterator<Item = &Node> {
        let nodes = self.nodes.iter();
        nodes.filter(|node| members.is_voter(&node.voter))
    }

    fn newest_left(&self, members: &Members) -> (Position, Rc<Settings>) {
        let left = self.left_of(members).map(|node| &node.voter);
        self.checker.newest_of(self.history, left)
    }

    /// L1 and L2. `goal`: what was committed when all users were served, and has to get everywhere.
    fn is_well(&mut self, goal: &mut Option<Seq>) -> Checked {
        let history = self.history;
        let open = |node: &&Node| {
            let process = node.process.as_ref();
            process.is_some_and(|process| process.serving.writers == Writers::Open)
        };
        let primaries: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(open)
            .map(|node| node.name)
            .collect();
        if primaries.len() != 1 {
            return Err(format!("L1: {primaries:?} are open for writers"));
        }
        if goal.is_none() {
            self.users
                .well(self.now)
                .map_err(|error| format!("L1: {error}"))?;
        }
        let committed = *goal.get_or_insert(self.checker.committed(history));
        let tip = self
            .checker
            .committed_at(history, committed)
            .map(|entry| entry.header().digest);
        for node in &self.nodes {
            if node.is_gone || node.history != history || node.plan.kind == NodeKind::Arbiter {
                continue;
            }
            let Some(process) = &node.process else {
                return Err(format!("L2: {} is down", node.name));
            };
            if process.applied < committed {
                let applied = process.applied;
                return Err(format!(
                    "L2: {} has applied {applied} of {committed}",
                    node.name
                ));
            }
            let stable = self.checker.stable(&node.place());
            let at = stable.and_then(|log| log.at(committed));
            if at != tip && stable.is_none_or(|log| log.base_seq() <= committed.0) {
                return Err(format!(
                    "L2: {} has another log than is committed",
                    node.name
                ));
            }
        }
        Ok(())
    }

    /// All data hold what is committed, and all disks hold what they should.
    fn end(&mut self) -> Checked {
        for node in 0..self.nodes.len() {
            let it = &self.nodes[node];
            let Some(process) = &it.process else { continue };
            if it.plan.kind == NodeKind::Arbiter {
                continue;
            }
            let _ = process;
            self.all_applied(node)?;
            self.check_disk(node)?;
        }
        self.checker.check_durable(self.history)?;
        self.users.finish()
    }
}
