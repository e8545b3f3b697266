//! What a server has said so far, and what it must therefore not say any more.
//!
//! A server that is fast because it is wrong is of no use to anybody. Everything that comes from
//! the server goes through here, and is compared with what came before, on whatever connection:
//!
//! * A load that is asked after a commit was acknowledged, or after its invalidation came, finds
//!   that revision or a later one. So does one after which the same or another connection asks.
//! * An object is the one that was asked for, is whole, and counts its versions in the order of
//!   their serials; a revision is always the same version.
//! * The revision before tid T has a serial below T, and an end that is not below T.
//! * A transaction gets a tid above all that were known when its finish was asked for.
//! * Each connection is told of the transactions of the others in the order of their tids, with the
//!   reply to its own in its place among them, and of each: at the end all have been told the same.

use std::collections::BTreeMap;

use standby::ids::{Oid, Tid};
use standby::zeo::load_form::Loaded;

use crate::failure::Failure;
use crate::record::{self, RecordError};

/// What is known of a database and of each connection to it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The objects of the catalogue, by number.
    objects: Vec<Known>,
    /// Runs of oids that follow each other: the first, how many, and the number of the first.
    runs: BTreeMap<Oid, (u64, usize)>,
    links: Vec<Told>,
    /// The newest tid that any connection has heard of.
    latest: Tid,
    /// Transactions above this one have to reach all connections.
    watched_from: Tid,
}

/// The newest revision of an object that the server has shown or acknowledged.
#[derive(Clone, Copy, Debug)]
struct Known {
    oid: Oid,
    /// [`Tid::ZERO`] if nothing is known.
    serial: Tid,
    /// The version of that revision, or of one before it.
    counter: u64,
    /// `counter` is that of `serial`.
    is_exact: bool,
}

/// What a connection was told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The newest tid; transactions come above it only.
    seen: Tid,
    /// A sum over all transactions since [`Ledger::watched_from`], its own included.
    sum: u64,
}

impl Ledger {
    /// For so many connections.
    pub(crate) fn open(&mut self, links: usize) {
        self.links.resize(links, Told::default());
    }

    /// The objects that loads will be about.
    pub(crate) fn adopt(&mut self, oids: &[Oid]) {
        for oid in oids {
            let number = self.objects.len();
            self.objects.push(Known {
                oid: *oid,
                serial: Tid::ZERO,
                counter: 0,
                is_exact: false,
            });
            match self.runs.range_mut(..=*oid).next_back() {
                Some((first, (count, first_number)))
                    if first.0 + *count == oid.0
                        && *first_number as u64 + *count == number as u64 =>
                {
                    *count += 1;
                }
                _ => _ = self.runs.insert(*oid, (1, number)),
            }
        }
    }

    /// How many objects there are.
    pub(crate) const fn object_count(&self) -> usize {
        self.objects.len()
    }

    /// The oid of an object.
    pub(crate) fn oid(&self, number: usize) -> Oid {
        self.objects[number].oid
    }

    /// The number of an object, if it is in the catalogue.
    pub(crate) fn number(&self, oid: Oid) -> Option<usize> {
        let (first, (count, number)) = self.runs.range(..=oid).next_back()?;
        let offset = oid.0 - first.0;
        (offset < *count).then(|| number + offset as usize)
    }

    /// The newest serial of an object that a load from now on has to find.
    pub(crate) fn serial(&self, number: usize) -> Tid {
        self.objects[number].serial
    }

    /// The version that belongs to [`Self::serial`], if it was seen.
    pub(crate) fn counter(&self, number: usize) -> Option<u64> {
        let known = self.objects[number];
        known.is_exact.then_some(known.counter)
    }

    /// The newest tid that was heard of.
    pub(crate) const fn latest(&self) -> Tid {
        self.latest
    }

    /// A connection asks to be registered.
    pub(crate) fn on_registering(&mut self, link: usize) {
        self.links[link].seen = self.latest;
    }

    /// A connection is registered: it is told of what comes after `tid`.
    pub(crate) fn on_registered(&mut self, link: usize, tid: Tid) -> Result<(), Failure> {
        let told = &mut self.links[link];
        if tid < told.seen {
            return wrong(format_args!(
                "register answered {tid} although {} was known when it was asked for",
                told.seen
            ));
        }
        told.seen = tid;
        self.latest = self.latest.max(tid);
        Ok(())
    }

    /// All connections are registered: what comes above what is known now has to reach each.
    pub(crate) fn watch(&mut self) {
        self.watched_from = self.latest;
        for told in &mut self.links {
            told.sum = 0;
        }
    }

    /// An answer to a load that was asked when `floor` was the newest serial known; the version.
    pub(crate) fn on_loaded(
        &mut self,
        number: usize,
        loaded: &Loaded,
        floor: Tid,
    ) -> Result<u64, Failure> {
        let Loaded {
            oid,
            before,
            serial,
            end,
            ..
        } = *loaded;
        if serial < floor {
            return wrong(format_args!(
                "stale: object {oid} has serial {serial} although {floor} was known when it was \
                 asked for"
            ));
        }
        if serial >= before || end.is_some_and(|end| end < before || end <= serial) {
            return wrong(format_args!(
                "object {oid} before {before} has serial {serial} and end {end:?}"
            ));
        }
        let counter = read(oid, loaded)?;
        let known = &mut self.objects[number];
        let is_in_order = if serial == known.serial {
            !known.is_exact && counter >= known.counter || counter == known.counter
        } else if serial > known.serial {
            known.serial == Tid::ZERO || counter > known.counter
        } else {
            counter < known.counter || !known.is_exact
        };
        if !is_in_order {
            return wrong(format_args!(
                "object {oid} has version {counter} with serial {serial}, and version {} with \
                 serial {}",
                known.counter, known.serial
            ));
        }
        if serial >= known.serial {
            known.serial = serial;
            known.counter = counter;
            known.is_exact = true;
        }
        Ok(counter)
    }

    /// A transaction of `link`'s own was acknowledged. `floor` was [`Self::latest`] when its finish
    /// was sent, `written` are the objects with their new versions.
    pub(crate) fn on_finished(
        &mut self,
        link: usize,
        tid: Tid,
        floor: Tid,
        written: &[(Oid, u64)],
    ) -> Result<(), Failure> {
        if tid <= floor {
            return wrong(format_args!(
                "a transaction got tid {tid} although {floor} was known when it was finished"
            ));
        }
        self.tell(link, tid, written.iter().map(|(oid, _)| *oid))?;
        for (oid, counter) in written {
            let Some(number) = self.number(*oid) else {
                continue;
            };
            let known = &mut self.objects[number];
            if tid == known.serial && known.is_exact && known.counter != *counter {
                return wrong(format_args!(
                    "object {oid} was shown with version {} for serial {tid}, which wrote \
                     {counter}",
                    known.counter
                ));
            }
            // Another connection may have been told of it before.
            if tid >= known.serial {
                known.serial = tid;
                known.counter = *counter;
                known.is_exact = true;
            }
        }
        Ok(())
    }

    /// A connection was told of somebody else's transaction.
    pub(crate) fn on_invalidated(
        &mut self,
        link: usize,
        tid: Tid,
        oids: &[Oid],
    ) -> Result<(), Failure> {
        self.tell(link, tid, oids.iter().copied())?;
        for oid in oids {
            let Some(number) = self.number(*oid) else {
                continue;
            };
            let known = &mut self.objects[number];
            if tid > known.serial {
                // One version later at least; which one, a load will tell.
                known.counter += u64::from(known.is_exact);
                known.is_exact = false;
                known.serial = tid;
            }
        }
        Ok(())
    }

    fn tell(
        &mut self,
        link: usize,
        tid: Tid,
        oids: impl Iterator<Item = Oid>,
    ) -> Result<(), Failure> {
        let told = &mut self.links[link];
        if tid <= told.seen {
            return wrong(format_args!(
                "connection {link} was told of transaction {tid} after {}",
                told.seen
            ));
        }
        told.seen = tid;
        self.latest = self.latest.max(tid);
        if tid > self.watched_from {
            let mut oids: Vec<Oid> = oids.collect();
            oids.sort_unstable();
            oids.dedup();
            let sum = oids
                .iter()
                .fold(mix(tid.0), |sum, oid| sum.wrapping_add(mix(tid.0 ^ !oid.0)));
            told.sum = told.sum.wrapping_add(sum);
        }
        Ok(())
    }

    /// At the end of a run each connection asks for the last tid, when `floor` was
    /// [`Self::latest`]. What was committed until the answer has to have reached it before that.
    pub(crate) fn on_last_transaction(
        &self,
        link: usize,
        tid: Tid,
        floor: Tid,
    ) -> Result<(), Failure> {
        let seen = self.links[link].seen;
        if tid < floor || tid > seen {
            return wrong(format_args!(
                "lastTransaction answered {tid} to connection {link}, when {floor} was known and \
                 it was told of transactions up to {seen}"
            ));
        }
        Ok(())
    }

    /// After [`Self::on_last_transaction`] for all: those that have been told of the same last
    /// transaction have been told of the same transactions, with the same objects.
    pub(crate) fn compare_links(&self) -> Result<(), Failure> {
        let mut sums: BTreeMap<Tid, (usize, u64)> = BTreeMap::new();
        for (link, told) in self.links.iter().enumerate() {
            let (first, sum) = *sums.entry(told.seen).or_insert((link, told.sum));
            if told.sum != sum {
                return wrong(format_args!(
                    "connections {first} and {link} have been told of different transactions or \
                     objects up to {}: an invalidation was lost",
                    told.seen
                ));
            }
        }
        Ok(())
    }
}

/// The version of a loaded object.
fn read(oid: Oid, loaded: &Loaded) -> Result<u64, Failure> {
    let problem = match record::read_object(&loaded.data) {
        Ok(stamp) if stamp.oid == oid => return Ok(stamp.counter),
        Ok(stamp) => format!("has the state of {}", stamp.oid),
        Err(RecordError::Digest) => "is damaged (its digest is wrong)".to_owned(),
        Err(RecordError::Foreign) => "is none that zeobench has written".to_owned(),
    };
    wrong(format_args!(
        "object {oid}, serial {}, {} bytes: it {problem}",
        loaded.serial,
        loaded.data.len()
    ))
}

fn wrong<T>(what: std::fmt::Arguments<'_>) -> Result<T, Failure> {
    Err(Failure::Wrong(what.to_string()))
}

fn mix(bits: u64) -> u64 {
    let bits = (bits ^ bits >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let bits = (bits ^ bits >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    bits ^ bits >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Stamp, object};

    const FIRST: Oid = Oid(10);

    /// Two connections and objects 10, 11, 20.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.open(2);
        ledger.adopt(&[FIRST, Oid(11), Oid(20)]);
        for link in 0..2 {
            ledger.on_registering(link);
            ledger.on_registered(link, Tid(100)).unwrap();
        }
        ledger.watch();
        ledger
    }

    fn revision(serial: u64, counter: u64) -> Loaded {
        let stamp = Stamp {
            oid: FIRST,
            counter,
        };
        Loaded {
            oid: FIRST,
            before: Tid::MAX,
            data: object(stamp, 200),
            serial: Tid(serial),
            end: None,
        }
    }

    fn is_wrong<T>(result: Result<T, Failure>, text: &str) {
        let Err(Failure::Wrong(message)) = result else {
            panic!("{text:?} was not noticed");
        };
        assert!(message.contains(text), "{message}");
    }

    #[test]
    fn objects_are_found_by_their_oids() {
        let ledger = ledger();
        for (oid, number) in [
            (10, Some(0)),
            (11, Some(1)),
            (20, Some(2)),
            (12, None),
            (9, None),
        ] {
            assert_eq!(ledger.number(Oid(oid)), number);
        }
    }

    #[test]
    fn a_load_after_an_acknowledged_commit_is_at_least_that_new() {
        let mut ledger = ledger();
        let before = ledger.serial(0);
        ledger
            .on_finished(0, Tid(110), Tid(100), &[(FIRST, 5)])
            .unwrap();
        // Asked before, this may be old.
        ledger.on_loaded(0, &revision(90, 4), before).unwrap();
        let floor = ledger.serial(0);
        is_wrong(ledger.on_loaded(0, &revision(90, 4), floor), "stale");
        ledger.on_loaded(0, &revision(110, 5), floor).unwrap();
        ledger.on_loaded(0, &revision(120, 6), floor).unwrap();
    }

    #[test]
    fn a_load_after_an_invalidation_is_at_least_that_new() {
        let mut ledger = ledger();
        ledger.on_loaded(0, &revision(90, 4), Tid::ZERO).unwrap();
        ledger.on_invalidated(1, Tid(110), &[FIRST]).unwrap();
        let floor = ledger.serial(0);
        is_wrong(ledger.on_loaded(0, &revision(90, 4), floor), "stale");
        is_wrong(ledger.on_loaded(0, &revision(110, 4), floor), "version 4");
        ledger.on_loaded(0, &revision(110, 5), floor).unwrap();
    }

    #[test]
    fn what_one_connection_has_seen_all_have_to_see() {
        let mut ledger = ledger();
        ledger.on_loaded(0, &revision(90, 4), Tid::ZERO).unwrap();
        let floor = ledger.serial(0);
        is_wrong(ledger.on_loaded(0, &revision(80, 3), floor), "stale");
    }

    #[test]
    fn versions_are_in_the_order_of_serials() {
        let mut ledger = ledger();
        ledger.on_loaded(0, &revision(90, 4), Tid::ZERO).unwrap();
        is_wrong(
            ledger.on_loaded(0, &revision(90, 5), Tid::ZERO),
            "version 5",
        );
        is_wrong(
            ledger.on_loaded(0, &revision(95, 4), Tid::ZERO),
            "version 4",
        );
        is_wrong(
            ledger.on_loaded(0, &revision(85, 4), Tid::ZERO),
            "version 4",
        );
    }

    #[test]
    fn what_is_loaded_is_what_was_asked_for() {
        let mut ledger = ledger();
        let other = Loaded {
            oid: Oid(11),
            ..revision(90, 4)
        };
        is_wrong(ledger.on_loaded(1, &other, Tid::ZERO), "has the state of");
        let mut data = revision(90, 4).data.to_vec();
        data[150] ^= 1;
        let damaged = Loaded {
            data: data.into(),
            ..revision(90, 4)
        };
        is_wrong(ledger.on_loaded(0, &damaged, Tid::ZERO), "damaged");
    }

    #[test]
    fn serial_and_end_enclose_the_tid_that_was_asked_for() {
        for (serial, end) in [(90, None), (89, Some(89)), (80, Some(80)), (80, Some(85))] {
            let loaded = Loaded {
                before: Tid(90),
                end: end.map(Tid),
                ..revision(serial, 4)
            };
            is_wrong(ledger().on_loaded(0, &loaded, Tid::ZERO), "before");
        }
        let loaded = Loaded {
            before: Tid(90),
            end: Some(Tid(90)),
            ..revision(80, 4)
        };
        ledger().on_loaded(0, &loaded, Tid::ZERO).unwrap();
    }

    #[test]
    fn tids_increase() {
        let mut ledger = ledger();
        is_wrong(ledger.on_finished(0, Tid(100), Tid(100), &[]), "got tid");
        ledger.on_finished(0, Tid(110), Tid(100), &[]).unwrap();
        is_wrong(
            ledger.on_finished(1, Tid(110), ledger.latest(), &[]),
            "got tid",
        );
        ledger.on_registering(1);
        is_wrong(ledger.on_registered(1, Tid(109)), "register");
    }

    #[test]
    fn each_connection_is_told_in_order_its_own_transactions_among_them() {
        let mut ledger = ledger();
        ledger.on_invalidated(1, Tid(110), &[FIRST]).unwrap();
        is_wrong(ledger.on_invalidated(1, Tid(110), &[FIRST]), "after");
        ledger.on_finished(1, Tid(120), Tid(110), &[]).unwrap();
        is_wrong(ledger.on_invalidated(1, Tid(115), &[FIRST]), "after");
    }

    #[test]
    fn others_may_be_told_of_a_transaction_before_it_is_acknowledged() {
        let mut ledger = ledger();
        ledger.on_invalidated(1, Tid(110), &[FIRST]).unwrap();
        assert_eq!(ledger.counter(0), None);
        ledger
            .on_finished(0, Tid(110), Tid(100), &[(FIRST, 5)])
            .unwrap();
        assert_eq!((ledger.serial(0), ledger.counter(0)), (Tid(110), Some(5)));
    }

    #[test]
    fn others_may_write_while_connections_are_made() {
        let mut ledger = Ledger::default();
        ledger.open(2);
        ledger.on_registering(0);
        ledger.on_registering(1);
        ledger.on_registered(0, Tid(100)).unwrap();
        ledger.on_invalidated(0, Tid(110), &[FIRST]).unwrap();
        // This answer was on its way.
        ledger.on_registered(1, Tid(100)).unwrap();
        ledger.watch();
        ledger.on_invalidated(1, Tid(110), &[FIRST]).unwrap();
        for link in 0..2 {
            ledger.on_invalidated(link, Tid(120), &[FIRST]).unwrap();
        }
        ledger.compare_links().unwrap();
    }

    #[test]
    fn a_lost_invalidation_is_noticed_at_the_end() {
        let tell = |ledger: &mut Ledger, oids: &[Oid]| {
            ledger
                .on_finished(0, Tid(110), Tid(100), &[(FIRST, 1), (Oid(11), 1)])
                .unwrap();
            ledger
                .on_finished(0, Tid(120), Tid(110), &[(FIRST, 2)])
                .unwrap();
            if !oids.is_empty() {
                ledger.on_invalidated(1, Tid(110), oids).unwrap();
            }
            ledger.on_invalidated(1, Tid(120), &[FIRST]).unwrap();
            ledger.compare_links()
        };
        tell(&mut ledger(), &[Oid(11), FIRST]).unwrap();
        is_wrong(tell(&mut ledger(), &[]), "lost");
        is_wrong(tell(&mut ledger(), &[FIRST]), "lost");
        let mut late = ledger();
        late.on_finished(0, Tid(110), Tid(100), &[]).unwrap();
        is_wrong(late.on_last_transaction(1, Tid(110), Tid(110)), "up to");
        is_wrong(late.on_last_transaction(0, Tid(100), Tid(110)), "was known");
        late.on_last_transaction(0, Tid(110), Tid(110)).unwrap();
    }
}
