//! The power goes at every write and at every sync, and every one of them fails; then the data file
//! is opened again. What clients were told of must be there, and nothing that is not whole.
//!
//! A workload is run once on a disk that records its steps (`disk`). For each step the disk is put
//! into the states that a power cut may leave there: the extreme ones, and random ones. Each is
//! opened, held against what was promised (`ledger`), written to and opened again; for some the
//! power goes once more at each step of that.
//!
//! `CRASH_SEED` and `CRASH_STEP` repeat a failure, `CRASH_SEEDS` runs more seeds than usual. One
//! state of each kind is left in `target/tmp/crashed` for `tests/python/crashed_images.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;
mod driver;
mod images;
mod ledger;
mod random;
mod sweep;

use std::io;
use std::path::Path;
use std::{env, fs};

use disk::{Failure, Lie, Model, Op, Pick, SimDisk};
use driver::{Driver, Seen, Stop};
use images::Kinds;
use ledger::Ledger;
use random::Random;
use standby::ids::Oid;
use sweep::{Setting, Sweep, record};

/// Everything that changes the disk, in every order that matters.
fn workload(driver: &mut Driver) -> Result<(), Stop> {
    let root = Oid(0);
    driver.open()?;
    driver.commit(&[(root, 20)])?;
    driver.finish_together(1)?;
    driver.settle()?;
    driver.commit(&[(root, 5000), (Oid(1), 40)])?;
    driver.commit(&[])?;
    let with_blobs: Vec<_> = driver.allocate(3)?.map(Oid).collect();
    driver.commit_blobs(&[(root, 30)], &[(with_blobs[0], 700), (with_blobs[1], 0)])?;
    driver.wait()?;
    driver.settle()?;
    driver.finish_together(3)?;
    driver.settle()?;
    // The disk is always a batch behind: the seals of one go with the bytes of the next.
    for _ in 0..4 {
        let count = 1 + driver.random.below(3);
        driver.finish_together(count)?;
        driver.run_job()?;
    }
    driver.wait()?;
    driver.roll_back()?;
    driver.overtake()?;
    // What the first one created has been changed since.
    driver.undo_at(0)?;
    driver.finish_together(2)?;
    driver.settle()?;
    // Blobs of two transactions in one batch, in one directory and in another.
    let one = driver.begin_with_blobs(&[], &[(with_blobs[0], 900), (with_blobs[2], 20)])?;
    let far = Oid(0x1234);
    let other = driver.begin_with_blobs(&[(root, 90)], &[(far, 1500)])?;
    driver.finish(one)?;
    driver.finish(other)?;
    driver.turn()?;
    driver.settle()?;
    driver.commit_blobs(&[], &[(with_blobs[0], 400)])?;
    driver.undo_at(driver.ledger.entries.len() - 1)?;
    driver.settle()?;
    // One that is never finished.
    driver.begin_with_blobs(&[], &[(with_blobs[0], 300)])?;
    driver.settle()?;
    go_back(driver, 4)?;
    driver.close()?;

    driver.open()?;
    driver.set_clock_back();
    for _ in 0..25 {
        driver.allocate(100)?;
    }
    // Nearly all zeros, some of them.
    for len in [1100, 1300, 1500, 2500] {
        let new = Oid(driver.allocate(1)?.start);
        let txn = driver.begin(&[(new, len)]);
        driver.finish(txn)?;
        driver.finish_together(1)?;
        driver.run_job()?;
    }
    driver.finish_together(2)?;
    // An oid of the client's own, far above all that were handed out, is among them.
    let new = Oid(driver.allocate(1)?.start);
    let long = driver.begin(&[(new, 70_000), (Oid(1 << 20), 10)]);
    driver.finish(long)?;
    driver.turn()?;
    for _ in 0..3 {
        driver.finish_together(2)?;
        driver.run_job()?;
    }
    driver.settle()?;
    driver.wait()?;
    driver.finish_together(1)?;
    driver.close()?;
    driver.open()?;
    go_back(driver, 2)?;
    driver.finish_together(2)?;
    // The power is always cut, or the process killed: this is not the end of it.
    driver.run_job()?;
    Ok(())
}

/// A turn of ours, with no good end.
fn turn(driver: &mut Driver) -> Result<(), Stop> {
    driver.open()?;
    driver.commit(&[(Oid(0), 20)])?;
    driver.finish_together(2)?;
    driver.settle()?;
    driver.commit(&[(Oid(0), 300)])
}

#[test]
fn what_another_server_has_acknowledged_in_its_turn_is_there() {
    for seed in seeds() {
        let mut setting = Setting::new(seed);
        for _ in 0..3 {
            let files = Model::new(&setting.files, None);
            let disk = SimDisk::new(files, None);
            let mut driver = Driver::new(disk.clone(), setting.ledger, Random::new(seed));
            turn(&mut driver).unwrap();
            driver.have_another_server().unwrap();
            setting = Setting {
                files: disk.model().shown(),
                ledger: driver.ledger.at(usize::MAX),
                ..Setting::new(seed)
            };
            let recording = record(&setting, turn).unwrap();
            let mut sweep = Sweep::new(setting.clone());
            sweep.only_step = from_env("CRASH_STEP");
            if let Err(error) = sweep.run(&recording) {
                panic!("CRASH_SEED={seed} {error}");
            }
        }
    }
}

/// Undoes, restores and deletes, with the disk behind.
fn go_back(driver: &mut Driver, rounds: usize) -> Result<(), Stop> {
    for _ in 0..rounds {
        driver.undo()?;
        driver.restore()?;
        driver.run_job()?;
        driver.delete()?;
        driver.undo()?;
    }
    Ok(())
}

#[test]
fn the_workload_has_all_that_it_should() {
    let mut straddling = 0;
    for seed in seeds() {
        let recording = record(&Setting::new(seed), workload).unwrap();
        let seen = recording.seen;
        straddling += seen.straddling;
        assert!(seen.shared_batches > 5 && seen.overlapping > 10, "{seen:?}");
        assert!(seen.conflicts > 0 && seen.aborts > 0, "{seen:?}");
        assert!(seen.indexes > 1 && seen.ceilings > 1, "{seen:?}");
        assert!(seen.blobs > 4 && seen.blobs_undone > 0, "{seen:?}");
        assert!(seen.sparse > 0, "{seen:?}");
        assert!(seen.undos > 3 && seen.impossible_undos > 0, "{seen:?}");
        assert!(seen.restored > 3 && seen.deleted > 3, "{seen:?}");
        assert_eq!(seen.refusals, 0);
    }
    assert!(straddling > 0);
}

#[test]
fn after_a_power_cut_what_was_acknowledged_is_there_and_the_rest_is_whole() {
    let mut states = 0;
    let mut kinds = Kinds::new();
    for seed in seeds() {
        let setting = Setting::new(seed);
        let recording = record(&setting, workload).unwrap();
        let mut sweep = Sweep::new(setting);
        sweep.only_step = from_env("CRASH_STEP");
        sweep.cut_twice_percent = 2;
        if let Err(error) = sweep.run(&recording) {
            panic!("CRASH_SEED={seed} {error}");
        }
        states += sweep.state_count();
        kinds.append(&mut sweep.kinds);
    }
    println!("{states} states, {} kinds of them", kinds.len());
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("crashed");
    let _ = fs::remove_dir_all(&directory);
    images::dump(&kinds, &directory).unwrap();
}

#[test]
fn a_transaction_that_was_staged_in_a_file_is_whole_or_not_there() {
    let recording = record(&Setting::new(1), |driver| {
        driver.open()?;
        driver.commit(&[(Oid(0), 100)])?;
        // More than is kept in memory before the vote.
        let stores: Vec<_> = (1..11).map(|oid| (Oid(oid), 900_000)).collect();
        driver.commit(&stores)?;
        driver.commit(&[(Oid(1), 100)])
    });
    let recording = recording.unwrap();
    let staged = |op: &Op| op.to_string().contains("staging");
    assert!(recording.log.iter().any(staged));
    let mut model = Model::default();
    for (step, op) in recording.log.iter().enumerate() {
        model.apply(op);
        // Such files take their time: not all steps, and one state for each.
        if step % 3 == 0 {
            let mut random = Random::of_step(1, step);
            let files = model.cut_power(Pick::Random, &mut random);
            let disk = SimDisk::new(Model::new(&files, None), None);
            let mut driver = Driver::new(disk, recording.ledger.at(step), random);
            driver
                .open()
                .unwrap_or_else(|stop| panic!("step {step} ({op}): {stop:?}"));
        }
    }
}

/// Transactions of more objects than are laid out at once, in batches with others.
fn large(driver: &mut Driver) -> Result<(), Stop> {
    driver.open()?;
    driver.commit(&[(Oid(0), 20), (Oid(500), 10)])?;
    driver.settle()?;
    let many: Vec<_> = (1..1100).map(|oid| (Oid(oid), 1)).collect();
    for round in 0..2 {
        let before = driver.begin(&[(Oid(2000 + round), 5)]);
        driver.finish(before)?;
        let large = driver.begin(&many);
        driver.finish(large)?;
        driver.turn()?;
        driver.run_job()?;
        let after = driver.begin(&[(Oid(3000 + round), 5)]);
        driver.finish(after)?;
        driver.settle()?;
    }
    driver.commit(&[(Oid(0), 20), (Oid(1), 10)])
}

#[test]
fn a_transaction_of_many_objects_is_whole_or_not_there() {
    // So many objects take their time: one seed, and not all steps.
    let seed = *seeds().start();
    let setting = Setting::new(seed);
    let recording = record(&setting, large).unwrap();
    let mut sweep = Sweep::new(setting);
    sweep.only_step = from_env("CRASH_STEP");
    if let Err(error) = sweep.run(&recording) {
        panic!("CRASH_SEED={seed} {error}");
    }
    for step in (0..recording.log.len()).step_by(3) {
        if let Err(error) = fail(seed, step, io::ErrorKind::Other, large) {
            panic!("CRASH_SEED={seed} CRASH_STEP={step}: {error}");
        }
    }
}

#[test]
fn a_failed_write_or_sync_ends_writing_and_loses_nothing() {
    for seed in seeds() {
        let steps = record(&Setting::new(seed), workload).unwrap().log.len();
        for step in 0..steps {
            if from_env("CRASH_STEP").is_some_and(|only| only != step) {
                continue;
            }
            let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull];
            let kind = kinds[(seed as usize + step) % 2];
            if let Err(error) = fail(seed, step, kind, workload) {
                panic!("CRASH_SEED={seed} CRASH_STEP={step} ({kind}): {error}");
            }
        }
    }
}

fn fail(
    seed: u64,
    step: usize,
    kind: io::ErrorKind,
    workload: fn(&mut Driver) -> Result<(), Stop>,
) -> Result<Seen, String> {
    let failure = Failure { step, kind, seed };
    let disk = SimDisk::new(Model::default(), Some(failure));
    let mut driver = Driver::new(disk.clone(), Ledger::default(), Random::new(seed));
    let about = |what: String| format!("{}: {what}", disk.log()[step]);
    let ended = workload(&mut driver)
        .and_then(|()| driver.settle())
        .and_then(|()| driver.check_serving());
    if let Err(Stop::Wrong(what)) = ended {
        return Err(about(what));
    }
    if let Some(what) = disk.reckless() {
        return Err(about(what));
    }
    let removal_failed = matches!(disk.log()[step], Op::Remove { .. });
    if disk.exists("Data.fs.pack") && !removal_failed {
        return Err(about("something is left of a pack".to_owned()));
    }
    driver.kill();
    let ledger = driver.ledger.at(usize::MAX);
    let mut random = Random::of_step(seed, step);
    let model = disk.model();
    let setting = Setting::new(seed);
    sweep::check(SimDisk::new(model.clone(), None), &ledger, &setting)
        .map_err(|what| about(format!("opened again: {what}")))?;
    for pick in [Pick::Nothing, Pick::Random, Pick::Random] {
        let files = model.cut_power(pick, &mut random);
        let disk = SimDisk::new(Model::new(&files, None), None);
        sweep::check(disk, &ledger, &setting)
            .map_err(|what| about(format!("then a power cut, {pick:?}: {what}")))?;
    }
    Ok(driver.seen)
}

/// Packs beside transactions, one after the other.
fn packing(driver: &mut Driver) -> Result<(), Stop> {
    let root = Oid(0);
    driver.open()?;
    driver.commit(&[(root, 20)])?;
    let with_blobs: Vec<_> = driver.allocate(2)?.map(Oid).collect();
    for _ in 0..4 {
        driver.finish_together(2)?;
        driver.settle()?;
        driver.commit_blobs(&[(root, 700)], &[(with_blobs[0], 50)])?;
    }
    driver.commit_blobs(&[], &[(with_blobs[1], 20)])?;
    driver.delete()?;
    driver.undo()?;
    driver.wait()?;
    driver.settle()?;
    for _ in 0..2 {
        driver.pack()?;
        // As many as it takes, and more.
        for _ in 0..7 {
            driver.finish_together(1)?;
            driver.run_job()?;
        }
        driver.wait()?;
        driver.settle()?;
        driver.commit_blobs(&[], &[(with_blobs[0], 30)])?;
        driver.finish_together(2)?;
        driver.undo()?;
        driver.settle()?;
    }
    driver.close()?;
    driver.open()?;
    driver.commit(&[(root, 30)])?;
    driver.pack()?;
    driver.settle()?;
    driver.finish_together(1)?;
    driver.run_job()?;
    Ok(())
}

#[test]
fn a_power_cut_during_a_pack_leaves_the_old_file_or_the_new_one() {
    let (mut states, mut packs) = (0, 0);
    for seed in seeds() {
        let setting = Setting::new(seed);
        let recording = record(&setting, packing).unwrap();
        let seen = recording.seen;
        assert!(seen.packs > 0 && seen.packs_failed == 0, "{seen:?}");
        packs += seen.packs;
        assert!(seen.beside_packs > 3, "{seen:?}");
        let mut sweep = Sweep::new(setting);
        sweep.only_step = from_env("CRASH_STEP");
        if let Err(error) = sweep.run(&recording) {
            panic!("CRASH_SEED={seed} {error}");
        }
        states += sweep.state_count();
    }
    // Some have nothing to drop: the time was moved back so that the ledger can follow.
    assert!(packs >= 2 * seeds().count(), "{packs}");
    assert!(states > 500, "{states}");
}

#[test]
fn a_pack_that_meets_a_failing_disk_costs_nothing_but_itself() {
    let mut failed = 0;
    for seed in seeds() {
        let steps = record(&Setting::new(seed), packing).unwrap().log.len();
        for step in 0..steps {
            if from_env("CRASH_STEP").is_some_and(|only| only != step) {
                continue;
            }
            let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull];
            let kind = kinds[(seed as usize + step) % 2];
            match fail(seed, step, kind, packing) {
                Ok(seen) => failed += seen.packs_failed,
                Err(error) => panic!("CRASH_SEED={seed} CRASH_STEP={step} ({kind}): {error}"),
            }
        }
    }
    assert!(failed > 50, "{failed}");
}

#[test]
fn a_full_disk_costs_a_vote_and_not_the_server() {
    let recording = record(&Setting::new(1), workload).unwrap();
    let allocations = recording.log.iter().enumerate();
    let mut allocations = allocations.filter(|(_, op)| matches!(op, Op::Allocate));
    let (step, _) = allocations.next_back().unwrap();
    let failure = Failure {
        step,
        kind: io::ErrorKind::StorageFull,
        seed: 1,
    };
    let disk = SimDisk::new(Model::default(), Some(failure));
    let mut driver = Driver::new(disk, Ledger::default(), Random::new(1));
    workload(&mut driver).unwrap();
    assert_eq!(driver.seen.refusals, 1);
    let before = driver.ledger.committed().count();
    driver.commit(&[(Oid(0), 5000)]).unwrap();
    assert!(driver.ledger.committed().count() > before);
    driver.close().unwrap();
}

#[test]
fn the_checks_notice_a_disk_that_lies() {
    let noticed = |lie, what: &str| {
        let setting = Setting {
            lie: Some(lie),
            ..in_use()
        };
        let found = record(&setting, workload).and_then(|it| Sweep::new(setting).run(&it));
        let error = found.expect_err("a lie");
        assert!(error.contains(what), "{lie:?}: {error}");
    };
    noticed(Lie::SyncsNothing, "were committed");
    noticed(Lie::SyncsStatusesOnly, "were committed");
    noticed(Lie::SyncsAllButTheLast, "were committed");
    noticed(Lie::ForgetsNames, "were handed out before");
    noticed(Lie::ForgetsNamesBelow, "blob blobs/0x00");
}

#[test]
fn the_checks_notice_an_acknowledgement_before_the_second_sync() {
    let setting = Setting {
        hasty: true,
        ..in_use()
    };
    let recording = record(&setting, workload).unwrap();
    let error = Sweep::new(setting).run(&recording).unwrap_err();
    assert!(error.contains("were committed"), "{error}");
}

/// A disk with a storage on it that was created, used and closed when all was well.
fn in_use() -> Setting {
    let disk = SimDisk::new(Model::default(), None);
    let mut driver = Driver::new(disk.clone(), Ledger::default(), Random::new(1));
    workload(&mut driver).unwrap();
    driver.close().unwrap();
    Setting {
        files: disk.model().shown(),
        ledger: driver.ledger.at(usize::MAX),
        ..Setting::new(1)
    }
}

fn seeds() -> std::ops::RangeInclusive<u64> {
    match from_env("CRASH_SEED") {
        Some(seed) => seed as u64..=seed as u64,
        None => 1..=from_env("CRASH_SEEDS").unwrap_or(2) as u64,
    }
}

fn from_env(name: &str) -> Option<usize> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}
