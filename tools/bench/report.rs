//! Figures of a run, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::meter::Meter;
use crate::process::Usage;

/// What one run has measured, by names that end in their units: `loads_per_second`,
/// `loads_p99_ms`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures(Vec<(String, f64)>);

/// Quantiles of latencies that are reported, with their names.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

impl Figures {
    /// What the meter has counted in so many seconds.
    pub(crate) fn new(meter: &Meter, seconds: f64) -> Self {
        let mut figures = Self::default();
        figures.put("seconds", seconds);
        for series in &meter.series {
            let latencies = &series.latencies;
            let mut put =
                |what: &str, value| figures.put(&format!("{}_{what}", series.name), value);
            put("count", latencies.len() as f64);
            put("per_second", latencies.len() as f64 / seconds);
            if latencies.is_empty() {
                continue;
            }
            put("mean_ms", latencies.mean() / 1e6);
            for (name, quantile) in QUANTILES {
                put(
                    &format!("{name}_ms"),
                    latencies.value_at_quantile(quantile) as f64 / 1e6,
                );
            }
            put("max_ms", latencies.max() as f64 / 1e6);
        }
        for (name, count) in &meter.counts {
            figures.put(name, *count as f64);
        }
        figures
    }

    /// One more.
    pub(crate) fn put(&mut self, name: &str, value: f64) {
        self.0.push((name.to_owned(), value));
    }

    /// The processor time that a process has taken for `operations`.
    pub(crate) fn put_cpu(&mut self, who: &str, before: Usage, after: Usage, operations: u64) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        self.put(&format!("{who}_cpu_seconds"), cpu);
        if operations > 0 {
            let each = cpu * 1e6 / operations as f64;
            self.put(&format!("{who}_cpu_us_per_operation"), each);
        }
    }

    /// The memory that a process has.
    pub(crate) fn put_memory(&mut self, who: &str, usage: Usage) {
        const MEGABYTE: f64 = (1 << 20) as f64;
        let mut put = |what, bytes| self.put(&format!("{who}_{what}_mb"), bytes as f64 / MEGABYTE);
        put("resident", usage.resident);
        put("resident_peak", usage.resident_peak);
    }

    /// The value of that name.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| *value)
    }

    /// Of several runs, for each figure by itself.
    pub(crate) fn medians(runs: &[Self]) -> Self {
        let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut names: Vec<&str> = Vec::new();
        for (name, value) in runs.iter().flat_map(|run| &run.0) {
            let all = values.entry(name).or_default();
            if all.is_empty() {
                names.push(name);
            }
            all.push(*value);
        }
        let median = |name: &&str| {
            let values = values
                .get_mut(*name)
                .map(std::mem::take)
                .unwrap_or_default();
            ((*name).to_owned(), median(values))
        };
        Self(names.iter().map(median).collect())
    }

    /// Lines of text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.0 {
            let _ = writeln!(text, "  {name:<32} {:>14}", shown(*value));
        }
        text
    }

    /// Lines of text: both, and the second divided by the first.
    pub(crate) fn compared(&self, other: &Self) -> String {
        let mut text = format!("  {:<32} {:>14} {:>14} {:>8}\n", "", "A", "B", "B/A");
        for (name, a) in &self.0 {
            let Some(b) = other.value(name) else { continue };
            let ratio = if *a == 0.0 {
                "-".to_owned()
            } else {
                format!("{:.2}", b / a)
            };
            let _ = writeln!(
                text,
                "  {name:<32} {:>14} {:>14} {ratio:>8}",
                shown(*a),
                shown(b)
            );
        }
        text
    }

    /// As JSON.
    pub(crate) fn json(&self) -> Json {
        let members = self
            .0
            .iter()
            .map(|(name, value)| (name.clone(), Json::Number(*value)));
        Json::Object(members.collect())
    }

    /// The second divided by the first, as JSON, where that is a number.
    pub(crate) fn ratios(&self, other: &Self) -> Json {
        let ratio = |(name, a): &(String, f64)| {
            let ratio = other.value(name)? / a;
            ratio
                .is_finite()
                .then(|| (name.clone(), Json::Number(ratio)))
        };
        Json::Object(self.0.iter().filter_map(ratio).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

fn shown(value: f64) -> String {
    if value >= 1000.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

/// What a JSON document is made of, as far as it is needed here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Number(f64),
    Text(String),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    /// An object with members of these names.
    pub(crate) fn object<const N: usize>(members: [(&str, Self); N]) -> Self {
        let members = members.into_iter();
        Self::Object(
            members
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    /// The document, on one line.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) {
        match self {
            // There are no others in JSON.
            Self::Number(number) if !number.is_finite() => out.push_str("null"),
            Self::Number(number) => _ = write!(out, "{number}"),
            Self::Text(text) => write_text(out, text),
            Self::Array(items) => write_all(out, ['[', ']'], items, |out, item| item.write(out)),
            Self::Object(members) => {
                write_all(out, ['{', '}'], members, |out, (name, value)| {
                    write_text(out, name);
                    out.push_str(": ");
                    value.write(out);
                });
            }
        }
    }
}

fn write_all<T>(out: &mut String, ends: [char; 2], items: &[T], write: impl Fn(&mut String, &T)) {
    out.push(ends[0]);
    for (n, item) in items.iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write(out, item);
    }
    out.push(ends[1]);
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            control if control < ' ' => _ = write!(out, "\\u{:04x}", control as u32),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_meter_becomes_figures() {
        let mut meter = Meter::default();
        let loads = meter.add("loads");
        meter.add("commits");
        meter.start();
        for micros in 1..=1000 {
            meter.record(loads, Duration::from_micros(micros));
        }
        meter.count("conflicts");
        let figures = Figures::new(&meter, 2.0);
        assert_eq!(figures.value("loads_per_second"), Some(500.0));
        assert_eq!(figures.value("commits_count"), Some(0.0));
        assert_eq!(figures.value("commits_p50_ms"), None);
        assert_eq!(figures.value("conflicts"), Some(1.0));
        for (name, expected) in [("p50", 0.5), ("p99", 0.99), ("mean", 0.5), ("max", 1.0)] {
            let value = figures.value(&format!("loads_{name}_ms")).unwrap();
            assert!((value - expected).abs() < 0.002, "{name} {value}");
        }
    }

    #[test]
    fn medians_are_of_each_figure() {
        let run = |a: f64, b: f64| Figures(vec![("a".to_owned(), a), ("b".to_owned(), b)]);
        let runs = [run(1.0, 9.0), run(5.0, 7.0), run(2.0, 8.0)];
        assert_eq!(Figures::medians(&runs), run(2.0, 8.0));
        assert_eq!(Figures::medians(&runs[..2]), run(3.0, 8.0));
    }

    #[test]
    fn json_is_what_others_read() {
        let json = Json::object([
            ("a", Json::Number(0.5)),
            (
                "b",
                Json::Array(vec![Json::Number(3.0), Json::Number(f64::NAN)]),
            ),
            ("c\n", Json::Text("\"x\\\u{e9}".to_owned())),
        ]);
        let expected = "{\"a\": 0.5, \"b\": [3, null], \"c\\u000a\": \"\\\"x\\\\\u{e9}\"}";
        assert_eq!(json.text(), expected);
    }
}
