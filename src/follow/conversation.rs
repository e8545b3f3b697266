//! One of the two connections: calls, and what comes of them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Oid, Tid};
use crate::limits::{FOLLOW_GREETING_MAX, FOLLOW_REPLY_MAX, FOLLOW_UNSENT_LEN_MAX};
use crate::value::Value;
use crate::zeo::Encoding;
use crate::zeo::OutQueue;
use crate::zeo::client::{ClientError, ClientSession, Raised, Received};

/// A connection that can be waited for.
pub trait Wire {
    /// Sends all that waits.
    ///
    /// # Errors
    ///
    /// The connection is of no more use.
    fn send(&mut self, out: &mut OutQueue) -> io::Result<()>;

    /// Waits for bytes, so long at most, and gives them out.
    ///
    /// # Errors
    ///
    /// The connection is of no more use.
    fn receive(&mut self, wait: Duration, give: &mut dyn FnMut(&[u8])) -> io::Result<Came>;
}

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Something.
    Bytes,
    /// Nothing in this time.
    Nothing,
    /// The other side has closed.
    End,
}

/// Which of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// To the server that is followed.
    Source,
    /// To this server.
    Ours,
}

/// Why it does not go on.
#[derive(Clone, Debug, PartialEq)]
pub enum Trouble {
    /// A connection is of no more use, or a call failed: to begin anew may help.
    Lost {
        /// Of which side it was
        side: Side,
        /// What was said.
        why: String,
    },
    /// A blob of the source is not there. It may have been packed away since its record was read;
    /// then it is not in what is iterated over next.
    NoBlob(Oid, Tid),
    /// The source has less than this server, which may be so for a moment: a replica is asked, or
    /// the source was started again when it had packed its last transaction away.
    Behind(String),
    /// Nothing more must be taken from this source.
    Stop(String),
}

/// The answer to a call.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) result: Result<Value, Raised>,
    /// As it came.
    pub(super) frame: Bytes,
}

/// Takes the name and the arguments of a call of the server's.
pub(super) type OnNotice<'a> = dyn FnMut(&[u8], Vec<Value>) -> Result<(), Trouble> + 'a;

/// A connection with what was asked over it.
#[derive(Debug)]
pub struct Conversation<W> {
    side: Side,
    wire: W,
    session: ClientSession,
    /// The msgid of the last call.
    calls: i64,
    /// Calls that are not answered yet, in the order of their answers.
    waiting: VecDeque<i64>,
    /// The last transaction that the server has told of.
    told: Tid,
    /// The last one that it has told of when it was committed.
    heard: Tid,
    /// How long an answer may take.
    patience: Duration,
}

impl<W: Wire> Conversation<W> {
    /// Waits for the greeting, and answers it.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn open(side: Side, wire: W) -> Result<Self, Trouble> {
        let mut conversation = Self {
            side,
            wire,
            session: ClientSession::default(),
            calls: 0,
            waiting: VecDeque::new(),
            told: Tid::ZERO,
            heard: Tid::ZERO,
            patience: FOLLOW_REPLY_MAX,
        };
        if side == Side::Source {
            conversation.patience = FOLLOW_GREETING_MAX;
        }
        match conversation.next(conversation.patience)? {
            Some((Received::Greeting(_), _)) => Ok(conversation),
            _ => Err(conversation.lost("no greeting came")),
        }
    }

    /// The server has let us in: from now on an answer may take as long as it does.
    pub(super) fn on_registered(&mut self) {
        self.patience = FOLLOW_REPLY_MAX;
    }

    #[cfg(test)]
    pub(super) fn wire_mut(&mut self) -> &mut W {
        &mut self.wire
    }

    /// How the server writes values.
    pub(super) fn encoding(&self) -> Option<Encoding> {
        self.session.encoding()
    }

    /// The last transaction that the server has told of.
    pub const fn told(&self) -> Tid {
        self.told
    }

    /// Calls, and waits for the answer.
    pub(super) fn call(&mut self, name: &'static str, args: Vec<Value>) -> Result<Reply, Trouble> {
        self.call_with(name, args, &mut |_, _| Ok(()))
    }

    /// The same, of which nothing but a result is of use.
    pub(super) fn ask(&mut self, name: &'static str, args: Vec<Value>) -> Result<Value, Trouble> {
        let reply = self.call(name, args)?;
        self.value_of(name, reply)
    }

    /// The result that has to be in a reply.
    pub(super) fn value_of(&self, name: &str, reply: Reply) -> Result<Value, Trouble> {
        let failed = |raised| self.lost(format!("{name}: {raised}"));
        reply.result.map_err(failed)
    }

    /// As [`Self::call`]; what the server calls meanwhile is given to `notice`.
    pub(super) fn call_with(
        &mut self,
        name: &'static str,
        args: Vec<Value>,
        notice: &mut OnNotice<'_>,
    ) -> Result<Reply, Trouble> {
        self.begin(name, args)?;
        self.flush()?;
        self.answer_with(notice)
    }

    /// Queues a call. Each is to be followed by one [`Self::answer`], in the same order.
    pub(super) fn begin(&mut self, name: &'static str, args: Vec<Value>) -> Result<(), Trouble> {
        self.calls += 1;
        self.waiting.push_back(self.calls);
        let queued = self.session.call(self.calls, name, args);
        queued.map_err(|error| self.violated(&error))
    }

    /// Queues a call that is not answered, and sends if enough has gathered.
    pub(super) fn send(&mut self, name: &'static str, args: Vec<Value>) -> Result<(), Trouble> {
        let queued = self.session.send(name, args);
        queued.map_err(|error| self.violated(&error))?;
        if self.session.out.len() > FOLLOW_UNSENT_LEN_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends what is queued.
    pub(super) fn flush(&mut self) -> Result<(), Trouble> {
        let sent = self.wire.send(&mut self.session.out);
        sent.map_err(|error| self.lost(error))
    }

    /// Waits for the answer to the first call that has none.
    pub(super) fn answer(&mut self) -> Result<Reply, Trouble> {
        self.answer_with(&mut |_, _| Ok(()))
    }

    fn answer_with(&mut self, notice: &mut OnNotice<'_>) -> Result<Reply, Trouble> {
        let expected = self.waiting.pop_front().map(Value::Int);
        loop {
            match self.next(self.patience)? {
                Some((Received::Reply { msgid, result }, frame))
                    if Some(&msgid) == expected.as_ref() =>
                {
                    return Ok(Reply { result, frame });
                }
                Some((Received::Notice { name, args }, _)) => {
                    self.note(&name, &args);
                    notice(&name, args)?;
                }
                Some((other, _)) => return Err(self.unexpected(&other)),
                None => {
                    let seconds = self.patience.as_secs();
                    return Err(self.lost(format!("no answer for {seconds} s")));
                }
            }
        }
    }

    /// Waits until the server tells of a transaction above `last`, so long at most.
    pub(super) fn wait_for_news(&mut self, last: Tid, wait: Duration) -> Result<(), Trouble> {
        while self.told <= last {
            match self.next(wait)? {
                Some((Received::Notice { name, args }, _)) => self.note(&name, &args),
                Some((other, _)) => return Err(self.unexpected(&other)),
                None => break,
            }
        }
        Ok(())
    }

    /// The server has told that there is this transaction.
    pub(super) fn on_told(&mut self, tid: Tid) {
        self.told = self.told.max(tid);
    }

    /// The last transaction that the server has told of when it was committed.
    pub(super) const fn heard(&self) -> Tid {
        self.heard
    }

    /// The server has told of more than `tid`, and does not have it.
    pub(super) const fn take_back(&mut self, tid: Tid) {
        self.told = tid;
    }

    fn note(&mut self, name: &[u8], args: &[Value]) {
        let tid = args.first().and_then(Value::string);
        if name == b"invalidateTransaction"
            && let Some(tid) = tid.and_then(|tid| Tid::from_slice(tid))
        {
            self.on_told(tid);
            self.heard = self.heard.max(tid);
        }
    }

    /// What comes next, `None` if nothing does in this time.
    fn next(&mut self, wait: Duration) -> Result<Option<(Received, Bytes)>, Trouble> {
        loop {
            match self.session.next_framed() {
                Ok(Some(received)) => {
                    // What answers a greeting.
                    self.flush()?;
                    return Ok(Some(received));
                }
                Ok(None) => {}
                Err(error) => return Err(self.violated(&error)),
            }
            let session = &mut self.session;
            match self.wire.receive(wait, &mut |data| session.receive(data)) {
                Ok(Came::Bytes) => {}
                Ok(Came::Nothing) => return Ok(None),
                Ok(Came::End) => return Err(self.lost("the connection was closed")),
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    fn violated(&self, error: &ClientError) -> Trouble {
        match error {
            // It would be as long the next time. Who has not greeted is no ZEO server.
            ClientError::Frame(error) if self.encoding().is_some() => {
                Trouble::Stop(error.to_string())
            }
            error => self.lost(error),
        }
    }

    /// What came is no answer to what was asked: which kind it is, without what is in it.
    fn unexpected(&self, received: &Received) -> Trouble {
        self.lost(match received {
            Received::Greeting(_) => "unexpected: a greeting".to_owned(),
            Received::Loaded(loaded) => format!("unexpected: a revision of {}", loaded.oid),
            Received::Reply {
                msgid: Value::Int(msgid),
                ..
            } => format!("unexpected: an answer to call {msgid}"),
            Received::Reply { .. } => "unexpected: an answer to no call of ours".to_owned(),
            Received::Notice { name, .. } => {
                let name = &name[..name.len().min(40)];
                format!("unexpected: \"{}\"", name.escape_ascii())
            }
        })
    }

    /// This connection is of no more use.
    pub(super) fn lost(&self, why: impl fmt::Display) -> Trouble {
        Trouble::Lost {
            side: self.side,
            why: why.to_string(),
        }
    }
}

/// Whether a server says with this that its storage keeps no blobs.
pub(super) fn says_no_blobs(raised: &Raised) -> bool {
    let Value::Tuple(arguments) = &raised.arguments else {
        return false;
    };
    let text = arguments.first().and_then(Value::string);
    let is_it = text.is_some_and(|text| text[..] == *b"Blobs are not supported");
    is_it && raised.short_class() == "TypeError"
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { why, .. } | Self::Behind(why) | Self::Stop(why) => f.write_str(why),
            Self::NoBlob(oid, tid) => write!(f, "it has not the blob of {oid} in {tid}"),
        }
    }
}

impl std::error::Error for Trouble {}
