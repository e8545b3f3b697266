//! The objects that an object refers to, found in its record without importing a class.
//!
//! A record is two pickles, of the class and of the state, with one memo for both (ZODB,
//! `serialize.py`). References stand in them as *persistent ids*:
//!
//! | persistent id | is |
//! |---|---|
//! | `oid`, `(oid, class)` | a reference |
//! | `['w', (oid,)]`, `['w', (oid, database)]`, `[oid]` | a weak reference |
//! | `['n', (database, oid)]`, `['m', (database, oid, class)]` | one into another database |
//!
//! Only the first row keeps objects alive, as with ZODB's `referencesf`. That runs pickle's stack
//! machine without ever calling anything; so does this, with values that know only as much as a
//! persistent id can be made of. Where ZODB gives up, we may know more: we read protocols 4 and 5,
//! and oids that Python 3 pickled with an older protocol than its ZODB uses.
//!
//! To miss a reference is to lose an object. What is not understood is therefore an error, and
//! never skipped. Bytes behind the second pickle are skipped: nobody reads them.

use std::collections::BTreeMap;
use std::fmt;

use crate::cursor::{Cursor, UnexpectedEnd};
use crate::ids::Oid;
use crate::pickle_opcode::*;
use crate::pickle_text::{unescape_string, unescape_unicode};

/// Appends the oids that `record` refers to, in the order of the record, and as often as there.
/// Takes time and memory in proportion to the length of the record, whatever is in it.
///
/// # Errors
///
/// The record is no pair of pickles, or has something in it that we do not know, so that there may
/// be more references than `found` got.
pub fn references(record: &[u8], found: &mut Vec<Oid>) -> Result<(), ReferencesError> {
    let mut machine = Machine {
        cursor: Cursor::new(record),
        stack: Vec::with_capacity(32),
        marks: Vec::new(),
        memo: Memo::default(),
        found,
        class: None,
    };
    machine.pickle()?;
    machine.pickle()
}

/// Module and name of the class of the object in `record`, as in `persistent.mapping` and
/// `PersistentMapping`; `None` if the record does not tell, or is damaged where it should. What
/// comes behind the class is not looked at.
///
/// The class is what the first pickle is, or begins with if it has arguments for `__new__`. Old
/// databases have module and name there as two strings.
pub fn class_name(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut found = Vec::new();
    let mut machine = Machine {
        cursor: Cursor::new(record),
        stack: Vec::with_capacity(8),
        marks: Vec::new(),
        memo: Memo::default(),
        found: &mut found,
        class: None,
    };
    // What is wrong behind the class does not matter.
    let _ = machine.pickle();
    machine.class
}

/// Why the references of a record are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferencesError {
    /// Where the opcode stands, from the start of the record.
    pub pos: usize,
    /// The opcode; `None` if the record ended before it.
    pub code: Option<u8>,
    /// What is wrong with it.
    pub reason: Reason,
}

/// See [`ReferencesError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The record ends within the opcode's arguments, or before the second pickle did.
    Ended,
    /// No pickle that ZODB can read has this opcode.
    UnknownCode,
    /// A protocol above five.
    UnknownProtocol(u8),
    /// There is less on the stack than the opcode takes.
    StackTooShort,
    /// No mark is on the stack.
    NoMark,
    /// The key of the memo is no number of 32 bits.
    BadMemoKey,
    /// Nothing was memoised under this key.
    NotMemoised(u32),
    /// A persistent id of none of the known forms.
    BadReference,
    /// A persistent id without an oid of eight bytes where it should be.
    BadOid,
}

impl fmt::Display for ReferencesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}", self.pos)?;
        if let Some(code) = self.code {
            write!(f, ", opcode {code:#04x} '{}'", code.escape_ascii())?;
        }
        match self.reason {
            Reason::Ended => f.write_str(": the record ends too early"),
            Reason::UnknownCode => f.write_str(": no opcode of a pickle"),
            Reason::UnknownProtocol(protocol) => {
                write!(f, ": protocol {protocol} (expected at most {PROTOCOL_MAX})")
            }
            Reason::StackTooShort => f.write_str(": not enough on the stack"),
            Reason::NoMark => f.write_str(": no mark on the stack"),
            Reason::BadMemoKey => f.write_str(": the memo key is no number of 32 bits"),
            Reason::NotMemoised(key) => write!(f, ": nothing was memoised as {key}"),
            Reason::BadReference => f.write_str(": a reference of no known form"),
            Reason::BadOid => f.write_str(": a reference without an oid of 8 bytes"),
        }
    }
}

impl std::error::Error for ReferencesError {}

impl From<UnexpectedEnd> for Reason {
    fn from(_: UnexpectedEnd) -> Self {
        Self::Ended
    }
}

/// The last one that Python has.
const PROTOCOL_MAX: u8 = 5;

/// What references are made of, and what makes that. Nothing here owns memory, and values are
/// copied freely: what a list holds does not matter, and of a tuple only its first item does.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    /// Numbers, dicts, instances: no part of a reference.
    Other,
    List,
    String(Str<'a>),
    /// With the string that is its first item.
    Tuple(Option<Str<'a>>),
    /// `(text, 'latin1')`: a tuple, and what `_codecs.encode` is called with.
    EncodeArgs(Str<'a>),
    /// `(zodbpickle.binary, base, string)`: what `copy_reg._reconstructor` is called with.
    ReconstructorArgs(Str<'a>),
    Global(Global),
}

/// Globals whose calls are oids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    /// `zodbpickle.binary`, by which Python 2 marks what is bytes; and `bytes`.
    Binary,
    /// `_codecs.encode`, by which Python 3 writes bytes in protocols below 3.
    Encode,
    /// `copy_reg._reconstructor`, by which protocols below 2 make instances.
    Reconstructor,
}

impl Global {
    fn named(module: &[u8], name: &[u8]) -> Option<Self> {
        match (module, name) {
            (b"zodbpickle", b"binary") | (b"__builtin__" | b"builtins", b"bytes") => {
                Some(Self::Binary)
            }
            (b"_codecs", b"encode") => Some(Self::Encode),
            (b"copy_reg" | b"copyreg", b"_reconstructor") => Some(Self::Reconstructor),
            _ => None,
        }
    }
}

/// A string as it stands in the record. It is decoded only if it turns out to be an oid.
#[derive(Clone, Copy, Debug)]
struct Str<'a> {
    bytes: &'a [u8],
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The bytes themselves: `bytes`, and `str` of Python 2.
    Plain,
    /// What Python 2's `repr` makes of them, with the quotes.
    Quoted,
    /// Text in UTF-8.
    Utf8,
    /// Text in Python's `raw-unicode-escape`.
    Escaped,
    /// Bytes, as the text in UTF-8 whose characters they are the numbers of.
    Utf8Latin1,
    /// The same in `raw-unicode-escape`.
    EscapedLatin1,
}

/// One record being read. See `pickletools.py` of Python for what the opcodes do.
struct Machine<'a, 'f> {
    cursor: Cursor<'a>,
    stack: Vec<Value<'a>>,
    /// Where in `stack` the open MARKs stand; ascending, none is above the stack.
    marks: Vec<usize>,
    memo: Memo<'a>,
    found: &'f mut Vec<Oid>,
    /// The first global, or pair of strings: see [`class_name`].
    class: Option<(&'a [u8], &'a [u8])>,
}

impl<'a> Machine<'a, '_> {
    /// One pickle, up to its STOP. The memo stays, as ZODB clears it only between records.
    fn pickle(&mut self) -> Result<(), ReferencesError> {
        self.stack.clear();
        self.marks.clear();
        loop {
            let pos = self.cursor.pos();
            let Ok(code) = self.cursor.u8() else {
                return Err(ReferencesError {
                    pos,
                    code: None,
                    reason: Reason::Ended,
                });
            };
            if let Err(reason) = self.execute(code) {
                return Err(ReferencesError {
                    pos,
                    code: Some(code),
                    reason,
                });
            }
            if code == STOP {
                return Ok(());
            }
        }
    }

    fn execute(&mut self, code: u8) -> Result<(), Reason> {
        match code {
            STOP => _ = self.pop()?,
            PROTO => match self.cursor.u8()? {
                ..=PROTOCOL_MAX => {}
                protocol => return Err(Reason::UnknownProtocol(protocol)),
            },
            // It tells how much to buffer; we have it all.
            FRAME => _ = self.cursor.take(8)?,
            MARK => self.marks.push(self.stack.len()),

            NONE | NEWTRUE | NEWFALSE | EMPTY_DICT | EMPTY_SET => self.stack.push(Value::Other),
            BININT1 | EXT1 => self.skip(1)?,
            BININT2 | EXT2 => self.skip(2)?,
            BININT | EXT4 => self.skip(4)?,
            BINFLOAT => self.skip(8)?,
            LONG1 | LONG4 | BYTEARRAY8 => {
                self.sized(code)?;
                self.stack.push(Value::Other);
            }
            INT | LONG | FLOAT => {
                self.cursor.until(b'\n')?;
                self.stack.push(Value::Other);
            }

            SHORT_BINBYTES | BINBYTES | BINBYTES8 | SHORT_BINSTRING | BINSTRING => {
                let bytes = self.sized(code)?;
                self.push_string(bytes, Form::Plain);
            }
            SHORT_BINUNICODE | BINUNICODE | BINUNICODE8 => {
                let bytes = self.sized(code)?;
                self.push_string(bytes, Form::Utf8);
            }
            STRING => {
                let line = self.cursor.until(b'\n')?;
                self.push_string(line.trim_ascii_end(), Form::Quoted);
            }
            UNICODE => {
                let line = self.cursor.until(b'\n')?;
                self.push_string(line, Form::Escaped);
            }

            EMPTY_TUPLE => self.stack.push(Value::Tuple(None)),
            TUPLE1 | TUPLE2 | TUPLE3 => {
                let from = self.below_top(usize::from(code - TUPLE1) + 1)?;
                self.tuple(from);
            }
            TUPLE => {
                let from = self.pop_mark()?;
                self.tuple(from);
            }
            EMPTY_LIST => self.stack.push(Value::List),
            LIST => self.replace_to_mark(Value::List)?,
            DICT | FROZENSET => self.replace_to_mark(Value::Other)?,
            // They leave what they are done to.
            APPEND | BUILD => self.drop_to_owner(1)?,
            SETITEM => self.drop_to_owner(2)?,
            APPENDS | SETITEMS | ADDITEMS => {
                let mark = self.pop_mark()?;
                self.stack.truncate(mark);
                self.below_top(1)?;
            }

            POP if self.marks.last() == Some(&self.stack.len()) => _ = self.pop_mark()?,
            POP => _ = self.pop()?,
            POP_MARK => {
                let mark = self.pop_mark()?;
                self.stack.truncate(mark);
            }
            DUP => {
                let value = self.top()?;
                self.stack.push(value);
            }
            PUT | BINPUT | LONG_BINPUT => {
                let key = self.memo_key(code)?;
                let value = self.top()?;
                self.memo.put(key, value);
            }
            MEMOIZE => {
                let value = self.top()?;
                self.memo.put_next(value)?;
            }
            GET | BINGET | LONG_BINGET => {
                let key = self.memo_key(code)?;
                let value = self.memo.fetch(key).ok_or(Reason::NotMemoised(key))?;
                self.stack.push(value);
            }

            GLOBAL => {
                let module = self.cursor.until(b'\n')?;
                let name = self.cursor.until(b'\n')?;
                self.push_global(module, name);
            }
            STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (module, name) {
                    (Value::String(module), Value::String(name)) => {
                        self.push_global(module.bytes, name.bytes);
                    }
                    _ => self.stack.push(Value::Other),
                }
            }
            REDUCE | NEWOBJ => {
                let (args, callee) = (self.pop()?, self.pop()?);
                self.stack.push(call(callee, args));
            }
            NEWOBJ_EX => {
                self.below_top(3).map(|from| self.stack.truncate(from))?;
                self.stack.push(Value::Other);
            }
            INST => {
                self.cursor.until(b'\n')?;
                self.cursor.until(b'\n')?;
                self.replace_to_mark(Value::Other)?;
            }
            OBJ => {
                let mark = self.pop_mark()?;
                // The class is the first behind the mark.
                if self.stack.len() == mark {
                    return Err(Reason::StackTooShort);
                }
                self.stack.truncate(mark);
                self.stack.push(Value::Other);
            }

            PERSID => {
                let bytes = self.cursor.until(b'\n')?;
                self.refer(Str::new(bytes, Form::Plain))?;
            }
            BINPERSID => match self.pop()? {
                Value::String(oid) | Value::Tuple(Some(oid)) | Value::EncodeArgs(oid) => {
                    self.refer(oid)?;
                }
                // Weak, or into another database.
                Value::List => self.stack.push(Value::Other),
                Value::Tuple(None) | Value::ReconstructorArgs(_) => return Err(Reason::BadOid),
                Value::Other | Value::Global(_) => return Err(Reason::BadReference),
            },
            _ => return Err(Reason::UnknownCode),
        }
        Ok(())
    }

    /// A reference has been found; what it refers to takes its place on the stack.
    fn refer(&mut self, oid: Str<'_>) -> Result<(), Reason> {
        self.found.push(oid.oid().ok_or(Reason::BadOid)?);
        self.stack.push(Value::Other);
        Ok(())
    }

    // Arguments of opcodes

    fn skip(&mut self, len: usize) -> Result<(), Reason> {
        self.cursor.take(len)?;
        self.stack.push(Value::Other);
        Ok(())
    }

    /// Bytes with their length before them, in the width that belongs to the opcode.
    fn sized(&mut self, code: u8) -> Result<&'a [u8], Reason> {
        let len = match code {
            SHORT_BINUNICODE | SHORT_BINBYTES | SHORT_BINSTRING | LONG1 => self.cursor.u8()?.into(),
            BINUNICODE8 | BINBYTES8 | BYTEARRAY8 => self.cursor.u64_le()?,
            // The length of LONG4 and BINSTRING has a sign. Of a negative one there is too little.
            _ => self.cursor.u32_le()?.into(),
        };
        Ok(self
            .cursor
            .take(usize::try_from(len).unwrap_or(usize::MAX))?)
    }

    fn memo_key(&mut self, code: u8) -> Result<u32, Reason> {
        match code {
            BINPUT | BINGET => Ok(self.cursor.u8()?.into()),
            LONG_BINPUT | LONG_BINGET => Ok(self.cursor.u32_le()?),
            _ => {
                let line = self.cursor.until(b'\n')?;
                let key = std::str::from_utf8(line).map(str::parse);
                key.ok().and_then(Result::ok).ok_or(Reason::BadMemoKey)
            }
        }
    }

    // The stack

    fn push_string(&mut self, bytes: &'a [u8], form: Form) {
        self.stack.push(Value::String(Str::new(bytes, form)));
    }

    fn push_global(&mut self, module: &'a [u8], name: &'a [u8]) {
        self.class.get_or_insert((module, name));
        let global = Global::named(module, name).map_or(Value::Other, Value::Global);
        self.stack.push(global);
    }

    /// How far down the stack may be used: to the last MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    /// Where the `count` values at the top begin.
    fn below_top(&self, count: usize) -> Result<usize, Reason> {
        let from = self.stack.len().checked_sub(count);
        from.filter(|from| *from >= self.floor())
            .ok_or(Reason::StackTooShort)
    }

    fn top(&self) -> Result<Value<'a>, Reason> {
        Ok(self.stack[self.below_top(1)?])
    }

    fn pop(&mut self) -> Result<Value<'a>, Reason> {
        self.below_top(1)?;
        self.stack.pop().ok_or(Reason::StackTooShort)
    }

    fn pop_mark(&mut self) -> Result<usize, Reason> {
        self.marks.pop().ok_or(Reason::NoMark)
    }

    fn replace_to_mark(&mut self, value: Value<'a>) -> Result<(), Reason> {
        let mark = self.pop_mark()?;
        self.stack.truncate(mark);
        self.stack.push(value);
        Ok(())
    }

    /// Takes `count` values away from above the one that they are put into.
    fn drop_to_owner(&mut self, count: usize) -> Result<(), Reason> {
        let owner = self.below_top(count + 1)?;
        self.stack.truncate(owner + 1);
        Ok(())
    }

    /// Makes a tuple of all from `from` on.
    fn tuple(&mut self, from: usize) {
        let tuple = match &self.stack[from..] {
            [Value::String(text), Value::String(encoding)]
                if text.is_text() && encoding.bytes == b"latin1" =>
            {
                Value::EncodeArgs(*text)
            }
            [Value::Global(Global::Binary), _, Value::String(string)] => {
                Value::ReconstructorArgs(*string)
            }
            [Value::String(first), ..] => Value::Tuple(Some(*first)),
            _ => Value::Tuple(None),
        };
        if let ([Value::String(module), Value::String(name)], None) =
            (&self.stack[from..], self.class)
        {
            self.class = Some((module.bytes, name.bytes));
        }
        self.stack.truncate(from);
        self.stack.push(tuple);
    }
}

/// What comes of calling something, if that can be an oid.
const fn call<'a>(callee: Value<'a>, args: Value<'a>) -> Value<'a> {
    match (callee, args) {
        (
            Value::Global(Global::Binary),
            Value::Tuple(Some(
                string @ Str {
                    form: Form::Plain | Form::Quoted,
                    ..
                },
            )),
        )
        | (Value::Global(Global::Reconstructor), Value::ReconstructorArgs(string)) => {
            Value::String(string)
        }
        (Value::Global(Global::Encode), Value::EncodeArgs(text)) => Value::String(text.latin1()),
        _ => Value::Other,
    }
}

impl<'a> Str<'a> {
    const fn new(bytes: &'a [u8], form: Form) -> Self {
        Self { bytes, form }
    }

    const fn is_text(self) -> bool {
        matches!(self.form, Form::Utf8 | Form::Escaped)
    }

    /// The bytes that this text is in Latin-1.
    const fn latin1(self) -> Self {
        let form = match self.form {
            Form::Utf8 => Form::Utf8Latin1,
            Form::Escaped => Form::EscapedLatin1,
            form => form,
        };
        Self::new(self.bytes, form)
    }

    /// As an oid: eight bytes, or text of eight ASCII characters.
    fn oid(self) -> Option<Oid> {
        if self.form == Form::Plain {
            return Oid::from_slice(self.bytes);
        }
        // The longest form of a byte has ten: \U000000ff.
        if self.bytes.len() > 2 + 8 * 10 {
            return None;
        }
        let bytes: Vec<u8> = match self.form {
            Form::Plain => return Oid::from_slice(self.bytes),
            Form::Quoted => unescape_string(self.bytes)?,
            Form::Utf8 => characters(std::str::from_utf8(self.bytes).ok()?.chars(), 0x7f)?,
            Form::Utf8Latin1 => characters(std::str::from_utf8(self.bytes).ok()?.chars(), 0xff)?,
            Form::Escaped => characters(unescape_unicode(self.bytes)?.chars(), 0x7f)?,
            Form::EscapedLatin1 => characters(unescape_unicode(self.bytes)?.chars(), 0xff)?,
        };
        Oid::from_slice(&bytes)
    }
}

/// The numbers of characters, if none is above `max`.
fn characters(text: impl IntoIterator<Item = char>, max: u8) -> Option<Vec<u8>> {
    let numbers = text.into_iter().map(|character| {
        let number = u8::try_from(character).ok();
        number.filter(|number| *number <= max)
    });
    numbers.collect()
}

/// What was memoised. Picklers number that from zero, or in Python 2 from one; other keys are
/// possible, and must not take more memory than their opcodes did.
#[derive(Default)]
struct Memo<'a> {
    /// From zero on, with gaps of one at most.
    dense: Vec<Option<Value<'a>>>,
    sparse: BTreeMap<u32, Value<'a>>,
    /// How many keys there are, which is the next one for MEMOIZE.
    count: u32,
}

impl<'a> Memo<'a> {
    fn put(&mut self, key: u32, value: Value<'a>) {
        let index = key as usize;
        if index > self.dense.len() + 1 {
            self.count += u32::from(self.sparse.insert(key, value).is_none());
            return;
        }
        if index >= self.dense.len() {
            self.dense.resize(index + 1, None);
        }
        let was_sparse = !self.sparse.is_empty() && self.sparse.remove(&key).is_some();
        let was_dense = self.dense[index].replace(value).is_some();
        self.count += u32::from(!was_sparse && !was_dense);
    }

    fn put_next(&mut self, value: Value<'a>) -> Result<(), Reason> {
        let key = self.count;
        // No record is that long, but the arithmetic is checked.
        if key == u32::MAX {
            return Err(Reason::BadMemoKey);
        }
        self.put(key, value);
        Ok(())
    }

    fn fetch(&self, key: u32) -> Option<Value<'a>> {
        let dense = self.dense.get(key as usize).copied().flatten();
        dense.or_else(|| self.sparse.get(&key).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The references of a record with this pickle as its state.
    fn found_in(state: &[&[u8]]) -> Result<Vec<u64>, Reason> {
        let record = [&b"\x80\x03capp\nThing\nq\x01."[..], &state.concat()].concat();
        let mut found = Vec::new();
        match references(&record, &mut found) {
            Ok(()) => Ok(found.into_iter().map(|oid| oid.0).collect()),
            Err(error) => Err(error.reason),
        }
    }

    const OID: &[u8] = b"C\x08\0\0\0\0\0\0\0\x07";

    #[test]
    fn the_class_of_a_record_is_the_first_global_in_it() {
        let mapping = Some((&b"persistent.mapping"[..], &b"PersistentMapping"[..]));
        for record in [
            &b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\x80\x03}."[..],
            // With arguments for `__new__`, among them another class.
            b"\x80\x03(cpersistent.mapping\nPersistentMapping\ncb\nB\n\x85t.\x80\x03}.",
            // In protocol 4.
            b"\x80\x04\x8c\x12persistent.mapping\x8c\x11PersistentMapping\x93.\x80\x04}.",
            // As long ago.
            b"((U\x12persistent.mappingU\x11PersistentMappingtNt.}.",
            // What is behind it does not matter.
            b"\x80\x03cpersistent.mapping\nPersistentMapping\n\xff\xff",
        ] {
            assert_eq!(class_name(record), mapping, "{}", record.escape_ascii());
        }
        for record in [&b""[..], b"N.", b"\x80\x03cpersistent", b"no pickle"] {
            assert_eq!(class_name(record), None, "{}", record.escape_ascii());
        }
    }

    #[test]
    fn ordinary_references_are_found_and_weak_and_cross_database_ones_are_not() {
        assert_eq!(found_in(&[OID, b"Q."]), Ok(vec![7]));
        assert_eq!(found_in(&[OID, b"h\x01\x86Q."]), Ok(vec![7]));
        assert_eq!(found_in(&[b"]", OID, b"aQ."]), Ok(vec![]));
        assert_eq!(found_in(&[b"](X\x01\0\0\0w", OID, b"\x85eQ."]), Ok(vec![]));
        let cross = b"](X\x01\0\0\0m(X\x05\0\0\0other";
        assert_eq!(found_in(&[cross, OID, b"h\x01teQ."]), Ok(vec![]));
    }

    #[test]
    fn both_pickles_are_searched_and_what_is_behind_them_is_not() {
        let class = [b"(", OID, b"Qh\x01NtR"].concat();
        let record = [
            b"\x80\x03capp\nMeta\nq\x01",
            &class[..],
            b".",
            OID,
            b"Q.",
            OID,
            b"Q.",
        ];
        let mut found = Vec::new();
        assert_eq!(references(&record.concat(), &mut found), Ok(()));
        assert_eq!(found, [Oid(7), Oid(7)]);
    }

    #[test]
    fn the_memo_of_the_class_is_there_for_the_state() {
        let record = [b"\x80\x03", OID, b"q\x02.h\x02Q."].concat();
        let mut found = Vec::new();
        assert_eq!(references(&record, &mut found), Ok(()));
        assert_eq!(found, [Oid(7)]);
    }

    #[test]
    fn an_oid_is_read_in_every_form_that_a_string_has() {
        for (string, oid) in [
            (&b"U\x08\xff\0\0\0\0\0\0\x01"[..], 0xff00_0000_0000_0001),
            (b"T\x08\0\0\0\0\0\0\0\0\0\0\x01", 1),
            (b"B\x08\0\0\0\0\0\0\0\0\0\0\x01", 1),
            (b"\x8e\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", 1),
            (b"X\x08\0\0\0\0\0\0\0\0\0\0\x7f", 0x7f),
            (b"\x8c\x08\0\0\0\0\0\0\0\x7f", 0x7f),
            (b"S'\\x00\\x00\\x00\\x00\\x00\\t\\'\\\\'\n", 0x09_275c),
            (b"S\"\\x00\\x00\\x00\\x00\\x00\\x00\\xff'\"\n", 0xff27),
            (
                b"V\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\\u005ca\n",
                0x5c61,
            ),
            (
                b"c_codecs\nencode\n(V\0\0\0\0\0\0\xe9\xff\nVlatin1\ntR",
                0xe9ff,
            ),
            (
                b"c_codecs\nencode\nX\x09\0\0\0\0\0\0\0\0\0\0\xc3\xa9X\x06\0\0\0latin1\x86R",
                0xe9,
            ),
            (b"czodbpickle\nbinary\n(U\x08\0\0\0\0\0\0\0\x01tR", 1),
            (b"czodbpickle\nbinary\nU\x08\0\0\0\0\0\0\0\x01\x85\x81", 1),
            (
                b"ccopy_reg\n_reconstructor\n(czodbpickle\nbinary\nc__builtin__\nstr\n\
                  U\x08\0\0\0\0\0\0\0\x01tR",
                1,
            ),
            (
                b"\x8c\x0azodbpickle\x8c\x06binary\x93U\x08\0\0\0\0\0\0\0\x01\x85R",
                1,
            ),
        ] {
            let shown = string.escape_ascii();
            assert_eq!(found_in(&[string, b"Q."]), Ok(vec![oid]), "{shown}");
            assert_eq!(
                found_in(&[string, b"h\x01\x86Q."]),
                Ok(vec![oid]),
                "{shown}"
            );
            assert_eq!(
                found_in(&[string, b"q\x020h\x02Q."]),
                Ok(vec![oid]),
                "{shown}"
            );
        }
        assert_eq!(found_in(&[b"P\0\0\0\0\0\0\0\x01\n."]), Ok(vec![1]));
    }

    #[test]
    fn what_cannot_be_an_oid_is_an_error() {
        for string in [
            &b"C\x07\0\0\0\0\0\0\0"[..],
            b"C\x09\0\0\0\0\0\0\0\0\0",
            b"C\x00",
            b"X\x09\0\0\0\0\0\0\0\0\0\0\xc3\xa9",
            b"X\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
            b"S'\\x00'\n",
            b"S'12345678\n",
            b"S'1234567\\q'\n",
            b"V12345678\\u00\n",
            b"V1234567\xe9\n",
        ] {
            let shown = string.escape_ascii();
            assert_eq!(found_in(&[string, b"Q."]), Err(Reason::BadOid), "{shown}");
        }
        assert_eq!(found_in(&[b"P0000\n."]), Err(Reason::BadOid));
        assert_eq!(found_in(&[b")Q."]), Err(Reason::BadOid));
        assert_eq!(found_in(&[b"NN\x86Q."]), Err(Reason::BadOid));
        for value in [&b"N"[..], b"K\x01", b"}", b"h\x01", b"h\x01)R"] {
            assert_eq!(found_in(&[value, b"Q."]), Err(Reason::BadReference));
        }
        // These give bytes, but which?
        let hex = b"c_codecs\nencode\n(V12345678\nVhex\ntRQ.";
        assert_eq!(found_in(&[hex]), Err(Reason::BadReference));
    }

    #[test]
    fn what_is_not_understood_is_an_error_that_says_where() {
        for (state, pos, reason) in [
            (&b"\xff."[..], 0, Reason::UnknownCode),
            (b"\x80\x06N.", 0, Reason::UnknownProtocol(6)),
            // Buffers are kept outside of the pickle, and a record has no outside.
            (b"\x97.", 0, Reason::UnknownCode),
            (b"N\x98.", 1, Reason::UnknownCode),
            (b"Na.", 1, Reason::StackTooShort),
            (b"Ns.", 1, Reason::StackTooShort),
            (b"(e.", 1, Reason::StackTooShort),
            (b"N(N\x86.", 3, Reason::StackTooShort),
            (b"(o.", 1, Reason::StackTooShort),
            (b".", 0, Reason::StackTooShort),
            (b"Nt.", 1, Reason::NoMark),
            (b"h\x05.", 0, Reason::NotMemoised(5)),
            (b"g-1\n.", 0, Reason::BadMemoKey),
            (b"NC\xff.", 1, Reason::Ended),
            (b"N\x8b\xff\xff\xff\xff.", 1, Reason::Ended),
            (b"N\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", 1, Reason::Ended),
        ] {
            let record = [b"N.", state].concat();
            let expected = ReferencesError {
                pos: pos + 2,
                code: Some(state[pos]),
                reason,
            };
            assert_eq!(references(&record, &mut Vec::new()), Err(expected));
        }
        for (record, pos) in [(&b""[..], 0), (b"N.", 2), (b"N.N", 3)] {
            let error = references(record, &mut Vec::new()).unwrap_err();
            assert_eq!((error.pos, error.code), (pos, None));
            assert_eq!(error.reason, Reason::Ended);
        }
        let error = references(b"N.\x97", &mut Vec::new()).unwrap_err();
        let text = "byte 2, opcode 0x97 '\\x97': no opcode of a pickle";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn the_memo_takes_any_keys_and_counts_them() {
        let mut memo = Memo::default();
        let string = |n: usize| Value::String(Str::new(&b"0123456789"[..n], Form::Plain));
        let len = |value: Option<Value<'_>>| match value {
            Some(Value::String(string)) => Some(string.bytes.len()),
            _ => None,
        };
        memo.put(1, string(1));
        memo.put(1_000_000_000, string(2));
        memo.put(4, string(3));
        memo.put(4, string(4));
        assert_eq!(memo.count, 3);
        assert_eq!(len(memo.fetch(0)), None);
        assert_eq!(len(memo.fetch(1)), Some(1));
        assert_eq!(len(memo.fetch(1_000_000_000)), Some(2));
        assert_eq!(len(memo.fetch(4)), Some(4));
        memo.put(0, string(5));
        // The next free key is taken, though it is behind one that is not.
        memo.put_next(string(6)).unwrap();
        assert_eq!(memo.count, 4, "it replaced the one under 4");
        assert_eq!(len(memo.fetch(4)), Some(6));
        for key in 2..10 {
            memo.put(key, string(7));
        }
        assert_eq!(memo.count, 11);
        assert_eq!(len(memo.fetch(4)), Some(7));
    }
}
