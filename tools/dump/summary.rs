//! What a capture amounts to: calls by method, the slowest, bytes by connection.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::{self, Clock};
use crate::json::Json;
use crate::limits::{CONNECTIONS_COUNTED_MAX, CONNECTIONS_SHOWN_MAX, METHODS_MAX, SLOWEST_MAX};
use crate::message::{Kind, Message, Way};

/// Latencies up to here are told apart; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(24 * 3600);

/// Digits of a latency that are kept.
const DIGITS: u8 = 2;

/// The method under which those are counted that are too many.
const OTHERS: &str = "(other methods)";

/// All that is counted.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    methods: BTreeMap<String, Method>,
    connections: BTreeMap<u64, Traffic>,
    /// The slowest first.
    slowest: Vec<Message>,
    first: Option<Duration>,
    last: Option<Duration>,
    messages: u64,
    bytes: u64,
    /// Connections that are in the sums only.
    uncounted: u64,
    /// The highest number of those.
    last_uncounted: u64,
    troubles: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Method {
    /// Calls, frames and notices.
    count: u64,
    errors: u64,
    unanswered: u64,
    /// In the direction of the call, and of the reply.
    bytes: [u64; 2],
    latencies: Option<Box<Histogram<u32>>>,
}

#[derive(Clone, Debug, Default)]
struct Traffic {
    names: [String; 2],
    messages: u64,
    bytes: [u64; 2],
    errors: u64,
}

impl Summary {
    /// Counts a message.
    pub(crate) fn add(&mut self, message: &Message) {
        self.add_traffic(message);
        self.first = self.first.or(message.time);
        self.last = self.last.max(message.time);
        if matches!(message.kind, Kind::Connection) {
            return;
        }
        if message.kind == Kind::Trouble {
            *self.troubles.entry(message.name.clone()).or_default() += 1;
            return;
        }
        self.messages += 1;
        self.bytes += message.len as u64;
        let is_known = self.methods.contains_key(&message.name);
        let name = if is_known || self.methods.len() < METHODS_MAX {
            message.name.as_str()
        } else {
            OTHERS
        };
        let method = self.methods.entry(name.to_owned()).or_default();
        match message.kind {
            Kind::Reply => {}
            Kind::Exception => method.errors += 1,
            Kind::Unanswered => method.unanswered += 1,
            _ => method.count += 1,
        }
        if let Some(way) = message.way {
            method.bytes[way.index()] += message.len as u64;
        }
        if let Some(latency) = message.latency {
            method.record(latency);
            self.note_slow(message, latency);
        }
    }

    fn add_traffic(&mut self, message: &Message) {
        let Some(connection) = &message.connection else {
            return;
        };
        let number = connection.number;
        if !self.connections.contains_key(&number) {
            if self.connections.len() >= CONNECTIONS_COUNTED_MAX {
                // Connections are numbered as they appear.
                self.uncounted += u64::from(number > self.last_uncounted);
                self.last_uncounted = self.last_uncounted.max(number);
                return;
            }
            let names = [connection.client.clone(), connection.server.clone()];
            let traffic = Traffic {
                names,
                ..Traffic::default()
            };
            self.connections.insert(number, traffic);
        }
        if let Some(traffic) = self.connections.get_mut(&number) {
            traffic.messages += u64::from(message.len > 0);
            traffic.errors += u64::from(message.kind.is_error());
            if let Some(way) = message.way {
                traffic.bytes[way.index()] += message.len as u64;
            }
        }
    }

    fn note_slow(&mut self, message: &Message, latency: Duration) {
        let place = self
            .slowest
            .partition_point(|known| known.latency >= Some(latency));
        if place < SLOWEST_MAX {
            let mut kept = message.clone();
            // They would keep what was read.
            kept.bytes = bytes::Bytes::new();
            self.slowest.insert(place, kept);
            self.slowest.truncate(SLOWEST_MAX);
        }
    }

    /// The slowest calls, which are shown as messages are.
    pub(crate) fn slowest(&self) -> &[Message] {
        &self.slowest
    }

    /// For people. `slowest` are the lines of the slowest calls.
    pub(crate) fn text(&self, clock: &Clock, slowest: &str) -> String {
        let mut text = String::new();
        let span = self.span();
        let _ = writeln!(
            text,
            "{} messages, {} bytes, {} connections{}",
            self.messages,
            self.bytes,
            self.connections.len() as u64 + self.uncounted,
            self.first.map_or_else(String::new, |first| format!(
                ", {:.3} s from {}",
                span.as_secs_f64(),
                clock.line(first)
            ))
        );
        let _ = writeln!(
            text,
            "\n{:<32} {:>9} {:>7} {:>7} {:>12} {:>12} {:>9} {:>9} {:>9}",
            "method",
            "count",
            "errors",
            "no-repl",
            "to server",
            "to client",
            "p50 ms",
            "p99 ms",
            "max ms"
        );
        for (name, method) in &self.methods {
            let shown = crate::value::text(name.as_bytes(), 32);
            let _ = write!(
                text,
                "{shown:<32} {:>9} {:>7} {:>7} {:>12} {:>12}",
                method.count, method.errors, method.unanswered, method.bytes[0], method.bytes[1]
            );
            if let Some([p50, p99, max]) = method.quantiles() {
                let _ = write!(text, " {p50:>9.3} {p99:>9.3} {max:>9.3}");
            }
            text.push('\n');
        }
        if !slowest.is_empty() {
            let _ = write!(text, "\nslowest calls\n{slowest}");
        }
        if !self.connections.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<8} {:>9} {:>7} {:>12} {:>12}  between",
                "conn.", "messages", "errors", "to server", "to client"
            );
        }
        let busiest = self.busiest();
        for (number, traffic) in busiest.iter().take(CONNECTIONS_SHOWN_MAX) {
            let [client, server] = &traffic.names;
            let _ = writeln!(
                text,
                "c{number:<7} {:>9} {:>7} {:>12} {:>12}  {client} > {server}",
                traffic.messages, traffic.errors, traffic.bytes[0], traffic.bytes[1]
            );
        }
        if busiest.len() > CONNECTIONS_SHOWN_MAX {
            let more = busiest.len() - CONNECTIONS_SHOWN_MAX;
            let _ = writeln!(text, "and {more} connections with fewer bytes");
        }
        if !self.troubles.is_empty() {
            text.push_str("\ntroubles\n");
            for (name, count) in &self.troubles {
                let _ = writeln!(text, "{name:<32} {count:>9}");
            }
        }
        text
    }

    /// For programs: one object.
    pub(crate) fn json(&self, slowest: Vec<Json>) -> Json {
        let object = |members: Vec<(&str, Json)>| {
            let members = members.into_iter();
            Json::Object(
                members
                    .map(|(name, json)| (name.to_owned(), json))
                    .collect(),
            )
        };
        let methods = self.methods.iter().map(|(name, method)| {
            let mut members = vec![
                ("count", Json::from(method.count)),
                ("errors", Json::from(method.errors)),
                ("unanswered", Json::from(method.unanswered)),
                (
                    "bytes_to_server",
                    Json::from(method.bytes[Way::ToServer.index()]),
                ),
                (
                    "bytes_to_client",
                    Json::from(method.bytes[Way::ToClient.index()]),
                ),
            ];
            if let Some([p50, p99, max]) = method.quantiles() {
                members.push(("p50_ms", Json::Number(p50)));
                members.push(("p99_ms", Json::Number(p99)));
                members.push(("max_ms", Json::Number(max)));
            }
            (name.clone(), object(members))
        });
        let methods = Json::Object(methods.collect());
        let busiest = self.busiest().into_iter().take(CONNECTIONS_SHOWN_MAX);
        let connections = busiest.map(|(number, traffic)| {
            object(vec![
                ("connection", Json::from(number)),
                ("client", Json::text_of(&traffic.names[0])),
                ("server", Json::text_of(&traffic.names[1])),
                ("messages", Json::from(traffic.messages)),
                ("errors", Json::from(traffic.errors)),
                ("bytes_to_server", Json::from(traffic.bytes[0])),
                ("bytes_to_client", Json::from(traffic.bytes[1])),
            ])
        });
        let troubles = self.troubles.iter();
        let troubles = troubles.map(|(name, count)| (name.clone(), Json::from(*count)));
        let mut members = vec![
            ("kind", Json::text_of("summary")),
            ("messages", Json::from(self.messages)),
            ("bytes", Json::from(self.bytes)),
            ("seconds", Json::Number(self.span().as_secs_f64())),
            ("methods", methods),
            ("slowest", Json::Array(slowest)),
            ("connections", Json::Array(connections.collect())),
            ("troubles", Json::Object(troubles.collect())),
        ];
        if let Some(first) = self.first {
            members.insert(1, ("time", Json::Text(clock::rfc3339(first))));
        }
        object(members)
    }

    fn span(&self) -> Duration {
        let (first, last) = (
            self.first.unwrap_or_default(),
            self.last.unwrap_or_default(),
        );
        last.saturating_sub(first)
    }

    fn busiest(&self) -> Vec<(u64, &Traffic)> {
        let all = self.connections.iter();
        let mut all: Vec<_> = all.map(|(number, traffic)| (*number, traffic)).collect();
        all.sort_by_key(|(number, traffic)| {
            (
                std::cmp::Reverse(traffic.bytes.iter().sum::<u64>()),
                *number,
            )
        });
        all
    }
}

impl Method {
    fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let histogram = self.latencies.get_or_insert_with(|| {
            Box::new(
                Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, DIGITS)
                    .expect("bounds and digits are constants that fit"),
            )
        });
        histogram.saturating_record(nanos.max(1));
    }

    /// Milliseconds
    fn quantiles(&self) -> Option<[f64; 3]> {
        let latencies = self.latencies.as_ref()?;
        let nanos = [
            latencies.value_at_quantile(0.5),
            latencies.value_at_quantile(0.99),
            latencies.max(),
        ];
        Some(nanos.map(|nanos| nanos as f64 / 1e6))
    }
}
