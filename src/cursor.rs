//! Checked reads from a byte slice: what every decoder of the crate is made of.

use std::fmt;

use byteorder::{BigEndian, ByteOrder, LittleEndian};

/// The bytes ended before the value did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnexpectedEnd {
    /// Where the value began, from the start of the slice.
    pub pos: usize,
    /// How many bytes it needed.
    pub needed: usize,
}

impl fmt::Display for UnexpectedEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ends within a value of {} bytes at byte {}",
            self.needed, self.pos
        )
    }
}

impl std::error::Error for UnexpectedEnd {}

/// A position in a slice that only moves forward and never past the end.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    /// `0 <= pos <= bytes.len()`
    pos: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, pos: 0 }
    }

    /// Bytes read so far.
    pub const fn pos(&self) -> usize {
        self.pos
    }

    /// Bytes left to read.
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.pos
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], UnexpectedEnd> {
        let end = self
            .pos
            .checked_add(len)
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(UnexpectedEnd {
                pos: self.pos,
                needed: len,
            });
        };
        let taken = &self.bytes[self.pos..end];
        self.pos = end;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], UnexpectedEnd> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The bytes up to and without the next `end`, which is read too.
    pub fn until(&mut self, end: u8) -> Result<&'a [u8], UnexpectedEnd> {
        let rest = &self.bytes[self.pos..];
        let Some(len) = rest.iter().position(|byte| *byte == end) else {
            return Err(UnexpectedEnd {
                pos: self.pos,
                needed: rest.len() + 1,
            });
        };
        self.pos += len + 1;
        Ok(&rest[..len])
    }

    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, UnexpectedEnd> {
        Ok(self.take(1)?[0])
    }

    /// A big-endian 16-bit number.
    pub fn u16_be(&mut self) -> Result<u16, UnexpectedEnd> {
        Ok(BigEndian::read_u16(self.take(2)?))
    }

    /// A big-endian 32-bit number.
    pub fn u32_be(&mut self) -> Result<u32, UnexpectedEnd> {
        Ok(BigEndian::read_u32(self.take(4)?))
    }

    /// A big-endian 64-bit number.
    pub fn u64_be(&mut self) -> Result<u64, UnexpectedEnd> {
        Ok(BigEndian::read_u64(self.take(8)?))
    }

    /// A little-endian 16-bit number.
    pub fn u16_le(&mut self) -> Result<u16, UnexpectedEnd> {
        Ok(LittleEndian::read_u16(self.take(2)?))
    }

    /// A little-endian 32-bit number.
    pub fn u32_le(&mut self) -> Result<u32, UnexpectedEnd> {
        Ok(LittleEndian::read_u32(self.take(4)?))
    }

    /// A little-endian 64-bit number.
    pub fn u64_le(&mut self) -> Result<u64, UnexpectedEnd> {
        Ok(LittleEndian::read_u64(self.take(8)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_past_the_end_takes_nothing() {
        let mut cursor = Cursor::new(&[1, 2, 3]);
        assert_eq!(cursor.u16_be(), Ok(0x0102));
        assert_eq!(cursor.u32_be(), Err(UnexpectedEnd { pos: 2, needed: 4 }));
        assert_eq!(
            cursor.take(usize::MAX),
            Err(UnexpectedEnd {
                pos: 2,
                needed: usize::MAX
            })
        );
        assert_eq!(cursor.u8(), Ok(3));
        assert_eq!(cursor.remaining(), 0);
    }

    #[test]
    fn a_line_is_read_with_its_end() {
        let mut cursor = Cursor::new(b"ab\ncd");
        assert_eq!(cursor.until(b'\n'), Ok(&b"ab"[..]));
        assert!(cursor.until(b'\n').is_err());
        assert_eq!(cursor.take(2), Ok(&b"cd"[..]));
    }
}
