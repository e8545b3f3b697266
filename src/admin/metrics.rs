//! The status as Prometheus reads it: one line for each number, named `standby_` and what it is.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::{MemberRole, MemberStatus, Openness, Status};

/// All that is a number in a status, in Prometheus' text format. What is not known has no line.
pub fn metrics(status: &Status) -> String {
    let mut lines = Lines::default();
    lines.of_node(status);
    lines.of_log(status);
    lines.of_members(status);
    lines.of_witnesses(status);
    lines.of_storages(status);
    lines.text
}

#[derive(Default)]
struct Lines {
    text: String,
}

/// A value of a label, in quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '\n' => f.write_str("\\n")?,
                '"' | '\\' => write!(f, "\\{c}")?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

impl Lines {
    /// A metric with its lines: labels and value of each.
    fn metric(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (String, Option<f64>)>,
    ) {
        let mut is_first = true;
        for (labels, value) in values {
            let Some(value) = value else {
                continue;
            };
            if std::mem::take(&mut is_first) {
                // Writing to a text does not fail.
                let _ = write!(
                    self.text,
                    "# HELP standby_{name} {help}\n# TYPE standby_{name} gauge\n"
                );
            }
            let _ = match labels.as_str() {
                "" => writeln!(self.text, "standby_{name} {value}"),
                labels => writeln!(self.text, "standby_{name}{{{labels}}} {value}"),
            };
        }
    }

    fn one(&mut self, name: &str, help: &str, value: impl Into<Option<f64>>) {
        self.metric(name, help, [(String::new(), value.into())]);
    }

    fn of_node(&mut self, status: &Status) {
        let Status {
            node,
            group,
            version,
            site,
            history,
            ..
        } = status;
        let labels = format!(
            "node={},group={},version={},site={},history={}",
            Quoted(node),
            Quoted(group),
            Quoted(version),
            Quoted(site),
            Quoted(history)
        );
        self.metric("info", "What this node is.", [(labels, Some(1.0))]);
        self.one(
            "uptime_seconds",
            "Time since the start.",
            count(status.uptime),
        );
        self.one(
            "primary",
            "1 if this node is in office.",
            flag(status.role == MemberRole::Primary),
        );
        self.one(
            "writers_open",
            "1 if clients can write here.",
            flag(status.writers == Openness::Open),
        );
        self.one(
            "readers_open",
            "1 if clients can read here.",
            flag(status.readers == Openness::Open),
        );
        self.one(
            "in_group",
            "1 if this node is in a view of its group.",
            flag(status.view.is_some()),
        );
        self.one(
            "failed",
            "1 if this node cannot go on.",
            flag(status.failed.is_some()),
        );
        let clients = status.clients;
        self.one(
            "clients",
            "Connections of clients.",
            count(clients.connected),
        );
        self.one(
            "clients_parked",
            "Connections of clients that wait for their greeting.",
            count(clients.parked),
        );
    }

    fn of_log(&mut self, status: &Status) {
        let epoch = status.epoch.split('-').next().unwrap_or_default();
        self.one(
            "epoch",
            "The number of the epoch that this node has promised.",
            epoch.parse::<u64>().ok().map(count),
        );
        self.one("last_seq", "The end of the log.", count(status.last));
        self.one(
            "committed_seq",
            "The last entry that is known to be committed.",
            count(status.committed),
        );
        self.one(
            "applied_seq",
            "The last entry that is in the data files.",
            count(status.applied),
        );
        self.one(
            "last_transaction_timestamp_seconds",
            "The time of the last transaction, since 1970.",
            status.last_time,
        );
        let journal = status.journal.as_ref();
        self.one(
            "journal_first_seq",
            "The first entry that is in the journal.",
            journal.map(|journal| count(journal.first)),
        );
        self.one(
            "journal_bytes",
            "Bytes of the journal.",
            journal.map(|journal| count(journal.bytes)),
        );
        let copy = status.copy.as_ref();
        self.one(
            "copy_done_bytes",
            "Bytes of the database that have been copied, while it is.",
            copy.map(|copy| count(copy.done)),
        );
        self.one(
            "copy_total_bytes",
            "Bytes of the database that are to be copied, while it is.",
            copy.map(|copy| count(copy.total)),
        );
    }

    fn of_members(&mut self, status: &Status) {
        let label = |name: &str| format!("member={}", Quoted(name));
        // A node whose disk was lost is two members: its name has one line all the same, of the
        // disk that is counted, or else of the one that is here.
        let mut of_name = BTreeMap::<&str, &MemberStatus>::new();
        for it in &status.members {
            let known = of_name.entry(&it.node).or_insert(it);
            if (it.voter, it.here) > (known.voter, known.here) {
                *known = it;
            }
        }
        let members = || of_name.iter().map(|(name, it)| (label(name), *it));
        self.metric(
            "member_here",
            "1 if the node is in the view.",
            members().map(|(labels, it)| (labels, Some(flag(it.here)))),
        );
        self.metric(
            "member_voter",
            "1 if the node has the data and is counted.",
            members().map(|(labels, it)| (labels, Some(flag(it.voter)))),
        );
        self.metric(
            "member_lag_transactions",
            "Entries that the node has to apply until it is level.",
            members().map(|(labels, it)| (labels, it.lag.map(count))),
        );
        self.metric(
            "member_lag_bytes",
            "Their bytes.",
            members().map(|(labels, it)| (labels, it.lag_bytes.map(count))),
        );
        self.metric(
            "member_lag_seconds",
            "The age of the oldest of them.",
            members().map(|(labels, it)| (labels, it.lag_seconds)),
        );
        self.metric(
            "member_heard_seconds",
            "Time since the node was heard of, beside the daemon.",
            members().map(|(labels, it)| (labels, it.heard)),
        );
        let round_trip = |it: &MemberStatus| it.direct.as_ref().and_then(|it| it.round_trip);
        self.metric(
            "member_round_trip_seconds",
            "How long the node took to answer, beside the daemon.",
            members().map(|(labels, it)| (labels, round_trip(it))),
        );
        self.metric(
            "member_trouble",
            "1 if something is wrong with the ways to the node.",
            members().map(|(labels, it)| match &it.trouble {
                None => (labels, Some(0.0)),
                Some(kind) => (format!("{labels},kind={}", Quoted(kind)), Some(1.0)),
            }),
        );
    }

    fn of_witnesses(&mut self, status: &Status) {
        self.one(
            "isolated",
            "1 if no other node and no witness is heard.",
            flag(status.isolated),
        );
        self.metric(
            "witness_answers",
            "1 if the witness answers.",
            status.witnesses.iter().map(|it| {
                let label = format!("witness={}", Quoted(&it.address));
                (label, it.answers.map(flag))
            }),
        );
    }

    fn of_storages(&mut self, status: &Status) {
        let label = |name: &str| format!("storage={}", Quoted(name));
        let storages = || status.storages.iter().map(|it| (label(&it.name), it));
        self.metric(
            "storage_objects",
            "Objects in the storage.",
            storages().map(|(labels, it)| (labels, Some(count(it.objects)))),
        );
        self.metric(
            "storage_bytes",
            "Bytes of its data file.",
            storages().map(|(labels, it)| (labels, Some(count(it.bytes)))),
        );
        self.metric(
            "storage_clients",
            "Clients that are registered with it.",
            storages().map(|(labels, it)| (labels, Some(count(it.clients)))),
        );
        self.metric(
            "storage_waiting_votes",
            "Votes that wait.",
            storages().map(|(labels, it)| (labels, Some(count(it.waiting_votes)))),
        );
    }
}

/// Prometheus has no other numbers.
fn count(value: u64) -> f64 {
    value as f64
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests {
    use super::super::status::testing::example;
    use super::*;

    #[test]
    fn the_metrics_stay_as_they_are() {
        let golden = include_str!("../../tests/data/admin/metrics.txt");
        assert_eq!(metrics(&example()), golden);
    }

    #[test]
    fn what_is_not_known_has_no_line() {
        let text = metrics(&Status::default());
        assert!(text.contains("standby_primary 0\n"));
        for name in [
            "epoch",
            "member_",
            "storage_",
            "journal",
            "copy",
            "timestamp",
        ] {
            assert!(!text.contains(&format!("standby_{name}")), "{name}");
        }
    }

    #[test]
    fn a_node_with_two_disks_has_one_line() {
        let of = |disk: &str, voter, here| MemberStatus {
            node: "alpha".to_owned(),
            disk: disk.to_owned(),
            voter,
            here,
            ..MemberStatus::default()
        };
        let here = |members: Vec<MemberStatus>| {
            let status = Status {
                members,
                ..Status::default()
            };
            let text = metrics(&status);
            let lines = text
                .lines()
                .filter(|it| it.starts_with("standby_member_here{"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        for (members, value) in [
            ([of("1", false, true), of("2", true, false)], 0),
            ([of("1", true, false), of("2", false, true)], 0),
            ([of("1", true, true), of("2", false, true)], 1),
            ([of("1", false, false), of("2", false, true)], 1),
        ] {
            let expected = format!("standby_member_here{{member=\"alpha\"}} {value}");
            assert_eq!(here(members.into()), [expected]);
        }
    }

    #[test]
    fn labels_are_quoted() {
        assert_eq!(Quoted("a\"b\\c\nd").to_string(), r#""a\"b\\c\nd""#);
    }
}
