//! What is said before the first frame.

use std::fmt;

use super::{NAME_LEN_MAX, Name, USER_LEN_MAX, WireError, is_legal};

/// Authentication by nothing: what a daemon asks for unless its administrator chose otherwise.
pub const METHOD_NULL: &[u8] = b"NULL";

/// Authentication by address: the daemon looks it up in a file, and nothing is said about it.
pub const METHOD_IP: &[u8] = b"IP";

/// A version: major, minor, patch. The daemon compares them as signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub [u8; 3]);

impl Version {
    /// What we say that we are, and what this describes.
    pub const OURS: Self = Self([4, 4, 0]);

    /// What the daemon speaks with a client of this version.
    pub const fn dialect(self) -> Dialect {
        let [major, minor, _] = self.0;
        match (major.cast_signed(), minor.cast_signed()) {
            (..3, _) | (3, ..1) => Dialect::Refused,
            (3, ..15) => Dialect::WithoutPatch,
            (3, 15) => Dialect::WithoutAuth,
            _ => Dialect::Full,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// How much of the handshake a client knows, by its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Below 3.1: the daemon refuses it. Its connect message is read as if it were in full.
    Refused,
    /// 3.1 to 3.14: two bytes of version in both directions, and no authentication.
    WithoutPatch,
    /// 3.15: three bytes of version, and no authentication.
    WithoutAuth,
    /// From 3.16 on, whatever will come.
    Full,
}

impl Dialect {
    const fn version_len(self) -> usize {
        match self {
            Self::WithoutPatch => 2,
            Self::Refused | Self::WithoutAuth | Self::Full => 3,
        }
    }

    /// Whether the method of authentication is negotiated.
    pub const fn has_auth(self) -> bool {
        matches!(self, Self::Refused | Self::Full)
    }
}

/// The first message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// The version of its library. The patch is 0 if the dialect has none.
    pub version: Version,
    /// Bit 0 and the high nibble have a meaning.
    pub flags: u8,
    /// What it wants to be called; empty if the daemon is to invent a name.
    pub user: Vec<u8>,
}

impl Connect {
    /// Of a client that wants to be called `user`, and membership messages.
    pub fn new(user: &[u8]) -> Self {
        Self {
            version: Version::OURS,
            flags: MEMBERSHIP_FLAG,
            user: user.to_vec(),
        }
    }

    /// Whether it wants membership messages.
    pub const fn membership(&self) -> bool {
        self.flags & MEMBERSHIP_FLAG != 0
    }

    /// The priority, which is 0 or 1, and which the daemon does not use.
    pub const fn priority(&self) -> u8 {
        self.flags >> 4
    }

    /// What a daemon refuses it for, apart from a name that is in use.
    pub fn reject(&self) -> Option<Reject> {
        if self.version.dialect() == Dialect::Refused {
            return Some(Reject::Version);
        }
        let legal = self.user.len() <= USER_LEN_MAX && self.user.iter().all(is_legal);
        (!legal).then_some(Reject::IllegalName)
    }

    /// Its bytes, to be sent in one write. A user name longer than 255 bytes, which no daemon takes
    /// anyway, is cut.
    pub fn encode(&self) -> Vec<u8> {
        let len = u8::try_from(self.user.len()).unwrap_or(u8::MAX);
        let version_len = self.version.dialect().version_len();
        let mut bytes = self.version.0[..version_len].to_vec();
        bytes.extend([self.flags, len]);
        bytes.extend_from_slice(&self.user[..usize::from(len)]);
        bytes
    }

    /// What `bytes` begin with, and its length; `None` if it has not come as a whole.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let (head, name_len) = Self::decode_head(bytes)?;
        let len = head.version.dialect().version_len() + 2;
        let user = bytes.get(len..len + name_len)?.to_vec();
        Some((Self { user, ..head }, len + name_len))
    }

    /// All but the name, and the length that this should have; `None` if not even that has come.
    pub fn decode_head(bytes: &[u8]) -> Option<(Self, usize)> {
        let [major, minor, ..] = *bytes else {
            return None;
        };
        let version_len = Version([major, minor, 0]).dialect().version_len();
        let [flags, name_len] = *bytes.get(version_len..version_len + 2)? else {
            return None;
        };
        let patch = if version_len == 3 { bytes[2] } else { 0 };
        let head = Self {
            version: Version([major, minor, patch]),
            flags,
            user: Vec::new(),
        };
        Some((head, usize::from(name_len)))
    }
}

/// The methods of authentication that a daemon allows: names, each with a space behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthList(pub Vec<u8>);

impl AuthList {
    /// Of these methods. What is longer than 127 bytes is cut, as its length is a signed byte.
    pub fn new(methods: &[&[u8]]) -> Self {
        let mut list = Vec::new();
        for method in methods {
            list.extend_from_slice(method);
            list.push(b' ');
        }
        list.truncate(LIST_LEN_MAX);
        Self(list)
    }

    /// The methods.
    pub fn methods(&self) -> impl Iterator<Item = &[u8]> {
        let methods = self.0.split(|byte| matches!(byte, b' ' | 0));
        methods.filter(|method| !method.is_empty())
    }

    /// Its bytes with their length. If there is no method a [`Reject::Auth`] has to follow.
    pub fn encode(&self) -> Vec<u8> {
        let len = self.0.len().min(LIST_LEN_MAX);
        let mut bytes = vec![u8::try_from(len).unwrap_or_default()];
        bytes.extend_from_slice(&self.0[..len]);
        bytes
    }
}

/// The methods that a client chooses: three fields, the unused ones zero.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthChoice(pub [u8; Self::LEN]);

impl AuthChoice {
    /// Its bytes.
    pub const LEN: usize = 3 * METHOD_LEN;

    /// Of these methods, two at most: with a third one the daemon reads beyond its memory. Further
    /// ones, and what is longer than 29 bytes of a name, are cut.
    pub fn new(methods: &[&[u8]]) -> Self {
        let mut fields = [0; Self::LEN];
        let methods = methods.iter().take(2);
        for (field, method) in fields.chunks_mut(METHOD_LEN).zip(methods) {
            let len = method.len().min(METHOD_LEN - 1);
            field[..len].copy_from_slice(&method[..len]);
        }
        Self(fields)
    }

    /// The methods, up to the first unused field.
    pub fn methods(&self) -> impl Iterator<Item = &[u8]> {
        let names = self.0.chunks(METHOD_LEN).map(|field| {
            let len = field.iter().position(|byte| *byte == 0);
            &field[..len.unwrap_or(METHOD_LEN)]
        });
        names.take_while(|name| !name.is_empty())
    }

    /// What `bytes` begin with; `None` if it has not come as a whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied().map(Self)
    }
}

impl fmt::Debug for AuthChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let methods = self
            .methods()
            .map(|method| method.escape_ascii().to_string());
        f.debug_list().entries(methods).finish()
    }
}

/// The daemon takes the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The daemon's version.
    pub version: Version,
    /// What the client is called: `#user#daemon`. It has to stand in each of its frames.
    pub private_name: Name,
}

impl Accept {
    /// Its bytes for a client of this dialect.
    pub fn encode(&self, dialect: Dialect) -> Vec<u8> {
        let name = self.private_name.as_bytes();
        let name = &name[..name.len().min(NAME_LEN_MAX)];
        let mut bytes = vec![ACCEPTED];
        bytes.extend_from_slice(&self.version.0[..dialect.version_len()]);
        bytes.push(u8::try_from(name.len()).unwrap_or_default());
        bytes.extend_from_slice(name);
        bytes
    }
}

/// What is at the start of the daemon's stream, and its length.
pub(super) type Decoded<T> = Result<Option<(T, usize)>, WireError>;

/// The list of methods, or a refusal.
pub(super) fn decode_list(bytes: &[u8]) -> Decoded<Result<AuthList, Reject>> {
    let Some((len, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let Ok(len) = usize::try_from(len.cast_signed()) else {
        return Ok(Some((Err(Reject::from_code(len.cast_signed())), 1)));
    };
    let list = rest.get(..len).map(|list| AuthList(list.to_vec()));
    Ok(list.map(|list| (Ok(list), 1 + len)))
}

/// The last answer of the handshake: accepted, or refused.
pub(super) fn decode_answer(bytes: &[u8], dialect: Dialect) -> Decoded<Result<Accept, Reject>> {
    let Some((code, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    match code.cast_signed() {
        code @ ..0 => return Ok(Some((Err(Reject::from_code(code)), 1))),
        1 => {}
        code @ (0 | 2..) => return Err(WireError::Answer(code)),
    }
    let version_len = dialect.version_len();
    let Some((version, [name_len, name @ ..])) = rest.split_at_checked(version_len) else {
        return Ok(None);
    };
    let len = usize::from(*name_len);
    if !(1..=NAME_LEN_MAX).contains(&len) {
        return Err(WireError::PrivateNameLen(*name_len));
    }
    let Some(name) = name.get(..len) else {
        return Ok(None);
    };
    let private_name = Name::new(name).ok_or(WireError::PrivateNameLen(*name_len))?;
    let version = Version([version[0], version[1], version.get(2).copied().unwrap_or(0)]);
    let accept = Accept {
        version,
        private_name,
    };
    Ok(Some((Ok(accept), 1 + version_len + 1 + len)))
}

/// Why a daemon refuses a connection: one negative byte. It closes at once after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// It has as many clients as it takes (997).
    Quota,
    /// There is no name. No daemon says so.
    NoName,
    /// The name is too long, has a character that is not allowed, or came in pieces.
    IllegalName,
    /// The name is in use at this daemon, or was a moment ago.
    NotUnique,
    /// The client is older than 3.1.
    Version,
    /// The method of authentication is not allowed, or failed, or the choice came in pieces.
    Auth,
    /// Another one.
    Other(i8),
}

impl Reject {
    /// From its byte.
    pub const fn from_code(code: i8) -> Self {
        match code {
            -3 => Self::Quota,
            -4 => Self::NoName,
            -5 => Self::IllegalName,
            -6 => Self::NotUnique,
            -7 => Self::Version,
            -9 => Self::Auth,
            other => Self::Other(other),
        }
    }

    /// Its byte.
    pub const fn code(self) -> i8 {
        match self {
            Self::Quota => -3,
            Self::NoName => -4,
            Self::IllegalName => -5,
            Self::NotUnique => -6,
            Self::Version => -7,
            Self::Auth => -9,
            Self::Other(code) => code,
        }
    }

    /// What Spread's manual calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quota => "REJECT_QUOTA",
            Self::NoName => "REJECT_NO_NAME",
            Self::IllegalName => "REJECT_ILLEGAL_NAME",
            Self::NotUnique => "REJECT_NOT_UNIQUE",
            Self::Version => "REJECT_VERSION",
            Self::Auth => "REJECT_AUTH",
            Self::Other(-1) => "ILLEGAL_SPREAD",
            Self::Other(-2) => "COULD_NOT_CONNECT",
            Self::Other(-8) => "CONNECTION_CLOSED",
            Self::Other(_) => "unknown",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.code())
    }
}

/// Of [`Connect::flags`].
const MEMBERSHIP_FLAG: u8 = 1;

/// The first byte of [`Accept`].
const ACCEPTED: u8 = 1;

/// Bytes of the field of a method in [`AuthChoice`].
const METHOD_LEN: usize = 30;

/// Bytes of [`AuthList`], as its length is a signed byte. A daemon sends 90 at most.
const LIST_LEN_MAX: usize = i8::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_says_what_a_client_knows() {
        let dialect = |major, minor| Version([major, minor, 0]).dialect();
        assert_eq!(dialect(3, 0), Dialect::Refused);
        assert_eq!(dialect(0x80, 4), Dialect::Refused);
        assert_eq!(dialect(2, 99), Dialect::Refused);
        assert_eq!(dialect(3, 1), Dialect::WithoutPatch);
        assert_eq!(dialect(3, 14), Dialect::WithoutPatch);
        assert_eq!(dialect(3, 15), Dialect::WithoutAuth);
        assert_eq!(dialect(3, 16), Dialect::Full);
        assert_eq!(dialect(4, 4), Dialect::Full);
        assert_eq!(dialect(5, 1), Dialect::Full);
    }

    #[test]
    fn a_connect_message_is_read_when_its_last_byte_is_there() {
        let full = Connect::new(b"alice");
        assert_eq!(full.encode(), b"\x04\x04\0\x01\x05alice");
        let old = Connect {
            version: Version([3, 9, 0]),
            flags: 0x10,
            user: b"old".to_vec(),
        };
        assert_eq!(old.encode(), b"\x03\x09\x10\x03old");
        for connect in [full, old, Connect::new(b"")] {
            let mut bytes = connect.encode();
            for len in 0..bytes.len() {
                assert_eq!(Connect::decode(&bytes[..len]), None);
            }
            let len = bytes.len();
            bytes.extend_from_slice(b"NULL");
            assert_eq!(Connect::decode(&bytes), Some((connect, len)));
        }
    }

    #[test]
    fn names_and_versions_are_refused_as_the_daemon_does() {
        let reject = |version, user: &[u8]| {
            let connect = Connect {
                version: Version(version),
                ..Connect::new(user)
            };
            connect.reject()
        };
        assert_eq!(reject([4, 4, 0], b"$tenbytes~"), None);
        assert_eq!(reject([4, 4, 0], b""), None);
        assert_eq!(reject([4, 4, 0], b"elevenbytes"), Some(Reject::IllegalName));
        assert_eq!(reject([4, 4, 0], b"a#b"), Some(Reject::IllegalName));
        assert_eq!(reject([4, 4, 0], b"a b"), Some(Reject::IllegalName));
        assert_eq!(reject([3, 0, 9], b"a b"), Some(Reject::Version));
    }

    #[test]
    fn a_choice_of_methods_has_ninety_bytes() {
        let choice = AuthChoice::new(&[METHOD_NULL]);
        assert_eq!(choice.0[..5], *b"NULL\0");
        assert!(choice.0[4..].iter().all(|byte| *byte == 0));
        assert_eq!(choice.methods().collect::<Vec<_>>(), [METHOD_NULL]);
        assert_eq!(AuthChoice::decode(&choice.0[..89]), None);
        assert_eq!(AuthChoice::decode(&choice.0), Some(choice));
        let three = AuthChoice::new(&[b"A", b"B", b"C"]);
        assert_eq!(three.methods().count(), 2);
    }

    #[test]
    fn a_list_has_a_space_behind_each_method() {
        let list = AuthList::new(&[METHOD_NULL, METHOD_IP]);
        assert_eq!(list.encode(), b"\x08NULL IP ");
        assert_eq!(
            decode_list(b"\x08NULL IP \x01"),
            Ok(Some((Ok(list.clone()), 9)))
        );
        assert_eq!(decode_list(b"\x08NULL IP"), Ok(None));
        assert_eq!(list.methods().collect::<Vec<_>>(), [METHOD_NULL, METHOD_IP]);
        assert_eq!(decode_list(b"\xfa"), Ok(Some((Err(Reject::NotUnique), 1))));
    }

    #[test]
    fn an_accept_is_read_when_its_last_byte_is_there() {
        let accept = Accept {
            version: Version::OURS,
            private_name: Name::private(b"alice", b"localhost").unwrap(),
        };
        for dialect in [Dialect::Full, Dialect::WithoutAuth, Dialect::WithoutPatch] {
            let bytes = accept.encode(dialect);
            for len in 0..bytes.len() {
                assert_eq!(decode_answer(&bytes[..len], dialect), Ok(None));
            }
            let expected = Some((Ok(accept.clone()), bytes.len()));
            assert_eq!(decode_answer(&bytes, dialect), Ok(expected));
        }
    }

    #[test]
    fn answers_that_no_daemon_gives_are_errors() {
        let answer = |bytes: &[u8]| decode_answer(bytes, Dialect::Full);
        assert_eq!(answer(b"\0"), Err(WireError::Answer(0)));
        assert_eq!(answer(b"\x02"), Err(WireError::Answer(2)));
        let zero = answer(b"\x01\x04\x04\0\0");
        assert_eq!(zero, Err(WireError::PrivateNameLen(0)));
        let long = answer(b"\x01\x04\x04\0\x20");
        assert_eq!(long, Err(WireError::PrivateNameLen(32)));
    }

    #[test]
    fn reject_codes_are_signed_bytes() {
        for code in i8::MIN..0 {
            assert_eq!(Reject::from_code(code).code(), code);
        }
        assert_eq!(Reject::NotUnique.code().cast_unsigned(), 0xfa);
    }
}
