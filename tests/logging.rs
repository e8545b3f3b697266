//! The log as a whole. One test, as a process has one log.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::fs;

use standby::args::Args;
use standby::config::{self, Surroundings};
use standby::logging;

/// A machine with one file.
struct OneFile(String);

impl Surroundings for OneFile {
    fn read(&self, _: &std::path::Path) -> std::io::Result<String> {
        Ok(self.0.clone())
    }

    fn is_directory(&self, _: &std::path::Path) -> bool {
        true
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

#[test]
fn each_log_file_gets_what_its_level_lets_through_and_can_be_reopened() {
    let directory = std::env::temp_dir().join(format!("standby-log-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let (all, errors) = (directory.join("all.log"), directory.join("errors.log"));
    let text = format!(
        "<zeo>\naddress 8100\n</zeo>\n<mappingstorage/>\n<eventlog>\n\
         <logfile>\npath {}\n</logfile>\n\
         <logfile>\npath {}\nlevel error\nformat %(levelname)s %(message)s\n</logfile>\n\
         </eventlog>",
        all.display(),
        errors.display()
    );
    let args = Args {
        configure: Some("zeo.conf".into()),
        ..Args::default()
    };
    let config = config::read(&args, &OneFile(text)).unwrap();
    let handle = logging::install(&config.log).unwrap();
    assert!(handle.has_files());
    assert!(logging::install(&config.log).is_err());

    log::debug!("unseen");
    log::info!("first");
    log::error!("second");
    fs::rename(&all, directory.join("old.log")).unwrap();
    handle.reopen().unwrap();
    log::info!("third");

    let text = fs::read_to_string(directory.join("old.log")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!([lines[0], lines[2]], ["------", "------"]);
    // The date has the form 2026-11-21T00:46:53.
    assert_eq!(&lines[1][10..11], "T");
    assert_eq!(&lines[1][19..], " INFO logging first");
    assert_eq!(&lines[3][19..], " CRITICAL logging second");
    assert_eq!(lines.len(), 4);
    assert!(
        fs::read_to_string(&all)
            .unwrap()
            .ends_with(" INFO logging third\n")
    );
    assert_eq!(fs::read_to_string(&errors).unwrap(), "CRITICAL second\n");
    fs::remove_dir_all(&directory).unwrap();
}
