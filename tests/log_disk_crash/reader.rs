//! Reads a data file from its beginning as ZODB does when it opens one (`FileStorage.read_index`),
//! without changing it.

use standby::ids::Tid;

const HEADER_LEN: usize = 23;

/// The transactions up to where ZODB cuts the file; why, if it refuses it.
pub(crate) fn tids(bytes: &[u8]) -> Result<Vec<Tid>, String> {
    let mut tids = Vec::new();
    let mut pos = 4;
    let number = |pos: usize| -> u64 {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[pos..pos + 8]);
        u64::from_be_bytes(number)
    };
    while pos + HEADER_LEN <= bytes.len() {
        let (tid, len, status) = (number(pos), number(pos + 8), bytes[pos + 16]);
        let text_len = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let texts_len = text_len(pos + 17) + text_len(pos + 19) + text_len(pos + 21);
        let left = (bytes.len() - pos) as u64;
        if len.checked_add(8).is_none_or(|len| len > left) || status == b'c' {
            break;
        }
        let len = usize::try_from(len).unwrap();
        if len < HEADER_LEN + texts_len {
            let last = number(bytes.len() - 8);
            let is_reasonable = last >= HEADER_LEN as u64 && last <= left;
            if !is_reasonable {
                break;
            }
            return Err(format!("corrupted at {pos}"));
        }
        if number(pos + len) != len as u64 {
            return Err(format!(
                "redundant transaction length check failed at {pos}"
            ));
        }
        tids.push(Tid(tid));
        pos += len + 8;
    }
    Ok(tids)
}
