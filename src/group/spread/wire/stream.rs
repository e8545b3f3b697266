//! Cuts the bytes of a connection into what they mean, however they come.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

use super::handshake::{decode_answer, decode_list};
use super::{
    Accept, AuthChoice, AuthList, Connect, Delivery, Dialect, Frame, HEADER_LEN, Header,
    OLD_TYPE_LEN, Reject, WireError,
};

/// Something that a side has said, and where it stands in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<T> {
    /// Bytes of the stream before it
    pub pos: u64,
    /// Its own bytes
    pub len: usize,
    /// What it is
    pub what: T,
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientItem {
    /// Who it is, first of all.
    Connect(Connect),
    /// How it is to be authenticated, if its dialect knows that.
    AuthChoice(AuthChoice),
    /// A request.
    Frame(Frame),
}

/// What a daemon says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaemonItem {
    /// How a client may be authenticated.
    AuthList(AuthList),
    /// It takes the client.
    Accept(Accept),
    /// It does not. Nothing follows.
    Reject(Reject),
    /// A message, or news of a group.
    Frame(Frame),
}

/// What a stream that ended, ended in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Where it begins.
    pub pos: u64,
    /// Bytes that have come.
    pub have: usize,
    /// Bytes that it has, if that is known yet.
    pub need: Option<usize>,
    /// Of a frame, if that much has come.
    pub header: Option<Header>,
}

/// The stream makes no sense from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// Bytes of the stream before what makes no sense.
    pub pos: u64,
    /// What is wrong with it.
    pub error: WireError,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.pos, self.error)
    }
}

impl std::error::Error for StreamError {}

/// What a client sends, in pieces in, and as items out.
///
/// After each [`receive`](Self::receive) call [`next`](Self::next) until it has no more. That the
/// daemon takes the items of a handshake only whole, by one `read` each, is not seen here:
/// [`Self::waiting_len`] helps whoever wants to be as strict.
#[derive(Debug)]
pub struct ClientStream {
    input: Input,
    phase: ClientPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientPhase {
    Connect,
    AuthChoice,
    Frames,
}

impl ClientStream {
    /// From the first byte of a connection on.
    pub fn new() -> Self {
        Self::at(ClientPhase::Connect)
    }

    /// From the first frame on.
    pub fn in_frames() -> Self {
        Self::at(ClientPhase::Frames)
    }

    fn at(phase: ClientPhase) -> Self {
        Self {
            input: Input::default(),
            phase,
        }
    }

    /// Takes what came from the stream.
    pub fn receive(&mut self, data: &[u8]) {
        let expected_len = self.pending().and_then(|pending| pending.need);
        self.input.receive(data, expected_len);
    }

    /// The next item, or `None` if it has not come as a whole. After an error there is no other.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that ends and then goes on would mislead"
    )]
    pub fn next(&mut self) -> Result<Option<Item<ClientItem>>, StreamError> {
        self.input.check()?;
        let found = match self.phase {
            ClientPhase::Connect => Connect::decode(&self.input.buf).map(|(connect, len)| {
                self.phase = match connect.version.dialect().has_auth() {
                    true => ClientPhase::AuthChoice,
                    false => ClientPhase::Frames,
                };
                self.input.skip(len, ClientItem::Connect(connect))
            }),
            ClientPhase::AuthChoice => AuthChoice::decode(&self.input.buf).map(|choice| {
                self.phase = ClientPhase::Frames;
                let item = ClientItem::AuthChoice(choice);
                self.input.skip(AuthChoice::LEN, item)
            }),
            ClientPhase::Frames => {
                let frame = self.input.take_frame(false)?;
                frame.map(|item| item.map(ClientItem::Frame))
            }
        };
        if found.is_none() {
            self.input.detach();
        }
        Ok(found)
    }

    /// Bytes that have come and were not given out.
    pub fn waiting_len(&self) -> usize {
        self.input.buf.len()
    }

    /// What has come in part; `None` between two items.
    pub fn pending(&self) -> Option<Pending> {
        let buf = &self.input.buf;
        match self.phase {
            ClientPhase::Connect => {
                let need = Connect::decode_head(buf).map(|(head, name_len)| {
                    let with_name = Connect {
                        user: vec![0; name_len],
                        ..head
                    };
                    with_name.encode().len()
                });
                self.input.pending(need, None)
            }
            ClientPhase::AuthChoice => self.input.pending(Some(AuthChoice::LEN), None),
            ClientPhase::Frames => self.input.pending_frame(false),
        }
    }
}

impl Default for ClientStream {
    fn default() -> Self {
        Self::new()
    }
}

/// What a daemon sends, in pieces in, and as items out.
///
/// After each [`receive`](Self::receive) call [`next`](Self::next) until it has no more.
#[derive(Debug)]
pub struct DaemonStream {
    input: Input,
    phase: DaemonPhase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DaemonPhase {
    AuthList,
    Answer(Dialect),
    Frames,
    Rejected,
}

impl DaemonStream {
    /// From the first byte of a connection on, to a client of today.
    pub fn new() -> Self {
        Self::for_dialect(Dialect::Full)
    }

    /// From the first byte of a connection on, to a client of this dialect.
    pub fn for_dialect(dialect: Dialect) -> Self {
        Self::at(match dialect.has_auth() {
            true => DaemonPhase::AuthList,
            false => DaemonPhase::Answer(dialect),
        })
    }

    /// From the first frame on.
    pub fn in_frames() -> Self {
        Self::at(DaemonPhase::Frames)
    }

    fn at(phase: DaemonPhase) -> Self {
        Self {
            input: Input::default(),
            phase,
        }
    }

    /// Takes what came from the stream.
    pub fn receive(&mut self, data: &[u8]) {
        let expected_len = self.pending().and_then(|pending| pending.need);
        self.input.receive(data, expected_len);
    }

    /// The next item, or `None` if it has not come as a whole. After an error there is no other.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that ends and then goes on would mislead"
    )]
    pub fn next(&mut self) -> Result<Option<Item<DaemonItem>>, StreamError> {
        self.input.check()?;
        let found = match self.phase {
            DaemonPhase::AuthList => {
                let list = decode_list(&self.input.buf);
                let list = self.input.checked(list)?;
                list.map(|(list, len)| match list {
                    Ok(list) => {
                        self.phase = DaemonPhase::Answer(Dialect::Full);
                        self.input.skip(len, DaemonItem::AuthList(list))
                    }
                    Err(reject) => self.rejected(reject, len),
                })
            }
            DaemonPhase::Answer(dialect) => {
                let answer = decode_answer(&self.input.buf, dialect);
                let answer = self.input.checked(answer)?;
                answer.map(|(answer, len)| match answer {
                    Ok(accept) => {
                        self.phase = DaemonPhase::Frames;
                        self.input.skip(len, DaemonItem::Accept(accept))
                    }
                    Err(reject) => self.rejected(reject, len),
                })
            }
            DaemonPhase::Frames => {
                let frame = self.input.take_frame(true)?;
                frame.map(|item| item.map(DaemonItem::Frame))
            }
            DaemonPhase::Rejected if self.input.buf.is_empty() => None,
            DaemonPhase::Rejected => return self.input.checked(Err(WireError::AfterReject)),
        };
        if found.is_none() {
            self.input.detach();
        }
        Ok(found)
    }

    fn rejected(&mut self, reject: Reject, len: usize) -> Item<DaemonItem> {
        self.phase = DaemonPhase::Rejected;
        self.input.skip(len, DaemonItem::Reject(reject))
    }

    /// What has come in part; `None` between two items.
    pub fn pending(&self) -> Option<Pending> {
        match self.phase {
            DaemonPhase::Frames => self.input.pending_frame(true),
            DaemonPhase::AuthList | DaemonPhase::Answer(_) | DaemonPhase::Rejected => {
                self.input.pending(None, None)
            }
        }
    }
}

impl Default for DaemonStream {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Item<T> {
    fn map<U>(self, into: impl FnOnce(T) -> U) -> Item<U> {
        Item {
            pos: self.pos,
            len: self.len,
            what: into(self.what),
        }
    }
}

/// Bytes that have come and were not given out; begins with an item.
#[derive(Debug, Default)]
struct Input {
    buf: BytesMut,
    /// Whether frames that were given out lie in the allocation of `buf`, before what it has now.
    used: bool,
    /// Bytes of the stream before `buf`
    pos: u64,
    /// What was wrong with the stream: the rest of it is not even kept.
    failed: Option<StreamError>,
}

impl Input {
    fn receive(&mut self, data: &[u8], expected_len: Option<usize>) {
        if self.failed.is_some() {
            return;
        }
        let needed = self.buf.len() + data.len();
        if needed > self.buf.capacity() {
            // A long frame gets its memory by doubling: its length is only believed as far as
            // bytes have come.
            let expected_len = expected_len.unwrap_or_default().min(2 * needed);
            self.reallocate(needed.max(expected_len));
        }
        self.buf.extend_from_slice(data);
    }

    fn check(&self) -> Result<(), StreamError> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Remembers an error of what is in front.
    fn checked<T>(&mut self, result: Result<T, WireError>) -> Result<T, StreamError> {
        result.map_err(|error| {
            let error = StreamError {
                pos: self.pos,
                error,
            };
            self.failed = Some(error);
            self.buf = BytesMut::new();
            error
        })
    }

    /// Forgets the bytes of an item that was decoded.
    fn skip<T>(&mut self, len: usize, what: T) -> Item<T> {
        let pos = self.pos;
        self.buf.advance(len);
        self.pos += len as u64;
        self.used = true;
        Item { pos, len, what }
    }

    fn take(&mut self, len: usize) -> Bytes {
        let taken = self.buf.split_to(len).freeze();
        self.pos += len as u64;
        self.used = true;
        taken
    }

    /// The header in front, if it has come, and the bytes that follow it.
    fn frame_head(&self, from_daemon: bool) -> Result<Option<(Header, usize)>, WireError> {
        let Some(header) = Header::decode(&self.buf)? else {
            return Ok(None);
        };
        let mut body_len = header.body_len();
        if from_daemon && header.delivery() == Delivery::Reject {
            body_len += OLD_TYPE_LEN;
        }
        Ok(Some((header, body_len)))
    }

    fn take_frame(&mut self, from_daemon: bool) -> Result<Option<Item<Frame>>, StreamError> {
        let head = self.frame_head(from_daemon);
        let Some((header, body_len)) = self.checked(head)? else {
            return Ok(None);
        };
        let len = HEADER_LEN + body_len;
        if self.buf.len() < len {
            return Ok(None);
        }
        let pos = self.pos;
        let body = self.take(len).slice(HEADER_LEN..);
        let what = Frame::from_body(header, from_daemon, body);
        Ok(Some(Item { pos, len, what }))
    }

    fn pending(&self, need: Option<usize>, header: Option<Header>) -> Option<Pending> {
        (!self.buf.is_empty()).then_some(Pending {
            pos: self.pos,
            have: self.buf.len(),
            need,
            header,
        })
    }

    fn pending_frame(&self, from_daemon: bool) -> Option<Pending> {
        match self.frame_head(from_daemon) {
            Ok(Some((header, body_len))) => self.pending(Some(HEADER_LEN + body_len), Some(header)),
            Ok(None) | Err(_) => self.pending(None, None),
        }
    }

    /// Moves the beginning of an item out of the memory of the items before it, which it would
    /// keep until its rest has come.
    fn detach(&mut self) {
        if self.used {
            self.reallocate(self.buf.len());
        }
    }

    fn reallocate(&mut self, capacity: usize) {
        let mut buf = BytesMut::with_capacity(capacity);
        buf.extend_from_slice(&self.buf);
        self.buf = buf;
        self.used = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Endian, GroupId, METHOD_NULL, Membership, MessageType, Name, Version};
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    fn from_client(message_type: MessageType, data: &'static [u8]) -> Frame {
        let (me, to) = (name("#alice#localhost"), [name("room")]);
        let data = Bytes::from_static(data);
        Frame::new(Endian::Little, message_type, me, &to, -7, data)
    }

    fn client_items() -> Vec<ClientItem> {
        vec![
            ClientItem::Connect(Connect::new(b"alice")),
            ClientItem::AuthChoice(AuthChoice::new(&[METHOD_NULL])),
            ClientItem::Frame(from_client(MessageType::JOIN, b"")),
            ClientItem::Frame(from_client(MessageType::SAFE | MessageType::REJECT, b"abc")),
            ClientItem::Frame(from_client(MessageType::AGREED, &[7; 70_000])),
        ]
    }

    fn daemon_items() -> Vec<DaemonItem> {
        let me = name("#alice#localhost");
        let id = GroupId([1, 2, 3]);
        let membership = Membership {
            id,
            sets: vec![vec![me]],
            own: 0,
        };
        let (endian, room) = (Endian::Big, name("room"));
        let cause = MessageType::CAUSED_BY_JOIN;
        vec![
            DaemonItem::AuthList(AuthList::new(&[METHOD_NULL])),
            DaemonItem::Accept(Accept {
                version: Version::OURS,
                private_name: me,
            }),
            DaemonItem::Frame(Frame::new_view(endian, room, cause, &[me], &membership)),
            DaemonItem::Frame(Frame::new_reject(
                endian,
                &from_client(MessageType::AGREED, b"hello"),
            )),
            DaemonItem::Frame(Frame::new_transition(endian, room, id)),
            DaemonItem::Frame(Frame::new_self_leave(endian, room)),
            DaemonItem::Frame(from_client(MessageType::AGREED, &[7; 70_000])),
        ]
    }

    fn client_bytes(item: &ClientItem) -> Vec<u8> {
        match item {
            ClientItem::Connect(connect) => connect.encode(),
            ClientItem::AuthChoice(choice) => choice.0.to_vec(),
            ClientItem::Frame(frame) => frame.encode(),
        }
    }

    fn daemon_bytes(item: &DaemonItem) -> Vec<u8> {
        match item {
            DaemonItem::AuthList(list) => list.encode(),
            DaemonItem::Accept(accept) => accept.encode(Dialect::Full),
            DaemonItem::Reject(reject) => vec![reject.code().cast_unsigned()],
            DaemonItem::Frame(frame) => frame.encode(),
        }
    }

    #[test]
    fn what_a_client_says_does_not_depend_on_how_it_comes() {
        let items = client_items();
        let stream: Vec<u8> = items.iter().flat_map(client_bytes).collect();
        for piece_len in [1, 2, 3, 47, 48, 49, 1000, stream.len()] {
            let mut client = ClientStream::new();
            let (mut found, mut pos) = (Vec::new(), 0);
            for piece in stream.chunks(piece_len) {
                client.receive(piece);
                while let Some(item) = client.next().unwrap() {
                    assert_eq!(item.pos, pos);
                    pos += item.len as u64;
                    found.push(item.what);
                }
            }
            assert_eq!(found, items);
            assert_eq!(pos, stream.len() as u64);
            assert_eq!((client.pending(), client.waiting_len()), (None, 0));
            assert_eq!(
                client.input.buf.capacity(),
                0,
                "an idle stream holds no memory"
            );
        }
    }

    #[test]
    fn what_a_daemon_says_does_not_depend_on_how_it_comes() {
        let items = daemon_items();
        let stream: Vec<u8> = items.iter().flat_map(daemon_bytes).collect();
        for piece_len in [1, 2, 3, 47, 48, 49, 1000, stream.len()] {
            let mut daemon = DaemonStream::new();
            let mut found = Vec::new();
            for piece in stream.chunks(piece_len) {
                daemon.receive(piece);
                while let Some(item) = daemon.next().unwrap() {
                    found.push(item.what);
                }
            }
            assert_eq!(found, items);
            assert_eq!(daemon.pending(), None);
            assert_eq!(
                daemon.input.buf.capacity(),
                0,
                "an idle stream holds no memory"
            );
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_says_so() {
        let frame = from_client(MessageType::AGREED, b"hello").encode();
        let mut daemon = DaemonStream::in_frames();
        daemon.receive(&frame);
        assert!(daemon.next().unwrap().is_some());
        daemon.receive(&frame[..47]);
        assert_eq!(daemon.next(), Ok(None));
        let pending = daemon.pending().unwrap();
        assert_eq!((pending.pos, pending.have, pending.need), (85, 47, None));
        daemon.receive(&frame[47..84]);
        let pending = daemon.pending().unwrap();
        assert_eq!((pending.have, pending.need), (84, Some(85)));
        assert_eq!(pending.header.unwrap().data_len, 5);
    }

    #[test]
    fn a_connect_message_says_how_long_it_should_be() {
        let mut client = ClientStream::new();
        client.receive(b"\x04\x04\0\x01\x06abcd");
        assert_eq!(client.next(), Ok(None));
        let pending = client.pending().unwrap();
        assert_eq!((pending.have, pending.need), (9, Some(11)));
    }

    #[test]
    fn a_length_is_only_believed_as_far_as_bytes_have_come() {
        let mut head = from_client(MessageType::AGREED, b"").encode();
        head[44..48].copy_from_slice(&140_000_u32.to_le_bytes());
        let mut daemon = DaemonStream::in_frames();
        daemon.receive(&head);
        for received in 1..1000 {
            daemon.receive(&[0; 10]);
            assert_eq!(daemon.next(), Ok(None));
            assert!(daemon.input.buf.capacity() <= 2 * (received * 10 + head.len()));
        }
    }

    #[test]
    fn an_error_stays_and_nothing_more_is_kept() {
        let mut daemon = DaemonStream::in_frames();
        let good = from_client(MessageType::AGREED, b"hello").encode();
        let mut bad = good.clone();
        bad[47] = 0xff;
        daemon.receive(&[good, bad].concat());
        assert!(daemon.next().unwrap().is_some());
        let error = daemon.next().unwrap_err();
        assert_eq!(error.pos, 85);
        assert!(matches!(error.error, WireError::NegativeLen(_)));
        daemon.receive(&[0; 1000]);
        assert_eq!(daemon.next(), Err(error));
        assert_eq!(daemon.input.buf.capacity(), 0);
    }

    #[test]
    fn nothing_follows_a_refusal() {
        let mut daemon = DaemonStream::new();
        daemon.receive(b"\xfa");
        let item = daemon.next().unwrap().unwrap();
        assert_eq!(item.what, DaemonItem::Reject(Reject::NotUnique));
        assert_eq!(daemon.next(), Ok(None));
        daemon.receive(b"x");
        assert_eq!(daemon.next().unwrap_err().error, WireError::AfterReject);
    }

    #[test]
    fn a_daemon_without_methods_refuses_at_once() {
        let mut daemon = DaemonStream::new();
        daemon.receive(b"\0\xf7");
        let list = daemon.next().unwrap().unwrap().what;
        assert_eq!(list, DaemonItem::AuthList(AuthList(Vec::new())));
        let reject = daemon.next().unwrap().unwrap().what;
        assert_eq!(reject, DaemonItem::Reject(Reject::Auth));
    }

    #[test]
    fn a_forged_refusal_has_no_more_bytes_than_its_lengths_say() {
        let forged = from_client(MessageType::AGREED | MessageType::REJECT, b"abc");
        let genuine = Frame::new_reject(Endian::Little, &from_client(MessageType::SAFE, b"d"));
        let mut daemon = DaemonStream::in_frames();
        daemon.receive(&[forged.encode(), genuine.encode()].concat());
        for frame in [forged, genuine] {
            let item = daemon.next().unwrap().unwrap().what;
            assert_eq!(item, DaemonItem::Frame(frame));
        }
        assert_eq!(daemon.pending(), None);
    }

    #[test]
    fn old_clients_are_not_asked_for_a_method() {
        let connect = Connect {
            version: Version([3, 15, 0]),
            ..Connect::new(b"old")
        };
        let mut client = ClientStream::new();
        client.receive(&connect.encode());
        client.receive(&from_client(MessageType::JOIN, b"").encode());
        assert!(client.next().unwrap().is_some());
        let item = client.next().unwrap().unwrap().what;
        assert!(matches!(item, ClientItem::Frame(_)));

        let accept = Accept {
            version: Version::OURS,
            private_name: name("#old#localhost"),
        };
        for dialect in [Dialect::WithoutAuth, Dialect::WithoutPatch] {
            let mut daemon = DaemonStream::for_dialect(dialect);
            daemon.receive(&accept.encode(dialect));
            let item = daemon.next().unwrap().unwrap().what;
            assert_eq!(item, DaemonItem::Accept(accept.clone()));
        }
    }
}
