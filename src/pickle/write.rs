//! Values to pickles. They need no memo, and have the opcodes that Python's picklers use in their
//! fast mode.

use bytes::Bytes;

use crate::ids::Oid;
use crate::out_queue::Sink;
use crate::pickle_opcode::*;
use crate::value::{Value, shortest_integer_len};

/// Writes a pickle for a file: what ZODB of any version reads there, as the extension of a
/// transaction. `None` if it is longer than `len_max`; no more than that is kept while writing,
/// since a small message can contain the same long string many times.
pub fn encode_standalone(value: &Value, len_max: usize) -> Option<Vec<u8>> {
    let mut bounded = Bounded {
        bytes: Vec::new(),
        len_max,
        is_full: false,
    };
    let mut writer = Writer {
        sink: &mut bounded,
        reader: Reader::File,
    };
    writer.start();
    writer.value(value);
    writer.code(STOP);
    (!bounded.is_full).then_some(bounded.bytes)
}

/// Keeps so much and no more.
struct Bounded {
    bytes: Vec<u8>,
    len_max: usize,
    is_full: bool,
}

impl Sink for Bounded {
    fn put(&mut self, bytes: &[u8]) {
        self.is_full |= self.bytes.len() + bytes.len() > self.len_max;
        if !self.is_full {
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn put_data(&mut self, data: &Bytes) {
        self.put(data);
    }
}

/// For whom a pickle is written. Python 2 and 3 differ in what they read as `bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A client on Python 2: protocol 2, and bytes as its `str`.
    Python2,
    /// A client on Python 3: protocol 3.
    Python3,
    /// ZODB of either: protocol 3, and `str` of Python 2 for what was one.
    File,
}

/// Appends the pickle of a tuple of four: a message.
pub(crate) fn encode_message(sink: &mut impl Sink, reader: Reader, message: [&Value; 4]) {
    let mut writer = Writer { sink, reader };
    writer.start();
    writer.code(MARK);
    for value in message {
        writer.value(value);
    }
    writer.code(TUPLE);
    writer.code(STOP);
}

/// Writes a pickle that Python 3 reads.
pub fn encode(sink: &mut impl Sink, value: &Value) {
    let mut writer = Writer {
        sink,
        reader: Reader::Python3,
    };
    writer.start();
    writer.value(value);
    writer.code(STOP);
}

/// Appends an integer, as a part of a pickle.
pub(crate) fn encode_int(sink: &mut impl Sink, int: i64) {
    // Integers are the same for all readers.
    let reader = Reader::File;
    Writer { sink, reader }.int(int);
}

/// Appends what stands before `len` bytes, as a part of a pickle.
pub(crate) fn encode_bytes_head(sink: &mut impl Sink, reader: Reader, len: usize) {
    Writer { sink, reader }.bytes_head(len);
}

struct Writer<'a, S> {
    sink: &'a mut S,
    reader: Reader,
}

impl<S: Sink> Writer<'_, S> {
    fn start(&mut self) {
        let protocol = match self.reader {
            Reader::Python2 => 2,
            Reader::Python3 | Reader::File => 3,
        };
        self.sink.put(&[PROTO, protocol]);
    }

    fn code(&mut self, code: u8) {
        self.sink.put(&[code]);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::None => self.code(NONE),
            Value::Bool(true) => self.code(NEWTRUE),
            Value::Bool(false) => self.code(NEWFALSE),
            Value::Int(int) => self.int(*int),
            Value::Long(bytes) => self.long(bytes),
            Value::Float(float) => {
                self.code(BINFLOAT);
                self.sink.put(&float.to_be_bytes());
            }
            Value::Text(text) => {
                self.code(BINUNICODE);
                self.sink.put(&length(text.len()));
                self.sink.put_data(text);
            }
            Value::Bytes(bytes) => {
                self.bytes_head(bytes.len());
                self.sink.put_data(bytes);
            }
            Value::Gap(len) => {
                self.bytes_head(*len);
                self.sink.put_gap(*len);
            }
            Value::Id(id) => {
                self.bytes_head(id.len());
                self.sink.put(id);
            }
            Value::Str(bytes) => self.python2_str(bytes),
            Value::Tuple(items) => self.tuple(items),
            // A path can only be read from a request; as a list it can be answered all the same.
            Value::List(items) | Value::Prefix(items) => self.list(items),
            Value::Oids(oids) => self.oids(oids),
            Value::Dict(pairs) => self.dict(pairs),
        }
    }

    fn int(&mut self, int: i64) {
        if let Ok(int) = u8::try_from(int) {
            self.sink.put(&[BININT1, int]);
        } else if let Ok(int) = u16::try_from(int) {
            self.code(BININT2);
            self.sink.put(&int.to_le_bytes());
        } else if let Ok(int) = i32::try_from(int) {
            self.code(BININT);
            self.sink.put(&int.to_le_bytes());
        } else {
            let bytes = int.to_le_bytes();
            self.long(&bytes[..shortest_integer_len(&bytes)]);
        }
    }

    fn long(&mut self, bytes: &[u8]) {
        if let Ok(len) = u8::try_from(bytes.len()) {
            self.sink.put(&[LONG1, len]);
        } else {
            self.code(LONG4);
            self.sink.put(&length(bytes.len()));
        }
        self.sink.put(bytes);
    }

    fn bytes_head(&mut self, len: usize) {
        let (short, long) = match self.reader {
            Reader::Python2 => (SHORT_BINSTRING, BINSTRING),
            Reader::Python3 | Reader::File => (SHORT_BINBYTES, BINBYTES),
        };
        self.head(short, long, len);
    }

    fn head(&mut self, short: u8, long: u8, len: usize) {
        if let Ok(len) = u8::try_from(len) {
            self.sink.put(&[short, len]);
        } else {
            self.code(long);
            self.sink.put(&length(len));
        }
    }

    /// As ZODB on Python 3 reads its files: text if it is ASCII, else bytes. Its clients would
    /// fail at other texts of this kind.
    fn python2_str(&mut self, bytes: &Bytes) {
        match self.reader {
            Reader::Python2 | Reader::File => {
                self.head(SHORT_BINSTRING, BINSTRING, bytes.len());
                self.sink.put_data(bytes);
            }
            Reader::Python3 if bytes.is_ascii() => self.value(&Value::Text(bytes.clone())),
            Reader::Python3 => self.value(&Value::Bytes(bytes.clone())),
        }
    }

    fn tuple(&mut self, items: &[Value]) {
        let code = match items.len() {
            0 => EMPTY_TUPLE,
            1 => TUPLE1,
            2 => TUPLE2,
            3 => TUPLE3,
            _ => {
                self.code(MARK);
                TUPLE
            }
        };
        for item in items {
            self.value(item);
        }
        self.code(code);
    }

    fn list(&mut self, items: &[Value]) {
        self.code(EMPTY_LIST);
        match items {
            [] => {}
            [item] => {
                self.value(item);
                self.code(APPEND);
            }
            _ => {
                self.code(MARK);
                for item in items {
                    self.value(item);
                }
                self.code(APPENDS);
            }
        }
    }

    /// As [`Self::list`] would write them one by one.
    fn oids(&mut self, oids: &[Oid]) {
        if let [] | [_] = oids {
            let items: Vec<Value> = oids.iter().map(|oid| Value::from(*oid)).collect();
            return self.list(&items);
        }
        let code = match self.reader {
            Reader::Python2 => SHORT_BINSTRING,
            Reader::Python3 | Reader::File => SHORT_BINBYTES,
        };
        self.code(EMPTY_LIST);
        self.code(MARK);
        for oid in oids {
            let [a, b, c, d, e, f, g, h] = oid.to_bytes();
            self.sink.put(&[code, 8, a, b, c, d, e, f, g, h]);
        }
        self.code(APPENDS);
    }

    fn dict(&mut self, pairs: &[(Value, Value)]) {
        self.code(EMPTY_DICT);
        if pairs.len() > 1 {
            self.code(MARK);
        }
        for (key, value) in pairs {
            self.value(key);
            self.value(value);
        }
        match pairs.len() {
            0 => {}
            1 => self.code(SETITEM),
            _ => self.code(SETITEMS),
        }
    }
}

/// A length as opcodes want it. What is longer than they can tell does not fit into a frame
/// either, which will notice.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_strings_are_what_each_python_takes_them_for() {
        for (reader, bytes, expected) in [
            (
                Reader::Python3,
                "ascii".as_bytes(),
                &b"X\x05\0\0\0ascii"[..],
            ),
            (Reader::Python3, b"\xe9t\xe9", b"C\x03\xe9t\xe9"),
            (Reader::Python2, b"\xe9t\xe9", b"U\x03\xe9t\xe9"),
            (Reader::File, b"\xe9t\xe9", b"U\x03\xe9t\xe9"),
        ] {
            let mut written = Vec::new();
            let mut writer = Writer {
                sink: &mut written,
                reader,
            };
            writer.value(&Value::Str(Bytes::copy_from_slice(bytes)));
            assert_eq!(written, expected);
        }
    }
}
