//! The part of pickle that ZEO and our own messages speak: listed opcodes, listed globals, and
//! nothing is ever called.
//!
//! Reading is a stack machine over [`Value`]s that accepts protocols 0 to 4 as far as they can
//! express one.
//!
//! A list that was memoised may still grow, and may be fetched many times. Such containers, and
//! globals, are *held* in a table beside the stack; on the stack a [`Value::Id`] with the place in
//! the table stands for them. When the machine stops, the resolver puts copies in their places and
//! counts what it makes: a pickle of a few bytes can describe a value of any size, or one that
//! contains itself.

mod write;

use std::collections::BTreeMap;
use std::str;

use bytes::Bytes;

pub(crate) use self::write::{Reader, encode_bytes_head, encode_int, encode_message};
pub use self::write::{encode, encode_standalone};
use crate::cursor::Cursor;
use crate::limits::{VALUE_DEPTH_MAX, VALUES_PER_MESSAGE_MAX};
use crate::pickle_opcode::*;
use crate::pickle_text::{unescape_string, unescape_unicode};
use crate::value::{DecodeError, Value};

/// Reads one pickle, which must fill `bytes`.
pub fn decode(bytes: &Bytes) -> Result<Value, DecodeError> {
    Machine::new(bytes).run()
}

/// As [`decode`], of a peer that is only looked at: classes that we do not know are the text of
/// their names, and instances of them are tuples of what is called, the arguments, and the state.
pub fn decode_any(bytes: &Bytes) -> Result<Value, DecodeError> {
    let mut machine = Machine::new(bytes);
    machine.any_class = true;
    machine.run()
}

/// A pickle that is cut off within a string of bytes.
pub(crate) struct CutOff {
    /// What stands before the string and is not put together yet.
    pub(crate) before: Vec<Value>,
    /// Where the opcode of the string stands.
    pub(crate) opcode_pos: usize,
    /// Where its bytes begin.
    pub(crate) data_pos: usize,
    /// How many they are.
    pub(crate) data_len: usize,
    /// The opcode that has a length of one byte instead.
    pub(crate) short_opcode: u8,
}

/// Reads a pickle that is cut off; `None` if it is not, or elsewhere than within a long string of
/// bytes.
pub(crate) fn cut_off(bytes: &Bytes) -> Option<CutOff> {
    let mut machine = Machine::new(bytes);
    let Err(DecodeError::End(end)) = machine.run() else {
        return None;
    };
    let short_opcode = match bytes.get(machine.opcode_pos)? {
        &BINBYTES | &BINBYTES8 => SHORT_BINBYTES,
        &BINSTRING => SHORT_BINSTRING,
        _ => return None,
    };
    Some(CutOff {
        before: machine.stack.into_iter().map(|item| item.value).collect(),
        opcode_pos: machine.opcode_pos,
        data_pos: end.pos,
        data_len: end.needed,
        short_opcode,
    })
}

/// Something on the stack.
#[derive(Clone, Debug)]
struct Item {
    value: Value,
    /// Levels of containers that `value` consists of, itself included.
    depth: usize,
}

/// What a [`Value::Id`] stands for while the machine runs.
#[derive(Debug)]
enum Held {
    Container(Item),
    Global(Global),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Global {
    /// `ZopeUndo.Prefix.Prefix`
    Prefix,
    /// `zodbpickle.binary`
    Binary,
    /// `_codecs.encode`, by which Python 3 writes bytes in protocols below 3.
    Encode,
    /// `bytes`, by which it writes empty bytes there.
    Bytes,
    /// `copy_reg._reconstructor`, by which protocols below 2 make instances.
    Reconstructor,
    /// `object`, which goes with it.
    Object,
    /// `dict`, by which an extension comes that is of a class of its own.
    Dict,
}

struct Machine<'a> {
    bytes: &'a Bytes,
    cursor: Cursor<'a>,
    stack: Vec<Item>,
    /// Where in `stack` the open MARKs stand; ascending, none is above the stack.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value>,
    held: Vec<Held>,
    /// Everything that took memory so far.
    count: usize,
    opcode_pos: usize,
    /// Classes that we do not know are shown, not refused.
    any_class: bool,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            cursor: Cursor::new(bytes),
            stack: Vec::with_capacity(16),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            held: Vec::new(),
            count: 0,
            opcode_pos: 0,
            any_class: false,
        }
    }

    fn run(&mut self) -> Result<Value, DecodeError> {
        loop {
            self.opcode_pos = self.cursor.pos();
            let code = self.cursor.u8()?;
            match code {
                STOP => return self.finish(),
                PROTO => _ = self.cursor.u8()?,
                // It tells how much to buffer; we have it all.
                FRAME => _ = self.cursor.u64_le()?,
                MARK => {
                    self.count(1)?;
                    self.marks.push(self.stack.len());
                }
                NONE => self.push(Value::None)?,
                NEWTRUE => self.push(Value::Bool(true))?,
                NEWFALSE => self.push(Value::Bool(false))?,
                BININT1 => {
                    let int = self.cursor.u8()?;
                    self.push(Value::Int(int.into()))?;
                }
                BININT2 => {
                    let int = self.cursor.u16_le()?;
                    self.push(Value::Int(int.into()))?;
                }
                BININT => {
                    let int = i32::from_le_bytes(self.cursor.array()?);
                    self.push(Value::Int(int.into()))?;
                }
                LONG1 | LONG4 => {
                    let bytes = self.sized(code)?;
                    self.push(Value::integer(bytes))?;
                }
                INT | LONG => self.decimal(code)?,
                BINFLOAT => {
                    let float = f64::from_be_bytes(self.cursor.array()?);
                    self.push(Value::Float(float))?;
                }
                FLOAT => {
                    let text = self.line()?;
                    let float = text.parse().map_err(|_| self.malformed("no float"))?;
                    self.push(Value::Float(float))?;
                }
                SHORT_BINUNICODE | BINUNICODE | BINUNICODE8 => {
                    let text = self.sized(code)?;
                    str::from_utf8(&text).map_err(|_| self.malformed("text is not UTF-8"))?;
                    self.push(Value::Text(text))?;
                }
                SHORT_BINBYTES | BINBYTES | BINBYTES8 => {
                    let bytes = self.sized(code)?;
                    self.push(Value::Bytes(bytes))?;
                }
                SHORT_BINSTRING | BINSTRING => {
                    let bytes = self.sized(code)?;
                    self.push(Value::Str(bytes))?;
                }
                STRING => {
                    let line = self.cursor.until(b'\n')?;
                    let bytes = unescape_string(line).ok_or_else(|| self.malformed("no string"))?;
                    self.push(Value::Str(bytes.into()))?;
                }
                UNICODE => {
                    let line = self.cursor.until(b'\n')?;
                    let text = unescape_unicode(line).ok_or_else(|| self.malformed("no text"))?;
                    self.push(text.into())?;
                }
                EMPTY_TUPLE => self.push_container(Value::Tuple(Vec::new()), 1)?,
                EMPTY_LIST => self.push_container(Value::List(Vec::new()), 1)?,
                EMPTY_DICT => self.push_container(Value::Dict(Vec::new()), 1)?,
                TUPLE1 | TUPLE2 | TUPLE3 => {
                    let count = usize::from(code - TUPLE1) + 1;
                    let from = self.stack.len().checked_sub(count);
                    let from = from.filter(|from| *from >= self.floor());
                    self.tuple(from.ok_or_else(|| self.underflow())?)?;
                }
                TUPLE => {
                    let from = self.pop_mark()?;
                    self.tuple(from)?;
                }
                LIST => {
                    let items = self.pop_to_mark()?;
                    self.push_container(Value::List(Vec::new()), 1)?;
                    self.append(items)?;
                }
                DICT => {
                    let items = self.pop_to_mark()?;
                    self.push_container(Value::Dict(Vec::new()), 1)?;
                    self.set_items(items)?;
                }
                APPEND => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                APPENDS => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                SETITEM => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(vec![key, value])?;
                }
                SETITEMS => {
                    let items = self.pop_to_mark()?;
                    self.set_items(items)?;
                }
                POP if self.marks.last() == Some(&self.stack.len()) => _ = self.pop_mark()?,
                POP => _ = self.pop()?,
                POP_MARK => _ = self.pop_to_mark()?,
                DUP => {
                    let value = self.hold()?;
                    self.push(value)?;
                }
                PUT | BINPUT | LONG_BINPUT => {
                    let key = self.memo_key(code)?;
                    self.memoize(key)?;
                }
                MEMOIZE => {
                    let key = u32::try_from(self.memo.len());
                    self.memoize(key.map_err(|_| DecodeError::TooManyValues)?)?;
                }
                GET | BINGET | LONG_BINGET => {
                    let key = self.memo_key(code)?;
                    let value = self.memo.get(&key).cloned();
                    self.push(value.ok_or_else(|| self.malformed("nothing memoised"))?)?;
                }
                GLOBAL => self.global()?,
                REDUCE | NEWOBJ => self.call()?,
                BUILD => self.build()?,
                _ => {
                    return Err(DecodeError::Code {
                        code,
                        pos: self.opcode_pos,
                    });
                }
            }
        }
    }

    fn finish(&mut self) -> Result<Value, DecodeError> {
        if self.cursor.remaining() > 0 {
            return Err(self.malformed("bytes after the end"));
        }
        let value = self.pop()?.value;
        if self.held.is_empty() {
            return Ok(value);
        }
        let mut resolver = Resolver {
            held: &self.held,
            count: 0,
            end_pos: self.opcode_pos,
        };
        resolver.value(&value, 0)
    }

    fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed {
            what,
            pos: self.opcode_pos,
        }
    }

    fn underflow(&self) -> DecodeError {
        self.malformed("nothing on the stack")
    }

    fn count(&mut self, count: usize) -> Result<(), DecodeError> {
        self.count += count;
        if self.count > VALUES_PER_MESSAGE_MAX {
            return Err(DecodeError::TooManyValues);
        }
        Ok(())
    }

    // Arguments of opcodes

    /// Bytes with their length before them, in the width that belongs to the opcode.
    fn sized(&mut self, code: u8) -> Result<Bytes, DecodeError> {
        let len = match code {
            SHORT_BINUNICODE | SHORT_BINBYTES | SHORT_BINSTRING | LONG1 => self.cursor.u8()?.into(),
            BINUNICODE8 | BINBYTES8 => self.cursor.u64_le()?,
            // The length of LONG4 and BINSTRING has a sign. A negative one is above any limit.
            _ => self.cursor.u32_le()?.into(),
        };
        let start = self.cursor.pos();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.cursor.take(len)?;
        Ok(self.bytes.slice(start..start + len))
    }

    fn line(&mut self) -> Result<&'a str, DecodeError> {
        let pos = self.opcode_pos;
        str::from_utf8(self.cursor.until(b'\n')?).map_err(|_| DecodeError::Malformed {
            what: "text is not UTF-8",
            pos,
        })
    }

    /// INT and LONG. Python 2 writes integers of more than 32 bits so, and booleans in protocol 0.
    fn decimal(&mut self, code: u8) -> Result<(), DecodeError> {
        let text = self.line()?;
        let value = match (code, text) {
            (INT, "00") => Value::Bool(false),
            (INT, "01") => Value::Bool(true),
            // More than 128 bits would take time that grows with the square of the length.
            _ => match text.strip_suffix('L').unwrap_or(text).parse::<i128>() {
                Ok(int) => Value::integer(Bytes::copy_from_slice(&int.to_le_bytes())),
                Err(_) => return Err(self.malformed("no integer of at most 128 bits")),
            },
        };
        self.push(value)
    }

    fn memo_key(&mut self, code: u8) -> Result<u32, DecodeError> {
        match code {
            BINPUT | BINGET => Ok(self.cursor.u8()?.into()),
            LONG_BINPUT | LONG_BINGET => Ok(self.cursor.u32_le()?),
            _ => {
                let key = self.line()?.parse();
                key.map_err(|_| self.malformed("no memo key"))
            }
        }
    }

    // The stack

    fn push(&mut self, value: Value) -> Result<(), DecodeError> {
        self.push_container(value, 0)
    }

    fn push_container(&mut self, value: Value, depth: usize) -> Result<(), DecodeError> {
        self.count(1)?;
        self.stack.push(Item { value, depth });
        Ok(())
    }

    /// How far down the stack may be used: to the last MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Item, DecodeError> {
        if self.stack.len() <= self.floor() {
            return Err(self.underflow());
        }
        self.stack.pop().ok_or_else(|| self.underflow())
    }

    fn pop_mark(&mut self) -> Result<usize, DecodeError> {
        self.marks.pop().ok_or_else(|| self.malformed("no mark"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Item>, DecodeError> {
        let mark = self.pop_mark()?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&mut self) -> Result<&mut Item, DecodeError> {
        let underflow = self.underflow();
        let floor = self.floor();
        let top = self.stack.get_mut(floor..).and_then(<[Item]>::last_mut);
        let top = top.ok_or(underflow)?;
        if let Value::Id(id) = top.value
            && let Some(Held::Container(item)) = self.held.get_mut(held_index(id))
        {
            return Ok(item);
        }
        Ok(top)
    }

    fn tuple(&mut self, from: usize) -> Result<(), DecodeError> {
        let depth = depth_around(&self.stack[from..])?;
        let items = self.stack.drain(from..).map(|item| item.value).collect();
        self.push_container(Value::Tuple(items), depth)
    }

    fn append(&mut self, items: Vec<Item>) -> Result<(), DecodeError> {
        let error = self.malformed("an append to what is no list");
        let depth = depth_around(&items)?;
        let top = self.top()?;
        let Value::List(list) = &mut top.value else {
            return Err(error);
        };
        list.extend(items.into_iter().map(|item| item.value));
        top.depth = top.depth.max(depth);
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Item>) -> Result<(), DecodeError> {
        let error = self.malformed("items for what is no dict, or half an item");
        let depth = depth_around(&items)?;
        let top = self.top()?;
        let Value::Dict(dict) = &mut top.value else {
            return Err(error);
        };
        let mut items = items.into_iter().map(|item| item.value);
        while let Some(key) = items.next() {
            dict.push((key, items.next().ok_or_else(|| error.clone())?));
        }
        top.depth = top.depth.max(depth);
        Ok(())
    }

    // The memo and what is held for it

    fn memoize(&mut self, key: u32) -> Result<(), DecodeError> {
        self.count(1)?;
        let value = self.hold()?;
        self.memo.insert(key, value);
        Ok(())
    }

    /// A second copy of the top of the stack: of a leaf itself, of a container what stands for it.
    fn hold(&mut self) -> Result<Value, DecodeError> {
        let item = self.pop()?;
        let value = match item.value {
            Value::Tuple(_) | Value::List(_) | Value::Dict(_) | Value::Prefix(_) => {
                self.held.push(Held::Container(item));
                held_id(self.held.len() - 1)
            }
            leaf => leaf,
        };
        self.stack.push(Item {
            value: value.clone(),
            depth: 0,
        });
        Ok(value)
    }

    // Globals

    fn global(&mut self) -> Result<(), DecodeError> {
        let module = self.cursor.until(b'\n')?;
        let name = self.cursor.until(b'\n')?;
        let global = match (module, name) {
            (b"ZopeUndo.Prefix", b"Prefix") => Global::Prefix,
            (b"zodbpickle", b"binary") => Global::Binary,
            (b"_codecs", b"encode") => Global::Encode,
            (b"__builtin__" | b"builtins", b"bytes") => Global::Bytes,
            (b"copy_reg" | b"copyreg", b"_reconstructor") => Global::Reconstructor,
            (b"__builtin__" | b"builtins", b"object") => Global::Object,
            (b"__builtin__" | b"builtins", b"dict") => Global::Dict,
            _ => {
                let shown = |name: &[u8]| name[..name.len().min(60)].escape_ascii().to_string();
                let name = format!("{}.{}", shown(module), shown(name));
                if self.any_class {
                    return self.push(name.into());
                }
                return Err(DecodeError::Global {
                    name,
                    pos: self.opcode_pos,
                });
            }
        };
        self.held.push(Held::Global(global));
        self.push(held_id(self.held.len() - 1))
    }

    /// What REDUCE and NEWOBJ would call, and we only recognise.
    fn call(&mut self) -> Result<(), DecodeError> {
        let Item { value: args, depth } = self.pop()?;
        let callee = self.pop()?.value;
        if self.held_global(&callee) == Some(Global::Dict) {
            return self.dict_of_pairs(args, depth);
        }
        if self.any_class && matches!(callee, Value::Text(_)) {
            let parts = [callee, args].map(|value| Item { value, depth });
            self.stack.extend(parts);
            return self.tuple(self.stack.len() - 2);
        }
        let args = match (&args, self.held(&args)) {
            (Value::Tuple(args), _) => args,
            (_, Some(Held::Container(item))) => match &item.value {
                Value::Tuple(args) => args,
                _ => return Err(self.malformed("arguments are no tuple")),
            },
            _ => return Err(self.malformed("arguments are no tuple")),
        };
        let value = match (self.held_global(&callee), &args[..]) {
            (Some(Global::Prefix), []) => Value::Prefix(Vec::new()),
            (Some(Global::Reconstructor), [class, base, Value::None])
                if self.held_global(class) == Some(Global::Prefix)
                    && self.held_global(base) == Some(Global::Object) =>
            {
                Value::Prefix(Vec::new())
            }
            (Some(Global::Binary), [Value::Bytes(bytes) | Value::Str(bytes)]) => {
                Value::Bytes(bytes.clone())
            }
            (Some(Global::Bytes), []) => Value::Bytes(Bytes::new()),
            (Some(Global::Encode), [Value::Text(text), encoding])
                if encoding.string().is_some_and(|name| name == "latin1") =>
            {
                let bytes = latin1(text).ok_or_else(|| self.malformed("text is not Latin-1"))?;
                // They are new memory, unlike all other bytes, and the text can be fetched again.
                self.count(bytes.len())?;
                Value::Bytes(bytes.into())
            }
            _ => return Err(self.malformed("a call that is not accepted")),
        };
        let depth = usize::from(matches!(value, Value::Prefix(_)));
        self.push_container(value, depth)
    }

    /// `dict(((key, value), ...))`. The pairs are moved, not copied, so that they must not have
    /// been memoised: clients memoise nothing.
    fn dict_of_pairs(&mut self, args: Value, depth: usize) -> Result<(), DecodeError> {
        let error = self.malformed("a call that is not accepted");
        let items = pairs_of(args).ok_or(error)?;
        // They were three tuples deep.
        let depth = depth.saturating_sub(3);
        let items = items.into_iter().map(|value| Item { value, depth });
        let items = items.collect();
        self.push_container(Value::Dict(Vec::new()), 1)?;
        self.set_items(items)
    }

    /// Gives an instance its state: for now as its only item, for the resolver.
    fn build(&mut self) -> Result<(), DecodeError> {
        let error = self.malformed("a state for what is no instance");
        let state = self.pop()?;
        let depth = depth_around(std::slice::from_ref(&state))?;
        let any_class = self.any_class;
        let top = self.top()?;
        match &mut top.value {
            Value::Prefix(content) => *content = vec![state.value],
            Value::Tuple(parts) if any_class => parts.push(state.value),
            _ => return Err(error),
        }
        top.depth = depth.max(top.depth);
        Ok(())
    }

    fn held(&self, value: &Value) -> Option<&Held> {
        match value {
            Value::Id(id) => self.held.get(held_index(*id)),
            _ => None,
        }
    }

    fn held_global(&self, value: &Value) -> Option<Global> {
        match self.held(value) {
            Some(Held::Global(global)) => Some(*global),
            _ => None,
        }
    }
}

/// Makes a value without references to what was held.
struct Resolver<'a> {
    held: &'a [Held],
    count: usize,
    end_pos: usize,
}

impl Resolver<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<Value, DecodeError> {
        if depth > VALUE_DEPTH_MAX {
            return Err(DecodeError::TooDeep);
        }
        Ok(match value {
            Value::Id(id) => match self.held.get(held_index(*id)) {
                Some(Held::Container(item)) => self.value(&item.value, depth)?,
                _ => return Err(self.malformed("a global that is not called")),
            },
            Value::Tuple(items) => Value::Tuple(self.values(items, depth)?),
            Value::List(items) => Value::List(self.values(items, depth)?),
            Value::Dict(pairs) => {
                self.count(2 * pairs.len())?;
                let mut resolved = Vec::with_capacity(pairs.len());
                for (key, value) in pairs {
                    resolved.push((self.value(key, depth + 1)?, self.value(value, depth + 1)?));
                }
                Value::Dict(resolved)
            }
            Value::Prefix(state) => Value::Prefix(self.prefix_path(state, depth)?),
            leaf => leaf.clone(),
        })
    }

    fn values(&mut self, items: &[Value], depth: usize) -> Result<Vec<Value>, DecodeError> {
        // Counted before memory is taken for them.
        self.count(items.len())?;
        let mut resolved = Vec::with_capacity(items.len());
        for item in items {
            resolved.push(self.value(item, depth + 1)?);
        }
        Ok(resolved)
    }

    /// The `path` in the state of a `Prefix`: `{'length': .., 'path': [..]}`.
    fn prefix_path(&mut self, state: &[Value], depth: usize) -> Result<Vec<Value>, DecodeError> {
        let state = self.values(state, depth)?;
        if let Some(Value::Dict(attributes)) = state.into_iter().next() {
            for (name, value) in attributes {
                if let (Some(b"path"), Value::List(path) | Value::Tuple(path)) =
                    (name.string().map(|name| &name[..]), value)
                {
                    return Ok(path);
                }
            }
        }
        Err(self.malformed("a Prefix without its path"))
    }

    fn count(&mut self, count: usize) -> Result<(), DecodeError> {
        self.count += count;
        if self.count > VALUES_PER_MESSAGE_MAX {
            return Err(DecodeError::TooManyValues);
        }
        Ok(())
    }

    fn malformed(&self, what: &'static str) -> DecodeError {
        DecodeError::Malformed {
            what,
            pos: self.end_pos,
        }
    }
}

fn held_id(index: usize) -> Value {
    Value::Id((index as u64).to_be_bytes())
}

fn held_index(id: [u8; 8]) -> usize {
    usize::try_from(u64::from_be_bytes(id)).unwrap_or(usize::MAX)
}

/// The depth of a container of `items`, if it is allowed.
fn depth_around(items: &[Item]) -> Result<usize, DecodeError> {
    let depth = 1 + items.iter().map(|item| item.depth).max().unwrap_or(0);
    if depth > VALUE_DEPTH_MAX {
        return Err(DecodeError::TooDeep);
    }
    Ok(depth)
}

/// Keys and values in turns, of arguments that are one tuple of pairs.
fn pairs_of(args: Value) -> Option<Vec<Value>> {
    let Value::Tuple(args) = args else {
        return None;
    };
    let [Value::Tuple(pairs)] = <[Value; 1]>::try_from(args).ok()? else {
        return None;
    };
    let mut items = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        match pair {
            Value::Tuple(pair) if pair.len() == 2 => items.extend(pair),
            _ => return None,
        }
    }
    Some(items)
}

/// UTF-8 to Latin-1.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(text).ok()?;
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(pickle: &[u8]) -> Result<Value, DecodeError> {
        decode(&Bytes::copy_from_slice(pickle))
    }

    #[test]
    fn instances_of_any_class_are_shown_by_those_who_only_look() {
        let error = b"(cexceptions\nKeyError\n(K\x01tR}U\x01aK\x02sbcm\nC\nt.";
        let bytes = Bytes::from_static(error);
        assert!(matches!(decode(&bytes), Err(DecodeError::Global { .. })));
        let text = |text| Value::text(text);
        let state = Value::Dict(vec![(Value::Str(Bytes::from_static(b"a")), Value::Int(2))]);
        let arguments = Value::Tuple(vec![Value::Int(1)]);
        let instance = Value::Tuple(vec![text("exceptions.KeyError"), arguments, state]);
        let expected = Value::Tuple(vec![instance, text("m.C")]);
        assert_eq!(decode_any(&bytes), Ok(expected));
    }

    #[test]
    fn an_instance_that_contains_itself_is_refused_also_there() {
        let bytes = Bytes::from_static(b"cm\nC\n)Rq\x00h\x00b.");
        assert_eq!(decode_any(&bytes), Err(DecodeError::TooDeep));
        let mut nested = Vec::new();
        for _ in 0..200 {
            nested.extend_from_slice(b"cm\nC\n");
        }
        nested.push(b')');
        nested.extend(std::iter::repeat_n(b'R', 200));
        nested.push(b'.');
        assert_eq!(decode_any(&nested.into()), Err(DecodeError::TooDeep));
    }

    #[test]
    fn byte_strings_are_slices_of_the_frame() {
        let frame = Bytes::from_static(b"C\x03abc.");
        let Ok(Value::Bytes(bytes)) = decode(&frame) else {
            panic!("no bytes");
        };
        assert_eq!(bytes.as_ptr(), frame[2..].as_ptr());
    }

    #[test]
    fn a_list_that_grows_after_it_was_memoised_is_whole_wherever_it_is_fetched() {
        let list = Value::List(vec![Value::Int(1), Value::Int(2)]);
        let tuple = Value::Tuple(vec![list.clone(), list]);
        assert_eq!(decoded(b"]q\x00K\x01ah\x00K\x02a\x86."), Ok(tuple));
    }

    #[test]
    fn what_contains_itself_is_refused() {
        assert_eq!(decoded(b"]q\x00h\x00a."), Err(DecodeError::TooDeep));
        assert_eq!(decoded(b"]2a."), Err(DecodeError::TooDeep));
        assert_eq!(decoded(b"}q\x00(h\x00K\x01u."), Err(DecodeError::TooDeep));
        assert_eq!(decoded(b"]q\x00h\x00\x85a."), Err(DecodeError::TooDeep));
    }

    #[test]
    fn a_value_that_would_grow_without_bound_is_refused() {
        // Each list holds the one before ten times.
        let mut pickle = b"]q\x00".to_vec();
        for level in 1..40 {
            pickle.extend_from_slice(&[EMPTY_LIST, BINPUT, level, MARK]);
            for _ in 0..10 {
                pickle.extend_from_slice(&[BINGET, level - 1]);
            }
            pickle.push(APPENDS);
        }
        pickle.push(STOP);
        assert_eq!(decoded(&pickle), Err(DecodeError::TooManyValues));
    }

    #[test]
    fn nesting_is_limited_on_every_way_to_nest() {
        let ways: [(&[u8], &[u8]); 4] = [(b"", b"\x85"), (b"]", b"a"), (b"(", b"l"), (b"}N", b"s")];
        for (open, close) in ways {
            let nested = |depth| {
                let pickle = [&open.repeat(depth), &b"N"[..], &close.repeat(depth), b"."].concat();
                decoded(&pickle)
            };
            assert!(nested(VALUE_DEPTH_MAX).is_ok());
            assert_eq!(nested(VALUE_DEPTH_MAX + 1), Err(DecodeError::TooDeep));
            assert!(nested(100_000).is_err());
        }
    }

    #[test]
    fn other_globals_and_opcodes_are_named() {
        let error = DecodeError::Global {
            name: "os.system".to_owned(),
            pos: 2,
        };
        assert_eq!(decoded(b"\x80\x02cos\nsystem\nU\x02ls\x85R."), Err(error));
        let error = DecodeError::Code { code: b'i', pos: 1 };
        assert_eq!(decoded(b"(iZopeUndo.Prefix\nPrefix\n."), Err(error));
    }

    #[test]
    fn a_dict_may_come_as_a_call_with_its_items() {
        // pickle.dumps with a class that reduces to (dict, (tuple(items),)), in fast mode
        let dict = b"cbuiltins\ndict\nX\x03\0\0\0fooK\x01\x86\x85\x85R.";
        let foo = (Value::text("foo"), Value::Int(1));
        assert_eq!(decoded(dict), Ok(Value::Dict(vec![foo])));
        let empty = b"c__builtin__\ndict\n)\x85R.";
        assert_eq!(decoded(empty), Ok(Value::Dict(Vec::new())));
        for wrong in [
            &b"cbuiltins\ndict\n)R."[..],
            b"cbuiltins\ndict\nK\x01\x85R.",
            b"cbuiltins\ndict\nK\x01\x85\x85R.",
            b"cbuiltins\ndict\nK\x01\x85\x85\x85R.",
            b"cbuiltins\ndict\n)2\x86\x85R.",
            b"cbuiltins\ndict\n.",
        ] {
            let error = decoded(wrong).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
        }
    }

    #[test]
    fn a_global_is_not_a_value() {
        for pickle in [
            &b"cZopeUndo.Prefix\nPrefix\n."[..],
            b"cZopeUndo.Prefix\nPrefix\n\x85.",
            b"cZopeUndo.Prefix\nPrefix\n)R.",
            b"cZopeUndo.Prefix\nPrefix\nN\x85R.",
            b"cZopeUndo.Prefix\nPrefix\n)\x81Nb.",
            b"]Nb.",
        ] {
            let error = decoded(pickle).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
        }
    }

    #[test]
    fn the_stack_is_not_used_below_a_mark() {
        for pickle in [
            &b"N(\x85."[..],
            b"](Na.",
            b"N(.",
            b"]Na(b.",
            b"t.",
            b"0.",
            b"(1u.",
            b".",
        ] {
            let error = decoded(pickle).unwrap_err();
            assert!(matches!(error, DecodeError::Malformed { .. }), "{error}");
        }
        assert_eq!(decoded(b"N(0."), Ok(Value::None));
    }

    #[test]
    fn text_in_a_pickle_is_checked() {
        assert_eq!(
            decoded(b"X\x01\0\0\0\xff."),
            Err(DecodeError::Malformed {
                what: "text is not UTF-8",
                pos: 0,
            })
        );
        assert!(decoded(b"S'\\z'\n.").is_err());
        assert!(decoded(b"V\\ud800\n.").is_err());
        assert!(decoded(b"L340282366920938463463374607431768211456L\n.").is_err());
    }
}
