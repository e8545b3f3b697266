//! What disks do: their queues, power cuts, and processes that start from what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::checker::{Checked, NodeLog, Torn};
use crate::clients::message::Applied;
use crate::disk::{EXTREMES, Failure, Files, Lie, Model, Pick, SimDisk};
use crate::entry::Entry;
use crate::ids::{DiskId, Epoch, Seq};
use crate::node::Process;
use crate::plan::Plan;
use crate::replica::Replica;
use crate::replica::event::{Event, Options, Serving};
use crate::replica::members::Voter;
use crate::replica::message::NodeKind;
use crate::replica::settings::Settings;
use crate::store::{Copy, JOURNAL, Job, Kept, Sizes, Sort, Store, blob_at, lock, unwrap, written};
use crate::world::{Happening, World};
use standby::storage::journal::Identity;

impl World {
    pub(crate) fn push_job(&mut self, node: usize, job: Job) {
        if let Some(process) = self.nodes[node].process.as_mut() {
            process.jobs.push_back(job);
        }
        self.start_disk(node);
    }

    pub(crate) fn start_disk(&mut self, node: usize) {
        let now = self.now;
        let is_slow = now < self.nodes[node].slow_disk_until;
        let time = self.disk_time(is_slow);
        let Some(process) = self.nodes[node].process.as_mut() else {
            return;
        };
        if process.running.is_some() {
            return;
        }
        let Some(mut job) = process.jobs.pop_front() else {
            return;
        };
        if let Job::Append(entries) = &mut job {
            // They share a sync; but not with those that are dropped, as there was no room for what
            // was in front of them.
            while let Some(Job::Append(more)) = process.jobs.front_mut() {
                let last = entries.last().map(|entry| entry.header().digest);
                if more.first().map(|entry| entry.header().previous) != last {
                    break;
                }
                entries.append(more);
                process.jobs.pop_front();
            }
        }
        process.running = Some(job);
        let process = process.id;
        self.after(time, Happening::DiskDone { node, process });
    }

    fn disk_time(&mut self, is_slow: bool) -> Duration {
        match (is_slow, self.random.below(200)) {
            (true, _) => self.within(300, 4000),
            (false, 0) if !self.is_calm => self.within(300, 3000),
            (false, 1..15) => self.within(5, 50),
            _ => Duration::from_micros(100 + self.random.next() % 4000),
        }
    }

    pub(crate) fn disk_done(&mut self, node: usize) -> Checked {
        let it = &mut self.nodes[node];
        let Some(process) = it.process.as_mut() else {
            return Ok(());
        };
        let Some(job) = process.running.take() else {
            return Ok(());
        };
        it.disk.set_full(it.is_full);
        if matches!(job, Job::Adopt { .. }) {
            it.disk.fail(None);
            it.disk.set_full(false);
        }
        let done = process.store.run(job.clone());
        let event = match done {
            Ok(event) => event,
            Err(error) => {
                self.nodes[node].torn = torn(&job);
                self.fail(node, error);
                return Ok(());
            }
        };
        if let Job::Apply { through } = job
            && process.store.is_held()
        {
            self.marks.hit("apply held");
            self.try_again(node, through);
        }
        if let Some(event) = event {
            self.job_done(node, &job, &event)?;
            self.check_settled(node)?;
            for entry in self.applied_now(node) {
                if self.nodes[node].history == self.history {
                    self.exposed = self.exposed.max(entry.header().seq.0);
                }
                self.users.on_applied(node, &plain(&entry), self.now);
            }
            self.arrive(node, event)?;
        } else {
            self.marks.hit("append dropped");
        }
        self.start_disk(node);
        Ok(())
    }

    /// Less was applied than was to be.
    fn try_again(&mut self, node: usize, through: Seq) {
        let time = self.within(500, 1500);
        let process = self.nodes[node].process.as_ref();
        let process = process.map_or(0, |process| process.id);
        let again = Happening::Held {
            node,
            process,
            through,
        };
        self.after(time, again);
    }

    /// What was not applied is asked for again, as the server does it; what has rotted of its
    /// blobs comes from a peer first.
    pub(crate) fn go_on_applying(&mut self, node: usize, through: Seq) {
        let it = &mut self.nodes[node];
        it.disk.set_full(it.is_full);
        let Some(process) = it.process.as_mut() else {
            return;
        };
        match process.store.mend() {
            Ok(mended) => {
                self.marks.add("blob mended", mended.len() as u64);
                it.rotten.retain(|digest| !mended.contains(digest));
                self.push_job(node, Job::Apply { through });
            }
            Err(error) => {
                self.note(node, "disk", || error);
                self.try_again(node, through);
            }
        }
    }

    fn applied_now(&mut self, node: usize) -> Vec<Entry> {
        let process = self.nodes[node].process.as_mut();
        process
            .map(|process| process.store.take_applied())
            .unwrap_or_default()
    }

    /// Tells the checker what stands on the disk now.
    fn job_done(&mut self, node: usize, job: &Job, event: &Event) -> Checked {
        let place = self.nodes[node].place();
        match (job, event) {
            (Job::Append(entries), Event::Synced { .. }) => {
                self.checker.on_appended(place, entries)?
            }
            (Job::Promise(epoch), _) => self.checker.on_promised(place, *epoch)?,
            (Job::Cut { after, .. }, _) => self.checker.on_cut_done(place, *after)?,
            (Job::Record(position, members), _) => {
                self.checker
                    .on_recorded(place, *position, members.clone())?;
            }
            (Job::Adopt { .. }, Event::Copied { log, .. }) => {
                let promised = self
                    .checker
                    .stable(&place)
                    .map_or(Epoch::ZERO, |log| log.promised);
                self.checker.copied(place, log.last, promised)?;
                let applied = self.all_applied(node)?;
                let _ = self.applied_now(node);
                self.users
                    .copied(node, self.nodes[node].history, applied, self.now);
                self.marks.hit("copy adopted");
            }
            _ => {}
        }
        self.tell_committed();
        Ok(())
    }

    pub(crate) fn tell_committed(&mut self) {
        for (history, epoch, entry) in self.checker.take_fresh() {
            if epoch != entry.header().epoch {
                self.marks.hit("S2 barrier committed old");
            }
            self.marks.hit("committed");
            self.users.on_committed(history, &plain(&entry));
        }
    }

    /// All that the data of a node hold. I10: that is what is committed, up to there.
    pub(crate) fn all_applied(&self, node: usize) -> Result<Vec<Applied>, String> {
        let it = &self.nodes[node];
        let Some(process) = &it.process else {
            return Ok(Vec::new());
        };
        if it.plan.kind == NodeKind::Arbiter {
            return Ok(Vec::new());
        }
        let applied = process.store.applied();
        let all = self.checker.history_of(it.history, applied);
        let all = all.ok_or_else(|| format!("I10: {} has applied {applied}", it.name))?;
        let found = process
            .store
            .written()
            .map_err(|error| format!("I10: {}: {error}", it.name))?;
        if !all.iter().filter_map(|entry| written(entry)).eq(found) {
            return Err(format!(
                "I10: the data of {} are not what is committed",
                it.name
            ));
        }
        Ok(all.into_iter().map(plain).collect())
    }

    /// What was told to be on stable storage is.
    fn check_settled(&mut self, node: usize) -> Checked {
        let it = &self.nodes[node];
        if it.disk.is_settled(Path::new(JOURNAL)) && !self.random.percent(1) {
            return Ok(());
        }
        self.check_disk(node)
    }

    /// What a power cut now would leave is what is believed to be there.
    pub(crate) fn check_disk(&mut self, node: usize) -> Checked {
        let it = &self.nodes[node];
        let files = it.disk.model().cut_power(Pick::Nothing, &mut self.random);
        let disk = SimDisk::new(Model::new(&files, None), None);
        let kept = Arc::new(Mutex::new(lock(&it.kept).clone()));
        let opened = Store::open(&disk, &kept, self.sort(node));
        let opened = opened.map_err(|error| format!("I2: {} without power: {error}", it.name))?;
        let Some(stable) = self.checker.stable(&it.place()) else {
            return Ok(());
        };
        let blobs = opened.store.check_blobs(&disk, &it.rotten);
        let blobs = blobs.map_err(|error| format!("{}: {error}", it.name))?;
        let last = opened.store.ends().1;
        if last.seq != stable.last_seq() || Some(last.digest) != stable.last() {
            let (last, told) = (last.seq, stable.last_seq());
            return Err(format!(
                "I2: {} has told {told}, and {last} is on its disk",
                it.name
            ));
        }
        if opened.start.promised != stable.promised {
            let (is, told) = (opened.start.promised, stable.promised);
            return Err(format!(
                "I5: {} has told {told}, and {is} is on its disk",
                it.name
            ));
        }
        self.marks.add("blob looked at", blobs);
        Ok(())
    }

    pub(crate) fn sort(&self, node: usize) -> Sort {
        let Plan {
            segment_len,
            window_len,
            has_storage,
            ..
        } = self.plan;
        Sort {
            is_real: has_storage,
            has_data: self.nodes[node].plan.kind != NodeKind::Arbiter,
            sizes: Sizes {
                segment_len,
                window_len,
            },
        }
    }

    pub(crate) fn checkpoint(&mut self, node: usize) -> Checked {
        let time = self.within(300, 1500);
        self.after(time, Happening::Checkpoint(node));
        let it = &mut self.nodes[node];
        if it.paused_until.is_some() || it.is_full {
            return Ok(());
        }
        let Some(process) = it.process.as_mut() else {
            return Ok(());
        };
        if let Err(error) = process.store.checkpoint() {
            self.fail(node, error);
        }
        Ok(())
    }

    /// A pack is done.
    pub(crate) fn packed(&mut self, node: usize) -> Checked {
        let Some(process) = self.nodes[node].process.as_mut() else {
            return Ok(());
        };
        if let Some((storage, at)) = process.packing.take()
            && let Err(error) = process.store.note_packed(&storage, at)
        {
            self.fail(node, error);
            return Ok(());
        }
        self.arrive(node, Event::Packed)
    }

    /// The disk has failed: the process ends, and starts again.
    fn fail(&mut self, node: usize, error: String) {
        self.note(node, "disk", || error);
        self.marks.hit("stopped by its disk");
        self.stop(node);
        let down = self.within(10, 2000);
        self.after(down, Happening::Start(node));
    }

    /// A process ends, between two steps of its disk.
    pub(crate) fn crash(&mut self, node: usize, power: bool) {
        let it = &mut self.nodes[node];
        let Some(process) = it.process.as_mut() else {
            if power {
                let model = it.disk.model();
                it.disk = cut_power(&model, self.plan.lie, &mut self.random);
            }
            return;
        };
        let job = process.running.take();
        it.torn = job.as_ref().map(torn).unwrap_or_default();
        let mut model = it.disk.model();
        if let Some(job) = job.filter(|job| process.store.is_divisible(job)) {
            let before = it.disk.step_count();
            // How it ends is of no importance: nobody hears of it.
            let _ = process.store.run(job);
            let steps = it.disk.log_from(before);
            let done = self.random.below(steps.len() + 1);
            steps[..done].iter().for_each(|step| model.apply(step));
            self.marks.hit("crash while the disk was busy");
        }
        self.stop(node);
        let it = &mut self.nodes[node];
        it.disk = if power {
            cut_power(&model, self.plan.lie, &mut self.random)
        } else {
            SimDisk::new(model, None)
        };
    }

    /// The process is gone; its disk stays as it is.
    pub(crate) fn stop(&mut self, node: usize) {
        let place = self.nodes[node].place();
        self.note(node, "stop", String::new);
        if self.nodes[node].process.take().is_some() {
            self.checker.stopped(&place);
            self.users.stop(node, self.now);
            self.daemon.leave(node, self.now);
            self.asked.retain(|_, (asked, _)| *asked != node);
        }
        let it = &mut self.nodes[node];
        it.inbox.clear();
        it.paused_until = None;
        self.users.pause(node, false, self.now);
    }

    /// A process starts, if none is there.
    pub(crate) fn start(&mut self, node: usize) -> Checked {
        if self.nodes[node].is_up() || self.nodes[node].is_gone {
            return Ok(());
        }
        let sort = self.sort(node);
        let it = &mut self.nodes[node];
        let opened = match Store::open(&it.disk, &it.kept, sort) {
            Ok(opened) => opened,
            Err(error) if it.is_damaged => {
                self.note(node, "damaged", || error);
                self.marks.hit("damage refused");
                self.lose_disk(node);
                return self.seed(node);
            }
            Err(error) if error.contains(FAILED) => {
                self.note(node, "disk", || error);
                let time = self.within(10, 500);
                self.after(time, Happening::Start(node));
                return Ok(());
            }
            Err(error) => return Err(format!("{} cannot start: {error}", it.name)),
        };
        it.is_damaged = false;
        let (first, last) = opened.store.ends();
        let digests = opened
            .store
            .entries(first, last.seq, u64::MAX)
            .unwrap_or_default();
        let found = NodeLog {
            base: Some(opened.store.base()),
            digests: digests.iter().map(|entry| entry.header().digest).collect(),
            promised: opened.start.promised,
            record: opened.record,
        };
        let torn = std::mem::take(&mut it.torn);
        let place = it.place();
        self.checker.opened(place, found, &torn)?;
        self.tell_committed();
        let it = &self.nodes[node];
        let options = Options {
            kind: it.plan.kind,
            site: it.plan.site.to_owned(),
            priority: it.plan.priority,
            copies_newest_only: false,
            leads_without_history: false,
            lease: self.plan.lease,
        };
        let now = self.now_of(node);
        self.note(node, "start", || format!("{:?}", opened.start));
        let applied = opened.start.log.applied;
        self.processes += 1;
        let process = self.processes;
        let replica = Replica::new(options, opened.start, now);
        self.nodes[node].process = Some(Process {
            id: process,
            replica,
            store: opened.store,
            jobs: [].into(),
            running: None,
            wake: None,
            wakes: (Duration::ZERO, 0),
            view: None,
            unblocked: BTreeMap::new(),
            fetches: [].into(),
            packing: None,
            known: Seq::ZERO,
            serving: Serving::default(),
            promoted: None,
            ordered: None,
            applied,
        });
        let all = self.all_applied(node)?;
        let _ = self.applied_now(node);
        self.users
            .start(node, self.nodes[node].history, all, self.now);
        let time = self.within(1, 300);
        let same_name = self.random.percent(20);
        self.after(
            time,
            Happening::Join {
                node,
                process,
                same_name,
            },
        );
        self.rewake(node);
        Ok(())
    }

    /// The disk is replaced by an empty one.
    pub(crate) fn lose_disk(&mut self, node: usize) {
        self.disks += 1;
        let mut disk = [0; 16];
        disk[0] = node as u8 + 1;
        disk[8..].copy_from_slice(&self.disks.to_be_bytes());
        let it = &mut self.nodes[node];
        it.voter = Voter {
            node: it.name,
            disk: DiskId(disk),
        };
        it.disk = SimDisk::new(Model::new(&Files::new(), self.plan.lie), None);
        it.kept = Arc::new(Mutex::new(Kept::default()));
        it.is_damaged = false;
        it.rotten.clear();
        it.torn = Torn::default();
    }

    /// A node with an empty disk gets a copy from any other, and starts.
    pub(crate) fn seed(&mut self, node: usize) -> Checked {
        let identity = Identity {
            history: self.history,
            node: self.nodes[node].name,
            disk: self.nodes[node].voter.disk,
        };
        self.nodes[node].history = self.history;
        let sort = self.sort(node);
        if self.nodes[node].plan.kind == NodeKind::Arbiter {
            let it = &self.nodes[node];
            Store::found(&it.disk, &it.kept, identity, Settings::default(), sort)?;
        } else {
            let Some(copy) = self.any_copy(node) else {
                let time = self.within(100, 1000);
                self.nodes[node].is_damaged = true;
                self.after(time, Happening::Start(node));
                return Ok(());
            };
            let it = &self.nodes[node];
            Store::seed(&it.disk, &it.kept, identity, &copy, sort)?;
            let place = it.place();
            self.checker.copied(place, copy.last(), Epoch::ZERO)?;
        }
        self.marks.hit("re-seeded");
        self.start(node)
    }

    fn any_copy(&mut self, node: usize) -> Option<Copy> {
        let history = self.history;
        let others = self.nodes.iter_mut().enumerate().filter(|(index, it)| {
            *index != node && it.plan.kind != NodeKind::Arbiter && it.history == history
        });
        let mut copies = others.filter_map(|(_, it)| it.process.as_mut()?.store.snapshot().ok());
        copies.next()
    }

    /// A replica gets its copy.
    pub(crate) fn take_copy(
        &mut self,
        node: usize,
        id: u64,
        from: usize,
        at_least: Seq,
    ) -> Checked {
        // One of another history is refused by who reads what it is of.
        let is_there = from < self.nodes.len()
            && self.reaches(node, from)
            && self.nodes[from].history == self.nodes[node].history;
        let copy = is_there.then(|| self.nodes[from].process.as_mut()?.store.snapshot().ok());
        match copy.flatten().filter(|copy| copy.last().seq >= at_least) {
            Some(copy) => {
                let copy = Arc::new(copy);
                self.push_job(node, Job::Adopt { id, copy });
                Ok(())
            }
            None => self.arrive(node, Event::FetchFailed { id }),
        }
    }

    /// Bits turn over on a disk that has no power.
    pub(crate) fn rot(&mut self, node: usize, is_tail: bool) {
        let it = &mut self.nodes[node];
        let mut model = it.disk.model();
        let files = model.shown();
        // Data have no checksums: what rots there nobody can tell, nor of a blob that is there.
        let data = files.iter().filter(|(path, _)| !path.starts_with(JOURNAL));
        let data: BTreeSet<u64> = data.map(|(_, contents)| contents.inode).collect();
        let files = files.iter().filter(|(path, contents)| {
            let name = path.to_string_lossy();
            path.starts_with(JOURNAL)
                && !data.contains(&contents.inode)
                && !contents.is_empty()
                && (!is_tail || name.ends_with(".segment"))
        });
        let mut files: Vec<_> = files
            .map(|(path, contents)| (path.clone(), contents.len()))
            .collect();
        // There are few of them.
        let has_blob = files.iter().any(|(path, _)| blob_at(path).is_some());
        if has_blob && self.random.percent(50) {
            files.retain(|(path, _)| blob_at(path).is_some());
        }
        let Some((path, len)) = files.get(self.random.below(files.len().max(1))).cloned() else {
            return;
        };
        for _ in 0..=self.random.below(3) {
            let from = if is_tail { len.saturating_sub(600) } else { 0 };
            let pos = from + self.random.below(len - from);
            model.rot(&path, pos, 1 << self.random.below(8));
        }
        if let Some(digest) = blob_at(&path) {
            it.rotten.insert(digest);
        }
        it.disk = SimDisk::new(model, None);
    }

    pub(crate) fn fail_disk(&mut self, node: usize, after: usize) {
        let seed = self.random.next();
        let disk = &self.nodes[node].disk;
        let step = disk.step_count() + after;
        disk.fail(Some(Failure {
            step,
            kind: std::io::ErrorKind::Other,
            seed,
        }));
    }
}

/// An entry as users know it.
pub(crate) fn plain(entry: &Entry) -> Applied {
    let header = entry.header();
    Applied {
        seq: header.seq,
        epoch: header.epoch,
        kind: header.kind,
        tid: header.tid,
        body: unwrap(entry),
    }
}

/// What the disk says of a failure that was wanted.
const FAILED: &str = "other error";

fn cut_power(model: &Model, lie: Option<Lie>, random: &mut crate::random::Random) -> SimDisk {
    let pick = match random.below(12) {
        at @ 0..6 => EXTREMES[at],
        _ => Pick::Random,
    };
    let files = model.cut_power(pick, random);
    SimDisk::new(Model::new(&files, lie), None)
}

/// What may be on the disk, or not, if this did not get to its end.
fn torn(job: &Job) -> Torn {
    match job {
        Job::Append(entries) => Torn {
            appended: entries.iter().map(|entry| entry.header().digest).collect(),
            ..Torn::default()
        },
        Job::Cut { after, .. } => Torn {
            cut_after: Some(*after),
            ..Torn::default()
        },
        // What is not in the copy is cut first.
        Job::Adopt { copy, .. } => Torn {
            cut_after: Some(Seq::ZERO),
            adopted: Some(copy.last()),
            ..Torn::default()
        },
        _ => Torn::default(),
    }
}
