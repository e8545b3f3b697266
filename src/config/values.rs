//! The forms of single values, as ZConfig's data types have them.
//!
//! A converter's error says what was expected, to follow "is not".

use core::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

use super::{Address, LockScope, Surroundings};
use crate::limits::OLD_LOG_FILES_MAX;

/// Anything.
pub(super) fn text(value: &str) -> Result<String, &'static str> {
    Ok(value.to_owned())
}

/// Something that the shell is to run.
pub(super) fn command(value: &str) -> Result<String, &'static str> {
    match value {
        "" => Err("a command of the shell"),
        value => text(value),
    }
}

/// What a storage is called.
pub(super) fn storage_name(value: &str) -> Result<String, &'static str> {
    match value {
        "" => Err("the name of a storage"),
        value => text(value),
    }
}

/// `boolean`
pub(super) fn boolean(value: &str) -> Result<bool, &'static str> {
    match value.to_lowercase().as_str() {
        "yes" | "true" | "on" => Ok(true),
        "no" | "false" | "off" => Ok(false),
        _ => Err("a boolean (yes, true, on, no, false or off)"),
    }
}

/// `integer`, where negative ones make no sense.
pub(super) fn count(value: &str) -> Result<usize, &'static str> {
    value.parse().map_err(|_| "a whole number from zero")
}

/// How many old log files are kept; each is renamed at each rotation.
pub(super) fn old_files(value: &str) -> Result<u32, &'static str> {
    let count = value
        .parse()
        .ok()
        .filter(|count| *count <= OLD_LOG_FILES_MAX);
    count.ok_or("a whole number from zero to 1000")
}

/// `float`, for a time.
pub(super) fn seconds(value: &str) -> Result<Duration, &'static str> {
    let expected = "a time in seconds";
    let seconds: f64 = value.parse().map_err(|_| expected)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| expected)
}

/// As [`seconds`], for a time that must not be zero.
pub(super) fn positive_seconds(value: &str) -> Result<Duration, &'static str> {
    match seconds(value) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("a time above zero in seconds"),
    }
}

/// `time-interval`: a whole number, of seconds or of what its suffix says.
pub(super) fn interval(value: &str) -> Result<Duration, &'static str> {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60)];
    match scaled(value, &UNITS) {
        Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("a whole number of seconds above zero (or with a suffix s, m, h or d)"),
    }
}

/// A whole number of milliseconds, seconds or minutes, by its suffix; of seconds without.
pub(super) fn short_interval(value: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 3] = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let value = value.to_lowercase();
    let is_bare = is_number(&value);
    let millis = scaled(&value, &UNITS)?;
    Some(Duration::from_millis(if is_bare {
        millis.checked_mul(1000)?
    } else {
        millis
    }))
}

/// `byte-size`
pub(super) fn byte_size(value: &str) -> Result<u64, &'static str> {
    const UNITS: [(&str, u64); 3] = [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)];
    scaled(value, &UNITS).ok_or("a number of bytes (or with a suffix KB, MB or GB)")
}

/// A whole number with the suffix of a unit, or without.
fn scaled(value: &str, units: &[(&str, u64)]) -> Option<u64> {
    let value = value.to_lowercase();
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((value.strip_suffix(suffix)?.trim_end(), *unit)))
        .unwrap_or((&value, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// `existing-dirpath`: a path in a directory that exists; it may begin with `~/`.
pub(super) fn path(value: &str, around: &dyn Surroundings) -> Result<PathBuf, &'static str> {
    let path = match value.strip_prefix('~') {
        None if value.is_empty() => return Err("a path"),
        None => PathBuf::from(value),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            let home = around
                .variable("HOME")
                .ok_or("a path that HOME makes complete")?;
            PathBuf::from(home + rest)
        }
        Some(_) => return Err("a path (homes of other users are not looked up)"),
    };
    existing_parent(path, around)
}

/// `authenticate`: a [`path`]. runzeo's schema speaks of `-` and `SIGNED`, too, which its code does
/// not know; and its code of `DYNAMIC`, with which nobody is let in.
pub(super) fn client_certificates(
    value: &str,
    around: &dyn Surroundings,
) -> Result<PathBuf, &'static str> {
    match value {
        "-" | "SIGNED" | "DYNAMIC" => {
            Err("a file or directory with certificates of clients, or of those who signed them")
        }
        _ => path(value, around),
    }
}

/// The same path, if the directory that it is in exists.
pub(super) fn existing_parent(
    path: PathBuf,
    around: &dyn Surroundings,
) -> Result<PathBuf, &'static str> {
    match path.parent() {
        Some(parent) if parent != Path::new("") && !around.is_directory(parent) => {
            Err("a path in an existing directory")
        }
        _ => Ok(path),
    }
}

/// One or several of `socket-binding-address`, separated by blanks.
pub(super) fn addresses(value: &str) -> Result<Vec<Address>, &'static str> {
    let mut words: Vec<String> = Vec::new();
    for word in value.split_whitespace() {
        match words.last_mut() {
            // ZConfig allows a blank before the port. As two addresses this would be any port of
            // the host, and this one of all hosts.
            Some(host) if lacks_port(host) && is_number(word) => host.push_str(word),
            _ => words.push(word.to_owned()),
        }
    }
    let addresses: Vec<_> = words
        .iter()
        .map(|word| address(word))
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        Err(ADDRESS)
    } else {
        Ok(addresses)
    }
}

/// Whether a port has to follow. Two colons end an address of IPv6.
fn lacks_port(host: &str) -> bool {
    host.ends_with(':') && !host.ends_with("::") && !host.contains('/')
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

const ADDRESS: &str = "an address (PORT, HOST, HOST:PORT, [IPV6]:PORT, or a path with a '/')";

/// One of them.
pub(super) fn address(value: &str) -> Result<Address, &'static str> {
    if value.contains('/') {
        return Ok(Address::Unix(PathBuf::from(value)));
    }
    let (host, port) = match value.rsplit_once(':') {
        None if is_number(value) => ("", value),
        None => (value, ""),
        // Not the colon before a port: an address of IPv6 by itself.
        Some(_) if value.starts_with('[') && value.ends_with(']') => (value, ""),
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => (value, ""),
        Some(host_and_port) => host_and_port,
    };
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or(ADDRESS)?,
        None => host,
    };
    // As in ZConfig, no port is any port.
    let port = if port.is_empty() {
        0
    } else {
        port.parse().map_err(|_| ADDRESS)?
    };
    Ok(Address::Tcp {
        host: host.to_lowercase(),
        port,
    })
}

/// An address of TCP, of this machine.
pub(super) fn tcp_address(value: &str) -> Result<Address, &'static str> {
    match address(value) {
        Ok(address @ Address::Tcp { .. }) => Ok(address),
        _ => Err("an address of TCP (PORT, HOST:PORT or [IPV6]:PORT)"),
    }
}

/// An address of TCP that others can connect to: what stands for all addresses of a machine tells
/// them nothing.
pub(super) fn reachable(value: &str) -> Result<Address, &'static str> {
    const EXPECTED: &str = "an address that other machines reach (HOST:PORT; neither empty nor a \
                            wildcard as 0.0.0.0, and with a port)";
    match address(value) {
        Ok(Address::Tcp { host, port }) if port > 0 => {
            let is_wildcard = match host.parse::<IpAddr>() {
                Ok(ip) => ip.is_unspecified(),
                Err(_) => host.is_empty() || host.contains('*'),
            };
            match is_wildcard {
                true => Err(EXPECTED),
                false => Ok(Address::Tcp { host, port }),
            }
        }
        _ => Err(EXPECTED),
    }
}

/// A name of so many plain characters at most.
pub(super) fn name_of(value: &str, len_max: usize) -> Option<String> {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = (1..=len_max).contains(&value.len()) && value.bytes().all(is_usual);
    is_name.then(|| value.to_owned())
}

/// `commit-lock`
pub(super) fn lock_scope(value: &str) -> Result<LockScope, &'static str> {
    match value.to_lowercase().as_str() {
        "storage" => Ok(LockScope::Storage),
        "objects" => Ok(LockScope::Objects),
        _ => Err("storage or objects"),
    }
}

/// A level of Python's logging, by name or number: the least severe that is logged. Python has a
/// level above errors and some between; the next that we have and that logs more stands for them.
pub(super) fn level(value: &str) -> Result<LevelFilter, &'static str> {
    let number = match value.to_lowercase().as_str() {
        "critical" | "fatal" => 50,
        "error" => 40,
        "warn" | "warning" => 30,
        "info" => 20,
        "blather" => 15,
        "debug" => 10,
        "trace" => 5,
        "all" => 1,
        "notset" => 0,
        other => other.parse::<u8>().map_err(|_| LEVEL)?,
    };
    match number {
        0..=5 => Ok(LevelFilter::Trace),
        6..=19 => Ok(LevelFilter::Debug),
        20..=29 => Ok(LevelFilter::Info),
        30..=39 => Ok(LevelFilter::Warn),
        40..=50 => Ok(LevelFilter::Error),
        51.. => Err(LEVEL),
    }
}

const LEVEL: &str = "a log level (critical, error, warn, info, debug, trace, all, or 0 to 50)";

#[cfg(test)]
mod tests {
    use super::super::testing::Files;
    use super::*;

    #[test]
    fn booleans_are_words() {
        for (value, expected) in [("Yes", true), ("TRUE", true), ("on", true), ("oFF", false)] {
            assert_eq!(boolean(value), Ok(expected));
        }
        for value in ["", "1", "maybe"] {
            assert!(boolean(value).is_err(), "{value}");
        }
    }

    #[test]
    fn sizes_and_times_have_suffixes() {
        assert_eq!(byte_size("10"), Ok(10));
        assert_eq!(byte_size("10kB"), Ok(10 << 10));
        assert_eq!(byte_size("2 GB"), Ok(2 << 30));
        for value in ["", "MB", "-1", "1.5MB", "1TB", "99999999999999GB"] {
            assert!(byte_size(value).is_err(), "{value}");
        }
        assert_eq!(interval("30"), Ok(Duration::from_secs(30)));
        assert_eq!(interval("2M"), Ok(Duration::from_secs(120)));
        assert_eq!(interval("1d"), Ok(Duration::from_secs(86_400)));
        for value in ["", "0", "-5", "1.5", "1w", "many"] {
            assert!(interval(value).is_err(), "{value}");
        }
    }

    #[test]
    fn short_times_may_be_in_milliseconds() {
        for (value, millis) in [("500ms", 500), ("2s", 2000), ("2", 2000), ("1M", 60_000)] {
            assert_eq!(short_interval(value), Some(Duration::from_millis(millis)));
        }
        for value in ["", "ms", "1.5s", "-1s", "1h", "99999999999999999m"] {
            assert_eq!(short_interval(value), None, "{value}");
        }
    }

    #[test]
    fn a_wildcard_is_no_address_for_others() {
        for value in ["10.0.0.1:8102", "Alpha:1", "[fe80::1]:8102", "127.0.0.1:1"] {
            assert!(reachable(value).is_ok(), "{value}");
        }
        for value in [
            "8102",
            ":8102",
            "0.0.0.0:8102",
            "[::]:8102",
            "*:8102",
            "alpha",
            "./a.sock",
            "[::0]:1",
        ] {
            assert!(reachable(value).is_err(), "{value}");
        }
        assert!(tcp_address("8103").is_ok());
        assert!(tcp_address("/run/a.sock").is_err());
    }

    #[test]
    fn seconds_may_have_fractions_but_must_be_a_time() {
        assert_eq!(seconds("10.5"), Ok(Duration::from_millis(10_500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for value in ["", "-1", "nan", "inf", "1e30", "soon"] {
            assert!(seconds(value).is_err(), "{value}");
        }
        assert!(positive_seconds("0").is_err());
    }

    #[test]
    fn a_blank_before_a_port_does_not_make_two_addresses() {
        let shown = |value: &str| {
            let all = addresses(value).unwrap();
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            all.join(" ")
        };
        assert_eq!(shown("127.0.0.1: 8100"), "127.0.0.1:8100");
        assert_eq!(shown("a: 1 b:2 [::1]: 3"), "a:1 b:2 [::1]:3");
        assert_eq!(shown(": 8100"), ":8100");
        assert_eq!(shown(":: 8100"), "[::]:0 :8100");
        assert_eq!(shown("a: b"), "a:0 b:0");
        assert_eq!(shown("/run/a: 8100"), "/run/a: :8100");
    }

    #[test]
    fn addresses_have_the_forms_of_zconfig() {
        for (value, host, port) in [
            ("8100", "", 8100),
            (":8100", "", 8100),
            ("0", "", 0),
            ("localhost", "localhost", 0),
            ("LocalHost:80", "localhost", 80),
            ("localhost:", "localhost", 0),
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("[::1]:8100", "::1", 8100),
            ("[::1]", "::1", 0),
            ("::1", "::1", 0),
            ("fe80::1:8100", "fe80::1:8100", 0),
        ] {
            assert_eq!(
                address(value),
                Ok(Address::Tcp {
                    host: host.to_owned(),
                    port
                }),
                "{value}"
            );
        }
        assert_eq!(
            address("./zeo.sock"),
            Ok(Address::Unix("./zeo.sock".into()))
        );
        for value in [
            "host:port",
            "65536",
            "host:65536",
            "host:-1",
            "[::1:80",
            "[::1",
        ] {
            assert!(address(value).is_err(), "{value}");
        }
        assert_eq!(addresses("8100  ./zeo.sock").unwrap().len(), 2);
        assert!(addresses("").is_err());
    }

    #[test]
    fn a_path_needs_its_directory() {
        let around = Files::new(&[]).with_variable("HOME", "/home/x");
        assert_eq!(path("Data.fs", &around), Ok("Data.fs".into()));
        assert_eq!(path("/var/Data.fs", &around), Ok("/var/Data.fs".into()));
        assert_eq!(path("~/Data.fs", &around), Ok("/home/x/Data.fs".into()));
        for value in ["", "no/such/Data.fs", "~zope/Data.fs"] {
            assert!(path(value, &around).is_err(), "{value}");
        }
        assert!(path("~/Data.fs", &Files::new(&[])).is_err());
    }

    #[test]
    fn levels_are_those_of_python() {
        for (value, expected) in [
            ("fatal", LevelFilter::Error),
            ("WARN", LevelFilter::Warn),
            ("25", LevelFilter::Info),
            ("blather", LevelFilter::Debug),
            ("all", LevelFilter::Trace),
            ("notset", LevelFilter::Trace),
        ] {
            assert_eq!(level(value), Ok(expected), "{value}");
        }
        for value in ["", "51", "-1", "loud"] {
            assert!(level(value).is_err(), "{value}");
        }
    }
}
