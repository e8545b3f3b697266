//! What a copy of the database consists of, as the node says that has it: text in the form of the
//! files of the state, with a checksum.

use std::collections::BTreeMap;

use super::files::{Settled, escape, unescape};
use crate::entry::Point;
use crate::ids::{Digest, DiskId, HistoryId, Tid};
use crate::replica::settings::{Settings, StorageName};
use crate::storage::format::POS_END;
use crate::storage::journal::EpochRow;
use crate::storage::journal::state::{State, Words, put_line, put_point, put_row};

/// What a copy consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose disk it is taken from.
    pub(super) of: DiskId,
    pub(super) history: HistoryId,
    pub(super) newest_only: bool,
    /// The last entry that is in it, and what is settled as of it.
    pub(super) settled: Settled,
    /// By the names of their storages. Their numbers count from zero in this order.
    pub(super) files: BTreeMap<StorageName, CopiedFile>,
    pub(super) epochs: Vec<EpochRow>,
}

/// A data file of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopiedFile {
    pub(super) len: u64,
    /// Another number for each file that this disk has had for it: what has been copied of one is
    /// no beginning of another.
    pub(super) origin: u64,
    pub(super) has_blobs: bool,
}

impl State for Manifest {
    const NAME: &'static str = "manifest";

    fn write(&self, text: &mut String) {
        put_line(text, format_args!("history {}", self.history));
        if self.newest_only {
            put_line(text, NEWEST_ONLY);
        }
        self.settled.write(text);
        for (name, file) in &self.files {
            let CopiedFile { len, origin, .. } = file;
            let blobs = if file.has_blobs { BLOBS } else { NO_BLOBS };
            put_line(
                text,
                format_args!("file {} {len} {origin} {blobs}", escape(name)),
            );
        }
        self.epochs.iter().for_each(|row| put_row(text, row));
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        let history = HistoryId::from_hex(words.after("history")?)?;
        let newest_only = words.peek() == Some(NEWEST_ONLY);
        if newest_only {
            words.next();
        }
        let settled = Settled::parse(words)?;
        let mut files = BTreeMap::new();
        while words.peek() == Some("file") {
            let name = unescape(words.after("file")?)?;
            let (len, origin) = (words.number()?, words.number()?);
            let has_blobs = match words.next()? {
                BLOBS => true,
                NO_BLOBS => false,
                _ => return None,
            };
            let file = CopiedFile {
                len: (len <= POS_END).then_some(len)?,
                origin,
                has_blobs,
            };
            files.insert(name, file);
        }
        let mut epochs = Vec::new();
        while words.peek().is_some() {
            epochs.push(words.row()?);
        }
        files.keys().eq(settled.tids.keys()).then_some(())?;
        Some(Self {
            of: NOBODY,
            history,
            newest_only,
            settled,
            files,
            epochs,
        })
    }
}

/// Until it is known whose it is.
const NOBODY: DiskId = DiskId([0; 16]);

const NEWEST_ONLY: &str = "newest-only";
const BLOBS: &str = "blobs";
const NO_BLOBS: &str = "no-blobs";

impl Manifest {
    /// What is settled as of its last entry.
    pub const fn settings(&self) -> &Settings {
        &self.settled.settings
    }

    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        State::encode(self, self.of).into_bytes()
    }

    /// What another node has sent; `None` if that is no manifest, as a whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (manifest, of) = <Self as State>::decode(bytes)?;
        Some(Self { of, ..manifest })
    }

    /// Names the copy where it is supplied. Two that have the same name are the same, so that one
    /// may be asked for by it also when the node that has it was started anew.
    pub fn id(&self) -> u64 {
        let Digest(digest) = crate::entry::sha256(&[&self.encode()]);
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        u64::from_be_bytes(id)
    }

    /// The lineage of the data.
    pub const fn history(&self) -> HistoryId {
        self.history
    }

    /// The last entry that is in it.
    pub const fn point(&self) -> Point {
        self.settled.point
    }

    /// Whether it is without old revisions.
    pub const fn is_newest_only(&self) -> bool {
        self.newest_only
    }

    /// The storages whose data files are in it. Their numbers count from zero in this order.
    pub fn storages(&self) -> impl Iterator<Item = &StorageName> {
        self.files.keys()
    }

    /// Bytes of one of its data files.
    pub fn len_of(&self, storage: &str) -> u64 {
        self.files.get(storage).map_or(0, |file| file.len)
    }

    /// The last transaction of a storage.
    pub fn last_tid(&self, storage: &str) -> Tid {
        let tid = self.settled.tids.get(storage);
        tid.copied().unwrap_or_default()
    }

    /// Up to here transactions may lack what those of another node have: packs go that far, be they
    /// done or only ordered, or old revisions were not copied.
    pub fn thinned_through(&self, storage: &str) -> Tid {
        let packs = &self.settled.settings.packs;
        let packed = packs.get(storage).map_or(Tid::ZERO, |pack| pack.tid);
        packed.max(self.settled.history_from)
    }

    /// Bytes of its data files.
    pub fn len(&self) -> u64 {
        let lens = self.files.values().map(|file| file.len);
        lens.fold(0, u64::saturating_add)
    }

    /// Whether there are no data files: it is that of an arbiter.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// How far a copy has come that is being made: `copy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partial {
    /// Whose disk it is taken from.
    pub(super) of: DiskId,
    pub(super) history: HistoryId,
    pub(super) point: Point,
    pub(super) newest_only: bool,
    pub(super) files: BTreeMap<StorageName, PartialFile>,
}

/// A data file of such a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartialFile {
    /// See [`CopiedFile::origin`].
    pub(super) origin: u64,
    /// Bytes of it that are on stable storage.
    pub(super) done: u64,
}

impl Partial {
    /// Nothing of it.
    pub(super) fn begin(manifest: &Manifest) -> Self {
        let files = manifest.files.iter().map(|(name, file)| {
            let origin = file.origin;
            (name.clone(), PartialFile { origin, done: 0 })
        });
        Self {
            of: manifest.of,
            history: manifest.history,
            point: manifest.point(),
            newest_only: manifest.newest_only,
            files: files.collect(),
        }
    }

    /// What of this may be used for another copy: a data file only grows, as long as it is the
    /// same. One without old revisions is made anew each time.
    pub(super) fn go_on(self, manifest: &Manifest) -> Self {
        let mut next = Self::begin(manifest);
        let is_same = self.point == next.point || !(self.newest_only || next.newest_only);
        if (self.of, self.newest_only) != (next.of, next.newest_only) || !is_same {
            return next;
        }
        for (name, file) in &mut next.files {
            let known = self.files.get(name).filter(|it| it.origin == file.origin);
            let len = manifest.files.get(name).map_or(0, |file| file.len);
            if let Some(known) = known.filter(|it| it.done <= len) {
                *file = *known;
            }
        }
        next
    }
}

impl State for Partial {
    const NAME: &'static str = "copy";

    fn write(&self, text: &mut String) {
        put_line(text, format_args!("from {}", self.of));
        put_line(text, format_args!("history {}", self.history));
        put_point(text, "point", &self.point);
        if self.newest_only {
            put_line(text, NEWEST_ONLY);
        }
        for (name, PartialFile { origin, done }) in &self.files {
            put_line(text, format_args!("file {} {origin} {done}", escape(name)));
        }
    }

    fn parse(words: &mut Words<'_>) -> Option<Self> {
        let of = DiskId::from_hex(words.after("from")?)?;
        let history = HistoryId::from_hex(words.after("history")?)?;
        (words.next()? == "point").then_some(())?;
        let point = words.point()?;
        let newest_only = words.peek() == Some(NEWEST_ONLY);
        if newest_only {
            words.next();
        }
        let mut files = BTreeMap::new();
        while words.peek().is_some() {
            let name = unescape(words.after("file")?)?;
            let (origin, done) = (words.number()?, words.number()?);
            files.insert(name, PartialFile { origin, done });
        }
        Some(Self {
            of,
            history,
            point,
            newest_only,
            files,
        })
    }
}
