//! Recorded streams between Spread's daemon and its clients, and what is in them.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]
#![allow(dead_code, reason = "each test uses what it needs")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// One direction of a connection.
pub(crate) struct Recording {
    /// The directory and the file.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// What is in it, without gaps.
    pub(crate) items: Vec<Value>,
    pub(crate) from_daemon: bool,
}

/// All of them.
pub(crate) fn recordings() -> Vec<Recording> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/spread");
    let mut scenarios: Vec<PathBuf> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    scenarios.sort();
    scenarios
        .iter()
        .flat_map(|path| of_scenario(path))
        .collect()
}

/// The one of this name.
pub(crate) fn recording(name: &str) -> Recording {
    let mut all = recordings().into_iter();
    all.find(|recording| recording.name == name).unwrap()
}

fn of_scenario(path: &Path) -> Vec<Recording> {
    let scenario = path.file_name().unwrap().to_str().unwrap();
    let expected = fs::read_to_string(path.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let files = expected.as_object().unwrap().iter();
    files
        .map(|(file, about)| {
            let kept = fs::read(path.join(file)).unwrap();
            let items = about["items"].as_array().unwrap().clone();
            let bytes = with_data(scenario, &kept, &items);
            let name = format!("{scenario}/{}", file.strip_suffix(".bin").unwrap());
            // What was left out was put in as it was.
            assert_eq!(
                bytes.len() as u64,
                about["bytes"].as_u64().unwrap(),
                "{name}"
            );
            assert_eq!(digest(&bytes), about["sha256"].as_str().unwrap(), "{name}");
            Recording {
                name,
                bytes,
                items,
                from_daemon: file.ends_with(".s2c.bin"),
            }
        })
        .collect()
}

/// Puts in the data of long messages, which are not kept as there is a rule for them.
fn with_data(scenario: &str, kept: &[u8], items: &[Value]) -> Vec<u8> {
    let data = |number: u32, len: usize| -> Vec<u8> {
        match scenario {
            "08-max-message" => (0..len).map(|pos| (7 * pos + pos / 251) as u8).collect(),
            _ => {
                let mut data = number.to_be_bytes().to_vec();
                data.resize(len, b'.');
                data
            }
        }
    };
    let mut rest = kept;
    let mut bytes = Vec::new();
    let mut number = 0;
    for item in items {
        let len = item.get("len").or(item.get("have")).unwrap();
        let len = usize::try_from(len.as_u64().unwrap()).unwrap();
        let ruled = matches!(scenario, "08-max-message" | "14-slow-reader");
        // One group, and data of hundreds of bytes at least.
        let kept_len = if ruled && len >= 880 { 80 } else { len };
        let (head, behind) = rest.split_at(kept_len);
        rest = behind;
        bytes.extend_from_slice(head);
        if len > kept_len {
            bytes.extend(data(number, len - kept_len));
            number += 1;
        }
    }
    assert!(rest.is_empty());
    bytes
}

/// SHA-256 in hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
