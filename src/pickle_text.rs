//! The forms in which protocol 0 of pickle writes strings on a line.
//!
//! Here since two who must not know each other read pickles: `zeo` messages and `storage` records.

/// The argument of STRING: what Python 2's `repr` makes of a `str`.
pub(crate) fn unescape_string(line: &[u8]) -> Option<Vec<u8>> {
    let quoted = match line {
        [b'\'', quoted @ .., b'\''] | [b'"', quoted @ .., b'"'] => quoted,
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (escape, after) = rest.split_first()?;
        rest = after;
        bytes.push(match escape {
            b'\\' | b'\'' | b'"' => *escape,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                u8::try_from(hex(digits)?).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

/// The argument of UNICODE: Latin-1, and all other characters as `\uXXXX` or `\UXXXXXXXX`.
pub(crate) fn unescape_unicode(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((byte, after)) = rest.split_first() {
        let digits_len = match after.first() {
            Some(b'u') if *byte == b'\\' => 4,
            Some(b'U') if *byte == b'\\' => 8,
            _ => {
                text.push(char::from(*byte));
                rest = after;
                continue;
            }
        };
        let (digits, after) = after[1..].split_at_checked(digits_len)?;
        text.push(char::from_u32(hex(digits)?)?);
        rest = after;
    }
    Some(text)
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| {
        Some(number << 4 | char::from(*digit).to_digit(16)?)
    })
}
