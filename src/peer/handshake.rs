//! Who is there: hellos, and the proof that both sides have the key of the group.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};
use ring::hmac;

use super::PeerError;
use super::frame::{Seal, encode_head, is_same};
use crate::cursor::Cursor;
use crate::ids::NodeId;

/// What a stream begins with.
const MAGIC: &[u8; 8] = b"stdbpeer";

/// What a stream of TLS begins with: a record of the handshake.
const TLS_RECORD: u8 = 22;

/// The version of all that is behind it.
pub(super) const VERSION: u16 = 1;

/// Bytes of magic and version.
pub(super) const PREFACE_LEN: usize = MAGIC.len() + 2;

/// Bytes of a frame of the handshake: those of a hello with the longest name of a group.
pub(super) const HANDSHAKE_LEN_MAX: usize = 1 + NodeId::LEN_MAX + 1 + u8::MAX as usize + NONCE_LEN;

const NONCE_LEN: usize = 32;

/// Bytes of a proof.
const PROOF_LEN: usize = 32;

pub(super) const HELLO: u8 = 1;
pub(super) const PROOF: u8 = 2;
pub(super) const GOODBYE: u8 = 3;

/// Random bytes that are never used again.
pub type Nonce = [u8; NONCE_LEN];

/// What the proofs and digests of peers are made with.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl Key {
    /// Of the secret that the group shares.
    pub fn new(secret: &[u8]) -> Self {
        let group = hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self(derived(&group, b"standby peers 1", &[]))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Who we are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our name
    pub node: NodeId,
    /// The name of our group; 255 bytes at most.
    pub group: String,
    /// Its key, if it has one. Then who has none is refused.
    pub key: Option<Key>,
}

/// Why a node refuses another one: numbers of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Something else, or something that only a later version says.
    Other = 0,
    /// The version of the protocol is unknown.
    Version = 1,
    /// One has a key, and the other one has none.
    Seal = 2,
    /// The group is another one.
    Group = 3,
    /// The name is that of this node.
    Namesake = 4,
    /// The key is another one.
    Key = 5,
}

impl Reason {
    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Version,
            2 => Self::Seal,
            3 => Self::Group,
            4 => Self::Namesake,
            5 => Self::Key,
            _ => Self::Other,
        }
    }

    /// What is said to a node because of an error of its hello or proof.
    pub(super) const fn of(error: &PeerError) -> Self {
        match error {
            PeerError::Version(_) => Self::Version,
            PeerError::Keyed | PeerError::Plain => Self::Seal,
            PeerError::Group(_) => Self::Group,
            PeerError::Namesake(_) => Self::Namesake,
            PeerError::WrongKey => Self::Key,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Other => "it does not say why",
            Self::Version => "it speaks another version of the protocol",
            Self::Seal => "one of us has a key-file, and the other one has none",
            Self::Group => "it is of another group",
            Self::Namesake => "it is called as this node is",
            Self::Key => "its key is another one",
        })
    }
}

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Who connects, and asks.
    Connects,
    /// Who is connected to, and answers.
    Answers,
}

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Connects => Self::Answers,
            Self::Answers => Self::Connects,
        }
    }
}

/// A preface and a hello.
pub(super) fn hello(options: &Options, nonce: &Nonce) -> Vec<u8> {
    let group = options.group.as_bytes();
    let group = &group[..group.len().min(u8::MAX.into())];
    let payload = [
        &[u8::from(options.key.is_some())],
        &options.node.to_bytes()[..],
        &[group.len() as u8],
        group,
        nonce,
    ]
    .concat();
    [&preface(), &frame(HELLO, &payload)[..]].concat()
}

pub(super) fn preface() -> [u8; PREFACE_LEN] {
    let mut preface = [0; PREFACE_LEN];
    preface[..MAGIC.len()].copy_from_slice(MAGIC);
    BigEndian::write_u16(&mut preface[MAGIC.len()..], VERSION);
    preface
}

/// Whether a preface has come; an error as soon as it is seen that there is none.
pub(super) fn check_preface(bytes: &[u8]) -> Result<bool, PeerError> {
    let len = bytes.len().min(MAGIC.len());
    if bytes[..len] != MAGIC[..len] {
        return Err(match bytes.first() {
            Some(&TLS_RECORD) => PeerError::Encrypted,
            _ => PeerError::NoPeer,
        });
    }
    if bytes.len() < PREFACE_LEN {
        return Ok(false);
    }
    match BigEndian::read_u16(&bytes[MAGIC.len()..]) {
        VERSION => Ok(true),
        found => Err(PeerError::Version(found)),
    }
}

/// A frame without digest.
pub(super) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&encode_head(kind, 0, payload.len())[..], payload].concat()
}

/// Who says a hello, if it is one that we may talk to.
pub(super) fn check_hello(options: &Options, payload: &[u8]) -> Result<NodeId, PeerError> {
    let malformed = |why| PeerError::Malformed { of: "hello", why };
    let short = |_| malformed("it is too short");
    let mut cursor = Cursor::new(payload);
    let seal = cursor.u8().map_err(short)?;
    let node = NodeId::from_bytes(cursor.array().map_err(short)?);
    let node = node.filter(|node| *node != NodeId::NONE);
    let node = node.ok_or(malformed("no name of a node"))?;
    let group_len = cursor.u8().map_err(short)?;
    let group = cursor.take(group_len.into()).map_err(short)?;
    cursor.array::<NONCE_LEN>().map_err(short)?;
    if cursor.remaining() > 0 {
        return Err(malformed("it is too long"));
    }
    match (seal, &options.key) {
        (0, None) | (1, Some(_)) => {}
        (1, None) => return Err(PeerError::Keyed),
        (0, Some(_)) => return Err(PeerError::Plain),
        _ => return Err(malformed("a seal that is unknown")),
    }
    if group != options.group.as_bytes() {
        let name = String::from_utf8_lossy(group).into_owned();
        return Err(PeerError::Group(name));
    }
    if node == options.node {
        return Err(PeerError::Namesake(node));
    }
    Ok(node)
}

pub(super) fn read_goodbye(payload: &[u8]) -> PeerError {
    let reason = payload
        .first()
        .map_or(Reason::Other, |it| Reason::from_number(*it));
    PeerError::Refused(reason)
}

/// What both sides have said, and the key that they must have.
#[derive(Debug)]
pub(super) struct Keyed {
    key: hmac::Key,
    hellos: Vec<u8>,
}

impl Keyed {
    /// With the bytes of either side.
    pub(super) fn new(key: &Key, connects: &[u8], answers: &[u8]) -> Self {
        Self {
            key: key.0.clone(),
            hellos: [connects, answers].concat(),
        }
    }

    /// What shows that this side has the key.
    pub(super) fn proof(&self, side: Side) -> [u8; PROOF_LEN] {
        let label: &[u8] = match side {
            Side::Connects => b"connects",
            Side::Answers => b"answers",
        };
        digest(&self.key, label, &self.hellos)
    }

    pub(super) fn check_proof(&self, side: Side, payload: &[u8]) -> Result<(), PeerError> {
        is_same(&self.proof(side), payload)
            .then_some(())
            .ok_or(PeerError::WrongKey)
    }

    /// What this side's frames are marked with.
    pub(super) fn seal(&self, side: Side) -> Seal {
        let label: &[u8] = match side {
            Side::Connects => b"frames of who connects",
            Side::Answers => b"frames of who answers",
        };
        Seal::new(derived(&self.key, label, &self.hellos))
    }
}

fn derived(key: &hmac::Key, label: &[u8], of: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &digest(key, label, of))
}

fn digest(key: &hmac::Key, label: &[u8], of: &[u8]) -> [u8; PROOF_LEN] {
    let mut context = hmac::Context::with_key(key);
    // No two labels begin alike.
    context.update(label);
    context.update(of);
    let mut digest = [0; PROOF_LEN];
    digest.copy_from_slice(context.sign().as_ref());
    digest
}
