//! Our place in the group: the daemon, and who else is there.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Registry, Token, Waker};

use super::daemon::Daemon;
use crate::config::StandbyConfig;
use crate::group::channel::Incoming;
use crate::group::roster::{Noticed, Roster};

/// See the module's page.
pub(super) struct Membership {
    group: String,
    daemon: Daemon,
    roster: Roster,
    /// The daemon may have more to say at once.
    pub(super) has_more: bool,
}

impl Membership {
    /// Begins to join. `since_1970` is what the clock says.
    pub(super) fn join(
        config: &StandbyConfig,
        registry: &Registry,
        token: Token,
        waker: &Arc<Waker>,
        (since_1970, now): (Duration, Instant),
    ) -> io::Result<Self> {
        let nanos = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let incarnation = (nanos >> 1) as i64;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        log::info!("group {}: joining by {}", config.group, config.daemon);
        log::warn!(
            "group {}: this version talks to the other members, and does not replicate yet",
            config.group
        );
        if config.key.is_none() {
            log::warn!(
                "group {}: without key-file, whoever reaches the daemon can speak in it",
                config.group
            );
        }
        Ok(Self {
            group: config.group.clone(),
            daemon: Daemon::new(config, registry, token, waker, nanos, now)?,
            roster: Roster::new(config.node.clone(), incarnation, version),
            has_more: true,
        })
    }

    /// Notes what the poll says.
    pub(super) fn on_ready(&mut self, event: &Event) {
        self.daemon.on_ready(event);
        self.has_more = true;
    }

    /// Takes what there is from the daemon.
    pub(super) fn turn(&mut self, now: Instant) {
        self.has_more = self.daemon.turn(now);
        while let Some(incoming) = self.daemon.poll_incoming() {
            let noticed = self.roster.on_incoming(&incoming, self.daemon.channel());
            self.on_incoming(&incoming);
            if let Some(noticed) = noticed {
                self.on_noticed(&noticed);
            }
        }
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self, now: Instant) {
        self.has_more |= self.daemon.flush(now);
    }

    pub(super) fn deadline(&mut self) -> Option<Instant> {
        self.daemon.deadline()
    }

    pub(super) fn on_deadline(&mut self, now: Instant) {
        self.daemon.on_deadline(now);
        self.has_more = true;
    }

    pub(super) fn leave(&mut self, now: Instant) {
        self.daemon.leave(now);
    }

    fn on_incoming(&self, incoming: &Incoming) {
        let group = &self.group;
        match incoming {
            Incoming::Transitional => log::info!("group {group}: members are being lost"),
            Incoming::View(view) => {
                let members: Vec<&str> = view.members.iter().map(|it| it.as_str()).collect();
                let members = members.join(", ");
                log::info!(
                    "group {group}: view {}: {members} ({})",
                    view.id,
                    view.cause
                );
            }
            // The session has said it.
            Incoming::Lost(why) => log::debug!("group {group}: the daemon is lost: {why}"),
            Incoming::Message(message) => {
                let (from, len) = (&message.from, message.what.len());
                log::trace!("group {group}: {len} bytes of {from} ({:?})", message.lane);
            }
            Incoming::Part(_) | Incoming::Cut { .. } => {}
        }
    }

    fn on_noticed(&self, noticed: &Noticed) {
        let group = &self.group;
        match noticed {
            Noticed::Complete => {
                let nodes = self.roster.members().filter_map(|(_, node)| node);
                let nodes: Vec<String> = nodes
                    .map(|node| format!("{} (version {})", node.name, node.version))
                    .collect();
                log::info!("group {group}: here are {}", nodes.join(", "));
            }
            Noticed::Namesake(member) => log::error!(
                "group {group}: {member} is called as this node is; one of them needs another \
                 node name"
            ),
            Noticed::Foreign(member, what) => {
                log::warn!("group {group}: {member} is not understood ({what})");
            }
        }
    }
}
