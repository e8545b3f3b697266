//! Commands that read all of the database: `verify` and `backup`. One at a time, on a thread of its
//! own, which reads no faster than it may and ends when who has asked hangs up.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use log::Level;

use super::admin::AdminId;
use super::copying::Remote;
use super::now;
pub(super) use super::peers::PeerHandle as Handle;
use crate::admin::{
    Answer, ComparisonReport, FindingReport, Refused, Refusing, Report, StorageReport, TaskStatus,
};
use crate::ids::{NodeId, Seq, Tid};
use crate::limits::TASK_RATE_DEFAULT;
use crate::log_disk::{BackupError, Comparison, CopySource, Snapshot, compare};
use crate::peer::Throttle;
use crate::storage::verify::{Verified, verify};

/// What is being done.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    /// Who has asked.
    id: AdminId,
    control: Control,
}

/// What a task and the reactor have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Control {
    stop: Arc<AtomicBool>,
    status: Arc<Mutex<TaskStatus>>,
}

impl Control {
    fn status(&self) -> TaskStatus {
        let status = self.status.lock();
        status.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Tasks {
    /// A task begins, unless another one is at it.
    pub(super) fn begin(
        &mut self,
        id: AdminId,
        command: &str,
        rate: Option<u64>,
    ) -> Result<Pace, Refused> {
        if let Some(running) = &self.running {
            let TaskStatus { command, what, .. } = running.control.status();
            return Err(Refused {
                error: format!("{command} is being done ({what})"),
                reason: Refusing::Busy,
                primary: None,
            });
        }
        let control = Control::default();
        let pace = Pace::new(control.clone(), command, rate);
        self.running = Some(Running { id, control });
        Ok(pace)
    }

    /// A task has ended.
    pub(super) fn end(&mut self, id: AdminId) {
        self.running.take_if(|running| running.id == id);
    }

    /// Ends what nobody waits for any more.
    pub(super) fn stop_if(&self, is_gone: impl Fn(AdminId) -> bool) {
        if let Some(running) = self.running.as_ref().filter(|running| is_gone(running.id)) {
            running.control.stop.store(true, Ordering::Relaxed);
        }
    }

    /// How far it is.
    pub(super) fn status(&self) -> Vec<TaskStatus> {
        let running = self.running.iter();
        running.map(|running| running.control.status()).collect()
    }
}

/// How a task goes on.
#[derive(Debug)]
pub(super) struct Pace {
    throttle: Throttle,
    control: Control,
}

/// How long is waited at a time, so that who is to stop does so.
const WAIT_MAX: Duration = Duration::from_millis(200);

impl Pace {
    fn new(control: Control, command: &str, rate: Option<u64>) -> Self {
        let rate = rate.unwrap_or(TASK_RATE_DEFAULT);
        let pace = Self {
            throttle: Throttle::new(Some(rate), now().mono),
            control,
        };
        pace.tell(|status| command.clone_into(&mut status.command));
        pace
    }

    fn tell(&self, change: impl FnOnce(&mut TaskStatus)) {
        let status = self.control.status.lock();
        change(&mut status.unwrap_or_else(PoisonError::into_inner));
    }

    /// A part begins, of so many bytes; zero if nobody knows.
    fn part(&self, what: String, total: u64) {
        self.tell(|status| {
            status.what = what;
            status.done = 0;
            status.total = total;
        });
    }

    /// So many more bytes; waits until there may be more. `false` if nobody wants it any more.
    fn step(&mut self, len: u64) -> bool {
        self.tell(|status| status.done = status.done.saturating_add(len));
        self.throttle
            .take(usize::try_from(len).unwrap_or(usize::MAX));
        while !self.is_stopped() {
            let at = now().mono;
            if self.throttle.is_open(at) {
                return true;
            }
            let opens = self.throttle.opens_at().unwrap_or(at);
            thread::sleep(opens.saturating_duration_since(at).min(WAIT_MAX));
        }
        false
    }

    fn is_stopped(&self) -> bool {
        self.control.stop.load(Ordering::Relaxed)
    }
}

/// Nobody is there to be told.
fn stopped() -> Answer {
    refused("nobody waits for it any more")
}

fn refused(why: &str) -> Answer {
    Answer::refused(&Refused {
        error: why.to_owned(),
        reason: Refusing::Conflict,
        primary: None,
    })
}

/// What is to be verified.
#[derive(Debug)]
pub(super) struct Verify {
    /// This node
    pub(super) node: NodeId,
    /// Which storage; `None` for all.
    pub(super) storage: Option<String>,
    /// Whom to compare with.
    pub(super) with: Vec<(NodeId, Handle)>,
}

impl Verify {
    /// Does it. Waits for the disk, for other nodes, and so as not to be too fast.
    pub(super) fn run(self, snapshot: Result<Snapshot, String>, mut pace: Pace) -> Answer {
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot.apart(),
            Err(why) => return refused(&why),
        };
        let names = snapshot.manifest().storages().cloned();
        let is_wanted = |name: &String| self.storage.as_ref().is_none_or(|wanted| wanted == name);
        let numbered: Vec<_> = (0..).zip(names).filter(|(_, it)| is_wanted(it)).collect();
        if let (Some(wanted), []) = (&self.storage, &numbered[..]) {
            return refused(&format!("there is no storage {wanted}"));
        }
        let mut report = Report {
            node: self.node.to_string(),
            ..Report::default()
        };
        for (number, name) in &numbered {
            match self.own(&snapshot, *number, name, &mut pace) {
                Some(storage) => report.storages.push(storage),
                None => return stopped(),
            }
        }
        for (node, handle) in &self.with {
            // A copy that is not used is forgotten: it is made only now.
            let remote = Remote::begin_apart(handle.clone(), Seq::ZERO);
            for storage in &mut report.storages {
                let compared = match &remote {
                    Err(why) => Err(why.clone()),
                    Ok(remote) => {
                        pace.part(
                            format!("storage {}: comparing with {node}", storage.name),
                            snapshot.manifest().len_of(&storage.name),
                        );
                        compare(&snapshot, remote, &storage.name, &mut |len| pace.step(len))
                    }
                };
                match compared {
                    Ok(None) => return stopped(),
                    Ok(Some(found)) => storage.comparisons.push(comparison(*node, found)),
                    Err(why) => storage.comparisons.push(ComparisonReport {
                        node: node.to_string(),
                        error: Some(why),
                        ..ComparisonReport::default()
                    }),
                }
            }
        }
        report.well = report.storages.iter().all(StorageReport::is_well);
        match report.well {
            true => log::info!("verify: all is well"),
            false => log::error!("verify: {report}"),
        }
        Answer::report(report)
    }

    /// What this node has; `None` if nobody wants to know.
    fn own(
        &self,
        snapshot: &Snapshot,
        number: u32,
        name: &str,
        pace: &mut Pace,
    ) -> Option<StorageReport> {
        let manifest = snapshot.manifest();
        let mut report = StorageReport {
            name: name.to_owned(),
            through: manifest.last_tid(name).to_string(),
            bytes: manifest.len_of(name),
            ..StorageReport::default()
        };
        pace.part(format!("storage {name}: reading"), report.bytes);
        let subject = snapshot.subject(number);
        let verified = subject.and_then(|it| verify(&it, &mut |len| pace.step(len)));
        match verified {
            Ok(None) => return None,
            Ok(Some(verified)) => fill(&mut report, verified),
            Err(error) => report.error = Some(error.to_string()),
        }
        // What a pack has removed is not missing.
        if report.counts.contains_key("blobs") && snapshot.is_replaced(number) {
            report.error = Some("it was packed meanwhile, with blobs: verify it again".to_owned());
        }
        Some(report)
    }
}

fn fill(report: &mut StorageReport, verified: Verified) {
    report.transactions = verified.transactions;
    report.records = verified.records;
    report.objects = verified.objects;
    report.references = verified.references;
    report.blobs = verified.blobs;
    let counts = verified.counts.into_iter();
    report.counts = counts
        .map(|(check, count)| (check.name().to_owned(), count))
        .collect();
    let findings = verified.findings.into_iter();
    report.findings = findings
        .map(|finding| FindingReport {
            check: finding.check.name().to_owned(),
            tid: finding.tid.map(|tid| tid.to_string()),
            oid: finding.oid.map(|oid| oid.to_string()),
            text: finding.text,
        })
        .collect();
}

fn comparison(node: NodeId, found: Comparison) -> ComparisonReport {
    let differences = found.differences.into_iter();
    ComparisonReport {
        node: node.to_string(),
        through: found.through.to_string(),
        transactions: found.transactions,
        blobs: found.blobs,
        differences: differences
            .map(|it| FindingReport {
                check: "comparison".to_owned(),
                tid: Some(it.tid.to_string()),
                oid: it.oid.map(|oid| oid.to_string()),
                text: it.text.to_owned(),
            })
            .collect(),
        is_cut: found.is_cut,
        thinned: found
            .thinned
            .map(|(from, through)| (from.to_string(), through.to_string())),
        error: None,
    }
}

/// What is to be backed up.
#[derive(Debug)]
pub(super) struct Backup {
    /// Which storage; `None` for the only one.
    pub(super) storage: Option<String>,
    /// As of when; `None` for now.
    pub(super) tid: Option<Tid>,
    /// A new file.
    pub(super) to: PathBuf,
    /// A new directory.
    pub(super) blobs: Option<PathBuf>,
}

impl Backup {
    /// Where a file is to stand that is to be in the directory for backups. The error says what is
    /// wrong.
    pub(super) fn place(directory: Option<&Path>, name: &str) -> Result<PathBuf, String> {
        let Some(directory) = directory else {
            return Err("there is no backup-directory in the configuration".to_owned());
        };
        // Parts that lead out of it were refused before.
        let directory = std::path::absolute(directory).map_err(|error| error.to_string())?;
        let path = directory.join(name);
        match path.starts_with(&directory) && path != directory {
            true => Ok(path),
            false => Err(format!(
                "{name} is not in the backup-directory {}",
                directory.display()
            )),
        }
    }

    /// Does it, as [`Verify::run`].
    pub(super) fn run(self, snapshot: Result<Snapshot, String>, mut pace: Pace) -> Answer {
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot.apart(),
            Err(why) => return refused(&why),
        };
        let (number, name) = match self.find(&snapshot) {
            Ok(found) => found,
            Err(why) => return refused(&why),
        };
        let last = snapshot.manifest().last_tid(&name);
        let tid = match self.tid {
            Some(tid) if tid > last => {
                return refused(&format!("the last transaction that is here is {last}"));
            }
            tid => tid.unwrap_or(last),
        };
        let (to, blobs) = (&self.to, self.blobs.as_deref());
        let what = format!("storage {name}: to {}", to.display());
        pace.part(what, snapshot.manifest().len_of(&name));
        let done = snapshot.back_up(number, tid, to, blobs, &mut |len| pace.step(len));
        match done {
            Ok(None) => stopped(),
            Ok(Some(done)) => {
                let mut text = format!(
                    "storage {name} up to {} is in {}, {} bytes",
                    done.last,
                    to.display(),
                    done.len
                );
                if let Some(blobs) = blobs {
                    text += &format!(", and {} blobs are in {}", done.blobs, blobs.display());
                }
                log::info!("backup: {text}");
                Answer::done(&text)
            }
            Err(error) => {
                log::log!(level_of(&error), "backup: {error}");
                refused(&error.to_string())
            }
        }
    }

    fn find(&self, snapshot: &Snapshot) -> Result<(u32, String), String> {
        let mut names = (0..).zip(snapshot.manifest().storages().cloned());
        match &self.storage {
            Some(wanted) => names
                .find(|(_, name)| name == wanted)
                .ok_or_else(|| format!("there is no storage {wanted}")),
            None => match (names.next(), names.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err("this node has no storage".to_owned()),
                (Some(_), Some(_)) => Err("there are several storages: name one".to_owned()),
            },
        }
    }
}

/// A backup that is refused is nothing wrong with the node; a disk that fails is.
fn level_of(error: &BackupError) -> Level {
    use io::ErrorKind as Kind;
    match error {
        BackupError::Exists(_)
        | BackupError::Packed(_)
        | BackupError::NoBlobs
        | BackupError::Replaced
        | BackupError::NoRoom { .. } => Level::Warn,
        // Where it was to go: a directory that is missing, or another's, or full.
        BackupError::Io { source, .. } => match source.kind() {
            Kind::NotFound
            | Kind::PermissionDenied
            | Kind::AlreadyExists
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::ReadOnlyFilesystem
            | Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::FileTooLarge => Level::Warn,
            _ => Level::Error,
        },
        BackupError::Read(_) | BackupError::Storage(_) => Level::Error,
    }
}

/// A thread for a task.
pub(super) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("task".to_owned()).spawn(work)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_disk_that_fails_is_an_error() {
        let io = |errno: rustix::io::Errno| BackupError::Io {
            action: "create",
            path: "b".into(),
            source: errno.into(),
        };
        for (error, level) in [
            (BackupError::NoBlobs, Level::Warn),
            (io(rustix::io::Errno::NOENT), Level::Warn),
            (io(rustix::io::Errno::NOSPC), Level::Warn),
            (io(rustix::io::Errno::IO), Level::Error),
        ] {
            assert_eq!(level_of(&error), level, "{error}");
        }
    }

    #[test]
    fn backups_stay_in_their_directory() {
        let directory = Path::new("/srv/backups");
        let place = |name| Backup::place(Some(directory), name);
        assert_eq!(place("a.fs").unwrap(), Path::new("/srv/backups/a.fs"));
        assert_eq!(place("b/a.fs").unwrap(), Path::new("/srv/backups/b/a.fs"));
        let absolute = place("/srv/backups/a.fs").unwrap();
        assert_eq!(absolute, Path::new("/srv/backups/a.fs"));
        for name in [
            "/srv/backups",
            "/srv/a.fs",
            "/srv/backups2/a.fs",
            "/etc/passwd",
        ] {
            let error = place(name).unwrap_err();
            assert!(
                error.contains("is not in the backup-directory /srv/backups"),
                "{error}"
            );
        }
        let error = Backup::place(None, "a.fs").unwrap_err();
        assert!(error.contains("no backup-directory"), "{error}");
        // What begins where the server was started is as good.
        let relative = Backup::place(Some(Path::new("var")), "a.fs").unwrap();
        assert!(relative.is_absolute() && relative.ends_with("var/a.fs"));
    }

    #[test]
    fn one_task_runs_at_a_time_and_ends_when_nobody_waits_for_it() {
        let mut tasks = Tasks::default();
        let [one, other] = [1, 2].map(AdminId::for_tests);
        let mut pace = tasks.begin(one, "verify", Some(0)).unwrap();
        pace.part("storage 1: reading".to_owned(), 100);
        assert!(pace.step(30) && pace.step(20));
        let status = TaskStatus {
            command: "verify".to_owned(),
            what: "storage 1: reading".to_owned(),
            done: 50,
            total: 100,
        };
        assert_eq!(tasks.status(), [status]);
        let refused = tasks.begin(other, "backup", None).unwrap_err();
        assert_eq!(refused.reason, Refusing::Busy);
        assert!(
            refused.error.contains("storage 1: reading"),
            "{}",
            refused.error
        );
        tasks.stop_if(|id| id == other);
        assert!(pace.step(1));
        tasks.stop_if(|id| id == one);
        assert!(!pace.step(1));
        tasks.end(other);
        assert_eq!(tasks.status().len(), 1);
        tasks.end(one);
        assert!(tasks.status().is_empty());
        // It is not stopped by what was meant for another one, however slow it is.
        let mut pace = tasks.begin(other, "backup", Some(1)).unwrap();
        assert!(pace.step(0));
        tasks.stop_if(|_| true);
        assert!(!pace.step(1 << 40));
    }
}
