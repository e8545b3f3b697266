//! A large transaction on its way into the file: laid out by the worker that writes it, and
//! published by what that worker has prepared.
//!
//! A small one is laid out when it finishes (`batch`). With a million records that would take a
//! tenth of a second in which nobody is served, and their headers as much memory as the records.
//! Here headers and short data are gathered in a buffer as they are written; long data go from file
//! to file. Where the objects' former records are says a snapshot of the index: it is right for
//! those of the transaction, since these cannot change as long as it has the lock.

use std::io::{self, IoSlice};
use std::sync::{Arc, OnceLock};

use bytes::BufMut;

use super::disk::File;
use super::format::{DataHeader, Status, TxnHeader};
use super::index::{Change, Index};
use super::job::copy;
use super::recent::Changed;
use super::staging::{Data, Metadata, Record, TXN_TRAILER_LEN};
use super::window::Window;
use crate::ids::Oid;

/// Bytes that are gathered before they are written.
const GATHERED_LEN: usize = 1 << 20;

/// Data from this length on go their own way: from where they are into the file.
const LONG_LEN_MIN: usize = 64 * 1024;

/// A transaction with tid and place, and records that are yet to be laid out.
#[derive(Debug)]
pub(super) struct Layout {
    /// As it will be when it is finished.
    pub(super) header: TxnHeader,
    pub(super) metadata: Metadata,
    pub(super) records: Vec<Record>,
    pub(super) staging_file: Option<Arc<dyn File>>,
    /// As it was when the transaction finished.
    pub(super) index: Index,
    /// Where it begins.
    pub(super) start: u64,
    /// What comes of writing it.
    pub(super) laid_out: OnceLock<LaidOut>,
}

/// What is to be published.
#[derive(Debug)]
pub(super) struct LaidOut {
    pub(super) change: Change,
    /// In the order of the records.
    pub(super) oids: Arc<Vec<Oid>>,
    pub(super) changed: Changed,
    pub(super) max_oid: Option<Oid>,
}

impl Layout {
    /// Bytes that it takes in the file.
    pub(super) const fn len(&self) -> u64 {
        self.header.len + TXN_TRAILER_LEN as u64
    }

    /// Writes it at its place, unfinished, and prepares what is to be published. Blocks.
    pub(super) fn write(&self, file: &dyn File) -> io::Result<()> {
        let Self {
            header,
            metadata,
            start,
            ..
        } = self;
        let unfinished = TxnHeader {
            status: Status::Voted,
            ..*header
        };
        let mut out = Output::new(file, *start);
        let mut staged = self.staging_file.clone().map(Window::new);
        for text in [
            &unfinished.encode()[..],
            &metadata.user,
            &metadata.description,
            &metadata.extension,
        ] {
            out.put(text)?;
        }
        let mut positions = Vec::with_capacity(self.records.len());
        for record in &self.records {
            positions.push((record.oid, out.pos()));
            self.put(record, &mut out, staged.as_mut())?;
        }
        out.put(&header.len.to_be_bytes())?;
        out.flush()?;
        assert_eq!(
            out.pos(),
            start + self.len(),
            "a transaction has another length"
        );
        let oids: Vec<Oid> = positions.iter().map(|(oid, _)| *oid).collect();
        positions.sort_unstable();
        // Writing it twice cannot be; the first would be as good.
        let _ = self.laid_out.set(LaidOut {
            change: self.index.prepare(&positions),
            changed: Changed::new(positions.iter().map(|(oid, _)| *oid).collect()),
            oids: Arc::new(oids),
            max_oid: positions.last().map(|(oid, _)| *oid),
        });
        Ok(())
    }

    fn put(
        &self,
        record: &Record,
        out: &mut Output<'_>,
        staged: Option<&mut Window>,
    ) -> io::Result<()> {
        let header = DataHeader {
            oid: record.oid,
            tid: self.header.tid,
            prev: self.index.get(record.oid).unwrap_or(0),
            tloc: self.start,
            data_len: record.data.len() as u64,
        };
        out.put(&header.encode())?;
        match &record.data {
            Data::Memory(data) => out.put(data),
            Data::Staged { pos, len } => {
                let Some(staged) = staged else {
                    return Err(io::Error::other("staged data without a staging file"));
                };
                if *len >= LONG_LEN_MIN {
                    return out.copy(staged.file(), *pos, *len);
                }
                let data = staged.bytes(*pos, *len)?;
                if data.len() != *len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                out.put(data)
            }
            Data::Back(back) => out.put(&back.to_be_bytes()),
            Data::Gone => out.put(&0u64.to_be_bytes()),
        }
    }
}

/// A file that is written from front to back.
struct Output<'a> {
    file: &'a dyn File,
    /// Where what is gathered goes.
    gathered_pos: u64,
    gathered: Vec<u8>,
}

impl<'a> Output<'a> {
    fn new(file: &'a dyn File, pos: u64) -> Self {
        Self {
            file,
            gathered_pos: pos,
            gathered: Vec::with_capacity(GATHERED_LEN),
        }
    }

    fn pos(&self) -> u64 {
        self.gathered_pos + self.gathered.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.gathered.len() + bytes.len() > GATHERED_LEN {
            self.flush()?;
        }
        if bytes.len() < LONG_LEN_MIN {
            self.gathered.put_slice(bytes);
            return Ok(());
        }
        self.flush()?;
        self.file
            .write_at(&mut [IoSlice::new(bytes)], self.gathered_pos)?;
        self.gathered_pos += bytes.len() as u64;
        Ok(())
    }

    fn copy(&mut self, from: &dyn File, pos: u64, len: usize) -> io::Result<()> {
        self.flush()?;
        copy(from, pos, len, self.file, self.gathered_pos)?;
        self.gathered_pos += len as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file
            .write_at(&mut [IoSlice::new(&self.gathered)], self.gathered_pos)?;
        self.gathered_pos = self.pos();
        self.gathered.clear();
        Ok(())
    }
}
