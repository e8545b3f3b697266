//! States that a power cut leaves, as files for stock ZODB to open.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::{fs, io};

use standby::storage::recover::{self, Access};

use crate::disk::{Files, Model, SimDisk};
use crate::driver::DATA_PATH;
use crate::ledger::Ledger;

/// The last state of each kind, by a name for the kind.
pub(crate) type Kinds = BTreeMap<String, (Files, Ledger)>;

/// Writes each state into a directory of its own: as it was `crashed`, as it is when we have
/// `opened` it, and a list of what was acknowledged.
pub(crate) fn dump(kinds: &Kinds, directory: &Path) -> io::Result<()> {
    for (kind, (files, ledger)) in kinds {
        let directory = directory.join(kind);
        let disk = SimDisk::new(Model::new(files, None), None);
        let path = Path::new(DATA_PATH);
        recover::open(&disk, path, Access::ReadWrite, &mut |_| ()).map_err(io::Error::other)?;
        let opened = disk.model().shown();
        for (name, files) in [("crashed", files), ("opened", &opened)] {
            let directory = directory.join(name);
            fs::create_dir_all(&directory)?;
            for (path, contents) in files {
                let path = directory.join(path);
                fs::create_dir_all(path.parent().unwrap_or(&directory))?;
                fs::write(path, &**contents)?;
            }
        }
        fs::write(directory.join("acknowledged.txt"), list(ledger))?;
    }
    Ok(())
}

/// A line with tid, oid, length and Adler-32 for each record; hyphens for an object that does not
/// exist.
fn list(ledger: &Ledger) -> String {
    let mut list = String::new();
    for txn in ledger.committed() {
        for (oid, state) in &txn.records {
            // Writing to a String does not fail.
            let _ = match state {
                Some(data) => {
                    let (len, sum) = (data.len(), adler32(data));
                    writeln!(list, "{} {oid} {len} {sum}", txn.tid)
                }
                None => writeln!(list, "{} {oid} - -", txn.tid),
            };
        }
    }
    list
}

fn adler32(data: &[u8]) -> u32 {
    let (a, b) = data.iter().fold((1, 0), |(a, b): (u32, u32), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    b << 16 | a
}
