//! A pack of a data file that a log feeds ([`apply`](super::super::apply)).
//!
//! ```text
//!   begin_pack ─► step … step ─► Wait ─► go_on_with_pack ─► step … ─► switched ─► step … ─► Done
//!   (applier)     (any thread)             (applier)  ▲        │       (applier)   blobs go
//!                                                     └─ Wait ─┘
//! ```
//!
//! Whoever has the [`FedPack`] reads and writes beside the applier, up to what was on stable
//! storage when the applier saw it last: statuses behind that still change. The applier has the
//! last word: it copies the last bit between two transactions, and goes on in the new file. So
//! nobody waits for the pack but for that moment, and no lock is needed: positions that a vote has
//! looked at are looked at again by who follows.
//!
//! Other nodes pack the same at other moments, with more or less behind it. What is kept depends
//! only on what was in front of the entry that ordered it, up to the transaction *through*.

use std::io;
use std::sync::Arc;

use super::super::blob::layout::BlobDirectory;
use super::super::disk::{Disk, File};
use super::super::index::Index;
use super::super::read::{Reader, Wait};
use super::{Assignment, PackError, Packer, Step, Switched};
use crate::ids::{Oid, Tid};

/// Bytes that are left to be copied while nothing is applied; that takes a few milliseconds.
const LAST_LEN: u64 = 512 * 1024;

/// How often more than that may have been applied while the rest was copied. After that more is
/// copied at once, and after twice as many rounds all there is.
const ROUNDS_MAX: u32 = 32;

/// Bytes that are left to be copied at once then.
const LAST_LEN_MAX: u64 = 8 << 20;

/// Blobs looked at in one slice.
const BLOBS_PER_SLICE: usize = 200;

/// See the module's page.
#[derive(Debug)]
pub struct FedPack {
    packer: Box<Packer>,
    work: Work,
    /// Up to here the old file can be copied.
    tail: u64,
    rounds: u32,
    /// The old file: its space is freed by who drops the last handle, which takes a while.
    old: Option<Arc<dyn File>>,
    has_switched: bool,
}

/// What is to be done next.
#[derive(Debug)]
enum Work {
    /// Copying.
    Copy,
    /// All up to there is copied: the applier has to say how it goes on.
    Level {
        pos: u64,
    },
    /// There was nothing to be dropped: perhaps it was switched before a crash, which then has left
    /// blobs. The applier has to lend its index.
    Nothing,
    /// Blobs are removed that were dropped.
    Sweep,
    /// Blobs are looked for that no record has.
    Look(Box<Orphans>),
    Done,
}

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FedStep {
    /// There is more to do.
    More,
    /// [`Applier::go_on_with_pack`](super::super::apply::Applier::go_on_with_pack) has to be
    /// called.
    Wait,
    /// It is all done.
    Done,
}

/// What an applier has to do for a pack that waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Turn {
    /// Say how far it may copy now.
    Extend,
    /// Let it have the last bit, and its place.
    Switch,
    /// Lend it the index.
    Lend,
    /// Nothing.
    Rest,
}

impl FedPack {
    /// All before `tail` is finished, and on stable storage.
    pub(in super::super) fn new(assignment: Assignment, tail: u64) -> Self {
        Self {
            packer: Packer::new(assignment),
            work: Work::Copy,
            tail,
            rounds: 0,
            old: None,
            has_switched: false,
        }
    }

    /// Does some of it: a slice of a few milliseconds.
    ///
    /// # Errors
    ///
    /// What was made is removed, and the data file is as it was; but for [`PackError::BlobsLeft`].
    pub fn step(&mut self) -> Result<FedStep, PackError> {
        self.old = None;
        let stepped = self.try_to_step();
        match stepped {
            Err(_) if !self.has_switched => self.packer.clean_up(),
            _ => {}
        }
        stepped
    }

    fn try_to_step(&mut self) -> Result<FedStep, PackError> {
        match &mut self.work {
            Work::Copy => match self.packer.slice(self.tail)? {
                Step::Level { pos } => self.work = Work::Level { pos },
                Step::Nothing => {
                    self.packer.clean_up();
                    self.work = match self.packer.blobs {
                        Some(_) => Work::Nothing,
                        None => Work::Done,
                    };
                }
                _ => {}
            },
            Work::Sweep => {
                if matches!(self.packer.sweep()?, Step::Swept) {
                    self.work = Work::Done;
                }
            }
            Work::Look(orphans) => {
                if orphans.step()? {
                    self.work = Work::Done;
                }
            }
            Work::Level { .. } | Work::Nothing | Work::Done => {}
        }
        Ok(match self.work {
            Work::Level { .. } | Work::Nothing => FedStep::Wait,
            Work::Done => FedStep::Done,
            Work::Copy | Work::Sweep | Work::Look(_) => FedStep::More,
        })
    }

    /// Removes what was made. The data file is as it was, unless it is packed already.
    pub fn give_up(mut self) {
        if !self.has_switched {
            self.packer.clean_up();
        }
    }

    /// Whether there is a new file: there may have been nothing to be dropped.
    pub const fn has_switched(&self) -> bool {
        self.has_switched
    }

    /// Whether it is about this file, still or by now.
    pub(in super::super) fn is_of(&self, file: &Arc<dyn File>) -> bool {
        Arc::ptr_eq(&self.packer.file, file)
    }

    /// What it waits for, if all is on stable storage up to `tail`.
    pub(in super::super) fn turn(&self, tail: u64) -> Turn {
        match self.work {
            Work::Level { pos } => {
                let last_len = match self.rounds {
                    ..ROUNDS_MAX => LAST_LEN,
                    rounds if rounds < 2 * ROUNDS_MAX => LAST_LEN_MAX,
                    _ => u64::MAX,
                };
                match tail - pos <= last_len {
                    true => Turn::Switch,
                    false => Turn::Extend,
                }
            }
            Work::Nothing => Turn::Lend,
            Work::Copy | Work::Sweep | Work::Look(_) | Work::Done => Turn::Rest,
        }
    }

    /// More is on stable storage.
    pub(in super::super) fn extend(&mut self, tail: u64) {
        self.rounds += 1;
        self.tail = tail;
        self.work = Work::Copy;
    }

    /// Gives the new file the name of the old one, with all up to `tail`, behind which nothing
    /// finished is. The old one comes back with the next step, on whatever thread that is.
    ///
    /// # Errors
    ///
    /// What was made is removed, and the old file is as it was; but its index file may be gone.
    pub(in super::super) fn switch(
        &mut self,
        tail: u64,
        old: Arc<dyn File>,
    ) -> Result<Switched, PackError> {
        let switched = self.packer.switch(tail);
        if switched.is_err() {
            self.packer.clean_up();
        } else {
            self.old = Some(old);
            self.has_switched = true;
            self.work = Work::Sweep;
        }
        switched
    }

    /// Lends it the index of the file, which ends at `tail`.
    pub(in super::super) fn lend(&mut self, index: Index, tail: u64) {
        let until = self.packer.until;
        self.work = match &self.packer.blobs {
            None => Work::Done,
            Some(directory) => Work::Look(Box::new(Orphans {
                disk: self.packer.disk.clone(),
                directory: directory.clone(),
                file: self.packer.file.clone(),
                index,
                tail,
                until,
                after: None,
            })),
        };
    }
}

/// Looks for blobs of revisions that were packed away by somebody who did not come to removing
/// them.
#[derive(Debug)]
struct Orphans {
    disk: Arc<dyn Disk>,
    directory: BlobDirectory,
    file: Arc<dyn File>,
    index: Index,
    tail: u64,
    /// Of later ones there may be some whose transaction is about to be written.
    until: Tid,
    after: Option<(Oid, Tid)>,
}

impl Orphans {
    /// Whether that was all.
    fn step(&mut self) -> Result<bool, PackError> {
        let left = |error: io::Error| PackError::BlobsLeft(error);
        let found = self
            .directory
            .list(&*self.disk, self.after, BLOBS_PER_SLICE);
        let found = found.map_err(left)?;
        let Some(last) = found.last() else {
            return Ok(true);
        };
        self.after = Some(*last);
        for (oid, tid) in found {
            if tid <= self.until && !self.has_record(oid, tid)? {
                log::info!("{}: removed: {oid} {tid}", self.directory.base().display());
                let path = self.directory.file(oid, tid);
                self.disk.discard(&path).map_err(left)?;
            }
        }
        Ok(false)
    }

    fn has_record(&self, oid: Oid, tid: Tid) -> Result<bool, PackError> {
        let Some(pos) = self.index.get(oid) else {
            return Ok(false);
        };
        let reader = Reader {
            file: &*self.file,
            wait: Wait::Yes,
            tail: self.tail,
        };
        let found = reader.find(pos, oid, tid).map_err(PackError::Read)?;
        Ok(found.is_some())
    }
}
