//! Which sections and keys there are, and what becomes of them: the schemas of runzeo, ZODB,
//! ZConfig's logger and zdaemon, as far as they concern a server.

use std::borrow::Cow;
use std::collections::BTreeSet;

use log::LevelFilter;

use super::values::{
    addresses, boolean, byte_size, client_certificates, command, count, interval, level,
    lock_scope, old_files, path, seconds, text,
};
use super::zconfig::{Key, Section};
use super::{
    Config, ConfigError, FileStorageConfig, Password, Problem, SslConfig, StorageConfig,
    StorageKind, Surroundings, follow, group,
};
use crate::limits::INVALIDATION_QUEUE_REPLICATED;
use crate::logging::{DateFormat, LineFormat, LogConfig, LogOutput, LogTarget, Rotation};

/// Fills in what the file says.
pub(super) fn fill(
    config: &mut Config,
    root: Section,
    around: &dyn Surroundings,
) -> Result<(), ConfigError> {
    let place = root.place.clone();
    let mut file = Items::new(root)?;
    let sections = file.take_sections();
    file.finish()?;

    if sections.iter().any(|section| section.kind == "standby") {
        config.invalidation_queue_size = INVALIDATION_QUEUE_REPLICATED;
    }
    let mut seen = BTreeSet::new();
    let (mut zeo_place, mut read_only) = (None, None);
    let mut storage_places = Vec::new();
    for section in sections {
        let (kind, place) = (section.kind.clone(), section.place.clone());
        match kind.as_str() {
            "zeo" | "eventlog" | "runner" | "standby" if !seen.insert(kind.clone()) => {
                return Err(place.refuse(Problem::RepeatedSection { section: kind }));
            }
            "zeo" => {
                zeo_place = Some(place);
                read_only = zeo(config, section, around)?;
            }
            "eventlog" => config.log = eventlog(section)?,
            "standby" => group::fill(config, section, around)?,
            "follow" => follow::fill(config, section, around)?,
            "runner" => config.runner_keys = runner(section)?,
            _ => {
                let storage = storage(section, around)?;
                if config
                    .storages
                    .iter()
                    .any(|earlier| earlier.name == storage.name)
                {
                    return Err(place.refuse(Problem::RepeatedName { name: storage.name }));
                }
                if let Some(path) = storage.blob_dir()
                    && config
                        .storages
                        .iter()
                        .any(|earlier| earlier.blob_dir() == Some(path))
                {
                    let path = path.to_owned();
                    return Err(place.refuse(Problem::RepeatedBlobDir { path }));
                }
                config.storages.push(storage);
                storage_places.push(place);
            }
        }
    }
    group::check(config, zeo_place.as_ref(), &storage_places)?;
    follow::close(config, read_only)?;
    if config.is_arbiter() {
        return Ok(());
    }
    if !seen.contains("zeo") {
        return Err(place.refuse(Problem::MissingSection("<zeo>")));
    }
    if config.storages.is_empty() {
        return Err(place.refuse(Problem::MissingSection("storage, such as <filestorage>")));
    }
    Ok(())
}

/// What it says about writers, if anything, is given back.
fn zeo(
    config: &mut Config,
    section: Section,
    around: &dyn Surroundings,
) -> Result<Option<bool>, ConfigError> {
    let mut zeo = Items::new(section)?;
    config.ssl = zeo.take_ssl(around)?;
    config.addresses = zeo.required("address", addresses)?;
    let read_only = zeo.optional("read-only", boolean)?;
    config.read_only = read_only.unwrap_or(config.read_only);
    zeo.set(
        "invalidation-queue-size",
        count,
        &mut config.invalidation_queue_size,
    )?;
    config.invalidation_age = zeo.optional("invalidation-age", seconds)?;
    config.transaction_timeout = zeo.optional("transaction-timeout", interval)?;
    if let Some(path) = zeo.optional("pid-filename", or_empty(|value| path(value, around)))? {
        config.pid_file = path;
    }
    zeo.set(
        "client-conflict-resolution",
        boolean,
        &mut config.client_conflict_resolution,
    )?;
    zeo.set("msgpack", boolean, &mut config.msgpack)?;
    zeo.set("commit-lock", lock_scope, &mut config.lock_scope)?;
    zeo.finish()?;
    Ok(read_only)
}

fn ssl(section: Section, around: &dyn Surroundings) -> Result<SslConfig, ConfigError> {
    let place = section.place.clone();
    let path = |value: &str| path(value, around);
    let mut ssl = Items::new(section)?;
    let certificate = ssl.required("certificate", path)?;
    let key = ssl.optional("key", path)?;
    ssl.optional(
        "password-function",
        one_of(
            &[""],
            "empty (functions of Python cannot be called: give password-file PATH or \
             password-command COMMAND instead)",
        ),
    )?;
    let file = ssl.optional("password-file", path)?;
    let command = ssl.optional("password-command", command)?;
    let authenticate = ssl.required("authenticate", |value| client_certificates(value, around))?;
    ssl.finish()?;
    let password = match (file, command) {
        (Some(_), Some(_)) => {
            let why = "password-file and password-command exclude each other";
            return Err(place.refuse(Problem::Unsupported(why)));
        }
        (Some(path), None) => Some(Password::File(path)),
        (None, Some(command)) => Some(Password::Command(command)),
        (None, None) => None,
    };
    Ok(SslConfig {
        place,
        certificate,
        key,
        password,
        authenticate,
    })
}

fn storage(section: Section, around: &dyn Surroundings) -> Result<StorageConfig, ConfigError> {
    let place = section.place.clone();
    let name = section.name.clone().unwrap_or_else(|| "1".to_owned());
    let kind = match section.kind.as_str() {
        "filestorage" => StorageKind::File(filestorage(section, around)?),
        "mappingstorage" => mappingstorage(section)?,
        "blobstorage" => StorageKind::File(blobstorage(section, around)?),
        "demostorage" | "zeoclient" | "clientstorage" | "zlibstorage" | "relstorage" => {
            let why = "only <filestorage> and <mappingstorage> can be served";
            return Err(place.refuse(Problem::Unsupported(why)));
        }
        _ => {
            let problem = Problem::UnknownSection {
                section: section.kind,
                within: String::new(),
            };
            return Err(place.refuse(problem));
        }
    };
    Ok(StorageConfig { name, kind })
}

fn filestorage(
    section: Section,
    around: &dyn Surroundings,
) -> Result<FileStorageConfig, ConfigError> {
    let mut items = Items::new(section)?;
    let path = |value: &str| path(value, around);
    let mut file = FileStorageConfig::new(items.required("path", path)?);
    file.blob_dir = items.optional("blob-dir", or_empty(path))?.flatten();
    items.set("create", boolean, &mut file.create)?;
    items.set("read-only", boolean, &mut file.read_only)?;
    file.quota = items.optional("quota", byte_size)?;
    items.set("pack-gc", boolean, &mut file.pack_gc)?;
    items.set("pack-keep-old", boolean, &mut file.pack_keep_old)?;
    items.optional(
        "packer",
        one_of(&[""], "empty (functions of Python cannot be called)"),
    )?;
    items.finish()?;
    Ok(file)
}

/// A wrapper of former times around a `<filestorage>`, which has a `blob-dir` of its own now.
fn blobstorage(
    section: Section,
    around: &dyn Surroundings,
) -> Result<FileStorageConfig, ConfigError> {
    let place = section.place.clone();
    let mut items = Items::new(section)?;
    let blob_dir = items.required("blob-dir", |value| path(value, around))?;
    let mut inner = items.take_sections();
    items.finish()?;
    let inner = match (inner.pop(), inner.is_empty()) {
        (Some(inner), true) if inner.kind == "filestorage" => inner,
        _ => {
            let why = "<blobstorage> is served around one <filestorage> only";
            return Err(place.refuse(Problem::Unsupported(why)));
        }
    };
    let mut file = filestorage(inner, around)?;
    if file.blob_dir.replace(blob_dir).is_some() {
        let why = "<blobstorage> around a <filestorage> that has a blob-dir";
        return Err(place.refuse(Problem::Unsupported(why)));
    }
    Ok(file)
}

fn mappingstorage(section: Section) -> Result<StorageKind, ConfigError> {
    let mut items = Items::new(section)?;
    items.optional(
        "name",
        one_of(&["Mapping Storage"], "the default, 'Mapping Storage'"),
    )?;
    items.finish()?;
    Ok(StorageKind::Memory)
}

/// Python's root logger. Without a `<logfile>` runzeo would log nothing at all, which nobody who
/// writes a level means: standard error is used then.
fn eventlog(section: Section) -> Result<LogConfig, ConfigError> {
    let mut eventlog = Items::new(section)?;
    let least = eventlog
        .optional("level", level)?
        .unwrap_or(LevelFilter::Info);
    let mut outputs = Vec::new();
    for section in eventlog.take_sections() {
        match section.kind.as_str() {
            "logfile" => outputs.push(logfile(section, least)?),
            "syslog" | "win32-eventlog" | "http-logger" | "email-notifier" => {
                let why = "only <logfile> is supported in <eventlog>";
                return Err(section.place.refuse(Problem::Unsupported(why)));
            }
            _ => return Err(eventlog.unknown(section)),
        }
    }
    eventlog.finish()?;
    if outputs.is_empty() {
        return Ok(LogConfig::stderr(least));
    }
    Ok(LogConfig { outputs })
}

fn logfile(section: Section, least: LevelFilter) -> Result<LogOutput, ConfigError> {
    const BY_TIME: &str = "possible (files are rotated by max-size only)";
    const PYTHON: &str = "possible without Python";
    let mut logfile = Items::new(section)?;
    let path = logfile.required("path", text)?;
    let len_max = logfile.optional("max-size", byte_size)?.unwrap_or(0);
    let old_count = logfile.optional("old-files", old_files)?.unwrap_or(0);
    let rotation = (len_max > 0 && old_count > 0).then_some(Rotation { len_max, old_count });
    let target = match path.as_str() {
        _ if rotation.is_none() && (len_max > 0 || old_count > 0) => {
            let why = "max-size and old-files are of use together only";
            return Err(logfile.section.place.refuse(Problem::Unsupported(why)));
        }
        "STDOUT" | "STDERR" if rotation.is_some() => {
            let why = "max-size: this is no file that could be rotated";
            return Err(logfile.section.place.refuse(Problem::Unsupported(why)));
        }
        "STDOUT" => LogTarget::Stdout,
        "STDERR" => LogTarget::Stderr,
        _ => LogTarget::File {
            path: path.into(),
            rotation,
        },
    };
    let level = logfile
        .optional("level", level)?
        .unwrap_or(LevelFilter::Trace);
    let format = logfile
        .optional("format", LineFormat::parse)?
        .unwrap_or_default();
    let dates = logfile
        .optional("dateformat", DateFormat::parse)?
        .unwrap_or_default();
    for (key, allowed, expected) in [
        ("when", &[""][..], BY_TIME),
        ("interval", &["0"], BY_TIME),
        ("encoding", &["utf-8", "utf8"], "UTF-8"),
        (
            "delay",
            &["false", "no", "off"],
            "false (the file is opened at the start)",
        ),
        ("formatter", &["logging.formatter"], PYTHON),
        ("style", &["classic"], PYTHON),
        ("arbitrary-fields", &["false", "no", "off"], PYTHON),
    ] {
        logfile.optional(key, one_of(allowed, expected))?;
    }
    logfile.finish()?;
    Ok(LogOutput {
        target,
        level: level.min(least),
        format,
        dates,
    })
}

/// What zdaemon's programs read. The keys are known, so that a slip of the pen is found here, too;
/// their values are not our business.
fn runner(section: Section) -> Result<Vec<String>, ConfigError> {
    let mut runner = Items::new(section)?;
    let mut given = Vec::new();
    for section in runner.take_sections() {
        match section.kind.as_str() {
            "eventlog" | "logger" => given.push(section.kind),
            _ => return Err(runner.unknown(section)),
        }
    }
    runner.required("program", text)?;
    given.push("program".to_owned());
    for key in [
        "backoff-limit",
        "daemon",
        "default-to-interactive",
        "directory",
        "exit-codes",
        "forever",
        "hang-around",
        "logfile",
        "prompt",
        "python",
        "socket-name",
        "start-test-program",
        "start-timeout",
        "stop-timeout",
        "transcript",
        "umask",
        "user",
        "zdrun",
    ] {
        if runner.optional(key, text)?.is_some() {
            given.push(key.to_owned());
        }
    }
    runner.finish()?;
    Ok(given)
}

/// A converter for what may be said without a value, which is as if it were not said.
fn or_empty<T>(
    convert: impl FnOnce(&str) -> Result<T, &'static str>,
) -> impl FnOnce(&str) -> Result<Option<T>, &'static str> {
    |value| {
        if value.is_empty() {
            Ok(None)
        } else {
            convert(value).map(Some)
        }
    }
}

/// A converter for what may only be said in the ways that change nothing.
fn one_of(allowed: &[&str], expected: &'static str) -> impl Fn(&str) -> Result<(), &'static str> {
    move |value| {
        let is_allowed = allowed
            .iter()
            .any(|allowed| value.eq_ignore_ascii_case(allowed));
        if is_allowed { Ok(()) } else { Err(expected) }
    }
}

/// The items of a section, to be taken one by one: what is left at the end is unknown.
pub(super) struct Items {
    section: Section,
}

impl Items {
    /// Checks what holds for any section: no key twice, and no name twice in one place.
    pub(super) fn new(section: Section) -> Result<Self, ConfigError> {
        let mut keys = BTreeSet::new();
        for key in &section.keys {
            if !keys.insert(&key.name) {
                return Err(key.place.refuse(Problem::RepeatedKey {
                    key: key.name.clone(),
                }));
            }
        }
        let mut names = BTreeSet::new();
        for inner in &section.sections {
            if let Some(name) = &inner.name
                && !names.insert(name)
            {
                return Err(inner
                    .place
                    .refuse(Problem::RepeatedName { name: name.clone() }));
            }
        }
        Ok(Self { section })
    }

    pub(super) fn optional<T, E: Into<Cow<'static, str>>>(
        &mut self,
        name: &str,
        convert: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(index) = self.section.keys.iter().position(|key| key.name == name) else {
            return Ok(None);
        };
        let Key {
            name: key,
            value,
            place,
        } = self.section.keys.remove(index);
        match convert(&value) {
            Ok(converted) => Ok(Some(converted)),
            Err(expected) => Err(place.refuse(Problem::BadValue {
                key,
                value,
                expected: expected.into(),
            })),
        }
    }

    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Result<T, ConfigError> {
        self.optional(key, convert)?.ok_or_else(|| {
            let section = self.section.kind.clone();
            self.section
                .place
                .refuse(Problem::MissingKey { key, section })
        })
    }

    /// Leaves the default where the section says nothing.
    fn set<T>(
        &mut self,
        key: &str,
        convert: impl FnOnce(&str) -> Result<T, &'static str>,
        field: &mut T,
    ) -> Result<(), ConfigError> {
        if let Some(value) = self.optional(key, convert)? {
            *field = value;
        }
        Ok(())
    }

    /// The one inner section that may be there.
    pub(super) fn take_ssl(
        &mut self,
        around: &dyn Surroundings,
    ) -> Result<Option<SslConfig>, ConfigError> {
        let mut found = None;
        for section in self.take_sections() {
            match section.kind.as_str() {
                "ssl" if found.is_none() => found = Some(ssl(section, around)?),
                "ssl" => {
                    let problem = Problem::RepeatedSection {
                        section: section.kind,
                    };
                    return Err(section.place.refuse(problem));
                }
                _ => return Err(self.unknown(section)),
            }
        }
        Ok(found)
    }

    fn take_sections(&mut self) -> Vec<Section> {
        std::mem::take(&mut self.section.sections)
    }

    /// The error for an inner section that does not belong here.
    fn unknown(&self, inner: Section) -> ConfigError {
        let within = self.section.kind.clone();
        inner.place.refuse(Problem::UnknownSection {
            section: inner.kind,
            within,
        })
    }

    pub(super) fn finish(self) -> Result<(), ConfigError> {
        let section = self.section.kind;
        if let Some(inner) = self.section.sections.into_iter().next() {
            let problem = Problem::UnknownSection {
                section: inner.kind,
                within: section,
            };
            return Err(inner.place.refuse(problem));
        }
        match self.section.keys.into_iter().next() {
            Some(key) => Err(key.place.refuse(Problem::UnknownKey {
                key: key.name,
                section,
            })),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::super::testing::Files;
    use super::super::{Address, LockScope, read};
    use super::*;
    use crate::args::Args;

    const ZEO: &str = "<zeo>\naddress 8100\n</zeo>\n";
    const STORAGE: &str = "<filestorage>\npath Data.fs\n</filestorage>\n";

    fn config(text: &str) -> Result<Config, String> {
        let args = Args {
            configure: Some("zeo.conf".into()),
            ..Args::default()
        };
        let files = Files::new(&[("zeo.conf", text)]);
        read(&args, &files).map_err(|error| error.to_string())
    }

    /// Of a configuration that consists of a `<zeo>` with these lines, and of a storage.
    fn zeo_error(lines: &str) -> String {
        config(&format!("<zeo>\n{lines}\n</zeo>\n{STORAGE}")).unwrap_err()
    }

    fn storage_error(text: &str) -> String {
        config(&format!("{ZEO}{text}")).unwrap_err()
    }

    fn eventlog(lines: &str) -> Result<Vec<LogOutput>, String> {
        let text = format!("{ZEO}{STORAGE}<eventlog>\n{lines}\n</eventlog>");
        Ok(config(&text)?.log.outputs)
    }

    #[test]
    fn what_is_not_said_has_the_defaults_of_runzeo() {
        let config = config(&format!("{ZEO}{STORAGE}")).unwrap();
        let everywhere = Address::Tcp {
            host: String::new(),
            port: 8100,
        };
        let storage = StorageConfig {
            name: "1".to_owned(),
            kind: StorageKind::File(FileStorageConfig {
                path: "Data.fs".into(),
                blob_dir: None,
                create: false,
                read_only: false,
                quota: None,
                pack_gc: true,
                pack_keep_old: true,
            }),
        };
        let expected = Config {
            ssl: None,
            addresses: vec![everywhere],
            read_only: false,
            invalidation_queue_size: 100,
            invalidation_age: None,
            transaction_timeout: None,
            pid_file: None,
            client_conflict_resolution: true,
            msgpack: false,
            lock_scope: LockScope::Objects,
            storages: vec![storage],
            log: LogConfig::stderr(LevelFilter::Info),
            standby: None,
            follow: Vec::new(),
            runner_keys: Vec::new(),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn everything_can_be_said() {
        let text = "<ZEO>
              Address localhost:0 ./zeo.sock
              read-only true
              invalidation-queue-size 7
              invalidation-age 10.5
              transaction-timeout 5m
              pid-filename zeo.pid
              client-conflict-resolution true
              msgpack true
              commit-lock storage
            </zeo>
            <filestorage Main>
              path Data.fs
              blob-dir blobs
              create true
              read-only true
              quota 1GB
              pack-gc false
              pack-keep-old false
            </filestorage>
            <mappingstorage temp/>
            <eventlog>
              level warn
              <logfile>
                path zeo.log
                level debug
                format %(asctime)s %(message)s
                dateformat %Y-%m-%dT%H:%M:%S
              </logfile>
              <logfile>
                path STDOUT
                level error
              </logfile>
            </eventlog>
            <runner>
              program runzeo -C zeo.conf
              daemon true
              <eventlog/>
            </runner>";
        let config = config(text).unwrap();
        assert_eq!(config.addresses.len(), 2);
        assert!(config.read_only && config.client_conflict_resolution && config.msgpack);
        assert_eq!(config.invalidation_queue_size, 7);
        assert_eq!(config.invalidation_age, Some(Duration::from_millis(10_500)));
        assert_eq!(config.transaction_timeout, Some(Duration::from_secs(300)));
        assert_eq!(config.pid_file, Some("zeo.pid".into()));
        assert_eq!(config.lock_scope, LockScope::Storage);
        let file = FileStorageConfig {
            path: "Data.fs".into(),
            blob_dir: Some("blobs".into()),
            create: true,
            read_only: true,
            quota: Some(1 << 30),
            pack_gc: false,
            pack_keep_old: false,
        };
        let expected = [
            ("main", StorageKind::File(file)),
            ("temp", StorageKind::Memory),
        ];
        let expected = expected.map(|(name, kind)| StorageConfig {
            name: name.to_owned(),
            kind,
        });
        assert_eq!(config.storages, expected);
        let outputs = config.log.outputs.iter();
        let outputs: Vec<_> = outputs
            .map(|output| (&output.target, output.level))
            .collect();
        let file = log_file("zeo.log", None);
        // The level of the event log holds for all its files.
        assert_eq!(outputs[0], (&file, LevelFilter::Warn));
        assert_eq!(outputs[1], (&LogTarget::Stdout, LevelFilter::Error));
        assert_eq!(config.runner_keys, ["eventlog", "program", "daemon"]);
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_key() {
        assert_eq!(
            zeo_error("address 1\nbanana 1"),
            "zeo.conf:3: unknown key 'banana' in <zeo>"
        );
        assert_eq!(
            zeo_error("address 1\naddress 1"),
            "zeo.conf:3: key 'address' is there already"
        );
        assert_eq!(zeo_error(""), "zeo.conf:1: <zeo> needs a key 'address'");
        assert_eq!(
            zeo_error("address 1\nREAD-ONLY maybe"),
            "zeo.conf:3: read-only: 'maybe' is not a boolean (yes, true, on, no, false or off)"
        );
        assert_eq!(
            storage_error("<filestorage>\npath no/such/Data.fs\n</filestorage>"),
            "zeo.conf:5: path: 'no/such/Data.fs' is not a path in an existing directory"
        );
        assert_eq!(
            storage_error("<banana/>"),
            "zeo.conf:4: unknown section <banana>"
        );
        assert_eq!(
            storage_error("banana 1"),
            "zeo.conf:4: unknown key 'banana'"
        );
        assert_eq!(config(STORAGE).unwrap_err(), "zeo.conf: there is no <zeo>");
        assert!(config(ZEO).unwrap_err().contains("there is no storage"));
    }

    #[test]
    fn values_of_another_type_are_refused() {
        for line in [
            "invalidation-queue-size many",
            "invalidation-queue-size -1",
            "invalidation-age old",
            "transaction-timeout 0",
            "transaction-timeout 1.5",
            "pid-filename no/such/zeo.pid",
            "commit-lock both",
            "read-only",
        ] {
            let error = zeo_error(&format!("address 8100\n{line}"));
            assert!(error.starts_with("zeo.conf:3: "), "{error}");
        }
        assert!(zeo_error("address host:port").contains("is not an address"));
        assert!(storage_error("<filestorage>\npath\n</filestorage>").contains("path"));
        assert!(storage_error("<filestorage/>").contains("needs a key 'path'"));
    }

    #[test]
    fn storages_have_distinct_names() {
        let two = |first: &str, second: &str| {
            let one = |name, path| format!("<filestorage {name}>\npath {path}\n</filestorage>\n");
            config(&format!(
                "{ZEO}{}{}",
                one(first, "A.fs"),
                one(second, "B.fs")
            ))
        };
        assert!(two("", "2").is_ok());
        for (first, second) in [("", ""), ("", "1"), ("1", ""), ("x", "X")] {
            let error = two(first, second).unwrap_err();
            assert!(error.starts_with("zeo.conf:7: section name"), "{error}");
        }
    }

    #[test]
    fn sections_that_are_there_once_are_not_repeated() {
        let error = config(&format!("{ZEO}{ZEO}{STORAGE}")).unwrap_err();
        assert_eq!(error, "zeo.conf:4: <zeo> is there already");
    }

    #[test]
    fn storages_of_python_are_refused() {
        for kind in ["demostorage", "zeoclient", "zlibstorage"] {
            let error = storage_error(&format!("<{kind}>\n</{kind}>"));
            assert!(error.contains("<filestorage>"), "{error}");
        }
        let packer = "<filestorage>\npath A.fs\npacker zc.FileStorage.packer\n</filestorage>";
        assert!(storage_error(packer).contains("functions of Python"));
    }

    #[test]
    fn blobs_are_an_option_of_the_file_or_a_section_around_it() {
        let file = |text: &str| match config(&format!("{ZEO}{text}")) {
            Ok(config) => match config.storages.into_iter().next() {
                Some(StorageConfig {
                    kind: StorageKind::File(file),
                    name,
                }) => Ok((name, file.path, file.blob_dir)),
                other => panic!("{other:?}"),
            },
            Err(error) => Err(error),
        };
        let wanted = |blob_dir: Option<&str>| {
            let blob_dir = blob_dir.map(PathBuf::from);
            Ok(("main".to_owned(), PathBuf::from("A.fs"), blob_dir))
        };
        let plain = "<filestorage main>\npath A.fs\nblob-dir blobs\n</filestorage>";
        assert_eq!(file(plain), wanted(Some("blobs")));
        let none = "<filestorage main>\npath A.fs\nblob-dir\n</filestorage>";
        assert_eq!(file(none), wanted(None));
        let around = |inner: &str| {
            let key = "blob-dir blobs\n";
            file(&format!("<blobstorage main>\n{key}{inner}\n</blobstorage>"))
        };
        let inner = "<filestorage>\npath A.fs\n</filestorage>";
        assert_eq!(around(inner), wanted(Some("blobs")));
        let two = format!("{plain}\n<filestorage>\npath B.fs\nblob-dir blobs\n</filestorage>");
        let error = config(&format!("{ZEO}{two}")).unwrap_err();
        assert!(
            error.ends_with("another storage has the blob-dir 'blobs'"),
            "{error}"
        );
        for wrong in ["", "<mappingstorage>\n</mappingstorage>", plain] {
            let error = around(wrong).unwrap_err();
            assert!(error.contains("<blobstorage>"), "{error}");
        }
        assert!(around(&format!("{inner}\n{inner}")).is_err());
    }

    #[test]
    fn certificates_and_keys_are_named_by_their_files() {
        let read = |lines: &str| {
            let text = format!("<zeo>\naddress 1\n<ssl>\n{lines}\n</ssl>\n</zeo>\n{STORAGE}");
            config(&text).map(|config| config.ssl.unwrap())
        };
        let least = "certificate a.pem\nauthenticate b.pem\n";
        let ssl = read(least).unwrap();
        assert_eq!(ssl.place.to_string(), "zeo.conf:3");
        assert_eq!((ssl.key, ssl.password), (None, None));
        assert_eq!(ssl.certificate, Path::new("a.pem"));
        assert_eq!(ssl.authenticate, Path::new("b.pem"));
        let all = read(&format!(
            "{least}key c.pem\npassword-function\npassword-file d"
        ))
        .unwrap();
        assert_eq!(all.key, Some("c.pem".into()));
        assert_eq!(all.password, Some(Password::File("d".into())));
        let command = read(&format!(
            "{least}password-command pass show zeo | head -n 1"
        ))
        .unwrap();
        let expected = "pass show zeo | head -n 1".to_owned();
        assert_eq!(command.password, Some(Password::Command(expected)));
        for (lines, complaint) in [
            (
                "authenticate b.pem",
                "zeo.conf:3: <ssl> needs a key 'certificate'",
            ),
            (
                "certificate a.pem",
                "zeo.conf:3: <ssl> needs a key 'authenticate'",
            ),
            (
                "certificate no/a.pem",
                "zeo.conf:4: certificate: 'no/a.pem' is not a path in an",
            ),
            (
                "certificate a\nauthenticate b\npassword-function m.f",
                "zeo.conf:6: password-function: 'm.f' is not empty (functions of Python cannot be \
                 called: give password-file PATH or password-command COMMAND instead)",
            ),
            (
                "certificate a\nauthenticate b\npassword-file c\npassword-command d",
                "zeo.conf:3: password-file and password-command exclude each other",
            ),
            (
                "certificate a\nauthenticate DYNAMIC",
                "zeo.conf:5: authenticate: 'DYNAMIC' is not a file or directory",
            ),
            (
                "certificate a\nauthenticate b\nverify yes",
                "zeo.conf:6: unknown key 'verify'",
            ),
        ] {
            let error = read(lines).unwrap_err();
            assert!(error.starts_with(complaint), "{error}");
        }
        let twice = format!("<ssl a>\n{least}</ssl>\n<ssl b>\n{least}</ssl>");
        let error = zeo_error(&format!("address 1\n{twice}"));
        assert_eq!(error, "zeo.conf:7: <ssl> is there already");
    }

    #[test]
    fn an_event_log_without_files_goes_to_standard_error() {
        assert_eq!(
            eventlog("level debug").unwrap(),
            LogConfig::stderr(LevelFilter::Debug).outputs
        );
    }

    #[test]
    fn log_options_that_change_nothing_are_accepted() {
        let lines = "<logfile>\npath a.log\nwhen\nold-files 0\nmax-size 0\ninterval 0\n\
                     encoding UTF-8\ndelay no\nformatter logging.Formatter\nstyle classic\n\
                     arbitrary-fields false\n</logfile>";
        assert_eq!(eventlog(lines).unwrap()[0].target, log_file("a.log", None));
    }

    #[test]
    fn log_files_are_rotated_by_size() {
        let rotated = |path: &str| {
            eventlog(&format!(
                "<logfile>\npath {path}\nmax-size 5MB\nold-files 3\n</logfile>"
            ))
        };
        let rotation = Rotation {
            len_max: 5 << 20,
            old_count: 3,
        };
        assert_eq!(
            rotated("a.log").unwrap()[0].target,
            log_file("a.log", Some(rotation))
        );
        assert!(rotated("STDERR").unwrap_err().contains("no file"));
        for (lines, line) in [
            ("old-files 3", 8),
            ("max-size 10MB", 8),
            ("max-size 10MB\nold-files 1001", 11),
            ("max-size 10MB\nold-files 2\nwhen D", 12),
        ] {
            let error = eventlog(&format!("<logfile>\npath a.log\n{lines}\n</logfile>"));
            let error = error.unwrap_err();
            assert!(error.starts_with(&format!("zeo.conf:{line}: ")), "{error}");
        }
    }

    fn log_file(path: &str, rotation: Option<Rotation>) -> LogTarget {
        let path = path.into();
        LogTarget::File { path, rotation }
    }

    #[test]
    fn log_options_that_are_not_done_are_refused() {
        for line in [
            "when D",
            "interval 1",
            "encoding latin-1",
            "delay true",
            "formatter zope.exceptions.log.Formatter",
            "style format",
            "arbitrary-fields true",
            "format %(funcName)s",
            "dateformat %f",
            "level loud",
            "banana 1",
        ] {
            let error =
                eventlog(&format!("<logfile>\npath a.log\n{line}\n</logfile>")).unwrap_err();
            assert!(error.starts_with("zeo.conf:10: "), "{error}");
        }
        assert!(
            eventlog("<syslog/>")
                .unwrap_err()
                .contains("only <logfile>")
        );
        assert!(
            eventlog("<logfile/>")
                .unwrap_err()
                .contains("needs a key 'path'")
        );
        assert!(eventlog("<banana/>").unwrap_err().contains("in <eventlog>"));
    }

    #[test]
    fn slips_in_the_runner_section_are_found() {
        let runner = |lines: &str| storage_error(&format!("{STORAGE}<runner>\n{lines}\n</runner>"));
        assert!(runner("daemon true").contains("needs a key 'program'"));
        assert!(runner("program x\ndemon true").contains("unknown key 'demon' in <runner>"));
    }

    #[test]
    fn paths_stay_as_they_are_given() {
        let config = config(&format!("{ZEO}{STORAGE}")).unwrap();
        let StorageKind::File(file) = &config.storages[0].kind else {
            panic!()
        };
        assert_eq!(file.path, Path::new("Data.fs"));
    }
}
