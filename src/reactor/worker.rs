//! The threads that may wait for the disk.
//!
//! Each storage has one thread for appends and syncs, whose order matters. Reads share a pool; one
//! thread does the housekeeping of all, one packs, and a few take blobs in. What is done comes back
//! through a channel; the waker ends the reactor's poll.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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

/// How much the thread that packs gives way to all others, as `nice` says it.
const PACK_NICENESS: i32 = 10;

/// How long it rests after a slice at most; else as long as the slice took. So a pack takes half of
/// what the disk and a processor can do, and commits and loads have the other half for themselves.
const PACK_REST_MAX: Duration = Duration::from_secs(1);

/// Stack of a worker; they recurse nowhere.
const STACK_LEN: usize = 128 * 1024;

/// Name of the thread that packs.
const PACK: &str = "pack";

type Tagged = (JobTag, Job);

/// The threads, and the way to them.
#[derive(Debug)]
pub(super) struct Workers {
    commit: Vec<Sender<Tagged>>,
    read: Sender<Tagged>,
    housekeeping: Sender<Tagged>,
    pack: Sender<Tagged>,
    blob: Sender<Tagged>,
    done: Receiver<(JobTag, Done)>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts the threads for `storages` storages.
    pub(super) fn start(storages: usize, waker: &Arc<Waker>) -> io::Result<Self> {
        let (done_sender, done) = mpsc::channel();
        let mut threads = Vec::new();
        let mut spawn = |name: String, jobs: Arc<Mutex<Receiver<Tagged>>>| -> io::Result<()> {
            let (done, waker) = (done_sender.clone(), waker.clone());
            let gives_way = name == PACK;
            let thread = thread::Builder::new()
                .name(name)
                .stack_size(STACK_LEN)
                .spawn(move || work(&jobs, &done, &waker, gives_way))?;
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
        })
    }

    /// Hands out a job.
    pub(super) fn submit(&mut self, tag: JobTag, job: Job) {
        let lane = match job.lane() {
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

    /// Takes what is done.
    pub(super) fn take_done(&mut self) -> Option<(JobTag, Done)> {
        self.done.try_recv().ok()
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

fn work(
    jobs: &Mutex<Receiver<Tagged>>,
    done: &Sender<(JobTag, Done)>,
    waker: &Waker,
    gives_way: bool,
) {
    if gives_way {
        // In Linux that is the thread's own. If it cannot be had, the rests remain.
        let _ = setpriority_process(Some(gettid()), PACK_NICENESS);
    }
    loop {
        // The lock is held while waiting: the other readers wait for it instead of for a job.
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((tag, job)) = next else {
            return;
        };
        let begun = now().mono;
        if done.send((tag, job.run())).is_err() {
            return;
        }
        if let Err(error) = waker.wake() {
            log::error!("the reactor cannot be woken ({error})");
        }
        if gives_way {
            let took = now().mono.saturating_duration_since(begun);
            thread::sleep(took.min(PACK_REST_MAX));
        }
    }
}
