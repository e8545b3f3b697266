//! What stands in front of each body, because CPG knows neither lanes nor addressees: whatever is
//! sent goes to all members.
//!
//! ```text
//!   bytes   0 1   2         3      4..8     8..12   12..16    16..
//!           "SG"  version   lane   number   node    process   body
//!                 1         1..4            of the addressee
//! ```
//!
//! Numbers are big-endian. `number` counts the sender's bodies and wraps around; by it a sender
//! sees which of its own have gone through. Node and process of the addressee are both 0 if a body
//! is for all: no node has the number 0.

use bytes::Bytes;

use super::{Address, CpgEvent, Incoming};
use crate::cursor::{Cursor, UnexpectedEnd};
use crate::group::Lane;

/// Bytes of an envelope.
pub const ENVELOPE_LEN: usize = 2 + 1 + 1 + 4 + 4 + 4;

/// Tells our bodies from those of another program that uses the same name for its group.
const MAGIC: [u8; 2] = *b"SG";

/// The layout above.
const VERSION: u8 = 1;

/// What stands in front of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the body is for.
    pub lane: Lane,
    /// Which of its sender's bodies it is.
    pub number: u32,
    /// Whom it is for; all, if nobody is named.
    pub to: Option<Address>,
}

impl Envelope {
    /// Its bytes.
    pub fn encode(&self) -> [u8; ENVELOPE_LEN] {
        let to = self.to.unwrap_or(Address { node: 0, pid: 0 });
        let mut bytes = [0; ENVELOPE_LEN];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = self.lane.number();
        bytes[4..8].copy_from_slice(&self.number.to_be_bytes());
        bytes[8..12].copy_from_slice(&to.node.to_be_bytes());
        bytes[12..].copy_from_slice(&to.pid.to_be_bytes());
        bytes
    }

    /// The envelope, and the body behind it. Nothing if it is none that we know.
    pub fn decode(data: &[u8]) -> Option<(Self, &[u8])> {
        let (head, body) = data.split_at_checked(ENVELOPE_LEN)?;
        let envelope = Self::read(&mut Cursor::new(head)).ok()??;
        Some((envelope, body))
    }

    fn read(cursor: &mut Cursor<'_>) -> Result<Option<Self>, UnexpectedEnd> {
        if cursor.array()? != MAGIC || cursor.u8()? != VERSION {
            return Ok(None);
        }
        let lane = Lane::from_number(cursor.u8()?);
        let number = cursor.u32_be()?;
        let to = Address {
            node: cursor.u32_be()?,
            pid: cursor.u32_be()?,
        };
        let to = match to {
            Address { node: 0, pid: 0 } => None,
            Address { node: 0, .. } => return Ok(None),
            to => Some(to),
        };
        Ok(lane.map(|lane| Self { lane, number, to }))
    }

    /// Whether a member gets the body to see.
    pub fn is_for(&self, member: Address) -> bool {
        self.to.is_none_or(|to| to == member)
    }
}

/// What came from a member, as an event of `me`. A body that is for somebody else is not copied.
pub(super) fn incoming(me: Address, from: Address, data: &[u8], body_len_max: usize) -> CpgEvent {
    match Envelope::decode(data) {
        Some((envelope, body)) if body.len() <= body_len_max => {
            let data = if envelope.is_for(me) {
                Bytes::copy_from_slice(body)
            } else {
                Bytes::new()
            };
            CpgEvent::Body(Incoming {
                from,
                envelope,
                len: body.len(),
                data,
            })
        }
        _ => CpgEvent::Garbage {
            from,
            len: data.len(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Address = Address { node: 1, pid: 100 };
    const PEER: Address = Address {
        node: 0x0203,
        pid: 4711,
    };

    fn for_peer() -> Envelope {
        Envelope {
            lane: Lane::Commit,
            number: 0xfffe_fdfc,
            to: Some(PEER),
        }
    }

    #[test]
    fn an_envelope_has_these_bytes() {
        let bytes = for_peer().encode();
        assert_eq!(
            &bytes,
            b"SG\x01\x02\xff\xfe\xfd\xfc\0\0\x02\x03\0\0\x12\x67"
        );
        let mut data = bytes.to_vec();
        data.extend_from_slice(b"body");
        assert_eq!(Envelope::decode(&data), Some((for_peer(), &b"body"[..])));
        let to_all = Envelope {
            to: None,
            ..for_peer()
        };
        assert_eq!(Envelope::decode(&to_all.encode()), Some((to_all, &b""[..])));
    }

    #[test]
    fn what_is_not_ours_is_no_envelope() {
        let good = for_peer().encode();
        for len in 0..ENVELOPE_LEN {
            assert_eq!(Envelope::decode(&good[..len]), None);
        }
        // Another magic, another version, no lane.
        for (at, byte) in [(0, b'T'), (1, b'g'), (2, 0), (2, 2), (3, 0), (3, 5)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Envelope::decode(&bad), None, "byte {at} is {byte}");
        }
        let mut nowhere = good;
        nowhere[8..12].fill(0);
        assert_eq!(Envelope::decode(&nowhere), None, "a process of no node");
    }

    #[test]
    fn only_what_is_for_us_is_copied() {
        let take = |me, bytes: &[u8]| incoming(me, PEER, bytes, 5);
        let mut data = for_peer().encode().to_vec();
        data.extend_from_slice(b"12345");
        let body = |data: &'static [u8]| {
            CpgEvent::Body(Incoming {
                from: PEER,
                envelope: for_peer(),
                len: 5,
                data: Bytes::from_static(data),
            })
        };
        assert_eq!(take(PEER, &data), body(b"12345"));
        assert_eq!(take(ME, &data), body(b""));
        data.push(b'6');
        let garbage = CpgEvent::Garbage {
            from: PEER,
            len: data.len(),
        };
        assert_eq!(take(PEER, &data), garbage, "longer than we take");
    }
}
