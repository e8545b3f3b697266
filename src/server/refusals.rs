//! Which refusals were logged: a client that is refused tries again every few seconds, for ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::Level;

use super::LOG;
use super::client::Who;
use crate::limits::REFUSALS_REMEMBERED_MAX;

/// Time between two lines about the same.
const INTERVAL: Duration = Duration::from_secs(60);

/// What has been refused, by host and reason.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    logged: BTreeMap<String, Refused>,
}

#[derive(Debug)]
struct Refused {
    logged: Instant,
    /// Since then.
    count: u64,
}

/// How often a refusal was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeated {
    /// Not lately.
    New,
    /// So many times since it was logged, which is some time ago.
    Again(u64),
    /// It was logged just now.
    Often,
}

impl Repeated {
    /// Says that `who` was refused, once in a while with how often.
    pub(super) fn log(self, level: Level, who: &Who, problem: &str) {
        self.log_line(LOG, level, &format!("{who} refused"), problem);
    }

    /// Says that something happened, and why, once in a while with how often.
    pub(crate) fn log_line(self, target: &str, level: Level, what: &str, why: &str) {
        match self {
            Self::Often => log::debug!(target: target, "{what} ({why})"),
            Self::Again(count) => log::log!(
                target: target,
                level,
                "{what} ({why}; {count} times since it was last said)"
            ),
            Self::New => log::log!(target: target, level, "{what} ({why})"),
        }
    }
}

impl Refusals {
    /// Notes a refusal. Ports of the host do not matter, nor what the problem says in brackets,
    /// which the peer may have made up.
    pub(crate) fn note(&mut self, peer: &str, problem: &str, now: Instant) -> Repeated {
        let host = peer.rsplit_once(':').map_or(peer, |(host, _)| host);
        let kind = problem.split(" (").next().unwrap_or_default();
        let key = format!("{host} {kind}");
        match self.logged.get_mut(&key) {
            Some(known) if now < known.logged + INTERVAL => {
                known.count += 1;
                Repeated::Often
            }
            known => {
                let count = known.map_or(0, |known| known.count);
                if self.logged.len() >= REFUSALS_REMEMBERED_MAX {
                    // Those that are due anyway; if there are none, all are logged once more.
                    self.logged.retain(|_, known| now < known.logged + INTERVAL);
                    if self.logged.len() >= REFUSALS_REMEMBERED_MAX {
                        self.logged.clear();
                    }
                }
                let known = Refused {
                    logged: now,
                    count: 0,
                };
                self.logged.insert(key, known);
                if count == 0 {
                    Repeated::New
                } else {
                    Repeated::Again(count)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any time will do")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn the_same_is_said_once_in_a_while_with_its_number() {
        let mut refusals = Refusals::default();
        let start = now();
        assert_eq!(refusals.note("h:1", "expired (a)", start), Repeated::New);
        for second in 1..60 {
            let at = start + Duration::from_secs(second);
            let peer = format!("h:{second}");
            assert_eq!(refusals.note(&peer, "expired (b)", at), Repeated::Often);
        }
        let later = start + INTERVAL;
        assert_eq!(refusals.note("h:1", "expired", later), Repeated::Again(59));
        let later = later + INTERVAL;
        assert_eq!(refusals.note("h:1", "expired", later), Repeated::New);
    }

    #[test]
    fn other_hosts_and_other_reasons_are_new() {
        let mut refusals = Refusals::default();
        let now = now();
        for (peer, problem) in [("h:1", "expired"), ("i:1", "expired"), ("h:1", "unknown")] {
            assert_eq!(refusals.note(peer, problem, now), Repeated::New);
        }
    }

    #[test]
    fn many_hosts_do_not_make_it_grow() {
        let mut refusals = Refusals::default();
        let now = now();
        for host in 0..3 * REFUSALS_REMEMBERED_MAX {
            refusals.note(&format!("{host}:1"), "expired", now);
            assert!(refusals.logged.len() <= REFUSALS_REMEMBERED_MAX);
        }
    }
}
