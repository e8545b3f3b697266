//! Plain counters of one storage, as `server_status` and `ruok` report them.

use crate::zeo::Value;

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// `loadBefore`
    pub(super) loads: u64,
    /// `storea` and its like
    pub(super) stores: u64,
    pub(super) commits: u64,
    pub(super) aborts: u64,
    /// Transactions begun and not ended.
    pub(super) active_txns: u64,
    pub(super) conflicts: u64,
    /// Conflicts of transactions that were committed after their client had resolved them.
    pub(super) conflicts_resolved: u64,
}

/// What is true at this moment.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) connections: usize,
    /// Votes that wait for the commit lock.
    pub(super) waiting: usize,
    /// When the commit lock was taken, in seconds since 1970.
    pub(super) lock_time: Option<f64>,
    /// When the server started, as Python's `ctime` says it.
    pub(super) start: String,
    /// Whether votes time out.
    pub(super) has_timeout: bool,
    /// The last tid in hex.
    pub(super) last_transaction: String,
    /// See `Server::set_following`; nothing is said of other storages.
    pub(super) following: Option<&'static str>,
}

/// One entry of the report.
enum Item {
    Count(u64),
    Time(Option<f64>),
    Text(String),
    /// `True`, or the text that runzeo says without a timeout.
    TimeoutAlive(bool),
}

impl Stats {
    /// The answer to `server_status`.
    pub(super) fn to_value(self, moment: &Moment) -> Value {
        let item_value = |item| match item {
            Item::Count(count) => Value::from(count),
            Item::Time(time) => time.map_or(Value::None, Value::Float),
            Item::Text(text) => Value::from(text),
            Item::TimeoutAlive(true) => Value::Bool(true),
            Item::TimeoutAlive(false) => Value::text("stub"),
        };
        let items = self.items(moment).into_iter();
        Value::Dict(
            items
                .map(|(name, item)| (Value::text(name), item_value(item)))
                .collect(),
        )
    }

    /// The same as JSON. All texts in it are ASCII without quotes.
    pub(super) fn to_json(self, moment: &Moment) -> String {
        let items = self.items(moment).into_iter().map(|(name, item)| {
            let value = match item {
                Item::Count(count) => count.to_string(),
                Item::Time(None) => "null".to_owned(),
                Item::Time(Some(time)) => format!("{time:?}"),
                Item::Text(text) => format!("\"{text}\""),
                Item::TimeoutAlive(true) => "true".to_owned(),
                Item::TimeoutAlive(false) => "\"stub\"".to_owned(),
            };
            format!("\"{name}\": {value}")
        });
        format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
    }

    fn items(self, moment: &Moment) -> Vec<(&'static str, Item)> {
        let mut items = vec![
            ("connections", Item::Count(moment.connections as u64)),
            ("loads", Item::Count(self.loads)),
            ("stores", Item::Count(self.stores)),
            ("commits", Item::Count(self.commits)),
            ("aborts", Item::Count(self.aborts)),
            ("active_txns", Item::Count(self.active_txns)),
            ("lock_time", Item::Time(moment.lock_time)),
            ("conflicts", Item::Count(self.conflicts)),
            ("conflicts_resolved", Item::Count(self.conflicts_resolved)),
            ("start", Item::Text(moment.start.clone())),
            ("waiting", Item::Count(moment.waiting as u64)),
            (
                "timeout-thread-is-alive",
                Item::TimeoutAlive(moment.has_timeout),
            ),
            (
                "last-transaction",
                Item::Text(moment.last_transaction.clone()),
            ),
        ];
        let following = moment.following.map(|how| Item::Text(how.to_owned()));
        items.extend(following.map(|how| ("following", how)));
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_json() {
        let mut moment = Moment {
            connections: 1,
            waiting: 0,
            lock_time: Some(1.5),
            start: "Sat Nov 21 00:46:53 2026".to_owned(),
            has_timeout: false,
            last_transaction: "0000000000000000".to_owned(),
            following: None,
        };
        assert_eq!(
            Stats {
                commits: 2,
                ..Stats::default()
            }
            .to_json(&moment),
            "{\"connections\": 1, \"loads\": 0, \"stores\": 0, \"commits\": 2, \"aborts\": 0, \
             \"active_txns\": 0, \"lock_time\": 1.5, \"conflicts\": 0, \
             \"conflicts_resolved\": 0, \"start\": \"Sat Nov 21 00:46:53 2026\", \
             \"waiting\": 0, \"timeout-thread-is-alive\": \"stub\", \
             \"last-transaction\": \"0000000000000000\"}"
        );
        moment.following = Some("level");
        let report = Stats::default().to_json(&moment);
        assert!(report.ends_with(", \"following\": \"level\"}"), "{report}");
    }
}
