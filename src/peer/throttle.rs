//! How much of what others copy may leave per second.

use std::time::{Duration, Instant};

/// A bucket of bytes that fills by the second. What is taken may be more than is in it: then the
/// next one waits until that is made up for. So a piece is never too long for it.
#[derive(Clone, Debug)]
pub struct Throttle {
    /// Bytes per second; `None` without bound.
    rate: Option<u64>,
    /// Bytes that may leave; less than zero if too many have.
    room: f64,
    /// When that was so.
    at: Instant,
}

/// What may leave at once after a pause.
const BURST: Duration = Duration::from_millis(100);

impl Throttle {
    /// `rate` is in bytes per second; `None` or zero is without bound.
    pub fn new(rate: Option<u64>, now: Instant) -> Self {
        Self {
            rate: rate.filter(|rate| *rate > 0),
            room: 0.0,
            at: now,
        }
    }

    /// Whether something may leave now.
    pub fn is_open(&mut self, now: Instant) -> bool {
        let Some(rate) = self.rate else {
            return true;
        };
        let rate = rate as f64;
        let passed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let most = rate * BURST.as_secs_f64();
        self.room = (self.room + rate * passed.as_secs_f64()).min(most);
        self.room >= 0.0
    }

    /// So many bytes leave.
    pub fn take(&mut self, len: usize) {
        if self.rate.is_some() {
            self.room -= len as f64;
        }
    }

    /// When it is open again; `None` if it is.
    pub fn opens_at(&self) -> Option<Instant> {
        let rate = self.rate? as f64;
        if self.room >= 0.0 {
            return None;
        }
        let wait = Duration::try_from_secs_f64(-self.room / rate).unwrap_or(Duration::MAX);
        // Not a moment too early, or it would be looked at in vain.
        let wait = wait.saturating_add(Duration::from_millis(1)).min(LONGEST);
        Some(self.at + wait)
    }
}

/// It is looked at again after this, however slow it is.
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn so_much_leaves_per_second_in_pieces_of_any_length() {
        for len in [1000, 1 << 20] {
            let rate = 10 << 20;
            let start = now();
            let mut throttle = Throttle::new(Some(rate), start);
            let (mut at, mut sent) = (start, 0);
            while at < start + Duration::from_secs(20) {
                while throttle.is_open(at) {
                    throttle.take(len);
                    sent += len as u64;
                }
                at = throttle.opens_at().unwrap();
            }
            let (least, most) = (20 * rate * 99 / 100 - (1 << 20), 20 * rate + (2 << 20));
            // Looked at once per millisecond, small pieces are a little behind.
            assert!(sent > least / 2 && sent < most, "{len}: {sent}");
            assert!(len < 1 << 20 || sent > least, "{len}: {sent}");
        }
    }

    #[test]
    fn a_pause_does_not_save_up_much() {
        let start = now();
        let mut throttle = Throttle::new(Some(1000), start);
        let later = start + Duration::from_secs(1000);
        let mut sent = 0;
        while throttle.is_open(later) {
            throttle.take(10);
            sent += 10;
        }
        assert_eq!(sent, 110);
        assert!(throttle.opens_at().unwrap() > later);
    }

    #[test]
    fn without_a_rate_it_is_always_open() {
        let start = now();
        let mut throttle = Throttle::new(None, start);
        throttle.take(usize::MAX);
        assert!(throttle.is_open(start));
        assert_eq!(throttle.opens_at(), None);
    }
}
