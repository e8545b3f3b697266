//! The reference scanner against records that several Pythons wrote: `data/references.txt`.
//!
//! `REFERENCES_FILE` names another file of that form: `data/references.py` writes some with
//! `--random` and `--mutate`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::{env, fs};

use standby::storage::references::references;

#[test]
fn what_picklers_were_given_as_references_is_found() {
    let (all, agreeing, unreadable) = check(&fixture());
    assert!(all > 700 && agreeing > 450 && unreadable > 0);
}

#[test]
fn what_picklers_were_given_in_the_file_from_the_environment_is_found() {
    if let Some(path) = env::var_os("REFERENCES_FILE") {
        let (all, agreeing, unreadable) = check(&fs::read_to_string(path).unwrap());
        println!("{all} records, {agreeing} as ZODB says, {unreadable} unreadable");
    }
}

#[test]
fn a_record_that_ends_early_is_an_error() {
    for line in fixture().lines() {
        let record = unhex(line.split('\t').nth(3).unwrap());
        if record.len() > 1000 {
            continue;
        }
        for len in 0..record.len() {
            let result = references(&record[..len], &mut Vec::new());
            assert!(result.is_err(), "{len} bytes of {line}");
        }
    }
}

/// How many records there were, for how many of them ZODB agreed, and how many are unreadable.
fn check(text: &str) -> (usize, usize, usize) {
    let (mut all, mut agreeing, mut unreadable) = (0, 0, 0);
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let mut found = Vec::new();
        let result = references(&unhex(fields[3]), &mut found);
        all += 1;
        if fields[4] == "!" {
            assert!(result.is_err(), "{line}");
            unreadable += 1;
            continue;
        }
        if fields[4] == "?" && result.is_err() {
            // We need not understand what is damaged; we must not misunderstand it.
            continue;
        }
        assert_eq!(result, Ok(()), "{line}");
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let given = if fields[4] == "?" { 5 } else { 4 };
        let given: Vec<&str> = fields[given].split(' ').filter(|oid| *oid != "-").collect();
        assert_eq!(found, given, "{line}");
        // Where ZODB finds anything at all, it is the same.
        match fields.get(5) {
            None => agreeing += 1,
            Some(_) if fields[4] == "?" => agreeing += 1,
            Some(said) => assert_eq!(*said, "error", "{line}"),
        }
    }
    (all, agreeing, unreadable)
}

fn fixture() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/references.txt");
    fs::read_to_string(path).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |pos| u8::from_str_radix(&text[pos..pos + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}
