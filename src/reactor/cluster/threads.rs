//! Threads that wait for the disk, and what they have done.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use mio::Waker;

use super::Ended;
use crate::log_disk::{LogDiskError, Snapshot};
use crate::node::disk::{Keeper, Request};
use crate::peer;
use crate::reactor::copying;
use crate::reactor::peers::AnswerId;

pub(super) fn tell_ended(ended: &Sender<Ended>, waker: &Waker, what: Ended) {
    if ended.send(what).is_ok()
        && let Err(error) = waker.wake()
    {
        log::error!("the reactor cannot be woken ({error})");
    }
}

pub(super) type KeeperThread = JoinHandle<Result<(), LogDiskError>>;

/// What the thread of the journal is asked for.
pub(super) enum ToKeeper {
    /// By the node: the answer comes to the reactor.
    Do(Request),
    /// By the thread that supplies others.
    Snapshot(Sender<Result<Snapshot, String>>),
}

/// The thread of the journal: it ends, and closes it, when nothing more can be asked of it.
pub(super) fn run_keeper(
    mut keeper: Keeper,
    ended: Sender<Ended>,
    waker: Arc<Waker>,
) -> io::Result<(Sender<ToKeeper>, KeeperThread)> {
    let (sender, requests) = mpsc::channel();
    let run = move || {
        while let Ok(request) = requests.recv() {
            match request {
                ToKeeper::Do(request) => {
                    tell_ended(&ended, &waker, Ended::Disk(keeper.perform(request)));
                }
                // Who asked may have given up.
                ToKeeper::Snapshot(reply) => drop(reply.send(keeper.snapshot())),
            }
        }
        keeper.close()
    };
    let thread = thread::Builder::new()
        .name("journal".to_owned())
        .spawn(run)?;
    Ok((sender, thread))
}

/// The database as it is now, by the thread of the journal.
pub(super) fn snapshot_of(keeper: &Sender<ToKeeper>) -> Result<Snapshot, String> {
    let (reply, answer) = mpsc::channel();
    let asked = keeper.send(ToKeeper::Snapshot(reply));
    asked.map_err(|_| "it is stopping".to_owned())?;
    answer.recv().map_err(|_| "it is stopping".to_owned())?
}

/// The thread that reads blobs and copies for other nodes.
pub(super) fn run_supplier(
    mut supplier: copying::Supplier,
    keeper: Sender<ToKeeper>,
    ended: Sender<Ended>,
    waker: Arc<Waker>,
) -> io::Result<Sender<(AnswerId, peer::Request)>> {
    let (sender, requests) = mpsc::channel::<(AnswerId, peer::Request)>();
    let run = move || {
        let snapshot = || snapshot_of(&keeper);
        while let Ok((id, request)) = requests.recv() {
            let answer = supplier.answer(request, &snapshot);
            tell_ended(&ended, &waker, Ended::Supplied(id, answer));
        }
    };
    thread::Builder::new()
        .name("supply".to_owned())
        .spawn(run)?;
    Ok(sender)
}
