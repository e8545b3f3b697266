//! What every workload stands on: the connections, what they must agree on, and what is counted.

use std::time::{Duration, Instant};

use standby::ids::{Oid, Tid};
use standby::zeo::Value;
use standby::zeo::client::{Raised, Received, load_msgid};
use standby::zeo::load_form::Loaded;

use crate::failure::Failure;
use crate::fleet::{Address, Fleet, now};
use crate::ledger::Ledger;
use crate::meter::Meter;

/// One run against one server.
#[derive(Debug)]
pub(crate) struct Bench {
    pub fleet: Fleet,
    pub ledger: Ledger,
    pub meter: Meter,
    storage: String,
    /// Links with something to read.
    ready: Vec<usize>,
    next_check: Instant,
}

/// What comes on a connection, as workloads see it.
#[derive(Debug)]
pub(crate) enum Event {
    /// The server has greeted; `register` is on its way.
    Greeted,
    /// Calls may be made.
    Registered,
    /// A revision
    Loaded(Loaded),
    /// There is none: the answer was `None`, or an exception.
    Missing {
        /// What was asked for
        oid: Oid,
        /// The exception
        raised: Option<Raised>,
    },
    /// The answer to a call.
    Answer {
        /// That of the call
        msgid: i64,
        /// What it returned
        result: Result<Value, Raised>,
    },
    /// Somebody else has committed. The ledger knows.
    Invalidated {
        /// The transaction
        tid: Tid,
        /// What it has changed
        oids: Vec<Oid>,
    },
}

/// Something that makes calls and waits for what comes.
pub(crate) trait Workload {
    /// Something came on a connection.
    fn on_event(
        &mut self,
        bench: &mut Bench,
        link: usize,
        event: Event,
        now: Instant,
    ) -> Result<(), Failure>;

    /// Nothing more is to be waited for.
    fn is_done(&self) -> bool;

    /// Is anything overdue that is no answer to a call? Asked a few times a second.
    fn check(&self, _now: Instant) -> Result<(), Failure> {
        Ok(())
    }
}

/// How long something is to run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// Until it is done by itself.
    Done,
    /// Until then, at most.
    Time(Instant),
    /// Until as many have been completed since the meter was started, at most.
    Operations(u64),
}

impl Until {
    /// Whether that is enough.
    pub(crate) fn has_come(self, bench: &Bench, now: Instant) -> bool {
        match self {
            Self::Done => false,
            Self::Time(time) => now >= time,
            Self::Operations(count) => bench.meter.operations() >= count,
        }
    }
}

/// How often overdue answers are looked for, at least.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

impl Bench {
    /// Not connected yet.
    pub(crate) fn new(
        address: Address,
        storage: &str,
        patience: Duration,
    ) -> Result<Self, Failure> {
        Ok(Self {
            fleet: Fleet::new(address, patience)?,
            ledger: Ledger::default(),
            meter: Meter::default(),
            storage: storage.to_owned(),
            ready: Vec::new(),
            next_check: now(),
        })
    }

    /// Connects and registers as many connections.
    pub(crate) fn open(&mut self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            self.connect()?;
        }
        self.drive(&mut Opening { left: count }, Until::Done)?;
        self.ledger.watch();
        Ok(())
    }

    /// Begins one connection.
    pub(crate) fn connect(&mut self) -> Result<usize, Failure> {
        let link = self.fleet.connect(now())?;
        self.ledger.open(self.fleet.len());
        Ok(link)
    }

    /// Runs until the workload is done, or it is enough.
    pub(crate) fn drive(
        &mut self,
        workload: &mut dyn Workload,
        until: Until,
    ) -> Result<(), Failure> {
        self.fleet.flush(now())?;
        while !workload.is_done() && !until.has_come(self, now()) {
            self.turn(workload, until)?;
        }
        Ok(())
    }

    /// Waits once, and serves what came.
    fn turn(&mut self, workload: &mut dyn Workload, until: Until) -> Result<(), Failure> {
        let wake = match until {
            Until::Time(time) => time.min(self.next_check),
            Until::Done | Until::Operations(_) => self.next_check,
        };
        let mut ready = std::mem::take(&mut self.ready);
        self.fleet.wait(wake, &mut ready)?;
        for link in ready.drain(..) {
            self.serve(link, workload)?;
        }
        self.ready = ready;
        let now = now();
        self.fleet.flush(now)?;
        if now >= self.next_check {
            self.next_check = now + CHECK_INTERVAL;
            self.fleet.check_patience(now)?;
            workload.check(now)?;
            self.meter.tick(now);
        }
        Ok(())
    }

    /// Reads a link empty.
    fn serve(&mut self, link: usize, workload: &mut dyn Workload) -> Result<(), Failure> {
        loop {
            // One look at the clock serves all that comes in one read.
            let now = now();
            let is_more = self.fleet.read(link, now)?;
            while let Some(received) = self.fleet.next(link)? {
                if let Some(event) = self.understand(link, received, now)? {
                    workload.on_event(self, link, event, now)?;
                }
            }
            self.fleet.flush(now)?;
            if !is_more {
                return Ok(());
            }
        }
    }

    fn understand(
        &mut self,
        link: usize,
        received: Received,
        now: Instant,
    ) -> Result<Option<Event>, Failure> {
        match received {
            Received::Loaded(loaded) => Ok(Some(Event::Loaded(loaded))),
            Received::Reply { msgid, result } => self.on_reply(link, &msgid, result).map(Some),
            Received::Greeting(_) => {
                let storage = Value::from(self.storage.clone());
                let args = vec![storage, Value::Bool(false)];
                self.ledger.on_registering(link);
                self.fleet.call(link, "register", args, now)?;
                Ok(Some(Event::Greeted))
            }
            Received::Notice { name, args } if name[..] == *b"invalidateTransaction" => {
                let answer = || Failure::answer("(the arguments of invalidateTransaction)");
                let (tid, oids) = invalidation(&args).ok_or_else(answer)?;
                self.ledger.on_invalidated(link, tid, &oids)?;
                Ok(Some(Event::Invalidated { tid, oids }))
            }
            Received::Notice { .. } => Ok(None),
        }
    }

    fn on_reply(
        &mut self,
        link: usize,
        msgid: &Value,
        result: Result<Value, Raised>,
    ) -> Result<Event, Failure> {
        if let Some((oid, _)) = load_msgid(msgid) {
            return match result {
                Ok(Value::None) => Ok(Event::Missing { oid, raised: None }),
                Ok(_) => Err(Failure::answer("loadBefore")),
                Err(raised) => Ok(Event::Missing {
                    oid,
                    raised: Some(raised),
                }),
            };
        }
        match *msgid {
            Value::Int(REGISTER) => {
                let tid = result.map_err(|raised| Failure::raised("register", &raised))?;
                let tid = as_tid(&tid).ok_or_else(|| Failure::answer("register"))?;
                self.ledger.on_registered(link, tid)?;
                Ok(Event::Registered)
            }
            Value::Int(msgid) => Ok(Event::Answer { msgid, result }),
            _ => Err(Failure::Wrong(format!(
                "connection {link} got a reply to {msgid:?}, which is no call of ours"
            ))),
        }
    }

    /// Makes a call and waits for the answer.
    pub(crate) fn ask(
        &mut self,
        link: usize,
        name: &'static str,
        args: Vec<Value>,
    ) -> Result<Value, Failure> {
        let msgid = self.fleet.call(link, name, args, now())?;
        let mut asking = Asking {
            link,
            msgid,
            result: None,
        };
        self.drive(&mut asking, Until::Done)?;
        match asking.result {
            Some(Ok(value)) => Ok(value),
            Some(Err(raised)) => Err(Failure::raised(name, &raised)),
            None => Err(Failure::answer(name)),
        }
    }

    /// Loads one revision after the other; `None` for those that are not there.
    pub(crate) fn load_all(
        &mut self,
        link: usize,
        wanted: &[(Oid, Tid)],
    ) -> Result<Vec<Option<Loaded>>, Failure> {
        let mut found = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(LOADS_AT_ONCE) {
            for (oid, before) in some {
                self.fleet.load(link, *oid, *before, now())?;
            }
            let mut loading = Loading {
                link,
                wanted: some,
                found: vec![None; some.len()],
                left: some.len(),
            };
            self.drive(&mut loading, Until::Done)?;
            found.extend(loading.found);
        }
        Ok(found)
    }

    /// Loads a current revision, if there is one.
    pub(crate) fn load(&mut self, link: usize, oid: Oid) -> Result<Option<Loaded>, Failure> {
        let found = self.load_all(link, &[(oid, Tid::MAX)])?;
        Ok(found.into_iter().next().flatten())
    }
}

/// The msgid of the first call.
const REGISTER: i64 = 1;

/// Loads on their way while something is set up.
const LOADS_AT_ONCE: usize = 64;

/// Waits until all are registered.
struct Opening {
    left: usize,
}

impl Workload for Opening {
    fn on_event(
        &mut self,
        _bench: &mut Bench,
        _link: usize,
        event: Event,
        _now: Instant,
    ) -> Result<(), Failure> {
        self.left -= usize::from(matches!(event, Event::Registered));
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }
}

/// Waits for one answer.
struct Asking {
    link: usize,
    msgid: i64,
    result: Option<Result<Value, Raised>>,
}

impl Workload for Asking {
    fn on_event(
        &mut self,
        _bench: &mut Bench,
        link: usize,
        event: Event,
        _now: Instant,
    ) -> Result<(), Failure> {
        if let Event::Answer { msgid, result } = event
            && (link, msgid) == (self.link, self.msgid)
        {
            self.result = Some(result);
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.result.is_some()
    }
}

/// Waits for the answers to loads.
struct Loading<'a> {
    link: usize,
    wanted: &'a [(Oid, Tid)],
    found: Vec<Option<Loaded>>,
    left: usize,
}

impl Workload for Loading<'_> {
    fn on_event(
        &mut self,
        _bench: &mut Bench,
        link: usize,
        event: Event,
        _now: Instant,
    ) -> Result<(), Failure> {
        if link != self.link {
            return Ok(());
        }
        match event {
            Event::Loaded(loaded) => {
                let key = (loaded.oid, loaded.before);
                let places = self.wanted.iter().zip(&mut self.found);
                for (_, place) in places.filter(|(wanted, _)| **wanted == key) {
                    *place = Some(loaded.clone());
                }
                self.left -= 1;
            }
            Event::Missing { raised, .. } => {
                if let Some(raised) = raised.filter(|raised| raised.short_class() != "POSKeyError")
                {
                    return Err(Failure::raised("loadBefore", &raised));
                }
                self.left -= 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }
}

/// A tid in an answer.
pub(crate) fn as_tid(value: &Value) -> Option<Tid> {
    Tid::from_slice(value.string()?)
}

/// The items of a list in an answer; msgpack knows but one kind of sequence.
pub(crate) fn as_items(value: &Value) -> Option<&[Value]> {
    match value {
        Value::List(items) | Value::Tuple(items) => Some(items),
        _ => None,
    }
}

/// Oids in an answer.
pub(crate) fn as_oids(value: &Value) -> Option<Vec<Oid>> {
    let oid = |value: &Value| Oid::from_slice(value.string()?);
    as_items(value)?.iter().map(oid).collect()
}

fn invalidation(args: &[Value]) -> Option<(Tid, Vec<Oid>)> {
    let [tid, oids] = args else { return None };
    Some((as_tid(tid)?, as_oids(oids)?))
}
