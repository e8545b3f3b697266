//! Commands that read all of the database, begun.

use super::{CALL_TIMEOUT, Cluster, Ended, conflict, snapshot_of, tell_ended};
use crate::admin::{Answer, Command, Others, Refused, TaskStatus};
use crate::ids::NodeId;
use crate::limits::COMPARED_NODES_MAX;
use crate::log_disk::Snapshot;
use crate::reactor::admin::AdminId;
use crate::reactor::tasks::{self, Backup, Verify};
use crate::replica::message::NodeKind;

impl Cluster {
    /// Commands that take long.
    pub(in crate::reactor) fn task_status(&self) -> Vec<TaskStatus> {
        let mut tasks = self.tasks.status();
        if let Some(what) = self.node.refreshing() {
            let (done, total) = self.fetcher.copied();
            tasks.push(TaskStatus {
                command: "fetch".to_owned(),
                what,
                done,
                total,
            });
        }
        tasks
    }

    /// Begins one; its answer comes to `answered`.
    pub(super) fn begin_task(&mut self, id: AdminId, command: &Command) -> Result<(), Refused> {
        let name = command.name();
        self.refuse_arbiter()?;
        match command {
            Command::Verify {
                storage,
                with,
                rate,
            } => {
                let verify = Verify {
                    node: self.fixed.node,
                    storage: storage.clone(),
                    with: self.others(*with)?,
                };
                let pace = self.tasks.begin(id, name, *rate)?;
                self.run_task(id, move |snapshot| verify.run(snapshot, pace))
            }
            Command::Backup {
                tid,
                to,
                storage,
                blobs,
                rate,
            } => {
                let directory = self.backup_directory.as_deref();
                let place = |name: &String| {
                    Backup::place(directory, name).map_err(|error| conflict(&error))
                };
                let backup = Backup {
                    storage: storage.clone(),
                    tid: *tid,
                    to: place(to)?,
                    blobs: blobs.as_ref().map(place).transpose()?,
                };
                let pace = self.tasks.begin(id, name, *rate)?;
                self.run_task(id, move |snapshot| backup.run(snapshot, pace))
            }
            _ => Err(super::orders::not_offered(command)),
        }
    }

    /// What is about data would find nothing at an arbiter, and so nothing wrong.
    pub(super) fn refuse_arbiter(&self) -> Result<(), Refused> {
        match self.fixed.kind {
            NodeKind::Data | NodeKind::Observer => Ok(()),
            NodeKind::Arbiter => {
                let me = self.fixed.node;
                Err(conflict(&format!("{me} is an arbiter, and has no data")))
            }
        }
    }

    /// With whom to compare, ordered by name.
    fn others(&mut self, with: Others) -> Result<Vec<(NodeId, tasks::Handle)>, Refused> {
        let me = self.fixed.node;
        let others = self.node.peers().map(|(_, peer)| peer);
        let others = others.filter(|peer| peer.name != me && peer.kind != NodeKind::Arbiter);
        let mut others: Vec<(NodeId, String)> = others
            .map(|peer| (peer.name, peer.address.clone()))
            .collect();
        match with {
            Others::All => {}
            Others::None => others.clear(),
            Others::One(node) => {
                others.retain(|(name, _)| *name == node);
                if others.is_empty() {
                    let why = format!("{node} is not another node that is here and has data");
                    return Err(conflict(&why));
                }
            }
        }
        others.sort();
        others.truncate(COMPARED_NODES_MAX);
        let handles = others.into_iter().map(|(name, address)| {
            let handle = self.peers.handle(&address, CALL_TIMEOUT);
            (name, handle)
        });
        Ok(handles.collect())
    }

    /// Runs something that has the database as it is now.
    fn run_task(
        &mut self,
        id: AdminId,
        work: impl FnOnce(Result<Snapshot, String>) -> Answer + Send + 'static,
    ) -> Result<(), Refused> {
        let keeper = self.keeper.clone();
        let (ended, waker) = (self.ended_sender.clone(), self.waker.clone());
        let run = move || {
            let snapshot = snapshot_of(&keeper);
            // As long as somebody can ask it the journal is not closed.
            drop(keeper);
            tell_ended(&ended, &waker, Ended::Task(id, work(snapshot)));
        };
        tasks::spawn(run).map_err(|error| {
            self.tasks.end(id);
            conflict(&format!("no thread for it: {error}"))
        })
    }
}
