//! One client: its handshake, what it has sent, and what waits for its socket.

use std::collections::VecDeque;

use bytes::Bytes;
use standby::group::spread::wire::{
    Accept, AuthChoice, AuthList, ClientStream, Connect, Dialect, METHOD_NULL, Name, Reject,
    USER_LEN_MAX, Version,
};

use super::part::{Member, NodeId, Who};
use super::{Daemons, SessionId};

/// A connection of a client, with the session that it has when it is accepted.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) daemon: usize,
    /// Where it lives, when it has a name.
    pub(super) node: NodeId,
    pub(super) phase: Phase,
    /// What has come and was not read, before it is open.
    pub(super) unread: Vec<u8>,
    /// `#user#daemon`, when it has said who it is.
    pub(super) name: Name,
    /// Whether it hears of views.
    pub(super) views: bool,
    /// What has come since it is open.
    pub(super) input: ClientStream,
    /// It will send no more.
    pub(super) ended: bool,
    /// It is in the list of those to be looked at.
    pub(super) busy: bool,
    /// What was said last about reading it.
    pub(super) reading: bool,
    /// Lengths of the messages that its socket has not taken as a whole, the rest of the first.
    queue: VecDeque<usize>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has to say who it is.
    Connecting,
    /// It has to say how it proves it. Its name is taken.
    Authenticating(Dialect),
    /// It is a session.
    Open,
}

impl Session {
    pub(super) fn new(daemon: usize, node: NodeId) -> Self {
        Self {
            daemon,
            node,
            phase: Phase::Connecting,
            unread: Vec::new(),
            name: Name::from_field([0; 32]),
            views: false,
            input: ClientStream::in_frames(),
            ended: false,
            busy: false,
            reading: true,
            queue: VecDeque::new(),
        }
    }

    /// As others know it.
    pub(super) const fn who(&self, id: SessionId) -> Who {
        Who {
            daemon: self.daemon,
            name: self.name,
            member: Member {
                session: id,
                node: self.node,
            },
        }
    }

    /// Messages that wait for the socket.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Something of this length was sent.
    pub(super) fn on_sent(&mut self, len: usize) {
        self.queue.push_back(len);
    }

    /// The socket has taken so much.
    pub(super) fn on_written(&mut self, mut len: usize) {
        while let Some(first) = self.queue.front_mut() {
            if *first > len {
                *first -= len;
                return;
            }
            len -= *first;
            self.queue.pop_front();
        }
    }
}

impl Daemons {
    /// Goes on with a handshake, by what one read has given. The daemon reads fields one by one,
    /// and takes for the whole field what is there.
    pub(super) fn shake_hands(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let daemon = session.daemon;
        if session.phase == Phase::Connecting {
            let unread = std::mem::take(&mut session.unread);
            self.silent.remove(&daemon);
            match self.introduce(id, &unread) {
                Ok(rest_at) => {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.unread = unread[rest_at..].to_vec();
                    }
                }
                Err(Some(reject)) => self.reject(id, reject),
                Err(None) => self.end_session(id, "the connect message came in pieces"),
            }
            self.update_accepting(daemon);
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Phase::Authenticating(dialect) = session.phase
            && !session.unread.is_empty()
        {
            let choice = AuthChoice::decode(&session.unread);
            let allowed = choice.is_some_and(|choice| {
                let mut methods = choice.methods().peekable();
                methods.peek().is_some() && methods.all(|method| method == METHOD_NULL)
            });
            if !allowed {
                return self.reject(id, Reject::Auth);
            }
            session.unread.drain(..AuthChoice::LEN);
            self.open(id, dialect);
        }
    }

    /// Reads a connect message. Returns where the rest begins; or how the client is refused, or
    /// `None` if that is done without a word.
    fn introduce(&mut self, id: SessionId, unread: &[u8]) -> Result<usize, Option<Reject>> {
        let (head, name_len) = Connect::decode_head(unread).ok_or(None)?;
        let dialect = head.version.dialect();
        if dialect == Dialect::Refused {
            return Err(Some(Reject::Version));
        }
        if name_len > USER_LEN_MAX {
            return Err(Some(Reject::IllegalName));
        }
        let name_at = head.encode().len();
        let mut rest_at = name_at;
        let mut user = Vec::new();
        if name_len > 0 {
            // As much as a name may have is read, and has to be it.
            rest_at = unread.len().min(name_at + USER_LEN_MAX);
            user = unread[name_at..rest_at].to_vec();
            if user.is_empty() {
                return Err(None);
            }
            if user.len() != name_len {
                return Err(Some(Reject::IllegalName));
            }
        }
        let connect = Connect { user, ..head };
        if let Some(reject) = connect.reject() {
            return Err(Some(reject));
        }
        self.name_session(id, &connect)?;
        if dialect.has_auth() {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.phase = Phase::Authenticating(dialect);
            }
            let list = AuthList::new(&[METHOD_NULL]);
            self.send_bytes(id, list.encode().into());
        } else {
            if let Some(session) = self.sessions.get_mut(&id) {
                session.unread = unread[rest_at..].to_vec();
            }
            self.open(id, dialect);
            return Ok(unread.len());
        }
        Ok(rest_at)
    }

    /// Gives it its private name, and a place to live.
    fn name_session(&mut self, id: SessionId, connect: &Connect) -> Result<(), Reject> {
        let Some(daemon) = self.sessions.get(&id).map(|session| session.daemon) else {
            return Ok(());
        };
        let daemon_name = self.options.names[daemon].clone();
        let private = |user: &[u8]| {
            let name = Name::private(user, daemon_name.as_bytes());
            name.ok_or(Reject::IllegalName)
        };
        let name = if connect.user.is_empty() {
            // In the real one the first number is that of the process, the second of the socket.
            let number = self.options.epoch % 10_000;
            let socket = (0..1000).map(|n| (id.0 + n) % 1000);
            let invented = socket.map(|socket| private(format!("r{number}-{socket}").as_bytes()));
            let mut free = invented.filter(|name| {
                name.as_ref()
                    .is_ok_and(|name| !self.names.contains_key(name))
            });
            free.next().unwrap_or(Err(Reject::NotUnique))?
        } else {
            private(&connect.user)?
        };
        if self.names.contains_key(&name) {
            return Err(Reject::NotUnique);
        }
        self.names.insert(name, id);
        let node = self.node_of_name(&name).unwrap_or(NodeId(daemon));
        if let Some(session) = self.sessions.get_mut(&id) {
            session.name = name;
            session.node = node;
            session.views = connect.membership();
        }
        Ok(())
    }

    /// Accepts it. What it sent behind its handshake are frames.
    fn open(&mut self, id: SessionId, dialect: Dialect) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.phase = Phase::Open;
        let unread = std::mem::take(&mut session.unread);
        session.input.receive(&unread);
        let accept = Accept {
            version: Version::OURS,
            private_name: session.name,
        };
        log::debug!("{id}: accepted as {}", session.name);
        let bytes = Bytes::from(accept.encode(dialect));
        self.send_bytes(id, bytes);
        self.wake(id);
    }

    fn reject(&mut self, id: SessionId, reject: Reject) {
        let code = reject.code().cast_unsigned();
        self.send_bytes(id, Bytes::from(vec![code]));
        self.end_session(id, &reject.to_string());
    }
}
