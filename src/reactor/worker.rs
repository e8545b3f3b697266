//! The threads that may wait for the disk.
//!
//! Each storage has one thread for appends and syncs, whose order matters. Reads share a pool; one
//! thread does the housekeeping of all, one packs, and a few take blobs in. What is done comes back
//! through a channel; the waker ends the reactor's poll.
//!
//! The thread that packs gives way: between two slices it waits while anything is on its way that a
//! client waits for ([`Traffic`]), but not longer than half the time that its last slice took. So
//! it has the disk for itself when nobody else wants it, and two thirds of the time when somebody
//! always does.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::Waker;
use rustix::process::setpriority_process;
use rustix::thread::gettid;

use super::now;

use crate::server::JobTag;
use crate::storage::{Done, Job, Lane};

/// Threads that read: as many reads of one disk as are worth having at a time.
const READERS: usize = 4;

/// Threads that take blobs in: so many can be synced at a time, and a long one does not keep the
/// others waiting.
const BLOB_WRITERS: usize = 3;

/// How much the thread that packs gives way to all others, as `nice` says it: as much as can be.
const PACK_NICENESS: i32 = 19;

/// How long it waits for others after a slice: this part of the time that the slice took. With all
/// of it a pack among clients that never rest takes a third longer, and their waits are no shorter.
const PACK_REST_DIVISOR: u32 = 2;

/// How long it waits at most.
const PACK_REST_MAX: Duration = Duration::from_secs(1);

/// Stack of a worker; they recurse nowhere.
const STACK_LEN: usize = 128 * 1024;

/// Name of the thread that packs.
const PACK: &str = "pack";

type Tagged = (JobTag, Job);

/// A job that was run.
#[derive(Debug)]
struct Ended {
    lane: Lane,
    tag: JobTag,
    done: Done,
}

/// Whether clients wait for jobs of this lane.
const fn is_waited_for(lane: Lane) -> bool {
    match lane {
        Lane::Commit | Lane::Read | Lane::Blob => true,
        Lane::Housekeeping | Lane::Pack => false,
    }
}

/// Jobs on their way that clients wait for.
#[derive(Debug)]
struct WaitedFor {
    count: usize,
    /// As `traffic` knows it. `count > 0` implies it.
    is_busy: bool,
    traffic: Arc<Traffic>,
}

impl WaitedFor {
    const fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            count: 0,
            is_busy: false,
            traffic,
        }
    }

    fn on_submitted(&mut self, lane: Lane) {
        self.count += usize::from(is_waited_for(lane));
        self.tell(self.count > 0 || self.is_busy);
    }

    fn on_ended(&mut self, lane: Lane) {
        self.count -= usize::from(is_waited_for(lane));
    }

    fn end_turn(&mut self) {
        self.tell(self.count > 0);
    }

    fn tell(&mut self, is_busy: bool) {
        if is_busy != self.is_busy {
            self.is_busy = is_busy;
            self.traffic.set_busy(is_busy);
        }
    }
}

/// Whether anything is on its way that a client waits for.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    busy: Mutex<bool>,
    calm: Condvar,
}

impl Traffic {
    fn set_busy(&self, now_busy: bool) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if *busy && !now_busy {
            self.calm.notify_all();
        }
        *busy = now_busy;
    }

    /// Returns when there is none, or after `max`.
    fn wait_for_calm(&self, max: Duration) {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waited is released by what comes first.
        drop(self.calm.wait_timeout_while(busy, max, |busy| *busy));
    }
}

/// The threads, and the way to them.
#[derive(Debug)]
pub(super) struct Workers {
    commit: Vec<Sender<Tagged>>,
    read: Sender<Tagged>,
    housekeeping: Sender<Tagged>,
    pack: Sender<Tagged>,
    blob: Sender<Tagged>,
    done: Receiver<Ended>,
    threads: Vec<JoinHandle<()>>,
    waited_for: WaitedFor,
}

impl Workers {
    /// Starts the threads for `storages` storages.
    pub(super) fn start(storages: usize, waker: &Arc<Waker>) -> io::Result<Self> {
        let (done_sender, done) = mpsc::channel();
        let mut threads = Vec::new();
        let traffic = Arc::new(Traffic::default());
        let mut spawn = |name: String, jobs: Arc<Mutex<Receiver<Tagged>>>| -> io::Result<()> {
            let (done, waker) = (done_sender.clone(), waker.clone());
            let gives_way = (name == PACK).then(|| traffic.clone());
            let thread = thread::Builder::new()
                .name(name)
                .stack_size(STACK_LEN)
                .spawn(move || work(&jobs, &done, &waker, gives_way.as_deref()))?;
            threads.push(thread);
            Ok(())
        };
        let mut commit = Vec::new();
        for at in 0..storages {
            let (sender, jobs) = mpsc::channel();
            spawn(format!("commit-{at}"), Arc::new(Mutex::new(jobs)))?;
            commit.push(sender);
        }
        let (read, jobs) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for at in 0..READERS {
            spawn(format!("read-{at}"), jobs.clone())?;
        }
        let (housekeeping, jobs) = mpsc::channel();
        spawn("housekeeping".to_owned(), Arc::new(Mutex::new(jobs)))?;
        let (pack, jobs) = mpsc::channel();
        spawn(PACK.to_owned(), Arc::new(Mutex::new(jobs)))?;
        let (blob, jobs) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for at in 0..BLOB_WRITERS {
            spawn(format!("blob-{at}"), jobs.clone())?;
        }
        Ok(Self {
            commit,
            read,
            housekeeping,
            pack,
            blob,
            done,
            threads,
            waited_for: WaitedFor::new(traffic),
        })
    }

    /// Hands out a job.
    pub(super) fn submit(&mut self, tag: JobTag, job: Job) {
        let lane = job.lane();
        self.waited_for.on_submitted(lane);
        let lane = match lane {
            Lane::Commit => &self.commit[tag.storage],
            Lane::Read => &self.read,
            Lane::Housekeeping => &self.housekeeping,
            Lane::Pack => &self.pack,
            Lane::Blob => &self.blob,
        };
        // A worker ends only when its sender is dropped, or with the process.
        if lane.send((tag, job)).is_err() {
            log::error!("a worker thread has ended");
        }
    }

    /// For other threads that give way.
    pub(super) fn traffic(&self) -> Arc<Traffic> {
        self.waited_for.traffic.clone()
    }

    /// Takes what is done.
    pub(super) fn take_done(&mut self) -> Option<(JobTag, Done)> {
        let Ended { lane, tag, done } = self.done.try_recv().ok()?;
        self.waited_for.on_ended(lane);
        Some((tag, done))
    }

    /// All is submitted that follows from what was done: a transaction goes to the disk more than
    /// once, and between two times is not the moment for others.
    pub(super) fn end_turn(&mut self) {
        self.waited_for.end_turn();
    }

    /// Ends the threads, after what they have been given.
    pub(super) fn stop(self) {
        let Self {
            commit,
            read,
            housekeeping,
            pack,
            blob,
            threads,
            ..
        } = self;
        drop((commit, read, housekeeping, pack, blob));
        for thread in threads {
            if thread.join().is_err() {
                log::error!("a worker thread had panicked");
            }
        }
    }
}

/// The thread that calls this lets all others go first.
pub(super) fn give_way() {
    // In Linux that is the thread's own. If it cannot be had, the rests remain.
    let _ = setpriority_process(Some(gettid()), PACK_NICENESS);
}

/// Waits after something that was begun at that time, while anything is on its way that a client
/// waits for.
pub(super) fn rest(traffic: &Traffic, begun: Instant) {
    let took = now().mono.saturating_duration_since(begun);
    traffic.wait_for_calm(PACK_REST_MAX.min(took / PACK_REST_DIVISOR));
}

fn work(
    jobs: &Mutex<Receiver<Tagged>>,
    done: &Sender<Ended>,
    waker: &Waker,
    gives_way: Option<&Traffic>,
) {
    if gives_way.is_some() {
        give_way();
    }
    loop {
        // The lock is held while waiting: the other readers wait for it instead of for a job.
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((tag, job)) = next else {
            return;
        };
        let (begun, lane) = (now().mono, job.lane());
        let ended = job.run();
        let ended = Ended {
            lane,
            tag,
            done: ended,
        };
        if done.send(ended).is_err() {
            return;
        }
        if let Err(error) = waker.wake() {
            log::error!("the reactor cannot be woken ({error})");
        }
        if let Some(traffic) = gives_way {
            rest(traffic, begun);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_way_goes_on_when_it_is_calm_or_has_waited_enough() {
        let traffic = Traffic::default();
        // For ever, if it did not go on at once.
        traffic.wait_for_calm(Duration::MAX);
        traffic.set_busy(true);
        traffic.wait_for_calm(Duration::from_nanos(1));
        thread::scope(|scope| {
            scope.spawn(|| traffic.wait_for_calm(Duration::MAX));
            traffic.set_busy(false);
        });
    }

    #[test]
    fn it_is_calm_at_the_end_of_a_turn_in_which_nothing_was_begun_instead() {
        let traffic = Arc::new(Traffic::default());
        let mut waited_for = WaitedFor::new(traffic.clone());
        let is_busy = || *traffic.busy.lock().unwrap();
        waited_for.on_submitted(Lane::Pack);
        waited_for.on_submitted(Lane::Housekeeping);
        assert!(!is_busy());
        for lane in [Lane::Commit, Lane::Read, Lane::Blob] {
            waited_for.on_submitted(lane);
            assert!(is_busy());
            waited_for.on_ended(lane);
            waited_for.on_submitted(lane);
            waited_for.end_turn();
            assert!(is_busy(), "the second of two writes");
            waited_for.on_ended(lane);
            waited_for.on_submitted(Lane::Pack);
            assert!(is_busy(), "in the turn that takes the end of it");
            waited_for.on_ended(Lane::Pack);
            waited_for.end_turn();
            assert!(!is_busy());
        }
    }
}
