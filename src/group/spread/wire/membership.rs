//! The data of the daemon's messages about views.

use std::fmt;

use super::{Endian, NAME_LEN, Name, WireError};

/// Names a view of a group. To be compared for equality only; in it stand the address of the
/// daemon that made the configuration, its time, and a count of the views within that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupId(pub [u32; 3]);

impl GroupId {
    /// Its bytes.
    pub const LEN: usize = 12;

    /// From its bytes; `None` if there are more, or less.
    pub fn decode(endian: Endian, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        let number = |pos: usize| {
            endian.number([bytes[pos], bytes[pos + 1], bytes[pos + 2], bytes[pos + 3]])
        };
        Some(Self([number(0), number(4), number(8)]))
    }

    /// To its bytes.
    pub fn encode(self, endian: Endian) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        for (field, number) in bytes.chunks_mut(4).zip(self.0) {
            field.copy_from_slice(&endian.to_bytes(number));
        }
        bytes
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [address, time, index] = self.0;
        write!(f, "{address:08x}.{time:08x}.{index}")
    }
}

/// How a view came about.
///
/// After a change by one member there is one set with that member in it; after one of the network
/// each set has come from one former view together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The view
    pub id: GroupId,
    /// The sets, the same for all receivers.
    pub sets: Vec<Vec<Name>>,
    /// Which of the sets is the receiver's, if the network changed; 0 otherwise. Less than the
    /// number of sets.
    pub own: usize,
}

impl Membership {
    /// From the data of a membership message.
    pub fn decode(endian: Endian, data: &[u8]) -> Result<Self, WireError> {
        let wrong = |reason| WireError::Membership(data.len(), reason);
        let (head, mut rest) = data
            .split_first_chunk::<HEAD_LEN>()
            .ok_or(wrong("shorter than what all have"))?;
        let number = |pos: usize| {
            endian.number([head[pos], head[pos + 1], head[pos + 2], head[pos + 3]]) as usize
        };
        let (count, own_pos) = (number(12), number(16));
        // Each set takes 4 bytes at least: nothing is allocated for more than can be there.
        if count > rest.len() / COUNT_LEN {
            return Err(wrong("more sets than bytes for them"));
        }
        let mut own = None;
        let mut sets = Vec::with_capacity(count);
        for set in 0..count {
            if data.len() - rest.len() - HEAD_LEN == own_pos {
                own = Some(set);
            }
            let (field, behind) = rest
                .split_first_chunk::<COUNT_LEN>()
                .ok_or(wrong("it ends before a set"))?;
            let len = (endian.number(*field) as usize).checked_mul(NAME_LEN);
            let (names, behind) = len
                .and_then(|len| behind.split_at_checked(len))
                .ok_or(wrong("it ends within a set"))?;
            let (names, _) = names.as_chunks::<NAME_LEN>();
            sets.push(names.iter().copied().map(Name::from_field).collect());
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(wrong("bytes behind the last set"));
        }
        let id = GroupId::decode(endian, &head[..GroupId::LEN]).ok_or(wrong("it has no id"))?;
        let own = own.ok_or(wrong("the receiver's set is none of them"))?;
        Ok(Self { id, sets, own })
    }

    /// The set of the receiver.
    pub fn own_set(&self) -> &[Name] {
        self.sets.get(self.own).map_or(&[], Vec::as_slice)
    }

    /// Where the set of the receiver begins, behind the fixed part.
    pub fn own_pos(&self) -> usize {
        let before = self.sets.iter().take(self.own);
        before.map(|set| COUNT_LEN + set.len() * NAME_LEN).sum()
    }

    /// To the data of a membership message.
    pub fn encode(&self, endian: Endian) -> Vec<u8> {
        // More than fit into a frame is not to be encoded.
        let word = |number: usize| endian.to_bytes(u32::try_from(number).unwrap_or(u32::MAX));
        let mut data = self.id.encode(endian).to_vec();
        data.extend(word(self.sets.len()));
        data.extend(word(self.own_pos()));
        for set in &self.sets {
            data.extend(word(set.len()));
            for name in set {
                data.extend_from_slice(name.field());
            }
        }
        data
    }
}

/// Bytes before the sets.
const HEAD_LEN: usize = 20;

/// Bytes of the number of names in a set.
const COUNT_LEN: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(sizes: &[usize], own: usize) -> Membership {
        let mut names = (0..).map(|n: usize| Name::private(b"m", n.to_string().as_bytes()));
        let set = |len| names.by_ref().take(len).map(Option::unwrap).collect();
        Membership {
            id: GroupId([0x7f00_0001, 0x6b00_d99b, 3]),
            sets: sizes.iter().copied().map(set).collect(),
            own,
        }
    }

    #[test]
    fn what_is_encoded_is_decoded_in_both_byte_orders() {
        for endian in [Endian::Little, Endian::Big] {
            for own in 0..3 {
                let membership = membership(&[2, 1, 3], own);
                let data = membership.encode(endian);
                assert_eq!(data.len(), 20 + 3 * 4 + 6 * 32);
                assert_eq!(Membership::decode(endian, &data), Ok(membership));
            }
        }
    }

    #[test]
    fn the_own_set_is_counted_from_behind_the_fixed_part() {
        let membership = membership(&[2, 1, 1], 2);
        assert_eq!(membership.own_pos(), 68 + 36);
        assert_eq!(membership.own_set()[0].as_bytes(), b"#m#3");
        assert_eq!(membership.encode(Endian::Little)[16..20], [104, 0, 0, 0]);
    }

    #[test]
    fn every_byte_that_is_missing_or_too_much_is_found() {
        let data = membership(&[2, 1], 1).encode(Endian::Little);
        for len in 0..data.len() {
            assert!(Membership::decode(Endian::Little, &data[..len]).is_err());
        }
        assert!(Membership::decode(Endian::Little, &[&data[..], b"x"].concat()).is_err());
    }

    #[test]
    fn numbers_that_lie_are_found() {
        let data = membership(&[2, 1], 1).encode(Endian::Little);
        let with = |pos: usize, number: u32| {
            let mut data = data.clone();
            data[pos..pos + 4].copy_from_slice(&number.to_le_bytes());
            match Membership::decode(Endian::Little, &data) {
                Err(WireError::Membership(_, reason)) => reason,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(with(12, u32::MAX), "more sets than bytes for them");
        assert_eq!(with(12, 3), "it ends before a set");
        assert_eq!(with(12, 1), "bytes behind the last set");
        assert_eq!(with(16, 67), "the receiver's set is none of them");
        assert_eq!(with(16, 104), "the receiver's set is none of them");
        assert_eq!(with(20, u32::MAX), "it ends within a set");
        assert_eq!(with(20, 4), "it ends within a set");
    }
}
