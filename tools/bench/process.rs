//! What the system says of the server's process.

use std::fs;
use std::time::Duration;

use crate::failure::Failure;

/// Memory and time of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Bytes in memory (VmRSS)
    pub resident: u64,
    /// Bytes that ever were at one time (VmHWM)
    pub resident_peak: u64,
    /// Processor time of all threads, user's and system's
    pub cpu: Duration,
}

/// Looks at a process of this machine.
pub(crate) fn usage(pid: u32) -> Result<Usage, Failure> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).map_err(|error| Failure::Usage(format!("{path}: {error}")))
    };
    let (status, stat) = (read("status")?, read("stat")?);
    let kilobytes = |key| Some(field(&status, key)? * 1024);
    let ticks = ticks(&stat);
    let usage = || {
        Some(Usage {
            resident: kilobytes("VmRSS:")?,
            resident_peak: kilobytes("VmHWM:")?,
            cpu: Duration::from_secs_f64(
                ticks? as f64 / rustix::param::clock_ticks_per_second() as f64,
            ),
        })
    };
    usage().ok_or_else(|| Failure::Usage(format!("process {pid} has no memory: is it gone?")))
}

fn field(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// utime and stime; proc(5) numbers them 14 and 15. The name of the program, the second, may
/// contain anything, and ends with the last parenthesis.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_have_memory_and_have_used_time() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident > 100_000 && usage.resident <= usage.resident_peak);
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 10 20 0 0 13 29 0 0 20 0 1 0 5";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = usage(u32::MAX).unwrap_err();
        assert!(error.to_string().contains("/proc/4294967295"), "{error}");
    }
}
