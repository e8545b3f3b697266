//! Twice a second: beats to the other nodes, questions to witnesses, and what that tells about who
//! is to blame when something is missing.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use mio::Waker;

use super::daemon::in_background;
use super::peers::Peers;
use crate::admin::WitnessStatus;
use crate::config::{Address, StandbyConfig};
use crate::ids::NodeId;
use crate::limits::{
    BEAT_INTERVAL, WITNESS_INTERVAL, WITNESS_INTERVAL_MISSING, WITNESS_PORT, WITNESS_TIMEOUT,
};
use crate::node::Node;
use crate::peer::{Beat, Shown, Witnessed};
use crate::replica::event::Now;

/// See the module's page.
pub(super) struct Lookout {
    me: NodeId,
    witnesses: Vec<Witness>,
    waker: Arc<Waker>,
    next: Instant,
}

/// An address that shows whether this node is cut off.
#[derive(Debug)]
struct Witness {
    host: String,
    port: u16,
    /// A thread asks it, since then. There is one at a time.
    asking: Option<(Receiver<bool>, Instant)>,
    /// Whether it has answered when it was asked last, and when it was asked.
    last: Option<(bool, Instant)>,
    /// When it has answered last.
    answered: Option<Instant>,
}

impl Lookout {
    pub(super) fn new(config: &StandbyConfig, waker: &Arc<Waker>, now: Instant) -> Self {
        let witnesses = config.witnesses.iter();
        Self {
            me: config.node,
            witnesses: witnesses.filter_map(Witness::new).collect(),
            waker: waker.clone(),
            next: now,
        }
    }

    /// When [`Self::on_deadline`] is to be called.
    pub(super) const fn deadline(&self) -> Instant {
        self.next
    }

    /// Looks around, if it is time.
    pub(super) fn on_deadline(&mut self, node: &mut Node, peers: &mut Peers, now: Now) {
        let instant = now.instant;
        if instant < self.next {
            return;
        }
        self.next = instant + BEAT_INTERVAL;
        let is_anybody_missing = peers.paths().is_anybody_missing(instant);
        for witness in &mut self.witnesses {
            witness.look(is_anybody_missing, &self.waker, instant);
        }
        let overview = node.overview();
        let electors = overview
            .iter()
            .flat_map(|it| it.settings.members.electors().map(|voter| voter.node));
        let counted: BTreeSet<NodeId> = electors.filter(|node| *node != self.me).collect();
        let counted: Vec<NodeId> = counted.into_iter().collect();
        let others = node.peers().filter(|(_, peer)| peer.name != self.me);
        let shown = others.map(|(_, peer)| Shown {
            node: peer.name,
            address: (!peer.address.is_empty()).then(|| peer.address.clone()),
            is_here: true,
        });
        let shown = shown.collect();
        let beat = Beat {
            role: overview.as_ref().map(|it| it.role).unwrap_or_default(),
            epoch: overview.map(|it| it.promised).unwrap_or_default(),
            members: u16::try_from(node.view_count()).unwrap_or(u16::MAX),
        };
        let witnessed = self.witnessed(instant);
        for news in peers.beat(beat, shown, &counted, witnessed, instant) {
            node.tell(news, now);
        }
    }

    /// What the witnesses say, for the status.
    pub(super) fn witnesses(&self, now: Instant) -> Vec<WitnessStatus> {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let witnesses = self.witnesses.iter();
        witnesses
            .map(|it| WitnessStatus {
                address: it.name(),
                answers: it.said(now),
                heard: it.answered.map(ago),
            })
            .collect()
    }

    fn witnessed(&self, now: Instant) -> Witnessed {
        if self.witnesses.is_empty() {
            return Witnessed::NoneNamed;
        }
        let mut witnesses = self.witnesses.iter();
        if let Some(witness) = witnesses.find(|it| it.said(now) == Some(true)) {
            return Witnessed::Answers(witness.name());
        }
        // One that has to be asked yet may answer.
        let mut witnesses = self.witnesses.iter();
        match witnesses.all(|it| it.said(now) == Some(false)) {
            true => Witnessed::Silent,
            false => Witnessed::NotKnown,
        }
    }
}

impl Witness {
    fn new(address: &Address) -> Option<Self> {
        let Address::Tcp { host, port } = address else {
            return None;
        };
        Some(Self {
            host: host.clone(),
            port: if *port == 0 { WITNESS_PORT } else { *port },
            asking: None,
            last: None,
            answered: None,
        })
    }

    fn name(&self) -> String {
        Address::Tcp {
            host: self.host.clone(),
            port: self.port,
        }
        .to_string()
    }

    /// Takes what a thread has found, and asks again if it is time.
    fn look(&mut self, is_anybody_missing: bool, waker: &Arc<Waker>, now: Instant) {
        if let Some((receiver, since)) = &self.asking {
            let since = *since;
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(answers) => {
                    self.last = Some((answers, since));
                    if answers {
                        self.answered = Some(now);
                    }
                }
                Err(TryRecvError::Disconnected) => self.last = Some((false, since)),
            }
            self.asking = None;
        }
        let interval = match is_anybody_missing {
            true => WITNESS_INTERVAL_MISSING,
            false => WITNESS_INTERVAL,
        };
        if self.last.is_some_and(|(_, at)| now < at + interval) {
            return;
        }
        let (host, port) = (self.host.clone(), self.port);
        match in_background("witness", waker.clone(), move || answers(&host, port)) {
            Ok(receiver) => self.asking = Some((receiver, now)),
            Err(error) => {
                log::error!("there is no thread to ask a witness: {error}");
                self.last = Some((false, now));
            }
        }
    }

    /// Whether it answers, by what is known and not too old. One whose name cannot be looked up in
    /// time does not.
    fn said(&self, now: Instant) -> Option<bool> {
        let age_max = 2 * WITNESS_INTERVAL_MISSING;
        if let Some((_, since)) = &self.asking
            && now >= *since + age_max
        {
            return Some(false);
        }
        let (answers, at) = self.last?;
        // What was known before something was missing counts until it is asked again.
        (now < at + age_max.max(WITNESS_INTERVAL + WITNESS_TIMEOUT)).then_some(answers)
    }
}

/// Whether anything comes back from there: a refusal is a sign of life.
fn answers(host: &str, port: u16) -> bool {
    let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => match (host, port).to_socket_addrs() {
            Ok(found) => found.collect(),
            Err(error) => {
                log::debug!("witness {host}: its name cannot be looked up: {error}");
                return false;
            }
        },
    };
    addresses.iter().any(
        |address| match TcpStream::connect_timeout(address, WITNESS_TIMEOUT) {
            Ok(_) => true,
            Err(error) => {
                log::debug!("witness {address}: {error}");
                matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                )
            }
        },
    )
}
