//! The power goes at every write and at every sync of a journal, and every one of them fails; then
//! it is opened again. What was synced must be there and in order, and what is behind it must be
//! the beginning of what was appended.
//!
//! `CRASH_SEED` and `CRASH_STEP` repeat a failure, `CRASH_SEEDS` runs more seeds than usual.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/disk.rs"]
mod disk;
mod driver;
#[allow(dead_code, reason = "it is shared with the tests of the data file")]
#[path = "../storage_crash/random.rs"]
mod random;

use std::collections::BTreeSet;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use disk::{EXTREMES, Failure, Files, Lie, Model, Op, Pick, SimDisk};
use driver::{DIRECTORY, Driver, Ledger, Stop};
use random::Random;
use standby::storage::disk::{Disk, OpenMode};
use standby::storage::journal::JournalError;

/// Random states at each step, beside the extreme ones.
const RANDOM_PICKS: usize = 3;

/// Everything that changes the disk, in every order that matters.
fn workload(driver: &mut Driver) -> Result<(), Stop> {
    driver.open()?;
    driver.promise()?;
    driver.append(&[(10, 1)])?;
    driver.sync()?;
    driver.append(&[(0, 1), (700, 1), (3, 0)])?;
    driver.append(&[(1200, 0)])?;
    driver.sync()?;
    // The next group is written while the last one is synced.
    for number in 0..6 {
        driver.append(&[(100 * number, 1), (600, 1)])?;
        driver.begin_sync();
        driver.append(&[(50, 1)])?;
        driver.end_sync()?;
    }
    driver.note(2)?;
    driver.append(&[(800, 1), (900, 1)])?;
    driver.cut(3)?;
    driver.promise()?;
    for _ in 0..4 {
        let count = 1 + driver.random.below(4);
        let len = driver.random.below(1500);
        driver.append(&vec![(len, 1); count])?;
        driver.begin_sync();
        driver.end_sync()?;
    }
    driver.release()?;
    driver.append(&[(6000, 1)])?;
    driver.append(&[(20, 1)])?;
    // Over several segments.
    driver.cut(6)?;
    driver.append(&[(20, 1), (20, 1)])?;
    driver.sync()?;
    driver.close()?;

    driver.open()?;
    driver.promise()?;
    for _ in 0..8 {
        driver.append(&[(500, 1), (900, 1)])?;
        driver.sync()?;
    }
    driver.note(1)?;
    driver.release()?;
    driver.append(&[(1000, 0)])?;
    driver.begin_behind()?;
    for _ in 0..7 {
        driver.append(&[(500, 1), (900, 1)])?;
    }
    driver.release()?;
    driver.append(&[(1000, 0)])?;
    driver.kill();
    driver.open()?;
    driver.append(&[(700, 1)])?;
    driver.sync()?;
    // The power is always cut: this is not the end of it.
    driver.append(&[(700, 1), (1, 1)])
}

/// What everybody does with a journal that has just been opened.
fn go_on(driver: &mut Driver) -> Result<(), Stop> {
    driver.append(&[(30, 1)])?;
    driver.sync()?;
    driver.promise()?;
    driver.append(&[(30, 1), (600, 1)])?;
    driver.cut(2)?;
    driver.append(&[(2000, 1)])?;
    driver.sync()?;
    driver.append(&[(2000, 1)])?;
    driver.release()?;
    driver.sync()
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
    workload: fn(&mut Driver) -> Result<(), Stop>,
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
    /// In how many of a hundred states the power goes again while they are opened and used.
    cut_twice_percent: usize,
    seen: BTreeSet<u64>,
}

impl Sweep {
    const fn new(seed: u64) -> Self {
        Self {
            seed,
            lie: None,
            cut_twice_percent: 0,
            seen: BTreeSet::new(),
        }
    }

    fn run(&mut self, start: &Files, recording: &Recording) -> Result<(), String> {
        let only = from_env("CRASH_STEP");
        let mut model = Model::new(start, self.lie);
        for (step, op) in recording.log.iter().enumerate() {
            let ledger = recording.ledger.at(step);
            let is_wanted = only.is_none_or(|only| only == step);
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
        let shown = model.shown();
        if self.is_new(&shown, ledger) {
            // The process is killed: what it has written is shown, though not on stable storage.
            check(SimDisk::new(model.clone(), None), ledger, self.seed)
                .map_err(|what| format!("killed: {what}"))?;
        }
        let picks = EXTREMES.into_iter().chain([Pick::Random; RANDOM_PICKS]);
        for (number, pick) in picks.enumerate() {
            let mut random = Random::of_step(self.seed, 100 * moment + number);
            let files = model.cut_power(pick, &mut random);
            if !self.is_new(&files, ledger) {
                continue;
            }
            let disk = SimDisk::new(Model::new(&files, self.lie), None);
            check(disk, ledger, self.seed).map_err(|what| format!("{pick:?}: {what}"))?;
            if random.percent(self.cut_twice_percent) {
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
        Self::new(self.seed).run(files, &recording)
    }

    fn is_new(&mut self, files: &Files, ledger: &Ledger) -> bool {
        let mut hasher = DefaultHasher::new();
        files.hash(&mut hasher);
        ledger.now().hash(&mut hasher);
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
    Driver::new(disk, driver.ledger.clone(), Random::new(seed)).open()
}

#[test]
fn after_a_power_cut_what_was_synced_is_there_and_the_rest_is_a_beginning_of_what_came() {
    let mut states = 0;
    for seed in seeds() {
        let start = Files::new();
        let recording = record(seed, &start, Ledger::default(), None, workload).unwrap();
        let mut sweep = Sweep::new(seed);
        sweep.cut_twice_percent = 1;
        if let Err(error) = sweep.run(&start, &recording) {
            panic!("CRASH_SEED={seed} {error}");
        }
        states += sweep.seen.len();
    }
    println!("{states} states");
    let states_min = 400 * seeds().count();
    assert!(
        states > states_min || from_env("CRASH_STEP").is_some(),
        "{states}"
    );
}

#[test]
fn the_workload_has_all_that_it_should() {
    for seed in seeds() {
        let recording = record(seed, &Files::new(), Ledger::default(), None, workload).unwrap();
        let seen = recording.ledger.seen;
        assert!(seen.segments_cut > 0 && seen.cuts == 2, "{seen:?}");
        assert!(seen.released > 1 && seen.overlapping > 5, "{seen:?}");
        assert!(seen.segments > 5, "{seen:?}");
    }
}

#[test]
fn a_failed_write_or_sync_ends_writing_and_loses_nothing() {
    let mut forgiven = 0;
    for seed in seeds() {
        let recording = record(seed, &Files::new(), Ledger::default(), None, workload).unwrap();
        for step in 0..recording.log.len() {
            if from_env("CRASH_STEP").is_some_and(|only| only != step) {
                continue;
            }
            for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
                match fail(Failure { step, kind, seed }) {
                    Ok(is_forgiven) => forgiven += usize::from(is_forgiven),
                    Err(error) => panic!("CRASH_SEED={seed} CRASH_STEP={step} ({kind}): {error}"),
                }
            }
        }
    }
    assert!(forgiven > 5, "{forgiven}");
}

/// Whether it was forgiven: there was no room, and the journal went on.
fn fail(failure: Failure) -> Result<bool, String> {
    let disk = SimDisk::new(Model::default(), Some(failure));
    let seed = failure.seed;
    let mut driver = Driver::new(disk.clone(), Ledger::default(), Random::new(seed));
    let about = |what: String| format!("{}: {what}", disk.log()[failure.step]);
    let ended = workload(&mut driver);
    match &ended {
        Err(Stop::Wrong(what)) => return Err(about(what.clone())),
        Err(Stop::Journal(error)) => {
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
    let model = disk.model();
    check(SimDisk::new(model.clone(), None), &driver.ledger, seed)
        .map_err(|what| about(format!("opened again: {what}")))?;
    for pick in [Pick::Nothing, Pick::Random, Pick::Random] {
        let files = model.cut_power(pick, &mut random);
        check(
            SimDisk::new(Model::new(&files, None), None),
            &driver.ledger,
            seed,
        )
        .map_err(|what| about(format!("then a power cut, {pick:?}: {what}")))?;
    }
    Ok(ended.is_ok())
}

#[test]
fn the_checks_notice_a_disk_that_lies() {
    for (lie, expected) in [
        (Lie::SyncsNothing, "power cut after opening"),
        (Lie::SyncsAllButTheLast, "power cut after opening"),
        (Lie::ForgetsNames, "power cut after opening"),
    ] {
        let start = Files::new();
        let mut sweep = Sweep::new(1);
        sweep.lie = Some(lie);
        let recording = record(1, &start, Ledger::default(), Some(lie), workload);
        let found = recording.and_then(|recording| sweep.run(&start, &recording));
        let error = found.expect_err("a lie");
        assert!(error.contains(expected), "{lie:?}: {error}");
    }
}

#[test]
fn the_checks_notice_an_acknowledgement_before_the_sync() {
    let start = Files::new();
    let hasty = |driver: &mut Driver| {
        driver.is_hasty = true;
        workload(driver)
    };
    let recording = record(1, &start, Ledger::default(), None, hasty).unwrap();
    let error = Sweep::new(1).run(&start, &recording).unwrap_err();
    assert!(error.contains("were synced"), "{error}");
}

/// The files of a journal that was closed, or whose process was killed, and what they hold.
fn in_use(seed: u64, close: bool) -> (Files, Ledger) {
    let disk = SimDisk::new(Model::default(), None);
    let mut driver = Driver::new(disk.clone(), Ledger::default(), Random::new(seed));
    workload(&mut driver).unwrap();
    driver.sync().unwrap();
    if close {
        driver.close().unwrap();
    }
    driver.kill();
    (disk.model().shown(), driver.ledger)
}

/// A disk on which one bit of a file is another one.
fn flipped(files: &Files, path: &Path, pos: usize, bit: u32) -> SimDisk {
    let disk = SimDisk::new(Model::new(files, None), None);
    let file = disk.open(path, OpenMode::Write).unwrap();
    let byte = [files[path][pos] ^ 1 << bit];
    file.write_at(&mut [IoSlice::new(&byte)], pos as u64)
        .unwrap();
    disk
}

#[test]
fn a_flipped_bit_is_found_and_named() {
    for close in [true, false] {
        let (files, ledger) = in_use(1, close);
        let (mut named, mut harmless, mut torn) = (0, 0, 0);
        let paths = files.keys().filter(|path| is_of_log(path)).cloned();
        let paths: Vec<PathBuf> = paths.collect();
        assert!(paths.len() > 3);
        for path in paths {
            for pos in 0..files[&path].len() {
                let disk = flipped(&files, &path, pos, (pos % 8) as u32);
                let steps = disk.step_count();
                let mut driver = Driver::new(disk.clone(), ledger.clone(), Random::new(1));
                match driver.open() {
                    Ok(()) => harmless += 1,
                    Err(Stop::Journal(JournalError::Damaged {
                        path: found,
                        pos: at,
                        ..
                    })) => {
                        assert_eq!(found, path, "{pos}");
                        assert!(at <= pos as u64, "{at} {pos}");
                        // Nothing was changed: there is nothing to lose by looking twice.
                        let is_harmless = |op: &Op| matches!(op, Op::SyncNames { .. });
                        assert!(disk.log()[steps..].iter().all(is_harmless));
                        named += 1;
                    }
                    // Only in the last group, of which nobody has noted that it was synced.
                    Err(Stop::Wrong(what)) if !close => {
                        assert!(what.contains("were synced"), "{what}");
                        torn += 1;
                    }
                    Err(stop) => panic!("{} {pos}: {stop:?}", path.display()),
                }
            }
        }
        println!("closed: {close}; {named} named, {harmless} harmless, {torn} taken for torn");
        // Padding behind entries.
        assert!(harmless < 100 && named > 10_000, "{harmless} {named}");
        assert!(torn < 50, "{torn}");
    }
}

fn is_of_log(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.ends_with(".segment") || ["identity", "promised", "epochs", "commit"].contains(&name)
}

#[test]
fn a_file_that_is_missing_is_named() {
    let (files, ledger) = in_use(1, true);
    for path in files.keys().filter(|path| is_of_log(path)) {
        let mut left = files.clone();
        left.remove(path);
        let disk = SimDisk::new(Model::new(&left, None), None);
        let mut driver = Driver::new(disk, ledger.clone(), Random::new(1));
        // Nor is a new one made in its place.
        driver.always_creates = true;
        match driver.open() {
            Err(Stop::Journal(JournalError::Damaged { .. })) => {}
            found => panic!("{}: {found:?}", path.display()),
        }
    }
}

#[test]
fn mutated_files_are_opened_or_refused() {
    let (files, ledger) = in_use(1, false);
    let paths: Vec<_> = files.keys().filter(|path| is_of_log(path)).collect();
    let mut random = Random::new(from_env("CRASH_SEED").unwrap_or(1) as u64);
    let (mut opened, mut refused) = (0, 0);
    for _ in 0..from_env("FUZZ_ROUNDS").unwrap_or(3000) {
        let disk = SimDisk::new(Model::new(&files, None), None);
        for _ in 0..=random.below(3) {
            let path = paths[random.below(paths.len())];
            mutate(&disk, path, &mut random);
        }
        let mut driver = Driver::new(disk, ledger.clone(), Random::new(1));
        match driver.open() {
            Err(Stop::Journal(_)) => refused += 1,
            Ok(()) | Err(Stop::Wrong(_)) => opened += 1,
        }
    }
    println!("{opened} opened, {refused} refused");
    assert!(refused > opened, "{refused} {opened}");
}

fn mutate(disk: &SimDisk, path: &Path, random: &mut Random) {
    let file = disk.open(path, OpenMode::Write).unwrap();
    let len = usize::try_from(file.len().unwrap()).unwrap();
    let pos = random.below(len + 1);
    let (from, count) = (random.below(len + 1), 1 + random.below(600));
    let mut piece = vec![0; count];
    match random.below(4) {
        0 => return file.set_len(pos as u64).unwrap(),
        1 => piece.fill_with(|| random.next() as u8),
        // From somewhere else in the file, as it is.
        2 => _ = file.read_at(&mut piece, from as u64).unwrap(),
        _ => piece = u64::MAX.to_be_bytes().to_vec(),
    }
    file.write_at(&mut [IoSlice::new(&piece)], pos as u64)
        .unwrap();
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let (files, _) = in_use(1, true);
    let other = {
        let disk = SimDisk::new(Model::default(), None);
        let mut driver = Driver::new(disk.clone(), Ledger::default(), Random::new(1));
        driver.disk_number = 9;
        driver.open().unwrap();
        driver.append(&[(5, 1)]).unwrap();
        driver.close().unwrap();
        disk.model().shown()
    };
    for name in ["promised", "epochs", "commit", "0000000000000001.segment"] {
        let path = Path::new(DIRECTORY).join(name);
        let disk = SimDisk::new(Model::new(&other, None), None);
        let foreign = files.get(&path).or_else(|| {
            let is_segment = |path: &&PathBuf| path.extension().is_some_and(|it| it == "segment");
            files.get(files.keys().find(is_segment)?)
        });
        disk.replace(&path, &[foreign.unwrap()]).unwrap();
        let mut driver = Driver::new(disk, Ledger::default(), Random::new(1));
        match driver.open() {
            Err(Stop::Journal(error)) => assert!(error.to_string().contains("another"), "{error}"),
            found => panic!("{name}: {found:?}"),
        }
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
