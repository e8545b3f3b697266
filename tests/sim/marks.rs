//! What has happened in runs: a sweep in which something never happens says nothing about it.

use std::collections::BTreeMap;

/// How often each thing has happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    pub(crate) fn hit(&mut self, mark: &'static str) {
        self.add(mark, 1);
    }

    pub(crate) fn add(&mut self, mark: &'static str, count: u64) {
        *self.0.entry(mark).or_default() += count;
    }

    pub(crate) fn count(&self, mark: &str) -> u64 {
        self.0.get(mark).copied().unwrap_or(0)
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mark, count) in &other.0 {
            self.add(mark, *count);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(mark, count)| (*mark, *count))
    }
}
