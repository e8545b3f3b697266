//! The power goes at every write and at every sync of a node's disk, and every one of them fails;
//! then it is opened again. What the replica was told of must be there, in the journal and in the
//! data files; and these must have whole transactions only, whoever opens them.
//!
//! `CRASH_SEED` and `CRASH_STEP` repeat a failure, `CRASH_SEEDS` runs more seeds than usual.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/disk.rs"]
mod disk;
mod driver;
mod ledger;
#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/random.rs"]
mod random;
mod reader;

use std::collections::BTreeSet;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;

use disk::{EXTREMES, Failure, Files, Lie, Model, Op, Pick, SimDisk};
use driver::{Driver, Stop};
use ledger::Ledger;
use random::Random;
use standby::ids::{DiskId, Epoch, NodeId, Seq, Tid};
use standby::log_disk::{Directories, DiskAction, Found, LogDisk, LogDiskError};
use standby::replica::members::{Members, Voter};
use standby::replica::message::Position;
use standby::replica::settings::Settings;
use standby::storage::disk::Disk;

/// Random states at each step, beside the extreme ones.
const RANDOM_PICKS: usize = 1;

type Workload = fn(&mut Driver) -> Result<(), Stop>;

/// What a replica does from day to day.
fn daily(driver: &mut Driver) -> Result<(), Stop> {
    driver.found()?;
    driver.open()?;
    driver.promise()?;
    driver.append(3)?;
    driver.apply(1)?;
    driver.append(4)?;
    driver.apply(2)?;
    driver.checkpoint()?;
    driver.append(2)?;
    driver.cut(3)?;
    driver.promise()?;
    for _ in 0..6 {
        driver.append(4)?;
        driver.apply(1)?;
    }
    driver.checkpoint()?;
    driver.close()?;
    driver.open()?;
    driver.append(5)?;
    driver.apply(0)?;
    driver.kill();
    driver.open()?;
    // A checkpoint is due on the way.
    driver.append(9)?;
    driver.append(9)?;
    driver.apply(3)?;
    driver.cut(2)?;
    driver.append(1)
}

/// A copy comes, with and without entries that it has not.
fn copies(driver: &mut Driver) -> Result<(), Stop> {
    driver.found()?;
    driver.open()?;
    driver.promise()?;
    driver.append(6)?;
    driver.apply(3)?;
    driver.adopt(2, 6)?;
    driver.append(2)?;
    driver.apply(1)?;
    driver.adopt(0, 3)?;
    driver.promise()?;
    driver.append(3)?;
    driver.apply(0)?;
    driver.checkpoint()
}

/// The data are replaced by an older copy, and the log stays.
fn anew(driver: &mut Driver) -> Result<(), Stop> {
    driver.found()?;
    driver.open()?;
    driver.promise()?;
    driver.append(6)?;
    driver.apply(2)?;
    driver.checkpoint()?;
    driver.replace(3)?;
    driver.append(4)?;
    driver.apply(1)?;
    // In front of the last checkpoint.
    driver.replace(6)?;
    driver.blobs = 100;
    let blobs = driver.ledger.seen.blobs;
    driver.append(5)?;
    // Or this is for nothing.
    assert!(driver.ledger.seen.blobs > blobs);
    driver.replace_ahead()?;
    driver.blobs = 30;
    driver.promise()?;
    driver.append(2)?;
    driver.cut(1)?;
    driver.replace(0)?;
    driver.kill();
    driver.open()?;
    driver.append(1)?;
    driver.apply(0)?;
    driver.checkpoint()
}

/// A majority is lost, and the node goes on with a new history.
fn forced(driver: &mut Driver) -> Result<(), Stop> {
    driver.found()?;
    driver.open()?;
    driver.promise()?;
    driver.append(5)?;
    driver.apply(3)?;
    driver.kill();
    driver.leave_copy()?;
    driver.found()?;
    driver.open()?;
    driver.promise()?;
    driver.append(3)?;
    driver.apply(1)?;
    driver.checkpoint()
}

/// Data files are packed, while the log goes on.
fn packs(driver: &mut Driver) -> Result<(), Stop> {
    driver.deletions = 10;
    driver.blobs = 60;
    driver.found()?;
    driver.open()?;
    driver.promise()?;
    driver.append(12)?;
    driver.apply(2)?;
    driver.checkpoint()?;
    driver.sweep_from_here();
    // To a time in the middle. What is behind it has more of the blobs of an object.
    driver.order_pack(0, driver.middle(0))?;
    driver.append(1)?;
    driver.apply(1)?;
    driver.begin_pack(0, true)?;
    driver.step_pack()?;
    driver.blobs = 100;
    driver.append(2)?;
    driver.step_pack()?;
    driver.apply(1)?;
    driver.pack_to_the_switch()?;
    driver.apply(0)?;
    driver.append(1)?;
    driver.finish_pack()?;
    driver.checkpoint()?;
    driver.kill();
    driver.open()?;
    driver.begin_pack(0, false)?;
    // All there is. The process is killed before the switch, and behind it.
    driver.append(3)?;
    driver.order_pack(0, Tid::MAX)?;
    driver.append(1)?;
    driver.apply(1)?;
    driver.begin_pack(0, false)?;
    for _ in 0..4 {
        driver.step_pack()?;
    }
    driver.kill();
    driver.open()?;
    driver.apply(1)?;
    driver.begin_pack(0, false)?;
    driver.pack_to_the_switch()?;
    driver.append(1)?;
    driver.apply(0)?;
    driver.kill();
    driver.open()?;
    driver.begin_pack(0, false)?;
    driver.finish_pack()?;
    // One is given up, and done later.
    driver.append(2)?;
    driver.order_pack(1, Tid::MAX)?;
    driver.apply(0)?;
    driver.begin_pack(1, true)?;
    for _ in 0..3 {
        driver.step_pack()?;
    }
    driver.give_up_pack();
    driver.apply(0)?;
    driver.pack_what_is_due()?;
    driver.append(1)
}

/// Packs have a test of their own, which takes its time.
const WORKLOADS: [(&str, Workload); 4] = [
    ("daily", daily),
    ("copies", copies),
    ("anew", anew),
    ("forced", forced),
];

/// What everybody does with a node that has just been started.
fn go_on(driver: &mut Driver) -> Result<(), Stop> {
    driver.append(2)?;
    driver.promise()?;
    driver.apply(1)?;
    driver.append(2)?;
    driver.cut(1)?;
    driver.checkpoint()?;
    driver.append(1)?;
    driver.apply(0)?;
    driver.pack_what_is_due()
}

struct Recording {
    log: Vec<Op>,
    ledger: Ledger,
}

fn record(
    seed: u64,
    files: &Files,
    ledger: Ledger,
    lie: Option<Lie>,
    workload: Workload,
) -> Result<Recording, String> {
    let disk = SimDisk::new(Model::new(files, lie), None);
    let mut driver = Driver::new(disk.clone(), ledger, Random::new(seed));
    workload(&mut driver).map_err(|stop| format!("while recording: {stop:?}"))?;
    driver.kill();
    Ok(Recording {
        log: disk.log(),
        ledger: driver.ledger,
    })
}

/// All power cuts of a recorded run.
struct Sweep {
    seed: u64,
    lie: Option<Lie>,
    /// In how many of a thousand states the power goes again while they are opened and used.
    cut_twice: usize,
    seen: BTreeSet<u64>,
}

impl Sweep {
    const fn new(seed: u64, lie: Option<Lie>) -> Self {
        Self {
            seed,
            lie,
            cut_twice: 0,
            seen: BTreeSet::new(),
        }
    }

    fn run(&mut self, start: &Files, recording: &Recording) -> Result<(), String> {
        let only = from_env("CRASH_STEP");
        let mut model = Model::new(start, self.lie);
        for (step, op) in recording.log.iter().enumerate() {
            let ledger = recording.ledger.at(step);
            let is_wanted = match only {
                Some(only) => only == step,
                None => step >= recording.ledger.from,
            };
            let found = |when, what| format!("CRASH_STEP={step} ({when} {op}): {what}");
            if is_wanted {
                self.stop_at(&model, &ledger, 2 * step)
                    .map_err(|what| found("before", what))?;
            }
            model.apply(op);
            if is_wanted {
                self.stop_at(&model, &ledger, 2 * step + 1)
                    .map_err(|what| found("during", what))?;
            }
        }
        Ok(())
    }

    /// All that may become of the disk at one moment.
    fn stop_at(&mut self, model: &Model, ledger: &Ledger, moment: usize) -> Result<(), String> {
        if self.is_new(&model.shown(), ledger) {
            // The process is killed: what it has written is shown, though not on stable storage.
            check(SimDisk::new(model.clone(), None), ledger, self.seed)
                .map_err(|what| format!("killed: {what}"))?;
        }
        let ledger = &ledger.without_power();
        let picks = EXTREMES.into_iter().chain([Pick::Random; RANDOM_PICKS]);
        for (number, pick) in picks.enumerate() {
            let mut random = Random::of_step(self.seed, 100 * moment + number);
            let files = model.cut_power(pick, &mut random);
            if !self.is_new(&files, ledger) {
                continue;
            }
            let disk = SimDisk::new(Model::new(&files, self.lie), None);
            check(disk, ledger, self.seed).map_err(|what| format!("{pick:?}: {what}"))?;
            if random.below(1000) < self.cut_twice {
                self.cut_again(&files, ledger)
                    .map_err(|what| format!("{pick:?}, then {what}"))?;
            }
        }
        Ok(())
    }

    fn cut_again(&self, files: &Files, ledger: &Ledger) -> Result<(), String> {
        let recording = record(self.seed, files, ledger.clone(), self.lie, |driver| {
            driver.open()?;
            go_on(driver)
        })?;
        Self::new(self.seed, self.lie).run(files, &recording)
    }

    fn is_new(&mut self, files: &Files, ledger: &Ledger) -> bool {
        let mut hasher = DefaultHasher::new();
        files.hash(&mut hasher);
        ledger.current.hash(&mut hasher);
        self.seen.insert(hasher.finish())
    }
}

/// Opens what a crash has left, holds it against the ledger, and goes on with it.
fn check(disk: SimDisk, ledger: &Ledger, seed: u64) -> Result<(), String> {
    let mut driver = Driver::new(disk, ledger.clone(), Random::new(seed));
    let wrong = |when: &'static str| move |stop| format!("{when}: {stop:?}");
    driver.open().map_err(wrong("opening"))?;
    // What has been shown once must stay.
    reopen_without_power(&driver, seed).map_err(wrong("power cut after opening"))?;
    go_on(&mut driver).map_err(wrong("going on"))?;
    reopen_without_power(&driver, seed).map_err(wrong("power cut after all"))
}

fn reopen_without_power(driver: &Driver, seed: u64) -> Result<(), Stop> {
    let mut random = Random::new(seed);
    let files = driver.disk.model().cut_power(Pick::Nothing, &mut random);
    let disk = SimDisk::new(Model::new(&files, None), None);
    Driver::new(disk, driver.ledger.without_power(), Random::new(seed)).open()
}

fn sweep(workload: Workload, name: &str) {
    let mut states = 0;
    for seed in seeds() {
        let start = Files::new();
        let recording = record(seed, &start, Ledger::default(), None, workload).unwrap();
        let mut sweep = Sweep::new(seed, None);
        sweep.cut_twice = 2;
        if let Err(error) = sweep.run(&start, &recording) {
            panic!("{name}: CRASH_SEED={seed} {error}");
        }
        states += sweep.seen.len();
    }
    println!("{name}: {states} states");
    let states_min = 200 * seeds().count();
    assert!(
        states > states_min || from_env("CRASH_STEP").is_some(),
        "{states}"
    );
}

#[test]
fn after_a_power_cut_all_that_the_replica_was_told_is_there() {
    sweep(daily, "daily");
}

#[test]
fn a_power_cut_while_a_copy_is_adopted_leaves_the_old_state_or_the_new_one() {
    sweep(copies, "copies");
}

#[test]
fn a_power_cut_while_data_are_replaced_leaves_the_old_ones_or_the_new_ones_and_all_of_the_log() {
    sweep(anew, "anew");
}

#[test]
fn a_power_cut_while_a_new_history_begins_leaves_the_old_one_or_the_new_one() {
    sweep(forced, "forced");
}

#[test]
fn a_power_cut_while_data_are_packed_leaves_the_old_file_or_the_new_one_as_a_whole() {
    sweep(packs, "packs");
}

#[test]
fn the_workload_has_all_that_it_should() {
    let mut released = 0;
    for seed in seeds() {
        let recording = record(seed, &Files::new(), Ledger::default(), None, daily).unwrap();
        let seen = recording.ledger.seen;
        assert!(seen.blobs > 2, "{seen:?}");
        released += seen.released;
    }
    assert!(released > 0);
    let recording = record(1, &Files::new(), Ledger::default(), None, anew).unwrap();
    let seen = recording.ledger.seen;
    assert!(seen.replaced > 1 && seen.blobs > 2, "{seen:?}");
    let recording = record(1, &Files::new(), Ledger::default(), None, packs).unwrap();
    let seen = recording.ledger.seen;
    let ends = (seen.packs, seen.packs_again, seen.packs_needless);
    assert_eq!(ends, (3, 1, 1), "{seen:?}");
    assert_eq!((seen.packs_given_up, seen.packs_failed), (1, 0), "{seen:?}");
    assert!(seen.blobs_packed > 2, "{seen:?}");
    assert!(seen.beside_packs > 3 && seen.blobs_beside > 1, "{seen:?}");
}

#[test]
fn a_failed_write_or_sync_ends_everything_and_loses_nothing() {
    let forgiven = fail_everywhere(&WORKLOADS);
    assert!(forgiven > 5, "{forgiven}");
}

#[test]
fn a_failed_write_or_sync_of_a_pack_ends_that_or_everything_and_loses_nothing() {
    let forgiven = fail_everywhere(&[("packs", packs)]);
    // The file goes on as it was.
    assert!(forgiven > 20, "{forgiven}");
}

/// Every step of a disk fails. How many failures were forgiven.
fn fail_everywhere(workloads: &[(&str, Workload)]) -> usize {
    let mut forgiven = 0;
    for seed in seeds().take(1) {
        for (name, workload) in workloads {
            let recording =
                record(seed, &Files::new(), Ledger::default(), None, *workload).unwrap();
            for step in recording.ledger.from..recording.log.len() {
                if from_env("CRASH_STEP").is_some_and(|only| only != step) {
                    continue;
                }
                for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
                    match fail(Failure { step, kind, seed }, *workload) {
                        Ok(is_forgiven) => forgiven += usize::from(is_forgiven),
                        Err(error) => {
                            panic!("{name}: CRASH_SEED={seed} CRASH_STEP={step} ({kind}): {error}")
                        }
                    }
                }
            }
        }
    }
    forgiven
}

/// Whether it was forgiven: there was no room, and the node went on.
fn fail(failure: Failure, workload: Workload) -> Result<bool, String> {
    let disk = SimDisk::new(Model::default(), Some(failure));
    let seed = failure.seed;
    let mut driver = Driver::new(disk.clone(), Ledger::default(), Random::new(seed));
    let about = |what: String| format!("{}: {what}", disk.log()[failure.step]);
    let ended = workload(&mut driver);
    match &ended {
        Err(Stop::Wrong(what)) => return Err(about(what.clone())),
        Err(Stop::Log(error)) => {
            // Whatever is asked for then, nothing more is written.
            let steps = disk.step_count();
            driver.try_everything().map_err(about)?;
            if disk.step_count() != steps {
                return Err(about(format!("written after {error}")));
            }
        }
        Ok(()) => {}
    }
    if let Some(what) = disk.reckless() {
        return Err(about(what));
    }
    driver.kill();
    let mut random = Random::of_step(seed, failure.step);
    for pick in [Pick::Nothing, Pick::Prefix] {
        let files = disk.model().cut_power(pick, &mut random);
        let disk = SimDisk::new(Model::new(&files, None), None);
        let ledger = driver.ledger.without_power();
        check(disk, &ledger, seed).map_err(|what| about(format!("{pick:?}: {what}")))?;
    }
    // Killed, and the machine stays up: what the failed sync was to bring there may be shown.
    let disk = SimDisk::new(disk.model(), None);
    check(disk, &driver.ledger, seed).map_err(about)?;
    Ok(ended.is_ok())
}

/// What an arbiter does: promises and records, in turns. What it was told is done last.
fn arbiter(disk: &SimDisk, done: &mut u64) -> Result<(), LogDiskError> {
    let directories = Directories {
        journal: "journal".into(),
        storages: [].into(),
    };
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let found = Found {
        identity: ledger::identity(0),
        settings: Settings::default(),
    };
    match LogDisk::found(disk.clone(), &directories, &driver::OPTIONS, &found) {
        Err(LogDiskError::Exists { .. }) => {}
        result => result?,
    }
    let (mut log, start) = LogDisk::open(disk, &directories, &driver::OPTIONS)?;
    let (promised, recorded) = (start.promised.counter, start.log.last.seq.0);
    assert_eq!(
        start.log.settings.members.voters.len() as u64,
        recorded.min(1)
    );
    assert!(
        promised >= *done && recorded >= *done,
        "{promised}, {recorded}"
    );
    for number in *done + 1..*done + 4 {
        let node = NodeId::new("n1").unwrap();
        let epoch = Epoch {
            counter: number,
            node,
        };
        if number > promised {
            log.run(DiskAction::Promise(epoch))?;
        }
        let voter = Voter {
            node,
            disk: DiskId([number as u8; 16]),
        };
        let members = Members {
            voters: [voter].into(),
            arbiter: None,
        };
        let seq = Seq(number);
        log.run(DiskAction::Record(Position { epoch, seq }, members))?;
        *done = number;
    }
    Ok(())
}

#[test]
fn an_arbiter_forgets_neither_promise_nor_record() {
    let disk = SimDisk::new(Model::default(), None);
    arbiter(&disk, &mut 0).unwrap();
    let steps = disk.step_count();
    for step in 0..steps {
        for pick in EXTREMES {
            // The step fails, which ends the process, and then the power goes.
            let kind = io::ErrorKind::Other;
            let failure = Failure {
                step,
                kind,
                seed: 1,
            };
            let disk = SimDisk::new(Model::default(), Some(failure));
            let mut done = 0;
            arbiter(&disk, &mut done).unwrap_err();
            let mut random = Random::of_step(1, step);
            let files = disk.model().cut_power(pick, &mut random);
            let disk = SimDisk::new(Model::new(&files, None), None);
            arbiter(&disk, &mut done).unwrap();
        }
    }
    assert!(steps > 50, "{steps}");
}

#[test]
fn a_disk_that_lies_is_noticed_by_these_tests() {
    for lie in [
        Lie::SyncsNothing,
        Lie::SyncsStatusesOnly,
        Lie::SyncsAllButTheLast,
        Lie::ForgetsNames,
        Lie::ForgetsNamesBelow,
    ] {
        let start = Files::new();
        let recording = record(1, &start, Ledger::default(), Some(lie), daily).unwrap();
        let swept = Sweep::new(1, Some(lie)).run(&start, &recording);
        assert!(swept.is_err(), "{lie:?}");
    }
}

fn seeds() -> std::ops::Range<u64> {
    match (from_env("CRASH_SEED"), from_env("CRASH_SEEDS")) {
        (Some(seed), _) => seed as u64..seed as u64 + 1,
        (None, count) => 1..1 + count.unwrap_or(1) as u64,
    }
}

fn from_env(name: &str) -> Option<usize> {
    env::var(name).ok().map(|value| value.parse().unwrap())
}
