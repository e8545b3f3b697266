//! Whether a data file is sound: each transaction and record fits, pointers lead where they should,
//! references lead to objects, the index is right, and blobs have their files.
//!
//! The file is read from its beginning to its end, by who can wait; the storage goes on meanwhile.
//! In memory are a second index, as it is found on the way, and the oids of objects that do not
//! exist any more. Damage does not end it: it goes on behind the transaction that has it, if the
//! next one can be found from the end of the file, but then the index is not compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use super::blob::is_blob_record;
use super::blob::layout::BlobDirectory;
use super::disk::{Disk, File, OpenMode};
use super::error::{Damage, Fault, ReadError};
use super::format::{FIRST_TXN_POS, Status};
use super::index::Index;
use super::iterate::{Backwards, Record, Transaction, Transactions};
use super::read::{Reader, Wait};
use super::references::references;
use crate::ids::{Oid, Tid};

/// A data file that nobody cuts, up to its end as of some moment.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The file.
    pub file: &'a Arc<dyn File>,
    /// Behind its last transaction.
    pub tail: u64,
    /// As who serves it knows it.
    pub index: &'a Index,
    /// Where its blobs are, if they are kept: with the disk that has them.
    pub blobs: Option<(&'a BlobDirectory, &'a dyn Disk)>,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Transactions, records, and what they say of each other.
    Structure,
    /// What objects refer to.
    References,
    /// Where the current record of each object is.
    Index,
    /// The files of blobs.
    Blobs,
}

impl Check {
    /// Its name, for people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Structure => "structure",
            Self::References => "references",
            Self::Index => "index",
            Self::Blobs => "blobs",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// Of which transaction, if that is known.
    pub tid: Option<Tid>,
    /// Of which object, if it is of one.
    pub oid: Option<Oid>,
    /// What is wrong.
    pub text: String,
}

/// Findings that are named, of each check; the others are counted.
pub const NAMED_MAX: usize = 10;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Transactions that were read
    pub transactions: u64,
    /// Records that were read
    pub records: u64,
    /// Objects that exist
    pub objects: u64,
    /// References of current records
    pub references: u64,
    /// Files of blobs that are there
    pub blobs: u64,
    /// How often each check found something.
    pub counts: BTreeMap<Check, u64>,
    /// The first of these, [`NAMED_MAX`] of each check.
    pub findings: Vec<Finding>,
}

impl Verified {
    fn find(&mut self, check: Check, tid: Option<Tid>, oid: Option<Oid>, text: String) {
        let count = self.counts.entry(check).or_default();
        *count += 1;
        if *count <= NAMED_MAX as u64 {
            let finding = Finding {
                check,
                tid,
                oid,
                text,
            };
            self.findings.push(finding);
        }
    }
}

/// Verifies a data file. `pace` is told how many more bytes were read, waits if that is too fast,
/// and says whether to go on. `None` if it did not.
///
/// # Errors
///
/// The disk cannot be read: that is no finding, as nobody knows what stands there.
pub fn verify(
    subject: &Subject<'_>,
    pace: &mut dyn FnMut(u64) -> bool,
) -> io::Result<Option<Verified>> {
    let mut pass = Pass {
        subject,
        found: Verified::default(),
        index: Index::new(),
        deleted: BTreeSet::new(),
        last_tid: Tid::ZERO,
        has_gap: false,
        entered: Vec::new(),
        oids: Vec::new(),
    };
    let mut txns = Transactions::from_pos(subject.file.clone(), FIRST_TXN_POS, subject.tail);
    let mut pos = FIRST_TXN_POS;
    while let Some(txn) = txns.next() {
        let read = match txn {
            Ok(txn) => {
                let (tid, end) = (txn.header.tid, txn.end());
                pass.transaction(&mut txns, &txn)
                    .map(|()| end)
                    .map_err(|error| (Some(tid), Some(end), error))
            }
            Err(error) => Err((None, None, error)),
        };
        let next = match read {
            Ok(end) => end,
            Err((tid, end, error)) => {
                pass.damage(tid, error)?;
                let end = match end {
                    Some(end) => Some(end),
                    None => pass.next_behind(pos)?,
                };
                let Some(end) = end else { break };
                txns.seek(end);
                end
            }
        };
        if !pace(next.saturating_sub(pos)) {
            return Ok(None);
        }
        pos = next;
    }
    if !pass.has_gap {
        pass.check_index();
    }
    if !pass.check_deleted(pace)? {
        return Ok(None);
    }
    pass.found.objects = (pass.index.len() - pass.deleted.len().min(pass.index.len())) as u64;
    Ok(Some(pass.found))
}

/// The way through the file.
struct Pass<'a> {
    subject: &'a Subject<'a>,
    found: Verified,
    /// As it is found.
    index: Index,
    /// Objects whose last record says that they do not exist any more. They are in the index.
    deleted: BTreeSet<Oid>,
    last_tid: Tid,
    /// Records were not seen, so that `index` is not right.
    has_gap: bool,
    /// Room for the records of one transaction, and for the references of one record.
    entered: Vec<(Oid, u64)>,
    oids: Vec<Oid>,
}

impl Pass<'_> {
    fn reader(&self) -> Reader<'_> {
        Reader {
            file: &**self.subject.file,
            wait: Wait::Yes,
            tail: self.subject.tail,
        }
    }

    /// A transaction. An error ends it, and not the pass.
    fn transaction(&mut self, txns: &mut Transactions, txn: &Transaction) -> Result<(), ReadError> {
        let tid = txn.header.tid;
        self.found.transactions += 1;
        if tid <= self.last_tid {
            let (found, last) = (tid, self.last_tid);
            let fault = Fault::TidOrder { found, last };
            let damage = Damage {
                pos: txn.pos,
                fault,
            };
            self.found
                .find(Check::Structure, Some(tid), None, damage.to_string());
        }
        self.last_tid = self.last_tid.max(tid);
        if let Status::Other(found) = txn.header.status {
            let fault = Fault::UnknownStatus { found };
            let damage = Damage {
                pos: txn.pos,
                fault,
            };
            self.found
                .find(Check::Structure, Some(tid), None, damage.to_string());
        }
        if txn.header.status == Status::Undone {
            return Ok(());
        }
        let mut entered = std::mem::take(&mut self.entered);
        entered.clear();
        let mut pos = txn.records_pos();
        let read = loop {
            let Some(record) = txns.record(txn, pos) else {
                break Ok(());
            };
            match record {
                Ok(record) => {
                    pos = record.end();
                    entered.push((record.header.oid, record.pos));
                    match self.record(txns, txn, &record) {
                        // This one only: the next one is found by its length.
                        Err(ReadError::Damaged(damage)) => {
                            let oid = Some(record.header.oid);
                            let text = damage.to_string();
                            self.found.find(Check::Structure, Some(tid), oid, text);
                        }
                        Err(error) => break Err(error),
                        Ok(()) => {}
                    }
                }
                Err(error) => break Err(error),
            }
        };
        // Only now: the records of a transaction have those of earlier ones in front of them.
        for (oid, pos) in entered.drain(..) {
            self.index.insert(oid, pos);
        }
        self.entered = entered;
        read
    }

    fn record(
        &mut self,
        txns: &mut Transactions,
        txn: &Transaction,
        record: &Record,
    ) -> Result<(), ReadError> {
        self.found.records += 1;
        let (oid, tid) = (record.header.oid, txn.header.tid);
        if record.header.tid != tid {
            let found = record.header.tid;
            let text = format!("its record at {} is of transaction {found}", record.pos);
            self.found
                .find(Check::Structure, Some(tid), Some(oid), text);
        }
        self.check_prev(txn, record);
        if record.back == Some(0) {
            self.deleted.insert(oid);
            return Ok(());
        }
        self.deleted.remove(&oid);
        let data = match record.back {
            None => txns.records(txn).data(record)?.unwrap_or_default(),
            Some(back) if back >= txn.pos => {
                let fault = Fault::Pointer { found: back };
                let pos = record.pos;
                return Err(Damage { pos, fault }.into());
            }
            Some(_) => {
                let data = self.reader().data_at(record.pos, oid)?;
                data.unwrap_or_default()
            }
        };
        if is_blob_record(&data) {
            self.check_blob(oid, tid)?;
        }
        self.check_references(record, tid, &data);
        Ok(())
    }

    /// The record in front of this one of the same object. Files that were packed by others may
    /// name another one than we would.
    fn check_prev(&mut self, txn: &Transaction, record: &Record) {
        let (prev, oid) = (record.header.prev, record.header.oid);
        if prev == 0 || self.index.get(oid) == Some(prev) {
            return;
        }
        let wrong = match prev < txn.pos {
            true => self.reader().header(prev, oid).err(),
            false => {
                let fault = Fault::Pointer { found: prev };
                let pos = record.pos;
                Some(Damage { pos, fault }.into())
            }
        };
        if let Some(error) = wrong {
            let text = format!("its earlier record, by that at {}: {error}", record.pos);
            let tid = Some(txn.header.tid);
            self.found.find(Check::Structure, tid, Some(oid), text);
        }
    }

    fn check_blob(&mut self, oid: Oid, tid: Tid) -> io::Result<()> {
        let Some((directory, disk)) = self.subject.blobs else {
            return Ok(());
        };
        let path = directory.file(oid, tid);
        match disk.open(&path, OpenMode::ReadRegular) {
            Ok(_) => self.found.blobs += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{} is missing", path.display());
                self.found.find(Check::Blobs, Some(tid), Some(oid), text);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// That a record can be read, and, if it is the current one, that what it refers to is there.
    fn check_references(&mut self, record: &Record, tid: Tid, data: &[u8]) {
        let oid = record.header.oid;
        let mut oids = std::mem::take(&mut self.oids);
        oids.clear();
        if let Err(error) = references(data, &mut oids) {
            let text = format!("its record at {}: {error}", record.pos);
            self.found
                .find(Check::References, Some(tid), Some(oid), text);
        } else if self.subject.index.get(oid) == Some(record.pos) {
            self.found.references += oids.len() as u64;
            for referred in &oids {
                if self.subject.index.get(*referred).is_none() {
                    self.dangling(oid, tid, *referred);
                }
            }
        }
        self.oids = oids;
    }

    fn dangling(&mut self, oid: Oid, tid: Tid, referred: Oid) {
        let text = format!("it refers to {referred}, which does not exist");
        self.found
            .find(Check::References, Some(tid), Some(oid), text);
    }

    /// Whether the index is that of the file.
    fn check_index(&mut self) {
        let theirs = self.subject.index;
        let mut wrong = Vec::new();
        for (oid, pos) in self.index.iter() {
            if theirs.get(oid) != Some(pos) {
                wrong.push((oid, theirs.get(oid), Some(pos)));
            }
            if wrong.len() > WRONG_MAX {
                break;
            }
        }
        for (oid, pos) in theirs.iter() {
            if wrong.len() > WRONG_MAX {
                break;
            }
            if self.index.get(oid).is_none() {
                wrong.push((oid, Some(pos), None));
            }
        }
        for (oid, found, expected) in wrong {
            let shown = |pos: Option<u64>| pos.map_or("nowhere".to_owned(), |pos| pos.to_string());
            let text = format!("{} (expected {})", shown(found), shown(expected));
            self.found.find(Check::Index, None, Some(oid), text);
        }
    }

    /// References to objects that do not exist any more. Where they are from is not known, so what
    /// may have them is read again; `false` if that is not to be.
    fn check_deleted(&mut self, pace: &mut dyn FnMut(u64) -> bool) -> io::Result<bool> {
        if self.deleted.is_empty() {
            return Ok(true);
        }
        let subject = self.subject;
        let deleted = std::mem::take(&mut self.deleted);
        let mut txns = Transactions::from_pos(subject.file.clone(), FIRST_TXN_POS, subject.tail);
        // What is damaged was found before.
        while let Some(Ok(txn)) = txns.next() {
            let mut pos = txn.records_pos();
            while let Some(Ok(record)) = txns.record(&txn, pos) {
                pos = record.end();
                let oid = record.header.oid;
                if subject.index.get(oid) != Some(record.pos) || deleted.contains(&oid) {
                    continue;
                }
                let Ok(Some(data)) = self.reader().data_at(record.pos, oid) else {
                    continue;
                };
                let mut oids = std::mem::take(&mut self.oids);
                oids.clear();
                if references(&data, &mut oids).is_ok() {
                    for referred in oids.iter().filter(|oid| deleted.contains(oid)) {
                        self.dangling(oid, txn.header.tid, *referred);
                    }
                }
                self.oids = oids;
            }
            if !pace(txn.end() - txn.pos) {
                return Ok(false);
            }
        }
        self.deleted = deleted;
        Ok(true)
    }

    fn damage(&mut self, tid: Option<Tid>, error: ReadError) -> io::Result<()> {
        let text = match error {
            ReadError::Io(error) => return Err(error),
            error => error.to_string(),
        };
        let text = match tid {
            Some(_) => text,
            None => format!("{text}, behind transaction {}", self.last_tid),
        };
        self.has_gap = true;
        self.found.find(Check::Structure, tid, None, text);
        Ok(())
    }

    /// The first transaction behind `pos` that can be found from the end of the file.
    fn next_behind(&mut self, pos: u64) -> io::Result<Option<u64>> {
        let mut next = None;
        for txn in Backwards::new(&**self.subject.file, self.subject.tail) {
            match txn {
                Ok(txn) if txn.pos > pos => next = Some(txn.pos),
                Ok(_) => break,
                Err(ReadError::Io(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(next)
    }
}

/// Objects that the index has elsewhere: no more are looked for.
const WRONG_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::format::{DATA_HEADER_LEN, TXN_HEADER_LEN};
    use crate::storage::memory::MemoryDisk;
    use crate::storage::testing::Content::{self, Back, Data};
    use crate::storage::testing::{DataFile, TestDir};

    /// The record of an object of no class in particular that refers to others.
    fn record(refers: &[u64]) -> Vec<u8> {
        let mut record = b"cpersistent.mapping\nPersistentMapping\n.(".to_vec();
        for oid in refers {
            record.extend_from_slice(b"U\x08");
            record.extend_from_slice(&oid.to_be_bytes());
            record.extend_from_slice(b"Q");
        }
        record.extend_from_slice(b"t.");
        record
    }

    const BLOB: &[u8] = b"cZODB.blob\nBlob\n.N.";

    /// Objects 0 to 4; 4 is brought back to what it was by a pointer.
    fn sound() -> DataFile {
        let mut file = DataFile::new();
        let (root, leaf) = (record(&[1, 2]), record(&[]));
        file.txn(
            10,
            Status::Finished,
            "",
            &[(0, Data(&root)), (1, Data(&leaf))],
        );
        let four = file.txn(
            20,
            Status::Packed,
            "u",
            &[(2, Data(&record(&[4]))), (3, Data(BLOB)), (4, Data(&leaf))],
        );
        file.txn(30, Status::Finished, "", &[(4, Data(&record(&[0])))]);
        file.txn(40, Status::Finished, "", &[(4, Back(four[2]))]);
        file
    }

    fn verified(file: &DataFile) -> Verified {
        verified_with(file, None)
    }

    fn verified_with(file: &DataFile, blobs: Option<(&BlobDirectory, &dyn Disk)>) -> Verified {
        let (disk, path) = (MemoryDisk::new(), std::path::Path::new("Data.fs"));
        disk.replace(path, &[&file.bytes]).unwrap();
        let saved = disk.open(path, OpenMode::Read).unwrap();
        let mut index = Index::new();
        for (oid, pos) in &file.current {
            index.insert(Oid(*oid), *pos);
        }
        let subject = Subject {
            file: &saved,
            tail: file.end(),
            index: &index,
            blobs,
        };
        let mut len = FIRST_TXN_POS;
        let found = verify(&subject, &mut |more| {
            len += more;
            true
        });
        let found = found.unwrap().unwrap();
        if found.counts.is_empty() {
            assert!(len >= file.end(), "{len}");
        }
        if file.end() > FIRST_TXN_POS {
            assert_eq!(verify(&subject, &mut |_| false).unwrap(), None);
        }
        found
    }

    fn texts(found: &Verified, check: Check) -> Vec<(Option<u64>, String)> {
        let of_it = found.findings.iter().filter(|it| it.check == check);
        of_it
            .map(|it| (it.tid.map(|tid| tid.0), it.text.clone()))
            .collect()
    }

    #[test]
    fn a_sound_file_has_no_findings() {
        let found = verified(&sound());
        let expected = Verified {
            transactions: 4,
            records: 7,
            objects: 5,
            references: 3,
            ..Verified::default()
        };
        assert_eq!(found, expected);
        assert_eq!(verified(&DataFile::new()), Verified::default());
    }

    /// Each byte of the file in turn is another one. What nobody can know alone is what a text is,
    /// or a status, or data that can still be read: there other nodes are needed.
    #[test]
    fn a_byte_that_was_changed_is_found_unless_it_is_data() {
        let file = sound();
        let directory = TestDir::new();
        let saved = file.save(&directory.path("Data.fs"));
        let mut free = BTreeSet::new();
        let mut txns = Transactions::from_pos(saved, FIRST_TXN_POS, file.end());
        while let Some(txn) = txns.next().transpose().unwrap() {
            free.extend(txn.pos + 16..txn.pos + 17);
            free.extend(txn.pos + TXN_HEADER_LEN as u64..txn.records_pos());
            for record in txns.records(&txn).map(Result::unwrap) {
                if record.back.is_none() {
                    free.extend(record.pos + DATA_HEADER_LEN as u64..record.end());
                }
            }
        }
        let mut found_in_data = 0;
        for at in FIRST_TXN_POS..file.end() {
            let mut damaged = DataFile {
                bytes: file.bytes.clone(),
                current: file.current.clone(),
            };
            damaged.bytes[usize::try_from(at).unwrap()] ^= 0x40;
            let is_found = !verified(&damaged).counts.is_empty();
            assert!(is_found || free.contains(&at), "{at}");
            found_in_data += usize::from(is_found && free.contains(&at));
        }
        assert!(found_in_data > 50, "{found_in_data}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_transaction_and_the_rest_is_read() {
        // The length of the second transaction.
        let mut file = sound();
        let second = usize::try_from(file.current[&1]).unwrap();
        let second = file.bytes[second..]
            .windows(8)
            .position(|it| it == 20_u64.to_be_bytes())
            .unwrap()
            + second;
        file.bytes[second + 15] ^= 1;
        let found = verified(&file);
        let structure = texts(&found, Check::Structure);
        assert!(
            structure[0]
                .1
                .contains("behind transaction 000000000000000a"),
            "{structure:?}"
        );
        assert_eq!(found.transactions, 3);
        assert_eq!(texts(&found, Check::Index), []);

        // A record says that it is of another transaction.
        let mut file = sound();
        let at = usize::try_from(file.current[&2]).unwrap();
        file.bytes[at + 15] ^= 1;
        let structure = texts(&verified(&file), Check::Structure);
        assert_eq!(structure.len(), 1);
        assert_eq!(structure[0].0, Some(20));

        // Transactions out of order.
        let mut file = sound();
        file.txn(35, Status::Finished, "", &[]);
        let structure = texts(&verified(&file), Check::Structure);
        assert!(
            structure[0].1.contains("is not newer than"),
            "{structure:?}"
        );
    }

    #[test]
    fn pointers_that_do_not_lead_back_to_the_object_are_found() {
        let good = sound();
        let wrong = |at: u64, to: u64| {
            let mut file = sound();
            let at = usize::try_from(at).unwrap();
            file.bytes[at..at + 8].copy_from_slice(&to.to_be_bytes());
            texts(&verified(&file), Check::Structure)
        };
        let last = good.current[&4];
        // The pointer to earlier data; that to the earlier record.
        for at in [last + 42, last + 16] {
            for to in [last, good.current[&2], good.current[&0] + 3, u64::MAX] {
                let found = wrong(at, to);
                assert_eq!(found.len(), 1, "{at} {to}");
                assert_eq!(found[0].0, Some(40));
            }
        }
    }

    #[test]
    fn references_to_what_does_not_exist_are_counted_and_the_first_are_named() {
        let mut file = sound();
        let many: Vec<u64> = (100..125).collect();
        file.txn(50, Status::Finished, "", &[(1, Data(&record(&many)))]);
        let found = verified(&file);
        assert_eq!(found.counts[&Check::References], 25);
        assert_eq!(texts(&found, Check::References).len(), NAMED_MAX);
        assert_eq!(found.findings[0].oid, Some(Oid(1)));
        assert!(found.findings[0].text.contains("0000000000000064"));
        // What only an old revision refers to may be gone.
        file.txn(60, Status::Finished, "", &[(1, Data(&record(&[])))]);
        assert!(verified(&file).counts.is_empty());
        // An object that was there and is not: 2 refers to 4, from in front of it.
        file.txn(70, Status::Finished, "", &[(4, Back(0))]);
        let found = verified(&file);
        assert_eq!(found.counts, [(Check::References, 1)].into());
        assert_eq!(found.findings[0].oid, Some(Oid(2)));
        assert_eq!(found.objects, 4);
        // What is no pickle may refer to anything.
        let mut file = sound();
        let content: Content<'_> = Data(b"cbanana");
        file.txn(50, Status::Finished, "", &[(1, content)]);
        assert_eq!(verified(&file).counts, [(Check::References, 1)].into());
    }

    #[test]
    fn an_index_that_is_not_that_of_the_file_is_found() {
        let mut file = sound();
        let four = file.current[&4];
        file.current.insert(4, file.current[&2]);
        file.current.insert(9, 4);
        file.current.remove(&3);
        let found = texts(&verified(&file), Check::Index);
        let texts: Vec<&str> = found.iter().map(|(_, text)| &text[..]).collect();
        let moved = format!("{} (expected {four})", file.current[&2]);
        assert_eq!(texts.len(), 3);
        assert!(texts.contains(&&moved[..]), "{texts:?}");
        assert!(texts.contains(&"4 (expected nowhere)"), "{texts:?}");
    }

    #[test]
    fn a_record_of_a_blob_has_its_file() {
        let disk = MemoryDisk::new();
        let base = std::path::Path::new("blobs");
        let blobs = BlobDirectory::open(&disk, base, true).unwrap();
        let file = sound();
        let found = verified_with(&file, Some((&blobs, &disk)));
        assert_eq!(found.counts, [(Check::Blobs, 1)].into());
        assert_eq!(
            (found.findings[0].tid, found.findings[0].oid),
            (Some(Tid(20)), Some(Oid(3)))
        );
        let path = blobs.file(Oid(3), Tid(20));
        disk.create_directories(path.parent().unwrap()).unwrap();
        disk.open(&path, OpenMode::CreateNew).unwrap();
        let found = verified_with(&file, Some((&blobs, &disk)));
        assert_eq!((found.blobs, found.counts), (1, [].into()));
    }
}
