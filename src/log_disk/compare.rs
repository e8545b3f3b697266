//! Whether two nodes have the same in their data files and blobs, found by digests: neither sends
//! its data to the other.
//!
//! Ranges of transactions are compared one after the other. One that differs is halved until a
//! single transaction is left, which is named. What one node has packed and the other has not, or
//! what one of them has not copied, is no difference: from the first transaction on that has other
//! *objects* up to where packs may have gone nothing can be compared. Other *content* of the same
//! objects is a difference at any age, as no pack changes that.

use std::cmp::Ordering;
use std::io;

use super::CopySource;
use crate::ids::{Digest, Oid, Tid};
use crate::limits::{DIGEST_LEN, PEER_BLOBS_MAX};
use crate::storage::digest::RangeDigest;
use crate::storage::transfer::BlobAt;

/// Where digests come from: from a [`Snapshot`](super::Snapshot) on this machine, or from that of
/// another node. All calls may wait.
pub trait DigestSource: CopySource {
    /// The digest of the transactions from the first tid to in front of the second, or of those
    /// that fit into so many bytes: see [`range`](crate::storage::digest::range).
    ///
    /// # Errors
    ///
    /// They cannot be read, or it cannot be had.
    fn digest(&self, storage: u32, range: (Tid, Tid), len_max: u64) -> io::Result<RangeDigest>;

    /// The digest of so many bytes of a blob, or of fewer where it ends.
    ///
    /// # Errors
    ///
    /// As of [`Self::digest`]; [`io::ErrorKind::NotFound`] if it is not there.
    fn digest_blob(
        &self,
        storage: u32,
        at: (Oid, Tid),
        pos: u64,
        len: u64,
    ) -> io::Result<BlobDigest>;
}

/// Of a piece of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobDigest {
    /// Bytes of it.
    pub len: u64,
    /// SHA-256 of them.
    pub digest: Digest,
}

/// What came of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The last transaction that was compared.
    pub through: Tid,
    /// Transactions that are the same.
    pub transactions: u64,
    /// Blobs that are the same.
    pub blobs: u64,
    /// What is not, the first ones, in order.
    pub differences: Vec<Difference>,
    /// There were so many that it was ended.
    pub is_cut: bool,
    /// What could not be compared, as one of both may have packed it: from the first of these to
    /// the second, both included.
    pub thinned: Option<(Tid, Tid)>,
}

/// Something that two nodes have not alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The transaction
    pub tid: Tid,
    /// The object, if it is a blob.
    pub oid: Option<Oid>,
    /// What is not the same: the first node is "here", the second "there".
    pub text: &'static str,
}

/// Differences that are named; then it ends.
const NAMED_MAX: usize = 10;

/// Compares a storage of two nodes. `pace` is told how many more bytes were read on each side, at
/// most; it waits if that is too fast, and says whether to go on. `None` if it did not.
///
/// # Errors
///
/// One of them cannot be read, or does not have it; for people.
pub fn compare(
    here: &dyn DigestSource,
    there: &dyn DigestSource,
    storage: &str,
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Comparison>, String> {
    let (one, other) = (here.manifest(), there.manifest());
    if one.history() != other.history() {
        return Err("it has data of another history".to_owned());
    }
    let number = |source: &dyn DigestSource| {
        let names = source.manifest().storages();
        let number = names.take_while(|name| *name != storage).count();
        u32::try_from(number).unwrap_or(u32::MAX)
    };
    let mut way = Way {
        here: (here, number(here)),
        there: (there, number(there)),
        thinned_through: one
            .thinned_through(storage)
            .max(other.thinned_through(storage)),
        found: Comparison {
            through: one.last_tid(storage).min(other.last_tid(storage)),
            ..Comparison::default()
        },
    };
    let ended = way.transactions(pace).and_then(|goes_on| match goes_on {
        true => way.blobs(pace),
        false => Ok(false),
    });
    match ended {
        Ok(true) => Ok(Some(way.found)),
        Ok(false) => Ok(None),
        Err((side, error)) => Err(format!("{side}: {error}")),
    }
}

/// Which side an error is from.
type SideError = (&'static str, io::Error);

struct Way<'a> {
    here: (&'a dyn DigestSource, u32),
    there: (&'a dyn DigestSource, u32),
    thinned_through: Tid,
    found: Comparison,
}

impl Way<'_> {
    fn digests(
        &self,
        range: (Tid, Tid),
        len_max: u64,
    ) -> Result<(RangeDigest, RangeDigest), SideError> {
        let (source, number) = self.there;
        let theirs = source.digest(number, range, len_max);
        let theirs = theirs.map_err(|error| ("there", error))?;
        // The other one might say anything.
        let next = theirs.next.min(range.1).max(range.0.next());
        let theirs = RangeDigest { next, ..theirs };
        let (source, number) = self.here;
        let ours = source.digest(number, (range.0, next), u64::MAX);
        Ok((ours.map_err(|error| ("here", error))?, theirs))
    }

    /// Whether it went to the end.
    fn transactions(&mut self, pace: &mut dyn FnMut(u64) -> bool) -> Result<bool, SideError> {
        let end = self.found.through.next();
        let mut from = Tid::ZERO;
        while from < end && !self.found.is_cut {
            let (ours, theirs) = self.digests((from, end), DIGEST_LEN)?;
            let next = theirs.next;
            if ours.is_same(&theirs) {
                self.found.transactions += ours.count;
                from = next;
            } else {
                from = self.narrow(from, next)?;
            }
            if !pace(DIGEST_LEN) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Names the first transaction of a range that differs. Returns where to go on.
    fn narrow(&mut self, from: Tid, to: Tid) -> Result<Tid, SideError> {
        // Before `low` all is the same, and before `high` something is not.
        let (mut low, mut high) = (from, to);
        while high.0 - low.0 > 1 {
            let middle = Tid(low.0 + (high.0 - low.0) / 2);
            let (ours, theirs) = self.digests((low, middle), u64::MAX)?;
            if ours.is_same(&theirs) {
                self.found.transactions += ours.count;
                low = theirs.next;
            } else {
                high = theirs.next;
            }
        }
        let (ours, theirs) = self.digests((low, high), u64::MAX)?;
        let has_same_objects = (ours.count, ours.shape) == (theirs.count, theirs.shape);
        if !has_same_objects && low <= self.thinned_through {
            let through = self.thinned_through.min(self.found.through);
            self.found.thinned = Some((low, through));
            return Ok(self.thinned_through.next());
        }
        let text = match ours.count.cmp(&theirs.count) {
            Ordering::Less => "it is there, and not here",
            Ordering::Greater => "it is here, and not there",
            Ordering::Equal if has_same_objects => "its content differs",
            Ordering::Equal => "it has other objects there",
        };
        self.differs(low, None, text);
        Ok(high)
    }

    fn differs(&mut self, tid: Tid, oid: Option<Oid>, text: &'static str) {
        let differences = &mut self.found.differences;
        if differences.len() < NAMED_MAX {
            differences.push(Difference { tid, oid, text });
        } else {
            self.found.is_cut = true;
        }
    }

    /// As [`Self::transactions`], of the files of blobs.
    fn blobs(&mut self, pace: &mut dyn FnMut(u64) -> bool) -> Result<bool, SideError> {
        let (mut ours, mut theirs) = (List::new(self.here), List::new(self.there));
        while !self.found.is_cut {
            let mine = ours.first().map_err(|error| ("here", error))?;
            let other = theirs.first().map_err(|error| ("there", error))?;
            let place = |blob: &BlobAt| (blob.oid, blob.tid);
            let order = match (&mine, &other) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => place(one).cmp(&place(other)),
            };
            match (order, mine, other) {
                (Ordering::Less, Some(blob), _) => {
                    ours.next();
                    self.alone(&blob, "the file of its blob is here, and not there");
                }
                (Ordering::Greater, _, Some(blob)) => {
                    theirs.next();
                    self.alone(&blob, "the file of its blob is there, and not here");
                }
                (_, Some(one), Some(other)) => {
                    ours.next();
                    theirs.next();
                    if one.tid <= self.found.through && !self.blob(&one, &other, pace)? {
                        return Ok(false);
                    }
                }
                _ => break,
            }
        }
        Ok(true)
    }

    /// A blob that only one of both has.
    fn alone(&mut self, blob: &BlobAt, text: &'static str) {
        if blob.tid > self.found.through {
            return;
        }
        let is_thinned = |(from, through): (Tid, Tid)| (from..=through).contains(&blob.tid);
        if self.found.thinned.is_some_and(is_thinned) {
            return;
        }
        self.differs(blob.tid, Some(blob.oid), text);
    }

    fn blob(
        &mut self,
        one: &BlobAt,
        other: &BlobAt,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, SideError> {
        let (oid, tid) = (one.oid, one.tid);
        if one.len != other.len {
            self.differs(
                tid,
                Some(oid),
                "the file of its blob has another length there",
            );
            return Ok(true);
        }
        let mut pos = 0;
        while pos < one.len {
            let piece = |(source, number): (&dyn DigestSource, u32)| {
                match source.digest_blob(number, (oid, tid), pos, DIGEST_LEN) {
                    Ok(digest) => Ok(Some(digest)),
                    // Packed away meanwhile: all who have packed lack it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            };
            let ours = piece(self.here).map_err(|error| ("here", error))?;
            let theirs = piece(self.there).map_err(|error| ("there", error))?;
            let (Some(ours), Some(theirs)) = (ours, theirs) else {
                return Ok(true);
            };
            if ours != theirs || ours.len == 0 {
                self.differs(
                    tid,
                    Some(oid),
                    "the file of its blob has another content there",
                );
                return Ok(true);
            }
            pos += ours.len;
            if !pace(ours.len) {
                return Ok(false);
            }
        }
        self.found.blobs += 1;
        Ok(true)
    }
}

/// The blobs of a storage, in order.
struct List<'a> {
    source: &'a dyn DigestSource,
    number: u32,
    /// Those that are known and still to come, the first one last.
    known: Vec<BlobAt>,
    last: Option<(Oid, Tid)>,
    is_over: bool,
}

impl<'a> List<'a> {
    const fn new((source, number): (&'a dyn DigestSource, u32)) -> Self {
        Self {
            source,
            number,
            known: Vec::new(),
            last: None,
            is_over: false,
        }
    }

    fn first(&mut self) -> io::Result<Option<BlobAt>> {
        if self.known.is_empty() && !self.is_over {
            let count = PEER_BLOBS_MAX as usize;
            self.known = self.source.blobs(self.number, self.last, count)?;
            let last = self.known.last().map(|blob| (blob.oid, blob.tid));
            // What does not go on would never end.
            if last <= self.last {
                self.known.clear();
            }
            self.is_over = self.known.is_empty();
            self.last = last.or(self.last);
            self.known.reverse();
        }
        Ok(self.known.last().copied())
    }

    fn next(&mut self) {
        self.known.pop();
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::ids::Seq;
    use crate::log_disk::tests::{Node, blob, transfer};
    use crate::log_disk::{Change, Kind, Snapshot};
    use crate::storage::disk::OpenMode;

    /// A node with these transactions, each with what it has in it.
    fn node(stored: &[(u64, u8)]) -> Node {
        let mut node = Node::found(&["main", "other"]);
        for (tid, data) in stored {
            node.store("main", *tid, &[*data; 600]);
        }
        node.apply();
        node
    }

    fn snapshot(node: &mut Node) -> Snapshot {
        node.log.snapshot().unwrap()
    }

    fn compared(one: &mut Node, other: &mut Node) -> Comparison {
        let (one, other) = (snapshot(one), snapshot(other));
        let all = |storage| compare(&one, &other, storage, &mut |_| true).unwrap();
        assert_eq!(all("other"), Some(Comparison::default()));
        let stopped = compare(&one, &other, "main", &mut |_| false).unwrap();
        assert_eq!(stopped, None);
        let backwards = compare(&other, &one, "main", &mut |_| true).unwrap();
        let found = all("main").unwrap();
        let tids = |it: &Comparison| -> Vec<_> {
            let differences = it.differences.iter();
            differences.map(|it| (it.tid, it.oid)).collect()
        };
        let backwards = backwards.unwrap();
        assert_eq!(tids(&found), tids(&backwards));
        assert_eq!(found.thinned, backwards.thinned);
        found
    }

    const STORED: [(u64, u8); 6] = [(10, 1), (20, 2), (30, 3), (40, 4), (50, 5), (60, 6)];

    /// These transactions were packed as of a time, or are to be.
    fn order_pack(node: &mut Node, tid: u64) {
        let change = Change::Pack {
            storage: "main".to_owned(),
            tid: Tid(tid),
        };
        node.append(Kind::Pack, 0, change.encode());
        node.apply();
    }

    #[test]
    fn nodes_with_the_same_have_no_differences_up_to_where_both_are() {
        let mut one = node(&STORED);
        let mut other = node(&STORED[..4]);
        let found = compared(&mut one, &mut other);
        let expected = Comparison {
            through: Tid(40),
            transactions: 4,
            ..Comparison::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_first_transaction_that_differs_is_named() {
        for wrong in 0..5 {
            let mut stored = STORED;
            stored[wrong].1 ^= 1;
            let found = compared(&mut node(&STORED), &mut node(&stored));
            let expected = Difference {
                tid: Tid(STORED[wrong].0),
                oid: None,
                text: "its content differs",
            };
            assert_eq!(found.differences, [expected]);
            assert_eq!(found.transactions, 5);
        }
        // One is missing, in either of both.
        let less: Vec<_> = STORED.into_iter().filter(|(tid, _)| *tid != 30).collect();
        let found = compared(&mut node(&STORED), &mut node(&less));
        assert_eq!(found.differences[0].tid, Tid(30));
        assert_eq!(found.differences[0].text, "it is here, and not there");
        let found = compared(&mut node(&less), &mut node(&STORED));
        assert_eq!(found.differences[0].text, "it is there, and not here");
    }

    #[test]
    fn there_is_an_end_to_what_is_named() {
        let many = |data: u8| -> Vec<_> { (1..=30).map(|tid| (tid * 10, data)).collect() };
        let found = compared(&mut node(&many(1)), &mut node(&many(2)));
        assert_eq!(found.differences.len(), NAMED_MAX);
        assert!(found.is_cut);
        let few: Vec<_> = (1..=10).map(|tid| (tid * 10, 1)).collect();
        let other: Vec<_> = (1..=10).map(|tid| (tid * 10, 2)).collect();
        assert!(!compared(&mut node(&few), &mut node(&other)).is_cut);
    }

    #[test]
    fn what_only_one_of_both_has_packed_is_no_difference() {
        let (mut one, packed) = (node(&STORED), [(30, 3), (40, 4), (50, 5), (60, 6)]);
        // Without an order to pack that would be one.
        let found = compared(&mut one, &mut node(&packed));
        assert_eq!((found.differences.len(), found.thinned), (2, None));
        order_pack(&mut one, 35);
        let found = compared(&mut one, &mut node(&packed));
        let expected = Comparison {
            through: Tid(60),
            transactions: 3,
            thinned: Some((Tid(10), Tid(35))),
            ..Comparison::default()
        };
        assert_eq!(found, expected);
        // Both have packed, and are compared as a whole.
        let mut both = [node(&packed), node(&packed)];
        both.iter_mut().for_each(|node| order_pack(node, 35));
        let [one, other] = &mut both;
        assert_eq!(compared(one, other).transactions, 4);
        // What a pack does not do is a difference at any age, and so is what is later.
        let mut damaged = [(10, 1), (20, 9), (30, 3), (40, 4), (50, 5), (60, 7)];
        let mut one = node(&STORED);
        order_pack(&mut one, 35);
        let found = compared(&mut one, &mut node(&damaged));
        let tids: Vec<Tid> = found.differences.iter().map(|it| it.tid).collect();
        assert_eq!((tids, found.thinned), (vec![Tid(20), Tid(60)], None));
        damaged[1] = (21, 2);
        let found = compared(&mut one, &mut node(&damaged));
        assert_eq!(found.thinned, Some((Tid(20), Tid(35))));
        assert_eq!(found.differences[0].tid, Tid(60));
    }

    fn with_blobs(blobs: &[(u64, &'static [u8])]) -> Node {
        let mut node = node(&STORED[..2]);
        for (tid, content) in blobs {
            let (name, content) = blob(content);
            node.log.put_blob(name, &content).unwrap();
            let body = transfer("main", b"a blob", &[name]);
            node.append(Kind::Transaction, *tid, body);
        }
        node.apply();
        node
    }

    #[test]
    fn blobs_are_compared_by_what_is_in_them() {
        let blobs: [(u64, &[u8]); 3] = [(30, b"one"), (40, b"two"), (50, b"three")];
        let mut one = with_blobs(&blobs);
        let found = compared(&mut one, &mut with_blobs(&blobs));
        assert_eq!((found.transactions, found.blobs), (5, 3));
        let mut other = with_blobs(&blobs);
        let path = |node: &Node, tid| {
            let followed = &node.log.follow()["main"];
            followed.blobs.as_ref().unwrap().file(Oid(1), Tid(tid))
        };
        let (two, three) = (path(&other, 40), path(&other, 50));
        let file = other.disk.open(&two, OpenMode::Write).unwrap();
        file.write_at(&mut [IoSlice::new(b"2")], 0).unwrap();
        other.disk.discard(&three).unwrap();
        let found = compared(&mut one, &mut other);
        let named: Vec<_> = found
            .differences
            .iter()
            .map(|it| (it.tid, it.text))
            .collect();
        let expected = [
            (Tid(40), "the file of its blob has another content there"),
            (Tid(50), "the file of its blob is here, and not there"),
        ];
        assert_eq!((named, found.blobs), (expected.to_vec(), 1));
        assert_eq!(found.differences[0].oid, Some(Oid(1)));
        file.write_at(&mut [IoSlice::new(b"2")], 10).unwrap();
        let found = compared(&mut one, &mut other);
        let text = "the file of its blob has another length there";
        assert_eq!(found.differences[0].text, text);
    }

    #[test]
    fn another_history_and_damage_are_errors() {
        let mut one = node(&STORED);
        let mut other = node(&STORED);
        let (mine, theirs) = (snapshot(&mut one), snapshot(&mut other));
        let path = other.directories.storages["main"].data.clone();
        let file = other.disk.open(&path, OpenMode::Write).unwrap();
        let end = theirs.manifest().len_of("main");
        file.write_at(&mut [IoSlice::new(b"banana")], end - 6)
            .unwrap();
        let error = compare(&mine, &theirs, "main", &mut |_| true).unwrap_err();
        assert!(error.contains("there: "), "{error}");
        assert!(error.contains("length behind the transaction"), "{error}");
        let error = compare(&theirs, &mine, "main", &mut |_| true).unwrap_err();
        assert!(error.contains("here: "), "{error}");
        assert_eq!(mine.point().seq, Seq(6));
        let stranger = Node::found_as("main", 2).log.snapshot().unwrap();
        let error = compare(&mine, &stranger, "main", &mut |_| true).unwrap_err();
        assert!(error.contains("another history"), "{error}");
    }

    #[test]
    fn a_backup_has_what_was_there_then_and_leaves_nothing_when_it_fails() {
        use std::path::Path;

        use crate::log_disk::{BackedUp, BackupError};
        use crate::storage::verify::{Subject, verify};

        let mut node = with_blobs(&[(30, b"one"), (40, b"two")]);
        let snapshot = snapshot(&mut node);
        let disk = node.disk.clone();
        let (to, blobs) = (Path::new("backup.fs"), Path::new("backup-blobs"));
        let back_up =
            |tid, blobs, goes_on: bool| snapshot.back_up(0, Tid(tid), to, blobs, &mut |_| goes_on);
        assert!(matches!(back_up(35, Some(blobs), false), Ok(None)));
        let mut calls = 0;
        let stopped = snapshot.back_up(0, Tid(35), to, Some(blobs), &mut |_| {
            calls += 1;
            calls < 2
        });
        assert!(matches!(stopped, Ok(None)) && calls == 2);
        for path in [to, Path::new("backup.fs.part"), &blobs.join(".layout")] {
            assert!(disk.read(path).is_err(), "{}", path.display());
        }
        let done = back_up(35, Some(blobs), true).unwrap().unwrap();
        let whole = disk.read(&node.directories.storages["main"].data).unwrap();
        let copied = disk.read(to).unwrap();
        let expected = BackedUp {
            last: Tid(30),
            len: copied.len() as u64,
            blobs: 1,
        };
        assert_eq!(done, expected);
        assert!(copied.len() < whole.len() && whole.starts_with(&copied));
        let directory = &node.log.follow()["main"].blobs.clone().unwrap();
        let from = directory.file(Oid(1), Tid(30));
        let below = from.strip_prefix(directory.base()).unwrap();
        assert_eq!(disk.read(&blobs.join(below)).unwrap(), b"one");
        // It is sound by itself.
        let file = disk.open(to, OpenMode::Read).unwrap();
        let opened = crate::storage::recover::open(
            &*disk,
            to,
            crate::storage::recover::Access::ReadOnly,
            &mut |_| (),
        );
        let opened = opened.unwrap();
        let subject = Subject {
            file: &file,
            tail: opened.tail,
            index: &opened.index,
            blobs: None,
        };
        let found = verify(&subject, &mut |_| true).unwrap().unwrap();
        assert_eq!(found.transactions, 3);
        // Nothing is overwritten.
        for tid in [35, 40] {
            let error = back_up(tid, None, true).unwrap_err();
            assert!(matches!(error, BackupError::Exists(_)), "{error}");
        }
        assert_eq!(disk.read(to).unwrap(), copied);
        order_pack(&mut node, 30);
        let snapshot = super::tests::snapshot(&mut node);
        let early = snapshot.back_up(0, Tid(20), Path::new("b"), None, &mut |_| true);
        assert!(
            matches!(early, Err(BackupError::Packed(Tid(20)))),
            "{early:?}"
        );
        let late = snapshot.back_up(0, Tid(30), Path::new("b"), None, &mut |_| true);
        assert!(late.unwrap().is_some());
    }
}
