//! What the server is to do: the validated [`Config`], made of the command line and of a file in
//! the form that runzeo reads.
//!
//! `zconfig` turns the text into a tree, `values` knows the forms of single values, `schema` knows
//! which sections and keys there are. What is not known, or cannot be honoured, is an error that
//! names the file and the line; nothing is ignored in silence.
//!
//! No file is opened here. What is needed of the machine comes through [`Surroundings`].

mod follow;
mod group;
mod schema;
mod values;
mod zconfig;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use log::LevelFilter;

pub use self::group::{DaemonConfig, NodeRole, Secret, StandbyConfig};
pub use self::zconfig::SyntaxError;
use crate::args::Args;
use crate::limits::INVALIDATION_QUEUE_DEFAULT;
use crate::logging::LogConfig;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; at least one, but for an arbiter.
    pub addresses: Vec<Address>,
    /// How connections are encrypted, if they are.
    pub ssl: Option<SslConfig>,
    /// No storage is written.
    pub read_only: bool,
    /// Transactions of which the changed oids are remembered.
    pub invalidation_queue_size: usize,
    /// For how long ago invalidations are read from the file.
    pub invalidation_age: Option<Duration>,
    /// Time from a granted vote to `tpc_finish`; `None` if it is not configured.
    pub transaction_timeout: Option<Duration>,
    /// Where the process id is written while serving.
    pub pid_file: Option<PathBuf>,
    /// Conflicts go back to the client, which may resolve them.
    pub client_conflict_resolution: bool,
    /// The greeting offers msgpack instead of pickle.
    pub msgpack: bool,
    /// What a voted transaction excludes.
    pub lock_scope: LockScope,
    /// What is served; at least one, with distinct names, but for an arbiter.
    pub storages: Vec<StorageConfig>,
    /// The group that we are a member of, if there is one.
    pub standby: Option<StandbyConfig>,
    /// The servers whose storages are copied into ours, at most one for each.
    pub follow: Vec<FollowConfig>,
    /// Where log lines go.
    pub log: LogConfig,
    /// Keys of `<runner>`, which concern zeoctl alone.
    pub runner_keys: Vec<String>,
}

/// What a voted transaction excludes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockScope {
    /// Every other vote on its storage, as ZEO does.
    Storage,
    /// Votes that name one of its objects.
    #[default]
    Objects,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP
    Tcp {
        /// A name or number; empty for all addresses of the machine.
        host: String,
        /// 0 for any.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// As it is written in a configuration; the error says what it should have been.
impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        values::address(text)
    }
}

/// The section `<ssl>`: TLS on all addresses, for clients with certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SslConfig {
    /// Where the section stands, for complaints about the files.
    pub place: Place,
    /// The file with our certificate.
    pub certificate: PathBuf,
    /// The file with its key, if that is another one.
    pub key: Option<PathBuf>,
    /// What the key is encrypted by.
    pub password: Option<Password>,
    /// A file, or a directory of files, with certificates of clients or of those who signed them.
    pub authenticate: PathBuf,
}

/// Where the password of a private key comes from. It is asked for only if the key is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// The first line of a file.
    File(PathBuf),
    /// The first line that a command of the shell writes.
    Command(String),
}

/// A section `<follow>`: a storage is a copy of another server's, which is read as a client does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowConfig {
    /// Where the section stands, for complaints.
    pub place: Place,
    /// The name of the storage here.
    pub storage: String,
    /// Where the other server is, or may be: they are tried in turn.
    pub servers: Vec<Address>,
    /// What it calls its storage.
    pub source: String,
    /// How the connection is encrypted, if it is.
    pub ssl: Option<SslConfig>,
}

/// A storage to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    /// What clients call it.
    pub name: String,
    /// Where it is kept.
    pub kind: StorageKind,
}

/// Where a storage is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// `<filestorage>`
    File(FileStorageConfig),
    /// `<mappingstorage>`: in memory, and gone with the process.
    Memory,
}

/// The options of `<filestorage>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStorageConfig {
    /// The data file.
    pub path: PathBuf,
    /// Where blobs are kept, if there are any.
    pub blob_dir: Option<PathBuf>,
    /// Begin with an empty file even if there is one.
    pub create: bool,
    /// Serve what is there, and write nothing.
    pub read_only: bool,
    /// Refuse to grow beyond this many bytes.
    pub quota: Option<u64>,
    /// Packing removes objects that nothing refers to.
    pub pack_gc: bool,
    /// Packing keeps the file as it was before, as `.old`.
    pub pack_keep_old: bool,
}

impl StorageConfig {
    /// Where its blobs are, if it has any.
    fn blob_dir(&self) -> Option<&Path> {
        match &self.kind {
            StorageKind::File(file) => file.blob_dir.as_deref(),
            StorageKind::Memory => None,
        }
    }
}

impl FileStorageConfig {
    /// ZODB's defaults.
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            blob_dir: None,
            create: false,
            read_only: false,
            quota: None,
            pack_gc: true,
            pack_keep_old: true,
        }
    }
}

/// What a configuration depends on besides its text.
pub trait Surroundings {
    /// The text of a file.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// Whether there is such a directory.
    fn is_directory(&self, path: &Path) -> bool;
    /// A variable of the environment.
    fn variable(&self, name: &str) -> Option<String>;
}

/// Makes a configuration of the command line and of the file that it names, if it names one.
pub fn read(args: &Args, around: &dyn Surroundings) -> Result<Config, ConfigError> {
    let mut config = Config::new(around);
    if let Some(path) = &args.configure {
        schema::fill(&mut config, zconfig::parse(path, around)?, around)?;
    }
    override_with(&mut config, args, around)?;
    if args.is_quick_start() {
        config.addresses = vec![Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 8100,
        }];
        config.storages = vec![StorageConfig {
            name: "1".to_owned(),
            kind: StorageKind::File(FileStorageConfig::new(PathBuf::from("var/Data.fs"))),
        }];
    }
    group::complete(&mut config)?;
    follow::check(&config)?;
    if config.is_arbiter() {
        if config.addresses.is_empty() && config.storages.is_empty() {
            return Ok(config);
        }
        let why = "an arbiter has no data, and serves no clients: neither -a nor -f";
        return Err(Place::CommandLine.refuse(Problem::Unsupported(why)));
    }
    if config.addresses.is_empty() {
        return Err(Place::CommandLine.refuse(Problem::Incomplete { missing: "-a" }));
    }
    if config.storages.is_empty() {
        return Err(Place::CommandLine.refuse(Problem::Incomplete { missing: "-f" }));
    }
    Ok(config)
}

impl Config {
    /// What holds if nothing is said; without addresses and storages.
    fn new(around: &dyn Surroundings) -> Self {
        let is_set = |value: String| !value.is_empty();
        Self {
            addresses: Vec::new(),
            ssl: None,
            read_only: false,
            invalidation_queue_size: INVALIDATION_QUEUE_DEFAULT,
            invalidation_age: None,
            transaction_timeout: None,
            pid_file: instance_pid_file(around),
            client_conflict_resolution: true,
            msgpack: around.variable("ZEO_MSGPACK").is_some_and(is_set),
            lock_scope: LockScope::default(),
            storages: Vec::new(),
            standby: None,
            follow: Vec::new(),
            log: LogConfig::stderr(LevelFilter::Info),
            runner_keys: Vec::new(),
        }
    }
}

impl Config {
    /// Whether this node has no data, and no clients.
    pub fn is_arbiter(&self) -> bool {
        let standby = self.standby.as_ref();
        standby.is_some_and(|standby| standby.role == NodeRole::Arbiter)
    }
}

/// runzeo's pid file in an instance of Zope, if nothing else is said.
fn instance_pid_file(around: &dyn Surroundings) -> Option<PathBuf> {
    let home = around
        .variable("INSTANCE_HOME")
        .filter(|home| !home.is_empty())?;
    let directory = Path::new(&home).join("var");
    around
        .is_directory(&directory)
        .then(|| directory.join("ZEO.pid"))
}

/// What the command line says wins over the file.
fn override_with(
    config: &mut Config,
    args: &Args,
    around: &dyn Surroundings,
) -> Result<(), ConfigError> {
    let existing_parent = |option: &str, path: &PathBuf| {
        values::existing_parent(path.clone(), around)
            .map_err(|expected| wrong_option(option, &path.display().to_string(), expected))
    };
    if !args.addresses.is_empty() {
        let addresses = args.addresses.join(" ");
        config.addresses = values::addresses(&addresses)
            .map_err(|expected| wrong_option("--address", &addresses, expected))?;
    }
    if !args.filenames.is_empty() {
        config.storages = Vec::new();
        for (index, path) in args.filenames.iter().enumerate() {
            let path = existing_parent("--filename", path)?;
            let kind = StorageKind::File(FileStorageConfig::new(path));
            config.storages.push(StorageConfig {
                name: (index + 1).to_string(),
                kind,
            });
        }
    }
    if let Some(timeout) = &args.timeout {
        let timeout = values::positive_seconds(timeout)
            .map_err(|expected| wrong_option("--timeout", timeout, expected))?;
        config.transaction_timeout = Some(timeout);
    }
    if let Some(path) = &args.pid_file {
        config.pid_file = Some(existing_parent("--pid-file", path)?);
    }
    if args.debug {
        config.log.raise_level(LevelFilter::Debug);
    }
    Ok(())
}

fn wrong_option(option: &str, value: &str, expected: &'static str) -> ConfigError {
    Place::CommandLine.refuse(Problem::BadValue {
        key: option.to_owned(),
        value: value.to_owned(),
        expected: expected.into(),
    })
}

/// Why a configuration is refused, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the reader has to look.
    pub place: Place,
    /// What is wrong there.
    pub problem: Problem,
}

/// Where an item stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not in a file.
    CommandLine,
    /// A file as a whole.
    File(Arc<Path>),
    /// A line, counted from one.
    Line(Arc<Path>, usize),
}

impl Place {
    fn refuse(&self, problem: impl Into<Problem>) -> ConfigError {
        ConfigError {
            place: self.clone(),
            problem: problem.into(),
        }
    }
}

/// What is wrong. Section types are named without their brackets; the empty one is the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is not ZConfig.
    Syntax(SyntaxError),
    /// A key that the section does not have.
    UnknownKey {
        /// In lower case.
        key: String,
        /// The type of its section.
        section: String,
    },
    /// A key that the section needs.
    MissingKey {
        /// In lower case.
        key: &'static str,
        /// The type of its section.
        section: String,
    },
    /// A second value for a key.
    RepeatedKey {
        /// In lower case.
        key: String,
    },
    /// A value that is not of the key's type.
    BadValue {
        /// The key or option.
        key: String,
        /// As it was given.
        value: String,
        /// What it should be, to follow "is not".
        expected: Cow<'static, str>,
    },
    /// A section type that is not known there.
    UnknownSection {
        /// The type.
        section: String,
        /// The type of the section that it is in.
        within: String,
    },
    /// A section that the file needs.
    MissingSection(&'static str),
    /// A section that may be there only once.
    RepeatedSection {
        /// The type.
        section: String,
    },
    /// Two storages would keep their blobs in one directory, under names that may be the same.
    RepeatedBlobDir {
        /// The directory.
        path: PathBuf,
    },
    /// Two sections in one place have the same name; one without a name is storage 1.
    RepeatedName {
        /// In lower case.
        name: String,
    },
    /// It is understood, but not done.
    Unsupported(&'static str),
    /// The command line gives only one of address and storage.
    Incomplete {
        /// The option that lacks.
        missing: &'static str,
    },
}

impl From<SyntaxError> for Problem {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => write!(f, "command line"),
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Line(file, line) => write!(f, "{}:{line}", file.display()),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = |section: &str| match section {
            "" => String::new(),
            _ => format!(" in <{section}>"),
        };
        match self {
            Self::Syntax(error) => write!(f, "{error}"),
            Self::UnknownKey { key, section } => {
                write!(f, "unknown key '{key}'{}", within(section))
            }
            Self::MissingKey { key, section } => write!(f, "<{section}> needs a key '{key}'"),
            Self::RepeatedKey { key } => write!(f, "key '{key}' is there already"),
            Self::BadValue {
                key,
                value,
                expected,
            } => {
                write!(f, "{key}: '{value}' is not {expected}")
            }
            Self::UnknownSection {
                section,
                within: outer,
            } => {
                write!(f, "unknown section <{section}>{}", within(outer))
            }
            Self::MissingSection(section) => write!(f, "there is no {section}"),
            Self::RepeatedSection { section } => write!(f, "<{section}> is there already"),
            Self::RepeatedBlobDir { path } => {
                write!(f, "another storage has the blob-dir '{}'", path.display())
            }
            Self::RepeatedName { name } if name == "1" => {
                write!(
                    f,
                    "section name '1' is there already (a storage without a name is '1')"
                )
            }
            Self::RepeatedName { name } => write!(f, "section name '{name}' is there already"),
            Self::Unsupported(why) => write!(f, "{why}"),
            Self::Incomplete { missing } => write!(f, "without -C, {missing} is needed too"),
        }
    }
}

/// A machine of which tests say what is there.
#[cfg(test)]
mod testing {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    pub(super) struct Files {
        files: BTreeMap<PathBuf, String>,
        variables: BTreeMap<String, String>,
    }

    impl Files {
        pub(super) fn new(files: &[(&str, &str)]) -> Self {
            let files = files
                .iter()
                .map(|(path, text)| (path.into(), (*text).to_owned()));
            Self {
                files: files.collect(),
                variables: BTreeMap::new(),
            }
        }

        pub(super) fn with_variable(mut self, name: &str, value: &str) -> Self {
            self.variables.insert(name.to_owned(), value.to_owned());
            self
        }
    }

    impl Surroundings for Files {
        fn read(&self, path: &Path) -> io::Result<String> {
            self.files
                .get(path)
                .cloned()
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        /// All there are, but those called `no`.
        fn is_directory(&self, path: &Path) -> bool {
            !path.iter().any(|part| part == "no")
        }

        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).cloned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Files;
    use super::*;

    const FILE: &str =
        "<zeo>\naddress 1.2.3.4:5\n</zeo>\n<filestorage x>\npath X.fs\n</filestorage>";

    fn read_with(args: &Args) -> Result<Config, String> {
        let files = Files::new(&[("zeo.conf", FILE)]);
        read(args, &files).map_err(|error| error.to_string())
    }

    fn with_file() -> Args {
        Args {
            configure: Some("zeo.conf".into()),
            ..Args::default()
        }
    }

    fn names_and_paths(config: &Config) -> Vec<(&str, &Path)> {
        let storages = config.storages.iter();
        storages
            .map(|storage| match &storage.kind {
                StorageKind::File(file) => (storage.name.as_str(), file.path.as_path()),
                StorageKind::Memory => (storage.name.as_str(), Path::new("")),
            })
            .collect()
    }

    #[test]
    fn without_arguments_the_default_storage_is_served_locally() {
        let config = read_with(&Args::default()).unwrap();
        assert_eq!(config.addresses[0].to_string(), "127.0.0.1:8100");
        assert_eq!(names_and_paths(&config), [("1", Path::new("var/Data.fs"))]);
        assert_eq!(config.transaction_timeout, None);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let config = read_with(&with_file()).unwrap();
        assert_eq!(config.addresses[0].to_string(), "1.2.3.4:5");
        assert_eq!(names_and_paths(&config), [("x", Path::new("X.fs"))]);

        let args = Args {
            addresses: vec!["[::1]:9".to_owned(), "./zeo.sock".to_owned()],
            filenames: vec!["A.fs".into(), "B.fs".into()],
            timeout: Some("2.5".to_owned()),
            pid_file: Some("zeo.pid".into()),
            debug: true,
            ..with_file()
        };
        let config = read_with(&args).unwrap();
        let addresses: Vec<_> = config.addresses.iter().map(Address::to_string).collect();
        assert_eq!(addresses, ["[::1]:9", "./zeo.sock"]);
        assert_eq!(
            names_and_paths(&config),
            [("1", Path::new("A.fs")), ("2", Path::new("B.fs"))]
        );
        assert_eq!(
            config.transaction_timeout,
            Some(Duration::from_millis(2500))
        );
        assert_eq!(config.pid_file, Some("zeo.pid".into()));
        assert_eq!(config.log.outputs[0].level, LevelFilter::Debug);
    }

    #[test]
    fn an_address_alone_or_a_file_alone_is_not_enough() {
        let address = Args {
            addresses: vec!["8100".to_owned()],
            ..Args::default()
        };
        assert!(read_with(&address).unwrap_err().contains("-f is needed"));
        let file = Args {
            filenames: vec!["A.fs".into()],
            ..Args::default()
        };
        assert!(read_with(&file).unwrap_err().contains("-a is needed"));
    }

    #[test]
    fn a_wrong_option_is_named() {
        let args = Args {
            timeout: Some("soon".to_owned()),
            ..Args::default()
        };
        let expected = "command line: --timeout: 'soon' is not a time above zero in seconds";
        assert_eq!(read_with(&args).unwrap_err(), expected);
        let args = Args {
            filenames: vec!["no/such/Data.fs".into()],
            ..with_file()
        };
        assert!(
            read_with(&args)
                .unwrap_err()
                .contains("--filename: 'no/such/Data.fs'")
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let args = Args {
            configure: Some("missing.conf".into()),
            ..Args::default()
        };
        let expected = "missing.conf: cannot read missing.conf: entity not found";
        assert_eq!(read_with(&args).unwrap_err(), expected);
    }

    #[test]
    fn the_environment_has_defaults_of_runzeo() {
        let files = Files::new(&[]).with_variable("ZEO_MSGPACK", "1");
        let files = files.with_variable("INSTANCE_HOME", "/srv/zope");
        let config = read(&Args::default(), &files).unwrap();
        assert!(config.msgpack);
        assert_eq!(config.pid_file, Some("/srv/zope/var/ZEO.pid".into()));
        let files = Files::new(&[]).with_variable("ZEO_MSGPACK", "");
        assert!(!read(&Args::default(), &files).unwrap().msgpack);
    }
}
