//! What the stub serves: revisions in memory, one transaction at a time. And its faults.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use standby::ids::{Oid, Tid};
use standby::limits::OIDS_PER_CALL_MAX;
use standby::zeo::load_form::Loaded;
use standby::zeo::{Conflict, RemoteError, Request, Value};

/// A way to be wrong. Each happens now and then, not always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Loads show the revision before the current one.
    Stale,
    /// Loads show the state of another object.
    Other,
    /// Loads show a damaged state.
    Damaged,
    /// Revisions that were replaced have a wrong end.
    End,
    /// A transaction gets the tid of the one before.
    Tid,
    /// A connection is not told of a transaction.
    Untold,
    /// A connection is told of a transaction without some of its objects.
    Partly,
    /// A connection is told of a transaction after that has been overtaken by the next.
    Order,
    /// A conflict is not noticed.
    Update,
    /// Calls are not answered any more.
    Hang,
}

impl Fault {
    /// All, with the names by which `--fault` knows them.
    pub(crate) const ALL: [(&str, Self); 10] = [
        ("stale", Self::Stale),
        ("other", Self::Other),
        ("damaged", Self::Damaged),
        ("end", Self::End),
        ("tid", Self::Tid),
        ("untold", Self::Untold),
        ("partly", Self::Partly),
        ("order", Self::Order),
        ("update", Self::Update),
        ("hang", Self::Hang),
    ];
}

/// How many things of a kind are right between two that are wrong.
const FAULT_INTERVAL: u64 = 50;

/// Something to be sent.
#[derive(Debug)]
pub(crate) enum Delivery {
    Reply {
        to: usize,
        msgid: Value,
        result: Value,
    },
    Raise {
        to: usize,
        msgid: Value,
        error: RemoteError,
    },
    Notice {
        to: usize,
        name: &'static str,
        args: Vec<Value>,
    },
}

/// Objects and transactions.
#[derive(Debug)]
pub(crate) struct Table {
    fault: Option<Fault>,
    /// Things that the fault could have befallen.
    chances: u64,
    /// By oid: oids are handed out in sequence. Newest last, at most [`REVISIONS_KEPT`].
    objects: Vec<Vec<Revision>>,
    next_oid: u64,
    last_tid: Tid,
    txns: BTreeMap<usize, Txn>,
    /// Who has voted.
    holder: Option<usize>,
    /// Who wants to vote, with the msgid.
    waiting: VecDeque<(usize, Value)>,
    /// What was kept back, to be told too late.
    held_back: Option<(usize, Vec<Value>)>,
}

#[derive(Clone, Debug)]
struct Revision {
    serial: Tid,
    data: Bytes,
}

#[derive(Debug, Default)]
struct Txn {
    stores: Vec<(Oid, Option<Tid>, Bytes)>,
}

/// As many as the audit asks for, and one more.
const REVISIONS_KEPT: usize = 3;

/// The highest oid that the table has room for.
const OID_MAX: u64 = 100_000_000;

impl Table {
    /// An empty one.
    pub(crate) const fn new(fault: Option<Fault>) -> Self {
        Self {
            fault,
            chances: 0,
            objects: Vec::new(),
            next_oid: 1,
            last_tid: Tid::ZERO,
            txns: BTreeMap::new(),
            holder: None,
            waiting: VecDeque::new(),
            held_back: None,
        }
    }

    /// Whether to be wrong in this way now.
    fn is_wrong(&mut self, fault: Fault) -> bool {
        if self.fault != Some(fault) {
            return false;
        }
        self.chances += 1;
        self.chances.is_multiple_of(FAULT_INTERVAL)
    }

    /// The revision before a tid.
    pub(crate) fn load(&mut self, oid: Oid, before: Tid) -> Option<Loaded> {
        if self.fault == Some(Fault::Hang) && self.has_hung() {
            return None;
        }
        let revisions = self.objects.get(usize::try_from(oid.0).ok()?)?;
        let mut place = revisions.iter().rposition(|one| one.serial < before)?;
        let mut end = revisions.get(place + 1).map(|next| next.serial);
        let count = revisions.len();
        if place > 0 && end.is_none() && self.is_wrong(Fault::Stale) {
            place -= 1;
            end = None;
        }
        if end.is_some() && place + 1 < count && self.is_wrong_always(Fault::End) {
            end = end.map(Tid::next);
        }
        let Revision { serial, mut data } = self.objects[oid.0 as usize][place].clone();
        // The first objects are the root and the like, which must be right for anything to begin.
        if self.objects.len() > 100 && data.len() < 10_000 {
            if self.is_wrong(Fault::Other)
                && let Some(other) = self.objects.get(oid.0 as usize + 1).and_then(|o| o.last())
            {
                data = other.data.clone();
            } else if self.is_wrong(Fault::Damaged) {
                let mut damaged = data.to_vec();
                let middle = damaged.len() / 2;
                damaged[middle] ^= 1;
                data = damaged.into();
            }
        }
        Some(Loaded {
            oid,
            before,
            data,
            serial,
            end,
        })
    }

    fn is_wrong_always(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn has_hung(&mut self) -> bool {
        self.chances += 1;
        self.chances > FAULT_INTERVAL * 100
    }

    /// A call of one of the clients; what it leads to.
    pub(crate) fn call(
        &mut self,
        from: usize,
        clients: &[usize],
        msgid: Value,
        request: Request,
    ) -> Vec<Delivery> {
        let reply = |msgid, result| {
            vec![Delivery::Reply {
                to: from,
                msgid,
                result,
            }]
        };
        let raise = |msgid, error| {
            vec![Delivery::Raise {
                to: from,
                msgid,
                error,
            }]
        };
        match request {
            Request::Register { .. } | Request::LastTransaction => {
                reply(msgid, self.last_tid.into())
            }
            // What the fast way had no answer for.
            Request::LoadBefore { oid, .. } => {
                if self.fault == Some(Fault::Hang) && self.has_hung() {
                    return Vec::new();
                }
                let is_there = self
                    .objects
                    .get(oid.0 as usize)
                    .is_some_and(|o| !o.is_empty());
                if is_there {
                    reply(msgid, Value::None)
                } else {
                    raise(msgid, RemoteError::PosKey(oid))
                }
            }
            Request::NewOids { count } => {
                let count = count
                    .clamp(1, OIDS_PER_CALL_MAX.cast_signed())
                    .cast_unsigned();
                let first = self.next_oid;
                self.next_oid += count;
                let oids = (first..self.next_oid).map(|oid| Oid(oid).into());
                reply(msgid, Value::List(oids.collect()))
            }
            Request::TpcBegin { .. } => {
                self.txns.insert(from, Txn::default());
                Vec::new()
            }
            Request::Storea {
                oid, serial, data, ..
            } => {
                if let Some(txn) = self.txns.get_mut(&from) {
                    txn.stores.push((oid, serial, data));
                }
                Vec::new()
            }
            Request::Vote { .. } => {
                self.waiting.push_back((from, msgid));
                self.grant()
            }
            Request::TpcAbort { .. } => {
                let mut deliveries = reply(msgid, Value::None);
                deliveries.extend(self.on_closed(from));
                deliveries
            }
            Request::TpcFinish { .. } => self.finish(from, clients, msgid),
            Request::GetInfo => reply(msgid, Value::Dict(Vec::new())),
            Request::Ping => reply(msgid, Value::None),
            other => raise(
                msgid,
                RemoteError::Other {
                    class: "builtins.NotImplementedError",
                    message: format!("a stub has no {}", other.name()),
                },
            ),
        }
    }

    /// Gives the lock to the next that wants it.
    fn grant(&mut self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while self.holder.is_none()
            && let Some((to, msgid)) = self.waiting.pop_front()
        {
            match self.conflict(to) {
                Some(conflict) if !self.is_wrong(Fault::Update) => {
                    self.txns.remove(&to);
                    let error = RemoteError::Conflict(conflict);
                    deliveries.push(Delivery::Raise { to, msgid, error });
                }
                _ => {
                    self.holder = Some(to);
                    let result = Value::List(Vec::new());
                    deliveries.push(Delivery::Reply { to, msgid, result });
                }
            }
        }
        deliveries
    }

    fn conflict(&self, from: usize) -> Option<Conflict> {
        let current = |oid: Oid| self.objects.get(oid.0 as usize)?.last();
        self.txns
            .get(&from)?
            .stores
            .iter()
            .find_map(|(oid, serial, _)| {
                let committed = current(*oid)?.serial;
                let read = serial.unwrap_or(Tid::ZERO);
                (committed != read).then_some(Conflict {
                    oid: *oid,
                    committed,
                    read,
                    class_name: None,
                })
            })
    }

    fn finish(&mut self, from: usize, clients: &[usize], msgid: Value) -> Vec<Delivery> {
        let mut tid = Tid(self.last_tid.next().0.max(0x0400_0000_0000_0000));
        if self.is_wrong(Fault::Tid) {
            tid = self.last_tid;
        }
        self.last_tid = tid;
        let stores = self.txns.remove(&from).unwrap_or_default().stores;
        let mut oids = Vec::with_capacity(stores.len());
        for (oid, _, data) in stores {
            if oid.0 > OID_MAX {
                continue;
            }
            let place = oid.0 as usize;
            if place >= self.objects.len() {
                self.objects.resize(place + 1, Vec::new());
            }
            self.next_oid = self.next_oid.max(oid.0 + 1);
            let revisions = &mut self.objects[place];
            if revisions.len() == REVISIONS_KEPT {
                revisions.remove(0);
            }
            revisions.push(Revision { serial: tid, data });
            oids.push(Value::from(oid));
        }
        let mut deliveries = vec![Delivery::Reply {
            to: from,
            msgid,
            result: tid.into(),
        }];
        for to in clients.iter().copied().filter(|to| *to != from) {
            self.tell(to, tid, &oids, &mut deliveries);
        }
        self.holder = None;
        deliveries.extend(self.grant());
        deliveries
    }

    fn tell(&mut self, to: usize, tid: Tid, oids: &[Value], deliveries: &mut Vec<Delivery>) {
        const NAME: &str = "invalidateTransaction";
        let mut args = vec![tid.into(), Value::List(oids.to_vec())];
        if self.is_wrong(Fault::Untold) {
            return;
        }
        if self.is_wrong(Fault::Partly) {
            args[1] = Value::List(oids.iter().skip(1).cloned().collect());
        }
        if self.held_back.is_none() && self.is_wrong(Fault::Order) {
            self.held_back = Some((to, args));
            return;
        }
        let name = NAME;
        deliveries.push(Delivery::Notice { to, name, args });
        if let Some((late, args)) = self.held_back.take_if(|(late, _)| *late == to) {
            deliveries.push(Delivery::Notice {
                to: late,
                name,
                args,
            });
        }
    }

    /// A client is gone, or has aborted: its transaction is, too.
    pub(crate) fn on_closed(&mut self, from: usize) -> Vec<Delivery> {
        self.txns.remove(&from);
        self.waiting.retain(|(waiting, _)| *waiting != from);
        self.holder = self.holder.filter(|holder| *holder != from);
        self.grant()
    }
}
