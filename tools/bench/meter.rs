//! Counts and latencies while a workload runs, and the line that tells of them each second.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Latencies up to here are told apart; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// Which of the things that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SeriesId(usize);

/// One kind of operation.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// As in `loads`
    pub name: &'static str,
    /// Nanoseconds
    pub latencies: Histogram<u64>,
    /// Whether one of these is an operation, or a part of one.
    is_operation: bool,
    /// How many since the last line of progress, and their latencies added up.
    second: (u64, Duration),
}

/// All that is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    pub series: Vec<Series>,
    /// Things that happen beside, as conflicts.
    pub counts: BTreeMap<&'static str, u64>,
    is_running: bool,
    /// Operations since the start.
    operations: u64,
    progress: Option<Progress>,
}

#[derive(Clone, Debug)]
struct Progress {
    label: String,
    started: Instant,
    last: Instant,
}

impl Meter {
    /// A kind of operations.
    pub(crate) fn add(&mut self, name: &'static str) -> SeriesId {
        self.add_series(name, true)
    }

    /// Parts of operations, or another view of them.
    pub(crate) fn add_part(&mut self, name: &'static str) -> SeriesId {
        self.add_series(name, false)
    }

    fn add_series(&mut self, name: &'static str, is_operation: bool) -> SeriesId {
        let bounds = (1, LATENCY_MAX.as_nanos() as u64);
        self.series.push(Series {
            name,
            latencies: Histogram::new_with_bounds(bounds.0, bounds.1, DIGITS)
                .expect("bounds and digits are constants that fit"),
            is_operation,
            second: (0, Duration::ZERO),
        });
        SeriesId(self.series.len() - 1)
    }

    /// Begins to count, from zero.
    pub(crate) fn start(&mut self) {
        for series in &mut self.series {
            series.latencies.clear();
        }
        self.counts.clear();
        self.operations = 0;
        self.is_running = true;
    }

    /// What comes from now on does not count.
    pub(crate) const fn stop(&mut self) {
        self.is_running = false;
    }

    /// An operation was completed.
    pub(crate) fn record(&mut self, id: SeriesId, latency: Duration) {
        let series = &mut self.series[id.0];
        series.second.0 += 1;
        series.second.1 += latency;
        if self.is_running {
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            series.latencies.saturating_record(nanos.max(1));
            self.operations += u64::from(series.is_operation);
        }
    }

    /// Operations of all kinds that count.
    pub(crate) const fn operations(&self) -> u64 {
        self.operations
    }

    /// Something happened.
    pub(crate) fn count(&mut self, name: &'static str) {
        if self.is_running {
            *self.counts.entry(name).or_default() += 1;
        }
    }

    /// Tells of progress from now on, each second.
    pub(crate) fn show_progress(&mut self, label: String, now: Instant) {
        self.progress = Some(Progress {
            label,
            started: now,
            last: now,
        });
    }

    /// Tells of progress if it is time to.
    pub(crate) fn tick(&mut self, now: Instant) {
        let Some(progress) = &mut self.progress else {
            return;
        };
        let elapsed = now.saturating_duration_since(progress.last);
        if elapsed < Duration::from_secs(1) {
            return;
        }
        progress.last = now;
        let since_start = now.saturating_duration_since(progress.started);
        let mut line = format!("{}: {:.1} s", progress.label, since_start.as_secs_f64());
        for series in &mut self.series {
            let (count, total) = std::mem::take(&mut series.second);
            let rate = count as f64 / elapsed.as_secs_f64();
            let mean = total.as_secs_f64() * 1e3 / count.max(1) as f64;
            let _ = write!(line, ", {} {rate:.0}/s {mean:.3} ms", series.name);
        }
        for (name, count) in &self.counts {
            let _ = write!(line, ", {name} {count}");
        }
        // Nobody may be looking.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_between_start_and_stop_counts() {
        let mut meter = Meter::default();
        let loads = meter.add("loads");
        let greetings = meter.add_part("greetings");
        meter.record(loads, Duration::from_micros(1));
        meter.start();
        meter.record(greetings, Duration::from_micros(1));
        meter.record(loads, Duration::from_micros(100));
        meter.record(loads, LATENCY_MAX * 2);
        meter.count("conflicts");
        meter.stop();
        meter.record(loads, Duration::from_micros(1));
        meter.count("conflicts");
        let latencies = &meter.series[0].latencies;
        assert_eq!((latencies.len(), meter.operations()), (2, 2));
        let median = latencies.value_at_quantile(0.5);
        assert!((99_900..=100_100).contains(&median), "{median}");
        assert_eq!(meter.counts["conflicts"], 1);
    }
}
