//! Power cuts at every step of a recorded run, and what is checked after each.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use standby::ids::Oid;
use standby::storage::disk::with_suffix;
use standby::storage::recover::{self, Access, Opened};

use crate::disk::{EXTREMES, Files, Lie, Model, Op, Pick, SimDisk};
use crate::driver::{DATA_PATH, Driver, Seen, Stop};
use crate::images::Kinds;
use crate::ledger::Ledger;
use crate::random::Random;

/// Random states at each step, beside the extreme ones.
const RANDOM_PICKS: usize = 3;

/// What a run starts with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setting {
    pub(crate) seed: u64,
    /// What is on the disk.
    pub(crate) files: Files,
    /// What was promised of it.
    pub(crate) ledger: Ledger,
    pub(crate) lie: Option<Lie>,
    /// See [`Driver::hasty`].
    pub(crate) hasty: bool,
}

impl Setting {
    /// An empty disk.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    fn driver(&self, disk: SimDisk, ledger: Ledger) -> Driver {
        let mut driver = Driver::new(disk, ledger, Random::new(self.seed));
        driver.hasty = self.hasty;
        driver
    }
}

/// A run in which nothing went wrong.
pub(crate) struct Recording {
    pub(crate) log: Vec<Op>,
    pub(crate) seen: Seen,
    pub(crate) ledger: Ledger,
}

pub(crate) fn record(
    setting: &Setting,
    workload: fn(&mut Driver) -> Result<(), Stop>,
) -> Result<Recording, String> {
    let disk = SimDisk::new(Model::new(&setting.files, setting.lie), None);
    let mut driver = setting.driver(disk.clone(), setting.ledger.clone());
    workload(&mut driver).map_err(|stop| format!("while recording: {stop:?}"))?;
    driver.kill();
    Ok(Recording {
        log: disk.log(),
        seen: driver.seen,
        ledger: driver.ledger,
    })
}

/// All power cuts of a recorded run.
pub(crate) struct Sweep {
    setting: Setting,
    pub(crate) only_step: Option<usize>,
    /// In how many of a hundred states the power goes again while they are opened and used.
    pub(crate) cut_twice_percent: usize,
    /// Digests of states that have been checked.
    seen: BTreeSet<u64>,
    pub(crate) kinds: Kinds,
}

impl Sweep {
    pub(crate) const fn new(setting: Setting) -> Self {
        Self {
            setting,
            only_step: None,
            cut_twice_percent: 0,
            seen: BTreeSet::new(),
            kinds: Kinds::new(),
        }
    }

    pub(crate) fn state_count(&self) -> usize {
        self.seen.len()
    }

    pub(crate) fn run(&mut self, recording: &Recording) -> Result<(), String> {
        let mut model = Model::new(&self.setting.files, self.setting.lie);
        for (step, op) in recording.log.iter().enumerate() {
            let wanted = self.only_step.is_none_or(|only| only == step);
            let ledger = recording.ledger.at(step);
            let found = |when, what| format!("CRASH_STEP={step} ({when} {op}): {what}");
            if wanted {
                self.stop_at(&model, &ledger, "sync", 2 * step)
                    .map_err(|what| found("before", what))?;
            }
            model.apply(op);
            if wanted {
                self.stop_at(&model, &ledger, kind(op), 2 * step + 1)
                    .map_err(|what| found("during", what))?;
            }
        }
        Ok(())
    }

    /// All that may become of the disk at one moment.
    fn stop_at(
        &mut self,
        model: &Model,
        ledger: &Ledger,
        kind: &str,
        moment: usize,
    ) -> Result<(), String> {
        // The process is killed: what it has written is shown, though not on stable storage.
        let shown = model.shown();
        if self.is_new(&shown, ledger) {
            check(SimDisk::new(model.clone(), None), ledger, &self.setting)
                .map_err(|what| format!("killed: {what}"))?;
        }
        let picks = EXTREMES.into_iter().chain([Pick::Random; RANDOM_PICKS]);
        for (number, pick) in picks.enumerate() {
            // The same if this step is repeated alone, and fewer states have been seen before.
            let mut random = Random::of_step(self.setting.seed, 100 * moment + number);
            let files = model.cut_power(pick, &mut random);
            let name = format!("{kind}-{pick:?}").to_lowercase();
            self.kinds.insert(name, (files.clone(), ledger.clone()));
            if !self.is_new(&files, ledger) {
                continue;
            }
            let disk = SimDisk::new(Model::new(&files, self.setting.lie), None);
            check(disk, ledger, &self.setting).map_err(|what| format!("{pick:?}: {what}"))?;
            if random.percent(self.cut_twice_percent) {
                self.cut_again(&files, ledger)
                    .map_err(|what| format!("{pick:?}, then {what}"))?;
            }
        }
        Ok(())
    }

    fn cut_again(&self, files: &Files, ledger: &Ledger) -> Result<(), String> {
        let setting = Setting {
            files: files.clone(),
            ledger: ledger.clone(),
            ..self.setting
        };
        let recording = record(&setting, |driver| {
            driver.open()?;
            go_on(driver)
        })?;
        Self::new(setting).run(&recording)
    }

    fn is_new(&mut self, files: &Files, ledger: &Ledger) -> bool {
        let mut hasher = DefaultHasher::new();
        files.hash(&mut hasher);
        let counts = (
            ledger.committed().count(),
            ledger.entries.len(),
            ledger.oids.len(),
        );
        counts.hash(&mut hasher);
        self.seen.insert(hasher.finish())
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Create { .. }
        | Op::Link { .. }
        | Op::Rename { .. }
        | Op::Remove { .. }
        | Op::CreateDirectory { .. } => "name",
        Op::Write { data, .. } if data.len() == 1 => "status",
        Op::Write { .. } => "write",
        Op::SetLen { .. } => "length",
        Op::SyncNames { .. } | Op::Sync { .. } | Op::Allocate => "sync",
    }
}

/// Opens what a crash has left, holds it against the ledger, and goes on with it.
pub(crate) fn check(disk: SimDisk, ledger: &Ledger, setting: &Setting) -> Result<(), String> {
    let scanned = look(&disk)?;
    let mut driver = setting.driver(disk.clone(), ledger.clone());
    let wrong = |when: &'static str| {
        move |stop| match stop {
            Stop::Disk(what) | Stop::Wrong(what) => format!("{when}: {what}"),
        }
    };
    driver.open().map_err(wrong("opening"))?;
    if let Some(scanned) = scanned {
        let storage = driver.storage();
        let opened = (storage.file_len(), storage.last_tid());
        if opened != (scanned.tail, scanned.last_tid) {
            let scanned = (scanned.tail, scanned.last_tid);
            return Err(format!("opened {opened:?}, but {scanned:?} when read-only"));
        }
    }
    // What has been shown once must stay.
    reopen_without_power(&driver, setting).map_err(wrong("power cut after opening"))?;
    driver.commit(&[(Oid(0), 300)]).map_err(wrong("one more"))?;
    reopen_without_power(&driver, setting).map_err(wrong("power cut after one more"))?;
    go_on(&mut driver).map_err(wrong("going on"))?;
    reopen_without_power(&driver, setting).map_err(wrong("power cut after all"))
}

/// Reads the file without changing it, with its index and without: both ways must lead to the
/// same. `None` if there is no file yet.
fn look(disk: &SimDisk) -> Result<Option<Opened>, String> {
    let mut files = disk.model().shown();
    let path = Path::new(DATA_PATH);
    if !files.contains_key(path) {
        return Ok(None);
    }
    let open = |files: &Files| {
        let disk = SimDisk::new(Model::new(files, None), None);
        recover::open(&disk, path, Access::ReadOnly, &mut |_| ())
            .map_err(|error| format!("read-only: {error}"))
    };
    let indexed = open(&files)?;
    files.remove(&with_suffix(path, ".index"));
    let scanned = open(&files)?;
    if !indexed.index.iter().eq(scanned.index.iter()) {
        let pos = indexed.index_pos;
        return Err(format!(
            "the index file (of {pos}) is not what a scan gives"
        ));
    }
    Ok(Some(scanned))
}

fn reopen_without_power(driver: &Driver, setting: &Setting) -> Result<(), Stop> {
    let mut random = Random::new(setting.seed);
    let files = driver.disk.model().cut_power(Pick::Nothing, &mut random);
    let disk = SimDisk::new(Model::new(&files, setting.lie), None);
    setting.driver(disk, driver.ledger.at(usize::MAX)).open()
}

/// What everybody does with a storage that has just been opened.
fn go_on(driver: &mut Driver) -> Result<(), Stop> {
    driver.commit(&[(Oid(0), 600)])?;
    driver.undo()?;
    driver.allocate(5)?;
    driver.finish_together(2)?;
    driver.finish_together(1)?;
    driver.close()
}
