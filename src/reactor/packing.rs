//! Packs of a node's data files: the thread that makes their steps, and the administrator who
//! orders them.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use super::admin::AdminId;
use super::cluster::Cluster;
use super::now;
use super::worker::{Traffic, give_way, rest};
use crate::admin::{Answer, PackState, PackStatus, Refused, Refusing};
use crate::ids::Tid;
use crate::log_disk::{PackOrder, Packing};
use crate::node::{PackEnd, Refused as NotDone};
use crate::replica::event::Token;
use crate::replica::message::NodeKind;
use crate::server::{Now, OrderRefused, Server};
use crate::storage::PackError;
use crate::storage::pack_fed::FedStep;

/// Seconds of a day.
const DAY: f64 = 86_400.0;

/// What a step has come to.
pub(super) type Stepped = (Box<Packing>, Result<FedStep, PackError>);

/// The way to the thread that packs.
pub(super) struct PackThread {
    sender: Option<Sender<Box<Packing>>>,
    thread: Option<JoinHandle<()>>,
    stops: Arc<AtomicBool>,
}

/// Packs that an administrator has ordered together, until all nodes must do them.
#[derive(Debug)]
pub(super) struct Orders {
    id: AdminId,
    /// Who waits for what.
    waiting: Vec<(Token, String)>,
    done: Vec<String>,
    failed: Vec<String>,
    reason: Refusing,
}

impl PackThread {
    /// Starts it. It makes the steps of one pack at a time, each until that waits for something,
    /// and gives way to what clients wait for.
    pub(super) fn start(
        traffic: Arc<Traffic>,
        ended: impl Fn(Stepped) + Send + 'static,
    ) -> io::Result<Self> {
        let stops = Arc::new(AtomicBool::new(false));
        let (sender, packs) = mpsc::channel::<Box<Packing>>();
        let has_to_stop = stops.clone();
        let run = move || {
            give_way();
            while let Ok(mut packing) = packs.recv() {
                let result = loop {
                    if has_to_stop.load(Ordering::Relaxed) {
                        break Err(PackError::Stopped);
                    }
                    let begun = now().mono;
                    match packing.step() {
                        Ok(FedStep::More) => rest(&traffic, begun),
                        result => break result,
                    }
                };
                ended((packing, result));
            }
        };
        let thread = thread::Builder::new().name("pack".to_owned()).spawn(run)?;
        Ok(Self {
            sender: Some(sender),
            thread: Some(thread),
            stops,
        })
    }

    /// Goes on with a pack.
    pub(super) fn step(&self, packing: Box<Packing>) {
        if let Some(sender) = &self.sender
            && sender.send(packing).is_err()
        {
            log::error!("the thread that packs has ended");
        }
    }

    /// Gives up what it does; it is begun anew with the next start.
    pub(super) fn stop(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }

    /// Waits for its end.
    pub(super) fn join(mut self) {
        self.stop();
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that packs had panicked");
        }
    }
}

impl Cluster {
    /// An administrator has storages packed, all if none is named: what is not later than `until`.
    pub(super) fn order_packs(
        &mut self,
        id: AdminId,
        storage: Option<&str>,
        until: Tid,
        server: &mut Server,
        now: Now,
    ) -> Result<(), Refused> {
        let not_primary = Refused {
            error: "packs are ordered at the primary".to_owned(),
            reason: Refusing::NotPrimary,
            primary: self.node().primary().map(|node| node.to_string()),
        };
        // It has no storages: all of them would be done at once.
        if self.fixed.kind == NodeKind::Arbiter {
            return Err(not_primary);
        }
        let names: BTreeSet<String> = match storage {
            Some(name) => [name.to_owned()].into(),
            None => server.storages().map(|it| it.name.to_owned()).collect(),
        };
        let mut orders = Orders {
            id,
            waiting: Vec::new(),
            done: Vec::new(),
            failed: Vec::new(),
            reason: Refusing::Conflict,
        };
        for name in names {
            let token = self.token();
            match server.order_pack(&name, until, token) {
                Ok(()) => orders.waiting.push((token, name)),
                Err(OrderRefused::NotPrimary) => return Err(not_primary),
                Err(OrderRefused::Already) => {
                    orders.reason = Refusing::Busy;
                    let why = format!("storage \"{name}\" is being packed already");
                    orders.failed.push(why);
                }
                Err(OrderRefused::Unknown) => {
                    let why = format!("there is no storage \"{name}\"");
                    orders.failed.push(why);
                }
            }
        }
        self.orders.push(orders);
        self.answer_orders();
        self.follow(server, now);
        Ok(())
    }

    /// The node's answer to an order, be it that of a client or of an administrator.
    pub(super) fn on_order_answered(
        &mut self,
        token: Token,
        result: &Result<String, NotDone>,
        server: &mut Server,
    ) {
        let result = result.as_ref().map(drop).map_err(|it| it.text.clone());
        server.on_order_answered(token, result.clone());
        let Err(why) = result else { return };
        for orders in &mut self.orders {
            let found = orders.waiting.iter().position(|(it, _)| *it == token);
            if let Some(at) = found {
                let (_, name) = orders.waiting.remove(at);
                orders.failed.push(format!("storage \"{name}\": {why}"));
            }
        }
        self.answer_orders();
    }

    /// A pack was ordered, as far as the log is applied here.
    pub(super) fn on_pack_ordered(&mut self, storage: &str, order: PackOrder, server: &mut Server) {
        server.on_pack_ordered(storage, order.at, order.until, order.is_done);
        if order.is_done {
            return;
        }
        for orders in &mut self.orders {
            let found = orders.waiting.iter().position(|(_, it)| it == storage);
            if let Some(at) = found {
                orders.done.push(orders.waiting.remove(at).1);
            }
        }
        self.answer_orders();
    }

    fn answer_orders(&mut self) {
        let (ended, waiting) = std::mem::take(&mut self.orders)
            .into_iter()
            .partition(|orders: &Orders| orders.waiting.is_empty());
        self.orders = waiting;
        let ended: Vec<Orders> = ended;
        for orders in ended {
            let answer = match orders.failed.is_empty() {
                true => {
                    let storages = match orders.done.len() {
                        1 => "storage",
                        _ => "storages",
                    };
                    Answer::done(&format!(
                        "{storages} {}: to be packed",
                        orders.done.join(", ")
                    ))
                }
                false => Answer::refused(&Refused {
                    error: orders.failed.join("; "),
                    reason: orders.reason,
                    primary: None,
                }),
            };
            self.answered.push_back((orders.id, answer));
        }
    }

    /// A pack has ended at this node.
    pub(super) fn on_packed(&mut self, end: PackEnd, server: &mut Server) {
        let result = end.result.as_ref().map(drop);
        server.on_pack_ended(&end.storage, end.at, result);
        self.packed.insert(end.storage.clone(), end);
    }

    /// The last pack of each storage that was ordered.
    pub(super) fn pack_statuses(&self) -> Vec<PackStatus> {
        let node = self.node();
        let busy = node.packs_due().find(|(_, is_at_it)| *is_at_it);
        let busy = busy.map(|(storage, _)| storage);
        let orders = node.pack_orders().iter();
        let statuses = orders.map(|(storage, order)| {
            let ended = self.packed.get(storage).filter(|end| end.at == order.at);
            let lens = ended.and_then(|end| *end.result.as_ref().ok()?);
            let error = ended.and_then(|end| end.result.as_ref().err());
            PackStatus {
                storage: storage.clone(),
                entry: order.at.0,
                state: match order.is_done {
                    true if error.is_some() => PackState::Failed,
                    true => PackState::Done,
                    false if busy == Some(storage) => PackState::Packing,
                    false => PackState::Waiting,
                },
                bytes_before: lens.map(|(before, _)| before),
                bytes: lens.map(|(_, bytes)| bytes),
                error: error.map(ToString::to_string),
            }
        });
        statuses.collect()
    }

    /// How it is with packs here, in words.
    pub(super) fn describe_packs(&self) -> Option<String> {
        let due = self.node().packs_due();
        let due = due.map(|(storage, is_at_it)| match is_at_it {
            true => storage.clone(),
            false => format!("{storage} (waits for its turn)"),
        });
        let due: Vec<String> = due.collect();
        (!due.is_empty()).then(|| due.join(", "))
    }
}

/// The time of a pack: so many days ago, or, if that is said, so many seconds since 1970.
pub(super) fn pack_time(days: f64, time: Option<f64>, now: Now) -> Option<Tid> {
    let days_ago = || now.wall.as_secs_f64() - days * DAY;
    Tid::from_unix_seconds(time.unwrap_or_else(days_ago))
}
