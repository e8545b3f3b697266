//! Transactions from there to here.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::conversation::{Conversation, Trouble, Wire, says_no_blobs};
use super::extension::extension;
use super::history::{self, Record, Txn, next_record, next_transaction, transactions};
use crate::ids::{Oid, Tid};
use crate::limits::{
    FOLLOW_ASK_INTERVAL, FOLLOW_MISSING_MAX, FOLLOW_RECORD_LEN_MAX, METADATA_LEN_MAX,
};
use crate::storage::is_blob_record;
use crate::value::Value;

/// How much was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Transactions
    pub transactions: u64,
    /// Records in them
    pub records: u64,
    /// Blobs
    pub blobs: u64,
    /// The last transaction that is on the disk here.
    pub last: Tid,
}

/// How far it has come with what the source has told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// All is here.
    Level,
    /// The source has told of more meanwhile.
    More,
    /// The source has given less than it had told of before it was asked: its file is damaged, and
    /// it takes that for the end; or its last transaction was packed away.
    Short,
}

/// What outlives a [`Follower`].
#[derive(Debug, Default)]
pub struct Known {
    /// Blobs that were not there when they were asked for, of the transaction that is next.
    missing: BTreeSet<(Oid, Tid)>,
    /// The last transaction that was told when it was committed.
    heard: Tid,
}

/// A client of both servers.
#[derive(Debug)]
pub struct Follower<S, O> {
    source: Conversation<S>,
    ours: Conversation<O>,
    /// What our storage can keep.
    has_blobs: bool,
    /// The transaction whose finish was sent, and not answered.
    finishing: Option<Tid>,
    /// `known.missing.len() <= FOLLOW_MISSING_MAX`
    known: Known,
    /// The source has said that it keeps no blobs.
    is_without_blobs: bool,
    /// The source has told of this one, and its file does not have it.
    unfinished: Tid,
    progress: Progress,
}

impl<S: Wire, O: Wire> Follower<S, O> {
    /// Registers at both for the storages of these names, and compares what they have. `known` is
    /// what the follower before this one knew.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub fn begin(
        (mut source, source_name): (Conversation<S>, &str),
        (mut ours, our_name): (Conversation<O>, &str),
        known: &mut Known,
    ) -> Result<Self, Trouble> {
        let last = register(&mut ours, our_name, false)?;
        let theirs = register(&mut source, source_name, true)?;
        source.on_registered();
        source.on_told(theirs);
        source.send("set_client_label", vec![Value::text("follow")])?;
        ours.send("set_client_label", vec![Value::text("follow")])?;
        let info = ours.ask("get_info", Vec::new())?;
        history::compare(&mut source, &mut ours, last)?;
        Ok(Self {
            source,
            ours,
            has_blobs: keeps_blobs(&info),
            finishing: None,
            known: std::mem::take(known),
            is_without_blobs: false,
            unfinished: Tid::ZERO,
            progress: Progress {
                last,
                ..Progress::default()
            },
        })
    }

    /// How far it has come since it began.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// The last transaction that the source has told of, now or before.
    pub fn told(&self) -> Tid {
        self.source.told().max(self.known.heard)
    }

    /// What the next follower has to know.
    pub fn into_known(self) -> Known {
        Known {
            heard: self.heard(),
            ..self.known
        }
    }

    /// The last transaction that the source has told of when it was committed, now or before.
    fn heard(&self) -> Tid {
        self.known.heard.max(self.source.heard())
    }

    /// Copies all that the source has. `report` is called with each transaction.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub fn catch_up(&mut self, report: &mut dyn FnMut(Progress)) -> Result<Reached, Trouble> {
        let told = self.told();
        loop {
            match self.copy_all(report) {
                // At most once for each transaction, as long as not all that is missing is known.
                Err(Trouble::NoBlob(..)) => {}
                Err(trouble) => return Err(trouble),
                Ok(()) => break,
            }
        }
        let last = self.progress.last;
        Ok(match last {
            _ if last >= self.told() => Reached::Level,
            _ if last >= told && last < self.source.told() => Reached::More,
            _ => self.reached_less(last)?,
        })
    }

    /// A stock server that was stopped behind a vote and before the finish cuts the transaction off
    /// when it opens its file the next time, and takes its tid for the last one all the same.
    fn reached_less(&mut self, last: Tid) -> Result<Reached, Trouble> {
        let told = self.told();
        let newest = history::newest(&mut self.source)?;
        if self.told() > told {
            return Ok(Reached::More);
        }
        // What it has told of as committed was.
        if last == Tid::ZERO || newest != Some(last) || self.heard() > last {
            return Ok(Reached::Short);
        }
        if self.unfinished != told {
            self.unfinished = told;
            log::warn!(
                "follow: the source takes {told} for its last transaction, and its file ends with \
                 {last}: when it was started it has cut off what it took for unfinished. Look at \
                 its Data.fs.tr*: more than one transaction there was damage"
            );
        }
        self.source.take_back(last);
        Ok(Reached::Level)
    }

    fn copy_all(&mut self, report: &mut dyn FnMut(Progress)) -> Result<(), Trouble> {
        self.settle()?;
        let mut before = self.progress.last;
        let iterator = transactions(&mut self.source, before.next(), None)?;
        while let Some(txn) = next_transaction(&mut self.source, &iterator)? {
            if txn.tid <= before {
                return Err(Trouble::Stop(format!(
                    "it gives transaction {} behind {before}",
                    txn.tid
                )));
            }
            before = txn.tid;
            self.source.on_told(txn.tid);
            let copied = self.copy(&iterator, txn);
            if let Err(Trouble::NoBlob(..)) = copied {
                self.abandon(&iterator, before)?;
            }
            copied?;
            report(self.progress);
        }
        self.settle()?;
        report(self.progress);
        Ok(())
    }

    /// Waits until the source may have more.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub fn wait(&mut self) -> Result<(), Trouble> {
        let last = self.progress.last;
        self.source.wait_for_news(last, FOLLOW_ASK_INTERVAL)?;
        if self.source.told() <= last {
            let tid = self.source.ask("lastTransaction", Vec::new())?;
            let tid = tid.string().and_then(|tid| Tid::from_slice(tid));
            self.source.on_told(tid.unwrap_or_default());
        }
        Ok(())
    }

    /// Copies the transaction that the iterator gave last, but for the answer to its finish: while
    /// that is on its way the next one is read.
    fn copy(&mut self, iterator: &Value, txn: Txn) -> Result<(), Trouble> {
        let encoding = self.source.encoding();
        let Some(extension) = extension(encoding, &txn.frame, &txn.extension) else {
            return Err(Trouble::Stop(format!(
                "transaction {} has an extension that cannot be copied",
                txn.tid
            )));
        };
        if let Some(problem) = problem_of(&txn, &extension) {
            return Err(Trouble::Stop(format!("transaction {} {problem}", txn.tid)));
        }
        if !matches!(&txn.status[..], b" " | b"p") {
            return Err(Trouble::Stop(format!(
                "transaction {} has the status \"{}\"",
                txn.tid,
                txn.status.escape_ascii()
            )));
        }
        let handle = handle_of(txn.tid);
        let extension = match extension.is_empty() {
            true => Vec::new(),
            false => vec![(Value::text(""), Value::Bytes(extension))],
        };
        let begin = vec![
            handle.clone(),
            Value::Bytes(txn.user),
            Value::Bytes(txn.description),
            Value::Dict(extension),
            txn.tid.into(),
            Value::Text(txn.status),
        ];
        self.ours.send("tpc_begin", begin)?;
        let within = history::records(&mut self.source, iterator, txn.tid)?;
        let mut with_blob = BTreeSet::new();
        let before = self.progress;
        let mut missed = None;
        while let Some(record) = next_record(&mut self.source, &within, txn.tid)? {
            self.progress.records += 1;
            // After the first blob that is missed all is read on only to learn which others are.
            let keep = missed.is_none();
            match self.copy_record((record, keep), txn.tid, &handle, &mut with_blob) {
                Err(Trouble::NoBlob(oid, tid)) => missed = Some(Trouble::NoBlob(oid, tid)),
                copied => copied?,
            }
        }
        if let Some(trouble) = missed {
            (self.progress.records, self.progress.blobs) = (before.records, before.blobs);
            return Err(trouble);
        }
        self.settle()?;
        // Nothing can be in its way: nobody else writes.
        self.ours.ask("vote", vec![handle.clone()])?;
        self.ours.begin("tpc_finish", vec![handle])?;
        self.ours.flush()?;
        self.finishing = Some(txn.tid);
        Ok(())
    }

    /// Copies a record, or only looks whether its blob can be had if it is not to be kept.
    fn copy_record(
        &mut self,
        (record, keep): (Record, bool),
        tid: Tid,
        handle: &Value,
        with_blob: &mut BTreeSet<Oid>,
    ) -> Result<(), Trouble> {
        let Record {
            oid,
            data,
            data_txn,
        } = record;
        let data_txn_or = |none| data_txn.map_or(none, Value::from);
        if data
            .as_ref()
            .is_some_and(|it| it.len() > FOLLOW_RECORD_LEN_MAX)
        {
            return Err(Trouble::Stop(format!("object {oid} in {tid} is too long")));
        }
        if oid >= Oid::END || data.as_ref().is_some_and(Bytes::is_empty) {
            let why = format!("object {oid} in {tid} has no data, or an oid that none can have");
            return Err(Trouble::Stop(why));
        }
        let blob = data.as_ref().filter(|data| is_blob_record(data));
        if let Some(data) = blob {
            if !self.has_blobs {
                return Err(Trouble::Stop(format!(
                    "object {oid} in {tid} is a blob, and the storage here has no blob-dir"
                )));
            }
            // A stock server writes a record for each of the two calls that store a blob.
            if !with_blob.insert(oid) {
                return Ok(());
            }
            if self.copy_blob(oid, tid, keep)? && keep {
                let args = vec![
                    oid.into(),
                    data_txn_or(Tid::ZERO.into()),
                    Value::Bytes(data.clone()),
                    handle.clone(),
                ];
                return self.ours.send("storeBlobEnd", args);
            }
        }
        if !keep {
            return Ok(());
        }
        let args = vec![
            oid.into(),
            tid.into(),
            data.map_or(Value::None, Value::Bytes),
            data_txn_or(Value::None),
            handle.clone(),
        ];
        self.ours.send("restorea", args)
    }

    /// Copies the bytes of a blob; `false` if the source has lost it.
    fn copy_blob(&mut self, oid: Oid, tid: Tid, keep: bool) -> Result<bool, Trouble> {
        if self.is_without_blobs {
            return Ok(false);
        }
        let Self {
            source,
            ours,
            known: Known { missing, .. },
            is_without_blobs,
            progress,
            ..
        } = self;
        let mut begun = false;
        let mut forward = |name: &[u8], mut args: Vec<Value>| {
            // Another one is of no blob that was asked for.
            match name {
                b"receiveBlobStart" => {
                    begun = true;
                    match keep {
                        true => ours.send("storeBlobStart", Vec::new()),
                        false => Ok(()),
                    }
                }
                b"receiveBlobChunk" if keep => {
                    let piece = args.pop().unwrap_or(Value::None);
                    let piece = piece.string().cloned().unwrap_or_else(Bytes::new);
                    ours.send("storeBlobChunk", vec![Value::Bytes(piece)])
                }
                _ => Ok(()),
            }
        };
        let asked = vec![oid.into(), tid.into()];
        let reply = source.call_with("sendBlob", asked, &mut forward)?;
        match reply.result {
            Ok(_) if begun => {
                progress.blobs += 1;
                Ok(true)
            }
            Ok(_) => Err(source.lost(format!("sendBlob of {oid} in {tid}: nothing came"))),
            Err(raised) if raised.short_class() == "POSKeyError" && !begun => {
                // If it was asked for before, the record is still there, and the blob is not.
                // Without it we have as much as the source; the storage says so in the log.
                if missing.contains(&(oid, tid)) || missing.len() >= FOLLOW_MISSING_MAX {
                    return Ok(false);
                }
                missing.insert((oid, tid));
                Err(Trouble::NoBlob(oid, tid))
            }
            Err(raised) if says_no_blobs(&raised) && !begun => {
                log::warn!(
                    "follow: the source has no blob-dir, though its storage has blobs: they are \
                     not copied ({oid} in {tid} is the first)"
                );
                *is_without_blobs = true;
                Ok(false)
            }
            Err(raised) => Err(source.lost(format!("sendBlob of {oid} in {tid}: {raised}"))),
        }
    }

    /// Gives up the transaction that is being copied, and the iterator.
    fn abandon(&mut self, iterator: &Value, tid: Tid) -> Result<(), Trouble> {
        self.settle()?;
        self.ours.ask("tpc_abort", vec![handle_of(tid)])?;
        let iterators = Value::List(vec![iterator.clone()]);
        self.source.send("iterator_gc", vec![iterators])
    }

    /// Waits until the last transaction is on the disk here.
    fn settle(&mut self) -> Result<(), Trouble> {
        let Some(tid) = self.finishing.take() else {
            return Ok(());
        };
        let finish = self.ours.answer()?;
        let finished = self.ours.value_of("tpc_finish", finish)?;
        let finished = finished.string().and_then(|tid| Tid::from_slice(tid));
        if finished != Some(tid) {
            return Err(self.ours.lost(format!("{tid} was not finished")));
        }
        self.known.missing.retain(|(_, of)| *of > tid);
        self.progress.last = tid;
        self.progress.transactions += 1;
        Ok(())
    }
}

/// Why a transaction can never be voted here.
fn problem_of(txn: &Txn, extension: &Bytes) -> Option<&'static str> {
    if txn.tid >= Tid::END {
        return Some("has a tid that none can have");
    }
    let texts = [&txn.user, &txn.description, extension];
    let is_long = texts.iter().any(|text| text.len() > METADATA_LEN_MAX);
    is_long.then_some("has a user, description or extension that is too long")
}

/// What we call a transaction while it is open.
fn handle_of(tid: Tid) -> Value {
    Value::Int(tid.0.cast_signed())
}

/// The last transaction of the storage.
fn register<W: Wire>(
    at: &mut Conversation<W>,
    name: &str,
    read_only: bool,
) -> Result<Tid, Trouble> {
    let args = vec![Value::from(name.to_owned()), Value::Bool(read_only)];
    let tid = at.ask("register", args)?;
    let tid = tid.string().and_then(|tid| Tid::from_slice(tid));
    tid.ok_or_else(|| at.lost("register: no tid"))
}

/// Whether a storage with this `get_info` has blobs.
fn keeps_blobs(info: &Value) -> bool {
    let Value::Dict(items) = info else {
        return false;
    };
    let is_interfaces =
        |(name, _): &&(Value, Value)| name.string().is_some_and(|name| name[..] == *b"interfaces");
    let interfaces = items.iter().find(is_interfaces).map(|(_, value)| value);
    let Some(Value::Tuple(pairs) | Value::List(pairs)) = interfaces else {
        return false;
    };
    let is_blobs = |pair: &Value| match pair {
        Value::Tuple(pair) | Value::List(pair) => pair
            .get(1)
            .and_then(Value::string)
            .is_some_and(|name| name[..] == *b"IBlobStorage"),
        _ => false,
    };
    pairs.iter().any(is_blobs)
}
