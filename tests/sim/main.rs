//! The whole cluster in one thread, from a seed: real replicas and journals on disks that lose
//! power, under a daemon that is worse than any, and what must hold whatever happens.
//!
//! `SIM_SEED=n` runs one seed, `SIM_SEEDS=n`, `a..b` or `endless` many; `SIM_TRACE=FILE` with one
//! seed writes what `zeodump` reads, `SIM_LOG=1` prints all of it.

mod checker;
#[allow(dead_code, reason = "it has tests of its own")]
mod clients;
mod daemon;
#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/disk.rs"]
mod disk;
mod disks;
mod faults;
mod forced;
mod marks;
#[cfg(mutants)]
mod mutants;
mod node;
mod plan;
mod process;
#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/random.rs"]
mod random;
#[cfg(not(mutants))]
mod real;
mod run;
mod stock;
mod store;
mod sweep;
#[allow(dead_code, unreachable_pub, reason = "not all of it is needed")]
mod trace;
mod users;
mod world;

// With mutants the core is compiled here, so that its rules can be broken.
#[cfg(mutants)]
#[path = "../../src/replica/mod.rs"]
mod replica;
#[cfg(mutants)]
#[allow(unused_imports, reason = "the core names them")]
use standby::{cursor, limits, out_queue, pickle, value};
use standby::{entry, group, ids};
#[cfg(not(mutants))]
use standby::replica;

use std::sync::OnceLock;
use std::time::Instant;

/// When runs begin, by the steady clock. Only differences are of importance.
fn base() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "there is no other way to make one")]
    *BASE.get_or_init(Instant::now)
}

#[test]
fn sweep_of_seeds() {
    let (sum, failed) = sweep::sweep(sweep::seeds());
    sum.print();
    let texts: Vec<String> = failed.iter().map(sweep::explain).collect();
    assert!(texts.is_empty(), "{}", texts.concat());
}
