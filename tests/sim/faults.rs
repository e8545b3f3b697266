//! What is done to the cluster.

use std::time::Duration;

use crate::checker::Checked;
use crate::plan::Fault;
use crate::replica::event::{Event, MemberChange, Token};
use crate::replica::members::Members;
use crate::replica::message::NodeKind;
use crate::world::{Happening, Heal, World};

impl World {
    pub(crate) fn apply_fault(&mut self, index: usize) -> Checked {
        let fault = self.plan.faults[index].fault.clone();
        let kind = fault.kind();
        self.note(usize::MAX, "fault", || format!("{fault:?}"));
        if self.do_fault(fault)? {
            self.faults.hit(kind);
        }
        if self.random.percent(40) {
            self.users.inject(self.now);
        }
        Ok(())
    }

    /// Whether it was done.
    fn do_fault(&mut self, fault: Fault) -> Result<bool, String> {
        let now = self.now;
        match fault {
            Fault::Crash { node, power, down } => {
                if !self.nodes[node].is_up() {
                    return Ok(false);
                }
                self.crash(node, power);
                self.after(down, Happening::Start(node));
            }
            Fault::PowerOfAll { down } => {
                for node in 0..self.nodes.len() {
                    self.crash(node, true);
                    let more = self.within(0, 500);
                    self.after(down + more, Happening::Start(node));
                }
            }
            Fault::Pause { node, time } => {
                let it = &mut self.nodes[node];
                if !it.is_up() || it.paused_until.is_some() {
                    return Ok(false);
                }
                it.paused_until = Some(now + time);
                self.users.pause(node, true, now);
                self.after(time, Happening::Resume(node));
                if time > Duration::from_secs(3) && self.random.percent(50) {
                    self.daemon.kick(node, now);
                }
            }
            Fault::Partition { groups, time } => {
                self.daemon.partition(groups, now);
                self.heal_later(time, Heal::Groups);
            }
            Fault::Mess { seed, time } => {
                self.daemon.make_mess(seed, now);
                self.heal_later(time, Heal::Groups);
            }
            Fault::Spurious { node, it_sees } => self.daemon.spurious(node, it_sees, now),
            Fault::Kick {
                node,
                same_name,
                away,
            } => {
                if !self.daemon.is_attached(node) {
                    return Ok(false);
                }
                self.daemon.kick(node, now);
                let process = self.nodes[node]
                    .process
                    .as_ref()
                    .map_or(0, |process| process.id);
                self.after(
                    away,
                    Happening::Join {
                        node,
                        process,
                        same_name,
                    },
                );
            }
            Fault::Late { node, by, time } => {
                self.daemon.set_late(node, by);
                self.heal_later(time, Heal::Late(node));
            }
            Fault::Cut { from, to, time } => {
                if from == to {
                    // No client gets there.
                    self.users.isolate(from, true, now);
                }
                *self.cuts.entry((from, to)).or_default() += 1;
                self.heal_later(time, Heal::Cut(from, to));
            }
            Fault::SlowLinks { node, time } => self.nodes[node].slow_links_until = now + time,
            Fault::Clock { node, by } => self.nodes[node].wall_off += by * 1_000_000,
            Fault::SlowDisk { node, time } => self.nodes[node].slow_disk_until = now + time,
            Fault::FailDisk { node, after } => self.fail_disk(node, after),
            Fault::FullDisk { node, time } => {
                self.nodes[node].is_full = true;
                self.heal_later(time, Heal::Full(node));
            }
            Fault::Rot {
                node,
                is_tail,
                down,
            } => {
                if !self.may_lose(node) {
                    return Ok(false);
                }
                self.crash(node, true);
                self.rot(node, is_tail);
                self.nodes[node].is_damaged = true;
                self.after(down, Happening::Start(node));
            }
            Fault::LoseDisk { node, down } => {
                if !self.may_lose(node) {
                    return Ok(false);
                }
                self.crash(node, true);
                self.lose_disk(node);
                self.nodes[node].is_damaged = true;
                self.after(down, Happening::Start(node));
            }
            Fault::Leave { node } => {
                if !self.may_lose(node) {
                    return Ok(false);
                }
                self.crash(node, true);
                self.nodes[node].is_gone = true;
            }
            Fault::Swap { to } => {
                let to = self.nodes[to].name;
                return self.administer("swap", |token| Event::Swap { token, to });
            }
            Fault::TakeOffice { node } => return self.order_office(node),
            Fault::StandAside { node, aside } => {
                if !self.nodes[node].is_up() {
                    return Ok(false);
                }
                self.arrive(node, Event::StandAside(aside))?;
            }
            Fault::Resign => {
                let Some(node) = self.primary().filter(|node| self.nodes[*node].is_up()) else {
                    return Ok(false);
                };
                self.arrive(node, Event::StandAside(true))?;
                self.arrive(node, Event::Resign)?;
            }
            Fault::Count { node, counted } => {
                let name = self.nodes[node].name;
                let change = if counted {
                    MemberChange::Add(name)
                } else {
                    MemberChange::Remove(name)
                };
                return self.administer("members", |token| Event::ChangeMembers { token, change });
            }
            Fault::Arbiter { node, wanted } => {
                let name = self.nodes[node].name;
                let change = if wanted {
                    MemberChange::AddArbiter(name)
                } else {
                    MemberChange::RemoveArbiter
                };
                return self.administer("arbiter", |token| Event::ChangeMembers { token, change });
            }
            Fault::Pack => {
                let tid = crate::ids::Tid::from_unix_time(crate::world::WALL);
                let storage = "1".to_owned();
                return self.administer("pack", |token| Event::OrderPack {
                    token,
                    storage,
                    tid,
                });
            }
            Fault::ForcedPromotion { node } => return self.force(node),
        }
        Ok(true)
    }

    fn heal_later(&mut self, time: Duration, heal: Heal) {
        // Merging takes its time.
        let slow = matches!(heal, Heal::Groups) && self.random.percent(10);
        let more = if slow {
            self.within(1000, 45_000)
        } else {
            Duration::ZERO
        };
        self.after(time + more, Happening::Heal(heal));
    }

    pub(crate) fn heal(&mut self, heal: &Heal) {
        match heal {
            Heal::Groups => self.daemon.merge(self.now),
            Heal::Late(node) => self.daemon.set_late(*node, Duration::ZERO),
            Heal::Cut(from, to) => {
                if from == to {
                    self.users.isolate(*from, false, self.now);
                }
                if let Some(count) = self.cuts.get_mut(&(*from, *to)) {
                    *count = count.saturating_sub(1);
                }
            }
            Heal::Full(node) => self.nodes[*node].is_full = false,
        }
    }

    /// Asks the primary, or whoever is there.
    fn administer(
        &mut self,
        what: &'static str,
        event: impl FnOnce(Token) -> Event,
    ) -> Result<bool, String> {
        let any = self.random.below(self.nodes.len());
        let node = if self.random.percent(90) {
            self.primary()
        } else {
            Some(any)
        };
        let Some(node) = node.filter(|node| self.nodes[*node].is_up()) else {
            return Ok(false);
        };
        self.tokens += 1;
        self.asked.insert(self.tokens, (node, what));
        let event = event(Token(self.tokens));
        self.arrive(node, event)?;
        Ok(true)
    }

    /// Wants this node to be primary. Whether it was there to be asked.
    pub(crate) fn order_office(&mut self, node: usize) -> Result<bool, String> {
        if !self.nodes[node].is_up() {
            return Ok(false);
        }
        self.tokens += 1;
        self.asked.insert(self.tokens, (node, "office"));
        let token = Token(self.tokens);
        self.arrive(node, Event::TakeOffice { token })?;
        Ok(true)
    }

    /// Whether enough is left without this disk, whoever is counted.
    pub(crate) fn may_lose(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        if it.is_gone || it.is_damaged {
            return false;
        }
        let is_intact = |voter| {
            let mut nodes = self.nodes.iter();
            nodes.any(|other| {
                other.voter == voter && voter != it.voter && !other.is_damaged && !other.is_gone
            })
        };
        let is_enough = |members: &Members| {
            let intact = members
                .voters
                .iter()
                .filter(|voter| is_intact(**voter))
                .count();
            match &members.arbiter {
                None => !members.voters.contains(&it.voter) || 2 * intact > members.voters.len(),
                Some(arbiter) => {
                    let all = intact + usize::from(is_intact(arbiter.node));
                    all >= 2 && arbiter.in_sync.iter().any(|voter| is_intact(*voter))
                }
            }
        };
        self.checker.all_members(self.history).iter().all(is_enough)
            && (it.plan.kind == NodeKind::Arbiter || self.has_donor(node))
    }

    fn has_donor(&self, node: usize) -> bool {
        let nodes = self.nodes.iter().enumerate();
        let mut others = nodes.filter(|(index, it)| *index != node && it.history == self.history);
        others.any(|(_, it)| it.plan.kind != NodeKind::Arbiter && !it.is_damaged && !it.is_gone)
    }
}
