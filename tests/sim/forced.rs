//! Most voters are gone for good, and an administrator accepts that something is lost: what one
//! node has becomes another history.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::entry::{Entry, Point};
use crate::ids::{HistoryId, Seq, Tid};
use crate::replica::members::Members;
use crate::replica::message::NodeKind;
use crate::replica::settings::Settings;
use crate::store::Store;
use crate::world::{Happening, World};
use standby::storage::journal::Identity;

impl World {
    /// Promotes a node by force. Whether it was done.
    pub(crate) fn force(&mut self, node: usize) -> Result<bool, String> {
        let it = &self.nodes[node];
        let old_settings = self.checker.settings(self.history);
        let voters = &old_settings.members.voters;
        let is_fit = it.plan.kind == NodeKind::Data && it.plan.priority > 0 && voters.len() > 1;
        if !is_fit || !it.is_up() || it.is_damaged || it.history != self.history {
            return Ok(false);
        }
        // One of the others may not have heard, as long as it is no majority by itself.
        let may_linger = old_settings.members.arbiter.is_none() && voters.len() > 2;
        let ghost = self.random.below(self.nodes.len());
        let is_ghost = |other: usize| may_linger && other == ghost && other != node;
        self.crash(node, false);
        for other in 0..self.nodes.len() {
            if other != node && !is_ghost(other) {
                self.crash(other, true);
                self.lose_disk(other);
                self.nodes[other].is_damaged = true;
                let time = self.within(500, 3000);
                self.after(time, Happening::Start(other));
            } else if other != node {
                let time = self.within(500, 4000);
                self.after(time, Happening::Reseed(other));
            }
        }
        self.begin_anew(node)?;
        self.marks.hit("forced promotion");
        self.start(node)?;
        Ok(true)
    }

    /// The log of the node as it stands on its disk is the past of a new history.
    fn begin_anew(&mut self, node: usize) -> Result<(), String> {
        let (old, place) = (self.history, self.nodes[node].place());
        let mut id = old.0;
        id[7] = id[7].wrapping_add(1);
        let new = HistoryId(id);
        let wall = self.now_of(node).wall;
        let sort = self.sort(node);
        let it = &self.nodes[node];
        let opened = Store::open(&it.disk, &it.kept, sort)?;
        opened.store.mend()?;
        let last = opened.store.ends().1;
        drop(opened);
        let inherited: Vec<Entry> = self.checker.log_of(place, last)?;
        let settings = self.checker.settings_at(old, last.digest);
        let tids = inherited.iter().map(|entry| entry.header().tid);
        let last_tid = tids
            .max()
            .unwrap_or_default()
            .max(self.checker.last_tid(old));
        let it = &self.nodes[node];
        let members = Members {
            voters: BTreeSet::from([it.voter]),
            arbiter: None,
        };
        let settings: Settings = settings.after_loss(members, &["1".to_owned()], last_tid, wall);
        let identity = Identity {
            history: new,
            node: it.name,
            disk: it.voter.disk,
        };
        let it = &mut self.nodes[node];
        it.disk = Store::found_behind(&it.disk, &it.kept, identity, settings.clone(), sort)?;
        it.history = new;
        // What it has and is not committed may be something else than what is.
        let same = inherited.iter().take_while(|entry| {
            let committed = self.checker.committed_at(old, entry.header().seq);
            let is_old = self.checker.is_before(old, entry.header().seq);
            is_old || committed.map(Entry::header) == Some(entry.header())
        });
        let known = Seq(same.count() as u64);
        let start = Point {
            digest: Point::start(new).digest,
            ..last
        };
        let own_tid = inherited.iter().map(|entry| entry.header().tid).max();
        self.checker
            .begin(new, start, settings, own_tid.unwrap_or(Tid::ZERO));
        self.checker.inherit(new, inherited.clone());
        self.users.on_forced(old, new, known);
        for entry in inherited.iter().filter(|entry| entry.header().seq > known) {
            self.users.on_committed(new, &crate::disks::plain(entry));
        }
        self.history = new;
        self.exposed = last.seq.0;
        self.confirms.clear();
        self.asked.clear();
        Ok(())
    }

    /// A node that has another history gets a copy of this one.
    pub(crate) fn reseed(&mut self, node: usize) {
        if self.nodes[node].history == self.history {
            return;
        }
        self.crash(node, true);
        self.lose_disk(node);
        self.nodes[node].is_damaged = true;
        self.after(Duration::ZERO, Happening::Start(node));
    }
}
