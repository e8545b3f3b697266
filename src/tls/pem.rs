//! PEM files (RFC 7468), with the headers of OpenSSL's traditional encrypted keys (RFC 1421).

use std::fmt;

use base64ct::{Base64, Encoding};

/// A block between `-----BEGIN X-----` and `-----END X-----`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// The X.
    pub(super) label: String,
    /// Lines of the form `Name: value`, as they stand before the data.
    pub(super) headers: Vec<(String, String)>,
    /// What the base64 text says.
    pub(super) data: Vec<u8>,
}

/// It may be a private key.
impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.label, self.data.len())
    }
}

/// Why a text is not PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PemError {
    /// A block has no end, or another one's end.
    NotEnded {
        /// Of the block.
        label: String,
        /// Where it begins, from one.
        line: usize,
    },
    /// What stands in a block is not base64.
    NotBase64 {
        /// Of the block.
        label: String,
        /// Where it begins, from one.
        line: usize,
    },
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnded { label, line } => {
                write!(f, "line {line}: '{label}' has no end")
            }
            Self::NotBase64 { label, line } => {
                write!(f, "line {line}: '{label}' is damaged (not base64)")
            }
        }
    }
}

impl std::error::Error for PemError {}

/// All blocks of a file; what stands between them is text for people.
pub(super) fn blocks(text: &[u8]) -> Result<Vec<Block>, PemError> {
    let mut blocks = Vec::new();
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut line = 0;
    while let Some(begin) = lines.next() {
        line += 1;
        let Some(label) = delimiter(begin, b"-----BEGIN ") else {
            continue;
        };
        let begin_line = line;
        let mut headers = Vec::new();
        let mut base64 = String::new();
        loop {
            let Some(inner) = lines.next() else {
                return Err(PemError::NotEnded {
                    label,
                    line: begin_line,
                });
            };
            line += 1;
            if inner.starts_with(b"-----") {
                if delimiter(inner, b"-----END ").as_ref() != Some(&label) {
                    return Err(PemError::NotEnded {
                        label,
                        line: begin_line,
                    });
                }
                break;
            }
            let inner = String::from_utf8_lossy(inner);
            match inner.split_once(':') {
                Some((name, value)) if base64.is_empty() => {
                    headers.push((name.trim().to_owned(), value.trim().to_owned()));
                }
                _ => base64.push_str(&inner),
            }
        }
        let Ok(data) = Base64::decode_vec(&base64) else {
            return Err(PemError::NotBase64 {
                label,
                line: begin_line,
            });
        };
        blocks.push(Block {
            label,
            headers,
            data,
        });
    }
    Ok(blocks)
}

/// The label in a line that begins with `start` and ends with dashes.
fn delimiter(line: &[u8], start: &[u8]) -> Option<String> {
    let label = line.strip_prefix(start)?.strip_suffix(b"-----")?;
    Some(String::from_utf8_lossy(label).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_between_other_text() {
        let text = b"Certificate:\n  Data: ...\n-----BEGIN A-----\nAAEC\r\nAw==\n-----END A-----\n\
                     \n-----BEGIN B C-----\n-----END B C-----\ntrailer";
        let found = blocks(text).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].label, "A");
        assert_eq!(found[0].data, [0, 1, 2, 3]);
        assert_eq!((found[1].label.as_str(), found[1].data.len()), ("B C", 0));
    }

    #[test]
    fn headers_stand_before_the_data() {
        let text = b"-----BEGIN K-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: DES-EDE3-CBC,76\n\n\
                     AAEC\n-----END K-----\n";
        let found = blocks(text).unwrap();
        assert_eq!(
            found[0].headers[1],
            ("DEK-Info".to_owned(), "DES-EDE3-CBC,76".to_owned())
        );
        assert_eq!(found[0].data, [0, 1, 2]);
    }

    #[test]
    fn damage_is_named_with_its_line() {
        let not_ended = |line| PemError::NotEnded {
            label: "A".to_owned(),
            line,
        };
        assert_eq!(blocks(b"x\n-----BEGIN A-----\nAAEC"), Err(not_ended(2)));
        assert_eq!(
            blocks(b"-----BEGIN A-----\nAAEC\n-----BEGIN B-----\n-----END A-----"),
            Err(not_ended(1))
        );
        let error = blocks(b"\n\n-----BEGIN A-----\nA?EC\n-----END A-----").unwrap_err();
        assert_eq!(error.to_string(), "line 3: 'A' is damaged (not base64)");
    }

    #[test]
    fn a_key_is_not_shown() {
        let text = b"-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----";
        let shown = format!("{:?}", blocks(text).unwrap());
        assert_eq!(shown, "[PRIVATE KEY (3 bytes)]");
    }
}
