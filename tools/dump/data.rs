//! Data files: transactions and records, as far as they go.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use standby::ids::Tid;
use standby::pickle;
use standby::storage::disk::{Disk, File, OpenMode, OsDisk};
use standby::storage::format::{
    FIRST_TXN_POS, MAGIC, MAGIC_PYTHON2, POINTER_LEN, Status, TXN_HEADER_LEN, TxnHeader,
};
use standby::storage::iterate::{Record, Records, Transaction, Transactions};
use standby::value::Value;

use crate::failure::Failure;
use crate::message::{Field, Kind, Message};
use crate::output::Output;

/// Bytes of a record's data that are read. Longer ones are shown by their length alone.
const DATA_LEN_MAX: u64 = 64 << 20;

/// Bytes that are searched at once for the next transaction.
const SEARCH_LEN: usize = 1 << 20;

/// Shows a data file. It is opened for reading only, and not locked: a server may go on with it.
pub(crate) fn read(path: &Path, out: &mut Output<impl Write>) -> Result<(), Failure> {
    let failed = |error| Failure::input(path.display(), error);
    let file = OsDisk::default()
        .open(path, OpenMode::Read)
        .map_err(failed)?;
    // What is written from here on is not looked at.
    let tail = file.len().map_err(failed)?;
    let mut magic = [0; 4];
    file.read_at(&mut magic, 0).map_err(failed)?;
    let python = match magic {
        MAGIC => "3",
        MAGIC_PYTHON2 => "2",
        _ => {
            let why = "no data file: it begins with neither FS21 nor FS30";
            return Err(Failure::input(path.display(), why));
        }
    };
    out.put(
        Message::new(None, Kind::Connection, "data-file")
            .with("file", path.display().to_string())
            .with("len", tail)
            .with("python", python),
    )?;
    let mut pos = FIRST_TXN_POS;
    while pos < tail {
        let Some(damaged) = read_from(&file, pos, tail, out)? else {
            break;
        };
        let next = find_transaction(&file, damaged + 1, tail).map_err(failed)?;
        let end = next.unwrap_or(tail);
        let message = Message::new(None, Kind::Trouble, "skipped")
            .with("from", damaged)
            .with("len", end - damaged);
        out.put(message)?;
        pos = end;
    }
    Ok(())
}

/// Shows the transactions from `pos` on. Returns the position of the first that cannot be read.
fn read_from(
    file: &Arc<dyn File>,
    pos: u64,
    tail: u64,
    out: &mut Output<impl Write>,
) -> Result<Option<u64>, Failure> {
    let mut transactions = Transactions::from_pos(Arc::clone(file), pos, tail);
    loop {
        let pos = transactions.pos();
        let txn = match transactions.next() {
            None => return Ok(None),
            Some(Ok(txn)) => txn,
            Some(Err(error)) => {
                out.put(
                    Message::new(None, Kind::Trouble, "transaction")
                        .with("pos", pos)
                        .with("why", error.to_string()),
                )?;
                return Ok(Some(pos));
            }
        };
        out.put(transaction_message(&txn))?;
        let mut records = transactions.records(&txn);
        while let Some(record) = records.next() {
            match record {
                Ok(record) => out.put(record_message(&txn, &record, &mut records))?,
                Err(error) => out.put(
                    Message::new(Some(txn.header.tid.unix_time()), Kind::Trouble, "record")
                        .with("txn_pos", txn.pos)
                        .with("why", error.to_string()),
                )?,
            }
        }
    }
}

fn transaction_message(txn: &Transaction) -> Message {
    let status = match txn.header.status {
        Status::Finished => "finished".to_owned(),
        Status::Packed => "packed".to_owned(),
        Status::Voted => "voted".to_owned(),
        Status::Undone => "undone".to_owned(),
        Status::Other(byte) => format!("{byte:#04x}"),
    };
    let copy = |bytes: &[u8]| Field::Bytes(Bytes::copy_from_slice(bytes));
    let time = txn.header.tid.unix_time();
    let mut message = Message::new(Some(time), Kind::Transaction, "transaction")
        .with("tid", txn.header.tid)
        .with("pos", txn.pos)
        .with("len", txn.header.len)
        .with("status", status)
        .with("user", copy(txn.user()))
        .with("description", copy(txn.descr()));
    if !txn.ext().is_empty() {
        let bytes = Bytes::copy_from_slice(txn.ext());
        message = match pickle::decode(&bytes) {
            Ok(Value::Dict(pairs)) if pairs.is_empty() => message,
            Ok(value) => message.with("extension", value),
            Err(error) => message
                .with("extension_len", bytes.len())
                .with("problem", error.to_string()),
        };
    }
    message.len = usize::try_from(txn.header.len).unwrap_or(usize::MAX) + POINTER_LEN;
    message
}

fn record_message(txn: &Transaction, record: &Record, records: &mut Records<'_>) -> Message {
    let header = &record.header;
    let time = txn.header.tid.unix_time();
    let mut message = Message::new(Some(time), Kind::Record, "record")
        .with("oid", header.oid)
        .with("tid", header.tid);
    if header.tid != txn.header.tid {
        message = message.with("problem", "another tid than that of its transaction");
    }
    message = message.with("pos", record.pos).with("prev", header.prev);
    message.len = usize::try_from(header.record_len()).unwrap_or(usize::MAX);
    match record.back {
        Some(0) => message.with("back", "none: the object's creation is undone"),
        Some(back) => message.with("back", back),
        None if header.data_len > DATA_LEN_MAX => message.with("data_len", header.data_len),
        None => match records.data(record) {
            Ok(Some(data)) => {
                message.bytes = data.clone();
                message.with("data", Field::record(data))
            }
            Ok(None) => message,
            Err(error) => message
                .with("data_len", header.data_len)
                .with("problem", error.to_string()),
        },
    }
}

/// The next position from which a whole transaction can be read, records and all.
fn find_transaction(file: &Arc<dyn File>, from: u64, tail: u64) -> std::io::Result<Option<u64>> {
    let mut buf = vec![0; SEARCH_LEN + TXN_HEADER_LEN];
    let mut pos = from;
    while pos < tail {
        let len = file.read_at(&mut buf, pos)?;
        let found = buf[..len]
            .windows(TXN_HEADER_LEN)
            .take(SEARCH_LEN)
            .position(|bytes| {
                let at = pos + (bytes.as_ptr() as usize - buf.as_ptr() as usize) as u64;
                is_likely(bytes, at, tail) && is_transaction(file, at, tail)
            });
        if let Some(found) = found {
            return Ok(Some(pos + found as u64));
        }
        pos += SEARCH_LEN as u64;
    }
    Ok(None)
}

/// Whether a header makes sense there, as far as it can be told from itself.
fn is_likely(bytes: &[u8], pos: u64, tail: u64) -> bool {
    let Ok(bytes) = <&[u8; TXN_HEADER_LEN]>::try_from(bytes) else {
        return false;
    };
    let header = TxnHeader::decode(bytes);
    // A file that grows has bytes behind where it ended when we began.
    let room = tail.saturating_sub(pos + POINTER_LEN as u64);
    !matches!(header.status, Status::Other(_))
        && header.tid > Tid::ZERO
        && header.tid < Tid::END
        && (header.header_len()..=room).contains(&header.len)
}

fn is_transaction(file: &Arc<dyn File>, pos: u64, tail: u64) -> bool {
    let mut transactions = Transactions::from_pos(Arc::clone(file), pos, tail);
    match transactions.next() {
        Some(Ok(txn)) => transactions.records(&txn).all(|record| record.is_ok()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_has_got_meanwhile_is_not_searched() {
        let path = std::env::temp_dir().join(format!("zeodump-grown-{}", std::process::id()));
        let mut header = [0x20; TXN_HEADER_LEN];
        header[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 9]);
        let grown = [&b"FS30"[..], &header.repeat(1000)].concat();
        std::fs::write(&path, &grown).unwrap();
        let file = OsDisk::default().open(&path, OpenMode::Read).unwrap();
        std::fs::remove_file(&path).unwrap();
        for tail in [5, 20, 100, grown.len() as u64] {
            assert_eq!(find_transaction(&file, 4, tail).unwrap(), None);
        }
    }
}
