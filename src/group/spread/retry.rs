//! When to try again, and how often to speak of it.

use std::time::{Duration, Instant};

use crate::limits::{SPREAD_RETRY_MAX, SPREAD_RETRY_MIN, TROUBLE_LOG_INTERVAL};

/// Times between attempts: each twice as long as the last, up to a limit, and less by chance, so
/// that the clients of a daemon that comes back do not all come at once.
#[derive(Debug)]
pub(super) struct Backoff {
    /// Never 0.
    random: u64,
    attempts: u32,
}

impl Backoff {
    /// What chance begins with: another one for each client.
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            random: seed | 1 << 63,
            attempts: 0,
        }
    }

    /// The next one is a first one again.
    pub(super) const fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Time to the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let doubled = SPREAD_RETRY_MIN.saturating_mul(1 << self.attempts.min(20));
        self.attempts += 1;
        self.part_of(doubled.min(SPREAD_RETRY_MAX))
    }

    /// Time to an attempt that is worth making soon, but not at once.
    pub(super) fn soon(&mut self) -> Duration {
        self.part_of(2 * SPREAD_RETRY_MIN)
    }

    /// From half of `max` to all of it.
    fn part_of(&mut self, max: Duration) -> Duration {
        // Marsaglia's xorshift.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        max / 2 + max / 2 * u32::from((self.random >> 48) as u16) / u32::from(u16::MAX)
    }
}

/// Trouble that lasts is told when it begins, when it changes, and once in a while.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    told: Option<(String, Instant)>,
    /// Times since it was told.
    untold: u32,
}

impl Trouble {
    /// Whether `what` should be logged now, and how often it came since it was last.
    pub(super) fn tell(&mut self, what: &str, now: Instant) -> Option<u32> {
        if let Some((told, at)) = &self.told
            && told == what
            && now.saturating_duration_since(*at) < TROUBLE_LOG_INTERVAL
        {
            self.untold += 1;
            return None;
        }
        self.told = Some((what.to_owned(), now));
        Some(std::mem::take(&mut self.untold))
    }

    /// It is over.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rarer_up_to_a_limit_and_differ_by_chance() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..40).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        for seed in 0..50 {
            let waits = waits(seed);
            assert!(waits[0] >= SPREAD_RETRY_MIN / 2 && waits[0] <= SPREAD_RETRY_MIN);
            assert!(waits[3] >= 4 * SPREAD_RETRY_MIN && waits[3] <= 8 * SPREAD_RETRY_MIN);
            for wait in &waits[10..] {
                assert!(*wait >= SPREAD_RETRY_MAX / 2 && *wait <= SPREAD_RETRY_MAX);
            }
        }
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn lasting_trouble_is_told_once_in_a_while() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(trouble.tell("refused", start), Some(0));
        assert_eq!(trouble.tell("refused", after(1)), None);
        assert_eq!(trouble.tell("refused", after(59)), None);
        assert_eq!(trouble.tell("refused", after(60)), Some(2));
        assert_eq!(trouble.tell("reset", after(61)), Some(0));
        trouble.clear();
        assert_eq!(trouble.tell("reset", after(62)), Some(0));
    }
}
