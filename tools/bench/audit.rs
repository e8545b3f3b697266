//! What is looked at when a run is over and time does not count any more.

use standby::ids::{Oid, Tid};

use crate::bench::{Bench, as_tid};
use crate::failure::Failure;

/// Objects of which the past is looked at.
const OBJECTS_MAX: usize = 100;

/// Has all been told to all? And does the past of objects fit what is known of them?
pub(crate) fn audit(bench: &mut Bench) -> Result<(), Failure> {
    compare_links(bench)?;
    check_past(bench)
}

fn compare_links(bench: &mut Bench) -> Result<(), Failure> {
    for link in 0..bench.fleet.len() {
        let floor = bench.ledger.latest();
        let tid = bench.ask(link, "lastTransaction", Vec::new())?;
        let tid = as_tid(&tid).ok_or_else(|| Failure::answer("lastTransaction"))?;
        bench.ledger.on_last_transaction(link, tid, floor)?;
    }
    bench.ledger.compare_links()
}

/// The revision before a known one must end with that, and the current one must still be it, if it
/// is the last that we were told of.
fn check_past(bench: &mut Bench) -> Result<(), Failure> {
    let count = bench.ledger.object_count();
    let known = |number: &usize| bench.ledger.serial(*number) != Tid::ZERO;
    let numbers: Vec<usize> = (0..count).filter(known).collect();
    let step = numbers.len().div_ceil(OBJECTS_MAX).max(1);
    let numbers: Vec<usize> = numbers.into_iter().step_by(step).collect();
    let of = |number: &usize| (bench.ledger.oid(*number), bench.ledger.serial(*number));
    let past: Vec<(Oid, Tid)> = numbers.iter().map(of).collect();
    let found = bench.load_all(0, &past)?;
    for ((number, (oid, serial)), loaded) in numbers.iter().zip(&past).zip(found) {
        let Some(loaded) = loaded else { continue };
        bench.ledger.on_loaded(*number, &loaded, Tid::ZERO)?;
        if loaded.end != Some(*serial) {
            return Err(Failure::Wrong(format!(
                "object {oid} has a revision {serial}, but the one before, {}, has the end {:?}",
                loaded.serial, loaded.end
            )));
        }
    }
    let current: Vec<(Oid, Tid)> = past.iter().map(|(oid, _)| (*oid, Tid::MAX)).collect();
    let found = bench.load_all(0, &current)?;
    for ((number, (oid, serial)), loaded) in numbers.iter().zip(&past).zip(found) {
        let missing = || Failure::Wrong(format!("object {oid} is missing"));
        let loaded = loaded.ok_or_else(missing)?;
        bench.ledger.on_loaded(*number, &loaded, *serial)?;
    }
    Ok(())
}
