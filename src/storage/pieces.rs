//! Data of large objects, in pieces.
//!
//! Those that are stored go to the staging file as they come. They get their place there at once;
//! the job that writes them follows. Two times
//! [`STAGED_PIECE_LEN`](crate::limits::STAGED_PIECE_LEN) is in memory at most: what is being
//! written, and what has come meanwhile. Those that are loaded are read as their client takes them
//! ([`LongData`]).

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::blob::Needs;
use super::disk::File;
use super::staging::{Base, Data, TxnId};
use super::{Event, FileStorage, Job};
use crate::ids::{Oid, Tid};
use crate::limits::LONG_READ_LEN;

impl FileStorage {
    /// Takes data of an object that [`Self::store_pieces`] or [`Self::restore_pieces`] is going to
    /// store; more are to come only when the transaction is not busy. They are dropped if the
    /// transaction takes no stores.
    pub fn add_piece(&mut self, txn: TxnId, piece: Bytes) {
        let staging = self.txns.get_mut(&txn).filter(|it| it.takes_records());
        if let Some(staging) = staging.filter(|it| it.broken.is_none()) {
            staging.add_piece(piece);
            self.spill(txn);
        }
    }

    /// As [`Self::store`], of data that have come in pieces: `len` bytes of them. `shown` are the
    /// first ones.
    #[must_use]
    pub fn store_pieces(
        &mut self,
        txn: TxnId,
        oid: Oid,
        serial: Option<Tid>,
        shown: &[u8],
        len: usize,
    ) -> bool {
        self.add_pieces(txn, oid, Base::Replaced(serial), (shown, Needs::Blob), len)
    }

    /// As [`Self::restore`], of data that have come in pieces: `len` bytes of them. `shown` are the
    /// first ones.
    #[must_use]
    pub fn restore_pieces(
        &mut self,
        txn: TxnId,
        oid: Oid,
        shown: &[u8],
        len: usize,
        same_data: Option<Tid>,
    ) -> bool {
        self.add_pieces(
            txn,
            oid,
            Base::Any { same_data },
            (shown, Needs::Nothing),
            len,
        )
    }

    /// What has come in pieces, and was not stored, will not be.
    pub fn forget_pieces(&mut self, txn: TxnId) {
        if let Some(staging) = self.txns.get_mut(&txn) {
            staging.take_pieces();
        }
    }

    fn add_pieces(
        &mut self,
        txn: TxnId,
        oid: Oid,
        base: Base,
        (shown, needs): (&[u8], Needs),
        len: usize,
    ) -> bool {
        self.note_blob(txn, oid, shown, needs);
        let Some(staging) = self.txns.get_mut(&txn).filter(|it| it.takes_records()) else {
            return false;
        };
        if staging.broken.is_some() {
            return true;
        }
        match staging.take_pieces() {
            Some(data @ Data::Staged { .. }) if data.len() == len => self.add(txn, oid, base, data),
            // It took no stores when they came.
            _ => false,
        }
    }

    /// Has written what should not be in memory any more.
    pub(super) fn spill(&mut self, id: TxnId) {
        if let Some(txn) = self.txns.get_mut(&id)
            && let Some((pos, data)) = txn.spill()
        {
            self.events.push_back(Event::Run(Job::Spill {
                txn: id,
                disk: self.disk.clone(),
                path: self.path.clone(),
                staging_file: txn.staging_file.clone(),
                pos,
                data,
            }));
        }
    }
}

/// Data of an object in the data file that are read piece by piece. They stay what they are,
/// whatever is committed or packed away meanwhile.
#[derive(Clone, Debug)]
pub struct LongData {
    file: Arc<dyn File>,
    pos: u64,
    left: u64,
}

impl LongData {
    pub(super) const fn new(file: Arc<dyn File>, pos: u64, len: u64) -> Self {
        Self {
            file,
            pos,
            left: len,
        }
    }

    /// Bytes that have not been read yet.
    pub fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// The next piece, [`LONG_READ_LEN`] bytes unless it is the last. Blocks.
    ///
    /// # Errors
    ///
    /// The disk does not read it.
    pub fn read(mut self) -> io::Result<(Self, Bytes)> {
        let mut piece = vec![0; self.left().min(LONG_READ_LEN)];
        if self.file.read_at(&mut piece, self.pos)? != piece.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pos += piece.len() as u64;
        self.left -= piece.len() as u64;
        Ok((self, Bytes::from(piece)))
    }
}

impl PartialEq for LongData {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && (self.pos, self.left) == (other.pos, other.left)
    }
}

impl Eq for LongData {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{STAGED_PIECE_LEN, STAGED_PIECES_MAX};
    use crate::storage::testing::{Rig, metadata, options};
    use crate::storage::{Done, Vote};

    fn data(len: usize) -> Bytes {
        (0..len).map(|n| (n * 7 / 3) as u8).collect()
    }

    /// Gives all of `data` to the transaction, as a client would.
    fn add(rig: &mut Rig, id: TxnId, data: &Bytes) -> usize {
        let mut waits = 0;
        for at in (0..data.len()).step_by(65_000) {
            rig.storage
                .add_piece(id, data.slice(at..data.len().min(at + 65_000)));
            rig.collect();
            assert!(rig.jobs.len() <= 1);
            if rig.storage.is_busy(id) {
                waits += 1;
                rig.settle();
            }
        }
        waits
    }

    #[test]
    fn data_in_pieces_are_stored_as_a_whole() {
        let mut rig = Rig::new(options());
        let id = rig.storage.begin(metadata());
        let long = data(5 * STAGED_PIECE_LEN + 17);
        for (oid, bytes) in [(1, long.clone()), (3, data(100))] {
            let short = Bytes::from_static(b"short");
            assert!(rig.storage.store(id, Oid(oid + 1), None, short));
            // One piece is written and one has come: then the client waits.
            let waits = add(&mut rig, id, &bytes);
            assert_eq!(waits, bytes.len() / (2 * STAGED_PIECE_LEN));
            assert!(
                rig.storage
                    .store_pieces(id, Oid(oid), None, &bytes[..9], bytes.len())
            );
            // Its last bytes are on their way, and the client's next calls wait for them.
            assert!(rig.storage.is_busy(id));
            rig.settle();
            assert!(!rig.storage.is_busy(id));
        }
        rig.end(id);
        assert!(rig.current(1).unwrap().0 == long);
        assert_eq!(rig.current(3).unwrap().0, data(100));
        assert_eq!(rig.current(2).unwrap().0, "short");
        assert_eq!(rig.current(4).unwrap().0, "short");
    }

    #[test]
    fn data_that_come_by_the_byte_do_not_pile_up() {
        let mut rig = Rig::new(options());
        let id = rig.storage.begin(metadata());
        let all = data(3 * STAGED_PIECES_MAX);
        for at in 0..all.len() {
            rig.storage
                .add_piece(id, Bytes::copy_from_slice(&all[at..=at]));
            rig.collect();
            let (written, come) = (at >= STAGED_PIECES_MAX - 1, 2 * STAGED_PIECES_MAX - 1);
            assert_eq!(rig.jobs.len(), usize::from(written), "{at}");
            assert_eq!(rig.storage.is_busy(id), at == come);
            if at == come {
                rig.jobs.clear();
                break;
            }
        }
    }

    #[test]
    fn what_is_not_stored_leaves_nothing_behind() {
        let mut rig = Rig::new(options());
        let id = rig.storage.begin(metadata());
        add(&mut rig, id, &data(3 * STAGED_PIECE_LEN + 5));
        rig.storage.forget_pieces(id);
        let kept = data(2 * STAGED_PIECE_LEN);
        add(&mut rig, id, &kept);
        assert!(rig.storage.store_pieces(id, Oid(1), None, b"", kept.len()));
        rig.settle();
        rig.end(id);
        assert!(rig.current(1).unwrap().0 == kept);
        assert_eq!(rig.storage.object_count(), 1);
    }

    #[test]
    fn pieces_that_came_too_late_are_not_stored() {
        let mut rig = Rig::new(options());
        let id = rig.begin(&[(1, 0, "one")]);
        assert!(matches!(
            rig.vote(id)[..],
            [crate::storage::Event::Voted(_, Vote::Granted)]
        ));
        rig.storage.add_piece(id, data(100));
        assert!(!rig.storage.store_pieces(id, Oid(2), None, b"", 100));
        rig.finish(id);
        rig.settle();
        assert_eq!(rig.storage.object_count(), 1);
    }

    #[test]
    fn a_full_disk_costs_the_transaction() {
        let mut rig = Rig::new(options());
        let id = rig.storage.begin(metadata());
        rig.storage.add_piece(id, data(STAGED_PIECE_LEN));
        rig.collect();
        let full = || Err(std::io::ErrorKind::StorageFull.into());
        rig.jobs.clear();
        let done = Done::Spilled {
            txn: id,
            result: full(),
        };
        rig.storage.on_done(done, rig.now);
        // The rest of the frame is taken all the same.
        rig.storage.add_piece(id, data(STAGED_PIECE_LEN));
        assert!(!rig.storage.is_busy(id));
        assert!(
            rig.storage
                .store_pieces(id, Oid(1), None, b"", 2 * STAGED_PIECE_LEN)
        );
        let events = rig.vote(id);
        let [.., crate::storage::Event::Voted(_, Vote::Refused(_))] = &events[..] else {
            panic!("{events:?}");
        };
        rig.commit(&[(1, 0, "one")]);
    }
}
