//! The data file is packed: what of that happens between two transactions.

use std::sync::Arc;

use super::{Applier, DataLock};
use crate::ids::Tid;
use crate::storage::disk::File;
use crate::storage::error::StorageError;
use crate::storage::format::FIRST_TXN_POS;
use crate::storage::pack::fed::{FedPack, Turn};
use crate::storage::pack::{Assignment, PackError, PackOptions, Switched};
use crate::storage::references::references;

/// How it goes on with a pack.
#[derive(Debug)]
pub enum GoneOn {
    /// It has to be stepped on.
    Steps,
    /// The same, and the packed file is in the place of the other: positions are new ones, and who
    /// follows has to be told.
    Switched,
    /// It has come to nothing. The data file is as it was.
    Ended(PackError),
}

impl Applier {
    /// Begins to pack to a time. `through` is the last transaction in front of the order: see
    /// [`fed`](crate::storage::pack::fed). Steps are made elsewhere, while this goes on.
    ///
    /// # Errors
    ///
    /// As of [`Self::checkpoint`].
    pub fn begin_pack(
        &mut self,
        until: Tid,
        through: Tid,
        options: PackOptions,
    ) -> Result<FedPack, StorageError> {
        self.checkpoint()?;
        let assignment = Assignment {
            disk: self.disk.clone(),
            path: self.path.clone(),
            file: self.file.clone(),
            file_id: self.file_id,
            until: until.min(through),
            through: Some(through),
            options,
            references,
            blobs: self.blobs.clone(),
            directory_maker: self.maker.clone(),
        };
        Ok(FedPack::new(assignment, self.tail))
    }

    /// Does for a pack what it waits for. Takes some milliseconds at most.
    ///
    /// # Errors
    ///
    /// The file takes no more writes. What had been settled before is there, packed or not.
    pub fn go_on_with_pack(&mut self, pack: &mut FedPack) -> Result<GoneOn, StorageError> {
        self.checkpoint()?;
        if !self.is_file_of(pack) {
            return Ok(GoneOn::Ended(PackError::Replaced));
        }
        match pack.turn(self.tail) {
            Turn::Extend => pack.extend(self.tail),
            Turn::Lend => pack.lend(self.index.snapshot(), self.tail),
            Turn::Rest => {}
            Turn::Switch => {
                let gone_on = self.switch(pack);
                if let Err(error) = &gone_on {
                    self.failed = Some(error.to_string());
                }
                return gone_on;
            }
        }
        Ok(GoneOn::Steps)
    }

    fn switch(&mut self, pack: &mut FedPack) -> Result<GoneOn, StorageError> {
        // Who goes back to the old file some day finds one that was closed.
        let cut = self.file.set_len(self.tail);
        cut.map_err(StorageError::io("cut", &self.path))?;
        if self.allocated_end != u64::MAX {
            self.allocated_end = self.tail;
        }
        let switched = pack.switch(self.tail, self.file.clone());
        // The one that there was may be gone.
        self.index_saved = FIRST_TXN_POS;
        let gone_on = match switched {
            Ok(switched) => {
                self.take(switched)?;
                GoneOn::Switched
            }
            Err(error) => GoneOn::Ended(error),
        };
        self.put_stop()?;
        self.sync()?;
        Ok(gone_on)
    }

    /// Whether a pack is about the file that is written to.
    pub fn is_file_of(&self, pack: &FedPack) -> bool {
        pack.is_of(&self.file)
    }

    /// A pack has ended: the index of the new file is saved, so that the next start is a quick one.
    pub fn end_pack(&mut self, pack: &FedPack) -> Result<(), StorageError> {
        self.checkpoint()?;
        if pack.has_switched() && self.tail > self.index_saved {
            self.save_index();
        }
        Ok(())
    }

    /// From now on what is applied goes there.
    fn take(&mut self, switched: Switched) -> Result<(), StorageError> {
        let Switched {
            file,
            id,
            index,
            tail,
            synced,
        } = switched;
        // Else the old file may come back, without what is written to this.
        synced.map_err(StorageError::io("sync the directory of", &self.path))?;
        let lock: Arc<dyn File> = file.clone();
        self._data_lock = DataLock(lock);
        self.file = file;
        self.file_id = id;
        self.index = index;
        self.tail = tail;
        if self.allocated_end != u64::MAX {
            self.allocated_end = tail;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::entry::sha256;
    use crate::ids::Oid;
    use crate::storage::disk::{Disk, OsDisk};
    use crate::storage::format::Status;
    use crate::storage::iterate::Transactions;
    use crate::storage::memory::MemoryDisk;
    use crate::storage::pack::fed::FedStep;
    use crate::storage::read::{Reader, Wait};
    use crate::storage::recover::Access;
    use crate::storage::testing::{TestDir, object};
    use crate::storage::transfer::{BlobName, Record, Transfer};

    const DATA: &str = "Data.fs";
    const STAGED: &str = "journal";

    fn open(disk: &Arc<dyn Disk>) -> Applier {
        let access = Access::Applied;
        Applier::open(disk.clone(), Path::new(DATA), None, access, &mut |_| ()).unwrap()
    }

    fn fresh() -> Applier {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        open(&disk)
    }

    fn record(oid: u64, data: Vec<u8>) -> Record {
        Record {
            oid: Oid(oid),
            data: Some(data.into()),
            same_as: None,
        }
    }

    /// A record with the data that the object had in this transaction, as an undo writes it.
    fn back(oid: u64, data: Vec<u8>, same_as: u64) -> Record {
        Record {
            same_as: Some(Tid(same_as)),
            ..record(oid, data)
        }
    }

    fn transfer(records: Vec<Record>, blobs: Vec<BlobName>) -> Transfer {
        Transfer {
            storage: "1".to_owned(),
            status: b' ',
            user: Bytes::new(),
            description: Bytes::from_static(b"text"),
            extension: Bytes::new(),
            records,
            blobs,
        }
    }

    fn apply(applier: &mut Applier, tid: u64, records: Vec<Record>) {
        let transfer = transfer(records, Vec::new());
        applier
            .apply(Tid(tid), &transfer, Path::new(STAGED))
            .unwrap();
    }

    /// Packs, and calls `between` after each step.
    fn pack_with(
        applier: &mut Applier,
        until: u64,
        through: u64,
        between: &mut dyn FnMut(&mut Applier),
    ) -> Result<bool, PackError> {
        let options = PackOptions::default();
        let mut pack = applier
            .begin_pack(Tid(until), Tid(through), options)
            .unwrap();
        loop {
            match pack.step()? {
                FedStep::More => {}
                FedStep::Done => break,
                FedStep::Wait => {
                    if let GoneOn::Ended(error) = applier.go_on_with_pack(&mut pack).unwrap() {
                        return Err(error);
                    }
                }
            }
            between(applier);
        }
        assert!(applier.is_file_of(&pack));
        applier.end_pack(&pack).unwrap();
        Ok(pack.has_switched())
    }

    fn pack(applier: &mut Applier, until: u64, through: u64) -> bool {
        pack_with(applier, until, through, &mut |_| ()).unwrap()
    }

    type Contents = Vec<(u64, Status, Vec<(u64, Option<Bytes>)>)>;

    /// All that is in the file, whatever stands where.
    fn contents(applier: &mut Applier) -> Contents {
        applier.checkpoint().unwrap();
        let (file, tail) = applier.data_file();
        let reader = Reader {
            file: &*file,
            wait: Wait::Yes,
            tail,
        };
        let mut txns = Transactions::from_pos(file.clone(), FIRST_TXN_POS, tail);
        let mut found = Vec::new();
        while let Some(txn) = txns.next().transpose().unwrap() {
            let records: Vec<_> = txns.records(&txn).map(Result::unwrap).collect();
            let records = records.iter().map(|record| {
                let oid = record.header.oid;
                (oid.0, reader.data_at(record.pos, oid).unwrap())
            });
            let records: Vec<(u64, Option<Bytes>)> = records.collect();
            found.push((txn.header.tid.0, txn.header.status, records));
        }
        // The index leads to what the file says, and so does the way back from there.
        for (oid, pos) in applier.index.iter() {
            let last = found.iter().rev().find_map(|(tid, _, records)| {
                let record = records.iter().rev().find(|(it, _)| *it == oid.0)?;
                Some((Tid(*tid), record.1.clone()))
            });
            let there = (
                reader.record_tid(pos, oid).unwrap(),
                reader.data_at(pos, oid).unwrap(),
            );
            assert_eq!(Some(there), last, "{oid}");
            for (tid, _, records) in &found {
                let is_there = records.iter().any(|(it, _)| *it == oid.0);
                let is_found = reader.find(pos, oid, Tid(*tid)).unwrap().is_some();
                assert!(!is_there || is_found || *tid < 100, "{oid} {tid}");
            }
        }
        found
    }

    /// The root refers to 1, which refers to 2, and later to 3. 2 goes and comes back, and 4 was
    /// never of use.
    fn fill(applier: &mut Applier) {
        let root = object(&[1]);
        apply(applier, 10, vec![record(0, root), record(1, object(&[2]))]);
        apply(
            applier,
            20,
            vec![record(2, object(&[])), record(4, object(&[]))],
        );
        apply(
            applier,
            30,
            vec![record(1, object(&[3])), record(3, object(&[]))],
        );
        apply(applier, 40, vec![back(1, object(&[2]), 10)]);
        apply(applier, 50, vec![record(2, object(&[0]))]);
    }

    /// What comes behind the order of a pack to 50: among it undos of what is not kept.
    fn more(step: u64, applier: &mut Applier) {
        match step {
            0 => apply(applier, 100, vec![record(9, object(&[0, 0, 0, 0]))]),
            1 => apply(
                applier,
                110,
                vec![back(2, object(&[]), 20), record(8, object(&[]))],
            ),
            2 => apply(applier, 120, vec![back(9, object(&[0, 0, 0, 0]), 100)]),
            3 => apply(
                applier,
                130,
                vec![back(4, object(&[]), 20), back(8, object(&[]), 110)],
            ),
            4 => apply(
                applier,
                140,
                vec![back(2, object(&[]), 110), back(2, object(&[0]), 50)],
            ),
            5 => apply(applier, 150, vec![back(8, object(&[]), 130)]),
            _ => {}
        }
    }

    const MORE: u64 = 6;

    #[test]
    fn what_comes_behind_the_order_does_not_change_what_is_kept() {
        let mut first = fresh();
        fill(&mut first);
        assert!(pack(&mut first, 50, 50));
        (0..MORE).for_each(|step| more(step, &mut first));
        let expected = contents(&mut first);
        let kept: Vec<u64> = expected.iter().map(|(tid, ..)| *tid).collect();
        assert_eq!(kept, [10, 40, 50, 100, 110, 120, 130, 140, 150]);
        for before in 0..=MORE {
            // So much comes before it begins, and the rest before each of its steps.
            for every in 1..4 {
                let mut other = fresh();
                fill(&mut other);
                (0..before).for_each(|step| more(step, &mut other));
                let (mut next, mut steps) = (before, 0);
                let switched = pack_with(&mut other, 50, 50, &mut |applier| {
                    steps += 1;
                    if steps % every == 0 {
                        more(next, applier);
                        next += 1;
                    }
                });
                assert!(switched.unwrap());
                (next..MORE).for_each(|step| more(step, &mut other));
                assert_eq!(contents(&mut other), expected, "{before} {every}");
                // It is read as it is written.
                let disk = other.disk.clone();
                drop(other);
                assert_eq!(contents(&mut open(&disk)), expected);
            }
        }
    }

    #[test]
    fn a_pack_to_a_time_that_has_yet_to_come_ends_with_its_order() {
        let mut first = fresh();
        fill(&mut first);
        assert!(pack(&mut first, 1000, 50));
        more(0, &mut first);
        more(2, &mut first);
        let mut other = fresh();
        fill(&mut other);
        more(0, &mut other);
        more(2, &mut other);
        assert!(pack(&mut other, 1000, 50));
        assert_eq!(contents(&mut first), contents(&mut other));
        assert_eq!(first.last_tid(), Tid(120));
    }

    #[test]
    fn the_last_transaction_stays_though_nothing_is_left_of_it() {
        let mut applier = fresh();
        fill(&mut applier);
        apply(&mut applier, 60, vec![record(4, object(&[]))]);
        assert!(pack(&mut applier, 60, 60));
        let found = contents(&mut applier);
        assert_eq!(found.last(), Some(&(60, Status::Packed, Vec::new())));
        assert_eq!(applier.last_tid(), Tid(60));
        let disk = applier.disk.clone();
        drop(applier);
        let mut applier = open(&disk);
        assert_eq!(applier.last_tid(), Tid(60));
        // It is no reason to pack again.
        assert!(!pack(&mut applier, 60, 60));
        apply(&mut applier, 70, vec![record(4, object(&[]))]);
        assert!(pack(&mut applier, 70, 70));
        let found = contents(&mut applier);
        let tids: Vec<u64> = found.iter().map(|(tid, ..)| *tid).collect();
        assert_eq!(tids, [10, 40, 50, 70]);
    }

    #[test]
    fn a_pack_that_is_done_again_changes_nothing() {
        for behind in [false, true] {
            let mut applier = fresh();
            fill(&mut applier);
            assert!(pack(&mut applier, 40, 50));
            if behind {
                (0..MORE).for_each(|step| more(step, &mut applier));
            }
            let before = contents(&mut applier);
            assert!(!pack(&mut applier, 40, 50));
            assert_eq!(contents(&mut applier), before);
        }
    }

    #[test]
    fn a_pack_of_another_file_ends_as_soon_as_that_is_seen() {
        let mut applier = fresh();
        fill(&mut applier);
        let mut pack = applier
            .begin_pack(Tid(50), Tid(50), PackOptions::default())
            .unwrap();
        while pack.step().unwrap() != FedStep::Wait {}
        let mut other = fresh();
        fill(&mut other);
        let ended = other.go_on_with_pack(&mut pack).unwrap();
        assert!(matches!(ended, GoneOn::Ended(PackError::Replaced)));
        pack.give_up();
        let left = applier.disk.identify(Path::new("Data.fs.pack"));
        assert!(left.is_err(), "it is removed");
        assert!(super::tests::pack(&mut applier, 50, 50));
    }

    #[test]
    fn blobs_go_with_their_revisions_also_if_a_crash_came_in_between() {
        // After how many steps the process is killed; in the last round it is not.
        let mut is_done = false;
        let mut rounds = 0;
        while !is_done {
            let killed = rounds;
            rounds += 1;
            let dir = TestDir::new();
            let disk: Arc<dyn Disk> = Arc::new(OsDisk::default());
            let (data, blobs, staged) = (dir.path(DATA), dir.path("blobs"), dir.path("staged"));
            disk.create_directories(&staged).unwrap();
            let open = || {
                let access = Access::Applied;
                Applier::open(disk.clone(), &data, Some(&blobs), access, &mut |_| ()).unwrap()
            };
            let mut applier = open();
            apply(&mut applier, 10, vec![record(0, object(&[1, 2]))]);
            let store = |applier: &mut Applier, tid: u64, oid: u64| {
                let content = format!("{oid} {tid}").into_bytes();
                let name = BlobName {
                    oid: Oid(oid),
                    len: content.len() as u64,
                    digest: sha256(&[&content]),
                };
                let path = staged.join(name.digest.to_string());
                disk.replace(&path, &[&content]).unwrap();
                let blob = record(oid, b"cZODB.blob\nBlob\n.N.".to_vec());
                let transfer = transfer(vec![blob], vec![name]);
                applier.apply(Tid(tid), &transfer, &staged).unwrap();
            };
            for (tid, oid) in [(20, 1), (30, 2), (40, 1), (50, 3)] {
                store(&mut applier, tid, oid);
            }
            let options = PackOptions {
                gc: true,
                keep_old: killed % 2 == 0,
            };
            let mut pack = applier.begin_pack(Tid(50), Tid(50), options).unwrap();
            for _ in 0..killed {
                if pack.step().unwrap() == FedStep::Wait {
                    applier.go_on_with_pack(&mut pack).unwrap();
                    store(&mut applier, 60, 1);
                }
            }
            is_done = pack.step().is_ok_and(|step| step == FedStep::Done);
            drop((pack, applier));
            let mut applier = open();
            if applier.last_tid() < Tid(60) {
                store(&mut applier, 60, 1);
            }
            if !is_done {
                super::tests::pack(&mut applier, 50, 50);
            }
            let directory = applier.blobs().unwrap();
            let left = directory.list(&*disk, None, 100).unwrap();
            let expected = [(1, 40), (1, 60), (2, 30)].map(|(oid, tid)| (Oid(oid), Tid(tid)));
            assert_eq!(left, expected, "{killed}");
        }
        assert!(rounds > 5, "{rounds}");
    }
}
