//! A transaction as a client makes it: begin, stores, vote, finish; and abort if it conflicts.

use std::time::Instant;

use bytes::Bytes;

use standby::ids::{Oid, Tid};
use standby::zeo::Value;
use standby::zeo::client::Raised;

use crate::bench::{Bench, Event, Until, Workload, as_items, as_tid};
use crate::failure::Failure;
use crate::fleet::now;

/// What is to be stored of one object.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub oid: Oid,
    /// Of the revision that is replaced; zero for a new object.
    pub serial: Tid,
    /// The version, as in the record.
    pub counter: u64,
    pub data: Bytes,
}

/// A transaction on its way.
#[derive(Debug)]
pub(crate) struct Txn {
    phase: Phase,
    /// Of the call whose answer comes next.
    msgid: i64,
    id: Value,
    written: Vec<(Oid, u64)>,
    /// The newest tid that was known when finish was sent.
    floor: Tid,
    /// When finish was sent, as soon as it was.
    pub finish_sent: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Voting,
    Finishing,
    Aborting,
}

/// What an answer has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It goes on.
    Waiting,
    /// It is committed.
    Finished(Tid),
    /// An object was changed since it was read; the transaction is aborted.
    Conflict,
}

impl Txn {
    /// Sends all up to the vote.
    pub(crate) fn begin(
        bench: &mut Bench,
        link: usize,
        stores: Vec<Store>,
        now: Instant,
    ) -> Result<Self, Failure> {
        // Stock clients take the address of an object, which is of 48 bits.
        let id = Value::Int(0x7f00_0000_0000 + (link as i64) * 0x100);
        let (user, description) = (Value::text("zeobench"), Value::text(""));
        let extension = Value::Dict(Vec::new());
        let status = Value::text(" ");
        let begin = vec![
            id.clone(),
            user,
            description,
            extension,
            Value::None,
            status,
        ];
        bench.fleet.send(link, "tpc_begin", begin)?;
        let mut written = Vec::with_capacity(stores.len());
        for store in stores {
            written.push((store.oid, store.counter));
            let data = Value::Bytes(store.data);
            let args = vec![store.oid.into(), store.serial.into(), data, id.clone()];
            bench.fleet.send(link, "storea", args)?;
        }
        let msgid = bench.fleet.call(link, "vote", vec![id.clone()], now)?;
        Ok(Self {
            phase: Phase::Voting,
            msgid,
            id,
            written,
            floor: Tid::ZERO,
            finish_sent: None,
        })
    }

    /// An answer came on the connection. Those to other calls are left alone.
    pub(crate) fn on_answer(
        &mut self,
        bench: &mut Bench,
        link: usize,
        msgid: i64,
        result: &Result<Value, Raised>,
        now: Instant,
    ) -> Result<Step, Failure> {
        if msgid != self.msgid {
            return Ok(Step::Waiting);
        }
        match self.phase {
            Phase::Voting => self.on_vote(bench, link, result, now),
            Phase::Finishing => {
                let result = result.as_ref();
                let tid = result.map_err(|raised| Failure::raised("tpc_finish", raised))?;
                let tid = as_tid(tid).ok_or_else(|| Failure::answer("tpc_finish"))?;
                bench
                    .ledger
                    .on_finished(link, tid, self.floor, &self.written)?;
                Ok(Step::Finished(tid))
            }
            Phase::Aborting => match result {
                Ok(_) => Ok(Step::Conflict),
                Err(raised) => Err(Failure::raised("tpc_abort", raised)),
            },
        }
    }

    fn on_vote(
        &mut self,
        bench: &mut Bench,
        link: usize,
        result: &Result<Value, Raised>,
        now: Instant,
    ) -> Result<Step, Failure> {
        let is_conflict = match result {
            Ok(value) => {
                let answers = as_items(value).ok_or_else(|| Failure::answer("vote"))?;
                match answers.first() {
                    None => false,
                    // What the client is to resolve, which PersistentMapping cannot.
                    Some(Value::Dict(_)) => true,
                    Some(_) => {
                        return Err(Failure::Wrong(
                            "vote answered that it has changed states that cannot be merged"
                                .to_owned(),
                        ));
                    }
                }
            }
            Err(raised) if is_conflict(raised) => true,
            Err(raised) => return Err(Failure::raised("vote", raised)),
        };
        let name = if is_conflict {
            self.phase = Phase::Aborting;
            "tpc_abort"
        } else {
            self.phase = Phase::Finishing;
            self.floor = bench.ledger.latest();
            self.finish_sent = Some(now);
            "tpc_finish"
        };
        self.msgid = bench.fleet.call(link, name, vec![self.id.clone()], now)?;
        Ok(Step::Waiting)
    }
}

fn is_conflict(raised: &Raised) -> bool {
    matches!(raised.short_class(), "ConflictError" | "ReadConflictError")
}

/// Commits, and waits until that is done.
pub(crate) fn commit(bench: &mut Bench, link: usize, stores: Vec<Store>) -> Result<Tid, Failure> {
    let txn = Txn::begin(bench, link, stores, now())?;
    let mut committing = Committing {
        link,
        txn,
        step: Step::Waiting,
    };
    bench.drive(&mut committing, Until::Done)?;
    match committing.step {
        Step::Finished(tid) => Ok(tid),
        Step::Waiting | Step::Conflict => Err(Failure::Server(
            "somebody else changes the objects that are prepared".to_owned(),
        )),
    }
}

struct Committing {
    link: usize,
    txn: Txn,
    step: Step,
}

impl Workload for Committing {
    fn on_event(
        &mut self,
        bench: &mut Bench,
        link: usize,
        event: Event,
        now: Instant,
    ) -> Result<(), Failure> {
        if let Event::Answer { msgid, result } = event
            && link == self.link
        {
            self.step = self.txn.on_answer(bench, link, msgid, &result, now)?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.step != Step::Waiting
    }
}
