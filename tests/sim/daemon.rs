//! A daemon of the group that is worse than any: its members hear of views late and each at another
//! time, see different members, are thrown out; messages are lost or come again when the view
//! changes, and come in a later view than they were sent in. What one sends comes in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::group::{MemberId, ViewId};
use crate::plan::{DaemonPlan, millis};
use crate::random::Random;
use crate::replica::message::Message;

/// What comes to a member, when.
pub(crate) struct Delivery {
    pub(crate) at: Duration,
    pub(crate) to: usize,
    /// The membership that it is for.
    pub(crate) attachment: u64,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    View {
        id: ViewId,
        members: Vec<MemberId>,
        me: MemberId,
    },
    Lost,
    Message(Box<Post>),
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) from: usize,
    pub(crate) member: MemberId,
    pub(crate) message: Message,
    /// How often the view of the receiver had changed when it was sent.
    changes: u64,
    is_repeated: bool,
}

/// A node's membership.
struct Attached {
    member: MemberId,
    attachment: u64,
    /// Views are told one after the other.
    told_at: Duration,
    changes: u64,
    /// What it has had, for having it again.
    had: VecDeque<Post>,
    waiting: usize,
}

pub(crate) struct Daemon {
    plan: DaemonPlan,
    random: Random,
    attached: BTreeMap<usize, Attached>,
    /// Who is with whom.
    groups: Vec<u8>,
    /// Who hears whom, and who sees whom, if that is not by groups.
    mess: Option<Mess>,
    /// What comes to a node comes later by this.
    late: Vec<Duration>,
    /// What one has sent another comes in order.
    last: BTreeMap<(usize, usize), Duration>,
    attachments: u64,
    views: u64,
    names: Vec<u64>,
    /// All names that there were, for the direct links.
    directory: BTreeMap<MemberId, usize>,
    pub(crate) out: Vec<Delivery>,
}

struct Mess {
    hears: BTreeSet<(usize, usize)>,
    sees: BTreeSet<(usize, usize)>,
}

impl Daemon {
    pub(crate) fn new(plan: DaemonPlan, nodes: usize, random: Random) -> Self {
        Self {
            plan,
            random,
            attached: BTreeMap::new(),
            groups: vec![0; nodes],
            mess: None,
            late: vec![Duration::ZERO; nodes],
            last: BTreeMap::new(),
            attachments: 0,
            views: 0,
            names: vec![0; nodes],
            directory: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    pub(crate) fn is_attached(&self, node: usize) -> bool {
        self.attached.contains_key(&node)
    }

    pub(crate) fn is_current(&self, node: usize, attachment: u64) -> bool {
        self.attached
            .get(&node)
            .is_some_and(|it| it.attachment == attachment)
    }

    /// The node that has, or had, this name.
    pub(crate) fn node_of(&self, member: &MemberId) -> Option<usize> {
        self.directory.get(member).copied()
    }

    pub(crate) fn name_of(&self, node: usize) -> Option<&MemberId> {
        self.attached.get(&node).map(|it| &it.member)
    }

    pub(crate) fn join(&mut self, node: usize, name: &str, same_name: bool, now: Duration) {
        if !same_name || self.names[node] == 0 {
            self.names[node] += 1;
        }
        let member = MemberId::new(&format!("#{name}-{}#d{node}", self.names[node]));
        self.directory.insert(member.clone(), node);
        self.attachments += 1;
        let attached = Attached {
            member,
            attachment: self.attachments,
            told_at: now,
            changes: 0,
            had: VecDeque::new(),
            waiting: 0,
        };
        self.attached.insert(node, attached);
        self.reform(node, now);
    }

    /// The node is a member no more, and is not told.
    pub(crate) fn leave(&mut self, node: usize, now: Duration) {
        if self.attached.remove(&node).is_some() {
            self.reform(node, now);
        }
    }

    /// As [`Self::leave`], and it is told.
    pub(crate) fn kick(&mut self, node: usize, now: Duration) {
        if let Some(attached) = self.attached.remove(&node) {
            let lag = millis(&mut self.random, 0, 500);
            self.out.push(Delivery {
                at: now.max(attached.told_at) + lag,
                to: node,
                attachment: attached.attachment,
                what: What::Lost,
            });
            self.reform(node, now);
        }
    }

    pub(crate) fn partition(&mut self, groups: Vec<u8>, now: Duration) {
        let was_mess = self.mess.take().is_some();
        let old = std::mem::replace(&mut self.groups, groups);
        let all: Vec<usize> = self.attached.keys().copied().collect();
        let with = |groups: &[u8], node: usize| -> Vec<usize> {
            all.iter()
                .copied()
                .filter(|it| groups[*it] == groups[node])
                .collect()
        };
        let changed = all.iter().copied();
        let changed =
            changed.filter(|node| was_mess || with(&old, *node) != with(&self.groups, *node));
        let changed: BTreeSet<u8> = changed.map(|node| self.groups[node]).collect();
        for group in changed {
            self.tell_group(group, now);
        }
    }

    /// All see each other again.
    pub(crate) fn merge(&mut self, now: Duration) {
        let groups = vec![0; self.groups.len()];
        self.partition(groups, now);
    }

    pub(crate) fn make_mess(&mut self, seed: u64, now: Duration) {
        let random = &mut Random::new(seed);
        let (mut hears, mut sees) = (BTreeSet::new(), BTreeSet::new());
        let share = [40, 70, 90][random.below(3)];
        for a in 0..self.groups.len() {
            for b in 0..self.groups.len() {
                if a == b || random.percent(share) {
                    hears.insert((a, b));
                }
                if a == b || random.percent(share) {
                    sees.insert((a, b));
                }
            }
        }
        self.mess = Some(Mess { hears, sees });
        let id = self.next_view();
        let nodes: Vec<usize> = self.attached.keys().copied().collect();
        for node in nodes {
            // The same view, and not the same.
            let id = if self.random.percent(50) {
                id
            } else {
                self.next_view()
            };
            self.tell(node, id, now);
        }
    }

    /// The others see a node leave and join. That it is seen by the node itself may be.
    pub(crate) fn spurious(&mut self, node: usize, it_sees: bool, now: Duration) {
        if !self.is_attached(node) {
            return;
        }
        let group = self.groups[node];
        let others: Vec<usize> = self
            .in_group(group)
            .into_iter()
            .filter(|it| *it != node)
            .collect();
        let id = self.next_view();
        for other in &others {
            self.tell_members(*other, id, others.clone(), now);
        }
        if it_sees {
            let id = self.next_view();
            self.tell_members(node, id, vec![node], now);
        }
        let later = now + millis(&mut self.random, 1, 1500);
        let id = self.next_view();
        for member in self.in_group(group) {
            if member != node || it_sees {
                self.tell(member, id, later);
            }
        }
        if !it_sees {
            // To agree in the end: it is told of what the others see.
            let later = later + millis(&mut self.random, 1, 1500);
            self.tell(node, id, later);
        }
    }

    pub(crate) fn set_late(&mut self, node: usize, by: Duration) {
        self.late[node] = by;
    }

    pub(crate) fn send(
        &mut self,
        from: usize,
        to: Option<&MemberId>,
        message: &Message,
        now: Duration,
    ) {
        let Some(member) = self.attached.get(&from).map(|it| it.member.clone()) else {
            return;
        };
        let receivers: Vec<usize> = self
            .attached
            .iter()
            .filter(|(_, attached)| to.is_none_or(|to| attached.member == *to))
            .map(|(node, _)| *node)
            .filter(|node| self.hears(*node, from))
            .collect();
        for node in receivers {
            let changes = self.attached[&node].changes;
            let post = Post {
                from,
                member: member.clone(),
                message: message.clone(),
                changes,
                is_repeated: false,
            };
            let at = now + self.latency(node);
            self.post(node, post, at);
        }
    }

    fn post(&mut self, node: usize, post: Post, at: Duration) {
        let last = self.last.entry((post.from, node)).or_default();
        *last = at.max(*last + Duration::from_nanos(1));
        let at = *last;
        let Some(attached) = self.attached.get_mut(&node) else {
            return;
        };
        attached.waiting += 1;
        self.out.push(Delivery {
            at,
            to: node,
            attachment: attached.attachment,
            what: What::Message(Box::new(post)),
        });
    }

    /// A message has come to where the member is: whether it gets it.
    pub(crate) fn passes(&mut self, node: usize, post: &Post) -> bool {
        let lost = self.plan.lost;
        let Some(attached) = self.attached.get_mut(&node) else {
            return false;
        };
        let is_overtaken = attached.changes != post.changes;
        attached.waiting = attached.waiting.saturating_sub(1);
        if is_overtaken && self.random.percent(lost) {
            return false;
        }
        if !post.is_repeated {
            attached.had.push_back(post.clone());
            if attached.had.len() > self.plan.had_max {
                attached.had.pop_front();
            }
        }
        true
    }

    /// Whether so much waits for a member that it is thrown out.
    pub(crate) fn is_flooded(&self, node: usize, waiting: usize) -> bool {
        self.is_attached(node) && waiting > self.plan.backlog
    }

    fn latency(&mut self, node: usize) -> Duration {
        let micros = self.plan.latency.as_micros() as u64;
        let time = match self.random.below(20) {
            0 => 20 * micros,
            _ => micros,
        };
        self.late[node] + Duration::from_micros(50 + self.random.next() % time.max(1))
    }

    fn hears(&self, node: usize, from: usize) -> bool {
        match &self.mess {
            Some(mess) => mess.hears.contains(&(node, from)),
            None => self.groups[node] == self.groups[from],
        }
    }

    fn in_group(&self, group: u8) -> Vec<usize> {
        let nodes = self.attached.keys().copied();
        nodes.filter(|node| self.groups[*node] == group).collect()
    }

    /// The members that are with this node, or were, have another view.
    fn reform(&mut self, node: usize, now: Duration) {
        if self.mess.is_some() {
            let nodes: Vec<usize> = self.attached.keys().copied().collect();
            for other in nodes {
                let id = self.next_view();
                self.tell(other, id, now);
            }
        } else {
            self.tell_group(self.groups[node], now);
        }
    }

    fn tell_group(&mut self, group: u8, now: Duration) {
        let id = self.next_view();
        for node in self.in_group(group) {
            self.tell(node, id, now);
        }
    }

    fn tell(&mut self, node: usize, id: ViewId, now: Duration) {
        let members = match &self.mess {
            Some(mess) => {
                let nodes = self.attached.keys().copied();
                nodes
                    .filter(|other| mess.sees.contains(&(node, *other)))
                    .collect()
            }
            None => self.in_group(self.groups[node]),
        };
        self.tell_members(node, id, members, now);
    }

    fn tell_members(&mut self, node: usize, id: ViewId, members: Vec<usize>, now: Duration) {
        let members = members
            .iter()
            .filter_map(|it| self.name_of(*it).cloned())
            .collect();
        let lag = Duration::from_micros(
            100 + self.random.next() % self.plan.view_lag.as_micros().max(1) as u64,
        );
        let repeats = self.random.percent(self.plan.repeats);
        let Some(attached) = self.attached.get_mut(&node) else {
            return;
        };
        attached.changes += 1;
        attached.told_at = (now + lag).max(attached.told_at + Duration::from_nanos(1));
        let (at, attachment) = (attached.told_at, attached.attachment);
        let me = attached.member.clone();
        let what = What::View { id, members, me };
        self.out.push(Delivery {
            at,
            to: node,
            attachment,
            what,
        });
        if repeats {
            let had: Vec<Post> = attached.had.iter().cloned().collect();
            for post in had {
                if self.random.percent(30) {
                    let at = at + millis(&mut self.random, 0, 50);
                    let post = Post {
                        is_repeated: true,
                        ..post
                    };
                    // Behind what comes else; that it comes again at all is what is wrong with it.
                    self.post(node, post, at);
                }
            }
        }
    }

    /// Names of views come again when nobody has them any more.
    fn next_view(&mut self) -> ViewId {
        self.views += 1;
        let mut id = [0; 20];
        id[..8].copy_from_slice(&self.views.to_be_bytes());
        ViewId(id)
    }

    /// Everything is well from now on: what is sent, and what is told.
    pub(crate) fn calm(&mut self) {
        self.plan.view_lag = Duration::from_millis(50);
        self.plan.latency = Duration::from_millis(2);
        self.plan.lost = 0;
        self.plan.repeats = 0;
        self.plan.backlog = usize::MAX;
        self.late.fill(Duration::ZERO);
    }
}
