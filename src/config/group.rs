//! The section `<standby>`: the group that the server is a member of.

use std::fmt;
use std::path::PathBuf;

use super::schema::Items;
use super::values::path;
use super::zconfig::Section;
use super::{Address, Config, ConfigError, Place, Surroundings};

/// The section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyConfig {
    /// Where it stands, for complaints.
    pub place: Place,
    /// What this node is called.
    pub node: String,
    /// What the group is called at the daemon.
    pub group: String,
    /// The daemon that carries the group.
    pub daemon: DaemonConfig,
    /// The secret that all members share, if they have one.
    pub key: Option<Secret>,
    /// The file that it stands in.
    pub key_file: Option<PathBuf>,
}

/// A group-communication daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaemonConfig {
    /// Spread, at this address.
    Spread(Address),
    /// corosync, the one of this machine.
    Corosync,
    /// None: a group of one.
    Loopback,
}

impl fmt::Display for DaemonConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spread(address) => write!(f, "spread at {address}"),
            Self::Corosync => f.write_str("corosync"),
            Self::Loopback => f.write_str("no daemon"),
        }
    }
}

/// What must not be seen in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The bytes
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

pub(super) fn fill(
    config: &mut Config,
    section: Section,
    around: &dyn Surroundings,
) -> Result<(), ConfigError> {
    let place = section.place.clone();
    let mut items = Items::new(section)?;
    let mut key = None;
    let node = items.required("node", node_name)?;
    let group = items.required("group", group_name)?;
    let daemon = items.required("daemon", daemon)?;
    let key_file = items.optional("key-file", |value| {
        let path = path(value, around)?;
        key = Some(read_key(&path, around)?);
        Ok(path)
    })?;
    items.finish()?;
    config.standby = Some(StandbyConfig {
        place,
        node,
        group,
        daemon,
        key,
        key_file,
    });
    Ok(())
}

/// Spread has ten characters for it.
fn node_name(value: &str) -> Result<String, &'static str> {
    name(value, 10).ok_or("a name of 1 to 10 letters, digits, '-', '_' and '.'")
}

/// Spread has 31 characters for it.
fn group_name(value: &str) -> Result<String, &'static str> {
    name(value, 31).ok_or("a name of 1 to 31 letters, digits, '-', '_' and '.'")
}

fn name(value: &str, len_max: usize) -> Option<String> {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_name = (1..=len_max).contains(&value.len()) && value.bytes().all(is_usual);
    is_name.then(|| value.to_owned())
}

const DAEMON: &str =
    "a daemon (spread PORT@HOST, spread PATH of a Unix socket, corosync, or loopback)";

fn daemon(value: &str) -> Result<DaemonConfig, &'static str> {
    let mut words = value.split_whitespace();
    let daemon = match (words.next(), words.next()) {
        (Some("corosync"), None) => DaemonConfig::Corosync,
        (Some("loopback"), None) => DaemonConfig::Loopback,
        (Some("spread"), Some(address)) => DaemonConfig::Spread(spread_address(address)?),
        _ => return Err(DAEMON),
    };
    match words.next() {
        None => Ok(daemon),
        Some(_) => Err(DAEMON),
    }
}

/// As programs of Spread's have it: `4803@host` by TCP; a port alone is the daemon's Unix socket
/// in /tmp, and a path is a Unix socket elsewhere.
fn spread_address(value: &str) -> Result<Address, &'static str> {
    let port = |port: &str| match port.parse() {
        Ok(0) | Err(_) => Err(DAEMON),
        Ok(port) => Ok(port),
    };
    if value.contains('/') {
        return Ok(Address::Unix(PathBuf::from(value)));
    }
    match value.split_once('@') {
        Some((number, host)) if !host.is_empty() => Ok(Address::Tcp {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port(number)?,
        }),
        Some(_) => Err(DAEMON),
        None => Ok(Address::Unix(format!("/tmp/{}", port(value)?).into())),
    }
}

/// Characters of a key at least: what `openssl rand -base64 12` gives.
const KEY_LEN_MIN: usize = 16;

/// The first line of the file.
fn read_key(path: &std::path::Path, around: &dyn Surroundings) -> Result<Secret, &'static str> {
    let text = around.read(path).map_err(|_| "a file that can be read")?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.len() < KEY_LEN_MIN {
        return Err("a file with a key of at least 16 characters in its first line");
    }
    Ok(Secret(line.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Files;
    use super::*;
    use crate::args::Args;

    fn config(lines: &str) -> Result<StandbyConfig, String> {
        let text = format!(
            "<zeo>\naddress 8100\n</zeo>\n<mappingstorage>\n</mappingstorage>\n\
             <standby>\n{lines}\n</standby>\n"
        );
        let files = Files::new(&[
            ("zeo.conf", text.as_str()),
            ("group.key", "0123456789abcdef\n"),
            ("short.key", "0123456789\n"),
        ]);
        let args = Args {
            configure: Some("zeo.conf".into()),
            ..Args::default()
        };
        let config = super::super::read(&args, &files).map_err(|error| error.to_string())?;
        Ok(config.standby.unwrap())
    }

    fn daemon_of(value: &str) -> Result<DaemonConfig, String> {
        config(&format!("node a\ngroup g\ndaemon {value}")).map(|standby| standby.daemon)
    }

    #[test]
    fn a_group_has_a_node_a_name_and_a_daemon() {
        let read = config("node alpha\ngroup plone\ndaemon corosync\nkey-file group.key").unwrap();
        assert_eq!((&read.node[..], &read.group[..]), ("alpha", "plone"));
        assert_eq!(read.daemon, DaemonConfig::Corosync);
        assert_eq!(read.key.as_ref().unwrap().bytes(), b"0123456789abcdef");
        assert!(!format!("{read:?}").contains("0123"));
    }

    #[test]
    fn daemons_are_named_as_programs_of_spread_do() {
        let tcp = |host: &str, port| {
            Ok(DaemonConfig::Spread(Address::Tcp {
                host: host.to_owned(),
                port,
            }))
        };
        let unix = |path: &str| Ok(DaemonConfig::Spread(Address::Unix(path.into())));
        assert_eq!(daemon_of("spread 4803@localhost"), tcp("localhost", 4803));
        assert_eq!(daemon_of("spread 4803@[::1]"), tcp("::1", 4803));
        assert_eq!(daemon_of("spread 4803"), unix("/tmp/4803"));
        assert_eq!(daemon_of("spread /run/spread"), unix("/run/spread"));
        assert_eq!(daemon_of("loopback"), Ok(DaemonConfig::Loopback));
        for wrong in [
            "spread",
            "spread 0@a",
            "spread 4803@",
            "spread a@b",
            "corosync x",
            "zeo",
        ] {
            let error = daemon_of(wrong).unwrap_err();
            assert!(error.contains("is not a daemon"), "{error}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (lines, expected) in [
            (
                "group g\ndaemon corosync",
                "zeo.conf:6: <standby> needs a key 'node'",
            ),
            (
                "node a-long-name\ngroup g\ndaemon corosync",
                "zeo.conf:7: node: 'a-long-name' is",
            ),
            (
                "node a b\ngroup g\ndaemon corosync",
                "zeo.conf:7: node: 'a b' is not a name of",
            ),
            (
                "node a\ngroup g\ndaemon corosync\nkey-file no.key",
                "zeo.conf:10: key-file: 'no.key' is not a file that can be read",
            ),
            (
                "node a\ngroup g\ndaemon corosync\nkey-file short.key",
                "zeo.conf:10: key-file: 'short.key' is not a file with a key of at least",
            ),
            (
                "node a\ngroup g\ndaemon corosync\nvoters a b c",
                "zeo.conf:10: unknown key 'voters' in <standby>",
            ),
        ] {
            let error = config(lines).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
