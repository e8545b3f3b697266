//! The values of ZEO in msgpack, as Python's `msgpack` package reads and writes them.
//!
//! Arrays become tuples, as clients and ZEO itself read them. There are no extension types.

use std::str;

use bytes::Bytes;

use super::frame::Sink;
use super::large_store::BegunStore;
use crate::cursor::Cursor;
use crate::limits::{VALUE_DEPTH_MAX, VALUES_PER_MESSAGE_MAX};
use crate::value::{DecodeError, Value};

/// Reads one value, which must fill `bytes`.
pub fn decode(bytes: &Bytes) -> Result<Value, DecodeError> {
    let mut decoder = Decoder {
        bytes,
        cursor: Cursor::new(bytes),
        count: 0,
        announced: 1,
    };
    let value = decoder.value(0)?;
    if decoder.cursor.remaining() > 0 {
        return Err(DecodeError::Malformed {
            what: "bytes after the end",
            pos: decoder.cursor.pos(),
        });
    }
    Ok(value)
}

/// The msgid of the message that a frame begins with.
pub(super) fn begun_msgid(bytes: &Bytes) -> Option<Value> {
    let mut decoder = Decoder {
        bytes,
        cursor: Cursor::new(bytes),
        count: 0,
        announced: 1,
    };
    match decoder.cursor.u8() {
        Ok(0x94) => decoder.value(1).ok(),
        _ => None,
    }
}

/// The call that a frame begins with, up to the data of an object, if these are cut off.
pub(super) fn begun(bytes: &Bytes) -> Option<BegunStore> {
    let mut decoder = Decoder {
        bytes,
        cursor: Cursor::new(bytes),
        count: 0,
        // More than can come, since arrays are entered here by hand.
        announced: bytes.len() + 1,
    };
    let is_array = |decoder: &mut Decoder<'_>, codes: &[u8]| {
        let code = decoder.cursor.u8();
        code.is_ok_and(|code| codes.contains(&code)).then_some(())
    };
    is_array(&mut decoder, &[0x94])?;
    let _msgid = decoder.value(1).ok()?;
    let _asynchronous = decoder.value(1).ok()?;
    let method = decoder.value(1).ok()?;
    is_array(&mut decoder, &[0x94, 0x95])?;
    let _oid = decoder.value(2).ok()?;
    let _serial = decoder.value(2).ok()?;
    let head_pos = decoder.cursor.pos();
    if decoder.cursor.u8().ok()? != 0xc6 {
        return None;
    }
    let data_len = decoder.len(2).ok()?;
    Some(BegunStore {
        method: method.string()?.clone(),
        head_pos,
        data_pos: decoder.cursor.pos(),
        data_len,
        short_head: 0xc4,
    })
}

/// Appends `value`.
pub fn encode(sink: &mut impl Sink, value: &Value) {
    match value {
        Value::None => sink.put(&[0xc0]),
        Value::Bool(false) => sink.put(&[0xc2]),
        Value::Bool(true) => sink.put(&[0xc3]),
        Value::Int(int) => encode_int(sink, *int),
        Value::Long(bytes) => encode_long(sink, bytes),
        Value::Float(float) => encode_float(sink, *float),
        Value::Text(text) => {
            encode_text_head(sink, text.len());
            sink.put_data(text);
        }
        Value::Bytes(bytes) => {
            encode_bytes_head(sink, bytes.len());
            sink.put_data(bytes);
        }
        Value::Gap(len) => {
            encode_head(sink, [0xc4, 0xc5, 0xc6], *len);
            sink.put_gap(*len);
        }
        Value::Id(id) => {
            sink.put(&[0xc4, 8]);
            sink.put(id);
        }
        // From an old file; the same as `pickle` makes of it for Python 3.
        Value::Str(bytes) if bytes.is_ascii() => encode(sink, &Value::Text(bytes.clone())),
        Value::Str(bytes) => encode(sink, &Value::Bytes(bytes.clone())),
        Value::Tuple(items) | Value::List(items) | Value::Prefix(items) => {
            encode_collection_head(sink, 0x90, [0xdc, 0xdd], items.len());
            for item in items {
                encode(sink, item);
            }
        }
        Value::Oids(oids) => {
            encode_collection_head(sink, 0x90, [0xdc, 0xdd], oids.len());
            for oid in &**oids {
                let [a, b, c, d, e, f, g, h] = oid.to_bytes();
                sink.put(&[0xc4, 8, a, b, c, d, e, f, g, h]);
            }
        }
        Value::Dict(pairs) => {
            encode_collection_head(sink, 0x80, [0xde, 0xdf], pairs.len());
            for (key, value) in pairs {
                encode(sink, key);
                encode(sink, value);
            }
        }
    }
}

/// Appends an array of four: a message.
pub(super) fn encode_message(sink: &mut impl Sink, message: [&Value; 4]) {
    sink.put(&[0x94]);
    for value in message {
        encode(sink, value);
    }
}

struct Decoder<'a> {
    bytes: &'a Bytes,
    cursor: Cursor<'a>,
    /// Values in containers so far.
    count: usize,
    /// Of these and the outermost, how many have not begun yet. Each will take a byte at least.
    announced: usize,
}

impl Decoder<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let pos = self.cursor.pos();
        let code = self.cursor.u8()?;
        self.announced -= 1;
        Ok(match code {
            0x00..=0x7f => Value::Int(code.into()),
            0x80..=0x8f => self.map(usize::from(code & 0x0f), depth)?,
            0x90..=0x9f => self.array(usize::from(code & 0x0f), depth)?,
            0xa0..=0xbf => self.text(usize::from(code & 0x1f))?,
            0xc0 => Value::None,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let len = self.len(code - 0xc4)?;
                Value::Bytes(self.take(len)?)
            }
            0xca => Value::Float(f32::from_be_bytes(self.cursor.array()?).into()),
            0xcb => Value::Float(f64::from_be_bytes(self.cursor.array()?)),
            0xcc => Value::Int(self.cursor.u8()?.into()),
            0xcd => Value::Int(self.cursor.u16_be()?.into()),
            0xce => Value::Int(self.cursor.u32_be()?.into()),
            0xcf => {
                let int = self.cursor.u64_be()?;
                match i64::try_from(int) {
                    Ok(int) => Value::Int(int),
                    Err(_) => {
                        let bytes = u128::from(int).to_le_bytes();
                        Value::integer(Bytes::copy_from_slice(&bytes))
                    }
                }
            }
            0xd0 => Value::Int(i8::from_be_bytes(self.cursor.array()?).into()),
            0xd1 => Value::Int(i16::from_be_bytes(self.cursor.array()?).into()),
            0xd2 => Value::Int(i32::from_be_bytes(self.cursor.array()?).into()),
            0xd3 => Value::Int(i64::from_be_bytes(self.cursor.array()?)),
            0xd9..=0xdb => {
                let len = self.len(code - 0xd9)?;
                self.text(len)?
            }
            0xdc | 0xdd => {
                let count = self.len(code - 0xdc + 1)?;
                self.array(count, depth)?
            }
            0xde | 0xdf => {
                let count = self.len(code - 0xde + 1)?;
                self.map(count, depth)?
            }
            // Extension types, and the one byte that never means anything.
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return Err(DecodeError::Code { code, pos }),
            0xe0..=0xff => Value::Int(i8::from_be_bytes([code]).into()),
        })
    }

    /// A length of one, two or four bytes.
    fn len(&mut self, width: u8) -> Result<usize, DecodeError> {
        Ok(match width {
            0 => self.cursor.u8()?.into(),
            1 => self.cursor.u16_be()?.into(),
            _ => self.cursor.u32_be()? as usize,
        })
    }

    fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        let start = self.cursor.pos();
        self.cursor.take(len)?;
        Ok(self.bytes.slice(start..start + len))
    }

    fn text(&mut self, len: usize) -> Result<Value, DecodeError> {
        let text = self.take(len)?;
        if str::from_utf8(&text).is_err() {
            return Err(DecodeError::Malformed {
                what: "text that is not UTF-8 ends",
                pos: self.cursor.pos(),
            });
        }
        Ok(Value::Text(text))
    }

    fn array(&mut self, count: usize, depth: usize) -> Result<Value, DecodeError> {
        self.enter(count, depth)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.value(depth + 1)?);
        }
        Ok(Value::Tuple(items))
    }

    fn map(&mut self, count: usize, depth: usize) -> Result<Value, DecodeError> {
        self.enter(count.saturating_mul(2), depth)?;
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            pairs.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Ok(Value::Dict(pairs))
    }

    /// Before memory is taken for `count` values: they must not be more than the frame has room
    /// for, together with those that the containers around still wait for.
    fn enter(&mut self, count: usize, depth: usize) -> Result<(), DecodeError> {
        if depth >= VALUE_DEPTH_MAX {
            return Err(DecodeError::TooDeep);
        }
        self.announced = self.announced.saturating_add(count);
        self.cursor.clone().take(self.announced)?;
        self.count += count;
        if self.count > VALUES_PER_MESSAGE_MAX {
            return Err(DecodeError::TooManyValues);
        }
        Ok(())
    }
}

/// In the shortest form.
fn encode_int(sink: &mut impl Sink, int: i64) {
    if let Ok(int @ 0..=0x7f) = u8::try_from(int) {
        sink.put(&[int]);
    } else if let Ok(int @ -0x20..=-1) = i8::try_from(int) {
        sink.put(&int.to_be_bytes());
    } else if let Ok(int) = u8::try_from(int) {
        sink.put(&[0xcc, int]);
    } else if let Ok(int) = i8::try_from(int) {
        sink.put(&[0xd0]);
        sink.put(&int.to_be_bytes());
    } else if let Ok(int) = u16::try_from(int) {
        sink.put(&[0xcd]);
        sink.put(&int.to_be_bytes());
    } else if let Ok(int) = i16::try_from(int) {
        sink.put(&[0xd1]);
        sink.put(&int.to_be_bytes());
    } else if let Ok(int) = u32::try_from(int) {
        sink.put(&[0xce]);
        sink.put(&int.to_be_bytes());
    } else if let Ok(int) = i32::try_from(int) {
        sink.put(&[0xd2]);
        sink.put(&int.to_be_bytes());
    } else {
        sink.put(&[if int < 0 { 0xd3 } else { 0xcf }]);
        sink.put(&int.to_be_bytes());
    }
}

/// Msgpack has integers below 2^64. A larger one, which can only come out of a file, has to be
/// sent as the float beside it.
fn encode_long(sink: &mut impl Sink, bytes: &[u8]) {
    if let [low @ .., 0] = bytes
        && let Ok(low) = <[u8; 8]>::try_from(low)
    {
        sink.put(&[0xcf]);
        sink.put(&u64::from_le_bytes(low).to_be_bytes());
        return;
    }
    let (highest, rest) = bytes.split_last().unwrap_or((&0, &[]));
    let highest = f64::from(i8::from_le_bytes([*highest]));
    let float = rest.iter().rev();
    encode_float(
        sink,
        float.fold(highest, |sum, byte| sum * 256.0 + f64::from(*byte)),
    );
}

fn encode_float(sink: &mut impl Sink, float: f64) {
    sink.put(&[0xcb]);
    sink.put(&float.to_be_bytes());
}

/// Appends what stands before `len` bytes.
pub(super) fn encode_bytes_head(sink: &mut impl Sink, len: usize) {
    encode_head(sink, [0xc4, 0xc5, 0xc6], len);
}

fn encode_text_head(sink: &mut impl Sink, len: usize) {
    match u8::try_from(len) {
        Ok(len @ 0..=31) => sink.put(&[0xa0 | len]),
        _ => encode_head(sink, [0xd9, 0xda, 0xdb], len),
    }
}

fn encode_collection_head(sink: &mut impl Sink, short: u8, [two, four]: [u8; 2], count: usize) {
    match u8::try_from(count) {
        Ok(count @ 0..=15) => sink.put(&[short | count]),
        // There is no form with one byte.
        Ok(count) => sink.put(&[two, 0, count]),
        Err(_) => encode_head(sink, [0, two, four], count),
    }
}

/// A length in one, two or four bytes. What is longer does not fit into a frame either, which will
/// notice.
fn encode_head(sink: &mut impl Sink, [one, two, four]: [u8; 3], len: usize) {
    if let Ok(len) = u8::try_from(len) {
        sink.put(&[one, len]);
    } else if let Ok(len) = u16::try_from(len) {
        sink.put(&[two]);
        sink.put(&len.to_be_bytes());
    } else {
        sink.put(&[four]);
        sink.put(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&mut bytes, value);
        bytes
    }

    #[test]
    fn integers_take_the_shortest_form() {
        // msgpack.packb() of each
        for (int, hex) in [
            (0, "00"),
            (127, "7f"),
            (128, "cc80"),
            (255, "ccff"),
            (256, "cd0100"),
            (65_535, "cdffff"),
            (65_536, "ce00010000"),
            (4_294_967_295, "ceffffffff"),
            (4_294_967_296, "cf0000000100000000"),
            (i64::MAX, "cf7fffffffffffffff"),
            (-1, "ff"),
            (-32, "e0"),
            (-33, "d0df"),
            (-128, "d080"),
            (-129, "d1ff7f"),
            (-32_768, "d18000"),
            (-32_769, "d2ffff7fff"),
            (-2_147_483_648, "d280000000"),
            (-2_147_483_649, "d3ffffffff7fffffff"),
        ] {
            let bytes = encoded(&Value::Int(int));
            let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(shown, hex);
            assert_eq!(decode(&bytes.into()), Ok(Value::Int(int)));
        }
    }

    #[test]
    fn an_integer_above_64_bits_becomes_a_float() {
        let long = |bytes: &'static [u8]| Value::Long(Bytes::from_static(bytes));
        let beyond_i64 = long(b"\0\0\0\0\0\0\0\x80\0");
        assert_eq!(decode(&encoded(&beyond_i64).into()), Ok(beyond_i64));
        let float = |value| decode(&encoded(&value).into()).unwrap();
        assert_eq!(
            float(long(b"\0\0\0\0\0\0\0\0\x01")),
            Value::Float(f64::powi(2.0, 64))
        );
        assert_eq!(
            float(long(b"\0\0\0\0\0\0\0\0\xff")),
            Value::Float(-f64::powi(2.0, 64))
        );
    }

    #[test]
    fn lengths_are_read_back_at_their_borders() {
        for len in [0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536] {
            let bytes = Bytes::from(vec![b'a'; len]);
            let items = vec![Value::Int(1); len];
            let pairs = vec![(Value::Int(1), Value::None); len];
            for value in [
                Value::Text(bytes.clone()),
                Value::Bytes(bytes),
                Value::Tuple(items),
                Value::Dict(pairs),
            ] {
                assert_eq!(decode(&encoded(&value).into()), Ok(value));
            }
        }
    }

    #[test]
    fn extension_types_are_refused() {
        for code in [0xc1, 0xc7, 0xc8, 0xc9, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8] {
            let bytes = Bytes::from(vec![0x91, code, 0, 0, 0]);
            assert_eq!(decode(&bytes), Err(DecodeError::Code { code, pos: 1 }));
        }
    }

    #[test]
    fn nesting_and_counts_are_limited() {
        let mut nested = vec![0x91; VALUE_DEPTH_MAX];
        nested.push(0xc0);
        assert!(decode(&nested.clone().into()).is_ok());
        nested.insert(0, 0x91);
        assert_eq!(decode(&nested.into()), Err(DecodeError::TooDeep));
        let many = VALUES_PER_MESSAGE_MAX + 1;
        let mut bytes = vec![0xdd];
        bytes.extend_from_slice(&u32::try_from(many).unwrap().to_be_bytes());
        bytes.extend(vec![0xc0; many]);
        assert_eq!(
            decode(&bytes.into()).err(),
            Some(DecodeError::TooManyValues)
        );
        assert!(matches!(
            decode(&Bytes::from_static(b"\xdd\xff\xff\xff\xff\xc0")),
            Err(DecodeError::End(_))
        ));
    }
}
