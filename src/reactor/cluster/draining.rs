//! A node that nobody shall need, as it is about to be stopped: it gives its office to another one,
//! and closes its readers.
//!
//! It stands aside in elections. If it is made primary all the same, as nobody else can be, it
//! gives that away again as soon as there is somebody who can have it. A start ends it.

use std::time::{Duration, Instant};

use super::{Cluster, conflict, of};
use crate::admin::{Answer, Refused};
use crate::ids::NodeId;
use crate::node;
use crate::reactor::admin::AdminId;
use crate::replica::event::{Readers, Serving, Token};
use crate::server::{Now, Server};

/// How often it tries to be rid of an office that came to it.
const RETRY: Duration = Duration::from_secs(3);

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Draining {
    is_on: bool,
    /// What clients may do if it is not.
    serving: Serving,
    /// A swap that has not ended, and who waits for that.
    swap: Option<(Token, Option<AdminId>)>,
    /// When to see whether it is in office.
    look_at: Option<Instant>,
}

impl Draining {
    /// What clients may do.
    pub(super) const fn shown(&self) -> Serving {
        self.gate(self.serving)
    }

    /// What they may do of what the node lets them. Who writes may as long as this node is in
    /// office.
    pub(super) const fn gate(&self, serving: Serving) -> Serving {
        match self.is_on {
            true => Serving {
                writers: serving.writers,
                readers: Readers::Closed,
            },
            false => serving,
        }
    }

    /// The node says what clients may do.
    pub(super) const fn on_serving(&mut self, serving: Serving) {
        self.serving = serving;
    }

    /// Whether a node's answer belongs here.
    pub(super) fn has_asked(&self, token: Token) -> bool {
        self.swap.is_some_and(|(asked, _)| asked == token)
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.look_at
    }
}

impl Cluster {
    /// Whether it shall not be needed.
    pub(in crate::reactor) const fn is_draining(&self) -> bool {
        self.draining.is_on
    }

    /// It shall not be needed from now on. The answer comes when it is not in office.
    pub(super) fn drain(
        &mut self,
        id: AdminId,
        server: &mut Server,
        now: Now,
    ) -> Result<(), Refused> {
        self.refuse_arbiter()?;
        if self.draining.swap.is_some_and(|(_, asker)| asker.is_some()) {
            return Err(conflict("it is about to drain"));
        }
        let successor = self.node.best_successor();
        if self.is_primary() && successor.is_none() {
            return Err(conflict("it is primary, and no other node could be"));
        }
        self.draining.is_on = true;
        self.draining.look_at = Some(now.mono + RETRY);
        self.node.stand_aside(true, of(now));
        self.set_serving(server, now);
        match successor.filter(|_| self.is_primary()) {
            Some(to) => self.give_office(to, Some(id), server, now),
            None => self.say_draining(id),
        }
        Ok(())
    }

    /// It may be needed again.
    pub(super) fn end_draining(&mut self, id: AdminId, server: &mut Server, now: Now) {
        self.stop_draining(server, now);
        let done = format!("{} does not drain", self.fixed.node);
        self.answered.push_back((id, Answer::done(&done)));
    }

    fn stop_draining(&mut self, server: &mut Server, now: Now) {
        self.draining.is_on = false;
        self.draining.look_at = None;
        self.node.stand_aside(false, of(now));
        self.set_serving(server, now);
    }

    fn give_office(&mut self, to: NodeId, asker: Option<AdminId>, server: &mut Server, now: Now) {
        log::info!("{to} is to be primary, as this node drains");
        self.commands_count += 1;
        let token = Token(self.commands_count);
        self.draining.swap = Some((token, asker));
        self.node.swap(token, Some(to), of(now));
        self.follow(server, now);
    }

    fn say_draining(&mut self, id: AdminId) {
        let done = format!("{} drains", self.fixed.node);
        self.answered.push_back((id, Answer::done(&done)));
    }

    /// What came of a swap.
    pub(super) fn on_office_given(
        &mut self,
        result: Result<String, node::Refused>,
        server: &mut Server,
        now: Now,
    ) {
        let Some((_, Some(id))) = self.draining.swap.take() else {
            return;
        };
        // It may have been undone meanwhile; or somebody else was faster.
        match result {
            Err(refusal) if self.is_primary() => {
                self.stop_draining(server, now);
                let refused = self.refused(&refusal);
                self.answered.push_back((id, Answer::refused(&refused)));
            }
            _ if !self.draining.is_on => {
                let refused = conflict("it was told meanwhile not to drain");
                self.answered.push_back((id, Answer::refused(&refused)));
            }
            _ => self.say_draining(id),
        }
    }

    /// Now and then: is it in office all the same?
    pub(super) fn look_at_draining(&mut self, server: &mut Server, now: Now) {
        if self.draining.look_at.is_none_or(|at| at > now.mono) {
            return;
        }
        self.draining.look_at = Some(now.mono + RETRY);
        if self.draining.swap.is_none()
            && self.is_primary()
            && let Some(to) = self.node.best_successor()
        {
            self.give_office(to, None, server, now);
        }
    }
}
