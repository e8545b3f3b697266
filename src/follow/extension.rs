//! The extension of a transaction, as bytes for the data file.
//!
//! It is a dict of anything that pickle knows, and the source may have classes in it that we know
//! nothing about. It need not be understood to be copied: a server writes pickles in which nothing
//! refers to what stands before it, so that the part of the answer that is the extension is a
//! pickle by itself, but for its first and last opcodes.

use bytes::Bytes;

use crate::limits::METADATA_LEN_MAX;
use crate::pickle::{self, encode_standalone};
use crate::pickle_opcode::{
    BINBYTES, BININT, BININT1, BININT2, BINSTRING, BINUNICODE, EMPTY_DICT, LONG1, MARK, NEWFALSE,
    PROTO, SHORT_BINBYTES, SHORT_BINSTRING, SHORT_BINUNICODE, STOP, TUPLE,
};
use crate::value::Value;
use crate::zeo::message::Encoding;

/// The extension in the answer to `iterator_next`: as it stands in `frame` if that is possible,
/// else anew from the value that was read. `None` if neither is.
pub(super) fn extension(encoding: Option<Encoding>, frame: &Bytes, value: &Value) -> Option<Bytes> {
    let Value::Dict(items) = value else {
        return None;
    };
    if items.is_empty() {
        return Some(Bytes::new());
    }
    if encoding == Some(Encoding::Z) {
        if let Some(pickle) = as_it_is(frame) {
            return Some(pickle);
        }
        // What onlookers read may have lost something: instances are tuples there.
        pickle::decode(frame).ok()?;
    }
    encode_standalone(value, METADATA_LEN_MAX).map(Bytes::from)
}

/// Cuts it out of `(msgid, flag, '.reply', (tid, status, user, description, extension))`, if that
/// is written in the way that servers write it.
fn as_it_is(frame: &[u8]) -> Option<Bytes> {
    const END: [u8; 3] = [TUPLE, TUPLE, STOP];
    let [PROTO, protocol, rest @ ..] = frame else {
        return None;
    };
    let mut rest = rest.strip_suffix(&END)?.strip_prefix(&[MARK])?;
    for _ in 0..3 {
        rest = behind_value(rest)?;
    }
    rest = rest.strip_prefix(&[MARK])?;
    for _ in 0..4 {
        rest = behind_value(rest)?;
    }
    // A dict, and not the memoised one of somebody else.
    (*rest.first()? == EMPTY_DICT || *rest.first()? == MARK)
        .then(|| [&[PROTO, *protocol], rest, &[STOP]].concat().into())
}

/// What stands behind a number or string, which is not memoised.
fn behind_value(pickle: &[u8]) -> Option<&[u8]> {
    let (code, rest) = pickle.split_first()?;
    let short = || rest.first().map(|len| 1 + usize::from(*len));
    let long = || {
        let len = u32::from_le_bytes(*rest.first_chunk()?);
        Some(4 + usize::try_from(len).ok()?)
    };
    let len = match *code {
        NEWFALSE => 0,
        BININT1 => 1,
        BININT2 => 2,
        BININT => 4,
        LONG1 | SHORT_BINBYTES | SHORT_BINSTRING | SHORT_BINUNICODE => short()?,
        BINBYTES | BINSTRING | BINUNICODE => long()?,
        _ => return None,
    };
    rest.get(len..)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(7, 0, '.reply', (b'12345678', ' ', b'user', b'', EXTENSION))`, as zodbpickle writes it in
    /// its fast mode.
    fn reply(extension: &[u8]) -> Bytes {
        let head = b"\x80\x03(K\x07K\x00X\x06\0\0\0.reply(C\x0812345678X\x01\0\0\0 C\x04userC\0";
        [&head[..], extension, b"tt."].concat().into()
    }

    fn read(frame: &Bytes) -> Option<Bytes> {
        let Value::Tuple(parts) = pickle::decode_any(frame).unwrap() else {
            panic!("no tuple");
        };
        let Value::Tuple(transaction) = &parts[3] else {
            panic!("no transaction");
        };
        extension(Some(Encoding::Z), frame, &transaction[4])
    }

    #[test]
    fn an_extension_is_copied_with_what_nobody_here_understands() {
        let dict = b"}X\x04\0\0\0whencdatetime\ndate\nC\x04\x07\xe8\x02\x1d\x85Rs";
        let copied = read(&reply(dict)).unwrap();
        assert_eq!(copied, [&b"\x80\x03"[..], dict, b"."].concat());
        assert!(pickle::decode_any(&copied).is_ok());
    }

    #[test]
    fn no_extension_is_no_bytes() {
        assert_eq!(read(&reply(b"}")), Some(Bytes::new()));
    }

    #[test]
    fn what_is_written_in_another_way_is_written_anew_if_it_is_understood() {
        // The text of the name is memoised.
        let head = b"\x80\x03(K\x07K\x00X\x06\0\0\0.replyq\x00(C\x0812345678X\x01\0\0\0 C\0C\0";
        let frame = |extension: &[u8]| Bytes::from([&head[..], extension, b"tt."].concat());
        let anew = read(&frame(b"}X\x01\0\0\0nh\0s")).unwrap();
        let expected = Value::Dict(vec![(Value::text("n"), Value::text(".reply"))]);
        assert_eq!(pickle::decode(&anew), Ok(expected));
        assert_eq!(read(&frame(b"}X\x01\0\0\0ncdatetime\ndate\ns")), None);
    }

    #[test]
    fn what_is_no_dict_is_no_extension() {
        // A list, a tuple and a set begin with the same opcode as a dict may.
        for other in [&b"(K\x01l"[..], b"(K\x01K\x02t", b"]", b"K\x01"] {
            assert_eq!(read(&reply(other)), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn damaged_answers_are_none() {
        let whole = reply(b"}X\x01\0\0\0nK\x01s");
        for len in 0..whole.len() {
            let cut = whole.slice(..len);
            if let Some(found) = as_it_is(&cut) {
                panic!("{len}: {found:?}");
            }
        }
    }
}
