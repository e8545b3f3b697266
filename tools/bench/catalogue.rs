//! What `prepare` makes and all others find: objects, in nodes, in the catalogue, in the root.

use bytes::Bytes;

use standby::ids::{Oid, Tid};
use standby::limits::OIDS_PER_CALL_MAX;
use standby::zeo::Value;

use crate::bench::{Bench, as_oids};
use crate::failure::Failure;
use crate::record::{self, Stamp};
use crate::txn::{Store, commit};

/// The root of every database.
const ROOT: Oid = Oid::ZERO;

/// Objects in one node: a record of some tens of kilobytes.
const NODE_OBJECTS_MAX: usize = 1000;

/// Bytes of objects in one transaction while preparing, from which on no more are added.
const BATCH_LEN: usize = 4 << 20;

/// What `prepare` is to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan<'a> {
    /// Objects
    pub count: usize,
    /// Bytes of each, in turn.
    pub sizes: &'a [usize],
    /// Objects in one transaction, unless they are long.
    pub batch: usize,
}

/// Makes objects, and a catalogue of them in place of any before. `tell` hears how many there are
/// from time to time.
pub(crate) fn prepare(
    bench: &mut Bench,
    plan: Plan<'_>,
    mut tell: impl FnMut(usize),
) -> Result<(), Failure> {
    let link = 0;
    let old_root = bench.load(link, ROOT)?;
    let mut all = Vec::with_capacity(plan.count);
    while all.len() < plan.count {
        let (oids, stores) = batch(bench, all.len(), plan)?;
        commit(bench, link, stores)?;
        all.extend(oids);
        tell(all.len());
    }
    let nodes: Vec<&[Oid]> = all.chunks(NODE_OBJECTS_MAX).collect();
    // The objects are there: now what makes them reachable, all in one transaction.
    let oids = new_oids(bench, nodes.len() + 1)?;
    let (catalogue, node_oids) = oids
        .split_last()
        .ok_or_else(|| Failure::answer("new_oids"))?;
    let (root, root_serial) = match &old_root {
        None => (record::root(*catalogue), Tid::ZERO),
        Some(loaded) => {
            let changed = record::with_catalogue(&loaded.data, *catalogue);
            let changed = changed.ok_or_else(|| {
                Failure::Usage(
                    "the root object is no PersistentMapping as ZODB makes it".to_owned(),
                )
            })?;
            (changed, loaded.serial)
        }
    };
    let mut stores: Vec<Store> = nodes
        .iter()
        .zip(node_oids)
        .map(|(oids, node)| new_object(*node, record::node(oids)))
        .collect();
    stores.push(new_object(*catalogue, record::node(node_oids)));
    stores.push(Store {
        oid: ROOT,
        serial: root_serial,
        counter: 0,
        data: root,
    });
    commit(bench, link, stores)?;
    Ok(())
}

/// The next objects: their oids and what to store of them.
fn batch(
    bench: &mut Bench,
    done: usize,
    plan: Plan<'_>,
) -> Result<(Vec<Oid>, Vec<Store>), Failure> {
    let size = |number: usize| plan.sizes[number % plan.sizes.len()];
    let (mut len, mut number) = (0, done);
    let end = plan.count.min(done + plan.batch);
    while number < end && len < BATCH_LEN {
        len += size(number);
        number += 1;
    }
    let oids = new_oids(bench, number - done)?;
    let store = |(n, oid): (usize, &Oid)| {
        let stamp = Stamp {
            oid: *oid,
            counter: 1,
        };
        new_object(*oid, record::object(stamp, size(done + n)))
    };
    let stores = oids.iter().enumerate().map(store).collect();
    Ok((oids, stores))
}

fn new_object(oid: Oid, data: Bytes) -> Store {
    Store {
        oid,
        serial: Tid::ZERO,
        counter: 1,
        data,
    }
}

/// As many new oids.
pub(crate) fn new_oids(bench: &mut Bench, count: usize) -> Result<Vec<Oid>, Failure> {
    let mut oids: Vec<Oid> = Vec::with_capacity(count);
    while oids.len() < count {
        let wanted = OIDS_PER_CALL_MAX.min((count - oids.len()) as u64);
        let answer = bench.ask(0, "new_oids", vec![Value::from(wanted)])?;
        let new = as_oids(&answer).filter(|new| !new.is_empty());
        let new = new.ok_or_else(|| Failure::answer("new_oids"))?;
        for oid in new {
            if oids.last().is_some_and(|last| oid <= *last) || oid == ROOT {
                return Err(Failure::Wrong(format!("new_oids answered {oid} again")));
            }
            oids.push(oid);
        }
    }
    oids.truncate(count);
    Ok(oids)
}

/// The objects of a prepared database.
pub(crate) fn find(bench: &mut Bench) -> Result<Vec<Oid>, Failure> {
    let link = 0;
    let missing = || {
        Failure::Usage("the database is not prepared: use `zeobench prepare ADDRESS`".to_owned())
    };
    let root = bench.load(link, ROOT)?.ok_or_else(missing)?;
    let catalogue = record::catalogue_of(&root.data).ok_or_else(missing)?;
    let catalogue = bench.load(link, catalogue)?.ok_or_else(missing)?;
    let nodes = record::read_node(&catalogue.data).ok_or_else(missing)?;
    let wanted: Vec<(Oid, Tid)> = nodes.iter().map(|node| (*node, Tid::MAX)).collect();
    let mut oids = Vec::new();
    for (node, loaded) in nodes.iter().zip(bench.load_all(link, &wanted)?) {
        let some = loaded.and_then(|loaded| record::read_node(&loaded.data));
        let some = some.ok_or_else(|| {
            Failure::Wrong(format!("object {node} is missing, or not what was stored"))
        })?;
        oids.extend(some);
    }
    if oids.is_empty() {
        return Err(missing());
    }
    Ok(oids)
}
