//! Answers to administrators and monitors: how things are with this node, and what came of
//! commands.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::Reactor;
use super::cluster::Cluster;
use crate::admin::{
    Answer, ClientCounts, DirectStatus, JournalStatus, MemberRole, MemberStatus, NoticeStatus,
    Openness, Status, StorageStatus, What,
};
use crate::ids::{NodeId, Seq, Tid};
use crate::limits::CLOCK_DIFFERENCE_MAX;
use crate::logging;
use crate::node::Node;
use crate::replica::event::{Readers, Serving, Writers};
use crate::replica::members::Voter;
use crate::replica::message::{NodeKind, Role};
use crate::replica::overview::{Overview, Seen};
use crate::server::{Now, Server, StorageOverview};
use crate::storage::journal::Reader;

impl Reactor {
    /// Answers what was asked at the listeners for administrators, and what commands have led to.
    pub(super) fn serve_admin(&mut self, now: Now) {
        let (Some(mut admin), Some(cluster)) = (self.admin.take(), &mut self.cluster) else {
            return;
        };
        let registry = self.poll.registry();
        admin.turn(registry, now.mono);
        cluster.tasks.stop_if(|id| admin.is_gone(id));
        // One status for all that ask in this turn.
        let mut known = None;
        while let Some(asked) = admin.poll_asked() {
            match asked.what {
                What::Get(page) => {
                    let uptime = admin.uptime(now.mono);
                    let status = known.get_or_insert_with(|| Status {
                        uptime,
                        ..status(cluster, &self.server, now)
                    });
                    admin.answer(asked.id, &page.answer(status), registry, now.mono);
                }
                What::Post(command) => {
                    log::info!("an administrator commands: {command:?}");
                    if let Err(refused) = cluster.command(asked.id, &command, &mut self.server, now)
                    {
                        let answer = Answer::refused(&refused);
                        admin.answer(asked.id, &answer, registry, now.mono);
                    }
                }
            }
        }
        while let Some((id, answer)) = cluster.answered.pop_front() {
            admin.answer(id, &answer, registry, now.mono);
        }
        self.admin = Some(admin);
    }
}

/// All of it, but the time since the start.
fn status(cluster: &mut Cluster, server: &Server, now: Now) -> Status {
    let daemon = cluster.describe_daemon();
    let (pack, packs) = (cluster.describe_packs(), cluster.pack_statuses());
    let (fixed, node) = (&cluster.fixed, cluster.node());
    let mut status = Status {
        node: fixed.node.to_string(),
        group: fixed.group.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: node.state(),
        site: fixed.site.clone(),
        role: match fixed.kind {
            NodeKind::Data => MemberRole::Replica,
            NodeKind::Observer => MemberRole::Observer,
            NodeKind::Arbiter => MemberRole::Arbiter,
        },
        view: node.view().map(|view| view.to_string()),
        storages: server.storages().map(storage).collect(),
        clients: ClientCounts {
            connected: server.client_count() as u64,
            parked: server.parked_count() as u64,
        },
        daemon,
        notices: node
            .notices()
            .map(|(since_1970, text)| NoticeStatus {
                when: logging::local_time_text(UNIX_EPOCH + *since_1970),
                text: text.clone(),
            })
            .collect(),
        pack,
        packs,
        failed: node.failed().map(str::to_owned),
        draining: cluster.is_draining(),
        tasks: cluster.task_status(),
        ..Status::default()
    };
    if let Some(mut overview) = node.overview() {
        overview.serving = cluster.serving(overview.serving);
        let known = Known {
            overview: &overview,
            node,
            journal: cluster.journal.as_ref(),
            wall: now.wall,
        };
        fill(&mut status, &known);
    }
    fill_paths(&mut status, cluster, now.mono);
    status
}

/// What is heard beside the daemon.
fn fill_paths(status: &mut Status, cluster: &Cluster, now: Instant) {
    status.troubles = cluster.troubles();
    status.isolated = cluster.paths().is_isolated();
    status.witnesses = cluster.witnesses(now);
    for member in &mut status.members {
        let Some(node) = NodeId::new(&member.node) else {
            continue;
        };
        if node == cluster.fixed.node {
            member.heard = Some(0.0);
        }
        member.trouble = cluster.paths().trouble(node).map(str::to_owned);
        let Some(heard) = cluster.direct(node) else {
            continue;
        };
        let ago = now.saturating_duration_since(heard.last);
        member.heard = Some(ago.as_secs_f64());
        member.direct = heard.beat.map(|beat| DirectStatus {
            role: match beat.role {
                Role::Primary => MemberRole::Primary,
                Role::Candidate => MemberRole::Candidate,
                Role::Replica => MemberRole::Replica,
            },
            epoch: beat.epoch.to_string(),
            members: beat.members.into(),
            round_trip: heard.round_trip.map(|it| it.as_secs_f64()),
        });
    }
}

/// What a node knows of itself and others.
struct Known<'a> {
    overview: &'a Overview,
    node: &'a Node,
    journal: Option<&'a Reader>,
    /// The time since 1970
    wall: Duration,
}

fn storage(storage: StorageOverview<'_>) -> StorageStatus {
    StorageStatus {
        name: storage.name.to_owned(),
        tid: storage.tid.to_string(),
        objects: storage.objects,
        bytes: storage.len,
        path: storage.path.display().to_string(),
        clients: storage.clients as u64,
        waiting_votes: storage.waiting_votes as u64,
        history_from: None,
    }
}

fn fill(status: &mut Status, known: &Known<'_>) {
    let Known { overview, node, .. } = *known;
    let settings = &overview.settings;
    status.history = overview.history.to_string();
    status.epoch = overview.promised.to_string();
    status.home.clone_from(&settings.home);
    match overview.role {
        Role::Primary => status.role = MemberRole::Primary,
        Role::Candidate => status.role = MemberRole::Candidate,
        Role::Replica => {}
    }
    let seen = |member| {
        overview
            .members
            .iter()
            .find(|it| Some(&it.member) == member)
    };
    let primary = overview.primary.as_ref();
    status.primary = seen(primary).map(|it| it.voter.node.to_string());
    let names = |voters: &BTreeSet<Voter>| {
        let names = voters.iter().map(|voter| voter.node.to_string());
        names.collect::<Vec<String>>()
    };
    status.voters = names(&settings.members.voters);
    if let Some(arbiter) = &settings.members.arbiter {
        status.arbiter = Some(arbiter.node.node.to_string());
        status.in_sync = names(&arbiter.in_sync);
    }
    let Serving { writers, readers } = overview.serving;
    status.writers = match writers {
        Writers::Closed => Openness::Closed,
        Writers::Frozen => Openness::Frozen,
        Writers::Draining => Openness::Draining,
        Writers::Open => Openness::Open,
    };
    status.readers = match readers {
        // It has nothing to read.
        _ if status.role == MemberRole::Arbiter => Openness::Closed,
        Readers::Closed => Openness::Closed,
        Readers::Kept => Openness::Kept,
        Readers::Open => Openness::Open,
    };
    status.last = overview.last.seq.0;
    status.committed = overview.committed.0;
    status.applied = overview.applied.0;
    status.last_tid = overview.last_tid.to_string();
    let last_time = overview.last_tid.unix_time();
    status.last_time = (last_time > Duration::ZERO).then_some(last_time.as_secs_f64());
    // That of an arbiter has nothing in it.
    let has_log = status.role != MemberRole::Arbiter;
    let extent = known.journal.filter(|_| has_log).and_then(Reader::extent);
    status.journal = extent.map(|extent| JournalStatus {
        first: extent.first.0,
        last: overview.last.seq.0,
        bytes: extent.len,
    });
    status.members = members(known);
    status.warnings = node.warnings(overview);
    if overview.history_from > Tid::ZERO {
        for storage in &mut status.storages {
            storage.history_from = Some(overview.history_from.to_string());
        }
    }
}

/// All nodes that are counted or here.
fn members(known: &Known<'_>) -> Vec<MemberStatus> {
    let Known { overview, node, .. } = *known;
    let members = &overview.settings.members;
    let mut all: Vec<MemberStatus> = overview
        .members
        .iter()
        .map(|it| member(it, known))
        .collect();
    for (id, peer) in node.peers() {
        let found = overview.members.iter().position(|it| it.member == *id);
        let known = match found {
            Some(at) => &mut all[at],
            None => {
                all.push(MemberStatus {
                    node: peer.name.to_string(),
                    disk: peer.disk.to_string(),
                    here: true,
                    ..MemberStatus::default()
                });
                let Some(last) = all.last_mut() else { continue };
                last
            }
        };
        known.version.clone_from(&peer.version);
        known.address = (!peer.address.is_empty()).then(|| peer.address.clone());
    }
    for voter in members.electors() {
        let (name, disk) = (voter.node.to_string(), voter.disk.to_string());
        let is_known = all.iter().any(|it| it.node == name && it.disk == disk);
        if !is_known {
            all.push(MemberStatus {
                node: name,
                disk,
                voter: members.is_voter(voter),
                ..MemberStatus::default()
            });
        }
    }
    all.sort_by(|a, b| (&a.node, &a.disk).cmp(&(&b.node, &b.disk)));
    all
}

fn member(seen: &Seen, known: &Known<'_>) -> MemberStatus {
    let overview = known.overview;
    let state = &seen.state;
    // Of itself a node knows more than it has said.
    let is_me = seen.voter == overview.me;
    let said = (state.last.seq, state.applied);
    let (last, applied) = match is_me {
        true => (overview.last.seq, overview.applied),
        false => seen.acked.map_or(said, |(last, applied)| {
            (last.max(said.0), applied.max(said.1))
        }),
    };
    let committed = if is_me {
        overview.committed
    } else {
        state.committed
    };
    let lag = match (state.kind, is_me || seen.acked.is_some()) {
        // It has no log.
        (NodeKind::Arbiter, _) => Lag::default(),
        (_, true) => lag(known, applied, overview.committed),
        // What it has said is some seconds old, and so is how far it lagged behind.
        (_, false) => Lag {
            seconds: (state.committed <= state.applied).then_some(0.0),
            ..lag(known, state.applied, state.committed)
        },
    };
    MemberStatus {
        node: seen.voter.node.to_string(),
        disk: seen.voter.disk.to_string(),
        site: state.site.clone(),
        priority: state.priority,
        role: match (state.kind, if is_me { overview.role } else { state.role }) {
            (_, Role::Primary) => MemberRole::Primary,
            (_, Role::Candidate) => MemberRole::Candidate,
            (NodeKind::Data, Role::Replica) => MemberRole::Replica,
            (NodeKind::Observer, Role::Replica) => MemberRole::Observer,
            (NodeKind::Arbiter, Role::Replica) => MemberRole::Arbiter,
        },
        voter: overview.settings.members.is_voter(&seen.voter),
        here: true,
        last: Some(last.0),
        committed: Some(committed.0),
        applied: lag.count.map(|_| applied.0),
        lag: lag.count,
        lag_bytes: lag.bytes,
        lag_seconds: lag.seconds,
        ..MemberStatus::default()
    }
}

/// How far a node is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Lag {
    count: Option<u64>,
    bytes: Option<u64>,
    seconds: Option<f64>,
}

/// What is committed, and not applied by one who has applied up to there. What it is, this node's
/// own journal has to say.
fn lag(known: &Known<'_>, applied: Seq, committed: Seq) -> Lag {
    let count = committed.0.saturating_sub(applied.0);
    let stretch = known.journal.and_then(|it| it.stretch(applied, committed));
    let oldest = stretch.and_then(|it| it.oldest);
    Lag {
        count: Some(count),
        bytes: stretch.map(|it| it.len).or((count == 0).then_some(0)),
        seconds: match oldest {
            None => (count == 0).then_some(0.0),
            Some(oldest) => age(oldest, known.wall),
        },
    }
}

/// How long ago a transaction was committed, in seconds. None if its time is to come: behind a
/// promotion with loss.
fn age(tid: Tid, wall: Duration) -> Option<f64> {
    let at = tid.unix_time();
    match wall.checked_sub(at) {
        Some(age) => Some(age.as_secs_f64()),
        // By another node's clock.
        None => (at.saturating_sub(wall) <= CLOCK_DIFFERENCE_MAX).then_some(0.0),
    }
}
