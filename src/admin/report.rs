//! What `verify` has found: the field `report` of its answer, and the text that people get.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// See the module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Nothing was found, and all was looked at that was to be.
    pub well: bool,
    /// Whose data were verified.
    pub node: String,
    /// They
    pub storages: Vec<StorageReport>,
}

/// What was found in the data file of a storage, and in its blobs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageReport {
    /// What clients call it.
    pub name: String,
    /// The last transaction that was looked at, 16 hexadecimal digits.
    pub through: String,
    /// Bytes of the data file
    pub bytes: u64,
    /// Transactions in it
    pub transactions: u64,
    /// Records of them
    pub records: u64,
    /// Objects that exist
    pub objects: u64,
    /// References of their current revisions
    pub references: u64,
    /// Files of blobs
    pub blobs: u64,
    /// How often something was found: by `structure`, `references`, `index` and `blobs`.
    pub counts: BTreeMap<String, u64>,
    /// The first of these.
    pub findings: Vec<FindingReport>,
    /// Why not all of it could be looked at, if that is so.
    pub error: Option<String>,
    /// With other nodes
    pub comparisons: Vec<ComparisonReport>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FindingReport {
    /// What was looked at: see [`StorageReport::counts`]; or `comparison`.
    pub check: String,
    /// The transaction, 16 hexadecimal digits
    pub tid: Option<String>,
    /// The object, 16 hexadecimal digits
    pub oid: Option<String>,
    /// What is wrong
    pub text: String,
}

/// What another node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComparisonReport {
    /// Its name
    pub node: String,
    /// The last transaction that was compared, 16 hexadecimal digits.
    pub through: String,
    /// Transactions that are the same
    pub transactions: u64,
    /// Blobs that are the same
    pub blobs: u64,
    /// The first things that are not. "Here" is the node that was asked, "there" the other one.
    pub differences: Vec<FindingReport>,
    /// There may be more of them.
    pub is_cut: bool,
    /// The first transaction, and the last one, between which nothing was compared: one of both may
    /// have packed what is there.
    pub thinned: Option<(String, String)>,
    /// Why it could not be compared, if that is so.
    pub error: Option<String>,
}

impl StorageReport {
    /// Whether nothing is wrong.
    pub fn is_well(&self) -> bool {
        let is_same = |it: &ComparisonReport| it.differences.is_empty() && it.error.is_none();
        self.counts.is_empty() && self.error.is_none() && self.comparisons.iter().all(is_same)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for storage in &self.storages {
            write!(f, "{storage}")?;
        }
        match self.well {
            true => f.write_str("all is well"),
            false => f.write_str("not all is well"),
        }
    }
}

impl fmt::Display for StorageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "storage {} up to {}: {} bytes, {} transactions, {} records, {} objects, \
             {} references, {} blobs",
            self.name,
            self.through,
            self.bytes,
            self.transactions,
            self.records,
            self.objects,
            self.references,
            self.blobs
        )?;
        for (check, count) in &self.counts {
            writeln!(f, "  {check}: {count} found")?;
            for finding in self.findings.iter().filter(|it| it.check == *check) {
                writeln!(f, "    {finding}")?;
            }
        }
        if let Some(error) = &self.error {
            writeln!(f, "  not all could be looked at: {error}")?;
        }
        for comparison in &self.comparisons {
            write!(f, "{comparison}")?;
        }
        Ok(())
    }
}

impl fmt::Display for FindingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tid, &self.oid) {
            (Some(tid), Some(oid)) => write!(f, "transaction {tid}, object {oid}: ")?,
            (Some(tid), None) => write!(f, "transaction {tid}: ")?,
            (None, Some(oid)) => write!(f, "object {oid}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.text)
    }
}

impl fmt::Display for ComparisonReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        if let Some(error) = &self.error {
            return writeln!(f, "  {node}: could not be compared: {error}");
        }
        writeln!(
            f,
            "  {node}, up to {}: {} transactions and {} blobs are the same",
            self.through, self.transactions, self.blobs
        )?;
        if let Some((from, through)) = &self.thinned {
            writeln!(
                f,
                "  {node}: from {from} to {through} nothing could be compared: one node may have \
                 packed it and the other one not"
            )?;
        }
        if !self.differences.is_empty() {
            let more = if self.is_cut {
                ", and perhaps more"
            } else {
                ""
            };
            let count = match self.differences.len() {
                1 => "1 difference".to_owned(),
                count => format!("{count} differences"),
            };
            writeln!(f, "  {node}: {count}{more}")?;
        }
        for difference in &self.differences {
            writeln!(f, "    {difference}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_difference_is_one() {
        for (count, expected) in [(1, "1 difference\n"), (2, "2 differences\n")] {
            let report = ComparisonReport {
                node: "beta".to_owned(),
                differences: vec![FindingReport::default(); count],
                ..ComparisonReport::default()
            };
            assert!(report.to_string().contains(&format!("  beta: {expected}")));
        }
    }
}
