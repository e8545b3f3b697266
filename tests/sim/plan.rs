//! What a run is: the cluster, and what is done to it when. Made from a seed, and made smaller when
//! a run has failed.

use std::time::Duration;

use crate::clients::front::FrontMutant;
use crate::disk::Lie;
use crate::random::Random;
use crate::replica::message::NodeKind;

/// All that a run depends on besides the code.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) lease: Duration,
    /// When faults end.
    pub(crate) calm_at: Duration,
    pub(crate) faults: Vec<Planned>,
    pub(crate) load: Load,
    /// Of the daemon
    pub(crate) daemon: DaemonPlan,
    /// The data are in a real data file, and not in a list.
    pub(crate) has_storage: bool,
    /// Clients of the stock kind; else finishes are given to the replicas by hand.
    pub(crate) clients: usize,
    /// What the servers do wrong on purpose.
    pub(crate) front: Option<FrontMutant>,
    /// What the disks do wrong on purpose.
    pub(crate) lie: Option<Lie>,
    /// Bytes of a segment of the journals.
    pub(crate) segment_len: u64,
    /// Bytes of the journals that are kept.
    pub(crate) window_len: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct NodePlan {
    pub(crate) kind: NodeKind,
    pub(crate) site: &'static str,
    pub(crate) priority: u32,
    /// Counted from the beginning.
    pub(crate) is_voter: bool,
    /// How much faster its clock is, in millionths.
    pub(crate) drift: i64,
    /// How wrong its time of day is at first, in milliseconds.
    pub(crate) wall_off: i64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Time between two finishes, on average.
    pub(crate) finish_every: Duration,
    pub(crate) body_len_max: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DaemonPlan {
    /// Time of a message, at most, when nothing is wrong.
    pub(crate) latency: Duration,
    /// Time until a member hears of a view.
    pub(crate) view_lag: Duration,
    /// How many of a hundred messages that a change of the view overtakes are lost.
    pub(crate) lost: usize,
    /// How many of a hundred changes of the view bring old messages again.
    pub(crate) repeats: usize,
    /// Of how many that came last some may come again.
    pub(crate) had_max: usize,
    /// How much may wait for a member that does not read.
    pub(crate) backlog: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// What is done to the cluster. Nodes by their index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends, or the power goes; it is back after a time.
    Crash {
        node: usize,
        power: bool,
        down: Duration,
    },
    /// The power of all goes.
    PowerOfAll { down: Duration },
    /// A node stands still.
    Pause { node: usize, time: Duration },
    /// The daemons see each other in these groups only.
    Partition { groups: Vec<u8>, time: Duration },
    /// Who hears whom, and who sees whom, is different for each.
    Mess { seed: u64, time: Duration },
    /// Others see a node leave and join; it sees that itself, or not.
    Spurious { node: usize, it_sees: bool },
    /// The daemon throws a node out; it comes back, under its old name or another one.
    Kick {
        node: usize,
        same_name: bool,
        away: Duration,
    },
    /// What the daemon has for a node comes late.
    Late {
        node: usize,
        by: Duration,
        time: Duration,
    },
    /// One does not hear the other directly.
    Cut {
        from: usize,
        to: usize,
        time: Duration,
    },
    /// All direct connections of a node are slow.
    SlowLinks { node: usize, time: Duration },
    /// A clock is set, by milliseconds.
    Clock { node: usize, by: i64 },
    /// A disk takes seconds.
    SlowDisk { node: usize, time: Duration },
    /// One of the next writes or syncs fails.
    FailDisk { node: usize, after: usize },
    /// A disk is full.
    FullDisk { node: usize, time: Duration },
    /// The power goes, and some bits of the journal are wrong when it is back.
    Rot {
        node: usize,
        is_tail: bool,
        down: Duration,
    },
    /// The disk is gone; the node comes back with an empty one.
    LoseDisk { node: usize, down: Duration },
    /// The machine is gone for good; not by chance.
    Leave { node: usize },
    /// An administrator does something.
    Swap { to: usize },
    /// A node is to be primary, if nobody is, whatever its site and its priority are.
    TakeOffice { node: usize },
    /// A node is to take no office by itself, or may again.
    StandAside { node: usize, aside: bool },
    /// The primary can do nothing, stands aside, and leaves its office.
    Resign,
    /// A member is to be counted, or not.
    Count { node: usize, counted: bool },
    /// An arbiter is to be there, or not.
    Arbiter { node: usize, wanted: bool },
    /// A pack is ordered.
    Pack,
    /// Most voters are gone for good: what is left is promoted by force.
    ForcedPromotion { node: usize },
}

impl Fault {
    /// For counting.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Crash { power: true, .. } => "power cut",
            Self::Crash { .. } => "process crash",
            Self::PowerOfAll { .. } => "power cut of all",
            Self::Pause { .. } => "pause",
            Self::Partition { .. } => "partition",
            Self::Mess { .. } => "asymmetric views",
            Self::Spurious { .. } => "spurious leave and join",
            Self::Kick { .. } => "kick",
            Self::Late { .. } => "late delivery",
            Self::Cut { .. } => "one-way link",
            Self::SlowLinks { .. } => "slow links",
            Self::Clock { .. } => "clock jump",
            Self::SlowDisk { .. } => "slow disk",
            Self::FailDisk { .. } => "failed write or sync",
            Self::FullDisk { .. } => "full disk",
            Self::Rot { .. } => "bit flips",
            Self::LoseDisk { .. } => "lost disk",
            Self::Leave { .. } => "machine gone",
            Self::Swap { .. } => "swap",
            Self::TakeOffice { .. } => "order to take office",
            Self::StandAside { .. } => "order to stand aside",
            Self::Resign => "resignation",
            Self::Count { .. } => "member change",
            Self::Arbiter { .. } => "arbiter change",
            Self::Pack => "pack",
            Self::ForcedPromotion { .. } => "forced promotion",
        }
    }
}

/// How the sort of a cluster is chosen.
const SHAPES: [(usize, usize, usize, bool); 12] = [
    // voters, observers, arbiters, two sites
    (3, 0, 0, false),
    (3, 0, 0, false),
    (3, 1, 0, false),
    (3, 0, 0, true),
    (5, 0, 0, false),
    (5, 0, 0, true),
    (4, 1, 0, true),
    (2, 0, 1, false),
    (2, 0, 1, false),
    (2, 1, 0, false),
    (1, 2, 0, false),
    (5, 2, 0, true),
];

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let random = &mut Random::of_step(seed, 1);
        let shape = SHAPES[random.below(SHAPES.len())];
        let nodes = nodes(shape, random);
        let calm_at = seconds(random, 8, 16);
        let lag_max = [50, 800, 3000][random.below(3)];
        let mut plan = Self {
            seed,
            lease: millis(random, 500, 2500) * [1, 1, 1, 5][random.below(4)],
            calm_at,
            faults: Vec::new(),
            load: Load {
                finish_every: millis(random, 20, 300),
                body_len_max: [60, 400, 3000][random.below(3)],
            },
            daemon: DaemonPlan {
                latency: millis(random, 1, 20),
                view_lag: millis(random, 5, lag_max),
                lost: [0, 30, 80][random.below(3)],
                repeats: [0, 20, 80][random.below(3)],
                had_max: 12,
                backlog: [40, 200, 1000][random.below(3)],
            },
            has_storage: random.percent(25),
            clients: if random.percent(50) { 1 } else { 0 },
            front: None,
            lie: None,
            segment_len: [4096, 16_384, 1 << 20][random.below(3)],
            window_len: [8192, 65_536, 1 << 24][random.below(3)],
            nodes,
        };
        plan.faults = faults(&plan, random);
        if seed.is_multiple_of(4) {
            plan.contest();
        }
        plan
    }

    /// Elections and changes of the members one behind the other, under much load, and nothing
    /// else: what goes wrong with the order of things goes wrong here.
    pub(crate) fn contest(&mut self) {
        let random = &mut Random::of_step(self.seed, 4);
        let voters = [3, 3, 4, 5][random.below(4)];
        let (spares, arbiters) = match random.below(6) {
            0 => (0, 1),
            1 | 2 => (1, 0),
            _ => (0, 0),
        };
        let voters = if arbiters > 0 { 2 } else { voters };
        self.nodes = nodes((voters, spares, arbiters, false), random);
        for node in self.nodes.iter_mut().filter(|node| node.is_voter) {
            (node.priority, node.wall_off) = (10, 0);
        }
        self.lease = millis(random, 200, 700);
        self.load.finish_every = millis(random, 5, 60);
        self.daemon.view_lag = millis(random, 5, 300);
        self.clients = 0;
        self.faults.clear();
        let count = self.nodes.len();
        let operators = [0, 0, 30, 60][random.below(4)];
        let gap = [100, 300, 800][random.below(3)];
        let mut at = millis(random, 400, 900);
        while at < self.calm_at {
            let node = random.below(count);
            let time = millis(random, 50, 3 * gap);
            let fault = if random.percent(operators) {
                match random.below(5) {
                    0 if time.as_micros().is_multiple_of(2) => Fault::TakeOffice { node },
                    0 => Fault::Swap { to: node },
                    _ => Fault::Count {
                        node,
                        counted: random.percent(50),
                    },
                }
            } else {
                match random.below(10) {
                    0..5 => Fault::Partition {
                        groups: groups(count, random),
                        time,
                    },
                    5 => Fault::Mess {
                        seed: random.next(),
                        time,
                    },
                    6 => Fault::Crash {
                        node,
                        power: random.percent(50),
                        down: time,
                    },
                    7 => Fault::SlowDisk { node, time },
                    8 => Fault::Pause { node, time },
                    _ => Fault::Late {
                        node,
                        by: time,
                        time,
                    },
                }
            };
            self.faults.push(Planned { at, fault });
            at += millis(random, 1, 2 * gap);
        }
    }

    /// Nothing goes wrong in it but what is scripted.
    pub(crate) fn quiet(voters: usize) -> Self {
        let random = &mut Random::new(7);
        Self {
            seed: 7,
            nodes: nodes((voters, 0, 0, false), random)
                .into_iter()
                .map(|node| NodePlan {
                    drift: 0,
                    wall_off: 0,
                    priority: 10,
                    ..node
                })
                .collect(),
            lease: Duration::from_secs(2),
            calm_at: Duration::from_secs(10),
            faults: Vec::new(),
            load: Load {
                finish_every: Duration::from_millis(50),
                body_len_max: 200,
            },
            daemon: DaemonPlan {
                latency: Duration::from_millis(1),
                view_lag: Duration::from_millis(20),
                lost: 0,
                repeats: 0,
                had_max: 12,
                backlog: 1000,
            },
            has_storage: false,
            clients: 0,
            front: None,
            lie: None,
            segment_len: 16_384,
            window_len: 1 << 24,
        }
    }

    pub(crate) fn with(mut self, at_millis: u64, fault: Fault) -> Self {
        let at = Duration::from_millis(at_millis);
        self.faults.push(Planned { at, fault });
        self
    }
}

pub(crate) fn nodes(
    (voters, observers, arbiters, two_sites): (usize, usize, usize, bool),
    random: &mut Random,
) -> Vec<NodePlan> {
    let mut nodes = Vec::new();
    let count = voters + observers + arbiters;
    for number in 0..count {
        let is_voter = number < voters;
        let kind = if number >= voters + observers {
            NodeKind::Arbiter
        } else if !is_voter && random.percent(50) {
            NodeKind::Observer
        } else {
            NodeKind::Data
        };
        // Most of the voters are at home.
        let is_away = two_sites && (number == voters - 1 || !is_voter);
        nodes.push(NodePlan {
            kind,
            site: if is_away { "away" } else { "home" },
            priority: [0, 10, 10, 10, 20][if number == 0 { 1 } else { random.below(5) }],
            is_voter,
            drift: random.below(401) as i64 - 200,
            wall_off: random.below(2001) as i64 - 1000,
        });
    }
    nodes
}

/// The kinds of faults, of which each run has some.
const KINDS: usize = 17;

fn faults(plan: &Plan, random: &mut Random) -> Vec<Planned> {
    // A run with all of them at once never gets anywhere; one with few gets far.
    let share = [0, 15, 30, 60, 100][random.below(5)];
    let kinds: Vec<usize> = (0..KINDS).filter(|_| random.percent(share)).collect();
    let operators = random.percent(60);
    let gap = [200, 500, 1000, 2500][random.below(4)];
    let mut at = millis(random, 300, 1500);
    let mut faults = Vec::new();
    while at < plan.calm_at {
        let is_operator = operators && random.percent(25);
        if is_operator || !kinds.is_empty() {
            let fault = if is_operator {
                operation(plan, random)
            } else {
                fault(plan, kinds[random.below(kinds.len())], random)
            };
            faults.push(Planned { at, fault });
        }
        // Some come together.
        at += match random.below(4) {
            0 => millis(random, 0, 20),
            _ => millis(random, 1, 2 * gap),
        };
    }
    if random.percent(6) {
        let node = random.below(plan.nodes.len());
        let at = plan.calm_at.mul_f64(0.7);
        let fault = Fault::ForcedPromotion { node };
        faults.push(Planned { at, fault });
    }
    faults.sort_by_key(|planned| planned.at);
    faults
}

fn fault(plan: &Plan, kind: usize, random: &mut Random) -> Fault {
    let count = plan.nodes.len();
    let node = random.below(count);
    match kind {
        0 | 1 => Fault::Crash {
            node,
            power: kind == 0,
            down: millis(random, 0, 4000),
        },
        2 => Fault::PowerOfAll {
            down: millis(random, 0, 2000),
        },
        3 => Fault::Pause {
            node,
            time: match random.below(8) {
                0 => seconds(random, 5, 60),
                1 | 2 => seconds(random, 1, 5),
                _ => millis(random, 1, 1500),
            },
        },
        4 => Fault::Partition {
            groups: groups(count, random),
            time: spell(random),
        },
        5 => Fault::Mess {
            seed: random.next(),
            time: spell(random),
        },
        6 => Fault::Spurious {
            node,
            it_sees: random.percent(50),
        },
        7 => Fault::Kick {
            node,
            same_name: random.percent(30),
            away: millis(random, 0, 3000),
        },
        8 => Fault::Late {
            node,
            by: millis(random, 50, 4000),
            time: spell(random),
        },
        9 => Fault::Cut {
            from: node,
            to: random.below(count),
            time: spell(random),
        },
        10 => Fault::SlowLinks {
            node,
            time: spell(random),
        },
        11 => Fault::Clock {
            node,
            by: jump(random),
        },
        12 => Fault::SlowDisk {
            node,
            time: spell(random),
        },
        13 => Fault::FailDisk {
            node,
            after: random.below(20),
        },
        14 => Fault::FullDisk {
            node,
            time: spell(random),
        },
        15 => Fault::Rot {
            node,
            is_tail: random.percent(60),
            down: millis(random, 0, 3000),
        },
        _ => Fault::LoseDisk {
            node,
            down: millis(random, 0, 3000),
        },
    }
}

fn operation(plan: &Plan, random: &mut Random) -> Fault {
    let node = random.below(plan.nodes.len());
    match random.below(10) {
        0..4 => Fault::Swap { to: node },
        4..7 => Fault::Count {
            node,
            counted: random.percent(60),
        },
        7 => Fault::Arbiter {
            node,
            wanted: random.percent(60),
        },
        8 => Fault::TakeOffice { node },
        _ if random.percent(50) => Fault::Pack,
        _ => match random.below(10) {
            0..3 => Fault::Resign,
            chance => Fault::StandAside {
                node,
                aside: chance < 8,
            },
        },
    }
}

fn groups(count: usize, random: &mut Random) -> Vec<u8> {
    let groups = 2 + random.below(2);
    (0..count).map(|_| random.below(groups) as u8).collect()
}

/// How long something goes on.
fn spell(random: &mut Random) -> Duration {
    match random.below(6) {
        0 => seconds(random, 4, 12),
        1 => millis(random, 1, 200),
        _ => millis(random, 200, 4000),
    }
}

fn jump(random: &mut Random) -> i64 {
    let size = match random.below(3) {
        0 => random.below(2000),
        1 => random.below(60_000),
        _ => 3_600_000,
    };
    if random.percent(50) {
        size as i64
    } else {
        -(size as i64)
    }
}

pub(crate) fn millis(random: &mut Random, from: u64, to: u64) -> Duration {
    let micros = (to - from) * 1000 + 1;
    Duration::from_micros(from * 1000 + random.next() % micros)
}

pub(crate) fn seconds(random: &mut Random, from: u64, to: u64) -> Duration {
    millis(random, from * 1000, to * 1000)
}
