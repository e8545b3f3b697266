//! What clients and fronts say to each other: ZEO's messages, as far as they are modelled.

use bytes::Bytes;

use crate::entry::Body;
use crate::ids::{Epoch, Oid, Seq, Tid};
use crate::replica::settings::Kind;

/// A connection. None is given twice.
pub(crate) type Conn = u64;

/// The two addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Port {
    Writers,
    Readers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientMessage {
    Register { read_only: bool },
    GetInvalidations { tid: Tid },
    GetInfo,
    LoadBefore { oid: Oid, tid: Tid },
    NewOids,
    Begin { id: u64 },
    Store { id: u64, record: Record },
    Vote { id: u64, attempt: Attempt },
    Finish { id: u64 },
    Abort { id: u64 },
    Ping,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerMessage {
    Greeting,
    /// The last tid; `None` is ReadOnlyError.
    Registered(Option<Tid>),
    Invalidations(Option<(Tid, Vec<Oid>)>),
    Info,
    /// `None` is POSKeyError.
    Loaded {
        oid: Oid,
        before: Tid,
        revision: Option<Revision>,
    },
    Oids(Vec<Oid>),
    Voted(Result<(), Refused>),
    Finished(Result<Tid, Refused>),
    Aborted,
    /// Whether all that was committed when it was asked has been sent.
    Pong(bool),
    Invalidate {
        tid: Tid,
        oids: Vec<Oid>,
    },
}

/// An exception that says: nothing was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The object was stored by another transaction meanwhile.
    Conflict(Oid),
    /// The transaction was lost with the epoch that it was proposed in.
    Lost,
    /// There is no such transaction.
    NoTransaction,
}

/// The state of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Value {
    /// Incremented by each transaction that stores the object.
    pub(crate) count: u64,
    /// Others that it refers to.
    pub(crate) refs: Vec<Oid>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    pub(crate) value: Value,
    pub(crate) serial: Tid,
    /// When it was replaced.
    pub(crate) next: Option<Tid>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) oid: Oid,
    /// The revision that is replaced; zero if the object is new.
    pub(crate) serial: Tid,
    pub(crate) value: Value,
}

/// One try of a client's to commit something. All of it, since a transaction that is tried again
/// after an unknown outcome is another one to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Attempt {
    pub(crate) client: u32,
    /// What the application wants.
    pub(crate) operation: u32,
    /// Of all that the client has tried.
    pub(crate) number: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub(crate) attempt: Attempt,
    pub(crate) records: Vec<Record>,
}

/// An entry of the log that is in the data of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) seq: Seq,
    pub(crate) epoch: Epoch,
    /// See [`Kind`].
    pub(crate) kind: u8,
    /// Zero if it is no transaction.
    pub(crate) tid: Tid,
    pub(crate) body: Vec<Bytes>,
}

impl Applied {
    /// `None` if it is none of a client's.
    pub(crate) fn transaction(&self) -> Option<Transaction> {
        (self.kind == Kind::Transaction.number()).then(|| decode(&self.body))
    }
}

/// What a body ends with.
const END: u8 = b'.';

/// The body of the entry. The only place, with [`decode`], that knows how it looks.
pub(crate) fn encode(transaction: &Transaction) -> Body {
    let mut bytes = Vec::new();
    let Attempt {
        client,
        operation,
        number,
    } = transaction.attempt;
    for word in [client, operation, number] {
        bytes.extend(word.to_be_bytes());
    }
    for record in &transaction.records {
        let refs = record.value.refs.iter().map(|oid| oid.0);
        let head = [record.oid.0, record.serial.0, record.value.count];
        let words = head.into_iter().chain([refs.len() as u64]).chain(refs);
        words.for_each(|word| bytes.extend(word.to_be_bytes()));
    }
    // As with a pickle, it is no zero: if one was all that an entry has in its last sector, and the
    // entry rots, the journal cannot tell that from a sector that was never written.
    bytes.push(END);
    Body::new(vec![Bytes::from(bytes)]).expect("it is short")
}

/// What [`encode`] has made. Panics if it is something else: nothing else gets into the log.
pub(crate) fn decode(body: &[Bytes]) -> Transaction {
    let bytes = body.concat();
    let (head, rest) = bytes.split_first_chunk::<12>().expect("an attempt");
    let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let attempt = Attempt {
        client: word(0),
        operation: word(4),
        number: word(8),
    };
    let (words, rest) = rest.as_chunks::<8>();
    assert_eq!(rest, [END], "a body ends within a record");
    let mut words = words.iter().map(|word| u64::from_be_bytes(*word));
    let mut records = Vec::new();
    while let Some(oid) = words.next() {
        let mut word = || words.next().expect("a whole record");
        let (serial, count, refs) = (word(), word(), word());
        records.push(Record {
            oid: Oid(oid),
            serial: Tid(serial),
            value: Value {
                count,
                refs: (0..refs).map(|_| Oid(word())).collect(),
            },
        });
    }
    Transaction { attempt, records }
}
