//! Frames: what both sides say after the handshake.

use std::fmt;
use std::ops::BitOr;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    ENDIAN_FLAG, Endian, FRAME_LEN_MAX, GROUPS_MAX, GROUPS_TAKEN_MAX, GroupId, HEADER_LEN,
    Membership, NAME_LEN, Name, OLD_TYPE_LEN, SENT_LEN_MAX, TAKEN_LEN_MAX, WireError,
};
use crate::out_queue::OutQueue;

/// What a frame is: a set of bits, without the flag of the byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageType(pub u32);

impl MessageType {
    /// May be lost.
    pub const UNRELIABLE: Self = Self(0x01);
    /// In any order.
    pub const RELIABLE: Self = Self(0x02);
    /// In the order of the sender.
    pub const FIFO: Self = Self(0x04);
    /// Never before what it may depend on.
    pub const CAUSAL: Self = Self(0x08);
    /// In one order for all.
    pub const AGREED: Self = Self(0x10);
    /// The same, when all daemons have it.
    pub const SAFE: Self = Self(0x20);
    /// Not back to the sender.
    pub const SELF_DISCARD: Self = Self(0x40);
    /// A member has come.
    pub const CAUSED_BY_JOIN: Self = Self(0x100);
    /// A member has left.
    pub const CAUSED_BY_LEAVE: Self = Self(0x200);
    /// A member is gone.
    pub const CAUSED_BY_DISCONNECT: Self = Self(0x400);
    /// Daemons have come or gone.
    pub const CAUSED_BY_NETWORK: Self = Self(0x800);
    /// A new view.
    pub const REG_MEMB: Self = Self(0x1000);
    /// A view is about to end.
    pub const TRANSITION: Self = Self(0x2000);
    /// Wants to be a member.
    pub const JOIN: Self = Self(0x1_0000);
    /// Wants to be no member any more.
    pub const LEAVE: Self = Self(0x2_0000);
    /// Ends the session.
    pub const KILL: Self = Self(0x4_0000);
    /// Refused by a policy of the daemon.
    pub const REJECT: Self = Self(0x40_0000);
    /// Of the flush library: to a part of a group.
    pub const SUBGROUP_CAST: Self = Self(0x4000_0000);

    /// The six services. A frame that has one of these bits is a message of a client, whatever
    /// other bits it has: the daemon passes on what clients forge.
    pub const SERVICES: Self = Self(0x3f);
    /// What a request of a client has one bit of, and no other.
    pub const REQUESTS: Self = Self(0x7_003f);

    /// Whether it has one of these bits.
    pub const fn intersects(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }

    /// Those of its bits.
    pub const fn only(self, bits: Self) -> Self {
        Self(self.0 & bits.0)
    }
}

impl BitOr for MessageType {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for MessageType {
    /// `CAUSED_BY_JOIN|REG_MEMB`, in the order of the bits; what has no name in hex; 0 for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut separator = "";
        for (bit, name) in BIT_NAMES {
            if rest & bit.0 != 0 {
                write!(f, "{separator}{name}")?;
                separator = "|";
                rest &= !bit.0;
            }
        }
        match rest {
            0 if separator.is_empty() => f.write_str("0"),
            0 => Ok(()),
            rest => write!(f, "{separator}{rest:#x}"),
        }
    }
}

const BIT_NAMES: [(MessageType, &str); 18] = [
    (MessageType::UNRELIABLE, "UNRELIABLE"),
    (MessageType::RELIABLE, "RELIABLE"),
    (MessageType::FIFO, "FIFO"),
    (MessageType::CAUSAL, "CAUSAL"),
    (MessageType::AGREED, "AGREED"),
    (MessageType::SAFE, "SAFE"),
    (MessageType::SELF_DISCARD, "SELF_DISCARD"),
    (MessageType::CAUSED_BY_JOIN, "CAUSED_BY_JOIN"),
    (MessageType::CAUSED_BY_LEAVE, "CAUSED_BY_LEAVE"),
    (MessageType::CAUSED_BY_DISCONNECT, "CAUSED_BY_DISCONNECT"),
    (MessageType::CAUSED_BY_NETWORK, "CAUSED_BY_NETWORK"),
    (MessageType::REG_MEMB, "REG_MEMB"),
    (MessageType::TRANSITION, "TRANSITION"),
    (MessageType::JOIN, "JOIN"),
    (MessageType::LEAVE, "LEAVE"),
    (MessageType::KILL, "KILL"),
    (MessageType::REJECT, "REJECT"),
    (MessageType::SUBGROUP_CAST, "SUBGROUP_CAST"),
];

/// The application's own type of a message, a signed 16-bit number. It has its own byte order,
/// since the daemon passes it on as the sender wrote it.
///
/// | byte | little-endian | big-endian |
/// |---|---|---|
/// | 0 | 0x80 | 0 |
/// | 1, 2 | the number, low byte first | high byte first |
/// | 3 | 0x80 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint([u8; 4]);

impl Hint {
    /// Of a writer of this byte order.
    pub const fn new(endian: Endian, mess_type: i16) -> Self {
        let number = (mess_type.cast_unsigned() as u32) << 8;
        Self(endian.to_bytes(number | endian.flag()))
    }

    /// As it came.
    pub const fn from_field(field: [u8; 4]) -> Self {
        Self(field)
    }

    /// As it goes out.
    pub const fn field(self) -> [u8; 4] {
        self.0
    }

    /// The byte order of its writer, which need not be that of the header; `None` if it says both.
    pub fn endian(self) -> Option<Endian> {
        Endian::of_word(self.0)
    }

    /// The number; `None` if its byte order is unknown.
    pub fn mess_type(self) -> Option<i16> {
        let number = self.endian()?.number(self.0) & !ENDIAN_FLAG;
        Some(((number >> 8) as u16).cast_signed())
    }

    /// Whether a daemon takes it: no bits but those of the flag and the number.
    pub const fn is_legal(self) -> bool {
        let [first, _, _, last] = self.0;
        first & 0x7f == 0 && last & 0x7f == 0
    }
}

/// The first 48 bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The byte order of this header, and of numbers in the data of the daemon's own messages.
    pub endian: Endian,
    /// What the frame is
    pub message_type: MessageType,
    /// The sender; in the daemon's messages about a group that.
    pub name: Name,
    /// Number of names
    pub count: usize,
    /// The application's type
    pub hint: Hint,
    /// Bytes of data
    pub data_len: usize,
}

impl Header {
    /// What `bytes` begin with, or `None` if there are less than [`HEADER_LEN`]. Not more than
    /// [`FRAME_LEN_MAX`] bytes belong to it.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((fields, _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let word = |pos: usize| {
            [
                fields[pos],
                fields[pos + 1],
                fields[pos + 2],
                fields[pos + 3],
            ]
        };
        let endian = Endian::of_word(word(0)).ok_or(WireError::Endian(word(0)))?;
        let mut name = [0; NAME_LEN];
        name.copy_from_slice(&fields[4..4 + NAME_LEN]);
        let count = endian.number(word(36)).cast_signed();
        let data_len = endian.number(word(44)).cast_signed();
        let header = Self {
            endian,
            message_type: MessageType(endian.number(word(0)) & !ENDIAN_FLAG),
            name: Name::from_field(name),
            count: usize::try_from(count).map_err(|_| WireError::NegativeCount(count))?,
            hint: Hint::from_field(word(40)),
            data_len: usize::try_from(data_len).map_err(|_| WireError::NegativeLen(data_len))?,
        };
        let len = header.count as u64 * NAME_LEN as u64 + header.data_len as u64;
        if len > (FRAME_LEN_MAX - OLD_TYPE_LEN - HEADER_LEN) as u64 {
            return Err(WireError::TooLong(len + HEADER_LEN as u64));
        }
        Ok(Some(header))
    }

    /// What a client wants by this.
    pub const fn request(&self) -> Request {
        if self.message_type.intersects(MessageType::JOIN) {
            Request::Join
        } else if self.message_type.intersects(MessageType::LEAVE) {
            Request::Leave
        } else if self.message_type.intersects(MessageType::KILL) {
            Request::Kill
        } else {
            Request::Multicast
        }
    }

    /// The same, if a daemon does as the session `me` wants. It ends the session otherwise.
    pub fn check_request(&self, me: &Name) -> Result<Request, RequestError> {
        let request_bits = self.message_type.only(MessageType::REQUESTS).0;
        if request_bits.count_ones() != 1 {
            return Err(RequestError::Type(self.message_type));
        }
        if self.name != *me {
            return Err(RequestError::Sender(self.name));
        }
        if self.count > GROUPS_TAKEN_MAX {
            return Err(RequestError::Groups(self.count));
        }
        if !self.hint.is_legal() {
            return Err(RequestError::Hint(self.hint));
        }
        let len = self.count * NAME_LEN + self.data_len;
        if len > TAKEN_LEN_MAX {
            return Err(RequestError::TooLong(len));
        }
        Ok(self.request())
    }

    /// What a daemon says by this.
    pub const fn delivery(&self) -> Delivery {
        // The services first: a client may have forged any other bit, but has to have one of these.
        if self.message_type.intersects(MessageType::SERVICES) {
            Delivery::Regular
        } else if self.message_type.intersects(MessageType::REJECT) {
            Delivery::Reject
        } else if self.message_type.intersects(MessageType::REG_MEMB) {
            Delivery::Membership
        } else if self.message_type.intersects(MessageType::TRANSITION) {
            Delivery::Transition
        } else if self.message_type.intersects(MessageType::CAUSED_BY_LEAVE) {
            Delivery::SelfLeave
        } else {
            Delivery::Unknown
        }
    }

    /// Bytes of names and data.
    pub(super) const fn body_len(&self) -> usize {
        self.count * NAME_LEN + self.data_len
    }

    fn put(&self, head: &mut BytesMut) {
        let word = |number: usize| {
            // What does not fit is larger than any frame.
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            self.endian.to_bytes(number)
        };
        let message_type = self.message_type.0 & !ENDIAN_FLAG | self.endian.flag();
        head.put_slice(&self.endian.to_bytes(message_type));
        head.put_slice(self.name.field());
        head.put_slice(&word(self.count));
        head.put_slice(&self.hint.field());
        head.put_slice(&word(self.data_len));
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To be a member of the group that is the first name.
    Join,
    /// To be no member of it any more.
    Leave,
    /// To be disconnected.
    Kill,
    /// To send the data to all names.
    Multicast,
}

/// What a daemon ends a session for, without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Not exactly one service or request.
    Type(MessageType),
    /// Not the private name of the session.
    Sender(Name),
    /// Too many names.
    Groups(usize),
    /// Bits that belong to nothing.
    Hint(Hint),
    /// Too many bytes of names and data.
    TooLong(usize),
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(message_type) => write!(f, "a request of type {message_type}"),
            Self::Sender(name) => write!(f, "a request in the name of {name}"),
            Self::Groups(count) => write!(f, "a request with {count} names"),
            Self::Hint(hint) => write!(f, "a request with the hint {:02x?}", hint.field()),
            Self::TooLong(len) => write!(f, "a request with {len} bytes of names and data"),
        }
    }
}

impl std::error::Error for RequestError {}

/// What a daemon says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A message. The names are those that it was sent to.
    Regular,
    /// A new view: the names are its members, the data a [`Membership`].
    Membership,
    /// A view is about to end: the data are its [`GroupId`].
    Transition,
    /// We have left the group.
    SelfLeave,
    /// A policy of the daemon has refused what we sent.
    Reject,
    /// Nothing that we know.
    Unknown,
}

/// A frame. The data, and the names of a frame that has come, are slices of what was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What goes out has the number of names and the length of data that `names` and `data` have.
    pub header: Header,
    /// In a REJECT the type of what is refused, without the flag of the byte order.
    pub old_type: Option<MessageType>,
    /// The names, [`NAME_LEN`] bytes each.
    pub names: Bytes,
    /// The data
    pub data: Bytes,
}

impl Frame {
    /// One with the numbers of its writer in this byte order.
    pub fn new(
        endian: Endian,
        message_type: MessageType,
        name: Name,
        names: &[Name],
        mess_type: i16,
        data: Bytes,
    ) -> Self {
        let header = Header {
            endian,
            message_type,
            name,
            count: names.len(),
            hint: Hint::new(endian, mess_type),
            data_len: data.len(),
        };
        let names: Vec<u8> = names.iter().flat_map(|name| *name.field()).collect();
        Self {
            header,
            old_type: None,
            names: names.into(),
            data,
        }
    }

    /// A daemon's message of a new view of `group` with these members, caused by one of the
    /// `CAUSED_BY` types.
    pub fn new_view(
        endian: Endian,
        group: Name,
        cause: MessageType,
        members: &[Name],
        membership: &Membership,
    ) -> Self {
        let message_type = MessageType::REG_MEMB | cause;
        let data = membership.encode(endian).into();
        Self::new(endian, message_type, group, members, 0, data)
    }

    /// A daemon's signal that a view of `group` is about to end.
    pub fn new_transition(endian: Endian, group: Name, id: GroupId) -> Self {
        let data = Bytes::copy_from_slice(&id.encode(endian));
        Self::new(endian, MessageType::TRANSITION, group, &[], 0, data)
    }

    /// A daemon's answer to one who leaves `group`.
    pub fn new_self_leave(endian: Endian, group: Name) -> Self {
        let message_type = MessageType::CAUSED_BY_LEAVE;
        Self::new(endian, message_type, group, &[], 0, Bytes::new())
    }

    /// A daemon's refusal of a request: the same with the sender behind its names. A refused JOIN
    /// shows as CAUSED_BY_JOIN, a LEAVE as CAUSED_BY_LEAVE.
    pub fn new_reject(endian: Endian, request: &Self) -> Self {
        let old_type = match request.header.request() {
            Request::Join => MessageType::CAUSED_BY_JOIN,
            Request::Leave => MessageType::CAUSED_BY_LEAVE,
            Request::Kill | Request::Multicast => request.header.message_type,
        };
        let names = [&request.names[..], request.header.name.field()].concat();
        let header = Header {
            endian,
            message_type: MessageType::REJECT,
            count: names.len() / NAME_LEN,
            ..request.header
        };
        Self {
            header,
            old_type: Some(old_type),
            names: names.into(),
            data: request.data.clone(),
        }
    }

    /// From the header and what follows it in the stream.
    pub(super) fn from_body(header: Header, from_daemon: bool, mut body: Bytes) -> Self {
        let mut old_type = None;
        if from_daemon && header.delivery() == Delivery::Reject {
            let field = body.split_to(OLD_TYPE_LEN);
            let number = header
                .endian
                .number([field[0], field[1], field[2], field[3]]);
            old_type = Some(MessageType(number & !ENDIAN_FLAG));
        }
        let names = body.split_to(header.count * NAME_LEN);
        Self {
            header,
            old_type,
            names,
            data: body,
        }
    }

    /// The names: groups that it was sent to, or members of a view.
    pub fn names(&self) -> impl ExactSizeIterator<Item = Name> {
        self.names.chunks_exact(NAME_LEN).map(|chunk| {
            let mut field = [0; NAME_LEN];
            field.copy_from_slice(chunk);
            Name::from_field(field)
        })
    }

    /// The data of a membership message. Only of one: forged ones fool it.
    pub fn membership(&self) -> Result<Membership, WireError> {
        Membership::decode(self.header.endian, &self.data)
    }

    /// The data of a transitional signal.
    pub fn transition(&self) -> Result<GroupId, WireError> {
        let id = GroupId::decode(self.header.endian, &self.data);
        id.ok_or(WireError::TransitionLen(self.data.len()))
    }

    /// Its bytes without the data.
    pub fn head(&self) -> Bytes {
        let header = Header {
            count: self.names.len() / NAME_LEN,
            data_len: self.data.len(),
            ..self.header
        };
        let mut head = BytesMut::with_capacity(HEADER_LEN + OLD_TYPE_LEN + self.names.len());
        header.put(&mut head);
        if let Some(old_type) = self.old_type {
            let number = old_type.0 & !ENDIAN_FLAG | header.endian.flag();
            head.put_slice(&header.endian.to_bytes(number));
        }
        head.put_slice(&self.names);
        head.freeze()
    }

    /// Queues it. Long data are not copied.
    pub fn queue(&self, out: &mut OutQueue) {
        out.push(self.head());
        out.push(self.data.clone());
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        [&self.head()[..], &self.data].concat()
    }
}

/// The bytes before the data of a multicast that a daemon survives, or what is wrong with it.
pub fn multicast_head(
    message_type: MessageType,
    me: Name,
    groups: &[Name],
    mess_type: i16,
    data_len: usize,
) -> Result<Bytes, RequestError> {
    if groups.len() > GROUPS_MAX {
        return Err(RequestError::Groups(groups.len()));
    }
    let len = data_len.saturating_add(groups.len() * NAME_LEN);
    if len > SENT_LEN_MAX {
        return Err(RequestError::TooLong(len));
    }
    let header = Header {
        endian: Endian::Little,
        message_type,
        name: me,
        count: groups.len(),
        hint: Hint::new(Endian::Little, mess_type),
        data_len,
    };
    header.check_request(&me)?;
    let mut head = BytesMut::with_capacity(HEADER_LEN + groups.len() * NAME_LEN);
    header.put(&mut head);
    for group in groups {
        head.put_slice(group.field());
    }
    Ok(head.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_multicast_has_these_bytes() {
        let me = name("#alice#localhost");
        let head = multicast_head(MessageType::AGREED, me, &[name("room")], 0x1234, 5).unwrap();
        let mut expected = vec![0x90, 0, 0, 0x80];
        expected.extend_from_slice(me.field());
        expected.extend_from_slice(&[1, 0, 0, 0, 0x80, 0x34, 0x12, 0x80, 5, 0, 0, 0]);
        expected.extend_from_slice(name("room").field());
        assert_eq!(head, expected);
    }

    #[test]
    fn what_would_crash_the_daemon_has_no_bytes() {
        let me = name("#alice#localhost");
        let head = |message_type, groups: usize, data_len| {
            let groups = vec![name("room"); groups];
            multicast_head(message_type, me, &groups, 0, data_len).map(drop)
        };
        let agreed = MessageType::AGREED;
        assert_eq!(head(agreed, 1, 143_119), Ok(()));
        assert_eq!(
            head(agreed, 1, 143_120),
            Err(RequestError::TooLong(143_152))
        );
        let max = Err(RequestError::TooLong(usize::MAX));
        assert_eq!(head(agreed, 1, usize::MAX), max);
        assert_eq!(head(agreed, 43, 0), Ok(()));
        assert_eq!(head(agreed, 44, 0), Err(RequestError::Groups(44)));
        let both = agreed | MessageType::SAFE;
        assert_eq!(head(both, 1, 0), Err(RequestError::Type(both)));
    }

    #[test]
    fn a_hint_has_a_byte_order_of_its_own() {
        assert_eq!(
            Hint::new(Endian::Little, 0x1234).field(),
            [0x80, 0x34, 0x12, 0x80]
        );
        assert_eq!(Hint::new(Endian::Big, 0x1234).field(), [0, 0x12, 0x34, 0]);
        for mess_type in [0, 1, -1, -2, i16::MIN, i16::MAX] {
            for endian in [Endian::Little, Endian::Big] {
                let hint = Hint::new(endian, mess_type);
                assert!(hint.is_legal());
                assert_eq!(hint.endian(), Some(endian));
                assert_eq!(hint.mess_type(), Some(mess_type));
            }
        }
        let half = Hint::from_field([0x80, 0, 0, 0]);
        assert_eq!((half.mess_type(), half.is_legal()), (None, true));
        assert!(!Hint::from_field([0, 0, 0, 1]).is_legal());
    }

    #[test]
    fn forged_bits_do_not_make_a_message_of_the_daemons() {
        let delivery = |message_type| {
            let frame = Frame::new(
                Endian::Big,
                message_type,
                name("#a#d"),
                &[],
                0,
                Bytes::new(),
            );
            frame.header.delivery()
        };
        let forged = MessageType::AGREED | MessageType::REG_MEMB | MessageType::TRANSITION;
        assert_eq!(delivery(forged), Delivery::Regular);
        let leave = MessageType::CAUSED_BY_LEAVE;
        assert_eq!(delivery(leave), Delivery::SelfLeave);
        assert_eq!(
            delivery(leave | MessageType::REG_MEMB),
            Delivery::Membership
        );
        assert_eq!(delivery(MessageType::TRANSITION), Delivery::Transition);
        assert_eq!(delivery(MessageType::REJECT), Delivery::Reject);
        let forged = MessageType::REJECT | MessageType::FIFO;
        assert_eq!(delivery(forged), Delivery::Regular);
        assert_eq!(delivery(MessageType(0x80)), Delivery::Unknown);
    }

    #[test]
    fn requests_that_end_a_session_are_found() {
        let me = name("#alice#localhost");
        let header = |message_type, groups: usize, len: usize| {
            let groups = vec![name("room"); groups];
            let data = Bytes::from(vec![0; len]);
            Frame::new(Endian::Little, message_type, me, &groups, 0, data).header
        };
        let join = header(MessageType::JOIN, 1, 0);
        assert_eq!(join.check_request(&me), Ok(Request::Join));
        let other = name("#bob#localhost");
        assert_eq!(join.check_request(&other), Err(RequestError::Sender(me)));
        let none = header(MessageType::SELF_DISCARD, 1, 0);
        assert!(none.check_request(&me).is_err());
        let many = header(MessageType::SAFE, 101, 0);
        assert_eq!(many.check_request(&me), Err(RequestError::Groups(101)));
        assert!(
            header(MessageType::SAFE, 1, 143_920)
                .check_request(&me)
                .is_ok()
        );
        assert!(
            header(MessageType::SAFE, 1, 143_921)
                .check_request(&me)
                .is_err()
        );
        let hint = Hint::from_field([0x81, 0, 0, 0x80]);
        let stray = Header { hint, ..join };
        assert_eq!(stray.check_request(&me), Err(RequestError::Hint(hint)));
    }

    #[test]
    fn types_are_shown_by_name() {
        let shown = |number| MessageType(number).to_string();
        assert_eq!(shown(0x1100), "CAUSED_BY_JOIN|REG_MEMB");
        assert_eq!(shown(0), "0");
        assert_eq!(shown(0x8_0010), "AGREED|0x80000");
    }

    #[test]
    fn a_refusal_repeats_the_request() {
        let me = name("#alice#localhost");
        let (endian, join) = (Endian::Little, MessageType::JOIN);
        let join = Frame::new(endian, join, me, &[name("denied")], 0, Bytes::new());
        let reject = Frame::new_reject(endian, &join);
        assert_eq!(reject.old_type, Some(MessageType::CAUSED_BY_JOIN));
        assert_eq!(reject.names().collect::<Vec<_>>(), [name("denied"), me]);
        // Four bytes more than the lengths say.
        assert_eq!(reject.encode().len(), 48 + 4 + 2 * 32);
        assert_eq!(reject.encode()[48..52], [0x80, 1, 0, 0x80]);
    }
}
