//! The ids of transactions in `undoInfo` and `undoa`: tids in base64.

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The standard alphabet, with padding.
pub fn base64(bytes: &[u8]) -> Vec<u8> {
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let [a, b, c] = group;
        let all = [
            a >> 2,
            (a & 3) << 4 | b >> 4,
            (b & 15) << 2 | c >> 6,
            c & 63,
        ];
        let used = chunk.len() + 1;
        all.into_iter()
            .enumerate()
            .map(move |(at, digit)| match at < used {
                true => BASE64[usize::from(digit)],
                false => b'=',
            })
    });
    digits.collect()
}

/// Eight bytes from the standard alphabet, as [`base64`] writes them: a tid. Python's encoders may
/// leave a line end behind it. `None` for anything else.
pub fn from_base64(text: &[u8]) -> Option<[u8; 8]> {
    let digits = text.trim_ascii_end().strip_suffix(b"=")?;
    if digits.len() != 11 {
        return None;
    }
    let mut number: u128 = 0;
    for digit in digits {
        let value = BASE64.iter().position(|byte| byte == digit)?;
        number = number << 6 | value as u128;
    }
    // 11 digits are 66 bits, of which the last two are not used.
    let bytes = (number >> 2).to_be_bytes();
    bytes[8..].try_into().ok().filter(|_| number & 3 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_base64_as_python_writes_it() {
        assert_eq!(base64(&[0, 0, 0, 0, 0, 0, 0, 1]), b"AAAAAAAAAAE=");
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), b"//79");
        assert_eq!(base64(b"a"), b"YQ==");
    }

    #[test]
    fn an_id_is_read_as_it_was_written_and_in_no_other_way() {
        for tid in [0, 1, 0x040d_276f_3d30_7c11, 0xfffe_fdfc_0102_03ff, u64::MAX] {
            let id = base64(&u64::to_be_bytes(tid));
            assert_eq!(from_base64(&id), Some(tid.to_be_bytes()), "{tid:x}");
            let line = [&id[..], b"\n"].concat();
            assert_eq!(from_base64(&line), Some(tid.to_be_bytes()), "{tid:x}");
        }
        for wrong in [
            &b""[..],
            b"=",
            b"AAAAAAAAAAE",
            b"AAAAAAAAAAE==",
            b"AAAAAAAAAAAE=",
            b"AAAAAAAAAAF=",
            b"AAAA AAAAAE=",
            b"no such transaction",
        ] {
            assert_eq!(from_base64(wrong), None, "{}", wrong.escape_ascii());
        }
    }
}
