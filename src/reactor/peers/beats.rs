//! Beats: what is heard of other nodes beside the daemon ([`crate::peer::Paths`]).

use std::time::Instant;

use super::target::{Goal, Lane};
use super::{Asker, Peers};
use crate::ids::NodeId;
use crate::peer::{Beat, Paths, Request, Shown, Witnessed};

impl Peers {
    /// What is heard of other nodes by the direct path.
    pub const fn paths(&self) -> &Paths {
        &self.paths
    }

    /// To be called every [`BEAT_INTERVAL`](crate::limits::BEAT_INTERVAL), with what this node is,
    /// and what the group shows. Sends beats; the lines that it returns are to be told.
    pub fn beat(
        &mut self,
        beat: Beat,
        shown: Vec<Shown>,
        counted: &[NodeId],
        witnessed: Witnessed,
        now: Instant,
    ) -> Vec<String> {
        self.beat = beat;
        let is_in_view = beat.members > 0;
        let news = self.paths.look(shown, counted, is_in_view, witnessed, now);
        for (node, to) in self.paths.due(now) {
            let lane = Lane::Beats;
            let goal = Goal { to, lane };
            self.ask(goal, Request::Beat(beat), Asker::Beat(node), now);
        }
        news
    }
}
