//! What administrators command, and what comes of it.

use super::start::random;
use super::{Cluster, of};
use crate::admin::{
    Answer as AdminAnswer, Command as AdminCommand, MemberAction, Refused, Refusing,
};
use crate::ids::HistoryId;
use crate::node::Refused as NotDone;
use crate::reactor::admin::AdminId;
use crate::reactor::office::Consequence;
use crate::reactor::packing::pack_time;
use crate::replica::event::{Refusal as NodeRefusal, Token as NodeToken};
use crate::server::{Now, Server};

impl Cluster {
    /// An administrator's command: its answer comes to `answered`, or it is refused at once.
    pub(in crate::reactor) fn command(
        &mut self,
        id: AdminId,
        command: &AdminCommand,
        server: &mut Server,
        now: Now,
    ) -> Result<(), Refused> {
        let token = self.token();
        match command {
            AdminCommand::Swap { to } => self.node.swap(token, *to, of(now)),
            AdminCommand::Promote { accept_loss } => {
                self.node
                    .promote(token, *accept_loss, HistoryId(random()), of(now));
            }
            AdminCommand::Member { node, action } => {
                let arbiter = self.node.arbiter();
                if let (MemberAction::RemoveArbiter, Some(arbiter)) = (action, arbiter)
                    && arbiter != *node
                {
                    let error = format!("{node} is not the arbiter: {arbiter} is");
                    return Err(refused_command(error, Refusing::Conflict));
                }
                self.node
                    .change_members(token, action.change(*node), of(now));
            }
            AdminCommand::Pack {
                storage,
                days,
                time,
            } => {
                let until = pack_time(*days, *time, now);
                let until = until.ok_or_else(|| conflict("there is no such time"))?;
                return self.order_packs(id, storage.as_deref(), until, server, now);
            }
            AdminCommand::Drain { on: true } => return self.drain(id, server, now),
            AdminCommand::Drain { on: false } => {
                self.end_draining(id, server, now);
                return Ok(());
            }
            AdminCommand::Verify { .. } | AdminCommand::Backup { .. } => {
                return self.begin_task(id, command);
            }
            AdminCommand::Fetch { from } => self.node.fetch(token, *from, of(now)),
        }
        self.commands.insert(token, id);
        self.follow(server, now);
        Ok(())
    }

    /// A command that goes with the office has ended.
    pub(super) fn on_consequence(
        &mut self,
        consequence: Consequence,
        server: &mut Server,
        now: Now,
    ) {
        match consequence {
            Consequence::Open => {}
            Consequence::Tell(text) => self.node.tell(text, of(now)),
            Consequence::HandOver(text) => {
                self.node.tell(text, of(now));
                self.hand_over(server, now);
            }
        }
        self.set_serving(server, now);
    }

    /// Another name for something that is wanted.
    pub(in crate::reactor) const fn token(&mut self) -> NodeToken {
        self.commands_count += 1;
        NodeToken(self.commands_count)
    }

    /// Lets another node be primary, if this is it and there is one.
    pub(in crate::reactor) fn hand_over(&mut self, server: &mut Server, now: Now) -> bool {
        let Some(to) = self.node.best_successor().filter(|_| self.is_primary()) else {
            return false;
        };
        log::info!("{to} is to be primary instead");
        // Nobody waits for the answer.
        let token = self.token();
        self.node.swap(token, Some(to), of(now));
        self.follow(server, now);
        true
    }

    /// Whether this node is in office.
    pub(in crate::reactor) fn is_primary(&self) -> bool {
        self.node.is_primary()
    }

    pub(super) fn on_answer(&mut self, token: NodeToken, result: Result<String, NotDone>) {
        let Some(id) = self.commands.remove(&token) else {
            return;
        };
        let answer = match result {
            Ok(done) => {
                log::info!("what an administrator commanded is done: {done}");
                AdminAnswer::done(&done)
            }
            Err(not_done) => {
                log::info!(
                    "what an administrator commanded is refused: {}",
                    not_done.text
                );
                AdminAnswer::refused(&self.refused(&not_done))
            }
        };
        self.answered.push_back((id, answer));
    }

    /// A node's refusal, for an administrator.
    pub(super) fn refused(&self, not_done: &NotDone) -> Refused {
        let reason = match not_done.refusal {
            NodeRefusal::NotPrimary => Refusing::NotPrimary,
            NodeRefusal::Busy => Refusing::Busy,
            _ => Refusing::Conflict,
        };
        let primary = self.node.primary();
        let primary = primary.filter(|_| reason == Refusing::NotPrimary);
        Refused {
            primary: primary.map(|it| it.to_string()),
            ..refused_command(not_done.text.clone(), reason)
        }
    }
}

pub(in crate::reactor) fn conflict(error: &str) -> Refused {
    refused_command(error.to_owned(), Refusing::Conflict)
}

pub(super) const fn refused_command(error: String, reason: Refusing) -> Refused {
    Refused {
        error,
        reason,
        primary: None,
    }
}

pub(super) fn not_offered(command: &AdminCommand) -> Refused {
    Refused {
        error: format!("{}: this version does not offer that", command.name()),
        reason: Refusing::NotOffered,
        primary: None,
    }
}
