//! The section `<standby>`: the group that the server is a member of, and its part in it.

use core::net::IpAddr;
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::schema::Items;
use super::values::{
    address, addresses, byte_size, command, name_of, path, reachable, short_interval, tcp_address,
};
use super::zconfig::{Key, Section};
use super::{Address, Config, ConfigError, Place, Problem, SslConfig, StorageKind, Surroundings};
use crate::ids::NodeId;
use crate::limits::{
    JOURNAL_WINDOW_LEN_DEFAULT, LEASE_DEFAULT_COROSYNC, LEASE_DEFAULT_SPREAD, LEASE_MAX, LEASE_MIN,
    RING_BODY_LEN_DEFAULT, RING_BODY_LEN_MAX, SITE_LEN_MAX, STORAGE_NAME_LEN_MAX,
    UNIX_PATH_LEN_MAX, VOTERS_CONFIGURED_MAX, WITNESSES_MAX,
};

/// The section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyConfig {
    /// Where it stands, for complaints.
    pub place: Place,
    /// What this node is called.
    pub node: NodeId,
    /// What the group is called at the daemon.
    pub group: String,
    /// The daemon that carries the group.
    pub daemon: DaemonConfig,
    /// The secret that all members share, if they have one.
    pub key: Option<Secret>,
    /// The file that it stands in.
    pub key_file: Option<PathBuf>,
    /// Who is counted in a new database, in the order of the file: an odd number,
    /// or two beside an arbiter. Empty if this
    /// node is to found none, and waits until it is made a member.
    pub voters: Vec<NodeId>,
    /// Who decides between two voters in a new database.
    pub arbiter: Option<NodeId>,
    /// What this node is for.
    pub role: NodeRole,
    /// Where it is.
    pub site: String,
    /// Who has more is preferred as primary; who has none never takes over by itself.
    pub priority: u32,
    /// Where clients connect that only read.
    pub read_addresses: Vec<Address>,
    /// Where other nodes connect, with a host and a port. Without a daemon there may be none.
    pub peer_address: Option<Address>,
    /// Where status is asked for by HTTP: of TCP.
    pub admin_address: Option<Address>,
    /// The Unix socket where commands are taken.
    pub admin_socket: PathBuf,
    /// The directory that backups may be written to, if any may.
    pub backup_directory: Option<PathBuf>,
    /// The directory of the journal.
    pub journal: PathBuf,
    /// Bytes of the journal that are kept for nodes that come back.
    pub journal_len: u64,
    /// How long a primary is believed to be there without a sign of life.
    pub lease: Duration,
    /// Bytes per second that are sent to other nodes outside of the group; `None` for as many as
    /// there are.
    pub bulk_rate: Option<u64>,
    /// Bytes of the body of a transaction up to which it goes through the group.
    pub ring_body_len_max: u64,
    /// A command of the shell that is run when this node becomes primary.
    pub on_promote: Option<String>,
    /// A command of the shell that is run when it is primary no more.
    pub on_demote: Option<String>,
    /// If this node needs a copy of the database, the newest revisions are enough.
    pub copies_newest_only: bool,
    /// Addresses of TCP that tell whether this node is cut off; port 0 if none was named.
    pub witnesses: Vec<Address>,
    /// How connections with other nodes are encrypted, if they are.
    pub ssl: Option<SslConfig>,
}

/// What a node is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeRole {
    /// Has the data, and may be counted and be primary.
    #[default]
    Data,
    /// Has the data, and is never counted.
    Observer,
    /// Decides between two that have the data, and has none.
    Arbiter,
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
    let (section, witnesses) = take_witnesses(section)?;
    let mut items = Items::new(section)?;
    let ssl = items.take_ssl(around)?;
    let mut key = None;
    let node = items.required("node", node_name)?;
    let group = items.required("group", group_name)?;
    let daemon = items.required("daemon", daemon)?;
    let key_file = items.optional("key-file", |value| {
        let path = path(value, around)?;
        key = Some(read_key(&path, around)?);
        Ok::<_, Cow<'static, str>>(path)
    })?;
    let role = items.optional("role", role)?.unwrap_or_default();
    let arbiter = items.optional("arbiter", |value| arbiter(value, node, role))?;
    let voters = items.optional("voters", |value| voters(value, node, role, arbiter))?;
    if arbiter.is_some() && voters.is_none() {
        let why =
            "arbiter: decides between two voters of a new database, which 'voters' has to name";
        return Err(place.refuse(Problem::Unsupported(why)));
    }
    items.optional("commit", commit)?;
    let journal = items.optional("journal", |value| path(value, around))?;
    let admin_socket = items.optional("admin-socket", |value| path(value, around))?;
    let standby = StandbyConfig {
        place,
        node,
        group,
        key,
        key_file,
        voters: voters.unwrap_or_default(),
        arbiter,
        role,
        site: items.optional("site", site)?.unwrap_or_else(site_default),
        priority: items.optional("priority", priority)?.unwrap_or(10),
        read_addresses: items
            .optional("read-address", addresses)?
            .unwrap_or_default(),
        peer_address: match daemon {
            DaemonConfig::Loopback => items.optional("peer-address", reachable)?,
            _ => Some(items.required("peer-address", reachable)?),
        },
        admin_address: items.optional("admin-address", tcp_address)?,
        admin_socket: admin_socket.unwrap_or_default(),
        backup_directory: items.optional("backup-directory", |value| path(value, around))?,
        journal: journal.unwrap_or_default(),
        journal_len: items
            .optional("journal-size", journal_len)?
            .unwrap_or(JOURNAL_WINDOW_LEN_DEFAULT),
        lease: items.optional("lease", lease)?.unwrap_or(match daemon {
            DaemonConfig::Corosync => LEASE_DEFAULT_COROSYNC,
            _ => LEASE_DEFAULT_SPREAD,
        }),
        bulk_rate: items
            .optional("bulk-rate", byte_size)?
            .filter(|rate| *rate > 0),
        ring_body_len_max: items
            .optional("ring-body-max", ring_body_len)?
            .unwrap_or(RING_BODY_LEN_DEFAULT),
        on_promote: items.optional("on-promote", command)?,
        on_demote: items.optional("on-demote", command)?,
        copies_newest_only: items.optional("copies", copies)?.unwrap_or_default(),
        witnesses,
        ssl,
        daemon,
    };
    items.finish()?;
    config.standby = Some(standby);
    Ok(())
}

/// Checks what the file says elsewhere against it. `zeo` is where `<zeo>` stands, if it does, and
/// `storages` where each storage does.
pub(super) fn check(
    config: &Config,
    zeo: Option<&Place>,
    storages: &[Place],
) -> Result<(), ConfigError> {
    let Some(standby) = &config.standby else {
        return Ok(());
    };
    let refuse = |place: &Place, why| Err(place.refuse(Problem::Unsupported(why)));
    if standby.role == NodeRole::Arbiter {
        // What it would serve there could only be old.
        return match zeo.or(storages.first()) {
            Some(place) => refuse(place, "an arbiter has no data, and serves no clients"),
            None => Ok(()),
        };
    }
    if let (true, Some(place)) = (config.read_only, zeo) {
        return refuse(
            place,
            "read-only: a node of <standby> writes what the primary does",
        );
    }
    for (storage, place) in config.storages.iter().zip(storages) {
        if storage.name.len() > STORAGE_NAME_LEN_MAX {
            return refuse(
                place,
                "a storage of <standby> has a name of at most 255 bytes",
            );
        }
        match &storage.kind {
            StorageKind::Memory => {
                return refuse(place, "<mappingstorage> has no file, which <standby> needs");
            }
            StorageKind::File(file) if file.read_only => {
                let why = "read-only: a storage of <standby> gets what the primary writes";
                return refuse(place, why);
            }
            StorageKind::File(file) if file.create => {
                let why = "create: a storage of <standby> is not emptied at each start";
                return refuse(place, why);
            }
            StorageKind::File(_) => {}
        }
    }
    Ok(())
}

/// The addresses of all keys `witness`, of which there may be several, and the section without
/// them.
fn take_witnesses(mut section: Section) -> Result<(Section, Vec<Address>), ConfigError> {
    let (named, others) = std::mem::take(&mut section.keys)
        .into_iter()
        .partition(|key| key.name == "witness");
    section.keys = others;
    let named: Vec<Key> = named;
    let mut witnesses: Vec<Address> = Vec::new();
    for key in named {
        let found = witnesses_of(&key.value).and_then(|more| {
            let is_new = |it: &Address| !witnesses.contains(it);
            match witnesses.len() + more.len() <= WITNESSES_MAX && more.iter().all(is_new) {
                true => Ok(more),
                false => Err("one of at most 8 different addresses"),
            }
        });
        match found {
            Ok(more) => witnesses.extend(more),
            Err(expected) => {
                let Key { name, value, place } = key;
                return Err(place.refuse(Problem::BadValue {
                    key: name,
                    value,
                    expected: expected.into(),
                }));
            }
        }
    }
    Ok((section, witnesses))
}

/// Others' addresses: a host, with a port or without.
fn witnesses_of(value: &str) -> Result<Vec<Address>, &'static str> {
    const EXPECTED: &str = "an address of another machine (HOST or HOST:PORT)";
    let words: Vec<&str> = value.split_whitespace().collect();
    let witness = |word: &&str| match address(word) {
        Ok(Address::Tcp { host, port }) => {
            let is_wildcard = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
            (!host.is_empty() && !is_wildcard).then_some(Address::Tcp { host, port })
        }
        _ => None,
    };
    let witnesses: Option<Vec<Address>> = words.iter().map(witness).collect();
    witnesses.filter(|it| !it.is_empty()).ok_or(EXPECTED)
}

/// Fills in what follows from the rest, when the command line has had its word, and checks it.
pub(super) fn complete(config: &mut Config) -> Result<(), ConfigError> {
    let Some(standby) = &mut config.standby else {
        return Ok(());
    };
    let place = standby.place.clone();
    let wrong = |key: &str, value: String, expected: &'static str| {
        let key = key.to_owned();
        Err(place.refuse(Problem::BadValue {
            key,
            value,
            expected: expected.into(),
        }))
    };
    if standby.daemon == DaemonConfig::Loopback {
        // A group of one founds itself.
        if standby.role != NodeRole::Data || standby.voters.iter().any(|it| *it != standby.node) {
            let why = "loopback is a group of this node alone, with its data and without others";
            return Err(place.refuse(Problem::Unsupported(why)));
        }
        standby.voters = vec![standby.node];
    }
    if standby.journal.as_os_str().is_empty() {
        let first = config
            .storages
            .iter()
            .find_map(|storage| match &storage.kind {
                StorageKind::File(file) => Some(&file.path),
                StorageKind::Memory => None,
            });
        let Some(first) = first else {
            let section = "standby".to_owned();
            let key = "journal";
            return Err(place.refuse(Problem::MissingKey { key, section }));
        };
        standby.journal = first.parent().unwrap_or(Path::new("")).join("standby");
    }
    if standby.admin_socket.as_os_str().is_empty() {
        standby.admin_socket = standby.journal.join("admin.sock");
    }
    if standby.admin_socket.as_os_str().len() > UNIX_PATH_LEN_MAX {
        let path = standby.admin_socket.display().to_string();
        return wrong("admin-socket", path, "a path of at most 107 bytes");
    }
    let mut seen: Vec<&Address> = config.addresses.iter().collect();
    let ours = standby.read_addresses.iter().map(|it| ("read-address", it));
    let ours = ours
        .chain(standby.peer_address.iter().map(|it| ("peer-address", it)))
        .chain(standby.admin_address.iter().map(|it| ("admin-address", it)));
    for (key, address) in ours {
        // Any port is another one each time.
        let is_any = matches!(address, Address::Tcp { port: 0, .. });
        if !is_any && seen.contains(&address) {
            return wrong(key, address.to_string(), "an address that nothing else has");
        }
        seen.push(address);
    }
    Ok(())
}

/// Spread has ten characters for it.
fn node_name(value: &str) -> Result<NodeId, &'static str> {
    NodeId::new(value).ok_or("a name of 1 to 10 letters, digits, '-', '_' and '.'")
}

/// Spread has 31 characters for it.
fn group_name(value: &str) -> Result<String, &'static str> {
    name_of(value, 31).ok_or("a name of 1 to 31 letters, digits, '-', '_' and '.'")
}

fn site(value: &str) -> Result<String, &'static str> {
    name_of(value, SITE_LEN_MAX).ok_or("a name of 1 to 40 letters, digits, '-', '_' and '.'")
}

/// Where nodes are if nobody says: at one place.
fn site_default() -> String {
    "main".to_owned()
}

fn role(value: &str) -> Result<NodeRole, &'static str> {
    match value.to_lowercase().as_str() {
        "data" => Ok(NodeRole::Data),
        "observer" => Ok(NodeRole::Observer),
        "arbiter" => Ok(NodeRole::Arbiter),
        _ => Err("data, observer or arbiter"),
    }
}

/// Who decides between two voters of a new database.
fn arbiter(value: &str, node: NodeId, role: NodeRole) -> Result<NodeId, &'static str> {
    let name = node_name(value)?;
    match (name == node, role) {
        (true, NodeRole::Data | NodeRole::Observer) => {
            Err("another node (this one has data, and no role arbiter)")
        }
        (false, NodeRole::Arbiter) => Err("this node, whose role is arbiter"),
        _ => Ok(name),
    }
}

/// Who is counted in a new database.
fn voters(
    value: &str,
    node: NodeId,
    role: NodeRole,
    arbiter: Option<NodeId>,
) -> Result<Vec<NodeId>, &'static str> {
    let names: Option<Vec<NodeId>> = value.split_whitespace().map(NodeId::new).collect();
    let names = names.ok_or("a list of node names (1 to 10 letters, digits, '-', '_' and '.')")?;
    if names.is_empty() {
        return Err("a list of node names (it names no node)");
    }
    if (1..names.len()).any(|at| names[..at].contains(&names[at])) {
        return Err("a list in which each node is named once");
    }
    if arbiter.is_some_and(|arbiter| names.contains(&arbiter)) {
        return Err("a list without the arbiter (voters have the data)");
    }
    match (role, names.contains(&node)) {
        (NodeRole::Data, false) => {
            return Err(
                "a list with this node in it (one that is not counted has role observer, \
                        or no voters if it is to be added later)",
            );
        }
        (NodeRole::Observer, true) => return Err("a list without this node, an observer"),
        (NodeRole::Arbiter, true) => {
            return Err("a list without this node, an arbiter (voters have the data)");
        }
        _ => {}
    }
    match names.len() {
        2 if arbiter.is_some() => Ok(names),
        _ if arbiter.is_some() => Err("a list of two nodes (an arbiter decides between two)"),
        len if len > VOTERS_CONFIGURED_MAX => {
            Err("a list of 1, 3, 5 or 7 nodes (others can be observers)")
        }
        len if len % 2 == 0 => Err(
            "an odd number of nodes: of an even number no more may fail \
             than of one less. Beside two, 'arbiter' names a node without data that decides",
        ),
        _ => Ok(names),
    }
}

/// What a transaction waits for.
fn commit(value: &str) -> Result<(), &'static str> {
    match value.to_lowercase().as_str() {
        "quorum" => Ok(()),
        "async" | "memory-quorum" => Err("offered by this version (quorum is)"),
        _ => Err("a way to commit (quorum)"),
    }
}

fn priority(value: &str) -> Result<u32, &'static str> {
    value.parse().map_err(|_| "a whole number from zero")
}

/// Bytes of a journal that is of use: it has more than one segment, or a transaction at least.
const JOURNAL_LEN_MIN: u64 = 1 << 20;

fn journal_len(value: &str) -> Result<u64, &'static str> {
    let expected = "a number of bytes from 1MB (or with a suffix KB, MB or GB)";
    match byte_size(value) {
        Ok(len) if len >= JOURNAL_LEN_MIN => Ok(len),
        _ => Err(expected),
    }
}

fn lease(value: &str) -> Result<Duration, &'static str> {
    let lease = short_interval(value).filter(|it| (LEASE_MIN..=LEASE_MAX).contains(it));
    lease.ok_or("a time from 500ms to 60s (a whole number with a suffix ms, s or m)")
}

fn ring_body_len(value: &str) -> Result<u64, &'static str> {
    match byte_size(value) {
        Ok(len) if len <= RING_BODY_LEN_MAX => Ok(len),
        _ => Err("a number of bytes up to 6MB (or with a suffix KB or MB)"),
    }
}

/// Whether the newest revisions are enough.
fn copies(value: &str) -> Result<bool, &'static str> {
    match value.to_lowercase().as_str() {
        "full" => Ok(false),
        "newest" => Ok(true),
        _ => Err("full or newest"),
    }
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
fn read_key(path: &Path, around: &dyn Surroundings) -> Result<Secret, Cow<'static, str>> {
    let text = around.read(path);
    let text = text.map_err(|error| format!("a file that can be read: {error}"))?;
    let line = text.lines().next().unwrap_or_default().trim();
    if line.len() < KEY_LEN_MIN {
        return Err("a file with a key of at least 16 characters in its first line".into());
    }
    Ok(Secret(line.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Files;
    use super::*;
    use crate::args::Args;

    fn whole(zeo: &str, storages: &str, lines: &str) -> Result<Config, String> {
        let text = format!("{zeo}{storages}<standby>\n{lines}\n</standby>\n");
        let files = Files::new(&[
            ("zeo.conf", text.as_str()),
            ("group.key", "0123456789abcdef\n"),
            ("short.key", "0123456789\n"),
        ]);
        let args = Args {
            configure: Some("zeo.conf".into()),
            ..Args::default()
        };
        super::super::read(&args, &files).map_err(|error| error.to_string())
    }

    const ZEO: &str = "<zeo>\naddress 8100\n</zeo>\n";
    const STORAGE: &str = "<filestorage>\npath var/Data.fs\n</filestorage>\n";
    /// What a node has to say; it begins in line 8.
    const LEAST: &str = "node a\ngroup g\ndaemon corosync\npeer-address a:1";

    fn config(lines: &str) -> Result<StandbyConfig, String> {
        whole(ZEO, STORAGE, lines).map(|config| config.standby.unwrap())
    }

    /// With what a node has to say, and these lines, which begin in line 12.
    fn with(lines: &str) -> Result<StandbyConfig, String> {
        config(&format!("{LEAST}\n{lines}"))
    }

    fn daemon_of(value: &str) -> Result<DaemonConfig, String> {
        let lines = format!("node a\ngroup g\npeer-address a:1\ndaemon {value}");
        config(&lines).map(|standby| standby.daemon)
    }

    fn nodes(names: &[&str]) -> Vec<NodeId> {
        names
            .iter()
            .map(|name| NodeId::new(name).unwrap())
            .collect()
    }

    #[test]
    fn a_group_has_a_node_a_name_and_a_daemon() {
        let read = with("key-file group.key").unwrap();
        assert_eq!((read.node.as_str(), &read.group[..]), ("a", "g"));
        assert_eq!(read.daemon, DaemonConfig::Corosync);
        assert_eq!(read.key.as_ref().unwrap().bytes(), b"0123456789abcdef");
        assert!(!format!("{read:?}").contains("0123"));
        assert_eq!(read.journal, Path::new("var/standby"));
        assert_eq!(read.admin_socket, Path::new("var/standby/admin.sock"));
        assert!(read.voters.is_empty() && read.role == NodeRole::Data);
        let config = whole(ZEO, STORAGE, LEAST).unwrap();
        assert_eq!(config.invalidation_queue_size, 10_000);
    }

    #[test]
    fn everything_can_be_said() {
        let read = with(
            "voters b a c\nrole DATA\nsite paris\npriority 0\nread-address 8101 ./r.sock\n\
             admin-address 8103\nadmin-socket a.sock\njournal /srv/j\njournal-size 2MB\n\
             commit quorum\nlease 500ms\nbulk-rate 10MB\nring-body-max 64KB\n\
             on-promote ip addr add 10.0.0.9/24 dev eth0\non-demote false\n\
             copies newest",
        );
        let read = read.unwrap();
        assert_eq!(read.voters, nodes(&["b", "a", "c"]));
        assert_eq!((&read.site[..], read.priority), ("paris", 0));
        assert_eq!(read.read_addresses.len(), 2);
        assert_eq!(read.admin_socket, Path::new("a.sock"));
        assert_eq!(read.journal, Path::new("/srv/j"));
        assert_eq!(read.journal_len, 2 << 20);
        assert_eq!(read.lease, Duration::from_millis(500));
        assert_eq!(
            (read.bulk_rate, read.ring_body_len_max),
            (Some(10 << 20), 64 << 10)
        );
        assert_eq!(read.on_promote.unwrap(), "ip addr add 10.0.0.9/24 dev eth0");
        assert!(read.copies_newest_only);
        assert_eq!(with("bulk-rate 0").unwrap().bulk_rate, None);
    }

    #[test]
    fn witnesses_are_named_in_one_line_or_in_several() {
        let read = with("witness 10.0.0.254 [fe80::1]:53\npriority 1\nwitness GW:22").unwrap();
        let shown: Vec<String> = read.witnesses.iter().map(Address::to_string).collect();
        assert_eq!(shown, ["10.0.0.254:0", "[fe80::1]:53", "gw:22"]);
        assert_eq!(with("priority 1").unwrap().witnesses, []);
        let expected = "is not an address of another machine (HOST or HOST:PORT)";
        for wrong in ["/tmp/socket", "7", "0.0.0.0:7", "a b :1", "[::]:1"] {
            let error = with(&format!("witness {wrong}")).unwrap_err();
            assert!(error.starts_with("zeo.conf:12: witness: "), "{error}");
            assert!(error.ends_with(expected), "{error}");
        }
        let error = with("witness a\nwitness b a").unwrap_err();
        assert!(error.starts_with("zeo.conf:13: witness: 'b a'"), "{error}");
        let many: Vec<String> = (0..=WITNESSES_MAX).map(|n| format!("h{n}")).collect();
        assert!(with(&format!("witness {}", many.join(" "))).is_err());
        assert!(with(&format!("witness {}", many[1..].join(" "))).is_ok());
    }

    #[test]
    fn what_goes_between_nodes_may_be_encrypted() {
        let ssl = "<ssl>\ncertificate a.pem\nauthenticate ca.pem\n</ssl>";
        let read = with(ssl).unwrap().ssl.unwrap();
        assert_eq!(read.certificate, Path::new("a.pem"));
        assert_eq!(read.place.to_string(), "zeo.conf:12");
        assert_eq!(with("priority 1").unwrap().ssl, None);
        let error = with("<ssl>\ncertificate a.pem\n</ssl>").unwrap_err();
        assert_eq!(error, "zeo.conf:12: <ssl> needs a key 'authenticate'");
        let error = with("<tls>\n</tls>").unwrap_err();
        assert_eq!(error, "zeo.conf:12: unknown section <tls> in <standby>");
    }

    #[test]
    fn a_group_of_one_needs_no_more_than_its_name() {
        let alone = config("node a\ngroup g\ndaemon loopback").unwrap();
        assert_eq!((alone.voters, alone.peer_address), (nodes(&["a"]), None));
        for lines in ["role observer", "voters a b c"] {
            let error = config(&format!("node a\ngroup g\ndaemon loopback\n{lines}"));
            let error = error.unwrap_err();
            assert!(
                error.starts_with("zeo.conf:7: loopback is a group of"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_arbiter_has_no_data_and_no_clients() {
        let least = format!("{LEAST}\nrole arbiter");
        let lines = format!("{least}\njournal j\nvoters b c d");
        let config = whole("", "", &lines).unwrap();
        assert!(config.is_arbiter() && config.addresses.is_empty());
        for (zeo, storages, lines, expected) in [
            (ZEO, "", &lines, "zeo.conf:1: an arbiter has no data"),
            ("", STORAGE, &lines, "zeo.conf:1: an arbiter has no data"),
            (
                "",
                "",
                &least,
                "zeo.conf:1: <standby> needs a key 'journal'",
            ),
        ] {
            let error = whole(zeo, storages, lines).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let args = Args {
            configure: Some("zeo.conf".into()),
            filenames: vec!["A.fs".into()],
            ..Args::default()
        };
        let text = format!("<standby>\n{lines}\n</standby>");
        let files = Files::new(&[("zeo.conf", text.as_str())]);
        let error = super::super::read(&args, &files).unwrap_err().to_string();
        assert!(error.contains("neither -a nor -f"), "{error}");
    }

    #[test]
    fn storages_of_a_node_are_files_that_are_written() {
        let long = format!(
            "<filestorage {}>\npath A.fs\n</filestorage>\n",
            "n".repeat(256)
        );
        let with =
            |key: &str| format!("{STORAGE}<filestorage x>\npath A.fs\n{key}\n</filestorage>\n");
        for (storages, expected) in [
            (
                "<mappingstorage/>\n".to_owned(),
                "zeo.conf:4: <mappingstorage> has no",
            ),
            (with("create true"), "zeo.conf:7: create: a"),
            (with("read-only true"), "zeo.conf:7: read-only: a"),
            (
                long,
                "zeo.conf:4: a storage of <standby> has a name of at most 255",
            ),
        ] {
            let error = whole(ZEO, &storages, LEAST).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let zeo = "<zeo>\naddress 1\nread-only true\n</zeo>\n";
        let error = whole(zeo, STORAGE, LEAST).unwrap_err();
        assert!(
            error.starts_with("zeo.conf:1: read-only: a node"),
            "{error}"
        );
    }

    #[test]
    fn voters_are_an_odd_number_of_different_nodes() {
        for names in ["a", "c b a", "a b c d e", "a b c d e f g"] {
            assert!(with(&format!("voters {names}")).is_ok(), "{names}");
        }
        for (lines, expected) in [
            ("voters a b", "'a b' is not an odd number of nodes"),
            ("voters a b", "'arbiter' names a node"),
            ("voters a b a", "each node is named once"),
            ("voters b c d", "a list with this node in it"),
            (
                "voters",
                "'' is not a list of node names (it names no node)",
            ),
            ("voters a b long-name-of", "a list of node names"),
            ("voters a b c d e f g h i", "1, 3, 5 or 7 nodes"),
            (
                "role observer\nvoters a b c",
                "a list without this node, an observer",
            ),
        ] {
            let error = with(lines).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(": voters: '"), "{error}");
        }
        assert!(with("role observer\nvoters b c d").is_ok());
    }

    #[test]
    fn an_arbiter_is_named_beside_two_voters() {
        let read = with("arbiter x\nvoters a b").unwrap();
        assert_eq!(
            (read.voters, read.arbiter),
            (nodes(&["a", "b"]), NodeId::new("x"))
        );
        assert_eq!(with("voters a b c").unwrap().arbiter, None);
        let its_own = format!("{LEAST}\nrole arbiter\njournal j\narbiter a\nvoters b c");
        let its_own = whole("", "", &its_own).unwrap().standby.unwrap();
        assert_eq!(its_own.arbiter, Some(its_own.node));
        for (lines, expected) in [
            ("arbiter x", "arbiter: decides between two voters"),
            (
                "arbiter x\nvoters a b c",
                "voters: 'a b c' is not a list of two nodes",
            ),
            (
                "arbiter x\nvoters a",
                "voters: 'a' is not a list of two nodes",
            ),
            (
                "arbiter b\nvoters a b",
                "voters: 'a b' is not a list without the arbiter",
            ),
            ("arbiter a\nvoters a b", "arbiter: 'a' is not another node"),
            (
                "arbiter a b\nvoters a b",
                "arbiter: 'a b' is not a name of 1 to 10",
            ),
            (
                "role observer\narbiter a\nvoters b c",
                "arbiter: 'a' is not another node",
            ),
        ] {
            let error = with(lines).unwrap_err();
            assert!(error.contains(expected), "{lines}: {error}");
        }
        let other = format!("{LEAST}\nrole arbiter\njournal j\narbiter x\nvoters b c");
        let error = whole("", "", &other).unwrap_err();
        assert!(error.contains("arbiter: 'x' is not this node"), "{error}");
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
                "zeo.conf:7: <standby> needs a key 'node'",
            ),
            (
                "node a-long-name\ngroup g\ndaemon corosync",
                "zeo.conf:8: node: 'a-long-name' is",
            ),
            (
                "node a b\ngroup g\ndaemon corosync",
                "zeo.conf:8: node: 'a b' is not a name of",
            ),
            (
                "node a\ngroup g\ndaemon corosync",
                "zeo.conf:7: <standby> needs a key 'peer-address'",
            ),
        ] {
            let error = config(lines).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let long = format!("admin-socket {}", "s".repeat(108));
        for (line, expected) in [
            (
                "key-file no.key",
                "key-file: 'no.key' is not a file that can be read: entity not found",
            ),
            (
                "key-file short.key",
                "key-file: 'short.key' is not a file with a key of at least",
            ),
            ("banana 1", "unknown key 'banana' in <standby>"),
            (
                "role master",
                "role: 'master' is not data, observer or arbiter",
            ),
            ("site two words", "site: 'two words' is not a name"),
            (
                "priority -1",
                "priority: '-1' is not a whole number from zero",
            ),
            (
                "commit async",
                "commit: 'async' is not offered by this version",
            ),
            (
                "commit memory-quorum",
                "commit: 'memory-quorum' is not offered by this version",
            ),
            ("commit never", "commit: 'never' is not a way to commit"),
            (
                "lease 100ms",
                "lease: '100ms' is not a time from 500ms to 60s",
            ),
            ("lease 2m", "lease: '2m' is not a time from 500ms to 60s"),
            (
                "journal-size 1KB",
                "journal-size: '1KB' is not a number of bytes from 1MB",
            ),
            (
                "journal no/such/dir",
                "journal: 'no/such/dir' is not a path in an existing",
            ),
            (
                "ring-body-max 7MB",
                "ring-body-max: '7MB' is not a number of bytes up to 6MB",
            ),
            (
                "admin-address ./a.sock",
                "admin-address: './a.sock' is not an address of TCP",
            ),
            ("copies some", "copies: 'some' is not full or newest"),
            ("on-promote", "on-promote: '' is not a command of the shell"),
            (&long, "admin-socket: 'sss"),
        ] {
            let error = with(line).unwrap_err();
            let at = if line == long { 7 } else { 12 };
            assert!(
                error.starts_with(&format!("zeo.conf:{at}: {expected}")),
                "{error}"
            );
        }
    }

    #[test]
    fn an_address_has_one_use_and_others_reach_that_of_peers() {
        for (line, expected) in [
            (
                "read-address 8100",
                "zeo.conf:7: read-address: ':8100' is not an address that nothing",
            ),
            (
                "admin-address a:1",
                "zeo.conf:7: admin-address: 'a:1' is not an address that nothing",
            ),
        ] {
            let error = with(line).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(with("read-address :0\nadmin-address :0").is_ok());
        for wildcard in ["8102", "0.0.0.0:8102", "[::]:8102", "./peer.sock"] {
            let lines = format!("node a\ngroup g\ndaemon corosync\npeer-address {wildcard}");
            let error = config(&lines).unwrap_err();
            let expected = format!(
                "zeo.conf:11: peer-address: '{wildcard}' is not an address that other machines"
            );
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
