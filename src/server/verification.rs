//! What a client that comes back with a cache asks: what has changed since (zeo-protocol, section
//! 10).

use std::sync::Arc;

use super::calls::Outcome;
use super::{Now, Output, Server};
use crate::ids::{ClientId, Oid, Tid};
use crate::storage::error::ReadError;
use crate::storage::{Job, Recent};
use crate::zeo::Value;

impl Server {
    /// Has the last transactions of a file read, by workers.
    pub(super) fn read_past(&mut self, at: usize, now: Now) {
        let age = self.options.invalidation_age;
        let oldest = Tid::from_unix_time(now.wall.saturating_sub(age));
        let view = self.storages[at].storage.view();
        let job = view.recent(self.options.invalidation_queue_size, oldest);
        self.run_past(at, job);
    }

    fn run_past(&mut self, storage: usize, job: Job) {
        let tag = self.tag(storage);
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
        if self.storages[at].invalidations.has_past() {
            let changes = self.changes_since(at, since, now);
            return Outcome::Reply(changes_value(changes));
        }
        let served = &mut self.storages[at];
        served.waiting_for_past.push((id, msgid.clone(), since));
        if let Some(client) = self.clients.get_mut(&id) {
            client.waiting += 1;
        }
        Outcome::Later
    }

    /// What has changed since a tid, if that can be told: it must be of this history.
    fn changes_since(&mut self, at: usize, since: Tid, now: Now) -> Option<(Tid, Vec<Oid>)> {
        let invalidations = &mut self.storages[at].invalidations;
        match &self.failover {
            None => invalidations.since(since, now.wall),
            Some(failover) if !failover.is_ours(since) => None,
            Some(failover) if failover.is_of_base(since) => invalidations.since(since, now.wall),
            Some(_) => invalidations.since_any(since, now.wall),
        }
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
            let changes = self.changes_since(at, since, now);
            let Some(client) = self.clients.get_mut(&id).filter(|client| !client.closing) else {
                continue;
            };
            client.session.reply(&msgid, &changes_value(changes));
            client.waiting -= 1;
            self.to_send.insert(id);
            self.outputs.push_back(Output::Serve(id));
        }
    }
}

fn changes_value(changes: Option<(Tid, Vec<Oid>)>) -> Value {
    changes.map_or(Value::None, |(last, oids)| {
        Value::Tuple(vec![Value::from(last), Value::from(Arc::new(oids))])
    })
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::server::{JobTag, Options, Port};
    use crate::storage::memory::MemoryDisk;
    use crate::storage::{self, Done, FileStorage, LockScope, PackOptions};
    use crate::zeo::Encoding;

    const CLIENT: ClientId = ClientId { serial: 1, key: 0 };

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can be had in no other way"
    )]
    fn now() -> Now {
        Now {
            mono: Instant::now(),
            wall: Duration::from_secs(1_800_000_000),
        }
    }

    fn server() -> Server {
        let options = storage::Options {
            name: "1".to_owned(),
            read_only: false,
            create: false,
            quota: None,
            client_resolves: true,
            lock_scope: LockScope::Storage,
            pack: PackOptions::default(),
            blob_dir: None,
        };
        let disk = Arc::new(MemoryDisk::new());
        let storage = FileStorage::open(disk, Path::new("Data.fs"), options, &mut |_| ()).unwrap();
        let options = Options {
            encoding: Encoding::Z,
            read_only: false,
            invalidation_queue_size: 10,
            invalidation_age: Duration::ZERO,
            transaction_timeout: None,
            start: String::new(),
        };
        Server::new(options, vec![storage], now())
    }

    fn job(server: &mut Server) -> (JobTag, Job) {
        loop {
            match server.poll_output() {
                Some(Output::Run(tag, job)) => return (tag, job),
                Some(_) => {}
                None => panic!("no job"),
            }
        }
    }

    fn send(server: &mut Server, frame: &[u8]) {
        server.receive(CLIENT, &(frame.len() as u32).to_be_bytes());
        server.receive(CLIENT, frame);
        while server.run_calls(CLIENT, 1, now()) {}
    }

    /// What waits for the client's socket.
    fn taken(server: &mut Server) -> Vec<u8> {
        let out = server.output_of(CLIENT).unwrap();
        let mut slices = [IoSlice::new(&[]); 64];
        let count = out.slices(&mut slices, usize::MAX);
        let taken: Vec<u8> = slices[..count].iter().flat_map(|it| it.to_vec()).collect();
        out.advance(taken.len());
        taken
    }

    /// A client that asks what has changed since tid zero, before the past is known.
    fn asking() -> (Server, JobTag, Job) {
        let mut server = server();
        let (tag, job) = job(&mut server);
        server.connect(CLIENT, "peer".to_owned(), Port::Main, now());
        send(&mut server, b"Z5");
        let register = b"\x80\x03(K\x01\x89X\x08\0\0\0registerX\x01\0\0\x001\x89\x86t.";
        send(&mut server, register);
        assert!(!taken(&mut server).is_empty());
        let ask = b"\x80\x03(K\x07\x89X\x10\0\0\0getInvalidationsC\x08\0\0\0\0\0\0\0\0\x85t.";
        send(&mut server, ask);
        assert!(!server.has_output(CLIENT));
        (server, tag, job)
    }

    #[test]
    fn who_asks_what_has_changed_is_answered_when_the_past_is_known() {
        let (mut server, tag, job) = asking();
        server.on_done(tag, job.run(), now());
        assert_eq!(server.clients[&CLIENT].waiting, 0);
        assert!(taken(&mut server).windows(2).any(|bytes| bytes == b"K\x07"));
    }

    #[test]
    fn a_past_that_cannot_be_read_is_none() {
        let (mut server, tag, _) = asking();
        let failed = Done::Recent(Err(ReadError::WouldBlock));
        server.on_done(tag, failed, now());
        assert!(taken(&mut server).windows(2).any(|bytes| bytes == b"K\x07"));
    }

    #[test]
    fn a_server_that_stops_reads_no_more_of_the_past() {
        let mut server = server();
        let (tag, Job::Recent(reader)) = job(&mut server) else {
            panic!("another job");
        };
        let (again, Job::Recent(reader)) = ({
            let more = Done::Recent(Ok(Recent::More(reader)));
            server.on_done(tag, more, now());
            job(&mut server)
        }) else {
            panic!("another job");
        };
        server.give_up_packs(now());
        let more = Done::Recent(Ok(Recent::More(reader)));
        server.on_done(again, more, now());
        assert!(server.poll_output().is_none());
    }
}
