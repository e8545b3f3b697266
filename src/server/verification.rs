//! What a client that comes back with a cache asks: what has changed since (zeo-protocol, section
//! 10).

use super::calls::Outcome;
use super::{JobTag, Now, Output, Server};
use crate::ids::{ClientId, Oid, Tid};
use crate::storage::error::ReadError;
use crate::storage::{Job, Recent};
use crate::zeo::Value;

impl Server {
    /// Has the last transactions of all files read, by workers.
    pub(super) fn read_past(&mut self, now: Now) {
        let age = self.options.invalidation_age;
        let oldest = Tid::from_unix_time(now.wall.saturating_sub(age));
        for at in 0..self.storages.len() {
            let view = self.storages[at].storage.view();
            let job = view.recent(self.options.invalidation_queue_size, oldest);
            self.run_past(at, job);
        }
    }

    fn run_past(&mut self, storage: usize, job: Job) {
        let tag = JobTag {
            storage,
            read: None,
        };
        self.outputs.push_back(Output::Run(tag, job));
    }

    /// Answers as soon as the past is known. What is committed until then goes to the client, too,
    /// in front of the answer that has it.
    pub(super) fn invalidations(
        &mut self,
        id: ClientId,
        msgid: &Value,
        at: usize,
        since: Tid,
        now: Now,
    ) -> Outcome {
        let served = &mut self.storages[at];
        if served.invalidations.has_past() {
            let changes = served.invalidations.since(since, now.wall);
            return Outcome::Reply(changes_value(changes));
        }
        served.waiting_for_past.push((id, msgid.clone(), since));
        if let Some(client) = self.clients.get_mut(&id) {
            client.waiting += 1;
        }
        Outcome::Later
    }

    /// A slice of the past was read. Who waits for the end of it is answered then.
    pub(super) fn on_recent(&mut self, at: usize, result: Result<Recent, ReadError>, now: Now) {
        let served = &mut self.storages[at];
        let past = match result {
            Ok(Recent::More(reader)) => {
                if !self.stopping {
                    self.run_past(at, Job::Recent(reader));
                }
                return;
            }
            Ok(Recent::Found(past)) => past,
            Err(error) => {
                let path = served.storage.path().display();
                // Clients drop their caches then, and go on.
                log::error!("{path}: the last transactions cannot be read: {error}");
                Vec::new()
            }
        };
        served.invalidations.begin_with(past);
        for (id, msgid, since) in std::mem::take(&mut served.waiting_for_past) {
            let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
                continue;
            };
            let changes = served.invalidations.since(since, now.wall);
            client.session.reply(&msgid, &changes_value(changes));
            client.waiting -= 1;
            self.to_send.insert(id);
            self.outputs.push_back(Output::Serve(id));
        }
    }
}

fn changes_value(changes: Option<(Tid, Vec<Oid>)>) -> Value {
    changes.map_or(Value::None, |(last, oids)| {
        Value::Tuple(vec![
            Value::from(last),
            Value::List(oids.into_iter().map(Value::from).collect()),
        ])
    })
}
