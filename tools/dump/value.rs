//! Values as Python would write them, cut where they are long.

use std::fmt::Write as _;

use standby::value::Value;

/// As in Python, except that strings of eight bytes, which are oids and tids nearly always, are
/// shown in hex. No more than about `chars_max` characters.
pub(crate) fn shown(value: &Value, chars_max: usize) -> String {
    let mut out = String::new();
    write(&mut out, value, chars_max);
    out
}

/// Text of the other side: without quotes if it is harmless.
pub(crate) fn text(bytes: &[u8], chars_max: usize) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_plain(text) => cut(text, chars_max),
        Ok(text) => quoted(text, chars_max),
        Err(_) => bytes_literal(bytes, chars_max),
    }
}

fn is_plain(text: &str) -> bool {
    let is_word = |c: char| !c.is_control() && !c.is_whitespace() && c != '"';
    !text.is_empty() && text.chars().all(is_word)
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((pos, _)) => format!("{}...", &text[..pos]),
        None => text.to_owned(),
    }
}

fn quoted(text: &str, chars_max: usize) -> String {
    let mut out = String::from("\"");
    for (n, c) in text.chars().enumerate() {
        if n == chars_max {
            out.push_str("...");
            break;
        }
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn bytes_literal(bytes: &[u8], chars_max: usize) -> String {
    let head = &bytes[..bytes.len().min(chars_max / 2)];
    let rest = bytes.len() - head.len();
    match rest {
        0 => format!("b\"{}\"", head.escape_ascii()),
        _ => format!("b\"{}\"...({} bytes)", head.escape_ascii(), bytes.len()),
    }
}

fn write(out: &mut String, value: &Value, chars_max: usize) {
    let room = chars_max.saturating_sub(out.len());
    if room == 0 {
        if !out.ends_with("...") {
            out.push_str("...");
        }
        return;
    }
    match value {
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(int) => _ = write!(out, "{int}"),
        Value::Long(bytes) => {
            out.push_str("0x");
            let shown = bytes.iter().rev().take(room / 2 + 1);
            shown.for_each(|byte| _ = write!(out, "{byte:02x}"));
        }
        Value::Float(float) => _ = write!(out, "{float:?}"),
        Value::Text(bytes) => out.push_str(&match std::str::from_utf8(bytes) {
            Ok(text) => quoted(text, room),
            Err(_) => bytes_literal(bytes, room),
        }),
        Value::Bytes(bytes) | Value::Str(bytes) => match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(id) => _ = write!(out, "{:016x}", u64::from_be_bytes(id)),
            Err(_) => out.push_str(&bytes_literal(bytes, room)),
        },
        Value::Id(id) => _ = write!(out, "{:016x}", u64::from_be_bytes(*id)),
        Value::Gap(len) => _ = write!(out, "<{len} bytes>"),
        Value::Tuple(values) => write_all(out, ["(", ")"], values, chars_max),
        Value::List(values) => write_all(out, ["[", "]"], values, chars_max),
        Value::Oids(oids) => _ = write!(out, "<{} oids>", oids.len()),
        Value::Prefix(values) => write_all(out, ["Prefix(", ")"], values, chars_max),
        Value::Dict(pairs) => {
            out.push('{');
            for (n, (key, value)) in pairs.iter().enumerate() {
                if n > 0 {
                    out.push_str(", ");
                }
                write(out, key, chars_max);
                out.push_str(": ");
                write(out, value, chars_max);
                if out.len() >= chars_max {
                    break;
                }
            }
            out.push('}');
        }
    }
}

fn write_all(out: &mut String, [open, close]: [&str; 2], values: &[Value], chars_max: usize) {
    out.push_str(open);
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write(out, value, chars_max);
        if out.len() >= chars_max && n + 1 < values.len() {
            let _ = write!(out, "... {} in all", values.len());
            break;
        }
    }
    out.push_str(close);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn values_look_as_in_python() {
        let id = Value::Bytes(Bytes::from_static(b"\0\0\0\0\0\0\0\x07"));
        let dict = Value::Dict(vec![(Value::text("a\n"), Value::Bool(true))]);
        let value = Value::Tuple(vec![id, Value::None, dict, Value::Float(1.0)]);
        let expected = "(0000000000000007, None, {\"a\\n\": True}, 1.0)";
        assert_eq!(shown(&value, 100), expected);
    }

    #[test]
    fn long_values_are_cut() {
        let values = Value::List(vec![Value::Int(123_456); 100_000]);
        let text = shown(&values, 80);
        assert!(
            text.len() < 150 && text.ends_with("... 100000 in all]"),
            "{text}"
        );
        let deep = (0..60).fold(Value::Int(1), |value, _| {
            Value::Tuple(vec![value, Value::Int(2)])
        });
        assert!(shown(&deep, 200).len() < 1000);
        let bytes = Value::Bytes(Bytes::from(vec![0xff; 10_000]));
        assert!(shown(&bytes, 80).len() < 300);
    }

    #[test]
    fn text_is_quoted_where_it_could_be_misread() {
        assert_eq!(text(b"josephine", 80), "josephine");
        assert_eq!(text(b"three objects", 80), "\"three objects\"");
        assert_eq!(text(b"\xff", 80), "b\"\\xff\"");
        assert_eq!(text(b"", 80), "\"\"");
        assert_eq!(text(b"abcdef", 3), "abc...");
    }
}
