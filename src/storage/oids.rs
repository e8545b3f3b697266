//! Which oids may be handed out.
//!
//! A client takes oids in advance and stores objects under them whenever it likes; the server may
//! have been restarted in between. An oid that is handed out twice ends in a failed commit, or in
//! one object where two were meant. ZODB begins after the largest oid *stored* and so repeats all
//! that were handed out and not yet used. We never do: no oid is handed out unless a *ceiling*
//! above it is on stable storage, in a small file beside the data file, and after a restart we
//! begin at the ceiling. A restart skips at most [`OID_RESERVE`] oids of 2^64.
//!
//! The file is two lines of text: a version with the ceiling in hexadecimal, and the same number
//! with all bits inverted, as its checksum.
//!
//! ```text
//! standby-oids 1 ceiling 0000000000001f40
//! inverted ffffffffffffe0bf
//! ```

use std::io;
use std::ops::Range;
use std::path::Path;

use log::warn;

use super::disk::{Disk, with_suffix};
use super::error::StorageError;
use crate::ids::Oid;
use crate::limits::OID_RESERVE;

/// What is appended to the name of the data file.
pub const SUFFIX: &str = ".oids";

/// Hands out oids below the ceiling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidAllocator {
    /// The oid that is handed out next. `1 <= next`
    next: u64,
    /// What the file says. `next` is above it only if a client stored an oid of its own making,
    /// or at the start; then nothing is handed out until the ceiling has been raised.
    ceiling: u64,
}

impl OidAllocator {
    /// After opening: `max_oid` is the largest in the data file, `ceiling` what [`load`] said.
    pub fn new(max_oid: Option<Oid>, ceiling: Option<Oid>) -> Self {
        let after_max = max_oid.map_or(1, |oid| oid.0.saturating_add(1));
        let next = match ceiling {
            Some(ceiling) if ceiling.0 >= after_max => ceiling.0,
            // A new file has no clients yet.
            None if max_oid.is_none() => after_max,
            // ZEO has served the file, or serves it in turns with us, and its clients may hold
            // oids; or the file has lost its ceiling.
            _ => after_max.saturating_add(OID_RESERVE),
        };
        Self {
            next,
            ceiling: ceiling.map_or(0, |ceiling| ceiling.0),
        }
    }

    /// The oid that is handed out next.
    pub const fn next(&self) -> Oid {
        Oid(self.next)
    }

    /// The next `count` oids; `None` if the ceiling has to be raised first. If that does not help
    /// either, all oids are used up.
    pub fn allocate(&mut self, count: u64) -> Option<Range<u64>> {
        let end = self.next.checked_add(count)?;
        if end > self.ceiling {
            return None;
        }
        let allocated = self.next..end;
        self.next = end;
        Some(allocated)
    }

    /// Whether it is time to raise the ceiling: some are left, so that nobody has to wait for it.
    pub const fn is_low(&self) -> bool {
        self.ceiling.saturating_sub(self.next) < OID_RESERVE / 2
    }

    /// Whether there are any oids above the ceiling.
    pub const fn can_raise(&self) -> bool {
        self.raise().0 > self.ceiling
    }

    /// The ceiling to be written with [`save`] if so many oids are to be left out at the next
    /// start, half of them at least; `None` if it is high enough.
    pub fn clear(&self, count: u64) -> Option<Oid> {
        let is_low = self.ceiling.saturating_sub(self.next) < count / 2;
        is_low.then(|| Oid(self.next.saturating_add(count)))
    }

    /// The ceiling to be written with [`save`] now. When it is on stable storage tell so with
    /// [`Self::raised`].
    pub const fn raise(&self) -> Oid {
        Oid(self.next.saturating_add(OID_RESERVE))
    }

    /// `ceiling` is on stable storage.
    pub fn raised(&mut self, ceiling: Oid) {
        self.ceiling = self.ceiling.max(ceiling.0);
    }

    /// A client stored an object under this oid, which nobody may be given any more.
    pub fn stored(&mut self, oid: Oid) {
        self.next = self.next.max(oid.0.saturating_add(1));
    }
}

/// The ceiling of the data file at `data_path`; `None` if there is none, or no readable one.
pub fn load(disk: &dyn Disk, data_path: &Path) -> Result<Option<Oid>, StorageError> {
    let path = with_suffix(data_path, SUFFIX);
    let text = match disk.read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("read", &path)(error)),
    };
    let ceiling = decode(&text);
    if ceiling.is_none() {
        warn!("{}: damaged, skipping oids instead", path.display());
    }
    Ok(ceiling)
}

/// Writes the ceiling; it is on stable storage when this returns.
pub fn save(disk: &dyn Disk, data_path: &Path, ceiling: Oid) -> Result<(), StorageError> {
    let path = with_suffix(data_path, SUFFIX);
    disk.replace(&path, &[encode(ceiling).as_bytes()])
        .map_err(StorageError::io("write", &path))
}

fn encode(ceiling: Oid) -> String {
    let inverted = Oid(!ceiling.0);
    format!("standby-oids 1 ceiling {ceiling}\ninverted {inverted}\n")
}

fn decode(text: &[u8]) -> Option<Oid> {
    let text = str::from_utf8(text).ok()?;
    let number = text.strip_prefix("standby-oids 1 ceiling ")?.get(..16)?;
    let ceiling = Oid(u64::from_str_radix(number, 16).ok()?);
    // Which also checks the second line, and that nothing follows.
    (text == encode(ceiling)).then_some(ceiling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::disk::OsDisk;
    use crate::storage::testing::TestDir;

    #[test]
    fn a_start_leaves_out_what_was_kept_clear() {
        let mut oids = OidAllocator::new(Some(Oid(10)), Some(Oid(12)));
        let ceiling = oids.clear(1000).unwrap();
        oids.raised(ceiling);
        assert_eq!(oids.clear(1000), None);
        // Half of it is used by what is stored.
        oids.stored(Oid(600));
        let ceiling = oids.clear(1000).unwrap();
        oids.raised(ceiling);
        assert!(OidAllocator::new(Some(Oid(600)), Some(ceiling)).next() >= Oid(1600));
    }

    #[test]
    fn nothing_is_handed_out_above_the_ceiling() {
        let mut oids = OidAllocator::new(None, None);
        assert_eq!(oids.allocate(1), None);
        oids.raised(oids.raise());
        assert_eq!(oids.allocate(100), Some(1..101));
        assert_eq!(oids.allocate(OID_RESERVE - 100), Some(101..OID_RESERVE + 1));
        assert_eq!(oids.allocate(1), None);
        oids.raised(oids.raise());
        assert_eq!(oids.allocate(1), Some(OID_RESERVE + 1..OID_RESERVE + 2));
    }

    #[test]
    fn a_restart_begins_at_the_ceiling_or_above_the_file() {
        let start = |max_oid: Option<u64>, ceiling: Option<u64>| {
            let mut oids = OidAllocator::new(max_oid.map(Oid), ceiling.map(Oid));
            oids.raised(oids.raise());
            oids.allocate(1).unwrap().start
        };
        assert_eq!(start(None, None), 1);
        assert_eq!(start(None, Some(500)), 500);
        assert_eq!(start(Some(7), Some(500)), 500);
        assert_eq!(start(Some(500), Some(7)), 501 + OID_RESERVE);
        assert_eq!(start(Some(500), None), 501 + OID_RESERVE);
    }

    #[test]
    fn a_stored_oid_is_not_handed_out() {
        let mut oids = OidAllocator::new(None, None);
        oids.raised(oids.raise());
        oids.stored(Oid(41));
        oids.stored(Oid(5));
        assert_eq!(oids.allocate(1), Some(42..43));
        oids.stored(Oid(1 << 40));
        assert_eq!(oids.allocate(1), None);
        oids.raised(oids.raise());
        assert_eq!(oids.allocate(1), Some((1 << 40) + 1..(1 << 40) + 2));
    }

    #[test]
    fn the_last_oids_are_refused_without_overflow() {
        let mut oids = OidAllocator::new(Some(Oid(u64::MAX)), None);
        oids.stored(Oid(u64::MAX));
        oids.raised(oids.raise());
        assert_eq!(oids.allocate(1), None);
    }

    #[test]
    fn a_ceiling_is_loaded_as_saved_and_damage_is_noticed() {
        let dir = TestDir::new();
        let disk = OsDisk::default();
        let data_path = dir.path("Data.fs");
        assert_eq!(load(&disk, &data_path).unwrap(), None);
        save(&disk, &data_path, Oid(8000)).unwrap();
        assert_eq!(load(&disk, &data_path).unwrap(), Some(Oid(8000)));
        let path = dir.path("Data.fs.oids");
        let good = disk.read(&path).unwrap();
        let text = "standby-oids 1 ceiling 0000000000001f40\ninverted ffffffffffffe0bf\n";
        assert_eq!(good, text.as_bytes());
        disk.replace(&path, &[b"garbage"]).unwrap();
        assert_eq!(load(&disk, &data_path).unwrap(), None);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(decode(&bad), None);
            assert_eq!(decode(&good[..at]), None);
        }
    }
}
