//! Times for people and from people.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use standby::ids::Tid;

/// How times are shown and read.
#[derive(Clone, Debug)]
pub(crate) struct Clock(TimeZone);

impl Clock {
    /// In the time of the place, as in the server's log; or UTC.
    pub(crate) fn new(utc: bool) -> Self {
        Self(if utc {
            TimeZone::UTC
        } else {
            TimeZone::system()
        })
    }

    fn zoned(&self, time: Duration) -> Option<Zoned> {
        let nanos = i128::try_from(time.as_nanos()).ok()?;
        let stamp = Timestamp::from_nanosecond(nanos).ok()?;
        Some(stamp.to_zoned(self.0.clone()))
    }

    fn format(&self, time: Duration, format: &str) -> String {
        let zoned = self.zoned(time);
        let text = zoned.and_then(|zoned| strtime::format(format, &zoned).ok());
        text.unwrap_or_else(|| "?".to_owned())
    }

    /// The time at the begin of a line.
    pub(crate) fn line(&self, time: Duration) -> String {
        self.format(time, "%Y-%m-%d %H:%M:%S%.6f")
    }

    /// The time that a tid stands for, without blanks.
    pub(crate) fn tid(&self, tid: Tid) -> String {
        self.format(tid.unix_time(), "%Y-%m-%dT%H:%M:%S%.3f")
    }

    /// Any other time, without blanks.
    pub(crate) fn word(&self, time: Duration) -> String {
        self.format(time, "%Y-%m-%dT%H:%M:%S%.6f")
    }

    /// What `--since` and `--until` are given: a date, a time, or both. A time alone is one of the
    /// day of `first`, which is when the capture begins.
    pub(crate) fn parse(text: &str) -> Option<When> {
        let text = text.trim();
        if let Ok(stamp) = text.parse::<Timestamp>() {
            let nanos = u64::try_from(stamp.as_nanosecond()).ok()?;
            return Some(When::Exact(Duration::from_nanos(nanos)));
        }
        if let Ok(time) = text.parse::<DateTime>() {
            return Some(When::Civil(time));
        }
        if let Ok(date) = text.parse::<Date>() {
            return Some(When::Civil(date.to_datetime(Time::midnight())));
        }
        text.parse::<Time>().ok().map(When::OfDay)
    }

    /// What was meant.
    pub(crate) fn resolve(&self, when: When, first: Duration) -> Option<Duration> {
        let civil = match when {
            When::Exact(time) => return Some(time),
            When::Civil(civil) => civil,
            When::OfDay(time) => self.zoned(first)?.date().to_datetime(time),
        };
        let nanos = civil.to_zoned(self.0.clone()).ok()?.timestamp();
        Some(Duration::from_nanos(
            u64::try_from(nanos.as_nanosecond()).ok()?,
        ))
    }
}

/// For programs, whatever the place.
pub(crate) fn rfc3339(time: Duration) -> String {
    Clock(TimeZone::UTC).format(time, "%Y-%m-%dT%H:%M:%S%.9fZ")
}

/// A time as it was typed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum When {
    Exact(Duration),
    Civil(DateTime),
    OfDay(Time),
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(1_795_222_013_500);

    #[test]
    fn times_are_read_as_they_are_shown() {
        let clock = Clock::new(true);
        assert_eq!(clock.line(FIRST), "2026-11-21 00:46:53.500000");
        assert_eq!(rfc3339(FIRST), "2026-11-21T00:46:53.500000000Z");
        for text in [
            "2026-11-21 00:46:53.500000",
            "2026-11-21T00:46:53.5",
            "00:46:53.5",
            "2026-11-21T00:46:53.500000000Z",
            "2026-11-21T01:46:53.5+01:00",
        ] {
            let when = Clock::parse(text).unwrap();
            assert_eq!(clock.resolve(when, FIRST), Some(FIRST), "{text}");
        }
        let midnight = clock.resolve(Clock::parse("2026-11-21").unwrap(), FIRST);
        assert_eq!(midnight, Some(Duration::from_secs(1_795_219_200)));
        assert_eq!(Clock::parse("yesterday"), None);
    }

    #[test]
    fn times_beyond_the_calendar_are_no_panic() {
        let clock = Clock::new(true);
        assert_eq!(clock.line(Duration::MAX), "?");
        for tid in [0, 1, u64::MAX, u64::MAX / 3] {
            clock.tid(Tid(tid));
        }
    }
}
